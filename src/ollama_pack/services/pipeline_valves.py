"""Valves on the Pipelines server: what all of our pipelines have in common there."""

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

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

    takes_what_it_can: ClassVar[bool] = False  # of what comes next, where no admin could read an error

    def __init__(self, **values: Any) -> None:
        """Validate the values; of those that `valves.json` holds leave out what is refused."""
        kind = type(self)
        is_stored, kind.takes_what_it_can = kind.takes_what_it_can, False
        try:
            super().__init__(**values)
        except ValidationError as error:
            if not is_stored:
                raise
            super().__init__(**_accepted(values, error, {}))

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
    file out of its folder. The server makes valves once more of these and of `valves.json`. That may be older
    than the code, or written by hand, and an error would end the server with all of its pipelines.

    Args:
        kind: the valves.
        variables: name of a valve → name of the variable that it begins with.
        given: value of a valve that another variable stands for, where its own says nothing.
    """
    values = {
        **(given or {}),
        **{valve: os.environ[name] for valve, name in variables.items() if os.getenv(name)},
    }
    try:
        valves = kind(**values)
    except ValidationError as error:
        valves = kind(**_accepted(values, error, variables))
    kind.takes_what_it_can = True
    return valves


def _accepted(
    values: Mapping[str, Any], error: ValidationError, variables: Mapping[str, str]
) -> dict[str, Any]:
    """The values without those that an error is about, which are logged by the names of their variables."""
    refused = {str(problem["loc"][0]): problem["msg"] for problem in error.errors()}
    for valve, reason in refused.items():
        log.error("%s is left out: %s", variables.get(valve, valve), reason)
    return {valve: value for valve, value in values.items() if valve not in refused}
