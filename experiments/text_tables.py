"""Prints a text run's sweep beside the published rows of its task, with what is and is not comparable.

    leakgan evaluate DIR --sweep
    python experiments/text_tables.py DIR captions

Reads `DIR/sweep.json`; trains and samples nothing.
"""

import argparse
import json
import sys
from pathlib import Path

ORDERS = (2, 3, 4, 5)
CACCIA = "Caccia et al. 2020"
# Model, source, BLEU-2.., self-BLEU-2..: as printed there.
PUBLISHED = {
    "captions": [
        ("SeqGAN", "paper, Table 3", "0.831 0.642 0.521 0.427", ""),
        ("RankGAN", "paper, Table 3", "0.850 0.672 0.557 0.544", ""),
        ("LeakGAN", "paper, Table 3", "0.950 0.880 0.778 0.686", ""),
        ("MLE", "Texygen", "0.731 0.497 0.305 0.189", "0.916 0.769 0.583 0.408"),
        ("SeqGAN", "Texygen", "0.745 0.498 0.294 0.180", "0.950 0.840 0.670 0.489"),
        ("RankGAN", "Texygen", "0.743 0.467 0.264 0.156", "0.959 0.882 0.762 0.618"),
        ("LeakGAN", "Texygen", "0.746 0.528 0.355 0.230", "0.966 0.913 0.848 0.780"),
        ("MLE", f"{CACCIA}, Table 5", "0.74 0.52 0.33 0.21", "0.89 0.72 0.54 0.38"),
        ("SeqGAN", f"{CACCIA}, Table 5", "0.75 0.50 0.29 0.18", "0.95 0.84 0.67 0.49"),
        ("RankGAN", f"{CACCIA}, Table 5", "0.74 0.47 0.26 0.16", "0.96 0.88 0.76 0.62"),
        ("LeakGAN", f"{CACCIA}, Table 5", "0.74 0.52 0.33 0.21", "0.93 0.82 0.66 0.51"),
        ("real", f"{CACCIA}, Table 5", "0.74 0.53 0.34 0.22", "0.90 0.75 0.58 0.42"),
    ],
    "news": [
        ("SeqGAN", "paper, Table 2", "0.8590 0.6015 0.4541 0.4498", ""),
        ("RankGAN", "paper, Table 2", "0.778 0.478 0.411 0.463", ""),
        ("LeakGAN", "paper, Table 2", "0.956 0.819 0.627 0.498", ""),
        ("MLE", "RelGAN's paper", "0.768 0.473 0.240 0.126", ""),
        ("SeqGAN", "RelGAN's paper", "0.777 0.491 0.261 0.138", ""),
        ("RankGAN", "RelGAN's paper", "0.727 0.435 0.209 0.101", ""),
        ("LeakGAN", "RelGAN's paper", "0.826 0.645 0.437 0.272", ""),
        ("MLE, temperature 1/1.25", f"{CACCIA}, Table 4", "0.93 0.74 0.51 0.32", "0.93 0.78 0.59 0.41"),
        ("SeqGAN", f"{CACCIA}, Table 4", "0.72 0.42 0.18 0.09", "0.91 0.70 0.46 0.27"),
        ("RankGAN", f"{CACCIA}, Table 4", "0.69 0.39 0.18 0.09", "0.90 0.68 0.45 0.30"),
        ("LeakGAN", f"{CACCIA}, Table 4", "0.84 0.65 0.44 0.27", "0.94 0.82 0.67 0.51"),
        ("real", f"{CACCIA}, Table 4", "0.86 0.61 0.38 0.23", "0.86 0.62 0.38 0.24"),
    ],
    "poems": [
        ("MLE", "SeqGAN's paper, Table 2", "0.667", ""),
        ("SeqGAN", "paper, Table 4", "0.738", ""),
        ("RankGAN", "paper, Table 4", "0.812", ""),
        ("LeakGAN", "paper, Table 4", "0.881", ""),
        ("real", "SeqGAN's paper, Table 2", "0.746", ""),
    ],
}
COMPARABLE = {
    "captions": (
        "BLEU is nearly comparable with Texygen's rows and Caccia et al.'s: 9,000 of the same 10,000 training "
        "captions, the same tokens, 10,000 references and rule; but a word that is <unk> here counts as a wrong one. "
        "Self-BLEU is not unless the number of samples is theirs (9,984 and 10,000), since it grows with it: compare "
        "it with the real row here. The paper's rows are not comparable: 80,000 other captions, and a rule of NLTK "
        "that drops orders without a match."
    ),
    "news": (
        "Not comparable with any published row: those models saw 200,000 training sentences (the paper's) or some "
        "270,000 (the others), this one at most 9,000 of the 10,000 validation sentences, as a stand-in. The "
        "references are those of Texygen's test split in another tokenisation, which Caccia et al. use too. Compare "
        "with the real row here. The paper's rows follow a rule of NLTK that drops orders without a match: real text "
        "has BLEU-5 0.43 by it."
    ),
    "poems": (
        "Not comparable with the published rows: their poems, split, tokens and number of references are not known "
        "well enough to repeat (the SeqGAN paper gives real text 0.746), and BLEU grows with the references. Compare "
        "with the real row here."
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("task", choices=PUBLISHED)
    args = parser.parse_args()
    try:
        result = json.loads((args.run / "sweep.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"{args.run / 'sweep.json'}: {error}; run leakgan evaluate {args.run} --sweep first", file=sys.stderr)
        return 2
    titles = [f"{kind}-{n}" for kind in ("BLEU", "self-BLEU") for n in ORDERS]
    print(f"| model | source | {' | '.join(titles)} |")
    print("|---|---|" + "--:|" * 2 * len(ORDERS))
    for row in result["rows"]:
        at = "" if row["temperature"] is None else f", temperature {row['temperature']:.3g}"
        cells = [f"{row[f'{kind}_{n}']:.3f}" for kind in ("bleu", "self_bleu") for n in ORDERS]
        print(f"| {row['model']}{at} | here | {' | '.join(cells)} |")
    for model, source, *scores in PUBLISHED[args.task]:
        cells = [cell for text in scores for cell in (text.split() + [""] * len(ORDERS))[: len(ORDERS)]]
        print(f"| {model} | {source} | {' | '.join(cells)} |")
    first = result["rows"][0]
    print(
        f"\nHere: {result['rows'][-1]['hypotheses']:,} samples a row, {first['references']:,} references "
        f"({result['references']}), rule {first['rule']}, seed {result['seed']}, {result['device']}. "
        f"{COMPARABLE[args.task]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
