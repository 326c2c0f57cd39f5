"""The model card of an artifact: what the model is, how to run it, what it reads and says, how good it measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from understudy.tasks import Task

SHOWN = 40


def card(
    name: str,
    task: Task,
    signature: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
    *,
    teacher: Mapping[str, Any] | None,
    parity: Mapping[str, Any] | None,
    scorecard: Mapping[str, Any] | None,
    size: int,
    exporter: str,
) -> str:
    """The text of README.md."""
    told = "" if teacher is None else f" It learned from the teacher `{teacher.get('name', 'unnamed')}`."
    lines = [
        f"# {name}",
        "",
        f"A small model for {task.kind}, made with understudy.{told}",
        "It runs without that package: the graph holds the preprocessing, predict.py reads raw rows.",
        "",
        "## Run it",
        "",
        "```console",
        f"$ pip install {' '.join(packages(signature))}",
        f"$ python predict.py {_example(signature)} --out predictions.csv",
        "```",
        "",
        "```python",
        "from predict import predict",
        f'answers = predict(".", "{_example(signature)}")',
        f'print(answers["prediction"], answers["{signature["outputs"][0]["name"]}"])',
        "```",
        "",
        "## What it reads and says",
        "",
        *_reads(signature, preprocessing),
        *_says(task, signature),
        "",
        "## How good it is",
        "",
        *_scores(scorecard),
        *([] if parity is None else [f"- This file, in a fresh process: {parity['sentence']}."]),
        f"- Size: {size:,} bytes ({exporter}).",
        "",
        *_teacher(teacher),
        "## Limits",
        "",
        "- It answers every row, also one that resembles nothing in its training data; an unknown category counts as none of the known.",
        "- It has learned from its teacher, and so what the teacher gets wrong.",
        "- `checksums.json` holds the SHA-256 of every file here.",
        "",
    ]
    return "\n".join(lines)


def packages(signature: Mapping[str, Any]) -> list[str]:
    """What predict.py needs for raw rows of these kinds."""
    kinds = dict.fromkeys(read["kind"] for read in signature["inputs"])
    return ["numpy", "onnxruntime", *({"image": "pillow", "text": "tokenizers"}[kind] for kind in kinds if kind in ("image", "text"))]


def _example(signature: Mapping[str, Any]) -> str:
    if len(signature["inputs"]) > 1:
        return "rows.csv"
    there = {"table": "rows.csv", "array": "rows.npz", "image": "images/", "audio": "clips/", "text": "rows.csv"}
    return there[signature["inputs"][0]["kind"]]


def _reads(signature: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> list[str]:
    if len(signature["inputs"]) > 1:
        halves = [({"inputs": [read]}, preprocessing["inputs"][read["name"]]) for read in signature["inputs"]]
        blank = [f"`{name}`" for name, one in preprocessing["inputs"].items() if one["blank"] is not None]
        told = f"- {' and '.join(blank)} may be absent: an empty cell, or left out." if blank else ""
        places = {each: half["column"] for each, half in preprocessing["inputs"].items() if half["kind"] in ("image", "audio")}
        paths = [
            f"- The column `{column}` holds the path of the file of `{name}`, from the CSV's folder." for name, column in places.items()
        ]
        return [line for each in halves for line in _reads(*each)] + paths + [told] * bool(told)
    read = signature["inputs"][0]
    lines = [f"- Input `{read['name']}` of the graph: {read['dtype']} {read['shape']}, kind {read['kind']}."]
    if read["kind"] == "table":
        names = [f"`{column['name']}` ({column['type']})" for column in preprocessing["columns"]]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lines.append(f"- Columns: {', '.join(names[:SHOWN])}{more}.")
    if read["kind"] == "text":
        joined = " (joined)" if preprocessing["join"] is not None else " (a pair)" if preprocessing["pairs"] else ""
        columns = ", ".join(f"`{name}`" for name in preprocessing["columns"])
        lines.append(f"- Texts in the column {columns}{joined}; the first {preprocessing['length']} tokens of each are read.")
    if read["kind"] == "image":
        colour = "grey" if preprocessing["grey"] else "RGB"
        lines.append(f"- Images become {colour}, {preprocessing['size'][0]} x {preprocessing['size'][1]} (height x width).")
    if read["kind"] == "audio":
        seconds = preprocessing["samples"] / preprocessing["rate"]
        lines.append(f"- Sound: samples of 16 bits, {preprocessing['rate']:,} a second, one channel, {seconds:g} s, zeros after the end.")
        lines.append("- predict.py reads .wav files of any rate and length; what is longer loses its end.")
    return lines


def _says(task: Task, signature: Mapping[str, Any]) -> list[str]:
    outputs = ", ".join(f"`{output['name']}` {output['shape']}" for output in signature["outputs"])
    lines = [f"- Outputs: {outputs}."]
    if task.kind == "matching":
        return [
            *lines,
            f"- A row's vector of `{task.classes[0]}`, then that of `{task.classes[1]}`; their cosine says how well they match.",
        ]
    if task.classes:
        more = f" and {len(task.classes) - SHOWN} more" if len(task.classes) > SHOWN else ""
        lines.append(f"- Classes in order: {', '.join(f'`{name}`' for name in task.classes[:SHOWN])}{more}.")
    return lines


def _scores(scorecard: Mapping[str, Any] | None) -> list[str]:
    """A table of the models' figures (means over seeds) on the test rows, and the verdict."""
    models = {} if scorecard is None else scorecard["models"]
    groups = [{**said["quality"], **said["fidelity"]} for said in models.values()]
    columns = list(dict.fromkeys(figure for figures in groups for figure in figures))
    if scorecard is None or not columns:
        return ["- Not measured yet."]
    lines = [f"| {scorecard['rows']:,} test rows | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name, figures in zip(models, groups, strict=True):
        cells = [f"{figures[column]['mean']:.4f}" if column in figures else "" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", f"- {scorecard['verdict']['text']}"]


def _teacher(teacher: Mapping[str, Any] | None) -> list[str]:
    if teacher is None:
        return []
    prints = [f"- {name}: `{value}`" for name, value in dict(teacher.get("fingerprint") or {}).items()]
    return ["## Teacher", "", f"- Name: {teacher.get('name', 'unnamed')}", *prints, ""]
