"""A teacher's answers: logits or probabilities, and which column is which class of the data.

Pure functions between what a model gives and the signal that is kept. Nothing here guesses in silence: what cannot be
told is refused with the sentence that settles it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from understudy.errors import Problem, TeacherError, did_you_mean
from understudy.losses import ensembles
from understudy.tasks import Task

Combine = Literal["probabilities", "logits", "entropy", "confidence"]
UNKNOWN = -1e4
"""The logit of a class that a teacher does not know: no probability, and a number that can be stored."""
Output = Literal["auto", "logits", "probabilities", "values"]
FLOOR = 1e-7
_PLACEHOLDER = re.compile(r"(label|class|target|output)?[ _-]?\d+(\.0)?")


def as_tensor(given: Any, *, frames: bool = False) -> Tensor:
    """What a model gave as a float32 tensor on the CPU [rows, columns], or [rows, frames, columns]; a dictionary gives its answers.

    A gradient is left on for `check_teacher` to see; NaN is let through for `check_answers` to name.
    """
    if isinstance(given, Mapping):
        for name in ("logits", "probabilities", "values"):
            if name in given:
                return as_tensor(given[name], frames=frames)
        there = ", ".join(map(str, given))
        raise TeacherError(f"the teacher's answer has none of logits, probabilities, values; there is: {there}", code="U006")
    if isinstance(given, tuple) and given:
        return as_tensor(given[0], frames=frames)
    tensor = given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
    if not (tensor.is_floating_point() or tensor.dtype in (torch.int64, torch.int32, torch.bool, torch.uint8)):
        raise TeacherError(f"the teacher's answer is {tensor.dtype}, not numbers", code="U006")
    tensor = tensor.float().cpu()
    tensor = tensor[:, None] if tensor.ndim == 1 else tensor
    if tensor.ndim != (3 if frames else 2):
        wanted = "[rows, frames, words and the blank]" if frames else "[rows, classes]"
        raise TeacherError(f"the teacher answers shape {tuple(tensor.shape)}; it must be {wanted}", code="U006")
    return tensor


def looks_like(answers: Tensor, task: Task) -> Output:
    """What `auto` means for these answers: probabilities when all lie in [0, 1] and (one class per row) rows sum to 1.

    >>> looks_like(torch.tensor([[0.2, 0.8], [0.6, 0.4]]), Task("binary", ("no", "yes")))
    'probabilities'
    """
    if task.kind == "regression":
        return "values"
    # one row of plain logits says it for all, at the cost of one row
    if len(answers) and bool(answers[0].isfinite().all()) and bool((answers[0] < 0).any() or (answers[0] > 1).any()):
        return "logits"
    finite = answers[answers.isfinite().all(dim=1)]
    inside = len(finite) > 0 and bool((finite >= 0).all() and (finite <= 1).all())
    if inside and task.single_label and answers.shape[1] > 1:
        inside = bool(((finite.sum(dim=1) - 1).abs() <= 1e-3).all())
    return "probabilities" if inside else "logits"


def to_logits(answers: Tensor, output: Output, task: Task) -> Tensor:
    """The answers as they are kept, float32 [rows, columns]: logits, or the values of a regression.

    Probabilities become log-probabilities (multilabel: log-odds), floored at 1e-7; the one column of a binary task
    becomes two. Raises TeacherError when what was declared cannot be what there is.
    """
    columns = answers.shape[1]
    if task.kind == "recognition":
        if answers.shape[-1] != task.outputs:
            raise TeacherError(
                f"the teacher gives {answers.shape[-1]} columns, {len(task.classes)} words and the blank need one each", code="U010"
            )
        return answers.float() if output in ("logits", "auto") else answers.double().clamp(1e-7, 1).log().float()
    if task.kind == "regression":
        if columns != 1:
            raise TeacherError(f"the teacher gives {columns} values per row, a regression needs one", code="U010")
        return answers.float()
    if output == "values":
        raise TeacherError(f'teacher.output = "values" is for regression; this is {task.kind}: "logits" or "probabilities"', code="U005")
    if columns == 1 and task.single_label and len(task.classes) > 2:
        raise TeacherError(
            f"the teacher gives one number per row, the data has {len(task.classes)} classes ({_listed(task.classes)}). One number decides "
            "between two classes (task = 'binary'); give a column per class, or say task = 'regression' if it is a value",
            code="U010",
        )
    guess = looks_like(answers, task)
    output = guess if output == "auto" else output
    if output == "probabilities":
        _refuse_improbable(answers, task)
        return _log_probabilities(answers.double(), task).float()
    if guess == "probabilities" and task.single_label and columns > 1 and len(answers) > 1:
        raise TeacherError(
            f"teacher output is already probabilities (rows sum to 1.000), softening it as logits would be wrong: a teacher that is sure "
            f"would seem {math.e / (math.e + columns - 1):.1%} sure of {columns} classes; "
            "say teacher.output = 'probabilities'",
            code="U004",
        )
    if columns == 1 and task.single_label:
        return torch.cat([torch.zeros_like(answers), answers], dim=1).float()
    return answers.float()


def _log_probabilities(answers: Tensor, task: Task) -> Tensor:
    if task.kind == "multilabel":
        return answers.clamp(FLOOR, 1 - FLOOR).logit()
    if answers.shape[1] == 1:
        answers = torch.cat([1 - answers, answers], dim=1)
    return answers.clamp(min=FLOOR).log()


def _refuse_improbable(answers: Tensor, task: Task) -> None:
    finite = answers.isfinite().all(dim=1)
    bad = finite & ((answers < -1e-4) | (answers > 1 + 1e-3)).any(dim=1)
    summed = answers.sum(dim=1)
    if task.single_label and answers.shape[1] > 1:
        bad |= finite & ((summed - 1).abs() > 1e-2)
    if bad.any():
        first = int(bad.nonzero()[0])
        low, high = float(answers[finite].min()), float(answers[finite].max())
        shown = f"the first bad row is {first}, which sums to {float(summed[first]):.3f}"
        raise TeacherError(
            f"teacher.output = 'probabilities', but its answers go from {low:.4g} to {high:.4g} and {shown}; "
            "if these are scores before softmax, say teacher.output = 'logits'",
            code="U005",
        )


def check_answers(answers: Tensor, name: Callable[[int], str] = "row {}".format) -> list[Problem]:
    """What no teacher should say, over all rows at once: NaN or infinite rows, or the same answer for every row."""
    bad = ~answers.isfinite().flatten(1).all(dim=1)
    if bad.any():
        first = name(int(bad.nonzero()[0]))
        return [
            Problem(
                "U006",
                f"{int(bad.sum()):,} of {len(answers):,} teacher rows are NaN or infinite (first: {first}); correct the teacher there",
            )
        ]
    if len(answers) < 2:
        return []
    if bool((answers == answers[:1]).all()):
        return [
            Problem("U007", f"the teacher gives the same answer for all {len(answers):,} rows; are its weights and preprocessing right?")
        ]
    if answers.ndim > 2:
        return []
    same = [column for column in range(answers.shape[1]) if bool((answers[:, column] == answers[0, column]).all())]
    # The first column of a single-logit binary teacher is zero by construction.
    if same and not (answers.shape[1] == 2 and same == [0] and float(answers[0, 0]) == 0.0):
        return [Problem("U007", f"column {same[0]} of the teacher's answers is the same for all {len(answers):,} rows", "warning")]
    return []


@final
@dataclass(frozen=True)
class ClassMatch:
    """Which teacher column answers for each class of the data, in the data's order, and what proves it.

    `table` holds data class, teacher class and teacher column.
    """

    order: tuple[int, ...]
    proof: Literal["names", "labels", "accepted"]
    sentence: str
    table: tuple[tuple[str, str, int], ...]


def match_classes(
    teacher_classes: Sequence[str] | None,
    task: Task,
    answers: Tensor | None,
    labels: np.ndarray[Any, Any] | None,
    *,
    accept: bool = False,
) -> ClassMatch:
    """Match a teacher's columns to the data's classes by name, or prove the given order on labelled rows.

    `answers` are logits [rows, teacher columns] with `labels` following understudy.tasks. Refused: a class the teacher
    lacks or a different count (U010), an order that the labels contradict (U011), an order that nothing proves (U012).
    """
    if task.kind == "regression":
        return ClassMatch((0,), "names", "one value, no classes to match", ())
    columns = len(teacher_classes or ()) if answers is None else answers.shape[1]
    if teacher_classes is not None and len(teacher_classes) != columns:
        raise TeacherError(f"teacher.classes names {len(teacher_classes)} classes, the teacher answers {columns}", code="U010")
    order = None if teacher_classes is None else _by_name(teacher_classes, task.classes)
    if order is None and teacher_classes is not None and not _placeholders(teacher_classes):
        raise _lacking(teacher_classes, task.classes)
    named = order is not None
    if order is None:
        if columns != len(task.classes):
            raise TeacherError(
                f"class counts differ: the teacher answers {columns} classes, data has {len(task.classes)} ({_listed(task.classes)}). "
                "Map them by name with teacher.classes, or retrain the teacher's head",
                code="U010",
            )
        order = tuple(range(columns))
    table = tuple(
        (name, "" if teacher_classes is None else str(teacher_classes[c]), c) for name, c in zip(task.classes, order, strict=True)
    )
    found = evidence(answers[:, list(order)], labels, task) if answers is not None and labels is not None else None
    if found is not None and found.better is not None:
        raise _contradiction(found, order, task, named)
    if named:
        dropped = columns - len(order)
        note = f"; {dropped} teacher classes that the data lacks are dropped and the rest renormalised" if dropped else ""
        return ClassMatch(order, "names", f"{len(order)} classes matched by name{note}", table)
    if found is not None and found.proved:
        return ClassMatch(order, "labels", f"class order proved by the labels: {found.said}", table)
    if accept:
        return ClassMatch(order, "accepted", "class order taken as given: nothing proves it", table)
    seen = "there are no labelled rows" if found is None else f"the labels do not settle it ({found.said})"
    raise TeacherError(
        f"the teacher has no class names and {seen}. Declare teacher.classes in the teacher's order, "
        "or take the order as given with teacher.accept_mapping = true",
        code="U012",
    )


def known_columns(teacher_classes: Sequence[str], task: Task) -> tuple[int, ...]:
    """The teacher's column for each class of the data, -1 for those it does not know; TeacherError U358 when it knows none."""
    plain = [_plain(name) for name in teacher_classes]
    order = tuple(plain.index(_plain(name)) if _plain(name) in plain else -1 for name in task.classes)
    if all(column < 0 for column in order):
        raise TeacherError(
            f"it knows none of the data's classes: its own are {_listed(teacher_classes)}, the data's {_listed(task.classes)}; "
            "name its columns with the data's words in the classes of this member",
            code="U358",
        )
    return order


def combined(
    said: Tensor,
    task: Task,
    *,
    combine: Combine = "probabilities",
    weights: Tensor | None = None,
    knows: Tensor | None = None,
    labels: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """One answer [rows, classes] from several teachers' `said` [teachers, rows, classes], given back as logits.

    `weights` [teachers] count beside what `combine` finds per row: nothing, less entropy, or with `labels` (-1 where there is
    none) being nearer to the label. `knows` bool [teachers, classes]: a class is decided by the teachers that know it, their
    weights scaled to 1, and the row is scaled to 1 at the end. The mean of probabilities is that at the temperature.
    """
    shares = torch.ones(len(said), 1) if weights is None else weights[:, None]
    if combine == "entropy":
        shares = shares * ensembles.entropy_weights(said)
    elif combine == "confidence" and labels is not None:
        shares = shares * ensembles.confidence_weights(said, labels)
    # no weight is nothing at all: where one teacher alone knows a class, it speaks
    shares = shares.to(said.device, torch.float64).clamp_min(1e-12)
    heard = shares[..., None] if knows is None else shares[..., None] * knows.to(said.device)[:, None]
    heard = heard / heard.sum(0)
    if task.kind == "regression" or (task.kind == "multilabel" and combine == "logits"):
        return (said.double() * heard).sum(0).float()
    if task.kind == "multilabel":
        return (said.double().sigmoid() * heard).sum(0).clamp(FLOOR, 1 - FLOOR).logit().float()
    if knows is None:
        spoken, softened = said.double() / temperature, temperature
    else:  # one who knows some classes only has said log-probabilities, among all that it knows
        full = knows.all(1).to(said.device)[:, None, None]
        spoken, softened = torch.where(full, said.double().log_softmax(-1), said.double()), 1.0
    if combine == "logits":
        return (spoken * softened * heard).sum(0).float()
    spoken = spoken.log_softmax(-1) if knows is None else spoken
    return ((spoken + heard.log()).logsumexp(0).log_softmax(-1) * softened).float()


def _by_name(teacher: Sequence[str], data: Sequence[str]) -> tuple[int, ...] | None:
    for form in (str, _plain):
        names = [form(name) for name in teacher]
        wanted = [form(name) for name in data]
        if len(set(names)) == len(names) and all(name in names for name in wanted):
            return tuple(names.index(name) for name in wanted)
    return None


def _plain(name: str) -> str:
    folded = str(name).strip().casefold()
    return folded[:-2] if re.fullmatch(r"-?\d+\.0", folded) else folded


def is_placeholder(name: str) -> bool:
    """Whether a class name is only a number, which says nothing of the data's classes."""
    return _PLACEHOLDER.fullmatch(_plain(name)) is not None


def _placeholders(names: Sequence[str]) -> bool:
    return all(map(is_placeholder, names))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _lacking(teacher: Sequence[str], data: Sequence[str]) -> TeacherError:
    there = {_plain(name): name for name in teacher}
    lines = [f"  {name} -> {there.get(_plain(name), 'nothing')}" for name in data[:20]]
    lacks = [name for name in data if _plain(name) not in there]
    count = f"class counts differ: the teacher answers {len(teacher)} classes, data has {len(data)}; " if len(teacher) != len(data) else ""
    first = lacks[0] if lacks else data[0]
    return TeacherError(
        f"{count}the teacher has no class {first!r}; {did_you_mean(str(first), teacher)}\n" + "\n".join(lines) + "\n"
        "Name the teacher's columns with the data's words in teacher.classes, correct a label that is misspelt, "
        "or retrain the teacher's head",
        code="U010",
    )


@final
@dataclass(frozen=True)
class Evidence:
    """What labelled rows say of the columns as given: proved, or a clearly better order (column per data class)."""

    proved: bool
    better: tuple[int, ...] | None
    as_given: float
    reordered: float
    said: str


def evidence(answers: Tensor, labels: np.ndarray[Any, Any], task: Task) -> Evidence | None:
    """Whether these answers [rows, columns in the data's order] belong to these labels; None without a labelled row."""
    # rows answered by NaN or infinity say nothing of the order; check_answers names them
    rows = task.labelled(labels) & answers.isfinite().all(dim=1).numpy()
    if not rows.any():
        return None
    scores = answers.detach().double().numpy()[rows]
    if not task.single_label:
        return _by_correlation(scores, labels[rows])
    scores = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    plain = _by_agreement(scores.argmax(axis=1), labels[rows], len(task.classes))
    if plain.proved or plain.better is not None:
        return plain
    # A teacher that always prefers the commonest class still ranks: take away what it says on average.
    centred = _by_agreement((scores - scores.mean(axis=0)).argmax(axis=1), labels[rows], len(task.classes))
    return centred if centred.proved or centred.better is not None else plain


def _by_agreement(predicted: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], classes: int) -> Evidence:
    """The best order by assignment against the given one; margins hold for all orders at once (Hoeffding, union bound)."""
    rows = len(labels)
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    _, order = linear_sum_assignment(counts, maximize=True)
    as_given = float(np.trace(counts)) / rows
    reordered = float(counts[np.arange(classes), order].sum()) / rows
    moved = np.flatnonzero(order != np.arange(classes))
    touched = int(counts[moved].sum())
    clear = False
    if touched and reordered > as_given:
        choices = math.lgamma(classes + 1) - math.lgamma(classes - len(moved) + 1)
        clear = (reordered - as_given) * rows / touched > math.sqrt((choices + 7) / (2 * touched))
    chance = float((counts.sum(axis=0) / rows * counts.sum(axis=1) / rows).sum())
    proved = not clear and as_given - chance > math.sqrt(7 / (2 * rows)) * 2 * math.sqrt(chance * (1 - chance)) + 1e-9
    said = f"{as_given:.0%} agreement on {rows:,} labelled rows, {chance:.0%} by chance"
    return Evidence(proved, tuple(int(c) for c in order) if clear else None, as_given, reordered, said)


def _by_correlation(scores: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Evidence:
    scores, truth = (side - side.mean(axis=0) for side in (scores, labels.astype(np.float64)))
    norms = np.outer(np.linalg.norm(truth, axis=0), np.linalg.norm(scores, axis=0))
    match = np.divide(truth.T @ scores, norms, out=np.zeros_like(norms), where=norms > 0)
    _, order = linear_sum_assignment(match, maximize=True)
    as_given, reordered = float(np.trace(match)) / len(match), float(match[np.arange(len(match)), order].mean())
    moved = np.flatnonzero(order != np.arange(len(match)))
    margin = 4 / math.sqrt(len(labels))
    gain = float((match[moved, order[moved]] - match[moved, moved]).mean()) if len(moved) else 0.0
    clear = gain > margin + 0.1
    said = f"mean correlation {as_given:.2f} on {len(labels):,} labelled rows"
    return Evidence(not clear and as_given > margin, tuple(int(c) for c in order) if clear else None, as_given, reordered, said)


def _contradiction(found: Evidence, order: tuple[int, ...], task: Task, named: bool) -> TeacherError:
    assert found.better is not None
    # better[data class] is the position in the given order; turn it round to name the teacher's own columns.
    names = {order[position]: task.classes[data] for data, position in enumerate(found.better)}
    column = next(c for c in sorted(names) if order.index(c) != task.classes.index(names[c]))
    given = task.classes[order.index(column)]
    declared = ", ".join(f'"{names[c]}"' for c in sorted(names))
    fix = f"declare teacher.classes = [{declared}] in that order" if len(names) == max(names) + 1 else "correct teacher.classes"
    said = "its declared name" if named else f"data index {column}"
    return TeacherError(
        f"teacher index {column} is {names[column]!r} by its answers, {said} is {given!r}: "
        f"{found.reordered:.0%} after re-ordering, {found.as_given:.0%} as given; {fix}".replace("%", " %"),
        code="U011",
    )


def mean_answer(said: Tensor, task: Task) -> Tensor:
    """The mean answer of [members, rows, columns]: values are averaged, logits as probabilities, given back as logits."""
    if task.kind == "regression":
        return said.mean(dim=0)
    if task.kind == "multilabel":
        return said.double().sigmoid().mean(dim=0).clamp(1e-7, 1 - 1e-7).logit().float()
    return (said.double().log_softmax(dim=-1).logsumexp(dim=0) - float(np.log(len(said)))).float()
