"""
title: Model aliases
author: Open WebUI Ollama Pack
author_url: https://open-webui-ollama-pack.example/open-webui-ollama-pack
description: Answers names such as gpt-4 with the local models that a table of aliases names for them.
license: MIT
version: 0.1.0
"""

# GENERATED from src/ollama_pack/plugins/pipelines/model_alias_filter.py by scripts/package.py: change that, not this.
#
# Begin here: `class Pipeline`, line 1472, which the server calls.
# The modules that it uses come first:
#     57  base.translations           The translations of all sentences. GENERATED from locale/ by scripts/package.py.
#    116  base.messages               Sentences for people, in English and in the languages of the catalogue.
#    244  errors                      The base of every error that the pack raises on purpose. Each part defines its own in its `errors.py`.
#    252  base.tables                 Tables that admins write as text: a row a line, `#` starts a comment, empty lines are skipped.
#    283  aliases.errors              What goes wrong with aliases.
#    325  engines.body                Reading fields of a body that nobody has checked: a value of the right type, or a refusal by name.
#    336  engines.content             The parts of a message, in the one form that this pack works with, whatever a client calls them.
#    345  aliases.facts               What an alias table may ask about a request, read off an OpenAI chat body.
#    414  aliases.table               An alias table: rows of `alias = candidate, candidate [condition, …]`, read once and then only looked up.
#    800  engines.ollama.names        Model names as Ollama writes them: `[host/][namespace/]model[:tag]`, the tag `latest` if there is none.
#    942  fit.shapes                  Shapes of models: from metadata and tensors, or from as little as a number of parameters.
#    988  fit.choose                  Which variant of a model a node takes: the best one that fits, next to what it has in memory.
#   1009  aliases.resolve             Which model answers for a name: a pure function of the table, the request and the models that are there.
#   1127  base.single_flight          What is asked, made or kept once: for all who ask at the same time, or for all plugins of a process.
#   1230  engines.ollama.installed    Which models some Ollama nodes have, and which weights, by `GET /api/tags`. One event loop at a time.
#   1331  engines.model_ids           Ids of models that clients can use: alias tables and addresses split at spaces, commas and the like.
#   1339  services.pipeline_requests  What a pipeline can know of a request, how it tells the next one, and the others of its server.
#   1356  services.valves             What all valves of the pack have in common: what is refused is told to admins, without what was written.
#   1454  services.pipeline_valves    Valves on the Pipelines server: what all of our pipelines have in common there.

import asyncio
import hashlib
import json
import logging
import math
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from ssl import SSLContext
from types import ModuleType
from typing import Any, Generic, Self, TypeVar

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

# --- ollama_pack.base.translations ---
# The translations of all sentences. GENERATED from locale/ by scripts/package.py.

TRANSLATIONS: dict[str, dict[str, str]] = {
    "zh-CN": {
        ", ": "、",
        ": ": "：",
        "; ": "；",
        "Aliases": "别名",
        "Code digest": "代码摘要",
        "Filters run in order of this number, lowest first. Default: 0.": "过滤器按此数字从小到大依次运行。默认：0。",
        "Models that this filter handles; `*` means all. Default: `*`.": "此过滤器处理的模型；`*` 表示全部。默认：`*`。",
        "No model behind the alias {alias!r} can answer: {reasons}. An admin can install one (ollama pull {first}), grant access to it, or change the alias.": "别名 {alias!r} 背后没有可用的模型：{reasons}。管理员可以安装一个（ollama pull {first}）、授予使用权限，或修改别名。",
        "Ollama addresses": "Ollama 地址",
        "Ollama servers that are asked which models are installed, separated by commas. Default: empty, so the first model of a line answers.": "用于查询已安装模型的 Ollama 服务器，用逗号分隔。默认：空，即使用每行的第一个模型。",
        "One alias per line, or all on one line with `;` between them: `alias = model, model [condition, …]`. The first model that is installed answers. `*` in an alias stands for any text. Conditions: `vision`, `tools`, `context>=8k`, `quant=q8_0>q4_K_M`. `#` starts a comment. Default: empty.": "每行一个别名，或写在一行中用 `;` 分隔：`别名 = 模型, 模型 [条件, …]`。由第一个已安装的模型回答。别名中的 `*` 代表任意文本。条件：`vision`、`tools`、`context>=8k`、`quant=q8_0>q4_K_M`。`#` 之后是注释。默认：空。",
        "Pipelines": "管道",
        "Priority": "优先级",
        "Written by the server, so that `upload.py` sees which code runs here. Do not edit.": "由服务器写入，供 `upload.py` 识别正在运行的代码。请勿修改。",
        "a model is missing: after `=` stand model names with commas between them": "缺少模型：`=` 之后是以逗号分隔的模型名称",
        "a model is named twice": "有一个模型重复出现",
        "a table has at most {limit} rows: use wildcards": "一张表最多 {limit} 行：请使用通配符",
        "aliases of aliases, {depth} deep: {limit} is the limit": "别名的别名有 {depth} 层：上限为 {limit} 层",
        "context>= needs a number of tokens, such as context>=8192 or context>=8k, not {value!r}": "context>= 需要 token 数，例如 context>=8192 或 context>=8k，而不是 {value!r}",
        "group= is not known on the Pipelines server: use the model_alias_filter function for it": "Pipelines 服务器不支持 group=：请改用 model_alias_filter 函数",
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


# --- ollama_pack.base.single_flight ---
# What is asked, made or kept once: for all who ask at the same time, or for all plugins of a process.

_Shared = TypeVar("_Shared")

_PLACE = "_ollama_pack_speech_state"  # never a module that can be imported


class SingleFlight(Generic[_Shared]):
    """Asks a source at most once at a time, and keeps its answer for a while. One event loop at a time."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[_Shared]],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        ahead: bool = False,
    ) -> None:
        """Nothing is asked before `get` or `renew`.

        Args:
            ask: gives the answer; what it raises reaches those who wait, and is not kept.
            seconds: how old an answer may be when `get` returns it, counted from when it was asked for.
            clock: monotonic seconds.
            ahead: `get` asks anew at half of that age, so that hardly anybody waits.
        """
        self._ask = ask
        self._seconds = seconds
        self._ahead = seconds / 2 if ahead else seconds
        self._clock = clock
        self._kept: _Shared | None = None
        self._asked_at = -math.inf
        self._task: asyncio.Task[_Shared] | None = None

    @property
    def kept(self) -> _Shared | None:
        """The newest answer, however old it is; None: there is none yet."""
        return self._kept

    @property
    def age(self) -> float:
        """Seconds since the kept answer was asked for."""
        return self._clock() - self._asked_at

    async def get(self) -> _Shared:
        """The kept answer, or a new one when it is too old."""
        age = self.age
        if age <= self._seconds:
            if age > self._ahead:
                self.renew()
            kept: Any = self._kept
            return kept  # type: ignore[no-any-return] # None may be an answer, too
        return await asyncio.shield(self.renew())  # one who gives up takes nothing from the others

    def renew(self) -> asyncio.Task[_Shared]:
        """The question that is under way, or a new one."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._renew())
            self._task.add_done_callback(_retrieve)
        return self._task

    def keep(self, answer: _Shared) -> None:
        """Keep an answer that is known from elsewhere."""
        self._kept, self._asked_at = answer, self._clock()

    def forget(self) -> None:
        """Keep nothing, nor what is being asked for now: something has changed."""
        self._kept, self._asked_at, self._task = None, -math.inf, None

    async def _renew(self) -> _Shared:
        began, task = self._clock(), asyncio.current_task()
        try:
            answer = await self._ask()
            if self._task is task:
                self._kept, self._asked_at = answer, began
            return answer
        finally:
            if self._task is task:
                self._task = None


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Look at the error even when all who waited have left, or asyncio complains of it."""
    if not task.cancelled():
        task.exception()


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


# --- ollama_pack.engines.ollama.installed ---
# Which models some Ollama nodes have, and which weights, by `GET /api/tags`. One event loop at a time.

LOOK_SECONDS = 2.0  # for all nodes together
_LISTING_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class TagSite:
    """A node whose models are asked for.

    Attributes:
        url: its address.
        prefix: of its models' names where they are offered; empty: none.
        headers: that are sent, with the key that the node wants.
    """

    url: str
    prefix: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class InstalledModels:
    """The models of some nodes.

    A node that does not answer keeps what it had when it last did: a node that restarts must not make its
    models vanish.
    """

    def __init__(
        self, urls: Sequence[str], max_age: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sites = tuple(TagSite(url.rstrip("/")) for url in urls)
        self._models: dict[str, dict[str, str]] = {}
        self._look = SingleFlight(self._look_at_all, max_age, clock)

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(site.url for site in self._sites)

    async def get(self) -> dict[str, str] | None:
        """Name → quantization level of every model; None while no node has ever answered."""
        return await self._look.get()

    async def _look_at_all(self) -> dict[str, str] | None:
        for site, listed in await _listings(self._sites):
            named = {name: _quantization(model) for name, model in _named(listed, "name", "model")}
            if named or not listed:  # a list without one model is not Ollama's
                self._models[site.url] = named
        if not self._models:
            return None
        return {name: level for models in self._models.values() for name, level in models.items()}


_Models = list[Mapping[str, Any]]


async def _listings(
    sites: Iterable[TagSite], trusted: Callable[[], SSLContext | bool] = lambda: True
) -> list[tuple[TagSite, _Models]]:
    """The lists of the nodes that answer as Ollama does."""
    # as the router's: with proxies from HTTP_PROXY, HTTPS_PROXY and NO_PROXY
    connector = aiohttp.TCPConnector(ssl=trusted())
    timeout = aiohttp.ClientTimeout(total=LOOK_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=True) as session:
        return [found for found in await asyncio.gather(*(_listing(session, one) for one in sites)) if found]


async def _listing(session: aiohttp.ClientSession, site: TagSite) -> tuple[TagSite, _Models] | None:
    url = f"{site.url.rstrip('/')}/api/tags"
    try:
        # a redirect would carry the node's key to another server
        async with session.get(
            url, headers=site.headers, raise_for_status=True, allow_redirects=False
        ) as response:
            body = bytearray()
            async for part in response.content.iter_any():
                body += part
                if len(body) > _LISTING_BYTES:
                    return None
        models = json.loads(body)["models"]
        found: _Models = [model for model in models if isinstance(model, dict)]
    except (aiohttp.ClientError, TimeoutError):
        return None
    except (ValueError, LookupError, TypeError, RecursionError):  # an answer, but not of Ollama's form
        return None
    return (site, found) if found or not models else None


def _named(models: _Models, *keys: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The models that have a name, under the first of the keys that is there."""
    for model in models:
        if name := next(filter(None, map(model.get, keys)), None):
            yield str(name), model


def _quantization(model: Mapping[str, Any]) -> str:
    details = model.get("details")
    return str(details.get("quantization_level") or "") if isinstance(details, dict) else ""


# --- ollama_pack.engines.model_ids ---
# Ids of models that clients can use: alias tables and addresses split at spaces, commas and the like.
#
# Those that `gpu_router` answers begin with its name, on Open WebUI and on the Pipelines server.

ROUTER = "gpu_router."


# --- ollama_pack.services.pipeline_requests ---
# What a pipeline can know of a request, how it tells the next one, and the others of its server.
#
# Open WebUI sends a pipeline the user and no more. What else it knows stands in the `metadata` that an inlet
# is shown; OpenAI has fields for two things of it, so they travel on under those names, and any other client
# may set them as well: `prompt_cache_key` for the conversation, `service_tier: flex` for what nobody waits for.
# What the response cache has to know travels in a field of ours, and so does the user's language.


def goes_to_router(body: Mapping[str, Any]) -> bool:
    """Whether `gpu_router` will answer: the model is one of its own, or a row of Open WebUI's on one."""
    model = str(body.get("model") or "")
    row = object_at(body, "metadata", "model", "info")
    base = str(row.get("base_model_id") or "") if row.get("id") == model else ""
    return model.startswith(ROUTER) or base.startswith(ROUTER)


# --- ollama_pack.services.valves ---
# What all valves of the pack have in common: what is refused is told to admins, without what was written.
#
# Open WebUI's page only shows that there was an error. What a process has refused is kept in it for an hour, as
# plain values: each plugin has a copy of this code.

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


def _refused() -> dict[str, dict[str, Any]]:
    return process_wide("refused valves", dict[str, dict[str, Any]])


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


# --- ollama_pack.services.pipeline_valves ---
# Valves on the Pipelines server: what all of our pipelines have in common there.

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


# --- ollama_pack.plugins.pipelines.model_alias_filter ---


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
