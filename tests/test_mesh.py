"""Many devices and many processes: the same run as on one, shared among them.

Programs that need several devices or processes are started as such: a process has as many devices as it was told when
it began.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from test_run import TINY, final_state, leakgan, metrics

from leakgan_jax import ConfigError, parallel, rundir
from leakgan_jax.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("fast_compile")


# --- The mesh --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "num_devices, num_seeds, batch, asked, expected",
    [
        (8, 1, 64, "", (1, 8, 0)),
        (8, 2, 64, "", (2, 4, 0)),
        (8, 8, 64, "", (8, 1, 0)),
        (8, 3, 64, "", (1, 8, 0)),
        (8, 5, 6, "", (1, 6, 2)),  # 8 and 7 do not divide the batch
        (6, 1, 64, "", (1, 4, 2)),
        (8, 1, 64, "data=2", (1, 2, 6)),
        (8, 2, 64, "data=8", (2, 4, 0)),
        (8, 4, 64, "seeds=2,data=3", None),
        (8, 4, 63, "seeds=2,data=3", (2, 3, 2)),
        (8, 1, 64, "data=16", None),
        (8, 1, 60, "data=8", None),
        (8, 3, 64, "seeds=2", None),
        (8, 1, 64, "data", None),
        (8, 1, 64, "data=0", None),
        (8, 1, 64, "rows=8", None),
        (8, 1, 64, "data=2,data=4", None),
        (8, 1, 64, ",", None),
        (8, 1, 64, "data=" + "1" * 5_000, None),
    ],
)
def test_devices_are_shared_by_seeds_and_then_by_rows(num_devices, num_seeds, batch, asked, expected):
    devices = np.array([jax.devices()[0]] * num_devices)
    if expected is None:
        with pytest.raises(ConfigError, match="mesh is"):
            parallel.make_mesh(batch, num_seeds, asked, devices)
        return
    mesh, left_out = parallel.make_mesh(batch, num_seeds, asked, devices)
    assert (*mesh.devices.shape, left_out) == expected


def test_a_mesh_that_cannot_be_is_one_line(tmp_path, capsys):
    assert leakgan("train", "--out", tmp_path / "run", *TINY, "--mesh", "data=3") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "there are 1 devices" in error and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--process-id", "0"], "--coordinator and --num-processes missing"),
        (["--coordinator", "here:1", "--num-processes", "2", "--process-id", "2"], "process-id is 2"),
        (["--coordinator", "here", "--num-processes", "2", "--process-id", "1"], "HOST:PORT"),
        (["--distributed", "--debug-nans"], "one process alone"),
    ],
)
def test_processes_that_cannot_be_are_one_line(argv, expected, tmp_path, capsys):
    assert leakgan("train", "--out", tmp_path / "run", *TINY, *argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and expected in error


# --- Devices ---------------------------------------------------------------------------------------------------------

GRADIENTS = """
    import dataclasses, functools, json, re, sys
    sys.path.insert(0, "tests")
    from conftest import _tiny_config, _tiny_state
    import jax, jax.numpy as jnp, numpy as np, optax
    from leakgan_jax import parallel, training
    jax.config.update("jax_disable_most_optimizations", True)
    assert jax.device_count() == 8

    SIZES = {"batch_size": 16, "sample_batch": 16}
    BASELINE = {"model": "seqgan", "goal_horizon": 1, "rescaling": "off"}
    CASES = {
        "leakgan mle": ("paper", {}, "mle"),
        "leakgan generator": ("paper", {}, "generator"),
        "released generator": ("released", {}, "generator"),
        "leakgan discriminator": ("paper", {}, "discriminator"),
        "seqgan generator": ("paper", BASELINE, "generator"),
        "rankgan ranker": ("paper", {**BASELINE, "model": "rankgan"}, "discriminator"),
    }

    def one(config, kind, state, real, key):
        if kind == "mle":
            return training.mle_epoch(config, state, real, key)[0]
        if kind == "generator":
            return training.generator_steps(config, state, real, key)[0]
        return training.discriminator_draw(config, state, real, key)[0]

    def gradients(state):  # Adam's first moment is a tenth of the gradient, which these settings do not clip
        moments = optax.tree_utils.tree_get_all_with_path(state, "mu")
        return [10 * np.asarray(leaf) for leaf in jax.tree.leaves([mu for _, mu in moments])]

    shown = {}
    for name, (reading, overrides, kind) in CASES.items():
        config = _tiny_config(reading, **SIZES, **overrides, generator_steps=1, discriminator_epochs=1)
        real = np.random.default_rng(0).integers(0, 7, (8 if kind == "discriminator" else 16, 9), np.int32)
        state = (_tiny_state(config) if config.model == "leakgan" else
                 training.init(config, jax.random.key(3)))
        alone = gradients(jax.jit(one, static_argnums=(0, 1))(config, kind, state, real, jax.random.key(1)))
        largest = max(np.abs(leaf).max() for leaf in alone)
        for devices in (2, 8):
            mesh, _ = parallel.make_mesh(16, 1, f"data={devices}")
            arguments = parallel.place(mesh, (state, real, jax.random.key(1)))
            with jax.set_mesh(mesh):
                program = jax.jit(one, static_argnums=(0, 1)).lower(config, kind, *arguments).compile()
                shared = gradients(program(*arguments))
            worst = max(np.abs(a - b).max() for a, b in zip(alone, shared, strict=True))
            text = program.as_text()
            shown[f"{name} {devices}"] = {
                "worst": float(worst), "largest": float(largest),
                "whole logits": len(re.findall(r"f32\\[16(,9)?,7\\]", text)),
                "own logits": len(re.findall(rf"f32\\[(1,)?{16 // devices}(,9)?,7\\]", text)),
                "reduced": "all-reduce" in text,
            }
    print(json.dumps(shown))
"""


def python(code: str, devices: int) -> str:
    """The last line that a program prints which has `devices` devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def gradients():
    return json.loads(python(GRADIENTS, 8))


def test_gradients_on_two_and_eight_devices_are_those_of_one(gradients):
    assert len(gradients) == 12
    for name, shown in gradients.items():
        assert shown["worst"] < 1e-6, name
        assert shown["largest"] > 1e-2, name  # so that the bound means something
        assert shown["reduced"], name


def test_every_device_computes_its_own_rows_only(gradients):
    """No device has the logits of the whole batch."""
    for name in ("leakgan mle", "leakgan generator", "released generator", "seqgan generator"):
        for devices in (2, 8):
            shown = gradients[f"{name} {devices}"]
            assert shown["whole logits"] == 0 and shown["own logits"] > 0, (name, devices)


# --- Whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory, fast_compile):
    """The tiny run on one device, never stopped."""
    out = tmp_path_factory.mktemp("mesh") / "alone"
    assert leakgan("train", "--out", out, *TINY) == 0
    return out


def begun(alone: Path, out: Path) -> Path:
    """A copy of `alone` as a kill after an early checkpoint leaves it."""
    shutil.copytree(alone, out)
    with Checkpoints(out, create=False) as checkpoints:
        for step in checkpoints.steps()[1:]:
            shutil.rmtree(out / "checkpoints" / str(step))
    (out / "report.md").unlink()
    return out


def assert_close(one: Path, other: Path) -> None:
    """The same run but for rounding: of numbers, and of what training made of them."""
    for line, same in zip(metrics(one), metrics(other), strict=True):
        assert {k: v for k, v in line.items() if isinstance(v, str)} == {
            k: v for k, v in same.items() if isinstance(v, str)
        }
        numbers = [{k: v for k, v in x.items() if not isinstance(v, str)} for x in (line, same)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-3)
    for a, b in zip(final_state(one), final_state(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=0.01)


def processes(
    num: int, *argv, devices: int = 1, program=("-m", "leakgan_jax.cli")
) -> list[subprocess.CompletedProcess]:
    """The same command in `num` processes that find each other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, *map(str, [*program, *argv]), "--coordinator", f"localhost:{port}"]
    command += ["--num-processes", str(num), "--process-id"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    running = [subprocess.Popen([*command, str(i)], **pipes) for i in range(num)]
    done = []
    for process in running:
        out, error = process.communicate(timeout=600)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, error))
    return done


def test_a_run_begun_on_one_device_goes_on_on_eight_and_ends_on_one(alone, tmp_path, capsys):
    out = begun(alone, tmp_path / "run")
    code = f"""
        import threading, os, signal
        from leakgan_jax import cli, run
        unit, calls = run._run_unit, []
        def watched(*args):
            calls.append(1)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return unit(*args)
        run._run_unit = watched
        print(cli.main(["train", "--out", {str(out)!r}, "--resume"]))
    """
    assert python(code, 8) == str(128 + 15)
    assert leakgan("train", "--out", out, "--resume") == 0
    assert_close(alone, out)


def test_two_processes_train_as_one_and_one_goes_on_with_what_they_began(alone, tmp_path):
    two = tmp_path / "two"
    done = processes(2, "train", "--out", two, *TINY)
    assert [d.returncode for d in done] == [0, 0], [d.stderr for d in done]
    assert "LeakGAN" in done[0].stdout and "LeakGAN" not in done[1].stdout  # one prints the table
    assert "2 devices: 2 shares of every batch, in 2 processes" in done[0].stderr
    assert_close(alone, two)
    assert (two / "report.md").exists() and (two / "curves.png").exists()
    again = begun(two, tmp_path / "again")
    assert leakgan("train", "--out", again, "--resume") == 0
    assert_close(two, again)
    refused = processes(2, "train", "--out", two, *TINY)
    assert [d.returncode for d in refused] == [2, 2]
    assert all("already holds a run" in d.stderr for d in refused)
    lines = (two / "metrics.jsonl").read_text()
    (two / "metrics.jsonl").write_text(lines.replace('"worker_loss": 1', '"worker_loss": 2', 1))
    refused = processes(2, "train", "--out", two, "--resume")
    assert [d.returncode for d in refused] == [2, 2], [d.stderr for d in refused]
    assert all("metrics.jsonl is damaged" in d.stderr for d in refused)


def test_two_processes_share_seeds(tmp_path):
    few = [*TINY, "--pretrain-rounds", 1, "--mle-epochs", 1, "--adversarial-iterations", 1, "--seeds", 2]
    with jax.debug_key_reuse(False):  # the checker takes every vmapped scan over split keys for a reuse
        assert leakgan("train", "--out", tmp_path / "one", *few) == 0
    done = processes(2, "train", "--out", tmp_path / "two", *few)
    assert [d.returncode for d in done] == [0, 0], [d.stderr for d in done]
    for seed in ("seed-0", "seed-1"):
        assert_close(tmp_path / "one" / seed, tmp_path / "two" / seed)


def test_what_did_change_is_named_after_the_mesh(alone):
    now = {"mesh": {"seeds": 1, "data": 2}, "devices": 1} | {"versions": {f"x{i}": "y" * 999 for i in range(50)}}
    changed = rundir.changes(alone, now)
    assert "mesh data (1, now 2)" in changed and not any(line.startswith(("data", "seeds")) for line in changed)
    assert len(changed) == 21 and len(", ".join(changed)) < 5_000


@pytest.mark.parametrize("name, other", [("settings", ["--dataset", "text_lines"]), ("seeds", ["--seed", "1"])])
def test_processes_of_different_runs_do_not_train_together(tmp_path, name, other):
    code = f"""
        import sys
        from leakgan_jax import cli
        sys.exit(cli.main(sys.argv[1:] + {other} * (sys.argv[-1] == "1")))
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(code))
    done = processes(2, "train", "--out", tmp_path / "run", *TINY, program=[tmp_path / "program.py"])
    assert [d.returncode for d in done] == [2, 2], [d.stderr for d in done]
    assert all(f"process 1 has other {name} than process 0" in d.stderr for d in done)
    assert not (tmp_path / "run").exists()


def test_processes_agree_on_saving_where_an_evaluation_after_resuming_is_not_the_best(tmp_path):
    """A process that has not read the metric lines would take its first evaluation for the best, and save alone."""
    out = tmp_path / "run"
    steep = ["--adversarial-lr", 0.3, "--adversarial-iterations", 6]
    assert leakgan("train", "--out", out, *TINY, *steep) == 0
    scored = [line["nll_gen"] for line in metrics(out) if "nll_gen" in line]
    assert min(scored) not in scored[3:]  # later ones are worse
    undisturbed = metrics(out)
    with Checkpoints(out, create=False) as checkpoints:
        for step in checkpoints.steps()[2:]:
            shutil.rmtree(out / "checkpoints" / str(step))
    done = processes(2, "train", "--out", out, "--resume")
    assert [d.returncode for d in done] == [0, 0], [d.stderr for d in done]
    assert len(metrics(out)) == len(undisturbed)


def test_an_error_in_one_process_ends_the_other(tmp_path):
    code = """
        import sys
        from leakgan_jax import cli, run
        if sys.argv[-1] == "1":
            def broken(*args):
                raise MemoryError("no room")
            run._run_unit = broken
        sys.exit(cli.main(sys.argv[1:]))
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(code))
    done = processes(2, "train", "--out", tmp_path / "run", *TINY, program=[tmp_path / "program.py"])
    assert done[1].returncode == 1 and "no room" in done[1].stderr
    assert done[0].returncode not in (0, None)


def test_four_processes_go_on_with_what_one_began_until_one_is_told_to_stop(alone, tmp_path):
    out, code = (
        begun(alone, tmp_path / "run"),
        """
        import os, signal, sys
        from leakgan_jax import cli, run
        unit, calls = run._run_unit, []
        def watched(*args):
            calls.append(1)
            if len(calls) == 4 and sys.argv[-1] == "2":
                os.kill(os.getpid(), signal.SIGTERM)
            return unit(*args)
        run._run_unit = watched
        sys.exit(cli.main(sys.argv[1:]))
    """,
    )
    (tmp_path / "program.py").write_text(textwrap.dedent(code))
    done = processes(4, "train", "--out", out, "--resume", program=[tmp_path / "program.py"])
    assert [d.returncode for d in done] == [128 + 15] * 4, [d.stderr for d in done]
    with Checkpoints(out, create=False) as checkpoints:
        assert checkpoints.steps()[-1] == len(metrics(out)) < len(metrics(alone))
    assert leakgan("train", "--out", out, "--resume") == 0
    assert_close(alone, out)
