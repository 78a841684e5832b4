"""A tiny BLIP with random weights, and pictures to show it."""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from bentos.captioner.models import ServedModel

IMAGE_SIZE = 72
WORDS = ["a", "an", "the", "red", "green", "blue", "circle", "square", "star", "above"]
WORDS += ["left", "of", "right", "on", "dark", "bright", "small"]
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def save_tiny_blip(
    folder: Path, *, seed: int, version: str, image_size: int = IMAGE_SIZE, width: int = 32
) -> Path:
    """A model folder in the layout that training leaves, with weights drawn from `seed`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
    )

    folder.mkdir(parents=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    vocabulary = {word: index for index, word in enumerate(special + WORDS)}
    core = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    BertTokenizerFast(tokenizer_object=core, bos_token="[DEC]").save_pretrained(folder)

    layer = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2}
    layer |= {"intermediate_size": 2 * width, "initializer_range": 0.5}
    ids = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        text_config={
            **layer,
            **ids,
            "vocab_size": len(vocabulary),
            "encoder_hidden_size": width,
            "max_position_embeddings": 64,
        },
        vision_config={**layer, "image_size": image_size, "patch_size": 24},
        initializer_range=0.5,
    )
    torch.manual_seed(seed)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": image_size, "width": image_size}
    preprocessor = {"image_mean": MEAN, "image_std": STD, "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    card = {
        "name": "tiny",
        "version": version,
        "dataset_digest": "0" * 64,
        "git_commit": "0" * 40,
        "generation": {"max_new_tokens": 8, "num_beams": 1},
    }
    (folder / "captionloop.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="session")
def make_tiny_blip() -> Callable[..., Path]:
    return save_tiny_blip


@pytest.fixture(scope="session")
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_blip(tmp_path_factory.mktemp("tiny") / "model", seed=0, version="7")


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    def draw(seed: int, width: int = IMAGE_SIZE, height: int = IMAGE_SIZE) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)

    return draw


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    return encoded


@pytest.fixture(scope="session")
def model(tiny_blip: Path) -> "ServedModel":
    from bentos.captioner.models import load_model

    return load_model(tiny_blip, source="test")


@pytest.fixture(scope="session")
def png(picture, encode) -> Callable[[int], bytes]:
    return lambda seed: encode(picture(seed, 90, 60))


@pytest.fixture(scope="session")
def bento_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """BentoML reads this once a process, so whoever set it first is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_DO_NOT_TRACK", "True")
        if "BENTOML_HOME" not in os.environ:
            patch.setenv("BENTOML_HOME", str(tmp_path_factory.mktemp("bentoml")))
        import bentoml

        bentoml.models.list()
        yield


@pytest.fixture(scope="session")
def golden_folder(tiny_blip: Path, tmp_path_factory: pytest.TempPathFactory, picture) -> Path:
    from bentos.captioner.engine import Engine
    from bentos.captioner.generation import Generation
    from bentos.captioner.golden import write_golden
    from bentos.captioner.images import to_pixels

    folder = shutil.copytree(tiny_blip, tmp_path_factory.mktemp("golden") / "model")
    engine = Engine.load(folder, device="cpu")
    pixels = [to_pixels(picture(seed), 72) for seed in range(3)]
    captions = [engine.caption(one[np.newaxis], Generation(8))[0].text for one in pixels]
    write_golden(folder, pixels, captions)
    return folder


@pytest.fixture(scope="session")
def tag(bento_home: None, golden_folder: Path) -> str:
    """A Bento, built once."""
    from bentos import packaging

    return packaging.build(
        golden_folder, labels={"model_name": "tiny-model", "model_version": "12"}
    )
