"""What the benchmarks share: timing of compiled programs, the machine's peak, facts for the record, plain errors."""

import argparse
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MIN_REPEATS = 3


class Program:
    """A compiled `function(state, data)`.

    With `trains`, it returns a new state first and the next call goes on from it; with `donate`, it may overwrite the
    old one.
    """

    def __init__(self, function: Callable, state: Any, data: Any, trains: bool, donate: bool = True):
        began = time.perf_counter()
        lowered = jax.jit(function, donate_argnums=0 if trains and donate else ()).lower(state, data)
        self._compiled = lowered.compile()
        self.compile_s = time.perf_counter() - began
        self._trains, self._data, self._first = trains, data, state
        self._state = jax.tree.map(jnp.copy, state) if trains else state

    def renew(self) -> None:
        """Goes on from the first state, in another place of memory."""
        if self._trains:
            self._state = jax.tree.map(jnp.copy, self._first)

    def seconds(self) -> float:
        """Of one call, until its results are there."""
        began = time.perf_counter()
        out = jax.block_until_ready(self._compiled(self._state, self._data))
        elapsed = time.perf_counter() - began
        if self._trains:
            self._state = out[0]
        return elapsed

    def memory(self) -> int | None:
        """Bytes that the compiler planned: arguments, results and temporaries, what is overwritten counted once.

        Not what the process holds, which has other arrays and the allocator's own; None where a backend has no plan.
        """
        plan = self._compiled.memory_analysis()
        if plan is None:
            return None
        arguments, results = plan.argument_size_in_bytes, plan.output_size_in_bytes
        return arguments + results - plan.alias_size_in_bytes + plan.temp_size_in_bytes


def alternate(programs: list[Program], repeats: int, budget: float) -> np.ndarray:
    """Calls the programs in turn, so that a machine that slows down slows them all: seconds, `[n, programs]`.

    After a warm-up, `n` is as many as fit into `budget` seconds, from 3 to `repeats`.
    """
    warm_up = sum(program.seconds() for program in programs)
    fit = int(budget / warm_up)
    n = max(MIN_REPEATS, min(repeats, fit))
    return np.array([[program.seconds() for program in programs] for _ in range(n)])


class Peak(Program):
    """A large matrix product, `size` by `size`: what the machine can do at best.

    `precision` as `jax.default_matmul_precision` takes it. It is called in turn with what it is compared with, since a
    machine that others use does not stay the same for long.
    """

    def __init__(self, size: int, precision: str):
        chain = 2 if jax.default_backend() == "cpu" else 16  # so that starting a call costs nothing by comparison
        matrix = jax.random.normal(jax.random.key(0), (size, size)) / np.sqrt(size)

        def products(x, matrix):
            for _ in range(chain):
                x = x @ matrix
            return x

        with jax.default_matmul_precision(precision):
            super().__init__(products, matrix, matrix, trains=False)
        self.flops = chain * 2 * size**3  # of a call; a multiply-add is 2


def facts() -> dict[str, Any]:
    """Where and with what a number was measured."""
    kind = jax.devices()[0].device_kind
    return {
        "device": processor() if jax.default_backend() == "cpu" else kind,
        "cores": cores(),
        "jax": jax.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def described(facts: dict[str, Any]) -> str:
    """The same in one line."""
    place = f"{facts['device']}, {facts['cores']} CPU cores"
    return f"{place}, JAX {facts['jax']}, commit {facts['commit']}, {facts['date']}"


def number(value: float) -> str:
    """Four digits, and never an exponent."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor() -> str:
    """The CPU's name, where the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str:
    """Of this file's repository, `-dirty` where code differs from it; `unknown` outside of one."""
    try:
        revision = _git("rev-parse", "--short", "HEAD")
        return revision + "-dirty" * bool(_git("status", "--porcelain", "--", ":/leakgan_jax", ":/benchmarks/*.py"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


class Parser(argparse.ArgumentParser):
    """Ends on bad input with one line and status 2."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}\n")

    def check_writable(self, path: Path) -> None:
        """Before anything is measured: `path` can be appended to, its folder made where it is missing."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a"):
                pass
        except OSError as error:
            self.error(f"{path}: {error.strerror}; choose another --out")


def parser(module: str, description: str) -> Parser:
    """Of `python -m module`."""
    formatter = argparse.RawDescriptionHelpFormatter
    return Parser(prog=f"python -m {module}", description=description, formatter_class=formatter)


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def seconds(text: str) -> float:
    """A length of time, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value
