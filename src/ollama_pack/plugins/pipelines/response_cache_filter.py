"""
title: Response cache
author: Open WebUI Ollama Pack
author_url: {repository}
description: Adds to each chat what gpu_router needs to decide whether its answer is kept, and who may see it.
license: MIT
requirements: redis
version: {version}
"""

import logging
import os
from pathlib import Path
from secrets import token_urlsafe
from typing import Any, Literal

from pydantic import Field

from ollama_pack.services.cache_valves import CacheValves
from ollama_pack.services.caching import CacheSettings
from ollama_pack.services.pipeline_requests import goes_to_router, noted
from ollama_pack.services.pipeline_valves import (
    CODE_DIGEST,
    CODE_DIGEST_NOTE,
    PipelineValves,
    starting_valves,
)

log = logging.getLogger(__name__)

VARIABLE = "RESPONSE_CACHE_"  # begins the names of the variables that the valves start from
SECRET_VALVES = ("redis_url", "secret")  # valves are shown to whoever asks: from a variable, they become none
DATABASE = "ollama_pack_cache.sqlite3"
SECRET_FILE = "secret"  # noqa: S105 - its name

Body = dict[str, Any]


class Pipeline:
    """What `response_cache_replay` goes by: the valves, and a note on each chat that `gpu_router` answers.

    Here a filter sees a chat before knowledge, memory, web search, tools and the system prompt of its row are
    added. So nothing is looked up here. `gpu_router` gets the chat when all of it is in, and asks the cache
    then. What a filter alone is told goes along: that somebody wants another answer, that a chat is
    temporary, that files or knowledge are in play, so that the answer stays with its user.
    """

    class Valves(PipelineValves, CacheValves):
        pipelines: list[str] = Field(
            default=["*"],
            title="Pipelines",
            description="Models that this filter handles; `*` means all. Default: `*`.",
        )
        redis_url: str = Field(
            default="",
            title="Redis address",
            description=(
                "Where all servers keep answers: `redis://…`, `rediss://…`, `unix://…`, `redis+sentinel://…` "
                "or `redis+cluster://…`. Default: empty, which means the variable "
                "`RESPONSE_CACHE_REDIS_URL`, or else a SQLite file in the folder of the pipelines."
            ),
            json_schema_extra={"input": {"type": "password"}},
        )
        similar: Literal["off", "normalised"] = Field(
            default="off",
            title="Similar questions",
            description=(
                "Whether the same question in other words gets a kept answer. `off`: only the same text "
                "does. `normalised`: width, case, punctuation, greetings and thanks may differ; the words "
                "and their order, numbers, units, negations, names, quotes and code may not. English and "
                "Chinese. Default: `off`."
            ),
        )
        scope: Literal["user", "global"] = Field(
            default="user",
            title="Who shares answers",
            description=(
                "`user`: nobody shares. `global`: everybody shares. Answers that use files, knowledge, "
                "memory or tools always stay with their user. Default: `user`."
            ),
        )
        secret: str = Field(
            default="",
            title="Encryption secret",
            description=(
                "Answers are encrypted with keys derived from this text. Use 16 characters or more, the same "
                "on all servers. A new secret empties the cache. Default: empty, which means the variable "
                "`RESPONSE_CACHE_SECRET`, or else a secret that is made once and kept in the folder of the "
                "pipelines."
            ),
            json_schema_extra={"input": {"type": "password"}},
        )
        code_digest: str = Field(default=CODE_DIGEST, title="Code digest", description=CODE_DIGEST_NOTE)

    def __init__(self) -> None:
        self.type = "filter"
        self.name = "Response cache"
        own = [valve for valve in self.Valves.model_fields if valve not in (*SECRET_VALVES, "pipelines")]
        self.valves = starting_valves(self.Valves, {valve: f"{VARIABLE}{valve.upper()}" for valve in own})

    async def on_startup(self) -> None:
        """Nothing is held here."""

    async def on_shutdown(self) -> None:
        """Nothing is held here."""

    async def on_valves_updated(self) -> None:
        """They are looked at when a chat comes."""

    async def inlet(self, body: Body, user: Body | None = None) -> Body:  # noqa: ARG002 - the server passes it
        """Make the note. Anything unexpected is logged, and the chat goes on without."""
        try:
            return noted(body) if self.valves.enabled and goes_to_router(body) else body
        except Exception:
            log.exception("A chat got no note for the response cache, and goes on without it")
            return body

    def settings(self) -> CacheSettings:
        """What the cache is to be made of.

        Raises:
            OSError: the folder of the pipelines cannot be written to.
        """
        valves, folder = self.valves, Path(str(globals().get("__file__") or "cache.py")).with_suffix("")
        folder.mkdir(exist_ok=True)
        return CacheSettings(
            url=valves.redis_url or os.getenv(f"{VARIABLE}REDIS_URL", ""),
            path=folder / DATABASE,
            secret=valves.secret or os.getenv(f"{VARIABLE}SECRET", "") or _kept_secret(folder / SECRET_FILE),
            ttl_seconds=valves.ttl_seconds,
            max_entry_octets=valves.max_entry_kb * 1024,
        )


def _kept_secret(file: Path) -> str:
    """A secret of this server's own, made when it is first wanted."""
    try:
        return file.read_text()
    except FileNotFoundError:
        file.touch(mode=0o600)
        file.write_text(token_urlsafe(32))
        return file.read_text()
