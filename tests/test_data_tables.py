"""Tables: what is read, and every refusal by its text."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from understudy.data.tables import read_table
from understudy.errors import DataError

GOOD = "age,job,income\n25, clerk ,low\n38,?,high\n,NA,low\n"


def write(folder: Path, text: str | bytes, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_table(path, **options)
    return str(caught.value)


def test_missing_cells_and_whitespace(tmp_path: Path) -> None:
    source = read_table(write(tmp_path, GOOD), label="income")
    assert source.kind == "table"
    assert list(source.inputs.columns) == ["age", "job"]
    assert source.inputs["age"].tolist()[:2] == [25.0, 38.0]
    assert np.isnan(source.inputs["age"][2])
    assert source.inputs["job"].isna().tolist() == [False, True, False]
    assert source.inputs["job"][0] == "clerk"
    assert source.inputs["job"][2] == "NA"
    assert source.labels.tolist() == ["low", "high", "low"]
    assert source.names is not None
    assert source.names.tolist() == ["rows.csv line 2", "rows.csv line 3", "rows.csv line 4"]


@pytest.mark.parametrize(
    "data",
    [gzip.compress(GOOD.encode()), b"\xef\xbb\xbf" + GOOD.encode(), GOOD.replace("\n", "\r\n").encode(), GOOD.replace("\n", "\r").encode()],
    ids=["gzip", "byte order mark", "windows", "old mac"],
)
def test_same_rows_whatever_the_file_looks_like(tmp_path: Path, data: bytes) -> None:
    plain = read_table(write(tmp_path, GOOD), label="income")
    other = read_table(write(tmp_path, data, "other.csv"), label="income")
    pd.testing.assert_frame_equal(plain.inputs, other.inputs)
    assert plain.labels.tolist() == other.labels.tolist()


def test_parquet_agrees_with_csv_and_keeps_texts_of_digits(tmp_path: Path) -> None:
    frame = pd.DataFrame({"age": pd.array([25, None], dtype="Int64"), "zip": ["0123", " ? "], "y": ["a", "b"]}, index=[5, 6])
    frame.to_parquet(tmp_path / "rows.parquet")
    source = read_table(tmp_path / "rows.parquet", label="y")
    assert source.inputs["age"].dtype == np.float64
    assert source.inputs["zip"][0] == "0123"
    assert pd.isna(source.inputs["zip"][1])
    assert source.names is not None
    assert source.names[1] == "rows.parquet row 1"


def test_texts_that_are_numbers_once_the_missing_are_gone(tmp_path: Path) -> None:
    source = read_table(write(tmp_path, "a,b,c\n1,nan,-999\n ? ,2.5,3\n3 ,NaN,4\n"), missing=["?", "-999"])
    assert source.inputs.dtypes.tolist() == [np.float64, np.float64, np.float64]
    assert source.inputs["b"].tolist()[1] == 2.5
    assert np.isnan(source.inputs["c"][0])


def test_labels_keep_their_spelling_and_may_be_missing(tmp_path: Path) -> None:
    source = read_table(write(tmp_path, "a,y\n1,true\n2,\n3,false\n"), label="y")
    assert source.labels.tolist()[0] == "true"
    assert source.labels.isna().tolist() == [False, True, False]


def test_several_labels_ignored_columns_and_a_split(tmp_path: Path) -> None:
    text = "id,a,cat,dog,part\n7,1,0,1,train\n8,2,1,0,dev\n9,3,0,0,TEST\n"
    source = read_table(write(tmp_path, text), label=["cat", "dog"], ignore=["id"], split_column="part")
    assert list(source.inputs.columns) == ["a"]
    assert list(source.labels.columns) == ["cat", "dog"]
    assert source.split is not None
    assert source.split.tolist() == ["train", "validation", "test"]


def test_lines_are_counted_through_quoted_newlines_and_blank_lines(tmp_path: Path) -> None:
    source = read_table(write(tmp_path, 'a,b\n"x\ny",1\n\n"p, q",2\n'))
    assert source.names is not None
    assert source.names.tolist() == ["rows.csv line 2", "rows.csv line 5"]
    assert source.inputs["a"].tolist() == ["x\ny", "p, q"]


def test_no_such_file(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "adult.csv")
    assert "U100 no file adlt.csv" in refusal(tmp_path / "adlt.csv")
    assert "did you mean 'adult.csv'?" in refusal(tmp_path / "adlt.csv")
    assert "does not exist" in refusal(tmp_path / "nowhere" / "adult.csv")
    assert "is a folder" in refusal(tmp_path)


def test_misspelt_columns_are_all_named(tmp_path: Path) -> None:
    said = refusal(write(tmp_path, GOOD), label="incme", ignore=["jb"], split_column="fold")
    assert (
        "U107 No column 'incme' (data.label) in rows.csv; did you mean 'income'? Distillation does not need labels, evaluation does" in said
    )
    assert "No column 'jb' (data.ignore) in rows.csv; did you mean 'job'?" in said
    assert "No column 'fold' (data.split) in rows.csv; there is: age, job, income" in said


def test_wrong_encodings(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\n1,x\n2,caf\u00e9\n".encode("cp1252"))
    assert "U102 rows.csv is not utf-8 text: byte 0xe9 in line 3." in refusal(path)
    assert "data.encoding = 'cp1252'" in refusal(path)
    assert read_table(path, encoding="cp1252").inputs["b"][1] == "caf\u00e9"
    assert "there is no text encoding 'cp1225'; did you mean 'cp1252'?" in refusal(path, encoding="cp1225")
    wide = write(tmp_path, GOOD.encode("utf-16"), "wide.csv")
    assert "data.encoding = 'utf-16'" in refusal(wide)
    assert len(read_table(wide, encoding="utf-16").inputs) == 3
    assert "has a NUL byte in line 2" in refusal(write(tmp_path, b"a,b\n1,\x002\n"))
    assert "U101 rows.csv is a damaged gzip file" in refusal(write(tmp_path, gzip.compress(GOOD.encode())[:-12]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "U105 rows.csv is empty"),
        (" \n\n", "U105 rows.csv is empty"),
        ("a,b\n", "U106 rows.csv has a header and no rows"),
        ("a,b\n1,2\n1,2,3\n1\n", "U103 rows.csv line 3 has 3 fields where the header has 2 (2 such lines)"),
        ("a,b\n1,2,\n3,4,\n", "U103 rows.csv line 2 has 3 fields where the header has 2 (2 such lines)"),
        ('a,b\n"1,2\n3,4\n', "U103 rows.csv line 2 has 1 fields where the header has 2"),
        ("a;b\n1;2\n", "its header is separated by semicolons: 'a;b'. Save it with commas: pandas.read_csv('rows.csv', sep=';')"),
        ("a\tb\n1\t2\n", "its header is separated by tabs"),
        ("a,b,a\n1,2,3\n", "U104 rows.csv has the column 'a' more than once"),
        ("1.5,2,x\n2.5,3,y\n".replace(",x", ",1").replace(",y", ",0"), "U104 the first line of rows.csv looks like data (1.5, 2, 1)"),
        ("a,b\n1,2\ninf,3\n", "U109 column 'a' has an infinite number in rows.csv line 3 (1 such cells)"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, says: str) -> None:
    assert says in refusal(write(tmp_path, text))


def test_a_label_alone_is_no_input(tmp_path: Path) -> None:
    assert "U108 rows.csv has no input columns left" in refusal(write(tmp_path, "y\na\nb\n"), label="y")


def test_a_strange_split_word(tmp_path: Path) -> None:
    said = refusal(write(tmp_path, "a,part\n1,train\n2,holdout\n"), split_column="part")
    assert "U113 column 'part' of rows.csv must say train, validation or test in every row; rows.csv line 3 says 'holdout'" in said


def test_warnings_name_the_column(tmp_path: Path) -> None:
    lines = [f"person {row},,{row},{'n/a' if row == 7 else row * 3},{'ab'[row % 2]}" for row in range(30)]
    source = read_table(write(tmp_path, "name,empty,number,age,kind\n" + "\n".join(lines)))
    said = "\n".join(map(str, source.problems))
    assert all(problem.level == "warning" for problem in source.problems)
    assert "U111 column 'name' of rows.csv holds 30 different texts in 30 rows" in said
    assert "U110 column 'empty' of rows.csv has no value in any row; name it in data.ignore" in said
    assert "U111 column 'number' of rows.csv counts the rows" in said
    assert "U114 column 'age' of rows.csv is read as texts because of 1 cells such as 'n/a' (rows.csv line 9)" in said
    assert "'kind'" not in said


def test_parquet_that_is_none_or_holds_lists(tmp_path: Path) -> None:
    assert "U101 rows.parquet is not a Parquet file" in refusal(write(tmp_path, "a,b", "rows.parquet"))
    pd.DataFrame({"a": [[1], [2]], "b": [1, 2]}).to_parquet(tmp_path / "lists.parquet")
    assert "U112 column 'a' holds lists" in refusal(tmp_path / "lists.parquet")
    assert list(read_table(tmp_path / "lists.parquet", ignore=["a"]).inputs.columns) == ["b"]
