"""BLIP: a vision transformer, and a decoder that attends to it by cross-attention."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bentos.captioner.decoding import search
from bentos.captioner.families.family import (
    Decoded,
    TokenIds,
    image_size_in,
    load_pretrained,
    mean_patch,
    named_token_ids,
)

if TYPE_CHECKING:
    import torch

    from bentos.captioner.generation import Generation

_IMAGE_SIZE = 384


class Blip:
    """Salesforce/blip-image-captioning-base and its like."""

    model_type = "blip"
    lora_targets: tuple[str, ...] = (
        "qkv",
        "projection",
        "fc1",
        "fc2",
        "query",
        "key",
        "value",
        "dense",
    )

    def load(self, place: str | Path, *, local_files_only: bool = False) -> tuple[Any, list[str]]:
        from transformers import BlipForConditionalGeneration

        return load_pretrained(
            BlipForConditionalGeneration, place, local_files_only=local_files_only
        )

    def image_size(self, config: dict[str, Any]) -> int:
        return image_size_in(config, _IMAGE_SIZE)

    def token_ids(self, model: Any) -> TokenIds:
        text = model.config.text_config
        return named_token_ids(text, "bos_token_id", "sep_token_id", "pad_token_id")

    def max_positions(self, model: Any) -> int:
        return int(model.config.text_config.max_position_embeddings)

    def vision(self, model: Any) -> "torch.nn.Module":
        return model.vision_model

    def see(self, model: Any, pixel_values: "torch.Tensor") -> "torch.Tensor":
        return model.vision_model(pixel_values=pixel_values).last_hidden_state

    def embed(self, states: "torch.Tensor") -> "torch.Tensor":
        return mean_patch(states)

    def text_logits(self, outputs: Any, length: int) -> "torch.Tensor":
        return outputs.logits[:, -length:]

    def decode(
        self, model: Any, states: "torch.Tensor", generation: "Generation", prompt: list[int]
    ) -> Decoded:
        """The search of `model.generate`, which would run the vision tower a second time for us."""
        import torch

        seen = torch.ones(states.shape[:-1], dtype=torch.long, device=states.device)
        tokens = self.token_ids(model)
        inputs = {"encoder_hidden_states": states, "encoder_attention_mask": seen}
        return search(model.text_decoder, inputs, tokens, generation, prompt)
