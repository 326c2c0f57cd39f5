"""Images: a folder or a .zip as a Source, every file decoded whole before anything else happens.

One sub-folder per class; or no sub-folders and no labels; or a CSV that names the files; or `train/`, `validation/`, `test/` with
sub-folders per class. Pictures come upright (EXIF), with three channels (or one, if grey), transparent ones over white.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
import PIL
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from understudy.data._files import Files, by_csv, by_folders, open_files, strange
from understudy.data._pixels import decoded
from understudy.data._source import Source
from understudy.errors import DataError, Problem

Array = np.ndarray[Any, Any]

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_TOLERATED = 0.01
"""Part of broken files that is set aside with a warning; more is an error."""
_CHUNK = 1024


@final
@dataclass(frozen=True)
class _Decoded:
    """Pixels of the good files, in order, and what was wrong with the others."""

    pixels: Array
    broken: dict[str, str]


def read_images(
    path: str | Path,
    *,
    image_size: tuple[int, int] | None = None,
    grey: bool = False,
    labels_csv: str | Path | None = None,
    file_column: str = "file",
    label_column: str | list[str] | None = None,
    encoding: str = "utf-8",
    cache: Path | None = None,
    workers: int | None = None,
) -> Source:
    """The images under a folder or in a .zip, uint8 [rows, height, width, channels], resized to `image_size` (height, width).

    `cache` is a .npy file that holds the decoded pixels, memory-mapped and used again while the files are the same.
    DataError U160-U168 says what is wrong; broken files up to 1 % are set aside with a warning.
    """
    path = Path(path)
    with open_files(path, _ENDINGS, "images") as files:
        if labels_csv is None:
            plan = by_folders(files.names, path.name, "image", "images")
        else:
            plan = by_csv(files.names, Path(labels_csv), file_column, label_column, encoding, "image", "images")
        decoded = _from_cache(files, image_size, grey, cache) if cache else None
        if decoded is None:
            try:
                decoded = _decode_all(files, image_size, grey, cache, workers or min(8, os.cpu_count() or 1), path.name)
            finally:
                if cache is not None:
                    _part(cache).unlink(missing_ok=True)
    problems = [*plan.problems, *_broken(decoded.broken, len(files.names), path.name), *strange(files.others, path.name, "images")]
    kept = np.array([name not in decoded.broken for name in files.names])
    labels = plan.labels[kept] if plan.labels is not None else None
    return replace(
        plan,
        inputs=decoded.pixels,
        labels=labels.reset_index(drop=True) if isinstance(labels, pd.Series | pd.DataFrame) else labels,
        names=np.array(files.names)[kept],
        split=None if plan.split is None else plan.split[kept],
        problems=tuple(problems),
    )


def resized(pixels: Array, size: tuple[int, int]) -> Array:
    """Images of an array, uint8 [rows, height, width, 1 or 3], at another (height, width), as files are."""
    if pixels.shape[1:3] == size:
        return pixels
    made = np.empty((len(pixels), *size, pixels.shape[3]), dtype=np.uint8)
    for row, each in enumerate(pixels):
        image = Image.fromarray(each[:, :, 0] if each.shape[2] == 1 else each)
        made[row] = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR)).reshape(made.shape[1:])
    return made


def _decode_all(files: Files, size: tuple[int, int] | None, grey: bool, cache: Path | None, workers: int, where: str) -> _Decoded:
    broken: dict[str, str] = {}
    sizes: Counter[tuple[int, ...]] = Counter()
    pixels: Array | None = None
    part = None if cache is None else _part(cache)
    filled = 0
    for name, said in _decoded_in_order(files, size, grey, workers):
        if isinstance(said, str):
            broken[name] = said
            continue
        sizes[said.shape[:2]] += 1
        if pixels is None:
            pixels = _allocate(part, (len(files.names), *said.shape))
        if said.shape == pixels.shape[1:]:
            pixels[filled] = said
            filled += 1
    if len(broken) > _TOLERATED * len(files.names) or pixels is None:
        shown = "\n  ".join(f"{name}: {why}" for name, why in list(broken.items())[:12])
        raise DataError(
            f"{len(broken)} of {len(files.names)} images of {where} cannot be read:\n  {shown}\n"
            "Copy or save them again, or remove them (up to 1 % are left out with a warning)",
            code="U165",
        )
    if len(sizes) > 1:
        shown = ", ".join(f"{height} x {width} ({count})" for (height, width), count in sizes.most_common(4))
        raise DataError(
            f"the images of {where} have {len(sizes)} sizes: {shown}. Set data.image_size = [height, width] to resize them", code="U166"
        )
    if cache is None or part is None:
        return _Decoded(pixels[:filled], broken)
    pixels.flush()  # type: ignore[attr-defined]
    os.replace(part, cache)
    _card(cache).write_text(json.dumps({"stamp": _stamp(files, size, grey), "filled": filled, "broken": broken}), encoding="utf-8")
    return _Decoded(np.load(cache, mmap_mode="r")[:filled], broken)


def _allocate(part: Path | None, shape: tuple[int, ...]) -> Array:
    if part is None:
        return np.empty(shape, dtype=np.uint8)
    part.parent.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)


def _decoded_in_order(files: Files, size: tuple[int, int] | None, grey: bool, workers: int) -> Iterable[tuple[str, Array | str]]:
    """Name and pixels, or what is wrong, of every file. Chunks bound what waits in memory."""

    def decode(name: str) -> Array | str:
        try:
            return decoded(files.read(name), size, grey)
        except UnidentifiedImageError:
            return "not an image"
        except Exception as error:  # a damaged file can raise almost anything from within a codec
            return str(error) or type(error).__name__

    console = Console(stderr=True)
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # codecs warn of odd metadata; broken pixels raise
        chunks: Sequence[int] = range(0, len(files.names), _CHUNK)
        for start in track(chunks, "decoding images", console=console, disable=not sys.stderr.isatty(), transient=True):
            names = files.names[start : start + _CHUNK]
            yield from zip(names, pool.map(decode, names), strict=True)


def _card(cache: Path) -> Path:
    return cache.with_name(cache.name + ".json")


def _part(cache: Path) -> Path:
    return cache.with_name(cache.name + ".part")


def _stamp(files: Files, size: tuple[int, int] | None, grey: bool) -> str:
    said = [files.names, files.stamps, size, grey, PIL.__version__]
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()


def _from_cache(files: Files, size: tuple[int, int] | None, grey: bool, cache: Path) -> _Decoded | None:
    """What was decoded before, when the files, the size and the channels are the same; None otherwise."""
    try:
        card = json.loads(_card(cache).read_text(encoding="utf-8"))
        if card["stamp"] != _stamp(files, size, grey):
            return None
        return _Decoded(np.load(cache, mmap_mode="r")[: card["filled"]], card["broken"])
    except (OSError, ValueError, KeyError):
        return None


def _broken(broken: dict[str, str], count: int, where: str) -> Iterable[Problem]:
    if broken:
        shown = ", ".join(f"{name} ({why})" for name, why in list(broken.items())[:6])
        yield Problem("U165", f"{len(broken)} of {count} images of {where} cannot be read and are left out: {shown}", "warning")
