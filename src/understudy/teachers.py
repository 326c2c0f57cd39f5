"""Teachers: anything that maps raw inputs to signals, and the public checks that any teacher must pass.

A teacher owns its preprocessing; it gives the same answer whatever else is in the batch, leaves no gradient behind and
comes back as it was. Adding one: write the four members of `Teacher` and run `check_teacher` on it. How a teacher's
columns are matched with the data's classes is in understudy.answers.
"""

from __future__ import annotations

import hashlib
import inspect
import platform
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from understudy.answers import UNKNOWN, Output, as_tensor, looks_like, to_logits
from understudy.data.rows import narrowed, taken
from understudy.errors import TeacherError, UnderstudyError
from understudy.signals import LOGITS, Signals, is_answered
from understudy.taps import taps
from understudy.tasks import Task


class Teacher(Protocol):
    """Anything that maps inputs to signals.

    `classes` are its own names in its own order, None when it has none. `inputs` is a slice of `Rows.inputs`.
    """

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...] | None: ...

    def signals(self, inputs: Any) -> Signals:
        """`logits` [rows, classes] or `values` [rows, 1], float32 on the CPU."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """Named parts that decide its answers: weights, code, preprocessing, versions."""
        ...

    def parameters(self) -> int | None:
        """How many numbers it has learned, None when it cannot be known."""
        ...


@runtime_checkable
class Refittable(Protocol):
    """A teacher that can be fitted again on part of the rows, for out-of-fold answers."""

    @property
    def self_scoring(self) -> bool:
        """Whether it remembers its training rows so well that asking it about them says nothing."""
        ...

    def refit(self, inputs: Any, labels: np.ndarray[Any, Any]) -> Teacher:
        """A fresh copy fitted on these rows; `labels` follow understudy.tasks with the teacher's own column indices."""
        ...


@runtime_checkable
class Layered(Protocol):
    """A teacher whose signals may hold what its layers give, which can be thousands of numbers a row."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Whose outputs it gives beside its answers."""
        ...


@runtime_checkable
class Remote(Protocol):
    """A teacher asked over a network: it says first what it will cost, and may have no answer to a row (NaN in every column)."""

    @property
    def max_missing(self) -> float:
        """The largest share of rows that may stay without an answer."""
        ...

    def quote(self, inputs: Any, further: int = 0) -> str:
        """What asking these rows, and `further` ones like them, takes; nothing is asked."""
        ...


@runtime_checkable
class Composed(Protocol):
    """A teacher that is several."""

    members: tuple[Teacher, ...]


@runtime_checkable
class PreparesOwn(Protocol):
    """A preparation that need not copy rows which nobody else holds."""

    def of_own(self, inputs: Any) -> Tensor:
        """These rows as the module reads them, perhaps in the same memory."""
        ...


def take(inputs: Any, positions: Any) -> Any:
    """These rows of a DataFrame or an array."""
    return taken(inputs, positions)


def digest(*parts: bytes) -> str:
    """A short content hash, for fingerprints."""
    seen = hashlib.blake2b(digest_size=16)
    for part in parts:
        seen.update(len(part).to_bytes(8, "little"))
        seen.update(part)
    return seen.hexdigest()


def digest_module(module: nn.Module) -> str:
    """The content hash of a module's parameters and buffers, names included."""
    state = module.state_dict()
    return digest(*(part for name in sorted(state) for part in (name.encode(), _raw(state[name]))))


def digest_code(module: nn.Module) -> str:
    """The content hash of the classes that a module is made of, torch's own left out: weights say nothing without them."""
    classes = {type(part) for part in module.modules() if not type(part).__module__.startswith("torch.")}
    return digest(*(_source(kind) for kind in sorted(classes, key=lambda kind: (kind.__module__, kind.__qualname__))))


def _source(kind: type) -> bytes:
    try:
        return inspect.getsource(kind).encode()
    except (OSError, TypeError):  # typed into a session: the compiled code is what there is
        code = getattr(kind.__dict__.get("forward"), "__code__", None)
        return kind.__qualname__.encode() + (b"" if code is None else code.co_code + repr(code.co_consts).encode())


def _raw(tensor: Any) -> bytes:
    if not isinstance(tensor, Tensor):
        return repr(tensor).encode()
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return f"{tensor.dtype}{tuple(tensor.shape)}".encode() + flat.view(torch.uint8).numpy().tobytes()


@final
class Answers:
    """Turns what a model gives into a signal; decides `auto` once, on the first answers it sees, and keeps to it."""

    def __init__(self, output: Output, task: Task) -> None:
        self.declared = output
        self.task = task
        self._settled: Output | None = None if output == "auto" else output

    def signal(self, given: Any) -> Signals:
        """The signal of this task in what the model gave (tensor, array or a dictionary with one)."""
        answers = as_tensor(given, frames=self.task.kind == "recognition")
        if self._settled is None:
            self._settled = "logits" if self.task.kind == "recognition" else looks_like(answers, self.task)
        return {self.task.signal: to_logits(answers, self._settled, self.task)}


@final
class TorchTeacher:
    """A torch module behind its own preparation: evaluation mode, no gradient, everything put back afterwards."""

    def __init__(
        self,
        module: nn.Module,
        *,
        task: Task,
        classes: Sequence[str] | None,
        prepare: Callable[[Any], Tensor],
        output: Output = "logits",
        name: str = "torch",
        batch_size: int = 256,
        device: str | torch.device | None = None,
        preparation: str = "",
        layers: Sequence[str] = (),
    ) -> None:
        self.module = module if device is None else module.to(device)
        self.layers = tuple(layers)
        self.name = name
        self.classes = None if classes is None else tuple(classes)
        self.task = task
        self._prepare = prepare
        self._answers = Answers(output, task)
        self.batch_size = batch_size
        self._preparation = preparation or repr(prepare) if isinstance(prepare, nn.Module) else preparation

    def signals(self, inputs: Any) -> Signals:
        count, size = len(inputs), self.batch_size
        return self._said((take(inputs, slice(start, min(start + size, count))) for start in range(0, max(count, 1), size)), count)

    def signals_of(self, batches: Iterable[Any], count: int) -> Signals:
        """What the module says of `count` rows, which come in batches of its size that nobody else holds."""
        preparation = cast("object", self._prepare)
        return self._said(batches, count, preparation.of_own if isinstance(preparation, PreparesOwn) else self._prepare)

    def _said(self, batches: Iterable[Any], count: int, prepare: Callable[[Any], Tensor] | None = None) -> Signals:
        device = self.device
        prepare = prepare or self._prepare
        whole: dict[str, Tensor] = {}
        start = 0
        with taps(self.module, self.layers) as read, evaluating(self.module), torch.inference_mode():
            for some in batches:
                prepared = prepare(some)
                with failing(self.name):
                    answered = self.module(prepared.to(device))
                said = {"": as_tensor(answered, frames=self.task.kind == "recognition")} | {
                    layer: value.float().cpu() for layer, value in read.items()
                }
                # tensors of inference mode cannot enter a gradient later: what leaves here is copied once, into plain ones
                if start == 0:
                    with torch.inference_mode(False):
                        whole = {name: torch.empty((count, *value.shape[1:])) for name, value in said.items()}
                for name, value in said.items():
                    whole[name][start : start + self.batch_size] = value
                start += self.batch_size
        return self._answers.signal(whole.pop("")) | {f"features/{layer}": value for layer, value in whole.items()}

    def giving(self, layers: Sequence[str]) -> TorchTeacher:
        """The same teacher, whose signals hold `features/<layer>` too."""
        return TorchTeacher(
            self.module,
            task=self.task,
            classes=self.classes,
            prepare=self._prepare,
            output=self._answers.declared,
            name=self.name,
            batch_size=self.batch_size,
            preparation=self._preparation,
            layers=layers,
        )

    def prepared(self, inputs: Any) -> Tensor:
        """Raw inputs as the module reads them, on its device."""
        return self._prepare(inputs).to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        first = next(self.module.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def fingerprint(self) -> dict[str, str]:
        first = next(self.module.parameters(), None)
        return {
            "weights": digest_module(self.module),
            "architecture": digest(repr(self.module).encode()),
            "code": digest_code(self.module),
            "mode": "eval",
            "preparation": self._preparation,
            "output": self._answers.declared,
            "dtype": "none" if first is None else str(first.dtype).removeprefix("torch."),
            "torch": torch.__version__.split("+")[0],
        }

    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())


def batches_itself(teacher: Any, batch_size: int) -> bool:
    """Whether this teacher may be given any number of rows and goes through them in batches of this size."""
    if isinstance(teacher, Matched):
        return batches_itself(teacher.teacher, batch_size)
    return isinstance(teacher, TorchTeacher) and teacher.batch_size == batch_size


def on_processor(teacher: Any) -> bool:
    """Whether a teacher that `batches_itself` answers on the processor."""
    if isinstance(teacher, Matched):
        return on_processor(teacher.teacher)
    return isinstance(teacher, TorchTeacher) and teacher.device.type == "cpu"


def signals_of(teacher: Teacher, batches: Iterable[Any], count: int) -> Signals:
    """What a teacher that `batches_itself` says of `count` rows, which come in batches that nobody else holds."""
    if isinstance(teacher, Matched):
        return teacher.placed(signals_of(teacher.teacher, batches, count))
    assert isinstance(teacher, TorchTeacher)
    return teacher.signals_of(batches, count)


@contextmanager
def failing(name: str) -> Iterator[None]:
    """An error of the teacher's own code as a sentence that names the line; errors of this package as they are."""
    try:
        yield
    except UnderstudyError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = next((frame for frame in reversed(frames) if "site-packages" not in frame.filename), frames[-1])
        raise TeacherError(
            f"{name} fails on these rows: {type(error).__name__}: {str(error).strip() or 'no message'} ({Path(place.filename).name} line "
            f"{place.lineno}). A function gets the raw rows as they are read; a torch module that a factory builds needs teacher.weights",
            code="U370",
        ) from error


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each submodule's mode and each requires_grad as before outside."""
    modes = [(part, part.training) for part in module.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


@final
class CallableTeacher:
    """A function from raw inputs to an array, a tensor or a dictionary with `logits`, `probabilities` or `values`."""

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        task: Task,
        classes: Sequence[str] | None = None,
        output: Output = "auto",
        name: str = "callable",
        source: str = "",
    ) -> None:
        self.name = name
        self.classes = None if classes is None else tuple(classes)
        self._function = function
        self._answers = Answers(output, task)
        self._source = source

    def signals(self, inputs: Any) -> Signals:
        with failing(self.name):
            given = self._function(inputs)
        if isinstance(given, nn.Module):
            raise TeacherError(
                f"{self.name} builds a torch module; say its teacher.weights ('factory' when it loads them itself)", code="U014"
            )
        said = self._answers.signal(given)
        got = len(next(iter(said.values())))
        if got != len(inputs):
            raise TeacherError(
                f"{self.name} gave {got:,} answers for {len(inputs):,} rows; it must give one per row, in order", code="U016"
            )
        return said

    def fingerprint(self) -> dict[str, str]:
        return {"name": self.name, "code": self._source, "output": self._answers.declared, "python": platform.python_version()}

    def parameters(self) -> None:
        return None


@final
class Matched:
    """A teacher whose columns are put in the data's order; dropping columns of logits renormalises the rest.

    A class that it does not know has the column -1. Then it says log-probabilities among all that it knows, so that what it
    gives to classes that the data lacks is not shared out, and UNKNOWN of the others.
    """

    def __init__(self, teacher: Teacher, order: Sequence[int], *, task: Task) -> None:
        self.teacher = teacher
        self.task = task
        self.order = tuple(order)
        self.name = teacher.name
        self.classes = task.classes or None

    def signals(self, inputs: Any) -> Signals:
        return self.placed(self.teacher.signals(inputs))

    def placed(self, said: Signals) -> Signals:
        """What the teacher said, its columns in the data's order."""
        return {name: self._placed(value) if name.rpartition("/")[2] == LOGITS else value for name, value in said.items()}

    def _placed(self, value: Tensor) -> Tensor:
        if min(self.order) >= 0:
            return value[:, list(self.order)]
        value = value.log_softmax(-1) if self.task.single_label else value
        unknown = value.new_full((len(value), 1), UNKNOWN).masked_fill(~is_answered(value)[:, None], torch.nan)
        return torch.cat([value, unknown], dim=1)[:, list(self.order)]

    def fingerprint(self) -> dict[str, str]:
        return self.teacher.fingerprint() | {"columns": ",".join(map(str, self.order))}

    def parameters(self) -> int | None:
        return self.teacher.parameters()

    @property
    def self_scoring(self) -> bool:
        return isinstance(self.teacher, Refittable) and self.teacher.self_scoring

    def refit(self, inputs: Any, labels: np.ndarray[Any, Any]) -> Matched:
        if not isinstance(self.teacher, Refittable):
            raise TeacherError(f"{self.name} cannot be fitted again; set teaching.out_of_fold = 0", code="U018")
        own = labels
        if self.task.single_label:
            own = np.asarray(self.order)[labels]
        elif self.task.kind == "multilabel":
            own = labels[:, np.argsort(self.order)]
        return Matched(self.teacher.refit(inputs, own), self.order, task=self.task)


@final
class Reading:
    """A teacher that is given some of the inputs of each row only, by name: the one input itself where it is one."""

    def __init__(self, teacher: Teacher, names: Sequence[str]) -> None:
        self.teacher = teacher
        self.names = tuple(names)
        self.name = teacher.name
        self.classes = teacher.classes

    def signals(self, inputs: Any) -> Signals:
        return self.teacher.signals(narrowed(inputs, self.names))

    def fingerprint(self) -> dict[str, str]:
        return self.teacher.fingerprint() | {"inputs": ",".join(self.names)}

    def parameters(self) -> int | None:
        return self.teacher.parameters()

    @property
    def self_scoring(self) -> bool:
        return isinstance(self.teacher, Refittable) and self.teacher.self_scoring

    def refit(self, inputs: Any, labels: np.ndarray[Any, Any]) -> Reading:
        if not isinstance(self.teacher, Refittable):
            raise TeacherError(f"{self.name} cannot be fitted again; set teaching.out_of_fold = 0", code="U018")
        return Reading(self.teacher.refit(narrowed(inputs, self.names), labels), self.names)


@final
class FakeTeacher:
    """A deterministic teacher for tests: a fixed random projection of the content of each row."""

    def __init__(self, task: Task, seed: int = 0) -> None:
        self.task = task
        self.seed = seed
        self.name = "fake"
        self.classes = task.classes or None
        self.rows_asked = 0

    def signals(self, inputs: Any) -> Signals:
        self.rows_asked += len(inputs)
        columns = list(inputs.columns) if "DataFrame" in type(inputs).__name__ else None
        if columns is None:
            flat = np.asarray(inputs).reshape(len(inputs), -1).astype(np.float64)
            flat = flat / 255 if np.asarray(inputs).dtype == np.uint8 else flat
        else:
            flat = np.stack([_numbers(inputs[column]) for column in columns], axis=1)
        weights = np.random.default_rng(self.seed).normal(size=(flat.shape[1], self.task.outputs))
        said = np.einsum("rc,co->ro", np.arcsinh(np.nan_to_num(flat)), weights)
        return {self.task.signal: torch.from_numpy(said.astype(np.float32))}

    def fingerprint(self) -> dict[str, str]:
        return {"seed": str(self.seed), "classes": ",".join(self.task.classes)}

    def parameters(self) -> int:
        return 0


def _numbers(column: Any) -> np.ndarray[Any, Any]:
    if column.dtype.kind in "ifub":
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.array([int.from_bytes(hashlib.blake2b(str(cell).encode(), digest_size=2).digest(), "little") / 65536 for cell in column])


def difference(first: Signals, second: Signals, *, tolerance: float = 1e-3) -> float:
    """The largest difference between two sets of signals, in units of the tolerance (relative and absolute).

    Logits are compared as log-probabilities no lower than -10, below which rounding of probabilities speaks.
    """
    worst = 0.0
    for name, value in first.items():
        a, b = (comparable(name, side.detach().double()) for side in (value, second[name]))
        if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
            return float("inf")
        a, b = a.nan_to_num(0.0), b.nan_to_num(0.0)
        if a.numel():
            worst = max(worst, float(((a - b).abs() / (tolerance * (1 + a.abs()))).max()))
    return worst


def comparable(name: str, value: Tensor) -> Tensor:
    """A signal as it is compared: logits as log-probabilities no lower than -10, below which rounding of probabilities speaks."""
    return value.log_softmax(dim=-1).clamp(min=-10) if name.rpartition("/")[2] == LOGITS and value.shape[-1] > 1 else value


def modules(teacher: Any) -> list[nn.Module]:
    """The torch modules behind this teacher."""
    if isinstance(teacher, TorchTeacher):
        return [teacher.module]
    if isinstance(teacher, Matched | Reading):
        return modules(teacher.teacher)
    if isinstance(teacher, Composed):
        return [module for member in teacher.members for module in modules(member)]
    return []


def remotes(teacher: Any) -> list[Remote]:
    """The teachers behind this one that are asked over a network."""
    if isinstance(teacher, Matched | Reading):
        return remotes(teacher.teacher)
    if isinstance(teacher, Composed):
        return [remote for member in teacher.members for remote in remotes(member)]
    return [teacher] if isinstance(teacher, Remote) else []


def max_missing(teacher: Teacher) -> float:
    """The largest share of rows that may have no answer: 0 unless the teacher is asked over a network."""
    return max((remote.max_missing for remote in remotes(teacher)), default=0.0)


def check_missing(said: Tensor, allowed: float, name: str, what: str = "rows") -> int:
    """How many rows have no answer; TeacherError when they are more than the allowed share."""
    missing = int((~is_answered(said)).sum())
    if missing > allowed * len(said):
        raise TeacherError(
            f"{name} has no readable answer to {missing:,} of {len(said):,} {what} ({missing / len(said):.1%}), allowed are {allowed:.1%}. "
            "Look at its answers, mend the prompt, or raise teacher.options.max_missing",
            code="U335",
        )
    return missing
