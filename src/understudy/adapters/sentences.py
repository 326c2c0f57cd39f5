"""Sentence encoders as teachers: `sentences:PLACE` with a small head fitted on the labels, read by `sentence-transformers`.

The place is a folder, a package that carries a model, or a hub name. The head is linear, on the sentence's vector or, of a
pair, on both with their distance and product; for a number said of a pair it is a line through the cosine of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from understudy.adapters._loading import require
from understudy.adapters._sentence_encoder import SentenceEncoder
from understudy.data.rows import Rows
from understudy.errors import TeacherError, did_you_mean
from understudy.signals import Signals
from understudy.tasks import Task
from understudy.teachers import digest

Array = np.ndarray[Any, Any]

OPTIONS = ("batch_size", "strength", "max_length")
STRENGTHS = (1.0, 10.0, 100.0)
"""Values of scikit-learn's C that are tried on the validation rows when none is given."""


def load(
    place: str,
    *,
    task: Task,
    rows: Rows,
    cache: Path | None = None,
    pretrained: bool = False,
    options: dict[str, Any] | None = None,
) -> SentenceTeacher:
    """The encoder with a head fitted on the labelled training rows. TeacherError U407 without the model, U410 without labels."""
    said = dict(options or {})
    strange = sorted(set(said) - set(OPTIONS))
    if strange:
        raise TeacherError(f"teacher.options: {strange[0]!r} is unknown; {did_you_mean(strange[0], OPTIONS)}", code="U408")
    encoder = SentenceEncoder.open(
        place, pretrained=pretrained, batch_size=int(said.get("batch_size", 64)), max_length=said.get("max_length")
    )
    seen = Remembered(encoder)
    head = _fitted(seen, task, rows, cache, said.get("strength"))
    return SentenceTeacher(seen, head, task=task, name=place)


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


@final
class Remembered:
    """An encoder that keeps the vector of each text, so that heads fitted on several parts of the rows ask for each text once."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        self.encoder = encoder
        self._vectors: dict[str, Array] = {}

    def vectors(self, texts: Array, *, keep: bool = True) -> Array:
        """As the encoder gives them: float32 [rows, width], or [rows, 2, width] of pairs; new ones are kept only when asked to."""
        flat = np.asarray(texts, dtype=object)
        new = [text for text in dict.fromkeys(flat.ravel().tolist()) if text not in self._vectors]
        if not flat.size:
            return self.encoder.vectors(flat)
        found = dict(zip(new, self.encoder.vectors(np.array(new, dtype=object)), strict=True))
        if keep:
            self._vectors |= found
        return np.stack([found[text] if text in found else self._vectors[text] for text in flat.ravel()]).reshape(*flat.shape, -1)

    def __getstate__(self) -> dict[str, Any]:
        """What another process is sent: the encoder, without what it has said."""
        return {"encoder": self.encoder, "_vectors": {}}

    def digest(self) -> str:
        return self.encoder.digest()

    def parameters(self) -> int:
        return self.encoder.parameters()


@final
class SentenceTeacher:
    """A sentence encoder and its head behind the Teacher contract; it can be fitted again, which leaves the encoder as it is."""

    def __init__(self, encoder: Remembered, head: Head, *, task: Task, name: str) -> None:
        self.encoder, self.head, self.task, self.name = encoder, head, task, name
        self.classes = task.classes or None

    @property
    def self_scoring(self) -> bool:
        """False: a linear head scores its own rows well and stays soft on them; heads on fewer rows taught no better (LOG.md)."""
        return False

    def signals(self, inputs: Any) -> Signals:
        return {self.task.signal: self.head(self.encoder.vectors(inputs, keep=False))}

    def refit(self, inputs: Any, labels: Array) -> SentenceTeacher:
        head = fit_head(self.encoder.vectors(inputs), labels, self.task, strength=self.head.strength)
        return SentenceTeacher(self.encoder, head, task=self.task, name=self.name)

    def fingerprint(self) -> dict[str, str]:
        version = require("sentence_transformers", "sentences").__version__
        head = digest(self.head.weight.tobytes(), self.head.bias.tobytes())
        return {"encoder": self.encoder.digest(), "head": head, "sentence-transformers": version, "torch": torch.__version__.split("+")[0]}

    def parameters(self) -> int:
        return self.encoder.parameters() + self.head.weight.size + self.head.bias.size


def features_of(vectors: Array, *, cosine: bool) -> Array:
    """What a head reads: a vector, both of a pair with distance and product, or the cosine of a pair."""
    if vectors.ndim == 2:
        return vectors
    first, second = vectors[:, 0], vectors[:, 1]
    if not cosine:
        return np.concatenate([first, second, np.abs(first - second), first * second], axis=1)
    sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray((first * second).sum(axis=1) / np.maximum(sizes, 1e-12))[:, None]


def fit_head(vectors: Array, labels: Array, task: Task, *, strength: float) -> Head:
    """A head on labelled rows; `strength` is the inverse of the weight decay."""
    from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge

    cosine = task.kind == "regression" and vectors.ndim == 3
    features = features_of(vectors, cosine=cosine)
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


def _fitted(encoder: Remembered, task: Task, rows: Rows, cache: Path | None, strength: float | None) -> Head:
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
    head = _best(encoder, task, known, rows.part("validation"), strength)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.part.npz")
        np.savez(part, weight=head.weight, bias=head.bias, cosine=head.cosine, strength=head.strength)
        part.replace(file)
    return head


def _best(encoder: Remembered, task: Task, known: Rows, validation: Rows, strength: float | None) -> Head:
    """The head whose strength serves the validation rows best, by their log-likelihood."""
    assert known.labels is not None
    vectors = encoder.vectors(known.inputs)
    there = np.zeros(len(validation), dtype=bool) if validation.labels is None else task.labelled(validation.labels)
    if strength is not None or task.kind == "regression" or not there.any():
        return fit_head(vectors, known.labels, task, strength=strength or 10.0)
    judged = validation.take(np.flatnonzero(there))
    seen = encoder.vectors(judged.inputs)
    true = torch.from_numpy(np.asarray(judged.labels))
    wrong = torch.nn.functional.cross_entropy if task.single_label else torch.nn.functional.binary_cross_entropy_with_logits
    heads = [fit_head(vectors, known.labels, task, strength=each) for each in STRENGTHS]
    losses = [float(wrong(head(seen), true)) for head in heads]
    return heads[int(np.argmin(losses))]
