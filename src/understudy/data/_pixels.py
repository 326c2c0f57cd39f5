"""Pictures as pixels, the same from a file, a tar or a dataset: upright, over white, in three channels (or one), at one size."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Array = np.ndarray[Any, Any]


def decoded(data: bytes, size: tuple[int, int] | None, grey: bool) -> Array:
    """The pixels of a file's bytes, uint8 [height, width, 3 or 1]; ValueError, OSError and the like for one that is broken."""
    if not data:
        raise ValueError("empty file")
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        return pixels(opened, size, grey)


def pixels(given: Image.Image, size: tuple[int, int] | None, grey: bool) -> Array:
    """The pixels of an opened picture."""
    image = ImageOps.exif_transpose(given)
    if image.mode == "F":
        raise ValueError("pixels are floats; images have 8 or 16 bits")
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        image = Image.fromarray((deep >> 8 if image.mode != "I" or deep.max() > 255 else deep).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    image = image.convert("L" if grey else "RGB")
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    found = np.asarray(image)
    return found[..., None] if grey else found
