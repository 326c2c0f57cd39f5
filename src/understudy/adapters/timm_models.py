"""timm's image models, `timm:NAME`, as teachers with their own preprocessing, and as modules for students."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from understudy.adapters._loading import RawPreparation, load_weights, require
from understudy.answers import Output
from understudy.errors import TeacherError, did_you_mean
from understudy.tasks import Task
from understudy.teachers import TorchTeacher


def load(
    place: str,
    *,
    task: Task,
    weights: str | None = None,
    pretrained: bool = False,
    classes: Sequence[str] | None = None,
    output: Output = "logits",
    options: dict[str, Any] | None = None,
    image_size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = 64,
    device: str | None = None,
) -> TorchTeacher:
    """A timm model with weights from a file, or the published ones where they answer the task's classes."""
    name = place.removeprefix("timm:")
    if weights is None and not pretrained:
        raise TeacherError(
            f"{place} has no weights: its answers would be random. Say weights = 'teacher.safetensors' or pretrained = true", code="U014"
        )
    count = task.outputs if classes is None else len(classes)
    module = build(name, classes=count, pretrained=pretrained and weights is None, options=options)
    published = int(_configuration(module).get("num_classes", count))
    if weights is not None:
        load_weights(module, weights)
    elif published != count:
        raise TeacherError(
            f"the published weights of {name} answer {published} classes, the task has {count}: its head would be random. Give the weights "
            "of a fine-tuned one with weights = ..., or name the published classes with teacher.classes = 'classes.txt'",
            code="U014",
        )
    prepare = preparation(module, image_size=image_size, mean=mean, std=std)
    return TorchTeacher(
        module, task=task, classes=classes, prepare=prepare, output=output, name=place, batch_size=batch_size, device=device
    )


def build(name: str, *, classes: int, pretrained: bool = False, in_chans: int = 3, options: dict[str, Any] | None = None) -> nn.Module:
    """A timm model with this many classes and input channels; a teacher's or a student's."""
    timm = require("timm", "timm")
    architecture = name.partition(".")[0]
    if not name.startswith("hf-hub:") and not timm.is_model(architecture):
        raise TeacherError(f"timm has no model {architecture!r}; {did_you_mean(architecture, timm.list_models())}", code="U033")
    arguments = {"num_classes": classes, "in_chans": in_chans} | (options or {})
    if pretrained:
        try:
            module = timm.create_model(name, pretrained=True, **arguments)
        except (OSError, RuntimeError, ValueError) as error:
            raise TeacherError(
                f"the published weights of {name} cannot be had ({str(error).splitlines()[0][:200]}). Without network: place a "
                ".safetensors here and say weights = 'FILE.safetensors', pretrained = false",
                code="U015",
            ) from error
    else:
        try:
            module = timm.create_model(name, pretrained=False, **arguments)
        except (TypeError, RuntimeError, ValueError) as error:
            raise TeacherError(f"timm cannot build {name} with options {sorted(arguments)}: {error}", code="U033") from error
    assert isinstance(module, nn.Module)
    return module


def preparation(
    module: nn.Module, *, image_size: Sequence[int] | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> RawPreparation:
    """The preparation a timm model was made for: size, mean and std from its configuration unless given."""
    configuration = _configuration(module)
    channels, *size = configuration.get("input_size", (3, 224, 224))
    channels = _channels(module, int(channels))
    own_mean, own_std = configuration.get("mean", (0.5,)), configuration.get("std", (0.5,))
    if len(own_mean) != channels:
        own_mean, own_std = (sum(own_mean) / len(own_mean),), (sum(own_std) / len(own_std),)
    return RawPreparation(image_size=image_size or size, mean=mean or own_mean, std=std or own_std, channels=channels)


def _configuration(module: nn.Module) -> dict[str, Any]:
    return dict(getattr(module, "pretrained_cfg", None) or {})


def _channels(module: nn.Module, otherwise: int) -> int:
    """The channels that the first convolution reads."""
    return next((part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d)), otherwise)
