"""Who may share an answer. The scope is part of an entry's key and of its encryption."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from ollama_pack.engines.body import object_at

ScopeRule = Literal["user", "group", "global"]
CacheWhen = Literal["always", "deterministic"]


@dataclass(frozen=True, slots=True)
class ScopeFacts:
    """What decides on the scope of a request, told by the server and never by the client.

    Attributes:
        user_id: of the asking user; empty where nobody is signed in.
        group_ids: of the groups that the user is a member of.
        files: files were attached.
        knowledge: a knowledge base, a folder, a note or the web was looked into.
        memory: the user's memories were.
        tools: tools are offered or were called.
        as_user: the engine is asked as this user, or told who it is: others may not get the same.
    """

    user_id: str
    group_ids: tuple[str, ...] = ()
    files: bool = False
    knowledge: bool = False
    memory: bool = False
    tools: bool = False
    as_user: bool = False

    @property
    def private(self) -> bool:
        """Whether the answer may hold what another user may not see."""
        return self.files or self.knowledge or self.memory or self.tools or self.as_user


def scope_for(rule: ScopeRule, facts: ScopeFacts) -> str:
    """The scope of a request: `user:<id>`, `group:<id>` or `global`; empty when it belongs to nobody.

    What is private stays with the user, whatever the rule says. A member of several groups shares with those
    who are in exactly the same ones (`group:<id>+<id>`): what one group may see another may not.
    """
    if rule == "global" and not facts.private:
        return "global"
    if rule == "group" and facts.group_ids and not facts.private:
        # quoted, so that no id can look like two
        return "group:" + "+".join(sorted({quote(group, safe="") for group in facts.group_ids}))
    return f"user:{facts.user_id}" if facts.user_id else ""


def uses_tools(body: Mapping[str, Any]) -> bool:
    """Whether a chat body offers tools, or holds calls and results of tools."""
    messages = body.get("messages")
    said = messages if isinstance(messages, list) else ()
    return bool(body.get("tools") or body.get("functions")) or any(
        message.get("role") in ("tool", "function") or message.get("tool_calls")
        for message in said
        if isinstance(message, Mapping)
    )


def is_deterministic(body: Mapping[str, Any]) -> bool:
    """Whether the same request is meant to get the same answer: temperature 0, or a seed.

    Open WebUI puts the parameters of an Ollama model under `options`, and of others at the top.
    """
    places = (body, object_at(body, "options"))
    return any(_is_number(place.get("seed")) or _is_zero(place.get("temperature")) for place in places)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_zero(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == 0
