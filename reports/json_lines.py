"""JSON-lines files read into DuckDB, and the line named that could not be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import msgspec

from scenarios.history import HistoryError

Kind = Callable[[bytes], type[msgspec.Struct]]

ROW_BYTES_MAX = 16 << 20


def only(kind: type[msgspec.Struct]) -> Kind:
    """Every line is of this kind."""
    return lambda _line: kind


def read_lines(
    db: duckdb.DuckDBPyConnection,
    path: Path,
    into: str,
    columns: dict[str, str],
    kind: Kind,
) -> None:
    """Read one JSON-lines file; raises HistoryError naming the line that is not of the kind it should be."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                raise HistoryError(path, line_count(path), "the line has no end; the file is truncated")
    if not size:
        return
    try:
        db.execute(
            f"{into} read_json(?, format = 'newline_delimited', columns = ?,"
            f" maximum_object_size = {ROW_BYTES_MAX})",
            [str(path), columns],
        )
    except duckdb.Error as error:
        refuse_line(path, kind)
        raise HistoryError(path, 1, str(error).split("\n", 1)[0]) from None


def refuse_line(path: Path, kind: Kind) -> None:
    """Raise HistoryError for the first line that does not decode."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                msgspec.json.decode(line, type=kind(line))
            except msgspec.DecodeError as error:
                raise HistoryError(path, number, f"not a row: {error}") from None


def line_count(path: Path) -> int:
    """Lines of a file, an unfinished last one included."""
    with path.open("rb") as file:
        return sum(1 for _ in file)
