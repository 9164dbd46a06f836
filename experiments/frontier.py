"""Can LeakGAN be moved beyond an MLE model tuned by temperature? Tries on the synthetic task, failures included.

    python experiments/frontier.py

Every try is one change to LeakGAN, or to SeqGAN where the same change applies; trains what is missing, prints Markdown
and writes it with a picture to `results/SCALE/`. `NOTES.md` says what it came to.
"""

import compare
import lab

TASK = "synthetic20"
BASE = "LeakGAN"
TRIES = {
    "rewards centred": {"advantage": "centred"},
    "rewards standardised": {"advantage": "standardised"},
    "centred, 16 completions": {"advantage": "centred", "completions": 16},
    "goal horizon 2": {"goal_horizon": 2},
    "twice the discriminator's epochs": {"discriminator_epochs": 10},
    "regularised discriminator": {"dropout_keep": 0.5, "discriminator_l2": 0.2},
    "centred, a fifth of the step size": {"advantage": "centred", "adversarial_lr": 1e-4},
    "centred, MLE every 5 iterations": {"advantage": "centred", "interleave_every": 5},
    "SeqGAN": {"model": "seqgan"},
    "SeqGAN, rewards centred": {"model": "seqgan", "advantage": "centred"},
}


def body(args) -> None:
    cells = [lab.Cell(TASK, BASE, {}), *(lab.Cell(TASK, name, own) for name, own in TRIES.items())]
    mle = lab.Cell(TASK, "MLE", lab.MODELS["MLE"])
    lines = lab.collect([mle, *cells], args)
    table, measured = compare.table(cells, lines, BASE, lab.of(lines, "MLE", "MLE, best NLL_gen"))
    folder = args.results / args.scale
    compare.draw(folder / "frontier.png", measured, BASE, f"Tries at the frontier, {args.scale} scale")
    changes = "\n".join(f"- {name}: `{settings}`" for name, settings in TRIES.items())
    text = f"# Tries at the frontier, synthetic task\n\n{table}\n"
    text += f"{lab.facts(lines, args.scale)} {compare.COMPARED}\n\n{changes}"
    lab.publish(f"{text}\n\n![Tries](frontier.png)", folder / "frontier.md")


if __name__ == "__main__":
    lab.main("frontier.py", __doc__, body)
