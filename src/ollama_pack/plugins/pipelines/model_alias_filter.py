"""
title: Model aliases
author: Open WebUI Ollama Pack
author_url: {repository}
description: Answers names such as gpt-4 with the local models that a table of aliases names for them.
license: MIT
version: {version}
"""

import logging
from typing import Any

from pydantic import Field, field_validator

from ollama_pack.aliases.errors import AliasUnavailableError
from ollama_pack.aliases.facts import RequestFacts, request_facts
from ollama_pack.aliases.resolve import Resolution, resolve
from ollama_pack.aliases.table import AliasTable, parse_table
from ollama_pack.base.messages import message
from ollama_pack.engines.ollama.installed import InstalledModels
from ollama_pack.services.pipeline_requests import goes_to_router
from ollama_pack.services.pipeline_valves import (
    CODE_DIGEST,
    CODE_DIGEST_NOTE,
    PipelineValves,
    one_a_line,
    starting_valves,
)

log = logging.getLogger(__name__)


class Pipeline:
    """Rewrites `model` to what the alias table says, before Open WebUI looks at the request further.

    The Pipelines server knows neither the user's groups nor what Open WebUI grants: rows that ask for a group
    are refused, and a model that the user may not use is refused by Open WebUI afterwards. Nor is it told the
    system prompt in an alias's row: that holds where the model answers which the row is based on.

    Valves begin with what MODEL_ALIASES and OLLAMA_BASE_URLS say. Once they are saved, by an admin or by
    upload.py, valves.json holds every one of them, and the environment is not asked again.
    """

    class Valves(PipelineValves):
        pipelines: list[str] = Field(
            default=["*"],
            title="Pipelines",
            description="Models that this filter handles; `*` means all. Default: `*`.",
        )
        priority: int = Field(
            default=0,
            title="Priority",
            description="Filters run in order of this number, lowest first. Default: 0.",
        )
        aliases: str = Field(
            default="",
            title="Aliases",
            description=(
                "One alias per line, or all on one line with `;` between them: `alias = model, model "
                "[condition, …]`. The first model that is installed answers. `*` in an alias stands for any "
                "text. Conditions: `vision`, `tools`, `context>=8k`, `quant=q8_0>q4_K_M`. `#` starts a "
                "comment. Default: empty."
            ),
        )
        ollama_urls: str = Field(
            default="",
            title="Ollama addresses",
            description=(
                "Ollama servers that are asked which models are installed, separated by commas. Default: "
                "empty, so the first model of a line answers."
            ),
        )
        code_digest: str = Field(default=CODE_DIGEST, title="Code digest", description=CODE_DIGEST_NOTE)

        @field_validator("aliases")
        @classmethod
        def _readable(cls, text: str) -> str:
            if parse_table(one_a_line(text)).uses_groups:
                reason = message(
                    "group= is not known on the Pipelines server: use the model_alias_filter function for it"
                )
                raise ValueError(reason)
            return text

    def __init__(self) -> None:
        self.type = "filter"
        self.name = "Model aliases"
        self.valves = self._first_valves()
        self._installed = InstalledModels(())

    def _first_valves(self) -> Valves:
        return starting_valves(self.Valves, {"aliases": "MODEL_ALIASES", "ollama_urls": "OLLAMA_BASE_URLS"})

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
        if not isinstance(alias, str) or goes_to_router(body):
            return (
                body  # the router has a table of its own, and knows which nodes answer and who may use what
            )
        try:
            facts = request_facts(body, alias)
            chosen = _resolve(
                parse_table(one_a_line(self.valves.aliases)), facts, await self._installed.get()
            )
        except Exception:
            log.exception("The alias %r was not resolved, and the chat went on without it", alias)
            return body
        if chosen is not None and not _already_stands_for(body, chosen.model):
            body["model"] = chosen.model
        return body


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
