"""Numbers that go wrong: found in their step, named, and the state before them kept."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_run import TINY, leakgan

from leakgan_jax import health, rundir, training
from leakgan_jax.checkpoint import Checkpoints
from leakgan_jax.run import target

pytestmark = pytest.mark.usefixtures("fast_compile")

SHORT = [*TINY, "--pretrain-rounds", "1", "--pretrain-draws", "0", "--adversarial-iterations", "0"]


def finite_problem(metrics, tree=None):
    """As a run asks: the summary of steps as numbers."""
    line = {name: float(value) for name, value in health.summary(metrics).items()}
    return health.problem(line, tree), line


def test_a_summary_of_good_steps_is_their_means_and_no_problem():
    grads = {"a": jnp.ones((2, 3)), "b": jnp.zeros(4)}
    metrics = health.gradient("worker", grads) | {"worker_loss": jnp.float32(3.0)}
    steps = jax.tree.map(lambda x: jnp.stack([x, x * 2]), metrics)
    wrong, line = finite_problem(steps)
    assert wrong is None
    assert line == {"worker_grad_norm": pytest.approx(6**0.5 * 1.5), "worker_loss": pytest.approx(4.5)}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30], ids=["nan", "inf", "-inf", "overflowing square"])
def test_the_step_and_leaf_of_a_gradient_that_is_not_finite_are_named(tiny_end, bad):
    params = tiny_end.params.worker
    leaves, tree = jax.tree.flatten(jax.tree.map(jnp.zeros_like, params))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    for place in (2, 4):
        spoilt = [leaf.at[(0,) * leaf.ndim].set(bad) if i >= place else leaf for i, leaf in enumerate(leaves)]
        steps = [health.gradient("worker", jax.tree.unflatten(tree, x)) for x in (leaves, leaves, spoilt, spoilt)]
        stacked = jax.tree.map(lambda *x: jnp.stack(x).reshape(2, 2), *steps)  # as of epochs and their steps
        wrong, line = finite_problem(stacked | {"worker_loss": jnp.ones((2, 2))}, tiny_end.state)
        assert wrong.startswith("step 3 of it: ") and wrong.endswith(f"the gradient of worker{names[place]}")
        assert set(line) == {"worker_grad_norm", "worker_loss"}


def test_a_loss_that_is_not_finite_is_named_though_gradients_are(tiny_end):
    metrics = {"worker_loss": jnp.array([1.0, jnp.nan, 1.0])}
    assert finite_problem(metrics)[0] == "step 2 of it: worker_loss is nan"


def test_a_bad_leaf_of_the_state_is_named(tiny_end):
    state = tiny_end.state
    kernel = state.worker.params["output_kernel"].at[0, 0].set(jnp.inf)
    spoilt = state.replace(worker=state.worker.replace(params={**state.worker.params, "output_kernel": kernel}))
    line = {name: float(value) for name, value in health.state(spoilt).items()}
    assert health.problem(line, state) == "the first bad leaf is .worker.params['output_kernel'] of the state"
    assert health.problem({name: float(value) for name, value in health.state(state).items()}, state) is None


def test_gradient_norms_are_those_of_the_gradients(tiny_end):
    """Adam's first moment is a tenth of the gradient, which these settings do not clip."""
    config, state = tiny_end.config, tiny_end.state
    mle, metrics = jax.jit(training.mle_step, static_argnums=0)(config, state, tiny_end.tokens)
    d, of_d = jax.jit(training.discriminator_step, static_argnums=0)(
        config, state, tiny_end.tokens, np.array([1.0, 0, 1, 0, 1], np.float32), jax.random.key(0)
    )
    moments = {
        "manager": mle.manager.opt_state["supervised"],
        "worker": mle.worker.opt_state["supervised"],
        "discriminator": d.discriminator.opt_state,
    }
    for name, moment in moments.items():
        [(_, mu)] = optax.tree_utils.tree_get_all_with_path(moment, "mu")
        norm = np.sqrt(sum(np.sum(np.square(10 * np.float64(leaf))) for leaf in jax.tree.leaves(mu)))
        np.testing.assert_allclose((metrics | of_d)[f"{name}_grad_norm"], norm, rtol=1e-4)


def test_rewards_have_a_spread_over_what_is_real(tiny_end):
    _, metrics = jax.jit(training.generator_step, static_argnums=0)(tiny_end.config, tiny_end.state, jax.random.key(1))
    assert metrics["reward_spread"] > 0 and metrics["worker_grad_norm"] > 0 and metrics["entropy"] > 0


def stopped(out, capsys, *more) -> str:
    assert leakgan("train", "--out", out, *more) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("leakgan: ")]
    return line


def test_a_run_stops_where_a_number_goes_wrong_and_keeps_what_was_before(tmp_path, capsys):
    out = tmp_path / "run"
    line = stopped(out, capsys, *SHORT, "--generator-lr", "1e30")
    assert "stopped in unit 1 (pretrain, mle, 1)" in line and "step 2 of it: " in line and "_loss is " in line
    assert "the gradient of worker['" in line and "checkpoint 0 has the state before it" in line
    assert "--resume --debug-nans" in line
    assert not (out / "metrics.jsonl").read_text()
    config, _, _ = rundir.open_run(out)
    with Checkpoints(out, create=False) as checkpoints:
        restored = checkpoints.restore(target(config))
    assert restored.step == 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(restored.state))

    again = stopped(out, capsys, "--resume", "--debug-nans")
    assert "step 2 of it: " in again and "encountered in" in again
    assert ".py:" in again.split("encountered in")[1]  # the line of the operation


def test_a_number_that_goes_wrong_later_leaves_the_units_before(tmp_path, capsys, monkeypatch):
    """The third unit's metrics are spoilt, as a device that miscounts would."""
    from leakgan_jax import run

    real, calls = run._run_unit, []

    def spoil(*args):
        state, metrics = real(*args)
        calls.append(args)
        return state, metrics | {"worker_loss": jnp.nan} if len(calls) == 3 else metrics

    monkeypatch.setattr(run, "_run_unit", spoil)
    out = tmp_path / "run"
    line = stopped(out, capsys, *TINY)
    assert "unit 3 (pretrain, mle, 2)" in line and "worker_loss is nan" in line and "checkpoint 2 has" in line
    assert [json.loads(text)["unit"] for text in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    monkeypatch.undo()
    assert leakgan("train", "--out", out, "--resume") == 0  # what spoilt it is gone


@pytest.mark.parametrize(
    "scores, said",
    [
        ({"distinct": 0.49, "nll_div": 3.0}, "49% of its samples differ, under 50%"),
        ({"distinct": 1.0, "nll_div": 0.4}, "entropy is 0.40 nats per token, under 0.5"),
        ({"distinct": 0.5, "nll_div": 0.5}, None),
    ],
)
def test_a_collapse_is_told(scores, said):
    warning = health.collapse(scores)
    assert warning is None if said is None else said in warning


def test_a_run_warns_once_when_its_generator_collapses(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(health, "COLLAPSED_ENTROPY", 100.0)
    assert leakgan("train", "--out", tmp_path / "run", *SHORT) == 0
    assert capsys.readouterr().err.count("warning: the generator collapses") == 1
