"""Sentence encoders as teachers: `sentences:PLACE` with a small head fitted on the labels, read by `sentence-transformers`.

The place is a folder, a package that carries a model, or a hub name. The head is linear, on the sentence's vector or, of a
pair, on both with their distance and product; for a number said of a pair it is a line through the cosine of the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from understudy.adapters._heads import Head, fit_head, fitted
from understudy.adapters._loading import require
from understudy.adapters._sentence_encoder import SentenceEncoder
from understudy.data.rows import Rows
from understudy.errors import TeacherError, did_you_mean
from understudy.signals import Signals
from understudy.tasks import Task
from understudy.teachers import digest

Array = np.ndarray[Any, Any]

OPTIONS = ("batch_size", "strength", "max_length")


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
    head = fitted(seen, task, rows, cache, said.get("strength"))
    return SentenceTeacher(seen, head, task=task, name=place)


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
