"""Definitions by hand of losses on tokens and frames: one row [time][vocabulary] at a time, one value per position."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from definitions import CLASSES, TIME, TOKENS, Definition, Kind, divergence, first, normal, softmax

Position = list[float]
Row = list[Position]

IDS = Kind(lambda seed, rows, dtype: normal(seed, rows, TIME, CLASSES).argsort(-1)[..., :2], anything=False)
LARGEST = Kind(lambda seed, rows, dtype: normal(seed, rows, TIME, CLASSES).log_softmax(-1)[..., :2].to(dtype), anything=False)
COUNTS = Kind(lambda seed, rows, dtype: (normal(seed, rows, TIME, 2).abs() + torch.tensor([1.0, 0.0])).long(), anything=False)
WORDS = Kind(
    lambda seed, rows, dtype: (
        (normal(seed, rows, 2).abs().long() % (CLASSES - 1)).where(normal(seed + 9, rows, 2) > -2, -1).sort(1, descending=True).values
    ),
    anything=False,
)
"""Up to two words of a row, then -1."""
OTHER_TOKENS = Kind(lambda seed, rows, dtype: normal(seed, rows, TIME + 1, CLASSES + 2, dtype=dtype))


def each(value: Callable[[Position, Position], float]) -> Callable[[Row, Row], list[float]]:
    """The value of every position."""
    return lambda student, teacher: [value(q, p) for q, p in zip(student, teacher, strict=True)]


def mixture(p: Position, q: Position, share: float) -> Position:
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def skewed_forward(student: Position, teacher: Position) -> float:
    p, q = softmax(teacher), softmax(student)
    return divergence(p, mixture(p, q, 0.2))


def skewed_reverse(student: Position, teacher: Position) -> float:
    p, q = softmax(teacher), softmax(student)
    return divergence(q, mixture(p, q, 0.7))


def jensen_shannon(student: Position, teacher: Position) -> float:
    p, q = softmax(teacher, 2), softmax(student, 2)
    middle = mixture(p, q, 0.3)
    return 0.3 * divergence(p, middle) + 0.7 * divergence(q, middle)


def total_variation(student: Position, teacher: Position) -> float:
    return sum(max(a - b, 0) for a, b in zip(softmax(teacher), softmax(student), strict=True))


def interpolated(student: Position, teacher: Position) -> float:
    return divergence(softmax(mixture(teacher, student, 0.3)), softmax(student))


def sorted_probabilities(student: Position, teacher: Position) -> float:
    p, q = (sorted(softmax(row, 2), reverse=True) for row in (teacher, student))
    return sum(abs(a - b) for a, b in zip(p, q + [0.0] * 2, strict=True))


def topk_tail(student: Row, ids: list[list[int]], log_probabilities: Row) -> list[float]:
    values = []
    for said, chosen, logs in zip(student, ids, log_probabilities, strict=True):
        q, p = softmax(said), [math.exp(log) for log in logs]
        kept = [q[token] for token in chosen]
        values.append(divergence([*p, 1 - sum(p)], [*kept, 1 - sum(kept)]))
    return values


def sampled(student: Row, ids: list[list[int]], counts: list[list[int]]) -> list[float]:
    values = []
    for said, chosen, drawn in zip(student, ids, counts, strict=True):
        q = softmax(said)
        every = [token for token, count in zip(chosen, drawn, strict=True) for _ in range(count)]
        values.append(-sum(math.log(q[token]) for token in every) / len(every))
    return values


def collapsed(path: tuple[int, ...]) -> list[int]:
    """Repeats and blanks (the last token) taken out."""
    return [token for at, token in enumerate(path) if token != CLASSES - 1 and (at == 0 or token != path[at - 1])]


def ctc(student: Row, labels: list[int]) -> float:
    """Minus the logarithm of the sum over every path there is, for each label."""
    wanted = [label for label in labels if label >= 0]
    chances = [softmax(position) for position in student]
    paths = [path for path in itertools.product(range(CLASSES), repeat=len(student)) if collapsed(path) == wanted]
    whole = sum(math.prod(chance[token] for chance, token in zip(chances, path, strict=True)) for path in paths)
    return -math.log(whole) / max(1, len(wanted))


def best_path(student: Row, teacher: Row) -> float:
    return ctc(student, collapsed(tuple(max(range(CLASSES), key=position.__getitem__) for position in teacher)))


def likeliest(student: Row, teacher: Row) -> float:
    """Every label sequence there is, by the teacher's probability; the best two."""
    chances = [softmax(position) for position in teacher]
    whole: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(CLASSES), repeat=len(teacher)):
        said = tuple(collapsed(path))
        whole[said] = whole.get(said, 0.0) + math.prod(chance[token] for chance, token in zip(chances, path, strict=True))
    best = sorted(whole.items(), key=lambda item: -item[1])[:2]
    return sum(chance * ctc(student, list(said)) for said, chance in best) / sum(chance for _, chance in best)


DEFINITIONS = {
    "tokens.forward_kl": Definition(
        each(lambda q, p: 4 * divergence(softmax(p, 2), softmax(q, 2))),
        (TOKENS,),
        TOKENS,
        {"temperature": 2.0},
        least_at=first,
        shift_changes_nothing=True,
    ),
    "tokens.reverse_kl": Definition(
        each(lambda q, p: 4 * divergence(softmax(q, 2), softmax(p, 2))),
        (TOKENS,),
        TOKENS,
        {"temperature": 2.0},
        least_at=first,
        shift_changes_nothing=True,
    ),
    "tokens.skewed_forward_kl": Definition(
        each(skewed_forward), (TOKENS,), TOKENS, {"teacher_weight": 0.2}, least_at=first, shift_changes_nothing=True
    ),
    "tokens.skewed_reverse_kl": Definition(
        each(skewed_reverse), (TOKENS,), TOKENS, {"teacher_weight": 0.7}, least_at=first, shift_changes_nothing=True
    ),
    "tokens.jensen_shannon": Definition(
        each(jensen_shannon),
        (TOKENS,),
        TOKENS,
        {"teacher_weight": 0.3, "temperature": 2.0},
        least_at=first,
        shift_changes_nothing=True,
    ),
    "tokens.total_variation": Definition(each(total_variation), (TOKENS,), TOKENS, least_at=first, shift_changes_nothing=True),
    "tokens.interpolated_teacher": Definition(
        each(interpolated), (TOKENS,), TOKENS, {"teacher_weight": 0.3}, least_at=first, shift_changes_nothing=True
    ),
    "tokens.sorted_probabilities": Definition(
        lambda q, p: each(sorted_probabilities)(q, p[:TIME]),
        (OTHER_TOKENS,),
        TOKENS,
        {"temperature": 2.0},
        shift_changes_nothing=True,
        broadcast_refused=False,
    ),
    "topk.topk_tail_kl": Definition(topk_tail, (IDS, LARGEST), TOKENS, shift_changes_nothing=True),
    "topk.sampled_cross_entropy": Definition(sampled, (IDS, COUNTS), TOKENS, shift_changes_nothing=True),
    "sequences.ctc_frames": Definition(
        each(lambda q, p: 4 * divergence(softmax(p, 2), softmax(q, 2))),
        (TOKENS,),
        TOKENS,
        {"temperature": 2.0},
        least_at=first,
        shift_changes_nothing=True,
    ),
    "sequences.ctc_labels": Definition(ctc, (WORDS,), TOKENS, shift_changes_nothing=True, broadcast_refused=False),
    "sequences.likeliest_labels": Definition(likeliest, (TOKENS,), TOKENS, {"hypotheses": 2}, shift_changes_nothing=True),
    "sequences.best_path": Definition(best_path, (TOKENS,), TOKENS, shift_changes_nothing=True),
}
"""Place of a loss -> its definition; masks and lengths have tests of their own in test_losses_tokens.py."""
