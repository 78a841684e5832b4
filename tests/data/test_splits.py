"""An image's split follows from its bytes and the seed, and from nothing else."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import SplitsConfig
from tasks.data.folders import sha256
from tasks.data.splits import SPLITS, assign

KEYS = [sha256(str(number).encode()) for number in range(4000)]
SHARES = st.floats(0.001, 0.39)


def test_shares_come_out_as_configured():
    config = SplitsConfig(val=0.1, test=0.25)
    counts = Counter(assign(key, config, 0) for key in KEYS)
    assert counts["val"] / len(KEYS) == pytest.approx(0.1, abs=0.02)
    assert counts["test"] / len(KEYS) == pytest.approx(0.25, abs=0.03)


@given(st.sampled_from(KEYS), SHARES, SHARES, st.floats(0, 0.2), st.integers())
def test_larger_val_and_test_only_take_images_out_of_train(key, val, test, more, seed):
    old = assign(key, SplitsConfig(val=val, test=test), seed)
    new = assign(key, SplitsConfig(val=val + more, test=test), seed)
    assert new in SPLITS
    assert new == old or (old, new) == ("train", "val")


def test_another_seed_makes_another_split():
    config = SplitsConfig(val=0.3, test=0.3)
    assert [assign(k, config, 0) for k in KEYS[:50]] != [assign(k, config, 1) for k in KEYS[:50]]


@pytest.mark.parametrize(
    ("hint", "split"),
    [("train", "train"), ("restval", "train"), ("val", "val"), ("dev", "val"), ("test", "test")],
)
def test_the_sources_own_split_is_respected(hint, split):
    assert {assign(key, SplitsConfig(), 0, hint) for key in KEYS[:50]} == {split}


def test_an_unknown_hint_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="'tset' is unknown; sources may say train, val, test"):
        assign(KEYS[0], SplitsConfig(), 0, "tset")
