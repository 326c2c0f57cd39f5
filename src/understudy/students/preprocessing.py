"""What a student does to its encoded inputs before its own layers: part of the graph, so that no caller can forget it.

Every module here is fitted once on the encoded training rows, holds what it learned in buffers, has no control flow that
depends on data (it exports to ONNX as it stands) and takes any number of rows.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from understudy.data.rows import Kind
from understudy.errors import RecipeError, did_you_mean
from understudy.students._sound import LogMel, fit_log_mel

LIMIT = 10.0
"""Standardised values are cut at this many standard deviations: one absurd cell must not drown its row."""


@final
class TablePreprocessing(nn.Module):
    """Encoded table [rows, columns] -> float32 features [rows, len(self.features)].

    Numbers: missing becomes the training median, then standardised when `scale`; a column that had a missing value in
    training also gives a 0/1 indicator. Categories: one column per level; missing and unknown are all zeros.
    `columns` are those of a TableEncoding's JSON: {"name", "type": "number" | "category", "levels": [...]};
    `statistics` has median, mean and std of each number column in turn; `absent` the columns with missing cells.
    """

    numbers: Tensor
    median: Tensor
    mean: Tensor
    std: Tensor
    absent: Tensor
    level_columns: Tensor
    level_codes: Tensor

    def __init__(self, columns: list[dict[str, Any]], statistics: list[dict[str, float]], absent: list[int], *, scale: bool) -> None:
        super().__init__()
        numbers = [index for index, column in enumerate(columns) if column["type"] == "number"]
        categories = [index for index, column in enumerate(columns) if column["type"] != "number"]
        levels = [(index, code) for index in categories for code in range(len(columns[index]["levels"]))]
        self.spec = {"kind": "table", "columns": columns, "statistics": statistics, "absent": absent, "scale": scale}
        self.scale = scale
        self.identity = not scale and not absent and len(numbers) == len(columns)
        self.features = [
            *(str(columns[index]["name"]) for index in numbers),
            *(f"{columns[index]['name']} (missing)" for index in absent),
            *(f"{columns[index]['name']}={columns[index]['levels'][code]}" for index, code in levels),
        ]
        self._has = {"numbers": bool(numbers), "absent": bool(absent), "levels": bool(levels)}
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.int64))
        self.register_buffer("median", torch.tensor([one["median"] for one in statistics], dtype=torch.float32))
        self.register_buffer("mean", torch.tensor([one["mean"] for one in statistics], dtype=torch.float32))
        self.register_buffer("std", torch.tensor([one["std"] for one in statistics], dtype=torch.float32))
        self.register_buffer("absent", torch.tensor(absent, dtype=torch.int64))
        self.register_buffer("level_columns", torch.tensor([index for index, _ in levels], dtype=torch.int64))
        self.register_buffer("level_codes", torch.tensor([code for _, code in levels], dtype=torch.float32))

    def forward(self, encoded: Tensor) -> Tensor:
        if self.identity:
            return encoded
        parts = []
        if self._has["numbers"]:
            cells = encoded.index_select(1, self.numbers)
            cells = torch.where(torch.isnan(cells), self.median, cells)
            parts.append(_standardise(cells, self.mean, self.std) if self.scale else cells)
        if self._has["absent"]:
            parts.append(torch.isnan(encoded.index_select(1, self.absent)).to(torch.float32))
        if self._has["levels"]:
            # a missing (NaN) or unknown (-1) code equals no level
            parts.append((encoded.index_select(1, self.level_columns) == self.level_codes).to(torch.float32))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@final
class ArrayPreprocessing(nn.Module):
    """Encoded array [rows, ...] -> float32, each position standardised by `mean` and `std` if given, flat if `flatten`."""

    mean: Tensor
    std: Tensor

    def __init__(self, shape: list[int], mean: list[float] | None = None, std: list[float] | None = None, *, flatten: bool) -> None:
        super().__init__()
        self.scale, self.flatten = mean is not None, flatten
        self.features = [f"x{index}" for index in range(math.prod(shape))]
        self.spec = {"kind": "array", "shape": shape, "mean": mean, "std": std, "flatten": flatten}
        if mean is not None:
            self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(shape))
            self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(shape))

    def forward(self, encoded: Tensor) -> Tensor:
        values = encoded.to(torch.float32)
        if self.scale:
            values = _standardise(values, self.mean, self.std)
        return values.flatten(1) if self.flatten else values


@final
class ImagePreprocessing(nn.Module):
    """Encoded images uint8 [rows, height, width, channels] -> float32 [rows, channels, height, width], or flat.

    `mean` and `std` have one value per channel, in units of 0 to 255. `resize` is the height and width that the network
    reads, `size` those of the rows: bilinear, averaged where it gets smaller, as two products of matrices.
    """

    mean: Tensor
    std: Tensor
    down: Tensor
    across: Tensor

    def __init__(
        self, mean: list[float], std: list[float], *, flatten: bool = False, size: list[int] | None = None, resize: list[int] | None = None
    ) -> None:
        super().__init__()
        self.flatten, self.resizes = flatten, resize is not None
        height, width = resize or size or (0, 0)
        if resize is not None and size is not None:
            self.register_buffer("down", _resizing(size[0], height))
            self.register_buffer("across", _resizing(size[1], width).T.contiguous())
        self.features = [f"pixel {y},{x},{c}" for c in range(len(mean)) for y in range(height) for x in range(width)] if flatten else []
        self.spec = {"kind": "image", "mean": mean, "std": std, "flatten": flatten, "size": size}
        self.spec |= {} if resize is None else {"resize": resize}
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1))

    def forward(self, encoded: Tensor) -> Tensor:
        values = encoded.permute(0, 3, 1, 2).to(torch.float32)
        if self.resizes:
            values = self.down @ values @ self.across
        values = (values - self.mean) / self.std
        return values.flatten(1) if self.flatten else values


@final
class TextPreprocessing(nn.Module):
    """Positions of tokens int64 [rows, ..., length] -> the same without the columns at the end that are padding in every row.

    Only where that is for free: not in a graph that is being exported, nor on a device that would have to be waited for.
    """

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.features: list[str] = []
        self.spec = {"kind": "text", "padding": padding}

    def forward(self, tokens: Tensor) -> Tensor:
        if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or tokens.device.type != "cpu":
            return tokens
        return trimmed(tokens, self.padding)


def trimmed(tokens: Tensor, padding: int) -> Tensor:
    """Positions of tokens without the last columns that are padding in every row; one column stays."""
    used = (tokens != padding).flatten(0, -2).any(dim=0).nonzero()
    return tokens[..., : max(1, int(used[-1]) + 1 if len(used) else 0)]


@final
class Rescale(nn.Module):
    """Network outputs around 0 and 1 -> values in the label's own unit: outputs * std + mean."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std) or 1.0))

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs * self.std + self.mean


def fit_preprocessing(
    encoded: np.ndarray[Any, Any] | Tensor, kind: Kind, encoding: Any, *, scale: bool, flatten: bool, rate: int = 16000
) -> nn.Module:
    """The preprocessing for encoded training rows of one kind; `encoding` is that of a table or of texts; `rate` is for sound."""
    if kind == "audio":
        return fit_log_mel(torch.as_tensor(encoded), rate, scale=scale, flatten=flatten)
    rows = encoded.numpy() if isinstance(encoded, Tensor) else encoded
    if kind == "table":
        columns = encoding.to_json()["columns"]
        numbers = [index for index, column in enumerate(columns) if column["type"] == "number"]
        absent = [index for index in numbers if np.isnan(rows[:, index]).any()]
        return TablePreprocessing(columns, [_statistics(rows[:, index]) for index in numbers], absent, scale=scale)
    if kind == "text":
        return TextPreprocessing(encoding.padding)
    if kind == "array":
        shape = list(rows.shape[1:])
        if not scale:
            return ArrayPreprocessing(shape, flatten=flatten)
        std = rows.std(axis=0, dtype=np.float64).ravel()
        mean = rows.mean(axis=0, dtype=np.float64).ravel()
        return ArrayPreprocessing(shape, mean.tolist(), np.where(std > 0, std, 1.0).tolist(), flatten=flatten)
    means, stds = _pixels(rows) if scale else ([0.0] * rows.shape[-1], [1.0] * rows.shape[-1])
    return ImagePreprocessing(means, stds, flatten=flatten, size=list(rows.shape[1:3]))


def as_asked(prepared: nn.Module, asked: dict[str, Any]) -> nn.Module:
    """The preprocessing of images with the size and normalisation that a network asks for: `image_size`, `mean` and `std`.

    `mean` and `std` are in units of 0 to 1, as a teacher's; what is not asked for stays as it was fitted.
    """
    _refuse_unknown(asked, ("image_size", "mean", "std"))
    assert isinstance(prepared, ImagePreprocessing)
    spec: dict[str, Any] = {name: value for name, value in prepared.spec.items() if name != "kind"}
    channels = len(spec["mean"])
    for name in ("mean", "std"):
        if name in asked:
            said = [float(value) * 255 for value in asked[name]]
            if len(said) != channels or (name == "std" and min(said) <= 0):
                raise RecipeError(f"options.prepare.{name} = {asked[name]}: one number per channel, {channels} here, in units of 0 to 1",
                                  code="U504")  # fmt: skip
            spec[name] = said
    if "image_size" in asked:
        size = asked["image_size"]
        if not (isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
            raise RecipeError(f"options.prepare.image_size = {size!r}: height and width in pixels, such as [16, 16]", code="U504")
        spec["resize"] = list(size)
    return ImagePreprocessing(**spec)


def sound_as_asked(prepared: nn.Module, asked: dict[str, Any], encoded: Tensor) -> nn.Module:
    """The features of sound without bringing each clip to one level first (`level = false`), fitted again on the training clips."""
    _refuse_unknown(asked, ("level",))
    assert isinstance(prepared, LogMel)
    spec: dict[str, Any] = prepared.spec
    level = asked.get("level", True)
    if not isinstance(level, bool):
        raise RecipeError(f"options.prepare.level = {level!r}: true or false", code="U504")
    return prepared if level else fit_log_mel(encoded, spec["rate"], scale=spec["mean"] is not None, flatten=prepared.flatten, level=False)


def _refuse_unknown(asked: dict[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise RecipeError(f"options.prepare: no {unknown[0]!r}; {did_you_mean(unknown[0], known)}", code="U504")


def _resizing(before: int, after: int) -> Tensor:
    """The matrix [after, before] that makes a line of pixels longer or shorter."""
    line = torch.eye(before)[None, None]
    return functional.interpolate(line, size=(after, before), mode="bilinear", antialias=True)[0, 0]


def from_spec(spec: dict[str, Any]) -> nn.Module:
    """The preprocessing that a `spec` describes, as kept in JSON."""
    build = {
        "table": TablePreprocessing,
        "array": ArrayPreprocessing,
        "image": ImagePreprocessing,
        "audio": LogMel,
        "text": TextPreprocessing,
    }[spec["kind"]]
    return build(**{name: value for name, value in spec.items() if name != "kind"})


def assemble(preprocessing: nn.Module, network: nn.Module, *, values: np.ndarray[Any, Any] | None = None) -> nn.Sequential:
    """One module from encoded rows to answers; `values` are a regression's training labels, whose unit it will speak.

    >>> assemble(nn.Identity(), nn.Linear(2, 1), values=np.array([[1.0], [3.0]]))[2].mean
    tensor(2.)
    """
    parts = OrderedDict(preprocessing=preprocessing, network=network)
    if values is not None:
        known = values[np.isfinite(values)]
        parts["rescale"] = Rescale(float(known.mean()), float(known.std())) if known.size else Rescale(0.0, 1.0)
    return nn.Sequential(parts)


def _standardise(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return ((values - mean) / std).clamp(-LIMIT, LIMIT)


def _statistics(cells: np.ndarray[Any, Any]) -> dict[str, float]:
    """Of the finite cells, median-filled as the student will see them."""
    finite = cells[np.isfinite(cells)].astype(np.float64)
    if not finite.size:
        return {"median": 0.0, "mean": 0.0, "std": 1.0}
    median = float(np.median(finite))
    filled = np.where(np.isfinite(cells), cells, median).astype(np.float64)
    return {"median": median, "mean": float(filled.mean()), "std": float(filled.std()) or 1.0}


def _pixels(images: np.ndarray[Any, Any]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, read in pieces because the images may be a memory map."""
    total = squares = np.zeros(images.shape[-1])
    for start in range(0, len(images), 1024):
        piece = images[start : start + 1024].reshape(-1, images.shape[-1]).astype(np.float64)
        total = total + piece.sum(axis=0)
        squares = squares + (piece**2).sum(axis=0)
    pixels = images[..., 0].size
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0.0))
    return mean.tolist(), np.where(std > 0, std, 1.0).tolist()
