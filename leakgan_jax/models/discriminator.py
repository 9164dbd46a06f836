"""Discriminator: a text CNN whose last hidden layer is the feature it leaks to the generator.

Two ways lead to the pooled convolutions and agree to rounding (1e-6 seen):

- `pooled` convolves whole sentences and has a gradient: D's own training.
- `open_stream`, `start_stream` and `stream` read a sentence token by token and give the features of every
  prefix, a prefix of `t` tokens being the sentence padded to `T`: sampling and teacher forcing. A token
  touches at most `w` windows of a filter of width `w`, so the cost of a sentence is linear in `T`.

Source: Guo et al. 2018, arXiv:1709.08624, Eq. 1; SPEC sections 1 and 5.1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from leakgan_jax.config import Config
from leakgan_jax.types import Array, Key


class Stream(NamedTuple):
    """D's convolutions, arranged for one token at a time."""

    delta: Array  # [V + 1, E] each embedding less that of PAD
    kernel: Array  # [E, sum over w of w * n_w] what a token adds to the windows it can stand in
    padded: tuple[Array, ...]  # n_w for each w: a window that holds PAD alone


class StreamState(NamedTuple):
    """Windows of a prefix, for each filter width."""

    begun: tuple[Array, ...]  # [B, w - 1, n_w] sums of windows not yet full, the youngest first
    best: tuple[Array, ...]  # [B, n_w] maximum over full windows


class Discriminator(nn.Module):
    config: Config

    def setup(self):
        c, width = self.config, self.config.feature_dim
        normal = nn.initializers.truncated_normal(0.1)
        self.embedding = self.param("embedding", _uniform, (c.vocab_size + 1, c.discriminator_embedding))
        self.kernels = [
            self.param(f"conv_{w}_kernel", normal, (w, c.discriminator_embedding, n))
            for w, n in zip(c.filter_windows, c.filter_counts)
        ]
        self.biases = [
            self.param(f"conv_{w}_bias", nn.initializers.constant(0.1), (n,))
            for w, n in zip(c.filter_windows, c.filter_counts)
        ]
        self.highway_kernel = self.param("highway_kernel", _two_glorots, (width, 2 * width))
        self.highway_bias = self.param("highway_bias", nn.initializers.zeros, (2 * width,))
        self.output_kernel = self.param("output_kernel", normal, (width,))
        self.output_bias = self.param("output_bias", nn.initializers.zeros, ())

    def __call__(self, tokens: Array) -> Array:
        return self.logit(self.highway(self.pooled(tokens)))

    def pooled(self, tokens: Array) -> Array:
        # Gathered windows times a matrix: on two CPU cores D's gradient on 64 sentences took 46 ms so,
        # 66-110 ms with lax.conv.
        embedded = self.embedding[tokens]
        maxima = []
        for w, kernel, bias in zip(self.config.filter_windows, self.kernels, self.biases):
            starts = tokens.shape[1] - w + 1
            windows = jnp.concatenate([embedded[:, o : o + starts] for o in range(w)], axis=-1)
            sums = windows @ kernel.reshape(-1, kernel.shape[-1])
            maxima.append(jnp.max(sums, axis=1) + bias)
        return nn.relu(jnp.concatenate(maxima, axis=-1))

    def highway(self, pooled: Array) -> Array:
        transform, gate = jnp.split(pooled @ self.highway_kernel + self.highway_bias, 2, axis=-1)
        gate = nn.sigmoid(gate)
        return gate * nn.relu(transform) + (1 - gate) * pooled

    def logit(self, features: Array) -> Array:
        return features @ self.output_kernel + self.output_bias

    def open_stream(self) -> Stream:
        pad = self.embedding[self.config.pad_id]
        parts = [kernel.transpose(1, 0, 2).reshape(kernel.shape[1], -1) for kernel in self.kernels]
        padded = [jnp.einsum("e,oen->n", pad, kernel) + bias for kernel, bias in zip(self.kernels, self.biases)]
        return Stream(self.embedding - pad, jnp.concatenate(parts, axis=-1), tuple(padded))


def init(config: Config, key: Key) -> Any:
    """Draws D's parameters as the released code does. Consumes `key`."""
    return Discriminator(config).init(key, jnp.zeros((1, config.length), jnp.int32))["params"]


def pooled(config: Config, params: Any, tokens: Array) -> Array:
    """Maxima of every filter over whole sentences: `[B, T]` int32, PAD after the end -> `[B, F]`."""
    return _apply(config, params, tokens, method="pooled")


def highway(config: Config, params: Any, pooled_features: Array) -> Array:
    """The leaked feature `f` from pooled convolutions: `[..., F] -> [..., F]`."""
    return _apply(config, params, pooled_features, method="highway")


def logit(config: Config, params: Any, features: Array) -> Array:
    """Log-odds that a sentence is real: leaked features `[..., F] -> [...]`. No dropout in here."""
    return _apply(config, params, features, method="logit")


def dropout(config: Config, features: Array, key: Key) -> Array:
    """Leaked features as D sees them while it trains, `[..., F]`: a share kept, and scaled up to keep the mean."""
    if config.dropout_keep == 1:
        return features
    kept = jax.random.bernoulli(key, config.dropout_keep, features.shape)
    return jnp.where(kept, features / config.dropout_keep, 0.0)


def open_stream(config: Config, params: Any) -> Stream:
    """What `stream` needs of the parameters; once a call, outside the scan."""
    return _apply(config, params, method="open_stream")


def start_stream(config: Config, opened: Stream, batch: int) -> tuple[StreamState, Array]:
    """Before the first token -> state, and the pooled features of the empty prefix, `[batch, F]`."""
    # -inf stands for a window that does not exist, so that it never is the maximum.
    begun = [jnp.full((batch, w - 1, n), -jnp.inf) for w, n in _filters(config)]
    best = [jnp.full((batch, n), -jnp.inf) for _, n in _filters(config)]
    features = nn.relu(jnp.concatenate(opened.padded))
    return StreamState(tuple(begun), tuple(best)), jnp.tile(features, (batch, 1))


def stream(config: Config, opened: Stream, state: StreamState, token: Array, index: Array) -> tuple[StreamState, Array]:
    """Reads one more token.

    Args:
        token: `[B]` int32; PAD after the end of a sentence.
        index: `[]` int32, how many tokens came before it.
    Returns:
        The new state, and the pooled features of the prefix that ends with `token`, `[B, F]`.
    """
    added = opened.delta[token] @ opened.kernel  # [B, sum of w * n_w]
    sizes = [w * n for w, n in _filters(config)]
    parts = jnp.split(added, [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)], axis=-1)
    begun, best, maxima = [], [], []
    for (w, n), part, padded, old, full in zip(_filters(config), parts, opened.padded, state.begun, state.best):
        last_start = config.length - w
        # Window `a` of `now` began `a` tokens ago and sees this token at its place `a`.
        youngest = jnp.where(index <= last_start, padded, -jnp.inf)
        youngest = jnp.broadcast_to(youngest, (token.shape[0], 1, n))
        now = jnp.concatenate([youngest, old], axis=1) + part.reshape(-1, w, n)
        full = jnp.maximum(full, now[:, -1])
        yet_to_begin = jnp.where(index < last_start, padded, -jnp.inf)
        maxima.append(jnp.maximum(jnp.maximum(full, jnp.max(now, axis=1)), yet_to_begin))
        begun.append(now[:, :-1])
        best.append(full)
    return StreamState(tuple(begun), tuple(best)), nn.relu(jnp.concatenate(maxima, axis=-1))


def prefix_features(config: Config, params: Any, tokens: Array) -> Array:
    """Leaked features of every prefix: `[B, T]` int32 -> `[B, T + 1, F]`; entry `t` has read `t` tokens."""
    opened = open_stream(config, params)
    state, first = start_stream(config, opened, tokens.shape[0])
    steps = (tokens.T, jnp.arange(tokens.shape[1]))
    _, rest = jax.lax.scan(lambda s, x: stream(config, opened, s, *x), state, steps)
    return highway(config, params, jnp.concatenate([first[None], rest]).swapaxes(0, 1))


def _filters(config: Config):
    return list(zip(config.filter_windows, config.filter_counts))


def _apply(config: Config, params: Any, *args, method: str):
    return Discriminator(config).apply({"params": params}, *args, method=method)


def _uniform(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0)


def _two_glorots(key, shape, dtype=jnp.float32):
    """Glorot-uniform transform and gate, side by side."""
    halves = [nn.initializers.glorot_uniform()(k, (shape[0], shape[1] // 2), dtype) for k in jax.random.split(key)]
    return jnp.concatenate(halves, axis=1)
