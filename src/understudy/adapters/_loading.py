"""What every adapter needs: files that exist, places that can be imported, packages that are installed, raw rows as tensors."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from understudy.errors import MissingExtraError, TeacherError, did_you_mean


def require(package: str, extra: str) -> Any:
    """The foreign package, or the sentence that says how to install it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != package.split(".")[0]:
            raise
        raise MissingExtraError(package.split(".")[0], extra) from None


def existing(path: str | Path) -> Path:
    """The path, when there is a file."""
    path = Path(path)
    if not path.is_file():
        near = [file.name for file in path.parent.iterdir() if file.is_file()] if path.parent.is_dir() else []
        empty = "the folder is empty" if path.parent.is_dir() else f"there is no folder {path.parent}"
        hint = did_you_mean(path.name, near) if near else empty
        raise TeacherError(f"no file {path}; {hint}", code="U029")
    return path


def file_digest(path: Path) -> str:
    """The content hash of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def refuse_untrusted(path: Path, trust: bool, *, what: str = "") -> None:
    """Refuse a file that can run code when it is loaded, unless the user trusts it."""
    if not trust:
        raise TeacherError(
            f"{path} can execute code when loaded{what}; if you made it yourself: --trust / teacher.trust = true. "
            "A .skops or .safetensors file needs no trust",
            code="U013",
        )


def import_place(place: str) -> Any:
    """The object at `package.module:name`, looked up from the current folder too."""
    module_name, colon, name = place.partition(":")
    if not colon or not module_name or not name:
        raise TeacherError(f"{place!r} is not a place; write package.module:name", code="U030")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        files = [file.stem for file in Path(here).glob("*.py")]
        hint = f"; {did_you_mean(module_name, files)}" if files else ""
        raise TeacherError(f"cannot import {module_name!r} for {place!r}: {error}{hint}", code="U030") from error
    finally:
        sys.path.remove(here)
    found: Any = module
    for part in name.split("."):
        if part not in dir(found):
            public = [word for word in dir(found) if not word.startswith("_") and callable(getattr(found, word))]
            raise TeacherError(f"{module_name} has no {part!r}; {did_you_mean(part, public)}", code="U030")
        found = getattr(found, part)
    return found


def source_digest(function: Callable[..., Any]) -> str:
    """The hash of the file in which a function is written (its place when there is none)."""
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        file = None
    return file_digest(Path(file)) if file else repr(type(function))


def numbers(inputs: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A table or an array as float32; a column of text is refused by name."""
    if "DataFrame" not in type(inputs).__name__:
        return np.asarray(inputs, dtype=np.float32)
    text = [str(column) for column in inputs.columns if inputs[column].dtype.kind not in "iufb"]
    if text:
        raise TeacherError(
            f"column {text[0]!r} is not numbers; a torch teacher reads numbers. Wrap it in a function that prepares the table: "
            "source = 'module:function'",
            code="U031",
        )
    return np.asarray(inputs.to_numpy(dtype=np.float32, na_value=np.nan))


@final
class RawPreparation(nn.Module):
    """Raw rows to what a network reads: images uint8 [rows, height, width, channels] become float [rows, channels, h, w].

    Images are divided by 255, resized to `image_size` (height, width), then normalised by `mean` and `std`; tables and
    arrays become float32 as they are.
    """

    def __init__(
        self,
        *,
        image_size: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        self.image_size = None if image_size is None else (int(image_size[0]), int(image_size[1]))
        self.mean = None if mean is None else tuple(mean)
        self.std = None if std is None else tuple(std)
        self.channels = channels

    def forward(self, inputs: Any) -> Tensor:
        if "DataFrame" in type(inputs).__name__ or np.asarray(inputs).dtype != np.uint8:
            return torch.from_numpy(np.array(numbers(inputs)))
        return self._pictures(np.array(inputs))

    def of_own(self, inputs: Any) -> Tensor:
        """The same of rows that nobody else holds: they are not copied."""
        if isinstance(inputs, np.ndarray) and inputs.flags.writeable:
            if inputs.dtype == np.uint8:
                return self._pictures(inputs)
            if inputs.dtype == np.float32:
                return torch.from_numpy(inputs)
        return cast("Tensor", self(inputs))

    def _pictures(self, inputs: np.ndarray[Any, Any]) -> Tensor:
        images = torch.from_numpy(inputs).permute(0, 3, 1, 2).float() / 255
        if self.channels is not None and images.shape[1] != self.channels:
            images = images.expand(-1, self.channels, -1, -1) if images.shape[1] == 1 else images.mean(dim=1, keepdim=True)
        if self.image_size is not None and tuple(images.shape[-2:]) != self.image_size:
            images = functional.interpolate(images, size=self.image_size, mode="bilinear", align_corners=False, antialias=True)
        if self.mean is not None:
            images = images - _per_channel(self.mean, images)
        if self.std is not None:
            images = images / _per_channel(self.std, images)
        return images

    def extra_repr(self) -> str:
        return f"image_size={self.image_size}, mean={self.mean}, std={self.std}, channels={self.channels}"


def _per_channel(given: Sequence[float], images: Tensor) -> Tensor:
    if len(given) not in (1, images.shape[1]):
        raise TeacherError(
            f"teacher.mean and teacher.std have {len(given)} numbers, the images have {images.shape[1]} channels", code="U031"
        )
    return torch.tensor(given, dtype=images.dtype).reshape(1, -1, 1, 1)


def load_weights(module: nn.Module, path: str | Path) -> str:
    """Load a state dict into a module, strictly; gives the file's hash. Never runs code from the file."""
    path = existing(path)
    state = _read_state(path)
    wanted = module.state_dict()
    for prefix in ("module.", "_orig_mod."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file, {tuple(value.shape)} in the module"
        for name, value in wanted.items()
        if name in state and isinstance(value, Tensor) and state[name].shape != value.shape
    ]
    if missing or unexpected or shapes:
        parts = [f"missing in the file: {_some(missing)}"] if missing else []
        parts += [f"not in the module: {_some(unexpected)}"] if unexpected else []
        parts += [f"other shapes: {_some(shapes)}"] if shapes else []
        raise TeacherError(
            f"{path} does not fit {type(module).__name__}; " + "; ".join(parts) + ". Its answers would be random", code="U014"
        )
    matrices = [value for value in state.values() if value.is_floating_point() and value.ndim >= 2]
    zeros = sum(1 for value in matrices if not value.any())
    if matrices and zeros * 2 >= len(matrices):
        raise TeacherError(f"{path}: {zeros} of {len(matrices)} weight matrices are all zero; this is no trained teacher", code="U014")
    module.load_state_dict(state)
    return file_digest(path)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise TeacherError(f"{path} cannot be read: {error}", code="U014") from None
    import pickle

    try:
        said = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise TeacherError(
            f"{path} holds more than tensors (a whole pickled module?) and could run code when loaded. "
            "Save its weights alone: safetensors.torch.save_file(module.state_dict(), 'teacher.safetensors')",
            code="U013",
        ) from None
    except (RuntimeError, EOFError, ValueError) as error:
        raise TeacherError(f"{path} cannot be read: {str(error).splitlines()[0]}", code="U014") from None
    for inner in ("state_dict", "model", "model_state_dict"):
        if isinstance(said, dict) and isinstance(said.get(inner), dict):
            said = said[inner]
    if not isinstance(said, dict) or not said or not all(isinstance(value, Tensor) for value in said.values()):
        raise TeacherError(f"{path} is not a state dict (names to tensors); save module.state_dict()", code="U014")
    return dict(said)
