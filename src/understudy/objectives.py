"""What a student learns from: terms, each a loss bound to the evidence it reads, and a weighted set of them.

`total = sum_k weight_k * mean over rows of term_k`; rows without a label take no part in a term that reads labels. A
loss of a kind of evidence that is here needs nothing in this file: a recipe names it by its place. A new kind of
evidence is one more final Term, and a line in BINDERS.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from understudy import losses
from understudy.errors import InputError, RecipeError, TrainingError, did_you_mean
from understudy.losses import labels as label_losses
from understudy.losses import logits as logit_losses
from understudy.losses import regression as regression_losses
from understudy.losses.ensembles import confidence_weights, entropy_weights
from understudy.signals import LOGITS, VALUES, Batch, Signals
from understudy.tasks import Task

LABELS = "labels"

Loss = Callable[..., Tensor]

HARD: dict[str, Loss] = {
    "multiclass": label_losses.cross_entropy,
    "binary": label_losses.cross_entropy,
    "multilabel": label_losses.binary_cross_entropy,
    "regression": regression_losses.squared_error,
}
"""Kind of task -> what a student learns from labels."""

SOFT: dict[str, Loss] = {
    "multiclass": logit_losses.soft_target,
    "binary": logit_losses.soft_target,
    "multilabel": logit_losses.binary_soft_target,
    "regression": regression_losses.teacher_squared_error,
}
"""Kind of task -> what a student learns from a teacher's answers."""

LABEL_KINDS: dict[Loss, tuple[str, ...]] = {
    label_losses.cross_entropy: ("multiclass", "binary"),
    label_losses.virtual_teacher: ("multiclass", "binary"),
    label_losses.binary_cross_entropy: ("multilabel",),
    label_losses.soft_cross_entropy: (),  # labels that are distributions: no task has them
    regression_losses.squared_error: ("regression",),
    regression_losses.smooth_absolute_error: ("regression",),
}
"""Loss that reads labels only -> the kinds of task whose labels it can read."""


class Term(nn.Module, ABC):
    """A loss bound to what it reads; `forward` is its mean over the rows that have what it reads.

    `reads` names what it needs of a batch: `labels`, and signals of the teacher. `signal` is what it needs of the
    student. The weight is not applied here but by the Objective.
    """

    reads: tuple[str, ...]
    signal: str

    def __init__(self, loss: Loss, *, weight: float = 1.0, name: str, signal: str | None = None, **options: Any) -> None:
        super().__init__()
        if not (math.isfinite(weight) and weight >= 0):
            raise RecipeError(f"the weight of the term {name!r} must be 0 or more (got {weight:g})", code="U032")
        _check_options(loss, name, options)
        self.loss, self.weight, self.name = loss, weight, name
        self.signal = signal or self.signal
        self.constants = {key: value for key, value in options.items() if not isinstance(value, Tensor)}
        for key, value in options.items():
            if isinstance(value, Tensor):  # a buffer, so that it follows the student to its device
                self.register_buffer(key, value, persistent=False)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the loss."""
        # read at every step: most terms have no tensor among them
        return {**self.constants, **dict(self.named_buffers(recurse=False))} if self._buffers else self.constants

    @abstractmethod
    def rows(self, student: Tensor, batch: Batch) -> Tensor:
        """One value per row; rows without a label hold anything finite."""

    def forward(self, student: Signals, batch: Batch) -> Tensor:
        given = _said(student, self.signal, f"the term {self.name!r} reads the student's")
        if LABELS in self.reads and batch.labels is None:
            return given.flatten()[:0].float().sum()  # 0, with the graph intact
        values = self.rows(given, batch)
        if values.shape != given.shape[:1]:
            shapes = f"there are {len(given)} rows, and it gave {list(values.shape)}"
            raise InputError(f"the loss of the term {self.name!r} must give one value per row; {shapes}", code="U031")
        counted = self._counted(batch)
        if counted is None:
            return values.mean()
        return torch.where(counted, values, 0.0).sum() / counted.sum().clamp_min(1)

    def _counted(self, batch: Batch) -> Tensor | None:
        """The rows that have everything this term reads, None when all have."""
        labelled = batch.labelled if LABELS in self.reads else None
        answered = batch.answered if {*self.reads} - {LABELS} else None
        if labelled is None or answered is None:
            return answered if labelled is None else labelled
        return labelled & answered

    def labels_of(self, batch: Batch) -> Tensor:
        """The labels, 0 where there is none: NaN must not reach the gradient of any loss."""
        if batch.labels is None:
            raise InputError(f"the term {self.name!r} reads labels, and no row has one", code="U031")
        if batch.labelled is None:
            return batch.labels
        missing = ~batch.labelled.reshape(-1, *[1] * (batch.labels.ndim - 1))
        return batch.labels.masked_fill(missing, 0)

    def teacher_of(self, student: Tensor, batch: Batch) -> Tensor:
        """What the teacher says of these rows, in the signal and shape that the student gives."""
        teacher = _said(batch.teacher, self.signal, f"the term {self.name!r} reads the teacher's")
        if teacher.shape != student.shape:
            shapes = f"the student's {self.signal} are {list(student.shape)}, the teacher's {list(teacher.shape)}"
            raise InputError(f"the term {self.name!r} compares answers of one shape; {shapes}", code="U031")
        return teacher

    def __str__(self) -> str:
        evidence = ["teacher"] * bool({*self.reads} - {LABELS}) + ["labels"] * (LABELS in self.reads)
        takes = inspect.signature(self.loss).parameters.values()
        defaults = {parameter.name: parameter.default for parameter in takes if parameter.kind is parameter.KEYWORD_ONLY}
        options = [f"{key}={_short(value)}" for key, value in {**defaults, **self.options}.items() if value is not None]
        return f"{self.name}({', '.join(['student', *evidence, *options])})"


@final
class OnLabels(Term):
    """A loss(student, labels): the student's logits or values against the labels."""

    reads = (LABELS,)
    signal = LOGITS

    def rows(self, student: Tensor, batch: Batch) -> Tensor:
        return self.loss(student, self.labels_of(batch), **self.options)


@final
class OnLogits(Term):
    """A loss(student, teacher) on logits."""

    reads = (LOGITS,)
    signal = LOGITS

    def rows(self, student: Tensor, batch: Batch) -> Tensor:
        return self.loss(student, self.teacher_of(student, batch), **self.options)


@final
class OnLogitsAndLabels(Term):
    """A loss(student, teacher, labels) on logits, where there is a label."""

    reads = (LOGITS, LABELS)
    signal = LOGITS

    def rows(self, student: Tensor, batch: Batch) -> Tensor:
        return self.loss(student, self.teacher_of(student, batch), self.labels_of(batch), **self.options)


@final
class OnValues(Term):
    """A loss(student, teacher) on the values of a regression."""

    reads = (VALUES,)
    signal = VALUES

    def rows(self, student: Tensor, batch: Batch) -> Tensor:
        return self.loss(student, self.teacher_of(student, batch), **self.options)


@final
class OnValuesAndLabels(Term):
    """A loss(student, teacher, labels) on the values of a regression, where there is a label."""

    reads = (VALUES, LABELS)
    signal = VALUES

    def rows(self, student: Tensor, batch: Batch) -> Tensor:
        return self.loss(student, self.teacher_of(student, batch), self.labels_of(batch), **self.options)


@final
class OnTeachers(Term):
    """A loss(student, teachers) on logits, where several teachers are heard one by one: the named members of an ensemble.

    `weigh` gives the loss its `weights`, row by row: by `entropy` of a teacher's answer, or by `confidence` in the label, which
    leaves out rows without one (see understudy.losses.ensembles); all weigh alike otherwise.
    """

    signal = LOGITS

    def __init__(self, loss: Loss, *, teachers: Sequence[str] = (), weigh: str | None = None, **options: Any) -> None:
        super().__init__(loss, **options)
        if isinstance(teachers, str) or not teachers or weigh not in (None, "entropy", "confidence"):
            raise RecipeError(
                f"the term {self.name!r} takes teachers = a list of the names of teacher.members, and weigh = 'entropy' or 'confidence' "
                f"or nothing (got teachers = {teachers!r}, weigh = {weigh!r})",
                code="U032",
            )
        self.weigh = weigh
        self.reads = (*[f"teachers/{name}/{self.signal}" for name in teachers], *[LABELS] * (weigh == "confidence"))

    def rows(self, student: Tensor, batch: Batch) -> Tensor:
        who = f"the term {self.name!r} reads the teachers'"
        teachers = torch.stack([_said(batch.teacher, name, who) for name in self.reads if name != LABELS])
        if self.weigh is None:
            return self.loss(student, teachers, **self.options)
        weights = entropy_weights(teachers) if self.weigh == "entropy" else confidence_weights(teachers, self.labels_of(batch))
        return self.loss(student, teachers, weights=weights, **self.options)


BINDERS: dict[str, type[Any]] = {
    "labels": OnLabels,
    "logits": OnLogits,
    "logits_and_labels": OnLogitsAndLabels,
    "teachers": OnTeachers,
    "values": OnValues,
    "values_and_labels": OnValuesAndLabels,
}
"""The word a recipe uses in `reads` -> the term that binds such a loss."""

SIGNALS = {"labels": LOGITS, "logits": LOGITS, "correlations": LOGITS, "regression": VALUES}
"""The family of a loss in understudy.losses -> the signal that it compares."""

CLASSES_APART = ("logits", "correlations")
"""Families of losses whose softmax lets classes exclude each other, but for those of one sigmoid per class."""


@final
@dataclass(frozen=True)
class Finding:
    """What the signal test found of a term: its mean, the norm of its gradient in the parameters, and a remark."""

    term: str
    value: float
    gradient: float
    note: str = ""
    level: Literal["fine", "warning", "error"] = "fine"

    def __str__(self) -> str:
        return f"the term {self.term!r} (value {self.value:.4g}, gradient {self.gradient:.4g}): {self.note or 'fine'}"


@final
class Objective(nn.Module):
    """Weighted terms. Terms of weight 0 are kept, for `formula` and the control, but not computed."""

    def __init__(self, terms: Iterable[Term]) -> None:
        super().__init__()
        given = list(terms)
        names = [term.name for term in given]
        if len(set(names)) < len(names):
            raise RecipeError(f"two terms have one name: {', '.join(names)}. Give each its own", code="U032")
        self.terms = nn.ModuleList(given)
        if not self.active:
            raise RecipeError("the objective has no term of weight above 0: there is nothing to learn from", code="U032")

    @property
    def active(self) -> list[Term]:
        """The terms that are computed."""
        return [term for term in self._all() if term.weight]

    def _all(self) -> list[Term]:
        return [term for term in self.terms if isinstance(term, Term)]

    @property
    def reads(self) -> tuple[str, ...]:
        """What the terms need of a batch: `labels`, and signals of the teacher."""
        return tuple(sorted({name for term in self.active for name in term.reads}))

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads the teacher."""
        return any(name != LABELS for name in self.reads)

    def forward(self, student: Signals, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The total to differentiate, and each term's mean before its weight, detached. Never waits for a device."""
        total: Tensor | None = None
        values: dict[str, Tensor] = {}
        for term in self.active:
            value = term.forward(student, batch)
            # one operation, forward and backward, where a product and a sum would be two
            total = term.weight * value if total is None else torch.add(total, value, alpha=term.weight)
            values[term.name] = value.detach()
        assert total is not None
        return total, values

    def formula(self) -> str:
        """The objective with its numbers, as in `0.1 * cross_entropy(student, labels) + 0.9 * soft_target(...)`."""
        return " + ".join(f"{term.weight:g} * {term}" for term in self.active)

    def without_teacher(self, task: Task) -> Objective:
        """The control's objective: the terms that read labels only, options kept, weights scaled to add to 1."""
        hard = [copy.deepcopy(term) for term in self._all() if term.reads == (LABELS,)]
        whole = sum(term.weight for term in hard)
        for term in hard:
            term.weight = term.weight / whole if whole else 1 / len(hard)
        return Objective(hard) if hard else Objective.labels_only(task)

    def shares(self, student_output: Tensor, batch: Batch) -> dict[str, float]:
        """Each active term's share of the gradient at the student's output, weight included; they add to 1.

        The share is of the sum of the terms' gradient norms, all 0 when no term has a gradient.
        """
        norms = {}
        for term in self.active:
            output = student_output.detach().requires_grad_()
            with torch.enable_grad():
                value = term({term.signal: output}, batch)
            norms[term.name] = term.weight * _gradient_norm(value, [output])
        whole = sum(norms.values())
        return {name: norm / whole if whole else 0.0 for name, norm in norms.items()}

    def signal_test(
        self, forward: Callable[[Batch], Signals], batch: Batch, parameters: Iterable[Tensor], *, buffers: Iterable[Tensor] = ()
    ) -> list[Finding]:
        """Look at one batch before training: is each term above 0, finite, felt by the student, and about these rows?

        Raises TrainingError (U030) with every dead term. `buffers` are what the forward pass may change (running
        statistics of batch norm); they, the random state and the gradients are left as they were found.
        """
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        kept = [(buffer, buffer.detach().clone()) for buffer in buffers]
        devices = [batch.inputs.device] if batch.inputs.is_cuda else []
        try:
            with torch.random.fork_rng(devices=devices), torch.enable_grad():
                student = forward(batch)
                findings = [_examine(term, student, batch, trained) for term in self.active]
        finally:
            for buffer, before in kept:
                buffer.detach().copy_(before)
        dead = [str(finding) for finding in findings if finding.level == "error"]
        if dead:
            raise TrainingError("training would mean nothing: " + "\n  ".join(dead), code="U030")
        return findings

    @staticmethod
    def soft_labels(
        *,
        alpha: float = 0.9,
        temperature: float = 4.0,
        task: Task,
        label_smoothing: float = 0.0,
        class_weights: Tensor | Sequence[float] | None = None,
        scale: float = 1.0,
    ) -> Objective:
        """(1 - alpha) * hard + alpha * T^2 * KL(teacher || student): Hinton, Vinyals & Dean 2015, arXiv:1503.02531.

        Multilabel: the same with one sigmoid per class. Regression: (1 - alpha) * squared error to the labels + alpha
        * squared error to the teacher, both divided by scale squared.
        """
        if not 0 <= alpha <= 1:
            raise RecipeError(f"alpha must lie between 0 and 1 (got {alpha:g})", code="U032")
        hard = _label_term(task, 1 - alpha, label_smoothing, class_weights, scale)
        loss = SOFT[task.kind]
        soft: Term
        if task.kind == "regression":
            soft = OnValues(loss, weight=alpha, name=loss.__name__, scale=scale)
        else:
            soft = OnLogits(loss, weight=alpha, name=loss.__name__, temperature=temperature)
        return Objective([hard, soft])

    @staticmethod
    def labels_only(
        task: Task, *, label_smoothing: float = 0.0, class_weights: Tensor | Sequence[float] | None = None, scale: float = 1.0
    ) -> Objective:
        """The objective of a student that never hears the teacher."""
        return Objective([_label_term(task, 1.0, label_smoothing, class_weights, scale)])

    @staticmethod
    def from_terms(terms: Iterable[tuple[str | Loss, float, Mapping[str, Any]]], task: Task) -> Objective:
        """Terms given as (loss, weight, options), the loss by its place, by import path, or as a function.

        `logits.soft_target` is looked up in understudy.losses; `my_package.my_module:my_loss` is imported, and its
        options say what it reads: `reads = "labels"`, `"logits"`, `"values"` or `"values_and_labels"`.
        """
        bound: list[Term] = []
        for place, weight, options in terms:
            bound.append(_bind(place, weight, dict(options), task, taken=[term.name for term in bound]))
        return Objective(bound)


def _label_term(
    task: Task, weight: float, label_smoothing: float, class_weights: Tensor | Sequence[float] | None, scale: float
) -> OnLabels:
    """The hard part for a task."""
    loss = HARD[task.kind]
    options: dict[str, Any] = {"scale": scale} if task.kind == "regression" else {"label_smoothing": label_smoothing}
    if task.kind != "regression" and class_weights is not None:
        options["class_weights"] = torch.as_tensor(class_weights, dtype=torch.float32)
    return OnLabels(loss, weight=weight, name=loss.__name__, signal=task.signal, **options)


def _bind(place: str | Loss, weight: float, options: dict[str, Any], task: Task, *, taken: list[str]) -> Term:
    """The term of one line of a recipe."""
    loss = _find(place) if isinstance(place, str) else place
    shown = place if isinstance(place, str) else getattr(loss, "__qualname__", repr(loss))
    reads = options.pop("reads", None) or _kind_of(loss)
    if reads is None and _family(loss):
        raise RecipeError(f"the loss {shown!r} is for code of your own: no term binds what it reads", code="U032")
    if reads not in BINDERS:
        asked = "its options do not say what it reads" if reads is None else f"reads = {reads!r} is unknown"
        raise RecipeError(f"the loss {shown!r}: {asked}; reads is one of: {', '.join(BINDERS)}", code="U032")
    _refuse_other_task(loss, shown, reads, task)
    if options.get("class_weights") is not None:
        options["class_weights"] = torch.as_tensor(options["class_weights"], dtype=torch.float32)
    name = getattr(loss, "__name__", type(loss).__name__)
    names = [name, *(f"{name}_{number}" for number in range(2, len(taken) + 2))]
    free = next(name for name in names if name not in taken)
    term: Term = BINDERS[reads](loss, weight=weight, name=free, signal=task.signal, **options)
    return term


def _refuse_other_task(loss: Loss, shown: str, reads: str, task: Task) -> None:
    """Refuse a signal that the student does not give, and a loss that would compute something this task does not mean."""
    signal = BINDERS[reads].signal
    if reads != "labels" and signal != task.signal:
        reason, better = f"compares {signal}, but a {task.kind} student gives {task.signal}", SOFT[task.kind]
    elif task.kind not in LABEL_KINDS.get(loss, (task.kind,)):
        reason, better = f"is not for a {task.kind} task", HARD[task.kind]
    elif task.kind == "multilabel" and _family(loss) in CLASSES_APART and loss not in (SOFT["multilabel"], logit_losses.logit_mse):
        reason, better = "lets classes exclude each other, which labels of a multilabel task do not", SOFT[task.kind]
    elif task.outputs == 2 and loss in (logit_losses.decoupled, logit_losses.normalized):
        reason, better = "compares the classes other than the label, and with two classes there is only one", SOFT[task.kind]
    else:
        return
    place = f"{better.__module__.rpartition('.')[2]}.{better.__name__}"
    raise RecipeError(f"the loss {shown!r} {reason}; use {place!r}", code="U032")


def _families() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(losses.__path__) if not module.name.startswith("_")]


def _find(place: str) -> Loss:
    """The function at a place in understudy.losses, or at an import path."""
    if ":" in place:
        return _imported(place)
    modules = {family: importlib.import_module(f"{losses.__name__}.{family}") for family in _families()}
    there: dict[str, Loss] = {f"{family}.{name}": vars(module)[name] for family, module in modules.items() for name in module.__all__}
    if place not in there:
        own = "your own is written my_package.my_module:my_loss"
        raise RecipeError(f"there is no loss {place!r} in understudy.losses ({own}); {did_you_mean(place, there)}", code="U032")
    return there[place]


def _imported(place: str) -> Loss:
    module_name, _, name = place.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RecipeError(f"the loss {place!r}: cannot import {module_name!r} ({error})", code="U032") from error
    loss = getattr(module, name, None)
    if not callable(loss):
        there = [other for other, value in vars(module).items() if callable(value)]
        raise RecipeError(f"the loss {place!r}: {module_name} has no function {name!r}; {did_you_mean(name, there)}", code="U032")
    return loss


def _family(loss: Loss) -> str | None:
    """The module of understudy.losses that a loss is in."""
    family = str(getattr(loss, "__module__", "")).removeprefix(f"{losses.__name__}.")
    return family if family in _families() else None


def _kind_of(loss: Loss) -> str | None:
    """What a loss of understudy.losses reads: by its family, and by the names of its arguments."""
    signal = SIGNALS.get(_family(loss) or "")
    if signal is None or loss is logit_losses.ensemble_soft_target:
        return "teachers" if signal else None
    arguments = inspect.signature(loss).parameters
    if "teacher" not in arguments:
        return LABELS
    return f"{signal}_and_labels" if LABELS in arguments else signal


def _check_options(loss: Loss, name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that the loss does not take, before training."""
    takes = inspect.signature(loss).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes):
        return
    there = [parameter.name for parameter in takes if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in there:
            hint = did_you_mean(option, there) if there else "it has none"
            raise RecipeError(f"the loss {name!r} has no option {option!r}; {hint}", code="U032")


def _said(signals: Signals, wanted: str, who: str) -> Tensor:
    if wanted not in signals:
        there = ", ".join(sorted(signals)) or "nothing"
        raise InputError(f"{who} {wanted!r}, but there is: {there}", code="U031")
    return signals[wanted]


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.numel()} numbers" if value.numel() > 6 else "[" + ", ".join(f"{number:g}" for number in value.tolist()) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _gradient_norm(value: Tensor, inputs: list[Tensor]) -> float:
    """The norm of the gradient over all of these together, 0 where it does not reach."""
    if not (value.requires_grad and inputs):
        return 0.0
    found = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
    return math.hypot(*[float(gradient.norm()) for gradient in found])


def _examine(term: Term, student: Signals, batch: Batch, trained: list[Tensor]) -> Finding:
    """One term on one batch, with the first thing that is wrong with it."""
    value = term(student, batch)
    number, norm = float(value.detach()), _gradient_norm(value, trained)

    def finding(note: str, level: Literal["fine", "warning", "error"] = "error") -> Finding:
        return Finding(term.name, number, norm, note, level)

    if LABELS in term.reads and batch.labels is None:
        return finding("no row has a label; give labels, or give this term weight 0")
    if LABELS in term.reads and batch.labelled is not None and not bool(batch.labelled.any()):
        return finding("no row of this batch has a label, so it was not tested", "warning")
    if not math.isfinite(number):
        return finding("it is not finite; look for NaN or infinity in the inputs, the teacher's answers and the student's")
    reads_teacher = any(name != LABELS for name in term.reads)
    if not number > 0:
        if term.signal in term.reads and torch.equal(student[term.signal].float(), batch.teacher[term.signal].float()):
            return finding("the student already says exactly what the teacher says, so nothing is left to learn")
        return finding("it is not above 0, so nothing is left to learn from it")
    if not trained or not value.requires_grad:
        return finding("no gradient reaches the student: its output is detached, or no parameter is trained")
    if norm == 0 or not math.isfinite(norm):
        return finding("its gradient in the student's parameters is " + ("zero" if norm == 0 else "not finite"))
    if reads_teacher and len(batch.inputs) > 1:
        note = _deaf(term, student, batch)
        if note:
            return finding(note)
    return finding("", "fine")


def _deaf(term: Term, student: Signals, batch: Batch) -> str:
    """Why giving each row its neighbour's answers changes no row's value; empty when it changes one.

    Rows are compared, not their mean: a student that begins by saying the same of every row has a mean that no
    permutation changes.
    """
    moved = replace(batch, teacher={name: signal.roll(1, 0) for name, signal in batch.teacher.items()})
    with torch.no_grad():
        before, after = (term.rows(student[term.signal], rows) for rows in (batch, moved))
    if not torch.allclose(before, after, rtol=1e-6, atol=0.0):
        return ""
    heard = [batch.teacher[name] for name in term.reads if name != LABELS]
    if all(torch.equal(teacher, teacher[:1].expand_as(teacher)) for teacher in heard):
        return "the teacher says the same of every row of this batch; check its inputs and preprocessing"
    if LABELS in term.reads:
        return ""  # a bound that is met or missed by every row
    return "it does not change when the teacher's answers go to other rows, so it does not learn from them"
