"""Values, ranks, intrinsic rewards and the Manager's targets, against NumPy loops over one sentence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from leakgan_jax import goals, rewards

pytestmark = pytest.mark.usefixtures("fast_compile", "trap_nans")
assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)

rescale = jax.jit(rewards.rescale)
alignment = jax.jit(goals.alignment, static_argnums=0)
intrinsic_reward = jax.jit(goals.intrinsic_reward, static_argnums=0)


def random_features_and_goals(config, num=5, seed=0):
    """`[num, T + 1, F]`, of which some do not move, and `[num, T, F]` of any length."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num, config.length + 1, config.feature_dim)).astype(np.float32)
    features[0, 5:] = features[0, 5]
    return features, rng.normal(size=(num, config.length, config.feature_dim)).astype(np.float32)


# --- Rank rescaling (Eq. 11) -----------------------------------------------------------------------------------------


def values_with_ties(rows=10, columns=3, seed=0):
    return np.random.default_rng(seed).integers(0, 6, (rows, columns)).astype(np.float32) / 7


@pytest.mark.parametrize("slope", [12.0, 16.0])
@pytest.mark.parametrize("seed", range(3))
def test_rescaled_values_match_loops_with_ties_and_ended_sentences(slope, seed):
    values = values_with_ties(seed=seed)
    assert_close(rescale(values, slope), reference.rescale(values, slope))
    live = np.random.default_rng(seed).random(values.shape) < 0.6
    live[:, 1] = False  # a column in which every sentence has ended
    assert_close(rescale(values, slope, live), reference.rescale(values, slope, live))


def test_equal_values_share_their_mean_rank():
    all_equal = rescale(np.full((4, 1), 0.3, np.float32), 12.0)[:, 0]
    assert_close(all_equal, np.full(4, reference.sigmoid(12 * (0.5 - 2.5 / 4))))
    two_best = rescale(np.asarray([[0.9], [0.1], [0.9]], np.float32), 12.0)[:, 0]
    assert_close(two_best, reference.sigmoid(12 * (0.5 - np.array([1.5, 3, 1.5]) / 3)))


def test_permuting_the_scores_permutes_the_rewards():
    values = values_with_ties()
    order = np.random.default_rng(1).permutation(len(values))
    np.testing.assert_array_equal(rescale(values[order], 12.0), rescale(values, 12.0)[order])


def test_columns_are_ranked_apart():
    values = values_with_ties()
    together = rescale(values, 12.0)
    for column in range(values.shape[1]):
        np.testing.assert_array_equal(rescale(values[:, column : column + 1], 12.0)[:, 0], together[:, column])


def test_a_better_score_never_gets_a_lower_reward():
    values = values_with_ties(rows=40)
    rescaled = np.asarray(rescale(values, 12.0))
    assert np.all((rescaled > 0) & (rescaled < 1))
    for column in range(values.shape[1]):
        better = values[:, None, column] > values[None, :, column]
        gain = rescaled[:, None, column] - rescaled[None, :, column]
        assert np.all(gain[better] > 0)
        assert np.all(gain[values[:, None, column] == values[None, :, column]] == 0)


def test_an_ended_sentence_changes_no_live_reward_and_gets_none():
    values = values_with_ties(rows=6)
    live = np.ones(values.shape, bool)
    live[[1, 4], 1:] = False  # two sentences that ended within the first block
    rescaled = rescale(values, 12.0, live)
    rest = [0, 2, 3, 5]
    assert_close(rescaled[:, 0], rescale(values, 12.0)[:, 0])
    assert_close(rescaled[rest, 1:], rescale(values[rest], 12.0)[:, 1:])
    np.testing.assert_array_equal(rescaled[[1, 4], 1:], 0)
    values[[1, 4], 1:] = 100.0
    np.testing.assert_array_equal(rescale(values, 12.0, live), rescaled)


# --- Credit and advantage --------------------------------------------------------------------------------------------


def test_an_advantage_has_no_mean_at_any_position_and_its_spread_is_one():
    rng = np.random.default_rng(4)
    reward, lengths = rng.normal(0.4, 0.05, (6, 5)).astype(np.float32), [5, 1, 3, 5, 2, 4]
    mask = np.arange(5) < np.array(lengths)[:, None]
    centred = np.asarray(jax.jit(rewards.advantage)(reward, mask))
    assert_close(centred.sum(axis=0), 0)
    for t in range(5):
        rows = mask[:, t]
        assert_close(centred[rows, t] + reward[rows, t].mean(), reward[rows, t])
    standardised = np.asarray(rewards.advantage(reward, mask, standardise=True))
    assert_close(np.std(standardised[mask]), 1)
    for array in (centred, standardised, rewards.shared(reward, mask, 1), rewards.shared(reward, mask, None)):
        np.testing.assert_array_equal(np.asarray(array)[~mask], 0)
    assert np.all(np.isfinite(rewards.advantage(np.ones((3, 2)), np.ones((3, 2), bool), standardise=True)))


# --- The Manager's targets (Eq. 7) and which value judges which ------------------------------------------------------


def test_each_goal_is_judged_by_the_block_end_that_the_reading_names(tiny):
    config = tiny.config
    start, block = goals.transitions(config)
    order = np.arange(config.num_blocks)
    np.testing.assert_array_equal(block, reference.manager_rewards(config, order))
    if config.reading == "paper":
        np.testing.assert_array_equal(start, np.arange(config.length - config.goal_horizon + 1))
        end = (block + 1) * config.goal_horizon
        assert np.all((end >= start + config.goal_horizon) & (end - config.goal_horizon < start + config.goal_horizon))
    else:
        np.testing.assert_array_equal(start, order * config.goal_horizon)


def test_alignment_matches_loops(tiny):
    features, known = random_features_and_goals(tiny.config)
    fast = alignment(tiny.config, features, known, goals.initial_goal(tiny.config, tiny.params))
    slow = [
        [cosine for _, cosine in reference.manager_terms(tiny.config, tiny.arrays.manager, f, g)]
        for f, g in zip(features, known, strict=True)
    ]
    assert_close(fast, slow)


def test_live_blocks_are_those_that_judge_a_goal_set_before_the_end(tiny_config):
    for reading in ("paper", "released"):
        config = tiny_config(reading, end=True)
        lengths = np.arange(1, config.length + 1)
        mask = np.arange(config.length) < lengths[:, None]
        start, block = goals.transitions(config)
        slow = [[any(s < length for s in start[block == j]) for j in range(config.num_blocks)] for length in lengths]
        np.testing.assert_array_equal(goals.live_blocks(config, mask), slow)


# --- Intrinsic reward (Eq. 9) ----------------------------------------------------------------------------------------


def test_intrinsic_reward_matches_loops(tiny):
    features, known = random_features_and_goals(tiny.config)
    fast = intrinsic_reward(tiny.config, features, known, goals.initial_goal(tiny.config, tiny.params))
    pairs = zip(features, known, strict=True)
    assert_close(fast, [reference.intrinsic_reward(tiny.config, tiny.arrays.manager, f, g) for f, g in pairs])
    assert np.all(np.abs(fast) <= 1 + 1e-6)


@pytest.mark.parametrize("length, horizon", [(1, 1), (6, 1), (6, 2), (6, 6), (3, 7)])
def test_intrinsic_reward_drops_the_terms_before_the_sentence_at_any_horizon(length, horizon, tiny_config):
    rng = np.random.default_rng(length)
    features, known = rng.normal(size=(length + 1, 4)), rng.normal(size=(length, 4))
    config = type("Sizes", (), {"reading": "paper", "goal_horizon": horizon})
    fast = rewards.intrinsic(jnp.asarray(features, jnp.float32), jnp.asarray(known, jnp.float32), horizon=horizon)
    assert_close(fast, reference.intrinsic_reward(config, None, features, known))


def test_features_that_do_not_move_earn_nothing_with_finite_gradient(tiny):
    config = tiny.config
    features, known = random_features_and_goals(config)
    features[:] = features[:1, :1]

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def total(features, known, initial):
        rewarded = goals.intrinsic_reward(config, features, known, initial).sum()
        return rewarded + goals.alignment(config, features, known, initial).sum()

    for given, first in ((known, np.ones(config.feature_dim)), (0 * known, np.zeros(config.feature_dim))):
        value, grads = total(features, given, first.astype(np.float32))
        assert value == 0
        assert all(np.all(np.isfinite(g)) for g in grads)


# --- The initial goal ------------------------------------------------------------------------------------------------


def test_the_initial_goal_learns_from_every_sentence(tiny):
    """One vector for all: its gradient for a batch is the sum of its gradients for each sentence."""
    config = tiny.config
    features, known = random_features_and_goals(config)
    weights = np.random.default_rng(1).normal(size=(5, config.length, config.goal_dim)).astype(np.float32)
    kernel = tiny.params.worker["goal_kernel"]

    def total(initial, rows):
        if config.reading == "released":  # block 0 of the Manager's loss
            return goals.alignment(config, features[rows], known[rows], initial).sum()
        return jnp.sum(weights[rows] * goals.embed_sentence(config, known[rows] @ kernel, initial @ kernel))

    initial = goals.initial_goal(config, tiny.params)
    assert initial.shape == (config.feature_dim,)
    together = jax.grad(total)(initial, np.arange(5))
    alone = [jax.grad(total)(initial, np.arange(i, i + 1)) for i in range(5)]
    assert_close(together, np.sum(alone, axis=0), atol=1e-4)
    assert all(np.linalg.norm(g) > 1e-3 for g in alone)
