"""Every recipe of recipes/, whole, through the command line: from its data to a scorecard and an artifact.

Only sizes are smaller. Where a recipe's data is not in the repository, rows of the same shape are made here: the same
columns, types, classes, missing cells and file kinds, with something in them to learn.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
import pytest
import texts as made_up
from commands import run
from PIL import Image

from understudy import recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
ARTIFACT = {
    "README.md", "checksums.json", "labels.json", "model.onnx", "predict.py", "preprocessing.json", "scorecard.json", "signature.json",
}  # fmt: skip


# --- rows of the same shape -----------------------------------------------------------------------------------------


def written(frame: pd.DataFrame, folder: Path, test: int) -> None:
    """train.csv.gz and test.csv.gz, as the data's readers find them."""
    folder.mkdir(parents=True)
    for name, part in (("train", frame.iloc[:-test]), ("test", frame.iloc[-test:])):
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(part.to_csv(index=False).encode(), mtime=0))


def classes_of(scores: np.ndarray, names: list[Any], rng: np.random.Generator) -> np.ndarray:
    """One of the names for each row, as often as the others, from its score and a little chance."""
    ranks = np.argsort(np.argsort(scores + 0.2 * scores.std() * rng.normal(size=len(scores))))
    return np.array(names)[ranks * len(names) // len(scores)]


def adult(root: Path) -> None:
    rng, rows = np.random.default_rng(0), 700
    age, hours = rng.integers(17, 90, rows), rng.integers(1, 99, rows)
    education = rng.choice(["Bachelors", "HS-grad", "11th", "Masters"], rows)
    years = pd.Series(education).map({"Bachelors": 13, "HS-grad": 9, "11th": 7, "Masters": 14}).to_numpy()
    texts = {
        "workclass": ["Private", "State-gov", "?"], "marital_status": ["Never-married", "Married-civ-spouse", "Divorced"],
        "occupation": ["Adm-clerical", "Exec-managerial", "Sales", "?"], "relationship": ["Husband", "Wife", "Not-in-family"],
        "race": ["White", "Black", "Other"], "sex": ["Male", "Female"], "native_country": ["United-States", "Mexico", "?"],
    }  # fmt: skip
    frame = pd.DataFrame({name: rng.choice(words, rows) for name, words in texts.items()})
    frame = frame.assign(age=age, fnlwgt=rng.integers(12_285, 1_484_705, rows), education=education, education_num=years)
    frame = frame.assign(capital_gain=rng.choice([0, 0, 0, 2174, 15024], rows), capital_loss=0, hours_per_week=hours)
    score = years + 0.1 * age + 0.1 * hours + 3 * (frame["marital_status"] == "Married-civ-spouse") + frame["capital_gain"] / 4000
    frame["income"] = np.where(score + rng.normal(size=rows) > score.quantile(0.75), ">50K", "<=50K")
    frame["capital_loss"] = rng.choice([0, 0, 1902], rows)
    written(pd.concat([frame, frame.head(3)]), root / "adult", 200)  # three people answer like somebody in the other file


def letter(root: Path) -> None:
    names = [
        "x.box",
        "y.box",
        "width",
        "high",
        "onpix",
        "x.bar",
        "y.bar",
        "x2bar",
        "y2bar",
        "xybar",
        "x2ybr",
        "xy2br",
        "x.ege",
        "xegvy",
        "y.ege",
        "yegvx",
    ]
    rng, rows = np.random.default_rng(1), 1040
    which = np.arange(rows) % 26
    centres = rng.integers(0, 16, (26, 16))
    frame = pd.DataFrame((centres[which] + rng.integers(-2, 3, (rows, 16))).clip(0, 15), columns=names)
    frame.insert(0, "letter", np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))[which])
    written(pd.concat([frame, frame.head(5)]), root / "letter", 265)


def covertype(root: Path) -> None:
    rng, rows = np.random.default_rng(2), 700
    numbers = "Elevation Aspect Slope Horizontal_Distance_To_Hydrology Vertical_Distance_To_Hydrology Horizontal_Distance_To_Roadways"
    numbers += " Hillshade_9am Hillshade_Noon Hillshade_3pm Horizontal_Distance_To_Fire_Points"
    frame = pd.DataFrame(rng.integers(0, 4000, (rows, 10)), columns=numbers.split())
    for word, count in (("Wilderness_Area", 4), ("Soil_Type", 40)):
        flags = np.eye(count, dtype=np.int64)[rng.integers(0, count, rows)]
        frame = pd.concat([frame, pd.DataFrame(flags, columns=[f"{word}{number}" for number in range(1, count + 1)])], axis=1)
    frame["Cover_Type"] = classes_of(frame["Elevation"].to_numpy(dtype=np.float64), [1, 2, 3, 4, 5, 6, 7], rng)
    written(frame, root / "covertype15k", 200)


def california(root: Path) -> None:
    rng, rows = np.random.default_rng(3), 700
    columns = ["longitude", "latitude", "housing_median_age", "total_rooms", "total_bedrooms", "population", "households", "median_income"]
    frame = pd.DataFrame(rng.normal(size=(rows, 8)).round(3), columns=columns)
    near = rng.choice(["INLAND", "NEAR BAY", "<1H OCEAN"], rows)
    value = 200_000 + 60_000 * frame["median_income"] + 40_000 * (near == "NEAR BAY") + 5_000 * rng.normal(size=rows)
    frame = frame.assign(median_house_value=value.round(), ocean_proximity=near)
    frame.loc[frame.index % 40 == 0, "total_bedrooms"] = np.nan
    written(frame, root / "california_housing", 200)


def pictures(count: int, size: tuple[int, int], classes: int, channels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures with one bright bar per class, uint8 [rows, height, width, channels], and their classes."""
    rng = np.random.default_rng(seed)
    which = np.arange(count) % classes
    pixels = rng.integers(0, 90, (count, *size, channels))
    high = size[0] // classes
    for row, label in enumerate(which):
        pixels[row, label * high : (label + 1) * high] += 150
    return pixels.astype(np.uint8), which


def twenty_eight(name: str, *, class_names: bool) -> Callable[[Path], None]:
    """The two .npz files of MNIST (or Fashion-MNIST, which says its class names)."""

    def make(root: Path) -> None:
        (root / name).mkdir(parents=True)
        named = {"class_names": np.array([f"thing {number}" for number in range(10)])} if class_names else {}
        for part, count, seed in (("train", 400, 4), ("test", 120, 5)):
            pixels, which = pictures(count, (28, 28), 10, 1, seed)
            np.savez(root / name / f"{part}.npz", images=pixels[..., 0], labels=which.astype(np.uint8), **named)

    return make


def shards_and_keras(root: Path) -> None:
    """The tars and the teacher that the recipe's program makes from the two .npz files."""
    if importlib.util.find_spec("keras") is None:
        pytest.skip("needs keras")
    twenty_eight("fashion_mnist", class_names=True)(root)
    program = [sys.executable, str(ROOT / "examples" / "shards_and_keras.py"), "--rows", "150", "--width", "4", "--epochs", "12"]
    folders = [str(root / name) for name in ("fashion_mnist", "fashion_mnist_shards")]
    done = subprocess.run([*program, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train: 400 rows in 3 shards" in done.stdout and "test: 120 rows in 1 shard\n" in done.stdout


def products(root: Path) -> None:
    """A zip of photos beside a CSV that names each by its number, without the ending."""
    (root / "fashion_products").mkdir(parents=True)
    pixels, which = pictures(60, (80, 60), 4, 3, 6)
    with zipfile.ZipFile(root / "fashion_products" / "train_images.zip", "w") as archive:
        for number, photo in enumerate(pixels):
            file = io.BytesIO()
            Image.fromarray(photo).save(file, "WEBP", quality=85)
            archive.writestr(f"{1000 + number}.webp", file.getvalue())
    kinds = np.array(["Heels", "Tops", "Watches", "Ties"])
    frame = pd.DataFrame({"id": 1000 + np.arange(60), "label": kinds[which], "masterCategory": "Apparel", "title": "a title, with a comma"})
    (root / "fashion_products" / "train.csv.gz").write_bytes(gzip.compress(frame.to_csv(index=False).encode(), mtime=0))


WORDS = {
    "HUM": ["who", "wrote", "painted", "invented", "king", "queen", "actor", "president", "author"],
    "LOC": ["where", "city", "country", "river", "mountain", "capital", "island", "street", "border"],
    "NUM": ["how", "many", "much", "year", "date", "distance", "population", "price", "age"],
    "DESC": ["what", "why", "mean", "definition", "reason", "origin", "cause", "describe", "explain"],
}
FILLERS = ["the", "of", "in", "a", "is", "was", "first", "old", "new", "large", "small", "famous", "during", "after"]


def sentences(labels: np.ndarray, seed: int) -> list[str]:
    """A made-up sentence for each label, with a few words of its kind among others."""
    rng = np.random.default_rng(seed)
    parts = [[*rng.choice(WORDS[label], 3), *rng.choice(FILLERS, 4)] for label in labels]
    return [" ".join(rng.permutation(words)) for words in parts]


def trec(root: Path) -> None:
    labels = np.array(list(WORDS))[np.arange(260) % len(WORDS)]
    frame = pd.DataFrame({"label": labels, "fine": "x", "text": sentences(labels, 7)})
    written(frame, root / "trec", 80)


def spoken(root: Path) -> None:
    """Ten tones for ten digits, said by six speakers whose pitch differs a little, as one long signal with offsets."""
    (root / "fsdd").mkdir(parents=True)
    rng = np.random.default_rng(7)
    clips, labels, speakers = [], [], []
    for take in range(240):
        digit, speaker = take % 10, take // 10 % 6
        time = np.arange(rng.integers(1600, 4000)) / 8000
        tone = np.sin(2 * np.pi * (300 + 250 * digit + 10 * speaker) * time)
        clips.append(8000 * tone + rng.normal(size=len(time)) * 500)
        labels.append(digit)
        speakers.append(speaker)
    words = np.concatenate(clips).astype(np.int16).view(np.uint16)
    said = {"audio_hi": (words >> 8).astype(np.uint8), "audio_lo": (words & 255).astype(np.uint8)}
    offsets = np.cumsum([0, *map(len, clips)])
    np.savez(root / "fsdd" / "train.npz", **said, offsets=offsets, labels=np.uint8(labels), speakers=np.uint8(speakers))


def spoken_and_written(root: Path) -> None:
    """The sounds, and pictures of the same ten digits."""
    spoken(root)
    twenty_eight("mnist", class_names=False)(root)


def of_topics(root: Path) -> pd.DataFrame:
    """Made-up texts of three topics, and a tiny sentence encoder with random weights that knows their words."""
    made_up.encoder(root / "encoder")
    return made_up.sentences(330, seed=8)


def banking77(root: Path) -> None:
    frame = of_topics(root)
    written(frame.rename(columns={"topic": "label"})[["label", "text"]], root / "banking77", 90)


def ag_news(root: Path) -> None:
    frame = of_topics(root)
    parts = frame["text"].str.split(" ", n=3)
    titles, rest = parts.str[:3].str.join(" "), parts.str[3]
    written(
        pd.DataFrame({"label": frame["topic"].map({"money": 0, "space": 1, "sport": 2}), "title": titles, "description": rest}),
        root / "ag_news_small",
        90,
    )


def goemotions(root: Path) -> None:
    """Texts of one or two topics, their labels as places in a file of names, `0,2`."""
    frame = of_topics(root)
    names = sorted(made_up.TOPICS)
    number = frame["topic"].map({name: str(at) for at, name in enumerate(names)})
    both = np.arange(len(frame)) % 4 == 0
    frame["text"] = np.where(both, frame["text"] + "\n" + np.roll(frame["text"], 1), frame["text"])
    frame["labels"] = np.where(both, number + "," + np.roll(number, 1), number)
    written(frame[["labels", "text"]], root / "goemotions", 90)
    (root / "goemotions" / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


def sst(root: Path) -> None:
    frame = of_topics(root)
    frame = frame[frame["topic"] != "space"].assign(label=lambda rows: (rows["topic"] == "sport").astype(int))[["label", "text"]]
    (root / "sst").mkdir()
    for name, part in (("train", frame[:120]), ("dev", frame[120:170]), ("test", frame[170:])):
        (root / "sst" / f"sst2_{name}.csv.gz").write_bytes(gzip.compress(part.to_csv(index=False).encode(), mtime=0))


def stsb(root: Path) -> None:
    made_up.encoder(root / "encoder")
    frame = made_up.pairs(240, seed=8).rename(columns={"first": "sentence1", "second": "sentence2"}).assign(genre="x", file="y")
    (root / "stsb").mkdir()
    for name, part in (("train", frame[:140]), ("dev", frame[140:190]), ("test", frame[190:])):
        (root / "stsb" / f"{name}.csv.gz").write_bytes(gzip.compress(part.to_csv(index=False).encode(), mtime=0))


def products_and_titles(root: Path) -> None:
    """Photos in two zips, named by the tables that hold their titles."""
    folder = root / "fashion_products"
    folder.mkdir(parents=True)
    pixels, which = pictures(240, (80, 60), 4, 3, 8)
    labels = np.array(list(WORDS))[which]
    frame = pd.DataFrame({"id": 1000 + np.arange(240), "label": labels, "title": sentences(labels, 8)})
    for name, rows in (("train", slice(0, 180)), ("test", slice(180, 240))):
        with zipfile.ZipFile(folder / f"{name}_images.zip", "w") as archive:
            for number, photo in zip(frame["id"][rows], pixels[rows], strict=True):
                file = io.BytesIO()
                Image.fromarray(photo).save(file, "WEBP", quality=85)
                archive.writestr(f"{number}.webp", file.getvalue())
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(frame[rows].to_csv(index=False).encode(), mtime=0))


def emoji(root: Path) -> None:
    """Pictures in two .npz, whose n-th belongs to the n-th row of the table."""
    folder = root / "emoji_noto"
    folder.mkdir(parents=True)
    pixels, which = pictures(240, (16, 16), 4, 3, 9)
    labels = np.array(list(WORDS))[which]
    frame = pd.DataFrame({"file": np.arange(240), "name": sentences(labels, 9), "group": labels, "keywords": "a|b"})
    for name, rows in (("train", slice(0, 180)), ("test", slice(180, 240))):
        np.savez_compressed(folder / f"{name}.npz", images=pixels[rows], group=labels[rows])
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(frame[rows].to_csv(index=False).encode(), mtime=0))


# --- the recipes ----------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Small:
    """What makes a recipe small, and the least that its exported student must reach."""

    data: Callable[[Path], None] | None
    overrides: tuple[str, ...]
    metric: str
    least: float


SLOW = ("products_resnet50_mobilenetv2", "fsdd_strings")
FEW_TREES = "teacher.train.options={max_iter=20}"
TINY_ENCODER = "teacher.source=sentences:DATA/encoder"
SMALL = {
    "adult": Small(adult, ("rows.synthetic=1", FEW_TREES), "accuracy", 0.7),
    "california_housing": Small(california, ("rows.synthetic=1", FEW_TREES), "r2", 0.5),
    "covertype15k": Small(covertype, ("rows.synthetic=1", FEW_TREES), "accuracy", 0.4),
    "digits": Small(None, ("rows.synthetic=1", "teacher.train.options.hidden=[32]", "teacher.train.epochs=8"), "accuracy", 0.6),
    "digits_assistant": Small(
        None,
        ("teacher.train.options.hidden=[32]", "teacher.train.epochs=8", 'chain=[{model="mlp", options={hidden=[16]}}]', "train.epochs=8"),
        "accuracy", 0.2,
    ),
    "digits_mutual": Small(None, ("train.epochs=8",), "accuracy", 0.4),
    "emoji_dual": Small(
        emoji,
        ("split.validation=0.2", "width=8", "teacher.train.epochs=10", "teacher.train.batch_size=16", "train.epochs=4",
         "train.batch_size=16", "data.inputs.picture.image_size=[12, 12]",
         "teacher.train.options={picture={width=4, depth=1}, name={width=16, ngrams=1}}", "teacher.accept_score=true",
         "student.options={picture={width=4, depth=1}, name={width=8, ngrams=1}}"),
        "recall_at_5", 0.05,
    ),
    "emoji_picture_name": Small(
        emoji,
        ("split.validation=0.2", "data.inputs.picture.image_size=[16, 16]", "teacher.train.epochs=8", "teacher.train.lr=1e-2",
         "teaching.views=2", "train.epochs=15", "train.lr=1e-2",
         "teacher.train.options={picture={width=4, depth=1}, name={width=16, ngrams=1}, hidden=16}", "student.options={width=4, depth=1}"),
        "accuracy", 0.4,
    ),
    "fashion_mnist": Small(
        twenty_eight("fashion_mnist", class_names=True),
        ("teacher.train.options.width=4", "teacher.train.epochs=4", "student.options.width=2", "train.epochs=4", "train.batch_size=32",
         "teacher.train.batch_size=32"),
        "accuracy", 0.2,
    ),
    "fashion_mnist_keras": Small(
        shards_and_keras,
        ("teacher.source=DATA/fashion_mnist_shards/teacher.keras", "student.options.width=2", "train.epochs=4", "train.batch_size=32"),
        "accuracy", 0.2,
    ),
    "fsdd": Small(
        spoken,
        ("data.seconds=0.5", "teacher.train.options={width=8, depth=1}", "teacher.train.epochs=8", "teacher.train.batch_size=16",
         "teaching.views=2", "student.options={width=8, depth=1}", "train.epochs=10", "train.batch_size=16"),
        "accuracy", 0.3,
    ),
    "fsdd_strings": Small(
        spoken,
        ("data.strings=160", "data.words=[1, 2]", "teacher.train.model=speech.convnet", "teacher.train.options={width=32, depth=2}",
         "teacher.train.batch_size=4", "teacher.train.epochs=16", "teacher.train.lr=1e-2", "teaching.views=1", "teacher.train.augment={}",
         "train.augment={}", "train.epochs=16", "train.batch_size=4", "train.lr=1e-2", "student.options={width=24, depth=2}"),
        "word_accuracy", 0.2,
    ),
    "fsdd_mnist": Small(
        spoken_and_written,
        ("teacher.train.model=mlp", "teacher.train.options={hidden=[32]}", "teacher.train.epochs=10", "teacher.train.batch_size=16",
         "student.options={width=8, depth=1}", "train.epochs=10", "train.batch_size=16"),
        "accuracy", 0.25,
    ),
    "letter": Small(letter, ("rows.synthetic=1", "teacher.train.options={n_estimators=20, n_jobs=1}"), "accuracy", 0.5),
    "mnist_hinton": Small(
        twenty_eight("mnist", class_names=False),
        ("split.validation=0.2", "teacher.train.options.hidden=[32, 32]", "teacher.train.epochs=8", "teacher.train.batch_size=32",
         "student.options.hidden=[24, 24]", "train.epochs=6", "train.batch_size=32"),
        "accuracy", 0.3,
    ),
    "products_either": Small(
        products_and_titles,
        ("data.inputs.photo.image_size=[16, 12]", "split.validation=0.2", "train.epochs=10", "train.batch_size=16", "train.lr=2e-2",
         "student.options={drop=0.5, width=8, hidden=8, photo={width=4, depth=1}, title={width=16, ngrams=1}}"),
        "accuracy", 0.4,
    ),
    "products_photo_title": Small(
        products_and_titles,
        ("data.inputs.photo.image_size=[16, 12]", "split.validation=0.2", "teacher.train.epochs=8", "teacher.train.lr=1e-2",
         "teacher.train.batch_size=16", "teacher.train.options={photo={width=4, depth=1}, title={width=16, ngrams=1}, hidden=16}",
         "teaching.views=2", "train.epochs=15", "train.lr=1e-2", "train.batch_size=16", "student.options={width=4, depth=1}"),
        "accuracy", 0.4,
    ),
    "products_resnet50_mobilenetv2": Small(
        products,
        ("data.image_size=[32, 32]", "split.validation=0.2", "split.test=0.2", "teacher.train.epochs=1", "teacher.train.batch_size=16",
         "train.epochs=1", "train.batch_size=16", "teaching.views=2", "teacher.accept_score=true"),
        "accuracy", 0.0,
    ),
    "ag_news_small": Small(ag_news, (TINY_ENCODER, "student.options={buckets=500}"), "accuracy", 0.5),
    "banking77": Small(banking77, (TINY_ENCODER, "student.options={buckets=500}"), "accuracy", 0.5),
    "goemotions": Small(
        goemotions, (TINY_ENCODER, "rows.take=200", "student.options={buckets=500}", "teacher.accept_score=true"), "macro_f1", 0.5,
    ),
    "sst": Small(
        sst,
        ("teacher.train.options.encoder=sentences:DATA/encoder", "teacher.train.lr=5e-3", "student.options.cut=[0]", "data.max_length=32"),
        "accuracy", 0.4,
    ),
    "stsb": Small(
        stsb, (TINY_ENCODER, "student.options={width=16, corpus_epochs=2}", "teacher.accept_score=true"), "spearman", -1.0,
    ),
    "trec": Small(trec, ("student.options={width=16, depth=1}", "train.lr=1e-2"), "accuracy", 0.4),
}  # fmt: skip


def test_every_recipe_parses_and_is_run_below() -> None:
    assert {path.stem for path in RECIPES} == set(SMALL)
    for path in RECIPES:
        said = recipe.load(path)
        assert said.out == f"runs/{path.stem}" or path.stem == "products_resnet50_mobilenetv2", path
        assert said.control and said.data.overlap != "allow", path


@pytest.mark.parametrize("path", [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in SLOW), id=path.stem) for path in RECIPES])
def test_recipe_runs_to_its_scorecard(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = SMALL[path.stem]
    if small.data is not None:
        small.data(tmp_path / "data")
    out = tmp_path / "run"
    said = [f"data.root={tmp_path / 'data'}", "seeds=[0]", "measure.latency=false", "measure.resamples=100", *small.overrides]
    said = [each.replace("DATA", str(tmp_path / "data")) for each in said]
    status = run(monkeypatch, "distill", str(path), "--out", str(out), *(word for each in said for word in ("--set", each)))
    assert status == 0, capsys.readouterr().err
    card = json.loads((out / "scorecard.json").read_text())
    assert set(card["models"]) == {"teacher", "control", "student", "exported"}
    assert card["verdict"]["word"] in ("GAIN", "NO GAIN", "INCONCLUSIVE")
    assert card["models"]["exported"]["quality"][small.metric]["mean"] > small.least
    assert {entry.name for entry in (out / "artifact").iterdir()} >= ARTIFACT
    assert "artifact" in capsys.readouterr().out
