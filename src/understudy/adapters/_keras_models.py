"""Keras and TensorFlow as this package finds them: which backend runs, what a model ends in, and how raw rows reach it.

Keras decides on its backend when it is first imported. Where neither that nor `KERAS_BACKEND` has decided, it is torch, so that
Keras students train here like any torch module. TensorFlow and triton both carry LLVM: triton loaded after TensorFlow ends
the process ("inconsistency in registered CommandLine options"), the other order does not, so triton goes first here.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from understudy.adapters._loading import RawPreparation, numbers, require
from understudy.errors import InputError, TeacherError, did_you_mean
from understudy.teachers import digest

Array = np.ndarray[Any, Any]

SCALES = ("pixels", "unit")
_CHANCES = {"softmax", "sigmoid", "sparsemax"}


def keras_package() -> Any:
    """Keras with the backend that was chosen; torch where nobody has chosen."""
    if "keras" in sys.modules:
        return sys.modules["keras"]
    chosen = os.environ.get("KERAS_BACKEND")
    _triton_first()
    os.environ["KERAS_BACKEND"] = chosen or "torch"
    try:
        with _quiet():
            return require("keras", "keras")
    finally:
        if chosen is None:
            del os.environ["KERAS_BACKEND"]


def tensorflow_package() -> Any:
    """TensorFlow, after triton."""
    _triton_first()
    with _quiet():
        return require("tensorflow", "tensorflow")


def _triton_first() -> None:
    if "tensorflow" not in sys.modules and "triton" not in sys.modules and importlib.util.find_spec("triton") is not None:
        importlib.import_module("triton")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the deprecations that these packages cause in others while they are imported."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        yield


def ending(model: Any) -> str:
    """The name of a Keras model's last activation: `softmax`, `sigmoid`, `linear`, ...; empty where it cannot be seen."""
    layer = model
    while "layers" in dir(layer):
        outputs = getattr(layer, "outputs", None)
        if outputs:
            history = getattr(outputs[0], "_keras_history", None)
            layer = None if history is None else history.operation
        else:
            layer = layer.layers[-1] if layer.layers else None
        if layer is None:
            return ""
    # what only moves numbers about, or changes their type, keeps what came before it
    while type(layer).__name__ in ("Reshape", "Flatten", "Dropout", "Identity", "InputLayer"):
        nodes = [node for node in layer._inbound_nodes if node.input_tensors]
        if not nodes:
            return ""
        layer = nodes[-1].input_tensors[0]._keras_history.operation
        if "layers" in dir(layer):
            return ending(layer)
    if type(layer).__name__ == "Softmax":
        return "softmax"
    activation = getattr(layer, "activation", None)
    return str(getattr(activation, "__name__", "")) if activation is not None else "linear" if "kernel" in dir(layer) else ""


def gives_chances(model: Any) -> bool:
    """Whether a model's last layer turns logits into probabilities."""
    return ending(model) in _CHANCES


def check_ends(model: Any) -> None:
    """TeacherError U452 for a model with several inputs or several outputs."""
    for ends, word in ((getattr(model, "inputs", None), "inputs"), (getattr(model, "outputs", None), "outputs")):
        if ends is not None and len(ends) > 1:
            names = ", ".join(str(end.name) for end in ends)
            raise TeacherError(
                f"{model.name} has {len(ends)} {word} ({names}), a teacher has one: build keras.Model(one_input, one_output) of its "
                "layers and save that, or give a function as teacher.source",
                code="U452",
            )


def check_fits(model: Any, given: Array) -> None:
    """TeacherError U452 for prepared rows whose shape is not the one that a model reads."""
    wanted = model.input_shape if isinstance(model.input_shape, tuple) else ()
    if wanted and (
        len(wanted) != given.ndim or any(want not in (None, got) for want, got in zip(wanted[1:], given.shape[1:], strict=True))
    ):
        told = f"{model.name} reads rows of shape {list(wanted[1:])}, these are {list(given.shape[1:])}"
        raise TeacherError(
            f"{told}: pictures are [height, width, channels] with one channel or three; put a layers.Reshape, Flatten or Permute before "
            "it, or give a function as teacher.source",
            code="U452",
        )


def refuse_chances(model: Any, who: str = "student") -> None:
    """InputError U441 when a student ends in softmax or sigmoid: the losses here soften logits, and would soften twice."""
    if gives_chances(model):
        raise InputError(
            f"{who} {model.name!r} ends in {ending(model)}, and the losses expect logits: they would soften twice. Build it with "
            "Dense(classes) without an activation, or classifier_activation=None for keras.applications",
            code="U441",
        )


def application(name: str) -> tuple[Callable[..., Any], Callable[[Any], Any]]:
    """The function of keras.applications that builds a network, and the one that prepares pixels for it."""
    there = keras_package().applications
    known = [word for word in dir(there) if word[0].isupper()]
    if name not in known:
        raise TeacherError(f"keras.applications has no {name!r}; {did_you_mean(name, known)}", code="U442")
    build = getattr(there, name)
    return build, sys.modules[build.__module__].preprocess_input


def preparer(name: str) -> Callable[[Any], Any]:
    """The preprocess_input of an application by the name of its network or of its module (`ResNet50`, `resnet50`)."""
    there = keras_package().applications
    if name in dir(there) and not name[0].isupper():
        return getattr(there, name).preprocess_input
    if name in dir(there):
        return application(name)[1]
    known = [*SCALES, *(word for word in dir(there) if not word.startswith("_"))]
    raise TeacherError(f"teacher.options.scale = {name!r}: {did_you_mean(name, known)}", code="U443")


def scales_itself(model: Any) -> bool:
    """Whether a model brings its pixels to scale by a layer of its own."""
    inside = list(model.layers) if "layers" in dir(model) else []
    return any(type(layer).__name__ in ("Rescaling", "Normalization") or scales_itself(layer) for layer in inside)


@final
class KerasPreparation:
    """Raw rows to what a Keras model reads: images float32 [rows, height, width, channels], tables and arrays float32.

    `scale` is `pixels` (0 to 255), `unit` (0 to 1) or the name of a network of keras.applications, whose preprocess_input is called.
    """

    def __init__(
        self,
        *,
        scale: str = "pixels",
        image_size: Sequence[int] | None = None,
        channels: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.scale = scale
        self._raw = RawPreparation(image_size=image_size, mean=mean, std=std, channels=channels)
        self._prepare = None if scale in SCALES else preparer(scale)

    def __call__(self, inputs: Any) -> Array:
        if "DataFrame" in type(inputs).__name__ or np.asarray(inputs).dtype != np.uint8:
            return numbers(inputs)
        if self._raw.channels not in (None, 1, 3, np.shape(inputs)[-1]):
            raise TeacherError(
                f"the model reads {self._raw.channels} channels, counted last, and pictures have one or three; if its own come first, "
                "put a layers.Permute((3, 1, 2)) before it",
                code="U452",
            )
        images = self._raw(inputs).permute(0, 2, 3, 1).contiguous().numpy()
        if self.scale == "unit":
            return np.asarray(images)
        pixels = images * np.float32(255)
        return np.asarray(pixels if self._prepare is None else self._prepare(pixels), dtype=np.float32)

    def __repr__(self) -> str:
        return f"KerasPreparation(scale={self.scale!r}, {self._raw.extra_repr()})"


def preparation(
    model: Any, *, scale: str | None, image_size: Sequence[int] | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> KerasPreparation:
    """How images reach a model: at its own size and channels, on the scale that was said or that its own layers make.

    TeacherError U443 where nothing says the scale of its pixels.
    """
    shape = model.input_shape if isinstance(model.input_shape, tuple) else ()
    images = len(shape) == 4
    if images and scale is None:
        if scales_itself(model):
            scale = "pixels"
        elif mean is not None or std is not None:
            scale = "unit"
        else:
            raise TeacherError(
                f"{model.name} reads images and does not say on which scale: it has no Rescaling or Normalization layer. Say "
                "teacher.options.scale = 'pixels' (0 to 255), 'unit' (0 to 1) or the network whose preprocess_input it was trained with, "
                "such as 'resnet50'; or teacher.mean and teacher.std",
                code="U443",
            )
    if not images:
        return KerasPreparation(scale="unit")
    size = image_size or (shape[1:3] if None not in shape[1:3] else None)
    return KerasPreparation(scale=scale or "pixels", image_size=size, channels=shape[3], mean=mean, std=std)


def read_model(path: Path, *, trust: bool) -> Any:
    """The model in a .keras (or whole-model .h5) file; one that holds code needs trust (U013), one that cannot be read is U442."""
    keras = keras_package()
    try:
        with _quiet():
            return keras.models.load_model(path, compile=False, safe_mode=not trust)
    except Exception as error:  # a file can hold anything, and Keras raises every kind
        said = " ".join(str(error).split())
        if "safe_mode" in said or "unsafe" in said.lower():
            raise TeacherError(
                f"{path} holds code (a Lambda layer) that runs when it is loaded; if you made it yourself: --trust / teacher.trust = true",
                code="U013",
            ) from error
        raise TeacherError(
            f"{path} cannot be read by Keras {keras.__version__} on {keras.backend.backend()}: {said[:300]}. Layers of your own need "
            "@keras.saving.register_keras_serializable and an import; a model of TensorFlow alone needs KERAS_BACKEND=tensorflow",
            code="U442",
        ) from error


def weights_digest(model: Any) -> str:
    """The content hash of a model's weights in their order, whatever its layers are called in this process."""
    convert = keras_package().ops.convert_to_numpy
    values = (np.asarray(convert(weight.value)) for weight in model.weights)
    return digest(*(part for value in values for part in (f"{value.dtype}{value.shape}".encode(), value.tobytes())))


def folder_digest(folder: Path) -> str:
    """The content hash of all files of a folder."""
    seen = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        seen.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with open(path, "rb") as file:
            seen.update(hashlib.file_digest(file, "blake2b").digest())
    return seen.hexdigest()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Keras' own random numbers from this seed; those of Python, NumPy and torch are as they were afterwards."""
    import random

    before, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            keras_package().utils.set_random_seed(seed)
            yield
    finally:
        random.setstate(before)
        np.random.set_state(numpys)


@final
class KerasNetwork(nn.Module):
    """A Keras model on the torch backend as a torch module: channels first in, its own order inside, training mode as torch's.

    Its state names weights by their order, because Keras numbers unnamed layers by how many the process has made.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._order = [variable.path for variable in model.variables]
        self._places = [name for name, _ in self.named_parameters(remove_duplicate=False)]
        self.register_state_dict_post_hook(_by_order)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_by_name)  # type: ignore[no-untyped-call]

    def forward(self, inputs: Tensor) -> Tensor:
        given = inputs.permute(0, 2, 3, 1) if inputs.ndim == 4 else inputs
        answer = self.model(given, training=self.training)
        assert isinstance(answer, Tensor)
        return answer

    def place(self, name: str) -> int:
        """The number of the weight with this name inside the module."""
        return self._order.index(name.rpartition("_torch_params.")[2])

    @property
    def places(self) -> list[str]:
        """Every name under which a weight stands in the module; a Sequential holds each twice."""
        return self._places


def _by_order(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    assert isinstance(module, KerasNetwork)
    for name in module.places:
        state[f"{prefix}weights.{module.place(name)}"] = state.pop(prefix + name)


def _by_name(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(module, KerasNetwork)
    given = {name: state.pop(name) for name in [key for key in state if key.startswith(f"{prefix}weights.")]}
    for name in module.places:
        numbered = f"{prefix}weights.{module.place(name)}"
        if numbered in given:
            state[prefix + name] = given[numbered]


def as_network(model: Any) -> KerasNetwork:
    """A Keras student for the training here; InputError U441 for one that ends in softmax, U444 for another backend or an unbuilt one."""
    keras = keras_package()
    backend = keras.backend.backend()
    if backend != "torch":
        raise InputError(
            f"the Keras student {model.name!r} runs on {backend}, and students are trained here by torch. Set "
            "KERAS_BACKEND=torch, or train it by compile and fit with understudy.adapters.keras (docs/keras.md)",
            code="U444",
        )
    if not model.built:
        raise InputError(f"the Keras student {model.name!r} has no weights yet; begin it with keras.Input(shape)", code="U444")
    refuse_chances(model)
    return KerasNetwork(model)


@contextmanager
def factory_seed(seed: int) -> Iterator[None]:
    """Keras models that a user's factory makes begin from this seed; nothing where Keras is not in use."""
    if "keras" not in sys.modules:
        yield
        return
    with seeded(seed):
        yield


def as_module(made: Any) -> Any:
    """What a factory made: a Keras model as a torch module (U441, U444), anything else as it is."""
    keras = sys.modules.get("keras")
    return as_network(made) if keras is not None and isinstance(made, keras.Model) else made
