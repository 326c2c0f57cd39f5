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
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, final

import numpy as np
import pandas as pd
import PIL
from PIL import UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from understudy.data._folders import by_folders
from understudy.data._pixels import decoded
from understudy.data._source import Source
from understudy.errors import DataError, Problem, did_you_mean

Array = np.ndarray[Any, Any]

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_TOLERATED = 0.01
"""Part of broken files that is set aside with a warning; more is an error."""
_CHUNK = 1024


@final
@dataclass(frozen=True)
class _Files:
    """Image files in order: names with `/`, a stamp of each that changes with its content, and how to read one."""

    names: list[str]
    stamps: list[list[int]]
    read: Callable[[str], bytes]
    others: list[str]


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
    with _files(path) as files:
        if not files.names:
            endings = sorted({PurePosixPath(name).suffix for name in files.others})
            raise DataError(f"no images in {path}; looked for {' '.join(_ENDINGS)}, found {' '.join(endings) or 'nothing'}", code="U160")
        if labels_csv is None:
            plan = by_folders(files.names, path.name, kind="image", things="images")
        else:
            plan = _by_csv(files.names, Path(labels_csv), file_column, label_column, encoding)
        decoded = _from_cache(files, image_size, grey, cache) if cache else None
        if decoded is None:
            try:
                decoded = _decode_all(files, image_size, grey, cache, workers or min(8, os.cpu_count() or 1), path.name)
            finally:
                if cache is not None:
                    _part(cache).unlink(missing_ok=True)
    problems = [*plan.problems, *_broken(decoded.broken, len(files.names), path.name), *_strange(files.others, path.name)]
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


@contextmanager
def _files(path: Path) -> Iterator[_Files]:
    """The files of a folder, or of a .zip that stays open meanwhile; hidden ones and `__MACOSX` left out."""
    if path.is_dir():
        there = {item.relative_to(path).as_posix(): item for item in sorted(path.rglob("*")) if item.is_file()}
        stats = {name: item.stat() for name, item in there.items()}
        stamps = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
        yield _listed(stamps, lambda name: there[name].read_bytes())
    elif not path.exists():
        near = sorted(item.name for item in path.parent.iterdir() if not item.name.startswith(".")) if path.parent.is_dir() else []
        raise DataError(f"no folder or .zip {path}; {did_you_mean(path.name, near) if near else 'nothing is there'}", code="U160")
    else:
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise DataError(f"{path} is neither a folder nor a .zip that can be read: {error}", code="U160") from None
        with archive:
            stamps = {info.filename: [info.file_size, info.CRC] for info in archive.infolist() if not info.is_dir()}
            yield _listed(stamps, archive.read)


def _listed(stamps: dict[str, list[int]], read: Callable[[str], bytes]) -> _Files:
    seen = sorted(name for name in stamps if not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts))
    images = [name for name in seen if PurePosixPath(name).suffix.casefold() in _ENDINGS]
    return _Files(images, [stamps[name] for name in images], read, sorted(set(seen) - set(images)))


def _by_csv(names: list[str], path: Path, file_column: str, label_column: str | list[str] | None, encoding: str) -> Source:
    """Labels from a CSV whose file column has the path, the file name, or either without its ending."""
    table = _read_csv(path, encoding)
    columns = list(table.columns)
    asked = [label_column] if isinstance(label_column, str) else label_column
    if asked is None:
        asked = [name for name in columns if name != file_column]
        if len(asked) != 1:
            raise DataError(f"{path.name} has the columns {', '.join(columns)}; say which is the label: data.label", code="U107")
    for name, option in [(file_column, "data.file"), *((name, "data.label") for name in asked)]:
        if name not in columns:
            raise DataError(f"No column {name!r} ({option}) in {path.name}; {did_you_mean(name, columns)}", code="U107")
    positions = _matches(table[file_column], names, path.name)
    problems = []
    bare = sorted(set(range(len(names))) - set(positions))
    if bare:
        shown = ", ".join(names[at] for at in bare[:3])
        problems.append(Problem("U164", f"{len(bare)} images are not in {path.name} and have no label: {shown}", "warning"))
    labels = pd.DataFrame({name: _values(table[name]) for name in asked})
    labels.index = pd.Index(positions)
    labels = labels.reindex(range(len(names)))
    return Source("image", None, labels[asked[0]] if isinstance(label_column, str | None) else labels, problems=tuple(problems))


def _read_csv(path: Path, encoding: str) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype="str", keep_default_na=False, na_values=[""], encoding=encoding, skipinitialspace=True)
    except FileNotFoundError:
        there = sorted(item.name for item in path.parent.glob("*.csv*")) if path.parent.is_dir() else []
        near = did_you_mean(path.name, there) if there else "the folder has no CSV"
        raise DataError(f"no file {path} (data.labels); {near}", code="U100") from None
    except UnicodeDecodeError as error:
        text = f"{path.name} is not {encoding} text: {error}. Save it as UTF-8, or set data.encoding = 'cp1252'"
        raise DataError(text, code="U102") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path.name} cannot be read as CSV: {error}", code="U103") from None


def _values(column: pd.Series[Any]) -> pd.Series[Any]:
    texts = column.str.strip()
    numbers = pd.to_numeric(texts, errors="coerce")
    return texts if (numbers.isna() & texts.notna()).any() or not numbers.notna().any() else numbers


def _matches(asked: pd.Series[Any], names: list[str], where: str) -> list[int]:
    """The position of the image of each line. DataError U162 for images that are not there, U163 for two lines or two images."""
    found: dict[str, set[int]] = {}
    for at, name in enumerate(names):
        file = PurePosixPath(name)
        for form in {name, file.with_suffix("").as_posix(), file.name, file.stem}:
            found.setdefault(form, set()).add(at)
    said = ["" if pd.isna(text) else str(text).strip().removeprefix("./") for text in asked]
    absent = [(line, name) for line, name in enumerate(said, start=2) if name not in found]
    if absent:
        line, name = absent[0]
        raise DataError(
            f"{len(absent)} files named in {where} are not there, first {name!r} (line {line}); {did_you_mean(name, names)}", code="U162"
        )
    unclear = next((name for name in said if len(found[name]) > 1), None)
    if unclear is not None:
        both = " and ".join(names[at] for at in sorted(found[unclear])[:2])
        raise DataError(f"{unclear!r} in {where} can be {both}; write the path of each file", code="U163")
    positions = [next(iter(found[name])) for name in said]
    twice = [at for at, count in Counter(positions).items() if count > 1]
    if twice:
        raise DataError(f"{where} names {names[twice[0]]} more than once ({len(twice)} such files)", code="U163")
    return positions


def _decode_all(files: _Files, size: tuple[int, int] | None, grey: bool, cache: Path | None, workers: int, where: str) -> _Decoded:
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


def _decoded_in_order(files: _Files, size: tuple[int, int] | None, grey: bool, workers: int) -> Iterable[tuple[str, Array | str]]:
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


def _stamp(files: _Files, size: tuple[int, int] | None, grey: bool) -> str:
    said = [files.names, files.stamps, size, grey, PIL.__version__]
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()


def _from_cache(files: _Files, size: tuple[int, int] | None, grey: bool, cache: Path) -> _Decoded | None:
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


def _strange(others: list[str], where: str) -> Iterable[Problem]:
    odd = [name for name in others if PurePosixPath(name).suffix.casefold() not in (".csv", ".txt", ".md", ".json", ".gz", ".db")]
    if odd:
        yield Problem("U167", f"{len(odd)} files of {where} are no images and are left out: {', '.join(odd[:6])}", "warning")
