import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import FinetuneConfig, ModelConfig, TinyBlipConfig
from tasks.data.prepared import PreparedDataset
from tasks.training import augment, loss
from tasks.training import model as models
from tasks.training.dataset import (
    IGNORED,
    Collator,
    Draw,
    Draws,
    bucketed,
    draw,
    encode,
    num_steps,
)
from tasks.training.errors import SettingsMismatch
from tasks.training.validation import inputs

TINY = TinyBlipConfig(patch_size=8, vision_width=16, text_width=16, heads=2, vocab_size=150)
DRAWS = [Draw(0, 0, 0), Draw(1, 2, 1), Draw(2, 5, 2), Draw(3, 1, 0)]
PROMPT = "a picture of"


@pytest.fixture(scope="module")
def train(dataset):
    return PreparedDataset.open(dataset).split("train")


@pytest.fixture(scope="module")
def parts(train):
    captions = [caption for references in train.references for caption in references]
    built = models.build(ModelConfig(tiny=TINY), [*captions, PROMPT], 24, seed=0)
    built.model.eval()
    return built


@pytest.fixture(scope="module")
def collator(train, parts):
    return Collator.of(train, parts, FinetuneConfig(max_caption_tokens=90))


@pytest.fixture(scope="module")
def prompted(train, parts):
    return Collator.of(train, parts, FinetuneConfig(max_caption_tokens=90, prompt=PROMPT))


def logits_of(batch, parts):
    with torch.inference_mode():
        return parts.model(**inputs(batch, parts)).logits


# --- what is learned ----------------------------------------------------------------------------


def test_labels_are_the_ids_with_padding_ignored(collator, parts):
    batch = collator(DRAWS)
    real = batch["attention_mask"].bool()
    assert not real.all(), "captions of one length would test nothing"
    assert (batch["labels"][~real] == IGNORED).all()
    assert (batch["input_ids"][~real] == parts.tokenizer.pad_token_id).all()
    assert (batch["labels"][real] == batch["input_ids"][real]).all()


def test_the_prompt_begins_every_caption_and_is_not_learned(prompted, collator, parts):
    batch, plain = prompted(DRAWS), collator(DRAWS)
    words = len(parts.tokenizer(PROMPT, add_special_tokens=False).input_ids)
    assert (batch["input_ids"][:, 0] == plain["input_ids"][:, 0]).all()
    for row in range(len(DRAWS)):
        text = parts.tokenizer.decode(batch["input_ids"][row, 1 : 1 + words])
        assert text == PROMPT
    assert (batch["labels"][:, 1 : 1 + words] == IGNORED).all()
    learned, expected = batch["labels"][:, 1 + words :], plain["labels"][:, 1:]
    assert torch.equal(learned, expected)
    assert loss.num_tokens(batch["labels"]) == loss.num_tokens(plain["labels"])


def test_a_prompt_that_leaves_no_room_names_both_keys(train, parts):
    long = FinetuneConfig(max_caption_tokens=8, prompt=" ".join(["a picture of"] * 3))
    with pytest.raises(SettingsMismatch, match=r"finetune\.prompt.*finetune\.max_caption_tokens 8"):
        Collator.of(train, parts, long)


def test_position_zero_is_the_token_that_generation_starts_from(collator, parts):
    batch = collator(DRAWS)
    pixel_values = inputs(batch, parts)["pixel_values"]
    generated = parts.model.generate(pixel_values, max_new_tokens=2)
    assert (batch["input_ids"][:, 0] == generated[:, 0]).all()
    assert parts.tokenizer.convert_ids_to_tokens(int(generated[0, 0])) == "[DEC]"


def test_captions_end_with_the_token_that_stops_generation(collator, parts):
    batch = collator(DRAWS)
    last = batch["attention_mask"].sum(dim=1) - 1
    ends = batch["input_ids"][torch.arange(len(DRAWS)), last]
    assert (ends == parts.model.config.text_config.sep_token_id).all()


def by_hand(batch, logits, smoothing=0.0):
    """Nats of each next token, summed over all places that have one to predict."""
    total, tokens = 0.0, 0
    values = logits.double().numpy()
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        for place in range(length - 1):
            scores = values[row, place]
            nats = np.log(np.exp(scores).sum()) - scores
            target = nats[int(batch["input_ids"][row, place + 1])]
            total += (1 - smoothing) * target + smoothing * nats.mean()
            tokens += 1
    return total, tokens


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_smoothed_cross_entropy_of_each_next_token_shifted_once(
    collator, parts, smoothing
):
    batch = collator(DRAWS)
    logits = logits_of(batch, parts)
    total, tokens = by_hand(batch, logits, smoothing)
    assert float(loss.summed(logits, batch["labels"], smoothing)) == pytest.approx(total, rel=1e-5)
    assert int(loss.num_tokens(batch["labels"])) == tokens


def test_loss_is_that_of_transformers_own_blip(collator, parts):
    """The reference implementation shifts by itself, and takes the mean."""
    batch = collator(DRAWS)
    parts.model.text_decoder.label_smoothing = 0.1
    with torch.inference_mode():
        theirs = parts.model(**inputs(batch, parts), labels=batch["labels"]).loss
    ours = loss.summed(logits_of(batch, parts), batch["labels"], 0.1)
    assert float(ours / loss.num_tokens(batch["labels"])) == pytest.approx(float(theirs), rel=1e-6)


def test_padding_changes_nothing_for_a_caption(collator, parts):
    alone = logits_of(collator(DRAWS[:1]), parts)[0]
    padded = logits_of(collator(DRAWS), parts)[0, : len(alone)]
    torch.testing.assert_close(padded, alone)


def test_pixels_and_captions_are_those_of_the_drawn_rows(collator, train, parts):
    batch = collator(DRAWS)
    values = inputs(batch, parts)["pixel_values"]
    mean, std = (np.array(v) for v in (parts.processor.image_mean, parts.processor.image_std))
    for place, (_, row, reference) in enumerate(DRAWS):
        assert np.array_equal(batch["pixels"][place].numpy(), train.pixels[row])
        expected = (train.pixels[row] / 255 - mean) / std
        np.testing.assert_allclose(values[place].permute(1, 2, 0).numpy(), expected, atol=1e-5)
        text = parts.tokenizer.decode(batch["input_ids"][place], skip_special_tokens=True)
        said = train.references[row][reference].lower()
        assert text.replace(" ", "") == said.replace(" ", "")


def test_long_captions_are_cut_and_still_end(parts):
    ids = encode(parts.tokenizer, parts.family.token_ids(parts.model), ["red " * 50], max_tokens=8)[
        0
    ]
    assert len(ids) == 8
    assert ids[-1] == parts.tokenizer.sep_token_id


def test_unknown_characters_are_never_taught(parts):
    ids = encode(
        parts.tokenizer, parts.family.token_ids(parts.model), ["red 中 circle"], max_tokens=9
    )[0]
    assert parts.tokenizer.unk_token_id not in ids
    assert parts.tokenizer.decode(ids, skip_special_tokens=True) == "red circle"


def test_more_tokens_than_positions_says_what_to_change(train, parts):
    with pytest.raises(SettingsMismatch, match=r"finetune\.max_caption_tokens 500.*128.*lower it"):
        Collator.of(train, parts, FinetuneConfig(max_caption_tokens=500))


def test_draws_are_a_function_of_the_seed():
    def drawn(seed):
        return draw(["scenes"] * 9, [5] * 9, count=100, feedback_share=0.5, seed=seed)

    assert (drawn(1) == drawn(1)).all()
    assert (drawn(1) != drawn(2)).any()


def test_every_row_comes_once_before_one_comes_again():
    rows = draw(["scenes"] * 7, [1] * 7, count=21, feedback_share=0.5, seed=3)[:, 0]
    assert all(sorted(rows[start : start + 7]) == [*range(7)] for start in (0, 7, 14))


def test_every_reference_of_a_row_is_drawn_and_no_other():
    draws = draw(["csv"] * 3, [1, 2, 5], count=600, feedback_share=0.0, seed=0)
    for row, count in enumerate((1, 2, 5)):
        assert set(draws[draws[:, 0] == row, 1]) == set(range(count))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_corrected_requests_have_their_share_of_draws(share):
    sources = ["scenes"] * 990 + ["feedback"] * 10
    rows = draw(sources, [1] * 1000, count=20_000, feedback_share=share, seed=0)[:, 0]
    assert (rows >= 990).mean() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("source", ["scenes", "feedback"])
def test_where_all_rows_are_of_one_kind_the_share_does_not_matter(source):
    rows = draw([source] * 4, [1] * 4, count=40, feedback_share=0.5, seed=0)[:, 0]
    assert np.bincount(rows).tolist() == [10] * 4


def test_draws_are_handed_out_in_order():
    draws = np.array([[3, 1], [0, 0]])
    assert [Draws(draws)[i] for i in range(2)] == [(0, 3, 1), (1, 0, 0)]


def test_all_references_come_once_before_one_comes_again():
    draws = draw(["csv"] * 3, [1, 2, 5], count=16, feedback_share=0.0, seed=0, references="all")
    pairs = {(row, i) for row, count in enumerate((1, 2, 5)) for i in range(count)}
    assert set(map(tuple, draws[:8].tolist())) == set(map(tuple, draws[8:].tolist())) == pairs


def test_epochs_are_counted_in_images_or_in_references(train):
    images, references = len(train), sum(map(len, train.references))
    for kind, count in (("random", images), ("all", references)):
        config = FinetuneConfig(epochs=3, batch_size=4, references=kind, max_steps=1)
        assert num_steps(train, config) == round(3 * count / 4)
    assert num_steps(train, FinetuneConfig(max_steps=7)) == 7


# --- batches of like lengths --------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(3, 40), min_size=1, max_size=40), st.integers(1, 8), st.integers(0, 9))
def test_bucketing_only_reorders(lengths, batch_size, seed):
    count = len(lengths) * batch_size
    tokens = np.resize(lengths, count)
    draws = np.stack([np.arange(count), np.zeros(count, np.int64)], axis=1)
    ordered = bucketed(draws, tokens, batch_size, seed)
    assert sorted(ordered[:, 0]) == list(range(count))
    assert np.array_equal(ordered, bucketed(draws, tokens, batch_size, seed))


def waste(lengths, batch_size):
    batches = lengths.reshape(-1, batch_size)
    return batches.max(axis=1).sum() * batch_size / batches.sum()


def test_bucketing_leaves_little_padding():
    lengths = np.random.default_rng(0).gamma(8, 1.6, 32 * 256).astype(int) + 3
    draws = np.stack([np.arange(len(lengths)), np.zeros(len(lengths), np.int64)], axis=1)
    ordered = bucketed(draws, lengths, 32, seed=1)
    assert waste(lengths, 32) > 1.4
    assert waste(lengths[ordered[:, 0]], 32) < 1.1


# --- variations under which captions stay true --------------------------------------------------


@pytest.mark.parametrize(
    ("captions", "may"),
    [
        (["a dog on the left of a cat"], False),
        (["a dog", "the rightmost cat"], False),
        (["a man turns Left"], False),
        (["a sign that says stop"], False),
        (["a boy in a red jersey"], False),
        (["a dog runs over grass", "a brown dog"], True),
    ],
)
def test_an_image_is_mirrored_only_where_no_caption_tells_sides_or_writing(captions, may):
    assert augment.may_be_mirrored(captions) == may


def test_a_variation_is_a_function_of_its_seed_and_close_to_the_image():
    image = np.zeros((48, 48, 3), np.uint8)
    image[:, :24] = 200
    seen = [augment.vary(image, mirror=True, seed=(3, place)) for place in range(40)]
    again = [augment.vary(image, mirror=True, seed=(3, place)) for place in range(40)]
    assert all(np.array_equal(one, other) for one, other in zip(seen, again, strict=True))
    mirrored = [bool(one[:, 40:].mean() > one[:, :8].mean()) for one in seen]
    assert 5 < sum(mirrored) < 35
    for one, turned in zip(seen, mirrored, strict=True):
        assert one.shape == image.shape
        light = (one[:, ::-1] if turned else one)[:, :12].mean()
        assert 0.88 * 200 <= light <= 1.12 * 200
    assert not any(
        augment.vary(image, mirror=False, seed=(3, place))[:, 40:].mean() > 100
        for place in range(40)
    )


def test_the_collator_varies_images_only_when_asked_and_never_for_validation(train, parts):
    plain = FinetuneConfig(max_caption_tokens=90)
    varied = plain.model_copy(update={"augment": True})
    draws = [Draw(0, 0, 0), Draw(1, 0, 0)]
    one, other = Collator.of(train, parts, varied, seed=1)(draws)["pixels"]
    assert not torch.equal(one, other)
    for collator in (Collator.of(train, parts, varied), Collator.of(train, parts, plain, seed=1)):
        assert torch.equal(collator(draws)["pixels"][0], torch.from_numpy(train.pixels[0]))
