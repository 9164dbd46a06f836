"""Kills a small run at random moments, resumes it each time, and compares it with a run never stopped.

    python experiments/kills.py --kills 20 --out runs/kills

Each trial is one process killed with SIGKILL after a random time, then resumed to the end: metric lines (times
aside), samples and every number of the final checkpoint must equal those of the undisturbed run.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SMALL = (
    "--vocab-size 40 --length 8 --filter-windows 1 3 8 --filter-counts 8 8 8 --num-train 640 --num-heldout 200 "
    "--draw-size 200 --eval-samples 200 --pretrain-rounds 3 --pretrain-draws 1 --mle-epochs 4 "
    "--adversarial-iterations 20 --eval-every 2 --interleave-every 5"
).split()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    whole = args.out / "whole"
    shutil.rmtree(args.out, ignore_errors=True)
    _start(args.out / "first").wait()  # fills the compilation cache, so that kills fall into training
    began = time.monotonic()
    _start(whole).wait()
    seconds = time.monotonic() - began
    print(f"undisturbed: {seconds:.0f} s, {len(_lines(whole))} units")
    moments, same = random.Random(args.seed), 0
    for trial in range(1, args.kills + 1):
        out = args.out / f"killed_{trial}"
        process = _start(out)
        moment = moments.uniform(0.02, 0.99) * seconds
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        done, began_writing = len(_lines(out)), (out / "config.json").exists()
        status = _start(out, *(["--resume"] if began_writing else [])).wait()
        equal = status == 0 and _same(whole, out)
        same += equal
        print(
            f"{trial:3}  killed at {moment:5.1f} s after {done:3} units  {'identical' if equal else 'DIFFERENT'}",
            flush=True,
        )
        if equal:
            shutil.rmtree(out)
    print(f"{same} of {args.kills} identical to the undisturbed run")
    return 0 if same == args.kills else 1


def _start(out: Path, *more: str) -> subprocess.Popen:
    settings = [] if more else SMALL
    command = [sys.executable, "-m", "leakgan_jax.cli", "train", "--out", str(out), *settings, *more]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(out.parent / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env={**os.environ, **cache}, **quiet)


def _lines(out: Path) -> list[dict]:
    path, lines = out / "metrics.jsonl", []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append({k: v for k, v in json.loads(text).items() if k != "seconds"})
        except ValueError:  # the line that the kill cut
            pass
    return lines


def _same(one: Path, other: Path) -> bool:
    if _lines(one) != _lines(other) or (one / "samples.txt").read_text() != (other / "samples.txt").read_text():
        return False
    states = [_final_state(out) for out in (one, other)]
    return all(np.array_equal(a, b) for a, b in zip(*states, strict=True))


def _final_state(out: Path) -> list[np.ndarray]:
    import functools

    import jax

    from leakgan_jax import rundir, training
    from leakgan_jax.checkpoint import Checkpoints

    config, _, _ = rundir.open_run(out)
    target = jax.eval_shape(functools.partial(training.init, config), jax.random.key(0))
    with Checkpoints(out, create=False) as checkpoints:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoints.restore(target).state)]


if __name__ == "__main__":
    sys.exit(main())
