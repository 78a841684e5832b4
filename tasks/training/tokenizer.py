"""A WordPiece vocabulary learned from the captions, in the layout of BLIP's BERT tokenizer."""

import string
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import BertTokenizerFast, PreTrainedTokenizerBase

BOS = "[DEC]"
UNKNOWN = "[UNK]"
SPECIAL = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
_LETTERS = string.ascii_lowercase + string.digits


def learn(captions: Iterable[str], vocab_size: int) -> "BertTokenizerFast":
    """A lower-casing tokenizer of about `vocab_size` tokens; [DEC] comes last, as in BLIP.

    Every letter and digit is a token both at the start and inside a word, whatever the captions
    hold, so any word of them splits to pieces and none becomes [UNK]. That, the punctuation and
    the special tokens are a floor that a small `vocab_size` does not lower.
    """
    from transformers import BertTokenizerFast

    floor = [*SPECIAL, *string.punctuation, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    learned = _learn_pieces(captions, vocab_size)
    room = max(0, vocab_size - len(floor) - 1)
    pieces = [piece for piece in learned if piece not in set(floor)][:room]
    vocab = {token: index for index, token in enumerate([*floor, *pieces, BOS])}
    return BertTokenizerFast(vocab=vocab, bos_token=BOS)


def save(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write the tokenizer's files and the `vocab.txt` that the published BLIP folders have."""
    tokenizer.save_pretrained(folder)
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")


def _learn_pieces(captions: Iterable[str], vocab_size: int) -> list[str]:
    """WordPiece tokens in the order in which they were learned: the most frequent first."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    vocab = tokenizer.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)
