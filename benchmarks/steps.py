"""Times the pieces of training: compile seconds, then the median of repeated calls.

    python -m benchmarks.steps --preset synthetic20 --repeats 10

Prints a Markdown table and appends one JSON line a row to `--out`. Random parameters and sentences: no data needed.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

import jax
import numpy as np

from leakgan_jax import preset, rollout, training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="synthetic20")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--negatives", type=int, default=1000, help="sentences in the bulk sampling row")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/steps.jsonl"))
    args = parser.parse_args()

    config = preset(args.preset)
    state = training.init(config, jax.random.key(0))
    key = jax.random.key(1)
    batch = config.batch_size
    tokens = jax.random.randint(jax.random.key(2), (batch, config.length), 0, config.vocab_size)
    labels = (jax.numpy.arange(batch) % 2).astype(float)
    rows = {
        f"sample {batch}": (batch, lambda s: rollout.sample_many(config, s.params, key, batch, 1.0)),
        f"sample {args.negatives}": (
            args.negatives,
            lambda s: rollout.sample_many(config, s.params, key, args.negatives, 1.0),
        ),
        "MLE step": (batch, lambda s: training.mle_step(config, s, tokens)),
        "discriminator step": (batch, lambda s: training.discriminator_step(config, s, tokens, labels, key)),
        f"generator step, N = {config.completions}": (batch, lambda s: training.generator_step(config, s, key)),
    }
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    facts = {
        "preset": args.preset,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "commit": revision or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"| {args.preset} | compile s | ms median (p10-p90) | sentences/s |\n|---|--:|--:|--:|")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name, (sentences, function) in rows.items():
        lowered = jax.jit(function).lower(state)
        began = time.perf_counter()
        compiled = lowered.compile()
        compile_s = time.perf_counter() - began
        seconds(compiled, state)  # warm-up
        low, mid, high = np.percentile([1e3 * seconds(compiled, state) for _ in range(args.repeats)], [10, 50, 90])
        print(
            f"| {name} | {compile_s:.1f} | {mid:.1f} ({low:.1f}-{high:.1f}) | {1e3 * sentences / mid:,.0f} |",
            flush=True,
        )
        row = {"what": name, "compile_s": compile_s, "ms_p10": low, "ms_median": mid, "ms_p90": high, **facts}
        with open(args.out, "a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "repeats": args.repeats, "batch": sentences}) + "\n")


def seconds(function, *args) -> float:
    began = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
