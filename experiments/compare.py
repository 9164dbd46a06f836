"""Variants of LeakGAN against one of them: what the ablations and the tries at the frontier have in common."""

import lab
import numpy as np
from scipy import stats

from leakgan_jax.report import pyplot, save

COMPARED = (
    "A difference is of the same seed, so of the same data and pre-training where a variant does not change it. "
    "NLL_oracle is at temperature 1. *At equal NLL_gen*: less the NLL_oracle of the MLE model at the temperature that "
    "gives it the variant's NLL_gen, on the mean over the variant's temperatures that can be compared; below 0 is "
    "beyond what tuning a temperature gives. p: paired t-test over seeds, two-sided; Holm: corrected for all rows."
)


def table(cells: list[lab.Cell], lines: list[lab.Line], base: str, baseline: list[lab.Line]) -> tuple[str, dict]:
    """Markdown of all cells beside `base`, and for each cell the seeds' differences in NLL_oracle and frontier."""
    measured = {cell.name: measure(lab.of(lines, cell.name), baseline) for cell in cells}
    names = [name for name in measured if name != base]
    p_values = {name: paired(measured[name], measured[base], "nll_oracle") for name in names}
    p_frontier = {name: paired(measured[name], measured[base], "frontier") for name in names}
    adjusted, adjusted_frontier = holm(p_values), holm(p_frontier)
    columns = ["variant", "NLL_oracle", "difference", "p, Holm", "NLL_gen", "distinct"]
    columns += ["at equal NLL_gen, to MLE", "difference", "p, Holm"]
    text = f"| {' | '.join(columns)} |\n|---|{'--:|' * (len(columns) - 1)}\n"
    for name, own in measured.items():
        cells_ = [name, lab.spread(own["nll_oracle"])]
        cells_ += (
            ["", ""]
            if name == base
            else [difference(own, measured[base], "nll_oracle"), number(p_values, adjusted, name)]
        )
        cells_ += [lab.spread(own["nll_gen"]), lab.spread([100 * d for d in own["distinct"]], 1) + "%"]
        cells_.append(lab.spread(own["frontier"]))
        cells_ += (
            ["", ""]
            if name == base
            else [difference(own, measured[base], "frontier"), number(p_frontier, adjusted_frontier, name)]
        )
        text += f"| {' | '.join(cells_)} |\n"
    return text, measured


def measure(lines: list[lab.Line], baseline: list[lab.Line]) -> dict[str, list[float]]:
    """Of each seed: the scores at temperature 1, and the mean difference to the baseline of the same seed."""
    by_seed = {line["seed"]: line for line in baseline}
    found: dict[str, list[float]] = {"nll_oracle": [], "nll_gen": [], "distinct": [], "frontier": []}
    for line in lines:
        point = lab.at(line, 1.0)
        for key in ("nll_oracle", "nll_gen", "distinct"):
            found[key].append(point[key])
        compared = [p["difference"] for p in lab.matched(line, by_seed[line["seed"]])]
        found["frontier"].append(float(np.mean(compared)) if compared else float("nan"))
    return found


def paired(own: dict, base: dict, key: str) -> float:
    pairs = [(a, b) for a, b in zip(own[key], base[key]) if np.isfinite(a) and np.isfinite(b)]
    return float(stats.ttest_rel(*zip(*pairs)).pvalue) if len(pairs) > 2 else float("nan")


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's step-down correction; what cannot be tested stays so and counts for nothing."""
    known = sorted((p, name) for name, p in p_values.items() if np.isfinite(p))
    adjusted, largest = dict.fromkeys(p_values, float("nan")), 0.0
    for rank, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[name] = largest
    return adjusted


def difference(own: dict, base: dict, key: str) -> str:
    values = [a - b for a, b in zip(own[key], base[key]) if np.isfinite(a) and np.isfinite(b)]
    return lab.spread(values) if values else ""


def number(p_values: dict[str, float], adjusted: dict[str, float], name: str) -> str:
    return "" if np.isnan(p_values[name]) else f"{p_values[name]:.2g}, {adjusted[name]:.2g}"


def draw(path, measured: dict[str, dict[str, list[float]]], base: str, title: str) -> None:
    """Differences of each seed to the base, in NLL_oracle and at equal NLL_gen."""
    names = [name for name in measured if name != base]
    figure, axes = pyplot().subplots(1, 2, figsize=(10, 0.4 * len(names) + 1.8), layout="constrained", sharey=True)
    for ax, key, label in zip(
        axes, ("nll_oracle", "frontier"), ("NLL_oracle, temperature 1", "at equal NLL_gen"), strict=True
    ):
        for y, name in enumerate(names):
            values = np.array(measured[name][key]) - np.array(measured[base][key])
            ax.plot(values, [y] * len(values), "o", ms=4, alpha=0.6, color="#0072b2")
            ax.plot([np.nanmean(values)] * 2, [y - 0.3, y + 0.3], lw=2, color="#d55e00")
        ax.axvline(0, color="0.3", lw=0.8)
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set_xlabel(f"difference to {base}, nats per token: {label}", fontsize=8)
        ax.grid(axis="x", alpha=0.25)
    axes[0].invert_yaxis()
    figure.suptitle(f"{title}; left of 0 is better; a dot is a seed, a bar the mean", fontsize=9)
    save(figure, path)
