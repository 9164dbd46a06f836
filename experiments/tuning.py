"""Step sizes at laptop scale: as many tries for every model, on seeds that no table has.

    python experiments/tuning.py --seeds 3

First the step size of maximum likelihood, chosen by the lowest NLL_gen; then that of adversarial training, chosen by
NLL_oracle less that of an MLE model of LeakGAN's size at equal NLL_gen, as in `frontier.py`. What is chosen is in the
presets `laptop-`, for every task. Trains what is missing, prints Markdown and writes it to `results/SCALE/`.
"""

import compare
import lab

TASK = "synthetic20"
FIRST_SEED = 100
MLE_STEPS = (1e-3, 3e-3, 1e-2, 3e-2)
GAN_STEPS = (3e-4, 1e-3, 3e-3, 1e-2)
EPOCHS = 12
LONGER = 24  # for the one whose best epoch is the last


def body(args) -> None:
    mle, same_size = lab.models(TASK, args.scale, ["MLE", lab.SAME_SIZE])
    pretrained = lab.Cell(TASK, "LeakGAN, pre-trained", {"adversarial_iterations": 0})
    supervised = [
        lab.Cell(TASK, f"{name}, {step:g}", {**settings, "pretrain_rounds": EPOCHS, "generator_lr": step})
        for _, name, settings in (mle, same_size, pretrained)
        for step in MLE_STEPS
    ]
    name = f"{mle.name}, {mle.config(args.scale).generator_lr:g}, {LONGER} epochs"
    supervised.append(lab.Cell(TASK, name, {**mle.settings, "pretrain_rounds": LONGER}))
    adversarial = [
        lab.Cell(TASK, f"{name}, {step:g}", {**lab.MODELS[name], "adversarial_lr": step})
        for name in lab.MODELS
        for step in GAN_STEPS
        if name not in (mle.name, same_size.name)
    ]
    lines = lab.collect([*supervised, same_size, *adversarial], args, FIRST_SEED, "tuning")
    text = "# Step sizes at laptop scale\n\n| maximum likelihood | NLL_gen | NLL_oracle | epoch |\n|---|--:|--:|--:|\n"
    for cell in supervised:
        own = lab.of(lines, cell.name)
        points = [lab.at(line, 1.0) for line in own]
        epochs = [min(line["curve"], key=lambda point: point["nll_gen"])["epoch"] for line in own]
        cells = [lab.spread([p[key] for p in points]) for key in ("nll_gen", "nll_oracle")]
        text += f"| {cell.name} | {' | '.join(cells)} | {lab.spread(epochs, 1)} |\n"
    text += f"\n| adversarial | NLL_oracle | NLL_gen | {compare.FRONTIER} |\n|---|--:|--:|--:|\n"
    for cell in adversarial:
        measured = compare.measure(lab.of(lines, cell.name), lab.of(lines, same_size.name))
        cells = [lab.spread(measured[key]) for key in ("nll_oracle", "nll_gen", "frontier")]
        text += f"| {cell.name} | {' | '.join(cells)} |\n"
    text += f"\n{lab.facts(lines, args.scale)} Temperature 1, but for the last column: as in `frontier.md`."
    lab.publish(text, args.results / args.scale / "tuning.md")


if __name__ == "__main__":
    lab.main("tuning.py", __doc__, body)
