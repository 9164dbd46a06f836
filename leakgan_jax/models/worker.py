"""Worker: reads the tokens, and turns its output and the goal embedding into next-token logits.

Source: Guo et al. 2018, arXiv:1709.08624, Eq. 4-6.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from leakgan_jax.config import Config
from leakgan_jax.models.layers import INIT, LSTM, LSTMState, zero_state
from leakgan_jax.types import Array, Key


class Worker(nn.Module):
    config: Config

    def setup(self):
        c = self.config
        self.embedding = self.param("embedding", INIT, (c.vocab_size + 1, c.worker_embedding))
        self.lstm = LSTM(c.worker_embedding, c.worker_hidden)
        self.output_kernel = self.param("output_kernel", INIT, (c.worker_hidden, c.goal_dim, c.vocab_size))
        self.output_bias = self.param("output_bias", INIT, (c.goal_dim, c.vocab_size))
        self.goal_kernel = self.param("goal_kernel", INIT, (c.feature_dim, c.goal_dim))  # W_psi
        if c.reading == "paper":  # there no Manager loss reaches the goals before the sentence began
            self.initial_goal = self.param("initial_goal", INIT, (c.feature_dim,))

    def __call__(self, state: LSTMState, token: Array, goal: Array) -> Array:
        return self.logits(self.step(state, token).hidden, self.embed_goal(goal))

    def step(self, state: LSTMState, token: Array) -> LSTMState:
        return self.recur(state, self.project(token))

    def project(self, tokens: Array) -> Array:
        return self.lstm.project(self.embedding[tokens])

    def recur(self, state: LSTMState, projected: Array) -> LSTMState:
        return self.lstm.recur(state, projected)

    def embed_goal(self, goal: Array) -> Array:
        return goal @ self.goal_kernel

    def logits(self, hidden: Array, goal_embedding: Array) -> Array:
        # O_t w_t with O_t = W h + b is (h (x) w) . W' + w . b': dense products, never a [B, V, k] array.
        outer = hidden[..., :, None] * goal_embedding[..., None, :]
        outer = outer.reshape(*hidden.shape[:-1], -1)
        return outer @ self.output_kernel.reshape(outer.shape[-1], -1) + goal_embedding @ self.output_bias

    def output_rows(self, hidden: Array, tokens: Array) -> Array:
        kernel, bias = self.output_kernel[:, :, tokens], self.output_bias[:, tokens]
        return jnp.einsum("bth,hkbt->btk", hidden, kernel) + jnp.moveaxis(bias, 0, -1)


def init(config: Config, key: Key) -> Any:
    """Draws the Worker's parameters. Consumes `key`."""
    state = zero_state(1, config.worker_hidden)
    token, goal = jnp.zeros((1,), jnp.int32), jnp.zeros((1, config.feature_dim))
    return Worker(config).init(key, state, token, goal)["params"]


def initial_state(config: Config, batch: int) -> LSTMState:
    """The LSTM's state before the start token is read."""
    return zero_state(batch, config.worker_hidden)


def step(config: Config, params: Any, state: LSTMState, token: Array) -> LSTMState:
    """Reads one token, `[B]` int32; the padding id is the start token."""
    return _apply(config, params, state, token, method="step")


def hidden(config: Config, params: Any, tokens: Array) -> Array:
    """LSTM outputs over a whole sentence of inputs: `[B, T]` int32 -> `[B, T, H]`."""
    projected = _apply(config, params, tokens, method="project").swapaxes(0, 1)

    def body(state, x):
        state = _apply(config, params, state, x, method="recur")
        return state, state.hidden

    _, outputs = jax.lax.scan(body, initial_state(config, tokens.shape[0]), projected)
    return outputs.swapaxes(0, 1)


def embed_goal(config: Config, params: Any, goal: Array) -> Array:
    """W_psi of a goal or a sum of goals: `[..., F] -> [..., k]` (Eq. 4)."""
    return _apply(config, params, goal, method="embed_goal")


def logits(config: Config, params: Any, hidden: Array, goal_embedding: Array) -> Array:
    """Next-token logits before the temperature: `[..., H]`, `[..., k]` -> `[..., V]` (Eq. 5-6)."""
    return _apply(config, params, hidden, goal_embedding, method="logits")


def output_rows(config: Config, params: Any, hidden: Array, tokens: Array) -> Array:
    """The rows of `O_t` that belong to given words: `[B, T, H]`, `[B, T]` int32 below `V` -> `[B, T, k]` (Eq. 5)."""
    return _apply(config, params, hidden, tokens, method="output_rows")


def _apply(config: Config, params: Any, *args, method: str):
    return Worker(config).apply({"params": params}, *args, method=method)
