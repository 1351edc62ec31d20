"""The difference between a deployment and pack.yaml, as steps that can be shown before they are taken."""

import difflib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One change to a server.

    Attributes:
        what: what it does, in a few words.
        diff: lines that show it, each beginning with `+`, `-` or a space.
        run: does it.
    """

    what: str
    diff: tuple[str, ...]
    run: Callable[[], object]


@dataclass
class Plan:
    """The steps that make a deployment match, in order, and what no step can mend.

    Attributes:
        steps: changes, in the order in which they are made.
        problems: sentences for the admin: what is wrong and what to do.
    """

    steps: list[Step] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, what: str, diff: Iterable[str], run: Callable[[], object]) -> None:
        self.steps.append(Step(what, tuple(diff), run))


def text_diff(old: str, new: str) -> list[str]:
    """The changed lines of a text with two lines around them, without a header."""
    return list(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=2))[2:]


def value_diff(old: Json, new: Json) -> list[str]:
    """The keys whose values differ, as `- key: old` and `+ key: new`; long texts line by line."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before == after and key in old and key in new:
            continue
        if isinstance(before, str) and isinstance(after, str) and "\n" in before + after:
            lines += [f"  {key}:", *text_diff(before, after)]
            continue
        lines += [f"- {key}: {_shown(before)}"] if key in old else []
        lines += [f"+ {key}: {_shown(after)}"] if key in new else []
    return lines


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
