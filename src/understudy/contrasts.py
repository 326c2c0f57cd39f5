"""A memory bank of embeddings keyed by content key: what a contrastive loss tells a row apart from.

losses.contrastive says what is computed; this holds what must outlive a batch. Everything is a buffer, so a checkpoint
that holds the module's state goes on with the same embeddings, the same constant and the same draws. A term keeps two
banks over the same keys, one for the student's embeddings and one for the teacher's: equal keys have equal positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from understudy.errors import InputError


@final
class MemoryBank(nn.Module):
    """One embedding of length one for each row, found by content key, blended with each new one.

    `keys` are int64 [entries, 2], in any order, none twice; entries stand in the order of the keys. With `labels` (one whole
    number per key) negatives are rows of other classes, else all other rows. Embeddings start in random directions, not
    at zero, so that the first negatives are not one point. Tian, Krishnan & Isola 2020, arXiv:1910.10699, section 3.

    >>> bank = MemoryBank(torch.tensor([[5, 0], [1, 7], [1, 2]]), width=4, seed=0)
    >>> bank.positions(torch.tensor([[1, 7], [5, 0]]))
    tensor([1, 2])
    >>> bank.draw(bank.positions(torch.tensor([[5, 0]])), 4).shape
    torch.Size([1, 5])
    """

    keys: Tensor
    embeddings: Tensor
    log_partition: Tensor
    draws: Tensor
    _order: Tensor
    _starts: Tensor
    _sizes: Tensor
    _firsts: Tensor
    _seconds: Tensor
    _codes: Tensor

    def __init__(self, keys: Tensor, width: int, *, seed: int, labels: Tensor | None = None, momentum: float = 0.5) -> None:
        super().__init__()
        _check(keys, labels, momentum)
        self.seed, self.momentum = seed, momentum
        order = _lexicographic(keys)
        self.register_buffer("keys", keys[order])
        generator = torch.Generator().manual_seed(seed)
        directions = functional.normalize(torch.randn(len(keys), width, generator=generator), dim=1)
        self.register_buffer("embeddings", directions)
        self.register_buffer("log_partition", torch.tensor(torch.nan))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        for name, values in {**_index(self.keys), **_groups(labels[order] if labels is not None else None, len(keys))}.items():
            self.register_buffer(name, values, persistent=False)  # follows from the keys
        # Copies of two buffers, so that a step need not wait for the device.
        self._drawn, self._started = 0, False
        self.register_load_state_dict_post_hook(_go_on)  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.keys)

    def positions(self, keys: Int[Tensor, "rows 2"]) -> Int[Tensor, " rows"]:
        """Where these rows stand in the bank: three binary searches, no loop."""
        ranks, there = [], torch.ones(len(keys), dtype=torch.bool, device=keys.device)
        for column, known in enumerate((self._firsts, self._seconds)):
            asked = keys[:, column].contiguous()
            rank = torch.searchsorted(known, asked).clamp_max(len(known) - 1)
            there &= known[rank] == asked
            ranks.append(rank)
        codes = ranks[0] * len(self._seconds) + ranks[1]
        found = torch.searchsorted(self._codes, codes).clamp_max(len(self) - 1)
        there &= self._codes[found] == codes
        if not bool(there.all()):
            raise InputError(
                f"{int((~there).sum()):,} of {len(keys):,} rows are not in the memory bank of {len(self):,} rows. "
                "Make the bank from the keys of all training rows",
                code="U316",
            )
        return found

    def draw(self, positions: Int[Tensor, " rows"], count: int) -> Int[Tensor, "rows candidates"]:
        """Each row's own position, and those of `count` others, drawn with replacement; every call in training mode draws anew.

        A draw depends on the seed and on how many came before it in training mode, and on nothing else.
        """
        generator = torch.Generator(positions.device).manual_seed((self.seed * 1_000_003 + self._drawn) % 2**63)
        if self.training:
            self._drawn += 1
            self.draws += 1
        starts, sizes = self._starts[positions, None], self._sizes[positions, None]
        drawn = torch.randint(2**62, (len(positions), count), generator=generator, device=positions.device) % (len(self) - sizes)
        drawn += sizes * (drawn >= starts)  # step over the row's own class
        return torch.cat([positions[:, None], self._order[drawn]], 1)

    def partition(self, compute: Callable[[], Tensor]) -> Tensor:
        """The logarithm of the constant Z: computed the first time in training mode, and the same ever after."""
        if not self._started and not self.training:
            return compute().detach()
        if not self._started:
            self.log_partition.copy_(compute().detach())
            self._started = True
        return self.log_partition

    @torch.no_grad()
    def update(self, positions: Int[Tensor, " rows"], embeddings: Float[Tensor, "rows width"]) -> None:
        """Blend new embeddings in: momentum * old + (1 - momentum) * new, of length one. After the loss, not before."""
        old = self.embeddings[positions]
        blended = old * self.momentum + embeddings.to(old.dtype) * (1 - self.momentum)
        self.embeddings[positions] = functional.normalize(blended, dim=1)


def _check(keys: Tensor, labels: Tensor | None, momentum: float) -> None:
    if keys.ndim != 2 or keys.shape[1] != 2 or keys.dtype != torch.int64 or not len(keys):
        there = f"{list(keys.shape)} of {str(keys.dtype).removeprefix('torch.')}"
        raise InputError(
            f"keys must be int64 [entries, 2] with at least one entry, as content_keys gives them: they are {there}", code="U315"
        )
    if not 0 <= momentum < 1:
        raise InputError(f"momentum must be at least 0 and below 1 (got {momentum:g}): at 1 the bank would never change", code="U315")
    twice = len(keys) - len(torch.unique(keys, dim=0))
    if twice:
        raise InputError(f"{twice:,} of {len(keys):,} keys are there twice. Give each row once: equal rows have equal keys", code="U315")
    if labels is not None and labels.shape != keys.shape[:1]:
        raise InputError(f"labels must hold one class per key: {len(keys):,} keys, labels {list(labels.shape)}", code="U315")
    if len(keys) < 2 or (labels is not None and bool((labels == labels[0]).all())):
        raise InputError(
            f"the bank has {len(keys):,} rows of one class, so that no row has a negative. Give rows of two classes, or no labels",
            code="U317",
        )


def _lexicographic(keys: Tensor) -> Tensor:
    order = keys[:, 1].argsort(stable=True)
    return order[keys[order, 0].argsort(stable=True)]


def _index(keys: Tensor) -> dict[str, Tensor]:
    """Sorted first and second halves, and a number for each key that sorts as the keys do."""
    firsts, ranks = keys[:, 0].unique(return_inverse=True)
    seconds, others = keys[:, 1].unique(return_inverse=True)
    return {"_firsts": firsts, "_seconds": seconds, "_codes": ranks * len(seconds) + others}


def _groups(labels: Tensor | None, entries: int) -> dict[str, Tensor]:
    """Positions sorted by class, and for each entry where its class starts there and how many it has."""
    if labels is None:
        places = torch.arange(entries)
        return {"_order": places, "_starts": places, "_sizes": torch.ones_like(places)}
    _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    return {"_order": classes.argsort(stable=True), "_starts": starts[classes], "_sizes": counts[classes]}


def _go_on(bank: nn.Module, _: Any) -> None:
    """After loading a state: the same draws and the same constant as without the interruption."""
    assert isinstance(bank, MemoryBank)
    bank._drawn, bank._started = int(bank.draws), not bool(bank.log_partition.isnan())
    for name, values in _index(bank.keys).items():
        bank.register_buffer(name, values, persistent=False)
