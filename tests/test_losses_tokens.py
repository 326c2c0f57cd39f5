"""What losses on tokens and frames do beyond the invariants of test_losses.py: masks, alignment, chunks of a vocabulary."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from definitions import normal
from torch import Tensor

from understudy.errors import InputError
from understudy.losses.chunks import in_chunks
from understudy.losses.logits import soft_target
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

BATCH, TIME, VOCABULARY, WIDTH = 3, 5, 7, 4
MASK = torch.tensor([[True, True, False, True, False], [False] * 5, [True] * 5])
ON_LOGITS: list[Loss] = [
    forward_kl,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    jensen_shannon,
    total_variation,
    interpolated_teacher,
    sorted_probabilities,
]
PARTS: list[Loss] = [topk_tail_kl, sampled_cross_entropy]
by_name = {"ids": lambda loss: loss.__name__}


def logits(seed: int) -> Tensor:
    return normal(seed, BATCH, TIME, VOCABULARY)


def evidence(loss: Loss) -> list[Tensor]:
    """What the loss takes after the student."""
    if loss not in PARTS:
        return [logits(2)]
    log_probabilities, ids = logits(2).log_softmax(-1).topk(3)
    return [ids, log_probabilities if loss is topk_tail_kl else normal(3, BATCH, TIME, 3).abs().long() + 1]


def value_and_gradient(loss: Loss, student: Tensor, *given: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    values = loss(student, *given, **options)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), gradient


@pytest.mark.parametrize("loss", ON_LOGITS + PARTS, **by_name)
@pytest.mark.parametrize("filler", [math.nan, math.inf, -math.inf])
def test_what_the_mask_leaves_out_reaches_nothing(loss: Loss, filler: float) -> None:
    masks = {"mask": MASK, "teacher_mask": MASK} if loss is sorted_probabilities else {"mask": MASK}
    given = evidence(loss)
    spoilt = [each.masked_fill(~MASK[..., None], filler) if each.is_floating_point() else each for each in given]
    whole, whole_gradient = value_and_gradient(loss, logits(1), *given)
    values, gradient = value_and_gradient(loss, logits(1).masked_fill(~MASK[..., None], filler), *spoilt, **masks)
    torch.testing.assert_close(values, torch.where(MASK, whole, 0.0))
    torch.testing.assert_close(gradient, torch.where(MASK[..., None], whole_gradient, 0.0))


@pytest.mark.parametrize("loss", ON_LOGITS + PARTS, **by_name)
def test_a_mask_of_another_shape_is_refused(loss: Loss) -> None:
    for wrong in (MASK[:1], MASK[:, :1], MASK.double(), MASK[..., None]):
        with pytest.raises(InputError, match=rf"mask must be true or false for each position.*\[{BATCH}, {TIME}\]"):
            inspect.unwrap(loss)(logits(1), *evidence(loss), mask=wrong)


def test_options_are_between_their_ends() -> None:
    for loss in (skewed_forward_kl, skewed_reverse_kl, jensen_shannon, interpolated_teacher):
        for wrong in (-0.1, 1.1, math.nan):
            with pytest.raises(InputError, match="teacher_weight must lie between 0 and 1") as caught:
                loss(logits(1), logits(2), teacher_weight=wrong)
            assert caught.value.code == "U301"
    for loss in (forward_kl, reverse_kl, jensen_shannon, sorted_probabilities, ctc_frames):
        with pytest.raises(InputError, match="temperature must be > 0"):
            loss(logits(1), logits(2), temperature=0.0)


@pytest.mark.parametrize(
    ("loss", "weight", "plain"),
    [
        (skewed_forward_kl, 0.0, forward_kl),
        (skewed_reverse_kl, 1.0, reverse_kl),
        (jensen_shannon, 0.0, forward_kl),
        (jensen_shannon, 1.0, reverse_kl),
        (interpolated_teacher, 1.0, forward_kl),
    ],
)
def test_mixtures_end_in_the_plain_divergences(loss: Loss, weight: float, plain: Loss) -> None:
    ours = value_and_gradient(loss, logits(1), logits(2), teacher_weight=weight)
    torch.testing.assert_close(ours, value_and_gradient(plain, logits(1), logits(2)))


def test_forward_kl_is_the_soft_target_of_every_position() -> None:
    torch.testing.assert_close(
        forward_kl(logits(1), logits(2), temperature=3.0), soft_target(logits(1), logits(2), temperature=3.0), rtol=1e-12, atol=0
    )


# --- a part of the teacher --------------------------------------------------------------------------------------------


def test_all_tokens_but_one_are_the_whole_distribution() -> None:
    log_probabilities, ids = logits(2).log_softmax(-1).topk(VOCABULARY - 1)
    ours = value_and_gradient(topk_tail_kl, logits(1), ids, log_probabilities)
    torch.testing.assert_close(ours, value_and_gradient(forward_kl, logits(1), logits(2)))
    log_probabilities, ids = logits(2).log_softmax(-1).topk(VOCABULARY)
    torch.testing.assert_close(topk_tail_kl(logits(1), ids, log_probabilities), ours[0])


def test_a_mass_rounded_above_one_leaves_nothing() -> None:
    student, ids = logits(1), torch.tensor([0, 1]).expand(BATCH, TIME, 2)
    logs = torch.tensor([0.75, 0.2578125]).log().double().expand(BATCH, TIME, 2)
    values, gradient = value_and_gradient(topk_tail_kl, student, ids, logs)
    torch.testing.assert_close(values, (logs.exp() * (logs - student.log_softmax(-1)[..., :2])).sum(-1))
    assert gradient.isfinite().all()


def test_drawing_is_the_whole_cross_entropy_on_average() -> None:
    """Two draws from three tokens: every outcome, by its probability."""
    student, log_p = normal(1, 1, 1, 3), normal(2, 1, 1, 3).log_softmax(-1)
    average = torch.zeros(1, 1, dtype=torch.float64)
    for one in range(3):
        for two in range(3):
            ids, counts = (
                (torch.tensor([[[one, -1]]]), torch.tensor([[[2, 0]]]))
                if one == two
                else (torch.tensor([[[one, two]]]), torch.ones(1, 1, 2).long())
            )
            average += (log_p[..., one] + log_p[..., two]).exp() * sampled_cross_entropy(student, ids, counts)
    torch.testing.assert_close(average, -(log_p.exp() * student.log_softmax(-1)).sum(-1))


def test_parts_of_other_shapes_are_refused() -> None:
    ids, logs = evidence(topk_tail_kl)
    for wrong in ((ids[:1], logs), (ids, logs[..., :1]), (ids.double(), logs), (ids[0], logs[0])):
        with pytest.raises(InputError, match=r"ids and their numbers are \[batch, time, number\]"):
            inspect.unwrap(topk_tail_kl)(logits(1), *wrong)


# --- other tokenizers -------------------------------------------------------------------------------------------------


def test_answers_are_aligned_by_their_order() -> None:
    """The n-th place that counts with the teacher's n-th, wherever they stand, as far as both go."""
    student, teacher = normal(1, 1, 4, 5), normal(2, 1, 6, 8)
    mask, teacher_mask = torch.tensor([[False, True, False, True]]), torch.tensor([[True, False, False, True, True, False]])
    values = sorted_probabilities(student, teacher, mask=mask, teacher_mask=teacher_mask)
    for mine, other in ((1, 0), (3, 3)):
        alone = sorted_probabilities(student[:, [mine]], teacher[:, [other]])
        torch.testing.assert_close(values[:, [mine]], alone)
    assert not values[:, [0, 2]].any()
    fewer = torch.tensor([[True, False, False, False, False, False]])
    assert not sorted_probabilities(student, teacher, mask=mask, teacher_mask=fewer)[:, [0, 2, 3]].any()


def test_names_of_tokens_do_not_matter() -> None:
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    assert sorted_probabilities(logits(1), logits(1)[..., order]).max() < 1e-15


def test_rows_of_two_models_are_the_same_rows() -> None:
    with pytest.raises(InputError, match="of the same rows"):
        inspect.unwrap(sorted_probabilities)(logits(1), logits(2)[:1])


# --- frames -----------------------------------------------------------------------------------------------------------


def test_frames_beyond_the_length_and_blanks_are_left_out() -> None:
    lengths = torch.tensor([2, 0, 5])
    blank = int(logits(2)[2].argmax(-1)[0])
    inside = torch.arange(TIME) < lengths[:, None]
    values, gradient = value_and_gradient(
        ctc_frames, logits(1).masked_fill(~inside[..., None], math.nan), logits(2), lengths=lengths, without_blank=blank
    )
    counted = inside & (logits(2).argmax(-1) != blank)
    assert counted.any()
    assert (inside & ~counted).any()
    torch.testing.assert_close(values, torch.where(counted, forward_kl(logits(1), logits(2)), 0.0))
    assert gradient.isfinite().all()


def test_lengths_and_blank_that_do_not_fit_are_refused() -> None:
    for wrong in (torch.ones(1).long(), torch.ones(BATCH)):
        with pytest.raises(InputError, match="one number of frames per row") as caught:
            inspect.unwrap(ctc_frames)(logits(1), logits(2), lengths=wrong)
        assert caught.value.code == "U305"
    with pytest.raises(InputError, match=r"one of the 7 tokens \(got 7\)"):
        ctc_frames(logits(1), logits(2), without_blank=VOCABULARY)


# --- schedules --------------------------------------------------------------------------------------------------------


def test_a_schedule_says_what_it_cannot_take() -> None:
    with pytest.raises(InputError, match="must lie between 0 and 1"):
        adaptive_interpolation(Interpolation(), 1.0, progress=0.0, end=2.0)


# --- a vocabulary in chunks -------------------------------------------------------------------------------------------


def heads() -> list[Tensor]:
    """Hidden states, output matrix and bias of the student; hidden states and output matrix of the teacher."""
    shapes = [(BATCH, TIME, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,), (BATCH, TIME, WIDTH + 1), (VOCABULARY, WIDTH + 1)]
    return [normal(seed, *shape) / 3 for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("mask", [None, MASK, torch.zeros_like(MASK)], ids=["no mask", "mask", "nothing"])
@pytest.mark.parametrize("loss", [each for each in ON_LOGITS + PARTS if each is not sorted_probabilities], **by_name)
def test_chunks_change_nothing(loss: Loss, mask: Tensor | None, chunk: int) -> None:
    hidden, head, bias, teacher, teacher_head = heads()
    trained = [each.requires_grad_() for each in (hidden, head, bias)]
    options = {"mask": mask, "chunk": chunk, "bias": bias}
    if loss in PARTS:
        given = evidence(loss)
        chunked, whole = in_chunks(loss, hidden, head, *given, **options), loss(hidden @ head.T + bias, *given, mask=mask)
    else:
        chunked = in_chunks(loss, hidden, head, teacher, teacher_head=teacher_head, **options)
        whole = loss(hidden @ head.T + bias, teacher @ teacher_head.T, mask=mask)
    weights = normal(9, BATCH, TIME)
    torch.testing.assert_close(chunked, whole, rtol=1e-10, atol=1e-12)
    ours, plain = (torch.autograd.grad((weights * values).sum(), trained) for values in (chunked, whole))
    for mine, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_a_teacher_in_chunks_is_a_constant() -> None:
    hidden, head, bias, teacher, teacher_head = heads()
    trained = [each.requires_grad_() for each in (hidden, teacher, teacher_head)]
    teacher_bias = bias.requires_grad_()
    values = in_chunks(forward_kl, hidden, head, teacher, teacher_head=teacher_head, teacher_bias=teacher_bias)
    torch.testing.assert_close(values, forward_kl(hidden @ head.T, teacher @ teacher_head.T + teacher_bias))
    ours, *others = torch.autograd.grad(values.sum(), [*trained, teacher_bias], allow_unused=True)
    assert ours.any()
    assert others == [None, None, None]


def kept_for_backward(compute: Callable[[], Tensor]) -> int:
    """How many numbers stay in memory between forward and backward."""
    kept: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        kept[saved.data_ptr()] = saved.numel()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        values = compute()
    values.sum().backward()
    return sum(kept.values())


def test_chunks_keep_no_logits() -> None:
    hidden, head = normal(0, 2, 64, 4).requires_grad_(), normal(1, 500, 4).requires_grad_()
    logits_of_all = 2 * 64 * 500
    whole = kept_for_backward(lambda: forward_kl(hidden @ head.T, hidden.detach() @ head.detach().T))
    chunked = kept_for_backward(lambda: in_chunks(forward_kl, hidden, head, hidden.detach(), teacher_head=head.detach(), chunk=16))
    assert whole > logits_of_all
    assert chunked < logits_of_all / 10


def test_chunks_that_do_not_fit_are_refused() -> None:
    hidden, head, _, teacher, teacher_head = heads()
    plain = inspect.unwrap(in_chunks)
    for given in ((hidden[0], head, teacher), (hidden, teacher_head, teacher), (hidden, head, teacher[:, :1])):
        with pytest.raises(InputError) as caught:
            plain(forward_kl, *given)
        assert caught.value.code == "U304"
    with pytest.raises(InputError, match="chunk must be 1 position or more"):
        in_chunks(forward_kl, hidden, head, logits(1), chunk=0)
    with pytest.raises(InputError, match="mask must be true or false"):
        plain(forward_kl, hidden, head, logits(1), mask=MASK[:1])
