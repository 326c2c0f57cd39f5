"""The third stage: the teacher asked once about every row; two transfer sets, training and held-out."""

from __future__ import annotations

from typing import Any

import numpy as np

from understudy.checks.answers import check_in_sample
from understudy.checks.recipes import check_disk
from understudy.data.rows import Rows
from understudy.data.views import AnyViews
from understudy.errors import Problem, RecipeError, TeacherError, TransferSetError, raise_errors
from understudy.make.lessons import build_encoding, build_objective, distrusted, temperature_of
from understudy.make.rows import synthetic_rows
from understudy.make.teachers import stored_sets
from understudy.make.views import build_views
from understudy.measuring import scorecard as cards
from understudy.pools import Pool
from understudy.signals import frame_lengths, is_answered
from understudy.stages._run import Run, answered_rows, join_rows, size_of
from understudy.stages._speaker import numbers_of, wire_layers
from understudy.store.transfer_set import TransferSet
from understudy.teachers import Refittable, remotes
from understudy.teaching import out_of_fold, reask, teach


def teach_rows(run: Run) -> None:
    """Ask the teacher once about every row; keep the answers as two transfer sets, training and held-out."""
    said, task = run.recipe.teaching, run.task
    assert run.teacher is not None
    train_rows, rest = run.rows.part("train"), run.rows.take(np.flatnonzero(run.rows.split != "train"))
    run.extra = synthetic_rows(run.recipe, run.rows, task, share=run.share)
    asked = train_rows if run.extra is None else join_rows(train_rows, run.extra)
    run.seen = views_of(run, asked)
    wire_layers(run, build_objective(run.recipe, task, train_rows.labels))
    assert run.speaker is not None
    there = stored_sets(run.teacher)
    if there is not None:
        _take_stored(run, there, asked, rest)
        return
    folds = _folds(run, train_rows)
    options: dict[str, Any] = {"task": task, "batch_size": said.batch_size, "dtype": said.dtype, "pool": _pool(run)}
    folder = run.folder / "transfer"
    temperature = 1.0
    if said.encoding != "dense":
        temperature = temperature_of(build_objective(run.recipe, task, train_rows.labels))
    encoding = build_encoding(run.recipe, temperature)
    if task.kind == "recognition" and said.encoding != "dense":
        raise RecipeError(
            f"teaching.encoding = {said.encoding!r} is for one answer a row; a recognition has frames: use dense", code="U428"
        )
    width = {"float32": 4, "float16": 2, "bfloat16": 2}[said.dtype] * task.outputs
    if encoding != "auto":
        width = encoding.bytes_per_row(task.outputs)
    live = said.views == "live"
    more = {"float32": 4, "float16": 2, "bfloat16": 2}[said.dtype] * (numbers_of(run) - task.outputs)  # layers, members' own answers
    needed = len(asked) * (0 if live else run.views) * (width + more) + len(rest) * width + 17 * (len(asked) + len(rest))
    run.warn(raise_errors(check_disk(run.folder, needed)))
    if not live:
        spec = None if run.seen is None else run.seen.spec
        stored: dict[str, Any] = {"encoding": encoding, "most_lost": said.max_loss, "temperature": temperature}
        views: dict[str, Any] = {"views": run.views, "augment": run.seen, "view_spec": spec, "shard_rows": said.shard_rows}
        mirror = mirror_of(run, "training")
        run.taught = teach(run.speaker, asked, folder / "training", folds=folds, mirror=mirror, **views, **stored, **options)
    mirror = mirror_of(run, "held_out")
    run.held_out = teach(run.teacher, rest, folder / "held_out", shard_rows=said.shard_rows, mirror=mirror, **options)
    if mirror is not None:
        run.say("copied", f"to {said.store}: what is there is what lies in {folder}")
    _same_accuracy(run)
    _count_believed(run)
    for rows, taught in ((asked, run.taught), (rest, run.held_out)):
        if taught is not None:
            reask(run.speaker, rows, taught, n=16, seed=0)
    if folds is None and not live:
        run.warn(_in_sample(run, train_rows))
    lacking = _unanswered(run) if remotes(run.teacher) else 0
    if lacking:
        told = f"the teacher has no readable answer to {lacking:,} of {len(asked) + len(rest):,} rows"
        run.warn([Problem("U339", f"{told}: in training they take no part in the soft term, held-out ones are not measured", "warning")])
    made = "" if run.extra is None else f", {len(run.extra):,} of them {'without a label' if train_rows.kind == 'text' else 'synthetic'}"
    fold = "" if folds is None else " · training rows out of fold"
    view = f" x {run.views} views" if run.views > 1 else ""
    if live:
        run.say(
            "taught", f"{len(rest):,} held-out rows · {size_of(folder)} · training rows are asked in the loop (teaching.views = 'live')"
        )
        return
    run.say("taught", f"{len(asked) + len(rest):,} rows{made}{view} · {size_of(folder)}{fold} · 16 of each asked again: the same")
    assert run.taught is not None
    if run.taught.encoding["measured"]:
        run.say("encoding", _loss_of(run.taught))


def mirror_of(run: Run, part: str) -> str | None:
    """The address that one of the two transfer sets is copied to."""
    store = run.recipe.teaching.store
    return None if store is None else f"{store.rstrip('/')}/{part}"


def _pool(run: Run) -> Pool | None:
    """Who asks: a server is asked from here, which already has many questions open at once."""
    if run.pool is not None and remotes(run.teacher):
        raise TransferSetError(
            "a server is asked from one process, many rows at once (teacher.options.concurrency): leave out --workers and --on", code="U463"
        )
    return run.pool


def _unanswered(run: Run) -> int:
    """How many rows the teacher has no answer to."""
    sets = [taught for taught in (run.taught, run.held_out) if taught is not None]
    return sum(int((~is_answered(taught.gather(run.task.signal, np.arange(len(taught))))).sum()) for taught in sets)


def _take_stored(run: Run, there: dict[str, TransferSet], asked: Rows, rest: Rows) -> None:
    """Train from the transfer sets of another run, wherever they were copied from."""
    spec = {} if run.seen is None else run.seen.spec
    taught = there.get("training")
    if taught is None or run.recipe.teaching.views == "live":
        raise TeacherError("stored answers cannot be asked in the loop; set teaching.views to what was taught", code="U327")
    if run.recipe.teaching.store is not None:
        raise RecipeError(
            "teaching.store is where answers are copied to while they are taught, and these are stored: leave it out", code="U476"
        )
    if (taught.views, taught.view_spec) != (run.views, spec):
        raise TransferSetError(
            f"{taught.folder} holds {taught.views} views of {taught.view_spec}, the recipe asks for {run.views} of {spec}; set "
            "teaching.views and train.augment to what was taught",
            code="U021",
        )
    for rows, one in ((asked, taught), (rest, there["held_out"])):
        one.positions(rows.keys)
    run.taught, run.held_out = taught, there["held_out"]
    _same_accuracy(run)
    _count_believed(run)
    run.say(
        "taught", f"before, by {taught.teacher}: {len(asked) + len(rest):,} rows found in {run.recipe.teacher.source}; no teacher is needed"
    )


def _count_believed(run: Run) -> None:
    """Say about how many training rows, in their plain view, the teacher's words are not taken."""
    rows, taught, most = run.rows.part("train"), run.taught, run.word_errors
    if taught is None or most is None:
        return
    said = taught.gather(run.task.signal, taught.positions(rows.keys), np.zeros(len(rows), dtype=np.int64))
    silent = int((frame_lengths(said) == 0).sum())
    wrong = 0 if rows.labels is None else int(distrusted(said.numpy(), rows.labels, most).sum())
    told = f"of {len(rows):,} training rows the teacher's words of {wrong:,} differ from the label in over {most:.0%} of its words"
    strange = f" ({silent:,} rows hold what the data's words cannot say, or nothing)" if run.writes else ""
    run.say("words", f"{told}{strange}")
    if wrong or silent:
        run.warn([Problem("U438", f"{told}{strange}: nothing is learned from the teacher there (teaching.word_errors)", "warning")])


def _loss_of(taught: TransferSet) -> str:
    spec, measured = taught.encoding["stored"], taught.encoding["measured"]
    what = " ".join(str(spec[name]) for name in ("kind", "dtype", "top", "draws") if name in spec)
    size = f"{what}: {measured['bytes_per_row']:,} bytes an answer ({4 * taught.task.outputs:,} in full)"
    if spec["kind"] == "sampled":
        return f"{size}; unbiased, noise of {measured['error']:.3g} of an answer ({measured['rows']} rows)"
    return f"{size}; loses {measured['kl']:.3g} nats of KL ({measured['rows']} rows)"


def views_of(run: Run, asked: Rows) -> AnyViews | None:
    """What the views of the training rows are; None where each row is seen as it is."""
    said = run.recipe.teaching.views
    assert run.loaded is not None
    if said == 1:
        return None
    seen = build_views(run.recipe.train, asked, run.loaded.encoding, counted=said in ("all", "live"))
    if said == "all" and seen is not None and not seen.finite:
        told = "teaching.views = 'all' counts through every view; what can be counted are shifts and mirror images of pictures"
        raise RecipeError(f"{told}, the same for each input that changes; set teaching.views = 20, or 'live'", code="U320")
    run.views = 1 if seen is None else said if isinstance(said, int) else seen.count
    return seen


def _folds(run: Run, rows: Rows) -> Any:
    said, teacher = run.recipe.teaching.out_of_fold, run.teacher
    assert teacher is not None
    live = run.recipe.teaching.views == "live"
    if live and isinstance(teacher, Refittable) and teacher.self_scoring and said != 0:
        told = f"{teacher.name} remembers its training rows, so asking it in the loop (teaching.views = 'live') would say their labels"
        raise TeacherError(f"{told}; set teaching.views = 1, or teaching.out_of_fold = 0 to ask it all the same", code="U018")
    if live or said == 0 or rows.labels is None or not run.task.labelled(rows.labels).any():
        return None
    if said == "auto" and not (isinstance(teacher, Refittable) and teacher.self_scoring):
        return None
    return out_of_fold(teacher, rows, task=run.task, folds=5 if said == "auto" else int(said), seed=0)


def _same_accuracy(run: Run) -> None:
    """The stored validation answers must score what the teacher scored when it was asked a moment ago."""
    rows, task, taught = run.rows.part("validation"), run.task, run.held_out
    if rows.labels is None or run.teacher_score is None or taught is None:
        return
    cached = cards.quality(taught.gather(task.signal, taught.positions(rows.keys)).numpy(), rows.labels, task)[task.metric]
    # a rounding may turn a tie; answers that belong to other rows turn far more
    if abs(cached - run.teacher_score) > 0.005 + 1 / len(rows):
        raise TransferSetError(
            f"the stored answers in {taught.folder} score {task.metric} {cached:.4f} on the validation rows, the teacher itself "
            f"{run.teacher_score:.4f}: they belong to other rows or another teacher. Teach into another folder",
            code="U326",
        )


def _in_sample(run: Run, train_rows: Rows) -> list[Problem]:
    """Whether the teacher's answers to its training rows are little more than their labels."""
    task, validation = run.task, run.rows.part("validation")
    if task.kind == "matching":
        return []  # to find one among many is harder than among few: the two figures cannot be compared
    scores = []
    for rows, taught in ((train_rows, run.taught), (validation, run.held_out)):
        assert taught is not None
        said = taught.gather(task.signal, taught.positions(rows.keys), np.zeros(len(rows), dtype=np.int64)).numpy()
        there = answered_rows(said)
        scores.append(cards.quality(said[there], rows.labels[there], task).get(task.metric) if rows.labels is not None else None)
    inside, outside = scores
    return [] if inside is None or outside is None else check_in_sample(inside, outside, task.metric)
