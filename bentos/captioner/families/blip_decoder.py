"""BLIP's text decoder for captioning: the model's own layers by fused attention, with the keys and
values that they attend to kept from step to step."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class BlipDecoder:
    """A `search.Decoder`. An image's branches are rows of one query: they share the keys and values
    of the image and of the prompt, and a mask hides from each what its sisters said."""

    def __init__(self, text: Any, states: "torch.Tensor", *, slots: int) -> None:
        """`slots` is how many tokens an image may have in all its branches, the prompt included."""
        import torch

        self._layers = [_Layer(layer, states, slots) for layer in text.bert.encoder.layer]
        self._words = text.bert.embeddings.word_embeddings
        self._positions = text.bert.embeddings.position_embeddings.weight
        self._norm = _direct(text.bert.embeddings.LayerNorm)
        head = text.cls.predictions
        self._head = (
            _direct(head.transform.dense),
            head.transform.transform_act_fn,
            _direct(head.transform.LayerNorm),
            _direct(head.decoder),
        )
        self._tokens = partial(torch.tensor, device=states.device)
        self._images, self._slots = len(states), slots
        self._used = self._position = 0
        self._mask: torch.Tensor | None = None

    def begin(self, prompt: list[int]) -> "torch.Tensor":
        tokens = self._tokens([prompt]).expand(self._images, -1)
        return self._logits(self._hear(tokens, len(prompt))[:, -1])

    def step(self, tokens: "torch.Tensor") -> "torch.Tensor":
        return self._logits(self._hear(tokens, 1))

    def fork(self, parents: "torch.Tensor") -> None:
        if self._mask is None:
            shape = (*parents.shape, self._slots)
            self._mask = self._positions.new_full(shape, -float("inf"))
            self._mask[:, :, : self._used] = 0
        self._mask = self._mask.take_along_dim(parents[..., None], 1)
        new = self._mask[:, :, self._used : self._used + parents.shape[1]]
        new.diagonal(dim1=1, dim2=2).zero_()

    def keep(self, rows: list[int]) -> None:
        places = [place for place, row in enumerate(rows) if row != place]
        if places:
            moved = [rows[place] for place in places]
            for layer in self._layers:
                layer.move(moved, places)
        if self._mask is not None:
            self._mask = self._mask[rows]
        self._images = len(rows)

    def _hear(self, tokens: "torch.Tensor", positions: int) -> "torch.Tensor":
        """The last hidden states of tokens at the next positions, [n, tokens, d]."""
        last = self._used + tokens.shape[1]
        places = self._positions[self._position : self._position + positions]
        mask = None if self._mask is None else self._mask[:, None, :, :last]
        hidden = self._norm(self._words(tokens) + places)
        for layer in self._layers:
            hidden = layer.hear(hidden, self._used, mask)
        self._used, self._position = last, self._position + positions
        return hidden

    def _logits(self, hidden: "torch.Tensor") -> "torch.Tensor":
        for part in self._head:
            hidden = part(hidden)
        return hidden


class _Layer:
    """A layer, what it sees of each image, and what it has heard."""

    def __init__(self, layer: Any, states: "torch.Tensor", slots: int) -> None:
        own, crossing = layer.attention, layer.crossattention
        self._head_size = own.self.attention_head_size
        self._own = [_direct(part) for part in (own.self.query, own.self.key, own.self.value)]
        self._own_dense = _direct(own.output.dense)
        self._own_norm = _direct(own.output.LayerNorm)
        self._crossing = _direct(crossing.self.query)
        self._crossing_dense = _direct(crossing.output.dense)
        self._crossing_norm = _direct(crossing.output.LayerNorm)
        self._wide = _direct(layer.intermediate.dense)
        self._activation = layer.intermediate.intermediate_act_fn
        self._narrow = _direct(layer.output.dense)
        self._norm = _direct(layer.output.LayerNorm)
        self._seen = [
            self._heads(part(states)) for part in (crossing.self.key, crossing.self.value)
        ]
        n, heads, _, size = self._seen[0].shape
        self._heard = [seen.new_empty(n, heads, slots, size) for seen in self._seen]

    def hear(
        self, hidden: "torch.Tensor", used: int, mask: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """[n, tokens, d] after `used` tokens before; they see each other as `mask` says, and if
        they are the first each sees those before it."""
        from torch.nn.functional import scaled_dot_product_attention

        n, count, _ = hidden.shape
        query, *new = [self._heads(part(hidden)) for part in self._own]
        for heard, one in zip(self._heard, new, strict=True):
            heard[:n, :, used : used + count] = one
        keys, values = (heard[:n, :, : used + count] for heard in self._heard)
        context = scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=used == 0
        )
        hidden = self._own_norm(self._own_dense(context.transpose(1, 2).flatten(2)) + hidden)
        query = self._heads(self._crossing(hidden))
        keys, values = (seen[:n] for seen in self._seen)
        context = scaled_dot_product_attention(query, keys, values)
        context = context.transpose(1, 2).flatten(2)
        hidden = self._crossing_norm(self._crossing_dense(context) + hidden)
        return self._norm(self._narrow(self._activation(self._wide(hidden))) + hidden)

    def move(self, rows: list[int], places: list[int]) -> None:
        """Let images take the places of others."""
        for states in (*self._seen, *self._heard):
            states[places] = states[rows]

    def _heads(self, states: "torch.Tensor") -> "torch.Tensor":
        """[n, length, d] to [n, heads, length, head size]."""
        return states.view(*states.shape[:2], -1, self._head_size).transpose(1, 2)


def _direct(module: Any) -> Callable[["torch.Tensor"], "torch.Tensor"]:
    """A layer without what a module does around it, which takes a small model as long as its
    product does; a layer with adapters stays the module that it is."""
    from torch import nn
    from torch.nn.functional import layer_norm, linear

    if type(module) is nn.Linear:
        return partial(linear, weight=module.weight, bias=module.bias)
    if type(module) is nn.LayerNorm:
        shape, weight, bias = module.normalized_shape, module.weight, module.bias
        return partial(layer_norm, normalized_shape=shape, weight=weight, bias=bias, eps=module.eps)
    return module
