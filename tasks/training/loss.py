"""The loss of a captioner: cross-entropy of each next token."""

import torch

from tasks.training.dataset import IGNORED


def summed(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Nats over all learned tokens of a batch: logits float [n, length, vocabulary], labels int64
    [n, length], which are the ids that went in; they are shifted here, and nowhere else.

    The mean over several batches is their sum over `num_tokens` of all, however they were cut.
    """
    targets = labels[:, 1:]
    # In float32 whatever the model computes in: a sum over the vocabulary loses much otherwise.
    predicted = logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(
        predicted.flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORED,
        label_smoothing=smoothing,
        reduction="sum",
    )


def num_tokens(labels: torch.Tensor) -> torch.Tensor:
    """How many tokens are learned: those that some place before them predicts."""
    return (labels[:, 1:] != IGNORED).sum()
