"""BLIP attends eagerly in transformers; here by torch's fused attention, with the same results.

A model keeps its parameters and their names, so what it saves is what it would have saved.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import BlipForConditionalGeneration
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

Attended = tuple[torch.Tensor, Any]  # where the weights would be is None: no layer looks at them


def use_sdpa(model: torch.nn.Module) -> None:
    """Let a BLIP attend by fused kernels from now on; a model of another family stays as it is.

    It can no longer tell its attention weights (`output_attentions`).
    """
    if not isinstance(model, BlipForConditionalGeneration):
        return
    for module in model.modules():
        # The class and not a method of the instance: a copy must attend by its own parameters.
        if type(module) is BlipAttention:
            module.__class__ = FusedVisionAttention
        elif type(module) is BlipTextSelfAttention:
            module.__class__ = FusedTextAttention
    # Masks come as fused kernels want them: none where all is attended to or only the past is.
    model.text_decoder.config._attn_implementation = "sdpa"


class FusedVisionAttention(BlipAttention):
    """Each patch attends to all."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> Attended:
        mixed = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        context = scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=self.dropout.p if self.training else 0.0,
            scale=self.scale,
        )
        return self.projection(context.transpose(1, 2).flatten(2)), None


class FusedTextAttention(BlipTextSelfAttention):
    """Tokens attend to those before them, or (cross-attention) to all patches."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **_: Any,
    ) -> Attended:
        crosses = encoder_hidden_states is not None
        mask = encoder_attention_mask if crosses else attention_mask
        query = self._heads(self.query(hidden_states))
        key, value = self._keys_and_values(hidden_states, encoder_hidden_states, past_key_values)
        context = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout.p if self.training else 0.0,
            # The last token of a cache attends to all before it: it needs no mask at all.
            is_causal=mask is None and not crosses and query.shape[2] > 1,
        )
        return context.transpose(1, 2).flatten(2), None

    def _keys_and_values(
        self, hidden: torch.Tensor, image: torch.Tensor | None, past: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[n, heads, length, head size] each, with those of the tokens before in the cache."""
        cache: Any = past
        if isinstance(past, EncoderDecoderCache):
            cache = past.self_attention_cache if image is None else past.cross_attention_cache
            if image is not None and past.is_updated.get(self.layer_idx):
                return cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
        states = hidden if image is None else image
        key, value = self._heads(self.key(states)), self._heads(self.value(states))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
            if image is not None and isinstance(past, EncoderDecoderCache):
                past.is_updated[self.layer_idx] = True
        return key, value

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        """[n, length, d] to [n, heads, length, head size]."""
        return states.unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2)
