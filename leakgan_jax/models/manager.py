"""Manager: reads the leaked feature of each prefix and sets a unit goal in feature space.

Source: Guo et al. 2018, arXiv:1709.08624, Eq. 2-3.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from leakgan_jax.config import Config
from leakgan_jax.models.layers import INIT, LSTM, LSTMState, unit, zero_state
from leakgan_jax.types import Array, Key


class Manager(nn.Module):
    config: Config

    def setup(self):
        c = self.config
        self.lstm = LSTM(c.feature_dim, c.manager_hidden)
        self.output_kernel = self.param("output_kernel", INIT, (c.manager_hidden, c.feature_dim))
        self.output_bias = self.param("output_bias", INIT, (c.feature_dim,))
        if c.reading == "released":  # there the goal of the first block is the Manager's to train
            self.initial_goal = self.param("initial_goal", INIT, (c.feature_dim,))

    def step(self, state: LSTMState, feature: Array) -> tuple[LSTMState, Array]:
        state = self.lstm.recur(state, self.lstm.project(feature))
        return state, self.goal(state.hidden)

    def project(self, features: Array) -> Array:
        return self.lstm.project(features)

    def recur(self, state: LSTMState, projected: Array) -> LSTMState:
        return self.lstm.recur(state, projected)

    def goal(self, hidden: Array) -> Array:
        return unit(hidden @ self.output_kernel + self.output_bias)


def init(config: Config, key: Key) -> Any:
    """Draws the Manager's parameters. Consumes `key`."""
    start = zero_state(1, config.manager_hidden)
    return Manager(config).init(key, start, jnp.zeros((1, config.feature_dim)), method="step")["params"]


def initial_state(config: Config, batch: int) -> LSTMState:
    """The LSTM's state before the empty prefix is read."""
    return zero_state(batch, config.manager_hidden)


def step(config: Config, params: Any, state: LSTMState, feature: Array) -> tuple[LSTMState, Array]:
    """Reads the feature of one more prefix: `feature` `[B, F]` -> state, unit goal `[B, F]`."""
    return _apply(config, params, state, feature, method="step")


def goals(config: Config, params: Any, features: Array) -> Array:
    """The goals of a whole sentence: features of prefixes 0..T-1, `[B, T, F]` -> unit goals, `[B, T, F]`."""
    projected = _apply(config, params, features, method="project").swapaxes(0, 1)

    def body(state, x):
        state = _apply(config, params, state, x, method="recur")
        return state, state.hidden

    _, hidden = jax.lax.scan(body, initial_state(config, features.shape[0]), projected)
    return _apply(config, params, hidden.swapaxes(0, 1), method="goal")


def _apply(config: Config, params: Any, *args, method: str):
    return Manager(config).apply({"params": params}, *args, method=method)
