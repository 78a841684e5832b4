"""From a prepared split to batches: seeded draws of (image, reference), tokens and pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from bentos.captioner.images import normalize
from tasks.data.prepared import Pixels, Split
from tasks.training.errors import SettingsMismatch
from tasks.training.model import Parts, TokenIds, text_config, token_ids

IGNORED = -100
Draw = tuple[int, int]


def draw(
    sources: Sequence[str],
    num_references: Sequence[int],
    *,
    count: int,
    feedback_share: float,
    seed: int,
) -> np.ndarray:
    """int64 [count, 2] of (row, reference), the whole training run in order.

    Each source goes through all its rows in a new random order before one comes again, and every
    row's reference is drawn anew. Where some rows are corrected requests and some are not,
    a draw is one of the former with probability `feedback_share`.
    """
    rng = np.random.default_rng(seed)
    corrected = np.array([source == "feedback" for source in sources])
    share = feedback_share if corrected.any() and not corrected.all() else float(corrected.all())
    is_corrected = rng.random(count) < share
    rows = np.empty(count, dtype=np.int64)
    for kind in (False, True):
        places = np.flatnonzero(is_corrected == kind)
        rows[places] = _rounds(np.flatnonzero(corrected == kind), len(places), rng)
    references = (rng.random(count) * np.asarray(num_references)[rows]).astype(np.int64)
    return np.stack([rows, references], axis=1)


def _rounds(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of `rows`, shuffled anew each time round."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    rounds = -(-count // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:count]


class Draws:
    """The map-style dataset that the Trainer walks through once; the collator fetches the bytes."""

    def __init__(self, draws: np.ndarray) -> None:
        self._draws = draws

    def __len__(self) -> int:
        return len(self._draws)

    def __getitem__(self, index: int) -> Draw:
        row, reference = self._draws[index]
        return int(row), int(reference)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    ids: TokenIds,
    captions: Sequence[str],
    *,
    max_tokens: int,
) -> list[list[int]]:
    """Token ids of each caption: start, at most `max_tokens` - 2 pieces, end.

    The start is the model's own bos ([DEC]) and not the tokenizer's [CLS], since generation starts
    there; the end is the sep that stops it. Unknown characters are dropped, or the model
    would learn to say [UNK].
    """
    if not captions:
        return []
    pieces = tokenizer(list(captions), add_special_tokens=False).input_ids
    unknown = tokenizer.unk_token_id
    kept = ([token for token in piece if token != unknown][: max_tokens - 2] for piece in pieces)
    return [[ids.start, *piece, ids.end] for piece in kept]


@dataclass(frozen=True)
class Collator:
    """Batches of a split as BLIP takes them.

    `pixel_values` float32 [n, 3, H, W]; `input_ids`, `attention_mask`, `labels` int64 [n, longest].
    Labels repeat the ids (the model shifts them itself) with padding at -100.
    """

    pixels: Pixels
    tokens: list[list[list[int]]]
    padding: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, split: Split, parts: Parts, *, max_tokens: int) -> Self:
        """All captions are tokenized here, once."""
        model, tokenizer, processor = parts
        if max_tokens > (positions := text_config(model).max_position_embeddings):
            raise SettingsMismatch(
                f"finetune.max_caption_tokens {max_tokens} is more than the model's "
                f"{positions} positions: lower it."
            )
        ids = token_ids(model)
        flat = [reference for references in split.references for reference in references]
        encoded = iter(encode(tokenizer, ids, flat, max_tokens=max_tokens))
        tokens = [[next(encoded) for _ in references] for references in split.references]
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
        return cls(split.pixels, tokens, ids.padding, mean, std)

    def __call__(self, draws: Sequence[Draw]) -> dict[str, torch.Tensor]:
        import torch

        ids = [torch.tensor(self.tokens[row][reference]) for row, reference in draws]
        input_ids = torch.nn.utils.rnn.pad_sequence(
            ids, batch_first=True, padding_value=self.padding
        )
        lengths = torch.tensor([len(tokens) for tokens in ids])
        real = torch.arange(input_ids.shape[1]) < lengths[:, None]
        return {
            "pixel_values": normalize(self.pixels[[row for row, _ in draws]], self.mean, self.std),
            "input_ids": input_ids,
            "attention_mask": real.long(),
            "labels": input_ids.masked_fill(~real, IGNORED),
        }
