"""BLIP for captioning by ONNX Runtime, which on a CPU is faster than torch: graphs built from a
loaded model when it is loaded, so that a model folder needs nothing but its weights.

The weights stay torch's own memory; `MultiHeadAttention` is ONNX Runtime's fused operator.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from bentos.captioner.families.blip import Blip
from bentos.captioner.families.family import Hypothesis
from bentos.captioner.search import search

if TYPE_CHECKING:
    import torch

    from bentos.captioner.generation import Generation

Arrays = list[np.ndarray]


def can_run(model: Any) -> bool:
    """Whether the graphs know all that the model is made of."""
    return {model.config.vision_config.hidden_act, model.config.text_config.hidden_act} == {"gelu"}


class OnnxBlip(Blip):
    """The family for one model, or a `BareBlip`, whose weights don't change any more."""

    def __init__(self, model: Any) -> None:
        self._weights = model  # the graphs read its memory
        vision, text = model.config.vision_config, model.config.text_config
        patches = model.vision_model.embeddings.position_embedding.shape[1]
        self._vision = _vision(model.vision_model, vision, patches)
        self._seen = _seen(model.text_decoder, text, patches)
        self._text = _text(model.text_decoder, text)

    def see(self, model: Any, pixel_values: "torch.Tensor") -> "torch.Tensor":
        import torch

        [states] = self._vision.run(None, {"pixel_values": pixel_values.numpy()})
        return torch.from_numpy(states)

    def decode(
        self, model: Any, states: "torch.Tensor", generation: "Generation", prompt: list[int]
    ) -> list[list[Hypothesis]]:
        seen = self._seen.run(None, {"states": states.numpy()})
        return search(_Decoder(self._text, seen), self.token_ids(model), generation, prompt)


class _Decoder:
    """A `search.Decoder`. An image's branches are rows of one query: they share the keys and values
    of the image and of the prompt, and a mask hides from each what its sisters said."""

    def __init__(self, text: Any, seen: Arrays) -> None:
        self._text = text
        self._seen = seen
        n, heads, _, size = seen[0].shape
        self._said = [np.empty((n, heads, 0, size), np.float32) for _ in seen]
        self._position = 0
        self._mask: np.ndarray | None = None

    def begin(self, prompt: list[int]) -> "torch.Tensor":
        length = len(prompt)
        tokens = np.tile(np.array(prompt), (len(self._seen[0]), 1))
        past_only = np.triu(np.full((1, 1, length, length), -np.inf, np.float32), 1)
        return self._hear(tokens, length, past_only)[:, -1]

    def step(self, tokens: "torch.Tensor") -> "torch.Tensor":
        heard = self._said[0].shape[2] + tokens.shape[1]
        mask = self._mask[:, None] if self._mask is not None else np.zeros((1, 1, 1, heard), "f4")
        return self._hear(tokens.numpy(), 1, mask)

    def fork(self, parents: "torch.Tensor") -> None:
        n, branches = parents.shape
        if self._mask is None:
            self._mask = np.zeros((n, branches, self._said[0].shape[2]), np.float32)
        own = np.full((branches, branches), -np.inf, np.float32)
        np.fill_diagonal(own, 0)
        heard = np.take_along_axis(self._mask, parents.numpy()[..., None], 1)
        self._mask = np.concatenate([heard, np.broadcast_to(own, (n, *own.shape))], 2)

    def keep(self, rows: list[int]) -> None:
        places = [place for place, row in enumerate(rows) if row != place]
        moved = [rows[place] for place in places]
        for states in (*self._seen, *self._said):
            states[places] = states[moved]
        self._seen, self._said = (
            [states[: len(rows)] for states in group] for group in (self._seen, self._said)
        )
        if self._mask is not None:
            self._mask = self._mask[rows]

    def _hear(self, tokens: np.ndarray, positions: int, mask: np.ndarray) -> "torch.Tensor":
        import torch

        inputs = {
            "tokens": tokens,
            "positions": np.arange(self._position, self._position + positions),
            "mask": mask,
            **{f"seen.{i}": states for i, states in enumerate(self._seen)},
            **{f"said.{i}": states for i, states in enumerate(self._said)},
        }
        logits, *self._said = self._text.run(None, inputs)
        self._position += positions
        return torch.from_numpy(logits)


class _Graph:
    """An ONNX graph in the making; a value in it is known by its name."""

    def __init__(self, epsilon: float) -> None:
        self._epsilon = epsilon
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._weights: dict[str, np.ndarray] = {}

    def input(self, name: str, kind: type, shape: list[int | str]) -> str:
        from onnx import helper

        element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        self._inputs.append(helper.make_tensor_value_info(name, element, shape))
        return name

    def weight(self, parameter: "torch.Tensor") -> str:
        # The same memory, as tied embeddings have, is the same constant.
        name = f"weight.{parameter.data_ptr()}"
        self._weights[name] = parameter.detach().numpy()
        return name

    def shape(self, *sizes: int) -> str:
        return self.add("Constant", value_ints=sizes)

    def add(
        self, operator: str, *inputs: str, outputs: int = 1, domain: str = "", **how: Any
    ) -> Any:
        """The name of what an operator puts out, or names if it has several `outputs`."""
        from onnx import helper

        names = [f"{operator}.{len(self._nodes)}.{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, names, domain=domain, **how))
        return names[0] if outputs == 1 else names

    def linear(self, layer: Any, value: str) -> str:
        """Of [rows, d]."""
        weight, bias = self.weight(layer.weight), self.weight(layer.bias)
        return self.add("Gemm", value, weight, bias, transB=1)

    def norm(self, layer: Any, value: str) -> str:
        weight, bias = self.weight(layer.weight), self.weight(layer.bias)
        return self.add("LayerNormalization", value, weight, bias, epsilon=self._epsilon)

    def attend(self, *inputs: str, heads: int, outputs: int = 1) -> Any:
        return self.add(
            "MultiHeadAttention", *inputs, outputs=outputs, domain="com.microsoft", num_heads=heads
        )

    def session(self, outputs: list[str]) -> Any:
        """Runs the graph on the CPU, on as many threads as torch."""
        import onnxruntime
        import torch
        from onnx import TensorProto, helper

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        constants = []
        for name, array in self._weights.items():
            constant = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
            constant.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
            constant.external_data.add(key="location", value="given below")
            constants.append(constant)
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(a) for a in self._weights.values()]
        options.add_external_initializers(list(self._weights), values)
        results = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(self._nodes, "blip", self._inputs, results, constants)
        versions = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=versions, ir_version=10)
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def _vision(tower: Any, config: Any, count: int) -> Any:
    """pixel_values [n, 3, H, W] to image states [n, `count` = 1 + patches, d]."""
    graph = _Graph(config.layer_norm_eps)
    embeddings, side, width = tower.embeddings, config.image_size, config.hidden_size
    flat, whole = graph.shape(-1, width), graph.shape(-1, count, width)
    pixels = graph.input("pixel_values", np.float32, ["n", 3, side, side])
    kernel = embeddings.patch_embedding
    patches = graph.add(
        "Conv",
        pixels,
        graph.weight(kernel.weight),
        graph.weight(kernel.bias),
        strides=[config.patch_size] * 2,
    )
    patches = graph.add("Reshape", patches, graph.shape(0, width, -1))
    patches = graph.add("Transpose", patches, perm=[0, 2, 1])
    images = graph.add("Shape", pixels, start=0, end=1)
    shape = graph.add("Concat", images, graph.shape(1, width), axis=0)
    first = graph.add("Expand", graph.weight(embeddings.class_embedding), shape)
    hidden = graph.add("Concat", first, patches, axis=1)
    hidden = graph.add("Add", hidden, graph.weight(embeddings.position_embedding))
    hidden = graph.add("Reshape", hidden, flat)
    for layer in tower.encoder.layers:
        attention = layer.self_attn
        mixed = graph.linear(attention.qkv, graph.norm(layer.layer_norm1, hidden))
        parts = graph.add("Split", mixed, axis=1, num_outputs=3, outputs=3)
        parts = [graph.add("Reshape", part, whole) for part in parts]
        context = graph.attend(*parts, heads=config.num_attention_heads)
        context = graph.add("Reshape", context, flat)
        hidden = graph.add("Add", graph.linear(attention.projection, context), hidden)
        wide = graph.linear(layer.mlp.fc1, graph.norm(layer.layer_norm2, hidden))
        wide = graph.add("Gelu", wide)
        hidden = graph.add("Add", graph.linear(layer.mlp.fc2, wide), hidden)
    states = graph.add("Reshape", graph.norm(tower.post_layernorm, hidden), whole)
    return graph.session([states])


def _seen(text: Any, config: Any, count: int) -> Any:
    """Image states to each layer's keys and values of them, [n, heads, 1 + patches, head size]."""
    graph = _Graph(config.layer_norm_eps)
    states = graph.input("states", np.float32, ["n", count, config.encoder_hidden_size])
    states = graph.add("Reshape", states, graph.shape(-1, config.encoder_hidden_size))
    heads = config.num_attention_heads
    shape = graph.shape(-1, count, heads, config.hidden_size // heads)
    found = []
    for layer in text.bert.encoder.layer:
        for part in (layer.crossattention.self.key, layer.crossattention.self.value):
            split = graph.add("Reshape", graph.linear(part, states), shape)
            found.append(graph.add("Transpose", split, perm=[0, 2, 1, 3]))
    return graph.session(found)


def _text(text: Any, config: Any) -> Any:
    """Tokens [n, count] at positions [count] or [1], after those said before, to logits and to what
    has been said now; `mask` is added to the attention of tokens to tokens."""
    graph = _Graph(config.layer_norm_eps)
    heads, width = config.num_attention_heads, config.hidden_size
    tokens = graph.input("tokens", np.int64, ["n", "count"])
    positions = graph.input("positions", np.int64, ["places"])
    mask = graph.input("mask", np.float32, ["masks", 1, "masked", "all"])
    flat = graph.shape(-1, width)
    whole = graph.add("Concat", graph.add("Shape", tokens), graph.shape(width), axis=0)

    def spread(value: str) -> str:
        return graph.add("Reshape", value, whole)

    embeddings = text.bert.embeddings
    words = graph.add("Gather", graph.weight(embeddings.word_embeddings.weight), tokens)
    places = graph.add("Gather", graph.weight(embeddings.position_embeddings.weight), positions)
    hidden = graph.add("Reshape", graph.add("Add", words, places), flat)
    hidden = graph.norm(embeddings.LayerNorm, hidden)
    said = []
    for index, layer in enumerate(text.bert.encoder.layer):
        seen, before = (
            [
                graph.input(f"{name}.{i}", np.float32, ["n", heads, length, width // heads])
                for i in (2 * index, 2 * index + 1)
            ]
            for name, length in (("seen", "patches"), ("said", "before"))
        )
        own = layer.attention
        parts = [
            spread(graph.linear(p, hidden)) for p in (own.self.query, own.self.key, own.self.value)
        ]
        context, *now = graph.attend(*parts, "", "", mask, *before, heads=heads, outputs=3)
        said += now
        context = graph.linear(own.output.dense, graph.add("Reshape", context, flat))
        hidden = graph.norm(own.output.LayerNorm, graph.add("Add", context, hidden))
        crossing = layer.crossattention
        context = graph.attend(
            spread(graph.linear(crossing.self.query, hidden)), *seen, heads=heads
        )
        context = graph.linear(crossing.output.dense, graph.add("Reshape", context, flat))
        hidden = graph.norm(crossing.output.LayerNorm, graph.add("Add", context, hidden))
        wide = graph.add("Gelu", graph.linear(layer.intermediate.dense, hidden))
        narrow = graph.linear(layer.output.dense, wide)
        hidden = graph.norm(layer.output.LayerNorm, graph.add("Add", narrow, hidden))
    head = text.cls.predictions
    hidden = graph.add("Gelu", graph.linear(head.transform.dense, hidden))
    hidden = graph.linear(head.decoder, graph.norm(head.transform.LayerNorm, hidden))
    shape = graph.add("Concat", graph.add("Shape", tokens), graph.shape(config.vocab_size), axis=0)
    return graph.session([graph.add("Reshape", hidden, shape), *said])
