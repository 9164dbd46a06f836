"""Corpus metrics against NLTK, against loops nobody could get wrong, and against published files; `leakgan metrics`."""

import collections
import functools
import json
import math
import pathlib
import warnings

import hypothesis
import numpy as np
import pytest
import scipy.linalg
from hypothesis import strategies as st
from nltk.tokenize.destructive import NLTKWordTokenizer
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from leakgan_jax import cli, data, metrics
from leakgan_jax.config import ConfigError
from leakgan_jax.data import DataError

DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "coco_samples" / "mle.txt").exists(), reason="the published samples are not beside the repository"
)
ORDERS = (2, 3, 4, 5)
RULES = ("method1", "none", "nltk-3.2")
many = hypothesis.settings(max_examples=150, deadline=None)

# Three words in short sentences: repeats, overlaps of every order and references as close in length are common.
sentence = st.lists(st.sampled_from("abc"), max_size=9)
some = st.lists(sentence, min_size=1, max_size=5)
two_or_more = st.lists(sentence, min_size=2, max_size=6)


# --- slow references --------------------------------------------------------------------------------------------


def slow_bleu(hypothesis, references, rule):
    """BLEU-2 .. BLEU-5 of one sentence: NLTK's own, or the old rule in plain Python."""
    if rule == "nltk-3.2":
        return [slow_old_bleu(hypothesis, references, n) for n in ORDERS]
    smoothing = SmoothingFunction().method1 if rule == "method1" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLTK warns of orders without a match
        return sentence_bleu(references, hypothesis, [(1 / n,) * n for n in ORDERS], smoothing)


def slow_old_bleu(hypothesis, references, order):
    """NLTK 3.2.5 without smoothing: the product ends before the first order without a match."""
    if not hypothesis:
        return 0.0
    logs = 0.0
    for n in range(1, order + 1):
        grams, theirs = slow_grams(hypothesis, n), [slow_grams(reference, n) for reference in references]
        found = sum(min(k, max(other[gram] for other in theirs)) for gram, k in grams.items())
        if n == 1 and not found:
            return 0.0
        if not found:
            break
        logs += math.log(found / grams.total()) / order
    _, closest = min((abs(len(r) - len(hypothesis)), len(r)) for r in references)
    return min(1.0, math.exp(1 - closest / len(hypothesis))) * math.exp(logs)


def slow_grams(words, n):
    return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def slow_mean(pairs, rule):
    """Mean BLEU-2 .. BLEU-5 of (hypothesis, references) pairs."""
    return np.mean([slow_bleu(words, references, rule) for words, references in pairs], axis=0)


def leave_one_out(sentences):
    return [(words, sentences[:i] + sentences[i + 1 :]) for i, words in enumerate(sentences)]


def spans(words):
    return {tuple(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}


def values(result, name="bleu"):
    return [result[f"{name}_{n}"] for n in ORDERS]


def assert_same(fast, slow):
    np.testing.assert_allclose(fast, slow, rtol=1e-12, atol=1e-12)


# --- BLEU -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@many
@hypothesis.given(hypotheses=some, references=some)
def test_bleu_is_nltks(rule, hypotheses, references):
    result = metrics.bleu(hypotheses, references, rule=rule)
    assert_same(values(result), slow_mean([(words, references) for words in hypotheses], rule))
    assert (result["hypotheses"], result["references"], result["rule"]) == (len(hypotheses), len(references), rule)


CASES = {
    "empty hypothesis": ("", ["a b c"]),
    "one word": ("a", ["a b c", "b"]),
    "one word, the reference": ("a", ["a"]),
    "one unknown word": ("x", ["a b c"]),
    "no overlap": ("x y z x y z", ["a b c d e f"]),
    "words but no pair": ("c b a", ["a b c"]),
    "exact copy": ("a b c d e f", ["x", "a b c d e f"]),
    "exact copy shorter than the order": ("a b c", ["a b c"]),
    "repeats are clipped by one reference, not by their sum": ("a a a a", ["a a b", "a c a"]),
    "two references as close: the shorter": ("a b c d e f", ["a b c d", "a b c d e f g h"]),
    "an empty reference is the closest": ("a", ["", "a b c d"]),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_bleu_edge_cases(case, rule):
    hypothesis, references = CASES[case][0].split(), [r.split() for r in CASES[case][1]]
    assert_same(values(metrics.bleu([hypothesis], references, rule=rule)), slow_bleu(hypothesis, references, rule))


def test_bleu_by_hand():
    """`a b c x` against `a b c d e`: 3 of 4, 2 of 3, 1 of 2, 0 of 1, 0 of max(1, 0), brevity exp(1 - 5/4)."""
    score = functools.partial(metrics.bleu, [list("abcx")], [list("abcde")])
    product = {2: 3 / 4 * 2 / 3, 3: 3 / 4 * 2 / 3 / 2}
    brevity = math.exp(-1 / 4)
    for rule, tail in (("none", 0), ("nltk-3.2", 1), ("method1", 0.1)):
        expected = [product[2] ** (1 / 2), product[3] ** (1 / 3), (product[3] * tail) ** (1 / 4)]
        expected.append((product[3] * tail * tail) ** (1 / 5))
        np.testing.assert_allclose(values(score(rule=rule)), brevity * np.array(expected), rtol=1e-12)


def test_max_order_leaves_the_lower_orders_as_they_are():
    hypotheses, references = [list("abcab")], [list("abcbb")]
    whole = metrics.bleu(hypotheses, references)
    short = metrics.bleu(hypotheses, references, max_order=3)
    assert {key for key in short if key.startswith("bleu")} == {"bleu_2", "bleu_3"}
    assert (short["bleu_2"], short["bleu_3"]) == (whole["bleu_2"], whole["bleu_3"])


def test_tokens_are_anything_hashable():
    hypotheses, references = ["abcab", "bca"], ["abcb", "cab"]
    ids = [[{"a": 0, "b": 10**30, "c": (1, 2)}[c] for c in words] for words in hypotheses + references]
    assert metrics.bleu(ids[:2], ids[2:]) == metrics.bleu(hypotheses, references)
    arrays = np.array([[1, 2, 3], [1, 2, 2]]), np.array([[1, 2, 3, 9]])
    lists = [list(map(str, row)) for row in arrays[0]], [list(map(str, row)) for row in arrays[1]]
    assert metrics.bleu(*arrays) == metrics.bleu(*lists)


# --- Self-BLEU --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@many
@hypothesis.given(sentences=two_or_more)
def test_self_bleu_leaves_one_out(rule, sentences):
    result = metrics.self_bleu(sentences, rule=rule)
    assert_same(values(result, "self_bleu"), slow_mean(leave_one_out(sentences), rule))
    assert (result["sentences"], result["rule"]) == (len(sentences), rule)


def test_self_bleu_does_not_count_the_sentence_itself():
    nothing_shared = [list(words) for words in ("abcdef", "ghijkl", "mnopqr", "stuvwx")]
    assert values(metrics.self_bleu(nothing_shared), "self_bleu") == [0, 0, 0, 0]
    assert values(metrics.self_bleu([*nothing_shared[:1] * 2]), "self_bleu") == [1, 1, 1, 1]


def test_self_bleu_takes_the_length_of_another():
    # Five words are there once; the others have 3 or 8, of which 3 is closer, so no brevity penalty.
    sentences = [list("aaa"), list("aaaaa"), list("aaaaaaaa"), list("aaaaaaaa")]
    assert_same(values(metrics.self_bleu(sentences), "self_bleu"), slow_mean(leave_one_out(sentences), "method1"))


@pytest.mark.parametrize(
    "call", [lambda **o: metrics.bleu(["ab"], ["ab"], **o), lambda **o: metrics.self_bleu("ab", **o)]
)
def test_settings_that_do_not_exist(call):
    with pytest.raises(ConfigError, match="rule is 'method2'; it must be one of method1, nltk-3.2, none"):
        call(rule="method2")
    with pytest.raises(ConfigError, match="max_order is 1; it must be at least 2"):
        call(max_order=1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.bleu([], ["ab"]),
        lambda: metrics.bleu(["ab"], []),
        lambda: metrics.self_bleu([]),
        lambda: metrics.self_bleu(["ab"]),
        lambda: metrics.distinct_n([]),
        lambda: metrics.novelty([], ["ab"]),
        lambda: metrics.novelty(["ab"], []),
        lambda: metrics.word_vectors([]),
        lambda: metrics.word_vectors(["", ""]),
        lambda: metrics.fed(["a"], ["a", "b"], lambda sentences: np.zeros((len(sentences), 2))),
    ],
)
def test_too_few_sentences(call):
    with pytest.raises(DataError, match="give") as error:
        call()
    assert "\n" not in str(error.value)


# --- Diversity and copying --------------------------------------------------------------------------------------


@many
@hypothesis.given(sentences=some)
def test_distinct_is_a_set(sentences):
    result = metrics.distinct_n(sentences)
    for n in (1, 2, 3, 4):
        grams = sum((slow_grams(words, n) for words in sentences), collections.Counter())
        assert result[f"distinct_{n}"] == (len(grams) / grams.total() if grams else None)
    assert result["distinct"] == len({tuple(words) for words in sentences}) / len(sentences)
    assert result["sentences"] == len(sentences)


@many
@hypothesis.given(hypotheses=some, train=some)
def test_novelty_is_a_search(hypotheses, train):
    result = metrics.novelty(hypotheses, train)
    for n in ORDERS:
        known = sum((slow_grams(words, n) for words in train), collections.Counter())
        ours = sum((slow_grams(words, n) for words in hypotheses), collections.Counter())
        share = sum(k for gram, k in ours.items() if gram in known) / ours.total() if ours else None
        assert result[f"in_train_{n}"] == pytest.approx(share)
    known = set().union(*map(spans, train))
    longest = [max(map(len, spans(words) & known), default=0) for words in hypotheses]
    assert (result["copied_mean"], result["copied_max"]) == (pytest.approx(np.mean(longest)), max(longest))
    assert result["in_train"] == sum(words in train for words in hypotheses) / len(hypotheses)
    assert (result["hypotheses"], result["train"]) == (len(hypotheses), len(train))


@pytest.mark.parametrize("seed", range(3))
def test_longest_copies_of_long_sentences(seed):
    """Lengths around powers of two, spans of every length planted in text that matches nowhere else."""
    rng = np.random.default_rng(seed)
    train = [rng.integers(0, 1000, size).tolist() for size in (1, 31, 32, 33, 64, 100)]
    expected, hypotheses = [], []
    for span in (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 99, 100):
        start = rng.integers(0, 100 - span + 1)
        around = [[-1 - i for i in range(rng.integers(0, 5))] for _ in range(2)]
        hypotheses.append([*around[0], *train[-1][start : start + span], *around[1]])
        expected.append(span)
    result = metrics.novelty(hypotheses, train)
    known = set().union(*map(spans, train))
    assert expected == [max(map(len, spans(words) & known), default=0) for words in hypotheses]
    assert (result["copied_mean"], result["copied_max"]) == (np.mean(expected), 100)
    for words, span in zip(hypotheses, expected):
        assert metrics.novelty([words], train)["copied_max"] == span


@pytest.mark.parametrize("length", [*range(1, 18), 31, 32, 33])
def test_the_longest_copy_is_found_among_near_misses(length):
    words = list(range(length))
    near = [[*words[:i], other] for i in range(length) for other in (-1, length)]
    assert metrics.novelty([words], [*near, words, *near])["copied_max"] == length
    assert metrics.novelty([words], near)["copied_max"] == length - 1


def test_spans_do_not_cross_sentences():
    result = metrics.novelty([list("abcd")], [list("ab"), list("cd")])
    assert (result["copied_max"], result["in_train_3"], result["in_train"]) == (2, 0, 0)
    assert metrics.novelty([list("ab"), list("cd")], [list("abcd")])["copied_max"] == 2


# --- Fréchet distance -------------------------------------------------------------------------------------------


def points(mean, covariance, num=50, seed=0):
    """`[num, d]` with exactly this sample mean and covariance."""
    x = np.random.default_rng(seed).normal(size=(num, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_diagonal_covariances():
    mean_a, mean_b = np.array([1.0, 2, 3]), np.array([0.0, 2, 5])
    scale_a, scale_b = np.array([1.0, 2, 0.5]), np.array([3.0, 0.1, 0.5])
    a, b = points(mean_a, np.diag(scale_a**2)), points(mean_b, np.diag(scale_b**2), seed=1)
    closed_form = np.sum((mean_a - mean_b) ** 2) + np.sum((scale_a - scale_b) ** 2)
    assert metrics.frechet_distance(a, b) == pytest.approx(closed_form, rel=1e-12)
    assert metrics.frechet_distance(b, a) == pytest.approx(closed_form, rel=1e-12)


@pytest.mark.parametrize("num", [4, 40])  # fewer points than dimensions, and more
def test_frechet_distance_is_its_formula(num):
    rng = np.random.default_rng(num)
    a, b = rng.normal(size=(num, 6)), rng.normal(size=(num, 6)) @ rng.normal(size=(6, 6)) + 1
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a + 1e-12 * np.eye(6))
    cross = np.trace(scipy.linalg.sqrtm(root @ cov_b @ root + 1e-14 * np.eye(6)).real)
    formula = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    assert metrics.frechet_distance(a, b) == pytest.approx(formula, rel=1e-4)


def test_frechet_distance_of_the_same_points_is_nothing():
    a = np.random.default_rng(0).normal(size=(30, 5))
    assert 0 <= metrics.frechet_distance(a, a[::-1]) < 1e-12
    singular = a @ np.ones((5, 5))
    assert 0 <= metrics.frechet_distance(singular, singular) < 1e-10


@pytest.mark.parametrize(
    "a, b",
    [
        (np.zeros((3, 2)), np.zeros((4, 2))),
        (np.zeros((3, 2)), np.zeros((3, 1))),
        (np.zeros(3), np.zeros(3)),
        (np.zeros((1, 2)), np.zeros((1, 2))),
        (np.full((3, 2), np.nan), np.zeros((3, 2))),
        (np.zeros((3, 2)), np.full((3, 2), np.inf)),
    ],
)
def test_frechet_distance_refuses(a, b):
    with pytest.raises(DataError, match="Fréchet distance of .*give"):
        metrics.frechet_distance(a, b)


def test_fed_uses_the_encoder_it_is_given():
    def length_and_first(sentences):
        return np.array([[len(words), ord(words[0]) - ord("a")] for words in sentences], float)

    result = metrics.fed(["ab", "b"], ["abc", "bb"], length_and_first)
    # Means differ by 1 and 0; both have the covariance [[.5, -.5], [-.5, .5]].
    assert result == {"fed": pytest.approx(1.0), "fed_sentences": 2, "fed_dim": 2}


def slow_word_vectors(text, dim, window):
    """The words in the order they come, and their vectors: pairs counted one by one, the whole SVD."""
    words = list(dict.fromkeys(word for sentence in text for word in sentence))
    pairs, total = collections.Counter(), collections.Counter()
    for sentence in text:
        for i, word in enumerate(sentence):
            for other in sentence[max(0, i - window) : i] + sentence[i + 1 : i + 1 + window]:
                pairs[word, other] += 1
                total[word] += 1
    place, whole = {word: i for i, word in enumerate(words)}, total.total()
    information = np.zeros((len(words), len(words)))
    for (word, other), k in pairs.items():
        information[place[word], place[other]] = max(0, math.log(k * whole / (total[word] * total[other])))
    u, s, _ = np.linalg.svd(information)
    vectors = u[:, :dim] * np.sqrt(s[:dim])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return words, np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-12)


@pytest.mark.parametrize("dim", [5, 7, 20])
def test_word_vectors_are_the_svd_of_counted_pairs(dim):
    rng = np.random.default_rng(dim)
    text = [["abcdefghi"[i] for i in rng.integers(0, 9, rng.integers(0, 7))] for _ in range(12)]
    words, slow = slow_word_vectors(text, dim, window=2)
    encode = metrics.word_vectors(text, dim, window=2)
    fast = encode([[word] for word in words])
    assert fast.shape == (len(words), min(dim, len(words)))
    np.testing.assert_allclose(fast @ fast.T, slow @ slow.T, atol=1e-9)  # the same but for the axes' signs
    mean = encode([[words[0], words[2], words[2], "unknown"], []])
    np.testing.assert_allclose(mean, [(fast[0] + 2 * fast[2]) / 4, np.zeros(fast.shape[1])], atol=1e-12)


def test_word_vectors_of_more_words_than_the_iteration_spans():
    rng = np.random.default_rng(0)
    text = (rng.integers(0, 20, (300, 8)) + 20 * rng.integers(0, 10, (300, 1))).tolist()  # 10 topics of 20 words
    encode = metrics.word_vectors(text, dim=10)
    words, slow = slow_word_vectors(text, 10, window=5)
    assert len(words) == 200
    fast = encode([[word] for word in words])
    np.testing.assert_allclose(fast @ fast.T, slow @ slow.T, atol=1e-3)
    np.testing.assert_array_equal(fast, metrics.word_vectors(text, dim=10)([[word] for word in words]))


def test_word_vectors_of_words_without_company():
    encode = metrics.word_vectors([["a"], ["b"], ["c"]])
    np.testing.assert_array_equal(encode([["a", "b"], ["x"], []]), np.zeros((3, 3)))


def test_fed_grows_with_damage():
    rng = np.random.default_rng(0)
    topics = rng.integers(0, 4, (400, 1))
    text = (rng.integers(0, 12, (400, 7)) + 12 * topics).tolist()  # a sentence keeps to the words of its topic
    ours, theirs = text[:200], text[200:]
    encode = metrics.word_vectors(theirs, dim=8)

    def damaged(share):
        return [[w if rng.random() > share else int(rng.integers(0, 48)) for w in words] for words in ours]

    scores = [metrics.fed(damaged(share), theirs, encode)["fed"] for share in (0, 0.3, 1)]
    assert 0 < scores[0] < 0.5 * scores[1] < 0.5 * scores[2]
    one_topic = [words for words in ours if words[0] < 12]
    assert metrics.fed((one_topic * 200)[:200], theirs, encode)["fed"] > scores[1]


# --- Published files --------------------------------------------------------------------------------------------


@functools.cache
def read(name, tokenizer="nltk"):
    return data.read_sentences(DATA / name, False, tokenizer)


@needs_data
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "hypotheses, references, tokenizer",
    [
        ("coco_samples/textgan.txt", "coco/test_coco.txt", "nltk"),
        ("emnlp_news/gfs_valid.txt", "emnlp_news/gfs_test.txt", "whitespace"),
    ],
)
def test_slices_of_published_files(hypotheses, references, tokenizer, rule):
    hypotheses, references = read(hypotheses, tokenizer)[:20], read(references, tokenizer)[:60]
    slow = slow_mean([(words, references) for words in hypotheses], rule)
    assert_same(values(metrics.bleu(hypotheses, references, rule=rule)), slow)
    slow = slow_mean(leave_one_out(hypotheses), rule)
    assert_same(values(metrics.self_bleu(hypotheses, rule=rule), "self_bleu"), slow)


@needs_data
def test_whole_published_files():
    """Two rows of the published table; `experiments/golden_bleu.py` has all of them."""
    mle, test = read("coco_samples/mle.txt"), read("coco/test_coco.txt")
    assert (len(mle), len(test)) == (9_984, 10_000)
    golden = {"abs": 1e-3}
    assert values(metrics.bleu(mle, test)) == pytest.approx([0.7314, 0.4974, 0.3054, 0.1894], **golden)
    assert values(metrics.self_bleu(mle), "self_bleu") == pytest.approx([0.9159, 0.7694, 0.5829, 0.4090], **golden)
    assert round(metrics.distinct_n(mle)["distinct"] * 9_984) == 9_964

    valid, test = read("emnlp_news/gfs_valid.txt", "whitespace"), read("emnlp_news/gfs_test.txt", "whitespace")
    old = metrics.bleu(valid, test, rule="nltk-3.2")
    assert values(old) == pytest.approx([0.8458, 0.5973, 0.4495, 0.4317], **golden)
    assert values(metrics.self_bleu(valid), "self_bleu") == pytest.approx([0.8580, 0.6175, 0.3918, 0.2410], **golden)


# --- The command ------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    """`files(name=content, ...)` writes them to an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def write(**contents):
        for name, content in contents.items():
            pathlib.Path(f"{name}.txt").write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def run(*argv):
    return cli.main(["metrics", *argv])


REAL = "A cat sat on the mat.\nthe dog sat, too\na cat ate the dog on a mat\n"


def test_command_prints_the_library_s_numbers_as_json(files, capsys):
    files(h="the cat sat on a mat.\n\nthe dog sat, too\nTHE cat ate\n", r=REAL, t="the dog sat, too\na b\n")
    options = ("--tokenizer", "nltk", "--lowercase", "--rule", "nltk-3.2", "--train", "t.txt", "--json")
    assert run("h.txt", "--references", "r.txt", *options) == 0
    shown = json.loads(capsys.readouterr().out)

    nltk = NLTKWordTokenizer().tokenize
    hypotheses = [nltk(line) for line in ("the cat sat on a mat.", "the dog sat, too", "the cat ate")]
    references = [nltk(line.lower()) for line in REAL.splitlines()]
    bleu = slow_mean([(words, references) for words in hypotheses], "nltk-3.2")
    assert [shown[f"bleu_{n}"] for n in ORDERS] == pytest.approx(bleu)
    self_bleu = slow_mean(leave_one_out(hypotheses), "nltk-3.2")
    assert [shown[f"self_bleu_{n}"] for n in ORDERS] == pytest.approx(self_bleu)
    settings = ("hypotheses", "references", "train", "rule", "tokenizer", "lowercase")
    assert [shown[key] for key in settings] == [3, 3, 2, "nltk-3.2", "nltk", True]
    assert (shown["in_train"], shown["copied_max"], shown["distinct"]) == (pytest.approx(1 / 3), 5, 1)
    assert shown["fed"] > 0 and shown["fed_sentences"] == 3 and "sentences" not in shown


def test_command_prints_a_table(files, capsys):
    files(h="a cat sat\na dog sat on a mat\n" * 2, r=REAL)
    assert run("h.txt", "--references", "r.txt") == 0
    shown = capsys.readouterr()
    assert "4 sentences, 50.0% distinct" in shown.out and "rule method1, tokenizer whitespace, case kept" in shown.out
    assert "in train" not in shown.out
    rows = {line.split()[0]: line.split()[1:] for line in shown.out.splitlines() if line}
    score = metrics.bleu(
        [line.split() for line in ("a cat sat", "a dog sat on a mat")], [r.split() for r in REAL.splitlines()]
    )
    assert rows["BLEU"] == [f"{value:.4f}" for value in values(score)]
    assert len(rows["distinct-n"]) == 4
    assert "note: 2 of 4 hypotheses have fewer than 5 words" in shown.err and "warning" not in shown.err
    assert "note: 3 sentences are too few for FED" in shown.err
    assert run("h.txt", "--references", "r.txt", "--train", "r.txt") == 0
    assert "a sentence of train" in capsys.readouterr().out


def test_command_splits_characters(files, capsys):
    files(h="春 眠\n不覺曉 春眠\n", r="春眠不覺曉\n春\n")
    assert run("h.txt", "--references", "r.txt", "--tokenizer", "characters", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["bleu_2"] == pytest.approx(
        slow_mean([(h, ["春眠不覺曉", "春"]) for h in ("春眠", "不覺曉春眠")], "method1")[0]
    )


def test_command_takes_equal_numbers_for_fed(files, capsys):
    files(h="a b\nb c\n", r="a b\nx y\nb c\ny x\n", one="a b\n")
    assert run("h.txt", "--references", "r.txt", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["fed_sentences"], shown["fed"]) == (2, pytest.approx(0, abs=1e-12))  # sentences 0 and 2 of four
    assert run("h.txt", "--references", "one.txt", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["fed"], shown["references"]) == (None, 1)


def test_command_warns_of_other_tokens(files, capsys):
    files(h="A CAT SAT\nthe DOG\n", r=REAL)
    assert run("h.txt", "--references", "r.txt") == 0
    expected = "leakgan: warning: only 40% of the 5 different words of h.txt occur in r.txt"
    assert capsys.readouterr().err.startswith(expected)
    assert run("h.txt", "--references", "r.txt", "--lowercase") == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "contents, options, expected",
    [
        ({"h": "", "r": REAL}, "", "h.txt: no words in it"),
        ({"h": "\n \n", "r": REAL}, "", "h.txt: no words in it"),
        ({"h": REAL, "r": ""}, "", "r.txt: no words in it"),
        ({"h": REAL}, "", "r.txt: no such file"),
        ({"r": REAL}, "", "h.txt: no such file"),
        ({"h": REAL, "r": b"a cat\n\x00\x01"}, "", "r.txt, line 2: a NUL byte at column 1"),
        ({"h": "café".encode("latin-1"), "r": REAL}, "", "h.txt, line 1: not UTF-8 (byte 0xe9 at column 4)"),
        ({"h": "one sentence\n", "r": REAL}, "", "h.txt: 1 sentence; self-BLEU compares sentences, so give at least 2"),
        ({"h": REAL, "r": REAL}, "--train t.txt", "t.txt: no such file"),
        ({"h": REAL, "r": REAL}, "--rule method2", "'method2' for argument '--rule'. Expected one of ('method1'"),
        ({"h": REAL, "r": REAL}, "--tokeniser nltk", "unknown option '--tokeniser'; did you mean '--tokenizer'?"),
    ],
)
def test_command_refuses(files, capsys, contents, options, expected):
    files(**contents)
    assert run("h.txt", "--references", "r.txt", *options.split()) == 2
    shown = capsys.readouterr()
    assert expected in shown.err and shown.err.startswith("leakgan: ") and shown.err.count("\n") == 1
    assert not shown.out


def test_command_needs_references(files, capsys):
    files(h=REAL)
    assert run("h.txt") == 2
    assert "--references" in capsys.readouterr().err
