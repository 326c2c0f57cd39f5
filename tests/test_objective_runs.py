"""Objectives as a user has them: each through `understudy distill` on digits, explained, and with the mistakes that are refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from sklearn.datasets import load_digits

from understudy import pipeline
from understudy.errors import InputError, RecipeError
from understudy.features import FeatureTerm, Member, OnTeachersEmbedding
from understudy.losses.logits import soft_target
from understudy.losses.tokens import forward_kl
from understudy.objectives import Objective
from understudy.recipe import parse
from understudy.sections import OptimizerSection
from understudy.signals import Batch
from understudy.stages import teaching
from understudy.tasks import Task
from understudy.training._momenta import SeparateMomenta
from understudy.training.gradient import TrainingSet, train

CE = {"loss": "labels.cross_entropy"}
CHANCE = 0.3
"""Ten classes: a student that learns nothing stays near 0.1."""
SOFT = {"loss": "logits.soft_target"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 digits as pictures, and as rows of 64 numbers."""
    given, folder = load_digits(), tmp_path_factory.mktemp("digits")
    np.savez(folder / "pictures.npz", X=(given.images[:400] / 16 * 255).astype(np.uint8), y=given.target[:400])
    np.savez(folder / "numbers.npz", X=given.data[:400].astype(np.float32) / 16, y=given.target[:400])
    return folder


def said(digits: Path, out: Path, **sections: Any) -> dict[str, Any]:
    """A recipe of networks on flat digits; sections replace those that are here."""
    plain: dict[str, Any] = {
        "out": str(out),
        "data": {"train": str(digits / "numbers.npz")},
        "teacher": {"train": {"model": "mlp", "options": {"hidden": [48]}, "epochs": 8, "batch_size": 32, "lr": 0.01}},
        "student": {"model": "mlp", "options": {"hidden": [16]}},
        "train": {"epochs": 7, "batch_size": 32, "lr": 0.01},
        "control": False,
        "measure": {"latency": False, "resamples": 100},
    }
    return plain | sections


def pictures(digits: Path, out: Path, **sections: Any) -> dict[str, Any]:
    """The same with convolutional networks, which have stages."""
    train = {"model": "convnet", "options": {"width": 8, "depth": 2}, "epochs": 3, "batch_size": 32, "lr": 0.01}
    convolutional: dict[str, Any] = {
        "data": {"train": str(digits / "pictures.npz"), "kind": "image"},
        "teacher": {"train": train},
        "student": {"model": "convnet", "options": {"width": 4, "depth": 2}},
        "train": {"epochs": 2, "batch_size": 32, "lr": 0.01},
    }
    return said(digits, out, **(convolutional | sections))


def taught(recipe: dict[str, Any]) -> tuple[float, str]:
    """The student's accuracy on validation rows, and what was printed; nothing is exported or measured, which takes longest."""
    printed = io.StringIO()
    pipeline.distill(parse(recipe), until="train", console=Console(file=printed, width=300))
    card = json.loads((Path(recipe["out"]) / "seed-0" / "student" / "card.json").read_text())
    return float(card["history"][-1]["accuracy"]), printed.getvalue()


def logged(out: Path) -> list[dict[str, Any]]:
    """The lines of the student's metrics."""
    return [json.loads(line) for line in (out / "seed-0" / "student" / "metrics.jsonl").read_text().splitlines()]


# --- temperatures that move or are learned ------------------------------------------------------------------------------


def test_the_temperature_of_the_plain_objective_moves(digits: Path, tmp_path: Path) -> None:
    recipe = said(digits, tmp_path / "run", objective={"temperature": {"schedule": "linear", "start": 8, "end": 1}})
    assert "soft_target(student, teacher, temperature=[8 to 1, linear])" in pipeline.explain(parse(recipe))
    assert taught(recipe)[0] > CHANCE
    moving = [line["moving"]["soft_target.temperature"] for line in logged(tmp_path / "run") if "moving" in line]
    assert moving and 1 <= moving[-1] < 8


def test_a_learned_temperature_with_another_loss(digits: Path, tmp_path: Path) -> None:
    term = {"loss": "logits.decoupled", "options": {"temperature": {"learned": True, "over": 0.5}, "other_weight": 2.0}}
    recipe = said(digits, tmp_path / "run", objective={"terms": [CE, term]})
    assert "temperature=[learned, 1 to 21]" in pipeline.explain(parse(recipe))
    assert taught(recipe)[0] > CHANCE
    moving = [line["moving"]["decoupled.temperature"] for line in logged(tmp_path / "run") if "moving" in line]
    start = 1 + 20 / (1 + np.exp(-1.0))
    assert moving and abs(moving[-1] - start) > 1e-3


def test_temperatures_that_cannot_be(digits: Path, tmp_path: Path) -> None:
    for temperature, message in (
        ({"schedule": "linear", "end": 2}, "temperature must be > 0"),
        ({"schedule": "linear", "start": 2, "end": 300}, "temperature must lie between 0.05 and 100"),
        ({"schedule": "linear", "start": 4, "warmup": 0.1}, "cannot be warmed up from 0"),
    ):
        with pytest.raises(RecipeError, match=message):
            parse(said(digits, tmp_path / "run", objective={"temperature": temperature}))
    learned = {"loss": "labels.virtual_teacher", "options": {"temperature": {"learned": True}}}
    with pytest.raises(RecipeError, match="U480 the term 'virtual_teacher'"):
        pipeline.explain(parse(said(digits, tmp_path / "run", objective={"terms": [learned]})))
    moving = {"temperature": {"schedule": "linear", "start": 4, "end": 1}}
    with pytest.raises(InputError, match="U481 .*a tree is fitted in one go"):
        taught(said(digits, tmp_path / "run", objective=moving, student={"model": "tree"}))


# --- tokens and stored classes ------------------------------------------------------------------------------------------


def test_losses_on_tokens_read_plain_logits_as_one_position(digits: Path, tmp_path: Path) -> None:
    terms = [CE, {"loss": "tokens.reverse_kl"}, {"loss": "tokens.jensen_shannon", "options": {"temperature": 2.0}}]
    recipe = said(digits, tmp_path / "run", objective={"terms": terms})
    assert "1 * reverse_kl(student, teacher, temperature=1)" in pipeline.explain(parse(recipe))
    assert taught(recipe)[0] > CHANCE


def test_a_term_on_tokens_is_a_mean_over_the_positions_that_count() -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 4, 5, generator=draw) for _ in range(2))
    places = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    labels = torch.where(places > 0, 2, -1)
    task = Task("multiclass", tuple("abcde"))
    wanted = torch.stack([forward_kl(student[:, [at]], teacher[:, [at]])[:, 0] for at in range(4)], 1)[places > 0].mean()
    batch = Batch(student, labels, None, {"logits": teacher, "counts": places.float()})
    for said_places in ("labels", "counts"):
        (term,) = Objective.from_terms([("tokens.forward_kl", 1.0, {"places": said_places})], task).active
        torch.testing.assert_close(term({"logits": student}, batch), wanted)
    with pytest.raises(InputError, match=r"U483 .*counts is \[3, 2\], the positions are \[3, 4\]"):
        term({"logits": student}, Batch(student, labels, None, {"logits": teacher, "counts": places[:, :2]}))


def test_the_stored_classes_are_read_as_they_are(digits: Path, tmp_path: Path) -> None:
    objective = {"terms": [CE, {"loss": "topk.topk_tail_kl", "weight": 2.0}]}
    recipe = said(digits, tmp_path / "run", objective=objective, teaching={"encoding": "top-k", "top": 3})
    assert "reads: logits/ids, logits/top" in pipeline.explain(parse(recipe))
    assert taught(recipe)[0] > CHANCE
    with pytest.raises(InputError, match="U482 the loss 'topk.topk_tail_kl' reads the columns of a top-k store"):
        taught(said(digits, tmp_path / "dense", objective=objective))
    with pytest.raises(RecipeError, match="no term binds what it reads"):
        pipeline.explain(parse(said(digits, tmp_path / "run", objective={"terms": [{"loss": "topk.sampled_cross_entropy"}]})))


def test_a_term_on_stored_classes_is_its_loss_on_them() -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 5, generator=draw) for _ in range(2))
    top, ids = teacher.log_softmax(-1).topk(2)
    (term,) = Objective.from_terms([("topk.topk_tail_kl", 1.0, {})], Task("multiclass", tuple("abcde"))).active
    batch = Batch(student, None, None, {"logits/ids": ids, "logits/top": top})
    p, q = teacher.softmax(-1), student.softmax(-1)
    rest = [1 - side.gather(1, ids).sum(1) for side in (p, q)]
    by_hand = (top.exp() * (top - q.gather(1, ids).log())).sum(1) + rest[0] * (rest[0] / rest[1]).log()
    torch.testing.assert_close(term({"logits": student}, batch), by_hand.mean())


# --- separate momenta ---------------------------------------------------------------------------------------------------


def test_separate_momenta_by_hand() -> None:
    """Two steps on two numbers: each gradient has its own memory, and a weight that hears nobody has the plain momentum."""
    both, alone = (torch.nn.Parameter(torch.tensor(1.0)) for _ in range(2))
    optimizer = SeparateMomenta([both, alone], lr=0.1, momentum=0.5, gap=0.2)
    for labels, teacher in ((1.0, 10.0), (2.0, 20.0)):
        optimizer.hear(both * teacher * 0.5)
        optimizer.hear(both * teacher * 0.5)  # as in two batches of one step
        both.grad, alone.grad = torch.tensor(labels), torch.tensor(labels)
        optimizer.step()
    from_labels, from_teacher, plain = (1 + (momentum * 1 + 2) for momentum in (0.3, 0.7, 0.5))
    torch.testing.assert_close(both.detach(), torch.tensor(1 - 0.1 * (from_labels + 10 * from_teacher)))
    torch.testing.assert_close(alone.detach(), torch.tensor(1 - 0.1 * plain))


def test_a_student_with_separate_momenta_and_its_resume(digits: Path, tmp_path: Path) -> None:
    train = {"epochs": 7, "batch_size": 32, "lr": 0.02, "optimizer": "sgd", "momentum_gap": 0.075}
    recipe = said(digits, tmp_path / "run", train=train)
    assert "momentum = 0.825 for the gradient of the labels, 0.975 for that of the teacher" in pipeline.explain(parse(recipe))
    assert taught(recipe)[0] > CHANCE
    first = torch.nn.Linear(64, 10)
    weights = [*first.parameters()]
    whole, cut = (SeparateMomenta(weights, lr=0.1, momentum=0.9, gap=0.075) for _ in range(2))
    inputs = torch.ones(4, 64)
    whole.hear(first(inputs).square().mean())
    first(inputs).mean().backward()
    whole.step()
    cut.load_state_dict(whole.state_dict())
    assert all(torch.equal(cut.state[weight][part], whole.state[weight][part]) for weight in weights for part in ("labels", "teacher"))


def test_separate_momenta_that_cannot_be(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="momentum_gap goes with optimizer = 'sgd'"):
        parse(said(digits, tmp_path / "run", train={"momentum_gap": 0.1}))
    with pytest.raises(RecipeError, match="momentum must lie between"):
        parse(said(digits, tmp_path / "run", train={"momentum_gap": 0.1, "optimizer": "sgd", "momentum": 0.95}))
    train = {"epochs": 1, "batch_size": 32, "optimizer": "sgd", "momentum_gap": 0.05}
    with pytest.raises(InputError, match="U484 .*no term reads labels alone"):
        taught(said(digits, tmp_path / "run", train=train, objective={"terms": [SOFT]}))


# --- early exits --------------------------------------------------------------------------------------------------------


def exits(loss: str, **options: Any) -> dict[str, Any]:
    return {"loss": loss, "options": {"reads": "exits", **options}}


def test_early_exits_hear_the_students_own_answer_and_leave_no_trace(digits: Path, tmp_path: Path) -> None:
    terms = [CE, exits("labels.cross_entropy"), exits("logits.soft_target", temperature=3.0), {"loss": "logits.logit_mse", "weight": 0}]
    recipe = pictures(
        digits, tmp_path / "run", objective={"terms": terms}, generations={"count": 1}, train={"epochs": 4, "batch_size": 32, "lr": 0.01}
    )
    del recipe["teacher"]
    shown = pipeline.explain(parse(recipe))
    assert "1 * soft_target(exits of stages, student, temperature=3)" in shown and "reads: labels" in shown
    accuracy, printed = taught(recipe)
    assert accuracy > CHANCE
    assert "connectors cross_entropy_2" in printed and "trained with the student and thrown away" in printed
    with safe_open(str(tmp_path / "run/seed-0/student/model.safetensors"), "pt") as kept:
        assert all(name.startswith(("preprocessing", "network")) for name in kept.keys())  # noqa: SIM118


def test_an_exit_by_hand() -> None:
    """The term is the loss of each exit against the answer, which gets no gradient; labels where the loss reads them."""
    draw = torch.Generator().manual_seed(0)
    layer, answer = torch.randn(4, 6, generator=draw), torch.randn(4, 3, generator=draw, requires_grad=True)
    task, labels = Task("multiclass", ("a", "b", "c")), torch.tensor([0, 1, 2, -1])
    objective = Objective.from_terms(
        [
            ("logits.soft_target", 1.0, {"reads": "exits", "student": "a"}),
            ("labels.cross_entropy", 1.0, {"reads": "exits", "student": "a"}),
        ],
        task,
    )
    student = {"features/a": layer, "logits": answer}
    objective.connect(student, {})
    soft, hard = objective.active
    batch = Batch(layer, labels, labels >= 0, {})
    total, values = objective(student, batch)
    said_soft, said_hard = soft.connectors[0](layer), hard.connectors[0](layer)  # type: ignore[index,operator,union-attr]
    torch.testing.assert_close(values["soft_target"], soft_target(said_soft, answer).mean().detach())
    torch.testing.assert_close(values["cross_entropy"], torch.nn.functional.cross_entropy(said_hard[:3], labels[:3]).detach())
    total.backward()
    assert answer.grad is None and all(weight.grad is not None for weight in objective.parameters())
    nobody = Batch(layer, None, None, {})
    assert hard(student, nobody) == 0


def test_exits_that_cannot_be(digits: Path, tmp_path: Path) -> None:
    flat = said(digits, tmp_path / "flat", objective={"terms": [CE, SOFT, exits("logits.soft_target")]})
    with pytest.raises(InputError, match="U341 .*so no early one; name layers"):
        taught(flat)
    for term, message in (
        (exits("layers.hint"), "U485 the loss 'layers.hint' reads layers, and an exit gives answers"),
        (exits("labels.binary_cross_entropy"), "is not for a multiclass task"),
        ({**exits("logits.soft_target"), "teacher": "a"}, "U344 .*leave out teacher and connector"),
    ):
        with pytest.raises(RecipeError, match=message):
            pipeline.explain(parse(said(digits, tmp_path / "run", objective={"terms": [term]})))


# --- a teacher that stops early -----------------------------------------------------------------------------------------


def test_the_stop_of_a_teacher_is_chosen_by_its_students_on_validation_rows(digits: Path, tmp_path: Path) -> None:
    train = {"model": "mlp", "options": {"hidden": [48]}, "epochs": 10, "batch_size": 32, "lr": 0.01, "stops": [1.0, 0.1]}
    recipe = said(digits, tmp_path / "run", teacher={"train": train, "accept_score": True})
    accuracy, printed = taught(recipe)
    kept = json.loads((tmp_path / "run" / "teacher" / "stops.json").read_text())
    pupils = {
        stop: json.loads((tmp_path / "run" / "teacher" / f"stop-{stop}" / "pupil" / "card.json").read_text())["history"][-1]["accuracy"]
        for stop in ("0.1", "1")
    }
    epochs = {stop: json.loads((tmp_path / "run" / "teacher" / f"stop-{stop}" / "card.json").read_text())["epochs"] for stop in pupils}
    assert kept["tried"] == pytest.approx(pupils) and kept["taken"] == float(max(pupils, key=lambda stop: pupils[stop]))
    assert epochs == {"0.1": 1, "1": 10}
    assert printed.count("<- taken") == 1 and accuracy > CHANCE
    # the student of the first seed learns as the pupil did, from the teacher that was taken
    assert accuracy == pytest.approx(kept["tried"][f"{kept['taken']:g}"])
    assert taught(recipe)[0] == accuracy  # nothing is trained again


def test_stops_that_cannot_be(digits: Path, tmp_path: Path) -> None:
    train = {"model": "mlp", "epochs": 2, "stops": [0.5, 1.0]}
    with pytest.raises(RecipeError, match="leave out stop and max_time"):
        parse(said(digits, tmp_path / "run", teacher={"train": {**train, "stop": 0.5}}))
    with pytest.raises(RecipeError, match="different fractions above 0 and at most 1"):
        parse(said(digits, tmp_path / "run", teacher={"train": {**train, "stops": [0.5, 1.5]}}))
    with pytest.raises(InputError, match="U486 teacher.train.stops tries teachers on a network"):
        taught(said(digits, tmp_path / "run", teacher={"train": train}, student={"model": "tree"}))


# --- layers with connectors that learn ----------------------------------------------------------------------------------


def test_flows_fused_layers_and_learned_variances_in_one_run(digits: Path, tmp_path: Path) -> None:
    terms = [
        CE,
        {"loss": "channels.solution_flow", "weight": 1.0},
        {"loss": "layers.hierarchical_context", "weight": {"schedule": "constant", "end": 1.0, "warmup": 0.3}, "connector": "attention"},
        {"loss": "layers.variational_information", "weight": 0.1},
    ]
    train = {"epochs": 4, "batch_size": 32, "lr": 0.01}
    recipe = pictures(digits, tmp_path / "run", objective={"terms": terms}, train=train)
    shown = pipeline.explain(parse(recipe))
    assert "[1, warm-up 30%] * hierarchical_context(student.auto, teacher.auto)" in shown
    assert "1 * solution_flow(student.auto, teacher.auto)" in shown
    accuracy, printed = taught(recipe)
    assert accuracy > CHANCE / 2
    (line,) = (line for line in printed.splitlines() if line.startswith("connectors"))
    flow = 4 * 8 + 2 * 8 + 8 * 16 + 2 * 16
    fused = (4 * 16 + 32) + (2 * 32 + 2) + (16 * 8 * 9 + 16) + (8 * 16 + 32) + (16 * 16 * 9 + 32)  # the deepest weighs nothing below it
    assert f"solution_flow {flow}," in line and f"hierarchical_context {fused:,}," in line
    assert f"variational_information {flow + 8 + 16} " in line  # one variance for each channel of the teacher


def test_learned_variances_tell_channels_that_can_be_followed_from_noise() -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 4, generator=draw)
    followed = inputs @ torch.randn(4, 1, generator=draw)
    maps = torch.cat([followed, 2 * torch.randn(256, 1, generator=draw)], 1)[:, :, None, None]
    network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Unflatten(1, (6, 1, 1)), torch.nn.Flatten(), torch.nn.Linear(6, 3))
    task = Task("multiclass", ("a", "b", "c"))
    place = ("layers.variational_information", 1.0, {"student": "1", "teacher": "answer"})
    objective = Objective.from_terms([("labels.cross_entropy", 0.1, {}), place], task)
    objective.connect({"features/1": torch.rand(8, 6, 1, 1), "logits": torch.rand(8, 3)}, {"features/answer": maps[:8]})
    data = TrainingSet(inputs, torch.randint(3, (256,), generator=draw), None, {"features/answer": maps})
    options = OptimizerSection(epochs=40, batch_size=32, lr=0.05, device="cpu")
    train(network, objective, data, task=task, options=options, seed=0, progress=False)
    term = objective.active[1]
    assert isinstance(term, FeatureTerm)
    quiet, loud = torch.nn.functional.softplus(term.variances[0].detach()).tolist()
    assert quiet < 1.0 < 2.5 < loud < 6.0  # both began at 5; the noise has a variance of 4


# --- embeddings of several teachers -------------------------------------------------------------------------------------


def test_the_student_follows_the_embedding_of_the_teacher_whose_classifier_reads_it_best(digits: Path, tmp_path: Path) -> None:
    train = {"model": "mlp", "epochs": 8, "batch_size": 32, "lr": 0.01}
    members = [
        {"name": "wide", "train": {**train, "options": {"hidden": [48]}}},
        {"name": "slim", "train": {**train, "options": {"hidden": [24]}, "seed": 1}},
    ]
    feature = {"loss": "layers.hint", "weight": 5.0, "options": {"reads": "teachers_embedding", "teachers": ["wide", "slim"]}}
    recipe = said(digits, tmp_path / "run", teacher={"members": members, "combine": "confidence"}, objective={"terms": [CE, SOFT, feature]})
    assert "5 * hint(student's embedding, embedding of wide, embedding of slim, labels)" in pipeline.explain(parse(recipe))
    accuracy, printed = taught(recipe)
    assert accuracy > CHANCE
    assert f"hint {16 * 48 + 48 + 16 * 24 + 24:,} parameters" in printed  # the teachers' classifiers are not counted: they do not learn
    stored = json.loads((tmp_path / "run" / "transfer" / "training" / "manifest.json").read_text())["signals"]
    assert {"logits", "teachers/wide/features/network.2:input", "teachers/slim/features/network.2:input"} <= set(stored)
    misspelt = {**feature, "options": {**feature["options"], "teachers": ["wide", "slum"]}}
    with pytest.raises(InputError, match="U487 a term reads the embedding of 'slum'; did you mean 'slim'"):
        taught({**recipe, "out": str(tmp_path / "misspelt"), "objective": {"terms": [CE, misspelt]}})
    with pytest.raises(RecipeError, match="U487 .*two names or more"):
        pipeline.explain(parse({**recipe, "objective": {"terms": [{**feature, "options": {"reads": "teachers_embedding"}}]}}))


def test_embeddings_of_several_teachers_by_hand() -> None:
    draw = torch.Generator().manual_seed(0)
    student = torch.randn(4, 6, generator=draw)
    widths, labels, task = (5, 3), torch.tensor([0, 1, 2, 0]), Task("multiclass", ("a", "b", "c"))
    heads = [(torch.randn(3, width, generator=draw), torch.randn(3, generator=draw)) for width in widths]
    said_by_teachers = {
        f"teachers/{name}/features/e": torch.randn(4, width, generator=draw) for name, width in zip("uv", widths, strict=True)
    }
    options = {"reads": "teachers_embedding", "teachers": ["u", "v"], "student": "s"}
    (term,) = Objective.from_terms([("layers.hint", 1.0, options)], task).active
    assert isinstance(term, OnTeachersEmbedding)
    term.resolve([], [])
    term.meet({name: Member("e", *head) for name, head in zip("uv", heads, strict=True)})
    term.connect({"features/s": student}, said_by_teachers)
    ours = [connect(student) for connect in term.connectors]
    errors = torch.stack(
        [
            torch.nn.functional.cross_entropy(one @ weight.T + bias, labels, reduction="none")
            for one, (weight, bias) in zip(ours, heads, strict=True)
        ]
    )
    weights = 1 - errors.softmax(0)  # of two teachers: (1 - share) / (2 - 1)
    wanted = sum(
        weight * (one - other).square().mean(1) for weight, one, other in zip(weights, ours, said_by_teachers.values(), strict=True)
    )
    torch.testing.assert_close(term({"features/s": student}, Batch(student, labels, None, said_by_teachers)), wanted.mean())  # type: ignore[union-attr]
    term({"features/s": student}, Batch(student, labels, None, said_by_teachers)).backward()
    gradient = term.connectors[0].project.weight.grad  # the weights are constants
    expected = torch.autograd.grad(
        (weights[0].detach() * (ours[0] - said_by_teachers["teachers/u/features/e"]).square().mean(1)).mean(),
        term.connectors[0].project.weight,
    )  # type: ignore[arg-type,union-attr]
    torch.testing.assert_close(gradient, expected[0])


# --- layers along a chain -----------------------------------------------------------------------------------------------


def test_every_link_of_a_chain_reads_the_layers_of_the_one_before_it(digits: Path, tmp_path: Path) -> None:
    chain = [{"model": "convnet", "options": {"width": 6, "depth": 2}}]
    terms = [CE, SOFT, {"loss": "layers.hint", "student": "stage2", "teacher": "stage2"}]
    recipe = pictures(digits, tmp_path / "run", objective={"terms": terms}, chain=chain)
    accuracy, printed = taught(recipe)
    assert accuracy > CHANCE / 2
    widths = {
        place: json.loads((tmp_path / "run" / place / "manifest.json").read_text())["signals"]["features/stage2"]["shape"]
        for place in ("transfer/training", "chain/last")
    }
    assert widths == {"transfer/training": [16, 4, 4], "chain/last": [12, 4, 4]}  # of the teacher, then of the assistant
    assert printed.count("connectors") == 2 and "hint 224" in printed and "hint 120" in printed  # 12 x 16 + 2 x 16, 8 x 12 + 2 x 12
    again, said_again = taught(recipe)
    assert again == accuracy and said_again.count("connectors") == 2


# --- what is refused before anything is trained, and what is stored -------------------------------------------------------

HINT = {"loss": "layers.hint", "student": "stage2", "teacher": "stage2"}


def test_layers_that_are_not_there_or_cannot_be_read(digits: Path, tmp_path: Path) -> None:
    misspelt = {**HINT, "teacher": "stege2"}
    with pytest.raises(InputError, match="U340 there is no layer 'stege2'.*did you mean 'stage2'"):
        taught(pictures(digits, tmp_path / "misspelt", objective={"terms": [CE, misspelt]}))
    with pytest.raises(InputError, match="U340 .*it gives answers only"):
        taught(pictures(digits, tmp_path / "forest", objective={"terms": [CE, HINT]}, teacher={"train": {"model": "forest"}}))
    for folder in ("misspelt", "forest"):
        assert not (tmp_path / folder / "transfer").exists()


FACTORY = """
import torch
from understudy.students.mlp import mlp

def made():
    return mlp(64, 10, hidden=[24], seed=3)
"""


def test_a_transfer_set_without_the_layers_says_what_to_delete(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "factory_of_layers.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    teacher = {"source": "factory_of_layers:made", "weights": "factory", "accept_mapping": True, "accept_score": True}
    taught(said(digits, tmp_path / "run", teacher=teacher))
    hint = {"loss": "layers.hint", "student": "0", "teacher": "0"}
    recipe = parse(said(digits, tmp_path / "run", teacher=teacher, objective={"terms": [CE, hint]}))
    with pytest.raises(InputError, match="U341 a term reads features/0, and the transfer set .* Delete it and run the same command"):
        pipeline.distill(recipe, until="train", fresh=True, console=Console(file=io.StringIO()))


def test_a_student_without_stages_cannot_be_paired(digits: Path, tmp_path: Path) -> None:
    recipe = said(digits, tmp_path / "run", objective={"terms": [CE, {"loss": "layers.hint"}]}, student={"options": {"hidden": []}})
    with pytest.raises(InputError, match="U341 no layers of the student can be paired: .*Name layers"):
        taught(recipe)
    assert not (tmp_path / "run" / "transfer").exists()


def test_a_memory_bank_without_keys_is_refused() -> None:
    task, rows = Task("multiclass", ("a", "b", "c")), torch.rand(4, 5)
    objective = Objective.from_terms([("contrastive.contrastive_representation", 1.0, {"student": "a", "teacher": "embedding"})], task)
    with pytest.raises(InputError, match="U345 .*give the keys of the training rows"):
        objective.connect({"features/a": rows}, {"embedding": rows})
    objective.connect({"features/a": rows}, {"embedding": rows}, keys=torch.arange(8).reshape(4, 2))
    data = TrainingSet(rows, torch.tensor([0, 1, 2, 0]), None, {"embedding": rows})
    options = OptimizerSection(epochs=1, device="cpu")
    with pytest.raises(InputError, match="U345 .*this training set has no keys: give keys"):
        train(torch.nn.Linear(5, 3), objective, data, task=task, options=options, seed=0, progress=False)


def test_a_batch_of_one_row_with_a_loss_on_relations_is_refused_by_the_checks(digits: Path, tmp_path: Path) -> None:
    terms = [CE, {"loss": "relations.similarity_preserving"}]
    recipe = said(digits, tmp_path / "run", objective={"terms": terms}, train={"epochs": 1, "batch_size": 1})
    with pytest.raises(InputError, match="U343 relations.similarity_preserving compares the rows of a batch, and train.batch_size is 1"):
        taught(recipe)
    assert not (tmp_path / "run" / "teacher").exists()


def test_layers_count_towards_the_size_of_a_shard_and_the_room_that_is_needed(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("understudy.teaching.SHARD_BYTES", 100 * 4 * (10 + 16 * 4 * 4))  # 100 rows of 10 answers and a map
    monkeypatch.setattr(teaching, "check_disk", lambda folder, needed: asked.append(needed) or [])
    taught(pictures(digits, tmp_path / "run", objective={"terms": [CE, HINT]}))
    manifest = json.loads((tmp_path / "run" / "transfer" / "training" / "manifest.json").read_text())
    assert [shard["rows"] for shard in manifest["shards"]] == [100, 100, 80]
    assert asked == [280 * 4 * (10 + 256) + 120 * 40 + 17 * 400]
