"""Tables that admins write as text: a row a line, `#` starts a comment, empty lines are skipped."""

import re
from collections.abc import Iterator

from ollama_pack.base.messages import message
from ollama_pack.errors import PackError

_COMMENT = re.compile(r"(?:^|\s)[#＃].*")  # noqa: RUF001 - as a Chinese keyboard types it, too


class TableError(PackError, ValueError):
    """A row of a table cannot be used.

    A `ValueError` too, so that a pydantic validator reports it when an admin saves the valve.

    Attributes:
        line: number of the row in the text, from 1.
        row: the row as it was written, without secrets.
        reason: what is wrong with it and what to do.
    """

    def __init__(self, line: int, row: str, reason: str) -> None:
        super().__init__(message("row {line} ({row!r}): {reason}", line=line, row=row, reason=reason))
        self.line = line
        self.row = row
        self.reason = reason


def table_rows(text: str) -> Iterator[tuple[int, str]]:
    """The rows of a table as they are written, each with its line's number from 1."""
    for line, raw in enumerate(text.splitlines(), start=1):
        if written := _COMMENT.sub("", raw).strip():
            yield line, written
