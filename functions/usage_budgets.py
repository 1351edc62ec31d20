"""
title: Usage budgets
author: Open WebUI Ollama Pack
author_url: https://open-webui-ollama-pack.example/open-webui-ollama-pack
description: Limits what each user and each group may use in a day, a week or a month.
license: MIT
required_open_webui_version: 0.11.2
version: 0.1.0
"""

# GENERATED from src/ollama_pack/plugins/functions/usage_budgets.py by scripts/package.py: change that, not this.
#
# Begin here: `class Filter`, line 3008, which the server calls.
# The modules that it uses come first:
#     71  base.translations      The translations of all sentences. GENERATED from locale/ by scripts/package.py.
#    167  base.messages          Sentences for people, in English and in the languages of the catalogue.
#    295  errors                 The base of every error that the pack raises on purpose. Each part defines its own in its `errors.py`.
#    315  base.redis             A client for a Redis URL: one server, Sentinel, or a cluster; and scripts that run there.
#    767  base.single_flight     What is asked, made or kept once: for all who ask at the same time, or for all plugins of a process.
#    790  base.tables            Tables that admins write as text: a row a line, `#` starts a comment, empty lines are skipped.
#    821  budgets.errors         What goes wrong with budgets.
#    837  budgets.period         Days, weeks and months in the site's time zone.
#    908  budgets.table          The budget table: a row a line, read once and then only looked up.
#   1251  engines.refusals       What a client gets instead of an answer, in the form of each API that clients speak.
#   1328  budgets.store          What a store of budgets does, and the values that it takes and gives.
#   1442  budgets.store_redis    Budgets in Redis or Valkey, for any number of replicas. Each step is one run of one script.
#   1612  budgets.store_sqlite   Budgets in one SQLite file, for the workers of one machine.
#   1775  engines.body           Reading fields of a body that nobody has checked: a value of the right type, or a refusal by name.
#   1786  base.time_limit        A time limit that does not run out while this process itself is held up.
#   1821  services.budgets       Budgets at work: reserve before a chat, settle after it, say what is left.
#   2166  services.budget_chats  Chats that are under way and their budgets: what each has used so far, by whoever knows it best.
#   2354  services.cacheable     Which requests the cache is for, whose answers they share, and what it is asked.
#   2366  services.valves        What all valves of the pack have in common: what is refused is told to admins, without what was written.
#   2464  engines.front_route    A route in front of a server's own, which sees each answer of a chat before its client does.
#   2559  webui.leaving          When Open WebUI is told that a client has left: not while it reads its database.
#   2648  webui.early_errors     The status of an error that comes before an answer, which Open WebUI leaves no room for.
#   2840  engines.model_ids      Ids of models that clients can use: alias tables and addresses split at spaces, commas and the like.
#   2848  webui.models           What Open WebUI knows of models and of who may use them. Imports `open_webui` when called, not before.
#   2922  webui.server           What a plugin takes from its Open WebUI: a secret, a folder, streamed answers, its place.
#   2963  webui.users            Users of the running Open WebUI, their groups and their language. Imports `open_webui` when called.

import asyncio
import hashlib
import logging
import math
import re
import sqlite3
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, tzinfo
from enum import IntEnum
from functools import lru_cache, partial
from http import HTTPStatus
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, Self, TypeVar, get_args
from urllib.parse import unquote, urlsplit
from uuid import uuid4
from weakref import finalize
from zoneinfo import ZoneInfo

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

# --- ollama_pack.base.translations ---
# The translations of all sentences. GENERATED from locale/ by scripts/package.py.

TRANSLATIONS: dict[str, dict[str, str]] = {
    "zh-CN": {
        " and ": "和",
        ": ": "：",
        "; ": "；",
        "Chats that are being answered may use up what is left of your budget: {amount} {period}. Try again when they are done.": "正在回答的对话可能会用完您剩余的配额：{period} {amount}。请等它们结束后再试。",
        "Redis failed: {error}": "Redis 出错：{error}",
        "SQLite failed at {path}: {error}": "SQLite 出错（{path}）：{error}",
        "The budget shared by {subject} is used up: {amount} {period}. You can go on from {when}.": "{subject} 共用的配额已用完：{period} {amount}。{when} 起可以继续使用。",
        "You have used up your budget: {amount} {period}. You can go on from {when}.": "您的配额已用完：{period} {amount}。{when} 起可以继续使用。",
        "Your budget is used up. Ask for {model}.": "您的配额已用完。请改用 {model}。",
        "Your budget is used up. The model {model} would answer then, but it is not open to you.": "您的配额已用完。此时应由模型 {model} 回答，但您无权使用它。",
        "a URL that begins with rediss has TLS": "以 rediss 开头的 URL 使用 TLS",
        "a cluster has no db but 0: leave the number out": "集群只有数据库 0：请去掉编号",
        "a number": "数字",
        "a whole number": "整数",
        "at most {limit} rows can be used: name groups instead of users": "最多 {limit} 行：请用分组代替单个用户",
        "budgets: Open WebUI has no group {name!r}, so its rows hold for nobody: create it, or correct the table": "budgets：Open WebUI 中没有分组 {name!r}，因此其各行对任何人都不生效：请创建它，或更正配额表",
        "burst={burst} is more than the amount {amount}: raise the amount": "burst={burst} 大于总量 {amount}：请提高总量",
        "in a password, @ is written as %40, : as %3A, / as %2F, ? as %3F, # as %23, and % as %25": "密码中 @ 写成 %40，`:` 写成 %3A，/ 写成 %2F，`?` 写成 %3F，# 写成 %23，% 写成 %25",
        "is missing": "缺失",
        "is not known": "未知",
        "it belongs before the ?": "应写在 `?` 之前",
        "it does not answer within {seconds:g} s": "在 {seconds:g} 秒内没有响应",
        "it has a user or a password twice: before the host and as an option": "用户或密码出现两次：主机之前和选项中",
        "it has an @ or a # too many, perhaps in the password: {how}": "多了 @ 或 #，可能在密码中：{how}",
        "it has an option that is not known. The known ones are {known}": "有未知的选项。已知选项：{known}",
        "it has the database twice: in the path and as an option": "数据库出现两次：路径中和选项中",
        "it holds a space or a character that cannot be printed": "含有空格或不可打印的字符",
        "it is not complete: {form}": "不完整：{form}",
        "it names no host": "没有写主机",
        "it names several hosts: use redis+sentinel:// or redis+cluster://": "写了多个主机：请使用 redis+sentinel:// 或 redis+cluster://",
        "it needs the name of the service, as in redis+sentinel://host:26379/mymaster": "需要服务名称，例如 redis+sentinel://host:26379/mymaster",
        "it needs the path of the socket, as in unix:///run/redis.sock": "需要套接字路径，例如 unix:///run/redis.sock",
        "must be a list": "必须是列表",
        "must be a number": "必须是数字",
        "must be a whole number": "必须是整数",
        "must be at least {limit}": "不能小于 {limit}",
        "must be at most {limit}": "不能大于 {limit}",
        "must be one of {choices}": "必须是以下之一：{choices}",
        "must be text": "必须是文本",
        "must be true or false": "必须是 true 或 false",
        "no scheme that is known": "未知的协议",
        "only new versions have it": "只有新版本支持",
        "redis-py checks OCSP only where nothing is awaited": "redis-py 只在同步代码中检查 OCSP",
        "replicas lag behind": "副本的数据会滞后",
        "role={name} is not a known role: the roles are {roles}": "role={name} 不是已知角色：角色有 {roles}",
        "row {line} ({row!r}): {reason}": "第 {line} 行（{row!r}）：{reason}",
        "row {line} has a budget of {subject} for the same thing and the same period already: keep one of them": "第 {line} 行已有 {subject} 对同一用途和同一周期的预算：请保留其中一个",
        "sentinel_username and sentinel_password belong to redis+sentinel://": "sentinel_username 和 sentinel_password 属于 redis+sentinel://",
        "the URL of Redis begins with {url}: use {schemes}": "Redis 的 URL 以 {url} 开头：请使用 {schemes}",
        "the database": "数据库",
        "the pack has time limits and connections of its own": "插件包有自己的时间限制和连接",
        "the pack sets it": "由插件包设置",
        "the {scheme}:// URL of Redis cannot be used: the port and the database are numbers, and {how}": "Redis 的 {scheme}:// URL 无法使用：端口和数据库应为数字，{how}",
        "the {scheme}:// URL of Redis cannot be used: {error}": "Redis 的 {scheme}:// URL 无法使用：{error}",
        "this month": "本月",
        "this version of redis-py does not know one of the ssl_ options": "此版本的 redis-py 不支持其中一个 ssl_ 选项",
        "this week": "本周",
        "time_zone: {name!r} is not a known time zone: write one such as Europe/Berlin, or leave it empty for the server's own": "time_zone：{name!r} 不是已知的时区：请写成 Europe/Berlin 这样的名称，或留空使用服务器的时区",
        "today": "今天",
        "user= names one person: leave shared out": "user= 指一个人：请去掉 shared",
        "user={name} is not an e-mail address: write the one that the user signs in with": "user={name} 不是邮箱地址：请填写用户登录所用的地址",
        "write it as `group=students 120 gpu-minutes/day burst=10 then=queue-last`": "请写成 `group=students 120 gpu-minutes/day burst=10 then=queue-last`",
        "your budget is used up · others come first": "您的配额已用完 · 其他人优先",
        "your budget is used up · {model} answers": "您的配额已用完 · 由 {model} 回答",
        "{kind}= has no name: write it after the =": "{kind}= 没有名称：请写在 = 之后",
        "{left} of {amount} left {period}": "{period}还剩 {left}，共 {amount}",
        "{named}{word} cannot be used: {unit} need {kind} above 0, such as 100": "{named}{word} 无法使用：{unit} 需要大于 0 的{kind}，例如 100",
        "{name} has no effect here: {why}. Leave it out": "{name} 在这里不起作用：{why}。请去掉",
        "{name} is empty: leave it out": "{name} 为空：请去掉",
        "{name} is not known to this version of redis-py for a cluster: leave it out": "此版本的 redis-py 在集群中不支持 {name}：请去掉",
        "{name} is set twice": "{name} 设置了两次",
        "{name} is set twice: keep one of them": "{name} 设置了两次：请保留其中一个",
        "{name} is {fixed} here, and nothing else: leave it out": "{name} 在这里只能是 {fixed}：请去掉",
        "{name} needs 1.2 or 1.3": "{name} 需要 1.2 或 1.3",
        "{name} needs a whole number": "{name} 需要整数",
        "{name} needs none, optional or required": "{name} 需要 none、optional 或 required",
        "{name} needs true or false": "{name} 需要 true 或 false",
        "{name}= is empty: write its value, or leave it out": "{name}= 为空：请写上值，或去掉",
        "{number} GPU-minutes": "{number} GPU 分钟",
        "{number} GPU-seconds": "{number} GPU 秒",
        "{number} requests": "{number} 次请求",
        "{number} tokens": "{number} 个 token",
        "{option} is for TLS: begin the URL with {beginning}": "{option} 用于 TLS：URL 请以 {beginning} 开头",
        "{word!r} does not say whose budget it is: begin with everyone, role=user, group=NAME or user=ADDRESS": "{word!r} 没有说明是谁的预算：请以 everyone、role=user、group=NAME 或 user=ADDRESS 开头",
        "{word!r} is not a known unit: use {units}, as in gpu-minutes/day": "{word!r} 不是已知单位：请使用 {units}，例如 gpu-minutes/day",
        "{word!r} is not known: after the unit come shared, burst=NUMBER and then=ACTION": "未知的 {word!r}：单位之后是 shared、burst=NUMBER 和 then=ACTION",
        "{word!r} names no known period: write {unit}/day, {unit}/week or {unit}/month": "{word!r} 没有已知的周期：请写 {unit}/day、{unit}/week 或 {unit}/month",
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


class SettingError(PackError, ValueError):
    """A setting cannot be used. It is a `ValueError` too, so that a valve can refuse it.

    Attributes:
        reason: what is wrong and what to do. Never a secret, nor the password in a URL.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# --- ollama_pack.base.redis ---
# A client for a Redis URL: one server, Sentinel, or a cluster; and scripts that run there.
#
# Making a client connects nothing.
#
# redis://[user:password@]host[:6379][/db]      rediss:// with TLS, unix:///path/to.sock
# redis+sentinel://[user:password@]host[:26379][,host…]/service[/db]      rediss+sentinel:// with TLS
# redis+cluster://[user:password@]host[:6379][,host…]      rediss+cluster:// with TLS
#
# Options follow after `?`, with `&` between them. Each has its effect or is refused by name. A refusal holds no
# part of a URL that might be a password's.
#
# redis-py is imported where it is used: the minimal image of the Pipelines server lacks it, and the router runs
# there without.

_SENTINEL_PORT, _REDIS_PORT = 26379, 6379
# Limits are set around each call, by whoever calls. A socket timeout of redis-py costs a task for each write.
_NO_LIMIT: dict[str, Any] = {"socket_timeout": None, "socket_connect_timeout": None}
_REDIS_SCHEMES = "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
_HOW_WRITTEN = message(
    "in a password, @ is written as %40, : as %3A, / as %2F, ? as %3F, # as %23, and % as %25"
)
_OWN_LIMITS = message("the pack has time limits and connections of its own")


class RedisClient(Protocol):
    """What is used of a client of redis-py, for one server, Sentinel or a cluster."""

    response_callbacks: Any  # by command: what turns its answers into other values

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Send a command and return its answer, with bytes for strings."""

    def script_load(self, script: str) -> Awaitable[Any]:
        """Leave a script there; in a cluster on every server of it."""

    async def aclose(self) -> None:
        """Close the connections."""


def connection_pool_of(client: RedisClient) -> Any:
    """Where the connections to its one server come from; a cluster has none such."""
    return getattr(client, "connection_pool", None)


@dataclass(frozen=True, slots=True)
class LuaScript:
    """A script, and the name that the server knows it by once it has seen it."""

    text: str
    sha: str


def lua_script(text: str) -> LuaScript:
    # SHA-1 is what Redis names scripts by
    return LuaScript(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


async def run_script(
    send: Callable[..., Awaitable[Any]], script: LuaScript, keys: Sequence[str], *values: Any
) -> Any:
    """Run a script by its name, and by its text where the server has not seen it, or has restarted.

    Args:
        send: sends one command, as `RedisClient.execute_command`.
        script: to run.
        keys: that it uses.
        values: its other arguments.
    """
    from redis.exceptions import NoScriptError  # noqa: PLC0415 - see the top

    try:
        return await send("EVALSHA", script.sha, len(keys), *keys, *values)
    except NoScriptError:
        return await send("EVAL", script.text, len(keys), *keys, *values)


def redis_faults() -> tuple[type[Exception], ...]:
    """What is raised when Redis does not answer, or not as it should."""
    from redis.exceptions import RedisClusterException, RedisError  # noqa: PLC0415 - see the top

    return RedisError, RedisClusterException, OSError, EOFError  # a cluster's is no `RedisError`


class _UrlError(ValueError):
    """What is wrong with a URL, in words that may be shown."""


class _WatchedMaster:
    """The master that Sentinels name. Its end is theirs too: redis-py leaves their connections open."""

    def __init__(self, master: RedisClient, sentinels: Sequence[RedisClient]) -> None:
        self.execute_command = master.execute_command
        self.script_load = master.script_load
        self.response_callbacks = master.response_callbacks
        self.connection_pool = connection_pool_of(master)
        self.clients = master, *sentinels

    async def aclose(self) -> None:
        """Close the connections to the master and to the Sentinels."""
        for client in self.clients:
            await client.aclose()


@lru_cache(maxsize=16)  # valves are validated anew on every request, and nearly always hold the same text
def check_redis_url(url: str) -> str:
    """The URL, which is none or can be used.

    Raises:
        SettingError: it is none of the forms.
        ModuleNotFoundError: there is no redis-py.
    """
    if url:
        redis_client(url)
    return url


def redis_client(url: str) -> RedisClient:
    """A client for a URL.

    Raises:
        SettingError: the URL is none of the forms, or has an option that would have no effect.
        ModuleNotFoundError: there is no redis-py.
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    make = _REDIS_CLIENTS.get(scheme)
    if make is None:
        raise SettingError(
            message(
                "the URL of Redis begins with {url}: use {schemes}",
                url=_shown_beginning(url),
                schemes=_REDIS_SCHEMES,
            )
        )
    try:
        return make(_read_url(url))
    except _UrlError as error:
        raise SettingError(
            message("the {scheme}:// URL of Redis cannot be used: {error}", scheme=scheme, error=error)
        ) from None
    except (ValueError, TypeError):  # their words may have a piece of the password in them
        raise SettingError(
            message(
                "the {scheme}:// URL of Redis cannot be used: the port and the database are numbers, and "
                "{how}",
                scheme=scheme,
                how=_HOW_WRITTEN,
            )
        ) from None


def redis_fault(error: BaseException) -> str:
    """What redis-py says of a failure, without what was sent: an old server repeats an unknown AUTH whole."""
    return f"{type(error).__name__}: {str(error).partition(', with args')[0]}"


def _shown_beginning(url: str) -> str:
    """What a URL begins with, where that is a scheme or a host with its port, and no password for sure."""
    beginning = url.partition("://")[0]
    is_shown = re.fullmatch(r"[a-z][a-z.+-]{0,19}|[a-z][a-z.-]*:[0-9]{1,5}", beginning)
    return repr(beginning) if is_shown else message("no scheme that is known")


# --- reading ---


@dataclass(frozen=True, slots=True)
class _RedisUrl:
    """A URL in its parts.

    Attributes:
        tls: its scheme asks for TLS.
        hosts: names and ports, 0 where none is given.
        path: what follows the hosts, decoded.
        login: `username` and `password`, where there are.
        options: what each connection is made with.
        sentinel: the same for the Sentinels themselves.
        db: the number given as an option.
    """

    tls: bool
    hosts: Sequence[tuple[str, int]]
    path: str
    login: Mapping[str, str]
    options: Mapping[str, Any]
    sentinel: Mapping[str, Any]
    db: int | None


def _read_url(url: str) -> _RedisUrl:
    if not url.isprintable() or " " in url:
        raise _UrlError(message("it holds a space or a character that cannot be printed"))
    rest = url.partition("://")[2]
    # A raw character in a password moves what follows it to where a host, a path or an option is expected.
    if "#" in rest or rest.count("@") > 1 or "@" in re.sub(r"^[^/?]*", "", rest):
        raise _UrlError(
            message(
                "it has an @ or a # too many, perhaps in the password: {how}",
                how=_HOW_WRITTEN,
            )
        )
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    tls = scheme == "rediss"
    given = _options_in(parts.query)
    sentinel = {name: given.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    if kind != "sentinel" and any(sentinel.values()):
        raise _UrlError(message("sentinel_username and sentinel_password belong to redis+sentinel://"))
    login = {
        "username": unquote(parts.username or "") or given.pop("username", None),
        "password": unquote(parts.password or "") or given.pop("password", None),
    }
    if given.keys() & login.keys():
        raise _UrlError(message("it has a user or a password twice: before the host and as an option"))
    if not tls and (needs_tls := sorted(name for name in given if name.startswith("ssl_"))):
        raise _UrlError(
            message(
                "{option} is for TLS: begin the URL with {beginning}",
                option=needs_tls[0],
                beginning=f"rediss{'+' * bool(kind)}{kind}://",
            )
        )
    hosts = [] if scheme == "unix" else _hosts(parts.netloc)
    db = given.pop("db", None)
    return _RedisUrl(
        tls,
        hosts,
        unquote(parts.path),
        {name: value for name, value in login.items() if value},
        given,
        {name: value for name, value in sentinel.items() if value},
        db,
    )


def _options_in(query: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for option in filter(None, query.split("&")):
        name, _, value = option.partition("=")
        if name in _REFUSED_OPTIONS:
            raise _UrlError(
                message(
                    "{name} has no effect here: {why}. Leave it out",
                    name=name,
                    why=_REFUSED_OPTIONS[name],
                )
            )
        if name not in _URL_OPTIONS:
            raise _UrlError(
                message(
                    "it has an option that is not known. The known ones are {known}",
                    known=", ".join(_URL_OPTIONS),
                )
            )
        if name in found:
            raise _UrlError(message("{name} is set twice", name=name))
        found[name] = _URL_OPTIONS[name](name, unquote(value))
    return {name: value for name, value in found.items() if value is not None}


def _url_text(name: str, value: str) -> str:
    if not value:
        raise _UrlError(message("{name} is empty: leave it out", name=name))
    return value


def _url_number(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise _UrlError(message("{name} needs a whole number", name=name))
    return int(value)


def _url_switch(name: str, value: str) -> bool:
    said = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if value.lower() not in said:
        raise _UrlError(message("{name} needs true or false", name=name))
    return said[value.lower()]


def _url_checks(name: str, value: str) -> str:
    if value not in ("none", "optional", "required"):
        raise _UrlError(message("{name} needs none, optional or required", name=name))
    return value


def _url_tls_version(name: str, value: str) -> ssl.TLSVersion:
    versions = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
    found = {**versions, **{str(int(version)): version for version in versions.values()}}.get(value)
    if found is None:
        raise _UrlError(message("{name} needs 1.2 or 1.3", name=name))
    return found


def _fixed_as(*fixed: str) -> Callable[[str, str], None]:
    """An option that may be written as it is here anyway."""

    def read(name: str, value: str) -> None:
        if value.lower() not in fixed:
            raise _UrlError(
                message("{name} is {fixed} here, and nothing else: leave it out", name=name, fixed=fixed[0])
            )

    return read


_URL_OPTIONS: Mapping[str, Callable[[str, str], Any]] = {
    "db": _url_number,
    "username": _url_text,
    "password": _url_text,
    "sentinel_username": _url_text,
    "sentinel_password": _url_text,
    "client_name": _url_text,
    "socket_keepalive": _url_switch,
    "ssl_cert_reqs": _url_checks,
    "ssl_check_hostname": _url_switch,
    "ssl_ca_certs": _url_text,
    "ssl_ca_path": _url_text,
    "ssl_ca_data": _url_text,
    "ssl_certfile": _url_text,
    "ssl_keyfile": _url_text,
    "ssl_password": _url_text,
    "ssl_min_version": _url_tls_version,
    "ssl_ciphers": _url_text,
    "decode_responses": _fixed_as("false", "0", "no"),
    "protocol": _fixed_as("2"),
    "encoding": _fixed_as("utf-8", "utf8"),
    "encoding_errors": _fixed_as("strict"),
}
_REFUSED_OPTIONS: Mapping[str, str] = {
    **dict.fromkeys(("socket_timeout", "socket_connect_timeout", "timeout", "max_connections"), _OWN_LIMITS),
    **dict.fromkeys(("retry", "retry_on_timeout", "retry_on_error", "retry_on_connect"), _OWN_LIMITS),
    **dict.fromkeys(("health_check_interval", "socket_read_size", "single_connection_client"), _OWN_LIMITS),
    **dict.fromkeys(("lib_name", "lib_version", "legacy_responses"), message("the pack sets it")),
    **dict.fromkeys(("host", "port", "path", "unix_socket_path"), message("it belongs before the ?")),
    **dict.fromkeys(("ssl", "ssl_context"), message("a URL that begins with rediss has TLS")),
    **dict.fromkeys(
        ("ssl_validate_ocsp", "ssl_validate_ocsp_stapled", "ssl_ocsp_context", "ssl_ocsp_expected_cert"),
        message("redis-py checks OCSP only where nothing is awaited"),
    ),
    **dict.fromkeys(
        ("ssl_include_verify_flags", "ssl_exclude_verify_flags"), message("only new versions have it")
    ),
    **dict.fromkeys(("read_from_replicas", "load_balancing_strategy"), message("replicas lag behind")),
    **dict.fromkeys(("require_full_coverage", "dynamic_startup_nodes"), message("the pack sets it")),
    **dict.fromkeys(("reinitialize_steps", "cluster_error_retry_attempts"), message("the pack sets it")),
}


def _hosts(netloc: str) -> list[tuple[str, int]]:
    """The hosts of a URL and their ports, 0 where none is given."""
    found = []
    for place in netloc.rpartition("@")[2].split(","):
        parts = urlsplit(f"//{place}")
        if not parts.hostname:
            raise _UrlError(message("it names no host"))
        found.append((parts.hostname, parts.port or 0))
    return found


# --- making ---


def _once_more() -> Any:
    """A connection that broke while it was idle says nothing of the server: one more try, on a new one."""
    from redis.asyncio.retry import Retry  # noqa: PLC0415 - see the top
    from redis.backoff import NoBackoff  # noqa: PLC0415 - see the top
    from redis.exceptions import ConnectionError as RedisConnectionError  # noqa: PLC0415 - see the top

    return Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))


def _server_client(url: _RedisUrl) -> RedisClient:
    from redis.asyncio import Redis  # noqa: PLC0415 - see the top

    place: dict[str, Any] = {"unix_socket_path": url.path}
    path = ""
    if url.hosts:
        (host, port), *others = url.hosts
        if others:
            raise _UrlError(message("it names several hosts: use redis+sentinel:// or redis+cluster://"))
        place, path = {"host": host, "port": port or _REDIS_PORT, "ssl": url.tls}, url.path
    elif not url.path:
        raise _UrlError(message("it needs the path of the socket, as in unix:///run/redis.sock"))
    client = Redis(
        **place,
        db=_database(url, path.strip("/")),
        protocol=2,
        retry=_once_more(),
        **{**url.login, **url.options, **_NO_LIMIT},
    )
    return _checked_client(client)


def _sentinel_client(url: _RedisUrl) -> RedisClient:
    from redis.asyncio import Sentinel  # noqa: PLC0415 - see the top

    service, _, db = url.path.strip("/").partition("/")
    if not service:
        raise _UrlError(
            message("it needs the name of the service, as in redis+sentinel://host:26379/mymaster")
        )
    hosts = [(host, port or _SENTINEL_PORT) for host, port in url.hosts]
    secured: dict[str, Any] = {"ssl": url.tls, **url.options}
    sentinel = Sentinel(hosts, sentinel_kwargs={**secured, **url.sentinel}, **_NO_LIMIT)  # type: ignore[no-untyped-call] # it has no types
    master: RedisClient = sentinel.master_for(
        service, db=_database(url, db), protocol=2, retry=_once_more(), **{**secured, **url.login}
    )
    return _WatchedMaster(_checked_client(master), sentinel.sentinels)


def _cluster_client(url: _RedisUrl) -> RedisClient:
    from redis.asyncio import RedisCluster  # noqa: PLC0415 - see the top
    from redis.asyncio.cluster import ClusterNode  # noqa: PLC0415 - see the top

    if _database(url, url.path.strip("/")):
        raise _UrlError(message("a cluster has no db but 0: leave the number out"))
    for name in url.options:
        if name not in signature(RedisCluster.__init__).parameters:
            raise _UrlError(
                message(
                    "{name} is not known to this version of redis-py for a cluster: leave it out", name=name
                )
            )
    given: dict[str, Any] = {**url.login, **url.options, **_NO_LIMIT}
    nodes = [ClusterNode(host, port or _REDIS_PORT) for host, port in url.hosts]
    return RedisCluster(startup_nodes=nodes, protocol=2, ssl=url.tls, retry=_once_more(), **given)


def _database(url: _RedisUrl, written: str) -> int:
    if written and url.db is not None:
        raise _UrlError(message("it has the database twice: in the path and as an option"))
    return _url_number(message("the database"), written) if written else url.db or 0


def _checked_client(client: RedisClient) -> RedisClient:
    """The client, whose connections take the options: this version of redis-py may not know one of them."""
    from redis.exceptions import RedisError  # noqa: PLC0415 - see the top

    try:
        connection_pool_of(client).make_connection()
    except (TypeError, RedisError) as error:
        raise _UrlError(message("this version of redis-py does not know one of the ssl_ options")) from error
    return client


_REDIS_CLIENTS: Mapping[str, Callable[[_RedisUrl], RedisClient]] = {
    **dict.fromkeys(("redis", "rediss", "unix"), _server_client),
    **dict.fromkeys(("redis+sentinel", "rediss+sentinel"), _sentinel_client),
    **dict.fromkeys(("redis+cluster", "rediss+cluster"), _cluster_client),
}


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


# --- ollama_pack.budgets.errors ---
# What goes wrong with budgets.


class BudgetTableError(TableError):
    """A row of the budget table cannot be used."""


class BudgetStoreError(PackError):
    """The store of the budgets did not do what it was asked."""


class BudgetSpentError(PackError):
    """A chat is not answered, as its user has used up a budget. The message is for the user."""


# --- ollama_pack.budgets.period ---
# Days, weeks and months in the site's time zone.

PeriodName = Literal["day", "week", "month"]
PERIODS: tuple[PeriodName, ...] = get_args(PeriodName)
_MOST_DAYS = {"day": 1, "week": 7, "month": 31}


@dataclass(frozen=True, slots=True)
class Period:
    """One day, week or month, in seconds since the epoch.

    Attributes:
        before: when the period before it began.
        start: when it began.
        end: when the next one begins.
    """

    before: int
    start: int
    end: int


@lru_cache(maxsize=64)
def site_zone(name: str) -> tzinfo | None:
    """The time zone of a name such as `Europe/Berlin`; None, the server's own, where the name is empty.

    Raises:
        ValueError: there is no such time zone.
    """
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise ValueError(
            message(
                "time_zone: {name!r} is not a known time zone: write one such as Europe/Berlin, or "
                "leave it empty for the server's own",
                name=name,
            )
        ) from None


def local_time(moment: float, zone: tzinfo | None) -> datetime:
    """A moment as the clocks of the site show it."""
    return datetime.fromtimestamp(moment, zone) if zone else datetime.fromtimestamp(moment).astimezone()


def period_at(moment: float, name: PeriodName, zone: tzinfo | None) -> Period:
    """The period that a moment is in: days and weeks begin at midnight, weeks on Monday."""
    local = local_time(moment, zone)
    # A midnight that comes twice counts as the first one.
    today = local.replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0, fold=0)
    start = _first_day(today, name)
    before = _first_day(start - timedelta(days=1), name)
    after = _first_day(start + timedelta(days=_MOST_DAYS[name]), name)
    return Period(*(_timestamp(day, zone) for day in (before, start, after)))


def _first_day(day: datetime, name: PeriodName) -> datetime:
    if name == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if name == "month" else day


def _timestamp(midnight: datetime, zone: tzinfo | None) -> int:
    """The moment of a local midnight; where a change of the clock skips it, the moment of the change."""
    return int((midnight.replace(tzinfo=zone) if zone else midnight).timestamp())


# --- ollama_pack.budgets.table ---
# The budget table: a row a line, read once and then only looked up.
#
# For example::
#
#     everyone         200 requests/day                                # each user for themselves
#     role=user        120 gpu-minutes/day  burst=10  then=queue-last
#     group=students   500000 tokens/week   then=llama3:8b             # a smaller model answers
#     group="grade 7"  40 gpu-minutes/day   shared                     # all members together
#     user=ann@example.org  600 gpu-minutes/day

Measure = Literal["gpu", "tokens", "requests"]
SubjectKind = Literal["user", "group", "role", "everyone"]

MAX_BUDGET_ROWS = 500
MAX_AMOUNT = 10**12
REFUSE, QUEUE_LAST = "refuse", "queue-last"

# Unit → what is counted, and in which steps: GPU time is counted in milliseconds.
_UNITS: dict[str, tuple[Measure, int]] = {
    "gpu-seconds": ("gpu", 1_000),
    "gpu-minutes": ("gpu", 60_000),
    "tokens": ("tokens", 1),
    "requests": ("requests", 1),
}
_CLOSEST_FIRST: tuple[SubjectKind, ...] = ("user", "group", "role", "everyone")
_ROLES = ("user", "admin")
_BUDGET_WORD = re.compile(r'[\w-]+="[^"]*"|\S+')
_table__NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,3})?")
_MAIL = re.compile(r"[^@\s]+@[^@\s]+")
_FORM = message("write it as `group=students 120 gpu-minutes/day burst=10 then=queue-last`")


@dataclass(frozen=True, slots=True)
class BudgetSubject:
    """Whom a row is about.

    Attributes:
        kind: how it names them.
        name: a group's name, a role or an e-mail address; empty: everyone.
    """

    kind: SubjectKind
    name: str = ""

    @property
    def text(self) -> str:
        """As it stands in a row."""
        return f"{self.kind}={_quoted(self.name)}" if self.name else self.kind


def _quoted(name: str) -> str:
    return f'"{name}"' if " " in name else name


def _unquoted(value: str) -> str:
    return value.strip('"').strip()


@dataclass(frozen=True, slots=True)
class BudgetUser:
    """A user, as the table knows people.

    Attributes:
        id: Open WebUI's.
        email: the address, in any case of letters.
        role: user or admin.
        groups: names of the groups that the user is a member of.
    """

    id: str
    email: str = ""
    role: str = "user"
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """One row.

    Attributes:
        subject: whom it is about.
        amount: what may be used in a period: milliseconds of GPU time, tokens or requests.
        unit: as it is written, such as `gpu-minutes`.
        period: how long the amount lasts.
        shared: all of the subject share one amount; else each user has it.
        burst: how much more may be used once; the next period begins with what went beyond the amount.
        then: what happens to a chat once the budget is used up: `refuse`, `queue-last`, or the name of the
            model that answers instead.
        line: its number in the text, from 1.
    """

    subject: BudgetSubject
    amount: int
    unit: str
    period: PeriodName
    shared: bool = False
    burst: int = 0
    then: str = REFUSE
    line: int = field(default=0, compare=False)

    @property
    def measure(self) -> Measure:
        return _UNITS[self.unit][0]

    @property
    def scale(self) -> int:
        """How many counted steps make one of the unit."""
        return _UNITS[self.unit][1]

    def in_unit(self, steps: float) -> float:
        """Counted steps in the row's unit, such as 1.5 minutes."""
        return round(max(0.0, steps) / self.scale, 3)

    @property
    def text(self) -> str:
        """The row in the table's own notation; parsing it gives the row back."""
        words = [self.subject.text, f"{self.in_unit(self.amount):.15g} {self.unit}/{self.period}"]
        words += ["shared"] if self.shared else []
        words += [f"burst={self.in_unit(self.burst):.15g}"] if self.burst else []
        return " ".join([*words, f"then={_quoted(self.then)}"])

    def names(self, user: BudgetUser) -> bool:
        """Whether the row is about a user."""
        name = self.subject.name
        match self.subject.kind:
            case "user":
                return name == user.email.casefold()
            case "group":
                return name in user.groups
            case "role":
                return name == user.role
        return True

    def counter(self, user: BudgetUser) -> str:
        """The name of the counter that a user's chats count on.

        It holds no amount and, for a budget that each user has, no subject: what a user has used stays when
        an admin changes the table.
        """
        whose = f"all {self.subject.text}" if self.shared else f"user {user.id}"
        return f"{self.measure} {self.period} {whose}"


@dataclass(frozen=True, slots=True)
class BudgetTable:
    """The rows, as `parse_budgets` reads them."""

    rows: tuple[BudgetRow, ...] = ()

    @property
    def uses_groups(self) -> bool:
        """Whether a row asks for the user's groups, which cost a look into the database."""
        return any(row.subject.kind == "group" for row in self.rows)

    @property
    def groups(self) -> frozenset[str]:
        """The names of all groups that have a row."""
        return frozenset(row.subject.name for row in self.rows if row.subject.kind == "group")

    def rows_for(self, user: BudgetUser) -> tuple[BudgetRow, ...]:
        """The rows that hold for a user.

        Shared budgets all do. Of the others the one that names the user most closely holds, for each measure
        and period: `user=`, then `group=` (of several groups the largest amount), `role=`, `everyone`.
        """
        held: dict[tuple[Measure, PeriodName], BudgetRow] = {}
        shared = []
        for row in self.rows:
            if not row.names(user):
                continue
            if row.shared:
                shared.append(row)
                continue
            place = row.measure, row.period
            if place not in held or _closeness(row) < _closeness(held[place]):
                held[place] = row
        return (*held.values(), *shared)


def _closeness(row: BudgetRow) -> tuple[int, int]:
    return _CLOSEST_FIRST.index(row.subject.kind), -row.amount


@lru_cache(maxsize=16)  # valves are validated anew on every request, and nearly always hold the same text
def parse_budgets(text: str) -> BudgetTable:
    """Read a table: a row a line, `#` starts a comment, empty lines are skipped.

    Raises:
        BudgetTableError: naming the row, the value that is wrong and what to do.
    """
    rows: list[BudgetRow] = []
    for line, written in table_rows(text):
        try:
            row = _parse_row(line, written)
            _refuse_repeated_row(row, rows)
        except ValueError as fault:
            raise BudgetTableError(line, written, said_by(fault)) from None
        rows.append(row)
    return BudgetTable(tuple(rows))


def _parse_row(line: int, written: str) -> BudgetRow:
    """Read a row; here and below a ValueError says what is wrong with it."""
    words = _BUDGET_WORD.findall(written)
    if len(words) < 3:  # noqa: PLR2004 - a subject, a number, a unit
        raise ValueError(message("it is not complete: {form}", form=_FORM))
    subject = _subject(words[0])
    unit, period = _unit_and_period(words[2])
    scale = _UNITS[unit][1]
    amount = _amount(words[1], unit, scale)
    settings = _settings_of(words[3:])
    burst = _amount(settings["burst"], unit, scale, "burst=") if "burst" in settings else 0
    if burst > amount:
        raise ValueError(
            message(
                "burst={burst} is more than the amount {amount}: raise the amount",
                burst=settings["burst"],
                amount=words[1],
            )
        )
    shared = "shared" in settings
    if shared and subject.kind == "user":
        raise ValueError(message("user= names one person: leave shared out"))
    return BudgetRow(subject, amount, unit, period, shared, burst, settings.get("then", REFUSE), line)


def _subject(word: str) -> BudgetSubject:
    kind, equals, value = word.partition("=")
    name = _unquoted(value)
    if word == "everyone":
        return BudgetSubject("everyone")
    if not equals or kind not in ("group", "role", "user"):
        raise ValueError(
            message(
                "{word!r} does not say whose budget it is: begin with everyone, role=user, "
                "group=NAME or user=ADDRESS",
                word=word,
            )
        )
    if not name:
        raise ValueError(message("{kind}= has no name: write it after the =", kind=kind))
    if kind == "role":
        if name not in _ROLES:
            raise ValueError(
                message(
                    "role={name} is not a known role: the roles are {roles}",
                    name=name,
                    roles=message(" and ").join(_ROLES),
                )
            )
        return BudgetSubject("role", name)
    if kind == "group":
        return BudgetSubject("group", name)
    if not _MAIL.fullmatch(name):
        raise ValueError(
            message(
                "user={name} is not an e-mail address: write the one that the user signs in with", name=name
            )
        )
    return BudgetSubject("user", name.casefold())


def _unit_and_period(word: str) -> tuple[str, PeriodName]:
    unit, _, name = word.partition("/")
    if unit not in _UNITS:
        raise ValueError(
            message(
                "{word!r} is not a known unit: use {units}, as in gpu-minutes/day",
                word=word,
                units=", ".join(_UNITS),
            )
        )
    for period in PERIODS:
        if name == period:
            return unit, period
    raise ValueError(
        message(
            "{word!r} names no known period: write {unit}/day, {unit}/week or {unit}/month",
            word=word,
            unit=unit,
        )
    )


def _amount(word: str, unit: str, scale: int, named: str = "") -> int:
    number = float(word) if _table__NUMBER.fullmatch(word) else math.nan
    steps = number * scale
    if not 1 <= steps <= MAX_AMOUNT or (scale == 1 and not number.is_integer()):
        kind = message("a whole number") if scale == 1 else message("a number")
        raise ValueError(
            message(
                "{named}{word} cannot be used: {unit} need {kind} above 0, such as 100",
                named=named,
                word=word,
                unit=unit,
                kind=kind,
            )
        )
    return round(steps)


def _settings_of(words: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        value = _unquoted(value)
        if word != "shared" and not (equals and name in ("burst", "then")):
            raise ValueError(
                message(
                    "{word!r} is not known: after the unit come shared, burst=NUMBER and then=ACTION",
                    word=word,
                )
            )
        if name in found:
            raise ValueError(message("{name} is set twice: keep one of them", name=name))
        if equals and not value:
            raise ValueError(message("{name}= is empty: write its value, or leave it out", name=name))
        found[name] = value
    return found


def _refuse_repeated_row(row: BudgetRow, before: Sequence[BudgetRow]) -> None:
    place = row.subject, row.measure, row.period, row.shared
    for other in before:
        if place == (other.subject, other.measure, other.period, other.shared):
            raise ValueError(
                message(
                    "row {line} has a budget of {subject} for the same thing and the same period "
                    "already: keep one of them",
                    line=other.line,
                    subject=row.subject.text,
                )
            )
    if len(before) >= MAX_BUDGET_ROWS:
        raise ValueError(
            message(
                "at most {limit} rows can be used: name groups instead of users",
                limit=MAX_BUDGET_ROWS,
            )
        )


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


# --- ollama_pack.budgets.store ---
# What a store of budgets does, and the values that it takes and gives.

RESERVATION_SECONDS = 90.0  # after which a reservation that nobody renews is gone: its worker has died
SETTLED_SECONDS = 900.0  # that a settled reservation is remembered, so that it is not settled twice
SKEW_SECONDS = 3600  # by which the clocks of two replicas may differ


@dataclass(frozen=True, slots=True)
class Limit:
    """A counter, and how far it may go.

    Attributes:
        counter: its name.
        amount: what may be used in the period.
        burst: how much more may be used once.
        period: the one that is now.
        strict: a chat is not begun once it is used up.
    """

    counter: str
    amount: int
    burst: int
    period: Period
    strict: bool = False

    def is_used_up(self, count: "Count") -> bool:
        return count.used + count.reserved >= self.amount + self.burst


@dataclass(frozen=True, slots=True)
class Count:
    """What a counter says.

    Attributes:
        used: in this period.
        reserved: for chats that are under way.
    """

    used: int = 0
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class StoredCount:
    """A counter as the store has it, for lists.

    Attributes:
        counter: its name.
        start: when the period began that it counts.
        used: in that period.
        reserved: for chats that are under way.
    """

    counter: str
    start: int
    used: int
    reserved: int


class BudgetStore(Protocol):
    """Counters that several processes share. Each method is one step; a `BudgetStoreError` is its failure."""

    async def reserve(
        self, token: str, limits: Sequence[Limit], amounts: Sequence[int], now: float, *, always: bool
    ) -> tuple[bool, tuple[Count, ...]]:
        """Reserve an amount on each counter, unless a strict one is used up.

        Args:
            token: names the reservation.
            limits: the counters.
            amounts: what to reserve on each.
            now: seconds since the epoch.
            always: reserve also where a strict counter is used up.

        Returns:
            Whether it was reserved, and each counter as it was before.
        """

    async def settle(self, token: str, limits: Sequence[Limit], spent: Sequence[int], now: float) -> bool:
        """Put what was used in the place of what was reserved; False: that was done before."""

    async def renew(self, tokens: Sequence[str], now: float) -> None:
        """Keep reservations, whose chats are still under way, for another while."""

    async def counts(self, limits: Sequence[Limit], now: float) -> tuple[Count, ...]:
        """What the counters say."""

    async def all_counts(self, now: float) -> tuple[StoredCount, ...]:
        """Every counter that was used lately."""

    async def close(self) -> None:
        """Give back what it holds."""


def rolled(start: int | None, used: int, limit: Limit, now: float) -> tuple[int, int]:
    """A counter as it is in the period that is now: when that began, and what is used in it.

    Args:
        start: when the period began that the counter counts; None: there is no counter yet.
        used: in that period.
        limit: of the counter.
        now: seconds since the epoch.
    """
    ours = limit.period.start
    if start is None:
        return ours, 0
    if start < ours:
        over = min(max(0, used - limit.amount), limit.burst)
        return ours, over if start == limit.period.before else 0
    # Later than ours: another replica's clock is a little ahead, or the clock was wrong and is set right.
    return (start if start <= now + SKEW_SECONDS else ours), used


# --- ollama_pack.budgets.store_redis ---
# Budgets in Redis or Valkey, for any number of replicas. Each step is one run of one script.
#
# All keys have one tag in braces, so they are on one node of a cluster. Counts are whole numbers: milliseconds
# of GPU time, tokens, requests.
#
# | key | type | holds |
# |---|---|---|
# | `…c:<counter>` | hash | `start` of the period that it counts, `used` in it |
# | `…r:<counter>` | sorted set | `<token> <amount>` of each reservation, by when it expires |
# | `…s:<token>` | string | a reservation that was settled, for as long as it might be settled again |
# | `…all` | sorted set | all counters, by when they were used last |

BUDGET_KEYS = "ollama_pack:{budgets}:"
_MARGIN_SECONDS = 86_400  # that a counter outlives the period after its own
_LISTED_AT_ONCE = 500

# One script for all steps, so that there is one place for what a period is. ARGV: step, now, token, then by
# step; for each counter: name, amount, burst, previous start, start, end, strict, what to add.
_BUDGET_SCRIPT = lua_script("""
local keys, step, now, token = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
local skew, life, remembered, margin = tonumber(ARGV[4]), ARGV[5], ARGV[6], tonumber(ARGV[7])
local time = redis.call('TIME')
local clock = time[1] * 1000 + math.floor(time[2] / 1000)
local function whole(number) return string.format('%.0f', number) end

local function reserved(name)
  local sum = 0
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', keys .. 'r:' .. name, '(' .. clock, '+inf')) do
    sum = sum + tonumber(string.match(entry, ' (%d+)$'))
  end
  return sum
end

local function stored(name, amount, burst, before, start)
  local found = redis.call('HMGET', keys .. 'c:' .. name, 'start', 'used')
  if not found[1] then return start, 0 end
  local counted, used = tonumber(found[1]), tonumber(found[2])
  if counted < start then
    if counted ~= before then return start, 0 end
    return start, math.min(math.max(0, used - amount), burst)
  end
  if counted <= now + skew then return counted, used end
  return start, used
end

if step == 'list' then
  local answer = {}
  local names = redis.call('ZRANGE', keys .. 'all', token, token + ARGV[8] - 1)
  for _, name in ipairs(names) do
    local found = redis.call('HMGET', keys .. 'c:' .. name, 'start', 'used')
    answer[#answer + 1] = {name, found[1] or '0', found[2] or '0', whole(reserved(name))}
  end
  return answer
end

local counters = {}
for i = 8, #ARGV, 8 do
  local counter = {name = ARGV[i], amount = tonumber(ARGV[i + 1]), burst = tonumber(ARGV[i + 2]),
    keep = ARGV[i + 5] * 2 - ARGV[i + 4] - now + margin,
    strict = ARGV[i + 6] == '1', add = tonumber(ARGV[i + 7])}
  counter.start, counter.used =
    stored(counter.name, counter.amount, counter.burst, tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4]))
  counters[#counters + 1] = counter
end

if step == 'settle' then
  if not redis.call('SET', keys .. 's:' .. token, '1', 'NX', 'PX', remembered) then return 0 end
  for _, counter in ipairs(counters) do
    local reservations = keys .. 'r:' .. counter.name
    for _, entry in ipairs(redis.call('ZRANGE', reservations, 0, -1)) do
      if string.sub(entry, 1, #token + 1) == token .. ' ' then redis.call('ZREM', reservations, entry) end
    end
    local key = keys .. 'c:' .. counter.name
    redis.call('HSET', key, 'start', whole(counter.start), 'used', whole(counter.used + counter.add))
    redis.call('EXPIRE', key, whole(math.max(margin, counter.keep)))
    redis.call('ZADD', keys .. 'all', clock, counter.name)
  end
  redis.call('ZREMRANGEBYSCORE', keys .. 'all', '-inf', clock - 70 * 86400000)
  return 1
end

local answer, full = {}, false
for _, counter in ipairs(counters) do
  local held = reserved(counter.name)
  answer[#answer + 1] = {whole(counter.used), whole(held)}
  full = full or (counter.strict and counter.used + held >= counter.amount + counter.burst)
end
if step == 'counts' then return {1, answer} end
if step == 'reserve' and full then return {0, answer} end
for _, counter in ipairs(counters) do
  local reservations = keys .. 'r:' .. counter.name
  redis.call('ZREMRANGEBYSCORE', reservations, '-inf', clock)
  redis.call('ZADD', reservations, clock + life, token .. ' ' .. whole(counter.add))
  redis.call('PEXPIRE', reservations, life)
end
return {1, answer}
""")


class RedisBudgetStore:
    """See `BudgetStore`."""

    def __init__(self, client: RedisClient) -> None:
        """Connect nothing yet.

        Args:
            client: as `redis_client` makes it. The store changes and closes it.
        """
        self._client = client
        if connection_pool_of(client) is not None:  # a cluster's client needs them for itself
            client.response_callbacks.clear()  # answers as the server gives them
        self._held: dict[str, tuple[tuple[Limit, ...], tuple[int, ...]]] = {}

    async def reserve(
        self, token: str, limits: Sequence[Limit], amounts: Sequence[int], now: float, *, always: bool
    ) -> tuple[bool, tuple[Count, ...]]:
        step = "always" if always else "reserve"
        reserved, counts = await self._run(step, token, now, limits, amounts)
        if reserved:
            self._held[token] = tuple(limits), tuple(amounts)
        return bool(reserved), _counts_in(counts)

    async def settle(self, token: str, limits: Sequence[Limit], spent: Sequence[int], now: float) -> bool:
        self._held.pop(token, None)
        return bool(await self._run("settle", token, now, limits, spent))

    async def renew(self, tokens: Sequence[str], now: float) -> None:
        for token in tokens:
            if held := self._held.get(token):
                await self._run("always", token, now, *held)

    async def counts(self, limits: Sequence[Limit], now: float) -> tuple[Count, ...]:
        return _counts_in((await self._run("counts", "", now, limits, [0] * len(limits)))[1])

    async def all_counts(self, now: float) -> tuple[StoredCount, ...]:
        found: list[StoredCount] = []
        while True:
            page = await self._call("list", now, len(found), _LISTED_AT_ONCE)
            found += [StoredCount(name.decode(), *map(int, figures)) for name, *figures in page]
            if len(page) < _LISTED_AT_ONCE:
                return tuple(found)

    async def close(self) -> None:
        await self._client.aclose()

    async def _run(
        self, step: str, token: str, now: float, limits: Sequence[Limit], amounts: Sequence[int]
    ) -> Any:
        values: list[str | int] = []
        for limit, amount in zip(limits, amounts, strict=True):
            period = limit.period
            values += [limit.counter, limit.amount, limit.burst, period.before, period.start, period.end]
            values += [int(limit.strict), amount]
        return await self._call(step, now, token, *values)

    async def _call(self, step: str, now: float, token: str | int, *values: str | int) -> Any:
        life, remembered = int(RESERVATION_SECONDS * 1000), int(SETTLED_SECONDS * 1000)
        fixed = step, int(now), token, SKEW_SECONDS, life, remembered, _MARGIN_SECONDS
        send = self._client.execute_command
        try:
            return await run_script(send, _BUDGET_SCRIPT, [BUDGET_KEYS], *fixed, *values)
        except redis_faults() as error:
            raise BudgetStoreError(message("Redis failed: {error}", error=redis_fault(error))) from error


def _counts_in(answer: Any) -> tuple[Count, ...]:
    return tuple(Count(int(used), int(held)) for used, held in answer)


# --- ollama_pack.budgets.store_sqlite ---
# Budgets in one SQLite file, for the workers of one machine.

T = TypeVar("T")

_LOCK_SECONDS = 2.0  # that a step waits for another process
_TIDY_SECONDS = 60.0
_KEPT_SECONDS = 70 * 86_400  # a counter that nobody uses: two months, so that a burst is still known

_BUDGET_TABLES = """
CREATE TABLE IF NOT EXISTS counters (
  counter TEXT PRIMARY KEY, start INTEGER, used INTEGER, at REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reservations (
  token TEXT, counter TEXT, amount INTEGER, ends REAL, PRIMARY KEY (token, counter)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS reserved_on ON reservations (counter, ends, amount);
CREATE TABLE IF NOT EXISTS settled (token TEXT PRIMARY KEY, ends REAL) WITHOUT ROWID;
"""


class SqliteBudgetStore:
    """See `BudgetStore`. One connection, in one thread, made with the first step."""

    def __init__(self, path: Path) -> None:
        """Open nothing yet.

        Args:
            path: of the file, in a folder that exists.
        """
        self._path = path
        self._link: sqlite3.Connection | None = None
        self._tidy_at = 0.0
        self._thread = ThreadPoolExecutor(1, "ollama-pack-budgets")

    async def reserve(
        self, token: str, limits: Sequence[Limit], amounts: Sequence[int], now: float, *, always: bool
    ) -> tuple[bool, tuple[Count, ...]]:
        def step(link: sqlite3.Connection) -> tuple[bool, tuple[Count, ...]]:
            counts = tuple(_count(link, limit, now) for limit in limits)
            full = any(
                limit.strict and limit.is_used_up(count) for limit, count in zip(limits, counts, strict=True)
            )
            if full and not always:
                return False, counts
            ends = now + RESERVATION_SECONDS
            for limit, amount in zip(limits, amounts, strict=True):
                row = (token, limit.counter, amount, ends)
                link.execute("INSERT OR REPLACE INTO reservations VALUES (?, ?, ?, ?)", row)
            self._tidy(link, now)
            return True, counts

        return await self._do(step)

    async def settle(self, token: str, limits: Sequence[Limit], spent: Sequence[int], now: float) -> bool:
        def step(link: sqlite3.Connection) -> bool:
            mark = link.execute("INSERT OR IGNORE INTO settled VALUES (?, ?)", (token, now + SETTLED_SECONDS))
            if not mark.rowcount:
                return False
            link.execute("DELETE FROM reservations WHERE token = ?", (token,))
            for limit, amount in zip(limits, spent, strict=True):
                start, used = _stored(link, limit, now)
                row = (limit.counter, start, used + amount, now)
                link.execute("INSERT OR REPLACE INTO counters VALUES (?, ?, ?, ?)", row)
            return True

        return await self._do(step)

    async def renew(self, tokens: Sequence[str], now: float) -> None:
        rows = [(now + RESERVATION_SECONDS, token) for token in tokens]
        await self._do(
            lambda link: link.executemany("UPDATE reservations SET ends = ? WHERE token = ?", rows)
        )

    async def counts(self, limits: Sequence[Limit], now: float) -> tuple[Count, ...]:
        return await self._do(lambda link: tuple(_count(link, limit, now) for limit in limits), writes=False)

    async def all_counts(self, now: float) -> tuple[StoredCount, ...]:
        def step(link: sqlite3.Connection) -> tuple[StoredCount, ...]:
            rows = link.execute(
                "SELECT counter, start, used, (SELECT coalesce(sum(amount), 0) FROM reservations"
                " WHERE reservations.counter = counters.counter AND ends > ?) FROM counters ORDER BY counter",
                (now,),
            )
            return tuple(StoredCount(*row) for row in rows)

        return await self._do(step, writes=False)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)

    async def _do(self, step: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._step, step, writes)

    def _step(self, step: Callable[[sqlite3.Connection], T], writes: bool) -> T:  # noqa: FBT001 - run_in_executor
        """In the thread: one step, or what went wrong in the store's own terms."""
        try:
            link = self._link or self._connect()
            if not writes:
                return step(link)
            with _one_step(link):
                return step(link)
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                self._disconnect()
            raise BudgetStoreError(
                message("SQLite failed at {path}: {error}", path=self._path, error=error)
            ) from error

    def _connect(self) -> sqlite3.Connection:
        link = sqlite3.connect(self._path, timeout=_LOCK_SECONDS, isolation_level=None)
        try:
            link.execute("PRAGMA journal_mode = WAL")
            link.execute("PRAGMA synchronous = NORMAL")
            link.executescript(_BUDGET_TABLES)
            self._path.chmod(0o600)
        except BaseException:
            link.close()
            raise
        self._link = link
        return link

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _tidy(self, link: sqlite3.Connection, now: float) -> None:
        """Delete now and then what has ended; a clock that was set back counts as a reason, too."""
        if abs(now - self._tidy_at) < _TIDY_SECONDS:
            return
        self._tidy_at = now
        for table in ("reservations", "settled"):
            link.execute(f"DELETE FROM {table} WHERE ends <= ?", (now,))  # noqa: S608 - a literal
        link.execute("DELETE FROM counters WHERE at <= ?", (now - _KEPT_SECONDS,))


@contextmanager
def _one_step(link: sqlite3.Connection) -> Iterator[None]:
    link.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        link.rollback()
        raise
    link.commit()


def _stored(link: sqlite3.Connection, limit: Limit, now: float) -> tuple[int, int]:
    found = link.execute("SELECT start, used FROM counters WHERE counter = ?", (limit.counter,)).fetchone()
    start, used = found or (None, 0)
    return rolled(start, used, limit, now)


def _count(link: sqlite3.Connection, limit: Limit, now: float) -> Count:
    reserved = link.execute(
        "SELECT coalesce(sum(amount), 0) FROM reservations WHERE counter = ? AND ends > ?",
        (limit.counter, now),
    ).fetchone()[0]
    return Count(_stored(link, limit, now)[1], reserved)


# --- ollama_pack.engines.body ---
# Reading fields of a body that nobody has checked: a value of the right type, or a refusal by name.


def object_at(value: object, *path: str) -> Mapping[str, Any]:
    """The object that a path of fields leads to; an empty one where there is something else."""
    for field in path:
        value = value.get(field) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


# --- ollama_pack.base.time_limit ---
# A time limit that does not run out while this process itself is held up.

_PARTS = 5  # of a limit: a pause of this process counts as one of them, however long it is


@asynccontextmanager
async def time_limit(seconds: float) -> AsyncIterator[None]:
    """What is awaited inside may take so long.

    A server that loads a plugin answers nothing for a second, and a busy machine runs nothing at all for a
    while. Then the limit of `asyncio.timeout` is over, though the answer may have come at once. Here it runs
    out only where the event loop was free to take the answer for four fifths of it.

    Args:
        seconds: the limit.

    Raises:
        TimeoutError: it took longer.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:

        async def run_out() -> None:
            for _ in range(_PARTS):
                await asyncio.sleep(seconds / _PARTS)
            limit.reschedule(loop.time())

        running_out = loop.create_task(run_out())
        try:
            yield
        finally:
            running_out.cancel()


# --- ollama_pack.services.budgets ---
# Budgets at work: reserve before a chat, settle after it, say what is left.
#
# A store that fails never keeps a chat from being answered. What could not be settled is tried again while the
# process lives; `fault` says what is wrong, and the log says it once.

log = logging.getLogger(__name__)

LOW_SHARE = 0.2  # of a budget: what is left is shown from here on
BUSY_RETRY_SECONDS = 15  # after which other chats of the user may have ended
_STEP_SECONDS = 1.0  # that a chat waits for the store
_REST_SECONDS = 5.0  # that a store is left alone after it failed
_RENEW_SECONDS = RESERVATION_SECONDS / 3
_MOST_UNSETTLED = 10_000
_LEARNING = 0.1  # weight of the last chat in what the next one is expected to use
_PERIOD_WORDS = {"day": message("today"), "week": message("this week"), "month": message("this month")}


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """What a chat used.

    Attributes:
        seconds: of GPU time.
        tokens: of the prompts and the answers.
        requests: 1, or 0 where there was no answer.
    """

    seconds: float = 0.0
    tokens: float = 0.0
    requests: int = 1

    def steps(self, row: BudgetRow) -> int:
        """What counts for a row, in the steps that its counter counts in."""
        match row.measure:
            case "gpu":
                return math.ceil(max(0.0, self.seconds) * 1000)
            case "tokens":
                return math.ceil(max(0.0, self.tokens))
        return self.requests


@dataclass(frozen=True, slots=True)
class Reservation:
    """A chat that may begin.

    Attributes:
        token: names it in the store.
        user: who pays.
        rows: the budgets that hold for the user.
        last: a budget is used up: the chat comes behind all others.
        model: a budget is used up: this model answers instead; empty: the one that was asked for.
        low: a line for the user where little is left; empty: enough is.
    """

    token: str
    user: BudgetUser
    rows: tuple[BudgetRow, ...]
    last: bool = False
    model: str = ""
    low: str = ""


class Budgets:
    """The budgets of a site. Lives on one event loop."""

    def __init__(
        self,
        table: BudgetTable,
        store: BudgetStore,
        zone: tzinfo | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Ask the store nothing yet.

        Args:
            table: the rows.
            store: where the counters are.
            zone: the site's time zone; None: the server's.
            clock: seconds since the epoch.
        """
        self.table = table
        self.fault = ""
        self._store = store
        self._zone = zone
        self._clock = clock
        self._expected = BudgetUse(seconds=5.0, tokens=500)
        self._open: dict[str, Reservation] = {}
        self._unsettled: dict[str, tuple[Reservation, BudgetUse]] = {}
        self._rest_until = 0.0
        self._upkeep: asyncio.Task[None] | None = None
        self._closing = False

    async def reserve(self, user: BudgetUser, *, always: bool = False) -> Reservation | Refusal | None:
        """Let a chat begin, or not.

        Args:
            user: who asks.
            always: it may begin whatever is used up, and counts as no request: a background call of a chat
                that has begun.

        Returns:
            None: no budget holds for the user, or the store cannot be asked.
        """
        rows = self.table.rows_for(user)
        if not rows:
            return None
        now = self._clock()
        limits = self._limits(rows, user, now)
        expected = replace(self._expected, requests=0 if always else 1)
        amounts = [expected.steps(row) for row in rows]
        token = uuid4().hex
        answer = await self._ask(self._store.reserve(token, limits, amounts, now, always=always))
        if answer is None:
            return None
        reserved, counts = answer
        used_up = [
            (row, limit, count)
            for row, limit, count in zip(rows, limits, counts, strict=True)
            if limit.is_used_up(count)
        ]
        if not reserved:
            return self._refusal([each for each in used_up if each[0].then == REFUSE])
        model = next((row.then for row, *_ in used_up if row.then not in (REFUSE, QUEUE_LAST)), "")
        last = any(row.then == QUEUE_LAST for row, *_ in used_up)
        after = [replace(count, used=count.used + own) for count, own in zip(counts, amounts, strict=True)]
        low = "" if used_up else low_line(rows, after)
        reservation = Reservation(token, user, rows, last, model, low)
        self._open[token] = reservation
        self._keep_up()
        return reservation

    async def settle(self, reservation: Reservation, use: BudgetUse) -> None:
        """Count what a chat has used. Safe to call twice."""
        if self._open.pop(reservation.token, None) is None:
            return
        if use.requests:
            self._learn(use)
        await self._settle(reservation, use)

    async def usage(self, user: BudgetUser) -> list[dict[str, Any]]:
        """The budgets that hold for a user, and what is left of them, as plain values."""
        rows = self.table.rows_for(user)
        now = self._clock()
        limits = self._limits(rows, user, now)
        counts = (await self._ask(self._store.counts(limits, now)) if rows else ()) or (Count(),) * len(rows)
        return [
            self._report(row, limit, count) for row, limit, count in zip(rows, limits, counts, strict=True)
        ]

    async def everybody(self) -> list[dict[str, Any]]:
        """What each user and each group has used in the periods that are now, as plain values."""
        now = self._clock()
        found = []
        for stored in await self._ask(self._store.all_counts(now)) or ():
            measure, period, kind, name = stored.counter.split(" ", 3)
            if stored.start >= period_at(now, period, self._zone).start:  # type: ignore[arg-type] # as written
                scale = 1000 if measure == "gpu" else 1
                found.append(
                    {
                        "whose": name,
                        "shared": kind == "all",
                        "unit": "gpu-seconds" if measure == "gpu" else measure,
                        "period": period,
                        "used": stored.used / scale,
                        "under_way": stored.reserved / scale,
                    }
                )
        return found

    async def close(self) -> None:
        """Settle what has ended, and give the store back once no chat is under way."""
        self._closing = True
        if self._upkeep is None:
            await self._store.close()

    # --- the store ---

    async def _ask(self, step: Awaitable[T]) -> T | None:
        """The answer of the store; None: there is none, and chats go on without."""
        if time.monotonic() < self._rest_until:
            if asyncio.iscoroutine(step):
                step.close()
            return None
        try:
            async with time_limit(_STEP_SECONDS):
                answer = await step
        except (PackError, TimeoutError) as error:
            self._rest_until = time.monotonic() + _REST_SECONDS
            if not self.fault:
                late = message("it does not answer within {seconds:g} s", seconds=_STEP_SECONDS)
                why = said_by(error) or late
                log.warning("Budgets are not counted and do not hold until their store works again: %s", why)
                self.fault = why
            return None
        if self.fault:
            self.fault = ""
            log.warning("The store of the budgets works again: budgets hold")
        return answer

    async def _settle(self, reservation: Reservation, use: BudgetUse) -> bool:
        now = self._clock()
        limits = self._limits(reservation.rows, reservation.user, now)
        spent = [use.steps(row) for row in reservation.rows]
        if await self._ask(self._store.settle(reservation.token, limits, spent, now)) is not None:
            return True
        if len(self._unsettled) < _MOST_UNSETTLED:
            self._unsettled[reservation.token] = reservation, use
            self._keep_up()
        return False

    def _keep_up(self) -> None:
        if self._upkeep is None:
            self._upkeep = asyncio.get_running_loop().create_task(self._look_after())

    async def _look_after(self) -> None:
        """Renew what is under way and settle what could not be; ends when there is nothing of either."""
        renewed = time.monotonic()
        try:
            while self._open or self._unsettled:
                await asyncio.sleep(_REST_SECONDS)
                for token, (reservation, use) in list(self._unsettled.items()):
                    del self._unsettled[token]
                    if not await self._settle(reservation, use):
                        break
                if self._open and time.monotonic() - renewed >= _RENEW_SECONDS:
                    renewed = time.monotonic()
                    await self._ask(self._store.renew(list(self._open), self._clock()))
        finally:
            self._upkeep = None
        if self._closing:
            await self._store.close()

    # --- what they come to ---

    def _limits(self, rows: Sequence[BudgetRow], user: BudgetUser, now: float) -> tuple[Limit, ...]:
        return tuple(
            Limit(
                row.counter(user),
                row.amount,
                row.burst,
                period_at(now, row.period, self._zone),
                strict=row.then == REFUSE,
            )
            for row in rows
        )

    def _learn(self, use: BudgetUse) -> None:
        old = self._expected
        self._expected = replace(
            old,
            seconds=old.seconds + _LEARNING * (use.seconds - old.seconds),
            tokens=old.tokens + _LEARNING * (use.tokens - old.tokens),
        )

    def _refusal(self, used_up: Sequence[tuple[BudgetRow, Limit, Count]]) -> Refusal:
        def is_spent(limit: Limit, count: Count) -> bool:
            return limit.is_used_up(replace(count, reserved=0))

        row, limit, count = max(used_up, key=lambda each: (is_spent(*each[1:]), each[1].period.end))
        amount = _amount_words(row, row.amount)
        if not is_spent(limit, count):
            sentence = message(
                "Chats that are being answered may use up what is left of your budget: {amount} {period}. "
                "Try again when they are done.",
                amount=amount,
                period=_PERIOD_WORDS[row.period],
            )
            status = HTTPStatus.TOO_MANY_REQUESTS
            return Refusal(status, sentence, "budget_reserved", None, BUSY_RETRY_SECONDS)
        end = local_time(limit.period.end, self._zone)
        when = f"{end:%Y-%m-%d %H:%M}"
        if row.shared:
            sentence = message(
                "The budget shared by {subject} is used up: {amount} {period}. You can go on from {when}.",
                subject=row.subject.text,
                amount=amount,
                period=_PERIOD_WORDS[row.period],
                when=when,
            )
        else:
            sentence = message(
                "You have used up your budget: {amount} {period}. You can go on from {when}.",
                amount=amount,
                period=_PERIOD_WORDS[row.period],
                when=when,
            )
        wait = max(1, math.ceil(limit.period.end - self._clock()))
        return Refusal(HTTPStatus.TOO_MANY_REQUESTS, sentence, "budget_used_up", None, wait)

    def _report(self, row: BudgetRow, limit: Limit, count: Count) -> dict[str, Any]:
        return {
            "budget": row.text,
            "subject": row.subject.text,
            "unit": row.unit,
            "period": row.period,
            "shared": row.shared,
            "amount": row.in_unit(row.amount),
            "burst": row.in_unit(row.burst),
            "used": row.in_unit(count.used),
            "under_way": row.in_unit(count.reserved),
            "left": row.in_unit(row.amount + row.burst - count.used - count.reserved),
            "starts": local_time(limit.period.start, self._zone).isoformat(),
            "ends": local_time(limit.period.end, self._zone).isoformat(),
            "then": row.then,
        }


def low_line(rows: Sequence[BudgetRow], counts: Sequence[Count]) -> str:
    """A line about the budget of which the smallest part is left; empty: enough is left of all."""
    found = []
    for row, count in zip(rows, counts, strict=True):
        left = max(0, row.amount + row.burst - count.used - count.reserved)
        if left < LOW_SHARE * row.amount:
            found.append((left / row.amount, row, left))
    if not found:
        return ""
    _, row, left = min(found, key=lambda each: each[0])
    words = message(
        "{left} of {amount} left {period}",
        left=_number(row.in_unit(left)),
        amount=_amount_words(row, row.amount),
        period=_PERIOD_WORDS[row.period],
    )
    return joined([words, row.subject.text if row.shared else ""])


def _amount_words(row: BudgetRow, steps: int) -> Message:
    """Such as `120 GPU-minutes`."""
    number = _number(row.in_unit(steps))
    match row.unit:
        case "gpu-seconds":
            return message("{number} GPU-seconds", number=number)
        case "gpu-minutes":
            return message("{number} GPU-minutes", number=number)
        case "tokens":
            return message("{number} tokens", number=number)
    return message("{number} requests", number=number)


def _number(value: float) -> str:
    """A figure as people read it: `120`, `1.5`, `500,000`."""
    return f"{round(value, 1):,}".removesuffix(".0")


# --- ollama_pack.services.budget_chats ---
# Chats that are under way and their budgets: what each has used so far, by whoever knows it best.

BUDGET_STATE = "ollama_pack_budget"  # the filter's key in `__metadata__`, where it leaves the ticket
_NANO = 1e-9


class BudgetTicket(dict[str, Any]):
    """What `__metadata__` holds of a chat: when the last reference to it goes, the chat has ended."""

    __slots__ = ("__weakref__",)


@dataclass(slots=True)
class ChatBudget:
    """One chat that counts against budgets.

    Attributes:
        reservation: what it reserved.
        budgets: where it counts.
        began: when, in seconds of the monotonic clock.
        is_request: it counts as a request; a background call of a chat does not.
        is_routed: the router answers it, and says what each answer took.
        served: seconds of GPU time and tokens of each answer, as the router knows them.
        figures: seconds and tokens of each answer, as the engine reported them.
        first_at: when the answer began that has no figures yet; None: none has.
        pieces: chunks of that answer.
        answered: an answer came.
        heard_at: when something was heard of it last.
        ended: id of the answer whose figures came last.
        ended_began: when that answer began.
        round: id of the answer that has no figures yet.
        is_finished: it has said that it is over; figures may come yet.
    """

    reservation: Reservation
    budgets: Budgets
    began: float
    is_request: bool = True
    is_routed: bool = False
    served: list[tuple[float, float]] = field(default_factory=list)
    figures: list[tuple[float, float]] = field(default_factory=list)
    first_at: float | None = None
    pieces: int = 0
    answered: bool = False
    heard_at: float = 0.0
    ended: str = ""
    ended_began: float = 0.0
    round: str = ""
    is_finished: bool = False

    def take(self, chunk: Mapping[str, Any], now: float) -> None:
        """Look at a chunk of a streamed answer; an error or a source is no part of one."""
        if chunk.get("error") or not (chunk.get("choices") or chunk.get("usage")):
            return
        before, self.heard_at = self.heard_at, now
        self.answered = True
        about = chunk.get("ollama_pack")
        if isinstance(about, Mapping) and about.get("cache"):
            self.take_kept()
            return
        figures = {**object_at(chunk.get("usage")), **object_at(chunk.get("timings"))}
        name = str(chunk.get("id") or "")
        goes_on = bool(name) and name == self.ended
        if figures:
            if goes_on:  # some engines send what it comes to so far with each chunk
                self.figures.pop()
                self.first_at = self.ended_began
            self._end_answer(figures, now)
            self.ended = name
        elif not goes_on:
            if self.is_finished and name != self.round:  # tools have run since
                self._end_answer({}, before)
            self.first_at = now if self.first_at is None else self.first_at
            self.round, self.is_finished = name, self.is_finished or _is_over(chunk)
        self.pieces += self.first_at is not None

    def take_whole(self, usage: Mapping[str, Any], now: float) -> None:
        """An answer has ended, with these figures or none."""
        self._end_answer(usage, now if self.first_at is None else self.heard_at)

    def _end_answer(self, usage: Mapping[str, Any], ended: float) -> None:
        began = self.began if self.first_at is None else self.first_at
        self.figures.append(_figures_of(usage, ended - began, self.pieces))
        self.answered, self.first_at, self.pieces, self.is_finished = True, None, 0, False
        self.ended_began = began

    def take_kept(self) -> None:
        """The answer comes from the response cache: nothing was generated for it."""
        self.figures, self.ended = [(0.0, 0.0)], ""
        self.answered, self.first_at, self.pieces, self.is_finished = True, None, 0, False

    def use(self, now: float, *, left: bool = False) -> BudgetUse:
        """What the chat has used.

        Args:
            now: seconds of the monotonic clock.
            left: its user has left while it was answered.
        """
        if self.served:
            return _sum(self.served, requests=int(self.is_request))
        found = list(self.figures)
        if self.first_at is not None:
            # Nobody may say that an answer without figures is over: then its last word was the end.
            found.append(((now if left else self.heard_at) - self.first_at, float(self.pieces)))
        elif left and not found and not self.is_routed:  # at the router it has only waited
            found.append((now - self.began, 0.0))
        if found:
            return _sum(found, requests=int(self.is_request))
        return BudgetUse(requests=int(self.answered))


def _is_over(chunk: Mapping[str, Any]) -> bool:
    """Whether a chunk says that its answer ends."""
    choices = chunk.get("choices")
    return isinstance(choices, list) and any(object_at(one).get("finish_reason") for one in choices)


def _sum(found: list[tuple[float, float]], *, requests: int) -> BudgetUse:
    return BudgetUse(sum(seconds for seconds, _ in found), sum(tokens for _, tokens in found), requests)


def _figures_of(usage: Mapping[str, Any], elapsed: float, pieces: int) -> tuple[float, float]:
    """Seconds of service and tokens: as Ollama or llama.cpp report them, else time that passed and chunks."""
    tokens = _figure(usage, "total_tokens") or sum(
        _figure(usage, one) or _figure(usage, other)
        for one, other in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
    )
    tokens = tokens or sum(_figure(usage, name) for name in ("cache_n", "prompt_n", "predicted_n"))
    seconds = _NANO * (_figure(usage, "prompt_eval_duration") + _figure(usage, "eval_duration"))
    seconds = seconds or (_figure(usage, "prompt_ms") + _figure(usage, "predicted_ms")) / 1000
    return seconds or max(0.0, elapsed), tokens or pieces


def _figure(figures: Mapping[str, Any], name: str) -> float:
    value = figures.get(name)
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0.0
    )


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """What budgets are made of.

    Attributes:
        rows: the table.
        time_zone: of the site; empty: the server's.
        url: of Redis; empty: the file at `path`.
        path: of SQLite's file.
    """

    rows: str
    time_zone: str
    url: str = field(repr=False)
    path: Path


class BudgetKeeper:
    """Has the budgets that the valves ask for."""

    def __init__(self) -> None:
        self._made_of: BudgetSettings | None = None
        self._budgets: Budgets | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def budgets(self, settings: BudgetSettings) -> Budgets:
        """The budgets for these settings; others once they change. Nothing is opened until it is used."""
        if self._budgets is None or self._made_of != settings:
            self.retire()
            table = parse_budgets(settings.rows)
            self._budgets = Budgets(table, _store_of(settings), site_zone(settings.time_zone))
            self._made_of = settings
        return self._budgets

    def retire(self) -> None:
        """Give the store back once the chats under way have been counted."""
        if self._budgets is not None:
            task = asyncio.get_running_loop().create_task(self._budgets.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._budgets = None


def _store_of(settings: BudgetSettings) -> BudgetStore:
    return RedisBudgetStore(redis_client(settings.url)) if settings.url else SqliteBudgetStore(settings.path)


# --- ollama_pack.services.cacheable ---
# Which requests the cache is for, whose answers they share, and what it is asked.
#
# It is read from a chat's body and the metadata that Open WebUI has with it, and sends to Pipelines too.

# What `response_cache_filter` leaves for `response_cache_replay`, as neither file can import the other. It is
# a key in Open WebUI's `__metadata__`, which lives as long as the request. Its value has the `rounds` so far,
# and of the last one that the cache is for: the `model` that was asked, the id of the `filter`, and the
# `ticket` that it gives the answer for. `cached`: nothing is generated for it, which usage_budgets looks at.
STATE = "ollama_pack_cache"


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


def awaited_outcome(request: Any) -> dict[str, Any]:
    """How a request ends, which is noted here before its task is over.

    Returns:
        `usage`: a whole answer went to the client, with these figures. `left`: the client left before that.
    """
    outcome: dict[str, Any] = {}
    setattr(request.state, OUTCOME_NOTE, outcome)
    return outcome


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


# --- ollama_pack.engines.model_ids ---
# Ids of models that clients can use: alias tables and addresses split at spaces, commas and the like.
#
# Those that `gpu_router` answers begin with its name, on Open WebUI and on the Pipelines server.

ROUTER = "gpu_router."


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


# --- ollama_pack.webui.server ---
# What a plugin takes from its Open WebUI: a secret, a folder, streamed answers, its place.
#
# Imports Open WebUI and its web framework when called.


def data_folder() -> Path:
    """Where Open WebUI keeps its data."""
    from open_webui.env import DATA_DIR  # noqa: PLC0415

    return Path(DATA_DIR)


RUNNING = "OLLAMA_PACK_RUNNING"  # on `app.state`: function id → the instance, also of older code


class Retiring(Protocol):
    """A function that holds connections, threads or files."""

    def retire(self) -> None:
        """Give them back, once what is under way has ended."""


def take_over(app: Any, function_id: str, instance: Retiring) -> None:
    """Be the one that runs in this process, and have the one before give back what it holds.

    Args:
        app: Open WebUI's.
        function_id: the function's id, as the admin saved it.
        instance: is asked to retire in its turn.
    """
    if not hasattr(app.state, RUNNING):
        setattr(app.state, RUNNING, {})
    running: dict[str, Any] = getattr(app.state, RUNNING)
    before = running.get(function_id)
    if before is not instance:
        running[function_id] = instance
        if before is not None:
            before.retire()


# --- ollama_pack.webui.users ---
# Users of the running Open WebUI, their groups and their language. Imports `open_webui` when called.


async def group_names(user: Mapping[str, Any]) -> frozenset[str]:
    """Names of the groups that a user is a member of, inherited ones included."""
    return frozenset(group.name for group in await _groups_of(user))


async def all_group_names() -> frozenset[str]:
    """Names of the groups that there are."""
    from open_webui.models.groups import Groups  # noqa: PLC0415 - see the top of this module

    return frozenset(group.name for group in await Groups.get_all_groups())


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


# --- ollama_pack.plugins.functions.usage_budgets ---

SILENT_SECONDS = 60.0  # after which a stream whose task has ended is over
BUDGET_DATABASE = "ollama_pack_budgets.sqlite3"  # in Open WebUI's folder of data

Body = dict[str, Any]
Emitter = Callable[[dict[str, Any]], Awaitable[None]]
Hook = Callable[..., Awaitable[Any]]


class Filter:
    """Reserves a part of the user's budgets before a chat, and counts what it used afterwards."""

    class Valves(PackValves):
        priority: int = Field(
            default=-10,
            title="Priority",
            description=(
                "Filters run in order of this number, lowest first. Budgets should run before the alias "
                "filter, so that `then=` can name an alias. Default: -10."
            ),
        )
        budgets: str = Field(
            default="",
            title="Budgets",
            description=(
                "One budget per line. Example: `group=students 120 gpu-minutes/day burst=10 "
                "then=queue-last`. A line begins with `everyone`, `role=user`, `group=NAME` or "
                "`user=ADDRESS`. Units: `gpu-seconds`, `gpu-minutes`, `tokens`, `requests`, per `day`, "
                "`week` or `month`. `shared`: all these users together. `burst`: how much more may be used "
                "once. `then`: `refuse`, `queue-last`, or a model that answers instead. `#` starts a "
                "comment. Default: empty, which means no limits, and nothing is stored."
            ),
        )
        time_zone: str = Field(
            default="",
            title="Time zone",
            description=(
                "Time zone in which a day begins, such as `Europe/Berlin`. Default: empty, which means the "
                "server's own."
            ),
        )
        redis_url: str = Field(
            default="",
            title="Redis address",
            description=(
                "Where all workers and replicas count: `redis://…`, `rediss://…`, `unix://…`, "
                "`redis+sentinel://…` or `redis+cluster://…`. Default: empty, which means a SQLite file in "
                "Open WebUI's data folder, shared by the workers of one machine."
            ),
            json_schema_extra={"input": {"type": "password"}},
        )
        show_status: bool = Field(
            default=True,
            title="Show status line",
            description="Show above an answer when less than a fifth of a budget is left. Default: on.",
        )

        @field_validator("budgets")
        @classmethod
        def _readable_rows(cls, text: str) -> str:
            parse_budgets(text)  # a BudgetTableError reaches the admin as the valve's error, row and reason
            return text

        @field_validator("redis_url")
        @classmethod
        def _usable_url(cls, url: str) -> str:
            return check_redis_url(url)

        @field_validator("time_zone")
        @classmethod
        def _known_zone(cls, name: str) -> str:
            site_zone(name.strip())
            return name.strip()

    def __init__(self) -> None:
        self.valves = self.Valves()
        self._keeper = BudgetKeeper()
        # A chat that is under way when this code is updated is counted by the code that comes after it.
        self._chats = process_wide("budget chats", dict[str, ChatBudget])
        self._settling: set[asyncio.Task[None]] = set()
        show_early_errors()

    @property
    def stream(self) -> Hook | None:
        """Open WebUI calls it for each chunk; without a table there is nothing to call."""
        return self._stream if self.valves.budgets else None

    @property
    def outlet(self) -> Hook | None:
        """Called at the end of an answer, likewise."""
        return self._outlet if self.valves.budgets else None

    async def inlet(
        self,
        body: Body,
        __user__: dict[str, Any],
        __metadata__: dict[str, Any],
        __request__: Any,
        __id__: str,
        __event_emitter__: Emitter | None = None,
    ) -> Body:
        """Reserve, or refuse. Anything unexpected is logged, and the chat goes on without budgets."""
        if not self.valves.budgets or _is_browsers_own(body, __metadata__):
            return body
        take_over(__request__.app, __id__, self)
        language = reader_language(__metadata__, __request__)
        try:
            chat = await self._begin(__user__)
            if isinstance(chat, ChatBudget):
                self._follow(chat, body, __metadata__, __request__)
                chat = await self._answered_by(chat, body, __user__, __request__)
            line = _status_line(chat) if isinstance(chat, ChatBudget) and self.valves.show_status else ""
            if line and __event_emitter__:
                status = {"description": in_language(line, language), "done": True}
                await __event_emitter__({"type": "status", "data": status})
        except Exception:
            log.exception("A chat goes on without budgets")
            return body
        if isinstance(chat, Refusal):
            refusal = chat.translated(language)
            note_refusal(__request__, refusal, __metadata__)
            raise BudgetSpentError(refusal.message)
        return body

    async def _stream(self, event: Body, __metadata__: dict[str, Any]) -> Body:
        """Look at a chunk on its way to the user."""
        if (chat := self._chat_of(__metadata__)) is not None:
            chat.take(event, time.monotonic())
        return event

    async def _outlet(self, body: Body, __metadata__: dict[str, Any]) -> Body:
        """An answer has ended: count it."""
        chat = self._chat_of(__metadata__)
        if chat is None:
            return body
        last = (body.get("messages") or [{}])[-1]
        _take_whole(chat, last.get("usage") or {}, __metadata__)
        self._end(chat)
        return body

    def retire(self) -> None:
        """Other code takes over: give the store back once the chats that are under way have been counted."""
        self._keeper.retire()

    # --- for the router, the gateway and the pages: plain values, as each plugin has classes of its own ---

    async def budget_begin(
        self, user: dict[str, Any], metadata: dict[str, Any], model: str, *, always: bool = False
    ) -> dict[str, Any]:
        """Begin to count an answer, also one that came by no filter.

        Args:
            user: who asks.
            metadata: the request's; a chat that the filter has seen is known by it.
            model: the name that was asked for.
            always: it is not refused, as it belongs to a chat that has begun.

        Returns:
            `ticket`: for `budget_note` and `budget_end`; empty: no budget holds. `own`: the caller ends it.
            `last`: it comes behind all others. `refusal`: the fields of a `Refusal`; None: it may begin.
        """
        if (known := self._chat_of(metadata)) is not None:
            known.is_routed = True
            return _begun(known, own=False)
        chat = await self._begin(user, always=always) if self.valves.budgets else None
        if isinstance(chat, ChatBudget) and not always and chat.reservation.model not in ("", model):
            self._end(chat)
            sentence = message("Your budget is used up. Ask for {model}.", model=chat.reservation.model)
            chat = Refusal(HTTPStatus.TOO_MANY_REQUESTS, sentence, "budget_used_up")
        if isinstance(chat, Refusal):
            return {"ticket": "", "own": False, "last": False, "refusal": asdict(chat)}
        return _begun(chat, own=True)

    def budget_note(self, ticket: str, seconds: float, tokens: float) -> None:
        """An answer of a chat took so many seconds of GPU time and so many tokens."""
        if (chat := self._chats.get(ticket)) is not None:
            chat.served.append((seconds, tokens))
            chat.heard_at = time.monotonic()

    def budget_end(self, ticket: str) -> None:
        """Count what `budget_begin` has begun."""
        if (chat := self._chats.get(ticket)) is not None:
            self._end(chat)

    async def budget_usage(self, user: dict[str, Any]) -> dict[str, Any]:
        """The budgets that hold for a user and what is left of them; all that is counted for an admin."""
        if not self.valves.budgets:
            return {"budgets": [], "fault": ""}
        budgets = self._budgets()
        found: dict[str, Any] = {"budgets": await budgets.usage(await _budget_user(user, budgets))}
        if user.get("role") == "admin":
            found["all"] = await budgets.everybody()
            found["problems"] = await _absent_groups(budgets.table)
        return {**found, "fault": budgets.fault if user.get("role") == "admin" else ""}

    def _budgets(self) -> Budgets:
        valves = self.valves
        return self._keeper.budgets(
            BudgetSettings(
                valves.budgets, valves.time_zone, valves.redis_url, data_folder() / BUDGET_DATABASE
            )
        )

    async def _begin(self, user: dict[str, Any], *, always: bool = False) -> ChatBudget | Refusal | None:
        budgets = self._budgets()
        found = await budgets.reserve(await _budget_user(user, budgets), always=always)
        if found is None or isinstance(found, Refusal):
            return found
        chat = ChatBudget(found, budgets, time.monotonic(), is_request=not always)
        self._chats[found.token] = chat
        return chat

    async def _answered_by(
        self, chat: ChatBudget, body: Body, user: dict[str, Any], request: Any
    ) -> ChatBudget | Refusal:
        """Have another model answer, where a budget that is used up says so."""
        model = chat.reservation.model
        if not model:
            return chat
        for model_id in catalogue(request).ids_of(model):
            if await may_use(user, model_id, request):
                body["model"] = model_id
                return chat
        self._end(chat)
        sentence = message(
            "Your budget is used up. The model {model} would answer then, but it is not open to you.",
            model=model,
        )
        return Refusal(HTTPStatus.TOO_MANY_REQUESTS, sentence, "budget_used_up")

    def _follow(self, chat: ChatBudget, body: Body, metadata: dict[str, Any], request: Any) -> None:
        """Count the chat when it ends, however it ends.

        That is at its outlet; or when its task is cancelled; or when nothing refers to its metadata any more,
        as after a client has left. Garbage may be collected late: where nothing is heard of a chat for a
        while after its task has ended, it is over, too.
        """
        ticket = BudgetTicket(ticket=chat.reservation.token)
        metadata[BUDGET_STATE] = ticket
        if isinstance(body.get("metadata"), dict):
            body["metadata"][BUDGET_STATE] = ticket  # a copy, where the Pipelines server has seen the request
        loop = asyncio.get_running_loop()
        finalize(ticket, _soon, loop, self._end, chat).atexit = False
        streams, outcome = bool(body.get("stream")), awaited_outcome(request)

        def task_ended(task: asyncio.Task[Any]) -> None:
            left = task.cancelled() or "left" in outcome
            if "usage" in outcome:  # Open WebUI calls no outlet for an answer without text
                _take_whole(chat, outcome["usage"], metadata)
            if left or not streams or not chat.answered:
                self._end(chat, left=left)
            else:
                self._end_when_silent(chat)

        if (task := asyncio.current_task()) is not None:
            task.add_done_callback(task_ended)

    def _end_when_silent(self, chat: ChatBudget) -> None:
        silent = time.monotonic() - chat.heard_at
        if silent > SILENT_SECONDS:
            self._end(chat)
        elif chat.reservation.token in self._chats:
            later = SILENT_SECONDS - silent + 1
            asyncio.get_running_loop().call_later(later, self._end_when_silent, chat)

    def _chat_of(self, metadata: dict[str, Any]) -> ChatBudget | None:
        state = metadata.get(BUDGET_STATE)
        ticket = state.get("ticket") if isinstance(state, dict) else None  # a client may have sent anything
        return self._chats.get(ticket) if isinstance(ticket, str) else None

    def _end(self, chat: ChatBudget, *, left: bool = False) -> None:
        """Count what a chat has used, once, while its user reads on."""
        if self._chats.pop(chat.reservation.token, None) is None:
            return
        use = chat.use(time.monotonic(), left=left)
        task = asyncio.get_running_loop().create_task(chat.budgets.settle(chat.reservation, use))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)


def _take_whole(chat: ChatBudget, usage: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """A chat's answer has ended, with these figures or none."""
    if (metadata.get(STATE) or {}).get("cached"):
        chat.take_kept()
    elif not chat.figures:
        chat.take_whole(usage, time.monotonic())


def _is_browsers_own(body: Body, metadata: dict[str, Any]) -> bool:
    """Whether a connection of the user's own browser answers.

    Any client can say so of a request: it is true only where the model is the one that the browser has named.
    """
    own = metadata.get("model")
    return bool(metadata.get("direct")) and isinstance(own, dict) and own.get("id") == body.get("model")


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *values: object) -> None:
    """Call something on the loop, from whichever thread collects garbage."""
    with suppress(RuntimeError):  # the server has ended
        loop.call_soon_threadsafe(call, *values)


def _begun(chat: ChatBudget | None, *, own: bool) -> dict[str, Any]:
    """For `budget_begin`."""
    if chat is None:
        return {"ticket": "", "own": False, "last": False, "refusal": None}
    reservation = chat.reservation
    return {"ticket": reservation.token, "own": own, "last": reservation.last, "refusal": None}


async def _budget_user(user: dict[str, Any], budgets: Budgets) -> BudgetUser:
    has_groups = budgets.table.uses_groups and user.get("id")  # the dashboard asks for nobody in particular
    return BudgetUser(
        id=str(user.get("id") or ""),
        email=str(user.get("email") or ""),
        role=str(user.get("role") or ""),
        groups=await group_names(user) if has_groups else frozenset(),
    )


async def _absent_groups(table: BudgetTable) -> list[Message]:
    """What to tell an admin of rows that hold for nobody, as a group was renamed or is written wrongly."""
    absent = table.groups - await all_group_names() if table.groups else ()
    return [
        message(
            "budgets: Open WebUI has no group {name!r}, so its rows hold for nobody: create it, or correct "
            "the table",
            name=name,
        )
        for name in sorted(absent)
    ]


def _status_line(chat: ChatBudget) -> str:
    """What the user reads about the budget; empty: enough is left."""
    if chat.reservation.model:
        return message("your budget is used up · {model} answers", model=chat.reservation.model)
    if chat.reservation.last:
        return message("your budget is used up · others come first")
    return chat.reservation.low
