"""Checkpoints of one run, kept by Orbax under `DIR/checkpoints/STEP`; nothing else here imports Orbax.

    STEP/MANIFEST        two lines: the SHA-256 of the second, and JSON: what was saved, and size and SHA-256 of
                         every other file in STEP
    STEP/state/SHARE/    an Orbax checkpoint of one array of bytes: the leaves that process SHARE wrote, end to end

A checkpoint is loaded only if the directory holds exactly the files of its manifest, to the bit. It is written and
synced under another name and then renamed, so that a kill leaves all of it or nothing.

The manifest is no signature: a stranger can write one that holds. So nothing of a checkpoint is believed before it
fits what the caller asks for: names and sizes are compared before a file is read, and the bytes are stored as they
are, uncompressed and in one file, whose size the caller's shapes give. Orbax's default format, OCDBT, is not used:
what a file of it unpacks to, and which files it points to, cannot be told before TensorStore follows it. And leaves
that are arrays of their own would be three files and folders each to sync and to delete: 450 instead of 10.

Orbax's plain `Checkpointer` is used rather than its `CheckpointManager`: the manager counts an empty or damaged
directory as the newest checkpoint, refuses by returning False to save an older step again, and cannot be opened
once the metrics file it chooses the best by is unreadable. Each process of a program of many uses one of its own,
without Orbax's barriers: behind those, one process whose disk is full would keep all others waiting.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from jax.experimental import multihost_utils

from leakgan_jax.types import GanState

Which = Literal["newest", "best", "mle"]

FORMAT = 2
MANIFEST = "MANIFEST"
LARGEST_MANIFEST = 4 << 20  # bytes: of all files the only one read before its size is known from the caller's shapes
_DATA, _LAYOUT = "bytes/0", "bytes/.zarray"  # of a share: its bytes, and their shape
_OTHERS = ("_METADATA", "_CHECKPOINT_METADATA", "commit_success.txt")  # what else Orbax writes
_LARGEST_OTHER = 1 << 14  # bytes, with the layout: several times what Orbax writes
_LINE = 300  # bytes of a message that one process sends the others

_STEP = re.compile(r"0|[1-9][0-9]*")
_LEFTOVER = re.compile(r"\.?(?:0|[1-9][0-9]*)\.(partial|dropped|replaced)")
_SYSTEM_ERROR = re.compile(r"(?:OS error |os_error_code=')(\d+)")  # within a long message of tensorstore's

# Orbax reports progress and every failure through absl; the failures reach the caller as exceptions anyhow.
logging.getLogger("absl").addFilter(lambda entry: f"{os.sep}orbax{os.sep}" not in entry.pathname)


class CheckpointError(ValueError):
    """One line: the directory, and what is wrong with it or would be right."""


class Restored(NamedTuple):
    """A checkpoint whose every digest held."""

    step: int
    state: GanState  # new arrays on the default device, safe to donate; the caller places them on others
    extra: dict  # as saved, after a round trip through JSON
    metrics: dict[str, float]  # as saved


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=4)  # points at the caller of `restore`


class Checkpoints:
    """The checkpoints of the run in `path`; a context manager. Only `create`, `save` and `clear` change the disk.

    Kept are the newest two, the one with the lowest `nll_gen`, and the one with the lowest `nll_gen` among those
    with `pretrain == 1`: at most four. One program may save at a time, any number may restore.

    In a program of several processes (`jax.distributed`) on one file system, all of them open with `create` and call
    `restore` and `save` alike; each writes a share of the leaves, and what fails on one raises on all. Opened without
    `create`, a process reads for itself.
    """

    def __init__(self, path: str | os.PathLike, create: bool, identity: dict | None = None):
        """Opens `path/checkpoints`, making it if `create`. Raises CheckpointError if it is not there or not usable.

        Args:
            path: the run directory.
            create: whether to save, too; what a cut save left behind is then removed.
            identity: what the run is (JSON: seed, data, settings). Saved with each checkpoint; those of another one
                are refused. None asks nothing: for those who only look at a run and take it as it is.
        """
        self._root = pathlib.Path(path).resolve() / "checkpoints"
        self._skipped: set[int] = set()  # steps `restore` passed over: not worth one of the places for the newest two
        self._identity = json.loads(json.dumps(identity))
        self._process = jax.process_index()
        self._processes = jax.process_count() if create else 1
        self._leads = self._processes == 1 or self._process == 0
        with self._together("cannot be created"):
            if create and self._leads:
                self._root.mkdir(parents=True, exist_ok=True)
        with self._together("cannot be used"):
            if not self._root.is_dir():
                raise CheckpointError(f"{self._root}: no such directory, so there is nothing to restore")
            if create and not os.access(self._root, os.W_OK):  # now rather than after an hour of training
                raise CheckpointError(f"{self._root}: cannot be written")
            if create and self._leads:
                self._tidy()
        handlers = ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, _Arrays() if self._process else ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False))
        )
        alone = ocp.options.MultiprocessingOptions(
            primary_host=self._process, active_processes={self._process}, barrier_sync_key_prefix=f"p{self._process}"
        )
        self._orbax = ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(
                use_ocdbt=False,
                use_zarr3=False,
                use_compression=False,
                type_handler_registry=handlers,
                multiprocessing_options=alone,
            ),
            multiprocessing_options=alone,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._orbax.close()

    def steps(self) -> list[int]:
        """Steps on disk, ascending; unfinished saves are left out, damaged checkpoints are not."""
        try:
            entries = [entry.name for entry in self._root.iterdir() if entry.is_dir()]
            return sorted(int(name) for name in entries if _STEP.fullmatch(name))
        except OSError as error:
            raise CheckpointError(f"{self._root}: cannot be read: {_reason(error)}") from error

    def save(self, step: int, state: GanState, extra: dict, metrics: dict[str, float]) -> None:
        """Saves and waits until it is on disk; an earlier checkpoint of the same step is replaced.

        Args:
            step: at least 0.
            state: pytree of arrays; may be donated as soon as this returns. In a program of several processes the
                same on all of them: each fetches and writes its share of the leaves, and gathers one that is sharded.
            extra: anything JSON can hold.
            metrics: `nll_gen` and `pretrain` decide what is kept; without a finite `nll_gen` it is never the best.
        Raises:
            CheckpointError if the disk is full or cannot be written, or if the directory holds checkpoints of
            another identity; earlier checkpoints are then as they were.
        """
        failure, leaves = f"checkpoint {step} could not be saved", _by_name(state)
        shares = _shares(leaves, self._processes)
        partial = self._at(step, "partial")
        try:
            with self._together(failure):
                if self._leads:
                    self._tidy()
                    records = self._records()
                    (partial / "state").mkdir(parents=True)
            with self._together(failure):
                packed = _packed([_stored(leaf, shares[name] == self._process) for name, leaf in leaves.items()])
                if packed.size:
                    place = partial / "state" / str(self._process)
                    self._orbax.save(place, args=ocp.args.PyTreeSave({"bytes": packed}))
                    for path in (place, *place.rglob("*")):
                        _sync(path)
            with self._together(failure):
                digests = self._gathered(hashlib.sha256(packed.data))
                if self._leads:
                    described = {name: [_describe(leaf), shares[name]] for name, leaf in leaves.items()}
                    record = {"format": FORMAT, "step": step, "identity": self._identity, "extra": extra}
                    record |= {"metrics": {name: float(value) for name, value in metrics.items()}, "leaves": described}
                    now = records | {step: record | {"lowest": {}}}
                    record["lowest"] = {which: found for which in ("best", "mle") if (found := _lowest(now, which))}
                    record["files"] = _files_written(partial, _sizes(leaves, shares), digests)
                    _write_manifest(partial / MANIFEST, record)
                    _sync(partial / "state")
                    _sync(partial)
                    if os.path.lexists(self._at(step)):
                        self._at(step).rename(self._at(step, "replaced"))
                    partial.rename(self._at(step))
                    _sync(self._root)
                    self._prune(records | {step: record}, step)
            self._skipped.discard(step)
        finally:
            if self._leads:
                with contextlib.suppress(OSError):  # the failure that is under way says more
                    self._tidy()

    def clear(self) -> None:
        """Deletes all checkpoints. Raises CheckpointError if that cannot be."""
        with self._together("cannot be cleared"):
            if self._leads:
                for step in self.steps():
                    self._at(step).rename(self._at(step, "dropped"))
                self._tidy()

    def restore(
        self,
        target: GanState,
        which: Which = "newest",
        on_skip: Callable[[str], None] = _warn,
        most: int | None = None,
    ) -> Restored:
        """Restores the newest checkpoint that is intact, or the best one, on any number of processes and devices.

        Every checkpoint names the best of its time, so a best one that is gone is told. (Only if it was the newest,
        too, is it gone without a trace: the run is then as it was before.)

        Args:
            target: pytree of arrays or `jax.ShapeDtypeStruct`s, for structure, shapes and dtypes.
            which: "newest"; "best", of lowest `nll_gen`; or "mle", the best of those with `pretrain == 1`.
            on_skip: told in one line of each damaged checkpoint that "newest" passes over.
            most: the newest step that "newest" may be; later ones need not be kept any more.
        Raises:
            CheckpointError if none is intact; if "best" or "mle" is damaged or gone, or cannot be told because
            another checkpoint's metrics are unreadable; if the checkpoint is of another identity, of another
            version's format or does not fit `target`.
        """
        with self._together("cannot be restored"):
            restored = self._restore(target, which, on_skip, most)
        if self._processes > 1:
            steps = multihost_utils.process_allgather(np.int32(restored.step)).tolist()
            if len(set(steps)) > 1:
                raise CheckpointError(f"{self._root}: the processes see different checkpoints as {which!r}: {steps}")
        return restored

    def _restore(self, target: GanState, which: Which, on_skip: Callable[[str], None], most: int | None) -> Restored:
        steps = self.steps()[::-1] if which == "newest" else self._best(which)
        if most is not None:
            self._skipped |= {step for step in steps if step > most}
            steps = [step for step in steps if step <= most]
        if not steps:
            raise CheckpointError(f"{self._root}: holds no checkpoint to restore as {which!r}")
        for step, older in zip(steps, [*steps[1:], None]):
            try:
                return self._load(step, target)
            except CheckpointError:  # intact, but not what was asked for: an older one would fit no better
                raise
            except Exception as error:
                damage = f"checkpoint {step} is damaged ({_reason(error)})"
                if older is None:
                    raise CheckpointError(f"{self._root}: {damage} and there is no other to fall back to") from error
            self._skipped.add(step)
            on_skip(f"{damage}; falling back to {older}")
        raise AssertionError("unreachable: the last one returns or raises")

    def look_through(self, target: GanState, on_damage: Callable[[str], None], but: int) -> None:
        """Tells, a line each, of the damaged ones among checkpoints that nothing has asked for; `but` is not looked at.

        They are left where they are, and "newest" will not be one of them.
        """
        for step in self.steps():
            if step != but and step not in self._skipped:
                try:
                    self._intact(step, target)
                except CheckpointError:
                    raise
                except Exception as error:
                    self._skipped.add(step)
                    on_damage(f"checkpoint {step} is damaged ({_reason(error)}); it is not used")

    def _intact(self, step: int, target: GanState) -> tuple[dict, dict[str, int], dict[int, int]]:
        """The manifest of a checkpoint that is as it was saved, the share each leaf is in, and the shares' sizes.

        Raises CheckpointError if it does not fit `target`, any other exception if it is damaged.
        """
        record, wanted = self._record(step), _by_name(target)
        there = {name: is_ for name, (is_, _) in record["leaves"].items()}
        here = {name: _describe(leaf) for name, leaf in wanted.items()}
        if there != here:
            raise CheckpointError(
                f"{self._root}: checkpoint {step} is of another model: leaf {_difference(there, here)}"
            )
        shares = {name: share for name, (_, share) in record["leaves"].items()}  # in the order they were saved in
        sizes, place, files = _sizes(wanted, shares), self._at(step), record["files"]
        _require_plausible(files, sizes)
        _require_files(place, {name: size for name, (size, _) in files.items()} | {MANIFEST: None})
        for name, (_, digest) in files.items():
            with open(place / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise ValueError(f"{name} differs from its digest")
        return record, shares, sizes

    def _load(self, step: int, target: GanState) -> Restored:
        """Raises as `_intact`."""
        record, shares, sizes = self._intact(step, target)
        wanted, place, files = _by_name(target), self._at(step), record["files"]
        arrays: dict[str, np.ndarray] = {}
        for share, size in sizes.items():
            part = f"state/{share}"
            if json.loads((place / part / _LAYOUT).read_bytes()) != _layout(size):
                raise ValueError(f"{part}/{_LAYOUT} describes another array")
            how = {"bytes": ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.uint8)}
            like = {"bytes": np.empty(size, np.uint8)}
            args = ocp.args.PyTreeRestore(item=like, restore_args=how)
            packed = self._orbax.restore(place / part, args=args)["bytes"]
            if hashlib.sha256(packed.data).hexdigest() != files[f"{part}/{_DATA}"][1]:  # Orbax read something else
                raise ValueError(f"{part} was not read as it is")
            arrays |= _unpacked(packed, {name: wanted[name] for name in shares if shares[name] == share})
        arrays |= _unpacked(np.empty(0, np.uint8), {name: wanted[name] for name in wanted.keys() - arrays.keys()})
        leaves = [_unstored(arrays[name], leaf) for name, leaf in wanted.items()]
        return Restored(
            step, jax.tree.unflatten(jax.tree.structure(target), leaves), record["extra"], record["metrics"]
        )

    def _record(self, step: int) -> dict:
        """The manifest of a checkpoint. Raises CheckpointError if it is not of this run or version, any other
        exception if it is damaged."""
        place = self._at(step)
        if place.is_symlink():
            raise ValueError("it is a symbolic link")
        if (place / "record" / "metadata").is_file() and not os.path.lexists(place / MANIFEST):
            old = "was saved by an older version of leakgan_jax, which can still read it; this one cannot"
            raise CheckpointError(f"{self._root}: checkpoint {step} {old}")
        about = os.lstat(place / MANIFEST)
        if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST_MANIFEST:
            raise ValueError(f"its {MANIFEST} is no file of at most {LARGEST_MANIFEST} bytes")
        digest, _, body = (place / MANIFEST).read_bytes().partition(b"\n")
        if digest != hashlib.sha256(body).hexdigest().encode():
            raise ValueError(f"its {MANIFEST} differs from its digest")
        record = json.loads(body)
        if record["format"] != FORMAT:
            is_ = f"is of format {_plain(record['format'])}, of another version of leakgan_jax; this one reads {FORMAT}"
            raise CheckpointError(f"{self._root}: checkpoint {step} {is_}")
        _require_record(record)
        if record["step"] != step:
            raise ValueError("it was saved under another name")
        if self._identity is not None and record["identity"] != self._identity:
            what = _difference(_flat(record["identity"] or {}), _flat(self._identity))
            raise CheckpointError(f"{self._root}: checkpoint {step} is of another run: {what}")
        return record

    def _records(self, on_damage: Callable[[int, Exception], None] = lambda step, error: None) -> dict[int, dict]:
        """The manifests that can be read, by step."""
        records = {}
        for step in self.steps():
            try:
                records[step] = self._record(step)
            except CheckpointError:
                raise
            except Exception as error:
                on_damage(step, error)
        return records

    def _best(self, which: Which) -> list[int]:
        """At most one step. Refuses to choose if the metrics of a checkpoint, perhaps the best, are unreadable."""

        def refuse(step: int, error: Exception) -> None:
            damage = f"checkpoint {step} is damaged ({_reason(error)})"
            raise CheckpointError(f"{self._root}: cannot tell which is {which!r}: {damage}") from error

        records = self._records(refuse)
        found = _lowest(records, which)
        if found and found[0] not in records:
            lost = f"that was checkpoint {found[0]} with nll_gen {found[1]:g}, which is gone"
            raise CheckpointError(f"{self._root}: holds no checkpoint to restore as {which!r}: {lost}")
        return [found[0]] if found else []

    def _prune(self, records: dict[int, dict], saved: int) -> None:
        """Deletes what is not to be kept after saving step `saved`; an unreadable checkpoint is not."""
        newest = sorted(records.keys() - self._skipped, key=lambda step: (step == saved, step))[-2:]
        keep = {saved, *newest, *(found[0] for which in ("best", "mle") if (found := _lowest(records, which)))}
        for step in set(self.steps()) - keep:
            self._at(step).rename(self._at(step, "dropped"))  # at once, so that no half of it is ever found

    def _tidy(self) -> None:
        """Ends what was begun: deletes dropped and unfinished checkpoints, brings back one not yet replaced."""
        for entry in list(self._root.iterdir()):
            if not (leftover := _LEFTOVER.fullmatch(entry.name)):
                continue
            if leftover[1] == "replaced" and not os.path.lexists(entry.with_suffix("")):
                with contextlib.suppress(OSError):  # a read-only directory: the save that follows says so
                    entry.rename(entry.with_suffix(""))
            elif entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    entry.unlink()

    def _at(self, step: int, leftover: str = "") -> pathlib.Path:
        hidden = "." if leftover == "partial" else ""
        return self._root / f"{hidden}{step}{leftover and '.' + leftover}"

    @contextlib.contextmanager
    def _together(self, failure: str) -> Iterator[None]:
        """What fails in the block on one process raises on all, once all are through it: CheckpointError.

        One that is interrupted tells the others, too, and ends of what interrupted it.
        """
        problem: BaseException | None = None
        line = ""
        try:
            yield
        except CheckpointError as error:
            problem, line = error, str(error)
        except Exception as error:  # tensorstore raises bare exceptions
            line = f"{self._root}: {failure}: {_reason(error)}"
            problem = CheckpointError(line)
            problem.__cause__ = error
        except BaseException as error:
            problem, line = error, f"{self._root}: {failure}: {type(error).__name__}"
        if self._processes > 1:
            sent = np.frombuffer(line.encode()[:_LINE].ljust(_LINE, b"\0"), np.uint8)
            try:
                rows = multihost_utils.process_allgather(sent)
            except Exception as error:
                raise CheckpointError(f"{self._root}: {failure}: another process is lost: {_reason(error)}") from error
            lines = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]
            told = [f"{text} (process {process})" for process, text in enumerate(lines) if text]
            if told and problem is None:
                problem = CheckpointError(told[0])
        if problem is not None:
            raise problem

    def _gathered(self, own) -> dict[int, str]:
        """The digests of all processes' shares."""
        if self._processes == 1:
            return {0: own.hexdigest()}
        rows = multihost_utils.process_allgather(np.frombuffer(own.digest(), np.uint8))
        return {process: bytes(row).hex() for process, row in enumerate(rows)}


class _Arrays(ocp.type_handlers.NumpyHandler):
    """Orbax has the first process alone write NumPy arrays; with this, another one writes those it is given."""

    async def serialize(self, values, infos, args=None):
        for array, info in zip(values, infos):
            spec = {
                "driver": "zarr",
                "kvstore": {"driver": "file", "path": os.path.join(info.parent_dir, info.name, "")},
                "metadata": _layout(array.size),
                "store_data_equal_to_fill_value": True,
            }
            store = await tensorstore.open(spec, create=True)
            await store.write(array)
        return []


def _require_record(record: dict) -> None:
    """Raises ValueError unless the parts that are read before the arrays are of the types that `save` writes."""
    dicts = ("extra", "metrics", "lowest", "leaves", "files")
    right = all(isinstance(record.get(name), dict) for name in dicts)
    right = right and isinstance(record.get("identity", 0), (dict, type(None)))
    right = right and all(type(value) is float for value in record["metrics"].values())
    for found in record["lowest"].values() if right else ():
        right = right and isinstance(found, list) and [type(part) for part in found] == [int, float]
    if not right:
        raise ValueError(f"its {MANIFEST} is not what a save writes")


def _lowest(records: dict[int, dict], which: str) -> tuple[int, float] | None:
    """Step and `nll_gen` of the lowest, the newest of equals, among `records` and what they remember; None if none."""
    scores: dict[int, float] = {}
    for _, record in sorted(records.items()):
        scores |= dict([record["lowest"][which]] if which in record["lowest"] else [])
    for step, record in records.items():  # a step that was saved again is what it is now
        scores.pop(step, None)
        metrics = record["metrics"]
        if (which == "best" or metrics.get("pretrain") == 1.0) and math.isfinite(metrics.get("nll_gen", math.nan)):
            scores[step] = metrics["nll_gen"]
    return min(scores.items(), key=lambda item: (item[1], -item[0])) if scores else None


def _shares(leaves: dict[str, Any], processes: int) -> dict[str, int]:
    """The process that writes each leaf, so that all write about as many bytes."""
    load, shares = [0] * processes, {}
    for name in sorted(leaves, key=lambda name: (-leaves[name].size, name)):
        shares[name] = load.index(min(load))
        load[shares[name]] += leaves[name].size
    return shares


def _sizes(leaves: dict[str, Any], shares: dict[str, int]) -> dict[int, int]:
    """Bytes of each share that has any. Raises ValueError unless shares are numbers."""
    sizes: dict[int, int] = {}
    for name, share in shares.items():
        if type(share) is not int:
            raise ValueError("its shares have no numbers")
        if size := _stored_like(leaves[name]).nbytes:
            sizes[share] = sizes.get(share, 0) + size
    return sizes


def _layout(size: int) -> dict:
    """What Orbax and TensorStore write about an array of bytes into its `.zarray`: one uncompressed piece."""
    return {
        "chunks": [size],
        "compressor": None,
        "dimension_separator": ".",
        "dtype": "|u1",
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": [size],
        "zarr_format": 2,
    }


def _files_written(place: pathlib.Path, sizes: dict[int, int], digests: dict[int, str]) -> dict[str, list]:
    """Size and digest of every file below `place`, the digests of the bytes from memory. What could not be loaded
    is not saved either: raises ValueError."""
    files: dict[str, list] = {f"state/{share}/{_DATA}": [size, digests[share]] for share, size in sizes.items()}
    for path in place.rglob("*"):
        name = path.relative_to(place).as_posix()
        if name not in files and path.is_file():
            files[name] = [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
    _require_plausible(files, sizes)
    _require_files(place, {name: size for name, (size, _) in files.items()})
    return files


def _require_plausible(files: dict, sizes: dict[int, int]) -> None:
    """Raises ValueError unless these are the files of such shares and no bigger, before any of them is opened."""
    data = {f"state/{share}/{_DATA}": size for share, size in sizes.items()}
    most = data | {f"state/{share}/{name}": _LARGEST_OTHER for share in sizes for name in (_LAYOUT, *_OTHERS)}
    for name in [*data, *(f"state/{share}/{_LAYOUT}" for share in sizes), *files]:
        if name not in most or name not in files:
            raise ValueError(f"its {MANIFEST} {'has no' if name in most else 'names'} {_plain(name)}")
        if files[name][0] > most[name] or (name in data and files[name][0] != data[name]):
            raise ValueError(f"{name} has {_plain(files[name][0])} bytes where {most[name]} are right")


def _require_files(place: pathlib.Path, sizes: dict[str, int | None]) -> None:
    """Raises ValueError unless exactly these files are below `place`, of these sizes if not None. Opens none."""
    folders = {parent for name in sizes for parent in map(str, pathlib.PurePosixPath(name).parents)}
    missing, pending = set(sizes), ["."]
    while pending:
        folder = pending.pop()
        with os.scandir(place / folder) as entries:
            for entry in entries:
                name = entry.name if folder == "." else f"{folder}/{entry.name}"
                if entry.is_dir(follow_symlinks=False) and name in folders:
                    pending.append(name)
                elif not entry.is_file(follow_symlinks=False) or name not in sizes:
                    raise ValueError(f"{_plain(name)} does not belong there")
                elif sizes[name] not in (None, size := entry.stat(follow_symlinks=False).st_size):
                    raise ValueError(f"{_plain(name)} has {size} bytes instead of {sizes[name]}")
                else:
                    missing.discard(name)
    if missing:
        raise ValueError(f"{_plain(min(missing))} is missing")


def _write_manifest(path: pathlib.Path, record: dict) -> None:
    body = json.dumps(record).encode()
    content = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    if len(content) > LARGEST_MANIFEST:
        raise ValueError(f"{MANIFEST} would have {len(content)} bytes, and {LARGEST_MANIFEST} are the most")
    path.write_bytes(content)
    _sync(path)


def _sync(path: str | os.PathLike) -> None:
    """Waits until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot sync folders
            raise
    finally:
        os.close(handle)


def _by_name(tree: Any) -> dict[str, Any]:
    """Leaves by path, in the order of `jax.tree.leaves`."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(leaf: Any, own: bool) -> np.ndarray | None:
    """A leaf as it is written, keys as their bits; None if another process writes it. One that is spread over
    processes is gathered by all of them."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(jax.random.key_data(leaf) if _is_key(leaf) else leaf, tiled=True)
    if not own:
        return None
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _stored_like(leaf: Any) -> np.ndarray:
    like = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return np.empty(like.shape, like.dtype)


def _packed(arrays: list[np.ndarray | None]) -> np.ndarray:
    """The bytes of all arrays, end to end."""
    rows = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays if array is not None]
    return np.concatenate([np.empty(0, np.uint8), *rows])


def _unpacked(packed: np.ndarray, like: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays that were packed in the order of `like`."""
    arrays, start = {}, 0
    for name, leaf in like.items():
        array = _stored_like(leaf)
        part = packed[start : start + array.nbytes]
        arrays[name] = part.copy().view(array.dtype).reshape(array.shape)  # copied, for a start that suits its type
        start += array.nbytes
    return arrays


def _unstored(array: np.ndarray, like: Any) -> jax.Array:
    copy = jax.device_put(array, may_alias=False)  # memory shared with NumPy cannot be donated
    if not _is_key(like):
        return copy
    impl = jax.random.key_impl(jnp.empty((), like.dtype))  # `like` itself may be a ShapeDtypeStruct, and has none
    return jax.random.wrap_key_data(copy, impl=impl)


def _flat(tree: dict, prefix: str = "") -> dict:
    """Nested dicts as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _difference(there: dict, here: dict) -> str:
    """In what two dicts of JSON differ, by the names of what is in them: the first few."""
    found = []
    for name in sorted(there.keys() | here.keys()):
        old, new = there.get(name, "absent"), here.get(name, "absent")
        if old != new:
            found.append(f"{_plain(name)} is {_plain(old)} there, {_plain(new)} here")
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more


def _plain(value: Any) -> str:
    """A stranger's name or value within a line: printable and short."""
    text = json.dumps(value)
    text = text[1:-1] if isinstance(value, str) else text
    return text if len(text) <= 120 else f"{text[:117]}..."


def _reason(error: BaseException) -> str:
    """One line of bounded length."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    system = _SYSTEM_ERROR.search(text)
    line = os.strerror(int(system[1])) if system else " ".join(text.split())[:200]
    return line if isinstance(error, (ValueError, OSError)) and line else f"{type(error).__name__}: {line}"
