"""Everything in which the two readings of the paper differ, but for constants (those are in `config.py`) and for
which of `models/manager.py` and `models/worker.py` declares the initial goal.

`paper`: every token has a goal, the sum of the last `C`. `released`: that sum is taken where a block of `C`
tokens begins and held for the block; the first block's goal is learned; the embedding has unit length. With
`config.goals` "held", the paper's sum is held for the block too, and all else is as in the paper.
Source: Guo et al. 2018, arXiv:1709.08624, Eq. 4, 7, 9; SPEC sections 1-3.

`features[:, t]` is the leaked feature of the prefix of `t` tokens; `goals[:, t]` the goal on seeing it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leakgan_jax import rewards
from leakgan_jax.config import Config
from leakgan_jax.models.layers import unit
from leakgan_jax.types import Array, Params


def initial_goal(config: Config, params: Params) -> Array:
    """`[F]`, the one learned goal before a sentence began: the Manager's as released, the Worker's in the paper."""
    owner = params.manager if config.reading == "released" else params.worker
    return owner["initial_goal"]


def embed_step(config: Config, recent: Array, held: Array, t: Array) -> Array:
    """The goal embedding `w_t` of one sampling step (Eq. 4).

    Args:
        recent: `[B, C, k]`, W_psi of the last `C` goals, that of prefix `t - 1` last; before the sentence
            began, of the initial goal.
        held: `[B, k]`, what this function gave at `t - 1`.
        t: `[]` int32, tokens so far.
    """
    total = recent.sum(axis=1) if config.reading == "paper" else unit(recent.sum(axis=1))
    return jnp.where(t % config.goal_horizon == 0, total, held) if _holds(config) else total


def embed_sentence(config: Config, embedded: Array, initial: Array) -> Array:
    """The goal embeddings of all tokens of known sentences, as `embed_step` gives them one by one.

    Args:
        embedded: `[B, T, k]`, W_psi of the goals of prefixes 0..T-1.
        initial: `[k]`, W_psi of the initial goal.
    Returns:
        `[B, T, k]`; entry `t` belongs to token `t + 1`.
    """
    batch, length, dim = embedded.shape
    before = jnp.broadcast_to(initial, (batch, config.goal_horizon, dim))
    padded = jnp.concatenate([before, embedded], axis=1)
    starts = np.arange(length)
    if _holds(config):
        starts = starts // config.goal_horizon * config.goal_horizon
    sums: Any = sum(padded[:, starts + i] for i in range(config.goal_horizon))
    return sums if config.reading == "paper" else unit(sums)


def transitions(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Which prefixes the Manager's targets lead from, and the block whose value judges each; `[K]` each.

    Every `t` from 0 to T - C, judged by the first block end at or after `t + C` (paper), or every block start.
    """
    step = 1 if config.reading == "paper" else config.goal_horizon
    start = np.arange(0, config.length - config.goal_horizon + 1, step)
    return start, -(-start // config.goal_horizon)


def live_blocks(config: Config, mask: Array) -> Array:
    """Which values judge a goal set within its sentence: `mask` `[B, T]`, 0 at PAD -> `[B, T / C]` bool."""
    start, block = transitions(config)
    first = [start[block == j].min() for j in range(config.num_blocks)]
    return mask[:, np.array(first)]


def alignment(config: Config, features: Array, goals: Array, initial: Array) -> Array:
    """cos(f_{t+C} - f_t, goal), the Manager's target (Eq. 7).

    Args:
        features: `[B, T + 1, F]`; goals: `[B, T, F]`; initial: `[F]`.
    Returns:
        `[B, K]`, one for each of `transitions`.
    """
    start, _ = transitions(config)
    moved = features[:, start + config.goal_horizon] - features[:, start]
    chosen = goals[:, start] if config.reading == "paper" else held_goals(config, goals, initial)
    return rewards.cosine(moved, chosen)


def intrinsic_reward(config: Config, features: Array, goals: Array, initial: Array) -> Array:
    """The Worker's reward for each token, `[B, T]` (Eq. 9, or its form in the released code); shapes as above."""
    if config.reading == "paper":
        return jax.vmap(lambda f, g: rewards.intrinsic(f, g, horizon=config.goal_horizon))(features, goals)
    held = held_goals(config, goals, initial)
    return jax.vmap(lambda f, g: rewards.intrinsic_held(f, g, horizon=config.goal_horizon))(features, held)


def held_goals(config: Config, goals: Array, initial: Array) -> Array:
    """The goal of each block as released: the sum over the block before; `[B, T, F] -> [B, T / C, F]`."""
    batch, length, width = goals.shape
    sums = goals.reshape(batch, config.num_blocks, config.goal_horizon, width).sum(axis=2)
    first = jnp.broadcast_to(initial, (batch, 1, width))
    return jnp.concatenate([first, sums[:, :-1]], axis=1)


def _holds(config: Config) -> bool:
    return config.reading == "released" or config.goals == "held"
