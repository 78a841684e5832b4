"""BLIP's weights without its modules: ONNX Runtime needs nothing else, and transformers' models
take 4 s to import, for which a server that starts again would keep everybody waiting."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Weights:
    """Weights by their names in the file, reached like parts of the model that they belong to."""

    def __init__(self, tensors: "dict[str, torch.Tensor]", name: str) -> None:
        self._tensors = tensors
        self._name = name

    def __getattr__(self, part: str) -> Any:
        name = f"{self._name}.{part}"
        return self._tensors.get(name, Weights(self._tensors, name))

    def __iter__(self) -> Iterator["Weights"]:
        start = len(self._name) + 1
        for index in sorted(
            {
                int(name[start:].partition(".")[0])
                for name in self._tensors
                if name.startswith(f"{self._name}.")
            }
        ):
            yield getattr(self, str(index))


@dataclass(frozen=True)
class BareBlip:
    """What `OnnxBlip` needs of a model."""

    config: Any
    vision_model: Weights
    text_decoder: Weights
    device: "torch.device"
    dtype: "torch.dtype"


def read(folder: Path) -> BareBlip | None:
    """The folder's model, or None if it holds other than what `save_pretrained` writes of one in
    float32 whose decoder shares the embeddings: transformers knows what to make of the others, and
    what to say. Raises what transformers and safetensors raise of files they can't read."""
    import torch
    from safetensors.torch import load_file
    from transformers import BlipConfig

    file = folder / "model.safetensors"
    if not file.is_file():
        return None
    config = BlipConfig.from_pretrained(folder, local_files_only=True)
    tensors = load_file(file)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes(config) or {tensor.dtype for tensor in tensors.values()} != {torch.float32}:
        return None
    # The file may change, and its numbers lie anywhere in it; copies are aligned for the processor.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    head, words = "text_decoder.cls.predictions", "text_decoder.bert.embeddings.word_embeddings"
    tensors[f"{head}.decoder.weight"] = tensors[f"{words}.weight"]
    tensors[f"{head}.decoder.bias"] = tensors[f"{head}.bias"]
    vision, text = Weights(tensors, "vision_model"), Weights(tensors, "text_decoder")
    return BareBlip(config, vision, text, torch.device("cpu"), torch.float32)


def shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """The weights that `save_pretrained` writes; none if the decoder has embeddings of its own."""
    vision, text = config.vision_config, config.text_config
    if not (config.tie_word_embeddings and text.tie_word_embeddings):
        return {}
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, into: int, out: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (out, into), (out,)

    def norm(name: str, size: int) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (size,)

    width, patch = vision.hidden_size, vision.patch_size
    where = "vision_model.embeddings"
    found[f"{where}.class_embedding"] = (1, 1, width)
    found[f"{where}.position_embedding"] = (1, (vision.image_size // patch) ** 2 + 1, width)
    found[f"{where}.patch_embedding.weight"] = (width, 3, patch, patch)
    found[f"{where}.patch_embedding.bias"] = (width,)
    for index in range(vision.num_hidden_layers):
        where = f"vision_model.encoder.layers.{index}"
        norm(f"{where}.layer_norm1", width)
        norm(f"{where}.layer_norm2", width)
        linear(f"{where}.self_attn.qkv", width, 3 * width)
        linear(f"{where}.self_attn.projection", width, width)
        linear(f"{where}.mlp.fc1", width, vision.intermediate_size)
        linear(f"{where}.mlp.fc2", vision.intermediate_size, width)
    norm("vision_model.post_layernorm", width)

    size = text.hidden_size
    where = "text_decoder.bert.embeddings"
    found[f"{where}.word_embeddings.weight"] = (text.vocab_size, size)
    found[f"{where}.position_embeddings.weight"] = (text.max_position_embeddings, size)
    norm(f"{where}.LayerNorm", size)
    for index in range(text.num_hidden_layers):
        where = f"text_decoder.bert.encoder.layer.{index}"
        for attention, source in (
            ("attention", size),
            ("crossattention", text.encoder_hidden_size),
        ):
            linear(f"{where}.{attention}.self.query", size, size)
            linear(f"{where}.{attention}.self.key", source, size)
            linear(f"{where}.{attention}.self.value", source, size)
            linear(f"{where}.{attention}.output.dense", size, size)
            norm(f"{where}.{attention}.output.LayerNorm", size)
        linear(f"{where}.intermediate.dense", size, text.intermediate_size)
        linear(f"{where}.output.dense", text.intermediate_size, size)
        norm(f"{where}.output.LayerNorm", size)
    where = "text_decoder.cls.predictions"
    found[f"{where}.bias"] = (text.vocab_size,)
    linear(f"{where}.transform.dense", size, size)
    norm(f"{where}.transform.LayerNorm", size)
    return found
