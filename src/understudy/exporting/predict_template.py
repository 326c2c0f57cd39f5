"""Answer rows with the model in this folder: `python predict.py rows.csv --out predictions.csv`.

Needs numpy and onnxruntime, Pillow for images and tokenizers for texts; nothing else. From Python: predict(folder, rows), where
rows are the path of a .csv, .csv.gz or .npz file, an image, a .wav file or a folder of either, a .txt or .jsonl file, an array of
encoded rows, or a list of dictionaries or of texts.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import math
import sys
import wave
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

ARRAY_NAMES = ("images", "X", "inputs", "features", "data", "rows")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class PredictError(ValueError):
    """The rows are not what the model reads; the message says what is wrong and where."""


@final
@dataclass(frozen=True)
class Model:
    """An artifact in memory. `said` is signature.json, `preprocessing` what is done to raw rows before the graph."""

    session: Any
    said: Mapping[str, Any]
    classes: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    tokenizer: Any = None
    inputs: Mapping[str, Model] | None = None

    @property
    def kind(self) -> str:
        """table, array, image, audio or text; pair where the graph reads several inputs."""
        return "pair" if self.inputs is not None else str(self.said["inputs"][0]["kind"])

    def answer(self, rows: Any, batch: int = 256) -> dict[str, Any]:
        """The graph's outputs by name for encoded rows, `batch` rows at a time."""
        if isinstance(rows, Together):
            fitted = {said["name"]: _fitting(rows.parts[said["name"]], said) for said in self.said["inputs"]}
        else:
            fitted = {"rows": _fitting(np.asarray(rows), self.said["inputs"][0])}
        names, count = [output["name"] for output in self.said["outputs"]], len(next(iter(fitted.values())))
        pieces = []
        for start in range(0, count, batch):
            given = {name: part[start : start + batch] for name, part in fitted.items()}
            pieces.append(self.session.run(names, {name: self._short(part) for name, part in given.items()}))
        if not pieces:
            return {name: np.zeros((0, len(self.classes) or 1), dtype=np.float32) for name in names}
        return {name: np.concatenate([piece[at] for piece in pieces]) for at, name in enumerate(names)}

    def _short(self, rows: Any) -> Any:
        """Texts without the columns at the end that are padding in every row."""
        if self.kind != "text":
            return rows
        used = np.flatnonzero((rows != self.preprocessing["padding"]).reshape(-1, rows.shape[-1]).any(axis=0))
        return np.ascontiguousarray(rows[..., : max(1, int(used[-1]) + 1 if len(used) else 0)])


@final
@dataclass(frozen=True)
class Together:
    """Several encoded inputs of the same rows, by name."""

    parts: Mapping[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def __getitem__(self, at: Any) -> Together:
        return Together({name: part[at] for name, part in self.parts.items()})


def load(folder: str | Path, threads: int = 0) -> Model:
    """Read an artifact's folder; `threads` of onnxruntime, 0 for as many as there are cores."""
    import onnxruntime

    folder = Path(folder)
    if not (folder / "model.onnx").is_file():
        raise PredictError(f"no model in {folder}: there is no model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    said, labels, preprocessing = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("signature.json", "labels.json", "preprocessing.json")
    )
    classes, inputs = tuple(labels["classes"]), None
    if preprocessing["kind"] == "pair":
        inputs = {}
        for one in said["inputs"]:
            own = preprocessing["inputs"][one["name"]]
            inputs[one["name"]] = Model(session, {**said, "inputs": [one]}, classes, own, _load_tokenizer(folder, own))
    return Model(session, said, classes, preprocessing, _load_tokenizer(folder, preprocessing), inputs)


def predict(folder: str | Path | Model, rows: Any, batch: int = 256) -> dict[str, Any]:
    """Names of the `rows`, `probabilities` [rows, classes] and the `prediction` of each; or `values` [rows, 1] of a regression."""
    if batch < 1:
        raise PredictError(f"batch = {batch}: it must be at least 1")
    model = folder if isinstance(folder, Model) else load(folder)
    names, encoded = read_rows(model, rows)
    answers = model.answer(encoded, batch)
    done: dict[str, Any] = {"rows": names, "classes": list(model.classes), **answers}
    if "vectors" in answers:
        # the row whose second input is nearest to each first one
        first, second = (side / np.linalg.norm(side, axis=1, keepdims=True).clip(1e-12) for side in np.split(answers["vectors"], 2, axis=1))
        done["prediction"] = [names[best] for best in (first @ second.T).argmax(axis=1)] if len(names) else []
    elif "values" in answers:
        done["prediction"] = answers["values"][:, 0].tolist()
    elif model.said["task"] == "recognition":
        done["prediction"] = [transcript(row, model.classes) for row in answers["probabilities"]]
    elif model.said["task"] == "multilabel":
        done["prediction"] = [
            ";".join(name for name, share in zip(model.classes, row, strict=True) if share >= 0.5) for row in answers["probabilities"]
        ]
    else:
        done["prediction"] = [model.classes[best] for best in answers["probabilities"].argmax(axis=1)] if len(names) else []
    return done


def transcript(frames: Any, classes: Sequence[str]) -> str:
    """The words of one row: the best of each frame, without repeats and blanks (the last column)."""
    path = [int(best) for best in frames.argmax(axis=1)]
    kept = [best for at, best in enumerate(path) if best < len(classes) and (at == 0 or best != path[at - 1])]
    return " ".join(classes[best] for best in kept)


def read_rows(model: Model, rows: Any) -> tuple[list[str], Any]:
    """Names of the rows and what the graph reads of them."""
    if model.inputs is not None:
        return _read_pairs(model, rows)
    if isinstance(rows, np.ndarray):
        return [str(at) for at in range(len(rows))], rows
    if isinstance(rows, str | Path):
        path = Path(rows)
        if not path.exists():
            raise PredictError(f"there is no {path}")
        if path.suffix == ".npz":
            return _read_npz(path)
        if model.kind == "table" and path.is_file():
            return _read_csv(path, model.preprocessing)
        if model.kind == "image":
            return _read_images(path, model.preprocessing)
        if model.kind == "audio":
            return _read_sounds(path, model.preprocessing)
        if model.kind == "text":
            return _read_texts(path, model)
        wanted = {"table": "a .csv, .csv.gz or .npz file", "array": "an .npz file"}
        raise PredictError(f"this model reads {wanted[model.kind]}, not {path}")
    if model.kind == "text":
        given = list(rows)
        return [str(at) for at in range(len(given))], tokens(model, [_text_of(row, model.preprocessing) for row in given])
    if model.kind != "table":
        raise PredictError(f"this model reads arrays of kind {model.kind}, not records")
    records = list(rows)
    where = [f"record {at}" for at in range(len(records))]
    header = {str(name) for record in records for name in record}
    return [str(at) for at in range(len(records))], encode(records, model.preprocessing, where, header=header)


def _fitting(rows: Any, said: Mapping[str, Any]) -> Any:
    wanted = said["shape"][1:]
    if list(rows.shape[1:]) != wanted:
        raise PredictError(f"the model reads rows of shape {wanted}, these are of shape {list(rows.shape[1:])}")
    if said["dtype"] == "uint8" and rows.dtype != np.uint8:
        raise PredictError(f"the model reads images of whole numbers 0 to 255 (uint8), these are {rows.dtype}")
    if said["dtype"] == "int16" and rows.dtype != np.int16:
        raise PredictError(f"the model reads sound as whole numbers of 16 bits (int16), these are {rows.dtype}")
    if rows.dtype.kind not in "fiub":
        raise PredictError(f"the model reads numbers, these are {rows.dtype}")
    return np.ascontiguousarray(rows, dtype=said["dtype"])


def _read_npz(path: Path) -> tuple[list[str], Any]:
    with np.load(path, allow_pickle=False) as arrays:
        names = [name for name in ARRAY_NAMES if name in arrays.files] or (arrays.files if len(arrays.files) == 1 else [])
        if not names:
            raise PredictError(
                f"{path.name} holds {', '.join(arrays.files) or 'nothing'}; the rows should be under one of {', '.join(ARRAY_NAMES)}"
            )
        rows = arrays[names[0]]
    return [str(at) for at in range(len(rows))], rows


# --- tables ---------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, said: Mapping[str, Any]) -> tuple[list[str], Any]:
    text = _decode(path, said)
    records, where, header = _records(path, text)
    return [str(at) for at in range(len(records))], encode(records, said, where, header=header)


def _records(path: Path, text: str) -> tuple[list[dict[str, str]], list[str], list[str]]:
    """The records of a CSV by column, where each is, and the columns."""
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    lines = [(reader.line_num, record) for record in reader if record]
    if not lines:
        raise PredictError(f"{path.name} is empty")
    header = [name.strip() or f"Unnamed: {at}" for at, name in enumerate(lines[0][1])]
    records, where = [], []
    for number, record in lines[1:]:
        if len(record) != len(header):
            raise PredictError(f"{path.name} line {number} has {len(record)} fields where the header has {len(header)}")
        records.append(dict(zip(header, record, strict=True)))
        where.append(f"{path.name} line {number}")
    return records, where, header


def encode(records: Sequence[Mapping[str, Any]], said: Mapping[str, Any], where: Sequence[str], header: Iterable[str]) -> Any:
    """Records as the graph reads them, float32 [rows, columns]: categories by position among the levels, -1 unknown, NaN missing."""
    there = set(header)
    absent = [column["name"] for column in said["columns"] if column["name"] not in there] if records else []
    if absent:
        raise PredictError(f"there is no column {', '.join(map(repr, absent))}; there is: {', '.join(sorted(there))}")
    missing = {str(word).strip() for word in said["missing"]} | {""}
    encoded = np.empty((len(records), len(said["columns"])), dtype=np.float32)
    for at, column in enumerate(said["columns"]):
        cells = [record.get(column["name"]) for record in records]
        if column["type"] == "category":
            levels = {level: float(code) for code, level in enumerate(column["levels"])}
            encoded[:, at] = [_code(cell, levels, missing) for cell in cells]
        else:
            never = {float(word) for word in missing if _is_number(word)}
            encoded[:, at] = [_number(cell, column["name"], place, missing, never) for cell, place in zip(cells, where, strict=True)]
    return encoded


def _code(cell: Any, levels: Mapping[str, float], missing: set[str]) -> float:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return math.nan
    text = cell.strip() if isinstance(cell, str) else _plain(cell)
    if text in levels:
        return levels[text]
    if text in missing:
        return math.nan
    return levels.get(_plain(float(text)), -1.0) if _is_number(text) else -1.0


def _plain(cell: Any) -> str:
    return repr(float(cell)).removesuffix(".0") if isinstance(cell, float) else str(cell)


def _number(cell: Any, name: str, place: str, missing: set[str], never: set[float]) -> float:
    text = "" if cell is None else str(cell).strip()
    if text in missing or text.casefold() == "nan":
        return math.nan
    if text.casefold() in ("true", "false"):
        return float(text.casefold() == "true")
    if not _is_number(text):
        raise PredictError(f"{place}, column {name!r}: {text!r} is not a number. Leave the cell empty when the number is missing")
    value = float(text)
    if math.isinf(value):
        raise PredictError(f"{place}, column {name!r}: {text} is not a finite number")
    return math.nan if value in never else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


# --- images ---------------------------------------------------------------------------------------------------------


def _read_images(path: Path, said: Mapping[str, Any]) -> tuple[list[str], Any]:
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS) if path.is_dir() else [path]
    if not found:
        raise PredictError(f"there are no images in {path}")
    names = [file.relative_to(path).as_posix() if path.is_dir() else file.name for file in found]
    return names, np.stack([read_image(file, said) for file in found])


def read_image(file: Any, said: Mapping[str, Any]) -> Any:
    """One image file as the graph reads it, uint8 [height, width, channels]: upright, over white where transparent, resized."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
        if image.mode == "F":
            raise ValueError("pixels are floats; images have 8 or 16 bits")
        if image.mode.startswith("I"):
            deep = np.asarray(image).astype(np.int64)
            image = Image.fromarray((deep >> 8 if image.mode != "I" or deep.max() > 255 else deep).clip(0, 255).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
        image = image.convert("L" if said["grey"] else "RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise PredictError(f"{file} is not an image that can be read: {error}") from None
    height, width = said["size"]
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


# --- texts ----------------------------------------------------------------------------------------------------------


def _load_tokenizer(folder: Path, said: Mapping[str, Any]) -> Any:
    if said.get("kind") != "text":
        return None
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise PredictError("this model reads texts: pip install tokenizers") from None
    made = tokenizers.Tokenizer.from_file(str(folder / said["tokenizer"]))
    made.no_padding()
    made.enable_truncation(said["length"])
    return made


def tokens(model: Model, texts: Sequence[Sequence[str]]) -> Any:
    """Texts, or pairs of texts, as the graph reads them: positions of tokens, int64 [rows, length] or [rows, 2, length]."""
    said = model.preprocessing
    flat = [part for text in texts for part in text]
    found = model.tokenizer.encode_batch_fast(flat, add_special_tokens=said["special"])
    encoded = np.full((len(flat), said["length"]), said["padding"], dtype=np.int64)
    for row, each in zip(encoded, found, strict=True):
        row[: len(each)] = each.ids
    return encoded.reshape(len(texts), 2, -1) if said["pairs"] else encoded.reshape(len(texts), -1)


def _text_of(row: Any, said: Mapping[str, Any], where: str = "") -> list[str]:
    """The one text of a row, or its two: a text, a pair, or a record with the columns."""
    if isinstance(row, Mapping):
        absent = [name for name in said["columns"] if name not in row]
        if absent:
            raise PredictError(f"{where or 'a record'} has no {absent[0]!r}; there is: {', '.join(sorted(map(str, row)))}")
        row = [row[name] for name in said["columns"]]
    parts = [row] if isinstance(row, str) else [str(part) for part in row]
    parts = [part.strip() for part in parts]
    if said["join"] is not None:
        parts = [said["join"].join(filter(None, parts))]
    wanted = 2 if said["pairs"] else 1
    if len(parts) != wanted:
        raise PredictError(f"{where or 'a row'} has {len(parts)} texts, the model reads {wanted} of each row")
    return parts


def _read_texts(path: Path, model: Model) -> tuple[list[str], Any]:
    """A CSV or .jsonl with the columns, a .txt file that is one text, or a folder of such files."""
    said = model.preprocessing
    if path.is_dir() or path.suffix.lower() == ".txt":
        found = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
        if not found:
            raise PredictError(f"there are no .txt files in {path}")
        names = [file.relative_to(path).as_posix() if path.is_dir() else file.name for file in found]
        return names, tokens(model, [_text_of(_decode(file, said), said, file.name) for file in found])
    text = _decode(path, said)
    if path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        records: list[Any] = [json.loads(line) for line in text.split("\n") if line.strip()]
        where = [f"{path.name} record {at}" for at in range(len(records))]
    else:
        records, where, _ = _records(path, text)
    return [str(at) for at in range(len(records))], tokens(model, [_text_of(row, said, at) for row, at in zip(records, where, strict=True)])


def _decode(path: Path, said: Mapping[str, Any]) -> str:
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    encoding = said.get("encoding", "utf-8")
    try:
        return data.decode("utf-8-sig" if encoding.casefold() in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        raise PredictError(f"{path.name} is not {encoding} text: {error}") from None


# --- sound ----------------------------------------------------------------------------------------------------------


def _read_sounds(path: Path, said: Mapping[str, Any]) -> tuple[list[str], Any]:
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() == ".wav") if path.is_dir() else [path]
    if not found:
        raise PredictError(f"there are no .wav files in {path}")
    names = [file.relative_to(path).as_posix() if path.is_dir() else file.name for file in found]
    return names, np.stack([read_sound(file, said) for file in found])


def read_sound(file: Any, said: Mapping[str, Any]) -> Any:
    """One .wav file as the graph reads it, int16 [samples]: one channel, at the model's rate, cut or with zeros after its end."""
    try:
        with wave.open(str(file), "rb") as opened:
            rate, width, channels = opened.getframerate(), opened.getsampwidth(), opened.getnchannels()
            data = opened.readframes(opened.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        raise PredictError(f"{file} is no .wav file of whole numbers: {error}. Convert it to WAV with 16 bits") from None
    data = data[: len(data) // (width * channels) * width * channels]
    if width == 1:
        samples = (np.frombuffer(data, dtype=np.uint8).astype(np.float64) - 128) / 128
    else:
        # the bytes of each sample, least first, moved to the top of 32 bits
        parts = np.frombuffer(data, dtype=np.uint8).reshape(-1, width)
        wide = np.zeros((len(parts), 4), dtype=np.uint8)
        wide[:, 4 - width :] = parts
        samples = wide.view("<i4")[:, 0].astype(np.float64) / 2**31
    samples = resample(samples.reshape(-1, channels).mean(axis=1), rate, said["rate"])
    whole = np.rint(samples * 32768).clip(-32768, 32767).astype(np.int16)[: said["samples"]]
    if not whole.any():
        raise PredictError(f"{file} is silent")
    return np.pad(whole, (0, said["samples"] - len(whole)))


def resample(samples: Any, found: int, rate: int) -> Any:
    """A waveform at another rate: each new sample is a sum over its neighbours, weighed by a sinc under a Kaiser window."""
    if found == rate or not len(samples):
        return samples
    divisor = math.gcd(found, rate)
    up, down = rate // divisor, found // divisor
    half = 10 * max(up, down)
    at = np.arange(-half, half + 1)
    taps = np.sinc(at / max(up, down)) * np.kaiser(2 * half + 1, 5.0)
    taps *= up / taps.sum()
    count = -(-len(samples) * up // down)
    reach = half // up + 1
    padded = np.pad(samples, reach)
    given = np.zeros(count)
    for start in range(0, count, 4096):
        centre = np.arange(start, min(start + 4096, count)) * down
        nearest = centre // up
        steps = np.arange(-reach, reach + 1)
        places = centre[:, None] - (nearest[:, None] + steps) * up
        inside = np.abs(places) <= half
        near = nearest[:, None] + steps + reach
        given[start : start + 4096] = (
            np.where(inside, taps[places.clip(-half, half) + half], 0) * padded[near.clip(0, len(padded) - 1)]
        ).sum(1)
    return given


# --- several inputs -------------------------------------------------------------------------------------------------


def _read_pairs(model: Model, rows: Any) -> tuple[list[str], Together]:
    """A CSV with a column for each input (images and sound by their files' path from the CSV's folder), an .npz or a dictionary.

    An input that is not there at all, or whose cell is empty, is left blank where the model can answer without it.
    """
    assert model.inputs is not None
    if isinstance(rows, str | Path):
        path = Path(rows)
        if not path.exists():
            raise PredictError(f"there is no {path}")
        if path.suffix != ".npz":
            return _read_pair_csv(model, path)
        with np.load(path, allow_pickle=False) as arrays:
            rows = {name: arrays[name] for name in arrays.files}
    if not isinstance(rows, Mapping):
        raise PredictError(f"this model reads {' and '.join(model.inputs)}: give a .csv, an .npz or a dictionary of them")
    strange = [name for name in rows if name not in model.inputs]
    if strange or not rows:
        raise PredictError(f"there is no input {', '.join(map(str, strange)) or 'at all'}; the model reads {', '.join(model.inputs)}")
    found = {name: read_rows(model.inputs[name], given) for name, given in rows.items()}
    counts = {name: len(encoded) for name, (_, encoded) in found.items()}
    if len(set(counts.values())) > 1:
        raise PredictError(f"inputs of different rows: {', '.join(f'{count} of {name}' for name, count in counts.items())}")
    names = next(iter(found.values()))[0]
    return names, Together({name: found[name][1] if name in found else _blank(model, name, len(names)) for name in model.inputs})


def _blank(model: Model, name: str, count: int) -> Any:
    assert model.inputs is not None
    one, value = model.inputs[name].said["inputs"][0], model.preprocessing["inputs"][name]["blank"]
    if value is None:
        raise PredictError(f"the input {name} is missing, and the model cannot answer without it")
    return np.full((count, *one["shape"][1:]), value, dtype=one["dtype"])


def _read_pair_csv(model: Model, path: Path) -> tuple[list[str], Together]:
    assert model.inputs is not None
    records, where, header = _records(path, _decode(path, model.preprocessing))
    parts = {}
    for name, half in model.inputs.items():
        said = half.preprocessing
        columns = [said["column"]] if half.kind in ("image", "audio") else [_name_of(column) for column in said["columns"]]
        cells = [[str(record.get(column) or "").strip() for column in columns] for record in records]
        there = [at for at, row in enumerate(cells) if any(row)]
        if half.kind == "image":
            read = [read_image(path.parent / cells[at][0], said) for at in there]
        elif half.kind == "audio":
            read = [read_sound(path.parent / cells[at][0], said) for at in there]
        elif half.kind == "text":
            read = list(tokens(half, [_text_of(cells[at], said, where[at]) for at in there])) if there else []
        else:
            read = list(encode([records[at] for at in there], said, [where[at] for at in there], header=header)) if there else []
        encoded = _blank(model, name, len(records)) if len(there) < len(records) else np.stack(read)
        if len(there) < len(records) and there:
            encoded[there] = np.stack(read)
        parts[name] = encoded
    return [str(at) for at in range(len(records))], Together(parts)


def _name_of(column: Any) -> str:
    return str(column["name"]) if isinstance(column, Mapping) else str(column)


# --- the command ----------------------------------------------------------------------------------------------------


def write_predictions(folder: str | Path, rows: str | Path, out: str | Path, batch: int = 256) -> int:
    """Answer the rows of a file into a CSV; gives how many rows there were."""
    model = load(folder)
    done = predict(model, rows, batch)
    columns = (
        [] if "probabilities" not in done or model.said["task"] == "recognition" else [f"probability_{name}" for name in model.classes]
    )
    with open(out, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "prediction", *columns])
        for at, (name, said) in enumerate(zip(done["rows"], done["prediction"], strict=True)):
            writer.writerow([name, said, *([f"{share:.8g}" for share in done["probabilities"][at]] if columns else [])])
    return len(done["rows"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit status 2 when the rows are not what the model reads."""
    parser = argparse.ArgumentParser(description="Answer rows with the model in this folder.")
    told = "a .csv, .csv.gz or .npz file, an image, a .wav file, a folder of either, or texts (.csv, .jsonl, .txt)"
    parser.add_argument("rows", help=told)
    parser.add_argument("--out", default="predictions.csv", help="where to write (default: predictions.csv)")
    parser.add_argument("--batch", type=int, default=256, help="rows at a time (default: 256)")
    said = parser.parse_args(arguments)
    try:
        count = write_predictions(Path(__file__).parent, said.rows, said.out, said.batch)
    except (PredictError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{count:,} rows answered in {said.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
