"""What a family of image-to-text models must know for the engine and for training."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch

    from bentos.captioner.generation import Generation


class TokenIds(NamedTuple):
    """A model's own start, end and padding; the tokenizer's may differ ([CLS] starts there)."""

    start: int
    end: int
    padding: int


class BadTokenIds(ValueError):
    """A model's config names a start, end or padding that is no token of its."""


class Hypothesis(NamedTuple):
    """A caption's tokens, its end too if it came, and the sum of their log-probabilities."""

    tokens: list[int]
    log_probability: float


class Family(Protocol):
    """Models are called by `pixel_values`, `input_ids` and `attention_mask`; labels stay outside.

    The models' annotations hide their own configs and parts, so a model is Any here.
    """

    model_type: str  # as config.json has it
    lora_targets: tuple[str, ...]  # ends of the names of the linear layers that adapters go beside

    def load(self, place: str | Path, *, local_files_only: bool = False) -> tuple[Any, list[str]]:
        """The model of a hub id or folder, on the CPU in float32, and the weights it lacked.

        Safetensors only. Raises what transformers raises.
        """

    def image_size(self, config: dict[str, Any]) -> int:
        """Pixels a side, read off the content of a config.json, which leaves out defaults."""

    def token_ids(self, model: Any) -> TokenIds:
        """Raises BadTokenIds."""

    def max_positions(self, model: Any) -> int:
        """The most tokens of text, start and end included."""

    def vision(self, model: Any) -> "torch.nn.Module":
        """The part that sees."""

    def see(self, model: Any, pixel_values: "torch.Tensor") -> "torch.Tensor":
        """float32 [n, 3, H, W] to image states [n, 1 + patches, d]."""

    def embed(self, states: "torch.Tensor") -> "torch.Tensor":
        """Image states to embeddings [n, d]."""

    def text_logits(self, outputs: Any, length: int) -> "torch.Tensor":
        """[n, length, vocabulary] of what the model put out; those at t predict token t + 1."""

    def decode(
        self, model: Any, states: "torch.Tensor", generation: "Generation", prompt: list[int]
    ) -> list[list[Hypothesis]]:
        """`num_captions` captions of each image, the best first, without start and `prompt`."""


def load_pretrained(
    kind: Any, place: str | Path, *, local_files_only: bool
) -> tuple[Any, list[str]]:
    """`Family.load` by a class of transformers."""
    import torch

    model, info = kind.from_pretrained(
        place,
        use_safetensors=True,
        local_files_only=local_files_only,
        dtype=torch.float32,
        output_loading_info=True,
    )
    return model, sorted(info["missing_keys"])


def image_size_in(config: dict[str, Any], default: int) -> int:
    return int((config.get("vision_config") or {}).get("image_size", default))


def named_token_ids(config: Any, start: str, end: str, padding: str) -> TokenIds:
    """Three attributes of a config. Raises BadTokenIds."""
    ids = {key: getattr(config, key) for key in (start, end, padding)}
    for key, value in ids.items():
        if not isinstance(value, int) or not 0 <= value < config.vocab_size:
            raise BadTokenIds(
                f"its {config.model_type} config's {key} is {value}, no token of its "
                f"{config.vocab_size}: correct its config.json."
            )
    return TokenIds(*ids.values())


def mean_patch(states: "torch.Tensor") -> "torch.Tensor":
    """The mean of the patch tokens; the class token comes first."""
    return states[:, 1:].mean(dim=1)
