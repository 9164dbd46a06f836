"""What every model's updates share: the optimizers, one step of one network, and what settings make of rewards."""

from typing import Any

import jax.numpy as jnp
import optax

from leakgan_jax import parallel, rewards
from leakgan_jax.config import Config
from leakgan_jax.types import Array, NetState


def optimizers(config: Config):
    """Adam for the generator's supervised and adversarial updates, clipped, and for the discriminator.

    Each network is updated apart: it has moments and a gradient norm of its own.
    """

    def clipped(learning_rate):
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(learning_rate))

    return clipped(config.generator_lr), clipped(config.adversarial_lr), optax.adam(config.discriminator_lr)


def generator_net(config: Config, params: Any) -> NetState:
    """A network of the generator, with fresh moments of both kinds."""
    supervised, adversarial, _ = optimizers(config)
    return NetState(params, {"supervised": supervised.init(params), "adversarial": adversarial.init(params)})


def discriminator_net(config: Config, params: Any) -> NetState:
    """The network that judges, with fresh moments."""
    return NetState(params, optimizers(config)[2].init(params))


def update_generator(config: Config, net: NetState, grads: Any, kind: str) -> NetState:
    """One step of a network of the generator; `kind` is "supervised" or "adversarial"."""
    optimizer = optimizers(config)[0 if kind == "supervised" else 1]
    updates, moments = optimizer.update(parallel.replicate(grads), net.opt_state[kind], net.params)
    return NetState(optax.apply_updates(net.params, updates), {**net.opt_state, kind: moments})


def update_discriminator(config: Config, net: NetState, grads: Any) -> NetState:
    """One step of the network that judges."""
    updates, moments = optimizers(config)[2].update(parallel.replicate(grads), net.opt_state, net.params)
    return NetState(optax.apply_updates(net.params, updates), moments)


def rescaled(config: Config, values: Array, live: Array) -> Array:
    """Values as `config.rescaling` has them; both `[B, J]`, 0 where not live."""
    if config.rescaling == "off":
        return jnp.where(live, values, 0.0)
    if config.rescaling == "shuffled":  # whoever comes first in the batch ranks first
        values = jnp.broadcast_to(-jnp.arange(values.shape[0], dtype=values.dtype)[:, None], values.shape)
    return rewards.rescale(values, config.rescale_slope, live)


def token_rewards(config: Config, reward: Array, mask: Array) -> Array:
    """Rewards of tokens as `config.credit` and `config.advantage` have them; both `[B, T]`."""
    if config.credit != "token":
        reward = rewards.shared(reward, mask, axis=1 if config.credit == "sentence" else None)
    if config.advantage == "none":
        return reward
    return rewards.advantage(reward, mask, config.advantage == "standardised")
