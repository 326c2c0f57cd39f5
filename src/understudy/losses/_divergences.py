"""Divergences between rows of log-probabilities, shared by the losses on logits, tokens and frames."""

from __future__ import annotations

import torch
from torch import Tensor

# Stands for the logarithm of zero where 0 * -inf would be NaN.
LOWEST = -1e30


def log_probabilities(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """log softmax(logits / temperature); minus infinity becomes a number."""
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1).clamp_min(LOWEST)


def divergence(log_from: Tensor, log_to: Tensor) -> Tensor:
    """KL(from || to), summed over the last axis."""
    return (log_from.exp() * (log_from - log_to)).sum(-1)


def without_label(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The label's logit; the logarithm of the other classes' mass; log-probabilities among the others, lowest at the label."""
    at = labels[:, None]
    others = logits.scatter(1, at, LOWEST)
    mass = others.logsumexp(-1, keepdim=True)
    return logits.gather(1, at).squeeze(1), mass.squeeze(1), others - mass
