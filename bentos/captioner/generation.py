"""How captions are generated; a model's card carries it to wherever the model is served."""

from dataclasses import asdict, dataclass
from typing import Any, Self

CARD_KEY = "generation"


class BadGeneration(ValueError):
    """Settings that no search can follow."""


@dataclass(frozen=True)
class Generation:
    """Settings of a search; new tokens are counted after the prompt, the end among them.

    The `prompt` begins every caption for the model: it is neither said nor scored. `num_captions`
    are told of each image, the best of the beams. Raises BadGeneration.
    """

    max_new_tokens: int
    num_beams: int = 1
    min_new_tokens: int = 0
    prompt: str = ""
    num_captions: int = 1

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise BadGeneration(f"max_new_tokens is {self.max_new_tokens}: ask for 1 or more.")
        if not 1 <= self.num_captions <= self.num_beams:
            raise BadGeneration(
                f"num_captions is {self.num_captions}, but num_beams is {self.num_beams}: a search "
                "finds from 1 to num_beams captions of an image. Change one of them."
            )

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> Self:
        """What a model's card says; older cards say less."""
        said = card.get(CARD_KEY, {})
        return cls(
            max_new_tokens=int(said.get("max_new_tokens", 30)),
            num_beams=int(said.get("num_beams", 1)),
            min_new_tokens=int(said.get("min_new_tokens", 0)),
            prompt=str(said.get("prompt", "")),
            num_captions=int(said.get("num_captions", 1)),
        )

    def to_card(self) -> dict[str, Any]:
        """The value under CARD_KEY."""
        return asdict(self)
