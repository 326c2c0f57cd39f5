"""The last stages: the student exported, the test rows opened, the scorecard and the lock written."""

from __future__ import annotations

import hashlib
import json
import platform
from typing import Any

import numpy as np
from rich.markup import escape

from understudy.data.pairs import PairEncoding
from understudy.data.rows import Paired, Rows
from understudy.ensembles import Ensemble
from understudy.exporting import artifact
from understudy.make.teachers import stored_sets
from understudy.measuring import scorecard as cards
from understudy.stages._fitting import parameters_of, validation_of
from understudy.stages._foresight import looked_back
from understudy.stages._run import Run, answered_rows, answers_of, label_digest, size_of, version_of, write_json
from understudy.students.student import Student
from understudy.teachers import remotes


def export_best(run: Run, students: dict[int, dict[str, Student]]) -> dict[str, Any]:
    """Export the seed that validation likes best, and have a fresh process answer the test rows from the file."""
    validate = validation_of(run)
    scores = {seed: next(iter(validate(pair["student"]).values())) for seed, pair in students.items()}
    seed = max(scores, key=lambda s: scores[s])
    made = artifact.export(
        students[seed]["student"],
        run.folder / "artifact",
        sample_rows=run.lesson.rows.part("train").take(slice(0, 8)),
        test_rows=run.lesson.rows.part("test"),
        teacher={"name": run.teacher.name, "fingerprint": run.teacher.fingerprint()} if run.teacher is not None else None,
        data=_data(run),
        tolerance=run.recipe.export.tolerance,
        overwrite=True,
    )
    figures = made.parity
    assert figures is not None
    if (run.folder / "scorecard.json").exists():
        artifact.add_scorecard(made.folder, json.loads((run.folder / "scorecard.json").read_text(encoding="utf-8")))
    run.say("exported", f"{made.folder} · {size_of(made.folder)} · {figures['sentence']}")
    return {"seed": seed, "answers": made.answers, "parity": {k: v for k, v in figures.items() if k != "answers"}, "folder": made.folder}


def _data(run: Run) -> dict[str, Any]:
    """How raw rows were read; of several inputs, the column of the text that the student reads."""
    said = run.recipe.data.model_dump(mode="json")
    columns = {name: each.column or name for name, each in run.recipe.data.inputs.items() if name in run.lesson.reads}
    return said | ({"text": columns[run.lesson.reads[0]]} if len(columns) == 1 else {"columns": columns})


def measure_all(run: Run, students: dict[int, dict[str, Student]], exported: dict[str, Any]) -> dict[str, Any]:
    """Open the test rows: teacher, control, student and exported file, with intervals and the verdict."""
    task, recipe = run.task, run.recipe
    test = run.rows.part("test")
    assert run.held_out is not None and run.teacher is not None
    teacher_answers = run.held_out.gather(task.signal, run.held_out.positions(test.keys)).float().numpy()
    # all models are measured on the same rows: those that the teacher has an answer to
    there = answered_rows(teacher_answers)
    test, teacher_answers = test.take(there), teacher_answers[there]
    models: dict[str, list[np.ndarray[Any, Any]]] = {"teacher": [teacher_answers]}
    for name in ("control", "student"):
        answers = [answers_of(pair[name], test.inputs, task) for pair in students.values() if name in pair]
        if answers:
            models[name] = answers
    models["exported"] = [exported["answers"][there]]
    best = students[exported["seed"]]
    costs = _costs(run, best, exported, test)
    card = cards.measure(
        models,
        test.labels,
        task,
        teacher_answers=teacher_answers,
        costs=costs,
        names=[test.name(i) for i in range(len(test))],
        resamples=recipe.measure.resamples,
        margin=recipe.measure.margin,
        notes=[*_middle(run, students, test), *_alone(run, students, test)],
        warnings=run.warnings,
        overrides=run.overrides,
        about={
            "seeds": recipe.seeds,
            "exported_seed": exported["seed"],
            "parity": exported["parity"],
            "teacher": run.teacher_line,
            "student": {"model": recipe.student.model, **recipe.student.options},
            "train_rows": int(np.count_nonzero(run.rows.split == "train")),
        },
    )
    planned = looked_back(run)
    if planned is not None:
        card["plan"] = planned
    write_json(run.folder / "scorecard.json", card)
    artifact.add_scorecard(exported["folder"], card)
    return card


def _middle(run: Run, students: dict[int, dict[str, Student]], test: Rows) -> list[str]:
    """A line for each model between teacher and student, or beside the student: its size, and its score on the test rows."""
    said, task, models = run.recipe.generations, run.task, dict(run.middle)
    if said is not None and said.together and models:
        before = [each for all_ in run.middle.values() for each in all_]
        models["all generations together"] = [Ensemble([*before, pair["student"]], task=task) for pair in students.values()]
    lines = []
    for title, all_ in models.items():
        size = f"{parameters_of(all_[0]):,} parameters"
        if test.labels is None or not task.labelled(test.labels).any():
            lines.append(f"{title}: {size}, no test row has a label")
            continue
        scores = np.array([cards.quality(answers_of(each, test.inputs, task), test.labels, task)[task.metric] for each in all_])
        spread = f" ± {scores.std(ddof=1):.4f} over {len(scores)} seeds" if len(scores) > 1 else ""
        lines.append(f"{title}: {size}, test {task.metric} {scores.mean():.4f}{spread}")
    return lines


def _alone(run: Run, students: dict[int, dict[str, Student]], test: Rows) -> list[str]:
    """What a student of several inputs scores on test rows that have one of them only, beside its control."""
    layout, inputs, task = run.lesson.encoding, run.lesson.rows.only(run.lesson.reads).inputs, run.task
    if task.kind == "matching" or not isinstance(layout, PairEncoding) or test.labels is None or not isinstance(inputs, Paired):
        return []
    lines = []
    for name in layout.names:
        some = test.inputs.only(layout.names).alone(name)
        if any(layout.blank(other) is None for other in layout.names if other != name):
            continue
        told = []
        for who in ("student", "control"):
            models = [pair[who] for pair in students.values() if who in pair]
            scores = np.array([cards.quality(answers_of(each, some, task), test.labels, task)[task.metric] for each in models])
            spread = f" ± {scores.std(ddof=1):.4f}" if len(scores) > 1 else ""
            told += [f"{who} {scores.mean():.4f}{spread}"] * bool(models)
        lines.append(f"given {name} alone: test {task.metric} of the {', of the '.join(told)}")
    return lines


def _costs(run: Run, best: dict[str, Student], exported: dict[str, Any], test: Rows) -> dict[str, Any]:
    assert run.teacher is not None
    one, many = test.take(slice(0, 1)).inputs, test.take(np.arange(256) % len(test)).inputs
    seconds = 0.4 if run.recipe.measure.latency else 0.0
    costs: dict[str, Any] = {}
    teacher = None if stored_sets(run.teacher) is not None else run.teacher
    for name, model in {"teacher": teacher, "control": best.get("control"), "student": best["student"]}.items():
        if model is not None:
            # a remote teacher's answers come from its cache now, which says nothing of its speed
            timed = 0.0 if remotes(model) else seconds
            costs[name] = cards.cost(model.signals, one, many, seconds=timed, parameters=parameters_of(model))
    session = artifact.open_session(exported["folder"])
    student = best["student"]
    raw = run.lesson.rows.kind in ("text", "pair")
    given = many if raw else student.encode(many).numpy()
    costs["exported"] = cards.cost(
        # a text is no answer's work away from its file: tokens are counted in
        (lambda texts: session(_encoded(student, texts))) if raw else session,
        given[:1],
        given,
        seconds=seconds,
        parameters=parameters_of(best["student"]),
        size=artifact.model_bytes(exported["folder"]),
    )
    return costs


def _encoded(student: Student, inputs: Any) -> Any:
    """Raw inputs as the exported graph is given them: an array, or one for each of several inputs."""
    encoded = student.encode(inputs)
    if not isinstance(student.encoding, PairEncoding):
        return encoded.numpy()
    return {name: part.numpy() for name, part in zip(student.encoding.names, student.encoding.split(encoded), strict=True)}


def same_measure(run: Run) -> bool:
    """Whether the card that is there was made of the same seeds, with the same margin and number of resamples."""
    card = json.loads((run.folder / "scorecard.json").read_text(encoding="utf-8"))
    said = run.recipe.measure
    there = card.get("about", {}).get("seeds"), card.get("margin"), card.get("resamples")
    return there == (run.recipe.seeds, said.margin, said.resamples)


def close_run(run: Run, card: dict[str, Any]) -> dict[str, Any]:
    """Print the card, then hold the gates against it."""
    run.console.print(cards.render(card))
    gates = cards.require(card, run.recipe.measure.require)
    for gate in gates:
        there = "was not measured" if gate["value"] is None else f"is {gate['value']:.4g}"
        run.console.print(f"{'[green]met[/]' if gate['met'] else '[red]not met[/]'}  {escape(gate['gate'])} ({there})", highlight=False)
    card["requirements"] = gates
    write_json(run.folder / "scorecard.json", card)
    made = run.folder / "artifact"
    run.say("artifact", f"{made} (python predict.py there needs only {artifact.needed(made)})")
    cards.enforce(gates)
    return card


def write_lock(run: Run) -> None:
    """What it takes to do this again: hashes of data and split, seeds, versions, the teacher's fingerprint."""
    order = np.lexsort(run.rows.keys.T)
    digest = hashlib.blake2b(np.ascontiguousarray(run.rows.keys[order]).tobytes(), digest_size=16)
    split = hashlib.blake2b("".join(map(str, run.rows.split[order])).encode(), digest_size=16) if run.rows.split is not None else digest
    packages = (
        "understudy",
        "torch",
        "numpy",
        "pandas",
        "scikit-learn",
        "lightgbm",
        "onnx",
        "onnxruntime",
        "skl2onnx",
        "timm",
        "tokenizers",
        "transformers",
    )
    write_json(
        run.folder / "lock.json",
        {
            "rows": len(run.rows),
            "data": digest.hexdigest(),
            "labels": label_digest(run.rows),
            "split": split.hexdigest(),
            "seeds": run.recipe.seeds,
            "teacher": None if run.teacher is None else run.teacher.fingerprint(),
            "python": platform.python_version(),
            "versions": {name: version_of(name) for name in packages},
            "overrides": run.overrides,
        },
    )
