"""WebDataset tars: files that share a name up to its first dot are one row (`0017.jpg`, `0017.cls`), read from front to back.

A place may stand for many shards: `train-{000..011}.tar` or `train-*.tar`.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from understudy.data._source import Source
from understudy.data._streams import Pictures, gathered
from understudy.errors import DataError, Problem, did_you_mean

BLOCK = 512
ENDINGS = (".tar", ".tar.gz", ".tgz")


def read_tars(
    path: str | Path, kind: str = "auto", *, image_size: tuple[int, int] | None = None, grey: bool = False, cache: Path | None = None
) -> Source:
    """The rows of one or many tars, images or arrays, with labels from `.cls`; DataError U447-U449 says what is wrong with them.

    A tar without the blocks of zeros that end one is a warning, U451.
    """
    path = Path(path)
    shards = _shards(path)
    found = gathered(_samples(shards), path.name, kind, pictures=Pictures(image_size, grey), cache=cache)
    return replace(found, problems=(*found.problems, *_cut_short(shards)))


def _cut_short(shards: list[Path]) -> list[Problem]:
    """A warning where tars lack their end: what was cut off between two rows leaves no other trace."""
    open_ended = [shard.name for shard in shards if shard.suffix == ".tar" and not _ends(shard)]
    if not open_ended:
        return []
    told = f"{len(open_ended)} of {len(shards)} tars lack the zeros that end one (first: {open_ended[0]})"
    return [
        Problem("U451", f"{told}: rows may be missing, by a copy cut short or a writer never closed; compare their sizes", level="warning")
    ]


def _ends(shard: Path) -> bool:
    with shard.open("rb") as file:
        file.seek(-min(BLOCK, shard.stat().st_size), io.SEEK_END)
        return file.read() == bytes(BLOCK)


def _shards(path: Path) -> list[Path]:
    braces = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", path.name)
    if braces is not None:
        before, low, high, after = braces.groups()
        found = [path.with_name(f"{before}{number:0{len(low)}d}{after}") for number in range(int(low), int(high) + 1)]
    elif "*" in path.name or "?" in path.name:
        found = sorted(path.parent.glob(path.name))
    else:
        found = [path]
    gone = [each.name for each in found if not each.is_file()]
    if gone or not found:
        there = sorted(each.name for each in path.parent.iterdir() if each.name.endswith(ENDINGS)) if path.parent.is_dir() else []
        advice = did_you_mean(gone[0] if gone else path.name, there) if there else f"there are no tars in {path.parent}"
        raise DataError(
            f"no file {gone[0] if gone else path.name} in {path.parent} ({len(gone)} of {len(found)} missing); {advice}", code="U449"
        )
    return found


def _samples(shards: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(shard/name, its fields as bytes), a row at a time."""
    for shard in shards:
        key, fields = None, dict[str, Any]()
        try:
            with tarfile.open(shard, "r|*") as archive:
                for member in archive:
                    folder, _, file = member.name.rpartition("/")
                    stem, dot, ending = file.partition(".")
                    content = archive.extractfile(member) if member.isfile() and stem and dot else None
                    if content is None:
                        continue
                    if key is not None and key != (folder, stem):
                        yield f"{shard.name}/{key[1]}", fields
                        fields = {}
                    key = (folder, stem)
                    fields[ending] = content.read()
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"{shard.name} is damaged, or no tar: {error}", code="U449") from None
        if key is not None:
            yield f"{shard.name}/{key[1]}", fields
