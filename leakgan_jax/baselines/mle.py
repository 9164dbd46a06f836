"""MLE: an LSTM language model trained by maximum likelihood, and the generator that the other baselines start from.

Source: Guo et al. 2018, arXiv:1709.08624, Table 1, row MLE; Yu et al. 2017, arXiv:1609.05473, section "Experiments".
It has no adversarial phase, and so no `train_step` and no discriminator.
"""

import jax

from leakgan_jax import health, losses
from leakgan_jax.config import Config
from leakgan_jax.models import language_model
from leakgan_jax.rollout import generator_sizes, sample
from leakgan_jax.types import Array, BaselineState, Key, Metrics
from leakgan_jax.updates import generator_net, update_generator

__all__ = ["init", "pretrain_step", "sample"]


def init(config: Config, key: Key) -> BaselineState:
    """Draws the generator and zeroes its optimizers. Consumes `key`."""
    return BaselineState(generator_net(config, language_model.init(generator_sizes(config), key)), None)


def pretrain_step(config: Config, state: BaselineState, tokens: Array) -> tuple[BaselineState, Metrics]:
    """One update of the generator by maximum likelihood on real `tokens`, `[B, T]`, PAD after the end."""

    def loss(params):
        log_probs = language_model.log_probs(generator_sizes(config), params, tokens)
        return losses.negative_log_likelihood(log_probs, tokens != config.pad_id)

    nll, grads = jax.value_and_grad(loss)(state.generator.params)
    net = update_generator(config, state.generator, grads, "supervised")
    return state.replace(generator=net), {"generator_loss": nll, **health.gradient("generator", grads)}
