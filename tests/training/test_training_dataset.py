import numpy as np
import pytest
import torch

from configs.schema import ModelConfig, TinyBlipConfig
from tasks.data.prepared import PreparedDataset
from tasks.training import model as models
from tasks.training.dataset import IGNORED, Collator, Draws, draw, encode
from tasks.training.errors import SettingsMismatch

TINY = TinyBlipConfig(patch_size=8, vision_width=16, text_width=16, heads=2, vocab_size=150)
DRAWS = [(0, 0), (2, 1), (5, 2), (1, 0)]


@pytest.fixture(scope="module")
def train(dataset):
    return PreparedDataset.open(dataset).split("train")


@pytest.fixture(scope="module")
def parts(train):
    captions = [caption for references in train.references for caption in references]
    built = models.build(ModelConfig(tiny=TINY), captions, 24, seed=0)
    built.model.eval()
    return built


@pytest.fixture(scope="module")
def collator(train, parts):
    return Collator.of(train, parts, max_tokens=40)


def test_labels_are_the_ids_with_padding_ignored(collator, parts):
    batch = collator(DRAWS)
    real = batch["attention_mask"].bool()
    assert not real.all(), "captions of one length would test nothing"
    assert (batch["labels"][~real] == IGNORED).all()
    assert (batch["input_ids"][~real] == parts.tokenizer.pad_token_id).all()
    assert (batch["labels"][real] == batch["input_ids"][real]).all()


def test_position_zero_is_the_token_that_generation_starts_from(collator, parts):
    batch = collator(DRAWS)
    generated = parts.model.generate(batch["pixel_values"], max_new_tokens=2)
    assert (batch["input_ids"][:, 0] == generated[:, 0]).all()
    assert parts.tokenizer.convert_ids_to_tokens(int(generated[0, 0])) == "[DEC]"


def test_captions_end_with_the_token_that_stops_generation(collator, parts):
    batch = collator(DRAWS)
    last = batch["attention_mask"].sum(dim=1) - 1
    ends = batch["input_ids"][torch.arange(len(DRAWS)), last]
    assert (ends == parts.model.config.text_config.sep_token_id).all()


def test_loss_is_the_cross_entropy_of_each_next_token_shifted_once(collator, parts):
    batch = collator(DRAWS)
    with torch.inference_mode():
        output = parts.model(**batch)
    logits = output.logits.double().numpy()
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    losses = [
        np.log(np.exp(logits[row, place]).sum())
        - logits[row, place, int(batch["input_ids"][row, place + 1])]
        for row, length in enumerate(lengths)
        for place in range(length - 1)
    ]
    assert float(output.loss) == pytest.approx(np.mean(losses), rel=1e-5)


def test_padding_changes_nothing_for_a_caption(collator, parts):
    with torch.inference_mode():
        alone = parts.model(**collator(DRAWS[:1])).logits[0]
        padded = parts.model(**collator(DRAWS)).logits[0, : len(alone)]
    torch.testing.assert_close(padded, alone)


def test_pixels_and_captions_are_those_of_the_drawn_rows(collator, train, parts):
    batch = collator(DRAWS)
    mean, std = (np.array(v) for v in (parts.processor.image_mean, parts.processor.image_std))
    for place, (row, reference) in enumerate(DRAWS):
        expected = (train.pixels[row] / 255 - mean) / std
        pixels = batch["pixel_values"][place].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(pixels, expected, atol=1e-5)
        text = parts.tokenizer.decode(batch["input_ids"][place], skip_special_tokens=True)
        said = train.references[row][reference].lower()
        assert text.replace(" ", "") == said.replace(" ", "")


def test_long_captions_are_cut_and_still_end(parts):
    ids = encode(parts.tokenizer, models.token_ids(parts.model), ["red " * 50], max_tokens=8)[0]
    assert len(ids) == 8
    assert ids[-1] == parts.tokenizer.sep_token_id


def test_unknown_characters_are_never_taught(parts):
    ids = encode(parts.tokenizer, models.token_ids(parts.model), ["red 中 circle"], max_tokens=9)[0]
    assert parts.tokenizer.unk_token_id not in ids
    assert parts.tokenizer.decode(ids, skip_special_tokens=True) == "red circle"


def test_more_tokens_than_positions_says_what_to_change(train, parts):
    with pytest.raises(SettingsMismatch, match=r"finetune\.max_caption_tokens 500.*128.*lower it"):
        Collator.of(train, parts, max_tokens=500)


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
    assert [Draws(draws)[i] for i in range(2)] == [(3, 1), (0, 0)]
