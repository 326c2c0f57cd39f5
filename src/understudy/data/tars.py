"""WebDataset tars: files that share a name up to its first dot are one row (`0017.jpg`, `0017.cls`), read from front to back.

A place may stand for many shards: `train-{000..011}.tar` or `train-*.tar`.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from understudy.data._source import Source
from understudy.data._streams import Pictures, gathered
from understudy.errors import DataError, did_you_mean

ENDINGS = (".tar", ".tar.gz", ".tgz")


def read_tars(
    path: str | Path, kind: str = "auto", *, image_size: tuple[int, int] | None = None, grey: bool = False, cache: Path | None = None
) -> Source:
    """The rows of one or many tars, images or arrays, with labels from `.cls`; DataError U447-U449 says what is wrong with them."""
    path = Path(path)
    shards = _shards(path)
    return gathered(_samples(shards), path.name, kind, pictures=Pictures(image_size, grey), cache=cache)


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
