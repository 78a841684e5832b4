"""From image embeddings to caption tokens: the one seam behind which a faster decoder may stand."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def decode_tokens(
    model: Any,  # BlipForConditionalGeneration, whose annotations hide its own configs
    image_embeds: "torch.Tensor",
    *,
    max_new_tokens: int,
    num_beams: int,
) -> tuple[list[list[int]], list[float]]:
    """Tokens of each caption with its end token if it came, and the sum of their log-probabilities.

    `image_embeds` is [n, 1 + patches, d], the vision tower's last hidden state. The search is
    exactly that of `model.generate`, which would run the vision tower a second time for us.
    """
    import torch
    from transformers import GenerationConfig

    text = model.config.text_config
    prompt = torch.full((len(image_embeds), 1), text.bos_token_id, device=image_embeds.device)
    output = model.text_decoder.generate(
        input_ids=prompt,
        generation_config=GenerationConfig(
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            do_sample=False,
            eos_token_id=text.sep_token_id,
            pad_token_id=text.pad_token_id,
            output_logits=True,
            return_dict_in_generate=True,
        ),
        encoder_hidden_states=image_embeds,
        encoder_attention_mask=torch.ones(
            image_embeds.shape[:-1], dtype=torch.long, device=image_embeds.device
        ),
    )
    chosen = model.text_decoder.compute_transition_scores(
        output.sequences,
        output.logits,
        output.beam_indices if num_beams > 1 else None,
        normalize_logits=True,
    )
    tokens = [_until_end(row, text.sep_token_id) for row in output.sequences[:, 1:].tolist()]
    # Greedy rows that end early are padded, and the padding has scores too: they don't count.
    sums = [sum(row[: len(ids)]) for row, ids in zip(chosen.tolist(), tokens, strict=True)]
    return tokens, sums


def _until_end(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens
