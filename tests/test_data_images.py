"""Images in folders and .zip files, with all the ways in which they go wrong."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from understudy.data.images import read_images, resized
from understudy.errors import DataError


def picture(path: Path, colour: Any = (200, 10, 10), size: tuple[int, int] = (6, 4), mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def pets(folder: Path) -> Path:
    for number in range(3):
        picture(folder / "dog" / f"{number}.png", (0, 0, number))
        picture(folder / "cat" / f"{number}.PNG", (number, 0, 0))
    return folder


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_images(path, **options)
    return str(caught.value)


def zipped(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for item in sorted(folder.rglob("*")):
            if item.is_file():
                archive.write(item, prefix + item.relative_to(folder).as_posix())
    return path


def test_a_folder_per_class(tmp_path: Path) -> None:
    pets(tmp_path / "pets")
    (tmp_path / "pets" / ".hidden").mkdir()
    picture(tmp_path / "pets" / ".hidden" / "x.png")
    (tmp_path / "pets" / "cat" / ".DS_Store").write_bytes(b"x")
    source = read_images(tmp_path / "pets")
    assert source.kind == "image"
    assert source.inputs.shape == (6, 4, 6, 3)
    assert source.names is not None
    assert source.names.tolist()[0] == "cat/0.PNG"
    assert source.labels.tolist() == ["cat"] * 3 + ["dog"] * 3
    assert source.classes == ("cat", "dog")
    assert source.inputs[:, 0, 0].tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 2]]
    assert source.problems == ()


@pytest.mark.parametrize("prefix", ["", "pets/", "__MACOSX"])
def test_a_zip_says_the_same(tmp_path: Path, prefix: str) -> None:
    folder = pets(tmp_path / "pets")
    plain = read_images(folder)
    path = zipped(folder, tmp_path / "pets.zip", prefix if prefix != "__MACOSX" else "")
    if prefix == "__MACOSX":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("__MACOSX/cat/._0.PNG", b"no picture")
    source = read_images(path, workers=2)
    assert (source.inputs == plain.inputs).all()
    assert source.labels.tolist() == plain.labels.tolist()


def test_split_folders(tmp_path: Path) -> None:
    pets(tmp_path / "train")
    pets(tmp_path / "val")
    source = read_images(tmp_path)
    assert source.split is not None
    assert source.split.tolist() == ["train"] * 6 + ["validation"] * 6
    assert source.classes == ("cat", "dog")


def test_flat_folders_have_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "one" / "a.png")
    picture(tmp_path / "one" / "b.png")
    assert read_images(tmp_path / "one").labels is None
    outer = read_images(tmp_path)
    assert outer.labels is None
    assert "U161 all images of" in str(outer.problems[0])
    assert "'one': it is not taken for a class" in str(outer.problems[0])


def test_every_mode_becomes_three_channels(tmp_path: Path) -> None:
    folder = tmp_path / "modes"
    picture(folder / "a_grey.png", 77, mode="L")
    picture(folder / "b_palette.gif", (9, 8, 7))
    picture(folder / "c_transparent.png", (200, 10, 10, 0), mode="RGBA")
    picture(folder / "d_half.png", (0, 128), mode="LA")
    picture(folder / "e_cmyk.jpg", (0, 0, 0, 0), mode="CMYK")
    picture(folder / "f_bit.bmp", 1, mode="1")
    Image.fromarray(np.full((4, 6), 40000, dtype=np.uint16)).save(folder / "g_deep.png")
    Image.fromarray(np.full((4, 6), 40000, dtype=np.uint16)).save(folder / "h_deep.tif")
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 50, 60, 70])
    palette.save(folder / "i_palette.png", transparency=0)
    picture(folder / "j_web.webp", (0, 0, 255), lossless=True)
    source = read_images(folder)
    assert source.inputs.shape == (10, 4, 6, 3)
    wanted = [[77] * 3, [9, 8, 7], [255] * 3, [127] * 3, [255] * 3, [255] * 3, [156] * 3, [156] * 3, [50, 60, 70], [0, 0, 255]]
    assert np.abs(source.inputs[:, 1, 1].astype(int) - wanted).max() <= 1
    assert (source.inputs == source.inputs[:, :1, :1]).all()
    grey = read_images(folder, grey=True)
    assert grey.inputs.shape == (10, 4, 6, 1)
    assert grey.inputs[0, 0, 0, 0] == 77


def test_pictures_come_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (6, 4), (255, 255, 255))
    image.putpixel((0, 0), (0, 0, 0))
    image.save(tmp_path / "a.png", exif=exif)
    source = read_images(tmp_path)
    assert source.inputs.shape == (1, 6, 4, 3)
    assert source.inputs[0, 0, 3].tolist() == [0, 0, 0]


def test_sizes(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", size=(6, 4))
    picture(tmp_path / "b.png", size=(6, 4))
    picture(tmp_path / "c.png", size=(8, 8))
    said = refusal(tmp_path)
    assert "have 2 sizes: 4 x 6 (2), 8 x 8 (1). Set data.image_size = [height, width]" in said
    source = read_images(tmp_path, image_size=(3, 5))
    assert source.inputs.shape == (3, 3, 5, 3)
    assert (source.inputs == np.array([200, 10, 10])).all()


def test_resizing_is_pillows_bilinear(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    by_hand = np.asarray(Image.fromarray(pixels).resize((4, 3), Image.Resampling.BILINEAR))
    assert (read_images(tmp_path, image_size=(3, 4)).inputs[0] == by_hand).all()


def test_broken_files_are_errors_or_set_aside(tmp_path: Path) -> None:
    few = pets(tmp_path / "few")
    (few / "cat" / "empty.png").write_bytes(b"")
    (few / "dog" / "text.jpg").write_text("no picture")
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(noise, "png")
    (few / "dog" / "truncated.png").write_bytes(noise.getvalue()[:2000])
    said = refusal(few)
    assert "U165 3 of 9 images of few cannot be read:" in said
    assert "cat/empty.png: empty file" in said
    assert "dog/text.jpg: not an image" in said
    assert "dog/truncated.png: image file is truncated" in said
    many = tmp_path / "many"
    for number in range(150):
        picture(many / ("cat" if number % 2 else "dog") / f"{number:03}.png", (number, 0, 0), size=(2, 2))
    (many / "cat" / "007.png").write_bytes(b"")
    source = read_images(many)
    assert len(source.inputs) == len(source.labels) == len(source.names) == 149  # type: ignore[arg-type]
    assert source.names is not None
    assert [int(name[4:7]) for name in source.names] == source.inputs[:, 0, 0, 0].tolist()
    assert [label == name[:3] for label, name in zip(source.labels, source.names, strict=True)] == [True] * 149
    assert source.problems[0].level == "warning"
    assert "U165 1 of 150 images of many cannot be read and are left out: cat/007.png (empty file)" in str(source.problems[0])


def test_a_mixture_of_files_and_folders(tmp_path: Path) -> None:
    picture(pets(tmp_path) / "stray.png")
    assert "has 1 images outside of the class folders, such as stray.png. Move them into folders" in refusal(tmp_path)


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    (pets(tmp_path) / "cat" / "film.mp4").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    problems = [str(problem) for problem in read_images(tmp_path).problems]
    assert len(problems) == 1
    assert "are no images and are left out: cat/film.mp4" in problems[0]


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "U160 no images in" in refusal(tmp_path / "empty")
    assert "U160 no folder or .zip" in refusal(tmp_path / "emty")
    assert "did you mean 'empty'?" in refusal(tmp_path / "emty")
    (tmp_path / "x.zip").write_bytes(b"no archive")
    assert "is neither a folder nor a .zip that can be read" in refusal(tmp_path / "x.zip")


def labelled(folder: Path, text: str, **options: Any) -> Any:
    for name in ("a.png", "b.png", "deep/c.jpg"):
        picture(folder / "flat" / name)
    (folder / "labels.csv").write_text(text)
    return {"path": folder / "flat", "labels_csv": folder / "labels.csv", **options}


def test_labels_from_a_csv(tmp_path: Path) -> None:
    said = labelled(tmp_path, "file,kind\nb.png, dog\nc,cat\na,owl\n")
    source = read_images(**said)
    assert source.names is not None
    assert source.names.tolist() == ["a.png", "b.png", "deep/c.jpg"]
    assert source.labels.tolist() == ["owl", "dog", "cat"]
    said = labelled(tmp_path, "id,x,y,t\nb,0,1,2.5\ndeep/c.jpg,1,0,\na.png,1,1,3\n", file_column="id")
    assert read_images(**said, label_column=["x", "y"]).labels.to_numpy().tolist() == [[1, 1], [0, 1], [1, 0]]
    assert read_images(**said, label_column="t").labels.tolist()[:2] == [3, 2.5]


def test_images_without_a_line_in_the_csv_are_a_warning(tmp_path: Path) -> None:
    source = read_images(**labelled(tmp_path, "file,kind\nb.png,dog\n"))
    assert source.labels.isna().tolist() == [True, False, True]
    assert "U164 2 images are not in labels.csv and have no label: a.png, deep/c.jpg" in str(source.problems[0])


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (
            "file,kind\nb.pn,dog\nq,cat\n",
            {},
            "U162 2 files named in labels.csv are not there, first 'b.pn' (line 2); did you mean 'b.png'?",
        ),
        ("file,kind\nb.png,dog\nb,cat\n", {}, "U163 labels.csv names b.png more than once"),
        ("name,kind\nb.png,dog\n", {"label_column": "kind"}, "U107 No column 'file' (data.file) in labels.csv; there is: name, kind"),
        ("file,kind\nb.png,dog\n", {"label_column": "knd"}, "U107 No column 'knd' (data.label) in labels.csv; did you mean 'kind'?"),
        ("file,kind,more\nb.png,dog,1\n", {}, "U107 labels.csv has the columns file, kind, more; say which is the label: data.label"),
        ("", {}, "U103 labels.csv cannot be read as CSV"),
    ],
)
def test_bad_label_files(tmp_path: Path, text: str, options: dict[str, Any], says: str) -> None:
    assert says in refusal(**labelled(tmp_path, text, **options))


def test_more_bad_label_files(tmp_path: Path) -> None:
    said = labelled(tmp_path, "file,kind\nb.png,dog\n")
    assert "did you mean 'labels.csv'?" in refusal(said["path"], labels_csv=tmp_path / "label.csv")
    (tmp_path / "labels.csv").write_bytes("file,kind\nb.png,\u00e9t\u00e9\n".encode("cp1252"))
    assert "U102 labels.csv is not utf-8 text" in refusal(**said)
    assert read_images(**said, encoding="cp1252").labels.tolist()[1] == "\u00e9t\u00e9"
    picture(tmp_path / "flat" / "deep" / "b.png")
    assert "U163 'b' in labels.csv can be b.png and deep/b.png; write the path of each file" in refusal(
        **labelled(tmp_path, "file,kind\nb,dog\n")
    )


def test_decoded_pixels_are_used_again_until_a_file_changes(tmp_path: Path) -> None:
    folder, cache = pets(tmp_path / "pets"), tmp_path / "cache" / "pixels.npy"
    first = read_images(folder, cache=cache)
    assert isinstance(first.inputs, np.memmap)
    assert sorted(item.name for item in cache.parent.iterdir()) == ["pixels.npy", "pixels.npy.json"]
    written = cache.stat().st_mtime_ns
    again = read_images(folder, cache=cache)
    assert cache.stat().st_mtime_ns == written
    assert (again.inputs == read_images(folder).inputs).all()
    assert again.labels.tolist() == first.labels.tolist()
    picture(folder / "cat" / "0.PNG", (99, 0, 0))
    assert read_images(folder, cache=cache).inputs[0, 0, 0, 0] == 99
    assert read_images(folder, cache=cache, grey=True).inputs.shape == (6, 4, 6, 1)
    cache.with_name("pixels.npy.json").write_text("{")
    assert read_images(folder, cache=cache).inputs.shape == (6, 4, 6, 3)


def test_a_failed_reading_leaves_no_cache(tmp_path: Path) -> None:
    (pets(tmp_path / "pets") / "cat" / "empty.png").write_bytes(b"")
    cache = tmp_path / "pixels.npy"
    assert "U165" in refusal(tmp_path / "pets", cache=cache)
    assert not [item.name for item in tmp_path.iterdir() if "pixels" in item.name]


def test_pictures_of_an_array_are_resized_as_files_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 9, 7, 3), dtype=np.uint8)
    found = resized(pixels, (4, 5))
    assert found.shape == (3, 4, 5, 3)
    for before, after in zip(pixels, found, strict=True):
        assert (np.asarray(Image.fromarray(before).resize((5, 4), Image.Resampling.BILINEAR)) == after).all()
    assert resized(pixels[..., :1], (4, 5)).shape == (3, 4, 5, 1)
    assert resized(pixels, (9, 7)) is pixels
