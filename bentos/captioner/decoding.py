"""What the families' decoding shares: the prompt, and the search of transformers."""

from typing import TYPE_CHECKING, Any

from bentos.captioner.families.family import Hypothesis, TokenIds
from bentos.captioner.generation import Generation
from bentos.captioner.search import until_end

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def generate(
    model: Any,
    inputs: "dict[str, torch.Tensor]",
    ids: TokenIds,
    generation: Generation,
    prompt: list[int],
) -> list[list[Hypothesis]]:
    """Captions by `model.generate` of a decoder that sees an image in each row of `inputs`."""
    import torch
    from transformers import GenerationConfig

    image = next(iter(inputs.values()))
    begin = torch.tensor([[ids.start, *prompt]], device=image.device).repeat(len(image), 1)
    output = model.generate(
        input_ids=begin,
        generation_config=GenerationConfig(
            max_new_tokens=generation.max_new_tokens,
            min_new_tokens=generation.min_new_tokens or None,
            num_beams=generation.num_beams,
            num_return_sequences=generation.num_captions,
            do_sample=False,
            use_cache=True,  # whatever the config says: training turns it off there
            bos_token_id=ids.start,
            eos_token_id=ids.end,
            pad_token_id=ids.padding,
            output_logits=True,
            return_dict_in_generate=True,
        ),
        **inputs,
    )
    chosen = model.compute_transition_scores(
        output.sequences,
        output.logits,
        output.beam_indices if generation.num_beams > 1 else None,
        normalize_logits=True,
    )
    said = output.sequences[:, begin.shape[1] :].tolist()
    tokens = [until_end(row, ids.end) for row in said]
    # Greedy rows that end early are padded, and the padding has scores too: they don't count.
    sums = [sum(row[: len(kept)]) for row, kept in zip(chosen.tolist(), tokens, strict=True)]
    captions = [Hypothesis(*pair) for pair in zip(tokens, sums, strict=True)]
    count = generation.num_captions
    return [captions[start : start + count] for start in range(0, len(captions), count)]


def prompt_tokens(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """The prompt's pieces as they follow the start; what the tokenizer doesn't know is dropped."""
    pieces: list[int] = tokenizer(prompt, add_special_tokens=False).input_ids if prompt else []
    return [token for token in pieces if token != tokenizer.unk_token_id]
