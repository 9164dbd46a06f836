"""How long a user waits: from the start of `leakgan train` to the end of its first training step.

    python -m benchmarks.start
    python -m benchmarks.start --preset quickstart synthetic20

Each start is a new process, `leakgan train PRESET` with a first round of one batch, once with an empty cache of
compiled programs (cold) and then with what the first start left there (warm). Importing, drawing the preset's data and
compiling are in it, up to the first line in the run's metrics.jsonl; then the process is killed.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import measure
from leakgan_jax import ConfigError, preset

POLL_SECONDS = 0.02
CACHE_SETTINGS = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser("benchmarks.start", __doc__)
    parser.add_argument("--preset", nargs="+", default=["quickstart", "synthetic20"], metavar="NAME")
    parser.add_argument("--repeats", type=measure.positive, default=3, help="cold and warm starts of each preset")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/start.jsonl"))
    args = parser.parse_args(argv)
    try:
        sizes = {name: preset(name).batch_size for name in args.preset}
    except ConfigError as error:
        parser.error(str(error))
    parser.check_writable(args.out)

    facts = measure.facts()
    print(measure.described(facts) + f"\nSeconds from the start of the process, median of {args.repeats}\n")
    print("| preset | cache | first step |\n|---|---|--:|")
    for name, batch in sizes.items():
        starts: dict[str, list[float]] = {"cold": [], "warm": []}
        for _ in range(args.repeats):
            with tempfile.TemporaryDirectory() as folder:
                for cache, times in starts.items():
                    times.append(start(name, batch, Path(folder), cache))
        for cache, times in starts.items():
            median = float(np.median(times))
            print(f"| {name} | {cache} | {median:.1f} ({min(times):.1f}-{max(times):.1f}) |", flush=True)
            with open(args.out, "a", encoding="utf-8") as file:
                line = {"preset": name, "cache": cache, "s_first_step": median, "starts": times, **facts}
                file.write(json.dumps(line) + "\n")


def start(name: str, batch: int, folder: Path, cache: str) -> float:
    """Seconds until the first unit is done: one step of the discriminator on `batch` sentences."""
    out, log = folder / cache, folder / f"{cache}.log"
    options = ["--pretrain-draws", "1", "--discriminator-epochs", "1", "--draw-size", str(batch // 2)]
    command = [sys.executable, "-m", "leakgan_jax.cli", "train", name, "--out", str(out), *options]
    kept = {key: value for key, value in os.environ.items() if key not in CACHE_SETTINGS}  # or cold were not cold
    began = time.perf_counter()
    with open(log, "w") as file:
        environment = {**kept, "XDG_CACHE_HOME": str(folder / "cache")}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=file)
    try:
        while not _lines(out / "metrics.jsonl"):
            if process.poll() is not None:
                sys.exit(f"{' '.join(command)} ended with status {process.returncode}:\n{log.read_text()}")
            time.sleep(POLL_SECONDS)
        return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()


def _lines(metrics: Path) -> int:
    """Of the units done so far; a line being written is not there yet."""
    return metrics.read_text().count("\n") if metrics.exists() else 0


if __name__ == "__main__":
    main()
