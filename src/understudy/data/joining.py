"""Connected speech from single words: clips of one speaker joined with pauses and noise, seeded, so that every word is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from understudy.data._sound_views import ends, to_samples
from understudy.data._source import Source
from understudy.errors import DataError

Array = np.ndarray[Any, Any]

PAUSE = 0.25
"""Longest pause between words, in seconds."""
NOISE = (10.0, 30.0)
"""How far the noise lies below the words, in decibels."""


def join_clips(source: Source, count: int, words: tuple[int, int], *, rate: int, seed: int) -> Source:
    """`count` strings of clips, shared out over the splits and the speakers in proportion to their clips; labels are texts.

    Each string joins clips of one speaker in one split, drawn with replacement, with pauses of up to a quarter of a second and
    noise 10 to 30 decibels below; string number n is a function of the seed and n. DataError U429 without labels.
    """
    labels = None if source.labels is None else np.asarray(source.labels, dtype=object)
    if labels is None or labels.ndim != 1:
        raise DataError("data.strings joins clips whose words are known, and these have no label each: give labels", code="U429")
    if not 1 <= words[0] <= words[1]:
        raise DataError(f"data.words = {list(words)}: the least and the most words of a string, at least 1", code="U429")
    clips = len(source.inputs)
    split = source.split if source.split is not None else np.full(clips, "train", dtype="<U10")
    speaker = source.groups if source.groups is not None else np.full(clips, "", dtype=object)
    _, place = np.unique(np.array([f"{a}\x1f{b}" for a, b in zip(split, speaker, strict=True)]), return_inverse=True)
    stops = ends(source.inputs)
    waves, texts, names, chosen = [], [], [], []
    for number, first in enumerate(_places(np.bincount(place), count)):
        random = np.random.default_rng([seed, number])
        drawn = random.choice(np.flatnonzero(place == first), size=int(random.integers(words[0], words[1] + 1)))
        waves.append(_string([source.inputs[at, : stops[at]] for at in drawn], random, rate))
        texts.append(" ".join(str(labels[at]) for at in drawn))
        names.append(f"string {number} ({texts[-1]})")
        chosen.append(drawn[0])
    inputs = np.zeros((count, max(map(len, waves))), dtype=np.int16)
    for row, wave in enumerate(waves):
        inputs[row, : len(wave)] = wave
    return replace(
        source,
        inputs=inputs,
        labels=np.array(texts, dtype=object),
        names=np.array(names),
        split=None if source.split is None else split[chosen],
        groups=None if source.groups is None else speaker[chosen],
        classes=source.classes or tuple(sorted({str(label) for label in labels})),
    )


def _places(sizes: Array, count: int) -> Array:
    """A place for each of `count` strings, as many of each as it has clips, to the nearest whole number."""
    return np.searchsorted(np.cumsum(sizes), (np.arange(count) + 0.5) * sizes.sum() / count, side="right")


def _string(clips: list[Array], random: np.random.Generator, rate: int) -> Array:
    """Clips one after another, a pause before each and after the last; its last sample is not zero."""
    parts = []
    for clip in clips:
        parts += [np.zeros(int(random.uniform(0, PAUSE) * rate), dtype=np.float32), clip.astype(np.float32)]
    whole = np.concatenate([*parts, np.zeros(int(random.uniform(0, PAUSE) * rate), dtype=np.float32)])
    level = float(np.sqrt(np.mean(np.concatenate(clips).astype(np.float64) ** 2))) * 10 ** (-random.uniform(*NOISE) / 20)
    found = to_samples(whole + (random.standard_normal(len(whole)) * level).astype(np.float32))
    found[-1] = found[-1] or 1  # a clip ends at its last sample that is not zero
    return found
