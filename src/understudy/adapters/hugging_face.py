"""Hugging Face models of texts as teachers: `hf:FOLDER` or `hf:owner/name`, read by `transformers`.

A sequence classifier answers by itself; of any other model `pooling` makes one vector of a text, and a head is fitted on the labels
as for `sentences:`. Language models that are asked in words are in hugging_face_language.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from understudy.adapters._heads import Head, fitted
from understudy.adapters._hugging_face import (
    TextPreparation,
    checked,
    given_to,
    is_decoder,
    longest,
    read_model,
    read_tokenizer,
    reads_types,
    tokenizer_file,
)
from understudy.adapters._loading import file_digest, require
from understudy.adapters._pretrained import folder_of, quiet
from understudy.data.rows import Rows
from understudy.errors import TeacherError, did_you_mean
from understudy.tasks import Task
from understudy.teachers import TorchTeacher, digest, digest_module

Array = np.ndarray[Any, Any]
Pooling = Literal["mean", "first", "last"]

OPTIONS = ("max_length", "batch_size")
POOLED = ("pooling", "strength", *OPTIONS)
POOLINGS = ("mean", "first", "last")
OTHERS = (
    "Give a fine-tuned classifier, or say how to read the model: teacher.options.pooling = 'mean' makes vectors of its states, with a head "
    "fitted on the labels; teacher.options.prompt asks a language model in words"
)


def load(
    place: str,
    *,
    task: Task,
    classes: Sequence[str] | None = None,
    pretrained: bool = False,
    options: dict[str, Any] | None = None,
    device: str | None = None,
) -> TorchTeacher:
    """The classifier (or regressor) in a folder, in full precision. TeacherError U406 without a padding token, U014 without a head."""
    said = checked(options, OPTIONS, place)
    folder = folder_of(place, pretrained=pretrained)
    model = read_model(folder, place, "AutoModelForSequenceClassification", what="a sequence classifier", advice=OTHERS)
    tokenizer = read_tokenizer(folder, place)
    if task.kind == "regression" and model.config.num_labels != 1:
        raise TeacherError(f"{place} answers {model.config.num_labels} classes, the task is regression", code="U010")
    prepare = TextPreparation(tokenizer, said.get("max_length") or longest(model, tokenizer), file_digest(tokenizer_file(folder)))
    return TorchTeacher(
        _Answering(model, types=reads_types(tokenizer)),
        task=task,
        classes=classes or _names(model, task),
        prepare=prepare,
        output="values" if task.kind == "regression" else "logits",
        name=place,
        batch_size=int(said.get("batch_size", 64)),
        device=device,
    )


def load_pooled(
    place: str, *, task: Task, rows: Rows, cache: Path | None = None, pretrained: bool = False, options: dict[str, Any] | None = None
) -> TorchTeacher:
    """A model's states made one vector by `pooling`, under a head fitted on the labelled training rows.

    TeacherError U408 for another pooling, U406 for a padding token that the model would see, U410 without labels.
    """
    said = checked(options, POOLED, place)
    pooling = said["pooling"]
    if pooling not in POOLINGS:
        raise TeacherError(f"teacher.options.pooling = {pooling!r}; {did_you_mean(str(pooling), POOLINGS)}", code="U408")
    folder = folder_of(place, pretrained=pretrained)
    model = read_model(folder, place, "AutoModel", what="a model of texts", advice="Save the model whole", unread=("pooler.",))
    tokenizer = read_tokenizer(folder, place, any_padding=is_decoder(folder, place))
    tokenizer.padding_side = "right"  # places count from a text's begin
    length = said.get("max_length") or longest(model, tokenizer)
    prepare = TextPreparation(tokenizer, length, file_digest(tokenizer_file(folder)), apart=True)
    batch = int(said.get("batch_size", 64))
    body = PooledEncoder(model, pooling, types=reads_types(tokenizer)).eval()
    head = fitted(_Vectors(body, prepare, batch), task, rows, cache, said.get("strength"), standard=True)
    return TorchTeacher(
        _Headed(body, head),
        task=task,
        classes=task.classes or None,
        prepare=prepare,
        output="values" if task.kind == "regression" else "logits",
        name=place,
        batch_size=batch,
    )


@final
class _Answering(nn.Module):
    """A model of the library as a module from packed tokens to logits."""

    def __init__(self, model: nn.Module, *, types: bool) -> None:
        super().__init__()
        self.model, self.types = model, types

    def forward(self, packed: Tensor) -> Tensor:
        logits: Tensor = self.model(**given_to(packed, types=self.types)).logits
        return logits


@final
class PooledEncoder(nn.Module):
    """Packed tokens to one vector of a text: the mean of the last states, that of its first token or that of its last."""

    def __init__(self, model: nn.Module, pooling: Pooling, *, types: bool) -> None:
        super().__init__()
        self.model, self.pooling, self.types = model, pooling, types

    def forward(self, packed: Tensor) -> Tensor:
        flat = packed.flatten(0, -3)
        states = self.model(**given_to(flat, types=self.types)).last_hidden_state
        there = flat[:, 1]
        if self.pooling == "mean":
            share = there.to(states.dtype) / there.sum(dim=1, keepdim=True).clamp_min(1)
            vectors = (share[:, None] @ states)[:, 0]
        else:
            place = torch.zeros_like(there[:, 0]) if self.pooling == "first" else (there.sum(dim=1) - 1).clamp_min(0)
            vectors = states[torch.arange(len(states), device=states.device), place]
        return vectors.reshape(*packed.shape[:-2], -1)


@final
class _Headed(nn.Module):
    """Vectors of texts, or of both of a pair, under a head that was fitted on labels."""

    def __init__(self, body: PooledEncoder, head: Head) -> None:
        super().__init__()
        self.body, self.cosine = body, head.cosine
        self.head = nn.Linear(*head.weight.shape)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(head.weight.T))
            self.head.bias.copy_(torch.from_numpy(head.bias))

    def forward(self, packed: Tensor) -> Tensor:
        vectors = self.body(packed)
        if vectors.ndim == 3:
            first, second = vectors[:, 0], vectors[:, 1]
            if self.cosine:
                vectors = torch.cosine_similarity(first, second, dim=1)[:, None]
            else:
                vectors = torch.cat([first, second, (first - second).abs(), first * second], dim=1)
        said: Tensor = self.head(vectors)
        return said


@final
class _Vectors:
    """An encoder as its head is fitted on it."""

    def __init__(self, body: PooledEncoder, prepare: TextPreparation, batch_size: int) -> None:
        self.body, self.prepare, self.batch_size = body, prepare, batch_size

    def vectors(self, texts: Array) -> Array:
        with torch.inference_mode():
            parts = [
                self.body(self.prepare(texts[start : start + self.batch_size])).numpy() for start in range(0, len(texts), self.batch_size)
            ]
        return np.concatenate(parts)

    def digest(self) -> str:
        return digest(digest_module(self.body).encode(), self.body.pooling.encode(), repr(self.prepare).encode())


@final
class CutEncoder(nn.Module):
    """Some layers of a published encoder, from positions of tokens to the mean of the last states."""

    def __init__(self, model: nn.Module, padding: int, width: int) -> None:
        super().__init__()
        self.model, self.padding, self.width = model, padding, width

    def forward(self, tokens: Tensor) -> Tensor:
        there = (tokens != self.padding).long()
        # a text of no token keeps one place, since attention over nothing is no number
        seen = torch.cat([torch.ones_like(there[:, :1]), there[:, 1:]], dim=1)
        states = self.model(input_ids=tokens, attention_mask=seen).last_hidden_state
        share = there.to(states.dtype)
        share = share / share.sum(dim=1, keepdim=True).clamp_min(1)
        return (share[:, None] @ states)[:, 0]


def cut(place: str, layers: Sequence[int] | str, *, padding: int, length: int) -> CutEncoder:
    """The encoder at a place with its embeddings and these layers alone, in this order ("all" of them), to be trained further."""
    transformers = require("transformers", "transformers")
    folder = folder_of(place)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice of the library about its own settings
            # written out, not fused: what every exporter knows
            model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32, attn_implementation="eager")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise TeacherError(f"{place} cannot be read as an encoder: {str(error).strip().splitlines()[0][:200]}", code="U408") from error
    longest = getattr(model.config, "max_position_embeddings", length) - (padding + 1 if "roberta" in model.config.model_type else 0)
    if length > longest:
        raise TeacherError(f"data.max_length is {length}, and {place} reads {longest} tokens; set data.max_length = {longest}", code="U408")
    stacks = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    name, stack = max(stacks.items(), key=lambda item: len(item[1]), default=("", nn.ModuleList()))
    chosen = range(len(stack)) if layers == "all" else layers
    if isinstance(chosen, str) or not chosen or any(layer not in range(len(stack)) for layer in chosen):
        told = f"options.cut = {chosen!r}: {place} has the layers 0 to {len(stack) - 1}; list some, or say 'all'"
        raise TeacherError(told, code="U408")
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, nn.ModuleList([stack[layer] for layer in chosen]))
    model.config.num_hidden_layers = len(chosen)
    for pooler in [part for part, _ in model.named_children() if part == "pooler"]:
        setattr(model, pooler, None)  # it is not read, and weights that are not read cannot be trained
    return CutEncoder(model, padding, int(model.config.hidden_size))


def _names(model: Any, task: Task) -> tuple[str, ...] | None:
    """The published class names; None for those that only count."""
    if task.kind == "regression":
        return None
    names = tuple(str(model.config.id2label[number]) for number in range(model.config.num_labels))
    return None if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names
