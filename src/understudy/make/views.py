"""Views from what a recipe says of them: which inputs change, and how, for the model that reads them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from understudy.data import encoding, views
from understudy.data.pairs import PairEncoding
from understudy.data.rows import Kind, Paired, Rows
from understudy.errors import RecipeError, did_you_mean
from understudy.make.rows import Encoder, Loaded
from understudy.sections import OptimizerSection
from understudy.training.gradient import Augment

_RANGES = {
    "crop": (0.0, 1.0),
    "colour": (0.0, 1.0),
    "speed": (0.0, 0.9),
    "noise": (0.0, math.inf),
    "mixup": (0.0, math.inf),
    "gain": (0.0, 60.0),
}
AUGMENTATIONS = tuple(dict.fromkeys(itertools.chain.from_iterable(views.OPTIONS.values())))


def build_views(options: OptimizerSection, rows: Rows, fitted: Encoder, *, counted: bool = False) -> views.AnyViews | None:
    """What the views of these training rows are, None without `augment`; `counted` goes through a finite set instead of drawing."""
    said = {name: value for name, value in options.augment.items() if value}
    if not said:
        return None
    if isinstance(rows.inputs, Paired):
        return _pair_views(options, rows, counted)
    unknown = sorted(set(said) - set(AUGMENTATIONS))
    if unknown:
        raise RecipeError(f"augment: unknown option {unknown[0]!r}; {did_you_mean(unknown[0], AUGMENTATIONS)}", code="U002")
    if rows.kind == "text":
        raise RecipeError("train.augment changes images and numbers; for texts use student.options.drop_words, or more texts", code="U412")
    numbers: dict[str, Any] = {name: _number(name, said[name]) for name in _RANGES if name in said}
    partners = views.Partners.of(rows) if "mixup" in said and rows.kind != "table" else None
    columns: tuple[tuple[str, int, float], ...] = ()
    if rows.kind == "table" and "noise" in said:
        assert isinstance(fitted, encoding.TableEncoding)
        encoded = fitted.encode(rows.inputs)
        places = [(column.name, at) for at, column in enumerate(fitted.columns) if column.type == "number"]
        scales = np.nan_to_num(np.nanstd(encoded.astype(np.float64), axis=0))
        columns = tuple((name, at, float(scales[at])) for name, at in places)
    made = views.Views(rows.kind, columns=columns, partners=partners, policies=_policies(said), **_moves(said), **numbers)
    return replace(made, enumerated=True) if counted and made.finite else made


def _number(name: str, value: Any) -> float:
    """An option as the number it has to be; RecipeError U502 for anything else."""
    least, most = _RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least < value <= most:
        told = f"above {least:g}" + (f", at most {most:g}" if math.isfinite(most) else "")
        raise RecipeError(f"augment.{name} = {value!r}: it has to be a number {told}", code="U502")
    return float(value)


def _moves(said: dict[str, Any]) -> dict[str, Any]:
    """Shift and mirror image; RecipeError U502 for a shift that is no whole number or a flip that is neither true nor false."""
    shift, flip = said.get("shift", 0), said.get("flip", False)
    if isinstance(shift, bool) or not isinstance(shift, int) or shift < 0:
        raise RecipeError(f"augment.shift = {shift!r}: it has to be a whole number of pixels or samples", code="U502")
    if not isinstance(flip, bool):
        raise RecipeError(f"augment.flip = {flip!r}: it has to be true or false", code="U502")
    return {"shift": shift, "flip": flip}


def _policies(said: dict[str, Any]) -> tuple[views.Policy, ...]:
    """The views that torchvision, or a transform of the user's own, makes."""
    from understudy.adapters import torchvision_views

    made = []
    if "operations" in said and "randaugment" not in said:
        raise RecipeError("augment.operations belongs to randaugment; set augment.randaugment = 9", code="U002")
    if "randaugment" in said:
        made.append(torchvision_views.randaugment(said["randaugment"], said.get("operations", 2)))
    if "transform" in said:
        made.append(torchvision_views.own_transform(str(said["transform"])))
    return tuple(made)


def _pair_views(options: OptimizerSection, rows: Rows, counted: bool) -> views.PairedViews | None:
    """Views of the pictures, sounds and arrays among several inputs; the other inputs of a row stay as they are."""
    assert isinstance(rows.inputs, Paired)
    made = {}
    for name, said in _by_input({name: value for name, value in options.augment.items() if value}, rows.inputs.kinds).items():
        one = build_views(options.model_copy(update={"augment": said}), rows.only([name]), None)
        assert isinstance(one, views.Views)
        made[name] = one
    if not made:
        return None
    together = views.PairedViews(made)
    if counted and together.finite:
        return views.PairedViews({name: replace(one, enumerated=True) for name, one in made.items()})
    return together


def _by_input(said: Mapping[str, Any], kinds: Mapping[str, Kind]) -> dict[str, dict[str, Any]]:
    """The options of each input that changes: a table under its name is its own, an option that stands alone is for every input left
    of the one kind that it can change; RecipeError U519 where it can change none, or several kinds, or rows of one input only.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in [name for name in said if name in kinds]:
        if kinds[name] in ("table", "text"):
            raise RecipeError(f"augment.{name}: inputs of kind {kinds[name]!r} have no views beside others; take it out", code="U519")
        if not isinstance(said[name], dict):
            raise RecipeError(f"augment.{name} is an input and takes options, such as augment.{name} = {{ noise = 0.1 }}", code="U519")
        found[name] = {option: value for option, value in said[name].items() if value}
    left = [name for name, kind in kinds.items() if name not in found and kind not in ("table", "text")]
    for option in [option for option in said if option not in kinds]:
        if option not in AUGMENTATIONS:
            near = did_you_mean(option, [*left, *AUGMENTATIONS])
            raise RecipeError(f"augment.{option}: neither an option nor an input of these rows; {near}", code="U002")
        able = [name for name in left if option in views.OPTIONS[kinds[name]]]
        if not able:
            told = f"it changes none of the inputs {', '.join(kinds)}"
            raise RecipeError(f"augment.{option}: {told}; take it out of train.augment", code="U519")
        if len({kinds[name] for name in able}) > 1:
            both = " and ".join(f"{name!r} ({kinds[name]})" for name in able)
            told = f"could change {both}; say whose it is: augment.{able[0]} = {{ {option} = ... }}"
            raise RecipeError(f"augment.{option} {told}", code="U519")
        for name in able:
            found.setdefault(name, {})[option] = said[option]
    if any(options.get("mixup") for options in found.values()):
        raise RecipeError("augment.mixup: it is for rows of one input; take it out of train.augment", code="U519")
    return {name: options for name, options in found.items() if options}


def views_seen(made: views.AnyViews | None, loaded: Loaded) -> Augment | None:
    """The same views for a model that reads some of the inputs, made from what it reads; None where none of those changes."""
    if not isinstance(made, views.PairedViews):
        return made
    if loaded.rows.kind != "pair":
        return made.of.get(loaded.reads[0])
    layout, of = loaded.encoding, made.of
    assert isinstance(layout, PairEncoding)

    def seen(rows: torch.Tensor, keys: np.ndarray[Any, Any], view: np.ndarray[Any, Any]) -> torch.Tensor:
        parts = zip(layout.names, layout.split(rows), strict=True)
        return torch.from_numpy(layout.join([(of[name](part, keys, view) if name in of else part).numpy() for name, part in parts]))

    return seen
