from pathlib import Path

import numpy as np
import pytest

from tasks.drift.reference import FILE_NAME, BadReference, Reference, load, save


def reference(rows: int = 3) -> Reference:
    return Reference(
        image_ids=[f"bild {row} é" for row in range(rows)],
        embeddings=np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32),
        brightness=np.linspace(0, 1, rows),
        log_probabilities=-np.arange(rows, dtype=np.float64),
    )


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    saved = reference()
    assert save(tmp_path / "new" / "folder", saved).is_file()
    loaded = load(tmp_path / "new" / "folder")
    assert loaded.image_ids == saved.image_ids
    for part in ("embeddings", "brightness", "log_probabilities"):
        np.testing.assert_array_equal(getattr(loaded, part), getattr(saved, part))
        assert getattr(loaded, part).dtype == getattr(saved, part).dtype


def test_a_sample_keeps_rows_whole_and_in_order() -> None:
    whole = reference(50)
    sample = whole.sample(20, seed=3)
    rows = [whole.image_ids.index(image_id) for image_id in sample.image_ids]
    assert rows == sorted(set(rows))
    assert len(rows) == 20
    for part in ("embeddings", "brightness", "log_probabilities"):
        np.testing.assert_array_equal(getattr(sample, part), getattr(whole, part)[rows])
    assert whole.sample(20, seed=3).image_ids == sample.image_ids
    assert whole.sample(20, seed=4).image_ids != sample.image_ids
    assert whole.sample(50, seed=3) is whole


def test_parts_that_do_not_fit_together_are_refused() -> None:
    whole = reference()
    with pytest.raises(BadReference, match="'image_ids': 2"):
        Reference(whole.image_ids[:2], whole.embeddings, whole.brightness, whole.log_probabilities)
    with pytest.raises(BadReference, match=r"\(3,\)"):
        Reference(
            whole.image_ids, whole.embeddings[:, 0], whole.brightness, whole.log_probabilities
        )


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "incomplete", "pickle"])
def test_a_damaged_file_says_what_to_do(tmp_path: Path, damage: str) -> None:
    path = save(tmp_path, reference())
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(path.read_bytes()[:-60])
        case "text":
            path.write_text("not a reference")
        case "incomplete":
            np.savez(path, embeddings=reference().embeddings)
        case "pickle":
            np.savez(path, image_ids=np.array([{}], dtype=object))
    with pytest.raises(BadReference, match=f"{FILE_NAME} is no reference set.*promote"):
        load(tmp_path)
