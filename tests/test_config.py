"""Settings: validated when built, named when wrong, the same after JSON."""

import dataclasses
import json

import pytest

from leakgan_jax.config import PRESET_SUMMARIES, PRESETS, Config, ConfigError, differences, preset


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("reading", ["paper", "released"])
def test_every_preset_builds_and_survives_json(name, reading):
    config = preset(name, reading)
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert hash(config) == hash(dataclasses.replace(config))
    assert name in PRESET_SUMMARIES


def test_presets_have_the_published_sizes():
    assert preset("synthetic20").feature_dim == 1720
    assert preset("synthetic20").generator_lr == 1e-3 and preset("synthetic20", "released").generator_lr == 1.5e-3
    assert preset("synthetic40").worker_hidden == 32 and preset("synthetic40", "released").worker_hidden == 64
    assert (preset("coco").pretrain_rounds, preset("coco").mle_epochs) == (16, 12)
    assert preset("news").filter_windows == preset("synthetic40").filter_windows
    assert preset("poems").feature_dim == 1720


def test_presets_of_text_name_their_dataset_and_tokenizer():
    texts = {name: (preset(name).dataset, preset(name).tokenizer) for name in PRESETS if preset(name).is_text}
    sources = {
        "coco": ("coco_image_captions", "nltk"),
        "news": ("emnlp2017_news", "whitespace"),
        "poems": ("chinese_poems", "characters"),
    }
    assert texts == sources | {f"laptop-{name}": source for name, source in sources.items()}
    assert preset("quickstart").end_id is None and preset("poems").end_id == 1


def test_a_corpus_takes_the_place_of_a_preset_s_dataset():
    config = preset("coco", corpus="a.txt")
    assert (config.corpus, config.dataset, config.tokenizer, config.end_id) == ("a.txt", "", "nltk", 1)
    with pytest.raises(ConfigError, match="dataset is 'text_lines'; it must be empty"):
        preset("coco", corpus="a.txt", dataset="text_lines")
    assert preset("coco", dataset="text_lines").dataset == "text_lines"


def test_a_config_of_before_there_were_datasets_is_read():
    values = preset("coco", corpus="a.txt", tokenizer="whitespace").to_json()
    del values["dataset"], values["tokenizer"]
    assert Config.from_json(values) == preset("coco", corpus="a.txt", tokenizer="whitespace")


def test_what_would_take_for_ever_is_refused():
    with pytest.raises(ConfigError, match="pretrain_rounds is 1000000000; it must be at most 1,000,000"):
        Config(pretrain_rounds=10**9, pretrain_draws=0, mle_epochs=0)  # rounds of nothing
    with pytest.raises(ConfigError, match="filter_windows .* at most 64 widths"):
        Config(length=100, filter_windows=tuple(range(1, 101)), filter_counts=(1,) * 100)


def test_readings_differ_as_the_table_says():
    paper, released = preset("synthetic20"), preset("synthetic20", "released")
    assert (paper.rescale_slope, released.rescale_slope) == (12, 16)
    assert (paper.dropout_keep, released.dropout_keep) == (0.75, 1.0)
    assert paper.discriminator_l2 > 0 and released.discriminator_l2 == 0
    assert paper.interleave_every == 15 and released.interleave_every == 0
    assert released.eval_temperature == 1 / 1.5


@pytest.mark.parametrize(
    "field, value",
    [
        ("length", 21),
        ("length", -4),
        ("length", 10**8),
        ("vocab_size", 1),
        ("vocab_size", 10**9),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("batch_size", True),
        ("num_train", 10),
        ("completions", -1),
        ("dropout_keep", 0.0),
        ("dropout_keep", float("nan")),
        ("train_temperature", 0.0),
        ("eval_temperature", float("inf")),
        ("generator_lr", -1e-3),
        ("filter_windows", (1, 2)),
        ("filter_windows", tuple(range(2, 14))),
        ("filter_windows", (1,) * 12),
        ("filter_counts", (0,) * 12),
        ("filter_counts", "many"),
        ("reading", "other"),
        ("oracle_seed", -1),
        ("worker_hidden", 10**8),
        ("draw_size", 3),
        ("corpus", 7),
        ("dataset", 7),
        ("tokenizer", "words"),
    ],
)
def test_a_setting_that_cannot_work_is_named(field, value):
    if field == "filter_windows" and value == tuple(range(2, 14)):
        value = tuple(range(10, 22))  # wider than the sentence
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(Config(), **{field: value})
    assert field in str(error.value) and "\n" not in str(error.value)


def test_unknown_names_get_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        preset("quikstart")
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        preset("quickstart", batchsize=3)
    with pytest.raises(ConfigError, match="'paper' or 'released'"):
        preset("quickstart", reading="papers")


def test_differences_name_the_field_and_both_values():
    assert differences(Config(), dataclasses.replace(Config(), completions=8)) == ["completions (4, now 8)"]
