"""The losses on labels, logits, tokens and values against tests/golden: one table, file -> how to call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from published import Case, Published, cases, misses, not_finite
from torch import Tensor

from understudy.losses.correlations import correlation, multi_level
from understudy.losses.ensembles import (
    best_mixture_weights,
    best_of_teachers,
    confidence_weights,
    entropy_weights,
    least_margins,
    mean_of_logits,
    mean_of_probabilities,
)
from understudy.losses.labels import binary_cross_entropy, cross_entropy, soft_cross_entropy
from understudy.losses.layers import hint
from understudy.losses.logits import (
    binary_soft_target,
    decoupled,
    ensemble_soft_target,
    logit_mse,
    normalized,
    soft_target,
    standardized,
    teacher_cross_entropy,
    transformed_teacher,
    weighted_transformed_teacher,
)
from understudy.losses.regression import smooth_absolute_error, squared_error, teacher_bounded, teacher_squared_error

Loss = Callable[..., Tensor]


def kd(s: Tensor, case: Case, hard: Loss = cross_entropy, soft: Loss = soft_target) -> Tensor:
    """One value per row of the classic mixture."""
    alpha, temperature = float(case["alpha"]), float(case["temperature"])
    return (1 - alpha) * hard(s, case["labels"]) + alpha * soft(s, case["teacher_logits"], temperature=temperature)


def known_labels(s: Tensor, case: Case) -> Tensor:
    labels = case["labels"].clamp_min(-1)
    return cross_entropy(s, labels).sum() / (labels >= 0).sum()


def smoothed(s: Tensor, case: Case) -> Tensor:
    smoothing = float(case["label_smoothing"])
    if "labels" not in case:
        return soft_cross_entropy(s, case["targets"], label_smoothing=smoothing).mean()
    return cross_entropy(s, case["labels"], label_smoothing=smoothing).mean()


def over_rows(loss: Loss, *options: str, labels: bool = False, suffix: str = "", **renamed: str) -> Published:
    """The mean over rows of a loss of student, teacher and perhaps labels; options by the file's name or `ours=theirs`."""

    def compute(s: Tensor, case: Case) -> Tensor:
        evidence = [case["teacher_logits"], *([case["labels"]] if labels else [])]
        given = {**{name: name for name in options}, **renamed}
        return loss(s, *evidence, **{ours: float(case[theirs]) for ours, theirs in given.items()}).mean()

    return Published(compute, suffix=suffix)


def several_levels(row: float = 0.0, batch: float = 0.0, class_: float = 0.0, *, masked: bool = False, suffix: str = "") -> Published:
    def compute(s: Tensor, case: Case) -> Tensor:
        return multi_level(
            s,
            case["teacher_logits"],
            temperatures=tuple(case["temperatures"].tolist()),
            row_weight=row,
            batch_weight=batch,
            class_weight=class_,
            mask=case["mask"].bool() if masked else None,
        ).mean()

    return Published(compute, suffix=suffix, file="mlkd")


def mutual(s: Tensor, case: Case) -> Tensor:
    """The loss of each student of a cohort whose peers are constants."""
    peers = [torch.cat([s[:k], s[k + 1 :]]).detach() for k in range(len(s))]
    pairs = zip(s, peers, strict=True)
    temperature = float(case["temperature"])
    return torch.stack([(cross_entropy(z, case["labels"]) + ensemble_soft_target(z, t, temperature=temperature)).mean() for z, t in pairs])


def shared(make: Callable[[Tensor, Case], Tensor]) -> Published:
    """The loss of each student of a cohort, whose common target is made of what they all say."""

    def compute(s: Tensor, case: Case) -> Tensor:
        temperature, weight = float(case["temperature"]), float(case["kd_weight"])
        target = make(s, case)
        parts = [cross_entropy(z, case["labels"]) + weight * soft_target(z, target, temperature=temperature) for z in s]
        return torch.stack(parts).mean(1)

    return Published(compute)


def several_teachers(weigh: Callable[[Tensor, Tensor], Tensor | None]) -> Published:
    def compute(s: Tensor, case: Case) -> Tensor:
        teacher = case["teacher_logits"]
        weights = weigh(teacher, case["labels"])
        return ensemble_soft_target(s, teacher, weights=weights, temperature=float(case["temperature"])).mean()

    return Published(compute)


def mean_logits(s: Tensor, case: Case) -> Tensor:
    return soft_target(s, mean_of_logits(case["teacher_logits"]), temperature=float(case["temperature"])).mean()


def mean_probabilities(s: Tensor, case: Case) -> Tensor:
    temperature = float(case["temperature"])
    return soft_target(s, mean_of_probabilities(case["teacher_logits"], temperature=temperature), temperature=temperature).mean()


def multilabel(s: Tensor, case: Case, soft: Loss = binary_soft_target) -> Tensor:
    alpha, temperature = float(case["alpha"]), float(case["temperature"])
    hard = binary_cross_entropy(s, case["targets"])
    return ((1 - alpha) * hard + alpha * soft(s, case["teacher_logits"], temperature=temperature)).mean()


def regression(s: Tensor, case: Case) -> Tensor:
    alpha = float(case["alpha"])
    return ((1 - alpha) * squared_error(s, case["targets"]) + alpha * teacher_squared_error(s, case["teacher_pred"])).mean()


def bounded(s: Tensor, case: Case) -> Tensor:
    return teacher_bounded(s, case["teacher_pred"], case["targets"], margin=float(case["margin"])).mean()


def bounded_beside_smooth(s: Tensor, case: Case) -> Tensor:
    smooth = smooth_absolute_error(s, case["targets"]).mean() * s.shape[1]
    return smooth + float(case["nu"]) * bounded(s, case)


PUBLISHED: dict[str, Published] = {
    "cross_entropy": Published(known_labels),
    "soft_target_ce": Published(smoothed),
    "kd": Published(lambda s, case: kd(s, case).mean()),
    "kd_weighted": Published(lambda s, case: (case["weights"] * kd(s, case)).mean()),
    "multilabel_kd": Published(multilabel),
    "dkd": over_rows(decoupled, "temperature", labels=True, target_weight="alpha", other_weight="beta"),
    "nkd": over_rows(normalized, "temperature", labels=True, other_weight="gamma"),
    "dist": over_rows(correlation, "temperature", row_weight="beta", class_weight="gamma"),
    "lskd": over_rows(standardized, "temperature"),
    "ttm": over_rows(transformed_teacher, exponent="gamma"),
    "wttm": over_rows(weighted_transformed_teacher, exponent="gamma"),
    "tinybert_prediction": over_rows(teacher_cross_entropy, "temperature"),
    "mlkd": several_levels(1.0, 1.0, 1.0),
    "mlkd, rows masked": several_levels(1.0, masked=True, suffix="_instance_masked"),
    "mlkd, batch": several_levels(batch=1.0, suffix="_batch"),
    "mlkd, classes": several_levels(class_=1.0, suffix="_class"),
    "dml": Published(mutual),
    "kdcl_naive": shared(lambda s, case: best_of_teachers(s, case["labels"])),
    "kdcl_linear": shared(lambda s, case: mean_of_logits(s, weights=case["alpha"].T)),
    "kdcl_minlogit": shared(lambda s, case: least_margins(s, case["labels"])),
    "aver_mkd": several_teachers(lambda teacher, labels: None),
    "aver_mkd, mean of logits": Published(mean_logits, suffix="_mean_logit", file="aver_mkd"),
    "ebkd": several_teachers(lambda teacher, labels: entropy_weights(teacher)),
    "ca_mkd": several_teachers(confidence_weights),
    "embedding_mse": Published(lambda s, case: logit_mse(s, case["teacher_features"], centred=False).mean(), "student_features"),
    "regression_kd": Published(regression, "student_pred"),
    "regression_teacher_bounded": Published(bounded_beside_smooth, "student_pred"),
    "regression_teacher_bounded, bound": Published(bounded, "student_pred", "_bounded", file="regression_teacher_bounded"),
}
"""Golden file (or an entry of one) -> how it is computed here."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name: str) -> None:
    assert misses(name, PUBLISHED[name]) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_inputs_are_finite_in_low_precision(name: str, dtype: torch.dtype) -> None:
    assert not_finite(name, PUBLISHED[name], dtype) == []


def test_published_rows() -> None:
    for case in cases("kd"):
        torch.testing.assert_close(
            soft_target(case["student_logits"], case["teacher_logits"], temperature=float(case["temperature"])).mean(), case["loss_kd"]
        )
        torch.testing.assert_close(kd(case["student_logits"], case), case["per_sample"], rtol=1e-9, atol=1e-11)


def test_published_targets_and_weights() -> None:
    for case in cases("kdcl_naive"):
        torch.testing.assert_close(best_of_teachers(case["student_logits"], case["labels"]), case["target_logits"], rtol=0, atol=0)
    for case in cases("kdcl_minlogit"):
        torch.testing.assert_close(least_margins(case["student_logits"], case["labels"]), case["target_logits"], rtol=0, atol=0)
    for case in cases("ebkd"):
        torch.testing.assert_close(entropy_weights(case["teacher_logits"]), case["weights"], rtol=1e-9, atol=1e-11)
    for case in cases("ca_mkd"):
        torch.testing.assert_close(confidence_weights(case["teacher_logits"], case["labels"]), case["weights"], rtol=1e-9, atol=1e-11)
        inner = confidence_weights(case["inter_logits"], case["labels"])
        torch.testing.assert_close(inner, case["inter_weights"], rtol=1e-9, atol=1e-11)
        hints = torch.stack([hint(ours, theirs) for ours, theirs in zip(case["student_features"], case["teacher_features"], strict=True)])
        torch.testing.assert_close((inner * hints).sum(0).mean(), case["loss_inter"], rtol=1e-9, atol=1e-11)
    for case in cases("aver_mkd"):
        value = mean_probabilities(case["student_logits"], case)
        torch.testing.assert_close(value, case["loss_mean_prob"], rtol=1e-9, atol=1e-11)


def test_the_best_mixture_has_the_published_cross_entropy() -> None:
    for case in cases("kdcl_linear"):
        weights = best_mixture_weights(case["student_logits"], case["labels"], tolerance=1e-11)
        values = cross_entropy(mean_of_logits(case["student_logits"], weights=weights), case["labels"])
        torch.testing.assert_close(values, case["optimal_ce"], rtol=0, atol=1e-8)


FAULTS: dict[str, Loss] = {
    "no temperature squared": lambda s, t, temperature: soft_target(s, t, temperature=temperature) / temperature**2,
    "mean over classes": lambda s, t, temperature: soft_target(s, t, temperature=temperature) / s.shape[-1],
    "reversed": lambda s, t, temperature: soft_target(t, s, temperature=temperature),
    "softmax twice": lambda s, t, temperature: soft_target(s.softmax(-1), t.softmax(-1), temperature=temperature),
    "softmax twice for the teacher": lambda s, t, temperature: soft_target(s, t.softmax(-1), temperature=temperature),
    "temperature on the teacher only": lambda s, t, temperature: soft_target(s * temperature, t, temperature=temperature),
    "one row's teacher": lambda s, t, temperature: soft_target(s, t.roll(1, 0), temperature=temperature),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_soft_target_misses_the_published_numbers(fault: str) -> None:
    faulty = replace(PUBLISHED["kd"], compute=lambda s, case: kd(s, case, soft=FAULTS[fault]).mean())
    assert misses("kd", faulty)


@pytest.mark.parametrize("fault", ["no temperature squared", "sum over classes", "reversed", "softmax"])
def test_a_faulty_binary_soft_target_misses_the_published_numbers(fault: str) -> None:
    faulty: dict[str, Loss] = {
        "no temperature squared": lambda s, t, temperature: binary_soft_target(s, t, temperature=temperature) / temperature**2,
        "sum over classes": lambda s, t, temperature: binary_soft_target(s, t, temperature=temperature) * s.shape[-1],
        "reversed": lambda s, t, temperature: binary_soft_target(t, s, temperature=temperature),
        "softmax": lambda s, t, temperature: soft_target(s, t, temperature=temperature),
    }
    assert misses("multilabel_kd", replace(PUBLISHED["multilabel_kd"], compute=lambda s, case: multilabel(s, case, soft=faulty[fault])))
