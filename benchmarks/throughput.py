"""Times every piece of training, and says what share of the machine's matrix-product peak each reaches.

    python -m benchmarks.throughput
    python -m benchmarks.throughput --preset synthetic20 synthetic40 coco --against textbook

Random parameters and sentences, so no data is needed; a text preset takes its default vocabulary. Prints a Markdown
table a preset and appends one JSON line a row and form to `--out`. In the table:

- compile s is tracing and compilation; calls are timed after a warm-up, until their results are there;
- sentences are those that a call returns or learns from, each once: neither completions nor epochs count;
- GMA are 10^9 multiply-adds in matrix products, counted by hand (benchmarks/work.py); a multiply-add is 2 FLOPs;
- of peak is their rate over that of large matrix products, called in turn with the row: medians of both;
- textbook is the form of public implementations (benchmarks/textbook.py), called in turn with ours;
- by work is the ratio of its multiply-adds to ours: times exceed it only where that form uses the machine worse.
"""

import dataclasses
import functools
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, textbook, work
from leakgan_jax import ConfigError, oracle, preset, rollout, training
from leakgan_jax.config import Config, Precision
from leakgan_jax.types import Array, GanState, Key

ROWS = (
    "sample", "sample-many", "mle", "discriminator", "generator", "generator-sampling", "generator-update", "mle-epoch",
    "draw", "evaluation", "iteration", "complete", "init", "data",
)  # fmt: skip
PRECISIONS = typing.get_args(Precision)
CPU_DRAW_SIZE = 1_000  # with the released 10,000, one iteration takes two cores several minutes


class Data(NamedTuple):
    """What the programs work on besides the state. Random: no cost depends on the values."""

    key: Key
    tokens: Array  # [B, T] int32
    is_real: Array  # [B]
    features: Array  # [B, T + 1, F]
    values: Array  # [B, T / C]
    heldout: Array  # [m, T] int32
    oracle: oracle.OracleParams | None  # of the synthetic task


class Form(NamedTuple):
    """The pieces of one way to compute LeakGAN."""

    sample: Callable  # config, params, key, num, temperature
    sample_with_values: Callable  # config, params, key, temperature
    mle_step: Callable  # config, state, tokens
    generator_step: Callable  # config, state, key
    generator_update: Callable  # config, state, data
    discriminator_step: Callable  # config, state, tokens, is_real, key
    discriminator_draw: Callable  # config, state, real, key
    evaluate: Callable  # config, params, heldout, key, temperature


class Row(NamedTuple):
    """One piece of training."""

    title: str
    sentences: int
    multiply_adds: int  # of ours
    run: Callable[[Form, GanState, Data], Any]
    trains: bool = False  # the first result is a new state
    textbook: int | None = None  # multiply-adds of the textbook form, where counted
    ours_only: bool = False  # for its compile time, or because another row shows the textbook form
    scores: bool = False  # in float32, whatever the setting of training


def sample_with_values(config: Config, params, key: Key, temperature: float):
    return rollout.sample_with_values(config, params, jax.random.split(key, config.batch_size), temperature)


def generator_update(config: Config, state: GanState, data: Data):
    """The second half of `training.generator_step`, on features and values that the first half has left."""

    def score(config, params, tokens, temperature):
        return *rollout.teacher_force(config, params, tokens, data.features, temperature), data.features

    return textbook.generator_update(config, state, data.tokens, data.values, score)


OURS = Form(
    sample=rollout.sample_many,
    sample_with_values=sample_with_values,
    mle_step=training.mle_step,
    generator_step=training.generator_step,
    generator_update=generator_update,
    discriminator_step=training.discriminator_step,
    discriminator_draw=training.discriminator_draw,
    evaluate=training.evaluate,
)
TEXTBOOK = Form(
    sample=textbook.sample,
    sample_with_values=textbook.sample_with_values,
    mle_step=textbook.mle_step,
    generator_step=textbook.generator_step,
    generator_update=lambda config, state, data: textbook.generator_update(config, state, data.tokens, data.values),
    discriminator_step=textbook.discriminator_step,
    discriminator_draw=textbook.discriminator_draw,
    evaluate=textbook.evaluate,
)


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser("benchmarks.throughput", __doc__)
    parser.add_argument("--preset", nargs="+", default=["synthetic20"], metavar="NAME", help="default: synthetic20")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--negatives", type=measure.positive, default=10_000, help="sentences of the row sample-many")
    parser.add_argument(
        "--draw-size",
        type=measure.positive,
        help="sentences of mle-epoch, draw and iteration: the preset's, on a CPU at most 1,000",
    )
    parser.add_argument("--against", choices=["textbook"], help="time this form as well")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="the setting of training (a CPU has float32 alone)"
    )
    parser.add_argument("--repeats", type=measure.positive, default=20, help="timed calls at most, but at least 3")
    parser.add_argument("--budget", type=measure.seconds, default=30, help="seconds a row, unless 3 calls take longer")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/throughput.jsonl"))
    args = parser.parse_args(argv)
    on_cpu = jax.default_backend() == "cpu"
    try:
        configs = {name: preset(name) for name in args.preset}
        for name, config in configs.items():
            default = min(config.draw_size, CPU_DRAW_SIZE) if on_cpu else config.draw_size
            sizes = {"draw_size": args.draw_size or default, "precision": args.precision}
            configs[name] = dataclasses.replace(config, **sizes)
    except ConfigError as error:
        parser.error(str(error))
    parser.check_writable(args.out)
    jax.config.update("jax_enable_compilation_cache", False)  # reading it is not compiling

    size = 2048 if on_cpu else 4096
    matmul = {name: Config(precision=name).matmul_precision for name in (args.precision, "float32")}
    jax.config.update("jax_default_matmul_precision", "float32")
    peaks = {name: measure.Peak(size, told) for name, told in matmul.items()}
    facts = {**measure.facts(), "precision": args.precision, "peak_size": size}
    print(f"{measure.described(facts)}, matrix products in {args.precision}; peak: {size:,}-square products")
    for name, config in configs.items():
        print("\n" + heading(name, config, peaks, args.against), flush=True)
        state, data = inputs(config)
        for what, row in rows(config, args.negatives).items():
            if what not in args.rows:
                continue
            lines = time_row(config, row, state, data, args.against, args.repeats, args.budget, peaks)
            print(markdown(row.title, lines, args.against), flush=True)
            with open(args.out, "a", encoding="utf-8") as file:
                for line in lines:
                    file.write(json.dumps({"what": what, "title": row.title, "preset": name, **line, **facts}) + "\n")


@functools.partial(jax.jit, static_argnums=0)
def inputs(config: Config) -> tuple[GanState, Data]:
    """A new model, and the data of every row."""
    init_key, oracle_key, tokens_key, features_key, values_key, heldout_key, key = jax.random.split(
        jax.random.key(0), 7
    )
    c, batch = config, config.batch_size

    def sentences(key, num):
        return jax.random.randint(key, (num, c.length), 0, c.vocab_size)

    data = Data(
        key=key,
        tokens=sentences(tokens_key, batch),
        is_real=(jnp.arange(batch) % 2).astype(float),
        features=jax.random.uniform(features_key, (batch, c.length + 1, c.feature_dim)),
        values=jax.random.uniform(values_key, (batch, c.num_blocks)),
        heldout=sentences(heldout_key, c.num_heldout),
        oracle=None if c.is_text else oracle.init(oracle_key, c.vocab_size, c.oracle_hidden),
    )
    return training.init(c, init_key), data


def rows(config: Config, negatives: int) -> dict[str, Row]:
    """All pieces of training under `config`, by the names in `ROWS`; `negatives` are drawn by sample-many."""
    c, batch, drawn = config, config.batch_size, config.draw_size
    evaluated = dataclasses.replace(c, eval_samples=10_000)

    def sample(num):
        return Row(
            f"sample {num:,}",
            num,
            work.sample(c, num),
            lambda form, s, d: form.sample(c, s.params, d.key, num, c.negative_temperature),
            textbook=work.textbook_sample(c, num),
        )

    def draw(form, state, data):
        real_key, train_key = jax.random.split(data.key)
        if data.oracle is None:
            real = data.heldout[jax.random.randint(real_key, (drawn,), 0, len(data.heldout))]
        else:
            real = oracle.sample(data.oracle, real_key, drawn, c.length)
        return form.discriminator_draw(c, state, real, train_key)

    def evaluate(form, state, data):
        tokens, metrics = form.evaluate(evaluated, state.params, data.heldout, data.key, c.eval_temperature)
        return tokens, metrics, None if data.oracle is None else oracle.nll(data.oracle, tokens)

    def iterate(form, state, data):
        generator_key, draws_key = jax.random.split(data.key)
        keys = jax.random.split(generator_key, c.generator_steps)
        state, generator = jax.lax.scan(lambda s, k: form.generator_step(c, s, k), state, keys)
        keys = jax.random.split(draws_key, c.adversarial_draws)
        state, discriminator = jax.lax.scan(lambda s, k: draw(form, s, data._replace(key=k)), state, keys)
        return state, (generator, discriminator)

    def oracle_data(form, state, data):
        keys = jax.random.split(data.key)
        return [oracle.sample(data.oracle, key, n, c.length) for key, n in zip(keys, (c.num_train, c.num_heldout))]

    draw_work = work.discriminator_draw(c, drawn) + work.oracle(c, drawn)
    table = [
        sample(batch),
        sample(negatives),
        Row(
            f"MLE step, {batch}",
            batch,
            work.mle_step(c, batch),
            lambda form, s, d: form.mle_step(c, s, d.tokens),
            trains=True,
            textbook=work.textbook_update(c, batch),
        ),
        Row(
            f"D step, {batch}",
            batch,
            work.discriminator_step(c, batch),
            lambda form, s, d: form.discriminator_step(c, s, d.tokens, d.is_real, d.key),
            trains=True,
            textbook=work.discriminator_step(c, batch),
        ),
        Row(
            f"adversarial generator step, {batch}, N = {c.completions}",
            batch,
            work.generator_step(c),
            lambda form, s, d: form.generator_step(c, s, d.key),
            trains=True,
            textbook=work.textbook_generator_step(c),
        ),
        Row(
            "of it, sampling with completions",
            batch,
            work.sample_with_values(c, batch),
            lambda form, s, d: form.sample_with_values(c, s.params, d.key, c.train_temperature),
            textbook=work.textbook_sample_with_values(c, batch),
        ),
        Row(
            "of it, updates",
            batch,
            work.generator_update(c, batch),
            lambda form, s, d: form.generator_update(c, s, d),
            trains=True,
            textbook=work.textbook_update(c, batch),
        ),
        Row(
            f"MLE epoch, {drawn:,}",
            drawn,
            drawn // batch * work.mle_step(c, batch),
            lambda form, s, d: training.mle_epoch(c, s, jnp.resize(d.heldout, (drawn, c.length)), d.key),
            trains=True,
            ours_only=True,
        ),
        Row(
            f"D round: {drawn:,} + {drawn:,} sentences, {c.discriminator_epochs} epochs",
            2 * drawn,
            draw_work,
            draw,
            trains=True,
        ),
        Row(
            f"evaluation: {evaluated.eval_samples:,} samples, {c.num_heldout:,} held out",
            evaluated.eval_samples + c.num_heldout,
            work.evaluate(evaluated),
            evaluate,
            scores=True,
        ),
        Row(
            f"adversarial iteration: generator steps {c.generator_steps}, D rounds {c.adversarial_draws} of {drawn:,}",
            c.generator_steps * batch + c.adversarial_draws * 2 * drawn,
            c.generator_steps * work.generator_step(c) + c.adversarial_draws * draw_work,
            iterate,
            trains=True,
        ),
        Row(
            f"complete {batch} prefixes of {c.length // 2}",
            batch,
            work.sample(c, batch),
            lambda form, s, d: rollout.complete(
                c, s.params, jax.random.split(d.key, batch), d.tokens, c.length // 2, c.eval_temperature
            ),
            ours_only=True,
            scores=True,
        ),
        Row("a new model", 0, 0, lambda form, s, d: (None, training.init(c, d.key)), ours_only=True),
        Row(
            f"data of the oracle: {c.num_train:,} + {c.num_heldout:,}",
            c.num_train + c.num_heldout,
            work.oracle(c, c.num_train + c.num_heldout),
            oracle_data,
            ours_only=True,
        ),
    ]
    pieces = dict(zip(ROWS, table, strict=True))
    return {name: row for name, row in pieces.items() if name != "data" or not c.is_text}


def time_row(
    config: Config,
    row: Row,
    state: GanState,
    data: Data,
    against: str | None,
    repeats: int,
    budget: float,
    peaks: dict[str, measure.Peak],
) -> list[dict[str, Any]]:
    """What is recorded of a row: ours, and the textbook form where it is timed as well; seconds, FLOP/s."""
    forms = {"ours": OURS} | ({"textbook": TEXTBOOK} if against and not row.ours_only else {})
    told = Config().matmul_precision if row.scores else config.matmul_precision

    def run(form, state, data):
        with jax.default_matmul_precision(told):
            return row.run(form, state, data)

    programs = [measure.Program(functools.partial(run, form), state, data, row.trains) for form in forms.values()]
    times = measure.alternate([*programs, *peaks.values()], repeats, budget).T
    of_peaks = list(zip(peaks.items(), times[len(programs) :], strict=True))
    peak_flops = {name: peak.flops / float(np.median(seconds)) for (name, peak), seconds in of_peaks}
    best_flops = {name: peak.flops / float(np.min(seconds)) for (name, peak), seconds in of_peaks}
    lines = []
    for form, program, seconds in zip(forms, programs, times[: len(programs)], strict=True):
        low, mid, high = np.percentile(seconds, [10, 50, 90])
        line = {"form": form, "compile_s": program.compile_s, "s_p10": low, "s_median": mid, "s_p90": high}
        line |= {"repeats": len(seconds), "sentences": row.sentences, "sentences_per_s": row.sentences / mid}
        line |= {"tokens_per_s": row.sentences * config.length / mid}
        if form == "ours":
            flops = 2 * row.multiply_adds / mid
            line |= {"multiply_adds": row.multiply_adds, "flops": flops}
            line |= {"peak_flops": peak_flops, "peak_flops_best": best_flops}
            line |= {"share_of_peak": {name: flops / peak for name, peak in peak_flops.items()}}
        else:
            line |= {"multiply_adds": row.textbook, "times_ours": mid / lines[0]["s_median"]}
        lines.append(line)
    return lines


def heading(name: str, config: Config, peaks: dict[str, measure.Peak], against: str | None) -> str:
    """The sizes, and the head of a Markdown table."""
    c = config
    sizes = f"{name}: {c.reading} reading, V {c.vocab_size}, T {c.length}, F {c.feature_dim}, C {c.goal_horizon}, "
    sizes += f"batch {c.batch_size}, negatives {c.sample_batch} at a time"
    columns = [name, "compile s", "ms median (p10-p90)", "sentences/s", "tokens/s", "GMA", "GFLOP/s"]
    columns += [f"of {precision} peak, GFLOP/s" for precision in peaks]
    columns += ["textbook ms (p10-p90)", "textbook / ours", "by work"] if against else []
    return f"{sizes}\n\n| {' | '.join(columns)} |\n|---|{'--:|' * (len(columns) - 1)}"


def markdown(title: str, lines: list[dict[str, Any]], against: str | None) -> str:
    """One row of the table."""
    ours = lines[0]
    cells = [title, f"{ours['compile_s']:.1f}", milliseconds(ours), f"{ours['sentences_per_s']:,.0f}"]
    cells += [f"{ours['tokens_per_s']:,.0f}"]
    cells += [measure.number(ours[name] / 1e9) for name in ("multiply_adds", "flops")]
    peaks = zip(ours["share_of_peak"].values(), ours["peak_flops"].values())
    cells += [f"{share:.0%} of {measure.number(peak / 1e9)}" for share, peak in peaks]
    for line in lines[1:]:
        by_work = "" if line["multiply_adds"] is None else f"{line['multiply_adds'] / ours['multiply_adds']:.1f}"
        cells += [milliseconds(line), f"{line['times_ours']:.1f}", by_work]
    if against and len(lines) == 1:
        cells += ["", "", ""]
    return f"| {' | '.join(cells)} |"


def milliseconds(line: dict[str, Any]) -> str:
    low, mid, high = (measure.number(1e3 * line[name]) for name in ("s_p10", "s_median", "s_p90"))
    return f"{mid} ({low}-{high})"


if __name__ == "__main__":
    main()
