import json
import shutil

import numpy as np
import pytest
import torch

from configs.schema import ModelConfig, TinyBlipConfig
from tasks.training import model as models
from tasks.training.digest import digest
from tasks.training.errors import BaseModelError, ImageSizeMismatch, SettingsMismatch

CAPTIONS = ["a red circle", "two blue squares"]
TINY = TinyBlipConfig(patch_size=8, vision_width=16, text_width=16, heads=2, vocab_size=150)


def build(**changes):
    config = ModelConfig(tiny=TINY.model_copy(update=changes))
    return models.build(config, CAPTIONS, 24, seed=3)


def test_a_model_from_scratch_is_a_function_of_its_seed():
    first, again = (build().model.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = models.build(ModelConfig(tiny=TINY), CAPTIONS, 24, seed=4).model.state_dict()
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_position_embeddings_start_as_row_plus_column():
    position = build().model.vision_model.embeddings.position_embedding[0, 1:].reshape(3, 3, -1)
    mixed = position[:1, 1:] + position[1:, :1] - position[1:, 1:]
    torch.testing.assert_close(mixed, position[:1, :1].expand_as(mixed))
    assert position.std() > 0.5


def test_a_saved_model_loads_as_a_base_with_the_same_weights(tmp_path):
    parts = build()
    models.save(parts, tmp_path)
    loaded = models.build(ModelConfig(base=str(tmp_path)), CAPTIONS, 24, seed=9)
    weights, again = parts.model.state_dict(), loaded.model.state_dict()
    assert all(torch.equal(weights[key], again[key]) for key in weights)


def test_digest_sees_weights_and_config_but_not_the_card(tmp_path):
    models.save(build(), tmp_path)
    before = digest(tmp_path)
    assert digest(shutil.copytree(tmp_path, tmp_path / "copy")) == before
    (tmp_path / "captionloop.json").write_text("{}")
    assert digest(tmp_path) == before
    for name in ("model.safetensors", "config.json", "vocab.txt", "preprocessor_config.json"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content + b" ")
        assert digest(tmp_path) != before, name
        (tmp_path / name).write_bytes(content)


def test_the_published_layout_loads_and_starts_from_dec(salesforce_base):
    model, tokenizer, processor, family = models.build(
        ModelConfig(base=str(salesforce_base)), CAPTIONS, 24, seed=0
    )
    ids = family.token_ids(model)
    tokens = tokenizer.convert_ids_to_tokens([ids.start, ids.end, ids.padding])
    assert tokens == ["[DEC]", "[SEP]", "[PAD]"]
    assert np.allclose(processor.image_mean, [0.48145466, 0.4578275, 0.40821073])


def test_another_image_size_names_the_key_and_the_size_needed(salesforce_base):
    with pytest.raises(ImageSizeMismatch, match=r"set data\.image_size to 24"):
        models.build(ModelConfig(base=str(salesforce_base)), CAPTIONS, 48, seed=0)


def break_nothing_there(folder):
    shutil.rmtree(folder)


def break_pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def break_weights_cut_short(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])


def break_config(folder):
    (folder / "config.json").write_text("{")


def break_other_model(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))


def break_weights_missing(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "crossattention" not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def break_preprocessor_size(folder):
    path = folder / "preprocessor_config.json"
    content = json.loads(path.read_text()) | {"size": {"height": 32, "width": 32}}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage",
    [
        break_nothing_there,
        break_pickle_only,
        break_weights_cut_short,
        break_config,
        break_other_model,
        break_weights_missing,
        break_preprocessor_size,
    ],
)
def test_a_base_that_cannot_be_loaded_names_key_value_and_fix(
    salesforce_base, tmp_path, monkeypatch, damage
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    base = tmp_path / "base"
    shutil.copytree(salesforce_base, base)
    damage(base)
    with pytest.raises(BaseModelError, match=r"model\.base '.*base' cannot be loaded.*Give"):
        models.build(ModelConfig(base=str(base)), CAPTIONS, 24, seed=0)


def test_shapes_that_do_not_divide_name_both_keys():
    with pytest.raises(
        SettingsMismatch, match=r"model\.tiny\.text_width 17 .*model\.tiny\.heads 2"
    ):
        build(text_width=17)
    with pytest.raises(SettingsMismatch, match=r"data\.image_size 24 .*model\.tiny\.patch_size 7"):
        build(patch_size=7)
