"""Rows: examples with content keys, maybe labels, maybe a given split. Everything downstream takes and gives `Rows`.

`inputs` by kind: `table` a pandas DataFrame without the label column; `array` float32 [rows, ...]; `image` uint8
[rows, height, width, channels] with 1 or 3 channels, perhaps a memory map; `audio` int16 [rows, samples], zeros after the end;
`text` an object array of texts [rows], or of pairs [rows, 2]; `pair` a Paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np

Kind = Literal["table", "array", "image", "audio", "text", "pair"]
SPLITS = ("train", "validation", "test")


def taken(inputs: Any, positions: Any) -> Any:
    """The inputs of the rows at these positions, of whatever kind they are."""
    return inputs.iloc[positions] if type(inputs).__name__ in ("DataFrame", "Series") else inputs[positions]


@final
@dataclass(frozen=True)
class Paired:
    """Several inputs of the same rows, by name: `paired["image"]` is one of them, `paired[3:5]` all of them for some rows."""

    kinds: dict[str, Kind]
    parts: dict[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, str):
            return self.parts[at]
        return replace(self, parts={name: taken(part, at) for name, part in self.parts.items()})

    def only(self, names: Sequence[str]) -> Any:
        """The one input of that name as it is, or a Paired of those that are named; all of them where none is."""
        if len(names) == 1:
            return self.parts[names[0]]
        chosen = names or list(self.parts)
        return Paired({name: self.kinds[name] for name in chosen}, {name: self.parts[name] for name in chosen})

    def alone(self, name: str) -> Paired:
        """The same rows as if the other inputs were absent: black images, silence, empty texts; tables and arrays stay."""
        blank = {other: _blank(part, self.kinds[other]) for other, part in self.parts.items() if other != name}
        return replace(self, parts={**self.parts, **blank})


def _blank(part: Any, kind: Kind) -> Any:
    if kind in ("table", "array"):
        return part
    return np.full(part.shape, "", dtype=object) if kind == "text" else np.zeros_like(part)


def narrowed(inputs: Any, names: Sequence[str]) -> Any:
    """What a model that reads `names` is given of these inputs; inputs without names as they are."""
    return inputs.only(names) if isinstance(inputs, Paired) else inputs


@final
@dataclass(frozen=True)
class Rows:
    """Examples, in order.

    `keys` is int64 [rows, 2], the 128-bit hash of each raw input; `labels` follow understudy.tasks (None: no label at
    all); `split` holds one of SPLITS per row (None: not split yet); `names` says where each row came from (a file
    name, `line 17`) for messages.
    """

    kind: Kind
    inputs: Any
    keys: np.ndarray[Any, np.dtype[np.int64]]
    labels: np.ndarray[Any, Any] | None = None
    split: np.ndarray[Any, Any] | None = None
    names: np.ndarray[Any, Any] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, positions: Any) -> Rows:
        """The rows at these positions (an index array, a slice or a mask)."""
        return replace(
            self,
            inputs=taken(self.inputs, positions),
            keys=self.keys[positions],
            labels=None if self.labels is None else self.labels[positions],
            split=None if self.split is None else self.split[positions],
            names=None if self.names is None else self.names[positions],
        )

    def only(self, names: Sequence[str]) -> Rows:
        """The same rows as a model sees them that reads these inputs only; with the keys of the whole rows."""
        if not isinstance(self.inputs, Paired):
            return self
        inputs = self.inputs.only(names)
        return replace(self, kind=self.inputs.kinds[names[0]] if len(names) == 1 else "pair", inputs=inputs)

    def part(self, split: str) -> Rows:
        """The rows of one split."""
        if self.split is None:
            raise ValueError("these rows are not split yet")
        return self.take(np.flatnonzero(self.split == split))

    def name(self, position: int) -> str:
        """Where a row came from, for messages."""
        return f"row {position}" if self.names is None else str(self.names[position])
