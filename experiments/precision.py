"""What rounding the factors of training's matrix products does to a run's scores, on a device that does not round.

    python experiments/precision.py --seeds 5

`--precision tensorfloat32` and `bfloat16` have accelerators round what goes into a product, to 11 or 8 bits,
and add up in float32. A CPU ignores the setting, so here each product of training, gradients included, is given rounded
factors. Trains the quickstart, seeds side by side; runs already in `--out` go on or are read. A JSON line a seed, model
and temperature goes to `--results`, a table to the same name with .md.
"""

import argparse
import contextlib
import functools
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from leakgan_jax import preset, run, rundir, training
from leakgan_jax.display import Display

MANTISSA = {"float32": None, "tensorfloat32": 10, "bfloat16": 7}  # stored bits
TRAINED = ("mle_epoch", "generator_steps", "discriminator_draw")  # what the setting applies to; scores are float32
COLUMNS = ("nll_oracle", "nll_gen", "nll_div", "distinct")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--precisions", nargs="+", choices=MANTISSA, default=list(MANTISSA))
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    parser.add_argument("--results", type=Path, default=Path("experiments/results/precision.jsonl"))
    args = parser.parse_args()
    if args.seeds < 2:
        parser.exit(2, f"seeds is {args.seeds}; give at least 2, for a spread\n")
    jax.config.update("jax_default_matmul_precision", "float32")
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip() or "unknown"
    rows = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    for precision in args.precisions:
        if not any(row["precision"] == precision for row in rows):
            facts = {"precision": precision, "jax": jax.__version__, "commit": commit}
            rows += [row | facts for row in train(precision, args.seeds, args.out / precision)]
            args.results.parent.mkdir(parents=True, exist_ok=True)
            args.results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = table(rows)
    args.results.with_suffix(".md").write_text(text)
    print(text)


def train(precision: str, seeds: int, out: Path) -> list[dict]:
    """The final scores of every seed."""
    jax.clear_caches()
    display, config = Display(), preset("quickstart")
    with contextlib.ExitStack() as stack:
        stack.callback(display.close)
        if MANTISSA[precision]:
            for name in TRAINED:
                rounding = rounded(getattr(training, name), MANTISSA[precision])
                stack.enter_context(mock.patch.object(training, name, rounding))
        resume = (out / "config.json").exists()
        if stopped := run.train(config, range(seeds), out, resume=resume, command=" ".join(sys.argv), display=display):
            sys.exit(128 + stopped)
    rows = []
    for seed, place in enumerate(rundir.directories(out, range(seeds))):
        device = rundir.open_run(place)[2]["device"]
        config, task = run.open_task(place)
        models = run.load_models(place, config, print)
        for model, params in models.items():
            for temperature in run.TABLE_TEMPERATURES:
                _, scores = run.evaluate(config, task, params, jax.random.key(1000 + seed), temperature)
                scores = {name: scores[name] for name in (*COLUMNS, "temperature", "num_samples")}
                rows.append({"seed": seed, "model": model, "device": device, **scores})
    return rows


def rounded(function, mantissa: int):
    """`function(config, *arrays)`, with the factors of every product in it, gradients included, rounded."""

    @functools.wraps(function)
    def run_rounded(config, *arrays):
        traced, shape = jax.make_jaxpr(functools.partial(function, config), return_shape=True)(*arrays)
        flat = evaluate(traced, mantissa, *jax.tree.leaves(arrays))
        return jax.tree.unflatten(jax.tree.structure(shape), flat)

    return run_rounded


def evaluate(traced: ClosedJaxpr, mantissa: int, *arrays):
    """Computes what was traced, on rounded factors; programs within programs, such as scans, are traced again so."""
    known = dict(zip([*traced.jaxpr.constvars, *traced.jaxpr.invars], [*traced.consts, *arrays], strict=True))

    def again(inner):
        if type(inner) is tuple:  # of the branches of a cond
            return tuple(map(again, inner))
        if not isinstance(inner, ClosedJaxpr):
            return inner
        shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in inner.in_avals]
        return jax.make_jaxpr(functools.partial(evaluate, inner, mantissa))(*shapes)

    def read(x):
        return x.val if isinstance(x, Literal) else known[x]

    for step in traced.jaxpr.eqns:
        values = [read(x) for x in step.invars]
        if step.primitive.name == "dot_general":
            values = [jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=mantissa) for x in values]
        settings = step.primitive.get_bind_params({name: again(value) for name, value in step.params.items()})
        out = step.primitive.bind(*values, **settings)
        known |= zip(step.outvars, out if step.primitive.multiple_results else [out], strict=True)
    return [read(x) for x in traced.jaxpr.outvars]


def table(rows: list[dict]) -> str:
    """Mean and standard deviation over seeds."""
    seeds = len({row["seed"] for row in rows})
    text = "| precision | model | temperature | NLL_oracle | NLL_gen | NLL_div | distinct |\n"
    text += "|---|---|--:|--:|--:|--:|--:|\n"
    for model, temperature in sorted({(row["model"], row["temperature"]) for row in rows}, reverse=True):
        for precision in dict.fromkeys(row["precision"] for row in rows):
            where = {"precision": precision, "model": model, "temperature": temperature}
            of_seeds = [row for row in rows if where.items() <= row.items()]
            cells = []
            for name in COLUMNS:
                values = [row[name] for row in of_seeds]
                cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")
            text += f"| {precision} | {model} | {temperature:.3f} | {' | '.join(cells)} |\n"
    places = sorted({f"{row['device']}, JAX {row['jax']}, commit {row['commit']}" for row in rows})
    text += (
        f"\nPreset `quickstart`, seeds 0 to {seeds - 1}, mean ± standard deviation, {rows[0]['num_samples']:,} samples"
    )
    return text + f" a row; rounding emulated. {'; '.join(places)}.\n"


if __name__ == "__main__":
    main()
