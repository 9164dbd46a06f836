"""Figure 3: BLEU by the length of the generated sentence, news, LeakGAN less the others.

    python experiments/figure3_lengths.py [--manual-dir DIR]

Trains what Table 2 is missing. The paper plots how much higher LeakGAN's BLEU is than SeqGAN's and RankGAN's against
length; sentences are binned by their number of words, and bins with fewer than 20 sentences left out. Models of one
seed, which have the same data, are compared; a point is the mean over seeds, a bar their standard deviation.
"""

import lab
import numpy as np
from text_models import MODELS

from leakgan_jax.report import pyplot

ORDERS = (2, 3, 4, 5)


def body(args) -> None:
    models = lab.models("news", args.scale, MODELS)
    lines, longest = lab.collect(models, args), models[0].config(args.scale).length - 1  # words; then the end
    ours = {model: by_length(lab.of(lines, model)) for model in MODELS}
    bins = sorted(set.intersection(*(set(own) for own in ours.values())))
    labels = [f"{low}-{min(high - 1, longest)}" for low, high in bins]
    text = "# Figure 3: BLEU by length, news\n\n| words | model | sentences | BLEU-2 | BLEU-3 | BLEU-4 | BLEU-5 |\n"
    text += "|---|---|--:|--:|--:|--:|--:|\n"
    for label, edges in zip(labels, bins, strict=True):
        for model, own in ours.items():
            of_seeds = list(own[edges].values())
            rows = of_seeds + [[None] * 5] * (args.seeds - len(of_seeds))
            cells = [lab.spread([row[i + 1] for row in rows]) for i in range(len(ORDERS))]
            count = np.mean([row[0] for row in of_seeds])
            text += f"| {label} | {model} | {count:.0f} | {' | '.join(cells)} |\n"
    figure, axes = pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for ax, other in zip(axes, ("SeqGAN", "RankGAN"), strict=True):
        for i, n in enumerate(ORDERS):
            gains = [relative(ours["LeakGAN"][b], ours[other][b], i + 1) for b in bins]
            place = [low + 0.25 * (i - 1.5) for low, _ in bins]  # so that no bar hides another
            bars = [np.std(gain, ddof=1) if len(gain) > 1 else 0.0 for gain in gains]
            ax.errorbar(place, [np.mean(gain) for gain in gains], bars, fmt="o-", capsize=2, label=f"BLEU-{n}")
        ax.axhline(0, color="0.3", lw=0.8)
        ax.set_title(f"LeakGAN over {other}, {args.scale} scale", fontsize=10)
        ax.set_xticks([low for low, _ in bins], labels)
        ax.set_xlabel("words a sentence")
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("relative gain of BLEU")
    axes[0].legend(loc="lower center", ncols=len(ORDERS), frameon=False, fontsize=8)
    axes[0].margins(y=0.15)
    folder = args.results / args.scale
    text += f"\n{lab.facts(lines, args.scale)} Temperature 1.\n\n![Figure 3](figure3.png)"
    lab.publish(text, folder / "figure3.md", {"figure3.png": figure})


def by_length(lines: list[lab.Line]) -> dict[tuple[int, int], dict[int, list[float]]]:
    """`(from, to) -> seed -> [count, BLEU-2..5]`, of the seeds that have enough sentences, at temperature 1."""
    found: dict[tuple[int, int], dict[int, list[float]]] = {}
    for line in lines:
        for low, high, *row in lab.at(line, 1.0)["by_length"]:
            found.setdefault((low, high), {})[line["seed"]] = row
    return found


def relative(ours: dict[int, list[float]], theirs: dict[int, list[float]], column: int) -> list[float]:
    """How much higher one is than the other, as a share of the other, for each seed that both have."""
    return [ours[seed][column] / theirs[seed][column] - 1 for seed in sorted(ours.keys() & theirs.keys())]


if __name__ == "__main__":
    lab.main("figure3_lengths.py", __doc__, body)
