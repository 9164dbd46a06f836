"""Variants of LeakGAN against LeakGAN: what the ablations and the tries at the frontier have in common."""

import argparse
from typing import Any

import lab
import numpy as np
from scipy import stats

from leakgan_jax.report import pyplot

TASK = "synthetic20"
BASE = "LeakGAN"
BEFORE = "no adversarial training"  # the base's own pre-training, where NLL_gen was lowest
FRESH_SEED = 5  # the first that no try was chosen by
FRONTIER = f"at equal NLL_gen (+{lab.TESTED:g})"
MEANING = (
    f"A difference is to {BASE} of the same seed, so of the same data and, where the variant does not change it, the "
    f"same pre-training. NLL_oracle, NLL_gen and distinct are at temperature 1. *{FRONTIER}*: NLL_oracle less that of "
    "an MLE model with as many parameters and of the same seed, both at the temperatures that put their NLL_gen "
    f"{lab.TESTED:g} above the lowest of the MLE model; below 0 is beyond what tuning a temperature gives. p: paired "
    "t-test over seeds, two-sided; then as Holm corrects it for all rows; neither where a seed cannot be compared. All "
    "seeds share one oracle."
)
Measured = dict[str, list[float | None]]  # by score, one a seed


def run(title: str, stem: str, variants: dict[str, dict[str, Any]], args: argparse.Namespace, again=()) -> None:
    """Collects, prints and draws; the variants named in `again` are repeated on as many seeds that nothing chose."""
    [mle] = lab.models(TASK, args.scale, [lab.SAME_SIZE])
    cells = [lab.Cell(TASK, BASE, {}), *(lab.Cell(TASK, name, settings) for name, settings in variants.items())]
    lines = lab.collect([mle, cells[0]], args) + lab.collect(cells[1:], args, file=stem)
    measured = measure_all(lines, cells)
    text = f"# {title}, synthetic task\n\n{table(measured)}\n{lab.facts(lines, args.scale)} {MEANING}\n"
    if again:
        chosen = [mle, cells[0], *(cell for cell in cells if cell.name in again)]
        lines = lab.collect(chosen, args, first=FRESH_SEED, file=f"{stem}-again")
        fresh = measure_all(lines, chosen[1:])
        text += f"\n## Once more, on seeds that nothing chose\n\n{table(fresh)}\n{lab.facts(lines, args.scale)}\n"
    text += "\n" + "\n".join(f"- {name}: `{settings}`" for name, settings in variants.items())
    folder = args.results / args.scale
    pictures = {f"{stem}.png": draw(measured, f"{title}, {args.scale} scale")}
    lab.publish(f"{text}\n\n![{title}]({stem}.png)", folder / f"{stem}.md", pictures)


def measure_all(lines: list[lab.Line], cells: list[lab.Cell]) -> dict[str, Measured]:
    """Of every cell, the base first, and of the base before its adversarial training."""
    mle, before = lab.of(lines, lab.SAME_SIZE), lab.of(lines, BASE, lab.PRETRAINED)
    measured = {BASE: measure(lab.of(lines, BASE), mle), BEFORE: measure(before, mle)}
    return measured | {cell.name: measure(lab.of(lines, cell.name), mle) for cell in cells if cell.name != BASE}


def measure(lines: list[lab.Line], baseline: list[lab.Line]) -> Measured:
    """Of each seed: the scores at temperature 1, and at equal NLL_gen the difference to the baseline."""
    of_seed = {line["seed"]: line for line in baseline}
    found: Measured = {
        name: [lab.at(line, 1.0)[name] for line in lines] for name in ("nll_oracle", "nll_gen", "distinct")
    }
    return found | {"frontier": [lab.beyond(line, of_seed[line["seed"]], lab.TESTED) for line in lines]}


def table(measured: dict[str, Measured]) -> str:
    """Markdown of all variants beside the base."""
    columns = [
        "variant",
        "NLL_oracle",
        "difference",
        "p, Holm",
        "NLL_gen",
        "distinct",
        FRONTIER,
        "difference",
        "p, Holm",
    ]
    text = f"| {' | '.join(columns)} |\n|---|{'--:|' * (len(columns) - 1)}\n"
    base = measured[BASE]
    tested = {
        score: tests({name: differences(own, base, score) for name, own in measured.items()})
        for score in ("nll_oracle", "frontier")
    }
    for name, own in measured.items():
        cells = [name, lab.spread(own["nll_oracle"]), *tested["nll_oracle"][name], lab.spread(own["nll_gen"])]
        cells += [lab.spread([100 * share for share in own["distinct"]], 1) + "%", lab.spread(own["frontier"])]
        text += f"| {' | '.join([*cells, *tested['frontier'][name]])} |\n"
    return text


def differences(own: Measured, base: Measured, score: str) -> list[float | None]:
    """Of each seed; None where one of the two has no score."""
    return [None if a is None or b is None else a - b for a, b in zip(own[score], base[score], strict=True)]


def tests(differing: dict[str, list[float | None]]) -> dict[str, tuple[str, str]]:
    """For each variant the differences in words, and p with and without Holm's correction; the base has neither."""
    p_values = {name: p_value(values) for name, values in differing.items() if name != BASE}
    adjusted = holm({name: p for name, p in p_values.items() if p is not None})
    cells = {BASE: ("", "")}
    for name, p in p_values.items():
        cells[name] = lab.spread(differing[name]), "" if p is None else f"{p:.2g}, {adjusted[name]:.2g}"
    return cells


def p_value(values: list[float | None]) -> float | None:
    """Of a mean of 0, by Student's t; None of fewer than three seeds, or where a seed is missing."""
    return None if len(values) < 3 or None in values else float(stats.ttest_1samp(values, 0).pvalue)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's step-down correction."""
    adjusted, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        adjusted[name] = largest
    return adjusted


def draw(measured: dict[str, Measured], title: str):
    """Differences of each seed to the base, in NLL_oracle and at equal NLL_gen."""
    names = [name for name in measured if name != BASE]
    figure, axes = pyplot().subplots(1, 2, figsize=(10, 0.4 * len(names) + 1.8), layout="constrained", sharey=True)
    for ax, score, label in zip(axes, ("nll_oracle", "frontier"), ("temperature 1", FRONTIER), strict=True):
        for y, name in enumerate(names):
            values = [value for value in differences(measured[name], measured[BASE], score) if value is not None]
            ax.plot(values, [y] * len(values), "o", ms=4, alpha=0.6, color="#0072b2")
            if values:
                ax.plot([np.mean(values)] * 2, [y - 0.3, y + 0.3], lw=2, color="#d55e00")
        ax.axvline(0, color="0.3", lw=0.8)
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set_title(label, fontsize=9)
        ax.set_xlabel(f"NLL_oracle less that of {BASE}, nats per token", fontsize=8)
        ax.grid(axis="x", alpha=0.25)
    axes[0].invert_yaxis()
    figure.suptitle(f"{title}: left of 0 is better; a dot is a seed, a bar the mean", fontsize=9)
    return figure
