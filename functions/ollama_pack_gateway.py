"""
title: Ollama Pack gateway
author: Open WebUI Ollama Pack
author_url: https://open-webui-ollama-pack.example/open-webui-ollama-pack
description: Answers OpenAI's, Anthropic's and Ollama's APIs at /ollama-pack/v1 and /ollama-pack/api.
license: MIT
required_open_webui_version: 0.11.2
version: 0.1.0
"""

# GENERATED from src/ollama_pack/plugins/functions/ollama_pack_gateway.py by scripts/package.py: change that, not this.
#
# Begin here: `class Event`, line 5819, which the server calls.
# The modules that it uses come first:
#    119  base.translations              The translations of all sentences. GENERATED from locale/ by scripts/package.py.
#    261  base.messages                  Sentences for people, in English and in the languages of the catalogue.
#    389  errors                         The base of every error that the pack raises on purpose. Each part defines its own in its `errors.py`.
#    397  engines.errors                 What goes wrong with a node.
#    541  engines.body                   Reading fields of a body that nobody has checked: a value of the right type, or a refusal by name.
#    676  engines.content                The parts of a message, in the one form that this pack works with, whatever a client calls them.
#    686  aliases.facts                  What an alias table may ask about a request, read off an OpenAI chat body.
#    755  base.single_flight             What is asked, made or kept once: for all who ask at the same time, or for all plugins of a process.
#    923  cache.errors                   What goes wrong with the cache.
#    943  cache.entry                    An answer as it is kept.
#    976  cache.collect                  From the chunks of a generation to what may be kept of it.
#   1114  engines.calls                  Tool calls from the pieces of a streamed answer, which engines cut up and number in ways of their own.
#   1170  engines.ollama.to_openai       What an Ollama says, as OpenAI's chat API says it. Nothing here raises: what has a wrong type is absent.
#   1195  engines.ollama.stream          A streamed answer of Ollama as OpenAI's chunks: one step for each line, remembering but a small state.
#   1238  cache.replay                   A kept or shared answer in the form that the asking client wants: chunks of a stream, or one body.
#   1296  engines.ollama.options         Sampling and runner options of an OpenAI chat body, wherever Open WebUI may have put them.
#   1413  engines.ollama.schema          What of a JSON schema no Ollama can use: refused here, as there it ends in status 500, or ends the runner.
#   1537  engines.tools                  The tools that a chat body offers, and what its `tool_choice` asks for, in whichever client's words.
#   1648  engines.ollama.to_ollama       An OpenAI chat request as Ollama's `POST /api/chat` wants it.
#   1770  engines.ollama.client_request  Requests of clients that speak Ollama's API, as OpenAI chat bodies: `from_openai` says their answers.
#   1925  engines.refusals               What a client gets instead of an answer, in the form of each API that clients speak.
#   2002  base.tables                    Tables that admins write as text: a row a line, `#` starts a comment, empty lines are skipped.
#   2033  aliases.errors                 What goes wrong with aliases.
#   2075  engines.sse                    Lines of a stream, and server-sent events as the HTML standard has them ("Interpreting an event stream").
#   2184  routing.errors                 What goes wrong with routing.
#   2336  webui.errors                   What goes wrong between the pack and Open WebUI.
#   2372  services.answers               An answer as clients of OpenAI's API take it, and the one place that says which error they get.
#   2514  engines.ollama.from_openai     An OpenAI chat's answer as Ollama's `POST /api/chat` says it: lines of JSON, or one object.
#   2617  webui.anthropic                Anthropic's Messages API, by Open WebUI's own code for it. Imports `open_webui` when called, not before.
#   2735  webui.server                   What a plugin takes from its Open WebUI: a secret, a folder, streamed answers, its place.
#   2755  services.client_forms          The APIs that clients of the gateway speak: each request becomes an OpenAI chat body, each answer its form.
#   2908  aliases.table                  An alias table: rows of `alias = candidate, candidate [condition, …]`, read once and then only looked up.
#   3294  engines.ollama.names           Model names as Ollama writes them: `[host/][namespace/]model[:tag]`, the tag `latest` if there is none.
#   3436  fit.shapes                     Shapes of models: from metadata and tensors, or from as little as a number of parameters.
#   3482  fit.choose                     Which variant of a model a node takes: the best one that fits, next to what it has in memory.
#   3503  aliases.resolve                Which model answers for a name: a pure function of the table, the request and the models that are there.
#   3621  aliases.published              Which names of a table can be published as models, and what answers for them.
#   3657  engines.model_ids              Ids of models that clients can use: alias tables and addresses split at spaces, commas and the like.
#   3665  webui.models                   What Open WebUI knows of models and of who may use them. Imports `open_webui` when called, not before.
#   3769  webui.users                    Users of the running Open WebUI, their groups and their language. Imports `open_webui` when called.
#   3791  webui.functions                Functions of the running Open WebUI. Imports `open_webui` when called, not before.
#   3899  webui.contact                  The way from the events function to the running `gpu_router`: another plugin, which may not be there.
#   3905  services.offer                 Which rows a deployment should have.
#   3954  engines.openai.failures        Which typed error a refusal of an OpenAI-compatible engine is: the words differ from one to the next.
#   3972  webui.calling                  Asking a model through Open WebUI itself, with its access check. Imports `open_webui` when called.
#   4140  webui.embedding                Vectors and model facts over Open WebUI's own connections. Imports `open_webui` when called, not before.
#   4187  webui.presets                  What answers under a model's id, and what its row adds to a chat. Imports `open_webui` when called.
#   4198  services.gateway_names         The names that people and clients of the gateway may ask for, and the model that each stands for.
#   4411  webui.budget_contact           The way to `usage_budgets`, for the router and the routes. Its answers are plain values.
#   4518  services.gateway_direct        The gateway's own chain: budgets, access, aliases, cache and router, without other filters and tools.
#   4719  services.gateway_limits        Budgets as the rate-limit headers that OpenAI's and Anthropic's clients read.
#   4758  services.gateway_vectors       Embeddings at the gateway, in OpenAI's and Ollama's forms, for every name of the alias tables.
#   4913  engines.front_route            A route in front of a server's own, which sees each answer of a chat before its client does.
#   4927  webui.leaving                  When Open WebUI is told that a client has left: not while it reads its database.
#   5016  webui.early_errors             The status of an error that comes before an answer, which Open WebUI leaves no room for.
#   5062  webui.routes                   Routes of a plugin on the running Open WebUI. Imports `open_webui` when called, not before.
#   5182  webui.gateway_request          A client's request at the gateway: its body, its id, and whether its client is still there.
#   5287  webui.ollama_models            Open WebUI's Ollama API, and which of its names the router answers. Imports `open_webui` when called.
#   5333  services.gateway               The gateway: OpenAI's, Anthropic's and Ollama's APIs for every name of the alias tables.
#   5696  services.valves                What all valves of the pack have in common: what is refused is told to admins, without what was written.
#   5794  webui.service                  What an event function keeps up in a process: its routes, and a task that looks again from time to time.

import asyncio
import base64
import json
import logging
import math
import random
import re
import struct
import sys
import time
import weakref
from collections import defaultdict
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from collections.abc import Set as AbstractSet
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import IntEnum
from functools import cached_property, lru_cache, partial
from graphlib import CycleError, TopologicalSorter
from hashlib import blake2b
from http import HTTPStatus
from inspect import signature
from itertools import count
from types import ModuleType, SimpleNamespace
from typing import Any, Generic, Literal, Protocol, Self, TypeVar
from uuid import uuid4

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
        "The body": "请求体",
        "The computers that run this model do not answer at the moment. Try again in a minute, or choose another model.": "运行该模型的机器目前没有响应。请稍后再试，或选择其他模型。",
        "The model cannot answer this request. Change it, or choose another model.": "该模型无法回答此请求。请修改请求，或选择其他模型。",
        "The model cannot answer this request: {reason}": "该模型无法回答此请求：{reason}",
        "The model fails at this request every time. Change it, or choose another model.": "该模型每次处理此请求都会失败。请修改请求，或选择其他模型。",
        "The model gave no vector for some of the texts.": "模型没有为其中一些文本返回向量。",
        "The model gave the error {status}.": "模型返回错误 {status}。",
        "The model said nothing. Try again.": "模型没有任何输出。请重试。",
        "The model sends a stream, though none was asked for.": "模型返回了流，而请求并未要求流式输出。",
        "The model {name!r}": "模型 {name!r}",
        "The request has more than {limit} MiB: send fewer or smaller pictures.": "请求超过 {limit} MiB：请减少图片或使用较小的图片。",
        "This model": "该模型",
        "This model did not begin to answer in time. Try again in a minute, or choose another model.": "该模型未能及时开始回答。请稍后再试，或选择其他模型。",
        "This model failed to answer. Try again in a minute, or choose another model.": "该模型回答失败。请稍后再试，或选择其他模型。",
        "This model has too much to do. Try again in a minute, or choose another model.": "该模型当前负载过高。请稍后再试，或选择其他模型。",
        "This model is not installed on any computer here. Choose another model, or ask an admin.": "所有机器上都没有安装该模型。请选择其他模型，或联系管理员。",
        "Too many questions are waiting, {own} of them yours. Try again in a minute.": "排队的请求过多，其中 {own} 个来自您。请稍后再试。",
        "Too many questions are waiting. Try again in a minute.": "排队的请求过多。请稍后再试。",
        "a list": "列表",
        "a model is missing: after `=` stand model names with commas between them": "缺少模型：`=` 之后是以逗号分隔的模型名称",
        "a model is named twice": "有一个模型重复出现",
        "a number": "数字",
        "a table has at most {limit} rows: use wildcards": "一张表最多 {limit} 行：请使用通配符",
        "a whole number": "整数",
        "aliases of aliases, {depth} deep: {limit} is the limit": "别名的别名有 {depth} 层：上限为 {limit} 层",
        "all nodes are busy and {waiting} requests wait (the limit is {limit}): try again in a minute": "所有节点都忙，已有 {waiting} 个请求在排队（上限 {limit}）：请稍后再试",
        "all nodes are busy and {waiting} requests wait, {own} of them yours (the limit is {limit}): try again in a minute": "所有节点都忙，已有 {waiting} 个请求在排队，其中 {own} 个来自您（上限 {limit}）：请稍后再试",
        "all nodes were busy for {seconds:g} s and {waiting} requests wait: try again later, or let an admin add a node or raise first_token_timeout_seconds": "所有节点已忙了 {seconds:g} 秒，有 {waiting} 个请求在排队：请稍后再试，或请管理员增加节点、调大 first_token_timeout_seconds",
        "an object": "对象",
        "cannot be reached (does it run, is the address right?)": "无法连接（是否在运行？地址是否正确？）",
        "cannot be used here: send the prompt alone": "在这里不能使用：请只发送 prompt",
        "cannot be used here: send the prompt alone, or use /api/chat": "在这里不能使用：请只发送 prompt，或使用 /api/chat",
        "context>= needs a number of tokens, such as context>=8192 or context>=8k, not {value!r}": "context>= 需要 token 数，例如 context>=8192 或 context>=8k，而不是 {value!r}",
        "group= needs names of groups, such as group=staff or group=staff|teachers, not {value!r}": "group= 需要分组名称，例如 group=staff 或 group=staff|teachers，而不是 {value!r}",
        "has no {model!r} ({remedy})": "没有 {model!r}（{remedy}）",
        "has not connected within {seconds:g} s": "{seconds:g} 秒内未能建立连接",
        "has not loaded the model within {seconds:g} s": "{seconds:g} 秒内未能加载模型",
        "has not sent its answer within {seconds:g} s": "{seconds:g} 秒内没有返回回答",
        "has not sent its first byte within {seconds:g} s": "{seconds:g} 秒内没有返回任何数据",
        "has not sent its next line within {seconds:g} s": "{seconds:g} 秒内没有返回后续内容",
        "has {count} characters: a name has at most {limit}": "有 {count} 个字符：名称最多 {limit} 个",
        "has {count} texts: send at most {limit} at once": "有 {count} 段文本：一次最多发送 {limit} 段",
        "is OpenAI's old form, which Ollama does not have: send `tools` instead": "是 OpenAI 的旧格式，Ollama 没有：请改用 `tools`",
        "is busy (status {status})": "正忙（状态码 {status}）",
        "is missing": "缺失",
        "is missing: name one of GET /ollama-pack/api/tags": "缺失：请填写 GET /ollama-pack/api/tags 中的一个",
        "is missing: name one of GET /ollama-pack/v1/models": "缺失：请填写 GET /ollama-pack/v1/models 中的一个",
        "is missing: only tools that the client runs can be used here": "缺失：这里只能使用由客户端运行的工具",
        "is missing: send a list of messages": "缺失：请发送消息列表",
        "is missing: send a list of messages, such as [{{role, content}}]": "缺失：请发送消息列表，例如 [{{role, content}}]",
        "is neither json nor a JSON schema": "既不是 json 也不是 JSON schema",
        "is no JSON ({error}): send a JSON object": "不是 JSON（{error}）：请发送 JSON 对象",
        "is not known": "未知",
        "is not of the form of Anthropic's Messages API": "不符合 Anthropic Messages API 的格式",
        "is of the type {kind!r}: Ollama takes text and images only": "类型为 {kind!r}：Ollama 只接受文本和图片",
        "is too large a JSON schema: at most {limits} are possible": "JSON schema 过大：最多 {limits}",
        "may repeat something {limit} times at most": "重复次数最多为 {limit}",
        "must be \"auto\", \"none\", \"required\" or the name of one of the tools": "必须是 \"auto\"、\"none\"、\"required\" 或其中一个工具的名称",
        "must be \"json\" or a JSON schema": "必须是 \"json\" 或 JSON schema",
        "must be a JSON object": "必须是 JSON 对象",
        "must be a JSON schema: an object, true or false": "必须是 JSON schema：对象、true 或 false",
        "must be a list": "必须是列表",
        "must be a list of JSON schemas": "必须是 JSON schema 的列表",
        "must be a number": "必须是数字",
        "must be a whole number": "必须是整数",
        "must be a whole number from 0 to {limit}": "必须是 0 到 {limit} 的整数",
        "must be an object of JSON schemas": "必须是由 JSON schema 组成的对象",
        "must be at least {limit}": "不能小于 {limit}",
        "must be at most {limit}": "不能大于 {limit}",
        "must be from {least:.16g} to {most:.16g}": "必须在 {least:.16g} 到 {most:.16g} 之间",
        "must be one of none, {levels}": "必须是 none、{levels} 之一",
        "must be one of {choices}": "必须是以下之一：{choices}",
        "must be one of {types}": "必须是 {types} 之一",
        "must be one text: send one request for each prompt": "必须是一段文本：请为每个 prompt 单独发送请求",
        "must be seconds or a duration such as \"5m\"": "必须是秒数，或 \"5m\" 这样的时长",
        "must be text": "必须是文本",
        "must be text or a list of texts": "必须是文本或文本列表",
        "must be text or a list of texts (LangChain: check_embedding_ctx_length=False)": "必须是文本或文本列表（LangChain：check_embedding_ctx_length=False）",
        "must be text, json_object or json_schema": "必须是 text、json_object 或 json_schema",
        "must be true or false": "必须是 true 或 false",
        "must be {wanted}, not {value}": "必须是{wanted}，而不是{value}",
        "must begin with ^ and end with $: Ollama takes no other pattern": "必须以 ^ 开头、以 $ 结尾：Ollama 不接受其他模式",
        "must lead to a part of this schema, such as #/$defs/name": "必须指向此 schema 的一部分，例如 #/$defs/name",
        "must not be 0: 1 means no penalty": "不能为 0：1 表示没有惩罚",
        "names a function that is not among the tools": "指定的函数不在 tools 中",
        "no node answers that may have {wanted}: no node is configured": "没有可能提供 {wanted} 的节点：尚未配置任何节点",
        "no node answers that may have {wanted}: {faults}": "可能提供 {wanted} 的节点都没有响应：{faults}",
        "no node can answer with {model} now": "目前没有节点能用 {model} 回答",
        "no node could answer ({reasons}): try again, or let an admin look at these nodes": "没有节点能够回答（{reasons}）：请重试，或请管理员检查这些节点",
        "no node has {wanted}: pull it on one of {there}": "没有节点安装了 {wanted}：请在其中一个节点上拉取：{there}",
        "no node has {wanted}: pull it on one of {there}; no answer from {faults}": "没有节点安装了 {wanted}：请在其中一个节点上拉取：{there}；以下节点没有响应：{faults}",
        "node {node} {reason}": "节点 {node}：{reason}",
        "quant= needs levels, the preferred one first, such as quant=q8_0>q4_K_M, not {value!r}": "quant= 需要量化级别，首选在前，例如 quant=q8_0>q4_K_M，而不是 {value!r}",
        "quant=auto takes no other level next to it, as in {value!r}": "quant=auto 不能与其他级别一起使用，如 {value!r}",
        "refuses the request": "拒绝了该请求",
        "refuses the request (status {status})": "拒绝了该请求（状态码 {status}）",
        "row {line} ({row!r}): {reason}": "第 {line} 行（{row!r}）：{reason}",
        "row {line} already answers {alias!r} in the same case: put both rows' models into one row, in order of preference": "第 {line} 行已在相同条件下处理 {alias!r}：请将两行的模型按优先顺序合并为一行",
        "run 'ollama pull {model}' there": "请在该节点运行 'ollama pull {model}'",
        "the alias before `=` is missing": "`=` 之前缺少别名",
        "the alias leads back to itself: {way}": "别名指回自身：{way}",
        "the answer was shared with another request, whose generation broke off: regenerate it": "此回答与另一请求共享，而其生成已中断：请重新生成",
        "the model was asked through Open WebUI and gave the error {status}": "通过 Open WebUI 询问了该模型，返回错误 {status}",
        "the star in {name!r} has no star in the alias to take its text from": "{name!r} 中的星号在别名中没有对应的星号",
        "true or false": "true 或 false",
        "unknown condition {written!r}: the known ones are {known}": "未知条件 {written!r}：已知条件有 {known}",
        "write it as `alias = model, model [condition, condition]`": "请写成 `alias = model, model [condition, condition]`",
        "you may not use {model}": "您无权使用 {model}",
        "{alias!r} is more than one name: give each alias a row of its own": "{alias!r} 不止一个名称：请为每个别名单独写一行",
        "{beginning!r}… has {count} characters, and a model id has at most {limit}": "{beginning!r}… 有 {count} 个字符，而模型 ID 最多 {limit} 个",
        "{condition!r} is the second condition of its kind: put both into one": "{condition!r} 是同类的第二个条件：请合并为一个",
        "{count} models are named, and at most {limit} are tried": "写了 {count} 个模型，而最多尝试 {limit} 个",
        "{depth} levels and {count} parts and values": "{depth} 层以及 {count} 个部分和值",
        "{field} {reason}": "{field} {reason}",
        "{model} is not installed": "未安装 {model}",
        "{name!r} has a space in it: separate models with commas, conditions go in [ ]": "{name!r} 中有空格：模型之间用逗号分隔，条件写在 [ ] 中",
        "{name!r} has an invisible character in it: type the name again": "{name!r} 中有不可见字符：请重新输入该名称",
        "{name!r} has two stars: one can stand for the text of the alias's first star": "{name!r} 有两个星号：只能用一个代表别名第一个星号的文本",
        "{named} does not exist, or you may not use it. GET /ollama-pack/v1/models lists yours.": "{named}不存在，或您无权使用。GET /ollama-pack/v1/models 列出您可用的模型。",
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


def text_or_empty(value: object) -> str:
    """The text; an empty one where there is something else."""
    return value if isinstance(value, str) else ""


def objects_in(value: object, field: str) -> list[Mapping[str, Any]]:
    """The value as a list of objects; absent counts as empty.

    Raises:
        ChatBodyError: it is something else, or one of its items is.
    """
    items = list_in(value, field)
    for number, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise _unfit(item, f"{field}[{number}]", message("an object"))
    return items


def list_in(value: object, field: str) -> list[Any]:
    """The value as a list; absent counts as empty.

    Raises:
        ChatBodyError: it is something else.
    """
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return list(value)
    raise _unfit(value, field, "a list")


def text_in(value: object, field: str) -> str:
    """The value, which must be text.

    Raises:
        ChatBodyError: it is something else.
    """
    if isinstance(value, str):
        return value
    raise _unfit(value, field, "text")


def decimal_in(value: object, field: str) -> float:
    """The value as a finite number. Open WebUI's custom parameters may be numbers in text.

    Raises:
        ChatBodyError: it is something else.
    """
    return _finite(value, field, "a number")


def whole_in(value: object, field: str) -> int:
    """The value as a whole number, cut off at the point as Ollama does it.

    Raises:
        ChatBodyError: it is something else.
    """
    number = _finite(value, field, message("a whole number"))
    return value if isinstance(value, int) else int(number)


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


def json_in(text: str | bytes) -> Any:
    """What the text says as JSON.

    Raises:
        ValueError: it is none, or too deep. NaN and the infinities, which JSON has not, count as none.
    """
    return orjson.loads(text)  # a JSONDecodeError is a ValueError


def _finite(value: object, field: str, kind: str) -> float:
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number):
                return number
    except (ValueError, OverflowError):  # text that is no number, or an integer beyond every float
        pass
    raise _unfit(value, field, kind)


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


# --- ollama_pack.engines.content ---
# The parts of a message, in the one form that this pack works with, whatever a client calls them.
#
# OpenAI's chat and Responses APIs, Anthropic's API and LangChain each have their own names for text and images.
# Clients also send back what another model thought, or marks for a provider's cache: no model reads those.

IMAGE_PARTS = frozenset({"image_url", "input_image", "image"})
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")  # engines' three names for one thing


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


# --- ollama_pack.base.single_flight ---
# What is asked, made or kept once: for all who ask at the same time, or for all plugins of a process.

_Key = TypeVar("_Key")
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


class Remembered(Generic[_Key, _Shared]):
    """Answers by key, each kept for a while; of more than the limit the oldest go first. One event loop."""

    def __init__(
        self, seconds: float, limit: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Remember nothing yet.

        Args:
            seconds: how old an answer may be, counted from when it was asked for.
            limit: answers at the most.
            clock: monotonic seconds.
        """
        self._seconds, self._limit, self._clock = seconds, limit, clock
        self._kept: dict[_Key, tuple[float, _Shared]] = {}
        self._renewing: dict[_Key, asyncio.Task[_Shared]] = {}

    def find(self, key: _Key) -> _Shared | None:
        """The answer that is kept; None: there is none, or it is too old."""
        found = self._kept.get(key)
        return found[1] if found is not None and self._clock() - found[0] <= self._seconds else None

    def keep(self, key: _Key, answer: _Shared) -> None:
        """Keep an answer."""
        self._keep(key, answer, self._clock())

    async def get(self, key: _Key, ask: Callable[[], Awaitable[_Shared]]) -> _Shared:
        """The kept answer, or a new one. What `ask` raises is not kept.

        At half of the age that it may have an answer is asked for anew, so that hardly anybody waits.
        """
        kept = self._kept.get(key)
        age = math.inf if kept is None else self._clock() - kept[0]
        if kept is None or age > self._seconds:
            return await self._ask(key, ask)
        if age > self._seconds / 2 and key not in self._renewing:
            task = asyncio.get_running_loop().create_task(self._ask(key, ask))
            self._renewing[key] = task
            task.add_done_callback(partial(self._renewed, key))
        return kept[1]

    async def _ask(self, key: _Key, ask: Callable[[], Awaitable[_Shared]]) -> _Shared:
        before, began = self._kept, self._clock()
        answer = await ask()
        if before is self._kept:  # else something has changed meanwhile, and the answer may be of before
            self._keep(key, answer, began)
        return answer

    def forget(self) -> None:
        """Keep nothing, nor what is being asked for now: something has changed."""
        self._kept = {}

    def _renewed(self, key: _Key, task: asyncio.Task[_Shared]) -> None:
        del self._renewing[key]
        if task.cancelled() or task.exception() is not None:
            self._kept.pop(key, None)  # the next to ask gets the error himself

    def _keep(self, key: _Key, answer: _Shared, at: float) -> None:
        self._kept.pop(key, None)
        while len(self._kept) >= self._limit:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = at, answer


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


# --- ollama_pack.cache.entry ---
# An answer as it is kept.


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete answer: its finish reason is `stop`, and it is not empty. Tool calls are never kept.

    Attributes:
        content: the text.
        reasoning: what the model thought before it; may be empty.
        model: the name that the engine gave itself.
        usage: tokens, rates and durations as the engine told them; None where it told nothing.
        sources: citations, in Open WebUI's form.
        created: Unix time in seconds, on the clock of who generated it.
        seconds: how long the generation took.
    """

    content: str
    reasoning: str = ""
    model: str = ""
    usage: dict[str, Any] | None = None
    sources: list[Any] = field(default_factory=list)
    created: float = 0.0
    seconds: float = 0.0

    @property
    def completion_tokens(self) -> int:
        """How many tokens the model need not generate again."""
        tokens = (self.usage or {}).get("completion_tokens")
        return tokens if isinstance(tokens, int) and tokens > 0 else 0


# --- ollama_pack.cache.collect ---
# From the chunks of a generation to what may be kept of it.

# Of a chunk and its delta, what is understood. An answer with anything else cannot be told again faithfully,
# and so it is not kept.
_CHUNK_FIELDS = {
    *("error", "id", "object", "created", "model", "choices", "usage", "sources", "event", "ollama_pack"),
    *("system_fingerprint", "service_tier", "timings", "selected_model_id", "provider", "obfuscation"),
}
_FINISHES = ("length", "tool_calls", "function_call", "content_filter", "load", "unload", "error")
_DELTA_FIELDS = {"role", "content", "tool_calls", "refusal", *THOUGHT_FIELDS}


class AnswerCollector:
    """Takes the chunks of one generation as they pass, and says in the end what they were.

    Attributes:
        usage: the last figures that came; None before.
        finish_reason: why the model stopped; empty while it has not.
    """

    def __init__(self, *, needs_usage: bool = False, answerer: str = "") -> None:
        """Know of nothing yet; `needs_usage` and `answerer`: see `Question`."""
        self._needs_usage = needs_usage
        self._answerer = answerer
        self._answered = ""  # the model that the router says has answered
        self.usage: dict[str, Any] | None = None
        self.finish_reason = ""
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._sources: list[Any] = []
        self._calls: list[Any] = []
        self._model = ""
        self._against = ""  # the first thing that speaks against keeping it

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def sources(self) -> list[Any]:
        return list(self._sources)

    @property
    def tool_calls(self) -> list[Any]:
        """The calls as they came: of a streamed answer, pieces."""
        return list(self._calls)

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take a chunk, OpenAI's `chat.completion.chunk` or a line that Open WebUI puts in between."""
        if chunk.get("error"):
            self._refuse("error")
        if any(chunk[name] for name in chunk.keys() - _CHUNK_FIELDS):  # vLLM's may be there, and hold nothing
            self._refuse("unknown field")
        if isinstance(usage := chunk.get("usage"), dict):
            self.usage = usage
        if isinstance(model := chunk.get("model"), str) and model:
            self._model = model
        if isinstance(routed := chunk.get("ollama_pack"), dict) and isinstance(routed.get("model"), str):
            self._answered = routed["model"]
        if isinstance(sources := chunk.get("sources"), list):
            self._sources += sources
        self._add_choices(chunk.get("choices"))

    def verdict(self, *, created: float, seconds: float) -> Entry | str:
        """What may be kept, or the reason why it may not.

        Args:
            created: Unix time in seconds.
            seconds: how long the generation took.
        """
        if self._against or self._calls:
            return self._against or "tool calls"
        if self.finish_reason != "stop":
            reason = self.finish_reason if self.finish_reason in _FINISHES else "other"
            return f"finish reason {reason}" if self.finish_reason else "no finish reason"
        if self._needs_usage and not self.usage:
            return "no usage"
        if not self.content.strip():
            return "empty"
        if self._answerer and _as_compared(self._answered) != _as_compared(self._answerer):
            return "another model"
        return Entry(
            content=self.content,
            reasoning=self.reasoning,
            model=self._model,
            usage=self.usage,
            sources=self.sources,
            created=created,
            seconds=seconds,
        )

    def _add_choices(self, choices: object) -> None:
        given = choices if isinstance(choices, list) else []
        for choice in given:
            if not isinstance(choice, dict) or choice.get("index") not in (None, 0):
                self._refuse("several choices")
                continue
            if choice.get("logprobs"):
                self._refuse("log probabilities")
            if isinstance(reason := choice.get("finish_reason"), str) and reason:
                self.finish_reason = reason
            delta = choice.get("delta") or choice.get("message")
            self._add_delta(delta if isinstance(delta, dict) else {})

    def _add_delta(self, delta: Mapping[str, Any]) -> None:
        if isinstance(content := delta.get("content"), str):
            self._content.append(content)
        elif content is not None:
            self._refuse("an answer that is not text")
        self._reasoning += reasoning_in(delta)
        if isinstance(calls := delta.get("tool_calls"), list):
            self._calls += calls
        if delta.get("refusal"):
            self._refuse("refusal")
        if any(delta[name] for name in delta.keys() - _DELTA_FIELDS):
            self._refuse("unknown field")

    def _refuse(self, reason: str) -> None:
        self._against = self._against or reason


def _as_compared(model: str) -> str:
    """A name in the form in which Ollama takes two names of one model to be equal."""
    return model.lower().removesuffix(":latest")


def reasoning_in(delta: Mapping[str, Any]) -> Iterator[str]:
    """What a delta has of the model's thoughts, under the first of the names that is there."""
    found = (delta[name] for name in THOUGHT_FIELDS if isinstance(delta.get(name), str))
    if text := next(found, ""):
        yield text


# --- ollama_pack.engines.calls ---
# Tool calls from the pieces of a streamed answer, which engines cut up and number in ways of their own.


@dataclass(slots=True)
class PendingCall:
    """A tool call of which more may come."""

    index: object
    id: str = ""
    name: str = ""
    arguments: str = ""

    def take(self, fragment: Mapping[str, Any]) -> None:
        """Add what is new."""
        function = object_at(fragment, "function")
        self.id = self.id or text_or_empty(fragment.get("id"))
        self.name = self.name or text_or_empty(function.get("name"))
        self.arguments += text_or_empty(function.get("arguments"))


@dataclass(slots=True)
class PendingCalls:
    """The tool calls of one answer so far."""

    calls: list[PendingCall] = field(default_factory=list)

    def take(self, fragment: Mapping[str, Any]) -> None:
        """Add to the last call of the same index, or begin a new one.

        Some engines number all calls 0 and tell them apart by their ids, others leave the index out.
        """
        index, identity = fragment.get("index"), text_or_empty(fragment.get("id"))
        if index is None:
            named = identity or object_at(fragment, "function").get("name")
            known = None if named or not self.calls else self.calls[-1]
        else:
            known = next((call for call in reversed(self.calls) if call.index == index), None)
        if known is None or (identity and known.id and identity != known.id):
            known = PendingCall(index)
            self.calls.append(known)
        known.take(fragment)

    def whole(self, answer: str) -> list[dict[str, Any]]:
        """The calls as OpenAI has them, once nothing more comes; the answer's id is for calls without one."""
        return [
            {
                "index": number,
                "id": call.id or f"call_{answer}_{number}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments or "{}"},
            }
            for number, call in enumerate(self.calls)
        ]


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


def completion_of(chunks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The `chat.completion` that all chunks of an answer make up, for a client that wants no stream."""
    taken = list(chunks)
    choices = [chunk["choices"][0] for chunk in taken if chunk["choices"]]
    logprobs = [token for choice in choices for token in (choice["logprobs"] or {}).get("content", ())]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "", **_joined(choice["delta"] for choice in choices)},
        "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
        "finish_reason": choices[-1]["finish_reason"],
    }
    head = {name: taken[0][name] for name in ("id", "created", "model")}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": taken[-1].get("usage")}


def _joined(deltas: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {}
    for delta in deltas:
        for name in ("content", "reasoning_content"):
            if name in delta:
                message[name] = message.get(name, "") + delta[name]
        if "tool_calls" in delta:
            message["tool_calls"] = message.get("tool_calls", []) + delta["tool_calls"]
    return message


# --- ollama_pack.cache.replay ---
# A kept or shared answer in the form that the asking client wants: chunks of a stream, or one body.

MARKER = "ollama_pack"


def completion_chunks(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """An unstreamed answer as chunks, so that one whose client wants no stream can be shared and kept."""
    head: dict[str, Any] = {name: body[name] for name in ("id", "created", "model") if name in body}
    head["object"] = "chat.completion.chunk"
    extra = {name: value for name, value in body.items() if name not in {*head, "choices"}}
    choices = [choice for choice in body.get("choices") or () if isinstance(choice, Mapping)]
    ends = []
    for choice in choices:
        common = {name: value for name, value in choice.items() if name not in ("message", "logprobs")}
        said = {"delta": _delta_of(choice.get("message") or {}), "logprobs": choice.get("logprobs")}
        yield {**head, "choices": [{**common, **said, "finish_reason": None}]}
        ends.append({**common, "delta": {}, "logprobs": None})
    yield {**head, "choices": ends, **extra}


def _delta_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as a delta: its tool calls get the number that tells pieces of a stream apart."""
    calls = message.get("tool_calls")
    numbered = [{"index": place, **call} for place, call in enumerate(calls)] if calls else calls
    return {**message, **({"tool_calls": numbered} if calls else {})}


async def completion_from(chunks: AsyncIterable[Mapping[str, Any]], head: ReplyHead) -> dict[str, Any]:
    """One body from a stream, for a client that wants none. An error in the stream becomes the body."""
    collector = AnswerCollector()
    mark: dict[str, Any] = {}
    async for chunk in chunks:
        if chunk.get("error"):
            return {"error": chunk["error"]}
        collector.add(chunk)
        mark = {MARKER: chunk[MARKER]} if MARKER in chunk else mark
    reasoning = {"reasoning_content": collector.reasoning} if collector.reasoning else {}
    pending = PendingCalls()
    for piece in collector.tool_calls:
        pending.take(object_at(piece))
    calls = {"tool_calls": pending.whole(head.id)} if pending.calls else {}
    message = {"role": "assistant", "content": collector.content, **reasoning, **calls}
    return _completion(head, message, collector.finish_reason, collector.usage, collector.sources) | mark


def _completion(
    head: ReplyHead,
    message: dict[str, Any],
    finish_reason: str,
    usage: dict[str, Any] | None,
    sources: list[Any],
) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason or None}
    cited = {"sources": sources} if sources else {}
    return {**head.tagged("chat.completion"), "choices": [choice], "usage": usage, **cited}


# --- ollama_pack.engines.ollama.options ---
# Sampling and runner options of an OpenAI chat body, wherever Open WebUI may have put them.


def _stop_in(value: object, field: str) -> list[str]:
    """OpenAI allows one text or a list of them, Ollama a list."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text_in(item, f"{field}[{number}]") for number, item in enumerate(value)]
    raise ChatBodyError(field, message("must be text or a list of texts"))


_WHOLE_OPTIONS = (
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "num_keep",
    "num_predict",
    "seed",
    "top_k",
    "repeat_last_n",
    "mirostat",
)
_DECIMAL_OPTIONS = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "mirostat_tau",
    "mirostat_eta",
)
# The options that are known here, and the type without which Ollama refuses the request. The mirostat ones
# mean nothing to a newer Ollama, and do no harm there.
OPTION_TYPES: dict[str, Callable[[object, str], Any]] = {
    **dict.fromkeys(_WHOLE_OPTIONS, whole_in),
    **dict.fromkeys(_DECIMAL_OPTIONS, decimal_in),
    "use_mmap": switch_in,
    "stop": _stop_in,
}
# From and to. Ollama itself looks at none of them: a batch of 0 ends its runner, 10,000 threads or a window
# of a billion tokens its machine, and what no float32 can hold the request.
_INT32, _DECIMAL = 2**31 - 1, 1e6
OPTION_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_WHOLE_OPTIONS, (-_INT32, _INT32)),
    **dict.fromkeys(_DECIMAL_OPTIONS, (-_DECIMAL, _DECIMAL)),
    "num_batch": (1, _INT32),
    "num_gpu": (-1, _INT32),
    "main_gpu": (0, 255),
    "num_thread": (0, 512),
    "num_keep": (-1, _INT32),
    "seed": (-(2**63), 2**63 - 1),
    "repeat_last_n": (-1, 2**22),
}
# OpenAI's names of `num_predict`; a later one counts where several are given.
_LENGTH_NAMES = ("num_predict", "max_tokens", "max_completion_tokens")
# Open WebUI puts these among the options; Ollama looks for them beside the options, or nowhere.
_BESIDE_OPTIONS = ("format", "keep_alive", "think", "reasoning_effort", "response_format", "system")
_NO_OPTIONS = frozenset((*_BESIDE_OPTIONS, *_LENGTH_NAMES))


def flat_settings(body: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a body sets, in one place and in Ollama's names.

    What stands at the top counts more than `options`, those more than `params.custom_params`, and those more
    than `params`. Null counts as absent.

    Raises:
        ChatBodyError: `params`, `custom_params` or `options` is no object.
    """
    params = object_in(body.get("params"), "params")
    custom = object_in(params.get("custom_params"), "params.custom_params")
    options = object_in(body.get("options"), "options")
    settings: dict[str, Any] = {}
    for layer in (params, custom, options, body):
        given = {name: value for name, value in layer.items() if value is not None}
        settings |= given
        lengths = [given[name] for name in _LENGTH_NAMES if name in given]
        settings |= {"num_predict": lengths[-1]} if lengths else {}
    return settings


def ollama_options(body: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's `options` for an OpenAI chat body.

    What is in the body's own `options` and unknown here goes along as it is: a newer Ollama may know it.

    Raises:
        ChatBodyError: an option has a value of a type or in a range that no Ollama can use.
    """
    settings = flat_settings(body)
    own = object_in(body.get("options"), "options")
    unknown = {
        str(name): value
        for name, value in own.items()
        if value is not None and name not in OPTION_TYPES and name not in _NO_OPTIONS
    }
    known = {name: read(settings[name], name) for name, read in OPTION_TYPES.items() if name in settings}
    _check_ranges(known)
    return unknown | known


def _check_ranges(options: Mapping[str, Any]) -> None:
    for name, (least, most) in OPTION_RANGES.items():
        if name in options and not least <= options[name] <= most:
            raise ChatBodyError(
                name, message("must be from {least:.16g} to {most:.16g}", least=least, most=most)
            )
    if options.get("repeat_penalty") == 0:
        raise ChatBodyError("repeat_penalty", message("must not be 0: 1 means no penalty"))


# --- ollama_pack.engines.ollama.schema ---
# What of a JSON schema no Ollama can use: refused here, as there it ends in status 500, or ends the runner.
#
# Seen on 0.17.4: a bound of 2,000 repetitions works; one of 10,000 ends the runner, for everybody who uses it.
# So do 200 levels. What is valid, and only unknown to some version, is left to the node.

MAX_DEPTH = 64
MAX_PARTS = 2000  # schemas and enumerated values of one schema
MAX_REPETITIONS = 2000

_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_BOUNDS = ("minLength", "maxLength", "minItems", "maxItems")
_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "contains", "propertyNames")
_REPEATED = re.compile(r"\{(\d+)?(?:,(\d+)?)?\}")


def check_schema(schema: Mapping[str, Any], field: str) -> None:
    """Refuse a schema that no Ollama can use.

    Args:
        schema: what an answer has to be.
        field: where it stands.

    Raises:
        ChatBodyError: naming the part that is wrong.
    """
    waiting: list[tuple[Any, str, int]] = [(schema, field, 0)]
    parts = 0
    while waiting:
        part, where, depth = waiting.pop()
        if isinstance(part, bool):
            continue
        if not isinstance(part, Mapping):
            raise ChatBodyError(where, message("must be a JSON schema: an object, true or false"))
        values = part.get("enum")
        parts += 1 + (len(values) if isinstance(values, list) else 0)
        if depth > MAX_DEPTH or parts > MAX_PARTS:
            limits = message(
                "{depth} levels and {count} parts and values",
                depth=MAX_DEPTH,
                count=MAX_PARTS,
            )
            raise ChatBodyError(
                field, message("is too large a JSON schema: at most {limits} are possible", limits=limits)
            )
        _check_part(part, where, schema)
        waiting += [(inner, f"{where}.{name}", depth + 1) for name, inner in _inner(part, where)]


def _inner(part: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """The schemas within one."""
    for key in _SCHEMAS_BY_NAME:
        if key in part:
            if not isinstance(part[key], Mapping):
                raise ChatBodyError(f"{where}.{key}", message("must be an object of JSON schemas"))
            yield from ((f"{key}.{name}", inner) for name, inner in part[key].items())
    for key in _SCHEMA_LISTS:
        if key in part:
            if not isinstance(part[key], list) or not part[key]:
                raise ChatBodyError(f"{where}.{key}", message("must be a list of JSON schemas"))
            yield from ((f"{key}[{number}]", inner) for number, inner in enumerate(part[key]))
    for key in _SCHEMAS:
        if key in part:
            several = part[key] if isinstance(part[key], list) and key == "items" else [part[key]]
            yield from ((key, inner) for inner in several)


def _check_part(part: Mapping[str, Any], where: str, root: Mapping[str, Any]) -> None:
    """Refuse what is wrong with one schema itself."""
    kinds = part.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in _TYPES:
            raise ChatBodyError(
                f"{where}.type", message("must be one of {types}", types=", ".join(sorted(_TYPES)))
            )
    for name in _BOUNDS:
        _check_bound(part.get(name, 0), f"{where}.{name}")
    for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if not isinstance(part.get(name, 0), int | float):
            raise ChatBodyError(f"{where}.{name}", message("must be a number"))
    if "pattern" in part:
        _check_pattern(part["pattern"], f"{where}.pattern")
    if "$ref" in part and not _leads_somewhere(part["$ref"], root):
        raise ChatBodyError(
            f"{where}.$ref", message("must lead to a part of this schema, such as #/$defs/name")
        )


def _check_bound(value: object, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_REPETITIONS:
        raise ChatBodyError(
            where,
            message("must be a whole number from 0 to {limit}", limit=MAX_REPETITIONS),
        )


def _check_pattern(pattern: object, where: str) -> None:
    if not isinstance(pattern, str) or not pattern.startswith("^") or not pattern.endswith("$"):
        raise ChatBodyError(where, message("must begin with ^ and end with $: Ollama takes no other pattern"))
    counts = [int(count) for found in _REPEATED.findall(pattern) for count in found if count]
    if max(counts, default=0) > MAX_REPETITIONS:
        raise ChatBodyError(
            where,
            message("may repeat something {limit} times at most", limit=MAX_REPETITIONS),
        )


def _leads_somewhere(reference: object, root: Any) -> bool:
    if not isinstance(reference, str) or not reference.startswith("#"):
        return False
    found = root
    for step in reference.removeprefix("#").strip("/").split("/") if reference.strip("#/") else ():
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, Mapping) and name in found:
            found = found[name]
        else:
            return False
    return isinstance(found, Mapping | bool)


# --- ollama_pack.engines.tools ---
# The tools that a chat body offers, and what its `tool_choice` asks for, in whichever client's words.

ChoiceMode = Literal["auto", "required", "none"]

# OpenAI's words, Anthropic's and Mistral's `any`, and the switch that LangChain knows.
_CHOICE_MODES: dict[object, ChoiceMode] = {
    "auto": "auto",
    "required": "required",
    "any": "required",
    "none": "none",
    True: "required",
    False: "none",
}
_NAMED_TYPES = frozenset({"function", "tool", "custom"})
_UNKNOWN_CHOICE = message('must be "auto", "none", "required" or the name of one of the tools')


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """What a model may call.

    Attributes:
        tools: in OpenAI's form, those alone that `tool_choice` allows; empty: none.
        mode: whether it must call one; None where the body does not say.
        name: of the one tool that it must call; empty: any.
    """

    tools: list[Mapping[str, Any]]
    mode: ChoiceMode | None = None
    name: str = ""


def offered_tools(body: Mapping[str, Any]) -> OfferedTools:
    """Read `tools` and `tool_choice`.

    Known are the forms of OpenAI's chat API, of its Responses API (`{"type": "function", "name": …}`,
    `allowed_tools`), of Anthropic (`{"type": "auto" | "any" | "tool" | "none"}`)
    and of Bedrock (`{"any": {}}`).

    Raises:
        ChatBodyError: a field is not of its form, or asks for a tool that is not there.
    """
    tools = [_openai_tool(tool) for tool in objects_in(body.get("tools"), "tools")]
    mode, names = _choice_in(body.get("tool_choice"), frozenset(map(_declared_name, tools)))
    if not names:
        return OfferedTools(tools, mode if tools else None)
    chosen = [tool for tool in tools if _declared_name(tool) in names]
    if not chosen:
        raise ChatBodyError("tool_choice", message("names a function that is not among the tools"))
    return OfferedTools(chosen, mode, next(iter(names)) if mode == "required" and len(names) == 1 else "")


def _openai_tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool of the Responses API or of Anthropic's has its name at the top."""
    if not isinstance(tool.get("name"), str) or "function" in tool or "custom" in tool:
        return tool
    parameters = tool.get("parameters", tool.get("input_schema"))
    if parameters is None and tool.get("type") != "function":
        return tool  # of a kind that the provider runs itself
    found = {"name": tool["name"], "description": tool.get("description"), "parameters": parameters}
    return {
        "type": "function",
        "function": {name: value for name, value in found.items() if value is not None},
    }


def _declared_name(tool: Mapping[str, Any]) -> str:
    """The name of a tool, or of the tool that a choice asks for; empty where there is none."""
    for inner in (tool.get("function"), tool.get("custom"), tool.get("tool"), tool):
        name = inner.get("name") if isinstance(inner, Mapping) else inner
        if isinstance(name, str) and name:
            return name
    return ""


def _choice_in(choice: object, declared: frozenset[str]) -> tuple[ChoiceMode | None, frozenset[str]]:
    """How much a model must call, and the names of the tools that it may call; empty: all."""
    if choice is None or choice == "":
        return None, frozenset()
    if isinstance(choice, str | bool):
        mode = _mode_in(choice)
        if mode is None and choice not in declared:
            raise ChatBodyError("tool_choice", _UNKNOWN_CHOICE)
        return (mode, frozenset()) if mode else ("required", frozenset({str(choice)}))
    given = object_in(choice, "tool_choice")
    kind = given.get("type")
    if kind == "allowed_tools" or "allowed_tools" in given:
        return _allowed_in(object_in(given.get("allowed_tools", given), "tool_choice.allowed_tools"))
    mode = _mode_in(kind) or next((mode for name in given if (mode := _mode_in(name))), None)
    if mode:
        return mode, frozenset()
    name = _declared_name(given)
    if name or kind in _NAMED_TYPES:
        return "required", frozenset({name} if name else ())
    raise ChatBodyError("tool_choice", _UNKNOWN_CHOICE)


def _mode_in(word: object) -> ChoiceMode | None:
    if not isinstance(word, str | bool):
        return None
    return _CHOICE_MODES.get(word.lower() if isinstance(word, str) else word)


def _allowed_in(allowed: Mapping[str, Any]) -> tuple[ChoiceMode, frozenset[str]]:
    """OpenAI's `allowed_tools`: some of the tools, and whether one must be called."""
    tools = list_in(allowed.get("tools"), "tool_choice.tools")
    names = (_declared_name(tool) for tool in tools if isinstance(tool, Mapping))
    return _mode_in(allowed.get("mode")) or "auto", frozenset(filter(None, names))


# --- ollama_pack.engines.ollama.to_ollama ---
# An OpenAI chat request as Ollama's `POST /api/chat` wants it.

# What `think` a model takes: none, true and false, or also how much.
Thinking = Literal["never", "switch", "levels"]

# Of any length, as a client has written it: each digit is looked at once.
_GO_DURATION = re.compile(r"[-+]?(?:0|(?:(?:\d++(?:\.\d*+)?+|\.\d++)(?:ns|us|µs|ms|s|m|h))++)")
_KEEP_ALIVE_FORMS = message('must be seconds or a duration such as "5m"')
# OpenAI's efforts → Ollama's levels.
_LEVELS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def ollama_settings(body: Mapping[str, Any], thinking: Thinking | None = None) -> dict[str, Any]:
    """What an OpenAI chat body sets, in Ollama's form: `tools`, `format`, `think`, `keep_alive`, `options`.

    What it does not set is left out. Arguments and errors are those of `request_to_ollama`.
    """
    settings = flat_settings(body)
    found = {
        "tools": _tools(body),
        "format": _format(settings),
        "think": _think(settings, thinking),
        "keep_alive": _keep_alive(settings.get("keep_alive")),
        "options": ollama_options(body) or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _tools(body: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """The tools that the model may call. Ollama cannot be made to call one, only which there are."""
    offered = offered_tools(body)
    # A client that knows only `functions` awaits the answer's `function_call`, too.
    if body.get("functions") and not offered.tools and body.get("function_call") != "none":
        raise ChatBodyError(
            "functions", message("is OpenAI's old form, which Ollama does not have: send `tools` instead")
        )
    return None if offered.mode == "none" else offered.tools or None


def _format(settings: Mapping[str, Any]) -> str | Mapping[str, Any] | None:
    """Ollama's `format`: "json", or a JSON schema."""
    wanted = object_in(settings.get("response_format"), "response_format")
    match wanted.get("type"):
        case "json_schema":
            given = object_in(wanted.get("json_schema"), "response_format.json_schema")
            schema = object_in(given.get("schema"), "response_format.json_schema.schema")
            check_schema(schema, "response_format.json_schema.schema")
            return schema or "json"
        case "json_object":
            return "json"
        case "text":
            return None
        case None:
            return _own_format(settings.get("format"))
    raise ChatBodyError("response_format.type", message("must be text, json_object or json_schema"))


def _own_format(value: object) -> str | Mapping[str, Any] | None:
    """`format` as Ollama itself names it. Open WebUI's settings have a schema as text."""
    if isinstance(value, str) and value.strip().startswith(("{", "[")):
        try:
            value = json_in(value)
        except ValueError as error:
            raise ChatBodyError("format", message("is neither json nor a JSON schema")) from error
    if isinstance(value, str):
        if value not in {"", "json"}:
            raise ChatBodyError("format", message('must be "json" or a JSON schema'))
        return value or None
    schema = object_in(value, "format")
    check_schema(schema, "format")
    return schema or None


def _think(settings: Mapping[str, Any], thinking: Thinking | None) -> bool | str | None:
    """`think` as asked for, true for a level where the model has none; an effort only where it is safe."""
    explicit = "think" in settings
    asked = _level_in(settings["think"]) if explicit else _effort(settings.get("reasoning_effort"))
    if isinstance(asked, str) and thinking == "switch":
        return True
    if isinstance(asked, str) and thinking != "levels" and not explicit:
        return None
    return asked


def _level_in(value: object) -> str | bool:
    level = _LEVELS.get(value.lower()) if isinstance(value, str) else None
    return level or switch_in(value, "think")


def _effort(value: object) -> str | bool | None:
    if value is None:
        return None
    effort = text_in(value, "reasoning_effort").lower()
    if effort != "none" and effort not in _LEVELS:
        raise ChatBodyError(
            "reasoning_effort", message("must be one of none, {levels}", levels=", ".join(_LEVELS))
        )
    return _LEVELS.get(effort, False)


def _keep_alive(value: object) -> str | float | None:
    """Seconds, or Go's "5m30s". Open WebUI's settings have seconds as text, which Ollama would refuse."""
    if isinstance(value, str):
        try:
            value = json_in(value)
        except ValueError:
            if not isinstance(value, str) or not value.strip():
                return None
            if not _GO_DURATION.fullmatch(value):
                raise ChatBodyError("keep_alive", _KEEP_ALIVE_FORMS) from None
            return value
    if value is None or isinstance(value, str):
        if value and not _GO_DURATION.fullmatch(value):
            raise ChatBodyError("keep_alive", _KEEP_ALIVE_FORMS)
        return value or None
    if isinstance(value, int | float) and not isinstance(value, bool):
        decimal_in(value, "keep_alive")  # refuses what is beyond every number
        return value
    raise ChatBodyError("keep_alive", _KEEP_ALIVE_FORMS)


# --- ollama_pack.engines.ollama.client_request ---
# Requests of clients that speak Ollama's API, as OpenAI chat bodies: `from_openai` says their answers.
#
# Ollama's own settings stay under `options`, where Open WebUI and `request_to_ollama` look for them.

# How the base64 of an image begins; Ollama's clients do not say which kind it is.
_IMAGE_STARTS = {"/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp"}
_client_request__BESIDE_OPTIONS = ("keep_alive", "think")  # of a request; Open WebUI wants them among the options
_SAME_IN_OPENAI = ("logprobs", "top_logprobs")
# Ollama's names of settings that any engine has → OpenAI's.
_COMMON_SETTINGS = {
    **{name: name for name in ("temperature", "top_p", "seed", "stop", "frequency_penalty")},
    "presence_penalty": "presence_penalty",
    "num_predict": "max_tokens",
}
# What is put elsewhere for Open WebUI's own connection to an Ollama, and would be misread at the top.
_MOVED = frozenset({"max_tokens", "max_completion_tokens", "stop", "response_format", "tools"})


def chat_from_ollama(body: Mapping[str, Any]) -> dict[str, Any]:
    """The OpenAI chat body of a `POST /api/chat`.

    Raises:
        ChatBodyError: something in it is not of its form.
    """
    messages = objects_in(body.get("messages"), "messages")
    calls: dict[str, list[str]] = {}
    numbers = count()
    converted = [_message(message, f"messages[{at}]", calls, numbers) for at, message in enumerate(messages)]
    tools = list_in(body.get("tools"), "tools")
    return {**_common(body), "messages": converted, **({"tools": tools} if tools else {})}


def chat_from_generate(body: Mapping[str, Any]) -> dict[str, Any]:
    """The OpenAI chat body of a `POST /api/generate`: its prompt is the one message of a user.

    Raises:
        ChatBodyError: something in it is not of its form, or needs a model without its template.
    """
    for field in ("suffix", "raw", "template", "context"):
        if body.get(field):
            raise ChatBodyError(
                field, message("cannot be used here: send the prompt alone, or use /api/chat")
            )
    asked = {"role": "user", "content": body.get("prompt") or "", "images": body.get("images")}
    system = body.get("system")
    before = [{"role": "system", "content": text_in(system, "system")}] if system else []
    return {**_common(body), "messages": [*before, _message(asked, "prompt", {}, count())]}


def asks_nothing(body: Mapping[str, Any]) -> bool:
    """Whether a client only wants its model in memory, or out of it."""
    return not body.get("messages") and not body.get("prompt") and not body.get("images")


def fitted_settings(body: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """The body with its settings where Open WebUI looks for them, for one of its own connections.

    Args:
        body: an OpenAI chat body, with `options` where the client speaks Ollama's API.
        owner: `ollama` or `openai`: what the connection leads to.

    Raises:
        ChatBodyError: a setting has a form that Ollama cannot use.
    """
    if owner == "ollama":
        return _fitted_to_ollama(body)
    options = object_in(body.get("options"), "options")
    common = {name: options[own] for own, name in _COMMON_SETTINGS.items() if own in options}
    return {**common, **{name: value for name, value in body.items() if name != "options"}}


def _fitted_to_ollama(body: Mapping[str, Any]) -> dict[str, Any]:
    """All settings as `options`: Open WebUI itself puts `format`, `keep_alive` and `think` beside them."""
    settings = ollama_settings(body, "levels")
    tools = settings.pop("tools", None)
    options = settings | settings.pop("options", {})
    if "num_predict" in options:
        # By the name that Open WebUI's own settings have, or a model's row would count more than the client.
        options["max_tokens"] = options.pop("num_predict")
    kept = {name: value for name, value in body.items() if value is not None and name not in _MOVED}
    return kept | ({"tools": tools} if tools else {}) | ({"options": options} if options else {})


def _common(body: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(object_in(body.get("options"), "options"))
    options |= {name: body[name] for name in _client_request__BESIDE_OPTIONS if body.get(name) is not None}
    streams = body.get("stream")
    return {
        "model": body.get("model"),
        "stream": True if streams is None else switch_in(streams, "stream"),
        **({"options": options} if options else {}),
        **{name: body[name] for name in _SAME_IN_OPENAI if body.get(name) is not None},
        **_client_request__format(body.get("format")),
    }


def _client_request__format(value: object) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if value == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(value, Mapping):
        schema = {"name": "answer", "schema": dict(value)}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    raise ChatBodyError("format", message('must be "json" or a JSON schema'))


def _message(
    message: Mapping[str, Any], field: str, calls: dict[str, list[str]], numbers: Iterator[int]
) -> dict[str, Any]:
    """A message in OpenAI's form. `calls` has the ids of each tool's calls that have no result yet."""
    role = text_in(message.get("role"), f"{field}.role")
    content = message.get("content") or ""
    text = text_in(content, field if field == "prompt" else f"{field}.content")
    made: dict[str, Any] = {"role": role, "content": text}
    if images := list_in(message.get("images"), f"{field}.images"):
        parts = [_image_part(image, f"{field}.images[{at}]") for at, image in enumerate(images)]
        made["content"] = [*([{"type": "text", "text": text}] if text else []), *parts]
    if message.get("thinking"):
        made["reasoning_content"] = text_in(message["thinking"], f"{field}.thinking")
    if called := objects_in(message.get("tool_calls"), f"{field}.tool_calls"):
        made["tool_calls"] = [
            _call(call, f"{field}.tool_calls[{at}]", calls, numbers) for at, call in enumerate(called)
        ]
    if role == "tool":
        name = str(message.get("tool_name") or message.get("name") or "")
        waiting = calls.get(name) or [f"call_{name}"]
        identity = str(message.get("tool_call_id") or waiting[0])
        if identity in waiting:
            waiting.remove(identity)
        made["tool_call_id"] = identity
    return made


def _image_part(image: object, field: str) -> dict[str, Any]:
    data = text_in(image, field)
    if not data.startswith("data:"):
        kind = next((kind for start, kind in _IMAGE_STARTS.items() if data.startswith(start)), "png")
        data = f"data:image/{kind};base64,{data}"
    return {"type": "image_url", "image_url": {"url": data}}


def _call(
    call: Mapping[str, Any], field: str, calls: dict[str, list[str]], numbers: Iterator[int]
) -> dict[str, Any]:
    function = object_in(call.get("function"), f"{field}.function")
    name = text_in(function.get("name"), f"{field}.function.name")
    arguments = function.get("arguments")
    identity = str(call.get("id") or f"call_{name}_{next(numbers)}")
    calls.setdefault(name, []).append(identity)
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": text}}


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


class ClientLeftError(PackError):
    """The client has closed its connection, and wants no answer any more."""


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


def whole_answer(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The completion that all chunks make up, with what they say of the node that answered."""
    made = completion_of(chunks)
    routed = next((chunk["ollama_pack"] for chunk in reversed(chunks) if "ollama_pack" in chunk), None)
    return made | ({"ollama_pack": routed} if routed else {})


# --- ollama_pack.engines.ollama.from_openai ---
# An OpenAI chat's answer as Ollama's `POST /api/chat` says it: lines of JSON, or one object.

_REPORTED = (
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
)
_COUNTS = {"prompt_eval_count": "prompt_tokens", "eval_count": "completion_tokens"}

Said = dict[str, Any]


class OllamaReply:
    """One answer. Calls of tools come in pieces, and Ollama says each whole: they are kept until the end."""

    def __init__(self, model: str) -> None:
        """Begin; `model` is the name that the client asked for."""
        self._model = model
        self._calls = PendingCalls()
        self._usage: Mapping[str, Any] = {}
        self._reason = "stop"

    async def lines(self, chunks: AsyncIterable[Mapping[str, Any]]) -> AsyncGenerator[dict[str, Any], None]:
        """The lines of a streamed answer."""
        async for chunk in chunks:
            if chunk.get("error"):
                yield {"error": error_text(chunk)}
                return
            said, tokens = self._take(chunk)
            if said or tokens:
                yield self._line(said, tokens)
        if self._calls.calls:
            yield self._line({"tool_calls": self._whole_calls()})
        yield {**self._line({}), **self._end()}

    async def whole(self, chunks: AsyncIterable[Mapping[str, Any]]) -> dict[str, Any]:
        """An answer in one piece."""
        content, thinking, tokens = [], [], []
        async for chunk in chunks:
            said, some = self._take(chunk)
            content.append(said.get("content", ""))
            thinking.append(said.get("thinking", ""))
            tokens += some
        message: Said = {"content": "".join(content)}
        if any(thinking):
            message["thinking"] = "".join(thinking)
        if self._calls.calls:
            message["tool_calls"] = self._whole_calls()
        return {**self._line(message, tokens), **self._end()}

    def _take(self, chunk: Mapping[str, Any]) -> tuple[Said, list[Any]]:
        """What a chunk, or a whole completion, says in words, and the probabilities of its tokens."""
        if isinstance(usage := chunk.get("usage"), Mapping):
            self._usage = usage
        choice: Mapping[str, Any] = next(iter(chunk.get("choices") or ()), {})
        if reason := choice.get("finish_reason"):
            self._reason = "length" if reason == "length" else "stop"
        message = choice.get("delta") or choice.get("message") or {}
        for call in message.get("tool_calls") or ():
            self._calls.take(object_at(call))
        tokens = object_at(choice, "logprobs").get("content")
        content = message.get("content") or ""
        thinking = next((message[name] for name in THOUGHT_FIELDS if message.get(name)), "")
        said = {"content": content, "thinking": thinking}
        return {name: text for name, text in said.items() if text}, tokens or []

    def _whole_calls(self) -> list[dict[str, Any]]:
        return [
            {"function": {"index": number, "name": call.name, "arguments": _arguments(call.arguments)}}
            for number, call in enumerate(self._calls.calls)
        ]

    def _line(self, said: Said, tokens: list[Any] | None = None) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        message = {"role": "assistant", "content": "", **said}
        line = {"model": self._model, "created_at": now, "message": message, "done": False}
        return line | ({"logprobs": tokens} if tokens else {})

    def _end(self) -> dict[str, Any]:
        counted = {own: self._usage[name] for own, name in _COUNTS.items() if name in self._usage}
        reported = {name: self._usage[name] for name in _REPORTED if self._usage.get(name)}
        return {"done": True, "done_reason": self._reason, **counted, **reported}


def error_text(body: Mapping[str, Any]) -> str:
    """The sentence of an error in OpenAI's form."""
    error = body.get("error")
    if isinstance(error, Mapping):
        return str(error.get("message") or error.get("detail") or error)
    return str(error or body)


def _arguments(text: str) -> Any:
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return {}


# --- ollama_pack.webui.anthropic ---
# Anthropic's Messages API, by Open WebUI's own code for it. Imports `open_webui` when called, not before.

Body = dict[str, Any]
_RESULT_BLOCKS = frozenset({"text", "image", "document", "search_result"})  # of a tool's result
_BLOCKS = _RESULT_BLOCKS | {"thinking", "redacted_thinking", "tool_use", "tool_result"}
_IMAGE_SOURCES = frozenset({"base64", "url"})  # a `file` is at Anthropic


def chat_from_anthropic(body: Mapping[str, Any]) -> Body:
    """The OpenAI chat body of a `POST /v1/messages`.

    Raises:
        ChatBodyError: something in it is not of its form.
    """
    from open_webui.utils.anthropic import convert_anthropic_to_openai_payload  # noqa: PLC0415

    if not objects_in(body.get("messages"), "messages"):
        raise ChatBodyError("messages", message("is missing: send a list of messages"))
    turns = [_readable(turn, f"messages[{number}].content") for number, turn in enumerate(body["messages"])]
    for number, tool in enumerate(objects_in(body.get("tools"), "tools")):
        if not isinstance(tool.get("input_schema"), Mapping):
            reason = message("is missing: only tools that the client runs can be used here")
            raise ChatBodyError(f"tools[{number}].input_schema", reason)
    try:
        made: Body = convert_anthropic_to_openai_payload({**body, "messages": turns})
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # it takes the form for granted
        raise ChatBodyError(
            message("The body"), message("is not of the form of Anthropic's Messages API")
        ) from error
    made.pop("metadata", None)
    made.pop("service_tier", None)  # Anthropic's tiers mean nothing to a node
    if not made.get("tools") or object_at(body, "tool_choice").get("type") == "none":
        made.pop("tools", None)
        made.pop("tool_choice", None)
    # As `chat_from_ollama` says it: a model that can think does so unless told otherwise.
    silent = object_at(body, "thinking").get("type") == "disabled"
    return {**made, "stream": bool(body.get("stream")), **({"options": {"think": False}} if silent else {})}


def _readable(turn: Mapping[str, Any], field: str, known: frozenset[str] = _BLOCKS) -> Body:
    """A message, or a tool's result, without blocks that the conversion would leave out.

    Documents of text and results of a search are made text.
    """
    content = turn.get("content")
    if isinstance(content, str):
        return {**turn}
    blocks = enumerate(objects_in(content, field))
    made = [_readable_block(block, f"{field}[{number}]", known) for number, block in blocks]
    return {**turn, "content": made}


def _readable_block(block: Mapping[str, Any], field: str, known: frozenset[str]) -> Mapping[str, Any]:
    kind, source = str(block.get("type"))[:40], object_at(block, "source")
    told: tuple[object, ...] = ()
    match kind if kind in known else "":
        case "document" if source.get("type") == "text":
            told = (block.get("title"), block.get("context"), source.get("data"))
        case "search_result":
            parts = objects_in(block.get("content"), f"{field}.content")
            told = (block.get("title"), block.get("source"), *(part.get("text") for part in parts))
        case "tool_result":
            return _readable(block, f"{field}.content", _RESULT_BLOCKS)
        case "text" | "thinking" | "redacted_thinking" | "tool_use":
            return block
        case "image" if source.get("type") in _IMAGE_SOURCES:
            return block
        case "image":
            kind, field = str(source.get("type"))[:40], f"{field}.source"
    if not told:
        reason = message("is of the type {kind!r}: Ollama takes text and images only", kind=kind)
        raise ChatBodyError(field, reason)
    return {"type": "text", "text": "\n".join(str(part) for part in told if part)}


def anthropic_answer(completion: Body, name: str) -> Body:
    """A completion as a message, under the name that was asked for."""
    from open_webui.utils.anthropic import convert_openai_to_anthropic_response  # noqa: PLC0415

    made: Body = convert_openai_to_anthropic_response(_with_openai_figures(completion), model=name)
    return made | ({"ollama_pack": routed} if (routed := completion.get("ollama_pack")) else {})


def _with_openai_figures(answer: Body) -> Body:
    """An answer, or a chunk, whose figures have OpenAI's names alone.

    `input_tokens`, which Open WebUI's page shows, are all of the prompt. Anthropic's are those that were not
    cached: clients add the cached ones, and would take a context for twice as full as it is.
    """
    usage = object_at(answer, "usage")
    if "prompt_tokens" not in usage:
        return answer
    return answer | {"usage": {name: value for name, value in usage.items() if name != "input_tokens"}}


async def anthropic_events(chunks: AsyncGenerator[Body, None], name: str) -> AsyncGenerator[str, None]:
    """The events of a streamed message. An error in the chunks is raised, in place of the message's end."""
    from open_webui.utils.anthropic import openai_stream_to_anthropic_stream  # noqa: PLC0415

    broken: list[Exception] = []

    async def texts() -> AsyncGenerator[str, None]:
        try:
            async for chunk in chunks:
                yield event_text(_with_openai_figures(chunk))
        except Exception as error:  # noqa: BLE001 - raised below: Open WebUI's code would swallow it
            broken.append(error)

    async with aclosing(openai_stream_to_anthropic_stream(texts(), model=name)) as events:
        async for event in events:
            if broken:
                raise broken[0]
            yield event.decode() if isinstance(event, bytes) else event
    if broken:
        raise broken[0]


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


# --- ollama_pack.services.client_forms ---
# The APIs that clients of the gateway speak: each request becomes an OpenAI chat body, each answer its form.
#
# Nothing is translated twice: Anthropic's form is Open WebUI's own code, Ollama's is the engines'.

Chunks = AsyncGenerator[Body, None]
Texts = AsyncGenerator[str, None]


@dataclass(frozen=True, slots=True)
class ClientForm:
    """One way to ask for a chat.

    Attributes:
        api: whose errors the client understands.
        asked: gives the OpenAI chat body of a request; raises ChatBodyError.
        whole: gives the answer of a completion, for the name that was asked for.
        streamed: gives the text of a stream, for the same.
        last: ends a stream that broke off, after its error.
        media_type: of a stream.
    """

    api: ApiForm
    asked: Callable[[Mapping[str, Any]], Body]
    whole: Callable[[Body, str], Awaitable[Body]]
    streamed: Callable[[Chunks, str], Texts]
    last: str = ""
    media_type: str = EVENTS_TYPE

    def broken(self, refusal: Refusal) -> str:
        """What a stream says of an error."""
        if self.api == "ollama":
            return _line(refusal.body("ollama"))
        if self.api == "anthropic":
            return f"event: error\ndata: {orjson.dumps(refusal.body('anthropic')).decode()}\n\n"
        return event_text(refusal.body()) + self.last


def _openai_body(body: Mapping[str, Any]) -> Body:
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise ChatBodyError(
            "messages", message("is missing: send a list of messages, such as [{{role, content}}]")
        )
    return {**body, "stream": _streams(body)}


def _streams(body: Mapping[str, Any]) -> bool:
    return body.get("stream") is not None and switch_in(body["stream"], "stream")


async def _openai_whole(completion: Body, name: str) -> Body:
    return completion | {"model": name}


async def _openai_stream(chunks: Chunks, name: str) -> Texts:
    async for chunk in chunks:
        chunk["model"] = name
        yield event_text(chunk)
    yield LAST_EVENT


def _prompt_body(body: Mapping[str, Any]) -> Body:
    """A chat of one message for the older API that takes a prompt."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise ChatBodyError("prompt", message("must be one text: send one request for each prompt"))
    if body.get("suffix"):
        raise ChatBodyError("suffix", message("cannot be used here: send the prompt alone"))
    left_out = {"prompt", "suffix", "echo", "best_of", "logprobs"}  # `logprobs` is a switch in chats
    kept = {name: value for name, value in body.items() if name not in left_out}
    return {**kept, "messages": [{"role": "user", "content": prompt}], "stream": _streams(body)}


def _text_choice(said: object, finish: object) -> list[Body]:
    return [{"index": 0, "text": said or "", "logprobs": None, "finish_reason": finish}]


async def _prompt_whole(completion: Body, name: str) -> Body:
    choice = completion["choices"][0]
    choices = _text_choice(choice["message"].get("content"), choice.get("finish_reason"))
    return completion | {"object": "text_completion", "model": name, "choices": choices}


async def _prompt_stream(chunks: Chunks, name: str) -> Texts:
    async for chunk in chunks:
        choices = [
            one
            for choice in chunk.get("choices") or ()
            for one in _text_choice((choice.get("delta") or {}).get("content"), choice.get("finish_reason"))
        ]
        yield event_text({**chunk, "object": "text_completion", "model": name, "choices": choices})
    yield LAST_EVENT


async def _anthropic_whole(completion: Body, name: str) -> Body:
    return anthropic_answer(completion, name)


async def _ollama_whole(completion: Body, name: str) -> Body:
    return await OllamaReply(name).whole(_one(completion))


async def _ollama_stream(chunks: Chunks, name: str) -> Texts:
    async with aclosing(OllamaReply(name).lines(chunks)) as lines:
        async for line in lines:
            yield _line(line)


async def _generate_whole(completion: Body, name: str) -> Body:
    return _generated(await OllamaReply(name).whole(_one(completion)))


async def _generate_stream(chunks: Chunks, name: str) -> Texts:
    async with aclosing(OllamaReply(name).lines(chunks)) as lines:
        async for line in lines:
            yield _line(_generated(line))


def _generated(line: Body) -> Body:
    """A line of `/api/generate`, which has its words at the top."""
    message = line.pop("message", {})
    thinking = {"thinking": message["thinking"]} if message.get("thinking") else {}
    return {**line, "response": message.get("content", ""), **thinking}


def loaded_answer(form: ClientForm, body: Mapping[str, Any]) -> Body:
    """What a client gets that sent no prompt: nothing is generated. The router decides what is in memory."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    is_chat = form is OLLAMA_CHAT
    said: Body = {"message": {"role": "assistant", "content": ""}} if is_chat else {"response": ""}
    reason = "unload" if body.get("keep_alive") in (0, "0", "0s") else "load"
    return {"model": body["model"], "created_at": now, **said, "done": True, "done_reason": reason}


async def _one(completion: Body) -> AsyncIterator[Body]:
    yield completion


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


OPENAI_CHAT = ClientForm("openai", _openai_body, _openai_whole, _openai_stream, LAST_EVENT)
OPENAI_PROMPT = ClientForm("openai", _prompt_body, _prompt_whole, _prompt_stream, LAST_EVENT)
ANTHROPIC = ClientForm("anthropic", chat_from_anthropic, _anthropic_whole, anthropic_events)
OLLAMA_CHAT = ClientForm("ollama", chat_from_ollama, _ollama_whole, _ollama_stream, media_type=LINES_TYPE)
OLLAMA_GENERATE = ClientForm(
    "ollama", chat_from_generate, _generate_whole, _generate_stream, media_type=LINES_TYPE
)


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
        if row.is_automatic:
            yield from automatic_variants(name, models, families=families)
        elif model is not None:
            yield model


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


async def offered_models(request: Any, user: Any) -> Any:
    """What Open WebUI offers, by id, as of its last look at its connections. It looks where it has not."""
    if not request.app.state.MODELS:
        from open_webui.utils.models import get_all_models  # noqa: PLC0415 - see the top of this module

        await get_all_models(request, user=user)
    return request.app.state.MODELS


async def visible_models(request: Any, user: Any) -> list[dict[str, Any]]:
    """The models that a user may ask for and the picker shows, as Open WebUI lists them."""
    from open_webui.utils.models import get_filtered_models  # noqa: PLC0415

    offered = list((await offered_models(request, user)).values())
    visible: list[dict[str, Any]] = await get_filtered_models(offered, user)
    return [model for model in visible if not _is_hidden(model)]


def _is_hidden(model: Mapping[str, Any]) -> bool:
    return bool(((model.get("info") or {}).get("meta") or {}).get("hidden"))


async def model_row(model_id: str) -> dict[str, Any] | None:
    """What an admin or the pack has said about a model of this id; None: nothing."""
    from open_webui.models.models import Models  # noqa: PLC0415

    row = await Models.get_model_by_id(model_id)
    return None if row is None else dict(row.model_dump(exclude_none=True))


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


def accepted_language(request: Any) -> str:
    """A request's `Accept-Language`."""
    return str(request.headers.get("accept-language") or ENGLISH) if request else ENGLISH


# --- ollama_pack.webui.functions ---
# Functions of the running Open WebUI. Imports `open_webui` when called, not before.

_SETTLED_SECONDS = 2.0  # the database has whole seconds: what is newer may change without looking otherwise
_READ_AGAIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class FunctionState:
    """A function as the database has it.

    Attributes:
        installed: there is one.
        active: it is switched on.
        owner: id of the user who installed it.
        valves: what an admin set; defaults are not in it.
        stamp: another one whenever its code or its valves have changed, at least from one second to the next.
    """

    installed: bool = False
    active: bool = False
    owner: str = ""
    valves: Mapping[str, Any] = field(default_factory=dict)
    stamp: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class _Live:
    """What a function's state was when its instance was asked for, and until when that is believed."""

    stamp: tuple[Any, ...]
    instance: weakref.ref[Any]
    valves: Any
    until: float

    def is_still(self, running: Any, state: FunctionState) -> bool:
        """A stream that began before puts the valves back that it has seen: Open WebUI keeps them for it."""
        as_told = self.stamp == state.stamp and time.monotonic() < self.until
        return as_told and running is self.instance() and getattr(running, "valves", None) == self.valves


_live: dict[str, _Live] = {}


async def function_state(function_id: str) -> FunctionState:
    """Look a function up.

    By a query of its own: Open WebUI's answers a database that cannot be reached as if there were no such
    function, or no valves, and what is published would be taken away. Here the database's error is raised.
    """
    from open_webui.internal.db import get_async_db_context  # noqa: PLC0415 - see the top of this module
    from open_webui.models.functions import Function, decrypt_valves  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415 - it comes with Open WebUI

    version = getattr(Function, "version_id", Function.updated_at)  # Open WebUI 0.11 has none
    fields = (Function.is_active, Function.user_id, Function.updated_at, version, Function.valves)
    async with get_async_db_context() as session:
        found = (await session.execute(select(*fields).filter_by(id=function_id))).one_or_none()
    if found is None:
        return FunctionState()
    is_active, owner, changed_at, code, stored = found
    return FunctionState(
        installed=True,
        active=bool(is_active),
        owner=str(owner or ""),
        valves=decrypt_valves(stored) or {},
        stamp=(changed_at or 0, code, stored),
    )


async def global_filters() -> dict[str, str]:
    """The filters that apply to all models and are switched on: id → name.

    By a query of its own: Open WebUI's reads the code of all of them.
    """
    from open_webui.internal.db import get_async_db_context  # noqa: PLC0415 - see the top of this module
    from open_webui.models.functions import Function  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415 - it comes with Open WebUI

    wanted = select(Function.id, Function.name).filter_by(type="filter", is_active=True, is_global=True)
    async with get_async_db_context() as session:
        return {str(function_id): str(name) for function_id, name in await session.execute(wanted)}


async def live_function(app: Any, function_id: str, state: FunctionState | None = None) -> Any:
    """The instance that this process runs, of the code and with the valves that are stored.

    Open WebUI's own way to it: it is loaded where it is not yet, or where its code has changed. That reads
    the whole code each time, a megabyte for some plugins, so it is not done while nothing has changed.

    Args:
        app: Open WebUI's.
        function_id: of an installed function.
        state: of it, as it was looked up just now; None: the code is read in any case.
    """
    from open_webui.functions import get_function_module_by_id  # noqa: PLC0415

    running, known = app.state.FUNCTIONS.get(function_id), _live.get(function_id)
    if running is not None and state and known and known.is_still(running, state):
        return running
    now = time.time()
    found = await get_function_module_by_id(SimpleNamespace(app=app), function_id)
    if state and state.stamp and now - state.stamp[0] > _SETTLED_SECONDS:
        until = time.monotonic() + _READ_AGAIN_SECONDS
        _live[function_id] = _Live(state.stamp, weakref.ref(found), getattr(found, "valves", None), until)
    return found


# --- ollama_pack.webui.contact ---
# The way from the events function to the running `gpu_router`: another plugin, which may not be there.

ROUTER_ID = "gpu_router"


# --- ollama_pack.services.offer ---
# Which rows a deployment should have.
#
# The events function wants those that the router and the alias tables offer, upload.py those that pack.yaml
# states. `ollama_pack.webui.publication` then compares them with the rows that are there.

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

    @property
    def in_use(self) -> tuple[AliasTable, ...]:
        """Those of functions that are on: the router's, then the alias filter's."""
        return tuple(table for table in (self.router, self.filtered) if table is not None)


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
UNCOUNTED = "ollama_pack_uncounted"  # in a request's metadata, which no client writes: it is the site's own


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


# --- ollama_pack.webui.embedding ---
# Vectors and model facts over Open WebUI's own connections. Imports `open_webui` when called, not before.

UNKNOWN_MODEL: dict[str, Any] = {"details": {}, "model_info": {}, "capabilities": ["completion"]}


async def embedded(
    request: Any, model: str, texts: Sequence[str], dimensions: int, user: Any
) -> tuple[list[list[float]], int]:
    """A vector for each text, and the tokens of all: Open WebUI checks access and asks its connection.

    Raises:
        ModelRefusedError: there are none.
    """
    from fastapi import HTTPException  # noqa: PLC0415 - it comes with Open WebUI
    from open_webui.utils.embeddings import generate_embeddings  # noqa: PLC0415 - see the top of this module

    wanted = {"dimensions": dimensions} if dimensions else {}
    body = {"model": model, "input": list(texts), **wanted}
    try:
        answer = await generate_embeddings(request, body, user)
    except HTTPException as error:
        raise ModelRefusedError(refusal_in(error.detail, error.status_code, error.headers)) from error
    except Exception as error:  # Open WebUI's own way to say that it will not
        raise ModelRefusedError(Refusal(BAD_REQUEST, str(error))) from error
    entries = object_at(answer).get("data")
    vectors = [object_at(entry).get("embedding") for entry in entries or ()]
    if len(vectors) != len(texts) or not all(isinstance(vector, list) for vector in vectors):
        raise ModelRefusedError(
            Refusal(BAD_GATEWAY, message("The model gave no vector for some of the texts."))
        )
    tokens = object_at(answer, "usage").get("prompt_tokens")
    return vectors, tokens if isinstance(tokens, int) else 0  # type: ignore[return-value] # checked above


async def shown_by_connection(request: Any, model: str, user: Any) -> dict[str, Any]:
    """What Open WebUI's Ollama connection knows of a model; of others only that they chat."""
    from fastapi import HTTPException  # noqa: PLC0415 - it comes with Open WebUI
    from open_webui.routers import ollama  # noqa: PLC0415

    try:
        told = await ollama.show_model_info(request, ollama.ModelNameForm(model=model), user)
    except HTTPException:
        return UNKNOWN_MODEL
    return {name: value for name, value in object_at(told).items() if name not in {"modelfile", "tensors"}}


# --- ollama_pack.webui.presets ---
# What answers under a model's id, and what its row adds to a chat. Imports `open_webui` when called.


async def default_params() -> dict[str, Any]:
    """The parameters that an admin has set for all models."""
    from open_webui.models.config import Config  # noqa: PLC0415 - see the top of this module

    return dict(await Config.get("models.default_params", {}) or {})


# --- ollama_pack.services.gateway_names ---
# The names that people and clients of the gateway may ask for, and the model that each stands for.
#
# A name with a row of its own, or that a connection offers, is Open WebUI's: its grants hold. Every other name
# of the alias tables, wildcards among them, is for those who may use a model that answers for it.

# What a row may add to a chat that only Open WebUI's own path brings.
_MORE_THAN_A_NAME = ("knowledge", "toolIds", "filterIds", "skillIds", "defaultFeatureIds", "terminalId")


@dataclass(frozen=True, slots=True)
class DirectName:
    """A name that the router alone can answer.

    Attributes:
        id: the router's.
        params: the settings of its row.
    """

    id: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OfferedName:
    """A name in the list of models.

    Attributes:
        name: what clients ask for.
        stands_for: models that may answer, the preferred first; empty: the name is a model itself.
        about: what Open WebUI has of it; empty for a name that is only in a table.
    """

    name: str
    stands_for: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


async def stored_tables() -> AliasTables:
    """The alias tables that admins have stored."""
    return alias_tables(await function_state(ROUTER_ID), await function_state(ALIAS_FILTER))


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


async def model_for(
    request: Any, tables: tuple[AliasTable, ...], body: Mapping[str, Any], user: Mapping[str, Any]
) -> str:
    """The id of the model that answers a request in Open WebUI.

    Raises:
        ModelClosedError: there is none of this name, or the user may not use it.
        AliasUnavailableError: the name is an alias, and none of its models can be used.
    """
    name = str(body["model"])
    offered = await offered_models(request, user)
    for model_id in (name, ROUTER + name):
        if model_id in offered:
            if await may_use(user, model_id, request):
                return model_id
            if model_id == name or await model_row(model_id) is not None:
                raise ModelClosedError(name)
        elif model_id == name and await model_row(name) is not None:
            raise ModelClosedError(name)  # an admin has switched it off
    for table in tables:
        chosen = await choose_model(table, body, name, user, request)
        if chosen is not None:
            return chosen[1]
    # As Ollama does, whose clients ask for `llama3` where it is `llama3:latest`.
    known = find_model(name, ModelCatalogue(offered))
    if known is not None and known != name:
        with suppress(ModelClosedError):  # which would tell the name of a model that the user may not know
            return await model_for(request, tables, {**body, "model": known}, user)
    raise ModelClosedError(name)


async def offered_names(request: Any, tables: tuple[AliasTable, ...], user: Any) -> list[OfferedName]:
    """The names that a user may ask for, each once, in order. Wildcards are not among them."""
    models = ModelCatalogue(await offered_models(request, user))
    shown = await visible_models(request, user)
    found: dict[str, OfferedName] = {}
    for model in shown:
        name = str(model["id"])
        base = str((model.get("info") or {}).get("base_model_id") or "")
        aliased = _behind(tables, name.removeprefix(ROUTER), models)
        found[name] = OfferedName(name, aliased or ((base,) if base else ()), model)
    usable = {str(model["id"]) for model in shown} | {
        str(model["id"]).removeprefix(ROUTER) for model in shown
    }
    for table in tables:
        for name in concrete_names(table):
            behind = [model for model in _behind((table,), name, models) if model in usable]
            is_open = name not in found and name not in models and await model_row(name) is None
            if behind and is_open:
                found[name] = OfferedName(name, tuple(behind))
    return sorted(found.values(), key=lambda offered: offered.name)


async def direct_name(
    request: Any, table: AliasTable | None, name: str, user: Mapping[str, Any]
) -> DirectName | None:
    """The router's name for a name, where the router alone can answer it; None: Open WebUI has to.

    A row with a system prompt, knowledge, tools or filters of its own is more than a name.

    Args:
        request: FastAPI's.
        table: the router's aliases; None: it has none.
        name: what the client asks for.
        user: who asks.

    Raises:
        ModelClosedError: the user may not use it.
    """
    offered = await offered_models(request, user)
    for model_id in (name, ROUTER + name):
        if model_id in offered:
            if await may_use(user, model_id, request):
                return _direct(model_id, await model_row(model_id) or {}, await default_params())
            if model_id == name or await model_row(model_id) is not None:
                raise ModelClosedError(name)
        elif model_id == name and await model_row(name) is not None:
            raise ModelClosedError(name)
    is_routed = table is not None and next(table.matching(name), None) is not None
    return _direct(ROUTER + name, {}, await default_params()) if is_routed else None


async def is_unknown(request: Any, name: str, user: Mapping[str, Any]) -> bool:
    """Whether Open WebUI has never heard of a name: no admin can have said who may use it."""
    offered = await offered_models(request, user)
    for model_id in (name, ROUTER + name):
        if model_id in offered or await model_row(model_id) is not None:
            return False
    return True


def _direct(model_id: str, row: Mapping[str, Any], defaults: Mapping[str, Any]) -> DirectName | None:
    """A row's name and parameters, over those for all models, as Open WebUI puts them together."""
    target = str(row.get("base_model_id") or model_id)
    own = {key: value for key, value in (row.get("params") or {}).items() if value is not None}
    params = {**defaults, **own}
    if custom := {**(defaults.get("custom_params") or {}), **(own.get("custom_params") or {})}:
        params["custom_params"] = custom
    meta = row.get("meta") or {}
    has_more = params.get("system") or any(meta.get(part) for part in _MORE_THAN_A_NAME)
    if not target.startswith(ROUTER) or has_more:
        return None
    return DirectName(target, {key: value for key, value in params.items() if key != "model_controls"})


async def shown(request: Any, user: Any, name: str, tables: AliasTables, router: Any) -> Body:
    """What is known of the model that answers for a name, as `/api/show` has it.

    Raises:
        ModelClosedError: the user may not use the name, or there is none.
        Exception: the router's own: no node knows the model.
    """
    who = user.model_dump()
    found = await direct_name(request, tables.router, name, who)
    if found is not None and router is not None:
        told: Body = await router.shown(found.id.removeprefix(ROUTER), who)
        return told
    model = await model_for(request, tables.in_use, {"model": name}, who)
    row = await model_row(model) or {}
    base = str(row.get("base_model_id") or model)
    if base.startswith(ROUTER) and router is not None:
        told = await router.shown(base.removeprefix(ROUTER), who)
    else:
        told = await shown_by_connection(request, base, user)
    return told


async def wildcards(request: Any, tables: tuple[AliasTable, ...], user: Any) -> dict[str, list[str]]:
    """Names with a star, each with the models behind it that a user may use; those that have one."""
    who, models = user.model_dump(), ModelCatalogue(await offered_models(request, user))
    usable: dict[str, bool] = {}
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(row.alias for table in tables for row in table.rows if row.is_wildcard):
        behind = _behind(tables, name, models)
        for model in behind:
            if model not in usable:
                ids = models.ids_of(model)
                usable[model] = any([await may_use(who, model_id, request) for model_id in ids])
        if open_ones := [model for model in behind if usable[model]]:
            found[name] = open_ones
    return found


def _behind(tables: tuple[AliasTable, ...], name: str, models: Mapping[str, str]) -> tuple[str, ...]:
    levels = models if tables else {}
    found = (models_behind(table, name, levels) for table in tables)
    return next((behind for behind in found if behind), ())


# --- ollama_pack.webui.budget_contact ---
# The way to `usage_budgets`, for the router and the routes. Its answers are plain values.
#
# Imports `open_webui` when called, not before.

BUDGETS_ID = "usage_budgets"
_LOOK_SECONDS = 2.0  # after which it is looked up again: its valves may have changed
_USERS_AT_ONCE = 500
_MOST_SHOWN = 50  # on the dashboard; the table has all
NO_BUDGET: dict[str, Any] = {"ticket": "", "own": False, "last": False, "refusal": None}


class BudgetContact:
    """Asks `usage_budgets`; without it, or when it fails, there are no budgets."""

    def __init__(self) -> None:
        """Ask nothing yet."""
        self._app: Any = None
        self._live = SingleFlight(self._look, _LOOK_SECONDS, ahead=True)

    async def live(self, app: Any) -> Any:
        """The function as it runs in this process; None: it is not installed, off, or has no table."""
        self._app = app
        try:
            found = await self._live.get()
        except Exception:
            log.exception("usage_budgets cannot be asked, and no budgets hold")
            return None
        return found if found is not None and found.valves.budgets else None

    async def begin(
        self, app: Any, user: dict[str, Any], metadata: dict[str, Any], model: str, *, always: bool
    ) -> tuple[Any, dict[str, Any]]:
        """Begin to count an answer: the function, and what its `budget_begin` says."""
        budgets = None if metadata.get(UNCOUNTED) else await self.live(app)
        if budgets is None:
            return None, NO_BUDGET
        try:
            return budgets, await budgets.budget_begin(user, metadata, model, always=always)
        except Exception:
            log.exception("An answer is not counted, and no budgets hold for it")
            return None, NO_BUDGET

    @asynccontextmanager
    async def counting(
        self,
        app: Any,
        user: dict[str, Any],
        metadata: dict[str, Any],
        model: str,
        *,
        always: bool = False,
    ) -> AsyncGenerator[tuple[Callable[[float, float], None] | None, bool]]:
        """Count an answer: what to tell its seconds of GPU time and its tokens, and whether it comes last.

        Where no budget holds there is nobody to tell. Without figures nothing was made, and nothing counts.

        Raises:
            ModelRefusedError: the budget is used up.
        """
        budgets, begun = await self.begin(app, user, metadata, model, always=always)
        if begun["refusal"]:
            raise ModelRefusedError(Refusal(**begun["refusal"]))
        try:
            yield partial(budgets.budget_note, begun["ticket"]) if begun["ticket"] else None, begun["last"]
        finally:
            if begun["own"]:
                budgets.budget_end(begun["ticket"])

    def forget(self) -> None:
        """It may have been switched, or have other valves."""
        self._live.forget()

    async def usage(self, app: Any, user: dict[str, Any]) -> dict[str, Any]:
        """The budgets of a user, as `budget_usage` says; users are named by their e-mail addresses."""
        budgets = await self.live(app)
        if budgets is None:
            return {"budgets": [], "fault": ""}
        found: dict[str, Any] = await budgets.budget_usage(user)
        ids = [entry["whose"] for entry in found.get("all") or () if not entry["shared"]]
        names = await _addresses(ids) if ids else {}
        for entry in found.get("all") or ():
            entry["whose"] = names.get(entry["whose"], entry["whose"])
        return found

    async def report(self, app: Any) -> dict[str, Any]:
        """What is counted, for the dashboard: those who have used most. Empty: there are no budgets."""
        if await self.live(app) is None:
            return {}
        found = await self.usage(app, {"role": "admin"})
        entries = sorted(found.get("all") or (), key=lambda entry: (not entry["shared"], -entry["used"]))
        told = {"fault": found["fault"], "problems": found.get("problems") or []}
        return {**told, "count": len(entries), "most": entries[:_MOST_SHOWN]}

    async def _look(self) -> Any:
        state = await function_state(BUDGETS_ID)
        return await live_function(self._app, BUDGETS_ID, state) if state.active else None


async def _addresses(ids: list[str]) -> dict[str, str]:
    """The e-mail address of each user; a user who was deleted has none."""
    from open_webui.models.users import Users  # noqa: PLC0415 - see the top of this module

    parts = [ids[at : at + _USERS_AT_ONCE] for at in range(0, len(ids), _USERS_AT_ONCE)]
    return {user.id: user.email for part in parts for user in await Users.get_users_by_user_ids(part)}


# --- ollama_pack.services.gateway_direct ---
# The gateway's own chain: budgets, access, aliases, cache and router, without other filters and tools.
#
# What a user may use is looked up once in a few seconds. The router, the cache and the budgets are other
# plugins, which share no code with this one. Without the router Open WebUI's own path answers.

ACCESS_SECONDS = 5.0  # that access and keys are remembered, where no event says that they have changed
LIVE_SECONDS = 2.0  # after which a plugin is looked up again: its valves may have changed
CACHE_ID = "response_cache_filter"
MOST_REMEMBERED = 10_000

_gateway_direct__Chunks = AsyncGenerator[Body, None]


class Routed(Protocol):
    """`DirectChat` of the router."""

    model: str
    weights: str
    body: Mapping[str, Any]
    chunks: Callable[[ReplyHead], _gateway_direct__Chunks]


@dataclass(frozen=True, slots=True)
class Meter:
    """The filter of budgets for one chat, called as Open WebUI would.

    Attributes:
        budgets: the live filter.
        metadata: of the chat, where the filter keeps what it knows.
    """

    budgets: Any
    metadata: Body

    async def around(self, chunks: _gateway_direct__Chunks) -> _gateway_direct__Chunks:
        """The chunks, each shown to the filter. It counts a chat that breaks off when its request ends."""
        look = self.budgets.stream
        async with aclosing(chunks):
            async for chunk in chunks:
                yield await look(chunk, self.metadata) if look else chunk
        if (end := self.budgets.outlet) is not None:
            await end({"messages": []}, self.metadata)


@dataclass(frozen=True, slots=True)
class DirectCall:
    """One chat that the router answers.

    Attributes:
        name: that was asked for.
        routed: what the router will do.
        pending: what the cache has found; None: it is not in it.
        meter: counts it against budgets; None: there are none.
    """

    name: str
    routed: Routed
    pending: Any = None
    meter: Meter | None = None

    def chunks(self) -> _gateway_direct__Chunks:
        """The answer as it comes. Every direct chat goes through here."""
        return self._chunks() if self.meter is None else self.meter.around(self._chunks())

    def _chunks(self) -> _gateway_direct__Chunks:
        head = self._head
        if self.pending is None:
            return self.routed.chunks(head)
        chunks: _gateway_direct__Chunks = self.pending.chunks(
            head, partial(self.routed.chunks, head), usage_place(self.routed.body)
        )
        return chunks

    async def completion(self) -> Body:
        """The whole answer."""
        async with aclosing(self.chunks()) as chunks:
            return whole_answer([chunk async for chunk in chunks])

    @property
    def _head(self) -> ReplyHead:
        return ReplyHead(f"chatcmpl-{uuid4().hex}", int(time.time()), self.name)


class DirectChain:
    """Answers what the router alone can answer. One for each process."""

    def __init__(self, app: Any) -> None:
        """Ask nothing yet; `app` is Open WebUI's."""
        self._router = SingleFlight(partial(_live_router, app), LIVE_SECONDS, ahead=True)
        self._cache = SingleFlight(partial(_live_cache, app), LIVE_SECONDS, ahead=True)
        self.budgets = BudgetContact()
        self._app = app
        self._names: Remembered[tuple[str, str, str], DirectName | None] = Remembered(
            ACCESS_SECONDS, MOST_REMEMBERED
        )
        self._users: Remembered[bytes, Any] = Remembered(ACCESS_SECONDS, MOST_REMEMBERED)

    def forget(self) -> None:
        """Somebody may use more or less than before."""
        router = self._router.kept
        for remembered in (self._names, self._users, self._router, self._cache, self.budgets):
            remembered.forget()
        if router is not None:
            router.forget_access()

    def user_of(self, request: Any) -> Any:
        """The user of an API key that was checked a moment ago for the same path; None: check it."""
        key = _key_of(request)
        return None if key is None else self._users.find(key)

    def remember(self, request: Any, user: Any) -> None:
        """Open WebUI has just checked the request's key."""
        key = _key_of(request)
        if key is not None and self._users.find(key) is None:  # what is remembered is not remembered longer
            self._users.keep(key, user)

    async def router(self) -> Any:
        """The live `gpu_router`; None: there is none."""
        return await self._router.get()

    async def budgets_of(self, user: Any) -> list[Mapping[str, Any]]:
        """The budgets that hold for a user, as their filter reports them; none where there is no table."""
        try:
            budgets = await self.budgets.live(self._app)
            told = await budgets.budget_usage(user.model_dump()) if budgets is not None else {}
        except Exception:
            log.exception("What is left of budgets cannot be told, and a chat goes on without")
            return []
        return list(told.get("budgets") or ())

    async def call(
        self, request: Any, user: Body, chat: Mapping[str, Any], table: AliasTable | None
    ) -> DirectCall | None:
        """The call that answers a chat; None: only Open WebUI's own path can.

        Args:
            request: FastAPI's.
            user: who asks.
            chat: OpenAI's body, with the name that the client asked for.
            table: the router's aliases; None: it has none.

        Raises:
            ModelClosedError: the user may not use the name.
            Exception: the router's own, with a `refusal`: nothing answers.
        """
        router = await self._router.get()
        if router is None:
            return None
        asked_for = str(chat["model"])
        found = await self._name(request, table, asked_for, user)
        if found is None:
            return None
        metadata: Body = {}
        budgets = await self.budgets.live(self._app)
        if budgets is not None:
            named = str((await budgets.inlet({**chat}, user, metadata, request, BUDGETS_ID))["model"])
            if named != asked_for:  # a budget that is used up may have another model answer
                found = await self._name(request, table, named, user)
                if found is None:
                    return None
        body = {**chat, "model": found.id}
        metadata["model"] = {"info": {"params": dict(found.params)}}
        routed: Routed = await router.direct_chat(body, user, request, metadata)
        cache = await self._cache.get()
        answers = routed.model, routed.weights
        pending = cache and await cache.direct_lookup(routed.body, user, request, CACHE_ID, answers)
        return DirectCall(asked_for, routed, pending, Meter(budgets, metadata) if budgets else None)

    async def _name(self, request: Any, table: AliasTable | None, name: str, user: Body) -> DirectName | None:
        ask = partial(direct_name, request, table, name, user)
        return await self._names.get((user["id"], user["role"], name), ask)


def _key_of(request: Any) -> bytes | None:
    """What an API key and the path that it was shown for are remembered by; None: it is a session."""
    token = getattr(getattr(request.state, "token", None), "credentials", None)
    if not isinstance(token, str) or not token.startswith("sk-"):
        return None
    return blake2b(f"{token}\0{request.scope['path']}".encode()).digest()


async def _live_router(app: Any) -> Any:
    """The router, where it is on and knows the gateway."""
    state = await function_state(ROUTER_ID)
    router = await live_function(app, ROUTER_ID, state) if state.active else None
    return router if hasattr(router, "direct_chat") else None


async def _live_cache(app: Any) -> Any:
    """The response cache, where it is on for all models and knows the gateway."""
    if CACHE_ID not in await global_filters():
        return None
    try:
        cache = await live_function(app, CACHE_ID, await function_state(CACHE_ID))
    except Exception:
        log.exception("%s cannot be asked, and chats go on without it", CACHE_ID)
        return None
    return cache if hasattr(cache, "direct_lookup") else None


# --- ollama_pack.services.gateway_limits ---
# Budgets as the rate-limit headers that OpenAI's and Anthropic's clients read.

_UNITS = ("requests", "tokens")  # GPU time has no header


def limit_headers(budgets: Iterable[Mapping[str, Any]], api: ApiForm, now: datetime) -> dict[str, str]:
    """The headers for what is left; of several budgets in one unit, of which the least is left.

    Args:
        budgets: as the filter of budgets reports them.
        api: the client's; Ollama's has no such headers.
        now: with a time zone.
    """
    if api == "ollama":
        return {}
    headers: dict[str, str] = {}
    told = list(budgets)
    for unit in _UNITS:
        of_unit = [budget for budget in told if budget.get("unit") == unit]
        if of_unit:
            headers |= _of_budget(min(of_unit, key=lambda budget: float(budget["left"])), unit, api, now)
    return headers


def _of_budget(budget: Mapping[str, Any], unit: str, api: ApiForm, now: datetime) -> dict[str, str]:
    limit, left = str(int(budget["amount"])), str(max(0, int(budget["left"])))
    ends = datetime.fromisoformat(str(budget["ends"]))
    if api == "anthropic":
        name = f"anthropic-ratelimit-{unit}"
        return {f"{name}-limit": limit, f"{name}-remaining": left, f"{name}-reset": ends.isoformat()}
    seconds = max(0, round((ends - now).total_seconds()))
    return {
        f"x-ratelimit-limit-{unit}": limit,
        f"x-ratelimit-remaining-{unit}": left,
        f"x-ratelimit-reset-{unit}": f"{seconds}s",
    }


# --- ollama_pack.services.gateway_vectors ---
# Embeddings at the gateway, in OpenAI's and Ollama's forms, for every name of the alias tables.
#
# Open WebUI's filters see no embeddings, so both modes go the same way: to the router where its nodes have the
# model, else over Open WebUI's own connections.

MOST_TEXTS = 2048  # as OpenAI has it


@dataclass(frozen=True, slots=True)
class TextsAsked:
    """A request for vectors.

    Attributes:
        name: what the client asks for.
        texts: what to embed.
        dimensions: of the vectors; 0: as many as the model has.
        is_base64: OpenAI's own client wants the numbers packed.
    """

    name: str
    texts: tuple[str, ...]
    dimensions: int = 0
    is_base64: bool = False


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer to one.

    Attributes:
        vectors: one for each text.
        tokens: of all texts.
        routed: model and node, where the router chose them.
        seconds: of GPU time; 0 where nobody tells.
    """

    vectors: list[list[float]]
    tokens: int
    routed: Mapping[str, str]
    seconds: float = 0.0


def text_asked(body: Mapping[str, Any]) -> TextsAsked:
    """Read a request of Ollama's older `/api/embeddings`, which is for one text.

    Raises:
        ChatBodyError: something in it is not of its form.
    """
    return texts_asked({**body, "input": text_in(body.get("prompt"), "prompt")})


def texts_asked(body: Mapping[str, Any]) -> TextsAsked:
    """Read a request.

    Raises:
        ChatBodyError: something in it is not of its form.
    """
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        reason = message("must be text or a list of texts (LangChain: check_embedding_ctx_length=False)")
        raise ChatBodyError("input", reason)
    if len(texts) > MOST_TEXTS:
        raise ChatBodyError(
            "input",
            message(
                "has {count} texts: send at most {limit} at once",
                count=len(texts),
                limit=MOST_TEXTS,
            ),
        )
    dimensions = body.get("dimensions")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise ChatBodyError("model", message("is missing: name one of GET /ollama-pack/v1/models"))
    return TextsAsked(
        name=body["model"],
        texts=tuple(texts),
        dimensions=0 if dimensions is None else max(0, whole_in(dimensions, "dimensions")),
        is_base64=body.get("encoding_format") == "base64",
    )


async def vectors_for(
    request: Any, user: Any, asked: TextsAsked, tables: AliasTables, router: Any
) -> Embedded:
    """The vectors.

    Args:
        request: FastAPI's.
        user: Open WebUI's.
        asked: the request.
        tables: the alias tables.
        router: the live router; None: there is none.

    Raises:
        ModelClosedError: the user may not use the name, or there is none.
        Exception: another of the pack's, or of the router's: there are none.
    """
    who = user.model_dump()
    routed = await _routed_name(request, asked.name, tables, router, who)
    if routed is not None:
        body = {"model": routed, "input": list(asked.texts), "dimensions": asked.dimensions}
        made = await router.embed(body, who)
        told = {"model": str(made["model"]), "node": str(made["node"])}
        vectors = [list(vector) for vector in made["vectors"]]
        return Embedded(vectors, int(made["tokens"]), told, float(made.get("seconds") or 0))
    model = await model_for(request, tables.in_use, {"model": asked.name}, who)
    vectors, tokens = await embedded(request, model, asked.texts, asked.dimensions, user)
    return Embedded(vectors, tokens, {})


async def _routed_name(
    request: Any, name: str, tables: AliasTables, router: Any, user: Mapping[str, Any]
) -> str | None:
    """The router's name, where its nodes are to be asked; None: they are not."""
    if router is None:
        return None
    found = await direct_name(request, tables.router, name, user)
    if found is not None:
        return found.id
    if not await is_unknown(request, name, user):
        return None
    try:
        model = await model_for(request, tables.in_use, {"model": name}, user)
    except ModelClosedError:
        return ROUTER + name  # a node may have it: Open WebUI lists only models that chat
    return model if model.startswith(ROUTER) else None


def openai_vectors(asked: TextsAsked, made: Embedded) -> Body:
    """The answer of `/v1/embeddings`."""
    data = [
        {"object": "embedding", "index": at, "embedding": _packed(vector) if asked.is_base64 else vector}
        for at, vector in enumerate(made.vectors)
    ]
    usage = {"prompt_tokens": made.tokens, "total_tokens": made.tokens}
    routed = {"ollama_pack": dict(made.routed)} if made.routed else {}
    return {"object": "list", "data": data, "model": asked.name, "usage": usage, **routed}


def ollama_vectors(asked: TextsAsked, made: Embedded) -> Body:
    """The answer of `/api/embed`."""
    return {"model": asked.name, "embeddings": made.vectors, "prompt_eval_count": made.tokens}


def ollama_vector(_asked: TextsAsked, made: Embedded) -> Body:
    """The answer of `/api/embeddings`."""
    return {"embedding": made.vectors[0]}


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


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

REFUSAL_NOTE = "ollama_pack_refusal"  # key in the state of a request
OUTCOME_NOTE = "ollama_pack_outcome"  # likewise
_ANSWER_FIELDS = ("choices", "output", "content", "usage")  # of which each API's answers have one


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


async def tell_leaving(scope: AsgiScope, receive: AsgiReceive, send: AsgiSend, behind: Any) -> None:
    """Have a request answered that stops once its client has left, and note that it did."""
    leaving = Leaving()
    try:
        await behind(partial(leaving.receive, receive), partial(leaving.send, send))
    finally:
        if leaving.before_the_end:
            note_left(scope.get("state") or {})
        leaving.end()


# --- ollama_pack.webui.routes ---
# Routes of a plugin on the running Open WebUI. Imports `open_webui` when called, not before.


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """A route.

    Attributes:
        method: GET, POST …
        path: from the server's root.
        audience: who is let in; others get Open WebUI's own 401.
        answer: is called with the request and Open WebUI's user; gives JSON or a response.
        lets_in: whether a request is let in that shows no user; then `answer` gets None for the user.
        without: Open WebUI has a route of this path itself, in whose place this one answers: what it would
            answer, for when the plugin is off.
        user_of: gives the user of a request that need not be checked; None: Open WebUI checks it.
        is_chat: it answers chats.
        refused: makes the response for an error that Open WebUI raises, such as 401 without a token; None:
            Open WebUI answers in its own form.
    """

    method: str
    path: str
    audience: Literal["user", "admin"]
    answer: Callable[[Any, Any], Awaitable[Any]]
    lets_in: Callable[[Any], bool] | None = None
    without: Callable[[Any, Any], Awaitable[Any]] | None = None
    user_of: Callable[[Any], Any] | None = None
    refused: Callable[[Any, Any], Any] | None = None
    is_chat: bool = False


def place_routes(app: Any, owner: str, specs: tuple[RouteSpec, ...]) -> None:
    """Make these the routes of a plugin. They come first: Open WebUI has hundreds, which are tried in order.

    Safe to call again: what an earlier call, or earlier code of the same plugin, has placed is replaced.

    Args:
        app: Open WebUI's.
        owner: the plugin's id, which tells its routes from others'.
        specs: none takes the plugin's routes away.
    """
    routes = app.router.routes
    others = [route for route in routes if not _is_of(route, owner)]
    routes[:] = [
        *(_api_route(owner, spec) for spec in specs),
        *others,
    ]  # in one step: requests look at this list


def _is_of(route: Any, owner: str) -> bool:
    return str(getattr(route, "name", "")).startswith(f"{owner}:")


def _api_route(owner: str, spec: RouteSpec) -> Any:
    from fastapi import Depends, HTTPException, Request  # noqa: PLC0415 - it comes with Open WebUI
    from fastapi.responses import JSONResponse, Response  # noqa: PLC0415
    from fastapi.routing import APIRoute  # noqa: PLC0415
    from open_webui.utils.auth import get_admin_user, get_verified_user  # noqa: PLC0415

    allowed = Depends(get_admin_user if spec.audience == "admin" else get_verified_user)

    async def endpoint(request: Request, user: Any = allowed) -> Any:
        return await spec.answer(request, user)

    # Open WebUI compiles a plugin so that annotations are text, which FastAPI would look up in vain.
    endpoint.__annotations__ = {"request": Request, "user": Any}

    class PackRoute(APIRoute):  # type: ignore[misc] # Any, where Open WebUI is not installed
        def get_route_handler(self) -> Callable[[Any], Awaitable[Any]]:
            ask = super().get_route_handler()

            async def handle(request: Any) -> Any:
                user = spec.user_of(request) if spec.user_of else None
                if user is None and not (spec.lets_in and spec.lets_in(request)):
                    return await asked(request)
                answer = await spec.answer(request, user)
                return answer if isinstance(answer, Response) else JSONResponse(answer)

            async def asked(request: Any) -> Any:
                try:
                    return await ask(request)
                except HTTPException as error:
                    if spec.refused is None:
                        raise
                    return spec.refused(request, error)

            return handle

        async def handle(self, scope: Any, receive: Any, send: Any) -> None:
            if not spec.is_chat:
                await super().handle(scope, receive, send)
                return
            await tell_leaving(scope, receive, send, partial(super().handle, scope))

    return PackRoute(
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


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    """JSON as a response. Starlette's own takes twenty times as long: seconds for many vectors."""
    from starlette.responses import Response  # noqa: PLC0415

    return Response(orjson.dumps(value), status, headers, media_type="application/json")


# --- ollama_pack.webui.gateway_request ---
# A client's request at the gateway: its body, its id, and whether its client is still there.

MAX_BODY = 64 * 2**20  # bytes: a conversation with many pictures
MAX_NAME = 512  # characters
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_ID_HEADERS: dict[ApiForm, str] = {"anthropic": "request-id"}
_TOO_LARGE = Refusal(
    413,
    message(
        "The request has more than {limit} MiB: send fewer or smaller pictures.",
        limit=MAX_BODY // 2**20,
    ),
    "too_large",
)


async def body_of(request: Any) -> dict[str, Any]:
    """The JSON object that a client has sent.

    Raises:
        ChatBodyError: it is none, or names a model by a name that can be none.
        ModelRefusedError: it is too large.
        ClientLeftError: the client has left before all of it had come.
    """
    from starlette.requests import ClientDisconnect  # noqa: PLC0415 - it comes with Open WebUI

    read = bytearray()
    try:
        async for part in request.stream():
            read += part
            if len(read) > MAX_BODY:
                raise ModelRefusedError(_TOO_LARGE)
    except ClientDisconnect:
        raise ClientLeftError from None
    try:
        found = orjson.loads(read)
    except orjson.JSONDecodeError as error:
        raise ChatBodyError(
            message("The body"), message("is no JSON ({error}): send a JSON object", error=error)
        ) from error
    if not isinstance(found, dict):
        raise ChatBodyError(message("The body"), message("must be a JSON object"))
    for field in ("model", "name"):  # names are remembered for a while
        if isinstance(name := found.get(field), str) and len(name) > MAX_NAME:
            raise ChatBodyError(
                field,
                message(
                    "has {count} characters: a name has at most {limit}", count=len(name), limit=MAX_NAME
                ),
            )
    return found


def answer_headers(request: Any, api: ApiForm) -> dict[str, str]:
    """The headers that every answer has: the client's id for the request, or a new one."""
    given = str(request.headers.get("x-request-id") or "")
    identity = given if _ID.fullmatch(given) else f"req_{uuid4().hex}"
    own = {_ID_HEADERS[api]: identity} if api in _ID_HEADERS else {}
    return {"x-request-id": identity, "cache-control": "no-store", **own}


def refused_response(request: Any, api: ApiForm, refusal: Refusal) -> Any:
    """An error as the client's API has it, in the language that the request accepts."""
    refusal = refusal.translated(accepted_language(request))
    headers = answer_headers(request, api) | {name.lower(): text for name, text in refusal.headers.items()}
    return json_answer(refusal.body(api), refusal.status, headers)


def refused_by_server(request: Any, api: ApiForm, error: Any) -> Any:
    """The same, for what Open WebUI raises before the gateway is asked, such as 401 without a key."""
    refusal = refusal_in(error.detail, error.status_code, error.headers)
    return refused_response(request, api, refusal)


@asynccontextmanager
async def while_connected(request: Any) -> AsyncIterator[None]:
    """Stop what is done inside once the client has left: then nobody wants the answer.

    All of it stays in the request's own task, by whose end other plugins know that a chat is over.

    Raises:
        ClientLeftError: the client has left.
    """
    task = asyncio.current_task()
    gone = asyncio.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()
        if task is not None:
            task.cancel()

    watching = asyncio.get_running_loop().create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone.is_set() and task is not None and not task.uncancel():
            raise ClientLeftError from None
        raise
    finally:
        watching.cancel()


# --- ollama_pack.webui.ollama_models ---
# Open WebUI's Ollama API, and which of its names the router answers. Imports `open_webui` when called.

_YEAR_9999 = 253_370_764_800
UNKNOWN = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": None,
    "parameter_size": "",
    "quantization_level": "",
}


def created_at(model: Mapping[str, Any]) -> int:
    """When a listed model was made, in seconds of the epoch; 0 where that is not told in seconds."""
    told = model.get("created")
    return int(told) if isinstance(told, int | float) and 0 < told < _YEAR_9999 else 0


def own_ollama_models(request: Any) -> Mapping[str, Mapping[str, Any]]:
    """The models of Open WebUI's own Ollama connections, as these list them."""
    return getattr(request.app.state, "OLLAMA_MODELS", None) or {}


def tags_entry(name: str, model: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """An entry of `/api/tags`. Of what an Ollama connection offers, too, the figures are known.

    Args:
        name: what clients ask for.
        model: as Open WebUI lists it.
        own: those of its Ollama connections.
    """
    base = str((model.get("info") or {}).get("base_model_id") or name)
    known = own.get(base.removeprefix(ROUTER)) or {}
    created = datetime.fromtimestamp(created_at(model), UTC).isoformat()
    return {
        "name": name,
        "model": name,
        "modified_at": known.get("modified_at") or created,
        "size": known.get("size") or 0,
        "digest": known.get("digest") or "",
        "details": known.get("details") or UNKNOWN,
    }


# --- ollama_pack.services.gateway ---
# The gateway: OpenAI's, Anthropic's and Ollama's APIs for every name of the alias tables.
#
# A request goes through these steps: its body becomes an OpenAI chat body; its name leads to a model that this
# user may use; then Open WebUI's own route answers, with every filter and tool (`full`), or the pack's chain
# alone (`direct`); the answer takes the form that the client speaks.

TABLE_SECONDS = 5.0  # that alias tables are kept, where no event says that they have changed
OLLAMA_API = "0.17.4"  # the version of Ollama whose API the gateway speaks
PREFIX = "/ollama-pack"
MODE_HEADER = "x-ollama-pack-mode"  # which way an answer went
CLIENT_LEFT = 499  # nginx's status for it; nobody reads it
NOT_FOUND = "Model not found"  # Open WebUI's words for a model that is not there or not granted
# Of Open WebUI's own page: a client of the gateway has no chat there, and names no model of a browser's own.
_PAGE_FIELDS = frozenset(
    {
        *(
            "assistant_message_id",
            "automation_id",
            "background_tasks",
            "chat_id",
            "chat_variables",
            "folder_id",
        ),
        *("id", "message_ids", "metadata", "model_item", "new_chat", "parent_id", "parent_message"),
        *("regeneration_message_id", "session_id", "tool_servers", "user_message"),
    }
)

_gateway__Chunks = AsyncGenerator[Body, None]


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """One request on its way.

    Attributes:
        request: FastAPI's.
        user: Open WebUI's.
        form: what the client speaks.
        chat: OpenAI's chat body, with the name that was asked for.
        headers: of the answer.
    """

    request: Any
    user: Any
    form: ClientForm
    chat: Body
    headers: dict[str, str]

    @property
    def name(self) -> str:
        """The name that was asked for."""
        return str(self.chat["model"])


class Gateway:
    """The routes. One for each process."""

    def __init__(self, app: Any, mode: Callable[[], str]) -> None:
        """Ask nothing yet.

        Args:
            app: Open WebUI's.
            mode: gives `full` or `direct`, as an admin has it now.
        """
        self._mode = mode
        self._chain = DirectChain(app)
        self._tables = SingleFlight(stored_tables, TABLE_SECONDS, ahead=True)
        self.specs = (
            self._chat_route("/v1/chat/completions", OPENAI_CHAT),
            self._chat_route("/v1/completions", OPENAI_PROMPT),
            self._chat_route("/v1/messages", ANTHROPIC),
            _route("POST", "/v1/messages/count_tokens", "anthropic", self._count_tokens),
            self._chat_route("/api/chat", OLLAMA_CHAT),
            self._chat_route("/api/generate", OLLAMA_GENERATE),
            _route("GET", "/v1/models", "openai", self._models),
            _route("GET", "/v1/models/{model:path}", "openai", self._model),
            self._vectors_route("/v1/embeddings", "openai", texts_asked, openai_vectors),
            self._vectors_route("/api/embed", "ollama", texts_asked, ollama_vectors),
            self._vectors_route("/api/embeddings", "ollama", text_asked, ollama_vector),
            _route("POST", "/api/show", "ollama", self._show),
            _route("GET", "/api/tags", "ollama", self._tags),
            _route("GET", "/api/version", "ollama", self._version),
        )

    def forget(self) -> None:
        """Something has changed that answers depend on: nothing is remembered."""
        self._tables.forget()
        self._chain.forget()

    def _chat_route(self, path: str, form: ClientForm) -> RouteSpec:
        spec = _route("POST", path, form.api, partial(self._chat, form))
        return replace(spec, user_of=self._user_of, is_chat=True)

    def _user_of(self, request: Any) -> Any:
        return self._chain.user_of(request) if self._mode() == "direct" else None

    async def _chat(self, form: ClientForm, request: Any, user: Any) -> Any:
        self._chain.remember(request, user)

        async def answer() -> Any:
            body = await body_of(request)
            chat = _named(form.asked(body))
            headers = answer_headers(request, form.api)
            asked = ClientRequest(request, user, form, chat, headers)
            call = await self._call(asked)
            headers |= limit_headers(await self._chain.budgets_of(user), form.api, datetime.now(UTC))
            headers[MODE_HEADER] = "direct" if isinstance(call, DirectCall) else "full"
            if form.api == "ollama" and asks_nothing(body):
                return json_answer(loaded_answer(form, body), headers=headers)
            if chat["stream"]:
                texts = _written(asked, await _begun(request, call))
                return event_stream(texts, form.media_type, headers)
            async with while_connected(request):
                completion = await _gateway__whole(call, asked.name)
            note_answer(request.scope.get("state") or {}, completion)
            return json_answer(await form.whole(completion, asked.name), headers=headers)

        return await _answered(request, user, form.api, answer)

    async def _call(self, asked: ClientRequest) -> ModelCall | DirectCall:
        """What answers: the pack's chain alone where it can and shall, else Open WebUI's own route."""
        user = asked.user.model_dump()
        tables = await self._tables.get()
        body = {name: value for name, value in asked.chat.items() if name not in _PAGE_FIELDS}
        if self._mode() == "direct":
            direct = await self._chain.call(asked.request, user, body, tables.router)
            if direct is not None:
                return direct
        model = await model_for(asked.request, tables.in_use, body, user)
        owner = _owner(asked.request.app.state.MODELS[model])
        if owner is not None:
            body = fitted_settings(body, owner)
        return ModelCall(asked.request, {**body, "model": model}, user, is_new=True)

    async def _count_tokens(self, request: Any, user: Any) -> Any:
        """How long a prompt is, for Anthropic's clients: estimated, as for aliases."""

        async def answer() -> Any:
            chat = _named(ANTHROPIC.asked(await body_of(request)))
            await model_for(request, (await self._tables.get()).in_use, chat, user.model_dump())
            count = {"input_tokens": request_facts(chat, chat["model"]).tokens}
            return json_answer(count, headers=answer_headers(request, "anthropic"))

        return await _answered(request, user, "anthropic", answer)

    async def _models(self, request: Any, user: Any) -> Any:
        tables = await self._tables.get()
        entries = [_model_entry(offered) for offered in await offered_names(request, tables.in_use, user)]
        ids = [entry["id"] for entry in entries]
        ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None, "has_more": False}
        answer = {
            "object": "list",
            "data": entries,
            **ends,
            "ollama_pack": {"wildcards": await wildcards(request, tables.in_use, user)},
        }
        return json_answer(answer, headers=answer_headers(request, "openai"))

    def _vectors_route(
        self,
        path: str,
        api: ApiForm,
        read: Callable[[Body], TextsAsked],
        form: Callable[[TextsAsked, Embedded], Body],
    ) -> RouteSpec:
        return _route("POST", path, api, partial(self._vectors, api, read, form))

    async def _vectors(
        self,
        api: ApiForm,
        read: Callable[[Body], TextsAsked],
        form: Callable[[TextsAsked, Embedded], Body],
        request: Any,
        user: Any,
    ) -> Any:
        async def answer() -> Any:
            asked = read(await body_of(request))
            tables, router = await self._tables.get(), await self._chain.router()
            began, who = time.monotonic(), user.model_dump()
            async with self._chain.budgets.counting(request.app, who, {}, asked.name) as (served, _last):
                headers = answer_headers(request, api)
                headers |= limit_headers(await self._chain.budgets_of(user), api, datetime.now(UTC))
                try:
                    async with while_connected(request):
                        made = await vectors_for(request, user, asked, tables, router)
                except ClientLeftError:
                    if served:
                        served(time.monotonic() - began, 0)
                    raise
                if served:
                    served(made.seconds or time.monotonic() - began, made.tokens)
            return json_answer(form(asked, made), headers=headers)

        return await _answered(request, user, api, answer)

    async def _show(self, request: Any, user: Any) -> Any:
        async def answer() -> Any:
            body = await body_of(request)
            name = body.get("model") or body.get("name")
            if not isinstance(name, str) or not name:
                raise ChatBodyError("model", message("is missing: name one of GET /ollama-pack/api/tags"))
            tables, router = await self._tables.get(), await self._chain.router()
            told = await shown(request, user, name, tables, router)
            return json_answer(told, headers=answer_headers(request, "ollama"))

        return await _answered(request, user, "ollama", answer)

    async def _tags(self, request: Any, user: Any) -> Any:
        own = own_ollama_models(request)
        offered = await offered_names(request, (await self._tables.get()).in_use, user)
        models = [tags_entry(one.name, one.about, own) for one in offered]
        return json_answer({"models": models}, headers=answer_headers(request, "ollama"))

    async def _version(self, request: Any, _user: Any) -> Any:
        return json_answer({"version": OLLAMA_API}, headers=answer_headers(request, "ollama"))

    async def _model(self, request: Any, user: Any) -> Any:
        name = request.path_params["model"]
        names = await offered_names(request, (await self._tables.get()).in_use, user)
        found = next((offered for offered in names if offered.name == name), None)
        if found is None:
            return refused_response(request, "openai", _not_found(name))
        return json_answer(_model_entry(found), headers=answer_headers(request, "openai"))


def _route(method: str, path: str, api: ApiForm, answer: Callable[[Any, Any], Any]) -> RouteSpec:
    refused = partial(_refused_route, api)
    return RouteSpec(method, PREFIX + path, "user", answer, refused=refused)


async def _answered(request: Any, user: Any, api: ApiForm, answer: Callable[[], Awaitable[Any]]) -> Any:
    """The answer, or the error in the form that the client's API has for it."""
    try:
        return await answer()
    except ClientLeftError:
        return json_answer({}, CLIENT_LEFT)
    except Exception as error:  # noqa: BLE001 - the boundary to the client, which is promised its form
        return refused_response(request, api, _refusal(request, user, error))


def _named(chat: Body) -> Body:
    if not isinstance(chat.get("model"), str) or not chat["model"]:
        raise ChatBodyError("model", message("is missing: name one of GET /ollama-pack/v1/models"))
    return chat


def _refused_route(api: ApiForm, request: Any, error: Any) -> Any:
    return refused_by_server(request, api, error)


def _model_entry(offered: Any) -> Body:
    """A model as OpenAI's and Anthropic's clients read it: both look at the same list."""
    created = created_at(offered.about)
    entry: Body = {
        "id": offered.name,
        "object": "model",
        "created": created,
        "owned_by": str(offered.about.get("owned_by") or "open-webui"),
        "type": "model",
        "display_name": str(offered.about.get("name") or offered.name),
        "created_at": _iso(created),
    }
    if offered.stands_for:
        entry["ollama_pack"] = {"stands_for": list(offered.stands_for)}
    return entry


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _owner(model: Mapping[str, Any]) -> str | None:
    """What kind of Open WebUI's own connections a model is asked over; None: it is a function's."""
    if model.get("pipe") or model.get("arena"):
        return None
    return "ollama" if model.get("owned_by") == "ollama" else "openai"


async def _gateway__whole(call: ModelCall | DirectCall, name: str) -> Body:
    """The answer to a client that wants no stream: the row of its model may have Open WebUI send one."""
    if isinstance(call, DirectCall):
        return await call.completion()
    answer = await call.answer()
    if isinstance(answer, dict):
        return answer
    head = ReplyHead(f"chatcmpl-{uuid4().hex}", int(time.time()), name)
    made = await completion_from(_answer_alone(answer), head)
    return {name: value for name, value in made.items() if value is not None}  # a stream may tell no usage


async def _begun(request: Any, call: ModelCall | DirectCall) -> _gateway__Chunks:
    """The chunks of an answer that has begun: an error before the first still has a status.

    Raises:
        ModelRefusedError: there is none.
    """
    chunks = _answer_alone(call.chunks())
    try:
        async with while_connected(request):
            first = await anext(chunks)
    except StopAsyncIteration:
        raise ModelRefusedError(Refusal(BAD_GATEWAY, message("The model said nothing. Try again."))) from None
    return _with_first(first, chunks)


async def _answer_alone(chunks: _gateway__Chunks) -> _gateway__Chunks:
    """The chunks of the answer, without what Open WebUI sends besides for its own page.

    Raises:
        ModelRefusedError: one of them is an error.
    """
    async with aclosing(chunks):
        async for chunk in chunks:
            if chunk.get("error"):
                raise ModelRefusedError(refusal_in(chunk, BAD_GATEWAY))
            if isinstance(choices := chunk.get("choices"), list):
                for part in completion_chunks(chunk) if _is_whole(choices) else (chunk,):
                    yield part


def _is_whole(choices: list[Any]) -> bool:
    """Whether it is a whole answer: the row of its model may say that it does not stream."""
    return any("message" in choice and "delta" not in choice for choice in map(object_at, choices))


async def _with_first(first: Body, chunks: _gateway__Chunks) -> _gateway__Chunks:
    async with aclosing(chunks):
        yield first
        async for chunk in chunks:
            yield chunk


async def _written(asked: ClientRequest, chunks: _gateway__Chunks) -> AsyncGenerator[str, None]:
    """A stream as the client reads it. An error is its last word."""
    async with aclosing(chunks), aclosing(asked.form.streamed(chunks, asked.name)) as texts:
        try:
            async for text in texts:
                yield text
        except Exception as error:  # noqa: BLE001 - as in `_answered`
            refusal = _refusal(asked.request, asked.user, error)
            yield asked.form.broken(refusal.translated(accepted_language(asked.request)))


def _refusal(request: Any, user: Any, error: Exception) -> Refusal:
    """What a client gets for an error."""
    if noted := noted_refusal(request.scope.get("state") or {}):
        return noted
    if isinstance(error, ModelClosedError):
        return _not_found(error.model)
    refusal = passed_refusal(error, for_admin=user.role == "admin")
    return _not_found("") if refusal.message == NOT_FOUND else refusal


def _not_found(name: str) -> Refusal:
    named = message("The model {name!r}", name=name) if name else message("This model")
    sentence = message(
        "{named} does not exist, or you may not use it. GET /ollama-pack/v1/models lists yours.", named=named
    )
    return Refusal(404, sentence, "model_not_found", "model")


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


# --- ollama_pack.webui.service ---
# What an event function keeps up in a process: its routes, and a task that looks again from time to time.
#
# Open WebUI tells events in one process only, and a function that is deleted is told nothing. So whoever
# answers a request first makes sure that the function is still on, and the task does so too. It also notices
# code and valves that were changed through another replica.

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
        self._alive = SingleFlight(self._is_on, ALIVE_SECONDS)

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
                log.exception("%s could not look after its routes and models, and tries again", self._id)
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
        current = await live_function(self._app, self._id, state)
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
                if spec.without is not None:
                    return await spec.without(request, user)
                raise not_found()
            return await spec.answer(request, user)

        return replace(spec, answer=answer)


def _services(app: Any) -> dict[str, Any]:
    if not hasattr(app.state, SERVICES):
        setattr(app.state, SERVICES, {})
    services: dict[str, Any] = getattr(app.state, SERVICES)
    return services


# --- ollama_pack.plugins.functions.ollama_pack_gateway ---

# Events after which somebody may use more or less than before, or a name stands for something else.
CHANGES = ("auth.", "config.", "function.", "group.", "model.", "system.startup.", "user.")
OFF = frozenset({"function.disable_started", "system.shutdown.started"})


class Event:
    """The gateway's routes, kept up in every process of Open WebUI."""

    class Valves(PackValves):
        mode: Literal["full", "direct"] = Field(
            default="full",
            title="Mode",
            description=(
                "`full`: requests go through Open WebUI's own chat path, with every filter and tool. "
                "`direct`: requests go only through access rules, aliases, cache and router, which adds "
                "milliseconds. Default: `full`."
            ),
        )

    def __init__(self) -> None:
        self.valves = self.Valves()
        self._service: EventService | None = None

    async def event(self, event: Mapping[str, Any], __event_name__: str, __app__: Any, __id__: str) -> None:
        """Begin at the first event, and forget what a later one has changed."""
        try:
            about_us = (event.get("subject") or {}).get("id") == __id__
            if __event_name__ in OFF and (about_us or __event_name__.startswith("system.")):
                if self._service is not None:
                    self._service.stop()
                return
            if self._service is None:
                self._gateway = Gateway(__app__, lambda: self.valves.mode)
                self._service = EventService(__app__, __id__, self, self._look)
            self._service.start(self._gateway.specs)
            if __event_name__.startswith(CHANGES):
                self._gateway.forget()
        except Exception:
            log.exception("%s could not take the event %r", __id__, __event_name__)

    async def _look(self, _state: FunctionState) -> None:
        """Nothing to look after: the routes are the service's."""
