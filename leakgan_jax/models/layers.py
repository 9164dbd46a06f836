"""What more than one network needs: the LSTM cell and safe unit vectors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from leakgan_jax.types import Array

# The released code draws every parameter of the generator from N(0, 0.1^2).
INIT = nn.initializers.normal(0.1)


class LSTMState(NamedTuple):
    """Cell and output of an LSTM, each `[..., H]`."""

    cell: Array
    hidden: Array


class LSTM(nn.Module):
    """LSTM cell in two halves, so that the input product of a known sentence is one large product."""

    inputs: int
    hidden: int

    def setup(self):
        self.kernel = self.param("kernel", INIT, (self.inputs + self.hidden, 4 * self.hidden))
        self.bias = self.param("bias", INIT, (4 * self.hidden,))

    def project(self, x: Array) -> Array:
        """The inputs' share of the gates: `[..., inputs] -> [..., 4 H]`."""
        return x @ self.kernel[: self.inputs] + self.bias

    def recur(self, state: LSTMState, projected: Array) -> LSTMState:
        """One step from `projected`, `[..., 4 H]`; gates in the order input, forget, candidate, output."""
        gates = projected + state.hidden @ self.kernel[self.inputs :]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = nn.sigmoid(f) * state.cell + nn.sigmoid(i) * jnp.tanh(g)
        return LSTMState(cell, nn.sigmoid(o) * jnp.tanh(cell))


def zero_state(batch: int, hidden: int) -> LSTMState:
    """The state before a sentence begins, each part `[batch, hidden]`."""
    zeros = jnp.zeros((batch, hidden))
    return LSTMState(zeros, zeros)


def unit(x: Array, eps: float = 1e-6) -> Array:
    """`x / max(|x|, eps)` on the last axis; clamps before the root so that the gradient at 0 stays finite."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps**2))
