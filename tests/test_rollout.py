"""Sampling, completing and scoring, against a Python loop that draws with the same uniforms, and enumeration."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import reference

from leakgan_jax import rollout
from leakgan_jax.models import discriminator
from leakgan_jax.sampling import row_uniform

pytestmark = pytest.mark.usefixtures("fast_compile", "trap_nans")
assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)

sample = jax.jit(rollout.sample, static_argnums=0)
sample_many = jax.jit(rollout.sample_many, static_argnums=(0, 3))
complete = jax.jit(rollout.complete, static_argnums=0, static_argnames="greedy")
log_probs = jax.jit(rollout.log_probs, static_argnums=0)
prefix_features = jax.jit(discriminator.prefix_features, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _sample_with_values(config, params, keys, temperature):
    return rollout.sample_with_values(config, params, keys, temperature)


def sample_with_values(*args):
    # The completions' carries are copies of their sentences', keys included, until their own keys replace those:
    # the checker takes the copying for a reuse. `test_completions_draw_from_keys_of_their_own` looks instead.
    with jax.debug_key_reuse(False):
        return _sample_with_values(*args)


TEMPERATURES = [0.5, 1 / 1.5, 1.0, 1.3]
ENUMERABLE = {
    "vocab_size": 3,
    "length": 4,
    "goal_horizon": 2,
    "filter_windows": (1, 4),
    "filter_counts": (4, 8),
    "batch_size": 81,
}


def row_keys(seed=0, num=5):
    return jax.random.split(jax.random.key(seed), num)


def uniforms(config, keys):
    """`[B, T]`, what the library draws with."""
    return np.stack([row_uniform(keys, t) for t in range(config.length)], axis=1)


def slow_completions(tiny, keys, tokens, num_given, temperature):
    drawn = uniforms(tiny.config, keys)
    draw = functools.partial(reference.completion, tiny.config, *tiny.arrays)
    return np.array([draw(row, num_given, u, temperature) for row, u in zip(tokens, drawn, strict=True)])


def slow_probability(tiny, tokens):
    """D's probability of "real", `[..., T] -> [...]`."""
    d = tiny.arrays.discriminator
    rows = [reference.probability(d, reference.feature(tiny.config, d, row)) for row in tokens.reshape(-1, 9)]
    return np.reshape(rows, tokens.shape[:-1])


# --- Sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_scan_draws_what_a_python_loop_draws_from_the_same_keys(tiny, temperature):
    keys = row_keys()
    fast = sample(tiny.config, tiny.params, keys, temperature)
    slow = slow_completions(tiny, keys, np.zeros((5, 9), int), 0, temperature)
    np.testing.assert_array_equal(fast.tokens, slow)
    assert len(np.unique(slow, axis=0)) > 1


def test_goals_held_for_a_block_are_those_of_loops(tiny_end):
    held = tiny_end._replace(config=dataclasses.replace(tiny_end.config, goals="held"))
    rolled = sample(held.config, held.params, row_keys(), 0.8)
    slow = slow_completions(held, row_keys(), np.zeros((5, 9), int), 0, 0.8)
    np.testing.assert_array_equal(rolled.tokens, slow)
    expected = [reference.log_probs(held.config, *held.arrays, row, 0.8) for row in slow]
    assert_close(rolled.log_probs, expected)
    assert_close(log_probs(held.config, held.params, slow, 0.8), expected)
    assert not np.allclose(expected, [reference.log_probs(tiny_end.config, *held.arrays, row, 0.8) for row in slow])


def test_features_seen_while_sampling_are_those_of_every_prefix(tiny):
    rolled = sample(tiny.config, tiny.params, row_keys(), 1.0)
    assert_close(rolled.features, prefix_features(tiny.config, tiny.params.discriminator, rolled.tokens))


@pytest.mark.parametrize("temperature", TEMPERATURES, ids="{:.2f}".format)
def test_teacher_forced_log_probs_are_those_recorded_while_sampling(tiny, temperature):
    rolled = sample(tiny.config, tiny.params, row_keys(), temperature)
    assert_close(log_probs(tiny.config, tiny.params, rolled.tokens, temperature), rolled.log_probs)


@pytest.mark.parametrize("temperature", TEMPERATURES, ids="{:.2f}".format)
def test_log_probs_divide_the_logits_by_the_temperature_as_loops_do(tiny, temperature):
    fast = log_probs(tiny.config, tiny.params, tiny.tokens, temperature)
    assert_close(fast, [reference.log_probs(tiny.config, *tiny.arrays, row, temperature) for row in tiny.tokens])


def test_scoring_twice_gives_the_same_number(tiny):
    once, again = (log_probs(tiny.config, tiny.params, tiny.tokens, 1.0) for _ in range(2))
    np.testing.assert_array_equal(once, again)


def test_a_row_of_a_batch_is_that_row_alone(tiny_end):
    tiny = tiny_end
    keys = row_keys()
    together = sample(tiny.config, tiny.params, keys, 1.0)
    for i in range(5):
        alone = sample(tiny.config, tiny.params, keys[i : i + 1], 1.0)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[i])
        assert_close(alone.log_probs[0], together.log_probs[i])


def test_low_temperatures_concentrate_every_way_of_sampling(tiny_end):
    tiny = tiny_end

    def samplers(temperature):
        keys = row_keys()
        yield sample(tiny.config, tiny.params, keys, temperature).tokens
        yield sample_with_values(tiny.config, tiny.params, keys, temperature)[0].tokens
        yield complete(tiny.config, tiny.params, keys, tiny.tokens, 0, temperature).tokens
        yield sample_many(tiny.config, tiny.params, jax.random.key(0), 63, temperature)[0]

    for cold, warm in zip(samplers(1e-3), samplers(1.0), strict=True):
        assert len(np.unique(cold, axis=0)) == 1
        assert len(np.unique(warm, axis=0)) > 1
    likeliest = reference.completion(tiny.config, *tiny.arrays, np.zeros(9, int), 0, np.full(9, 0.5), 1e-3)
    np.testing.assert_array_equal(next(samplers(1e-3))[0], likeliest)


def test_sample_many_draws_any_number_of_different_sentences(tiny):
    tokens, recorded = sample_many(tiny.config, tiny.params, jax.random.key(1), 63, 1.0)  # 12 chunks of 5, and 3
    assert tokens.shape == recorded.shape == (63, 9)
    keys = row_keys(1, 65)
    chunks = [sample(tiny.config, tiny.params, keys[i : i + 5], 1.0).tokens for i in range(0, 65, 5)]
    np.testing.assert_array_equal(tokens, np.concatenate(chunks)[:63])
    assert_close(log_probs(tiny.config, tiny.params, tokens, 1.0), recorded)


def test_sample_many_draws_fewer_than_a_batch(tiny_end):
    tiny = tiny_end
    tokens, recorded = sample_many(tiny.config, tiny.params, jax.random.key(1), 3, 1.0)
    rolled = sample(tiny.config, tiny.params, row_keys(1, 3), 1.0)
    np.testing.assert_array_equal(tokens, rolled.tokens)
    assert_close(recorded, rolled.log_probs)


@pytest.mark.parametrize("num", [3, 12])
def test_log_probs_take_any_number_of_rows(tiny_end, num, sentences):
    tiny = tiny_end
    tokens = sentences(tiny.config, True, num, seed=2)
    slow = [reference.log_probs(tiny.config, *tiny.arrays, row, 0.7) for row in tokens]
    assert_close(log_probs(tiny.config, tiny.params, tokens, 0.7), slow)


# --- Padding and the end of a sentence -------------------------------------------------------------------------------


def test_only_padding_follows_the_end_and_it_has_no_likelihood(tiny):
    tokens, recorded = sample_many(tiny.config, tiny.params, jax.random.key(2), 63, 1.0)
    lengths = np.array([reference.sentence_length(tiny.config, row) for row in np.asarray(tokens)])
    within = np.arange(9) < lengths[:, None]
    np.testing.assert_array_equal(tokens == tiny.config.pad_id, ~within)
    np.testing.assert_array_equal(recorded == 0, ~within)  # the end token itself does count
    assert np.all((tokens >= 0) & (tokens <= tiny.config.vocab_size))
    if tiny.config.end_id is None:
        assert np.all(lengths == 9)
    else:
        assert len(np.unique(lengths)) > 4


# --- Completions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_given", [0, 1, 4, 6, 8, 9])
def test_a_completion_keeps_its_prefix_and_draws_the_rest_as_a_loop_does(tiny, num_given):
    keys = row_keys(3)
    rolled = complete(tiny.config, tiny.params, keys, tiny.tokens, num_given, 0.9)
    np.testing.assert_array_equal(rolled.tokens[:, :num_given], tiny.tokens[:, :num_given])
    slow = slow_completions(tiny, keys, tiny.tokens, num_given, 0.9)
    np.testing.assert_array_equal(rolled.tokens, slow)
    assert_close(rolled.log_probs, log_probs(tiny.config, tiny.params, rolled.tokens, 0.9))


@pytest.mark.parametrize("num_given", [0, 4])
def test_greedy_takes_the_likeliest_token_of_a_python_loop(tiny, num_given):
    config = tiny.config
    slow = []
    for sentence in tiny.tokens:
        tokens = np.full(9, config.pad_id)
        tokens[:num_given] = sentence[:num_given]
        for t in range(num_given, 9):
            if config.end_id is not None and config.end_id in tokens:
                break
            tokens[t] = np.argmax(reference.step_logits(config, *tiny.arrays, tokens)[t])
        slow.append(tokens)
    fast = complete(config, tiny.params, row_keys(), tiny.tokens, num_given, 1.3, greedy=True)
    np.testing.assert_array_equal(fast.tokens, slow)
    assert_close(fast.log_probs, log_probs(config, tiny.params, fast.tokens, 1.3))
    again = complete(config, tiny.params, row_keys(7), tiny.tokens, num_given, 0.5, greedy=True)
    np.testing.assert_array_equal(again.tokens, slow)  # whatever the keys and the temperature


def test_completing_nothing_is_sampling(tiny):
    completed = complete(tiny.config, tiny.params, row_keys(), tiny.tokens, 0, 1.0)
    np.testing.assert_array_equal(completed.tokens, sample(tiny.config, tiny.params, row_keys(), 1.0).tokens)


def test_a_completion_of_a_finished_sentence_is_the_sentence(tiny):
    lengths = [reference.sentence_length(tiny.config, row) for row in tiny.tokens]
    for num_given in (4, 6, 9):
        completed = complete(tiny.config, tiny.params, row_keys(4), tiny.tokens, num_given, 1.0).tokens
        for row, tokens, length in zip(completed, tiny.tokens, lengths, strict=True):
            if length <= num_given:
                np.testing.assert_array_equal(row, tokens)


def test_staircase_samples_the_same_sentences_as_sampling_alone(tiny):
    rolled, _ = sample_with_values(tiny.config, tiny.params, row_keys(), 1.0)
    alone = sample(tiny.config, tiny.params, row_keys(), 1.0)
    np.testing.assert_array_equal(rolled.tokens, alone.tokens)
    assert_close(rolled.log_probs, alone.log_probs)
    assert_close(rolled.features, alone.features)


def test_staircase_values_are_the_mean_score_of_each_prefixs_own_completions(tiny):
    config, keys = tiny.config, row_keys()
    rolled, values = sample_with_values(config, tiny.params, keys, 0.9)
    assert values.shape == (5, config.num_blocks)
    tokens = np.asarray(rolled.tokens)
    for block in range(config.num_blocks - 1):
        num_given = (block + 1) * config.goal_horizon
        own = rollout.completion_keys(config, keys, block)
        assert own.shape == (config.completions, 5)
        completed = [complete(config, tiny.params, k, tokens, num_given, 0.9).tokens for k in own]
        slow = [slow_completions(tiny, k, tokens, num_given, 0.9) for k in own]
        np.testing.assert_array_equal(completed, slow)
        for i in range(5):
            scores = [slow_probability(tiny, repeat[i]) for repeat in slow]
            assert_close(values[i, block], np.mean(scores))
    assert_close(values[:, -1], slow_probability(tiny, tokens))
    assert np.ptp(np.asarray(values), axis=0).min() > 1e-2  # or a mix-up of sentences could pass


def test_completions_draw_from_keys_of_their_own(tiny):
    keys = row_keys()
    blocks = [rollout.completion_keys(tiny.config, keys, block) for block in range(tiny.config.num_blocks - 1)]
    data = np.concatenate([jax.random.key_data(k).reshape(-1, 2) for k in (*blocks, keys)])
    assert len(np.unique(data, axis=0)) == len(data)
    steps = [jax.vmap(lambda k, t=t: jax.random.fold_in(k, t))(keys) for t in range(tiny.config.length)]
    drawn = np.concatenate([jax.random.key_data(k) for k in steps])  # what the sentences' own tokens come from
    assert not set(map(tuple, data)) & set(map(tuple, drawn))


@pytest.mark.parametrize("reading, end", [("paper", False), ("released", True)], ids=["paper-endless", "released-end"])
def test_staircase_completions_follow_the_enumerated_distribution(reading, end, tiny_config, tiny_state):
    """Chi-square over (sentence, completion of its first block), 3 words and 4 tokens, both drawn 10,000 times.

    One completion each, so the value is D's score of it, and the score tells which of all sentences it is.
    """
    config = tiny_config(reading, end, completions=1, **ENUMERABLE)
    params = tiny_state(config).params
    everything = enumerate_sentences(config)
    p = np.exp(np.asarray(log_probs(config, params, everything, 1.3), np.float64).sum(axis=1))
    assert_close(p.sum(), 1.0)

    rolled, values = sample_with_values(config, params, row_keys(5, 10_000), 1.3)
    features = prefix_features(config, params.discriminator, everything)[:, -1]
    scores = np.asarray(jax.nn.sigmoid(discriminator.logit(config, params.discriminator, features)), np.float64)
    order = np.argsort(scores)
    assert np.diff(scores[order]).min() > 2e-6
    completed = order[np.searchsorted((scores[order][1:] + scores[order][:-1]) / 2, values[:, 0])]
    np.testing.assert_allclose(scores[completed], values[:, 0], atol=1e-6)
    place = {tuple(row): n for n, row in enumerate(everything)}
    drawn = np.array([place[tuple(row)] for row in np.asarray(rolled.tokens)])
    np.testing.assert_array_equal(everything[completed, :2], everything[drawn, :2])

    same_prefix = np.all(everything[:, None, :2] == everything[None, :, :2], axis=-1)
    of_prefix = same_prefix @ p
    expected = np.where(same_prefix, p[:, None] * p / of_prefix, 0.0) * len(drawn)
    counts = np.zeros(expected.shape)
    np.add.at(counts, (drawn, completed), 1)
    common = expected >= 5
    impossible_or_rare = expected[~common].sum()  # one cell; in it must also lie whatever should not happen
    cells = np.append(expected[common], max(impossible_or_rare, 1.0))
    chi_square = np.sum((np.append(counts[common], counts[~common].sum()) - cells) ** 2 / cells)
    freedom = len(cells) - 1
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def enumerate_sentences(config):
    """Every sentence that can be drawn, PAD after the end: `[n, T]`."""
    tokens = reference.all_sentences(config.vocab_size, config.length).astype(np.int32)
    if config.end_id is not None:
        after_end = np.cumsum(tokens == config.end_id, axis=1) - (tokens == config.end_id) > 0
        tokens = np.unique(np.where(after_end, config.pad_id, tokens), axis=0)
    return tokens
