"""Runs the quickstart with several seeds and prints its table with mean and standard deviation.

    python experiments/quickstart_seeds.py --seeds 5 --out runs/quickstart

Every seed is reported; runs already complete in `--out` are read, not repeated. One JSON line a seed, model and
temperature goes to `--results`.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from leakgan_jax import Config, preset

COLUMNS = ("nll_oracle", "nll_gen", "nll_div", "distinct")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--results", type=Path, default=Path("experiments/results/quickstart.jsonl"))
    args = parser.parse_args()
    if not 2 <= args.seeds <= 1_000:
        parser.exit(2, f"{parser.prog}: --seeds is {args.seeds}; it must be 2 to 1000, for a spread\n")
    rows = []
    for seed in range(args.seeds):
        out = args.out / f"seed_{seed}"
        if not (out / "report.md").exists():
            again = ["--resume"] if (out / "config.json").exists() else ["--seed", str(seed)]
            command = [sys.executable, "-m", "leakgan_jax.cli", "train", "--out", str(out), *again]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        record = json.loads((out / "config.json").read_text())
        if Config.from_json(record["config"]) != preset("quickstart"):
            sys.exit(f"{out} holds a run of other settings; choose another --out")
        facts = {"seed": seed, "device": record["device"], "versions": record["versions"], "commit": _commit()}
        rows += [{**row, **facts} for row in _table(out / "report.md")]
        print(f"seed {seed} done", file=sys.stderr, flush=True)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{args.seeds} seeds, mean +- standard deviation\n")
    print("| model | temperature | NLL_oracle | NLL_gen | NLL_div | distinct |\n|---|--:|--:|--:|--:|--:|")
    for model, temperature in dict.fromkeys((row["model"], row["temperature"]) for row in rows):
        of_model = [row for row in rows if (row["model"], row["temperature"]) == (model, temperature)]
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in of_model if row[column] is not None]
            cells.append(f"{np.mean(values):.3f} +- {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")
        print(f"| {model} | {temperature or ''} | {' | '.join(cells)} |")
    for temperature in sorted({row["temperature"] for row in rows if row["temperature"]}, reverse=True):
        for baseline in ("MLE, last epoch", "MLE, best NLL_gen"):
            won = sum(
                _score(rows, seed, "LeakGAN", temperature) < _score(rows, seed, baseline, temperature)
                for seed in range(args.seeds)
            )
            print(f"\nNLL_oracle at {temperature}: LeakGAN below {baseline} in {won} of {args.seeds} seeds")
    return 0


def _score(rows: list[dict], seed: int, model: str, temperature: float) -> float:
    wanted = (seed, model, temperature)
    return next(row["nll_oracle"] for row in rows if (row["seed"], row["model"], row["temperature"]) == wanted)


def _table(path: Path) -> list[dict]:
    rows = []
    for line in path.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and re.match(r"MLE|LeakGAN|real", cells[0]):
            numbers = [float(cell.rstrip("%")) / (100 if "%" in cell else 1) if cell else None for cell in cells[1:]]
            rows.append({"model": cells[0], "temperature": numbers[0], **dict(zip(COLUMNS, numbers[1:], strict=True))})
    return rows


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
