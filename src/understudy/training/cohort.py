"""Online distillation: networks that start from nothing teach each other while they learn, and no teacher comes before them.

`mutual`: each learns the labels and what the others say, one after the other within a step, each hearing the others as they
are by then (Zhang, Xiang, Hospedales & Lu 2018, arXiv:1706.00384, algorithm 1). `collaborative`: all learn in one step from one
target made of all their answers and the labels (Guo et al. 2020, Online Knowledge Distillation via Collaborative Learning,
CVPR). Rows, options, checkpoints and journals are those of `train`; what the others say stands where a teacher's answers
would, so any objective on logits or values works.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from understudy.answers import mean_answer
from understudy.errors import InputError, did_you_mean
from understudy.losses import ensembles
from understudy.objectives import Objective
from understudy.ranks import Ranks
from understudy.sections import OptimizerSection
from understudy.signals import Batch, ending_alike
from understudy.students.student import device_of, evaluating, load_weights
from understudy.tasks import Task
from understudy.training._checkpoint import WEIGHTS, Checkpoints, shape_digest
from understudy.training._journal import Journal
from understudy.training._live import Live
from understudy.training._schedule import progress_of, rate_factor, row_order, steps_of, view_order
from understudy.training.gradient import (
    LOG_EVERY,
    Trained,
    TrainingSet,
    Validate,
    _identity,
    _moved,
    _precision,
    _validated,
    device_named,
)

Method = Literal["mutual", "collaborative"]
Target = Literal["minlogit", "linear", "naive"]

TEMPERATURE: dict[str, float] = {"mutual": 1.0, "collaborative": 2.0}
"""The published temperature of each method."""


def _linear(said: Tensor, labels: Tensor) -> Tensor:
    return ensembles.mean_of_logits(said, weights=ensembles.best_mixture_weights(said, labels))


TARGETS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "minlogit": ensembles.least_margins,
    "linear": _linear,
    "naive": ensembles.best_of_teachers,
}
"""What a collaborative cohort learns from, by its published name: (answers [members, rows, classes], labels) -> logits."""


def cohort_objective(task: Task, method: Method = "mutual", *, temperature: float | None = None, weight: float = 1.0) -> Objective:
    """The labels with weight 1 and the others' soft labels with `weight`, at the published temperature unless one is given."""
    softened = TEMPERATURE[method] if temperature is None else temperature
    whole = Objective.soft_labels(alpha=0.5, temperature=softened, task=task)
    for term in whole.active:
        term.weight = weight if any(name != "labels" for name in term.reads) else 1.0
    return whole


def train_cohort(
    modules: Sequence[nn.Module],
    objective: Objective,
    data: TrainingSet,
    *,
    task: Task,
    options: OptimizerSection,
    seed: int,
    method: Method = "mutual",
    target: Target = "minlogit",
    own_views: bool = False,
    to: Path | None = None,
    validate: Sequence[Validate] | None = None,
    metric: str = "accuracy",
    progress: bool = True,
    name: str = "cohort",
) -> list[Trained]:
    """Train the modules in place, together, and leave all their weights in `to`, complete when card.json is there.

    Every member has its own copy of the objective, which reads the others where it reads a teacher; several others are heard
    as the mean of their distributions at the objective's temperature, whose gradient is that of the mean KL to each. With
    `own_views` each member sees its rows in views of its own. `validate` holds one function per member; training stops early
    only when no member has patience left. Killed at any moment, the same call goes on to the same weights, bit for bit.
    """
    _refuse(modules, objective, data, task, method, target, options.momentum_gap)
    ranks = Ranks.here()
    if ranks is not None:
        ranks.refuse("cohorts")
    if validate is None and (options.keep == "best" or options.patience is not None):
        raise InputError("train.keep = 'best' and train.patience choose by validation rows, and there are none", code="U037")
    whole = nn.ModuleList(modules)
    checkpoints = Checkpoints(to, _described(modules, objective, data, task, options, seed, f"{method} {target} {own_views}"))
    done = checkpoints.card()
    if done is not None and to is not None:
        load_weights(whole, to / WEIGHTS)
        return [Trained(**said) for said in done["members"]]
    homes, device, modes = [device_of(each) for each in modules], device_named(options.device), [(p, p.training) for p in whole.modules()]
    folders = [None if to is None else to / f"member-{number}" for number in range(1, len(modules) + 1)]
    for folder in folders:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    # a terminal has room for one bar
    journals = [Journal(folder, f"{name} {number}", bar=progress and number == 1) for number, folder in enumerate(folders, 1)]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            lives = [Live(module.to(device), copy.deepcopy(objective).to(device), options) for module in modules]
            cohort = _Cohort(lives, journals, task, method, target, seed, own_views and data.views > 1)
            _loop(cohort, data.near(device), checkpoints, validate, metric)
    finally:
        for journal in journals:
            journal.close()
        for module, home in zip(modules, homes, strict=True):
            module.to(home)
        for part, training in modes:
            part.training = training
    trained = [Trained(live.at.history, live.at.epoch, live.at.step, live.at.seconds, live.at.best) for live in lives]
    checkpoints.finish(whole, {"members": [vars(each) for each in trained]})
    return trained


@final
@dataclass
class _Cohort:
    """The members at work, and how they hear each other."""

    lives: list[Live]
    journals: list[Journal]
    task: Task
    method: Method
    target: Target
    seed: int
    own_views: bool

    def batches(self, data: TrainingSet, rows: Sequence[Tensor], views: list[Tensor | None]) -> list[list[Batch]]:
        """The batches of one step as each member sees them; gathered once where all see the same."""
        device = self.lives[0].device
        seen = [[_moved(data.batch(some, None if view is None else view[some]), device) for some in rows] for view in views]
        return seen if self.own_views else seen * len(self.lives)

    def views(self, data: TrainingSet, epoch: int) -> list[Tensor | None]:
        """The views of an epoch's rows: one for all, or one per member, the first as a student or a control alone sees them."""
        if data.views == 1:
            return [None]
        numbers = range(len(self.lives)) if self.own_views else range(1)
        return [view_order(len(data), data.views, self.seed + 100_003 * number, epoch).to(data.inputs.device) for number in numbers]

    def answer(self, number: int, batch: Batch) -> Tensor:
        """What a member says of a batch as it is now, with the graph that leads back into it."""
        live = self.lives[number]
        with _precision(live.device, live.options.precision):
            said = live.module(batch.inputs)
        return torch.as_tensor(said).float()

    def heard(self, number: int, said: list[Tensor], batch: Batch) -> Batch:
        """The batch of one member with what it hears in the place of a teacher's answers."""
        if self.method == "mutual":
            others = torch.stack([each.detach() for at, each in enumerate(said) if at != number])
            teacher = self._mean(others, number)
        else:
            assert batch.labels is not None
            labels = batch.labels if batch.labelled is None else batch.labels.masked_fill(~batch.labelled, -1)
            teacher = TARGETS[self.target](torch.stack([each.detach() for each in said]), labels)
        return replace(batch, teacher={self.task.signal: teacher}, answered=None)

    def _mean(self, others: Tensor, number: int) -> Tensor:
        if len(others) == 1:
            return others[0]
        if self.task.kind == "recognition":
            return ending_alike(mean_answer(others, self.task), others)
        if not self.task.single_label:
            return mean_answer(others, self.task)
        return ensembles.mean_of_probabilities(others, temperature=_temperature(self.lives[number].objective))

    def step(self, seen: list[list[Batch]]) -> list[tuple[Tensor, Batch]]:
        """One optimizer step of every member; gives the last batch of each with its answer, for the journal."""
        said = [[self.answer(number, batch) for batch in batches] for number, batches in enumerate(seen)]
        rows = sum(len(batch.inputs) for batch in seen[0])
        last = []
        for number, (live, journal) in enumerate(zip(self.lives, self.journals, strict=True)):
            for at, batch in enumerate(seen[number]):
                batch = self.heard(number, [each[at] for each in said], batch)
                answer = said[number][at]
                total, terms = live.objective({self.task.signal: answer}, batch)
                journal.note(live.at.step + 1, total, terms)
                loss = total if len(seen[number]) == 1 else total * (len(batch.inputs) / rows)
                (loss if live.scaler is None else live.scaler.scale(loss)).backward()
            last.append((answer.detach(), batch))
            live.step()
            if self.method == "mutual" and number + 1 < len(self.lives):
                # those that come after hear what this one says now, not what it said before its step
                with torch.no_grad():
                    said[number] = [self.answer(number, batch) for batch in seen[number]]
        return last

    def test(self, data: TrainingSet) -> None:
        """Does every term move every member? Asked of the first batch, in evaluation mode."""
        rows = row_order(len(data), self.seed, 0)[: self.lives[0].options.batch_size].to(data.inputs.device)
        seen = [batches[0] for batches in self.batches(data, [rows], self.views(data, 0))]
        said = []
        for number, live in enumerate(self.lives):
            with evaluating(live.module), torch.no_grad():
                said.append(self.answer(number, seen[number]))
        for number, live in enumerate(self.lives):
            batch = self.heard(number, said, seen[number])

            def forward(given: Batch, module: nn.Module = live.module) -> dict[str, Tensor]:
                return {self.task.signal: module(given.inputs).float()}

            with evaluating(live.module):
                live.objective.signal_test(forward, batch, live.parameters)

    def state(self) -> dict[str, Any]:
        return {"members": [{**live.state(), "weak": journal.weak} for live, journal in zip(self.lives, self.journals, strict=True)]}

    def restore(self, state: dict[str, Any]) -> None:
        for live, journal, kept in zip(self.lives, self.journals, state["members"], strict=True):
            journal.weak = kept.pop("weak")
            live.restore(kept)


def _loop(cohort: _Cohort, data: TrainingSet, checkpoints: Checkpoints, validate: Sequence[Validate] | None, metric: str) -> None:
    """Every epoch, every step, from wherever a checkpoint left off."""
    lives, journals, options = cohort.lives, cohort.journals, cohort.lives[0].options
    per_epoch = len(steps_of(torch.arange(len(data)), options.batch_size, options.accumulate))
    log_every = max(LOG_EVERY, per_epoch // 20)
    kept = checkpoints.load()
    if kept is not None:
        cohort.restore(kept)
    at = lives[0].at
    for journal in journals:
        journal.open(at.step, per_epoch * options.epochs)
    if at.step == 0 and options.epochs:
        cohort.test(data)
    before, started, logged = at.seconds, time.perf_counter(), at.step
    for live in lives:
        live.module.train()
    while not all(live.at.finished(options) for live in lives):
        order = row_order(len(data), cohort.seed, at.epoch).to(data.inputs.device)
        views = cohort.views(data, at.epoch)
        for rows in steps_of(order, options.batch_size, options.accumulate)[at.within :]:
            lr = options.lr * rate_factor(progress_of(at.step, per_epoch, options, at.seconds), options)
            for live in lives:
                for group in live.optimizer.param_groups:
                    group["lr"] = lr
            last = cohort.step(cohort.batches(data, rows, views))
            seconds = before + time.perf_counter() - started
            for live in lives:
                live.at.step, live.at.within, live.at.seconds = live.at.step + 1, live.at.within + 1, seconds
            said = {"step": at.step, "epoch": at.epoch + 1, "seconds": seconds}
            if at.step - logged >= log_every:
                logged = at.step
                for live, journal, (answer, batch) in zip(lives, journals, last, strict=True):
                    journal.write(said, shares=live.objective.shares(answer, batch), lr=lr)
            if at.within < per_epoch and checkpoints.due(epoch_end=False):
                for journal in journals:
                    journal.write(said, lr=lr)
                checkpoints.save(cohort.state())
            if options.max_time is not None and at.seconds >= options.max_time and at.epoch:
                break
        for number, (live, journal) in enumerate(zip(lives, journals, strict=True)):
            loss_now = journal.write(said, lr=lr)
            figures = _validated(None if validate is None else validate[number], live)
            live.at.seconds = before + time.perf_counter() - started
            live.end_epoch(loss_now, figures, metric)
            journal.score(said, figures)
        if checkpoints.due(epoch_end=True):
            checkpoints.save(cohort.state())
    for live in lives:
        chosen = live.best if options.keep == "best" and live.best is not None else live.average
        if chosen is not None:
            live.module.load_state_dict(chosen)


def _temperature(objective: Objective) -> float:
    """The temperature at which the others are heard: that of the first term that has one, else 1."""
    found = (term.options.get("temperature") for term in objective.active if any(name != "labels" for name in term.reads))
    return float(next((each for each in found if each is not None), 1.0))


def _refuse(
    modules: Sequence[nn.Module], objective: Objective, data: TrainingSet, task: Task, method: str, target: str, gap: float | None
) -> None:
    """A cohort that cannot mean anything, before a step is made."""
    if gap is not None:
        raise InputError("train.momentum_gap is for a student of a teacher, and a cohort has none; leave it out", code="U484")
    for what, asked, there in (("method", method, TEMPERATURE), ("target", target, TARGETS)):
        if asked not in there:
            raise InputError(f"cohort.{what} = {asked!r} is unknown; {did_you_mean(asked, there)}", code="U351")
    if len(modules) < 2:
        raise InputError(f"a cohort of {len(modules)} has nobody to learn from; give two members or more (cohort.size = 2)", code="U350")
    if not objective.needs_teacher:
        raise InputError("no term of the objective hears the other members; add logits.soft_target with a weight above 0", code="U352")
    if method == "collaborative" and (not task.single_label or data.labels is None):
        why = "no row has one" if task.single_label else f"the task is {task.kind}"
        text = f"cohort.method = 'collaborative' makes its target with the class of each row, and {why}; use 'mutual'"
        raise InputError(text, code="U352")
    weights = [parameter for module in modules for parameter in module.parameters()]
    if len({id(weight) for weight in weights}) < len(weights):
        raise InputError("members of a cohort share weights; make each a module of its own", code="U353")
    for number, module in enumerate(modules[1:], 2):
        if _same(module, modules[0]):
            text = (
                f"members 1 and {number} start from the same weights and would stay the same network; initialise them from different seeds"
            )
            raise InputError(text, code="U353")


def _same(first: nn.Module, second: nn.Module) -> bool:
    mine, other = list(first.parameters()), list(second.parameters())
    return len(mine) == len(other) and all(a.shape == b.shape and bool((a == b).all()) for a, b in zip(mine, other, strict=True))


def _described(
    modules: Sequence[nn.Module], objective: Objective, data: TrainingSet, task: Task, options: OptimizerSection, seed: int, how: str
) -> dict[str, Any]:
    said = _identity(modules[0], objective, data, task, options, seed)
    return {**said, "cohort": how, "network": ", ".join(map(shape_digest, modules))}
