"""Everything of a training that changes while it runs, in one place: what a checkpoint holds and what a resume puts back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from understudy.errors import InputError
from understudy.objectives import Objective
from understudy.sections import OptimizerSection
from understudy.signals import Batch, Signals
from understudy.students.student import device_of
from understudy.training._momenta import SeparateMomenta

Weights = dict[str, Tensor]


@final
@dataclass
class Position:
    """How far training has come."""

    epoch: int = 0
    within: int = 0  # optimizer steps done in this epoch
    step: int = 0
    seconds: float = 0.0
    stale: int = 0  # epochs since the best one
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None

    def finished(self, options: OptimizerSection) -> bool:
        """Out of epochs, of patience or, after one epoch at least, of time."""
        if self.epoch >= math.ceil(options.epochs * options.stop) or (options.patience is not None and self.stale >= options.patience):
            return True
        return options.max_time is not None and self.seconds >= options.max_time and self.epoch > 0


@final
class Live:
    """The network with its objective, its optimizer and the weights kept beside it."""

    def __init__(self, module: nn.Module, objective: Objective, options: OptimizerSection) -> None:
        self.module, self.objective, self.options = module, objective, options
        self.device = device_of(module)
        self.parameters = [weight for weight in (*module.parameters(), *objective.parameters()) if weight.requires_grad]
        self.decaying = [weight for weight in self.parameters if weight.ndim >= 2]
        self.optimizer = make_optimizer(self.parameters, options)
        self.scaler = torch.amp.GradScaler(self.device.type) if options.precision == "fp16" else None
        self.average: Weights | None = copied(module) if options.ema is not None else None
        self.best: Weights | None = None
        self.at = Position()

    def backward(self, student: Signals, batch: Batch, weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Add a batch's gradients, the total being multiplied by `weight`; gives the total and the terms as the objective does."""
        if isinstance(self.optimizer, SeparateMomenta):
            own, heard, terms = self.objective.apart(student, batch)
            if heard is not None:
                self.optimizer.hear(heard * weight)
            if own is not None:
                (own * weight).backward()
            return sum((part.detach() for part in (own, heard) if part is not None), torch.zeros_like(next(iter(terms.values())))), terms
        total, terms = self.objective(student, batch)
        loss = total if weight == 1.0 else total * weight
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return total, terms

    def step(self) -> None:
        """One optimizer step from the gradients there are."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.options.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.options.clip)
        if self.options.weight_decay:
            self._decay()
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.options.max_norm is not None:
            self._constrain(self.options.max_norm)
        for weight in self.parameters:
            weight.grad = None
        if self.objective.remembers:
            self.objective.after_step()
        if self.average is not None and self.options.ema is not None:
            _move(self.average, self.module, self.options.ema, self.at.step)

    @torch.no_grad()
    def _decay(self) -> None:
        """Weight decay as AdamW (decoupled) or SGD (in the gradient) has it, but not of biases nor of the scales of norms."""
        decay, lr = self.options.weight_decay, self.optimizer.param_groups[0]["lr"]
        moving: list[Tensor] = [weight for weight in self.decaying if weight.grad is not None]
        if self.options.optimizer == "adamw":
            torch._foreach_mul_(moving, 1.0 - lr * decay)
        else:
            torch._foreach_add_([weight.grad for weight in moving if weight.grad is not None], moving, alpha=decay)

    @torch.no_grad()
    def _constrain(self, largest: float) -> None:
        """Scale down the weights that enter a unit where their norm is above the largest (Srivastava et al. 2014, section 5.1)."""
        for weight in self.decaying:
            norms = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
            weight.mul_((largest / norms.clamp_min(1e-12)).clamp_max(1.0))

    def end_epoch(self, loss: float | None, figures: dict[str, float], metric: str) -> None:
        """Enter the epoch in the history, and keep its weights if they are the best so far and asked for."""
        at = self.at
        at.epoch, at.within, at.stale = at.epoch + 1, 0, at.stale + 1
        entry = {"epoch": at.epoch, "step": at.step, "seconds": at.seconds, **({} if loss is None else {"loss": loss}), **figures}
        at.history.append(entry)
        if figures and metric not in figures:
            raise InputError(f"validation gives {', '.join(figures)}; there is no {metric!r} among them", code="U037")
        if figures and (at.best is None or figures[metric] > at.best[metric]):
            at.best, at.stale = entry, 0
            if self.options.keep == "best":
                source = self.module.state_dict() if self.average is None else self.average
                self.best = {name: tensor.detach().clone() for name, tensor in source.items()}

    def state(self) -> dict[str, Any]:
        """Tensors and plain values from which `restore` goes on."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "position": dict(vars(self.at)),
            "module": self.module.state_dict(),
            "objective": self.objective.state_dict(),
            "weights": self.objective.weights,
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "average": self.average,
            "best": self.best,
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put everything back as a checkpoint has it, the random state included."""
        self.at = Position(**state["position"])
        self.module.load_state_dict(state["module"])
        self.objective.load_state_dict(state["objective"])
        self.objective.weights = state["weights"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.average, self.best = (
            None if state[kept] is None else {name: tensor.to(self.device) for name, tensor in state[kept].items()}
            for kept in ("average", "best")
        )
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)


def make_optimizer(parameters: list[nn.Parameter], options: OptimizerSection) -> torch.optim.Optimizer:
    """AdamW or SGD without weight decay, fused: one call for all parameters, where a group per kind would cost two."""
    if options.momentum_gap is not None:
        return SeparateMomenta(parameters, lr=options.lr, momentum=options.momentum, gap=options.momentum_gap)
    if options.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=options.lr, momentum=options.momentum, nesterov=options.momentum > 0, fused=True)
    return torch.optim.AdamW(parameters, lr=options.lr, weight_decay=0.0, fused=True)


def copied(module: nn.Module) -> Weights:
    """The weights and buffers as they are now."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@torch.no_grad()
def _move(average: Weights, module: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights a little towards the new ones, further in the first steps."""
    towards = 1.0 - min(decay, (1 + step) / (10 + step))
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor, towards)
        else:
            average[name].copy_(tensor)
