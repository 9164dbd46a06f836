"""Time and memory of sampling and of the three training steps as each size grows, beside what they should be.

    python -m benchmarks.scaling

From one base, a preset with sentences of 20 tokens, it changes one size at a time: T tokens, B sentences a batch,
V words, F features (filters of every width alike), N completions, and S seeds trained together (`jax.vmap` over
states). Filter widths stay, so a sentence of any length meets the same discriminator. Writes to the folder `--out`
scaling.jsonl (a line a point is appended), scaling_T.png and so on, and scaling.md, which it also prints.

The points of a curve are called in turn, so that a machine that slows down bends no curve. An exponent is the slope of
a straight line through the points of a log-log plot. Memory is the compiler's plan for a call: arguments, results and
temporaries, what is overwritten counted once.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import measure, throughput, work
from leakgan_jax import ConfigError, preset, training
from leakgan_jax.config import Config
from leakgan_jax.report import pyplot, save

LENGTHS = (20, 40, 80)
PIECES = {
    "sample": "sampling",
    "mle": "MLE step",
    "discriminator": "D step",
    "generator": "generator step",
    "textbook": "textbook sampling",
}


class Variable(NamedTuple):
    """One size that grows."""

    name: str
    time: dict[str, int]  # exponent in the limit, by piece
    memory: int  # exponent at most
    words: str  # why


VARIABLES = {
    "T": Variable(
        "tokens a sentence",
        {"sample": 1, "mle": 1, "discriminator": 1, "generator": 2, "textbook": 2},
        1,
        "Every token costs the same, so sampling and the MLE step are linear. In D's own step a filter of width w has "
        "T - w + 1 windows: linear in the limit, steeper while T is short. The generator step completes T / C "
        "prefixes of up to T tokens each: quadratic. The textbook form convolves T positions for each of T tokens: "
        "quadratic in the limit, already for sampling.",
    ),
    "B": Variable(
        "sentences a batch",
        {"sample": 1, "mle": 1, "discriminator": 1, "generator": 1},
        1,
        "Linear; flatter where a batch does not fill the machine, and where the optimizers' share counts, which does "
        "not grow.",
    ),
    "V": Variable(
        "words",
        {"sample": 1, "mle": 1, "discriminator": 0, "generator": 1},
        1,
        "The Worker's output grows with V, the rest does not: at most linear. D only looks words up, so its products "
        "do not grow; its optimizer has V rows of embeddings to update.",
    ),
    "F": Variable(
        "features",
        {"sample": 2, "mle": 2, "discriminator": 2, "generator": 2},
        2,
        "The highway layer's two matrices are F by F: quadratic in the limit. Convolutions and the Manager are linear, "
        "the Worker does not grow, so at these sizes less.",
    ),
    "N": Variable(
        "completions",
        {"generator": 1},
        1,
        "Completions are most of the generator step: linear, less what the sentences themselves and the updates take.",
    ),
    "S": Variable(
        "seeds",
        {"sample": 1, "mle": 1, "discriminator": 1, "generator": 1},
        1,
        "Linear where one seed fills the machine, and flatter where it does not, which is what more seeds are for.",
    ),
}


class Point(NamedTuple):
    """One size at one value."""

    value: int
    config: Config
    seeds: int


class Cost(NamedTuple):
    """Of one call."""

    s_p10: float
    s_median: float
    s_p90: float
    compile_s: float
    repeats: int
    memory: int | None  # bytes
    multiply_adds: int


def main(argv: list[str] | None = None) -> None:
    on_cpu = jax.default_backend() == "cpu"
    parser = measure.parser("benchmarks.scaling", __doc__)
    parser.add_argument("--preset", metavar="NAME", help="default: synthetic20, on a CPU quickstart")
    parser.add_argument("--variables", nargs="+", choices=VARIABLES, default=list(VARIABLES), metavar="LETTER")
    parser.add_argument("--repeats", type=measure.positive, default=10, help="timed calls at most, but at least 3")
    parser.add_argument(
        "--budget", type=measure.seconds, default=12, help="seconds a curve, unless 3 calls a point take longer"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="FOLDER")
    args = parser.parse_args(argv)
    name = args.preset or ("quickstart" if on_cpu else "synthetic20")
    try:
        base = base_config(name)
        curves = {variable: points(base, variable) for variable in args.variables}
    except ConfigError as error:
        parser.error(str(error))
    parser.check_writable(args.out / "scaling.jsonl")
    jax.config.update("jax_enable_compilation_cache", False)

    jax.config.update("jax_default_matmul_precision", "float32")
    facts = {**measure.facts(), "precision": "float32"}
    sizes = f"V {base.vocab_size}, F {base.feature_dim}, batch {base.batch_size}, N {base.completions}"
    base_text = f"Base: {name} with T {base.length}, {sizes}, C {base.goal_horizon}, {base.reading} reading."
    text = f"# How cost grows\n\n{measure.described(facts)}, matrix products in {facts['precision']}. {base_text}\n"
    print(text, flush=True)
    for variable, curve in curves.items():
        costs: dict[str, list[Cost]] = {}
        for piece in VARIABLES[variable].time:
            costs[piece] = measured(piece, curve, args.repeats, args.budget)
            for point, cost in zip(curve, costs[piece], strict=True):
                line = {"variable": variable, "value": point.value, "piece": piece, **cost._asdict()}
                with open(args.out / "scaling.jsonl", "a", encoding="utf-8") as file:
                    file.write(json.dumps({**line, "preset": name, **facts}) + "\n")
        values = [point.value for point in curve]
        section = summary(variable, values, costs)
        print(section, flush=True)
        text += "\n" + section
        draw(args.out / f"scaling_{variable}.png", variable, values, costs, f"{measure.described(facts)}\n{base_text}")
        (args.out / "scaling.md").write_text(text, encoding="utf-8")


def base_config(name: str) -> Config:
    """The preset with the shortest sentences, less the filters that are wider than these."""
    full, length = preset(name), LENGTHS[0]
    kept = [(w, n) for w, n in zip(full.filter_windows, full.filter_counts) if w <= length]
    windows, counts = zip(*kept)
    return dataclasses.replace(full, length=length, filter_windows=windows, filter_counts=counts)


def points(base: Config, variable: str) -> list[Point]:
    """The base and, with one size changed, its neighbours."""

    def changed(values: Iterable[int], **fields):
        return [Point(v, dataclasses.replace(base, **{f: of(v) for f, of in fields.items()}), 1) for v in values]

    factors = (1, 2, 4)
    if variable == "T":
        return changed(LENGTHS, length=int)
    if variable == "B":
        return changed((base.batch_size // 4, base.batch_size, base.batch_size * 4), batch_size=int)
    if variable == "V":
        return changed([base.vocab_size * f for f in factors], vocab_size=int)
    if variable == "F":
        wider = [tuple(n * f for n in base.filter_counts) for f in factors]
        configs = [dataclasses.replace(base, filter_counts=counts) for counts in wider]
        return [Point(c.feature_dim, c, 1) for c in configs]
    if variable == "N":
        return changed((1, 4, 16), completions=int)
    return [Point(seeds, base, seeds) for seeds in factors]


def measured(piece: str, curve: list[Point], repeats: int, budget: float) -> list[Cost]:
    """Compiles one piece for every point of a curve, and times the points in turn."""
    programs, counts = zip(*(program(piece, point.config, point.seeds) for point in curve))
    times = measure.alternate(list(programs), repeats, budget)
    costs = []
    for one, multiply_adds, seconds in zip(programs, counts, times.T, strict=True):
        percentiles = np.percentile(seconds, [10, 50, 90]).tolist()
        costs.append(Cost(*percentiles, one.compile_s, len(seconds), one.memory(), multiply_adds))
    return costs


def program(piece: str, config: Config, seeds: int) -> tuple[measure.Program, int]:
    """One piece for `seeds` models at once, and its multiply-adds."""
    form, what = (throughput.TEXTBOOK, "sample") if piece == "textbook" else (throughput.OURS, piece)
    row = throughput.rows(config, negatives=1)[what]
    run = functools.partial(row.run, form)
    state, data = throughput.inputs(config)
    if seeds > 1:
        one = run
        init_key, run_key = jax.random.split(data.key)
        state = jax.jit(jax.vmap(functools.partial(training.init, config)))(jax.random.split(init_key, seeds))
        data = data._replace(key=jax.random.split(run_key, seeds))

        def run(states, data):
            return jax.vmap(lambda state, key: one(state, data._replace(key=key)))(states, data.key)

    multiply_adds = work.textbook_sample(config, config.batch_size) if piece == "textbook" else row.multiply_adds
    return measure.Program(run, state, data, row.trains), seeds * multiply_adds


def exponent(values: list[int], costs: Iterable[float]) -> float:
    """Of the power of `values` that fits `costs` best."""
    slope = np.polyfit(np.log(values), np.log(np.array(list(costs), float)), 1)[0]
    return float(np.round(slope, 6)) + 0.0  # not -0


def summary(variable: str, values: list[int], costs: dict[str, list[Cost]]) -> str:
    """One variable in Markdown: what each curve should be, and is."""
    about = VARIABLES[variable]
    at = [f"{variable} = {value:,}" for value in values]
    lines = [f"## {variable}, {about.name}\n", f"{about.words}\n"]
    columns = ["time, ms", *at, "exponent in the limit", "by the count of work", "measured", "so"]
    lines += [f"| {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 2)}---|"]
    for piece, curve in costs.items():
        counted = exponent(values, [cost.multiply_adds for cost in curve])
        found = exponent(values, [cost.s_median for cost in curve])
        cells = [PIECES[piece], *(measure.number(1e3 * cost.s_median) for cost in curve)]
        cells += [str(about.time[piece]), f"{counted:.2f}", f"{found:.2f}", verdict(counted, found)]
        lines.append(f"| {' | '.join(cells)} |")
    planned = {piece: curve for piece, curve in costs.items() if all(cost.memory for cost in curve)}
    if planned:
        columns = ["memory, MB", *at, "exponent at most", "measured between the last two", "so"]
        lines += ["", f"| {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 2)}---|"]
    for piece, curve in planned.items():
        found = exponent(values[-2:], [cost.memory for cost in curve[-2:]])  # what does not grow hides the rest before
        cells = [PIECES[piece], *(measure.number(cost.memory / 1e6) for cost in curve)]
        cells += [str(about.memory), f"{found:.2f}", "as it should" if found < about.memory + 0.1 else "too steep"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def verdict(counted: float, found: float) -> str:
    """In words, how a measured exponent compares with that of the work."""
    if abs(found - counted) <= 0.15:
        return "as the work"
    return "steeper than the work" if found > counted else "flatter: part of the time does not grow"


def draw(path: Path, variable: str, values: list[int], costs: dict[str, list[Cost]], title: str) -> None:
    """Time and memory against one variable; dashed, what the work alone would make of the first point's time."""
    plt = pyplot()
    figure, (time, memory) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    colours = dict(zip(PIECES, ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "0.45"), strict=True))
    for piece, curve in costs.items():
        low, mid, high = 1e3 * np.array([(cost.s_p10, cost.s_median, cost.s_p90) for cost in curve]).T
        style = {"color": colours[piece], "label": PIECES[piece], "ms": 4}
        time.errorbar(values, mid, yerr=[mid - low, high - mid], fmt="o-", capsize=2, **style)
        counted = np.array([cost.multiply_adds for cost in curve], float)
        time.plot(values, mid[0] * counted / counted[0], "--", lw=1, color=colours[piece])
        if all(cost.memory for cost in curve):
            memory.plot(values, [cost.memory / 1e6 for cost in curve], "o-", **style)
    time.plot([], [], "--", lw=1, color="0.3", label="as the work")
    for axes, label in ((time, "ms a call, median (10-90%)"), (memory, "MB a call, the compiler's plan")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(values, [f"{value:,}" for value in values])
        axes.minorticks_off()
        axes.set_xlabel(f"{variable}, {VARIABLES[variable].name}")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
    time.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    main()
