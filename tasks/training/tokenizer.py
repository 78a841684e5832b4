"""A WordPiece vocabulary learned from the captions, in the layout of BLIP's BERT tokenizer."""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import BertTokenizer, PreTrainedTokenizerBase

BOS = "[DEC]"
UNKNOWN = "[UNK]"
SPECIAL = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
_LETTERS = string.ascii_lowercase + string.digits


def learn(captions: Sequence[str], vocab_size: int) -> "BertTokenizer":
    """A lower-casing tokenizer of at most `vocab_size` tokens; [DEC] comes last, as in BLIP.

    Every letter and digit is a token both at the start and inside a word, whatever the captions
    hold, so any word of them splits to pieces and none becomes [UNK]. These, punctuation and the
    special tokens are a floor that a small `vocab_size` does not lower.
    """
    from transformers import BertTokenizer

    tokens = [*_learn_pieces(captions, vocab_size - 1), BOS]
    vocab = {token: index for index, token in enumerate(tokens)}
    return BertTokenizer(vocab=vocab, bos_token=BOS)


def save(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write the tokenizer's files and the `vocab.txt` that the published BLIP folders have."""
    tokenizer.save_pretrained(folder)
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")


def _learn_pieces(captions: Sequence[str], vocab_size: int) -> list[str]:
    """Special tokens, characters, then WordPiece merges, the most frequent first."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    seen = set().union(*(normalizer.normalize_str(caption) for caption in captions))
    inside = sorted(seen.union(_LETTERS) - set(string.punctuation) - set(string.whitespace))
    # Left alone, the trainer numbers the "##" characters in the order of a hash map and breaks
    # ties between merges by these numbers: another vocabulary each time. Given first, they are
    # numbered as here.
    floor = [*SPECIAL, *string.punctuation, *inside, *(f"##{letter}" for letter in inside)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(floor)), special_tokens=floor, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    vocab = tokenizer.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)
