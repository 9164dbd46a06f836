"""A run directory: what a run is, beside its checkpoints. `config.json`, `metrics.jsonl`, `vocabulary.json`.

Nothing here trains, and nothing else reads or writes the first two.
"""

import contextlib
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax

from leakgan_jax import data
from leakgan_jax.config import Config, ConfigError, differences
from leakgan_jax.data import write

_LOCK = ".lock"
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
    """The config, the (first) seed and the rest of `out/config.json`.

    Raises:
        RunError if there is no readable run; and, unless `several`, if there are the runs of several seeds.
    """
    path = out / "config.json"
    try:
        # The first runs had neither.
        record = {"data_dir": "", "seeds": 1, **json.loads(path.read_text(encoding="utf-8"))}
        if any(type(record[name]) is not kind for name, kind in _RECORD.items()):
            raise TypeError
        if record["seeds"] > 1 and not several:
            one, other = directories(out, [record["seed"], record["seed"] + record["seeds"] - 1])
            raise RunError(f"{out} holds the runs of several seeds; give one of them, from {one} to {other}")
        return Config.from_json(record["config"]), record["seed"], record
    except FileNotFoundError:
        raise RunError(f"{out} holds no run: there is no config.json; give a directory that `train` made") from None
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; give a directory that `train` made") from None
    except RunError:
        raise
    except ConfigError as error:
        raise RunError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path} is damaged: it must be the JSON that `train` wrote") from None


@contextlib.contextmanager
def open_directories(
    config: Config, seeds: Sequence[int], facts: Facts, out: Path, resume: bool, command: str, data_dir: Path | None
) -> Iterator[None]:
    """Makes the directory of each seed, or checks that the run in an old one is this one.

    While it is open no other process may do so.
    """
    if not resume:
        _require_unused(out)
    with _locked(out):
        _open_directory(config, seeds, facts, out, resume, command, data_dir)
        if len(seeds) > 1:
            for seed, place in zip(seeds, directories(out, seeds), strict=True):
                old = (place / "config.json").exists()
                if not old:
                    _require_unused(place)
                _open_directory(config, [seed], facts, place, old, command, data_dir)
        yield


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Holds the run in `out`; the system lets go of it when this process ends, however it does."""
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


def _require_unused(out: Path) -> None:
    """Makes `out` if it is not there; raises RunError if anything that matters is in it."""
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
    if resume:
        saved, seed, record = open_run(out, several=True)
        changed = differences(saved, config)
        if seed != seeds[0]:
            changed.append(f"seed ({seed}, now {seeds[0]})")
        if record["seeds"] != len(seeds):
            changed.append(f"seeds ({record['seeds']}, now {len(seeds)})")
        now = facts.source
        changed += [f"{k} ({v}, now {now.get(k)})" for k, v in record["data"].items() if now.get(k) != v]
        if changed:
            raise RunError(f"{out} was made with other settings: {', '.join(changed)}; resume it with its own")
        require_vocabulary(out, facts.vocabulary)
        if place != record["data_dir"]:  # moved
            write(out / "config.json", json.dumps({**record, "data_dir": place}, indent=2) + "\n")
        return
    record = {
        "config": config.to_json(),
        "seed": seeds[0],
        "seeds": len(seeds),
        "data": facts.source,
        "data_dir": place,
        "command": command,
        **facts.environment,
    }
    if facts.vocabulary is not None:
        facts.vocabulary.save(out / "vocabulary.json")
    write(out / "config.json", json.dumps(record, indent=2) + "\n")  # last: with it the directory is a run


def require_whole(out: Path) -> None:
    """`out` is not one of several seeds, which would get ahead of the others."""
    parent = out.absolute().parent
    try:
        _, first, record = open_run(parent, several=True)
    except RunError:
        return
    if out.absolute() in directories(parent, range(first, first + record["seeds"])):
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
            pairs = [(f"{key}", old.get(key), value.get(key)) for key in sorted({*old, *value})]
        else:
            pairs = [(name, old, value)]
        changed += [f"{key} ({a}, now {b})" for key, a, b in pairs if a != b]
    return changed


def keep_lines(path: Path, done: int) -> list[dict[str, Any]]:
    """Cuts metric lines after unit `done` (they will come again), and one that a kill left half written."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
                if line["unit"] <= done:
                    lines.append(line)
            except (ValueError, KeyError, TypeError):
                continue
    write(path, "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def append(path: Path, line: dict[str, Any]) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:  # of a write, which does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from None
