"""Checkpoints of one run, kept by Orbax under `DIR/checkpoints/STEP`; nothing else here imports Orbax.

A checkpoint holds two Orbax items: `state`, the arrays by path, and `record`, JSON with a digest of every array
and of itself. Orbax stores no checksums, so a flipped bit would otherwise come back as a slightly different model.

Orbax's plain `Checkpointer` is used rather than its `CheckpointManager`: the manager counts an empty or damaged
directory as the newest checkpoint, refuses by returning False to save an older step again, and cannot be opened
once the metrics file it chooses the best by is unreadable.
"""

import contextlib
import gc
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from leakgan_jax.types import GanState

Which = Literal["newest", "best", "mle"]

_STEP = re.compile(r"0|[1-9][0-9]*")
_SYSTEM_ERROR = re.compile(r"(?:OS error |os_error_code=')(\d+)")  # within a long message of tensorstore's

# Orbax reports progress and every failure through absl; the failures reach the caller as exceptions anyhow.
logging.getLogger("absl").addFilter(lambda entry: f"{os.sep}orbax{os.sep}" not in entry.pathname)


class CheckpointError(ValueError):
    """One line: the directory, and what is wrong with it or would be right."""


class Restored(NamedTuple):
    """A checkpoint whose every digest held."""

    step: int
    state: GanState  # new arrays on the default device, safe to donate
    extra: dict  # as saved, after a round trip through JSON


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=3)  # points at the caller of `restore`


class Checkpoints:
    """The checkpoints of the run in `path`; a context manager. Only `create` and `save` change the disk.

    Kept are the newest two, the one with the lowest `nll_gen`, and the one with the lowest `nll_gen` among those
    with `pretrain == 1`: at most four. One process may save at a time, any number may restore.
    """

    def __init__(self, path: str | os.PathLike, create: bool):
        """Opens `path/checkpoints`, making it if `create`. Raises CheckpointError if it is not there or not usable."""
        self._root = pathlib.Path(path).resolve() / "checkpoints"
        self._skipped: set[int] = set()  # steps `restore` passed over: not worth one of the places for the newest two
        try:
            if create:
                self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self._root}: cannot be created: {_reason(error)}") from error
        if not self._root.is_dir():
            raise CheckpointError(f"{self._root}: no such directory, so there is nothing to restore")
        if create and not os.access(self._root, os.W_OK):  # now rather than after an hour of training
            raise CheckpointError(f"{self._root}: cannot be written")
        if create:
            self._tidy()
        state, record = ocp.StandardCheckpointHandler(), ocp.JsonCheckpointHandler()
        self._orbax = ocp.Checkpointer(ocp.CompositeCheckpointHandler(state=state, record=record))

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
            state: pytree of arrays; may be donated as soon as this returns.
            extra: anything JSON can hold.
            metrics: `nll_gen` and `pretrain` decide what is kept; without a finite `nll_gen` it is never the best.
        Raises:
            CheckpointError if the disk is full or cannot be written; earlier checkpoints are then as they were.
        """
        leaves = _by_name(state)
        arrays = {name: _stored(leaf) for name, leaf in leaves.items()}
        described = {name: {"is": _describe(leaf), "sha256": _digest(arrays[name])} for name, leaf in leaves.items()}
        metrics = {name: float(value) for name, value in metrics.items()}
        record = json.loads(json.dumps({"step": step, "extra": extra, "metrics": metrics, "leaves": described}))
        record["sha256"] = _seal(record)
        items = ocp.args.Composite(state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
        try:
            self._tidy()
            if self._at(step).exists():
                self._at(step).rename(self._at(step, ".replaced"))
            self._orbax.save(self._at(step), args=items)  # written under another name, then renamed
            self._skipped.discard(step)
            self._prune(step)
        except Exception as error:  # tensorstore raises bare exceptions
            raise CheckpointError(f"{self._root}: checkpoint {step} could not be saved: {_reason(error)}") from error
        finally:
            self._tidy()

    def restore(
        self,
        target: GanState,
        which: Which = "newest",
        on_skip: Callable[[str], None] = _warn,
        most: int | None = None,
    ) -> Restored:
        """Restores the newest checkpoint that is intact, or the best one.

        Args:
            target: pytree of arrays or `jax.ShapeDtypeStruct`s, for structure, shapes and dtypes.
            which: "newest"; "best", of lowest `nll_gen`; or "mle", the best of those with `pretrain == 1`.
            on_skip: told in one line of each damaged checkpoint that "newest" passes over.
            most: the newest step that "newest" may be; later ones need not be kept any more.
        Raises:
            CheckpointError if none is intact, if "best" or "mle" is damaged or cannot be told because another
            checkpoint's metrics are, or if the checkpoint does not fit `target`.
        """
        steps = self.steps()[::-1] if which == "newest" else self._lowest_nll(which)
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
        raise AssertionError("the oldest was returned, or the error raised")

    def _load(self, step: int, target: GanState) -> Restored:
        """Raises CheckpointError if the checkpoint does not fit `target`, any other exception if it is damaged."""
        record, wanted = self._record(step), _by_name(target)
        for name in sorted(record["leaves"].keys() | wanted.keys()):
            stored = record["leaves"][name]["is"] if name in record["leaves"] else "absent"
            expected = _describe(wanted[name]) if name in wanted else "absent"
            if stored != expected:
                what = f"leaf {name} is {stored} there, {expected} here"
                raise CheckpointError(f"{self._root}: checkpoint {step} is of another model: {what}")
        like = {name: _stored_like(leaf) for name, leaf in wanted.items()}
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        with _stragglers_silenced():
            arrays = self._orbax.restore(self._at(step), args=items).state
        for name in wanted:
            if _digest(arrays[name]) != record["leaves"][name]["sha256"]:
                raise ValueError(f"leaf {name} differs from its digest")
        leaves = [_unstored(arrays[name], leaf) for name, leaf in wanted.items()]
        return Restored(step, jax.tree.unflatten(jax.tree.structure(target), leaves), record["extra"])

    def _record(self, step: int) -> dict:
        """The JSON item of a checkpoint. Raises any exception if it is damaged."""
        record = self._orbax.restore(self._at(step), args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
        if record.pop("sha256") != _seal(record) or record["step"] != step:
            raise ValueError("its record differs from its digest")
        return record

    def _lowest_nll(self, which: Which) -> list[int]:
        """At most one step. Refuses to choose if the metrics of a checkpoint, perhaps the best, are unreadable."""
        metrics = {}
        for step in self.steps():
            try:
                metrics[step] = self._record(step)["metrics"]
            except Exception as error:
                if any(self._at(step).glob("*")):  # a stray empty directory never was a checkpoint
                    damage = f"checkpoint {step} is damaged ({_reason(error)})"
                    raise CheckpointError(f"{self._root}: cannot tell which is {which!r}: {damage}") from error
        return _lowest(metrics, which)

    def _prune(self, saved: int) -> None:
        """Deletes what is not to be kept after saving step `saved`; an unreadable checkpoint is not."""
        metrics = {}
        for step in self.steps():
            with contextlib.suppress(Exception):
                metrics[step] = self._record(step)["metrics"]
        newest = sorted(metrics.keys() - self._skipped, key=lambda step: (step == saved, step))[-2:]
        keep = {*newest, *_lowest(metrics, "best"), *_lowest(metrics, "mle")}
        for step in set(self.steps()) - keep:
            self._at(step).rename(self._at(step, ".dropped"))  # at once, so that no half of it is ever found

    def _tidy(self) -> None:
        """Ends what was begun: deletes dropped and unfinished checkpoints, brings back one not yet replaced."""
        for pattern in ("*.dropped", f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
            for leftover in self._root.glob(pattern):
                shutil.rmtree(leftover, ignore_errors=True)
        for replaced in self._root.glob("*.replaced"):
            if replaced.with_suffix("").exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # a read-only directory: the save that follows says so
                    replaced.rename(replaced.with_suffix(""))

    def _at(self, step: int, suffix: str = "") -> pathlib.Path:
        return self._root / f"{step}{suffix}"


def _lowest(metrics: dict[int, dict[str, float]], which: Which) -> list[int]:
    """The step of lowest `nll_gen`, the newest of equals; empty if none has a finite one."""
    eligible = {step: m for step, m in metrics.items() if which == "best" or m.get("pretrain") == 1.0}
    scores = {step: m["nll_gen"] for step, m in eligible.items() if math.isfinite(m.get("nll_gen", math.nan))}
    return [min(scores, key=lambda step: (scores[step], -step))] if scores else []


def _by_name(tree: Any) -> dict[str, Any]:
    """Leaves by path, in the order of `jax.tree.leaves`."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(leaf: Any) -> np.ndarray:
    """A leaf as it is written: on the host, so that no device or sharding is; keys as their bits."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _stored_like(leaf: Any) -> np.ndarray:
    like = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return np.empty(like.shape, like.dtype)


def _unstored(array: np.ndarray, like: Any) -> jax.Array:
    copy = jax.device_put(array, may_alias=False)  # memory shared with NumPy cannot be donated
    if not _is_key(like):
        return copy
    impl = jax.random.key_impl(jnp.empty((), like.dtype))  # `like` itself may be a ShapeDtypeStruct, and has none
    return jax.random.wrap_key_data(copy, impl=impl)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()


def _seal(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _stragglers_silenced():
    """Once one array cannot be read, asyncio prints a traceback for each of the others that is still being read."""
    hook, log = sys.unraisablehook, logging.getLogger("asyncio")
    sys.unraisablehook = lambda entry: None if str(entry.exc_value) == "Event loop is closed" else hook(entry)
    log.addFilter(_never_retrieved)
    try:
        yield
    except Exception as error:
        time.sleep(0.05)  # time for the others to end
        error.__traceback__ = None  # its frames hold the others' futures, which complain when they are freed
        gc.collect()
        raise
    finally:
        sys.unraisablehook = hook
        log.removeFilter(_never_retrieved)


def _never_retrieved(entry: logging.LogRecord) -> bool:
    """A filter for asyncio's log."""
    return "exception was never retrieved" not in entry.getMessage()


def _reason(error: Exception) -> str:
    """One line of bounded length."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    system = _SYSTEM_ERROR.search(text)
    line = os.strerror(int(system[1])) if system else " ".join(text.split())[:200]
    return line if isinstance(error, (ValueError, OSError)) and line else f"{type(error).__name__}: {line}"
