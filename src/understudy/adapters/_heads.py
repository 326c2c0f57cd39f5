"""Linear heads on vectors of texts, fitted on the labels: on a text's vector or, of a pair, on both with their distance and product.

For a number said of a pair the head is a line through the cosine of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
import torch
from torch import Tensor

from understudy.data.rows import Rows
from understudy.errors import TeacherError
from understudy.tasks import Task
from understudy.teachers import digest

Array = np.ndarray[Any, Any]

STRENGTHS = (1.0, 10.0, 100.0)
"""Values of scikit-learn's C that are tried on the validation rows when none is given."""


class Encoder(Protocol):
    """What maps texts to vectors."""

    def vectors(self, texts: Array) -> Array:
        """float32 [rows, width], or [rows, 2, width] of pairs."""
        ...

    def digest(self) -> str:
        """What decides the vectors, as a hash."""
        ...


@final
@dataclass(frozen=True)
class Head:
    """What is said of a text's vector: `features @ weight + bias`; `cosine` reads the cosine of a pair alone."""

    weight: Array
    bias: Array
    cosine: bool = False
    strength: float = 10.0

    def __call__(self, vectors: Array) -> Tensor:
        said = features_of(vectors, cosine=self.cosine).astype(np.float64) @ self.weight + self.bias
        return torch.from_numpy(said.astype(np.float32))


def features_of(vectors: Array, *, cosine: bool) -> Array:
    """What a head reads: a vector, both of a pair with distance and product, or the cosine of a pair."""
    if vectors.ndim == 2:
        return vectors
    first, second = vectors[:, 0], vectors[:, 1]
    if not cosine:
        return np.concatenate([first, second, np.abs(first - second), first * second], axis=1)
    sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray((first * second).sum(axis=1) / np.maximum(sizes, 1e-12))[:, None]


def fit_head(vectors: Array, labels: Array, task: Task, *, strength: float, standard: bool = False) -> Head:
    """A head on labelled rows; `strength` is the inverse of the weight decay.

    With `standard` vectors of any size and middle are first brought to a mean of 0 and a length of about 1, which the weights take in.
    """
    cosine = task.kind == "regression" and vectors.ndim == 3
    features = features_of(vectors, cosine=cosine)
    if not standard or cosine:
        return _fit_head(features, labels, task, strength, cosine)
    middle, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scale = np.where(deviation > 0, deviation, 1) * np.sqrt(features.shape[1])
    head = _fit_head((features - middle) / scale, labels, task, strength, cosine)
    weight = head.weight / scale[:, None]
    return Head(weight, head.bias - middle @ weight, strength=strength)


def _fit_head(features: Array, labels: Array, task: Task, strength: float, cosine: bool) -> Head:
    from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge

    if task.kind == "regression":
        line = (LinearRegression() if cosine else Ridge(alpha=1 / strength)).fit(features, labels[:, 0])
        return Head(line.coef_.reshape(-1, 1).astype(np.float64), np.array([line.intercept_], dtype=np.float64), cosine, strength)
    if task.kind == "multilabel":
        columns = [_binary(features, labels[:, column], strength) for column in range(labels.shape[1])]
        return Head(np.stack([weight for weight, _ in columns], axis=1), np.array([bias for _, bias in columns]), strength=strength)
    present = np.unique(labels)
    if len(present) < 2:
        raise TeacherError("the labelled training rows have one class: a head needs two", code="U410")
    weight, bias = np.zeros((features.shape[1], task.outputs)), np.full(task.outputs, -20.0)
    fitted = LogisticRegression(C=strength, max_iter=2000).fit(features, labels)
    if len(present) == 2:
        # one logit says both: the log-odds of the second class
        weight[:, present[1]], bias[present] = fitted.coef_[0], [0.0, fitted.intercept_[0]]
    else:
        weight[:, present], bias[present] = fitted.coef_.T, fitted.intercept_
    return Head(weight, bias, strength=strength)


def _binary(features: Array, labels: Array, strength: float) -> tuple[Array, float]:
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:
        return np.zeros(features.shape[1]), 20.0 if labels[0] else -20.0
    fitted = LogisticRegression(C=strength, max_iter=500).fit(features, labels.astype(np.int64))
    return fitted.coef_[0], float(fitted.intercept_[0])


def fitted(encoder: Encoder, task: Task, rows: Rows, cache: Path | None, strength: float | None, *, standard: bool = False) -> Head:
    """The head, from the run's cache when it was fitted before on the same rows."""
    train = rows.part("train")
    there = np.zeros(len(train), dtype=bool) if train.labels is None else task.labelled(train.labels)
    if not there.any():
        if task.kind == "regression" and train.inputs.ndim == 2:
            return Head(np.ones((1, 1)), np.zeros(1), cosine=True)
        raise TeacherError("a sentence encoder gives vectors, and its head needs labels: no training row has one (data.label)", code="U410")
    known = train.take(np.flatnonzero(there))
    assert known.labels is not None
    said = digest(encoder.digest().encode(), known.keys.tobytes(), known.labels.tobytes(), repr((task, strength, STRENGTHS)).encode())
    file = None if cache is None else cache / f"head-{said[:16]}.npz"
    if file is not None and file.is_file():
        with np.load(file) as kept:
            return Head(kept["weight"], kept["bias"], bool(kept["cosine"]), float(kept["strength"]))
    head = _best(encoder, task, known, rows.part("validation"), strength, standard)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.part.npz")
        np.savez(part, weight=head.weight, bias=head.bias, cosine=head.cosine, strength=head.strength)
        part.replace(file)
    return head


def _best(encoder: Encoder, task: Task, known: Rows, validation: Rows, strength: float | None, standard: bool) -> Head:
    """The head whose strength serves the validation rows best, by their log-likelihood."""
    assert known.labels is not None
    vectors = encoder.vectors(known.inputs)
    there = np.zeros(len(validation), dtype=bool) if validation.labels is None else task.labelled(validation.labels)
    if strength is not None or task.kind == "regression" or not there.any():
        return fit_head(vectors, known.labels, task, strength=strength or 10.0, standard=standard)
    judged = validation.take(np.flatnonzero(there))
    seen = encoder.vectors(judged.inputs)
    true = torch.from_numpy(np.asarray(judged.labels))
    wrong = torch.nn.functional.cross_entropy if task.single_label else torch.nn.functional.binary_cross_entropy_with_logits
    heads = [fit_head(vectors, known.labels, task, strength=each, standard=standard) for each in STRENGTHS]
    losses = [float(wrong(head(seen), true)) for head in heads]
    return heads[int(np.argmin(losses))]
