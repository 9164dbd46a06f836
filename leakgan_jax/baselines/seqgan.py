"""SeqGAN: an LSTM trained by policy gradient, each token judged by a discriminator of sampled completions.

The action value of token `x_t`, `t < T`, is the mean of D over `N` completions of `s_t`; that of `x_T` is D of the
sentence (Eq. 4). With `config.rescaling` "rank", values are replaced by their ranks in the batch, LeakGAN's
bootstrapped rescaled activation: the curve SeqGAN-rescale in Figure 2 of Guo et al. 2018, arXiv:1709.08624.

Source: Yu et al. 2017, SeqGAN, arXiv:1609.05473. The roll-out policy is the generator itself, as in the paper's
Algorithm 1 (beta <- theta); the released code completes with a copy that lags behind it, 0.8 of itself at an update.
The discriminator is LeakGAN's, which is SeqGAN's: the same convolutions, highway layer, dropout and L2.
"""

from collections.abc import Callable
from typing import Any

import jax

from leakgan_jax import health, losses, rollout
from leakgan_jax.baselines import mle
from leakgan_jax.baselines.mle import pretrain_step
from leakgan_jax.config import Config
from leakgan_jax.models import discriminator, language_model
from leakgan_jax.rollout import sample
from leakgan_jax.types import Array, BaselineState, Key, Metrics
from leakgan_jax.updates import discriminator_net, rescaled, token_rewards, update_generator

__all__ = ["init", "pretrain_step", "train_step", "sample"]


def init(config: Config, key: Key) -> BaselineState:
    """Draws generator and discriminator and zeroes their optimizers. Consumes `key`."""
    generator_key, discriminator_key = jax.random.split(key)
    params = discriminator.init(config, discriminator_key)
    return mle.init(config, generator_key).replace(discriminator=discriminator_net(config, params))


def train_step(config: Config, state: BaselineState, real: Array, key: Key) -> tuple[BaselineState, Metrics]:
    """One adversarial update of the generator on `batch_size` sentences of its own; `real` is not looked at."""

    def judge(tokens):
        d = state.discriminator.params
        features = discriminator.highway(config, d, discriminator.pooled(config, d, tokens))
        return jax.nn.sigmoid(discriminator.logit(config, d, features))

    return policy_gradient_step(config, state, key, judge)


def policy_gradient_step(
    config: Config, state: BaselineState, key: Key, judge: Callable[[Array], Array]
) -> tuple[BaselineState, Metrics]:
    """REINFORCE (Eq. 7): `- mean of Q_t log p(x_t | s_{t-1})` over real tokens of `batch_size` sentences.

    The released code sums over the tokens, `B T` times as much where no sentence ends early. Adam does not mind, the
    clipping of the gradient does.

    Args:
        judge: finished sentences, `[n, T]` int32, PAD after the end -> scores `[n]`. No gradient flows through it.
    Returns:
        The state, and in the metrics `value`, the mean score of completions, `reward`, the same or the mean of its
        rescaled form, `reward_spread`, its standard deviation, and `entropy`, the sentences' own NLL in nats per
        token; all over tokens within their sentences.
    """

    def judge_all(finished: Any) -> Array:
        return rollout.map_batches(judge, finished.tokens, config.sample_batch)

    keys = jax.random.split(key, config.batch_size)
    temperature = config.train_temperature
    sampled, values = rollout.sample_with_values(config, state.params, keys, temperature, judge_all)
    mask = sampled.tokens != config.pad_id
    reward = rescaled(config, values, mask)

    def loss(params):
        sizes = rollout.generator_sizes(config)
        log_probs = language_model.log_probs(sizes, params, sampled.tokens, temperature)
        policy_loss = losses.policy_gradient(log_probs, token_rewards(config, reward, mask), mask)
        return policy_loss, {
            "generator_loss": policy_loss,
            "value": losses.masked_mean(values, mask),
            "reward": losses.masked_mean(reward, mask),
            "reward_spread": losses.masked_spread(reward, mask),
            "entropy": -losses.masked_mean(log_probs, mask),
        }

    grads, metrics = jax.grad(loss, has_aux=True)(state.generator.params)
    net = update_generator(config, state.generator, grads, "adversarial")
    return state.replace(generator=net), metrics | health.gradient("generator", grads)
