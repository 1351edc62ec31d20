"""A record of chats in a file, as the dashboard's history has them."""

import codecs
import io
import json
from pathlib import Path
from typing import Any

from deploy.errors import DeployError
from deploy.shown import message
from ollama_pack.routing.plan.demand import Asked, asked_in

MAX_LINE = 2**20


def read_record(path: Path) -> list[Asked]:
    """The chats in a file: a JSON object on each line, as the dashboard exports them.

    Raises:
        DeployError: it cannot be read.
    """
    found: list[dict[str, Any]] = []
    try:
        with path.open("rb") as raw, _as_text(raw) as file:
            for number, line in enumerate(file, start=1):
                if len(line) > MAX_LINE:
                    raise DeployError(
                        message(
                            "{path}, line {number}: it is longer than {limit} characters",
                            path=path,
                            number=number,
                            limit=MAX_LINE,
                        )
                    )
                if line.strip():
                    found.append(_object(line, message("{path}, line {number}", path=path, number=number)))
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(message("{path} cannot be read: {error}", path=path, error=error)) from None
    return asked_in(found)


def _as_text(raw: io.BufferedReader) -> io.TextIOWrapper:
    """A file's text, as PowerShell writes it, too: UTF-16, or UTF-8 with a mark at its beginning."""
    is_utf16 = raw.peek(2)[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}
    return io.TextIOWrapper(raw, encoding="utf-16" if is_utf16 else "utf-8-sig")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise DeployError(
            message("{where}: it is not JSON. Write a JSON object on each line.", where=where)
        ) from None
    if not isinstance(value, dict):
        raise DeployError(message("{where}: it is not a JSON object. Write one on each line.", where=where))
    return value
