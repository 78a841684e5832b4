"""BLIP: a vision transformer, and a decoder that attends to it by cross-attention."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bentos.captioner.families.blip_decoder import BlipDecoder
from bentos.captioner.families.family import (
    Hypothesis,
    TokenIds,
    image_size_in,
    load_pretrained,
    mean_patch,
    named_token_ids,
)
from bentos.captioner.search import search

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
        """What the tower's own `forward` does, but it attends eagerly."""
        from torch.nn.functional import scaled_dot_product_attention

        tower = model.vision_model
        hidden = tower.embeddings(pixel_values)
        for layer in tower.encoder.layers:
            attention = layer.self_attn
            mixed = attention.qkv(layer.layer_norm1(hidden))
            heads = mixed.unflatten(-1, (3, attention.num_heads, attention.head_dim))
            context = scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4))
            hidden = hidden + attention.projection(context.transpose(1, 2).flatten(2))
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        return tower.post_layernorm(hidden)

    def embed(self, states: "torch.Tensor") -> "torch.Tensor":
        return mean_patch(states)

    def text_logits(self, outputs: Any, length: int) -> "torch.Tensor":
        return outputs.logits[:, -length:]

    def decode(
        self, model: Any, states: "torch.Tensor", generation: "Generation", prompt: list[int]
    ) -> list[list[Hypothesis]]:
        steps = generation.num_beams * (generation.max_new_tokens - 1)  # the last is not heard
        decoder = BlipDecoder(model.text_decoder, states, slots=1 + len(prompt) + steps)
        return search(decoder, self.token_ids(model), generation, prompt)
