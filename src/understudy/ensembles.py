"""Several teachers as one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from understudy.answers import Combine, combined, mean_answer
from understudy.errors import TeacherError, did_you_mean
from understudy.signals import Signals, ending_alike
from understudy.tasks import Task
from understudy.teachers import Layered, Matched, Teacher


@final
class Ensemble:
    """Several teachers as one: the mean of their probabilities, or of their values; columns follow the first member's names.

    `weights` count each member, `combine` says what is averaged (understudy.answers.combined); what needs labels is the
    average here, for a teacher is asked without them. With `names`, what each member says is a signal of its own beside the
    mean: `teachers/NAME/logits`. Members that know some classes only are `Matched` with -1 for the others.
    """

    def __init__(
        self,
        members: Sequence[Teacher],
        *,
        task: Task,
        names: Sequence[str] = (),
        weights: Sequence[float] | None = None,
        combine: Combine = "probabilities",
    ) -> None:
        if not members:
            raise TeacherError("an ensemble needs at least one member", code="U010")
        if names and (len(names) != len(members) or len(set(names)) != len(names)):
            raise TeacherError(f"{len(members)} members need as many different names; there are: {', '.join(names)}", code="U323")
        self.names = tuple(names)
        self.members = tuple(members)
        self.task = task
        self.name = "ensemble of " + ", ".join(member.name for member in members)
        self.classes = members[0].classes
        self._orders = [_order_of(member, members[0], number) for number, member in enumerate(members)]
        self.combine: Combine = combine
        self.weights = None if weights is None or len(set(weights)) == 1 else torch.tensor(list(weights), dtype=torch.float64)
        self.knows = _known(members, task)
        if combine in ("entropy", "confidence") and not task.single_label:
            raise TeacherError(
                f"teacher.combine = {combine!r} is for classes that exclude each other, the task is {task.kind}: use 'probabilities'",
                code="U357",
            )

    def signals(self, inputs: Any) -> Signals:
        said, layers = [], dict[str, Tensor]()
        for number, (member, order) in enumerate(zip(self.members, self._orders, strict=True)):
            whole = member.signals(inputs)
            answer = whole[self.task.signal]
            said.append(answer if order is None else answer[:, order])
            layers |= {f"teachers/{self.names[number]}/{name}": value for name, value in whole.items() if name.startswith("features/")}
        if len({answer.shape for answer in said}) != 1:
            shapes = [tuple(answer.shape) for answer in said]
            raise TeacherError(f"the ensemble's members give different shapes: {shapes}; name their classes", code="U010")
        own = {f"teachers/{name}/{self.task.signal}": answer for name, answer in zip(self.names, said, strict=False)}
        return {self.task.signal: self.together(torch.stack(said)), **own, **layers}

    @property
    def layers(self) -> tuple[str, ...]:
        """Those of all members, as `teachers/NAME/LAYER`."""
        named = zip(self.names, self.members, strict=False)  # without names they say no layers
        return tuple(f"teachers/{name}/{layer}" for name, member in named if isinstance(member, Layered) for layer in member.layers)

    def giving(self, members: Mapping[str, Teacher]) -> Ensemble:
        """The same ensemble with other voices of some named members, which say layers too: `teachers/NAME/features/<layer>`."""
        made = copy.copy(self)
        made.members = tuple(members.get(name, member) for name, member in zip(self.names, self.members, strict=True))
        return made

    def together(self, said: Tensor, labels: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """One answer from those of the members [members, rows, columns], with the labels of the rows where they are known."""
        if self.combine == "probabilities" and self.weights is None and self.knows is None:
            mean = mean_answer(said, self.task)
        else:
            options: dict[str, Any] = {"combine": self.combine, "weights": self.weights, "knows": self.knows}
            mean = combined(said, self.task, **options, labels=labels, temperature=temperature)
        return ending_alike(mean, said) if self.task.kind == "recognition" else mean

    def fingerprint(self) -> dict[str, str]:
        how: dict[str, str] = {} if self.combine == "probabilities" else {"combine": self.combine}
        how |= {} if self.weights is None else {"weights": " ".join(f"{weight:g}" for weight in self.weights.tolist())}
        return how | {
            f"member {number} {part}": value for number, member in enumerate(self.members) for part, value in member.fingerprint().items()
        }

    def parameters(self) -> int | None:
        counts = [member.parameters() for member in self.members]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None


def _known(members: Sequence[Teacher], task: Task) -> Tensor | None:
    """Which member knows which class, bool [members, classes]; None when all know all. TeacherError U358 for a class none knows."""
    orders = [member.order if isinstance(member, Matched) else (0,) * task.outputs for member in members]
    knows = torch.tensor([[column >= 0 for column in order] for order in orders])
    lacking = [name for name, known in zip(task.classes, knows.any(0).tolist(), strict=False) if not known]
    if lacking:
        raise TeacherError(
            f"no member knows the class {lacking[0]!r}: add a teacher that does, or name its column with that word", code="U358"
        )
    return None if bool(knows.all()) else knows


def _order_of(member: Teacher, first: Teacher, number: int) -> list[int] | None:
    if member is first or member.classes is None or first.classes is None or member.classes == first.classes:
        return None
    lacking = [name for name in first.classes if name not in member.classes]
    if lacking:
        raise TeacherError(
            f"ensemble member {number} ({member.name}) has no class {lacking[0]!r}; {did_you_mean(lacking[0], member.classes)}", code="U010"
        )
    return [member.classes.index(name) for name in first.classes]
