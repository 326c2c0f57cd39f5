"""Encodings: how a teacher's answers are stored, and what a student is given back. One contract, three ways.

`encode` takes float32 [rows, classes] and keys, and gives the columns to store; `decode` gives dense logits back for a
temperature; `witness` gives what is stored beside what a live answer says of the same things. To add one: a final class here,
and a line in ENCODINGS.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor

from understudy.errors import TransferSetError, did_you_mean
from understudy.losses.stored import TAIL_TEMPERATURES, tail_at
from understudy.tasks import Task

StoredType = Literal["float32", "float16", "bfloat16"]
Columns = dict[str, Tensor]
"""Ending of a column's name (`""`, `/ids`, ...) -> tensor [rows, ...]."""


class Encoding(ABC):
    """A way to store logits. `endings` are those of its columns' names."""

    endings: tuple[str, ...]

    @property
    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Plain values from which `from_spec` makes the same encoding."""

    @abstractmethod
    def encode(self, said: Tensor, keys: np.ndarray[Any, Any], view: int = 0) -> Columns:
        """What is stored of logits float32 [rows, classes] of these rows in this view."""

    @abstractmethod
    def decode(self, columns: Columns, classes: int, *, temperature: float) -> Tensor:
        """Dense logits float32 [rows, classes] whose softmax at this temperature is the stored distribution."""

    @abstractmethod
    def witness(self, columns: Columns, live: Tensor) -> tuple[Tensor, Tensor]:
        """What is stored and what `live` says of it, each [rows, numbers]; equal when the teacher is the same."""

    @property
    def sparse(self) -> bool:
        """Whether most classes have no number of their own."""
        return self.endings != ("",)

    def bytes_per_row(self, classes: int) -> int:
        """Bytes of one answer."""
        one = self.encode(torch.zeros(1, classes), np.zeros((1, 2), dtype=np.int64))
        return sum(column.nbytes for column in one.values())


@final
class Dense(Encoding):
    """Every number, as float32, float16 or bfloat16."""

    endings = ("",)

    def __init__(self, dtype: StoredType = "float32") -> None:
        self.dtype: torch.dtype = getattr(torch, dtype)

    @property
    def spec(self) -> dict[str, Any]:
        return {"kind": "dense", "dtype": str(self.dtype).removeprefix("torch.")}

    def encode(self, said: Tensor, keys: np.ndarray[Any, Any], view: int = 0) -> Columns:
        return {"": said.to(self.dtype)}

    def decode(self, columns: Columns, classes: int, *, temperature: float) -> Tensor:
        return columns[""].float()

    def witness(self, columns: Columns, live: Tensor) -> tuple[Tensor, Tensor]:
        return columns[""].float(), live.float()


@final
class TopK(Encoding):
    """The `top` largest log-probabilities, and the logarithm of what the other classes have together at T = 1, 2 and 4.

    A renormalised or uniformly filled tail biases the student and cannot be re-tempered; with the tail's sum of
    exp(z / T) the softened distribution has the right head and the right mass beside it at each stored T. Between them the sum's
    logarithm is read from the cubic through them and 1 / T = 0, where it is the logarithm of the number of classes.
    """

    endings = ("/ids", "/top", "/tail")

    def __init__(self, top: int = 32) -> None:
        self.top = top

    @property
    def spec(self) -> dict[str, Any]:
        return {"kind": "top-k", "top": self.top}

    def encode(self, said: Tensor, keys: np.ndarray[Any, Any], view: int = 0) -> Columns:
        log_probs = said.float().log_softmax(dim=-1)
        top, ids = log_probs.topk(min(self.top, said.shape[1] - 1), dim=-1)
        rest = log_probs.scatter(1, ids, -math.inf)
        tail = torch.stack([(rest / temperature).logsumexp(dim=-1) for temperature in TAIL_TEMPERATURES], dim=1)
        return {"/ids": ids.to(_id_type(said.shape[1])), "/top": top.half(), "/tail": tail}

    def decode(self, columns: Columns, classes: int, *, temperature: float) -> Tensor:
        top = columns["/top"].float()
        others = classes - top.shape[1]
        each = temperature * (tail_at(columns["/tail"], others, temperature) - math.log(others))
        dense = each[:, None].expand(-1, classes).contiguous()
        return dense.scatter_(1, columns["/ids"].long(), top)

    def witness(self, columns: Columns, live: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = live.float().log_softmax(dim=-1)
        ids = columns["/ids"].long()
        rest = log_probs.scatter(1, ids, -math.inf).logsumexp(dim=-1, keepdim=True)
        return _floored(columns["/top"], columns["/tail"][:, :1]), _floored(log_probs.gather(1, ids), rest)


@final
class Sampled(Encoding):
    """The `top` largest probabilities exactly, and `draws` classes drawn from the others, each for an equal part of their mass.

    The expectation over draws is the teacher's distribution (after Anshumann et al. 2025, arXiv:2503.16870; with an exact head
    and evenly spaced draws the same bytes carry far less noise). Drawn at one `temperature`, and good for that one alone.
    """

    endings = ("/ids", "/top", "/tail")

    def __init__(self, top: int = 16, draws: int = 16, temperature: float = 1.0) -> None:
        self.top, self.draws, self.temperature = top, draws, temperature

    @property
    def spec(self) -> dict[str, Any]:
        return {"kind": "sampled", "top": self.top, "draws": self.draws, "temperature": self.temperature}

    def encode(self, said: Tensor, keys: np.ndarray[Any, Any], view: int = 0) -> Columns:
        log_probs = (said.float() / self.temperature).log_softmax(dim=-1)
        top, ids = log_probs.topk(min(self.top, said.shape[1] - 1), dim=-1)
        ahead = log_probs.scatter(1, ids, -math.inf).double().exp().cumsum(dim=-1)
        mass = ahead[:, -1:]
        # keys are hashes, so their bits are the random number; views are spread by the golden ratio
        start = torch.from_numpy((keys[:, 0].astype(np.uint64).astype(np.float64) * 2.0**-64 + view * 0.6180339887498949) % 1)
        place = (start[:, None] + torch.arange(self.draws)) / self.draws * mass
        # the first class whose running sum exceeds the place: it has mass of its own
        drawn = torch.searchsorted(ahead, torch.minimum(place, torch.nextafter(mass, torch.zeros(()).double())), right=True)
        return {
            "/ids": torch.cat([ids, drawn.clamp(max=said.shape[1] - 1)], dim=1).to(_id_type(said.shape[1])),
            "/top": top.half(),
            "/tail": mass.log().float(),
        }

    def decode(self, columns: Columns, classes: int, *, temperature: float) -> Tensor:
        if temperature != self.temperature:
            raise TransferSetError(
                f"these answers were sampled at temperature {self.temperature:g} and say nothing of temperature {temperature:g}. Teach "
                'again with teaching.encoding = "top-k", or train at the temperature they were sampled at',
                code="U321",
            )
        top, ids = columns["/top"].float(), columns["/ids"].long()
        share = (columns["/tail"].exp() / self.draws).expand(-1, self.draws)
        weights = torch.zeros(len(ids), classes).scatter_add_(1, ids, torch.cat([top.exp(), share], dim=1))
        return temperature * weights.log()

    def witness(self, columns: Columns, live: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = (live.float() / self.temperature).log_softmax(dim=-1)
        ids = columns["/ids"].long()[:, : columns["/top"].shape[1]]
        rest = log_probs.scatter(1, ids, -math.inf).logsumexp(dim=-1, keepdim=True)
        return _floored(columns["/top"], columns["/tail"]), _floored(log_probs.gather(1, ids), rest)


@final
@dataclass(frozen=True)
class Encoded:
    """What is stored of some rows: columns by name, and of each signal the shape of a row and how it is encoded."""

    columns: Columns
    signals: dict[str, Any]


@final
@dataclass(frozen=True)
class Encoder:
    """All signals as they are stored: answers in their `encoding`, others as `dtype`, whole numbers as they are."""

    task: Task
    encoding: Encoding
    dtype: torch.dtype
    views: int = 1

    def __call__(self, signals: dict[str, Tensor], keys: np.ndarray[Any, Any]) -> Encoded:
        columns: Columns = {}
        said: dict[str, Any] = {}
        for name, value in signals.items():
            answer = name.rpartition("/")[2] == self.task.signal and value.shape[-1] == self.task.outputs
            kept = self.dtype if value.is_floating_point() else value.dtype
            encoding = self.encoding if answer else Dense(str(kept).removeprefix("torch."))  # type: ignore[arg-type]
            columns |= {name + ending: column for ending, column in self._encoded(encoding, value.detach(), keys).items()}
            said[name] = {"shape": list(value.shape[2 if self.views > 1 else 1 :]), "encoding": encoding.spec}
        return Encoded(columns, said)

    def _encoded(self, encoding: Encoding, value: Tensor, keys: np.ndarray[Any, Any]) -> Columns:
        if not encoding.sparse:
            return {"": encoding.encode(value, keys)[""].contiguous()}
        if self.views == 1:
            return {ending: column.contiguous() for ending, column in encoding.encode(value, keys).items()}
        views = [encoding.encode(value[:, view], keys, view) for view in range(self.views)]
        return {ending: torch.stack([view[ending] for view in views], dim=1) for ending in encoding.endings}


ENCODINGS: dict[str, type[Any]] = {"dense": Dense, "top-k": TopK, "sampled": Sampled}
"""The word in a manifest -> the encoding."""


def from_spec(spec: dict[str, Any]) -> Encoding:
    """The encoding that a manifest describes."""
    said = dict(spec)
    kind = said.pop("kind")
    if kind not in ENCODINGS:
        raise TransferSetError(f"no encoding {kind!r}; {did_you_mean(str(kind), ENCODINGS)}", code="U024")
    made: Encoding = ENCODINGS[kind](**said)
    return made


def lost(encoding: Encoding, said: Tensor, keys: np.ndarray[Any, Any], *, temperature: float) -> dict[str, float]:
    """What an encoding loses of these logits at T = 1 and at the training temperature.

    `kl` is the larger mean KL(full || stored), `error` the mean of |stored - full| / |full| over rows, of distributions as vectors.
    Sampled answers have no finite KL: their error is noise with mean zero.
    """
    stored = encoding.encode(said, keys)
    found = {"kl": 0.0, "error": 0.0}
    for each in {encoding.temperature} if isinstance(encoding, Sampled) else {1.0, temperature}:
        full = (said.double() / each).log_softmax(dim=-1)
        kept = (encoding.decode(stored, said.shape[1], temperature=each).double() / each).log_softmax(dim=-1)
        apart = ((kept.exp() - full.exp()).norm(dim=-1) / full.exp().norm(dim=-1)).mean()
        kl = 0.0 if isinstance(encoding, Sampled) else float((full.exp() * (full - kept).nan_to_num(0.0)).sum(dim=-1).mean())
        found = {"kl": max(found["kl"], kl), "error": max(found["error"], float(apart))}
    return found


def choose(said: Tensor, keys: np.ndarray[Any, Any], *, temperature: float, most: float) -> Encoding:
    """The encoding of fewest bytes that loses no more than `most` nats of KL on these logits; float32 when none does."""
    sizes = [2**power for power in range(2, 11) if 2**power < said.shape[1]]
    there = [*(TopK(size) for size in sizes), Dense("float16"), Dense("bfloat16")]
    there.sort(key=lambda one: one.bytes_per_row(said.shape[1]))
    found = (one for one in there if lost(one, said, keys, temperature=temperature)["kl"] <= most)
    return next(found, Dense("float32"))


def _floored(top: Tensor, tail: Tensor) -> Tensor:
    """Log-probabilities no lower than -10, below which rounding speaks."""
    return torch.cat([top.float(), tail.float()], dim=1).clamp(min=-10)


def _id_type(classes: int) -> torch.dtype:
    return torch.uint8 if classes <= 2**8 else torch.int16 if classes <= 2**15 else torch.int32
