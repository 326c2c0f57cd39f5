"""Preflight: what would make a run meaningless, found before any training and told all at once.

Pure functions that give Problems; `raise_errors` stops for the errors and hands the warnings on. A message says what is
wrong, where, why it matters and the one-line fix. Adding a check: one function, one code, one line in docs/errors.md.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from understudy import answers as teacher_answers
from understudy.data.rows import SPLITS, Rows
from understudy.errors import InputError, PreflightError, Problem
from understudy.recipe import OptimizerSection, Recipe
from understudy.students.student import Student
from understudy.tasks import Task
from understudy.teachers import evaluating

Array = np.ndarray[Any, Any]
Overlap = Literal["refuse", "drop", "allow"]
FEW_ROWS = 100
VIRTUAL = "labels.virtual_teacher"
"""A loss that reads labels alone and is no control: the teacher in it is made by hand."""
LOOKED_AT = 2000
"""Images looked at, evenly spaced, because they may be a memory map."""


def raise_errors(problems: Sequence[Problem]) -> list[Problem]:
    """The warnings; PreflightError with all errors when there is any."""
    errors = [problem for problem in problems if problem.level == "error"]
    if errors:
        raise PreflightError(errors)
    return list(problems)


# --- the recipe -----------------------------------------------------------------------------------------------------


def check_recipe(recipe: Recipe, *, gates: Callable[[list[str]], object] | None = None, raising: bool = False) -> list[Problem]:
    """What a recipe says that cannot mean anything; `gates` parses measure.require and raises InputError."""
    problems = [*_check_training(recipe), *_check_seeds(recipe), *_check_school(recipe)]
    if recipe.cohort is None:
        problems += [*_check_objective(recipe), *_check_views(recipe)]
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
    if recipe.teacher.train is not None:
        sections.append(("teacher.train", recipe.teacher.train.model, recipe.teacher.train))
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
        yield Problem("U203", f"{told}; alpha is the weight of the teacher, set objective.alpha = 0.9")
    crowd = [term.loss for term in live if term.loss.startswith(("relations.", "contrastive.", "correlations."))]
    if crowd and recipe.train.batch_size == 1:
        yield Problem("U343", f"{crowd[0]} compares the rows of a batch, and train.batch_size is 1; set train.batch_size = 64")
    if not 0.5 <= said.temperature <= 20:
        what = "nearly flat" if said.temperature > 20 else "nearly one-hot"
        told = f"objective.temperature is {said.temperature:g}: soft labels become {what}"
        yield Problem("U204", f"{told}; published values are 1 to 20, try 4.0", "warning")


def _check_views(recipe: Recipe) -> Iterator[Problem]:
    said, augments = recipe.teaching.views, {name for name, value in recipe.train.augment.items() if value}
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


# --- the rows -------------------------------------------------------------------------------------------------------


def check_rows(rows: Rows, task: Task, *, overlap: Overlap = "refuse") -> list[Problem]:
    """What the split rows cannot show: overlaps, splits that are too small, classes without rows, dead inputs."""
    if rows.split is None:
        raise InputError("rows are checked after they are split; this is a mistake in the calling program", code="U220")
    problems = [*_check_sizes(rows, task), *_check_overlap(rows, overlap), *_check_inputs(rows)]
    if rows.labels is None:
        told = "no row has a label: quality cannot be measured, only fidelity to the teacher, and there is no control"
        return [*problems, Problem("U229", f"{told}; label some validation and test rows (data.label)", "warning")]
    problems += _check_values(rows, task) if task.kind == "regression" else _check_classes(rows, task)
    return [*problems, *_check_labelled(rows, task)]


def _check_sizes(rows: Rows, task: Task) -> Iterator[Problem]:
    for part in SPLITS:
        count = int(np.count_nonzero(rows.split == part))
        if count == 0:
            yield Problem("U220", f"no row is in the {part} split; give data.{part} or a larger share in [split]")
        elif count < FEW_ROWS and part != "train":
            # the widest 95 % interval of a share, at one half
            points = "" if task.kind == "regression" else f": ±{98 / np.sqrt(count):.0f} points at 95 %"
            told = f"{part} has {count} rows{points or ': figures on so few rows are uncertain'}"
            yield Problem("U226" if part == "validation" else "U227", f"{told}; give data.{part} or a larger split.{part}", "warning")


def _check_overlap(rows: Rows, overlap: Overlap) -> Iterator[Problem]:
    assert rows.split is not None
    _, ids = np.unique(rows.keys, axis=0, return_inverse=True)
    ids = ids.ravel()
    parts = {part: np.flatnonzero(rows.split == part) for part in SPLITS}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = parts[first][np.isin(ids[parts[first]], ids[parts[second]])]
        if not len(shared):
            continue
        examples = ", ".join(rows.name(int(position)) for position in shared[:3])
        told = f"{len(shared):,} {first} rows are also {second} rows, to the byte (first: {examples})"
        if overlap == "refuse":
            why = "scores would count what was learned by heart"
            yield Problem("U225", f"{told}: {why}; set data.overlap = 'drop' to take them out of training, or 'allow'")
        else:
            yield Problem("U225", f"{told}; kept because data.overlap = {overlap!r}", "warning")


def _check_inputs(rows: Rows) -> list[Problem]:
    if len(rows) < 2:
        return []
    if rows.kind == "image":
        return list(_check_images(rows.inputs[:: max(1, len(rows) // LOOKED_AT)]))
    if rows.kind == "array":
        same = bool((rows.inputs == rows.inputs[:1]).all())
        return [Problem("U230", f"all {len(rows):,} inputs are identical: nothing can be learned from them; check data.train")] * same
    constant = [str(name) for name in rows.inputs.columns if _constant(rows.inputs[name])]
    if len(constant) == len(rows.inputs.columns):
        return [Problem("U230", f"all {len(rows):,} rows have the same inputs: nothing can be learned from them; check data.train")]
    if not constant:
        return []
    shown = ", ".join(constant[:5]) + (f" and {len(constant) - 5} more" if len(constant) > 5 else "")
    what = "column has one value only" if len(constant) == 1 else "columns have one value only"
    told = f"{len(constant)} {what} ({shown}) and cannot help"
    return [Problem("U228", f"{told}; name what should be left out in data.ignore", "warning")]


def _constant(column: Any) -> bool:
    missing = column.isna()
    if missing.any():
        return bool(missing.all())
    return bool((column == column.iloc[0]).all())


def _check_images(images: Array) -> Iterator[Problem]:
    highest = images.reshape(len(images), -1).max(axis=1)
    if not highest.any():
        yield Problem("U230", f"all {len(images):,} images looked at are black; check how they were saved")
    elif len(images) > 1 and bool((images == images[:1]).all()):
        yield Problem("U230", f"all {len(images):,} images looked at are identical; check data.train")
    elif highest.max() <= 1:
        told = "no pixel is above 1: images held as fractions were rounded to 0 and 1"
        yield Problem("U231", f"{told}; save them as 0 to 255 (uint8)")
    elif not highest.all():
        black = int((highest == 0).sum())
        yield Problem("U231", f"{black:,} of {len(images):,} images looked at are black; check how they were saved", "warning")


def _check_labelled(rows: Rows, task: Task) -> Iterator[Problem]:
    assert rows.labels is not None
    assert rows.split is not None
    there = task.labelled(rows.labels)
    counts = {part: int(np.count_nonzero(there & (rows.split == part))) for part in SPLITS}
    losses = {
        "test": "quality and gain cannot be measured, only fidelity to the teacher",
        "validation": "the teacher cannot be scored and no student chosen by quality",
        "train": "there is nothing to train a control on",
    }
    for part, why in losses.items():
        if counts[part] == 0 and np.any(rows.split == part):
            yield Problem("U229", f"no {part} row has a label: {why}; label some of them", "warning")
    if 0 < counts["train"] < len(task.classes):
        told = f"{counts['train']} training rows have a label and there are {len(task.classes)} classes"
        yield Problem("U224", f"{told}: the control cannot learn them all; label more rows", "warning")


def _check_values(rows: Rows, task: Task) -> Iterator[Problem]:
    assert rows.labels is not None
    known = rows.labels[(rows.split == "train") & task.labelled(rows.labels)]
    if len(known) > 1 and bool((known == known[0]).all()):
        told = f"all {len(known):,} training labels are {float(known[0, 0]):g}"
        yield Problem("U223", f"{told}: there is nothing to predict; check data.label")


def _check_classes(rows: Rows, task: Task) -> Iterator[Problem]:
    counts = {part: _class_counts(rows, task, part) for part in SPLITS}
    train = counts["train"]
    if task.single_label and (len(task.classes) < 2 or (train.sum() > 1 and (train > 0).sum() == 1)):
        only = task.classes[int(train.argmax())]
        yield Problem("U223", f"all labelled training rows are of one class, {only!r}: there is nothing to tell apart; check data.label")
        return
    absent = [index for index in range(len(task.classes)) if any(all_.sum() and not all_[index] for all_ in counts.values())]
    if absent:
        told = f"{len(absent)} of {len(task.classes)} classes are absent from a split, their figures are undefined there"
        yield Problem("U221", f"{told}; give more rows or another split.seed\n{_table(absent, counts, task)}", "warning")
    rarest = int(np.where(train > 0, train, train.max(initial=0) + 1).argmin())
    if task.single_label and train.any() and train.max() > 20 * train[rarest]:
        told = f"classes are severely imbalanced: {train.max():,} training rows of {task.classes[int(train.argmax())]!r}"
        fix = "look at macro_f1 beside accuracy, or set train.class_weights = 'balanced'"
        shown = [*np.argsort(train, kind="stable")[:6].tolist(), int(train.argmax())]
        told = f"{told}, {train[rarest]:,} of {task.classes[rarest]!r}"
        yield Problem("U222", f"{told}; {fix}\n{_table(list(dict.fromkeys(shown)), counts, task)}", "warning")


def _class_counts(rows: Rows, task: Task, part: str) -> Array:
    assert rows.labels is not None
    known = rows.labels[(rows.split == part) & task.labelled(rows.labels)]
    if task.single_label:
        return np.bincount(known, minlength=len(task.classes))
    return np.asarray(known.sum(axis=0), dtype=np.int64)


def _table(shown: list[int], counts: dict[str, Array], task: Task) -> str:
    lines = [f"  {'class':<24} {'train':>9} {'validation':>11} {'test':>9}"]
    for index in shown[:12]:
        train, validation, test = (int(counts[part][index]) for part in SPLITS)
        lines.append(f"  {task.classes[index][:24]:<24} {train:>9,} {validation:>11,} {test:>9,}")
    return "\n".join(lines + [f"  ... and {len(shown) - 12} more"] * (len(shown) > 12))


# --- the teacher ----------------------------------------------------------------------------------------------------


def check_answers(
    answers: Array, task: Task, rows: Rows, *, score: float | None = None, expect: float | None = None, accept_score: bool = False
) -> list[Problem]:
    """What the teacher's answers [rows, outputs] to validation rows show; `score` is the task's metric on them."""
    if answers.shape != (len(rows), task.outputs):
        told = f"the teacher answered {list(answers.shape)} for {len(rows):,} rows and {task.outputs} outputs"
        return [Problem("U246", f"{told}; check teacher.classes and the task")]
    problems = teacher_answers.check_answers(torch.from_numpy(np.ascontiguousarray(answers)), rows.name)
    if any(problem.level == "error" for problem in problems) or not len(rows):
        return problems
    level: Literal["error", "warning"] = "warning" if accept_score else "error"
    accepted = "; accepted (teacher.accept_score)" if accept_score else "; check its weights, preprocessing and class order"
    if rows.labels is not None and task.labelled(rows.labels).any():
        known = task.labelled(rows.labels)
        chance = _near_chance(answers[known].astype(np.float64), rows.labels[known], task)
        problems += [Problem("U240", f"{chance}: it has nothing to teach here{accepted}", level)] * (chance is not None)
        problems += _check_mass(answers[known].astype(np.float64), rows.labels[known], task, level, accepted)
    if expect is not None and score is not None and score < expect - 0.05:
        told = f"the teacher's validation {task.metric} is {score:.4f}, teacher.expect = {expect:g}"
        problems.append(Problem("U241", f"{told}: it is not the model it is thought to be{accepted}", level))
    return [*problems, *_check_softness(answers.astype(np.float64), task)]


def _check_mass(answers: Array, labels: Array, task: Task, level: Literal["error", "warning"], accepted: str) -> Iterator[Problem]:
    """Classes that labelled rows have and the teacher never thinks of."""
    if not task.single_label:
        return
    highest = np.exp(answers - np.logaddexp.reduce(answers, axis=1, keepdims=True)).max(axis=0)
    for index in np.flatnonzero((highest < 1e-6) & (np.bincount(labels, minlength=len(task.classes)) > 0)):
        count = int((labels == index).sum())
        told = (
            f"the teacher gives the class {task.classes[index]!r} no probability in any row, and {count:,} labelled validation rows have it"
        )
        yield Problem("U371", f"{told}: the student would unlearn it{accepted}", level)


def check_gain(teacher: float | None, control: float | None, metric: str) -> list[Problem]:
    """Whether there is anything to gain from a teacher that is worse than the student trained without it, on validation rows."""
    if teacher is None or control is None or teacher >= control:
        return []
    told = f"teacher {metric} is {teacher:.1%} on the validation rows, the control's {control:.1%}"
    return [Problem("U372", f"{told}: the teacher can only hurt {metric}; train a better teacher, or use the control", "warning")]


def check_in_sample(train: float, validation: float, metric: str) -> list[Problem]:
    """Whether the teacher knows its training rows by heart, from its metric on them and on held-out rows."""
    if train - validation <= 0.05:
        return []
    told = f"teacher {metric} is {train:.1%} on the training rows, {validation:.1%} held-out"
    why = "its answers to rows it learned by heart are little more than their labels"
    return [Problem("U245", f"{told}: {why}; use out-of-fold answers (teaching.out_of_fold = 5) or fresh rows", "warning")]


def _near_chance(answers: Array, labels: Array, task: Task) -> str | None:
    """The sentence for a teacher no better than chance, by its decisions and by its ranking; None for one that is."""
    if task.kind == "regression":
        values, true = answers.ravel(), labels.ravel().astype(np.float64)
        spread = float(((true - true.mean()) ** 2).sum())
        r2 = 1 - float(((true - values) ** 2).sum()) / spread if spread > 0 else 1.0
        return f"the teacher's R2 is {r2:.3f}, the mean of the labels scores 0" if r2 <= 0.02 else None
    positive = labels == 1 if task.kind == "multilabel" else np.eye(len(task.classes), dtype=bool)[labels]
    scores = answers if task.kind == "multilabel" else answers - np.logaddexp.reduce(answers, axis=1, keepdims=True)
    mixed = np.flatnonzero(positive.any(axis=0) & ~positive.all(axis=0))
    counts = positive.sum(axis=0)[mixed]
    # of few rows a good rank proves little: twice its standard error (Hanley & McNeil 1982), yet no more than a quarter
    error = np.sqrt((len(labels) + 1) / (12.0 * counts * (len(labels) - counts))).mean() if len(mixed) else 0.0
    ranking = float(np.mean([roc_auc_score(positive[:, index], scores[:, index]) for index in mixed])) if len(mixed) else 1.0
    if ranking >= 0.5 + min(max(0.05, 2 * float(error)), 0.25):
        return None
    if task.kind == "multilabel":
        return f"the teacher ranks rows with an area under the curve of {ranking:.3f}, chance is 0.5"
    decided = answers.argmax(axis=1)
    right = float((decided == labels).mean())
    shares = [np.bincount(column, minlength=len(task.classes)) / len(labels) for column in (decided, labels)]
    chance = float((shares[0] * shares[1]).sum())
    near = right - chance < 2 * np.sqrt(chance * (1 - chance) / len(labels)) + 1e-9
    return f"the teacher scores {100 * right:.1f} %, chance is {100 * chance:.1f} %" if near else None


def _check_softness(answers: Array, task: Task) -> Iterator[Problem]:
    """Warnings where soft labels carry little: saturated, uniform, or flat below the best class."""
    if task.kind == "regression" or len(answers) < 2:
        return
    if task.kind == "multilabel":
        saturated, surest = float((np.abs(answers) > 13).mean()), 0.0
    else:
        said = np.exp(answers - np.logaddexp.reduce(answers, axis=1, keepdims=True))
        ordered = np.sort(said, axis=1)
        saturated, surest = float((ordered[:, -1] > 1 - 2e-6).mean()), float(ordered[:, -1].mean())
    if saturated > 0.9:
        told = f"{saturated:.0%} of the teacher's scores are 0 or 1 to six digits: decisions, soft labels carry nothing more"
        fix = "give probabilities or logits, or an over-confident teacher a higher objective.temperature"
        yield Problem("U243", f"{told}; {fix}", "warning")
    elif task.single_label:
        yield from _check_runners_up(said, ordered, surest)


def _check_runners_up(said: Array, ordered: Array, surest: float) -> Iterator[Problem]:
    classes = said.shape[1]
    entropy = float(-(said * np.log(np.maximum(said, 1e-300))).sum(axis=1).mean() / np.log(classes))
    if entropy > 0.98:
        told = f"the teacher's answers are nearly uniform ({entropy:.1%} of the largest entropy): over-tempered?"
        yield Problem("U244", f"{told}; give its logits before any temperature", "warning")
        return
    rest = ordered[:, :-1] / np.maximum(ordered[:, :-1].sum(axis=1, keepdims=True), 1e-300)
    flat = float(-(rest * np.log(np.maximum(rest, 1e-300))).sum(axis=1).mean() / np.log(max(classes - 1, 2)))
    if classes > 2 and flat > 0.99:
        told = f"the teacher's runner-up probabilities are flat (label smoothing? mean confidence {surest:.1%})"
        yield Problem("U242", f"{told}: soft labels say little beyond the best class; use a teacher trained without smoothing", "warning")


# --- the student ----------------------------------------------------------------------------------------------------


def check_student(
    student: Student,
    task: Task,
    encoded: Tensor,
    *,
    batch_size: int,
    rows: int,
    teacher_parameters: int | None = None,
    student_bytes: int | None = None,
    teacher_bytes: int | None = None,
    teachers: Sequence[nn.Module] = (),
) -> list[Problem]:
    """What would keep a student from learning, on a sample of encoded rows; an estimator is only weighed."""
    problems = list(_check_size(student, teacher_parameters, student_bytes, teacher_bytes))
    module = student.module
    if module is None:
        return problems
    if not any(weight.requires_grad for weight in module.parameters()):
        what = "all parameters are frozen" if any(True for _ in module.parameters()) else "it has no parameters"
        problems.append(Problem("U252", f"student {student.name!r} cannot learn: {what}; set requires_grad on what should be trained"))
    norms = [name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if norms and (batch_size == 1 or rows == 1):
        told = f"student {student.name!r} has BatchNorm (layer {norms[0]!r}) and would see one row at a time, which has no variance"
        problems.append(Problem("U253", f"{told}; set train.batch_size = 32, or student.options.norm = 'group'"))
    ours = {weight.untyped_storage().data_ptr() for weight in module.parameters() if weight.numel()}
    theirs = [named for teacher in teachers for named in teacher.named_parameters()]
    shared = [name for name, weight in theirs if weight.untyped_storage().data_ptr() in ours]
    if shared:
        told = f"student {student.name!r} and teacher share weights ({shared[0]!r}): training would change the teacher"
        problems.append(Problem("U256", f"{told}; give the student a copy of its own"))
    return [*problems, *_check_outputs(student.name, module, task, encoded)]


def _check_size(student: Student, teacher_parameters: int | None, ours: int | None, theirs: int | None) -> Iterator[Problem]:
    parameters = student.parameters()
    fix = "choose a smaller student (student.options), or nothing is saved"
    if teacher_parameters and parameters and parameters >= teacher_parameters:
        told = f"student {student.name!r} has {parameters:,} parameters, the teacher {teacher_parameters:,}"
        yield Problem("U254", f"{told}: it is no smaller; {fix}", "warning")
    elif theirs and ours and ours >= theirs:
        told = f"student {student.name!r} ({ours / 1e6:.1f} MB) is no smaller than the teacher ({theirs / 1e6:.1f} MB)"
        yield Problem("U254", f"{told}; {fix}", "warning")


def _check_outputs(name: str, module: nn.Module, task: Task, encoded: Tensor) -> Iterator[Problem]:
    try:
        said, last = _ask(module, encoded)
    except Exception as error:  # a module of the user's own can raise anything
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
        told = f"student {name!r} fails on rows of shape {list(encoded.shape[1:])}: {why}"
        yield Problem("U374", f"{told}; its first layer must read what the preprocessing gives (see docs/students.md)")
        return
    if said.ndim != 2 or said.shape[1] != task.outputs:
        told = f"student {name!r} gives {list(said.shape)} for {len(encoded)} rows, a {task.kind} task needs"
        yield Problem("U251", f"{told} [{len(encoded)}, {task.outputs}]; set the width of its last layer to {task.outputs}")
        return
    if not bool(said.isfinite().all()):
        bad = int((~said.isfinite()).any(dim=1).sum())
        yield Problem("U255", f"student {name!r} answers NaN or infinite for {bad} of {len(said)} rows before training; scale its inputs")
        return
    if task.kind == "regression":
        return
    ends = last if last in ("Softmax", "Softmax2d", "Sigmoid") else None
    inside = len(said) > 1 and bool((said >= 0).all() and (said <= 1).all())
    probabilities = inside and (task.kind == "multilabel" or bool(((said.sum(dim=1) - 1).abs() <= 1e-3).all()))
    if ends or probabilities:
        told = f"student {name!r} ends in {ends}" if ends else f"student {name!r} gives probabilities (all in [0, 1])"
        yield Problem("U250", f"{told}; losses expect logits and would soften twice; remove the last activation")


def _ask(module: nn.Module, encoded: Tensor) -> tuple[Tensor, str]:
    """The module's answer in evaluation mode, and the kind of the last layer that ran."""
    ran = [""]
    leaves = [part for part in module.modules() if not any(True for _ in part.children())]
    hooks = [part.register_forward_hook(lambda part, *_: ran.append(type(part).__name__)) for part in leaves]
    try:
        with evaluating(module), torch.inference_mode():
            said = module(encoded.to(next((weight.device for weight in module.parameters()), encoded.device)))
    finally:
        for hook in hooks:
            hook.remove()
    skip = ("Identity", "Flatten", "Dropout")
    return said.float().cpu(), next((name for name in reversed(ran) if name not in skip), "")
