"""Tiny models that the tests share, and the checks of JAX that every test runs under.

Every size differs from every other, so that a mixed-up axis fails instead of broadcasting. All parameters are drawn
anew and larger than at the start of training: there every bias is constant and every distribution nearly uniform.
"""

import functools
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

# Compiling takes most of the time. XLA's older emitters, while it has them, take a quarter of it for programs as small
# as these; and one cache, new for every session, serves all its processes, those that tests start included.
if version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Where cores are few, one process compiles for longer than the others wait for it by default.
    waits = ("call_terminate_timeout_seconds", "timeout_seconds")
    os.environ["XLA_FLAGS"] = " ".join(
        [os.environ.get("XLA_FLAGS", ""), *(f"--xla_cpu_collective_{name}=600" for name in waits)]
    )
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="leakgan_jax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leakgan_jax import training
from leakgan_jax.config import Config, preset
from leakgan_jax.types import GanState, Params

sys.path.insert(0, str(Path(__file__).parent))  # for `import reference`, whatever pytest's import mode

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_default_matmul_precision", "float32")  # as in the command line, so that programs are shared
# Not jax_numpy_rank_promotion="raise": adding a bias vector to a batch is what it forbids, and every layer does.


def pytest_collection_modifyitems(items):
    """The files that take longest first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.path.stem not in ("test_seeds", "test_run", "test_sweep"))


def pytest_unconfigure():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


class Tiny(NamedTuple):
    """One reading, with or without an end token: a model, five sentences, and the same as NumPy arrays."""

    config: Config
    state: GanState
    arrays: Params  # of nested dicts of NumPy arrays, for `reference`
    tokens: np.ndarray  # [B, T]; in lengths 9 (no end token), 1, 4, 9 and 6 where there is an end token

    @property
    def params(self) -> Params:
        return self.state.params


def _tiny_config(reading: str = "paper", end: bool = False, **overrides: Any) -> Config:
    sizes = {
        "vocab_size": 7,
        "length": 9,
        "goal_horizon": 3,
        "filter_windows": (1, 2, 4, 9),
        "filter_counts": (4, 3, 3, 2),  # F = 12
        "discriminator_embedding": 6,
        "worker_embedding": 5,
        "worker_hidden": 8,
        "manager_hidden": 10,
        "goal_dim": 4,
        "completions": 2,
        "batch_size": 5,
        "sample_batch": 5,
        "clip_norm": 1e6,  # so that Adam's first moment is the gradient itself
        "train_temperature": 0.8,
        "negative_temperature": 0.7,
        "corpus": "any" if end else "",  # a corpus has an end token, the synthetic task has none
    }
    return preset("synthetic20", reading, **{**sizes, **overrides})


def _tiny_state(config: Config, seed: int = 3) -> GanState:
    shapes = jax.eval_shape(lambda: training.init(config, jax.random.key(0)))
    rng = np.random.default_rng(seed)

    def drawn(net, scale):
        params = jax.tree.map(lambda x: jnp.asarray(rng.normal(scale=scale, size=x.shape), x.dtype), net.params)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), net.opt_state)  # where Adam starts
        return net.replace(params=params, opt_state=zeros)

    return GanState(drawn(shapes.manager, 0.6), drawn(shapes.worker, 0.4), drawn(shapes.discriminator, 0.5))


def _sentences(config: Config, end: bool, num: int = 5, seed: int = 0) -> np.ndarray:
    """`[num, T]` random tokens; with `end`, token 1 ends each as in `Tiny.tokens` and PAD follows."""
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (num, config.length), dtype=np.int32)
    if end:
        tokens[tokens == 1] = 0
        for row, length in enumerate(np.resize([config.length + 1, 1, 4, config.length, 6], num)):
            tokens[row, length - 1 : length] = 1
            tokens[row, length:] = config.pad_id
    return tokens


@pytest.fixture(scope="session")
def tiny_config():
    """`tiny_config(reading, end, **overrides) -> Config`."""
    return _tiny_config


@pytest.fixture(scope="session")
def tiny_state():
    """`tiny_state(config, seed) -> GanState` with random parameters and fresh optimizers."""
    return _tiny_state


@pytest.fixture(scope="session")
def sentences():
    """`sentences(config, end, num, seed) -> [num, T]` random tokens."""
    return _sentences


@functools.cache
def _tiny(reading: str, end: bool) -> Tiny:
    config = _tiny_config(reading, end)
    state = _tiny_state(config)
    return Tiny(config, state, jax.tree.map(np.asarray, state.params), _sentences(config, end))


# The synthetic task has no end token; all that the released reading changes is seen with one as well as without.
_CASES = [("paper", False), ("paper", True), ("released", True)]


@pytest.fixture(scope="session", params=_CASES, ids=lambda case: case[0] + ("-end" if case[1] else "-endless"))
def tiny(request) -> Tiny:
    """Both readings, and sentences with and without an end token."""
    return _tiny(*request.param)


@pytest.fixture(scope="session")
def tiny_end() -> Tiny:
    """One of the three, for what does not depend on them."""
    return _tiny("paper", True)


@pytest.fixture(scope="session")
def tiny_released_end() -> Tiny:
    """Its counterpart under the released reading."""
    return _tiny("released", True)


@pytest.fixture(scope="module")
def fast_compile():
    """Half the optimisation for half the compile time, which is most of the time of tests on tiny models."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def trap_nans():
    """Raises where a NaN first appears; only for modules that never feed one in."""
    with jax.debug_nans(True):
        yield
