"""Which parts of LeakGAN matter: one change at a time on the synthetic task, the same seeds, paired tests.

    python experiments/ablations.py

Trains what is missing (`--scale laptop`: about half an hour on two CPU cores), prints Markdown and writes it with a
picture to `results/SCALE/`.
"""

import compare
import lab

TASK = "synthetic20"
BASE = "LeakGAN"
VARIANTS = {
    "no rescaling": {"rescaling": "off"},
    "ranks shuffled, as released": {"rescaling": "shuffled"},
    "one reward a sentence": {"credit": "sentence"},
    "no interleaved MLE": {"interleave_every": 0},
    "goals held for a block": {"goals": "held"},
    "released reading": {"reading": "released", "eval_temperature": 1.0, "interleave_every": 15},
    "training temperature 1/1.5": {"train_temperature": 1 / 1.5},
    "training temperature 1.5": {"train_temperature": 1.5},
    "1 completion": {"completions": 1},
    "16 completions": {"completions": 16},
}


def body(args) -> None:
    cells = [lab.Cell(TASK, BASE, {}), *(lab.Cell(TASK, name, own) for name, own in VARIANTS.items())]
    mle = lab.Cell(TASK, "MLE", lab.MODELS["MLE"])
    lines = lab.collect([mle, *cells], args)
    table, measured = compare.table(cells, lines, BASE, lab.of(lines, "MLE", "MLE, best NLL_gen"))
    folder = args.results / args.scale
    compare.draw(folder / "ablations.png", measured, BASE, f"Ablations, {args.scale} scale")
    changes = "\n".join(f"- {name}: `{settings}`" for name, settings in VARIANTS.items())
    text = f"# Ablations, synthetic task\n\n{table}\n{lab.facts(lines, args.scale)} {compare.COMPARED}\n\n{changes}"
    lab.publish(f"{text}\n\n![Ablations](ablations.png)", folder / "ablations.md")


if __name__ == "__main__":
    lab.main("ablations.py", __doc__, body)
