"""Figure 2: NLL_oracle of every model while it trains, beside the published curves.

    python experiments/figure2_curves.py [--published FILE]

Trains what Table 1 is missing. `figure2.png` has the levels of the paper's Table 1 beside ours. With a file of columns
length, model, epoch, nll_oracle, as digitised from the paper's Figure 2 (not ours to distribute), those curves are
beside ours in `figure2_published.png`. At laptop scale the oracle is another one, so the two halves of a picture have
axes of their own.
"""

import csv
from pathlib import Path

import lab
import numpy as np
from table1_synthetic import PUBLISHED

from leakgan_jax import rundir
from leakgan_jax.report import pyplot


def body(args) -> None:
    published = read_published(args.published) if args.published else {}
    text = (
        "# Figure 2: training curves\n\n| length | model | pre-training, epochs | NLL_oracle after | and at the end |\n"
    )
    text += "|--:|---|--:|--:|--:|\n"
    lines_of = {}
    samples = lab.models("synthetic20", args.scale)[0].config(args.scale).eval_samples  # of evaluations in training
    for task in PUBLISHED:
        lines = lines_of[task] = lab.collect(lab.models(task, args.scale), args)
        for name in lab.MODELS:
            epochs, values, pretraining = curves(lab.of(lines, name))
            after = lab.spread(values[:, epochs.index(pretraining)])
            end = lab.spread(values[:, -1]) if pretraining < epochs[-1] else ""
            text += f"| {' | '.join(map(str, [task[-2:], name, pretraining, after, end]))} |\n"
    pictures = {"figure2.png": draw(lines_of, {}, args.scale)}
    if published:
        pictures["figure2_published.png"] = draw(lines_of, published, args.scale)
    every_line = [line for lines in lines_of.values() for line in lines]
    text += (
        f"\n{lab.facts(every_line, args.scale, samples)} Ours at temperature 1; the published values of LeakGAN at "
        "1/1.5, as far as its code tells, the others at 1. Bands: one standard deviation; dashed: adversarial training "
        "begins.\n\n![Figure 2](figure2.png)"
    )
    lab.publish(text, args.results / args.scale / "figure2.md", pictures)


def draw(lines_of: dict[str, list[lab.Line]], published: dict[tuple[int, str], np.ndarray], scale: str):
    """Ours on the left, by task; on the right the published curves, or without them the levels of Table 1."""
    figure, axes = pyplot().subplots(2, 2, figsize=(10, 7), layout="constrained")
    for row, (task, lines) in zip(axes, lines_of.items(), strict=True):
        length = int(task[-2:])
        for name in lab.MODELS:
            epochs, values, pretraining = curves(lab.of(lines, name))
            mean = values.mean(axis=0)
            row[0].plot(epochs, mean, color=lab.COLOURS[name], label=name)
            if len(values) > 1:
                deviation = values.std(axis=0, ddof=1)
                row[0].fill_between(
                    epochs, mean - deviation, mean + deviation, color=lab.COLOURS[name], alpha=0.15, lw=0
                )
            if pretraining < epochs[-1]:
                row[0].axvline(pretraining, color=lab.COLOURS[name], lw=0.6, ls="--")
            draw_published(row[1], published.get((length, name)), PUBLISHED[task].get(name), lab.COLOURS[name])
        real = np.mean([lab.at(line, None)["nll_oracle"] for line in lab.of(lines, "LeakGAN")])
        row[0].axhline(real, color="0.3", ls=":", lw=1, label="real")
        row[1].axhline(PUBLISHED[task]["real"], color="0.3", ls=":", lw=1, label="real")
        for ax, whose in zip(row, (f"ours, {scale} scale", "published" + ", Table 1" * (not published)), strict=True):
            ax.set_title(f"{length} tokens, {whose}", fontsize=10)
            ax.set_xlabel("MLE epochs, then adversarial iterations")
            ax.set_ylabel("NLL_oracle, nats per token")
            ax.grid(alpha=0.25)
        if not published:  # levels, that have no epochs
            row[1].set_xticks([])
            row[1].set_xlabel("")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False, fontsize=8
    )
    return figure


def curves(lines: list[lab.Line]) -> tuple[list[int], np.ndarray, int]:
    """Epochs, NLL_oracle `[seeds, epochs]`, and the last epoch of pre-training."""
    points = lines[0]["curve"]
    values = np.array([[point["nll_oracle"] for point in line["curve"]] for line in lines])
    pretraining = max(point["epoch"] for point in points if point["phase"] == "pretrain")
    return [point["epoch"] for point in points], values, pretraining


def read_published(path: Path) -> dict[tuple[int, str], np.ndarray]:
    """`(length, model) -> [n, 2]` of epoch and NLL_oracle."""
    found: dict[tuple[int, str], list[tuple[float, float]]] = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                where = int(row["length"]), row["model"]
                found.setdefault(where, []).append((float(row["epoch"]), float(row["nll_oracle"])))
        if not found or not all(np.isfinite(points).all() for points in found.values()):
            raise ValueError
    except OSError as error:
        raise rundir.RunError(f"--published {path} cannot be read: {error.strerror}; give a file") from None
    except (KeyError, ValueError, TypeError):
        raise rundir.RunError(f"{path}: not a table of length, model, epoch, nll_oracle; give one") from None
    return {where: np.array(points) for where, points in found.items()}


def draw_published(ax, curve: np.ndarray | None, level: float | None, colour: str) -> None:
    if curve is not None:
        ax.plot(*curve.T, color=colour)
    elif level is not None:
        ax.axhline(level, color=colour)


if __name__ == "__main__":
    add = lambda made: made.add_argument("--published", type=Path, help="digitised curves of the paper")  # noqa: E731
    lab.main("figure2_curves.py", __doc__, body, add)
