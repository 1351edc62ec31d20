"""What chats did in this process, until somebody writes it into the history.

Every plugin of a process puts its records into one line, whatever code they are of; `chat_record` says what
is in one. Minutes are figures by name, which can be added up over processes:

| name | what |
|---|---|
| `answered`, `cached`, `shared`, `stopped`, `failed` | chats by outcome; `cached` and `shared` by the cache |
| `waited`, `saved` | seconds that chats waited for a node; seconds of generation that the cache saved |
| `prompt`, `held`, `written` | tokens |
| `first/<class>` | chats by the time to the first token, see `first_class` |
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any

from ollama_pack.base.single_flight import process_wide

MAX_NOTES = 10_000
MAX_ASKED = 256  # characters of a name: a wildcard takes names of any length
CLASS_RATIO = 1.1  # of the upper bounds of two classes; so exact is a percentile
CLASS_FIRST = 0.01  # seconds: the upper bound of class 0
MAX_CLASS = 120  # 900 s
_ADDED = ("waited", "saved", "prompt", "held", "written")

Minutes = Mapping[int, Mapping[str, float]]  # minutes since 1970 → figures


def note_chat(record: Mapping[str, Any]) -> None:
    """Keep the record of a chat that has ended. The oldest goes where too many were kept."""
    _notes().append({**record, "asked": str(record.get("asked") or "")[:MAX_ASKED]})


def take_notes() -> list[dict[str, Any]]:
    """What was noted since the last time, the oldest first."""
    notes, taken = _notes(), []
    while notes:
        taken.append(notes.popleft())
    return taken


def give_notes_back(taken: Iterable[dict[str, Any]]) -> None:
    """What could not be written, to be taken again."""
    notes = _notes()
    for record in list(taken)[::-1]:
        if len(notes) < MAX_NOTES:
            notes.appendleft(record)


def _notes() -> "deque[dict[str, Any]]":
    return process_wide("chats", lambda: deque[dict[str, Any]](maxlen=MAX_NOTES))


def minutes_of(records: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """What these records add to the figures of minutes. Background calls are left out of waiting times."""
    found: dict[int, Counter[str]] = {}
    for record in records:
        figures = found.setdefault(int(record["at"] // 60), Counter())
        figures[str(record["outcome"])] += 1
        for name in _ADDED:
            if value := record.get(name):
                figures[name] += value
        if (first := record.get("first")) is not None and not record.get("background"):
            figures[f"first/{first_class(first)}"] += 1
    return {minute: dict(figures) for minute, figures in found.items()}


def first_class(seconds: float) -> int:
    """The class of a time to the first token: its upper bound is `CLASS_FIRST * CLASS_RATIO ** class`."""
    if seconds <= CLASS_FIRST:
        return 0
    return min(MAX_CLASS, math.ceil(math.log(seconds / CLASS_FIRST, CLASS_RATIO) - 1e-9))
