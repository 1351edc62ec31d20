"""The difference between a deployment and pack.yaml, as steps that can be shown before they are taken."""

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from deploy.shown import HIDDEN, Secrets, message

Json = dict[str, Any]

_SECRETS = re.compile(r"(?<=\bkey=)\S+|(?<=://)[^/@\s]+(?=@)")  # of a node's row; of an address


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


@dataclass(frozen=True)
class Trouble:
    """What no step can mend, for the admin.

    Attributes:
        subject: what it is about: a model, a plugin, the microphone.
        text: what is wrong.
        remedy: what to do.
    """

    subject: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.subject, self.text, self.remedy)))


@dataclass
class Plan:
    """The steps that make a deployment match, in order, and what no step can mend.

    Attributes:
        steps: changes, in the order in which they are made.
        problems: what no step can mend.
    """

    steps: list[Step] = field(default_factory=list)
    problems: list[Trouble] = field(default_factory=list)

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


def valves_diff(old: Json, new: Json, secret: Collection[str]) -> list[str]:
    """As `value_diff`, with no secret in it.

    Args:
        old: valves as they are.
        new: valves as they should be.
        secret: those that are secret as a whole.
    """
    safe_old = {name: _safe(value, whole=name in secret) for name, value in old.items()}
    safe_new = {name: _safe(value, whole=name in secret) for name, value in new.items()}
    for name in safe_new.keys() & safe_old.keys():
        if new[name] != old[name] and safe_new[name] == safe_old[name]:
            safe_new[name] = message("{value} (another one)", value=safe_new[name])
    return value_diff(safe_old, safe_new)


def without_secrets(text: str) -> str:
    """A text without the keys of nodes, and without the passwords in addresses."""
    secrets = Secrets()
    secrets.add_text(text)
    return secrets.mask(_SECRETS.sub(HIDDEN, text))


def _safe(value: object, *, whole: bool) -> object:
    if whole and value:
        return HIDDEN
    return without_secrets(value) if isinstance(value, str) else value


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
