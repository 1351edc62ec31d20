"""
title: Ollama Pack events
author: Open WebUI Ollama Pack
description: Publishes the router's models and aliases, answers GET /api/system/load, shows a dashboard.
license: MIT
required_open_webui_version: 0.11.2
version: 0.1.0
"""

# GENERATED from src/ollama_pack/plugins/functions/ollama_pack_events.py by scripts/package.py: change that, not this.

import asyncio
import logging
import math
import random
import re
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from graphlib import CycleError, TopologicalSorter
from hashlib import blake2b
from inspect import signature
from secrets import token_urlsafe
from types import SimpleNamespace
from typing import Any, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, Field, field_validator

# --- ollama_pack.errors ---
# Every error that the pack raises on purpose, and the base of them all.
#
# Each part defines its own in `<part>/errors.py`, so that a plugin carries only those that it can raise.
#
# PackError
# ├── AliasTableError             a row of an alias table cannot be used
# ├── AliasUnavailableError       an alias matched, but none of its models can answer this user
# ├── CacheConfigError            the cache cannot be used as it is configured
# ├── StoreError                  a store of the cache did not do what it was asked
# │   ├── StoreDownError              it cannot be reached, or failed
# │   └── StoreFullError              it takes no more, and still answers
# ├── EntryUnreadableError        what a store of the cache holds was changed
# ├── LeaderLostError             a generation that was shared was lost half-way
# ├── AudienceError               an audience cannot be read
# ├── ChatBodyError               a chat body holds what cannot be put into Ollama's form
# ├── NodeTableError              a row of the `nodes` valve cannot be used
# ├── RouterUnavailableError      gpu_router cannot be asked
# ├── ModelRefusedError          a model asked through Open WebUI gave an error
# ├── RoutingError                a request cannot be given to a node
# │   ├── NoNodeError                 none has the model
# │   ├── NodesDownError              those that have it do not answer
# │   ├── QueueFullError              too many wait already
# │   ├── WaitedTooLongError          none became free in time
# │   ├── NoAnswerError               all that were tried failed before the first token
# │   └── AnswerBrokenError           one failed after it
# ├── SpeechError                 a recording was not transcribed
# │   ├── AudioError                  the recording is at fault
# │   │   ├── EmptyAudioError             no byte in it
# │   │   ├── NotAudioError               neither audio nor video
# │   │   ├── NoAudioTrackError           a video without sound
# │   │   ├── ZeroLengthError             a track without a sample
# │   │   ├── NoSpeechError               nobody says anything
# │   │   ├── AudioTooLargeError          too many bytes
# │   │   └── AudioTooLongError           it lasts too long
# │   ├── LanguageTagError            no language that can be used
# │   ├── SpeechQueueFullError        too many recordings wait already
# │   └── SpeechEngineError           the engine does not do its work
# │       ├── SpeechDependencyError       a package is missing
# │       ├── SpeechModelMissingError     the model is nowhere
# │       ├── SpeechModelUnusableError    the model cannot be loaded
# │       ├── SpeechLanguageError         the engine does not know the language
# │       ├── CloudNotAllowedError        recordings would leave this machine
# │       ├── SpeechEngineFaultError      it failed while it worked
# │       └── SpeechServerError           a transcription server
# │           ├── SpeechServerUnreachableError  no connection
# │           ├── SpeechServerTimeoutError      a limit ran out
# │           ├── SpeechServerBusyError         it asks for patience
# │           ├── SpeechServerKeyError          it wants another key
# │           ├── SpeechServerTooLargeError     a piece is too large for it
# │           ├── SpeechServerRefusedError      it will not take the request
# │           └── SpeechServerFaultError        it failed, talked garbage or hung up
# └── NodeError                   a node did not do what it was asked
#     ├── RetryableNodeError          another node may do it
#     │   ├── NodeUnreachableError        no connection
#     │   ├── NodeTimeoutError            a limit ran out
#     │   ├── NodeBusyError               its queue is full
#     │   ├── NodeFaultError              it failed, talked garbage or hung up
#     │   └── ModelNotFoundError          it does not have the model
#     └── RequestRefusedError         it will not take this request, and no other node would


class PackError(Exception):
    """Base of the family: catch this to catch whatever the pack raises on purpose."""


# --- ollama_pack.aliases.errors ---
# What goes wrong with aliases: see the tree in `ollama_pack.errors`.


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
    messages = _mappings(body.get("messages"))
    images = sum(map(_count_images, messages))
    text = sum(map(_text_bytes, messages))
    return RequestFacts(
        model=model,
        images=images > 0,
        tools=bool(_items(body.get("tools")) or _items(body.get("tool_ids"))),
        tokens=math.ceil(text / BYTES_PER_TOKEN) + images * TOKENS_PER_IMAGE,
        groups=frozenset(groups),
    )


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in _items(value) if isinstance(item, Mapping)]


def _count_images(message: Mapping[str, Any]) -> int:
    inline = sum(1 for part in _mappings(message.get("content")) if part.get("type") == "image_url")
    return inline + len(_items(message.get("images")))


def _text_bytes(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    texts = [content, *(part.get("text") for part in _mappings(content))]
    return sum(len(text.encode(errors="replace")) for text in texts if isinstance(text, str))


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

_ROW = re.compile(r"(?P<alias>[^=\[\]]*)=(?P<candidates>[^\[\]]*)(?:\[(?P<conditions>[^\[\]]*)\])?")
_COMMENT = re.compile(r"(?:^|\s)#.*")
_CONDITION = re.compile(r"(?P<key>[^<>=]*)(?P<relation>>?=|)(?P<value>.*)")
_TOKENS = re.compile(r"(?P<count>[0-9]{1,9})\s*(?P<kilo>[kK]?)")
_LEVEL = re.compile(r"[\w.-]+")
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
            alias: tuple(sorted(same, key=_asks_for_less)) for alias, same in exact.items()
        }
        wildcards = sorted((row for row in rows if row.is_wildcard), key=_shorter_then_asks_for_less)
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
        first = self._any_wildcard.fullmatch(name)  # one look settles it for most names
        if first is None or first.lastindex is None:
            return
        for pattern, row in self._wildcards[first.lastindex - 1 :]:  # each pattern has one group
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
            try:
                rows.append(_parse_row(line, written))
            except ValueError as fault:
                raise AliasTableError(line, written, str(fault)) from None
            if len(rows) > MAX_ROWS:
                raise AliasTableError(line, written, f"a table has at most {MAX_ROWS} rows: use wildcards")
    return AliasTable(tuple(rows))


def _parse_row(line: int, written: str) -> AliasRow:
    """Read a row; here and below a ValueError says what is wrong with it."""
    found = _ROW.fullmatch(written)
    if found is None:
        raise ValueError("write it as `alias = model, model [condition, condition]`")
    alias = found["alias"].strip()
    candidates = tuple(name.strip() for name in found["candidates"].split(","))
    _check_alias(alias)
    _check_candidates(candidates, alias)
    return AliasRow(alias, candidates, line=line, **_conditions(found["conditions"] or ""))


def _conditions(written: str) -> dict[str, Any]:
    """The fields of a row that its conditions set."""
    fields: dict[str, Any] = {}
    for condition in filter(None, map(str.strip, written.split(","))):
        name, value = _condition(condition)
        if name in fields:
            raise ValueError(f"{condition!r} is the second condition of its kind: put both into one")
        fields[name] = value
    return fields


def _condition(written: str) -> tuple[str, Any]:
    """The field of a row that a condition sets, and its value."""
    key, relation, value = map(str.strip, _CONDITION.fullmatch(written).groups())  # type: ignore[union-attr] # fits any text
    match key, relation, value:
        case "vision", "", "":
            return "images", True
        case "tools", "", "":
            return "tools", True
        case "context", ">=", _:
            return "min_tokens", _tokens(value)
        case "group", "=", _:
            return "groups", frozenset(_groups(value))
        case "quant", "=", _:
            return "quantizations", _levels(value)
    raise ValueError(f"unknown condition {written!r}: the known ones are {_KNOWN_CONDITIONS}")


def _tokens(value: str) -> int:
    if found := _TOKENS.fullmatch(value):
        return int(found["count"]) * (_KILO if found["kilo"] else 1)
    raise ValueError(
        f"context>= needs a number of tokens, such as context>=8192 or context>=8k, not {value!r}"
    )


def _groups(value: str) -> list[str]:
    groups = [name.strip() for name in value.split("|")]
    if all(groups):
        return groups
    raise ValueError(
        f"group= needs names of groups, such as group=staff or group=staff|teachers, not {value!r}"
    )


def _levels(value: str) -> tuple[str, ...]:
    levels = tuple(level.strip() for level in value.split(">"))
    if all(map(_LEVEL.fullmatch, levels)):
        return levels
    raise ValueError(
        f"quant= needs levels, the preferred one first, such as quant=q8_0>q4_K_M, not {value!r}"
    )


def _check_alias(alias: str) -> None:
    if not alias:
        raise ValueError("the alias before `=` is missing")
    if re.search(r"[\s,]", alias):
        raise ValueError(f"{alias!r} is more than one name: give each alias a row of its own")
    _check_name(alias)


def _check_candidates(candidates: tuple[str, ...], alias: str) -> None:
    for name in candidates:
        if not name:
            raise ValueError("a model is missing: after `=` stand model names with commas between them")
        if len(name.split()) > 1:
            raise ValueError(f"{name!r} has a space in it: separate models with commas, conditions go in [ ]")
        if "*" in name and "*" not in alias:
            raise ValueError(f"the star in {name!r} has no star in the alias to take its text from")
        if name.count("*") > 1:
            raise ValueError(f"{name!r} has two stars: one can stand for the text of the alias's first star")
        _check_name(name)
    if len(candidates) > MAX_CANDIDATES:
        raise ValueError(f"{len(candidates)} models are named, and at most {MAX_CANDIDATES} are tried")
    if len(set(candidates)) < len(candidates):
        raise ValueError("a model is named twice")


def _check_name(name: str) -> None:
    if not name.isprintable():  # comes with text that is copied from a web page
        raise ValueError(f"{name!r} has an invisible character in it: type the name anew")
    if len(name) > MAX_NAME_LENGTH:
        raise ValueError(
            f"{name[:40]!r}… has {len(name)} characters, and a model id has at most {MAX_NAME_LENGTH}"
        )


def _asks_for_less(row: AliasRow) -> tuple[int, int]:
    """Sort key: rows that ask for more come first, so that a plain row never hides them."""
    return -len(row.conditions), -row.min_tokens


def _shorter_then_asks_for_less(row: AliasRow) -> tuple[int, int, int]:
    return -len(row.alias.replace("*", "")), *_asks_for_less(row)


def _pattern(alias: str) -> re.Pattern[str]:
    """The first star takes as much as it can; atomic groups keep `*a*a*a*a*` from taking for ever."""
    first, second, *more = map(re.escape, alias.split("*"))
    others = [f"(?>.*?{piece})" for piece in more[:-1]] + [f".*{piece}" for piece in more[-1:]]
    return re.compile(f"{first}(.*){second}{''.join(others)}", re.DOTALL)


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
    leads_to: dict[str, list[str]] = defaultdict(list)  # in the order of the rows: so the same cycle is named
    for row in exact:
        leads_to[row.alias].extend(row.candidates)
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
_QUANTIZATION = re.compile(
    r"(?:^|[-_.])([it]?q\d+(?:_[a-z0-9]+)*|(?:b?f|fp)(?:16|32)|mxfp[48]|nvfp4|int[48])$", re.IGNORECASE
)
# Tags say fp16 where Ollama reports F16; "unknown" is what it reports for IQ4_XS and other newer levels.
_OTHER_WORDS = {"FP16": "F16", "FP32": "F32", "UNKNOWN": ""}


def split_tag(name: str) -> tuple[str, str]:
    """Split `llama3:8b` into `("llama3", "8b")`; the tag is empty when the name has none.

    A colon before the last slash belongs to a host's port, not to a tag.
    """
    head, _, tag = name.rpartition(":")
    return (head, tag) if head and tag and "/" not in tag else (name, "")


class Families:
    """Models by their names without tags, upper and lower case being the same.

    They are gone through once, when first asked for: they may be many, and their list far away in Redis.
    """

    def __init__(self, models: Iterable[str]) -> None:
        self._models = models

    @cached_property
    def _by_stem(self) -> Mapping[str, tuple[tuple[str, str], ...]]:
        return _families(tuple(self._models))

    def of(self, name: str) -> tuple[tuple[str, str], ...]:
        """The models that are `name` but for the tag: each id with its whole name in lower case, sorted."""
        return self._by_stem.get(split_tag(name)[0].lower(), ())


@lru_cache(maxsize=8)  # models change once in a while, and going through hundreds of names takes its time
def _families(models: tuple[str, ...]) -> Mapping[str, tuple[tuple[str, str], ...]]:
    families: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for model in sorted(models):
        families[split_tag(model)[0].lower()].append((model, _whole(model).lower()))
    return {stem: tuple(members) for stem, members in families.items()}


def find_model(name: str, models: Collection[str], families: Families | None = None) -> str | None:
    """The id under which `models` holds `name`: exactly, or with the default tag added or left out.

    Failing that, upper and lower case are the same, as they are to Ollama: it lists q4_K_M and takes q4_k_m.

    Args:
        name: the model as the alias table names it.
        models: ids.
        families: those of the models, when several names are looked up.
    """
    return name if name in models else _find_in_family(name, (families or Families(models)).of(name))


def _find_in_family(name: str, family: Iterable[tuple[str, str]]) -> str | None:
    wanted = _whole(name)
    alike = [model for model, whole in family if whole == wanted.lower()]
    return min(alike, key=lambda model: (model != name, _whole(model) != wanted), default=None)


def _whole(name: str) -> str:
    return name if split_tag(name)[1] else f"{name}:{DEFAULT_TAG}"


def quantization_in(name: str) -> str:
    """The quantization level that a tag ends in, in upper case as Ollama reports it; else empty."""
    found = _QUANTIZATION.search(split_tag(name)[1])
    return _level(found.group(1)) if found else ""


def find_variant(
    name: str,
    levels: Iterable[str],
    models: Mapping[str, str],
    denied: AbstractSet[str] = frozenset(),
    families: Families | None = None,
) -> str | None:
    """The model that is `name` in the first of the preferred quantization levels that `models` has.

    `llama3:8b` stands for `llama3:8b` itself and for every tag that continues it, such as
    `llama3:8b-instruct-q8_0`; a name without a tag stands for all tags of the model. Among several of one
    level, `name` itself comes first, then the others by the alphabet.

    Args:
        name: the model as the alias table names it.
        levels: quantization levels, the preferred one first; upper and lower case are the same.
        models: model id → its quantization level, empty where unknown (then the tag tells).
        denied: ids that are not to be chosen.
        families: those of the models, when several names are looked up.
    """
    family = (families or Families(models)).of(name)
    exact = _find_in_family(name, family)
    start = f"{name.lower()}-" if split_tag(name)[1] else ""
    variants = [
        model
        for model, whole in family
        if model not in denied and (model == exact or whole.startswith(start))
    ]
    variants.sort(key=lambda model: model != exact)
    by_level: dict[str, str] = {}
    for model in variants:  # only these levels are looked up: `models` may be far away
        by_level.setdefault(_level(models.get(model, "")) or quantization_in(model), model)
    return next((by_level[level] for level in map(_level, levels) if level in by_level), None)


def _level(written: str) -> str:
    """A quantization level in the form in which levels are compared; empty when it tells nothing."""
    level = written.upper()
    return _OTHER_WORDS.get(level, level)


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
    families = Families(models or ())
    for name, row in candidates(table, facts):
        model = name if models is None else find_candidate(name, row, models, denied, families)
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
    """The candidates of a row, those that are aliases themselves replaced by what they stand for.

    Wildcards are for what clients ask, not for candidates: `*` would otherwise take in every model.
    """
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
    name: str,
    row: AliasRow,
    models: Mapping[str, str],
    denied: AbstractSet[str] = frozenset(),
    families: Families | None = None,
) -> str | None:
    """The id of a candidate among the models: the preferred quantization when the row has a preference."""
    variant = find_variant(name, row.quantizations, models, denied, families) if row.quantizations else None
    return variant or find_model(name, models, families)


# --- ollama_pack.aliases.published ---
# Which names of a table can be published as models, and what answers for them.

MOST_TOKENS = 2**62  # meets every `context>=`


def concrete_names(table: AliasTable) -> tuple[str, ...]:
    """The aliases that are names of their own, as written; a wildcard is none."""
    return tuple(dict.fromkeys(row.alias for row in table.rows if not row.is_wildcard))


def models_behind(table: AliasTable, name: str, models: Mapping[str, str]) -> tuple[str, ...]:
    """Every model there that may answer for an alias; first those that answer the plainest request.

    Args:
        table: the aliases.
        name: one of them.
        models: id → quantization level (empty where unknown) of the models that are there.
    """
    groups = frozenset(group for row in table.rows for group in row.groups)
    everything = RequestFacts(name, images=True, tools=True, tokens=MOST_TOKENS, groups=groups)
    asked = (RequestFacts(name), everything)
    return tuple(dict.fromkeys(found for facts in asked for found in answering_models(table, facts, models)))


def answering_models(table: AliasTable, facts: RequestFacts, models: Mapping[str, str]) -> Iterator[str]:
    """The models there that the table names for a request, the preferred first; some may come twice."""
    families = Families(models)
    for name, row in candidates(table, facts):
        model = find_candidate(name, row, models, families=families)
        if model is not None:
            yield model


# --- ollama_pack.webui.errors ---
# What goes wrong between the pack and Open WebUI: see the tree in `ollama_pack.errors`.


class AudienceError(PackError, ValueError):
    """An audience cannot be read.

    A `ValueError` too, so that a pydantic validator reports it when an admin saves the valve.

    Attributes:
        part: the part of the text that is wrong.
    """

    def __init__(self, part: str) -> None:
        super().__init__(
            f"audience: {part!r} is not known: write public (every signed-in user), admin, or group:NAME, "
            "with commas between several"
        )
        self.part = part


class RouterUnavailableError(PackError):
    """The `gpu_router` function cannot be asked. The message says why and what an admin can do."""


class ModelRefusedError(PackError):
    """A model that was asked through Open WebUI gave an error instead of an answer.

    Attributes:
        status: of HTTP.
        body: what the client gets.
    """

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"the model was asked through Open WebUI and gave the error {status}")
        self.status = status
        self.body = body


# --- ollama_pack.webui.audience ---
# Whom published models are for: the words that an admin writes, and the grants that they stand for.

Grants = frozenset[tuple[str, str, str]]  # principal type, principal id, permission

PUBLIC, ADMIN, GROUP = "public", "admin", "group:"
EVERYBODY: Grants = frozenset({("user", "*", "read")})
NOBODY: Grants = frozenset()  # admins need no grant


def parse_audience(text: str) -> tuple[str, ...]:
    """Read `public`, `admin` or `group:NAME`, several with commas between them.

    Raises:
        AudienceError: a part is none of these, or there is none.
    """
    parts = tuple(" ".join(part.split()) for part in text.split(","))
    for part in parts:
        is_group = part.startswith(GROUP) and part != GROUP
        if part not in {PUBLIC, ADMIN} and not is_group:
            raise AudienceError(part)
    return parts


def audience_grants(audience: tuple[str, ...], groups: Mapping[str, str]) -> tuple[Grants, tuple[str, ...]]:
    """The grants of an audience, and the names of groups in it that Open WebUI does not have.

    Args:
        audience: as `parse_audience` gives it.
        groups: name → id of every group.
    """
    if PUBLIC in audience:
        return EVERYBODY, ()
    names = [part.removeprefix(GROUP).strip() for part in audience if part.startswith(GROUP)]
    known = frozenset(("group", groups[name], "read") for name in names if name in groups)
    return known, tuple(name for name in names if name not in groups)


def grant_forms(grants: Grants) -> list[dict[str, str]]:
    """Grants as Open WebUI's forms have them, in a fixed order."""
    keys = ("principal_type", "principal_id", "permission")
    return [dict(zip(keys, grant, strict=True)) for grant in sorted(grants)]


# --- ollama_pack.webui.functions ---
# Functions of the running Open WebUI. Imports `open_webui` when called, not before.


@dataclass(frozen=True, slots=True)
class FunctionState:
    """A function as the database has it.

    Attributes:
        installed: there is one.
        active: it is switched on.
        owner: id of the user who installed it.
        valves: what an admin set; defaults are not in it.
    """

    installed: bool = False
    active: bool = False
    owner: str = ""
    valves: Mapping[str, Any] = field(default_factory=dict)


async def function_state(function_id: str) -> FunctionState:
    """Look a function up.

    By a query of its own: Open WebUI's answers a database that cannot be reached as if there were no such
    function, or no valves, and what is published would be taken away. Here the database's error is raised.
    """
    from open_webui.internal.db import get_async_db_context  # noqa: PLC0415 - see the top of this module
    from open_webui.models.functions import Function, decrypt_valves  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415 - it comes with Open WebUI

    wanted = select(Function.is_active, Function.user_id, Function.valves).filter_by(id=function_id)
    async with get_async_db_context() as session:
        found = (await session.execute(wanted)).one_or_none()
    if found is None:
        return FunctionState()
    is_active, owner, stored = found
    valves = decrypt_valves(stored) or {}
    return FunctionState(installed=True, active=bool(is_active), owner=str(owner or ""), valves=valves)


async def live_function(app: Any, function_id: str) -> Any:
    """The instance that this process runs, of the code and with the valves that are stored.

    Open WebUI's own way to it: it is loaded where it is not yet, or where its code has changed.
    """
    from open_webui.functions import get_function_module_by_id  # noqa: PLC0415

    return await get_function_module_by_id(SimpleNamespace(app=app), function_id)


# --- ollama_pack.webui.contact ---
# The way from the events function to the running `gpu_router`: another plugin, which may not be there.

log_contact = logging.getLogger(__name__)

ROUTER_ID = "gpu_router"
ASK_SECONDS = 5.0

ABSENT = (
    "gpu_router is not installed: install it (upload.py, or Admin Panel → Functions), and its nodes show here"
)
SWITCHED_OFF = "gpu_router is switched off: switch it on under Admin Panel → Functions"


class RouterContact:
    """Asks the router of this process. They share no code, so its answers are looked at, not trusted."""

    def __init__(self, app: Any) -> None:
        """Ask nothing yet; `app` is Open WebUI's."""
        self._app = app
        self._said = ""

    async def load(self) -> Mapping[str, Any]:
        """The load of all nodes.

        Raises:
            RouterUnavailableError: the router cannot be asked.
        """
        return _as_mapping(await self._ask("system_load"))

    async def dashboard(self) -> Mapping[str, Any]:
        """What an admin may want to see.

        Raises:
            RouterUnavailableError: the router cannot be asked.
        """
        return _as_mapping(await self._ask("dashboard"))

    async def models(self) -> list[dict[str, Any]]:
        """The models and aliases that it offers now.

        Raises:
            RouterUnavailableError: the router cannot be asked.
        """
        told = await self._ask("routed_models")
        return [model for model in told if isinstance(model, dict) and isinstance(model.get("id"), str)]

    async def _ask(self, method: str) -> Any:
        try:
            answer = await self._ask_once(method)
        except RouterUnavailableError as error:
            self._tell(str(error))
            raise
        self._said = ""
        return answer

    async def _ask_once(self, method: str) -> Any:
        state = await function_state(ROUTER_ID)
        if not state.active:
            raise RouterUnavailableError(SWITCHED_OFF if state.installed else ABSENT)
        try:
            async with asyncio.timeout(ASK_SECONDS):
                router = await live_function(self._app, ROUTER_ID)
                return await _method(router, method)()
        except TimeoutError:
            raise RouterUnavailableError(
                f"gpu_router did not answer {method} within {ASK_SECONDS:g} s: see the server's log"
            ) from None
        except RouterUnavailableError:
            raise
        except Exception as error:
            raise RouterUnavailableError(
                f"gpu_router failed at {method} ({type(error).__name__}: {error}): see its valves"
            ) from error

    def _tell(self, fault: str) -> None:
        """Log a fault once, not at every question; that there is no router is none."""
        if fault != self._said and fault not in {ABSENT, SWITCHED_OFF}:
            log_contact.warning("%s", fault)
        self._said = fault


def _method(router: Any, name: str) -> Any:
    if (method := getattr(router, name, None)) is None:
        message = f"the installed gpu_router has no {name}: update it to the version of this plugin"
        raise RouterUnavailableError(message)
    return method


def _as_mapping(told: Any) -> Mapping[str, Any]:
    return told if isinstance(told, Mapping) else {}


# --- ollama_pack.webui.models ---
# What Open WebUI knows of models and of who may use them. Imports `open_webui` when called, not before.

ROUTER = "gpu_router."  # begins the ids of the models that the router answers


class ModelCatalogue(Mapping[str, str]):
    """Name → quantization level (empty where unknown) of every model that Open WebUI offers.

    A name is the model's id; what `gpu_router` offers has the name that the nodes give it, too.

    A view, not a copy: with several replicas `app.state.MODELS` lives in Redis and every look costs a
    round trip, so only what is asked for is looked up.
    """

    def __init__(self, models: Any) -> None:
        self._models = models
        self._ids: tuple[str, ...] | None = None

    def __contains__(self, model: object) -> bool:
        return model in self._models or f"{ROUTER}{model}" in self._models

    def __getitem__(self, model: str) -> str:
        offered = self._models[model] if model in self._models else self._models[ROUTER + model]
        details = (offered.get("ollama") or {}).get("details") or {}
        return str(details.get("quantization_level") or "")

    def __iter__(self) -> Iterator[str]:
        if self._ids is None:  # kept: the view lives no longer than the request
            ids = tuple(self._models.keys())
            routed = (model.removeprefix(ROUTER) for model in ids if model.startswith(ROUTER))
            self._ids = tuple(dict.fromkeys((*ids, *routed)))
        return iter(self._ids)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def ids_of(self, model: str) -> list[str]:
        """The ids that a model may be asked for by: over all nodes first, then over one connection."""
        return [found for found in (ROUTER + model, model) if found in self._models]


def catalogue(request: Any) -> ModelCatalogue:
    """The models of the running Open WebUI, as of its last look at its connections."""
    return ModelCatalogue(request.app.state.MODELS)


def takes_builtin_tools(model_id: str, request: Any) -> bool:
    """Whether Open WebUI may offer its own tools to a model: so it is unless its row says no."""
    info = request.app.state.MODELS[model_id].get("info") or {}
    capabilities = (info.get("meta") or {}).get("capabilities") or {}
    return bool(capabilities.get("builtin_tools", True))


def remove_builtin_tools(body: dict[str, Any], metadata: Mapping[str, Any]) -> None:
    """Take Open WebUI's own tools out of a request, and leave those that the user or the client chose."""
    known = metadata.get("tools") or {}
    offered = body.pop("tools", None) or []
    chosen = [tool for tool in offered if known.get(_tool_name(tool), {}).get("type") != "builtin"]
    if chosen:
        body["tools"] = chosen


def _tool_name(tool: Mapping[str, Any]) -> str:
    return str((tool.get("function") or {}).get("name"))


async def may_use(user: Mapping[str, Any], model_id: str, request: Any) -> bool:
    """Whether Open WebUI will let this user chat with a model that exists: its own rule, asked in advance."""
    if user.get("role") != "user":
        return True  # Open WebUI asks nobody else

    from open_webui.env import BYPASS_MODEL_ACCESS_CONTROL  # noqa: PLC0415 - see the top of this module
    from open_webui.models.users import UserModel  # noqa: PLC0415
    from open_webui.utils.models import check_model_access  # noqa: PLC0415

    if BYPASS_MODEL_ACCESS_CONTROL:
        return True
    try:
        await check_model_access(UserModel.model_validate(user), request.app.state.MODELS[model_id])
    except Exception as error:  # a refusal there is a bare Exception with this one text
        if str(error) == "Model not found":
            return False
        raise
    return True


async def group_names(user: Mapping[str, Any]) -> frozenset[str]:
    """Names of the groups that a user is a member of, inherited ones included."""
    return frozenset(group.name for group in await _groups_of(user))


async def group_ids_of(user: Mapping[str, Any]) -> tuple[str, ...]:
    """Ids of the same groups."""
    return tuple(str(group.id) for group in await _groups_of(user))


async def _groups_of(user: Mapping[str, Any]) -> Any:
    from open_webui.models.groups import Groups  # noqa: PLC0415

    look_up = Groups.get_groups_by_member_id
    inherits = "include_inherited" in signature(look_up).parameters  # groups within groups came after 0.11.2
    return await (look_up(user["id"], include_inherited=True) if inherits else look_up(user["id"]))


async def system_prompt(model_id: str) -> str:
    """The system prompt that an admin wrote into a model's row; empty when there is none."""
    from open_webui.models.models import Models  # noqa: PLC0415

    row = await Models.get_model_by_id(model_id)
    return str((row.params.model_dump() if row else {}).get("system") or "")


async def add_system_prompt(
    body: dict[str, Any], prompt: str, metadata: dict[str, Any], user: Mapping[str, Any]
) -> None:
    """Put a row's system prompt before the conversation, its variables filled in, as Open WebUI does."""
    from open_webui.models.users import UserModel  # noqa: PLC0415
    from open_webui.utils.payload import apply_system_prompt_to_body  # noqa: PLC0415

    await apply_system_prompt_to_body(prompt, body, metadata, UserModel.model_validate(user))


# --- ollama_pack.webui.publication ---
# Which rows of Open WebUI's models table to write, so that users see what is offered to them. Decides only.
#
# A row belongs to whoever made it. The pack's mark in its `meta` says so: `{"kind", "id"}` is the uploader's,
# and with `"by": "ollama_pack_events"` it is the events function's, which also notes the grants that it gave,
# so that a change by an admin is seen and kept. The id is in the mark because an admin's clone of a row copies
# `meta`. Rows without the mark are an admin's: they are never changed, removed or adopted.

MARK = "ollama_pack"  # the key in a row's meta, the uploader's too
MAKER = "ollama_pack_events"

BY_HAND = "an admin made a model with this id by hand, and it is left as it is"
BY_UPLOAD = "upload.py published it, and keeps it"
TAKEN = "a connection offers a model of this name itself"
ADMINS_GRANTS = "an admin changed who may use it, and that is kept"
ADMINS_SWITCH = "an admin switched it off, and that is kept"
ADMINS_ROW = "it is offered no more, and is kept because an admin changed something in it"


@dataclass(frozen=True, slots=True)
class WantedRow:
    """A model that is to be published.

    Attributes:
        id: what clients ask for.
        name: what the picker shows.
        base: the model that answers for it; None: `id` is a model itself, and the row only grants it.
        grants: who may use it.
        alias: the alias that it serves; empty: none.
        description: what the picker tells of it; empty: nothing.
        hidden: keep it out of the picker, where the alias stands already. Said once: then an admin decides.
    """

    id: str
    name: str
    base: str | None
    grants: Grants
    alias: str = ""
    description: str = ""
    hidden: bool = False

    @property
    def mark(self) -> dict[str, Any]:
        """What tells whose row it is, as `meta` holds it."""
        kind = "alias" if self.base else "base"
        said = {"kind": kind, "id": self.id, "by": MAKER, "name": self.name, "alias": self.alias}
        return {MARK: said | {"grants": grant_forms(self.grants)}}


@dataclass(frozen=True, slots=True)
class ExistingRow:
    """A row of the models table as it is.

    Attributes:
        id: the model's id.
        name: what the picker shows.
        base: the model that answers for it, or None.
        grants: who may use it, beside admins.
        active: it is not switched off.
        meta: what else is said of it.
        has_params: an admin gave it parameters or a system prompt.
    """

    id: str
    name: str
    base: str | None
    grants: Grants
    active: bool = True
    meta: Mapping[str, Any] = field(default_factory=dict)
    has_params: bool = False

    @property
    def mark(self) -> Mapping[str, Any]:
        """The pack's mark; empty where an admin made the row, or cloned it."""
        mark = self.meta.get(MARK)
        return mark if isinstance(mark, dict) and mark.get("id") == self.id else {}

    @property
    def maker(self) -> Literal["events", "upload", "hand"]:
        """Whose row it is."""
        if not self.mark:
            return "hand"
        return "events" if self.mark.get("by") == MAKER else "upload"

    @property
    def alias(self) -> str:
        """The alias that the row serves; empty: none."""
        return str(self.mark.get("alias") or "")

    @property
    def given(self) -> Grants:
        """The grants that the events function gave last."""
        said = self.mark.get("grants") or ()
        return frozenset(
            (str(one["principal_type"]), str(one["principal_id"]), str(one["permission"])) for one in said
        )

    @property
    def has_additions(self) -> bool:
        """Whether an admin has put something of their own into the row."""
        ours = {MARK, "description", "hidden", "profile_image_url"}
        added = any(value for key, value in self.meta.items() if key not in ours)
        renamed = self.name != self.mark.get("name")
        return added or renamed or self.has_params or not self.active or self.grants != self.given


@dataclass(frozen=True, slots=True)
class CreateRow:
    """Make a row."""

    row: WantedRow


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """Bring a row of ours to what is wanted.

    Attributes:
        row: what is wanted, with the grants that it shall have.
        regrant: give it these grants; else they are left as they are.
    """

    row: WantedRow
    regrant: bool


@dataclass(frozen=True, slots=True)
class DeleteRow:
    """Take a row of ours away."""

    id: str


@dataclass(frozen=True, slots=True)
class CloseRow:
    """Leave a row of ours, in which an admin put something, to admins."""

    id: str


RowChange = CreateRow | UpdateRow | DeleteRow | CloseRow


@dataclass(frozen=True, slots=True)
class LeftRow:
    """A row that is not as it would be, and why it is left so."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class RowPlan:
    """What to do, and what is left alone."""

    changes: tuple[RowChange, ...]
    left: tuple[LeftRow, ...]


def plan_rows(
    wanted: Mapping[str, WantedRow],
    rows: Mapping[str, ExistingRow],
    taken: AbstractSet[str] = frozenset(),
    spared: AbstractSet[str] = frozenset(),
) -> RowPlan:
    """Compare what is wanted with what is there.

    Carrying the plan out and planning again gives no change, from any replica. A row of ours is withdrawn
    when a connection begins to offer a model of its name: its grants would hold for that model.

    Args:
        wanted: the rows that there shall be, by id.
        rows: all rows that there are, by id.
        taken: ids of models that connections offer themselves: no alias may stand in their way.
        spared: ids of ours that stay for now though they are not wanted.
    """
    changes: list[RowChange] = []
    left: list[LeftRow] = []
    for row in wanted.values():
        current = rows.get(row.id)
        if reason := _not_ours(row, current, taken):
            left.append(LeftRow(row.id, reason))
            changes += _withdrawals(current) if reason == TAKEN and current else ()
        elif current is None:
            changes.append(CreateRow(row))
        else:
            changes += _updates(row, current)
            left += (LeftRow(row.id, reason) for reason in _kept(row, current))
    for current in rows.values():
        if current.maker == "events" and current.id not in wanted and current.id not in spared:
            changes += _withdrawals(current)
            left += (LeftRow(current.id, ADMINS_ROW) for _ in range(current.has_additions))
    return RowPlan(tuple(changes), tuple(left))


def _not_ours(row: WantedRow, current: ExistingRow | None, taken: AbstractSet[str]) -> str:
    if current is not None and current.maker != "events":
        return BY_HAND if current.maker == "hand" else BY_UPLOAD
    return TAKEN if row.base and row.id in taken else ""


def _has_admins_grants(row: WantedRow, current: ExistingRow) -> bool:
    """Whether somebody else set the grants. What we want is ours, even where noting it failed."""
    return current.grants not in (current.given, row.grants)


def _kept(row: WantedRow, current: ExistingRow) -> Iterator[str]:
    if _has_admins_grants(row, current):
        yield ADMINS_GRANTS
    if not current.active:
        yield ADMINS_SWITCH


def _updates(row: WantedRow, current: ExistingRow) -> Iterator[UpdateRow]:
    is_admins = _has_admins_grants(row, current)
    regrant = not is_admins and current.grants != row.grants
    is_noted = is_admins or current.given == row.grants
    if current.base != row.base or current.alias != row.alias or regrant or not is_noted:
        yield UpdateRow(row, regrant)


def _withdrawals(current: ExistingRow) -> Iterator[DeleteRow | CloseRow]:
    if not current.has_additions:
        yield DeleteRow(current.id)
    elif current.grants and current.grants == current.given:
        yield CloseRow(current.id)


def closed_mark(mark: Mapping[str, Any]) -> dict[str, Any]:
    """The mark of a row that is left to admins: that nobody else may use it is our doing."""
    return {MARK: {**mark, "grants": grant_forms(NOBODY)}}


class Absences:
    """Rows whose model is not there, and since when: a node that restarts must not empty the picker.

    A row that was withdrawn and is back while its model still is not was brought back by a replica that
    sees the model. It is then left to that replica, or the two would undo each other's work for ever.
    """

    def __init__(self, grace: float, clock: Callable[[], float]) -> None:
        """Begin with nothing missing; `grace` in the clock's seconds."""
        self._grace = grace
        self._clock = clock
        self._since: dict[str, float] = {}
        self._withdrawn: set[str] = set()

    def spared(self, missing: Iterable[str], present: AbstractSet[str]) -> frozenset[str]:
        """Those of the missing ids that stay for now."""
        now = self._clock()
        self._since = {model: self._since.get(model, now) for model in missing}
        self._withdrawn -= present
        return frozenset(
            model
            for model, since in self._since.items()
            if now - since < self._grace or model in self._withdrawn
        )

    def seconds(self, model: str) -> float | None:
        """How long a model is missing; None when it is not."""
        since = self._since.get(model)
        return None if since is None else self._clock() - since

    def withdrawn(self, model: str) -> None:
        """Note that a row was taken away."""
        self._withdrawn.add(model)


# --- ollama_pack.plugins.offer ---
# What there is to publish: the models and aliases of the router, and the aliases of the alias filter.

ALIAS_FILTER = "model_alias_filter"


@dataclass(frozen=True, slots=True)
class AliasTables:
    """The alias tables that admins have stored.

    Attributes:
        router: the router's; None: it is not there, off, or its table cannot be read.
        filtered: the alias filter's, likewise.
        names: every name in a table, also of a function that is off.
        are_known: there is a table and all can be read, so that a name which is in none is no alias.
    """

    router: AliasTable | None
    filtered: AliasTable | None
    names: frozenset[str]
    are_known: bool


@dataclass(frozen=True, slots=True)
class Offer:
    """What can be published now.

    Attributes:
        tables: the alias tables.
        routed: what the router offers, as it tells it: `id`, `name`, `alias`.
        fault: why the router could not be asked though it is on; empty: it was, or there is none.
    """

    tables: AliasTables
    routed: tuple[Mapping[str, Any], ...] = ()
    fault: str = ""

    @property
    def router_ids(self) -> frozenset[str]:
        """The ids that the router's models have in Open WebUI."""
        return frozenset(f"{ROUTER}{model['id']}" for model in self.routed)


async def gather_offer(router: RouterContact) -> Offer:
    """Ask the router, and read the tables."""
    state = await function_state(ROUTER_ID)
    tables = alias_tables(state, await function_state(ALIAS_FILTER))
    if not state.active:
        return Offer(tables)
    try:
        return Offer(tables, tuple(await router.models()))
    except RouterUnavailableError as error:
        return Offer(tables, fault=str(error))


def alias_tables(router: FunctionState, alias_filter: FunctionState) -> AliasTables:
    """The tables as two functions have them stored."""
    stored = [(state, _stored_table(state)) for state in (router, alias_filter) if state.installed]
    of_router, of_filter = (
        _stored_table(state) if state.active else None for state in (router, alias_filter)
    )
    names = frozenset(name for _, table in stored if table for name in concrete_names(table))
    are_known = bool(stored) and all(table is not None for _, table in stored)
    return AliasTables(of_router, of_filter, names, are_known)


def _stored_table(state: FunctionState) -> AliasTable | None:
    try:
        return parse_table(str(state.valves.get("aliases") or ""))
    except AliasTableError:
        return None


def routed_rows(offer: Offer, grants: Grants) -> Iterator[WantedRow]:
    """The router's models, for people who are no admins; and each of its aliases under its own name."""
    for model in offer.routed:
        name = str(model["id"])
        routed_id = f"{ROUTER}{name}"
        if model.get("alias"):
            told = f"{name} is answered by the model that the router's alias table names."
            yield WantedRow(name, name, routed_id, grants, alias=name, description=told)
            yield WantedRow(routed_id, name, None, grants, alias=name, hidden=True)
        else:
            yield WantedRow(routed_id, str(model.get("name") or name), None, grants)


def filtered_rows(offer: Offer, grants: Grants, models: ModelCatalogue) -> tuple[list[WantedRow], list[str]]:
    """The alias filter's names that the router has not, with the models behind them; and what lacks a model.

    Args:
        offer: the tables.
        grants: who may use them.
        models: what Open WebUI offers by itself, the router's models too; no rows.
    """
    rows: list[WantedRow] = []
    problems = []
    table = offer.tables.filtered or AliasTable(())
    of_router = concrete_names(offer.tables.router or AliasTable(()))
    for name in concrete_names(table):
        if name in of_router:
            continue
        ids = [models.ids_of(model)[0] for model in models_behind(table, name, models)]
        if behind := list(dict.fromkeys(ids)):
            told = f"{name} is answered by {behind[0]} or what the alias table prefers."
            rows.append(WantedRow(name, name, behind[0], grants, alias=name, description=told))
            rows += (WantedRow(model, model, None, grants) for model in behind)
        else:
            problems.append(f"{name}: no connection has any of its models (`ollama pull` one)")
    return rows, problems


def absent_routed(offer: Offer) -> list[str]:
    """What to tell of the router's aliases that no node can answer now."""
    if offer.tables.router is None or offer.fault:
        return []
    offered = {model["id"] for model in offer.routed if model.get("alias")}
    missing = (name for name in concrete_names(offer.tables.router) if name not in offered)
    return [f"{name}: no node has any of its models (`ollama pull` one there)" for name in missing]


def withdrawable(
    offer: Offer, wanted: Mapping[str, WantedRow], rows: Mapping[str, ExistingRow]
) -> tuple[frozenset[str], frozenset[str]]:
    """Ids of ours that are not wanted: those that may only be away for a while, and those that are gone.

    Gone is an alias that somebody took out of its table. What goes through a router that does not answer is
    in neither: nothing is known of it.
    """
    ours = [row for row in rows.values() if row.maker == "events" and row.id not in wanted]
    known = offer.tables.are_known
    gone = frozenset(row.id for row in ours if known and row.alias and row.alias not in offer.tables.names)
    unheard = frozenset(row.id for row in ours if offer.fault and _is_routed(row))
    return frozenset(row.id for row in ours) - gone - unheard, gone


def _is_routed(row: ExistingRow) -> bool:
    return row.id.startswith(ROUTER) or str(row.base or "").startswith(ROUTER)


def shown_though_gone(
    known: Mapping[str, Mapping[str, Any]], rows: Mapping[str, ExistingRow], offer: Offer
) -> frozenset[str]:
    """Ids on which Open WebUI's list of models differs from what there is, so that it should look again."""
    ours = {row.id for row in rows.values() if row.maker == "events" and row.base and row.active}
    there = ours | offer.router_ids
    listed = {
        model
        for model, about in known.items()
        if (about.get("preset") and _has_our_mark(about)) or model.startswith(ROUTER)
    }
    unheard = {model for model in listed if offer.fault and model.startswith(ROUTER)}
    return frozenset((there - known.keys()) | (listed - there - unheard))


def _has_our_mark(about: Mapping[str, Any]) -> bool:
    meta = (about.get("info") or {}).get("meta") or {}
    mark = meta.get("ollama_pack") or {}
    return bool(mark.get("by") == MAKER)


# --- ollama_pack.webui.rows ---
# Rows of Open WebUI's models table, read and written. Imports `open_webui` when called, not before.

log_rows = logging.getLogger(__name__)


async def read_rows() -> dict[str, ExistingRow]:
    """Every row, by id."""
    from open_webui.models.models import Models  # noqa: PLC0415 - see the top of this module

    return {row.id: _existing(row) for row in await Models.get_all_models()}


async def group_ids() -> dict[str, str]:
    """Name → id of every group."""
    from open_webui.models.groups import Groups  # noqa: PLC0415

    return {group.name: group.id for group in await Groups.get_all_groups()}


async def write_rows(changes: tuple[RowChange, ...], owner: str) -> list[RowChange]:
    """Make changes, each by itself, and return those that were made.

    What fails is logged: nearly always another replica was faster, and the next look finds nothing to do.

    Args:
        changes: what to do.
        owner: id of the user whose the new rows are.
    """
    done = []
    for change in changes:
        try:
            if await _write_row(change, owner):
                done.append(change)
        except Exception:
            log_rows.exception("%r was not carried out, and is tried again", change)
    return done


async def _write_row(change: RowChange, owner: str) -> bool:
    from open_webui.models.models import Models  # noqa: PLC0415

    match change:
        case CreateRow(row):
            return await _create_row(row, owner)
        case UpdateRow(row, regrant):
            if regrant:  # before the mark: a row with grants that are wanted counts as ours
                await _grant_row(row.id, row.grants)
            return await _remark_row(row.id, row.mark, row)
        case CloseRow(model):
            await _grant_row(model, NOBODY)
            return await _remark_row(model, None, None)
        case DeleteRow(model):
            return bool(await Models.delete_model_by_id(model))


async def _create_row(row: WantedRow, owner: str) -> bool:
    from open_webui.models.models import ModelForm, Models  # noqa: PLC0415

    if await Models.get_model_by_id(row.id) is not None:
        return False  # another replica was faster
    said = {"description": row.description} if row.description else {}
    hidden = {"hidden": True} if row.hidden else {}
    form = ModelForm(
        id=row.id,
        name=row.name,
        base_model_id=row.base,
        meta=said | hidden | row.mark,
        params={},
        access_grants=grant_forms(row.grants),
        is_active=True,
    )
    return await Models.insert_new_model(form, owner) is not None


async def _remark_row(model: str, mark: Mapping[str, Any] | None, wanted: WantedRow | None) -> bool:
    """Note in a row what was done to it, and leave what an admin wrote, as it is by now."""
    from open_webui.models.models import ModelForm, Models  # noqa: PLC0415

    row = await Models.get_model_by_id(model)
    if row is None:
        return False
    meta = row.meta.model_dump()
    form = ModelForm(
        id=row.id,
        name=row.name,
        base_model_id=wanted.base if wanted else row.base_model_id,
        meta=meta | (mark or closed_mark(_existing(row).mark)),
        params=row.params.model_dump(),
        is_active=row.is_active,
    )
    return await Models.update_model_by_id(model, form) is not None


async def _grant_row(model: str, grants: Grants) -> None:
    from open_webui.models.access_grants import AccessGrants  # noqa: PLC0415

    await AccessGrants.set_access_grants("model", model, grant_forms(grants))


def _existing(row: Any) -> ExistingRow:
    grants = frozenset(
        (grant.principal_type, grant.principal_id, grant.permission) for grant in row.access_grants
    )
    return ExistingRow(
        id=row.id,
        name=row.name,
        base=row.base_model_id,
        grants=grants,
        active=bool(row.is_active),
        meta=row.meta.model_dump(exclude_none=True),
        has_params=bool(row.params.model_dump(exclude_none=True)),
    )


def listed_models(app: Any) -> dict[str, Mapping[str, Any]]:
    """Open WebUI's list of models as of its last look, by id; those of rows have `preset`."""
    return {str(model): about for model, about in app.state.MODELS.items()}


async def refresh_models(app: Any) -> None:
    """Have Open WebUI look at its connections and rows anew, as its own start does."""
    from open_webui.utils.models import get_all_models  # noqa: PLC0415
    from starlette.requests import Request  # noqa: PLC0415 - it comes with Open WebUI

    nobody = ("127.0.0.1", 0)
    scope = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": "/internal",
        "query_string": b"",
        "headers": [],
        "client": nobody,
        "server": nobody,
        "app": app,
    }
    await get_all_models(Request(scope), refresh=True)


# --- ollama_pack.plugins.publishing ---
# Publishing: what the router and the alias tables offer becomes models that users see and may use.

log_publishing = logging.getLogger(__name__)

GRACE_SECONDS = 900.0  # a node that restarts, or loads its driver anew, is back sooner
NO_TABLES = AliasTables(None, None, frozenset(), are_known=False)


@dataclass(frozen=True, slots=True)
class Publication:
    """How the last look ended, for the dashboard.

    Attributes:
        looked_at: Unix time of the look; None: there was none yet.
        rows: what is published now.
        left: rows that are left alone, and why.
        problems: what an admin should know, in sentences.
    """

    looked_at: float | None = None
    rows: tuple[Mapping[str, Any], ...] = ()
    left: tuple[LeftRow, ...] = ()
    problems: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


class Publisher:
    """Keeps the rows as they should be. Looks as often as it is told to; writes only what differs."""

    def __init__(self, app: Any, router: RouterContact, clock: Callable[[], float] = time.monotonic) -> None:
        """Look at nothing yet.

        Args:
            app: Open WebUI's.
            router: what is published.
            clock: seconds, for how long a model is missing.
        """
        self.last = Publication()
        self._app = app
        self._router = router
        self._absences = Absences(GRACE_SECONDS, clock)
        self._refreshed_for: frozenset[str] = frozenset()
        self._group_names: dict[str, str] = {}

    async def reconcile(self, audience: str, owner: str, *, publish: bool) -> None:
        """Bring the rows to what is offered now.

        Args:
            audience: who may use what is published, as the valve has it.
            owner: id of the user whose the new rows are.
            publish: False takes away what was published.
        """
        offer = await gather_offer(self._router) if publish else Offer(NO_TABLES)
        if not self._app.state.MODELS:
            await refresh_models(self._app)
        rows = await read_rows()
        wanted, problems = await self._wanted(offer, audience)
        spared = self._spared(offer, wanted, rows) if publish else frozenset()
        plan = plan_rows(wanted, rows, self._taken(), spared)
        done = await write_rows(plan.changes, owner)
        for change in done:
            if isinstance(change, DeleteRow | CloseRow):
                self._absences.withdrawn(change.id)
        rows = await read_rows() if done else rows
        await self._show_to_users(offer, rows, changed=bool(done))
        ours = sorted((row for row in rows.values() if row.maker == "events"), key=lambda row: row.id)
        published = tuple(map(self._shown, ours))
        self._conclude(Publication(time.time(), published, plan.left, problems))

    async def _wanted(self, offer: Offer, audience: str) -> tuple[dict[str, WantedRow], tuple[str, ...]]:
        """The rows that there shall be, by id, and what stands in the way of more."""
        groups = await group_ids()
        self._group_names = {group: name for name, group in groups.items()}
        grants, unknown = audience_grants(parse_audience(audience), groups)
        models = {
            model: about for model, about in listed_models(self._app).items() if not about.get("preset")
        }
        filtered, lacking = filtered_rows(offer, grants, ModelCatalogue(models))
        rows = [*filtered, *routed_rows(offer, grants)]
        missing_groups = (
            f"audience: Open WebUI has no group {name!r}: create it, or correct the valve" for name in unknown
        )
        fault = [f"{offer.fault}. What is published through it stays."] if offer.fault else []
        problems = (*fault, *missing_groups, *absent_routed(offer), *lacking)
        return {row.id: row for row in rows}, problems

    def _taken(self) -> frozenset[str]:
        """Ids of models that are there by themselves."""
        models = listed_models(self._app).items()
        return frozenset(model for model, about in models if not about.get("preset"))

    def _spared(
        self, offer: Offer, wanted: Mapping[str, WantedRow], rows: Mapping[str, ExistingRow]
    ) -> frozenset[str]:
        """Rows of ours that stay for now, though they are not wanted."""
        away, gone = withdrawable(offer, wanted, rows)
        ours = frozenset(row.id for row in rows.values() if row.maker == "events")
        return (ours - away - gone) | self._absences.spared(away, wanted.keys())

    def _shown(self, row: ExistingRow) -> dict[str, Any]:
        """A row as the dashboard shows it."""
        return {
            "id": row.id,
            "base": row.base,
            "alias": row.alias,
            "active": row.active,
            "audience": sorted(self._readable(kind, who) for kind, who, _ in row.grants),
            "missing_seconds": self._absences.seconds(row.id),
        }

    def _readable(self, kind: str, who: str) -> str:
        return "everybody" if who == "*" else f"{kind} {self._group_names.get(who, who)}"

    async def _show_to_users(self, offer: Offer, rows: Mapping[str, ExistingRow], *, changed: bool) -> None:
        """Have Open WebUI look again where its list differs from what there is; once for one difference."""
        differs = shown_though_gone(listed_models(self._app), rows, offer)
        if changed or not differs <= self._refreshed_for:
            await refresh_models(self._app)
        self._refreshed_for = differs

    def _conclude(self, publication: Publication) -> None:
        for problem in publication.problems:
            if problem not in self.last.problems:
                log_publishing.warning("%s", problem)
        self.last = publication


# --- ollama_pack.webui.dashboard ---
# The dashboard's page. It takes nothing from elsewhere, and puts in what the server tells as text.

NONCE = "%NONCE%"

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --line: #e3e6ea; --text: #1b1f24; --soft: #5f6975; --faint: #eef0f3;
  --good: #14804a; --good-soft: #ddf3e6; --bad: #b42318; --bad-soft: #fde4e1; --warn: #94590a;
  --warn-soft: #fdf0d5; --bar: #3b6fd4; --chosen: #eaf1fd;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101215; --card: #191c20; --line: #2b3037; --text: #e8eaed; --soft: #9aa4b0; --faint: #23272d;
    --good: #5fd295; --good-soft: #12341f; --bad: #ff8f85; --bad-soft: #431a17; --warn: #f0bd68;
    --warn-soft: #3a2a0d; --bar: #6c9bf5; --chosen: #1d2a40;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 14px/1.45 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 20px 20px 48px; }
header { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: baseline; }
h1 { font-size: 20px; margin: 0; }
h2 { font-size: 15px; margin: 28px 0 10px; }
h3 { font-size: 15px; margin: 0; overflow-wrap: anywhere; }
header .state { margin-left: auto; }
.soft { color: var(--soft); }
.small { font-size: 12.5px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 14px; }
.cards .card { display: flex; flex-direction: column; gap: 10px; }
.cards p { margin: 0; }
.row { display: flex; flex-wrap: wrap; gap: 6px 8px; align-items: center; }
.badge { border-radius: 99px; padding: 1px 9px; font-size: 12px; background: var(--faint); }
.good { background: var(--good-soft); color: var(--good); }
.bad { background: var(--bad-soft); color: var(--bad); }
.warn { background: var(--warn-soft); color: var(--warn); }
.notice { border-radius: 8px; padding: 9px 12px; margin: 12px 0 0; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; }
.figures b { display: block; font-size: 20px; font-weight: 600; line-height: 1.2; }
.gpu { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 2px 10px; font-size: 12.5px; }
.gpu .value { text-align: right; }
.gpu > :first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bar { grid-column: 1 / -1; height: 7px; width: 100%; border-radius: 4px; background: var(--faint); }
.bar rect { fill: var(--bar); }
.scroll { overflow-x: auto; }
.wide table { min-width: 640px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 10px 5px 0; vertical-align: top; }
th, td { border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--soft); font-size: 12.5px; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
tbody tr:last-child > td { border-bottom: 0; }
tr.chosen > td { background: var(--chosen); }
tr.opens { cursor: pointer; }
tr.opens:hover > td { background: var(--faint); }
button.more {
  all: unset; cursor: pointer; width: 18px; text-align: center; color: var(--soft); border-radius: 4px;
}
button.more:focus-visible { outline: 2px solid var(--bar); }
td.inner { padding: 4px 0 12px 28px; }
code { font: 12.5px ui-monospace, monospace; overflow-wrap: anywhere; }
ul { margin: 0; padding-left: 18px; }
a { color: inherit; }
"""

_SCRIPT = """
"use strict";
const POLL = 2000, PATIENCE = 10000;
const main = document.querySelector("main");
const opened = new Set();

// Everything that the server tells goes through here, as text.
function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "on") node.addEventListener("click", value);
    else node.setAttribute(key, value);
  }
  node.append(...children.flat().filter(child => child !== null && child !== undefined && child !== ""));
  return node;
}
const text = value => value === null || value === undefined ? "—" : String(value);
const list = value => Array.isArray(value) ? value : [];
const isNumber = value => typeof value === "number" && Number.isFinite(value);
function seconds(value) {
  if (!isNumber(value)) return "—";
  if (value === 0) return "0";
  if (Math.abs(value) < 0.0005) return "<1 ms";
  if (Math.abs(value) < 1) return Math.round(value * 1000) + " ms";
  return value.toFixed(value < 10 ? 2 : 1) + " s";
}
const gigabytes = value => isNumber(value) ? (value / 2 ** 30).toFixed(1) : "—";
const short = value => Math.abs(value) >= 1e9 ? (value / 1e9).toFixed(2) + " G"
  : Math.abs(value) >= 1e6 ? (value / 1e6).toFixed(2) + " M" : String(Number(value.toPrecision(4)));
const clock = at => isNumber(at) ? new Date(at * 1000).toLocaleTimeString() : "—";
const badge = (words, kind) => make("span", {class: "badge " + (kind || "")}, words);
const notice = (words, kind) => make("p", {class: "notice " + kind, role: "status"}, words);
const cell = (value, number) => make("td", number ? {class: "number"} : {}, value);

function table(heads, rows) {
  const head = heads.map(([name, number]) => make("th", number ? {class: "number"} : {}, name));
  return make("div", {class: "scroll"},
    make("table", {}, make("thead", {}, make("tr", {}, head)), make("tbody", {}, rows)));
}

function bar(percent, label) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg"), rect = document.createElementNS(space, "rect");
  const width = Math.max(0, Math.min(100, isNumber(percent) ? percent : 0));
  for (const [key, value] of Object.entries(
    {class: "bar", viewBox: "0 0 100 7", preserveAspectRatio: "none", role: "img", "aria-label": label}))
    svg.setAttribute(key, value);
  rect.setAttribute("width", width);
  rect.setAttribute("height", 7);
  svg.append(rect);
  return svg;
}

function gpu(one) {
  const share = one.memory_total > 0 ? 100 * one.memory_used / one.memory_total : null;
  const busy = isNumber(one.utilization) ? Math.round(one.utilization) + " %" : "—";
  const memory = gigabytes(one.memory_used) + " of " + gigabytes(one.memory_total) + " GiB";
  return make("div", {class: "gpu"},
    make("span", {title: text(one.name)}, "GPU " + text(one.index) + (one.name ? " · " + one.name : "")),
    make("span", {class: "value"}, busy), bar(one.utilization, "GPU busy " + busy),
    make("span", {class: "soft"}, "memory"), make("span", {class: "soft value"}, memory),
    bar(share, "GPU memory " + memory));
}

function figure(value, name) {
  return make("div", {}, make("b", {}, text(value)), make("span", {class: "soft small"}, name));
}

function runners(node) {
  if (!Array.isArray(node.runners))
    return make("div", {class: "row"}, list(node.models).map(model => badge(text(model))));
  if (!node.runners.length) return make("p", {class: "soft small"}, "No model in memory.");
  return table([["In memory"], ["context", 1], ["running", 1], ["prefixes", 1]], node.runners.map(one =>
    make("tr", {}, cell(make("code", {}, text(one.model))), cell(text(one.context), 1),
      cell(text(one.running) + " / " + text(one.slots), 1), cell(text(one.prefixes), 1))));
}

function rates(node) {
  const known = Object.entries(node.rates && typeof node.rates === "object" ? node.rates : {})
    .filter(([, rate]) => rate && typeof rate === "object");
  if (!known.length) return null;
  const key = "rates " + node.name;
  const rows = known.map(([name, rate]) => {
    const shown = Object.entries(rate).filter(([, value]) => isNumber(value)).map(([what, value]) =>
      what + " " + short(value));
    return make("li", {}, make("code", {}, text(rate.model || name)), " ", shown.join(" · "),
      rate.learned === false ? " (assumed)" : "");
  });
  const details = make("details", {class: "small"},
    make("summary", {class: "soft"}, "Learned rates"), make("ul", {}, rows));
  details.open = opened.has(key);
  details.addEventListener("toggle", () => details.open ? opened.add(key) : opened.delete(key));
  return details;
}

function node(one) {
  const gpus = list(one.gpus), breaker = text(one.breaker);
  return make("section", {class: "card"},
    make("div", {class: "row"}, make("h3", {}, text(one.name)),
      one.healthy ? badge("healthy", "good") : badge("down", "bad"),
      one.breaker && breaker !== "closed" ? badge("breaker " + breaker.replace("_", " "), "warn") : null),
    one.url ? make("code", {class: "soft"}, one.url) : null,
    one.fault ? make("p", {class: "notice bad small"}, one.fault) : null,
    make("div", {class: "figures"}, figure(one.in_flight, "in flight"), figure(one.queued, "queued"),
      figure(Array.isArray(one.runners) ? one.runners.length : list(one.models).length, "in memory")),
    gpus.length ? gpus.map(gpu) : make("p", {class: "soft small"},
      one.gpu_reason ? "No GPU figures: " + one.gpu_reason
        : "No GPU figures: run gpu_agent.py on the host and name it in agent=…"),
    runners(one), rates(one));
}

function considered(decision) {
  const all = list(decision.considered).filter(one => one && typeof one === "object");
  if (!all.length) return make("p", {class: "soft small"}, "Nothing else was considered.");
  const terms = [...new Set(all.flatMap(one => Object.keys(one.terms || {})))];
  return table([["Node"], ["Model"], ...terms.map(term => [term, 1])], all.map(one =>
    make("tr", one.node === decision.node && one.model === decision.model ? {class: "chosen"} : {},
      cell(text(one.node)), cell(make("code", {}, text(one.model))),
      terms.map(term => cell(seconds((one.terms || {})[term]), 1)))));
}

function decisions(told) {
  const rows = told.flatMap((one, at) => {
    const key = "decision " + text(one.at) + " " + text(one.request ?? at);
    const isOpen = opened.has(key);
    const flip = () => { isOpen ? opened.delete(key) : opened.add(key); draw(); };
    const hit = isNumber(one.hit) ? one.hit + (isNumber(one.tokens) ? " of " + one.tokens : "") : "—";
    const off = isNumber(one.actual) && isNumber(one.predicted) && one.actual > 2 * one.predicted + 0.5;
    const line = make("tr", {class: "opens", on: flip},
      cell(make("button", {class: "more", "aria-expanded": String(isOpen), "aria-label": "Details"},
        isOpen ? "▾" : "▸")),
      cell(clock(one.at)), cell(text(one.node)),
      cell([make("code", {}, text(one.model)), one.loads ? " " : "", one.loads ? badge("loads", "warn") : "",
        one.background ? " " : "", one.background ? badge("background") : ""]),
      cell(hit, 1), cell(seconds(one.waited), 1), cell(seconds(one.predicted), 1),
      make("td", {class: "number"}, off ? badge(seconds(one.actual), "warn") : seconds(one.actual)));
    return isOpen
      ? [line, make("tr", {}, make("td", {colspan: 8, class: "inner"}, considered(one)))] : [line];
  });
  return table([[""], ["Time"], ["Node"], ["Model"], ["prefix tokens", 1], ["waited", 1],
    ["predicted", 1], ["first token", 1]], rows);
}

function published(told) {
  if (!told.publish_aliases)
    return notice("Nothing is published: publish_aliases is off in this function's valves.", "warn");
  if (!told.looked_at)
    return notice("The models have not been looked at yet; this takes a few seconds.", "warn");
  const rows = list(told.rows).map(row => make("tr", {},
    cell(make("code", {}, text(row.id))),
    cell(row.base ? make("code", {class: "soft"}, row.base)
      : make("span", {class: "soft"}, row.alias ? "itself, for " + row.alias : "itself")),
    cell(list(row.audience).join(", ") || "admins"),
    cell([row.active ? "" : badge("switched off", "warn"), isNumber(row.missing_seconds)
      ? badge("away for " + Math.round(row.missing_seconds / 60) + " min", "warn") : ""])));
  return rows.length ? table([["Model"], ["answered by"], ["for"], [""]], rows)
    : make("span", {class: "soft"}, "Nothing to publish: no node has a model, and no alias an answer.");
}

function leftAlone(told) {
  const rows = list(told.left).map(row =>
    make("li", {}, make("code", {}, text(row.id)), ": " + text(row.reason)));
  if (!rows.length) return [];
  return [make("h2", {}, "Left alone"), make("div", {class: "card"}, make("ul", {}, rows))];
}

let last = null, fault = "";

function draw() {
  const focus = document.activeElement && document.activeElement.closest("tr.opens");
  const index = focus ? [...document.querySelectorAll("tr.opens")].indexOf(focus) : -1;
  const parts = [make("header", {}, make("h1", {}, "Ollama Pack"),
    make("a", {href: "/", class: "soft"}, "Open WebUI"),
    make("span", {class: "soft small state"}, last ? "as of " + clock(last.seen) : "asking …"))];
  if (fault) parts.push(notice(fault, "bad"));
  if (last) {
    const router = last.data.router || {}, publishing = last.data.publishing || {};
    const nodes = list(router.nodes), told = list(router.decisions);
    if (last.data.fault) parts.push(notice(last.data.fault, "warn"));
    list(publishing.problems).filter(one => !last.data.fault || !String(one).startsWith(last.data.fault))
      .forEach(problem => parts.push(notice(text(problem), "warn")));
    const waiting = isNumber(router.waiting) ? " · " + router.waiting + " waiting" : "";
    parts.push(make("h2", {}, "Nodes" + waiting));
    parts.push(nodes.length ? make("div", {class: "cards"}, nodes.map(node))
      : make("div", {class: "card soft"}, last.data.fault ? "Nothing is known of any node."
        : "The router has no nodes: write them into its valve “nodes” under Admin Panel → Functions."));
    parts.push(make("h2", {}, "Last decisions"));
    parts.push(make("div", {class: "card wide"}, told.length ? decisions(told)
      : make("span", {class: "soft"}, "None yet. A chat with a model of the router shows here.")));
    parts.push(make("h2", {}, "Published models"), make("div", {class: "card wide"}, published(publishing)));
    parts.push(...leftAlone(publishing));
  }
  main.replaceChildren(...parts);
  if (index >= 0) document.querySelectorAll("tr.opens button")[index]?.focus();
}

async function poll() {
  if (!document.hidden) {
    try {
      const signal = AbortSignal.timeout(PATIENCE);
      const answer = await fetch("/ollama-pack/data", {signal, cache: "no-store"});
      if (answer.status === 401 || answer.status === 403)
        throw new Error("Sign in to Open WebUI as an admin again.");
      if (!answer.ok || !(answer.headers.get("content-type") || "").includes("json"))
        throw new Error("The function ollama_pack_events is switched off, or being updated.");
      last = {data: await answer.json(), seen: Date.now() / 1000};
      fault = "";
    } catch (error) {
      fault = error instanceof TypeError || error.name === "TimeoutError"
        ? "Open WebUI does not answer. What is shown is from " + (last ? clock(last.seen) : "nowhere") + "."
        : error.message;
    }
    draw();
  }
  setTimeout(poll, POLL);
}
document.addEventListener("visibilitychange", () => document.hidden || draw());
draw();
poll();
"""

_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Ollama Pack</title>
<style nonce="{NONCE}">{_STYLE}</style>
</head>
<body>
<main><noscript>The dashboard needs JavaScript.</noscript></main>
<script nonce="{NONCE}">{_SCRIPT}</script>
</body>
</html>
"""


def dashboard_html(nonce: str) -> str:
    """The page; its one script and its one style sheet carry the nonce of the page's policy."""
    return _PAGE.replace(NONCE, nonce)


# --- ollama_pack.webui.load ---
# What `GET /api/system/load` shows of what the router tells: keys by name, so that nothing slips out.

_USAGE = re.compile(r"gpu\d+_usage")

EMPTY_LOAD: Mapping[str, Any] = {"nodes": []}

Checked = Callable[[Any], Any]


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float) else None


def _text(value: Any) -> Any:
    return value if isinstance(value, str) else None


def _model_names(value: Any) -> list[str]:
    return [model for model in _list_of(value) if isinstance(model, str)]


def _gpus(value: Any) -> list[dict[str, Any]]:
    return [_only(GPU_KEYS, gpu) for gpu in _list_of(value) if isinstance(gpu, Mapping)]


def _list_of(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


GPU_KEYS: Mapping[str, Checked] = {
    "index": _number,
    "name": _text,
    "utilization": _number,  # percent
    "memory_used": _number,  # bytes
    "memory_total": _number,
}
NODE_KEYS: Mapping[str, Checked] = {
    "name": _text,
    "healthy": bool,
    "in_flight": _number,
    "queued": _number,
    "models": _model_names,
    "gpus": _gpus,
}
ADMIN_NODE_KEYS: Mapping[str, Checked] = {"url": _text}


def system_load(told: Mapping[str, Any], *, for_admin: bool) -> dict[str, Any]:
    """The answer for one who asks.

    Args:
        told: what the router tells, addresses of nodes included.
        for_admin: give the addresses too, and the last routed requests where the router tells them.
    """
    usage = {key: _number(value) for key, value in told.items() if _USAGE.fullmatch(str(key))}
    keys = {**NODE_KEYS, **(ADMIN_NODE_KEYS if for_admin else {})}
    nodes = [_only(keys, node) for node in _list_of(told.get("nodes")) if isinstance(node, Mapping)]
    recent = {"recent": told["recent"]} if for_admin and "recent" in told else {}
    return {**usage, "nodes": nodes, **recent}


def _only(keys: Mapping[str, Checked], told: Mapping[str, Any]) -> dict[str, Any]:
    return {key: check(told[key]) for key, check in keys.items() if key in told}


# --- ollama_pack.webui.routes ---
# Routes of a plugin on the running Open WebUI. Imports `open_webui` when called, not before.

MAX_LET_IN = 10_000


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """A route.

    Attributes:
        method: GET, POST …
        path: from the server's root.
        audience: who is let in; others get Open WebUI's own 401.
        answer: is called with the request and Open WebUI's user; gives JSON or a response.
        remember: seconds for which one who was let in is let in again unasked: finding out who somebody is
            costs Open WebUI several times what the rest of a small answer does.
    """

    method: str
    path: str
    audience: Literal["user", "admin"]
    answer: Callable[[Any, Any], Awaitable[Any]]
    remember: float = 0.0


class LetIn:
    """Who was let in a moment ago, by what they showed. Bounded; holds digests, not tokens."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Know nobody yet.

        Args:
            seconds: how long somebody is known.
            clock: monotonic seconds.
        """
        self._seconds = seconds
        self._clock = clock
        self._users: dict[bytes, tuple[float, Any]] = {}

    def find(self, request: Any) -> Any:
        """The user who showed the same a moment ago; None: ask."""
        until, user = self._users.get(_shown_digest(request), (0.0, None))
        return user if self._clock() < until else None

    def add(self, request: Any, user: Any) -> None:
        """Open WebUI has let this one in."""
        if len(self._users) >= MAX_LET_IN:
            self._users.clear()
        self._users[_shown_digest(request)] = (self._clock() + self._seconds, user)


def _shown_digest(request: Any) -> bytes:
    """What tells one caller from another: all headers.

    Open WebUI takes credentials from the authorization, the cookie, the header of API keys, which an admin
    can rename, and from those in which a trusted proxy names the user.
    """
    digest = blake2b(digest_size=16)
    for part in (part for header in sorted(request.headers.raw) for part in header):
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()


def place_routes(app: Any, owner: str, specs: tuple[RouteSpec, ...]) -> None:
    """Make these the routes of a plugin, before the mount that answers whatever is left.

    Safe to call again: what an earlier call, or earlier code of the same plugin, has placed is replaced.

    Args:
        app: Open WebUI's.
        owner: the plugin's id, which tells its routes from others'.
        specs: none takes the plugin's routes away.
    """
    routes = app.router.routes
    others = [route for route in routes if not _is_of(route, owner)]
    ours = [_api_route(owner, spec) for spec in specs]
    end = next((at for at, route in enumerate(others) if _catches_all(route)), len(others))
    routes[:] = [*others[:end], *ours, *others[end:]]  # in one step: requests look at this very list


def _is_of(route: Any, owner: str) -> bool:
    return str(getattr(route, "name", "")).startswith(f"{owner}:")


def _catches_all(route: Any) -> bool:
    """Whether it is the mount at the root, which Starlette writes as an empty path."""
    return hasattr(route, "app") and getattr(route, "path", None) in {"", "/"}


def _api_route(owner: str, spec: RouteSpec) -> Any:
    from fastapi import Depends, Request  # noqa: PLC0415 - it comes with Open WebUI
    from fastapi.responses import JSONResponse  # noqa: PLC0415
    from fastapi.routing import APIRoute  # noqa: PLC0415
    from open_webui.utils.auth import get_admin_user, get_verified_user  # noqa: PLC0415

    allowed = Depends(get_admin_user if spec.audience == "admin" else get_verified_user)

    known = LetIn(spec.remember)

    async def endpoint(request: Request, user: Any = allowed) -> Any:
        if spec.remember:
            known.add(request, user)
        return await spec.answer(request, user)

    # Open WebUI compiles a plugin so that annotations are text, which FastAPI would look up in vain.
    endpoint.__annotations__ = {"request": Request, "user": Any}

    class Remembering(APIRoute):  # type: ignore[misc] # Any, where Open WebUI is not installed
        def get_route_handler(self) -> Callable[[Any], Awaitable[Any]]:
            ask = super().get_route_handler()

            async def handle(request: Any) -> Any:
                user = known.find(request) if spec.remember else None
                if user is None:
                    return await ask(request)
                return JSONResponse(await spec.answer(request, user))

            return handle

    return Remembering(
        spec.path,
        endpoint,
        methods=[spec.method],
        name=f"{owner}:{spec.method} {spec.path}",
        response_model=None,
        include_in_schema=False,
    )


def not_found() -> Any:
    """The error that answers where a route ought to be gone."""
    from fastapi import HTTPException  # noqa: PLC0415

    return HTTPException(status_code=404, detail="Not Found")


def html_page(text: str, headers: dict[str, str]) -> Any:
    """A page as a response."""
    from starlette.responses import HTMLResponse  # noqa: PLC0415

    return HTMLResponse(text, headers=headers)


# --- ollama_pack.webui.shared ---
# One answer for many askers: asked for once, given to all who wait, and kept for a moment.

Shared = TypeVar("Shared")


class SharedAnswer(Generic[Shared]):
    """However many ask, the source is asked at most once at a time and once in so many seconds."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[Shared]],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask nothing yet.

        Args:
            ask: gives the answer; what it raises reaches those who wait, and is not kept.
            seconds: how long an answer is kept, on the clock.
            clock: monotonic seconds.
        """
        self._ask = ask
        self._seconds = seconds
        self._clock = clock
        self._kept: tuple[float, Shared] | None = None
        self._task: asyncio.Task[Shared] | None = None

    async def get(self) -> Shared:
        """The answer, at most so many seconds old."""
        if self._kept is not None and self._clock() < self._kept[0]:
            return self._kept[1]
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._renew())
            self._task.add_done_callback(_retrieve)
        return await asyncio.shield(self._task)  # one who gives up takes nothing from the others

    def keep(self, answer: Shared) -> None:
        """Keep an answer that is known from elsewhere."""
        self._kept = (self._clock() + self._seconds, answer)

    async def _renew(self) -> Shared:
        try:
            answer = await self._ask()
            self.keep(answer)
            return answer
        finally:
            self._task = None


def _retrieve(task: asyncio.Task[Shared]) -> None:
    """Look at the error even when all who waited have left, or asyncio complains of it."""
    if not task.cancelled():
        task.exception()


# --- ollama_pack.webui.service ---
# What an event function keeps up in a process: its routes, and a task that looks again from time to time.
#
# Open WebUI tells events in one process only, and a function that is deleted is told nothing. So whoever
# answers a request first makes sure that the function is still on, and the task does so too. It also notices
# code and valves that were changed through another replica.

log_service = logging.getLogger(__name__)

SERVICES = "OLLAMA_PACK_SERVICES"  # on `app.state`: function id → the service that runs, also older code's
LOOK_SECONDS = 30.0  # between two looks; spread, so that replicas do not all look at once
SETTLE_SECONDS = 5.0  # Open WebUI tells of switching on before it has done so
ALIVE_SECONDS = 2.0  # a route of a function that was switched off elsewhere may answer so long
HAND_OVER = "system.startup.completed"


class ServedPlugin(Protocol):
    """The event function that is kept up."""

    valves: Any

    async def event(
        self, event: dict[str, Any], __event_name__: str, __app__: Any, __id__: str
    ) -> None:  # pragma: no cover - a form only
        """Take an event."""


class EventService:
    """Runs once per process and function, however often it is started."""

    def __init__(
        self,
        app: Any,
        function_id: str,
        plugin: ServedPlugin,
        look: Callable[[FunctionState], Awaitable[None]],
    ) -> None:
        """Start nothing yet.

        Args:
            app: Open WebUI's.
            function_id: the function's id, as the admin saved it.
            plugin: its instance.
            look: is called at every look, and after `wake`.
        """
        self._app = app
        self._id = function_id
        self._plugin = plugin
        self._look = look
        self._specs: tuple[RouteSpec, ...] | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._alive = SharedAnswer(self._is_on, ALIVE_SECONDS)

    def start(self, specs: tuple[RouteSpec, ...]) -> None:
        """Place the routes and begin to look, in place of older code of the same function."""
        services = _services(self._app)
        previous = services.get(self._id)
        if previous is not None and previous is not self:
            previous.stop()
        services[self._id] = self
        if self._specs != specs or previous is not self:
            self._specs = specs
            place_routes(self._app, self._id, tuple(map(self._guarded, specs)))
            self._alive.keep(True)  # noqa: FBT003 - the answer that is kept: it is just being switched on
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Take the routes away and look no more."""
        services = _services(self._app)
        if services.get(self._id) is self:
            del services[self._id]
            place_routes(self._app, self._id, ())
        self._specs = None
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    @property
    def runs(self) -> bool:
        """Whether it was started, and neither stopped nor replaced."""
        return _services(self._app).get(self._id) is self

    async def _run(self) -> None:
        await self._rest(SETTLE_SECONDS)
        while True:
            try:
                await self._look_once()
            except Exception:
                log_service.exception(
                    "%s could not look after its routes and models, and tries again", self._id
                )
            if not self.runs:
                return
            await self._rest(LOOK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, hides nothing

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    async def _look_once(self) -> None:
        state = await function_state(self._id)
        if not state.active:
            self.stop()
            return
        current = await live_function(self._app, self._id)
        if current is not self._plugin:  # its code was changed, through another replica perhaps
            await current.event(event={}, __event_name__=HAND_OVER, __app__=self._app, __id__=self._id)
            return
        self._alive.keep(True)  # noqa: FBT003 - the answer that is kept
        await self._look(state)

    async def _is_on(self) -> bool:
        return (await function_state(self._id)).active

    def _guarded(self, spec: RouteSpec) -> RouteSpec:
        async def answer(request: Any, user: Any) -> Any:
            # Deleting takes it out of this process's functions; the rest is known from the database.
            if self._id not in self._app.state.FUNCTIONS or not await self._alive.get():
                self.stop()
                raise not_found()
            return await spec.answer(request, user)

        return replace(spec, answer=answer)


def _services(app: Any) -> dict[str, Any]:
    if not hasattr(app.state, SERVICES):
        setattr(app.state, SERVICES, {})
    services: dict[str, Any] = getattr(app.state, SERVICES)
    return services


# --- ollama_pack.plugins.functions.ollama_pack_events ---

log = logging.getLogger(__name__)

LET_IN_SECONDS = 2.0  # a signed-out user may ask for the load for so long
LOAD_SECONDS = 1.0  # so long an answer is good for all who ask
# Events that may change which models there are, or for whom; the rest is found twice a minute.
TELLING = ("config.", "function.", "group.", "model.", "system.startup.")
OFF = frozenset({"function.disable_started", "system.shutdown.started"})
ON = "function.enable_started"


class Event:
    """Routes and published models, kept up in every process of Open WebUI."""

    class Valves(BaseModel):
        publish_aliases: bool = Field(
            default=True,
            description=(
                "Publish the router's models and aliases, and the alias filter's names, so that plain users "
                "and OpenAI clients can use them. Off: what was published is taken away."
            ),
        )
        audience: str = Field(
            default="public",
            description=(
                "Who may use what is published: public (every signed-in user), admin, or group:NAME; "
                "several with commas between them."
            ),
        )
        routes: bool = Field(
            default=True,
            description="Answer GET /api/system/load, and show admins the dashboard at /ollama-pack.",
        )

        @field_validator("audience")
        @classmethod
        def _known_audience(cls, text: str) -> str:
            parse_audience(text)  # an AudienceError reaches the admin as the valve's error
            return text

    def __init__(self) -> None:
        self.valves = self.Valves()
        self._service: EventService | None = None

    async def event(self, event: Mapping[str, Any], __event_name__: str, __app__: Any, __id__: str) -> None:
        """Begin at whichever event comes first, look again after a change, end when told."""
        try:
            about_us = (event.get("subject") or {}).get("id") == __id__
            if __event_name__ in OFF and (about_us or __event_name__.startswith("system.")):
                if self._service is not None:
                    self._service.stop()
                return
            self._service = self._service or self._served(__app__, __id__)
            self._service.start(self._specs)
            if __event_name__ != ON and __event_name__.startswith(TELLING):
                self._service.wake()
        except Exception:
            log.exception("%s could not take the event %r", __id__, __event_name__)

    def _served(self, app: Any, function_id: str) -> EventService:
        """What is kept up: made once the app is known."""
        self._router = RouterContact(app)
        self._publisher = Publisher(app, self._router)
        self._load = SharedAnswer(self._ask_load, LOAD_SECONDS)
        self._details = SharedAnswer(self._ask_details, LOAD_SECONDS)
        self._all_routes = (
            RouteSpec("GET", "/api/system/load", "user", self._system_load, remember=LET_IN_SECONDS),
            RouteSpec("GET", "/ollama-pack", "admin", self._page),
            RouteSpec("GET", "/ollama-pack/data", "admin", self._data),
        )
        return EventService(app, function_id, self, self._look)

    @property
    def _specs(self) -> tuple[RouteSpec, ...]:
        return self._all_routes if self.valves.routes else ()

    async def _look(self, state: FunctionState) -> None:
        """Look after everything: the valves may have been changed through another replica."""
        if self._service is not None:
            self._service.start(self._specs)
        publish = self.valves.publish_aliases
        await self._publisher.reconcile(self.valves.audience, state.owner, publish=publish)

    async def _system_load(self, _request: Any, user: Any) -> dict[str, Any]:
        return system_load(await self._load.get(), for_admin=user.role == "admin")

    async def _page(self, _request: Any, _user: Any) -> Any:
        nonce = token_urlsafe(16)
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
        )
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
        return html_page(dashboard_html(nonce), headers)

    async def _data(self, _request: Any, _user: Any) -> dict[str, Any]:
        valves = {"publish_aliases": self.valves.publish_aliases, "audience": self.valves.audience}
        return {**await self._details.get(), "publishing": self._publisher.last.as_dict() | valves}

    async def _ask_load(self) -> Mapping[str, Any]:
        try:
            return await self._router.load()
        except RouterUnavailableError:
            return EMPTY_LOAD

    async def _ask_details(self) -> Mapping[str, Any]:
        """What the dashboard shows of the router; of an older one, its load."""
        try:
            return {"fault": "", "router": await self._router.dashboard()}
        except RouterUnavailableError as error:
            return {"fault": str(error), "router": await self._load.get()}
