"""The page at /, in a real browser against the real app over a socket."""

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright import sync_api as playwright

from bentos.captioner.capture import read_feedback
from tests.bentos.serving import site

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not here: apt install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser) -> Iterator[Callable[..., "playwright.Page"]]:
    """Opens pages that may ask nobody but their own server, and must log no error."""
    contexts, errors = [], []

    def opened(url: str, **options: object) -> "playwright.Page":
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if is_bad(line) else None)
        page.on("request", lambda request: check(request.url))
        page.goto(url)
        return page

    def is_bad(line: "playwright.ConsoleMessage") -> bool:
        return line.type == "error" and "Failed to load resource" not in line.text

    def check(asked: str) -> None:
        if not asked.startswith(("http://127.0.0.1:", "data:")):
            errors.append(f"asked {asked}")

    yield opened
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="module")
def pictures(picture, encode, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        (folder / f"picture-{seed}.png").write_bytes(encode(picture(seed, 120, 90)))
    return [str(folder / f"picture-{seed}.png") for seed in range(3)]


def shot(page: "playwright.Page", name: str) -> None:
    """For people to look at, when they name a folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def captions(page: "playwright.Page", count: int) -> list[str]:
    cards = page.locator("#results .card:not(.waiting) .facts:not(:empty)")
    playwright.expect(cards).to_have_count(count, timeout=20_000)
    return page.locator("#results .caption").all_inner_texts()


def test_chosen_pictures_get_the_captions_that_the_api_gives(model, open_page, pictures) -> None:
    import httpx

    with site(model) as url:
        page = open_page(url)
        shot(page, "empty")
        page.set_input_files("#files", pictures)
        said = captions(page, 3)
        expected = [
            httpx.post(f"{url}/v1/caption", files={"image": Path(one).read_bytes()}).json()
            for one in pictures
        ]
        assert said == [one["caption"] for one in reversed(expected)]
        first = page.locator("#results .card").last
        facts = first.locator(".facts").inner_text().replace("−", "-")
        assert f"log-probability {expected[0]['log_probability']:.2f}" in facts
        assert "tiny version 7" in facts
        assert page.locator("#model").inner_text() == "tiny · version 7"
        assert first.locator("img").get_attribute("src").startswith("data:image/jpeg")
        shot(page, "several")


def test_a_picture_can_be_dropped_or_pasted(model, open_page, pictures) -> None:
    put = """([kind, data]) => {
        const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
        const files = new DataTransfer();
        files.items.add(new File([bytes], `${kind}.png`, { type: "image/png" }));
        const options = { bubbles: true, cancelable: true };
        document.body.dispatchEvent(kind === "paste"
            ? new ClipboardEvent("paste", { ...options, clipboardData: files })
            : new DragEvent("drop", { ...options, dataTransfer: files }));
    }"""
    data = base64.b64encode(Path(pictures[0]).read_bytes()).decode()
    with site(model) as url:
        page = open_page(url)
        for count, kind in enumerate(("drop", "paste"), 1):
            page.evaluate(put, [kind, data])
            captions(page, count)
        assert page.locator("#results .name").all_inner_texts() == ["paste.png", "drop.png"]


def test_a_correction_reaches_the_store_and_stays_in_the_history(
    model, open_page, pictures, tmp_path
) -> None:
    with site(model, captures=tmp_path) as url:
        page = open_page(url)
        page.set_input_files("#files", pictures[:1])
        (said,) = captions(page, 1)
        page.get_by_role("button", name="Correct the caption of picture-0.png").click()
        field = page.get_by_role("textbox", name="A better caption")
        assert field.input_value() == said
        shot(page, "correcting")
        field.fill("a red star")
        field.press("Enter")
        playwright.expect(page.locator("#results .corrected")).to_have_text(
            "✓ Your caption: a red star"
        )
        playwright.expect(page.get_by_role("status")).to_contain_text("was corrected")
        shot(page, "corrected")
        page.reload()
        playwright.expect(page.locator("#history .caption")).to_have_text(said)
        playwright.expect(page.locator("#history .corrected")).to_contain_text("a red star")
        shot(page, "history")
        page.get_by_role("button", name="Clear").click()
        page.reload()
        playwright.expect(page.locator("#history .card")).to_have_count(0)
    (labelled,) = read_feedback(tmp_path)
    assert labelled.captions == ["a red star"]
    assert labelled.image == Path(pictures[0]).read_bytes()


def test_what_cannot_be_captioned_or_corrected_is_told_where_it_happened(
    model, open_page, pictures, tmp_path
) -> None:
    (tmp_path / "notes.png").write_bytes(b"no picture at all")
    with site(model) as url:
        page = open_page(url)
        page.set_input_files("#files", [str(tmp_path / "notes.png"), pictures[0]])
        captions(page, 1)
        error = page.locator("#results .card", has_text="notes.png").get_by_role("alert")
        playwright.expect(error).to_contain_text("JPEG, PNG, WEBP, GIF")
        page.get_by_role("button", name="Correct the caption").click()
        page.get_by_role("textbox", name="A better caption").press("Enter")
        kept_nothing = page.locator("#results .card", has_text="picture-0").get_by_role("alert")
        playwright.expect(kept_nothing).to_contain_text("kept nothing")
        shot(page, "errors")
        page.keyboard.press("Escape")
        playwright.expect(page.get_by_role("textbox", name="A better caption")).to_be_hidden()


def test_the_token_is_asked_for_and_kept_in_this_tab_only(model, open_page, pictures) -> None:
    tokens = [{"name": "people", "token": "sesame", "scopes": ["caption"]}]
    with site(model, tokens_json=json.dumps(tokens)) as url:
        page = open_page(url)
        field = page.get_by_label("This captioner asks for a token")
        playwright.expect(field).to_be_focused()
        page.set_input_files("#files", pictures[:1])
        playwright.expect(page.locator("#results .waiting")).to_have_count(1)
        field.fill("wrong")
        field.press("Enter")
        playwright.expect(page.get_by_text("was not accepted; try")).to_be_visible()
        shot(page, "token")
        field.fill("sesame")
        field.press("Enter")
        captions(page, 1)
        page.get_by_role("button", name="Correct the caption").click()
        page.get_by_role("textbox", name="A better caption").press("Enter")
        playwright.expect(page.get_by_role("alert")).to_contain_text("no scope 'feedback'")
        stored = page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}])")
        session, local = json.loads(stored)
        assert session == {"captioner.token": "sesame"}
        assert "sesame" not in json.dumps(local)


def test_everything_can_be_done_by_keyboard_and_has_a_name(model, open_page, pictures) -> None:
    with site(model) as url:
        page = open_page(url)
        page.on("filechooser", lambda _: None)  # so that it is caught from the start
        page.keyboard.press("Tab")
        playwright.expect(page.locator("#files")).to_be_focused()
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(pictures[:1])
        captions(page, 1)
        page.keyboard.press("Tab")
        playwright.expect(page.get_by_role("button", name="Correct the caption")).to_be_focused()
        page.keyboard.press("Enter")
        playwright.expect(page.get_by_role("textbox", name="A better caption")).to_be_focused()
        named = page.locator("button, input, img").evaluate_all(
            "all => all.filter(one => one.checkVisibility()).map(one => "
            "one.tagName === 'IMG' ? one.hasAttribute('alt') : one.textContent.trim() !== '' || "
            "one.labels?.length > 0 || one.hasAttribute('aria-label'))"
        )
        assert named
        assert all(named)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes_and_a_phone_scrolls_one_way_only(
    model, open_page, pictures, scheme
) -> None:
    with site(model) as url:
        phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme}
        page = open_page(url, **phone)
        page.set_input_files("#files", pictures[:2])
        captions(page, 2)
        shot(page, f"phone-{scheme}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        for selector in (".caption", ".facts", ".name", ".hint", ".correct", "h1", ".button"):
            ratio = page.locator(selector).first.evaluate(CONTRAST)
            assert ratio >= 4.5, (selector, ratio)  # WCAG 2 AA


# Contrast of an element's text with the first ground behind it, by WCAG 2's formula.
CONTRAST = """element => {
    const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const luminance = (color) => {
        pen.clearRect(0, 0, 1, 1);
        pen.fillStyle = color;
        pen.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map((value) => {
            const part = value / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    let ground = element;
    while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") {
        ground = ground.parentElement;
    }
    const pair = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor];
    const [dark, light] = pair.map(luminance).sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
}"""


def test_the_page_allows_no_script_or_frame_from_elsewhere(model) -> None:
    import httpx

    with site(model, token="sesame") as url:
        for path in ("/", "/page.css", "/page.js", "/icon.svg"):
            response = httpx.get(url + path)
            assert response.status_code == 200
            policy = response.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "://" not in response.text.replace("http://www.w3.org/2000/svg", "")
