"""From a prepared split to batches: seeded draws of (image, reference), tokens and pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from bentos.captioner.decoding import prompt_tokens
from bentos.captioner.families.family import TokenIds
from configs.schema import FinetuneConfig
from tasks.data.prepared import Pixels, Split
from tasks.training import augment
from tasks.training.errors import SettingsMismatch
from tasks.training.model import Parts

IGNORED = -100
# Batches are of like lengths within so many: enough for little padding, and still random.
_BUCKET_BATCHES = 32


class Draw(NamedTuple):
    """The `place`-th image of the run: a row of the split and one of its references."""

    place: int
    row: int
    reference: int


def num_steps(split: Split, settings: FinetuneConfig) -> int:
    """Optimizer steps of the run."""
    if settings.epochs is None:
        return settings.max_steps
    images = len(split) if settings.references == "random" else sum(map(len, split.references))
    return max(1, round(settings.epochs * images / settings.batch_size))


def draw(
    sources: Sequence[str],
    num_references: Sequence[int],
    *,
    count: int,
    feedback_share: float,
    seed: int,
    references: str = "random",
) -> np.ndarray:
    """int64 [count, 2] of (row, reference), the whole training run in order.

    Each source goes through all its rows in a new random order before one comes again, with a
    reference drawn anew; or through all its references (`all`). Where some rows are corrected
    requests and some are not, a draw is one of the former with probability `feedback_share`.
    """
    rng = np.random.default_rng(seed)
    corrected = np.array([source == "feedback" for source in sources])
    share = feedback_share if corrected.any() and not corrected.all() else float(corrected.all())
    is_corrected = rng.random(count) < share
    counts = np.asarray(num_references)
    draws = np.empty((count, 2), dtype=np.int64)
    for kind in (False, True):
        places, rows = np.flatnonzero(is_corrected == kind), np.flatnonzero(corrected == kind)
        if references == "all":
            draws[places] = _rounds(_pairs(rows, counts), len(places), rng)
            continue
        drawn = _rounds(rows, len(places), rng)
        chosen = (rng.random(len(places)) * counts[drawn]).astype(np.int64)
        draws[places] = np.stack([drawn, chosen], axis=1)
    return draws


def _pairs(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """All (row, reference) of some rows."""
    chosen = [np.stack([np.full(counts[row], row), np.arange(counts[row])], 1) for row in rows]
    return np.concatenate([np.empty((0, 2), np.int64), *chosen])


def _rounds(items: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of `items`, shuffled anew each time round."""
    if count == 0:
        return items[:0]
    rounds = -(-count // len(items))
    return np.concatenate([rng.permutation(items) for _ in range(rounds)])[:count]


def bucketed(draws: np.ndarray, lengths: np.ndarray, batch_size: int, seed: int) -> np.ndarray:
    """The draws with those of like `lengths` in one batch, so that there is little padding.

    Sorted among 32 batches at a time, whose order is then random again. Within a batch the order
    is by length, so parts of it are padded little too.
    """
    rng = np.random.default_rng(seed)
    window = _BUCKET_BATCHES * batch_size
    parts = []
    for start in range(0, len(draws), window):
        order = np.argsort(lengths[start : start + window], kind="stable")
        batches = draws[start : start + window][order]
        batches = batches.reshape(-1, batch_size, 2)
        parts.append(rng.permutation(batches).reshape(-1, 2))
    return np.concatenate(parts)


class Draws:
    """The map-style dataset that the Trainer walks through once; the collator fetches the bytes."""

    def __init__(self, draws: np.ndarray) -> None:
        self._draws = draws

    def __len__(self) -> int:
        return len(self._draws)

    def __getitem__(self, index: int) -> Draw:
        row, reference = self._draws[index]
        return Draw(index, int(row), int(reference))


def encode(
    tokenizer: PreTrainedTokenizerBase,
    ids: TokenIds,
    captions: Sequence[str],
    *,
    max_tokens: int,
    prompt: str = "",
) -> list[list[int]]:
    """Token ids of each caption: start, the prompt, pieces, end; at most `max_tokens` of them.

    The start is the model's own bos (BLIP's [DEC]) and not the tokenizer's [CLS], since generation
    starts there; the end is what stops it. Unknown characters are dropped, or the model would learn
    to say [UNK].
    """
    if not captions:
        return []
    unknown = tokenizer.unk_token_id
    begin = [ids.start, *prompt_tokens(tokenizer, prompt)]
    pieces = tokenizer(list(captions), add_special_tokens=False).input_ids
    room = max_tokens - len(begin) - 1
    kept = ([token for token in piece if token != unknown][:room] for piece in pieces)
    return [[*begin, *piece, ids.end] for piece in kept]


@dataclass(frozen=True)
class Collator:
    """Batches of a split: `pixels` uint8 [n, H, W, 3]; `input_ids`, `attention_mask`, `labels`
    int64 [n, longest].

    Labels repeat the ids (the loss shifts them), with padding and the prompt at -100.
    """

    pixels: Pixels
    tokens: list[list[list[int]]]
    padding: int
    prompt_tokens: int
    # By row whether it may be mirrored; none is changed at all without.
    mirrored: list[bool] | None = None
    seed: int = 0

    @classmethod
    def of(
        cls, split: Split, parts: Parts, settings: FinetuneConfig, *, seed: int | None = None
    ) -> Self:
        """All captions are tokenized here, once; with a `seed` and `augment` images are varied."""
        limit, positions = settings.max_caption_tokens, parts.family.max_positions(parts.model)
        if limit > positions:
            raise SettingsMismatch(
                f"finetune.max_caption_tokens {limit} is more than the model's "
                f"{positions} positions: lower it."
            )
        ids = parts.family.token_ids(parts.model)
        prompted = len(prompt_tokens(parts.tokenizer, settings.prompt))
        if prompted + 3 > limit:
            raise SettingsMismatch(
                f"finetune.prompt {settings.prompt!r} takes {prompted} tokens and leaves no room "
                f"in finetune.max_caption_tokens {limit}: shorten it, or raise the limit."
            )
        flat = [reference for references in split.references for reference in references]
        encoded = iter(encode(parts.tokenizer, ids, flat, max_tokens=limit, prompt=settings.prompt))
        tokens = [[next(encoded) for _ in references] for references in split.references]
        mirrored = None
        if settings.augment and seed is not None:
            mirrored = [augment.may_be_mirrored(references) for references in split.references]
        return cls(split.pixels, tokens, ids.padding, prompted, mirrored, seed or 0)

    def lengths(self, draws: np.ndarray) -> np.ndarray:
        """int64 [n]: tokens of each of the draws."""
        return np.array([len(self.tokens[row][reference]) for row, reference in draws])

    def __call__(self, draws: Sequence[Draw]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(self.tokens[draw.row][draw.reference]) for draw in draws]
        input_ids = torch.nn.utils.rnn.pad_sequence(
            ids, batch_first=True, padding_value=self.padding
        )
        lengths = torch.tensor([len(tokens) for tokens in ids])
        places = torch.arange(input_ids.shape[1])
        real = places < lengths[:, None]
        learned = real & ((places == 0) | (places > self.prompt_tokens))
        pixels = self.pixels[[draw.row for draw in draws]]
        if self.mirrored is not None:
            for image, draw in zip(pixels, draws, strict=True):
                mirror = self.mirrored[draw.row]
                image[:] = augment.vary(image, mirror=mirror, seed=(self.seed, draw.place))
        return {
            "pixels": torch.from_numpy(pixels),
            "input_ids": input_ids,
            "attention_mask": real.long(),
            "labels": input_ids.masked_fill(~learned, IGNORED),
        }
