"""What a finished run shows: `curves.png` and `report.md`, both from the metric lines."""

import io
from pathlib import Path
from typing import Any

from leakgan_jax import data
from leakgan_jax.config import Config
from leakgan_jax.display import clock, describe

_REAL, _ORACLE, _GEN = "#2f7d4f", "#1f5fa8", "#c2571a"


def draw_curves(path: Path, config: Config, lines: list[dict[str, Any]], real_nll: float | None) -> None:
    """NLL_oracle and NLL_gen over all phases, the floor that real text sets, and the phase boundary."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    scored = [line for line in lines if "nll_gen" in line]
    pretrain_end = config.pretrain_rounds * config.mle_epochs
    at = [line["step"] + (pretrain_end if line["phase"] == "adversarial" else 0) for line in scored]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    if any(line.get("nll_oracle") is not None for line in scored):
        axes.plot(at, [line["nll_oracle"] for line in scored], "o-", ms=3, color=_ORACLE, label="NLL_oracle of samples")
    axes.plot(at, [line["nll_gen"] for line in scored], "s-", ms=3, color=_GEN, label="NLL_gen of held-out real text")
    if real_nll is not None:
        axes.axhline(real_nll, color=_REAL, ls="--", lw=1, label=f"real text under the oracle, {real_nll:.2f}")
    if config.adversarial_iterations and pretrain_end:
        axes.axvline(pretrain_end, color="0.5", lw=1)
        for x, text, side in ((-4, "pre-training", "right"), (4, "adversarial", "left")):
            axes.annotate(
                text, (pretrain_end, 1), xycoords=("data", "axes fraction"), xytext=(x, -4),
                textcoords="offset points", ha=side, va="top", color="0.4", fontsize=9,
            )  # fmt: skip
    axes.set_xlabel("MLE epochs, then adversarial iterations")
    axes.set_ylabel("nats per token")
    axes.set_title(f"{config.reading} reading, scored at temperature {config.eval_temperature:.3g}", fontsize=10)
    axes.margins(y=0.15)  # room for the names of the phases
    axes.grid(alpha=0.25)
    if scored:
        axes.legend(frameon=False, fontsize=9)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    plt.close(figure)
    data.write(path, picture.getvalue())


def table(rows: dict[str, list[dict[str, Any]]], real_nll: float | None) -> str:
    """The final table in Markdown: one row a model and temperature."""
    text = "| model | temperature | NLL_oracle | NLL_gen | NLL_div | distinct samples |\n|---|--:|--:|--:|--:|--:|\n"
    for name in ("MLE, best NLL_gen", "MLE, last epoch", "LeakGAN"):
        for row in rows.get(name, ()):
            oracle = "" if row["nll_oracle"] is None else f"{row['nll_oracle']:.3f}"
            distinct = f"{row['distinct']:.1%}"
            scores = f"{oracle} | {row['nll_gen']:.3f} | {row['nll_div']:.3f} | {distinct}"
            text += f"| {name} | {row['temperature']:.3f} | {scores} |\n"
    if real_nll is not None:
        text += f"| real | | {real_nll:.3f} | | | |\n"
    return text


def write_report(
    out: Path,
    config: Config,
    rows: dict[str, list[dict[str, Any]]],
    real_nll: float | None,
    record: dict[str, Any],
    lines: list[dict[str, Any]],
) -> None:
    """`report.md`: the table, what its numbers are, and how to repeat it. `record` is `config.json`."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    source = record["data"]
    heldout = source.get("heldout_sentences", config.num_heldout)
    interleaved = sum(line["kind"] == "mle" and line["phase"] == "adversarial" for line in lines)
    facts = {
        "Command": f"`{record['command']}`",
        "Seed": f"{record['seed']} (one run: no spread)",
        "Reading": config.reading,
        "Counts": f"{config.eval_samples:,} samples a row; NLL_gen on {heldout:,} held-out real sentences",
        "Schedule": (
            f"{config.pretrain_rounds * config.mle_epochs} MLE epochs before, and {interleaved} among, "
            f"{config.adversarial_iterations} adversarial iterations of {config.generator_steps} generator step(s)"
        ),
        "Training time": clock(lines[-1]["seconds"] if lines else 0),
        "Device": record["device"],
        "Versions": versions,
    }
    if "train_sentences" in source:
        left_out = f"{source['dropped_as_too_long']:,} left out, longer than {config.length - 1} words"
        facts["Corpus"] = f"{describe(config, source)}; {left_out}"
    body = [
        "# LeakGAN run\n",
        table(rows, real_nll),
        "NLL is in nats per token. NLL_oracle is of the samples under the oracle (lower is better, and a model that "
        "repeats itself can go below real text); NLL_gen is of held-out real sentences under the generator, NLL_div "
        "of its own samples. Every number of a row is at the row's temperature. Both MLE models are of this same run: "
        "the scored epoch with the lowest NLL_gen, and the last. LeakGAN is the final state, not chosen among many.\n",
        "![curves](curves.png)\n",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
    ]
    data.write(out / "report.md", "\n".join(body))
