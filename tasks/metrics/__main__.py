"""Scores captions in COCO's files: `python -m tasks.metrics --references R --predictions P`.

R is a COCO annotation file or the bare list of its annotations, P a COCO results list. BLEU-1…4,
ROUGE-L, CIDEr and CIDEr-D come from Python alone, equal to pycocoevalcap's. METEOR and SPICE don't:
both are Java programs (METEOR with its paraphrase tables, SPICE with a parser whose models are
downloaded at first use), much slower, and nothing here decides by them. They are extras, run where
a JRE and pycocoevalcap are installed: `--extra meteor,spice`; where not, the reason is told.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.metrics import coco, java, overlap
from tasks.metrics.scores import score_tokens, tokenized

_NAMED = 10
_TITLES = {
    **{f"bleu_{order}": f"BLEU-{order}" for order in range(1, 5)},
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "cider_d": "CIDEr-D",
    "meteor": "METEOR",
    "spice": "SPICE",
}


@dataclass(frozen=True)
class Report:
    """Scores at full precision, what was scored, and why an extra was not."""

    scores: dict[str, float]
    files: coco.Paired
    unavailable: dict[str, str]

    def as_json(self) -> str:
        missing = dict.fromkeys([*self.files.without_prediction, *self.files.without_reference])
        found = {
            "scores": self.scores,
            "num_images": len(self.files.image_ids),
            "missing": list(missing),
        }
        return json.dumps(found | ({"unavailable": self.unavailable} if self.unavailable else {}))

    def as_text(self) -> str:
        lines = [f"{len(self.files.image_ids):,} images scored", ""]
        lines += [f"{_TITLES[name]:<8} {value:8.4f}" for name, value in self.scores.items()]
        lines += [f"{_TITLES[name]:<8} not run: {why}" for name, why in self.unavailable.items()]
        for what in ("prediction", "reference"):
            images = getattr(self.files, f"without_{what}")
            if images:
                rest = f" and {len(images) - _NAMED:,} more" if len(images) > _NAMED else ""
                lines += [
                    "",
                    f"{len(images):,} without a {what}: {', '.join(images[:_NAMED])}{rest}",
                ]
        return "\n".join(lines)


def report(files: coco.Paired, as_tokens: bool, extras: Sequence[str]) -> Report:
    """Scores what was paired; `as_tokens` splits at spaces only."""
    if as_tokens:
        corpus = overlap.Corpus(
            [caption.split() for caption in files.predictions],
            [[caption.split() for caption in captions] for captions in files.references],
        )
    else:
        corpus = tokenized(files.predictions, files.references)
    scores = dict(score_tokens(corpus).corpus)
    scores["cider_d"] = scores["cider"]  # one metric, two names: see `overlap`
    unavailable = {name: why for name in extras if (why := java.why_not(name))}
    scores |= {name: java.score(name, corpus) for name in extras if name not in unavailable}
    return Report(scores, files, unavailable)


def _extras(text: str) -> list[str]:
    names = [name for name in text.lower().split(",") if name]
    unknown = [name for name in names if name not in java.NAMES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(java.NAMES)}")
    return list(dict.fromkeys(names))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.metrics",
        description="BLEU-1…4, ROUGE-L, CIDEr and CIDEr-D of captions, equal to pycocoevalcap's.",
        epilog="METEOR and SPICE are Java programs: extras that run where a JRE and pycocoevalcap "
        "are there. Images without a prediction or a reference are named, never guessed.",
    )
    add = parser.add_argument
    add("--references", required=True, type=Path, metavar="R", help="COCO annotations (JSON)")
    add("--predictions", required=True, type=Path, metavar="P", help="COCO results (JSON)")
    add("--json", action="store_true", help="print one JSON object at full precision")
    add("--tokenized", action="store_true", help="captions are tokens with spaces between already")
    add("--extra", type=_extras, default=[], metavar="NAMES", help="meteor,spice: by Java")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report; 2 where a file doesn't serve."""
    options = _parser().parse_args(arguments)
    try:
        files = coco.paired(options.references, options.predictions)
    except coco.CocoFileError as error:
        print(error, file=sys.stderr)
        return 2
    found = report(files, options.tokenized, options.extra)
    print(found.as_json() if options.json else found.as_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
