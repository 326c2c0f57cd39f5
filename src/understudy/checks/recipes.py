"""What a recipe says that cannot mean anything, and whether there is room for the run."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from understudy.errors import InputError, Problem, raise_errors
from understudy.recipe import Recipe
from understudy.sections import OptimizerSection
from understudy.store.mirror import Mirror

VIRTUAL = "labels.virtual_teacher"
"""A loss that reads labels alone and is no control: the teacher in it is made by hand."""


def check_recipe(recipe: Recipe, *, gates: Callable[[list[str]], object] | None = None, raising: bool = False) -> list[Problem]:
    """What a recipe says that cannot mean anything; `gates` parses measure.require and raises InputError."""
    problems = [*_check_training(recipe), *_check_seeds(recipe), *_check_school(recipe)]
    if recipe.cohort is None:
        problems += [*_check_objective(recipe), *_check_views(recipe), *_check_columns(recipe)]
    problems += _check_store(recipe)
    unwritable = _unwritable(Path(recipe.out))
    if unwritable:
        problems.append(Problem("U207", unwritable))
    if gates is not None:
        try:
            gates(recipe.measure.require)
        except InputError as error:
            problems.append(Problem(error.code, f"measure.require: {error.args[0]}"))
    return raise_errors(problems) if raising else problems


def check_writable(folder: Path) -> None:
    """InputError when the run's folder cannot be made or written."""
    unwritable = _unwritable(folder)
    if unwritable:
        raise InputError(unwritable, code="U207")


def check_disk(folder: Path, needed: int) -> list[Problem]:
    """Whether `needed` bytes fit where the folder is or will be; a tenth more is asked for."""
    free = shutil.disk_usage(_existing(folder)).free
    if free >= needed * 1.1:
        return []
    told = f"the transfer set needs about {needed / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB free"
    return [Problem("U208", f"{told}; free some space, choose another out, or set teaching.dtype = 'float16'")]


def _check_training(recipe: Recipe) -> Iterator[Problem]:
    sections: list[tuple[str, str, OptimizerSection]] = [("train", recipe.student.model, recipe.train)]
    for member in (recipe.teacher, *recipe.teacher.members):
        if member.train is not None:
            sections.append(("teacher.train", member.train.model, member.train))
    for place, model, said in sections:
        if model in ("tree", "boosted", "forest") or model.startswith("sklearn:"):
            continue
        if said.lr == 0:
            yield Problem("U200", f"{place}.lr is 0: the network {model!r} would keep its random weights; set {place}.lr = 1e-3")
        if said.epochs == 0 and said.max_time is None:
            yield Problem("U201", f"{place}.epochs is 0: the network {model!r} would not be trained; set {place}.epochs = 30")
        if said.batch_size == 1:
            told = "each step sees one row, so gradients are noisy and slow"
            yield Problem("U206", f"{place}.batch_size is 1: {told}; set {place}.batch_size = 128", "warning")


def _check_objective(recipe: Recipe) -> Iterator[Problem]:
    said = recipe.objective
    live = [term for term in said.terms if not isinstance(term.weight, int | float) or term.weight > 0]
    if said.terms and not live:
        yield Problem("U202", "all weights of objective.terms are 0: nothing would be learned; give one term weight = 1.0")
    elif said.terms and all(term.loss.startswith("labels.") and term.loss != VIRTUAL for term in live):
        told = "no objective term with weight reads the teacher: student and control would be the same training"
        yield Problem("U203", f"{told}; add [[objective.terms]] with loss = 'logits.soft_target'")
    elif not said.terms and said.alpha == 0:
        told = "objective.alpha is 0: the teacher is not used, student and control would be the same training"
        yield Problem("U203", f"{told}; alpha is the weight of the teacher, set objective.alpha = 0.5")
    if said.choose and (said.terms or recipe.chain or recipe.generations is not None):
        told = "objective.choose tries pairs of alpha and temperature for one student and one teacher"
        yield Problem("U376", f"{told}; take it out, or take out [[objective.terms]], [[chain]] and [generations]")
    crowd = [term.loss for term in live if term.loss.startswith(("relations.", "contrastive.", "correlations."))]
    if crowd and recipe.train.batch_size == 1:
        yield Problem("U343", f"{crowd[0]} compares the rows of a batch, and train.batch_size is 1; set train.batch_size = 64")
    if not isinstance(said.temperature, int | float):
        if recipe.student.model in ("tree", "boosted") or recipe.student.model.startswith("sklearn:"):
            told = f"objective.temperature = {said.temperature!r} moves in training, and a {recipe.student.model} is fitted in one go"
            yield Problem("U481", f"{told}; give one number")
    elif not 0.5 <= said.temperature <= 20:
        what = "nearly flat" if said.temperature > 20 else "nearly one-hot"
        told = f"objective.temperature is {said.temperature:g}: soft labels become {what}"
        yield Problem("U204", f"{told}; published values are 1 to 20, try 4.0", "warning")


def _check_views(recipe: Recipe) -> Iterator[Problem]:
    said, asked = recipe.teaching.views, recipe.train.augment.items()
    inside = itertools.chain.from_iterable(value.items() if isinstance(value, dict) else [(name, value)] for name, value in asked)
    augments = {name for name, value in inside if value}  # a table is of an input's own
    if augments and said == 1:
        told = "train.augment changes the rows in every epoch, but the teacher answers only the plain ones (teaching.views = 1)"
        yield Problem("U205", f"{told}: its answers would belong to other rows; set teaching.views = 8, or remove train.augment")
    if not augments and said not in (1, "live"):
        told = f"teaching.views is {said} without train.augment: every view is the plain image"
        yield Problem("U205", f"{told}; set train.augment = {{shift = 2, flip = true}}, or teaching.views = 1", "warning")
    endless = sorted(augments - {"shift", "flip"})
    if said == "all" and endless:
        told = f"teaching.views = 'all' counts through every view, and those of augment.{endless[0]} cannot be counted"
        yield Problem("U320", f"{told}; set teaching.views = 20, or 'live'")


def _check_columns(recipe: Recipe) -> Iterator[Problem]:
    """Terms that read the columns of a top-k store, which the recipe must make."""
    said, source = recipe.teaching, recipe.teacher.source
    places = [term.loss for term in recipe.objective.terms if term.loss.startswith(("stored.", "topk."))]
    if (
        not places or recipe.teacher.is_mirrored or (source is not None and Path(source).is_dir())
    ):  # what a folder of answers holds is seen when it is opened
        return
    if said.views == "live" or said.encoding != "top-k" or recipe.chain or recipe.generations is not None:
        told = "teaching.views = 'live'" if said.views == "live" else f"teaching.encoding = {said.encoding!r}"
        told = "[[chain]] or [generations]" if recipe.chain or recipe.generations is not None else told
        yield Problem(
            "U482",
            f"the loss {places[0]!r} reads the columns of a top-k store, and the recipe says {told}; set teaching.encoding = "
            "'top-k' and views to a number, or take 'logits.soft_target'",
        )


def _check_store(recipe: Recipe) -> Iterator[Problem]:
    """An address that nothing here can write to."""
    if recipe.teaching.store is None:
        return
    try:
        Mirror(recipe.teaching.store)
    except InputError as error:
        yield Problem(error.code, f"teaching.store: {error.args[0]}")
    if recipe.cohort is not None or recipe.teacher.is_mirrored:
        told = "nobody is asked in a cohort" if recipe.cohort is not None else "the answers of teacher.source are stored already"
        yield Problem("U476", f"teaching.store is where answers are copied to while they are taught, and {told}; leave it out")


def _check_school(recipe: Recipe) -> Iterator[Problem]:
    """Cohorts, chains and generations that cannot be."""
    said = recipe.cohort
    networks = [("chain.model", link.model) for link in recipe.chain]
    if said is not None:
        networks += [("student.model", recipe.student.model), *(("cohort.members.model", each.model) for each in said.members)]
        if said.count < 2:
            told = f"a cohort of {said.count} has nobody to learn from; give two members or more"
            yield Problem("U350", f"{told}: cohort.size = 2, or one [[cohort.members]] per network beside the student")
        if recipe.objective.terms or _objective_said(recipe):
            told = "[objective] says what is learned from a teacher, and a cohort has none"
            yield Problem("U356", f"{told}; set cohort.weight and cohort.temperature, and leave [objective] out")
        if recipe.rows.synthetic:
            yield Problem("U356", "rows.synthetic makes rows that a teacher labels, and a cohort has none; set rows.synthetic = 0")
    if recipe.generations is not None and recipe.generations.count > 1:
        networks.append(("student.model", recipe.student.model))
    for place, model in networks:
        if model in ("tree", "boosted", "forest") or model.startswith("sklearn:"):
            yield Problem(
                "U355", f"{place} = {model!r} is no network, and only networks learn in a cohort, a chain or generations; use mlp"
            )


def _objective_said(recipe: Recipe) -> bool:
    """Whether the objective differs from the one that is there when nothing is said."""
    plain = type(recipe.objective)()
    return (recipe.objective.alpha, recipe.objective.temperature) != (plain.alpha, plain.temperature)


def _check_seeds(recipe: Recipe) -> Iterator[Problem]:
    if len(set(recipe.seeds)) < len(recipe.seeds):
        told = f"seeds = {recipe.seeds} repeats a seed: the same run would count twice in the verdict"
        yield Problem("U209", f"{told}; give different ones, such as seeds = [0, 1, 2]")
    if not recipe.control:
        told = "control = false: nothing is trained without the teacher, so the verdict will be UNKNOWN"
        yield Problem("U210", f"{told}; set control = true to know the gain", "warning")


def _unwritable(folder: Path) -> str | None:
    there = _existing(folder)
    if not there.is_dir():
        return f"out = {str(folder)!r} cannot be a folder: {there} is a file; choose another out"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"out = {str(folder)!r} cannot be written: no permission in {there}; choose another out"
    return None


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
