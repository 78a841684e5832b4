"""Bare weights are the model: the same numbers, graphs and captions, or they are not taken."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bentos.captioner.families import blip_weights
from bentos.captioner.families.blip_onnx import OnnxBlip
from bentos.captioner.generation import Generation
from configs.settings import ROOT


def saved(folder: Path, text: dict[str, Any], vision: dict[str, Any]) -> Any:
    from transformers import BlipConfig, BlipForConditionalGeneration

    shared = {"num_attention_heads": 2, "initializer_range": 0.5}
    ids = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(text_config={**text, **shared, **ids}, vision_config={**vision, **shared})
    model = BlipForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    return model


@settings(max_examples=25, deadline=None)
@given(
    text=st.fixed_dictionaries(
        {
            "hidden_size": st.sampled_from([4, 8, 12]),
            "intermediate_size": st.sampled_from([4, 10]),
            "num_hidden_layers": st.integers(1, 11),
            "vocab_size": st.integers(6, 30),
            "max_position_embeddings": st.integers(4, 20),
            "layer_norm_eps": st.sampled_from([1e-12, 1e-2]),
        }
    ),
    vision=st.fixed_dictionaries(
        {
            "hidden_size": st.sampled_from([4, 8, 16]),
            "intermediate_size": st.sampled_from([6, 10]),
            "num_hidden_layers": st.integers(1, 11),
            "patch_size": st.sampled_from([4, 5]),
            "image_size": st.sampled_from([8, 12]),
            "layer_norm_eps": st.sampled_from([1e-5, 1e-2]),
        }
    ),
)
def test_a_saved_model_says_the_same_from_its_bare_weights(tmp_path_factory, text, vision) -> None:
    import torch

    folder = tmp_path_factory.mktemp("model")
    model = saved(folder, text, vision)
    bare = blip_weights.read(folder)
    assert bare is not None
    side = vision["image_size"]
    values = torch.randn(3, 3, side, side)
    found = []
    for one in (model, bare):
        family = OnnxBlip(one)
        states = family.see(one, values)
        found.append((states, family.decode(one, states, Generation(3, num_beams=2), [])))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0)
    assert found[0][1] == found[1][1]
    with torch.inference_mode():
        expected = model.vision_model(pixel_values=values).last_hidden_state
    torch.testing.assert_close(found[1][0], expected, rtol=1e-4, atol=1e-4)


def changed(tiny_blip: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_blip, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop(WORDS),
        lambda weights: weights.update({WORDS: weights[WORDS][1:].clone()}),
        lambda weights: weights.update({WORDS: weights[WORDS].half()}),
        lambda weights: weights.update(
            {"text_decoder.cls.predictions.decoder.weight": weights[WORDS].clone()}
        ),
    ],
    ids=["one missing", "another shape", "another type", "a head of its own"],
)
def test_other_weights_are_left_to_transformers(tiny_blip, tmp_path, change) -> None:
    assert blip_weights.read(changed(tiny_blip, tmp_path / "model", change)) is None


def test_embeddings_that_are_not_shared_are_left_to_transformers(tiny_blip, tmp_path) -> None:
    folder = shutil.copytree(tiny_blip, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    assert blip_weights.read(folder) is None


def test_a_server_that_starts_imports_no_models_of_transformers(tiny_blip) -> None:
    code = f"""
import sys
from pathlib import Path
from bentos.captioner.models import load_model
load_model(Path({str(tiny_blip)!r}), source="test")
print([name for name in ("transformers.modeling_utils", "torch._dynamo") if name in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[-1] == "[]"


def test_what_is_read_outlives_its_file(tiny_blip, tmp_path) -> None:
    folder = shutil.copytree(tiny_blip, tmp_path / "model")
    bare = blip_weights.read(folder)
    assert bare is not None
    before = bare.text_decoder.bert.embeddings.word_embeddings.weight.clone()
    file = folder / "model.safetensors"
    with file.open("r+b") as stream:
        stream.write(b"\0" * file.stat().st_size)
    now = bare.text_decoder.bert.embeddings.word_embeddings.weight
    assert np.array_equal(before.numpy(), now.numpy())
