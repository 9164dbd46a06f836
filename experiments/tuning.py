"""Step sizes at laptop scale: as many tries for every model, on seeds that no table has.

    python experiments/tuning.py

First the step size of maximum likelihood, chosen by the lowest NLL_gen; then that of adversarial training, chosen by
NLL_oracle less that of the MLE model at equal NLL_gen, as in `frontier.py`. What is chosen is in the presets `laptop-`,
for every task. Trains what is missing, prints Markdown and writes it to `results/SCALE/`.
"""

import compare
import lab

TASK = "synthetic20"
FIRST_SEED = 100
MLE_STEPS = (1e-3, 3e-3, 1e-2)
GAN_STEPS = (3e-4, 1e-3, 3e-3, 1e-2)
PRETRAINED = {
    "MLE": {**lab.MODELS["MLE"], "pretrain_rounds": 12},
    "LeakGAN, pre-trained": {"adversarial_iterations": 0, "pretrain_rounds": 12},
}


def body(args) -> None:
    supervised = [
        lab.Cell(TASK, f"{name}, {step:g}", {**settings, "generator_lr": step})
        for name, settings in PRETRAINED.items()
        for step in MLE_STEPS
    ]
    adversarial = [
        lab.Cell(TASK, f"{name}, {step:g}", {**lab.MODELS[name], "adversarial_lr": step})
        for name in lab.MODELS
        for step in GAN_STEPS
        if name != "MLE"
    ]
    mle = lab.Cell(TASK, "MLE", lab.MODELS["MLE"])
    lines = lab.collect([*supervised, mle, *adversarial], args, FIRST_SEED, "tuning")
    text = "# Step sizes at laptop scale\n\n| maximum likelihood | NLL_gen | NLL_oracle | epoch |\n|---|--:|--:|--:|\n"
    for cell in supervised:
        own = lab.of(lines, cell.name)
        points = [lab.at(line, 1.0) for line in own]
        epochs = [min(line["curve"], key=lambda point: point["nll_gen"])["epoch"] for line in own]
        cells = [lab.spread([p[key] for p in points]) for key in ("nll_gen", "nll_oracle")]
        text += f"| {cell.name} | {' | '.join(cells)} | {lab.spread(epochs, 1)} |\n"
    text += f"\n| adversarial | NLL_oracle | NLL_gen | {compare.FRONTIER} |\n|---|--:|--:|--:|\n"
    for cell in adversarial:
        measured = compare.measure(lab.of(lines, cell.name), lab.of(lines, "MLE"))
        cells = [lab.spread(measured[key]) for key in ("nll_oracle", "nll_gen", "frontier")]
        text += f"| {cell.name} | {' | '.join(cells)} |\n"
    text += f"\n{lab.facts(lines, args.scale)} Temperature 1, but for the last column: as in `frontier.md`."
    lab.publish(text, args.results / args.scale / "tuning.md")


if __name__ == "__main__":
    lab.main("tuning.py", __doc__, body)
