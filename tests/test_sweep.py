"""Sweeps: their rows against what the parts say one by one, and `leakgan evaluate --sweep` with all kinds of input."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leakgan_jax import cli, data, metrics, oracle, report, rollout, run, rundir, sweep
from leakgan_jax.checkpoint import Checkpoints
from leakgan_jax.config import ConfigError
from leakgan_jax.models import language_model
from leakgan_jax.models.language_model import Schedule, Sizes

pytestmark = pytest.mark.usefixtures("fast_compile")
TEMPERATURES = (0.3, 1.0, 1.6)
SIZES, SCHEDULE = Sizes(7, embedding=4, hidden=6), Schedule(epochs=3, batch_size=8, learning_rate=0.02)
TINY = (
    "--vocab-size 30 --length 8 --filter-windows 1 3 8 --filter-counts 4 5 3 --batch-size 8 --draw-size 32 "
    "--num-train 64 --num-heldout 32 --eval-samples 40 --sample-batch 16 --discriminator-embedding 6 "
    "--worker-hidden 7 --manager-hidden 5 --goal-dim 3 --completions 2 --pretrain-rounds 2 --pretrain-draws 1 "
    "--mle-epochs 2 --adversarial-iterations 4 --adversarial-draws 1 --interleave-every 3 --eval-every 2"
).split()
CORPUS = "A man rides a horse\nthe dog sleeps\na dog rides the man\nthe horse sleeps on a man\n" * 30
METRICS = {"nll_oracle", "nll_gen", "nll_div", "lm", "reverse_lm", "distinct"} | {
    f"{name}_{n}" for name in ("bleu", "self_bleu") for n in (2, 3, 4, 5)
}
COUNTS = {"model", "temperature", "hypotheses", "references", "nll_references", "unknown", "rule"}
COUNTS |= {"lm_sentences", "lm_epoch"}


@pytest.fixture(autouse=True)
def seen(monkeypatch):
    """The sentences that BLEU was given, in the order of the rows."""
    bleu, seen = metrics.bleu, []

    def watched(hypotheses, references, **options):
        seen.append((hypotheses, references))
        return bleu(hypotheses, references, **options)

    monkeypatch.setattr(metrics, "bleu", watched)
    return seen


@pytest.fixture(scope="module")
def synthetic(tiny_config, tiny_state):
    """Config, task and two models of the synthetic task; no training sentence is among the references."""
    config = tiny_config(num_heldout=20)
    params = jax.jit(oracle.init, static_argnums=(1, 2))(jax.random.key(1), config.vocab_size, 3)
    drawn = jax.jit(oracle.sample, static_argnums=(2, 3))(params, jax.random.key(2), 60, config.length)
    task = run.Task(drawn[:40], drawn[40:], params, None, {})
    return config, task, {"one": tiny_state(config, 3).params, "other": tiny_state(config, 4).params}


@pytest.fixture(scope="module")
def text(tiny_config, tiny_state, sentences):
    config = tiny_config(end=True)
    words = data.Vocabulary(("<unk>", "<end>", "a", "man", "rides", "the", "horse"))
    rows = jnp.asarray(sentences(config, True, num=50))
    # Every unknown word is another one in the text itself.
    text = [words.words_of(row) for row in rows]
    text = [[f"rare{i}.{j}" if w == "<unk>" else w for j, w in enumerate(ws)] for i, ws in enumerate(text)]
    kept = {"train_sentences": text[:30], "heldout_sentences": text[30:]}
    task = run.Task(rows[:30], rows[30:], None, words, {}, **kept)
    return config, task, {"one": tiny_state(config).params}


def rows_of(case, seed=0, **options):
    config, task, models = case
    settings = {"num": 24, "temperatures": TEMPERATURES, "sizes": SIZES, "schedule": SCHEDULE} | options
    return list(sweep.sweep(config, task, models, jax.random.key(seed), **settings))


def test_a_row_for_real_text_and_each_model_and_temperature(synthetic):
    rows = rows_of(synthetic)
    assert [(row["model"], row["temperature"]) for row in rows] == [
        ("real", None), *[(model, alpha) for model in ("one", "other") for alpha in TEMPERATURES]
    ]  # fmt: skip
    for row in rows:
        assert row.keys() == METRICS | COUNTS
        assert all(math.isfinite(row[name]) for name in METRICS)
        assert (row["hypotheses"], row["references"], row["nll_references"], row["lm_sentences"]) == (24, 20, 20, 24)
        assert 1 <= row["lm_epoch"] <= 3 and row["rule"] == "method1"


def test_scores_are_of_the_sentences_that_were_compared(synthetic, seen):
    config, task, models = synthetic
    log_probs = jax.jit(rollout.log_probs, static_argnums=0)
    rows = rows_of(synthetic)
    train, heldout = (set(map(tuple, np.asarray(x).tolist())) for x in (task.train, task.heldout))
    real, *_ = (set(map(tuple, hypotheses)) for hypotheses, _ in seen)
    assert real <= train and len(real) == 24 and not real & heldout  # text is not compared with itself
    for row, (hypotheses, references) in zip(rows, seen, strict=True):
        assert set(map(tuple, references)) == heldout
        tokens = jnp.asarray(hypotheses, jnp.int32)
        assert row["nll_oracle"] == pytest.approx(float(oracle.nll(task.oracle, tokens)), rel=1e-5)
        assert row["distinct"] == len(set(map(tuple, hypotheses))) / 24
        if row["model"] == "real":
            continue
        for name, sentences in (("nll_div", tokens), ("nll_gen", task.heldout)):
            scored = log_probs(config, models[row["model"]], sentences, row["temperature"])
            assert row[name] == pytest.approx(-float(scored.mean()), rel=1e-4)


def test_lm_judges_samples_and_reverse_lm_is_judged_by_the_references(synthetic, seen):
    _, task, _ = synthetic
    rows = rows_of(synthetic)
    nll = jax.jit(language_model.nll, static_argnums=0)

    @jax.jit
    def fit(tokens):
        key = jax.random.split(jax.random.key(0), 3)[2]  # the third of a sweep's
        return language_model.fit(SIZES, tokens[:-2], tokens[-2:], key, SCHEDULE).params

    hypotheses = [jnp.asarray(sentences, jnp.int32) for sentences, _ in seen]
    judge = fit(hypotheses[0])
    assert rows[0]["lm"] == rows[0]["reverse_lm"] == pytest.approx(float(nll(SIZES, judge, task.heldout)), rel=1e-5)
    assert rows[2]["lm"] == pytest.approx(float(nll(SIZES, judge, hypotheses[2])), rel=1e-5)
    own = fit(hypotheses[2])
    assert rows[2]["reverse_lm"] == pytest.approx(float(nll(SIZES, own, task.heldout)), rel=1e-5)


def test_colder_samples_are_likelier_and_less_varied(synthetic):
    rows = rows_of(synthetic)[1:]
    for cold, warm in ((rows[0], rows[2]), (rows[3], rows[5])):
        assert cold["nll_div"] < warm["nll_div"] and cold["self_bleu_4"] > warm["self_bleu_4"]


def test_a_sweep_is_its_key_s_alone_and_compiles_once(synthetic):
    functions = (run._evaluate, sweep._fit)
    for function in (*functions, sweep._nll):
        function.clear_cache()
    rows = rows_of(synthetic)
    assert [function._cache_size() for function in functions] == [1, 1]
    assert sweep._nll._cache_size() == 2  # as many hypotheses, and as many references
    assert rows_of(synthetic) == rows
    assert rows_of(synthetic, seed=1)[1:] != rows[1:]


def test_the_default_temperatures_and_number(synthetic, monkeypatch):
    assert len(sweep.TEMPERATURES) >= 7 and {1.0, 1 / 1.5} <= set(sweep.TEMPERATURES)
    assert sorted(set(sweep.TEMPERATURES)) == list(sweep.TEMPERATURES)
    config, task, models = synthetic
    few = config, task._replace(train=task.train[:24]), models
    rows = rows_of(few, num=None, temperatures=(1.0,))
    assert {row["hypotheses"] for row in rows} == {24}  # as many as there are to train on
    few = config, task._replace(train=task.train[:20]), models
    rows = rows_of(few, temperatures=(1.0,))  # more than there are
    assert [row["hypotheses"] for row in rows] == [20, 24, 24] and {row["lm_sentences"] for row in rows} == {20}


def test_words_end_at_the_end_and_real_text_is_its_own_words(text, seen):
    config, task, _ = text
    rows = rows_of(text)
    assert [row["nll_oracle"] for row in rows] == [None] * 4
    real, references = seen[0]
    assert references == task.heldout_sentences
    assert all(words in task.train_sentences for words in real) and len(real) == 24
    assert any(word.startswith("rare") for words in real for word in words)  # the case has some
    sampled = {word for hypotheses, _ in seen[1:] for words in hypotheses for word in words}
    assert sampled <= set(task.vocabulary.words) - {"<end>"}


def test_the_test_split_is_what_text_is_compared_with(text, seen):
    config, task, models = text
    long = ["a", "man"] * config.length
    test = [["a", "man"], ["the", "zebra", "rides"], long]

    rows = rows_of((config, task._replace(test_sentences=test), models), temperatures=(1.0,))
    assert seen[0][1] == test
    assert rows[0]["references"] == 3 and rows[0]["nll_references"] == 2
    compared = sweep.word_references(config, task.vocabulary, test, "test")
    assert np.asarray(compared.rows)[:, :4].tolist() == [[2, 3, 1, 7], [5, 0, 4, 1]]
    few = sweep.word_references(dataclasses.replace(config, num_heldout=1), task.vocabulary, test, "test")
    assert len(few.sentences) == 3 and len(few.rows) == 1
    with pytest.raises(data.DataError, match="test: every sentence is longer"):
        sweep.word_references(config, task.vocabulary, [long], "test")


def test_unknown_words_of_the_references_count_nowhere(text):
    config, task, models = text
    rows, heldout = rows_of(text, temperatures=(0.7,)), np.asarray(sweep.references(config, task).rows)
    counted = (heldout != config.pad_id) & (heldout != data.UNK)
    left_out = 1 - counted.sum() / np.sum(heldout != config.pad_id)
    assert left_out > 0.02 and [row["unknown"] for row in rows] == pytest.approx([left_out] * 2)
    scored = jax.jit(rollout.log_probs, static_argnums=0)(config, models["one"], heldout, 0.7)
    assert rows[1]["nll_gen"] == pytest.approx(-np.asarray(scored)[counted].mean(), rel=1e-5)

    @jax.jit
    def judge(tokens):
        key = jax.random.split(jax.random.key(0), 3)[2]
        own = language_model.fit(SIZES, tokens[:-2], tokens[-2:], key, SCHEDULE).params
        return language_model.log_probs(SIZES, own, heldout)

    chosen = jax.random.permutation(jax.random.split(jax.random.key(0), 3)[1], 30)[:24]
    assert rows[0]["reverse_lm"] == pytest.approx(-np.asarray(judge(task.train[chosen]))[counted].mean(), rel=1e-5)


def test_too_few_sentences(synthetic, text):
    with pytest.raises(ConfigError, match="num is 1"):
        rows_of(synthetic, num=1)
    config, task, models = synthetic
    with pytest.raises(data.DataError, match="training sentence"):
        rows_of((config, task._replace(train=task.train[:1]), models))


def test_no_model_of_a_run_is_lost_in_its_pictures(synthetic, tmp_path):
    rows = rows_of(synthetic, temperatures=(0.5, 1.0))
    for row in rows[1:]:
        row["model"] = {"one": "MLE, best NLL_gen", "other": "LeakGAN"}[row["model"]]
    pictures = report.draw_sweep(tmp_path, rows)
    assert [path.name for path in pictures] == ["sweep_bleu.png", "sweep_nll.png", "sweep_lm.png"]
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    one = [row for row in rows if row["model"] != "LeakGAN"]
    for row in one:
        row["nll_oracle"] = None
    one[0]["nll_gen"] = None  # as of text
    before = [path.read_bytes() for path in pictures]
    report.draw_sweep(tmp_path, one)
    assert all(path.read_bytes() != picture for path, picture in zip(pictures, before))


# --- the command -----------------------------------------------------------------------------------------------------


def leakgan(*argv) -> int:
    return cli.main([str(a) for a in argv])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, fast_compile):
    """A finished run of the tiny synthetic task."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert leakgan("train", "--out", out, *TINY) == 0
    return out


@pytest.fixture
def short(monkeypatch):
    """A sweep of two temperatures and a few epochs."""
    monkeypatch.setattr(sweep, "TEMPERATURES", (0.5, 1.0))


@pytest.fixture
def copy(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    return out


def keep(out: Path, which) -> None:
    """Leaves the checkpoint `which` picks from the step and record of each, and no other."""
    with Checkpoints(out, create=False) as checkpoints:
        records = {step: checkpoints._record(step) for step in checkpoints.steps()}
    for step in records.keys() - {which(records)}:
        shutil.rmtree(out / "checkpoints" / str(step))


def test_a_sweep_writes_its_table_and_pictures(copy, short, capsys):
    assert leakgan("evaluate", copy, "--sweep", "--json", "--num", 20, "--seed", 3) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)  # one object and nothing else
    assert result == json.loads((copy / "sweep.json").read_text())
    assert "| real |" in (copy / "sweep.md").read_text()
    rows = result["rows"]
    assert [(row["model"], row["temperature"]) for row in rows] == [
        ("real", None), ("MLE, best NLL_gen", 0.5), ("MLE, best NLL_gen", 1.0), ("LeakGAN", 0.5), ("LeakGAN", 1.0)
    ]  # fmt: skip
    assert all(row.keys() == METRICS | COUNTS | {"seed"} and row["seed"] == 3 for row in rows)
    assert rows[1]["nll_gen"] != rows[3]["nll_gen"]  # two models
    assert {row["hypotheses"] for row in rows} == {20} and {row["references"] for row in rows} == {32}
    assert {"hidden", "embedding", "epochs"} <= result["language_model"].keys() and result["device"]
    assert printed.err.count("\n") == 5  # a plain line a row
    for name in ("bleu", "nll", "lm"):
        assert (copy / f"sweep_{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not [p for p in copy.iterdir() if "partial" in p.name]

    references = copy.parent / "references.txt"
    references.write_text("1 2 3 4 5 6 7 8\n" * 5)
    assert leakgan("evaluate", copy, "--sweep", "--num", 20, "--seed", 3, "--references", references) == 0
    table = capsys.readouterr().out
    assert table.count("| LeakGAN |") == table.count("| MLE, best NLL_gen |") == 2 and "| real |" in table
    again = json.loads((copy / "sweep.json").read_text())["rows"]
    assert {row["references"] for row in again} == {5} and str(references) in table
    for row, other in zip(rows[1:], again[1:]):
        assert row["lm"] == other["lm"] and row["nll_div"] == other["nll_div"]  # of the same samples
        assert row["reverse_lm"] != other["reverse_lm"] and row["nll_gen"] != other["nll_gen"]


def test_a_stopped_sweep_goes_on_where_it_was(copy, short, monkeypatch, capsys):
    argv = ["evaluate", copy, "--sweep", "--json", "--num", 20, "--seed", 3]
    evaluate, calls = run.evaluate, []

    def stopping(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(*args)

    monkeypatch.setattr(run, "evaluate", stopping)
    assert leakgan(*argv) == 130 and not (copy / "sweep.json").exists()
    capsys.readouterr()
    assert leakgan(*argv) == 0
    printed = capsys.readouterr()
    assert len(calls) == 3 + 2 and "3 of 5 rows" in printed.err  # the third call was made again
    stopped = json.loads(printed.out)
    assert not (copy / "sweep.partial.json").exists()
    assert leakgan(*argv) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == stopped and len(calls) == 3 + 2 + 4 and "rows are there" not in printed.err


def test_rows_of_another_sweep_are_not_taken(copy, short, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "TEMPERATURES", (1.0,))
    monkeypatch.setattr(report, "draw_sweep", lambda *args: 1 / 0)  # after all rows are there
    for seed in (3, 4):
        with pytest.raises(ZeroDivisionError):
            leakgan("evaluate", copy, "--sweep", "--num", 20, "--seed", seed)
        rows = json.loads((copy / "sweep.partial.json").read_text())["rows"]
        assert len(rows) == 3 and {row["seed"] for row in rows} == {seed}
    assert "rows are there" not in capsys.readouterr().err


def test_a_run_without_an_mle_model_is_swept_alone(copy, short, capsys):
    keep(copy, max)
    assert leakgan("evaluate", copy, "--sweep", "--json", "--num", 20) == 0
    printed = capsys.readouterr()
    assert {row["model"] for row in json.loads(printed.out)["rows"]} == {"real", "LeakGAN"}
    assert "no checkpoint to restore as 'mle'" in printed.err and "no MLE model" in printed.err


def test_an_mle_model_is_not_called_leakgan(copy, capsys):
    config, _, _ = rundir.open_run(copy)
    keep(copy, lambda records: min(step for step in records if records[step]["metrics"].get("pretrain") == 1.0))
    assert set(run.load_models(copy, config, print)) == {"MLE, best NLL_gen"}


def test_a_text_run_is_compared_as_words(tmp_path, short, seen, capsys):
    (tmp_path / "corpus.txt").write_text(CORPUS, encoding="utf-8")
    (tmp_path / "references.txt").write_text("the zebra sleeps\na man rides\n" * 3 + "the man " * 9 + "\n")
    out, small = tmp_path / "run", "--pretrain-rounds 1 --pretrain-draws 0 --mle-epochs 1 --adversarial-iterations 0"
    argv = [*TINY[2:], "--min-count", "2", "--lowercase", *small.split(), "--corpus", tmp_path / "corpus.txt"]
    assert leakgan("train", "coco", "--out", out, *argv) == 0
    capsys.readouterr()
    argv = ["--sweep", "--json", "--num", 12, "--references", tmp_path / "references.txt"]
    assert leakgan("evaluate", out, *argv) == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)["rows"]
    assert {row["nll_oracle"] for row in rows} == {None} and rows[0]["nll_gen"] is None
    assert all(isinstance(word, str) for hypotheses, _ in seen for words in hypotheses for word in words)
    assert seen[-1][1] == [["the", "zebra", "sleeps"], ["a", "man", "rides"]] * 3 + [["the", "man"] * 9]
    assert "note: 1 of 7 sentences" in printed.err
    (tmp_path / "corpus.txt").write_text(CORPUS + "a dog\n", encoding="utf-8")
    assert leakgan("evaluate", out, "--sweep") == 2
    assert "changed" in capsys.readouterr().err


BAD = {
    "one sample": (["--num", "1"], "num is 1"),
    "too many samples": (["--num", "2000000000"], "eval_samples"),
    "a temperature of its own": (["--temperature", "0.7"], "--temperature"),
    "a checkpoint of its own": (["--checkpoint", "mle"], "--checkpoint"),
    "no such references": (["--references", "nowhere.txt"], "nowhere.txt"),
    "references of another kind": (["--references", "words.txt"], "words.txt"),
    "empty references": (["--references", "empty.txt"], "empty.txt"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("a man rides\n")
    (tmp_path / "empty.txt").write_text("\n")
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    argv, expected = BAD[case]
    assert leakgan("evaluate", finished, "--sweep", *argv) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and expected in printed.err
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before
