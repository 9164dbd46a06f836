"""Several seeds in one program: each against its own single run, resuming, sharing of devices, and bad input."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from test_run import CORPUS, TEXT, TINY, assert_same_run, leakgan, metrics

from leakgan_jax import run, rundir
from leakgan_jax.checkpoint import CheckpointError, Checkpoints

KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("fast_compile", "unchecked_keys")


@pytest.fixture(scope="module")
def unchecked_keys():
    """The checker takes every vmapped scan over split keys for a reuse; single runs pass it, in `test_run`."""
    jax.config.update("jax_debug_key_reuse", False)
    yield
    jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(scope="module")
def together(tmp_path_factory, fast_compile, unchecked_keys):
    """Seeds 5 and 6 of the tiny synthetic task in one run."""
    out = tmp_path_factory.mktemp("seeds") / "together"
    assert leakgan("train", "--out", out, "--seed", 5, "--seeds", 2, *TINY) == 0
    return out


def assert_close(lines: list[dict], others: list[dict]) -> None:
    """Metric lines that differ by rounding, which training makes larger."""
    for line, other in zip(lines, others, strict=True):
        texts = {name for name, value in line.items() if isinstance(value, str)}
        assert {name: line[name] for name in texts} == {name: other[name] for name in texts}
        numbers = [{name: value for name, value in x.items() if name not in texts} for x in (line, other)]
        assert numbers[0] == pytest.approx(numbers[1], rel=2e-3, abs=2e-3)


def test_each_seed_is_its_own_single_run_up_to_rounding(together, tmp_path):
    alone = {}
    for seed in (5, 6):
        assert leakgan("train", "--out", tmp_path / f"{seed}", "--seed", seed, *TINY) == 0
        alone[seed] = metrics(tmp_path / f"{seed}")
        assert_close(metrics(together / f"seed-{seed}"), alone[seed])
    assert alone[5][-1]["nll_gen"] != pytest.approx(alone[6][-1]["nll_gen"], rel=2e-3)  # the seeds differ by more


def test_every_seed_s_directory_is_a_run_and_the_whole_has_mean_and_spread(together, capsys):
    for name in ("report.md", "curves.png", "config.json"):
        assert (together / name).exists() and (together / "seed-5" / name).exists()
    tables = {}
    for place in (together, together / "seed-5", together / "seed-6"):
        rows = [line.split("|") for line in (place / "report.md").read_text().splitlines() if "| LeakGAN |" in line]
        tables[place.name] = rows[0][3]
        assert len(rows) == 2
    mean, spread = (float(number) for number in tables["together"].split("±"))
    values = [float(tables[f"seed-{seed}"]) for seed in (5, 6)]
    assert mean == pytest.approx(np.mean(values), abs=1e-3)
    assert spread == pytest.approx(np.std(values, ddof=1), abs=1.5e-3) and spread > 0
    assert "5 to 6" in (together / "report.md").read_text()
    assert leakgan("sample", together / "seed-6", "--num", 2) == 0
    assert leakgan("evaluate", together / "seed-6", "--json") == 0
    capsys.readouterr()
    assert leakgan("sample", together) == 2
    assert "seed-5 to" in capsys.readouterr().err


def drop(out: Path, *steps: int) -> None:
    for step in steps:
        shutil.rmtree(out / "checkpoints" / str(step))


def steps_of(out: Path) -> list[int]:
    with Checkpoints(out, create=False) as checkpoints:
        return checkpoints.steps()


def test_seeds_resume_together_from_the_last_one_that_all_have(together, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(together, out)
    drop(out / "seed-6", steps_of(out / "seed-6")[-1])  # as a kill between the two saves leaves it
    assert leakgan("train", "--out", out, "--resume") == 0
    assert "all go on from there" in capsys.readouterr().err
    for seed in (5, 6):
        assert_same_run(together / f"seed-{seed}", out / f"seed-{seed}")


def test_a_checkpoint_ahead_of_the_other_seeds_takes_no_place_from_the_common_one(together, tmp_path):
    config, _, _ = rundir.open_run(together / "seed-5")
    ahead = tmp_path / "seed-5"
    shutil.copytree(together / "seed-5", ahead)
    common, newest = steps_of(ahead)[-2:]
    with Checkpoints(ahead, create=True) as checkpoints:
        restored = checkpoints.restore(run.target(config), most=common)
        assert restored.step == common
        checkpoints.save(newest + 1, restored.state, {}, {})
        assert common in checkpoints.steps()


def test_a_kill_while_the_first_checkpoints_were_saved(together, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(together, out)
    shutil.rmtree(out / "seed-6")
    drop(out / "seed-5", *steps_of(out / "seed-5")[1:])
    assert leakgan("train", "--out", out, "--resume") == 0
    for seed in (5, 6):
        assert_same_run(together / f"seed-{seed}", out / f"seed-{seed}")


def test_first_checkpoints_that_failed_twice_are_no_lost_ones(tmp_path, monkeypatch, capsys):
    """The disk is full at the first save of the second seed, at one unit and then at another."""
    save, out = Checkpoints.save, tmp_path / "run"

    def full(self, *args):
        if "seed-1" in str(self._root):
            raise CheckpointError("no room")
        save(self, *args)

    monkeypatch.setattr(Checkpoints, "save", full)
    argv = ["train", "--out", out, "--seeds", 2, *TINY]
    assert leakgan(*argv, "--checkpoint-seconds", 0) == 2 and steps_of(out / "seed-0") == [1]
    assert leakgan("train", "--out", out, "--resume") == 2 and len(steps_of(out / "seed-0")) == 1
    monkeypatch.undo()
    assert leakgan("train", "--out", out, "--resume") == 0
    assert "lost" not in capsys.readouterr().err


def test_a_seed_that_lost_its_checkpoints_does_not_cost_the_others_theirs(together, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(together, out)
    shutil.rmtree(out / "seed-6" / "checkpoints")
    before = steps_of(out / "seed-5"), metrics(out / "seed-5")
    assert leakgan("train", "--out", out, "--resume") == 2
    assert "seed-6 has lost its checkpoints" in capsys.readouterr().err
    assert (steps_of(out / "seed-5"), metrics(out / "seed-5")) == before


@pytest.mark.parametrize("seconds", [0, 60])
def test_the_best_of_every_seed_is_saved_however_seldom(tmp_path, seconds):
    """Between two checkpoints the best of one seed, or of pre-training, must not be lost to a later one of another."""
    steep = ["--generator-lr", 0.3, "--adversarial-lr", 0.01, "--mle-epochs", 4, "--eval-every", 1]
    out = tmp_path / "run"
    argv = ["train", "--out", out, "--seeds", 3, *TINY, *steep, "--checkpoint-seconds", seconds]
    assert leakgan(*argv) == 0
    found = {}
    for place in rundir.directories(out, [0, 1, 2]):
        config = rundir.open_run(place)[0]
        scored = [line for line in metrics(place) if "nll_gen" in line]
        for which, among in (("best", scored), ("mle", [line for line in scored if line["phase"] == "pretrain"])):
            expected = min(among, key=lambda line: (line["nll_gen"], -line["unit"]))["unit"]
            with Checkpoints(place, create=False) as checkpoints:
                restored = checkpoints.restore(run.target(config), which)
            assert restored.step == expected
            params = restored.state.params
            assert run.evaluate(config, run.load_task(config, rundir.open_run(place)[1])[1], params, KEY, 1.0)[1][
                "nll_gen"
            ] == pytest.approx(restored.metrics["nll_gen"], abs=1e-4)
            found[place.name, which] = expected
    assert len({found[f"seed-{seed}", "mle"] for seed in range(3)}) > 1


def test_changed_metric_lines_are_refused_and_deleted_ones_are_told(together, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(together, out)
    lines = (out / "seed-6" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "seed-6" / "metrics.jsonl").write_text("".join(lines[:3] + lines[6:]))
    drop(out / "seed-5", steps_of(out / "seed-5")[-1])
    assert leakgan("train", "--out", out, "--resume") == 2
    assert "seed-6/metrics.jsonl is damaged" in capsys.readouterr().err
    (out / "seed-6" / "metrics.jsonl").unlink()
    assert leakgan("train", "--out", out, "--resume") == 0
    assert "are lost" in capsys.readouterr().err and "Metric lines: " in (out / "report.md").read_text()
    assert leakgan("train", "--out", out, "--resume") == 0  # what was told once is no damage, and still in the report
    assert "Metric lines: " in (out / "report.md").read_text()


def test_lines_that_were_deleted_are_not_missed_again_after_a_kill(together, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(together, out)
    for seed in ("seed-5", "seed-6"):
        drop(out / seed, steps_of(out / seed)[-1])
        done, path = steps_of(out / seed)[-1], out / seed / "metrics.jsonl"
        later = path.read_text().splitlines(keepends=True)[done:-1]
        path.write_text("".join(later))  # deleted, gone on with, and killed before the next checkpoint
    assert later and leakgan("train", "--out", out, "--resume") == 0
    assert "are lost" in capsys.readouterr().err
    assert [line["unit"] for line in metrics(out / "seed-5")] == list(range(done + 1, done + 1 + len(later) + 1))


def test_one_of_several_seeds_is_not_resumed_alone(together, tmp_path, capsys):
    assert leakgan("train", "--out", together / "seed-6", "--resume") == 2
    assert "one of several seeds" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(together / "seed-6")
    assert leakgan("train", "--out", tmp_path / "link", "--resume") == 2
    assert "one of several seeds" in capsys.readouterr().err


def test_a_seed_that_another_process_trains_is_not_trained(together, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(together, out)
    with rundir._locked(out / "seed-6"):
        assert leakgan("train", "--out", out, "--resume") == 2
    assert "seed-6 is in use" in capsys.readouterr().err


def test_seeds_share_a_text_and_its_split(tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text(CORPUS, encoding="utf-8")
    small = ["--pretrain-draws", 0, "--mle-epochs", 1, "--adversarial-iterations", 0]
    argv = ["train", "coco", "--out", tmp_path / "run", "--corpus", tmp_path / "corpus.txt", *TEXT, *small]
    assert leakgan(*argv, "--seeds", 2) == 0
    assert "±" in capsys.readouterr().out
    one, other = (json.loads((tmp_path / "run" / f"seed-{i}" / "config.json").read_text()) for i in range(2))
    assert one["data"] == other["data"] and (one["seed"], other["seed"]) == (0, 1)
    assert (tmp_path / "run/seed-0/samples.txt").read_text() != (tmp_path / "run/seed-1/samples.txt").read_text()


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--seeds", "0"], "seeds is 0"),
        (["--seeds", "2000"], "seeds is 2000"),
        (["--seed", str(2**32 - 1), "--seeds", "2"], "last seed"),
    ],
)
def test_bad_numbers_of_seeds(argv, expected, tmp_path, capsys):
    assert leakgan("train", "--out", tmp_path / "run", *argv) == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_resuming_other_seeds_is_an_error(together, capsys):
    assert leakgan("train", "--out", together, "--resume", "--seeds", 3) == 2
    assert "seeds (2, now 3)" in capsys.readouterr().err


def test_devices_share_the_seeds(together, tmp_path):
    short = [*TINY, "--adversarial-iterations", "0"]  # the same units as far as it goes
    argv = ["train", "--seed", "5", "--seeds", "2", *short, "--out", str(tmp_path / "two")]
    code = f"""
        import jax
        from leakgan_jax import cli, run, rundir
        unit, seen = run._run_unit, set()
        def watched(*args):
            state, metrics = unit(*args)
            seen.update(str(leaf.sharding.spec) for leaf in jax.tree.leaves(state) if leaf.ndim > 1)
            return state, metrics
        run._run_unit = watched
        assert cli.main({argv!r}) == 0
        print(jax.device_count(), *seen)
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 P('seeds',)"
    for seed in (5, 6):
        lines = metrics(tmp_path / "two" / f"seed-{seed}")
        assert len(lines) == 6
        assert_close(lines, metrics(together / f"seed-{seed}")[: len(lines)])


def test_one_seed_s_run_is_the_directory_itself():
    assert rundir.directories(Path("out"), [3]) == [Path("out")]
