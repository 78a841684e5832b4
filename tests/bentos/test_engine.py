import errno
import shutil
from pathlib import Path

import numpy as np
import pytest

from bentos.captioner import engine as engine_module
from bentos.captioner.engine import BadModelFolder, Engine, WrongImageSize, image_size_of
from bentos.captioner.generation import Generation
from bentos.captioner.images import normalize, to_pixels


@pytest.fixture(scope="module")
def engine(tiny_blip: Path) -> Engine:
    return Engine.load(tiny_blip, device="cpu")


@pytest.fixture(scope="module")
def pixels(picture) -> np.ndarray:
    return np.stack([to_pixels(picture(seed), 72) for seed in range(12)])


@pytest.fixture(scope="module")
def reference(tiny_blip: Path):
    from transformers import BlipForConditionalGeneration

    return BlipForConditionalGeneration.from_pretrained(tiny_blip).eval()


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("max_new_tokens", [1, 5, 12])
def test_tokens_are_those_of_model_generate(
    engine, pixels, reference, tiny_blip, num_beams, max_new_tokens
) -> None:
    from transformers import AutoTokenizer

    values = normalize(pixels, engine._mean, engine._std)
    expected = reference.generate(
        pixel_values=values, max_new_tokens=max_new_tokens, num_beams=num_beams, do_sample=False
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_blip)
    texts = tokenizer.batch_decode(expected, skip_special_tokens=True)
    captions = engine.caption(pixels, Generation(max_new_tokens, num_beams))
    assert [caption.text for caption in captions] == texts
    end = 3
    for caption, row in zip(captions, expected[:, 1:].tolist(), strict=True):
        kept = row[: row.index(end) + 1] if end in row else row
        assert caption.num_tokens == len(kept)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_log_probability_is_that_of_one_teacher_forced_pass(
    engine, pixels, reference, num_beams
) -> None:
    import torch

    values = normalize(pixels, engine._mean, engine._std)
    sequences = reference.generate(pixel_values=values, max_new_tokens=8, num_beams=num_beams)
    captions = engine.caption(pixels, Generation(8, num_beams))
    for index, caption in enumerate(captions):
        row = sequences[index : index + 1, : 1 + caption.num_tokens]
        with torch.inference_mode():
            logits = reference(pixel_values=values[index : index + 1], input_ids=row).logits
        steps = torch.log_softmax(logits[0, :-1].double(), dim=-1)
        expected = steps.gather(1, row[0, 1:, None]).sum().item()
        assert caption.log_probability == pytest.approx(expected, abs=1e-3)


def test_run_gives_captions_and_mean_patch_tokens(engine, pixels, reference) -> None:
    import torch

    captions, embeddings = engine.run(pixels, Generation(6))
    assert captions == engine.caption(pixels, Generation(6))
    with torch.inference_mode():
        values = normalize(pixels, engine._mean, engine._std)
        hidden = reference.vision_model(values).last_hidden_state
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, hidden[:, 1:].mean(1).numpy(), atol=1e-5)


def test_the_models_tell_pictures_apart(engine, pixels) -> None:
    assert len({caption.text for caption in engine.caption(pixels, Generation(8))}) > 3
    assert {caption.num_tokens for caption in engine.caption(pixels, Generation(8))} != {8}


def test_wrong_pixels_are_refused_with_the_shape_expected(engine) -> None:
    with pytest.raises(WrongImageSize, match=r"uint8 \[n, 72, 72, 3\]"):
        engine.run(np.zeros((1, 64, 64, 3), np.uint8), Generation(1))
    with pytest.raises(ValueError, match="float32"):
        engine.run(np.zeros((1, 72, 72, 3), np.float32), Generation(1))


@pytest.mark.parametrize("size", [48, 384])
def test_the_image_size_is_told_without_loading_the_weights(make_tiny_blip, tmp_path, size) -> None:
    folder = make_tiny_blip(tmp_path / "model", seed=0, version="1", image_size=size)
    assert image_size_of(folder) == Engine.load(folder, device="cpu").image_size == size
    (folder / "config.json").unlink()
    with pytest.raises(BadModelFolder, match=r"no config\.json"):
        image_size_of(folder)


def test_a_pickle_is_never_loaded(tiny_blip, tmp_path) -> None:
    folder = shutil.copytree(tiny_blip, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadModelFolder, match="safetensors"):
        Engine.load(folder)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "config.json", "tokenizer.json"])
def test_a_folder_without_one_of_its_files_is_refused(tiny_blip, tmp_path, name) -> None:
    folder = shutil.copytree(tiny_blip, tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(BadModelFolder):
        Engine.load(folder)


def test_truncated_weights_are_refused(tiny_blip, tmp_path) -> None:
    folder = shutil.copytree(tiny_blip, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(BadModelFolder):
        Engine.load(folder)


@pytest.mark.parametrize("trouble", ["disk", "memory"])
def test_the_machines_trouble_is_not_blamed_on_the_folder(tiny_blip, monkeypatch, trouble) -> None:
    import torch
    from transformers import BlipConfig

    def fail(*args: object, **options: object) -> None:
        if trouble == "disk":
            raise OSError(errno.EIO, "Input/output error")
        torch.empty(1 << 60)

    monkeypatch.setattr(BlipConfig, "from_pretrained", fail)
    with pytest.raises((OSError, RuntimeError), match=r"Input/output|allocate"):
        Engine.load(tiny_blip)


@pytest.mark.parametrize(
    ("quota", "threads"), [("max 100000", 8), ("150000 100000", 2), ("6400000 100000", 8)]
)
def test_threads_are_the_cores_that_the_container_may_use(
    tmp_path, monkeypatch, quota, threads
) -> None:
    monkeypatch.delenv("CAPTIONLOOP_THREADS", raising=False)
    monkeypatch.setattr(engine_module, "_CPU_QUOTA", tmp_path / "cpu.max")
    assert engine_module._threads(8) == 8
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert engine_module._threads(8) == threads
    monkeypatch.setenv("CAPTIONLOOP_THREADS", "5")
    assert engine_module._threads(8) == 5


def test_what_it_runs_on_is_told_once_at_load(tiny_blip, pixels, caplog) -> None:
    import torch

    with caplog.at_level("INFO", logger="bentos.captioner.engine"):
        Engine.load(tiny_blip, device="cpu").caption(pixels, Generation(2))
    threads = torch.get_num_threads()
    assert [record.message for record in caplog.records] == [
        f"{tiny_blip} captions on cpu in float32 with {threads} CPU threads"
    ]
