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

from understudy.errors import InputError
from understudy.losses._divergences import divergence, log_probabilities
from understudy.losses._shapes import positive, precise, same_shape

__all__ = ["ctc_frames"]


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
