"""How long a user waits: from the start of `leakgan train` to its first training step and to the end of a tiny run.

    python -m benchmarks.start
    python -m benchmarks.start --preset quickstart synthetic20

Each start is a new process, `leakgan train PRESET` with rounds of one batch, once with an empty cache of compiled
programs (cold) and then with what the first start left there (warm). Importing, drawing the data, compiling, saving
and the whole program are in it. Times are those at which lines appear in the run's metrics.jsonl: the first unit is
one step of the discriminator, then follow one epoch of MLE over one batch and one adversarial step of the generator.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from leakgan_jax import ConfigError, preset

POLL_SECONDS = 0.02
CACHE_SETTINGS = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
KINDS = ("discriminator", "mle", "generator")


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
    print("| preset | cache | first D step | first MLE step | first generator step | end |\n|---|---|--:|--:|--:|--:|")
    for name, batch in sizes.items():
        starts: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
        for _ in range(args.repeats):
            with tempfile.TemporaryDirectory() as folder:
                for cache, times in starts.items():
                    times.append(start(name, batch, Path(folder), cache))
        for cache, times in starts.items():
            medians = {what: float(np.median([one[what] for one in times])) for what in times[0]}
            print(f"| {name} | {cache} | " + " | ".join(f"{s:.1f}" for s in medians.values()) + " |", flush=True)
            with open(args.out, "a", encoding="utf-8") as file:
                line = {"preset": name, "cache": cache, "s_median": medians, "starts": times, **facts}
                file.write(json.dumps(line) + "\n")


def start(name: str, batch: int, folder: Path, cache: str) -> dict[str, float]:
    """Seconds until the first unit of each kind is done, and until the process ends."""
    out = folder / cache
    sizes: dict[str, Any] = {"draw-size": batch // 2, "num-train": batch, "num-heldout": batch, "eval-samples": batch}
    schedule = {"pretrain-rounds": 1, "pretrain-draws": 1, "discriminator-epochs": 1, "mle-epochs": 1}
    schedule |= {"adversarial-iterations": 1, "generator-steps": 1, "adversarial-draws": 1}
    options = [word for field, value in (sizes | schedule).items() for word in (f"--{field}", str(value))]
    command = [sys.executable, "-m", "leakgan_jax.cli", "train", name, "--out", str(out), *options]
    began = time.perf_counter()
    kept = {key: value for key, value in os.environ.items() if key not in CACHE_SETTINGS}  # or cold were not cold
    environment = {**kept, "XDG_CACHE_HOME": str(folder / "cache")}
    log = folder / f"{cache}.log"
    with open(log, "w") as file:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=file)
    seen: dict[str, float] = {}
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        for kind in _kinds(out / "metrics.jsonl"):
            seen.setdefault(kind, time.perf_counter() - began)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with status {process.returncode}:\n{log.read_text()}")
    return {kind: seen[kind] for kind in KINDS} | {"end": time.perf_counter() - began}


def _kinds(metrics: Path) -> list[str]:
    """Of the units done so far; a line being written is not there yet."""
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return [json.loads(line)["kind"] for line in lines]


if __name__ == "__main__":
    main()
