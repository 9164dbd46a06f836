"""The benchmarks: the hand count of work against what the programs contain, and the programs themselves."""

import dataclasses
import functools
import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from benchmarks import ablation, communication, measure, scaling, schedule, start, textbook, throughput, work
from leakgan_jax import config as config_
from leakgan_jax import rollout, training

pytestmark = pytest.mark.usefixtures("fast_compile")

TINY = {
    "vocab_size": 7,
    "length": 8,
    "filter_windows": (1, 3, 8),
    "filter_counts": (4, 3, 2),
    "discriminator_embedding": 6,
    "worker_embedding": 5,
    "worker_hidden": 3,
    "manager_hidden": 2,
    "goal_dim": 2,
    "completions": 2,
    "batch_size": 4,
    "sample_batch": 500,
    "oracle_hidden": 3,
    "num_heldout": 4,
    "adversarial_draws": 1,
    "discriminator_epochs": 1,
}


@pytest.fixture
def unchecked():
    """Staircase rollouts copy carries, keys included, before giving the copies keys of their own: see test_rollout."""
    with jax.debug_key_reuse(False):
        yield


# --- Work ------------------------------------------------------------------------------------------------------------


def products(jaxpr) -> int:
    """Multiply-adds of every matrix product and convolution in a jaxpr, those of a scan as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            out, inputs = equation.outvars[0].aval, [v.aval for v in equation.invars]
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            total += math.prod(out.shape) * math.prod(inputs[0].shape[d] for d in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            total += math.prod(out.shape) * math.prod(inputs[1].shape[:2])  # width and channels of the kernel
        inner = sum(products(sub) for sub in jaxprs_in_params(equation.params))
        assert not inner or equation.primitive.name != "while", "a loop that runs nobody knows how often"
        total += inner * equation.params.get("length", 1) if equation.primitive.name == "scan" else inner
    return total


def of_a_sentence(function, config) -> int:
    """What one sentence more adds to `function(config, state, data)`: without what is done once a call."""
    counts = []
    for batch in (4, 6):
        c = dataclasses.replace(config, batch_size=batch)
        state, data = jax.eval_shape(functools.partial(throughput.inputs, c))
        counts.append(products(jax.make_jaxpr(functools.partial(function, c))(state, data).jaxpr))
    return (counts[1] - counts[0]) / 2


def test_hand_count_is_what_the_programs_multiply(tiny_config, unchecked):
    config = tiny_config(sample_batch=500)
    one = dataclasses.replace(config, batch_size=1)
    empty = work.highway(config)  # of the empty prefix, which the programs compute for every row anew

    def run(what):
        return lambda c, s, d: throughput.rows(c, c.batch_size)[what].run(throughput.OURS, s, d)

    hand = {
        "sample": work.sample(config, 1) + 2 * empty,
        "mle": work.mle_step(config, 1) + empty,
        "discriminator": work.discriminator_step(config, 1),
        "generator": work.generator_step(one) + 2 * empty,
    }
    assert {what: of_a_sentence(run(what), config) for what in hand} == hand


def test_hand_count_of_rounds_and_of_the_textbook_form(tiny_config):
    config = tiny_config("paper", sample_batch=500, eval_samples=10, num_heldout=10, draw_size=10)
    traced = {
        "draw": lambda s, d: textbook.discriminator_draw(config, s, d.heldout, d.key),
        "textbook": lambda s, d: textbook.sample(config, s.params, d.key, 5, 1.0),
        "generator": lambda s, d: textbook.generator_step(config, s, d.key),
        "mle": lambda s, d: textbook.mle_step(config, s, d.tokens),
    }
    state, data = jax.eval_shape(functools.partial(throughput.inputs, config))
    found = {name: products(jax.make_jaxpr(function)(state, data).jaxpr) for name, function in traced.items()}
    assert found["textbook"] == work.textbook_sample(config, 5)
    assert found["generator"] == work.textbook_generator_step(config)
    assert found["mle"] == work.textbook_update(config, config.batch_size)
    rounds = work.discriminator_draw(config, 10) - work.sample(config, 10) + work.textbook_sample(config, 10)
    assert found["draw"] == rounds  # 10 + 10 sentences, 4 steps an epoch


@pytest.mark.parametrize("what", ["mle-epoch", "draw", "evaluation", "iteration", "data"])
def test_rows_have_the_work_of_what_they_run(what, unchecked):
    """But for the feature of the empty prefix, counted once and computed for every sentence: of 8 tokens, 1 in 9."""
    sizes = {"vocab_size": 60, "draw_size": 1000, "num_train": 600, "num_heldout": 600, "oracle_hidden": 20}
    config = config_.preset("synthetic20", **{**TINY, **sizes, "filter_counts": (40, 30, 20)})
    state, data = jax.eval_shape(functools.partial(throughput.inputs, config))
    row = throughput.rows(config, 6)[what]
    traced = jax.make_jaxpr(functools.partial(row.run, throughput.OURS))(state, data)
    assert 1 <= products(traced.jaxpr) / row.multiply_adds < 1.2


def test_xla_counts_the_same_where_scans_are_unrolled(monkeypatch, unchecked):
    """XLA counts elementwise work too, hence sizes at which products are most of it."""
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    sizes = {"vocab_size": 300, "length": 4, "goal_horizon": 2, "filter_windows": (1, 4), "filter_counts": (100, 60)}
    config = throughput.preset("synthetic20", **sizes, manager_hidden=40, worker_hidden=50, completions=2)

    def flops(function, batch):
        c = dataclasses.replace(config, batch_size=batch)
        state, data = jax.eval_shape(functools.partial(throughput.inputs, c))
        return jax.jit(functools.partial(function, c)).lower(state, data).cost_analysis()["flops"]

    pieces = {
        work.sample: lambda c, s, d: rollout.sample(c, s.params, jax.random.split(d.key, c.batch_size), 1.0),
        work.sample_with_values: lambda c, s, d: throughput.sample_with_values(c, s.params, d.key, 1.0),
        work.mle_step: lambda c, s, d: training.mle_step(c, s, d.tokens),
        work.discriminator_step: lambda c, s, d: training.discriminator_step(c, s, d.tokens, d.is_real, d.key),
    }
    for count, function in pieces.items():
        counted = (flops(function, 6) - flops(function, 4)) / 2
        assert 1 < counted / (2 * count(config, 1)) < 1.2, count.__name__


# --- Measuring -------------------------------------------------------------------------------------------------------


def test_a_program_that_trains_goes_on_from_its_new_state_and_leaves_the_given_one():
    given = np.float32(3.0) * np.ones(2, np.float32)
    program = measure.Program(lambda state, data: (state + data, state), jax.numpy.asarray(given), 2.0, trains=True)
    times = measure.alternate([program, program], repeats=4, budget=60.0)
    assert times.shape == (4, 2) and np.all(times > 0)
    np.testing.assert_array_equal(program._state, given + 2 * (2 + 8))  # a warm-up each, and four calls each


def test_a_call_is_timed_until_its_results_are_there(monkeypatch):
    waited, wait = [], jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda out: waited.append(out) or wait(out))
    program = measure.Program(lambda state, data: state + data, 1.0, 2.0, trains=False)
    program.seconds()
    assert waited == [3.0]


def test_the_peak_is_that_of_the_products_it_makes(monkeypatch):
    traced = []
    monkeypatch.setattr(jax, "jit", lambda f, jit=jax.jit, **rest: traced.append(f) or jit(f, **rest))
    peak = measure.Peak(16, "float32")
    x = np.ones((16, 16), np.float32)
    assert peak.flops == 2 * products(jax.make_jaxpr(traced[-1])(x, x).jaxpr)


@pytest.mark.parametrize(
    "what, told",
    [("mle", "BF16_BF16_F32"), ("evaluation", "(Precision.HIGHEST, Precision.HIGHEST)")],
)
def test_rows_are_timed_in_the_precision_that_is_told(what, told, unchecked, monkeypatch):
    texts = []

    class Untimed:
        def __init__(self, function, state, data, trains):
            texts.append(str(jax.make_jaxpr(function)(state, data)))
            self.compile_s, self.flops, self.seconds = 1.0, 1.0, lambda: 1.0

    monkeypatch.setattr(measure, "Program", Untimed)
    config = config_.preset("synthetic20", **{**TINY, "draw_size": 4, "precision": "bfloat16", "eval_samples": 4})
    state, data = jax.eval_shape(functools.partial(throughput.inputs, config))
    row = throughput.rows(config, 6)[what]
    throughput.time_row(config, row, state, data, None, 3, 0.0, {"float32": Untimed(lambda s, d: s, 1.0, 1.0, False)})
    assert set(re.findall(r"precision=(.+)", texts[1])) == {told}


def test_at_least_three_calls_are_timed_whatever_the_budget():
    program = measure.Program(lambda state, data: state + data, 1.0, 2.0, trains=False)
    assert measure.alternate([program], repeats=1, budget=0.0).shape == (3, 1)


def test_exponent_is_the_slope_of_a_power():
    assert scaling.exponent([20, 40, 80], [3 * x**1.5 for x in (20, 40, 80)]) == pytest.approx(1.5)


@pytest.mark.parametrize("variable", scaling.VARIABLES)
def test_points_change_one_size(variable):
    base = scaling.base_config("synthetic40")
    assert base.length == 20 and max(base.filter_windows) == 20
    curve = scaling.points(base, variable)
    assert len({point.value for point in curve}) == 3
    assert any(point.config == base for point in curve)
    for point in curve:
        fields = dataclasses.asdict(point.config).items() - dataclasses.asdict(base).items()
        assert len(fields) <= 1


@pytest.mark.parametrize("what", throughput.ROWS)
def test_every_row_runs_in_both_forms_and_trains_what_it_says(what, unchecked):
    config = config_.preset("synthetic20", **{**TINY, "draw_size": 4})
    state, data = jax.eval_shape(functools.partial(throughput.inputs, config))
    row = throughput.rows(config, 6)[what]
    assert (row.sentences > 0 and row.multiply_adds > 0) == (what != "init")
    for form in (throughput.OURS, *[throughput.TEXTBOOK] * (not row.ours_only)):
        out = jax.eval_shape(functools.partial(row.run, form), state, data)
        same = jax.tree.structure(out[0]) == jax.tree.structure(state)
        assert same == row.trains


# --- Variants: an ablation of something else would prove nothing -----------------------------------------------------


def test_forms_of_a_layer_compute_the_same(tiny_config, tiny_state):
    config = tiny_config()
    params = tiny_state(config).params
    pooled, hidden, goal = (ablation.random(5, n) for n in (config.feature_dim, config.worker_hidden, config.goal_dim))
    layers = [
        (ablation.highway_forms(config, params.discriminator), [pooled]),
        (ablation.output_forms(config, params.worker), [hidden, goal]),
    ]
    for forms, inputs in layers:
        ours, *others = [jax.jit(form.apply)(form.weights, *inputs) for form in forms.values()]
        assert others and np.std(ours) > 0.1
        for other in others:
            np.testing.assert_allclose(other, ours, rtol=1e-5, atol=1e-5)


def test_forms_of_the_streaming_update_read_the_same_features(tiny_config, tiny_state, sentences):
    config = tiny_config()
    steps = sentences(config, False).T, np.arange(config.length)
    read = []
    for step, known, first in ablation.stream_forms(config, tiny_state(config).params.discriminator, 5).values():
        scan = jax.jit(
            lambda known, first, step=step: jax.lax.scan(lambda s, x: 2 * (step(known, s, x),), first, steps)[1]
        )
        read.append(scan(known, first)[1])
    ours, ring = read
    assert np.std(ours) > 0.1
    np.testing.assert_allclose(ring, ours, rtol=1e-5, atol=1e-5)


def test_forms_of_the_convolutions_have_the_same_gradient(tiny_config, tiny_state, monkeypatch):
    monkeypatch.setattr(ablation, "RATE", 1.0)  # a step down takes the gradient itself away
    config = tiny_config()
    state, is_real = tiny_state(config), np.array([1.0, 0.0, 1.0, 1.0, 0.0], np.float32)
    data = throughput.Data(jax.random.key(0), None, is_real, None, None, None, None)
    comparison = next(ablation.convolutions(config, state, data))
    forms = ablation.feature_forms(config, state.params.discriminator)  # besides them there is D's own step
    ours, *others = [jax.jit(v.run)(v.state, v.data)[0] for v in comparison.variants if v.name in forms]
    assert len(others) == 2
    for other in others:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), other, ours)


@pytest.mark.parametrize("part", sorted(ablation.PARTS.keys() - {"unroll"}))  # slow; the next test has a part of it
def test_every_variant_can_be_traced_and_trains_what_it_says(part, unchecked):
    config = config_.preset("synthetic20", **{**TINY, "draw_size": 300, "sample_batch": 5})
    titles = []

    def trace(state, data):
        for title, variants, steps in ablation.PARTS[part](config, state, data):
            titles.append(title)
            assert steps > 0 and 1 < len(variants) == len({variant.name for variant in variants})
            for variant in variants:
                out = jax.eval_shape(variant.run, variant.state, variant.data)
                assert not variant.trains or jax.tree.structure(out[0]) == jax.tree.structure(variant.state)

    jax.eval_shape(trace, *jax.eval_shape(functools.partial(throughput.inputs, config)))
    assert 0 < len(set(titles)) == len(titles)


def test_scans_are_unrolled_while_they_are_traced_only(tiny_config):
    config, scan = tiny_config(num_heldout=4), jax.lax.scan
    state, data = jax.eval_shape(functools.partial(throughput.inputs, config))
    for variant in next(ablation.unroll(config, state, data)).variants:
        jaxpr = str(jax.make_jaxpr(variant.run)(state, data))
        assert jax.lax.scan is scan
        assert f"{variant.name.replace(' ', '=')}\n" in jaxpr


# --- The commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_preset(monkeypatch):
    """`tiny`, a preset that compiles in no time."""
    monkeypatch.setitem(config_.PRESETS, "tiny", TINY)
    monkeypatch.setattr(scaling, "LENGTHS", (8, 16, 32))


def test_throughput_prints_a_table_and_appends_lines(tiny_preset, unchecked, tmp_path, capsys):
    out = tmp_path / "new" / "throughput.jsonl"
    arguments = "--preset tiny --rows sample init --against textbook --repeats 3 --out"
    throughput.main([*arguments.split(), str(out)])
    ours, slow, init = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["what"], line["form"]) for line in (ours, slow)] == [("sample", "ours"), ("sample", "textbook")]
    assert (init["what"], init["form"]) == ("init", "ours") and init["compile_s"] > 0
    assert ours["multiply_adds"] == work.sample(config_.preset("tiny"), 4)
    rate = 2 * ours["multiply_adds"] / ours["s_median"]
    assert ours["share_of_peak"]["float32"] == pytest.approx(rate / ours["peak_flops"]["float32"])
    assert 1e9 < ours["peak_flops"]["float32"] < 1e16
    assert ours["tokens_per_s"] == pytest.approx(8 * 4 / ours["s_median"])
    assert slow["times_ours"] == pytest.approx(slow["s_median"] / ours["s_median"])
    assert ours["s_p10"] <= ours["s_median"] <= ours["s_p90"] and ours["compile_s"] > 0 and ours["repeats"] == 3
    assert {"device", "jax", "commit", "date", "precision"} <= ours.keys()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 4 and len({line.count("|") for line in table}) == 1


def test_ablation_prints_a_table_a_comparison_and_appends_lines(tiny_preset, monkeypatch, tmp_path, capsys):
    peak = measure.Peak(64, "float32")
    monkeypatch.setattr(measure, "Peak", lambda size, precision: peak)
    out = tmp_path / "ablation.jsonl"
    ablation.main(["--preset", "tiny", "--parts", "highway", "--repeats", "3", "--out", str(out)])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["title"] for line in lines] == 2 * ["highway layer, 4 rows"] + 2 * ["highway layer, 500 rows"]
    assert [line["variant"] for line in lines] == 2 * ["one product", "two products"]
    for first, second in (lines[:2], lines[2:]):
        assert first["times_first"] == 1
        assert second["times_first"] == pytest.approx(second["s_median"] / first["s_median"])
    assert lines[0]["multiply_adds"] == 4 * work.highway(config_.preset("tiny"))
    for line in lines:
        flops = 2 * line["multiply_adds"] / line["s_median"]
        assert line["share_of_peak"] == pytest.approx(flops / line["peak_flops"])
        assert line["s_p10"] <= line["s_median"] <= line["s_p90"] and line["steps"] == 8 and line["repeats"] == 3
        assert line["part"] == "highway" and line["compile_s"] > 0 and line["memory"] > 0
        assert {"device", "jax", "commit", "date", "precision", "preset"} <= line.keys()
    tables = [text.splitlines() for text in capsys.readouterr().out.split("\n\n") if text.startswith("|")]
    assert [len(table) for table in tables] == [4, 4]
    assert {line.count("|") for table in tables for line in table} == {7}


def test_scaling_writes_its_three_files(tiny_preset, monkeypatch, tmp_path, capsys):
    def made_up(piece, curve, repeats, budget):
        sizes = [point.config.length * point.config.batch_size * point.seeds for point in curve]
        return [scaling.Cost(0.9 * size, size, 1.1 * size, 1.0, 3, 10**6 * size, 1000 * size) for size in sizes]

    monkeypatch.setattr(scaling, "measured", made_up)
    scaling.main(["--preset", "tiny", "--variables", "T", "S", "--out", str(tmp_path)])
    lines = [json.loads(line) for line in (tmp_path / "scaling.jsonl").read_text().splitlines()]
    measured = [(variable, n) for variable, values in (("T", (8, 16, 32)), ("S", (1, 2, 4))) for n in values]
    assert list(dict.fromkeys((line["variable"], line["value"]) for line in lines)) == measured
    assert {line["piece"] for line in lines} == set(scaling.PIECES)
    for name in ("scaling_T.png", "scaling_S.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "scaling.md").read_text()
    assert text in capsys.readouterr().out
    assert "| MLE step | 32,000 | 64,000 | 128,000 | 1 | 1.00 | 1.00 | as the work |" in text
    assert "| MLE step | 32 | 64 | 128 | 1 | 1.00 | as it should |" in text


def test_a_whole_schedule_is_timed_and_scored(monkeypatch, unchecked, tmp_path, capsys):
    sizes = {
        "num_train": 8,
        "draw_size": 4,
        "eval_samples": 4,
        "pretrain_rounds": 1,
        "pretrain_draws": 1,
        "mle_epochs": 1,
    }
    monkeypatch.setitem(config_.PRESETS, "tiny", {**TINY, **sizes})
    out = tmp_path / "schedule.jsonl"
    schedule.main(["--preset", "tiny", "--iterations", "1", "--out", str(out)])
    (line,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert set(line["seconds_of_units"]) == {"discriminator", "mle, evaluated", "generator", "discriminator, evaluated"}
    assert 0 < sum(line["seconds_of_units"].values()) <= line["seconds"] and line["seeds"] == 1
    assert len(line["nll_oracle"]) == len(line["nll_gen"]) == 1 and line["precision"] == "float32"
    printed = capsys.readouterr().out
    assert "| LeakGAN |" in printed and "s in all; units:" in printed


def test_seeds_are_models_sampled_together():
    config = config_.preset("synthetic20", **TINY)
    (both,) = scaling.measured("sample", [scaling.Point(2, config, 2)], repeats=3, budget=0.0)
    assert both.multiply_adds == 2 * work.sample(config, 4)
    assert both.memory > 0 and both.repeats == 3 and 0 < both.s_p10 <= both.s_median <= both.s_p90


@pytest.mark.parametrize(
    "command, arguments",
    [
        (throughput, ["--preset", "synthetic2"]),
        (throughput, ["--rows", "sampling"]),
        (throughput, ["--repeats", "0"]),
        (throughput, ["--budget", "nan"]),
        (throughput, ["--against", "seqgan"]),
        (scaling, ["--preset", "synthetic2"]),
        (scaling, ["--variables", "K"]),
        (scaling, ["--out", __file__]),
        (start, ["--preset", "synthetic2"]),
        (schedule, ["--preset", "coco"]),
        (ablation, ["--preset", "synthetic2"]),
        (ablation, ["--parts", "stream"]),
    ],
    ids=lambda x: x.__name__ if hasattr(x, "__name__") else " ".join(x),
)
def test_bad_input_ends_in_one_line_and_status_2(command, arguments, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and arguments[-1] in error


# --- Communication ---------------------------------------------------------------------------------------------------


def test_communication_counts_the_parameters_and_work_that_there_are(tiny_config):
    config = tiny_config(batch_size=4, draw_size=10, adversarial_draws=3, discriminator_epochs=2, generator_steps=5)
    sizes = communication.parameters(config)
    drawn = training.init(config, jax.random.key(0)).params
    assert sizes == {name: sum(map(np.size, jax.tree.leaves(net))) for name, net in drawn._asdict().items()}
    mle, generator, judge, iteration = communication.kinds(config)
    assert mle.sent == generator.sent == sizes["manager"] + sizes["worker"] and judge.sent == sizes["discriminator"]
    assert generator.computed == work.generator_step(config) and judge.computed == work.discriminator_step(config, 4)
    updates = 3 * 2 * 5  # draws, epochs, whole batches of 4 in 10 negatives and 10 positives
    assert iteration.sent == 5 * generator.sent + updates * judge.sent and f"{updates} D steps" in iteration.name
    assert iteration.computed == 5 * generator.computed + 3 * work.sample(config, 10) + updates * judge.computed
    link = communication.Link("", 8, 7.0)
    assert math.isclose(communication.sending(judge, link), 1e3 * 1.75 * 4 * judge.sent / 7e9)
    assert math.isclose(communication.computing(judge, 1e9), 1e3 * 2 * judge.computed / 1e9)


def test_the_table_of_the_scaling_page_is_what_the_program_prints(capsys):
    communication.main([])
    printed = capsys.readouterr().out
    assert printed in (Path(__file__).parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
    communication.main(["--tflops", "40"])
    halved = capsys.readouterr().out
    assert "Assumed: 20 TFLOP/s" in printed and "Assumed: 40 TFLOP/s" in halved
    assert "| D step | 28.2 | 2,594 | 0.259 |" in printed and "| D step | 28.2 | 2,594 | 0.13 |" in halved
    with pytest.raises(SystemExit, match="2"):
        communication.main(["--tflops", "0"])
