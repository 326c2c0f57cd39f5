"""Terms that read layers: any loss between layers, embeddings, relations of rows or contrasts, bound to named submodules.

The student's layers are read with understudy.taps, the teacher's come as signals `features/<layer>`. What a loss can compare
is read from the axes it declares: axes of one name must have one size, which a connector sees to. Connectors are
parameters of the term: trained and checkpointed with it, and no part of the student.
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from understudy.contrasts import MemoryBank
from understudy.errors import InputError, RecipeError, did_you_mean
from understudy.losses.contrastive import log_partition
from understudy.losses.ensembles import confidence_weights
from understudy.signals import LOGITS, VALUES, Batch, Signals
from understudy.taps import (
    AttentionConnector,
    ConvolutionConnector,
    Exit,
    Layer,
    LinearConnector,
    embedding_layer,
    pair_stages,
    stages,
)
from understudy.terms import KEYS, LABELS, Loss, Term, said_by

AUTO, FEATURES, EMBEDDING = "auto", "features/", "embedding"
CONNECTORS = ("auto", "none", "linear", "convolution", "attention")
ANSWERS = (LOGITS, VALUES, EMBEDDING)
"""Names that are signals by themselves; every other one is a layer."""

Where = Literal["stages", "embedding", "answers"]


def signal_of(layer: str) -> str:
    """The signal in which a layer's output is found."""
    return layer if layer in ANSWERS else FEATURES + layer


@final
@dataclass(frozen=True)
class Axes:
    """What a loss says of its two sides: axes of one name must have one size; None where it does not say."""

    student: tuple[str, ...] | None
    teacher: tuple[str, ...] | None
    paired: bool

    @staticmethod
    def of(loss: Loss) -> Axes:
        """Read from the annotations, `Float[Tensor, "batch channels *positions"]`; a tuple of them is a pair of layers."""
        said = [str(parameter.annotation) for parameter in list(inspect.signature(loss).parameters.values())[:2]]
        named = [re.findall(r"\[Tensor, ['\"]([^'\"]*)['\"]\]", text) for text in said]
        sides = [tuple(names[0].split()) if names else None for names in named]
        return Axes(sides[0], sides[1], paired=said[0].startswith("tuple["))

    @property
    def same_channels(self) -> bool:
        """Whether the axis after the rows must have one size."""
        return self._same(slice(1, 2))

    @property
    def same_size(self) -> bool:
        """Whether all axes after that must have one size."""
        return self._same(slice(2, None))

    def _same(self, part: slice) -> bool:
        return self.student is None or self.teacher is None or self.student[part] == self.teacher[part]

    @property
    def flat(self) -> bool:
        """Whether the loss reads one vector per row."""
        return self.student is not None and len(self.student) == 2 and not self.student[1].startswith("*")


class FeatureTerm(Term, ABC):
    """A term on pairs of a student's and a teacher's layer; its value is the sum over the pairs.

    `student` and `teacher` name layers (one, or a list of as many), or `auto`: all stages, or the embedding, whatever the
    kind of loss reads. `resolve` settles `auto`, `connect` makes the connectors.
    """

    signal = LOGITS
    reads: tuple[str, ...] = ()
    where: Where = "stages"
    fewest = 1
    """Rows that a batch must have to say anything."""
    also: tuple[str, ...] = ()
    """What is read beside the teacher's signals."""

    def __init__(
        self,
        loss: Loss,
        *,
        weight: Any = 1.0,
        name: str,
        signal: str | None = None,
        student: str | Sequence[str] = AUTO,
        teacher: str | Sequence[str] = AUTO,
        connector: str = AUTO,
        **options: Any,
    ) -> None:
        super().__init__(loss, weight=weight, name=name, signal=signal, **options)
        if connector not in CONNECTORS:
            raise RecipeError(f"the term {name!r}: connector = {connector!r}; {did_you_mean(connector, CONNECTORS)}", code="U342")
        self.asked, self.axes, self.connector = (_listed(student), _listed(teacher)), Axes.of(loss), connector
        self.pairs: tuple[tuple[str, str], ...] = ()
        self.connectors, self.variances = nn.ModuleList(), nn.ParameterList()
        ours, theirs = self.asked
        if self.where == "answers" and self.asked == ([AUTO], [AUTO]):
            self._settle([(self.signal, self.signal)])
        elif AUTO not in ours + theirs:
            if len(ours) != len(theirs):
                raise RecipeError(
                    f"the term {name!r} names {len(ours)} layers of the student and {len(theirs)} of the teacher; name as many", code="U344"
                )
            self._settle(list(zip(ours, theirs, strict=True)))

    def _settle(self, pairs: list[tuple[str, str]]) -> None:
        if self.axes.paired and len(pairs) < 2:
            raise RecipeError(f"the term {self.name!r} compares how two layers go together; name two or more of each side", code="U344")
        self.pairs = tuple(pairs)
        self.reads = (*dict.fromkeys(signal_of(theirs) for _, theirs in pairs), *self.also)

    @property
    def layers(self) -> tuple[str, ...]:
        """The student's layers to read."""
        return tuple(ours for ours, _ in self.pairs if ours not in ANSWERS)

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        """The teacher's layers to ask for."""
        return tuple(theirs for _, theirs in self.pairs if theirs not in ANSWERS)

    def resolve(self, student: Sequence[Layer], teacher: Sequence[Layer]) -> None:
        """Put layers in place of `auto`."""
        if self.pairs:
            return
        ours, theirs = self.asked
        if self.where == "embedding":
            ours = [embedding_layer(student)] if ours == [AUTO] else ours
            theirs = [embedding_layer(teacher)] if theirs == [AUTO] else theirs
        elif [AUTO] not in (ours, theirs) or ours != theirs:
            raise RecipeError(f"the term {self.name!r} names layers of one side only; name both, or neither", code="U344")
        else:
            found = pair_stages(student, teacher)
            ours, theirs = [one.path for one, _ in found], [other.path for _, other in found]
        self._settle(list(zip(ours, theirs, strict=True)))

    def connect(
        self, student: Signals, teacher: Signals, *, keys: Tensor | None = None, labels: Tensor | None = None, seed: int = 0
    ) -> None:
        """Make the connectors for what both give of a few rows; InputError U342 where nothing can connect them."""
        shapes = [
            (
                self._shaped(said_by(student, signal_of(ours), self._asks("student"))),
                self._shaped(said_by(teacher, signal_of(theirs), self._asks("teacher"))),
            )
            for ours, theirs in self.pairs
        ]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = [self._connector(at, tuple(ours.shape[1:]), tuple(theirs.shape[1:]), shapes) for at, (ours, theirs) in enumerate(shapes)]
            self.connectors = nn.ModuleList(made if any(not isinstance(one, nn.Identity) for one in made) else [])
        takes = inspect.signature(self.loss).parameters
        if "raw_variances" in takes and "raw_variances" not in self.constants:
            start = math.log(math.expm1(5.0 - 1e-5))
            self.variances = nn.ParameterList([nn.Parameter(torch.full((theirs.shape[1],), start)) for _, theirs in shapes])

    def _connector(self, at: int, ours: tuple[int, ...], theirs: tuple[int, ...], shapes: list[tuple[Tensor, Tensor]]) -> nn.Module:
        where = f"the term {self.name!r} on {self.pairs[at][0]} {list(ours)} and {self.pairs[at][1]} {list(theirs)} (rows left out)"
        same = (ours[:1] == theirs[:1] or not self.axes.same_channels) and (ours[1:] == theirs[1:] or not self.axes.same_size)
        if self.connector == "none" or (self.connector == "auto" and same):
            if not same:
                raise InputError(f'{where}: the loss needs equal sizes; set connector = "auto"', code="U342")
            return nn.Identity()
        if len(ours) != len(theirs):
            raise InputError(f"{where}: no connector goes from {len(ours)} axes to {len(theirs)}; name other layers", code="U342")
        if len(ours) == 3 and self.connector in ("auto", "convolution", "attention"):
            size = (theirs[1], theirs[2]) if self.axes.same_size else (ours[1], ours[2])
            if self.connector == "attention":
                middle = min(512, max(target.shape[1] for _, target in shapes))
                return AttentionConnector(ours[0], theirs[0], size, middle=middle, deeper=at + 1 < len(shapes))
            return ConvolutionConnector(ours[0], theirs[0], size)
        if len(ours) < 3 and self.connector in ("auto", "linear") and ours[:-1] == theirs[:-1]:
            return LinearConnector(ours[-1], theirs[-1])
        raise InputError(f"{where}: a connector of kind {self.connector!r} cannot make these alike; name other layers", code="U342")

    def _asks(self, who: str) -> str:
        return f"the term {self.name!r} reads the {who}'s"

    def _shaped(self, values: Tensor) -> Tensor:
        """One vector per row where the loss reads that: the mean over positions."""
        values = values if values.dtype in (torch.float32, torch.float64) else values.float()
        if not self.axes.flat or values.ndim < 3:
            return values
        return values.mean(1) if values.ndim == 3 else values.flatten(2).mean(2)

    def given(self, student: Signals) -> list[Tensor]:
        """The student's layers, through the connectors."""
        if not self.pairs:
            raise InputError(
                f"the term {self.name!r} does not know its layers yet; name them, or call Objective.connect first", code="U344"
            )
        said = [self._shaped(said_by(student, signal_of(ours), self._asks("student"))) for ours, _ in self.pairs]
        if not self.connectors:
            return said
        handed: Tensor | None = None
        for at in range(len(said) - 1, -1, -1):  # the deepest first: attention hands on what it fused
            part = self.connectors[at]
            if isinstance(part, AttentionConnector):
                said[at], handed = part(said[at], handed)
            else:
                said[at] = part(said[at])
        return said

    def rows(self, student: list[Tensor], batch: Batch) -> Tensor:
        if len(batch.inputs) < self.fewest:
            raise InputError(
                f"the term {self.name!r} compares the rows of a batch, and there is one; set train.batch_size to 2 or more", code="U343"
            )
        teacher = [self._shaped(said_by(batch.teacher, signal_of(theirs), self._asks("teacher"))) for _, theirs in self.pairs]
        if self.axes.paired:
            ours, theirs = (list(itertools.pairwise(side)) for side in (student, teacher))
            values = [self.loss(one, other, **self.options) for one, other in zip(ours, theirs, strict=True)]
        else:
            values = [self.loss(one, other, **self._options(at)) for at, (one, other) in enumerate(zip(student, teacher, strict=True))]
        return values[0] if len(values) == 1 else torch.stack(values).sum(0)

    def _options(self, at: int) -> dict[str, Any]:
        return {**self.options, "raw_variances": self.variances[at]} if len(self.variances) else self.options

    @property
    def evidence(self) -> list[str]:
        """What the formula shows of what is read."""
        shown = [f"student.{ours}, teacher.{theirs}" for ours, theirs in self.pairs]
        return shown or [f"student.{' + '.join(self.asked[0])}", f"teacher.{' + '.join(self.asked[1])}"]


@final
class OnLayers(FeatureTerm):
    """A loss(student, teacher) between layers; `auto` is every pair of stages."""

    where = "stages"


@final
class OnAnswers(FeatureTerm):
    """A loss(student, teacher) on answers with a place for every pixel, or on maps that are named."""

    where = "answers"


@final
class OnEmbedding(FeatureTerm):
    """A loss(student, teacher) between embeddings; `auto` is what goes into the last linear layer."""

    where = "embedding"


@final
class OnRelations(FeatureTerm):
    """A loss(student, teacher) on how the rows of a batch stand to each other, read from embeddings or layers."""

    where = "embedding"
    fewest = 2


@final
class OnContrast(FeatureTerm):
    """Telling a row's embedding from those of other rows, kept in two memory banks by content key (CRD).

    Both sides are projected to `width` by connectors that are trained. `negatives` are drawn for each row, at most as many as
    there are others; with labels, from other classes.
    """

    where = "embedding"
    also = (KEYS,)

    def __init__(
        self, loss: Loss, *, width: int = 128, negatives: int = 16384, momentum: float = 0.5, exclude_class: bool = True, **said: Any
    ) -> None:
        super().__init__(loss, **said)
        self.width, self.negatives, self.momentum, self.exclude_class = width, negatives, momentum, exclude_class
        self.banks, self.pending = nn.ModuleList(), list[tuple[Tensor, Tensor, Tensor]]()
        if len(self.pairs) > 1:
            raise RecipeError(f"the term {self.name!r} reads one embedding of each side", code="U344")

    def connect(
        self, student: Signals, teacher: Signals, *, keys: Tensor | None = None, labels: Tensor | None = None, seed: int = 0
    ) -> None:
        if keys is None:
            raise InputError(f"the term {self.name!r} keeps embeddings by content key: give the keys of the training rows", code="U345")
        ours, theirs = (
            self._shaped(said_by(side, signal_of(layer), self._asks(who)))
            for side, layer, who in ((student, self.pairs[0][0], "student"), (teacher, self.pairs[0][1], "teacher"))
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.connectors = nn.ModuleList([LinearConnector(side.shape[1], self.width) for side in (ours, theirs)])
        unique, inverse = torch.unique(keys, dim=0, return_inverse=True)
        known = None
        if self.exclude_class and labels is not None and labels.ndim == 1 and bool((labels >= 0).all()):
            known = labels.new_zeros(len(unique)).scatter(0, inverse, labels)
        made = [MemoryBank(unique, self.width, seed=seed * 2 + side, labels=known, momentum=self.momentum) for side in range(2)]
        self.banks = nn.ModuleList(made)

    def given(self, student: Signals) -> list[Tensor]:
        return [self._shaped(said_by(student, signal_of(self.pairs[0][0]), self._asks("student")))]

    def rows(self, student: list[Tensor], batch: Batch) -> Tensor:
        if not len(self.banks) or batch.keys is None:
            raise InputError(f"the term {self.name!r} has no memory bank; call Objective.connect with the keys of the rows", code="U345")
        heard = self._shaped(said_by(batch.teacher, signal_of(self.pairs[0][1]), self._asks("teacher")))
        ours, theirs = (functional.normalize(part(side)) for part, side in zip(self.connectors, (student[0], heard), strict=True))
        one, other = self.banks
        assert isinstance(one, MemoryBank) and isinstance(other, MemoryBank)
        positions = one.positions(batch.keys)
        drawn = one.draw(positions, min(self.negatives, len(one) - 1))
        temperature = self.options.get("temperature", inspect.signature(self.loss).parameters["temperature"].default)
        with torch.no_grad():
            constants = {
                "student_log_partition": one.partition(lambda: log_partition(ours, other.embeddings, drawn, temperature=temperature)),
                "teacher_log_partition": other.partition(lambda: log_partition(theirs, one.embeddings, drawn, temperature=temperature)),
            }
        if self.training:
            self.pending.append((positions, ours.detach(), theirs.detach()))
        banks = {"student_bank": one.embeddings, "teacher_bank": other.embeddings, "positions": drawn}
        return self.loss(ours, theirs, **banks, **constants, **self.options)

    def after_step(self) -> None:
        """Blend the embeddings of the step's rows into the banks: after the gradients, which read the banks as they were."""
        for positions, *sides in self.pending:
            for bank, embeddings in zip(self.banks, sides, strict=True):
                assert isinstance(bank, MemoryBank)
                bank.update(positions, embeddings)
        self.pending.clear()


@final
class OnExits(FeatureTerm):
    """A loss on early exits of the student: classifiers on its layers, thrown away after training, that hear its own answer.

    `loss(exit, answer)`, `loss(exit, labels)` or `loss(exit, answer, labels)`, summed over the layers; the answer is a constant.
    `auto` is every stage but the last. No teacher is needed: Zhang et al. 2019, Be Your Own Teacher, arXiv:1905.08094, section 3.
    """

    where = "stages"

    def __init__(self, loss: Loss, *, teacher: str = AUTO, **said: Any) -> None:
        takes = inspect.signature(loss).parameters
        self.hears_itself, self.also = "teacher" in takes or LABELS not in takes, (LABELS,) * (LABELS in takes)
        student = _listed(said.pop("student", AUTO))
        super().__init__(loss, student=student, teacher=[AUTO] * len(student), **said)
        if teacher != AUTO or self.connector != "auto":
            raise RecipeError(f"the term {self.name!r} is on exits of the student: leave out teacher and connector", code="U344")
        if AUTO not in student:
            self._settle([(layer, self.signal) for layer in student])

    def _settle(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs, self.reads = tuple(pairs), self.also

    def resolve(self, student: Sequence[Layer], teacher: Sequence[Layer]) -> None:
        if self.pairs:
            return
        found = stages(student)
        if len(found) < 2:
            raise InputError(f"the term {self.name!r}: the student has {len(found)} stages, so no early one; name layers", code="U341")
        self._settle([(layer.path, self.signal) for layer in found[:-1]])

    def connect(
        self, student: Signals, teacher: Signals, *, keys: Tensor | None = None, labels: Tensor | None = None, seed: int = 0
    ) -> None:
        answers = said_by(student, self.signal, self._asks("student")).shape[1]
        shapes = [tuple(said_by(student, signal_of(layer), self._asks("student")).shape[1:]) for layer in self.layers]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.connectors = nn.ModuleList([Exit(shape, answers) for shape in shapes])

    def given(self, student: Signals) -> list[Tensor]:
        """What each exit says, then the student's own answer, from which no gradient flows."""
        if len(self.connectors) != len(self.pairs) or not self.pairs:
            raise InputError(f"the term {self.name!r} has no exits yet; call Objective.resolve and Objective.connect first", code="U344")
        said = [said_by(student, signal_of(layer), self._asks("student")).float() for layer in self.layers]
        exits = [leave(values) for leave, values in zip(self.connectors, said, strict=True)]
        return [*exits, said_by(student, self.signal, self._asks("student")).detach()]

    def rows(self, student: list[Tensor], batch: Batch) -> Tensor:
        *exits, answer = student
        evidence = [*[answer] * self.hears_itself, *[self.labels_of(batch)] * bool(self.also)]
        return torch.stack([self.loss(each, *evidence, **self.options) for each in exits]).sum(0)

    @property
    def evidence(self) -> list[str]:
        """What the formula shows of what is read."""
        shown = [f"exit({ours})" for ours, _ in self.pairs] or ["exits of stages"]
        return [*shown, *["student"] * self.hears_itself, *self.also]


@final
@dataclass(frozen=True)
class Member:
    """One of several teachers as a term on their embeddings knows it: where its embedding is, and the linear map that reads it."""

    layer: str
    weight: Tensor
    bias: Tensor | None


@final
class OnTeachersEmbedding(FeatureTerm):
    """A loss(student, teacher) between the student's embedding and that of each named member of an ensemble, weighed row by row.

    sum_k w_k loss(r_k(student), teacher_k), r_k a linear map that is trained, and w_k the confidence of teacher k's own last linear
    map in the label when it reads r_k(student): the feature term of CA-MKD. Zhang, Chen & Wang 2022, arXiv:2201.00007, section 3.2,
    published with weight 50 from the second epoch on.
    """

    where = "embedding"
    also = (LABELS,)

    def __init__(self, loss: Loss, *, teachers: Sequence[str] = (), teacher: str = AUTO, **said: Any) -> None:
        super().__init__(loss, teacher=AUTO, **said)
        if isinstance(teachers, str) or len(teachers) < 2 or teacher != AUTO or len(self.asked[0]) > 1 or self.connector != "auto":
            raise RecipeError(
                f"the term {self.name!r} takes teachers = a list of two names or more of teacher.members, and one layer of the student at "
                f"most (got teachers = {teachers!r})",
                code="U487",
            )
        self.teachers, self.heads = tuple(teachers), nn.ModuleList()

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        return ()

    def resolve(self, student: Sequence[Layer], teacher: Sequence[Layer]) -> None:
        ours = embedding_layer(student) if self.asked[0] == [AUTO] else self.asked[0][0]
        self.pairs = tuple((ours, f"the embedding of {name}") for name in self.teachers)

    def meet(self, members: Mapping[str, Member]) -> None:
        """Learn where each teacher's embedding is, and what reads it."""
        self.reads = (*(f"teachers/{name}/{signal_of(members[name].layer)}" for name in self.teachers), *self.also)
        self.heads = nn.ModuleList(_frozen(members[name]) for name in self.teachers)

    def connect(
        self, student: Signals, teacher: Signals, *, keys: Tensor | None = None, labels: Tensor | None = None, seed: int = 0
    ) -> None:
        ours = self._flat(said_by(student, signal_of(self.pairs[0][0]), self._asks("student")))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            widths = [self._flat(said_by(teacher, name, f"the term {self.name!r} reads")).shape[1] for name in self.hears]
            self.connectors = nn.ModuleList([LinearConnector(ours.shape[1], width) for width in widths])

    def given(self, student: Signals) -> list[Tensor]:
        if not self.pairs or not self.connectors:
            raise InputError(f"the term {self.name!r} does not know its teachers yet; wire it to an ensemble first", code="U344")
        ours = self._flat(said_by(student, signal_of(self.pairs[0][0]), self._asks("student")))
        return [connect(ours) for connect in self.connectors]

    def rows(self, student: list[Tensor], batch: Batch) -> Tensor:
        teachers = [self._flat(said_by(batch.teacher, name, f"the term {self.name!r} reads")) for name in self.hears]
        with torch.no_grad():
            answers = torch.stack([head(each) for head, each in zip(self.heads, student, strict=True)])
            weights = confidence_weights(answers, self.labels_of(batch))
        return (weights * torch.stack([self.loss(one, other, **self.options) for one, other in zip(student, teachers, strict=True)])).sum(0)

    def _flat(self, values: Tensor) -> Tensor:
        return values.float() if values.ndim == 2 else values.float().flatten(2).mean(2) if values.ndim == 4 else values.float().mean(1)

    @property
    def evidence(self) -> list[str]:
        """What the formula shows of what is read."""
        return ["student's embedding", *(f"embedding of {name}" for name in self.teachers), LABELS]


def _frozen(member: Member) -> nn.Linear:
    head = nn.Linear(member.weight.shape[1], member.weight.shape[0], bias=member.bias is not None)
    with torch.no_grad():
        head.weight.copy_(member.weight)
        if member.bias is not None:
            head.bias.copy_(member.bias)
    return head.requires_grad_(False)


def _listed(said: str | Sequence[str]) -> list[str]:
    return [said] if isinstance(said, str) else list(said)


def asked_layers(options: Mapping[str, Any]) -> dict[str, Any]:
    """The words of a term that name layers, out of all that a recipe says of it."""
    return {name: options[name] for name in ("student", "teacher", "connector") if options.get(name) is not None}
