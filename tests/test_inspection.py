"""A look inside a model, against loops; and the pictures of it, with whatever words there are."""

import functools
import warnings

import jax
import numpy as np
import pytest
import reference

from leakgan_jax import inspection, pictures
from leakgan_jax.rollout import log_probs

pytestmark = pytest.mark.usefixtures("fast_compile", "trap_nans")
assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)

interaction = jax.jit(inspection.interaction, static_argnums=0)
feature_traces = jax.jit(inspection.feature_traces, static_argnums=(0, 4))
pca = jax.jit(inspection.pca, static_argnums=1)


# --- Arrays ------------------------------------------------------------------------------------------------------


def slow_interaction(tiny, tokens):
    """`[T] -> [T, k]`: the chosen row of O_t times w_t, a token and a dimension at a time."""
    config, (manager, worker, d) = tiny.config, tiny.arrays
    goals = reference.goals(manager, reference.prefix_features(config, d, tokens))
    embeddings = reference.goal_embeddings(config, manager, worker, goals)
    inputs = [worker["embedding"][i] for i in [config.pad_id, *tokens[:-1]]]
    products = np.zeros(embeddings.shape)
    for t, (h, w) in enumerate(zip(reference.lstm(worker["lstm"], inputs), embeddings, strict=True)):
        for j in range(config.goal_dim):
            if tokens[t] != config.pad_id:
                row = h @ worker["output_kernel"][:, j, tokens[t]] + worker["output_bias"][j, tokens[t]]
                products[t, j] = row * w[j]
    return products


def test_interaction_is_the_chosen_row_of_the_output_times_the_goal_embedding(tiny):
    products = interaction(tiny.config, tiny.params, tiny.tokens)
    assert products.shape == (5, 9, 4)
    assert_close(products, [slow_interaction(tiny, tokens) for tokens in tiny.tokens])


def test_interaction_adds_up_to_the_chosen_logits(tiny):
    sums = np.asarray(interaction(tiny.config, tiny.params, tiny.tokens)).sum(axis=-1)
    scores = np.asarray(log_probs(tiny.config, tiny.params, tiny.tokens, 0.7))
    for tokens, chosen, scored in zip(tiny.tokens, sums, scores, strict=True):
        logits = reference.step_logits(tiny.config, *tiny.arrays, tokens)
        for t, token in enumerate(tokens):
            if token == tiny.config.pad_id:
                assert chosen[t] == 0
            else:
                assert_close(chosen[t], logits[t, token])
                assert_close(chosen[t] / 0.7 - np.logaddexp.reduce(logits[t] / 0.7), scored[t])


def test_pca_finds_the_directions_of_largest_variance():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 6)) @ np.diag([0.1, 3, 0.5, 2, 0.2, 0.3]) @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    points = (points + rng.normal(size=6)).astype(np.float32)
    plane = pca(points, 3)
    variance, directions = np.linalg.eigh(np.cov(points.T))  # ascending
    assert_close(plane.explained, variance[::-1][:3] / variance.sum())
    for axis, direction in zip(plane.axes, directions.T[::-1], strict=False):
        assert_close(abs(axis @ direction), 1)
        assert axis[np.argmax(np.abs(axis))] > 0
    seen = plane.project(points)
    assert_close(seen.mean(axis=0), np.zeros(3))
    assert_close(np.var(seen, axis=0, ddof=1), variance[::-1][:3])
    assert_close(pca(points[::-1], 3).axes, plane.axes)


@pytest.mark.parametrize("points", [np.ones((5, 4)), np.arange(5.0)[:, None], np.ones((1, 4))], ids=str)
def test_pca_of_points_in_fewer_directions_than_asked_for(points):
    plane = pca(points.astype(np.float32), 2)
    assert plane.axes.shape == (2, points.shape[1]) and plane.project(points).shape == (len(points), 2)
    expected = [1, 0] if np.ptp(points) else [0, 0]
    assert_close(plane.explained, expected)


def test_feature_traces_follow_prefixes_to_their_finished_sentence(tiny, sentences):
    config, d = tiny.config, tiny.arrays.discriminator
    generated = tiny.tokens
    real = sentences(config, config.end_id is not None, num=7, seed=4)
    view = feature_traces(config, tiny.params, real, generated, 3)
    finished = [np.array([reference.feature(config, d, row) for row in rows]) for rows in (real, generated)]
    everything = np.concatenate(finished)
    _, singular, axes = np.linalg.svd(everything - everything.mean(axis=0), full_matrices=False)
    axes = axes[:2] * np.sign([[axis[np.argmax(np.abs(axis))]] for axis in axes[:2]])

    def seen(features):
        return (features - everything.mean(axis=0)) @ axes.T

    assert_close(view.real, seen(finished[0]))
    assert_close(view.generated, seen(finished[1]))
    assert_close(view.traces, [seen(reference.prefix_features(config, d, row)) for row in generated[:3]])
    assert_close(view.traces[:, -1], view.generated[:3])
    assert_close(view.explained, (singular**2 / np.sum(singular**2))[:2])

    def distance(features):
        return np.mean([np.sum((f - finished[0].mean(axis=0)) ** 2) for f in features]) ** 0.5

    empty = reference.feature(config, d, np.full(9, config.pad_id))
    found = view.empty_distance, view.generated_distance, view.real_distance
    assert_close(found, [distance([empty]), distance(finished[1]), distance(finished[0])])


# --- Pictures ----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def few_fonts(monkeypatch):
    """Only the fonts that matplotlib brings, whatever else is installed."""
    from matplotlib import font_manager

    ours = [entry for entry in font_manager.fontManager.ttflist if "matplotlib" in entry.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", ours)


def view_of(num, length, rng):
    points, traces = rng.normal(size=(2, 30, 2)), rng.normal(size=(num, length + 1, 2))
    return inspection.FeatureTraces(*points, traces, rng.uniform(size=2), *rng.uniform(size=3))


def draw(tmp_path, words, sentences, dims=4):
    """Both pictures of `sentences` -> the text in them, ids by `words`, and the labels."""
    rng = np.random.default_rng(0)
    length = max(map(len, sentences))
    labels = pictures.Labels(words)
    pictures.draw_features(tmp_path / "features.png", view_of(len(sentences), length, rng), sentences, labels)
    products = rng.normal(size=(len(sentences), length, dims))
    pictures.draw_interaction(tmp_path / "interaction.png", products, sentences, labels)
    for name in ("features.png", "interaction.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    return labels


@pytest.mark.parametrize(
    "sentences, dims",
    [([[1]], 1), ([[2, 1], [2, 2, 2, 1], [1]], 16), ([[2] * 70] * 3, 40)],
    ids=["one token", "of different lengths", "many, long and wide"],
)
def test_pictures_of_any_size(sentences, dims, tmp_path, no_warnings):
    draw(tmp_path, {1: "<end>", 2: "man"}, sentences, dims)


def test_words_are_drawn_as_they_are_spelt(tmp_path, no_warnings):
    words = {0: "$", 1: r"$\frac{$", 2: "_", 3: "w" * 300, 4: "naïve"}
    labels = draw(tmp_path, words, [[0, 0, 1, 2, 3, 4]])
    assert labels(range(5)) == ["$", r"$\frac{$", "_", "w" * 13 + "…", "naïve"] and labels.lacking == 0
    assert labels.note == ""


def test_words_that_no_font_has_are_shown_by_their_id(tmp_path, no_warnings, few_fonts):
    labels = draw(tmp_path, {7: "床", 8: "moon", 9: "月光"}, [[7, 8, 9]])
    assert labels([7, 8, 9]) == ["#7", "moon", "#9"] and labels.lacking == 2
    assert "#id" in labels.note


def test_a_font_that_has_the_words_is_found(tmp_path, no_warnings, few_fonts):
    from matplotlib import font_manager, ft2font

    def glyphs(family):
        return set(ft2font.FT2Font(font_manager.findfont(family)).get_charmap())

    letters = sorted(glyphs("STIXGeneral") - glyphs("DejaVu Sans"))[-3:]  # they stand for a script of its own
    words = {i: chr(letter) for i, letter in enumerate(letters)}
    labels = draw(tmp_path, words, [[0, 1, 2]])
    assert labels(range(3)) == list(words.values()) and len(labels.fonts) > 1
