"""What keeping a run safe costs: checkpoints, checks and metric lines, beside the training they are made for.

    python -m benchmarks.overhead
    python -m benchmarks.overhead --preset synthetic20

One run of the preset, checkpoints at the interval that users have, in one process: the functions of `KEEPING` are
timed from outside while it trains, those within others apart, and every unit until its results are there. The first
unit of each kind and the first evaluation compile and are left out of training, while first calls of what keeps the
run safe are counted. What the checks of `COMPILED` add to a unit is timed afterwards: the units with and without them,
called in turn, and the median of the differences between neighbours. Where arrays lie in memory matters as much as the
checks (two programs that are the same differ by 1%), so this is done `ROUNDS` times with states in other places: the
mean of the medians and its standard error. Curves and samples, of `REPORTING`, are rows of the table and no part of the
sum. Data is drawn here. Prints a Markdown table and appends a JSON line.
"""

import contextlib
import functools
import importlib
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

from benchmarks import measure
from leakgan_jax import ConfigError, preset, run, training
from leakgan_jax.config import Config
from leakgan_jax.display import Display

# What is timed: its name in the table, module, function. One that this version does not have is said to be missing.
TRAINING = (("unit", "leakgan_jax.run", "_run_unit"), ("evaluation", "leakgan_jax.run", "_scores"))
TABLE = (("table", "leakgan_jax.run", "_table_rows"),)  # neither
KEEPING = (
    ("checkpoint: state from the device", "leakgan_jax.run", "_Running._write"),
    ("checkpoint: write, sync, rename", "leakgan_jax.checkpoint", "Checkpoints.save"),
    ("finite checks", "leakgan_jax.health", "problem"),
    ("collapse checks", "leakgan_jax.health", "collapse"),
    ("agreement of processes", "leakgan_jax.parallel", "agree"),
    ("metric lines", "leakgan_jax.rundir", "append"),
    ("metric lines", "leakgan_jax.rundir", "lines_digest"),
)
REPORTING = (("samples.txt", "leakgan_jax.run", "write"), ("curves", "leakgan_jax.report", "draw_curves"))
TIMED = TRAINING + TABLE + REPORTING
# Checks inside the compiled units: module, function, and what does nothing in its place.
COMPILED: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("leakgan_jax.health", "gradient", lambda name, grads: {}),
    ("leakgan_jax.health", "summary", lambda metrics: jax.tree.map(lambda values: values.mean(), metrics)),
    ("leakgan_jax.health", "state", lambda tree: {}),
)
IN_UNITS = "checks inside the units"
ROUNDS = 8
LIMIT = 0.03  # of training


class Part(NamedTuple):
    """One row of the table."""

    name: str
    calls: int
    median: float  # seconds of a call, without what is another row
    first: float
    total: float
    error: float = 0.0  # standard error of the total, where it is measured apart


class Account:
    """Seconds by name, those of a function within another counted once."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.over = False  # training, not the run
        self._open: list[tuple[str, float]] = []

    def timed(self, name: str, function: Callable) -> Callable:
        """`function`, its time counted until its results are there."""

        @functools.wraps(function)
        def call(*args, **kwargs):
            own = f"unit, {args[1]}" if name == "unit" else name
            if self.over or any(outer == "table" for outer, _ in self._open):
                own = "table"
            self._open.append((own, 0.0))
            began = time.perf_counter()
            try:
                return jax.block_until_ready(function(*args, **kwargs))
            finally:
                elapsed = time.perf_counter() - began
                _, within = self._open.pop()
                self.seconds[own].append(elapsed - within)
                if self._open:
                    outer, others = self._open[-1]
                    self._open[-1] = outer, others + elapsed

        return call


class Watched(Display):
    """Tells the account when training is over; what comes then is the report."""

    def __init__(self, account: Account):
        super().__init__()
        self._account = account

    def message(self, text: str) -> None:
        self._account.over |= text == "scoring the table"
        super().message(text)


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser("benchmarks.overhead", __doc__)
    parser.add_argument("--preset", default="quickstart", metavar="NAME", help="of the synthetic task")
    parser.add_argument(
        "--repeats", type=measure.positive, default=10, help="calls of each unit with and without checks, a round"
    )
    parser.add_argument(
        "--budget", type=measure.seconds, default=300, help="seconds for them, or 3 calls of each a round"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/overhead.jsonl"))
    args = parser.parse_args(argv)
    try:
        config = preset(args.preset)
    except ConfigError as error:
        parser.error(str(error))
    if config.is_text:
        parser.error(f"{args.preset} is of text; give a preset of the synthetic task")
    parser.check_writable(args.out)
    jax.config.update("jax_default_matmul_precision", "float32")  # of scores; training has a setting of its own
    facts = measure.facts()
    print(measure.described(facts), flush=True)
    parts, missing = measured(config)
    training_parts = [part for part in parts if is_training(part.name)]
    others = [part for part in parts if not is_training(part.name)]
    reporting = [part for part in others if part.name in {name for name, *_ in REPORTING}]
    keeping = [part for part in others if part not in reporting]
    inside = in_units(config, training_parts, args.repeats, args.budget)
    keeping += [inside] if inside else []
    units = sum(part.total for part in training_parts if part.name != "evaluation")
    trained, spent = sum(part.total for part in training_parts), sum(part.total for part in keeping)
    print(markdown(training_parts, keeping + reporting, trained))
    if missing:
        print(f"\nNot in this version: {', '.join(missing)}")
    verdict = "under" if spent / trained < LIMIT else "NOT under"
    error = max((part.error for part in keeping), default=0.0)
    share = f"{spent / trained:.2%} ± {error / trained:.2%}"
    print(f"\nCheckpoints, checks and metric lines: {spent:.2f} s of {trained:.1f} s of training: {share},", end=" ")
    print(f"{verdict} {LIMIT:.0%}; {spent / units:.2%} of the {units:.1f} s of units alone")
    line = {"preset": args.preset, "seconds_of_training": trained, "seconds_of_units": units}
    line |= {
        "seconds_of_keeping": spent,
        "share": spent / trained,
        "share_of_units": spent / units,
        "error_of_share": error / trained,
    }
    line |= {"parts": [part._asdict() for part in parts] + ([inside._asdict()] if inside else []), "missing": missing}
    with open(args.out, "a", encoding="utf-8") as file:
        file.write(json.dumps(line | facts) + "\n")


def measured(config: Config) -> tuple[list[Part], list[str]]:
    """One run, and what its training and its keeping took; with the names of functions that are not there."""
    account = Account()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        names = [names for _, *names in TIMED + KEEPING] + [names for *names, _ in COMPILED]
        missing = [f"{module}.{name}" for module, name in names if not _owner(module, name)]
        for label, module, name in TIMED + KEEPING:
            if owner := _owner(module, name):
                attribute = name.split(".")[-1]
                timed = account.timed(label, getattr(owner, attribute))
                stack.enter_context(mock.patch.object(owner, attribute, timed))
        display = Watched(account)
        stack.callback(display.close)
        stopped = run.train(config, [0], Path(folder) / "run", resume=False, command="", display=display)
        if stopped:
            sys.exit(128 + stopped)
    account.seconds.pop("table", None)
    return [_part(name, seconds) for name, seconds in account.seconds.items()], missing


def is_training(name: str) -> bool:
    return name.startswith("unit, ") or name == "evaluation"


def _part(name: str, seconds: list[float]) -> Part:
    """Of training the first call, which compiles, is left out of the total."""
    warm = seconds[1:] if is_training(name) else seconds
    return Part(name, len(seconds), float(np.median(seconds[1:] or seconds)), seconds[0], sum(warm))


def _owner(module: str, name: str) -> Any:
    """The module, or the class in it, that has the function; None where there is none."""
    try:
        owner: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        return None
    *classes, attribute = name.split(".")
    for each in classes:
        owner = getattr(owner, each, None)
    return owner if hasattr(owner, attribute) else None


@contextlib.contextmanager
def without(checks: tuple[tuple[str, str, Callable[..., Any]], ...]) -> Iterator[None]:
    """Programs traced meanwhile do not have these checks."""
    with contextlib.ExitStack() as stack:
        for module, name, nothing in checks:
            stack.enter_context(mock.patch.object(_owner(module, name), name, nothing))
        jax.clear_caches()  # or what was traced before would be found again
        yield
    jax.clear_caches()


def in_units(config: Config, parts: list[Part], repeats: int, budget: float) -> Part | None:
    """What the checks inside the units added to the run: the difference of a unit, times their number."""
    checks = tuple(check for check in COMPILED if _owner(*check[:2]))
    if not checks:
        return None
    config, task = run.load_task(config, 0)
    state, total, variance, count = training.init(config, jax.random.key(0)), 0.0, 0.0, 0
    for part in parts:
        if part.name == "evaluation":
            continue
        kind = part.name.removeprefix("unit, ")

        def unit(state, data, kind=kind):
            return run._run_unit.__wrapped__(config, kind, state, *data)

        data = task.arrays, jax.random.key(1)
        programs = [measure.Program(unit, state, data, trains=True, donate=False)]  # kept, to be saved if need be
        with without(checks):
            programs.append(measure.Program(functools.partial(unit), state, data, trains=True))
        medians = []
        for _ in range(ROUNDS):
            for program in programs:
                program.renew()
            checked, plain = np.transpose(measure.alternate(programs, repeats, budget / len(parts) / ROUNDS))
            medians.append(np.median(checked - plain))
        added, error = np.mean(medians), np.std(medians, ddof=1) / np.sqrt(ROUNDS)
        total, variance, count = total + added * part.calls, variance + (error * part.calls) ** 2, count + part.calls
    return Part(IN_UNITS, count, total / count, total / count, total, float(np.sqrt(variance)))


def markdown(trained: list[Part], keeping: list[Part], seconds: float) -> str:
    """A row for each part; shares are of training."""
    rows = ["| | calls | ms, median | ms, first | s in all | of training |", "|---|--:|--:|--:|--:|--:|"]
    for part in [*trained, *sorted(keeping, key=lambda part: -part.total)]:
        times = " | ".join(f"{1e3 * value:,.2f}" for value in (part.median, part.first))
        rows.append(f"| {part.name} | {part.calls} | {times} | {part.total:.2f} | {part.total / seconds:.2%} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
