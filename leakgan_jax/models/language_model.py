"""Language model: a plain LSTM over tokens, and its training by maximum likelihood with early stopping.

It knows nothing of the GAN, so it can judge one: trained on real text it scores samples, trained on samples it
scores real text. PAD, one past the vocabulary, is the start token; after the end of a sentence it counts nowhere.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from leakgan_jax import losses
from leakgan_jax.models.layers import INIT, LSTM, LSTMState, zero_state
from leakgan_jax.types import Array, Key

_CHUNK = 64  # sentences scored at a time; 41 MB of logits at 32 tokens and 5,000 words


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What shapes the model."""

    vocab_size: int
    embedding: int = 64
    hidden: int = 128

    @property
    def pad_id(self) -> int:
        return self.vocab_size


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How `fit` trains: Adam on shuffled batches."""

    epochs: int = 20
    """Epochs at most."""
    patience: int = 2
    """Epochs without a better validation NLL before training stops."""
    batch_size: int = 32
    """Sentences an update."""
    learning_rate: float = 5e-3


class Fitted(NamedTuple):
    """The best epoch of a training."""

    params: Any
    epoch: Array  # [] int32, from 1
    nll: Array  # [] nats per token of the validation sentences


class LanguageModel(nn.Module):
    sizes: Sizes

    def setup(self):
        s = self.sizes
        self.embedding = self.param("embedding", INIT, (s.vocab_size + 1, s.embedding))
        self.lstm = LSTM(s.embedding, s.hidden)
        self.output_kernel = self.param("output_kernel", INIT, (s.hidden, s.vocab_size))
        self.output_bias = self.param("output_bias", nn.initializers.zeros, (s.vocab_size,))

    def __call__(self, state: LSTMState, token: Array) -> Array:
        return self.logits(self.recur(state, self.project(token)).hidden)

    def project(self, tokens: Array) -> Array:
        return self.lstm.project(self.embedding[tokens])

    def recur(self, state: LSTMState, projected: Array) -> LSTMState:
        return self.lstm.recur(state, projected)

    def logits(self, hidden: Array) -> Array:
        return hidden @ self.output_kernel + self.output_bias


def init(sizes: Sizes, key: Key) -> Any:
    """Draws the parameters. Consumes `key`."""
    return LanguageModel(sizes).init(key, zero_state(1, sizes.hidden), jnp.zeros((1,), jnp.int32))["params"]


def initial_state(sizes: Sizes, batch: int) -> LSTMState:
    """The LSTM's state before the start token is read."""
    return zero_state(batch, sizes.hidden)


def step(sizes: Sizes, params: Any, state: LSTMState, token: Array) -> LSTMState:
    """Reads one token, `[B]` int32; the padding id is the start token."""
    return _apply(sizes, params, state, _apply(sizes, params, token, method="project"), method="recur")


def hidden(sizes: Sizes, params: Any, tokens: Array) -> Array:
    """LSTM outputs over a whole sentence of inputs: `[B, T]` int32 -> `[B, T, H]`."""
    projected = _apply(sizes, params, tokens, method="project").swapaxes(0, 1)

    def body(state, x):
        state = _apply(sizes, params, state, x, method="recur")
        return state, state.hidden

    _, outputs = jax.lax.scan(body, initial_state(sizes, tokens.shape[0]), projected)
    return outputs.swapaxes(0, 1)


def logits(sizes: Sizes, params: Any, hidden: Array) -> Array:
    """Next-token logits before any temperature: `[..., H] -> [..., V]`."""
    return _apply(sizes, params, hidden, method="logits")


def log_probs(sizes: Sizes, params: Any, tokens: Array, temperature: Array | float = 1.0) -> Array:
    """log p(x_t | s_{t-1}) of known sentences: `[B, T]` int32, PAD after the end -> `[B, T]`, 0 at PAD."""
    start = jnp.full((tokens.shape[0], 1), sizes.pad_id, tokens.dtype)
    inputs = jnp.concatenate([start, tokens[:, :-1]], axis=1)
    scores = logits(sizes, params, hidden(sizes, params, inputs)) / temperature
    # A PAD in `tokens` is no word: its index is clamped here and its log-probability set to 0 below.
    chosen = jnp.take_along_axis(scores, jnp.minimum(tokens, sizes.vocab_size - 1)[..., None], axis=-1)[..., 0]
    return jnp.where(tokens == sizes.pad_id, 0.0, chosen - jax.nn.logsumexp(scores, axis=-1))


def nll(sizes: Sizes, params: Any, tokens: Array, counted: Array | None = None) -> Array:
    """Mean of `- log p`, in nats, over the tokens of any number of sentences, `[n, T]`; no gradient.

    `counted`, `[n, T]`, is true for the tokens that count; by default for all but PAD, which never counts.
    """
    num, length = tokens.shape
    padding = -num % min(_CHUNK, num)
    counted = tokens != sizes.pad_id if counted is None else counted & (tokens != sizes.pad_id)
    rows = jnp.pad(tokens, ((0, padding), (0, 0)), constant_values=sizes.pad_id)
    chunks = rows.reshape(-1, min(_CHUNK, num), length)
    scores = jax.lax.map(lambda chunk: log_probs(sizes, params, chunk), chunks).reshape(-1, length)[:num]
    return losses.negative_log_likelihood(scores, counted)


def fit(sizes: Sizes, tokens: Array, valid: Array, key: Key, schedule: Schedule) -> Fitted:
    """Trains a new model on `tokens`, `[n, T]`, and keeps the epoch of lowest NLL on `valid`, `[m, T]`.

    One call on device-resident data; what does not fill a batch sits out of an epoch. Consumes `key`.
    """
    init_key, order_key = jax.random.split(key)
    optimizer = optax.adam(schedule.learning_rate)
    num = tokens.shape[0]
    batch = min(schedule.batch_size, num)

    def loss(params, rows):
        return losses.negative_log_likelihood(log_probs(sizes, params, rows), rows != sizes.pad_id)

    def update(carry, rows):
        params, moments = carry
        updates, moments = optimizer.update(jax.grad(loss)(params, tokens[rows]), moments, params)
        return (optax.apply_updates(params, updates), moments), None

    def epoch(carry):
        done, trained, best = carry
        order = jax.random.permutation(jax.random.fold_in(order_key, done), num)
        trained, _ = jax.lax.scan(update, trained, order[: num // batch * batch].reshape(-1, batch))
        now = Fitted(trained[0], done + 1, nll(sizes, trained[0], valid))
        better = now.nll < best.nll
        return done + 1, trained, jax.tree.map(lambda new, old: jnp.where(better, new, old), now, best)

    def unfinished(carry):
        done, _, best = carry
        return (done < schedule.epochs) & (done - best.epoch < schedule.patience)

    params = init(sizes, init_key)
    start = Fitted(params, jnp.int32(0), jnp.float32(jnp.inf))
    return jax.lax.while_loop(unfinished, epoch, (jnp.int32(0), (params, optimizer.init(params)), start))[2]


def _apply(sizes: Sizes, params: Any, *args, method: str):
    return LanguageModel(sizes).apply({"params": params}, *args, method=method)
