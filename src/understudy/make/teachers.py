"""Teachers by the place that a recipe names, each through its adapter, and where they are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from understudy.answers import Combine
from understudy.data.rows import Paired, Rows
from understudy.ensembles import Ensemble
from understudy.errors import RecipeError, TeacherError, did_you_mean
from understudy.pools import Pool, Processes
from understudy.sections import TeacherMember, TeacherTrainSection
from understudy.store.transfer_set import TransferSet
from understudy.tasks import Task
from understudy.teachers import Reading, Teacher


def load_teacher(said: TeacherMember, task: Task, rows: Rows, cache: Path | None = None, *, rate: int = 16000) -> Teacher:
    """The teacher that `source` names, which is given the inputs of each row that it reads."""
    kept = Path(str(said.source))
    if (
        not isinstance(rows.inputs, Paired)
        or kept.is_dir()
        or said.is_mirrored
        or kept.name.lower().endswith((".parquet", ".csv", ".csv.gz", ".npz"))
    ):
        return _load_teacher(said, task, rows, cache, rate)  # answers that are kept are found by the key of the whole row
    return Reading(_load_teacher(said, task, rows.only(said.inputs), cache, rate), said.inputs or list(rows.inputs.parts))


def _load_teacher(said: TeacherMember, task: Task, rows: Rows, cache: Path | None, rate: int) -> Teacher:
    """The teacher that `source` names, through the adapter for its kind of file; a server's answers are kept in `cache`."""
    from understudy.adapters import api, boosters, keras, predictions, sklearn, stored, timm_models, torch_module
    from understudy.adapters import callables as functions

    source, classes = str(said.source), _class_names(said.classes)
    name = source.lower()
    weights = None if said.weights is None else (said.weights if said.weights == "factory" else str(Path(said.weights)))
    picture: dict[str, Any] = {"image_size": said.image_size, "mean": said.mean, "std": said.std}
    if said.is_remote:
        return api.load(source, task=task, rows=rows, options=said.options, cache=cache)
    if said.is_mirrored:
        return stored.load(source, kind=rows.kind, task=task)
    if source.startswith(("hf:", "sentences:")):
        return _published_teacher(said, task, rows, cache, rate)
    if source.startswith("keras:") or name.endswith((".keras", ".h5")) or keras.is_saved_model(Path(source)):
        return keras.load(
            source,
            task=task,
            classes=classes,
            output=said.output,
            trust=said.trust,
            weights=weights,
            pretrained=said.pretrained,
            options=said.options,
            **picture,
        )
    if source.startswith("timm:"):
        return timm_models.load(
            source, task=task, classes=classes, pretrained=said.pretrained, weights=weights, options=said.options, **picture
        )
    if ":" in source and not Path(source).exists():
        if weights is not None:
            return torch_module.load(
                source, weights=weights, classes=classes, output=said.output, task=task, options=said.options, **picture
            )
        return functions.load(source, classes=classes, output=said.output, task=task)
    path = Path(source)
    if not path.exists():
        near = (
            did_you_mean(path.name, [p.name for p in path.parent.iterdir()])
            if path.parent.is_dir()
            else f"there is no folder {path.parent}"
        )
        raise TeacherError(f"no teacher at {source}; {near}", code="U062")
    if path.is_dir():
        return stored.load(path, kind=rows.kind, task=task)
    if name.endswith((".skops", ".joblib", ".pkl", ".pickle")):
        return sklearn.load(path, trust=said.trust, task=task, classes=classes)
    if name.endswith((".ubj", ".json", ".txt", ".bst", ".lgb")):
        return boosters.load(path, task=task, classes=classes)
    if name.endswith((".parquet", ".csv", ".csv.gz", ".npz")):
        return predictions.load(path, rows=rows, task=task, classes=classes, output=said.output)
    raise TeacherError(
        f"teacher.source = {source!r} is of no kind known here: .skops, .joblib, .pkl, .json or .ubj (XGBoost), .txt (LightGBM), "
        ".parquet, .csv or .npz (predictions), .keras, a SavedModel's folder, a run's folder `transfer` or its address, "
        "package.module:factory, timm:NAME, keras:NAME, "
        "http(s)://host/v1",
        code="U062",
    )


def _published_teacher(said: TeacherMember, task: Task, rows: Rows, cache: Path | None, rate: int) -> Teacher:
    from understudy.adapters import hugging_face, hugging_face_language, hugging_face_speech, sentences

    source, classes = str(said.source), _class_names(said.classes)
    if rows.kind == "audio" and source.startswith("hf:"):
        return hugging_face_speech.load(source, task=task, rate=rate, classes=classes, pretrained=said.pretrained, options=said.options)
    if rows.kind != "text":
        raise TeacherError(f"{source} reads texts, the rows are of kind {rows.kind!r}; name the column of texts: data.text", code="U411")
    asked: dict[str, Any] = {"task": task, "pretrained": said.pretrained, "options": said.options}
    if source.startswith("hf:") and ("prompt" in said.options or "verbalisers" in said.options):
        return hugging_face_language.load(source, pairs=rows.inputs.ndim == 2, **asked)
    if source.startswith("hf:") and "pooling" in said.options:
        return hugging_face.load_pooled(source, rows=rows, cache=cache, **asked)
    if source.startswith("hf:"):
        return hugging_face.load(source, task=task, classes=classes, pretrained=said.pretrained, options=said.options)
    return sentences.load(source, task=task, rows=rows, cache=cache, pretrained=said.pretrained, options=said.options)


def build_pool(workers: int | None, on: str | None) -> Pool | None:
    """Who asks the teacher: this process (None), processes here, or the actors of a cluster."""
    if on is None:
        return None if workers in (None, 1) else Processes(int(workers or 1))
    from understudy.adapters import ray_cluster

    return ray_cluster.RayPool(_cluster(on), workers)


def train_on(on: str, ranks: int | None, work: Callable[[], Any], folder: Path) -> None:
    """Do this work in ranks of one training on a cluster, two of them unless it is said."""
    from understudy.adapters import ray_cluster

    ray_cluster.train_on(_cluster(on), ranks or 2, work, folder)


def _cluster(on: str) -> str:
    if on != "ray" and not on.startswith("ray://"):
        raise RecipeError(f"--on {on!r}: say ray (the cluster that this machine is part of) or ray://host:10001", code="U464")
    return on


def free_teacher_options(said: TeacherMember) -> list[str]:
    """The options of a teacher that a run may go on with others of, since its answers do not depend on them."""
    from understudy.adapters import api

    return [f"teacher.options.{name}" for name in api.FREE_TO_CHANGE] if said.is_remote else []


def stored_sets(teacher: Teacher | None) -> dict[str, TransferSet] | None:
    """The transfer sets behind a teacher that is nothing but them."""
    from understudy.adapters.stored import StoredTeacher

    return teacher.sets if isinstance(teacher, StoredTeacher) else None


def build_ensemble(members: list[Teacher], task: Task, said: Sequence[TeacherMember], combine: Combine = "probabilities") -> Ensemble:
    """Several teachers as one; when all have a name, or their answers are weighed by the labels, each one's own are kept too."""
    given = [member.name for member in said if member.name is not None]
    if given and len(given) < len(members):
        raise RecipeError(f"name all {len(members)} teacher.members, or none: {', '.join(given)} have one", code="U323")
    names = given or ([str(number) for number in range(1, len(members) + 1)] if combine == "confidence" else [])
    return Ensemble(members, task=task, names=names, weights=[member.weight for member in said], combine=combine)


def train_estimator_teacher(said: TeacherTrainSection, task: Task, rows: Rows, folder: Path, *, reads: Sequence[str] = ()) -> Teacher:
    """A forest or boosted trees trained from the labels; kept in the run's folder, so that it is trained once."""
    from understudy.adapters import sklearn

    if rows.kind == "text":
        told = "fit a pipeline that begins with a TfidfVectorizer and give its file as teacher.source, or train text.transformer"
        raise RecipeError(f"[teacher.train] model = {said.model!r} reads tables and arrays, these rows are texts: {told}", code="U411")
    file = folder / f"{said.model}.joblib"
    if not file.exists():
        assert rows.labels is not None
        made = sklearn.train_estimator(said.model, rows.inputs, rows.labels, task, options=said.options, seed=said.seed)  # type: ignore[arg-type]
        sklearn.save(made, file)
    loaded = sklearn.load(file, task=task, trust=True)
    return Reading(loaded, reads) if reads else loaded


def _class_names(said: list[str] | str | None) -> tuple[str, ...] | None:
    if said is None or isinstance(said, list):
        return None if said is None else tuple(map(str, said))
    path = Path(said)
    if not path.exists():
        raise TeacherError(f"teacher.classes names the file {said!r}, which does not exist: one class name per line", code="U062")
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
