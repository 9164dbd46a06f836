"""Scores published sample files and compares with the numbers known for them.

    python experiments/golden_bleu.py --data ../shared/data

The known numbers come from another implementation, to four digits, checked against the tables published with Texygen,
whose samples the COCO ones are. Blank rows of a file, of which textgan.txt has 4, are no hypotheses here, and are
not in the known numbers either. Writes `results/golden_bleu.md`; fails if a number is off by 1e-3 or more.
"""

import argparse
import functools
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from leakgan_jax import data, metrics

COCO, NEWS = ("nltk", False), ("whitespace", False)
TEST, TRAIN = "coco/test_coco.txt", "coco/image_coco.txt"
MALIGAN, RANKGAN, TEXTGAN, MLE = (f"coco_samples/{name}.txt" for name in ("maligan", "rank", "textgan", "mle"))
VALID, NEWS_TEST = "emnlp_news/gfs_valid.txt", "emnlp_news/gfs_test.txt"

# Hypotheses, references (none: self-BLEU), rule, (tokenizer, lower-cased), the known orders 2 to 5.
KNOWN = [
    (MALIGAN, TEST, "method1", COCO, (0.6730, 0.4322, 0.2567, 0.1587)),
    (RANKGAN, TEST, "method1", COCO, (0.7431, 0.4674, 0.2641, 0.1562)),
    (TEXTGAN, TEST, "method1", COCO, (0.5934, 0.4632, 0.2773, 0.2067)),
    (MLE, TEST, "method1", COCO, (0.7314, 0.4974, 0.3054, 0.1894)),
    (TRAIN, TEST, "method1", COCO, (0.7403, 0.5202, 0.3371, 0.2180)),
    (MALIGAN, TRAIN, "method1", COCO, (0.8869, 0.6975, 0.4820, 0.3116)),
    (RANKGAN, TRAIN, "method1", COCO, (0.9372, 0.7992, 0.6008, 0.4139)),
    (TEXTGAN, TRAIN, "method1", COCO, (0.6502, 0.6459, 0.5960, 0.5237)),
    (MLE, TRAIN, "method1", COCO, (0.9209, 0.7676, 0.5702, 0.3916)),
    (MALIGAN, None, "method1", COCO, (0.9182, 0.7814, 0.6069, 0.4374)),
    (RANKGAN, None, "method1", COCO, (0.9596, 0.8827, 0.7630, 0.6189)),
    (TEXTGAN, None, "method1", COCO, (0.9422, 0.9323, 0.8050, 0.7467)),
    (MLE, None, "method1", COCO, (0.9159, 0.7694, 0.5829, 0.4090)),
    (TRAIN, None, "method1", COCO, (0.8924, 0.7473, 0.5736, 0.4157)),
    (TEST, None, "method1", COCO, (0.9059, 0.7737, 0.6088, 0.4523)),
    (VALID, NEWS_TEST, "nltk-3.2", NEWS, (0.8458, 0.5973, 0.4495, 0.4317)),
    (VALID, NEWS_TEST, "method1", NEWS, (0.8458, 0.5935, 0.3600, 0.2095)),
    (VALID, NEWS_TEST, "method1", ("whitespace", True), (0.8527, 0.6036, 0.3699, 0.2167)),
    (VALID, None, "method1", NEWS, (0.8580, 0.6175, 0.3918, 0.2410)),
]
DISTINCT = {MALIGAN: 9_924, RANKGAN: 9_665, TEXTGAN: 318, MLE: 9_964}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=beside, help="folder of coco, coco_samples and emnlp_news")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/golden_bleu.md"))
    args = parser.parse_args()
    try:
        return score(args)
    except (data.DataError, OSError) as error:
        print(f"{parser.prog}: --data {args.data}: {error}", file=sys.stderr)
        return 2


def score(args: argparse.Namespace) -> int:
    """1 if a number is off, else 0."""

    @functools.cache
    def read(name, tokenizer, lowercase):
        return data.read_sentences(args.data / name, lowercase, tokenizer)

    lines = [
        "| hypotheses | against | rule | here: 2, 3, 4, 5 | known: 2, 3, 4, 5 | largest difference |",
        "|---|---|---|---|---|--:|",
    ]
    worst, seconds = 0.0, 0.0
    for hypotheses, references, rule, settings, known in KNOWN:
        ours = read(hypotheses, *settings)
        theirs = None if references is None else read(references, *settings)
        began = time.process_time()
        scores = metrics.self_bleu(ours, rule=rule) if theirs is None else metrics.bleu(ours, theirs, rule=rule)
        seconds += time.process_time() - began
        found = [value for name, value in scores.items() if "bleu_" in name]
        difference = np.abs(np.subtract(found, known)).max()
        worst = max(worst, difference)
        against = "all others of the file" if theirs is None else f"{references} ({len(theirs):,})"
        lower = ", lower-cased" if settings[1] else ""
        lines.append(
            f"| {hypotheses} ({len(ours):,}){lower} | {against} | {rule} | {' '.join(f'{x:.4f}' for x in found)} | "
            f"{' '.join(f'{x:.4f}' for x in known)} | {difference:.5f} |"
        )
    lines += ["", "| samples | distinct here | known |", "|---|--:|--:|"]
    for name, known in DISTINCT.items():
        distinct = round(metrics.distinct_n(read(name, *COCO))["distinct"] * len(read(name, *COCO)))
        lines.append(f"| {name} | {distinct:,} | {known:,} |")
        worst = max(worst, abs(distinct - known))

    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    head = (
        "# Published files, scored\n\n`python experiments/golden_bleu.py`: largest difference "
        f"{worst:.5f} of {len(KNOWN)} rows, {seconds:.1f} s of one CPU core without reading. COCO files are split by "
        "NLTK's word tokenizer, news files at whitespace; sentences in brackets, blank rows left out.\n\n"
        f"Commit {revision or 'unknown'}, NumPy {np.__version__}, Python {sys.version.split()[0]}.\n\n"
    )
    data.write(args.out, head + "\n".join(lines) + "\n")
    print(head + "\n".join(lines))
    return int(worst >= 1e-3)


if __name__ == "__main__":
    sys.exit(main())
