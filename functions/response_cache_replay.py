"""
title: Response cache replay
author: Open WebUI Ollama Pack
author_url: https://open-webui-ollama-pack.example/open-webui-ollama-pack
description: Gives the answers that response_cache_filter finds. Not a model to chat with.
license: MIT
required_open_webui_version: 0.11.2
version: 0.1.0
"""

# GENERATED from src/ollama_pack/plugins/functions/response_cache_replay.py by scripts/package.py: change that, not this.
#
# Begin here: `class Pipe`, line 1703, which the server calls.
# The modules that it uses come first:
#     54  base.translations         The translations of all sentences. GENERATED from locale/ by scripts/package.py.
#    121  base.messages             Sentences for people, in English and in the languages of the catalogue.
#    249  errors                    The base of every error that the pack raises on purpose. Each part defines its own in its `errors.py`.
#    257  engines.errors            What goes wrong with a node.
#    401  engines.body              Reading fields of a body that nobody has checked: a value of the right type, or a refusal by name.
#    455  engines.ollama.to_openai  What an Ollama says, as OpenAI's chat API says it. Nothing here raises: what has a wrong type is absent.
#    480  engines.ollama.stream     A streamed answer of Ollama as OpenAI's chunks: one step for each line, remembering but a small state.
#    497  engines.refusals          What a client gets instead of an answer, in the form of each API that clients speak.
#    574  aliases.errors            What goes wrong with aliases.
#    612  cache.errors              What goes wrong with the cache.
#    632  engines.sse               Lines of a stream, and server-sent events as the HTML standard has them ("Interpreting an event stream").
#    741  routing.errors            What goes wrong with routing.
#    893  webui.errors              What goes wrong between the pack and Open WebUI.
#    925  services.answers          An answer as clients of OpenAI's API take it, and the one place that says which error they get.
#   1078  services.cacheable        Which requests the cache is for, whose answers they share, and what it is asked.
#   1090  engines.openai.failures   Which typed error a refusal of an OpenAI-compatible engine is: the words differ from one to the next.
#   1108  webui.calling             Asking a model through Open WebUI itself, with its access check. Imports `open_webui` when called.
#   1275  engines.front_route       A route in front of a server's own, which sees each answer of a chat before its client does.
#   1370  webui.leaving             When Open WebUI is told that a client has left: not while it reads its database.
#   1459  webui.early_errors        The status of an error that comes before an answer, which Open WebUI leaves no room for.
#   1654  webui.server              What a plugin takes from its Open WebUI: a secret, a folder, streamed answers, its place.
#   1674  webui.users               Users of the running Open WebUI, their groups and their language. Imports `open_webui` when called.

import asyncio
import logging
import re
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any, Literal, Self
from uuid import uuid4

import orjson

# --- ollama_pack.base.translations ---
# The translations of all sentences. GENERATED from locale/ by scripts/package.py.

TRANSLATIONS: dict[str, dict[str, str]] = {
    "zh-CN": {
        " and ": "和",
        " or ": "或",
        ", ": "、",
        ": ": "：",
        "; ": "；",
        "No computer was free for this model within {seconds:g} seconds. Try again in a minute, or choose another model.": "{seconds:g} 秒内没有空闲的机器可以运行该模型。请稍后再试，或选择其他模型。",
        "No model behind the alias {alias!r} can answer: {reasons}. An admin can install one (ollama pull {first}), grant access to it, or change the alias.": "别名 {alias!r} 背后没有可用的模型：{reasons}。管理员可以安装一个（ollama pull {first}）、授予使用权限，或修改别名。",
        "No model behind this name can be used. Choose another model, or ask an admin.": "该名称对应的模型均不可用。请选择其他模型，或联系管理员。",
        "The answer broke off and is incomplete. Generate it again.": "回答中断，内容不完整。请重新生成。",
        "The answer failed unexpectedly. Try again. Admins find the cause in the server's log.": "生成回答时发生意外错误。请重试；管理员可在服务器日志中查看原因。",
        "The computers that run this model do not answer at the moment. Try again in a minute, or choose another model.": "运行该模型的机器目前没有响应。请稍后再试，或选择其他模型。",
        "The model cannot answer this request. Change it, or choose another model.": "该模型无法回答此请求。请修改请求，或选择其他模型。",
        "The model cannot answer this request: {reason}": "该模型无法回答此请求：{reason}",
        "The model fails at this request every time. Change it, or choose another model.": "该模型每次处理此请求都会失败。请修改请求，或选择其他模型。",
        "The model gave the error {status}.": "模型返回错误 {status}。",
        "The model sends a stream, though none was asked for.": "模型返回了流，而请求并未要求流式输出。",
        "This model did not begin to answer in time. Try again in a minute, or choose another model.": "该模型未能及时开始回答。请稍后再试，或选择其他模型。",
        "This model failed to answer. Try again in a minute, or choose another model.": "该模型回答失败。请稍后再试，或选择其他模型。",
        "This model has too much to do. Try again in a minute, or choose another model.": "该模型当前负载过高。请稍后再试，或选择其他模型。",
        "This model is not installed on any computer here. Choose another model, or ask an admin.": "所有机器上都没有安装该模型。请选择其他模型，或联系管理员。",
        "Too many questions are waiting, {own} of them yours. Try again in a minute.": "排队的请求过多，其中 {own} 个来自您。请稍后再试。",
        "Too many questions are waiting. Try again in a minute.": "排队的请求过多。请稍后再试。",
        "a list": "列表",
        "a number": "数字",
        "all nodes are busy and {waiting} requests wait (the limit is {limit}): try again in a minute": "所有节点都忙，已有 {waiting} 个请求在排队（上限 {limit}）：请稍后再试",
        "all nodes are busy and {waiting} requests wait, {own} of them yours (the limit is {limit}): try again in a minute": "所有节点都忙，已有 {waiting} 个请求在排队，其中 {own} 个来自您（上限 {limit}）：请稍后再试",
        "all nodes were busy for {seconds:g} s and {waiting} requests wait: try again later, or let an admin add a node or raise first_token_timeout_seconds": "所有节点已忙了 {seconds:g} 秒，有 {waiting} 个请求在排队：请稍后再试，或请管理员增加节点、调大 first_token_timeout_seconds",
        "an object": "对象",
        "cannot be reached (does it run, is the address right?)": "无法连接（是否在运行？地址是否正确？）",
        "has no {model!r} ({remedy})": "没有 {model!r}（{remedy}）",
        "has not connected within {seconds:g} s": "{seconds:g} 秒内未能建立连接",
        "has not loaded the model within {seconds:g} s": "{seconds:g} 秒内未能加载模型",
        "has not sent its answer within {seconds:g} s": "{seconds:g} 秒内没有返回回答",
        "has not sent its first byte within {seconds:g} s": "{seconds:g} 秒内没有返回任何数据",
        "has not sent its next line within {seconds:g} s": "{seconds:g} 秒内没有返回后续内容",
        "is busy (status {status})": "正忙（状态码 {status}）",
        "must be {wanted}, not {value}": "必须是{wanted}，而不是{value}",
        "no node answers that may have {wanted}: no node is configured": "没有可能提供 {wanted} 的节点：尚未配置任何节点",
        "no node answers that may have {wanted}: {faults}": "可能提供 {wanted} 的节点都没有响应：{faults}",
        "no node can answer with {model} now": "目前没有节点能用 {model} 回答",
        "no node could answer ({reasons}): try again, or let an admin look at these nodes": "没有节点能够回答（{reasons}）：请重试，或请管理员检查这些节点",
        "no node has {wanted}: pull it on one of {there}": "没有节点安装了 {wanted}：请在其中一个节点上拉取：{there}",
        "no node has {wanted}: pull it on one of {there}; no answer from {faults}": "没有节点安装了 {wanted}：请在其中一个节点上拉取：{there}；以下节点没有响应：{faults}",
        "node {node} {reason}": "节点 {node}：{reason}",
        "refuses the request": "拒绝了该请求",
        "refuses the request (status {status})": "拒绝了该请求（状态码 {status}）",
        "response_cache_replay is not a chat model: response_cache_filter sends chats through it, to give cached answers. Choose another model.": "response_cache_replay 不是对话模型：response_cache_filter 通过它返回缓存的回答。请选择其他模型。",
        "run 'ollama pull {model}' there": "请在该节点运行 'ollama pull {model}'",
        "the answer was shared with another request, whose generation broke off: regenerate it": "此回答与另一请求共享，而其生成已中断：请重新生成",
        "the model was asked through Open WebUI and gave the error {status}": "通过 Open WebUI 询问了该模型，返回错误 {status}",
        "true or false": "true 或 false",
        "you may not use {model}": "您无权使用 {model}",
        "{field} {reason}": "{field} {reason}",
        "{model} is not installed": "未安装 {model}",
        "{nodes} failed in the same way ({why}): change this request, as it is the likely reason": "{nodes} 以同样的方式出错（{why}）：很可能是请求本身的问题，请修改请求",
        "{node} ({fault})": "{node}（{fault}）",
        "{node} failed in the middle of this answer ({reason}): it is incomplete, regenerate it and another node answers": "{node} 在回答过程中出错（{reason}）：回答不完整，请重新生成，由其他节点回答",
        "{reason}: {said}": "{reason}：{said}",
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


# --- ollama_pack.engines.errors ---
# What goes wrong with a node.


class ChatBodyError(PackError, ValueError):
    """A chat body holds what cannot be put into the node's form.

    Attributes:
        field: where it stands, such as `messages[2].content[0].image_url`.
        reason: what is wrong with it and what to do. Never text of the conversation.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(message("{field} {reason}", field=field, reason=reason))
        self.field = field
        self.reason = reason


class NodeError(PackError):
    """A node did not do what it was asked.

    Attributes:
        node: its address, without user name, password and query.
        reason: what it did not do.
        status: the HTTP status of its answer; None where there was none, or where the answer had begun.
        said: the node's own message, shortened; empty where it gave none.
        is_down: it is the node, not one model on it: there is no connection.
    """

    is_down = False

    def __init__(self, node: str, reason: str, *, status: int | None = None, said: str = "") -> None:
        super().__init__()
        self.node = node
        self.reason = reason
        self.status = status
        self.said = said

    @property
    def message(self) -> Message:
        """What went wrong, with the node's address."""
        return message("node {node} {reason}", node=self.node, reason=self.plain_with_said)

    def __str__(self) -> str:
        return str(self.message)

    @property
    def plain_with_said(self) -> Message:
        """The reason, and what the node itself said."""
        if not self.said:
            return self.reason if isinstance(self.reason, Message) else Message(self.reason)
        return message("{reason}: {said}", reason=self.reason, said=self.said)

    @property
    def plain(self) -> Message:
        """What went wrong, for people who are not to see addresses."""
        return self.plain_with_said


class RetryableNodeError(NodeError):
    """Another node may do what this one did not: nothing is wrong with the request."""


class NodeUnreachableError(RetryableNodeError):
    """No connection came about, so the node has not seen the request."""

    is_down = True

    def __init__(self, node: str, said: str) -> None:
        reason = message("cannot be reached (does it run, is the address right?)")
        super().__init__(node, reason, said=said)

    @property
    def plain(self) -> Message:
        """What went wrong; the system's own message has the address in it."""
        return self.reason if isinstance(self.reason, Message) else Message(self.reason)


class NodeTimeoutError(RetryableNodeError):
    """A limit ran out.

    Attributes:
        stage: what was waited for.
        seconds: the limit.
    """

    def __init__(
        self,
        node: str,
        stage: Literal["connect", "load", "first byte", "next line", "answer"],
        seconds: float,
    ) -> None:
        if stage == "connect":
            reason = message("has not connected within {seconds:g} s", seconds=seconds)
        elif stage == "load":
            reason = message("has not loaded the model within {seconds:g} s", seconds=seconds)
        elif stage == "first byte":
            reason = message("has not sent its first byte within {seconds:g} s", seconds=seconds)
        elif stage == "next line":
            reason = message("has not sent its next line within {seconds:g} s", seconds=seconds)
        else:
            reason = message("has not sent its answer within {seconds:g} s", seconds=seconds)
        super().__init__(node, reason)
        self.stage = stage
        self.seconds = seconds
        self.is_down = stage == "connect"


class NodeBusyError(RetryableNodeError):
    """The node takes no more requests at the moment.

    Attributes:
        retry_after: seconds after which it may, as its answer says; None: it does not.
    """

    def __init__(self, node: str, status: int, said: str, retry_after: float | None = None) -> None:
        super().__init__(node, message("is busy (status {status})", status=status), status=status, said=said)
        self.retry_after = retry_after


class ModelNotFoundError(RetryableNodeError):
    """The node does not have the model.

    Attributes:
        model: the name that was asked for.
    """

    def __init__(self, node: str, model: str, said: str, remedy: str = "") -> None:
        remedy = remedy or message("run 'ollama pull {model}' there", model=model)
        reason = message("has no {model!r} ({remedy})", model=model, remedy=remedy)
        super().__init__(node, reason, status=404, said=said)
        self.model = model


class RequestRefusedError(NodeError):
    """The node will not take this request, and no other node would: the request has to change."""

    def __init__(self, node: str, status: int | None, said: str) -> None:
        reason = message("refuses the request")
        if status and not said:
            reason = message("refuses the request (status {status})", status=status)
        super().__init__(node, reason, status=status, said=said)


# --- ollama_pack.engines.body ---
# Reading fields of a body that nobody has checked: a value of the right type, or a refusal by name.

SHOWN_CHARACTERS = 40


def object_in(value: object, field: str) -> Mapping[str, Any]:
    """The value as an object; absent counts as empty.

    Raises:
        ChatBodyError: it is something else.
    """
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    raise _unfit(value, field, message("an object"))


def object_at(value: object, *path: str) -> Mapping[str, Any]:
    """The object that a path of fields leads to; an empty one where there is something else."""
    for field in path:
        value = value.get(field) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def switch_in(value: object, field: str) -> bool:
    """The value as true or false, which may be written out.

    Raises:
        ChatBodyError: it is something else.
    """
    words = {"true": True, "false": False}
    meant = words.get(value.strip().lower()) if isinstance(value, str) else value
    if isinstance(meant, bool):
        return meant
    raise _unfit(value, field, message("true or false"))


def _unfit(value: object, field: str, wanted: str) -> ChatBodyError:
    return ChatBodyError(
        field, message("must be {wanted}, not {value}", wanted=wanted, value=_outline(value))
    )


def _outline(value: object) -> str:
    """A value for a message: only scalars are shown, the rest may be somebody's conversation."""
    if isinstance(value, str | bool | float) or value is None:
        return repr(value if not isinstance(value, str) else value[:SHOWN_CHARACTERS])
    return {"dict": message("an object"), "list": message("a list"), "int": message("a number")}.get(
        type(value).__name__, "that"
    )


# --- ollama_pack.engines.ollama.to_openai ---
# What an Ollama says, as OpenAI's chat API says it. Nothing here raises: what has a wrong type is absent.
#
# Ollama leaves figures of zero and empty texts out of its JSON, so absent is a common value.


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What all parts of one answer have in common.

    Attributes:
        id: of the answer, such as chatcmpl-….
        created: Unix time, in seconds.
        model: the name that the client knows the model by.
    """

    id: str
    created: int
    model: str

    def tagged(self, kind: str) -> dict[str, Any]:
        """The first fields of an object of this answer."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


# --- ollama_pack.engines.ollama.stream ---
# A streamed answer of Ollama as OpenAI's chunks: one step for each line, remembering but a small state.

# Where the figures go: a chunk of their own without choices, or the last chunk as Open WebUI has it.
UsagePlace = Literal["apart", "last"]


def usage_place(body: Mapping[str, Any]) -> UsagePlace:
    """Where the client that sent this OpenAI chat body wants the figures.

    Raises:
        ChatBodyError: `stream_options` is not of its form.
    """
    asked = object_in(body.get("stream_options"), "stream_options").get("include_usage")
    return "apart" if asked and switch_in(asked, "stream_options.include_usage") else "last"


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


# --- ollama_pack.cache.errors ---
# What goes wrong with the cache.
#
# None but `LeaderLostError` reaches a chat: a store that fails is a miss.


class LeaderLostError(PackError):
    """The generation that an answer was copied from ended without its end, and part of it is shown already.

    Attributes:
        chunks: how many had come.
    """

    def __init__(self, chunks: int) -> None:
        super().__init__(
            message("the answer was shared with another request, whose generation broke off: regenerate it")
        )
        self.chunks = chunks


# --- ollama_pack.engines.sse ---
# Lines of a stream, and server-sent events as the HTML standard has them ("Interpreting an event stream").
#
# Both are of bounded length. Lenient where engines are: an event without an empty line after it counts when the
# stream ends.


class LineTooLongError(Exception):
    """A line is longer than it may be. Never leaves `engines/`."""


DONE = b"[DONE]"  # OpenAI's last event
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event.

    Attributes:
        data: its lines, joined by line feeds.
        is_error: it is called so: `event: error`, or `error:` instead of `data:` as older llama.cpp has it.
    """

    data: bytes
    is_error: bool = False

    @property
    def is_last(self) -> bool:
        """Whether nothing that matters comes after it."""
        return self.data.strip() == DONE


class SseBuffer:
    """Takes bytes as they come and gives whole events; never holds more than one event and what came last."""

    def __init__(self, limit: int) -> None:
        """`limit`: the longest line and the longest event, in bytes."""
        self._limit = limit
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0  # of the lines in `_data`, their ends included
        self._is_error = False
        self._begun = False
        self._after_return = False  # a line feed that comes now belongs to the end of the line before

    def feed(self, data: bytes) -> list[ServerEvent]:
        """The events that are complete now. Comments, such as pings, give none.

        Raises:
            LineTooLongError: a line or an event is.
        """
        if self._after_return and data:
            data = data.removeprefix(b"\n")
            self._after_return = False
        self._after_return = data.endswith(b"\r")
        whole = (self._rest + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = whole.split(b"\n")
        events = [event for line in lines if (event := self._take(line))]
        if len(self._rest) > self._limit:
            raise LineTooLongError
        return events

    def end(self) -> list[ServerEvent]:
        """What came after the last end of an event, as an event of its own."""
        rest, self._rest = self._rest, b""
        ended = [self._take(rest), self._take(b"")]
        return [event for event in ended if event]

    def _take(self, line: bytes) -> ServerEvent | None:
        """Take in a line; an empty one ends the event."""
        if not self._begun:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._begun = True
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            self._is_error = value == b"error"
        elif field in {b"data", b"error"}:
            self._is_error = self._is_error or field == b"error"
            self._data.append(value)
            self._size += len(value) + 1
        if len(line) > self._limit or self._size > self._limit:
            raise LineTooLongError
        return None

    def _dispatch(self) -> ServerEvent | None:
        event = ServerEvent(b"\n".join(self._data), self._is_error) if self._data else None
        self._data, self._size, self._is_error = [], 0, False
        return event


LAST_EVENT = "data: [DONE]\n\n"  # OpenAI's

# Ends of lines to Python's `splitlines`, with which some clients take events apart.
_SEPARATORS = {"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"}


def event_text(value: Mapping[str, Any]) -> str:
    """An object as one event."""
    text = orjson.dumps(value).decode()
    for separator, escaped in _SEPARATORS.items():
        if separator in text:
            text = text.replace(separator, escaped)
    return f"data: {text}\n\n"


# --- ollama_pack.routing.errors ---
# What goes wrong with routing.


class RoutingError(PackError):
    """A request cannot be given to any node."""


class NoNodeError(RoutingError):
    """No node has any of the models that may answer.

    Attributes:
        models: the models, the preferred one first.
        nodes: the names of all nodes.
        silent: name of each of them that does not answer → what is wrong with it.
    """

    def __init__(
        self, models: tuple[str, ...], nodes: tuple[str, ...], silent: Mapping[str, str] | None = None
    ) -> None:
        wanted, silent = _either(models), silent or {}
        faults = joined((_faulty(node, fault) for node, fault in silent.items()), message(", "))
        there = joined((node for node in nodes if node not in silent), message(", "))
        if there and faults:
            said = message(
                "no node has {wanted}: pull it on one of {there}; no answer from {faults}",
                wanted=wanted,
                there=there,
                faults=faults,
            )
        elif there:
            said = message("no node has {wanted}: pull it on one of {there}", wanted=wanted, there=there)
        elif faults:
            said = message("no node answers that may have {wanted}: {faults}", wanted=wanted, faults=faults)
        else:
            said = message("no node answers that may have {wanted}: no node is configured", wanted=wanted)
        super().__init__(said)
        self.models = models
        self.nodes = nodes
        self.silent = dict(silent)


class QueueFullError(RoutingError):
    """Too many requests wait already.

    Attributes:
        limit: how many may wait.
        waiting: how many do.
        own: how many of them are this user's.
    """

    def __init__(self, limit: int, waiting: int, own: int) -> None:
        if own:
            said = message(
                "all nodes are busy and {waiting} requests wait, {own} of them yours (the limit is {limit}): "
                "try again in a minute",
                waiting=waiting,
                own=own,
                limit=limit,
            )
        else:
            said = message(
                "all nodes are busy and {waiting} requests wait (the limit is {limit}): try again in a "
                "minute",
                waiting=waiting,
                limit=limit,
            )
        super().__init__(said)
        self.limit = limit
        self.waiting = waiting
        self.own = own


class WaitedTooLongError(RoutingError):
    """No node became free in time.

    Attributes:
        seconds: the limit.
        waiting: how many requests wait.
    """

    def __init__(self, seconds: float, waiting: int) -> None:
        super().__init__(
            message(
                "all nodes were busy for {seconds:g} s and {waiting} requests wait: try again later, or let "
                "an admin add a node or raise first_token_timeout_seconds",
                seconds=seconds,
                waiting=waiting,
            )
        )
        self.seconds = seconds
        self.waiting = waiting


class NoAnswerError(RoutingError):
    """Every node that was tried failed before its first token.

    Attributes:
        failures: name of each → what went wrong.
    """

    def __init__(self, failures: Mapping[str, NodeError]) -> None:
        each = (joined((node, failure.plain), message(": ")) for node, failure in failures.items())
        super().__init__(
            message(
                "no node could answer ({reasons}): try again, or let an admin look at these nodes",
                reasons=joined(each, message("; ")),
            )
        )
        self.failures = dict(failures)


class RequestFailsError(NoAnswerError):
    """Several nodes failed in the same way before their first token: the request is the likely reason."""

    def __init__(self, failures: Mapping[str, NodeError]) -> None:
        super().__init__(failures)
        said = message(
            "{nodes} failed in the same way ({why}): change this request, as it is the likely reason",
            nodes=joined(failures, message(" and ")),
            why=list(failures.values())[-1].plain,
        )
        self.args = (said,)


class AnswerBrokenError(RoutingError):
    """A node failed in the middle of its answer. Another node's words are never put behind it.

    Attributes:
        node: its name.
    """

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(
            message(
                "{node} failed in the middle of this answer ({reason}): it is incomplete, regenerate it and "
                "another node answers",
                node=node,
                reason=reason,
            )
        )
        self.node = node


def _either(models: tuple[str, ...]) -> Message:
    return joined((f"'{model}'" for model in models), message(" or "))


def _faulty(node: str, fault: str) -> Message:
    return message("{node} ({fault})", node=node, fault=fault) if fault else Message(node)


# --- ollama_pack.webui.errors ---
# What goes wrong between the pack and Open WebUI.


class ModelRefusedError(PackError):
    """A model that was asked through Open WebUI gave an error instead of an answer.

    Attributes:
        refusal: what the client gets.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(
            message(
                "the model was asked through Open WebUI and gave the error {status}", status=refusal.status
            )
        )
        self.refusal = refusal


class ModelClosedError(PackError):
    """A user may not use the model that would answer. Open WebUI's own words: whether it exists is not said.

    Attributes:
        model: its id.
    """

    def __init__(self, model: str) -> None:
        super().__init__("Model not found")
        self.model = model


# --- ollama_pack.services.answers ---
# An answer as clients of OpenAI's API take it, and the one place that says which error they get.

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 10  # after which a node may be up or free again; clients wait for that long

_NODES_SILENT = message(
    "The computers that run this model do not answer at the moment. Try again in a minute, or choose another "
    "model."
)
_NOT_HERE = message(
    "This model is not installed on any computer here. Choose another model, or ask an admin."
)
_NO_ALIAS = message("No model behind this name can be used. Choose another model, or ask an admin.")
_TOO_BUSY = message("This model has too much to do. Try again in a minute, or choose another model.")
_TOO_SLOW = message(
    "This model did not begin to answer in time. Try again in a minute, or choose another model."
)
_FAILED = message("This model failed to answer. Try again in a minute, or choose another model.")
_UNANSWERABLE = message("The model fails at this request every time. Change it, or choose another model.")
_REFUSED = message("The model cannot answer this request. Change it, or choose another model.")
_CUT_OFF = message("The answer broke off and is incomplete. Generate it again.")
_UNFORESEEN = message("The answer failed unexpectedly. Try again. Admins find the cause in the server's log.")

_Meaning = tuple[int, str | None, Message]  # status, code, sentence for people who cannot change the nodes
_NO_CANDIDATE: _Meaning = (HTTPStatus.NOT_FOUND, "model_not_found", _NO_ALIAS)


async def answer_events(
    chunks: AsyncGenerator[dict[str, Any], None], refused: Callable[[Exception], Refusal]
) -> AsyncGenerator[str, None]:
    """Server-sent events. An error is the last of them.

    Args:
        chunks: the answer.
        refused: what an error means to this client; called before the error is sent.
    """
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield event_text(chunk)
        except Exception as error:  # noqa: BLE001 - the boundary to the server, which would show its words
            yield event_text(refused(error).body())
    yield LAST_EVENT


def refusal_of(error: Exception, *, for_admin: bool) -> Refusal:
    """The status, the code and the sentence for an error. What is not the pack's own goes to the log.

    Args:
        error: one of the pack's, or any other.
        for_admin: the sentence says which node did what, and how to put it right.
    """
    if not isinstance(error, PackError):
        log.error("A chat was not answered", exc_info=error)
        return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, _UNFORESEEN, "internal_error")
    status, code, sentence = _meaning(error)
    waiting_helps = status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
    return Refusal(
        status=status,
        message=said_by(error) if for_admin else sentence,
        code=code,
        param=_param(error),
        retry_after=RETRY_AFTER_SECONDS if waiting_helps else None,
    )


def passed_refusal(error: Exception, *, for_admin: bool) -> Refusal:
    """As `refusal_of`, for errors of other plugins too, which have classes of their own."""
    if (found := getattr(error, "refusal", None)) is not None:
        return Refusal(**{field.name: getattr(found, field.name) for field in fields(Refusal)})
    if type(error).__name__ == LeaderLostError.__name__:
        error = LeaderLostError(0)
    return refusal_of(error, for_admin=for_admin)


def _param(error: PackError) -> str | None:
    if isinstance(error, ChatBodyError):
        return None if isinstance(error.field, Message) else error.field  # a sentence names no field
    is_model = isinstance(error, NoNodeError | AliasUnavailableError | ModelNotFoundError | ModelClosedError)
    return "model" if is_model else None


def _meaning(error: PackError) -> _Meaning:  # noqa: PLR0911 - a line for each kind
    match error:
        case ChatBodyError():
            return HTTPStatus.BAD_REQUEST, None, said_by(error)
        case RequestRefusedError() if said := error.said.replace("`", "'"):
            why = message("The model cannot answer this request: {reason}", reason=said)
            return _client_status(error), None, why
        case RequestRefusedError():
            return _client_status(error), None, _REFUSED
        case ModelClosedError():
            return HTTPStatus.NOT_FOUND, "model_not_found", said_by(error)
        case AliasUnavailableError() | ModelNotFoundError():
            return _NO_CANDIDATE
        case AnswerBrokenError() | LeaderLostError():
            return HTTPStatus.BAD_GATEWAY, "answer_broken", _CUT_OFF
        case RequestFailsError():
            return HTTPStatus.BAD_REQUEST, "request_failed", _UNANSWERABLE
        case NoAnswerError():
            return _meaning_of_failures(error)
        case RoutingError():
            return _meaning_of_waiting(error)
    return HTTPStatus.BAD_GATEWAY, None, _FAILED


def _meaning_of_waiting(error: RoutingError) -> _Meaning:
    """Of what goes wrong before any node is asked."""
    match error:
        case NoNodeError() if error.nodes and not error.silent:
            return HTTPStatus.NOT_FOUND, "model_not_found", _NOT_HERE
        case QueueFullError():
            status = HTTPStatus.TOO_MANY_REQUESTS if error.own else HTTPStatus.SERVICE_UNAVAILABLE
            sentence = message("Too many questions are waiting. Try again in a minute.")
            if error.own:
                sentence = message(
                    "Too many questions are waiting, {own} of them yours. Try again in a minute.",
                    own=error.own,
                )
            return status, "queue_full", sentence
        case WaitedTooLongError():
            sentence = message(
                "No computer was free for this model within {seconds:g} seconds. Try again in a minute, or "
                "choose another model.",
                seconds=error.seconds,
            )
            return HTTPStatus.SERVICE_UNAVAILABLE, "nodes_busy", sentence
    return HTTPStatus.SERVICE_UNAVAILABLE, "nodes_down", _NODES_SILENT


def _meaning_of_failures(error: NoAnswerError) -> _Meaning:
    """Of what went wrong at several nodes: what matters is whether waiting helps."""
    failures = list(error.failures.values())
    if all(isinstance(failure, ModelNotFoundError) for failure in failures):
        return HTTPStatus.NOT_FOUND, "model_not_found", _NOT_HERE
    if any(isinstance(failure, NodeBusyError) for failure in failures):
        return HTTPStatus.SERVICE_UNAVAILABLE, "nodes_busy", _TOO_BUSY
    if any(isinstance(failure, NodeUnreachableError) for failure in failures):
        return HTTPStatus.SERVICE_UNAVAILABLE, "nodes_down", _NODES_SILENT
    if all(isinstance(failure, NodeTimeoutError) for failure in failures):
        return HTTPStatus.GATEWAY_TIMEOUT, "timeout", _TOO_SLOW
    return HTTPStatus.BAD_GATEWAY, "nodes_failed", _FAILED


def _client_status(error: RequestRefusedError) -> int:
    """The node's own where it is one of the client's errors: 413 or 422 say more than 400."""
    status = error.status or HTTPStatus.BAD_REQUEST
    client_errors = range(HTTPStatus.BAD_REQUEST, HTTPStatus.INTERNAL_SERVER_ERROR)
    return status if status in client_errors else HTTPStatus.BAD_REQUEST


# --- ollama_pack.services.cacheable ---
# Which requests the cache is for, whose answers they share, and what it is asked.
#
# It is read from a chat's body and the metadata that Open WebUI has with it, and sends to Pipelines too.

# What `response_cache_filter` leaves for `response_cache_replay`, as neither file can import the other. It is
# a key in Open WebUI's `__metadata__`, which lives as long as the request. Its value has the `rounds` so far,
# and of the last one that the cache is for: the `model` that was asked, the id of the `filter`, and the
# `ticket` that it gives the answer for. `cached`: nothing is generated for it, which usage_budgets looks at.
STATE = "ollama_pack_cache"


# --- ollama_pack.engines.openai.failures ---
# Which typed error a refusal of an OpenAI-compatible engine is: the words differ from one to the next.


def message_in(value: object, depth: int = 0) -> str:
    """The first text under one of the names that engines have for it; empty where there is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):  # FastAPI's list of what is wrong
        places = [" ".join(map(str, item.get("loc", ()))) for item in value if isinstance(item, dict)]
        texts = [str(item.get("msg", "")) for item in value if isinstance(item, dict)]
        return "; ".join(f"{place}: {text}" for place, text in zip(places, texts, strict=True))
    if not isinstance(value, dict) or depth > 1:
        return ""
    found = (message_in(value[name], depth + 1) for name in ("error", "message", "detail") if name in value)
    return next((text for text in found if text), "")


# --- ollama_pack.webui.calling ---
# Asking a model through Open WebUI itself, with its access check. Imports `open_webui` when called.

EVENT_OCTETS = 64 * 2**20  # of the longest event: an answer may hold pictures
BAD_REQUEST, BAD_GATEWAY, ERROR_STATUS = 400, 502, 400


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A chat request as Open WebUI would have sent it.

    Attributes:
        request: FastAPI's, which the chat came with.
        body: OpenAI's chat body, with Open WebUI's metadata.
        user: who asks.
        has_system: the system prompt of the model's row is in it already.
        is_new: it is a client's, so filters, tools and knowledge are still to come: Open WebUI's own route
            takes it. Else it is on its way already, and goes to its model alone.
    """

    request: Any
    body: Mapping[str, Any]
    user: Mapping[str, Any]
    has_system: bool = False
    is_new: bool = False

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer, as it comes. Where the model does not stream, it is one whole body.

        Raises:
            ModelRefusedError: there is none.
        """
        answer = await self.answer()
        if isinstance(answer, dict):
            yield answer
            return
        async with aclosing(answer):
            async for chunk in answer:
                yield chunk

    async def streamed(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as it comes, to a request that wants no stream.

        Raises:
            ModelRefusedError: there is none, or it broke off.
        """
        streaming = replace(self, body={**self.body, "stream": True})
        async with aclosing(streaming.chunks()) as chunks:
            async for chunk in chunks:
                if chunk.get("error"):
                    raise ModelRefusedError(refusal_in(chunk, BAD_GATEWAY))
                yield chunk

    async def completion(self) -> dict[str, Any]:
        """The answer to a request that wants no stream.

        Raises:
            ModelRefusedError: there is none.
        """
        answer = await self.answer()
        if not isinstance(answer, dict):
            async with aclosing(answer):
                await anext(answer, None)  # what has not begun cannot be closed
            sentence = message("The model sends a stream, though none was asked for.")
            raise ModelRefusedError(Refusal(BAD_GATEWAY, sentence))
        return answer

    async def answer(self) -> dict[str, Any] | AsyncGenerator[dict[str, Any], None]:
        """The answer as Open WebUI gives it: one body, or the chunks of a stream.

        A new request may get either, whatever it asks for: the row of its model decides. The caller reads
        the stream.

        Raises:
            ModelRefusedError: there is none.
        """
        answer = await self._answer()
        return answer if isinstance(answer, dict) else _chunks_of(answer)

    async def _answer(self) -> Any:
        """A whole body, or a response that streams."""
        from fastapi import HTTPException  # noqa: PLC0415 - see the top of this module
        from open_webui.models.users import UserModel  # noqa: PLC0415

        try:
            answer = await self._asked(UserModel.model_validate(self.user))
        except HTTPException as error:
            raise ModelRefusedError(refusal_in(error.detail, error.status_code, error.headers)) from error
        except Exception as error:  # Open WebUI's own way to say that it will not
            raise ModelRefusedError(Refusal(BAD_REQUEST, str(error))) from error
        if isinstance(answer, dict):
            if answer.get("error"):
                raise ModelRefusedError(refusal_in(answer, BAD_GATEWAY))
            return answer
        if answer.status_code >= ERROR_STATUS or not hasattr(answer, "body_iterator"):
            raise ModelRefusedError(refusal_in(_body_of(answer), answer.status_code, answer.headers))
        return answer

    async def _asked(self, user: Any) -> Any:
        from open_webui.utils.chat import generate_chat_completion  # noqa: PLC0415

        if self.is_new:
            return await sys.modules["open_webui.main"].chat_completion(self.request, dict(self.body), user)
        return await generate_chat_completion(
            self.request, dict(self.body), user, bypass_system_prompt=self.has_system
        )


async def _chunks_of(answer: Any) -> AsyncGenerator[dict[str, Any], None]:
    """What a response that streams says."""
    buffer = SseBuffer(EVENT_OCTETS)
    try:
        async for data in answer.body_iterator:
            for event in buffer.feed(data.encode() if isinstance(data, str) else bytes(data)):
                if (chunk := _chunk_of(event)) is not None:
                    yield chunk
        for event in buffer.end():
            if (chunk := _chunk_of(event)) is not None:
                yield chunk
    finally:
        if answer.background is not None:
            await answer.background()  # gives Open WebUI's connection to the model back


def _chunk_of(event: ServerEvent) -> dict[str, Any] | None:
    """The object in an event; None for the mark of the end, and for what is none."""
    with suppress(orjson.JSONDecodeError):
        found = orjson.loads(event.data)
        return found if isinstance(found, dict) else None
    return None


def _body_of(answer: Any) -> object:
    body = bytes(getattr(answer, "body", b""))
    with suppress(orjson.JSONDecodeError):
        return orjson.loads(body)
    return body.decode(errors="replace")


def refusal_in(body: object, status: int, headers: Mapping[str, str] | None = None) -> Refusal:
    """The error in an answer of Open WebUI's, whose forms are those of the engines behind it.

    Args:
        body: OpenAI's `{"error": {"message": …}}`, `{"detail": …}`, a text, or else.
        status: of HTTP, unless the error tells its own.
        headers: of the answer.
    """
    found = object_at(body)
    error = found.get("error") or found.get("detail") or body
    fields = object_at(error)
    sentence = fields.get("message") or fields.get("detail") or error
    said = sentence if isinstance(sentence, str) else message_in(body)
    own = fields.get("status")
    wait = str(fields.get("retry_after") or _header(headers, "retry-after"))
    return Refusal(
        status=own if isinstance(own, int) and own >= ERROR_STATUS else status,
        message=said or message("The model gave the error {status}.", status=status),
        code=str(fields["code"]) if fields.get("code") else None,
        param=fields["param"] if isinstance(fields.get("param"), str) else None,
        retry_after=int(wait) if wait.isdigit() else None,
    )


def _header(headers: Mapping[str, str] | None, name: str) -> str:
    return next((value for given, value in (headers or {}).items() if given.lower() == name), "")


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


def refused_answer(refusal: Refusal) -> Any:
    """What a pipe returns where no stream is wanted: the one form in which Open WebUI passes a status on.

    Of an exception that a pipe raises, and of a body with an error in it, it makes 200.
    """
    from fastapi import HTTPException  # noqa: PLC0415 - it comes with Open WebUI

    async def parts() -> AsyncGenerator[str, None]:
        raise HTTPException(refusal.status, refusal.message, refusal.headers)
        yield ""  # makes it a generator, which Open WebUI goes through where it catches nothing

    return parts()


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


# --- ollama_pack.webui.server ---
# What a plugin takes from its Open WebUI: a secret, a folder, streamed answers, its place.
#
# Imports Open WebUI and its web framework when called.

EVENTS_TYPE, LINES_TYPE = "text/event-stream", "application/x-ndjson"


def event_stream(
    events: AsyncIterator[str], media_type: str = EVENTS_TYPE, headers: Mapping[str, str] | None = None
) -> Any:
    """A streamed answer made of server-sent events, which Open WebUI hands on unchanged.

    Of a plain iterator it would put a finish reason of its own, "stop", behind ours.
    """
    from starlette.responses import StreamingResponse  # noqa: PLC0415 - see the top of this module

    return StreamingResponse(events, media_type=media_type, headers=headers)


# --- ollama_pack.webui.users ---
# Users of the running Open WebUI, their groups and their language. Imports `open_webui` when called.


def reader_language(metadata: Mapping[str, Any], request: Any) -> str:
    """What the user has chosen in Open WebUI's settings; of a client of the API, what its request accepts."""
    chosen = (metadata.get("variables") or {}).get("{{USER_LANGUAGE}}")
    return str(chosen or accepted_language(request))


def accepted_language(request: Any) -> str:
    """A request's `Accept-Language`."""
    return str(request.headers.get("accept-language") or ENGLISH) if request else ENGLISH


# --- ollama_pack.plugins.functions.response_cache_replay ---

NOT_A_MODEL = Refusal(
    400,
    message(
        "response_cache_replay is not a chat model: response_cache_filter sends chats "
        "through it, to give cached answers. Choose another model."
    ),
    param="model",
)

Body = dict[str, Any]


class Pipe:
    """Gives a chat the answer that the filter has found for it, or has its model generate and shares that."""

    def __init__(self) -> None:
        show_early_errors()

    async def pipe(
        self, body: Body, __user__: dict[str, Any], __metadata__: dict[str, Any], __request__: Any
    ) -> Any:
        """Answer a chat that the filter has sent. An error here becomes the answer's error."""

        def refused(error: Exception) -> Refusal:
            language = reader_language(__metadata__, __request__)
            for_admin = __user__.get("role") == "admin"
            refusal = passed_refusal(error, for_admin=for_admin).translated(language)
            note_refusal(__request__, refusal, __metadata__)
            return refusal

        state = __metadata__.get(STATE) or {}
        call = ModelCall(
            __request__,
            {**body, "model": state.get("model"), "metadata": __metadata__},
            {name: value for name, value in __user__.items() if name != "valves"},
            has_system=state.get("rounds", 0) > 1,
        )
        pending = _claimed(state, __request__)
        if body.get("stream"):
            return event_stream(answer_events(_chunks(pending, call), refused))
        try:
            return await _completion(pending, call)
        except Exception as error:  # noqa: BLE001 - the boundary to the server, which would show its words
            return refused_answer(refused(error))


def _claimed(state: Mapping[str, Any], request: Any) -> Any:
    """What the filter has found; None where it was replaced or switched off since: the model answers then."""
    found = request.app.state.FUNCTIONS.get(state.get("filter"))
    claim = getattr(found, "claim", None)
    return claim(str(state.get("ticket") or "")) if claim else None


async def _chunks(pending: Any, call: ModelCall) -> AsyncGenerator[Body, None]:
    """The answer as a stream.

    Raises:
        ModelRefusedError: nobody has sent the chat here, or its model gave an error.
    """
    if call.body["model"] is None:
        raise ModelRefusedError(NOT_A_MODEL)
    answer = (
        call.chunks()
        if pending is None
        else pending.chunks(_head(pending.named), call.chunks, usage_place(call.body))
    )
    async with aclosing(answer) as chunks:
        async for chunk in chunks:
            yield chunk


async def _completion(pending: Any, call: ModelCall) -> Body:
    """The answer as one body. As `_chunks` otherwise."""
    if call.body["model"] is None:
        raise ModelRefusedError(NOT_A_MODEL)
    if pending is None:
        return await call.completion()
    whole: Body = await pending.completion(_head(pending.named), call.completion, call.streamed)
    return whole


def _head(model: str) -> ReplyHead:
    return ReplyHead(f"chatcmpl-{uuid4().hex}", int(time.time()), model)
