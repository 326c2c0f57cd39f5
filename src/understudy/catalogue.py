"""The losses by name: where one is (`family.name` or `package.module:name`), which family it is of, and what it reads."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from understudy import losses
from understudy.errors import RecipeError, did_you_mean
from understudy.losses import logits as logit_losses
from understudy.losses import topk as topk_losses
from understudy.signals import LOGITS, VALUES
from understudy.terms import LABELS, Loss

FAMILIES = {
    "layers": "layers",
    "attention_maps": "layers",
    "attentions": "layers",
    "channels": "layers",
    "dense": "answers",
    "embeddings": "embedding",
    "relations": "relations",
    "tokens": "tokens",
    "topk": "topk",
    "stored": "top",
}
"""The family of a loss in understudy.losses -> what its losses read."""

SIGNALS = {"labels": LOGITS, "logits": LOGITS, "correlations": LOGITS, "sequences": LOGITS, "regression": VALUES}
"""The family of a loss in understudy.losses -> the signal that it compares."""

CLASSES_APART = ("logits", "correlations", "tokens", "sequences", "topk", "stored")
"""Families of losses whose softmax lets classes exclude each other, but for those of one sigmoid per class."""


def _families() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(losses.__path__) if not module.name.startswith("_")]


def find_loss(place: str) -> Loss:
    """The function at a place in understudy.losses, or at an import path."""
    if ":" in place:
        return _imported(place)
    modules = {family: importlib.import_module(f"{losses.__name__}.{family}") for family in _families()}
    there: dict[str, Loss] = {f"{family}.{name}": vars(module)[name] for family, module in modules.items() for name in module.__all__}
    if place not in there:
        own = "your own is written my_package.my_module:my_loss"
        raise RecipeError(f"there is no loss {place!r} in understudy.losses ({own}); {did_you_mean(place, there)}", code="U075")
    return there[place]


def _imported(place: str) -> Loss:
    module_name, _, name = place.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RecipeError(f"the loss {place!r}: cannot import {module_name!r} ({error})", code="U075") from error
    loss = getattr(module, name, None)
    if not callable(loss):
        there = [other for other, value in vars(module).items() if callable(value)]
        raise RecipeError(f"the loss {place!r}: {module_name} has no function {name!r}; {did_you_mean(name, there)}", code="U075")
    return loss


def family_of(loss: Loss) -> str | None:
    """The module of understudy.losses that a loss is in."""
    family = str(getattr(loss, "__module__", "")).removeprefix(f"{losses.__name__}.")
    return family if family in _families() else None


def kind_of(loss: Loss) -> str | None:
    """What a loss of understudy.losses reads: by its family, and by the names of its arguments."""
    family = family_of(loss) or ""
    if loss is topk_losses.sampled_cross_entropy:
        return None  # what is stored of drawn classes is given back as logits
    if family == "dense" and "teacher" not in inspect.signature(loss).parameters:
        return LABELS
    if family in FAMILIES:
        return FAMILIES[family]
    if family == "contrastive":
        return "contrast" if "student_bank" in inspect.signature(loss).parameters else "relations"
    signal = SIGNALS.get(family)
    if signal is None or loss is logit_losses.ensemble_soft_target:
        return "teachers" if signal else None
    arguments = inspect.signature(loss).parameters
    if "lengths" in arguments and family == "sequences":
        return "frames"
    if "teacher" not in arguments:
        return LABELS
    return f"{signal}_and_labels" if LABELS in arguments else signal
