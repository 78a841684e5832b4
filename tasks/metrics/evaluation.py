"""What a model said on every slice of the test data, and how good that was."""

import hashlib
from collections.abc import Sized
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from tasks.metrics import diversity
from tasks.metrics.intervals import intervals
from tasks.metrics.scores import Scores, score
from tasks.metrics.statistics import Interval

FILE = "evaluation.json"


class EvaluationUnreadable(ValueError):
    """An evaluation folder that is missing, cut short or not one."""


def _as_floats(values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"expected one score an image, got an array of shape {array.shape}")
    return array


FloatArray = Annotated[
    np.ndarray,
    BeforeValidator(_as_floats),
    PlainSerializer(lambda array: array.tolist(), return_type=list[float]),
]


class _Stored(BaseModel):
    """Floats keep full precision on disk; NaN and infinities survive."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, ser_json_inf_nan="constants"
    )


class SliceEvaluation(_Stored):
    """One model on one slice; every list and array has an entry per image, in the same order.

    `intervals` are 95 %, by corpus metric; evaluations of earlier releases have none.
    """

    image_ids: list[str]
    predictions: list[str]
    references: list[list[str]]
    log_probabilities: list[float]
    corpus: dict[str, float]
    per_image: dict[str, FloatArray]
    intervals: dict[str, Interval] = {}

    @classmethod
    def of(
        cls,
        image_ids: list[str],
        predictions: list[str],
        references: list[list[str]],
        log_probabilities: list[float],
    ) -> Self:
        """Scores the predictions; the slice must hold at least one image."""
        scores = score(predictions, references)
        return cls.scored(image_ids, predictions, references, log_probabilities, scores)

    @classmethod
    def scored(
        cls,
        image_ids: list[str],
        predictions: list[str],
        references: list[list[str]],
        log_probabilities: list[float],
        scores: Scores,
    ) -> Self:
        """The slice of these captions, whose scores are known."""
        return cls(
            image_ids=image_ids,
            predictions=predictions,
            references=references,
            log_probabilities=log_probabilities,
            corpus=scores.corpus,
            per_image=scores.per_image,
            intervals=intervals(scores),
        )

    def at(self, places: np.ndarray, scores: Scores) -> Self:
        """A part of the slice, which keeps the `scores` that its images have in the whole."""
        return self.scored(
            [self.image_ids[place] for place in places],
            [self.predictions[place] for place in places],
            [self.references[place] for place in places],
            [self.log_probabilities[place] for place in places],
            scores.at(places),
        )

    def diversity(self) -> diversity.Verdict:
        """Whether the captions have collapsed, in words."""
        return diversity.judge(self.predictions, self.references)

    @model_validator(mode="after")
    def _lines_up(self) -> Self:
        columns: dict[str, Sized] = {
            "predictions": self.predictions,
            "references": self.references,
            "log_probabilities": self.log_probabilities,
            **self.per_image,
        }
        for name, column in columns.items():
            if len(column) != len(self.image_ids):
                raise ValueError(f"{len(column)} {name} for {len(self.image_ids)} images")
        if len(set(self.image_ids)) != len(self.image_ids):
            raise ValueError("an image id occurs twice")
        return self


class Cost(_Stored):
    """What a model costs where it was evaluated: median seconds of an image alone in its batch,
    bytes of the model's folder, the device's name."""

    latency_seconds: float
    size_bytes: int
    device: str


class Evaluation(_Stored):
    """One model on every slice that has images: `test`, maybe `current` and `golden`, and those
    that the config defines."""

    slices: dict[str, SliceEvaluation] = Field(min_length=1)
    cost: Cost | None = None

    @property
    def digest(self) -> str:
        """Identity by content: predictions, references and scores, but not how long they took.

        Without defaults, so that evaluations of earlier releases keep theirs.
        """
        told = self.model_dump_json(exclude={"cost"}, exclude_defaults=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Writes the evaluation into `folder`, which is made if absent."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(self.model_dump_json(), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises `EvaluationUnreadable`, so that a gate can ask a person instead."""
        path = folder / FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise EvaluationUnreadable(
                f"{path} is no evaluation ({error}): evaluate the model again."
            ) from error
