"""A labelling batch holds what is most novel, nothing twice, and its answers come back as they are
given."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st

from bentos.captioner.capture import CapturedRequest, CaptureStore, read_feedback
from bentos.captioner.request_ids import new_request_id
from tasks.data import answers, labelling
from tasks.data.answers import Answer, BadAnswers, Imported

REFERENCE = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)


def request(shade: int, embedding: np.ndarray | None = None, kind: str = "PNG") -> CapturedRequest:
    if embedding is None:
        embedding = np.random.default_rng(shade).normal(size=8)
    return CapturedRequest(
        request_id=new_request_id(),
        time=float(shade),
        model_version="3",
        caption=f'a "{shade}" <dog>',
        log_probability=-1.0,
        embedding=embedding.astype(np.float32),
        width=64,
        height=48,
        brightness=0.5,
        image=picture(shade=shade, kind=kind),
    )


def choose(requests, labelled=(), count=100):
    return labelling.choose(requests, set(labelled), REFERENCE, count=count, near_bits=48)


def test_the_most_novel_come_first() -> None:
    known = [request(shade) for shade in range(30)]
    novel = [request(30 + n, 6 * np.eye(8)[n]) for n in range(5)]
    chosen = choose([*known, *novel], count=5)
    assert {one.request.request_id for one in chosen} == {one.request_id for one in novel}
    assert choose([*known, *novel])[0].novelty == max(one.novelty for one in chosen)


def test_each_is_unlike_those_before_it() -> None:
    strangers = [request(n, 6 * np.eye(8)[0] + 0.01 * n) for n in range(10)]
    others = [request(10 + n, 5 * np.eye(8)[1 + n]) for n in range(3)]
    first = choose([*strangers, *others], count=4)
    assert {one.request.request_id for one in first} >= {one.request_id for one in others}


def test_near_duplicates_come_once_and_those_of_labelled_pictures_never() -> None:
    original = request(1)
    as_jpeg = replace(original, request_id=new_request_id(), image=picture(shade=1, kind="JPEG"))
    again = replace(original, request_id=new_request_id())
    labelled, its_copy = request(2), request(2, kind="JPEG")
    other = request(3)
    chosen = choose([original, as_jpeg, again, labelled, its_copy, other], {labelled.request_id})
    ids = {one.request.request_id for one in chosen}
    assert len(ids) == 2
    assert ids <= {original.request_id, as_jpeg.request_id, again.request_id, other.request_id}
    assert other.request_id in ids


def test_pictures_that_were_not_kept_or_cannot_be_read_are_left_out() -> None:
    kept = request(1)
    gone, damaged = replace(request(2), image=None), replace(request(3), image=b"\x89PNG no more")
    assert [one.request for one in choose([gone, damaged, kept])] == [kept]
    assert choose([gone]) == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=14), st.integers(1, 6), st.data())
def test_a_choice_is_within_its_count_and_holds_no_picture_twice(shades, count, data) -> None:
    requests = [request(shade) for shade in shades]
    labelled = {one.request_id for one in requests if data.draw(st.booleans())}
    chosen = [one.request for one in choose(requests, labelled, count)]
    pictures = [one.image for one in chosen]
    assert len(set(pictures)) == len(pictures)
    assert not {one.request_id for one in chosen} & labelled
    known = {one.image for one in requests if one.request_id in labelled}
    assert len(chosen) == min(count, len({one.image for one in requests} - known))


@pytest.fixture
def requests() -> list[CapturedRequest]:
    return [request(shade, kind=kind) for shade, kind in enumerate(["PNG", "JPEG", "WEBP"])]


@pytest.fixture
def batch(requests, tmp_path) -> Path:
    made = labelling.export(choose(requests), tmp_path / "out", title="demo v3")
    assert made.images == 3
    return made.folder


def fill(batch: Path, captions: dict[str, str]) -> None:
    """As a person does in `metadata.jsonl`."""
    lines = map(json.loads, (batch / labelling.METADATA).read_text().splitlines())
    filled = [{**line, "caption": captions.get(line["request_id"], "")} for line in lines]
    (batch / labelling.METADATA).write_text("".join(json.dumps(line) + "\n" for line in filled))


def test_a_batch_has_every_picture_as_it_came_with_what_the_model_said(batch, requests) -> None:
    lines = list(map(json.loads, (batch / labelling.METADATA).read_text().splitlines()))
    by_id = {one.request_id: one for one in requests}
    assert {line["request_id"] for line in lines} == by_id.keys()
    for line in lines:
        asked = by_id[line["request_id"]]
        assert (batch / line["file_name"]).read_bytes() == asked.image
        assert (line["suggestion"], line["caption"]) == (asked.caption, "")
    coco = json.loads((batch / labelling.COCO).read_text())
    assert [image["file_name"] for image in coco["images"]] == [line["file_name"] for line in lines]
    assert [one["caption"] for one in coco["annotations"]] == [line["suggestion"] for line in lines]
    assert answers.read(batch) == []


def test_a_batch_that_people_are_at_work_in_is_left_alone(batch, requests, tmp_path) -> None:
    fill(batch, {requests[0].request_id: "a red star"})
    again = labelling.export(choose(requests), tmp_path / "out", title="demo v3")
    assert again.folder == batch
    assert answers.read(batch) == [Answer(requests[0].request_id, "a red star")]


@pytest.fixture(params=["folder", "url"])
def captures(request, requests, tmp_path) -> str:
    place = str(tmp_path / "captures") if request.param == "folder" else f"memory:/{tmp_path}"
    store = CaptureStore(place)
    for one in requests:
        store.put(one)
    store.close()
    return place


def test_answers_come_back_once_and_go_when_their_request_is_deleted(
    batch, captures, requests
) -> None:
    first, second, _ = requests
    fill(batch, {first.request_id: " a red star ", second.request_id: "a blue dog"})
    assert answers.store(captures, answers.read(batch)) == Imported(added=2, known=0, gone=0)
    assert answers.store(captures, answers.read(batch)) == Imported(added=0, known=2, gone=0)
    labelled = {one.request_id: one for one in read_feedback(captures)}
    assert labelled.keys() == {first.request_id, second.request_id}
    assert labelled[first.request_id].captions == ["a red star"]
    assert labelled[first.request_id].feedback[0].client == "batch"
    store = CaptureStore(captures)
    store.delete(first.request_id)
    store.close()
    assert [one.request_id for one in read_feedback(captures)] == [second.request_id]
    assert answers.store(captures, answers.read(batch)) == Imported(added=0, known=1, gone=1)


def test_coco_annotations_are_answers_unless_left_as_suggested(batch, requests) -> None:
    file = batch / labelling.COCO
    coco = json.loads(file.read_text())
    ids = [image["request_id"] for image in coco["images"]]
    coco["annotations"][0] |= {"caption": "a red star", "suggested": False}
    coco["annotations"][1]["caption"] = "a blue dog"  # its mark was left
    coco["annotations"].append({"id": 9, "image_id": 1, "caption": "one red star"})
    for image in coco["images"]:
        del image["request_id"]  # as a tool does that knows no such key
    file.write_text(json.dumps(coco))
    assert answers.read(file) == [
        Answer(ids[0], "a red star"),
        Answer(ids[1], "a blue dog"),
        Answer(ids[0], "one red star"),
    ]


def test_tools_that_drop_the_mark_make_no_answers_of_suggestions(batch, requests) -> None:
    file = batch / labelling.COCO
    coco = json.loads(file.read_text())
    for annotation in coco["annotations"]:
        del annotation["suggested"]
    coco["annotations"][1]["caption"] = "a red star"
    file.write_text(json.dumps(coco))
    ids = [image["request_id"] for image in coco["images"]]
    assert answers.read(batch) == [Answer(ids[1], "a red star")]


ID = "0" * 32


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.jsonl", b'{"caption": ""}\n', "line 1: '' is no request's id"),
        ("metadata.jsonl", f'{{"request_id": "{ID}"}}\n\n{{"cap'.encode(), "line 3: no JSON"),
        ("metadata.jsonl", b"[1]\n", "line 1: expected an object"),
        ("metadata.jsonl", f'{{"request_id": "{ID}", "caption": 3}}'.encode(), "is no text: 3"),
        ("metadata.jsonl", b'{"request_id": "../x", "caption": "a dog"}', "is no request's id"),
        ("metadata.jsonl", b"\xff\xfe", "not UTF-8 text at byte 0"),
        ("captions.json", b'{"images": [\n}', "line 2: no JSON"),
        ("captions.json", b'{"images": {}}', "expected lists `images` and `annotations`"),
        ("captions.json", b'{"images": [], "annotations": [{"image_id": 3}]}', "no image has the"),
    ],
)
def test_what_is_no_answer_is_told_with_its_file_and_place(tmp_path, name, content, said) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadAnswers, match=r"^[^\n]*$") as caught:
        answers.read(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert said in str(caught.value)


def test_a_folder_that_is_no_batch_is_told(tmp_path) -> None:
    with pytest.raises(BadAnswers, match=r"neither metadata\.jsonl nor captions\.json is in it"):
        answers.read(tmp_path)
    with pytest.raises(BadAnswers, match="No such file"):
        answers.read(tmp_path / "nowhere.jsonl")


# --- the page ------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium")


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not here: apt install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_captions_typed_into_the_page_offline_come_back(batch, captures, tmp_path, scheme) -> None:
    from playwright import sync_api as playwright

    ids = [
        json.loads(line)["request_id"]
        for line in (batch / labelling.METADATA).read_text().splitlines()
    ]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(
            offline=True, color_scheme=scheme, viewport={"width": 360, "height": 740}
        )
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.goto((batch / labelling.PAGE).as_uri())
        page.keyboard.type("a red star")
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        page.keyboard.type('a "blue" dog é 犬')
        playwright.expect(page.get_by_role("status")).to_have_text("2 of 3 pictures have a caption")
        page.reload()  # nothing is lost
        playwright.expect(page.get_by_role("status")).to_have_text("2 of 3 pictures have a caption")
        for image in page.locator("img").all():
            image.scroll_into_view_if_needed()
            playwright.expect(image).to_have_js_property("naturalWidth", 64)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.get_by_role("button", name="Begin with these words").nth(1).click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Download").click()
        download.value.save_as(tmp_path / "metadata.jsonl")
        browser.close()
    assert errors == []
    suggestion = json.loads((batch / labelling.METADATA).read_text().splitlines()[1])["suggestion"]
    found = answers.read(tmp_path / "metadata.jsonl")
    assert found == [
        Answer(ids[0], "a red star"),
        Answer(ids[1], suggestion),
        Answer(ids[2], 'a "blue" dog é 犬'),
    ]
    assert answers.store(captures, found) == Imported(added=3, known=0, gone=0)
