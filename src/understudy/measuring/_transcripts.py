"""What a recogniser says, from its frames, and how many words of it are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from understudy.signals import is_written

Array = np.ndarray[Any, Any]


def transcripts(answers: Array) -> Array:
    """The best token of each frame, repeats and blanks (the last token) taken out, int64 [rows, most], -1 after the end.

    >>> transcripts(np.eye(3)[None, [0, 0, 2, 0, 1, 1]]).tolist()
    [[0, 0, 1]]
    """
    path = answers.argmax(axis=-1)
    kept = path != answers.shape[-1] - 1
    kept[:, 1:] &= path[:, 1:] != path[:, :-1]
    order = np.argsort(~kept, axis=1, kind="stable")
    counts = kept.sum(axis=1)
    most = max(1, int(counts.max(initial=0)))
    found = np.take_along_axis(path, order, axis=1)[:, :most]
    return np.where(np.arange(most) < counts[:, None], found, -1)


def word_errors(said: Array, true: Array) -> Array:
    """The least number of words to put in, take out or change to make one of the other, int64 [rows]; -1 after each end.

    All rows at once, one cell of Levenshtein's table at a time.

    >>> word_errors(np.array([[1, 2, -1], [3, -1, -1]]), np.array([[1, 2, 3], [3, 3, -1]])).tolist()
    [1, 1]
    """
    rows, longest = len(said), said.shape[1]
    counts, wanted = (said >= 0).sum(axis=1), (true >= 0).sum(axis=1)
    row = np.broadcast_to(np.arange(true.shape[1] + 1), (rows, true.shape[1] + 1)).copy()
    found = row[np.arange(rows), wanted]
    for at in range(longest):
        above, row = row, np.empty_like(row)
        row[:, 0] = at + 1
        for column in range(true.shape[1]):
            changed = above[:, column] + (said[:, at] != true[:, column])
            row[:, column + 1] = np.minimum(np.minimum(above[:, column + 1], row[:, column]) + 1, changed)
        found = np.where(counts == at + 1, row[np.arange(rows), wanted], found)
    return found


def counted(answers: Array) -> Array:
    """The frames before each row's end, bool [rows, frames]: after it the blank is certain, and the other logits are 0."""
    return np.asarray((answers[..., :-1] != 0).any(axis=-1))


def written(answers: Array) -> bool:
    """Whether these are texts laid along the frames, whose times mean nothing."""
    return is_written(torch.from_numpy(answers))
