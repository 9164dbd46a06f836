"""The language model against NumPy loops, and its training against a source whose entropy is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from leakgan_jax.models import language_model
from leakgan_jax.models.language_model import Schedule, Sizes

pytestmark = pytest.mark.usefixtures("fast_compile", "trap_nans")
SIZES = Sizes(vocab_size=7, embedding=5, hidden=8)
MARKOV = Sizes(vocab_size=5, embedding=6, hidden=16)
log_probs = jax.jit(language_model.log_probs, static_argnums=0)
nll = jax.jit(language_model.nll, static_argnums=0)
fit = jax.jit(language_model.fit, static_argnums=(0, 4))


@functools.cache
def drawn_params(seed=1):
    """Parameters larger than at the start of training, where every distribution is nearly uniform."""
    shapes = jax.eval_shape(lambda: language_model.init(SIZES, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(scale=0.7, size=x.shape), x.dtype), shapes)


def padded_sentences(num, seed=0, lengths=(6, 1, 3, 9)):
    tokens = np.random.default_rng(seed).integers(0, 7, (num, 9), dtype=np.int32)
    for row, length in zip(tokens, np.resize(lengths, num), strict=True):
        row[length:] = SIZES.pad_id
    return tokens


def slow_log_probs(params, tokens, temperature=1.0):
    """One sentence, `[T]`: the LSTM reads PAD, then each token; 0 at PAD."""
    params = jax.tree.map(np.asarray, params)
    table = reference.double(params["embedding"])
    hidden = reference.lstm(params["lstm"], [table[SIZES.pad_id]] + [table[token] for token in tokens[:-1]])
    result = np.zeros(len(tokens))
    for t, h in enumerate(hidden):
        if tokens[t] != SIZES.pad_id:
            logits = h @ reference.double(params["output_kernel"]) + reference.double(params["output_bias"])
            result[t] = reference.log_softmax(logits / temperature)[tokens[t]]
    return result


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_match_loops(temperature):
    tokens = padded_sentences(5)
    fast = log_probs(SIZES, drawn_params(), jnp.asarray(tokens), temperature)
    slow = [slow_log_probs(drawn_params(), row, temperature) for row in tokens]
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-5)


def test_steps_read_a_sentence_as_the_bulk_form_does():
    tokens = np.random.default_rng(2).integers(0, 7, (3, 4), dtype=np.int32)
    state = language_model.initial_state(SIZES, 3)
    step = jax.jit(language_model.step, static_argnums=0)
    inputs = np.concatenate([np.full((3, 1), SIZES.pad_id, np.int32), tokens[:, :-1]], axis=1)
    for t in range(4):
        state = step(SIZES, drawn_params(), state, jnp.asarray(inputs[:, t]))
        scores = jax.nn.log_softmax(language_model.logits(SIZES, drawn_params(), state.hidden))
        bulk = log_probs(SIZES, drawn_params(), jnp.asarray(tokens), 1.0)[:, t]
        np.testing.assert_allclose(scores[np.arange(3), tokens[:, t]], bulk, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num", [1, 64, 70])
def test_nll_is_the_mean_over_real_tokens_whatever_the_chunks(num):
    tokens = padded_sentences(num)
    slow = -np.sum([slow_log_probs(drawn_params(), row) for row in tokens]) / np.sum(tokens != SIZES.pad_id)
    np.testing.assert_allclose(nll(SIZES, drawn_params(), jnp.asarray(tokens)), slow, rtol=1e-5)


def test_padding_counts_nowhere_in_training():
    tokens, schedule = padded_sentences(24), Schedule(epochs=3, batch_size=8, learning_rate=0.01)
    wider = np.pad(tokens, ((0, 0), (0, 4)), constant_values=SIZES.pad_id)
    narrow, wide = (
        fit(SIZES, jnp.asarray(rows[:16]), jnp.asarray(rows[16:]), jax.random.key(0), schedule)
        for rows in (tokens, wider)
    )
    assert narrow.nll == pytest.approx(float(wide.nll), rel=1e-5)
    for a, b in zip(jax.tree.leaves(narrow.params), jax.tree.leaves(wide.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


# --- training --------------------------------------------------------------------------------------------------------

TRANSITIONS = np.array(
    [[0.9, 0.1, 0, 0, 0], [0, 0, 0.5, 0.5, 0], [0, 0, 0, 0, 1], [0.3, 0.3, 0.4, 0, 0], [0.2, 0.2, 0.2, 0.2, 0.2]]
)


def markov_text(num, seed, length=10):
    """Sentences of a Markov chain whose first token is uniform; and their NLL under the chain itself, per token."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((num, length), np.int32)
    total = num * np.log(5)
    for row in tokens:
        row[0] = rng.integers(5)
        for t in range(1, length):
            row[t] = rng.choice(5, p=TRANSITIONS[row[t - 1]])
            total -= np.log(TRANSITIONS[row[t - 1], row[t]])
    return tokens, total / tokens.size


@pytest.fixture(scope="module")
def fitted(fast_compile):
    tokens, _ = markov_text(600, seed=0)
    schedule = Schedule(epochs=12, batch_size=16, learning_rate=0.02)
    return fit(MARKOV, jnp.asarray(tokens[:540]), jnp.asarray(tokens[540:]), jax.random.key(0), schedule)


def test_training_reaches_the_entropy_of_its_source(fitted):
    heldout, own = markov_text(400, seed=1)
    score = float(nll(MARKOV, fitted.params, jnp.asarray(heldout)))
    assert own - 0.01 < score < own + 0.03  # no model beats the source, but for chance
    assert own < np.log(5) - 0.5  # it is far from uniform


def test_text_of_the_source_scores_below_the_same_words_shuffled(fitted):
    heldout, own = markov_text(200, seed=2)
    shuffled = np.random.default_rng(0).permuted(heldout, axis=1)
    scores = [float(nll(MARKOV, fitted.params, jnp.asarray(rows))) for rows in (heldout, shuffled)]
    assert scores[0] + 0.5 < scores[1]


def test_training_stops_after_its_patience_and_keeps_the_best_epoch():
    tokens = np.random.default_rng(5).integers(0, 7, (40, 9), dtype=np.int32)  # noise, and steps far too large
    train, valid = jnp.asarray(tokens[:24]), jnp.asarray(tokens[24:])

    @jax.jit  # one compilation for every number of epochs
    def run(epochs, patience):
        schedule = Schedule(epochs, patience, batch_size=8, learning_rate=0.4)
        return language_model.fit(SIZES, train, valid, jax.random.key(2), schedule)

    best = [float(run(epochs, 100).nll) for epochs in range(1, 11)]  # so far
    improved = [epoch for epoch in range(1, 11) if epoch == 1 or best[epoch - 1] < best[epoch - 2]]
    assert improved[-1] < 10 and max(np.diff(improved)) > 1, "the case must get worse, and better after it got worse"
    for patience in (1, 2):
        expected = next((a for a, b in zip(improved, improved[1:]) if b - a > patience), improved[-1])
        result = run(10, patience)
        assert int(result.epoch) == expected
        assert float(result.nll) == pytest.approx(best[expected - 1], rel=1e-6)
        assert float(nll(SIZES, result.params, valid)) == pytest.approx(float(result.nll), rel=1e-6)


def test_training_is_its_key_s_alone():
    tokens, schedule = jnp.asarray(padded_sentences(24)), Schedule(epochs=2, batch_size=8)
    one, same, other = (fit(SIZES, tokens[:16], tokens[16:], jax.random.key(seed), schedule) for seed in (0, 0, 1))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(one.nll) != float(other.nll)
