"""Checkpoints: exact when intact, refused when not, and never fewer on disk than promised."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from leakgan_jax.checkpoint import LARGEST_MANIFEST, CheckpointError, Checkpoints
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


@pytest.fixture
def copy(pair, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pair, run)
    return run


def check_refused(run: pathlib.Path, reason: str = "") -> None:
    """Checkpoint 2 of a copy of `pair` was changed: it must be passed over, and not be given as the best."""
    with Checkpoints(run, create=False) as opened:
        skipped = []
        step, state, extra, _ = opened.restore(STATES[0], on_skip=skipped.append)
        assert step == 1 and same(state, STATES[1]) and extra == {"seen": [1, 0.1]}
        [line] = skipped
        assert re.fullmatch(rf"checkpoint 2 is damaged \(.*{reason}.*\); falling back to 1", line) and len(line) < 400
        with pytest.raises(CheckpointError, match="checkpoint 2 is damaged|checkpoint 2 with nll_gen 3, which is gone"):
            opened.restore(STATES[0], "best")


def forge(run: pathlib.Path, change, step: int = 2) -> None:
    """Changes a checkpoint's manifest as a stranger would, whose digest holds; files as they are now, if listed."""
    path = run / "checkpoints" / str(step) / "MANIFEST"
    record = json.loads(path.read_bytes().split(b"\n")[1])
    body = change(record)
    if body is None:
        for name in record["files"]:
            with contextlib.suppress(OSError):
                content = (path.parent / name).read_bytes()
                record["files"][name] = [len(content), hashlib.sha256(content).hexdigest()]
        body = json.dumps(record)
    path.write_bytes(hashlib.sha256(body.encode()).hexdigest().encode() + b"\n" + body.encode())


def files_of(run: pathlib.Path, step: int) -> list[pathlib.Path]:
    return sorted(path for path in (run / "checkpoints" / str(step)).rglob("*") if path.is_file())


@pytest.mark.parametrize("abstract", [False, True], ids=["arrays", "abstract"])
def test_round_trip_is_bit_exact_and_keeps_types(checkpoints, abstract):
    checkpoints.save(3, STATES[3], {"config": {"lr": 0.1, "sizes": (1, 2)}, "done": False}, {})
    target = jax.eval_shape(lambda: STATES[0]) if abstract else STATES[0]
    step, state, extra, _ = checkpoints.restore(target)
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


def test_a_flipped_bit_is_noticed(copy):
    """One in each kind of file, and 40 anywhere."""
    rng = random.Random(0)
    files = files_of(copy, 2)
    kinds = {path.name: path for path in files}
    assert {"MANIFEST", "_METADATA", ".zarray", "0"} <= kinds.keys()
    for path in [*kinds.values(), *rng.choices(files, [path.stat().st_size for path in files], k=40)]:
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        check_refused(copy)
        path.write_bytes(content)
    with Checkpoints(copy, create=False) as opened:
        assert same(opened.restore(STATES[0], on_skip=pytest.fail).state, STATES[2])


@pytest.mark.parametrize("damage", ["truncated", "emptied", "deleted", "longer"])
def test_broken_files_are_noticed(copy, damage):
    for path in {path.name: path for path in files_of(copy, 2)}.values():
        content = path.read_bytes()
        if damage == "deleted":
            path.unlink()
        else:
            path.write_bytes({"truncated": content[:-1], "emptied": b"", "longer": content + b"\0"}[damage])
        check_refused(copy)
        path.write_bytes(content)


def emptied(folder: pathlib.Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def linked(path: pathlib.Path) -> None:
    """The same content, but elsewhere."""
    path.rename(path.parents[4] / "elsewhere")
    path.symlink_to(path.parents[4] / "elsewhere")


def sparse(path: pathlib.Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 42)  # to read or hash it would take half an hour


ODD_FILES = {
    "half of it deleted": lambda place: shutil.rmtree(place / "state" / "0"),
    "the arrays deleted": lambda place: shutil.rmtree(place / "state"),
    "all deleted": emptied,
    "an extra file": lambda place: (place / "state" / "0" / "checkpoint").write_text(""),
    "an extra folder": lambda place: (place / "state" / "1").mkdir(),
    "an OCDBT database": lambda place: (place / "state" / "0" / "manifest.ocdbt").write_text(""),
    "a pipe": lambda place: os.mkfifo(place / "pipe"),
    "a pipe for a manifest": lambda place: ((place / "MANIFEST").unlink(), os.mkfifo(place / "MANIFEST")),
    "a pipe for a file": lambda place: (
        (place / "state" / "0" / "_METADATA").unlink(),
        os.mkfifo(place / "state" / "0" / "_METADATA"),
    ),
    "a huge file": lambda place: sparse(place / "huge"),
    "a huge manifest": lambda place: sparse(place / "MANIFEST"),
    "a huge array": lambda place: sparse(place / "state" / "0" / "bytes" / "0"),
    "a link for a file": lambda place: linked(place / "state" / "0" / "_METADATA"),
    "a link for a folder": lambda place: linked(place / "state" / "0"),
    "a link for a manifest": lambda place: linked(place / "MANIFEST"),
    "a link to itself": lambda place: (place / "state" / "0" / "loop").symlink_to(place),
}


@pytest.mark.parametrize("case", ODD_FILES)
def test_a_directory_that_is_not_its_manifests_is_refused(copy, monkeypatch, case):
    """Before Orbax reads any of it, and without a byte of what does not belong there."""
    ODD_FILES[case](copy / "checkpoints" / "2")
    read = []
    restore = ocp.Checkpointer.restore
    monkeypatch.setattr(
        ocp.Checkpointer, "restore", lambda self, path, **args: read.append(path) or restore(self, path, **args)
    )
    check_refused(copy)
    assert read == [copy / "checkpoints" / "1" / "state" / "0"]


def test_a_checkpoint_behind_a_link_is_refused(copy):
    place = copy / "checkpoints" / "2"
    place.rename(copy / "elsewhere")
    place.symlink_to(copy / "elsewhere")
    check_refused(copy, "symbolic link")


def leaf(record: dict) -> str:
    return next(name for name, (shape, _) in record["leaves"].items() if shape == "float32[4, 3]")


def layout(place: pathlib.Path, **changes) -> None:
    path = place / "state" / "0" / "bytes" / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


FORGED = {  # what is done to the files, to the manifest, and the reason given
    "another step": (None, lambda r: r.update(step=3), "another name"),
    "a big manifest": (None, lambda r: "[" + " " * LARGEST_MANIFEST + "]", "no file of at most"),
    "no record": (None, lambda r: "[]", ""),
    "deep": (None, lambda r: "[" * 100_000 + "]" * 100_000, ""),
    "no leaves": (None, lambda r: r.pop("leaves") and None, "not what a save writes"),
    "a metric that is text": (None, lambda r: r["metrics"].update(nll_gen="0"), "not what a save writes"),
    "a metric without bound": (None, lambda r: r["metrics"].update(nll_gen=10**400), "not what a save writes"),
    "a best that is text": (None, lambda r: r["lowest"].update(best=["2", 0.0]), "not what a save writes"),
    "a file outside": (None, lambda r: r["files"].update({"../1/MANIFEST": [1, ""]}), "names ../1/MANIFEST"),
    "a share outside": (
        None,
        lambda r: r["leaves"].update({name: [shape, "../../1/state/0"] for name, (shape, _) in r["leaves"].items()}),
        "no numbers",
    ),
    "an unlisted array": (None, lambda r: r["files"].pop("state/0/bytes/0") and None, "has no"),
    "a giant array": (lambda place: layout(place, shape=[1 << 40]), lambda r: None, "describes another array"),
    "giant pieces": (lambda place: layout(place, chunks=[1 << 40]), lambda r: None, "describes another array"),
    "a compressed array": (
        lambda place: layout(place, compressor={"id": "zstd", "level": 1}),
        lambda r: None,
        "describes another array",
    ),
    "a layout that goes deep": (
        lambda place: (place / "state" / "0" / "bytes" / ".zarray").write_text("[" * 10_000),
        lambda r: None,
        "",
    ),
    "a tree that goes deep": (
        lambda place: (place / "state" / "0" / "_METADATA").write_text("[" * 10_000),
        lambda r: None,
        "",
    ),
    "a tree of other things": (
        lambda place: (place / "state" / "0" / "_METADATA").write_text('{"tree_metadata": {}, "use_ocdbt": true}'),
        lambda r: None,
        "",
    ),
    "a big tree": (
        lambda place: os.truncate(place / "state" / "0" / "_METADATA", 1 << 20),
        lambda r: None,
        "bytes where",
    ),
    "a handler's name": (
        lambda place: (place / "state" / "0" / "_METADATA").write_text(
            (place / "state" / "0" / "_METADATA").read_text().replace("np.ndarray", "os.system")
        ),
        lambda r: None,
        None,  # nothing is looked up by that name
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_strangers_checkpoint_whose_digests_hold_does_no_harm(copy, case):
    files, manifest, reason = FORGED[case]
    if files:
        files(copy / "checkpoints" / "2")
    forge(copy, manifest)
    before = files_of(copy, 1), files_of(copy, 2), sorted(copy.rglob("*"))
    if reason is None:
        with Checkpoints(copy, create=False) as opened:
            assert same(opened.restore(STATES[0]).state, STATES[2])
    else:
        check_refused(copy, reason)
    assert before == (files_of(copy, 1), files_of(copy, 2), sorted(copy.rglob("*")))


def test_a_giant_shape_is_another_model(copy):
    forge(copy, lambda record: record["leaves"].update({leaf(record): ["float32[1099511627776, 3]", 0]}))
    with Checkpoints(copy, create=False) as opened, pytest.raises(CheckpointError, match=r"is float32\[1099511627776"):
        opened.restore(STATES[0])


def test_other_formats_are_named(copy):
    forge(copy, lambda record: record.update(format=3))
    with Checkpoints(copy, create=False) as opened:
        with pytest.raises(CheckpointError, match="checkpoint 2 is of format 3, of another version of leakgan_jax"):
            opened.restore(STATES[0])
    shutil.rmtree(copy / "checkpoints" / "2")
    old = copy / "checkpoints" / "3" / "record"
    old.mkdir(parents=True)
    (old / "metadata").write_text("{}")
    with Checkpoints(copy, create=True) as opened:
        for which in ("newest", "best"):
            with pytest.raises(CheckpointError, match="checkpoint 3 was saved by an older version"):
                opened.restore(STATES[0], which)
        with pytest.raises(CheckpointError, match="checkpoint 3 was saved by an older version"):
            opened.save(4, STATES[0], {}, {})
        assert opened.steps() == [1, 3]


def test_renamed_checkpoint_is_refused(pair, tmp_path):
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "2").rename(tmp_path / "checkpoints" / "7")
    with Checkpoints(tmp_path, create=False) as opened, pytest.warns(UserWarning, match="7 is damaged.*back to 1"):
        assert opened.restore(STATES[0]).step == 1


def test_nothing_intact_is_one_line(copy):
    for step in (1, 2):
        (copy / "checkpoints" / str(step) / "MANIFEST").write_text("[]")
    with Checkpoints(copy, create=False) as opened, pytest.raises(CheckpointError) as caught:
        opened.restore(STATES[0], on_skip=lambda line: None)
    assert "checkpoint 1 is damaged" in str(caught.value) and "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize("then", ["at once", "after another", "after it was damaged"])
@pytest.mark.parametrize("which, lost", [("best", 3), ("mle", 1)])
def test_a_best_checkpoint_that_is_gone_is_told(checkpoints, tmp_path, which, lost, then):
    root = tmp_path / "checkpoints"
    for step, nll, pretrain in [(1, 2.0, 1.0), (2, 3.0, 1.0), (3, 1.0, 0.0), (4, 9.0, 0.0), (5, 9.0, 0.0)]:
        checkpoints.save(step, STATES[1], {}, {"nll_gen": nll, "pretrain": pretrain})
    assert checkpoints.steps() == [1, 3, 4, 5] and checkpoints.restore(STATES[0], which).step == lost
    gone = f"holds no checkpoint to restore as '{which}': that was checkpoint {lost} with nll_gen .*, which is gone"
    if then == "after it was damaged":  # its manifest, too, but others name it: it is kept
        gone = f"cannot tell which is '{which}': checkpoint {lost} is damaged"
        (root / str(lost) / "MANIFEST").write_text("")
    else:
        shutil.rmtree(root / str(lost))
    if then != "at once":
        with pytest.raises(CheckpointError, match=gone):
            checkpoints.restore(STATES[0], which)
        checkpoints.save(6, STATES[1], {}, {"nll_gen": 2.5, "pretrain": 1.0})
    with pytest.raises(CheckpointError, match=gone):
        checkpoints.restore(STATES[0], which)
    checkpoints.save(7, STATES[1], {}, {"nll_gen": 0.5, "pretrain": 1.0})
    assert checkpoints.restore(STATES[0], which).step == 7


def test_a_checkpoint_of_another_run_is_refused_and_named(tmp_path):
    here = {"seed": 5, "data": {"source": "coco", "lines": 3}, "sizes": (1, 2)}
    with Checkpoints(tmp_path, create=True, identity=here) as opened:
        opened.save(1, STATES[1], {}, {"nll_gen": 1.0, "pretrain": 1.0})
    for identity in (here, None):
        with Checkpoints(tmp_path, create=False, identity=identity) as opened:
            assert opened.restore(STATES[0]).step == 1
    for there, line in [
        (here | {"seed": 3}, "seed is 5 there, 3 here"),
        (here | {"data": {"source": "poems", "lines": 3}}, "data.source is coco there, poems here"),
        (here | {"length": 20}, "length is absent there, 20 here"),
    ]:
        message = f"checkpoint 1 is of another run: {line}$"
        with Checkpoints(tmp_path, create=True, identity=there) as opened:
            for which in ("newest", "best", "mle"):
                with pytest.raises(CheckpointError, match=message):
                    opened.restore(STATES[0], which, on_skip=pytest.fail)
            with pytest.raises(CheckpointError, match=message):
                opened.save(2, STATES[2], {}, {})
            assert opened.steps() == [1]


def test_strays_are_passed_over(checkpoints, tmp_path):
    root = tmp_path / "checkpoints"
    checkpoints.save(5, STATES[1], {}, {"nll_gen": 1.0})
    for stray in ("9", "notes", "007", ".6.partial"):
        (root / stray).mkdir()
    (root / ".6.partial" / "state").mkdir()
    (root / "8").write_text("a file")
    skipped = []
    assert checkpoints.restore(STATES[0], on_skip=skipped.append).step == 5 and len(skipped) == 1
    with pytest.raises(CheckpointError, match="cannot tell which is 'best': checkpoint 9 is damaged"):
        checkpoints.restore(STATES[0], "best")
    checkpoints.save(6, STATES[2], {}, {})
    assert checkpoints.steps() == [5, 6] and (root / "notes").exists()
    assert sorted(path.name for path in root.iterdir()) == ["007", "5", "6", "8", "notes"]


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
    _, state, extra, _ = checkpoints.restore(STATES[1])
    assert same(state, STATES[0]) and extra == {"again": True}


def test_damaged_newest_does_not_take_a_place(checkpoints, tmp_path):
    """After falling back from 3 to 2, saving 2 again must not leave a known-bad 3 among the newest two."""
    for step in (1, 2, 3):
        checkpoints.save(step, STATES[step], {}, {})
    for path in files_of(tmp_path, 3):
        path.write_bytes(b"")
    assert checkpoints.restore(STATES[0], on_skip=lambda line: None).step == 2
    checkpoints.save(2, STATES[0], {}, {})
    assert checkpoints.steps() == [2]
    checkpoints.save(3, STATES[3], {}, {})
    assert checkpoints.steps() == [2, 3] and same(checkpoints.restore(STATES[0]).state, STATES[3])


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("RESOURCE_EXHAUSTED: Failed writing: a/b: Failed to write 115 bytes [os_error_code='28']"),
]


@pytest.mark.parametrize("error", [*FULL, KeyboardInterrupt()], ids=["python", "tensorstore", "interrupt"])
@pytest.mark.parametrize("step", [2, 3], ids=["existing", "new"])
@pytest.mark.parametrize("call", ["orbax", "mkdir", "fsync", "rename"])
def test_failed_save_leaves_what_was_there(checkpoints, tmp_path, monkeypatch, step, error, call):
    for earlier in (1, 2):
        checkpoints.save(earlier, STATES[earlier], {}, {})

    def fails(*_, **__):
        raise error

    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else CheckpointError
    with monkeypatch.context() as patch, pytest.raises(expected) as caught:
        if call == "orbax":
            real = checkpoints._orbax.save  # which has written all by then
            patch.setattr(checkpoints._orbax, "save", lambda *args, **more: real(*args, **more) or fails())
        else:
            patch.setattr(os, call, fails)
        checkpoints.save(step, STATES[3], {}, {})
    root = tmp_path / "checkpoints"
    if expected is CheckpointError:
        assert str(caught.value) == f"{root}: checkpoint {step} could not be saved: No space left on device"
    assert sorted(path.name for path in root.iterdir()) == ["1", "2"]
    assert same(checkpoints.restore(STATES[0]).state, STATES[2])
    checkpoints.save(step, STATES[3], {}, {})
    assert same(checkpoints.restore(STATES[0]).state, STATES[3])


def test_all_is_on_disk_before_it_has_its_name(checkpoints, monkeypatch):
    synced, named = set(), []
    fsync, rename = os.fsync, os.rename

    def syncs(handle):
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    def renames(old, new, **more):
        if pathlib.Path(new).name == "1":
            every = [pathlib.Path(old), *pathlib.Path(old).rglob("*")]
            assert {path.stat().st_ino for path in every} <= synced and len(every) > 8
            named.append(new)
        rename(old, new, **more)

    monkeypatch.setattr(os, "fsync", syncs)
    monkeypatch.setattr(os, "rename", renames)
    checkpoints.save(1, STATES[1], {}, {})
    assert len(named) == 1 and pathlib.Path(named[0]).parent.stat().st_ino in synced


def test_what_orbax_reads_is_checked_too(copy, monkeypatch):
    restore = ocp.Checkpointer.restore

    def wrong(self, path, **args):
        read = restore(self, path, **args)
        if "2" in path.parts:
            read["bytes"][0] ^= 1
        return read

    monkeypatch.setattr(ocp.Checkpointer, "restore", wrong)
    check_refused(copy, "not read as it is")


class Killed(BaseException):
    pass


def test_a_kill_at_any_moment_of_a_save_leaves_the_old_or_the_new(tmp_path, monkeypatch):
    """Cuts the save of step 2 again, of four checkpoints, before each of its calls that matter to the disk."""
    calls = ("rename", "replace", "fsync", "mkdir", "rmdir", "unlink")
    real = {name: getattr(os, name) for name in calls}
    states = [{"w": jnp.full((2,), value)} for value in (0.0, 1.0)]
    whole = tmp_path / "whole"
    with Checkpoints(whole, create=True) as opened:
        for step in (0, 1, 2):
            opened.save(step, states[0], {}, {"nll_gen": 5.0 - step})
    seen = set()
    left = 0  # calls to go before the cut

    def counted(name, *args, **more):
        nonlocal left
        left -= 1
        if left < 0:  # and nothing after it, as a process that is gone
            raise Killed
        return real[name](*args, **more)

    for cut in range(1000):
        run = tmp_path / str(cut)
        shutil.copytree(whole, run)
        with Checkpoints(run, create=True) as opened, monkeypatch.context() as patch:
            for name in calls:
                patch.setattr(os, name, functools.partial(counted, name))
            left = cut
            try:
                opened.save(2, states[1], {"new": True}, {"nll_gen": 1.0})
                break
            except Killed:
                pass
        before = {path.name for path in (run / "checkpoints").iterdir()}
        with Checkpoints(run, create=False) as opened:  # one who only looks may come before it is put right
            assert opened.restore(states[0], on_skip=pytest.fail).step in (1, 2)
        with Checkpoints(run, create=True) as opened:
            assert {path.name for path in (run / "checkpoints").iterdir()} in ({"0", "1", "2"}, {"1", "2"})
            step, state, extra, _ = opened.restore(states[0], on_skip=pytest.fail)
            assert step == 2 and same(state, states[1] if extra else states[0])
            seen.add((bool(extra), frozenset(before - {"0", "1", "2"})))
            assert opened.restore(states[0], "best").step == 2
            opened.save(3, states[1], {}, {})
            assert opened.steps() == [2, 3]
        shutil.rmtree(run)
    assert cut > 15 and {new for new, _ in seen} == {False, True}
    assert {".2.partial"} in {left for _, left in seen} and {".2.partial", "2.replaced"} in {left for _, left in seen}


def test_killed_between_the_renames_of_a_replacement(copy):
    root = copy / "checkpoints"
    (root / "2").rename(root / "2.replaced")
    (root / "1").rename(root / "1.dropped")
    with Checkpoints(copy, create=True) as opened:
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


PROCESS = """
import sys
process, processes, port, run, step = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5], int(sys.argv[5])
import jax
if processes > 1:
    jax.distributed.initialize(f"localhost:{port}", processes, process)
from jax.sharding import NamedSharding, PartitionSpec
from leakgan_jax.checkpoint import CheckpointError, Checkpoints
from tests.test_checkpoint import STATES, same

mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
assert jax.device_count() == 8
state = {name: STATES[0] for name in ("replicated", "sharded")} | {"wide": jax.numpy.arange(16.0)}
with Checkpoints(run, create=True, identity={"seed": 1}) as checkpoints:
    restored = checkpoints.restore(state, on_skip=print)
    assert restored.step == step and same(restored.state, state), "not the same bits"
    placed = jax.jit(lambda: state, out_shardings=NamedSharding(mesh, PartitionSpec()))()
    placed["wide"] = jax.device_put(placed["wide"], NamedSharding(mesh, PartitionSpec("data")))
    checkpoints.save(step + 1, placed, {"by": processes}, {"nll_gen": 1.0})
    if processes > 1:  # the disk of one is full
        def full(*_, **__):
            raise OSError(28, "No space left on device")
        if process == 1:
            checkpoints._orbax.save = full
        try:
            checkpoints.save(step + 2, placed, {}, {})
            raise SystemExit("a save that failed on one process did not raise")
        except CheckpointError as error:
            assert f"checkpoint {step + 2} could not be saved: No space left on device" in str(error)
        assert checkpoints.steps() == [step, step + 1]
        assert checkpoints.restore(state).step == step + 1
"""


def run_processes(processes: int, run: pathlib.Path, step: int) -> None:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={8 // processes}"
    repository = str(pathlib.Path(__file__).parent.parent)
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": repository}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, *map(str, (process, processes, port, run, step))],
            env=environment,
            cwd=repository,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(processes)
    ]
    try:
        for process in started:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
    finally:
        for process in started:
            process.kill()


def test_devices_and_processes_may_change(tmp_path):
    """Saved by one process, restored by one of eight devices; saved by that, restored by two; by those, by one."""
    state = {name: STATES[0] for name in ("replicated", "sharded")} | {"wide": jnp.arange(16.0)}
    with Checkpoints(tmp_path, create=True, identity={"seed": 1}) as opened:
        opened.save(1, state, {}, {"nll_gen": 2.0})
    run_processes(1, tmp_path, 1)
    with Checkpoints(tmp_path, create=False) as opened:
        assert same(opened.restore(state, on_skip=pytest.fail).state, state)
    run_processes(2, tmp_path, 2)
    assert [path.name for path in sorted((tmp_path / "checkpoints" / "3" / "state").iterdir())] == ["0", "1"]
    with Checkpoints(tmp_path, create=False) as opened:
        step, restored, extra, _ = opened.restore(state, on_skip=pytest.fail)
        assert step == 3 and extra == {"by": 2} and same(restored, state)
        assert opened.restore(state, "best").step == 3
    (tmp_path / "checkpoints" / "3" / "state" / "1" / "_METADATA").unlink()
    with Checkpoints(tmp_path, create=False) as opened, pytest.warns(UserWarning, match="3 is damaged.*back to 2"):
        assert opened.restore(state).step == 2
