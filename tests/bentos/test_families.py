"""Every family keeps to the one seam: what it learns from is what it says."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from bentos.captioner.decoding import prompt_tokens
from bentos.captioner.engine import BadModelFolder, Engine, TooManyTokens, image_size_of
from bentos.captioner.families.family import BadTokenIds, Family, Hypothesis
from bentos.captioner.families.registry import UnknownFamily, family_of
from bentos.captioner.generation import BadGeneration, Generation
from bentos.captioner.images import normalize

SIZE = 24
LENGTH = 7


class Loaded(NamedTuple):
    folder: Path
    family: Family
    model: Any
    engine: Engine


@pytest.fixture(scope="module")
def tiny_blip(tiny_model: Path, tmp_path_factory) -> Path:
    """The tiny model with weights so large that it tells pictures apart."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("blip") / "model")
    weights = load_file(folder / "model.safetensors")
    louder = {name: w * 5 if w.ndim == 2 else w for name, w in weights.items()}
    save_file(louder, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module", params=["tiny_blip", "tiny_git"])
def loaded(request) -> Loaded:
    folder = request.getfixturevalue(request.param)
    family = family_of(json.loads((folder / "config.json").read_text())["model_type"])
    model, missing = family.load(folder, local_files_only=True)
    assert missing == []
    return Loaded(folder, family, model.eval(), Engine.load(folder, device="cpu"))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 3, 3, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture(scope="module")
def values(pixels, loaded) -> Any:
    return normalize(pixels, loaded.engine._mean, loaded.engine._std)


def logits_of(loaded: Loaded, values: Any, ids: Any, mask: Any = None) -> Any:
    import torch

    mask = torch.ones_like(ids) if mask is None else mask
    with torch.inference_mode():
        outputs = loaded.model(pixel_values=values, input_ids=ids, attention_mask=mask)
    return loaded.family.text_logits(outputs, ids.shape[1])


def starts(loaded: Loaded, count: int, prompt: list[int]) -> Any:
    import torch

    return torch.tensor([[loaded.family.token_ids(loaded.model).start, *prompt]] * count)


def decoded(
    loaded: Loaded, values: Any, generation: Generation, prompt: list[int]
) -> list[Hypothesis]:
    """The best caption of each image."""
    import torch

    with torch.inference_mode():
        states = loaded.family.see(loaded.model, values)
        found = loaded.family.decode(loaded.model, states, generation, prompt)
    return [hypotheses[0] for hypotheses in found]


@pytest.mark.parametrize("prompt", [[], [20, 30]])
def test_a_caption_is_the_chain_of_the_likeliest_text_logits(loaded, values, prompt) -> None:
    import torch

    ids = starts(loaded, len(values), prompt)
    total = torch.zeros(len(values))
    for _ in range(LENGTH):
        steps = logits_of(loaded, values, ids)[:, -1].log_softmax(-1)
        best = steps.max(-1)
        total += best.values
        ids = torch.cat([ids, best.indices[:, None]], dim=1)
    chain = ids[:, 1 + len(prompt) :].tolist()
    end = loaded.family.token_ids(loaded.model).end
    found = decoded(loaded, values, Generation(LENGTH), prompt)
    for (said, sum_), by_hand, all_of_it in zip(found, chain, total.tolist(), strict=True):
        assert said == by_hand[: len(said)]
        if len(said) == LENGTH:
            assert sum_ == pytest.approx(all_of_it, abs=1e-4)
        else:
            assert said[-1] == end


def test_text_logits_at_a_place_predict_the_next_token_whatever_follows(loaded, values) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 80, (len(values), LENGTH), generator=generator)
    whole = logits_of(loaded, values, ids)
    assert whole.shape == (len(values), LENGTH, loaded.engine._tokenizer.vocab_size)
    for length in range(1, LENGTH):
        prefix = logits_of(loaded, values, ids[:, :length])
        torch.testing.assert_close(whole[:, :length], prefix, atol=1e-4, rtol=1e-4)


def test_padding_changes_nothing_of_what_stands_before_it(loaded, values) -> None:
    import torch

    ids = starts(loaded, len(values), [20, 30, 40])
    padding = torch.full((len(values), 3), loaded.family.token_ids(loaded.model).padding)
    padded = torch.cat([ids, padding], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(padding)], dim=1)
    torch.testing.assert_close(
        logits_of(loaded, values, padded, mask)[:, :4],
        logits_of(loaded, values, ids),
        atol=1e-5,
        rtol=1e-5,
    )


def test_each_image_is_said_on_its_own(loaded, values) -> None:
    generation = Generation(LENGTH, num_beams=3)
    together = decoded(loaded, values, generation, [])
    for i, (tokens, log_probability) in enumerate(together):
        alone = decoded(loaded, values[i : i + 1], generation, [])[0]
        assert tokens == alone.tokens
        assert log_probability == pytest.approx(alone.log_probability, abs=1e-3)
    assert len({tuple(one.tokens) for one in together}) > 1


def test_beams_find_what_is_at_least_as_likely_and_are_scored_by_the_model(loaded, values) -> None:
    import torch

    found = decoded(loaded, values, Generation(4, num_beams=4), [])
    start = loaded.family.token_ids(loaded.model).start
    for i, (said, total) in enumerate(found):
        ids = torch.tensor([[start, *said]])
        steps = logits_of(loaded, values[i : i + 1], ids)[0, :-1].log_softmax(-1)
        expected = steps.gather(1, ids[0, 1:, None]).sum().item()
        assert total == pytest.approx(expected, abs=1e-3)


def test_the_tower_is_run_once_for_captions_and_embeddings(loaded, pixels) -> None:
    from torch.nn import Conv2d

    passes = []
    engine = Engine(
        loaded.model,
        loaded.engine._tokenizer,
        family=loaded.family,
        mean=loaded.engine._mean,
        std=loaded.engine._std,
        card={},
    )
    vision = loaded.family.vision(loaded.model)
    first = next(part for part in vision.modules() if isinstance(part, Conv2d))
    hook = first.register_forward_hook(lambda *_: passes.append(1))
    captions, embeddings = engine.run(pixels, Generation(LENGTH, num_beams=2))
    hook.remove()
    assert passes == [1]
    assert loaded.family.vision(loaded.model) is vision
    assert len(captions) == len(pixels)
    assert embeddings.shape == (len(pixels), 16)
    assert embeddings.dtype == np.float32


def test_an_embedding_is_the_mean_patch(loaded, values) -> None:
    import torch

    with torch.inference_mode():
        states = loaded.family.see(loaded.model, values)
        assert states.shape == (len(values), 1 + 9, 16)
        torch.testing.assert_close(loaded.family.embed(states), states[:, 1:].mean(1))


def test_a_prompt_is_heeded_but_neither_said_nor_scored(loaded, pixels, values) -> None:
    prompt = "a large"
    engine = loaded.engine
    ids = prompt_tokens(engine._tokenizer, prompt)
    assert len(ids) >= 2
    captions = engine.caption(pixels, Generation(LENGTH, prompt=prompt))
    found = decoded(loaded, values, Generation(LENGTH), ids)
    assert [c.text for c in captions] == engine._tokenizer.batch_decode(
        [one.tokens for one in found], skip_special_tokens=True
    )
    assert [c.num_tokens for c in captions] == [len(one.tokens) for one in found]
    sums = [one.log_probability for one in found]
    assert [c.log_probability for c in captions] == pytest.approx(sums, abs=1e-4)
    assert captions != engine.caption(pixels, Generation(LENGTH))


def test_what_the_tokenizer_does_not_know_is_no_prompt(loaded) -> None:
    tokenizer = loaded.engine._tokenizer
    assert prompt_tokens(tokenizer, "") == []
    assert prompt_tokens(tokenizer, "中 a") == prompt_tokens(tokenizer, "a")


@pytest.mark.parametrize("prompt", ["", "a large"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_no_caption_is_shorter_than_asked(loaded, pixels, tmp_path, num_beams, prompt) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(loaded.folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = {"blip": "text_decoder.cls.predictions.bias", "git": "output.bias"}
    end = loaded.family.token_ids(loaded.model).end
    weights[name[loaded.family.model_type]][end] = 100.0  # all that this model wants to say
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    engine = Engine.load(folder, device="cpu")
    short = engine.caption(pixels, Generation(8, num_beams=num_beams, prompt=prompt))
    asked = Generation(8, num_beams=num_beams, min_new_tokens=4, prompt=prompt)
    long = engine.caption(pixels, asked)
    assert {caption.num_tokens for caption in short} == {1}
    assert {caption.num_tokens for caption in long} == {5}


@pytest.mark.parametrize("num_captions", [2, 4])
def test_the_best_of_the_beam_come_beside_the_caption(loaded, pixels, num_captions) -> None:
    engine = loaded.engine
    alone = engine.caption(pixels, Generation(LENGTH, num_beams=4))
    assert {caption.alternatives for caption in alone} == {()}
    asked = Generation(LENGTH, num_beams=4, num_captions=num_captions)
    for one, caption in zip(alone, engine.caption(pixels, asked), strict=True):
        assert caption.text == one.text
        assert caption.alternatives[0] == replace(caption, alternatives=())
        assert len(caption.alternatives) == num_captions
        assert {other.alternatives for other in caption.alternatives} == {()}
        averages = [other.log_probability / other.num_tokens for other in caption.alternatives]
        assert averages == sorted(averages, reverse=True)


@pytest.mark.parametrize(("num_beams", "num_captions"), [(1, 2), (3, 4), (3, 0), (0, 1)])
def test_more_captions_than_beams_are_refused_with_both_numbers(num_beams, num_captions) -> None:
    with pytest.raises(
        BadGeneration, match=f"num_captions is {num_captions}, but num_beams is {num_beams}"
    ):
        Generation(LENGTH, num_beams=num_beams, num_captions=num_captions)


def test_a_caption_of_no_tokens_is_refused() -> None:
    with pytest.raises(BadGeneration, match="max_new_tokens is 0: ask for 1 or more"):
        Generation(0)


@pytest.mark.parametrize("prompt", ["", "a large"])
def test_the_last_position_is_used_and_none_after_it_is_asked_for(loaded, pixels, prompt) -> None:
    engine = loaded.engine
    longest = loaded.family.max_positions(loaded.model)
    longest -= len(prompt_tokens(engine._tokenizer, prompt))
    fits = Generation(longest, min_new_tokens=longest, prompt=prompt)
    assert {caption.num_tokens for caption in engine.caption(pixels, fits)} == {longest}
    with pytest.raises(TooManyTokens, match=f"has room for {longest}: ask for fewer"):
        engine.caption(pixels, Generation(longest + 1, prompt=prompt))


def test_the_image_size_is_told_by_the_config_even_if_it_leaves_out_the_default(loaded) -> None:
    assert image_size_of(loaded.folder) == loaded.engine.image_size == SIZE
    default = {"blip": 384, "git": 224}[loaded.family.model_type]
    assert (
        loaded.family.image_size({}) == loaded.family.image_size({"vision_config": {}}) == default
    )


def test_a_start_that_is_no_token_is_refused(loaded, tmp_path) -> None:
    folder = shutil.copytree(loaded.folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config.get("text_config", config)["bos_token_id"] = 10_000
    (folder / "config.json").write_text(json.dumps(config))
    model, _ = loaded.family.load(folder, local_files_only=True)
    with pytest.raises(BadTokenIds, match="bos_token_id is 10000"):
        loaded.family.token_ids(model)
    with pytest.raises(BadModelFolder, match="bos_token_id is 10000"):
        Engine.load(folder)


def test_a_folder_that_lacks_weights_is_refused(loaded, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(loaded.folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "query" in name)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadModelFolder, match=f"lacks weights: {name}"):
        Engine.load(folder)


def test_an_unknown_type_names_those_there_are(loaded, tmp_path) -> None:
    with pytest.raises(UnknownFamily, match=r"'bert'.*'blip', 'git'"):
        family_of("bert")
    folder = shutil.copytree(loaded.folder, tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BadModelFolder, match=r"'bert'.*'blip', 'git'"):
        Engine.load(folder)


def test_a_second_family_trains_through_the_same_seam(loaded, values) -> None:
    import torch

    from configs.schema import ModelConfig
    from tasks.training import model as models

    parts = models.build(ModelConfig(base=str(loaded.folder)), [], SIZE, seed=0)
    assert type(parts.family) is type(loaded.family)
    ids = starts(loaded, len(values), [20, 30, 40, 50])
    inputs = {"pixel_values": values, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    optimizer = torch.optim.SGD(parts.model.parameters(), lr=0.05)
    losses = []
    for _ in range(2):
        logits = parts.family.text_logits(parts.model(**inputs), ids.shape[1])[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert parts.family.max_positions(parts.model) in (40, 128)


@pytest.mark.parametrize("said", [{}, {"generation": {"max_new_tokens": 9, "num_beams": 2}}])
def test_an_older_card_means_no_prompt_and_no_least_length(said) -> None:
    generation = Generation.from_card(said)
    assert (generation.min_new_tokens, generation.prompt) == (0, "")


def test_a_generation_travels_by_the_card() -> None:
    generation = Generation(9, num_beams=2, min_new_tokens=3, prompt="there is", num_captions=2)
    card = json.loads(json.dumps({"generation": generation.to_card()}))
    assert Generation.from_card(card) == generation
