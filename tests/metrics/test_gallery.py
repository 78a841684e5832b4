"""Galleries show the extremes, need nothing from outside, and no caption becomes markup."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tasks.data.prepared import Split
from tasks.metrics import gallery
from tasks.metrics.evaluation import SliceEvaluation

HOSTILE = "<script>alert(1)</script> | <img src=https://example.org/x onerror=alert(1)> 'q' \"d\""


def graded(scores, prediction="a dog", reference="a cat") -> tuple[Split, SliceEvaluation]:
    count = len(scores)
    ids = [f"i{n}" for n in range(count)]
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    part = SliceEvaluation(
        image_ids=ids,
        predictions=[f"{prediction} {n}" for n in range(count)],
        references=[[f"{reference} {n}", "another"] for n in range(count)],
        log_probabilities=[-1.0] * count,
        corpus={"cider": 1.0},
        per_image={"cider": np.array(scores)},
    )
    return Split(ids, part.references, ["scenes"] * count, pixels), part


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.text += data


def test_a_third_each_of_the_worst_the_middle_and_the_best():
    chosen = gallery.pick(*graded([5, 1, 9, 3, 7, 2, 8, 4, 6]), 6)
    assert {title: [e.cider for e in group] for title, group in chosen.items()} == {
        "Worst": [1, 2],
        "Middle": [4, 5],
        "Best": [9, 8],
    }
    assert chosen["Best"][0].prediction == "a dog 2"
    assert chosen["Best"][0].references[0] == "a cat 2"


@pytest.mark.parametrize("images", [1, 2, 4])
def test_a_slice_smaller_than_the_gallery_is_shown_as_far_as_it_goes(images):
    chosen = gallery.pick(*graded(list(range(images))), 24)
    assert all(len(group) == images for group in chosen.values())


def test_a_picture_is_shown_as_it_is():
    split, _ = graded([1.0])
    head, _, data = gallery.data_uri(split.pixels[0]).partition(",")
    assert head == "data:image/png;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    np.testing.assert_array_equal(shown, split.pixels[0])


def test_a_page_needs_nothing_from_outside():
    page = Page(gallery.page("Captions of test", gallery.pick(*graded([1, 2, 3]), 3)))
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe"}
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "http" not in gallery.STYLE
    assert "url(" not in gallery.STYLE


def test_a_hostile_caption_is_text_on_the_page():
    examples = gallery.pick(*graded([1.0], HOSTILE, HOSTILE), 3)
    page = Page(gallery.page(HOSTILE, examples))
    assert {tag for tag, _ in page.tags} <= {
        *("html", "meta", "title", "style", "h1", "h2", "table", "tr", "td", "b", "br", "small"),
        "img",
    }
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 3
    assert all(set(attributes) == {"alt", "src"} for attributes in pictures)
    assert HOSTILE in page.text


def test_a_hostile_caption_is_text_in_one_cell_of_the_artifact():
    hostile = f"{HOSTILE}\n\n# heading ![x](https://example.org/p.png) [l](https://example.org)"
    text = gallery.markdown(gallery.pick(*graded([1.0], hostile, hostile), 3))
    rows = [line for line in text.splitlines() if line.startswith("| ![](data:")]
    assert len(rows) == 3
    assert all(line.replace("\\|", "").count("|") == 4 for line in rows)
    assert "<script" not in text
    assert "<img" not in text
    assert "![x](" not in text
    assert "[l](" not in text
    assert not any(line.startswith("# ") for line in text.splitlines())
