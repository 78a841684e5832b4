"""The report: its numbers are the facts', nothing leaves the page, nothing of the data gets in."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs.schema import Actions
from tasks.data.markup import plain
from tasks.data.profile import Profile, ProfileBuilder
from tasks.data.report.facts import Counts, Example, Facts, summary
from tasks.data.report.markdown import markdown
from tasks.data.report.page import write
from tasks.data.report.plots import plots
from tasks.data.report.rules import RULES

HOSTILE = "\"onerror='alert(1)'><script>alert(1)</script>|[x](http://evil.example)<!--"
VOID = {"meta", "img", "br", "line", "rect", "path"}


class Page(HTMLParser):
    """What a browser would make of the page: its elements, its text, whether all is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID or tag == "rect":
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def profiled(*captions: str, images: int = 1) -> Profile:
    builder = ProfileBuilder()
    for _ in range(images):
        builder.add(captions, 500, 375)
    return builder.profile()


def facts(**changes) -> Facts:
    plainest = Facts(
        name="birds",
        digest="d1ge57",
        verdict=None,
        read=Counts(0, 0),
        accepted=Counts(0, 0),
        quarantined={},
        noted={},
        examples={},
        splits={},
        leaks=0,
        leak_pairs=(),
        clusters=(),
        gallery=(),
        profile=profiled(images=0),
        previous=None,
    )
    return replace(plainest, **changes)


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (640, 480), (200, 90, 40)).save(path)
    return path


@pytest.fixture
def full(photo, tmp_path) -> Facts:
    """Something in every section; the numbers are all different."""
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photo.read_bytes()[:300])
    good, bad = Example("good.jpg", "a bird", photo), Example("cut.jpg", "at byte 300", broken)
    return facts(
        read=Counts(12_345, 61_001),
        accepted=Counts(11_111, 55_002),
        quarantined={"missing": 1_201, "truncated": 33, "caption_url": 4_077},
        noted={"near_duplicate": 517, "grey": 1_019},
        examples={
            "missing": (Example("gone.jpg", "no such file", None),),
            "truncated": (bad,),
            "near_duplicate": (good,),
        },
        splits={"train": 8_003, "val": 1_041, "test": 2_067},
        leaks=29,
        leak_pairs=((good, bad),),
        clusters=((good, good, bad),),
        gallery=((good, ("a bird on a wire", "one bird")),),
        profile=profiled("a bird on a wire", "one bird", images=300),
        previous=profiled("a bird", "an old tree", images=200),
    )


def rendered(facts: Facts, folder: Path) -> Page:
    return Page(write(facts, folder).read_text(encoding="utf-8"))


def test_the_numbers_on_the_page_are_those_of_the_facts(full, tmp_path):
    page = rendered(full, tmp_path)
    assert "12,345 read = 11,111 accepted + 1,234 set aside" in page.words
    assert "61,001 read = 55,002 accepted + 5,999 set aside" in page.words
    assert "No such image missing 1,201 images" in page.words
    assert "Web address caption_url 4,077 captions" in page.words
    assert "Grey grey 1,019 images" in page.words
    assert "train 8,003 val 1,041 test 2,067" in page.words
    assert "Leaks 29 between splits" in page.words
    assert "Near-duplicates 517 images much like another" in page.words
    assert "These are 1 of 29." in page.words
    assert "Images 200 300 +100 (50 %)" in page.words
    assert "d1ge57" in page.words


def test_the_json_beside_it_holds_the_summary_the_profile_and_the_drift(full, tmp_path):
    page = write(full, tmp_path)
    told = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    assert (
        told["summary"]
        == summary(full)
        == {
            "read": {"images": 12_345, "captions": 61_001},
            "accepted": {"images": 11_111, "captions": 55_002},
            "quarantined": full.quarantined,
            "noted": full.noted,
            "splits": full.splits,
            "leaks": 29,
            "digest": "d1ge57",
        }
    )
    assert told["verdict"] is None
    assert Profile.from_json(told["profile"]) == full.profile
    assert told["drift"]["images"] == {"before": 200, "after": 300}
    assert [change["word"] for change in told["drift"]["new_words"]] == ["on", "one", "wire"]


def test_nothing_outside_the_page_is_asked_for(full, tmp_path):
    text = write(full, tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    places = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in {"src", "href", "srcset", "action", "poster", "data"} and value
    ]
    assert {place[:23] for place in places if not place.startswith("#")} == {
        "data:image/jpeg;base64,"
    }
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {place[1:] for place in places if place.startswith("#")} <= ids
    assert not page.all("script") + page.all("link") + page.all("iframe")
    assert "url(" not in text
    assert "@import" not in text
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_a_picture_that_is_broken_or_gone_leaves_its_place_and_its_reason(full, tmp_path):
    page = rendered(full, tmp_path)
    assert len(page.all("img")) == 5  # near-duplicate, gallery, one of the pair, two of the cluster
    assert page.words.count("no picture to show") == 4
    assert "at byte 300" in page.words
    assert "gone.jpg no such file" in page.words
    for image in page.all("img"):
        data = base64.b64decode(image["src"].partition(",")[2])
        assert max(Image.open(io.BytesIO(data)).size) <= 280


def test_what_the_data_says_is_text_and_never_markup(photo, tmp_path):
    example = Example(HOSTILE, HOSTILE, photo)
    hostile = facts(
        name=HOSTILE,
        verdict=f"missing: {HOSTILE}",
        quarantined={"missing": 1},
        noted={"grey": 1},
        examples={"missing": (example,), "grey": (example,)},
        splits={HOSTILE: 3},
        leak_pairs=((example, example),),
        clusters=((example,),),
        gallery=((example, (HOSTILE, "\x00\x1b[31m\u202eevil")),),
        profile=profiled(HOSTILE, HOSTILE, "a dog", images=20),
        previous=profiled("a cat", images=20),
    )
    page = rendered(hostile, tmp_path)
    assert not page.all("script")
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    assert page.words.count(HOSTILE) >= 12
    assert not set("\x00\x1b\u202e") & set(page.words)


def test_markdown_shows_what_the_data_says_and_makes_nothing_of_it(photo):
    example = Example(HOSTILE, HOSTILE, photo)
    text = markdown(
        facts(
            name=HOSTILE,
            verdict=HOSTILE,
            quarantined={"missing": 1},
            examples={"missing": (example,)},
            gallery=((example, (HOSTILE,)),),
            profile=profiled(HOSTILE, images=9),
            previous=profiled("a cat", images=9),
        )
    )
    assert "<script" not in text
    assert "http://" not in text
    assert not re.findall(r"\]\((?!data:image/)", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows
    for row in rows:
        assert row.count("|") == len(row.split(" | ")) + 1, row


def test_markdown_holds_the_numbers_and_its_pictures(full):
    text = markdown(full)
    assert "| images | 12,345 | 11,111 | 1,234 |" in text
    assert "| captions | 61,001 | 55,002 | 5,999 |" in text
    assert "1,201 images" in text
    assert "4,077 captions" in text
    assert "train 8,003, val 1,041, test 2,067" in text
    assert "Leaks between splits: 29." in text
    assert "| mean words in a caption | 2.5 | 3.5 |" in text
    assert text.count("](data:image/svg+xml;base64,") == 2
    assert text.count("](data:image/jpeg;base64,") == 2  # the gallery and a near-duplicate


def test_the_same_facts_give_the_same_bytes(full, tmp_path):
    one, other = write(full, tmp_path / "one"), write(full, tmp_path / "other")
    for name in ("report.html", "report.json"):
        assert (one.parent / name).read_bytes() == (other.parent / name).read_bytes()
    assert markdown(full) == markdown(full)


def test_page_and_markdown_stay_small_however_much_there_is_to_say(tmp_path):
    noisy = tmp_path / "noise.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(noisy, quality=95)  # as large as a thumbnail gets
    quotes = '"' * 2_000  # five letters each, once escaped
    many = tuple(Example(f"{i}-{quotes}", quotes, noisy) for i in range(10_000))
    rules = dict.fromkeys(Actions.model_fields, 10_000)
    builder = ProfileBuilder()
    for i in range(1_000):
        builder.add([f"word{i} {'z' * 300}"] * (i % 120), 10 * i + 1, 10_000 - 10 * i)
    endless = facts(
        verdict=f"missing: {quotes * 50}",
        read=Counts(10**9, 10**9),
        quarantined=rules,
        noted=rules,
        examples=dict.fromkeys(rules, many),
        splits={"train": 10**9},
        leaks=10_000,
        leak_pairs=tuple((one, one) for one in many),
        clusters=(many,) * 100,
        gallery=tuple((one, (quotes,) * 100) for one in many),
        profile=builder.profile(),
        previous=profiled("a dog"),
    )
    page = write(endless, tmp_path)
    assert page.stat().st_size < 2_000_000
    assert len(markdown(endless).encode()) < 1_000_000
    shown = Page(page.read_text(encoding="utf-8")).all("img")
    assert len(shown) > 60  # the gallery is not starved by the rules


def test_a_rejected_dataset_says_why_and_shows_the_rule_s_examples(full, tmp_path):
    why = "missing: 1,201 of 12,345 images are gone. Repair the source."
    page = rendered(replace(full, verdict=why), tmp_path)
    assert f"Rejected {why} no picture to show gone.jpg no such file" in page.words
    assert "fit to train on" not in page.words


def test_what_there_is_nothing_of_is_said_kindly(tmp_path):
    page = rendered(facts(), tmp_path)
    for kind in (
        "Nothing had to be set aside.",
        "Nothing. Every image and every caption that was read can be trained on.",
        "None: no image of one split was found in another.",
        "This is the first version, so there is nothing to compare it with.",
    ):
        assert kind in page.words
    assert not page.all("svg")


def test_a_version_like_the_last_is_said_to_be_so(full, tmp_path):
    page = rendered(replace(full, previous=full.profile), tmp_path)
    assert "Images 300 300 the same" in page.words
    assert "Every word is still there." in page.words
    assert "None beyond what chance explains." in page.words


def test_every_rule_of_the_checks_has_words_for_people():
    assert set(RULES) == {*Actions.model_fields, "uncaptioned"}
    assert all(rule.title and rule.meaning for rule in RULES.values())


def test_a_column_is_as_high_as_its_share(full):
    (lengths, *_), (alone, *_) = plots(full.profile, full.previous), plots(full.profile, None)
    heights = [float(h) for h in re.findall(r'class="now"[^>]* height="([\d.]+)"', lengths.svg)]
    drawn = [height for height in heights if height]
    assert len(drawn) == 2  # two words, five words
    assert drawn[0] == drawn[1]
    assert "2 words: 300 (before 200)" in lengths.svg
    assert 'class="then"' in lengths.svg
    assert 'class="then"' not in alone.svg


@given(st.dictionaries(st.integers(0, 200), st.integers(1, 10**9), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_the_columns_count_every_caption_once(histogram):
    profile = replace(profiled("a dog"), words_per_caption=histogram)
    names = re.findall(r"<title>\d+\+? words: ([\d,]+)</title>", plots(profile, None)[0].svg)
    assert len(names) <= 30
    assert sum(int(name.replace(",", "")) for name in names) == sum(histogram.values())


@given(st.text(max_size=400))
@settings(max_examples=100, deadline=None)
def test_plain_text_is_one_visible_line_that_ends(text):
    shown = plain(text, 50)
    assert len(shown) <= 50
    assert all(c.isprintable() or c in "\u200c\u200d" for c in shown)
    assert "\n" not in shown


def test_a_file_name_that_is_no_unicode_breaks_nothing(tmp_path):
    odd = Example("caf\udce9.jpg", "caf\udce9", None)
    page = write(
        facts(
            name="caf\udce9",
            quarantined={"missing": 1},
            examples={"missing": (odd,)},
            profile=profiled("caf\udce9 noir", "caf\udce9 noir"),
        ),
        tmp_path,
    )
    assert "caf\ufffd.jpg" in page.read_text(encoding="utf-8")
    told = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert told["name"] == "caf\udce9"
    markdown(facts(name="caf\udce9")).encode()
