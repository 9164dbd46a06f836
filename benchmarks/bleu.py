"""Times BLEU-2..5 plus self-BLEU-2..5, on one core: median of repeats after a warm-up, at growing numbers.

    taskset -c 0 python -m benchmarks.bleu --repeats 5
    taskset -c 0 python -m benchmarks.bleu --hypotheses FILE --references FILE --tokenizer nltk

Each size is that many hypotheses against as many references. Without files, sentences of 6 to 40 words (12 on
average, as the captions have) drawn by Zipf's law from 5,000. Prints a Markdown table and appends one
JSON line a row to `--out`. CPU seconds say what it costs where others share the core; reading files is not timed.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np

from benchmarks import measure
from leakgan_jax import data, metrics

SIZES = (1_000, 2_500, 5_000, 10_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hypotheses", type=Path)
    parser.add_argument("--references", type=Path)
    parser.add_argument("--tokenizer", default="whitespace", choices=["whitespace", "nltk", "characters"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/bleu.jsonl"))
    args = parser.parse_args()
    if (args.hypotheses is None) != (args.references is None):
        parser.error("give both --hypotheses and --references, or neither")

    if args.hypotheses is None:
        texts, corpus = (synthetic(seed=0), synthetic(seed=1)), "synthetic, Zipf"
    else:
        texts = [data.read_sentences(path, False, args.tokenizer) for path in (args.hypotheses, args.references)]
        corpus = f"{args.hypotheses.name} against {args.references.name}, {args.tokenizer}"
    facts = {
        "corpus": corpus,
        "device": measure.processor(),
        "cores": measure.cores(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "commit": measure.commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print("| hypotheses | references | words | s median (p10-p90) | CPU s | us a word |\n|--:|--:|--:|--:|--:|--:|")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for size in SIZES:
        hypotheses, references = (text[:size] for text in texts)
        words = sum(map(len, hypotheses)) + sum(map(len, references))
        seconds(hypotheses, references)  # warm-up
        times = np.array([seconds(hypotheses, references) for _ in range(args.repeats)])
        (low, mid, high), cpu = np.percentile(times[:, 0], [10, 50, 90]), np.median(times[:, 1])
        counts = {"hypotheses": len(hypotheses), "references": len(references), "words": words}
        print(
            f"| {len(hypotheses):,} | {len(references):,} | {words:,} | {mid:.3f} ({low:.3f}-{high:.3f}) | {cpu:.3f} | "
            f"{1e6 * cpu / words:.2f} |",
            flush=True,
        )
        row = {"what": "BLEU-2..5 and self-BLEU-2..5", **counts, "s_p10": low, "s_median": mid, "s_p90": high}
        with open(args.out, "a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "cpu_s_median": cpu, "repeats": args.repeats, **facts}) + "\n")


def seconds(hypotheses, references) -> tuple[float, float]:
    """Wall and CPU seconds of both metrics."""
    wall, cpu = time.perf_counter(), time.process_time()
    metrics.bleu(hypotheses, references)
    metrics.self_bleu(hypotheses)
    return time.perf_counter() - wall, time.process_time() - cpu


def synthetic(seed: int, num: int = max(SIZES), num_words: int = 5_000) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    lengths = np.clip(5 + rng.geometric(1 / 7.5, num), 6, 40)
    rank = 1 / np.arange(1, num_words + 1)
    words = np.char.add("w", rng.choice(num_words, lengths.sum(), p=rank / rank.sum()).astype(str))
    return [part.tolist() for part in np.split(words, np.cumsum(lengths)[:-1])]


if __name__ == "__main__":
    main()
