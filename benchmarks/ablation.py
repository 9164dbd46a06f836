"""Times the choices that make this library fast, kept and rejected, each beside what it was chosen over.

    python -m benchmarks.ablation
    python -m benchmarks.ablation --preset coco --parts width remat

Random parameters and sentences, so no data is needed. The variants of a comparison are compiled apart, warmed up, and
called in turn in one process. Prints a Markdown table a comparison, and appends one JSON line a variant to `--out`.
In the tables:

- compile s is tracing and compilation;
- ms are of one step: a call's time over the steps that it makes one after the other;
- / first is the ratio to the first variant, the library's own form (of `pieces`, the step as a whole);
- planned MB are the compiler's plan for a call: arguments, results and temporaries;
- of peak is the rate of multiply-adds in matrix products, as many as our form needs (benchmarks/work.py), over that
  of large float32 products, called in turn with the variants.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, textbook, throughput, work
from leakgan_jax import ConfigError, losses, preset, rollout, sampling
from leakgan_jax.config import Config
from leakgan_jax.models import discriminator, manager, worker
from leakgan_jax.types import Array, GanState

UNROLLED = (1, 2, 4)
WIDTHS = (64, 250, 500, 1000, 2000, 5000, 10_000)
UPDATES = 4  # of D in one scan
RATE = 1e-3  # of their descent
LINK = 1e-6  # of a step's result goes into the next one's input, so that nothing is computed once for all steps


class Variant(NamedTuple):
    """One way to compute something, as `measure.Program` takes it."""

    name: str
    run: Callable[[Any, Any], Any]
    state: Any
    data: Any
    multiply_adds: int = 0  # of a step
    trains: bool = False


class Comparison(NamedTuple):
    """Variants to be called in turn; the others are compared with the first."""

    title: str
    variants: list[Variant]
    steps: int = 1  # that a call makes


class Form(NamedTuple):
    """One way to compute a layer."""

    weights: Any  # stored as it wants them
    apply: Callable[..., Array]  # weights and inputs -> outputs


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser("benchmarks.ablation", __doc__)
    parser.add_argument("--preset", default="synthetic20", metavar="NAME", help="default: synthetic20")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--negatives", type=measure.positive, default=2_000, help="sentences of the part width")
    parser.add_argument("--repeats", type=measure.positive, default=9, help="timed calls at most, but at least 3")
    parser.add_argument("--budget", type=measure.seconds, default=30, help="seconds a table, or 3 calls of each")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ablation.jsonl"))
    args = parser.parse_args(argv)
    try:
        config = dataclasses.replace(preset(args.preset), draw_size=args.negatives)
    except ConfigError as error:
        parser.error(str(error))
    parser.check_writable(args.out)
    jax.config.update("jax_enable_compilation_cache", False)  # reading it is not compiling
    jax.config.update("jax_default_matmul_precision", "float32")
    size = 2048 if jax.default_backend() == "cpu" else 4096
    peak = measure.Peak(size, "float32")
    facts = {"preset": args.preset, **measure.facts(), "precision": "float32", "peak_size": size}
    print(f"{args.preset}, {measure.described(facts)}, matrix products in float32; peak: {size:,}-square products")
    state, data = throughput.inputs(config)
    for part in args.parts:
        print(f"\n## {part}\n\n{PARTS[part].__doc__}", flush=True)
        for comparison in PARTS[part](config, state, data):
            lines = compare(comparison, peak, args.repeats, args.budget)
            print("\n" + markdown(comparison.title, lines), flush=True)
            with open(args.out, "a", encoding="utf-8") as file:
                for line in lines:
                    file.write(json.dumps({"part": part, "title": comparison.title, **line, **facts}) + "\n")


# --- The parts: a docstring is printed above its tables --------------------------------------------------------------


def pieces(c: Config, state: GanState, data: throughput.Data) -> Iterator[Comparison]:
    """Each piece of a sampling step alone; / first is its share of the step as a whole."""
    params, steps = state.params, jnp.arange(c.length)
    d, m, w = params.discriminator, params.manager, params.worker
    opened = jax.jit(functools.partial(discriminator.open_stream, c))(d)
    logits = linked(functools.partial(worker.logits, c))
    logsumexp = of_logits(lambda keys, logits, t: jax.nn.logsumexp(logits, axis=1))

    def sample(params, keys):
        return rollout.sample(c, params, keys, 1.0)[:2]

    def read(opened, carry, x):
        return discriminator.stream(c, opened, carry[0], *x)

    def product(opened, _, token):
        return jnp.max(opened.delta[token] @ opened.kernel, axis=1)

    for rows in row_counts(c):
        pooled, hidden, goal = (random(rows, n) for n in (c.feature_dim, c.worker_hidden, c.goal_dim))
        known, link = (jax.random.split(data.key, rows), random(rows, c.vocab_size)), jnp.zeros(rows)
        tokens = jax.random.randint(data.key, (c.length, rows), 0, c.vocab_size)
        empty, none = discriminator.start_stream(c, opened, rows), manager.initial_state(c, rows)
        alone = [  # with what it knows, its first carry and inputs, and multiply-adds a row
            ("highway layer", lambda d, x, _: discriminator.highway(c, d, x), d, (pooled, steps), work.highway(c)),
            ("Worker's output, its maximum", logits, (w, goal), (hidden, steps), work.worker_output(c)),
            ("streaming update", read, opened, (empty, (tokens, steps)), work.stream(c)),
            ("of it, the product, its maximum", product, opened, (link, tokens), work.stream(c)),
            ("draw", of_logits(DRAWS["ours"]), known, (link, steps), 0),
            ("logsumexp", logsumexp, known, (link, steps), 0),
            ("Manager", lambda m, carry, _: manager.step(c, m, *carry), m, ((none, pooled), steps), 0),
            ("Worker's LSTM", functools.partial(worker.step, c), w, (worker.initial_state(c, rows), tokens), 0),
        ]
        whole = Variant("the step as a whole", sample, params, known[0], rows * work.sampled_token(c))
        variants = [Variant(name, scan(step), *arrays, rows * count) for name, step, *arrays, count in alone]
        yield Comparison(f"a sampling step of {rows:,} rows", [whole, *variants], c.length)


def unroll(c: Config, state: GanState, data: throughput.Data) -> Iterator[Comparison]:
    """Steps in one trip of the loop of every scan; ours is 1."""

    def run(steps, row, state, data):
        with mock.patch.object(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=steps)):  # while it is traced
            return row.run(throughput.OURS, state, data)

    rows = throughput.rows(c, negatives=1)
    for row in (rows[what] for what in ("sample", "mle", "generator")):
        runs = {f"unroll {steps}": functools.partial(run, steps, row) for steps in UNROLLED}
        variants = [Variant(name, run, state, data, row.multiply_adds, row.trains) for name, run in runs.items()]
        yield Comparison(row.title, variants)


def width(c: Config, state: GanState, data: throughput.Data) -> Iterator[Comparison]:
    """How many sentences are drawn at a time where many are; the preset's `sample_batch` first."""
    num, variants = c.draw_size, []
    for batch in dict.fromkeys([min(c.sample_batch, num), *(w for w in WIDTHS if w <= num)]):
        row = throughput.rows(dataclasses.replace(c, sample_batch=batch), num)["sample-many"]
        drawn = -(-num // batch) * batch  # whole batches
        run = functools.partial(row.run, throughput.OURS)
        variants.append(Variant(f"{batch:,} at a time", run, state, data, work.sample(c, drawn)))
    yield Comparison(f"sample {num:,}", variants)


def draw(c: Config, state: GanState, data: throughput.Data) -> Iterator[Comparison]:
    """One token a row from logits: ours takes one random number a row, `jax.random.categorical` one a word."""
    for rows in row_counts(c):
        known, link = (jax.random.split(data.key, rows), random(rows, c.vocab_size)), jnp.zeros(rows)
        steps = link, jnp.arange(c.length)
        variants = [Variant(name, scan(of_logits(form)), known, steps) for name, form in DRAWS.items()]
        yield Comparison(f"draw from [{rows:,}, {c.vocab_size:,}]", variants, c.length)


def highway(c: Config, state: GanState, data: throughput.Data) -> Iterator[Comparison]:
    """The highway layer, transform and gate as one product or as two, and its maximum."""
    forms = highway_forms(c, state.params.discriminator)
    for rows in (min(row_counts(c)), max(row_counts(c))):
        count, pooled = rows * work.highway(c), random(rows, c.feature_dim)
        yield layer(c, f"highway layer, {rows:,} rows", forms, count, pooled)


def output(c: Config, state: GanState, data: throughput.Data) -> Iterator[Comparison]:
    """The Worker's logits, `O w` with `O = W h + b` (Eq. 5-6), by the order of products, and their maximum."""
    forms = output_forms(c, state.params.worker)
    for rows in (min(row_counts(c)), max(row_counts(c))):
        count, hidden, goal = rows * work.worker_output(c), random(rows, c.worker_hidden), random(rows, c.goal_dim)
        yield layer(c, f"Worker's output, {rows:,} rows", forms, count, hidden, goal)


def streaming(c: Config, state: GanState, data: throughput.Data) -> Iterator[Comparison]:
    """The streaming update: windows that move along by one place, or stay where they are in a ring."""
    for rows in (min(row_counts(c)), max(row_counts(c))):
        tokens = jax.random.randint(data.key, (c.length, rows), 0, c.vocab_size), jnp.arange(c.length)
        variants = [
            Variant(name, scan(step), opened, (first, tokens), rows * work.stream(c))
            for name, (step, opened, first) in stream_forms(c, state.params.discriminator, rows).items()
        ]
        yield Comparison(f"streaming update of {rows:,} rows", variants, c.length)


def convolutions(c: Config, state: GanState, data: throughput.Data) -> Iterator[Comparison]:
    """The gradient of D's loss, and a plain step down it, with each form of D's convolutions; and D's own step."""

    def step(apply, d, batch):
        def loss(d, tokens, is_real):
            return losses.discriminator(discriminator.logit(c, d, apply(d, tokens)), is_real)

        return jax.tree.map(lambda x, g: x - RATE * g, d, jax.grad(loss)(d, *batch)), None

    title, count = f"gradient of D, {c.batch_size} sentences", work.discriminator_step(c, c.batch_size)
    tokens = jax.random.randint(data.key, (UPDATES, c.batch_size, c.length), 0, c.vocab_size)
    one, batches = (tokens[0], data.is_real), (tokens, jnp.tile(data.is_real, (UPDATES, 1)))
    alone, within = [], []
    for name, form in feature_forms(c, state.params.discriminator).items():
        descend = functools.partial(step, form.apply)
        descents = functools.partial(jax.lax.scan, descend)
        alone.append(Variant(name, descend, form.weights, one, count, trains=True))
        within.append(Variant(name, descents, form.weights, batches, count, trains=True))
    own = throughput.rows(c, negatives=1)["discriminator"]
    alone.append(
        Variant("D's step: ours, Adam", functools.partial(own.run, throughput.OURS), state, data, count, trains=True)
    )
    yield Comparison(title, alone)
    yield Comparison(f"{title}, in a scan of {UPDATES}", within, UPDATES)


def remat(c: Config, state: GanState, data: throughput.Data) -> Iterator[Comparison]:
    """The updates of the adversarial step, by what is kept for the gradient; the rest is computed again."""

    def run(keep, state, data):
        def score(config, params, tokens, temperature):
            force = keep(lambda params: rollout.teacher_force(config, params, tokens, data.features, temperature))
            return *force(params), data.features

        return textbook.generator_update(c, state, data.tokens, data.values, score)

    products = functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
    ways = {"all kept": lambda function: function, "products kept": products, "nothing kept": jax.checkpoint}
    count = work.generator_update(c, c.batch_size)
    runs = {name: functools.partial(run, keep) for name, keep in ways.items()}
    variants = [Variant(name, run, state, data, count, trains=True) for name, run in runs.items()]
    yield Comparison(f"updates, {c.batch_size} sentences", variants)


def precision(c: Config, state: GanState, data: throughput.Data) -> Iterator[Comparison]:
    """The large products of a sampling step, and their maxima, by setting and with arrays of bfloat16."""

    def multiply(told, kernel, x):
        return jnp.matmul(x.astype(kernel.dtype), kernel, precision=told, preferred_element_type=jnp.float32)

    settings = {name: Config(precision=name).matmul_precision for name in throughput.PRECISIONS}
    shapes = {
        "highway": (c.feature_dim, 2 * c.feature_dim),
        "Worker's output": (c.worker_hidden * c.goal_dim, c.vocab_size),
        "streaming update": (c.discriminator_embedding, work.stream(c) // c.discriminator_embedding),
    }
    for rows in (min(row_counts(c)), max(row_counts(c))):
        for title, (inner, outer) in shapes.items():
            kernel = random(inner, outer)
            forms = {name: Form(kernel, functools.partial(multiply, told)) for name, told in settings.items()}
            default = functools.partial(multiply, jax.lax.Precision.DEFAULT)
            forms["bfloat16 arrays, float32 result"] = Form(kernel.astype(jnp.bfloat16), default)
            title = f"{title}, [{rows:,}, {inner:,}] [{inner:,}, {outer:,}]"
            yield layer(c, title, forms, rows * inner * outer, random(rows, inner))


PARTS = {
    f.__name__: f for f in (pieces, unroll, width, draw, highway, output, streaming, convolutions, remat, precision)
}


# --- Forms, ours first: a test holds the others to its values --------------------------------------------------------


def highway_forms(c: Config, d: Any) -> dict[str, Form]:
    """Pooled convolutions `[R, F]` -> `[R, F]`."""

    def two(halves, x):
        transform, gate = (x @ kernel + bias for kernel, bias in halves)
        gate = jax.nn.sigmoid(gate)
        return gate * jax.nn.relu(transform) + (1 - gate) * x

    halves = list(zip(jnp.split(d["highway_kernel"], 2, axis=1), jnp.split(d["highway_bias"], 2)))
    return {"one product": Form(d, functools.partial(discriminator.highway, c)), "two products": Form(halves, two)}


def output_forms(c: Config, w: Any) -> dict[str, Form]:
    """The Worker's `[R, H]` and goal embeddings `[R, k]` -> logits `[R, V]`."""

    def matrix_first(order, weights, hidden, goal):
        kernel, bias = weights
        matrix = jnp.einsum(f"rh,h{order}->r{order}", hidden, kernel) + bias
        return jnp.einsum(f"r{order},rk->rv", matrix, goal)

    kernel, bias = w["output_kernel"], w["output_bias"]
    return {
        "h (x) w first: [R, H k] [H k, V]": Form(w, functools.partial(worker.logits, c)),
        "O first: [R, V, k]": Form((kernel.swapaxes(1, 2), bias.T), functools.partial(matrix_first, "vk")),
        "O first: [R, k, V]": Form((kernel, bias), functools.partial(matrix_first, "kv")),
    }


def stream_forms(c: Config, d: Any, rows: int) -> dict[str, tuple[Callable, Any, Any]]:
    """For each form a step `(known, (state, pooled), (token, t)) -> (state, pooled)`, what it knows and starts from."""
    opened = jax.jit(functools.partial(discriminator.open_stream, c))(d)
    filters = list(zip(c.filter_windows, c.filter_counts, strict=True))

    def move(opened, carry, x):
        return discriminator.stream(c, opened, carry[0], *x)

    def ring(known, carry, x):  # slot `s` has the window that began at the last `t` with `t % w == s`
        (delta, kernels, empty), (token, t), begun, best, maxima = known, x, [], [], []
        for (w, n), kernel, padded, old, full in zip(filters, kernels, empty, *carry[0], strict=True):
            began = jnp.where(t <= c.length - w, padded, -jnp.inf)
            now = jax.lax.dynamic_update_slice_in_dim(old, jnp.broadcast_to(began, (rows, 1, n)), t % w, axis=1)
            places = jax.lax.dynamic_slice_in_dim(kernel, (-t - 1) % w, w, axis=1)  # slot `s` sees place (t - s) % w
            now += (delta[token] @ places.reshape(-1, w * n)).reshape(rows, w, n)
            full = jnp.maximum(full, jax.lax.dynamic_index_in_dim(now, (t + 1) % w, axis=1, keepdims=False))
            yet_to_begin = jnp.where(t < c.length - w, padded, -jnp.inf)
            maxima.append(jnp.maximum(jnp.maximum(full, jnp.max(now, axis=1)), yet_to_begin))
            begun.append(now)
            best.append(full)
        return (begun, best), jax.nn.relu(jnp.concatenate(maxima, axis=-1))

    state, pooled = discriminator.start_stream(c, opened, rows)
    twice = [jnp.tile(d[f"conv_{w}_kernel"][::-1].swapaxes(0, 1), (1, 2, 1)) for w, _ in filters]  # [E, 2 w, n]
    slots = [jnp.full((rows, w, n), -jnp.inf) for w, n in filters]
    best = [jnp.full((rows, n), -jnp.inf) for _, n in filters]
    return {
        "windows move": (move, opened, (state, pooled)),
        "windows stay, in a ring": (ring, (opened.delta, twice, opened.padded), ((slots, best), pooled)),
    }


def feature_forms(c: Config, d: Any) -> dict[str, Form]:
    """Sentences `[B, T]` -> leaked features `[B, F]`; all but ours take ReLU before the maximum."""
    product, convolve = textbook.convolve_as_product, textbook.convolve
    return {
        "windows times a matrix": Form(d, lambda d, x: discriminator.highway(c, d, discriminator.pooled(c, d, x))),
        "the same, ReLU first": Form(d, functools.partial(textbook.feature, c, convolve=product)),
        "lax.conv, ReLU first": Form(d, functools.partial(textbook.feature, c, convolve=convolve)),
    }


def categorical_rows(keys: Array, logits: Array, t: Array) -> Array:
    return jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, t), row))(keys, logits)


DRAWS = {  # one distribution, other random numbers
    "ours": lambda keys, logits, t: sampling.draw(logits, sampling.row_uniform(keys, t)),
    "categorical, a key a row": categorical_rows,
    "categorical, one key": lambda keys, logits, t: jax.random.categorical(jax.random.fold_in(keys[0], t), logits),
}


# --- What the parts share --------------------------------------------------------------------------------------------


def row_counts(c: Config) -> tuple[int, int, int]:
    """Rows of a sampling step: a batch, negatives drawn at a time, a batch with all its completions."""
    return c.batch_size, c.sample_batch, c.batch_size * (1 + c.completions * (c.num_blocks - 1))


def random(*shape: int) -> Array:
    """What no cost depends on."""
    return jax.random.normal(jax.random.key(0), shape)


def scan(step: Callable) -> Callable:
    """A program of `step(known, carry, x) -> carry`, again and again; its data are the first carry and all `x`."""

    def run(known, data):
        return jax.lax.scan(lambda carry, x: (step(known, carry, x), None), *data)[0]

    return run


def linked(apply: Callable) -> Callable:
    """A step that adds to its input, `[R, n]`, a little of the maximum of what `apply` makes of it, `[R, m]`."""

    def step(known, x, _):
        weights, *rest = known
        return x + LINK * jnp.max(apply(weights, x, *rest), axis=1, keepdims=True)

    return step


def of_logits(function: Callable) -> Callable:
    """A step of `function(keys, logits, t)`, one number a row; a little of it is added to the next step's logits."""

    def step(known, link, t):
        keys, logits = known
        return LINK * function(keys, logits + link[:, None], t)

    return step


def layer(c: Config, title: str, forms: dict[str, Form], count: int, x: Array, *rest: Array) -> Comparison:
    """Forms of a layer, one step for each token of a sentence; `count` multiply-adds a step."""
    runs = {name: (scan(linked(form.apply)), (form.weights, *rest)) for name, form in forms.items()}
    data = x, jnp.arange(c.length)
    return Comparison(title, [Variant(name, *run, data, count) for name, run in runs.items()], c.length)


def compare(comparison: Comparison, peak: measure.Peak, repeats: int, budget: float) -> list[dict[str, Any]]:
    """What is recorded of each variant; seconds and multiply-adds are of a step."""
    programs = [measure.Program(v.run, v.state, v.data, v.trains) for v in comparison.variants]
    *times, of_peak = measure.alternate([*programs, peak], repeats, budget).T
    peak_flops = peak.flops / float(np.median(of_peak))
    lines: list[dict[str, Any]] = []
    for variant, program, seconds in zip(comparison.variants, programs, times, strict=True):
        low, mid, high = np.percentile(seconds, [10, 50, 90]) / comparison.steps
        line = {"variant": variant.name, "compile_s": program.compile_s, "s_p10": low, "s_median": mid, "s_p90": high}
        line |= {"times_first": mid / lines[0]["s_median"] if lines else 1.0, "repeats": len(seconds)}
        line |= {"steps": comparison.steps, "memory": program.memory(), "peak_flops": peak_flops}
        if variant.multiply_adds:
            share = 2 * variant.multiply_adds / mid / peak_flops
            line |= {"multiply_adds": variant.multiply_adds, "share_of_peak": share}
        lines.append(line)
    return lines


def markdown(title: str, lines: list[dict[str, Any]]) -> str:
    """The table of one comparison."""
    peak = f"of peak, {measure.number(lines[0]['peak_flops'] / 1e9)} GFLOP/s"
    columns = [title, "compile s", "ms median (p10-p90)", "/ first", "planned MB", peak]
    table = [f"| {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 1)}"]
    for line in lines:
        cells = [line["variant"], f"{line['compile_s']:.1f}", throughput.milliseconds(line)]
        cells += [f"{line['times_first']:.2f}", "" if line["memory"] is None else measure.number(line["memory"] / 1e6)]
        cells += [f"{line['share_of_peak']:.0%}" if "share_of_peak" in line else ""]
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table)


if __name__ == "__main__":
    main()
