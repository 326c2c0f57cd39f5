"""A term is a loss bound to the evidence it reads; here are the terms on labels, logits and values.

Terms that read layers, embeddings and relations are in understudy.features. A new kind of evidence is one more final Term,
and a line in BINDERS of understudy.objectives.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from understudy.errors import InputError, RecipeError, did_you_mean
from understudy.losses.ensembles import confidence_weights, entropy_weights
from understudy.schedules import Learned, Moving, Own, Schedule, Share, parse_number
from understudy.signals import LOGITS, VALUES, Batch, Signals, frame_lengths

LABELS = "labels"
KEYS = "keys"
TOP_COLUMNS = ("logits/ids", "logits/top", "logits/tail")
"""The columns of a top-k store that `OnTop` reads."""

Loss = Callable[..., Tensor]


class Term(nn.Module, ABC):
    """A loss bound to what it reads; `forward` is its mean over the rows that have what it reads.

    `reads` names what it needs of a batch: `labels`, `keys`, and signals of the teacher. `signal` is what it needs of the
    student. The weight is not applied here but by the Objective.
    """

    reads: tuple[str, ...]
    signal: str

    def __init__(self, loss: Loss, *, weight: Any = 1.0, name: str, signal: str | None = None, **options: Any) -> None:
        super().__init__()
        planned: Any = parse_number(weight, f"the weight of the term {name!r}")
        self.plan: Moving | Share | None = None if isinstance(planned, int | float) else planned
        if self.plan is not None:
            planned = self.plan.start if isinstance(self.plan, Share) else self.plan(0.0)
        if not (isinstance(planned, int | float) and math.isfinite(planned) and planned >= 0):
            raise RecipeError(f"the weight of the term {name!r} must be 0 or more (got {short(planned)})", code="U075")
        check_options(loss, name, options)
        self.loss, self.weight, self.name = loss, float(planned), name
        self.signal = signal or self.signal
        said = {key: parse_number(value, f"{key} of the term {name!r}") for key, value in options.items()}
        self.moving: dict[str, Moving] = {key: value for key, value in said.items() if isinstance(value, Schedule | Own)}
        self.learned = next((value for value in said.values() if isinstance(value, Learned)), None)
        self.reversal = 0.0
        if self.learned is not None:
            if not isinstance(said.get("temperature"), Learned):
                raise RecipeError(f"the term {name!r}: only a temperature can be learned against the student", code="U346")
            taken = str(inspect.signature(loss).parameters["temperature"].annotation)
            if "float" in taken and "Tensor" not in taken:
                raise RecipeError(
                    f"the term {name!r}: its loss takes a temperature that is a number, and none that is learned", code="U480"
                )
            self.temperature_logit = nn.Parameter(torch.tensor(1.0))
            del said["temperature"]
        if any(isinstance(value, Share) for value in said.values()):
            raise RecipeError(f"the term {name!r}: only a weight can follow a share of the gradient", code="U346")
        self.constants: dict[str, Any] = {key: value for key, value in said.items() if not isinstance(value, Tensor)}
        for key, value in said.items():
            if isinstance(value, Tensor):  # a buffer, so that it follows the student to its device
                self.register_buffer(key, value, persistent=False)
        self.move_to(0.0)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the loss."""
        # read at every step: most terms have no tensor among them
        if not self._buffers and not self._parameters:
            return self.constants
        tensors = {**dict(self.named_buffers(recurse=False)), **dict(self.named_parameters(recurse=False))}
        if self.learned is not None:
            scaled: Tensor = _Reversed.apply(tensors.pop("temperature_logit"), self.reversal)
            tensors["temperature"] = self.learned.least + self.learned.width * scaled.sigmoid()
        return {**self.constants, **tensors}

    def moving_now(self, key: str) -> float:
        """An option that moves, as it is now."""
        return float(self.constants[key])

    @property
    def moves(self) -> bool:
        """Whether a number of this term is another one at each step."""
        return bool(self.plan is not None or self.moving or self.learned is not None)

    def move_to(self, progress: float) -> None:
        """Take the numbers that belong to this part of training, 0 to 1."""
        if isinstance(self.plan, Schedule | Own):
            self.weight = self.plan(progress)
            if self.weight < 0:
                raise RecipeError(f"the weight of the term {self.name!r} must be 0 or more: {self.plan} gives {self.weight:g}", code="U075")
        for key, value in self.moving.items():
            self.constants[key] = value(progress)
        if self.learned is not None:
            self.reversal = 0.5 * (1.0 - math.cos(math.pi * min(1.0, progress / self.learned.over)))

    @property
    def hears(self) -> tuple[str, ...]:
        """The teacher's signals among what it reads."""
        return tuple(name for name in self.reads if name not in (LABELS, KEYS))

    def given(self, student: Signals) -> Any:
        """What `rows` takes of what the student says: its signal."""
        return said_by(student, self.signal, f"the term {self.name!r} reads the student's")

    @abstractmethod
    def rows(self, student: Any, batch: Batch) -> Tensor:
        """One value per row; rows without a label hold anything finite."""

    def forward(self, student: Signals, batch: Batch) -> Tensor:
        given = self.given(student)
        if LABELS in self.reads and batch.labels is None:
            return (given[0] if isinstance(given, list) else given).flatten()[:0].float().sum()  # 0, with the graph intact
        values = self.rows(given, batch)
        rows = len(given[0] if isinstance(given, list) else given)
        if values.shape != (rows,):
            shapes = f"there are {rows} rows, and it gave {list(values.shape)}"
            raise InputError(f"the loss of the term {self.name!r} must give one value per row; {shapes}", code="U073")
        counted = self._counted(batch)
        if counted is None:
            return values.mean()
        return torch.where(counted, values, 0.0).sum() / counted.sum().clamp_min(1)

    def _counted(self, batch: Batch) -> Tensor | None:
        """The rows that have everything this term reads, None when all have."""
        labelled = batch.labelled if LABELS in self.reads else None
        answered = batch.answered if batch.answered is not None and self.hears else None
        if labelled is None or answered is None:
            return answered if labelled is None else labelled
        return labelled & answered

    def labels_of(self, batch: Batch) -> Tensor:
        """The labels, 0 where there is none: NaN must not reach the gradient of any loss."""
        if batch.labels is None:
            raise InputError(f"the term {self.name!r} reads labels, and no row has one", code="U073")
        if batch.labelled is None:
            return batch.labels
        missing = ~batch.labelled.reshape(-1, *[1] * (batch.labels.ndim - 1))
        return batch.labels.masked_fill(missing, 0)

    def over_labels(self, value: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """What `value` makes of the labels; in mixed rows, of both labels in the shares of the mixture (mixup)."""
        own = value(self.labels_of(batch))
        if batch.partner is None or batch.share is None:
            return own
        return batch.share * own + (1 - batch.share) * value(batch.partner)

    def teacher_of(self, student: Tensor, batch: Batch) -> Tensor:
        """What the teacher says of these rows, in the signal and shape that the student gives."""
        teacher = said_by(batch.teacher, self.signal, f"the term {self.name!r} reads the teacher's")
        if teacher.shape != student.shape:
            shapes = f"the student's {self.signal} are {list(student.shape)}, the teacher's {list(teacher.shape)}"
            raise InputError(f"the term {self.name!r} compares answers of one shape; {shapes}", code="U073")
        return teacher

    @property
    def weight_text(self) -> str:
        """The weight, or how it moves."""
        return f"{self.weight:g}" if self.plan is None else str(self.plan)

    @property
    def evidence(self) -> list[str]:
        """What the formula shows of what is read."""
        return ["student", *["teacher"] * bool(self.hears), *["labels"] * (LABELS in self.reads)]

    def after_step(self) -> None:
        """What is to be remembered once the gradients of a step are there; nothing, for most."""

    def __str__(self) -> str:
        takes = inspect.signature(self.loss).parameters.values()
        defaults = {parameter.name: parameter.default for parameter in takes if parameter.kind is parameter.KEYWORD_ONLY}
        said = {**self.constants, **dict(self.named_buffers(recurse=False)), **self.moving}
        said |= {} if self.learned is None else {"temperature": self.learned}
        options = [f"{key}={short(value)}" for key, value in {**defaults, **said}.items() if value is not None]
        return f"{self.name}({', '.join([*self.evidence, *options])})"


@final
class OnLabels(Term):
    """A loss(student, labels): the student's logits or values against the labels."""

    reads = (LABELS,)
    signal = LOGITS

    def rows(self, student: Tensor, batch: Batch) -> Tensor:
        return self.over_labels(lambda labels: self.loss(student, labels, **self.options), batch)


@final
class OnLogits(Term):
    """A loss(student, teacher) on logits."""

    reads = (LOGITS,)
    signal = LOGITS

    def rows(self, student: Tensor, batch: Batch) -> Tensor:
        return self.loss(student, self.teacher_of(student, batch), **self.options)


@final
class OnFrames(Term):
    """A loss(student, teacher, lengths=) on the frames of a recognition: its mean over the frames of the batch that count."""

    reads = (LOGITS,)
    signal = LOGITS

    def rows(self, student: Tensor, batch: Batch) -> Tensor:
        teacher = self.teacher_of(student, batch)
        lengths = frame_lengths(teacher)
        values = self.loss(student, teacher, lengths=lengths, **self.options)
        counted = lengths.sum()
        if self.options.get("without_blank") is not None:
            inside = torch.arange(teacher.shape[1], device=teacher.device) < lengths[:, None]
            counted = (inside & (teacher.argmax(-1) != self.options["without_blank"])).sum()
        # such that the mean over rows is the mean over frames: a long row has as many votes as it has frames
        return values.sum(1) * (len(values) / counted.clamp(min=1))


@final
class OnLogitsAndLabels(Term):
    """A loss(student, teacher, labels) on logits, where there is a label."""

    reads = (LOGITS, LABELS)
    signal = LOGITS

    def rows(self, student: Tensor, batch: Batch) -> Tensor:
        teacher = self.teacher_of(student, batch)
        return self.over_labels(lambda labels: self.loss(student, teacher, labels, **self.options), batch)


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
        teacher = self.teacher_of(student, batch)
        return self.over_labels(lambda labels: self.loss(student, teacher, labels, **self.options), batch)


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
                code="U075",
            )
        self.weigh = weigh
        self.reads = (*[f"teachers/{name}/{self.signal}" for name in teachers], *[LABELS] * (weigh == "confidence"))

    def rows(self, student: Tensor, batch: Batch) -> Tensor:
        who = f"the term {self.name!r} reads the teachers'"
        teachers = torch.stack([said_by(batch.teacher, name, who) for name in self.reads if name != LABELS])
        if self.weigh is None:
            return self.loss(student, teachers, **self.options)
        weights = entropy_weights(teachers) if self.weigh == "entropy" else confidence_weights(teachers, self.labels_of(batch))
        return self.loss(student, teachers, weights=weights, **self.options)


@final
class OnTokens(Term):
    """A loss(student, teacher) position by position on logits [rows, time, classes]; plain logits are one position each.

    `places` says which positions count: a signal of the teacher [rows, time] that is true or above 0 there, or `labels`, where one
    of the labels [rows, time] is 0 or more. The term's mean is over positions, so that a short row counts as much as it is long.
    """

    signal = LOGITS

    def __init__(self, loss: Loss, *, places: str | None = None, **options: Any) -> None:
        super().__init__(loss, **options)
        self.places = places
        self.reads = (LOGITS,) if places is None else (LOGITS, places)

    def rows(self, student: Tensor, batch: Batch) -> Tensor:
        teacher = self.teacher_of(student, batch)
        counted = self._counted_places(student, batch)
        if student.ndim == 2:
            student, teacher = student[:, None], teacher[:, None]
        if student.ndim != 3:
            raise InputError(
                f"the term {self.name!r} compares logits [rows, time, classes] or [rows, classes], not {list(student.shape)}", code="U073"
            )
        if counted is None:
            return self.loss(student, teacher, **self.options).mean(1)
        values = self.loss(student, teacher, mask=counted, **self.options).sum(1)
        known = self._counted(batch)
        there = counted.sum(1) if known is None else counted.sum(1)[known]
        return values / there.float().mean().clamp_min(1e-12)

    def _counted_places(self, student: Tensor, batch: Batch) -> Tensor | None:
        """The positions that count, bool [rows, time]; None for all of them."""
        if self.places is None:
            return None
        said = self.labels_of(batch) >= 0 if self.places == LABELS else said_by(batch.teacher, self.places, f"the term {self.name!r} reads")
        if said.shape != student.shape[:-1]:
            raise InputError(
                f"the term {self.name!r}: {self.places} is {list(said.shape)}, the positions are {list(student.shape[:-1])}", code="U483"
            )
        return said if said.dtype == torch.bool else said > 0


@final
class OnTopK(Term):
    """A loss(student, ids, log_probabilities) on the teacher's largest classes as they are stored; the rest is never filled in."""

    reads = (f"{LOGITS}/ids", f"{LOGITS}/top")
    signal = LOGITS

    def rows(self, student: Tensor, batch: Batch) -> Tensor:
        ids, log_probabilities = (said_by(batch.teacher, name, f"the term {self.name!r} reads the stored") for name in self.reads)
        if student.ndim == 2:
            student, ids, log_probabilities = student[:, None], ids[:, None], log_probabilities[:, None]
        return self.loss(student, ids, log_probabilities, **self.options).mean(1)


@final
class OnTop(Term):
    """A loss(student, ids, top, tail): the student's logits beside the columns of a top-k store, which stay as they are."""

    reads = TOP_COLUMNS
    signal = LOGITS

    def rows(self, student: Tensor, batch: Batch) -> Tensor:
        who = f"the term {self.name!r} reads the teacher's"
        return self.loss(student, *[said_by(batch.teacher, name, who) for name in TOP_COLUMNS], **self.options)


class _Reversed(torch.autograd.Function):
    """The same number forwards; backwards the gradient times -scale."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradient, None


def check_options(loss: Loss, name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that the loss does not take, before training."""
    takes = inspect.signature(loss).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes):
        return
    there = [parameter.name for parameter in takes if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in there:
            hint = did_you_mean(option, there) if there else "it has none"
            raise RecipeError(f"the loss {name!r} has no option {option!r}; {hint}", code="U075")


def said_by(signals: Signals, wanted: str, who: str) -> Tensor:
    """A signal by its name; InputError with those there are."""
    if wanted not in signals:
        there = ", ".join(sorted(signals)) or "nothing"
        raise InputError(f"{who} {wanted!r}, but there is: {there}", code="U073")
    return signals[wanted]


def short(value: Any) -> str:
    """A number, a list of them or a word, as a formula shows it."""
    if isinstance(value, Tensor):
        return f"{value.numel()} numbers" if value.numel() > 6 else "[" + ", ".join(f"{number:g}" for number in value.tolist()) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
