"""Training curves of runs, finished or not, over the released code's own log.

    leakgan train synthetic20 --reading released --oracle-file target_params.npz --out runs/leakgan
    leakgan train synthetic20 --model mle --oracle-file target_params.npz --out runs/mle
    python experiments/released_curve.py runs/leakgan runs/mle --released curves_length20.csv

The log has columns phase, round, step and nll: NLL_oracle at temperature 1/1.5. Writes lines of the runs' evaluations,
a table and a picture to `--out`, by default `results/paper/released_curve.*`.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import lab

from leakgan_jax import run, rundir
from leakgan_jax.report import pyplot, save

EPOCHS = 8  # of maximum likelihood in a round of the released code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--released", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=lab.RESULTS / "paper" / "released_curve")
    args = parser.parse_args()
    try:
        released = read_log(args.released)
        lines = [read_run(place) for place in args.runs]
    except (rundir.RunError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    draw(args.out.with_suffix(".png"), lines, released)
    lab.publish(table(lines, released) + f"\n\n![Curves]({args.out.name}.png)", args.out.with_suffix(".md"))
    return 0


def read_log(path: Path) -> dict[int, float]:
    """NLL_oracle by epoch of maximum likelihood, then by adversarial iteration."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        before = [row for row in rows if row["phase"] == "pretrain"]
        offset = EPOCHS * (1 + max(int(row["round"]) for row in before))
        curve = {EPOCHS * int(row["round"]) + int(row["step"]) + 1: float(row["nll"]) for row in before}
        after = [row for row in rows if row["phase"] != "pretrain"]
        return curve | {offset + int(row["step"]): float(row["nll"]) for row in after}
    except (KeyError, ValueError, TypeError):
        raise rundir.RunError(f"{path}: not a log of phase, round, step and nll; give one") from None


def read_run(place: Path) -> lab.Line:
    """What is kept of a run: its evaluations, and what it is."""
    config, seed, record = rundir.open_run(place)
    done, units = len(lab.read(place / "metrics.jsonl")), len(run.schedule(config))
    about = {"model": config.title, "reading": config.reading, "seed": seed, "temperature": config.eval_temperature}
    about |= {"num_samples": config.eval_samples, "units": f"{done} of {units}", "command": record["command"]}
    facts = {"device": record["device"], "jax": record["versions"]["jax"], "commit": lab.commit()}
    return {
        **about,
        "oracle": record["data"].get("oracle_sha256", "drawn here"),
        "curve": lab.training_curve(place),
        **facts,
    }


def table(lines: list[lab.Line], released: dict[int, float]) -> str:
    """NLL_oracle where the log has it; each run at its own temperature."""
    names = [f"{line['model']}, temperature {line['temperature']:.3g}" for line in lines]
    text = f"| epoch | released log, temperature 0.667 | {' | '.join(names)} |\n|--:|{'--:|' * (1 + len(lines))}\n"
    curves = [{point["epoch"]: point["nll_oracle"] for point in line["curve"]} for line in lines]
    for epoch in sorted({epoch for curve in curves for epoch in curve}):
        cells = [f"{curve[epoch]:.3f}" if epoch in curve else "" for curve in (released, *curves)]
        text += f"| {epoch} | {' | '.join(cells)} |\n"
    for line in lines:
        text += (
            f"\n{line['model']}: seed {line['seed']}, {line['units']} units done, {line['num_samples']:,} samples, "
            f"{line['device']}, JAX {line['jax']}, commit {line['commit']}: `{line['command']}`.\n"
        )
    return "# NLL_oracle while training, beside the released code's log\n\n" + text.rstrip()


def draw(path: Path, lines: list[lab.Line], released: dict[int, float]) -> None:
    figure, axes = pyplot().subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot(*zip(*sorted(released.items())), color="0.4", lw=1, label="released log, temperature 0.667")
    for colour, line in zip(("#d55e00", "#0072b2", "#009e73", "#cc79a7"), lines):
        points = [(point["epoch"], point["nll_oracle"]) for point in line["curve"]]
        reading = f", {line['reading']} reading" if line["model"] == "LeakGAN" else ""
        label = f"{line['model']}{reading}, temperature {line['temperature']:.3g}"
        axes.plot(*zip(*points), "o-", ms=3, color=colour, label=label)
    axes.set_xlabel("MLE epochs, then adversarial iterations")
    axes.set_ylabel("NLL_oracle, nats per token")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
