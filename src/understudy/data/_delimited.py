"""Files of comma-separated text, and where they are: what the readers of tables and of texts share."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from understudy.errors import DataError, did_you_mean

Array = np.ndarray[Any, Any]

MOJIBAKE = r"Ã[\u0080-\u00bf\u0152-\u2122]|â€[\u0080-\u00bf\u0152-\u2122œ™˜]|\ufffd|[\u0080-\u009f]"
"""UTF-8 that was read as Western Windows or Latin-1, letters that were lost, and control characters of neither."""
_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def check_there(path: Path) -> None:
    """DataError U100 when there is no such file."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; a table is one .csv, .csv.gz or .parquet file", code="U100")
    if path.is_file():
        return
    if not path.parent.is_dir():
        raise DataError(f"no file {path}: the folder {path.parent} does not exist", code="U100")
    there = sorted(item.name for item in path.parent.iterdir() if item.is_file() and not item.name.startswith("."))
    near = did_you_mean(path.name, there) if there else "the folder has no files"
    raise DataError(f"no file {path.name} in {path.parent}; {near}", code="U100")


def decode(path: Path, encoding: str) -> str:
    """The text of a file, perhaps a gzip. DataError U101 for a damaged one, U102 for another encoding."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path.name} is a damaged gzip file: {error}", code="U101") from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") and encoding.casefold().startswith("utf-8"):
        raise DataError(f"{path.name} is UTF-16 text. Save it as UTF-8, or set data.encoding = 'utf-16'", code="U102")
    try:
        text = data.decode("utf-8-sig" if encoding.casefold() in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path.name} is not {encoding} text: byte 0x{data[error.start]:02x} in line {line}."
            " Save it as UTF-8, or say what it is: data.encoding = 'cp1252' (Western Windows) or 'latin-1'",
            code="U102",
        ) from None
    except LookupError:
        near = did_you_mean(encoding, ["utf-8", "utf-16", "cp1252", "latin-1", "cp1250", "cp1251", "shift_jis", "gb18030"])
        raise DataError(f"there is no text encoding {encoding!r}; {near}", code="U102") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path.name} has a NUL byte in line {line}: it is not a text file, or it is damaged, or it is UTF-16", code="U102")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def records(text: str, name: str) -> tuple[list[int], list[int]]:
    """The first line and the number of fields of every record, blank lines left out."""
    if '"' not in text:
        data = np.frombuffer(text.encode("utf-8") + b"\n", dtype=np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        commas = np.diff(np.searchsorted(np.flatnonzero(data == ord(",")), ends), prepend=0)
        filled = np.flatnonzero(np.diff(np.searchsorted(np.flatnonzero((data != ord("\n")) & (data != ord(" "))), ends), prepend=0))
        return (filled + 1).tolist(), (commas[filled] + 1).tolist()
    lines, counts, start = [], [], 1
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        for record in reader:
            if record and (len(record) > 1 or record[0].strip()):
                lines.append(start)
                counts.append(len(record))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{name} line {start}: {error}; look for a quote that is not closed", code="U103") from None
    return lines, counts


def header_and_lines(text: str, name: str) -> tuple[list[str], list[int]]:
    """The column names, and the first line of every record, the header's too. DataError U103 to U105 for what is no table."""
    lines, counts = records(text, name)
    if not lines:
        raise DataError(f"{name} is empty", code="U105")
    header = header_of(text, name)
    check_shape(name, header, lines, counts)
    return header, lines


def header_of(text: str, name: str) -> list[str]:
    """The column names; an empty one, as of a saved index, is called as pandas calls it."""
    first = next(record for record in csv.reader(io.StringIO(text, newline=""), skipinitialspace=True) if any(f.strip() for f in record))
    header = [field.strip() or f"Unnamed: {position}" for position, field in enumerate(first)]
    twice = sorted({field for field in header if header.count(field) > 1}, key=header.index)
    numbers = [field for field in header if is_number(field)]
    if len(numbers) == len(header) and (twice or not all(field.isdigit() for field in header)):
        shown = ", ".join(header[:4])
        raise DataError(f"the first line of {name} looks like data ({shown}), not like column names. Add a header line", code="U104")
    if twice:
        raise DataError(f"{name} has the column {', '.join(map(repr, twice))} more than once. Rename or remove the copies", code="U104")
    return header


def is_number(text: str) -> bool:
    """Whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def check_shape(name: str, header: list[str], lines: list[int], counts: list[int]) -> None:
    """DataError U103 unless every record has as many fields as the header."""
    if len(header) == 1:
        for mark, word in _DELIMITERS.items():
            if mark in header[0]:
                raise DataError(
                    f"{name} has one column by commas, but its header is separated by {word}: {header[0][:60]!r}."
                    f" Save it with commas: pandas.read_csv({name!r}, sep={mark!r}).to_csv({name!r}, index=False)",
                    code="U103",
                )
    bad = np.flatnonzero(np.asarray(counts) != len(header))
    if len(bad):
        raise DataError(
            f"{name} line {lines[bad[0]]} has {counts[bad[0]]} fields where the header has {len(header)} ({len(bad)} such lines)."
            " A text that holds a comma needs double quotes around it; a quote that is not closed swallows lines",
            code="U103",
        )
