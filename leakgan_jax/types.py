"""Types shared by the library; no logic.

Letters in every shape comment: `B` sentences, `T` tokens a sentence, `V` vocabulary, `F` leaked-feature
width, `k` goal-embedding width, `C` goal horizon in tokens, `N` Monte Carlo completions.
"""

from typing import Any, NamedTuple

import jax
from flax import struct

Array = jax.Array
Key = jax.Array  # typed, from `jax.random.key`
Metrics = dict[str, Array]


class Params(NamedTuple):
    """Parameters of the three networks; the generator is Manager and Worker, fed with D's features."""

    manager: Any
    worker: Any
    discriminator: Any


class NetState(struct.PyTreeNode):
    """One network and its optimizer.

    The Manager, the Worker and a baseline's generator keep the moments of supervised and of adversarial gradients
    apart (`opt_state` is a dict with those two entries), because the two differ in scale by orders of magnitude.
    """

    params: Any
    opt_state: Any


class GanState(struct.PyTreeNode):
    """All that training changes, and no functions, keys or settings: safe to donate, save, vmap, compare."""

    manager: NetState
    worker: NetState
    discriminator: NetState

    @property
    def params(self) -> Params:
        return Params(self.manager.params, self.worker.params, self.discriminator.params)


class BaselineParams(NamedTuple):
    """Parameters of a baseline: a plain LSTM generator, and what judges it."""

    generator: Any
    discriminator: Any  # of RankGAN the ranker; None in the MLE model, which nothing judges


class BaselineState(struct.PyTreeNode):
    """What `GanState` is to LeakGAN."""

    generator: NetState
    discriminator: Any  # NetState; None in the MLE model

    @property
    def params(self) -> BaselineParams:
        return BaselineParams(self.generator.params, self.discriminator and self.discriminator.params)


class Rollout(NamedTuple):
    """Sampled sentences and what was seen while sampling them."""

    tokens: Array  # [B, T] int32, PAD after the end token
    log_probs: Array  # [B, T] float32, of the sampled token at the sampling temperature; 0 after the end
    features: Any  # [B, T + 1, F] float32, leaked features of prefixes 0..T; a baseline's has none
