"""How much faster our scorers are than pycocoevalcap's: `python -m tests.benchmarks.bench_metrics`.

Both score the same tokens of real captions; each prediction is a caption of the next image.
"""

import csv
import random
import time
from collections.abc import Callable
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from tasks.metrics import overlap
from tasks.metrics.tokenize import tokenize

CAPTIONS = Path(__file__).parents[3] / "shared/data/flickr8k_1000/captions_full.txt"
IMAGES, REFERENCES, ROUNDS = 2000, 5, 3


def captions() -> list[list[str]]:
    """Tokens of `REFERENCES` captions for each of `IMAGES` images."""
    if not CAPTIONS.exists():
        draw = random.Random(0)
        words = [f"word{i}" for i in range(2000)]
        return [
            [" ".join(draw.choices(words, k=draw.randint(6, 16))) for _ in range(REFERENCES)]
            for _ in range(IMAGES)
        ]
    images: dict[str, list[str]] = {}
    with CAPTIONS.open(encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            images.setdefault(row["image"], []).append(row["caption"])
    return [found[:REFERENCES] for found in images.values()][:IMAGES]


def best_seconds(call: Callable[[], object]) -> float:
    """The fastest of a few rounds, which is the least disturbed one."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    texts = captions()
    start = time.perf_counter()
    references = [[tokenize(text) for text in image] for image in texts]
    print(f"tokenize: {IMAGES * REFERENCES / (time.perf_counter() - start):,.0f} captions/s")
    predictions = [references[(i + 1) % len(references)][0] for i in range(len(references))]
    corpus = overlap.Corpus(predictions, references)
    theirs = {i: [" ".join(tokens) for tokens in image] for i, image in enumerate(references)}
    said = {i: [" ".join(tokens)] for i, tokens in enumerate(predictions)}
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "BLEU": (
            lambda: overlap.bleu(corpus),
            lambda: Bleu(4).compute_score(theirs, said, verbose=0),
        ),
        "ROUGE-L": (lambda: overlap.rouge_l(corpus), lambda: Rouge().compute_score(theirs, said)),
        "CIDEr": (lambda: overlap.cider(corpus), lambda: Cider().compute_score(theirs, said)),
    }
    for name, (ours, reference) in pairs.items():
        fast, slow = best_seconds(ours), best_seconds(reference)
        print(f"{name}: {fast:.3f} s, pycocoevalcap {slow:.3f} s, {slow / fast:.1f}× faster")


if __name__ == "__main__":
    main()
