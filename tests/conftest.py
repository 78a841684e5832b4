"""State of the tests' own: a `var` folder with MLflow's database migrated, a model, photos."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k_1000"


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; to migrate one costs seconds, to copy it nothing."""
    from mlflow.tracking import MlflowClient

    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def var(tmp_path: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The `var` folder of this test; MLflow lies in it."""
    return own_var(tmp_path / "var", migrated_database, monkeypatch)


@pytest.fixture(scope="module")
def module_var(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[Path]:
    """A `var` folder that the tests of a module share."""
    with pytest.MonkeyPatch.context() as environment:
        yield own_var(tmp_path_factory.mktemp("var"), migrated_database, environment)


def own_var(var: Path, database: Path, environment: pytest.MonkeyPatch) -> Path:
    (var / "mlflow").mkdir(parents=True)
    shutil.copyfile(database, var / "mlflow" / "mlflow.db")
    environment.setenv("CAPTIONLOOP_VAR", str(var))
    for name in ("MLFLOW_TRACKING_URI", "CAPTIONLOOP_CAPTURES", "CAPTIONLOOP_DVC_REMOTE"):
        environment.delenv(name, raising=False)
    return var


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP of random weights for images of 24 pixels a side, as `finetune` leaves one."""
    from configs.schema import ModelConfig, TinyBlipConfig
    from tasks.training import model

    captions = ["a large red circle", "two small blue squares", "a green star above a diamond"]
    tiny = TinyBlipConfig(patch_size=8, vision_width=16, text_width=16, heads=2, vocab_size=90)
    folder = tmp_path_factory.mktemp("random") / "model"
    folder.mkdir()
    model.save(model.build(ModelConfig(tiny=tiny), captions * 4, 24, 3), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_git(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GIT of random weights for images of 24 pixels a side, in the published layout."""
    import json

    import torch
    from transformers import GitConfig, GitForCausalLM

    from tasks.training import tokenizer as wordpiece

    captions = ["a large red circle", "two small blue squares", "a green star above a diamond"]
    tokenizer = wordpiece.learn(captions * 4, 90)
    layer = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    layer |= {"intermediate_size": 32, "initializer_range": 0.3}
    config = GitConfig(
        vision_config=layer | {"image_size": 24, "patch_size": 8},
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **layer,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("git") / "model"
    GitForCausalLM(config).save_pretrained(folder)
    wordpiece.save(tokenizer, folder)
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": 24, "width": 24},
        "do_center_crop": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "size": {"shortest_edge": 24},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.fixture(scope="session")
def photos() -> Path:
    if not PHOTOS.is_dir():
        pytest.skip("the real photos (../shared/data/flickr8k_1000) are not on this machine")
    return PHOTOS
