"""What a student learns from: a weighted set of terms, each a loss bound to the evidence it reads.

`total = sum_k weight_k * mean over rows of term_k`; rows without a label take no part in a term that reads labels. A
loss of a kind of evidence that is here needs nothing in this file: a recipe names it by its place. A new kind of
evidence is one more final Term (understudy.terms, understudy.features), and a line in BINDERS.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from understudy.catalogue import CLASSES_APART, family_of, find_loss, kind_of
from understudy.errors import RecipeError, TrainingError
from understudy.features import Axes, FeatureTerm, OnAnswers, OnContrast, OnEmbedding, OnExits, OnLayers, OnRelations, OnTeachersEmbedding
from understudy.losses import contrastive as contrastive_losses
from understudy.losses import labels as label_losses
from understudy.losses import logits as logit_losses
from understudy.losses import regression as regression_losses
from understudy.losses import sequences as sequence_losses
from understudy.schedules import Share
from understudy.signals import Batch, Signals
from understudy.taps import Layer
from understudy.tasks import Task
from understudy.terms import (
    LABELS,
    Loss,
    OnFrames,
    OnLabels,
    OnLogits,
    OnLogitsAndLabels,
    OnOwnPairs,
    OnPairs,
    OnTeachers,
    OnTokens,
    OnTop,
    OnTopK,
    OnValues,
    OnValuesAndLabels,
    Term,
)

HARD: dict[str, Loss] = {
    "multiclass": label_losses.cross_entropy,
    "binary": label_losses.cross_entropy,
    "multilabel": label_losses.binary_cross_entropy,
    "regression": regression_losses.squared_error,
    "recognition": sequence_losses.ctc_labels,
    "matching": contrastive_losses.in_batch_contrast,
}
"""Kind of task -> what a student learns from labels."""

SOFT: dict[str, Loss] = {
    "multiclass": logit_losses.soft_target,
    "binary": logit_losses.soft_target,
    "multilabel": logit_losses.binary_soft_target,
    "regression": regression_losses.teacher_squared_error,
    "recognition": sequence_losses.ctc_frames,
    "matching": contrastive_losses.contrastive_relation,
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


BINDERS: dict[str, type[Any]] = {
    "labels": OnLabels,
    "logits": OnLogits,
    "logits_and_labels": OnLogitsAndLabels,
    "teachers": OnTeachers,
    "values": OnValues,
    "values_and_labels": OnValuesAndLabels,
    "layers": OnLayers,
    "answers": OnAnswers,
    "embedding": OnEmbedding,
    "relations": OnRelations,
    "contrast": OnContrast,
    "exits": OnExits,
    "teachers_embedding": OnTeachersEmbedding,
    "tokens": OnTokens,
    "topk": OnTopK,
    "top": OnTop,
    "frames": OnFrames,
}
"""The word a recipe uses in `reads` -> the term that binds such a loss."""


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
            raise RecipeError(f"two terms have one name: {', '.join(names)}. Give each its own", code="U075")
        self.terms = nn.ModuleList(given)
        self._given = tuple(given)  # the same ones, without a search among submodules at every step
        self.moves = any(term.moves for term in given)
        self.remembers = any(isinstance(term, OnContrast) for term in given)
        if not self.active:
            raise RecipeError("the objective has no term of weight above 0: there is nothing to learn from", code="U075")

    @property
    def active(self) -> list[Term]:
        """The terms that are computed: those of weight 0 for good are not."""
        return [term for term in self._all() if term.weight or term.plan is not None]

    def _all(self) -> tuple[Term, ...]:
        return self._given

    @property
    def reads(self) -> tuple[str, ...]:
        """What the terms need of a batch: `labels`, `keys`, and signals of the teacher."""
        return tuple(sorted({name for term in self.active for name in term.reads}))

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads the teacher."""
        return bool(self.hears)

    @property
    def hears(self) -> tuple[str, ...]:
        """The teacher's signals that the terms need."""
        return tuple(sorted({name for term in self.active for name in term.hears}))

    @property
    def layers(self) -> tuple[str, ...]:
        """The student's layers that the terms read, once `resolve` knows them."""
        return tuple(dict.fromkeys(layer for term in self.feature_terms() for layer in term.layers))

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        """The teacher's layers that the terms read, once `resolve` knows them."""
        return tuple(dict.fromkeys(layer for term in self.feature_terms() for layer in term.teacher_layers))

    @property
    def reads_layers(self) -> bool:
        """Whether a term reads layers, known or not yet."""
        return bool(self.feature_terms())

    def feature_terms(self) -> list[FeatureTerm]:
        """The terms that read layers."""
        return [term for term in self.active if isinstance(term, FeatureTerm)]

    def resolve(self, student: Sequence[Layer], teacher: Sequence[Layer]) -> None:
        """Put the layers of two traced networks in place of `auto`."""
        for term in self.feature_terms():
            term.resolve(student, teacher)

    def connect(
        self, student: Signals, teacher: Signals, *, keys: Tensor | None = None, labels: Tensor | None = None, seed: int = 0
    ) -> None:
        """Make the connectors and memory banks, from what both networks give of a few rows; `keys` are those of all rows."""
        for at, term in enumerate(self.feature_terms()):
            term.connect(student, teacher, keys=keys, labels=labels, seed=seed * 1_000 + at)

    def connectors(self) -> dict[str, int]:
        """How many numbers each term learns that are no part of the student; terms without are left out."""
        counts = {term.name: sum(weight.numel() for weight in term.parameters() if weight.requires_grad) for term in self.active}
        return {name: count for name, count in counts.items() if count}

    def move_to(self, progress: float) -> None:
        """Take the weights and temperatures that belong to this part of training, 0 to 1."""
        for term in self._all():
            term.move_to(progress)

    def balance(self, shares: Mapping[str, float]) -> None:
        """Move the weights that follow a share of the gradient half of the way there, on a logarithmic scale."""
        for term in self._all():
            if isinstance(term.plan, Share) and 0 < shares.get(term.name, 0.0) < 1:
                wanted, found = term.plan.share, shares[term.name]
                # the odds, not the share: the other terms' part moves too
                factor = (wanted / (1 - wanted) * (1 - found) / found) ** 0.5
                term.weight = min(max(term.weight * min(max(factor, 0.1), 10.0), 1e-6), 1e9)

    def moved(self) -> dict[str, float]:
        """The numbers that move, as they are now."""
        said: dict[str, float] = {}
        for term in self._all():
            said |= {f"{term.name}.weight": term.weight} if term.plan is not None else {}
            said |= {f"{term.name}.{key}": term.moving_now(key) for key in term.moving}
            said |= {f"{term.name}.temperature": term.options["temperature"].item()} if term.learned is not None else {}
        return said

    @property
    def weights(self) -> dict[str, float]:
        """Each term's weight, for a checkpoint: one that follows the gradient is no function of progress."""
        return {term.name: term.weight for term in self._all()}

    @weights.setter
    def weights(self, weights: Mapping[str, float]) -> None:
        for term in self._all():
            term.weight = weights[term.name]

    def after_step(self) -> None:
        """Let the terms remember what they must once a step's gradients are there."""
        for term in self.active:
            term.after_step()

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

    def apart(self, student: Signals, batch: Batch) -> tuple[Tensor | None, Tensor | None, dict[str, Tensor]]:
        """What `forward` gives, its total in two: the terms that do not hear the teacher, and those that do."""
        parts: dict[bool, list[Tensor]] = {False: [], True: []}
        values: dict[str, Tensor] = {}
        for term in self.active:
            value = term.forward(student, batch)
            parts[bool(term.hears)].append(term.weight * value)
            values[term.name] = value.detach()
        own, heard = (torch.stack(each).sum() if each else None for each in (parts[False], parts[True]))
        return own, heard, values

    def formula(self) -> str:
        """The objective with its numbers, as in `0.1 * cross_entropy(student, labels) + 0.9 * soft_target(...)`."""
        return " + ".join(f"{term.weight_text} * {term}" for term in self.active)

    def without_teacher(self, task: Task) -> Objective:
        """The control's objective: the terms that read labels only, options kept, weights scaled to add to 1."""
        hard = [copy.deepcopy(term) for term in self._all() if term.reads == (LABELS,)]
        whole = sum(term.weight for term in hard)
        for term in hard:
            term.plan = None
            term.weight = term.weight / whole if whole else 1 / len(hard)
        return Objective(hard) if hard else Objective.labels_only(task)

    def shares(self, student_output: Tensor, batch: Batch) -> dict[str, float]:
        """Each active term's share of the gradient at the student's output, weight included; they add to 1.

        The share is of the sum of the terms' gradient norms, all 0 when no term has a gradient. Terms that read layers have
        none there: see `shares_of`.
        """
        norms = {}
        for term in self.active:
            output = student_output.detach().requires_grad_()
            with torch.enable_grad():
                value = term({term.signal: output}, batch)
            norms[term.name] = term.weight * _gradient_norm(value, [output])
        return _parts(norms)

    def shares_of(self, forward: Callable[[Batch], Signals], batch: Batch, parameters: Iterable[Tensor]) -> dict[str, float]:
        """Each active term's share of the gradient in the student's parameters: one pass more, and one backwards for each term.

        The terms are in evaluation mode meanwhile: connectors and memory banks stay as they are.
        """
        trained, training = [parameter for parameter in parameters if parameter.requires_grad], self.training
        self.eval()
        try:
            with torch.enable_grad():
                student = forward(batch)
                return _parts({term.name: term.weight * _gradient_norm(term(student, batch), trained) for term in self.active})
        finally:
            self.train(training)

    def signal_test(
        self, forward: Callable[[Batch], Signals], batch: Batch, parameters: Iterable[Tensor], *, buffers: Iterable[Tensor] = ()
    ) -> list[Finding]:
        """Look at one batch before training: is each term above 0, finite, felt by the student, and about these rows?

        Raises TrainingError (U072) with every dead term. `buffers` are what the forward pass may change (running
        statistics of batch norm); they, the terms' own, the random state and the gradients are left as they were found.
        """
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        kept = [(buffer, buffer.detach().clone()) for buffer in buffers]
        devices, training = [batch.inputs.device] if batch.inputs.is_cuda else [], self.training
        self.eval()
        try:
            with torch.random.fork_rng(devices=devices), torch.enable_grad():
                student = forward(batch)
                findings = [_examine(term, student, batch, trained) for term in self.active]
        finally:
            self.train(training)
            for buffer, before in kept:
                buffer.detach().copy_(before)
        dead = [str(finding) for finding in findings if finding.level == "error"]
        if dead:
            raise TrainingError("training would mean nothing: " + "\n  ".join(dead), code="U072")
        return findings

    @staticmethod
    def soft_labels(
        *,
        alpha: float = 0.5,
        temperature: float | Mapping[str, Any] | str = 2.0,
        task: Task,
        label_smoothing: float = 0.0,
        class_weights: Tensor | Sequence[float] | None = None,
        scale: float = 1.0,
    ) -> Objective:
        """(1 - alpha) * hard + alpha * T^2 * KL(teacher || student): Hinton, Vinyals & Dean 2015, arXiv:1503.02531.

        Multilabel: the same with one sigmoid per class. Recognition: CTC of the labels, and the divergence of each frame.
        Regression: (1 - alpha) * squared error to the labels + alpha * squared error to the teacher, both divided by scale
        squared. The temperature may move or be learned: see understudy.schedules.
        """
        if not 0 <= alpha <= 1:
            raise RecipeError(f"alpha must lie between 0 and 1 (got {alpha:g})", code="U075")
        hard = _label_term(task, 1 - alpha, label_smoothing, class_weights, scale)
        loss = SOFT[task.kind]
        soft: Term
        if task.kind == "recognition":
            soft = OnFrames(loss, weight=alpha, name=loss.__name__, temperature=temperature)
        elif task.kind == "regression":
            soft = OnValues(loss, weight=alpha, name=loss.__name__, scale=scale)
        elif task.kind == "matching":
            soft = OnPairs(loss, paired=True, weight=alpha, name=loss.__name__)
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
    def from_terms(terms: Iterable[tuple[str | Loss, Any, Mapping[str, Any]]], task: Task) -> Objective:
        """Terms given as (loss, weight, options), the loss by its place, by import path, or as a function.

        `logits.soft_target` is looked up in understudy.losses; `my_package.my_module:my_loss` is imported, and its
        options say what it reads (`reads = "labels"`, a word of BINDERS), unless it is a Term itself. Terms that read layers
        take `student`, `teacher` and `connector` among their options.
        """
        bound: list[Term] = []
        for place, weight, options in terms:
            bound.append(_bind(place, weight, dict(options), task, taken=[term.name for term in bound]))
        return Objective(bound)


def _label_term(
    task: Task, weight: float, label_smoothing: float, class_weights: Tensor | Sequence[float] | None, scale: float
) -> OnLabels | OnOwnPairs:
    """The hard part for a task."""
    loss = HARD[task.kind]
    if task.kind == "recognition":
        return OnLabels(loss, weight=weight, name=loss.__name__)
    if task.kind == "matching":
        return OnOwnPairs(loss, weight=weight, name=loss.__name__, symmetric=True)
    options: dict[str, Any] = {"scale": scale} if task.kind == "regression" else {"label_smoothing": label_smoothing}
    if task.kind != "regression" and class_weights is not None:
        options["class_weights"] = torch.as_tensor(class_weights, dtype=torch.float32)
    return OnLabels(loss, weight=weight, name=loss.__name__, signal=task.signal, **options)


def _bind(place: str | Loss, weight: Any, options: dict[str, Any], task: Task, *, taken: list[str]) -> Term:
    """The term of one line of a recipe."""
    loss: Any = find_loss(place) if isinstance(place, str) else place
    shown = place if isinstance(place, str) else getattr(loss, "__qualname__", repr(loss))
    if isinstance(loss, type) and issubclass(loss, Term):
        own: Term = loss(weight=weight, signal=task.signal, **options)
        return own
    if task.kind == "matching":
        return _bind_pairs(loss, shown, weight, options, taken)
    reads = options.pop("reads", None) or kind_of(loss)
    if reads is None and family_of(loss):
        raise RecipeError(f"the loss {shown!r} is for code of your own: no term binds what it reads", code="U075")
    if reads not in BINDERS:
        asked = "its options do not say what it reads" if reads is None else f"reads = {reads!r} is unknown"
        raise RecipeError(f"the loss {shown!r}: {asked}; reads is one of: {', '.join(BINDERS)}", code="U075")
    _refuse_other_task(loss, shown, reads, task)
    if options.get("class_weights") is not None:
        options["class_weights"] = torch.as_tensor(options["class_weights"], dtype=torch.float32)
    term: Term = BINDERS[reads](loss, weight=weight, name=_free_name(loss, taken), signal=task.signal, **options)
    return term


def _free_name(loss: Loss, taken: list[str]) -> str:
    name = getattr(loss, "__name__", type(loss).__name__)
    names = [name, *(f"{name}_{number}" for number in range(2, len(taken) + 2))]
    return next(name for name in names if name not in taken)


def _bind_pairs(loss: Loss, shown: str, weight: Any, options: dict[str, Any], taken: list[str]) -> Term:
    """The term of one line of a recipe whose task is a matching."""
    name = _free_name(loss, taken)
    if loss is HARD["matching"]:
        return OnOwnPairs(loss, weight=weight, name=name, **{"symmetric": True, **options})
    if family_of(loss) not in ("contrastive", "embeddings", "relations", None) or "student_bank" in inspect.signature(loss).parameters:
        raise RecipeError(
            f"the loss {shown!r} compares no vectors, which is what models of a matching give; use 'contrastive.contrastive_relation', "
            "'contrastive.interactive_contrast' or 'embeddings.embedding_mse'",
            code="U522",
        )
    return OnPairs(loss, paired=Axes.of(loss).paired, weight=weight, name=name, **options)


def _refuse_other_task(loss: Loss, shown: str, reads: str, task: Task) -> None:
    """Refuse a signal that the student does not give, and a loss that would compute something this task does not mean."""
    signal = BINDERS[reads].signal
    if reads == "exits":  # what the loss would read of a teacher, it reads of the student's own answer
        reads = kind_of(loss) or "logits"
        signal = BINDERS[reads].signal
        if reads not in (LABELS, "logits", "logits_and_labels", "values", "values_and_labels"):
            raise RecipeError(f"the loss {shown!r} reads {reads}, and an exit gives answers; take a loss on logits or labels", code="U485")
    if issubclass(BINDERS[reads], FeatureTerm):
        if reads == "relations" and Axes.of(loss).paired:
            raise RecipeError(
                f"the loss {shown!r} compares images with texts, and rows here have one side; bind it in a Term of your own", code="U344"
            )
        return
    if reads != "labels" and signal != task.signal:
        reason, better = f"compares {signal}, but a {task.kind} student gives {task.signal}", SOFT[task.kind]
    elif (task.kind == "recognition") != (family_of(loss) == "sequences"):
        reason, better = f"is not for a {task.kind} task", HARD[task.kind] if reads == "labels" else SOFT[task.kind]
    elif task.kind not in LABEL_KINDS.get(loss, (task.kind,)):
        reason, better = f"is not for a {task.kind} task", HARD[task.kind]
    elif task.kind == "multilabel" and family_of(loss) in CLASSES_APART and loss not in (SOFT["multilabel"], logit_losses.logit_mse):
        reason, better = "lets classes exclude each other, which labels of a multilabel task do not", SOFT[task.kind]
    elif task.outputs == 2 and loss in (logit_losses.decoupled, logit_losses.normalized):
        reason, better = "compares the classes other than the label, and with two classes there is only one", SOFT[task.kind]
    else:
        return
    place = f"{better.__module__.rpartition('.')[2]}.{better.__name__}"
    raise RecipeError(f"the loss {shown!r} {reason}; use {place!r}", code="U075")


def _gradient_norm(value: Tensor, inputs: list[Tensor]) -> float:
    """The norm of the gradient over all of these together, 0 where it does not reach."""
    if not (value.requires_grad and inputs):
        return 0.0
    found = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
    return math.hypot(*[float(gradient.norm()) for gradient in found])


def _parts(norms: Mapping[str, float]) -> dict[str, float]:
    whole = sum(norms.values())
    return {name: norm / whole if whole else 0.0 for name, norm in norms.items()}


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
    if not number > 0 and not _may_be_negative(term):
        if term.hears and _echoes(term, student, batch):
            return finding("the student already says exactly what the teacher says, so nothing is left to learn")
        return finding("it is not above 0, so nothing is left to learn from it")
    if not trained or not value.requires_grad:
        return finding("no gradient reaches the student: its output is detached, or no parameter is trained")
    if norm == 0 or not math.isfinite(norm):
        return finding("its gradient in the student's parameters is " + ("zero" if norm == 0 else "not finite"))
    if term.hears and len(batch.inputs) > 1:
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
        before, after = (term.rows(term.given(student), rows) for rows in (batch, moved))
    if not torch.allclose(before, after, rtol=1e-6, atol=0.0):
        return ""
    heard = [batch.teacher[name] for name in term.hears]
    if all(torch.equal(teacher, teacher[:1].expand_as(teacher)) for teacher in heard):
        return "the teacher says the same of every row of this batch; check its inputs and preprocessing"
    if LABELS in term.reads:
        return ""  # a bound that is met or missed by every row
    return "it does not change when the teacher's answers go to other rows, so it does not learn from them"


def _echoes(term: Term, student: Signals, batch: Batch) -> bool:
    """Whether the student says already what the teacher says."""
    given = term.given(student)
    ours = given if isinstance(given, list) else [given]
    heard = [batch.teacher[name] for name in term.hears]
    return len(ours) == len(heard) and all(torch.equal(one.float(), other.float()) for one, other in zip(ours, heard, strict=True))


def _may_be_negative(term: Term) -> bool:
    """Whether the least value of the loss lies below 0, as that of a likelihood does."""
    return isinstance(term, FeatureTerm) and bool(len(term.variances))
