"""METEOR and SPICE by their own Java programs, where these can run."""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

from tasks.metrics.overlap import Corpus

NAMES = ("meteor", "spice")
_CORENLP = "stanford-corenlp-3.6.0"


def why_not(name: str) -> str | None:
    """Why this metric can't run here and what would help, or None where it can."""
    if shutil.which("java") is None:
        return "it is a Java program and there is no java here: install default-jre-headless"
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        return "its program comes with pycocoevalcap: pip install pycocoevalcap"
    folder = Path(next(iter(package.submodule_search_locations)))
    jars = [folder / f"spice/lib/{_CORENLP}{part}.jar" for part in ("", "-models")]
    if name == "spice" and not all(jar.exists() for jar in jars):
        return (
            f"it needs Stanford CoreNLP 3.6.0 in {jars[0].parent}: where there is a network, "
            "python -m pycocoevalcap.spice.get_stanford_models downloads it"
        )
    return None


def score(name: str, corpus: Corpus) -> float:
    """The corpus's METEOR or SPICE; ask `why_not` first."""
    references = {i: [_line(ref) for ref in refs] for i, refs in enumerate(corpus.references)}
    predictions = {i: [_line(tokens)] for i, tokens in enumerate(corpus.predictions)}
    if name == "meteor":
        from pycocoevalcap.meteor.meteor import Meteor as Scorer
    else:
        from pycocoevalcap.spice.spice import Spice as Scorer
    corpus_score, _ = Scorer().compute_score(references, predictions)
    return float(corpus_score)


def _line(tokens: Sequence[str]) -> str:
    return " ".join(tokens)
