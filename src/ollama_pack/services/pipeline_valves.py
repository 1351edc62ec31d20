"""Valves on the Pipelines server: what all of our pipelines have in common there."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError, ValidationInfo, field_validator

from ollama_pack.base.messages import in_language
from ollama_pack.services.valves import PackValves

DIGEST_LENGTH = 16
CODE_DIGEST_NOTE = "Written by the server, so that `upload.py` sees which code runs here. Do not edit."

log = logging.getLogger(__name__)


def _own_digest() -> str:
    """Digest of the file that the server loaded; empty where the text runs without a file of its own."""
    path = globals().get("__file__")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:DIGEST_LENGTH] if path else ""


CODE_DIGEST = _own_digest()  # now: by the time it is asked for, another file may lie there, not loaded yet


class PipelineValves(PackValves):
    """Valves that the server's page can save, and that tell which code they belong to.

    A subclass has a field `code_digest` with the default `CODE_DIGEST`.
    """

    @classmethod
    def model_json_schema(cls, *form: Any, **more: Any) -> dict[str, Any]:
        """What Open WebUI's page shows: titles and texts in the language of the server's environment."""
        schema = super().model_json_schema(*form, **more)
        for field in schema.get("properties", {}).values():
            field |= {
                name: in_language(field[name], server_language())
                for name in ("title", "description")
                if name in field
            }
        return schema

    @field_validator("*", mode="before")
    @classmethod
    def _default_for_none(cls, value: Any, info: ValidationInfo) -> Any:
        """Open WebUI's page cannot save an empty valve: it asks for a text, or sends null for "None"."""
        return cls.model_fields[str(info.field_name)].get_default() if value is None else value

    @field_validator("code_digest", check_fields=False)
    @classmethod
    def _of_this_code(cls, _: str) -> str:
        """What valves.json says is about the code that ran when it was saved."""
        return CODE_DIGEST


def server_language() -> str:
    """What `LC_ALL`, `LC_MESSAGES` or `LANG` names: Open WebUI does not say who looks at a page."""
    return next(filter(None, map(os.getenv, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")


_V = TypeVar("_V", bound=PipelineValves)


def one_a_line(text: str) -> str:
    """Rows with `;` between them, each on a line of its own.

    A valve is one line in Open WebUI's page, and so is a variable in most files of them. YAML's `>` ends such
    a line with a line break.
    """
    return text if "\n" in text.strip() else re.sub("[;；]", "\n", text)  # noqa: RUF001 - as a Chinese keyboard has it


def starting_valves(
    kind: type[_V], variables: Mapping[str, str], given: Mapping[str, str] | None = None
) -> _V:
    """Valves as the environment has them, until some are saved.

    A value that the valve refuses is logged and left out: an error here would make the server move the
    file out of its folder. Of these valves the server makes others, with what `valves.json` says. That may be
    older than the code, or written by hand, and an error would end the server with all of its pipelines: such
    a value is left out as well. What is saved later is refused where it is wrong.

    Args:
        kind: the valves.
        variables: name of a valve → name of the variable that it begins with.
        given: value of a valve that another variable stands for, where its own says nothing.
    """
    values = {
        **(given or {}),
        **{valve: os.environ[name] for valve, name in variables.items() if os.getenv(name)},
    }
    valves = _accepted(kind, values, variables)
    try:
        kind(**{**valves.model_dump(), **_stored_values()})
    except ValidationError:

        class StartingValves(kind):  # type: ignore[misc, valid-type] # mypy takes no variable as a base
            def __new__(cls, **stored: Any) -> PipelineValves:  # type: ignore[misc] # of its base, from then on
                return _accepted(kind, stored, {})

        object.__setattr__(valves, "__class__", StartingValves)
    return valves


def _stored_values() -> dict[str, Any]:
    """What the server keeps for this file in `valves.json`, and will make valves of."""
    path = globals().get("__file__")
    try:
        stored = json.loads((Path(path).with_suffix("") / "valves.json").read_bytes()) if path else {}
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _accepted(kind: type[_V], values: Mapping[str, Any], variables: Mapping[str, str]) -> _V:
    """Valves of the values that they do not refuse; the others are logged by the names of their variables."""
    try:
        return kind(**values)
    except ValidationError as error:
        refused = {str(problem["loc"][0]): problem["msg"] for problem in error.errors()}
    for valve, reason in refused.items():
        log.error("%s is left out: %s", variables.get(valve, valve), reason)
    return kind(**{valve: value for valve, value in values.items() if valve not in refused})
