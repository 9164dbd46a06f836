"""A whole run, from the start of training to its report: how long it takes, where the time goes, and what it came to.

    python -m benchmarks.schedule
    python -m benchmarks.schedule --seeds 8 --precision bfloat16

The released schedule of `synthetic20` with 100 adversarial iterations unless told otherwise, on data drawn here.
Compiling, evaluations, checkpoints and the report are in it; compiled programs are not kept, so every run compiles.
Appends a JSON line to `--out`: seconds in all and by kind of unit, and the final scores of every seed, so that runs of
two precisions can be compared.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import measure
from benchmarks.throughput import PRECISIONS
from leakgan_jax import ConfigError, preset, run, rundir
from leakgan_jax.display import Display

SCORES = ("nll_oracle", "nll_gen", "distinct")


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser("benchmarks.schedule", __doc__)
    parser.add_argument("--preset", default="synthetic20", metavar="NAME", help="of the synthetic task")
    parser.add_argument("--reading", choices=["paper", "released"], default="released")
    parser.add_argument("--iterations", type=measure.positive, default=100, help="adversarial ones")
    parser.add_argument("--seeds", type=measure.positive, default=1, help="trained side by side")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/schedule.jsonl"))
    args = parser.parse_args(argv)
    settings = {"adversarial_iterations": args.iterations, "precision": args.precision}
    try:
        config = preset(args.preset, args.reading, **settings)
    except ConfigError as error:
        parser.error(str(error))
    if args.seeds > 1000:
        parser.error(f"seeds is {args.seeds}; it must be from 1 to 1000")
    if config.is_text:
        parser.error(f"{args.preset} is of text; give a preset of the synthetic task")
    parser.check_writable(args.out)
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_default_matmul_precision", "float32")  # of scores; training has a setting of its own
    facts = measure.facts()
    print(measure.described(facts), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out, seeds, display, began = Path(folder) / "run", range(args.seeds), Display(), time.monotonic()
        try:
            stopped = run.train(config, seeds, out, resume=False, command="", display=display)
        finally:
            display.close()
        seconds = time.monotonic() - began
        if stopped:
            sys.exit(128 + stopped)
        runs = [(place / "metrics.jsonl").read_text().splitlines() for place in rundir.directories(out, seeds)]
        print((out / "report.md").read_text(encoding="utf-8").split("\n![")[0])
    lines = [[json.loads(line) for line in one] for one in runs]
    spent: dict[str, float] = {}
    for before, line in zip([{"seconds": 0.0}, *lines[0]], lines[0]):
        kind = f"{line['kind']}, evaluated" if "nll_gen" in line else line["kind"]
        spent[kind] = round(spent.get(kind, 0.0) + line["seconds"] - before["seconds"], 1)
    print(f"{seconds:,.0f} s in all; units: " + ", ".join(f"{kind} {each:,.0f} s" for kind, each in spent.items()))
    last = [next(line for line in reversed(one) if "nll_gen" in line) for one in lines]
    line = {"preset": args.preset, "reading": args.reading, "iterations": args.iterations, "seeds": args.seeds}
    line |= {"precision": args.precision, "seconds": round(seconds, 1), "seconds_of_units": spent}
    line |= {name: np.round([float(one[name]) for one in last], 4).tolist() for name in SCORES}
    with open(args.out, "a", encoding="utf-8") as file:
        file.write(json.dumps(line | facts) + "\n")


if __name__ == "__main__":
    main()
