"""Rows that come one after another (datasets, iterators, tars), gathered a chunk at a time.

With a cache the chunks go to a .npy file that is memory-mapped at the end, so that memory holds one chunk whatever comes.
An item is (input, label), an input alone, or a dictionary with names as WebDataset has them: `jpg`, `png`, `npy` and `cls`,
or `image`, `inputs` and `label`.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from PIL import UnidentifiedImageError

from understudy.data._pixels import decoded, pixels
from understudy.data._source import Source, as_inputs
from understudy.errors import DataError

Array = np.ndarray[Any, Any]

CHUNK_BYTES = 2**24
"""What waits in memory before it is written."""
INPUTS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "npy", "image", "img", "inputs", "input", "x")
LABELS = ("cls", "label", "labels", "target", "targets", "y")


@final
class Pictures:
    """How pictures are brought to pixels: their size, and whether they are grey (None: pictures in grey stay so)."""

    def __init__(self, size: tuple[int, int] | None = None, grey: bool = False) -> None:
        self.size, self.grey = size, grey

    def array(self, given: Any) -> Array:
        """A picture, a tensor, or numbers as an array."""
        if type(given).__module__.startswith("PIL."):
            return pixels(given, self.size, self.grey or given.mode == "L")
        found: Array = np.asarray(given)
        return found


def taken_apart(item: Any, name: str, pictures: Pictures, where: str) -> tuple[Array, Any]:
    """Input and label (None when there is none) of one item; DataError U447 for one that has no input."""
    if isinstance(item, tuple | list) and len(item) == 2:
        return pictures.array(item[0]), _scalar(item[1])
    if not isinstance(item, Mapping):
        return pictures.array(item), None
    place, given = _one_of(INPUTS, item, name, where)
    if place is None:
        there = ", ".join(map(str, item))
        beside = "; in a tar the files of a row stand side by side" if any(isinstance(value, bytes) for value in item.values()) else ""
        raise DataError(f"{where}: {name} has {there}; an input is under one of {', '.join(INPUTS)}{beside}", code="U447")
    label = _one_of(LABELS, item, name, where)[1]
    if isinstance(given, bytes):
        try:
            given = np.load(io.BytesIO(given), allow_pickle=False) if place == "npy" else decoded(given, pictures.size, pictures.grey)
        except Exception as error:  # a damaged picture can raise almost anything from within a codec
            told = "no picture, or damaged" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
            raise DataError(f"{where}: the .{place} of {name} cannot be read: {told}", code="U448") from None
    return pictures.array(given), _label(label, name, where)


def _one_of(words: Sequence[str], item: Mapping[Any, Any], name: str, where: str) -> tuple[str | None, Any]:
    """(Word, value) of the field that is called by the first of these words, `png` before `mask.png`; DataError U447 for several files."""
    named = [(key.count("."), key.lower().rpartition(".")[2], key) for key in item if isinstance(key, str)]
    named = [one for one in named if one[1] in words]
    nearest = [(word, key) for dots, word, key in named if dots == min(named)[0]]
    files = [key for _, key in nearest if isinstance(item[key], bytes)]
    if len(files) > 1:
        told = f"{name} has {', '.join(sorted(files)[:3])}{', ...' if len(files) > 3 else ''}"
        raise DataError(
            f"{where}: {told}, and one of them alone can be read; the name of a row ends at its first dot: write 0017.png", code="U447"
        )
    word, key = min(nearest, key=lambda one: words.index(one[0]), default=(None, None))
    return word, None if key is None else item[key]


def _label(given: Any, name: str, where: str) -> Any:
    if not isinstance(given, bytes):
        return None if given is None else _scalar(given)
    try:
        text = given.decode().strip()
    except UnicodeDecodeError:
        raise DataError(f"{where}: the label of {name} is no text", code="U448") from None
    return (int(text) if re.fullmatch("-?[0-9]+", text) else text) if text else None


def _scalar(value: Any) -> Any:
    label = np.asarray(value)
    return label.item() if label.ndim == 0 else label


def gathered(
    items: Iterable[tuple[str, Any]],
    where: str,
    kind: str,
    *,
    pictures: Pictures,
    cache: Path | None,
    classes: Iterable[Any] | None = None,
) -> Source:
    """All items as a Source, uint8 images or float32 arrays; DataError U123 for shapes that differ, U447 where a label is missing.

    `cache` is the .npy file that rows go to as they come; without one they are kept in memory.
    """
    labels: list[Any] = []
    names: list[str] = []
    found = kind
    with _Growing(cache) as rows:
        for chunk in _chunks(items, where, pictures, labels, names):
            found, values = as_inputs(_channels_last(chunk, found), found, f"{where}, rows {len(names) - len(chunk)} to {len(names) - 1}")
            rows.add(values)
            del chunk, values  # not held while the next one is read
        if not names:
            raise DataError(f"{where} gave no rows", code="U106")
        inputs = rows.finish()
    bare = [at for at, label in enumerate(labels) if label is None]
    if bare and len(bare) < len(labels):
        raise DataError(
            f"{where}: {len(bare)} of {len(labels)} rows have no label (first: {names[bare[0]]}); give all or none", code="U447"
        )
    told = None if bare else np.array(labels)
    return Source(
        "image" if found == "image" else "array",
        inputs,
        told,
        np.array(names),
        None if classes is None else tuple(str(name) for name in classes),
    )


def _chunks(items: Iterable[tuple[str, Any]], where: str, pictures: Pictures, labels: list[Any], names: list[str]) -> Iterator[Array]:
    """Inputs of one shape, stacked some at a time; labels and names are appended on the way."""
    waiting: list[Array] = []
    first: tuple[str, tuple[int, ...]] | None = None
    for name, item in items:
        given, label = taken_apart(item, name, pictures, where)
        if first is None:
            first = (name, given.shape)
        elif given.shape != first[1]:
            raise DataError(
                f"{where} gave items of several shapes: {first[0]} is {list(first[1])}, {name} is {list(given.shape)}; resize them to one "
                "(data.image_size for pictures)",
                code="U123",
            )
        waiting.append(given)
        labels.append(label)
        names.append(name)
        if len(waiting) * given.nbytes >= CHUNK_BYTES:
            yield _stacked(waiting)
    if waiting:
        yield _stacked(waiting)


def _stacked(waiting: list[Array]) -> Array:
    """These rows in one array; the list is empty afterwards."""
    rows = np.stack(waiting)
    waiting.clear()
    return rows


def _channels_last(values: Array, kind: str) -> Array:
    """What torchvision's ToTensor gives (channels first, 0 to 1 in steps of 1/255) back as pixels, when images are asked for."""
    if kind != "image" or values.ndim != 4 or values.shape[1] not in (1, 3) or values.shape[-1] in (1, 3):
        return values
    values = values.transpose(0, 2, 3, 1)
    if values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1 and np.abs(values * 255 - np.rint(values * 255)).max() < 1e-3:
        return np.rint(values * 255).astype(np.uint8)
    return values


@final
class _Growing:
    """An array that grows by chunks: in a .npy file, whole or absent, or in memory."""

    def __init__(self, cache: Path | None) -> None:
        self._cache, self._kept, self._rows = cache, list[Array](), 0
        self._part = None if cache is None else cache.with_name(cache.name + ".part")
        self._file: Any = None

    def __enter__(self) -> _Growing:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._part is not None:
            self._part.unlink(missing_ok=True)

    def add(self, values: Array) -> None:
        """Append these rows."""
        if self._part is None:
            self._kept.append(values)
            return
        if self._file is None:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._part, "wb")  # noqa: SIM115
            self._like = values[:0]
            self._header(0)
        self._file.write(np.ascontiguousarray(values).data)
        self._rows += len(values)

    def finish(self) -> Array:
        """All rows, memory-mapped where there is a file."""
        if self._part is None or self._cache is None:
            return np.concatenate(self._kept)
        self._file.seek(0)
        self._header(self._rows)  # NumPy leaves room in a header for the first axis to grow
        self._file.close()
        os.replace(self._part, self._cache)
        return np.asarray(np.load(self._cache, mmap_mode="r"))

    def _header(self, rows: int) -> None:
        said = np.lib.format.header_data_from_array_1_0(self._like) | {"shape": (rows, *self._like.shape[1:])}
        np.lib.format.write_array_header_1_0(self._file, said)
