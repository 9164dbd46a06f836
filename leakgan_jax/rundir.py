"""A run directory: what a run is, beside its checkpoints. `config.json`, `metrics.jsonl`, `vocabulary.json`.

Nothing here trains, and nothing else reads or writes the first two.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax

from leakgan_jax import data
from leakgan_jax.config import Config, ConfigError, differences, is_printable, printable, shown
from leakgan_jax.data import write

_LOCK = ".lock"
MAX_RECORD = 2**20  # bytes of config.json
MAX_METRICS = 2**28  # bytes of metrics.jsonl; a line of 300 for each of the units that a run has at most
MAX_METRIC_LINES = 2 * 10**6  # of it; twice the units that a run has at most
MAX_LINE = 2**16  # bytes of one of its lines

_RECORD = {
    "config": dict,
    "seed": int,
    "seeds": int,
    "data": dict,
    "data_dir": str,
    "command": str,
    "versions": dict,
    "device": str,
}
# Of JAX's settings, those that change numbers.
_JAX_SETTINGS = (
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_default_matmul_precision",
    "jax_disable_most_optimizations",
)


class RunError(ValueError):
    """A run directory that cannot be used as asked; one line that names it and what would be right."""


class Facts(NamedTuple):
    """What a run learns from, as its directory keeps it."""

    source: dict[str, Any]  # what the data was, for config.json
    vocabulary: data.Vocabulary | None
    environment: dict[str, Any]  # what can change bits, as `environment` has it


def directories(out: Path, seeds: Sequence[int]) -> list[Path]:
    """Where the runs of `seeds` are: `out` itself, or a directory of each seed's own in it, complete as any run."""
    return [out] if len(seeds) == 1 else [out / f"seed-{seed}" for seed in seeds]


def open_run(out: Path, several: bool = False) -> tuple[Config, int, dict[str, Any]]:
    """The config, the (first) seed and the rest of `out/config.json`, which a digest of its own seals.

    Raises:
        RunError, and nothing else whatever the file holds, if there is no readable run; and, unless `several`, if there
        are the runs of several seeds.
    """
    _require_name(out)
    path = out / "config.json"
    try:
        record = data.read_json(path, MAX_RECORD, "a directory that `train` made")
    except data.DataError as error:
        if _is_absent(path):
            raise RunError(f"{out} holds no run: there is no config.json; give a directory that `train` made") from None
        raise RunError(str(error)) from None
    damage = f"{path} is damaged: it must be the JSON that `train` wrote"
    if not isinstance(record, dict):
        raise RunError(damage)
    if record.pop("sha256", None) != data.seal(record):
        raise RunError(f"{path} was changed, or made by another version: its digest is not that of its content")
    if any(type(record.get(name)) is not kind for name, kind in _RECORD.items()):
        raise RunError(damage)
    for leaf in data.leaves(record):
        if isinstance(leaf, str) and not is_printable(leaf):
            raise RunError(f"{path} holds {shown(leaf)}; there must be no control characters in it")
    first, count = record["seed"], record["seeds"]
    if not (0 <= first and 1 <= count <= 1000 and first + count <= 2**32):
        raise RunError(f"{path} has {shown(count)} seeds from {shown(first)} on; there are 1 to 1000, all below 2^32")
    if count > 1 and not several:
        one, other = directories(out, [first, first + count - 1])
        raise RunError(f"{out} holds the runs of several seeds; give one of them, from {one} to {other}")
    try:
        return Config.from_json(record["config"]), first, record
    except ConfigError as error:
        raise RunError(f"{path}: {error}") from None


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Writes `out/config.json` as `open_run` reads it: with a digest of the rest, by which a changed one is told."""
    write(out / "config.json", json.dumps({**record, "sha256": data.seal(record)}, indent=2) + "\n")


def _is_absent(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: of a name that no file can have
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def open_directories(
    config: Config, seeds: Sequence[int], facts: Facts, out: Path, resume: bool, command: str, data_dir: Path | None
) -> Iterator[None]:
    """Makes the directory of each seed, or checks that the run in an old one is this one.

    While it is open no other process may do so.
    """
    if not resume:
        _require_unused(out)
    with contextlib.ExitStack() as locks:
        locks.enter_context(_locked(out))
        _open_directory(config, seeds, facts, out, resume, command, data_dir)
        if len(seeds) > 1:
            for seed, place in zip(seeds, directories(out, seeds), strict=True):
                old = (place / "config.json").exists()
                if not old:
                    _require_unused(place)
                locks.enter_context(_locked(place))
                _open_directory(config, [seed], facts, place, old, command, data_dir)
        yield


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Holds the run in `out`; the system lets go of it when this process ends, however it does."""
    if (out / _LOCK).is_symlink():  # old versions of filelock empty what it points to
        raise RunError(f"{out / _LOCK} is a link; remove it")
    lock = filelock.FileLock(out / _LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RunError(f"{out} is in use: another process trains there; wait for it, or choose another --out") from None
    except NotImplementedError:  # a file system without locks
        pass
    except OSError as error:
        raise RunError(f"{out}: {error.strerror}; a run must be able to write there") from None
    try:
        yield
    finally:
        lock.release()


def _require_name(out: Path) -> None:
    try:
        os.path.abspath(out).encode()
    except UnicodeEncodeError:
        raise RunError(f"{shown(str(out))} is not Unicode, which checkpoints need; rename the folder") from None


def _require_unused(out: Path) -> None:
    """Makes `out` if it is not there; raises RunError if anything that matters is in it."""
    _require_name(out)
    try:
        # A run killed before its config.json was whole left nothing that matters.
        remains = {"vocabulary.json", _LOCK}
        if out.exists() and any(p.name not in remains and not p.name.endswith(data.PARTIAL) for p in out.iterdir()):
            holds_run = (out / "config.json").exists()
            what = "already holds a run; add --resume to continue it or" if holds_run else "is not empty;"
            raise RunError(f"{out} {what} choose another --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: {error.strerror}; choose another --out") from None


def _open_directory(
    config: Config, seeds: Sequence[int], facts: Facts, out: Path, resume: bool, command: str, data_dir: Path | None
) -> None:
    """Writes `config.json` in a new directory, or checks that the run in an old one is this one."""
    place = ""
    if config.dataset:
        from leakgan_jax import corpora

        place = str(corpora.place(data_dir))
        if not is_printable(place):
            raise RunError(f"data_dir is {shown(place)}; it must be Unicode and without control characters")
    if resume:
        _require_inside(out)
        saved, seed, record = open_run(out, several=True)
        changed = differences(saved, config)
        if seed != seeds[0]:
            changed.append(f"seed ({seed}, now {seeds[0]})")
        if record["seeds"] != len(seeds):
            changed.append(f"seeds ({record['seeds']}, now {len(seeds)})")
        before, now = record["data"], facts.source
        names = [*before, *(name for name in now if name not in before)]
        changed += [
            f"{name} ({shown(before.get(name))}, now {shown(now.get(name))})"
            for name in names
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise RunError(f"{out} was made with other settings: {', '.join(changed)}; resume it with its own")
        require_vocabulary(out, facts.vocabulary)
        if place != record["data_dir"]:  # moved
            write_record(out, {**record, "data_dir": place})
        for leftover in out.glob(f".*{data.PARTIAL}"):  # of a process that was killed; there is one at a time
            leftover.unlink(missing_ok=True)
        return
    record = {
        "config": config.to_json(),
        "seed": seeds[0],
        "seeds": len(seeds),
        "data": facts.source,
        "data_dir": place,
        "command": printable(command),
        **facts.environment,
    }
    if facts.vocabulary is not None:
        facts.vocabulary.save(out / "vocabulary.json")
    write_record(out, record)  # last: with it the directory is a run


def _require_inside(out: Path) -> None:
    """What is written below `out` stays there: a directory that came from elsewhere may hold links to others."""
    for path in (out / "checkpoints", *out.glob("seed-*")):
        if path.is_symlink():
            raise RunError(
                f"{path} is a link, and a run writes nowhere but in its directory; put the folder itself there"
            )


def require_whole(out: Path) -> None:
    """`out` is not one of several seeds, which would get ahead of the others."""
    out = out.resolve()  # also by another name
    parent = out.parent
    try:
        _, first, record = open_run(parent, several=True)
    except RunError:
        return
    if out in directories(parent, range(first, first + record["seeds"])):
        raise RunError(f"{out} is one of several seeds; resume all of them, with --out {out.parent}")


def require_vocabulary(out: Path, vocabulary: data.Vocabulary | None) -> None:
    """The ids of the words are those that the run in `out` learned."""
    if vocabulary is not None and data.Vocabulary.load(out / "vocabulary.json").words != vocabulary.words:
        raise RunError(f"{out / 'vocabulary.json'} is not that of its text; it was changed, or made by another version")


def versions() -> dict[str, str]:
    from importlib import metadata

    packages = ("leakgan_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def environment(mesh: jax.sharding.Mesh | None = None) -> dict[str, Any]:
    """What can change the bits of a run beside its settings and seed, for config.json: see `docs/determinism.md`.

    Ask after `jax.distributed.initialize`: `devices` are those of all processes. `mesh` is the one that training uses.
    """
    kept = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NPROC", "NVIDIA_TF32_OVERRIDE")
    idle = re.compile("JAX_.*(CACHE|COORDINATOR|PROCESS|LOG)")  # places, names and talk
    return {
        "versions": versions(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape) if mesh else {},
        "cpu": _cpu(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "variables": {
            k: v for k, v in sorted(os.environ.items()) if k in kept or (k.startswith("JAX_") and not idle.match(k))
        },
        "jax_settings": {name: jax.config.values.get(name) for name in _JAX_SETTINGS},
    }


def _cpu() -> str:
    """The processor and its vector instructions, by which XLA chooses its code; Linux alone tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    first = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    flags = first.get("flags", first.get("Features", "")).split()  # of x86, of ARM
    vector = [flag for flag in flags if flag.startswith(("sse", "avx", "fma", "amx", "asimd", "sve"))]
    return " ".join([first.get("model name", platform.machine()), *sorted(vector)])


def changes(out: Path, now: dict[str, Any]) -> list[str]:
    """`name (then, now)` for what can change bits and differs from when the run in `out` began."""
    then = open_run(out, several=True)[2]
    changed = []
    for name, value in now.items():
        old = then.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            kind = "mesh " if name == "mesh" else ""  # its axes have the names of other things
            pairs = [(f"{kind}{key}", old.get(key), value.get(key)) for key in sorted({*old, *value})]
        else:
            pairs = [(name, old, value)]
        changed += [f"{printable(key)[:100]} ({shown(a)}, now {shown(b)})" for key, a, b in pairs if a != b]
    return [*changed[:20], *([f"and {len(changed) - 20} more"] if len(changed) > 20 else [])]


def keep_lines(
    path: Path, done: int, digest: str | None = None, on_loss: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """The metric lines of units 1 to `done`; cuts later ones (they will come again), and those that are damaged.

    Args:
        digest: `lines_digest` of the lines of units 1 to `done`, as it was kept elsewhere.
        on_loss: told, in one line, if some of them are lost.
    Raises:
        RunError if, by `digest`, they are not what was written, or if there is something at `path` that cannot be read
        as a file, or over `MAX_METRICS` bytes.
    """
    found = _read_lines(path)
    kept = _in_order(found, done)
    absent = not kept and None not in found  # there is no file, or one that was begun after those lines were lost
    if digest is not None and not absent and lines_digest(kept) != digest:
        right = "restore it, or delete it to go on without them"
        raise RunError(f"{path} is damaged: the lines of the first {done:,} units are not what was written; {right}")
    if (lost := done - len(kept)) and (absent or digest is None):
        on_loss(
            f"{path}: the lines of {lost:,} of {done:,} units are lost or damaged, and left out of curves and report"
        )
    write(path, "".join(map(_text, kept)))
    return kept


def read_lines(path: Path, done: int) -> list[dict[str, Any]]:
    """The metric lines of units 1 to `done` that are whole; none where there is no file. Raises as `keep_lines`."""
    return _in_order(_read_lines(path), done)


def _read_lines(path: Path) -> list[dict[str, Any] | None]:
    """Every line, None for one that is damaged; none where there is no file. Raises as `keep_lines`."""
    if _is_absent(path):
        return []
    try:
        content = data.read_bytes(path, MAX_METRICS)
    except data.DataError as error:
        raise RunError(f"{error}; or delete it, and its curves are lost") from None
    if content.count(b"\n") > MAX_METRIC_LINES:
        raise RunError(f"{path} has over {MAX_METRIC_LINES:,} lines, no run has; delete it, and its curves are lost")
    return [_line(text) for text in content.splitlines()]


def _in_order(lines: list[dict[str, Any] | None], done: int) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for line in lines:
        if line is not None and (kept[-1]["unit"] if kept else 0) < line["unit"] <= done:
            kept.append(line)
    return kept


def lines_digest(lines: Sequence[dict[str, Any]], before: str = "") -> str:
    """A digest of metric lines, to the byte, that continues `before`, that of the lines in front of them."""
    for line in lines:
        before = hashlib.sha256((before + _text(line)).encode()).hexdigest()
    return before


def append(path: Path, line: dict[str, Any]) -> None:
    """Adds a metric line, and waits until it is on disk. Follows no link. Raises OSError, which names `path`."""
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(path, "ab", opener=lambda name, _: os.open(name, flags, 0o666)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            file.write(_text(line).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # of a write, which does not name the file
        reason = "a link, which is not followed" if error.errno == errno.ELOOP else error.strerror
        raise OSError(error.errno, reason, str(path)) from None


def _text(line: dict[str, Any]) -> str:
    return json.dumps(line) + "\n"


def _line(text: bytes) -> dict[str, Any] | None:
    """A metric line as `train` writes it, numbers and what unit they are of; None if it is anything else."""
    if len(text) > MAX_LINE:
        return None
    try:
        line = data.parse_json(text.decode("utf-8"))
    except ValueError:
        return None
    if not isinstance(line, dict):
        return None
    kind, values = (line.get("phase"), line.get("kind")), (v for k, v in line.items() if k not in ("phase", "kind"))
    whole = all(type(line.get(name)) is int and line[name] >= 0 for name in ("unit", "step"))
    named = kind[0] in ("pretrain", "adversarial") and kind[1] in ("discriminator", "mle", "generator")
    scored = "nll_gen" not in line or (data.is_number(line["nll_gen"]) and "nll_oracle" in line)
    numbers = all(value is None or data.is_number(value) for value in values) and data.is_number(line.get("seconds"))
    return line if whole and named and scored and numbers else None
