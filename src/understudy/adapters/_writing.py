"""Text that a model writes, as the answers of a recogniser: in the words of the data, laid along the frames.

The text says which words there are and not when. They are laid evenly over the frames, in numbers that no network gives
(understudy.signals.is_written), so that only losses that do not look at times are used on them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from understudy.errors import TeacherError
from understudy.signals import CERTAIN
from understudy.tasks import Task


@final
class Vocabulary:
    """The words of a task as a text may spell them: without case and punctuation; letter by letter where each word is one character.

    `words` says what else a text may hold for a word of the data, such as {"three": "3"}. TeacherError U437 for words that become one.
    """

    def __init__(self, task: Task, words: Mapping[str, str] | None = None) -> None:
        self.codes: dict[str, int] = {}
        for code, name in enumerate(task.classes):
            plain = " ".join(normalised(name)) or name
            if plain in self.codes:
                told = f"the words {task.classes[self.codes[plain]]!r} and {name!r} are one without case and punctuation"
                raise TeacherError(f"{told}: a text cannot say which; make them one in the labels", code="U437")
            self.codes[plain] = code
        self.letters = all(len(name) == 1 for name in self.codes)
        self.between = self.codes.get("|")
        self.words: dict[str, str] = {}
        for text, name in (words or {}).items():
            plain = " ".join(normalised(str(name))) or str(name)
            if plain not in self.codes:
                raise TeacherError(f"teacher.options.words: {name!r} (for {text!r}) is no word of the data", code="U437")
            self.words[" ".join(normalised(str(text)))] = plain

    def read(self, text: str) -> list[int] | None:
        """The words of a text by their number, None where it holds something that is none of them."""
        said: list[int | None] = []
        for number, word in enumerate(normalised(text)):
            known = self.codes.get(self.words.get(word, word))
            spelled = [known] if known is not None or not self.letters else [self.codes.get(letter) for letter in word]
            said += ([self.between] if number and self.between is not None else []) + spelled
        codes = [code for code in said if code is not None]
        return codes if len(codes) == len(said) else None


def normalised(text: str) -> list[str]:
    """The words of a text in lower case, compatible characters made one, everything but letters, marks, digits and apostrophes left out.

    >>> normalised("Three, don't -- FOUR!")
    ['three', "don't", 'four']
    """
    plain = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    kept = "".join(letter if letter == "'" or unicodedata.category(letter)[0] in "LMN" else " " for letter in plain)
    return [word for word in (part.strip("'") for part in kept.split()) if word]


def laid_out(said: Sequence[Sequence[int] | None], frames: int, ends: Sequence[int], outputs: int) -> Tensor:
    """Logits [rows, frames, outputs] of one path per row, from its words spread evenly over the frames before its end.

    A row whose words are not known (None), or do not fit, has ended from its first frame: nothing is said of it.
    """
    blank = outputs - 1
    ended = torch.zeros(outputs)
    ended[blank] = CERTAIN
    answers = ended.repeat(len(said), frames, 1)
    for row, (codes, end) in enumerate(zip(said, ends, strict=True)):
        least = [] if codes is None else _apart(codes, blank)
        if not least or len(least) > end:
            continue
        path = torch.full((end,), blank)
        path[torch.arange(len(least)) * end // len(least)] = torch.tensor(least)
        answers[row, :end] = -CERTAIN
        answers[row, torch.arange(end), path] = 0.0
    return answers


def _apart(codes: Sequence[int], blank: int) -> list[int]:
    """The shortest path that says these words: a blank between two that are the same."""
    path: list[int] = []
    for code in codes:
        path += [blank, code] if path and path[-1] == code else [code]
    return path
