"""Many devices and many processes: one program over a mesh, and what its processes tell each other.

A mesh has two axes. Over `seeds` whole runs lie side by side and never speak; over `data` lie the rows of every batch,
of negatives, completions and evaluations, while parameters are on every device, so that the compiler adds up their
gradients. Library functions say where rows are (`spread`) and mean nothing by it outside of a mesh: `with
jax.set_mesh(mesh)` around a jitted function is all that a user needs.

Axes are Auto: the compiler chooses all that is not said, and a gradient is that of one device up to rounding.
"""

import hashlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from leakgan_jax.config import ConfigError, shown

SEEDS, DATA = "seeds", "data"
HEARTBEAT_SECONDS = 30  # after so long in silence a process counts as lost

T = TypeVar("T")


def make_mesh(batch_size: int, num_seeds: int = 1, asked: str = "", devices: Sequence[Any] | None = None):
    """The mesh of a run, and how many of the devices it leaves out.

    Seeds share the devices as far as both numbers have a divisor in common; what is left goes to the rows.

    Args:
        asked: "data=8", the number of devices to take; "seeds=2,data=4", the same axis by axis; or "", all devices or
            as many as divide the batch.
        devices: those there are; default, all of all processes.
    Raises:
        ConfigError if it is not written so, there are not so many devices, or they cannot share seeds and rows evenly.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _read(asked)
    if asked and SEEDS in sizes:
        seeds, rows = sizes[SEEDS], sizes.get(DATA, 1)
    else:
        total = sizes.get(DATA, len(devices))
        while True:
            seeds = math.gcd(num_seeds, total)
            rows = total // seeds
            if asked or batch_size % rows == 0:
                break
            total -= 1
    if seeds * rows > len(devices):
        raise ConfigError(f"mesh is {asked!r}; there are {len(devices)} devices, so it must be at most that many")
    if num_seeds % seeds or batch_size % rows:
        right = f"seeds ({num_seeds}) must be divided evenly by the first axis and batch_size ({batch_size}) by data"
        raise ConfigError(f"mesh is {asked or 'all devices'}: seeds={seeds},data={rows}; {right}")
    left_out = len(devices) - seeds * rows
    if left_out and jax.process_count() > 1:
        raise ConfigError(
            f"mesh is seeds={seeds},data={rows}; with several processes it must have all {len(devices)} devices: "
            f"choose a batch_size ({batch_size}) or --seeds that they divide evenly"
        )
    chosen = np.asarray(devices[: seeds * rows]).reshape(seeds, rows)
    return jax.sharding.Mesh(chosen, (SEEDS, DATA), axis_types=(jax.sharding.AxisType.Auto,) * 2), left_out


def shards(rows: int) -> int:
    """Over how many devices `spread` divides `rows` rows of what is traced; 1 without a mesh, or where it is uneven."""
    mesh = jax.sharding.get_abstract_mesh()
    size = dict(mesh.shape).get(DATA, 1)
    return size if rows % size == 0 else 1


def spread(tree: T, rows: int | None = None) -> T:
    """Arrays with a row a sentence, `[R, ...]`, divided among the devices of `data`; left alone where that is uneven.

    To be called while tracing; `rows`, R, is that of the first leaf if not given.
    """
    rows = jax.tree.leaves(tree)[0].shape[0] if rows is None else rows
    return _constrain(tree, jax.P(DATA)) if shards(rows) > 1 else tree


def replicate(tree: T) -> T:
    """Arrays that are to be whole on every device of `data`, as parameters and sums of gradients are."""
    return tree if jax.sharding.get_abstract_mesh().empty else _constrain(tree, jax.P())


def padding(rows: int) -> int:
    """How many rows more `spread` wants to divide `rows` evenly."""
    return -rows % dict(jax.sharding.get_abstract_mesh().shape).get(DATA, 1)


def map_shards(function: Callable[[Any], T], rows: Any) -> T:
    """`function` of the rows of each device apart, for what treats rows alone but would mix their order otherwise.

    Args:
        rows: tree of `[R, ...]`; function: such a tree of fewer rows -> a tree of `[those rows, ...]`.
    """
    num = jax.tree.leaves(rows)[0].shape[0]
    if (count := shards(num)) == 1:
        return function(rows)
    apart = jax.tree.map(lambda x: x.reshape(count, num // count, *x.shape[1:]), rows)
    mapped = jax.vmap(function, spmd_axis_name=DATA)(spread(apart))
    return spread(jax.tree.map(lambda x: x.reshape(num, *x.shape[2:]), mapped))


def place(mesh: jax.sharding.Mesh, tree: T, axis: str | None = None) -> T:
    """Host arrays as global ones: whole on every device, or their first axis divided over `axis` of the mesh.

    Every process must hand over the same.
    """
    sharding = jax.NamedSharding(mesh, jax.P(axis) if axis else jax.P())

    def put(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            bits = jax.device_put(np.asarray(jax.random.key_data(leaf)), sharding)
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
        return jax.device_put(np.asarray(leaf), sharding)

    return jax.tree.map(put, tree)


def fetch(tree: T) -> T:
    """Global arrays on the host, whole in every process; all of them must ask."""
    return jax.device_get(jax.jit(replicate)(tree) if jax.process_count() > 1 else tree)


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the processes of one run; must come before anything else of JAX. With no arguments, the cluster tells.

    SLURM, Open MPI and TPU pods are known by their environments (`jax.distributed.initialize`).
    Raises:
        ConfigError if what is given cannot be right, the cluster is not known or the others cannot be reached.
    """
    given = {"coordinator": coordinator, "num-processes": num_processes, "process-id": process_id}
    if any(value is not None for value in given.values()):
        if missing := [f"--{name}" for name, value in given.items() if value is None]:
            raise ConfigError(
                f"{' and '.join(missing)} missing; several processes need all three, or --distributed alone"
            )
        assert num_processes is not None and process_id is not None and coordinator is not None
        if not 0 <= process_id < num_processes:
            raise ConfigError(f"process-id is {process_id}; it must be from 0 to {num_processes - 1}")
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
            raise ConfigError(f"coordinator is {coordinator!r}; it must be HOST:PORT of process 0")
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        right = "under SLURM, Open MPI and on TPU pods --distributed is enough; elsewhere give --coordinator HOST:PORT"
        raise ConfigError(
            f"the processes did not find each other ({' '.join(str(error).split())[:150]}); {right}"
        ) from None


def leave(status: int) -> None:
    """Ends a process of several when something went wrong in it; does nothing in a process that is alone.

    JAX would wait for the others to end as well, which they may not do before they miss this one.
    """
    if jax.process_count() == 1:
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if is_first():  # the others hold on to it, and are to say first what they have to say
        time.sleep(2.0)
    os._exit(status)


def is_first() -> bool:
    """Whether this process is the one that writes reports."""
    return jax.process_index() == 0


def require_same(values: dict[str, Any]) -> None:
    """Raises ConfigError, in all processes, unless each has the same `values`, which JSON can hold."""
    if jax.process_count() == 1:
        return
    texts = [json.dumps(value, sort_keys=True) for value in values.values()]
    own = np.array([list(hashlib.sha256(text.encode()).digest()) for text in texts], np.uint8)
    for name, of_all in zip(values, np.swapaxes(multihost_utils.process_allgather(own), 0, 1), strict=True):
        if other := [process for process, digest in enumerate(of_all) if (digest != of_all[0]).any()]:
            raise ConfigError(f"process {other[0]} has other {name} than process 0; start all with the same")


def on_first(function: Callable[[], Any]) -> None:
    """Calls `function` in process 0 and waits for it; what it raises is raised in all."""
    failure: Exception | None = None
    if is_first():
        try:
            function()
        except Exception as error:
            failure = error
    if jax.process_count() > 1:
        message = b"" if failure is None else (str(failure) or type(failure).__name__).encode()[:1000]
        told = multihost_utils.broadcast_one_to_all(np.frombuffer(message.ljust(1000, b"\0"), np.uint8))
        if (text := bytes(told).rstrip(b"\0").decode(errors="replace")) and failure is None:
            failure = ConfigError(text)
    if failure is not None:
        raise failure


def agree(stop: int | None, *flags: bool) -> tuple[int | None, list[bool]]:
    """What every process is to do after a unit: stop if any was told to, and what the first one's flags say."""
    if jax.process_count() == 1:
        return stop, list(flags)
    told = np.asarray(multihost_utils.process_allgather(np.array([stop or 0, *flags], np.int32)))
    return int(told[:, 0].max()) or None, [bool(flag) for flag in told[0, 1:]]


def _constrain(tree: T, spec: jax.P) -> T:
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), tree)


def _read(asked: str) -> dict[str, int]:
    sizes = {}
    for part in asked.split(",") if asked else ():
        name, _, number = part.partition("=")
        if name not in (SEEDS, DATA) or name in sizes or not re.fullmatch("[1-9][0-9]{0,8}", number):
            raise ConfigError(f"mesh is {shown(asked)}; it must be written like data=8 or seeds=2,data=4")
        sizes[name] = int(number)
    return sizes
