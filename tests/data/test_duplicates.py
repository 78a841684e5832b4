"""Changed copies of a picture are found, other pictures are not, at any number of pictures."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance

from tasks.data.duplicates import SIGNATURE, near_pairs, signature
from tasks.data.scenes import scene

BITS = 48


def encoded(image: Image.Image, kind: str = "JPEG", quality: int = 90) -> Image.Image:
    data = io.BytesIO()
    image.save(data, kind, quality=quality)
    return Image.open(data).convert("RGB")


def resized(image: Image.Image, share: float) -> Image.Image:
    size = round(image.width * share), round(image.height * share)
    return encoded(image.resize(size, Image.Resampling.LANCZOS))


def cropped(image: Image.Image, left: float, right: float) -> Image.Image:
    width, height = image.size
    box = (width * left, height * left, width * (1 - right), height * (1 - right))
    return encoded(image.crop(tuple(round(edge) for edge in box)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda image: resized(image, 0.5),
    "3/4 of the size": lambda image: resized(image, 0.75),
    "1.5 times the size": lambda image: resized(image, 1.5),
    "JPEG 40": lambda image: encoded(image, quality=40),
    "JPEG 65": lambda image: encoded(image, quality=65),
    "JPEG 90": lambda image: encoded(image, quality=90),
    "PNG": lambda image: encoded(image, "PNG"),
    "1 % off each side": lambda image: cropped(image, 0.01, 0.01),
    "2 % off each side": lambda image: cropped(image, 0.02, 0.02),
    "2 % off two sides": lambda image: cropped(image, 0.02, 0),
    "5 % brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.05)),
}


def test_changed_copies_of_real_photos_are_found_and_nothing_else(photos):
    kinds = list(CHANGES)
    originals = [
        Image.open(path).convert("RGB") for path in sorted((photos / "images").glob("*.jpg"))
    ]
    count = len(originals)
    planted = [(place, kinds[(place + 5 * turn) % 11]) for turn in (0, 1) for place in range(count)]
    copies = [CHANGES[kind](originals[place]) for place, kind in planted]
    photo = [*range(count), *(place for place, _ in planted)]

    pairs = near_pairs(np.array([signature(image) for image in originals + copies]), BITS)

    # No two of these 1,000 photos are themselves near-duplicates.
    right = sum(photo[one] == photo[other] for one, other in pairs)
    found = set(map(tuple, pairs.tolist()))
    hits: dict[str, list[bool]] = {kind: [] for kind in kinds}
    for copy, (place, kind) in enumerate(planted, count):
        hits[kind].append((place, copy) in found)
    recall, precision = np.mean([np.mean(hit) for hit in hits.values()]), right / len(pairs)
    print(f"{len(planted)} planted: recall {recall:.4f}, precision {precision:.4f}")
    print({kind: round(float(np.mean(hit)), 3) for kind, hit in hits.items()})
    assert recall >= 0.98
    assert precision >= 0.99
    assert min(np.mean(hit) for hit in hits.values()) >= 0.9


def test_scenes_of_other_colours_or_places_are_no_duplicates_and_clusters_stay_small():
    attributes, signatures = [], []
    for index in range(1500):
        one = scene(7, index, "day")
        attributes.append(one.attributes)
        signatures.append(signature(one.image))
    pairs = near_pairs(np.array(signatures), BITS)
    assert 0 < len(pairs) <= 10
    for one, other in pairs:
        assert attributes[one].background == attributes[other].background
        assert [(thing.colour, thing.cell) for thing in attributes[one].things] == [
            (thing.colour, thing.cell) for thing in attributes[other].things
        ]
    assert np.bincount(pairs.ravel()).max() <= 2


def disc(colour: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGB", (72, 72), (244, 244, 244))
    ImageDraw.Draw(image).ellipse((20, 20, 52, 52), fill=colour)
    return image


def plain(*colour: int) -> Image.Image:
    return Image.new("RGB", (90, 60), colour)


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        # These two have the same luminance.
        (disc((200, 30, 30)), disc((0, 137, 0)), False),
        (disc((200, 30, 30)), disc((203, 27, 33)), True),
        (plain(255, 255, 255), plain(255, 255, 255).resize((640, 480)), True),
        (plain(255, 255, 255), encoded(plain(255, 255, 255), quality=40), True),
        (plain(255, 255, 255), plain(0, 0, 0), False),
        (plain(0, 0, 0), plain(0, 0, 0).resize((33, 33)), True),
        (plain(255, 255, 255), plain(255, 255, 0), False),
        (plain(120, 160, 200), plain(126, 168, 210), True),
        (plain(244, 244, 244), disc((200, 30, 30)), False),
    ],
)
def test_hash_and_colours_must_agree(one, other, near):
    pairs = near_pairs(np.array([signature(one), signature(other)]), BITS)
    assert pairs.tolist() == ([[0, 1]] if near else [])


def test_a_signature_is_small_and_the_same_every_time():
    image = scene(7, 3, "day").image
    assert SIGNATURE.itemsize <= 96
    assert signature(image).tobytes() == signature(image.copy()).tobytes()


def random_signatures(count: int, seed: int = 0) -> np.ndarray:
    made = np.zeros(count, SIGNATURE)
    made["hash"] = np.random.default_rng(seed).integers(0, 2**64, (count, 4), np.uint64)
    return made


def flipped(hashes: np.ndarray, bits: int, draw: np.random.Generator) -> np.ndarray:
    """Each hash with exactly so many bits changed."""
    ranks = draw.random((len(hashes), 256)).argsort(axis=1).argsort(axis=1)
    return hashes ^ np.packbits(ranks < bits, axis=1).view(np.uint64)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40)), max_size=17), st.integers(0, 64))
def test_few_images_come_with_exactly_their_near_pairs(images, max_bits):
    base = random_signatures(5)
    made = np.zeros(len(images), SIGNATURE)
    for place, (which, bits) in enumerate(images):
        made["hash"][place] = flipped(
            base["hash"][which][None], bits, np.random.default_rng(place)
        )[0]
    bits = np.bitwise_count(made["hash"][:, None] ^ made["hash"][None]).sum(axis=2, dtype=int)
    expected = np.argwhere(np.triu(bits <= max_bits, 1))
    assert near_pairs(made, max_bits).tolist() == expected.tolist()


def test_among_many_random_hashes_exactly_the_planted_pairs_are_found():
    made = random_signatures(20_000)
    draw = np.random.default_rng(1)
    made["hash"][10_000:10_400] = flipped(made["hash"][:400], 24, draw)
    made["hash"][15_000:15_400] = flipped(made["hash"][5_000:5_400], BITS, draw)
    made["hash"][19_000:19_400] = flipped(made["hash"][6_000:6_400], BITS + 1, draw)
    pairs = near_pairs(made, BITS)
    found = set(map(tuple, pairs.tolist()))
    near = {(place, place + 10_000) for place in [*range(400), *range(5_000, 5_400)]}
    assert found <= near
    assert len(found) >= 0.97 * len(near)
    assert near_pairs(made, BITS).tobytes() == pairs.tobytes()


def test_equal_images_are_all_paired_with_the_first_of_them():
    made = np.repeat(random_signatures(2), [17, 40])
    found = set(map(tuple, near_pairs(made, 0).tolist()))
    assert {(i, j) for i in range(17) for j in range(i + 1, 17)} <= found
    assert {(i, j) for i in range(17, 33) for j in range(i + 1, 57)} <= found
    assert not {(i, j) for i, j in found if i < 17 <= j}


def test_images_that_are_all_alike_come_with_a_bounded_number_of_pairs():
    made = np.repeat(random_signatures(1), 5_000)
    made["hash"] = flipped(made["hash"], 4, np.random.default_rng(0))
    pairs = near_pairs(made, BITS)
    assert len(pairs) <= 48 * len(made)
    assert set(pairs[pairs[:, 0] == 0, 1]) == set(range(1, 5_000))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_for_a_pair_have_none(count):
    pairs = near_pairs(random_signatures(count), BITS)
    assert pairs.shape == (0, 2)
    assert pairs.dtype == np.int64
