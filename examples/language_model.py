"""Language models: a causal model of characters teaches a smaller one position by position, by several divergences, and by stored top-k.

Run it as `python examples/language_model.py --text input.txt.gz`; without a text it makes one up. The teacher has read all of the
training text, its students and the control a part of it, with the same start, rows and steps. What is printed is the perplexity of a
character of the last tenth of the text, which nobody was trained on.

The answers of a model with a place for every position are [rows, time, characters], and `understudy.train` takes them as they are: the
losses of `understudy.losses.tokens` are bound by `OnTokens`, that of `topk` by `OnTopK`, which reads the columns that a top-k store keeps.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from understudy.objectives import Objective
from understudy.sections import OptimizerSection
from understudy.store.encodings import TopK
from understudy.tasks import Task
from understudy.training.gradient import TrainingSet, train


def next_token(student: Float[Tensor, "batch time vocabulary"], labels: Int[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
    """The cross-entropy with the token that comes next, its mean over a row's positions; a loss of one's own.

    >>> next_token(torch.zeros(1, 2, 2), torch.tensor([[0, 1]]))
    tensor([0.6931])
    """
    return functional.cross_entropy(student.movedim(2, 1), labels, reduction="none").mean(1)


@final
class Characters(nn.Module):
    """A causal transformer: characters [rows, time] to logits of the next one [rows, time, characters]."""

    def __init__(self, vocabulary: int, width: int, depth: int, *, time: int, heads: int = 4) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(time, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(depth)
        )
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)
        self.register_buffer("future", nn.Transformer.generate_square_subsequent_mask(time), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        time = tokens.shape[1]
        states = self.token(tokens) + self.place.weight[:time]
        for layer in self.layers:
            states = layer(states, src_mask=self.get_buffer("future")[:time, :time], is_causal=True)
        logits: Tensor = self.head(self.last(states))
        return logits


@final
@dataclass(frozen=True)
class Text:
    """Windows of a text: what is read, what comes next, and the characters that there are."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    task: Task


def made_up(count: int = 60_000, seed: int = 0) -> str:
    """A text of simple sentences, for those who have none at hand."""
    rng = np.random.default_rng(seed)
    who = ["the old teacher", "a small student", "the quiet reader", "an understudy", "my neighbour"]
    does = ["learns", "repeats", "forgets", "explains", "writes down"]
    what = ["the long speech", "every line of the play", "a short answer", "the second act", "nothing at all"]
    how = ["", " in the evening", " before the others come", " without a mistake"]
    text = ""
    while len(text) < count:
        text += f"{rng.choice(who)} {rng.choice(does)} {rng.choice(what)}{rng.choice(how)}. "
    return text


def read(file: Path) -> str:
    """A text file, perhaps a gzip."""
    data = file.read_bytes()
    return (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")


def windows(text: str, *, time: int) -> Text:
    """The first nine tenths of a text for training and the rest for testing, in windows of `time` characters."""
    known = sorted(set(text))
    place = {character: at for at, character in enumerate(known)}
    codes = torch.tensor([place[character] for character in text])
    cut = len(codes) * 9 // 10

    def rows(part: Tensor) -> tuple[Tensor, Tensor]:
        count = (len(part) - 1) // time
        return part[: count * time].reshape(count, time), part[1 : count * time + 1].reshape(count, time)

    return Text(rows(codes[:cut]), rows(codes[cut:]), Task("multiclass", tuple(known)))


def answers(module: nn.Module, tokens: Tensor) -> Tensor:
    """What a model says of every position, float32 [rows, time, characters]."""
    with torch.inference_mode():
        return torch.cat([module(some) for some in tokens.split(256)]).clone()


def perplexity(module: nn.Module, rows: tuple[Tensor, Tensor]) -> float:
    """The exponential of the mean cross-entropy over all positions: between how many characters it wavers."""
    return float(next_token(answers(module, rows[0]), rows[1]).mean().exp())


def taught(
    module: nn.Module, terms: list[tuple[Any, float, dict[str, Any]]], data: TrainingSet, text: Text, epochs: int, seed: int
) -> nn.Module:
    """A model trained on these terms."""
    options = OptimizerSection(epochs=epochs, batch_size=32, lr=3e-3, warmup=0.05, clip=1.0, device="cpu")
    train(module, Objective.from_terms(terms, text.task), data, task=text.task, options=options, seed=seed, progress=False)
    return module.eval()


def stored(logits: Tensor, top: int) -> dict[str, Tensor]:
    """The columns that a top-k store keeps of these answers, position by position."""
    flat = logits.flatten(0, 1)
    columns = TopK(top).encode(flat, np.zeros((len(flat), 2), dtype=np.int64))
    kept = {"logits/ids": columns["/ids"].long(), "logits/top": columns["/top"].float()}
    return {name: column.unflatten(0, logits.shape[:2]) for name, column in kept.items()}


def ways(alpha: float, top: int) -> dict[str, list[tuple[Any, float, dict[str, Any]]]]:
    """Terms by the name under which they are printed; the control reads the text alone."""
    hard = (next_token, 1 - alpha, {"reads": "labels"})
    return {
        "control": [(next_token, 1.0, {"reads": "labels"})],
        "forward_kl": [hard, ("tokens.forward_kl", alpha, {})],
        "reverse_kl": [hard, ("tokens.reverse_kl", alpha, {})],
        "skewed_forward_kl": [hard, ("tokens.skewed_forward_kl", alpha, {})],
        "jensen_shannon": [hard, ("tokens.jensen_shannon", 4 * alpha, {})],  # its size is about a quarter of the others'
        f"top_{top}": [hard, ("topk.topk_tail_kl", alpha, {})],
    }


def compared(
    text: str, *, time: int = 64, rows: int = 1500, epochs: int = 8, teacher_epochs: int = 4, seeds: int = 1, width: int = 32,
    teacher_width: int = 96, alpha: float = 0.7, top: int = 8,
) -> dict[str, list[float]]:  # fmt: skip
    """Perplexity on held-out text: of the teacher, and of controls and students of each seed."""
    said, count = windows(text, time=time), len(set(text))
    torch.manual_seed(0)
    plain: list[tuple[Any, float, dict[str, Any]]] = [(next_token, 1.0, {"reads": "labels"})]
    teacher = Characters(count, teacher_width, 2, time=time)
    taught(teacher, plain, TrainingSet(*said.train, None, {}), said, teacher_epochs, seed=0)
    tokens, following = (part[:rows] for part in said.train)
    logits = answers(teacher, tokens)
    heard = TrainingSet(tokens, following, None, {"logits": logits})
    kept = TrainingSet(tokens, following, None, stored(logits, top))
    found: dict[str, list[float]] = {"teacher": [perplexity(teacher, said.test)]}
    for name, terms in ways(alpha, top).items():
        for seed in range(seeds):
            torch.manual_seed(10 + seed)
            student = Characters(count, width, 1, time=time)
            taught(student, terms, kept if name.startswith("top_") else heard, said, epochs, seed=seed)
            found.setdefault(name, []).append(perplexity(student, said.test))
    return found


def main() -> None:
    """Print the figures, as lines or as JSON."""
    given = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    given.add_argument("--text", type=Path, help="a text file, perhaps .gz; without, sentences are made up")
    given.add_argument("--characters", type=int, default=600_000, help="how much of it is read")
    for name, default in (("time", 64), ("rows", 1500), ("epochs", 8), ("teacher-epochs", 4), ("seeds", 1), ("width", 32), ("top", 8)):
        given.add_argument(f"--{name}", type=int, default=default)
    given.add_argument("--teacher-width", type=int, default=96)
    given.add_argument("--alpha", type=float, default=0.7)
    given.add_argument("--json", action="store_true")
    options = vars(given.parse_args())
    as_json, file, most = options.pop("json"), options.pop("text"), options.pop("characters")
    found = compared((made_up() if file is None else read(file))[:most], **options)
    if as_json:
        print(json.dumps(found))
        return
    for name, values in found.items():
        spread = f" (deviation {statistics.stdev(values):.3f}, {len(values)} seeds)" if len(values) > 1 else ""
        print(f"{name:<18} perplexity {statistics.mean(values):.3f}{spread}")


if __name__ == "__main__":
    main()
