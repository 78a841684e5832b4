"""The model to train: a tiny BLIP from random weights, or one of any family that the engine knows,
loaded in Hugging Face layout."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    PreTrainedTokenizerBase,
)

from bentos.captioner.families.family import Family
from bentos.captioner.families.registry import UnknownFamily, family_of
from configs.schema import ModelConfig, TinyBlipConfig
from tasks.training import tokenizer as wordpiece
from tasks.training.errors import BaseModelError, ImageSizeMismatch, SettingsMismatch


class Parts(NamedTuple):
    """What a model folder holds; the annotations of a family's models hide what they are."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    processor: BlipImageProcessorPil
    family: Family


SCRATCH = "scratch"
_MAX_POSITIONS = 128
# Measured on the demo world: with BERT's 0.02 the tiny model learns far slower, and without
# position embeddings that say "same row" and "same column" it never learns left and above.
_INITIALIZER_RANGE = 0.06
_PATCH_STD = 0.02
_POSITION_STD = 0.7


def build(config: ModelConfig, train_captions: Sequence[str], image_size: int, seed: int) -> Parts:
    """The model, its tokenizer and its image processor, on the CPU in float32.

    `scratch` makes all three from `config.tiny`, the captions and the seed; any other base is
    loaded and keeps its own tokenizer and image size. Raises a TrainingError.
    """
    if config.base == SCRATCH:
        return _from_scratch(config.tiny, train_captions, image_size, seed)
    parts = _load(config.base)
    needed = _image_size(parts.family, parts.model)
    if needed != image_size:
        raise ImageSizeMismatch(
            f"model.base {config.base!r} takes images of {needed} pixels, but the dataset was "
            f"prepared with data.image_size {image_size}: set data.image_size to {needed}."
        )
    return parts


def save(parts: Parts, folder: Path) -> None:
    """Write config, safetensors, generation settings, tokenizer and preprocessor to `folder`."""
    model, tokenizer, processor, _ = parts
    model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # written for their owner alone; a service may run as another
    wordpiece.save(tokenizer, folder)
    processor.save_pretrained(folder)


def _from_scratch(
    tiny: TinyBlipConfig, captions: Sequence[str], image_size: int, seed: int
) -> Parts:
    _check_shapes(tiny, image_size)
    tokenizer = wordpiece.learn(captions, tiny.vocab_size)
    torch.manual_seed(seed)
    model = BlipForConditionalGeneration(_tiny_config(tiny, tokenizer, image_size))
    _initialise_vision(model, image_size // tiny.patch_size, seed)
    processor = BlipImageProcessorPil(size={"height": image_size, "width": image_size})
    return Parts(model, tokenizer, processor, family_of(model.config.model_type))


def _check_shapes(tiny: TinyBlipConfig, image_size: int) -> None:
    if image_size % tiny.patch_size:
        raise SettingsMismatch(
            f"data.image_size {image_size} is no multiple of model.tiny.patch_size "
            f"{tiny.patch_size}: change one of them."
        )
    for key in ("vision_width", "text_width"):
        if (width := getattr(tiny, key)) % tiny.heads:
            raise SettingsMismatch(
                f"model.tiny.{key} {width} is no multiple of model.tiny.heads {tiny.heads}: "
                "change one of them."
            )


def _tiny_config(
    tiny: TinyBlipConfig, tokenizer: PreTrainedTokenizerBase, image_size: int
) -> BlipConfig:
    shared = {"num_attention_heads": tiny.heads, "initializer_range": _INITIALIZER_RANGE}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": tiny.text_width,
        "intermediate_size": 4 * tiny.text_width,
        "num_hidden_layers": tiny.text_layers,
        "max_position_embeddings": _MAX_POSITIONS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": tiny.vision_width,
        "intermediate_size": 4 * tiny.vision_width,
        "num_hidden_layers": tiny.vision_layers,
        "image_size": image_size,
        "patch_size": tiny.patch_size,
    }
    return BlipConfig(text_config=text | shared, vision_config=vision | shared)


def _initialise_vision(model: BlipForConditionalGeneration, side: int, seed: int) -> None:
    """Small patch weights; position embeddings [1, 1 + side · side, d] of row plus column."""
    generator = torch.Generator().manual_seed(seed)
    weight = model.get_parameter("vision_model.embeddings.patch_embedding.weight")
    position = model.get_parameter("vision_model.embeddings.position_embedding")
    width = position.shape[-1]
    rows = torch.randn(side, 1, width, generator=generator)
    columns = torch.randn(1, side, width, generator=generator)
    with torch.no_grad():
        weight.normal_(std=_PATCH_STD, generator=generator)
        position[:, 1:] = _POSITION_STD * (rows + columns).reshape(1, side * side, width)


def _load(base: str) -> Parts:
    family = _family(base)
    try:
        model, missing = family.load(base)
        family.token_ids(model)
        tokenizer = AutoTokenizer.from_pretrained(base)
        processor = BlipImageProcessorPil.from_pretrained(base)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _cannot_load(base, str(error)) from error
    if missing:
        lacking = ", ".join(missing[:3])
        raise _cannot_load(base, f"its safetensors lack weights of a captioner: {lacking}, …")
    size = _image_size(family, model)
    # Some say one side and a crop, which comes to the same: our own preprocessing makes a square.
    if set(dict(processor.size).values()) != {size}:
        raise _cannot_load(
            base, f"its preprocessor_config.json says {dict(processor.size)}, its model {size}"
        )
    square = {"height": size, "width": size}
    mean, std = processor.image_mean, processor.image_std
    processor = BlipImageProcessorPil(size=square, image_mean=mean, image_std=std)
    return Parts(model, tokenizer, processor, family)


def _image_size(family: Family, model: Any) -> int:
    return family.image_size(model.config.to_dict())


def _family(base: str) -> Family:
    """Refuses what no family knows before its weights are fetched."""
    try:
        config = AutoConfig.from_pretrained(base)
        return family_of(config.model_type)
    except UnknownFamily as error:
        raise _cannot_load(base, f"it is {error}") from error
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise _cannot_load(base, str(error)) from error


def _cannot_load(base: str, reason: str) -> BaseModelError:
    return BaseModelError(
        f"model.base {base!r} cannot be loaded: {' '.join(reason.split())}. Give `scratch`, a hub "
        "id such as Salesforce/blip-image-captioning-base that this machine can reach, or a "
        "local folder in that layout with model.safetensors."
    )
