"""A candidate is named by all that it is, and says of its golden images what it will always say."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bentos.captioner.engine import Engine
from bentos.captioner.generation import Generation
from bentos.captioner.golden import read_golden
from bentos.captioner.images import decode
from configs.schema import FinetuneConfig, GenerationConfig, ModelConfig, TinyBlipConfig
from tasks.training import candidate
from tasks.training.events import Done, Event, Progress
from tasks.training.launch import TrainJob

TINY = TinyBlipConfig(patch_size=8, vision_width=16, text_width=16, heads=2, vocab_size=150)
PROMPT = "there is"
GREEDY = GenerationConfig(max_new_tokens=7)
BEAMS = GenerationConfig(max_new_tokens=5, min_new_tokens=2, num_beams=2)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """The same job side by side, twice with the same generation limits and once with others."""
    folder = tmp_path_factory.mktemp("candidates")
    models = folder / "models"
    settings = FinetuneConfig(max_steps=2, batch_size=4, log_every_steps=1, prompt=PROMPT)
    lines: list[list[Event]] = [[], [], []]

    def train(which: int) -> candidate.Candidate:
        limits = (GREEDY, GREEDY, BEAMS)[which]
        job = TrainJob(
            model=ModelConfig(tiny=TINY),
            finetune=settings,
            dataset=dataset,
            work=folder / f"work-{which}",
            out=models,
            seed=5,
        )
        return candidate.train("shapes", job, "d" * 64, limits, lines[which].append)

    with ThreadPoolExecutor() as threads:
        return models, list(threads.map(train, range(3))), lines[0]


def test_golden_captions_are_what_the_engine_says_of_each_picture_alone(trained, dataset):
    _, (first, _, beams), _ = trained
    shown = np.load(dataset / "val-00000.npy")
    for made, limits in ((first, GREEDY), (beams, BEAMS)):
        engine = Engine.load(made.folder)
        golden = read_golden(made.folder)
        assert len(golden) == len(shown)
        for one, pixels in zip(golden, shown, strict=True):
            np.testing.assert_array_equal(decode(one.path.read_bytes()), pixels)
            generation = Generation(**limits.model_dump(), prompt=PROMPT)
            (said,) = engine.caption(pixels[np.newaxis], generation)
            assert one.caption == said.text


def test_the_card_says_how_the_model_is_to_be_run(trained):
    _, (first, _, beams), _ = trained
    for made, limits in ((first, GREEDY), (beams, BEAMS)):
        card = json.loads((made.folder / "captionloop.json").read_text())
        assert card == {
            "name": "shapes",
            "dataset_digest": "d" * 64,
            "generation": {
                "max_new_tokens": limits.max_new_tokens,
                "min_new_tokens": limits.min_new_tokens,
                "num_beams": limits.num_beams,
                "num_captions": 1,
                "prompt": PROMPT,
            },
        }


def test_the_same_training_is_the_same_candidate_and_other_limits_make_another(trained):
    models, (first, again, beams), _ = trained
    assert again == first
    assert beams.digest != first.digest
    for made in (first, beams):
        assert made.folder == (models / made.digest).resolve()
    assert {path.name for path in models.iterdir()} == {first.digest, beams.digest}
    weights = [(made.folder / "model.safetensors").read_bytes() for made in (first, beams)]
    assert weights[0] == weights[1]


def test_all_events_and_the_last_scores_reach_the_caller(trained):
    _, (first, *_), events = trained
    assert [event.step for event in events if isinstance(event, Progress)] == [1, 2]
    [done] = [event for event in events if isinstance(event, Done)]
    assert first.scores == done.scores
    assert first.scores.keys() == {"val_loss", "val_cider"}
