"""Temperature sweep: what models gain in quality and lose in diversity as they are sampled colder, beside real text.

A row is one set of hypotheses: `num` samples of a model at one temperature or, for "real", as many sentences of the
training text. Every row is scored in the same way against the same references, which no model was trained on:

    nll_oracle   of the hypotheses under the oracle of the synthetic task; None for text
    nll_gen      of the references under the model, at the row's temperature; nll_div of its own hypotheses
    lm           of the hypotheses under a language model trained on real text: quality
    reverse_lm   of the references under a language model trained on the hypotheses: diversity, and quality too
    bleu_n       of the hypotheses against all references; self_bleu_n of each against all others

NLLs are in nats per token; those of the references leave out words unknown to the vocabulary. Both language models
are alike in size, schedule, seed and number of training sentences, so for real text `lm` and `reverse_lm` are one
number: the model has seen the hypotheses, so both are of the references.
The model behind real text is known in the synthetic task: it is the oracle, which gives the real row an `nll_gen`.

Source: Caccia et al. 2020, Language GANs Falling Short, arXiv:1811.02549, sections 3 and 4.
"""

import dataclasses
import json
import pathlib
import typing
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leakgan_jax import data, metrics, oracle, run, training
from leakgan_jax.config import Config, ConfigError
from leakgan_jax.metrics import Rule
from leakgan_jax.models import language_model
from leakgan_jax.types import Array, Key, Params

# From where samples repeat one another to where they vary more than real text. 1 is the model itself, 1/1.5 that of
# LeakGAN's published numbers, 0.4 and 0.8 those at which Caccia et al. report the MLE model (their tables 2 and 4).
TEMPERATURES = (0.4, 0.5, 0.6, 1 / 1.5, 0.8, 0.9, 1.0, 1.1, 1.25)
MOST_SENTENCES = 10_000  # of a row by default, as in Caccia et al.
MAX_KEPT = 2**24  # bytes of the file of an unfinished sweep
_NLLS = ("nll_oracle", "nll_gen", "nll_div")
_NUMBERS = (
    "lm reverse_lm bleu_2 bleu_3 bleu_4 bleu_5 self_bleu_2 self_bleu_3 self_bleu_4 self_bleu_5 distinct hypotheses "
    "references nll_references unknown lm_sentences lm_epoch seed"
).split()

Row = dict[str, Any]


class References(NamedTuple):
    """Real sentences to compare with, for n-grams and for likelihoods."""

    sentences: Sequence[Sequence[Hashable]]  # of words, or of ids where there are no words
    rows: Array  # [m, T] int32: those that fit the length, at most `num_heldout` of them
    name: str  # what they are


def references(config: Config, task: run.Task) -> References:
    """The test split of the task if it has one, its held-out split otherwise."""
    if task.vocabulary is not None and task.test_sentences is not None:
        return word_references(config, task.vocabulary, task.test_sentences, "the test split")
    if task.vocabulary is not None:
        return word_references(config, task.vocabulary, task.heldout_sentences, "the held-out split")
    return row_references(config, np.asarray(task.heldout), "the held-out split")


def word_references(
    config: Config,
    vocabulary: data.Vocabulary,
    sentences: Sequence[Sequence[str]],
    name: str,
    on_doubt: Callable[[str], None] = lambda line: None,
) -> References:
    """References of any length, as words; doubts and errors as of `run.encode_heldout`."""
    rows = run.encode_heldout(config, vocabulary, sentences, name, on_doubt)
    return References(sentences, jnp.array(_spread(rows, config.num_heldout)), name)


def row_references(config: Config, rows: np.ndarray, name: str) -> References:
    """References as rows of ids, `[n, T]`, where there are no words."""
    return References(rows.tolist(), jnp.array(_spread(rows, config.num_heldout)), name)


def sweep(
    config: Config,
    task: run.Task,
    models: dict[str, Params],
    key: Key,
    *,
    num: int | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    compared: References | None = None,
    rule: Rule = "method1",
    sizes: language_model.Sizes | None = None,
    schedule: language_model.Schedule | None = None,
    done: int = 0,
) -> Iterator[Row]:
    """Scores real text, then every model at every temperature, a row at a time.

    All draws are of `key` and the same for every row, so that rows differ by model and temperature alone; each
    function compiles once for all rows.

    Args:
        models: parameters by name.
        num: hypotheses a row. Default: the training sentences, at most 10,000. There are fewer real ones where there
            are fewer training sentences, and no language model is trained on more than those.
        compared: default `references(config, task)`.
        sizes, schedule: of the language models.
        done: how many rows to leave out, from the first on: an earlier call with the same arguments gave them.
    Yields:
        Dicts with the metrics above, `model`, `temperature` (None for real), `distinct` (share of hypotheses),
        `hypotheses`, `references` (of BLEU), `nll_references` (of NLL_gen and reverse LM), `unknown` (share of their
        tokens left out), `lm_sentences` (that each language model was trained on), `lm_epoch` (that of the row's own
        which was best), `rule`.
    Raises:
        ConfigError for fewer than two hypotheses; DataError for fewer than two training sentences.
    """
    num = min(len(task.train), MOST_SENTENCES) if num is None else num
    if num < 2:
        raise ConfigError(f"num is {num}; it must be at least 2, as self-BLEU compares samples with one another")
    if len(task.train) < 2:
        raise data.DataError("there is 1 training sentence; a sweep needs at least 2, to train a language model on")
    config = dataclasses.replace(config, eval_samples=num)
    compared = compared or references(config, task)
    task = task._replace(heldout=compared.rows)
    sizes, schedule = sizes or language_model.Sizes(config.vocab_size), schedule or language_model.Schedule()
    sample_key, real_key, fit_key = jax.random.split(key, 3)
    chosen = np.asarray(jax.random.permutation(real_key, len(task.train))[:num])
    real = task.train[chosen]

    def fit(tokens) -> language_model.Fitted:
        return _fit(sizes, jnp.asarray(tokens[: len(real)]), jax.random.clone(fit_key), schedule)

    def row(model: str, tokens: np.ndarray, sentences, fitted, scores: Row) -> Row:
        # On the host while the device trains the language model.
        bleu = metrics.bleu(sentences, compared.sentences, rule=rule)
        own = metrics.self_bleu(sentences, rule=rule)
        reverse_lm = float(_nll(sizes, fitted.params, compared.rows, known))
        return {
            "model": model,
            "temperature": scores.get("temperature"),
            "nll_oracle": scores["nll_oracle"],
            "nll_gen": scores["nll_gen"],
            "nll_div": scores["nll_div"],
            "lm": reverse_lm if fitted is judge else float(_nll(sizes, judge.params, jnp.asarray(tokens))),
            "reverse_lm": reverse_lm,
            **{name: value for name, value in {**bleu, **own}.items() if "bleu_" in name},
            "distinct": len(np.unique(tokens, axis=0)) / len(tokens),
            "hypotheses": len(tokens),
            "references": len(compared.sentences),
            "nll_references": len(compared.rows),
            "unknown": unknown,
            "lm_sentences": len(real),
            "lm_epoch": int(fitted.epoch),
            "rule": rule,
        }

    known = training.known_words(config, compared.rows)
    unknown = training.unknown_share(config, compared.rows)
    judge = fit(real)
    scores = dict.fromkeys(("nll_oracle", "nll_gen", "nll_div"))
    if task.oracle is not None:
        own, held = (float(_oracle_nll(task.oracle, tokens)) for tokens in (real, compared.rows))
        scores = {"nll_oracle": own, "nll_gen": held, "nll_div": own}
    if not done:
        tokens = np.asarray(real)
        # Of text, its own words: rare ones are one and the same <unk> to the models.
        words = tokens.tolist() if task.vocabulary is None else [task.train_sentences[i] for i in chosen]
        yield row("real", tokens, words, judge, scores)
    points = [(model, temperature) for model in models for temperature in temperatures]
    for model, temperature in points[max(0, done - 1) :]:
        tokens, scores = run.evaluate(config, task, models[model], jax.random.clone(sample_key), temperature)
        yield row(model, tokens, _sentences(task.vocabulary, tokens), fit(tokens), scores)


def keep_rows(path: pathlib.Path, about: dict[str, Any], rows: list[Row]) -> None:
    """Writes the rows of an unfinished sweep, with all that they depend on, for `kept_rows`."""
    kept = {"about": about, "rows": rows}
    data.write(path, json.dumps({**kept, "sha256": data.seal(kept)}))


def kept_rows(
    path: pathlib.Path,
    about: dict[str, Any],
    models: Sequence[str],
    temperatures: Sequence[float] = TEMPERATURES,
    on_loss: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """The rows that `keep_rows` left, if it was of the same sweep, else none.

    `on_loss` is told, in a line, of a file that is damaged.
    Raises:
        DataError if there is something at `path` that cannot be read as a file, or over `MAX_KEPT` bytes.
    """
    if not path.exists() and not path.is_symlink():
        return []
    content = data.read_bytes(path, MAX_KEPT)
    points = [("real", None), *((model, temperature) for model in models for temperature in temperatures)]
    try:
        kept = data.parse_json(content.decode("utf-8"))
        if not isinstance(kept, dict) or kept.pop("sha256", None) != data.seal(kept):
            raise ValueError
        if kept.get("about") != json.loads(json.dumps(about)):
            return []
        rows = kept.get("rows")
        if not isinstance(rows, list) or not 1 <= len(rows) <= len(points):
            raise ValueError
        if not all(_is_row(row, rows[0], *point) for row, point in zip(rows, points)):
            raise ValueError
        return rows
    except ValueError:
        on_loss(f"{path} is damaged: the sweep begins anew")
        return []


def _is_row(row: Any, first: Any, model: str, temperature: float | None) -> bool:
    """Whether a row can be reported beside the first one, which is of real text."""
    if not isinstance(row, dict) or row.get("model") != model or row.get("temperature", model) != temperature:
        return False
    known = {"model", "temperature", "rule", *_NLLS, *_NUMBERS}
    if row.keys() != known or row["rule"] not in typing.get_args(metrics.Rule):
        return False
    given = [name for name in _NLLS if row[name] is not None]
    wanted = [name for name in _NLLS if name != "nll_oracle" or first[name] is not None]
    return (row is first or given == wanted) and all(data.is_number(row[name]) for name in (*given, *_NUMBERS))


def _fit_split(sizes: language_model.Sizes, tokens: Array, key: Key, schedule: language_model.Schedule):
    """Trains on nine tenths of `tokens` and stops by the last tenth, so that no reference is seen."""
    num_valid = max(1, len(tokens) // 10)
    return language_model.fit(sizes, tokens[:-num_valid], tokens[-num_valid:], key, schedule)


_fit = jax.jit(_fit_split, static_argnums=(0, 3))
_nll = jax.jit(language_model.nll, static_argnums=0)
_oracle_nll = jax.jit(oracle.nll)


def _sentences(vocabulary: data.Vocabulary | None, rows: np.ndarray) -> Sequence[Sequence[Hashable]]:
    """`[n, T]` ids as lists of words up to the end, or of the ids where there are no words."""
    if vocabulary is None:
        return rows.tolist()
    return [vocabulary.words_of(row) for row in rows]


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most `most` rows, from all parts, as a file may be in order."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]
