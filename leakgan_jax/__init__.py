"""LeakGAN in JAX: text from a GAN whose discriminator leaks its features to the generator.

config = leakgan_jax.preset("synthetic20")
state = leakgan_jax.training.init(config, jax.random.key(0))
tokens = leakgan_jax.rollout.sample(config, state.params, jax.random.split(jax.random.key(1), 64), 1.0).tokens
"""

from leakgan_jax import baselines, goals, inspection, losses, metrics, oracle, rewards, rollout, sampling, training
from leakgan_jax.config import Config, ConfigError, preset
from leakgan_jax.models import discriminator, language_model, manager, worker
from leakgan_jax.types import BaselineParams, BaselineState, GanState, NetState, Params, Rollout

__all__ = [
    "BaselineParams", "BaselineState", "Config", "ConfigError", "GanState", "NetState", "Params", "Rollout",
    "baselines", "discriminator", "goals", "inspection", "language_model", "losses", "manager", "metrics", "oracle",
    "preset", "rewards", "rollout", "sampling", "training", "worker",
]  # fmt: skip
