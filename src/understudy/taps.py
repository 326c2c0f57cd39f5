"""Reading what named layers of a network give during a forward pass, and connectors that make two networks' layers comparable.

Nothing of the user's model is changed: hooks are held inside a `with` only. A layer is named by its path (`stage2`,
`blocks.3.attn`), `PATH:input` is what goes into it. Connectors are trained beside the student and never reach its file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from understudy.errors import InputError, did_you_mean

INPUT = ":input"

ConnectorName = Literal["auto", "none", "linear", "convolution", "attention"]


@contextmanager
def taps(module: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A dictionary that every forward pass of `module` fills with the outputs of these submodules, as they were named.

    Gradients flow as they would without it. Of a tuple, a list or a dictionary the first tensor is taken. A part of a path
    is enough where it ends one path only (`stage2` for `network.stage2`). InputError U340 for a layer that is not there.

    >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> with taps(network, ["0", "2:input"]) as read:
    ...     answer = network(torch.ones(4, 2))
    >>> {name: list(tensor.shape) for name, tensor in read.items()}
    {'0': [4, 3], '2:input': [4, 3]}
    """
    read: dict[str, Tensor] = {}
    handles = []
    try:
        for path in paths:
            place = find_layer(module, path)
            part = module.get_submodule(place.removesuffix(INPUT))
            handles.append(
                part.register_forward_pre_hook(_keep_input(read, path), with_kwargs=True)
                if place.endswith(INPUT)
                else part.register_forward_hook(_keep_output(read, path))
            )
        yield read
    finally:
        for handle in handles:
            handle.remove()


def _keep_output(read: dict[str, Tensor], path: str) -> Callable[..., None]:
    def hook(part: nn.Module, given: Any, output: Any) -> None:
        read[path] = _tensor(output, path)

    return hook


def _keep_input(read: dict[str, Tensor], path: str) -> Callable[..., None]:
    def hook(part: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        read[path] = _tensor([*given, *named.values()], path)

    return hook


def _tensor(output: Any, path: str) -> Tensor:
    found = _first(output)
    if found is None:
        raise InputError(f"the layer {path!r} gives a {type(output).__name__} without a tensor; name a layer inside of it", code="U340")
    return found


def _first(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return next((found for found in map(_first, parts) if found is not None), None)


def find_layer(module: nn.Module, path: str) -> str:
    """The whole path of a submodule, `:input` kept; a part of it is enough where it ends one path only. InputError U340."""
    asked, ending = path.removesuffix(INPUT), INPUT if path.endswith(INPUT) else ""
    names = [name for name, _ in module.named_modules() if name]
    if asked in names:
        return asked + ending
    found = [name for name in names if name.endswith(f".{asked}")]
    if len(found) == 1:
        return found[0] + ending
    if found:
        raise InputError(f"{len(found)} layers end in {asked!r}: {', '.join(found[:4])}. Say one of them whole", code="U340")
    short = {name.rpartition(".")[2] for name in names} | set(names)
    raise InputError(f"there is no layer {asked!r} in {type(module).__name__}; {did_you_mean(asked, sorted(short))}", code="U340")


# --- what there is to read ------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Layer:
    """A submodule that ran: its path, its output's shape without the rows, and whether it is a linear map."""

    path: str
    shape: tuple[int, ...]
    linear: bool
    leaf: bool
    weighted: bool


def trace(module: nn.Module, inputs: Tensor) -> list[Layer]:
    """Every submodule that gives a tensor with these rows, in the order in which they finish; one pass in evaluation mode."""
    seen: list[Layer] = []

    def hook(path: str, part: nn.Module) -> Callable[..., None]:
        def note(_: nn.Module, given: Any, output: Any) -> None:
            found = _first(output)
            if found is not None and found.ndim and len(found) == len(inputs):
                seen.append(Layer(path, tuple(found.shape[1:]), isinstance(part, nn.Linear), not any(part.children()), _weighted(part)))

        return note

    modes = [(part, part.training) for part in module.modules()]
    handles = [part.register_forward_hook(hook(path, part)) for path, part in module.named_modules() if path]
    module.eval()
    try:
        with torch.no_grad():
            module(inputs)
    finally:
        for handle in handles:
            handle.remove()
        for part, training in modes:
            part.training = training
    return seen


def _weighted(part: nn.Module) -> bool:
    return any(weight.ndim >= 2 for weight in part.parameters(recurse=False))


def embedding_layer(layers: Sequence[Layer]) -> str:
    """Where a network's embedding is: what goes into its last linear layer."""
    last = next((layer for layer in reversed(layers) if layer.linear), None)
    if last is None:
        raise InputError("no linear layer ends this network, so its embedding cannot be found; name the layer that gives it", code="U340")
    return last.path + INPUT


def stages(layers: Sequence[Layer]) -> list[Layer]:
    """The last layer at each resolution of a network of maps, else each hidden linear layer; the answer itself left out."""
    maps = [layer for layer in layers if len(layer.shape) == 3 and min(layer.shape[1:]) > 1 and not _rescales(layers, layer)]
    if maps:
        last = {layer.shape[1:]: layer for layer in maps}
        return sorted(last.values(), key=layers.index)
    hidden = [layer for layer in layers if layer.linear and len(layer.shape) == 1]
    tokens = [layer for layer in layers if len(layer.shape) == 2 and not layer.leaf]
    return tokens if tokens else hidden[:-1]


def _rescales(layers: Sequence[Layer], layer: Layer) -> bool:
    """Whether this is what prepares the input: nothing that has weights came before it."""
    first_weights = next((at for at, each in enumerate(layers) if each.leaf and each.weighted), 0)
    return layers.index(layer) < first_weights


def pair_stages(student: Sequence[Layer], teacher: Sequence[Layer]) -> list[tuple[Layer, Layer]]:
    """Stages of two networks that belong together: of one resolution where they share any, else of one relative depth.

    InputError U341 where one of them has no stage at all.
    """
    ours, theirs = stages(student), stages(teacher)
    for who, found in (("student", ours), ("teacher", theirs)):
        if not found:
            raise InputError(f"no layers of the {who} can be paired: it has no maps and no hidden layer. Name layers", code="U341")
    by_size = {layer.shape[1:]: layer for layer in theirs if len(layer.shape) == 3}
    pairs = [(layer, by_size[layer.shape[1:]]) for layer in ours if len(layer.shape) == 3 and layer.shape[1:] in by_size]
    if pairs:
        return pairs
    return (
        [(layer, theirs[round((at + 1) * len(theirs) / len(ours)) - 1]) for at, layer in enumerate(ours)]
        if len(ours) <= len(theirs)
        else [(ours[round((at + 1) * len(ours) / len(theirs)) - 1], layer) for at, layer in enumerate(theirs)]
    )


# --- connectors -----------------------------------------------------------------------------------------------------


@final
class LinearConnector(nn.Module):
    """A linear map of the last dimension: embeddings [rows, width] or tokens [rows, length, width]."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.project = nn.Linear(student, teacher)

    def forward(self, values: Tensor) -> Tensor:
        return self.project(values)


@final
class ConvolutionConnector(nn.Module):
    """A 1x1 convolution with batch norm, and the teacher's size: larger maps are averaged, smaller ones repeated."""

    def __init__(self, student: int, teacher: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.project = nn.Sequential(nn.Conv2d(student, teacher, 1, bias=False), nn.BatchNorm2d(teacher))

    def forward(self, maps: Tensor) -> Tensor:
        return resized(self.project(maps), self.size)


@final
class AttentionConnector(nn.Module):
    """Fuses a layer with the next deeper one, weighed place by place, as ReviewKD does (Chen et al. 2021, arXiv:2104.09044).

    x and y are both layers after 1x1 convolutions; the result is conv3x3(a * x + b * y), a and b from a sigmoid of both. `middle`
    channels lie between; the deeper layer is None for the deepest. What is fused is handed on to the layer before.
    """

    def __init__(self, student: int, teacher: int, size: tuple[int, int], *, middle: int, deeper: bool) -> None:
        super().__init__()
        self.size = size
        self.enter = nn.Sequential(nn.Conv2d(student, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.weigh = nn.Conv2d(2 * middle, 2, 1) if deeper else None
        self.leave = nn.Sequential(nn.Conv2d(middle, teacher, 3, padding=1, bias=False), nn.BatchNorm2d(teacher))

    def forward(self, maps: Tensor, deeper: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What is compared with the teacher, and what is handed on."""
        fused = self.enter(maps)
        if self.weigh is not None and deeper is not None:
            below = resized(deeper, (fused.shape[2], fused.shape[3]))
            here, there = self.weigh(torch.cat([fused, below], 1)).sigmoid().chunk(2, 1)
            fused = fused * here + below * there
        return resized(self.leave(fused), self.size), fused


@final
class Exit(nn.Module):
    """An early classifier on a layer: a 1x1 convolution with batch norm where there are positions, their mean, a linear map."""

    def __init__(self, shape: tuple[int, ...], answers: int) -> None:
        super().__init__()
        width = shape[0] if len(shape) == 3 else shape[-1]
        maps = [nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()] if len(shape) == 3 else []
        self.enter, self.leave = nn.Sequential(*maps), nn.Linear(width, answers)

    def forward(self, values: Tensor) -> Tensor:
        values = self.enter(values)
        if values.ndim > 2:
            values = values.flatten(2).mean(2) if values.ndim == 4 else values.mean(1)
        return self.leave(values)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps of another size: averaged where that is smaller, repeated where it is larger."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    if size[0] <= maps.shape[2] and size[1] <= maps.shape[3]:
        return functional.adaptive_avg_pool2d(maps, size)
    return functional.interpolate(maps, size, mode="nearest")


def parameters_of(module: nn.Module) -> int:
    """How many numbers a connector learns."""
    return sum(weight.numel() for weight in itertools.chain(module.parameters()))
