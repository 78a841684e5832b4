import sqlite3
import threading

import numpy as np
import pytest

from bentos.captioner.capture import (
    FILE_NAME,
    CapturedRequest,
    CaptureStore,
    CaptureUnavailable,
    UnknownRequest,
    read_feedback,
    read_window,
)


def request(number: int, version: str = "1", image: bytes | None = b"png") -> CapturedRequest:
    return CapturedRequest(
        request_id=f"{number:032x}",
        time=1000.0 + number,
        model_version=version,
        caption=f"caption {number}",
        log_probability=-0.5 * number,
        embedding=np.full(4, number, np.float32),
        width=10,
        height=20,
        brightness=0.25,
        image=image,
    )


def test_what_was_put_is_read_back_newest_first(tmp_path) -> None:
    store = CaptureStore(tmp_path)
    for number in range(5):
        assert store.put(request(number, version="12"[number % 2]))
    store.close()
    window = read_window(tmp_path, model_version=None, limit=3)
    assert [captured.caption for captured in window] == ["caption 4", "caption 3", "caption 2"]
    assert np.array_equal(window[0].embedding, np.full(4, 4, np.float32))
    assert {**vars(window[0]), "embedding": None} == {**vars(request(4)), "embedding": None}
    only = read_window(tmp_path, model_version="2", limit=10)
    assert [captured.caption for captured in only] == ["caption 3", "caption 1"]


def test_feedback_finds_a_request_that_is_not_on_disk_yet(tmp_path) -> None:
    store = CaptureStore(tmp_path)
    for number in range(200):
        store.put(request(number))
        store.feedback(f"{number:032x}", f"truth {number}")
    store.feedback(f"{7:032x}", "another truth")
    store.close()
    labelled = read_feedback(tmp_path)
    assert len(labelled) == 200
    assert labelled[7].captions == ["truth 7", "another truth"]
    assert (labelled[7].image, labelled[7].time, labelled[7].model_version) == (b"png", 1007.0, "1")


def test_feedback_on_an_unknown_id_is_an_error_and_stores_nothing(tmp_path) -> None:
    store = CaptureStore(tmp_path)
    with pytest.raises(UnknownRequest, match="nobody"):
        store.feedback("nobody", "a caption")
    store.close()
    assert read_feedback(tmp_path) == []


def test_feedback_without_a_kept_picture_trains_nobody(tmp_path) -> None:
    store = CaptureStore(tmp_path)
    store.put(request(0, image=None))
    store.feedback(f"{0:032x}", "a caption")
    store.close()
    assert read_feedback(tmp_path) == []
    assert read_window(tmp_path, model_version=None, limit=1)[0].image is None


def test_a_folder_without_captures_reads_as_empty(tmp_path) -> None:
    assert read_window(tmp_path / "none", model_version=None, limit=9) == []
    assert read_feedback(tmp_path) == []


def test_a_full_queue_drops_and_counts_instead_of_waiting(tmp_path) -> None:
    drops: list[int] = []
    store = CaptureStore(tmp_path, queue_size=1, on_drop=drops.append)
    blocker = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")  # the writer now waits for the lock
    results = [store.put(request(number)) for number in range(200)]
    assert not all(results)
    assert store.dropped == sum(drops) == results.count(False)
    with pytest.raises(CaptureUnavailable):
        store.feedback("any", "caption", timeout_seconds=0.01)
    blocker.execute("ROLLBACK")
    blocker.close()
    store.close()
    assert len(read_window(tmp_path, model_version=None, limit=500)) == results.count(True)


def test_a_failed_write_is_counted_and_the_next_one_succeeds(tmp_path) -> None:
    store = CaptureStore(tmp_path)
    store.put(request(1))
    with pytest.raises(UnknownRequest):
        store.feedback("wait until the first is written", "x")
    store.put(request(1))  # the same id again breaks the primary key
    with pytest.raises((UnknownRequest, CaptureUnavailable)):
        store.feedback("wait until the second is tried", "x")
    store.put(request(2))
    store.close()
    assert store.dropped == 1
    assert len(read_window(tmp_path, model_version=None, limit=9)) == 2


def test_many_threads_lose_nothing(tmp_path) -> None:
    store = CaptureStore(tmp_path, queue_size=10_000)

    def work(first: int) -> None:
        for number in range(first, first + 50):
            store.put(request(number))
            store.feedback(f"{number:032x}", "truth")

    threads = [threading.Thread(target=work, args=(1000 * index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    assert len(read_feedback(tmp_path)) == 400


def test_a_deleted_request_is_gone_with_its_picture_and_feedback(tmp_path) -> None:
    store = CaptureStore(tmp_path)
    for number in range(3):
        store.put(request(number, image=b"picture-%d" % number))
        store.feedback(f"{number:032x}", f"truth {number}")
    store.delete(f"{1:032x}")
    for change in (store.delete, lambda gone: store.feedback(gone, "late")):
        with pytest.raises(UnknownRequest):
            change(f"{1:032x}")
    store.close()
    kept = [one.caption for one in read_window(tmp_path, model_version=None, limit=9)]
    assert kept == ["caption 2", "caption 0"]
    assert [one.captions for one in read_feedback(tmp_path)] == [["truth 0"], ["truth 2"]]
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert connection.execute("SELECT count(*) FROM feedback").fetchone() == (2,)
    connection.close()
    left = (tmp_path / FILE_NAME).read_bytes()
    assert b"picture-2" in left
    assert b"picture-1" not in left
    assert b"truth 1" not in left
