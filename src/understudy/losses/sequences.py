"""Losses between the frames of two sequence models: `loss(student, teacher, *, options)` -> [batch, time].

Frames are those that both models give after their subsampling, which must be the same. Divide the sum by the number of
frames that count, over the whole batch. To add one: write it here, name it in `__all__`, and give it a line in
tests/definitions_tokens.py.

When it helps and hurts: Speech students with the teacher's encoder or its frame rate. Where the two spike in different frames
it is a penalty on timing, and the transcript alone is better.

Known problems: Frames after subsampling must match; lengths are those after subsampling. A CTC model says blank in most frames,
which drowns the rest unless they are left out.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from understudy.errors import InputError
from understudy.losses._beams import likeliest
from understudy.losses._divergences import divergence, log_probabilities
from understudy.losses._shapes import positive, precise, same_shape

__all__ = ["best_path", "ctc_frames", "ctc_labels", "likeliest_labels"]


def ctc_frames(
    student: Float[Tensor, "batch time tokens"],
    teacher: Float[Tensor, "batch time tokens"],
    *,
    lengths: Int[Tensor, " batch"] | None = None,
    without_blank: int | None = None,
    temperature: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, "batch time"]:
    """KL(teacher || student) of each frame of a CTC model, times temperature squared; the blank is a token like others.

    T^2 * sum_v p_v (log p_v - log q_v), where p = softmax(teacher / T) and q = softmax(student / T); 0 from a row's length on.
    `without_blank` is the blank's index: frames in which the teacher says it first are then 0 as well, so that most of
    the loss is not about silence. Hilmes, Rossenbach & Schlueter 2025, arXiv:2506.01503, section 3. It helps where student and
    teacher spike in the same frames, as with a shared encoder; where they do not it holds the student back.

    >>> said = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])
    >>> ctc_frames(said.flip(1), said, lengths=torch.tensor([1]))
    tensor([[0.4338, 0.0000]])
    """
    same_shape(student, teacher, "teacher")
    positive("temperature", temperature)
    if lengths is not None and (lengths.shape != student.shape[:1] or lengths.is_floating_point()):
        raise InputError(
            f"lengths must hold one number of frames per row: student is {list(student.shape)}, "
            f"lengths are {lengths.dtype} {list(lengths.shape)}",
            code="U305",
        )
    student = precise(student)
    teacher = teacher.to(student.dtype)
    counted = torch.ones(student.shape[:2], dtype=torch.bool, device=student.device)
    if lengths is not None:
        counted = torch.arange(student.shape[1], device=student.device) < lengths[:, None]
    if without_blank is not None:
        if not 0 <= without_blank < student.shape[-1]:
            raise InputError(f"the blank must be one of the {student.shape[-1]} tokens (got {without_blank})", code="U305")
        counted = counted & (teacher.argmax(-1) != without_blank)
    # filled before the softmax, so that NaN in padding does not reach the gradient
    student, teacher = (torch.where(counted[..., None], each, 0.0) for each in (student, teacher))
    return divergence(log_probabilities(teacher, temperature), log_probabilities(student, temperature)) * temperature**2


def ctc_labels(student: Float[Tensor, "batch time tokens"], labels: Int[Tensor, "batch most"]) -> Float[Tensor, " batch"]:
    """Minus the log-probability of the labels, over all ways to lay them along the frames, for each label; the blank is the last token.

    -log sum_{paths that collapse to y} prod_t q_t(path_t) / |y|, where q = softmax(student); `labels` are -1 after their end.
    Graves, Fernandez, Gomez & Schmidhuber 2006, "Connectionist Temporal Classification", section 4. Labels that do not fit
    into the frames give 0. Frames after a row's end, where the blank is certain, change nothing.

    >>> ctc_labels(torch.zeros(1, 2, 2), torch.tensor([[0, -1]]))  # three of four paths say it
    tensor([0.2877])
    """
    if student.ndim != 3 or labels.shape[:1] != student.shape[:1] or labels.ndim != 2:
        raise InputError(
            f"student is [batch, time, tokens] and labels [batch, most] of the same rows: student is {list(student.shape)}, "
            f"labels are {list(labels.shape)}",
            code="U431",
        )
    return _likelihood(precise(student), labels.clamp(min=0), (labels >= 0).sum(1))


def best_path(student: Float[Tensor, "batch time tokens"], teacher: Float[Tensor, "batch time tokens"]) -> Float[Tensor, " batch"]:
    """`ctc_labels` of what the teacher says: its best token of each frame, repeats and blanks taken out.

    -log sum_{paths that collapse to y} prod_t q_t(path_t) / |y|, where q = softmax(student) and y = collapse(argmax teacher).
    Sequence-level distillation with one hypothesis (Kim & Rush 2016, arXiv:1606.07947, section 3.2) for models with a blank: the
    student may lay the words along the frames in its own way, so it does not matter where the teacher spikes. A row whose blank is
    certain in every frame has no answer, and gives 0.

    >>> spikes = torch.tensor([[[0.0, 9.0], [9.0, 0.0]]])
    >>> best_path(torch.zeros(1, 2, 2), spikes)
    tensor([0.2877])
    """
    same_shape(student, teacher, "teacher")
    path = teacher.argmax(-1)
    blank = teacher.shape[-1] - 1
    kept = path != blank
    kept[:, 1:] &= path[:, 1:] != path[:, :-1]
    order = (~kept).int().argsort(dim=1, stable=True)
    # a blank is no label: what stands after the end is never read, but must be one
    values = _likelihood(precise(student), path.gather(1, order).clamp(max=blank - 1), kept.sum(1))
    return torch.where(_spoken(teacher), values, 0.0)


def likeliest_labels(
    student: Float[Tensor, "batch time tokens"], teacher: Float[Tensor, "batch time tokens"], *, hypotheses: int = 4
) -> Float[Tensor, " batch"]:
    """`ctc_labels` of the teacher's likeliest label sequences, each by how sure the teacher is of it among them.

    -sum_{y in best} w(y) log sum_{paths that collapse to y} prod_t q_t(path_t) / |y|, where q = softmax(student) and w is the
    teacher's own probability of y, made to sum to 1. Sequence-level distillation with the n best (Kim & Rush 2016,
    arXiv:1606.07947, section 3.2; for CTC, Takashima, Li & Kawai 2018, "An investigation of a knowledge distillation method for
    CTC acoustic models"). The n best come from a prefix beam search four times as wide, eight places at least. A row whose blank is
    certain in every frame has no answer, and gives 0.

    >>> likeliest_labels(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), hypotheses=2)  # 3/4 of it "0", 1/4 nothing
    tensor([0.5623])
    """
    same_shape(student, teacher, "teacher")
    positive("hypotheses", float(hypotheses))
    student = precise(student)
    if not len(student):
        return student.flatten(1).sum(1)
    teacher = teacher.detach().to(student.dtype)
    labels, counts = likeliest(log_probabilities(teacher), hypotheses, max(8, 4 * hypotheses))
    flat, sizes = labels.flatten(0, 1).clamp(min=0), counts.flatten()
    ours, theirs = (
        _likelihood(each.repeat_interleave(hypotheses, 0), flat, sizes).unflatten(0, (-1, hypotheses)) for each in (student, teacher)
    )
    return torch.where(_spoken(teacher), (torch.softmax(-theirs * counts.clamp(min=1), dim=1) * ours).sum(1), 0.0)


def _spoken(teacher: Tensor) -> Tensor:
    """Which rows have an answer, bool [rows]: the blank is not certain in every frame, as it is after an end."""
    return (log_probabilities(precise(teacher))[..., -1] < 0).any(1)


def _likelihood(student: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    if not len(student):
        return student.flatten(1).sum(1)
    log_q = log_probabilities(student).transpose(0, 1)
    frames = torch.full_like(counts, student.shape[1])
    blank = student.shape[-1] - 1
    values = functional.ctc_loss(log_q, labels, frames, counts, blank=blank, reduction="none", zero_infinity=True)
    return values / counts.clamp(min=1)
