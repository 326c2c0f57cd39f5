"""What a student of texts reads: positions of tokens in a vocabulary, by a tokenizer that travels with it.

The tokenizer is one of the `tokenizers` package: trained here on the training texts, or read from a tokenizer.json (of the
teacher, say). Every row becomes as many positions as `length`, filled up with the padding token's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np

from understudy.errors import DataError, MissingExtraError, Problem

Array = np.ndarray[Any, Any]

PADDING, UNKNOWN = "[PAD]", "[UNK]"


@final
@dataclass(frozen=True)
class TextEncoding:
    """A tokenizer (the text of its tokenizer.json) and how many tokens of a text are read; `special` adds its marks of begin and end."""

    tokenizer: str
    length: int
    pairs: bool = False
    special: bool = False

    @staticmethod
    def fit(texts: Array, *, vocabulary: int, length: int) -> TextEncoding:
        """A byte-pair vocabulary of at most this size, learned from texts [rows] or [rows, 2] in lower case."""
        tokenizers = _tokenizers()
        made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=UNKNOWN))
        normal = tokenizers.normalizers
        made.normalizer = normal.Sequence([normal.NFKC(), normal.Lowercase()])
        pieces = tokenizers.pre_tokenizers
        # a mark at the front of each word, and none at its end: the vocabulary is then the same whenever it is learned
        made.pre_tokenizer = pieces.Sequence([pieces.BertPreTokenizer(), pieces.Metaspace(prepend_scheme="always")])
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[PADDING, UNKNOWN], min_frequency=2, show_progress=False
        )
        made.train_from_iterator(texts.ravel().tolist(), trainer)
        return TextEncoding(made.to_str(), length, pairs=texts.ndim == 2)

    @staticmethod
    def read(file: Path, *, length: int, pairs: bool, special: bool) -> TextEncoding:
        """The tokenizer in a tokenizer.json. DataError U406 when it has no padding token, U413 when it cannot be read."""
        try:
            text = file.read_text(encoding="utf-8")
            made = TextEncoding(text, length, pairs, special)
            made._made  # noqa: B018  read now, so that a damaged file is told here
        except (OSError, ValueError) as error:
            raise DataError(f"{file} is no tokenizer that can be read: {error}", code="U413") from None
        if made.padding < 0:
            raise DataError(
                f"the tokenizer {file} has no padding token, which fills short texts up to the length of longer ones. Give it one: "
                "tokenizer.add_special_tokens(['[PAD]']); tokenizer.enable_padding(pad_token='[PAD]', pad_id=...)",
                code="U406",
            )
        return made

    @cached_property
    def _made(self) -> Any:
        try:
            made = _tokenizers().Tokenizer.from_str(self.tokenizer)
        except Exception as error:  # the package raises a plain Exception
            raise ValueError(str(error)) from None
        made.no_padding()
        made.enable_truncation(self.length)
        return made

    @cached_property
    def padding(self) -> int:
        """The position of the padding token, -1 where there is none."""
        said = json.loads(self.tokenizer).get("padding")
        if said:
            return int(said["pad_id"])
        known = (self._made.token_to_id(word) for word in (PADDING, "<pad>", "<PAD>"))
        return next((found for found in known if found is not None), -1)

    @property
    def size(self) -> int:
        """How many tokens the vocabulary has."""
        return int(self._made.get_vocab_size(with_added_tokens=True))

    @cached_property
    def words(self) -> list[str]:
        """The tokens in the order of their positions."""
        return [self._made.id_to_token(position) or "" for position in range(self.size)]

    def encode(self, texts: Array) -> Array:
        """int64 [rows, length], or [rows, 2, length] of pairs."""
        flat = np.asarray(texts, dtype=object)
        found = self._made.encode_batch_fast(flat.ravel().tolist(), add_special_tokens=self.special)
        encoded = np.full((len(found), self.length), self.padding, dtype=np.int64)
        counts = np.fromiter((len(each) for each in found), dtype=np.int64, count=len(found))
        filled = np.arange(self.length) < counts[:, None]
        encoded[filled] = [position for each in found for position in each.ids]
        return encoded.reshape(*flat.shape, self.length)

    def check(self, texts: Array) -> list[Problem]:
        """A warning where many texts are cut."""
        cut = float((self.encode(texts)[..., -1] != self.padding).mean()) if len(texts) else 0.0
        if cut <= 0.05:
            return []
        told = f"{cut:.0%} of the texts looked at have {self.length} tokens or more and are cut there"
        return [Problem("U417", f"{told}; set data.max_length higher if their ends matter", "warning")]

    def to_json(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer, "length": self.length, "pairs": self.pairs, "special": self.special, "padding": self.padding}

    @staticmethod
    def from_json(said: dict[str, Any]) -> TextEncoding:
        return TextEncoding(said["tokenizer"], said["length"], said["pairs"], said["special"])


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise MissingExtraError("tokenizers", "text") from None
    return tokenizers
