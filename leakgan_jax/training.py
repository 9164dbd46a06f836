"""Training: LeakGAN's updates of its three networks, and the scans over device-resident data that train any model.

Steps are pure, `(config, state, data, key) -> (state, metrics)`, and not jitted: callers jit, scan, vmap or shard
them, with `config` static. Everything here draws from the key it is given and from nothing else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from leakgan_jax import goals as goals_
from leakgan_jax import health, losses, parallel, rollout
from leakgan_jax.baselines import mle, rankgan, seqgan
from leakgan_jax.config import Config
from leakgan_jax.models import discriminator, manager, worker
from leakgan_jax.types import Array, BaselineParams, BaselineState, GanState, Key, Metrics, Params
from leakgan_jax.updates import (
    discriminator_net,
    generator_net,
    rescaled,
    token_rewards,
    update_discriminator,
    update_generator,
)

State = GanState | BaselineState


class Model(NamedTuple):
    """All that the trainer needs of a model; `rollout` samples and scores it.

    `real` is real text to draw from, `[n, T]`; the models that do not need it leave it alone.
    """

    init: Callable[[Config, Key], State]
    pretrain_step: Callable[[Config, Any, Array], tuple[Any, Metrics]]  # on real tokens, [B, T]
    train_step: Callable[[Config, Any, Array, Key], tuple[Any, Metrics]]  # real, key; of the generator
    discriminator_step: Callable[..., tuple[Any, Metrics]]  # config, state, tokens, is_real, real, key


def model(config: Config) -> Model:
    """The functions of `config.model`."""

    def of_discriminator(config, state, tokens, is_real, real, key):
        return discriminator_step(config, state, tokens, is_real, key)

    if config.model == "leakgan":
        return Model(_init, mle_step, lambda c, state, real, key: generator_step(c, state, key), of_discriminator)
    if config.model == "mle":
        return Model(mle.init, mle.pretrain_step, None, None)  # type: ignore[arg-type]  # never called
    if config.model == "rankgan":
        return Model(rankgan.init, rankgan.pretrain_step, rankgan.train_step, rankgan.ranker_step)
    return Model(seqgan.init, seqgan.pretrain_step, seqgan.train_step, of_discriminator)


def init(config: Config, key: Key) -> State:
    """Draws the networks of `config.model` and zeroes their optimizers. Consumes `key`."""
    return model(config).init(config, key)


def _init(config: Config, key: Key) -> GanState:
    manager_key, worker_key, discriminator_key = jax.random.split(key, 3)
    return GanState(
        manager=generator_net(config, manager.init(config, manager_key)),
        worker=generator_net(config, worker.init(config, worker_key)),
        discriminator=discriminator_net(config, discriminator.init(config, discriminator_key)),
    )


def mle_step(config: Config, state: GanState, tokens: Array) -> tuple[GanState, Metrics]:
    """One supervised update of Manager (Eq. 10) and Worker (maximum likelihood) on real `tokens`, `[B, T]`."""
    features = discriminator.prefix_features(config, state.discriminator.params, tokens)
    ones = jnp.ones((tokens.shape[0], len(goals_.transitions(config)[0])))

    def loss(params):
        log_probs, goals = rollout.teacher_force(config, params, tokens, features, 1.0)
        nll = losses.negative_log_likelihood(log_probs, tokens != config.pad_id)
        goal_loss = _manager_loss(config, params, tokens, features, goals, ones)
        return nll + goal_loss, {"worker_loss": nll, "manager_loss": goal_loss}

    return _update_generator(config, state, loss, "supervised")


def generator_step(config: Config, state: GanState, key: Key) -> tuple[GanState, Metrics]:
    """One adversarial update of Manager (Eq. 7) and Worker (Eq. 8) on `batch_size` sentences of their own.

    In the metrics, `value` is the mean of D's score of the completions before ranking (the ranks' own mean never
    moves), `reward` that of the Worker's intrinsic reward, `reward_spread` its standard deviation, `entropy` the
    sentences' own NLL in nats per token.
    """
    keys = jax.random.split(key, config.batch_size)
    sampled, values = rollout.sample_with_values(config, state.params, keys, config.train_temperature)
    tokens, features = sampled.tokens, sampled.features
    mask = tokens != config.pad_id
    goal_rewards = rescaled(config, values, goals_.live_blocks(config, mask))[:, goals_.transitions(config)[1]]

    def loss(params):
        log_probs, goals = rollout.teacher_force(config, params, tokens, features, config.train_temperature)
        goal_loss = _manager_loss(config, params, tokens, features, goals, goal_rewards)
        fixed = jax.lax.stop_gradient
        reward = goals_.intrinsic_reward(config, features, fixed(goals), fixed(goals_.initial_goal(config, params)))
        worker_loss = losses.policy_gradient(log_probs, token_rewards(config, reward, mask), mask)
        metrics = {
            "manager_loss": goal_loss,
            "worker_loss": worker_loss,
            "value": values.mean(),
            "reward": losses.masked_mean(reward, mask),
            "reward_spread": losses.masked_spread(reward, mask),
            "entropy": -losses.masked_mean(log_probs, mask),
        }
        return goal_loss + worker_loss, metrics

    return _update_generator(config, state, loss, "adversarial")


def discriminator_step(config: Config, state: State, tokens: Array, is_real: Array, key: Key) -> tuple[State, Metrics]:
    """One update of D on `tokens` `[B, T]` with labels `is_real` `[B]` (1 real, 0 generated); `key` for dropout."""

    def loss(params):
        features = discriminator.highway(config, params, discriminator.pooled(config, params, tokens))
        logits = discriminator.logit(config, params, discriminator.dropout(config, features, key))
        squared = jnp.sum(params["output_kernel"] ** 2) + params["output_bias"] ** 2
        entropy = losses.discriminator(logits, is_real)
        accuracy = jnp.mean((logits > 0) == (is_real > 0.5))
        metrics = {"discriminator_loss": entropy, "discriminator_accuracy": accuracy}
        return entropy + config.discriminator_l2 * 0.5 * squared, metrics

    grads, metrics = jax.grad(loss, has_aux=True)(state.discriminator.params)
    net = update_discriminator(config, state.discriminator, grads)
    return state.replace(discriminator=net), metrics | health.gradient("discriminator", grads)


def mle_epoch(config: Config, state: State, corpus: Array, key: Key) -> tuple[State, Metrics]:
    """One supervised epoch over `corpus`, `[n, T]`, in a random order; what does not fill a batch sits out."""
    order, step = _batches(key, corpus.shape[0], config.batch_size), model(config).pretrain_step
    state, metrics = jax.lax.scan(lambda s, rows: step(config, s, parallel.spread(corpus[rows])), state, order)
    return state, health.summary(metrics)


def generator_steps(config: Config, state: State, corpus: Array, key: Key) -> tuple[State, Metrics]:
    """The adversarial generator updates of one iteration, `config.generator_steps` of them.

    `corpus`, `[n, T]`, is real text, for the models whose rewards compare with it.
    """
    keys, step = jax.random.split(key, config.generator_steps), model(config).train_step
    state, metrics = jax.lax.scan(lambda s, k: step(config, s, corpus, k), state, keys)
    return state, health.summary(metrics)


def discriminator_draw(config: Config, state: State, real: Array, key: Key) -> tuple[State, Metrics]:
    """Draws as many negatives as there are sentences in `real`, `[n, T]`, and trains D on both for its epochs."""
    sample_key, epochs_key = jax.random.split(key)
    num = real.shape[0]
    generated, _ = rollout.sample_many(config, state.params, sample_key, num, config.negative_temperature)
    tokens = parallel.replicate(jnp.concatenate([real, generated]))  # rows of a batch come from anywhere in it
    is_real = jnp.concatenate([jnp.ones(num), jnp.zeros(num)])
    update = model(config).discriminator_step

    def epoch(state, epoch_key):
        order_key, dropout_key = jax.random.split(epoch_key)
        order = _batches(order_key, 2 * num, config.batch_size)

        def step(state, x):
            rows, step_key = x
            batch, labels = parallel.spread((tokens[rows], is_real[rows]))
            return update(config, state, batch, labels, real, step_key)

        return jax.lax.scan(step, state, (order, jax.random.split(dropout_key, order.shape[0])))

    state, metrics = jax.lax.scan(epoch, state, jax.random.split(epochs_key, config.discriminator_epochs))
    return state, health.summary(metrics)


def evaluate(
    config: Config, params: Params | BaselineParams, heldout: Array, key: Key, temperature: Array | float
) -> tuple[Array, Metrics]:
    """Samples `eval_samples` sentences and scores `heldout`, `[n, T]`, at the same temperature.

    Returns:
        The sampled tokens, `[eval_samples, T]`, and in nats per token `nll_gen`, of real held-out sentences under
        the generator, and `nll_div`, of its own samples. The first is over `known_words`.
    """
    tokens, own = rollout.sample_many(config, params, key, config.eval_samples, temperature)
    real = rollout.log_probs(config, params, heldout, temperature)
    nll_gen = losses.negative_log_likelihood(real, known_words(config, heldout))
    nll_div = losses.negative_log_likelihood(own, tokens != config.pad_id)
    return tokens, {"nll_gen": nll_gen, "nll_div": nll_div}


def known_words(config: Config, tokens: Array) -> Array:
    """Where real sentences, `[..., T]`, have a word or an end that the vocabulary knows: what a likelihood counts.

    `<unk>` is one id for many words, and where every training word is in the vocabulary no model was ever shown it.
    """
    known = tokens != config.pad_id
    return known if config.unk_id is None else known & (tokens != config.unk_id)


def unknown_share(config: Config, tokens: Array) -> float:
    """Of the words and ends of real sentences, `[n, T]`: the share that `known_words` leaves out."""
    return 1 - float(known_words(config, tokens).sum() / jnp.sum(tokens != config.pad_id))


def _manager_loss(config: Config, params: Params, tokens, features, goals, goal_rewards) -> Array:
    initial = goals_.initial_goal(config, params)
    start, _ = goals_.transitions(config)
    mask = (tokens != config.pad_id)[:, start]
    return losses.manager(goals_.alignment(config, features, goals, initial), goal_rewards, mask)


def _update_generator(config: Config, state: GanState, loss, kind: str) -> tuple[GanState, Metrics]:
    """Steps Manager and Worker down `loss(params)`, whose terms each move one of the two only."""

    def of_generator(manager_params, worker_params):
        return loss(Params(manager_params, worker_params, state.discriminator.params))

    grads, metrics = jax.grad(of_generator, argnums=(0, 1), has_aux=True)(state.manager.params, state.worker.params)
    nets = [update_generator(config, net, grad, kind) for net, grad in zip((state.manager, state.worker), grads)]
    metrics |= health.gradient("manager", grads[0]) | health.gradient("worker", grads[1])
    return state.replace(manager=nets[0], worker=nets[1]), metrics


def _batches(key: Key, num: int, batch: int) -> Array:
    """A random order of `num` rows, cut into whole batches: `[num // batch, batch]`."""
    return jax.random.permutation(key, num)[: num // batch * batch].reshape(-1, batch)
