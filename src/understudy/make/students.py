"""Untrained students by name, with the preprocessing fitted on the encoded training rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from understudy.data import (
    texts,
    tokenizing,
)
from understudy.data.pairs import PairEncoding
from understudy.errors import RecipeError, did_you_mean
from understudy.make.rows import Loaded, encoder_of
from understudy.sections import FurtherSection
from understudy.students import convnet, fusion, mlp, preprocessing, speech, text, trees
from understudy.students.student import Student
from understudy.tasks import Task

TREES = ("tree", "boosted")
FUSION, DUAL = "fusion", "dual"
BRANCHES = {"image": "convnet", "text": "text.bag", "audio": "speech.convnet", "table": "mlp", "array": "mlp"}
"""What reads an input of each kind where the recipe does not say."""


def is_estimator(model: str) -> bool:
    """Whether the student is fitted by scikit-learn or LightGBM rather than by gradient steps."""
    return model in TREES or model.startswith("sklearn:")


def is_custom(model: str) -> bool:
    """Whether the student is a torch module of the user's own."""
    return ":" in model and not model.startswith(("timm:", "keras:", "sklearn:"))


def build_student(
    model: str, options: dict[str, Any], loaded: Loaded, encoded: torch.Tensor, labels: np.ndarray[Any, Any] | None, *, seed: int, name: str
) -> Student:
    """An untrained model by name, with the preprocessing fitted on the encoded training rows."""
    task, kind = loaded.task, loaded.rows.kind
    if kind == "pair" or model in (FUSION, DUAL):
        return _fusion(model, options, loaded, encoded, labels, seed=seed, name=name)
    if (kind == "text") != model.startswith("text.") and not is_custom(model):
        there = "are texts, which text.bag, text.transformer and text.static" if kind == "text" else f"are of kind {kind!r}, which others"
        raise RecipeError(f"the model {model!r} does not read these rows: they {there} read; set student.model", code="U411")
    options, own = {name: value for name, value in options.items() if name != "prepare"}, options.get("prepare")
    if own is not None and (kind not in ("image", "audio") or is_estimator(model)):
        told = f"options.prepare is for networks on images and sound; {model!r} reads rows of kind {kind!r}: take it out"
        raise RecipeError(told, code="U504")
    if is_estimator(model):
        if task.kind == "recognition":
            raise RecipeError(
                f"{model} gives one answer for a clip; a recognition needs one for each frame: use speech.convnet", code="U428"
            )
        prepared = preprocessing.fit_preprocessing(encoded, kind, loaded.encoding, scale=False, flatten=True, rate=loaded.rate)
        if model.startswith("sklearn:"):
            estimator = trees.estimator(model, options, seed=seed)
        elif model == "tree":
            estimator = _called(trees.tree, task, options, seed=seed)
        else:
            estimator = _called(trees.boosted, task, options, seed=seed)
        return Student(name, task, encoding=loaded.encoding, preprocessing=prepared, estimator=estimator, reads=loaded.reads)
    flat = model == "mlp"
    prepared = preprocessing.fit_preprocessing(encoded, kind, loaded.encoding, scale=True, flatten=flat, rate=loaded.rate)
    if own is not None:
        prepared = preprocessing.sound_as_asked(prepared, own, encoded) if kind == "audio" else preprocessing.as_asked(prepared, own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "text":
            network = _text_network(model, options, loaded, seed)
        else:
            network = _network(model, options, prepared(encoded[:2]), task, kind, seed)
    values = labels if task.kind == "regression" else None
    module = preprocessing.assemble(prepared, network, values=values)
    return Student(name, task, encoding=loaded.encoding, module=module, reads=loaded.reads)


def _fusion(
    model: str, options: dict[str, Any], loaded: Loaded, encoded: torch.Tensor, labels: np.ndarray[Any, Any] | None, *, seed: int, name: str
) -> Student:
    """A network that reads several inputs: a branch for each, built by name, and a head over all of them."""
    layout, task = loaded.encoding, loaded.task
    wanted = DUAL if task.kind == "matching" else FUSION
    if isinstance(layout, PairEncoding) and model != wanted and model in (DUAL, FUSION):
        raise RecipeError(f"{model!r} is not for a {task.kind} task; take the model {wanted!r}", code="U516")
    if not isinstance(layout, PairEncoding) or model != wanted:
        told = "reads one input of these rows" if model != FUSION else "joins several inputs, and these rows have one"
        raise RecipeError(f"{model!r} {told}: name one in inputs, or take the model 'fusion' for several", code="U516")
    said = dict(options)
    width, drop = task.width or int(said.pop("width", 64)), float(said.pop("drop", 0.0))
    vector = Task("multilabel", tuple(map(str, range(width))))
    branches: dict[str, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for each, kind, one, part in zip(layout.names, layout.kinds, layout.encodings, layout.split(encoded), strict=True):
            own = dict(said.pop(each, {}))
            called = str(own.pop("model", BRANCHES[kind]))
            prepared = preprocessing.fit_preprocessing(part, kind, one, scale=True, flatten=called == "mlp", rate=loaded.rate)
            half, features = replace(loaded, task=vector, encoding=one), prepared(part[:2])
            network = _text_network(called, own, half, seed) if kind == "text" else _network(called, own, features, vector, kind, seed)
            branches[each] = preprocessing.assemble(prepared, network)
        if model == DUAL and said:
            raise RecipeError(
                f"student.options for dual: there is no {next(iter(said))!r}; {did_you_mean(next(iter(said)), layout.names)}", code="U063"
            )
        head = nn.Identity() if model == DUAL else _called(fusion.fusion_head, width * len(branches), task.outputs, said)
    blanks = {each: layout.blank(each) for each in layout.names}
    joint = fusion.Fusion(branches, head, blanks=blanks, drop=drop)
    values = labels if task.kind == "regression" else None
    module = preprocessing.assemble(fusion.Apart(layout), joint, values=values)
    return Student(name, task, encoding=layout, module=module, reads=loaded.reads)


def _called(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    *before, said = args
    try:
        return function(*before, **said, **options)
    except TypeError as error:
        strange = next((name for name in said if name not in inspect.signature(function).parameters), None)
        known = [name for name, each in inspect.signature(function).parameters.items() if each.kind is each.KEYWORD_ONLY and name != "seed"]
        told = error if strange is None else f"there is no {strange!r}; {did_you_mean(strange, known)}"
        raise RecipeError(f"student.options for {function.__name__}: {told}", code="U063") from None


def _text_network(model: str, options: dict[str, Any], loaded: Loaded, seed: int) -> nn.Module:
    fitted, task = loaded.encoding, loaded.task
    assert isinstance(fitted, tokenizing.TextEncoding)
    shared = {"padding": fitted.padding, "pairs": fitted.pairs}
    if model == "text.bag":
        return _called(text.bag, fitted.size, task.outputs, {**shared, **options})
    if model == "text.static":
        return _static_network(options, loaded, shared)
    if model == "text.transformer" and "cut" in options:
        return _cut_network(options, loaded, shared)
    if model == "text.transformer":
        return _called(text.transformer, fitted.size, task.outputs, {**shared, "length": fitted.length, **options})
    if is_custom(model):
        from understudy.adapters import torch_module

        return torch_module.build(model, options, seed=seed)
    raise RecipeError(f"no model {model!r}; {did_you_mean(model, ['text.bag', 'text.transformer', 'text.static'])}", code="U063")


def _cut_network(options: dict[str, Any], loaded: Loaded, shared: dict[str, Any]) -> nn.Module:
    """Some layers of a published encoder under a new head."""
    from understudy.adapters import hugging_face

    assert isinstance(loaded.encoding, tokenizing.TextEncoding) and loaded.source is not None
    rest = {name: value for name, value in options.items() if name not in ("cut", "encoder")}
    place, said = encoder_of(loaded.source, options), options["cut"]
    body = hugging_face.cut(place, [said] if isinstance(said, int) else said, padding=int(shared["padding"]), length=loaded.encoding.length)
    return _called(text.headed, body, body.width, loaded.task.outputs, {"pairs": shared["pairs"], **rest})


STATIC = ("encoder", "width", "smoothing", "corpus", "corpus_epochs", "corpus_lr", "relations")
"""Options of text.static that say how its vectors are made; the others are those of its head."""


def _static_network(options: dict[str, Any], loaded: Loaded, shared: dict[str, Any]) -> nn.Module:
    """Static vectors of the encoder's tokens, made once and kept in the run's cache, under a head."""
    from understudy.adapters import static_vectors

    assert isinstance(loaded.encoding, tokenizing.TextEncoding) and loaded.source is not None
    said = {name: options[name] for name in STATIC if name in options}
    made = static_vectors.distill(
        encoder_of(loaded.source, options),
        loaded.encoding,
        width=int(said.get("width", 256)),
        smoothing=float(said.get("smoothing", 1e-3)),
        corpus=_corpus(loaded, said.get("corpus", [])),
        epochs=int(said.get("corpus_epochs", 0)),
        lr=float(said.get("corpus_lr", 1e-3)),
        relations=float(said.get("relations", 0.0)),
        cache=loaded.cache,
    )
    rest = {name: value for name, value in options.items() if name not in said}
    return _called(text.static, made.vectors, made.weights, loaded.task.outputs, {**shared, **rest})


def _corpus(loaded: Loaded, files: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """The training texts and those of further files, each once."""
    assert loaded.source is not None
    said = loaded.source.data
    parts = [loaded.rows.part("train").inputs.ravel()]
    for each in [FurtherSection.model_validate(file) for file in files]:
        source = texts.read_texts(Path(said.root, each.path), text=each.text or said.text, join=each.join, encoding=said.encoding)
        parts.append(source.inputs.ravel())
    return np.concatenate(parts)


SPEECH: dict[str, Callable[..., nn.Module]] = {
    "speech.convnet": speech.convnet,
    "speech.recurrent": speech.recurrent,
    "speech.transformer": speech.transformer,
}


def _network(model: str, options: dict[str, Any], features: torch.Tensor, task: Task, kind: str, seed: int) -> nn.Module:
    if model in SPEECH:
        if kind != "audio":
            raise RecipeError(f"{model} hears sound; these rows are of kind {kind!r}: use mlp or convnet", code="U427")
        return _called(SPEECH[model], features.shape[1] - 1, task.outputs, options, frames=task.kind == "recognition")
    if task.kind == "recognition":
        there = ", ".join(SPEECH)
        raise RecipeError(f"{model} gives one answer for a clip; a recognition needs one for each frame: use {there}", code="U428")
    if model == "mlp":
        return _called(mlp.mlp, features.shape[1], task.outputs, options)
    if model == "convnet":
        if features.ndim != 4:
            other = "sound: use speech.convnet" if kind == "audio" else "a table or flat arrays: use mlp, tree or boosted"
            raise RecipeError(f"a convnet reads images; these rows are {other}", code="U063")
        return _called(convnet.convnet, features.shape[1], task.outputs, {"size": tuple(features.shape[2:]), **options})
    if model.startswith("timm:"):
        from understudy.adapters import timm_models

        said = dict(options)
        pretrained = bool(said.pop("pretrained", False))
        return timm_models.build(
            model.removeprefix("timm:"), classes=task.outputs, pretrained=pretrained, in_chans=features.shape[1], options=said
        )
    if model.startswith("keras:"):
        from understudy.adapters import keras

        return keras.student(model.removeprefix("keras:"), features=features.shape[1:], classes=task.outputs, options=options, seed=seed)
    if ":" in model:
        from understudy.adapters import torch_module

        return torch_module.build(model, options, seed=seed)
    known = ["tree", "boosted", "mlp", "convnet", *SPEECH, "timm:NAME", "keras:NAME", "package.module:factory", "sklearn:package.Class"]
    raise RecipeError(f"no model {model!r}; {did_you_mean(model, known)}", code="U063")
