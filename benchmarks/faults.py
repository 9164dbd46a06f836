"""Does to small runs what machines and people do to long ones, and compares what comes of it with a run left alone.

    python -m benchmarks.faults
    python -m benchmarks.faults --faults kill flip --kills 20 --flips 50 --jobs 2

Everything goes through `leakgan train`, `sample` and `evaluate` as a user types them, and the files of run directories:

- kill: SIGKILL, SIGTERM or SIGINT at a random moment, of which a third is while a checkpoint is written; then --resume;
- flip: a run is stopped, a bit of a file of its checkpoints flipped, and resumed; flip-record: of the other files read;
- truncate, empty, delete, half-written: the same with a file or checkpoint cut, emptied, gone or half there;
- full, read-only: the disk fills up, or the directory turns read-only, while a run trains (needs leave to mount);
- second: another process starts on the directory of a run that trains;
- host: one of two processes that train together dies, and then both go on, or one alone.

After each the metric lines (times aside), every array of the newest checkpoint, what the newest, the best and the best
MLE checkpoint say when they are asked, and the report's table are those of the run left alone, to the bit, or the
damage was refused in one line. Prints a Markdown table, appends a JSON line a kind to `--results`, and ends with
status 1 if a trial failed. Trials that were done are not done again: they are in `--out`, with the directories of
those that failed, under a digest of the code. Which unit, file and bit is the seed's choice; when exactly a signal
arrives is not.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import measure

SIZES = (
    "--vocab-size 30 --length 8 --filter-windows 1 3 8 --filter-counts 4 5 3 --batch-size 8 --draw-size 64 "
    "--num-train 256 --num-heldout 32 --eval-samples 40 --sample-batch 16 --discriminator-embedding 6 "
    "--worker-hidden 7 --manager-hidden 5 --goal-dim 3 --completions 2 --pretrain-rounds 4 --pretrain-draws 1 "
    "--mle-epochs 6 --adversarial-iterations 20 --adversarial-draws 1 --interleave-every 3 --eval-every 2"
).split()
OFTEN = ["--checkpoint-seconds", "0.2"]  # a run lasts a few seconds; and many writes are to be hit
STOPS = (0.3, 0.6)  # of the units: where the runs that are damaged were stopped; pre-training and adversarial
KILLS_A_RUN = 4
LIMIT = 300.0  # seconds that a process may take, on a machine with other things to do
ALONE_SECONDS = 150.0  # that a process may take to notice that the other of two is gone
ROUNDING = 1e-3  # absolute and relative: metrics of two processes, gone on with by one
POLL_SECONDS = 0.002
WRITE_SECONDS = 0.015  # about as long as a checkpoint is being written
OUTCOMES = ("resumed identically", "refused", "fell back", "skipped", "FAILED")
WHICH = ("newest", "best", "mle")
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}

STARTED = re.compile(r"units of work to do")
RESUMED = re.compile(r"resuming after (\d+) of")
NOTICE = re.compile(
    r"damaged|fall(?:ing|s) back|fell back|differs? from|digest|incomplete|unfinished|cannot be read|changed since",
    re.I,
)
LOST = re.compile(r"metrics\.jsonl: the lines of ([\d,]+) of ([\d,]+) units are lost")
# A run writes these anew at every evaluation or at its end, and never reads them: their loss says nothing false.
REWRITTEN = ("samples.txt", "curves.png", "report.md")


class Ended(NamedTuple):
    """A command that has ended."""

    status: int  # as subprocess has it: -N for signal N
    stderr: str
    stdout: str = ""


class Result(NamedTuple):
    """What a run came to."""

    lines: list[dict[str, Any]]  # metrics.jsonl, without the times
    step: int  # of the newest checkpoint
    arrays: dict[str, str]  # its own: a digest of each
    answers: dict[str, list[str] | None]  # of `sample` and `evaluate`, by checkpoint; None where one was refused
    table: list[str]  # of the report


class Skipped(Exception):
    """A trial that this machine cannot make; says why."""


class Wrong(Exception):
    """A trial that failed; says what was seen."""


# --- Looking at run directories --------------------------------------------------------------------------------------


def metric_lines(out: Path) -> list[dict[str, Any]]:
    """Without the times. Raises Wrong where a line is not JSON."""
    lines = []
    for number, text in enumerate((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            del line["seconds"]
        except (ValueError, KeyError, TypeError):
            raise Wrong(f"line {number} of metrics.jsonl is not one of a run: {text[:80]!r}") from None
        lines.append(line)
    return lines


def units_done(out: Path) -> int:
    """By the whole lines of metrics.jsonl."""
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def _has_done(out: Path, units: int) -> bool:
    return units_done(out) >= units


def steps(out: Path) -> list[int]:
    """Of the checkpoints that bear a final name, ascending."""
    try:
        return sorted(int(name) for name in os.listdir(out / "checkpoints") if name.isdigit())
    except OSError:
        return []


def unfinished(out: Path) -> bool:
    """Whether a checkpoint is being written or replaced, or was left so."""
    try:
        return any(not name.isdigit() and _counts(Path(name)) for name in os.listdir(out / "checkpoints"))
    except OSError:
        return False


def stored_arrays(checkpoint: Path) -> dict[str, str]:
    """A digest of every array of a checkpoint, as Orbax reads it and without a look at our own digests."""
    import orbax.checkpoint as ocp

    state = checkpoint / "state"
    shares = [state] if (state / "_METADATA").exists() else sorted(state.iterdir())  # of each process, or the only one
    found = {}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        for share in shares:
            for path, leaf in jax.tree.leaves_with_path(reader.restore(share)):
                array = np.asarray(leaf)
                found[jax.tree_util.keystr(path)] = _sha(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    if not found:
        raise Wrong(f"{checkpoint.name} holds no arrays")
    return found


def table(out: Path) -> list[str]:
    """The rows of the report."""
    return [row for row in (out / "report.md").read_text(encoding="utf-8").splitlines() if row.startswith("|")]


def tree(out: Path) -> dict[str, str]:
    """Every file and folder below `out` and what is in it, locks aside."""
    paths = [path for path in sorted(out.rglob("*")) if _counts(path.relative_to(out))]
    return {str(p.relative_to(out)): _sha(p.read_bytes()) if p.is_file() else "folder" for p in paths}


def _counts(path: Path) -> bool:
    return not any("lock" in part for part in path.parts)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- Judging ---------------------------------------------------------------------------------------------------------


def differences(whole: Result, other: Result) -> list[str]:
    """How `other` differs from the run left alone: a line each, none if it does not.

    A best checkpoint that is refused differs from nothing; the table may then lack the rows of the best MLE model.
    """
    found = []
    if len(whole.lines) != len(other.lines):
        found.append(f"metrics.jsonl has {len(other.lines)} lines, not {len(whole.lines)}")
    for number, (a, b) in enumerate(zip(whole.lines, other.lines), 1):
        names = [name for name in {**a, **b} if name not in a or name not in b or a[name] != b[name]]
        found += [f"metrics.jsonl, line {number}: {n} is {b.get(n)}, not {a.get(n)}" for n in sorted(names)]
    if whole.step != other.step:
        found.append(f"the newest checkpoint is {other.step}, not {whole.step}")
    names = sorted(whole.arrays.keys() | other.arrays.keys())
    found += [f"the newest checkpoint: {n} differs" for n in names if whole.arrays.get(n) != other.arrays.get(n)]
    for which, answer in whole.answers.items():
        told = other.answers.get(which)
        if told != answer and not (told is None and which != "newest"):
            found.append(f"the {which} checkpoint says something else")
    found += [f"the report has the row {row}" for row in other.table if row not in whole.table]
    for row in whole.table:
        if row not in other.table and not (row.startswith("| MLE, best") and other.answers.get("mle") is None):
            found.append(f"the report lacks the row {row}")
    if not found and [row for row in whole.table if row in other.table] != other.table:
        found.append("the report's rows are in another order")
    return found


def one_line(stderr: str) -> str | None:
    """What a command that ended early says: one last line of its own and no traceback; None if it did not do so."""
    lines = stderr.strip().splitlines()
    own = [line for line in lines if re.match(r"leakgan: (?!warning|note)", line)]
    return own[0] if len(own) == 1 and own[0] == lines[-1] and "Traceback" not in stderr else None


def noticed(text: str) -> list[str]:
    """The lines of an output that tell of damage."""
    return [line for line in text.splitlines() if NOTICE.search(line) and not line.startswith("note:")]


def told_lines(stderr: str, whole: Result, result: Result) -> Result:
    """`result` with the metric lines of `whole` in place of those that, as a line says, are lost."""
    told = LOST.search(stderr)
    if not told:
        return result
    lost, done = (int(number.replace(",", "")) for number in told.groups())
    there = {line.get("unit") for line in result.lines}
    missing = [line for line in whole.lines if line["unit"] <= done and line["unit"] not in there]
    if len(missing) != lost:
        return result
    return result._replace(lines=sorted(missing + result.lines, key=lambda line: line.get("unit")))


def judge_damage(
    ended: Ended, before: dict[str, str], after: dict[str, str], whole: Result, result: Result | None, harmless: str
) -> tuple[str, str]:
    """The outcome of resuming a damaged run, and why.

    Args:
        before, after: `tree` of the run before and after it was resumed.
        result: of the run, if it came to its end.
        harmless: why nobody need be told of this damage, if nobody need.
    """
    if ended.status == 2:
        line = one_line(ended.stderr)
        if line is None:
            return "FAILED", f"refused, but not in one line: {ended.stderr[-300:]}"
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        return ("FAILED", f"refused, but changed {', '.join(changed)}") if changed else ("refused", line)
    if ended.status != 0 or result is None:
        return "FAILED", f"status {ended.status}: {ended.stderr[-300:]}"
    if found := differences(whole, result):
        return "FAILED", "; ".join(found[:3])
    if refused := [which for which, answer in result.answers.items() if answer is None]:
        return "refused", f"when the {' and the '.join(refused)} checkpoint was asked"
    if notice := noticed(ended.stderr):
        return "fell back", notice[0]
    return ("resumed identically", harmless) if harmless else ("FAILED", "unnoticed: identical, but without a line")


def near(whole: list[dict[str, Any]], other: list[dict[str, Any]], tolerance: float) -> list[str]:
    """How metric lines differ by more than rounding: a line each."""
    found = [] if len(whole) == len(other) else [f"metrics.jsonl has {len(other)} lines, not {len(whole)}"]
    for number, (a, b) in enumerate(zip(whole, other), 1):
        for name in sorted(a.keys() | b.keys()):
            x, y = a.get(name), b.get(name)
            same = x == y
            if isinstance(x, float) and isinstance(y, float):
                same = math.isclose(x, y, rel_tol=tolerance, abs_tol=tolerance)
            if not same:
                found.append(f"metrics.jsonl, line {number}: {name} is {y}, not {x}")
    return found


# --- Running ---------------------------------------------------------------------------------------------------------


class Process:
    """A command that runs, its standard error in a file."""

    def __init__(self, argv: list[str], env: dict[str, str], log: Path):
        self._log = log
        with open(log, "w") as file:
            self._popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                env=env,
                cwd=ROOT,
                start_new_session=True,  # Ctrl-C on this program is no signal to a run
            )

    @property
    def stderr(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def training(self) -> bool:
        return bool(STARTED.search(self.stderr))

    def until(self, condition: Callable[[], bool]) -> bool:
        """Waits for it; False if the process ends first. Raises Wrong after LIMIT seconds."""
        deadline = time.monotonic() + LIMIT
        while not condition():
            if self._popen.poll() is not None:
                return False
            if time.monotonic() > deadline:
                self.kill()
                raise Wrong(f"nothing happened for {LIMIT:.0f} s; so far: {self.stderr[-300:]}")
            time.sleep(POLL_SECONDS)
        return True

    def send(self, number: int) -> None:
        """Nothing happens if it has ended."""
        self._popen.send_signal(number)

    def ended(self, limit: float = LIMIT) -> Ended:
        """Waits for the end. Raises Wrong after `limit` seconds."""
        try:
            self._popen.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Wrong(f"did not end within {limit:.0f} s; so far: {self.stderr[-300:]}") from None
        return Ended(self._popen.returncode, self.stderr)

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()


ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "leakgan_jax.cli"]
ASKED = """
import contextlib, io, json, sys, traceback
from leakgan_jax import cli
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(json.loads(line))
        except BaseException:
            status = 1
            traceback.print_exc(file=err)
    print(json.dumps([status, err.getvalue(), out.getvalue()]), flush=True)
"""


class Asker:
    """Answers commands one after another in a process of its own, which has started JAX once for all of them."""

    def __init__(self, env: dict[str, str]):
        self._env, self._lock = env, threading.Lock()
        self._popen: subprocess.Popen[str] | None = None

    def __call__(self, *argv: str) -> Ended:
        with self._lock:
            if self._popen is None or self._popen.poll() is not None:
                self._popen = subprocess.Popen(
                    [sys.executable, "-c", ASKED],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=self._env,
                    cwd=ROOT,
                    text=True,
                    start_new_session=True,
                )
            process = self._popen
            assert process.stdin and process.stdout
            late = threading.Timer(LIMIT, process.kill)
            late.start()
            try:
                process.stdin.write(json.dumps(argv) + "\n")
                process.stdin.flush()
                return Ended(*json.loads(process.stdout.readline()))
            except (OSError, ValueError):
                process.kill()
                return Ended(process.wait(), "it answered nothing")
            finally:
                late.cancel()

    def close(self) -> None:
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()


class Workshop:
    """Where trials are made: the run left alone, runs that were stopped, a cache of compiled programs."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        folder.mkdir(parents=True, exist_ok=True)
        cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self._env = {**os.environ, **cache, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        self._live: list[Process] = []
        self._lock, self._closed = threading.Lock(), False
        self.ask = Asker(self._env)

    def close(self) -> None:
        """Ends every process that is left; no other starts."""
        self._closed = True
        self.ask.close()
        for process in self._live:
            process.kill()

    def train(self, out: Path, *argv: str, log: str = "") -> Process:
        if self._closed:
            raise Wrong("the program ends")
        process = Process(
            [*COMMAND, "train", "--out", str(out), *OFTEN, *argv], self._env, self.folder / f"{out.name}{log}.log"
        )
        self._live.append(process)
        return process

    def start_or_resume(self, out: Path) -> Process:
        """A run that was killed before it had its config.json is started anew."""
        return self.train(out, *(["--resume"] if (out / "config.json").exists() else SIZES))

    def answer(self, out: Path, which: str) -> list[str] | None:
        """What a checkpoint says: samples and scores; None if it is refused. Raises Wrong if neither."""
        told = []
        for command in (["sample", str(out), "--num", "16"], ["evaluate", str(out)]):
            ended = self.ask(*command, "--checkpoint", which, "--json")
            if ended.status == 2 and one_line(ended.stderr):
                return None
            if ended.status != 0:
                raise Wrong(f"leakgan {' '.join(command)} --checkpoint {which}: {ended.status}, {ended.stderr[-300:]}")
            told += [ended.stdout, *noticed(ended.stderr)]
        return told

    def result(self, out: Path) -> Result:
        answers, step = {which: self.answer(out, which) for which in WHICH}, steps(out)[-1]
        return Result(metric_lines(out), step, stored_arrays(out / "checkpoints" / str(step)), answers, table(out))

    @functools.cached_property
    def whole(self) -> Result:
        """Of the run left alone, which is made twice, since nothing could be told if that were not the same."""
        results = []
        for name in ("whole", "again"):
            out = self.folder / name
            if not (out / "report.md").exists():
                shutil.rmtree(out, ignore_errors=True)
                self._must(self.train(out, *SIZES))
            results.append(self.result(out))
        if found := differences(*results):
            sys.exit(f"the run left alone is not the same twice: {'; '.join(found[:3])}")
        return results[0]

    @functools.cached_property
    def units(self) -> int:
        return len(self.whole.lines)

    @functools.cached_property
    def stopped(self) -> list[tuple[Path, dict[str, list[str] | None]]]:
        """Runs that SIGTERM stopped, and what their checkpoints say."""
        bases = []
        for stop in STOPS:
            out, after = self.folder / f"stopped-{stop}", int(stop * self.units)
            if not out.exists():
                making = self.folder / f"making-{stop}"
                shutil.rmtree(making, ignore_errors=True)
                process = self.train(making, *SIZES)
                process.until(functools.partial(_has_done, making, after))
                process.send(signal.SIGTERM)
                if (ended := process.ended()).status != 128 + signal.SIGTERM:
                    sys.exit(f"a run could not be stopped: status {ended.status}\n{ended.stderr}")
                making.rename(out)
            bases.append((out, {which: self.answer(out, which) for which in WHICH}))
        return bases

    @property
    def of_two(self) -> Result:
        """Of the two-process run left alone."""
        with self._lock:
            out = self.folder / "whole-of-two"
            if not (out / "report.md").exists():
                shutil.rmtree(out, ignore_errors=True)
                for process in self.train_two(out, *SIZES):
                    self._must(process)
            return self.result(out)

    def train_two(self, out: Path, *argv: str) -> list[Process]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        place = ["--coordinator", f"localhost:{port}", "--num-processes", "2"]
        return [self.train(out, *argv, *place, "--process-id", str(i), log=f"-{i}") for i in range(2)]

    def _must(self, process: Process) -> None:
        if (ended := process.ended()).status:
            raise SystemExit(f"an undisturbed run ended with status {ended.status}:\n{ended.stderr}")

    def expect_whole(self, out: Path, ended: Ended) -> None:
        """Raises Wrong unless the run, whose last process has ended, came to what the run left alone did."""
        if ended.status != 0:
            raise Wrong(f"the run did not come to its end: status {ended.status}: {ended.stderr[-300:]}")
        if found := differences(self.whole, self.result(out)):
            raise Wrong("; ".join(found[:3]))


# --- The faults: each takes random choices and a directory of its own, and returns its trials -------------------------

Trial = dict[str, Any]


def kill(shop: Workshop, rng: random.Random, out: Path, times: int) -> list[Trial]:
    """One run, killed and resumed `times` times or until it ends, and then to its end; each kill is a trial.

    Of a run that ended before it could be killed there is one, "too late", which does not count.
    """
    trials: list[Trial] = []
    stopped: tuple[Trial, bytes] | None = None  # the last kill, if the run stopped by itself, and its metric lines
    for unit in sorted(rng.randint(0, shop.units) for _ in range(times)):
        name, delay = rng.choice(list(SIGNALS)), rng.uniform(0, 0.25)
        moment = rng.choices(("write", "unit", "start"), (5, 9, 1))[0]
        process = shop.start_or_resume(out)
        if moment == "start":  # while it reads what there is; no other signal is waited for then
            name, delay = "SIGKILL", rng.uniform(0.5, 5)
        else:
            process.until(lambda: process.training and units_done(out) >= unit)  # noqa: B023 - waited for here
        if moment == "write" and process.until(lambda: unfinished(out)):
            delay *= WRITE_SECONDS / 0.25
        time.sleep(delay)
        at, complete = units_done(out), (out / "report.md").exists()
        process.send(SIGNALS[name])
        ended = process.ended()
        _check_goes_on(stopped, ended, out)
        stopped = None
        at_end = at == shop.units and (out / "report.md").exists() and ended.status in (0, -SIGNALS[name])
        by_itself = name == "SIGKILL" and ended.status == 0 and (out / "report.md").exists()
        if complete or at_end or by_itself:
            break  # there was nothing left to stop
        trial = {"signal": name, "moment": moment, "unit": units_done(out), "unfinished": unfinished(out)}
        trials.append({**trial, "outcome": "resumed identically", "why": ""})
        if name == "SIGKILL" and ended.status != -signal.SIGKILL:
            _fail(trials[-1], f"ended of itself, with status {ended.status}: {ended.stderr[-300:]}")
        elif name != "SIGKILL":
            _check_stopped(trials[-1], ended, 128 + SIGNALS[name], out)
            stopped = trials[-1], (out / "metrics.jsonl").read_bytes()
        if ended.status == 0:
            break
    ended = shop.start_or_resume(out).ended()
    _check_goes_on(stopped, ended, out)
    try:
        shop.expect_whole(out, ended)
    except Wrong as wrong:
        for trial in trials:
            _fail(trial, str(wrong))
    return trials or [{"outcome": "too late", "why": ""}]


def _check_stopped(trial: Trial, ended: Ended, status: int, out: Path) -> None:
    """A run that is told to stop saves what it has and says so."""
    if ended.status != status:
        _fail(trial, f"{trial['signal']}: status {ended.status}, not {status}: {ended.stderr[-300:]}")
    elif not one_line(ended.stderr):
        _fail(trial, f"{trial['signal']}: not one clear line: {ended.stderr[-300:]}")
    elif steps(out)[-1:] != [trial["unit"]]:
        _fail(trial, f"{trial['signal']} after {trial['unit']} units left the checkpoints {steps(out)}")


def _check_goes_on(stopped: tuple[Trial, bytes] | None, ended: Ended, out: Path) -> None:
    """A run that was told to stop does no unit again: it says where it goes on, and its lines are still those."""
    if stopped is None or not STARTED.search(ended.stderr):
        return
    (trial, lines), told = stopped, RESUMED.search(ended.stderr)
    if trial["unit"] and (told is None or int(told[1]) != trial["unit"]):
        _fail(trial, f"stopped after {trial['unit']} units, and then: {told[0] if told else 'started anew'}")
    elif not (out / "metrics.jsonl").read_bytes().startswith(lines):
        _fail(trial, "a line of metrics.jsonl from before the stop was written again")


def _fail(trial: Trial, why: str) -> None:
    trial.update(outcome="FAILED", why="; ".join(filter(None, [trial["why"], why])))


def damage(harm: Callable[[Path, random.Random], tuple[str, str]]) -> Callable[..., list[Trial]]:
    """The fault that stops a run, does `harm` to its directory and resumes it.

    `harm` returns what it did, and why that may go unnoticed if the result is right, or nothing.
    """

    def fault(shop: Workshop, rng: random.Random, out: Path) -> list[Trial]:
        base, answers = rng.choice(shop.stopped)
        shutil.copytree(base, out)
        what, harmless = harm(out, rng)
        before = tree(out)
        for which in WHICH:  # whoever only samples from it is not deceived either
            told = shop.answer(out, which)
            silent = told is not None and not noticed("\n".join(told))
            if silent and told != answers[which] and not (harmless and which == "newest"):
                why = f"{what}: without a line, the {which} checkpoint says something else"
                return [{"what": what, "outcome": "FAILED", "why": why}]
        ended = shop.train(out, "--resume").ended()
        result = told_lines(ended.stderr, shop.whole, shop.result(out)) if ended.status == 0 else None
        outcome, why = judge_damage(ended, before, tree(out), shop.whole, result, harmless)
        return [{"what": what, "outcome": outcome, "why": why}]

    return fault


RECORDS = ("config.json", "metrics.jsonl")


def _some_file(out: Path, rng: random.Random) -> Path:
    """One below checkpoints/, most often; or one of `RECORDS`. None is empty."""
    return out / rng.choice(RECORDS) if rng.random() < 0.1 else _some_checkpoint_file(out, rng)


def _some_checkpoint_file(out: Path, rng: random.Random) -> Path:
    paths = [path for path in sorted((out / "checkpoints").rglob("*")) if path.is_file()]
    return rng.choice([path for path in paths if path.stat().st_size and _counts(path.relative_to(out))])


def flip(out: Path, rng: random.Random) -> tuple[str, str]:
    return _flip(out, rng, _some_checkpoint_file(out, rng))


def flip_record(out: Path, rng: random.Random) -> tuple[str, str]:
    return _flip(out, rng, out / rng.choice(RECORDS))


def _flip(out: Path, rng: random.Random, path: Path) -> tuple[str, str]:
    content = bytearray(path.read_bytes())
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place} of {path.relative_to(out)}", ""


def truncate(out: Path, rng: random.Random) -> tuple[str, str]:
    path = _some_file(out, rng)
    size = path.stat().st_size
    left = rng.randint(1, size - 1) if size > 1 else 0
    os.truncate(path, left)
    return f"{left} of {size} bytes of {path.relative_to(out)}", ""


def empty(out: Path, rng: random.Random) -> tuple[str, str]:
    path = _some_file(out, rng)
    os.truncate(path, 0)
    return str(path.relative_to(out)), ""


def half_written(out: Path, rng: random.Random) -> tuple[str, str]:
    """Half of the newest checkpoint's files, as one of a later unit."""
    newest = steps(out)[-1]
    copy = out / "checkpoints" / str(newest + 1)
    shutil.copytree(out / "checkpoints" / str(newest), copy)
    paths = sorted(path for path in copy.rglob("*") if path.is_file())
    for path in rng.sample(paths, (len(paths) + 1) // 2):
        path.unlink()
    return f"checkpoint {newest + 1} with half of the files of {newest}", ""


def delete(out: Path, rng: random.Random) -> tuple[str, str]:
    """A whole checkpoint, or any file of the run."""
    if rng.random() < 0.5:
        step = rng.choice(steps(out))
        shutil.rmtree(out / "checkpoints" / str(step))
        # A best one is told by the result: then the table has another row, or is without it.
        return f"checkpoint {step}", "a kill before it was written, or a later save, leaves the same"
    paths = [path for path in sorted(out.rglob("*")) if path.is_file() and _counts(path.relative_to(out))]
    path = rng.choice(paths)
    path.unlink()
    return str(path.relative_to(out)), "written anew, and never read" if path.name in REWRITTEN else ""


@contextlib.contextmanager
def mounted(*argv: str, undo: bool = True) -> Iterator[None]:
    """Mounts as `mount` does, the place last, and unmounts. Raises Skipped where that is not allowed."""
    done = subprocess.run(["mount", *argv], capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        raise Skipped(f"mount is not allowed: {done.stderr.strip()}" if done else "there is no mount")
    try:
        yield
    finally:
        if undo and subprocess.run(["umount", argv[-1]], capture_output=True).returncode:
            subprocess.run(["umount", "--lazy", argv[-1]], capture_output=True)


def full(shop: Workshop, rng: random.Random, out: Path) -> list[Trial]:
    """The disk fills up while the run trains, so that its next checkpoint (or the one in hand) does not fit."""
    unit, share = rng.randint(2, int(0.8 * shop.units)), rng.uniform(0, 0.95)
    disk = out.with_name(f"{out.name}-disk")
    disk.mkdir(exist_ok=True)
    with mounted("-t", "tmpfs", "-o", "size=64m", "leakgan-faults", str(disk)):
        run = disk / out.name
        try:
            process = shop.train(run, *SIZES)
            process.until(lambda: units_done(run) >= unit and bool(steps(run)))
            process.send(signal.SIGSTOP)  # or what is free changes meanwhile
            left = int(share * _blocks(run / "checkpoints" / str(steps(run)[-1])))
            free = os.statvfs(disk)
            with open(disk / "filler", "wb") as filler:
                os.posix_fallocate(filler.fileno(), 0, max(1, free.f_bavail * free.f_frsize - left))
            process.send(signal.SIGCONT)
            ended = process.ended()
            what = f"{left} bytes left after unit {units_done(run)}, unfinished checkpoint {unfinished(run)}"
            line = one_line(ended.stderr)
            if ended.status != 2 or line is None or "No space left" not in line:
                raise Wrong(f"{what}: status {ended.status}, no line that says so: {ended.stderr[-300:]}")
            (disk / "filler").unlink()
            shop.expect_whole(run, shop.start_or_resume(run).ended())
        except Wrong:
            shutil.copytree(run, out)
            raise
        finally:
            process.kill()
    disk.rmdir()
    return [{"what": what, "outcome": "resumed identically", "why": line}]


def _blocks(folder: Path) -> int:
    """Bytes that the folder takes on the disk."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def read_only(shop: Workshop, rng: random.Random, out: Path) -> list[Trial]:
    """The directory turns read-only while the run trains, which cannot be resumed until it is writable again."""
    unit, view = rng.randint(2, int(0.8 * shop.units)), out.with_name(f"{out.name}-view")
    view.mkdir(exist_ok=True)
    process = shop.train(out, *SIZES)
    try:
        process.until(lambda: units_done(out) >= unit)
        # A read-only mount over the directory: files that are open stay so, a lock among them; no other opens to write.
        with mounted("--bind", str(out), str(view)), mounted("-o", "remount,bind,ro", str(view), undo=False):
            with mounted("--bind", str(view), str(out)):
                ended = process.ended()
                refused = shop.train(out, "--resume", log="-refused").ended()
    finally:
        process.kill()
    for name, tried in {"trained": ended, "resumed": refused}.items():
        if tried.status != 2 or not one_line(tried.stderr):
            raise Wrong(f"{name} when read-only: status {tried.status}, not one line: {tried.stderr[-300:]}")
    what = f"after unit {units_done(out)}"
    shop.expect_whole(out, shop.start_or_resume(out).ended())
    view.rmdir()
    return [{"what": what, "outcome": "resumed identically", "why": one_line(ended.stderr)}]


def second(shop: Workshop, rng: random.Random, out: Path) -> list[Trial]:
    """Another process starts on the directory; the first is paused meanwhile, so that it cannot end before."""
    unit, again = rng.randint(0, int(0.9 * shop.units)), rng.choice((["--resume"], ["--resume"], SIZES))
    process = shop.train(out, *SIZES)
    try:
        process.until(lambda: process.training and units_done(out) >= unit)
        process.send(signal.SIGSTOP)
        before = tree(out)
        other = shop.train(out, *again, log="-second").ended()
        changed = tree(out) != before
    finally:
        process.send(signal.SIGCONT)
    what = f"{'resumed' if again == ['--resume'] else 'started'} after unit {units_done(out)} of the first"
    line = one_line(other.stderr)
    if other.status != 2 or line is None or changed:
        process.kill()
        raise Wrong(f"{what}: status {other.status}, directory changed: {changed}; {other.stderr[-300:]}")
    shop.expect_whole(out, process.ended())
    return [{"what": what, "outcome": "resumed identically", "why": line}]


def host(shop: Workshop, rng: random.Random, out: Path) -> list[Trial]:
    """Of two processes that train together one dies; the other has to notice, and then both, or one, go on."""
    if "--coordinator" not in shop.ask("train", "--help").stdout:
        raise Skipped("this version does not train in several processes")
    unit, dies = rng.randint(0, int(0.95 * len(shop.of_two.lines))), rng.randrange(2)
    both = rng.random() < 0.5
    processes = shop.train_two(out, *SIZES)
    try:
        processes[0].until(lambda: processes[0].training and units_done(out) >= unit)
        time.sleep(rng.uniform(0, 0.25))
        processes[dies].kill()
        what, began = f"process {dies} killed after unit {units_done(out)}", time.monotonic()
        left = processes[1 - dies].ended(ALONE_SECONDS)
    finally:
        for process in processes:
            process.kill()
    what += f", the other ended after {time.monotonic() - began:.0f} s"
    if left.status == 0 or not re.search(r"^leakgan: ", left.stderr, re.M):
        raise Wrong(f"{what} with status {left.status} and no line: {left.stderr[-300:]}")
    what += ", both went on" if both else ", one went on alone"
    argv = ["--resume"] if (out / "config.json").exists() else SIZES
    for process in shop.train_two(out, *argv) if both else [shop.train(out, *argv)]:
        if (ended := process.ended()).status:
            raise Wrong(f"{what}: status {ended.status}: {ended.stderr[-300:]}")
    result = shop.result(out)
    found = differences(shop.of_two, result) if both else near(shop.of_two.lines, result.lines, ROUNDING)
    if found:
        raise Wrong(f"{what}: {'; '.join(found[:3])}")
    return [{"what": what, "outcome": "resumed identically", "why": "" if both else f"to {ROUNDING}"}]


FAULTS: dict[str, Callable[..., list[Trial]]] = {
    "kill": kill,
    "flip": damage(flip),
    "flip-record": damage(flip_record),
    "truncate": damage(truncate),
    "empty": damage(empty),
    "half-written": damage(half_written),
    "delete": damage(delete),
    "full": full,
    "read-only": read_only,
    "second": second,
    "host": host,
}
DAMAGES = {"flip", "flip-record", "truncate", "empty", "half-written", "delete"}


# --- The program -----------------------------------------------------------------------------------------------------


class Book:
    """The trials that were made, a JSON line each; those of other code or another seed are not looked at."""

    def __init__(self, path: Path, code: str, seed: int):
        self._path, self._about = path, {"code": code, "seed": seed, "commit": measure.commit()}
        self.trials: list[Trial] = []
        for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):  # a line that was cut
                line = json.loads(text)
                if line["code"] == code and line["seed"] == seed and line["outcome"] != "skipped":
                    self.trials.append(line)

    def add(self, kind: str, index: int, trials: list[Trial], seconds: float) -> None:
        own = [{"kind": kind, "index": index, **trial, "seconds": round(seconds / len(trials), 1)} for trial in trials]
        self.trials += own
        with open(self._path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps({**trial, **self._about}) + "\n" for trial in own))

    def done(self, kind: str) -> set[int]:
        return {trial["index"] for trial in self.trials if trial["kind"] == kind}

    def of(self, kind: str) -> list[Trial]:
        """Those that count."""
        return [trial for trial in self.trials if trial["kind"] == kind and trial["outcome"] != "too late"]


def make(shop: Workshop, kind: str, index: int, num: int) -> list[Trial]:
    """The trials of one task: `num` kills of one run, or one of another fault. Failed directories are kept."""
    rng, out = random.Random(f"{shop.seed}/{kind}/{index}"), shop.folder / f"{kind}-{shop.seed}-{index}"
    shutil.rmtree(out, ignore_errors=True)
    try:
        trials = FAULTS[kind](shop, rng, out, *([num] if kind == "kill" else []))
    except Wrong as wrong:
        trials = [{"outcome": "FAILED", "why": str(wrong)}]
    except Skipped as skipped:
        trials = [{"outcome": "skipped", "why": str(skipped)}]
    except Exception as error:  # what it left cannot even be read
        trials = [{"outcome": "FAILED", "why": f"{type(error).__name__}: {error}"}]
    if not any(trial["outcome"] == "FAILED" for trial in trials):
        shutil.rmtree(out, ignore_errors=True)
        for log in shop.folder.glob(f"{out.name}*.log"):
            log.unlink()
    return trials


def tasks(book: Book, kind: str, wanted: int, busy: set[tuple[str, int]]) -> Iterator[tuple[int, int]]:
    """Index and number of trials of what is still to do, as far as it is not in hand."""
    done = book.done(kind)
    if kind != "kill":
        yield from ((i, 1) for i in range(wanted) if i not in done and (kind, i) not in busy)
        return
    index, left = 0, wanted - len(book.of(kind)) - KILLS_A_RUN * sum(k == kind for k, _ in busy)
    while left > 0:  # a run can end before it was killed as often as planned: then there is one more
        if index not in done and (kind, index) not in busy:
            yield index, min(left, KILLS_A_RUN)
            left -= KILLS_A_RUN
        index += 1


def work_through(shop: Workshop, book: Book, wanted: dict[str, int], jobs: int) -> None:
    """Makes every trial that is not in the book, and prints each."""
    times: dict[str, list[float]] = {kind: [t["seconds"] for t in book.of(kind)] for kind in wanted}

    def timed(kind: str, index: int, num: int):
        began = time.monotonic()
        return make(shop, kind, index, num), time.monotonic() - began

    with ThreadPoolExecutor(jobs) as pool:
        hand: dict[Future, tuple[str, int]] = {}
        try:
            while True:
                for kind, num in wanted.items():
                    for index, trials in tasks(book, kind, num, set(hand.values())):
                        if len(hand) == jobs:
                            break
                        hand[pool.submit(timed, kind, index, trials)] = kind, index
                if not hand:
                    return
                for future in wait(hand, return_when=FIRST_COMPLETED).done:
                    (kind, index), (trials, seconds) = hand.pop(future), future.result()
                    book.add(kind, index, trials, seconds)
                    times[kind] += [seconds / len(trials)] * len(trials)
                    for trial in trials:
                        _tell(book, kind, wanted, trial, _left(book, wanted, times) / jobs)
        except BaseException:
            for future in hand:
                future.cancel()
            shop.close()
            raise


def _left(book: Book, wanted: dict[str, int], times: dict[str, list[float]]) -> float:
    """Seconds, about; a kind that was not tried yet takes as long as the others."""
    known = [seconds for of_kind in times.values() for seconds in of_kind]
    mean = {kind: float(np.mean(of_kind or known)) for kind, of_kind in times.items()}
    return sum(mean[kind] * max(0, num - len(book.of(kind))) for kind, num in wanted.items())


def _tell(book: Book, kind: str, wanted: dict[str, int], trial: Trial, left: float) -> None:
    about = trial.get("what") or " ".join(str(trial[k]) for k in ("signal", "moment", "unit") if k in trial)
    words = f"{kind} {len(book.of(kind))}/{wanted[kind]}  {trial['outcome']}  {about}  {trial['why']}"
    print(f"{words[:400]}  ({left / 60:.0f} min left)", flush=True)


def summary(book: Book, kind: str, wanted: int) -> dict[str, Any]:
    """The counts of a kind."""
    trials = book.of(kind)
    counts = Counter(trial["outcome"] for trial in trials)
    line: dict[str, Any] = {"kind": kind, "wanted": wanted, "trials": len(trials)}
    line |= {outcome.replace(" ", "_").lower(): counts[outcome] for outcome in OUTCOMES}
    line["reasons"] = sorted(
        {
            f"{t['what']}: {t['why']}" if "what" in t else t["why"]
            for t in trials
            if t["outcome"] in ("skipped", "FAILED")
        }
    )[:10]
    line["unnoticed"] = sum(trial["why"].startswith("unnoticed") for trial in trials)  # of those that failed
    if kind == "kill":
        line["signals"] = dict(Counter(trial["signal"] for trial in trials if "signal" in trial))
        line["unfinished_checkpoints"] = sum(trial.get("unfinished", False) for trial in trials)
    return line


def code() -> str:
    """A digest of everything that a trial runs, and of where."""
    facts = measure.facts()
    place = f"{facts['device']}, {facts['cores']}, {facts['jax']}, {sys.version}"
    paths = [*sorted((ROOT / "leakgan_jax").rglob("*.py")), Path(__file__)]
    return _sha(b"".join([place.encode(), *(path.read_bytes() for path in paths)]))[:12]


def main(argv: list[str] | None = None) -> int:
    parser = measure.parser("benchmarks.faults", __doc__)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="KIND")
    parser.add_argument("--kills", type=measure.positive, default=100)
    parser.add_argument("--flips", type=measure.positive, default=200)
    parser.add_argument("--others", type=measure.positive, default=8, help="trials of each other kind")
    parser.add_argument("--seed", type=int, default=0, help="of what is harmed, and about when")
    parser.add_argument("--jobs", type=measure.positive, default=1, help="trials at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/faults"), help="folder of the trials")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/faults.jsonl"))
    args = parser.parse_args(argv)
    if importlib.util.find_spec("tyro") is None:
        parser.error("`leakgan train` needs tyro, which is not installed; run this where the command line runs")
    parser.check_writable(args.results)
    parser.check_writable(args.out / "trials.jsonl")
    jax.config.update("jax_platforms", "cpu")  # as the runs, of which there are many at a time

    facts, digest = measure.facts(), code()
    wanted = {kind: {"kill": args.kills, "flip": args.flips}.get(kind, args.others) for kind in args.faults}
    book = Book(args.out / "trials.jsonl", digest, args.seed)
    shop = Workshop((args.out / digest).resolve(), args.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the runs as well
    print(f"{measure.described(facts)}, seed {args.seed}; {len(book.trials)} trials were made before", flush=True)
    try:
        print(f"the run left alone has {shop.units} units", flush=True)
        if DAMAGES & wanted.keys():  # made here, not by each job for itself
            print(f"{len(shop.stopped)} runs were stopped, to be damaged", flush=True)
        work_through(shop, book, wanted, args.jobs)
    finally:
        shop.close()
    lines = [summary(book, kind, num) for kind, num in wanted.items()]
    print(f"\n| fault | trials | {' | '.join(OUTCOMES)} |\n|---|{'--:|' * (len(OUTCOMES) + 1)}")
    for line in lines:
        cells = [line[outcome.replace(" ", "_").lower()] for outcome in OUTCOMES]
        print(f"| {line['kind']} | {line['trials']} | {' | '.join(map(str, cells))} |")
    for line in lines:
        for reason in line["reasons"]:
            print(f"\n{line['kind']}: {reason[:300]}")
    with open(args.results, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps({**line, "seed": args.seed, **facts}) + "\n" for line in lines))
    failed = any(line["failed"] for line in lines)
    if failed:
        print(f"\nThe directories of failed trials are in {shop.folder}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
