"""Read and check tables of jobs in CSV files."""

from __future__ import annotations

import csv
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import pandas as pd

from autoconf.errors import BadInput
from autoconf.files import STANDARD_STREAM, called, cannot_read
from autoconf.jobs.job import TOGETHER, Workload
from autoconf.jobs.queries import MIN_GPUS, NOTES, Query

# --- reading ----------------------------------------------------------------------------------------------------------


def read_table(path: str) -> pd.DataFrame:
    """Read a CSV file, with every cell as text.

    Args:
        path: a file in UTF-8; ``-`` for standard input.

    Returns:
        Cells as text; the index is the number of the line that each row starts on, counting the header's as 1.

    Raises:
        BadInput: there is no such file, or it is not a table; the message names the line.
    """
    try:
        if path == STANDARD_STREAM:
            if sys.stdin is None:
                raise BadInput("standard input: cannot read it: it is closed")
            return parse_table(sys.stdin.buffer, called(path))
        with open(path, "rb") as file:
            return parse_table(file, path)
    except (OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        # ValueError: the text is not a valid path
        raise cannot_read(path, error) from None


def parse_table(file: BinaryIO, source: str) -> pd.DataFrame:
    """Read a CSV file that is open; result and errors as those of ``read_table``.

    Args:
        file: the bytes of the file.
        source: its name in messages.
    """
    records = _records(file, source)
    _, header = next(records, (1, None))
    if header is None:
        raise BadInput(f"{source}, line 1: the file is empty; its first line must name the columns")
    header = [column.strip() for column in header]
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise BadInput(f"{source}, line 1: column named more than once: {', '.join(map(repr, twice))}")
    lines = array("q")
    columns: list[list[str]] = [[] for _ in header]
    # A table has few distinct names and numbers: one string object for each keeps a million rows small.
    known: list[dict[str, str] | None] = [{} if column in Workload.model_fields else None for column in header]
    for line, fields in records:
        if len(fields) != len(header):
            raise BadInput(f"{source}, line {line}: {len(fields)} fields, but line 1 names {len(header)} columns")
        lines.append(line)
        for values, text, seen in zip(columns, fields, known, strict=True):
            values.append(text if seen is None else seen.setdefault(text, text))
    data = dict(zip(header, columns, strict=True))
    return pd.DataFrame(data, index=pd.Index(lines, dtype="int64", name="line"), dtype=object)


def _records(file: BinaryIO, source: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a CSV file, each with the number of the line that it starts on; skip empty lines."""
    reader = csv.reader(_text_lines(file, source), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BadInput(f"{source}, line {line}: not CSV: {error}") from None
        if fields:
            yield line, fields


def _text_lines(file: BinaryIO, source: str) -> Iterator[str]:
    """Decode line by line, so that an error can name the line of a byte that is not text."""
    header = ""
    for number, raw in enumerate(file, 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = raw[error.start]
            problem = f"not text in UTF-8: byte {error.start + 1} is 0x{byte:02x}"
            raise BadInput(f"{source}, line {number}: {problem}") from None
        if "\0" in line:
            raise BadInput(f"{source}, line {number}: not text: byte {raw.index(0) + 1} is 0x00")
        if not header:
            header = line.strip()
            _check_separator(header, f"{source}, line {number}")
        yield line


def _check_separator(header: str, where: str) -> None:
    """Refuse other separators, which some spreadsheets write and which would make the header one long column."""
    other = next((separator for separator in ";\t|" if separator in header), None)
    if other is not None and "," not in header:
        raise BadInput(f"{where}: the separator seems to be {other!r}, but must be ','")


def check_jobs(table: pd.DataFrame, source: str, query: Query = MIN_GPUS) -> None:
    """Check every value of a table of jobs before any is answered.

    Args:
        table: a table from ``read_table``.
        source: the name of the file in messages.
        query: the query about the jobs.

    Raises:
        BadInput: a required column is missing, a column has the name of an output column, or values are invalid or
            exclude each other; the message has a line for each bad row, up to 20.
    """
    missing = query.missing_columns(table)
    if missing:
        raise BadInput(
            f"{source}, line 1: required column missing: {', '.join(missing)}; the table has {', '.join(table)}"
        )
    taken, answers = earlier_answers(table, query), query.answers
    # A lone column "gpus" or "reason" may belong to the user, and so may an answered field: do not overwrite them.
    # Answers of earlier releases have no column "outcome".
    complete = {*answers} - {"outcome"} <= {*taken}
    if taken and (answers[0] not in taken or (not complete and {*taken} & {*query.answered})):
        raise BadInput(
            f"{source}, line 1: the output columns {', '.join(answers)} are appended, but the table already has "
            f"{', '.join(taken)}; rename or remove it"
        )
    problems: dict[int, list[str]] = {}
    known: dict[str, dict[str, Any]] = {}
    for field in query.all_fields:
        if field in table and field not in answers:
            known[field], wrong = _read_cells(query.reader(field), table[field].unique())
            for line, text in table.loc[table[field].isin(wrong), field].items() if wrong else ():
                problems.setdefault(line, []).append(wrong[text])
    texts = table.loc[~table.index.isin(problems), [field for field in TOGETHER if field in known]]
    columns = {field: [known[field][text] for text in texts[field]] for field in texts}
    for index, problem in query.contradictions(columns).items():
        problems[texts.index[index]] = [problem]
    if problems:
        messages = [f"{source}, line {line}: {'; '.join(problems[line])}" for line in sorted(problems)]
        raise BadInput.listing(messages, source, "more bad lines")


def earlier_answers(table: pd.DataFrame, query: Query = MIN_GPUS) -> list[str]:
    """The output columns of a query that a table already has; a column of notes before them belongs to the user."""
    columns = list(table)
    found = [column for column in query.answers if column in columns]
    noted = query.answers[0] in found and NOTES in columns[columns.index(query.answers[0]) :]
    return [*found, *([NOTES] if noted else [])]


def _read_cells(reader: Callable[[str], Any], texts: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the cells of a column: the value of each valid text, and the problem of each invalid one."""
    known: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for text in texts:
        try:
            known[text] = reader(text)
        except ValueError as error:
            wrong[text] = str(error)
    return known, wrong


# --- writing ----------------------------------------------------------------------------------------------------------
