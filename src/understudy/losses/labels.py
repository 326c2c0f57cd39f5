"""Losses between a student's logits and labels: `loss(student, labels, *, options)`, one value per row.

A row without a label (-1, or NaN in any class) gives 0 and no gradient; the term that averages leaves it out. To add
one: write it here, name it in `__all__`, and give it a line in tests/definitions_logits.py.

When it helps and hurts: Always, where there are labels: it is what the control learns from. Smoothing and a teacher made by
hand regularise a student that is sure too early; beside soft targets, which do that already, they add little.

Known problems: Smoothed labels and soft targets together soften twice. Class weights change what probabilities mean, and so
calibration.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from understudy.errors import InputError
from understudy.losses._shapes import labelled, positive, precise, same_shape

__all__ = ["binary_cross_entropy", "cross_entropy", "soft_cross_entropy", "virtual_teacher"]


def cross_entropy(
    student: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    label_smoothing: float = 0.0,
    class_weights: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, " batch"]:
    """Minus the log-probability that the student's softmax gives to the label.

    -sum_c w_c t_c log softmax(student)_c, where t = (1 - label_smoothing) * onehot(label) + label_smoothing / classes
    and w are the class weights, 1 unless given. Rows of label -1 give 0. Smoothing: Szegedy et al. 2016,
    arXiv:1512.00567, section 7.

    >>> cross_entropy(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([1, -1]))
    tensor([0.6931, 0.0000])
    """
    if student.ndim != 2 or labels.shape != student.shape[:1] or labels.is_floating_point():
        raise InputError(
            f"cross_entropy reads student [rows, classes] and one class index per row: student is {list(student.shape)}, "
            f"labels are {labels.dtype} {list(labels.shape)}. Labels of 0 and 1 per class go with labels.binary_cross_entropy",
            code="U073",
        )
    student = precise(student)
    weights = _weights(class_weights, student)
    return functional.cross_entropy(
        student, labels.long(), weight=weights, ignore_index=-1, reduction="none", label_smoothing=label_smoothing
    )


def binary_cross_entropy(
    student: Float[Tensor, "batch classes"],
    labels: Float[Tensor, "batch classes"],
    *,
    label_smoothing: float = 0.0,
    class_weights: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, " batch"]:
    """Minus the log-probability of a yes or no per class, each class with its own sigmoid, mean over classes.

    mean_c w_c * -[t_c log sigmoid(student_c) + (1 - t_c) log sigmoid(-student_c)], where
    t = (1 - label_smoothing) * label + label_smoothing / 2. Rows with a NaN label give 0. Source: the maximum likelihood
    of independent Bernoulli variables (Bishop 2006, Pattern Recognition and Machine Learning, section 4.3.2).

    >>> binary_cross_entropy(torch.tensor([[0.0, 100.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([0.3466])
    """
    same_shape(student, labels, "labels")
    student = precise(student)
    known = ~labels.sum(-1).isnan()
    target = labels.to(student.dtype).nan_to_num()
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / 2
    weights = _weights(class_weights, student)
    values = functional.binary_cross_entropy_with_logits(student, target, weight=weights, reduction="none").mean(-1)
    return torch.where(known, values, 0.0)


def soft_cross_entropy(
    student: Float[Tensor, "batch classes"], labels: Float[Tensor, "batch classes"], *, label_smoothing: float = 0.0
) -> Float[Tensor, " batch"]:
    """Cross-entropy with labels that are distributions: mixed labels, votes of annotators, smoothed classes.

    -sum_c t_c log softmax(student)_c, where t = (1 - label_smoothing) * labels + label_smoothing / classes. The rows of
    labels add to 1; rows with a NaN give 0. It helps where mixup or several annotators make labels uncertain, and is the
    plain cross-entropy where they do not. Smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7; mixed labels:
    Zhang et al. 2018, arXiv:1710.09412.

    >>> soft_cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.5, 0.5]]))
    tensor([0.6931])
    """
    same_shape(student, labels, "labels")
    student = precise(student)
    known = ~labels.sum(-1).isnan()
    values = functional.cross_entropy(student, labels.to(student.dtype).nan_to_num(), reduction="none", label_smoothing=label_smoothing)
    return torch.where(known, values, 0.0)


def virtual_teacher(
    student: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"], *, correct: float = 0.99, temperature: float = 20.0
) -> Float[Tensor, " batch"]:
    """KL(teacher || student) to a teacher made by hand, who gives the label a fixed probability and shares out the rest.

    sum_c u_c (log u_c - log softmax(student)_c), where u = softmax(log(d) / temperature), and d is `correct` at the label
    and (1 - correct) / (classes - 1) elsewhere. Rows of label -1 give 0. Teacher-free regularisation of Yuan, Tay, Li,
    Wang & Feng 2020, arXiv:1909.11723, section 5; the published code softens d itself, probabilities as if they were
    logits, which leaves a target that is almost uniform, and this does not. It helps as label smoothing does, where there
    is no teacher; it teaches nothing about which classes are alike.

    >>> virtual_teacher(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), correct=0.5)
    tensor([0.])
    """
    labelled(student, labels)
    positive("temperature", temperature)
    classes = student.shape[1]
    if not 0 < correct < 1 or classes < 2:
        raise InputError(f"virtual_teacher needs 0 < correct < 1 and two classes (got {correct:g} and {classes})", code="U301")
    gap = (math.log(correct) - math.log((1 - correct) / (classes - 1))) / temperature
    rest = -math.log(math.exp(gap) + classes - 1)  # log u of a class that is not the label
    target, other = math.exp(gap + rest), math.exp(rest)
    entropy = target * (gap + rest) + (classes - 1) * other * rest
    log_student = torch.log_softmax(precise(student), -1)
    at_label = log_student.gather(1, labels.clamp_min(0).long()[:, None]).squeeze(1)
    values = entropy - (target - other) * at_label - other * log_student.sum(-1)
    return torch.where(labels >= 0, values, 0.0)


def _weights(class_weights: Tensor | None, student: Tensor) -> Tensor | None:
    if class_weights is None:
        return None
    if class_weights.shape != student.shape[-1:]:
        raise InputError(
            f"class_weights must hold one weight per class: student has {student.shape[-1]} classes, "
            f"class_weights is {list(class_weights.shape)}",
            code="U073",
        )
    return class_weights.to(student.dtype)
