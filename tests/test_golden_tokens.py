"""The losses on tokens and frames against tests/golden: one table, file -> how to call, and faults that it must show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from published import Case, Published, cases, misses, not_finite
from torch import Tensor

from understudy.losses.schedules import Interpolation, adaptive_interpolation
from understudy.losses.sequences import ctc_frames
from understudy.losses.tokens import (
    forward_kl,
    interpolated_teacher,
    jensen_shannon,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    sorted_probabilities,
    total_variation,
)
from understudy.losses.topk import sampled_cross_entropy, topk_tail_kl

Loss = Callable[..., Tensor]


def over_tokens(loss: Loss, *evidence: str, **options: str) -> Published:
    """The mean over tokens with a label of a loss of student and evidence; options by `ours=theirs`."""

    def compute(s: Tensor, case: Case) -> Tensor:
        mask = case["labels"] != -100
        given = {ours: float(case[theirs]) for ours, theirs in options.items()}
        values = loss(s, *[case[name] for name in evidence or ("teacher_logits",)], mask=mask, **given)
        return values.sum() / mask.sum().clamp_min(1)

    return Published(compute)


def from_student_share(s: Tensor, t: Tensor, *, mask: Tensor, share: float) -> Tensor:
    return skewed_reverse_kl(s, t, mask=mask, teacher_weight=1 - share)


def answers(labels: Tensor) -> Tensor:
    """Where the answer's tokens are predicted: as many places as there are labels, from one before the first on."""
    valid = labels != -100
    start = (valid.int().argmax(1, keepdim=True) - 1).clamp_min(0)
    place = torch.arange(labels.shape[1])
    return (place >= start) & (place < start + valid.sum(1, keepdim=True))


def aligned_answers(s: Tensor, case: Case) -> Tensor:
    mask, teacher_mask = answers(case["student_labels"]), answers(case["teacher_labels"])
    temperature = float(case["temperature"])
    values = sorted_probabilities(s, case["teacher_logits"], mask=mask, teacher_mask=teacher_mask, temperature=temperature)
    return (values.sum(1) / torch.minimum(mask.sum(1), teacher_mask.sum(1))).mean()


def frames(s: Tensor, case: Case, *, blank: bool = True) -> Tensor:
    teacher, lengths = case["teacher_logits"], case["lengths"]
    index = int(case["blank"])
    options = {} if blank else {"without_blank": index}
    values = ctc_frames(s, teacher, lengths=lengths, temperature=float(case["temperature"]), **options)
    counted = torch.arange(teacher.shape[1]) < lengths[:, None]
    counted = counted if blank else counted & (teacher.argmax(-1) != index)
    return values.sum() / counted.sum().clamp_min(1)


PUBLISHED: dict[str, Published] = {
    "forward_kl": over_tokens(forward_kl, temperature="temperature"),
    "reverse_kl": over_tokens(reverse_kl, temperature="temperature"),
    "skewed_forward_kl": over_tokens(skewed_forward_kl, teacher_weight="alpha"),
    "skewed_reverse_kl": over_tokens(from_student_share, share="alpha"),
    "jsd": over_tokens(jensen_shannon, teacher_weight="beta", temperature="temperature"),
    "tvd": over_tokens(total_variation),
    "taid": over_tokens(interpolated_teacher, teacher_weight="t"),
    "uld": Published(aligned_answers),
    "topk_tail_kl": over_tokens(topk_tail_kl, "teacher_topk_ids", "teacher_topk_logprobs"),
    "rs_kd": over_tokens(sampled_cross_entropy, "sampled_ids", "sample_counts"),
    "ctc_frame_kd": Published(frames),
    "ctc_frame_kd, without blank": Published(lambda s, case: frames(s, case, blank=False), suffix="_blank_eliminated", file="ctc_frame_kd"),
}
"""Golden file (or an entry of one) -> how it is computed here."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name: str) -> None:
    assert misses(name, PUBLISHED[name]) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_inputs_are_finite_in_low_precision(name: str, dtype: torch.dtype) -> None:
    assert not_finite(name, PUBLISHED[name], dtype) == []


def schedule_misses(step: Callable[..., Interpolation]) -> float:
    """How far the teacher's weights and momenta are from the published ones."""
    worst = 0.0
    for case in cases("taid_schedule"):
        state = Interpolation(float(case["t_start"]))
        for number, (loss, done) in enumerate(zip(case["losses"].tolist(), case["global_steps"].tolist(), strict=True)):
            state = step(
                state,
                loss,
                progress=done / int(case["num_train_steps"]),
                start=float(case["t_start"]),
                end=float(case["t_end"]),
                rate=float(case["alpha"]),
                memory=float(case["beta"]),
                adaptive=not int(case["disable_adaptive"]),
            )
            worst = max(worst, abs(state.teacher_weight - float(case["t"][number])), abs(state.momentum - float(case["momentum"][number])))
    return worst


def test_published_schedule() -> None:
    assert schedule_misses(adaptive_interpolation) < 1e-14
    assert schedule_misses(lambda state, loss, **options: adaptive_interpolation(state, loss**2, **options)) > 1e-3


def tail_forced_up(s: Tensor, ids: Tensor, logs: Tensor, *, mask: Tensor) -> Tensor:
    """The mass of the top tokens is at most 1 - 1e-7."""
    return topk_tail_kl(s, ids, logs - (logs.logsumexp(-1, keepdim=True) + 1e-7).clamp_min(0), mask=mask)


def tail_left_out(s: Tensor, ids: Tensor, logs: Tensor, *, mask: Tensor) -> Tensor:
    kept = s.log_softmax(-1).gather(-1, ids)
    return torch.where(mask, (logs.exp() * (logs - kept)).sum(-1), 0.0)


def made_to_add_to_one(s: Tensor, ids: Tensor, logs: Tensor, *, mask: Tensor) -> Tensor:
    return forward_kl(s.gather(-1, ids), logs, mask=mask)


def counted_twice(s: Tensor, ids: Tensor, counts: Tensor, *, mask: Tensor) -> Tensor:
    return sampled_cross_entropy(s, ids, (counts > 0).long(), mask=mask)


def no_temperature_squared(s: Tensor, t: Tensor, *, mask: Tensor, temperature: float) -> Tensor:
    return forward_kl(s, t, mask=mask, temperature=temperature) / temperature**2


def squared_without_need(s: Tensor, t: Tensor, *, mask: Tensor, temperature: float, teacher_weight: float) -> Tensor:
    return jensen_shannon(s, t, mask=mask, temperature=temperature, teacher_weight=teacher_weight) * temperature**2


def student_weight(s: Tensor, t: Tensor, *, mask: Tensor, temperature: float, teacher_weight: float) -> Tensor:
    return jensen_shannon(s, t, mask=mask, temperature=temperature, teacher_weight=1 - teacher_weight)


def mixed_probabilities(s: Tensor, t: Tensor, *, mask: Tensor, teacher_weight: float) -> Tensor:
    mixed = (1 - teacher_weight) * s.detach().softmax(-1) + teacher_weight * t.softmax(-1)
    return forward_kl(s, mixed.log(), mask=mask)


def gradient_through_the_target(s: Tensor, t: Tensor, *, mask: Tensor, teacher_weight: float) -> Tensor:
    return forward_kl(s, torch.where(mask[..., None], (1 - teacher_weight) * s + teacher_weight * t, 0.0), mask=mask)


def constant_mixture(s: Tensor, t: Tensor, *, mask: Tensor, share: float) -> Tensor:
    s, t = (torch.where(mask[..., None], each, 0.0) for each in (s, t))
    log_m = ((1 - share) * t.softmax(-1) + share * s.detach().softmax(-1)).log()
    return reverse_kl(s, log_m, mask=mask)


def multiplied_by_the_mask(s: Tensor, t: Tensor, *, mask: Tensor, temperature: float) -> Tensor:
    return forward_kl(s, t, temperature=temperature) * mask


FAULTS: list[tuple[str, Loss]] = [
    ("forward_kl", lambda s, t, **options: reverse_kl(s, t, **options)),
    ("forward_kl", no_temperature_squared),
    ("forward_kl", multiplied_by_the_mask),
    ("jsd", squared_without_need),
    ("jsd", student_weight),
    ("taid", mixed_probabilities),
    ("taid", gradient_through_the_target),
    ("skewed_reverse_kl", constant_mixture),
    ("topk_tail_kl", tail_forced_up),
    ("topk_tail_kl", tail_left_out),
    ("topk_tail_kl", made_to_add_to_one),
    ("rs_kd", counted_twice),
]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_fault_misses_the_published_numbers(name: str, fault: Loss) -> None:
    names = {
        "jsd": {"teacher_weight": "beta", "temperature": "temperature"},
        "taid": {"teacher_weight": "t"},
        "forward_kl": {"temperature": "temperature"},
        "skewed_reverse_kl": {"share": "alpha"},
    }
    evidence = {"topk_tail_kl": ("teacher_topk_ids", "teacher_topk_logprobs"), "rs_kd": ("sampled_ids", "sample_counts")}
    assert misses(name, replace(PUBLISHED[name], compute=over_tokens(fault, *evidence.get(name, ()), **names.get(name, {})).compute))


def test_padded_frames_are_not_in_the_mean() -> None:
    faulty = replace(PUBLISHED["ctc_frame_kd"], compute=lambda s, case: frames(s, {**case, "lengths": case["lengths"] * 0 + s.shape[1]}))
    assert misses("ctc_frame_kd", faulty)
