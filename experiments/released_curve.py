"""Training curves of runs, finished or not, over the released code's own log.

    leakgan train synthetic20 --reading released --oracle-file target_params.npz --out runs/leakgan
    leakgan train synthetic20 --model mle --oracle-file target_params.npz --out runs/mle
    python experiments/released_curve.py runs/leakgan runs/mle --released curves_length20.csv

The log has columns phase, round, step and nll: NLL_oracle at temperature 1/1.5. Writes lines of the runs' evaluations,
a table and a picture to `--out`, by default `results/paper/released_curve.*`; without runs, draws its lines again.
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
    parser.add_argument("runs", nargs="*", type=Path, help="none: the lines on file")
    parser.add_argument("--released", type=Path, required=True, help="log of the released code, not ours to distribute")
    parser.add_argument("--out", type=Path, default=lab.RESULTS / "paper" / "released_curve")
    args = parser.parse_args()
    try:
        released = read_log(args.released)
        lines = [read_run(place) for place in args.runs] or lab.read(args.out.with_suffix(".jsonl"))
        if not lines:
            raise rundir.RunError(f"{args.out.with_suffix('.jsonl')} has no lines; name runs")
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
    """NLL_oracle where the log has it, and NLL_gen; each run at its own temperature."""
    text, columns = "| epoch | released log, temperature 0.667", [released]
    for line in lines:
        for score, name in (("nll_oracle", f", temperature {line['temperature']:.3g}"), ("nll_gen", ", NLL_gen")):
            text += f" | {line['model']}{name}"
            columns.append({point["epoch"]: point[score] for point in line["curve"]})
    text += f" |\n|--:|{'--:|' * len(columns)}\n"
    for epoch in sorted({point["epoch"] for line in lines for point in line["curve"]}):
        cells = [f"{column[epoch]:.3f}" if epoch in column else "" for column in columns]
        text += f"| {epoch} | {' | '.join(cells)} |\n"
    for line in lines:
        text += (
            f"\n{line['model']}: seed {line['seed']}, {line['units']} units done, {line['num_samples']:,} samples, "
            f"{line['device']}, JAX {line['jax']}, drawn at commit {line['commit']}: `{line['command']}`.\n"
        )
        best, last = min(line["curve"], key=lambda point: point["nll_gen"]), line["curve"][-1]
        text += (
            f"By the tables' rule, lowest NLL_gen: {best['nll_gen']:.3f} at epoch {best['epoch']}, NLL_oracle "
            f"{best['nll_oracle']:.3f}. Last scored epoch, {last['epoch']}: NLL_gen {last['nll_gen']:.3f}, NLL_oracle "
            f"{last['nll_oracle']:.3f}.\n"
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
