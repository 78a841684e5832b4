"""The golden test set: frozen once, first in every later dataset, and never trained on.

    python -m tasks.data.golden CONFIG [key=value …] --to data/golden/mine [--images 500]

Freezes images of the dataset's test split; then set `data.golden` to the folder.
"""

import shutil
import sys
from pathlib import Path

from configs.loader import command_line, parsed
from configs.settings import settings
from tasks.data import folders, pipeline
from tasks.data.checks.verdict import DatasetRejected
from tasks.data.records import image_path, read_records
from tasks.data.rows import SourceError
from tasks.refs import DatasetRef


class AlreadyFrozen(ValueError):
    """There is a golden set in the folder; a second one would not be comparable with the first."""


def freeze(validated: DatasetRef, to: Path, images: int | None = None) -> int:
    """Copy the test split, or its first `images`, to the folder `to`; returns how many.

    Raises AlreadyFrozen.
    """
    if to.exists():
        raise AlreadyFrozen(f"{to}: is there already; freeze into another folder, or delete it.")
    tests = [record for record in read_records(validated) if record.split == "test"]
    # By content, so that the choice doesn't follow the order of the source.
    chosen = sorted(tests, key=lambda record: str(record.sha256))[:images]
    with folders.staging(to.parent) as staged:
        for record in chosen:
            target = staged / "images" / str(record.sha256)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(image_path(validated, record), target)
        folders.write_jsonl(
            staged / "rows.jsonl",
            (
                {
                    "image_id": record.image_id,
                    "file_name": f"images/{record.sha256}",
                    "sha256": record.sha256,
                    "references": record.references,
                }
                for record in chosen
            ),
        )
        folders.publish(staged, to)
    return len(chosen)


def main(argv: list[str] | None = None) -> int:
    parser = command_line(str(__doc__).partition("\n")[0])
    parser.add_argument("--to", type=Path, required=True, help="the folder to freeze into")
    parser.add_argument("--images", type=int, help="how many; by default the whole test split")
    options, config = parsed(parser, argv)
    try:
        report = pipeline.read_and_check(config, settings().var / "datasets")
        count = freeze(report.accepted(), options.to, options.images)
    except (AlreadyFrozen, DatasetRejected, SourceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"froze {count} images in {options.to}; now set data.golden={options.to}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
