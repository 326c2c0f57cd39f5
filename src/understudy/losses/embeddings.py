"""Losses between embeddings, hidden states and scores: `loss(student, teacher, *, options)`, one value per row.

Widths are equal here: a connector (a projection used in training only) makes them so. A mask [rows, length] is true at
tokens that count; a row of hidden states gives the mean over its own tokens, and the mean over all tokens of a batch is
these values weighted by tokens per row. To add a loss: write it here, name it in `__all__`, and give it a line in
tests/definitions_features.py.

When it helps and hurts: A student whose product is a vector, or text students with the teacher's hidden states. The direction
(`embedding_cosine`) is the safe start; squared errors matter where lengths are used later.

Known problems: A mean over the width makes squared errors of vectors of length one small: the wider, the smaller, so weights do
not carry over between widths. Without a mask padding counts as tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from understudy.losses._maps import SHORTEST, masked_like, pair, unit
from understudy.losses._shapes import same_shape

__all__ = ["embedding_cosine", "embedding_mse", "hidden_cosine", "hidden_mse", "patient_hidden", "score_margin"]


def embedding_cosine(student: Float[Tensor, "batch width"], teacher: Float[Tensor, "batch width"]) -> Float[Tensor, " batch"]:
    """One minus the cosine between the student's and the teacher's embedding.

    1 - sum_d s_d t_d / (|s| |t|): the direction counts, the length does not. Jasper weighs it with 10. Zhang et al. 2024,
    arXiv:2412.19048, section 2.

    >>> embedding_cosine(torch.tensor([[3.0, 0.0], [3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor([0., 1.])
    """
    same_shape(student, teacher, "teacher")
    return _cosine_distance(*pair(student, teacher))


def embedding_mse(
    student: Float[Tensor, "batch width"], teacher: Float[Tensor, "batch width"], *, normalised: bool = False
) -> Float[Tensor, " batch"]:
    """Mean squared difference of embeddings.

    mean_d (s_d - t_d)^2; normalised, s and t are divided by their lengths first, which gives 2 / width times one minus their
    cosine: the wider, the smaller, so CLIP-KD weighs it with 2000, where it was the strongest of its terms (ImageNet
    zero-shot, ViT-T/16: 34.23 %, 30.55 alone). Reimers & Gurevych 2020, arXiv:2004.09813, section 2; normalised: Yang et
    al. 2024, arXiv:2307.12732, section 3.

    >>> embedding_mse(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([2.])
    """
    same_shape(student, teacher, "teacher")
    student, teacher = pair(student, teacher)
    if normalised:
        student, teacher = unit(student), unit(teacher)
    return functional.mse_loss(student, teacher, reduction="none").mean(1)


def hidden_mse(
    student: Float[Tensor, "batch length width"],
    teacher: Float[Tensor, "batch length width"],
    *,
    mask: Bool[Tensor, "batch length"] | None = None,
) -> Float[Tensor, " batch"]:
    """Mean squared difference of hidden states over the tokens of a row (TinyBERT's hidden and embedding layers).

    mean_t mean_d (h_td - g_td)^2 over tokens t and width d, where h is the student's state after one learned linear map,
    shared by all layers. Layers are added by the objective, with weight 1. Without a mask, padding counts, as in the
    authors' code. Jiao et al. 2020, arXiv:1909.10351, section 3.

    >>> hidden_mse(torch.tensor([[[3.0], [9.0]]]), torch.tensor([[[1.0], [1.0]]]), mask=torch.tensor([[True, False]]))
    tensor([4.])
    """
    same_shape(student, teacher, "teacher")
    masked_like(mask, student.shape[:2], "each token")
    student, teacher = _hidden(student, teacher, mask)
    return _over_tokens(functional.mse_loss(student, teacher, reduction="none").mean(2), mask)


def hidden_cosine(
    student: Float[Tensor, "batch length width"],
    teacher: Float[Tensor, "batch length width"],
    *,
    mask: Bool[Tensor, "batch length"] | None = None,
) -> Float[Tensor, " batch"]:
    """One minus the cosine between hidden states, mean over the tokens of a row (DistilBERT).

    mean_t (1 - h_t . g_t / (|h_t| |g_t|)) over tokens t of the last layer. Published weights: 1, beside 5 for soft targets at T
    = 2 and 2 for masked tokens; the student keeps 97 % of BERT's score on GLUE with 40 % fewer parameters. Sanh et
    al. 2019, arXiv:1910.01108, section 2.

    >>> hidden_cosine(torch.tensor([[[3.0, 0.0], [3.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    tensor([0.5000])
    """
    same_shape(student, teacher, "teacher")
    masked_like(mask, student.shape[:2], "each token")
    return _over_tokens(_cosine_distance(*_hidden(student, teacher, mask)), mask)


def patient_hidden(student: Float[Tensor, "batch layers width"], teacher: Float[Tensor, "batch layers width"]) -> Float[Tensor, " batch"]:
    """Squared distance between hidden states of length one, summed over layers (PKD, patient knowledge distillation).

    sum_m sum_d (h_md / |h_m| - g_md / |g_m|)^2, where h and g are the states of the first token at mapped layers m. The
    published weights (10 to 1000) belong to the authors' code, which divides by layers and width too. BERT with 6 layers on
    MNLI: 81.5 / 81.0 in TextBrewer's table (teacher 83.7 / 84.0). Sun et al. 2019, arXiv:1908.09355, section 3.

    >>> patient_hidden(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]]))
    tensor([2.])
    """
    same_shape(student, teacher, "teacher")
    student, teacher = (unit(each) for each in pair(student, teacher))
    return functional.mse_loss(student, teacher, reduction="none").sum((1, 2))


def score_margin(student: Float[Tensor, "batch candidates"], teacher: Float[Tensor, "batch candidates"]) -> Float[Tensor, " batch"]:
    """Squared difference of how far the first candidate's score lies above the others' (MarginMSE).

    mean_k ((s_0 - s_k) - (t_0 - t_k))^2 over candidates k after the first, which is the relevant one. Scores are what ranks:
    products of embeddings without normalisation in the student, raw outputs of a cross-encoder in the teacher; with a
    sigmoid's (0 to 1) the student cannot follow both. Hofstätter et al. 2020, arXiv:2010.02666, section 3.

    >>> score_margin(torch.tensor([[5.0, 1.0]]), torch.tensor([[9.0, 7.0]]))
    tensor([4.])
    """
    same_shape(student, teacher, "teacher")
    student, teacher = pair(student, teacher)
    apart = student - teacher
    return (apart[:, :1] - apart[:, 1:]).square().mean(1)


def _cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(student, dim=-1) * torch.linalg.vector_norm(teacher, dim=-1)
    return 1 - torch.linalg.vecdot(student, teacher) / lengths.masked_fill(lengths <= SHORTEST, torch.inf)


def _hidden(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The student's states with 0 at tokens that do not count: whatever stands there, in either, reaches no gradient."""
    student, teacher = pair(student, teacher)
    return (student if mask is None else student.masked_fill(~mask[..., None], 0)), teacher


def _over_tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over tokens that count; 0 where there is none."""
    return values.mean(1) if mask is None else values.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp_min(1)
