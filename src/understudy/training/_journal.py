"""What a training says while it runs: metrics.jsonl, TensorBoard where it is installed, a progress bar on a terminal."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, final

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from understudy.errors import TrainingError

WEAK, PATIENCE = 0.001, 50
"""A term with a smaller share of the gradient than WEAK for PATIENCE steps is warned of."""


@final
class Journal:
    """Collects losses without waiting for the device, and writes them when asked.

    `weak` is, per term, the step since which its share of the gradient is too small, -1 once that was said.
    """

    def __init__(self, folder: Path | None, name: str, *, bar: bool) -> None:
        self.file = None if folder is None else folder / "metrics.jsonl"
        self.name = name
        self.window: list[tuple[int, Tensor, dict[str, Tensor]]] = []
        self.weak: dict[str, int] = {}
        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, transient=True) if bar and sys.stderr.isatty() else None
        self.line = self.bar.add_task(name, said="") if self.bar else None
        self.board: Any = None

    def open(self, step: int, steps: int) -> None:
        """Start after this step: whatever an interrupted run wrote beyond it is forgotten."""
        if self.file is not None:
            lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True) if step and self.file.exists() else []
            whole = [line for line in lines if line.endswith("\n")]
            self.file.write_text("".join(line for line in whole if json.loads(line)["step"] <= step), encoding="utf-8")
            if importlib.util.find_spec("tensorboard"):
                # TensorBoard's own switch: write the files without TensorFlow, which takes seconds to load and talks
                sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(self.file.parent / "tensorboard"), purge_step=step + 1 if step else None)
        if self.bar is not None and self.line is not None:
            self.bar.update(self.line, total=steps, completed=step)
            self.bar.start()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        if self.board is not None:
            self.board.close()

    def note(self, step: int, total: Tensor, terms: dict[str, Tensor]) -> None:
        """Remember one loss, still on its device."""
        self.window.append((step, total.detach(), terms))

    def write(self, said: dict[str, Any], *, shares: dict[str, float] | None = None, lr: float) -> float | None:
        """One line with the mean losses since the last; TrainingError U074 if one of them is not finite."""
        if not self.window:
            return None
        names = list(self.window[0][2])
        scalars = torch.stack([value.float() for _, total, terms in self.window for value in (total, *terms.values())])
        table = scalars.reshape(len(self.window), 1 + len(names)).tolist()
        for (step, _, _), row in zip(self.window, table, strict=True):
            if not all(map(math.isfinite, row)):
                bad = [f"the term {name!r} is {value:g}" for name, value in zip(names, row[1:], strict=True) if not math.isfinite(value)]
                raise TrainingError(
                    f"{self.name}: the loss is {row[0]:g} in epoch {said['epoch']}, step {step}: {'; '.join(bad) or 'the sum overflows'}. "
                    f"Lower train.lr (now {lr:g}), set train.clip = 1.0, or look for extreme values in the inputs or the teacher's logits",
                    code="U074",
                )
        means = [sum(column) / len(table) for column in zip(*table, strict=True)]
        line = {**said, "lr": lr, "loss": means[0], "terms": dict(zip(names, means[1:], strict=True)), "shares": shares or {}}
        self.window.clear()
        self._put(line)
        self._weak(shares or {}, said)
        return means[0]

    def score(self, said: dict[str, Any], figures: dict[str, float]) -> None:
        """One line with what validation found."""
        if figures:
            self._put({**said, "validation": figures})

    def _put(self, line: dict[str, Any]) -> None:
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self.board is not None:
            for key, value in line.items():
                for name, number in value.items() if isinstance(value, dict) else [("", value)]:
                    if key != "step" and isinstance(number, float):
                        self.board.add_scalar(f"{key}/{name}" if name else key, number, line["step"])
        if self.bar is not None and self.line is not None:
            text = f"loss {line['loss']:.4g}" if "loss" in line else " ".join(f"{k} {v:.4f}" for k, v in line.get("validation", {}).items())
            self.bar.update(self.line, completed=line["step"], said=text)

    def _weak(self, shares: dict[str, float], said: dict[str, Any]) -> None:
        for term, share in shares.items():
            since = self.weak.get(term)
            if since == -1:
                continue
            if share >= WEAK:
                self.weak.pop(term, None)
            elif since is None:
                self.weak[term] = said["step"]
            elif said["step"] - since >= PATIENCE:
                self.weak[term] = -1
                steps = said["step"] - since
                text = f"{self.name}: the term {term!r} has had less than 0.1 % of the gradient for {steps} steps; raise its weight"
                self._put({**said, "warning": text})
                self.console.print(f"warning: {text}", style="yellow", markup=False, highlight=False)
