"""The baselines: generator, values, updates and ranker against loops and enumeration; whole runs by command line.

As in `test_losses_and_training`, gradients are read off the first moments of a fresh Adam.
"""

import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from test_losses_and_training import assert_gradient_matches_finite_differences, differs, gradient, without_key_check
from test_rollout import row_keys, uniforms
from test_run import CORPUS, assert_same_run, leakgan, metrics

from leakgan_jax import losses, rollout, run, rundir, training
from leakgan_jax.baselines import rankgan
from leakgan_jax.config import TITLES, ConfigError, preset
from leakgan_jax.models import discriminator, language_model
from leakgan_jax.types import BaselineState

pytestmark = pytest.mark.usefixtures("fast_compile", "trap_nans")
assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
BASELINES = [model for model in TITLES if model != "leakgan"]
ADVERSARIAL = {
    "seqgan": {"model": "seqgan"},
    "rescale": {"model": "seqgan", "rescaling": "rank"},
    "rankgan": {"model": "rankgan", "credit": "sentence", "advantage": "centred"},
}
KEY = 2  # some sentences of the adversarial step that the tests share end early

sample = jax.jit(rollout.sample, static_argnums=0)
complete = jax.jit(rollout.complete, static_argnums=0, static_argnames="greedy")
log_probs = jax.jit(rollout.log_probs, static_argnums=0)
ranker_step = jax.jit(rankgan.ranker_step, static_argnums=0)


@without_key_check
@functools.partial(jax.jit, static_argnums=0)
def train_step(config, state, real, key):
    return training.model(config).train_step(config, state, real, key)


@without_key_check
@functools.partial(jax.jit, static_argnums=0)
def sample_with_values(config, params, keys, temperature):
    def judge(state):
        features = discriminator.pooled(config, params.discriminator, state.tokens)
        features = discriminator.highway(config, params.discriminator, features)
        return jax.nn.sigmoid(discriminator.logit(config, params.discriminator, features))

    return rollout.sample_with_values(config, params, keys, temperature, judge)


@pytest.fixture(scope="module")
def config_of(tiny_config):
    """`config_of(model, end, **overrides) -> Config`, by default with an end token."""
    sizes = {"length": 6, "filter_windows": (1, 2, 6), "filter_counts": (4, 3, 2), "goal_horizon": 1}
    sizes |= {"references": 3, "rank_gamma": 2.5, "dropout_keep": 1.0, "discriminator_lr": 1e-2}
    return lambda model, end=True, **overrides: tiny_config("paper", end, model=model, **{**sizes, **overrides})


def drawn_state(config, seed=3):
    """Random parameters, larger than at the start of training, and fresh optimizers."""
    shapes = jax.eval_shape(lambda: training.init(config, jax.random.key(0)))
    rng = np.random.default_rng(seed)

    def drawn(net, scale):
        params = jax.tree.map(lambda x: jnp.asarray(rng.normal(scale=scale, size=x.shape), x.dtype), net.params)
        return net.replace(params=params, opt_state=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), net.opt_state))

    return BaselineState(drawn(shapes.generator, 0.6), drawn(shapes.discriminator, 0.5))


def arrays(params):
    return jax.tree.map(np.asarray, params)


def slow_completions(config, generator, keys, tokens, num_given, temperature):
    score = functools.partial(reference.plain_logits, config, generator)
    rows = zip(tokens, uniforms(config, keys), strict=True)
    return np.array([reference.draw_rest(config, score, row, num_given, u, temperature) for row, u in rows])


# --- The generator ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[True, False], ids=["end", "endless"])
def world(request, config_of, sentences):
    config = config_of("seqgan", request.param)
    state = drawn_state(config)
    return config, state.params, arrays(state.params), sentences(config, request.param)


def test_log_probs_are_those_of_loops(world):
    config, params, slow, tokens = world
    expected = [reference.plain_log_probs(config, slow.generator, row, 0.7) for row in tokens]
    assert_close(log_probs(config, params, tokens, 0.7), expected)


def test_scan_draws_what_a_python_loop_draws_from_the_same_keys(world):
    config, params, slow, _ = world
    rolled = sample(config, params, row_keys(), 0.7)
    expected = slow_completions(config, slow.generator, row_keys(), np.zeros((5, 6), int), 0, 0.7)
    np.testing.assert_array_equal(rolled.tokens, expected)
    assert len(np.unique(expected, axis=0)) > 1 and rolled.features is None
    assert_close(rolled.log_probs, log_probs(config, params, rolled.tokens, 0.7))
    if config.end_id is not None:
        assert np.any(rolled.tokens == config.pad_id)


@pytest.mark.parametrize("num_given", [3, 6])
def test_a_completion_keeps_its_prefix_and_draws_or_takes_the_rest(world, num_given):
    config, params, slow, tokens = world
    drawn = complete(config, params, row_keys(3), tokens, num_given, 0.9).tokens
    expected = slow_completions(config, slow.generator, row_keys(3), tokens, num_given, 0.9)
    np.testing.assert_array_equal(drawn, expected)
    greedy = complete(config, params, row_keys(3), tokens, num_given, 0.9, greedy=True).tokens
    for row, given in zip(np.asarray(greedy), tokens, strict=True):
        for t in range(num_given, reference.sentence_length(config, row)):
            assert row[t] == np.argmax(reference.plain_logits(config, slow.generator, row)[t])
        np.testing.assert_array_equal(row[:num_given], given[:num_given])


def test_staircase_values_are_the_mean_score_of_each_prefixs_own_completions(world):
    config, params, slow, _ = world
    keys = row_keys()
    rolled, values = sample_with_values(config, params, keys, 0.9)
    alone = sample(config, params, keys, 0.9)
    np.testing.assert_array_equal(rolled.tokens, alone.tokens)
    assert_close(rolled.log_probs, alone.log_probs)
    expected = slow_values(config, slow.generator, keys, probability(config, slow.discriminator), 0.9)
    assert_close(values, expected)
    assert np.ptp(expected, axis=0).min() > 5e-3  # or a mix-up of sentences could pass


def slow_values(config, generator, keys, score, temperature):
    """`[B, T]`, each prefix completed alone, from the keys that the staircase gives its completions."""
    tokens = slow_completions(config, generator, keys, np.zeros((len(keys), config.length), int), 0, temperature)
    columns = []
    for t in range(1, config.length):
        repeats = rollout.completion_keys(config, keys, t - 1)
        completed = [slow_completions(config, generator, k, tokens, t, temperature) for k in repeats]
        columns.append(np.mean([[score(row) for row in repeat] for repeat in completed], axis=0))
    return np.stack([*columns, [score(row) for row in tokens]], axis=1)


def probability(config, d):
    return lambda row: reference.probability(d, reference.feature(config, d, row))


# --- Updates of the generator ----------------------------------------------------------------------------------------


def test_pretraining_follows_the_gradient_of_the_likelihood_of_loops(config_of, sentences):
    config = config_of("mle")
    state = training.init(config, jax.random.key(0))
    assert state.discriminator is None
    state, tokens = state.replace(generator=drawn_state(config_of("seqgan")).generator), sentences(config, True)
    lengths = [reference.sentence_length(config, row) for row in tokens]
    after, recorded = jax.jit(training.model(config).pretrain_step, static_argnums=0)(config, state, tokens)

    def loss(generator):
        scores = [reference.plain_log_probs(config, generator, row, 1.0) for row in tokens]
        return reference.mle_loss(config, scores, lengths)

    params = arrays(state.generator.params)
    assert_close(recorded["generator_loss"], loss(params))
    assert_gradient_matches_finite_differences(loss, params, gradient(after.generator, "supervised"))
    assert not differs(state.generator.opt_state["adversarial"], after.generator.opt_state["adversarial"])


@pytest.mark.parametrize("settings", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_an_adversarial_step_is_that_of_the_slow_pipeline(settings, config_of, sentences):
    """Values, ranks, metrics and the gradient; nothing after the end of a sentence counts in any of them."""
    config = config_of(**{"rescaling": "off", **settings})
    state, real = drawn_state(config), sentences(config, True, 12, seed=6)
    after, recorded = train_step(config, state, real, jax.random.key(KEY))
    params, d = arrays(state.generator.params), arrays(state.discriminator.params)
    key, score = jax.random.key(KEY), probability(config, d)
    if config.model == "rankgan":
        references_key, comparison_key, key = jax.random.split(key, 3)
        chosen = [jax.random.randint(k, (n,), 0, 12) for k, n in ((references_key, 3), (comparison_key, 2))]
        references, compared = ([reference.feature(config, d, real[i]) for i in index] for index in chosen)

        def score(row):
            return reference.log_rank(config, reference.feature(config, d, row), references, compared) + np.log(3)

    keys, temperature = jax.random.split(key, config.batch_size), config.train_temperature
    tokens = slow_completions(config, params, keys, np.zeros((5, 6), int), 0, temperature)
    values = slow_values(config, params, keys, score, temperature)
    mask = tokens != config.pad_id
    lengths = [reference.sentence_length(config, row) for row in tokens]
    assert min(lengths) < 6 and mask.sum() == sum(lengths)
    reward = reference.rescaled(config, values, mask)
    learned = reference.token_rewards(config, reward, lengths)

    def loss(generator):
        scores = [reference.plain_log_probs(config, generator, row, temperature) for row in tokens]
        return reference.worker_loss(config, learned, scores, lengths)

    scores = [reference.plain_log_probs(config, params, row, temperature) for row in tokens]
    assert_close(recorded["value"], values[mask].mean())
    assert_close(recorded["reward"], reward[mask].mean())
    assert_close(recorded["entropy"], reference.mle_loss(config, scores, lengths))
    assert_close(recorded["generator_loss"], loss(params))
    assert_gradient_matches_finite_differences(loss, params, gradient(after.generator, "adversarial"))
    assert not differs(state.discriminator, after.discriminator)
    assert not differs(state.generator.opt_state["supervised"], after.generator.opt_state["supervised"])


def test_a_seed_among_others_is_that_seed_alone(config_of, sentences):
    config = config_of("seqgan")
    state, real, keys = drawn_state(config), sentences(config, True, 12, seed=6), row_keys(1, 2)
    with jax.debug_key_reuse(False):  # the checker takes every vmapped scan over split keys for a reuse
        step = functools.partial(training.model(config).train_step, config, state, real)
        together, _ = jax.jit(jax.vmap(step))(keys)
    for i in range(2):
        alone, _ = train_step(config, state, real, keys[i])
        grads = [gradient(x.generator, "adversarial") for x in (jax.tree.map(lambda x, i=i: x[i], together), alone)]
        jax.tree.map(assert_close, *grads)


def test_the_gradient_of_exact_action_values_is_that_of_the_expected_score(config_of):
    """All 27 sentences of 3 words, weighted by their probability; a token's value is the mean score of what follows."""
    config = config_of("seqgan", False, vocab_size=3, length=3, filter_windows=(1, 3), filter_counts=(4, 8))
    state = drawn_state(config)
    sentences = reference.all_sentences(3, 3)
    score = np.array([probability(config, arrays(state.discriminator.params))(row) for row in sentences])
    logs = [reference.plain_log_probs(config, arrays(state.generator.params), row, 1.0) for row in sentences]
    p, values = np.exp(np.sum(logs, axis=1)), np.zeros((27, 3))
    for n, row in enumerate(sentences):
        for t in range(3):
            follows = np.all(sentences[:, : t + 1] == row[: t + 1], axis=1)
            values[n, t] = np.sum(p[follows] * score[follows]) / np.sum(p[follows])

    @jax.jit
    @jax.jacrev
    def gradients(generator):
        log_probs = language_model.log_probs(rollout.generator_sizes(config), generator, jnp.asarray(sentences))
        loss = losses.policy_gradient(log_probs, values * p[:, None], np.ones((27, 3), bool))
        return -loss * log_probs.size, jnp.sum(jnp.exp(log_probs.sum(axis=1)) * score)

    ours, exact = gradients(state.generator.params)
    jax.tree.map(assert_close, ours, exact)
    assert optax.tree.norm(exact) > 1e-2


# --- The ranker ------------------------------------------------------------------------------------------------------

IS_REAL = np.array([1.0, 0.0, 1.0, 1.0, 0.0], np.float32)


def test_ranker_step_has_the_loss_and_gradient_of_loops(config_of, sentences):
    config = config_of("rankgan")
    state, tokens, real = drawn_state(config), sentences(config, True), sentences(config, True, 12, seed=6)
    after, recorded = ranker_step(config, state, tokens, IS_REAL, real, jax.random.key(0))
    references = real[jax.random.randint(jax.random.split(jax.random.key(0), 3)[0], (3,), 0, 12)]

    def loss(d):
        return reference.ranker_loss(config, d, tokens, IS_REAL == 1, references)

    d = arrays(state.discriminator.params)
    assert_close(recorded["discriminator_loss"], loss(d))
    assert_gradient_matches_finite_differences(loss, d, gradient(after.discriminator), step=1e-6)
    assert not differs(state.generator, after.generator)
    assert not differs(state.discriminator.params["output_kernel"], after.discriminator.params["output_kernel"])


def test_ranker_steps_raise_real_above_generated_sentences(config_of, sentences):
    config = config_of("rankgan")
    state, tokens, real = drawn_state(config), sentences(config, True), sentences(config, True, 12, seed=6)
    recorded = []
    for seed in range(30):
        state, one = ranker_step(config, state, tokens, IS_REAL, real, jax.random.key(seed))
        recorded.append(float(one["discriminator_loss"]))
    assert np.mean(recorded[-5:]) < np.mean(recorded[:5]) - 0.3


def test_a_batch_of_one_kind_has_no_rivals_and_no_gradient():
    loss = jax.jit(jax.value_and_grad(rankgan.ranker_loss))
    value, grad = loss(jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32), jnp.ones(4))
    assert value == 0 and not np.any(grad)


# --- Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", BASELINES)
@pytest.mark.parametrize("name", ["quickstart", "synthetic40", "coco"])
def test_presets_have_the_published_settings_of_a_baseline(name, model):
    config = preset(name, model=model)
    assert (config.title, config.goal_horizon, config.generator_lr) == (TITLES[model], 1, 1e-2)
    assert preset(name, model="seqgan", rescaling="rank").title == "SeqGAN-rescale"
    units = run.schedule(config)
    kinds = [unit.kind for unit in units if unit.phase == "pretrain"]
    assert kinds == sorted(kinds, reverse=True) and {u.kind for u in units if u.evaluate} >= {"mle"}
    if name != "quickstart":
        assert kinds.count("mle") == 120 and kinds.count("discriminator") == (0 if model == "mle" else 50)
    assert (len(kinds) == len(units) == kinds.count("mle")) == (model == "mle")


@pytest.mark.parametrize(
    "overrides, text",
    [
        ({"model": "seqgan", "reading": "released"}, "reading is 'released'; it must be 'paper'"),
        ({"model": "seqgan", "goal_horizon": 4}, "goal_horizon is 4; it must be 1"),
        ({"model": "mle", "adversarial_iterations": 3}, "adversarial_iterations is 3; it must be 0"),
        ({"model": "mle", "pretrain_draws": 3}, "pretrain_draws is 3; it must be 0"),
        ({"model": "rankgan", "references": 0}, "references is 0"),
        ({"model": "rankgan", "rank_gamma": 0.0}, "rank_gamma is 0.0"),
        ({"model": "seqgans"}, "did you mean 'seqgan'"),
    ],
)
def test_settings_that_cannot_work_are_named(overrides, text):
    with pytest.raises(ConfigError, match=text):
        preset("synthetic20", **overrides)


# --- Whole runs ------------------------------------------------------------------------------------------------------

TINY = (
    "--length 6 --worker-embedding 5 --filter-windows 1 3 --filter-counts 4 5 --batch-size 8 --draw-size 16 "
    "--num-heldout 32 --eval-samples 16 --sample-batch 16 --discriminator-embedding 6 --worker-hidden 7 "
    "--completions 2 --pretrain-rounds 1 --mle-epochs 2 --eval-every 2"
).split()
ORACLE = ["--vocab-size", 30, "--num-train", 32]
GAN = "--pretrain-draws 1 --adversarial-iterations 2 --adversarial-draws 1".split()


@pytest.fixture(scope="module")
def text_run(tmp_path_factory, fast_compile):
    """RankGAN on text, stopped after its first adversarial step and resumed; beside it, the same never stopped."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "corpus.txt").write_text(CORPUS, encoding="utf-8")
    text = ["--corpus", folder / "corpus.txt", "--tokenizer", "whitespace", "--lowercase"]
    argv = ["train", "coco", "--model", "rankgan", *text, *TINY, *GAN, "--out"]
    assert leakgan(*argv, folder / "whole") == 0
    real, calls = run._run_unit, []

    def stopping(*args):
        calls.append(args)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "_run_unit", stopping)
        assert leakgan(*argv, folder / "run") == 128 + signal.SIGTERM
    assert leakgan("train", "--out", folder / "run", "--resume") == 0
    return folder / "run"


def test_a_resumed_run_is_one_never_stopped(text_run):
    assert_same_run(text_run.parent / "whole", text_run)
    report = (text_run / "report.md").read_text()
    assert report.startswith("# RankGAN run") and report.count("| RankGAN |") == 2
    assert "- Model: RankGAN" in report and "Reading" not in report
    kinds = [line["kind"] for line in metrics(text_run)]
    assert kinds == ["mle", "mle", "discriminator"] + ["generator", "discriminator"] * 2
    lines = (text_run / "samples.txt").read_text().splitlines()
    assert len(lines) == 16 and "<end>" not in " ".join(lines) and min(len(line.split()) for line in lines) < 5


def test_a_text_run_is_sampled_and_scored_like_leakgans(text_run, capsys):
    assert leakgan("sample", text_run, "--num", 5, "--prefix", "a dog", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 5 and all(row["text"].startswith("a dog") for row in rows)
    assert all(row["log_prob"] == pytest.approx(sum(row["log_probs"]), abs=1e-5) for row in rows)
    assert leakgan("sample", text_run, "--greedy") == 0
    assert leakgan("evaluate", text_run, "--json") == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["nll_gen"] > 0 and scores["nll_oracle"] is None
    config, _, _ = rundir.open_run(text_run)
    assert list(run.load_models(text_run, config, print)) == ["MLE, best NLL_gen", "RankGAN"]


def test_what_only_leakgan_has_is_refused_in_a_line(text_run, capsys):
    assert leakgan("inspect", text_run) == 2
    assert capsys.readouterr().err == f"leakgan: {text_run} is a run of RankGAN: only LeakGAN has goals to look into\n"
    assert leakgan("train", "--out", text_run, "--resume", "--model", "seqgan") == 2
    assert "model ('rankgan', now 'seqgan')" in capsys.readouterr().err
    assert leakgan("train", "--out", text_run, "--resume", "--references", 3) == 2
    assert "references (16, now 3)" in capsys.readouterr().err


def test_seeds_of_the_mle_model_side_by_side(tmp_path):
    argv = ["train", "--model", "mle", *ORACLE, *TINY, "--seeds", 2, "--out", tmp_path]
    with jax.debug_key_reuse(False):  # the checker takes every vmapped scan over split keys for a reuse
        assert leakgan(*argv) == 0
    one, other = (metrics(tmp_path / f"seed-{seed}") for seed in (0, 1))
    assert [line["kind"] for line in one] == ["mle", "mle"]  # no adversarial phase
    assert all(a != b for a, b in zip(one, other, strict=True))
    report, out = (tmp_path / "report.md").read_text(), tmp_path / "seed-1"
    assert report.startswith("# MLE run") and "final state" not in report
    rows = [line for line in report.splitlines() if line.startswith("| MLE")]
    assert [row.count("±") for row in rows] == [4] * 4
    config, _, _ = rundir.open_run(out)
    models = run.load_models(out, config, print)
    assert set(models) - {"MLE, last epoch"} == {"MLE, best NLL_gen"}
    _, task = run.open_task(out)
    tokens, scores = run.evaluate(config, task, models["MLE, best NLL_gen"], jax.random.key(0), 0.5)
    assert tokens.shape == (16, 6) and scores["nll_oracle"] > 0
