"""What a teacher's stored answers look like: how sure they are, which classes they confuse, and a few rows to read."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from understudy.measuring._answers import decisions
from understudy.store.transfer_set import TransferSet

_CHUNK = 8192


def describe(taught: TransferSet, *, rows: int = 10, pairs: int = 10, seed: int = 0) -> dict[str, Any]:
    """Entropy in nats, the pairs of classes that share the most mass, and random rows with their largest soft labels.

    All rows are read, in their plain view. The mass of a pair is the sum, over rows whose two largest classes they are, of
    the probability of the second. A regression has its values' mean and deviation instead, a matching its recall and the hardest rows.
    """
    task = taught.task
    chosen = np.sort(np.random.default_rng(seed).choice(len(taught), size=min(rows, len(taught)), replace=False))
    found: dict[str, Any] = {"rows": len(taught), "views": taught.views, "teacher": taught.teacher, "signals": sorted(taught.signals)}
    parts = [_plain(taught, np.arange(start, min(start + _CHUNK, len(taught)))) for start in range(0, len(taught), _CHUNK)]
    shown = _plain(taught, chosen)
    if task.kind == "recognition":
        said = decisions(shown, task)
        blank = np.concatenate([part.argmax(axis=-1) == task.outputs - 1 for part in parts])
        words = [" ".join(task.classes[code] for code in row if code >= 0) for row in said]
        found |= {"mean": float(blank.mean()), "deviation": float(blank.std())}
        return found | {"shown": [{"position": int(at), "soft labels": {text: 1.0}} for at, text in zip(chosen, words, strict=True)]}
    if task.kind == "matching":
        return found | _partners(np.concatenate(parts), rows, seed)
    if task.kind == "regression":
        values = np.concatenate(parts)
        found |= {"mean": float(values.mean()), "deviation": float(values.std())}
        return found | {"shown": [{"position": int(at), "value": float(value[0])} for at, value in zip(chosen, shown, strict=True)]}
    summed = [_summary(part, softmax=task.single_label) for part in parts]
    entropy = np.concatenate([one["entropy"] for one in summed])
    quantiles = np.quantile(entropy, [0.05, 0.5, 0.95])
    found["entropy"] = dict(zip(("5 %", "median", "95 %", "mean"), [*map(float, quantiles), float(entropy.mean())], strict=True))
    found["entropy"]["most"] = float(np.log(task.outputs)) if task.single_label else float(task.outputs * np.log(2))
    if task.single_label:
        found["pairs"] = _pairs(
            np.concatenate([one["pair"] for one in summed]), np.concatenate([one["mass"] for one in summed]), taught, pairs
        )
    chances = _chances(shown, softmax=task.single_label)
    order = np.argsort(-chances, axis=1)[:, :3]
    said = _summary(shown, softmax=task.single_label)["entropy"]
    found["shown"] = [
        {
            "position": int(at),
            "entropy": float(each),
            "soft labels": {task.classes[column]: float(chances[row, column]) for column in order[row]},
        }
        for row, (at, each) in enumerate(zip(chosen, said, strict=True))
    ]
    return found


def show(found: dict[str, Any], console: Console, names: dict[int, str] | None = None) -> None:
    """Print what `describe` found; `names` says where the shown rows came from."""
    views = f" x {found['views']} views" if found["views"] > 1 else ""
    console.print(f"{found['rows']:,} rows{views} answered by {escape(found['teacher'])}: {', '.join(found['signals'])}", highlight=False)
    if "recall_at_1" in found:
        told = f"recall at 1: {found['recall_at_1']:.4f} among {found['compared']:,} rows; the hardest of them (cosine of the own partner, "
        console.print(f"{told}and which partner lies nearest instead)", highlight=False)
    elif "entropy" not in found:
        console.print(f"values {found['mean']:.4g} ± {found['deviation']:.4g}", highlight=False)
    else:
        said = " · ".join(f"{name} {found['entropy'][name]:.3f}" for name in ("mean", "5 %", "median", "95 %"))
        console.print(f"entropy {said} nats, of at most {found['entropy']['most']:.3f}", highlight=False)
    table = Table("row", "entropy", "says", box=None, pad_edge=False)
    for row in found["shown"]:
        soft = "  ".join(f"{name} {chance:.3f}" for name, chance in row.get("soft labels", {"": row.get("value", 0.0)}).items())
        name = (names or {}).get(row["position"], f"#{row['position']}")
        if "nearest" in row:
            soft = f"{soft.strip()}; {row['other']:.3f} for the partner of row #{row['nearest']}"
        table.add_row(escape(name), f"{row['entropy']:.3f}" if "entropy" in row else "", escape(soft))
    console.print(table)
    if found.get("pairs"):
        table = Table("most confused", "rows", "mass", box=None, pad_edge=False)
        for pair in found["pairs"]:
            table.add_row(escape(" / ".join(pair["classes"])), f"{pair['rows']:,}", f"{pair['mass']:.2f}")
        console.print(table)


_COMPARED = 2000
"""Rows of a matching that are compared with each other, drawn by seed where there are more."""


def _partners(vectors: np.ndarray[Any, Any], rows: int, seed: int) -> dict[str, Any]:
    """Recall from the first input to the second, and the rows whose partner is farthest behind the nearest other one."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:_COMPARED])
    first, second = np.split(vectors[chosen], 2, axis=1)
    first, second = (half / np.linalg.norm(half, axis=1, keepdims=True).clip(min=1e-12) for half in (first, second))
    near = first @ second.T
    own = near.diagonal().copy()
    np.fill_diagonal(near, -np.inf)
    nearest = near.argmax(axis=1)
    other = near.max(axis=1)
    shown = [
        {"position": int(chosen[at]), "value": float(own[at]), "nearest": int(chosen[nearest[at]]), "other": float(other[at])}
        for at in np.argsort(own - other, kind="stable")[:rows]
    ]
    return {"recall_at_1": float((own >= other).mean()), "compared": len(chosen), "shown": shown}


def _plain(taught: TransferSet, positions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(taught.gather(taught.task.signal, positions, np.zeros(len(positions), dtype=np.int64)).double().numpy())


def _chances(logits: np.ndarray[Any, Any], *, softmax: bool) -> np.ndarray[Any, Any]:
    if not softmax:
        return np.asarray(0.5 * (1 + np.tanh(logits / 2)))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _summary(logits: np.ndarray[Any, Any], *, softmax: bool) -> dict[str, np.ndarray[Any, Any]]:
    chances = _chances(logits, softmax=softmax)
    entropy = -(chances * np.log(chances.clip(min=1e-300))).sum(axis=1)
    if not softmax:
        entropy -= ((1 - chances) * np.log((1 - chances).clip(min=1e-300))).sum(axis=1)
        return {"entropy": entropy}
    pair = np.argpartition(-chances, 1, axis=1)[:, :2]
    return {"entropy": entropy, "pair": np.sort(pair, axis=1), "mass": np.take_along_axis(chances, pair, axis=1).min(axis=1)}


def _pairs(pair: np.ndarray[Any, Any], mass: np.ndarray[Any, Any], taught: TransferSet, most: int) -> list[dict[str, Any]]:
    known, which, counts = np.unique(pair, axis=0, return_inverse=True, return_counts=True)
    total = np.bincount(which.reshape(-1), weights=mass)
    order = np.argsort(-total, kind="stable")[:most]
    classes = taught.task.classes
    return [{"classes": [classes[c] for c in known[at]], "rows": int(counts[at]), "mass": float(total[at])} for at in order]
