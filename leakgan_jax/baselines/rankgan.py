"""RankGAN: an LSTM that learns by policy gradient to be ranked above real text, and a ranker that learns otherwise.

The ranker compares features `y` of the discriminator's CNN (its highway layer; the output layer goes unused). With a
set `U` of real references and a comparison set `C`:

    relevance   a(s | u) = cos(y_s, y_u)
    rank score  P(s | u, C) = exp(gamma a(s | u)) / sum of exp(gamma a(s' | u)) over s' in C and s
    log R(s | U, C) = mean over u in U of log P(s | u, C)

Source: Lin et al. 2017, Adversarial Ranking for Language Generation, arXiv:1705.11001. It is trained to make
`log R(real | U, C-) - log R(generated | U, C+)` large, `C-` being generated and `C+` real. The generator's reward for a
token is the mean of `log R(. | U, C+)` over `N` completions, and for the last token that of the sentence.

What the paper leaves open, and is chosen here:
- `|U|` is 16 and gamma 16: the authors' released code has 16 references and applies gamma 1 to the sum of their
  cosines, which is 16 times the mean.
- A comparison set is half a batch: in the ranker's update the other kind in its batch, in the generator's as many
  sentences of the training set. (The released code lets generated sentences compete with one another for reward.)
- References are drawn anew for each update, with replacement, from the real sentences at hand; the more rarely the
  more there are, one of them is the very sentence that is ranked.
- The reward is `log R` above `- log(|C+| + 1)`, what a sentence like any other has. A constant does not change the
  expected gradient, but this one, left in, would be nearly all of every reward, and the source of nearly all noise.
- The completions are the generator's own, as in SeqGAN; dropout is as in D, and off while sentences are judged.
"""

import jax
import jax.numpy as jnp

from leakgan_jax import health, losses
from leakgan_jax.baselines.mle import pretrain_step
from leakgan_jax.baselines.seqgan import init, policy_gradient_step
from leakgan_jax.config import Config
from leakgan_jax.models import discriminator
from leakgan_jax.models.layers import unit
from leakgan_jax.rollout import sample
from leakgan_jax.types import Array, BaselineState, Key, Metrics
from leakgan_jax.updates import update_discriminator

__all__ = ["init", "pretrain_step", "train_step", "sample", "ranker_step", "log_rank"]


def train_step(config: Config, state: BaselineState, real: Array, key: Key) -> tuple[BaselineState, Metrics]:
    """One adversarial update of the generator; references and comparison set are drawn from `real`, `[n, T]`.

    In the metrics, `value` and `reward` are `log R` above that of a sentence like any other, in nats.
    """
    references_key, comparison_key, sample_key = jax.random.split(key, 3)
    references = _features(config, state.discriminator.params, _choose(real, references_key, config.references))
    compared = _choose(real, comparison_key, max(config.batch_size // 2, 1))
    competitors = _relevance(config, _features(config, state.discriminator.params, compared), references)
    rivals = jax.nn.logsumexp(competitors, axis=0)
    chance = -jnp.log(1.0 + compared.shape[0])

    def judge(tokens):
        relevance = _relevance(config, _features(config, state.discriminator.params, tokens), references)
        return log_rank(relevance, rivals) - chance

    return policy_gradient_step(config, state, sample_key, judge)


def ranker_step(
    config: Config, state: BaselineState, tokens: Array, is_real: Array, real: Array, key: Key
) -> tuple[BaselineState, Metrics]:
    """One update of the ranker on `tokens` `[B, T]` with labels `is_real` `[B]` (1 real, 0 generated).

    References are drawn from `real`, `[n, T]`. In the metrics, the loss is in nats, 0 where the ranker cannot tell and
    the batch has as many of each kind, and below where it can.
    """
    references_key, *dropout_keys = jax.random.split(key, 3)
    references = _choose(real, references_key, config.references)

    def loss(params):
        relevance = _relevance(
            config,
            discriminator.dropout(config, _features(config, params, tokens), dropout_keys[0]),
            discriminator.dropout(config, _features(config, params, references), dropout_keys[1]),
        )
        return ranker_loss(relevance, is_real), _accuracy(relevance, is_real)

    (value, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(state.discriminator.params)
    net = update_discriminator(config, state.discriminator, grads)
    metrics = {
        "discriminator_loss": value,
        "discriminator_accuracy": accuracy,
        **health.gradient("discriminator", grads),
    }
    return state.replace(discriminator=net), metrics


def _accuracy(relevance: Array, is_real: Array) -> Array:
    """The share of pairs of a real and a generated sentence of which the real one is more relevant."""
    score, real = relevance.mean(axis=-1), is_real > 0.5
    return losses.masked_mean(score[:, None] > score[None], real[:, None] & ~real[None])


def ranker_loss(relevance: Array, is_real: Array) -> Array:
    """`mean of log R(generated | U, C+) - mean of log R(real | U, C-)`, each kind compared with the other in the batch.

    Args:
        relevance: `[B, |U|]`, gamma times the cosine with each reference; is_real: `[B]`, 1 or 0.
    """
    is_real = is_real > 0.5
    # Finite, so that a batch of one kind alone has a gradient: that of sentences without a rival, 0.
    of_real = jax.nn.logsumexp(jnp.where(is_real[:, None], relevance, -1e9), axis=0)
    of_generated = jax.nn.logsumexp(jnp.where(is_real[:, None], -1e9, relevance), axis=0)
    log_ranks = log_rank(relevance, jnp.where(is_real[:, None], of_generated, of_real))
    return losses.masked_mean(log_ranks, ~is_real) - losses.masked_mean(log_ranks, is_real)


def log_rank(relevance: Array, rivals: Array) -> Array:
    """log R of sentences, each ranked alone against a comparison set.

    Args:
        relevance: `[n, |U|]`, gamma times the cosine with each reference.
        rivals: `[|U|]` or `[n, |U|]`, the logarithm of the comparison set's summed exponentials.
    Returns:
        `[n]`, nats, at most 0.
    """
    return jnp.mean(relevance - jnp.logaddexp(relevance, rivals), axis=-1)


def _features(config: Config, params, tokens: Array) -> Array:
    return discriminator.highway(config, params, discriminator.pooled(config, params, tokens))


def _relevance(config: Config, features: Array, references: Array) -> Array:
    """gamma times the cosine of each sentence with each reference: `[n, F]`, `[|U|, F]` -> `[n, |U|]`."""
    return config.rank_gamma * unit(features) @ unit(references).T


def _choose(rows: Array, key: Key, num: int) -> Array:
    return rows[jax.random.randint(key, (num,), 0, rows.shape[0])]
