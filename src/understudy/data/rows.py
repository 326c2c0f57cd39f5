"""Rows: examples with content keys, maybe labels, maybe a given split. Everything downstream takes and gives `Rows`.

`inputs` by kind: `table` a pandas DataFrame without the label column; `array` float32 [rows, ...]; `image` uint8
[rows, height, width, channels] with 1 or 3 channels, perhaps a memory map; `audio` int16 [rows, samples], zeros after the end;
`text` an object array of texts [rows], or of pairs [rows, 2].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np

Kind = Literal["table", "array", "image", "audio", "text"]
SPLITS = ("train", "validation", "test")


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
        inputs = self.inputs.iloc[positions] if self.kind == "table" else self.inputs[positions]
        return replace(
            self,
            inputs=inputs,
            keys=self.keys[positions],
            labels=None if self.labels is None else self.labels[positions],
            split=None if self.split is None else self.split[positions],
            names=None if self.names is None else self.names[positions],
        )

    def part(self, split: str) -> Rows:
        """The rows of one split."""
        if self.split is None:
            raise ValueError("these rows are not split yet")
        return self.take(np.flatnonzero(self.split == split))

    def name(self, position: int) -> str:
        """Where a row came from, for messages."""
        return f"row {position}" if self.names is None else str(self.names[position])
