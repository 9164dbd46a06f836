"""The experiments: models are trained once and read ever after, and every committed table is that of its lines."""

import argparse
import importlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from leakgan_jax import run
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


def curve(temperatures, nll_gen, nll_oracle):
    rows = zip(temperatures, nll_gen, nll_oracle, strict=True)
    points = [dict(zip(("temperature", "nll_gen", "nll_oracle"), row)) for row in rows]
    return {"points": [{"temperature": None, "nll_oracle": 3.0}, *points]}


def test_models_are_compared_where_the_baseline_has_the_same_nll_gen():
    """The baseline's lowest NLL_gen is at temperature 0.9; what lies above that temperature is not on its curve."""
    baseline = curve((0.5, 0.7, 0.9, 1.1), (8.0, 6.0, 5.0, 5.5), (4.0, 5.0, 6.0, 7.0))
    model = curve((0.6, 0.8, 1.0, 1.2), (8.5, 7.0, 5.5, 4.9), (4.0, 4.2, 5.7, 6.5))
    found = lab.matched(model, baseline)
    assert [p["temperature"] for p in found] == [0.8, 1.0]  # the others are beside the curve
    np.testing.assert_allclose([p["difference"] for p in found], [4.2 - 4.5, 5.7 - 5.5])
    assert lab.matched(baseline, baseline)[0]["difference"] == 0


def test_noise_on_a_curve_does_not_fold_it():
    baseline = curve((0.5, 0.7, 0.8, 0.9), (8.0, 5.9, 6.0, 5.0), (4.0, 5.0, 5.2, 6.0))
    model = curve((1.0,), (7.0,), (4.6,))
    np.testing.assert_allclose(lab.matched(model, baseline)[0]["difference"], 0)


def test_holm_corrects_for_all_that_is_tested():
    adjusted = compare.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": float("nan")})
    assert adjusted["a"] == pytest.approx(0.03) and adjusted["c"] == pytest.approx(0.06)
    assert adjusted["b"] == pytest.approx(0.06) and np.isnan(adjusted["d"])


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setitem(lab.PRESETS["laptop"], "synthetic20", "tiny")
    monkeypatch.setitem(lab.SCALES, "laptop", (2, 16))
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
    assert [line["checkpoint"] for line in lab.of(lines, "SeqGAN", "MLE, best NLL_gen")] == ["MLE, best NLL_gen"]
    temperatures = [p["temperature"] for p in final[0]["points"]]
    assert temperatures == [None, *(pytest.approx(t, abs=1e-4) for t in lab.TEMPERATURES)]
    assert lab.at(final[0], None)["nll_oracle"] > 0 and lab.at(final[0], 1.0)["num_samples"] == 16
    assert [p["epoch"] for p in final[0]["curve"]] == [1, 2, 3]
    monkeypatch.setattr(lab, "make", None)  # nothing may be trained again
    assert lab.collect(cells, arguments) == lines
    arguments.read_only, arguments.seeds = True, 2
    with pytest.raises(run.RunError, match=r"lacks SeqGAN of seeds \[1\]"):
        lab.collect(cells, arguments)


def test_lines_of_other_settings_are_not_taken_for_these(arguments):
    path = arguments.results / "laptop" / "synthetic20.jsonl"
    cell = lab.Cell("synthetic20", "LeakGAN", {})
    settings = lab.identity(cell, arguments)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"cell": "LeakGAN", "seed": 0, "settings": settings | {"completions": 9}}) + "\n")
    arguments.read_only = True
    with pytest.raises(run.RunError, match="lacks LeakGAN"):
        lab.collect([cell], arguments)


def test_bad_input_is_one_line_and_status_2(monkeypatch, capsys, tmp_path):
    script = importlib.import_module("ablations")
    monkeypatch.setattr(sys, "argv", ["ablations.py", "--read-only", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        lab.main("ablations.py", script.__doc__, script.body)
    assert capsys.readouterr().err.count("\n") == 1


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
}


@pytest.mark.parametrize("script, scale", [*itertools.product(SCRIPTS, lab.SCALES)])
def test_committed_tables_are_those_of_the_committed_lines(script, scale, tmp_path, monkeypatch):
    """Every table and picture is made again, from lines alone."""
    committed = lab.RESULTS / scale / SCRIPTS[script]
    if not committed.exists():
        pytest.skip(f"no {committed.name} at {scale} scale")
    for path in committed.parent.glob("*.jsonl"):
        (tmp_path / scale).mkdir(exist_ok=True)
        (tmp_path / scale / path.name).write_text(path.read_text())
    seeds = max(line["seed"] for path in (tmp_path / scale).iterdir() for line in lab.read(path)) + 1
    argv = ["--scale", scale, "--seeds", str(seeds), "--results", str(tmp_path), "--read-only"]
    monkeypatch.setattr(sys, "argv", [script, *argv])
    source = (EXPERIMENTS / f"{script}.py").read_text()
    exec(compile(source, script, "exec"), {"__name__": "__main__"})
    assert (tmp_path / scale / committed.name).read_text() == committed.read_text()
    assert list((tmp_path / scale).glob("*.png"))
