"""Losses between a student's logits and a teacher's: `loss(student, teacher, *, options)`, one value per row.

Some read the labels as well, `loss(student, teacher, labels, *, options)`; there a row without a label (-1) gives 0 and no
gradient. Log-probabilities are logits too; a teacher may say minus infinity (probability 0) in the soft targets. To add one:
write it here, name it in `__all__`, and give it a line in tests/definitions_logits.py.

When it helps and hurts: The default: any teacher that gives probabilities, any student. It helps where the teacher is better
than what labels alone give and where its second choices mean something; it gives nothing where the control is as good already,
and a temperature that is too high for a short training costs accuracy ([results](../results.md)).

Known problems: A mean over classes instead of a sum, or a missing factor of temperature squared, changes the weight by a factor
of a hundred: here it is always the sum, and the factor is there. With two classes there is no other class to compare, so
`decoupled` and `normalized` are refused.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from understudy.errors import InputError
from understudy.losses._divergences import LOWEST, divergence, log_probabilities, without_label
from understudy.losses._shapes import labelled, positive, precise, same_shape

__all__ = [
    "binary_soft_target",
    "decoupled",
    "ensemble_soft_target",
    "hard_target",
    "logit_mse",
    "normalized",
    "soft_target",
    "standardized",
    "teacher_cross_entropy",
    "transformed_teacher",
    "weighted_soft_label",
    "weighted_transformed_teacher",
]


def soft_target(
    student: Float[Tensor, "*batch classes"], teacher: Float[Tensor, "*batch classes"], *, temperature: float | Float[Tensor, ""] = 4.0
) -> Float[Tensor, "*batch"]:
    """KL(teacher || student) between softened distributions, times temperature squared.

    T^2 * sum_c q_c (log q_c - log p_c), where q = softmax(teacher / T) and p = softmax(student / T). The factor keeps
    the gradient's size about the same whatever the temperature (Hinton, Vinyals & Dean 2015, arXiv:1503.02531,
    section 2).

    >>> soft_target(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([0.])
    """
    same_shape(student, teacher, "teacher")
    positive("temperature", temperature)
    student = precise(student)
    log_student = torch.log_softmax(student / temperature, dim=-1)
    log_teacher = log_probabilities(teacher.to(student.dtype), temperature)
    # the factor goes to the side that has no gradient: one operation fewer on the way back
    return (log_teacher.exp() * temperature**2 * (log_teacher - log_student)).sum(-1)


def binary_soft_target(
    student: Float[Tensor, "*batch classes"], teacher: Float[Tensor, "*batch classes"], *, temperature: float | Float[Tensor, ""] = 4.0
) -> Float[Tensor, "*batch"]:
    """KL(teacher || student) of a softened yes or no per class, mean over classes, times temperature squared.

    T^2 * mean_c [q_c log(q_c / p_c) + (1 - q_c) log((1 - q_c) / (1 - p_c))], where q = sigmoid(teacher / T) and
    p = sigmoid(student / T): the soft targets of Hinton, Vinyals & Dean 2015 (arXiv:1503.02531) for labels that do not
    exclude each other, as in Yang et al. 2023, arXiv:2308.06453 (there a sum over classes at T = 1).

    >>> binary_soft_target(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([0.])
    """
    same_shape(student, teacher, "teacher")
    positive("temperature", temperature)
    student = precise(student)
    softened = (teacher.to(student.dtype) / temperature).clamp(LOWEST, -LOWEST)
    target = softened.sigmoid()
    # The cross-entropy less the teacher's entropy, both by the same kernel, so that equal logits give exactly 0.
    crossed = functional.binary_cross_entropy_with_logits(student / temperature, target, reduction="none")
    entropy = functional.binary_cross_entropy_with_logits(softened, target, reduction="none")
    return (crossed - entropy).mean(-1) * temperature**2


def logit_mse(
    student: Float[Tensor, "*batch classes"], teacher: Float[Tensor, "*batch classes"], *, centred: bool = True
) -> Float[Tensor, "*batch"]:
    """Squared difference of logits, mean over classes; centred, a constant added to a row's logits changes nothing.

    mean_c (d_c - mean(d))^2, where d = student - teacher; mean_c d_c^2 when not centred. Ba & Caruana 2014,
    arXiv:1312.6184, section 2.2; centred, it is the limit of soft targets at a high temperature (Hinton, Vinyals & Dean
    2015, arXiv:1503.02531, section 2.1). The teacher's logits must be finite.

    >>> logit_mse(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([1.])
    """
    same_shape(student, teacher, "teacher")
    student = precise(student)
    teacher = teacher.to(student.dtype)
    if not centred:
        return functional.mse_loss(student, teacher, reduction="none").mean(-1)
    difference = student - teacher
    return (difference - difference.mean(-1, keepdim=True)).square().mean(-1)


def teacher_cross_entropy(
    student: Float[Tensor, "*batch classes"], teacher: Float[Tensor, "*batch classes"], *, temperature: float | Float[Tensor, ""] = 1.0
) -> Float[Tensor, "*batch"]:
    """Cross-entropy of the student against the teacher's softened distribution, without a temperature factor.

    -sum_c q_c log p_c, where q = softmax(teacher / T) and p = softmax(student / T). Jiao et al. 2020, arXiv:1909.10351,
    section 3.2 (TinyBERT's prediction layer; its published code divides by the number of classes as well). The gradient is
    that of the divergence at the same temperature; the value keeps the teacher's entropy, so it does not end at 0.

    >>> teacher_cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([[9.0, 1.0]]))
    tensor([0.6931])
    """
    same_shape(student, teacher, "teacher")
    positive("temperature", temperature)
    student = precise(student)
    teacher = teacher.to(student.dtype)
    if temperature != 1:
        student, teacher = student / temperature, teacher / temperature
    return -(torch.softmax(teacher, -1) * torch.log_softmax(student, -1)).sum(-1)


def hard_target(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], *, label_smoothing: float = 0.0
) -> Float[Tensor, " batch"]:
    """Cross-entropy with the class that the teacher finds most likely as if it were the label.

    -sum_c t_c log softmax(student)_c, where t is the one-hot argmax of the teacher, smoothed. Touvron et al. 2021,
    arXiv:2012.12877, section 4. It needs no temperature and helps a student that augmentation makes miss the label; it
    drops what the teacher says about the other classes.

    >>> hard_target(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.1, 0.2]]))
    tensor([0.6931])
    """
    same_shape(student, teacher, "teacher")
    return functional.cross_entropy(precise(student), teacher.argmax(-1), reduction="none", label_smoothing=label_smoothing)


def decoupled(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    temperature: float | Float[Tensor, ""] = 4.0,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
) -> Float[Tensor, " batch"]:
    """Soft targets in two parts that are weighted apart: label or not, and which of the other classes.

    T^2 * [target_weight * KL(b_t || b_s) + other_weight * sum_{c != label} r_c (log r_c - log p_c)], where b holds the
    softened probabilities of the label and of all others together, and r, p are softmax over the others only. Zhao et al.
    2022, arXiv:2203.08679, section 3; other_weight is tuned per pair of networks (0.5 to 10). It helps where a confident
    teacher leaves little for the other classes; with two classes the second part is 0.

    >>> decoupled(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0]))
    tensor([0.])
    """
    same_shape(student, teacher, "teacher")
    labelled(student, labels)
    positive("temperature", temperature)
    student = precise(student)
    at = labels.clamp_min(0).long()
    label_s, mass_s, others_s = without_label(student / temperature, at)
    label_t, mass_t, others_t = without_label((teacher.to(student.dtype) / temperature).clamp_min(LOWEST), at)
    gap_s, gap_t = label_s - mass_s, label_t - mass_t
    target = functional.binary_cross_entropy_with_logits(gap_s, gap_t.sigmoid(), reduction="none")
    target = target - functional.binary_cross_entropy_with_logits(gap_t, gap_t.sigmoid(), reduction="none")
    values = target_weight * target + other_weight * divergence(others_t, others_s)
    return torch.where(labels >= 0, values * temperature**2, 0.0)


def normalized(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    temperature: float | Float[Tensor, ""] = 1.0,
    other_weight: float = 1.5,
) -> Float[Tensor, " batch"]:
    """Cross-entropies with the teacher at the label, and among the other classes made to add to 1.

    -q log p - other_weight * T^2 * sum_{c != label} r_c log u_c, where q, p are the probabilities of the label at
    temperature 1, and r, u softmax over the other classes at T, each of teacher and student. Yang et al. 2023,
    arXiv:2303.13005, section 3 (NKD). It helps beside a cross-entropy on labels, as published on ImageNet; alone, it draws
    the student to more confidence than the teacher has, and its value does not end at 0.

    >>> normalized(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor([0.3466])
    """
    same_shape(student, teacher, "teacher")
    labelled(student, labels)
    positive("temperature", temperature)
    student = precise(student)
    teacher = teacher.to(student.dtype)
    at = labels.clamp_min(0).long()
    chosen = torch.softmax(teacher, -1).gather(1, at[:, None]).squeeze(1)
    target = chosen * functional.cross_entropy(student, at, reduction="none")
    others_s = without_label(student / temperature, at)[2]
    others_t = without_label((teacher / temperature).clamp_min(LOWEST), at)[2]
    other = -(others_t.exp() * others_s).sum(-1)
    return torch.where(labels >= 0, target + other_weight * temperature**2 * other, 0.0)


def standardized(
    student: Float[Tensor, "*batch classes"],
    teacher: Float[Tensor, "*batch classes"],
    *,
    temperature: float | Float[Tensor, ""] = 2.0,
    unbiased: bool = True,
) -> Float[Tensor, "*batch"]:
    """Soft targets of logits that are first brought to mean 0 and standard deviation 1, each row by itself.

    T^2 * sum_c q_c (log q_c - log p_c), where q, p are softmax(z / T) and z = (logits - mean) / (deviation + 1e-7) of
    teacher and student. The deviation divides by classes - 1, as in the code behind the published numbers, or by classes
    (`unbiased=False`, as printed). Sun et al. 2024, arXiv:2403.01427, section 4; published with weight 9 beside 0.1 of
    cross-entropy. It helps a student too small for the teacher's range of logits; how sure to be must then be learned from
    labels, and with two classes nothing but the sign is left.

    >>> standardized(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[20.0, 0.0, 10.0]])).abs().round(decimals=5)
    tensor([0.])
    """
    same_shape(student, teacher, "teacher")
    positive("temperature", temperature)
    if student.shape[-1] < 2:
        raise InputError(f"standardized compares two or more classes: student is {list(student.shape)}", code="U302")
    student = precise(student)
    log_student, log_teacher = (
        torch.log_softmax(_standardized(each, unbiased) / temperature, -1) for each in (student, teacher.to(student.dtype))
    )
    return divergence(log_teacher, log_student) * temperature**2


def _standardized(logits: Tensor, unbiased: bool) -> Tensor:
    centred = logits - logits.mean(-1, keepdim=True)
    deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / math.sqrt(logits.shape[-1] - unbiased)
    return centred / (deviation + 1e-7)


def transformed_teacher(
    student: Float[Tensor, "*batch classes"], teacher: Float[Tensor, "*batch classes"], *, exponent: float = 0.1
) -> Float[Tensor, "*batch"]:
    """KL(teacher || student) with the teacher's probabilities raised to a power, and the student left as it is.

    sum_c q_c (log q_c - log p_c), where q is softmax(teacher)^exponent made to add to 1, and p = softmax(student). The
    exponent is 1 / T of the teacher alone. Zheng & Yang 2024, arXiv:2402.11148, section 3 (TTM), published with weights
    such as 45. It helps where softening the student would let it stay unsure; a small exponent makes targets so flat that
    the weight decides everything.

    >>> transformed_teacher(torch.tensor([[2.0, 0.0]]), torch.tensor([[20.0, 0.0]])).round(decimals=5)
    tensor([0.])
    """
    same_shape(student, teacher, "teacher")
    positive("exponent", exponent)
    student = precise(student)
    return divergence(log_probabilities(teacher.to(student.dtype) * exponent), torch.log_softmax(student, -1))


def weighted_transformed_teacher(
    student: Float[Tensor, "*batch classes"], teacher: Float[Tensor, "*batch classes"], *, exponent: float = 0.2
) -> Float[Tensor, "*batch"]:
    """The transformed teacher's divergence, times how spread out the teacher's answer is.

    (sum_c t_c^exponent) * sum_c q_c (log q_c - log p_c), where t = softmax(teacher), q is t^exponent made to add to 1, and
    p = softmax(student). Zheng & Yang 2024, arXiv:2402.11148, section 4 (WTTM), published with weights such as 4. Rows on
    which the teacher hesitates count more: this helps with a good teacher, and hurts where it hesitates because labels are
    wrong. The factor grows with the number of classes.

    >>> weighted_transformed_teacher(torch.tensor([[2.0, 0.0]]), torch.tensor([[10.0, 0.0]])).round(decimals=5)
    tensor([0.])
    """
    same_shape(student, teacher, "teacher")
    positive("exponent", exponent)
    student = precise(student)
    powers = log_probabilities(teacher.to(student.dtype)) * exponent
    spread = powers.logsumexp(-1, keepdim=True)
    return divergence(powers - spread, torch.log_softmax(student, -1)) * spread.squeeze(-1).exp()


def weighted_soft_label(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    temperature: float | Float[Tensor, ""] = 2.0,
) -> Float[Tensor, " batch"]:
    """Cross-entropy with soft targets, times a weight of the row that grows as the student is worse than the teacher.

    T^2 * (1 - exp(-h_s / h_t)) * -sum_c q_c log p_c, where q, p are softmax(teacher / T) and softmax(student / T), and h_s,
    h_t the cross-entropies of student and teacher with the label at temperature 1; the weight is a constant (1e-7 keeps h_t
    from 0). Zhou et al. 2021, arXiv:2102.00650, section 4.2 (WSLD), published with weight 2.5. It helps where soft targets
    hold back rows that the student knows already; wrong labels give their rows a high weight.

    >>> weighted_soft_label(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([1]), temperature=1.0)
    tensor([0.4382])
    """
    same_shape(student, teacher, "teacher")
    labelled(student, labels)
    positive("temperature", temperature)
    student = precise(student)
    teacher = teacher.to(student.dtype)
    at = labels.clamp_min(0).long()
    mine, bound = (functional.cross_entropy(each.detach(), at, reduction="none") for each in (student, teacher))
    weight = -torch.expm1(-mine / (bound + 1e-7)) * temperature**2
    target = torch.softmax(teacher / temperature, -1)
    crossed = -(target * torch.log_softmax(student / temperature, -1)).sum(-1)
    return torch.where(labels >= 0, weight * crossed, 0.0)


def ensemble_soft_target(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "teachers batch classes"],
    *,
    weights: Float[Tensor, "teachers batch"] | None = None,
    temperature: float | Float[Tensor, ""] = 4.0,
) -> Float[Tensor, " batch"]:
    """Weighted mean over several teachers, or over the other students of a cohort, of their soft-target losses.

    T^2 * sum_k w_k sum_c q_kc (log q_kc - log p_c), where q_k = softmax(teacher_k / T), p = softmax(student / T), and the
    weights are 1 / teachers unless given per teacher and row (see the module `ensembles`). You et al. 2017, Learning from
    Multiple Teacher Networks, KDD; the same of a student's peers in Zhang et al. 2018, arXiv:1706.00384 (deep mutual
    learning). It helps where teachers err apart; it cannot reach 0 while they disagree.

    >>> ensemble_soft_target(torch.tensor([[2.0, 0.0]]), torch.tensor([[[2.0, 0.0]], [[2.0, 0.0]]]))
    tensor([0.])
    """
    if teacher.ndim != 3 or teacher.shape[1:] != student.shape or not len(teacher):
        raise InputError(
            f"teacher must be [teachers, rows, classes]: student is {list(student.shape)}, teacher is {list(teacher.shape)}",
            code="U073",
        )
    if weights is not None and weights.shape != teacher.shape[:2]:
        raise InputError(
            f"weights must hold one number per teacher and row: teacher is {list(teacher.shape)}, weights are {list(weights.shape)}",
            code="U303",
        )
    positive("temperature", temperature)
    student = precise(student)
    log_student = torch.log_softmax(student / temperature, -1)
    values = divergence(log_probabilities(teacher.to(student.dtype), temperature), log_student)
    mean = values.mean(0) if weights is None else (values * weights.to(values.dtype)).sum(0)
    return mean * temperature**2
