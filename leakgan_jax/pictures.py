"""The pictures of `leakgan inspect`: leaked features of growing sentences, and what each goal dimension adds to a word.

Both follow the same few generated sentences, `m` of them. Source: Guo et al. 2018, arXiv:1709.08624, Figures 4 and 5.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np

from leakgan_jax import inspection
from leakgan_jax.config import Config
from leakgan_jax.report import pyplot, save
from leakgan_jax.run import Task
from leakgan_jax.types import Array, Params

MAX_FOLLOWED = 8  # sentences; more cannot be told apart
_CLOUD = 500  # finished sentences of a kind
_MAX_TOKENS, _MAX_LETTERS, _MAX_LEGEND = 60, 14, 90  # tokens of a heat map, letters of a word and of a legend's line
_FONT = "DejaVu Sans"  # comes with matplotlib
_REAL, _GENERATED = "#56b4e9", "#e69f00"  # Okabe and Ito: told apart whatever the colour vision
_ENDS = "osD^vP*X"  # one a sentence


def look_inside(out: Path, config: Config, task: Task, params: Params, generated: np.ndarray, num: int) -> list[str]:
    """Writes features.png and interaction.png to the folder `out`.

    Args:
        task: of the run, for its held-out sentences and its words.
        generated: `[n, T]` int32, about `cloud_size` sentences of the run, the first `num` of them to be followed.
    Returns:
        Lines of text that say what there is to see, and the numbers behind it.
    """
    followed = generated[:num]
    view = jax.jit(inspection.feature_traces, static_argnums=(0, 4))(config, params, _cloud(task), generated, num)
    view = jax.device_get(view)
    products = np.asarray(jax.jit(inspection.interaction, static_argnums=0)(config, params, followed))
    sentences = [[i for i in row if i != config.pad_id] for row in followed.tolist()]
    words = range(config.vocab_size) if task.vocabulary is None else task.vocabulary.words
    labels = Labels({i: str(words[i]) for ids in sentences for i in ids})
    draw_features(out / "features.png", view, sentences, labels)
    draw_interaction(out / "interaction.png", products, sentences, labels)

    lines = [f"sentence {number}: {text}" for number, text in enumerate(task.decode(followed), start=1)]
    if labels.lacking:
        lines.append(
            f"No installed font has {labels.lacking} of these words: shown as #id, their index in vocabulary.json."
        )
    strength = np.abs(products).sum(axis=(0, 1))
    strength = strength / max(strength.sum(), 1e-30)
    return [
        *lines,
        f"{out / 'features.png'}: {len(view.real):,} real, {len(view.generated):,} generated sentences in the plane of "
        f"{view.explained.sum():.1%} of their variance. Distance from the mean real feature, in all dimensions: "
        f"{view.empty_distance:.3g} of the empty prefix, {view.generated_distance:.3g} of generated and "
        f"{view.real_distance:.3g} of real sentences (root mean squares).",
        f"{out / 'interaction.png'}: what each goal dimension adds to each token's logit. The strongest is dimension "
        f"{strength.argmax() + 1} with {strength.max():.1%} of all absolute contributions; an even share is "
        f"{1 / len(strength):.1%}.",
    ]


def cloud_size(task: Task) -> int:
    """Finished sentences of each kind that `features.png` shows."""
    return min(_CLOUD, len(task.heldout))


class Labels:
    """Words as the installed fonts can draw them: one with a character that they all lack becomes `#id`."""

    def __init__(self, words: dict[int, str]):
        self.fonts, missing = fonts_for(words.values())
        lacking = {i for i, word in words.items() if not missing.isdisjoint(word)}
        self.lacking = len(lacking)
        self.note = "\n#id: a word that no installed font draws, by its index in vocabulary.json" if lacking else ""
        self._labels = {i: f"#{i}" if i in lacking else _shortened(word, _MAX_LETTERS) for i, word in words.items()}

    def __call__(self, ids: Iterable[int]) -> list[str]:
        return [self._labels[i] for i in ids]


def fonts_for(words: Iterable[str]) -> tuple[list[str], set[str]]:
    """Installed font families that together draw what can be drawn of `words`, and the characters none of them has."""
    from matplotlib import font_manager, ft2font

    logging.getLogger(font_manager.__name__).setLevel(logging.ERROR)  # a family without the usual weight will do
    families: list[str] = []
    missing: set[str] = set().union(*words)
    installed = sorted({entry.name for entry in font_manager.fontManager.ttflist})
    for family in [_FONT, *installed]:
        if families and not missing:
            break
        if "Last Resort" in family:  # has a box for every character there is
            continue
        try:  # the file that will be drawn with: others of the family may have more characters
            properties = font_manager.FontProperties(family=[family])  # a list is not parsed as a pattern
            path = font_manager.findfont(properties, fallback_to_default=False)
            found = missing & {chr(code) for code in ft2font.FT2Font(path).get_charmap()}
        except (OSError, RuntimeError, ValueError):  # a bitmap font, a damaged one, or none of normal style
            continue
        missing -= found
        if found or family == _FONT:
            families.append(family)
    return families, missing


def draw_features(
    path: Path, view: inspection.FeatureTraces, sentences: Sequence[Sequence[int]], labels: Labels
) -> None:
    """Figure 4: finished sentences in the plane of their largest variance, and how the followed ones got there.

    Args:
        view: as NumPy arrays; sentences: `m` lists of ids, without padding; labels: words of ids.
    """
    plt = pyplot()
    from matplotlib.collections import LineCollection

    longest = max(map(len, sentences))
    figure, axes = plt.subplots(figsize=(8, 6.2 + 0.2 * len(sentences)), layout="constrained")
    for points, marker, colour, name in (
        (view.real, "o", _REAL, "real, held out"),
        (view.generated, "x", _GENERATED, "generated"),
    ):
        size = {"s": 14, "linewidths": 0.9 if marker == "x" else 0, "alpha": 0.55}
        axes.scatter(*points.T, marker=marker, color=colour, label=f"{len(points)} finished: {name}", **size)
    start = {"marker": "o", "s": 90, "facecolors": "white", "edgecolors": "black", "linewidths": 1.8, "zorder": 7}
    axes.scatter(*view.traces[0, :1].T, label="empty prefix, where every sentence begins", **start)
    time = plt.Normalize(0, longest)
    followed = zip(view.traces, sentences, _ENDS, strict=False)
    for number, (trace, ids, marker) in enumerate(followed, start=1):
        points = trace[: len(ids) + 1]
        steps = list(np.stack([points[:-1], points[1:]], axis=1))
        axes.add_collection(LineCollection(steps, colors="white", linewidths=3.4, zorder=3))
        line = axes.add_collection(LineCollection(steps, cmap="viridis", norm=time, linewidths=1.8, zorder=4))
        line.set_array(np.arange(1, len(points)))
        way = {"marker": marker, "s": 18, "zorder": 5}
        axes.scatter(*points[1:-1].T, c=np.arange(1, len(ids)), cmap="viridis", norm=time, **way)
        text = _shortened(" ".join(labels(ids)), _MAX_LEGEND)
        end = {"marker": marker, "s": 80, "edgecolors": "black", "linewidths": 1, "zorder": 6}
        axes.scatter(*points[-1:].T, c=[len(ids)], cmap="viridis", norm=time, label=f"sentence {number}: {text}", **end)
    figure.colorbar(line, ax=axes, label="tokens of the prefix")
    for set_label, number, share in zip((axes.set_xlabel, axes.set_ylabel), (1, 2), view.explained, strict=True):
        set_label(f"principal component {number} ({share:.1%} of the variance)")
    axes.set_title(f"Leaked features of finished sentences, and of growing prefixes{labels.note}", fontsize=10)
    axes.autoscale_view()
    legend = figure.legend(
        loc="outside lower left", frameon=False, fontsize=8, prop={"family": labels.fonts, "size": 8}
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    save(figure, path)


def draw_interaction(path: Path, products: np.ndarray, sentences: Sequence[Sequence[int]], labels: Labels) -> None:
    """Figure 5: a heat map a sentence, its tokens by the goal's dimensions; to the right, the sum of each row.

    Args:
        products: `[m, T, k]` as `inspection.interaction` gives them; sentences, labels: as of `draw_features`.
    """
    plt = pyplot()
    shown = [ids[:_MAX_TOKENS] for ids in sentences]
    dims, across = products.shape[-1], math.isqrt(len(shown) - 1) + 1
    down, tallest = -(-len(shown) // across), max(map(len, shown))
    size = (0.9 + across * (1.5 + min(4.0, 0.19 * dims)), 0.9 + down * (0.6 + 0.19 * tallest))
    figure, grid = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    limit = max(float(np.abs(products).max()), 1e-6)
    for axes in grid.flat[len(shown) :]:
        axes.axis("off")
    for number, (axes, rows, ids) in enumerate(zip(grid.flat, products, shown, strict=False), start=1):
        rows = rows[: len(ids)]
        # Every panel has room for the longest sentence, so that a row is as tall in all of them.
        filled = np.full((tallest, dims), np.nan)
        filled[: len(ids)] = rows
        image = axes.imshow(filled, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        axes.set_yticks(range(len(ids)), labels(ids), fontsize=8, family=labels.fonts, parse_math=False)
        step = -(-dims // 16)
        axes.set_xticks(range(0, dims, step), range(1, dims + 1, step), fontsize=7)
        axes.xaxis.tick_top()
        sums = axes.secondary_yaxis("right")
        sums.set_yticks(range(len(ids)), [f"{total:.1f}" for total in rows.sum(axis=-1)], fontsize=7, color="0.35")
        for ticks in (axes.yaxis, axes.xaxis, sums.yaxis):
            ticks.set_tick_params(length=0)
        for side in (axes, sums):
            for spine in side.spines.values():
                spine.set_visible(False)
        cut = f", first {_MAX_TOKENS} tokens" if len(ids) < len(sentences[number - 1]) else ""
        axes.set_title(f"sentence {number}{cut}", fontsize=9, loc="left")
        axes.set_title("logit", fontsize=7, loc="right", color="0.35")
    title = f"What each dimension of the goal embedding adds to the logit of each token{labels.note}"
    figure.suptitle(title, fontsize=10)
    figure.colorbar(image, ax=grid, label="Worker output times goal embedding", aspect=40, shrink=0.9)
    save(figure, path)


def _cloud(task: Task) -> Array:
    places = np.linspace(0, len(task.heldout) - 1, cloud_size(task))  # from all parts, as a corpus may be in order
    return task.heldout[places.astype(int)]


def _shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"
