"""Small pictures as `data:` URIs, within a budget for all of a page."""

import base64
import io

from PIL import Image

from bentos.captioner.images import BadImage, decode
from tasks.data.report.facts import Example


class Thumbnails:
    """Gives out small JPEGs until `budget_bytes` of text are spent, then no more."""

    def __init__(self, budget_bytes: int) -> None:
        self._left = budget_bytes

    def uri(self, example: Example, side: int) -> str | None:
        """At most `side` pixels a side; None if it can't be shown or would go over the budget."""
        if example.path is None:
            return None
        try:
            image: Image.Image = decode(example.path.read_bytes())
        except (BadImage, OSError):
            return None  # that it is broken is what the report says beside it
        image.thumbnail((side, side))
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=72)
        uri = "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
        if len(uri) > self._left:
            return None
        self._left -= len(uri)
        return uri
