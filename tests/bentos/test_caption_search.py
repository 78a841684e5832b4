"""Our own decoding, by torch and by ONNX Runtime, says what `model.generate` says."""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bentos.captioner.families.blip import Blip
from bentos.captioner.families.blip_decoder import BlipDecoder
from bentos.captioner.families.blip_onnx import OnnxBlip
from bentos.captioner.families.family import Family, Hypothesis
from bentos.captioner.families.registry import on_cpu
from bentos.captioner.generation import Generation
from bentos.captioner.search import search

PADDING, END, START = 0, 3, 5
SIDE, POSITIONS = 32, 40


class Shape(NamedTuple):
    heads: int
    vision_width: int
    text_width: int
    vision_layers: int
    text_layers: int
    patch: int
    vocabulary: int
    std: float


SHAPES = (
    Shape(1, 8, 16, 1, 1, 32, 12, 0.3),
    Shape(2, 16, 16, 1, 2, 16, 30, 0.1),
    Shape(4, 64, 32, 2, 1, 8, 97, 0.3),
    Shape(4, 16, 48, 1, 3, 16, 400, 0.3),
)


class Asked(NamedTuple):
    """A model, images and a search; `end` is how much more the model wants to end."""

    shape: Shape
    seed: int
    end: float
    images: int
    num_beams: int
    max_new_tokens: int
    min_new_tokens: int
    prompt: list[int]


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    shape = draw(st.sampled_from(SHAPES))
    longest = draw(st.integers(1, 25))
    return Asked(
        shape,
        seed=draw(st.integers(0, 2**20)),
        end=draw(st.sampled_from([-6.0, 0.0, 1.0, 2.0, 4.0, 8.0])),
        images=draw(st.integers(1, 32)),
        num_beams=draw(st.integers(1, 5)),
        max_new_tokens=longest,
        min_new_tokens=draw(st.sampled_from([0, 0, 1, longest // 2, longest - 1, longest])),
        prompt=draw(st.lists(st.integers(6, shape.vocabulary - 1), max_size=6)),
    )


def model_of(shape: Shape, seed: int, end: float) -> Any:
    import torch
    from transformers import BlipConfig, BlipForConditionalGeneration

    shared = {"num_attention_heads": shape.heads, "initializer_range": shape.std}
    text = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.text_width,
        "intermediate_size": 2 * shape.text_width,
        "num_hidden_layers": shape.text_layers,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": START,
        "eos_token_id": END,
        "sep_token_id": END,
        "pad_token_id": PADDING,
    }
    vision = {
        "hidden_size": shape.vision_width,
        "intermediate_size": 2 * shape.vision_width,
        "num_hidden_layers": shape.vision_layers,
        "image_size": SIDE,
        "patch_size": shape.patch,
    }
    torch.manual_seed(seed)
    config = BlipConfig(text_config=text | shared, vision_config=vision | shared)
    config.initializer_range = shape.std
    model = BlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        bias = model.text_decoder.cls.predictions.decoder.bias
        bias.normal_()
        bias[END] += end
    return model


def ours(
    family: Family, model: Any, values: Any, generation: Generation, prompt: list[int]
) -> list[list[Hypothesis]]:
    import torch

    with torch.inference_mode():
        return family.decode(model, family.see(model, values), generation, prompt)


def theirs(
    model: Any, values: Any, generation: Generation, prompt: list[int]
) -> list[list[Hypothesis]]:
    """The captions of `model.generate`, which drops the last token that it is given."""
    import torch

    begin = torch.tensor([[START, *prompt, END]] * len(values))
    output = model.generate(
        pixel_values=values,
        input_ids=begin,
        max_new_tokens=generation.max_new_tokens,
        min_new_tokens=generation.min_new_tokens or None,
        num_beams=generation.num_beams,
        num_return_sequences=generation.num_captions,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    beams = output.beam_indices if generation.num_beams > 1 else None
    steps = model.text_decoder.compute_transition_scores(
        output.sequences, output.logits, beams, normalize_logits=True
    )
    found = []
    for row, scores in zip(output.sequences[:, len(prompt) + 1 :].tolist(), steps, strict=True):
        said = row[: row.index(END) + 1] if END in row else row
        found.append(Hypothesis(said, scores[: len(said)].sum().item()))
    count = generation.num_captions
    return [found[start : start + count] for start in range(0, len(found), count)]


def tokens_of(found: list[list[Hypothesis]]) -> list[list[list[int]]]:
    return [[one.tokens for one in captions] for captions in found]


@cache
def counts() -> dict[str, int]:
    return {"captions": 0, "ended early": 0, "rounded otherwise": 0}


@pytest.fixture(scope="module", autouse=True)
def told() -> Iterator[None]:
    yield
    print("\ncompared with model.generate:", counts())
    assert counts()["rounded otherwise"] <= counts()["captions"] / 1000


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize("onnx", [False, True])
@settings(max_examples=100, deadline=None)
@given(one=asked())
def test_captions_are_those_of_model_generate_token_for_token(onnx: bool, one: Asked) -> None:
    """All captions of the beam, and their log-probabilities. Where the two round differently and a
    near tie is decided otherwise, they must agree in float64."""
    import torch

    model = model_of(one.shape, one.seed, one.end)
    family = OnnxBlip(model) if onnx else Blip()
    values = torch.randn(one.images, 3, SIDE, SIDE)
    generation = Generation(
        one.max_new_tokens, one.num_beams, one.min_new_tokens, num_captions=one.num_beams
    )
    said = ours(family, model, values, generation, one.prompt)
    expected = theirs(model, values, generation, one.prompt)
    for mine, other in zip(said, expected, strict=True):
        for hypothesis, reference in zip(mine, other, strict=True):
            counts()["captions"] += 1
            counts()["ended early"] += len(reference.tokens) < one.max_new_tokens
            if hypothesis.tokens == reference.tokens:
                near = pytest.approx(reference.log_probability, abs=1e-4, rel=1e-5)
                assert hypothesis.log_probability == near
            else:
                counts()["rounded otherwise"] += 1
    if tokens_of(said) != tokens_of(expected):
        model, values = model.double(), values.double()
        exact = ours(Blip(), model, values, generation, one.prompt)
        assert tokens_of(exact) == tokens_of(theirs(model, values, generation, one.prompt))


class Counting(BlipDecoder):
    """Counts what the decoder is given after the prompt."""

    fed = 0

    def step(self, tokens: Any) -> Any:
        self.fed += tokens.shape[0]
        return super().step(tokens)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_an_image_whose_caption_has_ended_costs_nothing_more(num_beams) -> None:
    import torch

    model = model_of(SHAPES[2], seed=1, end=2.0)
    generation = Generation(25, num_beams)
    steps = []
    with torch.inference_mode():
        states = Blip().see(model, torch.randn(32, 3, SIDE, SIDE))
        for rows in (states, *states.split(1)):
            decoder = Counting(model.text_decoder, rows, slots=1 + 24 * num_beams)
            found = search(decoder, Blip().token_ids(model), generation, [])
            steps.append(decoder.fed)
            if num_beams == 1:
                assert decoder.fed == sum(len(one.tokens) - 1 for [one] in found)
    together, *alone = steps
    assert together == sum(alone)
    assert len(set(alone)) > 3


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("whole", [True, False])
def test_half_precision_decodes_too(num_beams, whole) -> None:
    """As a model of its own, and under autocast, as validation runs it during training."""
    import torch

    model = model_of(SHAPES[2], seed=1, end=2.0)
    values = torch.randn(3, 3, SIDE, SIDE)
    if whole:
        model, values = model.to(torch.bfloat16), values.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
        found = ours(Blip(), model, values, Generation(6, num_beams), [])
    for [caption] in found:
        assert 1 <= len(caption.tokens) <= 6
        assert caption.log_probability < 0


def test_a_loaded_blip_runs_on_onnx_on_a_cpu_and_one_with_other_activations_on_torch() -> None:
    model = model_of(SHAPES[0], seed=1, end=0.0)
    assert type(on_cpu(Blip(), model)) is OnnxBlip
    model.config.text_config.hidden_act = "relu"
    assert type(on_cpu(Blip(), model)) is Blip


def test_onnx_sees_what_torch_sees() -> None:
    import torch

    for shape in SHAPES:
        model = model_of(shape, seed=1, end=0.0)
        values = torch.randn(3, 3, SIDE, SIDE)
        with torch.inference_mode():
            expected = model.vision_model(pixel_values=values).last_hidden_state
            for family in (Blip(), OnnxBlip(model)):
                torch.testing.assert_close(
                    family.see(model, values), expected, atol=1e-4, rtol=1e-4
                )
