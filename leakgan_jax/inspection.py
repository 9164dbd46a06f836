"""A look inside a trained model, as arrays: what Figures 4 and 5 of the paper show.

Source: Guo et al. 2018, arXiv:1709.08624. Nothing here draws, samples or reads files.
"""

from typing import NamedTuple

import jax.numpy as jnp

from leakgan_jax import rollout
from leakgan_jax.config import Config
from leakgan_jax.models import discriminator, worker
from leakgan_jax.types import Array, Params


class Plane(NamedTuple):
    """The directions in which points vary most."""

    mean: Array  # [F]
    axes: Array  # [num, F] orthonormal, the most variance first; the largest entry of each is positive
    explained: Array  # [num] share of the points' variance along each axis; 0 where the points do not vary

    def project(self, x: Array) -> Array:
        """`[..., F] -> [..., num]`, coordinates from the mean."""
        return (x - self.mean) @ self.axes.T


class FeatureTraces(NamedTuple):
    """Leaked features of finished sentences, and of growing prefixes of some of them, seen in one plane (Figure 4)."""

    real: Array  # [n, 2]
    generated: Array  # [m, 2]
    traces: Array  # [num, T + 1, 2] prefixes 0..T of the first generated sentences; where one has ended, it stays
    explained: Array  # [2] share of the variance of all finished sentences along each axis
    # Distances from the mean real feature in all F dimensions, root mean squares, []:
    empty_distance: Array  # of the empty prefix
    generated_distance: Array  # of finished generated sentences
    real_distance: Array  # of finished real ones


def feature_traces(config: Config, params: Params, real: Array, generated: Array, num: int) -> FeatureTraces:
    """Follows the first `num` generated sentences from the empty prefix to their end among finished sentences.

    The plane is fitted to the finished sentences, real and generated; give as many of each, or the more numerous
    decide it. Source: Figure 4, with generated sentences added to the real ones.

    Args:
        real: `[n, T]` int32, PAD after the end, best held out from training; generated: `[m, T]`, `num <= m`; static.
    """
    finished = _finished(config, params, jnp.concatenate([real, generated]))
    plane = pca(finished, 2)
    prefixes = discriminator.prefix_features(config, params.discriminator, generated[:num])
    ends = finished[: len(real)], finished[len(real) :]
    centre = ends[0].mean(axis=0)

    def distance(points):
        return jnp.sqrt(jnp.mean(jnp.sum((points - centre) ** 2, axis=-1)))

    return FeatureTraces(
        real=plane.project(ends[0]),
        generated=plane.project(ends[1]),
        traces=plane.project(prefixes),
        explained=plane.explained,
        empty_distance=distance(prefixes[0, :1]),
        generated_distance=distance(ends[1]),
        real_distance=distance(ends[0]),
    )


def pca(x: Array, num: int) -> Plane:
    """The `num` directions of largest variance of points `[n, F]`; where there are fewer, the rest are zero."""
    mean = x.mean(axis=0)
    _, singular, axes = jnp.linalg.svd(x - mean, full_matrices=False)
    variance = singular**2
    largest = jnp.take_along_axis(axes, jnp.argmax(jnp.abs(axes), axis=1, keepdims=True), axis=1)
    axes = axes * jnp.where(largest < 0, -1.0, 1.0)  # the sign of a direction is no fact: fix it
    missing = max(0, num - len(axes))
    axes = jnp.pad(axes, ((0, missing), (0, 0)))[:num]
    share = variance / jnp.maximum(variance.sum(), jnp.finfo(x.dtype).tiny)
    return Plane(mean, axes, jnp.pad(share, (0, missing))[:num])


def interaction(config: Config, params: Params, tokens: Array) -> Array:
    """What each dimension of the goal embedding adds to the logit of each chosen token.

    Entry `[b, t - 1, d]` is `O_t[x_t, d] * w_t[d]`, the chosen word's row of the Worker's output times the goal
    embedding; its sum over `d` is the logit of `x_t` before the temperature (Eq. 6). Source: Figure 5.

    Args:
        tokens: `[B, T]` int32, PAD after the end.
    Returns:
        `[B, T, k]`, 0 at PAD.
    """
    features = discriminator.prefix_features(config, params.discriminator, tokens)
    hidden, goal_embedding, _ = rollout.worker_inputs(config, params, tokens, features)
    rows = worker.output_rows(config, params.worker, hidden, jnp.minimum(tokens, config.vocab_size - 1))
    return jnp.where((tokens == config.pad_id)[..., None], 0.0, rows * goal_embedding)


def _finished(config: Config, params: Params, tokens: Array) -> Array:
    """Leaked features of whole sentences, `[n, T] -> [n, F]`, in batches that bound memory."""

    def features(rows):
        pooled = discriminator.pooled(config, params.discriminator, rows)
        return discriminator.highway(config, params.discriminator, pooled)

    return rollout.map_batches(features, tokens, config.batch_size)
