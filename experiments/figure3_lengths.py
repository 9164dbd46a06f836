"""Figure 3: BLEU by the length of the generated sentence, news, LeakGAN less the others.

    python experiments/figure3_lengths.py [--manual-dir DIR]

Trains what Table 2 is missing. The paper plots how much higher LeakGAN's BLEU is than SeqGAN's and RankGAN's against
length; sentences are binned by their number of words, and bins with fewer than 20 sentences left out.
"""

import lab
import numpy as np
from text_models import MODELS

from leakgan_jax.report import pyplot, save

ORDERS = (2, 3, 4, 5)


def body(args) -> None:
    lines = lab.collect(lab.models("news", MODELS), args)
    ours = {model: by_length(lab.of(lines, model)) for model in MODELS}
    bins = sorted(set.intersection(*(set(own) for own in ours.values())))
    text = "# Figure 3: BLEU by length, news\n\n| words | model | sentences | BLEU-2 | BLEU-3 | BLEU-4 | BLEU-5 |\n"
    text += "|---|---|--:|--:|--:|--:|--:|\n"
    for low, high in bins:
        for model, own in ours.items():
            rows = own[low, high] + [[None] * 5] * (args.seeds - len(own[low, high]))
            cells = [lab.spread([row[i + 1] for row in rows]) for i in range(len(ORDERS))]
            count = np.mean([row[0] for row in own[low, high]])
            text += f"| {low}-{high - 1} | {model} | {count:.0f} | {' | '.join(cells)} |\n"
    figure, axes = pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for ax, other in zip(axes, ("SeqGAN", "RankGAN"), strict=True):
        for i, n in enumerate(ORDERS):
            gain = [relative(ours["LeakGAN"][b], ours[other][b], i + 1) for b in bins]
            ax.plot([low for low, _ in bins], gain, "o-", label=f"BLEU-{n}")
        ax.axhline(0, color="0.3", lw=0.8)
        ax.set_title(f"LeakGAN over {other}, {args.scale} scale", fontsize=10)
        ax.set_xlabel("words a sentence, from")
        ax.set_ylabel("relative gain of mean BLEU")
        ax.grid(alpha=0.25)
    axes[0].legend(frameon=False, fontsize=8)
    folder = args.results / args.scale
    save(figure, folder / "figure3.png")
    text += f"\n{lab.facts(lines, args.scale)} Temperature 1.\n\n![Figure 3](figure3.png)"
    lab.publish(text, folder / "figure3.md")


def by_length(lines: list[lab.Line]) -> dict[tuple[int, int], list[list[float]]]:
    """`(from, to) -> [count, BLEU-2..5]` of each seed that has enough sentences, at temperature 1."""
    found: dict[tuple[int, int], list[list[float]]] = {}
    for line in lines:
        for low, high, *row in lab.at(line, 1.0)["by_length"]:
            found.setdefault((low, high), []).append(row)
    return found


def relative(ours: list[list[float]], theirs: list[list[float]], column: int) -> float:
    """How much higher one mean is than the other, as a share of the other."""
    mean, other = (np.mean([row[column] for row in rows]) for rows in (ours, theirs))
    return float((mean - other) / other)


if __name__ == "__main__":
    lab.main("figure3_lengths.py", __doc__, body)
