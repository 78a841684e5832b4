"""Every key a scenario YAML may hold, with its default and its limits."""

import math
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Level = Annotated[float, Field(gt=0, lt=0.5)]  # of a statistical test

_SLICES = 10  # that a gate can compare at once, each at its level over their number


class Section(BaseModel):
    """A frozen part of the config: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _one_or_more(value: object) -> object:
    return value if isinstance(value, (list, tuple)) else (value,)


def _place(value: object) -> object:
    return value if not isinstance(value, str) or "://" in value else Path(value)


# A file or folder here, or an fsspec URL such as s3://bucket/photos.
Place = Annotated[Path | str, BeforeValidator(_place)]


class ScenesSource(Section):
    """The demo world: captioned scenes drawn from a seed (`tasks/data/scenes.py`)."""

    format: Literal["scenes"]
    world: Literal["day", "night", "novel"] = "day"
    count: PositiveInt = 3000
    seed: int = 0


class Columns(Section):
    """Names of a table's columns; what is not given is looked for under the usual names."""

    image: str | None = None
    caption: str | None = Field(None, description="One caption a row, or a list of captions.")
    captions: tuple[str, ...] = Field((), description="Several captions a row, a column each.")
    split: str | None = None


class AutoSource(Section):
    """A source whose format is found from its files (`tasks/data/readers/detect.py`)."""

    format: Literal["auto"] = "auto"
    images: Place | None = None
    captions: Place | None = None


class CaptionFileSource(Section):
    """Images in a folder, captions in a file of their own; by default the folder is the file's."""

    captions: Place
    images: Place | None = None


class CocoSource(CaptionFileSource):
    """COCO's captions_*.json: `images` and `annotations`."""

    format: Literal["coco"]


class KarpathySource(CaptionFileSource):
    """Karpathy's dataset_*.json: images with sentences and splits."""

    format: Literal["karpathy"]


class FlickrTokenSource(CaptionFileSource):
    """Lines of `image.jpg#0<TAB>caption`."""

    format: Literal["flickr_token"]
    encoding: str = "utf-8"


class TableSource(CaptionFileSource):
    """A table, one caption a row or several; images by file name, or in the cells (Parquet)."""

    format: Literal["csv", "tsv", "jsonl", "parquet"]
    columns: Columns = Columns()
    encoding: str = "utf-8"


class ImageFolderSource(Section):
    """A folder with `metadata.jsonl` or `metadata.csv`, as `datasets` defines an imagefolder."""

    format: Literal["imagefolder"]
    images: Place
    columns: Columns = Columns()


class WebDatasetSource(Section):
    """Tar shards of `key.jpg` with `key.txt` or `key.json`; each place is a shard or a folder."""

    format: Literal["webdataset"]
    shards: Annotated[tuple[Place, ...], BeforeValidator(_one_or_more), Field(min_length=1)]
    columns: Columns = Columns()


class HfSource(Section):
    """A dataset that `datasets` loads, by hub name or from a folder."""

    format: Literal["hf"]
    dataset: Place
    subset: str | None = None
    revision: str | None = None
    splits: tuple[str, ...] = Field((), description="Only these; by default all.")
    columns: Columns = Columns()


class FeedbackSource(Section):
    """Captured requests that people corrected, as exported by `tasks/data/feedback.py`."""

    format: Literal["feedback"]
    folder: Path


class GoldenSource(Section):
    """The frozen test set, as `tasks/data/golden.py` wrote it."""

    format: Literal["golden"]
    folder: Path


def _format(value: Any) -> str:
    found = value.get("format", "auto") if isinstance(value, dict) else value.format
    return "table" if found in ("csv", "tsv", "jsonl", "parquet") else str(found)


Source = Annotated[
    Annotated[AutoSource, Tag("auto")]
    | Annotated[ScenesSource, Tag("scenes")]
    | Annotated[CocoSource, Tag("coco")]
    | Annotated[KarpathySource, Tag("karpathy")]
    | Annotated[FlickrTokenSource, Tag("flickr_token")]
    | Annotated[TableSource, Tag("table")]
    | Annotated[ImageFolderSource, Tag("imagefolder")]
    | Annotated[WebDatasetSource, Tag("webdataset")]
    | Annotated[HfSource, Tag("hf")]
    | Annotated[FeedbackSource, Tag("feedback")]
    | Annotated[GoldenSource, Tag("golden")],
    Discriminator(_format),
]

# What a source turns out to be, as its images carry it.
SourceFormat = Literal[
    "scenes",
    "coco",
    "karpathy",
    "flickr_token",
    "csv",
    "tsv",
    "jsonl",
    "parquet",
    "imagefolder",
    "webdataset",
    "hf",
]

# `note` counts and lists a finding, `quarantine` also sets it aside, `reject` refuses the dataset.
Action = Literal["note", "quarantine", "reject"]
# For what can't be used at all.
Refusal = Literal["quarantine", "reject"]


class Actions(Section):
    """What `validate` does about each thing it finds: the keys are the rules' names."""

    missing: Refusal = "quarantine"
    unreadable: Refusal = "quarantine"
    changed: Refusal = "quarantine"
    malformed_row: Refusal = "quarantine"
    outside_folder: Refusal = "quarantine"
    empty_file: Refusal = "quarantine"
    not_an_image: Refusal = "quarantine"
    truncated: Refusal = "quarantine"
    damaged: Refusal = "quarantine"
    too_many_pixels: Refusal = "quarantine"
    too_small: Action = "quarantine"
    extreme_aspect_ratio: Action = "quarantine"
    animated: Action = "quarantine"
    wrong_extension: Action = "note"
    rotated_by_exif: Action = "note"
    grey: Action = "note"
    palette: Action = "note"
    transparent: Action = "note"
    cmyk: Action = "note"
    sixteen_bit: Action = "note"
    caption_empty: Refusal = "quarantine"
    caption_too_short: Action = "quarantine"
    caption_too_long: Action = "quarantine"
    caption_duplicate: Action = "quarantine"
    caption_too_common: Action = "note"
    caption_control_characters: Action = "quarantine"
    caption_mixed_scripts: Action = "note"
    caption_markup: Action = "quarantine"
    caption_url: Action = "quarantine"
    duplicate_image: Refusal = "quarantine"
    near_duplicate: Action = "note"
    leak: Action = "quarantine"


class ChecksConfig(Section):
    """Limits of `validate`, and what is done about what lies outside them."""

    min_side_pixels: PositiveInt = 32
    max_pixels: PositiveInt = 40_000_000
    max_aspect_ratio: PositiveFloat = 6.0
    min_caption_words: PositiveInt = 2
    max_caption_words: PositiveInt = 60
    max_common_share: PositiveShare = Field(
        0.02, description="A caption on more than this share of the images is too common."
    )
    near_duplicate_bits: Annotated[int, Field(ge=0, le=64)] = Field(
        48, description="Perceptual hashes of 256 bits within this distance are near-duplicates."
    )
    actions: Actions = Actions()
    max_quarantined_share: Share = Field(
        0.2, description="More of the images that are there set aside rejects the dataset."
    )
    max_missing_share: Share = Field(
        0.95, description="A caption file may well name more images than the folder holds."
    )
    min_images: PositiveInt = 1


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
    source: Annotated[tuple[Source, ...], BeforeValidator(_one_or_more), Field(min_length=1)]
    golden: Path | None = Field(
        None, description="A frozen test set (`python -m tasks.data.golden`); never trained on."
    )
    image_size: PositiveInt = 72
    checks: ChecksConfig = ChecksConfig()
    splits: SplitsConfig = SplitsConfig()
    dask_address: str | None = Field(
        None, description="Validate and prepare on this Dask cluster; by default on threads here."
    )
    use_feedback: bool = Field(
        False, description="Fold corrected requests into the dataset, as a retraining does."
    )

    @property
    def sources(self) -> list[Source]:
        """What is read, the golden set first: what comes first keeps its split."""
        golden = [GoldenSource(format="golden", folder=self.golden)] if self.golden else []
        return [*golden, *self.source]


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


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021), merged into the weights when training ends."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class FinetuneConfig(Section):
    method: Literal["full", "frozen_vision", "lora"] = "full"
    lora: LoraConfig = LoraConfig()
    max_steps: PositiveInt = Field(1500, description="Optimizer steps, unless `epochs` says.")
    epochs: PositiveInt | None = Field(None, description="Passes over the train split.")
    batch_size: PositiveInt = Field(
        32, description="Images of one optimizer step, over all processes and accumulation."
    )
    micro_batch_size: PositiveInt | None = Field(
        None,
        description="Images that a device takes at once, the rest is accumulated; by default as "
        "many as its share of the batch. Halved by itself where memory runs out.",
    )
    num_processes: PositiveInt = Field(
        1, description="One a GPU, of all machines; on a CPU they talk by gloo."
    )
    accelerate_config: Path | None = Field(
        None, description="A file that `accelerate config` wrote, for several machines."
    )
    deployment: str | None = Field(
        None, description="Train by this deployment (`finetune/gpu`); by default inline."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="On a GPU bfloat16 where it has it, else float16; float32 on a CPU."
    )
    gradient_checkpointing: bool = Field(False, description="Less memory for a third more time.")
    learning_rate: PositiveFloat = 8e-4
    schedule: Literal["cosine", "linear"] = "cosine"
    warmup_share: Share = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    adam_beta2: Share = 0.98
    max_grad_norm: PositiveFloat = 1.0
    label_smoothing: Share = 0.0
    prompt: str = Field("", description="Begins every caption, is not learned, and is not said.")
    max_caption_tokens: PositiveInt = 32
    references: Literal["random", "all"] = Field(
        "random", description="Of an image's captions one at random an epoch, or each."
    )
    augment: bool = Field(
        False, description="Crop, brightness, and mirrored where no caption tells left from right."
    )
    feedback_share: Share = Field(
        0.5, description="Share of training draws from corrected requests, when there are any."
    )
    log_every_steps: PositiveInt = 25
    evaluate_every_steps: PositiveInt = Field(
        250, description="Validation; the best weights by CIDEr are the candidate."
    )
    val_images: PositiveInt = Field(200, description="At most so many of the validation split.")
    patience: PositiveInt | None = Field(
        None, description="Stop after so many validations in a row without a better CIDEr."
    )
    checkpoint_every_steps: PositiveInt = 250
    keep_checkpoints: PositiveInt = Field(2, description="The newest; the best one stays too.")


class GenerationConfig(Section):
    """How captions are decoded; a model carries these limits to wherever it is served."""

    max_new_tokens: PositiveInt = 30
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    num_beams: PositiveInt = 1


class Range(Section):
    """Numbers from `min` to `max`, both included; one of the two may be left out."""

    min: NotNegative | None = None
    max: NotNegative | None = None

    @model_validator(mode="after")
    def _holds_some(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min must not be above max")
        return self


class ShareRange(Range):
    min: Share | None = None
    max: Share | None = None


class SliceConfig(Section):
    """Some images of the test split: those that meet every condition given."""

    caption_words: Range | None = Field(
        None, description="Words in the image's human captions, on average."
    )
    words: Annotated[tuple[Word, ...], BeforeValidator(_one_or_more)] = Field(
        (), description="Words or phrases of which a human caption has at least one."
    )
    source: Annotated[tuple[SourceFormat, ...], BeforeValidator(_one_or_more)] = Field(
        (), description="Formats of the sources that the image may come from."
    )
    image_side: Range | None = Field(
        None, description="Pixels of the shorter side, as the picture came."
    )
    brightness: ShareRange | None = Field(None, description="Of the mean pixel: 0 black, 1 white.")

    @model_validator(mode="after")
    def _has_a_condition(self) -> Self:
        if self == SliceConfig.model_construct():
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)}")
        return self


class EvaluateConfig(GenerationConfig):
    batch_size: PositiveInt = 64
    gallery_images: PositiveInt = Field(
        24, description="The best so many of each slice, the worst, the most changed and others."
    )
    slices: dict[Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")], SliceConfig] = Field(
        {}, description="Parts of the test split that are scored by themselves, too, by name."
    )

    @field_validator("slices")
    @classmethod
    def _leaves_our_names(cls, slices: dict[str, SliceConfig]) -> dict[str, SliceConfig]:
        if taken := sorted({"test", "golden", "current"} & slices.keys()):
            raise ValueError(f"{', '.join(taken)}: there always is such a slice; name it otherwise")
        return slices

    @property
    def generation(self) -> GenerationConfig:
        """The part that belongs to the model, so that the rest retrains nothing."""
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            num_beams=self.num_beams,
        )


class GateConfig(Section):
    """When a candidate replaces the champion (`tasks/metrics/gate.py`)."""

    floors: dict[Literal["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"], float] = (
        Field(
            {},
            description="What every candidate must reach on test; a first model without any is "
            "for a person to decide.",
        )
    )
    superior_on: str | None = Field(
        None, description="The slice to be better on; by default `current`, else `test`."
    )
    alpha: Level = Field(0.025, description="Chance of calling a candidate better that is not.")
    margin: PositiveFloat = Field(
        0.3, description="CIDEr a candidate may lose on slices it need not win."
    )
    margins: dict[str, PositiveFloat] = Field(
        {}, description="Other margins, by slice: `{golden: 0.1}`."
    )
    margin_alpha: Level = Field(
        0.005, description="Chance of passing a candidate that is worse by the margin."
    )
    ignored: tuple[str, ...] = Field(
        (), description="Slices that are scored and decide nothing: too small to, for instance."
    )
    resamples: PositiveInt = Field(
        10_000, description="Of the images, for each test; p-values can't be below one over these."
    )
    min_images: PositiveInt = Field(
        30, description="With fewer images than this on a slice, a person decides."
    )
    max_latency_seconds: PositiveFloat | None = Field(
        None, description="Median of one image captioned alone, on the machine that evaluates."
    )
    max_size_bytes: PositiveInt | None = Field(None, description="Of the model's folder.")
    approval_hours: PositiveFloat = Field(
        72, description="How long a flow waits for a person; unanswered, the champion stays."
    )

    @model_validator(mode="after")
    def _resolves_its_levels(self) -> Self:
        needed = math.ceil(_SLICES / min(self.alpha, self.margin_alpha))
        if self.resamples < needed:
            raise ValueError(
                f"{self.resamples} resamples can't tell levels this small apart: "
                f"set resamples to {needed} or more"
            )
        return self


class PackageConfig(Section):
    smoke_timeout_seconds: PositiveFloat = 120.0
    # What the service is to do besides; with MLflow it can follow the champion.
    extras: tuple[Literal["heic", "mlflow", "s3"], ...] = ("mlflow",)


class MonitorConfig(Section):
    backend: Literal["alibi-detect", "native"] = "alibi-detect"
    window_requests: PositiveInt = 300
    min_requests: PositiveInt = 100
    reference_images: PositiveInt = 400
    p_value: Annotated[float, Field(gt=0, lt=1)] = 0.01
    permutations: PositiveInt = 200
    confirm_windows: PositiveInt = Field(1, description="So many of the last `confirm_of` exceed.")
    confirm_of: PositiveInt = 1


class RetrainConfig(Section):
    """What a retraining needs of the captions that people send, and which of them it may use.

    How often it draws what they corrected is `finetune.feedback_share`.
    """

    min_labels: PositiveInt = Field(
        400,
        description="Pictures with usable captions that the champion has not learnt from; with "
        "fewer a retraining trains nothing and asks for a labelling batch.",
    )
    batch_images: PositiveInt = Field(200, description="Pictures of a labelling batch, at most.")
    deployment: str | None = Field(
        None, description="What retrains, such as train/demo-retrain, for a person to start."
    )
    max_client_share: PositiveShare = Field(
        0.5,
        description="Of the captions used, from one address; clients with a token have no limit.",
    )
    max_repeated_share: PositiveShare = Field(
        0.1, description="A caption sent for more than this share of the pictures says nothing."
    )
    max_unknown_share: Share = Field(
        0.5,
        description="Of a caption's words, that are in no other caption: more of them, and no word "
        "of the model's caption, is far from every caption.",
    )


class Searched(Section):
    """What a search tries for a key: numbers from `low` to `high`, or one of `choices`."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = Field(False, description="Evenly over the orders of magnitude.")
    choices: tuple[bool | int | float | str | None, ...] = ()

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.choices:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("give either choices, or low and high")
        elif self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        elif self.low >= self.high:
            raise ValueError("low must be below high")
        elif self.log and self.low <= 0:
            raise ValueError("log needs a low above 0")
        return self


class _Searchable(Section):
    """The sections that a search may vary."""

    finetune: FinetuneConfig = FinetuneConfig()
    model: ModelConfig = ModelConfig()

    @classmethod
    def valid(cls, key: str, value: object) -> Any:
        """`value` as the type that `key` takes; its ValidationError names the key."""
        keys = key.split(".")
        section = cls.model_validate(reduce(lambda inner, k: {k: inner}, reversed(keys), value))
        return reduce(getattr, keys, section)


class SearchConfig(Section):
    """A search for better settings (`flows/search.py`); each trial is one fine-tuning."""

    trials: PositiveInt = Field(20, description="In all, over however many runs of the flow.")
    startup_trials: PositiveInt = Field(
        5, description="First ones, drawn at random and (of complete ones) never ended early."
    )
    space: Annotated[
        dict[Annotated[str, Field(pattern=r"^(finetune|model\.tiny)\.")], Searched],
        Field(min_length=1, description="By dotted key: `finetune.learning_rate: {low: …}`."),
    ]

    @field_validator("space")
    @classmethod
    def _gives_valid_settings(cls, space: Mapping[str, Searched]) -> dict[str, Searched]:
        """Each end of a range and each choice as its key takes it, so that a float is one."""
        valid = {}
        for key, searched in space.items():
            ends = {name: getattr(searched, name) for name in ("low", "high")}
            update: dict[str, object] = {
                name: _Searchable.valid(key, end) for name, end in ends.items() if end is not None
            }
            update["choices"] = tuple(_Searchable.valid(key, each) for each in searched.choices)
            valid[key] = searched.model_copy(update=update)
        return valid


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
    retrain: RetrainConfig = RetrainConfig()
    search: SearchConfig | None = None

    @field_validator("gate")
    @classmethod
    def _judges_slices_that_there_are(cls, gate: GateConfig, info: ValidationInfo) -> GateConfig:
        if "evaluate" not in info.data:
            return gate  # wrong by itself
        own = {"golden", *info.data["evaluate"].slices}
        slices = {"test", "current", *own}
        won = {gate.superior_on} - {None}
        if unknown := (won | gate.margins.keys()) - slices:
            raise ValueError(f"no slice {_listed(unknown)}: expected {_listed(slices)}")
        if refused := set(gate.ignored) - (own - won):
            raise ValueError(f"{_listed(refused)} can't be ignored: expected {_listed(own - won)}")
        return gate


def _listed(names: set[Any]) -> str:
    return ", ".join(sorted(names))
