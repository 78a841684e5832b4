"""Each method trains what it says and no more, and what comes out is an ordinary model folder."""

import copy

import numpy as np
import pytest
import torch

from bentos.captioner.engine import Engine
from bentos.captioner.generation import Generation
from configs.schema import FinetuneConfig, LoraConfig, ModelConfig
from tasks.training import methods
from tasks.training import model as models
from tasks.training.model import Parts

FAMILIES = ["tiny_model", "tiny_git"]


@pytest.fixture(params=FAMILIES)
def parts(request) -> Parts:
    base = request.getfixturevalue(request.param)
    return models.build(ModelConfig(base=str(base)), [], 24, seed=0)


def prepared(parts: Parts, method: str, **lora: float):
    torch.manual_seed(0)
    settings = FinetuneConfig(method=method, lora=LoraConfig(rank=2, **lora))
    return methods.prepare(parts, settings)


def batch(parts: Parts) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(10, 60, (4, 5))
    ids[:, 0] = parts.family.token_ids(parts.model).start
    images = torch.randn(4, 3, 24, 24)
    return {"pixel_values": images, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def loss(parts: Parts, model, inputs) -> torch.Tensor:
    ids = inputs["input_ids"]
    outputs = model(**inputs, use_cache=False)  # as Hugging Face's Trainer has it
    logits = parts.family.text_logits(outputs, ids.shape[1])
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def train(parts: Parts, model, steps: int = 3) -> list[float]:
    inputs, losses = batch(parts), []
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    for _ in range(steps):
        found = loss(parts, model, inputs)
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        losses.append(found.item())
    return losses


def names_that_train(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_full_trains_every_parameter(parts) -> None:
    model = prepared(parts, "full")
    assert names_that_train(model) == {name for name, _ in model.named_parameters()}
    trained, total = methods.count(model)
    assert trained == total == sum(p.numel() for p in model.parameters())


def test_frozen_vision_trains_all_but_what_sees(parts) -> None:
    model = prepared(parts, "frozen_vision")
    frozen = {id(parameter) for parameter in parts.family.vision(model).parameters()}
    assert frozen
    for _, parameter in model.named_parameters():
        assert parameter.requires_grad != (id(parameter) in frozen)


def test_lora_trains_adapters_in_both_towers_and_nothing_else(parts) -> None:
    model = prepared(parts, "lora")
    trained = names_that_train(model)
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}
    layers = {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in trained}
    linear = {n for n, m in parts.model.named_modules() if n in layers and hasattr(m, "base_layer")}
    assert layers == linear
    seeing = sum(p.requires_grad for p in parts.family.vision(parts.model).parameters())
    assert 0 < seeing < len(trained)


def test_each_method_trains_less_than_the_one_before(parts) -> None:
    counts = [
        methods.count(prepared(parts._replace(model=copy.deepcopy(parts.model)), method))[0]
        for method in ("full", "frozen_vision", "lora")
    ]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 3


@pytest.mark.parametrize("method", ["full", "frozen_vision", "lora"])
def test_training_moves_what_trains_and_leaves_the_rest(parts, method) -> None:
    model = prepared(parts, method)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = train(parts, model)
    assert losses[-1] < losses[0]
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= names_that_train(model)
    assert len(moved) > len(names_that_train(model)) / 2


@pytest.mark.parametrize("method", ["full", "frozen_vision", "lora"])
def test_checkpointed_activations_change_no_step(parts, method) -> None:
    other = parts._replace(model=copy.deepcopy(parts.model))
    other.model.activation_checkpointing_enable({"use_reentrant": False})
    losses = [train(one, prepared(one, method).train()) for one in (parts, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_lora_starts_as_the_model_that_it_adapts(parts) -> None:
    inputs = batch(parts)
    with torch.no_grad():
        expected = parts.model(**inputs).logits
        torch.testing.assert_close(prepared(parts, "lora")(**inputs).logits, expected)


def test_a_merged_model_says_what_the_adapted_one_said(parts) -> None:
    start = {name: p.detach().clone() for name, p in parts.model.named_parameters()}
    kind, inputs = type(parts.model), batch(parts)
    model = prepared(parts, "lora", dropout=0.1)
    train(parts, model)
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        merged = methods.merge(model)
        torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    assert type(merged) is kind
    assert {name for name, _ in merged.named_parameters()} == start.keys()
    assert any(not torch.equal(p, start[name]) for name, p in merged.named_parameters())


@pytest.mark.parametrize("method", ["full", "frozen_vision", "lora"])
def test_what_is_saved_is_an_ordinary_folder_that_serves_and_trains_on(
    parts, method, tmp_path
) -> None:
    model = prepared(parts, method)
    train(parts, model)
    trained = parts._replace(model=methods.merge(model).eval())
    models.save(trained, tmp_path)
    assert not list(tmp_path.glob("*adapter*"))
    again = models.build(ModelConfig(base=str(tmp_path)), [], 24, seed=0)
    assert type(again.model) is type(trained.model)
    weights = again.model.state_dict()
    for name, weight in trained.model.state_dict().items():
        assert torch.equal(weights[name], weight), name

    pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    mean, std = parts.processor.image_mean, parts.processor.image_std
    memory = Engine(
        trained.model, parts.tokenizer, mean=mean, std=std, card={}, family=parts.family
    )
    served = Engine.load(tmp_path, device="cpu")
    for one, other in zip(
        served.caption(pixels, Generation(6)), memory.caption(pixels, Generation(6)), strict=True
    ):
        assert one.text == other.text
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


def test_an_adapted_model_captions_as_it_trains(parts) -> None:
    """Validation during training needs no merging."""
    model = prepared(parts, "lora")
    train(parts, model)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    said = []
    for now in (model.eval(), parts.model, methods.merge(model)):
        mean, std = parts.processor.image_mean, parts.processor.image_std
        engine = Engine(now, parts.tokenizer, mean=mean, std=std, card={}, family=parts.family)
        said.append([caption.text for caption in engine.caption(pixels, Generation(6))])
    assert said[0] == said[1] == said[2]
