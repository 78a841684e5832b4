"""GIT: the patches of a CLIP tower stand before the text in one causal transformer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bentos.captioner.decoding import generate
from bentos.captioner.families.family import (
    Hypothesis,
    TokenIds,
    image_size_in,
    load_pretrained,
    mean_patch,
    named_token_ids,
)

if TYPE_CHECKING:
    import torch

    from bentos.captioner.generation import Generation

_IMAGE_SIZE = 224


class Git:
    """microsoft/git-base and its like."""

    model_type = "git"
    lora_targets: tuple[str, ...] = (
        *("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        *("query", "key", "value", "dense"),
    )

    def load(self, place: str | Path, *, local_files_only: bool = False) -> tuple[Any, list[str]]:
        from transformers import GitForCausalLM

        return load_pretrained(GitForCausalLM, place, local_files_only=local_files_only)

    def image_size(self, config: dict[str, Any]) -> int:
        return image_size_in(config, _IMAGE_SIZE)

    def token_ids(self, model: Any) -> TokenIds:
        return named_token_ids(model.config, "bos_token_id", "eos_token_id", "pad_token_id")

    def max_positions(self, model: Any) -> int:
        return int(model.config.max_position_embeddings)

    def vision(self, model: Any) -> "torch.nn.Module":
        return model.git.image_encoder

    def see(self, model: Any, pixel_values: "torch.Tensor") -> "torch.Tensor":
        return model.git.image_encoder(pixel_values).last_hidden_state

    def embed(self, states: "torch.Tensor") -> "torch.Tensor":
        return mean_patch(states)

    def text_logits(self, outputs: Any, length: int) -> "torch.Tensor":
        return outputs.logits[:, -length:]

    def decode(
        self, model: Any, states: "torch.Tensor", generation: "Generation", prompt: list[int]
    ) -> list[list[Hypothesis]]:
        # GIT takes four dimensions for one image each, and repeats them for its beams.
        with _already_seen(model):
            inputs = {"pixel_values": states[:, None]}
            return generate(model, inputs, self.token_ids(model), generation, prompt)


@contextmanager
def _already_seen(model: Any) -> Iterator[None]:
    """The model takes image states for `pixel_values`: GIT has no argument for them."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    class Seen(torch.nn.Module):
        def forward(self, states: torch.Tensor, **_: Any) -> BaseModelOutput:
            return BaseModelOutput(last_hidden_state=states[:, 0])

    encoder = model.git.image_encoder
    model.git.image_encoder = Seen()
    try:
        yield
    finally:
        model.git.image_encoder = encoder
