"""Quality against diversity: every model's temperature sweep on one plane, and what is left at equal NLL_gen.

    python experiments/quality_diversity.py

On the synthetic task NLL_oracle (quality) against NLL_gen of test sentences (diversity: it rises as a model leaves out
what real text has). The question of Caccia et al. (ICLR 2020): is any model below the curve of an MLE model, here
one of LeakGAN's size? Trains what Table 1 is missing, prints Markdown and writes it with a picture to `results/SCALE/`.
"""

import lab
import numpy as np
from scipy import stats
from table1_synthetic import PRETRAINED, PUBLISHED, chosen

from leakgan_jax.report import pyplot

COLOURS = lab.COLOURS | {PRETRAINED: "0.45"}
BASELINES = (lab.SAME_SIZE, "MLE", PRETRAINED)
MEANING = (
    "Each row compares a model with a baseline of the same seed where both, at temperatures of their own, have the "
    "same NLL_gen: so much above the baseline's lowest, at temperatures below that of the lowest. The difference is in "
    "NLL_oracle, below 0 where the model is better: mean and standard deviation over seeds. The 95% interval and p "
    f"(t-test against 0, not corrected for the number of rows) are of the column +{lab.TESTED:g}, fixed before any "
    f"result; {lab.SAME_SIZE} became the baseline after the first ones. Empty where a seed cannot be compared. All "
    "seeds share one oracle."
)


def body(args) -> None:
    text = "# Quality against diversity\n"
    figure, axes = pyplot().subplots(2, len(PUBLISHED), figsize=(11, 8), layout="constrained", sharey="row")
    for (plane, difference), task in zip(axes.T, PUBLISHED, strict=True):
        lines = lab.collect(lab.models(task, args.scale), args)
        rows = {name: chosen(lines, name) for name in COLOURS}
        text += f"\n## Sentences of {task[-2:]} tokens\n\n{table(rows)}\n{lab.facts(lines, args.scale)}\n"
        draw(plane, rows, f"{task[-2:]} tokens, {args.scale} scale")
        draw_differences(difference, rows, f"{task[-2:]} tokens")
    folder = args.results / args.scale
    text += f"\n{MEANING}\n\n![Quality against diversity](quality_diversity.png)"
    lab.publish(text, folder / "quality_diversity.md", {"quality_diversity.png": figure})


def table(rows: dict[str, list[lab.Line]]) -> str:
    """Every model against each baseline at equal NLL_gen."""
    columns = ["model", "against", *(f"+{level:g}" for level in lab.LEVELS), f"95% interval, +{lab.TESTED:g}", "p"]
    text = f"| {' | '.join(columns)} |\n|---|---|{'--:|' * (len(columns) - 2)}\n"
    for name, lines in rows.items():
        for baseline in BASELINES:
            if name == baseline:
                continue
            pairs = list(zip(lines, rows[baseline], strict=True))
            found = {level: [lab.beyond(line, other, level) for line, other in pairs] for level in lab.LEVELS}
            cells = [name, baseline, *map(lab.spread, found.values()), *interval(found[lab.TESTED])]
            text += f"| {' | '.join(cells)} |\n"
    return text


def interval(values: list[float | None]) -> tuple[str, str]:
    """Of the mean, by Student's t; and p that it is 0."""
    if len(values) < 2 or None in values:
        return "", ""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    mean = np.mean(values)
    return f"{mean - half:+.3f} to {mean + half:+.3f}", f"{stats.ttest_1samp(values, 0).pvalue:.2g}"


def draw(ax, rows: dict[str, list[lab.Line]], title: str) -> None:
    for name, lines in rows.items():
        lab.draw_curves(ax, lines, "nll_gen", "nll_oracle", COLOURS[name], name)
    real = np.mean([lab.at(line, None)["nll_oracle"] for line in rows["LeakGAN"]])
    ax.axhline(real, color="0.3", ls=":", lw=1, label="real")
    ax.set_xlabel("NLL_gen of test sentences, lower is more diverse")
    ax.set_ylabel("NLL_oracle, lower is closer to the oracle")
    ax.set_title(f"{title}: over temperatures, mean and each seed", fontsize=9)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize=7)


def draw_differences(ax, rows: dict[str, list[lab.Line]], title: str) -> None:
    """To the MLE model of LeakGAN's size, as in the table, level by level as far as every seed can be compared."""
    for name, lines in rows.items():
        pairs, levels, means, spreads = list(zip(lines, rows[lab.SAME_SIZE], strict=True)), [], [], []
        for level in np.linspace(0.05, max(lab.LEVELS), 31):
            found = [lab.beyond(line, baseline, level) for line, baseline in pairs]
            if None not in found:
                levels.append(level)
                means.append(np.mean(found))
                spreads.append(np.std(found, ddof=1) if len(found) > 1 else 0.0)
        means, spreads = np.array(means), np.array(spreads)
        ax.plot(levels, means, color=COLOURS[name], label=name)
        ax.fill_between(levels, means - spreads, means + spreads, color=COLOURS[name], alpha=0.12, lw=0)
    ax.axvline(lab.TESTED, color="0.3", ls="--", lw=0.6)
    ax.set_xlabel(f"NLL_gen above the lowest of {lab.SAME_SIZE}")
    ax.set_ylabel(f"NLL_oracle less that of {lab.SAME_SIZE}")
    ax.axhline(0, color="0.3", lw=0.8)
    ax.set_title(
        f"{title}, at equal NLL_gen; below 0: out of reach of that MLE\nmodel at any temperature; "
        "band: one standard deviation; dashed: tested",
        fontsize=9,
    )
    ax.grid(alpha=0.25)


if __name__ == "__main__":
    lab.main("quality_diversity.py", __doc__, body)
