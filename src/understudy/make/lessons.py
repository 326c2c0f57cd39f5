"""What a student learns from: the objective, and the training rows with the teacher's answers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from understudy.data import views
from understudy.data.rows import Rows
from understudy.ensembles import Ensemble
from understudy.errors import RecipeError
from understudy.features import asked_layers
from understudy.make.rows import Loaded, encode
from understudy.measuring._transcripts import transcripts, word_errors
from understudy.objectives import Objective
from understudy.recipe import Recipe
from understudy.sections import OptimizerSection
from understudy.signals import CERTAIN, LOGITS, Signals, is_answered
from understudy.store.encodings import Dense, Encoding, Sampled, TopK
from understudy.store.transfer_set import TransferSet
from understudy.tasks import Task
from understudy.teachers import Teacher, take
from understudy.training.gradient import Ask, Mixture, TrainingSet


def weighed_answers(ask: Ask, ensemble: Ensemble, labels: torch.Tensor, temperature: float) -> Ask:
    """Answers of an ensemble that is weighed by the labels of its rows, from what each member says of them."""
    signal = ensemble.task.signal

    def weighed(rows: torch.Tensor, view: torch.Tensor | None, inputs: torch.Tensor) -> Signals:
        said = ask(rows, view, inputs)
        own = torch.stack([said[f"teachers/{name}/{signal}"] for name in ensemble.names])
        return {**said, signal: ensemble.together(own, labels[rows], temperature=temperature)}

    return weighed


def trusted_answers(ask: Ask, labels: torch.Tensor | None, most: float) -> Ask:
    """A recogniser's answers without those that differ from a row's label in more than this share of its words.

    Such a row has ended from its first frame, so that nothing is learned from the teacher there (the filter of Distil-Whisper: Gandhi,
    von Platen & Rush 2023, arXiv:2311.00430). Rows without a label keep what the teacher says.
    """

    def trusted(rows: torch.Tensor, view: torch.Tensor | None, inputs: torch.Tensor) -> Signals:
        said = ask(rows, view, inputs)
        if labels is None or LOGITS not in said:
            return said
        answers = said[LOGITS]
        wrong = torch.from_numpy(distrusted(answers.numpy(), labels[rows].numpy(), most))
        ended = torch.zeros(answers.shape[-1])
        ended[-1] = CERTAIN
        return {**said, LOGITS: torch.where(wrong[:, None, None], ended, answers)}

    return trusted


def distrusted(answers: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], most: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows have a label that the transcript differs from in more than this share of its words, bool [rows]."""
    words = (labels >= 0).sum(axis=1)
    return np.asarray((words > 0) & (word_errors(transcripts(answers), labels) > most * words))


def build_encoding(recipe: Recipe, temperature: float) -> Encoding | Literal["auto"]:
    """How the teacher's answers are stored."""
    said = recipe.teaching
    if said.encoding == "auto":
        return "auto"
    if said.encoding == "dense":
        return Dense(said.dtype)
    return TopK(said.top) if said.encoding == "top-k" else Sampled(said.top, said.draws, temperature)


def temperature_of(objective: Objective) -> float:
    """The one temperature at which the terms read the teacher's answers, 1 when none has a say; RecipeError for several."""
    found = set()
    for term in objective.active:
        parameter = inspect.signature(term.loss).parameters.get("temperature")
        if any(name.endswith(LOGITS) for name in term.reads) and parameter is not None:
            if "temperature" in term.moving or term.learned is not None:
                raise RecipeError(
                    f"the temperature of {term.name!r} moves, and an encoding that stores some classes only fills the rest for one; "
                    'set teaching.encoding = "dense"',
                    code="U348",
                )
            found.add(float(term.options.get("temperature", parameter.default)))
    if len(found) > 1:
        said = " and ".join(f"{each:g}" for each in sorted(found))
        raise RecipeError(
            f"the terms read the teacher at temperatures {said}, and an encoding that stores some classes only fills the rest for one; "
            'give them one temperature, or set teaching.encoding = "dense"',
            code="U324",
        )
    return found.pop() if found else 1.0


def build_objective(recipe: Recipe, task: Task, labels: np.ndarray[Any, Any] | None) -> Objective:
    """What the student learns from."""
    said, options = recipe.objective, recipe.train
    scale = _scale(task, labels)
    if said.terms:
        return Objective.from_terms([(term.loss, term.weight, asked_layers(term.model_dump()) | term.options) for term in said.terms], task)
    return Objective.soft_labels(
        alpha=said.alpha,
        temperature=said.temperature,
        task=task,
        label_smoothing=options.label_smoothing,
        class_weights=_class_weights(options, task, labels),
        scale=scale,
    )


def build_label_objective(options: OptimizerSection, task: Task, labels: np.ndarray[Any, Any] | None) -> Objective:
    """The objective of the control, and of a teacher trained here: the labels alone."""
    return Objective.labels_only(
        task, label_smoothing=options.label_smoothing, class_weights=_class_weights(options, task, labels), scale=_scale(task, labels)
    )


def _scale(task: Task, labels: np.ndarray[Any, Any] | None) -> float:
    if task.kind != "regression" or labels is None:
        return 1.0
    return float(labels[task.labelled(labels)].std()) or 1.0


def _class_weights(options: OptimizerSection, task: Task, labels: np.ndarray[Any, Any] | None) -> torch.Tensor | None:
    said = options.class_weights
    if said is None or task.kind == "regression" or labels is None:
        return None
    if said == "balanced":
        if not task.single_label:
            raise RecipeError("train.class_weights = 'balanced' is for tasks with one class per row", code="U063")
        counts = np.bincount(labels[labels >= 0], minlength=task.outputs).clip(min=1)
        return torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)
    if len(said) != task.outputs:
        raise RecipeError(f"train.class_weights has {len(said)} weights for {task.outputs} classes", code="U063")
    return torch.tensor(said, dtype=torch.float32)


def stored_answers(taught: TransferSet, keys: np.ndarray[Any, Any], signals: Sequence[str], *, temperature: float | None = None) -> Ask:
    """The stored signals of a batch in its views, read from the transfer set's files as they are asked."""
    positions = taught.positions(keys)

    def ask(rows: torch.Tensor, view: torch.Tensor | None, inputs: torch.Tensor) -> Signals:
        chosen = None if view is None else view.numpy()
        return {signal: taught.gather(signal, positions[rows.numpy()], chosen, temperature=temperature) for signal in signals}

    return ask


def live_answers(teacher: Teacher, rows: Rows, made: views.AnyViews | None) -> Ask:
    """The teacher's answers to a batch in its views, asked in the loop; a table's views are made from its raw rows."""

    def ask(positions: torch.Tensor, view: torch.Tensor | None, inputs: torch.Tensor) -> Signals:
        if rows.kind not in ("table", "text", "pair"):
            return teacher.signals(inputs.numpy())
        chosen = positions.numpy()
        raw = take(rows.inputs, chosen)
        return teacher.signals(raw if view is None or made is None else made(raw, rows.keys[chosen], view.numpy()))

    return ask


def training_set(
    loaded: Loaded,
    train: Rows,
    extra: Rows | None,
    teacher: Signals,
    *,
    views: int,
    augment: Callable[..., Any] | None,
    only_labelled: bool = False,
    ask: Ask | None = None,
) -> TrainingSet:
    """Encoded rows with labels and the teacher's signals, aligned; `teacher` covers train then extra."""
    task = loaded.task
    labels = train.labels
    inputs = encode(train.inputs, train.kind, loaded.encoding)
    row_keys = train.keys
    if only_labelled:
        assert labels is not None
        chosen = np.flatnonzero(task.labelled(labels))
        inputs, labels, row_keys = inputs[torch.from_numpy(chosen)], labels[chosen], row_keys[chosen]
    elif extra is not None:
        inputs = torch.cat([inputs, encode(extra.inputs, extra.kind, loaded.encoding)])
        row_keys = np.concatenate([row_keys, extra.keys])
        if labels is not None:
            fill = -1 if task.single_label else np.nan
            labels = np.concatenate([labels, np.full((len(extra), *labels.shape[1:]), fill, dtype=labels.dtype)])
    answered: torch.Tensor | None = None
    if teacher:
        answered = torch.stack([is_answered(said) for said in teacher.values()]).all(dim=0)
        answered = None if bool(answered.all()) else answered
    if answered is not None:
        # NaN must not reach the gradient of any loss
        teacher = {name: said.nan_to_num(0.0) for name, said in teacher.items()}
    mixture = None if train.labels is None else _mixture(augment, task, train.labels)
    mask = None if labels is None else task.labelled(labels)
    whole = mask is None or bool(mask.all())
    return TrainingSet(
        inputs=inputs,
        labels=None if labels is None else torch.from_numpy(np.ascontiguousarray(labels)),
        labelled=None if whole or mask is None else torch.from_numpy(mask),
        teacher=teacher,
        keys=row_keys,
        views=views,
        augment=augment,
        ask=ask,
        answered=answered,
        mixture=mixture,
    )


def _mixture(seen: Any, task: Task, labels: np.ndarray[Any, Any]) -> Mixture | None:
    """The labels and shares of mixed rows, whose partners are the training rows and whatever was made of them.

    A row whose partner has no label keeps its own.
    """
    if not isinstance(seen, views.Views) or seen.partners is None:
        return None
    made = len(seen.partners.inputs) - len(labels)
    fill = -1 if task.single_label else np.nan
    every = np.concatenate([labels, np.full((made, *labels.shape[1:]), fill, dtype=labels.dtype)])
    known, plain = task.labelled(every), torch.from_numpy(np.where(task.labelled(every).reshape(-1, *[1] * (every.ndim - 1)), every, 0))
    plain = plain.to(torch.from_numpy(every[:0]).dtype)

    def mixture(keys: np.ndarray[Any, Any], view: np.ndarray[Any, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        found = views.mixture_of(seen, keys, view)
        assert found is not None
        partner, share = found
        return plain[torch.from_numpy(partner)], torch.from_numpy(np.where(known[partner], share, 1).astype(np.float32))

    return mixture


def with_steps_of(options: OptimizerSection, rows: int, like: int) -> OptimizerSection:
    """The control sees fewer rows when only some are labelled; give it as many steps as the student gets."""
    if rows == like or options.max_time is not None:
        return options
    per_epoch, wanted = max(1, rows // options.batch_size), max(1, like // options.batch_size) * options.epochs
    return options.model_copy(update={"epochs": math.ceil(wanted / per_epoch)})
