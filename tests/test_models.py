"""The three networks and the goal embeddings, against NumPy loops over one sentence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from leakgan_jax import goals
from leakgan_jax.models import discriminator, layers, manager, worker

pytestmark = pytest.mark.usefixtures("fast_compile", "trap_nans")
assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)

prefix_features = jax.jit(discriminator.prefix_features, static_argnums=0)
manager_goals = jax.jit(manager.goals, static_argnums=0)
worker_hidden = jax.jit(worker.hidden, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def whole_feature(config, d, tokens):
    return discriminator.highway(config, d, discriminator.pooled(config, d, tokens))


def as_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def slow_features(tiny):
    return np.array([reference.prefix_features(tiny.config, tiny.arrays.discriminator, row) for row in tiny.tokens])


def slow_goals(tiny):
    return np.array([reference.goals(tiny.arrays.manager, features) for features in slow_features(tiny)])


# --- Discriminator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [False, True], ids=["endless", "end"])
@pytest.mark.parametrize("windows", [(1, 2, 4, 9), tuple(range(1, 10)), (9,), (3,), (8, 1)], ids=str)
def test_streaming_features_are_the_full_cnn_on_every_padded_prefix(windows, end, tiny_config, tiny_state, sentences):
    counts = tuple(2 + i % 3 for i in range(len(windows)))
    config = tiny_config(filter_windows=windows, filter_counts=counts)
    d = tiny_state(config).params.discriminator
    tokens = sentences(config, end)
    streamed = prefix_features(config, d, tokens)
    assert_close(streamed, [reference.prefix_features(config, as_numpy(d), row) for row in tokens])
    read = np.arange(config.length) < np.arange(config.length + 1)[:, None]  # [T + 1, T]
    prefixes = np.where(read, tokens[:, None], config.pad_id).reshape(-1, config.length)
    convolved = whole_feature(config, d, prefixes)
    assert_close(streamed, convolved.reshape(streamed.shape))


def test_feature_of_the_whole_sentence_is_the_last_prefix_feature(tiny):
    d = tiny.params.discriminator
    whole = whole_feature(tiny.config, d, tiny.tokens)
    assert_close(whole, prefix_features(tiny.config, d, tiny.tokens)[:, -1])
    assert_close(whole, [reference.feature(tiny.config, tiny.arrays.discriminator, row) for row in tiny.tokens])


def test_a_prefix_feature_knows_no_later_token(tiny, sentences):
    given, other = tiny.tokens.copy(), sentences(tiny.config, end=False, seed=1)
    for t in (0, 4, 8):
        changed = np.concatenate([given[:, :t], other[:, t:]], axis=1)
        before = prefix_features(tiny.config, tiny.params.discriminator, given)
        after = prefix_features(tiny.config, tiny.params.discriminator, changed)
        np.testing.assert_array_equal(after[:, : t + 1], before[:, : t + 1])
        assert np.any(after[:, t + 1 :] != before[:, t + 1 :])


def test_padding_does_not_move_the_features(tiny):
    features = np.asarray(prefix_features(tiny.config, tiny.params.discriminator, tiny.tokens))
    for row, tokens in zip(features, tiny.tokens, strict=True):
        length = reference.sentence_length(tiny.config, tokens)
        assert_close(row[length:], np.broadcast_to(row[length], row[length:].shape))


def test_padding_is_an_embedding_of_its_own(tiny):
    d = tiny.params.discriminator
    moved = {**d, "embedding": d["embedding"].at[tiny.config.pad_id].add(1.0)}
    before, after = (prefix_features(tiny.config, p, tiny.tokens)[:, 0] for p in (d, moved))
    assert np.any(np.abs(after - before) > 1e-2)
    np.testing.assert_array_equal(before, np.broadcast_to(before[0], before.shape))  # the empty prefix is the same


def test_discriminator_logit_is_linear_in_the_feature_and_has_no_dropout(tiny):
    d = tiny.params.discriminator
    features = slow_features(tiny)
    once = discriminator.logit(tiny.config, d, jnp.asarray(features, jnp.float32))
    assert_close(once, [[reference.score(tiny.arrays.discriminator, f) for f in row] for row in features])
    again = discriminator.logit(tiny.config, d, jnp.asarray(features, jnp.float32))
    np.testing.assert_array_equal(once, again)


# --- Manager and goals -----------------------------------------------------------------------------------------------


def test_manager_goals_match_loops_and_have_unit_length(tiny):
    features = slow_features(tiny)
    fast = manager_goals(tiny.config, tiny.params.manager, jnp.asarray(features[:, :-1], jnp.float32))
    assert_close(fast, slow_goals(tiny))
    assert_close(np.linalg.norm(fast, axis=-1), np.ones(fast.shape[:2]))


def test_manager_read_step_by_step_gives_the_same_goals(tiny):
    features = jnp.asarray(slow_features(tiny)[:, :-1], jnp.float32)
    step = jax.jit(manager.step, static_argnums=0)
    state, stepped = manager.initial_state(tiny.config, len(features)), []
    for t in range(tiny.config.length):
        state, goal = step(tiny.config, tiny.params.manager, state, features[:, t])
        stepped.append(goal)
    assert_close(np.stack(stepped, axis=1), manager_goals(tiny.config, tiny.params.manager, features))


def test_goal_embeddings_stepped_in_bulk_and_in_loops_agree(tiny):
    config, w = tiny.config, tiny.params.worker
    known = slow_goals(tiny)
    slow = [reference.goal_embeddings(config, tiny.arrays.manager, tiny.arrays.worker, g) for g in known]
    embedded = worker.embed_goal(config, w, jnp.asarray(known, jnp.float32))
    initial = worker.embed_goal(config, w, goals.initial_goal(config, tiny.params))
    assert_close(goals.embed_sentence(config, embedded, initial), slow)

    step = jax.jit(goals.embed_step, static_argnums=0)
    recent = jnp.broadcast_to(initial, (len(known), config.goal_horizon, config.goal_dim))
    held, stepped = jnp.zeros((len(known), config.goal_dim)), []
    for t in range(config.length):
        held = step(config, recent, held, t)
        stepped.append(held)
        recent = jnp.concatenate([recent[:, 1:], embedded[:, t : t + 1]], axis=1)
    assert_close(np.stack(stepped, axis=1), slow)


def test_released_goals_are_held_for_a_block_and_paper_goals_move_at_every_token(tiny):
    config = tiny.config
    embedded = jnp.asarray(np.random.default_rng(0).normal(size=(5, config.length, config.goal_dim)), jnp.float32)
    embeddings = goals.embed_sentence(config, embedded, jnp.ones(config.goal_dim))
    moved = np.any(np.abs(np.diff(embeddings, axis=1)) > 1e-6, axis=(0, 2))  # [T - 1], from w_t to w_{t + 1}
    block_starts = np.arange(1, config.length) % config.goal_horizon == 0
    np.testing.assert_array_equal(moved, block_starts if config.reading == "released" else np.ones_like(moved))


def test_held_goals_match_loops(tiny_config, tiny_state):
    config = tiny_config("released")
    m = tiny_state(config).params.manager
    known = np.random.default_rng(0).normal(size=(5, config.length, config.feature_dim)).astype(np.float32)
    slow = [reference.held_goals(config, as_numpy(m), g) for g in known]
    assert_close(goals.held_goals(config, jnp.asarray(known), m["initial_goal"]), slow)


def test_there_is_one_initial_goal_and_the_reading_says_whose_it_is(tiny):
    owner, other = ("manager", "worker") if tiny.config.reading == "released" else ("worker", "manager")
    assert getattr(tiny.params, owner)["initial_goal"].shape == (tiny.config.feature_dim,)  # no batch axis
    assert "initial_goal" not in getattr(tiny.params, other)
    np.testing.assert_array_equal(
        goals.initial_goal(tiny.config, tiny.params), getattr(tiny.params, owner)["initial_goal"]
    )


# --- Worker ----------------------------------------------------------------------------------------------------------


def test_worker_lstm_in_bulk_and_stepped_match_loops(tiny):
    config, w = tiny.config, tiny.params.worker
    inputs = np.concatenate([np.full((5, 1), config.pad_id, np.int32), tiny.tokens[:, :-1]], axis=1)
    bulk = worker_hidden(config, w, inputs)
    table = tiny.arrays.worker["embedding"]
    assert_close(bulk, [reference.lstm(tiny.arrays.worker["lstm"], table[row]) for row in inputs])
    step = jax.jit(worker.step, static_argnums=0)
    state, stepped = worker.initial_state(config, 5), []
    for t in range(config.length):
        state = step(config, w, state, inputs[:, t])
        stepped.append(state.hidden)
    assert_close(np.stack(stepped, axis=1), bulk)


def test_bilinear_logits_are_the_explicit_product_of_output_matrix_and_goal_embedding(tiny):
    config, w = tiny.config, tiny.arrays.worker
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(3, 2, config.worker_hidden)).astype(np.float32)
    embedding = rng.normal(size=(3, 2, config.goal_dim)).astype(np.float32)
    fast = worker.logits(config, tiny.params.worker, jnp.asarray(hidden), jnp.asarray(embedding))
    assert fast.shape == (3, 2, config.vocab_size)
    for i in np.ndindex(3, 2):
        for v in range(config.vocab_size):
            row = hidden[i] @ w["output_kernel"][:, :, v] + w["output_bias"][:, v]  # row v of O_t
            np.testing.assert_allclose(fast[i][v], row @ embedding[i], rtol=1e-4, atol=1e-5)


# --- Shared pieces ---------------------------------------------------------------------------------------------------


def test_unit_of_a_zero_vector_is_zero_with_finite_gradient():
    x = jnp.zeros((2, 3)).at[1].set(jnp.asarray([3.0, 0.0, 4.0]))
    assert_close(layers.unit(x), [[0, 0, 0], [0.6, 0, 0.8]])
    assert np.all(np.isfinite(jax.grad(lambda x: layers.unit(x).sum())(x)))
