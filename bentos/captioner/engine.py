"""The engine: a model folder loaded for captions and embeddings; evaluation, drift and serving
all run this one, so what is measured is what is served."""

import json
import logging
import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bentos.captioner.decoding import prompt_tokens
from bentos.captioner.families.family import Family, Hypothesis
from bentos.captioner.families.registry import UnknownFamily, family_of, load_on
from bentos.captioner.generation import Generation
from bentos.captioner.images import normalize

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CARD_FILE = "captionloop.json"
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_LOADING = threading.Lock()
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


class BadModelFolder(ValueError):
    """The folder does not hold a model that the engine can load."""


class WrongImageSize(ValueError):
    """Pixels of another size than the model was made for."""


class TooManyTokens(ValueError):
    """A prompt and new tokens for which the model has no positions."""


@dataclass(frozen=True)
class Caption:
    """A caption; `log_probability` sums over its `num_tokens` tokens, the end included.

    Where several were asked for, `alternatives` are all of them, the best first: this one.
    """

    text: str
    log_probability: float
    num_tokens: int
    alternatives: "tuple[Caption, ...]" = ()


class Engine:
    """A captioner in memory, on its model's device. Not to be called by two threads at once."""

    def __init__(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        family: Family,
        mean: Sequence[float],
        std: Sequence[float],
        card: dict[str, Any],
    ) -> None:
        self.image_size = family.image_size(model.config.to_dict())
        self.card = card
        self._model = model
        self._family = family
        self._tokenizer = tokenizer
        self._mean, self._std = tuple(mean), tuple(std)

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto") -> "Engine":
        """Load a folder in Hugging Face layout, safetensors only; `auto`: a GPU if there is one.

        CAPTIONLOOP_THREADS (else the physical cores that this container may use) is set for the
        whole process. Raises BadModelFolder for what is wrong with the folder, not for a failing
        disk or memory.
        """
        import torch

        if not any(folder.glob("*.safetensors")):
            raise BadModelFolder(f"{folder} has no *.safetensors weights; pickles are not loaded.")
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise BadModelFolder(f"{folder} needs one of {', '.join(TOKENIZER_FILES)}.")
        preprocessor = _read_json(folder / "preprocessor_config.json")
        if preprocessor is None or not {"image_mean", "image_std"} <= preprocessor.keys():
            raise BadModelFolder(
                f"{folder} needs a preprocessor_config.json with image_mean and image_std."
            )
        torch.set_num_threads(_threads(torch.get_num_threads()))
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        family, model, tokenizer = _load_parts(folder, device)
        logger.info(
            "%s captions on %s in %s with %d CPU threads",
            *(folder, device, str(model.dtype).removeprefix("torch."), torch.get_num_threads()),
        )
        return cls(
            model,
            tokenizer,
            family=family,
            mean=preprocessor["image_mean"],
            std=preprocessor["image_std"],
            card=card_of(folder),
        )

    @property
    def device(self) -> str:
        """Where the model is, for people: `cpu`, or the GPU's name."""
        import torch

        on = self._model.device
        return torch.cuda.get_device_name(on) if on.type == "cuda" else str(on)

    def caption(self, pixels: np.ndarray, generation: Generation) -> list[Caption]:
        """Captions of uint8 [n, H, W, 3], H and W being `image_size`."""
        return self.run(pixels, generation)[0]

    def run(self, pixels: np.ndarray, generation: Generation) -> tuple[list[Caption], np.ndarray]:
        """Captions and embeddings of the same images by one pass of the vision tower.

        An embedding (float32 [n, d]) is the mean patch token of the tower's last hidden state.
        Raises WrongImageSize or TooManyTokens.
        """
        import torch

        prompt = self._prompt(generation)
        with torch.inference_mode():
            states = self._see(pixels)
            found = self._family.decode(self._model, states, generation, prompt)
            embeddings = self._family.embed(states).float().cpu().numpy()
        return [self._caption(hypotheses) for hypotheses in found], embeddings

    def _caption(self, hypotheses: list[Hypothesis]) -> Caption:
        """The best of them, the others beside it."""
        texts = self._tokenizer.batch_decode(
            [one.tokens for one in hypotheses], skip_special_tokens=True
        )
        captions = [
            Caption(text.strip(), one.log_probability, len(one.tokens))
            for text, one in zip(texts, hypotheses, strict=True)
        ]
        return replace(captions[0], alternatives=tuple(captions)) if captions[1:] else captions[0]

    def _prompt(self, generation: Generation) -> list[int]:
        prompt = prompt_tokens(self._tokenizer, generation.prompt)
        room = self._family.max_positions(self._model) - len(prompt)  # the last token needs none
        if generation.max_new_tokens > room:
            raise TooManyTokens(
                f"max_new_tokens is {generation.max_new_tokens}, but after a prompt of "
                f"{len(prompt)} tokens this model has room for {room}: ask for fewer."
            )
        return prompt

    def _see(self, pixels: np.ndarray) -> "torch.Tensor":
        size = self.image_size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (size, size, 3):
            wrong = WrongImageSize if pixels.dtype == np.uint8 and pixels.ndim == 4 else ValueError
            raise wrong(
                f"pixels must be uint8 [n, {size}, {size}, 3], "
                f"not {pixels.dtype} {list(pixels.shape)}; make them with images.to_pixels."
            )
        values = normalize(pixels, self._mean, self._std).to(self._model.device)
        return self._family.see(self._model, values)


def image_size_of(folder: Path) -> int:
    """The `image_size` that the folder's engine has, told without loading it.

    Raises BadModelFolder.
    """
    return _family(folder).image_size(_config(folder))


def card_of(folder: Path) -> dict[str, Any]:
    """What the folder says of its model: name, version, generation, …; nothing if it has no card.

    Raises BadModelFolder.
    """
    return _read_json(folder / CARD_FILE) or {}


def _threads(cores: int) -> int:
    """CAPTIONLOOP_THREADS, else as many of `cores` as the container's CPU quota pays for.

    Torch counts the machine's cores: more threads than the quota are stopped in the middle of each
    step, and the others wait for them.
    """
    if threads := int(os.environ.get("CAPTIONLOOP_THREADS", 0)):
        return threads
    if not _CPU_QUOTA.is_file():
        return cores
    quota, period = _CPU_QUOTA.read_text().split()  # of control groups, version 2
    return cores if quota == "max" else min(cores, math.ceil(int(quota) / int(period)))


def _config(folder: Path) -> dict[str, Any]:
    config = _read_json(folder / "config.json")
    if config is None:
        raise BadModelFolder(f"{folder} has no config.json.")
    return config


def _family(folder: Path) -> Family:
    try:
        return family_of(_config(folder).get("model_type"))
    except UnknownFamily as error:
        raise BadModelFolder(f"{folder} holds {error}") from error


def _load_parts(folder: Path, device: str) -> "tuple[Family, Any, PreTrainedTokenizerBase]":
    family = _family(folder)
    # Transformers is neither imported nor builds models safely on two threads at once: one loader's
    # meta device would leak into the other's weights.
    with _LOADING:
        from safetensors import SafetensorError
        from transformers import AutoTokenizer

        try:
            family, model, missing = load_on(device, family, folder)
            family.token_ids(model)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            if _is_the_machines(error):
                raise
            raise BadModelFolder(f"{folder} could not be loaded: {error}") from error
    if missing:
        raise BadModelFolder(f"{folder} lacks weights: {', '.join(missing[:3])}, …")
    return family, model, tokenizer


def _is_the_machines(error: Exception) -> bool:
    """Whether a disk or memory failed, so that the same folder may load another time."""
    if isinstance(error, OSError):
        return error.errno is not None  # Transformers' own OSErrors, of bad files, have none
    return "allocate memory" in str(error).lower()


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None if there is no such file."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadModelFolder(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadModelFolder(f"{path} must hold a JSON object.")
    return content
