"""Views that are drawn: torchvision's operations, windows and transforms by (row, view), labels of mixed rows, and cached as live."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from understudy.adapters import torchvision_views
from understudy.adapters._loading import RawPreparation
from understudy.data.keys import content_keys
from understudy.data.rows import Rows
from understudy.data.views import Partners, Views, cropped, mixture_of, windows
from understudy.errors import DataError, RecipeError
from understudy.make.lessons import live_answers, stored_answers, training_set
from understudy.make.rows import Loaded
from understudy.make.views import build_views
from understudy.objectives import Objective
from understudy.sections import OptimizerSection
from understudy.signals import Batch
from understudy.tasks import Task
from understudy.teachers import TorchTeacher
from understudy.teaching import teach
from understudy.terms import OnLabels
from understudy.training.gradient import TrainingSet, train

DRAW = np.random.default_rng(0)
IMAGES = DRAW.integers(0, 256, (48, 12, 10, 3), dtype=np.uint8)
KEYS = content_keys(IMAGES, "image")
LABELS = DRAW.integers(0, 3, 48)
ROWS = Rows("image", IMAGES, KEYS, LABELS)
TASK = Task("multiclass", ("a", "b", "c"))


def jitter() -> nn.Module:
    """What a user would write: three transforms of torchvision, one of them geometric."""
    return v2.Compose([v2.RandomPerspective(0.3, p=1.0), v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandomErasing(p=0.5)])


class Pixels(nn.Module):
    """Bytes as numbers from 0 to 1."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) / 255


def smaller() -> nn.Module:
    return v2.Resize([4, 4])


SEEN: dict[str, Callable[[], Views]] = {
    "randaugment": lambda: Views("image", policies=(torchvision_views.randaugment(9),)),
    "crop": lambda: Views("image", crop=0.3, flip=True),
    "transform": lambda: Views("image", policies=(torchvision_views.own_transform(f"{__name__}:jitter"),)),
    "mixup": lambda: Views("image", mixup=0.4, partners=Partners.of(ROWS)),
    "all": lambda: Views("image", shift=1, crop=0.6, colour=0.2, mixup=0.4, partners=Partners.of(ROWS),
                         policies=(torchvision_views.randaugment(5, 1),)),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_a_view_is_a_function_of_the_row_and_its_number(name: str) -> None:
    """Whatever the batch, its order, its size, the state of any generator, and the row beside it."""
    seen = SEEN[name]()
    torch.manual_seed(1)
    whole = seen(IMAGES, KEYS, 3)
    assert (whole != IMAGES).any(axis=(1, 2, 3)).mean() > 0.8
    assert whole.dtype == np.uint8 and whole.shape == IMAGES.shape
    order = np.random.default_rng(1).permutation(len(IMAGES))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    parts = [seen(IMAGES[order[at : at + 7]], KEYS[order[at : at + 7]], np.full(len(order[at : at + 7]), 3)) for at in range(0, 48, 7)]
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.concatenate(parts) == whole[order]).all()
    views = np.arange(48) % 3
    several = seen(IMAGES, KEYS, views)
    for number in range(3):
        assert (several[views == number] == seen(IMAGES, KEYS, number)[views == number]).all()
    assert (several[views == 0] == IMAGES[views == 0]).all()


@pytest.mark.parametrize("name", SEEN)
def test_training_from_the_cache_is_training_with_the_live_teacher(name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(320, 3))
    teacher = TorchTeacher(network, task=TASK, classes=None, prepare=RawPreparation())
    seen = SEEN[name]()
    stored = teach(teacher, ROWS, tmp_path / "store", task=TASK, views=3, augment=seen, view_spec=seen.spec, progress=False)
    losses = []
    for ask in (stored_answers(stored, KEYS, ["logits"]), live_answers(teacher, ROWS, seen)):
        torch.manual_seed(1)
        student = nn.Sequential(Pixels(), nn.Linear(360, 3))
        data = TrainingSet(torch.from_numpy(IMAGES), torch.from_numpy(LABELS), None, {}, keys=KEYS, views=3, augment=seen, ask=ask)
        options = OptimizerSection(epochs=3, batch_size=16, lr=1e-2, device="cpu")
        done = train(student, Objective.soft_labels(task=TASK), data, task=TASK, options=options, seed=0, progress=False)
        losses.append([epoch["loss"] for epoch in done.history])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert len(set(losses[0])) == 3


# --- torchvision ----------------------------------------------------------------------------------------------------

NAMES = {
    "identity": "Identity", "shear x": "ShearX", "shear y": "ShearY", "translate x": "TranslateX", "translate y": "TranslateY",
    "rotate": "Rotate", "brightness": "Brightness", "colour": "Color", "contrast": "Contrast", "sharpness": "Sharpness",
    "posterize": "Posterize", "solarize": "Solarize", "contrast to the full": "AutoContrast", "equalize": "Equalize",
}  # fmt: skip


@pytest.mark.parametrize("name", torchvision_views.OPERATIONS)
def test_operations_are_those_of_torchvision(name: str) -> None:
    """One by one, at two magnitudes and both signs, against its own table of strengths."""
    theirs = v2.RandAugment(magnitude=9)
    images = torch.from_numpy(IMAGES[:6]).permute(0, 3, 1, 2).contiguous()
    strengths, signed = theirs._AUGMENTATION_SPACE[NAMES[name]]
    assert signed == (name in torchvision_views.SIGNED)
    for level in (9, 22):
        all_levels = strengths(31, 12, 10)
        for sign in (1, -1) if signed else (1,):
            size = 0.0 if all_levels is None else float(all_levels[level]) * sign
            wanted = theirs._apply_image_or_video_transform(
                images, NAMES[name], size, interpolation=theirs.interpolation, fill=theirs._fill
            )
            found = torchvision_views._operation(name, sign, images, level / torchvision_views.LEVELS)
            apart = (found.int() - wanted.int()).abs()
            assert apart.max() <= 1 and (apart > 0).float().mean() < 0.01  # its strengths are float32, a pixel may round the other way


def test_every_operation_occurs_about_equally_often() -> None:
    state = np.random.default_rng(0).integers(0, 2**63, 7000).astype(np.uint64)
    chosen = (torchvision_views.drawn(state, 200) * len(torchvision_views.OPERATIONS)).astype(int)
    counts = np.bincount(chosen, minlength=14)
    assert len(counts) == 14 and counts.min() > 400 and counts.max() < 600


def test_a_crop_is_the_window_that_torchvision_resizes() -> None:
    state = np.random.default_rng(3).integers(0, 2**63, 48).astype(np.uint64)
    top, left, high, wide = windows(state, 12, 10, 0.2)
    assert (high * wide >= 0.15 * 120).all() and (top + high <= 12).all() and (left + wide <= 10).all()
    assert len({(int(a), int(b)) for a, b in zip(high, wide, strict=True)}) > 10
    found = cropped(IMAGES, state, np.ones(48, dtype=bool), 0.2)
    for row in range(48):
        image = torch.from_numpy(IMAGES[row]).permute(2, 0, 1)
        box = (int(top[row]), int(left[row]), int(high[row]), int(wide[row]))
        wanted = functional.resized_crop(image, *box, size=[12, 10], antialias=False).permute(1, 2, 0).numpy()
        assert np.abs(found[row].astype(int) - wanted.astype(int)).max() <= 1


def test_windows_that_never_fit_are_the_middle_of_the_image() -> None:
    """A strip of pixels: no window of the whole area has sides within 3:4 to 4:3."""
    top, left, high, wide = windows(np.arange(5, dtype=np.uint64), 4, 40, 1.0)
    assert high.tolist() == [4] * 5 and wide.tolist() == [5] * 5 and top.tolist() == [0] * 5 and left.tolist() == [17] * 5


def test_what_torchvision_views_refuse() -> None:
    with pytest.raises(DataError, match=r"U502 augment.randaugment = 31 with operations = 2: magnitudes are whole numbers from 1 to 30"):
        torchvision_views.randaugment(31)
    shrinking = Views("image", policies=(torchvision_views.own_transform(f"{__name__}:smaller"),))
    with pytest.raises(DataError, match=r"U503 augment.transform = .*smaller' makes uint8 \[3, 4, 4\] of an image uint8 \[3, 12, 10\]"):
        shrinking(IMAGES, KEYS, 1)
    with pytest.raises(DataError, match=r"U320 augment.randaugment is for images, the rows are of kind 'array'"):
        Views("array", policies=(torchvision_views.randaugment(9),))
    with pytest.raises(RecipeError, match=r"U002 augment.operations belongs to randaugment"):
        build_views(OptimizerSection(augment={"operations": 2}), ROWS, None)


WRONG = {
    "crop = 1.5": "augment.crop = 1.5: it has to be a number above 0, at most 1",
    "noise = 'some'": "augment.noise = 'some': it has to be a number above 0",
    "mixup = true": "augment.mixup = True: it has to be a number above 0",
    "shift = 2.5": "augment.shift = 2.5: it has to be a whole number of pixels or samples",
    "flip = 'yes'": "augment.flip = 'yes': it has to be true or false",
}


@pytest.mark.parametrize("text", WRONG)
def test_options_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(RecipeError) as found:
        build_views(OptimizerSection(augment=tomllib.loads(text)), ROWS, None)
    assert f"U502 {WRONG[text]}" in str(found.value)


def test_a_manifest_says_what_was_drawn() -> None:
    made = build_views(OptimizerSection(augment={"randaugment": 7, "crop": 0.5}), ROWS, None)
    assert made is not None and not made.finite
    said = made.spec
    assert said["randaugment"] == {"magnitude": 7, "operations": 2, "torchvision": said["randaugment"]["torchvision"]}
    assert said["crop"] == {"least": 0.5, "windows": "whole pixels"} and said["how"] == "seeded"


# --- mixed labels ---------------------------------------------------------------------------------------------------


def mixed_set(labels: np.ndarray[Any, Any], seen: Views) -> TrainingSet:
    loaded = Loaded(ROWS, TASK, None, ())
    rows = Rows("image", IMAGES, KEYS, labels)
    return training_set(loaded, rows, None, {}, views=4, augment=seen)


def test_labels_are_mixed_as_their_pictures_are() -> None:
    """The share is read back from the pixels of the mixture."""
    seen = SEEN["mixup"]()
    data = mixed_set(LABELS, seen)
    chosen, view = torch.arange(48), torch.full((48,), 2)
    batch = data.batch(chosen, view)
    assert batch.partner is not None and batch.share is not None
    found = mixture_of(seen, KEYS, view.numpy())
    assert found is not None
    assert batch.partner.tolist() == LABELS[found[0]].tolist()
    own, other = IMAGES.reshape(48, -1).astype(float), IMAGES[found[0]].reshape(48, -1).astype(float)
    pixels = batch.inputs.numpy().reshape(48, -1).astype(float)
    for row in np.flatnonzero(found[0] != np.arange(48)):
        away = own[row] - other[row]
        share = ((pixels[row] - other[row]) @ away) / (away @ away)
        assert share == pytest.approx(float(batch.share[row]), abs=0.01) and 0.49 <= share <= 1
    plain = data.batch(chosen, torch.zeros(48, dtype=torch.int64))
    assert plain.share is not None and plain.share.tolist() == [1.0] * 48


def test_a_mixed_term_by_hand() -> None:
    logits, labels = torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 2])
    batch = Batch(logits, labels, None, {}, None, None, torch.tensor([1, 2]), torch.tensor([0.7, 1.0], dtype=torch.float64))
    term = Objective.labels_only(TASK).active[0]
    assert isinstance(term, OnLabels)
    logs = -logits.log_softmax(1)
    assert term.rows(logits, batch).tolist() == pytest.approx([float(0.7 * logs[0, 0] + 0.3 * logs[0, 1]), float(logs[1, 2])])


def test_a_partner_without_a_label_leaves_the_row_its_own() -> None:
    labels = LABELS.copy()
    labels[::2] = -1
    seen = SEEN["mixup"]()
    batch = mixed_set(labels, seen).batch(torch.arange(48), torch.full((48,), 1))
    found = mixture_of(seen, KEYS, np.full(48, 1))
    assert found is not None and batch.share is not None and batch.partner is not None
    lacking = labels[found[0]] < 0
    assert lacking.any() and (batch.share.numpy()[lacking] == 1).all() and (batch.share.numpy()[~lacking] < 1).any()
    assert (batch.partner >= 0).all()
