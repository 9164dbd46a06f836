"""The command line, `leakgan train | sample | evaluate | metrics | inspect | presets`; nothing else reads argv."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from leakgan_jax.config import PRESET_SUMMARIES, TITLES, Config, ConfigError, nearest, preset, printable
from leakgan_jax.metrics import Rule

CACHE_BYTES = 2**30  # of compiled programs; those not used for longest go first

USAGE = """\
LeakGAN in JAX: text from a GAN whose discriminator leaks its features to the generator.

usage: leakgan COMMAND ...

  leakgan train [PRESET] --out DIR [--seed N] [--resume] [overrides]   train, every phase of the paper
  leakgan train [PRESET] --out DIR --seeds S                           S runs side by side: mean and spread
  leakgan train [PRESET] --out DIR --model seqgan                      a baseline: mle, seqgan, rankgan
  leakgan train coco --out DIR [--manual-dir DIR | --corpus FILE]      train on a dataset, or on text of your own
  leakgan sample DIR --num N [--temperature A] [--seed N] [--out FILE] draw sentences from a run
                 [--prefix "a man"] [--greedy] [--json]
  leakgan evaluate DIR [--references FILE] [--json]                    score a run: NLL_oracle, NLL_gen, NLL_div
  leakgan evaluate DIR --sweep                                         quality against diversity over temperatures
  leakgan metrics HYPOTHESES --references FILE [--train FILE] [--json] score any two text files: BLEU, self-BLEU, FED
  leakgan inspect DIR [--num N] [--out FOLDER]                         draw what the model sees while it writes
  leakgan presets                                                      list the presets and their settings

Start with:  leakgan train --out runs/first
Each command explains itself:  leakgan train --help
Compiled programs are kept in ~/.cache/leakgan_jax, at most 1 GB; JAX_COMPILATION_CACHE_DIR says another place,
JAX_ENABLE_COMPILATION_CACHE=0 keeps none."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Trains LeakGAN or a baseline: pre-training of the discriminator and generator, then adversarial training.

    Writes config.json, metrics.jsonl, checkpoints/, samples.txt, curves.png and report.md to the directory --out.
    Ctrl-C saves and stops; the same command with --resume goes on as if it had never stopped.
    """

    out: Path
    """Directory of the run; made if it is not there."""
    config: tyro.conf.OmitArgPrefixes[Config]
    seed: int = 0
    """Seed of everything random in the run."""
    seeds: int = 1
    """Independent runs to train side by side, of --seed and the seeds after it, each in a directory of its own:
    DIR/seed-N. DIR gets a report of all, with mean and spread."""
    resume: bool = False
    """Continue the run in --out. Its settings are kept; giving different ones is an error."""
    manual_dir: Path | None = None
    """Folder with the files of the dataset; those not there are downloaded. Not needed once it is prepared."""
    data_dir: Path | None = None
    """Where prepared datasets are kept. Default: TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    mesh: str = ""
    """Devices to share the run: data=8, or seeds=2,data=4. Default: all, or as many as divide batch_size evenly."""
    checkpoint_seconds: float = 60.0
    """Longest time between two checkpoints, from 0 to 60: at most so long, and a unit, is lost to a kill."""
    debug_nans: bool = False
    """If a number goes wrong, repeat the unit one operation at a time and say which operation it was. Slow."""
    distributed: bool = False
    """One of several processes that share the run, started by SLURM, Open MPI or on a TPU pod: see docs/scaling.md."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where nothing tells; then --num-processes and --process-id are needed as well."""
    num_processes: int | None = None
    """Number of processes, all started with the same command but for --process-id."""
    process_id: int | None = None
    """Number of this process, from 0."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draws sentences from a trained run, one a line: words for a corpus, ids for the synthetic task."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Directory of the run."""
    num: int = 1
    """Sentences to draw."""
    temperature: float | None = None
    """alpha; below 1 for likelier, less varied sentences. Default: the run's eval_temperature."""
    seed: int = 0
    """Seed of the draws. The first sentences of a seed are the same whatever --num is."""
    prefix: str | None = None
    """Words (or ids, where the run has no words) that every sentence is to begin with."""
    greedy: bool = False
    """Take the likeliest token at every step: one sentence, whatever the seed and the temperature."""
    json: bool = False
    """Print JSON lines: text, tokens, log_prob of the sentence and log_probs of its tokens (nats), temperature."""
    out: Path | None = None
    """File to write; standard output if not given."""
    checkpoint: Literal["newest", "best", "mle"] = "newest"
    """newest; or the lowest NLL_gen of the whole run (best) or of its pre-training (mle)."""
    detokenize: bool = False
    """Print text as people write it, rather than words with spaces between."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Scores a trained run, in nats per token: NLL_oracle and NLL_div of new samples, NLL_gen of real sentences.

    With --sweep, samples the run's best MLE model and its newest at nine temperatures and scores all, and real text,
    by NLL, BLEU and self-BLEU, LM and reverse LM; writes sweep.md, sweep.json and three pictures to DIR.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Directory of the run."""
    references: Path | None = None
    """Real sentences to compare with, one a line. Default: the run's own held-out split (in a sweep, its test split
    if it has one)."""
    temperature: float | None = None
    """alpha of samples and likelihoods. Default: the run's eval_temperature."""
    num: int | None = None
    """Sentences to sample. Default: the run's eval_samples; in a sweep as many as it was trained on, at most 10,000."""
    seed: int = 0
    """Seed of the samples."""
    sweep: bool = False
    """Score real text and both models over temperatures."""
    checkpoint: Literal["newest", "best", "mle"] = "newest"
    """newest; or the lowest NLL_gen of the whole run (best) or of its pre-training (mle)."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Scores sentences of any model against real ones: BLEU, self-BLEU, distinct-n, FED and, with --train, copying.

    BLEU compares only at equal numbers of references, the same tokens and the same rule; all are printed with it.
    FED takes equal numbers: of the longer file, as many sentences as the other has, evenly spaced.
    """

    hypotheses: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="HYPOTHESES")]
    """Sentences to score, one a line; blank lines are left out."""
    references: Path
    """Real sentences to compare with, one a line. Not those that the model was trained on."""
    rule: Rule = "method1"
    """What an n-gram order without a match does to BLEU: method1 counts 0.1 matches, none makes BLEU 0, nltk-3.2 leaves
    the order out of the product, as NLTK did up to 3.2.5."""
    tokenizer: Literal["whitespace", "nltk", "characters"] = "whitespace"
    """How lines are split into words."""
    lowercase: bool = False
    """Lower-case all text first."""
    train: Path | None = None
    """Text the model was trained on, one sentence a line: says how much of the hypotheses is copied from it."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Draws what a trained run sees while it writes, for a few of its sentences, to features.png and interaction.png.

    features.png: leaked features of growing prefixes, among those of finished real and generated sentences.
    interaction.png: what each dimension of the goal embedding adds to the logit of each token (paper, Figures 4, 5).
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Directory of the run."""
    num: int = 4
    """Generated sentences to follow, at most 8."""
    temperature: float | None = None
    """alpha of the sentences. Default: the run's eval_temperature."""
    seed: int = 0
    """Seed of the sentences: those that `sample` draws with it."""
    out: Path | None = None
    """Folder for the pictures, made if it is not there; the run's if not given."""
    checkpoint: Literal["newest", "best", "mle"] = "newest"
    """newest; or the lowest NLL_gen of the whole run (best) or of its pre-training (mle)."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for bad input (one line says what), 128 + N for signal N.

    1 is for a process that lost the others of its run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot encode is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _main(sys.argv[1:] if argv is None else argv)
    except BaseException:
        if _is_one_of_several():
            traceback.print_exc()
            _leave(1)
        raise
    if status in (1, 2, 130) and _is_one_of_several():
        _leave(status)
    return status


def _is_one_of_several() -> bool:
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _leave(status: int) -> None:
    from leakgan_jax import parallel

    parallel.leave(status)


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train, "sample": _sample, "evaluate": _evaluate, "metrics": _metrics, "inspect": _inspect,
        "presets": _presets,
    }  # fmt: skip
    try:
        if argv[0] not in commands:
            known = f"there are {', '.join(commands)}"
            raise ConfigError(f"unknown command {argv[0]!r}{nearest(argv[0], commands)}; {known}")
        set_up_jax()
        return commands[argv[0]](argv[1:])
    except ValueError as error:
        if not _is_ours(error):
            raise
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        print("leakgan: stopped", file=sys.stderr)
        return 130
    except OSError as error:
        with contextlib.suppress(OSError):  # what is still in the buffer cannot be written either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # `leakgan sample ... | head`
            return 0
        _complain(f"{error.filename or 'standard output'}: {error.strerror}")
        return 2


def set_up_jax() -> None:
    """Scores in float32 on every device, and compiled programs kept for the next command, if JAX was told nothing else.

    Compiled programs are code: their folder is the user's alone, and not a run's, which may come from elsewhere.
    """
    import jax

    settings = jax.config.values
    if settings["jax_default_matmul_precision"] is None:
        jax.config.update("jax_default_matmul_precision", "float32")  # training has a setting of its own
    if settings["jax_compilation_cache_dir"] is not None or not settings["jax_enable_compilation_cache"]:
        return
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(home, "leakgan_jax")
    with contextlib.suppress(OSError):  # where nothing can be kept, everything is compiled anew
        os.makedirs(folder, mode=0o700, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)  # a start has many small programs


def _train(argv: list[str]) -> int:
    name, rest = _take_preset(argv)
    resume, out = "--resume" in rest, _value(rest, "--out")
    seed, seeds = 0, 1
    if resume and name is None and out is not None:
        from leakgan_jax import run, rundir

        base, seed, record = rundir.open_run(Path(out), several=True)  # whatever is not given stays as it was
        seeds = record["seeds"]
        if (model := _value(rest, "--model")) not in (None, base.model):
            changed = f"model ({base.model!r}, now {model!r})"
            raise rundir.RunError(f"{out} was made with other settings: {changed}; resume it with its own")
        if reading := _value(rest, "--reading"):
            base = dataclasses.replace(base, reading=_reading(reading))
    else:
        corpus = _value(rest, "--corpus") or ""  # takes the place of the preset's dataset
        reading, model = _reading(_value(rest, "--reading") or "paper"), _value(rest, "--model") or "leakgan"
        base = preset(name or "quickstart", reading, model, corpus=corpus)
    arguments = _parse(Train, rest, f"leakgan train {name or '[PRESET]'}", Train(tyro.MISSING, base, seed, seeds))
    config = arguments.config
    if not (1 <= arguments.seeds <= 1000 and arguments.seed + arguments.seeds <= 2**32):
        raise ConfigError(f"seeds is {arguments.seeds}; it must be from 1 to 1000, and the last seed below 2^32")
    if config.corpus:
        config = dataclasses.replace(config, corpus=os.path.abspath(config.corpus))
    if config.oracle_file:
        config = dataclasses.replace(config, oracle_file=os.path.abspath(config.oracle_file))
    for place in ("manual_dir", "data_dir"):
        if getattr(arguments, place) is not None and not config.dataset:
            option = "--" + place.replace("_", "-")
            raise ConfigError(f"{option} {getattr(arguments, place)}: leave it out; only a --dataset has one")

    import jax

    from leakgan_jax import parallel, run
    from leakgan_jax.display import Display

    processes = arguments.coordinator, arguments.num_processes, arguments.process_id
    if arguments.debug_nans and (arguments.distributed or any(value is not None for value in processes)):
        raise ConfigError("debug-nans is for one process alone; its checkpoints resume in any number")
    if arguments.distributed or any(value is not None for value in processes):
        parallel.start(*processes)
    display = Display(quiet=not parallel.is_first())
    command = shlex.join(["leakgan", "train", *argv])
    try:
        stopped = run.train(
            config,
            range(arguments.seed, arguments.seed + arguments.seeds),
            arguments.out,
            resume=arguments.resume,
            command=command,
            display=display,
            manual_dir=arguments.manual_dir,
            data_dir=arguments.data_dir,
            mesh=arguments.mesh,
            debug_nans=arguments.debug_nans,
            checkpoint_seconds=arguments.checkpoint_seconds,
        )
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        reason = " ".join(str(error).split())[:150]
        lost = f"process {jax.process_index()} lost the others ({reason})"
        _complain(f"{lost}; start them all again, with --resume")
        return 1
    finally:
        display.close()
    if not parallel.is_first():
        return 128 + stopped if stopped else 0
    if stopped:
        print(f"leakgan: stopped and saved; go on with: leakgan train --out {arguments.out} --resume", file=sys.stderr)
        return 128 + stopped
    print((arguments.out / "report.md").read_text(encoding="utf-8").split("\n![")[0].split("\n\n", 1)[1])
    print(f"\nThe picture is {arguments.out / 'curves.png'}, the report {arguments.out / 'report.md'}.")
    return 0


def _sample(argv: list[str]) -> int:
    arguments = _parse(Sample, argv, "leakgan sample")
    from leakgan_jax import data, run

    if arguments.num < 1:
        raise ConfigError(f"num is {arguments.num}; it must be at least 1")
    if arguments.greedy and arguments.num > 1:
        raise ConfigError(f"num is {arguments.num}; with --greedy every sentence is the same, so it must be 1")
    config, vocabulary, params = _load(arguments)
    temperature = _temperature(arguments.temperature, config)
    if arguments.detokenize and vocabulary is None:
        raise ConfigError(f"detokenize is for text, and {arguments.run} has no words")
    prefix = () if arguments.prefix is None else run.read_prefix(config, vocabulary, arguments.prefix)
    task = run.Task(None, None, None, vocabulary, {})  # type: ignore[arg-type]  # only to decode
    batches = run.stream_samples(
        config, params, arguments.seed, arguments.num, temperature, prefix=prefix, greedy=arguments.greedy
    )

    def lines(tokens, log_probs) -> str:
        texts = task.decode(tokens)
        if arguments.detokenize:
            texts = [data.detokenize(text.split(), config.tokenizer) for text in texts]
        if arguments.json:
            rows = zip(texts, tokens, log_probs, strict=True)
            texts = [json.dumps(_record(config, vocabulary, *row, temperature), ensure_ascii=False) for row in rows]
        if arguments.out is None and sys.stdout.isatty():  # a vocabulary may hold what a terminal would act on
            texts = [printable(text) for text in texts]
        return "\n".join(texts) + "\n"

    if arguments.out is None:
        for batch in batches:
            print(lines(*batch), end="", flush=True)
    else:
        data.write(arguments.out, "".join(lines(*batch) for batch in batches))
    return 0


def _record(config: Config, vocabulary, text: str, tokens, log_probs, temperature: float) -> dict[str, Any]:
    """A sentence as JSON. Its tokens are words or ids, the end among them; every one is scored, a given prefix too."""
    ids = [i for i in tokens.tolist() if i != config.pad_id]
    scores = log_probs[: len(ids)].tolist()
    return {
        "text": text,
        "tokens": ids if vocabulary is None else [vocabulary.words[i] for i in ids],
        "log_prob": round(sum(scores), 6),
        "log_probs": [round(score, 6) for score in scores],
        "temperature": temperature,
    }


def _evaluate(argv: list[str]) -> int:
    arguments = _parse(Evaluate, argv, "leakgan evaluate")
    if arguments.sweep:
        return _sweep(arguments)
    import jax
    import jax.numpy as jnp

    from leakgan_jax import run, rundir, training

    saved, _, _ = rundir.open_run(arguments.run)
    temperature = _temperature(arguments.temperature, saved)
    if arguments.num is not None:
        if arguments.num < 1:
            raise ConfigError(f"num is {arguments.num}; it must be at least 1")
        saved = dataclasses.replace(saved, eval_samples=arguments.num)
    config, vocabulary, params = _load(arguments)
    config = dataclasses.replace(config, eval_samples=saved.eval_samples)
    if arguments.references is not None and config.is_text:
        # The corpus itself is not needed.
        task = run.Task(None, None, None, vocabulary, {})  # type: ignore[arg-type]
    else:
        _, task = run.open_task(arguments.run)
    if arguments.references is not None:
        rows = run.read_heldout(config, vocabulary, arguments.references, _complain)
        task = task._replace(heldout=jnp.array(rows))
    _, scores = run.evaluate(config, task, params, jax.random.key(arguments.seed), temperature)
    scores["num_references"] = len(task.heldout)
    scores["unknown"] = training.unknown_share(config, task.heldout)
    if arguments.json:
        print(json.dumps(scores))
        return 0
    print(f"{arguments.run}, checkpoint {arguments.checkpoint}, temperature {temperature:.4g}")
    if scores["nll_oracle"] is not None:
        print(f"NLL_oracle  {scores['nll_oracle']:.4f}  of {scores['num_samples']:,} samples")
    known = f" without the {scores['unknown']:.1%} of their tokens that the run does not know" * config.is_text
    print(f"NLL_gen     {scores['nll_gen']:.4f}  of {len(task.heldout):,} real sentences{known}")
    print(f"NLL_div     {scores['nll_div']:.4f}  of {scores['num_samples']:,} samples")
    print(f"in nats per token; {scores['distinct']:.1%} of the samples are distinct")
    return 0


def _metrics(argv: list[str]) -> int:
    arguments = _parse(Metrics, argv, "leakgan metrics")
    from leakgan_jax import data, metrics

    def read(path: Path) -> list[list[str]]:
        return data.read_sentences(path, arguments.lowercase, arguments.tokenizer)

    hypotheses, references = read(arguments.hypotheses), read(arguments.references)
    if len(hypotheses) < 2:
        raise data.DataError(f"{arguments.hypotheses}: 1 sentence; self-BLEU compares sentences, so give at least 2")
    train = None if arguments.train is None else read(arguments.train)

    scores = {
        **metrics.bleu(hypotheses, references, rule=arguments.rule),
        **metrics.self_bleu(hypotheses, rule=arguments.rule),
        **metrics.distinct_n(hypotheses),
        **({} if train is None else metrics.novelty(hypotheses, train)),
        **_fed(hypotheses, references),
        "tokenizer": arguments.tokenizer,
        "lowercase": arguments.lowercase,
    }
    del scores["sentences"]  # the hypotheses again
    for note in _doubts(hypotheses, references, scores, arguments):
        _complain(note)
    print(json.dumps(scores) if arguments.json else _metrics_table(scores, arguments))
    return 0


def _fed(hypotheses: list[list[str]], references: list[list[str]]) -> dict[str, Any]:
    """FED under word vectors of the references, of equal numbers; None for fewer than two."""
    from leakgan_jax import metrics

    num = min(len(hypotheses), len(references))
    if num < 2:
        return {"fed": None, "fed_sentences": num, "fed_dim": None}
    ours, real = ([group[i * len(group) // num] for i in range(num)] for group in (hypotheses, references))
    return metrics.fed(ours, real, metrics.word_vectors(references))


def _doubts(hypotheses: list[list[str]], references: list[list[str]], scores: dict[str, Any], arguments: Metrics):
    """What should make a reader doubt the scores, a line each."""
    words = {word for sentence in hypotheses for word in sentence}
    shared = len(words.intersection(word for sentence in references for word in sentence)) / len(words)
    if shared < 0.5:
        yield (
            f"warning: only {shared:.0%} of the {len(words):,} different words of {arguments.hypotheses} occur in "
            f"{arguments.references}; see that both have the same tokens and case (--tokenizer, --lowercase)"
        )
    if short := sum(len(sentence) < 5 for sentence in hypotheses):
        yield (
            f"note: {short:,} of {len(hypotheses):,} hypotheses have fewer than 5 words; the orders of BLEU that are "
            "longer than a sentence count as orders without a match, as in NLTK"
        )
    if scores["fed"] is not None and scores["fed_sentences"] <= scores["fed_dim"]:
        yield f"note: {scores['fed_sentences']:,} sentences are too few for FED in {scores['fed_dim']} dimensions"


def _metrics_table(scores: dict[str, Any], arguments: Metrics) -> str:
    def row(name: str, key: str) -> str:
        values = (scores.get(f"{key}_{n}") for n in range(1, 6))
        return f"{name:<12}" + "".join(" " * 9 if value is None else f"{value:9.4f}" for value in values).rstrip()

    case = "lower-cased" if arguments.lowercase else "case kept"
    lines = [
        f"hypotheses  {arguments.hypotheses}: {scores['hypotheses']:,} sentences, {scores['distinct']:.1%} distinct",
        f"references  {arguments.references}: {scores['references']:,} sentences",
        f"settings    rule {arguments.rule}, tokenizer {arguments.tokenizer}, {case}",
        "",
        "n           " + "".join(f"{n:9}" for n in range(1, 6)),
        row("BLEU", "bleu"),
        row("self-BLEU", "self_bleu"),
        row("distinct-n", "distinct"),
    ]
    if arguments.train is not None:
        lines[2:2] = [f"train       {arguments.train}: {scores['train']:,} sentences"]
        span = f"{scores['copied_mean']:.2f} words on average, {scores['copied_max']} at most"
        lines += [
            row("in train", "in_train"),
            "",
            f"copied      {scores['in_train']:.1%} of the hypotheses are, whole, a sentence of train;",
            f"            the longest span of each within one: {span}",
        ]
    if scores["fed"] is not None:
        each = f"{scores['fed_sentences']:,} sentences each, {scores['fed_dim']} dimensions"
        lines += ["", f"FED         {scores['fed']:.5f} (word vectors of the references; {each})"]
    return "\n".join(lines)


def _inspect(argv: list[str]) -> int:
    arguments = _parse(Inspect, argv, "leakgan inspect")
    import numpy as np

    from leakgan_jax import pictures, run, rundir

    if not 1 <= arguments.num <= pictures.MAX_FOLLOWED:
        raise ConfigError(f"num is {arguments.num}; it must be from 1 to {pictures.MAX_FOLLOWED}")
    config, _, _ = rundir.open_run(arguments.run)
    if config.model != "leakgan":
        raise rundir.RunError(f"{arguments.run} is a run of {config.title}: only LeakGAN has goals to look into")
    config, vocabulary, params = _load(arguments)
    temperature = _temperature(arguments.temperature, config)
    _, task = run.open_task(arguments.run)
    num = max(arguments.num, pictures.cloud_size(task))
    batches = run.stream_samples(config, params, arguments.seed, num, temperature)
    generated = np.concatenate([tokens for tokens, _ in batches])
    out = arguments.out or arguments.run
    out.mkdir(parents=True, exist_ok=True)
    print("\n".join(pictures.look_inside(out, config, task, params, generated, arguments.num)))
    return 0


def _sweep(arguments: Evaluate) -> int:
    if arguments.temperature is not None or arguments.checkpoint != "newest":
        raise ConfigError("--sweep has its own temperatures and checkpoints; leave out --temperature and --checkpoint")
    import jax

    from leakgan_jax import data, display, report, run, rundir, sweep
    from leakgan_jax.models import language_model

    out = arguments.run
    config, _, _ = rundir.open_run(out)
    if not os.access(out, os.W_OK):  # now rather than after minutes of scoring
        raise rundir.RunError(f"{out}: cannot be written, and the sweep's table and pictures go there")
    models = run.load_models(out, config, _complain)
    config, task = run.open_task(out)
    if arguments.references is None:
        compared = sweep.references(config, task)
    elif task.vocabulary is None:
        real = run.read_heldout(config, None, arguments.references, _complain)
        compared = sweep.row_references(config, real, str(arguments.references))
    else:
        words = data.read_sentences(arguments.references, config.lowercase, config.tokenizer)
        compared = sweep.word_references(config, task.vocabulary, words, str(arguments.references), _complain)
    sizes, schedule = language_model.Sizes(config.vocab_size), language_model.Schedule()
    temperatures = sweep.TEMPERATURES
    result = {
        "run": str(out),
        "versions": rundir.versions(),
        "seed": arguments.seed,
        "references": compared.name,
        "language_model": dataclasses.asdict(sizes) | dataclasses.asdict(schedule),
        "device": jax.devices()[0].device_kind,
    }
    # A row can take minutes: each is kept when it is done.
    kept, lines = out / "sweep.partial.json", [" ".join(map(str, words)) for words in compared.sentences]
    about = result | {"inputs": _fingerprint([models, lines, temperatures, arguments.num])}
    rows = sweep.kept_rows(kept, about, list(models), temperatures, _complain)
    settings: dict[str, Any] = {
        "temperatures": temperatures,
        "compared": compared,
        "sizes": sizes,
        "schedule": schedule,
    }
    key, total = jax.random.key(arguments.seed), 1 + len(models) * len(temperatures)
    if rows:
        _complain(f"{len(rows)} of {total} rows are there from a sweep that was stopped; going on with the rest")
    new = sweep.sweep(config, task, models, key, num=arguments.num, done=len(rows), **settings)
    for row in display.track(new, total - len(rows)):
        rows.append(row | {"seed": arguments.seed})
        sweep.keep_rows(kept, about, rows)
    result["rows"] = rows
    data.write(out / "sweep.json", json.dumps(result, indent=1) + "\n")
    data.write(out / "sweep.md", report.sweep_report(result) + "\n")
    pictures = report.draw_sweep(out, rows)
    kept.unlink()
    if arguments.json:
        print(json.dumps(result))
        return 0
    print(report.sweep_report(result))
    print(f"\nThe pictures are {', '.join(map(str, pictures))}; all numbers are in {out / 'sweep.json'}.")
    return 0


def _fingerprint(tree: Any) -> str:
    """SHA-256 of the leaves: arrays, texts and numbers."""
    import jax
    import numpy as np

    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        sha.update(np.asarray(leaf).tobytes() if hasattr(leaf, "dtype") else f"{leaf}\n".encode())
    return sha.hexdigest()


def _presets(argv: list[str]) -> int:
    if argv and argv[0] not in ("-h", "--help"):
        raise ConfigError(f"presets takes no arguments, got {argv[0]!r}")
    base = preset("synthetic20").to_json()
    for name, summary in PRESET_SUMMARIES.items():
        print(f"{name:<12} {summary}")
        settings = preset(name).to_json()
        changed = ", ".join(f"{key}={value}" for key, value in settings.items() if value != base[key])
        if changed:
            print(f"{'':<12}   beside synthetic20: {changed}")
    for model, title in TITLES.items():
        settings = preset("synthetic20", model=model).to_json()
        changed = ", ".join(f"{key}={value}" for key, value in settings.items() if value != base[key])
        if changed:
            print(f"{title}: {changed}")
    print("\nEvery setting is an option: leakgan train PRESET --help")
    return 0


def _complain(text: str) -> None:
    """One line on standard error, whatever a data file put into it: no control characters, no more than a screen."""
    text = printable(text)
    print("leakgan:", text if len(text) <= 2_000 else f"{text[:1_500]}...{text[-400:]}", file=sys.stderr)


def _load(arguments: Sample | Evaluate | Inspect):
    """Config, vocabulary (of text runs) and parameters of the run and checkpoint that are asked for."""
    from leakgan_jax import data, run, rundir

    config, _, _ = rundir.open_run(arguments.run)
    vocabulary = data.Vocabulary.load(arguments.run / "vocabulary.json") if config.is_text else None
    if vocabulary is not None and len(vocabulary) != config.vocab_size:
        raise rundir.RunError(
            f"{arguments.run}: vocabulary.json has {len(vocabulary)} words, the run {config.vocab_size}"
        )
    params = run.load_params(arguments.run, config, arguments.checkpoint, on_skip=_complain)
    return config, vocabulary, params


def _temperature(given: float | None, config: Config) -> float:
    temperature = config.eval_temperature if given is None else given
    if not 1e-3 <= temperature <= 1e3:
        raise ConfigError(f"temperature is {temperature}; it must be a number from 0.001 to 1000")
    return temperature


def _take_preset(argv: list[str]) -> tuple[str | None, list[str]]:
    if argv and not argv[0].startswith("-"):
        preset(argv[0])  # says what is wrong with an unknown name
        return argv[0], argv[1:]
    return None, argv


def _value(argv: list[str], option: str) -> str | None:
    """The value of an option that has to be known before the others have their defaults."""
    for i, word in enumerate(argv):
        if word == option and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(option + "="):
            return word.split("=", 1)[1]
    return None


def _reading(value: str) -> Any:
    return preset("quickstart", reading=value).reading


def _parse(kind: type, argv: list[str], prog: str, default: Any = None) -> Any:
    """Options by tyro; what it finds wrong is raised as one line."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            options: dict[str, Any] = {"prog": prog, "args": argv, "return_unknown_args": True}
            parsed, unknown = tyro.cli(kind, **options, **({} if default is None else {"default": default}))
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        _require_known(kind, argv, prog)  # of a misspelt option tyro says what it took for missing
        raise ConfigError(f"{_unframed(shown.getvalue())}; see {prog} --help") from None
    if unknown and not unknown[0].startswith("-"):
        raise ConfigError(f"unexpected argument {unknown[0]!r} (a preset comes first); see {prog} --help")
    _require_known(kind, unknown, prog)
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; see {prog} --help")
    if not 0 <= getattr(parsed, "seed", 0) < 2**32:
        raise ConfigError(f"seed is {parsed.seed}; it must be a whole number from 0 to {2**32 - 1}")
    return parsed


def _require_known(kind: type, argv: list[str], prog: str) -> None:
    """Raises ConfigError, with the nearest one there is, if a word of `argv` looks like an option and is none."""
    fields = [field.name for k in (kind, Config) for field in dataclasses.fields(k) if k is kind or kind is Train]
    known = ["--" + name.replace("_", "-") for name in fields if name != "config"]
    for word in argv:
        option = word.split("=")[0].replace("_", "-")
        if option.startswith("--") and option not in known and option.replace("--no-", "--", 1) not in known:
            raise ConfigError(f"unknown option {word!r}{nearest(option, known)}; see {prog} --help")


def _unframed(message: str) -> str:
    """The first sentence of what tyro says, without the box it draws around it."""
    lines = [line.strip("│╭╮╰╯├┤─+| ") for line in message.splitlines()]
    titles = ("", "Parsing error", "Value error", "Required options", "Missing argument")
    text = " ".join(line for line in lines if line.strip("- ") not in titles)
    # Of an option with more than one type it lists what each made of the value.
    text = re.sub(r"no type matching .*? could be instantiated from \['(.*?)'\]\..*", r"invalid value '\1'", text)
    for rest in (" For full helptext", " Argument helptext", " Subcommands"):
        text = text.split(rest)[0]
    return text.removeprefix("Error parsing config: ").removeprefix("Invalid choice ")


def _is_ours(error: ValueError) -> bool:
    return type(error).__module__.startswith("leakgan_jax.")


if __name__ == "__main__":
    sys.exit(main())
