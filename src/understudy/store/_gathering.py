"""One column of all shards, gathered as if it were one array: nothing is read before it is asked for, nothing is copied twice.

The shards are memory maps at scattered addresses of this process. Their rows are addressed from the lowest of them, so that one
indexed copy takes rows from any of them: a loop over 50 shards costs five times as much as the copy itself.
"""

from __future__ import annotations

import ctypes
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

Positions = np.ndarray[Any, np.dtype[np.int64]]


@final
class Column:
    """A signal's parts, one per shard, [rows of the shard, (views,) ...]."""

    def __init__(self, parts: list[Tensor], *, views: int) -> None:
        first = parts[0]
        self.dtype, self.views = first.dtype, views
        self.shape = tuple(first.shape[2:] if views > 1 else first.shape[1:])
        self._parts = [part.contiguous() for part in parts]  # they keep the addresses below alive
        self._width = int(np.prod(self.shape, dtype=np.int64)) * first.element_size()
        starts = np.array([part.data_ptr() for part in self._parts if len(part)], dtype=np.int64)
        counts = np.array([len(part) for part in self._parts if len(part)], dtype=np.int64)
        self._origin = int(starts.min()) if len(starts) else 0
        row = self._width * views
        self._ends = np.cumsum(counts)
        # where row r of the whole would lie if its shard began with it: address = base of the shard + r * row
        self._bases = starts - self._origin - (self._ends - counts) * row
        self._row = row
        span = int((starts + counts * row).max()) - self._origin if len(starts) else 0
        if self._width and span:
            # every byte of the span as the start of a value; only addresses inside the maps are ever asked for
            whole = np.ctypeslib.as_array(ctypes.cast(self._origin, ctypes.POINTER(ctypes.c_uint8)), shape=(span,))
            value = whole[: self._width].view(f"V{self._width}")
            self._values = np.lib.stride_tricks.as_strided(value, (span - self._width + 1,), (1,), writeable=False)

    def gather(self, positions: Positions, view: Positions | None = None) -> Tensor:
        """The values at these rows in the stored type: [rows, ...], or [rows, views, ...] of all views when `view` is None."""
        several = self.views > 1 and view is None
        if not len(positions) or not self._width:
            return torch.empty((len(positions), *([self.views] if several else []), *self.shape), dtype=self.dtype)
        if int(positions.min()) < 0 or int(positions.max()) >= self._ends[-1]:
            raise IndexError(f"positions {positions.min()} to {positions.max()} of {self._ends[-1]} rows")
        address = self._bases[np.searchsorted(self._ends, positions, side="right")] + positions * self._row
        if several:
            address = address[:, None] + np.arange(self.views) * self._width
        elif view is not None:
            if int(view.min()) < 0 or int(view.max()) >= self.views:
                raise IndexError(f"views {view.min()} to {view.max()} of {self.views}")
            address = address + view * self._width
        found = torch.from_numpy(self._values[address].view(np.uint8))
        return found.view(self.dtype).reshape((*address.shape, *self.shape))
