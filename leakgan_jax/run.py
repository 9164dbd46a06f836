"""One run in one directory: the schedule, the loop over it, resuming, and what a finished run is asked later.

A run is a list of units, each one jitted call on device-resident data. Unit `u` draws from `fold_in(key, u)` and
from nothing else, so the state and the count of units done are all that resuming needs, and a resumed run
continues to the last bit as if it had never stopped.
"""

import dataclasses
import functools
import json
import math
import platform
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leakgan_jax import data, oracle, rollout, training
from leakgan_jax.checkpoint import CheckpointError, Checkpoints, Which
from leakgan_jax.config import Config, ConfigError, differences
from leakgan_jax.data import write
from leakgan_jax.types import Array, GanState, Key, Params

TABLE_TEMPERATURES = (1.0, 1 / 1.5)  # the second is that of the published numbers
_RECORD = {
    "config": dict, "seed": int, "data": dict, "data_dir": str, "command": str, "versions": dict, "device": str
}  # fmt: skip
CHECKPOINT_SECONDS = 60.0  # at most so long, plus a unit, is lost to a kill
_STREAM_BATCH = 64  # sentences; the first appear soon, and a small --num is not much waste


class RunError(ValueError):
    """A run directory that cannot be used as asked; one line that names it and what would be right."""


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

    def decode(self, tokens: np.ndarray) -> list[str]:
        """One line a sentence: words, or ids where there are no words."""
        if self.vocabulary is None:
            return [" ".join(map(str, row)) for row in tokens.tolist()]
        return [self.vocabulary.decode(row) for row in tokens]


class Keys(NamedTuple):
    """The streams of a run, all from its seed."""

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
    last = config.adversarial_iterations
    for iteration in range(1, last + 1):
        # Between iterations, so not after the last: that would show a supervised model for an adversarial one.
        interleave = config.interleave_every and iteration % config.interleave_every == 0 and iteration < last
        kinds = ["generator"] + ["discriminator"] * config.adversarial_draws + ["mle"] * bool(interleave)
        evaluate = iteration % config.eval_every == 0 or iteration == last
        ends = [False] * (len(kinds) - 1) + [evaluate]
        units += [Unit("adversarial", kind, iteration, end) for kind, end in zip(kinds, ends)]
    return units


def load_task(
    config: Config, seed: int, manual_dir: data.PathLike | None = None, data_dir: data.PathLike | None = None
) -> tuple[Config, Task]:
    """Makes or reads the data, and sets `vocab_size` to what it holds and `dataset` to its full name.

    `manual_dir` and `data_dir` are of a dataset, as in `corpora.load`; one that is prepared needs only `data_dir`.
    """
    if config.is_text:
        corpus = data.load_corpus(config, seed, manual_dir, data_dir)
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
    train, heldout = _draw_data(config, params, _keys(seed).data)
    return config, Task(train, heldout, params, None, source)


def evaluate(config: Config, task: Task, params: Params, key: Key, temperature: float):
    """Samples and scores at one temperature.

    Returns:
        The samples, `[eval_samples, T]`, and `nll_oracle`, `nll_gen`, `nll_div` in nats per token (`None` where
        one does not apply), `temperature`, `num_samples`, and `distinct`, the share of samples that differ.
    """
    tokens, metrics = jax.device_get(_evaluate(config, task.oracle, params, task.heldout, key, temperature))
    distinct = len(np.unique(tokens, axis=0)) / len(tokens)
    shared = {"temperature": temperature, "num_samples": len(tokens), "distinct": distinct}
    return tokens, {"nll_oracle": None, **{name: float(value) for name, value in metrics.items()}, **shared}


def train(
    config: Config,
    seed: int,
    out: Path,
    *,
    resume: bool,
    command: str,
    display,
    manual_dir: Path | None = None,
    data_dir: Path | None = None,
) -> int | None:
    """Runs the schedule in `out`, or what is left of it, and writes the report.

    Args:
        display: told of progress; see `leakgan_jax.display.Display`.
        manual_dir: of a dataset that is not prepared yet, as in `corpora.load`.
        data_dir: the same; a run that is resumed has its own.
    Returns:
        None when the run is complete, or the number of the signal that stopped it after a unit.
    """
    from leakgan_jax import report  # matplotlib: not for those who only sample

    if resume and data_dir is None:
        data_dir = open_run(out)[2]["data_dir"] or None
    config, task = load_task(config, seed, manual_dir, data_dir)
    _open_directory(config, seed, task, out, resume, command, data_dir)
    units, keys, real_nll = schedule(config), _keys(seed), _real_nll(task)
    last_mle = next((u for u in reversed(units) if u.phase == "pretrain" and u.kind == "mle"), None)
    with Checkpoints(out, create=True) as checkpoints, _Signals() as signals:
        state, done, extra = _restore_or_init(config, keys, checkpoints, display)
        lines = _keep_lines(out / "metrics.jsonl", done)
        clock = time.monotonic() - extra.get("seconds", 0.0)
        saved_at = time.monotonic()
        display.start(config, units, done, task)
        for index in range(done, len(units)):
            unit = units[index]
            began = time.monotonic()
            state, metrics = _run_unit(config, task, state, unit, jax.random.fold_in(keys.train, index))
            line = {"phase": unit.phase, "step": unit.step, "unit": index + 1, "kind": unit.kind}
            line |= {name: float(value) for name, value in metrics.items()}
            unit_seconds, best = time.monotonic() - began, {}
            if unit.evaluate:
                key = jax.random.fold_in(keys.evaluate, index)
                tokens, scores = evaluate(config, task, state.params, key, config.eval_temperature)
                line |= scores
                best = {"nll_gen": scores["nll_gen"], "pretrain": float(unit.phase == "pretrain")}
            for name, value in line.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise RunError(f"{name} is {value} in unit {index + 1} of {out}; the checkpoint before is intact")
            if unit.evaluate:
                write(out / "samples.txt", "\n".join(task.decode(tokens)) + "\n")
            if unit == last_mle:
                extra["mle_last"] = _table_rows(config, task, state.params, keys.table)
            line["seconds"] = round(time.monotonic() - clock, 3)
            _append(out / "metrics.jsonl", line)
            lines.append(line)
            display.update(index + 1, line, unit_seconds)
            due = time.monotonic() - saved_at > CHECKPOINT_SECONDS
            if unit.evaluate or due or signals.caught or index + 1 == len(units):
                extra["seconds"] = line["seconds"]
                checkpoints.save(index + 1, state, extra, best)
                if due:
                    report.draw_curves(out / "curves.png", config, lines, real_nll)
                    saved_at = time.monotonic()
            if signals.caught:
                report.draw_curves(out / "curves.png", config, lines, real_nll)
                return signals.caught
        display.message("scoring the table")
        rows = {}
        if last_mle:
            rows["MLE, last epoch"] = extra["mle_last"]
            try:
                best_params = checkpoints.restore(_target(config), "mle").state.params
                rows["MLE, best NLL_gen"] = _table_rows(config, task, best_params, keys.table)
            except CheckpointError as error:
                display.message(f"{error}; the table has no row for the best MLE model")
        if config.adversarial_iterations and not signals.caught:
            rows["LeakGAN"] = _table_rows(config, task, state.params, keys.table)
        if signals.caught:
            return signals.caught
    report.draw_curves(out / "curves.png", config, lines, real_nll)
    report.write_report(out, config, rows, real_nll, json.loads((out / "config.json").read_text()), lines)
    return None


def open_run(out: Path) -> tuple[Config, int, dict[str, Any]]:
    """The config, the seed and the rest of `out/config.json`. Raises RunError if there is no readable run."""
    path = out / "config.json"
    try:
        record = {"data_dir": "", **json.loads(path.read_text(encoding="utf-8"))}  # the first runs had none
        if any(type(record[name]) is not kind for name, kind in _RECORD.items()):
            raise TypeError
        return Config.from_json(record["config"]), record["seed"], record
    except FileNotFoundError:
        raise RunError(f"{out} holds no run: there is no config.json; give a directory that `train` made") from None
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; give a directory that `train` made") from None
    except ConfigError as error:
        raise RunError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path} is damaged: it must be the JSON that `train` wrote") from None


def open_task(out: Path) -> tuple[Config, Task]:
    """The data of the run in `out`, made or read again. Raises RunError if it has changed since."""
    config, seed, record = open_run(out)
    place = record["data_dir"] or None
    if config.dataset:
        from leakgan_jax import corpora

        if not corpora.is_prepared(config.dataset, place):
            where = f"{config.dataset} is not prepared in {corpora.place(place)}"
            raise RunError(f"{out}: {where}; put it back, or resume the run with its new --data-dir")
    config, task = load_task(config, seed, data_dir=place)
    if task.source != record["data"]:
        raise RunError(f"{out}: its data has changed since it was trained; restore it")
    return config, task


def load_params(out: Path, config: Config, which: Which, on_skip: Callable[[str], None]) -> Params:
    """The parameters of a checkpoint of the run in `out`; `on_skip` is told of damaged ones passed over."""
    with Checkpoints(out, create=False) as checkpoints:
        return checkpoints.restore(_target(config), which, on_skip).state.params


def load_models(out: Path, config: Config, on_skip: Callable[[str], None]) -> dict[str, Params]:
    """The models of the run in `out` that are compared, by the names of the report's rows: MLE first, newest last.

    `on_skip` is told, in a line, of damaged checkpoints and of a missing MLE model.
    """
    units, target = schedule(config), _target(config)
    with Checkpoints(out, create=False) as checkpoints:
        newest = checkpoints.restore(target, on_skip=on_skip)
        models, adversarial = {}, units[newest.step - 1].phase == "adversarial"
        try:
            best = checkpoints.restore(target, "mle")
            models["MLE, best NLL_gen"] = best.state.params
            if newest.step == best.step:
                return models
        except CheckpointError as error:
            on_skip(f"{error}; there is no MLE model to compare with")
    return models | {"LeakGAN" if adversarial else "MLE, last epoch": newest.state.params}


def read_heldout(
    config: Config, vocabulary: data.Vocabulary | None, path: Path, on_doubt: Callable[[str], None]
) -> np.ndarray:
    """Sentences to score: words where the run has a vocabulary, ids otherwise; `[n, T]` int32.

    `on_doubt` is told, in a line, of sentences left out as too long and of words that are mostly unknown.
    """
    sentences = data.read_sentences(path, config.lowercase, config.tokenizer)
    if vocabulary is not None:
        kept = [words for words in sentences if len(words) < config.length]
        if not kept:
            raise data.DataError(f"{path}: every sentence is longer than the run's {config.length - 1} words")
        if out := len(sentences) - len(kept):
            on_doubt(f"note: {out:,} of {len(sentences):,} sentences of {path} are longer than the run's and left out")
        types = {word for words in kept for word in words}
        if (unknown := vocabulary.unknown([types])) > 0.5:
            on_doubt(f"warning: the run knows only {1 - unknown:.0%} of the different words of {path}; see its tokens")
        return data.encode_rows(kept, vocabulary, config.length)
    try:
        rows = np.array([[int(word) for word in words] for words in sentences], np.int32)
        if rows.shape[1:] != (config.length,) or rows.min() < 0 or rows.max() >= config.vocab_size:
            raise ValueError
    except (ValueError, OverflowError):
        right = f"{config.length} ids from 0 to {config.vocab_size - 1} a line, as this run has no words"
        raise data.DataError(f"{path}: not sentences of this run; give {right}") from None
    return rows


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
        return 3.0 * len(task.train)
    if kind == "discriminator":
        return config.draw_size * (1.0 + 2.0 * config.discriminator_epochs)
    if kind == "evaluate":
        return float(config.eval_samples + len(task.heldout))
    return config.generator_steps * config.batch_size * (4.0 + config.completions * (config.num_blocks - 1) / 2)


# Compiled once a run: the config is static, shapes do not change, states are donated.
_mle_epoch = jax.jit(training.mle_epoch, static_argnums=0, donate_argnums=1)
_generator_steps = jax.jit(training.generator_steps, static_argnums=0, donate_argnums=1)


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


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(config: Config, task_oracle, params: Params, heldout: Array, key: Key, temperature):
    tokens, metrics = training.evaluate(config, params, heldout, key, temperature)
    if task_oracle is not None:
        metrics["nll_oracle"] = oracle.nll(task_oracle, tokens)
    return tokens, metrics


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _discriminator_draw(config: Config, state: GanState, task_oracle, train_rows: Array, key: Key):
    real_key, train_key = jax.random.split(key)
    if task_oracle is not None:  # real sentences without end, as released
        real = oracle.sample(task_oracle, real_key, config.draw_size, config.length)
    else:
        num, few = train_rows.shape[0], train_rows.shape[0] < config.draw_size
        real = train_rows[jax.random.choice(real_key, num, (config.draw_size,), replace=few)]
    return training.discriminator_draw(config, state, real, train_key)


def _run_unit(config: Config, task: Task, state: GanState, unit: Unit, key: Key):
    if unit.kind == "mle":
        state, metrics = _mle_epoch(config, state, task.train, key)
    elif unit.kind == "generator":
        state, metrics = _generator_steps(config, state, key)
    else:
        state, metrics = _discriminator_draw(config, state, task.oracle, task.train, key)
    return state, jax.device_get(metrics)


def _table_rows(config: Config, task: Task, params: Params, key: Key) -> list[dict[str, Any]]:
    temperatures = sorted({*TABLE_TEMPERATURES, config.eval_temperature}, reverse=True)
    # The same draws for every row, so that rows differ by model and temperature alone.
    return [evaluate(config, task, params, jax.random.clone(key), alpha)[1] for alpha in temperatures]


def _real_nll(task: Task) -> float | None:
    return None if task.oracle is None else float(jax.jit(oracle.nll)(task.oracle, task.heldout))


def _keys(seed: int) -> Keys:
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def _target(config: Config) -> GanState:
    return jax.eval_shape(functools.partial(training.init, config), jax.random.key(0))


def _open_directory(
    config: Config, seed: int, task: Task, out: Path, resume: bool, command: str, data_dir: Path | None
) -> None:
    """Writes `config.json` in a new directory, or checks that the run in an old one is this one."""
    place = ""
    if config.dataset:
        from leakgan_jax import corpora

        place = str(corpora.place(data_dir))
    if resume:
        saved, saved_seed, record = open_run(out)
        changed = differences(saved, config)
        if saved_seed != seed:
            changed.append(f"seed ({saved_seed}, now {seed})")
        now = task.source
        changed += [f"{k} ({v}, now {now.get(k)})" for k, v in record["data"].items() if now.get(k) != v]
        if changed:
            raise RunError(f"{out} was made with other settings: {', '.join(changed)}; resume it with its own")
        if place != record["data_dir"]:  # moved
            write(out / "config.json", json.dumps({**record, "data_dir": place}, indent=2) + "\n")
        return
    try:
        # A run killed before its config.json was whole left nothing that matters.
        remains = {"vocabulary.json"}
        if out.exists() and any(p.name not in remains and not p.name.endswith(data.PARTIAL) for p in out.iterdir()):
            holds_run = (out / "config.json").exists()
            what = "already holds a run; add --resume to continue it or" if holds_run else "is not empty;"
            raise RunError(f"{out} {what} choose another --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: {error.strerror}; choose another --out") from None
    record = {
        "config": config.to_json(),
        "seed": seed,
        "data": task.source,
        "data_dir": place,
        "command": command,
        "versions": _versions(),
        "device": jax.devices()[0].device_kind,
    }
    if task.vocabulary is not None:
        task.vocabulary.save(out / "vocabulary.json")
    write(out / "config.json", json.dumps(record, indent=2) + "\n")  # last: with it the directory is a run


def _versions() -> dict[str, str]:
    from importlib import metadata

    packages = ("leakgan_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _restore_or_init(config: Config, keys: Keys, checkpoints: Checkpoints, display) -> tuple[GanState, int, dict]:
    if checkpoints.steps():
        restored = checkpoints.restore(_target(config), on_skip=display.message)
        return restored.state, restored.step, restored.extra
    return jax.jit(training.init, static_argnums=0)(config, keys.init), 0, {}


def _keep_lines(path: Path, done: int) -> list[dict[str, Any]]:
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


def _append(path: Path, line: dict[str, Any]) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:  # of a write, which does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from None


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
