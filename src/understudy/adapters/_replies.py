"""What a remote teacher is asked, and how its words become a distribution over the classes. Pure functions; nothing is sent here.

An answer is read or it is not: what names no class, or two, is no answer. A change in how replies are read raises PARSING,
which is part of the teacher's fingerprint.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from understudy.errors import TeacherError, did_you_mean

PARSING = "1"
AskFor = Literal["letters", "names"]
Reply = dict[str, Any]
"""What is kept of an answer: `text`, `top` (tokens and log-probabilities at the first place), `usage`; or `problem` and `raw`."""

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_LEAD = re.compile(r"^(?:the\s+)?(?:answer|label|class|category|option)(?:\s+is\s*:?|\s*[:=])\s*", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Za-z])\)?(?:\s*[.):–-]+\s*(.*))?", re.DOTALL)
_EDGES = " \t\r\n*_`\"'.,:;!?()[]"
RAW_KEPT = 2000


# --- the question ---------------------------------------------------------------------------------------------------


def columns_of(inputs: Any) -> dict[str, list[str]]:
    """The cells of a table as texts, by column; an array of texts is the one column `text`."""
    if "DataFrame" in type(inputs).__name__:
        return {str(name): [_cell(value) for value in inputs[name].tolist()] for name in inputs.columns}
    array = np.asarray(inputs)
    if array.ndim != 1 or array.dtype.kind not in "OUT":
        raise TeacherError(
            f"a remote teacher reads tables and texts; these rows are an array of {array.dtype}, shape {array.shape}. "
            "Wrap the service in a function that prepares them: source = 'module:function'",
            code="U330",
        )
    return {"text": [_cell(value) for value in array.tolist()]}


def _cell(value: Any) -> str:
    """A cell as it is written into a prompt: a whole number has no `.0`, since 7 and 7.0 are one row."""
    if value is None or value != value:
        return "(missing)"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return "(missing)" if str(value) in ("<NA>", "NaT") else str(value)


def default_prompt(columns: Sequence[str]) -> str:
    """Every column on a line of its own.

    >>> default_prompt(["age", "job"])
    'age: {age}\\njob: {job}'
    """
    return "\n".join(f"{column.replace('{', '{{').replace('}', '}}')}: {{{column}}}" for column in columns)


def fields_of(template: str) -> list[str]:
    """The columns that a prompt names."""
    return [found[1] for found in _FIELD.finditer(template) if found[1] is not None]


def check_prompt(template: str, columns: Sequence[str]) -> None:
    """TeacherError when a field of the template is no column, or when it has no field at all."""
    fields = fields_of(template)
    for field in fields:
        if field not in columns:
            raise TeacherError(f"the prompt has {{{field}}}, which is no column; {did_you_mean(field, columns)}", code="U330")
    if not fields:
        raise TeacherError(
            f"the prompt names no column, so every row would be asked the same; write {{{columns[0]}}} where its value belongs", code="U330"
        )


def fill(template: str, columns: Mapping[str, Sequence[str]], row: int) -> str:
    """The template with the cells of one row; doubled braces are braces.

    >>> fill("{{x}} {age}", {"age": ["41", "7"]}, 1)
    '{x} 7'
    """
    return _FIELD.sub(lambda found: found[0][0] if found[1] is None else columns[found[1]][row], template)


def choose_options(classes: Sequence[str], ask_for: AskFor, *, first_token: bool) -> tuple[str, ...]:
    """What stands for each class in an answer: a letter, or its name; refused where two classes could not be told apart."""
    if ask_for == "letters":
        if len(classes) > len(string.ascii_uppercase):
            raise TeacherError(
                f"{len(classes)} classes are more than there are letters; set teacher.options.ask_for = 'names' and "
                "answer = 'label' or 'votes'",
                code="U332",
            )
        letters = tuple(string.ascii_uppercase[: len(classes)])
        clash = next((name for name, own in zip(classes, letters, strict=True) if plain(name).upper() in set(letters) - {own}), None)
        if clash is not None:
            raise TeacherError(
                f"the class {clash!r} is also the letter of another option; set teacher.options.ask_for = 'names'", code="U332"
            )
        return letters
    seen: dict[str, str] = {}
    for name in classes:
        mark = plain(name)[:1] if first_token else plain(name)
        if not mark or mark in seen:
            what = "may begin with the same token" if first_token else "differ in case, spaces or punctuation only"
            raise TeacherError(
                f"the classes {seen.get(mark, '')!r} and {name!r} {what}, so an answer could mean either; "
                "ask with letters: teacher.options.ask_for = 'letters'",
                code="U332",
            )
        seen[mark] = name
    return tuple(classes)


def instruction(classes: Sequence[str], options: Sequence[str]) -> str:
    """The end of every prompt: the choices, and what an answer looks like."""
    if tuple(options) == tuple(classes):
        return "Which of these classes is it?\n" + "\n".join(f"- {name}" for name in classes) + "\nAnswer with the class alone."
    lines = "\n".join(f"{option}. {name}" for option, name in zip(options, classes, strict=True))
    return f"Which of these is it?\n{lines}\nAnswer with the letter alone."


# --- the reply ------------------------------------------------------------------------------------------------------


def read_body(body: str, estimate: tuple[int, int]) -> Reply:
    """What is kept of a server's answer; `estimate` are its tokens (prompt, completion) where it does not say."""
    try:
        said = json.loads(body)
    except ValueError:
        return {"problem": "the server's answer is not JSON", "raw": body[:RAW_KEPT], "usage": list(estimate)}
    usage = _usage(said, estimate)
    try:
        choice = said["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        return {"problem": "the server's answer has no choices[0].message.content", "raw": body[:RAW_KEPT], "usage": usage}
    reply: Reply = {"text": text, "usage": usage}
    top = _top(choice)
    return reply if top is None else reply | {"top": top}


def _usage(said: Any, estimate: tuple[int, int]) -> list[int]:
    found = said.get("usage") if isinstance(said, dict) else None
    found = found if isinstance(found, dict) else {}
    counts = [found.get(name) for name in ("prompt_tokens", "completion_tokens")]
    return [
        count if isinstance(count, int) and count >= 0 else other for count, other in zip(counts, estimate, strict=True)
    ]  # where it says nothing it counts as the most it can have been


def _top(choice: Any) -> list[list[Any]] | None:
    """Token and log-probability at the first place, None when there are none."""
    try:
        first = choice["logprobs"]["content"][0]
        listed = first.get("top_logprobs") or [first]
        pairs: list[tuple[str, float]] = [(str(entry["token"]), float(entry["logprob"])) for entry in listed]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    sound = all(not math.isnan(value) and value <= 0.01 for _, value in pairs)
    return [list(pair) for pair in pairs] if sound else None


def plain(text: str) -> str:
    """A text without the quotes, spaces and punctuation around it, in one case.

    >>> plain(" **Positive.** ")
    'positive'
    """
    return re.sub(r"\s+", " ", str(text).strip(_EDGES)).casefold()


def read_label(text: str, options: Sequence[str], classes: Sequence[str]) -> int | None:
    """The class that a reply names in its first line: by its option, by its name, or by both where they agree.

    >>> read_label("B) dog", "AB", ["cat", "dog"]), read_label("Answer: Cat.", "AB", ["cat", "dog"])
    (1, 0)
    >>> [read_label(text, "AB", ["cat", "dog"]) for text in ("A. dog", "cat or dog", "C", "")]
    [None, None, None, None]
    """
    line = next((line for line in text.strip().splitlines() if line.strip(_EDGES)), "")
    line = _LEAD.sub("", line.strip(" \t*_`\"'")).strip(" \t*_`\"'")
    found = {index for index, name in enumerate(classes) if plain(name) == plain(line)}
    letter = _LETTER.fullmatch(line) if tuple(options) != tuple(classes) else None
    if letter is not None and letter[1].upper() in options:
        index = list(options).index(letter[1].upper())
        rest = plain(letter[2] or "")
        if not rest or rest == plain(classes[index]):
            found.add(index)
    return found.pop() if len(found) == 1 else None


def read_logprobs(top: Sequence[Sequence[Any]], options: Sequence[str], *, least: float) -> np.ndarray[Any, Any] | None:
    """Probabilities of the options from the first token: the sum over its forms (case, leading space), then shares of their total.

    A token counts for an option when, plain, it is the option or its beginning. None when the options together hold less than `least`.

    >>> read_logprobs([["A", math.log(0.5)], [" a", math.log(0.1)], ["B", math.log(0.2)], ["I", math.log(0.2)]], "AB", least=0.5).round(4)
    array([0.75, 0.25])
    """
    marks = [plain(option) for option in options]
    mass = np.zeros(len(marks))
    for token, value in top:
        form = plain(token)
        hits = [index for index, mark in enumerate(marks) if form and mark.startswith(form)]
        if len(hits) == 1:
            mass[hits[0]] += math.exp(value)
    total = float(mass.sum())
    return None if total < max(least, 1e-9) else mass / total


def shares(votes: Sequence[int | None], classes: int, *, smoothing: float) -> np.ndarray[Any, Any] | None:
    """(votes of a class + smoothing) / (all votes + smoothing * classes); None unless more than half of the votes are readable.

    >>> shares([0, 0, 1, None], 2, smoothing=1.0).tolist()
    [0.6, 0.4]
    """
    given = [vote for vote in votes if vote is not None]
    if 2 * len(given) <= len(votes):
        return None
    counts = np.bincount(given, minlength=classes) + smoothing
    return np.asarray(counts / counts.sum())
