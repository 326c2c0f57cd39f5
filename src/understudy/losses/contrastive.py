"""Losses that pull a row's embeddings together and push other rows' apart: `loss(student, teacher, *, options)`.

One value per row, which depends on its neighbours wherever they are what it is told apart from. Where a network has an
image and a text side, `student` and `teacher` are pairs (images, texts). Banks of embeddings are arguments:
understudy.contrasts keeps them. To add a loss: write it here, name it in `__all__`, and give it a line in
tests/definitions_features.py.

When it helps and hurts: Embeddings as the product (search, retrieval, faces), a teacher of another kind (image and text,
sound), or a student whose classes are too few to carry what the teacher knows. With a few hundred rows there are too few others
to be told apart from.

Known problems: A memory bank holds every training row at the given width, twice. Rows of the same class among the negatives
push apart what belongs together: `exclude_class` leaves them out where labels are known. Banks are not shared between
processes.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from understudy.errors import InputError
from understudy.losses._maps import pair, same_rows, unit
from understudy.losses._shapes import positive, precise, same_shape

__all__ = ["contrastive_relation", "contrastive_representation", "in_batch_contrast", "interactive_contrast"]


def contrastive_representation(
    student: Float[Tensor, "batch width"],
    teacher: Float[Tensor, "batch width"],
    *,
    student_bank: Float[Tensor, "entries width"],
    teacher_bank: Float[Tensor, "entries width"],
    positions: Int[Tensor, "batch candidates"],
    temperature: float | Float[Tensor, ""] = 0.07,
    student_log_partition: float | Tensor | None = None,
    teacher_log_partition: float | Tensor | None = None,
) -> Float[Tensor, " batch"]:
    """Noise-contrastive estimation of which entry of a bank belongs to a row, from either side (CRD).

    -log(P_0 / (P_0 + c)) - sum_k log(m / (P_k + c)) for the K candidates k after the first, which is the row's own entry; P_k =
    exp(student . teacher_bank[k] / T) / Z, m = K / entries and c = m + 1e-7; plus the same for the teacher beside the
    student's bank. `positions` are the candidates' places in the banks; embeddings and banks have length one. The
    partition Z is a constant: `log_partition` of the first batch, which is what None computes from this one. Published: K
    = 16384, width 128, weight 0.8. CIFAR-100, ResNet-32x4 to ResNet-8x4: 75.51 % (72.50 alone), ResNet-50 to MobileNetV2:
    69.11 (64.60 alone). Tian, Krishnan & Isola 2020, arXiv:1910.10699, section 3.

    >>> bank, own = torch.eye(2), torch.tensor([[0, 1], [1, 0]])
    >>> contrastive_representation(bank, bank, student_bank=bank, teacher_bank=bank, positions=own, temperature=1.0)
    tensor([1.9031, 1.9031])
    """
    same_shape(student, teacher, "teacher")
    same_shape(student_bank, teacher_bank, "teacher_bank")
    positive("temperature", temperature)
    if len(positions) != len(student) or positions.ndim != 2 or student_bank.shape[1:] != student.shape[1:]:
        raise InputError(
            f"positions must have one line of candidates per row and the banks the student's width: student is {list(student.shape)}, "
            f"positions is {list(positions.shape)}, student_bank is {list(student_bank.shape)}. Draw candidates for these rows",
            code="U313",
        )
    student, teacher = pair(student, teacher)
    ours = _candidates(student, teacher_bank, positions, temperature)
    theirs = _candidates(teacher, student_bank, positions, temperature)
    entries = len(student_bank)
    return _estimation(ours, student_log_partition, entries) + _estimation(theirs, teacher_log_partition, entries)


def log_partition(
    anchors: Float[Tensor, "batch width"],
    bank: Float[Tensor, "entries width"],
    positions: Int[Tensor, "batch candidates"],
    *,
    temperature: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """The logarithm of the constant Z of `contrastive_representation`: the mean of exp(logit) over this batch, times entries."""
    return _log_partition(_candidates(precise(anchors), bank, positions, temperature), len(bank)).detach()


def in_batch_contrast(
    student: Float[Tensor, "batch width"],
    teacher: Float[Tensor, "batch width"],
    *,
    temperature: float | Float[Tensor, ""] = 0.07,
    symmetric: bool = False,
) -> Float[Tensor, " batch"]:
    """Cross-entropy of finding a row's own teacher embedding among those of the batch (InfoNCE).

    -log(exp(u_i . v_i / T) / sum_j exp(u_i . v_j / T)) for embeddings u and v divided by their lengths; symmetric: the mean of
    this and of finding the student from the teacher. Not 0 at student = teacher. A variant of CRD without a memory bank, not
    the objective of that publication. van den Oord, Li & Vinyals 2018, arXiv:1807.03748, section 2.3.

    >>> in_batch_contrast(torch.eye(2), torch.eye(2), temperature=1.0)
    tensor([0.3133, 0.3133])
    """
    same_shape(student, teacher, "teacher")
    positive("temperature", temperature)
    logits = _similarities(student, teacher) / temperature
    return (_found(logits) + _found(logits.T)) / 2 if symmetric else _found(logits)


def interactive_contrast(
    student: tuple[Float[Tensor, "batch width"], Float[Tensor, "batch width"]],
    teacher: tuple[Float[Tensor, "batch width"], Float[Tensor, "batch width"]],
    *,
    scale: float | Float[Tensor, ""] = 1 / 0.07,
) -> Float[Tensor, " batch"]:
    """Cross-entropy of finding the teacher's text from the student's image, and its image from the student's text (CLIP-KD's ICL).

    [-log softmax_j(scale * image_i . text'_j)_i - log softmax_j(scale * text_i . image'_j)_i] / 2, where the teacher's are
    primed and all are divided by their lengths: log softmax is x_i - log sum_j exp(x_j). `student` and `teacher` are (images,
    texts); the scale is the multiplier itself, not its logarithm, and may be learned. Zero-shot ImageNet, ViT-T/16 student:
    33.11 % (30.55 alone, 34.23 with normalised features' squared error). Yang et al. 2024, arXiv:2307.12732, section 3.

    >>> two = torch.eye(2)
    >>> interactive_contrast((two, two), (two, two), scale=1.0)
    tensor([0.3133, 0.3133])
    """
    _same_pairs(student, teacher, same_width=True)
    images = _found(_similarities(student[0], teacher[1]) * scale)
    return (images + _found(_similarities(student[1], teacher[0]) * scale)) / 2


def contrastive_relation(
    student: tuple[Float[Tensor, "batch student_width"], Float[Tensor, "batch student_width"]],
    teacher: tuple[Float[Tensor, "batch teacher_width"], Float[Tensor, "batch teacher_width"]],
    *,
    student_scale: float | Float[Tensor, ""] = 1 / 0.07,
    teacher_scale: float | Float[Tensor, ""] = 1 / 0.07,
) -> Float[Tensor, " batch"]:
    """KL(teacher || student) of how images find texts, and texts images, within the batch (CLIP-KD's CKD).

    [sum_j q_ij log(q_ij / p_ij) + sum_j q'_ij log(q'_ij / p'_ij)] / 2, where p_i = softmax_j(scale * image_i . text_j) and p'_i =
    softmax_j(scale * text_i . image_j) in the student, q and q' in the teacher, with embeddings divided by their lengths.
    `student` and `teacher` are (images, texts); each has its own scale, the multiplier itself, not its logarithm. Rows of
    other machines are not gathered here. Yang et al. 2024, arXiv:2307.12732, section 3.

    >>> two = torch.eye(2)
    >>> contrastive_relation((two, two), (two, two))
    tensor([0., 0.])
    """
    _same_pairs(student, teacher, same_width=False)
    ours = _similarities(*student) * student_scale
    theirs = (_similarities(*teacher) * teacher_scale).to(ours.dtype)
    return (_divergence(ours, theirs) + _divergence(ours.T, theirs.T)) / 2


def _candidates(anchors: Tensor, bank: Tensor, positions: Tensor, temperature: float | Tensor) -> Tensor:
    """Logits [rows, candidates]: one product with the whole bank is smaller than the candidates' embeddings."""
    return (anchors @ bank.to(anchors.dtype).T).gather(1, positions) / temperature


def _log_partition(logits: Tensor, entries: int) -> Tensor:
    return torch.logsumexp(logits, (0, 1)) - math.log(max(1, logits.numel())) + math.log(entries)


def _estimation(logits: Tensor, log_z: float | Tensor | None, entries: int) -> Tensor:
    """The loss in logarithms: log(P / (P + c)) is logsigmoid(log P - log c)."""
    noise = (logits.shape[1] - 1) / entries
    log_noise = math.log(noise + 1e-7)
    away = logits - (_log_partition(logits, entries).detach() if log_z is None else log_z) - log_noise
    constant = (logits.shape[1] - 1) * (log_noise - math.log(noise)) if noise else 0.0
    return constant - functional.logsigmoid(away[:, 0]) - functional.logsigmoid(-away[:, 1:]).sum(1)


def _similarities(first: Tensor, second: Tensor) -> Tensor:
    first, second = pair(first, second)
    return unit(first) @ unit(second).T


def _found(logits: Tensor) -> Tensor:
    """Cross-entropy of the diagonal, row by row."""
    return logits.logsumexp(1) - logits.diagonal()


def _divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    log_ours, log_theirs = ours.log_softmax(1), theirs.log_softmax(1)
    return (log_theirs.exp() * (log_theirs - log_ours)).sum(1)


def _same_pairs(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], *, same_width: bool) -> None:
    same_shape(student[0], student[1], "the student's texts")
    same_shape(teacher[0], teacher[1], "the teacher's texts")
    if same_width:
        same_shape(student[0], teacher[0], "teacher")
    else:
        same_rows(student[0], teacher[0])
