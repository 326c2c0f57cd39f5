"""The contract that any teacher must keep: finite, deterministic, independent of the batch, no gradient, unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from understudy.errors import Problem
from understudy.signals import is_answered
from understudy.teachers import Teacher, difference, digest_module, max_missing, modules, take


def check_teacher(teacher: Teacher, inputs: Any) -> list[Problem]:
    """What is wrong with a teacher, found by asking it a few rows in several ways; empty when it keeps the contract.

    Finite, deterministic, independent of the batch, without gradient, and (torch) unchanged weights, buffers and mode.
    """
    asked = modules(teacher)
    before = [(digest_module(module), [part.training for part in module.modules()]) for module in asked]
    training_seen: list[str] = []
    broken: list[str] = []
    parts = [(name, part) for module in asked for name, part in module.named_modules()]
    hooks = [part.register_forward_pre_hook(_watch(name, training_seen)) for name, part in parts]
    hooks += [part.register_forward_hook(_watch_finite(name, broken)) for name, part in parts if not any(True for _ in part.children())]
    try:
        problems = _check_answers(teacher, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if broken and any(problem.code == "U006" for problem in problems):
        told = f"layer {broken[0] or 'the module'!r} of {teacher.name} is the first that gives NaN or infinite numbers"
        problems.append(Problem("U375", f"{told}; look at its weights, and at missing cells if it is the first layer of all"))
    if training_seen:
        problems.append(Problem("U019", f"{teacher.name} runs in training mode ({training_seen[0] or 'the module'}); call its eval()"))
    for module, (weights, modes) in zip(asked, before, strict=True):
        if digest_module(module) != weights:
            problems.append(Problem("U019", f"asking {teacher.name} changes its own weights or buffers (BatchNorm in training mode?)"))
        if [part.training for part in module.modules()] != modes:
            problems.append(Problem("U019", f"asking {teacher.name} changes its training mode and does not put it back"))
        if any(parameter.grad is not None for parameter in module.parameters()):
            problems.append(Problem("U018", f"{teacher.name} leaves gradients on its parameters; run it under torch.inference_mode()"))
    return problems


def _check_answers(teacher: Teacher, inputs: Any) -> list[Problem]:
    rows = len(inputs)
    whole = teacher.signals(inputs)
    problems, allowed = [], max_missing(teacher) > 0
    for name, value in whole.items():
        if value.requires_grad:
            problems.append(Problem("U018", f"{teacher.name} gives {name} that require a gradient; run it under torch.inference_mode()"))
        bad = ~value.detach().isfinite().flatten(1).all(dim=1)
        bad = bad & is_answered(value.detach()) if allowed else bad
        if bad.any():
            first = int(bad.nonzero()[0])
            problems.append(Problem("U006", f"{int(bad.sum()):,} of {rows:,} teacher rows are NaN or infinite (first: row {first})"))
    whole = {name: value.detach() for name, value in whole.items()}
    if problems:
        return problems
    again = teacher.signals(inputs)
    apart = difference(whole, again)
    if apart > 1:
        problems.append(Problem("U008", f"{teacher.name} answers the same rows differently when asked twice (dropout left on, or random?)"))
        return problems
    half = max(rows // 2, 1)
    parts = [slice(0, half), slice(half, rows)] if rows > 1 else []
    parts += [slice(row, row + 1) for row in range(min(rows, 3))]
    for part in parts:
        said = teacher.signals(take(inputs, part))
        if difference({name: value[part] for name, value in whole.items()}, said) > 1:
            problems.append(Problem("U009", f"{teacher.name}'s answer for a row depends on its batch (BatchNorm in training mode?)"))
            break
    return problems


def _watch(name: str, seen: list[str]) -> Callable[[nn.Module, Any], None]:
    def hook(module: nn.Module, given: Any) -> None:
        if module.training:
            seen.append(name)

    return hook


def _watch_finite(name: str, seen: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, given: Any, said: Any) -> None:
        if isinstance(said, Tensor) and said.is_floating_point() and not bool(said.isfinite().all()):
            seen.append(name)

    return hook
