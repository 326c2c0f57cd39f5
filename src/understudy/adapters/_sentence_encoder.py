"""A published model from texts to vectors, as `sentence-transformers` reads it."""

from __future__ import annotations

import warnings
from typing import Any, final

import numpy as np
import torch

from understudy.adapters._loading import require
from understudy.adapters._pretrained import folder_of, quiet
from understudy.errors import TeacherError
from understudy.teachers import digest_module

Array = np.ndarray[Any, Any]


@final
class SentenceEncoder:
    """A published model from texts to vectors."""

    def __init__(self, model: Any, *, batch_size: int = 64) -> None:
        self.model, self.batch_size = model, batch_size

    @staticmethod
    def open(place: str, *, pretrained: bool = False, batch_size: int = 64, max_length: int | None = None) -> SentenceEncoder:
        """The encoder at a place, on the CPU or the first accelerator there is."""
        library = require("sentence_transformers", "sentences")
        folder = folder_of(place, pretrained=pretrained)
        try:
            with quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice of the library about its own settings
                model = library.SentenceTransformer(str(folder), local_files_only=True).eval()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            told = str(error).strip().splitlines()[0][:200]
            raise TeacherError(f"{place} cannot be read as a sentence encoder: {told}", code="U408") from error
        tokenizer = model.tokenizer
        if getattr(tokenizer, "pad_token_id", 0) is None:
            raise TeacherError(
                f"the tokenizer of {place} has no padding token, so texts of several lengths cannot be asked together; "
                "give it one and save it again",
                code="U406",
            )
        if max_length is not None:
            model.max_seq_length = int(max_length)
        return SentenceEncoder(model, batch_size=batch_size)

    def vectors(self, texts: Array) -> Array:
        """float32 [rows, width], or [rows, 2, width] of pairs."""
        flat = np.asarray(texts, dtype=object)
        if not flat.size:
            return np.zeros((*flat.shape, self.width), dtype=np.float32)
        with torch.inference_mode():
            said = self.model.encode(flat.ravel().tolist(), batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(said, dtype=np.float32).reshape(*flat.shape, -1)

    @property
    def width(self) -> int:
        """How many numbers a vector has."""
        return int(self.model.get_embedding_dimension())

    def digest(self) -> str:
        """The content hash of its weights."""
        return digest_module(self.model)

    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.model.parameters())
