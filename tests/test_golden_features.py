"""Published numbers of losses on features, relations, embeddings and attention: values and gradients, float64.

One table says for each golden file how the loss is called; golden/FEATURES.md says what the numbers are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from understudy.losses.attention_maps import attention_transfer, class_attention
from understudy.losses.attentions import attention_distribution, attention_scores, self_relation
from understudy.losses.channels import channel_correlation, neuron_selectivity, solution_flow
from understudy.losses.contrastive import (
    contrastive_relation,
    contrastive_representation,
    in_batch_contrast,
    interactive_contrast,
    log_partition,
)
from understudy.losses.dense import channel_distribution
from understudy.losses.embeddings import embedding_cosine, embedding_mse, hidden_cosine, hidden_mse, patient_hidden, score_margin
from understudy.losses.layers import (
    activation_boundaries,
    batch_norm_margins,
    factor_transfer,
    feature_alignment,
    hierarchical_context,
    hint,
    partial_distance,
    variational_information,
)
from understudy.losses.relations import (
    correlation_congruence,
    probabilistic_transfer,
    relational_angle,
    relational_distance,
    similarity_preserving,
)

GOLDEN = Path(__file__).parent / "golden"

Case = dict[str, Any]
"""Name without the case's number -> tensor; a text stays a text."""


@dataclass(frozen=True)
class Published:
    """How a golden file's numbers come about: `rows` gives one value per row, and their mean is `value`."""

    rows: Callable[[Case], Tensor]
    value: str = "loss"
    gradients: dict[str, str] = field(default_factory=lambda: {"student_features": "grad_student"})
    rtol: float = 1e-9


def cases(name: str) -> list[Case]:
    with np.load(GOLDEN / f"{name.partition(':')[0]}.npz", allow_pickle=False) as held:
        found: list[Case] = [{} for _ in range(int(held["n_cases"]))]
        for key in held.files:
            stem, _, number = key.rpartition("_")
            if number.isdigit():
                found[int(number)][stem] = str(held[key]) if held[key].dtype.kind == "U" else torch.from_numpy(held[key])
    return found


def features(loss: Callable[..., Tensor], **options: str) -> Callable[[Case], Tensor]:
    """loss(student, teacher), the options being numbers of the file: option -> name there."""
    return lambda case: loss(
        case["student_features"], case["teacher_features"], **{option: case[name].item() for option, name in options.items()}
    )


def hint_rows(case: Case) -> Tensor:
    student = case["student_features"]
    if "regressor_weight" in case:
        student = torch.einsum("tc,bchw->bthw", case["regressor_weight"], student)
    return hint(student, case["teacher_features"])


def congruence_rows(case: Case) -> Tensor:
    options = {"gamma": case["gamma"].item(), "order": case["order"].item()} if case["kernel"] == "gaussian" else {}
    return correlation_congruence(case["student_features"], case["teacher_features"], kernel=case["kernel"], **options)


def variational_rows(case: Case) -> Tensor:
    return variational_information(case["student_features"], case["teacher_features"], raw_variances=case["log_scale"])


def overhaul_rows(case: Case) -> Tensor:
    margins = batch_norm_margins(case["bn_weight"], case["bn_bias"])
    if margins.dtype == torch.float64:
        torch.testing.assert_close(margins, case["margin"], rtol=1e-12, atol=1e-12)
    return partial_distance(case["student_features"], case["teacher_features"], margins=margins)


def flow_rows(case: Case) -> Tensor:
    return solution_flow((case["student_a"], case["student_b"]), (case["teacher_a"], case["teacher_b"]))


def representation_rows(case: Case) -> Tensor:
    constants = {}
    for side, other in (("student", "teacher"), ("teacher", "student")):
        z = case[f"z_{side}"].item()
        used = log_partition(case[f"{side}_embeddings"], case[f"{other}_bank"], case["sample_idx"], temperature=case["temperature"].item())
        if z < 0 and used.dtype == torch.float64:
            torch.testing.assert_close(used.exp(), case[f"z_{side}_used"], check_dtype=False, rtol=1e-9, atol=0)
        constants[f"{side}_log_partition"] = math.log(z) if z > 0 else None
    return contrastive_representation(
        case["student_embeddings"],
        case["teacher_embeddings"],
        student_bank=case["student_bank"],
        teacher_bank=case["teacher_bank"],
        positions=case["sample_idx"],
        temperature=case["temperature"].item(),
        **constants,
    )


def side_by_side(heads: Tensor) -> Tensor:
    """[rows, heads, length, width of a head] as a projection gives it."""
    return heads.transpose(1, 2).flatten(2)


def minilm(case: Case, part: str = "both") -> Tensor:
    (s_q, s_k, s_v), (t_q, t_k, t_v) = ([side_by_side(case[f"{who}_{x}"]) for x in "qkv"] for who in ("student", "teacher"))
    heads, mask = case["student_q"].shape[1], case["mask"].bool()
    attention = attention_distribution((s_q, s_k), (t_q, t_k), heads=heads, mask=mask)
    if part == "attention":
        return attention
    values = self_relation(s_v, t_v, heads=heads, mask=mask)
    return values if part == "values" else attention + values


def relation(x: str) -> Callable[[Case], Tensor]:
    return lambda case: self_relation(
        case[f"student_{x}"], case[f"teacher_{x}"], heads=case["relation_heads"].item(), mask=case["mask"].bool()
    )


def relations_weighed(case: Case) -> Tensor:
    return torch.stack([weight * relation(x)(case) for weight, x in zip(case["weights"], "qkv", strict=True)]).sum(0)


def over_layers(student: Tensor, teacher: Tensor, loss: Callable[..., Tensor], **options: Any) -> Tensor:
    return torch.stack([loss(mine, theirs, **options) for mine, theirs in zip(student, teacher, strict=True)]).sum(0)


def by_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Rows whose mean is the mean over all tokens of the batch."""
    tokens = mask.sum(1)
    return values * tokens / tokens.double().mean()


def hidden_rows(case: Case, *, masked: bool = False) -> Tensor:
    student = case["student_hidden"] @ case["projection_weight"].T + case["projection_bias"]
    mask = case["mask"].bool()
    rows = over_layers(student, case["teacher_hidden"], hidden_mse, mask=mask if masked else None)
    return by_tokens(rows, mask) if masked else rows


def distilbert_rows(case: Case) -> Tensor:
    mask = case["mask"].bool()
    return by_tokens(hidden_cosine(case["student_hidden"], case["teacher_hidden"], mask=mask), mask)


def margin_rows(case: Case) -> Tensor:
    documents = torch.cat([case["positive"][:, None], case["negatives"]], 1)
    scores = torch.einsum("bd,bkd->bk", case["query"], documents)
    margins = case["teacher_margins"]
    return score_margin(scores, torch.cat([torch.zeros_like(margins[:, :1]), -margins], 1))


def sides(case: Case) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return (case["student_image"], case["student_text"]), (case["teacher_image"], case["teacher_text"])


def clip_relation(case: Case) -> Tensor:
    scales = {f"{who}_scale": case[f"{who}_scale"].item() for who in ("student", "teacher")}
    return contrastive_relation(*sides(case), **scales)


def clip_features(case: Case) -> Tensor:
    student, teacher = sides(case)
    return embedding_mse(student[0], teacher[0], normalised=True) + embedding_mse(student[1], teacher[1], normalised=True)


def clip_interaction(case: Case) -> Tensor:
    return interactive_contrast(*sides(case), scale=case["cross_scale"].item())


def clip_itself(case: Case) -> Tensor:
    return in_batch_contrast(case["student_image"], case["student_text"], temperature=1 / case["student_scale"].item(), symmetric=True)


def clip_whole(case: Case) -> Tensor:
    parts = {"ckd": clip_relation, "fd": clip_features, "icl": clip_interaction}
    return clip_itself(case) + sum(case[f"weight_{name}"] * part(case) for name, part in parts.items())


IMAGE_AND_TEXT = {"student_image": "grad_student_image", "student_text": "grad_student_text"}
QUERIES_KEYS_VALUES = {f"student_{x}": f"grad_student_{x}" for x in "qkv"}


def clip_part(name: str) -> dict[str, str]:
    return {key: f"{gradient}_{name}" for key, gradient in IMAGE_AND_TEXT.items()}


PUBLISHED: dict[str, Published] = {
    "fitnets": Published(hint_rows),
    "at": Published(lambda case: attention_transfer(case["student_features"], case["teacher_features"], power=float(case["p"]))),
    "at:norm": Published(
        lambda case: attention_transfer(case["student_features"], case["teacher_features"], distance="norm"),
        "loss_paper",
        {"student_features": "grad_student_paper"},
    ),
    "sp": Published(features(similarity_preserving)),
    "rkd_distance": Published(features(relational_distance)),
    "rkd_angle": Published(features(relational_angle)),
    "pkt": Published(features(probabilistic_transfer), rtol=1e-8),
    "cc": Published(congruence_rows),
    "vid": Published(variational_rows, gradients={"student_features": "grad_student", "log_scale": "grad_log_scale"}),
    "nst": Published(features(neuron_selectivity)),
    "ab": Published(features(activation_boundaries, margin="margin")),
    "fsp": Published(flow_rows, gradients={"student_a": "grad_student_a", "student_b": "grad_student_b"}),
    "ft": Published(features(factor_transfer)),
    "ickd": Published(features(channel_correlation)),
    "crd_nce": Published(
        representation_rows, gradients={"student_embeddings": "grad_student", "teacher_embeddings": "grad_teacher_embeddings"}
    ),
    "crd_infonce": Published(features(in_batch_contrast, temperature="temperature")),
    "crd_infonce:symmetric": Published(
        lambda case: in_batch_contrast(
            case["student_features"], case["teacher_features"], temperature=case["temperature"].item(), symmetric=True
        ),
        "loss_symmetric",
        {"student_features": "grad_student_symmetric"},
    ),
    "ofd": Published(overhaul_rows),
    "reviewkd_hcl": Published(features(hierarchical_context)),
    "simkd": Published(features(feature_alignment)),
    "cat_kd": Published(
        lambda case: class_attention(
            case["student_features"],
            case["teacher_features"],
            resolution=case["resolution"].item(),
            normalised=bool(case["normalize"]),
        )
    ),
    "cwd": Published(features(channel_distribution, temperature="temperature")),
    "minilm_v1": Published(minilm, gradients=QUERIES_KEYS_VALUES),
    "minilm_v1:attention": Published(lambda case: minilm(case, "attention"), "loss_attention", {}),
    "minilm_v1:values": Published(lambda case: minilm(case, "values"), "loss_value_relation", {}),
    "minilm_v2": Published(relations_weighed, gradients=QUERIES_KEYS_VALUES),
    **{f"minilm_v2:{x}": Published(relation(x), f"loss_{x}{x}", {}) for x in "qkv"},
    "tinybert_attention": Published(
        lambda case: over_layers(case["student_scores"], case["teacher_scores"], attention_scores),
        gradients={"student_scores": "grad_student"},
    ),
    "tinybert_hidden": Published(hidden_rows, gradients={"student_hidden": "grad_student", "projection_weight": "grad_projection_weight"}),
    "tinybert_hidden:masked": Published(
        lambda case: hidden_rows(case, masked=True), "loss_masked", {"student_hidden": "grad_student_masked"}
    ),
    "pkd": Published(
        lambda case: patient_hidden(case["student_hidden"], case["teacher_hidden"]), gradients={"student_hidden": "grad_student"}
    ),
    "distilbert_cosine": Published(distilbert_rows, gradients={"student_hidden": "grad_student"}),
    "embedding_cosine": Published(features(embedding_cosine)),
    "embedding_mse": Published(features(embedding_mse)),
    "margin_mse": Published(margin_rows, gradients={key: f"grad_{key}" for key in ("query", "positive", "negatives")}),
    "clip_kd": Published(clip_whole, gradients=IMAGE_AND_TEXT),
    "clip_kd:clip": Published(clip_itself, "loss_clip", {}),
    "clip_kd:ckd": Published(clip_relation, "loss_ckd", clip_part("ckd")),
    "clip_kd:fd": Published(clip_features, "loss_fd", clip_part("fd")),
    "clip_kd:icl": Published(clip_interaction, "loss_icl", clip_part("icl")),
}
"""Golden file, and behind a colon which of its numbers -> how they are computed here."""


def computed(published: Published, case: Case, dtype: torch.dtype = torch.float64) -> tuple[Tensor, dict[str, Tensor]]:
    """One value per row, and the gradient of their mean in each input that has one."""
    cast = {
        key: value.to(dtype) if isinstance(value, Tensor) and value.ndim and value.is_floating_point() else value
        for key, value in case.items()
    }
    leaves = {key: cast[key].clone().requires_grad_() for key in published.gradients}
    rows = published.rows({**cast, **leaves})
    gradients = torch.autograd.grad(rows.mean(), list(leaves.values())) if leaves else ()
    return rows.detach(), dict(zip(leaves, gradients, strict=True))


def misses(name: str, published: Published) -> list[str]:
    """What differs from the golden file by more than a billionth of the largest number."""
    found = []
    for number, case in enumerate(cases(name)):
        rows, gradients = computed(published, case)
        pairs = [("value", rows.mean(), case[published.value])]
        pairs += [(key, gradients[key], case[there]) for key, there in published.gradients.items()]
        for what, here, there in pairs:
            scale = max(1.0, float(there.abs().max()))
            if not torch.allclose(here, there, rtol=published.rtol, atol=1e-11 * scale):
                found.append(f"case {number} ({case['case_name']}): {what} off by {float((here - there).abs().max()):.2g}")
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name: str) -> None:
    assert misses(name, PUBLISHED[name]) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PUBLISHED)
def test_low_precision_is_finite_and_near(name: str, dtype: torch.dtype) -> None:
    published = PUBLISHED[name]
    for case in cases(name):
        rows, gradients = computed(published, case, dtype)
        assert rows.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        if dtype == torch.float32:
            value = case[published.value].float()
            torch.testing.assert_close(rows.mean(), value, rtol=1e-4, atol=5e-6, check_dtype=False)
