"""The processes of one training: started by torchrun, `accelerate launch` or anything else that sets WORLD_SIZE.

Each rank takes its share of every batch and gradients are summed, so that the weights are the same everywhere. Rank 0
leads: it alone asks the teacher, writes, prints, validates, exports and measures; the others follow it.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, final

import torch
from torch import Tensor, distributed, nn

from understudy.errors import InputError

PATIENCE = timedelta(days=14)
"""Followers wait as long as the teacher needs; a launcher ends them when the leader fails."""


@final
class Ranks:
    """This process among the others; made by `here`, which gives None to a process that is alone."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count
        self._told = False

    @staticmethod
    def here() -> Ranks | None:
        """The ranks that the environment names, joined on the first call; None for a single process."""
        said = os.environ.get("WORLD_SIZE", "1")
        if said == "1" and not (distributed.is_available() and distributed.is_initialized()):
            return None
        if not distributed.is_initialized():
            cuda = torch.cuda.is_available()
            if cuda:
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
            try:
                distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
            except (ValueError, RuntimeError) as error:
                raise InputError(
                    f"WORLD_SIZE = {said} asks for a training of that many processes, and they cannot join: {error}. Start them with "
                    "`torchrun --nproc-per-node N -m understudy ...` or `accelerate launch -m understudy ...`, or unset WORLD_SIZE",
                    code="U360",
                ) from None
            atexit.register(distributed.destroy_process_group)
        count = distributed.get_world_size()
        return None if count == 1 else Ranks(distributed.get_rank(), count)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def check_budget(self, seconds: float | None) -> None:
        """Refuse a budget of time, which the ranks would end at different steps."""
        if seconds is not None:
            raise InputError(
                f"train.max_time = {seconds:g} goes by the clock, and {self.count} processes have as many: set train.epochs instead, or "
                "train in one process",
                code="U361",
            )

    def refuse(self, what: str) -> None:
        """Refuse what only one process can do yet."""
        raise InputError(
            f"{what} train in one process, and WORLD_SIZE asks for {self.count}: start it without torchrun or `accelerate launch`",
            code="U362",
        )

    def share(self, rows: Tensor) -> tuple[Tensor, float]:
        """This rank's rows of a batch and their part of its mean; the few of a short last batch are done by every rank."""
        if len(rows) < 2 * self.count:
            return rows, 1.0 / self.count
        mine = rows[self.rank :: self.count]
        return mine, len(mine) / len(rows)

    @torch.no_grad()
    def averaged(self, total: Tensor, terms: dict[str, Tensor], part: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of the whole batch from those of the shares."""
        losses = torch.stack([total.float(), *(value.float() for value in terms.values())]) * part
        distributed.all_reduce(losses)
        return losses[0], dict(zip(terms, losses[1:], strict=True))

    @torch.no_grad()
    def add_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Sum each gradient over the ranks in one exchange; a weight that no rank used keeps none."""
        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in parameters]
        used = torch.tensor([weight.grad is not None for weight in parameters], dtype=torch.float32, device=grads[0].device)
        flat = torch.cat([used, *(grad.reshape(-1).float() for grad in grads)])
        distributed.all_reduce(flat)
        parts = flat.split([len(parameters), *(grad.numel() for grad in grads)])
        for weight, grad, summed, there in zip(parameters, grads, parts[1:], parts[0].tolist(), strict=True):
            weight.grad = grad.copy_(summed.view(grad.shape)) if there else None

    @torch.no_grad()
    def level(self, *modules: nn.Module) -> None:
        """Give every rank the leader's weights and buffers."""
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                whole = tensor.detach().contiguous()
                distributed.broadcast(whole, src=0)
                if whole.data_ptr() != tensor.data_ptr():
                    tensor.copy_(whole)

    def same(self, said: Any) -> Any:
        """What the leader says, everywhere."""
        box = [said]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def call(self, said: dict[str, Any]) -> None:
        """The leader calls the followers to train."""
        self._told = True
        self.same(said)

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Sends the followers home when the leader ends, or fails, without having called them."""
        try:
            yield
        finally:
            if not self._told:
                self.same(None)
