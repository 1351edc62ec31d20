"""What all valves of the pack have in common: what is refused is told to admins, without what was written.

Open WebUI's page only shows that there was an error. What a process has refused is kept in it for an hour, as
plain values: each plugin has a copy of this code.
"""

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ollama_pack.base.messages import (
    ENGLISH,
    Message,
    in_language,
    joined,
    known_language,
    message,
    said_by,
)
from ollama_pack.base.single_flight import process_wide
from ollama_pack.base.translations import TRANSLATIONS

KEEP_SECONDS = 3600.0
_WHOLE, _NUMBER, _SWITCH = (
    message("must be a whole number"),
    message("must be a number"),
    message("must be true or false"),
)
# By pydantic's name for the error.
_REFUSALS = {
    "bool_parsing": _SWITCH,
    "bool_type": _SWITCH,
    "extra_forbidden": message("is not known"),
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "int_from_float": _WHOLE,
    "int_parsing": _WHOLE,
    "int_type": _WHOLE,
    "list_type": message("must be a list"),
    "missing": message("is missing"),
    "string_type": message("must be text"),
}
_MODULE = re.compile(r"(?:function|tool)_(\w+)_[0-9a-f]{32}")  # as Open WebUI calls a plugin's module


class PackValves(BaseModel):
    """Valves whose errors reach admins, and do not repeat what was written into them.

    Open WebUI logs the error of a save that failed. Pydantic would put the value into it: a password,
    a key, or a whole table of nodes with theirs.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    def __init__(self, **values: Any) -> None:
        """Validate the values, as Open WebUI does at each save and each request."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            note_refused(type(self), error)
            raise
        note_accepted(self)


def note_refused(valves: type[BaseModel], error: ValidationError) -> None:
    """An admin has saved valves that the plugin refuses, or such valves are stored."""
    if plugin := _plugin_of(valves):
        said = joined(
            (_said(one) for one in error.errors(include_url=False, include_input=False)), message("; ")
        )
        words = {language: in_language(said, language) for language in (ENGLISH, *TRANSLATIONS)}
        _refused()[plugin] = {"at": time.time(), "said": words, "told": False}


def note_accepted(valves: BaseModel) -> None:
    """Valves were accepted: where they are others than before, a save has put right what was refused."""
    if plugin := _plugin_of(type(valves)):
        accepted = process_wide("accepted valves", dict[str, int])
        digest = hash(valves.model_dump_json())
        if accepted.get(plugin, digest) != digest:
            _refused().pop(plugin, None)
        accepted[plugin] = digest


def refused_valves(language: str) -> list[dict[str, Any]]:
    """What was refused within the last hour and not put right since: `plugin`, `at` and `reason` of each."""
    now = time.time()
    return [
        {"plugin": plugin, "at": note["at"], "reason": _in(note["said"], language)}
        for plugin, note in _refused().items()
        if now - note["at"] < KEEP_SECONDS
    ]


async def refused_report() -> dict[str, Any]:
    """The same for the dashboard, with each reason in all languages."""
    now = time.time()
    there = [(plugin, note) for plugin, note in _refused().items() if now - note["at"] < KEEP_SECONDS]
    return {"valves": [{"plugin": plugin, "said": dict(note["said"])} for plugin, note in there]}


async def tell_refused(
    emitter: Callable[[dict[str, Any]], Awaitable[None]] | None, user: Mapping[str, Any], language: str
) -> None:
    """Show an admin, once and above an answer, what was refused."""
    if emitter is None or user.get("role") != "admin":
        return
    for one in refused_valves(language):
        note = _refused().get(one["plugin"])
        if note and not note["told"]:
            note["told"] = True
            line = message("Settings of {plugin} were refused: {reason}", **one)
            text = in_language(line, language)
            await emitter({"type": "status", "data": {"description": text, "done": True}})


def _refused() -> dict[str, dict[str, Any]]:
    return process_wide("refused valves", dict[str, dict[str, Any]])


def _in(words: Mapping[str, str], language: str) -> str:
    return str(words.get(known_language(language)) or words[ENGLISH])


def _plugin_of(valves: type[BaseModel]) -> str:
    """Id of the plugin that Open WebUI has loaded these valves with; empty elsewhere, and for a user's."""
    found = _MODULE.fullmatch(valves.__module__)
    return found[1] if found and valves.__name__ == "Valves" else ""


def _said(problem: Any) -> Message:
    """One of pydantic's errors as `valve: reason`."""
    valve = ".".join(map(str, problem["loc"]))
    return joined([valve, refusal(problem)], message(": "))


def refusal(problem: Any) -> Message:
    """What one of pydantic's errors says, in words for people."""
    context = problem.get("ctx") or {}
    match problem["type"]:
        case "value_error" if isinstance(context.get("error"), Exception):
            return said_by(context["error"])
        case "greater_than_equal":
            return message("must be at least {limit}", limit=context["ge"])
        case "less_than_equal":
            return message("must be at most {limit}", limit=context["le"])
        case "literal_error":
            return message("must be one of {choices}", choices=context["expected"])
    return _REFUSALS.get(problem["type"]) or Message(str(problem["msg"]))
