"""Rewards: values and features turned into a learning signal.

Source: Guo et al. 2018, arXiv:1709.08624, Eq. 9 and 11; SPEC section 2.
"""

import chex
import jax
import jax.numpy as jnp

from leakgan_jax.models.layers import unit
from leakgan_jax.types import Array


def rescale(values: Array, slope: float, live: Array | None = None) -> Array:
    """Bootstrapped rescaled activation: a value's rank within the batch, squashed.

    reward[i, j] = sigmoid(slope * (0.5 - rank(i) / B)), rank 1 = highest value, equal values share their mean rank.

    Source: Eq. 11.
    Args:
        values: `[B, J]`, one column a block end.
        slope: delta of Eq. 11, positive.
        live: `[B, J]` bool; sentences that ended before a block neither count among its `B` nor get a reward.
    Returns:
        `[B, J]` in (0, 1); 0 where not live.
    """
    chex.assert_rank(values, 2)
    live = jnp.ones(values.shape, bool) if live is None else live
    chex.assert_equal_shape([values, live])
    mine, others = values[:, None], values[None]  # [B, 1, J], [1, B, J]
    weight = live[None].astype(values.dtype)
    above = jnp.sum((others > mine) * weight, axis=1)
    equal = jnp.sum((others == mine) * weight, axis=1)
    rank = above + (equal + 1) / 2
    count = jnp.maximum(jnp.sum(live, axis=0), 1)
    return jnp.where(live, jax.nn.sigmoid(slope * (0.5 - rank / count)), 0.0)


def shared(reward: Array, mask: Array, axis: int | None) -> Array:
    """Each token's reward replaced by the mean over its sentence (`axis` 1), or over the whole batch (None).

    Both `[B, T]`; where `mask` is 0 the reward is 0.
    """
    count = jnp.maximum(jnp.sum(mask, axis, keepdims=True), 1)
    return jnp.where(mask, jnp.sum(jnp.where(mask, reward, 0.0), axis, keepdims=True) / count, 0.0)


def advantage(reward: Array, mask: Array, standardise: bool = False) -> Array:
    """Rewards less their mean over the batch at each position, so that only what is better than the others is learned.

    The mean holds the sentence's own reward, which makes the gradient a share `1 / B` smaller and, where a reward does
    not depend on the other sentences, changes nothing else.

    Args:
        reward: `[B, T]`; mask: `[B, T]`, 0 after a sentence's end, where no reward counts.
        standardise: divide by the standard deviation over all that counts, if there is any.
    Returns:
        `[B, T]`; 0 where `mask` is 0.
    """
    count = jnp.maximum(jnp.sum(mask, axis=0), 1)
    mean = jnp.sum(jnp.where(mask, reward, 0.0), axis=0) / count
    centred = jnp.where(mask, reward - mean, 0.0)
    if not standardise:
        return centred
    spread = jnp.sqrt(jnp.sum(centred**2) / jnp.maximum(jnp.sum(mask), 1))
    return centred / jnp.maximum(spread, 1e-8)


def intrinsic(features: Array, goals: Array, *, horizon: int) -> Array:
    """Rewards each token of one sentence for moving the features along recent goals.

    reward[t - 1] = 1/C sum over i = 1..C of cos(features[t] - features[t - i], goals[t - i])

    Source: Eq. 9. Terms with i > t have no prefix to compare and are dropped from the sum.
    Args:
        features: `[T + 1, F]`, leaked features of prefixes 0..T.
        goals: `[T, F]`, the goal on seeing each prefix, any scale.
        horizon: C, how many past goals a token answers to; static.
    Returns:
        `[T]` in [-1, 1]. A token that leaves the features unmoved scores 0, with finite gradient.
    """
    length, width = goals.shape
    chex.assert_shape(features, (length + 1, width))
    total = jnp.zeros(length)
    for i in range(1, min(horizon, length) + 1):
        total = total.at[i - 1 :].add(cosine(features[i:] - features[:-i], goals[: length - i + 1]))
    return total / horizon


def intrinsic_held(features: Array, held: Array, *, horizon: int) -> Array:
    """Eq. 9 as released: cos(features[t] - features[block start], the goal held for the block).

    Args:
        features: `[T + 1, F]`; held: `[T / C, F]`, one goal a block; horizon: C, static.
    Returns:
        `[T]` in [-1, 1].
    """
    blocks, width = held.shape
    chex.assert_shape(features, (blocks * horizon + 1, width))
    starts = jnp.repeat(features[:-1:horizon], horizon, axis=0)
    return cosine(features[1:] - starts, jnp.repeat(held, horizon, axis=0))


def cosine(a: Array, b: Array) -> Array:
    """Cosine of the angle between `a` and `b` on the last axis; 0, with finite gradient, where either is 0."""
    return jnp.sum(unit(a) * unit(b), axis=-1)
