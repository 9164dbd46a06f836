"""Tables 2 to 4 alike: every model on a text, BLEU against the published rows. Run by table2_news.py and the others."""

import lab
import numpy as np
from compare import p_value
from text_tables import COMPARABLE, ORDERS, PUBLISHED

from leakgan_jax.report import pyplot

MODELS = ("MLE", lab.SAME_SIZE, "SeqGAN", "RankGAN", "LeakGAN")
LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7)  # of self-BLEU-4, at which BLEU-4 is compared
RULE = (
    "MLE, of either size: the scored epoch with the lowest NLL_gen on held-out sentences; other models: the final "
    "state, none is chosen; real: sentences that were trained on. BLEU and NLL_gen are of the test split (of poems, "
    "which have none, the held-out split, which also chose the MLE epoch). Read BLEU beside self-BLEU and NLL_gen: a "
    "model that repeats itself has a high BLEU. The second table compares models of one seed at temperatures that give "
    "them one self-BLEU; p: paired t-test over seeds, not corrected for the number of cells, where every seed has that "
    "self-BLEU at some temperature."
)


def table(number: int, task: str, name: str, args) -> None:
    """Collects, prints and draws; `name` is that of the published rows."""
    models = lab.models(task, args.scale, MODELS)
    lines, config = lab.collect(models, args), models[0].config(args.scale)
    rows = {model: lab.of(lines, model) for model in MODELS}
    titles = [f"{kind}-{n}" for kind in ("BLEU", "self-BLEU") for n in ORDERS]
    text = f"# Table {number}: {name}\n\n| model | temperature | {' | '.join(titles)} | NLL_gen | distinct |\n"
    text += f"|---|{'--:|' * (len(titles) + 3)}\n"
    keys = [f"{kind}_{n}" for kind in ("bleu", "self_bleu") for n in ORDERS]
    real = [lab.at(line, None) for line in rows["MLE"]]
    text += f"| real | | {' | '.join(lab.spread([p[key] for p in real]) for key in keys)} | | |\n"
    for temperature in (1.0, lab.PUBLISHED):
        for model, of_seeds in rows.items():
            points = [lab.at(line, temperature) for line in of_seeds]
            cells = [lab.spread([p[key] for p in points]) for key in (*keys, "nll_gen")]
            distinct = lab.spread([100 * p["distinct"] for p in points], 1) + "%"
            text += f"| {model} | {temperature:.3f} | {' | '.join(cells)} | {distinct} |\n"
    text += f"\n| BLEU-4 less that of {lab.SAME_SIZE}, at self-BLEU-4 | {' | '.join(map(str, LEVELS))} |\n"
    text += f"|---|{'--:|' * len(LEVELS)}\n"
    for model, of_seeds in rows.items():
        if model != lab.SAME_SIZE:
            pairs = list(zip(of_seeds, rows[lab.SAME_SIZE], strict=True))
            cells = [at_level(pairs, level) for level in LEVELS]
            text += f"| {model} | {' | '.join(cells)} |\n"
    text += f"\n| published | source | {' | '.join(titles)} |\n|---|---|{'--:|' * len(titles)}\n"
    for model, source, *scores in PUBLISHED[name]:
        cells = [cell for own in scores for cell in (own.split() + [""] * len(ORDERS))[: len(ORDERS)]]
        text += f"| {model} | {source} | {' | '.join(cells)} |\n"
    (references,), (train,) = {p["references"] for p in real}, {line["train"] for line in lines}
    few = f"; words seen fewer than {config.min_count} times are <unk>, which no reference has" * (config.min_count > 1)
    text += (
        f"\n{lab.facts(lines, args.scale)} Trained on {train:,} sentences, those with fewer than {config.length} words"
        f"{few}; {references:,} references of any length, rule method1; NLL_gen of those that are no longer. {RULE} "
        f"{COMPARABLE[name]}"
    )
    folder = args.results / args.scale
    pictures = {f"table{number}.png": draw(rows, f"{name}, {args.scale} scale")}
    lab.publish(f"{text}\n\n![Table {number}](table{number}.png)", folder / f"table{number}.md", pictures)


def at_level(pairs: list[tuple[lab.Line, lab.Line]], level: float) -> str:
    """The difference in BLEU-4 over seeds, with p; or, where it cannot be had of every seed, with those it lacks."""
    found = [higher(line, baseline, level) for line, baseline in pairs]
    if None in found:
        lacking = [str(line["seed"]) for (line, _), value in zip(pairs, found, strict=True) if value is None]
        known = [value for value in found if value is not None]
        return f"{lab.spread(known)} (without seed{'s' * (len(lacking) > 1)} {', '.join(lacking)})" if known else "none"
    p = p_value(found)
    return lab.spread(found) + ("" if p is None else f", p {p:.2g}")


def higher(model: lab.Line, baseline: lab.Line, level: float) -> float | None:
    """How much higher BLEU-4 of a model is than a baseline's where self-BLEU-4 of both is `level`; None if it never is.

    Between measured temperatures on straight lines.
    """
    found = []
    for line in (model, baseline):
        points = sorted((point["self_bleu_4"], point["bleu_4"]) for point in lab.sweep_of(line))
        self_bleu, bleu = zip(*points, strict=True)
        if not self_bleu[0] <= level <= self_bleu[-1]:
            return None
        found.append(float(np.interp(level, self_bleu, bleu)))
    return found[0] - found[1]


def draw(rows: dict[str, list[lab.Line]], title: str):
    """Quality against diversity: BLEU-4 and self-BLEU-4 over temperatures."""
    figure, axes = pyplot().subplots(figsize=(6, 4.5), layout="constrained")
    for model, lines in rows.items():
        lab.draw_curves(axes, lines, "self_bleu_4", "bleu_4", lab.COLOURS[model], model)
    real = [lab.at(line, None) for line in rows["MLE"]]
    axes.plot([p["self_bleu_4"] for p in real], [p["bleu_4"] for p in real], "k*", ms=5, label="real")
    axes.set_xlabel("self-BLEU-4, lower is more varied")
    axes.set_ylabel("BLEU-4, higher is closer to real text")
    axes.set_title(f"{title}: temperature 1.1 (left) to 0.6, mean and each seed", fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return figure
