"""
title: Model aliases
author: Open WebUI Ollama Pack
description: Answers names such as gpt-4 with the local models that a table of aliases names for them.
license: MIT
version: {version}
"""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from ollama_pack.aliases.errors import AliasUnavailableError
from ollama_pack.aliases.facts import RequestFacts, request_facts
from ollama_pack.aliases.resolve import Resolution, resolve
from ollama_pack.aliases.table import AliasTable, parse_table
from ollama_pack.ollama.tags import InstalledModels

log = logging.getLogger(__name__)

DIGEST_LENGTH = 16


def _own_digest() -> str:
    """Digest of the file that the server loaded; empty where the text runs without a file of its own."""
    path = globals().get("__file__")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:DIGEST_LENGTH] if path else ""


CODE_DIGEST = _own_digest()  # now: by the time it is asked for, another file may lie there, not loaded yet


class Pipeline:
    """Rewrites `model` to what the alias table says, before Open WebUI looks at the request further.

    The Pipelines server knows neither the user's groups nor what Open WebUI grants: rows that ask for a group
    are refused, and a model that the user may not use is refused by Open WebUI afterwards. Nor is it told the
    system prompt in an alias's row: that holds where the model answers which the row is based on.

    Valves begin with what MODEL_ALIASES and OLLAMA_BASE_URLS say. Once they are saved, by an admin or by
    upload.py, valves.json holds every one of them, and the environment is not asked again.
    """

    class Valves(BaseModel):
        pipelines: list[str] = Field(default=["*"], description="Models that the filter is for; * for all.")
        priority: int = Field(default=0, description="Filters run from the lowest number to the highest.")
        aliases: str = Field(
            default="",
            description=(
                "Rows, each on a line of its own or all on one with ; between them: "
                "alias = model, model [condition, …]. The first model that is installed answers. "
                "A * in an alias stands for any text. Conditions: vision, tools, context>=8k, "
                "quant=q8_0>q4_K_M. A # starts a comment."
            ),
        )
        ollama_urls: str = Field(
            default="",
            description=(
                "Ollama servers, separated by commas, that are asked which models are installed; "
                "when empty, the first model of a row is taken."
            ),
        )
        code_digest: str = Field(
            default=CODE_DIGEST,
            description="Tells upload.py which code runs here. Whatever is written into it changes nothing.",
        )

        @field_validator("*", mode="before")
        @classmethod
        def _default_for_none(cls, value: Any, info: ValidationInfo) -> Any:
            """Open WebUI's page cannot save an empty valve: it asks for a text, or sends null for "None"."""
            return cls.model_fields[str(info.field_name)].get_default() if value is None else value

        @field_validator("aliases")
        @classmethod
        def _readable(cls, text: str) -> str:
            if _table(text).uses_groups:
                message = (
                    "group= is not known on the Pipelines server: use the model_alias_filter function for it"
                )
                raise ValueError(message)
            return text

        @field_validator("code_digest")
        @classmethod
        def _of_this_code(cls, _: str) -> str:
            """What valves.json says is about the code that ran when it was saved."""
            return CODE_DIGEST

    def __init__(self) -> None:
        self.type = "filter"
        self.name = "Model aliases"
        self.valves = self._first_valves()
        self._installed = InstalledModels(())

    def _first_valves(self) -> Valves:
        """From the environment. An error here would make the server move the file out of its folder."""
        urls = os.getenv("OLLAMA_BASE_URLS", "")
        try:
            return self.Valves(aliases=os.getenv("MODEL_ALIASES", ""), ollama_urls=urls)
        except ValidationError as error:
            log.error("MODEL_ALIASES is left out: %s", error.errors()[0]["msg"])  # noqa: TRY400 - one line says it
            return self.Valves(ollama_urls=urls)

    async def on_startup(self) -> None:
        self._look_at_nodes()

    async def on_shutdown(self) -> None:
        """Nothing is held between requests."""

    async def on_valves_updated(self) -> None:
        self._look_at_nodes()

    def _look_at_nodes(self) -> None:
        """Forget what was known of other nodes, but not of these: one may be down when a valve is saved."""
        urls = [url.strip() for url in self.valves.ollama_urls.replace(";", ",").split(",")]
        nodes = InstalledModels([url for url in urls if url])
        if nodes.urls != self._installed.urls:
            self._installed = nodes

    async def inlet(self, body: dict[str, Any], user: dict[str, Any] | None = None) -> dict[str, Any]:  # noqa: ARG002 - the server passes it
        """Choose the model for an alias. Anything unexpected is logged, and the chat goes on unchanged."""
        alias = body.get("model")
        if not isinstance(alias, str):
            return body
        try:
            facts = request_facts(body, alias)
            chosen = _resolve(_table(self.valves.aliases), facts, await self._installed.get())
        except Exception:
            log.exception("The alias %r was not resolved, and the chat went on without it", alias)
            return body
        if chosen is not None and not _already_stands_for(body, chosen.model):
            body["model"] = chosen.model
        return body


def _table(text: str) -> AliasTable:
    """A valve is one line in Open WebUI's page, and so is a variable in most files of them."""
    return parse_table(text if "\n" in text else text.replace(";", "\n"))


def _resolve(table: AliasTable, facts: RequestFacts, installed: dict[str, str] | None) -> Resolution | None:
    """Resolve; where none of an alias's models is on the nodes, take the first at its word.

    Open WebUI may reach it over another connection, and otherwise says that it is not found. Of an error that
    a filter here raises it shows no more than "Internal Server Error".
    """
    try:
        return resolve(table, facts, installed)
    except AliasUnavailableError as error:
        log.warning("%s", error)
        return resolve(table, facts, None)


def _already_stands_for(body: dict[str, Any], model: str) -> bool:
    """Whether the alias's row in Open WebUI stands for the model: then the row's own settings apply."""
    try:
        return bool(body["metadata"]["model"]["info"]["base_model_id"] == model)
    except (KeyError, TypeError):
        return False
