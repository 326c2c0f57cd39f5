"""Terms that read layers, joined to a student and a teacher: which layers, what the teacher is asked for, and connectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from understudy.data.rows import narrowed
from understudy.ensembles import Ensemble
from understudy.errors import InputError, did_you_mean
from understudy.features import Member, OnTeachersEmbedding, signal_of
from understudy.objectives import Objective
from understudy.signals import Signals
from understudy.students.student import Student, evaluating
from understudy.taps import INPUT, Layer, embedding_layer, taps, trace
from understudy.teachers import Matched, Reading, Teacher, TorchTeacher

ROWS = 4
"""Rows on which shapes are found."""


@final
@dataclass(frozen=True)
class Wired:
    """The teacher that gives the layers too, and a line for each pair that was found."""

    teacher: Teacher
    pairs: tuple[str, ...]


def wire(objective: Objective, student: Student, teacher: Teacher, inputs: Any) -> Wired:
    """Settle which layers the terms read, from one pass of a few raw rows through both; InputError U340 to U344 beforehand."""
    if student.module is None:
        raise InputError("a term reads layers, and this student has none; take a network, or a loss on logits", code="U340")
    speaker = network_of(teacher)
    ours, theirs = trace(student.module, student.encode(inputs)), _trace(speaker, _given(teacher, inputs))
    objective.resolve(ours, theirs)
    wired = _with_members(objective, with_layers(teacher, objective.teacher_layers), inputs)
    probe(objective, student, inputs, wired.signals(inputs))  # names and shapes are tried here, before anything is taught
    shown = [f"{term.name}: {one} with {other}" for term in objective.feature_terms() for one, other in term.pairs]
    return Wired(wired, tuple(shown))


def probe(
    objective: Objective,
    student: Student,
    inputs: Any,
    taught: Signals,
    *,
    keys: Tensor | None = None,
    labels: Tensor | None = None,
    seed: int = 0,
) -> None:
    """Make the connectors for this student, from what it and the teacher give of a few raw rows."""
    assert student.module is not None
    with taps(student.module, objective.layers) as read, evaluating(student.module), torch.no_grad():
        answer = student.module(student.encode(inputs))
        said = {student.task.signal: answer, **{signal_of(layer): value for layer, value in read.items()}}
    objective.connect(said, taught, keys=torch.tensor([[0, 0], [0, 1]]) if keys is None else keys, labels=labels, seed=seed)


def network_of(teacher: Teacher) -> TorchTeacher | None:
    """The torch teacher behind this one; None where its layers cannot be read."""
    if isinstance(teacher, Matched | Reading):
        return network_of(teacher.teacher)
    if isinstance(teacher, Student):
        return None if teacher.module is None else _as_teacher(teacher)
    return teacher if isinstance(teacher, TorchTeacher) else None


def with_layers(teacher: Teacher, layers: tuple[str, ...]) -> Teacher:
    """The same teacher, that gives `features/<layer>` beside its answers; InputError U340 when it is no network."""
    if not layers:
        return teacher
    if isinstance(teacher, Matched):
        return Matched(with_layers(teacher.teacher, layers), teacher.order, task=teacher.task)
    if isinstance(teacher, Reading):
        return Reading(with_layers(teacher.teacher, layers), teacher.names)
    speaker = network_of(teacher)
    if speaker is None:
        who = "an ensemble" if isinstance(teacher, Ensemble) else "no torch network"
        raise InputError(
            f"a term reads layers of the teacher ({', '.join(layers)}), and {teacher.name} is {who}: it gives answers only. Give a torch "
            "teacher, or take a loss on logits",
            code="U340",
        )
    return speaker.giving(layers)


def _with_members(objective: Objective, teacher: Teacher, inputs: Any) -> Teacher:
    """The ensemble whose named members give their embeddings, where a term reads those; the term is told where they are."""
    terms = [term for term in objective.feature_terms() if isinstance(term, OnTeachersEmbedding)]
    if not terms:
        return teacher
    named = dict(zip(teacher.names, teacher.members, strict=True)) if isinstance(teacher, Ensemble) and teacher.names else {}
    members, voices = dict[str, Member](), dict[str, Teacher]()
    for name in dict.fromkeys(name for term in terms for name in term.teachers):
        if name not in named:
            raise InputError(
                f"a term reads the embedding of {name!r}; {did_you_mean(name, named) if named else 'name the teacher.members'}", code="U487"
            )
        member, network = named[name], network_of(named[name])
        if network is None or isinstance(member, Matched):
            raise InputError(
                f"a term reads the embedding of {name!r}, which is no torch network with the data's classes in their order; take it out of "
                "the term's teachers",
                code="U487",
            )
        layer = embedding_layer(_trace(network, _given(member, inputs)))
        head = network.module.get_submodule(layer.removesuffix(INPUT))
        assert isinstance(head, nn.Linear)
        members[name] = Member(layer, head.weight, head.bias)
        voices[name] = with_layers(member, (layer,))
    for term in terms:
        term.meet(members)
    assert isinstance(teacher, Ensemble)
    return teacher.giving(voices)


def _as_teacher(student: Student) -> TorchTeacher:
    assert student.module is not None
    return TorchTeacher(
        student.module,
        task=student.task,
        classes=student.classes,
        prepare=student.encode,
        name=student.name,
        output="logits" if student.task.signal == "logits" else "values",
        preparation="as the student's",
    )


def _given(teacher: Teacher, inputs: Any) -> Any:
    """What the network behind a teacher is given of these inputs."""
    if isinstance(teacher, Matched | Reading):
        return _given(teacher.teacher, narrowed(inputs, teacher.names) if isinstance(teacher, Reading) else inputs)
    return inputs


def _trace(teacher: TorchTeacher | None, inputs: Any) -> list[Layer]:
    return [] if teacher is None else trace(teacher.module, teacher.prepared(inputs))
