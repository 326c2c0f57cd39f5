"""Training a network by gradient steps: one loop, read from top to bottom, resumed exactly where it stopped.

The student and its control go through the same call; only their objective and their teacher's signals differ. The
loop never waits for the device except when it writes a line of metrics.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from understudy.errors import InputError
from understudy.features import signal_of
from understudy.objectives import Objective
from understudy.ranks import Ranks
from understudy.sections import OptimizerSection
from understudy.signals import Batch, Signals
from understudy.students.student import device_of, evaluating, load_weights
from understudy.taps import taps
from understudy.tasks import Task
from understudy.terms import KEYS
from understudy.training._checkpoint import WEIGHTS, Checkpoints, shape_digest
from understudy.training._journal import Journal
from understudy.training._live import Live, Position, copied
from understudy.training._schedule import progress_of, rate_factor, row_order, steps_of, view_order

LOG_EVERY = 50
"""Fewest optimizer steps between two lines of metrics within an epoch."""
SHARE_ROWS = 32
"""Rows on which the shares of terms that read layers are found."""

Validate = Callable[[nn.Module], dict[str, float]]
Augment = Callable[[Tensor, "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"], Tensor]
Ask = Callable[[Tensor, "Tensor | None", Tensor], Signals]
Mixture = Callable[["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"], tuple[Tensor, Tensor]]


@final
@dataclass(frozen=True)
class TrainingSet:
    """Encoded rows, aligned with their labels and what the teacher said of them.

    `inputs` [rows, ...] is what the network reads; `labels` follow understudy.tasks; `labelled` bool [rows], None when
    all are. `teacher` holds [rows, ...], or [rows, views, ...] when there is more than one view; then
    `augment(inputs, keys, view)` makes those views of a batch. A row shows one view per epoch, drawn by seed and epoch.
    `ask(rows, view, inputs)` gives the signals that are not held in memory, from a transfer set or a live teacher;
    `inputs` are those of the batch, in their views.
    `answered` bool [rows] marks the rows that the teacher has an answer to, None when all; the others hold zeros.
    `mixture(keys, view)` gives the labels of the rows that each view is mixed with, and its own share, where views are mixed.
    `said_keys` are the keys as a tensor, which batches then carry: see `with_keys`.
    """

    inputs: Tensor
    labels: Tensor | None
    labelled: Tensor | None
    teacher: Signals
    keys: np.ndarray[Any, np.dtype[np.int64]] | None = None
    views: int = 1
    augment: Augment | None = None
    ask: Ask | None = None
    answered: Tensor | None = None
    said_keys: Tensor | None = None
    mixture: Mixture | None = None

    def __post_init__(self) -> None:
        said = {"labels": self.labels, "labelled": self.labelled, "keys": self.keys, "answered": self.answered, **self.teacher}
        wrong = [f"{name} has {len(value)}" for name, value in said.items() if value is not None and len(value) != len(self)]
        if wrong or not len(self):
            raise InputError(f"a training set of {len(self)} rows: {'; '.join(wrong) or 'there is nothing to train on'}", code="U036")
        if self.views > 1 and self.augment is not None and self.keys is None:
            raise InputError("views of rows are made from their keys: give keys", code="U036")

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, rows: Tensor, view: Tensor | None = None) -> Batch:
        """The rows at these positions, int64 [batch], each in the given view, int64 [batch]: one gather per tensor."""
        inputs = self.inputs.index_select(0, rows)
        if view is None:
            teacher = {name: said.index_select(0, rows) for name, said in self.teacher.items()}
        else:
            teacher = {name: said[rows, view] for name, said in self.teacher.items()}
            if self.augment is not None and self.keys is not None:
                inputs = self.augment(inputs, self.keys[rows.numpy()], view.numpy())
        if self.ask is not None:
            teacher |= self.ask(rows, view, inputs)
        partner, share = None, None
        if view is not None and self.mixture is not None and self.keys is not None:
            partner, share = self.mixture(self.keys[rows.numpy()], view.numpy())
        labels = None if self.labels is None else self.labels.index_select(0, rows)
        labelled, answered = (None if mask is None else mask.index_select(0, rows) for mask in (self.labelled, self.answered))
        keys = None if self.said_keys is None else self.said_keys.index_select(0, rows)
        return Batch(inputs, labels, labelled, teacher, answered, keys, partner, share)

    def with_keys(self) -> TrainingSet:
        """The same set, whose batches say the content keys of their rows; InputError where there are none."""
        if self.keys is None:
            raise InputError("a term keeps embeddings by content key, and this training set has no keys: give keys", code="U345")
        return replace(self, said_keys=torch.from_numpy(np.ascontiguousarray(self.keys)))

    def near(self, device: torch.device) -> TrainingSet:
        """The same set in the device's memory where it fits in half of what is free and nothing is made on the CPU."""
        if device.type != "cuda" or self.ask is not None or (self.augment is not None and self.views > 1):
            return self
        tensors = [tensor for tensor in (self.inputs, self.labels, self.labelled, *self.teacher.values()) if tensor is not None]
        if sum(tensor.nbytes for tensor in tensors) > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        moved = _moved(Batch(self.inputs, self.labels, self.labelled, self.teacher, self.answered, self.said_keys), device)
        masks = replace(self, labelled=moved.labelled, answered=moved.answered, said_keys=moved.keys)
        return replace(masks, inputs=moved.inputs, labels=moved.labels, teacher=moved.teacher)


@final
@dataclass(frozen=True)
class Trained:
    """What a training came to; `history` has one entry per epoch, `best` the best one on validation."""

    history: list[dict[str, float]]
    epochs: int
    steps: int
    seconds: float
    best: dict[str, float] | None


def train(
    module: nn.Module,
    objective: Objective,
    data: TrainingSet,
    *,
    task: Task,
    options: OptimizerSection,
    seed: int,
    to: Path | None = None,
    validate: Validate | None = None,
    metric: str = "accuracy",
    progress: bool = True,
    name: str = "student",
    alone: bool = False,
) -> Trained:
    """Train `module` in place and leave its weights in `to`, complete when card.json is there.

    `validate` sees the module in evaluation mode after every epoch; `metric` names the figure (larger is better) that
    `patience` and `keep = "best"` go by. Killed at any moment, the same call goes on to the same weights, bit for bit
    (under `max_time`, to the same budget). Under torchrun every rank calls it, unless `alone`: see understudy.ranks.
    TrainingError U072 for a dead term, U074 for a loss that is not finite.
    """
    if validate is None and (options.keep == "best" or options.patience is not None):
        raise InputError("train.keep = 'best' and train.patience choose by validation rows, and there are none", code="U037")
    ranks = None if alone else Ranks.here()
    leads = ranks is None or ranks.leads
    if ranks is not None:
        ranks.check_budget(options.max_time)
        if KEYS in objective.reads:
            ranks.refuse("terms that remember rows (a memory bank)")
        if options.momentum_gap is not None:
            ranks.refuse("separate momenta (train.momentum_gap)")
    if options.momentum_gap is not None and objective.needs_teacher and all(term.hears for term in objective.active):
        raise InputError(
            "train.momentum_gap keeps the labels' gradient apart from the teacher's, and no term reads labels alone; add "
            "labels.cross_entropy, or leave it out",
            code="U484",
        )
    checkpoints = Checkpoints(to, _identity(module, objective, data, task, options, seed))
    done = checkpoints.card()
    if done is not None and to is not None:
        load_weights(module, to / WEIGHTS)
        return Trained(done["history"], done["epochs"], done["steps"], done["seconds"], done["best"])
    home, device, modes = device_of(module), device_named(options.device), [(part, part.training) for part in module.modules()]
    journal = Journal(to if leads else None, name, bar=progress and leads)
    journal.console.quiet = not leads
    data = data.with_keys() if KEYS in objective.reads else data
    try:
        with taps(module, objective.layers) as read, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            live = Live(_laid_out(module.to(device), torch.channels_last), objective.to(device), options)
            at = _loop(live, data.near(device), task, seed, checkpoints, journal, validate, metric, read, ranks)
    finally:
        journal.close()
        _laid_out(module.to(home), torch.contiguous_format)
        objective.to(home)
        for part, training in modes:
            part.training = training
    trained = Trained(at.history, at.epoch, at.step, at.seconds, at.best)
    if leads:
        checkpoints.finish(module, vars(trained))
    if ranks is not None:
        ranks.same(None)  # nobody goes on before the files are there
    return trained


def _loop(
    live: Live,
    data: TrainingSet,
    task: Task,
    seed: int,
    checkpoints: Checkpoints,
    journal: Journal,
    validate: Validate | None,
    metric: str,
    read: Signals,
    ranks: Ranks | None,
) -> Position:
    """Every epoch, every step, from wherever a checkpoint left off; `read` holds the layers of the last forward pass."""
    module, objective, options, device = live.module, live.objective, live.options, live.device
    per_epoch = len(steps_of(torch.arange(len(data)), options.batch_size, options.accumulate))
    log_every = max(LOG_EVERY, per_epoch // 20)

    kept = checkpoints.load()
    if kept is not None:
        journal.weak = kept.pop("weak")
        live.restore(kept)
    at = live.at
    journal.open(at.step, per_epoch * options.epochs)
    leads = ranks is None or ranks.leads
    if ranks is not None:
        ranks.level(module, objective)
    if at.step == 0 and options.epochs:
        _signal_test(live, data, task, seed, read)
    before, started = at.seconds, time.perf_counter()

    module.train()
    while not at.finished(options):
        # the order depends on seed and epoch alone, so that a student and its control, or a resumed run, see the same rows
        order = row_order(len(data), seed, at.epoch).to(data.inputs.device)
        view = view_order(len(data), data.views, seed, at.epoch).to(data.inputs.device) if data.views > 1 else None
        for batches in steps_of(order, options.batch_size, options.accumulate)[at.within :]:
            gone = progress_of(at.step, per_epoch, options, at.seconds)
            lr = options.lr * rate_factor(gone, options)
            if objective.moves:
                objective.move_to(gone)
            for group in live.optimizer.param_groups:
                group["lr"] = lr
            rows_of_step = sum(map(len, batches))
            for whole in batches:
                rows, part = (whole, 1.0) if ranks is None else ranks.share(whole)
                batch = _moved(data.batch(rows, None if view is None else view[rows]), device)
                with _precision(device, options.precision):
                    answer = module(batch.inputs)
                answer = answer.float()
                # what a layer gave is held by `read` until the next pass
                student: Signals = {task.signal: answer, **_features(read)} if read else {task.signal: answer}
                total, terms = live.backward(student, batch, part * len(whole) / rows_of_step)
                journal.note(at.step + 1, *((total, terms) if ranks is None else ranks.averaged(total, terms, part)))
            if ranks is not None:
                ranks.add_gradients(live.parameters)
            live.step()

            at.step, at.within, at.seconds = at.step + 1, at.within + 1, before + time.perf_counter() - started
            said = {"step": at.step, "epoch": at.epoch + 1, "seconds": at.seconds}
            if at.step % log_every == 0:  # and not since the last: a resumed run must balance its weights at the same steps
                shares = _shares(live, task, answer, batch, read)
                shares = shares if ranks is None else ranks.same(shares)
                objective.balance(shares)
                journal.write({**said, "moving": objective.moved()} if objective.moves else said, shares=shares, lr=lr)
            if leads and at.within < per_epoch and checkpoints.due(epoch_end=False):
                journal.write(said, lr=lr)
                checkpoints.save({**live.state(), "weak": journal.weak})
            if options.max_time is not None and at.seconds >= options.max_time and at.epoch:
                break

        loss_now = journal.write(said, lr=lr)
        if ranks is not None:
            ranks.level(module)  # the statistics of batch norms are each rank's own until here
        figures = _validated(validate if leads else None, live)
        figures = figures if ranks is None else ranks.same(figures)
        at.seconds = before + time.perf_counter() - started
        live.end_epoch(loss_now, figures, metric)
        journal.score(said, figures)
        if leads and checkpoints.due(epoch_end=True):
            checkpoints.save({**live.state(), "weak": journal.weak})

    chosen = live.best if options.keep == "best" and live.best is not None else live.average
    if chosen is not None:
        module.load_state_dict(chosen)
    return at


def device_named(said: str) -> torch.device:
    """The device of an option; `auto` is what Accelerate finds."""
    if said == "auto":
        from accelerate import PartialState

        return torch.device(PartialState().device)
    try:
        device = torch.device(said)
    except RuntimeError:
        raise InputError(f"train.device = {said!r}: say auto, cpu, cuda, cuda:1 or mps", code="U037") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"train.device = {said!r}: PyTorch finds no CUDA device here. Say auto or cpu", code="U037")
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def _laid_out(module: nn.Module, order: torch.memory_format) -> nn.Module:
    """The module with the weights of its 2d convolutions in this order of memory: channels last is up to twice as fast on a CPU."""
    ranks = {weight.ndim for weight in module.parameters()}
    return module.to(memory_format=order) if 4 in ranks and 5 not in ranks else module


_PLAIN = contextlib.nullcontext()


def _precision(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "no":
        return _PLAIN
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def _moved(batch: Batch, device: torch.device) -> Batch:
    if batch.inputs.device == device:
        return batch
    labels = None if batch.labels is None else batch.labels.to(device, non_blocking=True)
    labelled = None if batch.labelled is None else batch.labelled.to(device, non_blocking=True)
    teacher = {name: said.to(device, non_blocking=True) for name, said in batch.teacher.items()}
    answered = None if batch.answered is None else batch.answered.to(device, non_blocking=True)
    keys = None if batch.keys is None else batch.keys.to(device, non_blocking=True)
    partner, share = (None if value is None else value.to(device, non_blocking=True) for value in (batch.partner, batch.share))
    return Batch(batch.inputs.to(device, non_blocking=True), labels, labelled, teacher, answered, keys, partner, share)


def _validated(validate: Validate | None, live: Live) -> dict[str, float]:
    """The figures of the weights that would be handed on."""
    if validate is None:
        return {}
    with evaluating(live.module), torch.no_grad():
        if live.average is None:
            return {name: float(value) for name, value in validate(live.module).items()}
        now = copied(live.module)
        live.module.load_state_dict(live.average)
        figures = {name: float(value) for name, value in validate(live.module).items()}
        live.module.load_state_dict(now)
        return figures


def _features(read: Signals) -> Signals:
    return {signal_of(layer): values for layer, values in read.items()}


def _speaking(live: Live, task: Task, read: Signals) -> Callable[[Batch], Signals]:
    """The student's answer to a batch, and what its layers gave."""

    def forward(batch: Batch) -> Signals:
        answer = live.module(batch.inputs).float()
        return {task.signal: answer, **_features(read)}

    return forward


def _shares(live: Live, task: Task, answer: Tensor, batch: Batch, read: Signals) -> dict[str, float]:
    """Each term's share of the gradient: at the student's output, or, when a term reads layers, in its parameters.

    The latter takes a pass and a pass back for each term, so only a part of the batch is asked, in evaluation mode.
    """
    if not read:
        return live.objective.shares(answer, batch)
    with evaluating(live.module):
        return live.objective.shares_of(_speaking(live, task, read), _part(batch, SHARE_ROWS), live.module.parameters())


def _part(batch: Batch, rows: int) -> Batch:
    given = {"labels": batch.labels, "labelled": batch.labelled, "answered": batch.answered, "keys": batch.keys}
    given |= {"partner": batch.partner, "share": batch.share}
    cut = {name: None if value is None else value[:rows] for name, value in given.items()}
    return replace(batch, inputs=batch.inputs[:rows], teacher={name: said[:rows] for name, said in batch.teacher.items()}, **cut)


def _signal_test(live: Live, data: TrainingSet, task: Task, seed: int, read: Signals) -> None:
    """Does every term move the student? Asked of the first batch, in evaluation mode: nothing is changed by asking."""
    rows = row_order(len(data), seed, 0)[: live.options.batch_size].to(data.inputs.device)
    view = view_order(len(data), data.views, seed, 0).to(rows.device)[rows] if data.views > 1 else None
    batch = _moved(data.batch(rows, view), live.device)
    with evaluating(live.module):
        live.objective.signal_test(_speaking(live, task, read), batch, list(live.module.parameters()))


def _identity(
    module: nn.Module, objective: Objective, data: TrainingSet, task: Task, options: OptimizerSection, seed: int
) -> dict[str, Any]:
    """What a training is made from, in plain values; a checkpoint goes on only with the same."""
    content = hashlib.sha256(b"" if data.keys is None else np.ascontiguousarray(data.keys).tobytes())
    content.update(b"" if data.labels is None else data.labels.numpy(force=True).tobytes())
    return {
        "options": options.model_dump(mode="json"),
        "seed": seed,
        "task": task.to_json(),
        "objective": objective.formula(),
        "network": shape_digest(module),
        "rows": {"inputs": f"{list(data.inputs.shape)} {data.inputs.dtype}", "views": data.views, "content": content.hexdigest()[:16]},
        "teacher": {name: f"{list(said.shape)} {said.dtype}" for name, said in data.teacher.items()},
    }
