"""Losses, their gradients and the updates, against the slow reference, finite differences and enumeration.

A fresh Adam's first moment is a tenth of the gradient (the tiny configs do not clip), so the gradients that the
training steps themselves take can be read off the states that they return.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from test_rollout import ENUMERABLE

from leakgan_jax import goals, losses, rollout, training
from leakgan_jax.models import discriminator
from leakgan_jax.sampling import row_uniform

pytestmark = pytest.mark.usefixtures("fast_compile", "trap_nans")
assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)

mle_step = jax.jit(training.mle_step, static_argnums=0)
discriminator_step = jax.jit(training.discriminator_step, static_argnums=0)
sample = jax.jit(rollout.sample, static_argnums=0)
log_probs = jax.jit(rollout.log_probs, static_argnums=0)
prefix_features = jax.jit(discriminator.prefix_features, static_argnums=0)

KEY = 2  # of the generator step that the tests share; some of its sentences end early
IS_REAL = np.array([1.0, 0.0, 1.0, 1.0, 0.0], np.float32)


def without_key_check(function):
    """Staircase rollouts copy carries, keys included, before giving the copies keys of their own: see test_rollout."""

    def unchecked(*args):
        with jax.debug_key_reuse(False):
            return function(*args)

    return unchecked


generator_step = without_key_check(jax.jit(training.generator_step, static_argnums=0))


def gradient(net, kind=None):
    """What the one step that `net` has seen passed to Adam."""
    moments = net.opt_state if kind is None else net.opt_state[kind]
    return jax.tree.map(lambda m: np.asarray(m, np.float64) / 0.1, optax.tree_utils.tree_get(moments, "mu"))


def differs(before, after):
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return any(np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs)


def assert_trees_close(tree, other, **tolerance):
    jax.tree.map(functools.partial(assert_close, **tolerance), tree, other)


def assert_gradient_matches_finite_differences(loss, params, grads, step=1e-5):
    """One random direction a parameter: the slope of the reference's float64 `loss` along it."""
    leaves, structure = jax.tree.flatten(jax.tree.map(lambda x: np.asarray(x, np.float64), params))
    rng = np.random.default_rng(0)
    for n, (leaf, grad) in enumerate(zip(leaves, jax.tree.leaves(grads), strict=True)):
        direction = rng.normal(size=leaf.shape)
        ends = []
        for sign in (1, -1):
            moved = [*leaves[:n], leaf + sign * step * direction, *leaves[n + 1 :]]
            ends.append(loss(structure.unflatten(moved)))
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(grad * direction), slope, rtol=1e-3, atol=2e-5)


# --- A training step, slowly -----------------------------------------------------------------------------------------


class Known(NamedTuple):
    """Sentences and all that the losses are made of, by the reference alone."""

    tokens: np.ndarray  # [B, T]
    lengths: list  # [B]
    features: np.ndarray  # [B, T + 1, F]
    goals: np.ndarray  # [B, T, F]
    values: np.ndarray | None  # [B, T / C], where completions were drawn
    goal_rewards: np.ndarray | None  # [B, T / C], rescaled values

    def manager_loss(self, tiny, manager):
        moved = [reference.goals(manager, f) for f in self.features]
        return reference.manager_loss(tiny.config, manager, self.features, moved, self.goal_rewards, self.lengths)

    def log_probs(self, tiny, worker, temperature):
        m, _, d = tiny.arrays
        return [reference.log_probs(tiny.config, m, worker, d, row, temperature) for row in self.tokens]

    def intrinsic(self, tiny):
        pairs = zip(self.features, self.goals, strict=True)
        return [reference.intrinsic_reward(tiny.config, tiny.arrays.manager, f, g) for f, g in pairs]


def known(tiny, tokens, values=None, goal_rewards=None):
    features = np.array([reference.prefix_features(tiny.config, tiny.arrays.discriminator, row) for row in tokens])
    lengths = [reference.sentence_length(tiny.config, row) for row in tokens]
    known_goals = np.array([reference.goals(tiny.arrays.manager, f) for f in features])
    return Known(np.asarray(tokens), lengths, features, known_goals, values, goal_rewards)


@pytest.fixture(scope="module")
def drawn(tiny):
    return slow_draw(tiny)


def slow_draw(tiny):
    """What `generator_step` draws and how it judges it, one sentence and one completion at a time."""
    config, d = tiny.config, tiny.arrays.discriminator
    keys = jax.random.split(jax.random.key(KEY), config.batch_size)

    def completions(keys, tokens, num_given):
        uniforms = np.stack([row_uniform(keys, t) for t in range(config.length)], axis=1)
        draw = functools.partial(reference.completion, config, *tiny.arrays)
        return [draw(row, num_given, u, config.train_temperature) for row, u in zip(tokens, uniforms, strict=True)]

    def scores(tokens):
        return [reference.probability(d, reference.feature(config, d, row)) for row in tokens]

    tokens = completions(keys, np.zeros((config.batch_size, config.length), int), 0)
    values = []
    for block in range(config.num_blocks - 1):
        repeats = rollout.completion_keys(config, keys, block)
        num_given = (block + 1) * config.goal_horizon
        values.append(np.mean([scores(completions(k, tokens, num_given)) for k in repeats], axis=0))
    values = np.stack([*values, scores(tokens)], axis=1)
    start, block = goals.transitions(config)  # compared with the reference in test_goals_and_rewards
    lengths = [reference.sentence_length(config, row) for row in tokens]
    live = [[any(start[block == j] < length) for j in range(config.num_blocks)] for length in lengths]
    assert config.end_id is None or not np.all(live)
    return known(tiny, tokens, values, reference.rescale(values, config.rescale_slope, np.array(live)))


# --- Losses and gradients of the three updates -----------------------------------------------------------------------


def test_generator_step_has_the_losses_of_the_slow_pipeline(tiny, drawn):
    _, metrics = generator_step(tiny.config, tiny.state, jax.random.key(KEY))
    config = tiny.config
    assert_close(metrics["value"], drawn.values.mean())
    assert_close(metrics["manager_loss"], drawn.manager_loss(tiny, tiny.arrays.manager))
    recorded = drawn.log_probs(tiny, tiny.arrays.worker, config.train_temperature)
    intrinsic = drawn.intrinsic(tiny)
    assert_close(metrics["worker_loss"], reference.worker_loss(config, intrinsic, recorded, drawn.lengths))
    assert_close(metrics["reward"], np.mean(np.concatenate([r[:n] for r, n in zip(intrinsic, drawn.lengths)])))
    assert_close(metrics["entropy"], reference.mle_loss(config, recorded, drawn.lengths))


def test_generator_step_follows_the_slow_pipelines_gradient(tiny, drawn):
    config = tiny.config
    state, _ = generator_step(config, tiny.state, jax.random.key(KEY))
    rewards = drawn.intrinsic(tiny)

    def worker_loss(worker):
        recorded = drawn.log_probs(tiny, worker, config.train_temperature)
        return reference.worker_loss(config, rewards, recorded, drawn.lengths)

    manager_loss = functools.partial(drawn.manager_loss, tiny)
    moved = {"manager": manager_loss, "worker": worker_loss}
    for name, loss in moved.items():
        grads = gradient(getattr(state, name), "adversarial")
        assert_gradient_matches_finite_differences(loss, getattr(tiny.arrays, name), grads)


@pytest.fixture(scope="module")
def drawn_end(tiny_end):
    return slow_draw(tiny_end)


@pytest.mark.parametrize(
    "settings",
    [
        {"rescaling": "off", "credit": "sentence"},
        {"rescaling": "shuffled", "advantage": "centred"},
        {"credit": "sentence", "advantage": "standardised"},
        {"rescaling": "off", "credit": "batch"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_settings_of_the_signal_change_rewards_and_nothing_else(settings, tiny_end, drawn_end):
    config = dataclasses.replace(tiny_end.config, **settings)
    _, metrics = generator_step(config, tiny_end.state, jax.random.key(KEY))
    mask = drawn_end.tokens != config.pad_id
    live = np.array(drawn_end.goal_rewards) > 0
    goal_rewards = reference.rescaled(config, drawn_end.values, live)
    manager_loss = drawn_end._replace(goal_rewards=goal_rewards).manager_loss(tiny_end, tiny_end.arrays.manager)
    assert_close(metrics["manager_loss"], manager_loss)
    if "rescaling" in settings:
        assert not np.allclose(goal_rewards, drawn_end.goal_rewards)
    intrinsic = np.array(drawn_end.intrinsic(tiny_end))
    rewards = reference.token_rewards(config, intrinsic, drawn_end.lengths)
    recorded = drawn_end.log_probs(tiny_end, tiny_end.arrays.worker, config.train_temperature)
    assert_close(metrics["worker_loss"], reference.worker_loss(config, rewards, recorded, drawn_end.lengths))
    assert_close(metrics["reward"], intrinsic[mask].mean())  # before it is made into anything


def test_mle_step_has_the_losses_and_gradients_of_the_slow_pipeline(tiny):
    config, real = tiny.config, known(tiny, tiny.tokens)
    state, metrics = mle_step(config, tiny.state, tiny.tokens)

    def worker_loss(worker):
        return reference.mle_loss(config, real.log_probs(tiny, worker, 1.0), real.lengths)

    for name, loss in {"manager": functools.partial(real.manager_loss, tiny), "worker": worker_loss}.items():
        assert_close(metrics[f"{name}_loss"], loss(getattr(tiny.arrays, name)))
        grads = gradient(getattr(state, name), "supervised")
        assert_gradient_matches_finite_differences(loss, getattr(tiny.arrays, name), grads)


@pytest.mark.parametrize("l2", [0.0, 0.2])
def test_discriminator_step_has_the_loss_and_gradient_of_the_slow_pipeline(l2, tiny_end):
    tiny = tiny_end
    config = dataclasses.replace(tiny.config, dropout_keep=1.0, discriminator_l2=l2)
    state, metrics = discriminator_step(config, tiny.state, tiny.tokens, IS_REAL, jax.random.key(0))
    d = tiny.arrays.discriminator
    unpenalised = dataclasses.replace(config, discriminator_l2=0.0)
    assert_close(metrics["discriminator_loss"], reference.discriminator_loss(unpenalised, d, tiny.tokens, IS_REAL == 1))
    right = [
        (reference.probability(d, reference.feature(config, d, row)) > 0.5) == real
        for row, real in zip(tiny.tokens, IS_REAL == 1, strict=True)
    ]
    assert_close(metrics["discriminator_accuracy"], np.mean(right))
    assert_gradient_matches_finite_differences(
        lambda d: reference.discriminator_loss(config, d, tiny.tokens, IS_REAL == 1),
        d,
        gradient(state.discriminator),
        step=1e-6,
    )


def test_gradients_are_clipped_for_each_network_apart(tiny_end):
    config = dataclasses.replace(tiny_end.config, clip_norm=1e-3)
    state, _ = mle_step(config, tiny_end.state, tiny_end.tokens)
    for net in (state.manager, state.worker):
        assert_close(optax.tree.norm(gradient(net, "supervised")), 1e-3, atol=1e-7)


# --- Credit ----------------------------------------------------------------------------------------------------------


class Credit(NamedTuple):
    """A generator loss as a function of its rewards: `[B, K]` rewards -> gradients."""

    batch: object  # of all sentences
    alone: object  # of sentence i, its rewards `[1, K]`
    mask: np.ndarray  # [B, K], which rewards belong to something within the sentence


@pytest.fixture(scope="module", params=["manager-paper", "manager-released", "worker-paper"])
def credit(request, tiny_end, tiny_released_end):
    network, reading = request.param.split("-")
    tiny = tiny_end if reading == "paper" else tiny_released_end
    config, params = tiny.config, tiny.params

    def manager_gradient(tokens, features, rewards):
        def loss(m):
            _, known_goals = rollout.teacher_force(config, params._replace(manager=m), tokens, features, 1.0)
            p = params._replace(manager=m)
            return training._manager_loss(config, p, tokens, features, known_goals, rewards)

        return jax.grad(loss)(params.manager)

    def worker_gradient(tokens, features, rewards):
        def loss(w):
            recorded, _ = rollout.teacher_force(config, params._replace(worker=w), tokens, features, 1.0)
            return losses.policy_gradient(recorded, rewards, tokens != config.pad_id)

        return jax.grad(loss)(params.worker)

    of_manager = network == "manager"
    features = prefix_features(config, params.discriminator, tiny.tokens)
    one = jax.jit(manager_gradient if of_manager else worker_gradient)
    many = jax.jit(jax.vmap(manager_gradient if of_manager else worker_gradient, in_axes=(None, None, 0)))
    starts = goals.transitions(config)[0] if of_manager else np.arange(config.length)
    mask = (tiny.tokens != config.pad_id)[:, starts]
    return Credit(
        batch=lambda rewards: many(tiny.tokens, features, rewards),
        alone=lambda i, rewards: one(tiny.tokens[i : i + 1], features[i : i + 1], rewards),
        mask=mask,
    )


def test_a_reward_moves_the_gradient_of_its_own_sentence_and_step_only(credit):
    """Changing reward (i, t) adds what sentence i alone, rewarded at t alone, has for a gradient; nothing else."""
    rng = np.random.default_rng(0)
    shape = credit.mask.shape
    before = rng.normal(size=shape).astype(np.float32)
    changes = np.zeros((shape[1], *shape), np.float32)
    sentences = np.resize([2, 0, 3, 1, 4], shape[1])
    for t, i in enumerate(sentences):
        changes[t, i, t] = 1.5
    gradients = credit.batch(np.concatenate([before[None], before + changes]))
    counted = 0
    for t, i in enumerate(sentences):
        change = jax.tree.map(lambda g, t=t: (g[t + 1] - g[0]) * credit.mask.sum() / 1.5, gradients)
        if credit.mask[i, t]:
            only = jax.tree.map(lambda g, i=i: g * credit.mask[i].sum(), credit.alone(i, np.eye(shape[1])[t : t + 1]))
            assert_trees_close(change, only, rtol=1e-3, atol=2e-4)
            counted += any(np.abs(g).max() > 1e-2 for g in jax.tree.leaves(only))
        else:
            assert_trees_close(change, jax.tree.map(jnp.zeros_like, change), rtol=0, atol=0)
    assert counted >= 2


def test_permuting_the_rewards_changes_the_gradient(credit):
    rng = np.random.default_rng(0)
    rewards, permuted = np.zeros((2, *credit.mask.shape), np.float32)
    rewards[credit.mask] = rng.normal(size=credit.mask.sum())
    permuted[credit.mask] = rng.permutation(rewards[credit.mask])
    same_shape_as_above = credit.mask.shape[1] - 1  # one compilation for both tests
    gradients = credit.batch(np.stack([rewards, permuted] + [permuted] * same_shape_as_above))
    change = jax.tree.map(lambda g: g[1] - g[0], gradients)
    assert optax.tree.norm(change) > 0.1 * optax.tree.norm(jax.tree.map(lambda g: g[0], gradients))


# --- The policy gradient ---------------------------------------------------------------------------------------------


class World(NamedTuple):
    """Every sentence of 3 words and 4 tokens, and the Worker's parameters moved along three random directions."""

    config: object
    params: object
    tokens: np.ndarray  # [n, T]
    mask: np.ndarray  # [n, T]
    log_probs: np.ndarray  # [n, T], by the reference, as are:
    moved: np.ndarray  # [3, 2, n, T], a step forth and a step back along each direction
    directions: list  # 3 trees
    gradient: object  # rewards `[n, T]` -> gradient of the Worker's loss on all sentences


STEP = 1e-4


@pytest.fixture(scope="module", params=[("paper", False), ("released", True)], ids=["paper-endless", "released-end"])
def world(request, tiny_config, tiny_state):
    config = tiny_config(*request.param, **ENUMERABLE)
    params = tiny_state(config).params
    tokens = reference.all_sentences(config.vocab_size, config.length).astype(np.int32)
    if config.end_id is not None:
        after_end = np.cumsum(tokens == config.end_id, axis=1) - (tokens == config.end_id) > 0
        tokens = np.unique(np.where(after_end, config.pad_id, tokens), axis=0)
    mask = tokens != config.pad_id
    features = prefix_features(config, params.discriminator, tokens)

    @jax.jit
    @jax.grad
    def gradient(w, rewards):
        p = params._replace(worker=w)
        recorded, _ = rollout.teacher_force(config, p, tokens, features, config.train_temperature)
        return losses.policy_gradient(recorded, rewards, mask)

    m, w, d = jax.tree.map(lambda x: np.asarray(x, np.float64), tuple(params))

    def slow(w):
        return np.array([reference.log_probs(config, m, w, d, row, config.train_temperature) for row in tokens])

    rng = np.random.default_rng(0)
    directions = [jax.tree.map(lambda x: rng.normal(size=x.shape), w) for _ in range(3)]
    moved = [[slow(jax.tree.map(lambda x, v, by=by: x + by * v, w, v)) for by in (STEP, -STEP)] for v in directions]
    return World(
        config, params, tokens, mask, slow(w), np.array(moved), directions, functools.partial(gradient, params.worker)
    )


def assert_expected_gradient_is(world, objective, rewards):
    """The Worker's gradient at `rewards`, weighted by every sentence's probability, climbs `objective`.

    Args:
        objective: log-probabilities `[n, T]` -> what is to grow.
        rewards: `[n, T]`.
    """
    p = np.exp(world.log_probs.sum(axis=1, keepdims=True))
    assert_close(p.sum(), 1.0)
    # The loss is a mean over all tokens: times their number, it is the sum over sentences that the weights want.
    found = world.gradient((p * rewards * world.mask.sum()).astype(np.float32))
    slopes = [(objective(forth) - objective(back)) / (2 * STEP) for forth, back in world.moved]
    for slope, direction in zip(slopes, world.directions, strict=True):
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(direction), strict=True)
        assert_close(-sum(np.sum(g * v) for g, v in pairs), slope, rtol=1e-3, atol=1e-5)
    assert max(np.abs(slopes)) > 0.05


def sentence_scores(world):
    return np.random.default_rng(1).normal(size=(len(world.tokens), 1))


def prefix_rewards(world):
    """A reward for each prefix, the same in every sentence that begins with it: `[n, T]`."""
    rng, table = np.random.default_rng(2), {}
    rewards = np.zeros(world.tokens.shape)
    for n, t in np.ndindex(world.tokens.shape):
        rewards[n, t] = table.setdefault(tuple(world.tokens[n, : t + 1]), rng.normal())
    return rewards * world.mask


def test_policy_gradient_of_a_sentences_score_is_the_exact_gradient(world):
    """With one score for all tokens of a sentence, REINFORCE climbs the expected score."""
    score = sentence_scores(world)

    def expected_score(log_probs):
        return np.sum(np.exp(log_probs.sum(axis=1)) * score[:, 0])

    assert_expected_gradient_is(world, expected_score, np.broadcast_to(score, world.tokens.shape))


def test_policy_gradient_of_rewards_to_go_is_the_exact_gradient(world):
    rewards = prefix_rewards(world)

    def expected_sum(log_probs):
        return np.sum(np.exp(log_probs.sum(axis=1)) * rewards.sum(axis=1))

    assert_expected_gradient_is(world, expected_sum, np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1])


def test_policy_gradient_of_each_tokens_own_reward_looks_one_step_ahead(world):
    """Eq. 8 as it stands: a token answers for its own reward, the distribution of the prefixes held fixed."""
    rewards, given = prefix_rewards(world), world.log_probs

    def expected_next(log_probs):
        others = given.sum(axis=1, keepdims=True) - given  # of a sentence, the tokens before and after
        return np.sum(np.exp(others + log_probs) * rewards)

    assert_expected_gradient_is(world, expected_next, rewards)


def test_sampled_policy_gradient_estimates_the_exact_gradient(world):
    """4,000 sentences from the sampler: their mean slope is within four standard errors of the enumerated one."""
    config, score = world.config, sentence_scores(world)[:, 0]
    keys = jax.random.split(jax.random.key(0), 4_000)
    tokens = np.asarray(sample(config, world.params, keys, config.train_temperature).tokens)
    place = {tuple(row): n for n, row in enumerate(world.tokens)}
    index = np.array([place[tuple(row)] for row in tokens])
    p = np.exp(world.log_probs.sum(axis=1))
    seen = []
    for forth, back in world.moved:
        slopes = score * (forth - back).sum(axis=1) / (2 * STEP)
        error = slopes[index].std() / np.sqrt(len(index))
        assert abs(slopes[index].mean() - np.sum(p * slopes)) < 4 * error
        seen.append(abs(np.sum(p * slopes)) / error)
    assert max(seen) > 5  # or any sampler would do


def test_a_step_on_rewarded_sentences_raises_their_likelihood(tiny_end, monkeypatch):
    """The sign: a generator step with intrinsic reward 1 in two sentences raises these, with -1 lowers them."""
    tiny, config, key = tiny_end, tiny_end.config, jax.random.key(KEY)

    @without_key_check
    @jax.jit
    def step(state, reward):
        with monkeypatch.context() as patched:
            patched.setattr(goals, "intrinsic_reward", lambda *_: reward)
            return training.generator_step(config, state, key)[0]

    tokens = sample(config, tiny.params, jax.random.split(key, config.batch_size), config.train_temperature).tokens
    before = log_probs(config, tiny.params, tokens, 1.0).sum(axis=1)
    for sign in (1.0, -1.0):
        reward = np.zeros(tokens.shape, np.float32)
        reward[[1, 4]] = sign
        stepped = step(tiny.state, reward)
        params = tiny.params._replace(worker=stepped.worker.params)  # the Worker's step alone
        gain = log_probs(config, params, tokens, 1.0).sum(axis=1) - before
        assert np.all(sign * gain[np.array([1, 4])] > 1e-3)


# --- Who moves whom --------------------------------------------------------------------------------------------------


def test_generator_steps_move_manager_and_worker_only(tiny):
    steps = {
        "supervised": mle_step(tiny.config, tiny.state, tiny.tokens)[0],
        "adversarial": generator_step(tiny.config, tiny.state, jax.random.key(0))[0],
    }
    for kind, after in steps.items():
        other = "adversarial" if kind == "supervised" else "supervised"
        assert not differs(tiny.state.discriminator, after.discriminator)
        for name in ("manager", "worker"):
            old, new = getattr(tiny.state, name), getattr(after, name)
            moved = {key: differs(old.params[key], new.params[key]) for key in old.params}
            assert all(moved.values()), (kind, name, moved)
            assert differs(old.opt_state[kind], new.opt_state[kind])
            assert not differs(old.opt_state[other], new.opt_state[other])


def test_discriminator_step_moves_the_discriminator_only(tiny_end):
    tiny = tiny_end
    after, _ = discriminator_step(tiny.config, tiny.state, tiny.tokens, IS_REAL, jax.random.key(0))
    assert not differs((tiny.state.manager, tiny.state.worker), (after.manager, after.worker))
    assert all(differs(tiny.params.discriminator[k], after.discriminator.params[k]) for k in tiny.params.discriminator)


@pytest.mark.parametrize("reading", ["paper", "released"])
def test_no_loss_of_the_generator_has_a_gradient_in_another_network(reading, tiny_end, tiny_released_end):
    tiny = tiny_end if reading == "paper" else tiny_released_end
    config, tokens = tiny.config, tiny.tokens
    mask = tokens != config.pad_id
    given = prefix_features(config, tiny.params.discriminator, tokens)
    goal_rewards = np.ones((len(tokens), len(goals.transitions(config)[0])), np.float32)

    @jax.jit
    @jax.jacrev
    def gradients(params):
        features = discriminator.prefix_features(config, params.discriminator, tokens)
        recorded, known_goals = rollout.teacher_force(config, params, tokens, features, 1.0)
        reward = goals.intrinsic_reward(config, features, known_goals, goals.initial_goal(config, params))
        return {
            "likelihood": losses.negative_log_likelihood(recorded, mask),
            "policy": losses.policy_gradient(recorded, reward, mask),
            "manager": training._manager_loss(config, params, tokens, given, known_goals, goal_rewards),
        }

    for loss, grads in gradients(tiny.params).items():
        for name in ("manager", "worker", "discriminator"):
            norm = optax.tree.norm(getattr(grads, name))
            moves = name == ("manager" if loss == "manager" else "worker")
            assert (norm > 1e-3) if moves else (norm == 0), (loss, name)


def test_what_a_loss_scores_cannot_be_raised_through_its_reward():
    array = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    for loss in (losses.manager, losses.policy_gradient):
        assert not np.any(jax.grad(loss, argnums=1)(array, array, jnp.ones((3, 4), bool)))


# --- Steps that learn ------------------------------------------------------------------------------------------------


def test_supervised_steps_lower_both_losses_on_their_batch(tiny):
    state, recorded = tiny.state, []
    for _ in range(20):
        state, metrics = mle_step(tiny.config, state, tiny.tokens)
        recorded.append((float(metrics["worker_loss"]), float(metrics["manager_loss"])))
    assert np.all(np.array(recorded[-1]) < np.array(recorded[0]) - 1e-2)


def test_discriminator_steps_lower_its_loss(tiny_end):
    config = dataclasses.replace(tiny_end.config, dropout_keep=1.0, discriminator_lr=1e-2)
    state, recorded = tiny_end.state, []
    for _ in range(20):
        state, metrics = discriminator_step(config, state, tiny_end.tokens, IS_REAL, jax.random.key(0))
        recorded.append(float(metrics["discriminator_loss"]))
    assert recorded[-1] < recorded[0] / 2


def test_nothing_breaks_when_the_features_do_not_move(tiny):
    """Convolutions of zero: every prefix has the same feature, every value is tied, every cosine is 0."""
    d = dict(tiny.params.discriminator)
    # The highway layer's too, or its rounding, which differs from row to row, would be a movement.
    for name in [f"conv_{w}_kernel" for w in tiny.config.filter_windows] + ["highway_kernel", "highway_bias"]:
        d[name] = jnp.zeros_like(d[name])
    state = tiny.state.replace(discriminator=tiny.state.discriminator.replace(params=d))
    for after, metrics in (
        mle_step(tiny.config, state, tiny.tokens),
        generator_step(tiny.config, state, jax.random.key(0)),
    ):
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((after, metrics)))
        assert metrics["manager_loss"] == 0
        assert not differs(state.manager.params, after.manager.params)


# --- Dropout ---------------------------------------------------------------------------------------------------------


def test_dropout_is_on_while_the_discriminator_trains_and_follows_its_key(tiny_end):
    tiny = tiny_end
    assert tiny.config.dropout_keep < 1

    def loss(seed):
        step = discriminator_step(tiny.config, tiny.state, tiny.tokens, IS_REAL, jax.random.key(seed))
        return float(step[1]["discriminator_loss"])

    assert loss(0) == loss(0) != loss(1)


def test_dropout_keeps_the_mean_of_the_logits(tiny_end, monkeypatch):
    tiny = tiny_end
    monkeypatch.setattr(losses, "discriminator", lambda logits, is_real: logits[0])

    def logit(key):
        step = training.discriminator_step(tiny.config, tiny.state, tiny.tokens, IS_REAL, key)
        return step[1]["discriminator_loss"]

    logits = np.asarray(jax.jit(jax.vmap(logit))(jax.random.split(jax.random.key(0), 2_000)))
    d = tiny.arrays.discriminator
    undropped = reference.score(d, reference.feature(tiny.config, d, tiny.tokens[0]))
    assert logits.std() > 0.05
    assert abs(logits.mean() - undropped) < 4 * logits.std() / np.sqrt(len(logits))


def test_no_dropout_is_left_on_while_sentences_are_judged(tiny_end):
    tiny = tiny_end
    config, d = tiny.config, tiny.arrays.discriminator
    keys = jax.random.split(jax.random.key(0), 5)
    judge = without_key_check(jax.jit(rollout.sample_with_values, static_argnums=0))
    rolled, once = judge(config, tiny.params, keys, 1.0)
    np.testing.assert_array_equal(once, judge(config, tiny.params, keys, 1.0)[1])
    slow = [reference.probability(d, reference.feature(config, d, row)) for row in np.asarray(rolled.tokens)]
    assert_close(once[:, -1], slow)


# --- Padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [losses.manager, losses.policy_gradient])
def test_what_lies_after_the_end_changes_no_loss_and_gets_no_gradient(loss):
    rng = np.random.default_rng(0)
    scored, rewards = rng.normal(size=(2, 4, 6)).astype(np.float32)
    mask = np.arange(6) < np.array([6, 1, 3, 4])[:, None]
    value, grad = jax.value_and_grad(loss)(scored, rewards, mask)
    assert_close(value, -np.mean((rewards * scored)[mask]))
    np.testing.assert_array_equal(np.asarray(grad)[~mask], 0)
    for other in (np.where(mask, scored, 1e6), rng.permutation(scored.ravel()).reshape(4, 6)):
        changed = np.where(mask, scored, other).astype(np.float32)
        moved = np.where(mask, rewards, 1e6).astype(np.float32)
        np.testing.assert_array_equal(loss(changed, moved, mask), value)
    assert_close(losses.negative_log_likelihood(scored, mask), -np.mean(scored[mask]))


def test_a_batch_of_padding_alone_has_loss_zero():
    zeros = np.zeros((2, 3), bool)
    assert losses.negative_log_likelihood(jnp.ones((2, 3)), zeros) == 0


def test_what_is_seen_after_the_end_changes_no_likelihood(tiny_end):
    tiny, row = tiny_end, 2
    length = reference.sentence_length(tiny.config, tiny.tokens[row])
    assert length < tiny.config.length
    teacher_force = jax.jit(rollout.teacher_force, static_argnums=0)
    features = prefix_features(tiny.config, tiny.params.discriminator, tiny.tokens)
    moved = features.at[row, length:].add(3.0)
    given, changed = (teacher_force(tiny.config, tiny.params, tiny.tokens, f, 1.0)[0] for f in (features, moved))
    np.testing.assert_array_equal(changed, given)


# --- Scans are loops -------------------------------------------------------------------------------------------------


def test_an_mle_epoch_is_a_loop_over_a_random_order(tiny_end, sentences):
    tiny = tiny_end
    corpus = sentences(tiny.config, True, 13, seed=3)
    epoch = jax.jit(training.mle_epoch, static_argnums=0)
    scanned, metrics = epoch(tiny.config, tiny.state, corpus, jax.random.key(0))
    order = np.asarray(training._batches(jax.random.key(0), 13, 5))
    assert order.shape == (2, 5) and len(np.unique(order)) == 10  # three sit out, none comes twice
    state, recorded = tiny.state, []
    for rows in order:
        state, one = mle_step(tiny.config, state, corpus[rows])
        recorded.append(one)
    assert_trees_close(scanned, state, atol=1e-4)
    assert metrics.pop("bad_step") == 0
    assert_trees_close(metrics, jax.tree.map(lambda *x: np.mean(x), *recorded))


def test_generator_steps_are_a_loop_with_a_key_each(tiny_end, monkeypatch):
    config = dataclasses.replace(tiny_end.config, generator_steps=3)
    monkeypatch.setattr(training, "generator_step", lambda c, s, key: (2 * s + jax.random.uniform(key), {"old": s}))
    scanned, metrics = training.generator_steps(config, jnp.float32(1), None, jax.random.key(0))
    state, olds = 1.0, []
    for key in jax.random.split(jax.random.key(0), 3):
        olds.append(state)
        state = 2 * state + float(jax.random.uniform(key))
    assert_close(scanned, state)
    assert_close(metrics["old"], np.mean(olds))


def test_a_discriminator_draw_is_a_loop_over_real_and_generated_sentences(tiny_end, sentences):
    tiny = tiny_end
    config = dataclasses.replace(tiny.config, discriminator_epochs=2)
    real = sentences(config, True, 8, seed=4)
    draw = jax.jit(training.discriminator_draw, static_argnums=0)
    scanned, _ = draw(config, tiny.state, real, jax.random.key(0))
    sample_key, epochs_key = jax.random.split(jax.random.key(0))
    row_keys = jax.random.split(sample_key, 10)  # chunks of five
    chunks = [sample(tiny.config, tiny.params, k, config.negative_temperature).tokens for k in row_keys.reshape(2, 5)]
    generated = np.concatenate(chunks)[:8]
    tokens, is_real = np.concatenate([real, generated]), np.repeat(np.array([1.0, 0.0], np.float32), 8)
    state = tiny.state
    for epoch_key in jax.random.split(epochs_key, 2):
        order_key, dropout_key = jax.random.split(epoch_key)
        order = np.asarray(training._batches(order_key, 16, 5))
        for rows, step_key in zip(order, jax.random.split(dropout_key, len(order)), strict=True):
            state, _ = discriminator_step(config, state, tokens[rows], is_real[rows], step_key)
    assert_trees_close(scanned, state, atol=1e-4)


def test_evaluation_scores_held_out_text_and_its_own_samples_at_one_temperature(tiny_end, sentences):
    tiny, config = tiny_end, dataclasses.replace(tiny_end.config, eval_samples=7)
    heldout = sentences(config, True, 8, seed=5)
    evaluate = jax.jit(training.evaluate, static_argnums=0)
    tokens, metrics = evaluate(config, tiny.params, heldout, jax.random.key(0), 0.6)
    assert tokens.shape == (7, config.length)
    for name, rows in (("nll_gen", heldout), ("nll_div", np.asarray(tokens))):
        slow = [reference.log_probs(config, *tiny.arrays, row, 0.6) for row in rows]
        lengths = [reference.sentence_length(config, row) for row in rows]
        # Of real text, the unknown word 0 is left out; the model's own samples are what they are.
        scored = [
            log_prob
            for row, log_probs, length in zip(rows, slow, lengths, strict=True)
            for token, log_prob in zip(row[:length], log_probs)
            if name == "nll_div" or token != 0
        ]
        assert_close(metrics[name], -np.mean(scored))
    assert 0 in heldout
