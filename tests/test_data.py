"""Corpora: what is read, what is refused and in which words, and the rows that come out."""

import collections
import errno
import hashlib
import json
import os
import pathlib
import tracemalloc

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from leakgan_jax import data
from leakgan_jax.config import preset
from leakgan_jax.data import END, UNK, DataError, Vocabulary

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"
COCO = SHARED / "coco" / "image_coco.txt"
WORDS = ("<unk>", "<end>", "a", "cat", "sat")


def make_config(path="captions.txt", **overrides):
    small = {"length": 8, "goal_horizon": 4, "filter_windows": (1, 2), "filter_counts": (4, 4)}
    return preset("coco", corpus=str(path), **{**small, "batch_size": 4, "num_heldout": 3, **overrides})


def write(folder, content, name="captions.txt"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def message(call, *args):
    """The message of the `DataError` that a call raises; one line, always."""
    with pytest.raises(DataError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- Vocabulary ---------------------------------------------------------------------------------------


def test_special_ids_are_distinct_and_follow_config():
    config = make_config(vocab_size=len(WORDS))
    assert (UNK, END) == (0, 1) and END == config.end_id
    assert config.pad_id == len(Vocabulary(WORDS))


def test_encode_unknown_and_special_words():
    assert Vocabulary(WORDS).encode(["a", "dog", "sat", "<unk>", "<end>", "cat"]) == [2, UNK, 4, UNK, UNK, 3]


@pytest.mark.parametrize("ids, text", [([2, 3, END, 4], "a cat"), ([2, 5, 4], "a"), ([UNK, 4], "<unk> sat"), ([], "")])
def test_decode_stops_at_end_and_pad(ids, text):
    assert Vocabulary(WORDS).decode(ids) == text
    assert Vocabulary(WORDS).decode(np.array(ids, np.int32)) == text


word_strategy = st.text(min_size=1, max_size=5).filter(lambda w: w.split() == [w] and w not in WORDS[:2])


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(words=st.lists(word_strategy, min_size=1, max_size=8, unique=True), choose=st.data())
def test_round_trip_of_known_words(words, choose):
    vocabulary = Vocabulary((*WORDS[:2], *words))
    sentence = choose.draw(st.lists(st.sampled_from(words), max_size=8))
    ids = vocabulary.encode(sentence)
    assert UNK not in ids and END not in ids
    assert vocabulary.decode([*ids, END, len(vocabulary)]) == " ".join(sentence)


def test_save_and_load(tmp_path):
    vocabulary, path = Vocabulary((*WORDS, "naïve", "猫")), tmp_path / "vocabulary.json"
    path.write_text("old")
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    assert json.loads(path.read_text("utf-8")) == {"words": list(vocabulary.words), "format": 1}


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "vocabulary.json"
    Vocabulary(WORDS).save(path)

    def refuse(source, target):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        Vocabulary((*WORDS, "dog")).save(path)
    assert Vocabulary.load(path).words == WORDS
    assert list(tmp_path.iterdir()) == [path]


def vocabulary_json(*words, **rest):
    return json.dumps({"words": words, "format": 1, **rest})


@pytest.mark.parametrize(
    "content, expected",
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a vocabulary"),
        ('{"format": 1}', "list 'words'"),
        ('{"words": "a", "format": 1}', "list 'words'"),
        (vocabulary_json(*WORDS, format=2), "format is 2; this version reads format 1"),
        ('{"words": ["<unk>", "<end>"]}', "format is None"),
        (vocabulary_json(), "first two"),
        (vocabulary_json("<end>", "<unk>", "a"), "first two"),
        (vocabulary_json(["<unk>"], "<end>"), "first two"),
        (vocabulary_json(*WORDS, 7), "word 5 is 7"),
        (vocabulary_json(*WORDS, ["x"]), "word 5 is ['x']"),
        (vocabulary_json(*WORDS, ""), "word 5 is ''"),
        (vocabulary_json(*WORDS, "two words"), "word 5 is 'two words'"),
        (vocabulary_json(*WORDS, "line\n"), r"word 5 is 'line\n'"),
        (vocabulary_json(*WORDS, "cat"), "'cat' is there 2 times"),
        (vocabulary_json(*WORDS, "<end>"), "'<end>' is there 2 times"),
    ],
)
def test_load_refuses_what_is_no_vocabulary(tmp_path, content, expected):
    path = write(tmp_path, content, "vocabulary.json")
    text = message(Vocabulary.load, path)
    assert text.startswith(f"{path}: ") and expected in text


@pytest.mark.parametrize("call", [Vocabulary.load, lambda path: data.read_sentences(path, False), data.digest])
def test_missing_folder_and_unreadable(tmp_path, monkeypatch, call):
    missing = tmp_path / "missing"
    assert message(call, missing).startswith(f"{missing}: no such file")
    assert message(call, tmp_path).startswith(f"{tmp_path}: a folder")

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(data, "open", refuse, raising=False)  # chmod does not stop root
    assert message(call, missing).startswith(f"{missing}: cannot be read (Permission denied)")


# --- Reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_read_sentences(tmp_path, newline, mark):
    lines = ["A  Cat\tsat", "", "   ", " naïve 猫 "]
    path = write(tmp_path, mark + newline.join(lines).encode())
    assert data.read_sentences(path, lowercase=False) == [["A", "Cat", "sat"], ["naïve", "猫"]]
    assert data.read_sentences(str(path), lowercase=True)[0] == ["a", "cat", "sat"]


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", ": no words in it"),
        (b"\xef\xbb\xbf", ": no words in it"),
        (b" \n\t\r\n\n", ": no words in it"),
        (b"a cat\nthe ca\xfft\n", ", line 2: not UTF-8 (byte 0xff at column 7); save the file as UTF-8"),
        (b"caf\xc3\xa9 \xe9", ", line 1: not UTF-8 (byte 0xe9 at column 6)"),
        (b"a cat\n\xed\xb3\xbf", ", line 2: not UTF-8 (byte 0xed at column 1)"),  # a surrogate, spelled out
        ("a cat".encode("utf-16"), ", line 1: not UTF-8 (byte 0xff at column 1)"),
        (b"a cat\nab\0c", ", line 2: a NUL byte at column 3"),
        (b"a\n" + b"x" * (data.MAX_LINE + 1), ", line 2: over 100,000 characters"),
    ],
)
def test_read_sentences_refuses(tmp_path, content, expected):
    path = write(tmp_path, content)
    assert message(data.read_sentences, path, False).startswith(f"{path}{expected}")


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_longest_line_counts_characters(tmp_path, end):
    path = write(tmp_path, "é" * data.MAX_LINE + end)
    assert data.read_sentences(path, False) == [["é" * data.MAX_LINE]]


def test_read_lines_leaves_lines_as_they_are(tmp_path):
    path = write(tmp_path, "\ufeffA  Cat\t\r\n\n \n naïve 猫 \r\rlast")
    assert list(data.read_lines(path)) == ["A  Cat\t", " naïve 猫 ", "last"]


# --- Words --------------------------------------------------------------------------------------------

QUOTED = "The man's \"red\" hat isn't here, he said (twice)."


@pytest.mark.parametrize(
    "tokenizer, words",
    [
        ("whitespace", ["The", "man's", '"red"', "hat", "isn't", "here,", "he", "said", "(twice)."]),
        (
            "nltk",
            "The man 's `` red '' hat is n't here , he said ( twice ) .".split(),
        ),
        ("characters", list(QUOTED.replace(" ", ""))),
    ],
)
def test_tokenize_and_back(tokenizer, words):
    assert data.tokenize(QUOTED, tokenizer, lowercase=False) == words
    assert data.tokenize(f" {QUOTED}\t", tokenizer, lowercase=False) == words
    assert data.tokenize(QUOTED, tokenizer, lowercase=True)[:2] == [word.lower() for word in words[:2]]
    readable = QUOTED.replace(" ", "") if tokenizer == "characters" else QUOTED
    assert data.detokenize(words, tokenizer) == readable
    assert data.detokenize([], tokenizer) == ""


@pytest.mark.parametrize(
    "words, readable",
    [
        ("They ' ll go , I think .", "They'll go, I think."),
        ("Don ' t ( ever ) say : it ' s $ 5 !", "Don't (ever) say: it's $5!"),
        ("It isn't, she said.", "It isn't, she said."),
        ("the ' so - called ' star", "the ' so - called ' star"),  # which belong together nobody can tell
    ],
)
def test_text_that_came_in_words_is_joined_again(words, readable):
    assert data.detokenize(words.split(), "whitespace") == readable


def test_nltk_is_the_word_tokenizer_that_needs_no_download():
    from nltk.tokenize import NLTKWordTokenizer

    for line in (QUOTED, "a cat. a dog.", "cannot, gonna; don't!", "10,000 -- 3.5%", "''quoted''"):
        assert data.tokenize(line, "nltk", False) == NLTKWordTokenizer().tokenize(line)


@pytest.mark.parametrize(
    "line, characters",
    [("秦 川 雄 帝 宅 ，", "秦川雄帝宅，"), ("秦川\u3000雄\xa0帝", "秦川雄帝"), ("a\u2003b\x85c", "abc")],
)
def test_characters_leave_out_every_kind_of_space(line, characters):
    assert data.tokenize(line, "characters", False) == list(characters)
    assert data.detokenize(list(characters), "characters") == characters


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(line=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_no_word_of_any_tokenizer_has_whitespace(line):
    for tokenizer in ("whitespace", "nltk", "characters"):
        words = data.tokenize(line, tokenizer, False)
        assert " ".join(words).split() == words
        if tokenizer == "characters":
            assert "".join(words) == "".join(line.split())


def test_read_sentences_by_tokenizer(tmp_path):
    path = write(tmp_path, "It isn't.\n猫 狗\n")
    assert data.read_sentences(path, True, "nltk") == [["it", "is", "n't", "."], ["猫", "狗"]]
    assert data.read_sentences(path, False, "characters") == [list("Itisn't."), ["猫", "狗"]]


def test_a_word_is_in_memory_once(tmp_path):
    first, second = data.read_sentences(write(tmp_path, "some words\nsome words\n"), False)
    assert first[0] is second[0] and first[1] is second[1]


def test_endless_line_is_refused_within_bounded_memory(tmp_path):
    path = write(tmp_path, b"a " * 5_000_000)
    tracemalloc.start()
    try:
        assert "line 1: over 100,000 characters" in message(data.read_sentences, path, False)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


# --- Encoding -----------------------------------------------------------------------------------------


def numbered(n):
    """`n` different sentences of two words, `s` and a number."""
    return [["s", str(i)] for i in range(n)]


def numbers(rows, corpus):
    """The numbers in rows of `numbered` sentences; None for one that the vocabulary does not know."""
    words = [corpus.vocabulary.decode(row).split()[1] for row in rows]
    return [None if word == "<unk>" else int(word) for word in words]


@pytest.mark.parametrize("n, heldout", [(5, 1), (19, 1), (20, 2), (30, 3), (60, 3)])
def test_split_sizes_and_order(n, heldout):
    corpus = data.encode_corpus(numbered(n), make_config())
    assert corpus.train.shape == (n - heldout, 8) and corpus.heldout.shape == (heldout, 8)
    assert corpus.train.dtype == corpus.heldout.dtype == np.int32
    train = numbers(corpus.train, corpus)
    assert train == sorted(set(train))
    # The vocabulary is that of the training split, so a number of the held-out split is unknown.
    assert numbers(corpus.heldout, corpus) == [None] * heldout
    assert len(corpus.vocabulary) == 3 + n - heldout

    again = data.encode_corpus(numbered(n), make_config())
    np.testing.assert_array_equal(corpus.train, again.train)
    if n > 19:  # from all over the file
        assert train not in (list(range(n - heldout)), list(range(heldout, n)))


def test_heldout_keeps_file_order():
    common = [[str(i % 30)] for i in range(300)]  # every number is in training, whatever is held out
    corpus = data.encode_corpus(common, make_config(num_heldout=30))
    order = np.random.default_rng(0).permutation(300)
    assert [corpus.vocabulary.decode(row) for row in corpus.heldout] == [common[i][0] for i in sorted(order[:30])]
    assert corpus.duplicates == 30


def test_rows_and_vocabulary_by_hand():
    sentences = [["b", "a", "<end>", "b"]] * 40 + [["c", "<unk>"]] * 10
    corpus = data.encode_corpus(sentences, make_config(min_count=2))
    assert corpus.vocabulary.words == ("<unk>", "<end>", "b", "a", "c")
    rows = np.unique(corpus.train, axis=0).tolist()
    assert rows == [[2, 3, UNK, 2, END, 5, 5, 5], [4, UNK, END, 5, 5, 5, 5, 5]]


def test_vocabulary_breaks_ties_by_alphabet_and_minds_min_count():
    sentences = [["z", "m", "a"], ["m", "z"]] * 20 + [["once"]]
    corpus = data.encode_corpus(sentences, make_config(min_count=2))
    assert corpus.vocabulary.words == ("<unk>", "<end>", "m", "z", "a")


def test_too_long_is_dropped_and_duplicates_are_counted():
    fits, too_long = ["w"] * 7, ["w"] * 8
    corpus = data.encode_corpus([fits, too_long] * 20, make_config())
    assert corpus.dropped == 20 and corpus.duplicates == 2
    assert len(corpus.train) == 18 and len(corpus.heldout) == 2
    assert (corpus.train == [2] * 7 + [END]).all()
    assert data.encode_corpus(numbered(30), make_config()).duplicates == 0


@pytest.mark.parametrize(
    "sentences, overrides, expected",
    [
        ([], {}, "0 usable sentence(s) of 0; give at least 2"),
        ([["a"]], {}, "1 usable sentence(s) of 1; give at least 2"),
        ([["a"], ["a"] * 8], {}, "1 usable sentence(s) of 2; give at least 2"),
        ([["a"] * 9, ["a"] * 12], {}, "length 8 (7 words and an end); the shortest has 9 words"),
        (numbered(4), {}, "3 training sentence(s) with 1 held out; give at least batch_size (4)"),
        (numbered(20), {"min_count": 50}, "min_count 50 leaves no words, the highest count is 18"),
        ([["<unk>", "<end>"]] * 9, {}, "min_count 1 leaves no words, the highest count is 0"),
    ],
)
def test_encode_corpus_refuses(sentences, overrides, expected):
    text = message(data.encode_corpus, sentences, make_config(**overrides))
    assert text.startswith("captions.txt: ") and expected in text


def test_sentences_are_kept_as_words_and_test_as_it_is():
    sentences = [[str(i), "x"] for i in range(40)] + [["w"] * 9]
    test = [["3", "x"], ["w"] * 9, ["3", "x"], ["y"], ["x", "3"]]
    corpus = data.encode_corpus(sentences, make_config(), test)
    assert corpus.train_sentences + corpus.heldout_sentences != sentences[:40]  # it was split
    assert sorted(corpus.train_sentences + corpus.heldout_sentences) == sorted(sentences[:40])
    assert corpus.test == test
    assert corpus.test_duplicates == 2 * (["3", "x"] in corpus.train_sentences) == 2
    np.testing.assert_array_equal(data.encode_rows(corpus.train_sentences, corpus.vocabulary, 8), corpus.train)
    np.testing.assert_array_equal(data.encode_rows(corpus.heldout_sentences, corpus.vocabulary, 8), corpus.heldout)
    assert data.encode_corpus(sentences, make_config()).test is None


def test_load_corpus_reads_and_names_the_file(tmp_path):
    path = write(tmp_path, "A cat\na CAT\n" * 5)
    assert len(data.load_corpus(make_config(path)).vocabulary) == 6
    assert data.load_corpus(make_config(path, lowercase=True)).vocabulary.words == ("<unk>", "<end>", "a", "cat")
    assert message(data.load_corpus, make_config(path, min_count=99)).startswith(f"{path}: min_count 99")


def test_digest(tmp_path):
    content = bytes(range(256)) * 5_000  # more than one block
    assert data.digest(write(tmp_path, content)) == hashlib.sha256(content).hexdigest()


def test_real_captions():
    if not COCO.exists():
        pytest.skip("the COCO captions are not in ../shared/data/coco")
    sentences = data.read_sentences(COCO, lowercase=False, tokenizer="nltk")
    assert len(sentences) == 10_000
    assert len({word for words in sentences for word in words}) == 4_659 and max(map(len, sentences)) == 37

    corpus = data.load_corpus(preset("coco", corpus=str(COCO)))
    assert corpus.dropped == 3
    assert len(corpus.train) + len(corpus.heldout) + corpus.dropped == 10_000
    assert len(corpus.heldout) == (10_000 - corpus.dropped) // 10
    pad = len(corpus.vocabulary)
    for rows in (corpus.train, corpus.heldout):
        end = np.argmax(rows == END, axis=1)[:, None]
        position = np.arange(rows.shape[1])
        assert ((rows == END) == (position == end)).all()
        assert ((rows == pad) == (position > end)).all()
        assert rows.min() >= UNK and rows.max() <= pad
    assert UNK not in corpus.train

    # Both splits together are the kept sentences, each as often as in the file.
    fits = collections.Counter(" ".join(words) for words in sentences if len(words) < 32)
    train = collections.Counter(map(corpus.vocabulary.decode, corpus.train))
    rest = fits - train
    assert train <= fits and rest.total() == len(corpus.heldout)
    known = [text for text in map(corpus.vocabulary.decode, corpus.heldout) if "<unk>" not in text]
    assert collections.Counter(known) <= rest
    assert corpus.duplicates == sum(train[text] > 0 for text in known)


@pytest.mark.parametrize(
    "name, file, types, longest",
    [
        ("news", "emnlp_news/gfs_valid.txt", 5_570, 49),
        ("news", "emnlp_news/gfs_test.txt", 5_561, 49),
        ("poems", "poems_shi/shi.txt", 4_771, 24),
    ],
)
def test_real_news_and_poems_fit_their_presets(name, file, types, longest):
    if not (SHARED / file).exists():
        pytest.skip(f"../shared/data/{file} is not there")
    config = preset(name)
    sentences = data.read_sentences(SHARED / file, config.lowercase, config.tokenizer)
    assert len({word for words in sentences for word in words}) == types
    assert max(map(len, sentences)) == longest < config.length


def test_a_file_too_large_for_memory_is_refused_as_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MAX_TEXT", 10)
    assert len(data.read_sentences(write(tmp_path, "a b c\nd e f\n"), False)) == 2
    with pytest.raises(data.DataError, match="over 10 characters; give a part of it"):
        data.read_sentences(write(tmp_path, "a b c\nd e f\ng\n"), False)
