"""
title: Model aliases
author: Open WebUI Ollama Pack
description: Answers names such as gpt-4 with the local models that a table of aliases names for them.
license: MIT
version: 0.1.0
"""

# GENERATED from src/ollama_pack/plugins/pipelines/model_alias_filter.py by scripts/package.py: change that, not this.

import asyncio
import logging
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Any

import aiohttp
from pydantic import BaseModel, Field, field_validator

# --- ollama_pack.aliases.facts ---
# What an alias table may ask about a request, read off an OpenAI chat body.

# English runs at about four bytes a token; Chinese at three bytes a character and a little under one token.
BYTES_PER_TOKEN = 4
# What a vision model spends on one image of common size (LLaVA 1.5: 24 x 24 patches).
TOKENS_PER_IMAGE = 576


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """The facts of one request that decide between rows.

    Attributes:
        model: the name that the client asked for.
        images: whether a message carries an image.
        tools: whether the model may call tools.
        tokens: estimated length of the prompt, in tokens.
        groups: names of the groups that the user belongs to.
    """

    model: str
    images: bool = False
    tools: bool = False
    tokens: int = 0
    groups: frozenset[str] = frozenset()


def request_facts(body: Mapping[str, Any], model: str, groups: Iterable[str] = ()) -> RequestFacts:
    """Read the facts of a chat body. What is not of the expected form counts as absent, never as an error."""
    messages = [message for message in body.get("messages") or () if isinstance(message, Mapping)]
    images = sum(map(_count_images, messages))
    text = sum(map(_text_bytes, messages))
    return RequestFacts(
        model=model,
        images=images > 0,
        tools=bool(body.get("tools") or body.get("tool_ids")),
        tokens=math.ceil(text / BYTES_PER_TOKEN) + images * TOKENS_PER_IMAGE,
        groups=frozenset(groups),
    )


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    return [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []


def _count_images(message: Mapping[str, Any]) -> int:
    inline = sum(1 for part in _parts(message) if part.get("type") == "image_url")
    return inline + len(message.get("images") or ())


def _text_bytes(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    if isinstance(content, str):
        return len(content.encode(errors="replace"))
    return sum(len(str(part.get("text") or "").encode(errors="replace")) for part in _parts(message))


# --- ollama_pack.errors ---
# Every error that the pack raises on purpose.
#
# PackError
# ├── AliasTableError         a row of an alias table cannot be used
# └── AliasUnavailableError   an alias matched, but none of its models can answer this user


class PackError(Exception):
    """Base of the family: catch this to catch whatever the pack raises on purpose."""


class AliasTableError(PackError, ValueError):
    """A row of an alias table cannot be used.

    A `ValueError` too, so that a pydantic validator reports it when an admin saves the valve.

    Attributes:
        line: number of the row in the text, from 1.
        row: the row as it was written.
        reason: what is wrong with it and what to do.
    """

    def __init__(self, line: int, row: str, reason: str) -> None:
        super().__init__(f"row {line} ({row!r}): {reason}")
        self.line = line
        self.row = row
        self.reason = reason


class AliasUnavailableError(PackError):
    """An alias matched, but none of its models can answer this user.

    Attributes:
        alias: the name that was asked for.
        passed_over: each model that was considered, with the reason against it.
    """

    def __init__(self, alias: str, passed_over: tuple[tuple[str, str], ...]) -> None:
        reasons = ", ".join(f"{model} {reason}" for model, reason in passed_over)
        super().__init__(
            f"No model behind the alias {alias!r} can answer: {reasons}. "
            f"An admin can install one (`ollama pull {passed_over[0][0]}`), grant access to it, "
            "or change the alias."
        )
        self.alias = alias
        self.passed_over = passed_over


# --- ollama_pack.aliases.table ---
# An alias table: rows of `alias = candidate, candidate [condition, …]`, read once and then only looked up.
#
# For example::
#
#     gpt-4         = mixtral:8x7b, llama3:70b          # the first that can answer
#     gpt-4         = llava:13b            [vision]     # asked before the row above: it asks for more
#     gpt-4-32k     = qwen2.5:32b          [context>=8k]
#     gpt-3.5*      = llama3:8b            [quant=q8_0>q4_K_M]
#     openai/*      = *                                 # what the first star matched
#     staff-gpt     = mixtral:8x7b         [group=staff|teachers]

MAX_ROWS = 1000
MAX_CANDIDATES = 20
MAX_CHAIN = 10
MAX_NAME_LENGTH = 256  # Open WebUI's own limit on a model id

_ROW = re.compile(r"(?P<alias>[^=]*)=(?P<candidates>[^\[\]]*)(?:\[(?P<conditions>[^\[\]]*)\])?")
_COMMENT = re.compile(r"(?:^|\s)#.*")
_CONTEXT = re.compile(r"context\s*>=\s*(?P<count>\d+)\s*(?P<kilo>k?)", re.IGNORECASE)
_KILO = 1024
_KNOWN_CONDITIONS = "vision, tools, context>=N, group=NAME|NAME, quant=LEVEL>LEVEL"


@dataclass(frozen=True, slots=True)
class AliasRow:
    """One row: who it answers for, when, and with which models.

    Attributes:
        alias: the name that clients ask for; each `*` in it stands for any text.
        candidates: models to answer with, the preferred one first.
        images: the row asks for an image in the request.
        tools: the row asks for tools in the request.
        min_tokens: the row asks for a prompt of at least so many tokens.
        groups: the row asks for a user of one of these groups; empty: anyone.
        quantizations: preferred levels among the installed variants of a candidate.
        line: its number in the text, from 1.
    """

    alias: str
    candidates: tuple[str, ...]
    images: bool = False
    tools: bool = False
    min_tokens: int = 0
    groups: frozenset[str] = frozenset()
    quantizations: tuple[str, ...] = ()
    line: int = field(default=0, compare=False)

    @property
    def is_wildcard(self) -> bool:
        return "*" in self.alias

    @property
    def conditions(self) -> tuple[str, ...]:
        """What the row asks of a request, as it is written between the brackets."""
        asked = (
            "vision" if self.images else "",
            "tools" if self.tools else "",
            f"context>={self.min_tokens}" if self.min_tokens else "",
            f"group={'|'.join(sorted(self.groups))}" if self.groups else "",
        )
        return tuple(filter(None, asked))

    @property
    def text(self) -> str:
        """The row in the table's own notation; parsing it gives the row back."""
        preference = (f"quant={'>'.join(self.quantizations)}",) if self.quantizations else ()
        inside = ", ".join(self.conditions + preference)
        return f"{self.alias} = {', '.join(self.candidates)}" + (f" [{inside}]" if inside else "")

    def applies_to(self, facts: RequestFacts) -> bool:
        """Whether the request has everything that the row asks for."""
        return (
            (facts.images or not self.images)
            and (facts.tools or not self.tools)
            and facts.tokens >= self.min_tokens
            and (not self.groups or not self.groups.isdisjoint(facts.groups))
        )


class AliasTable:
    """Rows, indexed for looking up. Immutable once made; `parse_table` makes it from text."""

    def __init__(self, rows: tuple[AliasRow, ...]) -> None:
        """Check the rows against each other and index them.

        Raises:
            AliasTableError: two rows are the same case of the same alias, or aliases lead back to themselves.
        """
        self.rows = rows
        _refuse_duplicates(rows)
        _refuse_cycles(rows)
        exact: dict[str, list[AliasRow]] = defaultdict(list)
        for row in rows:
            if not row.is_wildcard:
                exact[row.alias].append(row)
        self._exact: Mapping[str, tuple[AliasRow, ...]] = {
            alias: tuple(sorted(same, key=_fewer_conditions)) for alias, same in exact.items()
        }
        wildcards = sorted((row for row in rows if row.is_wildcard), key=_shorter_then_fewer_conditions)
        self._wildcards = tuple((_pattern(row.alias), row) for row in wildcards)
        any_of_them = "|".join(pattern.pattern for pattern, _ in self._wildcards)
        self._any_wildcard = re.compile(any_of_them or r"(?!)", re.DOTALL)

    @property
    def uses_groups(self) -> bool:
        """Whether a row asks for the user's groups, which cost a look into the database."""
        return any(row.groups for row in self.rows)

    def exact(self, name: str) -> tuple[AliasRow, ...]:
        """The rows for this very name: those that ask for more come first, then as written."""
        return self._exact.get(name, ())

    def matching(self, name: str) -> Iterator[tuple[AliasRow, str]]:
        """All rows for a name, with what the first star stands for: exact ones, then longer wildcards."""
        for row in self.exact(name):
            yield row, ""
        if self._any_wildcard.fullmatch(name) is None:  # one look settles it for most names
            return
        for pattern, row in self._wildcards:
            if found := pattern.fullmatch(name):
                yield row, found.group(1)


@lru_cache(maxsize=16)  # valves are validated anew on every request, and nearly always hold the same text
def parse_table(text: str) -> AliasTable:
    """Read a table from text: a row a line, `#` starts a comment, empty lines are skipped.

    Raises:
        AliasTableError: naming the row and what is wrong with it.
    """
    rows: list[AliasRow] = []
    for line, raw in enumerate(text.splitlines(), start=1):
        if written := _COMMENT.sub("", raw).strip():
            rows.append(_parse_row(line, written))
        if len(rows) > MAX_ROWS:
            raise AliasTableError(line, written, f"a table has at most {MAX_ROWS} rows: use wildcards")
    return AliasTable(tuple(rows))


def _parse_row(line: int, written: str) -> AliasRow:
    found = _ROW.fullmatch(written)
    if found is None:
        raise AliasTableError(line, written, "write it as `alias = model, model [condition, condition]`")
    row = AliasRow(
        alias=found["alias"].strip(),
        candidates=tuple(name.strip() for name in found["candidates"].split(",")),
        line=line,
    )
    for condition in (found["conditions"] or "").split(","):
        if condition.strip():
            row = _with_condition(row, condition.strip(), written)
    _check_names(row, written)
    return row


def _with_condition(row: AliasRow, condition: str, written: str) -> AliasRow:
    key, _, value = condition.partition("=")
    values = tuple(name.strip() for name in re.split(r"[|>]", value))
    match "".join(key.split()):
        case "vision" if condition == key:
            return replace(row, images=True)
        case "tools" if condition == key:
            return replace(row, tools=True)
        case "context>":
            if found := _CONTEXT.fullmatch(condition):
                return replace(row, min_tokens=int(found["count"]) * (_KILO if found["kilo"] else 1))
            reason = f"{condition!r} needs a number of tokens, such as context>=8192 or context>=8k"
        case "group":
            if all(values):
                return replace(row, groups=frozenset(values))
            reason = f"{condition!r} needs the name of a group, such as group=staff or group=staff|teachers"
        case "quant":
            if all(values):
                return replace(row, quantizations=values)
            reason = f"{condition!r} needs levels, the preferred one first, such as quant=q8_0>q4_K_M"
        case _:
            reason = f"unknown condition {condition!r}: the known ones are {_KNOWN_CONDITIONS}"
    raise AliasTableError(row.line, written, reason)


def _check_names(row: AliasRow, written: str) -> None:
    if reason := _fault_in_row(row) or next(
        filter(None, map(_fault_in_name, (row.alias, *row.candidates))), ""
    ):
        raise AliasTableError(row.line, written, reason)


def _fault_in_row(row: AliasRow) -> str:
    if not row.alias:
        return "the alias before `=` is missing"
    if len(row.candidates) > MAX_CANDIDATES:
        return f"{len(row.candidates)} models are named, and at most {MAX_CANDIDATES} are tried"
    if len(set(row.candidates)) < len(row.candidates):
        return "a model is named twice"
    for name in row.candidates:
        if name.count("*") > min(1, row.alias.count("*")):
            return f"the star in {name!r} has no star in the alias to take its text from"
    return ""


def _fault_in_name(name: str) -> str:
    if not name:
        return "a model is missing: after `=` stand model names with commas between them"
    if len(name.split()) > 1:
        return f"{name!r} has a space in it: separate models with commas, and put conditions in [ ]"
    if len(name) > MAX_NAME_LENGTH:
        return f"{name[:40]!r}… has {len(name)} characters, and a model id has at most {MAX_NAME_LENGTH}"
    return ""


def _fewer_conditions(row: AliasRow) -> int:
    """Sort key: rows that ask for more come first, so that a plain row never hides them."""
    return -len(row.conditions)


def _shorter_then_fewer_conditions(row: AliasRow) -> tuple[int, str, int]:
    return -len(row.alias.replace("*", "")), row.alias, _fewer_conditions(row)


def _pattern(alias: str) -> re.Pattern[str]:
    first, *rest = map(re.escape, alias.split("*"))
    return re.compile(f"{first}(.*){'.*'.join(rest)}", re.DOTALL)


def _refuse_duplicates(rows: tuple[AliasRow, ...]) -> None:
    seen: dict[tuple[str, tuple[str, ...]], AliasRow] = {}
    for row in rows:
        case = (row.alias, row.conditions)
        if case in seen:
            raise AliasTableError(
                row.line,
                row.text,
                f"row {seen[case].line} already answers {row.alias!r} in the same case: "
                "put both rows' models into one row, in order of preference",
            )
        seen[case] = row


def _refuse_cycles(rows: tuple[AliasRow, ...]) -> None:
    """An alias may stand for another alias, but not for itself, and not through ever more of them."""
    exact = [row for row in rows if not row.is_wildcard]
    leads_to: dict[str, set[str]] = defaultdict(set)
    for row in exact:
        leads_to[row.alias].update(row.candidates)
    try:
        order = tuple(TopologicalSorter(leads_to).static_order())
    except CycleError as error:
        way = tuple(reversed(error.args[1]))
        row = next(row for row in exact if row.alias == way[0] and way[1] in row.candidates)
        reason = f"the alias leads back to itself: {' → '.join(way)}"
        raise AliasTableError(row.line, row.text, reason) from error
    depth = dict.fromkeys(order, 0)
    for alias in order:
        depth[alias] = max((depth[name] + 1 for name in leads_to.get(alias, ())), default=0)
    for row in exact:
        if depth[row.alias] > MAX_CHAIN:
            reason = f"aliases of aliases, {depth[row.alias]} deep: {MAX_CHAIN} is the limit"
            raise AliasTableError(row.line, row.text, reason)


# --- ollama_pack.ollama.names ---
# Model names as Ollama writes them: `[host/][namespace/]model[:tag]`, the tag `latest` if there is none.

DEFAULT_TAG = "latest"

# The levels that llama.cpp and Ollama write, at the end of a tag: q4_K_M, q8_0, iq2_xxs, fp16, bf16, mxfp4 …
_QUANTIZATION = re.compile(r"(?:^|[-_.])(i?q\d+(?:_[a-z0-9]+)*|b?fp?(?:16|32)|mxfp4|nvfp4)$", re.IGNORECASE)


def split_tag(name: str) -> tuple[str, str]:
    """Split `llama3:8b` into `("llama3", "8b")`; the tag is empty when the name has none.

    A colon before the last slash belongs to a host's port, not to a tag.
    """
    head, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        return name, ""
    return head, tag


def find_model(name: str, models: Container[str]) -> str | None:
    """The id under which `models` holds `name`: exactly, or with the default tag added or left out."""
    if name in models:
        return name
    stem, tag = split_tag(name)
    if not tag:
        other = f"{name}:{DEFAULT_TAG}"
    elif tag == DEFAULT_TAG:
        other = stem
    else:
        return None
    return other if other in models else None


def quantization_in(name: str) -> str:
    """The quantization level that a tag ends in, in upper case as Ollama reports it; else empty."""
    found = _QUANTIZATION.search(split_tag(name)[1])
    return found.group(1).upper() if found else ""


def find_variant(name: str, levels: Iterable[str], models: Mapping[str, str]) -> str | None:
    """The model that is `name` in the first of the preferred quantization levels that `models` has.

    `llama3:8b` stands for `llama3:8b` itself and for every tag that continues it, such as
    `llama3:8b-instruct-q8_0`; a name without a tag stands for all tags of the model.

    Args:
        name: the model as the alias table names it.
        levels: quantization levels, the preferred one first; upper and lower case are the same.
        models: model id → its quantization level, empty where unknown (then the tag tells).
    """
    stem, tag = split_tag(name)
    exact = find_model(name, models)

    def is_variant(model: str) -> bool:
        other_stem, other_tag = split_tag(model)
        if model == exact:
            return True
        return other_stem == stem and (not tag or other_tag.startswith(f"{tag}-"))

    variants = sorted(model for model in models if is_variant(model))
    for level in levels:
        for model in variants:
            if (models[model] or quantization_in(model)).upper() == level.upper():
                return model
    return None


# --- ollama_pack.aliases.resolve ---
# Which model answers for a name: a pure function of the table, the request and the models that are there.

NOT_INSTALLED = "is not installed"
NOT_PERMITTED = "is not granted to this user"


@dataclass(frozen=True, slots=True)
class Resolution:
    """The model that answers, and why it does.

    Attributes:
        alias: the name that was asked for.
        model: id of the model that answers.
        row: the row that named it.
        passed_over: models that the table prefers, each with the reason against it.
    """

    alias: str
    model: str
    row: AliasRow
    passed_over: tuple[tuple[str, str], ...] = ()

    @property
    def status(self) -> str:
        """One line for the user: `gpt-4 → llama3:70b (mixtral:8x7b is not installed)`."""
        reasons = ", ".join(f"{model} {reason}" for model, reason in self.passed_over)
        return f"{self.alias} → {self.model}" + (f" ({reasons})" if reasons else "")


def resolve(
    table: AliasTable,
    facts: RequestFacts,
    models: Mapping[str, str] | None,
    denied: AbstractSet[str] = frozenset(),
) -> Resolution | None:
    """Resolve the name that was asked for.

    Args:
        table: the aliases.
        facts: what is known of the request.
        models: id → quantization level (empty where unknown) of every model that is there;
            None when that is not known: then the first candidate is taken at its word.
        denied: ids in `models` that this user may not use.

    Returns:
        None when no row of the table is about this request: the name then stands for itself.

    Raises:
        AliasUnavailableError: rows apply, but none of their models is there and permitted.
    """
    passed_over: list[tuple[str, str]] = []
    for name, row in candidates(table, facts):
        model = name if models is None else find_candidate(name, row, models, denied)
        if model is not None and model not in denied:
            return Resolution(facts.model, model, row, tuple(passed_over))
        passed_over.append((name, NOT_INSTALLED if model is None else NOT_PERMITTED))
    if passed_over:
        raise AliasUnavailableError(facts.model, tuple(passed_over))
    return None


def candidates(table: AliasTable, facts: RequestFacts) -> Iterator[tuple[str, AliasRow]]:
    """Every model that the table names for this request, in order of preference, each once."""
    seen: set[str] = set()
    for row, star in table.matching(facts.model):
        if row.applies_to(facts):
            yield from _expand(table, facts, row, star, seen)


def _expand(
    table: AliasTable, facts: RequestFacts, row: AliasRow, star: str, seen: set[str]
) -> Iterator[tuple[str, AliasRow]]:
    """The candidates of a row, those that are aliases themselves replaced by what they stand for."""
    for candidate in row.candidates:
        name = candidate.replace("*", star)
        if not name or name in seen:
            continue
        seen.add(name)
        deeper = [other for other in table.exact(name) if other.applies_to(facts)]
        for other in deeper:
            yield from _expand(table, facts, other, "", seen)
        if not deeper:
            yield name, row


def find_candidate(
    name: str, row: AliasRow, models: Mapping[str, str], denied: AbstractSet[str] = frozenset()
) -> str | None:
    """The id of a candidate among the models: the preferred quantization when the row has a preference."""
    if row.quantizations:
        permitted = {model: level for model, level in models.items() if model not in denied}
        if variant := find_variant(name, row.quantizations, permitted):
            return variant
    return find_model(name, models)


# --- ollama_pack.ollama.tags ---
# Which models a set of Ollama nodes has, remembered for a while.

TIMEOUT_SECONDS = 2.0


class InstalledModels:
    """The models of some Ollama nodes, by `GET /api/tags`, at most `max_age` seconds old.

    A node that does not answer keeps what it had when it last did: a node that restarts must not make
    its models vanish. Not for more than one event loop at a time.
    """

    def __init__(
        self, urls: Sequence[str], max_age: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.urls = tuple(url.rstrip("/") for url in urls)
        self._max_age = max_age
        self._clock = clock
        self._models: dict[str, dict[str, str]] = {}
        self._looked_at: float | None = None
        self._looking = asyncio.Lock()

    async def get(self) -> dict[str, str] | None:
        """Name → quantization level of every model; None while no node has ever answered."""
        async with self._looking:
            if self._looked_at is None or self._clock() - self._looked_at > self._max_age:
                await self._look()
                self._looked_at = self._clock()
        if not self._models:
            return None
        return {name: level for models in self._models.values() for name, level in models.items()}

    async def _look(self) -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            answers = await asyncio.gather(*(_tags(session, url) for url in self.urls))
        found = zip(self.urls, answers, strict=True)
        self._models.update({url: tags for url, tags in found if tags is not None})


async def _tags(session: aiohttp.ClientSession, url: str) -> dict[str, str] | None:
    """Name → quantization level on one node; None when it does not answer as Ollama does."""
    try:
        async with session.get(f"{url}/api/tags", raise_for_status=True) as response:
            listed: list[dict[str, Any]] = (await response.json())["models"]
            return {
                str(model["name"]): str((model.get("details") or {}).get("quantization_level") or "")
                for model in listed
            }
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        return None


# --- ollama_pack.plugins.pipelines.model_alias_filter ---

log = logging.getLogger(__name__)


class Pipeline:
    """Rewrites `model` to what the alias table says, before Open WebUI looks at the request further.

    The Pipelines server knows neither the user's groups nor what Open WebUI grants: rows that ask for a group
    are refused, and a model that the user may not use is refused by Open WebUI afterwards.
    """

    class Valves(BaseModel):
        pipelines: list[str] = Field(default=["*"], description="Models that the filter is for; * for all.")
        priority: int = Field(default=0, description="Filters run from the lowest number to the highest.")
        aliases: str = Field(
            default="",
            description=(
                "A row a line: alias = model, model [condition, …]. The first model that is installed answers. "
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
        uploaded_digest: str = Field(
            default="", description="Left by upload.py, to know which code it sent. Leave it as it is."
        )

        @field_validator("aliases")
        @classmethod
        def _readable(cls, text: str) -> str:
            if parse_table(text).uses_groups:
                message = "group= is not known on the Pipelines server: use the model_alias_filter function for it"
                raise ValueError(message)
            return text

    def __init__(self) -> None:
        self.type = "filter"
        self.name = "Model aliases"
        self.valves = self.Valves(
            aliases=os.getenv("MODEL_ALIASES", ""), ollama_urls=os.getenv("OLLAMA_BASE_URLS", "")
        )
        self._installed = InstalledModels(())

    async def on_startup(self) -> None:
        self._look_at_nodes()

    async def on_shutdown(self) -> None:
        """Nothing is held between requests."""

    async def on_valves_updated(self) -> None:
        self._look_at_nodes()

    def _look_at_nodes(self) -> None:
        urls = [url.strip() for url in self.valves.ollama_urls.replace(";", ",").split(",")]
        self._installed = InstalledModels([url for url in urls if url])

    async def inlet(self, body: dict[str, Any], user: dict[str, Any] | None = None) -> dict[str, Any]:  # noqa: ARG002 - the server passes it
        """Choose the model for an alias. Anything unexpected is logged, and the chat goes on unchanged."""
        alias = body.get("model")
        if not isinstance(alias, str):
            return body
        try:
            table = parse_table(self.valves.aliases)
            chosen = resolve(table, request_facts(body, alias), await self._installed.get())
        except AliasUnavailableError:
            raise  # the user asked for this name: say why nothing answers to it
        except Exception:
            log.exception("The alias %r was not resolved, and the chat went on without it", alias)
            return body
        if chosen is not None and not _already_stands_for(body, chosen.model):
            body["model"] = chosen.model
        return body


def _already_stands_for(body: dict[str, Any], model: str) -> bool:
    """Whether the alias's row in Open WebUI stands for the model: then the row's own settings apply."""
    try:
        return bool(body["metadata"]["model"]["info"]["base_model_id"] == model)
    except (KeyError, TypeError):
        return False
