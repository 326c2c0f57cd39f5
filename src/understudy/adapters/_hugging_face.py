"""What the adapters for models of texts in the layout of `transformers` share: reading a folder, and texts as packed tokens."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from understudy.adapters._loading import require
from understudy.adapters._pretrained import quiet
from understudy.errors import TeacherError, did_you_mean


def checked(options: dict[str, Any] | None, known: Sequence[str], place: str) -> dict[str, Any]:
    """The options, when there is nothing among them that this kind of teacher does not know."""
    said = dict(options or {})
    strange = sorted(set(said) - set(known))
    if strange:
        told = f"there is no {strange[0]!r} for {place}; {did_you_mean(strange[0], known)}"
        raise TeacherError(f"teacher.options: {told}. There is: {', '.join(known)}", code="U408")
    return said


def is_decoder(folder: Path, place: str) -> bool:
    """Whether a token sees only those before it in every model of this kind: GPT-2, Llama and the like, not BERT and not T5."""
    configuration = config_of(folder, place)
    modeling_auto = require("transformers.models.auto.modeling_auto", "transformers")
    kind = str(configuration.model_type)
    causal = kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return causal and not getattr(configuration, "is_encoder_decoder", False)


def config_of(folder: Path, place: str) -> Any:
    """What the folder says of its model."""
    transformers = require("transformers", "transformers")
    try:
        with quiet():
            return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise TeacherError(f"{place} cannot be read: {str(error).strip().splitlines()[0][:200]}", code="U408") from error


def read_model(folder: Path, place: str, kind: str, *, what: str, advice: str, unread: Sequence[str] = ()) -> Any:
    """The model by one of the library's `Auto...` classes, in full precision; TeacherError U014 where weights that it needs are missing."""
    transformers = require("transformers", "transformers")
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice of the library about its own settings
            model, told = getattr(transformers, kind).from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise TeacherError(f"{place} cannot be read as {what}: {str(error).strip().splitlines()[0][:200]}", code="U408") from error
    missing = sorted(name for name in told["missing_keys"] if not name.startswith(tuple(unread)))
    if missing:
        raise TeacherError(
            f"{place} has no weights for {missing[0]} ({len(missing)} in all): its answers would be random. {advice}", code="U014"
        )
    return model.eval()


def read_tokenizer(folder: Path, place: str, *, any_padding: bool = False) -> Any:
    """The tokenizer; TeacherError U406 without a padding token, unless what fills up is never seen (`any_padding`)."""
    transformers = require("transformers", "transformers")
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise TeacherError(f"the tokenizer of {place} cannot be read: {str(error).strip().splitlines()[0][:200]}", code="U408") from error
    if tokenizer.pad_token_id is not None:
        return tokenizer
    if not any_padding:
        raise TeacherError(
            f"the tokenizer of {place} has no padding token, so texts of several lengths cannot be asked together. Give it the one it was "
            "trained with: tokenizer.pad_token = ..., model.config.pad_token_id = ..., and save both again",
            code="U406",
        )
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def tokenizer_file(folder: Path) -> Path:
    """The file that decides how texts become tokens."""
    names = ("tokenizer.json", "vocab.txt", "spiece.model", "tokenizer_config.json", "config.json")
    return next(folder / name for name in names if (folder / name).is_file())


def longest(model: Any, tokenizer: Any) -> int:
    """Tokens of a text that the model can read, at most 512."""
    known = [getattr(model.config, "max_position_embeddings", 512), tokenizer.model_max_length, 512]
    return int(min(known))


@final
class TextPreparation(nn.Module):
    """Texts, or pairs of texts, to int64 [rows, 3, length]: positions of tokens, which of them count, which of a pair they belong to.

    With `apart` a pair is two texts, int64 [rows, 2, 3, length].
    """

    def __init__(self, tokenizer: Any, length: int, content: str, *, apart: bool = False) -> None:
        super().__init__()
        self.tokenizer, self.length, self.content, self.apart = tokenizer, length, content, apart

    def forward(self, inputs: Any) -> Tensor:
        rows = np.asarray(inputs, dtype=object)
        together = rows.ndim == 1 or self.apart
        parts = [rows.ravel().tolist()] if together else [rows[:, 0].tolist(), rows[:, 1].tolist()]
        said = self.tokenizer(
            *parts, padding=True, truncation=True, max_length=self.length, return_tensors="np", return_token_type_ids=True
        )
        packed = np.stack([said["input_ids"], said["attention_mask"], said["token_type_ids"]], axis=1)
        packed = packed.reshape(*rows.shape, *packed.shape[1:]) if together else packed
        return torch.from_numpy(packed.astype(np.int64))

    def extra_repr(self) -> str:
        return f"tokenizer={self.content}, length={self.length}" + (", apart" if self.apart else "")


def reads_types(tokenizer: Any) -> bool:
    """Whether a model with this tokenizer is told which text of a pair a token belongs to; GPT-2 would take it for another token."""
    return "token_type_ids" in tokenizer.model_input_names


def given_to(packed: Tensor, *, types: bool) -> dict[str, Tensor]:
    """Packed tokens [rows, 3, length] as keyword arguments of a model of the library."""
    given = {"input_ids": packed[:, 0], "attention_mask": packed[:, 1]}
    return {**given, "token_type_ids": packed[:, 2]} if types else given
