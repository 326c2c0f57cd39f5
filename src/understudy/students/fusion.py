"""Networks that read several inputs of a row: a branch for each, joined late; any of them may be absent.

The branches are networks of their own kind (a convnet for the picture, a bag for the text) that end in a vector. A row of bytes
holds the encoded inputs side by side; an exported graph reads each of them by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from understudy.data.pairs import PairEncoding
from understudy.students._seeding import seeded


@final
class Apart(nn.Module):
    """Rows of bytes, uint8 [rows, bytes] -> the encoded inputs of each row, in the order of their names."""

    def __init__(self, encoding: PairEncoding) -> None:
        super().__init__()
        self.encoding = encoding
        self.features: list[str] = []
        self.spec = {"kind": "pair"}

    def forward(self, rows: Tensor) -> list[Tensor]:
        return self.encoding.split(rows)


@final
class Fusion(nn.Module):
    """A vector of each input, then a head over all of them; an input that is absent counts as a vector of zeros.

    Absent is an input whose every value is its `blank` (black pixels, padding); inputs whose blank is None are always there.
    In training one input alone is kept of a row with the chance `drop`, so that the network learns to answer from any
    (Neverova et al. 2015, arXiv:1501.00102, section 3.4, call it ModDrop).
    """

    def __init__(self, branches: Mapping[str, nn.Module], head: nn.Module, *, blanks: Mapping[str, int | None], drop: float = 0.0) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(branches)
        self.head = head
        self.blanks, self.drop = dict(blanks), drop

    def forward(self, parts: list[Tensor]) -> Tensor:
        kept = self._kept(len(parts[0]), parts[0].device) if self.training and self.drop else None
        vectors = []
        for at, (name, branch) in enumerate(self.branches.items()):
            vector, blank = branch(parts[at]), self.blanks[name]
            if blank is not None:
                vector = vector * (parts[at].flatten(1) != blank).any(dim=1, keepdim=True).to(vector.dtype)
            vectors.append(vector if kept is None else vector * kept[:, at : at + 1].to(vector.dtype))
        return self.head(torch.cat(vectors, dim=1))

    def _kept(self, rows: int, device: torch.device) -> Tensor:
        """Which inputs of each row are kept, bool [rows, inputs]."""
        alone = torch.rand(rows, 1, device=device) < self.drop
        chosen = torch.randint(len(self.branches), (rows, 1), device=device)
        return ~alone | (chosen == torch.arange(len(self.branches), device=device))


def fusion_head(width: int, outputs: int, *, hidden: int = 128, dropout: float = 0.0, seed: int | None = None) -> nn.Sequential:
    """What answers from the joined vectors [rows, width]; linear where `hidden` is 0.

    >>> [tuple(weight.shape) for weight in fusion_head(6, 3, hidden=4).parameters()]
    [(4, 6), (4,), (3, 4), (3,)]
    """
    layers: list[nn.Module] = [nn.ReLU()]
    layers += [nn.Dropout(dropout)] if dropout else []
    with seeded(seed):
        if hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
        layers.append(nn.Linear(hidden or width, outputs))
    return nn.Sequential(*layers)
