"""Pictures for the drift report, as `data:` URIs that live inside its markdown."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bentos.captioner.images import decode

THUMBNAIL_PIXELS = 112
_REFERENCE, _CURRENT = "#7a8ba3", "#e4572e"


def scatter(reference: NDArray[np.floating], current: NDArray[np.floating]) -> str:
    """Where the embeddings lie on two axes: `reference` [n, 2] and `current` [m, 2]."""
    # A Figure of its own draws with Agg and leaves pyplot's global state alone.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=110, layout="constrained")
    axes = figure.subplots()
    for points, color, label in (
        (reference, _REFERENCE, f"reference ({len(reference)})"),
        (current, _CURRENT, f"current ({len(current)})"),
    ):
        axes.scatter(
            points[:, 0], points[:, 1], s=14, alpha=0.6, color=color, linewidths=0, label=label
        )
    axes.set(xlabel="component 1", ylabel="component 2", title="Image embeddings")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return _data_uri(buffer.getvalue())


def thumbnail(data: bytes) -> str:
    """A captured picture, small; `data` is what the service received."""
    image: Image.Image = decode(data)
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return _data_uri(buffer.getvalue())


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
