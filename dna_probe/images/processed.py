"""Processed views of training images: the same image, label and group once more, blurred or coded anew.

Between a few fakes and a few reals the largest differences are sharpness and codec. A view shows the same content with
another sharpness, so that a probe fitted on image and view cannot lean on it, and a unit can be asked how much it moves
where nothing but processing changed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from PIL import Image

from dna_probe.errors import DataError, unknown_name
from dna_probe.images.degradations import DEGRADATIONS, available_degradations
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.images.reading import Source, UnreadableImage, content_hash, read_image
from dna_probe.images.sets import ImageSet, noun_of

if TYPE_CHECKING:
    from dna_probe.batches import Reader

# Name -> the degradation and its severity, which are those of an image at the size that the backbone looks at.
VIEWS: dict[str, tuple[str, int]] = {
    "blur": ("gaussian_blur", 0),
    "resize": ("resize_bicubic", 1),
    "jpeg": ("jpeg", 3),
    "webp": ("webp", 2),
    "noise": ("gaussian_noise", 1),
    "crop": ("crop", 1),
}
DEFAULT_VIEWS = ("blur",)


def require_views(views: Sequence[str]) -> None:
    """Raises ``DnaProbeError``, with near matches, for a view that does not exist or that Pillow cannot make here."""
    for view in views:
        if view not in VIEWS or VIEWS[view][0] not in available_degradations():
            known = [name for name, (degradation, _) in VIEWS.items() if degradation in available_degradations()]
            raise unknown_name("view", view, known)


@dataclass(frozen=True)
class ProcessedImage:
    """A view of an image, made each time it is read, under the name of the image: a ``StoredImage``.

    The image is first shrunk to a short side of `side`, since a blur by one pixel is none once a large image has been
    shrunk for the backbone.
    """

    source: Source = field(repr=False)
    view: str
    side: int
    name: str

    def read_bytes(self) -> bytes:
        """A PNG file. Raises `UnreadableImage`."""
        image = read_image(self.source, name=self.name)
        short = min(image.size)
        if short > self.side:
            width, height = (max(1, round(side * self.side / short)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        name, severity = VIEWS[self.view]
        # By content, so that an image has the same view in whatever set it is.
        seed = int(content_hash(self.source)[:8], 16) if DEGRADATIONS[name].random else 0
        buffer = io.BytesIO()
        try:
            DEGRADATIONS[name].apply(image, severity, seed).save(buffer, "PNG", compress_level=1)
        except (OSError, ValueError) as error:
            raise UnreadableImage(self.name, str(error)) from error
        return buffer.getvalue()


def process(images: ImageSet, view: str, preprocessing: Reader) -> ImageSet:
    """The same set, every image in place of itself under a view, at the size from which the backbone crops."""
    if not isinstance(preprocessing, Preprocessing):
        raise DataError(f"There are no views of {noun_of(preprocessing.modality)}", "", "Leave them out")
    # Rounded as the preprocessing rounds, or the backbone would resize views once more, and them alone.
    side = math.floor(min(preprocessing.input_size) / preprocessing.crop_pct)
    sources = zip(images.images, images.names, strict=True)
    made = tuple(ProcessedImage(source, view, side, name) for source, name in sources)
    return replace(images, images=made, skipped=())
