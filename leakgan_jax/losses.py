"""Losses: means over what is real of arrays that others computed; no networks, no settings.

`mask` is 1 where a token, or the start of a goal's span, lies within its sentence: padding never counts.
Source: Guo et al. 2018, arXiv:1709.08624, Eq. 7-10.
"""

import jax
import jax.numpy as jnp
import optax

from leakgan_jax.types import Array


def manager(alignment: Array, reward: Array, mask: Array) -> Array:
    """`- mean of R cos(f_{t+C} - f_t, g_t)` (Eq. 7); with `R = 1` on real text, its pre-training (Eq. 10).

    All three `[B, K]`; each cosine answers to its own reward only.
    """
    return -masked_mean(jax.lax.stop_gradient(reward) * alignment, mask)


def policy_gradient(log_probs: Array, reward: Array, mask: Array) -> Array:
    """`- mean of r_t log p(x_t | s_{t-1})`, whose gradient is REINFORCE's (Eq. 8); all `[B, T]`."""
    return -masked_mean(jax.lax.stop_gradient(reward) * log_probs, mask)


def negative_log_likelihood(log_probs: Array, mask: Array) -> Array:
    """Mean over real tokens of `- log p`, in nats; both `[B, T]`. The Worker's pre-training."""
    return -masked_mean(log_probs, mask)


def discriminator(logits: Array, is_real: Array) -> Array:
    """Mean cross-entropy of real against generated: log-odds `[B]`, labels 1 or 0 `[B]`."""
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, is_real))


def masked_mean(values: Array, mask: Array) -> Array:
    """Mean of `values` where `mask` is 1; 0 where it never is."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def masked_spread(values: Array, mask: Array) -> Array:
    """Standard deviation of `values` where `mask` is 1; 0 where it never is."""
    return jnp.sqrt(masked_mean((values - masked_mean(values, mask)) ** 2, mask))
