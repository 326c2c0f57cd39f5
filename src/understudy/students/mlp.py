"""Shallow fully connected networks: the student for tables and flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from understudy.students._seeding import seeded

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


def mlp(
    inputs: int,
    outputs: int,
    *,
    hidden: Sequence[int] = (128,),
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu",
    seed: int | None = None,
) -> nn.Sequential:
    """A network [rows, inputs] -> [rows, outputs]; its initial weights depend on `seed` alone, if given. No hidden layer: linear.

    >>> [tuple(weight.shape) for weight in mlp(64, 10, hidden=[32]).parameters()]
    [(32, 64), (32,), (10, 32), (10,)]
    """
    layers: list[nn.Module] = [nn.Dropout(input_dropout)] if input_dropout else []
    with seeded(seed):
        for before, after in pairwise([inputs, *hidden]):
            layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear([inputs, *hidden][-1], outputs))
    return nn.Sequential(*layers)
