"""Greedy and beam search as `model.generate` of transformers does them, over a decoder that
remembers what it said; images whose captions have ended leave the batch."""

from typing import TYPE_CHECKING, Protocol

from bentos.captioner.families.family import Hypothesis, TokenIds

if TYPE_CHECKING:
    import torch

    from bentos.captioner.generation import Generation

_NEVER = -1.0e9  # the score of what must not be chosen; finite, as sums of it are compared


class Decoder(Protocol):
    """Has seen n images, and remembers the text of each: a prompt, and branches that go on from it.

    The n falls as images leave; the branches are `num_beams` or one.
    """

    def begin(self, prompt: list[int]) -> "torch.Tensor":
        """All images' first tokens to logits of the next, [n, vocabulary]."""

    def step(self, tokens: "torch.Tensor") -> "torch.Tensor":
        """The next token of each branch, [n, branches], to logits [n, branches, vocabulary]."""

    def fork(self, parents: "torch.Tensor") -> None:
        """Each branch goes on from the one that `parents`, [n, branches], names."""

    def keep(self, rows: list[int]) -> None:
        """Only these images go on, in this order."""


def search(
    decoder: Decoder, ids: TokenIds, generation: "Generation", prompt: list[int]
) -> list[list[Hypothesis]]:
    """The best `num_captions` of each image, the best first."""
    logits = decoder.begin([ids.start, *prompt])
    if generation.num_beams == 1:
        return [[said] for said in _greedy(decoder, logits, ids.end, generation)]
    return _beam(decoder, logits, ids.end, generation)


def until_end(tokens: list[int], end: int) -> list[int]:
    """The tokens as far as the first end, which is kept."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def _greedy(
    decoder: Decoder, logits: "torch.Tensor", end: int, generation: "Generation"
) -> list[Hypothesis]:
    rows = list(range(len(logits)))
    said: list[list[int]] = [[] for _ in rows]
    sums = [0.0 for _ in rows]
    total = logits.new_zeros(len(rows)).float()
    for length in range(1, generation.max_new_tokens + 1):
        logits = logits.float()
        steps = logits.log_softmax(-1)
        if length <= generation.min_new_tokens:
            logits[:, end] = -float("inf")
        token = logits.argmax(-1)
        total = total + steps.gather(1, token[:, None])[:, 0]
        new = token.tolist()
        for row, one in zip(rows, new, strict=True):
            said[row].append(one)
        ended = [one == end or length == generation.max_new_tokens for one in new]
        if any(ended):
            for row, score in zip(rows, total.tolist(), strict=True):
                sums[row] = score
            if not (stay := _staying(ended)):
                break
            rows = [rows[index] for index in stay]
            token, total = token[stay], total[stay]
            decoder.keep(stay)
        logits = decoder.step(token[:, None])[:, 0]
    return [Hypothesis(*pair) for pair in zip(said, sums, strict=True)]


def _beam(
    decoder: Decoder, logits: "torch.Tensor", end: int, generation: "Generation"
) -> list[list[Hypothesis]]:
    """`GenerationMixin._beam_search` of transformers 5.23 with its defaults: scores are divided by
    the length, and an image ends when its best open branch scores below its worst ended caption.
    """
    import torch

    width, longest = generation.num_beams, generation.max_new_tokens
    vocabulary = logits.shape[-1]
    rows = list(range(len(logits)))
    found: list[list[Hypothesis]] = [[] for _ in rows]
    # At first the branches are all alike: only one of them counts.
    scores = logits.new_full((len(rows), width), _NEVER, dtype=torch.float32)
    scores[:, 0] = 0
    logits = logits[:, None].expand(-1, width, -1)
    open_ = torch.zeros((len(rows), width, longest), dtype=torch.long, device=logits.device)
    best_ended, ended_scores = open_, torch.full_like(scores, _NEVER)
    may_end = torch.arange(2 * width, device=logits.device) < width
    for length in range(1, longest + 1):
        steps = logits.float().log_softmax(-1)
        if length <= generation.min_new_tokens:
            steps[..., end] = -float("inf")
        # Twice as many as needed: half of them may end here.
        sums, index = (steps + scores[..., None]).flatten(1).topk(2 * width)
        parents, token = index // vocabulary, index % vocabulary
        longer = _take(open_, parents)
        longer[..., length - 1] = token
        ends = (token == end) | (length == longest)
        offered = sums / length + ~(ends & may_end) * _NEVER
        ended_scores, chosen = torch.cat([ended_scores, offered], 1).topk(width)
        best_ended = _take(torch.cat([best_ended, longer], 1), chosen)
        scores, chosen = (sums + ends * _NEVER).topk(width)
        open_, parents, token = (_take(state, chosen) for state in (longer, parents, token))

        going = (scores[:, 0] / length > ended_scores[:, -1]).tolist()
        over = [length == longest or not goes for goes in going]
        if any(over):
            best = _hypotheses(best_ended, ended_scores, end, generation.num_captions)
            for row, captions in zip(rows, best, strict=True):
                found[row] = captions
            if not (stay := _staying(over)):
                break
            rows = [rows[index] for index in stay]
            scores, open_, parents, token, best_ended, ended_scores = (
                state[stay] for state in (scores, open_, parents, token, best_ended, ended_scores)
            )
            decoder.keep(stay)
        decoder.fork(parents)
        logits = decoder.step(token)
    return found


def _hypotheses(
    tokens: "torch.Tensor", scores: "torch.Tensor", end: int, count: int
) -> list[list[Hypothesis]]:
    """The first `count` of each image, from log-probabilities a token."""
    found = []
    for rows, averages in zip(tokens[:, :count].tolist(), scores[:, :count].tolist(), strict=True):
        said = [until_end(row, end) for row in rows]
        found.append(
            [
                Hypothesis(one, average * len(one))
                for one, average in zip(said, averages, strict=True)
            ]
        )
    return found


def _take(states: "torch.Tensor", branches: "torch.Tensor") -> "torch.Tensor":
    """Of [n, branches, …] those that [n, chosen] names."""
    return states.take_along_dim(branches.reshape(*branches.shape, *[1] * (states.ndim - 2)), 1)


def _staying(ended: list[bool]) -> list[int]:
    """The rows that go on; the last of them take the places of those that ended, so few move."""
    going = [row for row, over in enumerate(ended) if not over]
    tail = [row for row in going if row >= len(going)]
    return [tail.pop() if ended[row] else row for row in range(len(going))]
