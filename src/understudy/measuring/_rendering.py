"""A scorecard as people read it: tables for a terminal of 100 columns, and Markdown for the model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from understudy.measuring._verdict import POINTS

MODELS = ("teacher", "control", "student", "exported")
COLOURS = {"GAIN": "bold green", "NO GAIN": "bold red", "INCONCLUSIVE": "bold yellow", "UNKNOWN": "bold yellow"}
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", lambda value: f"{value:,.0f}"),
    "bytes": ("size", lambda value: size(value)),
    "latency_p50_us": ("p50 1 row", lambda value: duration(value)),
    "latency_p95_us": ("p95 1 row", lambda value: duration(value)),
    "rows_per_second": ("rows/s", lambda value: f"{value:,.0f}"),
    "rows_per_second_all": ("rows/s all cores", lambda value: f"{value:,.0f}"),
}


def render(scorecard: Mapping[str, Any]) -> RenderableType:
    """What the terminal shows: two tables, what lost most, warnings, and the verdict in colour on the last line."""
    parts: list[RenderableType] = []
    tables = {"quality, fidelity, calibration": figures_table(scorecard), "cost on this machine, one thread": costs_table(scorecard)}
    for heading, table in tables.items():
        if len(table) > 1:
            parts.append(_rich(heading, table))
    parts += [Text(line) for line in remarks(scorecard)]
    parts += [Text.from_markup(f"[yellow]warning[/] {escape(warning)}") for warning in scorecard["warnings"]]
    parts += [Text.from_markup(f"[yellow]override[/] {escape(override)}") for override in scorecard["overrides"]]
    verdict = scorecard["verdict"]
    parts.append(Text(verdict["text"], style=COLOURS[verdict["word"]]))
    return Group(*parts)


def to_markdown(scorecard: Mapping[str, Any]) -> str:
    """The same as Markdown, the verdict first."""
    lines = [f"**{scorecard['verdict']['text']}**", ""]
    for table in (figures_table(scorecard), costs_table(scorecard)):
        if len(table) > 1:
            head, *body = [[cell.replace("|", "\\|") for cell in row] for row in table]
            lines += ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
            lines += ["| " + " | ".join(row) + " |" for row in body] + [""]
    lines += [f"- {line}" for line in remarks(scorecard)]
    lines += [f"- warning: {warning}" for warning in scorecard["warnings"]]
    lines += [f"- override: {override}" for override in scorecard["overrides"]]
    return "\n".join(lines).rstrip() + "\n"


def compare(scorecards: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Several runs side by side, a line for each: headline metric of every model, agreement, size and verdict."""
    rows = [["run", "rows", "metric", *MODELS, "agreement", "size", "verdict"]]
    for name, card in scorecards.items():
        metric, models = card["metric"], card["models"]
        chosen = models.get("exported") or models.get("student") or {}
        bytes_ = chosen.get("cost", {}).get("bytes")
        rows.append(
            [
                name,
                f"{card['rows']:,}",
                metric,
                *(_figure(models.get(model, {}).get("quality", {}).get(metric), metric) for model in MODELS),
                _figure(chosen.get("fidelity", {}).get("agreement"), "agreement"),
                "" if bytes_ is None else size(bytes_),
                card["verdict"]["word"],
            ]
        )
    return _rich("runs", rows)


def figures_table(scorecard: Mapping[str, Any]) -> list[list[str]]:
    """Header and a row per figure: mean over seeds, +- its standard deviation where there are several."""
    models = [model for model in MODELS if model in scorecard["models"]]
    names = [
        (group, figure)
        for group in ("quality", "fidelity", "calibration")
        for figure in dict.fromkeys(name for model in models for name in scorecard["models"][model][group])
    ]
    rows = []
    for group, figure in names:
        found = [scorecard["models"][model][group].get(figure) for model in models]
        if figure != "nll" and any(one is not None for one in found):  # the same number as log_loss
            rows.append([figure, *(_figure(one, figure) for one in found)])
    chosen = next((model for model in ("exported", "student") if model in models), None)
    head = ["", *models]
    if chosen and rows:
        head.append(f"95 % {chosen}")
        for row in rows:
            group = next(group for group, figure in names if figure == row[0])
            row.append(_interval(scorecard["models"][chosen][group].get(row[0]), row[0]))
    return [head, *rows]


def costs_table(scorecard: Mapping[str, Any]) -> list[list[str]]:
    """Header and a row per cost that was measured."""
    models = [model for model in MODELS if scorecard["models"].get(model, {}).get("cost")]
    rows = []
    for figure, (title, told) in COSTS.items():
        found = [scorecard["models"][model]["cost"].get(figure) for model in models]
        if any(one is not None for one in found):
            rows.append([title, *("-" if one is None else told(one) for one in found)])
    return [["", *models], *rows]


def remarks(scorecard: Mapping[str, Any]) -> list[str]:
    """Sentences on what a mean hides."""
    lines = []
    if scorecard["gap_closed"] is not None:
        closed = scorecard["gap_closed"]
        said = f"{closed:.0%} of the gap between control and teacher is closed"
        lines.append(said if closed >= 0 else f"the student is further from the teacher than the control is, by {-closed:.0%} of their gap")
    worst = scorecard["worst_class_drop"]
    if worst and worst["drop"] > 0:
        lost = f"{100 * worst['drop']:.1f} points ({worst['rows']:,} rows)"
        lines.append(f"largest loss of recall against the teacher: class {worst['class']}, {lost}")
    # what took no second is not worth a plan
    plan = {name: each for name, each in scorecard.get("plan", {}).items() if max(each["came"], each["planned"]) >= 1}
    if plan:
        lines.append("plan: " + ", ".join(f"{name} {_beside(name, each)}" for name, each in plan.items()))
    return lines + list(scorecard["notes"])


def _beside(name: str, each: Mapping[str, float]) -> str:
    """What came, and how far that is from what was planned."""
    told = size(each["came"]) if name in ("bytes", "memory") else duration(1e6 * each["came"])
    return f"{told} ({100 * each['off']:+.0f} %)"


def size(count: float) -> str:
    """Bytes for people.

    >>> size(512), size(98_765), size(3_200_000)
    ('512 B', '98.8 kB', '3.2 MB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def duration(microseconds: float) -> str:
    """Time for people.

    >>> duration(8.21), duration(12_345.6)
    ('8.2 us', '12.3 ms')
    """
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:.1f} s"
    return f"{microseconds:.1f} us" if microseconds < 1000 else f"{microseconds / 1e3:.1f} ms"


def _figure(found: Mapping[str, Any] | None, name: str) -> str:
    if found is None or found["mean"] is None:
        return "-"
    spread = f" ± {_spread(found['std'], name)}" if len(found["seeds"]) > 1 else ""
    return _number(found["mean"], name) + spread


def _interval(found: Mapping[str, Any] | None, name: str) -> str:
    if found is None or found["low"] is None:
        return "-"
    return f"{_number(found['low'], name)} to {_number(found['high'], name)}"


def _number(value: float, name: str) -> str:
    return f"{100 * value:.1f}" if name in POINTS or name == "agreement" else f"{value:.4g}"


def _spread(value: float, name: str) -> str:
    return f"{100 * value:.1f}" if name in POINTS or name == "agreement" else f"{value:.2g}"


def _rich(title: str, rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, head in enumerate(rows[0]):
        table.add_column(head, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    return table
