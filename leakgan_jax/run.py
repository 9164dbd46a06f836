"""One run in one directory: the schedule, the loop over it, resuming, and what a finished run is asked later.

A run is a list of units, each one jitted call on device-resident data. Unit `u` draws from `fold_in(key, u)` and
from nothing else, so the state and the count of units done are all that resuming needs, and a resumed run
continues to the last bit as if it had never stopped.
"""

import contextlib
import dataclasses
import functools
import math
import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from leakgan_jax import data, health, oracle, parallel, rollout, rundir, training
from leakgan_jax.checkpoint import CheckpointError, Checkpoints, Restored, Which
from leakgan_jax.config import Config, ConfigError, is_printable, printable
from leakgan_jax.data import write
from leakgan_jax.rundir import RunError
from leakgan_jax.types import Array, GanState, Key, Params

TABLE_TEMPERATURES = (1.0, 1 / 1.5)  # the second is that of the published numbers
CHECKPOINT_SECONDS = 60.0  # between checkpoints, at most: so long, plus a unit, is lost to a kill
_HERE = Path(__file__).parent
_STREAM_BATCH = 64  # sentences; the first appear soon, and a small --num is not much waste


class Unit(NamedTuple):
    """One jitted call of the schedule."""

    phase: str  # pretrain or adversarial
    kind: str  # discriminator, mle or generator
    step: int  # MLE epochs (pretrain) or iterations (adversarial) done when the unit ends; from 1
    evaluate: bool  # whether an evaluation follows


class Task(NamedTuple):
    """What there is to learn, on the device."""

    train: Array  # [n, T] int32, the fixed set of maximum likelihood
    heldout: Array  # [m, T] int32, real sentences for NLL_gen
    oracle: oracle.OracleParams | None  # synthetic task
    vocabulary: data.Vocabulary | None  # real text
    source: dict[str, Any]  # what the data was, for config.json
    # Real text as words, for metrics. Train and held-out are those of the rows; the test split is None where the text
    # has none, and has sentences of any length.
    train_sentences: Sequence[list[str]] = ()
    heldout_sentences: Sequence[list[str]] = ()
    test_sentences: Sequence[list[str]] | None = None

    @property
    def arrays(self) -> "Arrays":
        return Arrays(self.train, self.heldout, self.oracle)

    def decode(self, tokens: np.ndarray) -> list[str]:
        """One line a sentence: words, or ids where there are no words."""
        if self.vocabulary is None:
            return [" ".join(map(str, row)) for row in tokens.tolist()]
        return [self.vocabulary.decode(row) for row in tokens]


class Arrays(NamedTuple):
    """The part of a task that is on the device; the first two may have an axis of seeds in front."""

    train: Array
    heldout: Array
    oracle: oracle.OracleParams | None


class Keys(NamedTuple):
    """The streams of a run, all from its seed; of several runs, each with an axis of seeds in front."""

    init: Key
    data: Key
    train: Key
    evaluate: Key
    table: Key


def schedule(config: Config) -> list[Unit]:
    """The units of a whole run, in order (SPEC section 4)."""
    units = []
    for round_ in range(config.pretrain_rounds):
        done = round_ * config.mle_epochs
        units += [Unit("pretrain", "discriminator", done, False)] * config.pretrain_draws
        for epoch in range(config.mle_epochs):
            ends = round_ == config.pretrain_rounds - 1 and epoch == config.mle_epochs - 1
            units.append(Unit("pretrain", "mle", done + epoch + 1, epoch % config.eval_every == 0 or ends))
    if config.model != "leakgan":  # nothing leaks, so D need not be of any use until it judges
        done = config.pretrain_rounds * config.mle_epochs
        epochs = [unit for unit in units if unit.kind == "mle"]
        units = epochs + [Unit("pretrain", "discriminator", done, False)] * (len(units) - len(epochs))
    last = config.adversarial_iterations
    for iteration in range(1, last + 1):
        # Between iterations, so not after the last: that would show a supervised model for an adversarial one.
        interleave = config.interleave_every and iteration % config.interleave_every == 0 and iteration < last
        kinds = ["generator"] + ["discriminator"] * config.adversarial_draws + ["mle"] * bool(interleave)
        evaluate = iteration % config.eval_every == 0 or iteration == last
        scored = [False] * (len(kinds) - 1) + [evaluate]
        units += [Unit("adversarial", kind, iteration, end) for kind, end in zip(kinds, scored)]
    return units


def load_task(
    config: Config, seed: int, manual_dir: data.PathLike | None = None, data_dir: data.PathLike | None = None
) -> tuple[Config, Task]:
    """Makes or reads the data, and sets `vocab_size` to what it holds and `dataset` to its full name.

    Of the synthetic task every seed has sentences of its own, of text all have the same.

    `manual_dir` and `data_dir` are of a dataset, as in `corpora.load`; one that is prepared needs only `data_dir`.
    """
    if config.is_text:
        corpus = data.load_corpus(config, manual_dir, data_dir)
        dataset = corpus.source.get("dataset", "")
        config = dataclasses.replace(config, vocab_size=len(corpus.vocabulary), dataset=dataset)
        task = Task(jnp.array(corpus.train), jnp.array(corpus.heldout), None, corpus.vocabulary, corpus.source)
        return config, task._replace(
            train_sentences=corpus.train_sentences,
            heldout_sentences=corpus.heldout_sentences,
            test_sentences=corpus.test,
        )
    source = {}
    if config.oracle_file:
        params = oracle.load(config.oracle_file)
        source["oracle_sha256"] = data.digest(config.oracle_file)
        config = dataclasses.replace(config, vocab_size=params.embedding.shape[0])
    else:
        params = oracle.init(jax.random.key(config.oracle_seed), config.vocab_size, config.oracle_hidden)
    params = jax.tree.map(jnp.asarray, params)
    train, heldout = _draw_data(config, params, _keys([seed]).data)
    return config, Task(train, heldout, params, None, source)


def load_tasks(
    config: Config, seeds: Sequence[int], manual_dir: data.PathLike | None = None, data_dir: data.PathLike | None = None
) -> tuple[Config, Task]:
    """`load_task` of several seeds in one: in the synthetic task, `train` and `heldout` have an axis of seeds."""
    config, task = load_task(config, seeds[0], manual_dir, data_dir)
    if len(seeds) > 1 and task.oracle is not None:
        others = [_draw_data(config, task.oracle, _keys([seed]).data) for seed in seeds[1:]]
        train, heldout = map(jnp.stack, zip((task.train, task.heldout), *others))
        task = task._replace(train=train, heldout=heldout)
    return config, task


def evaluate(config: Config, task: Task, params: Params, key: Key, temperature: float):
    """Samples and scores at one temperature.

    Returns:
        The samples, `[eval_samples, T]`, and `nll_oracle`, `nll_gen`, `nll_div` in nats per token (`None` where
        one does not apply), `temperature`, `num_samples`, and `distinct`, the share of samples that differ.
    """
    return _scores(config, task.arrays, params, key, temperature)[0]


def train(
    config: Config,
    seeds: Sequence[int],
    out: Path,
    *,
    resume: bool,
    command: str,
    display,
    manual_dir: Path | None = None,
    data_dir: Path | None = None,
    mesh: str = "",
    debug_nans: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> int | None:
    """Runs the schedule in `out`, or what is left of it, and writes the report.

    Several seeds are trained side by side in one program, each as it would be alone but for rounding, in
    `rundir.directories(out, seeds)`; `out` then has a report of all. Of several processes each calls this with the
    same arguments; the first writes, and all take part in checkpoints.

    Args:
        display: told of progress; see `leakgan_jax.display.Display`.
        manual_dir: of a dataset that is not prepared yet, as in `corpora.load`.
        data_dir: the same; a run that is resumed has its own.
        mesh: the devices that share the run, as in `parallel.make_mesh`.
        debug_nans: if a number goes wrong, repeats the unit one operation at a time to find which it was.
        checkpoint_seconds: between checkpoints, at most `CHECKPOINT_SECONDS`; the best state of that time is saved with
            the newest.
    Returns:
        None when the run is complete, or the number of the signal that stopped it after a unit.
    Raises:
        RunError if a number is not finite, after saving the state before that unit; and for what cannot be resumed.
    """
    if not 0 <= checkpoint_seconds <= CHECKPOINT_SECONDS:
        right = f"it must be from 0 to {CHECKPOINT_SECONDS:.0f}"
        raise ConfigError(f"checkpoint-seconds is {checkpoint_seconds}; {right}")
    if resume:
        rundir.require_whole(out)
        data_dir = data_dir or rundir.open_run(out, several=True)[2]["data_dir"] or None
    devices, left_out = parallel.make_mesh(config.batch_size, len(seeds), mesh)
    parallel.require_same(  # before anything that all must take part in
        {"settings": config.to_json(), "seeds": list(seeds), "resume": resume, "mesh": dict(devices.shape)}
    )
    if config.dataset and jax.process_count() > 1:  # prepared by one process, then read by all
        parallel.on_first(lambda: data.load_corpus(config, manual_dir, data_dir))
    config, task = load_tasks(config, seeds, manual_dir, data_dir)
    parallel.require_same({"data": task.source, "versions": rundir.versions()})
    facts = rundir.Facts(task.source, task.vocabulary, rundir.environment(devices))
    units, keys = schedule(config), parallel.place(devices, _keys(seeds), _seeds_axis(seeds))
    places = rundir.directories(out, seeds)
    with contextlib.ExitStack() as stack, _Signals() as signals:
        opened = rundir.open_directories(config, seeds, facts, out, resume, command, data_dir)
        parallel.on_first(lambda: stack.enter_context(opened))
        if resume and (changed := rundir.changes(out, facts.environment)):
            display.message(f"note: rounding may differ from before, as this did change: {', '.join(changed)}")
        stack.enter_context(jax.set_mesh(devices) if devices.size > 1 else contextlib.nullcontext())
        checkpoints = [
            stack.enter_context(Checkpoints(place, create=True, identity=identity(config, seed, task.source)))
            for place, seed in zip(places, seeds, strict=True)
        ]
        state, done, extras = _restore_or_init(config, _keys(seeds), places, checkpoints, display)
        state = parallel.place(devices, state, _seeds_axis(seeds))
        lines: list[list[dict[str, Any]]] = [[] for _ in seeds]

        def keep_lines():
            lines[:] = [_keep_lines(place, done, extra, display) for place, extra in zip(places, extras)]

        parallel.on_first(keep_lines)
        arrays = _place_arrays(devices, task.arrays)
        running = _Running(config, seeds, out, places, task, devices, arrays, keys, checkpoints, extras, lines, display)
        last_mle = next((u for u in reversed(units) if u.phase == "pretrain" and u.kind == "mle"), None)
        clock = time.monotonic() - extras[0].get("seconds", 0.0)
        saved_at = drawn_at = time.monotonic()
        display.start(config, units, done, task, seeds)
        if devices.size > 1 or left_out:
            display.message(_describe_mesh(devices, left_out))
        for index in range(done, len(units)):
            state, new, seconds = running.do(units[index], index, state, debug_nans)
            if units[index] == last_mle:
                for extra, rows in zip(extras, running.table_rows(state.params), strict=True):
                    extra["mle_last"] = rows
            best = running.record(new, round(time.monotonic() - clock, 3))
            display.update(index + 1, new, seconds)
            stop, (due, *best) = parallel.agree(
                signals.caught, time.monotonic() - saved_at >= checkpoint_seconds, *best
            )
            running.keep_best(index + 1, state, units[index].phase, best)
            if due or stop or index + 1 == len(units):
                running.save(index + 1, state)
                saved_at = time.monotonic()
            if stop or time.monotonic() - drawn_at >= CHECKPOINT_SECONDS:
                running.draw_curves()
                drawn_at = time.monotonic()
            if stop:
                return stop
        display.message("scoring the table")
        table = running.mle_table() if last_mle else {}
        stop, _ = parallel.agree(signals.caught)
        if config.adversarial_iterations and not stop:
            table[config.title] = running.table_rows(state.params)
        stop, _ = parallel.agree(signals.caught)
        if stop:
            return stop
        running.write_reports(table)
    return None


class _Snapshot(NamedTuple):
    """A state that is to be saved, with what checkpoints remember beside it."""

    step: int  # units done
    state: GanState
    extras: list[dict[str, Any]]
    metrics: list[dict[str, float]]  # by which the best is told
    best_of: frozenset[tuple[str, int]]  # phase and place of the seeds that have their lowest NLL_gen so far in it


@dataclasses.dataclass
class _Running:
    """A run that trains. Lists have an item a seed; of several processes the first alone has lines and writes them."""

    config: Config
    seeds: Sequence[int]
    out: Path
    places: Sequence[Path]
    task: Task
    devices: jax.sharding.Mesh
    arrays: Arrays
    keys: Keys
    checkpoints: Sequence[Checkpoints]
    extras: list[dict[str, Any]]  # what checkpoints remember beside the state
    lines: list[list[dict[str, Any]]]  # of metrics.jsonl, of all units done
    display: Any
    collapsed: set[Path] = dataclasses.field(default_factory=set)  # by their last evaluation
    _best: _Snapshot | None = None  # since the last checkpoint

    def do(
        self, unit: Unit, index: int, before: GanState, debug_nans: bool
    ) -> tuple[GanState, list[dict[str, Any]], float]:
        """One unit: the state after it, its metric lines, and its seconds without its evaluation.

        Raises RunError if a number is not finite, after saving the state before it.
        """
        config, arrays = self.config, self.arrays
        began = time.monotonic()
        key = _fold_in(self.keys.train, index)
        state, metrics = _run_unit(config, unit.kind, before, arrays, key)
        about = {"phase": unit.phase, "step": unit.step, "unit": index + 1, "kind": unit.kind}
        new = [about | of_seed for of_seed in _by_seed(jax.device_get(metrics))]
        seconds = time.monotonic() - began
        problems = [health.problem(line, self.shapes) for line in new]
        if unit.evaluate and not any(problems):
            evaluate_key = _fold_in(self.keys.evaluate, index)
            scored = _scores(config, arrays, state.params, evaluate_key, config.eval_temperature)
            new = [line | scores for line, (_, scores) in zip(new, scored, strict=True)]
            problems = [health.problem(line, self.shapes) for line in new]
        for place, wrong in zip(self.places, problems, strict=True):
            if wrong:
                problem = f"stopped in unit {index + 1} ({unit.phase}, {unit.kind}, {unit.step}) of {place}: {wrong}"
                found = ""
                if debug_nans:
                    again = jax.random.clone(key), _fold_in(jax.random.clone(self.keys.evaluate), index)
                    found = _find_operation(config, unit, before, arrays, *again)
                self._give_up(problem, found, index, before)
        if unit.evaluate and parallel.is_first():
            for place, (tokens, _) in zip(self.places, scored, strict=True):
                write(place / "samples.txt", "\n".join(self.task.decode(tokens)) + "\n")
            self._tell_collapse(new)
        return state, new, seconds

    def _give_up(self, problem: str, found: str, step: int, state: GanState) -> NoReturn:
        """Saves the state of before, and raises RunError; `found` is the operation, if it was looked for."""
        problem += f"; {found}" if found else ""
        try:
            self.save(step, state)
        except CheckpointError as error:
            raise RunError(f"{problem}; and {error}") from None
        more = "" if found else f"; to find the operation: leakgan train --out {self.out} --resume --debug-nans"
        raise RunError(f"{problem}; checkpoint {step} has the state before it{more}")

    def _tell_collapse(self, new: list[dict[str, Any]]) -> None:
        """Warns of each seed that collapsed since its last evaluation."""
        warnings = {place: health.collapse(line) for place, line in zip(self.places, new, strict=True)}
        for place, warning in warnings.items():
            if warning and place not in self.collapsed:
                self.display.message(f"{warning} ({place.name}, {new[0]['phase']} {new[0]['step']})")
        self.collapsed = {place for place, warning in warnings.items() if warning}

    def record(self, new: list[dict[str, Any]], seconds: float) -> list[bool]:
        """Adds a unit's metric lines to those there are; of each seed, whether it has its lowest NLL_gen so far."""
        best = []
        for place, extra, own, line in zip(self.places, self.extras, self.lines, new, strict=True):
            extra["seconds"] = line["seconds"] = seconds
            own.append(line)
            extra["metrics_sha256"] = rundir.lines_digest([line], extra.get("metrics_sha256", ""))
            if parallel.is_first():
                rundir.append(place / "metrics.jsonl", line)
            best.append("nll_gen" in line and line["nll_gen"] <= extra.get("lowest_nll_gen", math.inf))
            if best[-1]:
                extra["lowest_nll_gen"] = line["nll_gen"]
        return best

    def keep_best(self, step: int, state: GanState, phase: str, best: list[bool]) -> None:
        """Keeps a state in which some seeds are the best so far until the next `save`."""
        best_of = frozenset((phase, i) for i, is_best in enumerate(best) if is_best)
        if not best_of:
            return
        if self._best and not self._best.best_of <= best_of:  # another seed's, or of pre-training, whose best is wanted
            self._write(self._best)
        self._best = self._snapshot(step, state, best_of)

    def save(self, step: int, state: GanState) -> None:
        """Saves the state after `step` units, and the best one since it was last called."""
        best, self._best = self._best, None
        if best and best.step < step:
            self._write(best)
        self._write(self._snapshot(step, state))

    def _snapshot(self, step: int, state: GanState, best_of: frozenset = frozenset()) -> _Snapshot:
        metrics = []
        for lines in self.lines:
            line = lines[-1] if lines else {}
            scored = (
                {"nll_gen": line["nll_gen"], "pretrain": float(line["phase"] == "pretrain")}
                if "nll_gen" in line
                else {}
            )
            metrics.append(scored)
        return _Snapshot(step, state, [dict(extra) for extra in self.extras], metrics, best_of)

    def _write(self, snapshot: _Snapshot) -> None:
        """Saves each seed's part of it."""
        leaves, tree = jax.tree.flatten(parallel.fetch(snapshot.state))
        for i, checkpoints in enumerate(self.checkpoints):
            own = leaves if len(self.checkpoints) == 1 else [leaf[i] for leaf in leaves]
            checkpoints.save(snapshot.step, jax.tree.unflatten(tree, own), snapshot.extras[i], snapshot.metrics[i])

    def table_rows(self, params: Params) -> list[list[dict[str, Any]]]:
        return _table_rows(self.config, self.arrays, params, self.keys.table)

    def mle_table(self) -> dict[str, list[list[dict[str, Any]]]]:
        """The report's rows of the models of pre-training, by model and seed."""
        table = {}
        try:
            best = [of_seed.restore(self.shapes, "mle").state.params for of_seed in self.checkpoints]
            params = parallel.place(self.devices, _stack(best), _seeds_axis(self.seeds))
            table["MLE, best NLL_gen"] = self.table_rows(params)
        except CheckpointError as error:
            self.display.message(f"{error}; the table has no row for the best MLE model")
        return table | {"MLE, last epoch": [extra["mle_last"] for extra in self.extras]}

    @functools.cached_property
    def shapes(self) -> GanState:
        return target(self.config)

    @functools.cached_property
    def real_nlls(self) -> list[float | None]:
        return _real_nlls(self.task, len(self.seeds))  # not before the first step, which users await

    def draw_curves(self) -> None:
        from leakgan_jax import report  # matplotlib: not for those who only sample

        if parallel.is_first():
            report.draw_curves(self.out / "curves.png", self.config, self.lines, self.real_nlls)

    def write_reports(self, table: dict[str, list[list[dict[str, Any]]]]) -> None:
        """The report and curves of the run, and of each of several seeds."""
        from leakgan_jax import report

        if not parallel.is_first():
            return
        self.draw_curves()
        config, lost = self.config, [extra.get("lines_lost") for extra in self.extras]
        record = rundir.open_run(self.out, several=True)[2]
        report.write_report(self.out, config, table, self.real_nlls, record, self.lines[0], lost)
        for i, place in enumerate(self.places if len(self.seeds) > 1 else ()):
            own = {name: [of_seeds[i]] for name, of_seeds in table.items()}
            real, record = [self.real_nlls[i]], rundir.open_run(place)[2]
            report.draw_curves(place / "curves.png", config, [self.lines[i]], real)
            report.write_report(place, config, own, real, record, self.lines[i], [lost[i]])


def open_task(out: Path) -> tuple[Config, Task]:
    """The data of the run in `out`, made or read again. Raises RunError if it has changed since."""
    config, seed, record = rundir.open_run(out)
    place = record["data_dir"] or None
    if config.dataset:
        from leakgan_jax import corpora

        if not corpora.is_prepared(config.dataset, place):
            where = f"{config.dataset} is not prepared in {corpora.place(place)}"
            raise RunError(f"{out}: {where}; put it back, or resume the run with its new --data-dir")
    config, task = load_task(config, seed, data_dir=place)
    if task.source != record["data"]:
        raise RunError(f"{out}: its data has changed since it was trained; restore it")
    rundir.require_vocabulary(out, task.vocabulary)
    return config, task


def load_params(out: Path, config: Config, which: Which, on_skip: Callable[[str], None]) -> Params:
    """The parameters of a checkpoint of the run in `out`; `on_skip` is told of damaged ones passed over."""
    with Checkpoints(out, create=False) as checkpoints:
        restored = checkpoints.restore(target(config), which, on_skip)
    _require_of_run(config, out, restored)
    return restored.state.params


def load_models(out: Path, config: Config, on_skip: Callable[[str], None]) -> dict[str, Params]:
    """The models of the run in `out` that are compared, by the names of the report's rows: MLE first, newest last.

    `on_skip` is told, in a line, of damaged checkpoints and of a missing MLE model.
    """
    units, shapes = schedule(config), target(config)
    with Checkpoints(out, create=False) as checkpoints:
        newest = checkpoints.restore(shapes, on_skip=on_skip)
        _require_of_run(config, out, newest)
        models, adversarial = {}, any(unit.phase == "adversarial" for unit in units[: newest.step])
        try:
            best = checkpoints.restore(shapes, "mle")
            models["MLE, best NLL_gen"] = best.state.params
            if newest.step == best.step:
                return models
        except CheckpointError as error:
            on_skip(f"{error}; there is no MLE model to compare with")
    return models | {config.title if adversarial else "MLE, last epoch": newest.state.params}


def read_heldout(
    config: Config, vocabulary: data.Vocabulary | None, path: Path, on_doubt: Callable[[str], None]
) -> np.ndarray:
    """Sentences to score: words where the run has a vocabulary, ids otherwise; `[n, T]` int32.

    `on_doubt` is told, in a line, of sentences left out as too long and of words that are mostly unknown.
    """
    sentences = data.read_sentences(path, config.lowercase, config.tokenizer)
    if vocabulary is not None:
        return encode_heldout(config, vocabulary, sentences, str(path), on_doubt)
    try:
        rows = np.array([[int(word) for word in words] for words in sentences], np.int32)
        if rows.shape[1:] != (config.length,) or rows.min() < 0 or rows.max() >= config.vocab_size:
            raise ValueError
    except (ValueError, OverflowError):
        right = f"{config.length} ids from 0 to {config.vocab_size - 1} a line, as this run has no words"
        raise data.DataError(f"{path}: not sentences of this run; give {right}") from None
    return rows


def encode_heldout(
    config: Config,
    vocabulary: data.Vocabulary,
    sentences: Sequence[Sequence[str]],
    name: str,
    on_doubt: Callable[[str], None],
) -> np.ndarray:
    """Words to score as `[n, T]` int32, without the sentences that are too long; `on_doubt` as in `read_heldout`.

    Raises `DataError`, which names `name`, if none fits.
    """
    kept = [words for words in sentences if len(words) < config.length]
    if not kept:
        raise data.DataError(f"{name}: every sentence is longer than the run's {config.length - 1} words")
    if out := len(sentences) - len(kept):
        on_doubt(
            f"note: {out:,} of {len(sentences):,} sentences of {name} are longer than the run's and left out of NLLs"
        )
    types = {word for words in kept for word in words}
    if (unknown := vocabulary.unknown([list(types)])) > 0.5:
        on_doubt(f"warning: the run knows only {1 - unknown:.0%} of the different words of {name}; see its tokens")
    return data.encode_rows(kept, vocabulary, config.length)


def read_prefix(config: Config, vocabulary: data.Vocabulary | None, text: str) -> list[int]:
    """The ids of the words that sentences are to begin with. Raises RunError if the run cannot continue them."""
    words = data.tokenize(text, config.tokenizer, config.lowercase)
    if not words:
        raise RunError(f"prefix is {text!r}; give at least one word, or no prefix")
    known = map(str, range(config.vocab_size)) if vocabulary is None else vocabulary.words
    ids = {word: i for i, word in enumerate(known) if i != config.end_id}
    if unknown := [word for word in dict.fromkeys(words) if word not in ids]:
        ours = f"ids from 0 to {config.vocab_size - 1}" if vocabulary is None else "words of its vocabulary.json"
        raise RunError(f"prefix has {', '.join(map(repr, unknown))}, unknown to this run; give {ours}")
    if len(words) >= config.length:
        raise RunError(
            f"prefix {text!r} has {len(words)} words; give at most {config.length - 1}, one less than length"
        )
    return [ids[word] for word in words]


def stream_samples(
    config: Config,
    params: Params,
    seed: int,
    num: int,
    temperature: float,
    prefix: Sequence[int] = (),
    greedy: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`num` sentences that begin with `prefix`, a batch at a time: tokens and log-probabilities, `[n, T]` each.

    Sentence `i` draws from `fold_in(key of the seed, i)`, and every batch is computed whole, so a sentence depends
    neither on `num` nor, but for rounding, on the size of the batches.
    """
    key, batch = jax.random.key(seed), 1 if greedy else min(_STREAM_BATCH, config.sample_batch)
    given = np.zeros((batch, config.length), np.int32)
    given[:, : len(prefix)] = prefix
    for start in range(0, num, batch):
        tokens, log_probs = _complete(config, params, key, start, given, len(prefix), temperature, greedy)
        yield np.asarray(tokens)[: num - start], np.asarray(log_probs)[: num - start]


def work(config: Config, task: Task, kind: str) -> float:
    """Rough cost of a unit in sentences passed through a network, to guess the time of kinds not yet seen."""
    if kind == "mle":
        return 3.0 * task.train.shape[-2]
    if kind == "discriminator":
        return config.draw_size * (1.0 + 2.0 * config.discriminator_epochs)
    if kind == "evaluate":
        return float(config.eval_samples + task.heldout.shape[-2])
    return config.generator_steps * config.batch_size * (4.0 + config.completions * (config.num_blocks - 1) / 2)


@functools.partial(jax.jit, static_argnums=0)
def _draw_data(config: Config, params: oracle.OracleParams, key: Key) -> tuple[Array, Array]:
    """The fixed training set and the held-out sentences of the synthetic task."""
    train_key, heldout_key = jax.random.split(key)
    train = oracle.sample(params, train_key, config.num_train, config.length)
    return train, oracle.sample(params, heldout_key, config.num_heldout, config.length)


@functools.partial(jax.jit, static_argnums=(0, 7))
def _complete(config: Config, params: Params, key: Key, start, given: Array, num_given, temperature, greedy: bool):
    """Sentences `start`, `start + 1`, ... of the stream of `key`."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(start + jnp.arange(given.shape[0]))
    completed = rollout.complete(config, params, keys, given, num_given, temperature, greedy)
    return completed.tokens, completed.log_probs


# Compiled once a run and kind of unit: the config is static and shapes do not change. The state is not donated: that
# of before the unit is what is saved if a number goes wrong in it.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_unit(config: Config, kind: str, state: GanState, arrays: Arrays, key: Key):
    """One unit; where `key` has an axis of seeds in front, so has everything that differs between seeds."""

    def one(state, arrays, key):
        state, metrics = _unit(config, kind, state, arrays, key)
        return parallel.replicate(state), metrics | health.state(state)

    with jax.default_matmul_precision(config.matmul_precision):
        state, metrics = _over_seeds(one, state, arrays, key)
    return state, parallel.replicate(metrics)


def _unit(config: Config, kind: str, state: GanState, arrays: Arrays, key: Key):
    if kind == "mle":
        return training.mle_epoch(config, state, arrays.train, key)
    if kind == "generator":
        return training.generator_steps(config, state, arrays.train, key)
    real_key, train_key = jax.random.split(key)
    if arrays.oracle is not None:  # real sentences without end, as released
        real = oracle.sample(arrays.oracle, real_key, config.draw_size, config.length)
    else:
        num, few = arrays.train.shape[0], arrays.train.shape[0] < config.draw_size
        real = arrays.train[jax.random.choice(real_key, num, (config.draw_size,), replace=few)]
    return training.discriminator_draw(config, state, real, train_key)


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(config: Config, params: Params, arrays: Arrays, key: Key, temperature):
    def one(params, arrays, key):
        tokens, metrics = training.evaluate(config, params, arrays.heldout, key, temperature)
        if arrays.oracle is not None:
            metrics["nll_oracle"] = oracle.nll(arrays.oracle, tokens)
        return tokens, metrics

    return parallel.replicate(_over_seeds(one, params, arrays, key))


def _over_seeds(function, tree: Any, arrays: Arrays, key: Key):
    """`function(tree, arrays, key)`, of each seed where `key` has an axis of them."""
    if not key.ndim:
        return function(tree, arrays, key)
    axis = None if jax.sharding.get_abstract_mesh().empty else parallel.SEEDS
    return jax.vmap(function, (0, _seed_axes(arrays), 0), spmd_axis_name=axis)(tree, arrays, key)


def _seed_axes(arrays: Arrays) -> Any:
    """For `vmap` over seeds: each has sentences of its own in the synthetic task, and all have the same text."""
    axis: Any = 0 if arrays.train.ndim == 3 else None
    return Arrays(axis, axis, None)


def _scores(config: Config, arrays: Arrays, params: Params, key: Key, temperature: float) -> list[tuple[Any, dict]]:
    """What `evaluate` returns, of each seed."""
    tokens, metrics = jax.device_get(_evaluate(config, params, arrays, key, temperature))
    scored = []
    for own, scores in zip(tokens.reshape(-1, *tokens.shape[-2:]), _by_seed(metrics), strict=True):
        distinct = len(np.unique(own, axis=0)) / len(own)
        shared = {"temperature": temperature, "num_samples": len(own), "distinct": distinct}
        scored.append((own, {"nll_oracle": None, **scores, **shared}))
    return scored


def _temperatures(config: Config) -> list[float]:
    return sorted({*TABLE_TEMPERATURES, config.eval_temperature}, reverse=True)


def _table_rows(config: Config, arrays: Arrays, params: Params, key: Key) -> list[list[dict[str, Any]]]:
    """The rows of the final table for a model: for each seed, one a temperature."""
    # The same draws for every row, so that rows differ by model and temperature alone.
    scored = [_scores(config, arrays, params, jax.random.clone(key), alpha) for alpha in _temperatures(config)]
    for _, scores in (of_seed for of_seeds in scored for of_seed in of_seeds):
        if wrong := health.problem(dict(scores), None):
            raise RunError(f"a row of the table is not finite: at temperature {scores['temperature']:.3g} {wrong}")
    return [[scores for _, scores in of_seed] for of_seed in zip(*scored, strict=True)]


def _real_nlls(task: Task, num_seeds: int) -> list[float | None]:
    """NLL_oracle of each seed's held-out sentences."""
    if task.oracle is None:
        return [None] * num_seeds
    heldout = task.heldout.reshape(num_seeds, *task.heldout.shape[-2:])
    return [float(jax.jit(oracle.nll)(task.oracle, own)) for own in heldout]


def _keys(seeds: Sequence[int]) -> Keys:
    """The keys of one seed; of several, with an axis of seeds."""
    keys = [jax.random.split(jax.random.key(seed), len(Keys._fields)) for seed in seeds]
    return Keys(*keys[0]) if len(seeds) == 1 else Keys(*jnp.stack(keys, axis=1))


def _fold_in(key: Key, number: int) -> Key:
    return jax.vmap(jax.random.fold_in, (0, None))(key, number) if key.ndim else jax.random.fold_in(key, number)


def _by_seed(metrics: dict[str, np.ndarray]) -> list[dict[str, float]]:
    """Numbers, or arrays of one for each seed, as numbers for each seed."""
    names = {name: np.atleast_1d(values) for name, values in metrics.items()}
    return [dict(zip(names, map(float, values))) for values in zip(*names.values(), strict=True)]


def _stack(trees: Sequence[Any]) -> Any:
    """Trees of one seed each as one with an axis of seeds, on the host; a single one as it is."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _seeds_axis(seeds: Sequence[int]) -> str | None:
    """The axis of the mesh that what differs between seeds is divided over."""
    return parallel.SEEDS if len(seeds) > 1 else None


def _place_arrays(devices: jax.sharding.Mesh, arrays: Arrays) -> Arrays:
    """The data where the run is: sentences of each seed beside it, and text, which all share, on every device."""
    axis = parallel.SEEDS if arrays.train.ndim == 3 else None
    train, heldout = parallel.place(devices, (arrays.train, arrays.heldout), axis)
    return Arrays(train, heldout, parallel.place(devices, arrays.oracle))


def _describe_mesh(devices: jax.sharding.Mesh, left_out: int) -> str:
    seeds, rows = devices.devices.shape
    shared = [f"{seeds} groups of seeds"] * (seeds > 1) + [f"{rows} shares of every batch"] * (rows > 1)
    text = f"{devices.size} devices: {', each with '.join(shared)}" if shared else "1 device"
    if jax.process_count() > 1:
        text += f", in {jax.process_count()} processes"
    return text + (f"; {left_out} more are left out, as they do not divide batch_size evenly" if left_out else "")


def _find_operation(config: Config, unit: Unit, state: GanState, arrays: Arrays, key: Key, evaluate_key: Key) -> str:
    """Repeats a unit one operation at a time; says which first made a NaN, or else an infinity, and where."""

    def one(state, arrays, key):
        return _unit(config, unit.kind, state, arrays, key)

    def score(params, arrays, key):
        return training.evaluate(config, params, arrays.heldout, key, config.eval_temperature)

    for check in (jax.debug_nans, jax.debug_infs):
        try:
            with jax.disable_jit(), check(True), jax.default_matmul_precision(config.matmul_precision):
                after, _ = _over_seeds(one, state, arrays, jax.random.clone(key))
                if unit.evaluate:
                    _over_seeds(score, after.params, arrays, jax.random.clone(evaluate_key))
        except FloatingPointError as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_HERE)]
            at = f" at {Path(ours[-1].filename).relative_to(_HERE)}:{ours[-1].lineno}: {ours[-1].line}" if ours else ""
            return f"{str(error).splitlines()[0].rstrip('.')}{at}"
    return "one operation at a time it does not happen"


def identity(config: Config, seed: int, source: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint is of; one of other settings, another seed or other data (`Task.source`) is never loaded."""
    return {"seed": seed, "data": source, "config": config.to_json()}


def target(config: Config) -> GanState:
    """The shapes of a run's state, for `Checkpoints.restore`."""
    return jax.eval_shape(functools.partial(training.init, config), jax.random.key(0))


def _restore_or_init(
    config: Config, keys: Keys, places: Sequence[Path], checkpoints: Sequence[Checkpoints], display
) -> tuple[GanState, int, list[dict]]:
    """The state, the units done and what else each seed's checkpoint holds."""
    steps = [of_seed.steps() for of_seed in checkpoints]
    _, [anew] = parallel.agree(None, not all(steps))
    if anew:  # killed before the first was saved, or some seeds' first
        if any(len(of_seed) > 1 for of_seed in steps):
            raise RunError(
                f"{places[steps.index([])]} has lost its checkpoints; put them back, or choose another --out"
            )
        for place in places:
            *before, _ = [0.0, 0.0, *(line["seconds"] for line in rundir.read_lines(place / "metrics.jsonl", 2**31))]
            if before[-1] > 2 * CHECKPOINT_SECONDS:  # and went on for a unit, so there was one
                right = "put them back, or choose another --out"
                raise RunError(f"{place} has lost its checkpoints, {before[-1]:.0f} s of training; {right}")
        if any((place / "metrics.jsonl").exists() for place in places):
            display.message("there is no checkpoint yet: beginning anew")
        for of_seed in checkpoints:  # those that some seeds had already; or they would look like more than a first
            of_seed.clear()
        init = jax.jit(functools.partial(training.init, config))
        return jax.vmap(init)(keys.init) if keys.init.ndim else init(keys.init), 0, [{} for _ in checkpoints]
    most = None
    while True:  # a kill while they were being saved left some seeds a checkpoint ahead
        restored = [of_seed.restore(target(config), on_skip=display.message, most=most) for of_seed in checkpoints]
        if len({of_seed.step for of_seed in restored}) == 1:
            break
        most = min(of_seed.step for of_seed in restored)
        display.message(f"not every seed has a later checkpoint than that of unit {most}: all go on from there")
    for place, found in zip(places, restored, strict=True):
        _require_of_run(config, place, found)

    def look_through():
        for of_seed in checkpoints:
            of_seed.look_through(target(config), display.message, restored[0].step)

    parallel.on_first(look_through)
    return _stack([of_seed.state for of_seed in restored]), restored[0].step, [of_seed.extra for of_seed in restored]


def _require_of_run(config: Config, place: Path, restored: Restored) -> None:
    """Raises RunError unless the step is one of the schedule and `extra` what a run saves with it.

    Whole as it is, a checkpoint may still be a stranger's.
    """
    units, extra = schedule(config), restored.extra
    number, lost, rows = data.is_number, extra.get("lines_lost", ""), extra.get("mle_last", [])
    after_mle = any(u.phase == "pretrain" and u.kind == "mle" for u in units) and not any(
        u.phase == "pretrain" and u.kind == "mle" for u in units[restored.step :]
    )
    right = {
        "step": restored.step <= len(units),
        "seconds": number(seconds := extra.get("seconds", 0.0)) and 0 <= seconds < 1e12,
        "lowest_nll_gen": number(extra.get("lowest_nll_gen", 0.0)),
        "metrics_sha256": bool(re.fullmatch("([0-9a-f]{64})?", str(extra.get("metrics_sha256", "")))),
        "lines_lost": isinstance(lost, str) and is_printable(lost) and len(lost) < 10_000,
        "mle_last": _are_rows(config, rows) if after_mle else rows == [],
    }
    if wrong := [name for name, holds in right.items() if not holds]:
        where = f"{place}: checkpoint {restored.step} of {len(units)} units"
        raise RunError(f"{where}: {wrong[0]} is not what `train` saves; the run was changed, restore it")


def _are_rows(config: Config, rows: Any) -> bool:
    """Whether they are what `_table_rows` makes for a model and seed."""
    names = {"nll_oracle", "nll_gen", "nll_div", "temperature", "num_samples", "distinct"}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() == names for row in rows):
        return False
    values = [(name, value) for row in rows for name, value in row.items()]
    numbers = all(data.is_number(value) or (value is None and name == "nll_oracle") for name, value in values)
    return numbers and [row["temperature"] for row in rows] == _temperatures(config)


def _keep_lines(place: Path, done: int, extra: dict[str, Any], display) -> list[dict[str, Any]]:
    """The metric lines of the units done; `extra` remembers if they are not what was written, for the report."""

    def lost(line: str) -> None:
        extra["lines_lost"] = printable(line)
        display.message(line)

    lines = rundir.keep_lines(place / "metrics.jsonl", done, extra.get("metrics_sha256"), lost)
    extra["metrics_sha256"] = rundir.lines_digest(lines)
    return lines


class _Signals:
    """SIGINT and SIGTERM end the run after the unit in hand; a second one ends it at once."""

    def __init__(self):
        self.caught: int | None = None

    def __enter__(self) -> "_Signals":
        self._before = {s: signal.signal(s, self._catch) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, _frame) -> None:
        if self.caught:
            raise KeyboardInterrupt
        self.caught = number
