"""What a team often has already, pictures in WebDataset shards and a teacher in a `.keras` file, made from `.npz` files.

Run it as `python examples/shards_and_keras.py FOLDER/fashion_mnist TO`: `train-000.tar` to `train-011.tar`, `test-000.tar`, `test-001.tar`
and `teacher.keras` come into the folder TO, for `understudy distill recipes/fashion_mnist_keras.toml`, which reads them as it would
read yours.
"""

from __future__ import annotations

import argparse
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]


def write_shards(images: Array, labels: Array, folder: Path, name: str, rows: int) -> int:
    """Pictures uint8 [rows, height, width] as `00000017.png` beside `00000017.cls`, so many rows a shard; how many shards."""
    starts = range(0, len(images), rows)
    for shard, start in enumerate(starts):
        with tarfile.open(folder / f"{name}-{shard:03d}.tar", "w") as archive:
            for row in range(start, min(start + rows, len(images))):
                picture = io.BytesIO()
                Image.fromarray(images[row]).save(picture, "PNG")
                for ending, content in (("png", picture.getvalue()), ("cls", str(labels[row]).encode())):
                    member = tarfile.TarInfo(f"{row:08d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return len(starts)


def train_teacher(images: Array, labels: Array, *, width: int, epochs: int) -> Any:
    """A convolutional network that scales its pixels itself and ends in logits, which is what a teacher file should do."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([keras.Input((*images.shape[1:], 1)), layers.Rescaling(1 / 255)])
    for factor in (1, 2, 4):
        model.add(layers.Conv2D(width * factor, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D() if factor < 4 else layers.GlobalAveragePooling2D())
    model.add(layers.Dropout(0.3))
    model.add(layers.Dense(int(labels.max()) + 1))
    steps = epochs * -(-len(images) // 256)
    schedule = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    model.compile(keras.optimizers.Adam(schedule), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(images[..., None].astype(np.float32), labels, batch_size=256, epochs=epochs, verbose=2)
    return model


def main() -> None:
    """Read the arguments, write the shards and the teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder with train.npz and test.npz: images uint8 [rows, height, width], labels")
    parser.add_argument("to", type=Path, help="the folder that is made")
    parser.add_argument("--rows", type=int, default=5000, help="rows of a shard (5000)")
    parser.add_argument("--width", type=int, default=32, help="channels of the teacher's first layer (32)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of the teacher (8)")
    said = parser.parse_args()
    os.environ.setdefault("KERAS_BACKEND", "torch")
    said.to.mkdir(parents=True, exist_ok=True)
    parts = {name: np.load(said.source / f"{name}.npz") for name in ("train", "test")}
    for name, part in parts.items():
        shards = write_shards(part["images"], part["labels"], said.to, name, said.rows)
        print(f"{name}: {len(part['labels']):,} rows in {shards} shard{'s'[: shards > 1]}")
    teacher = train_teacher(parts["train"]["images"], parts["train"]["labels"].astype(np.int64), width=said.width, epochs=said.epochs)
    teacher.save(said.to / "teacher.keras")
    print(f"teacher: {teacher.count_params():,} parameters in {said.to / 'teacher.keras'}")


if __name__ == "__main__":
    main()
