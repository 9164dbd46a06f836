"""Corpus metrics: how like the references sentences are, how varied, and how much of them is copied.

NumPy on token lists. A sentence is a sequence of tokens, a token anything that can be a dictionary key: words or ids.
Every function returns its values with its settings and counts. N-grams are numbered exactly, order by order (an n-gram
is the number of its first n - 1 tokens and a token), so nothing rests on hashes. `N` tokens over all sentences take
O(N log N) time and O(N) memory, about 100 bytes a token; `novelty` takes both times the log of the longest sentence.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from leakgan_jax.config import ConfigError
from leakgan_jax.data import DataError

Sentences = Sequence[Sequence[Hashable]]
Rule = Literal["method1", "nltk-3.2", "none"]  # what a precision of 0 becomes; see `bleu`
Encoder = Callable[[Sentences], np.ndarray]  # n sentences -> [n, d] float


def bleu(hypotheses: Sentences, references: Sentences, max_order: int = 5, rule: Rule = "method1") -> dict[str, Any]:
    """BLEU-2 .. BLEU-`max_order`: the mean over hypotheses of NLTK's `sentence_bleu` against all references.

    BLEU-n = mean of min(1, exp(1 - r/c)) * (p_1 ... p_n)^(1/n), with c the tokens of the hypothesis, r the closest
    length of a reference (of two, the shorter) and p_k the share of its k-grams that are in a reference, each counted
    at most as often as in the one reference that has it most. As in NLTK, an order longer than the hypothesis has the
    precision 0/1, and a hypothesis that shares no word with any reference, or is empty, scores 0 under every rule.

    Source: Papineni et al. 2002; NLTK 3.10 `translate/bleu_score.py`, and 3.2.5 for the old rule.
    Args:
        rule: what an order without a match does to the product.
            "method1": its numerator becomes 0.1 (`SmoothingFunction().method1`).
            "none": BLEU is 0, as in NLTK from 3.3 on without smoothing.
            "nltk-3.2": it and all higher orders drop out and count as 1, as in NLTK up to 3.2.5 without smoothing.
    Returns:
        `bleu_2` .. `bleu_<max_order>`, each in [0, 1]; `hypotheses` and `references`, how many; `rule`.
    Raises:
        DataError without hypotheses or without references; ConfigError for another rule or an order below 2.
    """
    _check(max_order, rule)
    if not len(hypotheses) or not len(references):
        raise DataError(f"BLEU of {len(hypotheses)} hypotheses and {len(references)} references; give at least 1 each")
    text = _number_tokens(hypotheses, references)
    num = len(hypotheses)
    matches = []
    for grams in _orders(text, max_order):
        count = _count(grams)
        ours = count.sentence < num
        most = np.zeros(grams.distinct, np.int64)  # in any one reference
        np.maximum.at(most, count.gram[~ours], count.times[~ours])
        clipped = np.minimum(count.times[ours], most[count.gram[ours]])
        matches.append(np.bincount(count.sentence[ours], clipped, minlength=num))
    lengths = text.lengths[:num]
    scores = _mean_bleu(np.array(matches), lengths, _closest(lengths, text.lengths[num:]), rule)
    return {**_by_order("bleu", scores), "hypotheses": num, "references": len(references), "rule": rule}


def self_bleu(sentences: Sentences, max_order: int = 5, rule: Rule = "method1") -> dict[str, Any]:
    """Self-BLEU-2 .. self-BLEU-`max_order`: the mean BLEU of each sentence against all *others*. High means alike.

    A sentence that is there twice has its copy among the others, so it scores 1 (if as long as the highest order).
    Returns:
        `self_bleu_2` .. `self_bleu_<max_order>`; `sentences`, how many; `rule`, as in `bleu`.
    Raises:
        DataError for fewer than two sentences; ConfigError as in `bleu`.
    """
    _check(max_order, rule)
    if len(sentences) < 2:
        raise DataError(f"self-BLEU of {len(sentences)} sentence(s), which has no others to compare; give at least 2")
    text = _number_tokens(sentences)
    matches = []
    for grams in _orders(text, max_order):
        count = _count(grams)
        # Without sentence i, the most is the largest count, or the second largest where the largest is i's own.
        order = np.lexsort((count.times, count.gram))
        gram, times = count.gram[order], count.times[order]
        last = np.searchsorted(gram, np.arange(grams.distinct), side="right") - 1  # every gram is there
        shared = (last > 0) & (gram[last - 1] == gram[last])
        second = np.where(shared, times[last - 1], 0)
        most = times[last][count.gram]
        holder = count.sentence[order][last][count.gram]
        most = np.where(holder == count.sentence, second[count.gram], most)
        matches.append(np.bincount(count.sentence, np.minimum(count.times, most), minlength=len(sentences)))
    scores = _mean_bleu(np.array(matches), text.lengths, _closest_other(text.lengths), rule)
    return {**_by_order("self_bleu", scores), "sentences": len(sentences), "rule": rule}


def distinct_n(sentences: Sentences, max_order: int = 4) -> dict[str, Any]:
    """The share of n-grams that are distinct, and of sentences. Both fall as there are more: compare equal numbers.

    Source: Li et al. 2016, arXiv:1510.03055, over the whole set of sentences.
    Returns:
        `distinct_1` .. `distinct_<max_order>`, None where no sentence is so long; `distinct`, of the sentences;
        `sentences`, how many.
    Raises:
        DataError without sentences.
    """
    if not len(sentences):
        raise DataError("distinct-n of no sentences; give at least 1")
    shares = [
        grams.distinct / len(grams.gram) if len(grams.gram) else None
        for grams in _orders(_number_tokens(sentences), max_order)
    ]
    named = {f"distinct_{n}": share for n, share in enumerate(shares, start=1)}
    return {**named, "distinct": len(set(map(tuple, sentences))) / len(sentences), "sentences": len(sentences)}


def novelty(hypotheses: Sentences, train: Sentences, max_order: int = 5) -> dict[str, Any]:
    """How much of the hypotheses is copied from the training text. Nothing copied is 0 everywhere.

    Returns:
        `in_train`, the share of hypotheses that are, whole, a training sentence;
        `in_train_2` .. `in_train_<max_order>`, the share of their n-grams, repeats counted, that occur in it (None
        where no hypothesis is so long); `copied_mean` and `copied_max`, tokens of each hypothesis's longest span that
        lies within one training sentence, its mean and its maximum; `hypotheses` and `train`, how many sentences.
    Raises:
        DataError without hypotheses or training sentences.
    """
    if not len(hypotheses) or not len(train):
        raise DataError(f"novelty of {len(hypotheses)} hypotheses in {len(train)} sentences; give at least 1 each")
    text = _number_tokens(hypotheses, train)
    num = len(hypotheses)
    shares = {}
    for n, grams in enumerate(_orders(text, max_order), start=1):
        ours = grams.sentence < num
        known = np.zeros(grams.distinct, bool)
        known[grams.gram[~ours]] = True
        shares[f"in_train_{n}"] = float(known[grams.gram[ours]].mean()) if ours.any() else None
    del shares["in_train_1"]
    seen = set(map(tuple, train))
    spans = _longest_copies(text, num)
    return {
        "in_train": sum(tuple(sentence) in seen for sentence in hypotheses) / num,
        **shares,
        "copied_mean": float(spans.mean()),
        "copied_max": int(spans.max()),
        "hypotheses": num,
        "train": len(train),
    }


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance of the normal distributions fitted to two sets of points.

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), covariances with n - 1.

    Source: Heusel et al. 2017, arXiv:1706.08500, Eq. 6. It is biased upwards by few points, so `a` and `b` must have
    as many, more than `d`, and values compare only at the same number.
    Args:
        a, b: `[n, d]` float, n at least 2.
    Raises:
        DataError if their shapes differ or are not as above, or a value is not finite.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 2 or len(a) < 2:
        raise DataError(f"Fréchet distance of arrays {a.shape} and {b.shape}; give two [n, d] of equal n >= 2 and d")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError("Fréchet distance of values that are not finite; give finite ones")
    means = a.mean(0), b.mean(0)
    # With cov = R' R, the trace of (cov_a cov_b)^(1/2) is the sum of the singular values of R_a R_b'. This takes no
    # root of a covariance that is singular but for rounding.
    root_a, root_b = (
        np.asarray(np.linalg.qr((x - mean) / math.sqrt(len(x) - 1), "r")) for x, mean in zip((a, b), means)
    )
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = np.sum((means[0] - means[1]) ** 2) + np.sum(root_a**2) + np.sum(root_b**2) - 2 * cross
    return max(0.0, float(distance))


def fed(hypotheses: Sentences, references: Sentences, encoder: Encoder) -> dict[str, Any]:
    """Fréchet distance between the embeddings of as many hypotheses as references. 0 for the same distribution.

    Values compare only under one encoder and at one number of sentences.
    Returns:
        `fed`; `fed_sentences`, how many of each; `fed_dim`, the width of the embedding.
    Raises:
        DataError if the numbers of sentences differ, or are below 2.
    """
    if len(hypotheses) != len(references):
        raise DataError(f"FED of {len(hypotheses)} hypotheses and {len(references)} references; give equal numbers")
    ours, theirs = encoder(hypotheses), encoder(references)
    return {"fed": frechet_distance(ours, theirs), "fed_sentences": len(hypotheses), "fed_dim": ours.shape[1]}


def word_vectors(text: Sentences, dim: int = 64, window: int = 5) -> Encoder:
    """An encoder that needs no download: a sentence is the mean of its words' vectors, made from `text`.

    The vectors are the leading `dim` singular directions of the words' positive pointwise mutual information within
    `window` tokens, each word scaled to length 1. A word that is not in `text`, or alone there, is the zero vector.
    Deterministic. Sees words and their company, but no order.

    Source: Levy and Goldberg 2014, "Neural Word Embedding as Implicit Matrix Factorization", section 4.
    Returns:
        sentences -> `[n, d]` float64, `d` the smaller of `dim` and the number of distinct words.
    """
    from scipy import sparse

    tokens = _number_tokens(text)
    num_words = len(tokens.numbers)
    if not num_words:
        raise DataError("word vectors of a text without words; give at least 1")
    counts = sparse.csr_array((num_words, num_words))
    for step in range(1, window + 1):
        first = np.flatnonzero(tokens.left > step)
        pair = tokens.tokens[first], tokens.tokens[first + step]
        ones = np.ones(len(first))
        counts = (
            counts + sparse.csr_array((ones, pair), counts.shape) + sparse.csr_array((ones, pair[::-1]), counts.shape)
        )
    counts = counts.tocoo()
    totals = np.maximum(counts.sum(0), 1)
    information = np.log(counts.data * counts.sum() / (totals[counts.row] * totals[counts.col]))
    information = sparse.csr_array((np.maximum(information, 0), (counts.row, counts.col)), counts.shape)
    vectors = _leading_directions(information, min(dim, num_words))
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    vectors = np.concatenate([vectors, np.zeros((1, vectors.shape[1]))])  # the last is the unknown word's

    def encode(sentences: Sentences) -> np.ndarray:
        lengths = np.array([len(sentence) for sentence in sentences], np.int64)
        words = np.array([tokens.numbers.get(word, num_words) for sentence in sentences for word in sentence], np.int64)
        where = np.repeat(np.arange(len(lengths)), lengths), words
        used = sparse.csr_array((np.ones(len(words)), where), (len(lengths), num_words + 1))
        return used @ vectors / np.maximum(lengths, 1)[:, None]

    return encode


class _Text(NamedTuple):
    """Sentences one after the other, as numbers. `N` tokens."""

    tokens: np.ndarray  # [N] int64
    sentence: np.ndarray  # [N] which sentence a token is in
    left: np.ndarray  # [N] tokens from here to the end of its sentence, this one included
    lengths: np.ndarray  # [sentences] tokens in each
    numbers: dict[Hashable, int]  # of each token


class _Grams(NamedTuple):
    """All n-grams of one order, in the order of the text."""

    gram: np.ndarray  # [G] its number, 0 .. distinct - 1
    sentence: np.ndarray  # [G] where it stands
    distinct: int


class _Count(NamedTuple):
    """How often a sentence has an n-gram, for the pairs that there are."""

    sentence: np.ndarray  # [P]
    gram: np.ndarray  # [P]
    times: np.ndarray  # [P]


def _number_tokens(*groups: Sentences) -> _Text:
    numbers: dict[Hashable, int] = {}
    tokens = np.fromiter(
        (numbers.setdefault(token, len(numbers)) for group in groups for sentence in group for token in sentence),
        np.int64,
    )
    lengths = np.array([len(sentence) for group in groups for sentence in group], np.int64)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(tokens))
    return _Text(tokens, np.repeat(np.arange(len(lengths)), lengths), left, lengths, numbers)


def _orders(text: _Text, max_order: int) -> Iterator[_Grams]:
    """The n-grams of order 1, 2, .. `max_order`; one order's arrays at a time."""
    start, gram, distinct = np.arange(len(text.tokens)), text.tokens, len(text.numbers)
    for n in range(1, max_order + 1):
        if n > 1:
            fits = text.left[start] >= n
            start = start[fits]
            gram, distinct = _number_pairs(gram[fits], text.tokens[start + n - 1])
        yield _Grams(gram, text.sentence[start], distinct)


def _number_pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers each pair by its place among the distinct pairs in sorted order; and how many are distinct.

    Exact while the largest of `first` times that of `second` is below 2^63, as for any 3 billion tokens.
    """
    distinct, number = np.unique(first * (second.max(initial=0) + 1) + second, return_inverse=True)
    return number, len(distinct)


def _count(grams: _Grams) -> _Count:
    pairs, times = np.unique(grams.sentence * grams.distinct + grams.gram, return_counts=True)
    return _Count(*np.divmod(pairs, max(1, grams.distinct)), times)


def _mean_bleu(matches: np.ndarray, lengths: np.ndarray, closest: np.ndarray, rule: Rule) -> np.ndarray:
    """`[orders]` mean BLEU of order 1, 2, ... from `[orders, n]` clipped matches and `[n]` lengths."""
    orders = np.arange(1, len(matches) + 1)[:, None]
    total = np.maximum(1, lengths - orders + 1)
    missing: Any = {"method1": 0.1 / total, "none": 0.0, "nltk-3.2": 1.0}[rule]
    with np.errstate(divide="ignore"):
        logs = np.log(np.where(matches > 0, matches / total, missing))
    brevity = np.minimum(0, 1 - closest / np.maximum(lengths, 1))
    scores = np.exp(brevity + np.cumsum(logs, axis=0) / orders)
    return np.where(matches[0] > 0, scores, 0).mean(axis=1)


def _closest(lengths: np.ndarray, references: np.ndarray) -> np.ndarray:
    """For each of `lengths` the closest of `references`; the shorter of two as close."""
    references = np.unique(references)
    above = np.searchsorted(references, lengths).clip(max=len(references) - 1)
    below = (above - 1).clip(min=0)
    nearer = np.abs(references[below] - lengths) <= np.abs(references[above] - lengths)
    return np.where(nearer, references[below], references[above])


def _closest_other(lengths: np.ndarray) -> np.ndarray:
    """For each of `lengths` the closest of the others."""
    distinct, place, times = np.unique(lengths, return_inverse=True, return_counts=True)
    closest = distinct.copy()
    for i in np.flatnonzero(times == 1):
        neighbours = np.delete(distinct[max(0, i - 1) : i + 2], min(int(i), 1))
        closest[i] = _closest(distinct[i], neighbours)
    return closest[place]


def _longest_copies(text: _Text, num: int) -> np.ndarray:
    """`[num]` tokens in the longest span of each of the first `num` sentences that is within one of the others.

    Sorts all places by the text that follows them, by doubling (Manber and Myers 1990): the longest match of a place
    is then with the next place above or below that is in the other sentences. O(N log N log T) time and O(N log T)
    memory, with T the longest sentence that both sides could have.
    """
    longest = min(text.lengths[:num].max(), text.lengths[num:].max())
    # ranks[k][i] orders the spans of 2^k tokens from place i; what is past the end of a sentence is 0, and the last
    # place is past the end of the text.
    ranks = [np.append(text.tokens + 1, 0)]
    places = np.arange(len(text.tokens))
    for k in range(int(longest).bit_length()):
        rank, _ = _number_pairs(ranks[k][:-1], ranks[k][_after(places, 2**k, text)])
        ranks.append(np.append(rank + 1, 0))

    order = np.argsort(ranks[-1][:-1], kind="stable")
    ours = text.sentence[order] < num
    above = np.maximum.accumulate(np.where(ours, -1, places))
    below = np.minimum.accumulate(np.where(ours, len(order), places)[::-1])[::-1]
    spans = np.zeros(num, np.int64)
    for neighbour in (above, below):
        has = ours & (neighbour >= 0) & (neighbour < len(order))
        place, other = order[has], order[neighbour[has]]
        same = np.zeros(len(place), np.int64)
        for k in reversed(range(len(ranks))):
            equal = ranks[k][_after(place, same, text)] == ranks[k][_after(other, same, text)]
            same += np.where(equal, 2**k, 0)
        np.maximum.at(spans, text.sentence[place], np.minimum(same, text.left[place]))
    return spans


def _after(place: np.ndarray, step: np.ndarray | int, text: _Text) -> np.ndarray:
    """The places `step` tokens on; the place past the text where the sentence ends before."""
    return np.where(text.left[place] > step, place + step, len(text.tokens))


def _leading_directions(matrix: Any, dim: int) -> np.ndarray:
    """`[n, dim]`, about U S^(1/2) of a symmetric sparse matrix's `dim` largest singular values.

    Subspace iteration from a fixed start (Halko et al. 2011, arXiv:0909.4061, algorithm 4.4); exact where n is at most
    2 `dim`, and unlike a Krylov method it takes any matrix, the zero matrix too.
    """
    basis = np.random.default_rng(0).normal(size=(matrix.shape[0], min(2 * dim, matrix.shape[0])))
    for _ in range(16):
        basis = np.linalg.qr(matrix @ basis)[0]
    values, inner = np.linalg.eigh(basis.T @ (matrix @ basis))
    order = np.argsort(-np.abs(values), kind="stable")[:dim]
    return basis @ inner[:, order] * np.sqrt(np.abs(values[order]))


def _by_order(name: str, scores: np.ndarray) -> dict[str, float]:
    """`name`_2, `name`_3, ... of the scores of order 1, 2, ..."""
    return {f"{name}_{n}": float(score) for n, score in enumerate(scores, start=1) if n > 1}


def _check(max_order: int, rule: str) -> None:
    if rule not in get_args(Rule):
        raise ConfigError(f"rule is {rule!r}; it must be one of {', '.join(get_args(Rule))}")
    if max_order < 2:
        raise ConfigError(f"max_order is {max_order}; it must be at least 2")
