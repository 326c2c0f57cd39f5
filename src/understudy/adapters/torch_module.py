"""PyTorch modules as teachers: a factory `package.module:function` and a file of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from understudy.adapters._keras_models import as_module, factory_seed
from understudy.adapters._loading import RawPreparation, import_place, load_weights
from understudy.answers import Output
from understudy.errors import InputError, TeacherError
from understudy.tasks import Task
from understudy.teachers import TorchTeacher

FACTORY = "factory"


def load(
    place: str,
    *,
    task: Task,
    weights: str | None,
    classes: Sequence[str] | None = None,
    output: Output = "auto",
    options: dict[str, Any] | None = None,
    image_size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = 256,
    device: str | None = None,
) -> TorchTeacher:
    """The module that the factory builds, with weights from a .safetensors or .pt file; `weights = "factory"` when it loads its own."""
    module = build(place, options or {})
    if weights is None:
        raise TeacherError(
            f"{place} has no weights: its answers would be random. Say weights = 'teacher.safetensors', "
            "or weights = 'factory' when the factory loads them",
            code="U014",
        )
    if weights != FACTORY:
        load_weights(module, weights)
    prepare = RawPreparation(image_size=image_size, mean=mean, std=std)
    return TorchTeacher(
        module, task=task, classes=classes, prepare=prepare, output=output, name=place, batch_size=batch_size, device=device
    )


def build(place: str, options: dict[str, Any], seed: int = 0) -> nn.Module:
    """The module that a factory at a place makes with these options; a Keras model (torch backend) as a torch module."""
    factory = import_place(place)
    try:
        with factory_seed(seed):
            module = as_module(factory(**options) if callable(factory) and not isinstance(factory, nn.Module) else factory)
    except InputError:
        raise
    except TypeError as error:
        raise TeacherError(f"{place} cannot be called with options {sorted(options)}: {error}", code="U030") from error
    except Exception as error:
        raise TeacherError(f"{place} fails with options {options}: {type(error).__name__}: {error}", code="U030") from error
    if not isinstance(module, nn.Module):
        raise TeacherError(f"{place} gives a {type(module).__name__}, not a torch module", code="U030")
    return module
