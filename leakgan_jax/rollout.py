"""The rollout engine: one scan that samples sentences, completes prefixes, and its bulk form that scores.

It samples, completes and scores whichever model `config.model` says. A step of LeakGAN reads the leaked feature of the
prefix so far, lets the Manager set a goal and the Worker draw a token, and streams that token into the discriminator's
convolutions (SPEC section 5, points 1-4); a step of a baseline is one of its LSTM. Each row of a batch draws from its
own key, so a sentence does not depend on the batch it is in.

The discriminator's features are data to the generator: no gradient flows into them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leakgan_jax import goals as goals_
from leakgan_jax import parallel
from leakgan_jax.config import Config
from leakgan_jax.models import discriminator, language_model, manager, worker
from leakgan_jax.models.layers import LSTMState
from leakgan_jax.sampling import draw, row_uniform
from leakgan_jax.types import Array, BaselineParams, Key, Params, Rollout

_SCANS = 5  # of a baseline's staircase


class Carry(NamedTuple):
    """What one step hands to the next, for prefixes of `t` tokens; `R` rows."""

    keys: Key  # [R] typed, one a row
    token: Array  # [R] int32, x_t; the start token where t = 0
    ended: Array  # [R] bool, the end token was drawn
    generator: Any  # what the generator remembers of its prefix


class Generator(NamedTuple):
    """What the engine needs of a generator. Its state is a pytree with a row a sentence, and has a `feature`."""

    start: Callable[[int], Any]  # number of rows -> state of the empty prefix
    predict: Callable[[Any, Array, Array], tuple[Any, Array]]  # state, x_t `[R]`, t -> state, logits of x_{t+1}
    read: Callable[[Any, Array, Array], Any]  # state, x_{t+1} `[R]`, t -> state of the prefix with it


class LeakState(NamedTuple):
    """What LeakGAN's generator remembers of a prefix."""

    feature: Array  # [R, F], f_t
    stream: discriminator.StreamState
    manager: LSTMState
    worker: LSTMState
    recent: Array  # [R, C, k], W_psi of the last C goals, oldest first
    held: Array  # [R, k], the goal embedding of the step before


class PlainState(NamedTuple):
    """What a baseline's generator remembers of a prefix."""

    lstm: LSTMState
    tokens: Array  # [R, T] int32, the prefix; PAD where nothing is yet
    feature: None = None  # nothing leaks


class Step(NamedTuple):
    """What one step shows of itself."""

    token: Array  # [R] int32, x_{t+1}
    log_prob: Array  # [R]
    feature: Array | None  # [R, F], f_{t+1}


def sample(config: Config, params: Params | BaselineParams, keys: Key, temperature: Array | float) -> Rollout:
    """Samples one sentence a key.

    Args:
        keys: `[B]` typed keys, one a sentence: `jax.random.split(key, B)`.
        temperature: alpha; logits are divided by it (Eq. 6).
    """
    step = _make_step(config, params, temperature)
    start = parallel.spread(_start(config, params, keys))
    _, steps = jax.lax.scan(step, start, (jnp.arange(config.length), None))
    return _rollout(config, params, steps)


def sample_many(
    config: Config, params: Params | BaselineParams, key: Key, num: int, temperature: Array | float
) -> tuple[Array, Array]:
    """Samples `num` sentences, `config.sample_batch` at a time -> tokens and log-probabilities, `[num, T]` each."""
    batch = min(num, config.sample_batch)
    keys = jax.random.split(key, -(-num // batch) * batch).reshape(-1, batch)

    def chunk(keys):
        if more := parallel.padding(batch):  # so that devices get as many rows each
            keys = jnp.concatenate([keys, keys[:more]])
        rollout = sample(config, params, keys, temperature)
        return rollout.tokens[:batch], rollout.log_probs[:batch]

    tokens, log_probs = jax.lax.map(chunk, keys)
    return tokens.reshape(-1, config.length)[:num], log_probs.reshape(-1, config.length)[:num]


def sample_with_values(
    config: Config,
    params: Params | BaselineParams,
    keys: Key,
    temperature: Array | float,
    judge: Callable[[Any], Array] | None = None,
) -> tuple[Rollout, Array]:
    """Samples sentences and, in the same pass, judges each block of `C` tokens by completions of its prefix.

    The completions start as copies of the sentence's own carry at the block end and join the batch, so no prefix
    is run twice and there are `T` sequential steps in all, not `T` for each prefix and repetition.
    A baseline's blocks are single tokens, and a width of the batch for each compiles slowly (16 tokens: 40 s, against
    10); so a few share one, and their completions, joined together, take the sentence's tokens until they part.

    Args:
        judge: the generator's state at the end of `R` sentences -> their scores, `[R]`. Default: D of the leaked
            feature.

    Returns:
        The rollout, and values `[B, T / C]`: the mean score of `N` completions of `s_C, s_2C, ...`; in the last
        column the score of the sentence itself (SPEC section 2). A baseline has `C = 1`: a value for every token.
    """
    return parallel.map_shards(lambda own: _sample_with_values(config, params, own, temperature, judge), keys)


def _sample_with_values(config, params, keys: Key, temperature, judge) -> tuple[Rollout, Array]:
    step = _make_step(config, params, temperature)
    batch, repeats, horizon = keys.shape[0], config.completions, config.goal_horizon
    shared = 1 if config.model == "leakgan" else -(-config.num_blocks // _SCANS)
    carry, main = _start(config, params, keys), []
    own_from = np.zeros(batch, np.int32)  # of each row, where it parts from its sentence
    for first in range(0, config.num_blocks, shared):
        blocks = range(first, min(first + shared, config.num_blocks))
        if joining := [block for block in blocks if block]:
            copied = carry._replace(keys=None)  # type: ignore[arg-type]  # the copies get keys of their own
            children = jax.tree.map(lambda x: jnp.concatenate([x[:batch]] * repeats * len(joining)), copied)
            own_keys = [completion_keys(config, keys, block - 1).reshape(-1) for block in joining]
            children = children._replace(keys=jnp.concatenate(own_keys))
            carry = jax.tree.map(lambda *x: jnp.concatenate(x), carry, children)
            own_from = np.concatenate([own_from, np.repeat(np.array(joining) * horizon, repeats * batch)])
        if shared > 1:
            step = _make_step(config, params, temperature, own_from=own_from)
        indices = first * horizon + jnp.arange(len(blocks) * horizon)
        carry, steps = jax.lax.scan(_keeping(step, batch), carry, (indices, None))
        main.append(steps)
    if judge is None:
        scores = jax.nn.sigmoid(discriminator.logit(config, params.discriminator, carry.generator.feature))
    else:
        scores = judge(carry.generator)
    own, completed = scores[:batch], scores[batch:].reshape(-1, repeats, batch)
    values = jnp.concatenate([completed.mean(axis=1), own[None]]).T
    return _rollout(config, params, jax.tree.map(lambda *x: jnp.concatenate(x), *main)), values


def _keeping(step: Callable, batch: int) -> Callable:
    """A scan body that keeps nothing of completions: with their features memory would grow with the square of T."""

    def keep(carry: Carry, x: Any) -> tuple[Carry, Step]:
        carry, shown = step(carry, x)
        return carry, jax.tree.map(lambda rows: rows[:batch], shown)

    return keep


def completion_keys(config: Config, keys: Key, block: int) -> Key:
    """The keys of the `N` completions that start where `block` ends: `[B]` -> `[N, B]`."""
    # A row's draws fold in 0..T-1; its completions fold in what comes after.
    data = config.length + block * config.completions + jnp.arange(config.completions)
    return jax.vmap(lambda d: jax.vmap(lambda k: jax.random.fold_in(k, d))(keys))(data)


def complete(
    config: Config,
    params: Params | BaselineParams,
    keys: Key,
    tokens: Array,
    num_given: Array | int,
    temperature: Array | float,
    greedy: bool = False,
) -> Rollout:
    """Keeps the first `num_given` tokens of each sentence and samples the rest, one completion a key.

    Args:
        keys: `[B]` typed keys; tokens: `[B, T]` int32; num_given: `[]` int32, 0..T.
        greedy: take the likeliest token at every step, the lowest id among equals, instead of drawing one; static.
            Then the tokens depend on neither `keys` nor `temperature`, of which the log-probabilities still are.
    """
    step = _make_step(config, params, temperature, greedy)
    indices = jnp.arange(config.length)
    forced = jnp.where((indices < num_given)[:, None], tokens.T, -1)
    _, steps = jax.lax.scan(step, _start(config, params, keys), (indices, forced))
    return _rollout(config, params, steps)


def teacher_force(
    config: Config, params: Params, tokens: Array, features: Array, temperature: Array | float
) -> tuple[Array, Array]:
    """Log-probabilities of known sentences, and the goals behind them, all positions in bulk.

    Differentiable in the Worker's parameters through the first result and in the Manager's through the second;
    the goals reach the log-probabilities as data.

    Args:
        tokens: `[B, T]` int32, PAD after the end.
        features: `[B, T + 1, F]` from `discriminator.prefix_features` or a rollout.
    Returns:
        log p(x_t | s_{t-1}), `[B, T]`, 0 at PAD; and the Manager's goals, `[B, T, F]`.
    """
    hidden, goal_embedding, goals = worker_inputs(config, params, tokens, features)
    logits = worker.logits(config, params.worker, hidden, goal_embedding) / temperature
    # A PAD in `tokens` is no word: its index is clamped here and its log-probability set to 0 below.
    chosen = jnp.take_along_axis(logits, jnp.minimum(tokens, config.vocab_size - 1)[..., None], axis=-1)[..., 0]
    log_probs = chosen - jax.nn.logsumexp(logits, axis=-1)
    return jnp.where(tokens == config.pad_id, 0.0, log_probs), goals


def worker_inputs(config: Config, params: Params, tokens: Array, features: Array) -> tuple[Array, Array, Array]:
    """What the Worker's logits of known sentences come from; arguments and gradients as of `teacher_force`.

    Returns:
        The Worker's LSTM outputs, `[B, T, H]`, and goal embeddings, `[B, T, k]`, whose entry `t` belongs to token
        `t + 1`; and the Manager's goals, `[B, T, F]`.
    """
    features = jax.lax.stop_gradient(features)
    goals = manager.goals(config, params.manager, features[:, :-1])
    # Worker's loss must not move the Manager, whose the initial goal is, under the released reading.
    fixed = params._replace(manager=jax.lax.stop_gradient(params.manager))
    embedded = worker.embed_goal(config, params.worker, jax.lax.stop_gradient(goals))
    initial = worker.embed_goal(config, params.worker, goals_.initial_goal(config, fixed))
    goal_embedding = goals_.embed_sentence(config, embedded, initial)
    start = jnp.full((tokens.shape[0], 1), config.pad_id, tokens.dtype)
    inputs = jnp.concatenate([start, tokens[:, :-1]], axis=1)
    return worker.hidden(config, params.worker, inputs), goal_embedding, goals


def log_probs(config: Config, params: Params | BaselineParams, tokens: Array, temperature: Array | float) -> Array:
    """Log-probabilities of many known sentences, `[n, T]`, in batches that bound memory; no gradient."""

    def score(rows):
        rows = parallel.spread(rows)
        if isinstance(params, BaselineParams):
            return language_model.log_probs(generator_sizes(config), params.generator, rows, temperature)
        features = discriminator.prefix_features(config, params.discriminator, rows)
        return teacher_force(config, params, rows, features, temperature)[0]

    return map_batches(score, tokens, config.batch_size)


def map_batches(function, rows: Array, batch: int) -> Array:
    """`function` of `[batch, ...]` slices of `rows`, one after the other, over any number of rows."""
    num = rows.shape[0]
    batch = min(batch, num)
    padding = -num % batch
    padded = jnp.concatenate([rows, jnp.broadcast_to(rows[:1], (padding, *rows.shape[1:]))])
    out = jax.lax.map(function, padded.reshape(-1, batch, *rows.shape[1:]))
    return out.reshape(-1, *out.shape[2:])[:num]


def generator_sizes(config: Config) -> language_model.Sizes:
    """A baseline's generator is a language model as wide as LeakGAN's Worker."""
    return language_model.Sizes(config.vocab_size, config.worker_embedding, config.worker_hidden)


def _generator(config: Config, params: Params | BaselineParams) -> Generator:
    return _plain(config, params) if isinstance(params, BaselineParams) else _leaking(config, params)


def _leaking(config: Config, params: Params) -> Generator:
    """Manager and Worker, fed with D's features."""
    opened = discriminator.open_stream(config, params.discriminator)

    def start(rows: int) -> LeakState:
        stream, pooled = discriminator.start_stream(config, opened, rows)
        initial = worker.embed_goal(config, params.worker, goals_.initial_goal(config, params))
        return LeakState(
            feature=discriminator.highway(config, params.discriminator, pooled),
            stream=stream,
            manager=manager.initial_state(config, rows),
            worker=worker.initial_state(config, rows),
            recent=jnp.broadcast_to(initial, (rows, config.goal_horizon, config.goal_dim)),
            held=jnp.zeros((rows, config.goal_dim)),
        )

    def predict(state: LeakState, token: Array, t: Array) -> tuple[LeakState, Array]:
        manager_state, goal = manager.step(config, params.manager, state.manager, state.feature)
        goal_embedding = goals_.embed_step(config, state.recent, state.held, t)
        worker_state = worker.step(config, params.worker, state.worker, token)
        embedded = worker.embed_goal(config, params.worker, goal)
        recent = jnp.concatenate([state.recent[:, 1:], embedded[:, None]], axis=1)
        state = state._replace(manager=manager_state, worker=worker_state, recent=recent, held=goal_embedding)
        return state, worker.logits(config, params.worker, worker_state.hidden, goal_embedding)

    def read(state: LeakState, token: Array, t: Array) -> LeakState:
        stream, pooled = discriminator.stream(config, opened, state.stream, token, t)
        return state._replace(stream=stream, feature=discriminator.highway(config, params.discriminator, pooled))

    return Generator(start, predict, read)


def _plain(config: Config, params: BaselineParams) -> Generator:
    """The LSTM of a baseline."""
    sizes = generator_sizes(config)

    def start(rows: int) -> PlainState:
        empty = jnp.full((rows, config.length), config.pad_id, jnp.int32)
        return PlainState(language_model.initial_state(sizes, rows), empty)

    def predict(state: PlainState, token: Array, t: Array) -> tuple[PlainState, Array]:
        lstm = language_model.step(sizes, params.generator, state.lstm, token)
        return state._replace(lstm=lstm), language_model.logits(sizes, params.generator, lstm.hidden)

    def read(state: PlainState, token: Array, t: Array) -> PlainState:
        return state._replace(tokens=state.tokens.at[:, t].set(token))

    return Generator(start, predict, read)


def _start(config: Config, params: Params | BaselineParams, keys: Key) -> Carry:
    rows = keys.shape[0]
    token = jnp.full(rows, config.pad_id, jnp.int32)
    return Carry(keys, token, jnp.zeros(rows, bool), _generator(config, params).start(rows))


def _make_step(
    config: Config,
    params: Params | BaselineParams,
    temperature: Array | float,
    greedy: bool = False,
    own_from: np.ndarray | None = None,
):
    """The scan body: `(carry, (t, forced)) -> (carry, Step)`; `forced` `[R]` holds tokens to take, -1 to draw.

    `own_from`, `[R]`, is for rows that are copies, in order, of a batch that is still sampled: how many tokens each
    takes from there, 0 for those of the batch itself, which come first.
    """
    generator = _generator(config, params)

    def step(carry: Carry, x: tuple[Array, Array | None]) -> tuple[Carry, Step]:
        t, forced = x
        state, scores = generator.predict(carry.generator, carry.token, t)
        logits = scores / temperature
        token = jnp.argmax(scores, axis=-1) if greedy else draw(logits, row_uniform(carry.keys, t))
        if forced is not None:
            token = jnp.where(forced < 0, token, forced)
        if own_from is not None:
            batch = np.sum(own_from == 0)
            token = jnp.where(t < own_from, jnp.tile(token[:batch], len(own_from) // batch), token)
        token = jnp.where(carry.ended, config.pad_id, token)
        index = jnp.minimum(token, config.vocab_size - 1)
        log_prob = jnp.take_along_axis(logits, index[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
        log_prob = jnp.where(token == config.pad_id, 0.0, log_prob)
        state = generator.read(state, token, t)
        ended = carry.ended if config.end_id is None else carry.ended | (token == config.end_id)
        return Carry(carry.keys, token, ended, state), Step(token, log_prob, state.feature)

    return step


def _rollout(config: Config, params: Params | BaselineParams, steps: Step) -> Rollout:
    """Time-major steps of the whole sentence, as a batch-major rollout with the empty prefix's feature in front."""
    if steps.feature is None:
        return Rollout(steps.token.T, steps.log_prob.T, None)
    first = _generator(config, params).start(steps.token.shape[1]).feature
    features = jnp.concatenate([first[None], steps.feature]).swapaxes(0, 1)
    return Rollout(steps.token.T, steps.log_prob.T, features)
