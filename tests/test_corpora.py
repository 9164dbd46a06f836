"""Datasets: prepared from small local files and a local server, read back, and refused in one line."""

import collections
import functools
import hashlib
import http.server
import json
import pathlib
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from leakgan_jax import cli, corpora, data, display, run
from leakgan_jax.config import preset
from leakgan_jax.data import DataError

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"
NOWHERE = "http://127.0.0.1:1"  # refuses every connection
# Not sorted, with repeated lines and lines that need care: any order but the file's shows.
LINES = [f"line {i * 37 % 101} of a naïve 猫" for i in range(300)] + ["  spaces kept ", 'tabs\tand "quotes"', "a" * 500]
TEST = ["of the test split", "line 0 of a naïve 猫"]
DATASETS = ["coco_image_captions", "emnlp2017_news/texygen", "emnlp2017_news/stand_in", "chinese_poems"]


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def message(*args):
    """The message of the `DataError` of a load; one line, always."""
    with pytest.raises(DataError) as error:
        corpora.load(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def patched(tmp_path, monkeypatch):
    """`patched(dataset, url) -> folder` with small files for each source of a dataset, registered as the real ones.

    A split keeps its file name, and its checksum is the small file's where it has one.
    """

    def patch(dataset, url=NOWHERE):
        name, _, variant = dataset.partition("/")
        builder, folder = corpora._BUILDERS[name], tmp_path / "files"
        sources = {}
        for split, source in builder.SOURCES[variant].items():
            path = write(folder / source.name, LINES if split == "train" else TEST)
            known = {"size": path.stat().st_size, "sha256": data.digest(path)} if source.sha256 else {}
            sources[split] = source._replace(url=f"{url}/{source.name}", **known)
        monkeypatch.setattr(builder, "SOURCES", {**builder.SOURCES, variant: sources})
        return folder

    return patch


@pytest.fixture
def served(tmp_path):
    """The address of a server of the folder that `patched` fills."""
    (tmp_path / "files").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "files")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# --- Preparing and reading ----------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", DATASETS)
def test_prepared_once_and_read_twice_in_file_order(dataset, patched, tmp_path, capsys):
    folder = patched(dataset)
    splits = {"train": LINES} if dataset == "chinese_poems" else {"train": LINES, "test": TEST}
    assert corpora.load(dataset, folder, tmp_path / "tfds") == splits
    shutil.rmtree(folder)  # what is prepared needs no files
    assert corpora.load(dataset, None, tmp_path / "tfds") == splits
    assert corpora.load(dataset, tmp_path, tmp_path / "tfds") == splits  # a folder without them is as good
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


@pytest.mark.parametrize("dataset", DATASETS)
def test_files_that_are_not_in_the_folder_are_downloaded(dataset, patched, served, tmp_path):
    patched(dataset, served)
    assert corpora.load(dataset, None, tmp_path / "tfds")["train"] == LINES
    assert corpora.load(dataset, tmp_path, tmp_path / "other")["train"] == LINES


def test_one_file_from_the_folder_and_one_from_the_source(patched, served, tmp_path):
    folder = patched("coco_image_captions", served)
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copy(folder / "test_coco.txt", mine)
    (folder / "test_coco.txt").unlink()
    assert corpora.load("coco_image_captions", mine, tmp_path / "tfds") == {"train": LINES, "test": TEST}


def test_line_ends_blank_lines_and_a_byte_order_mark(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n  \ntwo\rthree")
    assert corpora.load("text_lines", tmp_path, tmp_path / "tfds") == {"train": ["one", "two", "three"]}


def test_a_dataset_says_where_it_is_from(patched, tmp_path):
    import tensorflow_datasets as tfds

    for dataset in DATASETS:
        corpora.load(dataset, patched(dataset), tmp_path / "tfds")
        info = tfds.builder(dataset, data_dir=tmp_path / "tfds").info
        assert "10,000" in info.description or "16,394" in info.description
        assert "MIT" in info.redistribution_info.license and "author" in info.citation and "://" in info.homepage
        assert info.splits["train"].num_examples == len(LINES)
        assert str(info.file_format.value) == "array_record"


def test_preparing_needs_no_tensorflow_and_prints_nothing(tmp_path):
    write(tmp_path / "train.txt", LINES)
    code = f"""
import sys
from leakgan_jax import corpora
for _ in range(2):
    assert len(corpora.load("text_lines", {str(tmp_path)!r}, {str(tmp_path / "tfds")!r})["train"]) == {len(LINES)}
assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- Which text ---------------------------------------------------------------------------------------


def test_full_names(tmp_path):
    assert corpora.resolve("coco_image_captions") == "coco_image_captions"
    assert corpora.resolve("chinese_poems", tmp_path, tmp_path) == "chinese_poems"
    assert corpora.resolve("emnlp2017_news/stand_in") == "emnlp2017_news/stand_in"


def test_news_takes_the_stand_in_only_where_the_training_file_is_missing(patched, tmp_path):
    def news(manual_dir):
        return corpora.resolve("emnlp2017_news", manual_dir, tmp_path / "tfds").removeprefix("emnlp2017_news/")

    assert news(None) == news(tmp_path) == "texygen"
    files = patched("emnlp2017_news/stand_in")
    assert news(files) == "stand_in"
    assert corpora.load("emnlp2017_news", files, tmp_path / "tfds")["train"] == LINES
    assert news(None) == news(tmp_path) == "stand_in"  # the one that is prepared
    assert patched("emnlp2017_news/texygen") == files
    assert news(files) == "texygen" and news(None) == "stand_in"
    corpora.load("emnlp2017_news", files, tmp_path / "tfds")
    assert news(None) == "texygen"
    (files / "emnlp_news.txt").unlink()
    assert news(files) == "stand_in"


def test_text_lines_keeps_texts_apart(tmp_path, caplog):
    names = set()
    for i in range(2):
        folder = write(tmp_path / str(i) / "train.txt", [*LINES, str(i)]).parent
        assert corpora.load("text_lines", folder, tmp_path / "tfds") == {"train": [*LINES, str(i)]}
        names.add(corpora.resolve("text_lines", folder))
    write(folder / "test.txt", TEST)
    assert corpora.load("text_lines", folder, tmp_path / "tfds") == {"train": [*LINES, "1"], "test": TEST}
    names.add(corpora.resolve("text_lines", folder))
    assert len(names) == 3 and not caplog.records
    alone = tmp_path / "0" / "train.txt"
    assert corpora.load("text_lines", alone, tmp_path / "tfds") == {"train": [*LINES, "0"]}
    assert corpora.resolve("text_lines", alone) == corpora.resolve("text_lines", alone.parent) in names
    assert f"the text there is {corpora.resolve('text_lines', alone)}, not text_lines/0123" in message(
        "text_lines/0123", alone, tmp_path / "tfds"
    )


# --- What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_file_that_is_nowhere(dataset, patched, tmp_path, capsys, caplog):
    folder = patched(dataset)
    name = {
        d: s["train"].name for d in DATASETS for s in [corpora._BUILDERS[d.split("/")[0]].SOURCES[d.partition("/")[2]]]
    }
    path = folder / name[dataset]
    path.unlink()
    (folder / "another.txt").write_text("to keep the folder from being empty")
    text = message(dataset, folder, tmp_path / "tfds")
    assert (
        f"{path.name} is not in {folder}" in text and f"{NOWHERE}/{path.name}" in text and "put the files there" in text
    )
    text = message(dataset, None, tmp_path / "tfds")
    assert f"{path.name} is not in --manual-dir DIR" in text
    assert capsys.readouterr() == ("", "") and not caplog.records  # one line is one line
    if dataset.endswith("texygen"):
        assert "gfs_valid.txt" in text and "stand-in" in text
    write(path, LINES)
    assert corpora.load(dataset, folder, tmp_path / "tfds")["train"] == LINES  # nothing was left in the way


@pytest.mark.parametrize("dataset, name", list(zip(DATASETS, ["image_coco", "test_emnlp", "gfs_test", "shi"])))
def test_a_checksum_that_differs(dataset, name, patched, served, tmp_path):
    folder = patched(dataset, served)
    path, right = folder / f"{name}.txt", (folder / f"{name}.txt").read_text(encoding="utf-8")
    path.write_text(right + "one line more\n", encoding="utf-8")
    sha = hashlib.sha256(right.encode()).hexdigest()
    text = message(dataset, folder, tmp_path / "tfds")
    assert text.startswith(f"{path}: not the file of {served}/{path.name}") and sha in text
    text = message(dataset, None, tmp_path / "tfds")  # what the source gives is no better
    assert f"{path.name} is not in --manual-dir DIR" in text and sha in text
    path.write_text(right, encoding="utf-8")
    prepared = corpora.load(dataset, None, tmp_path / "tfds")
    path.write_text("other text\n", encoding="utf-8")
    message(dataset, folder, tmp_path / "tfds")
    path.unlink()
    assert corpora.load(dataset, None, tmp_path / "tfds") == prepared


def test_a_file_without_a_checksum_that_is_not_the_prepared_one(patched, tmp_path):
    folder = patched("emnlp2017_news/texygen")
    corpora.load("emnlp2017_news", folder, tmp_path / "tfds")
    write(folder / "emnlp_news.txt", LINES[1:])
    text = message("emnlp2017_news", folder, tmp_path / "tfds")
    assert "emnlp_news.txt: not the file that" in text and "texygen" in text and "--data-dir" in text
    assert corpora.load("emnlp2017_news", folder, tmp_path / "other")["train"] == LINES[1:]


@pytest.mark.parametrize(
    "content, expected",
    [(b"", "no words"), (b"a\ncaf\xe9\n", "line 2: not UTF-8"), (b"a\0", "NUL"), (b"a" * 200_000, "over 100,000")],
    ids=["empty", "not UTF-8", "binary", "endless"],
)
def test_text_that_is_not_text(content, expected, tmp_path):
    path = write(tmp_path / "files" / "train.txt", LINES)
    write(tmp_path / "files" / "test.txt", TEST)
    (tmp_path / "files" / "test.txt").write_bytes(content)
    text = message("text_lines", path.parent, tmp_path / "tfds")
    assert text.startswith(str(path.with_name("test.txt"))) and expected in text
    assert not list((tmp_path / "tfds").glob("text_lines/*/*"))


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("coco_captions", None), "unknown dataset 'coco_captions'; did you mean 'coco_image_captions'"),
        (("coco_image_captions/small", None), "there is coco_image_captions"),
        (("emnlp2017_news/gfs", None), "there is emnlp2017_news/texygen, emnlp2017_news/stand_in"),
        (("coco_image_captions", "nowhere"), "nowhere: no such folder"),
        (("text_lines", None), "text_lines is not prepared"),
        (("text_lines", "."), "train.txt: no such file"),
        (("text_lines", "nowhere"), "nowhere/train.txt: no such file"),
        (("text_lines/0123", None), "text_lines/0123 is not prepared"),
    ],
)
def test_what_there_is_not(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in message(*arguments, tmp_path / "tfds")
    assert not list((tmp_path / "tfds").glob("*/*"))


# --- Interrupted, damaged, at once --------------------------------------------------------------------


def test_a_kill_while_preparing_leaves_nothing_in_the_way(tmp_path):
    write(tmp_path / "train.txt", LINES)
    code = f"""
import os, signal
from leakgan_jax import corpora, data
real = data.read_lines
def killed(path):
    for i, line in enumerate(real(path)):
        if i == 100:
            os.kill(os.getpid(), signal.SIGKILL)
        yield line
data.read_lines = killed
corpora.load("text_lines", {str(tmp_path)!r}, {str(tmp_path / "tfds")!r})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert list((tmp_path / "tfds").rglob("*incomplete*"))  # it had begun to write
    for _ in range(2):
        assert corpora.load("text_lines", tmp_path, tmp_path / "tfds") == {"train": LINES}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_error_while_preparing_leaves_nothing_in_the_way(error, tmp_path, monkeypatch):
    write(tmp_path / "train.txt", LINES)

    def failing(path):
        yield from LINES[:100]
        raise error

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, OSError)) as raised:
        patch.setattr(data, "read_lines", failing)
        corpora.load("text_lines", tmp_path, tmp_path / "tfds")
    assert raised.value is error or raised.type is error
    assert corpora.load("text_lines", tmp_path, tmp_path / "tfds") == {"train": LINES}


def test_two_that_prepare_at_once_both_succeed(tmp_path, monkeypatch):
    write(tmp_path / "train.txt", LINES)
    real, other = data.read_lines, []

    def overtaken(path):
        if not other:
            other.append(None)
            other.append(corpora.load("text_lines", tmp_path, tmp_path / "tfds"))
        return real(path)

    monkeypatch.setattr(data, "read_lines", overtaken)
    assert corpora.load("text_lines", tmp_path, tmp_path / "tfds") == {"train": LINES} == other[1]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, pathlib.Path.unlink])
@pytest.mark.parametrize("kind", ["dataset_info.json", "features.json", "*.array_record*"])
def test_damaged_data_is_one_line_or_harmless(damage, kind, tmp_path):
    write(tmp_path / "train.txt", LINES)
    corpora.load("text_lines", tmp_path, tmp_path / "tfds")
    (path,) = (tmp_path / "tfds").rglob(kind)
    damage(path)
    try:
        assert corpora.load("text_lines", tmp_path, tmp_path / "tfds") == {"train": LINES}
        assert kind != "*.array_record*"
    except DataError as error:
        assert str(path.parent) in str(error) and "delete the folder" in str(error) and "\n" not in str(error)
    shutil.rmtree(path.parent)
    assert corpora.load("text_lines", tmp_path, tmp_path / "tfds") == {"train": LINES}


# --- From the files to samples ------------------------------------------------------------------------

TINY = (
    "--length 12 --filter-windows 1 3 8 --filter-counts 4 5 3 --batch-size 8 --draw-size 32 --num-heldout 8 "
    "--eval-samples 40 --sample-batch 16 --discriminator-embedding 6 --worker-embedding 5 --worker-hidden 7 "
    "--manager-hidden 5 --goal-dim 3 --completions 2 --pretrain-rounds 1 --pretrain-draws 1 --mle-epochs 1 "
    "--adversarial-iterations 0"
).split()
NO_TRAINING = [*TINY, "--pretrain-rounds", "0"]
CAPTIONS = ["a man's horse isn't here.", "the dog sleeps, a man rides", "a dog and a horse"] * 30
CAPTIONS_TEST = ["a dog and a horse", "a man's dog isn't here, or is it there in the house, asleep?", "the cat"]


def leakgan(*argv) -> int:
    return cli.main([str(a) for a in argv])


def own_captions(patched, monkeypatch, train=CAPTIONS, test=CAPTIONS_TEST):
    monkeypatch.setattr(sys.modules[__name__], "LINES", train)
    monkeypatch.setattr(sys.modules[__name__], "TEST", test)
    return patched("coco_image_captions")


def test_captions_from_files_to_samples(patched, tmp_path, monkeypatch, capsys, fast_compile):
    folder, out = own_captions(patched, monkeypatch), tmp_path / "run"
    place = ["--data-dir", tmp_path / "tfds"]
    assert leakgan("train", "coco", "--out", out, "--manual-dir", folder, *place, *TINY) == 0
    shown = capsys.readouterr().err
    assert "coco_image_captions: 82 sentences to train on, 8 held out (8 also in training, 0.0% of the words" in shown
    assert "3 to test (1 also in training" in shown
    assert "test" in (out / "report.md").read_text()
    words = {word for line in CAPTIONS for word in data.tokenize(line, "nltk", False)}
    assert "n't" in words
    assert set(json.loads((out / "vocabulary.json").read_text())["words"]) == words | {"<unk>", "<end>"}
    assert {word for line in (out / "samples.txt").read_text().splitlines() for word in line.split()} <= words | {
        "<unk>"
    }
    record = json.loads((out / "config.json").read_text())
    assert record["config"]["dataset"] == "coco_image_captions" and record["config"]["tokenizer"] == "nltk"
    assert record["data"]["test_sentences"] == 3 and len(record["data"]["test_sha256"]) == 64

    shutil.rmtree(folder)  # from here on the prepared data is enough, and its place is known
    assert leakgan("train", "--out", out, "--resume") == 0
    assert leakgan("evaluate", out, "--json") == 0
    capsys.readouterr()
    assert leakgan("sample", out, "--num", 30) == 0
    plain = capsys.readouterr().out.splitlines()
    assert leakgan("sample", out, "--num", 30, "--detokenize") == 0
    readable = capsys.readouterr().out.splitlines()
    assert readable == [data.detokenize(line.split(), "nltk") for line in plain] != plain

    assert record["data_dir"] == str(tmp_path / "tfds")
    shutil.move(tmp_path / "tfds", tmp_path / "moved")
    capsys.readouterr()
    assert leakgan("evaluate", out) == 2
    assert "put it back, or resume the run with its new --data-dir" in capsys.readouterr().err
    assert leakgan("train", "--out", out, "--resume") == 2
    assert "image_coco.txt is not in --manual-dir DIR" in capsys.readouterr().err
    assert leakgan("train", "--out", out, "--resume", "--data-dir", tmp_path / "moved") == 0
    assert leakgan("evaluate", out) == 0


def test_what_the_task_holds_as_words(patched, tmp_path, monkeypatch):
    folder = own_captions(patched, monkeypatch)
    small = {"length": 12, "filter_windows": (1, 2), "filter_counts": (4, 4), "batch_size": 8, "num_heldout": 5}
    config, task = run.load_task(preset("coco", **small), 0, folder, tmp_path / "tfds")
    assert config.vocab_size == len(task.vocabulary) and config.is_text and config.end_id == 1
    assert task.decode(np.asarray(task.train)) == [" ".join(words) for words in task.train_sentences]
    assert len(task.heldout_sentences) == len(task.heldout) == 5
    both = collections.Counter(map(tuple, [*task.train_sentences, *task.heldout_sentences]))
    assert both == collections.Counter(tuple(data.tokenize(line, "nltk", False)) for line in CAPTIONS)
    # References are text, not rows: the one that does not fit a row is among them.
    assert task.test_sentences == [data.tokenize(line, "nltk", False) for line in CAPTIONS_TEST]
    assert max(map(len, task.test_sentences)) > config.length
    assert task.source["test_also_in_train"] == 1
    known = {word for words in task.train_sentences for word in words}
    in_test = [word in known for words in task.test_sentences for word in words]
    assert task.source["test_unknown_words"] == pytest.approx(1 - np.mean(in_test)) and not all(in_test)
    assert f"{1 - np.mean(in_test):.1%} of the words unknown to it)" in display.describe(config, task.source)

    corpus = write(tmp_path / "corpus.txt", CAPTIONS)
    config, task = run.load_task(preset("coco", corpus=str(corpus), **small), 0)
    assert config.dataset == "" and task.test_sentences is None and "test_sentences" not in task.source
    assert run.load_task(preset("quickstart", num_train=64, num_heldout=8), 0)[1].test_sentences is None


def test_changed_data_is_noticed(patched, tmp_path, capsys, fast_compile):
    folder, out, place = patched("emnlp2017_news/texygen"), tmp_path / "run", ["--data-dir", tmp_path / "tfds"]
    assert leakgan("train", "news", "--out", out, "--manual-dir", folder, *place, *NO_TRAINING) == 0
    assert json.loads((out / "config.json").read_text())["config"]["dataset"] == "emnlp2017_news/texygen"
    assert leakgan("train", "news", "--out", out, "--manual-dir", folder, *place, *NO_TRAINING, "--resume") == 0
    capsys.readouterr()
    shutil.rmtree(tmp_path / "tfds")
    write(folder / "emnlp_news.txt", LINES[::-1])
    assert leakgan("train", "--out", out, "--resume", "--manual-dir", folder) == 2
    shown = capsys.readouterr().err
    assert "train_sha256" in shown and shown.count("\n") == 1
    assert leakgan("evaluate", out) == 2


def test_a_stand_in_is_called_one_wherever_the_data_is_named(patched, tmp_path):
    folder = patched("emnlp2017_news/stand_in")
    config, task = run.load_task(preset("news"), 0, folder, tmp_path / "tfds")
    assert config.dataset == task.source["dataset"] == "emnlp2017_news/stand_in"
    assert display.describe(config, task.source).startswith("emnlp2017_news/stand_in: 273 sentences to train on")


def test_poems_are_read_character_by_character(patched, tmp_path, monkeypatch):
    poem = "秦 川 雄 帝 宅 ， 函 谷 壮 皇 居 。 绮 殿 千 寻 起 ， 离 宫 百 雉 余 。"
    monkeypatch.setattr(sys.modules[__name__], "LINES", [poem] * 80)
    config, task = run.load_task(preset("poems"), 0, patched("chinese_poems"), tmp_path / "tfds")
    assert task.source["dropped_as_too_long"] == 0 and task.train.shape == (72, 28) and task.test_sentences is None
    assert task.decode(np.asarray(task.train[:1])) == [poem]
    assert data.detokenize(task.train_sentences[0], config.tokenizer) == poem.replace(" ", "")


# --- The real files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dataset, folder, rows",
    [
        ("coco_image_captions", "coco", {"train": 10_000, "test": 10_000}),
        ("emnlp2017_news", "emnlp_news", {"train": 10_000, "test": 10_000}),
        ("chinese_poems", "poems_shi", {"train": 16_394}),
    ],
)
def test_real_files_have_the_registered_checksums(dataset, folder, rows, tmp_path):
    if not (SHARED / folder).exists():
        pytest.skip(f"the files of {dataset} are not in ../shared/data/{folder}")
    lines = corpora.load(dataset, SHARED / folder, tmp_path)
    assert {split: len(lines[split]) for split in lines} == rows
    name, _, variant = corpora.resolve(dataset, SHARED / folder, tmp_path).partition("/")
    for split, source in corpora._BUILDERS[name].SOURCES[variant].items():
        path = SHARED / folder / source.name
        assert path.stat().st_size == source.size
        assert lines[split] == path.read_text(encoding="utf-8").splitlines()
