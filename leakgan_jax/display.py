"""What a person sees while a run trains: one live display on a terminal, plain lines anywhere else."""

import collections
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from leakgan_jax import run
from leakgan_jax.config import Config

PLAIN_SECONDS = 20.0  # between two plain lines, evaluations aside
_SHOWN = ("discriminator_loss", "generator_loss", "worker_loss", "manager_loss", "nll_oracle", "nll_gen", "distinct")
_SHORT = {
    "discriminator_loss": "D loss",
    "generator_loss": "G loss",
    "worker_loss": "worker",
    "manager_loss": "manager",
}


class Display:
    """Progress of one run on standard error: phase, step, losses, NLL and the time left."""

    def __init__(self, console: Console | None = None, quiet: bool = False):
        self._console = console or Console(stderr=True, highlight=False, quiet=quiet)
        self._last_plain = 0.0
        self._live: Progress | None = None
        self._seen: dict[str, Any] = {}
        self._spent: dict[str, list[float]] = collections.defaultdict(list)

    def start(self, config: Config, units: list[run.Unit], done: int, task: run.Task, seeds: Sequence[int]) -> None:
        self._units = units
        self._work = {kind: run.work(config, task, kind) for kind in ("mle", "discriminator", "generator", "evaluate")}
        self._totals = {u.phase: u.step for u in units}
        self._last = time.monotonic()
        if config.is_text:
            self.message(describe(config, task.source))
        if dropped := task.source.get("dropped_as_too_long"):
            self.message(f"{dropped} sentences are longer than {config.length - 1} words and left out")
        if len(seeds) > 1:
            self.message(f"seeds {seeds[0]} to {seeds[-1]} side by side; what is shown is their mean")
        if done:
            self.message(f"resuming after {done} of {len(units)} units of work")
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.fields[left]}"))
            self._live = Progress(*columns, console=self._console)
            self._bar = self._live.add_task("compiling", total=len(units), completed=done, left="")
            self._live.start()
        else:
            self.message(f"{len(units) - done} units of work to do; the first of each kind compiles")

    def update(self, done: int, lines: Sequence[dict[str, Any]], seconds: float) -> None:
        """After each unit: each seed's line of metrics.jsonl, `seconds` of the unit without its evaluation."""
        line = lines[0]
        self._spent[line["kind"]].append(seconds)
        if "nll_gen" in line:
            self._spent["evaluate"].append(max(0.0, time.monotonic() - self._last - seconds))
        for name in _SHOWN:
            if line.get(name) is not None:
                self._seen[name] = statistics.fmean(of_seed[name] for of_seed in lines)
        values = "  ".join(f"{_SHORT.get(name, name)} {self._seen[name]:.3f}" for name in _SHOWN if name in self._seen)
        head = f"{line['phase']} {line['step']}/{self._totals[line['phase']]}"
        left = f"{clock(self._left(done))} left" if done < len(self._units) else "done"
        now = time.monotonic()
        if self._live:
            self._live.update(self._bar, completed=done, description=f"{head}  {values}", left=left)
        elif "nll_gen" in line or now - self._last_plain > PLAIN_SECONDS:
            self.message(f"{head}  {values}  {clock(line['seconds'])} gone, {left}")
            self._last_plain = now
        self._last = now

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self._live:
            self._live.stop()

    def _left(self, done: int) -> float:
        """Seconds left, about: each kind's mean without its first call, which compiles; a guess where there is none."""
        mean = {kind: sum(s[1:]) / len(s[1:]) for kind, s in self._spent.items() if len(s) > 1}
        known = mean or {kind: s[0] for kind, s in self._spent.items()}
        rate = sum(known.values()) / sum(self._work[kind] for kind in known)
        cost = {kind: mean.get(kind, rate * work) for kind, work in self._work.items()}
        return sum(cost[u.kind] + u.evaluate * cost["evaluate"] for u in self._units[done:])


def describe(config: Config, source: dict[str, Any]) -> str:
    """What text a run has, by `Task.source`: the counts of its splits and of what they share."""
    text = (
        f"{config.corpus or config.dataset}: {source['train_sentences']:,} sentences to train on, "
        f"{source['heldout_sentences']:,} held out ({_facts(source, 'heldout')})"
    )
    if "test_sentences" in source:
        text += f", {source['test_sentences']:,} to test ({_facts(source, 'test')})"
    return text


def _facts(source: dict[str, Any], split: str) -> str:
    unknown = source.get(f"{split}_unknown_words")  # the first runs have none
    also = f"{source[f'{split}_also_in_train']:,} also in training"
    return also if unknown is None else f"{also}, {unknown:.1%} of the words unknown to it"


def track(rows: Iterable[dict[str, Any]], total: int) -> Iterator[dict[str, Any]]:
    """Passes on the rows of a sweep, `total` of them, and tells of each on standard error, with the time left."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.fields[left]}"))
    began, ends = time.monotonic(), []
    with Progress(*columns, console=console, disable=not console.is_terminal) as live:
        bar = live.add_task("real text; every function compiles once", total=total, left="")
        for row in rows:
            ends.append(time.monotonic() - began)
            at = "" if row["temperature"] is None else f" at temperature {row['temperature']:.3g}"
            text = f"{len(ends)}/{total}  {row['model']}{at}"
            left = "" if len(ends) < total else "done"
            if 2 < len(ends) < total:  # the first two rows, of real text and of a model, compile
                left = f"{clock((ends[-1] - ends[1]) / (len(ends) - 2) * (total - len(ends)))} left"
            live.update(bar, completed=len(ends), description=text, left=left)
            if live.disable:
                console.print(f"{text}  {clock(ends[-1])} gone  {left}", markup=False, soft_wrap=True)
            yield row


def clock(seconds: float) -> str:
    """`1:02:03`, or `2:03` under an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
