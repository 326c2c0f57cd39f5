"""Small models that read texts as positions of tokens, int64 [rows, length] or, of pairs, [rows, 2, length].

Each is a body that makes one vector of a text and a head that answers; a pair goes through the same body twice. Padding
stands only at the end of a text, and takes no part in anything.
"""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from understudy.students._seeding import seeded

_PRIME = 1_000_003


@final
class Siamese(nn.Module):
    """The body on one text, or on both of a pair, which the head sees as both vectors, their distance and their product."""

    def __init__(self, body: nn.Module, width: int, outputs: int, *, pairs: bool, hidden: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.body, self.pairs, self.width = body, pairs, width
        wide = 4 * width if pairs else width
        layers: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
        if hidden:
            layers += [nn.Linear(wide, hidden), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        self.head = nn.Sequential(*layers, nn.Linear(hidden or wide, outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.pairs:
            return self.head(self.body(tokens))
        both = self.body(tokens.flatten(0, 1)).reshape(-1, 2, self.width)
        first, second = both[:, 0], both[:, 1]
        return self.head(torch.cat([first, second, (first - second).abs(), first * second], dim=1))


@final
class Bag(nn.Module):
    """The mean of the vectors of a text's tokens and of its n-grams, which share `buckets` vectors by their hash.

    (Joulin, Grave, Bojanowski & Mikolov 2016, arXiv:1607.01759, section 2.)
    """

    def __init__(self, vocabulary: int, width: int, *, padding: int, ngrams: int, buckets: int, drop_words: float) -> None:
        super().__init__()
        self.vocabulary, self.padding, self.ngrams, self.buckets, self.drop_words = vocabulary, padding, ngrams, buckets, drop_words
        self.embedding = nn.Embedding(vocabulary + (buckets if ngrams > 1 else 0), width)
        nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(width))

    def forward(self, tokens: Tensor) -> Tensor:
        there, positions = [tokens != self.padding], [tokens]
        code = tokens
        for order in range(2, self.ngrams + 1):
            # texts of one token have no n-gram: what is shifted in from beyond the end is padding
            after = functional.pad(tokens[:, order - 1 :], (0, order - 1), value=self.padding)[:, : tokens.shape[1]]
            code = (code * _PRIME + after) % self.buckets
            positions.append(code + self.vocabulary)
            there.append(after != self.padding)
        found = torch.cat(there, dim=1)
        if self.training and self.drop_words:
            found = found & (torch.rand_like(found, dtype=torch.float32) >= self.drop_words)
        share = found.to(self.embedding.weight.dtype)
        share = share / share.sum(dim=1, keepdim=True).clamp_min(1)
        return (share[:, None] @ self.embedding(torch.cat(positions, dim=1)))[:, 0]


def bag(
    vocabulary: int,
    outputs: int,
    *,
    padding: int = 0,
    pairs: bool = False,
    width: int = 64,
    ngrams: int = 2,
    buckets: int = 16384,
    hidden: int = 0,
    dropout: float = 0.0,
    drop_words: float = 0.0,
    seed: int | None = None,
) -> nn.Module:
    """Averaged vectors of tokens and hashed n-grams, then a small head; its initial weights depend on `seed` alone, if given.

    >>> sum(weight.numel() for weight in bag(100, 4, width=8, ngrams=2, buckets=50).parameters())
    1236
    """
    with seeded(seed):
        body = Bag(vocabulary, width, padding=padding, ngrams=ngrams, buckets=buckets, drop_words=drop_words)
        return Siamese(body, width, outputs, pairs=pairs, hidden=hidden, dropout=dropout)


@final
class _Layer(nn.Module):
    """Attention and two linear layers, each normalised before and added to what comes in (Xiong et al. 2020, arXiv:2002.04745)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention, self.before_mixing = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mixing = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout))

    def forward(self, states: Tensor, there: Tensor) -> Tensor:
        rows, length, width = states.shape
        mixed = self.queries_keys_values(self.before_attention(states)).reshape(rows, length, 3, self.heads, width // self.heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads)
        weights = scores.masked_fill(~there[:, None, None], -1e4).softmax(dim=-1)
        seen = functional.dropout(weights, self.dropout, self.training) @ value
        states = states + functional.dropout(self.attended(seen.transpose(1, 2).reshape(rows, length, width)), self.dropout, self.training)
        return states + self.mixing(self.before_mixing(states))


@final
class Encoder(nn.Module):
    """A small transformer from tokens to the mean of its last states."""

    def __init__(self, vocabulary: int, width: int, *, length: int, padding: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.padding = padding
        self.embedding, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        for table in (self.embedding, self.place):
            nn.init.normal_(table.weight, std=0.02)
        self.first = nn.Sequential(nn.LayerNorm(width), nn.Dropout(dropout))
        self.layers = nn.ModuleList([_Layer(width, heads, dropout) for _ in range(depth)])
        self.last = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        there = tokens != self.padding
        states = self.first(self.embedding(tokens) + self.place.weight[: tokens.shape[1]])
        for layer in self.layers:
            states = layer(states, there)
        share = there.to(states.dtype)
        share = share / share.sum(dim=1, keepdim=True).clamp_min(1)
        return (share[:, None] @ self.last(states))[:, 0]


def transformer(
    vocabulary: int,
    outputs: int,
    *,
    padding: int = 0,
    pairs: bool = False,
    length: int = 128,
    width: int = 128,
    depth: int = 2,
    heads: int = 4,
    dropout: float = 0.1,
    seed: int | None = None,
) -> nn.Module:
    """A small encoder over texts of at most `length` tokens, then one linear layer.

    >>> transformer(100, 4, width=32, depth=1)(torch.tensor([[5, 7, 0]])).shape
    torch.Size([1, 4])
    """
    with seeded(seed):
        body = Encoder(vocabulary, width, length=length, padding=padding, depth=depth, heads=heads, dropout=dropout)
        return Siamese(body, width, outputs, pairs=pairs, dropout=dropout)


@final
class Static(nn.Module):
    """The weighted mean of fixed vectors of a text's tokens, one vector and one weight per token, both trained further."""

    def __init__(self, vectors: np.ndarray[Any, Any], weights: np.ndarray[Any, Any], *, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.embedding = nn.Embedding.from_pretrained(torch.from_numpy(vectors.astype(np.float32)), freeze=False)
        self.weight = nn.Parameter(torch.from_numpy(weights.astype(np.float32)))

    def forward(self, tokens: Tensor) -> Tensor:
        there = (tokens != self.padding).to(self.weight.dtype)
        share = self.weight[tokens] * there / there.sum(dim=1, keepdim=True).clamp_min(1)
        return (share[:, None] @ self.embedding(tokens))[:, 0]


@final
class Similarity(nn.Module):
    """A number for a pair: a line through the cosine of the two vectors of its body."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.width = body, width
        self.line = nn.Linear(1, 1)
        nn.init.constant_(self.line.weight, 3.0)
        nn.init.constant_(self.line.bias, -1.5)

    def forward(self, tokens: Tensor) -> Tensor:
        both = self.body(tokens.flatten(0, 1)).reshape(-1, 2, self.width)
        sizes = (both * both).sum(dim=2).clamp_min(1e-12).sqrt()
        cosine = (both[:, 0] * both[:, 1]).sum(dim=1) / (sizes[:, 0] * sizes[:, 1])
        return self.line(cosine[:, None])


def static(
    vectors: np.ndarray[Any, Any],
    weights: np.ndarray[Any, Any],
    outputs: int,
    *,
    padding: int = 0,
    pairs: bool = False,
    hidden: int = 0,
    dropout: float = 0.0,
    seed: int | None = None,
) -> nn.Module:
    """Static vectors of tokens [tokens, width] with their weights [tokens], then a small head; of a pair's number, its cosine.

    >>> static(np.ones((5, 3)), np.ones(5), 2)(torch.tensor([[1, 2, 0]])).shape
    torch.Size([1, 2])
    """
    width = vectors.shape[1]
    with seeded(seed):
        body = Static(vectors, weights, padding=padding)
        if pairs and outputs == 1:
            return Similarity(body, width)
        return Siamese(body, width, outputs, pairs=pairs, hidden=hidden, dropout=dropout)


def headed(
    body: nn.Module, width: int, outputs: int, *, pairs: bool = False, hidden: int = 0, dropout: float = 0.1, seed: int | None = None
) -> nn.Module:
    """A body of one's own, from tokens [rows, length] to vectors [rows, width], under a new head.

    >>> headed(bag(9, 4, width=4), 4, 2)(torch.tensor([[1, 2]])).shape
    torch.Size([1, 2])
    """
    with seeded(seed):
        return Siamese(body, width, outputs, pairs=pairs, hidden=hidden, dropout=dropout)
