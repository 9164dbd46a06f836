"""The command line, `leakgan train | sample | evaluate | presets`: the only place that reads argv."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from leakgan_jax.config import PRESET_SUMMARIES, Config, ConfigError, nearest, preset

USAGE = """\
LeakGAN in JAX: text from a GAN whose discriminator leaks its features to the generator.

usage: leakgan COMMAND ...

  leakgan train [PRESET] --out DIR [--seed N] [--resume] [overrides]   train, every phase of the paper
  leakgan sample DIR --num N [--temperature A] [--seed N] [--out FILE] draw sentences from a run
  leakgan evaluate DIR [--references FILE] [--json]                    score a run: NLL_oracle, NLL_gen, NLL_div
  leakgan evaluate DIR --sweep                                         quality against diversity over temperatures
  leakgan presets                                                      list the presets and their settings

Start with:  leakgan train --out runs/first
Each command explains itself:  leakgan train --help"""


@dataclasses.dataclass(frozen=True)
class Train:
    """Trains LeakGAN: pre-training of the discriminator and generator, then adversarial training.

    Writes config.json, metrics.jsonl, checkpoints/, samples.txt, curves.png and report.md to the directory --out.
    Ctrl-C saves and stops; the same command with --resume goes on as if it had never stopped.
    """

    out: Path
    """Directory of the run; made if it is not there."""
    config: tyro.conf.OmitArgPrefixes[Config]
    seed: int = 0
    """Seed of everything random in the run."""
    resume: bool = False
    """Continue the run in --out. Its settings are kept; giving different ones is an error."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draws sentences from a trained run, one a line: words for a corpus, ids for the synthetic task."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Directory of the run."""
    num: int
    """Sentences to draw."""
    temperature: float | None = None
    """alpha; below 1 for likelier, less varied sentences. Default: the run's eval_temperature."""
    seed: int = 0
    """Seed of the draws."""
    out: Path | None = None
    """File to write; standard output if not given."""
    checkpoint: Literal["newest", "best", "mle"] = "newest"
    """newest; or the lowest NLL_gen of the whole run (best) or of its pre-training (mle)."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Scores a trained run, in nats per token: NLL_oracle and NLL_div of new samples, NLL_gen of real sentences.

    With --sweep, samples the run's best MLE model and its newest at nine temperatures and scores all, and real text,
    by NLL, BLEU and self-BLEU, LM and reverse LM; writes sweep.json and three pictures to the run's directory.
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


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for bad input (one line says what), 128 + N for signal N."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train, "sample": _sample, "evaluate": _evaluate, "presets": _presets,
    }  # fmt: skip
    try:
        if argv[0] not in commands:
            known = f"there are {', '.join(commands)}"
            raise ConfigError(f"unknown command {argv[0]!r}{nearest(argv[0], commands)}; {known}")
        return commands[argv[0]](argv[1:])
    except ValueError as error:
        if not _is_ours(error):
            raise
        print(f"leakgan: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("leakgan: stopped", file=sys.stderr)
        return 130
    except OSError as error:
        with contextlib.suppress(OSError):  # what is still in the buffer cannot be written either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # `leakgan sample ... | head`
            return 0
        print(f"leakgan: {error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        return 2


def _train(argv: list[str]) -> int:
    name, rest = _take_preset(argv)
    resume, out = "--resume" in rest, _value(rest, "--out")
    seed = 0
    if resume and name is None and out is not None:
        from leakgan_jax import run

        base, seed, _ = run.open_run(Path(out))  # whatever is not given stays as it was
        if reading := _value(rest, "--reading"):
            base = dataclasses.replace(base, reading=_reading(reading))
    else:
        base = preset(name or "quickstart", reading=_reading(_value(rest, "--reading") or "paper"))
    arguments = _parse(Train, rest, f"leakgan train {name or '[PRESET]'}", Train(tyro.MISSING, base, seed, False))
    config = arguments.config
    if config.corpus:
        config = dataclasses.replace(config, corpus=os.path.abspath(config.corpus))
    if config.oracle_file:
        config = dataclasses.replace(config, oracle_file=os.path.abspath(config.oracle_file))
    if name == "coco" and not config.corpus:
        raise ConfigError("preset coco needs --corpus FILE: text in UTF-8, one sentence a line")

    from leakgan_jax import run
    from leakgan_jax.display import Display

    display = Display()
    command = shlex.join(["leakgan", "train", *argv])
    try:
        stopped = run.train(
            config, arguments.seed, arguments.out, resume=arguments.resume, command=command, display=display
        )
    finally:
        display.close()
    if stopped:
        print(f"leakgan: stopped and saved; go on with: leakgan train --out {arguments.out} --resume", file=sys.stderr)
        return 128 + stopped
    print((arguments.out / "report.md").read_text(encoding="utf-8").split("\n![")[0].removeprefix("# LeakGAN run\n\n"))
    print(f"\nThe picture is {arguments.out / 'curves.png'}, the report {arguments.out / 'report.md'}.")
    return 0


def _sample(argv: list[str]) -> int:
    arguments = _parse(Sample, argv, "leakgan sample")
    from leakgan_jax import data, run

    if arguments.num < 1:
        raise ConfigError(f"num is {arguments.num}; it must be at least 1")
    config, vocabulary, params = _load(arguments)
    temperature = _temperature(arguments.temperature, config)
    task = run.Task(None, None, None, vocabulary, {})
    batches = run.stream_samples(config, params, arguments.seed, arguments.num, temperature)
    if arguments.out is None:
        for tokens in batches:
            print("\n".join(task.decode(tokens)), flush=True)
    else:
        data.write(arguments.out, "".join("\n".join(task.decode(tokens)) + "\n" for tokens in batches))
    return 0


def _evaluate(argv: list[str]) -> int:
    arguments = _parse(Evaluate, argv, "leakgan evaluate")
    if arguments.sweep:
        return _sweep(arguments)
    import jax
    import jax.numpy as jnp

    from leakgan_jax import run

    saved, seed, record = run.open_run(arguments.run)
    temperature = _temperature(arguments.temperature, saved)
    if arguments.num is not None:
        saved = dataclasses.replace(saved, eval_samples=arguments.num)
    config, vocabulary, params = _load(arguments)
    config = dataclasses.replace(config, eval_samples=saved.eval_samples)
    if arguments.references is not None and config.corpus:
        task = run.Task(None, None, None, vocabulary, {})  # the corpus itself is not needed
    else:
        _, task = run.load_task(config, seed)
        if task.source != record["data"]:
            raise run.RunError(f"{arguments.run}: its data has changed since; give --references FILE, or restore it")
    if arguments.references is not None:
        task = task._replace(heldout=jnp.array(run.read_heldout(config, vocabulary, arguments.references)))
    _, scores = run.evaluate(config, task, params, jax.random.key(arguments.seed), temperature)
    if arguments.json:
        print(json.dumps(scores))
        return 0
    print(f"{arguments.run}, checkpoint {arguments.checkpoint}, temperature {temperature:.4g}")
    if scores["nll_oracle"] is not None:
        print(f"NLL_oracle  {scores['nll_oracle']:.4f}  of {scores['num_samples']:,} samples")
    print(f"NLL_gen     {scores['nll_gen']:.4f}  of {len(task.heldout):,} real sentences")
    print(f"NLL_div     {scores['nll_div']:.4f}  of {scores['num_samples']:,} samples")
    print(f"in nats per token; {scores['distinct']:.1%} of the samples are distinct")
    return 0


def _sweep(arguments: Evaluate) -> int:
    if arguments.temperature is not None or arguments.checkpoint != "newest":
        raise ConfigError("--sweep has its own temperatures and checkpoints; leave out --temperature and --checkpoint")
    import jax

    from leakgan_jax import data, display, report, run, sweep
    from leakgan_jax.models import language_model

    out = arguments.run
    config, seed, record = run.open_run(out)
    if not os.access(out, os.W_OK):  # now rather than after minutes of scoring
        raise run.RunError(f"{out}: cannot be written, and the sweep's table and pictures go there")
    models = run.load_models(out, config, functools.partial(print, "leakgan:", file=sys.stderr))
    config, task = run.load_task(config, seed)
    if task.source != record["data"]:
        raise run.RunError(f"{out}: its data has changed since, and a sweep needs its training text; restore it")
    if arguments.references is None:
        compared = sweep.references(config, task)
    elif task.vocabulary is None:
        rows = run.read_heldout(config, None, arguments.references)
        compared = sweep.row_references(config, None, rows, str(arguments.references))
    else:
        words = data.read_sentences(arguments.references, config.lowercase)
        compared = sweep.word_references(config, task.vocabulary, words, str(arguments.references))
    sizes, schedule = language_model.Sizes(config.vocab_size), language_model.Schedule()
    key, temperatures = jax.random.key(arguments.seed), sweep.TEMPERATURES
    settings = {"temperatures": temperatures, "compared": compared, "sizes": sizes, "schedule": schedule}
    rows = sweep.sweep(config, task, models, key, num=arguments.num, **settings)
    rows = [row | {"seed": arguments.seed} for row in display.track(rows, 1 + len(models) * len(temperatures))]
    result = {
        "run": str(out),
        "seed": arguments.seed,
        "references": compared.name,
        "language_model": dataclasses.asdict(sizes) | dataclasses.asdict(schedule),
        "device": jax.devices()[0].device_kind,
        "rows": rows,
    }
    data.write(out / "sweep.json", json.dumps(result, indent=1) + "\n")
    pictures = report.draw_sweep(out, rows)
    if arguments.json:
        print(json.dumps(result))
        return 0
    print(report.sweep_report(result))
    print(f"\nThe pictures are {', '.join(map(str, pictures))}; all numbers are in {out / 'sweep.json'}.")
    return 0


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
    print("\nEvery setting is an option: leakgan train PRESET --help")
    return 0


def _load(arguments: Sample | Evaluate):
    """Config, vocabulary (of text runs) and parameters of the run and checkpoint that are asked for."""
    from leakgan_jax import data, run

    config, _, _ = run.open_run(arguments.run)
    vocabulary = data.Vocabulary.load(arguments.run / "vocabulary.json") if config.corpus else None
    if vocabulary is not None and len(vocabulary) != config.vocab_size:
        raise run.RunError(f"{arguments.run}: vocabulary.json has {len(vocabulary)} words, the run {config.vocab_size}")
    skip = functools.partial(print, "leakgan:", file=sys.stderr)
    params = run.load_params(arguments.run, config, arguments.checkpoint, on_skip=skip)
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
            options = {"prog": prog, "args": argv, "return_unknown_args": True}
            parsed, unknown = tyro.cli(kind, **options, **({} if default is None else {"default": default}))
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise ConfigError(f"{_unframed(shown.getvalue())}; see {prog} --help") from None
    if unknown and not unknown[0].startswith("-"):
        raise ConfigError(f"unexpected argument {unknown[0]!r} (a preset comes first); see {prog} --help")
    if unknown:
        fields = [field.name for k in (kind, Config) for field in dataclasses.fields(k) if k is kind or kind is Train]
        known = ["--" + name.replace("_", "-") for name in fields if name != "config"]
        raise ConfigError(f"unknown option {unknown[0]!r}{nearest(unknown[0].split('=')[0], known)}; see {prog} --help")
    if not 0 <= parsed.seed < 2**32:
        raise ConfigError(f"seed is {parsed.seed}; it must be a whole number from 0 to {2**32 - 1}")
    return parsed


def _unframed(message: str) -> str:
    """The first sentence of what tyro says, without the box it draws around it."""
    lines = [line.strip("│╭╮╰╯├┤─+| ") for line in message.splitlines()]
    titles = ("", "Parsing error", "Value error", "Required options", "Missing argument")
    text = " ".join(line for line in lines if line.strip("- ") not in titles)
    for rest in (" For full helptext", " Argument helptext", " Subcommands"):
        text = text.split(rest)[0]
    return text.removeprefix("Error parsing config: ")


def _is_ours(error: ValueError) -> bool:
    return type(error).__module__.startswith("leakgan_jax.")


if __name__ == "__main__":
    sys.exit(main())
