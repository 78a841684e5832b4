"""Every key a scenario YAML may hold, with its default and its limits."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A frozen part of the config: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ScenesSource(Section):
    """The demo world: captioned scenes drawn from a seed (`tasks/data/scenes.py`)."""

    format: Literal["scenes"]
    world: Literal["day", "night", "novel"] = "day"
    count: PositiveInt = 3000
    seed: int = 0


class CsvSource(Section):
    """A folder of images and a CSV with `image,caption` rows, one caption a row."""

    format: Literal["csv"]
    images: Path
    captions: Path


class FeedbackSource(Section):
    """Captured requests that people corrected, as exported by `tasks/data/feedback.py`."""

    format: Literal["feedback"]
    folder: Path


Source = Annotated[ScenesSource | CsvSource | FeedbackSource, Field(discriminator="format")]


class ChecksConfig(Section):
    """Limits of `validate`: what is outside goes to quarantine, too much of it rejects the data."""

    min_side_pixels: PositiveInt = 32
    max_pixels: PositiveInt = 40_000_000
    max_aspect_ratio: PositiveFloat = 6.0
    min_caption_words: PositiveInt = 2
    max_caption_words: PositiveInt = 60
    max_quarantined_share: Share = 0.2
    min_images: PositiveInt = 20


class SplitsConfig(Section):
    """Shares of the images kept for validation and test; the rest trains."""

    val: PositiveShare = 0.08
    test: PositiveShare = 0.12

    @model_validator(mode="after")
    def _leaves_some_to_train(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError("val and test must leave some images to train on: below 1 together")
        return self


class DataConfig(Section):
    source: Source
    image_size: PositiveInt = 72
    checks: ChecksConfig = ChecksConfig()
    splits: SplitsConfig = SplitsConfig()
    use_feedback: bool = Field(
        False, description="Fold corrected requests into the dataset, as a retraining does."
    )
    min_feedback: PositiveInt = Field(
        400, description="With fewer corrected requests than this, use_feedback trains nothing."
    )


class TinyBlipConfig(Section):
    """Architecture of a BLIP made from random weights (`model.base: scratch`)."""

    patch_size: PositiveInt = 24
    vision_width: PositiveInt = 192
    text_width: PositiveInt = 96
    vision_layers: PositiveInt = 1
    text_layers: PositiveInt = 1
    heads: PositiveInt = 4
    vocab_size: PositiveInt = 400


class ModelConfig(Section):
    base: str = Field(
        "scratch",
        description="`scratch`, `champion`, a hub id such as "
        "Salesforce/blip-image-captioning-base, or a local folder in its layout.",
    )
    tiny: TinyBlipConfig = TinyBlipConfig()


class FinetuneConfig(Section):
    max_steps: PositiveInt = 1500
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 8e-4
    warmup_share: Share = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    adam_beta2: Share = 0.98
    max_grad_norm: PositiveFloat = 1.0
    label_smoothing: Share = 0.0
    max_caption_tokens: PositiveInt = 32
    log_every_steps: PositiveInt = 25
    feedback_share: Share = Field(
        0.5, description="Share of training draws from corrected requests, when there are any."
    )


class GenerationConfig(Section):
    """How captions are decoded; a model carries these limits to wherever it is served."""

    max_new_tokens: PositiveInt = 30
    num_beams: PositiveInt = 1


class EvaluateConfig(GenerationConfig):
    batch_size: PositiveInt = 64
    gallery_images: PositiveInt = 24

    @property
    def generation(self) -> GenerationConfig:
        """The part that belongs to the model, so that the rest retrains nothing."""
        return GenerationConfig(max_new_tokens=self.max_new_tokens, num_beams=self.num_beams)


class GateConfig(Section):
    """When a candidate replaces the champion (`tasks/metrics/gate.py`)."""

    floors: dict[Literal["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"], float] = (
        Field({}, description="What a first model must reach on test; if empty, a person decides.")
    )
    margin: PositiveFloat = Field(
        0.3, description="CIDEr a candidate may lose on slices it need not win."
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    resamples: PositiveInt = 2000
    min_images: PositiveInt = 30


class PackageConfig(Section):
    smoke_timeout_seconds: PositiveFloat = 120.0


class MonitorConfig(Section):
    backend: Literal["alibi-detect", "native"] = "alibi-detect"
    window_requests: PositiveInt = 300
    min_requests: PositiveInt = 100
    reference_images: PositiveInt = 400
    p_value: Annotated[float, Field(gt=0, lt=1)] = 0.01
    permutations: PositiveInt = 200


class Config(Section):
    """One scenario. `name` is the registered model and the MLflow experiment."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    seed: int = 0
    data: DataConfig
    model: ModelConfig = ModelConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    package: PackageConfig = PackageConfig()
    monitor: MonitorConfig = MonitorConfig()
