"""
title: Model aliases
author: Open WebUI Ollama Pack
author_url: https://open-webui-ollama-pack.example/open-webui-ollama-pack
description: Answers names such as gpt-4 with the local models that a table of aliases names for them.
license: MIT
required_open_webui_version: 0.11.2
version: 0.1.0
"""

# GENERATED from src/ollama_pack/plugins/functions/model_alias_filter.py by scripts/package.py: change that, not this.
#
# Begin here: `class Filter`, line 1924, which the server calls.
# The modules that it uses come first:
#     62  base.translations       The translations of all sentences. GENERATED from locale/ by scripts/package.py.
#    112  base.messages           Sentences for people, in English and in the languages of the catalogue.
#    240  errors                  The base of every error that the pack raises on purpose. Each part defines its own in its `errors.py`.
#    248  base.tables             Tables that admins write as text: a row a line, `#` starts a comment, empty lines are skipped.
#    279  aliases.errors          What goes wrong with aliases.
#    321  engines.body            Reading fields of a body that nobody has checked: a value of the right type, or a refusal by name.
#    332  engines.content         The parts of a message, in the one form that this pack works with, whatever a client calls them.
#    341  aliases.facts           What an alias table may ask about a request, read off an OpenAI chat body.
#    410  aliases.table           An alias table: rows of `alias = candidate, candidate [condition, …]`, read once and then only looked up.
#    796  engines.ollama.names    Model names as Ollama writes them: `[host/][namespace/]model[:tag]`, the tag `latest` if there is none.
#    938  fit.shapes              Shapes of models: from metadata and tensors, or from as little as a number of parameters.
#    984  fit.choose              Which variant of a model a node takes: the best one that fits, next to what it has in memory.
#   1005  aliases.resolve         Which model answers for a name: a pure function of the table, the request and the models that are there.
#   1123  engines.model_ids       Ids of models that clients can use: alias tables and addresses split at spaces, commas and the like.
#   1131  engines.refusals        What a client gets instead of an answer, in the form of each API that clients speak.
#   1208  services.answers        An answer as clients of OpenAI's API take it, and the one place that says which error they get.
#   1224  webui.models            What Open WebUI knows of models and of who may use them. Imports `open_webui` when called, not before.
#   1342  webui.users             Users of the running Open WebUI, their groups and their language. Imports `open_webui` when called.
#   1370  services.gateway_names  The names that people and clients of the gateway may ask for, and the model that each stands for.
#   1398  base.single_flight      What is asked, made or kept once: for all who ask at the same time, or for all plugins of a process.
#   1421  services.valves         What all valves of the pack have in common: what is refused is told to admins, without what was written.
#   1549  engines.front_route     A route in front of a server's own, which sees each answer of a chat before its client does.
#   1644  webui.leaving           When Open WebUI is told that a client has left: not while it reads its database.
#   1733  webui.early_errors      The status of an error that comes before an answer, which Open WebUI leaves no room for.

import asyncio
import logging
import math
import re
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property, lru_cache, partial
from graphlib import CycleError, TopologicalSorter
from http import HTTPStatus
from inspect import signature
from types import ModuleType
from typing import Any, Literal, Self, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

# --- ollama_pack.base.translations ---
# The translations of all sentences. GENERATED from locale/ by scripts/package.py.

TRANSLATIONS: dict[str, dict[str, str]] = {
    "zh-CN": {
        ", ": "、",
        ": ": "：",
        "; ": "；",
        "No model behind the alias {alias!r} can answer: {reasons}. An admin can install one (ollama pull {first}), grant access to it, or change the alias.": "别名 {alias!r} 背后没有可用的模型：{reasons}。管理员可以安装一个（ollama pull {first}）、授予使用权限，或修改别名。",
        "No model behind this name can be used. Choose another model, or ask an admin.": "该名称对应的模型均不可用。请选择其他模型，或联系管理员。",
        "Settings of {plugin} were refused: {reason}": "{plugin} 的设置未被接受：{reason}",
        "a model is missing: after `=` stand model names with commas between them": "缺少模型：`=` 之后是以逗号分隔的模型名称",
        "a model is named twice": "有一个模型重复出现",
        "a table has at most {limit} rows: use wildcards": "一张表最多 {limit} 行：请使用通配符",
        "aliases of aliases, {depth} deep: {limit} is the limit": "别名的别名有 {depth} 层：上限为 {limit} 层",
        "context>= needs a number of tokens, such as context>=8192 or context>=8k, not {value!r}": "context>= 需要 token 数，例如 context>=8192 或 context>=8k，而不是 {value!r}",
        "group= needs names of groups, such as group=staff or group=staff|teachers, not {value!r}": "group= 需要分组名称，例如 group=staff 或 group=staff|teachers，而不是 {value!r}",
        "is missing": "缺失",
        "is not known": "未知",
        "must be a list": "必须是列表",
        "must be a number": "必须是数字",
        "must be a whole number": "必须是整数",
        "must be at least {limit}": "不能小于 {limit}",
        "must be at most {limit}": "不能大于 {limit}",
        "must be one of {choices}": "必须是以下之一：{choices}",
        "must be text": "必须是文本",
        "must be true or false": "必须是 true 或 false",
        "no node can answer with {model} now": "目前没有节点能用 {model} 回答",
        "quant= needs levels, the preferred one first, such as quant=q8_0>q4_K_M, not {value!r}": "quant= 需要量化级别，首选在前，例如 quant=q8_0>q4_K_M，而不是 {value!r}",
        "quant=auto takes no other level next to it, as in {value!r}": "quant=auto 不能与其他级别一起使用，如 {value!r}",
        "row {line} ({row!r}): {reason}": "第 {line} 行（{row!r}）：{reason}",
        "row {line} already answers {alias!r} in the same case: put both rows' models into one row, in order of preference": "第 {line} 行已在相同条件下处理 {alias!r}：请将两行的模型按优先顺序合并为一行",
        "the alias before `=` is missing": "`=` 之前缺少别名",
        "the alias leads back to itself: {way}": "别名指回自身：{way}",
        "the star in {name!r} has no star in the alias to take its text from": "{name!r} 中的星号在别名中没有对应的星号",
        "unknown condition {written!r}: the known ones are {known}": "未知条件 {written!r}：已知条件有 {known}",
        "write it as `alias = model, model [condition, condition]`": "请写成 `alias = model, model [condition, condition]`",
        "you may not use {model}": "您无权使用 {model}",
        "{alias!r} is more than one name: give each alias a row of its own": "{alias!r} 不止一个名称：请为每个别名单独写一行",
        "{beginning!r}… has {count} characters, and a model id has at most {limit}": "{beginning!r}… 有 {count} 个字符，而模型 ID 最多 {limit} 个",
        "{condition!r} is the second condition of its kind: put both into one": "{condition!r} 是同类的第二个条件：请合并为一个",
        "{count} models are named, and at most {limit} are tried": "写了 {count} 个模型，而最多尝试 {limit} 个",
        "{model} is not installed": "未安装 {model}",
        "{name!r} has a space in it: separate models with commas, conditions go in [ ]": "{name!r} 中有空格：模型之间用逗号分隔，条件写在 [ ] 中",
        "{name!r} has an invisible character in it: type the name again": "{name!r} 中有不可见字符：请重新输入该名称",
        "{name!r} has two stars: one can stand for the text of the alias's first star": "{name!r} 有两个星号：只能用一个代表别名第一个星号的文本",
    },
}


# --- ollama_pack.base.messages ---
# Sentences for people, in English and in the languages of the catalogue.
#
# `message("Node {node} is down.", node="gpu1")` is a `str` that reads as English and can be shown in another
# language later, when it is known who reads it: `in_language(sentence, "zh-CN")`. `locale/*.po` has the
# translations; `scripts/messages.py` keeps them complete.

ENGLISH = "en"
_QUALITY = re.compile(r";\s*q=\s*([\d.]+)")


class Message(str):
    """A sentence in English, which knows what it was made of.

    Attributes:
        template: the English sentence with its placeholders: the key in the catalogue.
        values: what stands in them: messages and exceptions are translated as well.
    """

    __slots__ = ("template", "values")

    template: str
    values: Mapping[str, object]

    def __new__(cls, text: str, template: str = "", values: Mapping[str, object] | None = None) -> Self:
        made = super().__new__(cls, text)
        made.template = template or text
        made.values = values or {}
        return made

    def with_values(self, values: Mapping[str, object]) -> "Message":
        """The same sentence with other values in some places."""
        merged = {**self.values, **values}
        return Message(_filled(self.template, merged, ENGLISH), self.template, merged)

    def translated(self, language: str) -> str:
        """The sentence in a language, for code of another plugin: each has only the words of its own."""
        return in_language(self, language)


def message(template: str, /, **values: object) -> Message:
    """A sentence for people. Write the template as a literal: the catalogue is made of what the source says.

    Args:
        template: whole sentences in English; placeholders are those of `str.format`.
        values: one for each placeholder.
    """
    return Message(_filled(template, values, ENGLISH), template, values)


def joined(parts: Iterable[object], separator: str = " · ") -> Message:
    """A line made of parts, such as `gpt-4 → llama3:8b · on gpu1`: each part is translated by itself.

    Args:
        parts: messages, exceptions or other values; the empty ones are left out.
        separator: stands between them; a message is translated, too.
    """
    kept = [part for part in parts if part not in ("", None)]
    names = [f"part{number}" for number in range(len(kept))]
    template = "{between}".join(f"{{{name}}}" for name in names)
    return message(template, **dict(zip(names, kept, strict=True)), between=separator)


def in_language(thing: object, language: str) -> str:
    """A sentence in a reader's language; in English where the catalogue lacks it.

    Args:
        thing: a message, an exception that was raised with one, or any other text.
        language: as `known_language` reads it.
    """
    if isinstance(thing, BaseException):
        thing = said_by(thing)
    known = known_language(language)
    table = TRANSLATIONS.get(known, {})
    if not isinstance(thing, Message):
        return table.get(str(thing), str(thing))
    if known == ENGLISH:
        return str(thing)
    if not thing.values and thing.template == str(thing):  # any text: braces in it are no placeholders
        return table.get(thing.template, str(thing))
    try:
        return _filled(table.get(thing.template, thing.template), thing.values, known)
    except Exception:  # noqa: BLE001 - a value that cannot be shown again: never break what reports an error
        return str(thing)


def said_by(error: BaseException) -> Message:
    """What an error says: the message that it was raised with, or that is its `message`; else its text."""
    for found in (getattr(error, "message", None), *error.args[:1]):
        if isinstance(found, Message):
            return found
    return Message(str(error))


@lru_cache(maxsize=64)  # asked for each sentence of a page
def known_language(wanted: str) -> str:
    """The best language of the catalogue for what a reader asks for; `en` where there is none.

    Args:
        wanted: a tag such as `zh-CN` or `zh_CN.UTF-8`, or the value of an `Accept-Language` header.
    """
    for tag in _by_preference(wanted):
        primary = re.split(r"[-_.@]", tag.lower())[0]
        if primary in {ENGLISH, "c", "posix"}:
            break
        if found := next((known for known in TRANSLATIONS if known.split("-")[0] == primary), None):
            return found
    return ENGLISH


def _by_preference(wanted: str) -> list[str]:
    weighted = []
    for part in re.split("[,:]", wanted):
        found = _QUALITY.search(part)
        quality = float(found[1]) if found and found[1].replace(".", "", 1).isdigit() else 1.0
        if quality > 0 and (tag := part.partition(";")[0].strip()):
            weighted.append((-quality, tag))
    return [tag for _, tag in sorted(weighted, key=lambda one: one[0])]


def _filled(template: str, values: Mapping[str, object], language: str) -> str:
    shown = {
        name: in_language(value, language) if isinstance(value, str | BaseException) else value
        for name, value in values.items()
    }
    return template.format_map(shown)


# --- ollama_pack.errors ---
# The base of every error that the pack raises on purpose. Each part defines its own in its `errors.py`.


class PackError(Exception):
    """Base of the family: catch this to catch whatever the pack raises on purpose."""


# --- ollama_pack.base.tables ---
# Tables that admins write as text: a row a line, `#` starts a comment, empty lines are skipped.

_COMMENT = re.compile(r"(?:^|\s)[#＃].*")  # noqa: RUF001 - as a Chinese keyboard types it, too


class TableError(PackError, ValueError):
    """A row of a table cannot be used.

    A `ValueError` too, so that a pydantic validator reports it when an admin saves the valve.

    Attributes:
        line: number of the row in the text, from 1.
        row: the row as it was written, without secrets.
        reason: what is wrong with it and what to do.
    """

    def __init__(self, line: int, row: str, reason: str) -> None:
        super().__init__(message("row {line} ({row!r}): {reason}", line=line, row=row, reason=reason))
        self.line = line
        self.row = row
        self.reason = reason


def table_rows(text: str) -> Iterator[tuple[int, str]]:
    """The rows of a table as they are written, each with its line's number from 1."""
    for line, raw in enumerate(text.splitlines(), start=1):
        if written := _COMMENT.sub("", raw).strip():
            yield line, written


# --- ollama_pack.aliases.errors ---
# What goes wrong with aliases.

NOT_INSTALLED = "is not installed"
NOT_PERMITTED = "is not granted to this user"


def why_not(model: str, reason: str) -> Message:
    """Why a model that the table prefers does not answer: `mixtral:8x7b is not installed`."""
    if reason == NOT_INSTALLED:
        return message("{model} is not installed", model=model)
    if reason == NOT_PERMITTED:
        return message("you may not use {model}", model=model)
    return message("no node can answer with {model} now", model=model)


class AliasTableError(TableError):
    """A row of an alias table cannot be used."""


class AliasUnavailableError(PackError):
    """An alias matched, but none of its models can answer this user.

    Attributes:
        alias: the name that was asked for.
        passed_over: each model that was considered, with the reason against it.
    """

    def __init__(self, alias: str, passed_over: tuple[tuple[str, str], ...]) -> None:
        super().__init__(
            message(
                "No model behind the alias {alias!r} can answer: {reasons}. An admin can install one (ollama "
                "pull {first}), grant access to it, or change the alias.",
                alias=alias,
                reasons=joined((why_not(model, reason) for model, reason in passed_over), message(", ")),
                first=passed_over[0][0],
            )
        )
        self.alias = alias
        self.passed_over = passed_over


# --- ollama_pack.engines.body ---
# Reading fields of a body that nobody has checked: a value of the right type, or a refusal by name.


def object_at(value: object, *path: str) -> Mapping[str, Any]:
    """The object that a path of fields leads to; an empty one where there is something else."""
    for field in path:
        value = value.get(field) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


# --- ollama_pack.engines.content ---
# The parts of a message, in the one form that this pack works with, whatever a client calls them.
#
# OpenAI's chat and Responses APIs, Anthropic's API and LangChain each have their own names for text and images.
# Clients also send back what another model thought, or marks for a provider's cache: no model reads those.

IMAGE_PARTS = frozenset({"image_url", "input_image", "image"})


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
    tools = _items(body.get("tools"))
    text = sum(map(_text_bytes, messages)) + sum(map(_bytes_of, tools))
    return RequestFacts(
        model=model,
        images=images > 0,
        tools=bool(tools or _items(body.get("tool_ids"))),
        tokens=math.ceil(text / BYTES_PER_TOKEN) + images * TOKENS_PER_IMAGE,
        groups=frozenset(groups),
    )


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in _items(value) if isinstance(item, Mapping)]


def _count_images(message: Mapping[str, Any]) -> int:
    inline = sum(1 for part in _mappings(message.get("content")) if part.get("type") in IMAGE_PARTS)
    return inline + len(_items(message.get("images")))


def _text_bytes(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    texts = [content, *(part.get("text") for part in _mappings(content))]
    # What an agent writes stands in its calls.
    calls = [object_at(call, "function").get("arguments") or "" for call in _items(message.get("tool_calls"))]
    return sum(_bytes_of(text) for text in texts if isinstance(text, str)) + sum(map(_bytes_of, calls))


def _bytes_of(value: object) -> int:
    """The bytes of a text; of something else, about those that it is written with."""
    return len(str(value).encode(errors="replace"))


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
# What a Chinese keyboard types where these tables have punctuation of ASCII.
_WIDE = str.maketrans("，、＝：＊＞｜", ",,=:*>|")  # noqa: RUF001 - on purpose
_OPENINGS, _CLOSINGS = "［【", "］】"  # noqa: RUF001
_PARTS = re.compile(rf"([=＝\[{_OPENINGS}])")  # noqa: RUF001 - before them the alias, the models, the conditions
_CONDITION = re.compile(r"(?P<key>[^<>=]*)(?P<relation>>?=|)(?P<value>.*)")
_TOKENS = re.compile(r"(?P<count>[0-9]{1,9})\s*(?P<kilo>[kK]?)")
_LEVEL = re.compile(r"[\w.-]+")
_KILO = 1024
AUTO = "auto"
_KNOWN_CONDITIONS = "vision, tools, context>=N, group=NAME|NAME, quant=LEVEL>LEVEL, quant=auto"


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
        quantizations: preferred levels among the installed variants of a candidate; `auto` alone: the best
            that fits each node.
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
    def is_automatic(self) -> bool:
        """Whether each node takes the best quantization that fits there."""
        return self.quantizations == (AUTO,)

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
    for line, written in table_rows(text):
        try:
            rows.append(_parse_row(line, written))
        except ValueError as fault:
            raise AliasTableError(line, written, said_by(fault)) from None
        if len(rows) > MAX_ROWS:
            reason = message("a table has at most {limit} rows: use wildcards", limit=MAX_ROWS)
            raise AliasTableError(line, written, reason)
    return AliasTable(tuple(rows))


def _parse_row(line: int, written: str) -> AliasRow:
    """Read a row; here and below a ValueError says what is wrong with it."""
    found = _ROW.fullmatch(_with_ascii_punctuation(written))
    if found is None:
        raise ValueError(message("write it as `alias = model, model [condition, condition]`"))
    alias = found["alias"].strip()
    candidates = tuple(name.strip() for name in found["candidates"].split(","))
    _check_alias(alias)
    _check_candidates(candidates, alias)
    return AliasRow(alias, candidates, line=line, **_conditions(found["conditions"] or ""))


def _with_ascii_punctuation(written: str) -> str:
    """The row as it is meant where a Chinese keyboard has typed it: `模型＝llama3【vision】`.

    Names with letters beyond ASCII stay as they are: models and groups may be called 助手【内部】.
    """  # noqa: RUF002 - on purpose
    before, *others = _PARTS.split(written, maxsplit=2)
    made = _narrowed(before)
    for sign, part in zip(others[::2], others[1::2], strict=True):
        if sign in _OPENINGS and not _narrowed(before).isascii():
            made += sign + part
        elif sign in "=＝":  # noqa: RUF001
            made += "=" + _narrowed(part)
        else:
            made += "[" + (f"{_narrowed(part[:-1])}]" if part[-1:] in tuple(_CLOSINGS) else _narrowed(part))
        before = part
    return made


def _narrowed(text: str) -> str:
    narrow = text.translate(_WIDE)
    return narrow if narrow.isascii() else text


def _conditions(written: str) -> dict[str, Any]:
    """The fields of a row that its conditions set."""
    fields: dict[str, Any] = {}
    for condition in filter(None, map(str.strip, written.split(","))):
        name, value = _condition(condition)
        if name in fields:
            raise ValueError(
                message(
                    "{condition!r} is the second condition of its kind: put both into one",
                    condition=condition,
                )
            )
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
        case "quant" | "quantization", "=", _:
            return "quantizations", _levels(value)
    raise ValueError(
        message(
            "unknown condition {written!r}: the known ones are {known}",
            written=written,
            known=_KNOWN_CONDITIONS,
        )
    )


def _tokens(value: str) -> int:
    if found := _TOKENS.fullmatch(value):
        return int(found["count"]) * (_KILO if found["kilo"] else 1)
    raise ValueError(
        message(
            "context>= needs a number of tokens, such as context>=8192 or context>=8k, not {value!r}",
            value=value,
        )
    )


def _groups(value: str) -> list[str]:
    groups = [name.strip() for name in value.split("|")]
    if all(groups):
        return groups
    raise ValueError(
        message(
            "group= needs names of groups, such as group=staff or group=staff|teachers, not {value!r}",
            value=value,
        )
    )


def _levels(value: str) -> tuple[str, ...]:
    levels = tuple(level.strip() for level in value.split(">"))
    if len(levels) > 1 and AUTO in map(str.lower, levels):
        raise ValueError(message("quant=auto takes no other level next to it, as in {value!r}", value=value))
    if all(map(_LEVEL.fullmatch, levels)):
        return (AUTO,) if levels[0].lower() == AUTO else levels
    raise ValueError(
        message(
            "quant= needs levels, the preferred one first, such as quant=q8_0>q4_K_M, not {value!r}",
            value=value,
        )
    )


def _check_alias(alias: str) -> None:
    if not alias:
        raise ValueError(message("the alias before `=` is missing"))
    if re.search(r"[\s,]", alias):
        raise ValueError(
            message("{alias!r} is more than one name: give each alias a row of its own", alias=alias)
        )
    _check_name(alias)


def _check_candidates(candidates: tuple[str, ...], alias: str) -> None:
    for name in candidates:
        if not name:
            raise ValueError(
                message("a model is missing: after `=` stand model names with commas between them")
            )
        if len(name.split()) > 1:
            raise ValueError(
                message(
                    "{name!r} has a space in it: separate models with commas, conditions go in [ ]", name=name
                )
            )
        if "*" in name and "*" not in alias:
            raise ValueError(
                message("the star in {name!r} has no star in the alias to take its text from", name=name)
            )
        if name.count("*") > 1:
            raise ValueError(
                message(
                    "{name!r} has two stars: one can stand for the text of the alias's first star", name=name
                )
            )
        _check_name(name)
    if len(candidates) > MAX_CANDIDATES:
        raise ValueError(
            message(
                "{count} models are named, and at most {limit} are tried",
                count=len(candidates),
                limit=MAX_CANDIDATES,
            )
        )
    if len(set(candidates)) < len(candidates):
        raise ValueError(message("a model is named twice"))


def _check_name(name: str) -> None:
    if not name.isprintable():  # comes with text that is copied from a web page
        raise ValueError(message("{name!r} has an invisible character in it: type the name again", name=name))
    if len(name) > MAX_NAME_LENGTH:
        raise ValueError(
            message(
                "{beginning!r}… has {count} characters, and a model id has at most {limit}",
                beginning=name[:40],
                count=len(name),
                limit=MAX_NAME_LENGTH,
            )
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
                message(
                    "row {line} already answers {alias!r} in the same case: put both rows' models into "
                    "one row, in order of preference",
                    line=seen[case].line,
                    alias=row.alias,
                ),
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
        reason = message("the alias leads back to itself: {way}", way=" → ".join(way))
        raise AliasTableError(row.line, row.text, reason) from error
    depth = dict.fromkeys(order, 0)
    for alias in order:
        depth[alias] = max((depth[name] + 1 for name in leads_to.get(alias, ())), default=0)
    for row in exact:
        if depth[row.alias] > MAX_CHAIN:
            reason = message(
                "aliases of aliases, {depth} deep: {limit} is the limit",
                depth=depth[row.alias],
                limit=MAX_CHAIN,
            )
            raise AliasTableError(row.line, row.text, reason)


# --- ollama_pack.engines.ollama.names ---
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


def level_of(reported: str, name: str) -> str:
    """The quantization level of a model: as its node reports it, else as its tag ends; empty: unknown."""
    return _level(reported) or quantization_in(name)


def find_variant(
    name: str,
    levels: Iterable[str],
    models: Mapping[str, str],
    denied: AbstractSet[str] = frozenset(),
    families: Families | None = None,
) -> str | None:
    """The model that is `name` in the first of the preferred quantization levels that `models` has.

    Among several of one level, `name` itself comes first, then the others by the alphabet.

    Args:
        name: the model as the alias table names it.
        levels: quantization levels, the preferred one first; upper and lower case are the same.
        models: model id → its quantization level, empty where unknown (then the tag tells).
        denied: ids that are not to be chosen.
        families: those of the models, when several names are looked up.
    """
    by_level: dict[str, str] = {}
    for model, level in variants_of(name, models, denied, families).items():
        by_level.setdefault(level, model)
    return next((by_level[level] for level in map(_level, levels) if level in by_level), None)


def variants_of(
    name: str,
    models: Mapping[str, str],
    denied: AbstractSet[str] = frozenset(),
    families: Families | None = None,
) -> dict[str, str]:
    """The models that are variants of `name`, and the quantization level of each; empty: unknown.

    `llama3:8b` stands for `llama3:8b` itself and for every tag that continues it, such as
    `llama3:8b-instruct-q8_0`; a name without a tag stands for all tags of the model.

    Args:
        name: as in `find_variant`, as are the others.
        models: of these.
        denied: without these.
        families: of the models.
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
    # Only these levels are looked up: `models` may be far away.
    return {model: level_of(models.get(model, ""), model) for model in variants}


def _level(written: str) -> str:
    """A quantization level in the form in which levels are compared; empty when it tells nothing."""
    level = written.upper()
    return _OTHER_WORDS.get(level, level)


# --- ollama_pack.fit.shapes ---
# Shapes of models: from metadata and tensors, or from as little as a number of parameters.

# Bits of a weight, the usual mix of tensor types included, by what a tag or `/api/tags` calls it. Of others,
# such as IQ4_NL, Q4_K_XL or INT8, the number tells.
LEVEL_BITS: dict[str, float] = {
    "F32": 32.0,
    "F16": 16.0,
    "BF16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.6,
    "Q5_K_M": 5.7,
    "Q5_1": 6.0,
    "Q5_K_S": 5.5,
    "Q5_0": 5.5,
    "Q4_K_M": 4.84,
    "Q4_1": 5.0,
    "Q4_K_S": 4.6,
    "Q4_0": 4.6,
    "IQ4_XS": 4.3,
    "MXFP4": 4.3,
    "NVFP4": 4.5,
    "Q3_K_L": 4.3,
    "Q3_K_M": 3.91,
    "Q3_K_S": 3.5,
    "IQ3_XXS": 3.1,
    "Q2_K": 2.6,
    "IQ2_XS": 2.4,
    "IQ2_XXS": 2.1,
    "IQ1_S": 1.6,
}

_LEVEL_NUMBER = re.compile(r"(?:UD-)?(?:I?Q|TQ|INT|FP|MXFP|NVFP)(\d)")
_OTHER_LEVELS = {"FP16": "F16", "FP32": "F32"}


def level_bits(level: str) -> float:
    """Bits of a weight in a quantization level; 0: it is not known."""
    name = level.upper()
    known = LEVEL_BITS.get(_OTHER_LEVELS.get(name, name))
    if known is not None:
        return known
    found = _LEVEL_NUMBER.match(name)
    return int(found[1]) + 0.5 if found else 0.0


# --- ollama_pack.fit.choose ---
# Which variant of a model a node takes: the best one that fits, next to what it has in memory.

LOSSLESS_BITS = 8.5  # with more, answers are no better and take longer


def quality_order(names: Sequence[str], levels: Sequence[str]) -> list[str]:
    """Variants with the best first: 8 bits, then more, which is only slower, then fewer.

    Args:
        names: of the variants.
        levels: the quantization level of each; empty: unknown, and last.
    """
    by_name = dict(zip(names, map(level_bits, levels), strict=True))
    return sorted(by_name, key=lambda name: _rank(by_name[name]), reverse=True)


def _rank(bits: float) -> float:
    return min(bits, LOSSLESS_BITS) - (0.001 * bits if bits > LOSSLESS_BITS else 0.0)


# --- ollama_pack.aliases.resolve ---
# Which model answers for a name: a pure function of the table, the request and the models that are there.


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
        """One line for the user: `gpt-4 → llama3:70b`."""
        return f"{self.alias} → {self.model}"

    @property
    def why(self) -> Message:
        """Why no other model answers; empty: it is the first choice."""
        return joined(why_not(model, reason) for model, reason in self.passed_over)


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
    if row.is_automatic:  # nobody knows here what fits: the model itself, or the variant with fewest bits
        there = automatic_variants(name, models, denied, families)
        exact = find_model(name, models, families)
        return exact if exact in there else there[-1] if there else None
    variant = find_variant(name, row.quantizations, models, denied, families) if row.quantizations else None
    return variant or find_model(name, models, families)


def automatic_variants(
    name: str,
    models: Mapping[str, str],
    denied: AbstractSet[str] = frozenset(),
    families: Families | None = None,
) -> list[str]:
    """The variants of a candidate, the best first: a router lets each node take the one that fits there."""
    variants = variants_of(name, models, denied, families)
    return quality_order(list(variants), list(variants.values()))


# --- ollama_pack.engines.model_ids ---
# Ids of models that clients can use: alias tables and addresses split at spaces, commas and the like.
#
# Those that `gpu_router` answers begin with its name, on Open WebUI and on the Pipelines server.

ROUTER = "gpu_router."


# --- ollama_pack.engines.refusals ---
# What a client gets instead of an answer, in the form of each API that clients speak.

ApiForm = Literal["openai", "anthropic", "ollama"]

# Anthropic names an error by its status; others are `api_error`.
_ANTHROPIC_TYPES: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as a client gets it.

    Attributes:
        status: of HTTP, where the answer has not begun.
        message: the sentence for whoever asked.
        code: a word that programs can act on; None: none.
        param: the field of the request that is at fault; None: none.
        retry_after: seconds after which a new try makes sense; None: waiting does not help.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None

    def translated(self, language: str) -> "Refusal":
        """The same in a reader's language. Another plugin's sentence translates itself: it has the words."""
        by_itself = getattr(self.message, "translated", None)
        return replace(self, message=by_itself(language)) if by_itself else self

    @property
    def kind(self) -> str:
        """OpenAI's name for errors of this kind."""
        if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return "server_error"
        is_limit = self.status == HTTPStatus.TOO_MANY_REQUESTS
        return "rate_limit_error" if is_limit else "invalid_request_error"

    @property
    def headers(self) -> dict[str, str]:
        """Of the HTTP response."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def body(self, form: ApiForm = "openai") -> dict[str, Any]:
        """The body of the HTTP response; OpenAI's is also the event that ends a stream."""
        if form == "ollama":
            return {"error": self.message}
        if form == "anthropic":
            kind = _ANTHROPIC_TYPES.get(self.status) or (
                "api_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
            )
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        # Open WebUI's page looks for the sentence in `detail`; a stream has no place for status and headers
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
                "status": int(self.status),
                "retry_after": self.retry_after,
                "detail": self.message,
            }
        }


# --- ollama_pack.services.answers ---
# An answer as clients of OpenAI's API take it, and the one place that says which error they get.

_NO_ALIAS = message("No model behind this name can be used. Choose another model, or ask an admin.")

_Meaning = tuple[int, str | None, Message]  # status, code, sentence for people who cannot change the nodes
_NO_CANDIDATE: _Meaning = (HTTPStatus.NOT_FOUND, "model_not_found", _NO_ALIAS)


def alias_refusal(error: AliasUnavailableError, *, for_admin: bool) -> Refusal:
    """As `refusal_of`, for a plugin that raises no other error and should not ship the router's."""
    status, code, sentence = _NO_CANDIDATE
    said = said_by(error) if for_admin else sentence
    return Refusal(status=status, message=said, code=code, param="model")


# --- ollama_pack.webui.models ---
# What Open WebUI knows of models and of who may use them. Imports `open_webui` when called, not before.


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
    """Take Open WebUI's own tools out of a request, and leave those that the user or the client chose.

    What is no list of tools is left for whoever reads them to refuse.
    """
    known = metadata.get("tools") or {}
    offered = body.get("tools") or []
    if not (isinstance(offered, list) and all(isinstance(tool, Mapping) for tool in offered)):
        return
    body.pop("tools", None)
    chosen = [tool for tool in offered if known.get(_tool_name(tool), {}).get("type") != "builtin"]
    if chosen:
        body["tools"] = chosen


def _tool_name(tool: Mapping[str, Any]) -> str:
    return str(object_at(tool, "function").get("name"))


def reads_all(user: Mapping[str, Any]) -> bool:
    """Whether Open WebUI checks no grants for this user, as its switches BYPASS_… say."""
    from open_webui.env import BYPASS_MODEL_ACCESS_CONTROL  # noqa: PLC0415 - see the top of this module

    if BYPASS_MODEL_ACCESS_CONTROL:
        return True
    config = sys.modules.get(
        "open_webui.config"
    )  # as the server has it: importing it would open its database
    return user.get("role") == "admin" and bool(getattr(config, "BYPASS_ADMIN_ACCESS_CONTROL", True))


async def may_use(user: Mapping[str, Any], model_id: str, request: Any) -> bool:
    """Whether Open WebUI will let this user chat with a model that exists: its own rule, asked in advance."""
    if reads_all(user):
        return True

    from open_webui.models.users import UserModel  # noqa: PLC0415 - see the top of this module
    from open_webui.utils.models import check_model_access  # noqa: PLC0415

    try:
        await check_model_access(UserModel.model_validate(user), request.app.state.MODELS[model_id])
    except Exception as error:  # a refusal there is a bare Exception with this one text
        if str(error) == "Model not found":
            return False
        raise
    return True


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


# --- ollama_pack.webui.users ---
# Users of the running Open WebUI, their groups and their language. Imports `open_webui` when called.


async def group_names(user: Mapping[str, Any]) -> frozenset[str]:
    """Names of the groups that a user is a member of, inherited ones included."""
    return frozenset(group.name for group in await _groups_of(user))


async def _groups_of(user: Mapping[str, Any]) -> Any:
    from open_webui.models.groups import Groups  # noqa: PLC0415 - see the top of this module

    look_up = Groups.get_groups_by_member_id
    inherits = "include_inherited" in signature(look_up).parameters  # groups within groups came after 0.11.2
    return await (look_up(user["id"], include_inherited=True) if inherits else look_up(user["id"]))


def reader_language(metadata: Mapping[str, Any], request: Any) -> str:
    """What the user has chosen in Open WebUI's settings; of a client of the API, what its request accepts."""
    chosen = (metadata.get("variables") or {}).get("{{USER_LANGUAGE}}")
    return str(chosen or accepted_language(request))


def accepted_language(request: Any) -> str:
    """A request's `Accept-Language`."""
    return str(request.headers.get("accept-language") or ENGLISH) if request else ENGLISH


# --- ollama_pack.services.gateway_names ---
# The names that people and clients of the gateway may ask for, and the model that each stands for.
#
# A name with a row of its own, or that a connection offers, is Open WebUI's: its grants hold. Every other name
# of the alias tables, wildcards among them, is for those who may use a model that answers for it.


async def choose_model(
    table: AliasTable, body: Mapping[str, Any], alias: str, user: Mapping[str, Any], request: Any
) -> tuple[Resolution, str] | None:
    """The model that answers for an alias: the first that is there and that Open WebUI lets this user use.

    Returns:
        The resolution and the id of its model: where `gpu_router` offers it, too, it answers over all nodes.
    """
    if next(table.matching(alias), None) is None:
        return None  # most requests: no alias, so nothing to find out
    facts = request_facts(body, alias, await group_names(user) if table.uses_groups else ())
    models = catalogue(request)
    denied: set[str] = set()
    while chosen := resolve(table, facts, models, denied):
        for model_id in models.ids_of(chosen.model):
            if await may_use(user, model_id, request):
                return chosen, model_id
        denied.add(chosen.model)
    return None


# --- ollama_pack.base.single_flight ---
# What is asked, made or kept once: for all who ask at the same time, or for all plugins of a process.

_Shared = TypeVar("_Shared")

_PLACE = "_ollama_pack_speech_state"  # never a module that can be imported


def process_wide(name: str, make: Callable[[], _Shared]) -> _Shared:
    """The one object of that name in this process, for all plugins, which are files that share no code.

    Only objects of the standard library and of faster_whisper may be kept, because a plugin that is updated
    while the server runs leaves objects of its older classes behind.

    Args:
        name: of the object.
        make: makes it; may be called once too often, when two threads are the first together.
    """
    state = sys.modules.setdefault(_PLACE, ModuleType(_PLACE))
    kept: _Shared = vars(state).setdefault(name, make())
    return kept


# --- ollama_pack.services.valves ---
# What all valves of the pack have in common: what is refused is told to admins, without what was written.
#
# Open WebUI's page only shows that there was an error. What a process has refused is kept in it for an hour, as
# plain values: each plugin has a copy of this code.

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


# --- ollama_pack.engines.front_route ---
# A route in front of a server's own, which sees each answer of a chat before its client does.
#
# Both Open WebUI and the Pipelines server send the status 200 of a stream before they ask a plugin. Whoever
# holds the first bytes back can send an error with its status in their place.
#
# starlette, which comes with both servers, is imported when it is needed.

AsgiMessage = dict[str, Any]
AsgiScope = Mapping[str, Any]
AsgiReceive = Callable[[], Awaitable[AsgiMessage]]
AsgiSend = Callable[[AsgiMessage], Awaitable[None]]
# Answers a chat: calls the server's own route, which is the last argument, with a `receive` and a `send`.
Around = Callable[
    [AsgiScope, AsgiReceive, AsgiSend, Callable[[AsgiReceive, AsgiSend], Awaitable[None]]], Awaitable[None]
]


def put_in_front(app: Any, name: str, paths: Iterable[str], around: Around) -> None:
    """Put routes in front of all others, in place of those of this name.

    Args:
        app: the server's FastAPI application.
        name: of the routes.
        paths: where chats are posted to. Each has a route of its own: traces name a chat by its route's path.
        around: called for each chat.
    """
    routes = app.router.routes
    front = [_front_route(app, name, path, around) for path in paths]
    # in one step: requests look at this very list
    routes[:] = [*front, *(route for route in routes if getattr(route, "name", "") != name)]


def _front_route(app: Any, route_name: str, chat_path: str, around: Around) -> Any:
    from starlette.routing import BaseRoute, Match  # noqa: PLC0415 - it comes with the server

    class FrontRoute(BaseRoute):
        """Hands a chat on to the route behind this one."""

        name = route_name
        path = chat_path

        def matches(self, scope: Any) -> tuple[Any, AsgiMessage]:
            is_ours = scope["type"] == "http" and scope["method"] == "POST" and path_of(scope) == chat_path
            return (Match.FULL if is_ours and self._behind(scope) else Match.NONE), {}

        async def handle(self, scope: Any, receive: Any, send: Any) -> None:
            found = self._behind(scope)
            if found is not None:
                route, child = found
                scope.update(child)
                await around(scope, receive, send, partial(route.handle, scope))

        def _behind(self, scope: Any) -> tuple[Any, AsgiMessage] | None:
            for route in app.router.routes:
                if route is not self:
                    match, child = route.matches(scope)
                    if match == Match.FULL:
                        return route, child
            return None

    return FrontRoute()


def path_of(scope: AsgiScope) -> str:
    """The path of a request, as the application's routes have it."""
    return str(scope["path"]).removeprefix(str(scope.get("root_path") or ""))


def refusal_messages(refusal: Refusal, form: ApiForm) -> tuple[AsgiMessage, AsgiMessage]:
    """A refusal as the whole HTTP response."""
    content = orjson.dumps(refusal.body(form))
    headers = {
        "content-type": "application/json",
        "content-length": str(len(content)),
        **{name.lower(): value for name, value in refusal.headers.items()},
    }
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return (
        {"type": "http.response.start", "status": refusal.status, "headers": raw},
        {"type": "http.response.body", "body": content},
    )


async def send_start(send: AsgiSend, start: AsgiMessage) -> None:
    """Send the start of an answer, also while its request is being cancelled: its client may have left.

    A middleware that waits for the start would take its absence for a fault of the server.
    """
    from anyio import CancelScope  # noqa: PLC0415 - it comes with the server

    with CancelScope(shield=True):
        await send(start)


# --- ollama_pack.webui.leaving ---
# When Open WebUI is told that a client has left: not while it reads its database.
#
# Whoever is told stops the answer at once. Open WebUI reads its database before the first word and after the
# last. When 0.11.2 is stopped there, that connection to the database answers nobody ever again, and its thread
# and files stay. So the leaving is told before an answer begins, or while it waits for its model.

_WORD = re.compile(rb'"(?:choices|content_block|done)"')
# Behind it come figures, the mark of the end, and the filters that Open WebUI calls after an answer.
_LAST_WORD = re.compile(
    rb'^data: ?\[DONE\]|"finish_reason": ?"|"type": ?"message_(?:delta|stop)"|"done": ?true', re.MULTILINE
)
BEGIN_SECONDS = 2.0  # for reads before an answer. One that takes longer waits for its model
END_SECONDS = 60.0  # for filters after an answer. One that takes longer is cancelled, as it was before
_STEPS = 3  # of the event loop, in which an answer that shall stop is stopped


class Stage(IntEnum):
    """How far an answer is."""

    NONE = 0
    WORDS = 1
    LAST_WORD = 2
    ENDED = 3


class Leaving:
    """The way of one request and its answer, on which the client's leaving is told when it does no harm."""

    def __init__(self) -> None:
        """Nothing has come yet."""
        self._is_whole = False  # the request
        self._stage = Stage.NONE
        self._changed = asyncio.Event()
        self._left_at: float | None = None

    @property
    def before_the_end(self) -> bool:
        """Whether the client has left before all of its answer was sent."""
        return self._left_at is not None

    async def receive(self, receive: AsgiReceive) -> AsgiMessage:
        """What the client sends."""
        message = await receive()
        if message["type"] == "http.request":
            self._is_whole = not message.get("more_body")
        elif message["type"] == "http.disconnect" and self._is_whole and self._stage != Stage.ENDED:
            left_at = self._left_at = time.monotonic() if self._left_at is None else self._left_at
            await self._while_at(Stage.NONE, left_at + BEGIN_SECONDS)
            await self._while_at(Stage.LAST_WORD, left_at + END_SECONDS)
        return message

    async def send(self, send: AsgiSend, message: AsgiMessage) -> None:
        """What the server sends. Where the client has left before that began, the answer stops here."""
        if message["type"] == "http.response.body":
            self._enter(_stage_of(message))
        await send(message)
        if message["type"] == "http.response.start" and self._left_at is not None:
            self._enter(Stage.WORDS)  # of which there need be none: nothing has been read for them yet
            for _ in range(_STEPS):
                await asyncio.sleep(0)

    def end(self) -> None:
        """The server sends no more."""
        self._enter(Stage.ENDED)

    async def _while_at(self, stage: Stage, until: float) -> None:
        while self._stage == stage and (rest := until - time.monotonic()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._changed.wait()

    def _enter(self, stage: Stage) -> None:
        if stage > self._stage:
            self._stage = stage
            self._changed.set()
            self._changed = asyncio.Event()


def _stage_of(message: AsgiMessage) -> Stage:
    """How far an answer is that sends this part of its body."""
    if not message.get("more_body"):
        return Stage.ENDED
    body = bytes(message.get("body") or b"")
    if _LAST_WORD.search(body):
        return Stage.LAST_WORD
    return Stage.WORDS if _WORD.search(body) else Stage.NONE


# --- ollama_pack.webui.early_errors ---
# The status of an error that comes before an answer, which Open WebUI leaves no room for.
#
# Open WebUI sends the status 200 of a stream before it asks a pipe, makes 400 of whatever a filter raises, and
# an empty message of a pipe's error where the client speaks Anthropic's API. So a route stands in front of its
# own: it holds the first bytes of an answer back until they are the answer's, and sends the error in their
# place where a plugin has noted one on the request. Open WebUI does the same with its own connections: it waits
# for the engine's status before it sends one.
#
# Notes are plain values, as each plugin has a copy of this code. Imports Open WebUI when called, not before.

ROUTE_NAME = "ollama_pack:early errors"
REFUSAL_NOTE = "ollama_pack_refusal"  # key in the state of a request
OUTCOME_NOTE = "ollama_pack_outcome"  # likewise
_REFUSAL_FIELDS = ("status", "message", "code", "param", "retry_after")
_CHAT_FORMS: dict[str, ApiForm] = {
    "/api/chat/completions": "openai",
    "/api/v1/chat/completions": "openai",
    "/api/message": "anthropic",
    "/api/v1/messages": "anthropic",
}
_FIRST_ERROR = 400
_ANSWER_FIELDS = ("choices", "output", "content", "usage")  # of which each API's answers have one
# What Open WebUI 0.11.2 sends first in Anthropic's form where its pipe gave an error, which it drops.
_EMPTY_ENDS = frozenset({"message_delta", "message_stop"})

_WHOLE_END = re.compile(rb'"type": ?"message_(?:delta|stop)"')


def note_refusal(request: Any, refusal: Refusal, metadata: Mapping[str, Any]) -> None:
    """Note why a request is not answered, or no further.

    Titles and the like are no request of the client's, and a page gets its answer another way.
    """
    is_page = bool(metadata.get("session_id") and metadata.get("chat_id"))
    if not metadata.get("task") and not is_page:
        setattr(request.state, REFUSAL_NOTE, {name: getattr(refusal, name) for name in _REFUSAL_FIELDS})


def noted_refusal(state: Mapping[str, Any]) -> Refusal | None:
    """What a plugin has noted on a request, by the state in its scope; None: nothing."""
    noted = state.get(REFUSAL_NOTE)
    return Refusal(**noted) if noted else None


def note_answer(state: Mapping[str, Any], answer: object) -> None:
    """Note a whole answer, which Open WebUI shows to no filter where it has no text."""
    found, outcome = object_at(answer), state.get(OUTCOME_NOTE)
    if outcome is not None and any(found.get(name) for name in _ANSWER_FIELDS):
        outcome["usage"] = {**object_at(found.get("usage")), **object_at(found.get("timings"))}


def note_left(state: Mapping[str, Any]) -> None:
    """Note that the client has left before it had all of its answer."""
    if (outcome := state.get(OUTCOME_NOTE)) is not None:
        outcome["left"] = True


def show_early_errors() -> None:
    """Put the route in front of Open WebUI's own, in place of one that another plugin has put there."""
    app = getattr(sys.modules.get("open_webui.main"), "app", None)
    if app is not None:
        put_in_front(app, ROUTE_NAME, _CHAT_FORMS, _held_back)


async def _held_back(scope: AsgiScope, receive: AsgiReceive, send: AsgiSend, behind: Any) -> None:
    held = HeldBack(scope, send)
    await tell_leaving(scope, receive, held.send, behind)
    await held.end()


async def tell_leaving(scope: AsgiScope, receive: AsgiReceive, send: AsgiSend, behind: Any) -> None:
    """Have a request answered that stops once its client has left, and note that it did."""
    leaving = Leaving()
    try:
        await behind(partial(leaving.receive, receive), partial(leaving.send, send))
    finally:
        if leaving.before_the_end:
            note_left(scope.get("state") or {})
        leaving.end()


def _form_of(scope: Mapping[str, Any]) -> ApiForm | None:
    return _CHAT_FORMS.get(path_of(scope))


class HeldBack:
    """The way of one answer to its client, whose beginning waits until it is known to be an answer."""

    def __init__(self, scope: Mapping[str, Any], send: Any) -> None:
        self._scope = scope
        self._send = send
        self._held: list[AsgiMessage] = []
        self._way: Literal["held", "open", "refused"] = "held"

    async def send(self, message: AsgiMessage) -> None:
        """Take a message of the server's."""
        if self._way == "refused":
            return
        if self._way == "held":
            self._held.append(message)
            if message["type"] == "http.response.start":
                return
            kind = self._kind(message)
            if kind == "error" and self._noted:
                self._way = "refused"
                await self._refuse(self._noted)
                return
            if kind == "prelude" and message.get("more_body"):
                return
            if kind == "answer" and not message.get("more_body") and self._noted is None:
                self._note_answer(bytes(message.get("body") or b""))
            await self._let_pass()
            return
        await self._send(message if self._noted is None else self._with_error(message, self._noted))

    async def end(self) -> None:
        """The server sends no more. It waits for a start even where its client has left before an answer."""
        if self._held and self._way == "held":
            await self._let_pass()

    async def _let_pass(self) -> None:
        self._way = "open"
        start, *others = self._held
        await send_start(self._send, start)
        for held in others:
            await self._send(held)
        self._held.clear()

    def _note_answer(self, body: bytes) -> None:
        state = self._scope.get("state") or {}
        if OUTCOME_NOTE in state:
            with suppress(orjson.JSONDecodeError):
                note_answer(state, orjson.loads(body))

    @property
    def _noted(self) -> Refusal | None:
        return noted_refusal(self._scope.get("state") or {})

    def _with_error(self, message: AsgiMessage, refusal: Refusal) -> AsgiMessage:
        """The end of an answer that broke off, with its error.

        In Anthropic's form Open WebUI 0.11.2 drops the error, and ends the answer as if it was whole.
        """
        body = bytes(message.get("body") or b"")
        if _form_of(self._scope) != "anthropic" or not _WHOLE_END.search(body):
            return message
        event = b"event: error\ndata: " + orjson.dumps(refusal.body("anthropic")) + b"\n\n"
        return {**message, "body": event}

    def _kind(self, message: AsgiMessage) -> Literal["prelude", "answer", "error"]:
        if self._held[0].get("status", 0) >= _FIRST_ERROR:
            return "error"
        return kind_of(bytes(message.get("body") or b""))

    async def _refuse(self, refusal: Refusal) -> None:
        for message in refusal_messages(refusal, _form_of(self._scope) or "openai"):
            await self._send(message)


def kind_of(body: bytes) -> Literal["prelude", "answer", "error"]:
    """What the beginning of a body is: an error, a part of an answer, or what comes before both.

    Before an answer Open WebUI sends sources and the like, and Anthropic's `message_start`.
    """
    events = [line.removeprefix(b"data:") for line in body.splitlines() if line.startswith(b"data:")]
    for event in events or [body]:
        found: Any = None
        with suppress(orjson.JSONDecodeError):
            found = orjson.loads(event)
        if not isinstance(found, dict):
            return "answer"
        if found.get("error"):
            return "error"
        if found.get("type") in _EMPTY_ENDS:
            return "error"
        if not events or found.get("choices") or found.get("type") not in {None, "message_start", "ping"}:
            return "answer"
    return "prelude"


# --- ollama_pack.plugins.functions.model_alias_filter ---

log = logging.getLogger(__name__)

STATE = "ollama_pack_alias"  # our key in `__metadata__`, which lives as long as the request

Body = dict[str, Any]
Emitter = Callable[[dict[str, Any]], Awaitable[None]]


class Filter:
    """Rewrites `model` to what the alias table says, before the request reaches a model."""

    class Valves(PackValves):
        priority: int = Field(
            default=0,
            title="Priority",
            description="Filters run in order of this number, lowest first. Default: 0.",
        )
        aliases: str = Field(
            default="",
            title="Aliases",
            description=(
                "One alias per line: `alias = model, model [condition, …]`. The first model that is "
                "installed and that the user may use answers. `*` in an alias stands for any text. "
                "Conditions: `vision`, `tools`, `context>=8k`, `group=staff|teachers`, `quant=q8_0>q4_K_M`, "
                "`quant=auto`. `#` starts a comment. Default: empty."
            ),
        )
        show_status: bool = Field(
            default=True,
            title="Show status line",
            description="Show above each answer which model gave it. Default: on.",
        )

        @field_validator("aliases")
        @classmethod
        def _readable(cls, text: str) -> str:
            parse_table(text)  # an AliasTableError reaches the admin as the valve's error, row and reason
            return text

    def __init__(self) -> None:
        self.valves = self.Valves()
        show_early_errors()

    async def inlet(
        self,
        body: Body,
        __user__: dict[str, Any],
        __metadata__: dict[str, Any],
        __model__: dict[str, Any],
        __request__: Any,
    ) -> Body:
        """Choose the model for an alias. Anything unexpected is logged, and the chat goes on unchanged."""
        alias = body.get("model")
        if not isinstance(alias, str) or __metadata__.get("direct") or _leads_to_router(alias, __model__):
            return body
        try:
            chosen = await choose_model(parse_table(self.valves.aliases), body, alias, __user__, __request__)
        except AliasUnavailableError as error:
            raise _model_alias_filter__said(error, __user__, __metadata__, __request__) from error
        except Exception:
            log.exception("The alias %r was not resolved, and the chat went on without it", alias)
            return body
        if chosen is not None:
            body["model"] = _model_id(*chosen, __model__)
            __metadata__[STATE] = {"alias": alias, "model": body["model"]}
        return body

    async def request(
        self,
        body: Body,
        __user__: dict[str, Any],
        __metadata__: dict[str, Any],
        __model__: dict[str, Any],
        __request__: Any,
        __event_emitter__: Emitter | None = None,
    ) -> Body:
        """Choose again, once, when files, memory and tools have made the prompt what the model will see."""
        state = __metadata__.get(STATE)
        if not state or state.get("settled") or body.get("model") != state["model"]:
            return body  # no alias, a later round of a tool loop, or another plugin's choice
        state["settled"] = True
        alias = state["alias"]
        try:
            chosen = await choose_model(parse_table(self.valves.aliases), body, alias, __user__, __request__)
            if chosen is not None:
                resolution, model_id = chosen
                body["model"] = _model_id(resolution, model_id, __model__)
                if not takes_builtin_tools(model_id, __request__):
                    remove_builtin_tools(body, __metadata__)
                if body["model"] != alias and (prompt := await system_prompt(alias)):
                    await add_system_prompt(body, prompt, __metadata__, __user__)
                if self.valves.show_status and __event_emitter__:
                    language = reader_language(__metadata__, __request__)
                    await tell_refused(__event_emitter__, __user__, language)
                    # The page shows the last line, and those before it on a click.
                    for line in filter(None, (resolution.why, resolution.status)):
                        await __event_emitter__(_status(in_language(line, language)))
        except AliasUnavailableError as error:
            raise _model_alias_filter__said(error, __user__, __metadata__, __request__) from error
        except Exception:
            log.exception("The alias %r was not settled, and %r answers", alias, body.get("model"))
        return body


def _model_alias_filter__said(error: AliasUnavailableError, user: Body, metadata: Body, request: Any) -> Exception:
    """What is raised where the user has asked for a name to which nothing answers: it says why."""
    language = reader_language(metadata, request)
    refusal = alias_refusal(error, for_admin=user.get("role") == "admin").translated(language)
    note_refusal(request, refusal, metadata)
    return PackError(refusal.message)


def _leads_to_router(alias: str, model: dict[str, Any]) -> bool:
    """Whether `gpu_router` answers to this name: it has a table of its own, and knows which nodes answer."""
    based_on = (model.get("info") or {}).get("base_model_id") or ""
    return alias.startswith(ROUTER) or based_on.startswith(ROUTER)


def _model_id(chosen: Resolution, model_id: str, alias_row: dict[str, Any]) -> str:
    """The alias itself where its row in Open WebUI stands for the model already: its settings apply."""
    info = alias_row.get("info") or {}
    if alias_row.get("id") == chosen.alias and info.get("base_model_id") == model_id:
        return chosen.alias
    return model_id


def _status(line: str) -> dict[str, Any]:
    return {"type": "status", "data": {"description": line, "done": True}}
