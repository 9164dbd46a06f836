"""Whole runs through the command line: their files, resuming, and every kind of bad input.

All runs here share one tiny config, so that the jitted functions compile once for the file.
"""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from leakgan_jax import cli, data, rollout, run, rundir
from leakgan_jax.checkpoint import Checkpoints
from leakgan_jax.config import preset

TINY = (
    "--vocab-size 30 --length 8 --filter-windows 1 3 8 --filter-counts 4 5 3 --batch-size 8 --draw-size 32 "
    "--num-train 64 --num-heldout 32 --eval-samples 40 --sample-batch 16 --discriminator-embedding 6 "
    "--worker-hidden 7 --manager-hidden 5 --goal-dim 3 --completions 2 --pretrain-rounds 2 --pretrain-draws 1 "
    "--mle-epochs 2 --adversarial-iterations 4 --adversarial-draws 1 --interleave-every 3 --eval-every 2"
).split()
TEXT = [*TINY[2:], "--min-count", "2", "--lowercase", "--tokenizer", "whitespace"]  # all but the vocabulary size
pytestmark = pytest.mark.usefixtures("fast_compile")
CORPUS = "A man rides a horse\nthe dog sleeps\na dog rides the man\nthe horse sleeps on a man\n" * 30


score = jax.jit(rollout.log_probs, static_argnums=0)


def leakgan(*argv) -> int:
    return cli.main([str(a) for a in argv])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, fast_compile):
    """A run of the tiny synthetic task, never stopped."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    before = _traces()
    assert leakgan("train", "--out", out, *TINY) == 0
    out.with_suffix(".traces").write_text(json.dumps([before, _traces()]))
    return out


@pytest.fixture(scope="module")
def text_run(tmp_path_factory, fast_compile):
    folder = tmp_path_factory.mktemp("text")
    (folder / "corpus.txt").write_text(CORPUS, encoding="utf-8")
    assert leakgan("train", "coco", "--out", folder / "run", "--corpus", folder / "corpus.txt", *TEXT) == 0
    return folder / "run"


def _traces() -> dict[str, int]:
    names = ("_run_unit", "_evaluate")
    return {name: getattr(run, name)._cache_size() for name in names}


def metrics(out: Path) -> list[dict]:
    """Metric lines without the time they took."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def final_state(out: Path) -> list[np.ndarray]:
    config, _, _ = rundir.open_run(out)
    with Checkpoints(out, create=False) as checkpoints:
        restored = checkpoints.restore(run.target(config))
    assert restored.step == len(run.schedule(config))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored.state)]


def assert_same_run(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    for a, b in zip(final_state(one), final_state(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one / "samples.txt").read_text() == (other / "samples.txt").read_text()


def test_a_run_leaves_every_file(finished):
    for name in ("config.json", "metrics.jsonl", "samples.txt", "curves.png", "report.md", "checkpoints"):
        assert (finished / name).exists(), name
    assert not [p for p in finished.iterdir() if "partial" in p.name]
    record = json.loads((finished / "config.json").read_text())
    assert record["config"]["vocab_size"] == 30 and record["seed"] == 0
    assert {"jax", "flax", "python"} <= record["versions"].keys() and record["device"]
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_record_says_what_can_change_the_bits(finished, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_some_flag=1")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_another=2")
    monkeypatch.setenv("JAX_A_SETTING", "3")
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    now = rundir.environment(mesh)
    assert now == json.loads(json.dumps(now))
    assert now["versions"] == rundir.versions() and now["versions"]["jax"] == jax.__version__
    assert (now["backend"], now["devices"], now["processes"]) == ("cpu", jax.device_count(), 1)
    assert now["mesh"] == {"data": 1} and rundir.environment()["mesh"] == {}
    assert now["cpus"] == len(os.sched_getaffinity(0)) and now["cpu"]
    given = {"XLA_FLAGS": "--xla_some_flag=1", "LIBTPU_INIT_ARGS": "--xla_another=2", "JAX_A_SETTING": "3"}
    assert now["variables"].items() >= given.items() and "PATH" not in now["variables"]
    assert now["jax_settings"]["jax_default_matmul_precision"] == "float32"  # of conftest
    assert not [name for name, value in now["jax_settings"].items() if value is None], "a setting that JAX lost"
    record = json.loads((finished / "config.json").read_text())
    assert {name: record[name] for name in ("cpu", "versions")} == {name: now[name] for name in ("cpu", "versions")}
    assert record.keys() >= now.keys()


def test_metric_lines_follow_the_schedule(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    units = run.schedule(rundir.open_run(finished)[0])
    assert [(line["phase"], line["kind"], line["step"]) for line in lines] == [u[:3] for u in units]
    assert [line["unit"] for line in lines] == list(range(1, len(units) + 1))
    assert all(line["seconds"] >= 0 for line in lines)
    for line, unit in zip(lines, units, strict=True):
        assert ("nll_oracle" in line) == unit.evaluate
    assert {"manager_loss", "worker_loss"} <= lines[1].keys() and "discriminator_loss" in lines[0]


def test_report_has_a_row_a_model_and_temperature(finished):
    report = (finished / "report.md").read_text()
    for model in ("MLE, best NLL_gen", "MLE, last epoch", "LeakGAN"):
        assert report.count(f"| {model} |") == 2
    assert "| real |" in report and "leakgan train" in report


def test_each_function_is_traced_once_over_a_run(finished):
    before, after = json.loads(finished.with_suffix(".traces").read_text())
    kinds = {"_run_unit": 3, "_evaluate": 1}  # units of three kinds
    assert {name: after[name] - before[name] for name in after} == kinds


def test_schedule_of_the_released_synthetic_task():
    units = run.schedule(preset("synthetic20", "released", adversarial_iterations=20))
    first = units[:13]
    assert [u.kind for u in first] == ["discriminator"] * 5 + ["mle"] * 8
    assert [u.step for u in first if u.evaluate] == [1, 6]  # epochs 0 and 5 of a round
    adversarial = [u for u in units if u.phase == "adversarial"]
    assert [u.kind for u in adversarial[:6]] == ["generator"] + ["discriminator"] * 5
    assert not any(u.kind == "mle" for u in adversarial)
    interleaved = [u.step for u in run.schedule(preset("synthetic20")) if u.phase == "adversarial" and u.kind == "mle"]
    assert interleaved == [15, 30, 45, 60, 75, 90]


@pytest.mark.parametrize("stop_at", [1, 4, 9])
def test_sigterm_saves_and_resuming_ends_as_if_never_stopped(finished, tmp_path, monkeypatch, stop_at):
    real = run._run_unit
    count = 0

    def stopping(*args):
        nonlocal count
        count += 1
        if count == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(run, "_run_unit", stopping)
    assert leakgan("train", "--out", tmp_path / "run", *TINY) == 128 + signal.SIGTERM
    assert len(metrics(tmp_path / "run")) == stop_at
    assert leakgan("train", "--out", tmp_path / "run", "--resume") == 0
    assert count == len(run.schedule(rundir.open_run(tmp_path / "run")[0]))
    assert_same_run(finished, tmp_path / "run")


def test_sigkill_at_any_moment_resumes_to_the_same_bits(finished, tmp_path):
    command = [sys.executable, "-m", "leakgan_jax.cli", "train", "--out", str(tmp_path / "run"), *TINY]
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # the same bits as in this process
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (lines.exists() and lines.read_bytes().count(b"\n") >= 6):
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert leakgan("train", "--out", tmp_path / "run", "--resume") == 0
    assert_same_run(finished, tmp_path / "run")


def test_resuming_a_damaged_checkpoint_falls_back_and_says_so(finished, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    newest = max((out / "checkpoints").iterdir(), key=lambda p: int(p.name))
    for file in (p for p in newest.rglob("*") if p.is_file() and p.stat().st_size > 200):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert leakgan("train", "--out", out, "--resume") == 0
    assert f"checkpoint {newest.name} is damaged" in capsys.readouterr().err
    assert_same_run(finished, out)
    for checkpoint in (out / "checkpoints").iterdir():
        shutil.rmtree(checkpoint / "state")
    assert leakgan("train", "--out", out, "--resume") == 2
    assert "damaged" in capsys.readouterr().err


def test_damage_to_an_older_checkpoint_costs_a_row_not_the_run(finished, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    oldest = min((out / "checkpoints").iterdir(), key=lambda p: int(p.name))
    (oldest / "MANIFEST").unlink()
    assert leakgan("train", "--out", out, "--resume") == 0
    assert "no row for the best MLE" in capsys.readouterr().err
    assert "| LeakGAN |" in (out / "report.md").read_text()


def test_a_kill_before_the_config_was_whole_leaves_the_directory_free(tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".config.json.partial").write_text("{")
    (out / "vocabulary.json").write_text("{}")
    assert leakgan("train", "--out", out, "--resume") == 2
    assert leakgan("train", "--out", out, *TINY, "--pretrain-rounds", 0, "--adversarial-iterations", 0) == 0
    assert (out / "config.json").exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"config": {}, "seed": 0}', '{"config": {"lenght": 4}, "seed": 1}']
)
def test_a_config_that_is_no_config(content, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    for argv in (["train", "--resume", "--out", tmp_path], ["sample", tmp_path, "--num", 1], ["evaluate", tmp_path]):
        assert leakgan(*argv) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_half_written_metric_line_is_dropped(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"phase": "adversarial", "un')
    assert leakgan("train", "--out", out, "--resume") == 0
    assert metrics(out) == metrics(finished)


def test_sampling_is_the_seed_s_alone(finished, tmp_path, capsys):
    assert leakgan("sample", finished, "--num", 40, "--seed", 3) == 0
    first = capsys.readouterr().out
    assert leakgan("sample", finished, "--num", 40, "--seed", 3, "--out", tmp_path / "s.txt") == 0
    assert (tmp_path / "s.txt").read_text() == first and capsys.readouterr().out == ""
    rows = [[int(word) for word in line.split()] for line in first.splitlines()]
    assert np.array(rows).shape == (40, 8) and np.min(rows) >= 0 and np.max(rows) < 30
    assert leakgan("sample", finished, "--num", 40, "--seed", 4) == 0
    assert capsys.readouterr().out != first
    assert leakgan("sample", finished, "--num", 40, "--seed", 3, "--temperature", 0.001) == 0
    greedy = capsys.readouterr().out
    assert len(set(greedy.splitlines())) < 40  # a temperature that is used


def test_a_seed_s_sentences_do_not_depend_on_how_many_are_drawn(finished, capsys):
    shown = {}
    for num in (1, 3, 16, 17, 40):  # in batches of 16
        assert leakgan("sample", finished, "--num", num, "--seed", 3) == 0
        shown[num] = capsys.readouterr().out.splitlines()
        assert len(shown[num]) == num
    assert all(shown[40][:num] == lines for num, lines in shown.items())
    assert len(set(shown[40])) == 40  # no batch repeats another


def test_sampling_compiles_once_whatever_the_number_the_prefix_and_the_temperature(finished, capsys):
    before = run._complete._cache_size()
    config, _, _ = rundir.open_run(finished)
    params = run.load_params(finished, config, "newest", print)
    config = dataclasses.replace(config, eval_samples=41)  # a config not seen before
    for num, temperature, prefix in ((3, 1.0, []), (40, 0.5, [2]), (1, 2.0, [4, 5, 6])):
        assert sum(len(tokens) for tokens, _ in run.stream_samples(config, params, 0, num, temperature, prefix)) == num
    assert run._complete._cache_size() == before + 1


def test_sample_continues_a_prefix(finished, text_run, capsys):
    assert leakgan("sample", text_run, "--num", 40, "--prefix", "A  Dog") == 0  # lower-cased as the corpus was
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("a dog") for line in lines) and len(set(lines)) > 10
    longest = "a man a man a man a"
    assert leakgan("sample", text_run, "--num", 3, "--prefix", longest) == 0
    assert all(line.startswith(longest) for line in capsys.readouterr().out.splitlines())
    assert leakgan("sample", finished, "--num", 40, "--prefix", "7 0 29") == 0
    rows = np.array([line.split() for line in capsys.readouterr().out.splitlines()], int)
    assert rows.shape == (40, 8) and np.all(rows[:, :3] == [7, 0, 29]) and len(np.unique(rows[:, 3:], axis=0)) > 10


@pytest.mark.parametrize("prefix", [[], ["--prefix", "a dog"]], ids=["alone", "after a prefix"])
def test_greedy_is_one_sentence_whatever_the_seed_and_temperature(text_run, prefix, capsys):
    shown = []
    for seed, temperature in ((0, 1.0), (5, 0.5), (6, 30.0)):
        assert leakgan("sample", text_run, "--greedy", "--seed", seed, "--temperature", temperature, *prefix) == 0
        shown.append(capsys.readouterr().out)
    assert len(set(shown)) == 1 and shown[0].count("\n") == 1
    assert leakgan("sample", text_run, "--num", 40, "--temperature", 0.001, *prefix) == 0
    assert shown[0][:-1] in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("kind", ["text", "ids"])
def test_sample_prints_json_lines_with_log_probabilities(kind, finished, text_run, tmp_path, capsys):
    out, prefix = (text_run, "a dog") if kind == "text" else (finished, "7 29")
    argv = ["sample", out, "--num", 20, "--prefix", prefix, "--temperature", 0.8]
    assert leakgan(*argv) == 0
    texts = capsys.readouterr().out.splitlines()
    assert leakgan(*argv, "--json") == 0
    printed = capsys.readouterr().out
    assert leakgan(*argv, "--json", "--out", tmp_path / "samples.jsonl") == 0
    assert (tmp_path / "samples.jsonl").read_text() == printed

    config, _, _ = rundir.open_run(out)
    params = run.load_params(out, config, "newest", print)
    words = data.Vocabulary.load(out / "vocabulary.json").words if kind == "text" else list(range(30))
    for line, text in zip(map(json.loads, printed.splitlines()), texts, strict=True):
        assert line.keys() == {"text", "tokens", "log_prob", "log_probs", "temperature"}
        assert line["text"] == text and line["temperature"] == 0.8
        ids = [words.index(word) if kind == "text" else int(word) for word in text.split()]
        row = np.full((1, 8), config.pad_id, np.int32)
        row[0, : len(ids)] = ids
        if kind == "text":
            row[0, len(ids) : len(ids) + 1] = data.END  # it counts, where there was room for it
        ids = row[row != config.pad_id]
        scores = np.asarray(score(config, params, row, 0.8))[0, : len(ids)]  # the prefix's words too
        assert line["tokens"] == [words[i] for i in ids]
        np.testing.assert_allclose(line["log_probs"], scores, atol=1e-5)
        np.testing.assert_allclose(line["log_prob"], scores.sum(), atol=1e-5)


def test_evaluate_says_what_it_left_out_and_does_not_know(text_run, tmp_path, capsys):
    references = tmp_path / "references.txt"
    references.write_text("a dog rides the zebra\n" * 3 + "the man " * 9 + "\n")
    assert leakgan("evaluate", text_run, "--references", references, "--json") == 0
    printed = capsys.readouterr()
    scores = json.loads(printed.out)
    assert scores["num_references"] == 3 and scores["unknown"] == pytest.approx(1 / 6)  # of five words and an end
    assert "note: 1 of 4 sentences" in printed.err and "warning" not in printed.err
    references.write_text("une phrase que personne ici ne sait\n" * 3)
    assert leakgan("evaluate", text_run, "--references", references) == 0
    printed = capsys.readouterr()
    assert "warning: the run knows only 0% of the different words" in printed.err
    assert "3 real sentences without the 87.5% of their tokens that the run does not know" in printed.out


def test_evaluate_prints_one_json_object(finished, capsys):
    assert leakgan("evaluate", finished, "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert {"nll_oracle", "nll_gen", "nll_div", "temperature", "num_samples"} <= scores.keys()
    assert leakgan("evaluate", finished, "--json") == 0
    assert json.loads(capsys.readouterr().out) == scores  # scoring draws no dropout
    references = finished.parent / "references.txt"
    references.write_text("1 2 3 4 5 6 7 8\n" * 5)
    assert leakgan("evaluate", finished, "--json", "--references", references) == 0
    assert json.loads(capsys.readouterr().out)["nll_gen"] != scores["nll_gen"]
    assert leakgan("evaluate", finished, "--temperature", "0.5", "--checkpoint", "mle") == 0
    assert "NLL_oracle" in capsys.readouterr().out


def test_a_text_run_speaks_words(text_run, capsys):
    words = set(json.loads((text_run / "vocabulary.json").read_text())["words"])
    lines = (text_run / "samples.txt").read_text().splitlines()
    assert len(lines) == 40 and {word for line in lines for word in line.split()} <= words - {"<end>"}
    assert max(len(line.split()) for line in lines) <= 8 and min(len(line.split()) for line in lines) < 8
    assert leakgan("sample", text_run, "--num", 5) == 0
    assert {word for line in capsys.readouterr().out.splitlines() for word in line.split()} <= words
    assert leakgan("evaluate", text_run, "--json") == 0
    assert json.loads(capsys.readouterr().out)["nll_oracle"] is None


@pytest.mark.parametrize("kind", ["text", "ids"])
def test_inspect_draws_what_sample_draws_and_says_what_it_shows(kind, finished, text_run, tmp_path, capsys):
    source = text_run if kind == "text" else finished
    assert leakgan("inspect", source, "--num", 3, "--seed", 2, "--out", tmp_path / "new" / "pictures") == 0
    shown = capsys.readouterr().out
    assert leakgan("sample", source, "--num", 3, "--seed", 2) == 0
    for number, text in enumerate(capsys.readouterr().out.splitlines(), start=1):
        assert f"sentence {number}: {text}\n" in shown
    config, task = run.open_task(source)
    assert f"{len(task.heldout)} real, {len(task.heldout)} generated sentences" in shown
    assert f"an even share is {1 / config.goal_dim:.1%}" in shown
    for name in ("features.png", "interaction.png"):
        assert (tmp_path / "new" / "pictures" / name).read_bytes().startswith(b"\x89PNG") and name in shown


def test_inspect_writes_to_the_run(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    assert leakgan("inspect", out) == 0
    assert {p.name for p in out.iterdir()} - {p.name for p in finished.iterdir()} == {"features.png", "interaction.png"}


def test_a_changed_corpus_is_noticed(text_run, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(text_run, out)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(CORPUS + "a new line about a man\n", encoding="utf-8")
    assert leakgan("train", "--out", out, "--resume", "--corpus", corpus) == 2
    assert "corpus" in capsys.readouterr().err
    _, _, record = rundir.open_run(out)
    record["config"]["corpus"] = str(corpus)
    rundir.write_record(out, record)
    assert leakgan("inspect", out) == 2
    assert "its data has changed" in capsys.readouterr().err


BAD = {
    "an unknown preset": (["train", "quikstart"], "did you mean 'quickstart'"),
    "an unknown command": (["trian"], "did you mean 'train'"),
    "an unknown option": (["train", "--out", "OUT", "--lenght", "8"], "did you mean '--length'"),
    "a misspelt option that must be there": (["train", "--ouut", "OUT"], "'--ouut'; did you mean '--out'"),
    "a word for a number": (["sample", "FINISHED", "--temperature", "abc"], "--temperature: invalid value 'abc'; see"),
    "no samples to score": (["evaluate", "FINISHED", "--num", "0"], "num is 0"),
    "a value of the wrong kind": (["train", "--out", "OUT", "--batch-size", "x"], "--batch-size"),
    "no directory": (["train"], "--out"),
    "C that does not divide T": (["train", "--out", "OUT", "--length", "21"], "goal_horizon"),
    "a negative size": (["train", "--out", "OUT", "--batch-size", "-1"], "batch_size"),
    "an absurd size": (["train", "--out", "OUT", "--vocab-size", "900000000"], "vocab_size"),
    "a missing corpus": (["train", "coco", "--out", "OUT", "--corpus", "nowhere.txt"], "nowhere.txt"),
    "a missing folder of files": (["train", "coco", "--out", "OUT", "--manual-dir", "nowhere"], "nowhere"),
    "files and no dataset": (["train", "--out", "OUT", "--manual-dir", "."], "--dataset"),
    "files and a corpus": (["train", "coco", "--out", "OUT", "--corpus", "a.txt", "--manual-dir", "."], "--manual-dir"),
    "a dataset and a corpus": (["train", "--out", "OUT", "--corpus", "a.txt", "--dataset", "text_lines"], "dataset"),
    "an unknown dataset": (["train", "--out", "OUT", "--dataset", "coco"], "coco_image_captions"),
    "words of a run without": (["sample", "FINISHED", "--num", "3", "--detokenize"], "no words"),
    "a folder for a corpus": (["train", "coco", "--out", "OUT", "--corpus", "."], "folder"),
    "a missing oracle": (["train", "--out", "OUT", "--oracle-file", "nowhere.npz"], "nowhere.npz"),
    "checkpoints too seldom": (["train", "--out", "OUT", "--checkpoint-seconds", "61"], "it must be from 0 to 60"),
    "no number of seconds": (["train", "--out", "OUT", "--checkpoint-seconds", "nan"], "checkpoint-seconds is nan"),
    "nothing to resume": (["train", "--out", "OUT", "--resume"], "config.json"),
    "nothing to sample": (["sample", "OUT", "--num", "3"], "config.json"),
    "no sentences": (["sample", "FINISHED", "--num", "0"], "num"),
    "a seed out of range": (["sample", "FINISHED", "--num", "3", "--seed", "-1"], "seed is -1"),
    "a preset in the wrong place": (["train", "--out", "OUT", "quickstart"], "comes first"),
    "a folder to write to": (["sample", "FINISHED", "--num", "3", "--out", "."], "directory"),
    "a file for a folder": (["sample", "FINISHED", "--num", "3", "--out", "FINISHED/report.md/x"], "report.md/x"),
    "a temperature of zero": (["sample", "FINISHED", "--num", "3", "--temperature", "0"], "temperature"),
    "a negative temperature": (["sample", "FINISHED", "--temperature", "-1"], "temperature is -1.0"),
    "an infinite temperature": (["sample", "FINISHED", "--temperature", "inf"], "temperature is inf"),
    "a temperature to sample at that is no number": (["sample", "FINISHED", "--temperature", "nan"], "temperature"),
    "a word for an id": (["sample", "FINISHED", "--prefix", "3 dog cat 30 dog"], "'dog', 'cat', '30', unknown"),
    "words the corpus never had": (["sample", "TEXT", "--prefix", "a zebra and a gnu"], "'zebra', 'and', 'gnu'"),
    "the end for a word": (["sample", "TEXT", "--prefix", "a <end>"], "'<end>'"),
    "a prefix without words": (["sample", "TEXT", "--prefix", " "], "prefix is ' '"),
    "a prefix as long as a sentence": (["sample", "TEXT", "--prefix", "a man a man a man a man"], "at most 7"),
    "an id too many": (["sample", "FINISHED", "--prefix", "1 2 3 4 5 6 7 8"], "at most 7"),
    "greedy and many": (["sample", "FINISHED", "--num", "2", "--greedy"], "num is 2"),
    "too many to follow": (["inspect", "FINISHED", "--num", "9"], "num is 9"),
    "none to follow": (["inspect", "FINISHED", "--num", "0"], "num is 0"),
    "nothing to inspect": (["inspect", "OUT"], "config.json"),
    "a file for pictures": (["inspect", "FINISHED", "--out", "FINISHED/report.md"], "report.md"),
    "a temperature to inspect at of zero": (["inspect", "FINISHED", "--temperature", "0"], "temperature"),
    "a temperature that is no number": (["evaluate", "FINISHED", "--temperature", "nan"], "temperature"),
    "a directory in use": (["train", "--out", "FINISHED"], "--resume"),
    "another seed": (["train", "--out", "FINISHED", "--resume", "--seed", "1"], "seed (0, now 1)"),
    "another setting": (["train", "--out", "FINISHED", "--resume", "--completions", "3"], "completions (2, now 3)"),
    "another preset": (["train", "synthetic20", "--out", "FINISHED", "--resume"], "vocab_size (30, now 5000)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, finished, text_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    argv, expected = BAD[case]
    places = {"OUT": tmp_path / "out", "FINISHED": finished, "TEXT": text_run}
    argv = [str(places.get(word, word)).replace("FINISHED", str(finished)) for word in argv]
    assert leakgan(*argv) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and expected in printed.err
    assert (
        printed.err.startswith("leakgan: ") and "--- " not in printed.err and "Error parsing config" not in printed.err
    )
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "no words"),
        (b"caf\xe9 au lait\n", "not UTF-8"),
        (b"word " * 2_000_000, "characters"),
        (b"a b\n" * 5, "batch_size"),
        (b"a b c d\n" * 40, "min_count"),
    ],
    ids=["empty", "not UTF-8", "a line of ten million characters", "shorter than a batch", "no words left"],
)
def test_bad_corpora(content, expected, tmp_path, capsys):
    (tmp_path / "corpus.txt").write_bytes(content)
    least = "100" if expected == "min_count" else "1"
    argv = [
        "train",
        "coco",
        "--out",
        tmp_path / "out",
        "--corpus",
        tmp_path / "corpus.txt",
        *TEXT,
        "--min-count",
        least,
    ]
    assert leakgan(*argv) == 2
    error = capsys.readouterr().err
    assert expected in error and "corpus.txt" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_what_is_there(finished, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = {p: p.read_bytes() for p in out.iterdir() if p.is_file()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert leakgan("train", "--out", out, "--resume") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in out.iterdir() if p.is_file()} == before


@pytest.fixture
def jax_settings(monkeypatch, tmp_path):
    """JAX as it starts, with a home of its own for the cache; afterwards as the tests want it."""
    starts = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": None,
        "jax_compilation_cache_max_size": -1,
        "jax_persistent_cache_min_compile_time_secs": 1.0,
        "jax_default_matmul_precision": None,
    }
    saved = {name: getattr(jax.config, name) for name in starts}
    for name, value in starts.items():
        jax.config.update(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "leakgan_jax"
    for name, value in saved.items():
        jax.config.update(name, value)


def test_commands_score_in_float32_and_keep_compiled_programs(jax_settings):
    assert cli.main(["presets"]) == 0
    assert jax.config.jax_default_matmul_precision == "float32"
    assert jax.config.jax_compilation_cache_dir == str(jax_settings)
    assert jax.config.jax_compilation_cache_max_size == 2**30
    assert jax_settings.stat().st_mode & 0o777 == 0o700  # compiled programs are code


@pytest.mark.parametrize("told", [("jax_compilation_cache_dir", "mine"), ("jax_enable_compilation_cache", False)])
def test_jax_s_own_word_on_its_cache_stands(told, jax_settings):
    jax.config.update(*told)
    assert cli.main(["presets"]) == 0
    assert getattr(jax.config, told[0]) == told[1] and jax.config.jax_compilation_cache_max_size == -1
    assert not jax_settings.exists()


def test_where_nothing_can_be_kept_commands_work(jax_settings):
    jax_settings.write_text("a file where the folder should be")
    assert cli.main(["presets"]) == 0
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize("precision, told", [("bfloat16", "BF16_BF16_F32"), ("float32", "Precision.HIGHEST")])
def test_training_s_products_are_rounded_as_the_config_says(finished, precision, told):
    config = dataclasses.replace(rundir.open_run(finished)[0], precision=precision)
    sentences = jax.ShapeDtypeStruct((16, config.length), np.int32)
    key = jax.eval_shape(jax.random.key, 0)
    for kind in ("mle", "generator", "discriminator"):
        arrays = run.Arrays(train=sentences, heldout=sentences, oracle=None)
        program = str(run._run_unit.trace(config, kind, run.target(config), arrays, key).jaxpr)
        assert set(re.findall(r"precision=\(?([\w.]+)", program)) == {told}
        assert program.count("precision=") == program.count("dot_general[") > 10


def test_importing_the_library_is_light():
    heavy = {"orbax", "tensorflow_datasets", "tyro", "matplotlib", "nltk"}
    code = f"import sys, leakgan_jax; print({heavy} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "set()\n"
