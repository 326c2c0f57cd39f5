"""Views: augmented versions of a row that teacher and student see alike. Pure functions of (key, view), on whole batches.

View 0 is the plain row. A view is either one of a finite set that is counted through (`enumerated`: every shift and mirror
image), or made from random numbers that are a hash of the row's content key and the view's number. Nothing depends on the
batch, the worker or the epoch, so a transfer set can say what the teacher saw. Adding a kind of view: a function of (inputs,
state), a field of Views, and a line in `Views.__call__`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from scipy.special import betaincinv, ndtri
from torch import Tensor
from torch.nn import functional

from understudy.data._sound_views import ends, levels, sounds, to_samples
from understudy.data.rows import Kind, Paired, Rows
from understudy.errors import DataError

Array = np.ndarray[Any, Any]

WITHOUT_END = 2**31
"""How many views there are to draw from where they are neither counted nor stored."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WIDEST = 4 / 3


_NAMES = ("shift", "flip", "crop", "colour", "noise", "mixup", "speed", "gain")
OPTIONS: dict[Kind, tuple[str, ...]] = {
    "table": ("noise",),
    "array": ("noise", "mixup"),
    "image": ("shift", "flip", "crop", "colour", "noise", "mixup", "randaugment", "operations", "transform"),
    "audio": ("shift", "speed", "gain", "noise"),
}
"""What can change rows of each kind."""
_FOR = {
    **dict.fromkeys(("flip", "crop", "colour"), "images"),
    "shift": "images and sound",
    "mixup": "images and arrays",
    "speed": "sound",
    "gain": "sound",
}


@final
@dataclass(frozen=True)
class Partners:
    """The rows that mixup mixes with: their inputs, and the order of their keys."""

    inputs: Array
    order: Array
    digest: str

    @staticmethod
    def of(rows: Rows) -> Partners:
        """The partners among these rows, found by key, whatever order the rows stand in."""
        order = np.lexsort((rows.keys[:, 1], rows.keys[:, 0]))
        seen = hashlib.blake2b(np.ascontiguousarray(rows.keys[order]).tobytes(), digest_size=8)
        return Partners(rows.inputs, order, seen.hexdigest())


@final
@dataclass(frozen=True)
class Policy:
    """A way to change images that is not of this file: its name, what a manifest says of it, and (images, state) -> images."""

    name: str
    said: dict[str, Any]
    make: Callable[[Array, Array], Array]


@final
@dataclass(frozen=True)
class Views:
    """What the views of a row are; called with (inputs, keys int64 [batch, 2], view) it makes them.

    `shift` pixels over zeros and `flip` move an image; `crop` is the least share of its area that a resized crop keeps;
    `colour` changes brightness, contrast and saturation by up to that share; `noise` is added to numbers (in standard
    deviations of each column of a table, in the input's own unit elsewhere); `mixup` is the parameter of the Beta
    distribution of Zhang et al. 2018 (arXiv:1710.09412), the row always being the larger part; see `mixture_of` for labels.
    Of sound, `shift` is in samples, `speed` the largest change of tempo and pitch, `gain` of loudness in decibels, `noise` in
    units of the clip's own level. `policies` follow crop, shift and mirror image, each with the random state of the row.
    `columns` are the number columns of a table: name, position in its encoding, standard deviation.
    """

    kind: Kind
    shift: int = 0
    flip: bool = False
    crop: float = 1.0
    colour: float = 0.0
    noise: float = 0.0
    mixup: float = 0.0
    speed: float = 0.0
    gain: float = 0.0
    enumerated: bool = False
    columns: tuple[tuple[str, int, float], ...] = ()
    partners: Partners | None = None
    policies: tuple[Policy, ...] = ()

    def __post_init__(self) -> None:
        asked = [name for name in _NAMES if getattr(self, name) != type(self).__dict__[name]]
        wrong = [name for name in asked if name not in OPTIONS[self.kind]]
        wrong += [policy.name for policy in self.policies if self.kind != "image"]
        if wrong:
            told = f"augment.{wrong[0]} is for {_FOR.get(wrong[0], 'images')}, the rows are of kind {self.kind!r}"
            raise DataError(f"{told}; use {' or '.join(f'augment.{name}' for name in OPTIONS[self.kind])}", code="U320")
        if self.mixup and self.partners is None:
            raise DataError("augment.mixup needs the rows to mix with", code="U320")

    @property
    def finite(self) -> bool:
        """Whether all views can be counted: only shifts and mirror images."""
        return self.kind == "image" and self.crop == 1 and not (self.colour or self.noise or self.mixup or self.policies)

    @property
    def count(self) -> int:
        """How many different views there are, the plain row included."""
        return (2 * self.shift + 1) ** 2 * (2 if self.flip else 1) if self.finite else WITHOUT_END

    @property
    def spec(self) -> dict[str, Any]:
        """What a manifest says of these views; two that make the same views say the same."""
        said = {name: getattr(self, name) for name in _NAMES if getattr(self, name) != type(self).__dict__[name]}
        said |= {"how": "enumerated" if self.enumerated else "seeded"}
        if self.crop != 1:
            said["crop"] = {"least": self.crop, "windows": "whole pixels"}
        said |= {policy.name: policy.said for policy in self.policies}
        if self.mixup and self.partners is not None:
            said["partners"] = self.partners.digest
        if self.noise and self.columns:
            said["columns"] = {name: float(f"{scale:.6g}") for name, _, scale in self.columns}
        return said

    def __call__(self, inputs: Any, keys: Array, view: int | Array) -> Any:
        """The view of each row, as the kind of thing that was given (DataFrame, array or tensor)."""
        if isinstance(inputs, torch.Tensor):
            return torch.from_numpy(self(inputs.numpy(), keys, view))
        views = np.broadcast_to(np.asarray(view, dtype=np.int64), (len(inputs),))
        if (views == 0).all():
            return inputs
        if self.enumerated:
            return enumerate_images(inputs, views, shift=self.shift, flip=self.flip)
        state = _state(keys, views)
        if self.kind == "table":
            return noisy_columns(inputs, state, views > 0, self.columns, self.noise)
        if self.kind == "audio":
            chances = [drawn(state, 51 + number) for number in range(3)]
            heard = sounds(inputs, views > 0, chances, shift=self.shift, speed=self.speed, gain=self.gain)
            return _hissing(heard, state, views > 0, self.noise) if self.noise else heard
        given = mixed(inputs, state, views > 0, self.partners, self.mixup) if self.mixup and self.partners is not None else inputs
        if self.shift or self.flip:
            given = augment_images(given, keys, views, shift=self.shift, flip=self.flip)
        if self.crop < 1:
            given = cropped(given, state, views > 0, self.crop)
        for policy in self.policies:
            given = _by_policy(policy, given, state, views > 0)
        if self.colour:
            given = coloured(given, state, views > 0, self.colour)
        return noisy(given, state, views > 0, self.noise) if self.noise else given


@final
@dataclass(frozen=True)
class PairedViews:
    """Views of rows with several inputs (`Paired`): each input named here by its own, under the row's key; the others stay as they are."""

    of: Mapping[str, Views]

    @property
    def finite(self) -> bool:
        """Whether all views can be counted: one set of shifts and mirror images, the same for every input that changes."""
        first, *others = self.of.values()
        return first.finite and all(each == first for each in others)

    @property
    def count(self) -> int:
        """How many different views there are, the plain row included."""
        return next(iter(self.of.values())).count if self.finite else WITHOUT_END

    @property
    def spec(self) -> dict[str, Any]:
        """What a manifest says of these views, input by input."""
        return {name: made.spec for name, made in self.of.items()}

    def __call__(self, inputs: Paired, keys: Array, view: int | Array) -> Paired:
        """The view of each row."""
        return replace(
            inputs, parts={name: self.of[name](part, keys, view) if name in self.of else part for name, part in inputs.parts.items()}
        )


AnyViews = Views | PairedViews


def mixture_of(views: Views, keys: Array, view: Array) -> tuple[Array, Array] | None:
    """The place among the partners of the row that each view is mixed with, and the row's own share; None without mixup."""
    if not views.mixup or views.partners is None:
        return None
    return _mixture(_state(keys, view), view > 0, views.partners, views.mixup)


def augment_images(images: Array, keys: Array, view: int | Array, *, shift: int = 0, flip: bool = False) -> Array:
    """The view of each image, uint8 [batch, height, width, channels]: shifted by up to `shift` pixels over zeros, maybe mirrored.

    `keys` int64 [batch, 2]; `view` is one number or one per row. The shift is uniform in -shift..shift on both axes; a mirror has
    probability one half.

    >>> image = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
    >>> augment_images(image, np.zeros((1, 2), np.int64), 0, shift=1, flip=True).tolist() == image.tolist()
    True
    """
    views = np.broadcast_to(np.asarray(view, dtype=np.int64), (len(images),))
    plain = views == 0
    _refuse_shift(images, shift)
    if plain.all() or not (shift or flip):
        return images
    state = _state(keys, views)
    steps = np.uint64(2 * shift + 1)
    down = np.where(plain, shift, (_mix(state + np.uint64(1)) % steps).astype(np.int64))
    right = np.where(plain, shift, (_mix(state + np.uint64(2)) % steps).astype(np.int64))
    mirrored = ~plain & ((_mix(state + np.uint64(3)) >> np.uint64(63)) == 1) & flip
    return _moved(images, down, right, mirrored, shift)


def enumerate_images(images: Array, view: int | Array, *, shift: int = 0, flip: bool = False) -> Array:
    """View number 0 to (2 shift + 1)^2 - 1 (twice as many with `flip`) of each image: every shift over zeros, every mirror image.

    These are all outcomes of a random crop with `shift` pixels of padding and a random mirror image, each once.

    >>> image = np.arange(1, 5, dtype=np.uint8).reshape(1, 2, 2, 1)
    >>> len({enumerate_images(image, view, shift=1, flip=True).tobytes() for view in range(18)})
    18
    """
    views = np.broadcast_to(np.asarray(view, dtype=np.int64), (len(images),))
    _refuse_shift(images, shift)
    steps, sides = 2 * shift + 1, 2 if flip else 1
    if ((views < 0) | (views >= steps * steps * sides)).any():
        raise DataError(f"there are {steps * steps * sides} views of these images, number {views.max()} was asked", code="U320")
    # the plain image, in the middle of all shifts, comes first
    place = (views // sides + shift * steps + shift) % (steps * steps)
    return _moved(images, place // steps, place % steps, views % sides == 1, shift)


def cropped(images: Array, state: Array, changed: Array, least: float) -> Array:
    """A random window of each image at the image's size again: torchvision's RandomResizedCrop, for all rows at once.

    Of ten windows that are drawn, with a share of the area from `least` to 1 and sides within 3:4 to 4:3, the first that fits; the
    middle of the image where none does. Bilinear (Szegedy et al. 2015, arXiv:1409.4842, section 6, which takes 0.08).
    """
    chosen = np.flatnonzero(changed)
    top, left, high, wide = windows(state[chosen], images.shape[1], images.shape[2], least)

    def places(start: Array, length: Array, whole: int) -> Tensor:
        at = start[:, None] + (np.arange(whole) + 0.5) * length[:, None] / whole - 0.5
        at = np.clip(at, start[:, None], (start + length - 1)[:, None])  # nothing from beyond the window
        return torch.from_numpy(((2 * at + 1) / whole - 1).astype(np.float32))

    down, across = places(top, high, images.shape[1]), places(left, wide, images.shape[2])
    grid = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), dim=3)
    pixels = torch.from_numpy(images[chosen]).permute(0, 3, 1, 2).float()
    found = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    given = images.copy()
    given[chosen] = _bytes(found.permute(0, 2, 3, 1).numpy())
    return given


def windows(state: Array, height: int, width: int, least: float) -> tuple[Array, Array, Array, Array]:
    """Top, left, height and width of each row's window, int64 [rows]."""
    tries = range(10)
    area = np.stack([least + (1 - least) * drawn(state, 100 + at) for at in tries], axis=1) * height * width
    ratio = np.stack([_WIDEST ** (2 * drawn(state, 110 + at) - 1) for at in tries], axis=1)
    wide, high = np.rint(np.sqrt(area * ratio)).astype(np.int64), np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    rows, first = np.arange(len(state)), fits.argmax(axis=1)
    middle_high, middle_wide = min(height, round(width * _WIDEST)), min(width, round(height * _WIDEST))
    high = np.where(fits.any(axis=1), high[rows, first], middle_high)
    wide = np.where(fits.any(axis=1), wide[rows, first], middle_wide)
    top, left = ((drawn(state, at) * (whole - part + 1)).astype(np.int64) for at, whole, part in ((13, height, high), (14, width, wide)))
    return (
        np.where(fits.any(axis=1), top, (height - high) // 2),
        np.where(fits.any(axis=1), left, (width - wide) // 2),
        high,
        wide,
    )


def coloured(images: Array, state: Array, changed: Array, most: float) -> Array:
    """Brightness, contrast and saturation of each image multiplied by factors within 1 - most to 1 + most, in this order."""
    brightness, contrast, saturation = (
        np.where(changed, 1 + most * (2 * drawn(state, 21 + number) - 1), 1).astype(np.float32).reshape(-1, 1, 1, 1) for number in range(3)
    )
    pixels = (images * brightness).clip(0, 255)
    middle = pixels.mean(axis=(1, 2, 3), keepdims=True)
    pixels = ((pixels - middle) * contrast + middle).clip(0, 255)
    grey = pixels.mean(axis=3, keepdims=True)
    return _bytes((pixels - grey) * saturation + grey)


def noisy(inputs: Array, state: Array, changed: Array, size: float) -> Array:
    """Inputs with normal noise of this standard deviation on every number; bytes stay bytes."""
    places = np.arange(int(np.prod(inputs.shape[1:])), dtype=np.uint64)
    drawn = _normal(state[:, None] ^ _mix(places + np.uint64(31))).astype(np.float32).reshape(inputs.shape)
    drawn *= np.float32(size) * changed.astype(np.float32).reshape(-1, *[1] * (inputs.ndim - 1))
    return _bytes(inputs + drawn) if inputs.dtype == np.uint8 else np.asarray(inputs + drawn, dtype=inputs.dtype)


def _hissing(waves: Array, state: Array, changed: Array, size: float) -> Array:
    """Sound with normal noise of `size` times each clip's own level, up to the clip's end; int16."""
    places = np.arange(waves.shape[1], dtype=np.uint64)
    drawn = _normal(state[:, None] ^ _mix(places + np.uint64(31))).astype(np.float32)
    inside = places < ends(waves)[:, None].astype(np.uint64)
    return to_samples(waves + drawn * inside * (size * levels(waves) * changed)[:, None])


def noisy_columns(inputs: Any, state: Array, changed: Array, columns: tuple[tuple[str, int, float], ...], size: float) -> Any:
    """A table (or its encoding) with normal noise on its number columns, in their standard deviations; missing stays missing."""
    given = inputs.copy()
    for name, place, scale in columns:
        drawn = _normal(state ^ _mix(np.full(1, place + 31, dtype=np.uint64))) * (size * scale) * changed
        if isinstance(inputs, np.ndarray):
            given[:, place] += drawn.astype(given.dtype)
        else:
            given[name] = inputs[name].astype(np.float64) + drawn
    return given


def mixed(inputs: Array, state: Array, changed: Array, partners: Partners, size: float) -> Array:
    """Each row mixed with a partner drawn for its view; the row's own share is Beta(size, size), folded to one half or more."""
    partner, share = _mixture(state, changed, partners, size)
    share = share.reshape(-1, *[1] * (inputs.ndim - 1))
    blend = inputs * share + partners.inputs[partner] * (1 - share)
    return _bytes(blend) if inputs.dtype == np.uint8 else np.asarray(blend, dtype=inputs.dtype)


def _by_policy(policy: Policy, images: Array, state: Array, changed: Array) -> Array:
    """Each image that is changed as the policy makes it, under a state of its own."""
    chosen = np.flatnonzero(changed)
    given = images.copy()
    given[chosen] = policy.make(images[chosen], _mix(state[chosen] + np.uint64(51)))
    return given


def _mixture(state: Array, changed: Array, partners: Partners, size: float) -> tuple[Array, Array]:
    """The partner of each row, and how much of the mixture is the row's own, float32."""
    partner = partners.order[(_mix(state + np.uint64(41)) % np.uint64(len(partners.order))).astype(np.int64)]
    share = betaincinv(size, size, drawn(state, 42))
    return partner, np.where(changed, np.maximum(share, 1 - share), 1).astype(np.float32)


def _moved(images: Array, down: Array, right: Array, mirrored: Array, shift: int) -> Array:
    """Each image's window at (down, right) of its version padded with `shift` zeros, mirrored where said."""
    batch, height, width, channels = images.shape
    given = images
    if shift:
        padded = np.zeros((batch, height + 2 * shift, width + 2 * shift, channels), dtype=images.dtype)
        padded[:, shift : shift + height, shift : shift + width] = images
        row, line, pixel, channel = padded.strides
        # Every window of every padded image, as a view; one indexed copy then takes the right one of each.
        windows = np.lib.stride_tricks.as_strided(
            padded,
            (batch, 2 * shift + 1, 2 * shift + 1, height, width, channels),
            (row, line, pixel, line, pixel, channel),
            writeable=False,
        )
        given = windows[np.arange(batch), down, right]
    if mirrored.any():
        given = np.array(given) if given is images else given
        given[mirrored] = given[mirrored, :, ::-1]
    return np.ascontiguousarray(given)


def _refuse_shift(images: Array, shift: int) -> None:
    height, width = images.shape[1:3]
    if not 0 <= shift < min(height, width):
        most = min(height, width) - 1
        raise DataError(f"a shift of {shift} pixels does not fit images of {height} x {width}; use 0 to {most}", code="U150")


def _bytes(pixels: Array) -> Array:
    return np.rint(pixels).clip(0, 255).astype(np.uint8)


def _state(keys: Array, views: Array) -> Array:
    """The random state of each (row, view), uint64."""
    return _mix(keys[:, 0].astype(np.uint64) ^ _mix(keys[:, 1].astype(np.uint64) ^ _mix(views.astype(np.uint64))))


def drawn(state: Array, stream: int) -> Array:
    """One number in (0, 1) for each state."""
    return np.asarray(((_mix(state + np.uint64(stream)) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


def _normal(state: Array) -> Array:
    return np.asarray(ndtri(((_mix(state) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53))


def _mix(words: Array) -> Array:
    """splitmix64 (Steele, Lea & Flood 2014) of each word, uint64."""
    mixed = words + _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
