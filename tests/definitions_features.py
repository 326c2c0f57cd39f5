"""Definitions by hand of losses on features, relations, contrast, embeddings, attention and dense outputs.

Lists of numbers in, one number out; a coupled loss takes whole batches and gives the mean over rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from definitions import Definition, Kind, Loss, divergence, first, normal, softmax
from torch import Tensor
from torch.nn import functional

Vector = list[float]
Matrix = list[Vector]
Maps = list[Matrix]
"""Channels of one row, each a list of lines."""


def shaped(*shape: int) -> Kind:
    """Numbers [rows, *shape]."""
    return Kind(lambda seed, rows, dtype: normal(seed, rows, *shape, dtype=dtype))


MAPS = shaped(3, 4, 6)
SMALL_MAPS = shaped(3, 2, 3)
UNEVEN_MAPS = shaped(2, 5, 7)
OTHER_MAPS = shaped(4, 4, 6)
TWO_MAPS = shaped(2, 3, 4, 4)
EMBEDDINGS = shaped(8)
OTHER_EMBEDDINGS = shaped(5)
TWO_EMBEDDINGS = shaped(2, 8)
HIDDEN = shaped(4, 6)
OTHER_HIDDEN = shaped(4, 10)
TWO_HIDDEN = shaped(2, 4, 6)
TWO_OTHER_HIDDEN = shaped(2, 4, 10)
SCORES = shaped(2, 3, 3)
CANDIDATES = shaped(4)
TOKENS_THAT_COUNT = Kind(lambda seed, rows, dtype: torch.arange(4) <= torch.arange(rows)[:, None] % 3 + 1, anything=False)
PIXELS_THAT_COUNT = Kind(lambda seed, rows, dtype: normal(seed, rows, 4, 6) > -1, anything=False)
PIXEL_LABELS = Kind(lambda seed, rows, dtype: normal(seed, rows, 4, 4, 6).argmax(1) - 1, anything=False)
PLACES = Kind(lambda seed, rows, dtype: (torch.arange(rows)[:, None] * 3 + torch.arange(5)) % 20, anything=False)
BANK = torch.nn.functional.normalize(normal(77, 20, 8), dim=1)
OTHER_BANK = torch.nn.functional.normalize(normal(78, 20, 8), dim=1)
VARIANCES = normal(79, 3) / 3
MARGINS = -normal(80, 3).abs() / 3


def in_pairs(loss: Loss) -> Loss:
    """Student and teacher [rows, 2, ...] as the two tensors that the loss takes from each."""
    return lambda student, teacher, **options: loss((student[:, 0], student[:, 1]), (teacher[:, 0], teacher[:, 1]), **options)


def with_mask(loss: Loss) -> Loss:
    return lambda student, teacher, mask, **options: loss(student, teacher, mask=mask, **options)


def in_pairs_with_mask(loss: Loss) -> Loss:
    return with_mask(in_pairs(loss))


def with_banks(loss: Loss) -> Loss:
    """The same banks whatever is asked."""

    def call(student: Tensor, teacher: Tensor, positions: Tensor, **options: Any) -> Tensor:
        return loss(student, teacher, positions=positions, student_bank=BANK, teacher_bank=OTHER_BANK, **options)

    return call


# --- in scalars -------------------------------------------------------------------------------------------------------


def flat(nested: Any) -> Vector:
    return [value for part in nested for value in flat(part)] if isinstance(nested, list) else [nested]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(vector: Vector) -> Vector:
    length = math.sqrt(dot(vector, vector))
    return [value / length for value in vector]


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def mean_square(a: Vector, b: Vector) -> float:
    return mean((x - y) ** 2 for x, y in zip(a, b, strict=True))


def huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def pooled(lines: Matrix, height: int, width: int) -> Matrix:
    """Averages over bins that cover the map, next ones sharing a line where they must."""

    def bins(size: int, parts: int) -> list[range]:
        return [range(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]

    rows, columns = bins(len(lines), height), bins(len(lines[0]), width)
    return [[mean(lines[y][x] for y in ys for x in xs) for xs in columns] for ys in rows]


def shrunk(maps: Maps, height: int, width: int) -> Maps:
    return [pooled(channel, height, width) for channel in maps]


# --- layers -----------------------------------------------------------------------------------------------------------


def hint(student: Maps, teacher: Maps) -> float:
    return mean_square(flat(student), flat(teacher))


def feature_alignment(student: Maps, teacher: Maps) -> float:
    return mean_square(flat(student), flat(shrunk(teacher, 2, 3)))


def hierarchical_context(student: Maps, teacher: Maps) -> float:
    value = mean_square(flat(student), flat(teacher))
    for size, weight in ((4, 0.5), (2, 0.25), (1, 0.125)):
        value += weight * mean_square(flat(shrunk(student, size, size)), flat(shrunk(teacher, size, size)))
    return value / 1.875


def variational_information(student: Maps, teacher: Maps) -> float:
    values = []
    for raw, mine, theirs in zip(VARIANCES.tolist(), student, teacher, strict=True):
        variance = math.log1p(math.exp(raw)) + 1e-5
        values += [((s - t) ** 2 / variance + math.log(variance)) / 2 for s, t in zip(flat(mine), flat(theirs), strict=True)]
    return mean(values)


def activation_boundaries(student: Maps, teacher: Maps) -> float:
    value = 0.0
    for s, t in zip(flat(student), flat(teacher), strict=True):
        if t > 0 and s <= 2:
            value += (s - 2) ** 2
        elif t <= 0 and s > -2:
            value += (s + 2) ** 2
    return value


def partial_distance(student: Maps, teacher: Maps) -> float:
    value = 0.0
    for margin, mine, theirs in zip(MARGINS.tolist(), student, teacher, strict=True):
        for s, t in zip(flat(mine), flat(theirs), strict=True):
            target = max(t, margin)
            value += 0.0 if s <= target <= 0 else (s - target) ** 2
    return value


def factor_transfer(student: Maps, teacher: Maps) -> float:
    return mean(abs(s - t) for s, t in zip(unit(flat(student)), unit(flat(teacher)), strict=True))


# --- where and how channels are active --------------------------------------------------------------------------------


def attention_transfer(student: Maps, teacher: Maps) -> float:
    def attention(maps: Maps) -> Vector:
        return unit([mean(abs(value) ** 3 for value in place) for place in zip(*(flat(channel) for channel in maps), strict=True)])

    return mean_square(attention(student), attention(shrunk(teacher, 2, 3)))


def class_attention(student: Maps, teacher: Maps) -> float:
    maps = ([unit(flat(pooled(channel, 2, 2))) for channel in side] for side in (student, teacher))
    return mean_square(*(flat(side) for side in maps))


def neuron_selectivity(student: Maps, teacher: Maps) -> float:
    mine, theirs = ([unit(flat(channel)) for channel in side] for side in (student, teacher))

    def kernel(one: Matrix, two: Matrix) -> float:
        return mean(dot(x, y) ** 2 for x in one for y in two)

    return kernel(mine, mine) + kernel(theirs, theirs) - 2 * kernel(mine, theirs)


def channel_correlation(student: Maps, teacher: Maps) -> float:
    def gram(maps: Maps) -> Matrix:
        return [unit([dot(flat(one), flat(two)) for two in maps]) for one in maps]

    pairs = zip(flat(gram(student)), flat(gram(teacher)), strict=True)
    return sum((g - h) ** 2 for g, h in pairs) / len(student)


def solution_flow(student: list[Maps], teacher: list[Maps]) -> float:
    def flow(side: list[Maps]) -> Vector:
        return [dot(flat(one), flat(two)) / 16 for one in side[0] for two in side[1]]

    return mean_square(flow(student), flow(teacher))


def channel_distribution(student: Maps, teacher: Maps) -> float:
    pairs = zip(student, teacher, strict=True)
    return 9 * mean(divergence(softmax(flat(theirs), 3), softmax(flat(mine), 3)) for mine, theirs in pairs)


def pixel_cross_entropy(student: Maps, labels: list[list[int]]) -> float:
    values = [
        -math.log(softmax([channel[y][x] for channel in student])[label])
        for y, line in enumerate(labels)
        for x, label in enumerate(line)
        if label >= 0
    ]
    return mean(values) if values else 0.0


def pixel_soft_target(student: Maps, teacher: Maps, mask: list[list[bool]]) -> float:
    values = []
    for y, line in enumerate(mask):
        for x, counts in enumerate(line):
            if counts:
                p, q = (softmax([channel[y][x] for channel in side], 2) for side in (student, teacher))
                values.append(4 * divergence(q, p))
    return mean(values) if values else 0.0


# --- relations of rows: whole batches ---------------------------------------------------------------------------------


def similarity_preserving(student: Matrix, teacher: Matrix) -> float:
    def gram(rows: Matrix) -> Vector:
        return flat([unit([dot(flat(one), flat(two)) for two in rows]) for one in rows])

    return mean_square(gram(student), gram(teacher))


def relational_distance(student: Matrix, teacher: Matrix) -> float:
    def distances(rows: Matrix) -> Vector:
        found = [math.dist(one, two) for one in rows for two in rows]
        typical = mean(value for value in found if value > 0)
        return [value / typical for value in found]

    return mean(huber(d - e) for d, e in zip(distances(student), distances(teacher), strict=True))


def relational_angle(student: Matrix, teacher: Matrix) -> float:
    def cosines(rows: Matrix) -> Vector:
        found = []
        for i, here in enumerate(rows):
            ways = [[b - a for a, b in zip(here, there, strict=True)] for there in rows]
            ways = [way if j == i else unit(way) for j, way in enumerate(ways)]
            found += [dot(one, two) for one in ways for two in ways]
        return found

    return mean(huber(a - b) for a, b in zip(cosines(student), cosines(teacher), strict=True))


def probabilistic_transfer(student: Matrix, teacher: Matrix) -> float:
    def neighbours(rows: Matrix) -> Vector:
        rows = [[value / (math.sqrt(dot(row, row)) + 1e-7) for value in row] for row in rows]
        similar = [[(dot(one, two) + 1) / 2 for two in rows] for one in rows]
        return [value / sum(row) for row in similar for value in row]

    return mean(q * math.log((q + 1e-7) / (p + 1e-7)) for p, q in zip(neighbours(student), neighbours(teacher), strict=True))


def correlation_congruence(student: Matrix, teacher: Matrix) -> float:
    def kernel(rows: Matrix) -> Vector:
        rows = [unit(row) for row in rows]
        return [
            math.exp(-0.6) * sum((0.6 * dot(one, two)) ** power / math.factorial(power) for power in range(4))
            for one in rows
            for two in rows
        ]

    return mean_square(kernel(student), kernel(teacher))


# --- contrast: whole batches ------------------------------------------------------------------------------------------


def found(queries: Matrix, keys: Matrix, scale: float) -> float:
    """Mean of -log softmax at the own row."""
    return -mean(math.log(softmax([scale * dot(unit(query), unit(key)) for key in keys])[own]) for own, query in enumerate(queries))


def in_batch_contrast(student: Matrix, teacher: Matrix) -> float:
    return (found(student, teacher, 2) + found(teacher, student, 2)) / 2


def interactive_contrast(student: list[Matrix], teacher: list[Matrix]) -> float:
    (images, texts), (their_images, their_texts) = ([list(side) for side in zip(*rows, strict=True)] for rows in (student, teacher))
    return (found(images, their_texts, 3) + found(texts, their_images, 3)) / 2


def contrastive_relation(student: list[Matrix], teacher: list[Matrix]) -> float:
    def finding(rows: list[Matrix], scale: float) -> Matrix:
        images, texts = ([unit(row[side]) for row in rows] for side in (0, 1))
        ways = ((images, texts), (texts, images))
        return [softmax([scale * dot(one, two) for two in there]) for here, there in ways for one in here]

    return mean(divergence(q, p) for p, q in zip(finding(student, 3), finding(teacher, 5), strict=True))


def contrastive_representation(student: Vector, teacher: Vector, places: list[int]) -> float:
    value = 0.0
    for anchor, bank, log_z in ((student, OTHER_BANK.tolist(), 3.0), (teacher, BANK.tolist(), 4.0)):
        chances = [math.exp(dot(anchor, bank[place]) / 2 - log_z) for place in places]
        noise = 4 / 20
        value -= math.log(chances[0] / (chances[0] + noise + 1e-7))
        value -= sum(math.log(noise / (chance + noise + 1e-7)) for chance in chances[1:])
    return value


# --- embeddings, hidden states, scores --------------------------------------------------------------------------------


def embedding_cosine(student: Vector, teacher: Vector) -> float:
    return 1 - dot(unit(student), unit(teacher))


def embedding_mse(student: Vector, teacher: Vector) -> float:
    return mean_square(unit(student), unit(teacher))


def hidden_mse(student: Matrix, teacher: Matrix, mask: list[bool]) -> float:
    return mean(mean_square(s, t) for s, t, counts in zip(student, teacher, mask, strict=True) if counts)


def hidden_cosine(student: Matrix, teacher: Matrix, mask: list[bool]) -> float:
    return mean(embedding_cosine(s, t) for s, t, counts in zip(student, teacher, mask, strict=True) if counts)


def patient_hidden(student: Matrix, teacher: Matrix) -> float:
    return sum(6 * embedding_mse(s, t) for s, t in zip(student, teacher, strict=True))


def score_margin(student: Vector, teacher: Vector) -> float:
    return mean(((student[0] - s) - (teacher[0] - t)) ** 2 for s, t in zip(student[1:], teacher[1:], strict=True))


# --- attention --------------------------------------------------------------------------------------------------------


def looks(queries: Matrix, keys: Matrix, mask: list[bool]) -> Matrix:
    """Where each token that counts looks, for two heads."""
    width = len(queries[0]) // 2
    there = [token for token, counts in enumerate(mask) if counts]
    heads = [slice(0, width), slice(width, 2 * width)]
    return [softmax([dot(queries[query][head], keys[key][head]) / math.sqrt(width) for key in there]) for head in heads for query in there]


def attention_distribution(student: Maps, teacher: Maps, mask: list[bool]) -> float:
    pairs = zip(looks(student[0], student[1], mask), looks(teacher[0], teacher[1], mask), strict=True)
    return mean(divergence(q, p) for p, q in pairs)


def self_relation(student: Matrix, teacher: Matrix, mask: list[bool]) -> float:
    return attention_distribution([student, student], [teacher, teacher], mask)


def attention_scores(student: Maps, teacher: Maps) -> float:
    kept = ([value if value > -2 else 0.0 for value in flat(side)] for side in (student, teacher))
    return mean_square(*kept)


# --- the table --------------------------------------------------------------------------------------------------------


def same_activity(teacher: Tensor) -> Tensor:
    """Three equal channels that are as active as the teacher's four are on average, at the smaller size."""
    strength = functional.adaptive_avg_pool2d(teacher, (2, 3)).abs().pow(3).mean(1, keepdim=True)
    return strength.pow(1 / 3).expand(-1, 3, -1, -1)


def smaller(teacher: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(teacher, (2, 3))


def at_the_margin(teacher: Tensor) -> Tensor:
    return torch.where(teacher > 0, 2.0, -2.0).to(teacher.dtype)


def above_the_margins(teacher: Tensor) -> Tensor:
    return torch.maximum(teacher, MARGINS.to(teacher.dtype)[:, None, None])


def of(by_hand: Callable[..., Any], student: Kind, *evidence: Kind, **more: Any) -> Definition:
    """One line of the table; the least is where student and teacher say the same, unless told otherwise."""
    return Definition(by_hand, evidence or (student,), student, **{"least_at": first, "broadcast_refused": False, **more})


DEFINITIONS = {
    "layers.hint": of(hint, MAPS),
    "layers.feature_alignment": of(feature_alignment, SMALL_MAPS, MAPS, least_at=smaller),
    "layers.hierarchical_context": of(hierarchical_context, UNEVEN_MAPS),
    "layers.variational_information": of(
        variational_information, SMALL_MAPS, options={"raw_variances": VARIANCES}, zero_at_least=False, negative=True
    ),
    "layers.activation_boundaries": of(activation_boundaries, SMALL_MAPS, options={"margin": 2.0}, least_at=at_the_margin),
    "layers.partial_distance": of(partial_distance, SMALL_MAPS, options={"margins": MARGINS}, least_at=above_the_margins),
    "layers.factor_transfer": of(factor_transfer, SMALL_MAPS),
    "attention_maps.attention_transfer": of(attention_transfer, SMALL_MAPS, OTHER_MAPS, options={"power": 3.0}, least_at=same_activity),
    "attention_maps.class_attention": of(class_attention, UNEVEN_MAPS),
    "channels.neuron_selectivity": of(neuron_selectivity, SMALL_MAPS),
    "channels.channel_correlation": of(channel_correlation, MAPS),
    "channels.solution_flow": of(solution_flow, TWO_MAPS, call=in_pairs, steep=True),
    "dense.channel_distribution": of(channel_distribution, SMALL_MAPS, options={"temperature": 3.0}, shift_changes_nothing=True),
    "dense.pixel_cross_entropy": of(pixel_cross_entropy, MAPS, PIXEL_LABELS, least_at=None, shift_changes_nothing=True),
    "dense.pixel_soft_target": of(
        pixel_soft_target, MAPS, MAPS, PIXELS_THAT_COUNT, options={"temperature": 2.0}, shift_changes_nothing=True, call=with_mask
    ),
    "relations.similarity_preserving": of(similarity_preserving, EMBEDDINGS, coupled=True),
    "relations.relational_distance": of(relational_distance, EMBEDDINGS, coupled=True, shift_changes_nothing=False),
    "relations.relational_angle": of(relational_angle, EMBEDDINGS, coupled=True),
    "relations.probabilistic_transfer": of(probabilistic_transfer, EMBEDDINGS, coupled=True, negative=True, least_at=None),
    "relations.correlation_congruence": of(correlation_congruence, EMBEDDINGS, coupled=True, options={"gamma": 0.3, "order": 3}),
    "contrastive.in_batch_contrast": of(
        in_batch_contrast, EMBEDDINGS, coupled=True, options={"temperature": 0.5, "symmetric": True}, least_at=None
    ),
    "contrastive.interactive_contrast": of(
        interactive_contrast, TWO_EMBEDDINGS, coupled=True, options={"scale": 3.0}, least_at=None, call=in_pairs
    ),
    "contrastive.contrastive_relation": of(
        contrastive_relation,
        TWO_EMBEDDINGS,
        coupled=True,
        options={"student_scale": 3.0, "teacher_scale": 5.0},
        least_at=None,
        negative=True,
        call=in_pairs,
    ),
    "contrastive.contrastive_representation": of(
        contrastive_representation,
        EMBEDDINGS,
        EMBEDDINGS,
        PLACES,
        options={"temperature": 2.0, "student_log_partition": 3.0, "teacher_log_partition": 4.0},
        least_at=None,
        call=with_banks,
    ),
    "embeddings.embedding_cosine": of(embedding_cosine, EMBEDDINGS),
    "embeddings.embedding_mse": of(embedding_mse, EMBEDDINGS, options={"normalised": True}),
    "embeddings.hidden_mse": of(hidden_mse, HIDDEN, HIDDEN, TOKENS_THAT_COUNT, call=with_mask),
    "embeddings.hidden_cosine": of(hidden_cosine, HIDDEN, HIDDEN, TOKENS_THAT_COUNT, call=with_mask),
    "embeddings.patient_hidden": of(patient_hidden, HIDDEN),
    "embeddings.score_margin": of(score_margin, CANDIDATES, shift_changes_nothing=True, steep=True),
    "attentions.attention_distribution": of(
        attention_distribution, TWO_HIDDEN, TWO_HIDDEN, TOKENS_THAT_COUNT, options={"heads": 2}, call=in_pairs_with_mask
    ),
    "attentions.self_relation": of(self_relation, HIDDEN, HIDDEN, TOKENS_THAT_COUNT, options={"heads": 2}, call=with_mask),
    "attentions.attention_scores": of(attention_scores, SCORES, options={"masked_below": -2.0}),
}
