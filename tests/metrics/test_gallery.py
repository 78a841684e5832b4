"""The gallery shows what it says it shows, needs nothing from outside, and runs in a browser."""

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from configs.schema import EvaluateConfig, SliceConfig
from tasks.metrics.evaluation import Cost, Evaluation, SliceEvaluation
from tasks.metrics.gallery import cards
from tasks.metrics.gallery.markdown import markdown
from tasks.metrics.gallery.page import render

HOSTILE = "</script><script>alert(1)</script> | <img src=https://x.example/y> 'q' \"d\" \u202eevil"
CONFIG = EvaluateConfig(slices={"dark": SliceConfig(words=("x",)), "none": SliceConfig(words="y")})
CHROMIUM = shutil.which("chromium")


def evaluated(ids, cider, caption="a dog", slices=None) -> Evaluation:
    def part(places):
        scores = {"cider": np.array(cider, float), "bleu_4": np.ones(len(ids)) / 2}
        scores["rouge_l"] = np.ones(len(ids)) / 4
        return SliceEvaluation(
            image_ids=[ids[place] for place in places],
            predictions=[f"{caption} {ids[place]}" for place in places],
            references=[["a cat", "another"] for _ in places],
            log_probabilities=[-1.0] * len(places),
            corpus={metric: float(values[places].mean()) for metric, values in scores.items()},
            per_image={metric: values[places] for metric, values in scores.items()},
        )

    parts = {"test": list(range(len(ids)))} | (slices or {})
    return Evaluation(slices={name: part(places) for name, places in parts.items()})


@pytest.fixture
def collect(prepared):
    """The gallery of a candidate, and maybe a champion, over noise with `references`."""

    def make(candidate, champion=None, count=24, references=("a cat", "another"), **row):
        rows = [
            {"image_id": image, "references": list(references), "source": "csv", **row}
            for image in candidate.slices["test"].image_ids
        ]
        names = {"model": "m" * 64, "dataset": "d" * 64}
        if champion:
            names["champion"] = "demo v3"
        dataset = prepared({"test": rows})
        return cards.collect(dataset, candidate, champion, count, names)

    return make


def picked(gallery, slice_name="test") -> dict[str, list[str]]:
    return {
        order: [gallery.cards[place].image_id for place in places]
        for order, places in gallery.picks[slice_name].items()
    }


IDS = [f"i{n}" for n in range(7)]
NEW = [5, 1, 9, 3, 7, 2, 8]
OLD = [5, 4, 3, 3.5, 7, 2, 7.9]


# --- what is chosen -------------------------------------------------------------------------------


def test_each_order_begins_with_the_most_of_its_kind(collect):
    found = picked(collect(evaluated(IDS, NEW), evaluated(IDS, OLD), count=3))
    assert found["worst"] == ["i1", "i5", "i3"]
    assert found["best"] == ["i2", "i6", "i4"]
    assert found["gained"] == ["i2", "i6"]  # nobody else did
    assert found["lost"] == ["i1", "i3"]
    assert len(set(found["others"])) == 3


def test_a_card_has_both_captions_all_scores_and_the_change(collect):
    gallery = collect(evaluated(IDS, NEW), evaluated(IDS, OLD, "a cow"))
    card = gallery.cards[gallery.picks["test"]["gained"][0]]
    assert (card.candidate.caption, card.champion.caption) == ("a dog i2", "a cow i2")
    assert card.candidate.scores == {"cider": 9, "bleu_4": 0.5, "rouge_l": 0.25}
    assert card.change == 6


def test_a_slice_picks_from_its_own_images_and_shares_their_cards(collect):
    gallery = collect(evaluated(IDS, NEW, slices={"dark": [0, 3, 6]}), count=2)
    assert picked(gallery, "dark")["worst"] == ["i3", "i0"]
    shown = [card.image_id for card in gallery.cards]
    assert len(shown) == len(set(shown))
    assert {card.image_id: card.slices for card in gallery.cards}["i3"] == ("test", "dark")


def test_without_a_champion_nothing_has_changed(collect):
    found = collect(evaluated(IDS, NEW))
    assert found.picks["test"]["gained"] == found.picks["test"]["lost"] == []
    assert all(card.champion is None and card.change is None for card in found.cards)
    page = Page(render(found, CONFIG))
    assert [option["value"] for option in page.all("option") if "value" in option] == [
        *("worst", "best", "others")
    ]
    assert "There is no champion to compare it with." in page.text


def test_an_image_that_the_champion_did_not_see_is_shown_without_it(collect):
    gallery = collect(evaluated(IDS, NEW), evaluated(IDS[:3], OLD[:3]))
    assert picked(gallery)["lost"] == ["i1"]
    unseen = next(card for card in gallery.cards if card.image_id == "i6")
    assert unseen.champion is None
    assert Page(render(gallery, CONFIG)).text.count("The champion has no caption of it.") == 4


@pytest.mark.parametrize(
    ("size", "shape"), [((0, 0), (24, 24)), ((30, 60), (12, 24)), ((9000, 30), (24, 1))]
)
def test_a_picture_has_the_shape_of_the_original_and_is_no_larger_than_the_model_saw(size, shape):
    head, _, data = cards.thumbnail(np.zeros((24, 24, 3), np.uint8), size).partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == shape


def test_a_page_is_bounded_whatever_there_is_to_show(collect, monkeypatch):
    monkeypatch.setattr(cards, "PAGE_BYTES", 60_000)
    ids = [f"i{n}" for n in range(400)]
    gallery = collect(evaluated(ids, range(400), "'" * 900), count=100, references=("<" * 900,) * 9)
    text = render(gallery, CONFIG)
    frame = len(render(collect_nothing(gallery), CONFIG))
    assert len(text.encode()) < frame + 60_000
    shown = picked(gallery)
    assert shown["worst"] == ids[: len(shown["worst"])]  # no gaps, and each order its share
    assert shown["best"] == ids[::-1][: len(shown["best"])]
    assert min(len(shown[order]) for order in ("worst", "best", "others")) >= 1


def collect_nothing(gallery):
    return cards.Gallery(**{**vars(gallery), "cards": [], "picks": {"test": {}}})


# --- the page -------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._inside = "", ""
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data) -> None:
        if self._inside not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_a_page_needs_nothing_from_outside(collect):
    text = render(collect(evaluated(IDS, NEW), evaluated(IDS, OLD)), CONFIG)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "base"}
        for name in ("src", "href", "action", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[^\"]*", "", text))
    [policy] = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_hostile_captions_are_text(collect):
    candidate = evaluated([HOSTILE], [1], HOSTILE)
    gallery = collect(candidate, evaluated([HOSTILE], [2], HOSTILE), references=(HOSTILE,))
    text = render(gallery, CONFIG)
    page = Page(text)
    assert len(page.all("script")) == 2  # our own
    assert all(attributes["src"].startswith("data:") for attributes in page.all("img"))
    assert not [n for _, found in page.tags for n in found if n.startswith("on")]
    shown = HOSTILE.replace("\u202e", "\ufffd")
    assert page.text.count(shown) >= 4  # two captions, a reference, the id
    assert "\u202e" not in text


def test_hostile_captions_stay_in_their_cells_of_the_artifact(collect):
    hostile = f"{HOSTILE}\n\n# heading ![x](https://x.example/p.png) [l](https://x.example)"
    gallery = collect(evaluated(["a"], [1], hostile), references=(hostile,))
    text = markdown(gallery, CONFIG, "gallery/x.html")
    rows = [line for line in text.splitlines() if "](data:" in line]
    assert len(rows) == 3
    assert all(line.count("|") == 4 for line in rows)
    assert not re.findall(r"\]\((?!data:image/)|https?:|<script|<img", text)
    assert not [line for line in text.splitlines() if line.startswith("# ")]


def test_every_picture_says_in_words_what_people_saw_on_it(collect):
    page = Page(render(collect(evaluated(IDS, NEW)), CONFIG))
    assert len(page.all("img")) == len(IDS)
    assert {attributes["alt"] for attributes in page.all("img")} == {"a cat"}


def test_collapse_and_slices_without_images_are_named_on_the_page_and_in_the_artifact(collect):
    alike = evaluated([f"i{n}" for n in range(40)], [1.0] * 40)
    part = alike.slices["test"].model_copy(
        update={"predictions": ["a dog"] * 40, "references": [[f"thing {n}"] for n in range(40)]}
    )
    cost = Cost(latency_seconds=0.0123, size_bytes=3_900_000, device="cpu")
    gallery = collect(Evaluation(slices={"test": part}, cost=cost), count=2)
    page = Page(render(gallery, CONFIG)).text
    assert "The captions have collapsed." in page
    assert "test: 100% of the images got the same caption, “a dog”" in page
    assert "Slice none has no scores" in page
    assert "12.3 ms on cpu; the model is 3.9 MB" in page
    text = markdown(gallery, CONFIG, "gallery/x.html")
    assert "Collapsed on test: 100&#37; of the images got the same caption" in text
    assert "Slice none has no scores" in text


def test_the_artifact_has_both_models_and_leads_to_the_page(collect):
    gallery = collect(evaluated(IDS, NEW, slices={"dark": [0]}), evaluated(IDS, OLD))
    text = markdown(gallery, CONFIG, "[all](http://mlflow/x)")
    assert "[all](http://mlflow/x)" in text
    assert "| test | 7 |" in text
    assert "| test demo v3 | 7 |" in text
    assert "| dark | 1 |" in text
    for title in ("Worst", "Best", "Lost most", "Gained most", "Some others"):
        assert text.count(f"### {title}") == 1  # of test: the dark ones are among its images


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture
def browse(collect, tmp_path):
    """What Chromium has made of the page at a fragment: the cards shown, in order, and the rest."""
    if CHROMIUM is None:
        pytest.skip("chromium is not on this machine: apt install chromium")
    candidate = evaluated(IDS, NEW, slices={"dark": [0, 3, 6]})
    gallery = collect(candidate, evaluated(IDS, OLD, "a cow", slices={"dark": [0, 3, 6]}), count=3)
    path = tmp_path / "gallery.html"
    path.write_text(render(gallery, CONFIG), encoding="utf-8")

    def at(fragment: str) -> tuple[list[str], str]:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += ["--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--virtual-time-budget=2000", f"file://{path}{fragment}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        shown = re.findall(
            r'<article class="card"(?! hidden)[^>]*?>.*?</article>', done.stdout, re.S
        )
        shown = [card for card in shown if ' hidden=""' not in card.partition(">")[0]]
        ids = [re.search(r"<code><bdi>(i\d)</bdi>", card)[1] for card in shown]
        [told] = re.findall(r'<p id="told"[^>]*>(.*?)</p>', done.stdout)
        return ids, told

    return at


@pytest.mark.parametrize(
    ("fragment", "shown", "told"),
    [
        ("", ["i1", "i5", "i3"], "3 images of test."),
        ("#slice=dark&order=best", ["i6", "i0", "i3"], "3 images of dark."),
        ("#slice=dark&order=lost", ["i3"], "1 images of dark."),
        ("#order=gained", ["i2", "i6"], "2 images of test."),
        ("#words=COW+i4", ["i4"], "1 of the 7 images of test on this page match."),
        ("#slice=constructor&order=nonsense", ["i1", "i5", "i3"], "3 images of test."),
    ],
)
def test_the_page_s_controls_show_the_slice_and_order_that_its_address_names(
    browse, fragment, shown, told
):
    assert browse(fragment) == (shown, told)
