"""torchvision's transforms as views: what is drawn is a function of the row and the view, whatever the batch or the worker.

A policy takes images uint8 [rows, height, width, channels] and the random state of each row, uint64 [rows], and gives images
of the same shape. RandAugment runs on all rows of one operation at once; a transform of the user's own on one row after
another, each under its own seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from understudy.adapters._loading import import_place, require, source_digest
from understudy.data.views import Policy, drawn
from understudy.errors import DataError

Array = np.ndarray[Any, Any]

LEVELS = 30
"""The strongest magnitude; 9 is published for the smaller networks."""

SIGNED = ("shear x", "shear y", "translate x", "translate y", "rotate", "brightness", "colour", "contrast", "sharpness")
PLAIN = ("identity", "posterize", "solarize", "contrast to the full", "equalize")
OPERATIONS = (*SIGNED, *PLAIN)
"""Those of RandAugment; the signed ones go either way half of the time."""


def randaugment(magnitude: Any, operations: Any = 2) -> Policy:
    """So many operations in turn, each drawn from fourteen for each image, at one magnitude of 1 to 30.

    Cubuk, Zoph, Shlens & Le 2020, arXiv:1909.13719, section 3; operations and their strength are torchvision's.
    """
    if not (isinstance(magnitude, int) and 1 <= magnitude <= LEVELS and isinstance(operations, int) and 1 <= operations <= 8):
        raise DataError(
            f"augment.randaugment = {magnitude!r} with operations = {operations!r}: magnitudes are whole numbers from 1 to {LEVELS}, and "
            "1 to 8 operations follow each other; published are 9 and 2",
            code="U502",
        )
    require("torchvision", "timm")
    import torchvision

    def policy(images: Array, state: Array) -> Array:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        for turn in range(operations):
            chosen = (drawn(state, 200 + 2 * turn) * len(OPERATIONS)).astype(np.int64)
            turned = (drawn(state, 201 + 2 * turn) < 0.5) & (chosen < len(SIGNED))
            for which in np.unique(chosen * 2 + turned):
                rows = torch.from_numpy(np.flatnonzero(chosen * 2 + turned == which))
                pixels[rows] = _operation(OPERATIONS[which // 2], -1 if which % 2 else 1, pixels[rows], magnitude / LEVELS)
        return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())

    version = ".".join(torchvision.__version__.split(".")[:2])
    return Policy("randaugment", {"magnitude": magnitude, "operations": operations, "torchvision": version}, policy)


def own_transform(place: str) -> Policy:
    """The transform that the factory at `package.module:factory` makes: one of torchvision.transforms.v2, or any that acts alike.

    It takes uint8 [channels, height, width], draws from torch's random numbers, and gives the same shape and type.
    """
    factory = import_place(place)
    transform: Callable[[Tensor], Tensor] = factory()

    def policy(images: Array, state: Array) -> Array:
        given = []
        with torch.random.fork_rng(devices=[]):
            for image, seed in zip(torch.from_numpy(images).permute(0, 3, 1, 2), (state >> np.uint64(1)).tolist(), strict=True):
                torch.manual_seed(seed)
                made = torch.as_tensor(transform(image.contiguous()))
                if made.shape != image.shape or made.dtype != torch.uint8:
                    raise DataError(
                        f"augment.transform = {place!r} makes {str(made.dtype).removeprefix('torch.')} {list(made.shape)} of an image "
                        f"uint8 {list(image.shape)}: a view keeps shape and type. Resize in the student (student.options.prepare) and in "
                        "the teacher (teacher.image_size), and leave out normalisation",
                        code="U503",
                    )
                given.append(made)
        return torch.stack(given).permute(0, 2, 3, 1).contiguous().numpy() if given else images

    return Policy("transform", {"place": place, "code": source_digest(factory)}, policy)


def _operation(name: str, sign: int, images: Tensor, part: float) -> Tensor:
    """One operation on all of these images, at a part of its full strength."""
    from torchvision.transforms.v2 import functional

    def moved(
        angle: float = 0.0, x: int = 0, y: int = 0, shear: tuple[float, float] = (0.0, 0.0), center: list[float] | None = None
    ) -> Tensor:
        return functional.affine(images, angle=angle, translate=[x, y], scale=1.0, shear=list(shear), center=center)

    height, width = images.shape[-2:]
    lean = math.degrees(math.atan(0.3 * part * sign))
    factor = 1.0 + sign * 0.9 * part
    made: dict[str, Callable[[], Tensor]] = {
        "shear x": lambda: moved(shear=(lean, 0.0), center=[0, 0]),
        "shear y": lambda: moved(shear=(0.0, lean), center=[0, 0]),
        "translate x": lambda: moved(x=int(sign * part * width * 150 / 331)),
        "translate y": lambda: moved(y=int(sign * part * height * 150 / 331)),
        "rotate": lambda: functional.rotate(images, angle=sign * 30.0 * part),
        "brightness": lambda: functional.adjust_brightness(images, brightness_factor=factor),
        "colour": lambda: functional.adjust_saturation(images, saturation_factor=factor),
        "contrast": lambda: functional.adjust_contrast(images, contrast_factor=factor),
        "sharpness": lambda: functional.adjust_sharpness(images, sharpness_factor=factor),
        "identity": lambda: images,
        "posterize": lambda: functional.posterize(images, bits=8 - round(4 * part)),
        "solarize": lambda: functional.solarize(images, threshold=255 * (1 - part)),
        "contrast to the full": lambda: functional.autocontrast(images),
        "equalize": lambda: functional.equalize(images),
    }
    return made[name]()
