"""Checkpoints: exact when intact, refused when not, and never fewer on disk than promised."""

import errno
import json
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from leakgan_jax.checkpoint import CheckpointError, Checkpoints
from leakgan_jax.types import GanState, NetState


def make_state(seed: int, width: int = 3) -> GanState:
    rng = np.random.default_rng(seed)

    def net(name: str) -> NetState:
        params = {
            name: {"kernel": jnp.asarray(rng.normal(size=(4, width)), jnp.float32)},
            "scale": jnp.asarray(rng.normal(), jnp.bfloat16),
            "ids": jnp.asarray(rng.integers(9, size=2), jnp.int32),
        }
        moments = optax.ScaleByAdamState(jnp.int32(seed), jax.tree.map(jnp.ones_like, params), params)
        return NetState(params, {"supervised": (moments, optax.EmptyState()), "key": jax.random.key(seed)})

    return GanState(net("manager"), net("worker"), net("discriminator"))


STATES = {step: make_state(step) for step in range(4)}


def same(left, right) -> bool:
    """Structure, dtypes and bits."""

    def bits(x):
        is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x).tobytes()

    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        (a.dtype, a.shape, bits(a)) == (b.dtype, b.shape, bits(b))
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right))
    )


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path, create=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A run with checkpoints 1 and 2, of which 2 is the best; to be copied, not changed."""
    run = tmp_path_factory.mktemp("pair")
    with Checkpoints(run, create=True) as opened:
        for step in (1, 2):
            opened.save(step, STATES[step], {"seen": [step, 0.1]}, {"nll_gen": 5.0 - step, "pretrain": 1.0})
    return run


def check_damaged(run: pathlib.Path, *, surely: bool) -> None:
    """Checkpoint 2 of a copy of `pair` was changed: it must be refused, or come back exactly, but not if `surely`."""
    with Checkpoints(run, create=False) as opened:
        skipped = []
        step, state, extra = opened.restore(STATES[0], on_skip=skipped.append)
        assert step == (1 if skipped else 2) and not (surely and step == 2)
        assert same(state, STATES[step]) and extra == {"seen": [step, 0.1]}
        assert all(line.startswith("checkpoint 2 is damaged (") and "\n" not in line for line in skipped)
        assert all(line.endswith("; falling back to 1") for line in skipped)
        if skipped:
            with pytest.raises(CheckpointError, match="checkpoint 2 is damaged"):
                opened.restore(STATES[0], "best")
        else:
            assert same(opened.restore(STATES[0], "best").state, STATES[2])


def files_of(run: pathlib.Path, step: int) -> list[pathlib.Path]:
    return sorted(path for path in (run / "checkpoints" / str(step)).rglob("*") if path.is_file())


@pytest.mark.parametrize("abstract", [False, True], ids=["arrays", "abstract"])
def test_round_trip_is_bit_exact_and_keeps_types(checkpoints, abstract):
    checkpoints.save(3, STATES[3], {"config": {"lr": 0.1, "sizes": (1, 2)}, "done": False}, {})
    target = jax.eval_shape(lambda: STATES[0]) if abstract else STATES[0]
    step, state, extra = checkpoints.restore(target)
    assert step == 3 and same(state, STATES[3])
    assert isinstance(state.worker.opt_state["supervised"][0], optax.ScaleByAdamState)
    assert extra == {"config": {"lr": 0.1, "sizes": [1, 2]}, "done": False}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_other_kinds_of_key_survive(checkpoints):
    keys = {impl: jax.random.split(jax.random.key(5, impl=impl)) for impl in ("rbg", "unsafe_rbg", "threefry2x32")}
    checkpoints.save(0, keys, {}, {})
    assert same(checkpoints.restore(keys).state, keys)


@pytest.mark.filterwarnings("error")
def test_saved_and_restored_buffers_may_be_donated(checkpoints):
    increment = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = {"w": jnp.arange(1024.0)}
    checkpoints.save(1, state, {}, {})
    increment(state)  # overwrites what was saved
    restored = checkpoints.restore({"w": jnp.zeros(1024)}).state
    np.testing.assert_array_equal(increment(restored)["w"], np.arange(1024.0) + 1)
    assert restored["w"].is_deleted()
    np.testing.assert_array_equal(checkpoints.restore({"w": jnp.zeros(1024)}).state["w"], np.arange(1024.0))


def test_newest_two_best_and_mle_are_kept(checkpoints):
    history = [  # step, nll_gen, pretrain, kept afterwards
        (1, 3.0, 1.0, [1]),
        (2, 2.0, 1.0, [1, 2]),
        (3, 2.5, 1.0, [2, 3]),
        (4, 1.0, 0.0, [2, 3, 4]),
        (5, 9.0, 0.0, [2, 4, 5]),
        (6, float("nan"), 0.0, [2, 4, 5, 6]),
        (7, None, 0.0, [2, 4, 6, 7]),
        (8, float("-inf"), 1.0, [2, 4, 7, 8]),
    ]
    for step, nll, pretrain, kept in history:
        metrics = {"pretrain": pretrain} | ({} if nll is None else {"nll_gen": nll})
        checkpoints.save(step, STATES[step % 4], {}, metrics)
        assert checkpoints.steps() == kept
        assert checkpoints.restore(STATES[0]).step == step
    assert [checkpoints.restore(STATES[0], which).step for which in ("newest", "best", "mle")] == [8, 4, 2]


def test_without_metrics_two_are_kept_and_none_is_best(checkpoints):
    for step in range(5):
        checkpoints.save(step, STATES[0], {}, {})
    assert checkpoints.steps() == [3, 4]
    for which in ("best", "mle"):
        with pytest.raises(CheckpointError, match=f"checkpoints: holds no checkpoint to restore as '{which}'"):
            checkpoints.restore(STATES[0], which)


def test_flipped_bits_never_give_wrong_values(pair, tmp_path):
    rng = random.Random(0)
    every = files_of(pair, 2)
    big = [path for path in every if path.stat().st_size > 100]  # arrays, record and metadata
    run = tmp_path / "run"
    for path in every + rng.choices(big, k=12):
        if not path.stat().st_size:
            continue
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(pair, run)
        copy = run / path.relative_to(pair)
        data = bytearray(copy.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        copy.write_bytes(data)
        check_damaged(run, surely=False)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "deleted"])
def test_broken_files_fall_back(pair, tmp_path, damage):
    run = tmp_path / "run"
    for path in files_of(pair, 2):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(pair, run)
        copy = run / path.relative_to(pair)
        if damage == "deleted":
            copy.unlink()
        else:
            copy.write_bytes(copy.read_bytes()[: path.stat().st_size // 2 if damage == "truncated" else 0])
        check_damaged(run, surely=path.parent.name == "record" and path.name == "metadata")


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["extra"].update(seen=[3, 0.1]),
        lambda record: record["metrics"].update(nll_gen=0.0),
        lambda record: record["leaves"].popitem(),
        lambda record: record.update(step=3),
        lambda record: record.pop("sha256"),
    ],
)
def test_altered_record_is_refused(pair, tmp_path, change):
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoints" / "2" / "record" / "metadata"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    check_damaged(tmp_path, surely=True)


def test_renamed_checkpoint_is_refused(pair, tmp_path):
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "2").rename(tmp_path / "checkpoints" / "7")
    with Checkpoints(tmp_path, create=False) as opened, pytest.warns(UserWarning, match="7 is damaged.*back to 1"):
        assert opened.restore(STATES[0]).step == 1


def test_nothing_intact_is_one_line(pair, tmp_path):
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    for step in (1, 2):
        (tmp_path / "checkpoints" / str(step) / "record" / "metadata").write_text("[]")
    with Checkpoints(tmp_path, create=False) as opened, pytest.raises(CheckpointError) as caught:
        opened.restore(STATES[0], on_skip=lambda line: None)
    assert "checkpoint 1 is damaged" in str(caught.value) and "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_strays_are_passed_over(checkpoints, tmp_path):
    root = tmp_path / "checkpoints"
    checkpoints.save(5, STATES[1], {}, {"nll_gen": 1.0})
    for stray in ("9", "notes", "007", "6.orbax-checkpoint-tmp"):
        (root / stray).mkdir()
    (root / "8").write_text("a file")
    skipped = []
    assert checkpoints.restore(STATES[0], on_skip=skipped.append).step == 5 and len(skipped) == 1
    assert checkpoints.restore(STATES[0], "best").step == 5
    checkpoints.save(6, STATES[2], {}, {})
    assert checkpoints.steps() == [5, 6] and (root / "notes").exists()
    assert not list(root.glob("*tmp*"))


@pytest.mark.parametrize(
    "target, text",
    [
        (make_state(0, width=5), r"leaf .*\['kernel'\] is float32\[4, 3\] there, float32\[4, 5\] here"),
        ({"w": jnp.zeros(2)}, r"leaf .* is .* there, absent here"),
        (
            jax.eval_shape(
                lambda: jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, STATES[0])
            ),
            r"leaf .*\['scale'\] is bfloat16\[\] there, float32\[\] here",
        ),
    ],
    ids=["shape", "structure", "dtype"],
)
def test_another_model_is_named_not_fallen_back_from(pair, target, text):
    message = "checkpoint 2 is of another model: " + text
    with Checkpoints(pair, create=False) as opened, pytest.raises(CheckpointError, match=message):
        opened.restore(target, on_skip=pytest.fail)


def test_saving_a_step_again_replaces_it(checkpoints):
    for step in (1, 2, 3):
        checkpoints.save(step, STATES[step], {}, {"nll_gen": float(step)})
    checkpoints.save(2, STATES[0], {"again": True}, {})
    assert checkpoints.steps() == [1, 2, 3]  # 1 is the best
    checkpoints.save(3, STATES[0], {"again": True}, {})
    _, state, extra = checkpoints.restore(STATES[1])
    assert same(state, STATES[0]) and extra == {"again": True}


def test_damaged_newest_does_not_take_a_place(checkpoints, tmp_path):
    """After falling back from 3 to 2, saving 2 again must not leave a known-bad 3 among the newest two."""
    for step in (1, 2, 3):
        checkpoints.save(step, STATES[step], {}, {})
    for path in files_of(tmp_path, 3):
        if path.parent.name == "d":
            path.write_bytes(b"")
    assert checkpoints.restore(STATES[0], on_skip=lambda line: None).step == 2
    checkpoints.save(2, STATES[0], {}, {})
    assert checkpoints.steps() == [2]
    checkpoints.save(3, STATES[3], {}, {})
    assert checkpoints.steps() == [2, 3] and same(checkpoints.restore(STATES[0]).state, STATES[3])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: Failed writing: a/b: Failed to write 115 bytes [os_error_code='28']"),
    ],
    ids=["python", "tensorstore"],
)
@pytest.mark.parametrize("step", [2, 3], ids=["existing", "new"])
def test_failed_save_leaves_what_was_there(checkpoints, tmp_path, monkeypatch, step, error):
    for earlier in (1, 2):
        checkpoints.save(earlier, STATES[earlier], {}, {})

    def full(path, **_):
        (path.parent / f"{path.name}.orbax-checkpoint-tmp").mkdir()
        raise error

    with monkeypatch.context() as patch, pytest.raises(CheckpointError) as caught:
        patch.setattr(checkpoints._orbax, "save", full)
        checkpoints.save(step, STATES[3], {}, {})
    root = tmp_path / "checkpoints"
    assert str(caught.value) == f"{root}: checkpoint {step} could not be saved: No space left on device"
    assert sorted(path.name for path in root.iterdir()) == ["1", "2"]
    assert same(checkpoints.restore(STATES[0]).state, STATES[2])
    checkpoints.save(step, STATES[3], {}, {})
    assert same(checkpoints.restore(STATES[0]).state, STATES[3])


def test_killed_between_the_renames_of_a_replacement(pair, tmp_path):
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    root = tmp_path / "checkpoints"
    (root / "2").rename(root / "2.replaced")
    (root / "1").rename(root / "1.dropped")
    with Checkpoints(tmp_path, create=True) as opened:
        assert opened.steps() == [2] and same(opened.restore(STATES[0]).state, STATES[2])
    assert [path.name for path in root.iterdir()] == ["2"]


def test_directory_missing_empty_or_unusable(tmp_path):
    with pytest.raises(CheckpointError, match="absent/checkpoints: no such directory"):
        Checkpoints(tmp_path / "absent", create=False)
    assert not (tmp_path / "absent").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/checkpoints: cannot be created: Not a directory"):
        Checkpoints(tmp_path / "file", create=True)
    with Checkpoints(tmp_path / "new" / "run", create=True) as opened:
        assert opened.steps() == []
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            opened.restore(STATES[0])


def test_orbax_is_quiet(pair, capfd, caplog):
    caplog.set_level("DEBUG")
    with Checkpoints(pair, create=False) as opened:
        opened.restore(STATES[0])
    assert not [entry for entry in caplog.records if entry.name == "absl"]
    assert capfd.readouterr() == ("", "")
