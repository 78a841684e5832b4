"""What a request may say about its captions, and the search that comes of it."""

from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field

from bentos.captioner.generation import Generation
from bentos.captioner.settings import ServiceSettings

MAX_PROMPT_CHARACTERS = 200


class BadOptions(ValueError):
    """The options are beyond this service's limits, or don't go together."""


class CaptionOptions(BaseModel):
    """What is left out is as the model's card says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str | None = Field(
        None,
        max_length=MAX_PROMPT_CHARACTERS,
        description="How the caption begins for the model; not part of what it answers.",
    )
    max_new_tokens: int | None = Field(None, ge=1, description="The longest caption, in tokens.")
    num_beams: int | None = Field(None, ge=1, description="Beams of the search; 1 is greedy.")
    num_captions: int = Field(
        1, ge=1, description="How many of the best captions, at most `num_beams`."
    )

    def check(self, settings: ServiceSettings) -> None:
        """Raises BadOptions."""
        for name, limit in settings.option_limits.items():
            if (getattr(self, name) or 0) > limit:
                raise BadOptions(f"{name}: at most {limit} here.")
        if self.num_beams is not None and self.num_captions > self.num_beams:
            raise BadOptions(f"num_captions: at most num_beams, which is {self.num_beams}.")

    def over(self, default: Generation) -> Generation:
        """The search these options make of a model's own."""
        longest = self.max_new_tokens or default.max_new_tokens
        return replace(
            default,
            prompt=default.prompt if self.prompt is None else self.prompt,
            max_new_tokens=longest,
            min_new_tokens=min(default.min_new_tokens, longest),
            num_beams=self.num_beams or max(default.num_beams, self.num_captions),
            num_captions=self.num_captions,
        )
