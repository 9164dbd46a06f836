"""LeakGAN in its textbook form, as public implementations run it: what this library's form is timed against.

For every prefix the whole CNN on the padded sentence; completions one prefix and one repetition at a time, each
running its prefix again; `O_t` reshaped to `[B, V, k]` and multiplied by `w_t`; `batch_size` sentences at a time, and
an update that computes its features anew. Plain JAX, to be jitted, with scans where there are loops.

The layout of parameters, losses, rewards and targets are the library's, so `tests/test_textbook.py` can ask for equal
numbers. Letters in shapes as in `leakgan_jax/types.py`; `H` is the Worker's width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from leakgan_jax import goals as goals_
from leakgan_jax import losses, rewards, rollout, training
from leakgan_jax.config import Config
from leakgan_jax.types import Array, GanState, Key, Metrics, NetState, Params
from leakgan_jax.updates import optimizers


class Carry(NamedTuple):
    """What one step hands to the next, for prefixes of `t` tokens."""

    token: Array  # [B] int32, the last token; the start token where t = 0
    ended: Array  # [B] bool
    manager: tuple[Array, Array]  # cell and output of the LSTM
    worker: tuple[Array, Array]
    goals: Array  # [B, C, F], the last C goals, oldest first
    held: Array  # [B, k], the goal embedding of the step before


def convolve(x: Array, kernel: Array) -> Array:
    """One filter width: `[B, T, E]`, `[w, E, n]` -> `[B, T - w + 1, n]`."""
    return jax.lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))


def convolve_as_product(x: Array, kernel: Array) -> Array:
    """The same as a matrix product of windows."""
    width, channels, filters = kernel.shape
    starts = x.shape[1] - width + 1
    windows = jnp.concatenate([x[:, o : o + starts] for o in range(width)], axis=-1)
    return windows @ kernel.reshape(width * channels, filters)


def feature(config: Config, d: Any, tokens: Array, convolve: Callable = convolve) -> Array:
    """The leaked feature of sentences, or of prefixes padded to T (Eq. 1): `[B, T]` int32 -> `[B, F]`."""
    embedded = d["embedding"][tokens]
    pooled = []
    for w in config.filter_windows:
        sums = convolve(embedded, d[f"conv_{w}_kernel"]) + d[f"conv_{w}_bias"]
        pooled.append(jnp.max(jax.nn.relu(sums), axis=1))
    y = jnp.concatenate(pooled, axis=-1)
    transform, gate = jnp.split(y @ d["highway_kernel"] + d["highway_bias"], 2, axis=-1)
    gate = jax.nn.sigmoid(gate)
    return gate * jax.nn.relu(transform) + (1 - gate) * y


def probability(config: Config, d: Any, tokens: Array) -> Array:
    """D's probability that sentences, `[B, T]`, are real: `[B]`."""
    return jax.nn.sigmoid(feature(config, d, tokens) @ d["output_kernel"] + d["output_bias"])


def sample(config: Config, params: Params, key: Key, num: int, temperature: float) -> tuple[Array, Array]:
    """Samples `num` sentences, a batch at a time -> tokens and log-probabilities, `[num, T]` each."""
    batch = min(num, config.batch_size)

    def one_batch(key):
        empty = jnp.full((batch, config.length), config.pad_id, jnp.int32)
        return complete(config, params, key, empty, 0, temperature)

    tokens, log_probs = jax.lax.map(one_batch, jax.random.split(key, -(-num // batch)))
    return tokens.reshape(-1, config.length)[:num], log_probs.reshape(-1, config.length)[:num]


def complete(
    config: Config, params: Params, key: Key, tokens: Array, num_given: int, temperature: float
) -> tuple[Array, Array]:
    """Keeps the first `num_given` tokens of each sentence and samples the rest.

    Returns:
        Tokens, and the log-probabilities of those sampled, 0 elsewhere and at PAD: `[B, T]` each.
    """
    output = _output_matrix(params.worker)
    positions = jnp.arange(config.length)
    given = jnp.where(positions < num_given, tokens, config.pad_id)

    def read(carry, t):
        """A given token: no logits are needed."""
        prefix = jnp.where(positions < t, given, config.pad_id)
        carry, _, _, _ = _step(config, params, carry, feature(config, params.discriminator, prefix), t)
        return _follow(config, carry, given[:, t]), None

    def write(state, x):
        carry, sentence = state
        t, key = x
        carry, hidden, w, _ = _step(config, params, carry, feature(config, params.discriminator, sentence), t)
        log_p = jax.nn.log_softmax(_logits(config, output, hidden, w) / temperature)
        token = jax.random.categorical(key, log_p)
        log_prob = jnp.take_along_axis(log_p, token[:, None], axis=1)[:, 0]
        token = jnp.where(carry.ended, config.pad_id, token)
        log_prob = jnp.where(carry.ended, 0.0, log_prob)
        sentence = sentence.at[:, t].set(token)
        return (_follow(config, carry, token), sentence), log_prob

    carry, _ = jax.lax.scan(read, _start(config, params, tokens.shape[0]), positions[:num_given])
    steps = (positions[num_given:], jax.random.split(key, config.length - num_given))
    (_, sentence), log_probs = jax.lax.scan(write, (carry, given), steps)
    return sentence, jnp.pad(log_probs.T, ((0, 0), (num_given, 0)))


def values(config: Config, params: Params, key: Key, tokens: Array, temperature: float) -> Array:
    """The value of each block of sentences, `[B, T]`: the mean of D over `N` completions; the last, D's own score.

    Returns:
        `[B, T / C]`.
    """
    columns = []
    for block in range(1, config.num_blocks):

        def judge(repetition, given=block * config.goal_horizon):
            key, sentences = repetition
            completed, _ = complete(config, params, key, sentences, given, temperature)
            return probability(config, params.discriminator, completed)

        keys = jax.random.split(jax.random.fold_in(key, block), config.completions)
        # Each repetition has the sentences anew, or the compiler would read the prefix once for all of them.
        copies = jnp.broadcast_to(tokens, (config.completions, *tokens.shape))
        columns.append(jnp.mean(jax.lax.map(judge, (keys, copies)), axis=0))
    columns.append(probability(config, params.discriminator, tokens))
    return jnp.stack(columns, axis=1)


def sample_with_values(config: Config, params: Params, key: Key, temperature: float) -> tuple[Array, Array]:
    """`batch_size` sentences, `[B, T]`, and the values of their blocks, `[B, T / C]`."""
    sample_key, values_key = jax.random.split(key)
    tokens, _ = sample(config, params, sample_key, config.batch_size, temperature)
    return tokens, values(config, params, values_key, tokens, temperature)


def score(config: Config, params: Params, tokens: Array, temperature: float) -> tuple[Array, Array, Array]:
    """Known sentences, `[B, T]`, token by token.

    Returns:
        log p(x_t | s_{t-1}), `[B, T]`, 0 at PAD; the Manager's goals, `[B, T, F]`, through which alone there is a
        gradient to the Manager; the leaked features of prefixes 0..T, `[B, T + 1, F]`, without gradient.
    """
    d = jax.lax.stop_gradient(params.discriminator)
    positions = jnp.arange(config.length)

    def of_prefix(t):
        return feature(config, d, jnp.where(positions < t, tokens, config.pad_id))

    features = jax.lax.map(of_prefix, jnp.arange(config.length + 1))  # [T + 1, B, F]
    output = _output_matrix(params.worker)

    def step(carry, x):
        t, given, token = x
        carry, hidden, w, goal = _step(config, params, carry, given, t)
        log_p = jax.nn.log_softmax(_logits(config, output, hidden, w) / temperature)
        word = jnp.minimum(token, config.vocab_size - 1)  # PAD is none, and scores 0
        log_prob = jnp.take_along_axis(log_p, word[:, None], axis=1)[:, 0]
        return carry._replace(token=token), (jnp.where(token == config.pad_id, 0.0, log_prob), goal)

    steps = (positions, features[:-1], tokens.T)
    _, (log_probs, goals) = jax.lax.scan(step, _start(config, params, tokens.shape[0]), steps)
    return log_probs.T, goals.swapaxes(0, 1), features.swapaxes(0, 1)


def mle_step(config: Config, state: GanState, tokens: Array) -> tuple[GanState, Metrics]:
    """One supervised update of Manager and Worker on real `tokens`, `[B, T]`."""

    def loss(params):
        log_probs, goals, features = score(config, params, tokens, 1.0)
        nll = losses.negative_log_likelihood(log_probs, tokens != config.pad_id)
        ones = jnp.ones((tokens.shape[0], len(goals_.transitions(config)[0])))
        goal_loss = _manager_loss(config, params, tokens, features, goals, ones)
        return nll + goal_loss, {"worker_loss": nll, "manager_loss": goal_loss}

    return _update_generator(config, state, loss, "supervised")


def generator_step(config: Config, state: GanState, key: Key) -> tuple[GanState, Metrics]:
    """One adversarial update of Manager and Worker on `batch_size` sentences of their own."""
    tokens, judged = sample_with_values(config, state.params, key, config.train_temperature)
    return generator_update(config, state, tokens, judged)


def generator_update(
    config: Config, state: GanState, tokens: Array, judged: Array, score: Callable = score
) -> tuple[GanState, Metrics]:
    """The update of the adversarial step alone.

    Args:
        tokens: `[B, T]`, sampled; judged: `[B, T / C]`, the values of their blocks.
        score: what gives log-probabilities, goals and features; the benchmark puts the library's here.
    """
    mask = tokens != config.pad_id
    rescaled = rewards.rescale(judged, config.rescale_slope, goals_.live_blocks(config, mask))
    goal_rewards = rescaled[:, goals_.transitions(config)[1]]

    def loss(params):
        log_probs, goals, features = score(config, params, tokens, config.train_temperature)
        goal_loss = _manager_loss(config, params, tokens, features, goals, goal_rewards)
        initial = goals_.initial_goal(config, params)
        reward = goals_.intrinsic_reward(config, features, *jax.lax.stop_gradient((goals, initial)))
        worker_loss = losses.policy_gradient(log_probs, reward, mask)
        return goal_loss + worker_loss, {"worker_loss": worker_loss, "manager_loss": goal_loss}

    return _update_generator(config, state, loss, "adversarial")


def discriminator_step(
    config: Config, state: GanState, tokens: Array, is_real: Array, key: Key, convolve: Callable = convolve
) -> tuple[GanState, Metrics]:
    """One update of D on `tokens` `[B, T]` with labels `is_real` `[B]`; `key` for dropout."""

    def loss(params):
        features = feature(config, params, tokens, convolve)
        if config.dropout_keep < 1:
            kept = jax.random.bernoulli(key, config.dropout_keep, features.shape)
            features = jnp.where(kept, features / config.dropout_keep, 0.0)
        logits = features @ params["output_kernel"] + params["output_bias"]
        squared = jnp.sum(params["output_kernel"] ** 2) + params["output_bias"] ** 2
        entropy = losses.discriminator(logits, is_real)
        return entropy + config.discriminator_l2 * 0.5 * squared, {"discriminator_loss": entropy}

    grads, metrics = jax.grad(loss, has_aux=True)(state.discriminator.params)
    net, optimizer = state.discriminator, optimizers(config)[2]
    updates, moments = optimizer.update(grads, net.opt_state, net.params)
    return state.replace(discriminator=NetState(optax.apply_updates(net.params, updates), moments)), metrics


def discriminator_draw(config: Config, state: GanState, real: Array, key: Key) -> tuple[GanState, Metrics]:
    """Draws as many negatives as there are sentences in `real`, `[n, T]`, and trains D on both for its epochs."""
    sample_key, epochs_key = jax.random.split(key)
    num = real.shape[0]
    generated, _ = sample(config, state.params, sample_key, num, config.negative_temperature)
    tokens = jnp.concatenate([real, generated])
    is_real = jnp.concatenate([jnp.ones(num), jnp.zeros(num)])
    # Within a scan, XLA's gradient of a convolution takes about ten times as long on a CPU as outside of one.
    form = convolve_as_product if jax.default_backend() == "cpu" else convolve

    def epoch(state, key):
        order_key, dropout_key = jax.random.split(key)
        steps = 2 * num // config.batch_size
        order = jax.random.permutation(order_key, 2 * num)[: steps * config.batch_size].reshape(steps, -1)

        def step(state, x):
            rows, step_key = x
            return discriminator_step(config, state, tokens[rows], is_real[rows], step_key, form)

        return jax.lax.scan(step, state, (order, jax.random.split(dropout_key, steps)))

    state, metrics = jax.lax.scan(epoch, state, jax.random.split(epochs_key, config.discriminator_epochs))
    return state, jax.tree.map(jnp.mean, metrics)


def evaluate(config: Config, params: Params, heldout: Array, key: Key, temperature: float) -> tuple[Array, Metrics]:
    """Samples `eval_samples` sentences and scores `heldout`, `[n, T]`, as `training.evaluate` does."""
    tokens, own = sample(config, params, key, config.eval_samples, temperature)
    real = rollout.map_batches(lambda rows: score(config, params, rows, temperature)[0], heldout, config.batch_size)
    nll_gen = losses.negative_log_likelihood(real, training.known_words(config, heldout))
    nll_div = losses.negative_log_likelihood(own, tokens != config.pad_id)
    return tokens, {"nll_gen": nll_gen, "nll_div": nll_div}


def _start(config: Config, params: Params, batch: int) -> Carry:
    initial = goals_.initial_goal(config, params)
    if config.reading == "released":  # there it is the Manager's, and no loss of the Worker moves that
        initial = jax.lax.stop_gradient(initial)
    manager, worker = jnp.zeros((batch, config.manager_hidden)), jnp.zeros((batch, config.worker_hidden))
    return Carry(
        token=jnp.full(batch, config.pad_id, jnp.int32),
        ended=jnp.zeros(batch, bool),
        manager=(manager, manager),
        worker=(worker, worker),
        goals=jnp.broadcast_to(initial, (batch, config.goal_horizon, config.feature_dim)),
        held=jnp.zeros((batch, config.goal_dim)),
    )


def _step(config: Config, params: Params, carry: Carry, feature: Array, t: Array):
    """Reads the feature of the prefix of `t` tokens and its last token.

    Returns:
        The carry but for the next token, the Worker's output `[B, H]`, the goal embedding `[B, k]`, the goal `[B, F]`.
    """
    manager = _lstm(params.manager["lstm"], carry.manager, feature)
    goal = _unit(manager[1] @ params.manager["output_kernel"] + params.manager["output_bias"])
    worker = _lstm(params.worker["lstm"], carry.worker, params.worker["embedding"][carry.token])
    w = carry.goals.sum(axis=1) @ params.worker["goal_kernel"]
    if config.reading == "released":
        w = jnp.where(t % config.goal_horizon == 0, _unit(w), carry.held)
    recent = jnp.concatenate([carry.goals[:, 1:], jax.lax.stop_gradient(goal)[:, None]], axis=1)
    return carry._replace(manager=manager, worker=worker, goals=recent, held=w), worker[1], w, goal


def _follow(config: Config, carry: Carry, token: Array) -> Carry:
    ended = carry.ended if config.end_id is None else carry.ended | (token == config.end_id)
    return carry._replace(token=token, ended=ended)


def _output_matrix(worker: Any) -> tuple[Array, Array]:
    """The Worker's output layer as public code has it, once a call: `[H, V * k]` and `[V * k]`."""
    kernel, bias = worker["output_kernel"], worker["output_bias"]
    return kernel.swapaxes(1, 2).reshape(kernel.shape[0], -1), bias.T.reshape(-1)


def _logits(config: Config, output: tuple[Array, Array], hidden: Array, w: Array) -> Array:
    """`O_t w_t`, `[B, V]`: the Worker's output as `[B, V, k]`, times the goal embedding (Eq. 5-6)."""
    kernel, bias = output
    matrix = (hidden @ kernel + bias).reshape(-1, config.vocab_size, config.goal_dim)
    return jnp.einsum("bvk,bk->bv", matrix, w)


def _lstm(params: Any, state: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
    cell, hidden = state
    gates = jnp.concatenate([x, hidden], axis=-1) @ params["kernel"] + params["bias"]
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return cell, jax.nn.sigmoid(o) * jnp.tanh(cell)


def _unit(x: Array, eps: float = 1e-6) -> Array:
    return x / jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps**2))


def _manager_loss(config: Config, params: Params, tokens, features, goals, goal_rewards) -> Array:
    alignment = goals_.alignment(config, features, goals, goals_.initial_goal(config, params))
    mask = (tokens != config.pad_id)[:, goals_.transitions(config)[0]]
    return losses.manager(alignment, goal_rewards, mask)


def _update_generator(config: Config, state: GanState, loss: Callable, kind: str) -> tuple[GanState, Metrics]:
    def of_generator(manager, worker):
        return loss(Params(manager, worker, state.discriminator.params))

    grads, metrics = jax.grad(of_generator, argnums=(0, 1), has_aux=True)(state.manager.params, state.worker.params)
    optimizer = optimizers(config)[0 if kind == "supervised" else 1]

    def updated(net, grad):
        updates, moments = optimizer.update(grad, net.opt_state[kind], net.params)
        return NetState(optax.apply_updates(net.params, updates), {**net.opt_state, kind: moments})

    return state.replace(manager=updated(state.manager, grads[0]), worker=updated(state.worker, grads[1])), metrics
