"""Where published models of texts are: a local folder, an installed package that carries one, or a name on the Hugging Face hub."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from understudy.adapters._loading import require
from understudy.errors import TeacherError, did_you_mean

PREFIXES = ("sentences:", "hf:")


def folder_of(place: str, *, pretrained: bool = False) -> Path:
    """The folder of the model that `sentences:PLACE` or `hf:PLACE` names; a hub name is downloaded only when `pretrained`."""
    name = place
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    if Path(name).is_dir():
        return _checked(Path(name), place)
    packaged = _in_package(name) if name.isidentifier() else None
    if packaged is not None:
        return packaged
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        parent = Path(name).parent
        near = [item.name for item in parent.iterdir() if item.is_dir()] if parent.is_dir() else []
        hint = did_you_mean(Path(name).name, near) if near else "there is no such folder"
        raise TeacherError(
            f"no model at {place!r}; {hint}. Give a folder, an installed package that carries a model, or a hub name such as owner/model",
            code="U407",
        )
    return _from_hub(name, place, pretrained)


def _checked(folder: Path, place: str) -> Path:
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise TeacherError(f"{place!r} holds no model: there is no config.json in {folder}", code="U407")
    return folder


def _in_package(name: str) -> Path | None:
    """The folder with a model inside an installed package; nothing of the package is run."""
    spec = importlib.util.find_spec(name)
    for place in [] if spec is None else list(spec.submodule_search_locations or ()):
        root = Path(place)
        found = [root, *sorted(item for item in root.iterdir() if item.is_dir())]
        there = next((folder for folder in found if (folder / "config.json").is_file()), None)
        if there is not None:
            return there
    return None


def _from_hub(name: str, place: str, pretrained: bool) -> Path:
    hub = require("huggingface_hub", "transformers")
    try:
        return Path(hub.snapshot_download(name, local_files_only=not pretrained))
    except Exception as error:  # of many kinds: no network, no such name, not allowed, not in the cache
        told = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        if not pretrained:
            fix = "It is not on this machine, and nothing is downloaded unless teacher.pretrained = true; or give a local folder"
            raise TeacherError(f"{place!r} cannot be had: {fix}", code="U407") from None
        raise TeacherError(f"{place!r} cannot be downloaded ({told}); give a local folder", code="U407") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Progress bars and advice of the loading library are not this package's to print."""
    bars = require("transformers.utils.logging", "transformers")
    level = logging.getLogger("transformers").level
    shown, before = bars.is_progress_bar_enabled(), os.environ.get("TOKENIZERS_PARALLELISM")
    bars.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        yield
    finally:
        logging.getLogger("transformers").setLevel(level)
        if shown:
            bars.enable_progress_bar()
        if before is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)
