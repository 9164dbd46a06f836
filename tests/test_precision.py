"""Emulated rounding of matrix products (experiments/precision.py): of their factors, and of nothing else."""

import functools
import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leakgan_jax import training

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))
precision = importlib.import_module("precision")

pytestmark = pytest.mark.usefixtures("fast_compile")


def test_factors_of_products_and_of_their_gradients_are_rounded():
    a, b = (np.float32(np.random.default_rng(seed).normal(size=shape)) for seed, shape in enumerate([(5, 7), (7, 3)]))

    def function(config, a, b):
        return jax.value_and_grad(lambda a, b: jnp.sum(jnp.sin(a @ b)), argnums=(0, 1))(a, b)

    def rounded(x):
        return np.asarray(x, jnp.bfloat16).astype(np.float32)

    value, (of_a, of_b) = precision.rounded(function, 7)(None, a, b)
    product = rounded(a) @ rounded(b)
    assert abs(product - a @ b).max() > 1e-3
    np.testing.assert_allclose(value, np.sin(product).sum(), rtol=1e-5)
    np.testing.assert_allclose(of_a, rounded(np.cos(product)) @ rounded(b).T, atol=1e-2 / 2**7)
    np.testing.assert_allclose(of_b, rounded(a).T @ rounded(np.cos(product)), atol=1e-2 / 2**7)


@pytest.mark.parametrize("name", precision.TRAINED)
def test_training_is_rounded_in_every_product_and_otherwise_the_same(name, tiny_config, tiny_state, sentences):
    config = tiny_config()
    function = getattr(training, name)
    arrays = tiny_state(config), sentences(config, False, 20), jax.random.key(0)
    with jax.debug_key_reuse(False):  # keys of staircase rollouts: see test_rollout
        exact = precision.rounded(function, 23)  # all the bits there are
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            jax.jit(functools.partial(exact, config))(*arrays),
            jax.jit(functools.partial(function, config))(*arrays),
        )
        program = str(jax.make_jaxpr(functools.partial(precision.rounded(function, 7), config))(*arrays))
    assert program.count("reduce_precision[") == 2 * program.count("dot_general[") > 0
