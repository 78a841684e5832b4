"""The demo world is pure, varied, honest about what it shows, and small in words."""

import re

import numpy as np
import pytest

from tasks.data.scenes import SIDE, Scene, scene

WORLDS = ("day", "night", "novel")


@pytest.fixture(scope="module")
def worlds() -> dict[str, list[Scene]]:
    return {world: [scene(7, index, world) for index in range(400)] for world in WORLDS}


def words(scenes: list[Scene]) -> set[str]:
    return {word for s in scenes for caption in s.references for word in caption.split()}


@pytest.mark.parametrize("world", WORLDS)
def test_the_same_place_in_a_world_is_the_same_scene_whatever_was_drawn_before(world):
    first = scene(3, 11, world)
    scene(3, 12, world)
    again = scene(3, 11, world)
    assert first.references == again.references
    assert first.attributes == again.attributes
    assert first.image.tobytes() == again.image.tobytes()


def test_another_seed_index_or_world_is_another_scene():
    base = scene(3, 11, "day")
    for other in (scene(4, 11, "day"), scene(3, 12, "day"), scene(3, 11, "night")):
        assert other.image.tobytes() != base.image.tobytes()


def test_a_known_scene_keeps_its_captions_on_every_machine():
    assert scene(0, 0, "day").references[0] == (
        "a large orange triangle above a large red square on a white background"
    )


def test_every_scene_has_five_different_captions_and_the_right_size(worlds):
    for scenes in worlds.values():
        for s in scenes:
            assert len(set(s.references)) == 5
            assert s.image.size == (SIDE, SIDE)
            assert s.image.mode == "RGB"


def test_all_worlds_together_use_fewer_than_150_words(worlds):
    assert len(set.union(*map(words, worlds.values()))) < 150


def test_articles_and_plurals_are_right(worlds):
    for scenes in worlds.values():
        for s in scenes:
            for caption in s.references:
                assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption), caption
                plural = re.search(r"\b(two|pair of)\b", caption) is not None
                assert plural == bool(
                    re.search(r"\b(circle|star|square|triangle|diamond|heart|hexagon)s\b", caption)
                )


def test_captions_name_every_colour_and_shape_that_is_there_and_no_other(worlds):
    colours = {"red", "green", "blue", "yellow", "purple", "orange", "pink", "brown", "cyan"}
    for scenes in worlds.values():
        for s in scenes:
            for caption in s.references:
                assert colours & set(caption.split()) == {t.colour for t in s.attributes.things}
                assert all(thing.shape in caption for thing in s.attributes.things)


def test_things_lie_where_the_relation_says(worlds):
    for s in worlds["day"]:
        if s.attributes.relation is not None:
            (row, column), (other_row, other_column) = (t.cell for t in s.attributes.things)
            if s.attributes.relation == "left":
                assert row == other_row
                assert column < other_column
            else:
                assert column == other_column
                assert row < other_row


def test_things_are_painted_in_their_cells(worlds):
    for s in worlds["day"]:
        pixels = np.asarray(s.image, dtype=int)
        ground = (
            pixels[0, 0] if (0, 0) not in {t.cell for t in s.attributes.things} else pixels[-1, -1]
        )
        for thing in s.attributes.things:
            top, left = (place * 24 for place in thing.cell)
            cell = pixels[top : top + 24, left : left + 24]
            # Purple on gray is the closest pair: 118 apart, less 54 of shading on both.
            assert abs(cell - ground).sum(axis=2).max() >= 64


def test_night_is_dark_and_says_so_and_day_is_neither(worlds):
    def brightness(scenes: list[Scene]) -> float:
        return float(np.mean([np.asarray(s.image).mean() for s in scenes]))

    assert brightness(worlds["night"]) < 30 < 100 < brightness(worlds["day"])
    assert all("night" in c or "dark" in c for s in worlds["night"] for c in s.references)
    assert not {"night", "dark"} & words(worlds["day"])


def test_every_novel_thing_has_a_colour_or_shape_that_day_never_shows(worlds):
    known = words(worlds["day"])
    for s in worlds["novel"]:
        assert all({t.colour, t.shape} - known for t in s.attributes.things)


def test_the_letters_of_the_shifted_worlds_occur_in_day_so_its_tokenizer_can_spell_them(worlds):
    def pieces(known: set[str]) -> set[str]:
        return {w[0] for w in known} | {f"##{letter}" for w in known for letter in w[1:]}

    letters = {letter for word in words(worlds["day"]) for letter in word}
    continuing = {piece for piece in pieces(words(worlds["day"])) if piece.startswith("##")}
    for world in ("night", "novel"):
        needed = pieces(words(worlds[world]))
        assert {piece for piece in needed if len(piece) == 1} <= letters
        assert {piece for piece in needed if piece.startswith("##")} <= continuing


def test_an_unknown_world_is_refused_by_name():
    with pytest.raises(ValueError, match="no world named 'mars'"):
        scene(0, 0, "mars")
