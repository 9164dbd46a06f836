"""The textbook form that the benchmarks time computes what the library computes: same numbers, same distributions."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_rollout import ENUMERABLE

from benchmarks import textbook, throughput
from leakgan_jax import rollout, training
from leakgan_jax.models import discriminator
from leakgan_jax.types import Rollout

pytestmark = pytest.mark.usefixtures("fast_compile", "trap_nans")
assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)

sample = jax.jit(textbook.sample, static_argnums=(0, 3))
complete = jax.jit(textbook.complete, static_argnums=(0, 4))
score = jax.jit(textbook.score, static_argnums=0)
log_probs = jax.jit(rollout.log_probs, static_argnums=0)
MANY = {**ENUMERABLE, "batch_size": 1000, "sample_batch": 1000}


def assert_states_close(state, other):
    """Adam's moments, which are the gradients, and its steps; these only where the gradient is more than rounding.

    Adam's first step is as long whatever the gradient, so rounding about zero would turn it round.
    """
    close = functools.partial(assert_close, rtol=1e-4)
    for net, same in ((getattr(state, name), getattr(other, name)) for name in vars(state)):
        jax.tree.map(close, net.opt_state, same.opt_state)
        moments = [sum(map(np.abs, each)) for each in zip(*map(first_moments, (net, same)), strict=True)]
        for moment, one, two in zip(moments, *map(jax.tree.leaves, (net.params, same.params)), strict=True):
            stepped = (moment == 0) | (moment > 1e-6)
            assert stepped.mean() > 0.5
            close(np.where(stepped, one, 0), np.where(stepped, two, 0))


def first_moments(net):
    """Of each leaf of the parameters, over all of the network's optimizers."""
    kinds = [jax.tree.leaves(mu) for _, mu in optax.tree_utils.tree_get_all_with_path(net.opt_state, "mu")]
    return [sum(np.abs(mu) for mu in of_leaf) for of_leaf in zip(*kinds, strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def library_score(config, params, tokens, temperature):
    features = discriminator.prefix_features(config, params.discriminator, tokens)
    return *rollout.teacher_force(config, params, tokens, features, temperature), features


@functools.partial(jax.jit, static_argnums=0)
def library_probability(config, d, tokens):
    features = discriminator.highway(config, d, discriminator.pooled(config, d, tokens))
    return jax.nn.sigmoid(discriminator.logit(config, d, features))


# --- Known sentences -------------------------------------------------------------------------------------------------


def test_scores_goals_and_features_are_the_librarys(tiny):
    arguments = tiny.config, tiny.params, tiny.tokens, 0.7
    for ours, slow in zip(library_score(*arguments), score(*arguments), strict=True):
        assert_close(slow, ours)


@pytest.mark.parametrize("tiny", [("paper", True), ("released", True)], indirect=True, ids=["paper", "released"])
def test_mle_step_makes_the_librarys_update(tiny):
    ours, slow = (
        jax.jit(form.mle_step, static_argnums=0)(tiny.config, tiny.state, tiny.tokens) for form in (training, textbook)
    )
    assert_states_close(slow[0], ours[0])
    assert_close(slow[1]["worker_loss"], ours[1]["worker_loss"])


def test_discriminator_step_makes_the_librarys_update(tiny_end):
    tiny, is_real = tiny_end, np.array([1.0, 0.0, 1.0, 1.0, 0.0], np.float32)
    ours, slow = (
        jax.jit(form.discriminator_step, static_argnums=0)(
            tiny.config, tiny.state, tiny.tokens, is_real, jax.random.key(4)
        )[0]
        for form in (training, textbook)
    )
    assert_states_close(slow, ours)


def test_generator_updates_are_those_of_the_librarys_step(tiny_end, monkeypatch):
    """Given what sampling left behind; of ours, as the benchmark times it apart from the sampling."""
    tiny = tiny_end
    features = library_score(tiny.config, tiny.params, tiny.tokens, 0.7)[2]
    values = np.random.default_rng(0).random((5, tiny.config.num_blocks), np.float32)
    sampled = Rollout(jnp.asarray(tiny.tokens), jnp.zeros(tiny.tokens.shape), features)
    data = throughput.Data(None, sampled.tokens, None, features, values, None, None)
    monkeypatch.setattr(rollout, "sample_with_values", lambda *_: (sampled, jnp.asarray(values)))
    with jax.debug_key_reuse(False):  # nothing is drawn with the key
        ours = jax.jit(training.generator_step, static_argnums=0)(tiny.config, tiny.state, jax.random.key(2))[0]
    for form in (throughput.TEXTBOOK, throughput.OURS):
        assert_states_close(jax.jit(form.generator_update, static_argnums=0)(tiny.config, tiny.state, data)[0], ours)


# --- Sampled sentences -----------------------------------------------------------------------------------------------


def test_sampled_words_have_the_librarys_probabilities(tiny):
    tokens, recorded = sample(tiny.config, tiny.params, jax.random.key(5), 12, 0.7)  # batches of 5
    assert tokens.shape == (12, tiny.config.length)
    assert_close(recorded, log_probs(tiny.config, tiny.params, tokens, 0.7))
    if tiny.config.end_id is not None:
        ended = np.cumsum(np.asarray(tokens) == tiny.config.end_id, axis=1) > 0
        np.testing.assert_array_equal(np.asarray(tokens)[:, 1:] == tiny.config.pad_id, ended[:, :-1])


def test_completions_keep_their_prefix_and_follow_the_librarys_probabilities(tiny):
    num_given = 4
    tokens, recorded = complete(tiny.config, tiny.params, jax.random.key(6), tiny.tokens, num_given, 0.7)
    np.testing.assert_array_equal(tokens[:, :num_given], tiny.tokens[:, :num_given])
    expected = log_probs(tiny.config, tiny.params, tokens, 0.7)
    assert_close(recorded[:, num_given:], expected[:, num_given:])


@pytest.fixture(scope="module", params=["paper", "released"])
def enumerable(request, tiny_config, tiny_state):
    """Every sentence of 4 words out of 3, the library's probability of each, and its D's score of each."""
    config = tiny_config(request.param, **MANY)
    params = tiny_state(config).params
    sentences = np.array(list(itertools.product(range(3), repeat=4)), np.int32)
    p = np.exp(np.sum(np.float64(log_probs(config, params, sentences, 1.0)), axis=1))
    d = np.float64(library_probability(config, params.discriminator, sentences))
    return config, params, sentences, p / p.sum(), d


def test_sentences_come_as_often_as_the_library_says(enumerable):
    config, params, sentences, p, _ = enumerable
    tokens, _ = sample(config, params, jax.random.key(7), 5000, 1.0)
    counts = np.bincount(np.asarray(tokens) @ [27, 9, 3, 1], minlength=81)
    chi_squared = np.sum((counts - 5000 * p) ** 2 / (5000 * p))
    assert chi_squared < 80 + 5 * np.sqrt(2 * 80)


def test_values_are_the_expected_score_of_completions(enumerable):
    """Of D's mean over all ends of a prefix, weighted by the library's probabilities."""
    config, params, sentences, p, d = enumerable
    few = sentences[[0, 13, 40, 66, 80]]
    repeated = np.repeat(few, 200, axis=0)  # 200 times 2 completions each
    values = jax.jit(textbook.values, static_argnums=0)(config, params, jax.random.key(8), repeated, 1.0)
    mean = np.mean(np.reshape(values, (5, 200, 2)), axis=1)
    for row, sentence in enumerate(few):
        ends = np.all(sentences[:, :2] == sentence[:2], axis=1)
        expected = np.sum(p[ends] * d[ends]) / np.sum(p[ends])
        spread = np.sqrt(np.sum(p[ends] * (d[ends] - expected) ** 2) / np.sum(p[ends]))
        assert abs(mean[row, 0] - expected) < 4.5 * spread / np.sqrt(400) + 1e-6
        assert_close(mean[row, 1], d[np.all(sentences == sentence, axis=1)][0])


# --- Rounds ----------------------------------------------------------------------------------------------------------


def test_a_round_of_the_discriminator_on_the_same_negatives_is_the_librarys(tiny_end, sentences, monkeypatch):
    """On a CPU, this takes the convolutions as matrix products."""
    tiny, negatives = tiny_end, jnp.asarray(sentences(tiny_end.config, True, 10, seed=1))
    nothing = jnp.zeros(negatives.shape)
    monkeypatch.setattr(rollout, "sample_many", lambda *_: (negatives, nothing))
    monkeypatch.setattr(textbook, "sample", lambda *_: (negatives, nothing))
    real = sentences(tiny.config, True, 10, seed=2)
    with jax.debug_key_reuse(False):  # nothing is drawn with the key of the samples
        ours, slow = (
            jax.jit(form.discriminator_draw, static_argnums=0)(tiny.config, tiny.state, real, jax.random.key(9))[0]
            for form in (training, textbook)
        )
    assert_states_close(slow, ours)


def test_evaluation_scores_real_sentences_as_the_library_does(tiny_config, tiny_state, sentences):
    config = tiny_config("paper", eval_samples=7)
    params, heldout = tiny_state(config).params, sentences(config, False, 8)
    evaluate = jax.jit(textbook.evaluate, static_argnums=0)
    tokens, metrics = evaluate(config, params, heldout, jax.random.key(10), 0.7)
    for name, rows in {"nll_gen": heldout, "nll_div": tokens}.items():
        assert_close(metrics[name], -np.mean(log_probs(config, params, rows, 0.7)))
