"""Whether a student can learn the task: its size, and the shape and finiteness of what it gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from understudy.errors import Problem
from understudy.students.student import Student
from understudy.tasks import Task
from understudy.teachers import evaluating


def check_student(
    student: Student,
    task: Task,
    encoded: Tensor,
    *,
    batch_size: int,
    rows: int,
    teacher_parameters: int | None = None,
    student_bytes: int | None = None,
    teacher_bytes: int | None = None,
    teachers: Sequence[nn.Module] = (),
) -> list[Problem]:
    """What would keep a student from learning, on a sample of encoded rows; an estimator is only weighed."""
    problems = list(_check_size(student, teacher_parameters, student_bytes, teacher_bytes))
    module = student.module
    if module is None:
        return problems
    if not any(weight.requires_grad for weight in module.parameters()):
        what = "all parameters are frozen" if any(True for _ in module.parameters()) else "it has no parameters"
        problems.append(Problem("U252", f"student {student.name!r} cannot learn: {what}; set requires_grad on what should be trained"))
    norms = [name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if norms and (batch_size == 1 or rows == 1):
        told = f"student {student.name!r} has BatchNorm (layer {norms[0]!r}) and would see one row at a time, which has no variance"
        problems.append(Problem("U253", f"{told}; set train.batch_size = 32, or student.options.norm = 'group'"))
    ours = {weight.untyped_storage().data_ptr() for weight in module.parameters() if weight.numel()}
    theirs = [named for teacher in teachers for named in teacher.named_parameters()]
    shared = [name for name, weight in theirs if weight.untyped_storage().data_ptr() in ours]
    if shared:
        told = f"student {student.name!r} and teacher share weights ({shared[0]!r}): training would change the teacher"
        problems.append(Problem("U256", f"{told}; give the student a copy of its own"))
    return [*problems, *_check_outputs(student.name, module, task, encoded)]


def _check_size(student: Student, teacher_parameters: int | None, ours: int | None, theirs: int | None) -> Iterator[Problem]:
    parameters = student.parameters()
    fix = "choose a smaller student (student.options), or nothing is saved"
    if teacher_parameters and parameters and parameters >= teacher_parameters:
        told = f"student {student.name!r} has {parameters:,} parameters, the teacher {teacher_parameters:,}"
        yield Problem("U254", f"{told}: it is no smaller; {fix}", "warning")
    elif theirs and ours and ours >= theirs:
        told = f"student {student.name!r} ({ours / 1e6:.1f} MB) is no smaller than the teacher ({theirs / 1e6:.1f} MB)"
        yield Problem("U254", f"{told}; {fix}", "warning")


def _check_outputs(name: str, module: nn.Module, task: Task, encoded: Tensor) -> Iterator[Problem]:
    try:
        said, last = _ask(module, encoded)
    except Exception as error:  # a module of the user's own can raise anything
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
        told = f"student {name!r} fails on rows of shape {list(encoded.shape[1:])}: {why}"
        yield Problem("U374", f"{told}; its first layer must read what the preprocessing gives (see docs/students.md)")
        return
    if said.ndim != (3 if task.kind == "recognition" else 2) or said.shape[-1] != task.outputs:
        told = f"student {name!r} gives {list(said.shape)} for {len(encoded)} rows, a {task.kind} task needs"
        yield Problem("U251", f"{told} [{len(encoded)}, {task.outputs}]; set the width of its last layer to {task.outputs}")
        return
    if not bool(said.isfinite().all()):
        bad = int((~said.isfinite()).any(dim=1).sum())
        yield Problem("U255", f"student {name!r} answers NaN or infinite for {bad} of {len(said)} rows before training; scale its inputs")
        return
    if task.kind in ("regression", "recognition", "matching"):
        return
    ends = last if last in ("Softmax", "Softmax2d", "Sigmoid") else None
    inside = len(said) > 1 and bool((said >= 0).all() and (said <= 1).all())
    probabilities = inside and (task.kind == "multilabel" or bool(((said.sum(dim=1) - 1).abs() <= 1e-3).all()))
    if ends or probabilities:
        told = f"student {name!r} ends in {ends}" if ends else f"student {name!r} gives probabilities (all in [0, 1])"
        yield Problem("U250", f"{told}; losses expect logits and would soften twice; remove the last activation")


def _ask(module: nn.Module, encoded: Tensor) -> tuple[Tensor, str]:
    """The module's answer in evaluation mode, and the kind of the last layer that ran."""
    ran = [""]
    leaves = [part for part in module.modules() if not any(True for _ in part.children())]
    hooks = [part.register_forward_hook(lambda part, *_: ran.append(type(part).__name__)) for part in leaves]
    try:
        with evaluating(module), torch.inference_mode():
            said = module(encoded.to(next((weight.device for weight in module.parameters()), encoded.device)))
    finally:
        for hook in hooks:
            hook.remove()
    skip = ("Identity", "Flatten", "Dropout")
    return said.float().cpu(), next((name for name in reversed(ran) if name not in skip), "")
