"""What a training process tells: a JSON object a line, of these kinds."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Progress(_Event):
    """Where a run is; `loss` (nats a token) and `images_per_second` are means since the last."""

    kind: Literal["progress"] = "progress"
    step: int
    max_steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    images_per_second: float
    seconds_left: float

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers worth a curve."""
        return self.model_dump(exclude={"kind", "step", "max_steps", "seconds_left"})

    @property
    def line(self) -> str:
        return (
            f"step {self.step}/{self.max_steps}, loss {self.loss:.3f}, "
            f"{self.images_per_second:.0f} images/s, {self.seconds_left:.0f} s left"
        )


class Evaluated(_Event):
    """`val_loss` (nats a token) and `val_cider` at a step; `captions` of the first val images."""

    kind: Literal["evaluated"] = "evaluated"
    step: int
    scores: dict[str, float]
    captions: tuple[str, ...]
    best: bool

    @property
    def line(self) -> str:
        told = ", ".join(f"{name} {value:.3f}" for name, value in self.scores.items())
        return f"step {self.step}: {told}{' (the best so far)' if self.best else ''}"


class Saved(_Event):
    """A finished checkpoint; `steps` are those of all that are kept."""

    kind: Literal["saved"] = "saved"
    step: int
    folder: Path
    steps: tuple[int, ...]


class Told(_Event):
    """A line for the log."""

    kind: Literal["told"] = "told"
    text: str


class Failed(_Event):
    """Why training ends: the name of a class in `errors`, and its message."""

    kind: Literal["failed"] = "failed"
    error: str
    message: str


class Done(_Event):
    """The scores of the weights that were chosen, and the step that they are from."""

    kind: Literal["done"] = "done"
    step: int
    scores: dict[str, float]


Event = Progress | Evaluated | Saved | Told | Failed | Done
_EVENTS: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def parse(line: str) -> Event:
    """The event in a line; any other text is Told."""
    try:
        return _EVENTS.validate_json(line)
    except ValidationError:
        return Told(text=line)
