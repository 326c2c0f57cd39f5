"""The scorecard: teacher, control, student and exported student on held-out rows, and what to conclude.

`measure` makes it (plain dictionaries, ready for JSON), `render` and `to_markdown` show it, `compare` puts several runs side
by side, `require` and `enforce` hold it to gates. The parts are in the private files of this folder, one topic each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from understudy.errors import InputError
from understudy.measuring import _bootstrap, _calibration, _cost, _fidelity, _quality
from understudy.measuring._answers import decisions, probabilities
from understudy.measuring._gates import Gate, enforce, parse_gates, require
from understudy.measuring._rendering import compare, render, to_markdown
from understudy.measuring._verdict import Verdict, judge, unknown
from understudy.tasks import Task

__all__ = ["Gate", "compare", "cost", "enforce", "fidelity", "measure", "parse_gates", "quality", "render", "require", "to_markdown"]

Array = np.ndarray[Any, Any]
MODELS = ("teacher", "control", "student", "exported")
WORST = 20
Place = tuple[str, int, str, str]
"""Model, index of its seed, group, figure."""


def quality(answers: Array, labels: Array | None, task: Task) -> dict[str, float]:
    """The task's metrics on the rows that have a label, the headline first; empty when none has."""
    if labels is None or not task.labelled(labels).any():
        return {}
    there = task.labelled(labels)
    figures = _quality.figures(answers[there], labels[there], task)
    return {name: _bootstrap.observed(figure, int(there.sum())) for name, figure in figures.items()}


def fidelity(answers: Array, teacher: Array, task: Task) -> dict[str, float]:
    """Agreement with the teacher's answers to the same rows, and the distance to them."""
    return {name: _bootstrap.observed(figure, len(answers)) for name, figure in _fidelity.figures(answers, teacher, task).items()}


def cost(
    call: Callable[[Any], Any], batch1: Any, batch256: Any, *, seconds: float = 0.5, parameters: int | None = None, size: int | None = None
) -> dict[str, float]:
    """What is known of a model's size, and its speed on this machine unless `seconds` is 0."""
    known = {name: float(value) for name, value in {"parameters": parameters, "bytes": size}.items() if value is not None}
    return {**known, **(_cost.latency(call, batch1, batch256, seconds=seconds) if seconds > 0 else {})}


def measure(
    models: Mapping[str, Sequence[Array]],
    labels: Array | None,
    task: Task,
    *,
    teacher_answers: Array | None = None,
    costs: Mapping[str, Mapping[str, float]] | None = None,
    names: Sequence[str] | None = None,
    resamples: int = 1000,
    margin: float = 0.002,
    seed: int = 0,
    notes: Sequence[str] = (),
    overrides: Sequence[str] = (),
    warnings: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The scorecard of these answers on the same rows, each model's one array per seed, in the order of the seeds.

    `models` may hold teacher, control, student and exported; fidelity is measured against `teacher_answers` (by default the
    teacher's). Rows without a label count for fidelity alone. Intervals are 95 % percentiles over resampled rows and seeds.
    """
    ordered = _checked(models, labels, teacher_answers)
    rows = len(next(iter(ordered.values()))[0])
    reference = teacher_answers if teacher_answers is not None else ordered["teacher"][0] if "teacher" in ordered else None
    there = np.zeros(rows, dtype=bool) if labels is None else task.labelled(labels)
    known = None if labels is None or not there.any() else labels[there]
    seen: dict[Place, float] = {}
    drawn: dict[Place, Array] = {}
    for figures, count in ((_on_labels(ordered, known, there, task), int(there.sum())), (_on_teacher(ordered, reference, task), rows)):
        seen.update({place: _bootstrap.observed(figure, count) for place, figure in figures.items()})
        drawn.update(_bootstrap.resample(figures, count, resamples=resamples, seed=seed))
    verdict = _verdict(ordered, seen, drawn, task, margin, int(there.sum()), seed)
    classes = [] if known is None else _per_class({name: [one[there] for one in all_] for name, all_ in ordered.items()}, known, task)
    card = {
        "task": task.to_json(),
        "metric": task.metric,
        "rows": rows,
        "labelled_rows": int(there.sum()),
        "resamples": resamples,
        "margin": margin,
        "models": {name: _model(name, len(all_), seen, drawn, dict((costs or {}).get(name, {})), seed) for name, all_ in ordered.items()},
        "verdict": verdict.to_json(),
        "gap_closed": _gap_closed(seen, ordered, task, margin),
        "per_class": classes,
        "worst_class_drop": _worst_drop(classes),
        "disagreements": [] if reference is None else _disagreements(ordered, reference, labels, there, task, names),
        "notes": list(notes),
        "overrides": list(overrides),
        "warnings": list(warnings),
        "about": dict(about or {}),
    }
    plain: dict[str, Any] = _plain(card)
    return plain


def _checked(models: Mapping[str, Sequence[Array]], labels: Array | None, teacher: Array | None) -> dict[str, list[Array]]:
    strange = [name for name in models if name not in MODELS]
    if strange or not any(len(all_) for all_ in models.values()):
        raise InputError(f"a scorecard holds {', '.join(MODELS)}; it was given {', '.join(models) or 'nothing'}", code="U272")
    ordered = {name: [np.asarray(one) for one in models[name]] for name in MODELS if len(models.get(name, ()))}
    lengths = {f"{name} {index}": len(one) for name, all_ in ordered.items() for index, one in enumerate(all_)}
    lengths.update({} if labels is None else {"labels": len(labels)})
    lengths.update({} if teacher is None else {"teacher_answers": len(teacher)})
    if len(set(lengths.values())) > 1:
        raise InputError(f"all answers must be of the same rows; there are {lengths}", code="U272")
    if not next(iter(lengths.values())):
        raise InputError("there are no test rows to measure on; give data.test or a larger split.test", code="U272")
    bad = [f"{name} {index}" for name, all_ in ordered.items() for index, one in enumerate(all_) if not np.isfinite(one).all()]
    if bad:
        raise InputError(f"answers that are NaN or infinite cannot be measured: {', '.join(bad)}", code="U272")
    return ordered


def _on_labels(models: Mapping[str, list[Array]], labels: Array | None, there: Array, task: Task) -> dict[Place, _bootstrap.Figure]:
    found: dict[Place, _bootstrap.Figure] = {}
    if labels is None:
        return found
    for name, all_ in models.items():
        for index, answers in enumerate(all_):
            for group, module in (("quality", _quality), ("calibration", _calibration)):
                figures = module.figures(answers[there], labels, task)
                found.update({(name, index, group, figure): value for figure, value in figures.items()})
    return found


def _on_teacher(models: Mapping[str, list[Array]], teacher: Array | None, task: Task) -> dict[Place, _bootstrap.Figure]:
    if teacher is None:
        return {}
    return {
        (name, index, "fidelity", figure): value
        for name, all_ in models.items()
        if name != "teacher"
        for index, answers in enumerate(all_)
        for figure, value in _fidelity.figures(answers, teacher, task).items()
    }


def _model(
    name: str, seeds: int, seen: Mapping[Place, float], drawn: Mapping[Place, Array], costs: dict[str, float], seed: int
) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for group in ("quality", "fidelity", "calibration"):
        figures = [figure for model, index, where, figure in seen if (model, index, where) == (name, 0, group)]
        said[group] = {}
        for figure in figures:
            values = np.array([seen[name, index, group, figure] for index in range(seeds)])
            resampled = np.stack([drawn[name, index, group, figure] for index in range(seeds)], axis=1)
            low, high = _bootstrap.interval(_bootstrap.pool_seeds(resampled, seed=seed))
            std = float(values.std(ddof=1)) if seeds > 1 else 0.0
            said[group][figure] = {"mean": float(values.mean()), "std": std, "low": low, "high": high, "seeds": values.tolist()}
    return {**said, "cost": costs}


def _verdict(
    models: Mapping[str, list[Array]],
    seen: Mapping[Place, float],
    drawn: Mapping[Place, Array],
    task: Task,
    margin: float,
    rows: int,
    seed: int,
) -> Verdict:
    metric = task.metric
    if "student" not in models:
        return unknown(metric, margin, "there is no student")
    if "control" not in models:
        return unknown(metric, margin, "no control was trained (control = false)")
    if not rows:
        return unknown(metric, margin, "no test row has a label, so only fidelity to the teacher is measured")
    seeds = range(min(len(models["student"]), len(models["control"])))
    pairs = [(("student", index, "quality", metric), ("control", index, "quality", metric)) for index in seeds]
    observed = np.array([seen[student] - seen[control] for student, control in pairs])
    resampled = np.stack([drawn[student] - drawn[control] for student, control in pairs], axis=1)
    return judge(observed, resampled, metric=metric, margin=margin, rows=rows, seed=seed)


def _gap_closed(seen: Mapping[Place, float], models: Mapping[str, list[Array]], task: Task, margin: float) -> float | None:
    """(student - control) / (teacher - control); None where the teacher is not clearly better than the control."""
    means = {
        name: float(np.mean([seen[name, index, "quality", task.metric] for index in range(len(all_))]))
        for name, all_ in models.items()
        if (name, 0, "quality", task.metric) in seen
    }
    if not {"teacher", "control", "student"} <= means.keys():
        return None
    gap = means["teacher"] - means["control"]
    return (means["student"] - means["control"]) / gap if gap > max(margin, 1e-9) else None


def _per_class(models: Mapping[str, list[Array]], labels: Array, task: Task) -> list[dict[str, Any]]:
    """Each class's recall under each model, mean over seeds; `change` is student - control."""
    if task.kind in ("regression", "recognition", "matching"):
        return []
    recalls = {name: np.mean([_quality.recalls(one, labels, task) for one in all_], axis=0) for name, all_ in models.items()}
    rows = _quality.class_rows(labels, task)
    found: list[dict[str, Any]] = []
    for index, name in enumerate(task.classes):
        said: dict[str, Any] = {"class": name, "rows": int(rows[index]), **{model: float(all_[index]) for model, all_ in recalls.items()}}
        if "student" in said and "control" in said:
            said["change"] = said["student"] - said["control"]
        found.append(said)
    return found


def _worst_drop(classes: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The class that loses most recall from the teacher to the exported student (or the student)."""
    model = next((name for name in ("exported", "student") if classes and name in classes[0]), None)
    there = [said for said in classes if said["rows"] and "teacher" in said]
    if model is None or not there:
        return None
    worst = max(there, key=lambda said: said["teacher"] - said[model])
    return {"class": worst["class"], "rows": worst["rows"], "drop": worst["teacher"] - worst[model]}


def _disagreements(
    models: Mapping[str, list[Array]], teacher: Array, labels: Array | None, there: Array, task: Task, names: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The rows where the exported student (or the student, mean over seeds) is farthest from the teacher."""
    chosen = next((name for name in ("exported", "student") if name in models), None)
    if chosen is None or task.kind == "matching":
        return []
    far = np.mean([_fidelity.distances(answers, teacher, task) for answers in models[chosen]], axis=0)
    worst = [int(row) for row in np.argsort(-far, kind="stable")[:WORST] if far[row] > 0]
    return [
        {
            "row": row,
            "name": f"row {row}" if names is None else str(names[row]),
            "label": _label(labels[row], task) if labels is not None and there[row] else None,
            "teacher": _answer(teacher[row : row + 1], task),
            chosen: _answer(models[chosen][0][row : row + 1], task),
            "distance": float(far[row]),
        }
        for row in worst
    ]


def _label(label: Any, task: Task) -> Any:
    if task.kind == "recognition":
        return " ".join(task.classes[int(code)] for code in label if code >= 0)
    if task.single_label:
        return task.classes[int(label)]
    return [name for name, on in zip(task.classes, label, strict=True) if on] if task.kind == "multilabel" else float(label[0])


def _answer(answers: Array, task: Task) -> Any:
    if task.kind == "regression":
        return float(answers[0, 0])
    if task.kind == "recognition":
        return _label(decisions(answers, task)[0], task)
    decided, said = decisions(answers, task)[0], probabilities(answers, task)[0]
    if task.single_label:
        return {"class": task.classes[int(decided)], "confidence": float(said[int(decided)])}
    return {name: float(p) for name, p, on in zip(task.classes, said, decided, strict=True) if on}


def _plain(said: Any) -> Any:
    """Ready for JSON, which has no NaN: None instead."""
    if isinstance(said, Mapping):
        return {str(key): _plain(value) for key, value in said.items()}
    if isinstance(said, (list, tuple)):
        return [_plain(value) for value in said]
    if isinstance(said, np.generic):
        said = said.item()
    return None if isinstance(said, float) and not math.isfinite(said) else said
