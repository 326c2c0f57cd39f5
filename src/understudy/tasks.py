"""What a label means: the kind of task, its class names, and how labels are held in memory.

| kind | labels | signal of a model |
|---|---|---|
| multiclass, binary | int64 [rows], an index into `classes`, -1 where missing | `logits` [rows, classes] |
| multilabel | float32 [rows, classes] of 0 and 1, NaN where missing | `logits` [rows, classes], one sigmoid each |
| regression | float32 [rows, 1], NaN where missing | `values` [rows, 1] in the label's own unit |
| recognition | int64 [rows, most], the words, then -1; all -1 where missing | `logits` [rows, frames, classes + 1], the blank last |

| matching | float32 [rows, 1] of 0: a row's own two inputs belong together | `vectors` [rows, 2 width], of the one and of the other |

Binary is two classes with two logits: softmax([0, z]) is sigmoid(z) at any temperature, so a single-logit teacher becomes
two columns without loss. The positive class is the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

TaskKind = Literal["multiclass", "binary", "multilabel", "regression", "recognition", "matching"]


@final
@dataclass(frozen=True)
class Task:
    """The kind of answer, and the names of its columns in order; of a matching, its two inputs and the `width` of a vector."""

    kind: TaskKind
    classes: tuple[str, ...] = ()
    width: int = 0

    @property
    def outputs(self) -> int:
        """How many numbers a model gives for a row (recognition: for a frame)."""
        if self.kind == "recognition":
            return len(self.classes) + 1
        if self.kind == "matching":
            return 2 * self.width
        return 1 if self.kind == "regression" else len(self.classes)

    @property
    def signal(self) -> Literal["logits", "values", "vectors"]:
        """The signal that a model of this task gives."""
        if self.kind == "matching":
            return "vectors"
        return "values" if self.kind == "regression" else "logits"

    @property
    def metric(self) -> str:
        """The headline metric; larger is better for every task."""
        return {
            "multiclass": "accuracy",
            "binary": "accuracy",
            "multilabel": "macro_f1",
            "regression": "r2",
            "recognition": "word_accuracy",
            "matching": "recall_at_1",
        }[self.kind]

    @property
    def single_label(self) -> bool:
        """Whether a row has exactly one class."""
        return self.kind in ("multiclass", "binary")

    def labelled(self, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which rows have a label, bool [rows]."""
        if self.single_label:
            return np.asarray(labels >= 0)
        if self.kind == "recognition":
            return np.asarray(labels[:, 0] >= 0)
        return np.asarray(~np.isnan(labels).any(axis=1))

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "classes": list(self.classes), **({"width": self.width} if self.width else {})}

    @staticmethod
    def from_json(said: dict[str, Any]) -> Task:
        return Task(said["kind"], tuple(said["classes"]), said.get("width", 0))
