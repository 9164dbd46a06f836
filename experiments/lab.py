"""What the experiments share: models trained where no line of them is saved, scored once, and read ever after.

A `Cell` is one model with its settings on one task. `collect` finds its lines in `results/SCALE/TASK.jsonl`, a line a
seed and checkpoint; seeds without one are trained side by side in `runs/`, which can be interrupted and go on, and
scored over temperatures with sentences that training never saw. Tables and pictures read lines and nothing else.
"""

import argparse
import functools
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from leakgan_jax import Config, ConfigError, metrics, oracle, preset, run, sweep
from leakgan_jax.checkpoint import CheckpointError
from leakgan_jax.cli import set_up_jax
from leakgan_jax.data import DataError
from leakgan_jax.display import Display

RESULTS = Path(__file__).parent / "results"
PUBLISHED = 1 / 1.5  # the temperature of the published numbers of LeakGAN
TEMPERATURES = (0.4, 0.5, 0.6, PUBLISHED, 0.8, 0.9, 1.0, 1.1)
TEXT_TEMPERATURES = (0.6, PUBLISHED, 0.8, 0.9, 1.0, 1.1)
LENGTH_EDGES = (1, 8, 12, 16, 20, 25, 30, 40)  # of sentences, for Figure 3
SCALES = {
    # seeds; sentences drawn at each temperature
    "laptop": (5, 1_000),
    "paper": (3, 9_984),
}
PRESETS = {
    "laptop": {name: f"laptop-{name}" for name in ("synthetic20", "synthetic40", "coco", "news", "poems")},
    "paper": {name: name for name in ("synthetic20", "synthetic40", "coco", "news", "poems")},
}
MODELS = {
    "MLE": {"model": "mle"},
    "SeqGAN": {"model": "seqgan"},
    "SeqGAN-rescale": {"model": "seqgan", "rescaling": "rank"},
    "RankGAN": {"model": "rankgan"},
    "LeakGAN": {},
}

Line = dict[str, Any]


class Cell(NamedTuple):
    """One model on one task."""

    task: str  # a name in `PRESETS`; its file of results
    name: str  # its row
    settings: dict[str, Any]  # beside the preset

    def config(self, scale: str) -> Config:
        return preset(PRESETS[scale][self.task], **self.settings)


def models(task: str, names: Iterable[str] = MODELS) -> list[Cell]:
    """The models of the paper on one task."""
    return [Cell(task, name, MODELS[name]) for name in names]


def parser(script: str, description: str) -> argparse.ArgumentParser:
    """Of a script; `--scale`, `--seeds` and where to read and write."""
    formatter = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(
        prog=f"python experiments/{script}", description=description, formatter_class=formatter
    )
    made.add_argument(
        "--scale",
        choices=SCALES,
        default="laptop",
        help="laptop: small oracle, models and schedules; paper: as published",
    )
    made.add_argument("--seeds", type=int, help="default: 5 at laptop scale, 3 at the paper's")
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
    if args.seeds < 1:
        made.exit(2, f"{made.prog}: seeds is {args.seeds}; it must be at least 1\n")
    set_up_jax()
    try:
        body(args)
    except (ConfigError, DataError, run.RunError, CheckpointError, oracle.OracleError, OSError) as error:
        made.exit(2, f"{made.prog}: {error}\n")


# --- Training and scoring --------------------------------------------------------------------------------------------


def collect(cells: Sequence[Cell], args: argparse.Namespace) -> list[Line]:
    """The lines of `cells` for seeds 0 to `args.seeds` - 1, missing ones made first, in the order of the cells."""
    wanted = []
    for i, cell in enumerate(cells):
        path = args.results / args.scale / f"{cell.task}.jsonl"
        settings = identity(cell, args)
        known = [line for line in read(path) if line["cell"] == cell.name and line["settings"] == settings]
        seeds = [seed for seed in range(args.seeds) if not any(line["seed"] == seed for line in known)]
        if seeds and args.read_only:
            raise run.RunError(f"{path} lacks {cell.name} of seeds {seeds}; leave out --read-only to train them")
        while seeds:  # side by side as far as they follow one another
            together = [seed for n, seed in enumerate(seeds) if seed == seeds[0] + n]
            print(f"\n{cell.task}: {cell.name}, seeds {together}; {i + 1} of {len(cells)}", file=sys.stderr, flush=True)
            new = make(cell, together, settings, args)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in new)
            known += new
            seeds = seeds[len(together) :]
        wanted += [line for line in known if line["seed"] < args.seeds]
    return wanted


def read(path: Path) -> list[Line]:
    """The lines of a file of results; none where there is no file."""
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError:
        raise run.RunError(f"{path} is damaged: every line must be JSON; restore it") from None


def identity(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """What a line must have been made with: every setting in which the cell differs from `synthetic20`."""
    base, own = preset("synthetic20").to_json(), cell.config(args.scale).to_json()
    changed = {name: value for name, value in own.items() if value != base[name] and name != "oracle_file"}
    return json.loads(json.dumps(changed)) | ({"published_oracle": True} if published_oracle(cell, args) else {})


def published_oracle(cell: Cell, args: argparse.Namespace) -> bool:
    return args.oracle_file is not None and args.scale == "paper" and cell.task == "synthetic20"


def make(cell: Cell, seeds: Sequence[int], settings: dict[str, Any], args: argparse.Namespace) -> list[Line]:
    """Trains (or goes on with) and scores: for each seed, a line of the best MLE state and one of the final one."""
    config = cell.config(args.scale)
    if published_oracle(cell, args):
        config = preset(PRESETS[args.scale][cell.task], **cell.settings, oracle_file=str(args.oracle_file.resolve()))
    out = args.runs / args.scale / cell.task / f"{slug(cell.name)}-{seeds[0]}-{seeds[-1]}"
    began = time.monotonic()
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
    facts = {
        "device": run.open_run(out, several=True)[2]["device"],
        "jax": jax.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - began),
    }
    lines = []
    for seed, place in zip(seeds, run.directories(out, seeds), strict=True):
        config, task = run.open_task(place)
        found = run.load_models(place, config, lambda line: print(line, file=sys.stderr))
        curve = training_curve(place)
        for name, params in found.items():
            final = name == list(found)[-1]
            print(f"scoring seed {seed}: {name}", file=sys.stderr, flush=True)
            points = score(config, task, params, seed, SCALES[args.scale][1])
            line = {"cell": cell.name, "seed": seed, "checkpoint": name, "points": points}
            lines.append(line | ({"curve": curve} if final else {}) | {"settings": settings, **facts})
    return lines


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
    """A model at every temperature, on sentences that neither trained it nor chose its checkpoint."""
    import dataclasses

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
        real_nll = rounded(float(jax.jit(oracle.nll)(task.oracle, real)))
        points.insert(0, {"temperature": None, "nll_oracle": real_nll, "num_samples": num})
    return points


def text_scores(task: run.Task, tokens: np.ndarray, references: Sequence[Sequence[str]]) -> Line:
    """BLEU, self-BLEU and BLEU by length of the generated sentences."""
    sentences = [task.vocabulary.words_of(row) for row in tokens]
    scores = {**metrics.bleu(sentences, references), **metrics.self_bleu(sentences)}
    kept = {name: value for name, value in scores.items() if "bleu_" in name}
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
        raise run.RunError(f"no point at temperature {temperature}")
    return same[0]


def _close(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and abs(a - b) < 1e-4


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation over seeds, or the one number there is."""
    values = [value for value in values if value is not None]
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def matched(model: Line, baseline: Line, x: str = "nll_gen", y: str = "nll_oracle") -> list[Line]:
    """How much lower `y` of a model is than a baseline's at equal `x`, at each temperature of the model.

    The baseline is a curve over its temperatures, straight between them; only its part from the lowest `x` towards
    low temperatures is used, on which `x` grows as `y` falls, and only where the model's `x` lies on it.

    Returns:
        `temperature`, `x` and `difference` (model less baseline), one for each point that can be compared.
    """
    points = sorted((p for p in baseline["points"] if p["temperature"] is not None), key=lambda p: -p["temperature"])
    best = min(range(len(points)), key=lambda i: points[i][x])
    curve = points[best:]
    xs, ys = [p[x] for p in curve], [p[y] for p in curve]
    while any(later <= earlier for earlier, later in zip(xs, xs[1:])):  # noise: keep what grows
        bad = next(i for i, (earlier, later) in enumerate(zip(xs, xs[1:])) if later <= earlier)
        del xs[bad + 1], ys[bad + 1]
    compared = []
    for p in model["points"]:
        if p["temperature"] is not None and xs[0] <= p[x] <= xs[-1]:
            difference = p[y] - float(np.interp(p[x], xs, ys))
            compared.append({"temperature": p["temperature"], "x": p[x], "difference": difference})
    return compared


def facts(lines: Sequence[Line], scale: str) -> str:
    """Seeds, counts, devices and commits behind a table, in a sentence."""
    seeds = sorted({line["seed"] for line in lines})
    counts = sorted({p["num_samples"] for line in lines for p in line["points"]})
    places = sorted({f"{line['device']}, JAX {line['jax']}, commit {line['commit']}" for line in lines})
    label = "LAPTOP SCALE: a smaller oracle, model and schedule than the paper's. " if scale == "laptop" else ""
    number = f"{len(seeds)} seeds ({seeds[0]}-{seeds[-1]})" if len(seeds) > 1 else f"seed {seeds[0]}"
    return f"{label}{number}, mean ± standard deviation; {counts[-1]:,} samples a row. {'; '.join(places)}."


def publish(text: str, path: Path) -> None:
    """Prints Markdown and keeps it."""
    print(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
