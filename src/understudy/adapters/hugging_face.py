"""Hugging Face sequence classifiers as teachers: `hf:FOLDER` or `hf:owner/name`, read by `transformers`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from understudy.adapters._loading import file_digest, require
from understudy.adapters._pretrained import folder_of, quiet
from understudy.errors import TeacherError
from understudy.tasks import Task
from understudy.teachers import TorchTeacher

OPTIONS = ("max_length", "batch_size")


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
    said = dict(options or {})
    strange = sorted(set(said) - set(OPTIONS))
    if strange:
        raise TeacherError(f"teacher.options: there is no {strange[0]!r} for {place}; there is: {', '.join(OPTIONS)}", code="U408")
    folder = folder_of(place, pretrained=pretrained)
    model, tokenizer = _model(folder, place), _tokenizer(folder, place)
    if task.kind == "regression" and model.config.num_labels != 1:
        raise TeacherError(f"{place} answers {model.config.num_labels} classes, the task is regression", code="U010")
    prepare = TextPreparation(tokenizer, said.get("max_length") or _longest(model, tokenizer), file_digest(_tokenizer_file(folder)))
    return TorchTeacher(
        _Answering(model),
        task=task,
        classes=classes or _names(model, task),
        prepare=prepare,
        output="values" if task.kind == "regression" else "logits",
        name=place,
        batch_size=int(said.get("batch_size", 64)),
        device=device,
    )


@final
class TextPreparation(nn.Module):
    """Texts, or pairs of texts, to int64 [rows, 3, length]: positions of tokens, which of them count, which of a pair they belong to."""

    def __init__(self, tokenizer: Any, length: int, content: str) -> None:
        super().__init__()
        self.tokenizer, self.length, self.content = tokenizer, length, content

    def forward(self, inputs: Any) -> Tensor:
        rows = np.asarray(inputs, dtype=object)
        parts = [rows.tolist()] if rows.ndim == 1 else [rows[:, 0].tolist(), rows[:, 1].tolist()]
        said = self.tokenizer(
            *parts, padding=True, truncation=True, max_length=self.length, return_tensors="np", return_token_type_ids=True
        )
        packed = np.stack([said["input_ids"], said["attention_mask"], said["token_type_ids"]], axis=1)
        return torch.from_numpy(packed.astype(np.int64))

    def extra_repr(self) -> str:
        return f"tokenizer={self.content}, length={self.length}"


@final
class _Answering(nn.Module):
    """A model of the library as a module from packed tokens to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.types = "token_type_ids" in type(model).forward.__code__.co_varnames

    def forward(self, packed: Tensor) -> Tensor:
        given = {"input_ids": packed[:, 0], "attention_mask": packed[:, 1]}
        if self.types:
            given["token_type_ids"] = packed[:, 2]
        logits: Tensor = self.model(**given).logits
        return logits


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


def cut(place: str, layers: Sequence[int], *, padding: int, length: int) -> CutEncoder:
    """The encoder at a place with its embeddings and these layers alone, in this order, to be trained further."""
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
    wrong = [layer for layer in layers if not 0 <= layer < len(stack)]
    if wrong or not layers:
        raise TeacherError(f"student.options.cut = {list(layers)}: {place} has the layers 0 to {len(stack) - 1}", code="U408")
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, nn.ModuleList([stack[layer] for layer in layers]))
    model.config.num_hidden_layers = len(layers)
    for pooler in [part for part, _ in model.named_children() if part == "pooler"]:
        setattr(model, pooler, None)  # it is not read, and weights that are not read cannot be trained
    return CutEncoder(model, padding, int(model.config.hidden_size))


def _model(folder: Path, place: str) -> Any:
    transformers = require("transformers", "transformers")
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice of the library about its own settings
            model, told = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise TeacherError(
            f"{place} cannot be read as a sequence classifier: {str(error).strip().splitlines()[0][:200]}", code="U408"
        ) from error
    missing = sorted(told["missing_keys"])
    if missing:
        raise TeacherError(
            f"{place} has no weights for {missing[0]} ({len(missing)} in all): its answers would be random. Give a fine-tuned classifier, "
            "or take the model as a sentence encoder with a head fitted on the labels: teacher.source = 'sentences:...'",
            code="U014",
        )
    return model.eval()


def _tokenizer(folder: Path, place: str) -> Any:
    transformers = require("transformers", "transformers")
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise TeacherError(f"the tokenizer of {place} cannot be read: {str(error).strip().splitlines()[0][:200]}", code="U408") from error
    if tokenizer.pad_token_id is None:
        raise TeacherError(
            f"the tokenizer of {place} has no padding token, so texts of several lengths cannot be asked together. Give it the one it was "
            "trained with: tokenizer.pad_token = ..., model.config.pad_token_id = ..., and save both again",
            code="U406",
        )
    return tokenizer


def _tokenizer_file(folder: Path) -> Path:
    names = ("tokenizer.json", "vocab.txt", "spiece.model", "tokenizer_config.json", "config.json")
    return next(folder / name for name in names if (folder / name).is_file())


def _longest(model: Any, tokenizer: Any) -> int:
    """Tokens of a text that the model can read, at most 512."""
    known = [getattr(model.config, "max_position_embeddings", 512), tokenizer.model_max_length, 512]
    return int(min(known))


def _names(model: Any, task: Task) -> tuple[str, ...] | None:
    """The published class names; None for those that only count."""
    if task.kind == "regression":
        return None
    names = tuple(str(model.config.id2label[number]) for number in range(model.config.num_labels))
    return None if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names
