"""What the experiments share: models trained where no line of them is saved, scored once, and read ever after.

A `Cell` is one model with its settings on one task. `collect` finds its lines in `results/SCALE/TASK.jsonl`, a line a
seed and checkpoint; seeds without one are trained side by side in `runs/`, which can be interrupted and go on, and
scored over temperatures with sentences that training never saw. Tables and pictures read lines and nothing else.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from scipy.interpolate import PchipInterpolator

from leakgan_jax import Config, ConfigError, metrics, oracle, preset, run, rundir, sweep
from leakgan_jax.checkpoint import CheckpointError, Checkpoints
from leakgan_jax.cli import set_up_jax
from leakgan_jax.data import DataError
from leakgan_jax.display import Display
from leakgan_jax.report import save

RESULTS = Path(__file__).parent / "results"
PUBLISHED = 1 / 1.5  # the temperature of the published numbers of LeakGAN
TEMPERATURES = (0.4, 0.45, 0.5, 0.55, 0.6, PUBLISHED, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1, 1.25)
TEXT_TEMPERATURES = (0.6, PUBLISHED, 0.8, 0.9, 1.0, 1.1)
LEVELS = (0.1, 0.2, 0.4, 0.8)  # of NLL_gen above the lowest of a baseline, at which models are compared with it
TESTED = 0.4  # the one that tests are of, fixed before any result: about what 1/1.5 costs an MLE model
MOST_SEEDS = 1_000
PRETRAINED = "MLE, best NLL_gen"  # a checkpoint's name
# What has no effect before adversarial training, so that cells which differ in nothing else share their pre-training.
ADVERSARIAL = (
    "adversarial_lr adversarial_iterations generator_steps adversarial_draws interleave_every completions "
    "train_temperature rescaling rescale_slope credit advantage"
).split()
LENGTH_EDGES = (1, 8, 12, 16, 20, 25, 30, 35, 40, 45, 52)  # of sentences, for Figure 3
SCALES = {
    # seeds; sentences drawn at each temperature
    "laptop": (5, 1_000),
    "paper": (3, 9_984),
}
PRESETS = {
    "laptop": {name: f"laptop-{name}" for name in ("synthetic20", "synthetic40", "coco", "news", "poems")},
    "paper": {name: name for name in ("synthetic20", "synthetic40", "coco", "news", "poems")},
}
SAME_SIZE = "MLE, LeakGAN's size"  # what models are compared with at equal NLL_gen
MODELS = {
    "MLE": {"model": "mle"},
    SAME_SIZE: {"model": "mle"},
    "SeqGAN": {"model": "seqgan"},
    "SeqGAN-rescale": {"model": "seqgan", "rescaling": "rank"},
    "RankGAN": {"model": "rankgan"},
    "LeakGAN": {},
}
COLOURS = dict(zip(MODELS, ("#56b4e9", "#0072b2", "#e69f00", "#cc79a7", "#009e73", "#d55e00"), strict=True))
# The width of LSTM and embedding with which SAME_SIZE has as many parameters as LeakGAN's generator, or a few less. The
# words of a text are known once it is read: these are of as many as the laptop's have, and of 5,000.
WIDTHS = {
    "laptop": {"synthetic20": 73, "synthetic40": 73, "coco": 77, "news": 77, "poems": 78},
    "paper": {"synthetic20": 257, "synthetic40": 262, "coco": 767, "news": 772, "poems": 257},
}

Line = dict[str, Any]


class Cell(NamedTuple):
    """One model on one task."""

    task: str  # a name in `PRESETS`; its file of results
    name: str  # its row
    settings: dict[str, Any]  # beside the preset

    def config(self, scale: str) -> Config:
        return preset(PRESETS[scale][self.task], **self.settings)

    def checkpoints(self, scale: str) -> list[str]:
        """That a line is made of: the final state, of a model of the paper also what pre-training chose.

        Without adversarial training that is the one.
        """
        config = self.config(scale)
        if not config.adversarial_iterations:
            return [PRETRAINED]
        return [config.title, PRETRAINED] if self.name in MODELS else [config.title]


def models(task: str, scale: str, names: Iterable[str] = MODELS) -> list[Cell]:
    """The models of the paper on one task, and the MLE model of LeakGAN's size."""
    width = {name: WIDTHS[scale][task] for name in ("worker_hidden", "worker_embedding")}
    return [Cell(task, name, {**MODELS[name], **(width if name == SAME_SIZE else {})}) for name in names]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def parser(script: str, description: str) -> argparse.ArgumentParser:
    """Of a script; `--scale`, `--seeds` and where to read and write."""
    formatter = argparse.RawDescriptionHelpFormatter
    made = _Parser(prog=f"python experiments/{script}", description=description, formatter_class=formatter)
    made.add_argument(
        "--scale",
        choices=SCALES,
        default="laptop",
        help="laptop: small oracle, models and schedules; paper: as published",
    )
    made.add_argument(
        "--seeds",
        type=int,
        help="default: 5 at laptop scale, 3 at the paper's; table and picture are written again, but where those on "
        "file are of more seeds: then the table is printed only",
    )
    made.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="where models are trained")
    made.add_argument("--results", type=Path, default=RESULTS, help="where lines are read and appended")
    made.add_argument(
        "--manual-dir", type=Path, help="files of datasets that cannot be fetched, as for `leakgan train`"
    )
    made.add_argument("--data-dir", type=Path, help="where prepared datasets are, as for `leakgan train`")
    made.add_argument("--oracle-file", type=Path, help="at paper scale: the published oracle of synthetic20")
    made.add_argument("--read-only", action="store_true", help="train nothing: stop if a line is missing")
    return made


def main(script: str, description: str, body: Callable[[argparse.Namespace], None], add: Callable = None) -> None:
    """Runs `body(arguments)`; bad input ends it with one line and status 2."""
    made = parser(script, description)
    if add:
        add(made)
    args = made.parse_args()
    args.seeds = SCALES[args.scale][0] if args.seeds is None else args.seeds
    if not 1 <= args.seeds <= MOST_SEEDS:
        made.exit(2, f"{made.prog}: --seeds is {args.seeds}; it must be 1 to {MOST_SEEDS}\n")
    if args.oracle_file and args.scale != "paper":
        made.exit(2, f"{made.prog}: --oracle-file {args.oracle_file}: leave it out; only --scale paper has it\n")
    set_up_jax()
    try:
        if not args.read_only:
            (args.results / args.scale).mkdir(parents=True, exist_ok=True)
        body(args)
    except (ConfigError, DataError, rundir.RunError, CheckpointError, oracle.OracleError, OSError) as error:
        made.exit(2, f"{made.prog}: {error}\n")


# --- Training and scoring --------------------------------------------------------------------------------------------


def collect(cells: Sequence[Cell], args: argparse.Namespace, first: int = 0, file: str = "") -> list[Line]:
    """The lines of `cells` for `args.seeds` seeds from `first` on, missing ones made first, in the order of the cells.

    They are in `file`, by default one a task.
    """
    wanted, all_seeds = [], range(first, first + args.seeds)
    for i, cell in enumerate(cells):
        path = args.results / args.scale / f"{file or cell.task}.jsonl"
        settings = identity(cell, args)
        known = [line for line in saved(path) if line["cell"] == cell.name and line["settings"] == settings]
        found = {seed: [line["checkpoint"] for line in known if line["seed"] == seed] for seed in all_seeds}
        expected = cell.checkpoints(args.scale)
        for seed, names in found.items():
            if names and sorted(names) != sorted(expected):
                raise rundir.RunError(
                    f"{path} is damaged: of {cell.name}, seed {seed}, it has lines of {names}, not of {expected}; "
                    "restore it, or delete them to make them again"
                )
        seeds = [seed for seed, names in found.items() if not names]
        if seeds and args.read_only:
            raise rundir.RunError(f"{path} lacks {cell.name} of seeds {seeds}; leave out --read-only to train them")
        while seeds:  # side by side as far as they follow one another
            together = [seed for n, seed in enumerate(seeds) if seed == seeds[0] + n]
            print(f"\n{cell.task}: {cell.name}, seeds {together}; {i + 1} of {len(cells)}", file=sys.stderr, flush=True)
            new = make(cell, together, settings, args)
            with open(path, "a", encoding="utf-8") as lines_file:
                lines_file.writelines(json.dumps(line) + "\n" for line in new)
            known += new
            seeds = seeds[len(together) :]
        wanted += [line for line in known if line["seed"] in all_seeds]
    return wanted


def read(path: Path) -> list[Line]:
    """The lines of a file of results; none where there is no file."""
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError:
        raise rundir.RunError(f"{path} is damaged: every line must be JSON; restore it") from None


def saved(path: Path) -> list[Line]:
    """The lines of models in a file of results."""
    lines = read(path)
    for number, line in enumerate(lines, 1):
        try:
            whole = {"cell", "seed", "checkpoint", "settings"} <= line.keys()
            for point in line["points"]:
                scores = ["num_samples", "nll_oracle" if "nll_oracle" in point else "bleu_4"]
                scores += ["nll_gen", "distinct"] if point["temperature"] else []
                whole = whole and all(math.isfinite(point[name]) for name in scores)
            if not whole:
                raise ValueError
        except (AttributeError, KeyError, TypeError, ValueError):
            raise rundir.RunError(f"{path}, line {number}, is damaged: not a model's scores; restore it") from None
    return lines


def identity(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """What a line must have been made with: every setting in which the cell differs from `synthetic20`."""
    base, own = preset("synthetic20").to_json(), cell.config(args.scale).to_json()
    changed = {name: value for name, value in own.items() if value != base[name] and name != "oracle_file"}
    return json.loads(json.dumps(changed)) | ({"published_oracle": True} if published_oracle(cell, args) else {})


def published_oracle(cell: Cell, args: argparse.Namespace) -> bool:
    return args.oracle_file is not None and args.scale == "paper" and cell.task == "synthetic20"


def make(cell: Cell, seeds: Sequence[int], settings: dict[str, Any], args: argparse.Namespace) -> list[Line]:
    """Trains (or goes on with) and scores: for each seed a line of the final state.

    Of a cell without adversarial training it is of the epoch with the lowest NLL_gen; see `Cell.checkpoints`.
    """
    config = cell.config(args.scale)
    if published_oracle(cell, args):
        config = dataclasses.replace(config, oracle_file=str(args.oracle_file.resolve()))
    folder = args.runs / args.scale / cell.task
    out = folder / f"{slug(cell.name)}-{seeds[0]}-{seeds[-1]}"
    if config.adversarial_iterations and not (out / "config.json").exists():
        before = preset(PRESETS[args.scale][cell.task], model=config.model).to_json()
        shared = {name: before[name] for name in ADVERSARIAL} | {"adversarial_iterations": 0}
        before = dataclasses.replace(config, **shared)
        digest = hashlib.sha256(json.dumps(before.to_json(), sort_keys=True).encode()).hexdigest()
        pretrained = folder / f"pretrained-{digest[:12]}-{seeds[0]}-{seeds[-1]}"
        train(before, seeds, pretrained, args)
        continue_as(config, pretrained, out)
    train(config, seeds, out, args)
    facts = {
        "device": rundir.open_run(out, several=True)[2]["device"],
        "jax": jax.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    wanted, lines = cell.checkpoints(args.scale), []
    for seed, place in zip(seeds, rundir.directories(out, seeds), strict=True):
        config, task = run.open_task(place)
        found = run.load_models(place, config, lambda line: print(line, file=sys.stderr))
        for name in wanted:
            if name not in found:
                raise rundir.RunError(f"{place} has lost the checkpoint of {name!r}; delete {out} to train it again")
            print(f"scoring seed {seed}: {name}", file=sys.stderr, flush=True)
            points = score(config, task, found[name], seed, SCALES[args.scale][1])
            line = {"cell": cell.name, "seed": seed, "checkpoint": name, "points": points}
            final = {"curve": training_curve(place)} if name == wanted[0] else {}
            lines.append(line | final | {"train": int(task.train.shape[-2]), "settings": settings, **facts})
    return lines


def train(config: Config, seeds: Sequence[int], out: Path, args: argparse.Namespace) -> None:
    """Trains in `out`, or goes on there; nothing is left to do where a run has ended."""
    jax.clear_caches()  # programs of earlier cells
    display = Display()
    try:
        stopped = run.train(
            config,
            seeds,
            out,
            resume=(out / "config.json").exists(),
            command=" ".join(map(str, [Path(sys.argv[0]).name, *sys.argv[1:]])),
            display=display,
            manual_dir=args.manual_dir if config.dataset else None,
            data_dir=args.data_dir if config.dataset else None,
        )
    finally:
        display.close()
    if stopped:
        sys.exit(128 + stopped)


def continue_as(config: Config, pretrained: Path, out: Path) -> None:
    """A copy of a run that ended with its pre-training, to be resumed as one of `config`."""
    copy = out.with_name(f"{out.name}.partial")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(pretrained, copy)
    for path in [copy / "config.json", *copy.glob("seed-*/config.json")]:
        saved, seed, record = rundir.open_run(path.parent, several=True)
        saved = dataclasses.replace(saved, **{name: getattr(config, name) for name in ADVERSARIAL})
        rundir.write_record(path.parent, {**record, "config": saved.to_json()})
        if (checkpoints := path.parent / "checkpoints").exists():
            shutil.rmtree(checkpoints)
            target, about = run.target(saved), run.identity(saved, seed, record["data"])
            with (
                Checkpoints(pretrained / path.parent.relative_to(copy), create=False) as theirs,
                Checkpoints(path.parent, create=True, identity=about) as ours,
            ):
                last = theirs.restore(target)
                kept = [theirs.restore(target, "mle"), last]
                for kept_one in kept if kept[0].step < last.step else [last]:
                    ours.save(kept_one.step, kept_one.state, kept_one.extra, kept_one.metrics)
    copy.rename(out)


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit() -> str:
    """Of the library, `-dirty` where it differs from it."""
    try:
        git = functools.partial(subprocess.run, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
        revision = git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip()
        return revision + "-dirty" * bool(git(["git", "status", "--porcelain", "--", ":/leakgan_jax"]).stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def training_curve(place: Path) -> list[Line]:
    """The evaluations of a run: `epoch` counts MLE epochs, then adversarial iterations; NLLs at its own temperature."""
    kept, offset = [], 0
    for line in read(place / "metrics.jsonl"):
        if line["phase"] == "pretrain":
            offset = max(offset, line["step"])
        if "nll_gen" in line:
            epoch = line["step"] + (offset if line["phase"] == "adversarial" else 0)
            numbers = {name: line[name] for name in ("nll_oracle", "nll_gen", "distinct") if line[name] is not None}
            kept.append({"epoch": epoch, "phase": line["phase"], **{n: round(v, 4) for n, v in numbers.items()}})
    return kept


def score(config: Config, task: run.Task, params: Any, seed: int, num: int) -> list[Line]:
    """A model at every temperature, on sentences that neither trained it nor (of poems alone) chose its checkpoint.

    The first point, without a temperature, is of real sentences: of the oracle, or of the text that was trained on.
    """
    config = dataclasses.replace(config, eval_samples=num)
    key = jax.random.fold_in(jax.random.key(seed), 2**31)  # apart from every key of the run
    real_key, sample_key = jax.random.split(key)
    if task.oracle is not None:
        real = jax.jit(oracle.sample, static_argnums=(2, 3))(task.oracle, real_key, num, config.length)
        compared, temperatures = None, TEMPERATURES
    else:
        compared, temperatures = sweep.references(config, task), TEXT_TEMPERATURES
        real = compared.rows
    points = []
    for temperature in temperatures:
        key = jax.random.clone(sample_key)
        tokens, scores = run.evaluate(config, task._replace(heldout=real), params, key, temperature)
        if compared is not None:
            scores |= text_scores(task, np.asarray(tokens), compared.sentences)
        points.append({name: rounded(value) for name, value in scores.items() if value is not None})
    if task.oracle is not None:
        of_real = {"nll_oracle": rounded(float(jax.jit(oracle.nll)(task.oracle, real))), "num_samples": num}
    else:
        rows = np.random.default_rng(seed).permutation(task.train.shape[0])[:num]
        of_real = text_scores(task, np.asarray(task.train)[rows], compared.sentences) | {"num_samples": len(rows)}
    return [{"temperature": None, **of_real}, *points]


def text_scores(task: run.Task, tokens: np.ndarray, references: Sequence[Sequence[str]]) -> Line:
    """BLEU, self-BLEU and BLEU by length of the generated sentences."""
    sentences = [task.vocabulary.words_of(row) for row in tokens]
    scores = {**metrics.bleu(sentences, references), **metrics.self_bleu(sentences)}
    kept = {name: rounded(value) for name, value in scores.items() if "bleu_" in name}
    by_length = []
    for low, high in zip(LENGTH_EDGES, LENGTH_EDGES[1:]):
        chosen = [words for words in sentences if low <= len(words) < high]
        if len(chosen) >= 20:  # fewer say little
            own = metrics.bleu(chosen, references)
            by_length.append([low, high, len(chosen), *(rounded(own[f"bleu_{n}"]) for n in (2, 3, 4, 5))])
    return {**kept, "by_length": by_length, "references": len(references)}


def rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


# --- Reading lines ---------------------------------------------------------------------------------------------------


def of(lines: Iterable[Line], cell: str, checkpoint: str | None = None) -> list[Line]:
    """The lines of a cell by seed: of its final state, or of another checkpoint."""
    own = [line for line in lines if line["cell"] == cell]
    if checkpoint is None:
        own = [line for line in own if "curve" in line]
    else:
        own = [line for line in own if line["checkpoint"] == checkpoint]
    return sorted(own, key=lambda line: line["seed"])


def at(line: Line, temperature: float | None) -> Line:
    """The point of a line at a temperature; None for real sentences."""
    same = [p for p in line["points"] if p["temperature"] == temperature or _close(p["temperature"], temperature)]
    if not same:
        raise rundir.RunError(f"no point at temperature {temperature}")
    return same[0]


def sweep_of(line: Line) -> list[Line]:
    """The points of a line by temperature, without that of real sentences."""
    return sorted((point for point in line["points"] if point["temperature"]), key=lambda point: point["temperature"])


def _close(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and abs(a - b) < 1e-4


def spread(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean and standard deviation over seeds, or the one number there is; how many, where a seed has None."""
    known = [value for value in values if value is not None]
    few = f" ({len(known)} of {len(values)} seeds)" if len(known) < len(values) else ""
    if not known:
        return "none" if values else ""
    if len(known) == 1:
        return f"{known[0]:.{digits}f}{few}"
    return f"{np.mean(known):.{digits}f} ± {np.std(known, ddof=1):.{digits}f}{few}"


def beyond(model: Line, baseline: Line, level: float) -> float | None:
    """How much lower NLL_oracle of a model is than a baseline's where both have the same NLL_gen: below 0 is better.

    That NLL_gen is the baseline's lowest plus `level`, so the same for every model that is compared with it. None where
    the model has it at no temperature.
    """
    wanted = min(point["nll_gen"] for point in sweep_of(baseline)) + level
    own, others = (_oracle_where(line, wanted) for line in (model, baseline))
    return None if own is None or others is None else own - others


def _oracle_where(line: Line, nll_gen: float) -> float | None:
    """NLL_oracle at the temperature, below that of the lowest NLL_gen, at which NLL_gen is as wanted."""
    names = ("temperature", "nll_gen", "nll_oracle")
    temperatures, gen, oracle_ = (np.array([point[name] for point in sweep_of(line)]) for name in names)
    lowest = temperatures[np.argmin(gen)]
    # Between measured temperatures both are smooth; a straight line from point to point would flatter one of the two.
    found = [t for t in PchipInterpolator(temperatures, gen).solve(nll_gen, extrapolate=False) if t <= lowest]
    return float(PchipInterpolator(temperatures, oracle_)(max(found))) if found else None


def draw_curves(ax: Any, lines: Sequence[Line], x: str, y: str, colour: str, label: str) -> None:
    """Two scores of a model over temperatures: the mean over seeds, and faintly each seed."""
    curves = [[(point[x], point[y]) for point in sweep_of(line)] for line in lines]
    for curve in curves:
        ax.plot(*zip(*curve, strict=True), lw=0.6, alpha=0.35, color=colour)
    ax.plot(*np.mean(curves, axis=0).T, "o-", ms=2.5, lw=1.6, color=colour, label=label)


def facts(lines: Sequence[Line], scale: str, samples: int | None = None) -> str:
    """Seeds, counts, devices and commits behind a table, in a sentence; `samples` a row, if not those of the points."""
    seeds = sorted({line["seed"] for line in lines})
    count = samples or max(p["num_samples"] for line in lines for p in line["points"])
    places = sorted({f"{line['device']}, JAX {line['jax']}, commit {line['commit']}" for line in lines})
    label = "LAPTOP SCALE: a smaller oracle, model and schedule than the paper's. " if scale == "laptop" else ""
    number = f"{len(seeds)} seeds ({seeds[0]}-{seeds[-1]})" if len(seeds) > 1 else f"seed {seeds[0]}"
    return f"{label}{number}, mean ± standard deviation; {count:,} samples a row. {'; '.join(places)}."


def publish(text: str, path: Path, pictures: dict[str, Any] | None = None) -> None:
    """Prints Markdown and keeps it, with pictures beside it: name -> figure.

    What is on file of more seeds stays as it is.
    """
    print(text)
    on_file = path.read_text(encoding="utf-8") if path.exists() else ""
    if _seeds_of(text) < _seeds_of(on_file):
        print(f"{path} stays as it is: it is of {_seeds_of(on_file)} seeds, this of fewer", file=sys.stderr)
        return
    path.write_text(text + "\n", encoding="utf-8")
    for name, figure in (pictures or {}).items():
        save(figure, path.with_name(name))


def _seeds_of(text: str) -> int:
    """That `facts` has told of."""
    return max((int(count) for count in re.findall(r"(\d+) seeds \(", text)), default=1)
