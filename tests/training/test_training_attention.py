"""Fused attention is the eager one, faster: the same numbers, gradients and captions."""

import copy

import pytest
import torch
from transformers import BlipConfig, BlipForConditionalGeneration, GenerationConfig
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from tasks.training.attention import FusedTextAttention, FusedVisionAttention, use_sdpa

START, END = 2, 3


@pytest.fixture
def eager() -> BlipForConditionalGeneration:
    torch.manual_seed(0)
    layer = {"num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
    text = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "pad_token_id": 0}
    text |= {"bos_token_id": START, "sep_token_id": END, "eos_token_id": END}
    text |= {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
    text |= {"max_position_embeddings": 24, "encoder_hidden_size": 24}
    vision = {"hidden_size": 24, "intermediate_size": 32, "image_size": 24, "patch_size": 8}
    config = BlipConfig(text_config=text | layer, vision_config=vision | layer)
    return BlipForConditionalGeneration(config)


@pytest.fixture
def fused(eager) -> BlipForConditionalGeneration:
    model = copy.deepcopy(eager)
    use_sdpa(model)
    return model


def batch(padded: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 6, dtype=torch.long)
    if padded:
        mask[1, 3:] = mask[2, 5:] = 0
    ids = torch.randint(4, 30, (3, 6), generator=generator).masked_fill(mask == 0, 0)
    images = torch.randn(3, 3, 24, 24, generator=generator)
    return {"pixel_values": images, "input_ids": ids, "attention_mask": mask}


def loss(model, inputs) -> torch.Tensor:
    """Of the next token, padding left out."""
    logits = model(**inputs).logits[:, :-1]
    targets = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)[:, 1:]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def test_every_attention_of_both_towers_is_fused(fused) -> None:
    kinds = [type(module) for module in fused.modules()]
    assert kinds.count(FusedVisionAttention) == 2
    assert kinds.count(FusedTextAttention) == 4  # to the text and to the image


@pytest.mark.parametrize("padded", [False, True])
def test_logits_and_all_gradients_are_those_of_eager_attention(eager, fused, padded) -> None:
    inputs = batch(padded)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(
        fused(**inputs).logits[real], eager(**inputs).logits[real], atol=1e-5, rtol=1e-5
    )
    for model in (eager, fused):
        loss(model, inputs).backward()
    expected = dict(eager.named_parameters())
    for name, parameter in fused.named_parameters():
        if expected[name].grad is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(
                parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-5, msg=name
            )


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("prompt", [[], [7, 9]])
def test_captions_are_those_of_eager_attention(eager, fused, num_beams, prompt) -> None:
    inputs = batch(False)
    begin = torch.tensor([[START, *prompt, END]]).repeat(3, 1)
    settings = GenerationConfig(max_new_tokens=10, num_beams=num_beams)
    said = [
        model.eval().generate(
            inputs["pixel_values"], input_ids=begin.clone(), generation_config=settings
        )
        for model in (eager, fused)
    ]
    assert said[0].shape[1] > 5 + len(prompt)
    assert torch.equal(*said)


def test_dropout_is_for_training_alone(eager) -> None:
    for module in eager.modules():
        if isinstance(module, BlipAttention | BlipTextSelfAttention):
            module.dropout.p = 0.5
    model = copy.deepcopy(eager)
    use_sdpa(model)
    inputs = batch(True)
    trained = [model.train()(**inputs).logits for _ in range(2)]
    assert not torch.equal(*trained)
    expected, found = (m.eval()(**inputs).logits for m in (eager, model))
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_a_step_in_bfloat16_stays_near_that_in_float32(eager, fused, padded) -> None:
    inputs = batch(padded)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(fused, inputs)
    found.backward()
    torch.testing.assert_close(found, loss(eager, inputs), atol=0.1, rtol=0)
    assert all(p.grad is None or p.grad.isfinite().all() for p in fused.parameters())


def test_gradient_checkpointing_changes_no_gradient(eager, fused) -> None:
    inputs = batch(True)
    fused.train().activation_checkpointing_enable()
    for model in (eager, fused):
        loss(model, inputs).backward()
    for found, expected in zip(fused.parameters(), eager.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, atol=1e-5, rtol=1e-5)


def test_a_copy_attends_by_its_own_weights(fused) -> None:
    other = copy.deepcopy(fused)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    assert other(**batch(False)).logits.std() > 0.1


def test_what_is_saved_is_an_ordinary_model(eager, fused, tmp_path) -> None:
    folders = [tmp_path / "eager", tmp_path / "fused"]
    for model, folder in zip((eager, fused), folders, strict=True):
        model.save_pretrained(folder)
    for name in ("model.safetensors", "config.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_another_family_stays_as_it_is() -> None:
    module = torch.nn.Linear(2, 2)
    use_sdpa(module)
    assert type(module) is torch.nn.Linear
