"""What a finished run shows: `curves.png` and `report.md` from the metric lines, and the pictures of a sweep."""

import io
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leakgan_jax import data
from leakgan_jax.config import Config
from leakgan_jax.display import clock, describe

_REAL, _ORACLE, _GEN = "#2f7d4f", "#1f5fa8", "#c2571a"


def draw_curves(
    path: Path, config: Config, runs: Sequence[list[dict[str, Any]]], real_nlls: Sequence[float | None]
) -> None:
    """NLL_oracle and NLL_gen over all phases, the floor that real text sets, and the phase boundary.

    `runs` holds the metric lines of each seed, `real_nlls` what its real text scores; of several seeds, curves are
    means, in bands of a standard deviation.
    """
    plt = pyplot()
    by_step = [{(line["phase"], line["step"]): line for line in lines if "nll_gen" in line} for lines in runs]
    scored = [[lines[at] for lines in by_step] for at in by_step[0] if all(at in lines for lines in by_step)]
    pretrain_end = config.pretrain_rounds * config.mle_epochs
    at = [line["step"] + (pretrain_end if line["phase"] == "adversarial" else 0) for line, *_ in scored]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")

    def draw(name: str, style: str, color: str, label: str) -> None:
        values = [[math.nan if line[name] is None else line[name] for line in lines] for lines in scored]
        mean = np.mean(values, axis=1)
        axes.plot(at, mean, style, ms=3, color=color, label=label)
        if len(runs) > 1:
            spread = np.std(values, axis=1, ddof=1)
            axes.fill_between(at, mean - spread, mean + spread, color=color, alpha=0.2, lw=0)

    if any(lines[0].get("nll_oracle") is not None for lines in scored):
        draw("nll_oracle", "o-", _ORACLE, "NLL_oracle of samples")
    if scored:
        draw("nll_gen", "s-", _GEN, "NLL_gen of held-out real text")
    if known := [nll for nll in real_nlls if nll is not None]:
        real = statistics.fmean(known)
        axes.axhline(real, color=_REAL, ls="--", lw=1, label=f"real text under the oracle, {real:.2f}")
    if config.adversarial_iterations and pretrain_end:
        axes.axvline(pretrain_end, color="0.5", lw=1)
        for x, text, side in ((-4, "pre-training", "right"), (4, "adversarial", "left")):
            axes.annotate(
                text, (pretrain_end, 1), xycoords=("data", "axes fraction"), xytext=(x, -4),
                textcoords="offset points", ha=side, va="top", color="0.4", fontsize=9,
            )  # fmt: skip
    axes.set_xlabel("MLE epochs, then adversarial iterations")
    axes.set_ylabel("nats per token")
    of_seeds = f", mean and standard deviation of {len(runs)} seeds" if len(runs) > 1 else ""
    model = f"{config.reading} reading" if config.model == "leakgan" else config.title
    title = f"{model}, scored at temperature {config.eval_temperature:.3g}{of_seeds}"
    axes.set_title(title, fontsize=10)
    axes.margins(y=0.15)  # room for the names of the phases
    axes.grid(alpha=0.25)
    if scored:
        axes.legend(frameon=False, fontsize=9)
    save(figure, path)


def table(rows: dict[str, list[list[dict[str, Any]]]], real_nlls: Sequence[float | None]) -> str:
    """The final table in Markdown: one row a model and temperature.

    `rows` has, for each model and then each seed, a row for each temperature. Of several seeds the table has means
    and standard deviations.
    """
    text = "| model | temperature | NLL_oracle | NLL_gen | NLL_div | distinct samples |\n|---|--:|--:|--:|--:|--:|\n"
    for name, of_model in rows.items():
        for of_seeds in zip(*of_model, strict=True):
            nlls = (_mean([row[key] for row in of_seeds]) for key in ("nll_oracle", "nll_gen", "nll_div"))
            distinct = _mean([row["distinct"] for row in of_seeds], "{:.1%}")
            text += f"| {name} | {of_seeds[0]['temperature']:.3f} | {' | '.join(nlls)} | {distinct} |\n"
    if real_nlls[0] is not None:
        text += f"| real | | {_mean(real_nlls)} | | | |\n"
    return text


def _mean(values: Sequence[float | None], form: str = "{:.3f}") -> str:
    """A value; the mean of several and their sample standard deviation; nothing where it does not apply."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = form.format(statistics.fmean(known))
    return mean if len(known) == 1 else f"{mean} ± {form.format(statistics.stdev(known))}"


def write_report(
    out: Path,
    config: Config,
    rows: dict[str, list[list[dict[str, Any]]]],
    real_nlls: Sequence[float | None],
    record: dict[str, Any],
    lines: list[dict[str, Any]],
    lost: Sequence[str | None] = (),
) -> None:
    """`report.md`: the table, what its numbers are, and how to repeat it.

    `rows` and `real_nlls` as in `table`; `record` is `config.json`, `lines` the metric lines, of several seeds the
    first one's. `lost` says, of each seed, what is wrong with its metric lines, if anything is.
    """
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    source, seeds = record["data"], len(real_nlls)
    heldout = source.get("heldout_sentences", config.num_heldout)
    interleaved = sum(line["kind"] == "mle" and line["phase"] == "adversarial" for line in lines)
    first = record["seed"]
    facts = {
        "Command": f"`{record['command']}`",
        "Seed": f"{first} (one run: no spread)",
        **({"Reading": config.reading} if config.model == "leakgan" else {"Model": config.title}),
        "Counts": f"{config.eval_samples:,} samples a row; NLL_gen on {heldout:,} held-out real sentences",
        "Schedule": (
            f"{config.pretrain_rounds * config.mle_epochs} MLE epochs before, and {interleaved} among, "
            f"{config.adversarial_iterations} adversarial iterations of {config.generator_steps} generator step(s)"
        ),
        "Training time": clock(lines[-1]["seconds"] if lines else 0),
        "Device": record["device"],
        "Versions": versions,
    }
    if seeds > 1:
        facts["Seed"] = f"{first} to {first + seeds - 1}, mean ± standard deviation; each one's own report is beside"
        facts["Training time"] += f" for {seeds} seeds side by side"
    if "train_sentences" in source:
        left_out = f"{source['dropped_as_too_long']:,} left out, longer than {config.length - 1} words"
        facts["Corpus"] = f"{describe(config, source)}; {left_out}"
    runs = "this same run" if seeds == 1 else "these same runs"
    body = [
        f"# {config.title} run\n",
        table(rows, real_nlls),
        "NLL is in nats per token. NLL_oracle is of the samples under the oracle (lower is better, and a model that "
        "repeats itself can go below real text); NLL_gen is of held-out real sentences under the generator, words "
        "unknown to its vocabulary left out, NLL_div of its own samples. Every number of a row is at the row's "
        f"temperature. Both MLE models are of {runs}: the scored epoch with the lowest NLL_gen, and the last. "
        + (f"{config.title} is the final state, not chosen among many." if config.adversarial_iterations else "")
        + "\n",
        "![curves](curves.png)\n",
        *(f"- {name}: {value}" for name, value in facts.items()),
        *(f"- Metric lines: {line}" for line in lost if line),
        "",
    ]
    data.write(out / "report.md", "\n".join(body))


def sweep_report(result: dict[str, Any]) -> str:
    """A temperature sweep in Markdown: the table and what its numbers are; `result` as in `sweep.json`."""
    rows, lm = result["rows"], result["language_model"]
    bleu = {
        f"{name}-{n}": f"{key}_{n}" for name, key in (("BLEU", "bleu"), ("self-BLEU", "self_bleu")) for n in _ORDERS
    }
    nll = {"NLL_oracle": "nll_oracle", "NLL_gen": "nll_gen", "NLL_div": "nll_div", "LM": "lm", "rev. LM": "reverse_lm"}
    columns = {title: key for title, key in (nll | bleu).items() if any(row[key] is not None for row in rows)}
    body = [
        "| model | temperature | " + " | ".join([*columns, "distinct"]) + " |",
        "|---" + "|--:" * (len(columns) + 2) + "|",
    ]
    for row in rows:
        temperature = "" if row["temperature"] is None else f"{row['temperature']:.3f}"
        values = ("" if row[key] is None else f"{row[key]:.3f}" for key in columns.values())
        body.append(f"| {row['model']} | {temperature} | {' | '.join(values)} | {row['distinct']:.1%} |")
    real, last = rows[0], rows[-1]
    facts = {
        "Hypotheses": f"{last['hypotheses']:,} samples a row; {real['hypotheses']:,} training sentences as real text",
        "References": (
            f"{result['references']}: {last['references']:,} for BLEU (rule {last['rule']}), "
            f"{last['nll_references']:,} for NLL_gen and reverse LM, without the {last['unknown']:.1%} of their tokens "
            "that the vocabulary does not know"
        ),
        "LM, reverse LM": (
            f"LSTMs of {lm['hidden']} units, each trained on {last['lm_sentences']:,} sentences: real ones, to score "
            "samples (for real text, the references), or the row's own, to score the references; "
            f"the best of at most {lm['epochs']} epochs, by a tenth of its own sentences"
        ),
        "Seed": f"{result['seed']} (one run: no spread)",
        "Device": f"{result['device']}, {', '.join(f'{k} {v}' for k, v in result['versions'].items())}",
    }
    return "\n".join(
        [*body, "", "NLL, LM and reverse LM in nats per token.\n", *(f"- {k}: {v}" for k, v in facts.items())]
    )


def draw_sweep(out: Path, rows: list[dict[str, Any]]) -> list[Path]:
    """`sweep_bleu.png`, `sweep_nll.png` and `sweep_lm.png` in `out`: quality (up is worse) against diversity.

    Every model is a curve over temperature, and real text a point, or a line where it has one of the two values only.
    """
    real, first = rows[0], rows[1]
    samples = f"{first['hypotheses']:,} samples a point"
    nats = f"nats per token; {samples}, {first['nll_references']:,} real sentences"
    lm = "LM: NLL of samples under an LM of real text  (lower: better)", lambda row: row["lm"]
    oracle = "NLL_oracle of samples  (lower: better)", lambda row: row["nll_oracle"]
    pictures = {
        "sweep_bleu.png": (
            (f"self-BLEU-{_DRAWN}  (lower: more varied)", lambda row: row[f"self_bleu_{_DRAWN}"]),
            (f"negative BLEU-{_DRAWN}  (lower: better)", lambda row: -row[f"bleu_{_DRAWN}"]),
            f"{samples}, {real['hypotheses']:,} real; {first['references']:,} references, rule {first['rule']}",
        ),
        "sweep_nll.png": (
            ("NLL_gen of real text  (lower: covers more of it)", lambda row: row["nll_gen"]),
            lm if real["nll_oracle"] is None else oracle,
            nats,
        ),
        "sweep_lm.png": (
            (
                "reverse LM: NLL of real text under an LM of samples  (lower: covers more)",
                lambda row: row["reverse_lm"],
            ),
            lm,
            f"{nats}; LMs trained on {first['lm_sentences']:,}",
        ),
    }
    for name, (x, y, title) in pictures.items():
        _draw_plane(out / name, rows, x, y, title)
    return [out / name for name in pictures]


_ORDERS, _DRAWN = (2, 3, 4, 5), 4  # of BLEU: in the table, and in the picture
# Colour, marker, and the sides of a point, in points, on which its temperature is written, best first.
_MLE_STYLE = _GEN, "s", ((-14, -6), (0, -10), (14, -6), (-14, 6))
_LAST_STYLE = _ORACLE, "o", ((14, 6), (0, 10), (-14, 6), (14, -6))
_Axis = tuple[str, Callable[[dict[str, Any]], float | None]]


def _draw_plane(path: Path, rows: list[dict[str, Any]], x: _Axis, y: _Axis, title: str) -> None:
    """Each model a curve over its temperatures in the plane of two measures, of both of which less is better."""
    from matplotlib import patheffects

    figure, axes = pyplot().subplots(figsize=(7.5, 5.5), layout="constrained")
    points: dict[str, list[tuple]] = {}
    for row in rows:
        points.setdefault(row["model"], []).append((x[1](row), y[1](row), row["temperature"]))
    [(real_x, real_y, _)] = points.pop("real")
    if real_x is None:
        axes.axhline(real_y, color=_REAL, ls="--", lw=1.2, label="real text")
    else:
        axes.plot(real_x, real_y, "*", ms=14, color=_REAL, label="real text", zorder=5)
    styles = {model: _MLE_STYLE if model == "MLE, best NLL_gen" else _LAST_STYLE for model in points}
    for model, (color, marker, _) in styles.items():
        at_x, at_y, _ = zip(*points[model])
        axes.plot(at_x, at_y, marker=marker, ms=4, lw=1.2, color=color, label=model)
    axes.margins(0.12)
    axes.autoscale_view()  # places are final from here
    pixel = figure.dpi / 72
    taken = [] if real_x is None else [axes.transData.transform((real_x, real_y))]
    for model, (color, _, sides) in styles.items():
        for *at, temperature in points[model]:
            for side in sides:
                place = axes.transData.transform(at) + [pixel * side[0], pixel * side[1]]
                if all(abs(place[0] - u) > 25 or abs(place[1] - v) > 11 for u, v in taken):
                    taken.append(place)
                    axes.annotate(
                        f"{temperature:.3g}", at, xytext=side, textcoords="offset points", ha="center", va="center",
                        fontsize=7.5, color=color, zorder=4,
                        path_effects=[patheffects.withStroke(linewidth=1.5, foreground="white")],
                    )  # fmt: skip
                    break  # where no side is free, the neighbours tell
    axes.annotate(
        "better", (0.86, 0.6), xytext=(0.92, 0.68), xycoords="axes fraction", color="0.35", fontsize=9,
        arrowprops={"arrowstyle": "-|>", "color": "0.35"},
    )  # fmt: skip
    axes.set_xlabel(x[0])
    axes.set_ylabel(y[0])
    axes.set_title(f"{title}\nnumbers at the points: temperature; lower left is better", fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    save(figure, path)


def pyplot():
    """`matplotlib.pyplot`, for files: no screen is needed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure, path: Path) -> None:
    """Writes a figure as PNG and closes it."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    pyplot().close(figure)
    data.write(path, picture.getvalue())
