"""Which parts of LeakGAN matter: one change at a time on the synthetic task, the same seeds, paired tests.

    python experiments/ablations.py

Trains what is missing, prints Markdown and writes it with a picture to `results/SCALE/`.
"""

import compare
import lab

VARIANTS = {
    "no rescaling": {"rescaling": "off"},
    "ranks shuffled, as released": {"rescaling": "shuffled"},
    "one reward a sentence": {"credit": "sentence"},
    "one reward a batch, as released": {"credit": "batch"},
    "no interleaved MLE": {"interleave_every": 0},
    "goals held for a block": {"goals": "held"},
    "released reading": {"reading": "released", "eval_temperature": 1.0},
    "policy gradient at temperature 1/1.5": {"train_temperature": 1 / 1.5},
    "policy gradient at temperature 1.5": {"train_temperature": 1.5},
    "1 completion": {"completions": 1},
    "16 completions": {"completions": 16},
}


def body(args) -> None:
    interleaved = lab.Cell(compare.TASK, compare.BASE, {}).config(args.scale).interleave_every
    released = {**VARIANTS["released reading"], "interleave_every": interleaved}  # it is a variant of its own
    compare.run("Ablations", "ablations", {**VARIANTS, "released reading": released}, args)


if __name__ == "__main__":
    lab.main("ablations.py", __doc__, body)
