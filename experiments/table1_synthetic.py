"""Table 1: NLL_oracle of every model on the synthetic task, at lengths 20 and 40, with its temperature and spread.

    python experiments/table1_synthetic.py
    python experiments/table1_synthetic.py --scale paper --oracle-file target_params.npz

Trains what is missing, prints Markdown and writes it with a picture to `results/SCALE/`.
"""

import lab
import numpy as np
from scipy import stats

from leakgan_jax.report import pyplot

PUBLISHED = {  # Guo et al. 2018, Table 1
    "synthetic20": {"MLE": 9.038, "SeqGAN": 8.736, "RankGAN": 8.247, "LeakGAN": 7.038, "real": 5.750},
    "synthetic40": {"MLE": 10.411, "SeqGAN": 10.310, "RankGAN": 9.958, "LeakGAN": 7.191, "real": 4.071},
}
PRETRAINED = "LeakGAN, pre-trained"  # its generator before adversarial training
RULE = (
    "MLE, of either size, and LeakGAN, pre-trained: the scored epoch with the lowest NLL_gen on held-out sentences; "
    "every other row: the final state, none is chosen. All numbers are of sentences, real ones included, that neither "
    "trained a model nor chose an epoch. The published temperature of LeakGAN is 1/1.5 (the released code multiplies "
    "logits by 1.5), that of the other published rows 1. p: paired t-test over seeds that a model's NLL_oracle equals "
    "LeakGAN's, not corrected for the number of rows."
)


def body(args) -> None:
    text, panels = "# Table 1: synthetic task\n", {}
    for task, published in PUBLISHED.items():
        lines = lab.collect(lab.models(task, args.scale), args)
        panels[task] = {name: chosen(lines, name) for name in (*lab.MODELS, PRETRAINED)}
        same_oracle = lab.published_oracle(lab.models(task, args.scale)[0], args)
        text += f"\n## Sentences of {task[-2:]} tokens\n\n" + table(panels[task], published, same_oracle)
        text += f"\n{lab.facts(lines, args.scale)}\n"
    folder = args.results / args.scale
    pictures = {"table1.png": draw(panels, args.scale)}
    lab.publish(f"{text}\n{RULE}\n\n![Table 1](table1.png)", folder / "table1.md", pictures)


def chosen(lines: list[lab.Line], name: str) -> list[lab.Line]:
    """The lines that a row is of, one a seed."""
    return lab.of(lines, "LeakGAN", lab.PRETRAINED) if name == PRETRAINED else lab.of(lines, name)


def table(rows: dict[str, list[lab.Line]], published: dict[str, float], same_oracle: bool) -> str:
    of_paper = "published" if same_oracle else "published, another oracle"
    columns = ["model", "temperature", "NLL_oracle", of_paper, "p", "NLL_gen", "NLL_div", "distinct"]
    text = f"| {' | '.join(columns)} |\n|---|{'--:|' * (len(columns) - 1)}\n"
    for temperature in (1.0, lab.PUBLISHED):
        for name, lines in rows.items():
            points = [lab.at(line, temperature) for line in lines]
            its_own = lab.PUBLISHED if name == "LeakGAN" else 1.0
            beside = f"{published[name]:.3f}" if name in published and temperature == its_own else ""
            cells = [name, f"{temperature:.3f}", lab.spread([p["nll_oracle"] for p in points]), beside]
            cells.append("" if name == "LeakGAN" else significance(points, rows["LeakGAN"], temperature))
            cells += [lab.spread([p[key] for p in points]) for key in ("nll_gen", "nll_div")]
            cells.append(lab.spread([100 * p["distinct"] for p in points], 1) + "%")
            text += f"| {' | '.join(cells)} |\n"
    real = lab.spread([lab.at(line, None)["nll_oracle"] for line in rows["LeakGAN"]])
    return text + f"| real | | {real} | {published['real']:.3f} | | | | |\n"


def significance(points: list[lab.Line], others: list[lab.Line], temperature: float) -> str:
    if len(points) < 2:
        return ""
    ours = [lab.at(line, temperature)["nll_oracle"] for line in others]
    return f"{stats.ttest_rel([p['nll_oracle'] for p in points], ours).pvalue:.2g}"


def draw(panels: dict[str, dict[str, list[lab.Line]]], scale: str):
    plt = pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 4), layout="constrained", squeeze=False)
    for ax, (task, rows) in zip(axes[0], panels.items(), strict=True):
        for offset, (temperature, colour) in enumerate(((1.0, "#0072b2"), (lab.PUBLISHED, "#e69f00"))):
            for i, lines in enumerate(rows.values()):
                values = [lab.at(line, temperature)["nll_oracle"] for line in lines]
                x = i + 0.3 * offset - 0.15
                ax.plot([x] * len(values), values, "o", ms=3, alpha=0.5, color=colour)
                label = f"temperature {temperature:.3g}" if i == 0 else None
                ax.plot([x - 0.12, x + 0.12], [np.mean(values)] * 2, lw=2, color=colour, label=label)
        real = np.mean([lab.at(line, None)["nll_oracle"] for line in rows["LeakGAN"]])
        ax.axhline(real, ls=":", color="0.3", label="real")
        ax.set_xticks(range(len(rows)), rows, rotation=30, ha="right", fontsize=8)
        ax.set_title(f"{task[-2:]} tokens", fontsize=10)
        ax.set_ylabel("NLL_oracle, nats per token")
        ax.grid(axis="y", alpha=0.25)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{scale} scale: a dot is a seed, a bar their mean; lower is closer to the oracle", fontsize=9)
    return figure


if __name__ == "__main__":
    lab.main("table1_synthetic.py", __doc__, body)
