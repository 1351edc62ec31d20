"""
title: Response cache
author: Open WebUI Ollama Pack
author_url: https://open-webui-ollama-pack.example/open-webui-ollama-pack
description: Adds to each chat what gpu_router needs to decide whether its answer is kept, and who may see it.
license: MIT
requirements: redis
version: 0.1.0
"""

# GENERATED from src/ollama_pack/plugins/pipelines/response_cache_filter.py by scripts/package.py: change that, not this.
#
# Begin here: `class Pipeline`, line 1073, which the server calls.
# The modules that it uses come first:
#     50  base.translations           The translations of all sentences. GENERATED from locale/ by scripts/package.py.
#    135  base.messages               Sentences for people, in English and in the languages of the catalogue.
#    263  errors                      The base of every error that the pack raises on purpose. Each part defines its own in its `errors.py`.
#    283  base.redis                  A client for a Redis URL: one server, Sentinel, or a cluster; and scripts that run there.
#    691  cache.keyring               Everything that is derived from the admin's secret: names in the store, and ciphers.
#    720  base.single_flight          What is asked, made or kept once: for all who ask at the same time, or for all plugins of a process.
#    743  services.valves             What all valves of the pack have in common: what is refused is told to admins, without what was written.
#    841  services.cache_valves       The valves of the response cache, wherever it runs.
#    943  engines.body                Reading fields of a body that nobody has checked: a value of the right type, or a refusal by name.
#    954  engines.model_ids           Ids of models that clients can use: alias tables and addresses split at spaces, commas and the like.
#    962  services.caching            The cache of a plugin: made of its valves, made anew when they change, given back when nobody uses it.
#    985  services.webui_tasks        Which of Open WebUI's own calls nobody waits for: titles and the like come behind people.
#   1002  services.pipeline_requests  What a pipeline can know of a request, how it tells the next one, and the others of its server.
#   1055  services.pipeline_valves    Valves on the Pipelines server: what all of our pipelines have in common there.

import hashlib
import json
import logging
import os
import re
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import signature
from pathlib import Path
from secrets import token_urlsafe
from types import ModuleType
from typing import Any, Literal, Protocol, Self, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

# --- ollama_pack.base.translations ---
# The translations of all sentences. GENERATED from locale/ by scripts/package.py.

TRANSLATIONS: dict[str, dict[str, str]] = {
    "zh-CN": {
        ": ": "：",
        "; ": "；",
        "Answers are encrypted with keys derived from this text. Use 16 characters or more, the same on all replicas. A new secret empties the cache. Default: empty, which means Open WebUI's own `WEBUI_SECRET_KEY`.": "缓存的回答用由此文本派生的密钥加密。至少 16 个字符，所有副本必须相同。更换后缓存会清空。默认：空，即使用 Open WebUI 的 `WEBUI_SECRET_KEY`。",
        "Answers are encrypted with keys derived from this text. Use 16 characters or more, the same on all servers. A new secret empties the cache. Default: empty, which means the variable `RESPONSE_CACHE_SECRET`, or else a secret that is made once and kept in the folder of the pipelines.": "缓存的回答用由此文本派生的密钥加密。至少 16 个字符，所有服务器必须相同。更换后缓存会清空。默认：空，即使用环境变量 `RESPONSE_CACHE_SECRET`，否则自动生成一个并保存在 pipelines 文件夹中。",
        "Code digest": "代码摘要",
        "Enabled": "启用",
        "Encryption secret": "加密密钥",
        "Error limit of similar answers, share": "相似回答的错误率上限",
        "Filters run in order of this number, lowest first. The cache should run last, so that it sees what the other filters changed. Default: 100.": "过滤器按此数字从小到大依次运行。缓存应最后运行，这样才能看到其他过滤器所做的修改。默认：100。",
        "For `semantic`: the allowed share of wrong answers among those given to similar questions. 0.01 needs at least 330 compared answers of a model. Default: 0.01.": "用于 `semantic`：给相似问题的回答中允许出错的比例。0.01 要求每个模型至少对比 330 个回答。默认：0.01。",
        "How long an answer is kept, in seconds. Default: 3600 (one hour).": "回答在缓存中保留的时间，单位为秒。默认：3600（一小时）。",
        "Largest answer, KiB": "单条回答上限（KiB）",
        "Longer answers are not kept. In KiB. Default: 256.": "超过此大小的回答不缓存，单位为 KiB。默认：256。",
        "Models that this filter handles; `*` means all. Default: `*`.": "此过滤器处理的模型；`*` 表示全部。默认：`*`。",
        "Off: every request goes to its model. Default: on.": "关闭后，所有请求都直接由模型回答。默认：开启。",
        "Pipelines": "管道",
        "Priority": "优先级",
        "Redis address": "Redis 地址",
        "Similar questions": "相似问题",
        "Time to live, seconds": "缓存有效期（秒）",
        "What is cached": "缓存条件",
        "Where all servers keep answers: `redis://…`, `rediss://…`, `unix://…`, `redis+sentinel://…` or `redis+cluster://…`. Default: empty, which means the variable `RESPONSE_CACHE_REDIS_URL`, or else a SQLite file in the folder of the pipelines.": "所有服务器共用的缓存位置：`redis://…`、`rediss://…`、`unix://…`、`redis+sentinel://…` 或 `redis+cluster://…`。默认：空，即使用环境变量 `RESPONSE_CACHE_REDIS_URL`，否则使用 pipelines 文件夹中的 SQLite 文件。",
        "Where all workers and replicas keep answers: `redis://…`, `rediss://…`, `unix://…`, `redis+sentinel://…` or `redis+cluster://…`. Default: empty, which means a SQLite file in Open WebUI's data folder, shared by the workers of one machine.": "所有工作进程和副本共用的缓存位置：`redis://…`、`rediss://…`、`unix://…`、`redis+sentinel://…` 或 `redis+cluster://…`。默认：空，即使用 Open WebUI 数据目录中的 SQLite 文件，由同一台机器上的工作进程共用。",
        "Whether the same question in other words gets a kept answer. `off`: only the same text does. `normalised`: width, case, punctuation, greetings and thanks may differ; the words and their order, numbers, units, negations, names, quotes and code may not. English and Chinese. Default: `off`.": "措辞不同的同一问题是否使用缓存的回答。`off`：仅文本完全相同时使用。`normalised`：全半角、大小写、标点、问候和致谢可以不同，但词语及其顺序、数字、单位、否定、名称、引文和代码必须相同。支持中文和英文。默认：`off`。",
        "Whether the same question in other words gets a kept answer. `off`: only the same text does. `normalised`: width, case, punctuation, greetings and thanks may differ; the words and their order, numbers, units, negations, names, quotes and code may not. English and Chinese. `semantic`: also a question that means the same, by embeddings, once enough answers were compared to know that at most `similar_error` of them are wrong. Default: `off`.": "措辞不同的同一问题是否使用缓存的回答。`off`：仅文本完全相同时使用。`normalised`：全半角、大小写、标点、问候和致谢可以不同，但词语及其顺序、数字、单位、否定、名称、引文和代码必须相同。支持中文和英文。`semantic`：用向量判断含义相同的问题也可使用，前提是已对比足够多的回答，确认出错比例不超过 `similar_error`。默认：`off`。",
        "Who shares answers": "共享范围",
        "Written by the server, so that `upload.py` sees which code runs here. Do not edit.": "由服务器写入，供 `upload.py` 识别正在运行的代码。请勿修改。",
        "`always`: every request. `deterministic`: only requests with temperature 0 or a seed. Default: `always`.": "`always`：缓存所有请求。`deterministic`：只缓存温度为 0 或指定了 seed 的请求。默认：`always`。",
        "`user`: nobody shares. `global`: everybody shares. Answers that use files, knowledge, memory or tools always stay with their user. Default: `user`.": "`user`：不共享。`global`：所有人共享。用到文件、知识库、记忆或工具的回答始终只属于该用户。默认：`user`。",
        "`user`: nobody shares. `group`: members of the same groups share. `global`: everybody shares. Answers that use files, knowledge, memory or tools always stay with their user. Default: `user`.": "`user`：不共享。`group`：同组成员之间共享。`global`：所有人共享。用到文件、知识库、记忆或工具的回答始终只属于该用户。默认：`user`。",
        "a URL that begins with rediss has TLS": "以 rediss 开头的 URL 使用 TLS",
        "a cluster has no db but 0: leave the number out": "集群只有数据库 0：请去掉编号",
        "in a password, @ is written as %40, : as %3A, / as %2F, ? as %3F, # as %23, and % as %25": "密码中 @ 写成 %40，`:` 写成 %3A，/ 写成 %2F，`?` 写成 %3F，# 写成 %23，% 写成 %25",
        "is missing": "缺失",
        "is not known": "未知",
        "it belongs before the ?": "应写在 `?` 之前",
        "it has a user or a password twice: before the host and as an option": "用户或密码出现两次：主机之前和选项中",
        "it has an @ or a # too many, perhaps in the password: {how}": "多了 @ 或 #，可能在密码中：{how}",
        "it has an option that is not known. The known ones are {known}": "有未知的选项。已知选项：{known}",
        "it has the database twice: in the path and as an option": "数据库出现两次：路径中和选项中",
        "it holds a space or a character that cannot be printed": "含有空格或不可打印的字符",
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
        "sentinel_username and sentinel_password belong to redis+sentinel://": "sentinel_username 和 sentinel_password 属于 redis+sentinel://",
        "the URL of Redis begins with {url}: use {schemes}": "Redis 的 URL 以 {url} 开头：请使用 {schemes}",
        "the cache's secret has {count} characters and needs {least} or more: `openssl rand -hex 32` makes one": "缓存的密钥有 {count} 个字符，需要 {least} 个或更多：可用 `openssl rand -hex 32` 生成",
        "the database": "数据库",
        "the pack has time limits and connections of its own": "插件包有自己的时间限制和连接",
        "the pack sets it": "由插件包设置",
        "the {scheme}:// URL of Redis cannot be used: the port and the database are numbers, and {how}": "Redis 的 {scheme}:// URL 无法使用：端口和数据库应为数字，{how}",
        "the {scheme}:// URL of Redis cannot be used: {error}": "Redis 的 {scheme}:// URL 无法使用：{error}",
        "this version of redis-py does not know one of the ssl_ options": "此版本的 redis-py 不支持其中一个 ssl_ 选项",
        "{name} has no effect here: {why}. Leave it out": "{name} 在这里不起作用：{why}。请去掉",
        "{name} is empty: leave it out": "{name} 为空：请去掉",
        "{name} is not known to this version of redis-py for a cluster: leave it out": "此版本的 redis-py 在集群中不支持 {name}：请去掉",
        "{name} is set twice": "{name} 设置了两次",
        "{name} is {fixed} here, and nothing else: leave it out": "{name} 在这里只能是 {fixed}：请去掉",
        "{name} needs 1.2 or 1.3": "{name} 需要 1.2 或 1.3",
        "{name} needs a whole number": "{name} 需要整数",
        "{name} needs none, optional or required": "{name} 需要 none、optional 或 required",
        "{name} needs true or false": "{name} 需要 true 或 false",
        "{option} is for TLS: begin the URL with {beginning}": "{option} 用于 TLS：URL 请以 {beginning} 开头",
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


# --- ollama_pack.cache.keyring ---
# Everything that is derived from the admin's secret: names in the store, and ciphers.

SECRET_CHARACTERS = 16  # the fewest that a secret may have


def check_secret(secret: str) -> str:
    """The secret, which is none or can be used.

    Raises:
        SettingError: it is too short.
    """
    if secret:
        _refuse_short(secret)
    return secret


def _refuse_short(secret: str) -> None:
    if len(secret) < SECRET_CHARACTERS:
        raise SettingError(
            message(
                "the cache's secret has {count} characters and needs {least} or more: "
                "`openssl rand -hex 32` makes one",
                count=len(secret),
                least=SECRET_CHARACTERS,
            )
        )


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


# --- ollama_pack.services.cache_valves ---
# The valves of the response cache, wherever it runs.


class CacheValves(PackValves):
    """What an admin sets."""

    priority: int = Field(
        default=100,
        title="Priority",
        description=(
            "Filters run in order of this number, lowest first. The cache should run last, so that it "
            "sees what the other filters changed. Default: 100."
        ),
    )
    enabled: bool = Field(
        default=True, title="Enabled", description="Off: every request goes to its model. Default: on."
    )
    redis_url: str = Field(
        default="",
        title="Redis address",
        description=(
            "Where all workers and replicas keep answers: `redis://…`, `rediss://…`, `unix://…`, "
            "`redis+sentinel://…` or `redis+cluster://…`. Default: empty, which means a SQLite file in "
            "Open WebUI's data folder, shared by the workers of one machine."
        ),
        json_schema_extra={"input": {"type": "password"}},
    )
    ttl_seconds: int = Field(
        default=3600,
        ge=1,
        le=30 * 24 * 3600,
        title="Time to live, seconds",
        description="How long an answer is kept, in seconds. Default: 3600 (one hour).",
    )
    scope: Literal["user", "group", "global"] = Field(
        default="user",
        title="Who shares answers",
        description=(
            "`user`: nobody shares. `group`: members of the same groups share. `global`: everybody "
            "shares. Answers that use files, knowledge, memory or tools always stay with their user. "
            "Default: `user`."
        ),
    )
    cache_when: Literal["always", "deterministic"] = Field(
        default="always",
        title="What is cached",
        description=(
            "`always`: every request. `deterministic`: only requests with temperature 0 or a seed. "
            "Default: `always`."
        ),
    )
    similar: Literal["off", "normalised", "semantic"] = Field(
        default="off",
        title="Similar questions",
        description=(
            "Whether the same question in other words gets a kept answer. `off`: only the same text does. "
            "`normalised`: width, case, punctuation, greetings and thanks may differ; the words and their "
            "order, numbers, units, negations, names, quotes and code may not. English and Chinese. "
            "`semantic`: also a question that means the same, by embeddings, once enough "
            "answers were compared to know that at most `similar_error` of them are wrong. Default: `off`."
        ),
    )
    similar_error: float = Field(
        default=0.01,
        ge=0.001,
        le=0.2,
        title="Error limit of similar answers, share",
        description=(
            "For `semantic`: the allowed share of wrong answers among those given to similar questions. "
            "0.01 needs at least 330 compared answers of a model. Default: 0.01."
        ),
    )
    max_entry_kb: int = Field(
        default=256,
        ge=1,
        le=16_384,
        title="Largest answer, KiB",
        description="Longer answers are not kept. In KiB. Default: 256.",
    )
    secret: str = Field(
        default="",
        title="Encryption secret",
        description=(
            "Answers are encrypted with keys derived from this text. Use 16 characters or more, the same "
            "on all replicas. A new secret empties the cache. Default: empty, which means Open WebUI's "
            "own `WEBUI_SECRET_KEY`."
        ),
        json_schema_extra={"input": {"type": "password"}},
    )

    @field_validator("redis_url")
    @classmethod
    def _usable_url(cls, url: str) -> str:
        return check_redis_url(url)  # a SettingError reaches the admin as the valve's error

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, secret: str) -> str:
        return check_secret(secret)


# --- ollama_pack.engines.body ---
# Reading fields of a body that nobody has checked: a value of the right type, or a refusal by name.


def object_at(value: object, *path: str) -> Mapping[str, Any]:
    """The object that a path of fields leads to; an empty one where there is something else."""
    for field in path:
        value = value.get(field) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


# --- ollama_pack.engines.model_ids ---
# Ids of models that clients can use: alias tables and addresses split at spaces, commas and the like.
#
# Those that `gpu_router` answers begin with its name, on Open WebUI and on the Pipelines server.

ROUTER = "gpu_router."


# --- ollama_pack.services.caching ---
# The cache of a plugin: made of its valves, made anew when they change, given back when nobody uses it.


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """What a cache is made of.

    Attributes:
        url: of Redis; empty: the file at `path`.
        path: of SQLite's file.
        secret: from which the keys are derived.
        ttl_seconds: that an answer is kept.
        max_entry_octets: bytes of an entry.
    """

    url: str = field(repr=False)
    path: Path
    secret: str = field(repr=False)
    ttl_seconds: int
    max_entry_octets: int


# --- ollama_pack.services.webui_tasks ---
# Which of Open WebUI's own calls nobody waits for: titles and the like come behind people.
#
# It has others that somebody waits for, and these count as a person's: search and retrieval queries, image
# prompts, autocompletion, *Merge responses*, the choice of tools, the summary of a long conversation.

# Values of `metadata.task`; what is not among them is waited for.
_NOBODY_WAITS = frozenset(
    {"title_generation", "tags_generation", "follow_up_generation", "emoji_generation", "memory_review"}
)


def is_background_task(task: object) -> bool:
    """Whether nobody waits for a call with this `metadata.task`."""
    return isinstance(task, str) and task in _NOBODY_WAITS


# --- ollama_pack.services.pipeline_requests ---
# What a pipeline can know of a request, how it tells the next one, and the others of its server.
#
# Open WebUI sends a pipeline the user and no more. What else it knows stands in the `metadata` that an inlet
# is shown; OpenAI has fields for two things of it, so they travel on under those names, and any other client
# may set them as well: `prompt_cache_key` for the conversation, `service_tier: flex` for what nobody waits for.
# What the response cache has to know travels in a field of ours, and so does the user's language.

CHAT_FIELD, URGENCY_FIELD, BACKGROUND = "prompt_cache_key", "service_tier", "flex"
NOTE_FIELD, LANGUAGE_FIELD = "ollama_pack", "ollama_pack_language"

# What decides on whether an answer may be kept, and for whom. Nothing of the conversation.
_NOTED = (
    *("assistant_message_id", "automation_id", "chat_id", "direct", "features", "files", "folder_id"),
    *("folder_knowledge", "internal", "message_id", "regeneration_message_id", "sources", "task", "tool_ids"),
    "user_message_id",
)


def with_hints(body: dict[str, Any]) -> dict[str, Any]:
    """The body of an inlet, with what Open WebUI will not send to the pipeline itself."""
    metadata = body.get("metadata")
    if not isinstance(metadata, Mapping):
        return body
    hints: dict[str, Any] = {}
    if isinstance(chat := metadata.get("chat_id"), str) and chat:
        hints[CHAT_FIELD] = chat
    if is_background_task(metadata.get("task")):
        hints[URGENCY_FIELD] = BACKGROUND
    if language := object_at(metadata, "variables").get("{{USER_LANGUAGE}}"):
        hints[LANGUAGE_FIELD] = str(language)
    return {**body, **hints}


def goes_to_router(body: Mapping[str, Any]) -> bool:
    """Whether `gpu_router` will answer: the model is one of its own, or a row of Open WebUI's on one."""
    model = str(body.get("model") or "")
    row = object_at(body, "metadata", "model", "info")
    base = str(row.get("base_model_id") or "") if row.get("id") == model else ""
    return model.startswith(ROUTER) or base.startswith(ROUTER)


def noted(body: dict[str, Any]) -> dict[str, Any]:
    """The body of an inlet, with a note of what Open WebUI will add to the chat after it, or says of it."""
    metadata = object_at(body, "metadata")
    note = {name: value for name in _NOTED if (value := metadata.get(name))}
    note |= {name: True for name in ("files", "sources", "folder_knowledge") if note.get(name)}
    about = object_at(metadata, "model", "info", "meta")
    if about.get("knowledge"):
        note["model"] = {"info": {"meta": {"knowledge": True}}}
    return {**with_hints(body), NOTE_FIELD: note}


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


# --- ollama_pack.plugins.pipelines.response_cache_filter ---

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
