"""The scenario of the real photos teaches a model something: from files on a disk to its loss."""

from statistics import mean

from configs.loader import load
from tasks.data import pipeline
from tasks.training import launch
from tasks.training.events import Done, Event, Progress
from tasks.training.launch import TrainJob


def test_on_real_photos_the_loss_falls_also_on_those_that_were_held_out(photos, tmp_path):
    overrides = [
        f"data.source.images={photos / 'images'}",
        f"data.source.captions={photos / 'captions.txt'}",
        "finetune.max_steps=60",
        "finetune.log_every_steps=5",
    ]
    config = load("configs/flickr8k.yaml", overrides)
    report = pipeline.read_and_check(config, tmp_path)
    prepared = pipeline.prepare(report.accepted(), config, tmp_path / "prepared").trainable()
    job = TrainJob(
        model=config.model,
        finetune=config.finetune,
        dataset=prepared.folder,
        work=tmp_path / "work",
        out=tmp_path / "model",
        seed=config.seed,
    )
    events: list[Event] = []
    launch.train(job, events.append)
    logged = [event for event in events if isinstance(event, Progress)]
    [end] = [event for event in events if isinstance(event, Done)]
    assert [line.step for line in logged] == [*range(5, 61, 5)]
    first, last = logged[0].loss, mean(line.loss for line in logged[-4:])
    assert last < 0.75 * first
    assert end.scores["val_loss"] < 0.75 * first
