"""Of what people send, the honest is used and the rest is held aside, for a reason."""

import csv
import random

from hypothesis import given
from hypothesis import strategies as st

from bentos.captioner.captured import Feedback, LabelledRequest
from configs.schema import ChecksConfig, RetrainConfig
from tasks.data.corrections import Judged, content_words, judge, most_of_one
from tasks.data.scenes import scene

VOCABULARY = content_words("a small large red blue green circle square star dog running on grass")
MODEL = "a small red circle"


def request(name: str, *sent: str | tuple[str, str | None], model: str = MODEL) -> LabelledRequest:
    """Captions of one picture, maybe with who sent them, a second apart."""
    pairs = [(one, None) if isinstance(one, str) else one for one in sent]
    feedback = [Feedback(said, float(at), client) for at, (said, client) in enumerate(pairs)]
    return LabelledRequest(name, b"", model, feedback, 0.0, "1")


def judged(*requests: LabelledRequest, vocabulary=VOCABULARY, **limits: float) -> Judged:
    return judge(requests, vocabulary, ChecksConfig(), RetrainConfig(**limits))


def reasons(found: Judged) -> list[tuple[str, str]]:
    return [(one.feedback.caption, one.fault.rule) for one in found.held]


def test_what_is_no_caption_is_held_aside_by_the_rules_for_captions():
    found = judged(
        request("1", "   "),
        request("2", "circle"),
        request("3", "a red circle " * 40),
        request("4", "<i>a red circle</i>"),
        request("5", "a red circle, more at https://spam.example"),
        request("6", "a red\x07 circle"),
        request("7", "a red circle"),
    )
    assert [rule for _, rule in reasons(found)] == [
        *("caption_empty", "caption_too_short", "caption_too_long"),
        *("caption_markup", "caption_url", "caption_control_characters"),
    ]
    assert [(one.request_id, one.captions) for one in found.usable] == [("7", ["a red circle"])]


def test_one_text_for_many_pictures_is_held_aside_and_its_repetition_on_a_few_is_not():
    honest = [request(f"h{n}", f"a red circle {n} on grass") for n in range(40)]
    lazy = [request(f"l{n}", "A very nice dog!" if n % 2 else "a very nice dog") for n in range(6)]
    alike = [request(f"a{n}", "a blue star") for n in range(5)]
    found = judged(*honest, *lazy, *alike)
    assert {one.request_id for one in found.held} == {one.request_id for one in lazy}
    assert found.reasons == {"repeated": 6}
    assert found.held[0].fault.detail == "sent for 6 of 51 pictures"


def test_of_contradicting_people_those_are_used_with_whom_another_one_agrees():
    agreed = request("1", "a dog running on grass", "two dogs run", "a blue square")
    found = judged(agreed, request("2", "a blue square", "a dog on grass"))
    assert reasons(found) == [
        ("a blue square", "conflicting"),
        ("a blue square", "conflicting"),
        ("a dog on grass", "conflicting"),
    ]
    assert [one.captions for one in found.usable] == [["a dog running on grass", "two dogs run"]]


def test_nobody_agrees_with_himself():
    one, other = "address:0001", "address:0002"
    sent = [("a dog on grass", one), ("the dog runs", one), ("a red star", other)]
    assert len(judged(request("1", *sent)).held) == 3
    sent = [("a dog on grass", one), ("the dog runs", other), ("a red star", other)]
    assert reasons(judged(request("1", *sent), max_client_share=1)) == [
        ("a red star", "conflicting")
    ]


def test_words_that_are_in_no_other_caption_are_far_unless_the_model_says_them_too():
    found = judged(
        request("1", "qwer asdf zxcv yuio"),
        request("2", "qwer asdf zxcv circle"),  # as the model says
        request("3", "a zebra on grass", model="a dog"),  # half of it is known
        request("4", "kauft mein neues fahrrad"),
    )
    assert {one.request_id: one.fault.rule for one in found.held} == {"1": "far", "4": "far"}
    assert judged(request("1", "qwer asdf zxcv"), vocabulary=frozenset()).held == []


def test_the_words_of_a_new_world_are_far_from_nothing_once_several_pictures_have_them():
    night = [request(str(n), scene(7, n, "novel").references[0], model="?") for n in range(60)]
    day = {word for n in range(300) for word in content_words(scene(7, n, "day").references[0])}
    new = {word for one in night for word in content_words(one.captions[0])} - day
    assert {"pink", "heart"} <= new
    assert judged(*night, vocabulary=day).held == []


def test_a_caption_that_repeats_the_models_is_used_and_counted_as_its_confirmation():
    found = judged(request("1", "A small red circle."), request("2", "a red circle"))
    assert (len(found.usable), found.confirmed, found.held) == (2, 1, [])


def test_the_same_caption_twice_is_used_once_as_it_came_first():
    found = judged(request("1", "A red circle", "a red circle.", "one red circle"))
    assert [one.captions for one in found.usable] == [["A red circle", "one red circle"]]


def test_of_an_address_that_sends_most_only_its_oldest_are_used_and_of_a_token_all():
    def from_client(client: str | None) -> Judged:
        many = [request(f"m{n}", (f"a red circle {n}", client)) for n in range(90)]
        others = [request(f"o{n}", (f"a blue star {n}", f"address:{n:04}")) for n in range(10)]
        return judged(*many, *others)

    found = from_client("address:beef")
    assert found.reasons == {"one_client": 80}
    assert {one.request_id for one in found.held} == {f"m{n}" for n in range(10, 90)}
    assert from_client("token:app").held == from_client(None).held == []


@given(
    st.lists(st.integers(1, 50), max_size=8),
    st.integers(0, 60),
    st.floats(0.01, 1, allow_nan=False),
)
def test_the_limit_of_a_client_is_the_largest_that_leaves_nobody_more_than_the_share(
    counts, others, share
):
    def fits(most: int) -> bool:
        kept = [min(count, most) for count in counts]
        return max(kept, default=0) <= share * (others + sum(kept))

    largest = max(most for most in range(max(counts, default=0) + 1) if fits(most))
    assert most_of_one(counts, others, share) == largest


WORDS = ("red", "blue", "circle", "dogs", "qwer", "a", "www.spam.example", "<b>x</b>", "犬")
words = st.sampled_from(WORDS)
sent = st.tuples(st.lists(words, max_size=6).map(" ".join), st.sampled_from([None, "address:1"]))


@given(st.lists(st.lists(sent, min_size=1, max_size=4), max_size=12))
def test_every_caption_is_used_or_held_aside_for_one_reason(pictures):
    requests = [request(str(n), *captions) for n, captions in enumerate(pictures)]
    found = judged(*requests)
    used = {one.request_id: set(one.captions) for one in found.usable}
    held = [(one.request_id, one.feedback) for one in found.held]
    assert len(held) == len(set(held)) == sum(found.reasons.values())
    for one in requests:
        aside = {feedback.caption for name, feedback in held if name == one.request_id}
        kept = used.get(one.request_id, set())
        assert kept | aside <= set(one.captions)
        for feedback in one.feedback:
            twin = " ".join(sorted(content_words(feedback.caption)))
            assert (
                (one.request_id, feedback) in held
                or feedback.caption in kept
                or twin in {" ".join(sorted(content_words(said))) for said in kept}
            )
    assert judged(*requests) == found


def test_honest_captions_of_the_demo_are_all_used_whoever_shuffles_them():
    requests = [
        request(str(n), scene(1_000_003, n, "night").references[0], model="a red star")
        for n in range(450)
    ]
    day = {word for n in range(900) for word in content_words(scene(7, n, "day").references[0])}
    assert judged(*requests, vocabulary=day).held == []
    random.Random(0).shuffle(requests)
    assert len(judged(*requests, vocabulary=day).usable) == 450


def test_honest_captions_of_real_photos_are_nearly_all_used_and_gibberish_is_not(photos):
    captions: dict[str, list[str]] = {}
    for row in csv.DictReader((photos / "captions.txt").open()):
        captions.setdefault(row["image"], []).append(row["caption"])
    names = sorted(captions)
    known = {
        word for name in names[:500] for said in captions[name] for word in content_words(said)
    }
    honest = [request(name, captions[name][0], model="?") for name in names[500:]]
    letters = random.Random(0)

    def gibberish() -> str:
        return " ".join("".join(letters.choices("bcdfghklmnoprt", k=6)) for _ in range(5))

    nonsense = [request(f"n{n}", gibberish()) for n in range(50)]
    found = judged(*honest, *nonsense, vocabulary=known)
    aside = {one.request_id for one in found.held}
    assert {one.request_id for one in nonsense} <= aside
    assert len(aside) - 50 < 0.03 * len(honest)  # 6 of 500 when this was written
