"""The experiments: models are trained once and read ever after, and every committed table is that of its lines."""

import argparse
import dataclasses
import functools
import hashlib
import importlib
import itertools
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from leakgan_jax import preset, rundir, training
from leakgan_jax.config import PRESETS

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
compare, lab = importlib.import_module("compare"), importlib.import_module("lab")

pytestmark = pytest.mark.usefixtures("fast_compile")

TINY = {
    "vocab_size": 30,
    "length": 8,
    "num_train": 32,
    "num_heldout": 16,
    "filter_windows": (1, 3),
    "filter_counts": (4, 5),
    "discriminator_embedding": 6,
    "worker_hidden": 4,
    "worker_embedding": 4,
    "manager_hidden": 4,
    "goal_dim": 2,
    "completions": 1,
    "batch_size": 8,
    "draw_size": 16,
    "discriminator_epochs": 1,
    "generator_steps": 1,
    "pretrain_rounds": 2,
    "pretrain_draws": 1,
    "mle_epochs": 1,
    "adversarial_iterations": 1,
    "eval_samples": 16,
    "oracle_hidden": 3,
}


def line(temperatures, nll_gen, nll_oracle):
    rows = zip(temperatures, nll_gen, nll_oracle, strict=True)
    points = [dict(zip(("temperature", "nll_gen", "nll_oracle"), row)) for row in rows]
    return {"points": [{"temperature": None, "nll_oracle": 3.0}, *points]}


def smooth(temperatures, better=0.0, worse=0.0):
    """Curves like those of trained models: NLL_gen lowest at 1.05, NLL_oracle growing faster and faster."""
    t = np.asarray(temperatures)
    return line(temperatures, 5.1 + 0.8 * (1 / t - 0.95) ** 2 + worse, 2.5 + 4 * t**1.3 - better)


def test_models_are_compared_at_temperatures_between_those_measured():
    """A straight line between points of a bent curve would show a difference of up to 0.1 where there is none."""
    baseline, shifted = smooth(lab.TEMPERATURES), smooth([t * 1.03 for t in lab.TEMPERATURES], better=0.2)
    for level in lab.LEVELS:
        assert lab.beyond(baseline, baseline, level) == 0
        assert lab.beyond(shifted, baseline, level) == pytest.approx(-0.2, abs=0.01)


def test_a_model_is_compared_where_the_baseline_is_so_much_above_its_lowest():
    baseline, model = smooth(lab.TEMPERATURES), smooth(lab.TEMPERATURES, worse=0.15)
    assert lab.beyond(model, baseline, 0.1) is None  # it has that NLL_gen at no temperature
    t, own = (1 / (0.95 + np.sqrt(left / 0.8)) for left in (0.4, 0.25))
    assert lab.beyond(model, baseline, 0.4) == pytest.approx(4 * own**1.3 - 4 * t**1.3, abs=0.01)


def test_what_lies_above_the_temperature_of_the_lowest_is_not_compared():
    """There NLL_gen rises again as NLL_oracle does; a model is not to be put beside its warm side."""
    baseline = line((0.5, 0.7, 0.9, 1.1), (8.0, 6.0, 5.0, 5.5), (4.0, 5.0, 6.0, 7.0))
    assert lab.beyond(baseline, baseline, 0.4) == 0
    assert 5.0 < lab._oracle_where(baseline, 5.4) < 6.0


def test_a_seed_that_cannot_be_compared_is_told_and_not_tested():
    differing = {compare.BASE: [0.0] * 4, "a": [0.1, 0.2, 0.15, None], "b": [0.1, 0.2, 0.15, 0.17]}
    cells = compare.tests(differing)
    assert cells["a"] == ("0.150 ± 0.050 (3 of 4 seeds)", "") and cells["b"][1].count(",") == 1
    assert lab.spread([None, None]) == "none" and lab.spread([1.0]) == "1.000"


def test_holm_corrects_for_all_that_is_tested():
    adjusted = compare.holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert adjusted == {"a": pytest.approx(0.03), "c": pytest.approx(0.06), "b": pytest.approx(0.06)}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setitem(lab.PRESETS["laptop"], "synthetic20", "tiny")
    monkeypatch.setitem(lab.SCALES, "laptop", (2, 16))
    (tmp_path / "results" / "laptop").mkdir(parents=True)
    return argparse.Namespace(
        scale="laptop",
        seeds=1,
        runs=tmp_path / "runs",
        results=tmp_path / "results",
        manual_dir=None,
        data_dir=None,
        oracle_file=None,
        read_only=False,
    )


def test_what_is_missing_is_trained_and_what_is_there_is_read(arguments, monkeypatch):
    short = {"pretrain_rounds": 1, "pretrain_draws": 1, "mle_epochs": 2, "adversarial_iterations": 1}
    cells = [lab.Cell("synthetic20", "SeqGAN", {**lab.MODELS["SeqGAN"], **short})]
    lines = lab.collect(cells, arguments)
    final = lab.of(lines, "SeqGAN")
    assert [line["checkpoint"] for line in final] == ["SeqGAN"]
    assert [line["checkpoint"] for line in lab.of(lines, "SeqGAN", lab.PRETRAINED)] == [lab.PRETRAINED]
    temperatures = [p["temperature"] for p in final[0]["points"]]
    assert temperatures == [None, *(pytest.approx(t, abs=1e-4) for t in lab.TEMPERATURES)]
    assert lab.at(final[0], None)["nll_oracle"] > 0 and lab.at(final[0], 1.0)["num_samples"] == 16
    assert [p["epoch"] for p in final[0]["curve"]] == [1, 2, 3]
    lab.train(cells[0].config("laptop"), [0], arguments.runs / "whole", arguments)  # without a shared pre-training
    assert lab.training_curve(arguments.runs / "whole") == final[0]["curve"]
    monkeypatch.setattr(lab, "make", None)  # nothing may be trained again
    assert lab.collect(cells, arguments) == lines
    arguments.read_only, arguments.seeds = True, 2
    with pytest.raises(rundir.RunError, match=r"lacks SeqGAN of seeds \[1\]"):
        lab.collect(cells, arguments)


def test_cells_of_one_file_are_appended_to_it(arguments, monkeypatch):
    def make(cell, seeds, settings, args):
        made = {"cell": cell.name, "checkpoint": "LeakGAN", "settings": settings, "points": []}
        return [made | {"seed": seed} for seed in seeds]

    monkeypatch.setattr(lab, "make", make)
    cells = [lab.Cell("synthetic20", name, {"completions": n}) for n, name in enumerate("abc", 1)]
    lines = lab.collect(cells, arguments, first=100, file="tuning")
    assert [(line["cell"], line["seed"]) for line in lines] == [("a", 100), ("b", 100), ("c", 100)]
    assert lab.read(arguments.results / "laptop" / "tuning.jsonl") == lines


def test_lines_of_other_settings_are_not_taken_for_these(arguments):
    path = arguments.results / "laptop" / "synthetic20.jsonl"
    cell = lab.Cell("synthetic20", "LeakGAN", {})
    settings = lab.identity(cell, arguments)
    other = {"cell": "LeakGAN", "seed": 0, "checkpoint": "LeakGAN", "points": []}
    path.write_text(json.dumps(other | {"settings": settings | {"completions": 9}}) + "\n")
    arguments.read_only = True
    with pytest.raises(rundir.RunError, match="lacks LeakGAN"):
        lab.collect([cell], arguments)


POINTS = [
    {"temperature": None, "num_samples": 9, "nll_oracle": 3.0},
    {"temperature": 1.0, "num_samples": 9, "nll_oracle": 4.0, "nll_gen": 5.0, "distinct": 1.0},
]


@pytest.mark.parametrize(
    "damage, match",
    [
        (lambda lines: [*lines, lines[0]], r"of LeakGAN, seed 0, it has lines of \['LeakGAN', '.*', 'LeakGAN'\]"),
        (lambda lines: lines[:1], "of LeakGAN, seed 0, it has lines of"),
        (lambda lines: [{}, *lines], "line 1, is damaged"),
        (lambda lines: [*lines, 3], "line 3, is damaged"),
        (lambda lines: [lines[0], lines[1] | {"points": [POINTS[0], {"temperature": 1.0}]}], "line 2, is damaged"),
        (lambda lines: [lines[0] | {"points": [POINTS[0] | {"nll_oracle": float("nan")}]}], "line 1, is damaged"),
        (lambda lines: [lines[0] | {"points": 7}], "line 1, is damaged"),
    ],
)
def test_damaged_lines_are_neither_counted_nor_made_again(damage, match, arguments):
    cell = lab.Cell("synthetic20", "LeakGAN", {})
    line = {"cell": "LeakGAN", "seed": 0, "settings": lab.identity(cell, arguments), "points": POINTS}
    lines = [line | {"checkpoint": name} for name in ("LeakGAN", lab.PRETRAINED)]
    path = arguments.results / "laptop" / "synthetic20.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert lab.collect([cell], arguments) == lines
    path.write_text("".join(json.dumps(line) + "\n" for line in damage(lines)))
    with pytest.raises(rundir.RunError, match=match):
        lab.collect([cell], arguments)


VOCABULARIES = {"coco": 1_245, "news": 1_072, "poems": 1_827}  # of the words at laptop scale


@pytest.mark.parametrize("scale, task", [(scale, task) for scale in lab.WIDTHS for task in lab.WIDTHS[scale]])
def test_a_baseline_has_as_many_parameters_as_leakgans_generator(scale, task):
    words = {} if "synthetic" in task else {"vocab_size": VOCABULARIES[task] if scale == "laptop" else 5_000}

    def size(config):
        params = jax.eval_shape(functools.partial(training.init, config), jax.random.key(0)).params
        of_generator = [getattr(params, name) for name in params._fields if name != "discriminator"]
        return sum(leaf.size for leaf in jax.tree.leaves(of_generator))

    narrow, same, leakgan = (
        size(dataclasses.replace(cell.config(scale), **words))
        for cell in lab.models(task, scale, ["MLE", lab.SAME_SIZE, "LeakGAN"])
    )
    assert 0.97 * leakgan < same <= leakgan
    if task == "synthetic20":  # as README.md and NOTES.md say
        assert (narrow, leakgan) == {"laptop": (27_852, 88_336), "paper": (333_352, 3_118_736)}[scale]


def test_bleu_is_compared_at_equal_self_bleu_alone():
    text_models = importlib.import_module("text_models")
    bleu = lambda *rows: {"points": [{"temperature": t, "self_bleu_4": x, "bleu_4": y} for t, x, y in rows]}  # noqa: E731
    baseline, model = bleu((1.0, 0.3, 0.2), (0.6, 0.7, 0.4)), bleu((1.0, 0.4, 0.3), (0.6, 0.6, 0.5))
    assert text_models.higher(model, baseline, 0.5) == pytest.approx(0.4 - 0.3)
    assert text_models.higher(model, baseline, 0.35) is None and text_models.higher(model, baseline, 0.65) is None


def test_a_flag_that_is_none_is_one_line_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablations.py", "--seed", "x"])
    with pytest.raises(SystemExit, match="2"):
        lab.main("ablations.py", "", print)
    assert capsys.readouterr().err.count("\n") == 1


def test_seeds_that_never_have_a_self_bleu_are_named_and_not_tested():
    text_models = importlib.import_module("text_models")

    def of_seed(seed, bleu, least=0.3):
        points = [(1.0, least, bleu), (0.6, 0.7, bleu)]
        return {"seed": seed, "points": [{"temperature": t, "self_bleu_4": x, "bleu_4": y} for t, x, y in points]}

    pairs = [(of_seed(seed, bleu), of_seed(seed, 0.2)) for seed, bleu in ((0, 0.21), (1, 0.23), (2, 0.22))]
    assert text_models.at_level(pairs, 0.5) == "0.020 ± 0.010, p 0.074"
    pairs[1:] = [(of_seed(seed, 0.3, least=0.6), other) for seed, (_, other) in ((1, pairs[1]), (2, pairs[2]))]
    assert text_models.at_level(pairs, 0.5) == "0.010 (without seeds 1, 2)"
    assert text_models.at_level(pairs, 0.8) == "none"


@pytest.mark.parametrize(
    "text", ["a,b\n", "length,model,epoch,nll_oracle\n", "length,model,epoch,nll_oracle\n20,MLE,1,nan\n"]
)
def test_published_curves_are_numbers(text, tmp_path):
    (tmp_path / "curves.csv").write_text(text)
    with pytest.raises(rundir.RunError, match="not a table of length, model, epoch, nll_oracle"):
        importlib.import_module("figure2_curves").read_published(tmp_path / "curves.csv")


def test_bad_input_is_one_line_and_status_2(monkeypatch, capsys, tmp_path):
    script = importlib.import_module("ablations")
    monkeypatch.setattr(sys, "argv", ["ablations.py", "--read-only", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        lab.main("ablations.py", script.__doc__, script.body)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "script, argv, told",
    [
        ("quickstart_seeds", "--seeds 0 --results kept", "--seeds is 0; it must be 2 to 1000"),
        ("quickstart_seeds", "--seeds 1 --results kept", "--seeds is 1; it must be 2 to 1000"),
        ("table1_synthetic", "--seeds 1001 --read-only --results new", "it must be 1 to 1000"),
        ("table1_synthetic", "--read-only --results new", "lacks MLE of seeds"),
        ("figure2_curves", "--read-only --results new --published nowhere", "--published nowhere cannot be read"),
        ("golden_bleu", "--data nowhere --out kept", "--data nowhere"),
        ("released_curve", "--released nowhere --out new/curve", "nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_harms_nothing(script, argv, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", None)  # nothing may be trained
    (tmp_path / "kept").write_text("of before")
    with pytest.raises(SystemExit, match="2"):
        run_script(script, monkeypatch, *argv.split())
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and (tmp_path / "kept").read_text() == "of before"


def test_fewer_seeds_than_on_file_are_printed_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lab, "collect", made_up)
    folder = tmp_path / "laptop"
    for seeds, kept in (("2", False), ("1", True), ("3", False)):
        before = {path: path.read_bytes() for path in folder.glob("*")}
        run_script("quality_diversity", monkeypatch, "--seeds", seeds, "--results", str(tmp_path))
        printed = capsys.readouterr()
        assert "| LeakGAN |" in printed.out and ("stays as it is: it is of 2 seeds" in printed.err) == kept
        assert (before == {path: path.read_bytes() for path in folder.glob("*")}) == kept


def test_published_curves_have_a_picture_of_their_own(tmp_path, monkeypatch):
    """What the command without them draws is on file, and stays."""
    monkeypatch.setattr(lab, "collect", made_up)
    (tmp_path / "curves.csv").write_text("length,model,epoch,nll_oracle\n20,MLE,1,9.5\n20,MLE,2,9.0\n")
    run_script("figure2_curves", monkeypatch, "--results", str(tmp_path))
    before = {path.name: path.read_bytes() for path in (tmp_path / "laptop").iterdir()}
    assert before.keys() == {"figure2.md", "figure2.png"}
    argv = ["--published", str(tmp_path / "curves.csv"), "--results", str(tmp_path)]
    run_script("figure2_curves", monkeypatch, *argv)
    after = {path.name: path.read_bytes() for path in (tmp_path / "laptop").iterdir()}
    assert after.pop("figure2_published.png") != after["figure2.png"] and after == before


def test_the_committed_table_of_the_runs_at_paper_scale_is_that_of_their_lines():
    """But for the released log, which is not ours to distribute: its column is taken from the table."""
    script, path = importlib.import_module("released_curve"), lab.RESULTS / "paper" / "released_curve.md"
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \|", path.read_text(), re.MULTILINE)
    log = {int(epoch): float(score) for epoch, score in rows}
    text = script.table(lab.read(path.with_suffix(".jsonl")), log)
    assert len(log) > 5 and path.read_text() == f"{text}\n\n![Curves](released_curve.png)\n"


def test_lines_differ_from_settings_that_stay():
    """A line keeps what it differs in from `synthetic20`; before that changes, every line must be told what it was."""
    text = json.dumps(preset("synthetic20").to_json(), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == "e245da1a1a4b"


SCRIPTS = {
    "table1_synthetic": "table1.md",
    "table2_news": "table2.md",
    "table3_coco": "table3.md",
    "table4_poems": "table4.md",
    "figure2_curves": "figure2.md",
    "figure3_lengths": "figure3.md",
    "quality_diversity": "quality_diversity.md",
    "ablations": "ablations.md",
    "frontier": "frontier.md",
    "tuning": "tuning.md",
}


def made_up(cells, args, first=0, file=""):
    """Lines as `lab.collect` returns them, of models that were never trained."""
    lines, rng = [], np.random.default_rng(0)
    for cell in cells:
        config, is_text = cell.config(args.scale), cell.task not in ("synthetic20", "synthetic40")
        names = [config.title] if config.adversarial_iterations else [lab.PRETRAINED]
        names += [lab.PRETRAINED] * (cell.name == "LeakGAN")
        for seed, name in itertools.product(range(first, first + args.seeds), names):
            points = []
            for t in (None, *(lab.TEXT_TEMPERATURES if is_text else lab.TEMPERATURES)):
                x = 1.0 if t is None else t
                point = {"temperature": t, "num_samples": 1000, "distinct": 1.0, "nll_div": 3.0}
                point |= {"nll_gen": 5.1 + 0.8 * (1 / x - 0.95) ** 2} if t else {}
                if is_text:
                    scored = [f"{kind}_{n}" for kind in ("bleu", "self_bleu") for n in (2, 3, 4, 5)]
                    point |= {name: 0.9 - 0.4 * x + 0.01 * rng.normal() for name in scored}
                    point |= {"references": 10_000, "by_length": [[1, 8, 30, 0.5, 0.4, 0.3, 0.2]]}
                else:
                    point["nll_oracle"] = 2.5 + 4 * x + 0.05 * rng.normal()
                points.append(point)
            made = {"cell": cell.name, "seed": seed, "checkpoint": name, "points": points, "train": 9_000}
            made |= {"device": "cpu", "jax": "0", "commit": "none"}
            if name == names[0]:
                phases = ["pretrain"] * 3 + ["adversarial"] * (2 if config.adversarial_iterations else 0)
                scores = {"nll_gen": 5.0, "nll_oracle": 6.0, "distinct": 1.0}
                made["curve"] = [{"epoch": i + 1, "phase": phase, **scores} for i, phase in enumerate(phases)]
            lines.append(made)
    return lines


def run_script(script, monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", [script, *argv])
    runpy.run_path(str(EXPERIMENTS / f"{script}.py"), run_name="__main__")


@pytest.mark.parametrize("script, scale", [*itertools.product(SCRIPTS, lab.SCALES)])
def test_scripts_print_and_draw(script, scale, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lab, "collect", made_up)
    run_script(script, monkeypatch, "--scale", scale, "--results", str(tmp_path))
    text = (tmp_path / scale / SCRIPTS[script]).read_text()
    assert text in capsys.readouterr().out and "nan" not in text and "of 5 seeds" not in text
    assert ("LAPTOP SCALE" in text) == (scale == "laptop") and f"{lab.SCALES[scale][0]} seeds" in text
    for table in text.split("\n\n"):
        assert len({row.count("|") for row in table.splitlines() if row.startswith("|")}) <= 1
    pictures = [*(tmp_path / scale).glob("*.png")]
    assert len(pictures) == text.count("![") and all(path.name in text for path in pictures)


@pytest.mark.parametrize("script, scale", [*itertools.product(SCRIPTS, lab.SCALES)])
def test_committed_tables_are_those_of_the_committed_lines(script, scale, tmp_path, monkeypatch):
    """Every table is made again, from lines alone, and a picture."""
    committed = lab.RESULTS / scale / SCRIPTS[script]
    if not committed.exists():
        pytest.skip(f"no {committed.name} at {scale} scale")
    for path in committed.parent.glob("*.jsonl"):
        (tmp_path / scale).mkdir(exist_ok=True)
        (tmp_path / scale / path.name).write_text(path.read_text())
    found = re.search(r"(\d+) seeds", committed.read_text())
    argv = ["--seeds", found[1] if found else "1", "--results", str(tmp_path), "--read-only"]
    run_script(script, monkeypatch, "--scale", scale, *argv)
    assert (tmp_path / scale / committed.name).read_text() == committed.read_text()
    assert [path.name for path in (tmp_path / scale).glob("*.png")] == re.findall(
        r"!\[.*\]\((.*)\)", committed.read_text()
    )
