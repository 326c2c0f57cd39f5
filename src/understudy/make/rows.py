"""Rows, their encoding and their views, from what a recipe says of its data."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from understudy import pairing
from understudy.data import (
    arrays,
    audio,
    callables,
    encoding,
    images,
    joining,
    keys,
    labelling,
    splitting,
    synthetic,
    tables,
    tars,
    texts,
    tokenizing,
)
from understudy.data._source import Source
from understudy.data.pairs import PairEncoding
from understudy.data.rows import Paired, Rows
from understudy.errors import DataError, Problem, RecipeError, did_you_mean
from understudy.recipe import Recipe
from understudy.sections import DataSection
from understudy.tasks import Task

Encoder = encoding.TableEncoding | tokenizing.TextEncoding | PairEncoding | None
"""What makes raw rows into what a student's graph reads; arrays and images need none."""


@final
@dataclass(frozen=True)
class Loaded:
    """Rows with their splits, what their labels mean, and what was noticed on the way; for `text.static` where they came from."""

    rows: Rows
    task: Task
    encoding: Encoder
    problems: tuple[Problem, ...]
    rate: int = 16000
    source: Recipe | None = None
    cache: Path | None = None
    reads: tuple[str, ...] = ()

    def seen_by(self, names: Sequence[str]) -> Loaded:
        """The rows as a model sees them that reads these inputs only; as they are where they have one input."""
        if not isinstance(self.encoding, PairEncoding):
            return self
        return replace(self, rows=self.rows.only(names), encoding=self.encoding.only(names), reads=tuple(names))


def load_rows(recipe: Recipe, cache: Path | None = None) -> Loaded:
    """Read, label, key and split the rows."""
    said = recipe.data
    pairing.check_names(recipe)
    places = {"train": said.train, "validation": said.validation, "test": said.test}
    sources = {part: _source(said, part, place, cache) for part, place in places.items() if place is not None}
    sources["train"] = _grouped(recipe, sources)
    sources = _joined(recipe, sources)
    problems = [problem for source in sources.values() for problem in source.problems]
    task, labels = _labels(recipe, sources, problems)
    sources = _same_length(sources)
    _same_inputs(sources)
    parts = {part: _rows(source, labels[part], sources["train"]) for part, source in sources.items()}
    if recipe.rows.take:
        parts["train"] = splitting.some(parts["train"], recipe.rows.take, seed=recipe.split.seed)
    rows = _split(recipe, parts, task)
    rows, more = _without_overlap(rows, said.overlap)
    rows = rows if recipe.rows.labelled is None else _labelled(rows, task, recipe.rows.labelled, recipe.split.seed)
    fitted = _encoder(recipe, rows.part("train"))
    return Loaded(rows, task, fitted, (*problems, *more, *_cut(rows, fitted)), said.rate, recipe, cache)


def _encoder(recipe: Recipe, train: Rows) -> Encoder:
    """What a student reads of rows of this kind, learned from the training rows; None where it reads them as they are."""
    if isinstance(train.inputs, Paired):
        return PairEncoding.fit(train.inputs, {name: _encoder(recipe, train.only([name])) for name in train.inputs.parts})
    if train.kind == "text":
        return _tokenizer(recipe, train.inputs)
    return encoding.TableEncoding.fit(train.inputs, recipe.data.max_levels) if train.kind == "table" else None


def _cut(rows: Rows, fitted: Encoder) -> list[Problem]:
    """A warning where many texts are longer than what is read of them."""
    if isinstance(fitted, PairEncoding):
        return [found for name in fitted.names for found in _cut(rows.only([name]), fitted.only([name]))]
    return fitted.check(rows.inputs[:: max(1, len(rows) // 2000)]) if isinstance(fitted, tokenizing.TextEncoding) else []


def _grouped(recipe: Recipe, sources: dict[str, Source]) -> Source:
    """The training rows, with a split that keeps groups whole where groups were asked for."""
    train, asked = sources["train"], recipe.data.group
    if asked is None or train.split is not None:
        return train
    if train.groups is None:
        raise DataError(
            f"data.group = {asked!r} is read of sound only; the rows are of kind {train.kind!r}: mark a data.split", code="U425"
        )
    for part in ("validation", "test"):
        theirs = sources[part].groups if part in sources else None
        shared = set() if theirs is None else set(train.groups) & set(theirs)
        if shared:
            told = f"{asked} {', '.join(sorted(map(str, shared))[:6])} is in data.train and in data.{part}"
            raise DataError(f"{told}: leave data.{part} out, and whole groups are split off data.train", code="U425")
    shares = {
        part: 0.0 if part in sources else share for part, share in (("validation", recipe.split.validation), ("test", recipe.split.test))
    }
    return replace(train, split=splitting.split_groups(train.groups, seed=recipe.split.seed, **shares))


def _tokenizer(recipe: Recipe, train: Any) -> tokenizing.TextEncoding:
    """The student's tokenizer: learned from the training texts, or the one that data.tokenizer names."""
    said, place = recipe.data, recipe.data.tokenizer
    begun = _begun(recipe)
    if place is None and begun:
        place, *others = dict.fromkeys(encoder_of(recipe, options) for options in begun)
        if others:
            told = f"{place} and {others[0]}: the rows have one tokenizer; begin both models with the same encoder"
            raise RecipeError(f"teacher and student begin with different encoders, {told}", code="U409")
    if place is None:
        return tokenizing.TextEncoding.fit(train, vocabulary=said.vocabulary, length=said.max_length)
    if place.startswith(("sentences:", "hf:")):
        from understudy.adapters import _pretrained

        file = _pretrained.folder_of(place) / "tokenizer.json"
    else:
        file = Path(place) / "tokenizer.json" if Path(place).is_dir() else Path(place)
    special = any("cut" in options for options in begun)
    return tokenizing.TextEncoding.read(file, length=said.max_length, pairs=train.ndim == 2, special=special)


def _joined(recipe: Recipe, sources: dict[str, Source]) -> dict[str, Source]:
    """Connected words made of the clips of each part, where strings were asked for; no clip is in two splits."""
    said = recipe.data
    if not said.strings:
        return sources
    train = sources["train"]
    if train.kind != "audio":
        raise DataError(f"data.strings joins clips of sound, the rows are of kind {train.kind!r}", code="U429")
    if train.split is None:
        shares = {
            part: 0.0 if part in sources else share
            for part, share in (("validation", recipe.split.validation), ("test", recipe.split.test))
        }
        train = replace(train, split=splitting.split_groups(_names(train), seed=recipe.split.seed, **shares))
    made = {}
    for number, (part, source) in enumerate((sources | {"train": train}).items()):
        count = max(1, round(said.strings * len(source.inputs) / len(train.inputs)))
        made[part] = joining.join_clips(source, count, said.words, rate=said.rate, seed=recipe.split.seed * 3 + number)
    return made


def _source(said: DataSection, part: str, place: str, cache: Path | None) -> Source:
    """The rows of one part, with all their inputs."""
    if not said.inputs:
        return _read(said, place, cache)
    return pairing.read_pairs(said, part, lambda one, where: _read(one, where, cache))  # type: ignore[arg-type]


def _read(said: DataSection, place: str, cache: Path | None) -> Source:
    label = said.label if said.labels is None else None
    shown: dict[str, Any] = {"image_size": said.image_size, "grey": said.grey}
    if said.kind == "text" or (said.kind == "auto" and said.text is not None):
        return _read_text(said, place, label)
    if ":" in place and not Path(place).exists() and not Path(said.root, place).exists():
        return callables.read_callable(
            place, said.kind, label=label, ignore=said.ignore, split_column=said.split, cache=_cached(cache, Path(place)), **shown
        )
    path = Path(said.root, place)
    name = path.name.lower()
    if name.endswith(tars.ENDINGS):
        return tars.read_tars(path, said.kind, cache=_cached(cache, path), **shown)
    if said.kind == "audio" or (said.kind == "auto" and audio.has_audio(path)):
        return audio.read_audio(
            path,
            rate=said.rate,
            seconds=said.seconds,
            labels_csv=Path(said.root, said.labels) if said.labels is not None else None,
            file_column=said.file,
            label_column=said.label,
            group=said.group,
            encoding=said.encoding,
        )
    if name.endswith(".npz"):
        source = arrays.read_arrays(path, "auto" if said.kind == "table" else said.kind)
        if source.kind == "image" and said.image_size is not None:
            return replace(source, inputs=images.resized(source.inputs, said.image_size))
        return source
    if said.kind == "auto" and (name.endswith((".jsonl", ".jsonl.gz", ".ndjson")) or texts.has_texts(path)):
        return _read_text(said, place, label)
    if path.is_dir() or name.endswith(".zip"):
        labels_csv = Path(said.root, said.labels) if said.labels is not None else None
        return images.read_images(
            path,
            **shown,
            labels_csv=labels_csv,
            file_column=said.file,
            label_column=said.label or "label",
            encoding=said.encoding,
            cache=_cached(cache, path),
        )
    return tables.read_table(path, label=label, ignore=said.ignore, missing=said.missing, encoding=said.encoding, split_column=said.split)


def _cached(cache: Path | None, path: Path) -> Path | None:
    """The file in which the rows of a place are kept."""
    return None if cache is None else cache / f"{path.stem.replace(':', '-')}-{zlib.crc32(str(path.resolve()).encode()):08x}.npy"


def _read_text(said: DataSection, place: str, label: str | list[str] | None) -> Source:
    options: dict[str, Any] = {"text": said.text, "join": said.join, "label": label, "split_column": said.split}
    path = Path(said.root, place)
    if ":" in place and not path.exists():
        import pandas as pd

        source = callables.read_callable(place)
        if not isinstance(source.inputs, pd.DataFrame):
            raise DataError(f"{place} gave rows of kind {source.kind}; texts come as a DataFrame with a column of them", code="U400")
        return texts.texts_of(source.inputs, place, None, **options)
    return texts.read_texts(path, encoding=said.encoding, **options)


def _labels(recipe: Recipe, sources: dict[str, Source], problems: list[Problem]) -> tuple[Task, dict[str, Any]]:
    """One Task for all parts: classes are the union of the names seen, unless they are declared."""
    import pandas as pd

    if recipe.task == "matching":
        return pairing.matching(recipe, sources)
    given = {part: source.labels for part, source in sources.items() if source.labels is not None}
    declared = class_names(recipe.data) or next((list(source.classes) for source in sources.values() if source.classes), None)
    if not given:
        task, _, found = labelling.decide(recipe.task, None, declared)
        problems += found
        return task, dict.fromkeys(sources)
    joined = pd.concat([pd.DataFrame(labels) for labels in given.values()], ignore_index=True)
    raw = joined if joined.shape[1] > 1 else joined.iloc[:, 0]
    names = np.concatenate([_names(sources[part]) for part in given])
    word = recipe.task
    if recipe.data.separator is not None and joined.shape[1] == 1:
        raw, word = labelling.spread(joined.iloc[:, 0], recipe.data.separator, declared, names), "multilabel"
    task, labels, found = labelling.decide(word, raw, declared, names)
    problems += found
    assert labels is not None
    ends = np.cumsum([len(given[part]) for part in given])[:-1]
    split = dict(zip(given, np.split(labels, ends), strict=True))
    return task, {part: split.get(part) for part in sources}


def class_names(said: DataSection) -> list[str] | None:
    """The declared classes, of the list or of the file that names them; None where nothing is declared."""
    return labelling.read_classes(Path(said.root, said.classes)) if isinstance(said.classes, str) else said.classes


def _names(source: Source) -> np.ndarray[Any, Any]:
    return np.array([f"row {i}" for i in range(len(source.inputs))]) if source.names is None else np.asarray(source.names)


def _rows(source: Source, labels: Any, like: Source) -> Rows:
    # keyed on the columns that training rows have: a further column must not hide that a row is the same
    inputs = _like(source.inputs, like.inputs, source.kind)
    return Rows(source.kind, inputs, keys.content_keys(inputs, source.kind), labels, split=source.split, names=_names(source))


def _same_length(sources: dict[str, Source]) -> dict[str, Source]:
    """Sound of several files with zeros up to one length; other rows as they are."""
    first = sources["train"].inputs
    if isinstance(first, Paired):
        made = dict(sources)
        for name in first.parts:
            halves = _same_length({part: Source(source.inputs.kinds[name], source.inputs[name]) for part, source in sources.items()})
            made = {
                part: replace(source, inputs=replace(source.inputs, parts={**source.inputs.parts, name: halves[part].inputs}))
                for part, source in made.items()
            }
        return made
    if any(source.kind != "audio" for source in sources.values()):
        return sources
    longest = max(source.inputs.shape[1] for source in sources.values())
    return {
        part: replace(source, inputs=np.pad(source.inputs, ((0, 0), (0, longest - source.inputs.shape[1]))))
        for part, source in sources.items()
    }


def _like(inputs: Any, train: Any, kind: str) -> Any:
    if isinstance(inputs, Paired):
        return replace(inputs, parts={name: _like(part, train[name], inputs.kinds[name]) for name, part in inputs.parts.items()})
    return inputs[list(train.columns)] if kind == "table" else inputs


def _same_inputs(sources: dict[str, Source]) -> None:
    first = sources["train"]
    if isinstance(first.inputs, Paired):
        for name, kind in first.inputs.kinds.items():
            halves = {part: Source(source.inputs.kinds[name], source.inputs[name]) for part, source in sources.items()}
            _same_inputs({"train": Source(kind, first.inputs[name]), **halves})
        return
    for part, source in sources.items():
        if source.kind != first.kind:
            raise DataError(f"the train rows are of kind {first.kind!r}, the {part} rows of kind {source.kind!r}", code="U060")
        if source.kind == "table":
            missing = [column for column in first.inputs.columns if column not in source.inputs.columns]
            if missing:
                advice = did_you_mean(missing[0], map(str, source.inputs.columns))
                raise DataError(f"the {part} rows have no column {missing[0]!r}; {advice}", code="U060")
        elif source.inputs.shape[1:] != first.inputs.shape[1:]:
            raise DataError(f"train rows have shape {first.inputs.shape[1:]}, {part} rows {source.inputs.shape[1:]}", code="U060")


def _split(recipe: Recipe, parts: dict[str, Rows], task: Task) -> Rows:
    said = recipe.split
    return splitting.combine(
        parts["train"],
        parts.get("validation"),
        parts.get("test"),
        task=task,
        validation_part=said.validation,
        test_part=said.test,
        seed=said.seed,
    )


def _labelled(rows: Rows, task: Task, count: int, seed: int) -> Rows:
    """Rows of which so many training rows keep their labels, drawn within classes (or quantiles); validation and test keep theirs."""
    train = np.flatnonzero(rows.split == "train")
    known = train[:0] if rows.labels is None or task.kind == "matching" else train[task.labelled(rows.labels[train])]
    if count >= len(known):
        raise DataError(
            f"rows.labelled = {count:,}, and {len(known):,} training rows have a label; leave it out or take fewer", code="U530"
        )
    if count < len(task.classes):
        raise DataError(f"rows.labelled = {count} is less than one of each of the {len(task.classes)} classes", code="U530")
    drawn = splitting.split_rows(replace(rows.take(known), split=None), task, validation=count / len(known), test=0.0, seed=seed)
    assert rows.labels is not None
    labels = rows.labels.copy()
    labels[known[drawn.split != "validation"]] = -1 if np.issubdtype(labels.dtype, np.integer) else np.nan
    return replace(rows, labels=labels)


def _without_overlap(rows: Rows, overlap: str) -> tuple[Rows, list[Problem]]:
    if overlap != "drop":
        return rows, []
    shared = splitting.overlap(rows)
    if not len(shared):
        return rows, []
    keep = np.setdiff1d(np.arange(len(rows)), shared)
    text = f"{len(shared):,} rows that are also held-out rows were taken out of training (data.overlap = 'drop')"
    return rows.take(keep), [Problem("U129", text, "warning")]


def synthetic_rows(recipe: Recipe, rows: Rows, task: Task, *, share: float = 1.0, seed: int = 0) -> Rows | None:
    """Rows without labels beside the training rows: MUNGE rows, `rows.synthetic` of each, or a share of the texts of `rows.unlabelled`."""
    said, train = recipe.rows, rows.part("train")
    if said.unlabelled:
        return _unlabelled(recipe, rows, share)
    if not said.synthetic:
        return None
    if train.kind in ("image", "audio", "pair"):
        raise RecipeError(
            "rows.synthetic makes rows of tables and arrays; for images and sound set teaching.views and train.augment", code="U061"
        )
    if train.kind == "text":
        raise RecipeError("rows.synthetic makes rows of tables and arrays; for texts name files in rows.unlabelled", code="U061")
    made = synthetic.munge(train.inputs, multiple=said.synthetic, swap=said.swap, local_variance=said.local_variance, seed=seed)
    found = keys.content_keys(made, train.kind)
    return Rows(train.kind, made, found, names=np.array([f"synthetic {i}" for i in range(len(found))]))


def _unlabelled(recipe: Recipe, rows: Rows, share: float) -> Rows | None:
    """Further texts, each once, without those that are rows already, to learn from or to be judged by."""
    if rows.kind != "text":
        raise RecipeError(f"rows.unlabelled is for texts, the rows are of kind {rows.kind!r}; use rows.synthetic", code="U414")
    said, parts = recipe.data, []
    for each in recipe.rows.unlabelled:
        source = texts.read_texts(Path(said.root, each.path), text=each.text or said.text, join=each.join, encoding=said.encoding)
        if source.inputs.shape[1:] != rows.inputs.shape[1:]:
            raise DataError(f"{each.path} (rows.unlabelled) and data.train differ: single texts in one, pairs in the other", code="U414")
        parts.append(source)
    inputs = np.concatenate([source.inputs for source in parts])
    found = keys.content_keys(inputs, "text")
    known = set(map(tuple, rows.keys.tolist()))
    _, first = np.unique(found, axis=0, return_index=True)
    fresh = np.array([position for position in np.sort(first) if tuple(found[position].tolist()) not in known], dtype=np.int64)
    fresh = fresh[: math.ceil(share * len(fresh))]
    if not len(fresh):
        return None
    names = np.concatenate([_names(source) for source in parts])
    return Rows("text", inputs[fresh], found[fresh], names=names[fresh])


def encode(inputs: Any, kind: str, fitted: Encoder) -> torch.Tensor:
    """Raw inputs as a student's graph reads them."""
    if kind in ("table", "text", "pair"):
        assert fitted is not None
        return torch.from_numpy(np.ascontiguousarray(fitted.encode(inputs)))
    return torch.from_numpy(np.ascontiguousarray(inputs))


def _begun(recipe: Recipe) -> list[dict[str, Any]]:
    """The options of the models that begin with a published encoder: the student, and teachers that are trained here."""
    trained = [member.train for member in (recipe.teacher, *recipe.teacher.members) if member.train is not None]
    said = [(recipe.student.model, recipe.student.options), *((each.model, each.options) for each in trained)]
    return [options for model, options in said if model == "text.static" or (model == "text.transformer" and "cut" in options)]


def encoder_of(recipe: Recipe, options: Mapping[str, Any]) -> str:
    """The encoder that a model of these options begins with: the one it names, or another model of the recipe, or the teacher."""
    cut = "cut" in options
    place = str(next((each["encoder"] for each in (options, *_begun(recipe)) if "encoder" in each), recipe.teacher.source))
    if place.startswith("sentences:") or (cut and place.startswith("hf:")):
        return place
    what = "text.transformer with `cut` begins with layers" if cut else "text.static begins with the vectors"
    raise RecipeError(f"{what} of a sentence encoder: set student.options.encoder = 'sentences:NAME'", code="U416")
