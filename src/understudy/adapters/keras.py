"""Keras 3 and TensorFlow SavedModels as teachers; Keras models as students, here (torch backend) or by `compile` and `fit`.

For Keras users: `SoftLabels` is the loss for `compile`, `together` and `rows_of` give it labels and the teacher's answers in one
y_true, `label_accuracy` is its metric, `scorecard` the callback. `export` writes ONNX and .tflite.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from understudy.adapters import _keras_files as files
from understudy.adapters import _keras_models as models
from understudy.adapters._loading import existing
from understudy.answers import Output
from understudy.data.rows import Rows
from understudy.errors import InputError, TeacherError
from understudy.signals import LOGITS, Signals
from understudy.store.transfer_set import TransferSet
from understudy.tasks import Task, TaskKind
from understudy.teachers import Answers, failing, take

Array = np.ndarray[Any, Any]


# --- teachers -------------------------------------------------------------------------------------------------------


@final
class KerasTeacher:
    """A Keras model, on whatever backend, behind the Teacher contract; `from_model` makes one of a live model."""

    def __init__(
        self,
        answer: Callable[[Any], Any],
        *,
        task: Task,
        classes: Sequence[str] | None = None,
        output: Output = "auto",
        name: str = "keras",
        batch_size: int = 64,
        parts: Mapping[str, str],
        learned: int | None = None,
    ) -> None:
        self.name = name
        self.task = task
        self.classes = None if classes is None else tuple(classes)
        self._answer, self._batch_size, self._learned = answer, batch_size, learned
        self._answers = Answers(output, task)
        self._parts = dict(parts) | {"output": output}

    @staticmethod
    def from_model(
        model: Any,
        *,
        task: Task,
        classes: Sequence[str] | None = None,
        output: Output = "auto",
        scale: str | None = None,
        image_size: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        name: str | None = None,
        batch_size: int = 64,
    ) -> KerasTeacher:
        """A live model; whether it gives logits or probabilities is read from its last layer (U440 when the declared is not that).

        TeacherError U452 for several inputs or outputs, and when asked, for rows of another shape than it reads.
        """
        keras = models.keras_package()
        models.check_ends(model)
        prepare = models.preparation(model, scale=scale, image_size=image_size, mean=mean, std=std)
        output = _checked_output(model, output, task)
        parts = {
            "weights": models.weights_digest(model),
            "architecture": str(len(model.layers)) + " layers, " + str(model.count_params()) + " numbers",
            "preparation": repr(prepare),
            "keras": f"{keras.__version__} on {keras.backend.backend()}",
        }

        def answer(inputs: Any) -> Any:
            given = prepare(inputs)
            models.check_fits(model, given)
            return np.asarray(model.predict_on_batch(given), dtype=np.float32)

        return KerasTeacher(
            answer,
            task=task,
            classes=classes,
            output=output,
            name=name or str(model.name),
            batch_size=batch_size,
            parts=parts,
            learned=int(model.count_params()),
        )

    def signals(self, inputs: Any) -> Signals:
        said = []
        with failing(self.name):
            for start in range(0, max(len(inputs), 1), self._batch_size):
                said.append(torch.from_numpy(np.array(self._answer(take(inputs, slice(start, start + self._batch_size))))))
        return self._answers.signal(torch.cat(said))

    def fingerprint(self) -> dict[str, str]:
        return dict(self._parts)

    def parameters(self) -> int | None:
        return self._learned


def _checked_output(model: Any, declared: Output, task: Task) -> Output:
    """What the last layer gives, when it can be seen; TeacherError U440 when something else was declared."""
    last = models.ending(model)
    if task.kind == "regression" or not last:
        return declared
    chances = models.gives_chances(model)
    if declared == "logits" and chances:
        raise TeacherError(
            f"teacher.output = 'logits', but {model.name} ends in {last}: its answers are probabilities, and softened again they would "
            "look unsure of everything. Say teacher.output = 'probabilities' (or leave it out: it is seen here)",
            code="U440",
        )
    if declared == "probabilities" and last == "linear":
        raise TeacherError(
            f"teacher.output = 'probabilities', but {model.name} ends in a layer without softmax: it gives logits. Say "
            "teacher.output = 'logits' (or leave it out: it is seen here)",
            code="U440",
        )
    return "probabilities" if chances else "logits" if last == "linear" else declared


def load(
    source: str,
    *,
    task: Task,
    classes: Sequence[str] | None = None,
    output: Output = "auto",
    trust: bool = False,
    weights: str | None = None,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
    image_size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = 64,
) -> KerasTeacher:
    """A teacher from a `.keras` file, a SavedModel's folder, or `keras:NAME` of keras.applications with weights."""
    said: dict[str, Any] = dict(options or {})
    scale = said.pop("scale", None)
    picture: dict[str, Any] = {"scale": scale, "image_size": image_size, "mean": mean, "std": std}
    common: dict[str, Any] = {"task": task, "classes": classes, "output": output, "batch_size": batch_size}
    if source.startswith("keras:"):
        name = source.removeprefix("keras:")
        count = task.outputs if classes is None else len(classes)
        if weights is None and not pretrained:
            raise TeacherError(
                f"{source} has no weights: its answers would be random. Say weights = 'teacher.weights.h5' (or a .keras file as the "
                "source), or pretrained = true",
                code="U014",
            )
        if image_size is not None:
            said.setdefault("input_shape", [*image_size, 3])
        model = build(name, classes=count, options=said, weights="imagenet" if pretrained and weights is None else None)
        if weights is not None:
            try:
                model.load_weights(str(existing(weights)))
            except (ValueError, OSError, KeyError) as error:
                raise TeacherError(f"{weights} does not fit {name} with {count} classes: {str(error)[:300]}", code="U014") from error
        picture["scale"] = scale or (name if mean is None and std is None else None)
        return KerasTeacher.from_model(model, name=source, **picture, **common)
    path = Path(source)
    if path.is_dir():
        return _saved_model(path, trust=trust, picture=picture, options=said, common=common)
    if said:
        raise TeacherError(f"teacher.options of a Keras file: there is only scale, not {next(iter(said))!r}", code="U443")
    return KerasTeacher.from_model(models.read_model(existing(path), trust=trust), name=path.name, **picture, **common)


def is_saved_model(path: Path) -> bool:
    """Whether a folder is a TensorFlow SavedModel."""
    return (path / "saved_model.pb").is_file()


def _saved_model(path: Path, *, trust: bool, picture: dict[str, Any], options: dict[str, Any], common: dict[str, Any]) -> KerasTeacher:
    """A TensorFlow SavedModel by one of its signatures; it is a program, so it needs trust."""
    if not trust:
        raise TeacherError(
            f"{path} is a SavedModel, which is a program that TensorFlow runs; if you made it yourself: --trust / teacher.trust = true. "
            "A .keras file without Lambda layers needs no trust",
            code="U013",
        )
    tensorflow = models.tensorflow_package()
    loaded = tensorflow.saved_model.load(str(path))
    there = dict(loaded.signatures)
    wanted = options.pop("signature", "serving_default" if "serving_default" in there else next(iter(there), None))
    if wanted not in there:
        raise TeacherError(f"{path} has no signature {wanted!r}; there is: {', '.join(there) or 'none'}", code="U442")
    call = there[wanted]
    specs = list(call.structured_input_signature[1].values())
    if len(specs) != 1 or len(call.structured_outputs) != 1:
        raise TeacherError(f"signature {wanted!r} of {path} must have one input and one output", code="U442")
    given = specs[0]
    shape: list[Any] = list(given.shape)
    scale, mean, std = picture["scale"], picture["mean"], picture["std"]
    if len(shape) == 4 and scale is None:
        if mean is None and std is None:
            raise TeacherError(
                f"{path} reads images and a SavedModel does not say on which scale. Say teacher.options.scale = 'pixels' (0 to 255), "
                "'unit' (0 to 1) or a network of keras.applications, or teacher.mean and teacher.std",
                code="U443",
            )
        scale = "unit"
    size = picture["image_size"] or (shape[1:3] if len(shape) == 4 and None not in shape[1:3] else None)
    prepare = models.KerasPreparation(
        scale=scale or "unit", image_size=size, channels=shape[3] if len(shape) == 4 else None, mean=mean, std=std
    )
    inner, outer = given.name, next(iter(call.structured_outputs))

    def answer(inputs: Any) -> Any:
        batch = tensorflow.constant(prepare(inputs), dtype=given.dtype)
        return call(**{inner: batch})[outer].numpy()

    parts = {
        "content": models.folder_digest(path),
        "signature": str(wanted),
        "preparation": repr(prepare),
        "tensorflow": tensorflow.__version__,
    }
    learned = sum(int(np.prod(variable.shape)) for variable in getattr(loaded, "variables", ()))
    return KerasTeacher(answer, name=path.name, parts=parts, learned=learned or None, **common)


# --- students -------------------------------------------------------------------------------------------------------


def build(name: str, *, classes: int, options: Mapping[str, Any], weights: str | None = None) -> Any:
    """A network of keras.applications that answers logits of this many classes."""
    make, _ = models.application(name)
    said: dict[str, Any] = {"weights": weights, "classes": classes, "classifier_activation": None} | dict(options)
    if "input_shape" in said:
        said["input_shape"] = tuple(said["input_shape"])
    try:
        return make(**said)
    except (TypeError, ValueError) as error:
        raise TeacherError(f"keras.applications.{name} cannot be built with options {sorted(options)}: {error}", code="U442") from error
    except Exception as error:
        if weights is None:
            raise
        raise TeacherError(
            f"the published weights of {name} cannot be had ({str(error).splitlines()[0][:200]}). Without network: a .keras file as source",
            code="U015",
        ) from error


def student(name: str, *, features: Sequence[int], classes: int, options: Mapping[str, Any], seed: int) -> models.KerasNetwork:
    """An untrained network of keras.applications as a torch module that reads [rows, channels, height, width]."""
    if len(features) != 3:
        raise InputError(f"keras:{name} reads images; these rows are a table or flat arrays", code="U063")
    channels, height, width = features
    with models.seeded(seed):
        return models.as_network(build(name, classes=classes, options={"input_shape": (height, width, channels)} | dict(options)))


# --- compile and fit ------------------------------------------------------------------------------------------------


@final
class SoftLabels:
    """(1 - alpha) * cross entropy with the labels + alpha * T^2 * KL(teacher || student), for `compile`, on any backend.

    y_true is what `together` gives, y_pred the student's logits. Hinton, Vinyals & Dean 2015, arXiv:1503.02531, section 2.
    `alpha` weighs the teacher. Rows without a label take no part in the first part. Multilabel: the same with a sigmoid per
    class; regression: squared errors, and no temperature. `student`, when given, is refused if it ends in softmax (U441).
    """

    def __init__(self, alpha: float = 0.5, temperature: float = 2.0, *, task: TaskKind = "multiclass", student: Any = None) -> None:
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha must lie between 0 and 1 (got {alpha:g}); it is the teacher's weight", code="U032")
        if not 0.05 <= temperature <= 100:
            raise InputError(f"temperature must lie between 0.05 and 100 (got {temperature:g})", code="U032")
        self.name = "soft_labels"
        self.alpha, self.temperature, self.task = float(alpha), float(temperature), task
        # a compiled model that is saved or cloned finds its loss again by this name
        models.keras_package().saving.register_keras_serializable("understudy")(SoftLabels)
        if student is not None and task != "regression":
            models.refuse_chances(student)

    def __call__(self, y_true: Any, y_pred: Any) -> Any:
        ops = models.keras_package().ops
        classes = y_pred.shape[-1]
        wide = 1 if self.task in ("multiclass", "binary") else classes
        if y_true.shape[-1] != wide + classes:
            raise InputError(
                f"y_true has {y_true.shape[-1]} columns, a {self.task} student of {classes} outputs needs {wide} for the label and "
                f"{classes} for the teacher; make it by understudy.adapters.keras.together(labels, logits)",
                code="U445",
            )
        told, said = ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")
        labels, teacher = told[:, :wide], ops.stop_gradient(told[:, wide:])
        if self.task == "regression":
            known, hard, soft = ~ops.isnan(labels), _square(ops, said, labels), _square(ops, said, teacher)
            known = ops.all(known, axis=-1)
        elif self.task == "multilabel":
            known = ops.all(~ops.isnan(labels), axis=-1)
            hard = _binary(ops, said, ops.nan_to_num(labels))
            soft = self._bernoulli(ops, said, teacher)
        else:
            known = labels[:, 0] >= 0
            place = ops.cast(ops.maximum(labels[:, 0], 0.0), "int32")
            hard = -ops.sum(ops.one_hot(place, classes, dtype="float32") * ops.log_softmax(said, axis=-1), axis=-1)
            p, q = (ops.log_softmax(each / self.temperature, axis=-1) for each in (teacher, said))
            soft = self.temperature**2 * ops.sum(ops.exp(p) * (p - q), axis=-1)
        counted = ops.cast(known, "float32")
        # the mean over rows that Keras takes then is the mean over labelled rows
        share = ops.cast(ops.shape(said)[0], "float32") / ops.maximum(ops.sum(counted), 1.0)
        return (1 - self.alpha) * share * ops.where(known, hard, 0.0) + self.alpha * soft

    def _bernoulli(self, ops: Any, said: Any, teacher: Any) -> Any:
        softened, target = said / self.temperature, ops.sigmoid(teacher / self.temperature)
        own = _binary(ops, teacher / self.temperature, target)
        return self.temperature**2 * (_binary(ops, softened, target) - own)

    def get_config(self) -> dict[str, Any]:
        """What a saved model keeps of its loss; Keras asks for it."""
        return {"alpha": self.alpha, "temperature": self.temperature, "task": self.task}

    @classmethod
    def from_config(cls, said: dict[str, Any]) -> SoftLabels:
        """The loss again, from what `get_config` said."""
        return cls(**said)


def _square(ops: Any, student: Any, target: Any) -> Any:
    return ops.sum(ops.square(student - ops.nan_to_num(target)), axis=-1)


def _binary(ops: Any, logits: Any, target: Any) -> Any:
    """Binary cross entropy of logits, the mean over classes."""
    return ops.mean(ops.softplus(logits) - target * logits, axis=-1)


def together(labels: Any, teacher: Any, *, task: TaskKind = "multiclass") -> Array:
    """Labels and the teacher's logits (or values) as one y_true, float32 [rows, columns]: the label first, -1 or NaN for none.

    >>> together([1, -1], [[0.5, 2.0], [1.0, 0.0]]).tolist()
    [[1.0, 0.5, 2.0], [-1.0, 1.0, 0.0]]
    """
    said = np.asarray(teacher, dtype=np.float32)
    rows = len(said)
    nothing = -1.0 if task in ("multiclass", "binary") else np.nan
    wide = 1 if task in ("multiclass", "binary") else said.shape[1]
    own = np.full((rows, wide), nothing, dtype=np.float32) if labels is None else np.asarray(labels, dtype=np.float32).reshape(rows, -1)
    if said.ndim != 2 or own.shape != (rows, wide):
        raise InputError(
            f"labels of shape {list(own.shape)} and teacher's answers of shape {list(said.shape)} do not belong together; a {task} "
            f"task has {wide} label column(s) per row",
            code="U445",
        )
    if (
        task in ("multiclass", "binary")
        and len(said)
        and bool(((said >= 0) & (said <= 1)).all() and np.allclose(said.sum(1), 1, atol=1e-3))
    ):
        raise InputError(
            "the teacher's answers are probabilities (each row in [0, 1] and of sum 1), and logits are expected: they would be softened "
            "twice. Build the teacher with classifier_activation=None, or give numpy.log(probabilities)",
            code="U440",
        )
    return np.concatenate([own, said], axis=1)


def label_accuracy(name: str = "accuracy") -> Any:
    """A metric for `compile`: the share of labelled rows whose class the student finds; reads y_true as `together` makes it."""
    return _label_accuracy()(name=name)


@cache
def _label_accuracy() -> Any:
    """The class of the metric, which cannot be written down before Keras is there."""
    keras = models.keras_package()

    @final
    class LabelAccuracy(keras.metrics.Mean):  # type: ignore[misc, name-defined]
        def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            ops = keras.ops
            hit = ops.equal(ops.cast(ops.argmax(y_pred, axis=-1), "float32"), ops.cast(y_true[:, 0], "float32"))
            return super().update_state(ops.cast(hit, "float32"), sample_weight=ops.cast(y_true[:, 0] >= 0, "float32"))

    return keras.saving.register_keras_serializable("understudy")(LabelAccuracy)


def rows_of(
    taught: TransferSet,
    rows: Rows,
    *,
    batch_size: int = 128,
    seed: int = 0,
    shuffle: bool = True,
    prepare: Callable[[Any], Any] | None = None,
    views: Callable[[Any, Array, Array], Any] | None = None,
) -> Any:
    """Rows with their labels and what the transfer set says of them, for `fit`: batches of (inputs, y_true), found by content key.

    Images are float32 from 0 to 255 unless `prepare` makes something else of a batch. Each epoch has an order of its own, and
    where the set holds several views, a view of each row drawn anew; `views` makes it (understudy.data.views.Views).
    """
    keras, kind = models.keras_package(), taught.task.kind
    positions = taught.positions(rows.keys)
    labels = rows.labels
    signal = LOGITS if kind != "regression" else taught.task.signal
    if taught.views > 1 and views is None:
        raise InputError(f"the transfer set holds {taught.views} views of each row; give `views` to make them", code="U445")

    @final
    class TaughtRows(keras.utils.PyDataset):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(workers=1, use_multiprocessing=False)
            self.epoch = 0
            self._draw()

        def _draw(self) -> None:
            random = np.random.default_rng((seed, self.epoch))
            self._order = random.permutation(len(rows)) if shuffle else np.arange(len(rows))
            self._views = random.integers(taught.views, size=len(rows)) if taught.views > 1 else np.zeros(len(rows), dtype=np.int64)

        def __len__(self) -> int:
            return -(-len(rows) // batch_size)

        def __getitem__(self, index: int) -> tuple[Any, Array]:
            chosen = self._order[index * batch_size : (index + 1) * batch_size]
            view = self._views[chosen]
            given = take(rows.inputs, chosen)
            given = given if views is None else views(given, rows.keys[chosen], view)
            said = taught.gather(signal, positions[chosen], view).numpy()
            inputs = np.asarray(given, dtype=np.float32) if prepare is None else prepare(given)
            return inputs, together(None if labels is None else labels[chosen], said, task=kind)

        def on_epoch_end(self) -> None:
            self.epoch += 1
            self._draw()

    return TaughtRows()


def answers(model: Any, rows: Rows, *, batch_size: int = 256, prepare: Callable[[Any], Any] | None = None) -> Array:
    """What a Keras model says of rows, float32 [rows, outputs]."""
    said = []
    for start in range(0, len(rows), batch_size):
        given = take(rows.inputs, slice(start, start + batch_size))
        said.append(np.asarray(model.predict_on_batch(np.asarray(given, dtype=np.float32) if prepare is None else prepare(given))))
    return np.concatenate(said).astype(np.float32)


def scorecard(
    measure: Callable[..., dict[str, Any]],
    rows: Rows,
    task: Task,
    *,
    teacher: Any = None,
    control: Any = None,
    to: str | Path | None = None,
    prepare: Callable[[Any], Any] | None = None,
) -> Any:
    """A callback that, when training ends, measures the student on held-out rows; its `card` is the scorecard, kept in `to`/scorecard.json.

    `measure` is understudy.measure; `teacher` and `control` are Keras models, or answers [rows, outputs]. Without a control the
    verdict is unknown. A student that ends in softmax is refused when training begins (U441).
    """
    keras = models.keras_package()

    def said(of: Any) -> Array:
        return of if isinstance(of, np.ndarray) else answers(of, rows, prepare=prepare)

    @final
    class Scorecard(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        card: dict[str, Any]

        def on_train_begin(self, logs: Any = None) -> None:
            if task.kind != "regression":
                models.refuse_chances(self.model)

        def on_train_end(self, logs: Any = None) -> None:
            given = {"teacher": teacher, "control": control, "student": self.model}
            models_said = {name: [said(of)] for name, of in given.items() if of is not None}
            self.card = measure(models_said, rows.labels, task)
            if to is not None:
                Path(to).mkdir(parents=True, exist_ok=True)
                part = Path(to, "scorecard.json.part")
                part.write_text(json.dumps(self.card, indent=2, ensure_ascii=False), encoding="utf-8")
                part.replace(Path(to, "scorecard.json"))

    return Scorecard()


# --- files ----------------------------------------------------------------------------------------------------------


def export(model: Any, to: str | Path, rows: Rows, task: Task, *, prepare: Callable[[Any], Any] | None = None) -> dict[str, Array]:
    """Write model.onnx and model.tflite into a folder; gives what each file says of the rows, `onnx` and `tflite`.

    Each file is opened by its own runtime and compared with the model; U041 when it says something else. What it gives goes into
    understudy.measure as `exported`. The files hold the Keras model alone: what `prepare` does must be done before them.
    """
    folder = Path(to)
    folder.mkdir(parents=True, exist_ok=True)
    own = answers(model, rows, prepare=prepare)
    asked = np.asarray(rows.inputs, dtype=np.float32) if prepare is None else np.asarray(prepare(rows.inputs), dtype=np.float32)
    return {path.suffix[1:]: files.compared(path, files.ask(path, asked), own, task) for path in files.write(model, folder)}
