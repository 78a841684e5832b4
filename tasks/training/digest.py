"""The identity of a model folder."""

import hashlib
from pathlib import Path

_DIGESTED = ("*.json", "vocab.txt", "*.safetensors")
_NOT_DIGESTED = "captionloop.json"


def digest(folder: Path) -> str:
    """sha256 over what makes a model: config, tokenizer, preprocessor and safetensors.

    The card and the golden images that packaging adds do not count: they name the model.
    """
    total = hashlib.sha256()
    files = {path for pattern in _DIGESTED for path in folder.glob(pattern)}
    for path in sorted(files, key=lambda path: path.name):
        if path.name != _NOT_DIGESTED:
            with path.open("rb") as file:
                total.update(
                    f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()
                )
    return total.hexdigest()
