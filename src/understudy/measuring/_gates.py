"""Gates: figures that a run must reach, such as `agreement>=0.95` or `student.bytes<=1e6`.

They are parsed before training, so that a misspelt figure costs nothing, and read from the scorecard afterwards.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from understudy.errors import InputError, RequirementError, did_you_mean
from understudy.measuring import _calibration, _cost, _fidelity, _quality

MODELS = ("teacher", "control", "student", "exported")
COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
OVERALL = ("worst_class_drop", "gain", "gap_closed")
SHAPE = re.compile(r"\s*(?:(\w+)\.)?(\w+)\s*(>=|<=|>|<)\s*(\S+)\s*")


@final
@dataclass(frozen=True)
class Gate:
    """One requirement; `model` None means the exported student, or the student where nothing was exported."""

    text: str
    model: str | None
    figure: str
    comparison: str
    bound: float


def known_figures() -> list[str]:
    """Every figure that a gate may name."""
    quality = [name for metrics in _quality.METRICS.values() for name in metrics]
    fidelity = [name for metrics in _fidelity.METRICS.values() for name in metrics]
    return list(dict.fromkeys([*quality, *fidelity, *_calibration.METRICS, *_cost.FIGURES, *OVERALL]))


def parse_gates(texts: Sequence[str]) -> list[Gate]:
    """The gates these texts say; InputError lists every mistake at once."""
    gates: list[Gate] = []
    mistakes: list[str] = []
    for text in texts:
        match = SHAPE.fullmatch(text)
        bound = _number(match[4]) if match else None
        if match is None or bound is None:
            mistakes.append(f"gate {text!r}: write figure>=number, such as agreement>=0.95 (comparisons: {' '.join(COMPARISONS)})")
        elif match[2] not in known_figures():
            mistakes.append(f"gate {text!r}: unknown figure {match[2]!r}; {did_you_mean(match[2], known_figures())}")
        elif match[1] is not None and match[1] not in MODELS:
            mistakes.append(f"gate {text!r}: unknown model {match[1]!r}; {did_you_mean(match[1], MODELS)}")
        elif match[1] is not None and match[2] in OVERALL:
            mistakes.append(f"gate {text!r}: {match[2]} belongs to the run, not to one model; write {match[2]}{match[3]}{match[4]}")
        else:
            gates.append(Gate(text.strip(), match[1], match[2], match[3], bound))
    if mistakes:
        raise InputError("\n".join(mistakes), code="U270")
    return gates


def require(scorecard: dict[str, Any], gates: Sequence[str]) -> list[dict[str, Any]]:
    """Each gate with the figure found and whether it is met; a figure that was not measured is not met."""
    return [_checked(scorecard, gate) for gate in parse_gates(gates)]


def enforce(checked: Sequence[dict[str, Any]]) -> None:
    """RequirementError listing every gate that is not met, with the figure found."""
    missed = [gate for gate in checked if not gate["met"]]
    if missed:
        told = [f"{gate['gate']}: {'not measured' if gate['value'] is None else format(gate['value'], '.6g')}" for gate in missed]
        raise RequirementError(
            f"{len(missed)} of {len(checked)} requirement{'s' * (len(checked) != 1)} not met: " + "; ".join(told), code="U271"
        )


def _checked(scorecard: dict[str, Any], gate: Gate) -> dict[str, Any]:
    value = _figure(scorecard, gate)
    met = value is not None and bool(COMPARISONS[gate.comparison](value, gate.bound))
    return {"gate": gate.text, "value": value, "met": met}


def _figure(scorecard: dict[str, Any], gate: Gate) -> float | None:
    if gate.figure == "gain":
        return _float(scorecard["verdict"]["difference"])
    if gate.figure == "gap_closed":
        return _float(scorecard["gap_closed"])
    if gate.figure == "worst_class_drop":
        return _float(scorecard["worst_class_drop"]["drop"]) if scorecard["worst_class_drop"] else None
    for model in [gate.model] if gate.model else ["exported", "student"]:
        said = scorecard["models"].get(model, {})
        for group in ("quality", "fidelity", "calibration", "cost"):
            found = said.get(group, {}).get(gate.figure)
            if found is not None:
                return _float(found["mean"] if isinstance(found, dict) else found)
    return None


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
