"""How much faster our scores are than pycocoevalcap's: `python -m tests.benchmarks.bench_metrics`.

Both score the same captions: Flickr8k's, each image's predicted by one of the next image; past
8,091 images they come again with a word changed each. From raw strings (its Java tokenizer against
ours) and from tokens (the scorers alone); every run in a process of its own, so nothing is warm.
The last line is why scoring is one process: what more of them save, handing tokens over costs.
"""

import csv
import itertools
import multiprocessing
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from tasks.metrics.scores import score, score_tokens, tokenized
from tasks.metrics.tokenize import tokenize

CAPTIONS = Path(__file__).parents[3] / "shared/data/flickr8k_1000/captions_full.txt"
SIZES, REFERENCES, ROUNDS = (5_000, 40_000), 5, 2
FORK = multiprocessing.get_context("fork")  # the children share the captions

Captions = list[list[str]]
Scores = dict[str, float]


@dataclass(frozen=True)
class Run:
    """The fastest of a few rounds; memory is the growth over the captions themselves."""

    seconds: float
    mebibytes: float
    scores: Scores


def real_captions() -> Captions:
    """Five captions an image: Flickr8k's, or random words where they are absent."""
    if not CAPTIONS.exists():
        draw = random.Random(0)
        words = [f"word{i}" for i in range(5000)]
        sentences = (
            " ".join(draw.choices(words, k=draw.randint(6, 16))) for _ in itertools.count()
        )
        return [list(itertools.islice(sentences, REFERENCES)) for _ in range(8000)]
    images: dict[str, list[str]] = {}
    with CAPTIONS.open(encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            images.setdefault(row["image"], []).append(row["caption"])
    return [found[:REFERENCES] for found in images.values()]


def enlarged(real: Captions, images: int) -> Captions:
    """As many images: the real ones first, then each again with one word of another's caption."""
    draw = random.Random(0)
    vocabulary = [word for captions in real for caption in captions for word in caption.split()]
    found = real[:images]
    for captions in itertools.islice(itertools.cycle(real), images - len(found)):
        changed = [caption.split() for caption in captions]
        for words in changed:
            words[draw.randrange(len(words))] = draw.choice(vocabulary)
        found.append([" ".join(words) for words in changed])
    return found


def theirs(predictions: Sequence[str], references: Captions) -> Scores:
    """pycocoevalcap on captions that are tokens with spaces between."""
    said = {i: [caption] for i, caption in enumerate(predictions)}
    meant = dict(enumerate(references))
    bleu, _ = Bleu(4).compute_score(meant, said, verbose=0)
    rouge, _ = Rouge().compute_score(meant, said)
    cider, _ = Cider().compute_score(meant, said)
    names = [f"bleu_{order}" for order in range(1, 5)]
    return dict(zip(names, bleu, strict=True)) | {"rouge_l": float(rouge), "cider": float(cider)}


def theirs_from_strings(predictions: Sequence[str], references: Captions) -> Scores:
    tokenizer = PTBTokenizer()
    meant = tokenizer.tokenize(
        {i: [{"caption": caption} for caption in captions] for i, captions in enumerate(references)}
    )
    said = tokenizer.tokenize({i: [{"caption": caption}] for i, caption in enumerate(predictions)})
    return theirs([said[i][0] for i in range(len(said))], list(meant.values()))


def measured(call: Callable[[], Scores], rounds: int) -> Run:
    """Each round in a fresh process."""
    runs = []
    for _ in range(rounds):
        receive, send = FORK.Pipe(duplex=False)
        child = FORK.Process(target=_measure, args=(call, send))
        child.start()
        runs.append(receive.recv())
        child.join()
    return min(runs, key=lambda run: run.seconds)


def _measure(call: Callable[[], Scores], send: Connection) -> None:
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    scores = call()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    send.send(Run(seconds, (peak - before) / 2**20, scores))


def compare(
    title: str, ours: Callable[[], Scores], reference: Callable[[], Scores], images: int
) -> None:
    """Prints one line; the scores must be the same."""
    rounds = ROUNDS if images <= SIZES[0] else 1
    fast, slow = measured(ours, rounds + 1), measured(reference, rounds)
    apart = max(abs(fast.scores[name] - slow.scores[name]) for name in slow.scores)
    memory = f"{fast.mebibytes:.0f} MiB, {fast.mebibytes * 1024 / images:.1f} KiB an image"
    print(
        f"| {images:,} × {REFERENCES} | {title} | {fast.seconds:.2f} s | {slow.seconds:.2f} s | "
        f"**{slow.seconds / fast.seconds:.1f}×** | {memory} | {slow.mebibytes:.0f} MiB | "
        f"{apart:.0e} |",
        flush=True,
    )
    assert apart < 1e-9


def _tokenize_all(captions: list[str]) -> list[list[str]]:
    return [tokenize(caption) for caption in captions]


def processes(captions: list[str], workers: int) -> float:
    """Seconds to tokenize the captions in so many processes."""
    start = time.perf_counter()
    if workers == 1:
        _tokenize_all(captions)
    else:
        size = -(-len(captions) // workers)
        parts = [captions[i : i + size] for i in range(0, len(captions), size)]
        with ProcessPoolExecutor(workers, mp_context=FORK) as pool:
            list(pool.map(_tokenize_all, parts))
    return time.perf_counter() - start


def main() -> None:
    real = real_captions()
    print("| images | from | ours | pycocoevalcap | faster | our memory | theirs | scores apart |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for images in SIZES:
        references = enlarged(real, images)
        predictions = [references[(i + 1) % images][i % REFERENCES] for i in range(images)]
        if shutil.which("java"):
            compare(
                "strings",
                lambda p=predictions, r=references: score(p, r).corpus,
                lambda p=predictions, r=references: theirs_from_strings(p, r),
                images,
            )
        else:
            print("no java: nothing to compare from strings", file=sys.stderr)
        corpus = tokenized(predictions, references)
        said = [" ".join(tokens) for tokens in corpus.predictions]
        meant = [[" ".join(tokens) for tokens in refs] for refs in corpus.references]
        compare(
            "tokens",
            lambda c=corpus: score_tokens(c).corpus,
            lambda p=said, r=meant: theirs(p, r),
            images,
        )
    captions = [caption for several in references for caption in several]
    alone, shared = processes(captions, 1), processes(captions, 2)
    print(f"\n{len(captions):,} captions: {alone:.2f} s in one process, {shared:.2f} s in two")


if __name__ == "__main__":
    main()
