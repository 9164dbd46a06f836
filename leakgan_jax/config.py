"""Settings of a run: one frozen dataclass, the presets, and their JSON form."""

import dataclasses
import difflib
import re
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

ModelName = Literal["leakgan", "mle", "seqgan", "rankgan"]
Rescaling = Literal["rank", "off", "shuffled"]
Advantage = Literal["none", "centred", "standardised"]
Reading = Literal["paper", "released"]
Tokenizer = Literal["whitespace", "nltk", "characters"]
Precision = Literal["float32", "tensorfloat32", "bfloat16"]


class ConfigError(ValueError):
    """A setting that cannot work; the message names the field, its value and what would be right."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a run, each checked when the config is built."""

    model: ModelName = "leakgan"
    """What is trained: LeakGAN, or one of the baselines, whose generator is a plain LSTM of the Worker's widths."""
    reading: Reading = "paper"
    """What LeakGAN's text leaves open: the paper's equations, or what the released code computes."""

    # --- Task ---------------------------------------------------------------------------------------
    vocab_size: int = 5000
    """Tokens the generator can emit; padding is not one of them. A corpus sets this itself."""
    length: int = 20
    """Tokens a sentence, the end-of-sentence token included; a multiple of the goal horizon."""
    num_train: int = 10_000
    """Sentences in the fixed training set of maximum likelihood (synthetic task)."""
    num_heldout: int = 2_000
    """Real sentences held out for NLL_gen (for a corpus, at most a tenth of it)."""
    oracle_hidden: int = 32
    """Embedding and hidden width of the random oracle LSTM (synthetic task)."""
    oracle_seed: int = 0
    """Seed of the random oracle, apart from the seed of the run (synthetic task)."""
    oracle_file: str = ""
    """Published oracle parameters to use instead of a random oracle: .npz or the released .pkl."""
    corpus: str = ""
    """Text to train on instead of an oracle: UTF-8, one sentence a line. Takes the place of a preset's dataset."""
    dataset: str = ""
    """Dataset to train on instead: coco_image_captions, emnlp2017_news, chinese_poems or text_lines."""
    tokenizer: Tokenizer = "whitespace"
    """What splits a line of text into words: spaces, NLTK's word tokenizer, or each character for itself."""
    min_count: int = 1
    """Words seen less often than this in the training split become <unk>."""
    lowercase: bool = False
    """Lower-case the text."""

    # --- Model --------------------------------------------------------------------------------------
    filter_windows: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20)
    """Widths, in tokens, of the discriminator's convolutions; none wider than a sentence."""
    filter_counts: tuple[int, ...] = (100, 200, 200, 200, 200, 100, 100, 100, 100, 100, 160, 160)
    """Filters of each width; their sum is the width of the leaked feature."""
    discriminator_embedding: int = 64
    """Width of the discriminator's token embedding."""
    worker_embedding: int = 32
    """Width of the token embedding of the Worker, or of a baseline's generator."""
    worker_hidden: int = 32
    """Units of the LSTM of the Worker, or of a baseline's generator."""
    manager_hidden: int = 32
    """Units of the Manager's LSTM."""
    goal_dim: int = 16
    """Width of the goal embedding, k."""
    goal_horizon: int = 4
    """Tokens a goal looks ahead, and so from one value to the next, C; 1 in a baseline, where every token has one."""

    # --- Training signal ----------------------------------------------------------------------------
    completions: int = 4
    """Sampled completions behind each value, N."""
    rescaling: Rescaling = "rank"
    """What becomes of values: squashed ranks (Eq. 11), nothing, or ranks of others, as in the released code."""
    rescale_slope: float = 12.0
    """Slope of the bootstrapped rescaled activation, delta in Eq. 11."""
    credit: Literal["token", "sentence", "batch"] = "token"
    """Whose reward a token of the Worker or of a baseline learns from: its own, or the mean over its sentence or, as in
    the released code of LeakGAN, over the batch."""
    advantage: Advantage = "none"
    """What rewards of tokens lose: nothing, as in the papers; the batch's mean at each position; its spread as well."""
    goals: Literal["sliding", "held"] = "sliding"
    """Whether the sum of goals behind a token moves on with every token or is held for a block (paper reading)."""
    references: int = 16
    """Real sentences that a sentence is compared with (rankgan)."""
    rank_gamma: float = 16.0
    """What cosines are multiplied by before they are ranked by softmax (rankgan)."""
    dropout_keep: float = 0.75
    """Share of the leaked feature kept while the discriminator trains."""
    discriminator_l2: float = 0.2
    """Weight of half the squared norm of the discriminator's output layer."""
    train_temperature: float = 1.0
    """alpha of the sentences that the policy gradient sees."""
    negative_temperature: float = 1.0
    """alpha of the discriminator's negatives."""
    eval_temperature: float = 1.0
    """alpha of the samples and likelihoods scored during the run; the final table adds 1 and 1/1.5."""

    # --- Optimisation -------------------------------------------------------------------------------
    batch_size: int = 64
    """Sentences an update."""
    generator_lr: float = 1e-3
    """Adam step size of Manager and Worker, or of a baseline's generator, in maximum likelihood."""
    adversarial_lr: float = 1e-3
    """The same in adversarial training."""
    discriminator_lr: float = 5e-5
    """Adam step size of the discriminator, or of the ranker."""
    clip_norm: float = 5.0
    """Global norm that the gradients of Manager and of Worker, or of a baseline's generator, are clipped to."""
    precision: Precision = "float32"
    """What accelerators round the factors of training's matrix products to; a CPU never rounds, nor does a score."""

    # --- Schedule -----------------------------------------------------------------------------------
    pretrain_rounds: int = 10
    """Pre-training rounds: discriminator draws, then MLE epochs; a baseline has all its epochs before all its draws."""
    pretrain_draws: int = 5
    """Discriminator draws a pre-training round; each draws new negatives and new positives."""
    mle_epochs: int = 8
    """Epochs of maximum likelihood a pre-training round."""
    draw_size: int = 10_000
    """Negatives, and as many positives, a discriminator draw."""
    discriminator_epochs: int = 3
    """Discriminator epochs over each draw."""
    adversarial_iterations: int = 100
    """Adversarial iterations: generator steps, then discriminator draws."""
    generator_steps: int = 1
    """Policy-gradient steps an adversarial iteration."""
    adversarial_draws: int = 5
    """Discriminator draws an adversarial iteration."""
    interleave_every: int = 15
    """Adversarial iterations between two epochs of maximum likelihood; 0 for none."""
    eval_every: int = 5
    """MLE epochs of a round, and adversarial iterations, between two evaluations."""
    eval_samples: int = 9_984
    """Sentences sampled at each evaluation."""
    sample_batch: int = 500
    """Sentences drawn at a time where thousands are drawn; bounds memory."""

    def __post_init__(self):
        hints = typing.get_type_hints(Config)
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), hints[field.name])
        for name in _AT_LEAST_ONE:
            _require(1 <= getattr(self, name) <= _MAX_SIZE, name, self, f"a whole number from 1 to {_MAX_SIZE:,}")
        for name in _AT_LEAST_ZERO:
            _require(0 <= getattr(self, name) <= _MAX_SIZE, name, self, f"a whole number from 0 to {_MAX_SIZE:,}")
        for name in _POSITIVE:
            _require(0 < getattr(self, name) < float("inf"), name, self, "a positive, finite number")
        for name in _TEMPERATURES:
            _require(1e-3 <= getattr(self, name) <= 1e3, name, self, "a temperature from 0.001 to 1000")
        if self.model != "leakgan":
            _require(self.reading == "paper", "reading", self, "'paper': leakgan alone has two")
            _require(self.goal_horizon == 1, "goal_horizon", self, f"1: {self.model} has no goals")
            _require(self.goals == "sliding", "goals", self, f"'sliding': {self.model} has none")
        if self.reading == "released":
            _require(self.goals == "sliding", "goals", self, "'sliding': the released reading holds them as it is")
        for name in ("pretrain_draws", "adversarial_iterations") if self.model == "mle" else ():
            _require(getattr(self, name) == 0, name, self, "0: mle has no adversary")
        credit = "'token' or 'sentence': less its own mean, nothing is left of a reward that all share"
        _require(self.credit != "batch" or self.advantage == "none", "credit", self, credit)
        _require(0 < self.dropout_keep <= 1, "dropout_keep", self, "a share above 0 and at most 1")
        _require(0 <= self.discriminator_l2 < float("inf"), "discriminator_l2", self, "a finite number, 0 or more")
        _require(self.vocab_size >= 2, "vocab_size", self, "at least 2")
        _require(self.length <= 10_000, "length", self, "at most 10,000 tokens")
        _require(
            self.length % self.goal_horizon == 0,
            "length",
            self,
            f"a multiple of goal_horizon ({self.goal_horizon})",
        )
        _require(
            len(self.filter_windows) == len(self.filter_counts) > 0,
            "filter_counts",
            self,
            f"one count for each of the {len(self.filter_windows)} filter_windows",
        )
        _require(
            len(set(self.filter_windows)) == len(self.filter_windows)
            and all(1 <= w <= self.length for w in self.filter_windows),
            "filter_windows",
            self,
            f"different widths from 1 to the length, {self.length}",
        )
        _require(len(self.filter_windows) <= _MAX_WINDOWS, "filter_windows", self, f"at most {_MAX_WINDOWS} widths")
        _require(self.pretrain_rounds <= _MAX_UNITS, "pretrain_rounds", self, f"at most {_MAX_UNITS:,}")
        _require(all(1 <= n <= 100_000 for n in self.filter_counts), "filter_counts", self, "counts from 1 to 100,000")
        _require(
            2 * self.draw_size >= self.batch_size or not (self.pretrain_draws or self.adversarial_draws),
            "draw_size",
            self,
            f"at least half of batch_size ({self.batch_size})",
        )
        _require(
            self.is_text or self.num_train >= self.batch_size,
            "num_train",
            self,
            f"at least batch_size ({self.batch_size})",
        )
        units = self.pretrain_rounds * (self.pretrain_draws + self.mle_epochs)
        units += self.adversarial_iterations * (self.adversarial_draws + 2)
        longest = "adversarial_iterations" if self.adversarial_iterations > self.pretrain_rounds else "pretrain_rounds"
        _require(units <= _MAX_UNITS, longest, self, f"smaller: a run has at most {_MAX_UNITS:,} units, not {units:,}")
        for name, what, size in _large_arrays(self):
            _require(size <= _MAX_NUMBERS, name, self, f"smaller: {what} would hold {size:,} numbers")
        _require(not (self.corpus and self.dataset), "dataset", self, "empty when there is a corpus")
        _require(not (self.is_text and self.oracle_file), "oracle_file", self, "empty when there is text to train on")

    @property
    def title(self) -> str:
        """The model's name as the papers spell it."""
        return TITLES[self.model] + "-rescale" * (self.model == "seqgan" and self.rescaling == "rank")

    @property
    def matmul_precision(self) -> str:
        """`precision` as `jax.default_matmul_precision` takes it, whose own "bfloat16" is no promise."""
        return "BF16_BF16_F32" if self.precision == "bfloat16" else self.precision

    @property
    def is_text(self) -> bool:
        """Whether the task is real text, a corpus or a dataset, rather than a synthetic oracle."""
        return bool(self.corpus or self.dataset)

    @property
    def feature_dim(self) -> int:
        """Width of the leaked feature, F."""
        return sum(self.filter_counts)

    @property
    def num_blocks(self) -> int:
        """Goal horizons a sentence, T / C."""
        return self.length // self.goal_horizon

    @property
    def pad_id(self) -> int:
        """The padding token: one past the vocabulary. To the Worker it is the start token."""
        return self.vocab_size

    @property
    def unk_id(self) -> int | None:
        """The word of text that the vocabulary does not know."""
        return 0 if self.is_text else None

    @property
    def end_id(self) -> int | None:
        """The end-of-sentence token of text; sentences of the synthetic task have no end but their length."""
        return 1 if self.is_text else None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Config":
        """The inverse of `to_json`, also after a trip through JSON.

        Raises `ConfigError`, and nothing else whatever `values` holds, on unknown fields and values that cannot work.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"settings are {shown(values)}; they must be a JSON object of settings by name")
        known = {field.name for field in dataclasses.fields(Config)}
        for name in values:
            if name not in known:
                close = nearest(name, known) if isinstance(name, str) and len(name) < 100 else ""
                raise ConfigError(f"unknown setting {shown(name)}{close}")
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Config(**settings)


_MAX_SIZE = 10**9
_MAX_NUMBERS = 2 * 10**9  # 8 GB of float32 in one array
_MAX_UNITS = 10**6  # of a schedule, which is a list; an interval of 20 s each would take most of a year
_MAX_WINDOWS = 64  # each is a convolution to compile; presets have at most 14
_MAX_TEXT = 4096  # characters of a setting that is text: the longest path there is
_AT_LEAST_ONE = (
    "vocab_size length num_heldout oracle_hidden min_count discriminator_embedding worker_embedding worker_hidden "
    "manager_hidden goal_dim goal_horizon completions references batch_size draw_size discriminator_epochs "
    "generator_steps eval_every eval_samples sample_batch num_train"
).split()
_AT_LEAST_ZERO = (
    "oracle_seed pretrain_rounds pretrain_draws mle_epochs adversarial_iterations adversarial_draws interleave_every"
).split()
_POSITIVE = ("rescale_slope rank_gamma generator_lr adversarial_lr discriminator_lr clip_norm").split()
_TEMPERATURES = "train_temperature negative_temperature eval_temperature".split()


def preset(name: str = "quickstart", reading: str = "paper", model: str = "leakgan", **overrides: Any) -> Config:
    """A preset of a model, under one of the two readings, with `overrides` on top. `Config()` itself is `synthetic20`.

    A `corpus` among the overrides takes the place of the preset's dataset.

    Source: Guo et al. 2018, arXiv:1709.08624, and the released code, github.com/CR-Gjx/LeakGAN; of the baselines see
    `_MODELS`.
    Raises:
        ConfigError if the preset, the reading, the model or an override is unknown or cannot work.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}{nearest(name, PRESETS)}; there are {', '.join(PRESETS)}")
    if reading not in _READINGS:
        raise ConfigError(f"reading is {reading!r}; it must be 'paper' or 'released'")
    if model not in _MODELS:
        raise ConfigError(f"model is {model!r}{nearest(model, _MODELS)}; it must be one of {', '.join(_MODELS)}")
    values = {**PRESETS[name], **_READINGS[reading], **_PRESET_READINGS.get((name, reading), {})}
    values |= {**_MODELS[model], **_PRESET_MODELS.get((name, model), {})}
    if overrides.get("corpus"):
        values["dataset"] = ""
    values |= overrides
    return Config.from_json({"model": model, "reading": reading, **values})


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def printable(text: str) -> str:
    """One line with what a terminal would act on (control characters, bidirectional marks) or cannot encode escaped."""
    return _UNPRINTABLE.sub(lambda bad: bad.group().encode("unicode_escape").decode(), text)


def is_printable(text: str) -> bool:
    """Whether `printable` leaves a text as it is."""
    return not _UNPRINTABLE.search(text)


def shown(value: Any) -> str:
    """`repr` for a message: one printable line of bounded length, whatever the value."""
    return printable(_CLIPPED.repr(value))


class _Clipped(reprlib.Repr):
    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple = 3, 4, 20, 20
        self.maxstring = self.maxother = 100

    def repr_int(self, x: int, level: int) -> str:  # Python refuses to write out integers of thousands of digits
        return repr(x) if abs(x) < 10**40 else f"an integer of {x.bit_length():,} bits"


_CLIPPED = _Clipped()
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def differences(saved: Config, given: Config) -> list[str]:
    """`field (saved, given)` for each field in which two configs differ."""
    saved_values, given_values = saved.to_json(), given.to_json()
    changed = [name for name, value in saved_values.items() if value != given_values[name]]
    return [f"{name} ({shown(saved_values[name])}, now {shown(given_values[name])})" for name in changed]


_READINGS: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": {
        "rescale_slope": 16.0,
        "dropout_keep": 1.0,
        "discriminator_l2": 0.0,
        "interleave_every": 0,
        "negative_temperature": 1 / 1.5,  # the released code draws D's negatives as it draws evaluation samples
        "eval_temperature": 1 / 1.5,
    },
}

# Five seeds of a model in two or three minutes on two CPU cores: the experiments' small scale.
_LAPTOP: dict[str, Any] = {
    "num_train": 3_000,
    "num_heldout": 1_000,
    "filter_counts": (20, 30, 30, 20, 15, 15, 15, 15),
    "discriminator_embedding": 32,
    "discriminator_l2": 1e-3,
    "goal_dim": 4,
    "generator_lr": 1e-2,
    "adversarial_lr": 1e-3,
    "discriminator_lr": 1e-3,
    "pretrain_rounds": 6,
    "pretrain_draws": 4,
    "mle_epochs": 1,
    "draw_size": 128,
    "discriminator_epochs": 5,
    "adversarial_iterations": 24,
    "generator_steps": 3,
    "adversarial_draws": 1,
    "interleave_every": 8,
    "eval_samples": 500,
}
_LAPTOP_TASKS: dict[str, dict[str, Any]] = {
    "synthetic20": {"vocab_size": 300, "filter_windows": (1, 2, 3, 4, 5, 8, 12, 20)},
    "synthetic40": {"vocab_size": 300, "length": 40, "filter_windows": (1, 2, 3, 4, 5, 8, 16, 40)},
    "coco": {
        "dataset": "coco_image_captions",
        "tokenizer": "nltk",
        "min_count": 5,
        "length": 20,
        "filter_windows": (1, 2, 3, 4, 5, 8, 12, 20),
    },
    "news": {
        "dataset": "emnlp2017_news",
        "min_count": 20,
        "length": 32,
        "filter_windows": (1, 2, 3, 4, 5, 8, 16, 32),
    },
    "poems": {
        "dataset": "chinese_poems",
        "tokenizer": "characters",
        "min_count": 20,
        "length": 28,
        "filter_windows": (1, 2, 3, 4, 5, 8, 12, 28),
    },
}

PRESETS: dict[str, dict[str, Any]] = {
    "quickstart": {
        "vocab_size": 1000,
        "length": 16,
        "num_train": 4_000,
        "num_heldout": 1_000,
        "filter_windows": (1, 2, 3, 4, 5, 8, 12, 16),
        "filter_counts": (30, 40, 40, 30, 20, 20, 20, 20),
        "discriminator_embedding": 32,
        "discriminator_l2": 1e-3,
        "generator_lr": 3e-3,
        "adversarial_lr": 5e-4,
        "discriminator_lr": 1e-3,
        # About where NLL_gen is lowest; and a discriminator that does not see through MLE samples by then would lead
        # the generator away from the oracle.
        "pretrain_rounds": 5,
        "pretrain_draws": 6,
        "mle_epochs": 1,
        "draw_size": 500,
        "discriminator_epochs": 5,
        "adversarial_iterations": 25,
        "generator_steps": 3,
        "adversarial_draws": 1,
        "eval_samples": 1_000,
    },
    **{f"laptop-{name}": {**_LAPTOP, **task} for name, task in _LAPTOP_TASKS.items()},
    "synthetic20": {},
    "synthetic40": {
        "length": 40,
        "filter_windows": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 20, 30, 40),
        "filter_counts": (100, 200, 200, 200, 200, 100, 100, 100, 100, 100, 160, 160, 160, 160),
        "oracle_hidden": 64,
        "generator_lr": 5e-4,
        "adversarial_lr": 5e-4,
    },
    "coco": {
        "dataset": "coco_image_captions",
        "tokenizer": "nltk",
        # As the released code; 3 of Texygen's 10,000 captions are longer (the longest has 37 words), and a length of
        # 40 would make every sentence cost a quarter more. Test captions are references, none is left out.
        "length": 32,
        "filter_windows": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 32),
        "filter_counts": (100, 200, 200, 200, 200, 100, 100, 100, 100, 100, 160, 160, 160),
        "discriminator_embedding": 256,
        "worker_embedding": 128,
        "worker_hidden": 128,
        "manager_hidden": 128,
        "pretrain_rounds": 16,
        "mle_epochs": 12,
    },
    "news": {
        "dataset": "emnlp2017_news",  # tokenised at the source
        "length": 52,  # RelGAN's 51 words and the end
        "filter_windows": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 20, 30, 40),
        "filter_counts": (100, 200, 200, 200, 200, 100, 100, 100, 100, 100, 160, 160, 160, 160),
        "discriminator_embedding": 256,
        "worker_embedding": 128,
        "worker_hidden": 128,
        "manager_hidden": 128,
        "pretrain_rounds": 16,
        "mle_epochs": 12,
    },
    "poems": {
        "dataset": "chinese_poems",
        "tokenizer": "characters",
        "length": 28,  # 20 characters and 4 punctuation marks, the end, and up to a multiple of the goal horizon
    },
}
# What a preset changes under one reading only.
_PRESET_READINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("synthetic20", "released"): {"generator_lr": 1.5e-3, "adversarial_lr": 1.5e-3},
    ("synthetic40", "released"): {"worker_embedding": 64, "worker_hidden": 64, "manager_hidden": 64},
    ("coco", "released"): {"interleave_every": 15, "train_temperature": 1 / 0.8},
    ("news", "released"): {"interleave_every": 15, "train_temperature": 1 / 0.8},  # none was released: as coco
}
# What the baselines change in every preset. Source: the released code of SeqGAN, github.com/LantaoYu/SeqGAN: 120 epochs
# of maximum likelihood, 50 draws for the discriminator, 16 completions, and neither goals nor interleaved epochs. It
# runs 800 adversarial iterations; LeakGAN's Figure 2 has 125 to 199 of them. The authors of RankGAN run 200, with
# batches of 32 and one epoch a draw in adversarial training: github.com/cookielee77/RankGan-NIPS2017.
_BASELINE: dict[str, Any] = {
    "adversarial_iterations": 200,
    "goal_horizon": 1,
    "rescaling": "off",
    "completions": 16,
    "generator_lr": 1e-2,
    "adversarial_lr": 1e-2,
    "discriminator_lr": 1e-4,
    "pretrain_rounds": 10,
    "pretrain_draws": 5,
    "mle_epochs": 12,
    "interleave_every": 0,
}
_MODELS: dict[str, dict[str, Any]] = {
    "leakgan": {},
    "mle": {**_BASELINE, "pretrain_draws": 0, "adversarial_iterations": 0, "eval_every": 1},  # its best is what counts
    "seqgan": _BASELINE,
    "rankgan": _BASELINE,
}
_QUICKSTART_MLE = {"pretrain_rounds": 7, "mle_epochs": 1}  # NLL_gen is lowest after seven
_SMALL_GAN = {"completions": 4, "pretrain_draws": 4, "adversarial_lr": 1e-3, "discriminator_lr": 1e-3}
_QUICKSTART_GAN = {**_QUICKSTART_MLE, **_SMALL_GAN, "adversarial_iterations": 25}
# Step sizes as `experiments/tuning.py` found them.
_LAPTOP_MLE = {"pretrain_rounds": 12, "mle_epochs": 1}
_LAPTOP_GAN = {**_LAPTOP_MLE, **_SMALL_GAN, "adversarial_iterations": 24}
_PRESET_MODELS: dict[tuple[str, str], dict[str, Any]] = {
    ("quickstart", "mle"): _QUICKSTART_MLE,
    **{("quickstart", model): _QUICKSTART_GAN for model in ("seqgan", "rankgan")},
    **{(f"laptop-{task}", "mle"): _LAPTOP_MLE for task in _LAPTOP_TASKS},
    **{(f"laptop-{task}", "seqgan"): _LAPTOP_GAN for task in _LAPTOP_TASKS},
    **{(f"laptop-{task}", "rankgan"): {**_LAPTOP_GAN, "adversarial_lr": 3e-4} for task in _LAPTOP_TASKS},
}
TITLES = {
    "leakgan": "LeakGAN",
    "mle": "MLE",
    "seqgan": "SeqGAN",
    "rankgan": "RankGAN",
}
PRESET_SUMMARIES = {
    "quickstart": "a small synthetic oracle, every phase, two to three minutes on two CPU cores",
    **{f"laptop-{name}": f"{name} as the experiments have it at laptop scale" for name in _LAPTOP_TASKS},
    "synthetic20": "the paper's synthetic task, sentences of 20 tokens (Table 1); wants an accelerator",
    "synthetic40": "the same with 40 tokens and a 64-unit oracle; wants an accelerator",
    "coco": "image captions, or any text with --corpus FILE; wants an accelerator",
    "news": "news sentences of up to 51 words; wants an accelerator",
    "poems": "Chinese quatrains, character by character; wants an accelerator",
}


def _large_arrays(c: Config) -> list[tuple[str, str, int]]:
    """Arrays that grow with products of settings: the setting to blame, what it is, its size in numbers."""
    f, rows = c.feature_dim, c.batch_size * (1 + c.completions * (c.num_blocks - 1))
    convolved = rows if c.model == "leakgan" else min(rows, c.sample_batch)
    stream = sum(w * n for w, n in zip(c.filter_windows, c.filter_counts, strict=True))
    return [
        ("vocab_size", "an embedding", (c.vocab_size + 1) * max(c.discriminator_embedding, c.worker_embedding)),
        ("oracle_hidden", "the oracle", c.oracle_hidden * (2 * c.vocab_size + 8 * c.oracle_hidden)),
        ("worker_hidden", "the Worker's output", c.worker_hidden * max(c.goal_dim * c.vocab_size, 8 * c.worker_hidden)),
        ("manager_hidden", "the Manager", c.manager_hidden * 4 * (f + c.manager_hidden)),
        ("filter_counts", "the highway layer", 2 * f * f),
        ("discriminator_embedding", "the convolutions", stream * c.discriminator_embedding),
        ("batch_size", "the logits of a batch", c.batch_size * c.length * c.vocab_size),
        ("completions", "the logits of a sampling step", rows * c.vocab_size),
        ("completions", "the convolutions of a sampling step", convolved * stream),
        ("sample_batch", "a sampling step", c.sample_batch * max(stream, c.vocab_size)),
        ("num_train", "the training set", c.num_train * c.length),
        ("num_heldout", "the held-out set", c.num_heldout * c.length),
        ("draw_size", "a discriminator draw", 2 * c.draw_size * c.length),
        ("eval_samples", "the samples of an evaluation", c.eval_samples * c.length),
    ]


def _check_type(name: str, value: Any, hint: Any) -> None:
    if hint is float:
        # A whole number beyond float is less than infinity, too, but no float.
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1023
        if not whole and not isinstance(value, float):
            raise ConfigError(f"{name} is {shown(value)}; it must be a number")
    elif hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{name} is {shown(value)}; it must be a whole number")
    elif isinstance(hint, types.GenericAlias):  # tuple[int, ...]
        if not isinstance(value, tuple) or not all(type(v) is int for v in value):
            raise ConfigError(f"{name} is {shown(value)}; it must be a list of whole numbers")
    elif typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{name} is {shown(value)}; it must be one of {', '.join(typing.get_args(hint))}")
    elif not isinstance(value, hint):
        raise ConfigError(f"{name} is {shown(value)}; it must be of type {hint.__name__}")
    elif hint is str and not (is_printable(value) and len(value) <= _MAX_TEXT):
        right = f"at most {_MAX_TEXT:,} characters of Unicode, none of them control characters"
        raise ConfigError(f"{name} is {shown(value)}; it must be {right}")


def _require(holds: bool, name: str, config: Config, right: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {shown(getattr(config, name))}; it must be {right}")
