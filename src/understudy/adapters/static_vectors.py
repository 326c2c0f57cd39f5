"""Static vectors of tokens from a sentence encoder: the start of `text.static`.

Every token of the encoder's vocabulary is read by the encoder alone; principal components make the vectors shorter, and a
weight makes frequent tokens count less. With a corpus, vectors and weights are then trained until the weighted mean of a text's
tokens points where the encoder does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch.nn import functional

from understudy.adapters._sentence_encoder import SentenceEncoder
from understudy.data.tokenizing import TextEncoding
from understudy.errors import TeacherError
from understudy.losses.embeddings import embedding_cosine
from understudy.losses.relations import similarity_preserving
from understudy.students.text import Static
from understudy.teachers import digest

Array = np.ndarray[Any, Any]


@final
@dataclass(frozen=True)
class StaticVectors:
    """Vectors [tokens, width] and weights [tokens]."""

    vectors: Array
    weights: Array


def distill(
    place: str,
    tokens: TextEncoding,
    *,
    width: int = 256,
    smoothing: float = 1e-3,
    corpus: Array | None = None,
    epochs: int = 0,
    lr: float = 1e-3,
    batch_size: int = 256,
    relations: float = 0.0,
    seed: int = 0,
    cache: Path | None = None,
) -> StaticVectors:
    """The static vectors of an encoder for the tokens of a tokenizer, kept in `cache` since they take a while.

    `smoothing` is that of the weights a / (a + p) for tokens of frequency p (Arora, Liang & Ma 2017, section 3), counted in the corpus,
    or by Zipf's law from their order in the vocabulary; 0 leaves all weights 1. The training minimises one minus the cosine
    between a text's mean and the encoder's vector, plus `relations` times `relations.similarity_preserving` of the batch.
    """
    encoder = SentenceEncoder.open(place)
    if not 1 <= width <= encoder.width:
        raise TeacherError(f"student.options.width is {width}; the vectors of {place} have {encoder.width} numbers, take at most as many")
    texts = np.unique(corpus.ravel().astype(str)).astype(object) if corpus is not None and epochs else np.empty(0, dtype=object)
    said = repr((encoder.digest(), width, smoothing, epochs, lr, batch_size, relations, seed, tokens.length, tokens.special))
    name = digest(said.encode(), tokens.tokenizer.encode(), *(text.encode() for text in texts.tolist()))[:16]

    def make() -> dict[str, Array]:
        table, centre, axes = _token_vectors(encoder, tokens, width, cache)
        encoded = tokens.encode(texts)
        made = StaticVectors(table, _weights(tokens, encoded, smoothing))
        if len(texts):
            targets = torch.from_numpy((_said(encoder, texts, cache) - centre) @ axes)
            options: dict[str, Any] = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "relations": relations, "seed": seed}
            made = _trained(made, tokens, torch.from_numpy(encoded), targets, **options)
        return {"vectors": made.vectors, "weights": made.weights}

    return StaticVectors(**_kept(None if cache is None else cache / f"static-{name}.npz", make))


def _kept(file: Path | None, make: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """The arrays of a file, which is made whole when it is not there."""
    if file is not None and file.is_file():
        with np.load(file) as there:
            return {name: there[name] for name in there.files}
    made = make()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.part.npz")
        np.savez(part, **made)  # type: ignore[arg-type]
        part.replace(file)
    return made


def _said(encoder: SentenceEncoder, texts: Array, cache: Path | None) -> Array:
    """The encoder's vectors of these texts, asked once for all options of a training."""
    name = digest(encoder.digest().encode(), *(text.encode() for text in texts.tolist()))[:16]
    return _kept(None if cache is None else cache / f"vectors-{name}.npz", lambda: {"vectors": encoder.vectors(texts)})["vectors"]


def _token_vectors(encoder: SentenceEncoder, tokens: TextEncoding, width: int, cache: Path | None) -> tuple[Array, Array, Array]:
    """What the encoder says of each token alone, on its first principal components; the centre, and the axes [width of it, width]."""
    words = np.array([word.removeprefix("##").replace("\u2581", "") or word for word in tokens.words], dtype=object)
    said = _said(encoder, words, cache).astype(np.float64)
    centre = said.mean(axis=0)
    _, _, axes = np.linalg.svd(said - centre, full_matrices=False)
    axes = axes[:width].T
    vectors = (said - centre) @ axes
    vectors[tokens.padding] = 0
    return vectors.astype(np.float32), centre.astype(np.float32), axes.astype(np.float32)


def _weights(tokens: TextEncoding, encoded: Array, smoothing: float) -> Array:
    if not smoothing:
        return np.ones(tokens.size, dtype=np.float32)
    if encoded.size:
        counts = np.bincount(encoded[encoded != tokens.padding], minlength=tokens.size) + 1.0
    else:
        counts = 1.0 / np.arange(2, tokens.size + 2)
    return np.asarray(smoothing / (smoothing + counts / counts.sum()), dtype=np.float32)


def _trained(
    made: StaticVectors,
    tokens: TextEncoding,
    encoded: torch.Tensor,
    targets: torch.Tensor,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    relations: float,
    seed: int,
) -> StaticVectors:
    """Vectors and weights after training on the corpus towards the encoder's own vectors."""
    network = Static(made.vectors, made.weights, padding=tokens.padding)
    targets = functional.normalize(targets, dim=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * max(1, len(encoded) // batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=max(1, steps))
    longest = (encoded != tokens.padding).sum(dim=1)
    for _ in range(epochs):
        order = torch.randperm(len(encoded), generator=generator)
        for rows in order.split(batch_size):
            given, wanted = network(encoded[rows, : max(1, int(longest[rows].max()))]), targets[rows]
            loss = embedding_cosine(given, wanted).mean()
            if relations:
                loss = loss + relations * similarity_preserving(functional.normalize(given, dim=1), wanted).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return StaticVectors(network.embedding.weight.detach().numpy().copy(), network.weight.detach().numpy().copy())
