"""Numbers that go wrong: noticed in the step they first appear in, and named.

Every update reports the norm of its gradient and the first leaf of it that is not finite. Over a unit these become
means and, where anything was not finite, which step was the first and which leaf. All of it is computed with the
update itself; a unit that went wrong is thrown away by whoever reads the metrics (`problem`).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from leakgan_jax.types import Array, Metrics

COLLAPSED_DISTINCT = 0.5  # share of samples that differ
COLLAPSED_ENTROPY = 0.5  # nats per token, NLL_div

_BAD_LEAF, _BAD_STEP = "_bad_leaf", "bad_step"  # ends of names of metrics that are not for people
_STATE = "state"


def gradient(name: str, grads: Any) -> Metrics:
    """Of the gradient of network `name`: its global norm before clipping, `NAME_grad_norm`, and its first bad leaf.

    A leaf whose squares overflow counts as bad: clipping by that norm would make a zero of it.
    """
    squares = jnp.stack([jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(grads)])
    return {f"{name}_grad_norm": jnp.sqrt(squares.sum()), f"{name}{_BAD_LEAF}": _first(~jnp.isfinite(squares))}


def summary(metrics: Metrics) -> Metrics:
    """What the steps of a unit come to: each metric `[steps...]` as its mean, and the first step that went wrong."""
    flat = {name: values.reshape(-1) for name, values in metrics.items()}
    codes = {name: values for name, values in flat.items() if name.endswith(_BAD_LEAF)}
    wrong = [values > 0 if name in codes else ~jnp.isfinite(values) for name, values in flat.items()]
    first = _first(jnp.any(jnp.stack(wrong), axis=0))
    means = {name: jnp.mean(values) for name, values in flat.items() if name not in codes}
    return means | {name: values[jnp.maximum(first - 1, 0)] for name, values in codes.items()} | {_BAD_STEP: first}


def state(tree: Any) -> Metrics:
    """The first leaf of a state, parameters and moments, that is not finite."""
    # 0 times what is not finite is NaN, and a sum is many times as quick as "all" of it on a CPU.
    zeros = [jnp.sum(leaf * 0).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return {f"{_STATE}{_BAD_LEAF}": _first(~jnp.isfinite(jnp.stack(zeros)))}


def problem(line: dict[str, Any], tree: Any) -> str | None:
    """What went wrong in a unit: step, metric and leaf; None if nothing did.

    Args:
        line: the unit's metrics as numbers; what `summary` and `state` added for this function is taken out.
        tree: the state, or its shapes, for the names of leaves.
    """
    step = int(line.pop(_BAD_STEP, 0))
    leaves = {name: int(line.pop(name)) for name in list(line) if name.endswith(_BAD_LEAF)}
    numbers = {name: value for name, value in line.items() if isinstance(value, float) and not math.isfinite(value)}
    wrong = [f"{name} is {value}" for name, value in numbers.items()]
    for name, code in leaves.items():
        net = name.removesuffix(_BAD_LEAF)
        if code and net != _STATE:
            wrong.append(f"the first bad leaf is the gradient of {net}{_leaf_name(getattr(tree, net).params, code)}")
        elif code and not wrong:
            wrong.append(f"the first bad leaf is {_leaf_name(tree, code)} of the state")
    if not wrong:
        return None
    return (f"step {step} of it: " if step else "") + ", ".join(wrong)


def collapse(scores: Mapping[str, Any]) -> str | None:
    """A warning if an evaluation shows a generator that repeats itself; None if not."""
    if (distinct := scores["distinct"]) < COLLAPSED_DISTINCT:
        return f"warning: the generator collapses: {distinct:.0%} of its samples differ, under {COLLAPSED_DISTINCT:.0%}"
    if (entropy := scores["nll_div"]) < COLLAPSED_ENTROPY:
        return (
            f"warning: the generator collapses: its entropy is {entropy:.2f} nats per token, under {COLLAPSED_ENTROPY}"
        )
    return None


def _first(wrong: Array) -> Array:
    """The place of the first True, from 1; 0 if there is none."""
    return jnp.where(jnp.any(wrong), jnp.argmax(wrong) + 1, 0).astype(jnp.int32)


def _leaf_name(tree: Any, code: int) -> str:
    return jax.tree_util.keystr(jax.tree.leaves_with_path(tree)[code - 1][0])
