"""
title: GPU router
author: Open WebUI Ollama Pack
author_url: https://open-webui-ollama-pack.example/open-webui-ollama-pack
description: Answers each chat on the node that will begin soonest, and on another when that one fails.
license: MIT
required_open_webui_version: 0.11.2
version: 0.1.0
"""

# GENERATED from src/ollama_pack/plugins/functions/gpu_router.py by scripts/package.py: change that, not this.
#
# Begin here: `class Pipe`, line 20335, which the server calls.
# The modules that it uses come first:
#    220  base.translations              The translations of all sentences. GENERATED from locale/ by scripts/package.py.
#    508  base.messages                  Sentences for people, in English and in the languages of the catalogue.
#    636  errors                         The base of every error that the pack raises on purpose. Each part defines its own in its `errors.py`.
#    662  base.tables                    Tables that admins write as text: a row a line, `#` starts a comment, empty lines are skipped.
#    693  aliases.errors                 What goes wrong with aliases.
#    736  engines.errors                 What goes wrong with a node.
#    917  engines.body                   Reading fields of a body that nobody has checked: a value of the right type, or a refusal by name.
#   1052  engines.content                The parts of a message, in the one form that this pack works with, whatever a client calls them.
#   1128  aliases.facts                  What an alias table may ask about a request, read off an OpenAI chat body.
#   1197  aliases.table                  An alias table: rows of `alias = candidate, candidate [condition, …]`, read once and then only looked up.
#   1583  engines.ollama.names           Model names as Ollama writes them: `[host/][namespace/]model[:tag]`, the tag `latest` if there is none.
#   1735  fit.memory                     How much memory a model takes while it runs: a pure function of its shape and of what it is loaded with.
#   1911  fit.shapes                     Shapes of models: from metadata and tensors, or from as little as a number of parameters.
#   2296  fit.choose                     Which variant of a model a node takes: the best one that fits, next to what it has in memory.
#   2374  aliases.resolve                Which model answers for a name: a pure function of the table, the request and the models that are there.
#   2432  aliases.published              Which names of a table can be published as models, and what answers for them.
#   2468  base.redis                     A client for a Redis URL: one server, Sentinel, or a cluster; and scripts that run there.
#   2920  base.single_flight             What is asked, made or kept once: for all who ask at the same time, or for all plugins of a process.
#   3088  engines.model_ids              Ids of models that clients can use: alias tables and addresses split at spaces, commas and the like.
#   3134  engines.ollama.options         Sampling and runner options of an OpenAI chat body, wherever Open WebUI may have put them.
#   3284  engines.ollama.to_openai       What an Ollama says, as OpenAI's chat API says it. Nothing here raises: what has a wrong type is absent.
#   3416  engines.tools                  The tools that a chat body offers, and what its `tool_choice` asks for, in whichever client's words.
#   3527  engines.openai.request         An OpenAI chat body as an OpenAI-compatible engine takes it, without Ollama's and Open WebUI's own fields.
#   3719  engines.refusals               What a client gets instead of an answer, in the form of each API that clients speak.
#   3796  engines.vectors                Vectors for texts, as an engine gives them.
#   3829  engines.openai.metrics         How busy an engine is, by the Prometheus metrics that it serves.
#   3907  routing.decide.policy          The numbers that routing goes by and that nobody has to set.
#   3958  routing.decide.returns         How likely it is that a prompt is gone on with, and when: what a kept prefix is worth to its chat.
#   4006  routing.decide.view            What a routing decision looks at: plain values, made once and never changed.
#   4339  routing.decide.cost            What sending a request to a node costs, term by term.
#   4473  routing.errors                 What goes wrong with routing.
#   4655  routing.naming                 Names of models as the fleet compares them: `llama3` is `llama3:latest`, and `Llama3` too, as to Ollama.
#   4693  routing.decide.fair_queue      Who comes next: users with the least in service, then start-time fair queueing; background behind people.
#   5060  routing.decide.node_timeline   A node's virtual future: what it does now, and what those ahead in the queue will have it do.
#   5495  routing.decide.assignment      The choice of a node for one request: what each node would cost it, and which one it goes to.
#   5619  engines.failures               Which typed error an answer or a failure of a node is. Nothing here shows a password.
#   5730  engines.ollama.messages        The conversation of an OpenAI chat body, as Ollama wants it.
#   5867  engines.ollama.schema          What of a JSON schema no Ollama can use: refused here, as there it ends in status 500, or ends the runner.
#   5991  engines.ollama.to_ollama       An OpenAI chat request as Ollama's `POST /api/chat` wants it.
#   6154  engines.sse                    Lines of a stream, and server-sent events as the HTML standard has them ("Interpreting an event stream").
#   6288  engines.transport              Requests to one node over aiohttp: limits of time and size; whatever goes wrong is a typed error.
#   6663  routing.state.estimates        How fast a node runs a model, learned from the durations that the engine reports.
#   6916  routing.dispatch.durations     How long a finished answer took the engine, by the figures in its last chunk.
#   7033  routing.dispatch.hang_delay    How long a node may honestly be silent before it answers: after that, another one is asked if it can be.
#   7091  engines.way_in                 What a node is asked with besides the request: its login, its key, its headers.
#   7156  routing.dispatch.explain       Decisions in words: status lines for people, records for the dashboard.
#   7305  routing.dispatch.pending_chat  One request on its way through the fleet, and what an admin may set for all of them.
#   7440  routing.decide.prefix          Which beginnings of prompts a runner still holds, mirrored from what was sent to it.
#   7790  routing.dispatch.request       What the scheduler needs to know of an OpenAI chat body.
#   7875  engines.model_kinds            What a model is for, by what its engine lists of it: only models that chat are offered for chats.
#   7972  engines.ollama.stream          A streamed answer of Ollama as OpenAI's chunks: one step for each line, remembering but a small state.
#   8078  engines.ollama.values          What a node reports of its models. A field that is missing, null or not of its type has its default.
#   8312  engines.ollama.client          What a node is asked. `NodeClient` is what the fleet needs of any engine; `OllamaClient` is Ollama's.
#   8574  engines.openai.failures        Which typed error a refusal of an OpenAI-compatible engine is: the words differ from one to the next.
#   8632  engines.openai.models          What an OpenAI-compatible engine tells of its models, in the words of `engines/ollama/values.py`.
#   8835  engines.calls                  Tool calls from the pieces of a streamed answer, which engines cut up and number in ways of their own.
#   8891  engines.openai.stream          A streamed answer of an OpenAI-compatible engine, in the one form that this pack gives all answers.
#   9029  engines.openai.client          A node that runs an OpenAI-compatible engine: vLLM, SGLang, llama.cpp's server, and what else speaks so.
#   9366  routing.nodes                  The `nodes` valve: a row a line, read once.
#   9726  routing.probe.catalogue        Which models the nodes have, put together: what a picker offers and what an alias may stand for.
#   9812  routing.probe.gpus             GPUs as values, the JSON form in which `GET /api/system/load` tells of them, and reading it from an agent.
#   9986  routing.probe.gpu_nvml         GPUs of this machine, from NVIDIA's driver through NVML.
#  10182  routing.probe.listed_client    A node of which only some models are offered, or under other names: as a connection's settings have it.
#  10275  base.breaker                   A breaker: after failures nothing is sent for a while, then one request tries.
#  10361  routing.state.external_load    Requests of clients that do not come through us, at one runner or on one node's GPU.
#  10427  routing.state.model_stats      What is learned of one node with one set of weights: rates, slots, and how many prefixes are kept.
#  10476  fit.learned                    What a node's reports teach: how its server is set up, and so what any model takes there.
#  10564  routing.state.node_memory      The memory of one node: how much there is, what each of its models takes, and which variants fit.
#  10678  routing.state.node_state       What is known of one node between two decisions: its models, its runners, what was learned of it.
#  11205  routing.probe.node_watch       One node as the router holds it: its client, what the last looks have shown, and when it counts as gone.
#  11506  routing.dispatch.attempt       One request at one node: what was sent, when it was last heard of, and what it took.
#  11754  routing.dispatch.counts        What a router has done since it was made, by node and model: for Prometheus.
#  11857  routing.dispatch.record        What is written down of a chat when it has ended: figures and names, and nothing of what was said.
#  11965  routing.state.events           What happens to a request at a node, as workers tell each other. Times are in seconds from the telling.
#  12082  routing.peers.messages         What workers write to each other: events as JSON, with hashes instead of prompts.
#  12335  routing.state.demand           How often each set of weights is asked for, over the last minutes.
#  12368  routing.state.peer_requests    Requests of other workers at the same nodes: they take slots, load models and teach, as our own do.
#  12554  routing.decide.rendezvous      Where a chat belongs when nobody remembers: weighted rendezvous hashing, with bounded loads.
#  12589  routing.decide.planner         Late binding on a virtual timeline: which of the waiting requests begin now, and where.
#  13354  routing.decide.strategies      The plain ways to choose a node, for those who want no prediction: least busy, and random.
#  13430  routing.state.returns          Whether prompts are gone on with, learned for each set of weights and for each number of turns.
#  13576  routing.state.cluster          The nodes of a fleet as they are known, and the events that tell of them.
#  13822  routing.state.peer_line        Requests that wait at other workers stand in this worker's queue, too.
#  13962  routing.state.running          A request at a node, as the scheduler remembers it until it ends.
#  14022  routing.state.scheduler        The requests that wait and run, and the decisions about them. No input, no output.
#  14579  routing.warm                   The `warm` valve: models that are kept in memory at certain hours, a row a line.
#  14759  routing.dispatch.upkeep        What a router does besides chats: models kept in memory at certain hours, nodes drained, models pulled.
#  15110  routing.peers.share            Several workers on the same nodes, each with a scheduler of its own: what they tell and ask each other.
#  15419  routing.probe.poller           Looking at all nodes again and again, for as long as anybody uses them.
#  15534  routing.dispatch.router        The fleet at work: requests wait where they can still change their mind, then go to nodes over HTTP.
#  16169  routing.dispatch.embedding     Vectors from the fleet: the node that has the model in memory and the least to do, then the others.
#  16229  fit.planning                   Which models a fleet should have where, so that its demand needs the fewest loads: pure functions.
#  16426  routing.plan.demand            What people ask for: chats from the router's record, or from a file like it.
#  16521  routing.plan.virtual_fleet     A node as Ollama is, in virtual time: no sockets, no sleeping, thousands of requests in a second.
#  16782  routing.plan.replay            A recorded day again, in virtual time: the router's own scheduler over simulated nodes.
#  16969  routing.plan.report            What fits where, what to pull, and what one more GPU would bring: all of a plan, as people read it.
#  17279  routing.dispatch.report        What a router tells of its nodes: for the load endpoint, the admin's dashboard, and a plan.
#  17390  cache.errors                   What goes wrong with the cache.
#  17410  webui.errors                   What goes wrong between the pack and Open WebUI.
#  17442  services.answers               An answer as clients of OpenAI's API take it, and the one place that says which error they get.
#  17591  services.budget_chats          Chats that are under way and their budgets: what each has used so far, by whoever knows it best.
#  17597  webui.audience                 Whom published models are for: the words that an admin writes, and the grants that they stand for.
#  17612  webui.model_rows               Rows of Open WebUI's models table, as they are, and the mark by which the pack knows its own.
#  17758  webui.models                   What Open WebUI knows of models and of who may use them. Imports `open_webui` when called, not before.
#  17801  webui.users                    Users of the running Open WebUI, their groups and their language. Imports `open_webui` when called.
#  17834  webui.access                   Who may use a model: the one rule for what is published, for what is uploaded, and for each chat.
#  17925  webui.connections              Open WebUI's own connections, as its admin has set them. Imports `open_webui` when called, not before.
#  18088  services.connected             Open WebUI's connections as the router's nodes, and the ids that its models have in Open WebUI.
#  18178  services.discovery             Nodes that DNS or Kubernetes knows: one row of the table stands for each server that is found.
#  18421  services.routed                Aliases over a fleet: which names a router offers, and which models may answer for one.
#  18566  services.activity              What chats did in this process, until somebody writes it into the history.
#  18592  services.router_host           The one router of a plugin, which changes with its valves and loses no chat for it.
#  18717  services.metrics_text          What the pack counts, as Prometheus reads it: text format 0.0.4, base units, nothing for what is not known.
#  18827  services.router_metrics        What a router and its nodes did, as Prometheus reads it.
#  18874  services.valves                What all valves of the pack have in common: what is refused is told to admins, without what was written.
#  19002  services.router_valves         The valves of the router, wherever it runs.
#  19156  routing.peers.scripts          What happens in one step inside of Redis, for workers that share a fleet.
#  19270  routing.peers.redis            Carries what workers share over Redis or Valkey. Without it each goes on alone, and joins again later.
#  19531  services.sharing               Workers that share what they know of the nodes over a Redis or Valkey.
#  19563  services.webui_tasks           Which of Open WebUI's own calls nobody waits for: titles and the like come behind people.
#  19585  webui.calling                  Asking a model through Open WebUI itself, with its access check. Imports `open_webui` when called.
#  19591  webui.functions                Functions of the running Open WebUI. Imports `open_webui` when called, not before.
#  19685  webui.budget_contact           The way to `usage_budgets`, for the router and the routes. Its answers are plain values.
#  19792  engines.front_route            A route in front of a server's own, which sees each answer of a chat before its client does.
#  19887  webui.leaving                  When Open WebUI is told that a client has left: not while it reads its database.
#  19976  webui.early_errors             The status of an error that comes before an answer, which Open WebUI leaves no room for.
#  20171  webui.presets                  What answers under a model's id, and what its row adds to a chat. Imports `open_webui` when called.
#  20182  webui.server                   What a plugin takes from its Open WebUI: a secret, a folder, streamed answers, its place.
#  20241  webui.tracing                  Spans for Open WebUI's own OpenTelemetry provider. None where tracing is off or not installed.

import asyncio
import base64
import hashlib
import heapq
import itertools
import json
import logging
import math
import os
import re
import socket
import ssl
import statistics
import sys
import threading
import time
import weakref
from asyncio import CancelledError
from bisect import bisect_left, insort
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Container,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from functools import cached_property, lru_cache, partial
from graphlib import CycleError, TopologicalSorter
from hashlib import blake2b, sha256
from heapq import heappop, heappush, merge, nlargest
from http import HTTPStatus
from importlib import import_module
from inspect import signature
from ipaddress import ip_address
from itertools import accumulate, chain, islice, product
from math import exp, inf, isclose, prod
from operator import attrgetter
from pathlib import Path
from random import Random
from ssl import SSLContext
from statistics import fmean
from string import punctuation
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, Protocol, Self, TypeVar, get_args
from urllib.parse import quote, unquote, urljoin, urlsplit
from urllib.request import getproxies
from uuid import uuid4
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import aiohttp
import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

# --- ollama_pack.base.translations ---
# The translations of all sentences. GENERATED from locale/ by scripts/package.py.

TRANSLATIONS: dict[str, dict[str, str]] = {
    "zh-CN": {
        " and ": "和",
        " or ": "或",
        ", ": "、",
        ": ": "：",
        "; ": "；",
        "A pull is under way. Wait until it is done, or stop it.": "正在拉取模型。请等它完成，或先停止它。",
        "It is not a node any more.": "它已不再是节点。",
        "No computer was free for this model within {seconds:g} seconds. Try again in a minute, or choose another model.": "{seconds:g} 秒内没有空闲的机器可以运行该模型。请稍后再试，或选择其他模型。",
        "No model behind the alias {alias!r} can answer: {reasons}. An admin can install one (ollama pull {first}), grant access to it, or change the alias.": "别名 {alias!r} 背后没有可用的模型：{reasons}。管理员可以安装一个（ollama pull {first}）、授予使用权限，或修改别名。",
        "No model behind this name can be used. Choose another model, or ask an admin.": "该名称对应的模型均不可用。请选择其他模型，或联系管理员。",
        "No node is an Ollama: nothing else can pull models.": "没有 Ollama 节点：只有 Ollama 能拉取模型。",
        "No pull is under way.": "没有正在进行的拉取。",
        "Only an Ollama can pull models.": "只有 Ollama 能拉取模型。",
        "Settings of {plugin} were refused: {reason}": "{plugin} 的设置未被接受：{reason}",
        "The answer broke off and is incomplete. Generate it again.": "回答中断，内容不完整。请重新生成。",
        "The answer failed unexpectedly. Try again. Admins find the cause in the server's log.": "生成回答时发生意外错误。请重试；管理员可在服务器日志中查看原因。",
        "The computers that run this model do not answer at the moment. Try again in a minute, or choose another model.": "运行该模型的机器目前没有响应。请稍后再试，或选择其他模型。",
        "The model cannot answer this request. Change it, or choose another model.": "该模型无法回答此请求。请修改请求，或选择其他模型。",
        "The model cannot answer this request: {reason}": "该模型无法回答此请求：{reason}",
        "The model fails at this request every time. Change it, or choose another model.": "该模型每次处理此请求都会失败。请修改请求，或选择其他模型。",
        "The server that pulled it has stopped. Pull again: Ollama continues where it was.": "拉取它的服务器已停止。请重新拉取：Ollama 会从中断处继续。",
        "There is no node {node}. The nodes are: {nodes}.": "没有节点 {node}。现有节点：{nodes}。",
        "This model did not begin to answer in time. Try again in a minute, or choose another model.": "该模型未能及时开始回答。请稍后再试，或选择其他模型。",
        "This model failed to answer. Try again in a minute, or choose another model.": "该模型回答失败。请稍后再试，或选择其他模型。",
        "This model has too much to do. Try again in a minute, or choose another model.": "该模型当前负载过高。请稍后再试，或选择其他模型。",
        "This model is not installed on any computer here. Choose another model, or ask an admin.": "所有机器上都没有安装该模型。请选择其他模型，或联系管理员。",
        "Too many questions are waiting, {own} of them yours. Try again in a minute.": "排队的请求过多，其中 {own} 个来自您。请稍后再试。",
        "Too many questions are waiting. Try again in a minute.": "排队的请求过多。请稍后再试。",
        "`data` is not a list": "`data` 不是列表",
        "`models` is not a list": "`models` 不是列表",
        "a URL that begins with rediss has TLS": "以 rediss 开头的 URL 使用 TLS",
        "a cluster has no db but 0: leave the number out": "集群只有数据库 0：请去掉编号",
        "a list": "列表",
        "a model has no `id`": "有一个模型没有 `id`",
        "a model is being loaded": "正在加载模型",
        "a model is missing: after `=` stand model names with commas between them": "缺少模型：`=` 之后是以逗号分隔的模型名称",
        "a model is named twice": "有一个模型重复出现",
        "a number": "数字",
        "a table has at most {limit} rows: use wildcards": "一张表最多 {limit} 行：请使用通配符",
        "a whole number": "整数",
        "about {time}": "约 {time}",
        "aliases of aliases, {depth} deep: {limit} is the limit": "别名的别名有 {depth} 层：上限为 {limit} 层",
        "all nodes are busy and {waiting} requests wait (the limit is {limit}): try again in a minute": "所有节点都忙，已有 {waiting} 个请求在排队（上限 {limit}）：请稍后再试",
        "all nodes are busy and {waiting} requests wait, {own} of them yours (the limit is {limit}): try again in a minute": "所有节点都忙，已有 {waiting} 个请求在排队，其中 {own} 个来自您（上限 {limit}）：请稍后再试",
        "all nodes were busy for {seconds:g} s and {waiting} requests wait: try again later, or let an admin add a node or raise first_token_timeout_seconds": "所有节点已忙了 {seconds:g} 秒，有 {waiting} 个请求在排队：请稍后再试，或请管理员增加节点、调大 first_token_timeout_seconds",
        "an Ollama": "Ollama",
        "an OpenAI-compatible engine": "OpenAI 兼容的引擎",
        "an object": "对象",
        "another machine: start gpu_agent.py there and add agent=…": "另一台机器：请在那里启动 gpu_agent.py，并添加 agent=…",
        "answers in a form that is not Ollama's": "返回的格式不是 Ollama 的",
        "answers in a form that is not gpu_agent's: is it one?": "响应格式不像 gpu_agent：它是吗？",
        "answers with more than {limit} bytes": "返回的内容超过 {limit} 字节",
        "answers with status {status}": "返回状态码 {status}",
        "answers with status {status} and a web page: something in front of it answers": "返回状态码 {status} 和一个网页：是它前面的其他服务在应答",
        "answers with {answered!r} though it was asked for {asked!r}": "请求的是 {asked!r}，却用 {answered!r} 回答",
        "as a model shows that is only partly in GPU memory": "根据一个只有部分在显存中的模型得知",
        "as it is": "现状",
        "as its GPUs report": "根据其 GPU 的报告",
        "as its row says": "根据其配置行",
        "at most {count} models can be kept in memory": "最多可保持 {count} 个模型在内存中",
        "at most {limit} nodes can be configured": "最多可配置 {limit} 个节点",
        "at once": "立即响应",
        "cannot be reached (does it run, is the address right?)": "无法连接（是否在运行？地址是否正确？）",
        "cannot be reached ({kind}): is it started?": "无法访问（{kind}）：它启动了吗？",
        "context>= needs a number of tokens, such as context>=8192 or context>=8k, not {value!r}": "context>= 需要 token 数，例如 context>=8192 或 context>=8k，而不是 {value!r}",
        "does not answer within {seconds:g} s": "在 {seconds:g} 秒内没有响应",
        "ended its answer before it began": "还没开始回答就结束了",
        "ended its answer before the last chunk": "在最后一块数据之前就结束了回答",
        "ended its answer before the last line": "在最后一行之前就结束了回答",
        "expected at once": "预计立即响应",
        "expected in {time}": "预计 {time}",
        "failed while it answered": "回答过程中出错",
        "gave up in the middle of its answer": "回答到一半放弃了",
        "gives no vector for some of the texts": "没有为其中一些文本返回向量",
        "group= is not known on the Pipelines server: use the gpu_router function for it": "Pipelines 服务器不支持 group=：请改用 gpu_router 函数",
        "group= needs names of groups, such as group=staff or group=staff|teachers, not {value!r}": "group= 需要分组名称，例如 group=staff 或 group=staff|teachers，而不是 {value!r}",
        "has a certificate that is not trusted, or speaks no TLS (for one that you have signed yourself set AIOHTTP_CLIENT_SSL_CERT_FILE, or SSL_CERT_FILE, to your CA where this runs)": "证书不受信任，或不支持 TLS（如果是自签名证书，请在运行环境中将 AIOHTTP_CLIENT_SSL_CERT_FILE 或 SSL_CERT_FILE 设为您的 CA）",
        "has no {model!r} ({remedy})": "没有 {model!r}（{remedy}）",
        "has not connected within {seconds:g} s": "{seconds:g} 秒内未能建立连接",
        "has not loaded the model within {seconds:g} s": "{seconds:g} 秒内未能加载模型",
        "has not sent its answer within {seconds:g} s": "{seconds:g} 秒内没有返回回答",
        "has not sent its first byte within {seconds:g} s": "{seconds:g} 秒内没有返回任何数据",
        "has not sent its next line within {seconds:g} s": "{seconds:g} 秒内没有返回后续内容",
        "has stopped answering": "已停止响应",
        "header= needs a name and a value, as in header=\"X-Team: blue\"": "header= 需要名称和值，例如 header=\"X-Team: blue\"",
        "hours are missing: write them as Mon-Fri 07:30-17:00, several with commas": "缺少时段：请写成 Mon-Fri 07:30-17:00，多个用逗号分隔",
        "hung up before it answered, or spoke no HTTP": "回答之前断开了连接，或不是 HTTP 服务",
        "hung up in the middle of its answer": "回答到一半断开了连接",
        "in a password, @ is written as %40, : as %3A, / as %2F, ? as %3F, # as %23, and % as %25": "密码中 @ 写成 %40，`:` 写成 %3A，/ 写成 %2F，`?` 写成 %3F，# 写成 %23，% 写成 %25",
        "in {time}": "用时 {time}",
        "is OpenAI's old form, which Ollama does not have: send `tools` instead": "是 OpenAI 的旧格式，Ollama 没有：请改用 `tools`",
        "is a data URL without base64: encode it as data:image/…;base64,…": "是没有 base64 的 data URL：请编码为 data:image/…;base64,…",
        "is a link: Ollama fetches none, so send the image itself as a data URL": "是链接：Ollama 不会下载图片，请以 data URL 发送图片本身",
        "is busy (status {status})": "正忙（状态码 {status}）",
        "is empty": "为空",
        "is missing": "缺失",
        "is neither json nor a JSON schema": "既不是 json 也不是 JSON schema",
        "is not JSON: an earlier answer was cut off or made up": "不是 JSON：之前的回答被截断或是编造的",
        "is not base64: send the image as a data URL": "不是 base64：请以 data URL 发送图片",
        "is not known": "未知",
        "is of the type {kind!r}: Ollama takes text and images only": "类型为 {kind!r}：Ollama 只接受文本和图片",
        "is too large a JSON schema: at most {limits} are possible": "JSON schema 过大：最多 {limits}",
        "it belongs before the ?": "应写在 `?` 之前",
        "it has a password in its address and a key=…: take one of them out": "地址中有密码，同时又有 key=…：请去掉其中一个",
        "it has a user or a password twice: before the host and as an option": "用户或密码出现两次：主机之前和选项中",
        "it has an @ or a # too many, perhaps in the password: {how}": "多了 @ 或 #，可能在密码中：{how}",
        "it has an option that is not known. The known ones are {known}": "有未知的选项。已知选项：{known}",
        "it has not answered yet": "它尚未应答",
        "it has the database twice: in the path and as an option": "数据库出现两次：路径中和选项中",
        "it holds a space or a character that cannot be printed": "含有空格或不可打印的字符",
        "it is the best variant that fits there": "这是该节点能容纳的最佳版本",
        "it names no host": "没有写主机",
        "it names several hosts: use redis+sentinel:// or redis+cluster://": "写了多个主机：请使用 redis+sentinel:// 或 redis+cluster://",
        "it needs the name of the service, as in redis+sentinel://host:26379/mymaster": "需要服务名称，例如 redis+sentinel://host:26379/mymaster",
        "it needs the path of the socket, as in unix:///run/redis.sock": "需要套接字路径，例如 unix:///run/redis.sock",
        "it serves nothing": "它没有提供模型",
        "it serves {listed}": "它提供 {listed}",
        "its address does not begin with http:// or https://": "地址没有以 http:// 或 https:// 开头",
        "its address or a header cannot be used": "其地址或某个请求头无法使用",
        "key= is empty: leave it out, or write the token after it": "key= 为空：请去掉，或在其后写上令牌",
        "kind={value} is unknown: the known ones are {known}": "未知的 kind={value}：可用 {known}",
        "lists models in a form that is not OpenAI's: there are none": "模型列表的格式不是 OpenAI 的：没有模型",
        "lists models in a form that is not OpenAI's: {error}": "列出模型的格式不像 OpenAI：{error}",
        "may repeat something {limit} times at most": "重复次数最多为 {limit}",
        "memory= needs a size such as 24GB or 80GiB, not {value!r}": "memory= 需要 24GB 或 80GiB 这样的大小，而不是 {value!r}",
        "models= needs names separated by commas, not {value!r}": "models= 需要以逗号分隔的名称，而不是 {value!r}",
        "must be \"auto\", \"none\", \"required\" or the name of one of the tools": "必须是 \"auto\"、\"none\"、\"required\" 或其中一个工具的名称",
        "must be \"json\" or a JSON schema": "必须是 \"json\" 或 JSON schema",
        "must be a JSON schema: an object, true or false": "必须是 JSON schema：对象、true 或 false",
        "must be a list": "必须是列表",
        "must be a list of JSON schemas": "必须是 JSON schema 的列表",
        "must be a list of images in base64": "必须是 base64 图片的列表",
        "must be a number": "必须是数字",
        "must be a whole number": "必须是整数",
        "must be a whole number from 0 to {limit}": "必须是 0 到 {limit} 的整数",
        "must be an object of JSON schemas": "必须是由 JSON schema 组成的对象",
        "must be at least {limit}": "不能小于 {limit}",
        "must be at most {limit}": "不能大于 {limit}",
        "must be from 0 to {limit}": "必须在 0 到 {limit} 之间",
        "must be from {least:.16g} to {most:.16g}": "必须在 {least:.16g} 到 {most:.16g} 之间",
        "must be one of none, {levels}": "必须是 none、{levels} 之一",
        "must be one of {choices}": "必须是以下之一：{choices}",
        "must be one of {types}": "必须是 {types} 之一",
        "must be seconds or a duration such as \"5m\"": "必须是秒数，或 \"5m\" 这样的时长",
        "must be text": "必须是文本",
        "must be text or a list of texts": "必须是文本或文本列表",
        "must be text, json_object or json_schema": "必须是 text、json_object 或 json_schema",
        "must be true or false": "必须是 true 或 false",
        "must be {wanted}, not {value}": "必须是{wanted}，而不是{value}",
        "must begin with ^ and end with $: Ollama takes no other pattern": "必须以 ^ 开头、以 $ 结尾：Ollama 不接受其他模式",
        "must lead to a part of this schema, such as #/$defs/name": "必须指向此 schema 的一部分，例如 #/$defs/name",
        "must not be 0: 1 means no penalty": "不能为 0：1 表示没有惩罚",
        "names a function that is not among the tools": "指定的函数不在 tools 中",
        "no NVIDIA driver (no NVML library): install it, or start the container with --gpus all": "没有 NVIDIA 驱动（没有 NVML 库）：请安装，或以 --gpus all 启动容器",
        "no node answers that may have {wanted}: no node is configured": "没有可能提供 {wanted} 的节点：尚未配置任何节点",
        "no node answers that may have {wanted}: {faults}": "可能提供 {wanted} 的节点都没有响应：{faults}",
        "no node can answer with {model} now": "目前没有节点能用 {model} 回答",
        "no node could answer ({reasons}): try again, or let an admin look at these nodes": "没有节点能够回答（{reasons}）：请重试，或请管理员检查这些节点",
        "no node has {wanted}: pull it on one of {there}": "没有节点安装了 {wanted}：请在其中一个节点上拉取：{there}",
        "no node has {wanted}: pull it on one of {there}; no answer from {faults}": "没有节点安装了 {wanted}：请在其中一个节点上拉取：{there}；以下节点没有响应：{faults}",
        "no node that has {wanted} answers at the moment: {reasons}; try again in a minute": "安装了 {wanted} 的节点目前都没有响应：{reasons}；请稍后再试",
        "no scheme that is known": "未知的协议",
        "node {node} {reason}": "节点 {node}：{reason}",
        "not looked at yet": "尚未检查",
        "on {node}": "节点 {node}",
        "only Ollama nodes are planned": "只规划 Ollama 节点",
        "only new versions have it": "只有新版本支持",
        "placement={value} is unknown: the known ones are {known}": "未知的 placement={value}：可用 {known}",
        "pynvml is not installed: pip install nvidia-ml-py": "没有安装 pynvml：pip install nvidia-ml-py",
        "quant= needs levels, the preferred one first, such as quant=q8_0>q4_K_M, not {value!r}": "quant= 需要量化级别，首选在前，例如 quant=q8_0>q4_K_M，而不是 {value!r}",
        "quant=auto takes no other level next to it, as in {value!r}": "quant=auto 不能与其他级别一起使用，如 {value!r}",
        "redirects to {target} (set that address instead)": "重定向到 {target}（请改用该地址）",
        "redis-py checks OCSP only where nothing is awaited": "redis-py 只在同步代码中检查 OCSP",
        "refuses the request": "拒绝了该请求",
        "refuses the request (status {status})": "拒绝了该请求（状态码 {status}）",
        "replicas lag behind": "副本的数据会滞后",
        "reports no GPU": "没有报告 GPU",
        "request {request!r} is already here": "请求 {request!r} 已经存在",
        "row {line} ({name}) has the same address: one row for each node": "第 {line} 行（{name}）的地址相同：每个节点只写一行",
        "row {line} ({row!r}): {reason}": "第 {line} 行（{row!r}）：{reason}",
        "row {line} already answers {alias!r} in the same case: put both rows' models into one row, in order of preference": "第 {line} 行已在相同条件下处理 {alias!r}：请将两行的模型按优先顺序合并为一行",
        "row {line} is already called {name!r}: give it another name": "第 {line} 行已使用名称 {name!r}：请换一个名称",
        "run 'ollama pull {model}' there": "请在该节点运行 'ollama pull {model}'",
        "sends a line of more than {limit} bytes": "返回了超过 {limit} 字节的一行",
        "sends what is no JSON, or its address cannot be used": "返回的不是 JSON，或其地址无法使用",
        "sends {count} bytes that are no JSON object: is it {engine}?": "返回了 {count} 字节，但不是 JSON 对象：它是 {engine} 吗？",
        "sentinel_username and sentinel_password belong to redis+sentinel://": "sentinel_username 和 sentinel_password 属于 redis+sentinel://",
        "start the engine there with it, or name a model that it serves": "请在那里用该模型启动引擎，或指定它提供的模型",
        "strategy {strategy!r} is unknown: the known ones are {known}": "未知策略 {strategy!r}：可用 {known}",
        "the Kubernetes API answered with HTTP {status}": "Kubernetes API 返回 HTTP {status}",
        "the Kubernetes API did not answer with a list of pods": "Kubernetes API 返回的不是 pod 列表",
        "the Kubernetes API's list of pods has no end": "Kubernetes API 的 pod 列表没有尽头",
        "the NVIDIA driver does not answer within {seconds:g} s: does it hang?": "NVIDIA 驱动在 {seconds:g} 秒内没有响应：是否卡住？",
        "the NVIDIA driver fails: {error}": "NVIDIA 驱动出错：{error}",
        "the NVIDIA driver is not loaded: load it (`nvidia-smi` does), or restart the machine": "NVIDIA 驱动没有加载：请加载（`nvidia-smi` 即可），或重启机器",
        "the NVIDIA driver lists no GPU: is one passed to this machine or container?": "NVIDIA 驱动没有列出 GPU：是否已将 GPU 分配给此机器或容器？",
        "the NVIDIA driver refuses this user: allow it to open /dev/nvidiactl and /dev/nvidia*": "NVIDIA 驱动拒绝此用户：请允许其打开 /dev/nvidiactl 和 /dev/nvidia*",
        "the NVIDIA driver was updated and the old one still runs: restart the machine": "NVIDIA 驱动已更新，而旧驱动仍在运行：请重启机器",
        "the URL of Redis begins with {url}: use {schemes}": "Redis 的 URL 以 {url} 开头：请使用 {schemes}",
        "the alias before `=` is missing": "`=` 之前缺少别名",
        "the alias leads back to itself: {way}": "别名指回自身：{way}",
        "the answer was shared with another request, whose generation broke off: regenerate it": "此回答与另一请求共享，而其生成已中断：请重新生成",
        "the database": "数据库",
        "the gpu_agent at {url}: {reason}": "{url} 的 gpu_agent：{reason}",
        "the model was asked through Open WebUI and gave the error {status}": "通过 Open WebUI 询问了该模型，返回错误 {status}",
        "the pack has time limits and connections of its own": "插件包有自己的时间限制和连接",
        "the pack sets it": "由插件包设置",
        "the pod's service account may not list pods in {namespace} (HTTP {status}): give it a Role with the verb list on pods": "该 pod 的服务账号不能列出 {namespace} 中的 pod（HTTP {status}）：请给它一个允许对 pod 执行 list 的 Role",
        "the request cannot be written as JSON": "该请求无法写成 JSON",
        "the same for each model, as there is no record of chats yet": "每个模型相同，因为还没有对话记录",
        "the star in {name!r} has no star in the alias to take its text from": "{name!r} 中的星号在别名中没有对应的星号",
        "the {scheme}:// URL of Redis cannot be used: the port and the database are numbers, and {how}": "Redis 的 {scheme}:// URL 无法使用：端口和数据库应为数字，{how}",
        "the {scheme}:// URL of Redis cannot be used: {error}": "Redis 的 {scheme}:// URL 无法使用：{error}",
        "this process does not run in Kubernetes: KUBERNETES_SERVICE_HOST is not set": "此进程不在 Kubernetes 中运行：没有设置 KUBERNETES_SERVICE_HOST",
        "this version of redis-py does not know one of the ssl_ options": "此版本的 redis-py 不支持其中一个 ssl_ 选项",
        "true or false": "true 或 false",
        "unknown condition {written!r}: the known ones are {known}": "未知条件 {written!r}：已知条件有 {known}",
        "unknown setting {name!r}: the known ones are {known}": "未知设置 {name!r}：已知的有 {known}",
        "waited {time} for an answer": "已等待回答 {time}",
        "waiting for a GPU": "正在等待空闲的 GPU",
        "weight= needs a number from 0 to {most:g}, not {value!r}": "weight= 需要 0 到 {most:g} 的数字，而不是 {value!r}",
        "with the plan": "按规划",
        "with the plan and one more GPU, {room} GB for models": "按规划并再加一块 GPU（{room} GB 可用于模型）",
        "write it as `alias = model, model [condition, condition]`": "请写成 `alias = model, model [condition, condition]`",
        "write it as `gpu0 http://gpu0:11434 slots=2`: a name, an address, settings": "请写成 `gpu0 http://gpu0:11434 slots=2`：名称、地址、设置",
        "write it as `llama3:8b = Mon-Fri 07:30-17:00`: a model, an equals sign, hours": "请写成 `llama3:8b = Mon-Fri 07:30-17:00`：模型、等号、时段",
        "you are next": "下一个就是您",
        "you may not use {model}": "您无权使用 {model}",
        "zone={name} is unknown: write it as Europe/Berlin or Asia/Shanghai": "未知时区 zone={name}：请写成 Europe/Berlin 或 Asia/Shanghai",
        "{alias!r} is more than one name: give each alias a row of its own": "{alias!r} 不止一个名称：请为每个别名单独写一行",
        "{beginning!r}… has {count} characters, and a model id has at most {limit}": "{beginning!r}… 有 {count} 个字符，而模型 ID 最多 {limit} 个",
        "{condition!r} is the second condition of its kind: put both into one": "{condition!r} 是同类的第二个条件：请合并为一个",
        "{count} chats of the router's record": "路由器记录中的 {count} 次对话",
        "{count} models are named, and at most {limit} are tried": "写了 {count} 个模型，而最多尝试 {limit} 个",
        "{count} of its models are passed over: {base}/models gives them no id": "略过了它的 {count} 个模型：{base}/models 没有给出它们的 id",
        "{day!r} is not a day: write Mon, Tue, Wed, Thu, Fri, Sat, Sun or two with a dash": "{day!r} 不是星期：请写 Mon、Tue、Wed、Thu、Fri、Sat、Sun，或用短横线连接两个",
        "{depth} levels and {count} parts and values": "{depth} 层以及 {count} 个部分和值",
        "{field} {reason}": "{field} {reason}",
        "{minutes} min": "{minutes} 分钟",
        "{model} has a row already: put all its hours into that one, with commas": "{model} 已有一行：请把它的所有时段写在那一行，用逗号分隔",
        "{model} is not installed": "未安装 {model}",
        "{name!r} cannot be a name: use up to 64 letters, digits, dots, dashes, underscores": "{name!r} 不能作为名称：请使用最多 64 个字母、数字、点、连字符和下划线",
        "{name!r} has a space in it: separate models with commas, conditions go in [ ]": "{name!r} 中有空格：模型之间用逗号分隔，条件写在 [ ] 中",
        "{name!r} has an invisible character in it: type the name again": "{name!r} 中有不可见字符：请重新输入该名称",
        "{name!r} has two stars: one can stand for the text of the alias's first star": "{name!r} 有两个星号：只能用一个代表别名第一个星号的文本",
        "{name} has no effect here: {why}. Leave it out": "{name} 在这里不起作用：{why}。请去掉",
        "{name} is empty: leave it out": "{name} 为空：请去掉",
        "{name} is not known to this version of redis-py for a cluster: leave it out": "此版本的 redis-py 在集群中不支持 {name}：请去掉",
        "{name} is set twice": "{name} 设置了两次",
        "{name} is {fixed} here, and nothing else: leave it out": "{name} 在这里只能是 {fixed}：请去掉",
        "{name} needs 1.2 or 1.3": "{name} 需要 1.2 或 1.3",
        "{name} needs a whole number": "{name} 需要整数",
        "{name} needs none, optional or required": "{name} 需要 none、optional 或 required",
        "{name} needs true or false": "{name} 需要 true 或 false",
        "{name}= is set twice": "{name}= 设置了两次",
        "{nodes} failed in the same way ({why}): change this request, as it is the likely reason": "{nodes} 以同样的方式出错（{why}）：很可能是请求本身的问题，请修改请求",
        "{node} ({fault})": "{node}（{fault}）",
        "{node} failed": "节点 {node} 出错",
        "{node} failed in the middle of this answer ({reason}): it is incomplete, regenerate it and another node answers": "{node} 在回答过程中出错（{reason}）：回答不完整，请重新生成，由其他节点回答",
        "{node} has {model} in memory": "节点 {node} 的显存中已有 {model}",
        "{node} is loading the model": "节点 {node} 正在加载模型",
        "{node} loads {model}": "节点 {node} 需要加载 {model}",
        "{node} passes this on to {model}": "节点 {node} 将请求转给 {model}",
        "{node}: its memory is not known. Add `memory: 24GB` (in the valve: `memory=24GB`) to its row, or start gpu_agent.py there.": "{node}：其显存未知。请在其配置行中添加 `memory: 24GB`（在配置项中：`memory=24GB`），或在那里启动 gpu_agent.py。",
        "{number} ahead of you": "前面还有 {number} 个请求",
        "{option} is for TLS: begin the URL with {beginning}": "{option} 用于 TLS：URL 请以 {beginning} 开头",
        "{percent} % of the prompt is cached there": "提示词的 {percent}% 已在该节点缓存",
        "{plain} (its connection signs in by {auth}, with a token of the user who asks: let the gateway list models without one, or use bearer)": "{plain}（其连接以 {auth} 登录，使用提问用户的令牌：请让网关无需令牌即可列出模型，或使用 bearer）",
        "{reason}: {said}": "{reason}：{said}",
        "{seconds} s": "{seconds} 秒",
        "{setting} is for OpenAI-compatible servers: add kind=openai, or leave it out": "{setting} 用于 OpenAI 兼容服务器：请添加 kind=openai，或去掉",
        "{setting}= needs a whole number from {least} to {most}, not {value!r}": "{setting}= 需要 {least} 到 {most} 的整数，而不是 {value!r}",
        "{time} of about {usual}": "已用 {time}，共约 {usual}",
        "{value!r} does not select pods: write it as k8s://NAMESPACE/app=ollama:11434": "{value!r} 没有选择 pod：请写成 k8s://NAMESPACE/app=ollama:11434",
        "{value!r} has something after the path: write it as http://gpu0:11434": "{value!r} 在路径之后还有内容：请写成 http://gpu0:11434",
        "{value!r} is no address: write it as http://gpu0:11434": "{value!r} 不是地址：请写成 http://gpu0:11434",
        "{value!r} is no name of a service: write it as dns+srv://_ollama._tcp.example.org": "{value!r} 不是服务名称：请写成 dns+srv://_ollama._tcp.example.org",
        "{written!r} cannot be read: write hours as Mon-Fri 07:30-17:00, or 07:30-17:00": "无法读取 {written!r}：时段请写成 Mon-Fri 07:30-17:00 或 07:30-17:00",
        "{written!r} is not a time: write it as 07:30, at most 24:00": "{written!r} 不是时间：请写成 07:30，最大 24:00",
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


def error_code(error: Exception) -> str:
    """What programs tell errors apart by, such as `audio_too_large`."""
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


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
NOT_ANSWERING = "does not answer"


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


class NodeCertificateError(NodeUnreachableError):
    """The node is there, but no TLS came about: its certificate is not trusted, or it speaks no TLS."""

    def __init__(self, node: str, said: str) -> None:
        super().__init__(node, said)
        self.reason = message(
            "has a certificate that is not trusted, or speaks no TLS (for one that you have signed yourself "
            "set AIOHTTP_CLIENT_SSL_CERT_FILE, or SSL_CERT_FILE, to your CA where this runs)"
        )


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


class NodeFaultError(RetryableNodeError):
    """The node failed, sent what is no answer, or hung up."""


class NodeGoneError(RetryableNodeError):
    """The node has stopped answering at all while a request was there."""

    def __init__(self, node: str) -> None:
        super().__init__(node, message("has stopped answering"))


class WrongModelError(RetryableNodeError):
    """The node answers with another model than it was asked for.

    Attributes:
        answered: the name in its answer.
    """

    def __init__(self, node: str, asked: str, answered: str) -> None:
        reason = message(
            "answers with {answered!r} though it was asked for {asked!r}", answered=answered, asked=asked
        )
        super().__init__(node, reason)
        self.answered = answered


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

# Type of a part → the field with its text.
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
IMAGE_PARTS = frozenset({"image_url", "input_image", "image"})
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")  # engines' three names for one thing
# `redacted_thinking`, `reasoning.encrypted`, `thought_signature`: any type with one of these words in it.
_THOUGHT_WORDS = ("thinking", "reasoning", "thought")
_MARKS = frozenset(
    {"summary_text", "cache_point", "cachepoint", "step-start", "step-finish", "item_reference"}
)
# A call of a tool, which OpenAI has in `tool_calls`; some clients send it there and in the content too.
_CALL_PARTS = frozenset({"tool_use", "tool_call", "function_call"})


def message_parts(message: Mapping[str, Any], field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each part of a message's content that is meant for a model, with its place for error messages.

    Text becomes `{"type": "text", "text": …}` and an image `{"type": "image_url", "image_url": {"url": …}}`.
    Other types are passed on as they are.

    Args:
        message: of an OpenAI chat body.
        field: where it stands, such as `messages[2]`.

    Raises:
        ChatBodyError: the content is not of its form.
    """
    content, field = message.get("content"), f"{field}.content"
    if content is None:
        return
    if isinstance(content, str):
        yield field, {"type": "text", "text": content}
        return
    for number, given in enumerate(list_in(content, field)):
        place = f"{field}[{number}]"
        part = {"type": "text", "text": given} if isinstance(given, str) else object_in(given, place)
        kind = "text" if "type" not in part and "text" in part else text_in(part.get("type"), f"{place}.type")
        if not _is_for_no_model(kind) and not (kind in _CALL_PARTS and message.get("tool_calls")):
            yield place, _plain_part(part, kind, place)


def _is_for_no_model(kind: str) -> bool:
    lowered = kind.lower()
    return lowered in _MARKS or any(word in lowered for word in _THOUGHT_WORDS)


def _plain_part(part: Mapping[str, Any], kind: str, field: str) -> Mapping[str, Any]:
    if kind in _TEXT_PARTS:
        text = text_in(part.get(_TEXT_PARTS[kind]), f"{field}.{_TEXT_PARTS[kind]}")
        return part if kind == part.get("type") == "text" else {"type": "text", "text": text}
    if kind not in IMAGE_PARTS:
        return part
    given = part.get("image_url")
    if isinstance(given, Mapping):
        text_in(given.get("url"), f"{field}.image_url")
        return part if kind == "image_url" else {"type": "image_url", "image_url": given}
    address = _image_address(part) if kind == "image" and given is None else given
    return {"type": "image_url", "image_url": {"url": text_in(address, f"{field}.image_url")}}


def _image_address(part: Mapping[str, Any]) -> object:
    """The address in an `image` part: Anthropic's has it in `source`, LangChain's has it itself."""
    source = part.get("source")
    source = source if isinstance(source, Mapping) else part
    data = next((source[name] for name in ("data", "base64") if isinstance(source.get(name), str)), None)
    if data is None:
        return source.get("url", part.get("image"))
    kind = source.get("media_type") or source.get("mime_type") or "image/png"
    return f"data:{kind};base64,{data}"


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
DEFAULT_REGISTRY, DEFAULT_NAMESPACE = "registry.ollama.ai/", "library/"  # may be left out of a name

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


def is_same_model(asked: str, answered: str) -> bool:
    """Whether a name in an Ollama's answer is the one that was asked for, in any of its spellings."""
    return _bare(asked) == _bare(answered)


def _bare(name: str) -> str:
    return _whole(name).lower().removeprefix(DEFAULT_REGISTRY).removeprefix(DEFAULT_NAMESPACE)


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


# --- ollama_pack.fit.memory ---
# How much memory a model takes while it runs: a pure function of its shape and of what it is loaded with.
#
#     weights    the bytes of the tensors that go where the layers go, as the file has them
#     KV cache   for each attention layer: slots · n · (key width · b_K + value width · b_V)
#                n = context, or on a layer with a sliding window min(context, window + batch)
#                width = KV heads · head size;  b = 2 (f16), 34/32 (q8_0) or 18/32 (q4_0) bytes
#     state      for each recurrent layer: slots · (convolution + state) · 4 bytes
#     projector  the bytes of the vision or audio encoder's tensors
#     buffers    what a batch needs while it is evaluated: 4 · batch · its widest rows, and attention masks
#
# Three programs run models, and count differently:
#
#     ollama     Ollama's own engine, for newer architectures. It counts the token table, too, keeps more than
#                the window of some, and the value of latent attention a second time.
#     runner     llama.cpp inside Ollama, for the others. Ollama estimates its buffers, and none on a CPU.
#     llama.cpp  its server, which the newest Ollamas start; the logits of a batch stay outside the GPU.
#
# Sources: Ollama 0.17.4 (fs/ggml/ggml.go `GraphSize`, llm/server.go), llama.cpp (llama-hparams.cpp,
# llama-kv-cache.cpp), and what a real Ollama reports. Not counted: what a GPU's driver takes for each process,
# 0.3 to 0.5 GB; `DRIVER_BYTES` is for plans.

CacheType = Literal["f16", "q8_0", "q4_0"]
Engine = Literal["ollama", "runner", "llama.cpp"]

# Bytes for each value of the cache: blocks of 32 values have a scale of two bytes.
CACHE_BYTES: dict[str, float] = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
_ROUND_BYTES = {**CACHE_BYTES, "q8_0": 1.0, "q4_0": 0.5}  # as Ollama counts them for its llama.cpp
BATCH = 512  # tokens that are evaluated at once: Ollama's `num_batch`
DRIVER_BYTES = 400 * 2**20  # of GPU memory, for each process that computes there
_PADDING = 256  # tokens; caches hold a multiple of this
# The architectures that Ollama's own engine runs (`OllamaEngineRequired`), and those of them that it runs
# without flash attention unless OLLAMA_FLASH_ATTENTION=1.
_OWN_ENGINE = frozenset({
    "bert", "deepseek2", "deepseekocr", "gemma3", "gemma3n", "gemma4", "gptoss", "gpt-oss", "laguna",
    "llama4", "mistral3", "mllama", "nemotron_h", "nemotron_h_moe", "nemotron_h_omni", "nomic-bert",
    "olmo3", "qwen25vl", "qwen3", "qwen3moe", "qwen35", "qwen35moe", "qwen3next", "qwen3vl",
    "qwen3vlmoe", "glm4moelite", "glmocr", "lfm2", "lfm2moe",
})  # fmt: skip
# Tokens that it keeps on layers with a window, where those are more: all, for Llama 4.
_OWN_WINDOWS = {"gemma4": 4096, "gptoss": 4096, "gpt-oss": 4096, "llama4": 2**40}
_WITHOUT_FLASH = frozenset({"deepseek2", "deepseekocr", "gemma3n", "llama4", "mllama", "qwen25vl"})


@dataclass(frozen=True, slots=True)
class LayerCache:
    """What one layer keeps of what it has read.

    Attributes:
        key, value: numbers for each token; 0: it is no attention layer.
        latent: of the key, those that are the value as well: Ollama's own engine keeps them twice.
        window: tokens that it looks back at most; 0: all of the context.
        state: numbers that it keeps for each slot, however long the prompt is.
    """

    key: int = 0
    value: int = 0
    latent: int = 0
    window: int = 0
    state: int = 0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides how much memory it takes. Sizes are in bytes.

    Attributes:
        architecture: as its metadata names it.
        weights: the layers and the output, which is the token table where the model has no other.
        token_table: the table of token embeddings, which is only looked up and stays with the CPU.
        projector: its vision or audio encoder.
        embedding: numbers for each token between the layers.
        feed_forward: the most numbers for each token inside a layer.
        vocabulary: how many tokens it knows.
        heads: query heads of its widest layer.
        head_size: numbers in a key.
        layers: what its layers cache, and how many there are of each kind.
        longest: the most context that it is made for, in tokens; 0: unknown.
        exact: made from the tensors; otherwise from the metadata or from the size alone.
    """

    architecture: str = ""
    weights: int = 0
    token_table: int = 0
    projector: int = 0
    embedding: int = 0
    feed_forward: int = 0
    vocabulary: int = 0
    heads: int = 0
    head_size: int = 0
    layers: tuple[tuple[LayerCache, int], ...] = field(default=(), repr=False)
    longest: int = 0
    exact: bool = False


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a model is loaded with.

    Attributes:
        context: tokens for each slot.
        slots: requests that it answers at once (`OLLAMA_NUM_PARALLEL`).
        cache: the type of the KV cache (`OLLAMA_KV_CACHE_TYPE`).
        batch: tokens that are evaluated at once.
        flash: with flash attention, whose buffers do not grow with the heads; None: as Ollama decides.
        engine: which program runs it; None: the one that Ollama 0.17 takes for its architecture.
        on_gpu: it runs on a GPU.
    """

    context: int
    slots: int = 1
    cache: CacheType = "f16"
    batch: int = BATCH
    flash: bool | None = None
    engine: Engine | None = None
    on_gpu: bool = True


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes, by what they are for."""

    weights: int
    cache: int
    state: int
    projector: int
    buffers: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.state + self.projector + self.buffers


def memory_needed(shape: ModelShape, options: RunOptions) -> MemoryNeed:
    """The memory that a model takes while it runs with these options."""
    own = "ollama" if shape.architecture in _OWN_ENGINE else "runner"
    engine = options.engine or own
    context = min(options.context, shape.longest) if shape.longest else options.context
    batch = max(1, min(options.batch, context))
    whole = options.slots * context
    if engine != "runner":
        whole = _padded(whole)
    per_value = (_ROUND_BYTES if engine == "runner" else CACHE_BYTES)[options.cache]
    cache, state = 0.0, 0
    for layer, count in shape.layers:
        window, width = layer.window, layer.key + layer.value
        if engine == "ollama":
            window, width = max(window, _OWN_WINDOWS.get(shape.architecture, 0)), width + layer.latent
        kept = min(whole, _padded(options.slots * window + batch)) if layer.window else whole
        cache += count * kept * width * per_value
        state += count * options.slots * layer.state * 4
    weights = shape.weights + (shape.token_table if engine == "ollama" else 0)
    buffers = _buffers(shape, options, engine, whole, batch)
    return MemoryNeed(weights, round(cache), state, shape.projector, buffers)


def _padded(tokens: int) -> int:
    return -(-tokens // _PADDING) * _PADDING


def _buffers(shape: ModelShape, options: RunOptions, engine: str, context: int, batch: int) -> int:
    """The widest moment of a batch, over the context of all slots."""
    if engine == "runner":
        logits = shape.embedding + shape.vocabulary
        attention = 1 + 4 * shape.embedding + context * (1 + shape.heads)
        return 4 * batch * max(attention, logits) if options.on_gpu else 0
    flash = shape.architecture not in _WITHOUT_FLASH if options.flash is None else options.flash
    feeding = 3 * shape.feed_forward + 3 * shape.embedding
    attention = 2 * shape.heads * shape.head_size + 2 * shape.embedding + shape.embedding * flash
    scores = 0 if flash else context * shape.heads
    masks = (6 if engine == "llama.cpp" else 2 * flash) * batch * context if shape.heads else 0
    row = 4 * batch * shape.embedding
    gap = row if engine == "ollama" and masks > 2 * row else 0  # as seen: a mask too large for a hole
    return 4 * batch * max(feeding, attention + scores) + masks + gap


# --- ollama_pack.fit.shapes ---
# Shapes of models: from metadata and tensors, or from as little as a number of parameters.

# GGML's types of tensors: values in a block, and bytes of a block.
TENSOR_TYPES: dict[str, tuple[int, int]] = {
    "F64": (1, 8),
    "I64": (1, 8),
    "F32": (1, 4),
    "I32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "I16": (1, 2),
    "I8": (1, 1),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q8_1": (32, 36),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "Q8_K": (256, 292),
    "IQ1_S": (256, 50),
    "IQ1_M": (256, 56),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
    "MXFP4": (32, 17),
    "NVFP4": (64, 36),
    "Q1_0": (128, 18),
}
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
MOST_LAYERS = 4096
_MOST = 2**40  # what a number of the metadata may be

# Of the layers of these architectures every so many look at all of the context, the others at a window; the
# full one is the last of each group, or the first. `sliding_window` counts only for these, unless the
# metadata has a pattern of its own. As in llama.cpp's `set_swa_pattern`.
_PERIODS: dict[str, int] = {
    "afmoe": 4,
    "cohere2": 4,
    "exaone-moe": 4,
    "gemma-embedding": 6,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "gptoss": 2,
    "llama4": 4,
    "olmo2": 4,
    "plamo3": 8,
}
_FULL_FIRST: dict[str, int] = {"cohere2moe": 4, "laguna": 4, "modern-bert": 3, "smallthinker": 4}
_WINDOWS: dict[str, int] = {"exaone-moe": 128, "gemma2": 4096, "llama4": 8192, "smallthinker": 4096}
_INTERVALS: dict[str, int] = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}  # one in so many attends
_OWN_CACHES: dict[str, int] = {"gemma3n": 20}  # so many leading layers cache; the others read those

_BLOCK = re.compile(r"(?:blk|layers?)\.(\d+)\.(.+)")
_PROJECTOR = re.compile(r"(?:v|mm|a|vision_tower|multi_modal_projector)\.")
# `30b-a3b` has 30 billion parameters, of which each token uses 3. Of Gemma's `e4b` as many again are tables.
_PARAMETERS = re.compile(
    r"(?<![0-9.])(?<![^a-z]a)((?<![a-z])e)?(\d+(?:\.\d+)?)\s*([KMBT])(?![a-z0-9])", re.IGNORECASE
)
_SCALES = {"B": 1e9, "T": 1e12, "M": 1e6, "K": 1e3}  # names may have tokens in K, M and T besides
_LEVEL_NUMBER = re.compile(r"(?:UD-)?(?:I?Q|TQ|INT|FP|MXFP|NVFP)(\d)")
_OTHER_LEVELS = {"FP16": "F16", "FP32": "F32"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a model: its name, its type as GGML calls it, and its dimensions, the innermost first."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        values, size = TENSOR_TYPES.get(self.type.upper(), (1, 2))
        return self.values // values * size

    @property
    def values(self) -> int:
        return prod(self.shape)

    @property
    def is_known(self) -> bool:
        """Whether its type tells its bytes. Ollama up to 0.17 calls all of IQ4_XS and the like "unknown"."""
        return self.type.upper() in TENSOR_TYPES


class _Metadata:
    """The metadata of one architecture. Values that are missing or of an odd type have their default."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.architecture = str(values.get("general.architecture") or "")
        self._values = values

    def get(self, name: str) -> Any:
        return self._values.get(f"{self.architecture}.{name}")

    def number(self, name: str, default: int = 0) -> int:
        """A number, or the largest of a list of them."""
        value = self.get(name)
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = max((one for one in value if isinstance(one, int)), default=None)
        return value if isinstance(value, int) and 0 <= value < _MOST else default

    def each(self, name: str, layers: int, default: int) -> list[int]:
        """A number for each layer, whether the metadata has one for all or a list."""
        value = self.get(name)
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == layers:
            return [one if isinstance(one, int) and 0 <= one < _MOST else default for one in value]
        return [self.number(name, default)] * layers


def shape_of(metadata: Mapping[str, Any], tensors: Iterable[Tensor] = (), size: int = 0) -> ModelShape:
    """The shape of a model that is there.

    Args:
        metadata: of its GGUF header, or `model_info` of `/api/show`. Long lists may be empty in that.
        tensors: of the same; empty: an old Ollama did not list them.
        size: bytes of its files, for those without tensors or with tensors of unknown types.
    """
    known = _Metadata(metadata)
    listed = [one for one in tensors if one.shape and min(one.shape) > 0]
    per_value = _unknown_bytes(listed, size)
    blocks: dict[int, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    beside: dict[str, int] = {}  # bytes of the same
    weights = projector = 0
    for tensor in listed:
        taken = tensor.bytes if tensor.is_known else round(tensor.values * per_value)
        if _PROJECTOR.match(tensor.name):
            projector += taken
        elif found := _BLOCK.match(tensor.name):
            blocks.setdefault(int(found[1]), {})[found[2]] = tensor
            weights += taken
        else:
            rest[tensor.name] = tensor
            beside[tensor.name] = taken
    count = min(known.number("block_count") or len(blocks), MOST_LAYERS)
    table = rest.get("token_embd.weight")
    looked_up = sum(taken for name, taken in beside.items() if name.startswith(("token_", "position_")))
    tied = table is not None and "output.weight" not in rest
    weights += sum(beside.values()) - (0 if tied else looked_up)
    embedding = known.number("embedding_length")
    heads = known.number("attention.head_count")
    head_size = known.number("attention.key_length") or (embedding // heads if heads else 0)
    return ModelShape(
        architecture=known.architecture,
        weights=weights if listed else size,
        token_table=looked_up,
        projector=projector,
        embedding=embedding,
        feed_forward=_feed_forward(known),
        vocabulary=_vocabulary(known, metadata, table),
        heads=heads,
        head_size=head_size,
        layers=tuple(Counter(_layers(known, blocks, count, head_size)).items()),
        longest=known.number("context_length"),
        exact=bool(listed),
    )


def _unknown_bytes(tensors: Iterable[Tensor], size: int) -> float:
    """Bytes of each value in tensors of unknown types: what the file has besides the others."""
    known = sum(one.bytes for one in tensors if one.is_known)
    values = sum(one.values for one in tensors if not one.is_known)
    return min(2.0, (size - known) / values) if values and size > known else 2.0


def _vocabulary(known: _Metadata, metadata: Mapping[str, Any], table: Tensor | None) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if table is not None and len(table.shape) > 1:
        return table.shape[-1]
    told = len(tokens) if isinstance(tokens, Sequence) else 0
    return known.number("vocab_size") or told


def _feed_forward(known: _Metadata) -> int:
    """The widest rows: of a mixture those of the experts that are used at once."""
    used, expert = known.number("expert_used_count"), known.number("expert_feed_forward_length")
    shared = known.number("expert_shared_feed_forward_length")
    dense = known.number("feed_forward_length")
    if used:
        return max(used * (expert or dense) + shared, 0)
    return dense


def _layers(
    known: _Metadata, blocks: Mapping[int, Mapping[str, Tensor]], count: int, head_size: int
) -> list[LayerCache]:
    """What each layer caches: attention layers a key and a value for each token, recurrent ones a state."""
    if known.get("attention.causal") is False or known.get("pooling_type") is not None:
        return []  # it makes vectors, and keeps nothing
    windows = _windows(known, count)
    kv_heads = known.each("attention.head_count_kv", count, known.number("attention.head_count"))
    value_size = known.number("attention.value_length") or head_size
    state, latent = _state(known), known.number("attention.kv_lora_rank")
    interval = known.number("full_attention_interval", _INTERVALS.get(known.architecture, 0))
    caching = known.number("attention.shared_kv_layers")
    caching = count - caching if caching else _OWN_CACHES.get(known.architecture, count)
    layers = []
    for number in range(count):
        tensors = blocks.get(number, {})
        attends = _attends(known, tensors, kv_heads[number], number, interval)
        key, value = _widths(known, tensors, kv_heads[number], head_size, value_size, windows[number])
        layers.append(
            LayerCache(
                key=key if attends and number < caching else 0,
                value=value if attends and number < caching else 0,
                latent=latent if attends and not value else 0,
                window=windows[number] if attends else 0,
                state=state if _recurs(known, tensors, attends=attends, interval=interval) else 0,
            )
        )
    return layers


def _attends(known: _Metadata, tensors: Mapping[str, Tensor], heads: int, number: int, interval: int) -> bool:
    """Whether a layer keeps keys and values: by its tensors, or where there are none by the metadata."""
    if known.architecture.startswith(("rwkv", "arwkv", "mamba")):
        return False
    if interval > 1:
        return (number + 1) % interval == 0
    if tensors:
        if not heads and isinstance(known.get("attention.head_count_kv"), Sequence):
            return False  # Kimi Linear's recurrent layers have keys, too
        names = ("attn_k.weight", "attn_qkv.weight", "attn_kv_a_mqa.weight", "attn_kv_b.weight")
        return any(name in tensors for name in names)
    return heads > 0


def _recurs(known: _Metadata, tensors: Mapping[str, Tensor], *, attends: bool, interval: int) -> bool:
    if interval > 1:
        return not attends
    if tensors:
        return any(name.startswith(("ssm_", "shortconv.", "time_mix_")) for name in tensors)
    return known.architecture == "falcon-h1" or not attends


def _widths(  # noqa: PLR0913, PLR0917 - each is a fact of its own
    known: _Metadata, tensors: Mapping[str, Tensor], heads: int, key_size: int, value_size: int, window: int
) -> tuple[int, int]:
    """Numbers in the key and in the value of one token."""
    key, value = tensors.get("attn_k.weight"), tensors.get("attn_v.weight")
    if key is not None:
        return key.shape[-1], (value or key).shape[-1]
    if heads == 1 and known.number("attention.kv_lora_rank"):
        return key_size, 0  # latent attention: the value is a part of the key
    if window:
        key_size = known.number("attention.key_length_swa") or key_size
        value_size = known.number("attention.value_length_swa") or value_size
    return heads * key_size, heads * value_size


def _windows(known: _Metadata, count: int) -> list[int]:
    """The window of each layer; 0: it looks at all of the context."""
    name, pattern = known.architecture, known.get("attention.sliding_window_pattern")
    window = known.number("attention.sliding_window") or _WINDOWS.get(name, 0)
    if isinstance(pattern, Sequence) and len(pattern) == count:
        return [window if one else 0 for one in pattern]
    first = _FULL_FIRST.get(name, 0)
    period = pattern if isinstance(pattern, int) and pattern > 0 else _PERIODS.get(name, first)
    if not window or period < 2:  # noqa: PLR2004 - each layer looks at all
        return [0] * count
    full = 0 if first else period - 1
    return [0 if number % period == full else window for number in range(count)]


def _state(known: _Metadata) -> int:
    """Numbers that a recurrent layer keeps for each slot: its convolution's and its own."""
    embedding = known.number("embedding_length")
    if head := known.number("wkv.head_size"):
        shifts = known.number("token_shift_count") or 2
        return shifts * embedding + head * embedding
    if short := known.number("shortconv.l_cache"):
        return (short - 1) * embedding
    if head := known.number("kda.head_dim"):
        inner = head * known.number("attention.head_count")
        return 3 * max(0, known.number("ssm.conv_kernel") - 1) * inner + head * inner
    kernel, inner = known.number("ssm.conv_kernel"), known.number("ssm.inner_size")
    size, groups = known.number("ssm.state_size"), known.number("ssm.group_count")
    convolution = (kernel - 1) * (inner + 2 * groups * size) if kernel else 0
    return convolution + size * inner


# How wide models of so many billion parameters usually are: layers, KV width (keys and values), embedding,
# feed-forward and vocabulary, as Llama 3 and Qwen 3 have them.
_USUAL = (
    (1.0, 16, 1024, 2048, 8192, 128_000),
    (3.0, 28, 2048, 3072, 8192, 128_000),
    (8.0, 32, 2048, 4096, 14_336, 128_000),
    (14.0, 40, 2048, 5120, 17_408, 152_000),
    (32.0, 64, 2048, 5120, 25_600, 152_000),
    (70.0, 80, 2048, 8192, 28_672, 128_000),
    (240.0, 94, 1024, 4096, 12_288, 152_000),
    (2000.0, 61, 1152, 7168, 18_432, 129_000),
)


def planned_shape(parameters: float, bits: float) -> ModelShape:
    """The shape that a model of so many parameters usually has: for one that nobody has pulled yet."""
    _, layers, width, embedding, feed_forward, vocabulary = next(
        (row for row in _USUAL if parameters <= row[0] * 1.5e9), _USUAL[-1]
    )
    return ModelShape(
        weights=round(parameters * bits / 8),
        embedding=embedding,
        feed_forward=feed_forward,
        vocabulary=vocabulary,
        heads=embedding // 128,
        head_size=128,
        layers=((LayerCache(width // 2, width // 2), layers),),
    )


def in_other_bits(shape: ModelShape, bits: float, to_bits: float) -> ModelShape:
    """The same model in another quantization: only the weights change."""
    scale = to_bits / bits if bits else 1.0
    weights, table = round(shape.weights * scale), round(shape.token_table * scale)
    return replace(shape, weights=weights, token_table=table, exact=False)


def level_bits(level: str) -> float:
    """Bits of a weight in a quantization level; 0: it is not known."""
    name = level.upper()
    known = LEVEL_BITS.get(_OTHER_LEVELS.get(name, name))
    if known is not None:
        return known
    found = _LEVEL_NUMBER.match(name)
    return int(found[1]) + 0.5 if found else 0.0


def parameters_in(text: str) -> float:
    """The number of parameters in `8.0B`, `llama3:70b` or `qwen3:30b-a3b`; 0: there is none."""
    if mixture := re.search(r"(\d+)x(\d+(?:\.\d+)?)b", text, re.IGNORECASE):
        if mixture[2] == "17":  # Llama 4, where that is what each token uses: 16 experts are 109B, 128 400B
            return (67.4 + 2.6 * int(mixture[1])) * 1e9
        return int(mixture[1]) * float(mixture[2]) * 0.84e9  # the experts share what is not feed-forward
    found = _PARAMETERS.findall(text)
    for unit, scale in _SCALES.items():
        for effective, number, of in found:
            if of.upper() == unit:
                return float(number) * scale * (2 if effective else 1)
    return 0.0


# --- ollama_pack.fit.choose ---
# Which variant of a model a node takes: the best one that fits, next to what it has in memory.

LOSSLESS_BITS = 8.5  # with more, answers are no better and take longer
UNMEASURED_BITS = 5.0  # the most that is tried where nobody knows how much memory there is
_RESERVE = 0.02  # of a GPU's memory, that no model can have


@dataclass(frozen=True, slots=True)
class Variant:
    """One quantization of a model, on one node.

    Attributes:
        name: of the model.
        blob: its weights.
        bits: of a weight; 0: unknown.
        need: bytes of memory with the context that is asked for; 0: unknown.
    """

    name: str
    blob: str
    bits: float
    need: int


def usable_memory(total: int, gpus: int = 1) -> int:
    """The bytes of a node's memory that models can have: without what drivers and compute contexts take."""
    return max(0, round(total * (1 - _RESERVE)) - gpus * DRIVER_BYTES)


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


def best_variant(
    variants: Sequence[Variant], room: int, resident: Sequence[tuple[str, int]], *, measured: bool
) -> tuple[Variant, bool]:
    """The variant that a node should answer with, and whether it fits as far as is known.

    The best that fits next to what is in memory; else the best that fits when idle models make room; else the
    smallest, as all would be computed in part by the CPU.

    Args:
        variants: those that the node has, the best first.
        room: bytes that models can have in memory together.
        resident: weights and bytes of what is in memory.
        measured: `room` is known. If not, it is only what was seen: of the variants for which that is too
            little, a small one is taken.
    """
    in_memory = {blob for blob, _ in resident}
    for variant in variants:
        others = sum(size for blob, size in resident if blob != variant.blob)
        # One in memory may be there with less context, or in part on the CPU.
        is_there = variant.blob in in_memory and not (measured and variant.need > room)
        if is_there or (variant.need and variant.need + others <= room):
            return variant, True
    alone = [one for one in variants if one.need and one.need <= room]
    if alone:
        return alone[0], True
    if not measured:
        modest = [one for one in variants if 0 < one.bits <= UNMEASURED_BITS]
        if modest:
            return modest[0], True
    smallest = min(variants, key=lambda one: one.need or one.bits or float("inf"))
    return smallest, not (measured and smallest.need)


# --- ollama_pack.aliases.resolve ---
# Which model answers for a name: a pure function of the table, the request and the models that are there.


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


# --- ollama_pack.engines.model_ids ---
# Ids of models that clients can use: alias tables and addresses split at spaces, commas and the like.
#
# Those that `gpu_router` answers begin with its name, on Open WebUI and on the Pipelines server.

ROUTER = "gpu_router."
MAX_ID = 200  # Open WebUI takes 256 characters, the router's own prefix included

_UNFIT = re.compile(r"[^\w./:@+~-]+")


def usable_id(name: str) -> str:
    """The id under which a model is offered: its name, with dashes for what is unfit in an id."""
    fit = _UNFIT.sub("-", name).strip("-") if _UNFIT.search(name) else name
    return fit if 0 < len(fit) <= MAX_ID else f"{fit[: MAX_ID - 9]}-{_mark(name)}".lstrip("-")


def _mark(name: str) -> str:
    return sha256(name.encode(errors="replace")).hexdigest()[:8]


class ModelIds:
    """The ids under which the models of one node are offered, and the names by which it is asked for them."""

    def __init__(self) -> None:
        """No name is known yet."""
        self._names: dict[str, str] = {}
        self._ids: dict[str, str] = {}

    def learn(self, names: Iterable[str]) -> None:
        """These are the models now. Where two names give one id, the second gets a mark of its own."""
        self._names = {}
        for name in sorted(names, key=lambda name: (usable_id(name) != name, name)):
            fit = usable_id(name)
            self._names[fit if fit not in self._names else f"{fit}-{_mark(name)}"] = name
        self._ids = {name: fit for fit, name in self._names.items()}

    def offered(self, name: str) -> str:
        """The id for a name."""
        return self._ids.get(name) or usable_id(name)

    def real(self, fit: str) -> str:
        """The name for an id; one that is not known is a name already."""
        return self._names.get(fit, fit)


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
# What a runner is loaded with besides its context (Ollama's `api.Runner`): another value makes it load again.
RUNNER_OPTIONS = ("main_gpu", "num_batch", "num_gpu", "num_thread", "use_mmap")
# They say how a node runs a model, not what a chat wants. Ollama keeps some of them for those who ask later
# without any: after `num_gpu: 0` all run on the CPU, after `keep_alive: -1` the model stays for ever.
_MACHINE_OPTIONS = ("keep_alive", *RUNNER_OPTIONS)
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


def with_machine_options(body: Mapping[str, Any], *admins: Mapping[str, Any]) -> dict[str, Any]:
    """A plain user's body with the machine's options that admins have set, and with none of the user's own.

    Args:
        body: as it came.
        admins: parameters that admins have set, the most general first.
    """
    settings = {name: value for params in admins for name, value in flat_settings({"params": params}).items()}
    own = _without_machine_options(body)
    params = own.get("params")
    if isinstance(params, Mapping):
        params = _without_machine_options(params)
        custom = params.get("custom_params")
        more = {"custom_params": _without_machine_options(custom)} if isinstance(custom, Mapping) else {}
        own["params"] = params | more
    options = own.get("options")
    kept = {name: settings[name] for name in _MACHINE_OPTIONS if name in settings}
    if isinstance(options, Mapping):
        own["options"] = _without_machine_options(options) | kept
    elif kept and options is None:
        own["options"] = kept
    return own


def _without_machine_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _MACHINE_OPTIONS}


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


# --- ollama_pack.engines.ollama.to_openai ---
# What an Ollama says, as OpenAI's chat API says it. Nothing here raises: what has a wrong type is absent.
#
# Ollama leaves figures of zero and empty texts out of its JSON, so absent is a common value.

NANOSECONDS = 1_000_000_000
_FINISH_REASONS = {"length": "length"}  # all others, "load" and "unload" among them, are a plain end
_DURATIONS = ("total_duration", "load_duration")
_FIGURES = ("prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration")
_OPTIONAL_FIGURES = ("prompt_eval_cached_count",)  # since Ollama 0.33.3


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


def openai_message(line: Mapping[str, Any], head: ReplyHead, calls_before: int = 0) -> dict[str, Any]:
    """What a line says, without the role and without what is empty: a message, or the delta of a chunk.

    Args:
        line: a line of `/api/chat`.
        head: of the answer, for the ids of tool calls that have none.
        calls_before: number of tool calls in earlier lines.
    """
    message = line.get("message")
    if not isinstance(message, Mapping):
        return {}
    said: dict[str, Any] = {}
    if content := _text_or_none(message.get("content")):
        said["content"] = content
    if thinking := _text_or_none(message.get("thinking")):
        said["reasoning_content"] = thinking
    if calls := openai_calls(message.get("tool_calls"), head, calls_before):
        said["tool_calls"] = calls
    return said


def openai_calls(calls: object, head: ReplyHead, before: int = 0) -> list[dict[str, Any]]:
    """Tool calls with arguments as text, numbered on from those before: Ollama's own index may start anew."""
    if not isinstance(calls, list):
        return []
    given = (call for call in calls if isinstance(call, Mapping))
    return [_openai_call(call, number, head) for number, call in enumerate(given, start=before)]


def _openai_call(call: Mapping[str, Any], number: int, head: ReplyHead) -> dict[str, Any]:
    given = object_at(call, "function")
    arguments = given.get("arguments") or {}
    compact = (",", ":")
    text = (
        arguments
        if isinstance(arguments, str)
        else json.dumps(arguments, ensure_ascii=False, separators=compact)
    )
    return {
        "index": number,
        "id": _text_or_none(call.get("id")) or f"call_{head.id}_{number}",  # Ollama has ids since 0.12
        "type": "function",
        "function": {"name": _text_or_none(given.get("name")) or "", "arguments": text},
    }


def openai_logprobs(line: Mapping[str, Any]) -> dict[str, Any] | None:
    """Ollama's list of tokens with their probabilities, as OpenAI's clients read it."""
    found = line.get("logprobs")
    tokens = [token for token in found if isinstance(token, Mapping)] if isinstance(found, list) else []
    if not tokens:
        return None
    return {"content": [{"top_logprobs": [], **token} for token in tokens], "refusal": None}


def finish_reason(line: Mapping[str, Any], *, called: bool) -> str:
    """Why the answer ends; `called` tells whether tools are to be called, of which Ollama says "stop"."""
    reason = line.get("done_reason")
    return "tool_calls" if called else _FINISH_REASONS.get(reason if isinstance(reason, str) else "", "stop")


def openai_usage(line: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the last line, in every form that Open WebUI shows: tokens, rates, nanoseconds."""
    prompt, answer = _figure(line, "prompt_eval_count"), _figure(line, "eval_count")
    seconds = _figure(line, "total_duration") // NANOSECONDS
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "input_tokens": prompt,
        "output_tokens": answer,
        "response_token/s": _rate(answer, _figure(line, "eval_duration")),
        "prompt_token/s": _rate(prompt, _figure(line, "prompt_eval_duration")),
        **{name: _figure(line, name) for name in (*_DURATIONS, *_FIGURES)},
        **{name: _figure(line, name) for name in _OPTIONAL_FIGURES if name in line},
        "approximate_total": f"{seconds // 3600}h{seconds % 3600 // 60}m{seconds % 60}s",
        "completion_tokens_details": dict.fromkeys(
            ("reasoning_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"), 0
        ),
    }


def working_seconds(line: Mapping[str, Any]) -> float:
    """How long a node worked on an answer, without loading the model; 0 where it does not tell."""
    return max(0, _figure(line, "total_duration") - _figure(line, "load_duration")) / NANOSECONDS


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _figure(line: Mapping[str, Any], name: str) -> int:
    value = line.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _rate(tokens: int, nanoseconds: int) -> float | str:
    """Tokens a second; "N/A" is what Open WebUI shows where there is none."""
    return round(tokens * NANOSECONDS / nanoseconds, 2) if nanoseconds else "N/A"


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


# --- ollama_pack.engines.openai.request ---
# An OpenAI chat body as an OpenAI-compatible engine takes it, without Ollama's and Open WebUI's own fields.
#
# vLLM, SGLang and llama.cpp ignore what they do not know, stricter servers refuse it. So what is known not to
# be meant for an engine is left out, and the rest, such as `chat_template_kwargs`, goes along.

# What Open WebUI has in a body for itself, and what its settings hold that no engine is asked.
_OPEN_WEBUI_FIELDS = frozenset(
    {
        *("assistant_message_id", "automation_id", "background_tasks", "chat_id", "chat_variables"),
        *("compact_token_threshold", "features", "files", "filter_ids", "folder_id", "function_calling"),
        *("id", "message_id", "message_ids", "metadata", "model_controls", "model_item", "new_chat"),
        *("note_id", "params", "parent_id", "parent_message", "reasoning_tags"),
        *("regeneration_message_id", "regeneration_prompt", "session_id", "skill_ids"),
        *("stream_delta_chunk_size", "stream_response", "system", "task_id", "terminal_id"),
        *("tool_approval_mode", "tool_ids", "tool_servers", "user_message", "user_message_id"),
        "variables",
    }
)
# What a runner of Ollama is started with, and what else only Ollama knows.
_OLLAMA_FIELDS = frozenset(
    {
        *("f16_kv", "keep_alive", "logits_all", "low_vram", "main_gpu", "num_batch", "num_ctx"),
        *("num_gpu", "num_keep", "num_thread", "numa", "options", "penalize_newline", "shift"),
        *("truncate", "use_mlock", "use_mmap", "vocab_only"),
    }
)
# Set here, or read from elsewhere. `n`: one answer is what a chat shows.
_OWN_FIELDS = frozenset(
    {
        *("custom_params", "format", "logit_bias", "max_completion_tokens", "max_tokens", "messages"),
        *("model", "n", "num_predict", "stream", "stream_options", "think", "tool_choice", "tools"),
    }
)
_LEFT_OUT = _OPEN_WEBUI_FIELDS | _OLLAMA_FIELDS | _OWN_FIELDS
CACHE_KEY = "prompt_cache_key"  # OpenAI's: requests with the same one are likely to begin alike
_OF_TOOLS: Mapping[str, Any] = {"type": "text", "text": "Pictures from the tool results above:"}
_EFFORTS = frozenset({"low", "medium", "high"})


def request_to_engine(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body for `/v1/chat/completions`: streamed, and with the figures at the end.

    What Ollama's fields say goes along under OpenAI's names: `num_predict` as `max_tokens`, `format` as
    `response_format`, `think` as the `enable_thinking` that chat templates know, or as `reasoning_effort`.

    Args:
        body: an OpenAI chat body; Ollama's own fields in it are taken too, as Open WebUI mixes both.

    Raises:
        ChatBodyError: something in the body is not of its form.
    """
    settings = flat_settings(body)
    options = ollama_options(body)
    passed = {
        str(name): value
        for name, value in {**settings, **options}.items()
        if name not in _LEFT_OUT and not (name == "user" and isinstance(value, Mapping))
    }
    return {
        **passed,
        **_engine_penalty(options),
        **_engine_length(options),
        **_engine_bias(settings.get("logit_bias")),
        **_engine_format(settings),
        **_engine_thinking(settings),
        **_engine_tools(body),
        "model": text_in(body.get("model"), "model"),
        "messages": list(_engine_messages(body.get("messages"))),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def without_usage(request: Mapping[str, Any]) -> dict[str, Any]:
    """The same request for an engine that does not know `stream_options`."""
    return {name: value for name, value in request.items() if name != "stream_options"}


def _engine_penalty(options: Mapping[str, Any]) -> dict[str, float]:
    """llama.cpp has Ollama's name for it, vLLM and SGLang one of their own; each ignores the other's."""
    penalty = options.get("repeat_penalty")
    return {} if penalty is None else {"repetition_penalty": penalty}


def _engine_length(options: Mapping[str, Any]) -> dict[str, int]:
    """`max_tokens`: all engines know it, not all its newer name. Ollama's -1 is no limit."""
    length = options.get("num_predict", 0)
    return {"max_tokens": length} if length > 0 else {}


def _engine_bias(given: object) -> dict[str, dict[str, float]]:
    """`logit_bias`, which Open WebUI's settings have as text: `5432:100, 413:-100`."""
    if not isinstance(given, str):
        bias = object_in(given, "logit_bias")
        return {"logit_bias": dict(bias)} if bias else {}
    pairs = (pair.partition(":") for pair in given.strip().strip("{}").split(",") if pair.strip())
    bias = {token.strip().strip('"'): decimal_in(weight, "logit_bias") for token, _, weight in pairs}
    return {"logit_bias": bias} if bias else {}


def _engine_format(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`response_format` for Ollama's `format`, unless the body has it."""
    wanted = settings.get("format")
    if "response_format" in settings or not wanted:
        return {}
    if isinstance(wanted, str):
        if not wanted.strip().startswith(("{", "[")):
            return {"response_format": {"type": "json_object"}} if wanted == "json" else {}
        try:
            wanted = json_in(wanted)
        except ValueError as error:
            raise ChatBodyError("format", message("is neither json nor a JSON schema")) from error
    schema = {"name": "answer", "schema": object_in(wanted, "format")}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _engine_thinking(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What Ollama's `think` asks for. A template that has no such switch ignores it."""
    asked = settings.get("think")
    word = asked.strip().lower() if isinstance(asked, str) else asked
    if isinstance(word, str) and word in _EFFORTS:
        return {"reasoning_effort": word}
    switch = {"true": True, "false": False}.get(word, word) if isinstance(word, str) else word
    if not isinstance(switch, bool):
        return {}
    given = object_in(settings.get("chat_template_kwargs"), "chat_template_kwargs")
    return {"chat_template_kwargs": {"enable_thinking": switch, **given}}


def _engine_tools(body: Mapping[str, Any]) -> dict[str, Any]:
    """Tools, where there are any: an empty list, or a choice without tools, is refused by vLLM and OpenAI."""
    offered = offered_tools(body)
    if not offered.tools:
        return {}
    choice = {"type": "function", "function": {"name": offered.name}} if offered.name else offered.mode
    return {"tools": offered.tools, **({} if choice is None else {"tool_choice": choice})}


def _engine_messages(value: object) -> Iterator[dict[str, Any]]:
    """The conversation, in what all chat templates know.

    Pictures have no place in a tool's result there: they come after the results, as if the user showed them.
    """
    pictures: list[Mapping[str, Any]] = []
    for number, turn in enumerate(objects_in(value, "messages")):
        made, found = _engine_message(turn, f"messages[{number}]")
        if pictures and made["role"] == "user":
            said = made.get("content")
            own = said if isinstance(said, list) else [{"type": "text", "text": said or ""}]
            made["content"] = [_OF_TOOLS, *pictures, *own]
        elif pictures and made["role"] != "tool":
            yield {"role": "user", "content": [_OF_TOOLS, *pictures]}
        if made["role"] != "tool":
            pictures = []
        pictures += found
        yield made
    if pictures:
        yield {"role": "user", "content": [_OF_TOOLS, *pictures]}


def _engine_message(
    turn: Mapping[str, Any], field: str
) -> tuple[dict[str, Any], Iterable[Mapping[str, Any]]]:
    """A message, and the pictures in a tool's result."""
    role = text_in(turn.get("role"), f"{field}.role")
    made = {**turn, "role": "system" if role == "developer" else role}
    parts = []
    if role == "tool" or isinstance(turn.get("content"), list):
        parts = [part for _, part in message_parts(turn, field)]
        made["content"] = parts or ""
    if role == "tool":
        made["content"] = "".join(part["text"] for part in parts if part["type"] == "text")
    if "tool_calls" in turn:
        calls = objects_in(turn["tool_calls"], f"{field}.tool_calls")
        made["tool_calls"] = [
            _engine_call(call, f"{field}.tool_calls[{place}]") for place, call in enumerate(calls)
        ]
        if not calls:
            del made["tool_calls"]
    return made, [part for part in parts if role == "tool" and part["type"] == "image_url"]


def _engine_call(call: Mapping[str, Any], field: str) -> dict[str, Any]:
    """A call of an earlier answer, its arguments as the text of an object: engines parse it."""
    function = object_in(call.get("function"), f"{field}.function")
    given = function.get("arguments")
    written = given if isinstance(given, str) else json.dumps(given or {}, ensure_ascii=False)
    arguments = written if written.strip() else "{}"
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


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


# --- ollama_pack.engines.vectors ---
# Vectors for texts, as an engine gives them.

VECTOR_BYTES = 128 * 1024  # that a vector may take in an answer: 6,000 dimensions of some 20 digits


@dataclass(frozen=True, slots=True)
class Vectors:
    """What an engine has made of some texts.

    Attributes:
        vectors: one for each text, in their order.
        tokens: of all texts; 0 where the engine does not count them.
        seconds: of GPU time, without a load; 0 where the engine does not tell.
    """

    vectors: tuple[list[float], ...]
    tokens: int = 0
    seconds: float = 0.0


def vectors_in(node: str, found: object, tokens: object, wanted: int, seconds: float = 0.0) -> Vectors:
    """The vectors in an answer.

    Raises:
        NodeFaultError: there is not one for each text.
    """
    vectors = found if isinstance(found, list) else []
    if len(vectors) != wanted or not all(isinstance(vector, list) and vector for vector in vectors):
        raise NodeFaultError(node, message("gives no vector for some of the texts"))
    return Vectors(tuple(vectors), tokens if isinstance(tokens, int) else 0, seconds)


# --- ollama_pack.engines.openai.metrics ---
# How busy an engine is, by the Prometheus metrics that it serves.
#
# The names are those of vLLM, SGLang and llama.cpp's server, the text is Prometheus' exposition format 0.0.4.

_SAMPLE = re.compile(
    r"""([a-zA-Z_:][\w:]*)\s*(?:\{((?:[^"}]|"(?:\\.|[^"\\])*")*)\})?\s+(\S+)(?:\s+-?\d+)?\s*""", re.ASCII
)
_LABEL = re.compile(r'(\w+)\s*=\s*"((?:\\.|[^"\\])*)"', re.ASCII)
# Processes that share one request; each may report it.
_RANKS = frozenset({"tp_rank", "pp_rank", "moe_ep_rank", "pid"})

# By engine: what runs, what waits.
_RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing")
_WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred")
_KNOWN = frozenset((*_RUNNING, *_WAITING))

# Labels but for ranks → value.
_Series = dict[tuple[tuple[str, str], ...], float]


@dataclass(frozen=True, slots=True)
class EngineActivity:
    """What an engine does at one moment, whoever asked for it.

    Attributes:
        running: requests that it generates for.
        waiting: requests in its own queue.
    """

    running: int
    waiting: int


def engine_activity(text: str) -> EngineActivity | None:
    """Read an exposition; None where none of the engines that are known speaks.

    Numbers of requests are added up over all series, as several engines behind one address are told apart by
    a label. What several ranks of one engine report of the same requests
    counts once, and so does what SGLang also reports by priority.

    Args:
        text: the answer of `/metrics`. Lines that cannot be read are left out.
    """
    found: dict[str, _Series] = {}
    for name, labels, value in _samples(text):
        kept = tuple(sorted(label for label in labels.items() if label[0] not in _RANKS))
        series = found.setdefault(name, {})
        series[kept] = max(value, series.get(kept, 0.0))
    running = _first_of(_RUNNING, found)
    if running is None:
        return None
    return EngineActivity(round(sum(running)), round(sum(_first_of(_WAITING, found) or [])))


def _samples(text: str) -> Iterable[tuple[str, Mapping[str, str], float]]:
    """Name, labels and value of each sample that matters."""
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line) if line.startswith(("vllm:", "sglang:", "llamacpp:")) else None
        if match is None or match[1] not in _KNOWN:
            continue
        labels = dict(_LABEL.findall(match[2] or ""))
        value = _sample_value(match[3])
        if math.isfinite(value) and value >= 0 and not labels.get("priority"):
            yield match[1], labels, value


def _sample_value(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _first_of(names: Iterable[str], found: Mapping[str, _Series]) -> list[float] | None:
    return next((list(found[name].values()) for name in names if name in found), None)


# --- ollama_pack.routing.decide.policy ---
# The numbers that routing goes by and that nobody has to set.


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """Weights and bounds of the decision. Times are in seconds.

    Attributes:
        decode_weight: what a second of decoding counts beside a second until the first token, and
        decode_seconds: how many of them count at most.
        demand_horizon: how far ahead the demand for an evicted model is looked at.
        hysteresis_seconds: a chat leaves the node that holds its prefix to save more than this, and
        hysteresis_share: more than this share of what it costs to stay.
        tie_share: costs that differ by less are equal.
        tier_seconds: what a tier further away counts.
        background_wait: how long background calls wait behind people.
        background_cost_rate: what it may cost others meanwhile, for each second that it has waited.
        prewarm_share: of a model's slots that are busy before a node with room loads it, too.
        exchange_gain: how many fewer requests have to wait, on average, before a model is loaded in place of
            one that other nodes have, too.
        overtake_limit: how often a request may be overtaken by ones behind it.
        overdue_share: what is left of a request that runs longer than predicted, in usual services.
        most_costs: of a node for a request that are computed in one decision.
        candidates: nodes that are asked for one request at most, besides those that hold its prefix.
        probe_requests: requests between two tries whether a runner has one more slot.
        unsynced_peers: other workers use the same nodes and are not heard of: they agree by hashing on where
            a chat goes, which costs a little where chats have one turn only.
        busy_percent: a GPU that is this busy, without a request of ours, works for somebody else.
    """

    decode_weight: float = 0.3
    decode_seconds: float = 2.0
    demand_horizon: float = 60.0
    hysteresis_seconds: float = 0.5
    hysteresis_share: float = 0.15
    tie_share: float = 0.05
    tier_seconds: float = 10.0
    background_wait: float = 10.0
    background_cost_rate: float = 0.1
    prewarm_share: float = 0.5
    exchange_gain: float = 1.0
    overtake_limit: int = 16
    overdue_share: float = 0.25
    most_costs: int = 40
    candidates: int = 8
    probe_requests: int = 64
    unsynced_peers: bool = False
    busy_percent: float = 50.0


# --- ollama_pack.routing.decide.returns ---
# How likely it is that a prompt is gone on with, and when: what a kept prefix is worth to its chat.
#
# A curve is a life table: for each span of ages, of those prompts that were as old and had not been gone on
# with, the share that was, each counted by the share of its own tokens that came again.

SPANS = 13  # of ages: 0 to 1 s, 1 to 3 s, 3 to 7 s, …, to more than an hour


def span_of(age: float) -> int:
    """The span of ages, each twice as long as the one before."""
    return min(SPANS - 1, int(math.log2(max(0.0, age) + 1)))


def begins_at(span: int) -> float:
    """The age at which a span begins, in seconds."""
    return float(2**span - 1)


@dataclass(frozen=True, slots=True)
class ReturnCurve:
    """Of each span, the share that comes again in it of what has not come again before."""

    shares: tuple[float, ...] = ()

    def remaining(self, age: float) -> float:
        """The share of a prompt's own tokens that is still to be asked for again, at this age."""
        if not self.shares:
            return 0.0
        span = span_of(age)
        left = 1.0 - (age - begins_at(span)) / (begins_at(span + 1) - begins_at(span))
        after = self._after(span + 1)
        now = self.shares[span] * min(1.0, max(0.0, left))
        return now + (1 - now) * after

    def _after(self, span: int) -> float:
        return _returning(self.shares)[span]


@lru_cache(maxsize=1024)
def _returning(shares: Sequence[float]) -> tuple[float, ...]:
    """For each span, the share that comes again in it or later."""
    found = [0.0]
    for share in reversed(shares):
        found.append(share + (1 - share) * found[-1])
    return tuple(reversed(found))


# --- ollama_pack.routing.decide.view ---
# What a routing decision looks at: plain values, made once and never changed.
#
# Times are seconds on one monotonic clock of the caller's choice; rates are tokens per second or bytes per
# second; sizes are bytes; contexts and prompts are counted in tokens.

RunnerOptions = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class PromptBlock:
    """One message of a prompt.

    Attributes:
        chain: hash of this block and of all before it, so that equal chains mean equal beginnings.
        upto: tokens of the prompt up to and including this block.
        answer: whether the model itself wrote the block: the runner that did holds it already.
    """

    chain: int
    upto: int
    answer: bool = False


@dataclass(frozen=True, slots=True)
class FleetRequest:
    """One request for the fleet.

    Attributes:
        id: unique among the requests that wait or run.
        user: whom fairness counts it for; in the router a hash, the same at all workers.
        chat: the conversation it belongs to, likewise; empty: none.
        models: names of the models that may answer, the preferred one first.
        blocks: the prompt; empty: length unknown, nothing to reuse.
        max_output: the limit on its output in tokens that the client set; 0: none.
        context: the context that the client asked for, in tokens; 0: whatever the runner has.
        options: the other options that a runner is loaded with (`num_gpu`, …), sorted by name.
        background: nobody looks at the answer as it is written (titles, tags): people come first.
        load_only: nobody waits: the model is loaded for those who will come.
        last: its user has used up a budget: it comes behind all others.
    """

    id: str
    user: str
    models: tuple[str, ...]
    chat: str = ""
    blocks: tuple[PromptBlock, ...] = ()
    max_output: int = 0
    context: int = 0
    options: RunnerOptions = ()
    background: bool = False
    load_only: bool = False
    last: bool = False

    @property
    def tokens(self) -> int:
        return self.blocks[-1].upto if self.blocks else 0


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model as a node's `/api/tags` and `/api/show` describe it.

    Attributes:
        blob: digest of the weights: names with the same one share a runner.
        size: bytes of memory that it takes with its usual context; 0: unknown.
        name: as the node lists it, and wants to be asked for it.
        context: `num_ctx` in tokens that its own recipe asks for; 0: none.
        options: the other runner options that its own recipe asks for, sorted by name.
        fixed: the engine never loads it again for other options, as Ollama does.
        remote: it runs elsewhere, as Ollama's cloud models do: there at once, no memory here, no slots.
        shape: what its memory depends on; None: unknown.
        bits: of a weight; 0: unknown.
        usual: the context that `size` is for; 0: unknown.
        growth: bytes for each token of context.
    """

    blob: str
    size: int = 0
    name: str = ""
    context: int = 0
    options: RunnerOptions = ()
    fixed: bool = False
    remote: bool = False
    shape: ModelShape | None = field(default=None, repr=False)
    bits: float = 0.0
    usual: int = 0
    growth: float = 0.0

    def takes(self, context: int) -> int:
        """Bytes of memory with a context (0: the usual one)."""
        if not context or not self.usual:
            return self.size
        return max(0, self.size + round(self.growth * (context - self.usual)))

    def wanted(self, request: FleetRequest) -> tuple[int, RunnerOptions]:
        """The context (0: the node's default) and the options that a request makes the runner have."""
        own = {**dict(self.options), **dict(request.options)}
        return request.context or self.context, tuple(sorted(own.items()))


@dataclass(frozen=True, slots=True)
class KeptPrefix:
    """What one slot of a runner is believed to hold.

    Attributes:
        chains: chain → tokens up to it, for each block of the prompt that was last evaluated in the slot.
        last: the chain of the prompt's last block.
        tokens: length of the prompt.
        output: tokens that were generated after it, and are held too.
        used_at: when it was last used.
        shared: tokens of its beginning that prompts of others have as well.
        kind: what its return is learned by: its turn, or that it is a background call's.
    """

    chains: Mapping[int, int] = field(repr=False)
    last: int
    tokens: int
    output: int
    used_at: float
    shared: int = 0
    kind: int = 0

    @property
    def weight(self) -> int:
        """The tokens that are held for it alone."""
        return self.tokens - self.shared + self.output


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """What a runner holds of a prompt.

    Attributes:
        hit: tokens of the prompt.
        own: they are this chat's own, not only a system prompt that chats share.
        hoped: as many more as can be expected of what it should have lost.
    """

    hit: int = 0
    own: bool = False
    hoped: int = 0


NO_MATCH = PrefixMatch()


class HeldPrefixes(Protocol):
    """What a runner is believed to hold. Decisions only read it."""

    def __len__(self) -> int: ...

    def match(self, blocks: Sequence[PromptBlock], newest: int | None = None) -> PrefixMatch:
        """What it holds of a prompt, counting on so many of the last used prefixes only."""

    def oldest(self) -> KeptPrefix | None:
        """What the next new prompt takes the place of; None: there is room."""


class NothingHeld:
    """A runner that is loaded now, or of which nothing is known."""

    def __len__(self) -> int:
        return 0

    def match(self, blocks: Sequence[PromptBlock], newest: int | None = None) -> PrefixMatch:  # noqa: ARG002
        return NO_MATCH

    def oldest(self) -> KeptPrefix | None:
        return None


NOTHING_HELD = NothingHeld()


@dataclass(frozen=True, slots=True)
class RunnerView:
    """A set of weights in a node's memory.

    Attributes:
        blob: digest of the weights.
        model: the name by which it was loaded.
        size: bytes that it takes; 0: unknown.
        context: tokens that it was loaded for, as the node says; 0: unknown.
        asked: the context that it was loaded with on request; 0: the node's default; None: unknown, as when
            another client did it.
        options: what else it was loaded with; None: unknown.
        slots: how many requests it answers at once.
        keeps: how many prefixes it still holds.
        ready_at: when it is loaded; in the past: it is.
        ends: when each request that it answers now is predicted to end, its first token included.
        prefixes: what it still holds.
        remote: as in `InstalledModel`.
    """

    blob: str
    model: str
    size: int = 0
    context: int = 0
    asked: int | None = None
    options: RunnerOptions | None = None
    slots: int = 1
    keeps: int = 1
    ready_at: float = 0.0
    ends: tuple[float, ...] = ()
    prefixes: HeldPrefixes = NOTHING_HELD
    remote: bool = False


def fits_runner(
    wanted: tuple[int, RunnerOptions],
    context: int,
    asked: int | None,
    options: RunnerOptions | None,
    usual: RunnerOptions = (),
) -> bool:
    """Whether a runner answers without being loaded again: Ollama loads it for any other value.

    Args:
        wanted: the context and the options of a request, as `InstalledModel.wanted` gives them.
        context: of the runner, as in `RunnerView`.
        asked: the same. Where it is unknown, it fits a request that asks for no context.
        options: the same. Where they are unknown, they fit a request that sets none of its own.
        usual: the options of the model itself, which every request has that sets none.
    """
    tokens, others = wanted
    unknown = asked is None and not context
    same_context = unknown or tokens in {asked, context} if tokens else not asked
    if options is None:
        return same_context and others == usual
    asks_layers = any(name == "num_gpu" for name, _ in others)  # any number of layers fits a request without
    return same_context and others == tuple(each for each in options if asks_layers or each[0] != "num_gpu")


@dataclass(frozen=True, slots=True)
class ModelRates:
    """What is known of how one node runs one set of weights.

    Attributes:
        slots: how many requests a runner answers at once.
        keeps: how many prefixes a runner still holds.
        load: seconds to load the weights.
        prompt: prompt tokens evaluated per second.
        token: seconds per generated token.
        output: tokens of a usual answer.
        background_output: tokens of a usual answer to a background call.
        service: seconds that a usual request holds a slot.
        learned: enough has been measured to go by `prompt` and `token`.
        load_measured: `load` was measured at least once.
    """

    slots: int = 1
    keeps: int = 1
    load: float = 4.0
    prompt: float = 500.0
    token: float = 0.03
    output: float = 150.0
    background_output: float = 15.0
    service: float = 5.0
    learned: bool = False
    load_measured: bool = False


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node at one moment.

    Attributes:
        name: as the `nodes` valve calls it.
        tier: lower tiers are preferred.
        weight: how much of the work it should get beside equals.
        models: what it can answer with and may be asked for now, by the names that it lists, and by what
            `fold_name` makes of them.
        runners: what is in its memory.
        loading_until: when the load in progress is predicted to end; one load blocks the others.
        room: bytes that models can have in memory together: known, or seen; a lone runner always fits.
        smallest: bytes of its smallest model; 1: it is not known how much memory there is.
        rates: by blob.
        loads_ahead: it can be asked to load a model without a chat,
        failed_loads: except for these weights: such a load has failed a while ago.
    """

    name: str
    tier: int = 0
    weight: float = 1.0
    models: Mapping[str, InstalledModel] = field(default_factory=dict)
    runners: tuple[RunnerView, ...] = ()
    loading_until: float = 0.0
    room: int = 0
    smallest: int = 1
    rates: Mapping[str, ModelRates] = field(default_factory=dict)
    loads_ahead: bool = False
    failed_loads: frozenset[str] = frozenset()

    def may_load_ahead(self, model: str) -> bool:
        """Whether it can be asked to load a model that it has, without a chat."""
        return self.loads_ahead and self.models[model].blob not in self.failed_loads


@dataclass(frozen=True, slots=True)
class FleetView:
    """All that a decision goes by.

    Attributes:
        now: the moment.
        nodes: the nodes that may be given work.
        demand: blob → requests a second that ask for it.
        returns: blob → how likely its prompts are gone on with, by their kind.
        changed: names of the nodes that look otherwise than in the view before; None: any may.
        by_name: the nodes by their names; made of `nodes` where it is missing.
        holders: chain of a prompt's block → the nodes that such a prompt went to lately.
    """

    now: float
    nodes: tuple[NodeView, ...]
    demand: Mapping[str, float] = field(default_factory=dict)
    returns: Mapping[str, Sequence[ReturnCurve]] = field(default_factory=dict)
    changed: Collection[str] | None = None
    by_name: Mapping[str, NodeView] = field(default_factory=dict)
    holders: Mapping[int, Collection[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.by_name) != len(self.nodes):
            object.__setattr__(self, "by_name", {node.name: node for node in self.nodes})

    def holders_of(self, blocks: Sequence[PromptBlock]) -> Collection[str]:
        """The nodes that got the longest known beginning of a prompt."""
        for block in reversed(blocks):
            if found := self.holders.get(block.chain):
                return found
        return ()


# --- ollama_pack.routing.decide.cost ---
# What sending a request to a node costs, term by term.
#
#     C = wait + load + (P - hit) / pp * (1 + price) + crowd * (b + 1) / slots + evict
#
# The first three terms are the predicted time to first token, which the user sees; the others are what the
# choice costs later, and costs others. What overwriting a prefix costs others counts for background calls, and
# among equals. Every term is in seconds and never negative.


@dataclass(frozen=True, slots=True)
class CostTerms:
    """The terms of C for one request on one node, in seconds.

    Attributes:
        wait: until a slot is free, or until a load can begin.
        load: reading the weights into memory; 0 when they are there.
        prompt: evaluating what no kept prefix covers.
        decode: sharing the runner with those that decode on it: who comes back to it finds it full.
        evict: what others lose: a model that is unloaded, a chat's prefix that is overwritten.
        tier: the distance of the node's tier.
    """

    wait: float = 0.0
    load: float = 0.0
    prompt: float = 0.0
    decode: float = 0.0
    evict: float = 0.0
    tier: float = 0.0

    @property
    def predict_ttft(self) -> float:
        """The predicted time to first token: what the user sees."""
        return self.wait + self.load + self.prompt

    @property
    def total(self) -> float:
        """C: what the choice goes by."""
        return self.wait + self.load + self.prompt + self.decode + self.evict + self.tier

    def as_dict(self) -> dict[str, float]:
        """The terms by name, for an explanation or a log."""
        names = ("wait", "load", "prompt", "decode", "evict", "tier")
        return {name: getattr(self, name) for name in names}


def slot_wait(ahead: int, left: Sequence[float], free: int, service: Sequence[float]) -> float | None:
    """Seconds until a request has a slot, roughly; None: there is no slot yet.

    Args:
        ahead: requests that come before it.
        left: seconds until each slot that is used becomes free.
        free: slots that are not used.
        service: seconds for which a usual request holds a slot, one for each runner.
    """
    slots = [0.0] * free + sorted(left)
    if not slots:
        return None
    turns, slot = divmod(ahead, len(slots))
    return slots[slot] + turns * sum(service) / len(service)


def prompt_pace(busy: int, rates: ModelRates) -> float:
    """Seconds for each token of a prompt that is not held.

    Before the rates are learned, each request that is answered already makes it slower. With `prompt_head` a
    prompt takes (P - hit + 1) * (b + 1) / pp then.
    """
    return (1 if rates.learned else busy + 1) / rates.prompt


def prompt_head(busy: int, rates: ModelRates) -> float:
    """Seconds that a prompt takes of which all is held."""
    return 0.0 if rates.learned else (busy + 1) / rates.prompt


def predict_output(rates: ModelRates, *, background: bool, limit: int = 0) -> float:
    """Tokens that an answer is expected to have, never above the limit that the client set."""
    expected = rates.background_output if background else rates.output
    return min(expected, limit) if limit else expected


def decode_share(output: float, busy: int, slots: int, rates: ModelRates, policy: RoutingPolicy) -> float:
    """The term for decoding beside `busy` others; nothing is known of it before the rates are learned."""
    if not rates.learned:
        return 0.0
    decoding = min(output * rates.token, policy.decode_seconds)
    return policy.decode_weight * decoding * (busy + 1) / slots


def evict_model(rates: ModelRates, demand: float, other_holders: int, policy: RoutingPolicy) -> float:
    """What unloading a model costs those who will ask for it.

    Args:
        rates: of the model that is unloaded.
        demand: requests a second for it, over all nodes.
        other_holders: other nodes that have it in memory: they share the demand, and take it over.
        policy: its horizon.
    """
    here = demand / (other_holders + 1)
    return (rates.load + rates.service) * min(1.0, here * policy.demand_horizon) / (other_holders + 1)


def overwrite_prefix(
    prefix: KeptPrefix, now: float, rates: ModelRates, curves: Sequence[ReturnCurve]
) -> float:
    """What overwriting a prefix costs its chat, as likely as that still goes on: to evaluate it again."""
    if prefix.kind >= len(curves):
        return 0.0
    return curves[prefix.kind].remaining(now - prefix.used_at) * prefix.weight / rates.prompt


STEADY_SHARE = 0.9  # of the slots: where more are used, no queue becomes as long as the formula says


def mean_queue(demand: float, pace: float, slots: int, horizon: float) -> float:
    """How many requests wait for a slot, on average.

    Of an M/M/c queue, by Sakasegawa (1977): u ^ sqrt(2 (c + 1)) / (1 - u), where u is the used share of the
    slots. Above `STEADY_SHARE`, requests gather as long as the horizon says.

    Args:
        demand: requests a second.
        pace: requests a second that all slots together can answer.
        slots: c; without any, no end is seen.
        horizon: in seconds.
    """
    if slots <= 0:
        return math.inf
    steady = min(demand / pace, STEADY_SHARE)
    gathered = max(0.0, demand - STEADY_SHARE * pace) * horizon / 2
    return math.pow(steady, math.sqrt(2 * (slots + 1))) / (1 - steady) + gathered


# --- ollama_pack.routing.errors ---
# What goes wrong with routing.


class NodeTableError(TableError):
    """A row of the `nodes` valve cannot be used."""


class WarmTableError(TableError):
    """A row of the `warm` valve cannot be used."""


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


class NodesDownError(RoutingError):
    """Nodes have the model, and none of them answers."""

    def __init__(self, models: tuple[str, ...], nodes: Mapping[str, str]) -> None:
        """Say which nodes there are.

        Args:
            models: the models that may answer.
            nodes: name of each node that has one → what is wrong with it.
        """
        reasons = joined((_faulty(node, reason) for node, reason in nodes.items()), message(", "))
        super().__init__(
            message(
                "no node that has {wanted} answers at the moment: {reasons}; try again in a minute",
                wanted=_either(models),
                reasons=reasons,
            )
        )
        self.models = models
        self.nodes = dict(nodes)


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


# --- ollama_pack.routing.naming ---
# Names of models as the fleet compares them: `llama3` is `llama3:latest`, and `Llama3` too, as to Ollama.


@lru_cache(maxsize=1024)
def fold_name(name: str) -> str:
    """The form in which two names of one model are equal: in lower case, without the default tag."""
    folded = name.lower()
    if _BETWEEN in folded:
        names, context = auto_parts(folded)
        return auto_name([fold_name(one) for one in names], context)
    stem, tag = split_tag(folded)
    return stem if tag == DEFAULT_TAG else folded


# An automatic name stands for several variants of a model, the best first, of which each node takes the one
# that fits there: `llama3:8b-q8_0 | llama3:8b-q4_0`, or with a context `… @16384`. Names of models have no
# spaces.
_BETWEEN, _WITH = " | ", " @"


def auto_name(names: Sequence[str], context: int = 0) -> str:
    """The automatic name for some variants, and for the context that is asked for (0: whatever is usual)."""
    return _BETWEEN.join(names) + (f"{_WITH}{context}" if context else "")


@lru_cache(maxsize=1024)
def auto_parts(name: str) -> tuple[tuple[str, ...], int]:
    """The variants of an automatic name and its context; any other name stands for itself."""
    names, _, context = name.partition(_WITH)
    return tuple(names.split(_BETWEEN)), int(context[:9]) if context.isdecimal() else 0


def is_auto(name: str) -> bool:
    """Whether each node takes the variant that fits there."""
    return _BETWEEN in name


# --- ollama_pack.routing.decide.fair_queue ---
# Who comes next: users with the least in service, then start-time fair queueing; background behind people.
#
# Behind all of them come the requests of users who have used up a budget. They never step between the others.
#
# A request's turn is how many of its user's requests are in service or wait before it: a user who holds several
# slots gets no further one while somebody waits who holds fewer. Among equal turns the order is that of start
# tags, in seconds of service: the later of the queue's virtual time and the end of the user's request before
# (Goyal, Vin and Cheng, "Start-time Fair Queuing", 1996). When an answer ends, its real seconds take the place
# of the expected ones. What a user has had lately fades as time passes while nobody waits.
#
# Among many users who ask for about as much, that would only shuffle the order of arrival, and some would wait
# for much longer. So in a crowd a user's turns and seconds count from where they are more than what most have.
#
# In a full queue the last request of the user with the most places makes room for a user who has fewer.

# The last places are for users who have nothing in the queue: one user's flood must not lock out the others.
RESERVED_SHARE = 0.25
LEEWAY = 4  # times what half of a crowd has: who has no more than that waits in turn
CROWD = 4  # other people, from where on what half of them have is a measure
MOST_OTHERS = 256  # that are looked at
MAX_TAGS = 64  # of users who do not wait, before those that have passed are thrown away
MAX_TURN = 16  # turns further away are equal
MAX_DEBT = 120.0  # seconds of service by which a user comes after others at most

# Whose requests: the user, and whether they are background calls, which do not stand in their user's own way.
Owner = tuple[str, bool]
Place = tuple[int, int, float, int]
_fair_place = attrgetter("place")


@dataclass(slots=True, eq=False)  # each is itself: they are looked up in lists
class WaitingRequest:
    """A request that waits.

    Attributes:
        request: what waits.
        models: names of its models, as `fold_name` makes them.
        start: its start tag, in seconds of service on the queue's virtual clock.
        cost: the seconds of service that it is expected to take.
        number: counts the requests; breaks ties.
        came: when it came, on the caller's clock.
        turn: how many of its user's requests are in service or wait before it.
        overtaken: how often a request behind it was bound before it.
        tried: nodes that have failed it.
        kind: equal for requests that any node would treat alike, except for their prompts.
        behind: a background call that has not waited behind people for long enough.
        pushed: the queue's virtual time when it came.
        spare_turns, grace: of its turn and its start tag, what is no more than a crowd of others has as well.
        displaced: the request that lost its place to this one; None: there was room.
        peer: it waits at another worker.
        shared: other workers know that it waits.
        place: what fair order goes by, as it was when it got into line.
    """

    request: FleetRequest
    models: tuple[str, ...]
    start: float
    cost: float
    number: int
    came: float
    turn: int = 0
    overtaken: int = 0
    tried: frozenset[str] = field(default_factory=frozenset)
    kind: str = ""
    behind: bool = False
    displaced: FleetRequest | None = None
    pushed: float = 0.0
    spare_turns: int = 0
    grace: float = 0.0
    peer: bool = False
    shared: bool = False
    place: Place = field(init=False)

    def __post_init__(self) -> None:
        self.get_into_line()

    def get_into_line(self) -> None:
        """Take the place that it has a right to now."""
        rank = 2 if self.request.last else int(self.behind)
        self.place = rank, max(0, self.turn - self.spare_turns), self.tag, self.number

    @property
    def tag(self) -> float:
        """Its start tag, as far as its user is ahead of a crowd."""
        return max(self.pushed, self.start - self.grace)

    @property
    def owner(self) -> Owner:
        return self.request.user, self.request.background


class FairQueue:
    """The requests that wait, in fair order. Bounded by `limit`, and by as many users as wait.

    Requests that wait at other workers (`push_peer`) are in the order, and take no place.
    """

    def __init__(self, limit: int, background_wait: float) -> None:
        self.limit = limit
        self._background_wait = background_wait
        self._order: list[WaitingRequest] = []  # fair
        self._kinds: dict[str, list[WaitingRequest]] = {}  # each in fair order
        self._behind: list[tuple[float, int, WaitingRequest]] = []  # a heap: by when they came
        self._by_id: dict[str, WaitingRequest] = {}
        self._ends: dict[str, float] = {}  # user → the end of the tag of the user's last request
        self._waiting_of: dict[str, int] = {}
        self._own: dict[Owner, list[WaitingRequest]] = {}  # by their start tags
        self._serving: dict[Owner, int] = {}
        self._virtual = 0.0
        self._empty_since = 0.0
        self._count = 0
        self._places = 0  # that are taken

    def __len__(self) -> int:
        return self._places

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    def __iter__(self) -> Iterator[WaitingRequest]:
        return iter(self._by_id.values())

    def get(self, request_id: str) -> WaitingRequest | None:
        """A request that waits."""
        return self._by_id.get(request_id)

    def push(self, request: FleetRequest, now: float, cost: float) -> WaitingRequest:
        """Take a request in, if need be in the place of another: see `displaced` of what is returned.

        Raises:
            QueueFullError: there is no place, or none for this user or for a background call.
        """
        own = self.places_of(request.user)
        yields = request.background or request.last
        reserved = int(self.limit * RESERVED_SHARE) if own or yields else 0
        displaced = None
        if len(self) >= self.limit - reserved:
            displaced = self._one_to_displace(request, own)
            if displaced is None:
                raise QueueFullError(self.limit, len(self), own)
            self.cancel(displaced.id)
        entry = self._enter(request, now, now, cost)
        entry.displaced = displaced
        self._insert(entry)
        return entry

    def push_peer(self, request: FleetRequest, came: float, now: float, cost: float) -> WaitingRequest:
        """Take in a request that waits at another worker, since `came`."""
        entry = self._enter(request, came, now, cost)
        entry.peer = True
        self._insert(entry)
        return entry

    def _enter(self, request: FleetRequest, came: float, now: float, cost: float) -> WaitingRequest:
        if not self._by_id:  # meanwhile everybody could have had what they wanted
            self._virtual += max(0.0, now - self._empty_since)
        self._count += 1
        start = max(self._virtual, self._ends.get(request.user, 0.0))
        self._ends[request.user] = start + cost
        models = tuple(map(fold_name, request.models))
        kind = repr((models, request.background, request.last, request.context, request.options))
        entry = WaitingRequest(request, models, start, cost, self._count, came, kind=kind)
        entry.pushed = self._virtual
        entry.spare_turns, entry.grace = self._leeway(entry.owner)
        return entry

    def _leeway(self, owner: Owner) -> tuple[int, float]:
        """The turns, and the seconds of service, by which an owner may be ahead of a crowd and come in turn.

        It goes by what half of the others have in service and waiting. Of few, one could have most of it.
        """
        others = self._others(owner)
        if len(others) < CROWD:
            return 0, 0.0
        middle = len(others) // 2
        turns = sorted([len(self._own.get(one, ())) + self._serving.get(one, 0) for one in others])
        ends = sorted([self._ends.get(user, 0.0) for user, _ in others])
        return LEEWAY * turns[middle], LEEWAY * max(0.0, ends[middle] - self._virtual)

    def _others(self, owner: Owner) -> list[Owner]:
        """Other people who wait or are served, of many the first."""
        if owner[1]:
            return []
        there = dict.fromkeys(islice(chain(self._serving, self._own), MOST_OTHERS))
        return [one for one in there if one != owner and not one[1]]

    def places_of(self, user: str) -> int:
        """How many requests of a user wait."""
        return self._waiting_of.get(user, 0)

    def _one_to_displace(self, request: FleetRequest, own: int) -> FleetRequest | None:
        """The request that makes room for another one, whose user has `own` places; None: there is none.

        It is the last one of the user with the most places, if that user still has as many as the newcomer
        then. Where nobody has that many, a background call makes room for a person who has no place yet.
        A background call displaces no person. A request that comes behind all others displaces none, and is
        the first to make room for them.
        """
        if request.last:
            return None
        if self._order and self._order[-1].request.last:
            return self._order[-1].request
        places = self._waiting_of
        if request.background:
            places = {user: len(_at_home(held)) for (user, behind), held in self._own.items() if behind}
            own = places.get(request.user, 0)
        user = max(places, key=places.__getitem__, default="")
        if places.get(user, 0) > own + 1:  # of one user, what nobody looks at goes first
            found = _at_home(self._own.get((user, True), ())) or _at_home(self._own.get((user, False), ()))
        else:
            held = () if own or request.background else self._order
            found = [entry for entry in _at_home(held) if entry.request.background]
            if not found:
                return None
        return found[-1].request

    def step_aside(self, entry: WaitingRequest) -> None:
        """Take a request out of the order until it is put back."""
        self._remove(entry)

    def put_back(self, entry: WaitingRequest, failed_node: str = "") -> None:
        """Take a request in again, at the place that it had: a node has failed it, or it was never sent."""
        if failed_node:
            entry.tried |= {failed_node}
            entry.kind += f" {failed_node}"
        self._insert(entry)

    def _insert(self, entry: WaitingRequest) -> None:
        self._by_id[entry.request.id] = entry
        if not entry.peer:
            user = entry.request.user
            self._waiting_of[user] = self._waiting_of.get(user, 0) + 1
            self._places += 1
        own = self._own.setdefault(entry.owner, [])
        before = bisect_left(own, _start_place(entry), key=_start_place)
        entry.turn = min(MAX_TURN, self._serving.get(entry.owner, 0) + before)
        own.insert(before, entry)
        entry.behind = entry.request.background
        if entry.behind:
            heappush(self._behind, (entry.came, entry.number, entry))
        self._line_up(entry)
        self._renew_turns(entry.owner)

    def _line_up(self, entry: WaitingRequest) -> None:
        entry.get_into_line()
        insort(self._order, entry, key=_fair_place)
        insort(self._kinds.setdefault(entry.kind, []), entry, key=_fair_place)

    def _step_out(self, entry: WaitingRequest) -> None:
        alike = self._kinds[entry.kind]
        for entries in (self._order, alike):
            del entries[bisect_left(entries, entry.place, key=_fair_place)]
        if not alike:
            del self._kinds[entry.kind]

    def _renew_turns(self, owner: Owner, later: float = 0.0) -> None:
        """Give an owner's requests the turns that they have now, and start tags that are so much later."""
        serving = self._serving.get(owner, 0)
        for before, entry in enumerate(self._own.get(owner, ())):
            turn = min(MAX_TURN, serving + before)
            if turn == entry.turn and not later:
                if turn == MAX_TURN:
                    return  # and so are those behind
                continue
            self._step_out(entry)
            entry.turn, entry.start = turn, entry.start + later
            self._line_up(entry)

    def order(self, now: float) -> Sequence[WaitingRequest]:
        """All that wait, in fair order; background calls that have waited long enough among the people."""
        self._ripen(now)
        return self._order

    def kinds(self, now: float) -> Mapping[str, Sequence[WaitingRequest]]:
        """The same by kind, each in fair order."""
        self._ripen(now)
        return self._kinds

    def _ripen(self, now: float) -> None:
        """Background calls that have waited behind people for long enough step between them."""
        while (until := self.ripens_at()) is not None and until <= now:
            _, _, entry = heappop(self._behind)
            self._step_out(entry)
            entry.behind = False
            self._line_up(entry)

    def ripens_at(self) -> float | None:
        """When the next background call has waited behind people for long enough; None: none does."""
        behind = self._behind
        while behind and not (behind[0][2].behind and self.get(behind[0][2].request.id) is behind[0][2]):
            heappop(behind)  # it has a node, or nobody wants it any more
        return behind[0][0] + self._background_wait if behind else None

    def bound(self, request_id: str, now: float) -> WaitingRequest:
        """Take out a request that has a node. Those before it in fair order have been overtaken."""
        entry = self._by_id[request_id]
        if not entry.behind:
            for other in self._order[: bisect_left(self._order, entry.place, key=_fair_place)]:
                other.overtaken += 1
        self._virtual = max(self._virtual, entry.tag)
        self._serving[entry.owner] = self._serving.get(entry.owner, 0) + 1
        self._remove(entry)
        self._empty_since = now
        return entry

    def ended(self, entry: WaitingRequest, seconds: float | None = None) -> None:
        """A request that was bound is in service no more.

        Args:
            entry: the request.
            seconds: of service that it took; None: they do not count against its user.
        """
        owner, user = entry.owner, entry.request.user
        self._serving[owner] -= 1
        if not self._serving[owner]:
            del self._serving[owner]
        later = 0.0
        if seconds is not None:
            before = max(self._virtual, self._ends.get(user, 0.0))
            self._ends[user] = min(before + seconds - entry.cost, max(before, self._virtual + MAX_DEBT))
            later = self._ends[user] - before
            if len(others := self._others(owner)) >= CROWD:  # each could have had as much in this time
                self._virtual += seconds / (len(others) + 1)
            self._forget_past()
        self._renew_turns(owner, later)

    def cancel(self, request_id: str) -> None:
        """Take out a request that nobody wants any more. Its user gets the time back."""
        entry = self._by_id[request_id]
        self._remove(entry)
        if entry.request.user in self._ends:
            self._ends[entry.request.user] -= entry.cost

    def _remove(self, entry: WaitingRequest) -> None:
        del self._by_id[entry.request.id]
        self._step_out(entry)
        own = self._own[entry.owner]
        own.remove(entry)
        if not own:
            del self._own[entry.owner]
        self._renew_turns(entry.owner)
        if not entry.peer:
            user = entry.request.user
            self._waiting_of[user] -= 1
            if not self._waiting_of[user]:
                del self._waiting_of[user]
            self._places -= 1
        self._forget_past()

    def _forget_past(self) -> None:
        """Tags of the past mean nothing; of too many others the least is lost."""
        most = 2 * len(self._own) + MAX_TAGS
        if len(self._ends) > most:
            ahead = [(end, name) for name, end in self._ends.items() if end > self._virtual]
            self._ends = {name: end for end, name in nlargest(most, ahead)}


def _at_home(entries: Sequence[WaitingRequest]) -> list[WaitingRequest]:
    """Those that wait at this worker."""
    return [entry for entry in entries if not entry.peer]


def _start_place(entry: WaitingRequest) -> tuple[float, int]:
    return entry.start, entry.number


# --- ollama_pack.routing.decide.node_timeline ---
# A node's virtual future: what it does now, and what those ahead in the queue will have it do.
#
# The decision places each waiting request here, in fair order, so that the ones behind see the queue as it is.
# A timeline on which nothing was placed serves the next decision as well, until its node changes.

# The model's name as `fold_name` makes it, the request's kind, its limit on the output.
QuoteKey = tuple[str, str, int]

SIZE_TOLERANCE = 64  # a prediction may be off by this part of the memory
SHORTEST_SERVICE = 0.001  # seconds
FRESH_SECONDS = 1.0  # for so long a quote holds: what a prefix and a model are worth changes slowly
_UNKNOWN = ModelRates()


@dataclass(slots=True)
class TimelineContext:
    """What all timelines of a fleet go by.

    Attributes:
        policy: weights and bounds.
        now: the moment of the decision.
        demand: blob → requests a second that ask for it.
        returns: blob → how likely its prompts are gone on with, by their kind.
        held: blob → how many nodes have it in memory.
    """

    policy: RoutingPolicy
    now: float = 0.0
    demand: Mapping[str, float] = field(default_factory=dict)
    returns: Mapping[str, Sequence[ReturnCurve]] = field(default_factory=dict)
    held: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class VirtualRunner:
    """A runner in the virtual future: when it is loaded, when each of its busy slots is free.

    Attributes:
        ends: of those that it answers, sorted.
        placed: requests that were placed here in this decision: each has overwritten a prefix.
    """

    blob: str
    size: int
    context: int
    asked: int | None
    options: RunnerOptions | None
    slots: int
    ready_at: float
    ends: list[float]
    prefixes: HeldPrefixes = NOTHING_HELD
    keeps: int = 1
    placed: int = 0
    remote: bool = False

    def fits(self, request: FleetRequest, model: InstalledModel) -> bool:
        """Whether it answers without being loaded again."""
        if model.fixed:
            return True
        known = self.context, self.asked, self.options
        return fits_runner(model.wanted(request), *known, model.options)

    @property
    def has_slot(self) -> bool:
        """Whether a slot is free, if only when it is loaded."""
        return len(self.ends) < self.slots

    def busy_until(self, now: float, overdue: float) -> list[float]:
        """When each busy slot is free. Who takes longer than predicted still takes `overdue` seconds."""
        if self.ends and self.ends[0] <= now:
            return sorted([end if end > now else now + overdue for end in self.ends])
        return self.ends

    def free_at(self, now: float, overdue: float) -> float:
        """When a slot is free."""
        if self.has_slot:
            return now
        return self.busy_until(now, overdue)[len(self.ends) - self.slots]

    def idle_at(self, now: float, overdue: float) -> float:
        """When all are."""
        return self.busy_until(now, overdue)[-1] if self.ends else now


@dataclass(slots=True)  # not frozen: thousands are made for one decision, and freezing takes most of the time
class Quote:
    """What a node can offer to requests for one model, whatever their prompt. Times are in seconds.

    Attributes:
        starts_at: when the prompt can begin, unless a load comes first: then when the load can.
        now_open: whether the node can begin, with a load or with the prompt, at this very moment.
        fixed: load + decode + tier: what depends neither on the prompt nor on the moment.
        load, decode: as in `CostTerms`.
        evict: what others lose.
        pace: seconds for each token of the prompt that is not held.
        head: seconds before the first of them.
        model: the name by which the node knows the model.
        blob: the weights.
        rates: of the node with these weights.
        reused: the runner that answers; None: one is loaded.
        victims: blobs that are unloaded first.
        good_until: until when the quote holds.
    """

    starts_at: float
    now_open: bool
    fixed: float
    load: float
    decode: float
    evict: float
    pace: float
    head: float
    model: str
    blob: str
    rates: ModelRates
    reused: VirtualRunner | None
    victims: tuple[str, ...]
    good_until: float


@dataclass(slots=True)
class EvictionPlan:
    """What it takes before a node can load weights of some size.

    Attributes:
        begins: when the load can begin.
        evict: what unloading the victims costs others, in seconds.
        victims: the blobs that are unloaded.
    """

    begins: float
    evict: float
    victims: tuple[str, ...]


class VirtualNode:
    """One node's future. Changed by `place` and `reserve` alone.

    Attributes:
        view: the node as it is now.
        runners: by the digest of their weights.
        changed: something was placed here, or nobody may begin here.
        served: the digests of the weights that it may be asked for now.
    """

    __slots__ = (
        "_evictions",
        "_loading_until",
        "_moment",
        "_placed",
        "_quotes",
        "_reserved",
        "_tier",
        "changed",
        "runners",
        "served",
        "view",
    )

    def __init__(self, view: NodeView, moment: TimelineContext, before: Self | None = None) -> None:
        """Begin with what the node does now. What was there `before` saves time."""
        self.view = view
        self.served: frozenset[str]
        if before is not None and before.view.models is view.models:
            self.served = before.served
        else:
            self.served = frozenset([model.blob for model in view.models.values()])
        self.runners = {runner.blob: _virtual_runner(runner) for runner in view.runners}
        self.changed = False
        self._placed = 0
        self._moment = moment
        self._tier = moment.policy.tier_seconds * view.tier
        self._loading_until = view.loading_until
        self._reserved = False
        self._quotes: dict[QuoteKey, Quote] = {}
        self._evictions: dict[tuple[int, str], EvictionPlan] = {}

    @property
    def running(self) -> int:
        """Requests that it answers, those that were placed here included."""
        return self._placed + sum([len(runner.ends) for runner in self.view.runners])

    def answers(self, model: str) -> int:
        """Requests for a model that it answers now, without those placed here or waiting for its load."""
        blob, now = self.view.models[model].blob, self._moment.now
        return sum([len(one.ends) for one in self.view.runners if one.blob == blob and one.ready_at <= now])

    def forget_quotes(self) -> None:
        """Somewhere a model was evicted: what evicting it here costs has changed."""
        self._quotes.clear()
        self._evictions.clear()

    def reserve(self) -> None:
        """Nobody behind may begin here now."""
        self._reserved = self.changed = True
        self._quotes.clear()

    def is_open(self) -> bool:
        """Whether it could begin anything at this moment."""
        if self._reserved:
            return False
        now, used = self._moment.now, 0
        for runner in self.runners.values():
            if len(runner.ends) < runner.slots and runner.ready_at <= now:
                return True
            used += runner.size
        return self._loading_until <= now and (not used or used + self.view.smallest <= self.view.room)

    def has_room(self) -> bool:
        """Whether it can load a model at this moment, and nothing has to be unloaded for a small one."""
        if self._reserved or not self.view.loads_ahead or self._loading_until > self._moment.now:
            return False
        used = sum([runner.size for runner in self.runners.values()])
        return not self.runners or used + self.view.smallest <= self.view.room

    def has_room_for_all(self) -> bool:
        """Whether its memory holds all of its models together: loading one takes nothing from the others."""
        sizes = {model.blob: model.size for model in self.view.models.values()}
        sizes |= {blob: runner.size for blob, runner in self.runners.items()}
        return len(sizes) == 1 or sum(sizes.values()) <= self.view.room

    def serves_now(self, blob: str) -> bool:
        """Whether it has these weights in memory, and a slot free for them at this moment."""
        runner = self.runners.get(blob)
        return (
            runner is not None
            and not self._reserved
            and len(runner.ends) < runner.slots
            and runner.ready_at <= self._moment.now
        )

    def has(self, model: str) -> bool:
        """Whether a model that it may be asked for is in memory."""
        installed = self.view.models.get(model)
        return installed is not None and installed.blob in self.runners

    def load_seconds(self, model: str) -> float:
        """How long loading a model that it has takes."""
        return self.view.rates.get(self.view.models[model].blob, _UNKNOWN).load

    def pace(self, blob: str, slots: int) -> float:
        """Usual requests a second that so many slots of it answer with some weights."""
        return slots / max(SHORTEST_SERVICE, self.view.rates.get(blob, _UNKNOWN).service)

    def free_at(self, runner: VirtualRunner) -> float:
        """About when a runner has a slot free; in the past: any moment."""
        if runner.has_slot:
            return runner.ready_at
        return max(runner.ready_at, runner.ends[len(runner.ends) - runner.slots])

    def can_load(self) -> tuple[bool, float]:
        """Whether it can load something once a load is over, and about when that or an idle runner is.

        How much memory that takes, and what is in the way, `quote` finds out.
        """
        if self._reserved:
            return False, self._loading_until
        used, idle_at = 0, inf
        for runner in self.runners.values():
            used += runner.size
            if not runner.remote:
                idle_at = min(idle_at, max(runner.ready_at, runner.ends[-1] if runner.ends else 0.0))
                if not runner.ends and runner.ready_at <= max(self._moment.now, self._loading_until):
                    return True, max(self._loading_until, runner.ready_at)
        if not used or used + self.view.smallest <= self.view.room:
            return True, self._loading_until
        return False, max(self._loading_until, idle_at)

    def quote(self, key: QuoteKey, request: FleetRequest) -> Quote:
        """What it can offer for a model that it has, to any request of this kind.

        Args:
            key: the model, and what else of the request the quote depends on.
            request: one of that kind.
        """
        known = self._quotes.get(key)
        if known is not None and known.good_until > self._moment.now:
            return known
        model = self.view.models[key[0]]
        rates = self.view.rates.get(model.blob, _UNKNOWN)
        runner = self.runners.get(model.blob)
        output = predict_output(rates, background=request.background, limit=request.max_output)
        if runner and runner.fits(request, model):
            made = self._offer_runner(model, runner, rates, output)
        else:
            made = self._offer_load(model, rates, output, model.takes(request.context))
        if len(self._quotes) > MAX_QUOTES:
            self._quotes.clear()
        self._quotes[key] = made
        return made

    def _offer_runner(
        self, model: InstalledModel, runner: VirtualRunner, rates: ModelRates, output: float
    ) -> Quote:
        policy, now = self._moment.policy, self._moment.now
        starts = max(runner.ready_at, runner.free_at(now, policy.overdue_share * rates.service))
        busy = len(runner.ends)
        beside = min(busy, runner.slots - 1)
        evict = 0.0
        oldest = runner.prefixes.oldest()
        if oldest is not None and runner.placed < runner.keeps:
            evict = overwrite_prefix(oldest, now, rates, self._moment.returns.get(runner.blob, ()))
        decode = decode_share(output, beside, runner.slots, rates, policy)
        good_until = now + FRESH_SECONDS
        if starts > now:
            good_until = min(starts, good_until) if not runner.ends or runner.ends[0] > now else now
        return Quote(  # by position: by name takes twice as long, and here it counts
            starts,
            starts <= now and not self._reserved,
            decode + self._tier,
            0.0,
            decode,
            evict,
            prompt_pace(beside, rates),
            prompt_head(beside, rates),
            model.name,
            runner.blob,
            rates,
            runner,
            (),
            good_until,
        )

    def _offer_load(self, model: InstalledModel, rates: ModelRates, output: float, size: int) -> Quote:
        own = model.blob if model.blob in self.runners else ""
        now = self._moment.now
        found = self._evictions.get((size, own))
        if found is None or found.begins <= now:
            found = self._evictions[size, own] = self._plan_eviction(size, own)
        decode = decode_share(output, 0, rates.slots, rates, self._moment.policy)
        open_now = found.begins <= now
        return Quote(
            found.begins,
            open_now and not self._reserved,
            rates.load + decode + self._tier,
            rates.load,
            decode,
            found.evict,
            prompt_pace(0, rates),
            prompt_head(0, rates),
            model.name,
            model.blob,
            rates,
            None,
            found.victims,
            now + FRESH_SECONDS if open_now else min(found.begins, now + FRESH_SECONDS),
        )

    def _plan_eviction(self, size: int, own: str) -> EvictionPlan:
        """Make room as Ollama does: the idle ones go first, by their digests as all stay equally long.

        A runner that is loaded again goes, too.
        """
        now = self._moment.now
        share = self._moment.policy.overdue_share
        idle_at = {
            blob: runner.idle_at(now, share * self.view.rates.get(blob, _UNKNOWN).service)
            for blob, runner in self.runners.items()
        }
        others = [runner for runner in self.runners.values() if runner.blob != own and not runner.remote]
        if len(others) > 1:
            others.sort(key=lambda runner: (idle_at[runner.blob], runner.blob))
        needed = size - self.view.room - self.view.room // SIZE_TOLERANCE
        for runner in others:
            needed += runner.size
        gone = [self.runners[own]] if own else []
        begins, evict = max(now, self._loading_until), 0.0
        for runner in others:
            if needed <= 0:
                break
            gone.append(runner)
            needed -= runner.size
            evict += self._evict(runner.blob)
        for runner in gone:
            begins = max(begins, idle_at[runner.blob], runner.ready_at)
        return EvictionPlan(begins, evict, tuple([runner.blob for runner in gone]))

    def _evict(self, blob: str) -> float:
        rates = self.view.rates.get(blob, _UNKNOWN)
        others = max(0, self._moment.held.get(blob, 1) - 1)
        return evict_model(rates, self._moment.demand.get(blob, 0.0), others, self._moment.policy)

    def place(self, quote: Quote, request: FleetRequest, service: float) -> None:
        """Let a request take the slot that was quoted, for so many seconds from when it starts."""
        self.forget_quotes()
        self.changed = True
        self._placed += 1
        runner = quote.reused or self._load(quote, request)
        now = self._moment.now
        if not runner.has_slot:
            overdue = self._moment.policy.overdue_share * quote.rates.service
            runner.ends = runner.busy_until(now, overdue)[len(runner.ends) - runner.slots + 1 :]
        insort(runner.ends, max(now, quote.starts_at + quote.load) + service)
        runner.placed += 1

    def _load(self, quote: Quote, request: FleetRequest) -> VirtualRunner:
        for blob in quote.victims:
            del self.runners[blob]
        model = next(model for model in self.view.models.values() if model.name == quote.model)
        asked, options = model.wanted(request)
        self._loading_until = max(self._moment.now, quote.starts_at) + quote.load
        runner = self.runners[quote.blob] = VirtualRunner(
            quote.blob,
            model.takes(asked),
            0,
            asked,
            options,
            quote.rates.slots,
            self._loading_until,
            [],
            keeps=quote.rates.keeps,
        )
        return runner


MAX_QUOTES = 64  # that a timeline keeps, whatever limits clients set on their outputs


def _virtual_runner(runner: RunnerView) -> VirtualRunner:
    return VirtualRunner(
        runner.blob,
        runner.size,
        runner.context,
        runner.asked,
        runner.options,
        runner.slots,
        runner.ready_at,
        sorted(runner.ends),
        runner.prefixes,
        runner.keeps,
        remote=runner.remote,
    )


# --- ollama_pack.routing.decide.assignment ---
# The choice of a node for one request: what each node would cost it, and which one it goes to.

ConsideredNode = tuple[str, str, CostTerms]  # the node, the model's name there, its cost


@dataclass(slots=True)
class NodeCost:
    """What one node would cost one request.

    Attributes:
        total: what the choice goes by.
        wait: seconds until it can begin.
        hit: tokens of the prompt that need no evaluation.
        own: they are this chat's own, not only a system prompt that chats share.
        node: the node.
        quote: what the node offers to any request.
    """

    total: float
    wait: float
    hit: int
    own: bool
    node: VirtualNode
    quote: Quote

    @property
    def name(self) -> str:
        """The name of the node."""
        return self.node.view.name

    @property
    def harm(self) -> float:
        """Seconds that others lose. A chat that goes on overwrites nothing but its own prefix."""
        return 0.0 if self.own else self.quote.evict

    def prompt(self, tokens: int) -> float:
        """Seconds to evaluate what is not held of a prompt."""
        return max(0, tokens - self.hit) * self.quote.pace + self.quote.head

    def terms(self, tokens: int, policy: RoutingPolicy) -> CostTerms:
        """C, term by term, for a prompt of so many tokens."""
        quote, tier = self.quote, policy.tier_seconds * self.node.view.tier
        return CostTerms(self.wait, quote.load, self.prompt(tokens), quote.decode, self.harm, tier)


@dataclass(slots=True)
class Assignment:
    """Where a request goes: now, when `starts`, else as things stand.

    Attributes:
        entry: the request that waits.
        asked_for: which of its models answers, as `fold_name` makes it.
        chosen: the node, and what it costs.
        costs: of all nodes that were asked, the chosen one included.
        unasked: nodes whose load alone takes longer than what was chosen.
        starts: the request begins now.
        policy: what the terms are computed with.
        waited: seconds in the queue.
    """

    entry: WaitingRequest
    asked_for: str
    chosen: NodeCost
    costs: Sequence[NodeCost] = field(repr=False)
    unasked: Sequence[VirtualNode] = field(repr=False)
    starts: bool
    policy: RoutingPolicy = field(repr=False)
    waited: float = 0.0

    @property
    def request(self) -> FleetRequest:
        """The request."""
        return self.entry.request

    @property
    def node(self) -> str:
        """The name of the node."""
        return self.chosen.name

    @property
    def model(self) -> str:
        """The name to ask for, as the node lists it."""
        return self.chosen.quote.model

    @property
    def loads(self) -> bool:
        """The node has to load the model first."""
        return self.chosen.quote.reused is None

    @property
    def victims(self) -> tuple[str, ...]:
        """The weights that are unloaded first."""
        return self.chosen.quote.victims

    @property
    def size(self) -> int:
        """Bytes of the model at the node; 0: unknown."""
        return self.chosen.node.view.models[self.model].size

    @property
    def hit(self) -> int:
        """Tokens of the prompt that the node holds already."""
        return self.chosen.hit

    @property
    def terms(self) -> CostTerms:
        """What the choice cost."""
        return self.chosen.terms(self.request.tokens, self.policy)

    def considered(self) -> list[ConsideredNode]:
        """The nodes that were thought of, each with the model's name there and its terms.

        Of a node that was not asked the load is the only term.
        """
        tokens = self.request.tokens
        asked = [(cost.name, cost.quote.model, cost.terms(tokens, self.policy)) for cost in self.costs]
        for node in self.unasked:
            installed = node.view.models[self.asked_for]
            load = CostTerms(load=node.view.rates[installed.blob].load)
            asked.append((node.view.name, installed.name, load))
        return asked


# --- ollama_pack.engines.failures ---
# Which typed error an answer or a failure of a node is. Nothing here shows a password.

SAID_CHARACTERS = 300
QUOTE, FOREIGN_QUOTE = 12, 6  # characters in a row that are no accident: of English, and of other scripts
SEARCHED_CHARACTERS = 200_000  # of a conversation; a longer one is compared less closely

_CREDENTIALS = re.compile(r"(?<=//)[^/?#]*@")
_BUSY = frozenset({429, 503})
# What says something about the node or the way to it, not about the request.
_FAULTS = frozenset({401, 403, 405, 407, 408})
_FIRST_CLIENT_ERROR, _FIRST_SERVER_ERROR = 400, 500
_STATUS_NOT_FOUND = 404


def node_name(url: str) -> str:
    """A node's address as it may be shown: without user name, password, query and fragment."""
    return re.split(r"[?#]", _CREDENTIALS.sub("", url), maxsplit=1)[0].rstrip("/")


def retry_seconds(header: str) -> float | None:
    """What `Retry-After` says in seconds; None where it says nothing, or a date."""
    try:
        seconds = float(header)
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def status_error(node: str, status: int, answer: bytes, model: str) -> NodeError:
    """The error that an answer with a status other than 200 stands for.

    Args:
        node: as `node_name` gives it.
        status: HTTP status of the answer.
        answer: its body, or the beginning of it.
        model: the model that was asked for.
    """
    said = said_in(answer)
    if status in _BUSY:
        return NodeBusyError(node, status, said)
    if status == _STATUS_NOT_FOUND and "not found" in said and "model" in said:
        return ModelNotFoundError(node, model, said)
    is_request = _FIRST_CLIENT_ERROR <= status < _FIRST_SERVER_ERROR
    if is_request and status not in _FAULTS and status != _STATUS_NOT_FOUND:
        return RequestRefusedError(node, status, said)
    reason = message("answers with status {status}", status=status)
    if _is_page(answer):
        reason = message(
            "answers with status {status} and a web page: something in front of it answers", status=status
        )
    return NodeFaultError(node, reason, status=status, said=said)


def said_in(answer: bytes) -> str:
    """The message in an answer: its `error`, else its text, shortened; empty for a web page."""
    if _is_page(answer):
        return ""
    text = answer.decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        said = error["message"] if isinstance(error, dict) else error
    except (ValueError, LookupError, TypeError, RecursionError):
        said = text
    return shortened(said if isinstance(said, str) else text)


def _is_page(answer: bytes) -> bool:
    return answer.lstrip()[:1] == b"<"


def without_quotes(said: str, messages: object) -> str:
    """A node's message up to where it repeats the conversation, as llama.cpp's and pydantic's do.

    Args:
        said: the message, as `shortened` gives it.
        messages: of the request.
    """
    if not said:
        return said
    texts = [" ".join(text.split()) for text in _texts_in(messages)]
    spoken = "\0".join([*texts, *(json.dumps(text) for text in texts if not text.isascii())])
    step = min(max(1, len(spoken) // SEARCHED_CHARACTERS), QUOTE)
    for start in range(0, len(said), step):
        size = QUOTE if said[start : start + FOREIGN_QUOTE].isascii() else FOREIGN_QUOTE
        part = said[start : start + size]
        if len(part) == size and part in spoken:
            return f"{said[: max(0, start - step + 1)].rstrip()}…"
    return said


def _texts_in(value: object) -> Iterator[str]:
    """Each text in a conversation, without pictures and sound."""
    if isinstance(value, str):
        if not value.startswith("data:"):
            yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if name not in {"role", "type"}:
                yield from _texts_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts_in(part)


def shortened(text: str) -> str:
    """A message on one line and of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= SAID_CHARACTERS else line[: SAID_CHARACTERS - 1] + "…"


# --- ollama_pack.engines.ollama.messages ---
# The conversation of an OpenAI chat body, as Ollama wants it.

_ROLES = {"developer": "system", "function": "tool"}
_THINKING_FIELDS = ("thinking", "reasoning_content", "reasoning")


def ollama_messages(value: object) -> list[dict[str, Any]]:
    """Ollama's messages for OpenAI's.

    Every message has `content`, as text. Texts of several parts are put end to end. Images are base64 without
    a head, arguments of tool calls are objects, and a tool's result tells by name which tool it is from.

    Raises:
        ChatBodyError: something in them has no place in Ollama's form.
    """
    tools: dict[str, str] = {}  # id of a call → name of the tool; an id that comes again means the later call
    converted = []
    for number, one in enumerate(objects_in(value, "messages")):
        converted.append(_ollama_message(one, f"messages[{number}]", tools))
        for call in converted[-1].get("tool_calls", ()):
            tools[call.get("id", "")] = call["function"]["name"]
    return converted


def _ollama_message(turn: Mapping[str, Any], field: str, tools: Mapping[str, str]) -> dict[str, Any]:
    role = text_in(turn.get("role"), f"{field}.role")
    parts = [_content_part(part, place) for place, part in message_parts(turn, field)]
    parts += [("image", image) for image in _own_images(turn, field)]
    texts, images = ([value for kind, value in parts if kind == wanted] for wanted in ("text", "image"))
    return {
        "role": _ROLES.get(role, role),
        "content": "".join(texts),
        **_thinking(turn),
        **({"images": images} if images else {}),
        **_tool_calls(turn, field),
        **(_tool_result(turn, field, tools) if _ROLES.get(role, role) == "tool" else {}),
    }


def _content_part(part: Mapping[str, Any], field: str) -> tuple[str, str]:
    """A part of a content as ("text", text) or ("image", base64)."""
    if "text" in part and part.get("type", "text") == "text":
        return "text", part["text"]
    if part["type"] == "image_url":
        return "image", _image(part["image_url"]["url"], f"{field}.image_url")
    raise ChatBodyError(
        field, message("is of the type {kind!r}: Ollama takes text and images only", kind=part["type"][:40])
    )


def _own_images(turn: Mapping[str, Any], field: str) -> Iterator[str]:
    """The images of a message that already has Ollama's own field for them."""
    images = turn.get("images")
    if images is not None and not isinstance(images, list):
        raise ChatBodyError(f"{field}.images", message("must be a list of images in base64"))
    for number, image in enumerate(images or ()):
        yield _image(text_in(image, f"{field}.images[{number}]"), f"{field}.images[{number}]")


def _image(address: str, field: str) -> str:
    """The base64 of a data URL, or of what is base64 already."""
    scheme = address[:8].lower()
    if scheme.startswith(("http://", "https://")):
        raise ChatBodyError(
            field, message("is a link: Ollama fetches none, so send the image itself as a data URL")
        )
    head, comma, data = address.partition(",") if scheme.startswith("data:") else ("", "", address)
    if comma and not head.lower().endswith(";base64"):
        raise ChatBodyError(
            field, message("is a data URL without base64: encode it as data:image/…;base64,…")
        )
    data = "".join(data.split())
    try:
        decoded = base64.b64decode(data, validate=True)
    except ValueError:  # binascii.Error, and characters that are not ASCII
        raise ChatBodyError(field, message("is not base64: send the image as a data URL")) from None
    if not decoded:
        raise ChatBodyError(field, message("is empty"))
    return data


def _thinking(turn: Mapping[str, Any]) -> dict[str, str]:
    given = (turn.get(name) for name in _THINKING_FIELDS)
    thought = next((text for text in given if isinstance(text, str) and text), "")
    return {"thinking": thought} if thought else {}


def _tool_calls(turn: Mapping[str, Any], field: str) -> dict[str, list[dict[str, Any]]]:
    calls = objects_in(turn.get("tool_calls"), f"{field}.tool_calls")
    converted = [
        _ollama_call(call, number, f"{field}.tool_calls[{number}]") for number, call in enumerate(calls)
    ]
    if not calls and turn.get("function_call"):  # OpenAI's old form, in a conversation that is older
        converted = [{"function": _ollama_function(turn["function_call"], 0, f"{field}.function_call")}]
    return {"tool_calls": converted} if converted else {}


def _ollama_call(call: Mapping[str, Any], number: int, field: str) -> dict[str, Any]:
    identity = call.get("id")
    function = object_in(call.get("function"), f"{field}.function")
    index = call.get("index", function.get("index"))
    place = index if isinstance(index, int) and not isinstance(index, bool) else number
    return {
        **({} if identity is None else {"id": text_in(identity, f"{field}.id")}),
        "function": _ollama_function(function, place, f"{field}.function"),
    }


def _ollama_function(given: object, place: int, field: str) -> dict[str, Any]:
    function = object_in(given, field)
    return {
        "index": place,
        "name": text_in(function.get("name"), f"{field}.name"),
        "arguments": _arguments(function.get("arguments"), f"{field}.arguments"),
    }


def _arguments(given: object, field: str) -> Mapping[str, Any]:
    """Arguments as an object; OpenAI writes that object out as text, and models leave it empty for none."""
    if isinstance(given, str):
        try:
            given = json_in(given) if given.strip() else {}
        except ValueError as error:
            raise ChatBodyError(
                field, message("is not JSON: an earlier answer was cut off or made up")
            ) from error
    return object_in(given, field)


def _tool_result(turn: Mapping[str, Any], field: str, tools: Mapping[str, str]) -> dict[str, str]:
    identity = turn.get("tool_call_id")
    named = turn.get("tool_name") or (tools.get(identity) if isinstance(identity, str) else None)
    found = {"tool_name": named or turn.get("name"), "tool_call_id": identity}
    return {name: text_in(value, f"{field}.{name}") for name, value in found.items() if value}


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


# --- ollama_pack.engines.ollama.to_ollama ---
# An OpenAI chat request as Ollama's `POST /api/chat` wants it.

# What `think` a model takes: none, true and false, or also how much.
Thinking = Literal["never", "switch", "levels"]

MAX_TOP_LOGPROBS = 20
# Of any length, as a client has written it: each digit is looked at once.
_GO_DURATION = re.compile(r"[-+]?(?:0|(?:(?:\d++(?:\.\d*+)?+|\.\d++)(?:ns|us|µs|ms|s|m|h))++)")
_KEEP_ALIVE_FORMS = message('must be seconds or a duration such as "5m"')
# Of all models only gpt-oss has levels; with others Ollama refuses them. `details.family` tells.
_FAMILIES_WITH_LEVELS = frozenset({"gptoss", "gpt-oss"})
# OpenAI's efforts → Ollama's levels.
_LEVELS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def thinking_of(capabilities: Collection[str], family: str) -> Thinking:
    """What `think` a model takes, by what `/api/show` says of it."""
    if "thinking" not in capabilities:
        return "never"
    return "levels" if family in _FAMILIES_WITH_LEVELS else "switch"


def request_to_ollama(body: Mapping[str, Any], thinking: Thinking | None = None) -> dict[str, Any]:
    """The body for `/api/chat` that asks what an OpenAI chat body asks.

    Fields that Ollama has no word for (`metadata`, `user`, `n`, `logit_bias`, `parallel_tool_calls`, …) are
    left out. `stream` is always there, because Ollama streams unless told otherwise.

    Args:
        body: an OpenAI chat body; Ollama's own fields in it are taken too, as Open WebUI mixes both.
        thinking: what `think` the model takes. None: not known; then `reasoning_effort` is left out, unless
            it is "none", because a wrong `think` is refused and a model that can think does so unasked.

    Raises:
        ChatBodyError: something in the body cannot be put into Ollama's form.
    """
    return {
        "model": text_in(body.get("model"), "model"),
        "messages": ollama_messages(body.get("messages")),
        "stream": bool(body.get("stream")),
        **ollama_settings(body, thinking),
        **_logprobs(body),
    }


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


def _logprobs(body: Mapping[str, Any]) -> dict[str, Any]:
    given = {"logprobs": switch_in, "top_logprobs": whole_in}
    found = {name: read(body[name], name) for name, read in given.items() if body.get(name) is not None}
    if not 0 <= found.get("top_logprobs", 0) <= MAX_TOP_LOGPROBS:
        raise ChatBodyError("top_logprobs", message("must be from 0 to {limit}", limit=MAX_TOP_LOGPROBS))
    return found


# --- ollama_pack.engines.sse ---
# Lines of a stream, and server-sent events as the HTML standard has them ("Interpreting an event stream").
#
# Both are of bounded length. Lenient where engines are: an event without an empty line after it counts when the
# stream ends.


class LineTooLongError(Exception):
    """A line is longer than it may be. Never leaves `engines/`."""


class LineBuffer:
    """Takes bytes as they come and gives whole lines; never holds more than one line and what came last."""

    def __init__(self, limit: int) -> None:
        """`limit`: the longest line, in bytes."""
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends; empty ones are left out.

        Raises:
            LineTooLongError: one of them is, or what has come of the next.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if any(len(line) > self._limit for line in (*lines, self._rest)):
            raise LineTooLongError
        return [line for line in lines if line.strip()]

    def end(self) -> list[bytes]:
        """What came after the last end of a line, as a line of its own."""
        rest, self._rest = self._rest, b""
        return [rest] if rest.strip() else []


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


# --- ollama_pack.engines.transport ---
# Requests to one node over aiohttp: limits of time and size; whatever goes wrong is a typed error.

HTTP_OK = 200
REFUSAL_BYTES = 16 * 2**10  # read of an answer that is an error; its message is shorter
MAX_NOTES = 32  # sentences about one node in the log
UNREAD_SECONDS = 1.0  # in which it shows that a used connection had ended
END_SECONDS = 1.0  # for the end of the body after the last line: then the connection can serve again

log = logging.getLogger(__name__)

LEAST_PAUSE, MOST_PAUSE = 0.5, 120.0  # seconds for which a node is believed to be busy

NO_HEADERS: Mapping[str, str] = {}

_Stage = Literal["first byte", "next line", "answer"]
T = TypeVar("T")


def node_session(connector: aiohttp.BaseConnector, *, trust_env: bool = False) -> aiohttp.ClientSession:
    """A session for nodes, that notes in the context of a request when it goes over a used connection.

    It keeps no cookies: what a gateway sets for one user is not to be sent with another's request.
    """

    async def reused(_session: Any, context: Any, _params: Any) -> None:
        if context.trace_request_ctx is not None:
            context.trace_request_ctx["reused"] = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(reused)
    jar = aiohttp.DummyCookieJar()
    return aiohttp.ClientSession(
        connector=connector, trust_env=trust_env, cookie_jar=jar, trace_configs=[trace]
    )


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """How long and how much a node may take.

    Attributes:
        connect: seconds until there is a connection.
        answer: seconds for a whole answer about the node and its models.
        next_line: seconds between two lines of a stream. Long, because Ollama says nothing while a model
            writes the arguments of a tool call.
        line_bytes: the longest line.
        answer_bytes: the longest answer about the node and its models.
    """

    connect: float = 3.0
    answer: float = 5.0
    next_line: float = 300.0
    line_bytes: int = 4 * 2**20
    answer_bytes: int = 16 * 2**20


class StreamBuffer(Protocol[T]):
    """Cuts a stream of bytes into the pieces that a kind of engine sends."""

    def feed(self, data: bytes) -> list[T]:
        """The pieces that are complete now; LineTooLongError where one is too long."""

    def end(self) -> list[T]:
        """What came last, when nothing more does."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a kind of engine is called, and what its refusals mean.

    Attributes:
        engine: what should run at the node, for messages.
        refusal: the error for a node's name, an HTTP status, a body and the model that was asked for.
    """

    engine: str
    refusal: Callable[[str, int, bytes, str], NodeError]


OLLAMA_DIALECT = Dialect(message("an Ollama"), status_error)


class NodeTransport:
    """The way to one node. The session is the caller's, with its pool of connections."""

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        limits: NodeLimits,
        headers: Mapping[str, str],
        dialect: Dialect = OLLAMA_DIALECT,
    ) -> None:
        """Take what is needed later; nothing is connected."""
        self.name = node_name(url)
        self.dialect = dialect
        self.limits = limits
        self._url = url.rstrip("/")
        self._session = session
        self._headers = {**headers, "Content-Type": "application/json"}
        self._noted: set[str] = set()

    def note(self, sentence: str) -> None:
        """Log something odd about the node, each thing once."""
        if sentence not in self._noted and len(self._noted) < MAX_NOTES:
            self._noted.add(sentence)
            log.warning("Node %s: %s", self.name, sentence)

    async def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        seconds: float | None = None,
        limit: int = 0,
    ) -> dict[str, Any]:
        """The answer to a GET, or to a POST of the body, as a whole.

        Args:
            path: such as /api/tags.
            body: of a POST.
            seconds: for all of it, instead of the limit for answers.
            limit: bytes that the answer may have, where that is more than the limit for answers.

        Raises:
            NodeError: there is none, or not in time, or it is an error or no JSON object.
        """
        return self.parsed(await self.fetch(path, body, seconds, limit))

    async def fetch(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        seconds: float | None = None,
        limit: int = 0,
    ) -> bytes:
        """As `ask`, for an answer that need not be JSON."""
        async with self._within("answer", self.limits.answer if seconds is None else seconds):
            response = await self._open(path, body)
            try:
                return await self._read(response, max(limit, self.limits.answer_bytes))
            finally:
                response.close()  # after its end, this leaves the connection in the pool

    async def lines(
        self, path: str, body: Mapping[str, Any], first_byte: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The lines of the answer to a POST, each a JSON object, to the one that says it is the last.

        Closing the iterator closes the connection.

        Args:
            path: such as /api/chat.
            body: what is sent.
            first_byte: seconds until the first line; Ollama sends nothing before it, not even a status.
            headers: of this request, besides those of all.

        Raises:
            NodeError: before the first line, or at any point afterwards.
        """
        async with aclosing(
            self._pieces(path, body, first_byte, LineBuffer(self.limits.line_bytes), headers)
        ) as pieces:
            async for text in pieces:
                line = self._line(text)
                yield line
                if line.get("done") is True:
                    await _read_to_end(pieces)
                    return
        raise NodeFaultError(self.name, message("ended its answer before the last line"))

    async def events(
        self, path: str, body: Mapping[str, Any], first_byte: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncGenerator[ServerEvent, None]:
        """The events of the answer to a POST, to the one that says it is the last, or to the end of the body.

        The connection serves no other request: llama.cpp cuts it after the last event without having said so,
        and whoever sent a request there would find nobody. As for `lines` otherwise.
        """
        async with aclosing(
            self._pieces(
                path, body, first_byte, SseBuffer(self.limits.line_bytes), headers, last_request=True
            )
        ) as pieces:
            async for event in pieces:
                yield event
                if event.is_last:
                    return

    async def _pieces(  # noqa: PLR0913 - each is a fact of its own
        self,
        path: str,
        body: Mapping[str, Any],
        first_byte: float,
        buffer: "StreamBuffer[T]",
        headers: Mapping[str, str],
        *,
        last_request: bool = False,
    ) -> AsyncGenerator[T, None]:
        """The pieces of the answer to a POST, to the end of its body."""
        until = asyncio.get_running_loop().time() + first_byte
        async with self._within("first byte", first_byte):
            last = {"Connection": "close"} if last_request else {}
            response = await self._open(path, body, {**headers, **last})
        try:
            if last_request and response.connection and response.connection.protocol is not None:
                response.connection.protocol.force_close()  # also where the node does not repeat `close`
            async with self._within("first byte", first_byte, until):
                pieces = await self._next_pieces(response, buffer)
            while pieces:
                for piece in pieces:
                    yield piece
                async with self._within("next line", self.limits.next_line):
                    pieces = await self._next_pieces(response, buffer)
        finally:
            response.close()

    async def _open(
        self, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str] = NO_HEADERS
    ) -> aiohttp.ClientResponse:
        """Send a request and get an answer that is no error, its body unread."""
        response = await self._send(path, body, headers)
        if response.status == HTTP_OK:
            return response
        if location := response.headers.get("Location"):
            response.close()
            raise self._redirected(path, response.status, location)
        try:
            said = await self._read(response, REFUSAL_BYTES, whole=False)
        finally:
            response.close()
        error = self.dialect.refusal(self.name, response.status, said, str((body or {}).get("model", "")))
        if isinstance(error, NodeBusyError):
            pause = retry_seconds(response.headers.get("Retry-After", ""))
            error.retry_after = None if pause is None else min(max(pause, LEAST_PAUSE), MOST_PAUSE)
        raise error

    def _redirected(self, path: str, status: int, location: str) -> NodeFaultError:
        """Not followed: it would make a GET of a POST, and carry the node's key to another server."""
        target = shortened(node_name(urljoin(self._url + path, location)).removesuffix(path))
        reason = message("redirects to {target} (set that address instead)", target=target)
        return NodeFaultError(self.name, reason, status=status)

    async def _send(
        self, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        if not self._url.startswith(("http://", "https://")):
            raise NodeUnreachableError(
                self.name, message("its address does not begin with http:// or https://")
            )
        method, data = ("GET", None) if body is None else ("POST", self._encoded(body))
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.limits.connect)
        try:
            return await self._over_living_connection(
                method,
                self._url + path,
                data=data,
                headers=self._merged(headers),
                timeout=timeout,
                allow_redirects=False,
            )
        except aiohttp.ServerTimeoutError as error:
            raise NodeTimeoutError(self.name, "connect", self.limits.connect) from error
        except aiohttp.ClientSSLError as error:
            raise NodeCertificateError(self.name, shortened(str(error))) from error
        except aiohttp.ClientConnectorError as error:
            raise NodeUnreachableError(self.name, shortened(str(error))) from error
        except ValueError:  # aiohttp shows the address as it is, with its password
            raise NodeUnreachableError(self.name, message("its address or a header cannot be used")) from None
        except (aiohttp.ClientError, OSError) as error:
            raise NodeFaultError(
                self.name, message("hung up before it answered, or spoke no HTTP")
            ) from error

    async def _over_living_connection(self, method: str, url: str, **sent: Any) -> aiohttp.ClientResponse:
        """The answer to a request, which is sent again where a used connection has ended at that moment.

        Servers close connections that nobody uses: uvicorn and llama.cpp after five seconds. What is sent
        just then is never read. aiohttp itself sends a GET again, but no POST. A server that hangs up later
        may have died of the request.
        """
        loop = asyncio.get_running_loop()
        while True:
            context: dict[str, bool] = {}
            began = loop.time()
            try:
                return await self._session.request(method, url, trace_request_ctx=context, **sent)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not context or loop.time() - began > UNREAD_SECONDS:
                    raise

    def _merged(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The headers of all requests and of this one, whose own count more, in any spelling."""
        own = {name.lower() for name in headers}
        return {name: value for name, value in self._headers.items() if name.lower() not in own} | {**headers}

    def _encoded(self, body: Mapping[str, Any]) -> bytes:
        try:
            return json.dumps(body, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestRefusedError(
                self.name, None, message("the request cannot be written as JSON")
            ) from error

    async def _read(self, response: aiohttp.ClientResponse, limit: int, *, whole: bool = True) -> bytes:
        """The body, or its beginning where it is not needed as a whole."""
        body = bytearray()
        while len(body) <= limit and (data := await self._some(response)):
            body += data
        if whole and len(body) > limit:
            raise NodeFaultError(self.name, message("answers with more than {limit} bytes", limit=limit))
        return bytes(body[:limit])

    async def _next_pieces(self, response: aiohttp.ClientResponse, buffer: "StreamBuffer[T]") -> list[T]:
        """One piece or more; none when the answer has ended."""
        try:
            while data := await self._some(response):
                if pieces := buffer.feed(data):
                    return pieces
        except LineTooLongError as error:
            reason = message("sends a line of more than {limit} bytes", limit=self.limits.line_bytes)
            raise NodeFaultError(self.name, reason) from error
        return buffer.end()

    async def _some(self, response: aiohttp.ClientResponse) -> bytes:
        """What has come, at least a byte; empty at the end."""
        try:
            return await response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise NodeFaultError(self.name, message("hung up in the middle of its answer")) from error

    def _line(self, text: bytes) -> dict[str, Any]:
        line = self.parsed(text)
        if "error" in line:
            raise NodeFaultError(self.name, message("failed while it answered"), said=said_in(text))
        return line

    def parsed(self, text: bytes) -> dict[str, Any]:
        """A JSON object. What is none is not shown: it may be a piece of somebody's conversation.

        Raises:
            NodeFaultError: it is none.
        """
        try:
            value = json_in(text.decode())
        except ValueError:
            value = None
        if isinstance(value, dict):
            return value
        reason = message(
            "sends {count} bytes that are no JSON object: is it {engine}?",
            count=len(text),
            engine=self.dialect.engine,
        )
        raise NodeFaultError(self.name, reason)

    @asynccontextmanager
    async def _within(self, stage: _Stage, seconds: float, until: float | None = None) -> AsyncIterator[None]:
        """Bound what is done inside, by the event loop's clock."""
        end = asyncio.get_running_loop().time() + seconds if until is None else until
        try:
            async with asyncio.timeout_at(end):
                yield
        except TimeoutError as error:
            raise NodeTimeoutError(self.name, stage, seconds) from error


async def _read_to_end(pieces: AsyncGenerator[Any, None]) -> None:
    """Skip what comes after the last piece: an error there does no harm to an answer that is complete."""
    with suppress(NodeError, TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            async for _ in pieces:
                pass


# --- ollama_pack.routing.state.estimates ---
# How fast a node runs a model, learned from the durations that the engine reports.

SAMPLES_TO_TRUST = 5
SMOOTHING = 0.2  # the weight of a new sample; the first few weigh more
MIN_PROMPT = 32  # tokens; shorter ones measure the overhead
MOST_HIT = 0.4  # of a prompt: where more is believed to be held, being wrong would matter too much
HIT_FACTOR = 2.5  # a prompt that goes so many times faster than usual was held in part
MAX_COUNTED = 1024  # slots of an engine that tells how many requests it answers
WAIT_NOISE = 0.15  # seconds of reported wait that mean nothing
GOOD_FACTOR = 2.0  # a first token that takes so many times as long as one alone has not waited
COUNTS_TO_SHRINK = 2  # reports in a row that the engine holds requests back


@dataclass(frozen=True, slots=True)
class Durations:
    """What an engine reports at the end of a request, in seconds and tokens.

    Attributes:
        total: from its arrival at the node to its end.
        load: loading the model.
        prompt: evaluating the prompt.
        prompt_count: tokens of the prompt, those reused included.
        decode: generating.
        decode_count: tokens generated.
        hit: tokens reused, where the engine tells (`cached_tokens`); None: it does not.
    """

    total: float
    load: float = 0.0
    prompt: float = 0.0
    prompt_count: int = 0
    decode: float = 0.0
    decode_count: int = 0
    hit: int | None = None

    @property
    def wait(self) -> float:
        """Seconds in the engine's own queue: total - load - prompt evaluation - generation."""
        return max(0.0, self.total - self.load - self.prompt - self.decode)


class Average:
    """An exponentially weighted mean; its first samples are averaged plainly."""

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0

    def add(self, sample: float) -> None:
        self.count += 1
        self.value += max(SMOOTHING, 1 / self.count) * (sample - self.value)

    def or_else(self, prior: float) -> float:
        return self.value if self.count else prior


class RatesLearner:
    """The rates at which one node runs one set of weights."""

    def __init__(self) -> None:
        self.load = Average()
        self.prompt = Average()
        self.token = Average()
        self.output = Average()
        self.background_output = Average()
        self.service = Average()
        self._fast = 0

    def observe(self, spent: Durations, hit: int | None, *, background: bool, loaded: bool) -> None:
        """Learn from one finished request.

        Args:
            spent: what the engine reports.
            hit: tokens of the prompt that are believed to have been held; None: nobody knows.
            background: whether it was a background call, whose answers are shorter.
            loaded: whether it made the node load the model.
        """
        if loaded and spent.load > 0:
            self.load.add(spent.load)
        if spent.decode > 0 and spent.decode_count > 1:
            self.token.add(spent.decode / spent.decode_count)
        if spent.decode_count:
            (self.background_output if background else self.output).add(spent.decode_count)
        if not background:
            self.service.add(spent.prompt + spent.decode)
        known = spent.hit if spent.hit is not None else hit
        if known is not None:
            self._observe_prompt(spent, known)

    def _observe_prompt(self, spent: Durations, hit: int) -> None:
        """Likely hits are left out, unless every prompt is fast: then it is the rate that has changed."""
        evaluated = spent.prompt_count - hit
        if (
            spent.prompt <= 0
            or evaluated < MIN_PROMPT
            or (spent.hit is None and hit > MOST_HIT * spent.prompt_count)
        ):
            return
        rate = evaluated / spent.prompt
        self._fast = self._fast + 1 if self.prompt.count and rate > HIT_FACTOR * self.prompt.value else 0
        if self._fast == 0:
            self.prompt.add(rate)
        elif self._fast >= SAMPLES_TO_TRUST:
            self.prompt.value, self._fast = rate, 0

    def hit(self, spent: Durations) -> float:
        """Tokens of the prompt that were reused: as told, or 1 - duration * rate / count of it."""
        if spent.hit is not None:
            return spent.hit
        return max(0.0, spent.prompt_count - spent.prompt * self.prompt.value)

    def rates(self, priors: ModelRates, slots: int, keeps: int) -> ModelRates:
        """What is known, filled up with what is usual."""
        return ModelRates(
            slots=slots,
            keeps=keeps,
            load=self.load.or_else(priors.load),
            prompt=self.prompt.or_else(priors.prompt),
            token=self.token.or_else(priors.token),
            output=self.output.or_else(priors.output),
            background_output=self.background_output.or_else(priors.background_output),
            service=self.service.or_else(priors.service),
            learned=min(self.prompt.count, self.token.count) >= SAMPLES_TO_TRUST,
            load_measured=self.load.count > 0,
        )


def usual_rates(nodes: Sequence[RatesLearner], priors: ModelRates) -> ModelRates:
    """What nodes have measured, on average; as in `priors` what none of them has."""

    def mean(of: Callable[[RatesLearner], Average], prior: float) -> float:
        measured = [average.value for node in nodes if (average := of(node)).count]
        return fmean(measured) if measured else prior

    return replace(
        priors,
        load=mean(lambda node: node.load, priors.load),
        prompt=mean(lambda node: node.prompt, priors.prompt),
        token=mean(lambda node: node.token, priors.token),
        output=mean(lambda node: node.output, priors.output),
        background_output=mean(lambda node: node.background_output, priors.background_output),
        service=mean(lambda node: node.service, priors.service),
    )


def are_near(one: ModelRates, other: ModelRates) -> bool:
    """Whether all that nodes measure is the same in both, give or take a tenth."""
    pairs = (
        (one.load, other.load),
        (one.prompt, other.prompt),
        (one.token, other.token),
        (one.output, other.output),
        (one.background_output, other.background_output),
        (one.service, other.service),
    )
    return all(isclose(*pair, rel_tol=0.1) for pair in pairs)


class SlotLearner:
    """How many requests a runner answers at once: what its row says, else measured, from one upwards.

    While answers begin as soon as they do alone, twice as many are offered: an engine that batches has all of
    its slots within a few first tokens. When requests wait inside the engine, what was good before is gone
    back to, and one more is tried after ever more requests: an engine with one slot is hardly ever flooded.
    """

    def __init__(self, declared: int | None, probe_requests: int) -> None:
        self.slots = declared or 1
        self._declared = declared is not None
        self._every = probe_requests
        self._until_try = 0
        self._proved = 1  # so many were answered at once without waiting
        self._limited = False  # requests have waited in the engine: from now on one more is tried at a time
        self._reports = False  # the engine says whether requests wait in it
        self._held_back = 0
        self._waited = 0
        self._slow = 0
        self._alone = Average()  # seconds to the first token of requests that had the runner to themselves
        self._pace = Average()  # the same for each token of a long prompt

    @property
    def offered(self) -> int:
        """The slots to count on now, the one that is tried included."""
        tries = not self._declared and self._until_try <= 0 and self.slots < MAX_COUNTED
        return self.slots + tries

    def counted(self, running: int, waiting: int) -> None:
        """Learn from an engine that reports how many requests it answers at once, and how many wait."""
        if self._declared:
            return
        self._reports = True
        self._held_back = self._held_back + 1 if waiting and 0 < running < self.slots else 0
        if running > self.slots or self._held_back >= COUNTS_TO_SHRINK:
            self.slots, self._held_back = min(running, MAX_COUNTED), 0
        if waiting:
            self._limited = True
        elif running >= self.slots:
            self.slots, self._limited = min(2 * running, MAX_COUNTED), False

    def began(self, beside: int, seconds: float, tokens: int) -> None:
        """Learn from a first token.

        Args:
            beside: requests that ran there when this one was sent.
            seconds: that it took.
            tokens: of its prompt that were not held.
        """
        if self._declared:
            return
        if beside == 0:
            self._alone.add(seconds)
            self._pace.add(seconds / max(1, tokens))
        expected = max(self._alone.value, self._pace.value * tokens)
        there = beside + 1
        if not self._alone.count or seconds <= GOOD_FACTOR * expected + WAIT_NOISE:
            self._slow = 0
            if not self._limited and 2 * there > self.slots:
                self.slots = min(2 * there, MAX_COUNTED)
        elif there <= self.slots and not self._reports:
            self._slow += 1
            if self._slow >= SAMPLES_TO_TRUST:
                self._slow, self._limited = 0, True
                self.slots = max(1, min(self.slots, there) * 3 // 4)
                self._until_try = self._every

    def observe(self, beside: int, wait: float) -> None:
        """Learn from a request that was sent while `beside` others ran, and waited so long in the engine."""
        self._until_try -= 1
        if self._declared:
            return
        if wait < WAIT_NOISE:
            self._waited = 0
            self._proved = max(self._proved, beside + 1)
            if beside >= self.slots:
                self.slots = min(MAX_COUNTED, beside + 1)
            return
        self._limited = True
        if beside >= self.slots:
            self._try_later()
        elif beside > 0:
            self._waited += 1
            if beside >= self._proved or self._waited >= SAMPLES_TO_TRUST:  # it has fewer than was believed
                self.slots = self._proved = beside
                self._waited = 0
                self._try_later()

    def _try_later(self) -> None:
        if self._until_try <= 0:
            self._until_try = self._every
            self._every = min(2 * self._every, 4096)


# --- ollama_pack.routing.dispatch.durations ---
# How long a finished answer took the engine, by the figures in its last chunk.

NANO, MILLI = 1e-9, 1e-3
FASTEST_TOKEN = 0.0002  # seconds; no engine generates one faster, so what came faster came in one piece


@dataclass(frozen=True, slots=True)
class Elapsed:
    """What was measured here, in seconds since the request was sent.

    Attributes:
        first_token: until the first chunk came.
        total: until the end.
    """

    first_token: float
    total: float


def spent_on(
    usage: Mapping[str, Any] | None, timings: Mapping[str, Any] | None, elapsed: Elapsed
) -> Durations:
    """Read what the chunk with the figures tells: durations, or counts whose durations were measured here.

    Args:
        usage: its `usage`: with Ollama's nanoseconds, as `openai_usage` puts them, or OpenAI's own.
        timings: its `timings`: llama.cpp's milliseconds.
        elapsed: what was measured here, for what the engine does not tell.
    """
    usage, timings = usage or {}, timings or {}
    if _told(usage, "total_duration"):
        return _by_ollama(usage)
    if _told(timings, "prompt_ms") or _told(timings, "predicted_ms"):
        return _by_llamacpp(usage, timings, elapsed)
    return _by_clock(usage, elapsed)


def _by_ollama(usage: Mapping[str, Any]) -> Durations:
    """Ollama reports everything. Before 0.33.3 only the duration shows how much of the prompt it had."""
    return Durations(
        total=_told(usage, "total_duration") * NANO,
        load=_told(usage, "load_duration") * NANO,
        prompt=_told(usage, "prompt_eval_duration") * NANO,
        prompt_count=int(_told(usage, "prompt_eval_count")),
        decode=_told(usage, "eval_duration") * NANO,
        decode_count=int(_told(usage, "eval_count")),
        hit=_count_or_none(usage, "prompt_eval_cached_count"),
    )


def _by_llamacpp(usage: Mapping[str, Any], timings: Mapping[str, Any], elapsed: Elapsed) -> Durations:
    """llama.cpp reports durations and hits. What it does not report is how long the request waited.

    That is what passed before the first token without a prompt being evaluated. The time to the end does not
    tell, since a slow reader makes it longer.
    """
    prompt, decode = _told(timings, "prompt_ms") * MILLI, _told(timings, "predicted_ms") * MILLI
    began = min(elapsed.first_token, elapsed.total - decode)  # a reader of whole answers sees no first token
    evaluated, count = int(_told(timings, "prompt_n")), int(_told(usage, "prompt_tokens"))
    hit = _count_or_none(timings, "cache_n")
    if hit is None and count > evaluated:
        hit = count - evaluated  # an older one, which tells only what it evaluated
    elif hit is None:  # an older one that had nothing, or an Ollama, whose `prompt_n` counts what it had
        hit = _cached(usage)
        evaluated -= min(evaluated, hit or 0)
    return Durations(
        total=max(0.0, began - prompt) + prompt + decode,
        prompt=prompt,
        prompt_count=evaluated + (hit or 0),
        decode=decode,
        decode_count=int(_told(timings, "predicted_n")),
        hit=hit,
    )


def _by_clock(usage: Mapping[str, Any], elapsed: Elapsed) -> Durations:
    """Counts alone, as of vLLM and SGLang: what passed before the first token counts as the prompt's.

    Waiting in the engine's queue is in it, as nothing tells them apart. An answer that came in one piece
    shows no first token: then all of it counts as generation, and nothing is learned of the prompt.
    """
    total = max(0.0, elapsed.total)
    first = min(max(0.0, elapsed.first_token), total)
    count = int(_told(usage, "completion_tokens"))
    in_one_piece = count > 1 and total - first < FASTEST_TOKEN * (count - 1)
    return Durations(
        total=total,
        prompt=0.0 if in_one_piece else first,
        prompt_count=int(_told(usage, "prompt_tokens")),
        decode=total if in_one_piece else total - first,
        decode_count=count,
        hit=_cached(usage),
    )


def _cached(usage: Mapping[str, Any]) -> int | None:
    """Tokens of the prompt that were reused; None where it is not told.

    vLLM tells it with `--enable-prompt-tokens-details`, SGLang with `--enable-cache-report`.
    """
    details = usage.get("prompt_tokens_details")
    return _count_or_none(details, "cached_tokens") if isinstance(details, Mapping) else None


def _count_or_none(figures: Mapping[str, Any], name: str) -> int | None:
    return int(_told(figures, name)) if isinstance(figures.get(name), int | float) else None


def _told(figures: Mapping[str, Any], name: str) -> float:
    """A figure; 0 where there is none, or nonsense."""
    value = figures.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 < value < math.inf else 0.0


# --- ollama_pack.routing.dispatch.hang_delay ---
# How long a node may honestly be silent before it answers: after that, another one is asked if it can be.
#
# The limit that an admin sets (`first_token_timeout_seconds`) is for the worst case, such as a model that is
# loaded from a slow disk. Most requests are far from it, and a node that hangs would cost each of them all of
# it. So the first node that a request goes to is suspected earlier, by what is known of it. What is not known
# is taken to be as slow as anything that people run, so that no honest load is cut off.

SUSPICION_SECONDS = 10.0  # in which nothing is wrong, whatever was predicted
SUSPICION_FACTOR = 3.0  # so many times the predicted seconds may still be bad luck
SLOWEST_LOAD = 100e6  # bytes a second: a hard disk, or a busy network share
LEAST_LOAD_LIMIT = 600.0  # seconds for any load that goes on: twice as long as Ollama lets one stand still
LEAST_KNOWN_LIMIT = 120.0  # seconds for a load whose usual time was measured
KNOWN_FACTOR = 20.0  # so many times the measured seconds: the file was in the page cache then, perhaps
SLOWEST_SHARE = 5e6  # bytes a second, with nobody else to ask: a network share at its worst
SLOWEST_PROMPT = 10.0  # tokens a second: a model on a small machine without a GPU


def honest_silence(assignment: Assignment) -> float:
    """Seconds that a node may take to its first token without being suspected; infinite: not to be said.

    All of the prompt counts, as its prefix may be lost, and a load, as the model may have just been unloaded.
    """
    quote = assignment.chosen.quote
    waits = SUSPICION_SECONDS + SUSPICION_FACTOR * assignment.chosen.wait
    return waits + _evaluation(quote, assignment.request.tokens) + _load(quote, assignment)


def longest_load(binding: Assignment, most: float) -> float:
    """Seconds that a node may take for a load that it shows to go on; never more than `most`.

    `/api/ps` shows a load and the first answer after it alike, where Ollama runs a model with its own engine:
    the model is listed, and `expires_at` moves. So a hang in that answer is left when this time is over.
    That is why a load that was measured gets less.
    """
    quote = binding.chosen.quote
    size = binding.chosen.node.view.models[quote.model].size
    if not size:
        return most
    if quote.rates.load_measured:
        slow = SUSPICION_FACTOR * size / SLOWEST_LOAD
        return min(most, max(LEAST_KNOWN_LIMIT, slow, KNOWN_FACTOR * quote.rates.load))
    return min(most, max(LEAST_LOAD_LIMIT, size / SLOWEST_SHARE))


def _evaluation(quote: Quote, tokens: int) -> float:
    return SUSPICION_FACTOR * tokens * quote.pace if quote.rates.learned else tokens / SLOWEST_PROMPT


def _load(quote: Quote, assignment: Assignment) -> float:
    if quote.rates.load_measured:
        return SUSPICION_FACTOR * quote.rates.load
    size = assignment.size
    if size:
        return size / SLOWEST_LOAD
    return 0.0 if quote.reused else math.inf  # an engine that does not tell sizes has its models in memory


# --- ollama_pack.engines.way_in ---
# What a node is asked with besides the request: its login, its key, its headers.

Header = tuple[str, str]

_TEMPLATE = re.compile(r"\{\{[A-Z_]+\}\}")  # Open WebUI's, such as {{USER_ID}}


@dataclass(frozen=True, slots=True)
class WayIn:
    """How a node lets the router in. Only the address may be shown.

    Attributes:
        url: the node's address, without a login.
        key: sent as a bearer token; empty: none.
        login: `user:password` for basic authentication; empty: none.
        headers: name and value of what is sent with every request; values may have templates.
        auth: how Open WebUI signs in there, of one of its connections; empty: with the key, if there is one.
        cookies: the browser's cookies are sent along with its chats, as such a connection may ask for.
    """

    url: str
    key: str = field(default="", repr=False)
    login: str = field(default="", repr=False)
    headers: tuple[Header, ...] = field(default=(), repr=False)
    auth: str = ""
    cookies: bool = False

    @property
    def needs_user(self) -> bool:
        """Whether it signs in with a token of the user who asks, so that nobody else can look at the node."""
        return self.auth not in {"", "bearer", "none"}

    @property
    def own_headers(self) -> dict[str, str]:
        """The headers, with nothing for templates, and values as Open WebUI sends them: ASCII alone."""
        safe = f"{punctuation} \t"
        return {name: quote(_TEMPLATE.sub("", value), safe=safe) for name, value in self.headers}

    @property
    def fixed_headers(self) -> dict[str, str]:
        """What is sent with a request that no user asks for, as a look at the node is."""
        own = self.own_headers
        if any(name.lower() == "authorization" for name in own):
            return own
        if self.key and self.auth in {"", "bearer"}:
            return {"Authorization": f"Bearer {self.key}", **own}
        if self.login:
            return {"Authorization": f"Basic {base64.b64encode(self.login.encode()).decode()}", **own}
        return own


def split_login(url: str) -> tuple[str, str]:
    """An address without its login, and the login as `user:password`, empty where there is none.

    Raises:
        ValueError: it is no address.
    """
    parts = urlsplit(url)
    if parts.username is None and parts.password is None:
        return url, ""
    login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), login


# --- ollama_pack.routing.dispatch.explain ---
# Decisions in words: status lines for people, records for the dashboard.

AT_ONCE_SECONDS = 0.05  # less is shown as no time at all
_WAITS = (5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600, 900, 1800, 3600)  # what an estimate is rounded up to


def answered_line(asked: str, binding: Assignment, seconds: float) -> Message:
    """What stays above an answer: `gpt-4 → llama3:70b · on gpu1 · in 0.8 s`.

    Args:
        asked: the name that was asked for.
        binding: the decision.
        seconds: from the question to the first token.
    """
    time = message("at once") if seconds < AT_ONCE_SECONDS else message("in {time}", time=duration(seconds))
    return joined([_models(asked, binding), message("on {node}", node=binding.node), time])


def waiting_line(asked: str, ahead: int, seconds: float | None, *, loading: bool = False) -> Message:
    """What somebody reads who waits for a node.

    Args:
        asked: the name that was asked for.
        ahead: how many requests come first.
        seconds: how long it may take; None: nobody knows.
        loading: a model is being loaded.
    """
    place = message("{number} ahead of you", number=ahead) if ahead else message("you are next")
    load = message("a model is being loaded") if loading else ""
    time = "" if seconds is None else message("about {time}", time=duration(_rounded(seconds)))
    return joined([asked, message("waiting for a GPU"), place, load, time])


def loading_line(asked: str, binding: Assignment, seconds: float) -> Message:
    """What somebody reads while the model is loaded: how long it has taken, and how long it usually takes."""
    rates = binding.chosen.quote.rates
    usual = duration(rates.load) if rates.load_measured and rates.load > seconds else None
    so_far = duration(seconds) if seconds >= 1 else None
    if usual and so_far:
        time = message("{time} of about {usual}", time=so_far, usual=usual)
    else:
        time = message("about {time}", time=usual) if usual else so_far or Message("")
    load = message("{node} is loading the model", node=binding.node)
    return joined([_models(asked, binding), load, time])


def waited_line(asked: str, seconds: float) -> Message:
    """What stays where the wait has ended without an answer."""
    return joined([asked, message("waited {time} for an answer", time=duration(seconds))])


def reason(binding: Assignment, before: Iterable[Message] = (), *, figures: bool) -> Message:
    """Why this node: `gpu1 has llama3:8b in memory · 82 % of the prompt is cached there · expected in 0.8 s`.

    Args:
        binding: the decision.
        before: what made the choice smaller, such as models that are not installed.
        figures: show those that reveal what others have asked: how much of the prompt the node holds, and the
            time that this saves. They are for admins.
    """
    installed = binding.chosen.node.view.models[binding.model]
    names = {"node": binding.node, "model": binding.model}
    if binding.loads:
        parts = [*before, message("{node} loads {model}", **names)]
    elif installed.remote:
        parts = [*before, message("{node} passes this on to {model}", **names)]
    else:
        parts = [*before, message("{node} has {model} in memory", **names)]
    if is_auto(binding.asked_for):
        parts.append(message("it is the best variant that fits there"))
    if not figures:
        return joined(parts)
    if binding.hit and binding.request.tokens:
        percent = f"{100 * min(1.0, binding.hit / binding.request.tokens):.0f}"
        parts.append(message("{percent} % of the prompt is cached there", percent=percent))
    if not binding.loads or binding.chosen.quote.rates.load_measured:
        seconds = binding.terms.predict_ttft
        at_once = seconds < AT_ONCE_SECONDS
        time = message("expected in {time}", time=duration(seconds))
        parts.append(message("expected at once") if at_once else time)
    return joined(parts)


def duration(seconds: float) -> Message:
    """Such as `0.8 s`, `12 s`, `3 min`."""
    if seconds >= 120:  # noqa: PLR2004 - up to two minutes are shown in seconds
        return message("{minutes} min", minutes=f"{seconds / 60:.0f}")
    return message("{seconds} s", seconds=f"{seconds:.{1 if seconds < 10 else 0}f}")  # noqa: PLR2004 - from ten on one digit less


def _rounded(seconds: float) -> float:
    """An estimate to the next round figure: more would look as if it was known, and change all the time."""
    return next((float(one) for one in _WAITS if seconds <= one), seconds)


def _models(asked: str, binding: Assignment) -> str:
    same = fold_name(asked) == fold_name(binding.model)
    return binding.model if same or not asked else f"{asked} → {binding.model}"


@dataclass(slots=True)
class Decision:
    """One decision and what came of it. Shows nothing of the conversation and not who asked.

    Attributes:
        at: Unix time, in seconds.
        node: the node that was chosen.
        model: the model that answers there.
        loads: it had to be loaded.
        hit: tokens of the prompt that the node held.
        tokens: tokens of the prompt, as estimated.
        waited: seconds in the queue.
        predicted: seconds to the first token at the node, as predicted.
        actual: seconds that it took; None: not yet, or never.
        background: it was a background call.
        considered: computes every node that was looked at, with the terms of its cost, when somebody looks.
    """

    at: float
    node: str
    model: str
    loads: bool
    hit: int
    tokens: int
    waited: float
    predicted: float
    actual: float | None
    background: bool
    considered: Callable[[], list[ConsideredNode]] = field(compare=False, repr=False)


def explained(assignment: Assignment, at: float) -> Decision:
    """A decision as it is recorded."""
    return Decision(
        at=at,
        node=assignment.node,
        model=assignment.model,
        loads=assignment.loads,
        hit=assignment.hit,
        tokens=assignment.request.tokens,
        waited=assignment.waited,
        predicted=assignment.terms.predict_ttft,
        actual=None,
        background=assignment.request.background,
        considered=assignment.considered,
    )


# --- ollama_pack.routing.dispatch.pending_chat ---
# One request on its way through the fleet, and what an admin may set for all of them.

# What made the choice smaller, given the model that answers: such as others that are not installed.
WhyModel = Callable[[str], Sequence[Message]]
# Called with the seconds that an answer took a node, and its tokens.
Served = Callable[[float, float], None]
# The headers for one user's chat at a node, besides those that every request there has.
NodeHeaders = Callable[[WayIn], Awaitable[Mapping[str, str]]]


class Tell(Protocol):
    """Called with status lines, and whether nothing goes on after it."""

    async def __call__(self, line: Message, *, done: bool) -> None:
        """Show a line."""


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """What an admin may set.

    Attributes:
        strategy: as `Scheduler` takes it.
        probe_seconds: between two looks at a node.
        first_token_seconds: how long a request waits for a node; and then, once the model is loaded, for the
            first token, on top of what was predicted.
        load_seconds: how long a model may take to load at most.
        max_queue: how many requests may wait.
        keep_alive: how long models stay in memory where a request does not say; empty: as the nodes have it.
        several_workers: others use the same nodes: those that are not heard agree by hashing on where a chat
            goes.
    """

    strategy: str = "predicted_ttft"
    probe_seconds: float = 5.0
    first_token_seconds: float = 120.0
    max_queue: int = 64
    keep_alive: str = ""
    several_workers: bool = False
    load_seconds: float = 7200.0


@dataclass(frozen=True, slots=True)
class UnexplainedFailure:
    """A failure before the first token that may be the node's fault or the request's.

    Attributes:
        node: the node.
        model: as the node lists it.
        hung: it said nothing for as long as it could.
        alike: equal for failures of the same kind.
    """

    node: str
    model: str
    hung: bool
    alike: str


@dataclass(slots=True)
class PendingChat:
    """One request on its way.

    Attributes:
        request: what the scheduler knows of it.
        body: OpenAI's.
        head: of the answer.
        tell: shows status lines.
        bound: set when it has a node.
        figures: its user may see figures about what others do: see `reason`.
        language: of the reason that its answer carries.
        waits_since: when it began to wait for one, on the loop's clock; None: it is at one.
        busy_since: when the first node was too busy for it, on the same clock; None: none was.
        tried: nodes that have failed it → what was wrong.
        unexplained: those of these failures that may have been its own fault.
        answering: its answer has begun.
        headers: for its request to a node; None: only those that every request has.
        place: the best place in the queue that was shown: what comes later and goes first is not shown.
        served: is told what the answer took, also where its user leaves before the end.
        shown: since when a status line is shown that is not done, on the loop's clock; None: none is.
        why_model: what made the choice of a model smaller.
        user: the id of its user; the scheduler knows them by a hash.
        came: when it came, on the loop's clock.
        began: when its answer began, on the same clock; None: it has not.
        decision: the last one about it.
        spent: what the engine reported at the end.
    """

    request: FleetRequest
    body: Mapping[str, Any]
    head: ReplyHead
    tell: Tell
    bound: asyncio.Future[Assignment]
    figures: bool = True
    language: str = ENGLISH
    waits_since: float | None = None
    busy_since: float | None = None
    tried: dict[str, NodeError] = field(default_factory=dict)
    unexplained: list[UnexplainedFailure] = field(default_factory=list)
    answering: bool = False
    headers: NodeHeaders | None = None
    served: Served | None = None
    place: int | None = None
    shown: float | None = None
    why_model: WhyModel = lambda _model: ()
    user: str = ""
    came: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    began: float | None = None
    decision: Decision | None = None
    spent: Durations | None = None

    @property
    def asked(self) -> str:
        """The name that was asked for."""
        return self.head.model

    def reason(self, binding: Assignment) -> Message:
        """Why this node and this model."""
        failed = [message("{node} failed", node=node) for node in self.tried]
        return reason(binding, [*self.why_model(binding.model), *failed], figures=self.figures)

    async def say(self, line: Message, *, done: bool) -> None:
        """Show a status line, and remember whether it looks as if something went on."""
        if done:
            self.shown = None
        elif self.shown is None:
            self.shown = asyncio.get_running_loop().time()
        await self.tell(line, done=done)

    def shown_for(self) -> float:
        """Seconds for which a line has been shown that is not done."""
        return 0.0 if self.shown is None else asyncio.get_running_loop().time() - self.shown


# --- ollama_pack.routing.decide.prefix ---
# Which beginnings of prompts a runner still holds, mirrored from what was sent to it.
#
# A prompt is a chain of blocks (tools, then each message); a block's hash covers all before it, so one look
# tells whether two prompts begin alike. A long message is several blocks: Open WebUI's prompts for titles and
# tags, and for questions about documents, are one message each whose beginning never changes. Were that one
# block, no hit would be expected, and what it saves would be taken for a faster GPU. What the model itself has
# written is one block: it comes back whole or not at all. A runner keeps one prefix or hundreds; how many, and
# how many tokens of them, is learned from exact counts where it reports them, else from evaluation times.

MAX_KEPT = 512  # prefixes that a runner is believed to hold at most, and
MAX_LOST = 256  # that it should have lost, and are remembered to learn from
MOST_HOPE = 0.5  # how likely it is that a runner holds more than was seen, and
LEAST_HOPE = 0.05  # from where on nothing is hoped for
MAX_BLOCKS = 512  # of one prompt; what is beyond counts as one block
MISSES_TO_FORGET = 3
MIN_MATCH = 64  # tokens; what evaluating fewer takes cannot be told from noise
WHOLE_BYTES = 600  # of a message; a longer one is several blocks
PIECE_BYTES = 400  # of each of its first blocks, and
PIECE_SHARE = 1 / 8  # of what is before it in the message, where that is more: a book is a hundred blocks
IMAGE_TOKENS = 768  # roughly what an image is to a model, however many bytes it has
_CHAIN_BYTES = 8


def prompt_blocks(
    messages: Iterable[Mapping[str, Any]],
    tools: Sequence[Any] = (),
    bytes_per_token: float = 4.0,
    key: bytes = b"",
) -> tuple[PromptBlock, ...]:
    """The blocks of an OpenAI chat body. Tools come first, as chat templates put them.

    Args:
        messages: the conversation; keys other than role, content, images and tool calls do not matter.
        tools: what the model may call.
        bytes_per_token: of UTF-8 text; what it is really is learned later.
        key: of up to 64 bytes, the same for all workers that share a fleet: without it nobody can tell
            from the hashes whether a guessed prompt was asked.
    """
    parts: list[_Part] = []
    if tools:
        parts += _pieces("tools", json.dumps(list(tools), sort_keys=True, default=str))
    for message in messages:
        text, images = _said(message)
        parts += _pieces(str(message.get("role", "")), text, images)
    if len(parts) > MAX_BLOCKS:
        rest = parts[MAX_BLOCKS - 1 :]
        written = b"\0".join(part.written for part in rest)
        parts[MAX_BLOCKS - 1 :] = [_Part(written, sum(part.images for part in rest))]
    return tuple(_chained(parts, bytes_per_token, key))


class _Part(NamedTuple):
    """What becomes a block: the bytes, how many images are in it, whether the model wrote it."""

    written: bytes
    images: int = 0
    answer: bool = False


def _pieces(role: str, text: str, images: int = 0) -> Iterator[_Part]:
    """A message in pieces. Where they end depends on nothing behind them, so equal beginnings stay equal."""
    written = f"{role}\0{text}".encode(errors="replace")
    if role == "assistant" or len(written) <= WHOLE_BYTES:
        yield _Part(written, images, role == "assistant")
        return
    begins = 0
    while len(written) - begins > WHOLE_BYTES:
        ends = begins + max(PIECE_BYTES, int(begins * PIECE_SHARE))
        yield _Part(written[begins:ends])
        begins = ends
    yield _Part(written[begins:], images)


def _said(message: Mapping[str, Any]) -> tuple[str, int]:
    """A message as text, with hashes in place of its images; and how many these are."""
    kept = {
        key: message[key] for key in ("content", "images", "tool_calls", "tool_call_id") if key in message
    }
    images = 0

    def hashed(value: Any) -> str:
        nonlocal images
        images += 1
        return blake2b(repr(value).encode(errors="replace"), digest_size=_CHAIN_BYTES).hexdigest()

    if isinstance(kept.get("images"), list):
        kept["images"] = list(map(hashed, kept["images"]))
    if isinstance(kept.get("content"), list):
        kept["content"] = [
            {**part, "image_url": hashed(part["image_url"])}
            if isinstance(part, dict) and "image_url" in part
            else part
            for part in kept["content"]
        ]
    return json.dumps(kept, sort_keys=True, ensure_ascii=False, default=str), images


def _chained(parts: Iterable[_Part], bytes_per_token: float, key: bytes) -> Iterator[PromptBlock]:
    chain, tokens = b"", 0.0
    for part in parts:
        chain = blake2b(chain + part.written, digest_size=_CHAIN_BYTES, key=key).digest()
        tokens += len(part.written) / bytes_per_token + IMAGE_TOKENS * part.images
        yield PromptBlock(int.from_bytes(chain), round(tokens), part.answer)


def _held(chains: Container[int], blocks: Sequence[PromptBlock]) -> int:
    """How many of the first blocks are held: equal beginnings stay equal up to some block."""
    low, high = 0, len(blocks)
    if high > 1 and blocks[1].chain not in chains:
        return int(blocks[0].chain in chains)  # most prompts share nothing but the system prompt
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if blocks[middle].chain in chains else (low, middle)
    return low


def _covered(prefix: KeptPrefix, blocks: Sequence[PromptBlock], held: int) -> int:
    """The tokens of a prompt of which so many blocks are held in a prefix, its answer included."""
    hit = blocks[held - 1].upto
    if blocks[held - 1].chain == prefix.last and held < len(blocks) and blocks[held].answer:
        hit += min(prefix.output, blocks[held].upto - hit)
    return hit


@dataclass(frozen=True, slots=True)
class Retention:
    """How much a runner still holds: so many prompts, and so many tokens of them."""

    prompts: int = 1
    tokens: float = math.inf
    hope: float = 0.5  # how likely it is that it holds more than that


@dataclass(frozen=True, slots=True)
class MatchDepth:
    """Where in a mirror the longest match of a prompt lies.

    Attributes:
        depth: how many prompts were used since; -1: there is none.
        tokens: of the match.
        between: tokens of the prompts that were used since.
        held: it should still be there.
    """

    depth: int = -1
    tokens: int = 0
    between: int = 0
    held: bool = True


class PrefixMirror:
    """The prefixes of one runner, the last used last. Times are seconds on the caller's clock.

    Those that it should have lost are remembered as well, to learn from.
    """

    __slots__ = ("_chains", "_kept", "_lost", "_lost_chains", "_tokens", "retention")

    def __init__(self, kept: Iterable[KeptPrefix] = (), retention: Retention | None = None) -> None:
        self.retention = retention or Retention()
        self.restore(tuple(kept))

    def __len__(self) -> int:
        return len(self._kept)

    def oldest(self) -> KeptPrefix | None:
        """What the next new prompt takes the place of; None: there is room."""
        if len(self._kept) < self.retention.prompts and self._tokens < self.retention.tokens:
            return None
        return next(iter(self._kept.values()), None)

    def match(self, blocks: Sequence[PromptBlock], newest: int | None = None) -> PrefixMatch:
        """What it holds of a prompt.

        Args:
            blocks: the prompt.
            newest: count on so many of the last used only; None: on all.
        """
        held = _held(self._chains, blocks)
        if not held and not self._lost:
            return NO_MATCH
        hit, own = 0, False
        if held:
            prefix = self._chains[blocks[held - 1].chain]
            if newest is None or self._depth(prefix) < newest:
                hit = _covered(prefix, blocks, held)
                own = hit >= prefix.tokens or 2 * (hit - prefix.shared) >= prefix.tokens - prefix.shared > 0
        if self._lost and self.retention.hope > LEAST_HOPE and newest is None and len(blocks) > held:
            further = _held(self._lost_chains, blocks)
            if further > held:
                return PrefixMatch(hit, own, round(self.retention.hope * (blocks[further - 1].upto - hit)))
        return PrefixMatch(hit, own)

    def _depth(self, prefix: KeptPrefix) -> int:
        return next((depth for depth, one in enumerate(reversed(self._kept.values())) if one is prefix), -1)

    def depth(self, blocks: Sequence[PromptBlock]) -> MatchDepth:
        """Where the longest match lies, the last used first, and whether it should still be held."""
        held, lost = _held(self._chains, blocks), _held(self._lost_chains, blocks)
        if not held and not lost:
            return MatchDepth()
        chains = self._chains if held >= lost else self._lost_chains
        longest = max(held, lost)
        best = chains[blocks[longest - 1].chain]
        between = 0
        for depth, prefix in enumerate((*reversed(self._kept.values()), *reversed(self._lost.values()))):
            if prefix is best:
                return MatchDepth(depth, _covered(best, blocks, longest), between, held >= lost)
            between += prefix.weight
        return MatchDepth()

    def state(self) -> tuple[KeptPrefix, ...]:
        """All that is remembered, to be given to `restore`."""
        return (*self._lost.values(), *self._kept.values())

    def restore(self, state: Iterable[KeptPrefix]) -> None:
        """What was started since did not happen."""
        self._kept: dict[int, KeptPrefix] = {}
        self._lost: dict[int, KeptPrefix] = {}
        self._chains: dict[int, KeptPrefix] = {}
        self._lost_chains: dict[int, KeptPrefix] = {}
        self._tokens = 0
        for prefix in state:
            self._add(prefix)

    def retain(self, retention: Retention) -> None:
        """It is known better how much the runner holds."""
        self.retention = retention
        back: list[KeptPrefix] = []  # the last used first
        for prefix in reversed(self._lost.values()):
            tokens = self._tokens + prefix.weight
            if len(self._kept) + len(back) >= retention.prompts or tokens > retention.tokens:
                break
            self._tokens = tokens
            back.append(prefix)
        for prefix in back:
            self._remove(prefix, self._lost, self._lost_chains)
            for chain in prefix.chains:
                self._chains.setdefault(chain, prefix)
        if back:
            self._kept = {prefix.last: prefix for prefix in reversed(back)} | self._kept
        self._forget_more()

    def started(self, blocks: Sequence[PromptBlock], now: float, *, shared: int = 0, kind: int = 0) -> None:
        """A prompt went to the runner: it takes the place of the one that it continues, or of the oldest.

        Args:
            blocks: the prompt.
            now: the moment.
            shared: tokens that prompts of others begin with as well.
            kind: as in `KeptPrefix`.
        """
        if not blocks:
            return
        if held := _held(self._chains, blocks):
            before = self._chains[blocks[held - 1].chain]
            if 2 * blocks[held - 1].upto >= before.tokens or before.last == blocks[held - 1].chain:
                self._remove(before, self._kept, self._chains)
                self._tokens -= before.weight
        if lost := self._lost.get(blocks[-1].chain):
            self._remove(lost, self._lost, self._lost_chains)
        chains = {block.chain: block.upto for block in blocks}
        self._add(KeptPrefix(chains, blocks[-1].chain, blocks[-1].upto, 0, now, shared, kind))

    def _add(self, prefix: KeptPrefix) -> None:
        if (known := self._kept.get(prefix.last)) is not None:
            self._remove(known, self._kept, self._chains)
            self._tokens -= known.weight
        self._kept[prefix.last] = prefix
        self._chains.update(dict.fromkeys(prefix.chains, prefix))
        self._tokens += prefix.weight
        self._forget_more()

    def _forget_more(self) -> None:
        retention = self.retention
        while len(self._kept) > 1 and (
            len(self._kept) > retention.prompts or self._tokens > retention.tokens
        ):
            oldest = next(iter(self._kept.values()))
            self._remove(oldest, self._kept, self._chains)
            self._tokens -= oldest.weight
            self._lost.pop(oldest.last, None)
            self._lost[oldest.last] = oldest
            self._lost_chains.update(dict.fromkeys(oldest.chains, oldest))
        while len(self._lost) > MAX_LOST:
            self._remove(next(iter(self._lost.values())), self._lost, self._lost_chains)

    @staticmethod
    def _remove(prefix: KeptPrefix, kept: dict[int, KeptPrefix], index: dict[int, KeptPrefix]) -> None:
        del kept[prefix.last]
        for chain in prefix.chains:
            if index.get(chain) is prefix:
                del index[chain]

    def finished(self, blocks: Sequence[PromptBlock], output: int, now: float) -> None:
        """Its answer is held too, unless the prompt has been overwritten meanwhile."""
        if blocks and (prefix := self._kept.get(blocks[-1].chain)):
            self._tokens -= prefix.weight
            self._remove(prefix, self._kept, self._chains)
            self._add(replace(prefix, output=output, used_at=now))

    def clear(self) -> None:
        """The runner was loaded anew, or somebody else used it."""
        self.restore(())


class RetentionLearner:
    """How much a runner of one (node, weights) holds: one prompt, until more prove to be held.

    An engine keeps a number of prompts (slots) or a number of tokens (a cache of blocks). Which of the two
    ended a prompt's stay follows from what was seen to be held at least as deep.
    """

    def __init__(self) -> None:
        self.retention = Retention()
        self._proved = 1
        self._misses = 0

    def observe(self, where: MatchDepth, hit: float) -> None:
        """Learn from one prompt.

        Args:
            where: its longest match in the mirror.
            hit: the tokens that were in fact reused, as the node reports or its evaluation time shows.
        """
        known = self.retention
        if where.depth < 0 or where.tokens < MIN_MATCH:
            return
        if hit > 0.6 * where.tokens:
            self._misses = 0
            self._proved = max(self._proved, where.depth + 1)
            self.retention = Retention(
                max(known.prompts, min(MAX_KEPT, where.depth + 1)),
                max(known.tokens, where.between),
                known.hope if where.held else MOST_HOPE,
            )
        elif hit < 0.3 * where.tokens and where.held:
            self._misses += 1
            if self._misses >= MISSES_TO_FORGET:
                self._misses = 0
                if where.depth < self._proved // 2:  # more prompts than that were seen to be held
                    self.retention = replace(known, tokens=float(max(MIN_MATCH, where.between)))
                else:
                    self._proved = max(1, where.depth)
                    self.retention = replace(known, prompts=max(1, where.depth))
        elif hit < 0.3 * where.tokens:
            self.retention = replace(known, hope=known.hope / 2)


# --- ollama_pack.routing.dispatch.request ---
# What the scheduler needs to know of an OpenAI chat body.


def fleet_request(  # noqa: PLR0913 - each is a fact of its own
    body: Mapping[str, Any],
    models: Sequence[str],
    *,
    request_id: str,
    user: str,
    chat: str = "",
    background: bool = False,
    last: bool = False,
    key: bytes = b"",
) -> FleetRequest:
    """Read an OpenAI chat body.

    Args:
        body: whether or not Ollama's own fields are mixed in.
        models: names of the models that may answer, the preferred one first.
        request_id: unique among the requests that wait or run.
        user: whom fairness counts it for.
        chat: the conversation; empty: none.
        background: nobody looks at the answer as it is written.
        last: it comes behind all others.
        key: of the hashes that other workers see instead of the user, the conversation and the prompt.

    Raises:
        ChatBodyError: something in the body cannot be put into Ollama's form.
    """
    options = ollama_options(body)
    context = max(0, options.get("num_ctx", 0))
    return FleetRequest(
        id=request_id,
        user=_hashed(user, key),
        chat=_hashed(f"{user}\0{chat}") if chat else "",
        models=tuple(
            auto_name(auto_parts(model)[0], context) if is_auto(model) else model for model in models
        ),
        blocks=prompt_blocks(
            objects_in(body.get("messages"), "messages"), objects_in(body.get("tools"), "tools"), key=key
        ),
        max_output=max(0, options.get("num_predict", 0)),
        context=context,
        options=tuple((name, options[name]) for name in RUNNER_OPTIONS if name in options),
        background=background,
        last=last,
    )


def load_options(request: FleetRequest) -> dict[str, Any]:
    """The options of a load for requests like this one, so that none of them makes the node load again."""
    context = {"num_ctx": request.context} if request.context else {}
    return {**dict(request.options), **context}


def with_model(body: Mapping[str, Any], model: str, keep_alive: str) -> dict[str, Any]:
    """The body for one node. Its options are those of this chat, whatever the node has in memory for others.

    Args:
        body: as it came.
        model: the node's name of the model.
        keep_alive: how long the model stays in memory where the body does not say; empty: as the node has it.
    """
    made = {**body, "model": model}
    if keep_alive and flat_settings(body).get("keep_alive") is None:
        made["keep_alive"] = keep_alive
    return made


def with_conversation(body: Mapping[str, Any], request: FleetRequest) -> dict[str, Any]:
    """The body for a gateway that places requests itself, with OpenAI's `prompt_cache_key`.

    The key is the same for all turns of a conversation. It is a hash of ids, so it names neither the user nor
    the conversation. A body that has a key keeps its own; a request without a conversation gets none.
    """
    if not request.chat or body.get(CACHE_KEY):
        return dict(body)
    return {**body, CACHE_KEY: request.chat}


def _hashed(name: str, key: bytes = b"") -> str:
    return blake2b(name.encode(errors="replace"), digest_size=16, key=key).hexdigest()


# --- ollama_pack.engines.model_kinds ---
# What a model is for, by what its engine lists of it: only models that chat are offered for chats.

_CHAT_KINDS = frozenset(
    {
        *("chat", "chat_completion", "chat_completions", "completion", "completion_chat", "completions"),
        *("conversational", "generate", "generation", "image_text_to_text", "language", "llm"),
        *("text2text_generation", "text_generation", "vlm"),
    }
)
_OTHER_KINDS = frozenset(
    {
        *("audio_speech", "audio_transcription", "audio_transcriptions", "automatic_speech_recognition"),
        *("classification", "classifier", "classify", "decision", "embed", "embedding", "embeddings"),
        *("feature_extraction", "image", "image_edit", "image_generation", "image_generations"),
        *("image_to_image", "images_generations", "moderation", "moderations", "ocr", "rerank", "reranker"),
        *("reranking", "score", "scoring", "sentence_similarity", "speech", "speech2text", "speech_to_text"),
        *("stt", "text2speech", "text_classification", "text_embedding", "text_embeddings", "text_ranking"),
        *("text_to_image", "text_to_speech", "text_to_video", "transcribe", "transcription"),
        *("transcriptions", "tts", "video_generation", "whisper"),
    }
)
# Where they say what the model itself is; in a list of abilities these words are about what it can be shown.
_OTHER_TYPES = _OTHER_KINDS | {"audio", "video"}
# Xinference, Together, LM Studio, LiteLLM, Hugging Face's router, Lemonade, GPUStack, new-api and others.
_TYPE_FIELDS = ("type", "model_type", "mode", "task", "pipeline_tag")
_ABILITY_FIELDS = (
    *("capabilities", "model_ability", "categories", "labels", "tasks", "endpoints"),
    *("supported_endpoints", "supported_endpoint_types"),
)
# For engines that say nothing, as vLLM, TEI and LocalAI: words that are in no chat model's name.
_NAME_WORDS = frozenset(
    {
        *("bge", "colbert", "dall", "e5", "embed", "embedder", "embedding", "embeddings", "gte", "minilm"),
        *("moderation", "rerank", "reranker", "reranking", "tts", "whisper"),
    }
)
_NO_WORD = re.compile(r"[^a-z0-9]+")


def chats(capabilities: Collection[str]) -> bool:
    """Whether a model with these capabilities can chat, as far as they tell."""
    kinds = set(map(_kind_word, capabilities))
    return bool(kinds & _CHAT_KINDS) or not kinds & _OTHER_KINDS


def listed_for_chat(entry: Mapping[str, Any], name: str) -> bool:
    """Whether a model in an engine's list can chat, by what the engine says of it, else by its name.

    Args:
        entry: of `/v1/models`.
        name: its id.
    """
    outputs = _output_modalities(entry)
    if outputs and "text" not in outputs:
        return False
    kinds = {_kind_word(entry[field]) for field in _TYPE_FIELDS if isinstance(entry.get(field), str)}
    abilities, lacks = _abilities(entry)
    if (kinds | abilities) & _CHAT_KINDS:
        return True
    if kinds & _OTHER_TYPES or abilities & _OTHER_KINDS or lacks & _CHAT_KINDS:
        return False
    return named_for_chat(name)


def named_for_chat(name: str) -> bool:
    """Whether a model may be one that chats, by its name alone."""
    return not _NAME_WORDS.intersection(_NO_WORD.split(name.lower()))


def _kind_word(word: object) -> str:
    return _NO_WORD.sub("_", word.lower()).strip("_").removeprefix("v1_") if isinstance(word, str) else ""


def _abilities(entry: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """What it can, and what it cannot."""
    able: set[str] = set()
    unable: set[str] = {"chat"} if entry.get("supports_chat") is False else set()
    for field in _ABILITY_FIELDS:
        given = entry.get(field)
        if isinstance(given, Mapping):  # Mistral and Azure: a switch for each
            able |= {_kind_word(name) for name, value in given.items() if value is True}
            unable |= {_kind_word(name) for name, value in given.items() if value is False}
            able |= {_kind_word(given.get("type"))}
        elif isinstance(given, list):
            able |= set(map(_kind_word, given))
    return able - {""}, unable


def _output_modalities(entry: Mapping[str, Any]) -> list[str]:
    """What comes out of it, as OpenRouter and llama.cpp list it; empty where that is not told."""
    places = (object_at(entry, "architecture"), entry)
    found = (place.get("output_modalities") for place in places)
    given = next((outputs for outputs in found if isinstance(outputs, list)), [])
    return [output.lower() for output in given if isinstance(output, str)]


# --- ollama_pack.engines.ollama.stream ---
# A streamed answer of Ollama as OpenAI's chunks: one step for each line, remembering but a small state.

# Where the figures go: a chunk of their own without choices, or the last chunk as Open WebUI has it.
UsagePlace = Literal["apart", "last"]


@dataclass(frozen=True, slots=True)
class StreamState:
    """What of the lines before matters for the next.

    Attributes:
        started: a chunk was sent, so the role is known.
        calls: number of tool calls so far.
    """

    started: bool = False
    calls: int = 0


def usage_place(body: Mapping[str, Any]) -> UsagePlace:
    """Where the client that sent this OpenAI chat body wants the figures.

    Raises:
        ChatBodyError: `stream_options` is not of its form.
    """
    asked = object_in(body.get("stream_options"), "stream_options").get("include_usage")
    return "apart" if asked and switch_in(asked, "stream_options.include_usage") else "last"


def line_to_chunks(
    line: Mapping[str, Any], head: ReplyHead, state: StreamState, place: UsagePlace = "last"
) -> tuple[StreamState, list[dict[str, Any]]]:
    """One line of `/api/chat` as chunks, and the state for the next line.

    A line that says nothing gives no chunk. The last line may carry text and calls too: they are in the chunk
    that has the finish reason.
    """
    delta = openai_message(line, head, state.calls)
    logprobs = openai_logprobs(line)  # may come without text, which Ollama looks through for tool calls
    done = line.get("done") is True
    if not delta and not logprobs and not done:
        return state, []
    calls = state.calls + len(delta["tool_calls"]) if "tool_calls" in delta else state.calls
    if not state.started:
        delta = {"role": "assistant", **delta}
    if not state.started or calls != state.calls:
        state = StreamState(started=True, calls=calls)
    choice = {
        "index": 0,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": finish_reason(line, called=calls > 0) if done else None,
    }
    chunk = {**head.tagged("chat.completion.chunk"), "choices": [choice]}
    return state, [chunk, *_usage_chunks(line, head, chunk, place)] if done else [chunk]


def _usage_chunks(
    line: Mapping[str, Any], head: ReplyHead, last: dict[str, Any], place: UsagePlace
) -> list[dict[str, Any]]:
    usage = {"usage": openai_usage(line)}
    if place == "last":
        last |= usage
        return []
    return [{**head.tagged("chat.completion.chunk"), "choices": []} | usage]


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


async def stream_to_openai(
    lines: AsyncGenerator[dict[str, Any], None], head: ReplyHead, place: UsagePlace = "last"
) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks of a whole stream. Closing it closes the lines; an error in the lines passes through."""
    state = StreamState()
    async with aclosing(lines):
        async for line in lines:
            state, chunks = line_to_chunks(line, head, state, place)
            for chunk in chunks:
                yield chunk


# --- ollama_pack.engines.ollama.values ---
# What a node reports of its models. A field that is missing, null or not of its type has its default.

_BLOB = re.compile(r"^FROM .*sha256[-:]([0-9a-f]{64})\s*$", re.MULTILINE)
_ADAPTER = re.compile(r"^ADAPTER .*sha256[-:]([0-9a-f]{64})\s*$", re.MULTILINE)
_PARAMETER = re.compile(r"^(\w+)\s+(\S+)\s*$", re.MULTILINE)
_CLOUD_TAG = re.compile(r".*[:-]cloud", re.IGNORECASE)
MOST_PARAMETERS = 10**11  # of a vision encoder
_CLOUD_BYTES = 2**20  # a model with such a tag that is larger than this has weights of its own

_Entry = TypeVar("_Entry", bound="NamedModel")


def is_cloud_name(name: str) -> bool:
    """Whether a name is one of Ollama's cloud, such as `gpt-oss:120b-cloud`."""
    return bool(_CLOUD_TAG.fullmatch(name))


class NodeValue(BaseModel):
    """Base of what is read from a node's answers."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}

    @field_validator("*", mode="wrap")
    @classmethod
    def _odd_is_absent(cls, value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """What is not of its type has its default, too: only what is needed is demanded."""
        try:
            return read(value)
        except ValidationError:
            field = cls.model_fields[str(info.field_name)]
            if field.is_required():
                raise
            return field.get_default(call_default_factory=True)


Bytes = Annotated[int, Field(ge=0)]


class NamedModel(NodeValue):
    """An entry of a list of models. Some gateways have its name under `model` alone, as Open WebUI reads it.

    Attributes:
        name: as the node lists it, with its tag.
    """

    name: str = Field(min_length=1, max_length=1024)

    @model_validator(mode="before")
    @classmethod
    def _model_is_a_name(cls, given: Any) -> Any:
        if isinstance(given, dict) and not isinstance(given.get("name"), str):
            return {**given, "name": given.get("model")}
        return given


class ModelDetails(NodeValue):
    """The make of a model; empty where the node does not tell."""

    family: str = ""
    parameter_size: str = ""
    quantization_level: str = ""


class ListedModel(NamedModel):
    """An entry of `/api/tags`.

    Attributes:
        digest: of the manifest; the same name may have another one on another node.
        size: bytes on disk.
        details: its make.
        remote_model: its name where it really runs, of a cloud model.
        remote_host: where that is.
    """

    digest: str = ""
    size: Bytes = 0
    details: ModelDetails = ModelDetails()
    remote_model: str = ""
    remote_host: str = ""

    @property
    def is_remote(self) -> bool:
        """Whether the node only passes requests on: it is never loaded there, and takes no memory."""
        tagged = is_cloud_name(self.name) and self.size < _CLOUD_BYTES
        return bool(self.remote_model or self.remote_host) or tagged


class LoadedModel(NamedModel):
    """An entry of `/api/ps`: a model in memory, under the name that loaded it.

    Attributes:
        digest: of the manifest.
        size: bytes that it takes.
        size_vram: bytes of those that are in GPU memory.
        context_length: tokens that it was loaded for; 0 where the node is too old to tell.
        expires_at: when it is unloaded if nobody asks; in the past while it works.
    """

    digest: str = ""
    size: Bytes = 0
    size_vram: Bytes = 0
    context_length: Bytes = 0
    expires_at: datetime | None = None

    @field_validator("expires_at")
    @classmethod
    def _with_zone(cls, moment: datetime | None) -> datetime | None:
        return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


class ShownModel(NodeValue):
    """What `/api/show` tells of a model.

    Attributes:
        capabilities: such as completion, tools, vision, thinking.
        details: its make.
        model_info: facts from the weights file, such as `llama.block_count`.
        modelfile: the recipe, which names the weights blob.
        parameters: the recipe's own options, one on a line.
        tensors: of the weights; empty: the node is too old to list them.
        projector_info: facts of a separate vision encoder, such as its `general.parameter_count`.
    """

    capabilities: tuple[str, ...] = ()
    details: ModelDetails = ModelDetails()
    model_info: dict[str, Any] = Field(default_factory=dict)
    modelfile: str = ""
    parameters: str = ""
    tensors: tuple[Tensor, ...] = Field(default=(), repr=False)
    projector_info: dict[str, Any] = Field(default_factory=dict)

    @field_validator("capabilities", mode="before")
    @classmethod
    def _only_texts(cls, given: Any) -> Any:
        return [item for item in given if isinstance(item, str)] if isinstance(given, list) else given

    def shape(self, size: int) -> ModelShape:
        """What decides how much memory it takes, with a vision encoder and adapters in files of their own.

        Args:
            size: bytes of all its files.
        """
        if not self.tensors:
            return shape_of(self.model_info, size=size)
        encoder = self.projector_info.get("general.parameter_count")
        apart = 2 * encoder if isinstance(encoder, int) and 0 < encoder < MOST_PARAMETERS else 0  # 16 bits
        size -= apart
        shape = shape_of(self.model_info, self.tensors, size)
        adapted = max(0, size - sum(one.bytes for one in self.tensors)) if self._adapters else 0
        return replace(shape, weights=shape.weights + adapted, projector=shape.projector + apart)

    @property
    def blob(self) -> str:
        """Digest of the weights and of adapters, which tells what a runner serves; empty: it is not told."""
        found = _BLOB.search(self.modelfile)
        return "+".join([found[1], *self._adapters]) if found else ""

    @property
    def _adapters(self) -> list[str]:
        """Digests of its LoRA adapters: for others Ollama loads the same weights again."""
        return _ADAPTER.findall(self.modelfile)

    @property
    def num_ctx(self) -> int | None:
        """The context in tokens that the recipe itself asks for."""
        context = self._own_parameters.get("num_ctx")
        return context if isinstance(context, int) else None

    @property
    def runner_options(self) -> tuple[tuple[str, Any], ...]:
        """The other options for its runner that the recipe asks for, sorted by name."""
        own = self._own_parameters
        return tuple((name, own[name]) for name in RUNNER_OPTIONS if name in own)

    @property
    def _own_parameters(self) -> dict[str, Any]:
        """Those of the recipe that are a number, true or false; the last of each name counts."""
        own: dict[str, Any] = {}
        for name, written in _PARAMETER.findall(self.parameters):
            with suppress(ValueError):
                value = json_in(written)
                # Go writes a million as 1e+06, and 2**20 as 1.048576e+06.
                is_whole = isinstance(value, float) and value.is_integer()
                own[name] = int(value) if is_whole else value
        return own

    @property
    def context_length(self) -> int:
        """The most context, in tokens, that the weights are made for; 0 where it is not told."""
        length = self.model_info.get(f"{self.model_info.get('general.architecture')}.context_length")
        return length if isinstance(length, int) else 0

    @property
    def is_embedder(self) -> bool:
        """Whether its weights make vectors, not text. Ollama itself goes by this."""
        return f"{self.model_info.get('general.architecture')}.pooling_type" in self.model_info

    @property
    def thinking(self) -> Thinking:
        """What `think` it takes."""
        return thinking_of(self.capabilities, self.details.family)


def entries_in(answer: Mapping[str, Any], kind: type[_Entry]) -> tuple[list[_Entry], int]:
    """The entries of a list of models, each name once, and how many were passed over as unreadable.

    Ollama 0.40 lists a model once for each kind of runner.

    Raises:
        ValueError: there is no list.
    """
    listed = answer.get("models")
    if not isinstance(listed, list):
        raise ValueError(message("`models` is not a list"))  # noqa: TRY004 - of the answer, not of an argument
    found: dict[str, _Entry] = {}
    unread = 0
    for entry in listed:
        try:
            model = kind.model_validate(entry)
        except ValidationError:
            unread += 1
        else:
            found.setdefault(model.name, model)
    return list(found.values()), unread


# --- ollama_pack.engines.ollama.client ---
# What a node is asked. `NodeClient` is what the fleet needs of any engine; `OllamaClient` is Ollama's.

PULL_SECONDS = 3600.0  # without a word, while a node checks a large file


class NodeClient(Protocol):
    """What is asked of a node, whichever engine serves there. Chats are OpenAI's, in both directions.

    Every method raises `NodeError`; where it is a `RetryableNodeError`, another node may do it.
    """

    @property
    def name(self) -> str:
        """The node's address, as it may be shown."""

    async def tags(self) -> tuple[ListedModel, ...]:
        """The models that the node has."""

    async def ps(self) -> tuple[LoadedModel, ...] | None:
        """The models in the node's memory; None where it does not tell."""

    async def show(self, model: str) -> ShownModel:
        """What the node knows of a model."""

    def complete(  # noqa: PLR0913 - each is a fact of its own
        self,
        body: Mapping[str, Any],
        head: ReplyHead,
        *,
        first_byte: float,
        thinking: Thinking | None = None,
        names: Collection[str] = (),
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of an answer to an OpenAI chat body; closing the iterator ends the generation."""

    async def embed(
        self, model: str, texts: Sequence[str], *, seconds: float, dimensions: int = 0
    ) -> Vectors:
        """A vector for each text."""

    async def load(
        self,
        model: str,
        *,
        seconds: float,
        keep_alive: str | float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Load a model into memory, and wait until it is there; nothing, where all are there."""


class OllamaClient:
    """A node that runs Ollama."""

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        *,
        limits: NodeLimits | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Take what is needed later; nothing is connected.

        Args:
            url: such as http://gpu1:11434, with or without a path.
            session: holds the connections. Its timeouts do not apply; a limit on connections does.
            limits: when left out, the defaults.
            headers: sent with every request, such as `Authorization`.
        """
        limits = limits or NodeLimits()
        self._node = NodeTransport(url, session, limits, headers or {})
        slow = replace(limits, next_line=PULL_SECONDS)
        self._puller = NodeTransport(url, session, slow, headers or {})
        self._ids = ModelIds()

    @property
    def name(self) -> str:
        """The node's address, as it may be shown: without user name, password and query."""
        return self._node.name

    async def tags(self) -> tuple[ListedModel, ...]:
        """The models that the node has. Entries that cannot be read are passed over, which is logged once.

        Raises:
            NodeError: the node does not answer as it should.
        """
        try:
            models, unread = entries_in(await self._node.ask("/api/tags"), ListedModel)
        except ValueError as error:
            raise NodeFaultError(self.name, message("answers in a form that is not Ollama's")) from error
        if unread and not models:
            raise NodeFaultError(self.name, message("answers in a form that is not Ollama's"))
        if unread:
            self._node.note(f"{unread} of its models are passed over: /api/tags gives them no name")
        self._ids.learn(model.name for model in models)
        return tuple(model.model_copy(update={"name": self._ids.offered(model.name)}) for model in models)

    async def ps(self) -> tuple[LoadedModel, ...] | None:
        """The models in the node's memory; None where it does not tell, as behind some gateways.

        Raises:
            NodeError: the node does not answer at all.
        """
        try:
            models, unread = entries_in(await self._node.ask("/api/ps"), LoadedModel)
        except (NodeUnreachableError, NodeTimeoutError):
            raise
        except (NodeError, ValueError) as error:
            reason = error.plain if isinstance(error, NodeError) else "answers in a form that is not Ollama's"
            self._node.note(f"it is not known which models are in its memory: /api/ps {reason}")
            return None
        if unread:
            self._node.note(f"{unread} of the models in its memory are passed over: /api/ps names none")
        return tuple(model.model_copy(update={"name": self._ids.offered(model.name)}) for model in models)

    async def show(self, model: str) -> ShownModel:
        """What the node knows of a model.

        Raises:
            ModelNotFoundError: it does not have it.
            NodeError: the node does not answer as it should.
        """
        return ShownModel.model_validate(await self._node.ask("/api/show", {"model": self._ids.real(model)}))

    def chat(
        self, request: Mapping[str, Any], *, first_byte: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The lines of the answer to a request in Ollama's form, parsed; the last has `done` and the figures.

        Whoever stops before the last line closes the iterator (`contextlib.aclosing`): that closes the
        connection, and the node stops generating.

        Args:
            request: as `request_to_ollama` gives it.
            first_byte: seconds until the first line; with `stream` false that is the whole answer.
            headers: of this request, besides those of all.

        Raises:
            ModelNotFoundError: the node does not have the model.
            RequestRefusedError: the request has to change.
            RetryableNodeError: the node failed, before or in the stream.
        """
        return self._node.lines("/api/chat", request, first_byte, headers)

    async def complete(  # noqa: PLR0913 - each is a fact of its own
        self,
        body: Mapping[str, Any],
        head: ReplyHead,
        *,
        first_byte: float,
        thinking: Thinking | None = None,
        names: Collection[str] = (),
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of an answer to an OpenAI chat body. The node always streams, so that it can be stopped.

        Args:
            body: OpenAI's, whether or not it asks for a stream; its `model` is the node's name of the model.
            head: what the chunks have in common.
            first_byte: seconds until the first line.
            thinking: what `think` the model takes, from `show`; None where it is not known.
            names: others that the node has for this model.
            headers: of this request, besides those of all.

        Raises:
            ChatBodyError: the body cannot be put into Ollama's form.
            WrongModelError: the node answers with another model.
            NodeError: as `chat`.
        """
        place = usage_place(body)
        request = request_to_ollama(body, thinking)
        request |= {"model": self._ids.real(request["model"]), "stream": True}
        real_names = [self._ids.real(name) for name in names]
        lines = self._of_model(
            self.chat(request, first_byte=first_byte, headers=headers), request["model"], real_names
        )
        async with aclosing(stream_to_openai(lines, head, place)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _of_model(
        self, lines: AsyncGenerator[dict[str, Any], None], asked: str, names: Collection[str]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The lines, if the first names the model that was asked for, or none."""
        believed = False
        async with aclosing(lines):
            async for line in lines:
                answered = line.get("model")
                believed = believed or "remote_model" in line  # a cloud model may have another name there
                if not believed and isinstance(answered, str) and answered:
                    if not any(is_same_model(name, answered) for name in (asked, *names)):
                        raise WrongModelError(self.name, asked, answered)
                    believed = True
                yield line

    async def load(
        self,
        model: str,
        *,
        seconds: float,
        keep_alive: str | float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Load a model into memory, and wait until it is there.

        Args:
            model: the node's name of it.
            seconds: for all of it.
            keep_alive: how long it stays: seconds or "5m"; the node's own time when left out.
            options: runner options, such as `num_ctx`. They must be those of the chats to come.

        Raises:
            ModelNotFoundError: the node does not have it.
            NodeError: it could not be loaded.
        """
        found = {"keep_alive": keep_alive, "options": options}
        given = {name: value for name, value in found.items() if value is not None}
        body = {"model": self._ids.real(model), "stream": False, **given}
        await self._node.ask("/api/generate", body, seconds)

    async def embed(
        self, model: str, texts: Sequence[str], *, seconds: float, dimensions: int = 0
    ) -> Vectors:
        """A vector for each text.

        Args:
            model: the node's name of it.
            texts: what to embed.
            seconds: for all of it, a load included.
            dimensions: of the vectors; 0: as many as the model has.

        Raises:
            ModelNotFoundError: the node does not have it.
            NodeError: the node does not answer as it should.
        """
        wanted = {"dimensions": dimensions} if dimensions else {}
        body = {"model": self._ids.real(model), "input": list(texts), **wanted}
        answer = await self._node.ask("/api/embed", body, seconds, len(texts) * VECTOR_BYTES)
        tokens = answer.get("prompt_eval_count")
        return vectors_in(self.name, answer.get("embeddings"), tokens, len(texts), working_seconds(answer))

    async def pull(self, model: str) -> AsyncGenerator[tuple[int, int], None]:
        """Have the node pull a model: bytes that are there of the current layer, and its bytes (0: unknown).

        It ends when the model is whole. Closing the iterator stops the pull, which goes on where it was when
        it is asked for again.

        Raises:
            NodeError: it could not be pulled.
        """
        asked = {"model": model, "insecure": model.startswith("http://")}  # as the name itself asks for
        async with aclosing(self._puller.lines("/api/pull", asked, PULL_SECONDS)) as lines:
            async for line in lines:
                if line.get("status") == "success":
                    return
                done, total = line.get("completed"), line.get("total")
                yield done if isinstance(done, int) else 0, total if isinstance(total, int) else 0


# --- ollama_pack.engines.openai.failures ---
# Which typed error a refusal of an OpenAI-compatible engine is: the words differ from one to the next.

SERVE_IT = message("start the engine there with it, or name a model that it serves")

# vLLM and OpenAI say that "The model `x` does not exist", llama.cpp "model 'x' not found" or "model is not
# loaded", LiteLLM "Invalid model name passed in". Only a sentence that begins so is about the model.
_NO_MODEL = re.compile(
    r"\W*(?:the )?model\b.*\b(?:not found|does not exist|not loaded)|.*\binvalid model name",
    re.IGNORECASE | re.DOTALL,
)
# llama.cpp says with 500 that a model cannot see or hear.
_CANNOT_TAKE = re.compile(r"\b(?:image|audio|video|multimodal)\b.*\bnot supported", re.IGNORECASE | re.DOTALL)
_BAD_REQUEST, _NOT_FOUND, _SERVER_ERROR = 400, 404, 500
_CLIENT_ERRORS = range(400, 500)


def engine_status_error(node: str, status: int, answer: bytes, model: str) -> NodeError:
    """The error that an answer with a status other than 200 stands for. As `status_error` has it."""
    said = engine_said_in(answer)
    if status in {_BAD_REQUEST, _NOT_FOUND} and _NO_MODEL.match(said):
        return ModelNotFoundError(node, model, said, SERVE_IT)
    if status == _SERVER_ERROR and _CANNOT_TAKE.search(said):
        return RequestRefusedError(node, status, said)
    return status_error(node, status, json.dumps({"error": said}).encode(), model)


def event_status(event: dict[str, Any]) -> int | None:
    """The status that an error in a stream would have had before it, where it is the request's fault."""
    error = event.get("error", event)
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and code in _CLIENT_ERRORS else None


def engine_said_in(answer: bytes) -> str:
    """The message in an answer: in `error` as OpenAI has it, in `message` or in FastAPI's `detail`."""
    try:
        value = json.loads(answer.decode(errors="replace"))
    except (ValueError, RecursionError):
        return said_in(answer)
    found = message_in(value)
    return shortened(found) if found else said_in(answer)


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


# --- ollama_pack.engines.openai.models ---
# What an OpenAI-compatible engine tells of its models, in the words of `engines/ollama/values.py`.
#
# `/v1/models` has little in common between engines but the ids: vLLM and SGLang add `max_model_len`, llama.cpp
# `meta` (size, context, quantization), `architecture` and, where it serves several, whether each is loaded.

_MILLION, _BILLION = 10**6, 10**9
_MODALITIES = {"image": "vision", "audio": "audio"}
NO_CHAT = "embedding"  # the capability of a model that cannot chat, whatever else it is for
_ARCHITECTURE = "served"  # `ShownModel.context_length` looks for the context under the architecture's name
# llama.cpp writes "Q4_K - Medium", "all F32", "IQ2_XXS - 2.0625 bpw"; Ollama Q4_K_M, F32, IQ2_XXS.
_FTYPE = re.compile(r"(?:all |mostly )?([A-Z]+\d\w*)(?: - (Small|Medium|Large)\b)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EngineModel:
    """An entry of `/v1/models`.

    Attributes:
        name: its id.
        others: other names that it answers to.
        engine: who serves it, such as llamacpp or vllm; empty where it is not told.
        loaded: it is in memory, as everything is that is not told to be elsewhere.
        context: tokens that it was started for; 0 where it is not told.
        longest: tokens that the weights are made for; 0 where it is not told.
        size: bytes of the weights; 0 where it is not told.
        parameters: their number; 0 where it is not told.
        quantization: such as Q4_K_M; empty where it is not told.
        capabilities: such as completion and vision; empty where they are not told.
        chats: it is no embedder, reranker or the like, as far as is told.
    """

    name: str
    others: tuple[str, ...] = ()
    engine: str = ""
    loaded: bool = True
    context: int = 0
    longest: int = 0
    size: int = 0
    parameters: int = 0
    quantization: str = ""
    capabilities: tuple[str, ...] = ()
    chats: bool = True

    @property
    def _details(self) -> ModelDetails:
        return ModelDetails(
            parameter_size=_parameter_size(self.parameters), quantization_level=self.quantization
        )

    def listed(self) -> ListedModel:
        """As `/api/tags` would have it. No engine tells a digest."""
        return ListedModel(name=self.name, size=self.size, details=self._details)

    def resident(self) -> LoadedModel:
        """As `/api/ps` would have it. Nobody unloads it."""
        return LoadedModel(name=self.name, size=self.size, context_length=self.context)

    def shown(self, props: Mapping[str, Any]) -> ShownModel:
        """As `/api/show` would have it.

        Args:
            props: what llama.cpp's `/props` tells, of its chat template among others; empty: nothing.
        """
        info = {"general.architecture": _ARCHITECTURE, "general.parameter_count": self.parameters}
        info |= {f"{_ARCHITECTURE}.context_length": self.longest or self.context}
        return ShownModel(capabilities=self._able(props), details=self._details, model_info=info)

    def _able(self, props: Mapping[str, Any]) -> tuple[str, ...]:
        """What it can; empty where that is not told, as by vLLM and SGLang: then whatever is asked is tried.

        Tools count as known where llama.cpp says what its chat template supports. A vLLM that was started
        without a parser for them refuses with a sentence that says so.
        """
        if not self.chats:
            return (NO_CHAT,)
        if not self.capabilities:
            return ()
        modalities = object_at(props, "modalities")
        seen = [ability for ability in _MODALITIES.values() if modalities.get(ability)]
        tools = ["tools"] if object_at(props, "chat_template_caps").get("supports_tools", True) else []
        return tuple(dict.fromkeys((*self.capabilities, *seen, *tools)))


@dataclass(frozen=True, slots=True)
class ServedName:
    """The name by which an engine is asked for a model, and others that are known for it."""

    asked: str
    others: Collection[str] = ()

    def may_be(self, answered: object, served: Mapping[str, Collection[str]]) -> bool:
        """Whether an answer may be of this model, by the name in it. Absent names are believed.

        Engines put a path, a file or a dated version there (`/models/x.gguf`, `gpt-4o-2024-08-06`): one name
        may begin with the other, unless the engine lists what it says as another model.

        Args:
            answered: what the answer says.
            served: each name that the engine lists → all names of that model.
        """
        if not isinstance(answered, str) or not answered:
            return True
        known = {self.asked, *self.others, *served.get(self.asked, ())}
        if answered in known:
            return True
        said = _stem(answered)
        if answered in served:
            return any(said == _stem(name) for name in known)
        return any(said.startswith(stem) or stem.startswith(said) for stem in map(_stem, known))


def _stem(name: str) -> str:
    """A model's name without its folder or publisher, its file's ending, and upper case."""
    return name.lower().rsplit("/", 1)[-1].removesuffix(".gguf").removesuffix(":latest")


def engine_models(answer: Mapping[str, Any]) -> tuple[EngineModel, ...]:
    """Read the answer of `/v1/models`: each name once. Entries without one are passed over, if some have one.

    Raises:
        ValueError: it is not of OpenAI's form.
    """
    entries = answer.get("data")
    if not isinstance(entries, list):
        raise ValueError(message("`data` is not a list"))  # noqa: TRY004 - of the answer, not of an argument
    beside = _capabilities_beside(answer.get("models"))
    found: dict[str, EngineModel] = {}
    for entry in entries:
        if name := _name_in(entry):
            found.setdefault(name, _engine_model(entry, name, beside))
    if entries and not found:
        raise ValueError(message("a model has no `id`"))
    return tuple(found.values())


def nameless_models(answer: Mapping[str, Any]) -> int:
    """How many entries of `/v1/models` are passed over."""
    return sum(not _name_in(entry) for entry in answer.get("data") or ())


def served_context(props: Mapping[str, Any]) -> int:
    """The context in tokens that llama.cpp's `/props` tells; 0: none."""
    return _whole_or_zero(object_at(props, "default_generation_settings").get("n_ctx"))


def _name_in(entry: object) -> str:
    """A model's id, or what some have in its place; empty where there is none."""
    name = (entry.get("id") or entry.get("name")) if isinstance(entry, Mapping) else None
    return name if isinstance(name, str) else ""


def _engine_model(entry: Mapping[str, Any], name: str, beside: Mapping[str, tuple[str, ...]]) -> EngineModel:
    meta, aliases, engine = object_at(entry, "meta"), entry.get("aliases"), entry.get("owned_by")
    return EngineModel(
        name=name,
        others=tuple(map(str, aliases)) if isinstance(aliases, list) else (),
        engine=engine if isinstance(engine, str) else "",
        loaded=object_at(entry, "status").get("value", "loaded") == "loaded",
        context=_whole_or_zero(entry.get("max_model_len")) or _whole_or_zero(meta.get("n_ctx")),
        longest=_whole_or_zero(meta.get("n_ctx_train")),
        size=_whole_or_zero(meta.get("size")),
        parameters=_whole_or_zero(meta.get("n_params")),
        quantization=_quantization(meta.get("ftype")),
        capabilities=_capabilities(entry, beside.get(name, ())),
        chats=listed_for_chat(entry, name),
    )


def _capabilities_beside(models: object) -> dict[str, tuple[str, ...]]:
    """Name → capabilities in the list that llama.cpp gives beside OpenAI's, in Ollama's form."""
    entries = [entry for entry in models if isinstance(entry, Mapping)] if isinstance(models, list) else []
    return {
        str(entry.get("name")): tuple(map(str, able))
        for entry in entries
        if isinstance(able := entry.get("capabilities"), list)
    }


def _capabilities(entry: Mapping[str, Any], beside: tuple[str, ...]) -> tuple[str, ...]:
    inputs = object_at(entry, "architecture").get("input_modalities")
    told = inputs if isinstance(inputs, list) else []
    seen = [_MODALITIES[name] for name in told if name in _MODALITIES]
    base = [ability for ability in beside if ability != "multimodal"] or (["completion"] if told else [])
    return tuple(dict.fromkeys((*base, *seen)))


def _quantization(ftype: object) -> str:
    found = _FTYPE.search(ftype) if isinstance(ftype, str) else None
    return found[1].upper() + (f"_{found[2][0].upper()}" if found[2] else "") if found else ""


def _parameter_size(count: int) -> str:
    """The number as Ollama writes it: 8.0B, 134.52M."""
    if count >= _BILLION:
        return f"{count / _BILLION:.1f}B"
    return f"{count / _MILLION:.2f}M" if count >= _MILLION else ""


def _whole_or_zero(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


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


# --- ollama_pack.engines.openai.stream ---
# A streamed answer of an OpenAI-compatible engine, in the one form that this pack gives all answers.
#
# Engines differ in what they call thoughts, in where the figures are, and in how they cut up tool calls. Here a
# chunk says something new, a tool call comes whole, and the last chunk that has a choice ends the answer.

_KEPT_DELTAS = ("annotations", "images", "reasoning_details")  # that Open WebUI reads
_FINISHES = frozenset({"stop", "length", "content_filter"})
_ABORTS = frozenset({"abort", "error"})
_RATES = {"response_token/s": "predicted_per_second", "prompt_token/s": "prompt_per_second"}


class EngineReply:
    """Takes the chunks of one answer and gives those that it is made up of. Nothing here raises."""

    def __init__(self, head: ReplyHead, place: UsagePlace) -> None:
        """Start an answer.

        Args:
            head: what its chunks have in common.
            place: where the figures go.
        """
        self._head = head
        self._place = place
        self._started = False
        self._reason = ""
        self._calls = PendingCalls()
        self._usage: Mapping[str, Any] | None = None
        self._timings: Mapping[str, Any] | None = None

    @property
    def is_begun(self) -> bool:
        """Whether it has said something."""
        return self._started

    @property
    def is_whole(self) -> bool:
        """Whether the engine has said why it ends, and it is not that it gave up."""
        return bool(self._reason) and not self.is_aborted

    @property
    def is_aborted(self) -> bool:
        """Whether the engine gave up: vLLM and SGLang do when they are shut down, for instance."""
        return self._reason in _ABORTS

    def take(self, chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What a chunk says; nothing where it says nothing, or only a part of a tool call.

        The first part of a tool call gives a chunk with the role alone: it shows when the answer began.
        """
        self._usage = _object_or_none(chunk.get("usage")) or self._usage
        self._timings = _object_or_none(chunk.get("timings")) or self._timings
        choice = _first_choice(chunk)
        reason = choice.get("finish_reason")
        self._reason = reason if isinstance(reason, str) and reason else self._reason
        given = object_at(choice, "delta")
        calls = given.get("tool_calls")
        for fragment in calls if isinstance(calls, list) else ():
            self._calls.take(object_at(fragment))
        delta, logprobs = _engine_delta(given), _object_or_none(choice.get("logprobs"))
        if not delta and not logprobs and (self._started or not self._calls.calls):
            return []
        return [self._chunk(delta, logprobs=logprobs)]

    def end(self) -> list[dict[str, Any]]:
        """The tool calls, the reason for the end and the figures, once nothing more comes."""
        calls = self._calls.whole(self._head.id)
        made = [self._chunk({"tool_calls": calls})] if calls else []
        reason = self._reason if self._reason in _FINISHES else "stop"
        reason = "tool_calls" if calls and reason == "stop" else reason
        figures: dict[str, Any] = {"usage": engine_usage(self._usage, self._timings)}
        figures |= {"timings": dict(self._timings)} if self._timings else {}
        last = self._chunk({}, finish=reason)
        if self._place == "last":
            return [*made, last | figures]
        return [*made, last, {**self._head.tagged("chat.completion.chunk"), "choices": []} | figures]

    def _chunk(
        self, delta: dict[str, Any], *, logprobs: Mapping[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        role = {} if self._started else {"role": "assistant"}
        self._started = True
        choice = {"index": 0, "delta": role | delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head.tagged("chat.completion.chunk"), "choices": [choice]}


def engine_usage(usage: Mapping[str, Any] | None, timings: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The engine's figures, with those that Open WebUI shows beside them; None where there are none.

    Args:
        usage: as OpenAI has it.
        timings: as llama.cpp has it, with tokens per second.
    """
    if not usage:
        return None
    kept = {str(name): value for name, value in usage.items() if value is not None}
    made = {"input_tokens": kept.get("prompt_tokens", 0), "output_tokens": kept.get("completion_tokens", 0)}
    rates = {name: (timings or {}).get(source) for name, source in _RATES.items()}
    made |= {name: round(rate, 2) for name, rate in rates.items() if isinstance(rate, int | float)}
    return made | kept


def _engine_delta(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a delta says, without what is empty: text, thoughts, and what else Open WebUI reads."""
    content, thought = _said_in(given.get("content"))
    thoughts = (text_or_empty(given.get(name)) for name in THOUGHT_FIELDS)
    found = {
        "content": content,
        "reasoning_content": next((other for other in thoughts if other), thought),
        **{name: given.get(name) for name in _KEPT_DELTAS},
    }
    return {name: value for name, value in found.items() if value}


def _said_in(content: object) -> tuple[str, str]:
    """Text and thoughts. Mistral's API sends parts while a model thinks, and text afterwards."""
    if not isinstance(content, list):
        return text_or_empty(content), ""
    parts = [object_at(part) for part in content]
    thoughts = [part["thinking"] for part in parts if isinstance(part.get("thinking"), list)]
    return _texts_of(parts), "".join(_texts_of(map(object_at, inner)) for inner in thoughts)


def _texts_of(parts: Iterable[Mapping[str, Any]]) -> str:
    return "".join(text_or_empty(part.get("text")) for part in parts)


def _first_choice(chunk: Mapping[str, Any]) -> Mapping[str, Any]:
    """The choice numbered 0, or without a number; empty where there is none."""
    choices = chunk.get("choices")
    given = [object_at(choice) for choice in choices] if isinstance(choices, list) else []
    return next((choice for choice in given if not choice.get("index")), {})


def _object_or_none(value: object) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) and value else None


# --- ollama_pack.engines.openai.client ---
# A node that runs an OpenAI-compatible engine: vLLM, SGLang, llama.cpp's server, and what else speaks so.

METRICS_RETRY_SECONDS = 600.0  # until an engine without metrics is asked again: it may have been restarted
OPENAI_DIALECT = Dialect(message("an OpenAI-compatible engine"), engine_status_error)
LLAMACPP = "llamacpp"  # what it calls itself in `owned_by`

_V1 = "/v1"
# A path with a version in it, or with OpenAI's name at its end, is all of the base address: nothing is added.
_WHOLE_BASE = re.compile(r"https?://[^/]+(?:/.*)?/(?:v\d+\w*(?:/.*)?|openai)", re.IGNORECASE)
# Where an engine tells its version, and under which name: vLLM, llama.cpp, SGLang, and SGLang before 0.5.
# By which the routers of vLLM (`consistent_hash`, and its production stack with this `--session-key`) and of
# SGLang keep a session at one engine.
SESSION_HEADERS = ("X-Session-Id", "X-SMG-Routing-Key")
_SESSION_KEY = re.compile(r"[\w.:-]{1,256}", re.ASCII)
# What an engine answers where it does not have what was asked for.
_ABSENT = frozenset({400, 404, 405, 422, 501})

_Named = TypeVar("_Named", bound=NamedModel)


class OpenAIClient:
    """A node that runs an OpenAI-compatible engine. It answers as `OllamaClient` does, chunk for chunk."""

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        *,
        limits: NodeLimits | None = None,
        headers: Mapping[str, str] | None = None,
        serves: Collection[str] = (),
    ) -> None:
        """Take what is needed later; nothing is connected.

        Args:
            url: such as http://gpu1:8000 or http://gpu1:8000/v1, or another base address of such an API,
                such as https://gateway/v1beta/openai.
            session: holds the connections. Its timeouts do not apply; a limit on connections does.
            limits: when left out, the defaults.
            headers: sent with every request, such as `Authorization`.
            serves: the names of its models, where `/v1/models` does not list them; empty: it does.
        """
        base = url.rstrip("/")
        root = base.removesuffix(_V1)
        # What comes between the address and `/models`; the first that answers is kept.
        self._bases = (_V1,) if root != base else ("", _V1) if _WHOLE_BASE.fullmatch(base) else (_V1, "")
        self._ids = ModelIds()
        self._node = NodeTransport(root, session, limits or NodeLimits(), headers or {}, OPENAI_DIALECT)
        self._declared = tuple(EngineModel(name) for name in serves)
        self._served: Mapping[str, frozenset[str]] = _names_of(self._declared)  # name → all of that model
        self._takes_usage = True
        self._metrics_at = 0.0

    @property
    def name(self) -> str:
        """The node's address, as it may be shown: without `/v1`, user name, password and query."""
        return self._node.name

    async def tags(self) -> tuple[ListedModel, ...]:
        """The models that the engine serves, or can load.

        Raises:
            NodeError: the node does not answer as it should.
        """
        return tuple(self._offered(model.listed()) for model in await self._models())

    async def ps(self) -> tuple[LoadedModel, ...]:
        """The models in memory: all that are served, but for those that llama.cpp says are not loaded.

        Raises:
            NodeError: the node does not answer as it should.
        """
        models = [model for model in await self._models() if model.loaded]
        if any(model.engine == LLAMACPP and not model.context for model in models):  # an older one
            context = served_context(await self._told("/props"))
            return tuple(
                self._offered(model.resident()).model_copy(
                    update={"context_length": model.context or context}
                )
                for model in models
            )
        return tuple(self._offered(model.resident()) for model in models)

    async def load(
        self,
        model: str,
        *,
        seconds: float,
        keep_alive: str | float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Nothing: the engine has its models in memory, or loads them itself."""

    async def embed(
        self, model: str, texts: Sequence[str], *, seconds: float, dimensions: int = 0
    ) -> Vectors:
        """A vector for each text: see `OllamaClient.embed`.

        Raises:
            NodeError: the engine does not answer as it should.
        """
        wanted = {"dimensions": dimensions} if dimensions else {}
        body = {"model": self._ids.real(model), "input": list(texts), **wanted}
        answer = await self._node.ask(
            f"{self._bases[0]}/embeddings", body, seconds, len(texts) * VECTOR_BYTES
        )
        entries = [entry for entry in answer.get("data") or () if isinstance(entry, Mapping)]
        ordered = sorted(entries, key=lambda entry: entry.get("index") or 0)
        tokens = object_at(answer, "usage").get("prompt_tokens")
        return vectors_in(self.name, [entry.get("embedding") for entry in ordered], tokens, len(texts))

    async def show(self, model: str) -> ShownModel:
        """What the engine knows of a model. `capabilities` is empty where it does not tell them.

        Raises:
            ModelNotFoundError: it does not have it.
            NodeError: the node does not answer as it should.
        """
        models = await self._models()
        name = self._ids.real(model)
        found = next((each for each in models if name in {each.name, *each.others}), None)
        if found is None:
            raise self._not_served(model)
        return found.shown(await self._told("/props") if found.engine == LLAMACPP else {})

    async def activity(self) -> EngineActivity | None:
        """How busy the engine is, by its metrics; None where it has none: then it is not asked for a while.

        Raises:
            NodeError: the node does not answer as it should.
        """
        now = asyncio.get_running_loop().time()
        if now < self._metrics_at:
            return None
        try:
            text = (await self._node.fetch("/metrics")).decode(errors="replace")
        except NodeError as error:
            if error.status not in _ABSENT:
                raise
            text = ""
        found = engine_activity(text)
        if found is None:
            self._metrics_at = now + METRICS_RETRY_SECONDS
        return found

    async def complete(  # noqa: PLR0913 - each is a fact of its own
        self,
        body: Mapping[str, Any],
        head: ReplyHead,
        *,
        first_byte: float,
        thinking: Thinking | None = None,  # noqa: ARG002 - of `NodeClient`; engines ignore an effort they lack
        names: Collection[str] = (),
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of an answer to an OpenAI chat body. The engine always streams: then it can be stopped.

        The last chunk has `usage`, null where the engine does not tell, and llama.cpp's `timings`.

        Args:
            body: OpenAI's, whether or not it asks for a stream; its `model` is the id that `tags` gives it.
            head: what the chunks have in common.
            first_byte: seconds until the first event.
            thinking: not used.
            names: others that the engine lists for this model.
            headers: of this request, besides those of all.

        Raises:
            ChatBodyError: the body is not of its form.
            ModelNotFoundError: the engine does not list the model. It is not asked then: llama.cpp
                would answer with the model that it has.
            RequestRefusedError: the request has to change.
            WrongModelError: the engine answers with another model.
            RetryableNodeError: the engine failed, before or in the stream.
        """
        place = usage_place(body)
        request = request_to_engine(body)
        if self._ids.real(request["model"]) not in self._served:
            await self._models()
        request["model"] = self._ids.real(request["model"])
        if request["model"] not in self._served:
            raise self._not_served(request["model"])
        served = ServedName(request["model"], [self._ids.real(name) for name in names])
        async with (
            aclosing(self._events(request, first_byte, headers)) as events,
            aclosing(self._chunks(events, EngineReply(head, place), served)) as chunks,
        ):
            async for chunk in chunks:
                yield chunk

    async def _events(
        self, request: dict[str, Any], first_byte: float, headers: Mapping[str, str]
    ) -> AsyncGenerator[ServerEvent, None]:
        """The events of an answer. One that refuses `stream_options` is asked without, now and later."""
        path, asks_usage = f"{self._bases[0]}/chat/completions", self._takes_usage
        sent = request if asks_usage else without_usage(request)
        try:
            async with aclosing(
                self._node.events(path, sent, first_byte, {**_session_headers(sent), **headers})
            ) as events:
                async for event in events:
                    yield event
        except RequestRefusedError as error:  # comes before the first event or never
            if not asks_usage or "stream_options" not in error.said:
                raise
            self._takes_usage = False
        else:
            return
        async with aclosing(self._events(request, first_byte, headers)) as events:
            async for event in events:
                yield event

    async def _chunks(
        self, events: AsyncGenerator[ServerEvent, None], reply: EngineReply, model: ServedName
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks that the events make up."""
        ended = False
        async for event in events:
            ended = event.is_last
            made = self._end(reply) if ended else reply.take(self._chunk_in(event, reply, model))
            for chunk in made:
                yield chunk
        if not ended:
            for chunk in self._end(reply):
                yield chunk

    def _chunk_in(self, event: ServerEvent, reply: EngineReply, model: ServedName) -> dict[str, Any]:
        """The chunk in an event; an error is raised. SGLang refuses requests so, after status 200."""
        chunk = self._node.parsed(event.data)
        if not event.is_error and not chunk.get("error") and chunk.get("object") != "error":
            answered = chunk.get("model")
            known = self._declared or model.may_be(answered, self._served)
            if not reply.is_begun and not known:
                raise WrongModelError(self.name, model.asked, str(answered))
            return chunk
        status = None if reply.is_begun else event_status(chunk)
        if status is not None:
            raise engine_status_error(self.name, status, event.data, model.asked)
        raise NodeFaultError(self.name, message("failed while it answered"), said=engine_said_in(event.data))

    def _end(self, reply: EngineReply) -> list[dict[str, Any]]:
        """The last chunks, where the answer has come to its end. Some engines do without `[DONE]`."""
        if reply.is_aborted:
            raise NodeFaultError(self.name, message("gave up in the middle of its answer"))
        if not reply.is_whole:
            raise NodeFaultError(self.name, message("ended its answer before the last chunk"))
        return reply.end()

    async def _models(self) -> tuple[EngineModel, ...]:
        """The models, which are remembered as those that it answers for."""
        models = await self._listed()
        self._ids.learn(model.name for model in models)
        self._served = _names_of(models)
        return models

    async def _listed(self) -> tuple[EngineModel, ...]:
        """The list under the first base that has one; what was declared, where the server is there."""
        if self._declared:
            try:
                await self._node.fetch(f"{self._bases[0]}/models")
            except NodeError as error:
                if error.status is None:  # else it is there, whatever it lists: SGLang's router answers 503
                    raise
            return self._declared
        base, *others = self._bases
        try:
            return await self._list_at(base)
        except NodeError as error:
            if isinstance(error, NodeUnreachableError | NodeTimeoutError | NodeBusyError):
                raise
            for other in others:
                with suppress(NodeError):
                    models = await self._list_at(other)
                    self._bases = (other,)
                    return models
            raise

    async def _list_at(self, base: str) -> tuple[EngineModel, ...]:
        text = await self._node.fetch(f"{base}/models")
        bare = text.lstrip()[:1] == b"["  # Together's list has nothing around it
        answer = self._node.parsed(b'{"data":' + text + b"}" if bare else text)
        try:
            models = engine_models(answer)
        except ValueError as error:
            raise NodeFaultError(
                self.name, message("lists models in a form that is not OpenAI's: {error}", error=error)
            ) from error
        if bare and not models:
            raise NodeFaultError(
                self.name, message("lists models in a form that is not OpenAI's: there are none")
            )
        if unread := nameless_models(answer):
            self._node.note(
                message(
                    "{count} of its models are passed over: {base}/models gives them no id",
                    count=unread,
                    base=base,
                )
            )
        self._bases = (base,)
        return models

    def _offered(self, model: _Named) -> _Named:
        """The model under the id that clients know."""
        return model.model_copy(update={"name": self._ids.offered(model.name)})

    async def _told(self, path: str) -> dict[str, Any]:
        """What the engine tells there; empty where it has no such thing."""
        try:
            return await self._node.ask(path)
        except NodeError as error:
            if error.status not in _ABSENT:
                raise
            return {}

    def _not_served(self, model: str) -> ModelNotFoundError:
        listed = ", ".join(sorted(self._served)[:5])
        said = message("it serves {listed}", listed=listed) if listed else message("it serves nothing")
        return ModelNotFoundError(self.name, model, said, SERVE_IT)


def _session_headers(request: Mapping[str, Any]) -> dict[str, str]:
    """The headers by which gateways keep a conversation at one engine, where the request names its own."""
    key = request.get(CACHE_KEY)
    return dict.fromkeys(SESSION_HEADERS, key) if isinstance(key, str) and _SESSION_KEY.fullmatch(key) else {}


def _names_of(models: Iterable[EngineModel]) -> dict[str, frozenset[str]]:
    """Each name that is served → all names of that model."""
    return {
        name: frozenset((model.name, *model.others))
        for model in models
        for name in (model.name, *model.others)
    }


# --- ollama_pack.routing.nodes ---
# The `nodes` valve: a row a line, read once.
#
# For example::
#
#     gpu0  http://gpu0:11434                       # an Ollama
#     gpu1  http://gpu1:11434  slots=4 weight=2     # OLLAMA_NUM_PARALLEL=4, and twice the work among equals
#     gpu2  http://gpu2:11434  memory=24GB          # of its GPUs, where no agent reports it
#     old   http://old:11434   tier=1               # only when the others are slow to answer
#     vllm  http://vllm:8000   kind=openai key=…    # any OpenAI-compatible engine
#     far   https://me:password@far/ollama  header="X-Team: blue"   # behind a gateway
#     k8s   http://router:80   kind=openai placement=own models=qwen3   # a gateway that places requests itself
#     pool  dns+srv://_ollama._tcp.example.org                # each server that DNS names
#     pods  k8s://default/app=ollama:11434                    # each ready pod that has these labels

NodeKind = Literal["ollama", "openai"]
PlacedBy = Literal["pack", "own"]

MAX_NODES = 1024
MAX_TIER = 9
SRV = "dns+srv://"
PODS = "k8s://"
DISCOVERED = (SRV, PODS)  # addresses that stand for several servers
MAX_WEIGHT = 100.0
MAX_DECLARED_SLOTS = 1024

_NODE_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
_NODE_PODS = re.compile(r"k8s://[a-z0-9-]{1,63}/[A-Za-z0-9_./=!,-]{1,500}:[1-9][0-9]{0,4}")
_NODE_SRV = re.compile(r"dns\+srv://(?:[0-9.]+(?::[0-9]{1,5})?/)?(?:[\w-]{1,63}\.)+[\w-]{1,63}\.?")
_NODE_SECRET = re.compile(r"(//(?=.*@)|\?)(?:.*@|\S+)")  # of an address: its login, or what follows a ?
_NODE_WORD = re.compile(r'header="[^"]*"|\S+')
_NODE_HEADER = re.compile(r"([!#$%&'*+.^_`|~\w-]+):[ \t]*(.*?)[ \t]*", re.ASCII)
_NODE_SETTINGS = "kind, weight, tier, slots, memory, agent, key, header, placement, models"
_BYTES = {"": 1, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
MAX_MEMORY = 2**50


@dataclass(frozen=True, slots=True)
class Listing:
    """Which of a server's models are offered, and under which names.

    Attributes:
        prefix: put before each name, with a dot; empty: none.
        only: the server's names of those that are offered; empty: all.
    """

    prefix: str = ""
    only: frozenset[str] = frozenset()

    def offered(self, model: str) -> str | None:
        """The name under which a model of the server is offered; None: it is not."""
        if self.only and model not in self.only and model not in map(usable_id, self.only):
            return None
        return f"{self.prefix}.{model}" if self.prefix else model


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node, as the admin describes it.

    Attributes:
        name: what status lines and logs call it.
        url: its address, without a slash at the end and without a login.
        kind: what it speaks.
        weight: how much of the work it gets beside equals; 0: it finishes what it has and gets nothing new.
        tier: nodes of a higher tier answer when those of lower ones are slow to.
        slots: how many requests a model answers at once there; None: to be learned.
        agent: address of its `gpu_agent`, with its login if it has one; empty: none.
        key: sent as a bearer token; empty: none. In no message.
        placement: who chooses the engine that answers. "own": the node is a gateway in front of several
            engines (vLLM's production stack, llm-d, Ray Serve LLM, SGLang's router). It gets requests at
            once, up to `slots`, and a key of the conversation that helps it to choose.
        models: that it serves, where its `/v1/models` does not list them; empty: those that it lists.
        line: its number in the text, from 1.
        login, headers, auth, cookies: as in `WayIn`. In no message.
        listings: what of its models is offered; none: all, under their own names.
        memory: bytes that its GPUs have; 0: to be learned from its agent, or from what it has in memory.
    """

    name: str
    url: str
    kind: NodeKind = "ollama"
    weight: float = 1.0
    tier: int = 0
    slots: int | None = None
    agent: str = field(default="", repr=False)
    key: str = field(default="", repr=False)
    placement: PlacedBy = "pack"
    models: tuple[str, ...] = ()
    line: int = field(default=0, compare=False)
    listings: tuple[Listing, ...] = ()
    login: str = field(default="", repr=False)
    headers: tuple[Header, ...] = field(default=(), repr=False)
    auth: str = ""
    cookies: bool = False
    memory: int = 0

    @property
    def way_in(self) -> WayIn:
        """How it lets the router in."""
        return WayIn(self.url, self.key, self.login, self.headers, self.auth, self.cookies)

    @property
    def agent_way_in(self) -> WayIn:
        """How its agent lets us in: by a login of its own, else as the node where both have one gateway."""
        url, login = split_login(self.agent)
        node, agent = urlsplit(self.url), urlsplit(url)
        if not login and (node.scheme, node.netloc) == (agent.scheme, agent.netloc):
            return replace(self.way_in, url=url)
        return WayIn(url, login=login)

    def entered_by(self, way: WayIn) -> Self:
        """The node with another way in."""
        found = {name: getattr(way, name) for name in ("url", "key", "login", "headers", "auth", "cookies")}
        return replace(self, **found)


@lru_cache(maxsize=16)  # valves are validated anew on every request, and nearly always hold the same text
def parse_nodes(text: str) -> tuple[NodeRow, ...]:
    """Read the nodes from text: a row a line, `#` starts a comment, empty lines are skipped.

    Raises:
        NodeTableError: naming the row and what is wrong with it.
    """
    rows: list[NodeRow] = []
    for line, written in table_rows(text):
        try:
            rows.append(_parse_node(line, written))
            _refuse_repeated(rows)
        except ValueError as fault:
            raise NodeTableError(line, *_without_secrets(written, said_by(fault))) from None
    return tuple(rows)


def _without_secrets(written: str, fault: Message) -> tuple[str, Message]:
    """A row and what is wrong with it, without passwords, keys and headers, also with a space in them."""
    address, *secret = re.split(r"(\b(?:key|header)=)", _NODE_SECRET.sub(r"\1…", written), maxsplit=1)
    after = secret[1].split() if secret else []
    settings = [word if word.partition("=")[0] in _SHOWN_SETTINGS else "…" for word in after]
    row = f"{address}{''.join(secret[:1])}{' '.join(settings)}"
    quoted = {name for name in fault.values if f"{{{name}!r}}" in fault.template}
    hidden = {name: "…" for name in quoted if str(fault.values[name]) not in row}
    return row, fault.with_values(hidden)


def _parse_node(line: int, written: str) -> NodeRow:
    """Read a row; here and below a ValueError says what is wrong with it."""
    name, *rest = _NODE_WORD.findall(written)
    if not rest or "://" not in rest[0]:
        raise ValueError(
            message("write it as `gpu0 http://gpu0:11434 slots=2`: a name, an address, settings")
        )
    if not _NODE_NAME.fullmatch(name):
        raise ValueError(
            message(
                "{name!r} cannot be a name: use up to 64 letters, digits, dots, dashes, underscores",
                name=name,
            )
        )
    address, *settings = rest
    if address.startswith(DISCOVERED):
        url, login = _several(address), ""
    else:
        url, login = split_login(_address(address))
    row = NodeRow(name, url, line=line, login=login, **_settings(settings))
    if row.login and row.key:
        raise ValueError(message("it has a password in its address and a key=…: take one of them out"))
    if row.kind != "openai" and (row.placement == "own" or row.models):
        setting = "models=" if row.models else "placement=own"
        raise ValueError(
            message(
                "{setting} is for OpenAI-compatible servers: add kind=openai, or leave it out",
                setting=setting,
            )
        )
    return replace(row, slots=MAX_DECLARED_SLOTS) if row.placement == "own" and row.slots is None else row


def _settings(written: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for setting in written:
        name, equals, value = setting.partition("=")
        if not equals or name not in _READERS:
            raise ValueError(
                message(
                    "unknown setting {name!r}: the known ones are {known}",
                    name=name,
                    known=_NODE_SETTINGS,
                )
            )
        if name == "header":
            found["headers"] = (*found.get("headers", ()), _header(value))
            continue
        if name in found:
            raise ValueError(message("{name}= is set twice", name=name))
        found[name] = _READERS[name](value)
    return found


def _header(value: str) -> Header:
    found = _NODE_HEADER.fullmatch(value.strip('"'))
    if found is None or not found[2].isprintable():
        raise ValueError(message('header= needs a name and a value, as in header="X-Team: blue"'))
    return found[1], found[2]


def _address(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not value.isprintable():
        raise ValueError(message("{value!r} is no address: write it as http://gpu0:11434", value=value))
    if parts.query or parts.fragment:
        raise ValueError(
            message("{value!r} has something after the path: write it as http://gpu0:11434", value=value)
        )
    return value.rstrip("/")


def _several(value: str) -> str:
    if value.startswith(SRV) and not _NODE_SRV.fullmatch(value):
        raise ValueError(
            message(
                "{value!r} is no name of a service: write it as dns+srv://_ollama._tcp.example.org",
                value=value,
            )
        )
    if value.startswith(PODS) and not _NODE_PODS.fullmatch(value):
        raise ValueError(
            message(
                "{value!r} does not select pods: write it as k8s://NAMESPACE/app=ollama:11434", value=value
            )
        )
    return value


def _kind(value: str) -> NodeKind:
    for kind in get_args(NodeKind):
        if value == kind:
            return kind  # type: ignore[no-any-return] # get_args tells no types
    raise ValueError(
        message(
            "kind={value} is unknown: the known ones are {known}",
            value=value,
            known=", ".join(get_args(NodeKind)),
        )
    )


def _placement(value: str) -> PlacedBy:
    for placement in get_args(PlacedBy):
        if value == placement:
            return placement  # type: ignore[no-any-return] # get_args has no types
    raise ValueError(
        message(
            "placement={value} is unknown: the known ones are {known}",
            value=value,
            known=", ".join(get_args(PlacedBy)),
        )
    )


def _nodes__models(value: str) -> tuple[str, ...]:
    names = tuple(value.split(","))
    if not all(names) or not value.isprintable():
        raise ValueError(message("models= needs names separated by commas, not {value!r}", value=value))
    return names


def _weight(value: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= MAX_WEIGHT:
        raise ValueError(
            message(
                "weight= needs a number from 0 to {most:g}, not {value!r}",
                most=MAX_WEIGHT,
                value=value,
            )
        )
    return weight


def _memory(value: str) -> int:
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([KMGT]?i?B?)", value, re.IGNORECASE)
    unit = found[2].upper() if found else "?"
    scale = _BYTES.get(unit) or _BYTES.get(f"{unit}B", 0)
    size = round(float(found[1]) * scale) if found else 0
    if not 10**8 <= size <= MAX_MEMORY:
        raise ValueError(message("memory= needs a size such as 24GB or 80GiB, not {value!r}", value=value))
    return size


def _whole_number(setting: str, least: int, most: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if re.fullmatch(r"[0-9]{1,6}", value) and least <= int(value) <= most:
            return int(value)
        raise ValueError(
            message(
                "{setting}= needs a whole number from {least} to {most}, not {value!r}",
                setting=setting,
                least=least,
                most=most,
                value=value,
            )
        )

    return read


def _secret(value: str) -> str:
    if not value:
        raise ValueError(message("key= is empty: leave it out, or write the token after it"))
    return value


_READERS: dict[str, Callable[[str], Any]] = {
    "kind": _kind,
    "weight": _weight,
    "tier": _whole_number("tier", 0, MAX_TIER),
    "slots": _whole_number("slots", 1, MAX_DECLARED_SLOTS),
    "memory": _memory,
    "agent": _address,
    "key": _secret,
    "header": _header,
    "placement": _placement,
    "models": _nodes__models,
}


_SHOWN_SETTINGS = _READERS.keys() - {"key", "header"}


def _refuse_repeated(rows: list[NodeRow]) -> None:
    *before, row = rows
    for other in before:
        if row.name == other.name:
            raise ValueError(
                message(
                    "row {line} is already called {name!r}: give it another name",
                    line=other.line,
                    name=row.name,
                )
            )
        if row.url == other.url:
            raise ValueError(
                message(
                    "row {line} ({name}) has the same address: one row for each node",
                    line=other.line,
                    name=other.name,
                )
            )
    if len(rows) > MAX_NODES:
        raise ValueError(message("at most {limit} nodes can be configured", limit=MAX_NODES))


# --- ollama_pack.routing.probe.catalogue ---
# Which models the nodes have, put together: what a picker offers and what an alias may stand for.


@dataclass(frozen=True, slots=True)
class NodeModel:
    """A model as one node has it.

    Attributes:
        name: as the node lists it, with its tag.
        installed: what the scheduler goes by.
        digest: of the manifest; empty where it is not told.
        quantization: such as Q4_K_M; empty where it is not told.
        capabilities: such as tools and vision; None where it is not told.
        thinking: what `think` it takes; None where it is not told.
    """

    name: str
    installed: InstalledModel
    digest: str = ""
    quantization: str = ""
    capabilities: frozenset[str] | None = None
    thinking: Thinking | None = None


@dataclass(frozen=True, slots=True)
class FleetModel:
    """A model of the fleet.

    Attributes:
        name: as the nodes list it.
        nodes: names of the nodes that have it.
        model: as the first of them has it.
        digests: of the manifests, in order, each once; without the nodes that tell none.
    """

    name: str
    nodes: tuple[str, ...]
    model: NodeModel
    digests: tuple[str, ...] = ()

    def can(self, capability: str) -> bool:
        """Whether it is able to, as far as is known."""
        return self.model.capabilities is None or capability in self.model.capabilities


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The models of all nodes, without duplicates, by name.

    Attributes:
        models: name → model, sorted by name.
        levels: name → quantization level, which is what alias tables are resolved against.
    """

    models: Mapping[str, FleetModel] = field(default_factory=dict)
    levels: Mapping[str, str] = field(default_factory=dict)
    _folded: Mapping[str, FleetModel] = field(default_factory=dict, repr=False)

    def find(self, name: str) -> FleetModel | None:
        """The model of a name in any spelling, of an automatic name the best; None where no node has it."""
        best = auto_parts(name)[0][0]
        return self.models.get(best) or self._folded.get(fold_name(best))


def build_catalogue(nodes: Mapping[str, Iterable[NodeModel]]) -> Catalogue:
    """Put the models of some nodes together.

    Args:
        nodes: name of a node → what it has.
    """
    holders: dict[str, list[tuple[str, NodeModel]]] = {}
    for node, models in nodes.items():
        for model in models:
            holders.setdefault(model.name, []).append((node, model))
    found = {name: _fleet_model(name, holders[name]) for name in sorted(holders)}
    levels = {name: model.model.quantization for name, model in found.items()}
    return Catalogue(found, levels, {fold_name(name): model for name, model in found.items()})


def _fleet_model(name: str, holders: list[tuple[str, NodeModel]]) -> FleetModel:
    first = holders[0][1]
    digests = {model.digest for _, model in holders if model.digest}
    return FleetModel(name, tuple(node for node, _ in holders), first, tuple(sorted(digests)))


# --- ollama_pack.routing.probe.gpus ---
# GPUs as values, the JSON form in which `GET /api/system/load` tells of them, and reading it from an agent.
#
# What comes from a driver or over the network is bounded here: a figure out of its range counts as not told.

LOAD_PATH = "/api/system/load"
MAX_GPUS = 64  # of one node; those after them are left out
AGENT_BYTES = 256 * 2**10  # of an agent's whole answer; one with 64 GPUs is a tenth of it

_AGENT_OK = 200
_MAX_PERCENT = 100
_MAX_MEMORY = 2**50
_MAX_CELSIUS = 200
_MAX_WATTS = 10_000
_GPU_TEXT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU at one moment. None: the driver does not tell, or not under MIG, on a vGPU, on unified memory.

    Attributes:
        index: its number on its node, from 0, in the driver's order (`nvidia-smi` shows the same).
        name: such as "NVIDIA H100 80GB HBM3"; empty: not told.
        utilization: percent of the last sample period (a sixth of a second to a second) in which something
            ran on it. It says nothing of how much of the GPU that took.
        memory_used: bytes, including what the driver keeps for itself.
        memory_total: bytes.
        temperature: degrees Celsius.
        power: watts.
        fault: why the driver cannot reach it, such as "GPU is lost"; empty: it can.
    """

    index: int
    name: str
    utilization: float | None
    memory_used: int | None
    memory_total: int | None
    temperature: float | None = None
    power: float | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class GpuReport:
    """The GPUs of one node.

    Attributes:
        gpus: in the order of their index.
        reason: why there are none, and what to do; empty when there are some.
    """

    gpus: tuple[Gpu, ...] = ()
    reason: str = ""


def gpu_usage(gpus_of_nodes: Iterable[Sequence[Gpu]]) -> dict[str, float | None]:
    """Percent of each GPU as `gpu0_usage`, `gpu1_usage` and so on, numbered through over all nodes.

    Args:
        gpus_of_nodes: the GPUs of each node, in the order of the nodes.
    """
    gpus = chain.from_iterable(gpus_of_nodes)
    return {f"gpu{number}_usage": gpu.utilization for number, gpu in enumerate(gpus)}


def gpu_values(gpu: Gpu) -> dict[str, Any]:
    """A GPU in its JSON form: five fields always, the others where there is something to tell."""
    told = {"temperature": gpu.temperature, "power": gpu.power, "fault": gpu.fault or None}
    return {
        "index": gpu.index,
        "name": gpu.name,
        "utilization": gpu.utilization,
        "memory_used": gpu.memory_used,
        "memory_total": gpu.memory_total,
        **{field: value for field, value in told.items() if value is not None},
    }


def gpu_in(value: Mapping[str, Any], index: int) -> Gpu:
    """A GPU from its JSON form, whatever is in it.

    Args:
        value: its fields.
        index: its number where the form has none.
    """
    total = _gpu_figure(value.get("memory_total"), _MAX_MEMORY)
    used = _gpu_figure(value.get("memory_used"), _MAX_MEMORY if total is None else total)
    percent = _gpu_figure(value.get("utilization"), _MAX_PERCENT)
    told = _gpu_figure(value.get("index"), MAX_GPUS - 1)
    return Gpu(
        index if told is None else int(told),
        _gpu_text(value.get("name")),
        None if percent is None else float(percent),
        None if used is None else int(used),
        None if total is None else int(total),
        _gpu_figure(value.get("temperature"), _MAX_CELSIUS),
        _gpu_figure(value.get("power"), _MAX_WATTS),
        _gpu_text(value.get("fault")),
    )


def report_in(answer: Any) -> GpuReport:
    """The report in what an agent answered, whatever that is."""
    nodes = answer.get("nodes") if isinstance(answer, dict) else None
    node = nodes[0] if isinstance(nodes, list) and nodes else None
    listed = node.get("gpus") if isinstance(node, dict) else None
    if not isinstance(node, dict) or not isinstance(listed, list):
        return GpuReport(reason=message("answers in a form that is not gpu_agent's: is it one?"))
    gpus: dict[int, Gpu] = {}
    for number, value in enumerate(listed[:MAX_GPUS]):
        if isinstance(value, dict):
            gpu = gpu_in(value, number)
            gpus.setdefault(gpu.index, gpu)
    if gpus:
        return GpuReport(tuple(gpus[index] for index in sorted(gpus)))
    return GpuReport(reason=_gpu_text(node.get("reason")) or message("reports no GPU"))


async def read_agent(
    url: str, session: aiohttp.ClientSession, seconds: float, headers: Mapping[str, str] | None = None
) -> GpuReport:
    """Ask the `gpu_agent` of another machine. Whatever goes wrong is the report's reason.

    Args:
        url: as `agent=` of the node's row has it.
        session: holds the connections. Its timeouts do not apply.
        seconds: for all of it.
        headers: that its gateway wants.
    """
    try:
        async with asyncio.timeout(seconds):
            report = await _ask_agent(url.rstrip("/") + LOAD_PATH, session, headers or {})
    except TimeoutError:
        report = GpuReport(reason=message("does not answer within {seconds:g} s", seconds=seconds))
    except (aiohttp.ClientError, OSError) as error:
        report = GpuReport(
            reason=message("cannot be reached ({kind}): is it started?", kind=type(error).__name__)
        )
    except ValueError:  # an address that cannot be used, an answer that is no JSON
        report = GpuReport(reason=message("sends what is no JSON, or its address cannot be used"))
    if report.gpus:
        return report
    return GpuReport(
        reason=message("the gpu_agent at {url}: {reason}", url=node_name(url), reason=report.reason)
    )


async def _ask_agent(url: str, session: aiohttp.ClientSession, headers: Mapping[str, str]) -> GpuReport:
    whole_time = aiohttp.ClientTimeout(total=None)
    async with session.get(url, headers=headers, timeout=whole_time, allow_redirects=False) as response:
        if response.status != _AGENT_OK:
            return GpuReport(reason=message("answers with status {status}", status=response.status))
        body = b""
        while len(body) <= AGENT_BYTES and (data := await response.content.readany()):
            body += data
    if len(body) > AGENT_BYTES:
        return GpuReport(reason=message("answers with more than {limit} bytes", limit=AGENT_BYTES))
    return report_in(json_in(body.decode()))


def _gpu_figure(value: object, most: float) -> int | float | None:
    """The value where it is a number from 0 to the most; NaN is in no range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value <= most else None


def _gpu_text(value: object) -> str:
    """The value where it is text, without what could upset a terminal, a log or a page."""
    text = value if isinstance(value, str) else ""
    return "".join(character for character in text if character.isprintable())[:_GPU_TEXT_CHARACTERS]


# --- ollama_pack.routing.probe.gpu_nvml ---
# GPUs of this machine, from NVIDIA's driver through NVML.
#
# What NVML's answers mean is in the comments of NVIDIA's `nvml.h`, and its Python form in `nvidia-ml-py`.

NVML_SECONDS = 2.0  # a healthy driver takes milliseconds; the first call may wake GPUs up

_Done = TypeVar("_Done")

_NO_BINDINGS = message("pynvml is not installed: pip install nvidia-ml-py")
_NO_GPU = message("the NVIDIA driver lists no GPU: is one passed to this machine or container?")
# By NVML's return codes, which nvml.h promises not to change.
_NVML_REASONS = {
    4: message("the NVIDIA driver refuses this user: allow it to open /dev/nvidiactl and /dev/nvidia*"),
    9: message("the NVIDIA driver is not loaded: load it (`nvidia-smi` does), or restart the machine"),
    12: message("no NVIDIA driver (no NVML library): install it, or start the container with --gpus all"),
    18: message("the NVIDIA driver was updated and the old one still runs: restart the machine"),
}
# Not supported, no permission, function not found, no data: a figure that this GPU or driver does not give.
_NVML_UNTOLD = frozenset({3, 4, 13, 21})


def load_nvml() -> Any:
    """NVIDIA's bindings, which Open WebUI does not install.

    Raises:
        ImportError: they are not there.
    """
    import pynvml  # noqa: PLC0415 - a plugin must load without it

    return pynvml


def preload_nvml(load: Callable[[], Any] = load_nvml) -> None:
    """Import the bindings, where they are there, in a thread: before the first chat it holds up none.

    They are one file of 300 KB. Where nobody has compiled it before, that takes the interpreter a third of a
    second, in which no other thread runs, whichever thread it happens in.
    """
    _in_daemon_thread(load)


class GpuReader:
    """Reads this machine's GPUs without ever blocking the event loop, or more than one thread."""

    def __init__(
        self,
        load: Callable[[], Any] = load_nvml,
        *,
        seconds: float = NVML_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what is needed later; nothing is loaded or asked.

        Args:
            load: gives the module `pynvml`, or raises ImportError.
            seconds: how long a read may take.
            clock: seconds, monotonic.
        """
        self._nvml = _NvmlSession(load)
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._reading: Future[GpuReport] | None = None
        self._since = 0.0

    async def read(self) -> GpuReport:
        """The GPUs now. Who asks while a read is under way gets what that one finds.

        A driver that hangs costs one thread, which is waited for no longer than the limit; until it comes
        back, every read says at once that it has not.
        """
        reading, left = self._begin()
        with suppress(TimeoutError):
            async with asyncio.timeout(left):
                return await asyncio.wrap_future(reading)
        return GpuReport(
            reason=message(
                "the NVIDIA driver does not answer within {seconds:g} s: does it hang?", seconds=self._seconds
            )
        )

    async def close(self) -> None:
        """Let go of the driver, unless it hangs. A later read takes it up again."""
        with self._lock:
            hangs = self._left(self._clock()) <= 0 and not (self._reading is None or self._reading.done())
        if not hangs:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await asyncio.wrap_future(_in_daemon_thread(self._nvml.close))

    def _begin(self) -> tuple[Future[GpuReport], float]:
        """The read under way, else a new one; and how many seconds are left of its time."""
        with self._lock:
            now = self._clock()
            if self._reading is None or self._reading.done():
                self._reading, self._since = _in_daemon_thread(self._nvml.report), now
            return self._reading, self._left(now)

    def _left(self, now: float) -> float:
        return self._since + self._seconds - now


class _NvmlSession:
    """NVML, initialised when it is first asked. Its calls block; one thread at a time is let in."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._initialized: Any = None

    def report(self) -> GpuReport:
        with self._lock:
            try:
                nvml = self._load()
            except ImportError:
                return GpuReport(reason=_NO_BINDINGS)
            try:
                count = min(self._count(nvml), MAX_GPUS)
            except nvml.NVMLError as error:
                self._end()
                return GpuReport(reason=_nvml_reason(error))
            gpus = tuple(_nvml_gpu(nvml, index) for index in range(count))
            if all(gpu.fault for gpu in gpus):  # as after a reload of the driver: begin anew the next time
                self._end()
            return GpuReport(gpus, "" if gpus else _NO_GPU)

    def close(self) -> None:
        with self._lock:
            self._end()

    def _count(self, nvml: Any) -> int:
        if not self._initialized:
            nvml.nvmlInit()
            self._initialized = nvml
        return int(nvml.nvmlDeviceGetCount())

    def _end(self) -> None:
        nvml, self._initialized = self._initialized, None
        if nvml:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()


def _nvml_gpu(nvml: Any, index: int) -> Gpu:
    """What the driver tells of one GPU; what it fails to tell is left open, and does not hinder the rest."""
    fault = ""

    def ask(call: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal fault
        try:
            return call(*arguments)
        except UnicodeDecodeError:  # some drivers for WSL give names that are no UTF-8
            return None
        except nvml.NVMLError as error:
            if error.value not in _NVML_UNTOLD:
                fault = fault or str(error)
            return None

    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        return gpu_in({"fault": str(error)}, index)
    rates = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
    memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    milliwatts = ask(nvml.nvmlDeviceGetPowerUsage, handle)
    told = {
        "name": ask(nvml.nvmlDeviceGetName, handle),
        "utilization": getattr(rates, "gpu", None),
        "memory_used": getattr(memory, "used", None),
        "memory_total": getattr(memory, "total", None),
        "temperature": ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        "power": None if milliwatts is None else milliwatts / 1000,
    }
    return gpu_in(told | {"fault": fault}, index)


def _nvml_reason(error: Any) -> str:
    return _NVML_REASONS.get(error.value, message("the NVIDIA driver fails: {error}", error=error))


def _in_daemon_thread(job: Callable[[], _Done]) -> Future[_Done]:
    """Run the job in a thread that nothing waits for when the process ends, as it does for a pool's."""
    future: Future[_Done] = Future()
    future.set_running_or_notify_cancel()  # from here on nobody who stops waiting can cancel it

    def work() -> None:
        try:
            future.set_result(job())
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits, who would wait for ever
            future.set_exception(error)

    threading.Thread(target=work, name="gpu-reader", daemon=True).start()
    return future


# --- ollama_pack.routing.probe.listed_client ---
# A node of which only some models are offered, or under other names: as a connection's settings have it.


class ListedClient:
    """Asks a node by its own names, and lists its models by the offered ones."""

    def __init__(self, client: NodeClient, listings: Sequence[Listing]) -> None:
        """Ask nothing yet.

        Args:
            client: the node's.
            listings: a model is offered once by each listing that has it.
        """
        self._client = client
        self._listings = listings
        self._own: dict[str, str] = {}  # offered name → the node's, as of the last list

    @property
    def name(self) -> str:
        """The node's address, as it may be shown."""
        return self._client.name

    async def tags(self) -> tuple[ListedModel, ...]:
        """The models that are offered."""
        offered = {name: model for model in await self._client.tags() for name in self._names(model.name)}
        self._own = {name: model.name for name, model in offered.items()}
        return tuple(model.model_copy(update={"name": name}) for name, model in offered.items())

    async def ps(self) -> tuple[LoadedModel, ...] | None:
        """What is in the node's memory. A model that is not offered is there, too, by its own name."""
        loaded = await self._client.ps()
        if loaded is None:
            return None
        return tuple(
            model.model_copy(update={"name": name})
            for model in loaded
            for name in self._names(model.name) or [model.name]
        )

    async def pull(self, model: str) -> AsyncGenerator[tuple[int, int], None]:
        """Have the node pull a model, by the node's own name; nothing, where it is no Ollama."""
        if isinstance(self._client, OllamaClient):
            async with aclosing(self._client.pull(model)) as pieces:
                async for piece in pieces:
                    yield piece

    async def show(self, model: str) -> ShownModel:
        """What the node knows of an offered model."""
        return await self._client.show(self._own.get(model, model))

    async def load(
        self,
        model: str,
        *,
        seconds: float,
        keep_alive: str | float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Load an offered model into memory."""
        own = self._own.get(model, model)
        await self._client.load(own, seconds=seconds, keep_alive=keep_alive, options=options)

    async def embed(
        self, model: str, texts: Sequence[str], *, seconds: float, dimensions: int = 0
    ) -> Vectors:
        """A vector for each text, of an offered model."""
        own = self._own.get(model, model)
        return await self._client.embed(own, texts, seconds=seconds, dimensions=dimensions)

    def complete(  # noqa: PLR0913 - each is a fact of its own
        self,
        body: Mapping[str, Any],
        head: ReplyHead,
        *,
        first_byte: float,
        thinking: Thinking | None = None,
        names: Collection[str] = (),
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of an answer of an offered model."""
        model = str(body.get("model"))
        asked = {**body, "model": self._own.get(model, model)}
        own = frozenset(self._own.get(name, name) for name in names)
        return self._client.complete(
            asked, head, first_byte=first_byte, thinking=thinking, names=own, headers=headers
        )

    def _names(self, model: str) -> list[str]:
        names = (listing.offered(model) for listing in self._listings)
        return list(dict.fromkeys(name for name in names if name is not None))


# --- ollama_pack.base.breaker ---
# A breaker: after failures nothing is sent for a while, then one request tries.

BreakerState = Literal["closed", "open", "half-open"]


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """When a breaker opens, and for how long.

    Attributes:
        threshold: failures in a row that open it.
        shortest: seconds that it stays open the first time; each time after, twice as long,
        longest: but not longer than this.
    """

    threshold: int = 1
    shortest: float = 5.0
    longest: float = 120.0


class Breaker:
    """Closed: all may pass. Open: none. Half-open: one, whose end decides. Times on the caller's clock.

    Only what tells of the node's health is to be reported: a 4xx answer or the user's own cancel is neither
    a failure nor a success.
    """

    def __init__(self, rule: BreakerRule) -> None:
        self._rule = rule
        self._failures = 0
        self._backoff = rule.shortest
        self._retry_at: float | None = None
        self._trying = False
        self.failed_at = -math.inf  # the last time

    def state(self, now: float) -> BreakerState:
        if self._retry_at is None:
            return "closed"
        return "half-open" if now >= self._retry_at else "open"

    def allows(self, now: float) -> bool:
        """Whether a request may pass now. One that does is to be reported with `passed`."""
        state = self.state(now)
        return state == "closed" or (state == "half-open" and not self._trying)

    @property
    def retry_at(self) -> float | None:
        """When it lets one try; None while it is closed or one is trying."""
        return None if self._trying else self._retry_at

    def passed(self) -> None:
        """A request was let through."""
        self._trying = self._retry_at is not None

    def succeeded(self) -> None:
        """A request was answered: all is well."""
        self._failures, self._backoff, self._retry_at, self._trying = 0, self._rule.shortest, None, False

    def gave_up(self) -> None:
        """A request ended and tells nothing, being cancelled or refused with 4xx: let another one try."""
        self._trying = False

    def failed(
        self, now: float, *, at_once: bool = False, grows: bool = True, pause: float | None = None
    ) -> None:
        """A request failed. Those that were on their way when it opened tell nothing new.

        Args:
            now: the moment.
            at_once: open now, whatever the threshold: such failures cost too much to wait for another.
            grows: the next time is twice as long. Not where it is only busy: it may be free any moment.
            pause: open now, for so many seconds.
        """
        self.failed_at = now
        if self.state(now) == "open" and not self._trying:
            return
        was_open = self._retry_at is not None
        self._trying = False
        self._failures += 1
        if was_open and grows:
            self._backoff = min(2 * self._backoff, self._rule.longest)
        if was_open or at_once or pause is not None or self._failures >= self._rule.threshold:
            self._retry_at = now + (self._backoff if pause is None else pause)


# --- ollama_pack.routing.state.external_load ---
# Requests of clients that do not come through us, at one runner or on one node's GPU.
#
# They are not seen, only their traces: a runner that is busy without us, an engine's own count, a GPU at work.
# Each is believed to last a usual service. They never hold back ours for ever: when they have had a node to
# themselves for long enough, one of ours is sent to stand in the engine's own line.

YIELD_SERVICES = 2.0  # usual services that others may have a runner to themselves while ours wait
STALE_SERVICES = 6.0  # usual services after which what nobody repeats is forgotten
MAX_EXTERNAL = 1024


@dataclass(slots=True)
class ExternalLoad:
    """What others do at one place. Times are seconds on the caller's clock.

    Attributes:
        count: requests of others.
        ends_at: when they are predicted to end.
        since: when they were first seen without one of ours there; None: they are not.
        yields_at: when one of ours goes to stand behind them.
        stale_at: when what was seen is forgotten.
        sure: the engine itself has told; if not, it counts for nothing after `yields_at`.
    """

    count: int = 0
    ends_at: float = 0.0
    since: float | None = None
    yields_at: float = 0.0
    stale_at: float = 0.0
    sure: bool = True

    def seen(self, count: int, now: float, service: float) -> None:
        """So many requests are there now, each of which usually takes so many seconds."""
        self.count = min(count, MAX_EXTERNAL)
        if not self.count:
            self.since = None
            return
        if self.since is None:
            self.since = now
        self.yields_at = self.since + YIELD_SERVICES * service
        self.stale_at = now + STALE_SERVICES * service
        self.ends_at = now + service

    def ours_ended(self, now: float) -> None:
        """One of ours was there: now it is the others' turn again."""
        if self.since is not None:
            self.yields_at += now - self.since
            self.since = now

    def ends(self, now: float, slots: int) -> tuple[float, ...]:
        """When each slot that others hold is free; later for those that wait for one."""
        if not self.count or now >= self.stale_at:
            return ()
        held = self.count
        if now >= self.yields_at:
            held = min(held, slots - 1) if self.sure else 0
        later = max(0, min(held - slots, slots))
        service = max(0.0, self.ends_at - now)
        return (self.ends_at,) * (min(held, slots) - later) + (self.ends_at + service,) * later

    def changes_at(self) -> tuple[float, ...]:
        """When `ends` changes though nothing is told."""
        return (self.yields_at, self.stale_at) if self.count else ()


# --- ollama_pack.routing.state.model_stats ---
# What is learned of one node with one set of weights: rates, slots, and how many prefixes are kept.


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one answered request teaches.

    Attributes:
        spent: what the engine reports.
        match: where in the mirror of the runner's prefixes its longest match lay.
        beside: requests that ran there when it was sent.
        background: it was a background call.
        loaded: it made the node load the model.
    """

    spent: Durations
    match: MatchDepth
    beside: int
    background: bool
    loaded: bool


class ModelStats:
    """What was learned of one node with one set of weights."""

    def __init__(self, declared_slots: int | None, policy: RoutingPolicy) -> None:
        self.rates = RatesLearner()
        self.slots = SlotLearner(declared_slots, policy.probe_requests)
        self.retention = RetentionLearner()

    def known(self, priors: ModelRates) -> ModelRates:
        return self.rates.rates(priors, self.slots.offered, self.retention.retention.prompts)

    def learn(self, lesson: Lesson) -> None:
        """Take in one answered request."""
        if lesson.spent.hit is not None or self.rates.prompt.count > 0:
            self.retention.observe(lesson.match, self.rates.hit(lesson.spent))
        unsure = not lesson.match.held  # it may still be there
        self.rates.observe(
            lesson.spent,
            None if unsure else lesson.match.tokens,
            background=lesson.background,
            loaded=lesson.loaded,
        )
        if not lesson.loaded:
            self.slots.observe(lesson.beside, lesson.spent.wait)


# --- ollama_pack.fit.learned ---
# What a node's reports teach: how its server is set up, and so what any model takes there.
#
# No API says how many slots an Ollama has, which type of cache or which engine. The first load shows it: of the
# settings that a server can have, those are taken on whose prediction is nearest to what `/api/ps` reports.
# What is left of the difference is added for the same weights.

MAX_SEEN = 64  # sets of weights that are remembered
LAST_SEEN = 4  # of these, the newest that the settings are found out by
# The settings that a server can have. Unusual ones must be nearer by this part of the size.
_ENGINES: Mapping[Engine | None, float] = {None: 0.0, "ollama": 0.0001, "llama.cpp": 0.0001}
_CACHES: Mapping[CacheType, float] = {"f16": 0.0, "q8_0": 0.0003, "q4_0": 0.0006}
_FLASH: Mapping[bool | None, float] = {None: 0.0, True: 0.00005, False: 0.00005}
_SLOTS: Mapping[int, float] = {1: 0.0, 2: 0.0002, 3: 0.0004, 4: 0.0004, 6: 0.0008, 8: 0.0008}


@dataclass(frozen=True, slots=True)
class SeenLoad:
    """A model in a node's memory: its shape, the context of each slot, and the bytes that it takes."""

    shape: ModelShape
    context: int
    size: int


class MemoryLearner:
    """Predicts memory on one node."""

    def __init__(self, slots: int | None = None, engine: Engine | None = None) -> None:
        """Start with the usual settings.

        Args:
            slots: that a runner is known to have; None: they are to be found out.
            engine: the one that is expected until a load shows it; None: the one of Ollama 0.17.
        """
        self._slots = slots
        self._seen: dict[str, SeenLoad] = {}
        self._on_gpu: dict[str, bool] = {}  # of the same: whether a GPU has some of it
        self.options = RunOptions(0, slots=slots or 1, engine=engine)

    def seen(self, blob: str, load: SeenLoad, *, on_gpu: bool) -> bool:
        """Take in a model in memory. Returns whether that has changed what is predicted."""
        if self._seen.get(blob) == load and self._on_gpu[blob] == on_gpu:
            return False
        self._seen.pop(blob, None)
        self._seen[blob], self._on_gpu[blob] = load, on_gpu
        while len(self._seen) > MAX_SEEN:
            forgotten = next(iter(self._seen))
            del self._seen[forgotten], self._on_gpu[forgotten]
        # A node with a GPU may have a small model on the CPU besides: that one says nothing of the others.
        last = list(self._seen)[-LAST_SEEN:]
        has_gpu = any(self._on_gpu[one] for one in last)
        loads = [self._seen[one] for one in last if self._on_gpu[one] == has_gpu]
        self.options = _nearest(self._candidates(on_gpu=has_gpu), loads)
        return True

    def expected(self, blob: str, shape: ModelShape, context: int) -> int:
        """The bytes that a model will take with so much context for each slot."""
        found = _predict(self.options, shape, context)
        if load := self._seen.get(blob):
            found += load.size - _predict(self.options, load.shape, load.context)
        return max(found, shape.weights // 2)

    def _candidates(self, *, on_gpu: bool) -> Iterable[tuple[RunOptions, float]]:
        """Settings that a server can have, and how unusual they are."""
        slots = _SLOTS if self._slots is None else {self._slots: 0.0}
        every = product(_ENGINES.items(), _CACHES.items(), slots.items(), _FLASH.items())
        for (engine, odd), (cache, odder), (count, oddest), (flash, rest) in every:
            options = RunOptions(0, count, cache, flash=flash, engine=engine, on_gpu=on_gpu)
            yield options, odd + odder + oddest + rest


def _predict(options: RunOptions, shape: ModelShape, context: int) -> int:
    return memory_needed(shape, replace(options, context=context)).total


def _nearest(candidates: Iterable[tuple[RunOptions, float]], loads: Iterable[SeenLoad]) -> RunOptions:
    """The settings that explain best what was seen."""
    told = [load for load in loads if load.size and load.context]

    def off(candidate: tuple[RunOptions, float]) -> float:
        options, unusual = candidate
        errors = [abs(_predict(options, load.shape, load.context) / load.size - 1) for load in told]
        return unusual + sum(errors) / max(1, len(errors))

    return min(candidates, key=off)[0]


# --- ollama_pack.routing.state.node_memory ---
# The memory of one node: how much there is, what each of its models takes, and which variants fit.

DEFAULT_CONTEXT = 4096  # tokens, where a node has not shown what it takes when nobody asks
FOREIGN_LOOKS = 3  # looks at the GPUs in a row in which other programs must be seen
FOREIGN_SHARE = 0.05  # of the memory; less is the driver's own
GROWTH_STEP = 4096  # tokens, over which the growth of a cache is measured


def is_split(options: RunnerOptions) -> bool:
    """Whether a model is in part on the CPU because its `num_gpu` says so, and not for want of memory."""
    layers = dict(options).get("num_gpu")
    return isinstance(layers, int) and layers >= 0


class NodeMemory:
    """What is known of a node's memory. All is bounded by the models that it has."""

    def __init__(self, row: NodeRow, engine: Engine | None = None) -> None:
        self._declared = usable_memory(row.memory) if row.memory else 0
        self._told = 0  # by its GPUs
        self._foreign: deque[int] = deque(maxlen=FOREIGN_LOOKS)
        self._together = 0  # bytes that have been seen in memory together, and none on the CPU
        self._spilled = 0  # bytes that were in GPU memory while a model was there only in part
        self._learner = MemoryLearner(row.slots, engine)

    @property
    def measured(self) -> bool:
        """Whether it is known how much there is, and not only what was seen together."""
        return bool(self._declared or self._told or self._spilled)

    @property
    def room(self) -> int:
        """The bytes that models can have together."""
        there = self._declared or max(0, self._told - min(self._foreign, default=0))
        if self._spilled:
            there = min(there, self._spilled) if there else self._spilled
        return max(there, self._together)

    @property
    def source(self) -> str:
        """How it is known how much there is, in words; empty: it is not."""
        if self._declared:
            return message("as its row says")
        if self._told:
            return message("as its GPUs report")
        return message("as a model shows that is only partly in GPU memory") if self._spilled else ""

    @property
    def options(self) -> RunOptions:
        """How its server loads models, as far as it has shown."""
        return self._learner.options

    def told(self, total: int, used: int, gpus: int, ours: int) -> None:
        """Its GPUs were looked at.

        Args:
            total: bytes of all of them.
            used: of these, by whomever.
            gpus: how many there are.
            ours: bytes of the models that are in memory.
        """
        self._told = usable_memory(total, gpus)
        others = used - ours - 2 * gpus * DRIVER_BYTES
        self._foreign.append(others if others > FOREIGN_SHARE * total else 0)

    def seen_together(self, size: int) -> None:
        """So many bytes of models are in memory together."""
        self._together = max(self._together, size)

    def spilled(self, size: int) -> None:
        """A model is in GPU memory only in part: with so many bytes it is full."""
        self._spilled = size
        self._together = min(self._together, size)

    def seen(self, model: InstalledModel, context: int, size: int, *, on_gpu: bool) -> bool:
        """A model is in memory. Returns whether what is predicted has changed."""
        if model.shape is None or not context or not size:
            return False
        return self._learner.seen(model.blob, SeenLoad(model.shape, context, size), on_gpu=on_gpu)

    def sized(self, models: Mapping[str, InstalledModel], default: int) -> dict[str, InstalledModel]:
        """The models with the bytes that each takes here.

        Args:
            models: by name.
            default: the context that a model has here when nobody asks for any; 0: unknown.
        """
        return {name: self._sized(name, model, default) for name, model in models.items()}

    def _sized(self, name: str, model: InstalledModel, default: int) -> InstalledModel:
        shape = model.shape
        if shape is None:
            return replace(model, name=name)
        usual = model.context or default or DEFAULT_CONTEXT
        usual = min(usual, shape.longest) if shape.longest else usual
        size = self._learner.expected(model.blob, shape, usual)
        more = self._learner.expected(model.blob, replace(shape, longest=0), usual + GROWTH_STEP)
        growth = max(0.0, (more - size) / GROWTH_STEP)
        return replace(model, name=name, size=size, usual=usual, growth=growth)

    def choose(
        self, auto: str, models: Mapping[str, InstalledModel], resident: Iterable[tuple[str, int]]
    ) -> tuple[InstalledModel, bool] | None:
        """The variant of an automatic name to answer with, and whether it fits; None: the node has none."""
        names, context = auto_parts(auto)
        there = [models[folded] for name in names if (folded := fold_name(name)) in models]
        if not there:
            return None
        variants = [Variant(one.name, one.blob, one.bits, one.takes(context)) for one in there]
        best, fits = best_variant(variants, self.room, tuple(resident), measured=self.measured)
        return there[variants.index(best)], fits


# --- ollama_pack.routing.state.node_state ---
# What is known of one node between two decisions: its models, its runners, what was learned of it.

MODEL_RULE = BreakerRule(threshold=2)
NODE_RULE = BreakerRule(threshold=1)
REMOTE_SLOTS = 64  # free ones of a model that runs elsewhere, whatever it answers already
UNSEEN_SECONDS = (
    300.0  # a runner of a node that does not tell of its memory is believed in after its last use
)
LOAD_RULE = BreakerRule(threshold=1, shortest=120.0, longest=3600.0)  # of loads that nobody waits for
GPU_LAG = 2.0  # seconds for which a GPU's utilization may still tell of a request that has ended


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """A line of a node's `/api/ps`.

    Attributes:
        model: the name by which it was loaded.
        size: bytes in memory.
        context: tokens that it was loaded for; 0: not told.
        expires_at: when it is to be unloaded, on any clock that stays the same.
        busy: that moment has passed, and still it is listed: it answers somebody.
        loading: it is listed, but not loaded yet, as far as can be seen.
        vram: of the bytes, those in GPU memory; 0: it is computed by the CPU.
    """

    model: str
    size: int = 0
    context: int = 0
    expires_at: float = 0.0
    busy: bool = False
    loading: bool = False
    vram: int = 0

    @property
    def fits(self) -> bool:
        """Whether it is in one kind of memory as a whole."""
        return self.vram in {0, self.size}


@dataclass(slots=True)
class RunnerState:
    """A runner as it is believed to be.

    Attributes:
        context, asked, options: as in `RunnerView`.
        ends: id of a request of ours → when it is predicted to end.
        loading: nothing has shown yet that it is loaded.
        since: when the load began.
        touched: by us since the last probe: then it does not matter that `expires_at` moves.
        external: what other clients do with it.
        counted: the engine itself counts its requests, and tells.
        remote: as in `InstalledModel`.
    """

    blob: str
    model: str
    size: int
    context: int
    asked: int | None
    options: RunnerOptions | None
    ready_at: float
    loading: bool
    mirror: PrefixMirror
    since: float = 0.0
    ends: dict[str, float] = field(default_factory=dict)
    expires_at: float = 0.0
    touched: bool = True
    external: ExternalLoad = field(default_factory=ExternalLoad)
    counted: bool = False
    remote: bool = False

    def begin(self, request: FleetRequest, now: float, ends_at: float, shared: int, kind: int) -> None:
        """A request of ours is sent to it; the last two are as in `KeptPrefix`."""
        self.ends[request.id] = ends_at
        self.mirror.started(request.blocks, now, shared=shared, kind=kind)
        self.touched = True

    @property
    def loaded_with(self) -> dict[str, Any]:
        """The options of a request for which it is not loaded again, as far as they are known."""
        context = self.context if self.asked is None else self.asked
        return {**dict(self.options or ()), **({"num_ctx": context} if context else {})}

    def serves(self, wanted: tuple[int, RunnerOptions]) -> None:
        """It answers a request with these options, so it has them: another client may have loaded it."""
        context, options = wanted
        self.asked = context if self.asked is None else self.asked
        self.options = options if self.options is None else self.options


class NodeState:
    """One node. Its memory is bounded by the models that it has."""

    def __init__(self, row: NodeRow, policy: RoutingPolicy, expected: Callable[[str], ModelRates]) -> None:
        """Begin with nothing known of it.

        Args:
            row: of the node.
            policy: weights and bounds.
            expected: what is believed of weights before anything is measured here, by their blob.
        """
        self.row = row
        self.models: dict[str, InstalledModel] = {}  # by the names that it lists
        self.listed: Mapping[str, InstalledModel] = {}  # by those, and by what `fold_name` makes of them
        self.runners: dict[str, RunnerState] = {}
        self.loading_until = 0.0
        self.memory = NodeMemory(row)
        self.draining = False
        self.gpu = ExternalLoad(sure=False)  # what its GPU does without us
        self.paused_until = 0.0
        self.left_at = -math.inf  # when the last request of ours ended
        self.on_change: Callable[[str], None] = lambda _: None
        self.next_change = 0.0  # when it looks otherwise though nothing is told
        self._seen: NodeView | None = None
        self.breaker = Breaker(NODE_RULE)
        self._loads_ahead = row.kind == "ollama" and not row.way_in.needs_user
        self._failed_loads: dict[str, Breaker] = {}  # blob → when it may be loaded again without a chat
        self._policy = policy
        self._expected = expected
        self._stats: dict[str, ModelStats] = {}
        self._rates: Mapping[str, ModelRates] = {}  # replaced, never changed: views hold it
        self._breakers: dict[str, Breaker] = {}
        self._broken_for: dict[str, str] = {}  # model → the user whose answer broke off last
        self._autos: dict[str, InstalledModel] = {}  # automatic name → the variant that answers for it here
        self._learned = False  # the last look has taught something about the memory
        self._sized_for = 0  # the context that the models' sizes are for where nobody asks for one
        self._default_contexts: dict[str, int] = {}  # blob → tokens that it has when nobody asks for any

    def stats(self, blob: str) -> ModelStats:
        if blob not in self._stats:
            self._stats[blob] = ModelStats(self.row.slots, self._policy)
        return self._stats[blob]

    def has_weights(self, blob: str) -> bool:
        """Whether it has a model of these weights."""
        return blob in self._rates

    def known(self, blob: str) -> ModelRates:
        """The rates of one set of weights."""
        return self._rates.get(blob) or self.stats(blob).known(self._expected(blob))

    def learned(self, blob: str) -> None:
        """Something was learned of these weights."""
        stats = self.stats(blob)
        self._rates = {**self._rates, blob: stats.known(self._expected(blob))}
        if runner := self.runners.get(blob):
            runner.mirror.retain(stats.retention.retention)
        self.changed()

    # --- its breakers: one of the node, and one of each model that has failed ---

    def _on_the_way(self, model: str) -> Iterable[Breaker]:
        own = self._breakers.get(model)
        return (self.breaker, own) if own else (self.breaker,)

    def allows(self, model: str, now: float) -> bool:
        """Whether a request may be sent to it now."""
        return all(breaker.allows(now) for breaker in self._on_the_way(model))

    def passed(self, model: str) -> None:
        """A request is sent to it."""
        for breaker in self._on_the_way(model):
            breaker.passed()

    def succeeded(self, model: str) -> None:
        """A request was answered."""
        self.breaker.succeeded()
        self._breakers.pop(model, None)
        self._broken_for.pop(model, None)
        if known := self.models.get(model):
            self._failed_loads.pop(known.blob, None)

    def gave_up(self, model: str) -> None:
        """A request ended and tells nothing."""
        for breaker in self._on_the_way(model):
            breaker.gave_up()

    def failed(self, model: str, now: float, *, node_down: bool, hung: bool) -> None:
        """A request failed, for the node's sake or for one model's."""
        self.changed()
        if node_down:
            self.breaker.failed(now)
        elif model in self.models:
            self._breakers.setdefault(model, Breaker(MODEL_RULE)).failed(now, at_once=hung)
            self.breaker.gave_up()

    def busy(self, model: str, now: float, *, pause: float | None) -> None:
        """A request was not taken: the model is busy, for so many seconds if the node says that."""
        self.changed()
        if model in self.models:
            breaker = self._breakers.setdefault(model, Breaker(MODEL_RULE))
            breaker.failed(now, grows=False, pause=pause)
        self.breaker.gave_up()

    def broke_off(self, model: str, user: str, now: float) -> None:
        """An answer ended in the middle. One user's request may be the reason, two users' are not."""
        if self._broken_for.setdefault(model, user) != user:
            self.failed(model, now, node_down=False, hung=True)
        else:
            self.gave_up(model)

    def shut(self, now: float) -> dict[str, BreakerState]:
        """The models that are not asked for here at the moment, since they have failed."""
        states = {model: breaker.state(now) for model, breaker in self._breakers.items()}
        return {model: state for model, state in states.items() if state != "closed"}

    def retry_at(self) -> Iterable[float]:
        """When each of its open breakers lets one request try."""
        if not self._breakers and self.breaker.retry_at is None:
            return ()
        breakers = (self.breaker, *self._breakers.values())
        return [breaker.retry_at for breaker in breakers if breaker.retry_at is not None]

    # --- what it tells ---

    def probed(
        self, models: Mapping[str, InstalledModel], residents: Iterable[ResidentModel] | None, now: float
    ) -> None:
        """Take in what `/api/tags` and `/api/ps` say; None: nothing is said of what is in its memory."""
        residents = None if residents is None else tuple(residents)
        known = {fold_name(name): model for name, model in models.items()}
        self._measure(residents or (), known)
        default = max((one.context for one in residents or ()), default=0) if not self._sized_for else 0
        if self._learned or default or models != self.models:
            self.models = dict(models)
            self._sized_for = self._sized_for or default
            self._list()
        blobs = {model.blob for model in models.values()}
        self._stats = {blob: stats for blob, stats in self._stats.items() if blob in blobs}
        self._rates = {blob: self.known(blob) for blob in blobs}
        self._failed_loads = {blob: known for blob, known in self._failed_loads.items() if blob in blobs}
        self._breakers = {name: breaker for name, breaker in self._breakers.items() if name in models}
        self._broken_for = {name: user for name, user in self._broken_for.items() if name in models}
        self._default_contexts = {
            blob: context for blob, context in self._default_contexts.items() if blob in blobs
        }
        listed = {self._blob(resident): resident for resident in residents or ()}
        elsewhere = {model.blob: name for name, model in models.items() if model.remote}
        keeps_all = residents is None and now - self.left_at < UNSEEN_SECONDS
        for blob, runner in list(self.runners.items()):
            stays = blob in listed or blob in elsewhere or (keeps_all and not runner.remote)
            if not stays and not runner.loading and not runner.ends:
                del self.runners[blob]
        for blob, name in elsewhere.items():
            if blob not in self.runners or not self.runners[blob].remote:
                mirror = self._mirror(blob)
                self.runners[blob] = RunnerState(
                    blob, name, 0, 0, None, None, now, loading=False, mirror=mirror, remote=True
                )
        for blob, resident in listed.items():
            self._adopt(blob, resident, now)
        self._loads_on(now)
        if all(resident.fits for resident in residents or ()):
            self.memory.seen_together(
                sum(runner.size for runner in self.runners.values() if not runner.loading)
            )

    def _measure(self, residents: Sequence[ResidentModel], models: Mapping[str, InstalledModel]) -> None:
        """Learn from what models take that are in memory."""
        self._learned = False
        for resident in residents:
            model = models.get(fold_name(resident.model))
            if model is not None and not resident.loading:
                self._learned |= self.memory.seen(
                    model, resident.context, resident.size, on_gpu=resident.vram > 0
                )
        if not all(resident.fits or is_split(self._options(resident, models)) for resident in residents):
            self.memory.spilled(sum(resident.vram for resident in residents))

    def _options(self, resident: ResidentModel, models: Mapping[str, InstalledModel]) -> RunnerOptions:
        """With which it was loaded, as far as is known."""
        model = models.get(fold_name(resident.model))
        runner = self.runners.get(model.blob) if model else None
        return (runner.options if runner else None) or (model.options if model else ())

    def _list(self) -> None:
        """Put together what it may be asked for. A list that is the same stays the same object."""
        self._autos = {auto: model for auto, model in self._autos.items() if model.name in self.models}
        named = self.memory.sized(self.models, self._sized_for)
        self.listed = named | {fold_name(name): model for name, model in named.items()} | self._autos

    def offer(self, auto: str) -> tuple[InstalledModel, bool] | None:
        """As `NodeMemory.choose`, next to what is in memory now."""
        resident = [(runner.blob, runner.size) for runner in self.runners.values() if not runner.remote]
        return self.memory.choose(auto, self.listed, resident)

    def set_auto(self, auto: str, model: InstalledModel | None) -> None:
        """Answer for an automatic name with one of its variants, or with none."""
        if self._autos.get(auto) == model:
            return
        self._autos.pop(auto, None)
        if model is not None:
            self._autos[auto] = model
        self._list()
        self.changed()

    def _loads_on(self, now: float) -> None:
        """A load that takes longer than predicted goes on, for longer the more it has taken."""
        for runner in self.runners.values():
            if runner.loading and runner.ends and runner.ready_at <= now:
                left = max(1.0, self._policy.overdue_share * (now - runner.since))
                runner.ready_at = self.loading_until = now + left

    def _blob(self, resident: ResidentModel) -> str:
        model = self.listed.get(fold_name(resident.model))
        return model.blob if model else resident.model

    def _adopt(self, blob: str, resident: ResidentModel, now: float) -> None:
        """Compare a runner with what is known of it. What moved without us was moved by another client."""
        runner = self.runners.get(blob)
        if runner is None:
            size = self._size(blob, resident)
            mirror, context = self._mirror(blob), resident.context
            runner = RunnerState(
                blob, resident.model, size, context, None, None, now, loading=False, mirror=mirror
            )
            self.runners[blob] = runner
        elif runner.loading:
            return
        elif resident.context and runner.context and resident.context != runner.context:
            runner.mirror.clear()
            runner.asked = runner.options = None
        elif not runner.touched and resident.expires_at != runner.expires_at:
            runner.mirror.clear()
        runner.context = resident.context or runner.context
        if runner.asked == 0 and runner.context:
            self._default_contexts[blob] = runner.context
        runner.expires_at = resident.expires_at
        runner.touched = bool(runner.ends)
        if not runner.counted:
            external = resident.busy and not runner.ends
            runner.external.seen(int(external), now, self.known(blob).service)
            if external:
                runner.mirror.clear()

    def counts(self, running: int, waiting: int, now: float) -> None:
        """Take in an engine's own numbers of requests, over all clients."""
        external = max(0, running + waiting - sum(len(runner.ends) for runner in self.runners.values()))
        for runner in self.runners.values():
            runner.counted = True
            runner.external.seen(external, now, self.known(runner.blob).service)
            self.stats(runner.blob).slots.counted(running, waiting)
            self.learned(runner.blob)

    def gpu_busy(self, utilization: float, now: float) -> None:
        """Take in how busy its busiest GPU is, in percent. With ours there, or just gone, it says nothing."""
        here = {blob: runner for blob, runner in self.runners.items() if not runner.remote}
        ours = any(runner.ends or runner.loading for runner in here.values())
        busy = utilization >= self._policy.busy_percent and not ours and now - self.left_at >= GPU_LAG
        services = [self.known(blob).service for blob in here]
        self.gpu.seen(int(busy and bool(services)), now, max(services, default=0.0))

    def left(self, runner: RunnerState, request_id: str, now: float) -> None:
        """A request of ours is no longer there."""
        runner.ends.pop(request_id, None)
        runner.touched = True
        runner.external.ours_ended(now)
        self.left_at = now

    def _mirror(self, blob: str) -> PrefixMirror:
        """Of a runner that holds nothing yet."""
        return PrefixMirror(retention=self.stats(blob).retention.retention)

    def _size(self, blob: str, resident: ResidentModel) -> int:
        """Bytes of a runner: as it says, where what is predicted of others compares with that."""
        known = next((model for model in self.models.values() if model.blob == blob), None)
        if known is None or known.shape is not None:
            return resident.vram or resident.size
        return known.size or resident.size

    # --- what is done with it ---

    def adopt(self, model: str, wanted: tuple[int, RunnerOptions], now: float) -> RunnerState:
        """Another worker knows that a model of this name is in memory, with these options."""
        installed = self.listed[model]
        mirror = self._mirror(installed.blob)
        size = installed.takes(wanted[0])
        runner = RunnerState(installed.blob, model, size, 0, *wanted, now, loading=False, mirror=mirror)
        self.runners[installed.blob] = runner
        return runner

    def load(
        self, model: str, wanted: tuple[int, RunnerOptions], victims: Collection[str], now: float
    ) -> RunnerState:
        """A request makes it load a model of this name, with these options; what makes room is forgotten."""
        asked, options = wanted
        installed = self.listed[model]
        for blob in victims:
            self.runners.pop(blob, None)
        self.loading_until = now + self.known(installed.blob).load
        runner = RunnerState(
            blob=installed.blob,
            model=model,
            size=installed.takes(asked),
            context=0,
            asked=asked,
            options=options,
            ready_at=self.loading_until,
            loading=True,
            mirror=self._mirror(installed.blob),
            since=now,
        )
        self.runners[installed.blob] = runner
        return runner

    def take_back(
        self, runner: RunnerState, evicted: Mapping[str, RunnerState], loading_until: float
    ) -> None:
        """The load never began: those that should have made room are still there."""
        if self.runners.get(runner.blob) is runner:
            del self.runners[runner.blob]
        self.runners = {**evicted, **self.runners}
        self.loading_until = loading_until

    def did_not_load(self, runner: RunnerState, now: float, *, grows: bool) -> None:
        """A load that nobody waited for has failed: it is tried later, and if it `grows` later each time."""
        self._failed_loads.setdefault(runner.blob, Breaker(LOAD_RULE)).failed(now, grows=grows)
        if self.runners.get(runner.blob) is runner and not runner.ends:
            del self.runners[runner.blob]
        self.changed()

    def pause(self, until: float) -> None:
        """Give it nothing new for a moment: somebody else was faster."""
        self.paused_until = until
        self.changed()

    def loaded(self, runner: RunnerState, now: float) -> None:
        """The first token came: the model is there."""
        runner.loading = False
        runner.ready_at = min(runner.ready_at, now)
        self.loading_until = min(self.loading_until, now)

    # --- what a decision sees ---

    def view(self, now: float) -> NodeView:
        """What a decision may know of it. The same one until something is told, or a time is up."""
        if self._seen is None or now >= self.next_change:
            self._seen = self._view(now)
            self.next_change = min((when for when in self.changes_at() if when > now), default=math.inf)
        return self._seen

    def changes_at(self) -> Iterable[float]:
        """When it may look otherwise though nothing is told: a breaker's time or a pause is over, say."""
        due = [self.paused_until, self.loading_until, *self.retry_at()]
        due += [known.retry_at for known in self._failed_loads.values() if known.retry_at is not None]
        if self.gpu.count:
            due += self.gpu.changes_at()
        for runner in self.runners.values():
            due.append(runner.ready_at)
            if runner.external.count:
                due += runner.external.changes_at()
        return due

    def changed(self) -> None:
        """Something is told of it: to be called after whatever changes it from outside."""
        self._seen = None
        self.on_change(self.row.name)

    def _view(self, now: float) -> NodeView:
        rates = self._rates
        return NodeView(
            name=self.row.name,
            tier=self.row.tier,
            weight=self.row.weight,
            models=self._allowed(now),
            runners=tuple(
                [self._runner_view(runner, rates.get(runner.blob), now) for runner in self.runners.values()]
            ),
            loading_until=self.loading_until,
            room=self.memory.room,
            smallest=self._smallest,
            rates=rates,
            loads_ahead=self._loads_ahead,
            failed_loads=frozenset(
                [blob for blob, known in self._failed_loads.items() if not known.allows(now)]
            ),
        )

    @property
    def _smallest(self) -> int:
        """Bytes of the smallest model; 1 where it is not known how much memory there is."""
        if not self.memory.measured:
            return 1
        return min((model.size for model in self.listed.values() if model.size), default=1)

    def _allowed(self, now: float) -> Mapping[str, InstalledModel]:
        """The models that it may be asked for, by the names that requests are compared with."""
        if self.draining or now < self.paused_until or not self.breaker.allows(now):
            return {}
        shut = {name for name, breaker in self._breakers.items() if not breaker.allows(now)}
        if not shut:
            return self.listed
        return {name: model for name, model in self.listed.items() if model.name not in shut}

    def _asked(self, runner: RunnerState) -> int | None:
        """The context that a runner was asked for. One that is the node's default counts as not asked for."""
        default = self._default_contexts.get(runner.blob)
        if default is None:
            return runner.asked
        asked = runner.context if runner.asked is None else runner.asked
        return 0 if asked == default else asked

    def _runner_view(self, runner: RunnerState, known: ModelRates | None, now: float) -> RunnerView:
        rates = known or replace(self._expected(runner.blob), slots=self.row.slots or 1)
        if runner.remote:
            busy = tuple(runner.ends.values())
            slots = len(busy) + REMOTE_SLOTS
            return RunnerView(runner.blob, runner.model, slots=slots, ends=busy, remote=True)
        external = runner.external if runner.external.count else self.gpu
        ends = (*runner.ends.values(), *external.ends(now, rates.slots))
        return RunnerView(
            blob=runner.blob,
            model=runner.model,
            size=runner.size,
            context=runner.context,
            asked=self._asked(runner),
            options=runner.options,
            slots=rates.slots,
            keeps=rates.keeps,
            ready_at=runner.ready_at,
            ends=ends,
            prefixes=runner.mirror,
        )


# --- ollama_pack.routing.probe.node_watch ---
# One node as the router holds it: its client, what the last looks have shown, and when it counts as gone.

SHOWN_AT_ONCE = 8  # models that one node is asked about at the same time
SHOW_SECONDS = 1.0  # that a look waits for what a node tells of its models, which may be hundreds
LOOK_APART_SECONDS = 0.2  # two looks in less time show no movement
SAME_PACE = 0.3  # by how much two times that pass may differ and still be the same
# What a gateway answers that does not pass `/api/show` on: it will not next time, either.
_NOT_THERE = frozenset({401, 403, 404, 405, 501})
GRACE_SECONDS = 600.0  # a node that restarts does not make its models vanish from everybody's list
AGENT_SECONDS = 2.0
METRICS_SECONDS = 2.0
_NOT_SIGNED_IN = frozenset({401, 403, 407})
MISSES = 2  # looks in a row that run out of time before a node counts as gone: it may just be busy


def node_client(row: NodeRow, session: aiohttp.ClientSession) -> NodeClient:
    """The client for a node of its kind."""
    headers = row.way_in.fixed_headers
    client: NodeClient
    if row.kind == "openai":
        client = OpenAIClient(row.url, session, headers=headers, serves=row.models)
    else:
        client = OllamaClient(row.url, session, headers=headers)
    return ListedClient(client, row.listings) if row.listings else client


class NodeWatch:
    """Looks at one node and remembers. `look` is told to the scheduler by whoever asks for it.

    What `/api/show` tells of a model is asked once for each digest.
    """

    def __init__(self, row: NodeRow, client: NodeClient, clock: Callable[[], float]) -> None:
        """Take what is needed later; nothing is asked yet."""
        self.row = row
        self.client = client
        self.models: tuple[NodeModel, ...] = ()  # what it has, or had when it last answered
        self.others: tuple[NodeModel, ...] = ()  # models that do not chat, such as embedders
        self.residents: tuple[ResidentModel, ...] | None = ()  # what is in its memory; None: it does not tell
        self.answered_at: float | None = None  # the last time; None: never
        self.fault = ""  # what was wrong the last time; empty: nothing
        self.is_down = False  # it took no connection the last time
        self.gpus = GpuReport(reason=message("not looked at yet"))
        self.looked = asyncio.Event()  # at least once, with or without an answer
        self.hurry = asyncio.Event()  # look again now
        self.is_whole = False  # it has told of all its models once
        self.leaving = False  # it gets no new requests, and is gone once it has answered those that it has
        self.seen_at = -math.inf  # when what is known of its memory was asked for
        self._clock = clock
        self._missed = 0
        self._shown: dict[tuple[str, str], ShownModel] = {}
        self._shapes: dict[tuple[str, str], ModelShape] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._at_once = asyncio.Semaphore(SHOWN_AT_ONCE)
        self._seen_ahead: set[str] = set()
        self._expiries: dict[str, tuple[float, float, bool]] = {}  # name → seen at, unloaded at, loading

    async def look(self) -> bool:
        """Ask the node; whether it answers. Whether it `is_gone` is another question."""
        asked_at = self._clock()
        try:
            listed, loaded = await asyncio.gather(self.client.tags(), self.client.ps())
            is_whole = await self._show(listed)
        except NodeError as error:
            self._missed = MISSES if isinstance(error, NodeUnreachableError) else self._missed + 1
            self.fault, self.is_down = self._fault(error), error.is_down
            return False
        finally:
            self.looked.set()
        self._missed = 0
        self.is_whole = self.is_whole or is_whole
        if not self.is_whole:
            self.hurry.set()
        self._keep_models(listed)
        self.residents = None if loaded is None else self._residents(loaded)
        self.answered_at, self.fault, self.is_down = self._clock(), "", False
        self.seen_at = asked_at
        return True

    def is_loading(self, name: str, since: float) -> bool:
        """Whether a model that was asked for is not in the node's memory yet, as the last look has shown.

        A look from before `since`, when it was asked for, shows nothing.
        """
        model = next((model for model in self.models if model.name == name), None)
        loaded = self._loaded
        if model is None or model.installed.fixed or loaded is None or self.seen_at < since:
            return False
        return model.installed.blob not in loaded

    async def activity(self) -> EngineActivity | None:
        """What its engine does for all clients; None where it does not tell, or not in time."""
        if not isinstance(self.client, OpenAIClient):
            return None
        try:
            async with asyncio.timeout(METRICS_SECONDS):
                return await self.client.activity()
        except (NodeError, TimeoutError):
            return None

    async def look_at_gpus(self, here: GpuReader, session: aiohttp.ClientSession) -> None:
        """Ask the node's agent, or the driver of this machine where the node runs on it."""
        if self.row.agent:
            way = self.row.agent_way_in
            self.gpus = await read_agent(way.url, session, AGENT_SECONDS, way.fixed_headers)
        elif self.is_here:
            self.gpus = await here.read()
        else:
            self.gpus = GpuReport(reason=message("another machine: start gpu_agent.py there and add agent=…"))

    def _fault(self, error: NodeError) -> str:
        """What is wrong, and why it is where the connection signs in with a token that no look has."""
        if error.status not in _NOT_SIGNED_IN or not self.row.way_in.needs_user:
            return error.plain
        return message(
            "{plain} (its connection signs in by {auth}, with a token of the user who asks: let "
            "the gateway list models without one, or use bearer)",
            plain=error.plain,
            auth=self.row.auth,
        )

    @property
    def is_here(self) -> bool:
        """Whether the node runs on this machine."""
        return urlsplit(self.row.url).hostname in {"localhost", "127.0.0.1", "::1", socket.gethostname()}

    @property
    def gpu_source(self) -> str:
        """Who tells of the GPUs: nodes that have it in common have the GPUs in common."""
        return self.row.agent or ("" if self.is_here else self.row.name)

    @property
    def utilization(self) -> float | None:
        """Percent of its busiest GPU; None where nobody tells."""
        return max((gpu.utilization for gpu in self.gpus.gpus if gpu.utilization is not None), default=None)

    @property
    def _loaded(self) -> frozenset[str] | None:
        """Weights in its memory; None: it does not tell."""
        if self.residents is None:
            return None
        blobs = {fold_name(model.name): model.installed.blob for model in self.models}
        names = (fold_name(resident.model) for resident in self.residents if not resident.loading)
        return frozenset(blobs.get(name, name) for name in names)

    @property
    def is_gone(self) -> bool:
        """Nothing is to be expected from it: no connection, or no answer several times."""
        return self._missed >= MISSES or self.answered_at is None

    @property
    def is_listed(self) -> bool:
        """Whether its models are offered: it answers, or did a short while ago."""
        at = self.answered_at
        return not self.leaving and at is not None and self._clock() - at < GRACE_SECONDS

    def has_any(self, models: Iterable[str]) -> bool:
        """Whether it has one of these, by whatever name it lists it, or had when it last answered."""
        names = {fold_name(name) for model in models for name in auto_parts(model)[0]}
        return any(fold_name(model.name) in names for model in self.models)

    def holds(self, model: str) -> bool:
        """Whether a model is in its memory, by the name that the node lists."""
        everything = (*self.models, *self.others)
        blobs = {known.installed.blob for known in everything if known.name == model}
        return bool((self._loaded or frozenset()) & {*blobs, fold_name(model)})

    def names_of(self, model: str) -> frozenset[str]:
        """The names by which the node lists these weights, such as those that `ollama cp` has made."""
        blobs = {known.name: known.installed.blob for known in self.models}
        return frozenset(name for name, blob in blobs.items() if blob == blobs.get(model))

    def stop(self) -> None:
        """Ask it nothing more."""
        for task in self._asking.values():
            task.cancel()
        self._asking.clear()  # its models are asked about again when somebody looks again

    async def rest(self, seconds: float) -> None:
        """Wait until it is time for the next look, or somebody is in a hurry."""
        try:
            async with asyncio.timeout(seconds):
                await self.hurry.wait()
        except TimeoutError:
            pass
        self.hurry.clear()

    async def _show(self, listed: Iterable[ListedModel]) -> bool:
        """Ask about the models that are new. One that cannot be shown is known by its name alone.

        Returns:
            False: not all answers are there yet; the next look has them.
        """
        loop = asyncio.get_running_loop()
        for model in listed:
            key = _shown_key(model)
            if key not in self._shown and key not in self._asking:
                self._asking[key] = loop.create_task(self._ask_about(model))
        if self._asking:
            await asyncio.wait(self._asking.values(), timeout=SHOW_SECONDS)
        ended = [key for key, task in self._asking.items() if task.done()]
        for task in [self._asking.pop(key) for key in ended]:
            task.result()
        return not self._asking

    async def _ask_about(self, model: ListedModel) -> None:
        async with self._at_once:
            try:
                shown = await self.client.show(model.name)
                if shown.model_info:
                    self._shapes[_shown_key(model)] = shown.shape(model.size)
                self._shown[_shown_key(model)] = shown.model_copy(update={"tensors": ()})  # hundreds
            except RetryableNodeError as error:  # asked again at the next look, where that may help
                if error.status in _NOT_THERE:
                    self._shown[_shown_key(model)] = ShownModel()
            except NodeError:
                self._shown[_shown_key(model)] = ShownModel()

    def _keep_models(self, listed: Iterable[ListedModel]) -> None:
        self._shown = {key: self._shown[key] for key in map(_shown_key, listed) if key in self._shown}
        self._shapes = {key: shape for key, shape in self._shapes.items() if key in self._shown}
        shown = [(model, self._shown.get(_shown_key(model))) for model in listed]
        self.models = tuple(self._model(model, about) for model, about in shown if _can_chat(about))
        self.others = tuple(self._model(model, about) for model, about in shown if not _can_chat(about))

    def _residents(self, loaded: Collection[LoadedModel]) -> tuple[ResidentModel, ...]:
        names = {model.name for model in loaded}
        self._seen_ahead &= names
        self._expiries = {name: seen for name, seen in self._expiries.items() if name in names}
        now = datetime.now(UTC)
        return tuple(self._resident(model, now) for model in loaded)

    def _resident(self, loaded: LoadedModel, now: datetime) -> ResidentModel:
        """A model in memory. It is busy when the moment of its unloading has passed and it is still listed.

        Where that moment was never in the future, the node's clock is slow, and tells nothing.
        """
        expires = loaded.expires_at
        if expires is not None and expires >= now:
            self._seen_ahead.add(loaded.name)
        return ResidentModel(
            model=loaded.name,
            size=loaded.size,
            context=loaded.context_length,
            expires_at=expires.timestamp() if expires else 0.0,
            busy=expires is not None and expires < now and loaded.name in self._seen_ahead,
            loading=expires is not None and self._seems_loading(loaded.name, expires.timestamp()),
            vram=min(loaded.size_vram, loaded.size),
        )

    def _seems_loading(self, name: str, expires: float) -> bool:
        """Whether a listed model is not loaded yet: until then Ollama moves `expires_at` along with time.

        Afterwards that stands still, or moves when a request ends. One look shows nothing: it may be loading.
        """
        now = asyncio.get_running_loop().time()
        then, before, loading = self._expiries.get(name, (now, expires, True))
        passed = now - then
        if passed >= LOOK_APART_SECONDS:
            loading = abs(expires - before - passed) < SAME_PACE * passed
        if passed >= LOOK_APART_SECONDS or name not in self._expiries:
            self._expiries[name] = now, expires, loading
        return loading

    def _model(self, listed: ListedModel, shown: ShownModel | None) -> NodeModel:
        blob = (shown.blob if shown else "") or listed.digest or listed.name
        told = shown is not None and bool(shown.capabilities)
        context = (shown.num_ctx if shown else None) or 0
        options = shown.runner_options if shown else ()
        fixed = self.row.kind != "ollama"
        return NodeModel(
            name=listed.name,
            installed=InstalledModel(
                blob,
                0 if listed.is_remote else listed.size,
                context=context,
                options=options,
                fixed=fixed or listed.is_remote,
                remote=listed.is_remote,
                shape=None if listed.is_remote or fixed else self._shapes.get(_shown_key(listed)),
                bits=level_bits(level_of(listed.details.quantization_level, listed.name)),
            ),
            digest=listed.digest,
            quantization=listed.details.quantization_level,
            capabilities=frozenset(shown.capabilities) if shown and told else None,
            thinking=shown.thinking if shown and told else None,
        )


def _shown_key(model: ListedModel) -> tuple[str, str]:
    return model.name, model.digest


def _can_chat(shown: ShownModel | None) -> bool:
    """Whether a model is offered for chats. An Ollama too old for `capabilities` shows by the weights."""
    if shown is None:
        return True
    return chats(shown.capabilities) if shown.capabilities else not shown.is_embedder


# --- ollama_pack.routing.dispatch.attempt ---
# One request at one node: what was sent, when it was last heard of, and what it took.

_VARIABLE = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)*")
_NODE_TROUBLE = re.compile(r"memory|cuda|rocm|timed out|loading model|runner process", re.IGNORECASE)
TAG = "ollama_pack"  # key of what we add to an answer
LIMITS_SECONDS = 1.0  # between two looks whether an answer is overdue
PENDING_LOOK_SECONDS = 5.0  # while an answer has not begun, what is known of its node is not older
ALIVE_SECONDS = 5.0  # a runner that has said something to anybody since then does not hang
SILENT_SECONDS = 15.0  # after which an answer has ended whose node takes no connection any more


class Attempt:
    """One request at one node. Lives on one event loop.

    Attributes:
        binding: why there.
        heard_at: when the last chunk came, on the loop's clock; None: it has not begun to answer.
    """

    def __init__(
        self, pending: PendingChat, binding: Assignment, watch: NodeWatch, settings: RouterSettings
    ) -> None:
        """Nothing is sent before `chunks`."""
        self.binding = binding
        self.heard_at: float | None = None
        self._pending_chat = pending
        self._watch = watch
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._first_at = self._began
        self._there_at = self._began  # when the model was last seen to be missing
        self._hang_limit: asyncio.Timeout | None = None
        self._suspicion: asyncio.TimerHandle | None = None
        self._limits: asyncio.TimerHandle | None = None
        self._longest_load = longest_load(binding, settings.load_seconds)
        self._given_up: RetryableNodeError | None = None
        self._figures: dict[str, Any] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since it was sent."""
        return self._loop.time() - self._began

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """Send it, and hand on what comes. The chunk with the figures also says which node answered, and why.

        Raises:
            NodeError: as `NodeClient.complete`, or what `give_up` was told.
        """
        binding, watch, settings = self.binding, self._watch, self._settings
        body = with_model(self._pending_chat.body, binding.model, settings.keep_alive)
        if watch.row.placement == "own":
            body = with_conversation(body, self._pending_chat.request)
        chunks = watch.client.complete(
            body,
            self._pending_chat.head,
            first_byte=self._longest_load + self._first_token_limit + LIMITS_SECONDS,  # ours end before
            thinking=_known_thinking(watch, binding.model),
            names=watch.names_of(binding.model),
            headers=await self._pending_chat.headers(watch.row.way_in)
            if self._pending_chat.headers
            else NO_HEADERS,
        )
        try:
            async with aclosing(chunks):
                chunk: dict[str, Any] | None = await self._first(chunks)
                self._first_at = self._loop.time()
                while chunk is not None:
                    self.heard_at = self._loop.time()
                    yield self._noted(chunk)
                    chunk = await self._next(chunks)
        except NodeError as error:
            error.said = without_quotes(error.said, self._pending_chat.body.get("messages"))
            raise

    async def _first(self, chunks: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
        """The first chunk, unless somebody gives it up."""
        self._limits = self._loop.call_later(LIMITS_SECONDS, self._keep_limits)
        try:
            chunk = await self._next(chunks)
        finally:
            self._limits.cancel()
            if self._suspicion:
                self._suspicion.cancel()
        if chunk is None:
            raise self._fault(message("ended its answer before it began"))
        return chunk

    async def _next(self, chunks: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any] | None:
        """The next chunk, unless somebody gives it up; None at the end."""
        try:
            async with asyncio.timeout(None) as self._hang_limit:
                return await anext(chunks, None)
        except TimeoutError:
            raise self._given_up or self._fault(message("has stopped answering")) from None
        finally:
            self._hang_limit = None

    @property
    def _first_token_limit(self) -> float:
        return self._settings.first_token_seconds + self.binding.terms.predict_ttft

    @property
    def is_loading(self) -> bool:
        """Whether the node shows that the model is not in its memory yet."""
        return self._watch.is_loading(self.binding.model, self._began)

    def _keep_limits(self) -> None:
        """Look again and again. The time to the first token counts from when the model is there."""
        now = self._loop.time()
        if self.is_loading:
            self._there_at = now
            if self.elapsed > self._longest_load:
                self._give_up(NodeTimeoutError(self._watch.client.name, "load", round(self.elapsed)))
        elif now - self._there_at > self._first_token_limit:
            self.hangs()
        if now - self._watch.seen_at > PENDING_LOOK_SECONDS:
            self._watch.hurry.set()
        self._limits = self._loop.call_later(LIMITS_SECONDS, self._keep_limits)

    def _fault(self, reason: str) -> NodeFaultError:
        return NodeFaultError(self._watch.client.name, reason)

    def _noted(self, chunk: dict[str, Any]) -> dict[str, Any]:
        if "usage" in chunk:
            why = in_language(self._pending_chat.reason(self.binding), self._pending_chat.language)
            chunk[TAG] = {"model": self.binding.model, "node": self.binding.node, "reason": why}
            self._figures = chunk
        return chunk

    def suspect_after(self, seconds: float, suspect: Callable[[str, "Attempt"], None], identity: str) -> None:
        """Call `suspect` unless it has begun to answer by then."""
        if seconds < math.inf:
            self._suspicion = self._loop.call_later(seconds, suspect, identity, self)

    def is_gone(self) -> None:
        """Its node does not answer at all: an answer that has not begun is not waited for.

        One that has begun may pause, and a node that is very busy answers no look. But where nobody takes a
        connection, the machine has gone without a word, as one does that loses its power.
        """
        now = self._loop.time()
        if self.heard_at is None or (self._watch.is_down and now - self.heard_at > SILENT_SECONDS):
            self._give_up(NodeGoneError(self._watch.client.name))

    def hangs(self) -> None:
        """Its node takes longer than it honestly can, though it answers otherwise."""
        self._give_up(NodeTimeoutError(self._watch.client.name, "first byte", round(self.elapsed, 1)))

    def _give_up(self, error: RetryableNodeError) -> None:
        if self._hang_limit:
            self._given_up = error
            self._hang_limit.reschedule(self._loop.time())

    def spent(self) -> Durations:
        """How long it took the engine, once it is answered."""
        elapsed = Elapsed(self._first_at - self._began, self.elapsed)
        return spent_on(self._figures.get("usage"), self._figures.get("timings"), elapsed)

    def service(self, pieces: int) -> tuple[float, float]:
        """Seconds that it kept the engine at work, without a load, and tokens; as far as it has come.

        Args:
            pieces: chunks that have come: about as many tokens, where the engine has not counted them.
        """
        spent = self.spent()
        if self._figures.get("usage"):
            return spent.prompt + spent.decode, spent.prompt_count + spent.decode_count
        tokens = self._pending_chat.request.tokens + pieces
        if self.binding.loads:  # until the first token nobody can say when the load was over
            return (0.0 if self.heard_at is None else spent.decode), tokens
        return spent.total, tokens


class Attempts:
    """All that are under way, by the request's id."""

    def __init__(self) -> None:
        self._there: dict[str, Attempt] = {}

    def begin(self, identity: str, attempt: Attempt) -> None:
        """A request is sent to a node."""
        self._there[identity] = attempt

    def end(self, identity: str) -> None:
        """It is no longer there; one that never was is ignored."""
        self._there.pop(identity, None)

    def has(self, identity: str, attempt: Attempt) -> bool:
        """Whether this is the one that is under way for a request."""
        return self._there.get(identity) is attempt

    def at(self, node: str) -> int:
        """How many there are at a node."""
        return sum(attempt.binding.node == node for attempt in self._there.values())

    def is_gone(self, node: str) -> None:
        """A node does not answer at all: what has not begun to answer there goes elsewhere.

        To be called again and again, for answers that have begun.
        """
        for attempt in self._there.values():
            if attempt.binding.node == node:
                attempt.is_gone()

    def answers(self, binding: Assignment) -> bool:
        """Whether the model has just said something there to somebody: then a request waits for a slot."""
        since = asyncio.get_running_loop().time() - ALIVE_SECONDS
        return any(
            other.heard_at is not None and other.heard_at > since
            for other in self._there.values()
            if (other.binding.node, other.binding.model) == (binding.node, binding.model)
        )


def is_hang(error: NodeError) -> bool:
    """Whether it said nothing at all for as long as it could."""
    return isinstance(error, NodeTimeoutError) and error.stage in {"load", "first byte"}


def is_unexplained(error: RetryableNodeError) -> bool:
    """Whether the request may be the reason as well: the node is there, and says nothing of its own state.

    `format: "xml"` makes every node answer with status 500, for example.
    """
    its_own = NodeBusyError | ModelNotFoundError | NodeGoneError | WrongModelError
    if error.is_down or isinstance(error, its_own):
        return False
    return error.status is None or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def failure_kind(error: RetryableNodeError) -> str:
    """Equal for failures of the same kind, whatever numbers are in their words."""
    return _VARIABLE.sub("#", f"{error.status} {error.plain}").lower()


def is_about_request(error: RetryableNodeError) -> bool:
    """Whether the request is at fault where a second node says the same: not for want of memory, say."""
    speaks = error.status is not None or bool(error.said)
    return speaks and _NODE_TROUBLE.search(error.said) is None


def _known_thinking(watch: NodeWatch, name: str) -> Thinking | None:
    return next((model.thinking for model in watch.models if model.name == name), None)


# --- ollama_pack.routing.dispatch.counts ---
# What a router has done since it was made, by node and model: for Prometheus.

SECONDS_BOUNDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0)
MAX_PAIRS = 2048  # of a node and a model; more are counted as OTHER models
OTHER = "other"


@dataclass(slots=True)
class SecondsHistogram:
    """Times in classes.

    Attributes:
        counts: how many there were up to each of `SECONDS_BOUNDS`, and above the last.
        total: the sum, in seconds.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS_BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        self.total += seconds


@dataclass(slots=True)
class ModelCounts:
    """What one model did at one node.

    Attributes:
        sent: requests sent there.
        loads: those for which the model had to be loaded.
        failures: those that failed there.
        failovers: failures after which another node was asked for.
        prompt_tokens: of finished answers.
        reused_tokens: of these, what the node held: as the engine reports it, else as it was expected.
        waited: in the queue, of the requests sent.
        predicted: to the first token, of the answers that began.
        actual: the same as measured.
    """

    sent: int = 0
    loads: int = 0
    failures: int = 0
    failovers: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    waited: SecondsHistogram = field(default_factory=SecondsHistogram)
    predicted: SecondsHistogram = field(default_factory=SecondsHistogram)
    actual: SecondsHistogram = field(default_factory=SecondsHistogram)


class RouterCounts:
    """Counts what happens to requests.

    Attributes:
        models: node and model → its counts.
        refused: kind of error → chats that ended with it.
    """

    def __init__(self) -> None:
        self.models: dict[tuple[str, str], ModelCounts] = {}
        self.refused: dict[str, int] = {}

    def sent(self, assignment: Assignment) -> None:
        """A request goes to its node."""
        counts = self._of(assignment)
        counts.sent += 1
        counts.loads += assignment.loads
        counts.waited.add(assignment.waited)

    def began(self, assignment: Assignment, elapsed: float) -> None:
        """Its answer begins, so many seconds after it was sent."""
        counts = self._of(assignment)
        counts.predicted.add(assignment.terms.predict_ttft)
        counts.actual.add(elapsed)

    def finished(self, assignment: Assignment, spent: Durations) -> None:
        """It is answered."""
        counts = self._of(assignment)
        prompt = spent.prompt_count or assignment.request.tokens
        counts.prompt_tokens += prompt
        counts.reused_tokens += min(prompt, assignment.hit if spent.hit is None else spent.hit)

    def failed(self, assignment: Assignment) -> None:
        """It failed at its node."""
        self._of(assignment).failures += 1

    def failed_over(self, assignment: Assignment) -> None:
        """After that another node is asked for."""
        self._of(assignment).failovers += 1

    def refuse(self, reason: str) -> None:
        """A chat ended with an error."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def _of(self, assignment: Assignment) -> ModelCounts:
        pair = assignment.node, assignment.model
        if pair not in self.models and len(self.models) >= MAX_PAIRS:
            pair = assignment.node, OTHER
        return self.models.setdefault(pair, ModelCounts())


# --- ollama_pack.routing.dispatch.record ---
# What is written down of a chat when it has ended: figures and names, and nothing of what was said.

MAX_CONSIDERED = 5  # nodes, the cheapest ones
MAX_ERROR = 300  # characters

ChatRecord = Mapping[str, Any]
NoteChat = Callable[[ChatRecord], None]


def note_nowhere(_record: ChatRecord) -> None:
    """Forget it."""


def chat_record(pending: PendingChat, error: BaseException | None, now: float) -> dict[str, Any]:
    """The record, as JSON has it.

    | field | what |
    |---|---|
    | `at` | when it ended, Unix time |
    | `asked`, `model`, `node` | the name that was asked for, the model that answered, and where |
    | `user` | its id |
    | `outcome` | `answered`, `stopped` (its user left) or `failed` |
    | `error`, `error_text`, `error_texts` | of a failed one: the kind, and the sentence in each language |
    | `waited`, `first`, `took` | seconds: in the queue, to the first token, in all; from when it came |
    | `predicted` | seconds to the first token at the node, as predicted |
    | `prompt`, `held`, `written` | tokens: of the prompt, of these those that the node held, of the answer |
    | `loads`, `background` | the model had to be loaded; nobody looked at the answer |
    | `tried` | nodes that failed it, each with what was wrong |
    | `tried_texts` | the same in other languages |
    | `considered` | the cheapest nodes, the chosen one first: node, model, terms in seconds |

    Args:
        pending: the chat.
        error: with which it ended.
        now: on the loop's clock.
    """
    decision, spent = pending.decision, pending.spent
    record: dict[str, Any] = {
        "id": pending.request.id,
        "at": round(time.time(), 3),
        "asked": pending.head.model.removeprefix(ROUTER),
        "model": decision.model if decision else "",
        "node": decision.node if decision else "",
        "user": pending.user,
        "outcome": _outcome(error),
        "waited": _seconds(decision.waited if decision else now - pending.came),
        "took": _seconds(now - pending.came),
        "loads": bool(decision and decision.loads),
        "background": pending.request.background,
    }
    if pending.began is not None:
        record["first"] = _seconds(pending.began - pending.came)
    if decision:
        record["predicted"] = _seconds(decision.predicted)
        record["considered"] = _considered(decision)
        record |= {"prompt": decision.tokens, "held": decision.hit}
    if spent and spent.prompt_count:
        record |= {"prompt": spent.prompt_count, "written": spent.decode_count}
        record |= {} if spent.hit is None else {"held": spent.hit}
    if record["outcome"] == "failed" and isinstance(error, Exception):
        record |= {"error": error_code(error), "error_text": str(error)[:MAX_ERROR]}
        others = {language: in_language(error, language)[:MAX_ERROR] for language in TRANSLATIONS}
        record["error_texts"] = {name: text for name, text in others.items() if text != record["error_text"]}
    if pending.tried:
        faults = {node: fault.plain for node, fault in pending.tried.items()}
        record["tried"] = {node: fault[:MAX_ERROR] for node, fault in faults.items()}
        record["tried_texts"] = {
            language: {node: in_language(fault, language)[:MAX_ERROR] for node, fault in faults.items()}
            for language in TRANSLATIONS
        }
    return record


def running_record(pending: PendingChat, now: float) -> dict[str, Any]:
    """The same of a chat that has not ended: its outcome is `waiting`, `loading` or `answering`."""
    record = chat_record(pending, None, now)
    if not pending.bound.done():
        return record | {"outcome": "waiting"}
    return record | {"outcome": "loading" if record["loads"] and pending.began is None else "answering"}


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "answered"
    return "stopped" if isinstance(error, CancelledError | GeneratorExit) else "failed"


def _seconds(value: float) -> float:
    return round(max(0.0, value), 3)


def _considered(decision: Decision) -> list[dict[str, Any]]:
    def chosen_first(one: ConsideredNode) -> tuple[bool, float]:
        node, model, terms = one
        return (node, model) != (decision.node, decision.model), sum(terms.as_dict().values())

    cheapest = sorted(decision.considered(), key=chosen_first)[:MAX_CONSIDERED]
    return [
        {
            "node": node,
            "model": model,
            "terms": {name: _seconds(cost) for name, cost in terms.as_dict().items()},
        }
        for node, model, terms in cheapest
    ]


# --- ollama_pack.routing.state.events ---
# What happens to a request at a node, as workers tell each other. Times are in seconds from the telling.


@dataclass(frozen=True, slots=True)
class BoundEvent:
    """A request goes to a node, or is still there.

    Attributes:
        request_id: the request.
        node: key of the node, see `node_key`.
        model: as the node lists it.
        blob: the weights.
        loads: it makes the node load them.
        victims: weights that are unloaded first.
        context: that the runner is asked for, in tokens; 0: the node's default.
        options: what else it is asked for.
        ready: when it is loaded.
        left: when the request is predicted to end.
        blocks: its prompt.
        user: whom fairness counts it for, as a hash; empty: nobody, as for a load that nobody waits for.
        background: as in `FleetRequest`.
    """

    request_id: str
    node: str
    model: str
    blob: str
    loads: bool
    victims: tuple[str, ...]
    context: int
    options: RunnerOptions
    ready: float
    left: float
    blocks: tuple[PromptBlock, ...]
    user: str = ""
    background: bool = False


@dataclass(frozen=True, slots=True)
class WaitingEvent:
    """A request waits: no node could begin it at once. The fields are those of `FleetRequest`.

    Attributes:
        waited: seconds since it came.
    """

    request_id: str
    user: str
    models: tuple[str, ...]
    blocks: tuple[PromptBlock, ...]
    max_output: int
    context: int
    options: RunnerOptions
    background: bool
    waited: float


@dataclass(frozen=True, slots=True)
class BegunEvent:
    """Its first token came; `left` is when it is predicted to end."""

    request_id: str
    left: float


@dataclass(frozen=True, slots=True)
class FinishedEvent:
    """It was answered, and this is what it teaches of the node with these weights."""

    request_id: str
    node: str
    blob: str
    lesson: Lesson


@dataclass(frozen=True, slots=True)
class EndedEvent:
    """It ended and tells nothing: cancelled or refused, at a node or while it waited."""

    request_id: str


@dataclass(frozen=True, slots=True)
class BlamedEvent:
    """A node failed a request that another one answered: the fault was the node's.

    Attributes:
        request_id: the request.
        node: key of the node, see `node_key`.
        model: as the node lists it.
        hung: it said nothing for as long as it could.
    """

    request_id: str
    node: str
    model: str
    hung: bool


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """The node failed it: for its own sake, or for one model's, perhaps by saying nothing at all."""

    request_id: str
    node_down: bool
    hung: bool = False


FleetEvent = WaitingEvent | BoundEvent | BegunEvent | FinishedEvent | EndedEvent | FailedEvent | BlamedEvent
Listener = Callable[[FleetEvent], None]


def tell_nobody(event: FleetEvent) -> None:
    """For a worker that is alone."""


# --- ollama_pack.routing.peers.messages ---
# What workers write to each other: events as JSON, with hashes instead of prompts.
#
# A message that a worker does not understand, of another version of the pack perhaps, is passed over.

MAX_MESSAGE = 256 * 1024  # bytes; a prompt of the most blocks takes a tenth of it


@dataclass(frozen=True, slots=True)
class HelloMessage:
    """A worker has come and asks what there is."""

    worker: str


@dataclass(frozen=True, slots=True)
class AliveMessage:
    """A worker is there, and so are these requests of its own, at nodes or waiting."""

    worker: str
    requests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ByeMessage:
    """A worker goes, and its requests have ended."""

    worker: str


@dataclass(frozen=True, slots=True)
class EventMessage:
    """Something happened to a request of a worker."""

    worker: str
    event: FleetEvent


PullWord = Literal["waiting", "draining", "pulling", "done", "failed", "stopped"]
ENDED_PULLS = frozenset({"done", "failed", "stopped"})


@dataclass(slots=True)
class PullState:
    """The pull of a model at one node, with percent of its current layer and why it failed."""

    node: str
    model: str
    state: PullWord = "waiting"
    percent: float = 0.0
    fault: str = ""

    @property
    def is_under_way(self) -> bool:
        return self.state not in ENDED_PULLS


@dataclass(frozen=True, slots=True)
class UpkeepMessage:
    """A worker pulls models: keys of the nodes that get nothing new meanwhile, and how far it is."""

    worker: str
    drained: tuple[str, ...] = ()
    pulls: tuple[PullState, ...] = ()


@dataclass(frozen=True, slots=True)
class StopPullMessage:
    """A worker's admin wants the pull to stop, whichever worker does it."""

    worker: str


FleetMessage = HelloMessage | AliveMessage | ByeMessage | EventMessage | UpkeepMessage | StopPullMessage

_EVENTS: dict[str, type[FleetEvent]] = {
    "waiting": WaitingEvent,
    "bound": BoundEvent,
    "begun": BegunEvent,
    "finished": FinishedEvent,
    "ended": EndedEvent,
    "failed": FailedEvent,
    "blamed": BlamedEvent,
}
_NAMES = {kind: name for name, kind in _EVENTS.items()}


def encode_message(message: FleetMessage) -> bytes:
    """As JSON in UTF-8."""
    match message:
        case HelloMessage(worker):
            written: dict[str, Any] = {"t": "hello", "w": worker}
        case AliveMessage(worker, requests):
            written = {"t": "alive", "w": worker, "r": requests}
        case ByeMessage(worker):
            written = {"t": "bye", "w": worker}
        case UpkeepMessage(worker, drained, pulls):
            written = {"t": "upkeep", "w": worker, "d": drained, "p": [asdict(one) for one in pulls]}
        case StopPullMessage(worker):
            written = {"t": "stop", "w": worker}
        case EventMessage(worker, event):
            written = {"t": _NAMES[type(event)], "w": worker, "e": _event_fields(event)}
    return json.dumps(written, separators=(",", ":"), default=str).encode()


def _event_fields(event: FleetEvent) -> dict[str, Any]:
    fields = asdict(event)
    if isinstance(event, BoundEvent | WaitingEvent):
        fields["blocks"] = [(block.chain, block.upto, int(block.answer)) for block in event.blocks]
    return fields


def decode_message(payload: bytes) -> FleetMessage | None:
    """Read a message; None when it is none that this version knows."""
    if len(payload) > MAX_MESSAGE:
        return None
    try:
        written = json.loads(payload, parse_constant=_refuse_constant)
        kind, worker = str(written["t"]), str(written["w"])
        return _of_worker(kind, worker, written) or EventMessage(worker, _fleet_event(kind, written["e"]))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _of_worker(kind: str, worker: str, written: dict[str, Any]) -> FleetMessage | None:
    """A message about a worker itself; None: it is about a request."""
    match kind:
        case "hello":
            return HelloMessage(worker)
        case "alive":
            return AliveMessage(worker, _strings(written["r"]))
        case "bye":
            return ByeMessage(worker)
        case "upkeep":
            return UpkeepMessage(worker, _strings(written["d"]), tuple(map(pull_state, written["p"])))
        case "stop":
            return StopPullMessage(worker)
    return None


def _fleet_event(kind: str, fields: dict[str, Any]) -> FleetEvent:
    request_id = str(fields["request_id"])
    match kind:
        case "waiting" | "bound":
            return (_waiting_event if kind == "waiting" else _bound_event)(request_id, fields)
        case "begun":
            return BegunEvent(request_id, _messages__seconds(fields["left"]))
        case "finished":
            lesson = _lesson(fields["lesson"])
            return FinishedEvent(request_id, str(fields["node"]), str(fields["blob"]), lesson)
        case "ended":
            return EndedEvent(request_id)
        case "failed":
            return FailedEvent(request_id, bool(fields["node_down"]), bool(fields["hung"]))
        case "blamed":
            return BlamedEvent(request_id, str(fields["node"]), str(fields["model"]), bool(fields["hung"]))
    raise ValueError(kind)


def _bound_event(request_id: str, fields: dict[str, Any]) -> BoundEvent:
    return BoundEvent(
        request_id=request_id,
        node=str(fields["node"]),
        model=str(fields["model"]),
        blob=str(fields["blob"]),
        loads=bool(fields["loads"]),
        victims=_strings(fields["victims"]),
        context=int(fields["context"]),
        options=_options(fields["options"]),
        ready=_messages__seconds(fields["ready"]),
        left=_messages__seconds(fields["left"]),
        blocks=_blocks(fields["blocks"]),
        user=str(fields.get("user", "")),
        background=bool(fields.get("background")),
    )


def _waiting_event(request_id: str, fields: dict[str, Any]) -> WaitingEvent:
    return WaitingEvent(
        request_id=request_id,
        user=str(fields["user"]),
        models=_strings(fields["models"]),
        blocks=_blocks(fields["blocks"]),
        max_output=int(fields["max_output"]),
        context=int(fields["context"]),
        options=_options(fields["options"]),
        background=bool(fields["background"]),
        waited=_messages__seconds(fields["waited"]),
    )


def pull_state(written: Mapping[str, Any]) -> PullState:
    """What `asdict` has made of a pull.

    Raises:
        ValueError, KeyError, TypeError: it is none that this version knows.
    """
    state = written["state"]
    if state not in get_args(PullWord):
        raise ValueError(state)
    percent = _messages__seconds(written["percent"])
    return PullState(str(written["node"]), str(written["model"]), state, percent, str(written["fault"]))


def _options(written: Collection[Any]) -> RunnerOptions:
    return tuple((str(name), value) for name, value in written)


def _blocks(written: Collection[Any]) -> tuple[PromptBlock, ...]:
    return tuple(PromptBlock(int(chain), int(upto), bool(answer)) for chain, upto, answer in written)


def _lesson(fields: dict[str, Any]) -> Lesson:
    spent, match = fields["spent"], fields["match"]
    durations = Durations(
        total=_messages__seconds(spent["total"]),
        load=_messages__seconds(spent["load"]),
        prompt=_messages__seconds(spent["prompt"]),
        prompt_count=int(spent["prompt_count"]),
        decode=_messages__seconds(spent["decode"]),
        decode_count=int(spent["decode_count"]),
        hit=None if spent["hit"] is None else int(spent["hit"]),
    )
    return Lesson(
        spent=durations,
        match=MatchDepth(
            depth=int(match["depth"]),
            tokens=int(match["tokens"]),
            between=int(match["between"]),
            held=bool(match["held"]),
        ),
        beside=int(fields["beside"]),
        background=bool(fields["background"]),
        loaded=bool(fields["loaded"]),
    )


def _messages__seconds(written: Any) -> float:
    """Seconds that can be reckoned with: `1e999` in JSON is infinite, and the text "nan" is a float, too."""
    seconds = float(written)
    if not math.isfinite(seconds):
        raise ValueError(f"{written!r} is no number of seconds")
    return seconds


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number to reckon with")


def _strings(values: Collection[Any]) -> tuple[str, ...]:
    return tuple(map(str, values))


# --- ollama_pack.routing.state.demand ---
# How often each set of weights is asked for, over the last minutes.

DEMAND_SECONDS = 120.0  # the past is forgotten by a factor of e in this time
MAX_BLOBS = 1024


class DemandMeter:
    """Requests a second by blob, exponentially forgotten. Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, float]] = {}  # blob → count, and when it was right
        self._began: float | None = None

    def add(self, blob: str, now: float, share: float = 1.0) -> None:
        """A request asks for it, or, with this likelihood, for it among others of the same name."""
        if self._began is None:
            self._began = now
        if blob not in self._counts and len(self._counts) >= MAX_BLOBS:
            del self._counts[min(self._counts, key=lambda known: self._counts[known][1])]
        self._counts[blob] = (self._faded(blob, now) + share, now)

    def rates(self, now: float) -> dict[str, float]:
        """Requests a second by blob. A meter that has not run long yet divides by the time that it has."""
        ran = now - self._began if self._began is not None else 0.0
        span = DEMAND_SECONDS * (1 - math.exp(-max(ran, 30.0) / DEMAND_SECONDS))
        return {blob: self._faded(blob, now) / span for blob in self._counts}

    def _faded(self, blob: str, now: float) -> float:
        count, then = self._counts.get(blob, (0.0, now))
        return count * math.exp(-(now - then) / DEMAND_SECONDS)


# --- ollama_pack.routing.state.peer_requests ---
# Requests of other workers at the same nodes: they take slots, load models and teach, as our own do.

MAX_REMOTE = 4096
UNKNOWN_WORKER = ""  # of a request that is known only because it keeps one of ours out


def node_key(row: NodeRow) -> str:
    """What workers call a node among themselves: the same whatever its name, and not its address."""
    return blake2b(row.url.encode(), digest_size=8).hexdigest()


@dataclass(slots=True)
class RemoteRequest:
    """A request of another worker.

    Attributes:
        forgotten_at: when it is forgotten unless its worker tells of it; None: with its worker.
    """

    worker: str
    node: NodeState
    runner: RunnerState
    model: str
    loads: bool
    blocks: tuple[PromptBlock, ...] = ()
    answering: bool = False
    forgotten_at: float | None = None


class RemoteRequests:
    """Applies what other workers tell to the nodes as this one knows them. Bounded.

    Attributes:
        nodes: by their keys.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        demand: DemandMeter,
        prompt_sent: Callable[[str, str, tuple[PromptBlock, ...]], tuple[int, int]],
        learn: Callable[[NodeState, str, Lesson], None],
    ) -> None:
        """Begin without any.

        Args:
            clock: the scheduler's own.
            demand: counts what is asked for.
            prompt_sent: hears of each prompt that goes to a node, and says how it is kept.
            learn: hears what answers teach.
        """
        self._prompt_sent = prompt_sent
        self._learn = learn
        self.nodes: dict[str, NodeState] = {}
        self._clock = clock
        self._demand = demand
        self._there: dict[str, RemoteRequest] = {}

    def __len__(self) -> int:
        return len(self._there)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._there

    def at(self, node: str) -> int:
        """How many of them are at the node of this name."""
        return sum(remote.node.row.name == node for remote in self._there.values())

    def apply(self, worker: str, event: FleetEvent) -> None:
        """Take in what a worker tells. What concerns a node or a request that is not known is passed over."""
        match event:
            case BoundEvent():
                self._bound(worker, event)
            case BegunEvent():
                self._begun(event)
            case FinishedEvent():
                self._finished(event)
            case EndedEvent():
                if remote := self._leave(event.request_id):
                    remote.node.gave_up(remote.model)
            case BlamedEvent():
                if node := self.nodes.get(event.node):
                    node.failed(event.model, self._clock(), node_down=False, hung=event.hung)
            case FailedEvent():
                if remote := self._leave(event.request_id):
                    remote.node.failed(
                        remote.model, self._clock(), node_down=event.node_down, hung=event.hung
                    )
                    remote.runner.mirror.clear()

    def _bound(self, worker: str, event: BoundEvent) -> None:
        node, now = self.nodes.get(event.node), self._clock()
        known = self._there.get(event.request_id)
        if known and known.worker != UNKNOWN_WORKER:
            known.runner.ends[event.request_id] = now + event.left
            known.node.changed()
            return
        if known:
            self._leave(event.request_id)
        if node is None or event.model not in node.models or len(self._there) >= MAX_REMOTE:
            return
        node.passed(event.model)
        self._demand.add(event.blob, now)
        runner = node.runners.get(event.blob)
        if event.loads and event.ready > 0:
            runner = node.load(event.model, (event.context, event.options), event.victims, now)
            node.loading_until = runner.ready_at = now + event.ready
        elif runner is None:
            runner = node.adopt(event.model, (event.context, event.options), now)
        self._there[event.request_id] = RemoteRequest(
            worker, node, runner, event.model, event.loads, event.blocks, event.ready <= 0
        )
        runner.ends[event.request_id] = now + event.left
        shared, kind = self._prompt_sent(node.row.name, event.blob, event.blocks)
        runner.mirror.started(event.blocks, now, shared=shared, kind=kind)
        runner.touched = True
        node.changed()

    def _begun(self, event: BegunEvent) -> None:
        if remote := self._there.get(event.request_id):
            now = self._clock()
            remote.answering = True
            remote.node.loaded(remote.runner, now)
            remote.runner.ends[event.request_id] = now + event.left
            remote.node.changed()

    def _finished(self, event: FinishedEvent) -> None:
        now = self._clock()
        if remote := self._leave(event.request_id):
            remote.node.succeeded(remote.model)
            remote.runner.mirror.finished(remote.blocks, event.lesson.spent.decode_count, now)
        node = self.nodes.get(event.node)
        if node and any(model.blob == event.blob for model in node.models.values()):
            self._learn(node, event.blob, event.lesson)

    def _leave(self, request_id: str) -> RemoteRequest | None:
        remote = self._there.pop(request_id, None)
        if remote:
            now = self._clock()
            remote.node.changed()
            remote.node.left(remote.runner, request_id, now)
            if remote.loads and not remote.answering:
                remote.node.loaded(remote.runner, now)
        return remote

    def hold(self, node: NodeState, blob: str, request_id: str, until: float) -> bool:
        """Believe for a moment that a request is at a runner, of which nothing else is known.

        Returns:
            Whether that is new.
        """
        runner = node.runners.get(blob)
        if runner is None or request_id in self._there or len(self._there) >= MAX_REMOTE:
            return False
        self._there[request_id] = RemoteRequest(
            UNKNOWN_WORKER, node, runner, runner.model, loads=False, forgotten_at=until
        )
        runner.ends[request_id] = max(until, self._clock() + node.known(blob).service)
        node.changed()
        return True

    def forget(self, worker: str, but: Collection[str] = ()) -> None:
        """A worker is gone, or tells that only these are still there."""
        gone = [key for key, one in self._there.items() if one.worker == worker and key not in but]
        for request_id in gone:
            if remote := self._leave(request_id):
                remote.node.gave_up(remote.model)

    def forget_all(self) -> None:
        """Nobody tells any more."""
        for worker in {remote.worker for remote in self._there.values()}:
            self.forget(worker)

    def expire(self, now: float) -> None:
        """Forget what was believed for a moment only."""
        for request_id, remote in list(self._there.items()):
            if remote.forgotten_at is not None and remote.forgotten_at <= now:
                self._leave(request_id)

    def expires_at(self) -> float | None:
        """When the next is forgotten."""
        due = [remote.forgotten_at for remote in self._there.values() if remote.forgotten_at is not None]
        return min(due, default=None)


# --- ollama_pack.routing.decide.rendezvous ---
# Where a chat belongs when nobody remembers: weighted rendezvous hashing, with bounded loads.
#
# Workers that do not hear of one another reckon the same node for the same chat, so that its next turn finds
# its prefix there whichever worker it comes to. A node is passed over while it has more than its share.

LOAD_BOUND = 1.25


@lru_cache(maxsize=16384)
def rendezvous_score(chat: str, node: str, weight: float) -> float:
    """How much a chat belongs to a node: the highest score wins, twice as often with twice the weight.

    The score is -w / ln(h) with h uniform in (0, 1) (Schindelhauer and Schomaker, "Weighted Distributed Hash
    Tables", 2005).
    """
    digest = blake2b(f"{node}\\0{chat}".encode(errors="replace"), digest_size=8).digest()
    uniform = (int.from_bytes(digest) + 0.5) / 2**64
    return -weight / math.log(uniform) if weight > 0 else 0.0


def may_take(load: int, total: int, share: float) -> bool:
    """Whether a node may get one more without having more than its share of all, and a quarter.

    The bound is ceil(c * share * (total + 1)) (Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with
    Bounded Loads", 2018).

    Args:
        load: what the node has.
        total: what all nodes have.
        share: of the node in all weights.
    """
    return load + 1 <= math.ceil(LOAD_BOUND * share * (total + 1))


# --- ollama_pack.routing.decide.planner ---
# Late binding on a virtual timeline: which of the waiting requests begin now, and where.
#
# Go through them in fair order. For each, predict what every node would cost it, given that those ahead are
# already placed. If the best node can begin now, it goes there; if not, those behind wait as much longer as it
# will hold a slot, so that they see the true queue. A request that does not start may choose otherwise the next
# time.
#
# Work conserving: while a node that has the model in memory has a free slot, a request waits only if it starts
# sooner elsewhere. The prefix that it overwrites there is spared by background calls, and among equal nodes:
# holding people back for it has cost more than it saved on every trace.
#
# A decision costs what the event before it touched, not what the fleet and the queue hold. Nodes are found by
# model: those with a free slot, those that have one next, those that hold the prompt, those that can load.
# Requests are found by kind: of a kind that cannot begin, as many are passed over as would not change that, and
# the whole kind until something changes for it. (In a small fleet, where looking costs little, every request is
# looked at.) What is left has a bound: then the next decision goes on.


@dataclass(slots=True)
class WarmNodes:
    """The nodes that have some weights in memory.

    Attributes:
        ready: those with a slot free now, by name.
        busy: when each of the others is free, and its name; sorted.
        slots: of all of them.
        pace: usual requests a second that all of them can answer.
        gains: counts how often a slot became free.
    """

    ready: dict[str, VirtualNode] = field(default_factory=dict)
    busy: list[tuple[float, str]] = field(default_factory=list)
    slots: int = 0
    pace: float = 0.0
    gains: int = 0


@dataclass(slots=True)
class Listed:
    """Where a node is found in the indexes.

    Attributes:
        load_at: whether it has to wait before it can load, until when, and its name.
        runners: of each the weights, when it has a slot free (None: now), its slots and its pace.
    """

    load_at: tuple[bool, float, str]
    runners: list[tuple[str, float | None, int, float]]

    def offers_more(self, before: Self | None, now: float) -> bool:
        """Whether a request that could not begin may look otherwise now, apart from free slots."""
        later, at, _ = self.load_at
        blobs = {blob for blob, *_ in self.runners}
        return before is None or (not later and at <= now) or blobs != {blob for blob, *_ in before.runners}


@dataclass(slots=True)
class Having:
    """The nodes that have a model, by name, and the weights that they call by that name."""

    nodes: list[str]
    blobs: list[str]


@dataclass(slots=True)
class Kind:
    """The waiting requests of one kind, in one decision.

    Attributes:
        waiting: all of them, in fair order.
        tried: nodes that have failed them.
        model: which of their models answers, and
        having: the nodes that have it.
        seen: how many of them the walk has passed.
        misses: how many of those that were looked at in a row cannot begin now.
        cold: nodes that could load the model, the cheapest of those that were asked.
        hopeless: none has begun, and no node is kept for one: nobody needs to look until something changes.
    """

    name: str
    waiting: Sequence[WaitingRequest]
    tried: Collection[str]
    model: str
    having: Having
    seen: int = 0
    misses: int = 0
    cold: list[VirtualNode] = field(default_factory=list)
    hopeless: bool = True


class Timelines:
    """The nodes' futures, kept from one decision to the next until their nodes change, and found by model.

    Attributes:
        moment: what all of them go by.
        nodes: by name.
        open: the names of those that can begin something now.
        roomy: the names of those that can load a small model now and unload nothing for it.
        warm: the nodes that have some weights in memory, by these.
        gains: counts the changes after which a request may begin that could not before.
    """

    def __init__(self, policy: RoutingPolicy) -> None:
        self.moment = TimelineContext(policy)
        self.nodes: dict[str, VirtualNode] = {}
        self.open: set[str] = set()
        self.roomy: set[str] = set()
        self.warm: dict[str, WarmNodes] = {}
        self._loading: list[tuple[bool, float, str]] = []  # sorted: who can load first
        self._listed: dict[str, Listed] = {}
        self._having: dict[str, Having] = {}
        self.gains = 0

    def follow(self, view: FleetView) -> None:
        """Take in how the fleet looks now."""
        moment = self.moment
        moment.now, moment.demand, moment.returns = view.now, view.demand, view.returns
        names = view.by_name.keys() if view.changed is None else view.changed
        if view.changed is None:
            for name in [name for name in self.nodes if name not in names]:
                self._drop(name)
        for name in names:
            known = self.nodes.get(name)
            if known is None or known.view is not view.by_name[name] or known.changed:
                before = self._listed.get(name)
                self.renew(view.by_name[name])
                after = self._listed.get(name)
                self.gains += after is None or after.offers_more(before, view.now)
                for blob, free_at, *_ in after.runners if after else ():
                    self.warm[blob].gains += free_at is None

    def renew(self, view: NodeView) -> None:
        """Begin a node's future again, from how it looks now."""
        before = self.nodes.get(view.name)
        if before is not None:
            self.moment.held.subtract([runner.blob for runner in before.view.runners])
        if before is None or before.view.models is not view.models:
            self._having.clear()
            self.gains += 1
        if view.weight <= 0:
            if before is not None:
                self._forget(view.name)
            return
        self.moment.held.update([runner.blob for runner in view.runners])
        node = self.nodes[view.name] = VirtualNode(view, self.moment, before)
        self.list_again(node)

    def _drop(self, name: str) -> None:
        self.moment.held.subtract([runner.blob for runner in self.nodes[name].view.runners])
        self._having.clear()
        self.gains += 1
        self._forget(name)

    def _forget(self, name: str) -> None:
        del self.nodes[name]
        self._unlist(name)
        self.open.discard(name)
        self.roomy.discard(name)

    def list_again(self, node: VirtualNode) -> None:
        """Note what a node can begin, and when."""
        name = node.view.name
        self._unlist(name)
        loads_now, loads_at = node.can_load()
        listed = self._listed[name] = Listed((not loads_now, loads_at, name), [])
        insort(self._loading, listed.load_at)
        for blob, runner in node.runners.items():
            if blob not in node.served:
                continue
            warm = self.warm.get(blob)
            if warm is None:
                warm = self.warm[blob] = WarmNodes()
            free_at = None if node.serves_now(blob) else node.free_at(runner)
            if free_at is None:
                warm.ready[name] = node
            else:
                insort(warm.busy, (free_at, name))
            pace = node.pace(blob, runner.slots)
            warm.slots += runner.slots
            warm.pace += pace
            listed.runners.append((blob, free_at, runner.slots, pace))
        if node.is_open():
            self.open.add(name)
        else:
            self.open.discard(name)
        if node.has_room():
            self.roomy.add(name)
        else:
            self.roomy.discard(name)

    def _unlist(self, name: str) -> None:
        listed = self._listed.pop(name, None)
        if listed is None:
            return
        del self._loading[bisect_left(self._loading, listed.load_at)]
        for blob, free_at, slots, pace in listed.runners:
            warm = self.warm[blob]
            warm.slots -= slots
            warm.pace -= pace
            if free_at is None:
                del warm.ready[name]
            else:
                del warm.busy[bisect_left(warm.busy, (free_at, name))]
            if len(self.warm) > MAX_MODELS and not warm.ready and not warm.busy:
                del self.warm[blob]
                self.gains += 1

    def having(self, model: str) -> Having:
        """The nodes that have a model."""
        found = self._having.get(model)
        if found is None:
            if len(self._having) > MAX_MODELS:
                self._having.clear()
            nodes = [name for name, node in self.nodes.items() if model in node.view.models]
            blobs = {self.nodes[name].view.models[model].blob: None for name in nodes}
            found = self._having[model] = Having(nodes, list(blobs))
        return found

    def can_load(self) -> bool:
        """Whether any node can load something now."""
        return bool(self._loading) and not self._loading[0][0] and self._loading[0][1] <= self.moment.now

    def loading_first(self) -> Iterator[tuple[bool, str]]:
        """The nodes' names, those first that can load something first, and whether they can do so now."""
        now = self.moment.now
        return ((not later and at <= now, name) for later, at, name in self._loading)


MOST_TAKEN_BY_WARMTH = 0.05  # seconds that others may lose when a model is loaded for the hours to come
MAX_MODELS = 256  # whose nodes are remembered
PATIENT_SECONDS = 0.25  # until requests that wait for a node beside a free slot are looked at again
SMALL_FLEET = 16  # nodes: in so few nobody is passed over while there is time
MAX_HOPELESS = 256  # kinds that are remembered
FEW_MISSES = 8  # in a row, beside a free slot, before others are passed over
FEW_BUSY = 2  # nodes that are thought of next to those that can begin now: the ones that can so next


@dataclass(slots=True)
class Planner:
    """Decides again and again, over views of one fleet. What it keeps between decisions only saves time.

    Attributes:
        policy: weights and bounds.
        dice: breaks ties.
        promised: blob → on how many nodes it is to stay in memory, and until when that holds.
        ahead: loads that nobody waits for, which had better begin now.
        exhausted: the last decision has reached its bound before it had seen all. Decide again soon.
        look_again: when requests that were passed over may look otherwise though nothing has happened.
    """

    policy: RoutingPolicy
    dice: Random
    holds_back = True
    _timelines: Timelines = field(init=False)
    _view: FleetView = field(init=False)
    _kinds: dict[str, Kind] = field(init=False, default_factory=dict)
    _touched: dict[str, VirtualNode] = field(init=False, default_factory=dict)
    _held: Counter[str] | None = field(init=False, default=None)
    _delays: defaultdict[str, float] = field(init=False, default_factory=lambda: defaultdict(float))
    _asked: int = field(init=False, default=0)
    promised: dict[str, tuple[int, float]] = field(init=False, default_factory=dict)
    ahead: list[Assignment] = field(init=False, default_factory=list)
    exhausted: bool = field(init=False, default=False)
    look_again: float = field(init=False, default=math.inf)
    _hopeless: dict[str, tuple[int, int, float]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._timelines = Timelines(self.policy)

    def plan(self, view: FleetView, waiting: Mapping[str, Sequence[WaitingRequest]]) -> list[Assignment]:
        """Assign nodes to requests until nothing more can begin now.

        Args:
            view: the fleet at this moment.
            waiting: the requests by kind, each in fair order.

        Returns:
            The assignments of those that were looked at; those that `starts` begin now.
        """
        self._begin(view)
        found = self._walk(waiting)
        self.ahead = self._loads_ahead(found)
        self._end()
        return found

    def _begin(self, view: FleetView) -> None:
        self._view = view
        self._timelines.follow(view)
        self._kinds, self._touched, self._held = {}, {}, None
        self._delays.clear()
        self._asked, self.exhausted, self.look_again = 0, False, math.inf

    def _end(self) -> None:
        """What was placed on the timelines was a thought: forget it."""
        if self._held is not None:
            self._timelines.moment.held = self._held
        for name in self._touched:
            self._timelines.renew(self._view.by_name[name])

    def _walk(self, waiting: Mapping[str, Sequence[WaitingRequest]]) -> list[Assignment]:
        """Go through the requests in fair order, and pass over those that have nothing to begin."""
        if not self._timelines.open:
            return []
        found: list[Assignment] = []
        ahead: list[tuple[Place, Kind]] = []
        for name, entries in waiting.items():
            kind = self._kind_of(name, entries)
            if kind and not self._is_hopeless(kind):
                self._kinds[name] = kind
                heappush(ahead, (entries[0].place, kind))
        while ahead and self._timelines.open:
            _, kind = heappop(ahead)
            if self._puts_off(kind):
                continue
            if assignment := self._look(kind):
                found.append(assignment)
            if kind.seen < len(kind.waiting) and (self._has_ready(kind) or self._timelines.can_load()):
                heappush(ahead, (kind.waiting[kind.seen].place, kind))
            elif not self._is_small():
                self._give_up(kind)
        return found

    def _puts_off(self, kind: Kind) -> bool:
        """Leave a kind to the next decision where this one has cost too much, and see that there is one.

        The first of each kind is looked at in every decision: others must not use the bound up for it.
        """
        bound = self.policy.most_costs * (2 if self._has_ready(kind) else 1)
        if not kind.seen or self._asked < bound:
            return False
        if kind.misses and not kind.hopeless:  # a node is kept for it
            self.look_again = min(self.look_again, self._view.now + PATIENT_SECONDS)
            return True
        self.exhausted = True
        if kind.misses:
            self._give_up(kind)  # the next decision looks at others
        return True

    def _is_small(self) -> bool:
        """Whether the fleet is so small that looking at everybody costs little."""
        return len(self._timelines.nodes) <= SMALL_FLEET

    def _look(self, kind: Kind) -> Assignment | None:
        """Place the next request of a kind; None when no node may answer it."""
        entry = kind.waiting[kind.seen]
        kind.seen += 1
        assignment = self.assign(entry, kind)
        if assignment is None:
            return None
        if assignment.starts:
            kind.misses, kind.hopeless = 0, False
        else:
            kind.misses += 1
            self._pass_over(kind, assignment)
        return assignment

    def _give_up(self, kind: Kind) -> None:
        """Pass over a kind of which none could begin, until something changes."""
        if not kind.hopeless:
            return
        if len(self._hopeless) >= MAX_HOPELESS:
            self._hopeless.clear()
        until = self._view.now + (PATIENT_SECONDS if self._has_ready(kind) else FRESH_SECONDS)
        self._hopeless[kind.name] = self._gains(kind), len(kind.waiting), until
        self.look_again = min(self.look_again, until)

    def _gains(self, kind: Kind) -> int:
        """Counts the changes after which a request of this kind may begin that could not before."""
        warm = self._timelines.warm
        return self._timelines.gains + sum([warm[blob].gains for blob in kind.having.blobs if blob in warm])

    def _is_hopeless(self, kind: Kind) -> bool:
        """Whether none could begin a moment ago, and nothing has changed that matters to them."""
        gains, waiting, until = self._hopeless.get(kind.name, (-1, 0, 0.0))
        if gains != self._gains(kind) or len(kind.waiting) > waiting or until <= self._view.now:
            return False
        self.look_again = min(self.look_again, until)
        return True

    def _loads_ahead(self, found: Sequence[Assignment]) -> list[Assignment]:
        """Loads of models whose slots fill up, where nobody has to wait for that.

        A node with room unloads nothing for it. The last such node is left to models that no node has in
        memory; where it has no room for all models, which one needs it most is not known before a model is
        short. Where no node has room, a model whose requests wait may take the place of another.
        """
        asked = {one.entry.kind: one for one in found if not one.request.background and not one.entry.peer}
        roomy = self._timelines.roomy
        loads = [load for one in asked.values() for load in self._loads_for(one)] if roomy else []
        return loads or self._exchange([one for one in asked.values() if not one.starts])

    def _loads_for(self, assignment: Assignment) -> Iterator[Assignment]:
        """The loads of one model, given the choice for a request that asks for it."""
        kind, request = self._kinds[assignment.entry.kind], assignment.request
        nodes, roomy = self._timelines.nodes, self._timelines.roomy
        warm = [node for name in kind.having.nodes if (node := nodes[name]).has(kind.model)]
        slots = self._slots(kind)
        busy = len(kind.waiting) + sum([node.answers(kind.model) for node in warm])
        nearest = min([node.view.tier for node in warm], default=-1)
        left = len(roomy)
        lost = self._lost(assignment)
        for name in kind.having.nodes:
            node = nodes[name]
            fills_up = busy > max(1.0, self.policy.prewarm_share * slots)
            if not fills_up and not lost:
                return
            if name not in roomy or node.view.tier > nearest or node.has(kind.model):
                continue
            if not node.view.may_load_ahead(kind.model):
                continue
            if not fills_up and lost <= node.load_seconds(kind.model):
                continue
            if left == 1 and (self._leaves_models_out(node, kind.model) or self._is_early(node, busy, slots)):
                return
            quote = node.quote((kind.model, assignment.entry.kind, request.max_output), request)
            if quote.now_open and quote.load and not quote.victims:
                slots += quote.rates.slots
                left -= 1
                lost = 0.0  # what one more node helps is seen before another one loads
                yield self._load(node, quote, assignment)

    def _exchange(self, waiting: Sequence[Assignment]) -> list[Assignment]:
        """The load that shortens the queues most, in place of models that other nodes have in memory, too.

        The first chats settle how models are spread, and demand changes. A request gains nothing by a load
        that takes longer than its turn does, so without this nodes would stand idle beside a lasting queue.
        """
        best: tuple[float, list[Assignment]] = (0.0, [])
        for one in waiting:
            kind = self._kinds[one.entry.kind]
            for node in kind.cold:
                if node.changed or node.view.tier > one.chosen.node.view.tier:
                    continue
                if not node.view.may_load_ahead(kind.model):
                    continue
                offer = node.quote((kind.model, one.entry.kind, one.request.max_output), one.request)
                if offer.now_open and offer.victims:
                    gain = self._shortens(one, kind, node, offer)
                    least = max(self.policy.exchange_gain, offer.load / self.policy.demand_horizon)
                    if gain > max(least, best[0]):
                        best = gain, [self._load(node, offer, one)]
        return best[1]

    def _shortens(self, waiting: Assignment, kind: Kind, node: VirtualNode, offer: Quote) -> float:
        """How many fewer requests wait, on average, when a node loads a model in place of others.

        Those that wait see the pace of the node that they wait for. The others lose what this one adds to
        theirs: otherwise a fast node among slow ones would seem worth more to the model that it does not
        have, and would change for ever.
        """
        if not all(self._may_give(blob, node) for blob in offer.victims):
            return -math.inf
        slots, more, near = self._slots(kind), offer.rates.slots, waiting.chosen
        gain = self._queue(offer.blob, slots, near.node.pace(near.quote.blob, slots))
        gain -= self._queue(offer.blob, slots + more, near.node.pace(near.quote.blob, slots + more))
        for blob in offer.victims:
            warm, own = self._timelines.warm[blob], node.runners[blob].slots
            there, left = (0, own) if blob in node.served else (own, 0)
            gain -= self._queue(blob, warm.slots - left, warm.pace - node.pace(blob, left))
            gain += self._queue(blob, warm.slots + there, warm.pace + node.pace(blob, there))
        return gain

    def _may_give(self, blob: str, node: VirtualNode) -> bool:
        """Whether another node, not further away, has some weights in memory and may be asked for them."""
        copies, until = self.promised.get(blob, (0, 0.0))
        if until > self._view.now and self._timelines.moment.held[blob] <= copies:
            return False
        warm, nodes = self._timelines.warm.get(blob), self._timelines.nodes
        names = chain(warm.ready, [name for _, name in warm.busy]) if warm else ()
        return any(nodes[name].view.tier <= node.view.tier for name in names if name != node.view.name)

    def _queue(self, blob: str, slots: int, pace: float) -> float:
        demand = self._timelines.moment.demand.get(blob, 0.0)
        return mean_queue(demand, pace, slots, self.policy.demand_horizon)

    def _lost(self, assignment: Assignment) -> float:
        """Seconds that chats lose within the horizon, as each warm node has a prompt that one overwrites."""
        demand = self._timelines.moment.demand.get(assignment.chosen.quote.blob, 0.0)
        harm = min([cost.harm for cost in assignment.costs if cost.quote.reused], default=0.0)
        return harm * max(1.0, demand * self.policy.demand_horizon)

    def _leaves_models_out(self, node: VirtualNode, model: str) -> bool:
        """Whether a node has other models that no node has in memory."""
        held, own = self._timelines.moment.held, node.view.models[model].blob
        return any(not held[other.blob] for other in node.view.models.values() if other.blob != own)

    @staticmethod
    def _is_early(node: VirtualNode, busy: int, slots: int) -> bool:
        """Whether it is too early to choose a model for a node that has no room for all."""
        return busy <= slots and not node.has_room_for_all()

    def _load(self, node: VirtualNode, quote: Quote, assignment: Assignment) -> Assignment:
        """A load for those who will ask for the same as a request."""
        request, models = assignment.request, (assignment.asked_for,)
        load = FleetRequest(
            f"{request.id} {node.view.name}",
            "",
            models,
            context=request.context,
            options=request.options,
            background=True,
            load_only=True,
        )
        return _load_assignment(load, node, quote, self._view.now, self.policy)

    def _kind_of(self, name: str, entries: Sequence[WaitingRequest]) -> Kind | None:
        """The requests of a kind, with the first of their models that any node has; None: no node has any."""
        first = entries[0]
        for model in first.models:
            having = self._timelines.having(model)
            if any(name not in first.tried for name in having.nodes):
                return Kind(name, entries, first.tried, model, having)
        return None

    def _has_ready(self, kind: Kind) -> bool:
        """Whether a node has the model in memory, and a slot free."""
        warm = [self._timelines.warm.get(blob) for blob in kind.having.blobs]
        return any(one.ready.keys() - kind.tried if kind.tried else one.ready for one in warm if one)

    def assign(self, entry: WaitingRequest, kind: Kind) -> Assignment | None:
        """Place one request on the timelines; None when no node may answer it."""
        request, policy, now = entry.request, self.policy, self._view.now
        pressing, ripe = entry.overtaken >= policy.overtake_limit, not entry.behind
        costs = self._costs(entry, kind, pressing=pressing)
        if not costs:
            return None
        chosen = self._choose(costs, request)
        may_harm = policy.background_cost_rate * (now - entry.came)
        starts = chosen.quote.now_open and (ripe or chosen.harm <= may_harm)
        if starts:
            self._take(chosen, request)
        elif ripe and chosen.quote.reused is None:
            self._take(chosen, request)  # it waits for a load there: that node is kept for it
            kind.hopeless = False
        if pressing and not starts and chosen.quote.reused is None and chosen.name in self._timelines.open:
            chosen.node.reserve()  # one that waits for a slot of its own model gets the next one anyway
            self._touch(chosen.node)
            kind.hopeless = False
        asked = {cost.name for cost in costs}
        unasked = [node for node in kind.cold if node.view.name not in asked]
        return Assignment(entry, kind.model, chosen, costs, unasked, starts, policy, now - entry.came)

    def _pass_over(self, kind: Kind, missed: Assignment) -> None:
        """Go on with the first one behind that may begin now though this one cannot.

        Each that is passed over will use the slots that are free next, so those behind wait longer, until
        something that can begin now, such as a load, costs less. The more were looked at to no purpose, the
        more are passed over, so a long queue takes no longer.
        """
        chosen = missed.chosen
        each = self._seconds(chosen, missed.request) / max(1, self._slots(kind))
        if self._is_small():
            enough = 0.0
        elif self._has_ready(kind):  # it waits for its prefix, say, where those behind have none
            enough = 2.0 ** max(0, kind.misses - FEW_MISSES) - 1
        else:
            saves = [cost.total - chosen.total for cost in missed.costs if cost.quote.now_open]
            saves += [node.load_seconds(kind.model) - chosen.total for node in missed.unasked]
            enough = max(min(saves, default=math.inf) / each, 2 ** (kind.misses - 1) - 1)
        passed = int(min(enough, len(kind.waiting) - kind.seen))
        kind.seen += passed
        self._delays[kind.model] += (passed + (chosen.quote.reused is not None)) * each

    def _price(self, kind: Kind) -> float:
        """What a second of a slot costs those who wait behind, in seconds: each waits for its share of it."""
        behind = len(kind.waiting) - kind.seen
        slots = self._slots(kind) if behind else 0
        return behind / slots if slots else 0.0

    def _slots(self, kind: Kind) -> int:
        """The slots of all nodes that have the model in memory."""
        warm = self._timelines.warm
        return sum([warm[blob].slots for blob in kind.having.blobs if blob in warm])

    def _costs(self, entry: WaitingRequest, kind: Kind, *, pressing: bool) -> list[NodeCost]:
        """The costs that may be the least: nodes that load are asked when waiting takes as long."""
        key, price = (kind.model, entry.kind, entry.request.max_output), self._price(kind)
        warm = self._warm(kind, entry.request)
        costs = self._ask(warm, key, entry.request, price, pressing=pressing)
        kind.cold = [node for node in kind.cold if not node.changed] or self._cold(kind)
        if not kind.cold:
            return costs
        best = min([cost.total for cost in costs], default=math.inf)
        shortest_load = min([node.load_seconds(kind.model) for node in kind.cold])
        enough = best * (1 + self.policy.tie_share) < shortest_load
        if entry.request.background or not enough:
            cold = self._ask(kind.cold, key, entry.request, price, pressing=pressing)
            costs += cold
            kind.cold = [cost.node for cost in sorted(cold, key=_total)[:FEW_BUSY]]
        return costs

    def _warm(self, kind: Kind, request: FleetRequest) -> list[VirtualNode]:
        """Of the nodes that have the model in memory those that hold the prompt, and those free first."""
        most, nodes = self.policy.candidates, self._timelines.nodes
        found: dict[str, VirtualNode] = {}
        for name in self._view.holders_of(request.blocks):
            if name in nodes and nodes[name].has(kind.model):
                found[name] = nodes[name]
        for blob in kind.having.blobs:
            if warm := self._timelines.warm.get(blob):
                ready = warm.ready
                found |= ready if len(ready) <= most else dict(self.dice.sample(list(ready.items()), most))
                for _, name in warm.busy[:FEW_BUSY]:
                    found[name] = nodes[name]
        return [node for name, node in found.items() if name not in kind.tried and node.has(kind.model)]

    def _cold(self, kind: Kind) -> list[VirtualNode]:
        """Some nodes that could load the model now, and those that can do so next."""
        found: list[VirtualNode] = []
        next_ones = FEW_BUSY
        for loads_now, name in self._timelines.loading_first():
            node = self._timelines.nodes[name]
            if kind.model in node.view.models and name not in kind.tried and not node.has(kind.model):
                next_ones -= not loads_now
                if next_ones < 0 or len(found) == self.policy.candidates:
                    break
                found.append(node)
        return found

    def _ask(
        self,
        nodes: Sequence[VirtualNode],
        key: QuoteKey,
        request: FleetRequest,
        price: float,
        *,
        pressing: bool,
    ) -> list[NodeCost]:
        """What each of some nodes would cost a request. Most of a decision's time is spent here."""
        costs: list[NodeCost] = []
        self._asked += len(nodes)
        blocks, tokens, background = request.blocks, request.tokens, request.background
        now, delay = self._view.now, self._delays[key[0]]
        for node in nodes:
            quote = node.quote(key, request)
            hit, own, hoped = 0, False, 0
            runner = quote.reused
            if runner is not None and blocks and len(runner.prefixes):
                newest = runner.keeps - runner.placed if runner.placed else None
                match = runner.prefixes.match(blocks, newest)
                hit, own, hoped = match.hit, match.own, match.hoped
            wait = max(0.0, quote.starts_at - now)
            if wait and runner is not None:
                wait += delay
            total = wait + quote.fixed + ((tokens - hit - hoped) * quote.pace + quote.head) * (1 + price)
            if not own and not pressing and (background or runner is None):
                total += quote.evict
            costs.append(NodeCost(total, wait, hit, own, node, quote))
        return costs

    def _choose(self, costs: Sequence[NodeCost], request: FleetRequest) -> NodeCost:
        """The cheapest, but a chat stays at home unless leaving saves enough.

        Of equals that which takes least from others, then by chance.
        """
        best = min(costs, key=_total)
        home = max((cost for cost in costs if cost.own), key=_hit, default=None)
        if home is not None:
            keeps = home.quote.now_open or not best.quote.now_open  # no free slot stays empty for a habit
            if keeps and home.total - best.total <= self._slack(home.total):
                best = home
        elif self.policy.unsynced_peers and (agreed := self._agreed(costs, best.total, request)):
            return agreed
        if best is home or not best.quote.now_open:
            return best
        limit = best.total * (1 + self.policy.tie_share)
        equal = [cost for cost in costs if cost.total <= limit and cost.quote.now_open]
        least = min([cost.harm for cost in equal])
        return self._among([cost for cost in equal if cost.harm <= least])

    def _slack(self, cost: float) -> float:
        """What leaving a place of this cost has to save."""
        return max(self.policy.hysteresis_seconds, self.policy.hysteresis_share * cost)

    def _agreed(self, costs: Sequence[NodeCost], best: float, request: FleetRequest) -> NodeCost | None:
        """Where any worker would put a chat that this one does not remember; None when there is no choice."""
        chat = request.chat
        if not chat or request.background:  # titles would overwrite the prefix that they are agreed for
            return None
        limit = best + self._slack(best)
        close = [cost for cost in costs if cost.total <= limit and cost.quote.reused and cost.quote.now_open]
        if len(close) < 2:  # noqa: PLR2004 - it takes two to choose
            return None
        total = sum([cost.node.running for cost in costs])
        weights = sum([cost.node.view.weight for cost in costs])
        free = [cost for cost in close if may_take(cost.node.running, total, cost.node.view.weight / weights)]
        return max(
            free, key=lambda cost: rendezvous_score(chat, cost.name, cost.node.view.weight), default=None
        )

    def _among(self, equal: Sequence[NodeCost]) -> NodeCost:
        """One of them by chance, as often as their nodes' weights say."""
        if len(equal) == 1:
            return equal[0]
        return self.dice.choices(equal, [cost.node.view.weight for cost in equal])[0]

    @staticmethod
    def _seconds(chosen: NodeCost, request: FleetRequest) -> float:
        """How long a request holds a slot."""
        rates = chosen.quote.rates
        output = predict_output(rates, background=request.background, limit=request.max_output)
        return chosen.prompt(request.tokens) + output * rates.token

    def _take(self, chosen: NodeCost, request: FleetRequest) -> None:
        quote, node = chosen.quote, chosen.node
        node.place(quote, request, self._seconds(chosen, request))
        self._touch(node)
        if quote.reused is None:
            self._loaded(quote)

    def _touch(self, node: VirtualNode) -> None:
        self._touched[node.view.name] = node
        self._timelines.list_again(node)

    def _loaded(self, quote: Quote) -> None:
        """A model was loaded on a timeline: what evicting it elsewhere costs has changed."""
        held = self._timelines.moment.held
        if self._held is None:
            self._held = held.copy()
        held.update([quote.blob])
        held.subtract(quote.victims)
        for blob in quote.victims:
            warm = self._timelines.warm.get(blob)
            names = [*warm.ready, *[name for _, name in warm.busy]] if warm else []
            if len(names) <= self.policy.candidates:  # of more than that, one less changes little
                for name in names:
                    self._timelines.nodes[name].forget_quotes()


def warm_load(
    view: FleetView, node: NodeView, request: FleetRequest, policy: RoutingPolicy, kept: Collection[str]
) -> Assignment | None:
    """A load at a node that nobody waits for; None: not now.

    It begins only where the node is free to load, and unloads nothing that anybody has asked for lately, and
    none of the weights that are `kept` likewise: two that do not fit would evict each other for ever.
    """
    held = Counter(runner.blob for one in view.nodes for runner in one.runners)
    virtual = VirtualNode(node, TimelineContext(policy, view.now, view.demand, view.returns, held))
    quote = virtual.quote((request.models[0], "warm", 0), request)
    if not quote.now_open or not quote.load or quote.evict > MOST_TAKEN_BY_WARMTH:
        return None
    if any(blob in kept for blob in quote.victims):
        return None
    return _load_assignment(request, virtual, quote, view.now, policy)


def _load_assignment(
    request: FleetRequest, node: VirtualNode, quote: Quote, now: float, policy: RoutingPolicy
) -> Assignment:
    """The assignment of a load that nobody waits for."""
    entry = WaitingRequest(request, request.models, 0.0, 0.0, 0, now)
    cost = NodeCost(quote.fixed, 0.0, 0, False, node, quote)  # noqa: FBT003 - `own`
    return Assignment(entry, request.models[0], cost, (cost,), (), True, policy)  # noqa: FBT003 - `starts`


def _total(cost: NodeCost) -> float:
    return cost.total


def _hit(cost: NodeCost) -> int:
    return cost.hit


# --- ollama_pack.routing.decide.strategies ---
# The plain ways to choose a node, for those who want no prediction: least busy, and random.
#
# They see the same nodes as late binding does, and wait in the same queue; failover, breakers, admission and
# draining are the scheduler's, and hold for all.


class PlainPlanner(Planner):
    """To one of the nodes that `pick` leaves, whatever it costs."""

    holds_back = False

    def plan(
        self,
        view: FleetView,
        waiting: Mapping[str, Sequence[WaitingRequest]],
    ) -> list[Assignment]:
        """Assign what can begin now, in fair order; the rest waits."""
        self._begin(view)
        found: list[Assignment] = []
        kinds = {name: kind for name, entries in waiting.items() if (kind := self._kind_of(name, entries))}
        for entry in merge(*waiting.values(), key=attrgetter("place")):
            kind = kinds.get(entry.kind)
            if kind is None:
                continue
            nodes = [self._timelines.nodes[name] for name in kind.having.nodes if name not in kind.tried]
            key = (kind.model, entry.kind, entry.request.max_output)
            costs = self._ask(nodes, key, entry.request, 0.0, pressing=False)
            if chosen := self.pick(costs):
                self._take(chosen, entry.request)
                waited = view.now - entry.came
                found.append(Assignment(entry, kind.model, chosen, costs, (), True, self.policy, waited))  # noqa: FBT003 - `starts`
            else:
                del kinds[entry.kind]  # no node has a slot for it
        self._end()
        return found

    def pick(self, costs: Sequence[NodeCost]) -> NodeCost | None:
        """One of the nodes; None: none will do."""
        raise NotImplementedError


class LeastBusyPlanner(PlainPlanner):
    """To the node with the fewest running requests for its slots, of those that have a slot free.

    A runner that is being loaded has its slots, too. Among equals the lower tier comes first, then a node
    that has the model in memory, then chance.
    """

    def pick(self, costs: Sequence[NodeCost]) -> NodeCost | None:
        """The idlest."""
        free = [cost for cost in costs if _has_slot(cost)]
        if not free:
            return None
        best = min(map(_strategies__rank, free))
        return self._among([cost for cost in free if _strategies__rank(cost) == best])


def _strategies__rank(cost: NodeCost) -> tuple[float, int, bool]:
    node, quote = cost.node, cost.quote
    return node.running / quote.rates.slots, node.view.tier, quote.reused is None


def _has_slot(cost: NodeCost) -> bool:
    runner = cost.quote.reused
    return cost.quote.now_open or (runner is not None and runner.has_slot)


class RandomPlanner(PlainPlanner):
    """To any node that has the model, at once and by chance alone, as Open WebUI itself does."""

    def pick(self, costs: Sequence[NodeCost]) -> NodeCost | None:
        """Any."""
        return self.dice.choice(costs) if costs else None


# --- ollama_pack.routing.state.returns ---
# Whether prompts are gone on with, learned for each set of weights and for each number of turns.
#
# Every prompt is followed for an hour or until it is gone on with. Old observations fade. Bounded.

TURNS = 4  # prompts with more turns count as ones with so many - 1
BACKGROUND_KIND = TURNS  # the kind of prompts that are nobody's turn
KINDS = TURNS + 1
MAX_FOLLOWED = 2048  # prompts of one set of weights
FADES_AFTER = 1024  # prompts of a kind: then what was seen before counts half
USUAL_SHARE = 0.5  # of prompts that are gone on with, before anything was observed, and
USUAL_SECONDS = 60.0  # how long after they usually are
DOUBT = 4.0  # so many prompts without a return are bad luck


def _usual(span: int) -> float:
    """The share of a span, before anything was observed."""

    def left(age: float) -> float:
        return 1 - USUAL_SHARE * (1 - exp(-age / USUAL_SECONDS))

    return 1 - left(begins_at(span + 1)) / left(begins_at(span))


_returns__USUAL = tuple(map(_usual, range(SPANS)))


@dataclass(slots=True, eq=False)
class FollowedPrompt:
    """A prompt that may be gone on with.

    Attributes:
        chains: of its blocks.
        tokens: its length.
        shared: tokens that other prompts begin with as well.
        kind: its turn, or that it is a background call's.
        asked_at: when.
        returned: it was gone on with.
    """

    chains: tuple[int, ...]
    tokens: int
    shared: int
    kind: int
    asked_at: float
    returned: bool = False


class LifeTable:
    """What was observed of one kind of prompts."""

    def __init__(self) -> None:
        self._returned = [0.0] * SPANS
        self._reached = [0.0] * SPANS

    def reached(self, span: int) -> None:
        """A prompt has become so old."""
        if self._reached[0] >= FADES_AFTER and span == 0:
            self._returned = [count / 2 for count in self._returned]
            self._reached = [count / 2 for count in self._reached]
        self._reached[span] += 1

    def returned(self, span: int, share: float) -> None:
        """A share of a prompt of this age came again."""
        self._returned[span] += share

    def curve(self) -> ReturnCurve:
        """What was observed, and what is usual as far as that has proved true."""
        expected = sum(usual * reached for usual, reached in zip(_returns__USUAL, self._reached, strict=True))
        proved = (sum(self._returned) + DOUBT / 2) / (expected + DOUBT / 2)
        return ReturnCurve(
            tuple(
                min(1.0, (returned + DOUBT * min(1.0, proved * usual)) / (reached + DOUBT))
                for usual, returned, reached in zip(_returns__USUAL, self._returned, self._reached, strict=True)
            )
        )


class ReturnLearner:
    """Follows the prompts for one set of weights. Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._tables = [LifeTable() for _ in range(KINDS)]
        self._by_chain: dict[int, FollowedPrompt] = {}
        self._followed: OrderedDict[int, FollowedPrompt] = OrderedDict()
        self._ages: list[deque[FollowedPrompt]] = [deque() for _ in range(SPANS)]
        self._count = 0
        self._curves: tuple[ReturnCurve, ...] | None = None
        self._curves_at = 0.0

    def asked(self, blocks: Sequence[PromptBlock], now: float, *, background: bool) -> FollowedPrompt | None:
        """A prompt is sent: what it goes on with has returned, and from now on it is followed itself."""
        if not blocks:
            return None
        covered, before = self._longest(blocks)
        kind, shared = BACKGROUND_KIND if background else 0, covered
        if before is not None and covered > before.shared:
            share = (covered - before.shared) / max(1, before.tokens - before.shared)
            self._tables[before.kind].returned(span_of(now - before.asked_at), min(1.0, share))
            if 2 * covered >= before.tokens:
                before.returned, shared = True, before.shared
                kind = kind if background else min(before.kind + 1, TURNS - 1)
        prompt = FollowedPrompt(tuple(block.chain for block in blocks), blocks[-1].upto, shared, kind, now)
        self._follow(prompt)
        return prompt

    def _longest(self, blocks: Sequence[PromptBlock]) -> tuple[int, FollowedPrompt | None]:
        """The tokens of the longest beginning that is known, and the last prompt that had it."""
        low, high = 0, len(blocks)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if blocks[middle].chain in self._by_chain else (low, middle)
        return (blocks[low - 1].upto, self._by_chain[blocks[low - 1].chain]) if low else (0, None)

    def _follow(self, prompt: FollowedPrompt) -> None:
        self._count += 1
        self._followed[self._count] = prompt
        for chain in prompt.chains:
            self._by_chain[chain] = prompt
        self._tables[prompt.kind].reached(0)
        self._ages[0].append(prompt)
        if len(self._followed) > MAX_FOLLOWED:
            _, oldest = self._followed.popitem(last=False)
            for chain in oldest.chains:
                if self._by_chain.get(chain) is oldest:
                    del self._by_chain[chain]

    def curves(self, now: float) -> tuple[ReturnCurve, ...]:
        """What is known now of each kind; looked at again each second."""
        if self._curves is None or now >= self._curves_at + 1.0:
            self._grow_old(now)
            self._curves_at = now
            self._curves = tuple(table.curve() for table in self._tables)
        return self._curves

    def _grow_old(self, now: float) -> None:
        for span, (young, older) in enumerate(zip(self._ages, self._ages[1:], strict=False), start=1):
            while young and now - young[0].asked_at >= begins_at(span):
                prompt = young.popleft()
                if not prompt.returned:
                    self._tables[prompt.kind].reached(span)
                    older.append(prompt)
        while self._ages[-1] and len(self._ages[-1]) > MAX_FOLLOWED:
            self._ages[-1].popleft()


# --- ollama_pack.routing.state.cluster ---
# The nodes of a fleet as they are known, and the events that tell of them.

MAX_FOLLOWED_BLOBS = 64  # sets of weights whose prompts are followed
HOLDER_STRIDE = 8  # blocks of a prompt, of which one is remembered with the nodes that it went to
MAX_HOLDERS = 4  # nodes that are remembered for a block
MAX_REMEMBERED = 32768  # blocks
MAX_AUTOS = 256  # automatic names


class Cluster:
    """What decisions see. Names are those of the rows; times are seconds on the caller's clock.

    Attributes:
        nodes: by name.
        demand: how often each set of weights is asked for.
        remote: requests of other workers at these nodes.
        stale_at: when the first node looks otherwise though nothing happens.
    """

    def __init__(
        self, rows: Iterable[NodeRow], clock: Callable[[], float], policy: RoutingPolicy, priors: ModelRates
    ) -> None:
        self.nodes: dict[str, NodeState] = {}
        self._policy, self._priors = policy, priors
        self._usual: dict[str, ModelRates] = {}  # by blob, what nodes that have measured it have on average
        self._clock = clock
        self._autos: dict[str, None] = {}  # automatic names that were asked for lately
        self.demand = DemandMeter()
        self._returns: dict[str, ReturnLearner] = {}
        self._usual_options: dict[str, tuple[int, RunnerOptions]] = {}
        self._holders: dict[int, tuple[str, ...]] = {}
        self._views: dict[str, NodeView] = {}
        self._changed: set[str] = set()  # since the last decision
        self._others = False  # other nodes than at the last decision
        self._stale: dict[str, None] = {}  # in the order of the rows, as they are shown
        self.stale_at = -math.inf
        self.remote = RemoteRequests(clock, self.demand, self._prompt_sent_elsewhere, self.learn)
        for row in rows:
            self.add(row)

    def add(self, row: NodeRow) -> None:
        """A node is there from now on; nothing is known of it before `probed`."""
        node = self.nodes[row.name] = NodeState(row, self._policy, self._expected)
        self.remote.nodes[node_key(row)] = node
        self._others = True
        self._stale[row.name] = None
        node.on_change = self._stale.setdefault

    def remove(self, name: str) -> None:
        """A node is there no more. None of this worker's requests may be at it."""
        node = self.nodes.pop(name)
        node.on_change = lambda _: None
        if self.remote.nodes.get(node_key(node.row)) is node:  # no newer one has its address
            del self.remote.nodes[node_key(node.row)]
        for known in (self._stale, self._views):
            known.pop(name, None)
        self._changed.discard(name)
        self._others = True

    def probed(
        self,
        name: str,
        models: Mapping[str, InstalledModel],
        residents: Iterable[ResidentModel] | None,
        asked_at: float = -math.inf,
    ) -> None:
        """A node has answered a probe.

        Args:
            name: the node's.
            models: what it has (`/api/tags`, `/api/show`).
            residents: what it has in memory (`/api/ps`).
            asked_at: when it was asked: after its last failure it is well again.
        """
        node, now = self.nodes[name], self._clock()
        node.changed()
        node.probed(models, residents, now)
        for auto in self._autos:  # what waits may be answered by another variant now
            offer = node.offer(auto)
            if offer is not None and offer[1]:
                node.set_auto(auto, offer[0])
        if node.breaker.state(now) == "half-open" or node.breaker.failed_at < asked_at:
            node.breaker.succeeded()

    def learn(self, node: NodeState, blob: str, lesson: Lesson) -> None:
        """Take in what an answered request teaches of a node, and of those that have measured less."""
        node.stats(blob).learn(lesson)
        node.learned(blob)
        if are_near(node.known(blob), self._expected(blob)):
            return
        having = [one for one in self.nodes.values() if one.has_weights(blob)]
        usual = usual_rates([one.stats(blob).rates for one in having], self._priors)
        if are_near(usual, self._expected(blob)):
            return  # each new node would have all others looked at anew for nothing
        if blob not in self._usual and len(self._usual) >= MAX_FOLLOWED_BLOBS:
            del self._usual[next(iter(self._usual))]
        self._usual[blob] = usual
        for one in having:
            known = one.known(blob)
            if one is not node and not (known.learned and known.load_measured):
                one.learned(blob)

    def _expected(self, blob: str) -> ModelRates:
        """What to expect of a node that has not measured some weights: as from those that have."""
        return self._usual.get(blob, self._priors)

    def sized(self, name: str, room: int) -> None:
        """Somebody knows how many bytes of models a node has had in memory together."""
        self.nodes[name].memory.seen_together(room)
        self.nodes[name].changed()

    def gpu_memory(self, name: str, total: int, used: int, gpus: int) -> None:
        """Somebody, such as `gpu_agent`, knows how much memory a node's GPUs have, and how much is used."""
        node = self.nodes[name]
        before = node.memory.room
        node.memory.told(total, used, gpus, sum(runner.size for runner in node.runners.values()))
        if node.memory.room != before:
            node.changed()

    def offer_variants(self, auto: str) -> None:
        """Let each node answer for an automatic name with the variant that fits there.

        Nodes on which even the smallest would be computed in part by the CPU are left out, unless that is so
        on all.
        """
        auto = fold_name(auto)
        self._autos.pop(auto, None)
        self._autos[auto] = None
        while len(self._autos) > MAX_AUTOS:
            forgotten = next(iter(self._autos))
            del self._autos[forgotten]
            for node in self.nodes.values():
                node.set_auto(forgotten, None)
        offers = {name: node.offer(auto) for name, node in self.nodes.items()}
        some_fit = any(offer is not None and offer[1] for offer in offers.values())
        for name, offer in offers.items():
            usable = offer is not None and (offer[1] or not some_fit)
            self.nodes[name].set_auto(auto, offer[0] if offer and usable else None)

    def activity(self, name: str, running: int, waiting: int, asked_at: float = math.inf) -> None:
        """A node's engine tells how many requests it answers and holds in its queue, over all clients.

        Args:
            name: the node.
            running: those that it answers.
            waiting: those in its queue.
            asked_at: when it was asked, which may have been before one of ours ended: then nobody knows
                whether that one counts.
        """
        node = self.nodes[name]
        if node.left_at < asked_at:
            node.changed()
            node.counts(running, waiting, self._clock())

    def gpu_busy(self, name: str, utilization: float) -> None:
        """Somebody, such as `gpu_agent`, knows how busy a node's busiest GPU is, in percent."""
        node = self.nodes[name]
        node.changed()
        node.gpu_busy(utilization, self._clock())

    def unreachable(self, name: str) -> None:
        """A node has not answered a probe."""
        node, now = self.nodes[name], self._clock()
        node.changed()
        node.breaker.failed(now)

    def drain(self, name: str, *, draining: bool = True) -> None:
        """Let a node finish what it has and give it nothing new, or take it back."""
        self.nodes[name].draining = draining
        self.nodes[name].changed()

    def view(self) -> FleetView:
        """All that a decision goes by, as of now."""
        return self.view_at(self._clock())

    def refresh(self, now: float) -> None:
        """Look at the nodes that may look otherwise than before."""
        if now >= self.stale_at:
            self._stale.update(dict.fromkeys(self.nodes))
        if self._stale:
            for name in self._stale:
                seen = self.nodes[name].view(now)
                if self._views.get(name) is not seen:
                    self._views[name] = seen
                    self._changed.add(name)
            self._stale.clear()
            self.stale_at = min([node.next_change for node in self.nodes.values()], default=math.inf)

    def view_at(self, now: float) -> FleetView:
        """The same as of a moment, with the nodes that look otherwise than at the last decision."""
        self.refresh(now)
        returns = {blob: learner.curves(now) for blob, learner in self._returns.items()}
        nodes = tuple(self._views.values())
        changed = None if self._others else self._changed
        return FleetView(now, nodes, self.demand.rates(now), returns, changed, self._views, self._holders)

    def decided(self) -> None:
        """A decision was made on the last view: changes count from here on."""
        self._changed.clear()
        self._others = False

    def usual_options(self, blob: str) -> tuple[int, RunnerOptions]:
        """The context and the options that the last chat with these weights asked for."""
        return self._usual_options.get(blob, (0, ()))

    def asked_for(self, blob: str, request: FleetRequest) -> None:
        """A chat asks for these weights."""
        self._usual_options.pop(blob, None)
        self._usual_options[blob] = request.context, request.options
        if len(self._usual_options) > MAX_FOLLOWED_BLOBS:
            del self._usual_options[next(iter(self._usual_options))]

    def prompt_sent(self, node: str, blob: str, request: FleetRequest, now: float) -> tuple[int, int]:
        """A prompt goes to a node: it may be what another one goes on with.

        Returns:
            The tokens of it that others begin with as well, and what its return is learned by.
        """
        if blob not in self._returns and len(self._returns) >= MAX_FOLLOWED_BLOBS:
            del self._returns[next(iter(self._returns))]
        learner = self._returns.setdefault(blob, ReturnLearner())
        followed = learner.asked(request.blocks, now, background=request.background)
        if followed is None:
            return 0, 0
        self._remember_holder(node, request.blocks)
        return followed.shared, followed.kind

    def _prompt_sent_elsewhere(
        self, node: str, blob: str, blocks: tuple[PromptBlock, ...]
    ) -> tuple[int, int]:
        return self.prompt_sent(node, blob, FleetRequest("", "", (), blocks=blocks), self._clock())

    def _remember_holder(self, node: str, blocks: Sequence[PromptBlock]) -> None:
        for block in (*blocks[HOLDER_STRIDE - 1 :: HOLDER_STRIDE], blocks[-1]):
            before = self._holders.pop(block.chain, ())
            self._holders[block.chain] = (node, *(one for one in before if one != node))[:MAX_HOLDERS]
        while len(self._holders) > MAX_REMEMBERED:
            del self._holders[next(iter(self._holders))]

    def can_answer(self, models: Iterable[str]) -> bool:
        """Whether any node may be asked for one of these now, by whatever name it lists it."""
        names = {fold_name(name) for model in models for name in auto_parts(model)[0]}
        return any(not names.isdisjoint(node.models) for node in self.view().nodes if node.weight > 0)


# --- ollama_pack.routing.state.peer_line ---
# Requests that wait at other workers stand in this worker's queue, too.
#
# So a free slot goes to the request that is first, wherever it waits, and what a user has elsewhere counts.
# A slot that comes free for another worker's request is left to that worker for a moment. If it is not taken
# then, the request steps aside for a while: its worker may see things otherwise, or may be gone.

MAX_PEER_ENTRIES = 4096
LEFT_SECONDS = 0.1  # for which a free slot is left to another worker's request
ASIDE_SECONDS = 1.0  # until a request whose worker did not take its slot is in line again


@dataclass(slots=True)
class PeerEntry:
    """A request of another worker.

    Attributes:
        worker: where it waits, or was sent from.
        entry: its place in our queue.
        serving: it is at a node.
        aside_until: it is out of line until then; None: it is not.
    """

    worker: str
    entry: WaitingRequest
    serving: bool = False
    aside_until: float | None = None


class PeerLine:
    """Applies what other workers tell of their requests to our queue. Bounded."""

    def __init__(self, queue: FairQueue, expect: Callable[[FleetRequest], float]) -> None:
        """Begin without any.

        Args:
            queue: the scheduler's own.
            expect: the seconds of service that a request may take. Raises NoNodeError: no node has its model.
        """
        self._queue = queue
        self._expect = expect
        self._there: dict[str, PeerEntry] = {}
        self._left: dict[str, float] = {}  # request → since when a free slot is left to it

    def __len__(self) -> int:
        return len(self._there)

    def apply(self, worker: str, event: FleetEvent, now: float) -> None:
        """Take in what a worker tells."""
        match event:
            case WaitingEvent():
                self._waits(worker, _waiting_request(event), now - event.waited, now)
            case BoundEvent() if event.user:
                self._waits(worker, _bound_request(event), now, now)
                self._bound(event.request_id, now)
            case FinishedEvent(request_id, lesson=lesson):
                self._leave(request_id, max(0.0, lesson.spent.total - lesson.spent.load))
            case EndedEvent(request_id) | FailedEvent(request_id):
                self._leave(request_id)

    def _waits(self, worker: str, request: FleetRequest, came: float, now: float) -> None:
        if request.id in self._there or request.id in self._queue or len(self._there) >= MAX_PEER_ENTRIES:
            return
        try:
            cost = self._expect(request)
        except NoNodeError:
            return
        self._there[request.id] = PeerEntry(worker, self._queue.push_peer(request, came, now, cost))

    def _bound(self, request_id: str, now: float) -> None:
        peer = self._there.get(request_id)
        if peer and not peer.serving:
            self._back_in_line(peer)
            peer.serving = True
            self._queue.bound(request_id, now)

    def _leave(self, request_id: str, seconds: float | None = None) -> None:
        peer = self._there.pop(request_id, None)
        if peer is None:
            return
        if peer.serving:
            self._queue.ended(peer.entry, seconds)
        else:
            self._back_in_line(peer)
            self._queue.cancel(request_id)

    def _back_in_line(self, peer: PeerEntry) -> None:
        if peer.aside_until is not None:
            peer.aside_until = None
            self._queue.put_back(peer.entry)

    def forget(self, worker: str, but: Collection[str] = ()) -> None:
        """A worker is gone, or tells that only these are still there."""
        gone = [key for key, peer in self._there.items() if peer.worker == worker and key not in but]
        for request_id in gone:
            self._leave(request_id)

    def forget_all(self) -> None:
        """Nobody tells any more."""
        for request_id in list(self._there):
            self._leave(request_id)

    # --- slots that are left to them ---

    def refresh(self, now: float) -> None:
        """Before a decision: requests that did not take their slot step aside, others step back in line."""
        for request_id, since in list(self._left.items()):
            peer = self._there.get(request_id)
            if peer and not peer.serving and peer.aside_until is None and since + LEFT_SECONDS <= now:
                self._queue.step_aside(peer.entry)
                peer.aside_until = now + ASIDE_SECONDS
        for peer in self._there.values():
            if peer.aside_until is not None and peer.aside_until <= now:
                self._back_in_line(peer)

    def leave_slots(self, request_ids: Iterable[str], now: float) -> float:
        """After a decision: these could begin now. Returns when to decide again if they have not."""
        self._left = {request_id: self._left.get(request_id, now) for request_id in request_ids}
        return min(self._left.values(), default=math.inf) + LEFT_SECONDS


def _waiting_request(event: WaitingEvent) -> FleetRequest:
    return FleetRequest(
        event.request_id,
        event.user,
        event.models,
        blocks=event.blocks,
        max_output=event.max_output,
        context=event.context,
        options=event.options,
        background=event.background,
    )


def _bound_request(event: BoundEvent) -> FleetRequest:
    return FleetRequest(
        event.request_id, event.user, (event.model,), blocks=event.blocks, background=event.background
    )


# --- ollama_pack.routing.state.running ---
# A request at a node, as the scheduler remembers it until it ends.


@dataclass(frozen=True, slots=True)
class Undo:
    """What a request has changed by being bound, as it was before."""

    evicted: Mapping[str, RunnerState]
    loading_until: float
    prefixes: tuple[KeptPrefix, ...]


@dataclass(slots=True)
class RunningRequest:
    """A request at a node, `since` when. `wanted` is as `InstalledModel.wanted` gives it."""

    entry: WaitingRequest
    assignment: Assignment
    node: NodeState
    runner: RunnerState
    beside: int
    match: MatchDepth
    undo: Undo
    wanted: tuple[int, RunnerOptions]
    since: float
    answering: bool = False

    def event(self, now: float) -> BoundEvent:
        """As other workers are told of it."""
        assignment, runner = self.assignment, self.runner
        loading = assignment.loads and not self.answering
        context, options = self.wanted
        return BoundEvent(
            request_id=assignment.request.id,
            node=node_key(self.node.row),
            model=assignment.model,
            blob=runner.blob,
            loads=assignment.loads,
            victims=assignment.victims,
            context=context,
            options=options,
            ready=max(0.0, runner.ready_at - now) if loading else 0.0,
            left=max(0.0, runner.ends.get(assignment.request.id, now) - now),
            blocks=assignment.request.blocks,
            user=assignment.request.user,
            background=assignment.request.background,
        )

    def lesson(self, spent: Durations) -> Lesson:
        """What it teaches, now that it is answered."""
        return Lesson(
            spent=spent,
            match=self.match,
            beside=self.beside,
            background=self.assignment.request.background,
            loaded=self.assignment.loads,
        )


# --- ollama_pack.routing.state.scheduler ---
# The requests that wait and run, and the decisions about them. No input, no output.
#
# What happens to a request goes to the scheduler, what is seen of the nodes to its `cluster`. Then `decide`
# returns what begins::
#
#     scheduler.submit(request)            # or cancel, first_token, finished, failed
#     scheduler.cluster.probed(name, …)    # or unreachable, activity, gpu_busy, drain
#     for assignment in scheduler.decide():   # send each to its node
#         ...
#
# Call `decide` after every event, and at `wake_at`. All is bounded: by the queue's limit, by the slots, and by
# the models that the nodes have.

MAX_FAILOVERS = 2
SOON = 0.002  # seconds; meanwhile others have the event loop
PROMISE_SECONDS = 30.0  # for which models that are kept in memory are, until somebody asks for that again
BACKGROUND_LOOK = 1.0  # seconds: a call that waits behind people may cost others a little more after each
_PRIORS = ModelRates()
STRATEGIES: Mapping[str, type[Planner]] = {
    "predicted_ttft": Planner,
    "least_busy": LeastBusyPlanner,
    "random": RandomPlanner,
}


class Scheduler:
    """Gives requests to nodes. Not thread-safe: one event loop, or one lock, around it.

    Attributes:
        cluster: the nodes as they are known.
        wake_at: when to decide again though nothing happens; None: whenever something does.
        listener: hears what happens to requests, for other workers.
    """

    def __init__(  # noqa: PLR0913 - what differs from one deployment or test to the next
        self,
        rows: Iterable[NodeRow],
        clock: Callable[[], float],
        dice: Random,
        *,
        max_queue: int = 64,
        policy: RoutingPolicy | None = None,
        priors: ModelRates = _PRIORS,
        strategy: str = "predicted_ttft",
    ) -> None:
        """Start without knowing anything of the nodes: no request is bound before `probed`.

        Args:
            rows: the nodes.
            clock: seconds, monotonic.
            dice: breaks ties; seed it, and all decisions can be repeated.
            max_queue: how many requests may wait.
            policy: weights and bounds.
            priors: what to believe of a node and a model before anything is measured.
            strategy: how nodes are chosen, one of `STRATEGIES`.

        Raises:
            ValueError: the strategy is unknown.
        """
        if strategy not in STRATEGIES:
            raise ValueError(
                message(
                    "strategy {strategy!r} is unknown: the known ones are {known}",
                    strategy=strategy,
                    known=", ".join(STRATEGIES),
                )
            )
        self.policy = policy = policy or RoutingPolicy()
        self.cluster = Cluster(rows, clock, policy, priors)
        self.wake_at: float | None = None
        self._clock = clock
        self._planner = STRATEGIES[strategy](policy, dice)
        self._queue = FairQueue(max_queue, policy.background_wait)
        self._running: dict[str, RunningRequest] = {}
        self.listener: Listener = tell_nobody
        self._line = PeerLine(self._queue, lambda request: self._expect(request)[1])
        self._unheard: list[WaitingRequest] = []  # that may wait, and other workers do not know it

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    def ahead(self, request_id: str) -> int | None:
        """How many requests come before one that waits; None when it does not wait (any more)."""
        if request_id not in self._queue:
            return None
        return next(
            place
            for place, entry in enumerate(self._queue.order(self._clock()))
            if entry.request.id == request_id
        )

    def expected_wait(self, request_id: str) -> float | None:
        """Seconds until one that waits has a slot, roughly; None: no node has its model in memory."""
        entry, ahead = self._queue.get(request_id), self.ahead(request_id)
        if entry is None or ahead is None:
            return None
        view = self.cluster.view()
        left: list[float] = []
        free = 0
        service = []
        for node in view.nodes:
            blobs = {node.models[model].blob for model in entry.models if model in node.models}
            for runner in node.runners:
                if runner.blob in blobs:
                    left += [max(0.0, end - view.now) for end in runner.ends]
                    free += max(0, runner.slots - len(runner.ends))
                    service.append(node.rates[runner.blob].service)
        return slot_wait(ahead, left, free, service)

    # --- requests ---

    def submit(self, request: FleetRequest) -> FleetRequest | None:
        """Take a request in.

        Returns:
            A request that lost its place to this one, and no longer waits; None: there was room.

        Raises:
            NoNodeError: no node has any of its models.
            QueueFullError: too many wait already.
            ValueError: a request of this id is waiting or running.
        """
        if request.id in self._queue or request.id in self._running:
            raise ValueError(message("request {request!r} is already here", request=request.id))
        now = self._clock()
        for name in filter(is_auto, request.models):
            self.cluster.offer_variants(name)
        blobs, cost = self._expect(request)
        entry = self._queue.push(request, now, cost)
        self._unheard.append(entry)
        displaced = entry.displaced
        if displaced:
            self.listener(EndedEvent(displaced.id))
        for blob, share in blobs.items():
            self.cluster.demand.add(blob, now, share)
        return displaced

    def places_of(self, user: str) -> int:
        """How many requests of a user wait."""
        return self._queue.places_of(user)

    def _expect(self, request: FleetRequest) -> tuple[Mapping[str, float], float]:
        """The weights that it asks for, by their share, and the seconds of service that it may take."""
        for model in map(fold_name, request.models):
            having = [node for node in self.cluster.nodes.values() if model in node.listed]
            if having:
                counts = Counter(node.listed[model].blob for node in having)
                rates = having[0].known(having[0].listed[model].blob)
                output = predict_output(rates, background=request.background, limit=request.max_output)
                blobs = {blob: count / len(having) for blob, count in counts.items()}
                return blobs, request.tokens / rates.prompt + output * rates.token
        raise NoNodeError(request.models, tuple(self.cluster.nodes))

    def cancel(self, request_id: str) -> None:
        """Nobody wants the answer any more. An id that is not known is ignored."""
        if entry := self._queue.get(request_id):
            self._queue.cancel(request_id)
            if entry.shared:
                self.listener(EndedEvent(request_id))
        elif running := self._running.pop(request_id, None):
            self._leave(running)
            self._ended(running, self._clock() - running.since if running.answering else None)
            running.node.gave_up(running.assignment.model)
            self.listener(EndedEvent(request_id))

    def give_back(self, request_id: str) -> None:
        """A request that was bound is not sent: it waits again, at its old place. Unknown ids are ignored."""
        running = self._running.get(request_id)
        if running is None or running.answering:
            return
        del self._running[request_id]
        node, runner = running.node, running.runner
        node.changed()
        node.gave_up(running.assignment.model)
        runner.ends.pop(request_id, None)
        runner.mirror.restore(running.undo.prefixes)
        if running.assignment.loads and not runner.ends:
            node.take_back(runner, running.undo.evicted, running.undo.loading_until)
        self._ended(running)
        if not running.entry.request.load_only:
            self._queue.put_back(running.entry)
            self._unheard.append(running.entry)

    def running(self) -> Iterable[BoundEvent]:
        """What is at nodes now, to be told to a worker that has just come."""
        now = self._clock()
        return [running.event(now) for running in self._running.values()]

    def waiting_events(self) -> Iterator[WaitingEvent]:
        """What waits at this worker, for one that has just come."""
        return map(self._waiting_event, [entry for entry in self._queue if not entry.peer])

    @property
    def request_ids(self) -> tuple[str, ...]:
        """All requests of this worker, at nodes or waiting."""
        return (*self._running, *(entry.request.id for entry in self._queue if not entry.peer))

    def is_idle(self, node: str) -> bool:
        """Whether no request of this worker is at a node."""
        return not any(running.node.row.name == node for running in self._running.values())

    def is_running(self, request_id: str) -> bool:
        """Whether it is at a node, as far as is known."""
        return request_id in self._running

    def bound_event(self, request_id: str) -> BoundEvent:
        """One of them."""
        return self._running[request_id].event(self._clock())

    def first_token(self, request_id: str) -> None:
        """The node has begun to answer."""
        running = self._running.get(request_id)
        if running is None or running.answering:
            return
        now = self._clock()
        running.answering = True
        running.node.gave_up(running.assignment.model)  # it answers: another one need not wait for its end
        running.node.changed()
        running.node.loaded(running.runner, now)
        running.runner.serves(running.wanted)
        request, blob = running.assignment.request, running.runner.blob
        if not running.assignment.loads:
            new = max(0, request.tokens - running.assignment.hit)
            running.node.stats(blob).slots.began(running.beside, now - running.since, new)
            running.node.learned(blob)
        rates = running.node.known(blob)
        output = predict_output(rates, background=request.background, limit=request.max_output)
        running.runner.ends[request_id] = now + output * rates.token
        self.listener(BegunEvent(request_id, output * rates.token))

    def finished(self, request_id: str, spent: Durations) -> None:
        """The node has answered, and reports how long it took."""
        running = self._running.pop(request_id, None)
        if running is None:
            return
        self._leave(running)
        self._ended(running, max(0.0, self._clock() - running.since - spent.load))
        running.node.succeeded(running.assignment.model)
        running.runner.mirror.finished(running.assignment.request.blocks, spent.decode_count, self._clock())
        lesson = running.lesson(spent)
        blob = running.runner.blob
        self.cluster.learn(running.node, blob, lesson)
        self.listener(FinishedEvent(request_id, node_key(running.node.row), blob, lesson))

    def was_busy(self, request_id: str, *, pause: float | None, waits: bool) -> bool:
        """The node took no further request of this model.

        Args:
            request_id: the request.
            pause: for so many seconds; None: it does not say.
            waits: the request waits for the same node if there is no other.

        Returns:
            Whether it waits. If not, tell the user.
        """
        if (running := self._running.pop(request_id, None)) is None:
            return False
        self._leave(running)
        self._ended(running)
        again = self._fails_over(running)
        alone = waits and not again
        running.node.busy(running.assignment.model, self._clock(), pause=pause)
        self.listener(EndedEvent(request_id))  # other workers learn by themselves for how long
        if again or alone:
            self._wait_again(running, "" if alone else running.node.row.name)
        return again or alone

    def failed(self, request_id: str, *, node_down: bool, hung: bool = False, blamed: bool = True) -> bool:
        """The node has failed before the first token, or in the middle of an answer.

        Args:
            request_id: the request.
            node_down: it is the node (no connection, no answer to a probe), not one model on it.
            hung: the model said nothing for as long as it could: nobody else is to wait for it.
            blamed: the fault is the node's. If not, it may be the request's: `blame` may be called later.

        Returns:
            Whether it waits for another node now. If not, tell the user.
        """
        running = self._running.pop(request_id, None)
        if running is None:
            return False
        self._leave(running)
        self._ended(running)
        node, model = running.node, running.assignment.model
        running.runner.mirror.clear()
        if blamed:
            node.failed(model, self._clock(), node_down=node_down, hung=hung)
            self.listener(FailedEvent(request_id, node_down, hung))
        else:
            if running.answering:
                node.broke_off(model, running.assignment.request.user, self._clock())
            else:
                node.gave_up(model)
            self.listener(EndedEvent(request_id))
        if again := self._fails_over(running):
            self._wait_again(running, node.row.name)
        return again

    def _fails_over(self, running: RunningRequest) -> bool:
        """Whether another node may answer it."""
        return not running.answering and len(running.entry.tried) < MAX_FAILOVERS and self._elsewhere(running)

    def _wait_again(self, running: RunningRequest, failed_node: str) -> None:
        self._queue.put_back(running.entry, failed_node)
        running.entry.shared = False
        self._unheard.append(running.entry)

    def blame(self, request_id: str, name: str, model: str, *, hung: bool) -> None:
        """A node failed a request that another one has begun to answer: so the fault was the node's."""
        node = self.cluster.nodes.get(name)
        if node is None:  # it has left the table meanwhile
            return
        node.failed(model, self._clock(), node_down=False, hung=hung)
        self.listener(BlamedEvent(request_id, node_key(node.row), model, hung))

    def _elsewhere(self, running: RunningRequest) -> bool:
        tried = running.entry.tried | {running.node.row.name}
        others = [one for name, one in self.cluster.nodes.items() if name not in tried and one.row.weight > 0]
        return any(model in node.listed for node in others for model in running.entry.models)

    def has_another(self, request_id: str) -> bool:
        """Whether a request that is at a node could go to another one, and be answered by the same model."""
        running = self._running.get(request_id)
        if running is None or len(running.entry.tried) >= MAX_FAILOVERS:
            return False
        model, passed_over = running.assignment.asked_for, {running.node.row.name, *running.entry.tried}
        others = (node for node in self.cluster.view().nodes if node.name not in passed_over)
        return any(node.weight > 0 and model in node.models for node in others)

    def loads(self, models: Iterable[str]) -> Iterator[tuple[str, str, float]]:
        """What nodes that have one of these models load now, as is believed: node, model, since when."""
        names = set(map(fold_name, models))
        for name, node in self.cluster.nodes.items():
            if not names.isdisjoint(node.listed):
                for runner in node.runners.values():
                    if runner.loading:
                        yield name, runner.model, runner.since

    def is_held_up(self, request_id: str) -> bool:
        """Whether one that waits does so because another user's long answers hold the slots.

        Some user has several more in service than this one at nodes that could answer it, or is alone there.
        """
        entry = self._queue.get(request_id)
        if entry is None:
            return False
        serving = Counter(
            running.assignment.request.user
            for running in self._running.values()
            if any(model in running.node.listed for model in entry.models)
            and not running.entry.request.load_only
        )
        own = serving.pop(entry.request.user, 0)
        return bool(serving) and (max(serving.values()) > own + 1 or (not own and len(serving) == 1))

    def refused(self, request_id: str) -> None:
        """The node answered with 4xx: the request is at fault, and tells nothing of the node."""
        self.cancel(request_id)

    def _ended(self, running: RunningRequest, seconds: float | None = None) -> None:
        """As `FairQueue.ended`. A load that nobody waits for is no user's."""
        if not running.entry.request.load_only:
            self._queue.ended(running.entry, seconds)

    def _leave(self, running: RunningRequest) -> None:
        running.node.changed()
        running.node.left(running.runner, running.assignment.request.id, self._clock())
        if running.assignment.loads and not running.answering:  # whether it was loaded, the next probe tells
            running.node.loaded(running.runner, self._clock())

    # --- other workers ---

    def hear(self, worker: str, event: FleetEvent) -> None:
        """Another worker tells what happens to a request of its own."""
        self.cluster.remote.apply(worker, event)
        self._line.apply(worker, event, self._clock())

    def forget_peer(self, worker: str, but: Collection[str] = ()) -> None:
        """A worker is gone, or tells that only these requests are still there."""
        there = frozenset(but)
        self.cluster.remote.forget(worker, there)
        self._line.forget(worker, there)

    def forget_peers(self) -> None:
        """Nobody tells any more."""
        self.cluster.remote.forget_all()
        self._line.forget_all()

    def _share_waiting(self) -> None:
        """Tell other workers of the requests that no node could begin at once."""
        for entry in self._unheard:
            if not entry.shared and self._queue.get(entry.request.id) is entry:
                entry.shared = True
                self.listener(self._waiting_event(entry))
        self._unheard.clear()

    def _waiting_event(self, entry: WaitingRequest) -> WaitingEvent:
        request = entry.request
        return WaitingEvent(
            request_id=request.id,
            user=request.user,
            models=request.models,
            blocks=request.blocks,
            max_output=request.max_output,
            context=request.context,
            options=request.options,
            background=request.background,
            waited=max(0.0, self._clock() - entry.came),
        )

    # --- decisions ---

    def decide(self) -> list[Assignment]:
        """Which waiting requests begin now. They count as running from here on."""
        now = self._clock()
        self.cluster.remote.expire(now)
        self._line.refresh(now)
        if not len(self._queue):
            self._unheard.clear()
            self._line.leave_slots((), now)
            self.wake_at = None
            return []
        planned = self._planner.plan(self.cluster.view_at(now), self._queue.kinds(now))
        self.cluster.decided()
        starting = [one for one in planned if one.starts]
        started = [self._start(one, now) for one in starting if not one.entry.peer and self._allows(one, now)]
        left_until = self._line.leave_slots([one.request.id for one in starting if one.entry.peer], now)
        self._share_waiting()
        self.wake_at = now + SOON if self._planner.exhausted else self._next_wake(now, left_until)
        return started

    def load_ahead(self) -> list[Assignment]:
        """Loads that begin now though nobody waits for them: to be asked for after `decide`.

        Each counts as running until `finished`, `load_failed` or `cancel`.
        """
        now, loads = self._clock(), self._planner.ahead
        self._planner.ahead = []
        return [self._start(one, now) for one in loads if self._allows(one, now)]

    def warm(self, model: str, copies: int, others: Iterable[str] = ()) -> list[Assignment]:
        """Begin loads after which so many nodes have a model in memory, as far as that is possible now.

        Each counts as running until `finished`, `load_failed` or `cancel`. For `PROMISE_SECONDS` no such node
        is given to another model whose chats wait.

        Args:
            model: its name.
            copies: on so many nodes.
            others: models that are kept likewise, and are not unloaded for it.
        """
        now, name = self._clock(), fold_name(model)
        view = self.cluster.view()
        having = [node for node in view.nodes if name in node.models and node.weight > 0 and node.loads_ahead]
        blobs = {node.name: {runner.blob for runner in node.runners} for node in having}
        promised = self._planner.promised
        self._planner.promised = {blob: known for blob, known in promised.items() if known[1] > now}
        self._planner.promised |= {node.models[name].blob: (copies, now + PROMISE_SECONDS) for node in having}
        cold = [node for node in having if node.models[name].blob not in blobs[node.name]]
        missing = copies - (len(having) - len(cold))
        cold = [node for node in cold if node.may_load_ahead(name)]
        loads: list[Assignment] = []
        for node in sorted(cold, key=lambda node: (node.tier, -_free(node), node.name)):
            kept = {node.models[other].blob for other in map(fold_name, others) if other in node.models}
            if len(loads) >= missing:
                break
            request = self._warm_request(node, name, now)
            if load := warm_load(view, node, request, self.policy, kept):
                loads.append(self._start(load, now))
        return loads

    def _warm_request(self, node: NodeView, model: str, now: float) -> FleetRequest:
        """For a load as its chats want it: the first of them would have it loaded again for its `num_ctx`."""
        context, options = self.cluster.usual_options(node.models[model].blob)
        return FleetRequest(
            f"warm {model} {node.name} {now}",
            "",
            (model,),
            context=context,
            options=options,
            background=True,
            load_only=True,
        )

    def load_failed(self, request_id: str, *, lasts: bool = True) -> None:
        """A node has not done such a load. That shuts nothing: its options may be the reason.

        Args:
            request_id: the load.
            lasts: it will probably fail the next time, too. Not where the node is down or busy.
        """
        if running := self._running.get(request_id):
            self.cancel(request_id)
            running.node.did_not_load(running.runner, self._clock(), grows=lasts)

    def _allows(self, assignment: Assignment, now: float) -> bool:
        """Whether the breakers do: of several that go to a node that comes back, one tries."""
        return self.cluster.nodes[assignment.node].allows(assignment.model, now)

    def _start(self, assignment: Assignment, now: float) -> Assignment:
        """Let a request take the slot that it was assigned, and remember how to undo it."""
        entry, request = assignment.entry, assignment.request
        quote = assignment.chosen.quote
        if not request.load_only:
            self._queue.bound(request.id, now)
        node = self.cluster.nodes[assignment.node]
        node.changed()
        node.passed(assignment.model)
        evicted = {blob: node.runners[blob] for blob in assignment.victims if blob in node.runners}
        loading_until = node.loading_until
        wanted = node.models[assignment.model].wanted(request)
        if not request.load_only and not request.background:
            self.cluster.asked_for(quote.blob, request)
        runner = self._occupy(node, assignment, wanted, now)
        match, beside = runner.mirror.depth(request.blocks), len(runner.ends)
        undo = Undo(evicted, loading_until, runner.mirror.state())
        self._running[request.id] = RunningRequest(
            entry, assignment, node, runner, beside, match, undo, wanted, now
        )
        output = predict_output(quote.rates, background=request.background, limit=request.max_output)
        answers = 0.0 if request.load_only else output * quote.rates.token
        ends_at = now + assignment.terms.predict_ttft + answers
        shared, kind = self.cluster.prompt_sent(assignment.node, quote.blob, request, now)
        runner.begin(request, now, ends_at, shared, kind)
        return assignment

    def _occupy(
        self, node: NodeState, assignment: Assignment, wanted: tuple[int, RunnerOptions], now: float
    ) -> RunnerState:
        """The runner that answers: the one that is there, or a new one in place of others."""
        quote = assignment.chosen.quote
        if quote.reused is not None:
            return node.runners[quote.blob]
        return node.load(assignment.model, wanted, quote.victims, now)

    def _next_wake(self, now: float, left_until: float) -> float | None:
        """When to decide again though nothing happens: when a load ends, or a title has waited enough."""
        if not len(self._queue):
            return None
        self.cluster.refresh(now)
        due = [self.cluster.stale_at, self._planner.look_again, left_until]
        if (until := self.cluster.remote.expires_at()) is not None:
            due.append(until)
        if (until := self._queue.ripens_at()) is not None:
            due.append(min(until, now + BACKGROUND_LOOK))
        return min([when for when in due if now < when < math.inf], default=None)


def _free(node: NodeView) -> int:
    """Bytes of a node's memory that no model has."""
    return node.room - sum(runner.size for runner in node.runners)


# --- ollama_pack.routing.warm ---
# The `warm` valve: models that are kept in memory at certain hours, a row a line.
#
# For example::
#
#     llama3:8b    = Mon-Fri 07:30-17:00
#     qwen3:14b    = Mon-Fri 08:00-12:00, Sat 09:00-11:00  copies=2
#     mixtral:8x7b = 22:00-02:00  zone=Asia/Shanghai

MAX_WARM_ROWS = 200
MAX_COPIES = 64
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN = re.compile(
    r"(?:(?P<days>[a-z]{3}(?:-[a-z]{3})?)\s+)?(?P<begins>[0-9]{1,2}:[0-9]{2})-(?P<ends>[0-9]{1,2}:[0-9]{2})"
)
_MINUTES_A_DAY = 24 * 60
_WARM_SETTINGS = "copies=N, zone=Europe/Berlin"


@dataclass(frozen=True, slots=True)
class Span:
    """Hours on some days of the week. One that ends before it begins ends on the next day.

    Attributes:
        days: 0 is Monday.
        begins, ends: minutes after midnight.
    """

    days: frozenset[int]
    begins: int
    ends: int

    def seconds_left(self, now: datetime) -> float:
        """How long it still lasts; 0: it does not last now."""
        length = (self.ends - self.begins) % _MINUTES_A_DAY or _MINUTES_A_DAY
        for back in (0, 1):
            day = now - timedelta(days=back)
            began = day.replace(hour=self.begins // 60, minute=self.begins % 60, second=0, microsecond=0)
            passed = (now - began).total_seconds()
            if day.weekday() in self.days and 0 <= passed < length * 60:
                return length * 60 - passed
        return 0.0


@dataclass(frozen=True, slots=True)
class WarmRow:
    """A model that is kept in memory at certain hours.

    Attributes:
        model: its name; an alias is none.
        spans: the hours.
        copies: on so many nodes.
        zone: the time zone that the hours are in; empty: the server's.
        line: its number in the text, from 1.
    """

    model: str
    spans: tuple[Span, ...]
    copies: int = 1
    zone: str = ""
    line: int = 0

    def seconds_left(self, now: datetime) -> float:
        """How long the model is to stay in memory from now on; 0: it is not.

        Args:
            now: with a time zone.
        """
        local = now.astimezone(ZoneInfo(self.zone)) if self.zone else now.astimezone()
        return max((span.seconds_left(local) for span in self.spans), default=0.0)


@lru_cache(maxsize=16)  # valves are read again at every request, and nearly always hold the same text
def parse_warm(text: str) -> tuple[WarmRow, ...]:
    """Read the rows: `#` starts a comment, empty lines are skipped.

    Raises:
        WarmTableError: naming the row and what is wrong with it.
    """
    rows: list[WarmRow] = []
    for line, written in table_rows(text):
        try:
            rows.append(_warm_row(line, written))
            _refuse_more(rows)
        except ValueError as fault:
            raise WarmTableError(line, written, said_by(fault)) from None
    return tuple(rows)


def _refuse_more(rows: list[WarmRow]) -> None:
    *before, row = rows
    if any(row.model == other.model for other in before):
        raise ValueError(
            message(
                "{model} has a row already: put all its hours into that one, with commas", model=row.model
            )
        )
    if len(rows) > MAX_WARM_ROWS:
        raise ValueError(message("at most {count} models can be kept in memory", count=MAX_WARM_ROWS))


def _warm_row(line: int, written: str) -> WarmRow:
    model, equals, rest = map(str.strip, written.partition("="))
    if not equals or not model or re.search(r"[\s,]", model):
        raise ValueError(
            message("write it as `llama3:8b = Mon-Fri 07:30-17:00`: a model, an equals sign, hours")
        )
    hours, copies, zone = [], 1, ""
    for word in rest.split():
        name, has_value, value = word.partition("=")
        if not has_value:
            hours.append(word)
        elif name == "copies" and value.isdecimal() and 1 <= int(value[:6]) <= MAX_COPIES:
            copies = int(value)
        elif name == "zone":
            zone = _zone(value)
        else:
            raise ValueError(
                message(
                    "unknown setting {name!r}: the known ones are {known}", name=word, known=_WARM_SETTINGS
                )
            )
    spans = tuple(_span(part.strip()) for part in " ".join(hours).split(",") if part.strip())
    if not spans:
        raise ValueError(message("hours are missing: write them as Mon-Fri 07:30-17:00, several with commas"))
    return WarmRow(model, spans, copies, zone, line)


def _span(written: str) -> Span:
    found = _SPAN.fullmatch(written.lower())
    if found is None:
        raise ValueError(
            message(
                "{written!r} cannot be read: write hours as Mon-Fri 07:30-17:00, or 07:30-17:00",
                written=written,
            )
        )
    days, begins, ends = (
        _days(found["days"] or "mon-sun"),
        _minutes(found["begins"]),
        _minutes(found["ends"]),
    )
    if begins == _MINUTES_A_DAY:  # the end of a day is the next day's beginning
        days = frozenset((day + 1) % 7 for day in days)
    return Span(days, begins % _MINUTES_A_DAY, ends % _MINUTES_A_DAY)


def _days(written: str) -> frozenset[int]:
    first, _, last = written.partition("-")
    for day in (first, last or first):
        if day not in _DAYS:
            raise ValueError(
                message(
                    "{day!r} is not a day: write Mon, Tue, Wed, Thu, Fri, Sat, Sun or two with a dash",
                    day=day,
                )
            )
    begin, end = _DAYS.index(first), _DAYS.index(last or first)
    return frozenset((begin + offset) % 7 for offset in range((end - begin) % 7 + 1))


def _minutes(written: str) -> int:
    hour, minute = map(int, written.split(":"))
    if hour > 24 or minute > 59 or (hour == 24 and minute):  # noqa: PLR2004 - a clock's
        raise ValueError(
            message("{written!r} is not a time: write it as 07:30, at most 24:00", written=written)
        )
    return 60 * hour + minute


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            message("zone={name} is unknown: write it as Europe/Berlin or Asia/Shanghai", name=name)
        ) from None
    return name


# --- ollama_pack.routing.dispatch.upkeep ---
# What a router does besides chats: models kept in memory at certain hours, nodes drained, models pulled.

WARM_LOOK_SECONDS = 5.0  # between two looks at what has to be in memory
STAY_SECONDS = 300.0  # models that are kept are asked for again before their time in memory falls below this
IDLE_LOOK_SECONDS = 0.5
DRAIN_SECONDS = 900.0  # for a node's chats to end before a pull; then it is pulled beside them
MAX_PULLS = 64  # that are remembered, and told
ENDED_SHOWN = 5  # of those before the one that pulls now


class Fleet(Protocol):
    """What upkeep needs of the router."""

    @property
    def nodes(self) -> Mapping[str, NodeWatch]:
        """By name."""

    @property
    def scheduler(self) -> Scheduler:
        """Its scheduler."""

    async def ready(self) -> None:
        """Have the nodes looked at."""

    @property
    def peers(self) -> int:
        """How many other workers are heard."""

    def in_flight(self, node: str) -> int:
        """Requests at a node."""

    def is_healthy(self, node: str) -> bool:
        """Whether requests are given to it."""

    def load_now(self, binding: Assignment, keep_alive: str | float | None) -> None:
        """Let a node load a model that nobody waits for."""

    def prolong(self, node: str, model: str, seconds: float, options: Mapping[str, Any]) -> None:
        """Let a model stay in a node's memory, with the options that it has there."""


class Peers(Protocol):
    """The way to the other workers."""

    def tell_upkeep(self) -> None:
        """Let them know what this worker pulls."""

    def stop_pull(self) -> None:
        """Ask the one that pulls to stop."""


class Upkeep:
    """Looks after one router's nodes. Lives on its event loop."""

    def __init__(self, fleet: Fleet, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Begin nothing yet; `now` tells the time of day, with a time zone."""
        self._fleet = fleet
        self._now = now
        self._rows: tuple[WarmRow, ...] = ()
        self._drained: frozenset[str] = frozenset()
        self._pulling: dict[str, frozenset[str]] = {}  # nodes that are drained for a pull, and their models
        self._warming: asyncio.Task[None] | None = None
        self._pull: asyncio.Task[None] | None = None
        self._asked_at: dict[tuple[str, str], float] = {}
        self._others: dict[str, UpkeepMessage] = {}  # what other workers pull
        self._lost: list[PullState] = []  # pulls whose worker has gone
        self.peers: Peers | None = None
        self.pulls: list[PullState] = []

    def close(self) -> None:
        """Stop all of it."""
        for task in (self._warming, self._pull):
            if task is not None:
                task.cancel()

    # --- nodes that get nothing new ---

    @property
    def drained(self) -> frozenset[str]:
        """The nodes that get nothing new, by an admin's wish or for a pull of any worker."""
        keys = {key for news in self._others.values() for key in news.drained}
        others = {name for name, watch in self._fleet.nodes.items() if node_key(watch.row) in keys}
        return self._drained | frozenset(self._pulling) | others

    def drain(self, names: Collection[str]) -> None:
        """Let these nodes finish what they have and give them nothing new; all others take part."""
        self._drained = frozenset(names)
        self.apply()

    def apply(self) -> None:
        """Tell the scheduler which nodes get nothing new: those drained, and those that have left."""
        cluster, watches, drained = self._fleet.scheduler.cluster, self._fleet.nodes, self.drained
        for name, node in cluster.nodes.items():
            draining = name in drained or watches[name].leaving
            if node.draining != draining:
                cluster.drain(name, draining=draining)

    # --- models that are kept in memory ---

    def keep(self, rows: tuple[WarmRow, ...]) -> None:
        """Keep these models in memory at their hours, from now on."""
        self._rows = rows
        if rows and (self._warming is None or self._warming.done()):
            self._warming = asyncio.get_running_loop().create_task(self._keep_warm(), name="keep models warm")

    def stays(self, model: str) -> float:
        """Seconds for which a model is to stay in memory; 0: as long as usual."""
        name = fold_name(model)
        row = next((row for row in self._rows if fold_name(row.model) == name), None)
        return row.seconds_left(self._now()) if row else 0.0

    async def _keep_warm(self) -> None:
        while self._rows:
            try:
                if any(row.seconds_left(self._now()) for row in self._rows):
                    await self._fleet.ready()
                    self.warm_now()
            except Exception:
                log.exception("Models could not be kept in memory; another try follows")
            await asyncio.sleep(WARM_LOOK_SECONDS)

    def warm_now(self) -> None:
        """Load what should be in memory and is not, and ask again for what would leave it."""
        due = [(row, left) for row in self._rows if (left := row.seconds_left(self._now()))]
        kept = [row.model for row, _ in due]
        for row, left in due:
            for binding in self._fleet.scheduler.warm(row.model, row.copies, kept):
                self._fleet.load_now(binding, left)
            self._prolong(row, left)

    def _prolong(self, row: WarmRow, left: float) -> None:
        """Have it stay where it would soon be unloaded: its last chat ended a while ago."""
        now, name = asyncio.get_running_loop().time(), fold_name(row.model)
        for node in self._fleet.scheduler.cluster.nodes.values():
            model = node.listed.get(name)
            runner = node.runners.get(model.blob) if model else None
            if runner is None or runner.loading or runner.remote or not runner.expires_at:
                continue
            soon = runner.expires_at - self._now().timestamp() < min(left, STAY_SECONDS)
            key = node.row.name, name
            if soon and now - self._asked_at.get(key, -math.inf) > STAY_SECONDS / 2:
                self._asked_at[key] = now
                self._fleet.prolong(node.row.name, runner.model, left, runner.loaded_with)

    # --- pulls, one node after another ---

    def pull(self, model: str, nodes: Sequence[str] = ()) -> None:
        """Pull a model at nodes (none: all Ollamas), one after another, each without chats meanwhile.

        Raises:
            ValueError: a pull is under way, here or elsewhere, a node is unknown, or no node can pull.
        """
        if any(one.is_under_way for one in self.all_pulls):
            raise ValueError(message("A pull is under way. Wait until it is done, or stop it."))
        watches = self._fleet.nodes
        wanted = list(nodes) or [name for name, watch in watches.items() if watch.row.kind == "ollama"]
        if not wanted:
            raise ValueError(message("No node is an Ollama: nothing else can pull models."))
        for name in wanted:
            if name not in watches:
                known = ", ".join(watches)
                raise ValueError(
                    message("There is no node {node}. The nodes are: {nodes}.", node=name, nodes=known)
                )
        self._begin([PullState(name, model) for name in wanted])

    def go_on(self, told: Iterable[Mapping[str, Any]], after: asyncio.Task[None] | None = None) -> None:
        """Take over the pulls of the router before.

        Args:
            told: as `hand_over` gave them.
            after: ends once that router's chats have ended; None: it has none.
        """
        try:
            self._begin([pull_state(one) for one in told], after)
        except (KeyError, TypeError, ValueError):  # of a router of another version
            log.exception("A pull could not be continued: pull the model again")

    def hand_over(self) -> list[dict[str, Any]]:
        """What this router has pulled and has still to pull, for the one that follows. It pulls no more."""
        pulls = [replace(one, state="waiting") if one.is_under_way else one for one in self.pulls]
        self.stop_own()
        self.pulls = []
        self._changed()
        return [asdict(one) for one in pulls]

    def stop(self) -> None:
        """Stop the pull that is under way, in whichever worker.

        Raises:
            ValueError: there is none.
        """
        if self.stop_own():
            return
        if self.peers is None or not any(one.is_under_way for one in self.all_pulls):
            raise ValueError(message("No pull is under way."))
        self.peers.stop_pull()

    def stop_own(self) -> bool:
        """Stop what this worker pulls; false: it pulls nothing. What has come so far stays at the node."""
        if self._pull is None or self._pull.done():
            return False
        self._pull.cancel()
        for one in self.pulls:
            if one.is_under_way:
                one.state = "stopped"
        self._changed()
        return True

    def _begin(self, states: list[PullState], after: asyncio.Task[None] | None = None) -> None:
        self.pulls = [*self.pulls, *states][-max(MAX_PULLS, len(states)) :]
        if left := [one for one in states if one.is_under_way]:
            self._lost.clear()
            self._pull = asyncio.get_running_loop().create_task(self._pull_all(left, after), name="pull")
        self._changed()

    def _changed(self) -> None:
        if self.peers:
            self.peers.tell_upkeep()

    async def _pull_all(self, states: Sequence[PullState], after: asyncio.Task[None] | None) -> None:
        await self._fleet.ready()
        if after and after.get_loop() is asyncio.get_running_loop():
            await asyncio.wait([after], timeout=DRAIN_SECONDS)
        for state in states:
            watch = self._fleet.nodes.get(state.node)  # nodes may go while others pull
            ask = getattr(watch.client, "pull", None) if watch else None
            if watch is None or ask is None:
                state.state = "failed"
                state.fault = (
                    message("Only an Ollama can pull models.")
                    if watch
                    else message("It is not a node any more.")
                )
                continue
            try:
                async with self._without_chats(state):
                    await self._pull_at(state, ask)
            except Exception as error:
                state.state, state.fault = "failed", type(error).__name__
                log.exception("%s could not pull %s", state.node, state.model)
            watch.hurry.set()
            self._changed()

    async def _pull_at(self, state: PullState, ask: Callable[[str], AsyncIterator[tuple[int, int]]]) -> None:
        state.state = "pulling"
        try:
            async for done, total in ask(state.model):
                state.percent = round(100 * done / total, 1) if total else state.percent
                self._take_back_if_needed(state.node)
        except NodeError as error:
            state.state, state.fault = "failed", error.plain
            log.warning("%s could not pull %s: %s", state.node, state.model, error)
        else:
            state.state, state.percent = "done", 100.0

    @asynccontextmanager
    async def _without_chats(self, state: PullState) -> AsyncIterator[None]:
        """Give the node nothing new, where the others have all its models, and wait until it is idle."""
        node = state.node
        models = frozenset(fold_name(model.name) for model in self._fleet.nodes[node].models)
        if not self._can_spare(node, models):
            yield
            return
        state.state = "draining"
        self._pulling[node] = models
        self.apply()
        self._changed()
        try:
            loop = asyncio.get_running_loop()
            ends = loop.time() + DRAIN_SECONDS
            if self._fleet.peers:  # they may have given it a chat at this very moment
                await asyncio.sleep(IDLE_LOOK_SECONDS)
            while node in self._pulling and self._fleet.in_flight(node) and loop.time() < ends:
                await asyncio.sleep(IDLE_LOOK_SECONDS)
                self._take_back_if_needed(node)
            yield
        finally:
            self._take_back(node)

    def _take_back_if_needed(self, node: str) -> None:
        """Give a node chats while it is pulled, where another has gone that had its models."""
        models = self._pulling.get(node)
        if models is not None and not self._can_spare(node, models):
            log.warning("%s gets chats while it is pulled: no other node has all of its models", node)
            self._take_back(node)

    def _take_back(self, node: str) -> None:
        self._pulling.pop(node, None)
        self.apply()
        self._changed()

    def _can_spare(self, node: str, models: Collection[str]) -> bool:
        """Whether the other nodes that get chats have all of its models."""
        others: set[str] = set()
        for name, watch in self._fleet.nodes.items():
            gets_chats = name not in self.drained and watch.row.weight > 0
            if name != node and gets_chats and self._fleet.is_healthy(name):
                others |= {fold_name(model.name) for model in watch.models}
        return others.issuperset(models)

    # --- what other workers pull ---

    @property
    def all_pulls(self) -> list[PullState]:
        """Pulls of all workers that are heard, the newest last."""
        others = [one for news in self._others.values() for one in news.pulls]
        return [*self._lost, *others, *self.pulls]

    def own(self, worker: str) -> UpkeepMessage:
        """What this worker pulls, for the others."""
        watches = self._fleet.nodes
        keys = tuple(node_key(watches[name].row) for name in sorted(self._pulling) if name in watches)
        return UpkeepMessage(worker, keys, tuple(_those_of_now(self.pulls)))

    def heard(self, news: UpkeepMessage) -> None:
        """Another worker pulls, or has ended to."""
        self._others[news.worker] = news
        if any(one.is_under_way for one in news.pulls):
            self._lost.clear()
        self.apply()

    def lost(self, worker: str) -> None:
        """Another worker has gone: its nodes take part again, and what it had not pulled is not pulled."""
        news = self._others.pop(worker, None)
        if news is None:
            return
        fault = message("The server that pulled it has stopped. Pull again: Ollama continues where it was.")
        self._lost += [replace(one, state="failed", fault=fault) for one in news.pulls if one.is_under_way]
        self.apply()

    @property
    def report(self) -> dict[str, Any]:
        """For the dashboard."""
        kept = [
            {"model": row.model, "seconds_left": round(left)}
            for row in self._rows
            if (left := row.seconds_left(self._now()))
        ]
        pulls = [asdict(one) for one in _those_of_now(self.all_pulls)]
        return {"drained": sorted(self.drained), "warm": kept, "pulls": pulls}


def _those_of_now(pulls: Sequence[PullState]) -> Sequence[PullState]:
    """As many as are told: the last ones; of more nodes those around the one that pulls now."""
    now = next((at for at, one in enumerate(pulls) if one.is_under_way), len(pulls))
    begin = max(0, min(now - ENDED_SHOWN, len(pulls) - MAX_PULLS))
    return pulls[begin : begin + MAX_PULLS]


# --- ollama_pack.routing.peers.share ---
# Several workers on the same nodes, each with a scheduler of its own: what they tell and ask each other.
#
# They tell what happens to their requests, and each applies what it hears to its own picture of the nodes. A
# picture may be a moment old, so a slot is claimed before it is used; whoever is refused has learnt something,
# and its request waits again. No input, no output: `share_redis` carries it.

BEAT_SECONDS = 2.0  # between two signs of life
_share__SILENT_SECONDS = 7.0  # after which a worker is taken to be gone
HOLD_SECONDS = 2.0  # for which a request that kept ours out is believed in, unless its worker tells of it
RETRY_SECONDS = 0.25  # after a refusal that taught nothing
MAX_OUTBOX = 4096
_CHAIN_KEY = b"ollama-pack-fleet"


@dataclass(frozen=True, slots=True)
class SlotClaim:
    """A slot of a runner that a request wants to take, or takes.

    Attributes:
        request_id: the request.
        node: key of the node.
        blob: the weights.
        slots: how many the runner is believed to have; 0: it is taken already.
        loads: the weights are loaded first.
        victims: weights that are unloaded for it.
    """

    request_id: str
    node: str
    blob: str
    slots: int
    loads: bool
    victims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClaimRefusal:
    """Why a claim was refused.

    Attributes:
        blob: the weights whose slots are taken; empty: the node loads something else.
        holders: the requests that have them.
    """

    blob: str
    holders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ShareStep:
    """One thing to be done at the shared place, at once there.

    Attributes:
        kind: `claim` a slot; `renew` a claim, which also takes it where it has been forgotten; `release` it;
            its node has `loaded`; or `tell` all workers, which the others do as well.
        claim: what it is about; None for `tell`.
        payload: the message that all workers get; empty: none.
    """

    kind: Literal["claim", "renew", "release", "loaded", "tell"]
    claim: SlotClaim | None = None
    payload: bytes = b""


def chain_key(secret: str) -> bytes:
    """The key for `prompt_blocks`: only who knows the secret can test what was asked. Empty without one."""
    return blake2b(_CHAIN_KEY, key=secret.encode()[:64], digest_size=32).digest() if secret else b""


class SharedUpkeep(Protocol):
    """What this worker does to nodes besides chats, which the others must know of."""

    def own(self, worker: str) -> UpkeepMessage:
        """What it does now."""

    def heard(self, news: UpkeepMessage) -> None:
        """What another worker does."""

    def lost(self, worker: str) -> None:
        """Another worker has gone."""

    def stop_own(self) -> bool:
        """Stop what this worker pulls; false: it pulls nothing."""


class FleetShare:
    """One worker among others. Everything here is done on the scheduler's thread.

    Attributes:
        outbox: steps to be done, in order. Nothing is put there while nobody is connected.
        connected: whether somebody empties it.
        wake: called when something was put there.
        upkeep: what this worker does besides chats; None: nothing.
    """

    def __init__(self, scheduler: Scheduler, worker: str, clock: Callable[[], float]) -> None:
        """Listen to the scheduler.

        Args:
            scheduler: this worker's.
            worker: its name, unique among all.
            clock: the scheduler's.
        """
        self.outbox: deque[ShareStep] = deque(maxlen=MAX_OUTBOX)
        self.connected = False
        self.wake: Callable[[], None] = _nobody_to_wake
        self._scheduler = scheduler
        self._worker = worker
        self._clock = clock
        self._heard_at: dict[str, float] = {}
        self._claims: dict[str, SlotClaim] = {}
        self.upkeep: SharedUpkeep | None = None
        scheduler.listener = self._told

    @property
    def peers(self) -> int:
        """How many other workers there are."""
        return len(self._heard_at)

    @property
    def is_busy(self) -> bool:
        """Whether a request of this worker is at a node."""
        return any(True for _ in self._scheduler.running())

    # --- being there ---

    def join(self) -> None:
        """Connected, for the first time or again: what was heard before may be wrong by now."""
        self.leave()
        self.connected = True
        self._claims = {event.request_id: _claim_of(event) for event in self._scheduler.running()}
        self._renew()
        self._send(HelloMessage(self._worker))
        self._announce()

    def leave(self) -> None:
        """No longer connected: what others do shows in the probes alone."""
        self.connected = False
        self.outbox.clear()
        for worker in list(self._heard_at):
            self._lose(worker)
        self._scheduler.forget_peers()

    def say_bye(self) -> None:
        """This worker ends; what it held is free."""
        for claim in self._claims.values():
            self._put(ShareStep("release", claim))
        self._claims.clear()
        self._send(ByeMessage(self._worker))

    def beat(self) -> None:
        """A sign of life, each `BEAT_SECONDS`. Who is silent for long is forgotten."""
        now = self._clock()
        for worker, heard in list(self._heard_at.items()):
            if now - heard > _share__SILENT_SECONDS:
                self._lose(worker)
        self._send(AliveMessage(self._worker, self._scheduler.request_ids))
        self._renew()
        if self.upkeep and any(one.is_under_way for one in self.upkeep.own(self._worker).pulls):
            self.tell_upkeep()  # how far it is

    def _renew(self) -> None:
        for claim in self._claims.values():
            self._put(ShareStep("renew", claim))

    def _announce(self) -> None:
        there: list[FleetEvent] = [*self._scheduler.running(), *self._scheduler.waiting_events()]
        for event in there:
            self._send(EventMessage(self._worker, event))
        if self.upkeep and self.upkeep.own(self._worker).pulls:
            self.tell_upkeep()

    # --- nodes that are pulled ---

    def tell_upkeep(self) -> None:
        """Let the others know what this worker pulls, and which nodes get nothing new meanwhile."""
        if self.upkeep:
            self._send(self.upkeep.own(self._worker))

    def stop_pull(self) -> None:
        """Ask the worker that pulls to stop."""
        self._send(StopPullMessage(self._worker))

    # --- claiming ---

    def claim(self, binding: Assignment) -> ShareStep:
        """Ask for a slot before a request is sent; all are told when it is granted."""
        quote = binding.chosen.quote
        claim = SlotClaim(
            request_id=binding.request.id,
            node=node_key(self._scheduler.cluster.nodes[binding.node].row),
            blob=quote.blob,
            slots=quote.reused.slots if quote.reused is not None else quote.rates.slots,
            loads=binding.loads,
            victims=quote.victims,
        )
        event = self._scheduler.bound_event(binding.request.id)
        step = ShareStep("claim", claim, encode_message(EventMessage(self._worker, event)))
        self._put(step)
        return step

    def assume(self, binding: Assignment) -> None:
        """Send a request without asking: nobody answers at the moment, and is told later."""
        event = self._scheduler.bound_event(binding.request.id)
        self._claims[event.request_id] = _claim_of(event)
        self._send(EventMessage(self._worker, event))

    def granted(self, claim: SlotClaim) -> None:
        """The slot is ours. Where the request has ended meanwhile it is given back."""
        if self._scheduler.is_running(claim.request_id):
            self._claims[claim.request_id] = claim
        else:
            self._put(ShareStep("release", claim))

    def refused(self, binding: Assignment, refusal: ClaimRefusal) -> None:
        """Somebody else was first: the request waits again, and what kept it out is believed for a while."""
        scheduler, now = self._scheduler, self._clock()
        scheduler.give_back(binding.request.id)
        node, remote = scheduler.cluster.nodes[binding.node], scheduler.cluster.remote
        others = [holder for holder in refusal.holders if not scheduler.is_running(holder)]
        learnt = [remote.hold(node, refusal.blob, holder, now + HOLD_SECONDS) for holder in others]
        if not any(learnt):
            node.pause(now + RETRY_SECONDS)

    # --- telling and hearing ---

    def _told(self, event: FleetEvent) -> None:
        """The scheduler says what happens to a request of ours."""
        claim = self._claims.get(event.request_id)
        payload = encode_message(EventMessage(self._worker, event)) if self.connected else b""
        if claim is None:
            self._put(ShareStep("tell", None, payload))
        elif isinstance(event, BegunEvent):
            self._put(ShareStep("loaded", claim, payload))
        else:
            del self._claims[event.request_id]
            self._put(ShareStep("release", claim, payload))

    def hear(self, payload: bytes) -> bool:
        """Take in a message of any worker. Returns whether to decide anew."""
        message = decode_message(payload)
        if message is None or message.worker == self._worker:
            return False
        if not isinstance(message, ByeMessage):
            self._heard_at[message.worker] = self._clock()
        match message:
            case HelloMessage():
                self._announce()
            case AliveMessage(worker, requests):
                self._scheduler.forget_peer(worker, requests)
            case ByeMessage(worker):
                self._lose(worker)
            case EventMessage(worker, event):
                self._scheduler.hear(worker, event)
            case UpkeepMessage() if self.upkeep:
                self.upkeep.heard(message)
            case StopPullMessage() if self.upkeep:
                self.upkeep.stop_own()
        is_waiting = isinstance(message, EventMessage) and isinstance(message.event, WaitingEvent)
        return not (is_waiting or isinstance(message, HelloMessage))

    def _lose(self, worker: str) -> None:
        self._heard_at.pop(worker, None)
        self._scheduler.forget_peer(worker)
        if self.upkeep:
            self.upkeep.lost(worker)

    def _send(self, message: FleetMessage) -> None:
        self._put(ShareStep("tell", None, encode_message(message)))

    def _put(self, step: ShareStep) -> None:
        if self.connected:
            self.outbox.append(step)
            self.wake()


class Sharing(Protocol):
    """What tells other workers, and hears them.

    Attributes:
        fault: why they cannot be reached, in words; empty: they can, as far as is known.
    """

    fault: str

    def start(self) -> None:
        """Join the others, now or as soon as it is possible. Called whenever the router is used."""

    async def claim(self, binding: Assignment) -> bool:
        """Whether a request may be sent; if not, it waits in the scheduler again."""

    async def close(self) -> None:
        """Leave the others, without waiting long for it."""


# Takes this worker's share and what is to be called when something was heard.
Connect = Callable[[FleetShare, Callable[[], None]], Sharing]


def _claim_of(event: BoundEvent) -> SlotClaim:
    loads = event.loads and event.ready > 0
    return SlotClaim(event.request_id, event.node, event.blob, 0, loads, event.victims)


def _nobody_to_wake() -> None:
    pass


# --- ollama_pack.routing.probe.poller ---
# Looking at all nodes again and again, for as long as anybody uses them.

FIRST_LOOK_SECONDS = 2.0  # that a request waits for nodes which have not been looked at yet
IDLE_SECONDS = 600.0  # without a request or a look at the models, nodes are left alone


class Listens(Protocol):
    """Whoever is told what a look at a node has shown."""

    def looked(self, watch: NodeWatch, *, answers: bool) -> None:
        """What it has stands in the watch, where it answers."""

    def counted(self, watch: NodeWatch, activity: EngineActivity, asked_at: float) -> None:
        """What its engine does for all clients, since which moment at the earliest."""

    def gpus_read(self, watch: NodeWatch) -> None:
        """What its GPUs do stands in `watch.gpus`."""


class NodePoller:
    """Looks at nodes, each in a task of its own."""

    def __init__(
        self,
        nodes: Mapping[str, NodeWatch],
        session: aiohttp.ClientSession,
        seconds: float,
        listener: Listens,
    ) -> None:
        """Take what is needed; nothing is looked at before `ready`.

        Args:
            nodes: by name.
            session: holds the connections to agents.
            seconds: between two looks at a node.
            listener: told what each look has shown.
        """
        self._nodes = nodes
        self._session = session
        self._seconds = seconds
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._gpus = GpuReader()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._used_at = self._loop.time()
        self._closed = False
        self._made: tuple[tuple[Any, ...], Catalogue] = ((), Catalogue())

    @property
    def is_complete(self) -> bool:
        """Whether every node has been looked at once, and those that answer have told of all their models."""
        watches = self._nodes.values()
        return all(watch.looked.is_set() and (watch.is_whole or watch.fault) for watch in watches)

    async def ready(self, seconds: float = FIRST_LOOK_SECONDS) -> None:
        """Wait until every node has been looked at once, but no longer than this."""
        if self._closed:  # a chat that began before an update: its router looks at no node any more
            return
        self._used_at = self._loop.time()
        for name, watch in self._nodes.items():
            if name not in self._tasks or self._tasks[name].done():
                watch.looked.clear()  # what was seen long ago may not be so any more
                self._tasks[name] = self._loop.create_task(self._watch(watch), name=f"watch {name}")
        unseen = [watch.looked for watch in self._nodes.values() if not watch.looked.is_set()]
        if unseen:
            looks = [asyncio.ensure_future(looked.wait()) for looked in unseen]
            try:
                await asyncio.wait(looks, timeout=seconds)
            finally:
                for look in looks:
                    look.cancel()

    def leave(self, name: str) -> None:
        """Look at a node no more."""
        if task := self._tasks.pop(name, None):
            task.cancel()

    async def _watch(self, watch: NodeWatch) -> None:
        try:
            while self._loop.time() - self._used_at < IDLE_SECONDS:
                try:
                    await self._look(watch)
                except Exception:
                    log.exception("Node %s could not be looked at", watch.row.name)
                await watch.rest(self._seconds)
        finally:
            watch.stop()

    async def _look(self, watch: NodeWatch) -> None:
        """What the node has, what its engine does, what its GPUs do: each is told as soon as it is there."""
        answers = await watch.look()
        self._listener.looked(watch, answers=answers)
        asked_at = self._loop.time()
        if answers and (activity := await watch.activity()):
            self._listener.counted(watch, activity, asked_at)
        await watch.look_at_gpus(self._gpus, self._session)
        self._listener.gpus_read(watch)

    def catalogue(self) -> Catalogue:
        """The models of all nodes that answer, or did a short while ago."""
        listed = tuple((name, watch.models) for name, watch in self._nodes.items() if watch.is_listed)
        if listed != self._made[0]:
            self._made = listed, build_catalogue(dict(listed))
        return self._made[1]

    async def close(self) -> None:
        """Leave the nodes alone, for good."""
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._gpus.close()


# --- ollama_pack.routing.dispatch.router ---
# The fleet at work: requests wait where they can still change their mind, then go to nodes over HTTP.
#
# All decisions are `fleet.scheduler`'s. What is here tells it what happens, and does what it decides.

router_log = logging.getLogger(__name__)

DOWN_SECONDS = 10.0  # that a request waits for nodes which have just stopped answering
LOAD_TOLD_SECONDS = 10.0  # until a load is shown to go on; then each time twice as long
PLACE_SECONDS = 1.0  # between two looks at a waiting request's place
DECISIONS_SHOWN = RUNNING_SHOWN = 64
PROLONG_SECONDS = 60.0  # for a request that only keeps a model in memory


async def _tell_nobody(line: Message, *, done: bool) -> None:
    pass


def _nothing(_model: str) -> tuple[Message, ...]:
    return ()


class Router:
    """Gives chats to nodes. Lives on one event loop."""

    def __init__(  # noqa: PLR0913 - each is a fact of its own
        self,
        rows: Iterable[NodeRow],
        session: aiohttp.ClientSession,
        settings: RouterSettings | None = None,
        dice: Random | None = None,
        policy: RoutingPolicy | None = None,
        *,
        connect: Connect | None = None,
        secret: str = "",
        note: NoteChat = note_nowhere,
    ) -> None:
        """Take what is needed; nodes are looked at from the first use on.

        Args:
            rows: the nodes.
            session: holds the connections; the router closes it. A limit on its connections limits the fleet.
            settings: what an admin may set.
            dice: breaks ties.
            policy: weights and bounds of decisions; nobody has to set them.
            connect: connects it with other workers on the same nodes; None: it is alone.
            secret: the same for all of them, and known to nobody else: what they tell each other of prompts
                are hashes with this key.
            note: is given a record of each chat that has ended, as `chat_record` makes it.
        """
        self.note = note
        self.settings = settings or RouterSettings()
        self._loop = asyncio.get_running_loop()
        self._session = session
        dice = dice or Random()  # noqa: S311 - breaks ties
        self.nodes = {row.name: self._watch(row) for row in rows}
        self.scheduler = Scheduler(
            [watch.row for watch in self.nodes.values()],
            self._loop.time,
            dice,
            max_queue=self.settings.max_queue,
            policy=policy or RoutingPolicy(unsynced_peers=self.settings.several_workers),
            strategy=self.settings.strategy,
        )
        self.decisions: deque[Decision] = deque(maxlen=DECISIONS_SHOWN)
        self.counts = RouterCounts()
        self._chats: dict[str, PendingChat] = {}
        self._attempts = Attempts()
        self._decided: dict[str, Decision] = {}
        self._failures: dict[tuple[str, str], str] = {}  # node and model → why it failed the last request
        self._poller = NodePoller(self.nodes, session, self.settings.probe_seconds, self)
        self._key = chain_key(secret)
        self._sharing: Sharing | None = None
        self._share = FleetShare(self.scheduler, uuid4().hex, self._loop.time) if connect else None
        if connect and self._share:
            self._sharing = connect(self._share, self._decide)
        self._idle = asyncio.Event()
        self._idle.set()
        self._holders = 0
        self._wake: asyncio.TimerHandle | None = None
        self._loads: set[asyncio.Task[None]] = set()  # that nobody waits for
        self.upkeep = Upkeep(self)
        if self._share:
            self.upkeep.peers, self._share.upkeep = self._share, self.upkeep

    # --- the nodes ---

    def _watch(self, row: NodeRow) -> NodeWatch:
        return NodeWatch(row, node_client(row, self._session), self._loop.time)

    def follow(self, rows: Sequence[NodeRow]) -> None:
        """Go on with other nodes, and keep what is known of those that stay.

        A node that has gone from the rows gets no new requests. It answers those that it has, then it is
        forgotten. A row of the same name must be the same row.
        """
        names = {row.name for row in rows}
        for row in rows:
            if row.name not in self.nodes:
                self.nodes[row.name] = self._watch(row)
                self.scheduler.cluster.add(row)
        for name, watch in self.nodes.items():
            watch.leaving = name not in names
        self.upkeep.apply()
        self._drop_idle()
        self._decide()

    def _drop_idle(self) -> None:
        """Forget the nodes that have gone and have answered all that they had."""
        for name, watch in list(self.nodes.items()):
            if watch.leaving and self.scheduler.is_idle(name) and not self._attempts.at(name):
                self._poller.leave(name)
                self.scheduler.cluster.remove(name)
                del self.nodes[name]
                self._failures = {key: why for key, why in self._failures.items() if key[0] != name}

    def looked(self, watch: NodeWatch, *, answers: bool) -> None:
        """Told by the poller, as are the two below."""
        name = watch.row.name
        if answers:
            installed = {model.name: model.installed for model in watch.models}
            self.scheduler.cluster.probed(name, installed, watch.residents, watch.seen_at)
        elif watch.is_gone:
            self.scheduler.cluster.unreachable(name)
            self._attempts.is_gone(name)
        self._decide()

    def counted(self, watch: NodeWatch, activity: EngineActivity, asked_at: float) -> None:
        """Its engine tells what it does for all clients."""
        self.scheduler.cluster.activity(watch.row.name, activity.running, activity.waiting, asked_at)
        self._decide()

    def gpus_read(self, watch: NodeWatch) -> None:
        """Its GPUs were looked at. Those that another node has, too, may be at work for that one."""
        sources = [other.gpu_source for other in self.nodes.values()]
        alone = sources.count(watch.gpu_source) == 1
        sizes = [gpu.memory_total for gpu in watch.gpus.gpus if gpu.memory_total]
        if alone and sizes:
            used = sum(gpu.memory_used or 0 for gpu in watch.gpus.gpus)
            self.scheduler.cluster.gpu_memory(watch.row.name, sum(sizes), used, len(sizes))
        if watch.utilization is not None and alone:
            self.scheduler.cluster.gpu_busy(watch.row.name, watch.utilization)
            self._decide()

    def answering(self, models: Sequence[str]) -> str:
        """Of the models that may answer, the preferred one first, the one that would now."""
        return next((model for model in models if self.scheduler.cluster.can_answer((model,))), models[0])

    def catalogue(self) -> Catalogue:
        """The models of all nodes that answer, or did a short while ago."""
        return self._poller.catalogue()

    async def ready(self, seconds: float = FIRST_LOOK_SECONDS) -> None:
        """Wait until every node has been looked at once, but no longer than this."""
        if self._sharing:
            self._sharing.start()
        await self._poller.ready(seconds)

    @property
    def has_seen_all(self) -> bool:
        """Whether every node has been looked at once, so that the catalogue is whole."""
        return self._poller.is_complete

    def in_flight(self, node: str) -> int:
        """How many requests are at a node, those of other workers that are heard included."""
        return self._attempts.at(node) + self.scheduler.cluster.remote.at(node)

    def own_in_flight(self, node: str) -> int:
        """How many of this worker's requests are at a node."""
        return self._attempts.at(node)

    def queued(self, node: str) -> int:
        """How many of this worker's requests that wait this node could answer; other nodes may, too."""
        watch = self.nodes[node]
        waiting = (pending.request for pending in self._chats.values() if not pending.bound.done())
        return sum(watch.has_any(request.models) for request in waiting)

    def is_healthy(self, node: str) -> bool:
        """Whether it answers, and has not just failed a request. One that is drained does."""
        breaker = self.scheduler.cluster.nodes[node].breaker
        return not self.nodes[node].is_gone and breaker.state(self._loop.time()) == "closed"

    def running(self) -> list[dict[str, Any]]:
        """Records of the chats that have not ended, the newest first, see `running_record`."""
        newest = islice(reversed(self._chats.values()), RUNNING_SHOWN)
        return [running_record(pending, self._loop.time()) for pending in newest]

    @property
    def sharing_fault(self) -> str:
        """Why other workers cannot be heard; empty: they can, or there is nothing to hear them by."""
        return self._sharing.fault if self._sharing else ""

    @property
    def peers(self) -> int:
        """How many other workers are heard."""
        return self._share.peers if self._share else 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """For whoever is about to ask something of it: `close` waits until nobody holds it."""
        self._holders += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._holders -= 1
            self._rest()

    def _rest(self) -> None:
        if not self._chats and not self._holders:
            self._idle.set()

    async def close(self) -> None:
        """Let the requests that are under way end, then leave the nodes alone."""
        while not self._idle.is_set():  # somebody may come before this goes on
            await self._idle.wait()
        self.upkeep.close()
        for load in self._loads:
            load.cancel()
        await asyncio.gather(*self._loads, return_exceptions=True)
        if self._sharing:
            await self._sharing.close()
        await self._poller.close()
        if self._wake:
            self._wake.cancel()
        await self._session.close()

    # --- requests ---

    async def answer(  # noqa: PLR0913 - each is a fact of its own
        self,
        body: Mapping[str, Any],
        models: Sequence[str],
        head: ReplyHead,
        *,
        user: str,
        chat: str = "",
        background: bool = False,
        tell: Tell = _tell_nobody,
        figures: bool = True,
        language: str = ENGLISH,
        headers: NodeHeaders | None = None,
        last: bool = False,
        served: Served | None = None,
        why_model: WhyModel = _nothing,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of an answer to an OpenAI chat body. Closing the iterator ends the generation.

        The chunk that carries the figures also says which node answered, and why that one:
        `"ollama_pack": {"model": "llama3:8b", "node": "gpu1", "reason": "gpu1 has llama3:8b in memory"}`.

        Args:
            body: whether or not it asks for a stream.
            models: names of the models that may answer, the preferred one first.
            head: what the chunks have in common. Its model is the name that was asked for.
            user: whom fairness counts it for.
            chat: the conversation; empty: none.
            background: nobody looks at the answer as it is written.
            tell: shows status lines.
            figures: whether the user may see what the nodes hold of others: see `explain.reason`.
            language: of whoever reads the reason.
            headers: for its request to a node; None: only those that every request has.
            last: it comes behind all others.
            served: is told what the answer took, also where its user leaves before the end.
            why_model: what made the choice of a model smaller, for the status line.

        Raises:
            ChatBodyError: something in the body cannot be put into Ollama's form.
            RoutingError: no node can answer, or none in time.
            RequestRefusedError: the request has to change.
        """
        await self.ready()
        identity = uuid4().hex
        request = fleet_request(
            body,
            models,
            request_id=identity,
            user=user,
            chat=chat,
            background=background,
            last=last,
            key=self._key,
        )
        bound = self._loop.create_future()
        made = PendingChat(
            request,
            body,
            head,
            tell,
            bound,
            figures,
            language=language,
            headers=headers,
            served=served,
            user=user,
            why_model=why_model,
        )
        async with self._noted(made), self._taken_in(made) as pending:
            while True:
                binding = await self._wait_for_node(pending)
                if not await self._may_send(pending, binding):
                    continue
                try:
                    async with aclosing(self._ask(pending, binding)) as chunks:
                        async for chunk in chunks:
                            yield chunk
                except RequestRefusedError as error:
                    self.scheduler.refused(identity)
                    raise RequestRefusedError(binding.node, error.status, error.said) from error
                except RetryableNodeError as error:
                    self._go_on(pending, binding, error)
                else:
                    return

    @asynccontextmanager
    async def _noted(self, pending: PendingChat) -> AsyncIterator[None]:
        """Write down how a chat ends, however it does."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as caught:
            error = caught
            raise
        finally:
            try:
                self.note(chat_record(pending, error, self._loop.time()))
            except Exception:  # noqa: BLE001 - no chat fails for its record
                router_log.exception("A chat is missing in the history")

    @asynccontextmanager
    async def _taken_in(self, pending: PendingChat) -> AsyncIterator[PendingChat]:
        """A request that the scheduler knows of, for as long as anybody wants its answer."""
        identity = pending.request.id
        try:
            displaced = self.scheduler.submit(pending.request)
        except NoNodeError as error:
            raise self.no_node(error.models) from None
        if displaced:
            self._displace(displaced)
        self._chats[identity] = pending
        self._idle.clear()
        try:
            yield pending
        finally:
            self.scheduler.cancel(identity)  # nothing to do for one that has ended
            del self._chats[identity]
            self._attempts.end(identity)
            self._decided.pop(identity, None)
            self._drop_idle()
            self._decide()
            self._rest()
            if pending.shown is not None:  # also when its user has left: the line is kept with the chat
                line = waited_line(pending.asked, pending.shown_for())
                last = self._loop.create_task(pending.say(line, done=True))
                await asyncio.shield(last)

    def _displace(self, request: FleetRequest) -> None:
        """Refuse a request that waits: its user has the most places, and another user needs this one."""
        own = self.scheduler.places_of(request.user) + 1
        bound = self._chats[request.id].bound
        bound.set_exception(QueueFullError(self.settings.max_queue, self.scheduler.waiting, own))
        bound.exception()  # has been seen, should its client leave at this moment

    def no_node(self, models: Sequence[str]) -> NoNodeError:
        """The error that says why no node can have these models."""
        silent = {name: watch.fault for name, watch in self.nodes.items() if watch.fault}
        return NoNodeError(tuple(models), tuple(self.nodes), silent)

    def _decide(self) -> None:
        """Let the scheduler decide, and tell the requests that have a node now."""
        for binding in self.scheduler.decide():
            decision = explained(binding, time.time())
            self.decisions.append(decision)
            self._decided[binding.request.id] = decision
            self._chats[binding.request.id].bound.set_result(binding)
        for binding in self.scheduler.load_ahead():
            self.load_now(binding, self.settings.keep_alive or None)
        if self._wake:
            self._wake.cancel()
        due = self.scheduler.wake_at
        self._wake = self._loop.call_at(due, self._decide) if due is not None else None

    def load_now(self, binding: Assignment, keep_alive: str | float | None) -> None:
        """Let a node load a model that nobody waits for yet."""
        self._beside(self._load_ahead(binding, keep_alive), "load a model ahead of need")

    def prolong(self, node: str, model: str, seconds: float, options: Mapping[str, Any]) -> None:
        """Let a model stay in a node's memory, with the options that it has there: others load it again."""
        self._beside(self._prolong(node, model, seconds, options), "keep a model in memory")

    def _beside(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do something that no chat waits for."""
        task = self._loop.create_task(work, name=name)
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)

    async def _prolong(self, node: str, model: str, seconds: float, options: Mapping[str, Any]) -> None:
        client = self.nodes[node].client
        try:
            await client.load(model, seconds=PROLONG_SECONDS, keep_alive=seconds, options=options)
        except NodeError as error:
            router_log.warning("%s could not keep %s in memory: %s", node, model, error)

    async def _load_ahead(self, binding: Assignment, keep_alive: str | float | None) -> None:
        identity, node, began = binding.request.id, binding.node, self._loop.time()
        if self._sharing and not await self._sharing.claim(binding):
            return
        try:
            await self.nodes[node].client.load(
                binding.model,
                seconds=longest_load(binding, self.settings.load_seconds),
                keep_alive=keep_alive,
                options=load_options(binding.request),
            )
        except NodeError as error:
            router_log.warning("%s could not load %s ahead of need: %s", node, binding.model, error)
            is_passing = error.is_down or isinstance(error, NodeBusyError)
            self.scheduler.load_failed(identity, lasts=not is_passing)
        else:
            seconds = self._loop.time() - began
            self.scheduler.finished(identity, Durations(seconds, load=seconds))
        finally:
            self.scheduler.cancel(identity)  # nothing to do for one that has ended
            self._drop_idle()
        self._decide()

    async def _wait_for_node(self, pending: PendingChat) -> Assignment:
        """Until the request has a node; meanwhile its place is told."""
        told = ""
        if pending.waits_since is None:
            pending.waits_since = self._loop.time()
        self._decide()
        while not pending.bound.done():
            ahead = self.scheduler.ahead(pending.request.id) or 0
            pending.place = ahead if pending.place is None else min(pending.place, ahead)
            line = waiting_line(
                pending.asked,
                pending.place,
                self.scheduler.expected_wait(pending.request.id),
                loading=self._is_loading(pending.request.models),
            )
            if line != told and not pending.request.background:
                told = line
                await pending.say(line, done=False)
            await asyncio.wait([pending.bound], timeout=PLACE_SECONDS)
            await self.ready()  # somebody waits: nodes are looked at
            if self._may_wait_longer(pending.request):
                pending.waits_since = self._loop.time()
            self._refuse_hopeless(pending, self._loop.time() - pending.waits_since)
        return pending.bound.result()

    def _may_wait_longer(self, request: FleetRequest) -> bool:
        """Whether the limit does not count: a model is being loaded, or one user's answers hold the slots."""
        return self._is_loading(request.models) or self.scheduler.is_held_up(request.id)

    def _is_loading(self, models: Iterable[str]) -> bool:
        """Whether a node that has one of these models shows that it loads one."""
        loads = self.scheduler.loads(models)
        return any(self.nodes[node].is_loading(model, since) for node, model, since in loads)

    async def _may_send(self, pending: PendingChat, binding: Assignment) -> bool:
        """Whether no other worker was faster. If one was, the request waits on, as before."""
        if self._sharing is None or await self._sharing.claim(binding):
            return True
        undone = self._decided.pop(pending.request.id)
        with suppress(ValueError):  # so many were made meanwhile that it is not shown any more
            self.decisions.remove(undone)
        pending.bound = self._loop.create_future()
        return False

    def _refuse_hopeless(self, pending: PendingChat, waited: float) -> None:
        """Say so when nobody will answer, instead of waiting for ever."""
        if pending.bound.done():
            return
        if waited > self.settings.first_token_seconds:
            raise WaitedTooLongError(self.settings.first_token_seconds, self.scheduler.waiting)
        if waited > DOWN_SECONDS:
            models = pending.request.models
            if not any(watch.has_any(models) for watch in self.nodes.values()):  # it was deleted meanwhile
                raise self.no_node(models)
            faults = self._faults(pending)
            if faults:
                raise NodesDownError(models, faults)

    def _faults(self, pending: PendingChat) -> dict[str, str]:
        """What is wrong with each node that has the model; empty when one of them may answer."""
        models = pending.request.models
        if self.scheduler.cluster.can_answer(models):
            return {}
        return {
            name: watch.fault or self._failure(name, models)
            for name, watch in self.nodes.items()
            if watch.has_any(models)
        }

    def _failure(self, node: str, models: Sequence[str]) -> str:
        """Why a node that answers probes is given no request; empty where none has failed since."""
        names = {fold_name(name) for model in models for name in auto_parts(model)[0]}
        found = (why for (name, model), why in self._failures.items() if name == node and model in names)
        return next(found, "")

    async def _ask(self, pending: PendingChat, binding: Assignment) -> AsyncGenerator[dict[str, Any], None]:
        """Send the request to its node, and tell the scheduler how it goes."""
        identity = pending.request.id
        pending.waits_since = None
        pending.decision = self._decided.get(identity)
        self.counts.sent(binding)
        attempt = Attempt(pending, binding, self.nodes[binding.node], self._settings_for(binding.model))
        self._attempts.begin(identity, attempt)
        telling = None if pending.request.background else await self._tell_node(pending, attempt)
        if not pending.tried:
            attempt.suspect_after(honest_silence(binding), self._suspect, identity)
        pieces, failed = 0, False
        try:
            async with aclosing(attempt.chunks()) as chunks:
                async for chunk in chunks:
                    pieces += 1
                    if not pending.answering:
                        self._has_begun(pending, binding, attempt.elapsed)
                        if telling:
                            telling.cancel()
                        if not pending.request.background:
                            waited = self._loop.time() - pending.came
                            await pending.say(answered_line(pending.asked, binding, waited), done=True)
                    yield chunk
        except NodeError:
            failed = True
            raise
        finally:
            if telling:
                telling.cancel()
            if pending.served and not failed:
                pending.served(*attempt.service(pieces))
        spent = pending.spent = attempt.spent()
        self.counts.finished(binding, spent)
        self.scheduler.finished(identity, spent)

    def _settings_for(self, model: str) -> RouterSettings:
        """The settings of a chat: a model that is kept at this hour stays at least until its end."""
        left = self.upkeep.stays(model)
        return replace(self.settings, keep_alive=f"{left:.0f}s") if left > STAY_SECONDS else self.settings

    async def _tell_node(self, pending: PendingChat, attempt: Attempt) -> asyncio.Task[None] | None:
        """Show why this node. A load is shown until the answer begins, by a task that is returned."""
        binding = attempt.binding
        await pending.say(pending.reason(binding), done=False)
        if not binding.loads:
            return None
        await pending.say(loading_line(pending.asked, binding, 0.0), done=False)
        return self._loop.create_task(_tell_load(pending, attempt), name="tell of a load")

    def _suspect(self, identity: str, attempt: Attempt) -> None:
        """A node is silent for longer than it honestly can be: another one is asked, where there is one."""
        if not self._attempts.has(identity, attempt):
            return
        waits = attempt.is_loading or self._attempts.answers(attempt.binding)
        if waits or not self.scheduler.has_another(identity):
            attempt.suspect_after(ALIVE_SECONDS, self._suspect, identity)
        else:
            attempt.hangs()

    def _has_begun(self, pending: PendingChat, binding: Assignment, elapsed: float) -> None:
        pending.answering = True
        pending.began = self._loop.time()
        self.counts.began(binding, elapsed)
        self._blame(pending)
        self.scheduler.first_token(pending.request.id)
        self._failures.pop((binding.node, fold_name(binding.model)), None)
        if decision := self._decided.get(pending.request.id):
            decision.actual = elapsed
        self._decide()

    def _blame(self, pending: PendingChat) -> None:
        """An answer has begun: nodes that failed the same request with the same model were at fault."""
        decision = self._decided.get(pending.request.id)
        for failure in pending.unexplained:
            if decision and fold_name(failure.model) == fold_name(decision.model):
                self.scheduler.blame(pending.request.id, failure.node, failure.model, hung=failure.hung)
        pending.unexplained.clear()

    def _go_on(self, pending: PendingChat, binding: Assignment, error: RetryableNodeError) -> None:
        """After a failure: wait for another node where that is possible.

        Raises:
            AnswerBrokenError: the answer had begun.
            NoAnswerError: there is no other node.
            RequestFailsError: another node has failed in the same way.
        """
        node = binding.node
        router_log.warning("%s failed a request for %s: %s", node, binding.model, error)
        pending.tried[node] = error
        self.counts.failed(binding)
        self._failures[node, fold_name(binding.model)] = error.plain
        self._attempts.end(pending.request.id)
        unexplained, kind = is_unexplained(error), failure_kind(error)
        if isinstance(error, NodeBusyError):
            again = self._was_busy(pending, error)
        else:
            again = self.scheduler.failed(
                pending.request.id,
                node_down=error.is_down,
                hung=is_hang(error),
                blamed=not unexplained,
            )
        if isinstance(error, (ModelNotFoundError, NodeUnreachableError)):
            self.nodes[node].hurry.set()
        if pending.answering:
            raise AnswerBrokenError(node, error.plain) from error
        same = unexplained and any(failure.alike == kind for failure in pending.unexplained)
        if same and is_about_request(error):
            raise RequestFailsError(pending.tried) from error
        if not again:
            raise NoAnswerError(pending.tried) from error
        if unexplained:
            pending.unexplained.append(UnexplainedFailure(node, binding.model, is_hang(error), kind))
        self.counts.failed_over(binding)
        pending.bound = self._loop.create_future()

    def _was_busy(self, pending: PendingChat, error: NodeBusyError) -> bool:
        """Whether it waits now: for another node, or for the same one if that says that it is free soon."""
        now, pause = self._loop.time(), error.retry_after
        pending.busy_since = now if pending.busy_since is None else pending.busy_since
        soon = pause is not None and now + pause - pending.busy_since < DOWN_SECONDS
        return self.scheduler.was_busy(pending.request.id, pause=pause, waits=soon)


async def _tell_load(pending: PendingChat, attempt: Attempt) -> None:
    """Show now and then that a load goes on, for as long as it may take."""
    pause = LOAD_TOLD_SECONDS
    while True:
        await asyncio.sleep(pause)
        await pending.say(loading_line(pending.asked, attempt.binding, attempt.elapsed), done=False)
        pause = attempt.elapsed


# --- ollama_pack.routing.dispatch.embedding ---
# Vectors from the fleet: the node that has the model in memory and the least to do, then the others.

EMBED_SECONDS = 300.0  # for one request at one node, a load included

embed_log = logging.getLogger(__name__)


class Embedding:
    """Gives texts to nodes. Vectors take no slot from chats: what runs at a node is only counted."""

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()

    def catalogue(self, router: Router) -> Catalogue:
        """The models that can be asked for vectors: those that do nothing else, and those that chat."""
        watches = [(name, watch) for name, watch in router.nodes.items() if watch.is_listed]
        return build_catalogue({name: (*watch.models, *watch.others) for name, watch in watches})

    async def embed(
        self, router: Router, model: str, texts: Sequence[str], dimensions: int = 0
    ) -> tuple[Vectors, str]:
        """The vectors, and the node that made them.

        Args:
            router: whose nodes are asked.
            model: which makes them. Another model's would be useless next to them.
            texts: what to embed.
            dimensions: of the vectors; 0: as many as the model has.

        Raises:
            RoutingError: no node has the model, or none could answer.
            RequestRefusedError: the request has to change.
        """
        failures: dict[str, NodeError] = {}
        for name, watch, own in self._nodes(router, model):
            self._running[name] += 1
            try:
                made = await watch.client.embed(own, texts, seconds=EMBED_SECONDS, dimensions=dimensions)
            except RetryableNodeError as error:
                embed_log.warning("%s failed a request for vectors of %s: %s", name, model, error)
                failures[name] = error
            else:
                return made, name
            finally:
                self._running[name] -= 1
        raise NoAnswerError(failures) if failures else router.no_node([model])

    def _nodes(self, router: Router, model: str) -> list[tuple[str, NodeWatch, str]]:
        """The nodes that have a model, the best first, each with its own name for it."""
        found = []
        for name, watch in router.nodes.items():
            there = (*watch.models, *watch.others)
            own = next((known.name for known in there if fold_name(known.name) == fold_name(model)), None)
            if own is not None and watch.is_listed:
                busy = router.in_flight(name) + self._running[name]
                found.append(((watch.is_gone, not watch.holds(own), busy), (name, watch, own)))
        return [node for _, node in sorted(found, key=lambda one: one[0])]


# --- ollama_pack.fit.planning ---
# Which models a fleet should have where, so that its demand needs the fewest loads: pure functions.
#
# First each model gets one place, in a modest quantization, where the most memory is left; the model that is
# asked for most comes first. Then those that are asked for more than one copy can answer get more copies. The
# memory that is left makes quantizations better. Models that fit nowhere next to others are left to loads.

State = Literal["fits beside", "fits", "spills", "cannot"]
MODEST_BITS = 5.0  # the most of a first place
HOPELESS_SHARE = 0.25  # of a model; with less in GPU memory it is too slow to be of use
BUSY_SHARE = 0.6  # of a copy's slots; above that another copy is worth its memory


@dataclass(frozen=True, slots=True)
class PlannedVariant:
    """A quantization of a model.

    Attributes:
        name: to pull.
        level, bits: of the quantization.
        shape: what its memory depends on.
        context: tokens that its own recipe asks for, if those are more than a chat needs.
        blob: its weights, which names may have in common; empty: unknown.
    """

    name: str
    level: str
    bits: float
    shape: ModelShape
    context: int = 0
    blob: str = ""


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model that people ask for.

    Attributes:
        name: what the aliases call it.
        variants: those that can be had, the best first.
        busy: requests of it that run at once, on average, in the busiest hour.
        names: of all that have the weights of a variant, as `ollama cp` and a Modelfile make them.
    """

    name: str
    variants: tuple[PlannedVariant, ...]
    busy: float = 0.0
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PlannedNode:
    """A node.

    Attributes:
        name: of it.
        room: the bytes that models can have; 0: unknown.
        slots: requests that a model answers at once.
        installed: the names that it has.
        options: how its server loads models, as far as it has shown; None: as usual.
    """

    name: str
    room: int
    slots: int = 1
    installed: frozenset[str] = frozenset()
    options: RunOptions | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """A model on a node, with the bytes that it takes."""

    node: str
    model: str
    variant: PlannedVariant
    need: int
    pull: bool


@dataclass(slots=True)
class FleetPlan:
    """What to have where.

    Attributes:
        placements: in the order in which they were decided.
        unplaced: models that fit nowhere next to the others: each time somebody asks, something is unloaded.
    """

    placements: list[Placement] = field(default_factory=list)
    unplaced: list[str] = field(default_factory=list)

    def on(self, node: str) -> list[Placement]:
        return [one for one in self.placements if one.node == node]

    def of(self, model: str) -> list[Placement]:
        return [one for one in self.placements if one.model == model]

    def used(self, node: str) -> int:
        return sum(one.need for one in self.on(node))


def need_of(variant: PlannedVariant, node: PlannedNode, context: int) -> int:
    """The bytes that a variant takes on a node."""
    options = replace(node.options or RunOptions(0), context=max(context, variant.context), slots=node.slots)
    return memory_needed(variant.shape, options).total


def state_of(need: int, room: int, beside: int) -> State:
    """How well a model fits a node.

    Args:
        need: bytes that it takes.
        room: bytes that models can have there.
        beside: bytes of the others that are to be there.
    """
    if need + beside <= room:
        return "fits beside"
    if need <= room:
        return "fits"
    return "spills" if room >= HOPELESS_SHARE * need else "cannot"


def plan_fleet(nodes: Sequence[PlannedNode], models: Sequence[PlannedModel], context: int) -> FleetPlan:
    """What to have where.

    Args:
        nodes: those whose memory is known.
        models: that are asked for.
        context: tokens for each slot.
    """
    plan = FleetPlan()
    wanted = sorted(models, key=lambda model: (-model.busy, model.name))
    for model in wanted:
        if not _place(plan, nodes, model, context, _modest(model)):
            plan.unplaced.append(model.name)
    for model in wanted:
        while (copies := plan.of(model.name)) and _is_crowded(model, copies, nodes):
            if not _place(plan, nodes, model, context, _modest(model)):
                break
    _improve(plan, nodes, {model.name: model for model in models}, context)
    return plan


def _modest(model: PlannedModel) -> tuple[PlannedVariant, ...]:
    """The variants for a first place: the best with few bits, then those with fewer, then the others."""
    few = tuple(one for one in model.variants if one.bits <= MODEST_BITS)
    return few + tuple(one for one in reversed(model.variants) if one not in few)


def _place(
    plan: FleetPlan,
    nodes: Sequence[PlannedNode],
    model: PlannedModel,
    context: int,
    variants: Sequence[PlannedVariant],
) -> bool:
    """Give a model one more node. Those that have the variant come first, then those with the most room."""
    there = {one.node for one in plan.of(model.name)}
    for variant in variants:
        found = [
            (variant.name in node.installed, node.room - plan.used(node.name), node)
            for node in nodes
            if node.name not in there and need_of(variant, node, context) + plan.used(node.name) <= node.room
        ]
        if found:
            _, _, node = max(found, key=lambda one: one[:2])
            need = need_of(variant, node, context)
            pull = variant.name not in node.installed
            plan.placements.append(Placement(node.name, model.name, variant, need, pull))
            return True
    return False


def _is_crowded(model: PlannedModel, copies: Sequence[Placement], nodes: Sequence[PlannedNode]) -> bool:
    slots = {node.name: node.slots for node in nodes}
    return model.busy > BUSY_SHARE * sum(slots[one.node] for one in copies)


def _improve(
    plan: FleetPlan, nodes: Sequence[PlannedNode], models: Mapping[str, PlannedModel], context: int
) -> None:
    """Use what memory is left for better quantizations."""
    rooms = {node.name: node for node in nodes}
    for number, placed in enumerate(plan.placements):
        node = rooms[placed.node]
        left = node.room - plan.used(node.name) + placed.need
        for variant in models[placed.model].variants:
            if variant == placed.variant:
                break
            need = need_of(variant, node, context)
            if need <= left:
                pull = variant.name not in node.installed
                plan.placements[number] = Placement(node.name, placed.model, variant, need, pull)
                break


# --- ollama_pack.routing.plan.demand ---
# What people ask for: chats from the router's record, or from a file like it.

MAX_RECORDS = 10_000
MAX_TOKENS = 10**7
HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One chat of the record.

    Attributes:
        at: when it came, in seconds.
        model: that answered.
        user: who asked, as the record names people.
        prompt: tokens, and `held` of these that were in a node's cache.
        written: tokens of the answer.
        seconds: that it held a slot.
        background: nobody waited for it.
    """

    at: float
    model: str
    user: str
    prompt: int
    held: int
    written: int
    seconds: float
    background: bool


@dataclass(frozen=True, slots=True)
class Demand:
    """Chats of a record, and where they come from, in words. None: all models are asked for equally."""

    chats: Sequence[Asked]
    source: str


@dataclass(frozen=True, slots=True)
class Speeds:
    """What the record says of the nodes: tokens a second, and bytes a second of a load."""

    prompt: float = 700.0
    decode: float = 40.0
    load: float = 1.0e9


def asked_in(records: Iterable[Mapping[str, Any]]) -> list[Asked]:
    """The chats of a record that a node has answered, the oldest first; odd ones are passed over."""
    found = [one for record in records if (one := _asked(record))]
    return sorted(found, key=lambda one: one.at)[-MAX_RECORDS:]


def _asked(record: Mapping[str, Any]) -> Asked | None:
    model, at = record.get("model"), _number(record.get("at"), 1e12)
    if not isinstance(model, str) or not model or not at:
        return None
    took = _number(record.get("took"), 1e6)
    waited = min(took, _number(record.get("waited"), 1e6))
    prompt = int(_number(record.get("prompt"), MAX_TOKENS))
    return Asked(
        at=at - took,
        model=model,
        user=str(record.get("user") or ""),
        prompt=max(1, prompt),
        held=min(prompt, int(_number(record.get("held"), MAX_TOKENS))),
        written=max(1, int(_number(record.get("written"), MAX_TOKENS))),
        seconds=took - waited,
        background=record.get("background") is True,
    )


def _number(value: object, most: float) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
    return float(value) if good else 0.0  # type: ignore[arg-type] # a number, as `good` says


def busiest_hour(asked: Sequence[Asked]) -> dict[str, float]:
    """Model → requests of it that run at once, on average, in the hour in which most do."""
    hours: dict[int, dict[str, float]] = {}
    for one in asked:
        hour = hours.setdefault(int(one.at // HOUR), {})
        hour[one.model] = hour.get(one.model, 0.0) + one.seconds / HOUR
    return max(hours.values(), key=lambda hour: sum(hour.values()), default={})


def speeds_of(asked: Sequence[Asked]) -> Speeds:
    """How fast the nodes were, as far as the record shows it."""
    usual = Speeds()
    rates = [one.written / one.seconds for one in asked if one.seconds > 1 and one.written > 20]  # noqa: PLR2004 - enough to tell
    return Speeds(decode=statistics.median(rates)) if rates else usual


# --- ollama_pack.routing.plan.virtual_fleet ---
# A node as Ollama is, in virtual time: no sockets, no sleeping, thousands of requests in a second.
#
# What it does is what a real one does: requests for a loaded model wait at its runner
# without bound; those that must load wait in one line, and one load blocks the others; the idle runner with the
# shortest `keep_alive` makes room; prompts are evaluated but for the prefix that a slot still holds; waiting
# shows only in the total duration.

KEEP_SECONDS = 300.0  # Ollama's own `keep_alive`


class Timeline:
    """Virtual time and what happens in it. Ties happen in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._due, (max(when, self.now), next(self._order), then))

    def after(self, delay: float, then: Callable[[], None]) -> None:
        self.at(self.now + delay, then)

    def run(self, until: float = float("inf")) -> None:
        """Let everything happen that is due up to then."""
        while self._due and self._due[0][0] <= until:
            self.now, _, then = heapq.heappop(self._due)
            then()


@dataclass(frozen=True, slots=True)
class Work:
    """What a request makes a node do. The answer's block is what a later prompt may continue."""

    id: str
    model: str
    blocks: tuple[PromptBlock, ...]
    output: int
    answer: PromptBlock | None = None
    context: int = 4096
    load_only: bool = False

    @property
    def tokens(self) -> int:
        return self.blocks[-1].upto


@dataclass(frozen=True, slots=True)
class Spent:
    """What the node reports at the end, in seconds, as Ollama does; `hit` only the simulation knows."""

    total: float
    load: float
    prompt: float
    prompt_count: int
    decode: float
    decode_count: int
    hit: int


@dataclass(frozen=True, slots=True)
class NodeShape:
    """How a node is built. Sizes are in units of one model, or in bytes where a node gets its models' sizes.

    A load takes `load` seconds, or with a `load_rate` what reading so many bytes a second takes. With
    `unloads` a model that was idle for `KEEP_SECONDS` leaves, as in Ollama; otherwise only to make room.
    """

    slots: int = 2
    room: int = 1
    load: float = 4.0
    prompt_rate: float = 700.0
    decode_rate: float = 50.0
    prefixes: int = 1
    load_rate: float = 0.0
    unloads: bool = False


@dataclass(slots=True)
class Job:
    """A request at a node, and whom to tell."""

    work: Work
    came: float
    first_token: Callable[[], None]
    done: Callable[[Spent], None]
    load: float = 0.0
    began: float = 0.0
    cancelled: bool = False


@dataclass(slots=True)
class SimRunner:
    model: str
    context: int
    ready: bool = False
    busy: int = 0
    line: deque[Job] = field(default_factory=deque)
    kept: list[list[PromptBlock]] = field(default_factory=list)
    expires_at: float = 0.0


class SimNode:
    """One Ollama. `loads` counts the times that weights were read into memory."""

    def __init__(
        self,
        name: str,
        timeline: Timeline,
        shape: NodeShape,
        sizes: Mapping[str, int] | None = None,
        kept: Collection[str] = (),
    ) -> None:
        """Have nothing in memory.

        Args:
            name: of it.
            timeline: when things happen.
            shape: how it is built.
            sizes: of its models; None: all are of one size.
            kept: models whose chats ask for them to stay in memory.
        """
        self.name = name
        self.shape = shape
        self.loads = 0
        self.runners: dict[str, SimRunner] = {}
        self._sizes = sizes or {}
        self._kept = frozenset(kept)
        self._time = timeline
        self._pending: deque[Job] = deque()
        self._loading = False

    @property
    def outstanding(self) -> int:
        at_runners = sum(runner.busy + len(runner.line) for runner in self.runners.values())
        return at_runners + len(self._pending)

    def submit(self, job: Job) -> None:
        runner = self.runners.get(job.work.model)
        if runner and runner.context >= job.work.context:
            self._join(runner, job)
        else:
            self._pending.append(job)
            self._serve_pending()

    def _serve_pending(self) -> None:
        while self._pending and not self._loading:
            job = self._pending[0]
            runner = self.runners.get(job.work.model)
            if runner and runner.context >= job.work.context:
                self._pending.popleft()
                self._join(runner, job)
            elif runner is None and self._fits(job.work.model):
                self._load(self._pending.popleft())
            elif not self._evict(runner):
                return

    def preload(self, model: str, context: int = 4096) -> None:
        """Have a model in memory from the beginning, and keep it as long as there is another to unload."""
        self.loads += 1
        self.runners[model] = SimRunner(model, context, ready=True, expires_at=math.inf)

    def _size(self, model: str) -> int:
        return self._sizes.get(model, 1)

    def _fits(self, model: str) -> bool:
        return not self.runners or sum(map(self._size, (*self.runners, model))) <= self.shape.room

    def _evict(self, reloaded: SimRunner | None) -> bool:
        """Unload the runner that must go; False: it is busy, and whoever waits waits."""
        idle = [one for one in self.runners.values() if not one.busy and not one.line]
        victim = reloaded or min(idle, key=_stays, default=None)
        if victim is None or victim.busy or victim.line:
            return False
        del self.runners[victim.model]
        return True

    def _expire(self, runner: SimRunner) -> None:
        is_there = self.runners.get(runner.model) is runner
        if is_there and not runner.busy and not runner.line and self._time.now >= runner.expires_at:
            del self.runners[runner.model]

    def _load(self, job: Job) -> None:
        self._loading = True
        self.loads += 1
        shape = self.shape
        job.load = self._size(job.work.model) / shape.load_rate if shape.load_rate else shape.load
        runner = self.runners[job.work.model] = SimRunner(job.work.model, job.work.context)
        runner.line.append(job)

        def loaded() -> None:
            self._loading = False
            runner.ready = True
            self._start_next(runner)
            self._serve_pending()

        self._time.after(job.load, loaded)

    def _join(self, runner: SimRunner, job: Job) -> None:
        runner.line.append(job)
        self._start_next(runner)

    def _start_next(self, runner: SimRunner) -> None:
        while runner.ready and runner.line and runner.busy < self.shape.slots:
            job = runner.line.popleft()
            if not job.cancelled:
                self._start(runner, job)

    def _start(self, runner: SimRunner, job: Job) -> None:
        if job.work.load_only:
            job.done(Spent(self._time.now - job.came, job.load, 0.0, 0, 0.0, 0, 0))
            return
        runner.busy += 1
        job.began = self._time.now
        blocks = job.work.blocks
        hit, slot = self._take_slot(runner, blocks)
        prompt = (job.work.tokens - hit + 1) / self.shape.prompt_rate
        decode = job.work.output / self.shape.decode_rate

        def done() -> None:
            runner.busy -= 1
            if job.work.answer:
                slot.append(job.work.answer)
            stays = math.inf if runner.model in self._kept else self._time.now + KEEP_SECONDS
            runner.expires_at = max(runner.expires_at, stays)
            if self.shape.unloads and runner.expires_at < math.inf:
                self._time.at(runner.expires_at, lambda: self._expire(runner))
            total = self._time.now - job.came
            spent = Spent(total, job.load, prompt, job.work.tokens, decode, job.work.output, hit)
            self._start_next(runner)
            self._serve_pending()
            job.done(spent)

        self._time.after(prompt, job.first_token)
        self._time.after(prompt + decode, done)

    def _take_slot(self, runner: SimRunner, blocks: tuple[PromptBlock, ...]) -> tuple[int, list[PromptBlock]]:
        """The longest prefix that is held, and the slot that now holds this prompt instead."""
        hits = [_common(kept, blocks) for kept in runner.kept]
        best = max(range(len(hits)), key=hits.__getitem__, default=-1)
        hit = hits[best] if hits else 0
        if hits and 2 * hit >= runner.kept[best][-1].upto:  # it continues that prompt
            runner.kept.pop(best)
        slot = list(blocks)
        runner.kept.insert(0, slot)
        del runner.kept[self.shape.prefixes :]
        return hit, slot


def _stays(runner: SimRunner) -> tuple[bool, str]:
    """Ollama unloads those first that stay shortest after a chat, of equals by their digests."""
    return math.isinf(runner.expires_at), runner.model


def _common(kept: list[PromptBlock], blocks: tuple[PromptBlock, ...]) -> int:
    same = itertools.takewhile(lambda pair: pair[0].chain == pair[1].chain, zip(kept, blocks, strict=False))
    return max((block.upto for _, block in same), default=0)


# --- ollama_pack.routing.plan.replay ---
# A recorded day again, in virtual time: the router's own scheduler over simulated nodes.

PROBE_SECONDS = 5.0
_replay__QUEUE = 1000


@dataclass(frozen=True, slots=True)
class ReplayNode:
    """A node to replay on.

    Attributes:
        name: of it.
        room: bytes that models can have.
        slots: requests that a model answers at once.
        sizes: model → bytes, of those that it has.
        warm: models that are loaded before the day begins, and kept.
    """

    name: str
    room: int
    slots: int
    sizes: Mapping[str, int]
    warm: tuple[str, ...] = ()


@dataclass(slots=True)
class Replayed:
    """What came of it: seconds to the first token of people's chats, loads, and chats that got no answer."""

    waits: list[float] = field(default_factory=list)
    loads: int = 0
    refused: int = 0

    @property
    def figures(self) -> dict[str, float]:
        ordered = sorted(self.waits) or [0.0]
        return {
            "chats": len(self.waits),
            "mean_seconds": round(statistics.mean(ordered), 2),
            "p95_seconds": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 2),
            "loads": self.loads,
            "refused": self.refused,
        }


def replay(nodes: Sequence[ReplayNode], asked: Sequence[Asked], speeds: Speeds) -> Replayed:
    """Play chats on nodes. Equal arguments give equal figures."""
    day = _Day(nodes, speeds)
    begins = min((one.at for one in asked), default=0.0)
    for number, one in enumerate(asked):
        day.clock.at(1.0 + one.at - begins, lambda number=number, one=one: day.ask(number, one))  # type: ignore[misc] # mypy cannot see a lambda's defaults
    day.clock.run()
    day.result.loads = sum(node.loads for node in day.nodes.values())
    return day.result


class _Day:
    """The scheduler, told of what happens as the router would tell it."""

    def __init__(self, nodes: Sequence[ReplayNode], speeds: Speeds) -> None:
        self.clock = Timeline()
        self.result = Replayed()
        kept = {model for node in nodes for model in node.warm}
        self.nodes = {
            node.name: SimNode(
                node.name,
                self.clock,
                NodeShape(
                    slots=node.slots,
                    room=node.room,
                    load_rate=speeds.load,
                    prompt_rate=speeds.prompt,
                    decode_rate=speeds.decode,
                    prefixes=node.slots,
                    unloads=True,
                ),
                node.sizes,
                kept,
            )
            for node in nodes
        }
        rows = [NodeRow(node.name, f"http://{node.name}", slots=node.slots) for node in nodes]
        self.scheduler = Scheduler(rows, lambda: self.clock.now, Random(1), max_queue=_replay__QUEUE)  # noqa: S311 - breaks ties
        self._installed = {
            node.name: {name: InstalledModel(name, size) for name, size in node.sizes.items()}
            for node in nodes
        }
        self._calls: dict[str, tuple[Asked, Work]] = {}
        self._probing = False
        self._wakes_at = 0.0  # the next decision that is due without news
        for node in nodes:
            self.scheduler.cluster.sized(node.name, node.room)
            for model in node.warm:
                self.nodes[node.name].preload(model)
        self._probe()

    def ask(self, number: int, one: Asked) -> None:
        """A chat comes."""
        identity = f"r{number}"
        blocks = _replay__blocks(number, one)
        answer = PromptBlock(_chain("answer", number), one.prompt + one.written, answer=True)
        work = Work(identity, one.model, blocks, one.written, answer)
        request = FleetRequest(identity, one.user, (one.model,), one.user, blocks, background=one.background)
        try:
            displaced = self.scheduler.submit(request)
        except RoutingError:  # no room in the queue, or a model of the record that no node has now
            self.result.refused += 1
            return
        if displaced:
            del self._calls[displaced.id]
            self.result.refused += 1
        self._calls[identity] = one, work
        if not self._probing:
            self._probe()
        self._decide()
        if not self._probing:
            self._probing = True
            self.clock.after(PROBE_SECONDS, self._probe_again)

    def _probe_again(self) -> None:
        self._probe()
        self._decide()
        self._probing = bool(self._calls)
        if self._probing:
            self.clock.after(PROBE_SECONDS, self._probe_again)

    def _probe(self) -> None:
        for name, node in self.nodes.items():
            there = [one for one in node.runners.values() if one.ready]
            sizes = self._installed[name]
            residents = [
                ResidentModel(one.model, sizes[one.model].size, one.context, one.expires_at) for one in there
            ]
            self.scheduler.cluster.probed(name, sizes, residents)

    def _decide(self) -> None:
        for binding in [*self.scheduler.decide(), *self.scheduler.load_ahead()]:
            self._start(binding)
        wake = self.scheduler.wake_at
        if wake is not None and not self.clock.now < self._wakes_at <= wake:
            self._wakes_at = wake
            self.clock.at(wake, self._decide)

    def _start(self, binding: Assignment) -> None:
        identity = binding.request.id
        if binding.request.load_only:
            work = Work(identity, binding.model, (), 0, load_only=True)
            self._send(binding, work, lambda: None)
            return
        one, work = self._calls[identity]

        def began() -> None:
            self.scheduler.first_token(identity)
            if not one.background:
                self.result.waits.append(self.clock.now - came)
            self._decide()

        came = self.clock.now - binding.waited
        self._send(binding, work, began)

    def _send(self, binding: Assignment, work: Work, began: Callable[[], None]) -> None:
        identity = binding.request.id

        def ended(spent: Spent) -> None:
            self._calls.pop(identity, None)
            self.scheduler.finished(identity, _durations(spent))
            self._decide()

        self.nodes[binding.node].submit(Job(work, self.clock.now, began, ended))


def _durations(spent: Spent) -> Durations:
    counts = spent.prompt_count, spent.decode, spent.decode_count
    return Durations(spent.total, spent.load, spent.prompt, *counts, spent.hit)


def _replay__blocks(number: int, one: Asked) -> tuple[PromptBlock, ...]:
    """What a node held of the prompt, which is its user's, and the rest, which is new."""
    held = (PromptBlock(_chain(one.model, one.user), one.held),) if one.held else ()
    return (*held, PromptBlock(_chain("new", number), max(one.prompt, one.held + 1)))


def _chain(*parts: object) -> int:
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=7).digest())


# --- ollama_pack.routing.plan.report ---
# What fits where, what to pull, and what one more GPU would bring: all of a plan, as people read it.

USUAL_CONTEXT = 8192
USUAL_LEVEL = "Q4_K_M"  # of a model whose name says none
LEVELS = ("Q8_0", "Q6_K", USUAL_LEVEL, "Q3_K_M")  # that the table has, whether they are installed or not
MORE_GPUS = (24, 48, 80)  # GB of one more GPU, next to those that the fleet has
MAX_SIZES = 5  # of one more GPU that are tried
ACTIVE_SHARE = 0.1  # of people who use a chat, those who wait for an answer at one moment
MAX_PLANNED = 50  # models; those that people ask for most
GIGABYTE = 1e9
# Of the newest chats so many are simulated where somebody waits: about a second for each fleet.
MOST_STEPS, LEAST_REPLAYED = 6_000, 100  # chats times nodes; chats


@dataclass(frozen=True, slots=True)
class SeenNode:
    """A node as it answered.

    Attributes:
        name: of its row.
        url: its address, as it may be shown.
        room: bytes that models can have; 0: nobody knows.
        source: how that is known, in words.
        slots: requests that a model answers at once.
        options: how its server is set up, as far as it has shown; None: as usual.
        variants: what it has installed, by name.
        elsewhere: names that it answers for without memory of its own: cloud models, those of other engines.
        fault: why nothing is known of it; empty: all is.
    """

    name: str
    url: str
    room: int = 0
    source: str = ""
    slots: int = 1
    options: RunOptions | None = None
    variants: Mapping[str, PlannedVariant] = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()
    fault: str = ""

    @property
    def planned(self) -> PlannedNode:
        return PlannedNode(self.name, self.room, self.slots, frozenset(self.variants), self.options)


@dataclass(frozen=True, slots=True)
class WantedModels:
    """The models that aliases name, and those of them whose best variant is chosen (`quantization: auto`)."""

    names: tuple[str, ...] = ()
    automatic: frozenset[str] = frozenset()


@dataclass(slots=True)
class PlanReport:
    """All that was found out.

    Attributes:
        nodes: as they are.
        context: tokens of each chat.
        rows: for each model, quantization and node the bytes, and how well it fits.
        plan: what to have where.
        demand: where the demand comes from, in words.
        replays: the record again, on several fleets, and how many of its chats.
    """

    nodes: Sequence[SeenNode]
    context: int
    demand: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    plan: FleetPlan = field(default_factory=FleetPlan)
    replays: list[dict[str, Any]] = field(default_factory=list)
    replayed: int = 0

    @property
    def pulls(self) -> list[str]:
        """What to pull where, as commands."""
        urls = {node.name: node.url for node in self.nodes}
        return [
            f"OLLAMA_HOST={urls[one.node]} ollama pull {one.variant.name}"
            for one in self.plan.placements
            if one.pull
        ]

    @property
    def notes(self) -> list[str]:
        """What keeps nodes out of the plan though they answer."""
        return [
            message(
                "{node}: its memory is not known. Add `memory: 24GB` (in the valve: `memory=24GB`) to its "
                "row, or start gpu_agent.py there.",
                node=node.name,
            )
            for node in self.nodes
            if not node.fault and not node.room
        ]

    @property
    def as_json(self) -> dict[str, Any]:
        """For the page, and for programs."""
        return {
            "context": self.context,
            "nodes": [
                {
                    "name": node.name,
                    "room_bytes": node.room,
                    "room_from": node.source,
                    "slots": node.slots,
                    "fault": node.fault,
                }
                for node in self.nodes
            ],
            "fits": self.rows,
            "plan": [
                {
                    "node": one.node,
                    "model": one.model,
                    "variant": one.variant.name,
                    "level": one.variant.level,
                    "bytes": one.need,
                    "pull": one.pull,
                }
                for one in self.plan.placements
            ],
            "unplaced": self.plan.unplaced,
            "pulls": self.pulls,
            "demand": self.demand,
            "replays": self.replays,
            "replayed": self.replayed,
            "notes": self.notes,
        }


def plan_report(  # noqa: PLR0913 - each is a fact of its own
    nodes: Sequence[SeenNode],
    wanted: WantedModels,
    demand: Demand,
    *,
    context: int = USUAL_CONTEXT,
    users: int | None = None,
    seconds: float = math.inf,
) -> PlanReport:
    """Plan.

    Args:
        nodes: as they answered.
        wanted: the models that aliases name.
        demand: what people asked for.
        context: tokens of each chat.
        users: people who use chats; None: as many as the record has.
        seconds: after which no further fleet is simulated, and fewer chats are: somebody waits.
    """
    report = PlanReport(nodes, context, demand.source)
    elsewhere = _elsewhere(nodes, {*wanted.names, *(one.model for one in demand.chats)})
    wanted = replace(wanted, names=tuple(name for name in wanted.names if name not in elsewhere))
    asked = [one for one in demand.chats if one.model not in elsewhere]
    known = [node for node in nodes if node.room and not node.fault]
    planned = [node.planned for node in known]
    models = list(_report__models(nodes, wanted, asked, users))
    report.plan = plan_fleet(planned, models, context)
    report.rows = list(_rows(planned, models, report.plan, context))
    if asked and known:
        hurried = math.isfinite(seconds)
        recent = asked[-max(LEAST_REPLAYED, MOST_STEPS // len(known)) :] if hurried else asked
        ends = time.monotonic() + seconds
        for one in _replays(known, models, report.plan, recent, context):
            report.replays.append(one)
            if time.monotonic() > ends:
                break
        report.replayed = len(recent)
    return report


def _elsewhere(nodes: Sequence[SeenNode], names: Collection[str]) -> frozenset[str]:
    """The names that only models answer for which take no memory of these nodes."""
    there = {name for node in nodes for name in node.variants}
    others = {name for node in nodes for name in node.elsewhere}
    return frozenset(
        name
        for name in names
        if (is_cloud_name(name) or find_model(name, others)) and not find_model(name, there)
    )


def _report__models(
    nodes: Sequence[SeenNode], wanted: WantedModels, asked: Sequence[Asked], users: int | None
) -> Iterator[PlannedModel]:
    """What people ask for, by the record and the aliases, in all quantizations that are there."""
    there = {name: one for node in nodes for name, one in node.variants.items()}
    levels = {name: one.level for name, one in there.items()}
    busy = busiest_hour(asked)
    often = sorted(dict.fromkeys(one.model for one in asked), key=lambda name: -busy.get(name, 0.0))
    names = list(dict.fromkeys([*wanted.names, *often]))[:MAX_PLANNED] or sorted(there)[:MAX_PLANNED]
    if not busy:
        busy = dict.fromkeys(names, 1 / max(1, len(names)))
    scale = users * ACTIVE_SHARE / max(1e-9, sum(busy.values())) if users else 1.0
    sharing: dict[str, list[PlannedVariant]] = {}
    for one in there.values():
        sharing.setdefault(one.blob or one.name, []).append(one)
    covered: set[str] = set()
    for name in names:
        exact = find_model(name, there)
        family = variants_of(name, levels) if name in wanted.automatic else {exact: ""} if exact else {}
        variants = [there[one] for one in quality_order(list(family), [levels[one] for one in family])]
        if not variants and parameters_in(name):
            variants = [_not_pulled(name)]
        found = {one.name for one in variants}
        for number, variant in enumerate(variants):  # names of the same weights share what is in memory
            twins = sharing.get(variant.blob or variant.name, ())
            found |= {twin.name for twin in twins}
            variants[number] = replace(
                variant, context=max([variant.context, *(one.context for one in twins)])
            )
        if variants and not found & covered:
            covered |= found
            busiest = scale * sum(busy.get(one, 0.0) for one in found | {name})
            yield PlannedModel(name, tuple(variants), busiest, frozenset(found))


def _not_pulled(name: str) -> PlannedVariant:
    """A model that no node has, by what its name says."""
    level = quantization_in(name) or USUAL_LEVEL
    bits = level_bits(level) or level_bits(USUAL_LEVEL)
    return PlannedVariant(name, level, bits, planned_shape(parameters_in(name), bits))


def _rows(
    nodes: Sequence[PlannedNode], models: Sequence[PlannedModel], plan: FleetPlan, context: int
) -> Iterator[dict[str, Any]]:
    """Nodes, models and quantizations, those that are there and the usual ones."""
    on = {node.name: plan.on(node.name) for node in nodes}
    for model in models:
        best = model.variants[0]
        usual = [
            PlannedVariant(
                "",
                level,
                level_bits(level),
                in_other_bits(best.shape, best.bits or level_bits(USUAL_LEVEL), level_bits(level)),
                best.context,
            )
            for level in LEVELS
            if level not in {one.level.upper() for one in model.variants}
        ]
        for variant in sorted([*model.variants, *usual], key=lambda one: -one.bits):
            for node in nodes:
                need = need_of(variant, node, context)
                beside = sum(one.need for one in on[node.name] if one.model != model.name)
                yield {
                    "model": model.name,
                    "variant": variant.name,
                    "level": variant.level,
                    "node": node.name,
                    "bytes": need,
                    "state": state_of(need, node.room, beside),
                    "installed": variant.name in node.installed,
                    "planned": any(one.variant == variant for one in on[node.name]),
                }


def _replays(
    nodes: Sequence[SeenNode],
    models: Sequence[PlannedModel],
    plan: FleetPlan,
    asked: Sequence[Asked],
    context: int,
) -> Iterator[dict[str, Any]]:
    """The recorded chats again: on the nodes as they are, with the plan, and with one more GPU."""
    speeds = speeds_of(asked)
    names = {name: model.name for model in models for name in model.names}
    known = [replace(one, model=names.get(one.model, one.model)) for one in asked]
    before = [_as_it_is(node, models, context) for node in nodes]
    sizes = {node.name: node.sizes for node in before}
    yield {"fleet": message("as it is")} | replay(before, known, speeds).figures
    planned = [node.planned for node in nodes]
    with_plan = [_with_plan(node, plan, sizes[node.name]) for node in planned]
    yield {"fleet": message("with the plan")} | replay(with_plan, known, speeds).figures
    rooms = {node.room for node in nodes} | {usable_memory(round(size * GIGABYTE)) for size in MORE_GPUS}
    for room in sorted(_different(rooms)):
        slots = max(node.slots for node in nodes)
        more = [*planned, PlannedNode("one more", room, slots)]
        plan_then = plan_fleet(more, models, context)
        fleet = [_with_plan(node, plan_then, sizes.get(node.name, {})) for node in more]
        label = message("with the plan and one more GPU, {room} GB for models", room=f"{room / GIGABYTE:.0f}")
        yield {"fleet": label} | replay(fleet, known, speeds).figures


def _as_it_is(node: SeenNode, models: Sequence[PlannedModel], context: int) -> ReplayNode:
    sizes = {
        model.name: min(
            need_of(one, node.planned, context) for one in model.variants if one.name in node.variants
        )
        for model in models
        if any(one.name in node.variants for one in model.variants)
    }
    return ReplayNode(node.name, node.room, node.slots, sizes)


def _with_plan(node: PlannedNode, plan: FleetPlan, sizes: Mapping[str, int]) -> ReplayNode:
    placed = {one.model: one.need for one in plan.on(node.name)}
    return ReplayNode(node.name, node.room, node.slots, {**sizes, **placed}, tuple(placed))


def _different(rooms: Collection[int]) -> list[int]:
    """The sizes of a further GPU, without those that read the same."""
    by_label = {round(room / GIGABYTE): room for room in sorted(rooms)}
    return sorted(by_label.values())[-MAX_SIZES:]


# --- ollama_pack.routing.dispatch.report ---
# What a router tells of its nodes: for the load endpoint, the admin's dashboard, and a plan.


def load_report(router: Router) -> dict[str, Any]:
    """The answer of `GET /api/system/load` as an admin gets it, addresses included."""
    nodes = [_node_load(router, view) for view in router.scheduler.cluster.view().nodes]
    return {**_usage(router), "nodes": nodes}


def _usage(router: Router) -> dict[str, float | None]:
    """Percent of each GPU; those that several nodes share count once."""
    sources = {watch.gpu_source: watch.gpus.gpus for watch in router.nodes.values()}
    return gpu_usage(sources.values())


def dashboard_report(router: Router) -> dict[str, Any]:
    """The same, with what is in memory, what was learned, and the chats at work, the newest first."""
    nodes = [
        _node_load(router, view) | _node_details(router, view)
        for view in router.scheduler.cluster.view().nodes
    ]
    told = {"waiting": router.scheduler.waiting, "peers": router.peers, "running": router.running()}
    told["upkeep"] = router.upkeep.report
    return {**_usage(router), "nodes": nodes, **told, "sharing_fault": router.sharing_fault}


def _node_load(router: Router, view: NodeView) -> dict[str, Any]:
    return {
        "name": view.name,
        "url": router.nodes[view.name].client.name,
        "healthy": router.is_healthy(view.name),
        "in_flight": router.in_flight(view.name),
        "queued": router.queued(view.name),
        "breakers": router.scheduler.cluster.nodes[view.name].shut(router.scheduler.cluster.view().now),
        "models": [runner.model for runner in view.runners] if router.is_healthy(view.name) else [],
        "gpus": [gpu_values(gpu) for gpu in router.nodes[view.name].gpus.gpus],
    }


def _node_details(router: Router, view: NodeView) -> dict[str, Any]:
    now = router.scheduler.cluster.view().now
    return {
        "own": router.own_in_flight(view.name),
        "gpu_reason": router.nodes[view.name].gpus.reason,
        "fault": router.nodes[view.name].fault,
        "breaker": router.scheduler.cluster.nodes[view.name].breaker.state(now),
        "runners": [_runner_details(runner) for runner in view.runners],
        # The beginning of its weights' digest, and of an adapter's.
        "rates": {blob[:12] + blob[64:77]: _rate_details(view, blob) for blob in view.rates},
    }


def _runner_details(runner: RunnerView) -> dict[str, Any]:
    return {
        "model": runner.model,
        "context": runner.context,
        "slots": runner.slots,
        "running": len(runner.ends),
        "prefixes": len(runner.prefixes),
    }


def _rate_details(view: NodeView, blob: str) -> dict[str, Any]:
    rates = view.rates[blob]
    return {
        "model": next((name for name, model in view.models.items() if model.blob == blob), ""),
        "load": rates.load,
        "prompt": rates.prompt,
        "token": rates.token,
        "learned": rates.learned,
    }


def nodes_to_plan(router: Router) -> list[SeenNode]:
    """The nodes for `plan_report`: what they have installed, how much memory, and how they load models."""
    return [_node_to_plan(router, name) for name, watch in router.nodes.items() if not watch.leaving]


def _node_to_plan(router: Router, name: str) -> SeenNode:
    watch, state = router.nodes[name], router.scheduler.cluster.nodes[name]
    address = watch.client.name
    if watch.row.kind != "ollama":
        names = frozenset(model.name for model in watch.models)
        return SeenNode(name, address, elsewhere=names, fault=message("only Ollama nodes are planned"))
    if watch.is_gone:
        return SeenNode(name, address, fault=watch.fault or message("it has not answered yet"))
    memory = state.memory
    return SeenNode(
        name=name,
        url=address,
        room=memory.room if memory.measured else 0,
        source=memory.source,
        slots=watch.row.slots or memory.options.slots,
        options=memory.options,
        variants={
            model.name: PlannedVariant(
                name=model.name,
                level=level_of(model.quantization, model.name),
                bits=model.installed.bits,
                shape=model.installed.shape,
                context=model.installed.context,
                blob=model.installed.blob,
            )
            for model in watch.models
            if model.installed.shape is not None and not model.installed.remote
        },
        elsewhere=frozenset(model.name for model in watch.models if model.installed.remote),
    )


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


# --- ollama_pack.services.budget_chats ---
# Chats that are under way and their budgets: what each has used so far, by whoever knows it best.

BUDGET_STATE = "ollama_pack_budget"  # the filter's key in `__metadata__`, where it leaves the ticket


# --- ollama_pack.webui.audience ---
# Whom published models are for: the words that an admin writes, and the grants that they stand for.

Grants = frozenset[tuple[str, str, str]]  # principal type, principal id, permission


def grants_in(forms: Any) -> Grants:
    """Grants from the form that Open WebUI has them in."""
    return frozenset(
        (str(one["principal_type"]), str(one["principal_id"]), str(one["permission"]))
        for one in (forms if isinstance(forms, list) else ())
        if isinstance(one, dict)
    )


# --- ollama_pack.webui.model_rows ---
# Rows of Open WebUI's models table, as they are, and the mark by which the pack knows its own.

MARK = "ollama_pack"  # the key in a row's meta, the uploader's too
MAKER = "ollama_pack_events"
# A row's capabilities, as upload.py sets them: Open WebUI keeps its own tools from the model.
WITHOUT_TOOLS = {"builtin_tools": False}
ANSWERED_BY = "→ "  # begins what the picker says under an alias, in every language
NO_PICTURE = "/static/favicon.png"  # as Open WebUI stores it, which some versions do


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
        owner: id of the user who made it, who may always use it.
    """

    id: str
    name: str
    base: str | None
    grants: Grants
    active: bool = True
    meta: Mapping[str, Any] = field(default_factory=dict)
    has_params: bool = False
    owner: str = ""

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
    def is_alias(self) -> bool:
        """Whether the pack made it for an alias: then it is no model's own row."""
        return self.mark.get("kind") == "alias"

    @property
    def only_hides(self) -> bool:
        """Whether the pack made it to hide a model from the picker, and no admin has changed its access."""
        return self.mark.get("kind") == "hidden" and self.active and self.grants == self.given

    @property
    def given(self) -> Grants:
        """The grants that the pack gave last."""
        return grants_in(self.mark.get("grants"))

    @property
    def has_given_grants(self) -> bool:
        """Whether its grants are those that the pack gave. Version 0.1 did not note them."""
        return "grants" not in self.mark or self.grants == self.given

    @property
    def has_given_switch(self) -> bool:
        """Whether it is on or off as the pack set it."""
        return self.active == bool(self.mark.get("active", True))

    @property
    def opens(self) -> bool:
        """Whether an admin has stated who may use it, so that it opens what is behind it and has no own row.

        The admin of a row made by hand has; so has one who changed the grants of ours. `upload.py` publishes
        only what pack.yaml states.
        """
        if self.maker == "events":
            return bool(self.mark.get("opened")) or self.grants != self.given
        return bool(self.mark.get("opened", True))

    @property
    def has_additions(self) -> bool:
        """Whether an admin has put something into the row, has switched it or has changed who may use it."""
        return self.has_settings or not self.has_given_switch or not self.has_given_grants

    @property
    def has_settings(self) -> bool:
        """Whether an admin has put something of their own into the row: a name, a picture, tags."""
        ours = {MARK}
        if is_our_description(self.alias or self.id, self.meta.get("description")):
            ours.add("description")
        if self.meta.get("profile_image_url") == NO_PICTURE:
            ours.add("profile_image_url")
        if self._is_hidden_by_us:
            ours.add("hidden")
        if tag_names(self.meta.get("tags")) == tuple(self.mark.get("tags") or ()):
            ours.add("tags")
        if self.meta.get("capabilities") == WITHOUT_TOOLS:
            ours.add("capabilities")
        added = any(value for key, value in self.meta.items() if key not in ours)
        # upload.py notes no name: it takes over rows that have the router's
        names = {self.mark.get("name")} if "name" in self.mark else {self.id, self.id.removeprefix(ROUTER)}
        return added or self.name not in names or self.has_params

    @property
    def _is_hidden_by_us(self) -> bool:
        """Whether the pack keeps it out of the picker: a twin, or what the router has under an alias."""
        is_of_alias = self.maker == "upload" or bool(self.alias)
        is_under_alias = self.base is None and self.id.startswith(ROUTER) and is_of_alias
        return self.mark.get("kind") == "hidden" or is_under_alias


def existing_row(row: Mapping[str, Any]) -> ExistingRow:
    """A row, as Open WebUI's API and its own code have it."""
    meta, params = row.get("meta") or {}, row.get("params") or {}
    return ExistingRow(
        id=str(row["id"]),
        name=str(row["name"]),
        base=row.get("base_model_id"),
        grants=grants_in(row.get("access_grants")),
        active=bool(row.get("is_active", True)),
        meta={key: value for key, value in meta.items() if value is not None},
        has_params=any(value is not None for value in params.values()),
        owner=str(row.get("user_id") or ""),
    )


def is_our_description(alias: str, text: object) -> bool:
    """Whether the pack, in this version or in 0.1, wrote what the picker says under an alias."""
    return str(text).startswith((ANSWERED_BY, f"{alias} is answered by "))


def tag_names(tags: Any) -> tuple[str, ...]:
    """The names of a row's tags."""
    return tuple(str(tag.get("name")) for tag in tags or () if isinstance(tag, dict))


# --- ollama_pack.webui.models ---
# What Open WebUI knows of models and of who may use them. Imports `open_webui` when called, not before.


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


async def group_ids_of(user: Mapping[str, Any]) -> tuple[str, ...]:
    """Ids of the same groups."""
    return tuple(str(group.id) for group in await _groups_of(user))


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


# --- ollama_pack.webui.access ---
# Who may use a model: the one rule for what is published, for what is uploaded, and for each chat.
#
# A model that Open WebUI offers by itself has a row (`base_model_id` empty) once an admin has set something
# about it: its grants and its switch hold under every name of the model. Without a row it is for admins. An
# alias is for those who may use one of its models. Only where an admin has *stated* an audience (pack.yaml, the
# valve, grants set by hand) does a name open what is behind it, and even then no model with a row of its own.
#
# Imports `open_webui` when called, not before.


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model that may answer.

    Attributes:
        name: as the nodes, or the alias table, call it.
        ids: those under which Open WebUI offers it itself; none: it does not.
    """

    name: str
    ids: tuple[str, ...]


def own_rows(model: CheckedModel, rows: Mapping[str, ExistingRow]) -> list[ExistingRow]:
    """The rows that are a model's own. Those that are based on another model may be a plain user's."""
    found = (rows[model_id] for model_id in model.ids if model_id in rows)
    return [row for row in found if row.base is None and not row.is_alias and not row.only_hides]


async def usable_models(
    routed_id: str, models: Sequence[CheckedModel], user: Mapping[str, Any]
) -> frozenset[str]:
    """The names of those models that a user may use through one of the router's ids.

    Open WebUI has let the user ask for the id. Its row may be older than the models' own, which hold here.

    Args:
        routed_id: what was asked for, such as `gpu_router.gpt-4`.
        models: what may answer.
        user: who asks, as a pipe gets it.
    """
    from open_webui.models.models import Models  # noqa: PLC0415 - see the top of this module

    wanted = {routed_id, *(model_id for model in models for model_id in model.ids)}
    stored = await Models.get_models_by_ids(sorted(wanted))
    rows = {row.id: existing_row(row.model_dump()) for row in stored}
    reader = await _reader(user)
    gate = rows.get(routed_id)
    is_opened = gate is not None and gate.base is None and gate.opens and reader.may_read(gate)

    def is_usable(model: CheckedModel) -> bool:
        if own := own_rows(model, rows):
            return any(row.active and reader.may_read(row) for row in own)
        return reader.reads_all or is_opened  # with its switch off, Open WebUI refuses admins, too

    return frozenset(model.name for model in models if is_usable(model))


@dataclass(frozen=True, slots=True)
class _Reader:
    """A user, as grants know them.

    Attributes:
        principals: kind and id of all that a grant may name for the user.
        user_id: owns rows.
        is_admin: is one; models without a row are for admins.
        reads_all: Open WebUI does not check grants for this user.
    """

    principals: frozenset[tuple[str, str]]
    user_id: str
    is_admin: bool
    reads_all: bool

    def may_read(self, row: ExistingRow) -> bool:
        if self.reads_all or row.owner == self.user_id:
            return True
        return any(
            permission == "read" and (kind, who) in self.principals for kind, who, permission in row.grants
        )


async def _reader(user: Mapping[str, Any]) -> _Reader:
    user_id, is_admin = str(user.get("id") or ""), user.get("role") == "admin"
    if reads_all(user):
        return _Reader(frozenset(), user_id, is_admin=True, reads_all=True)
    groups = (("group", group) for group in await group_ids_of(user))
    return _Reader(frozenset((("user", "*"), ("user", user_id), *groups)), user_id, is_admin, reads_all=False)


# --- ollama_pack.webui.connections ---
# Open WebUI's own connections, as its admin has set them. Imports `open_webui` when called, not before.

_ENTRA = frozenset({"azure_ad", "microsoft_entra_id"})
OLLAMA_KEYS = ("ollama.enable", "ollama.base_urls", "ollama.api_configs")
OPENAI_KEYS = ("openai.enable", "openai.api_base_urls", "openai.api_configs")


@dataclass(frozen=True, slots=True)
class ConnectionModels:
    """Which models a connection offers, and under which ids.

    Attributes:
        url: the server's address.
        prefix: begins the ids of its models; empty: none.
        only: the server's names of the models that are offered; empty: all.
        tags: that the picker shows at its models.
        is_on: it is switched on, and so is its kind.
    """

    url: str
    prefix: str = ""
    only: frozenset[str] = frozenset()
    tags: tuple[str, ...] = ()
    is_on: bool = True

    def id_of(self, model: str) -> str | None:
        """The id under which Open WebUI offers a model of the server; None: it does not."""
        if not self.is_on or (self.only and model not in self.only):
            return None
        return f"{self.prefix}.{model}" if self.prefix else model


def trusted_certificates() -> SSLContext | bool:
    """What Open WebUI itself trusts where it connects to Ollama, as `aiohttp.TCPConnector` takes it."""
    from open_webui.env import AIOHTTP_CLIENT_SESSION_SSL  # noqa: PLC0415 - see the top of this module

    trusted: SSLContext | bool = AIOHTTP_CLIENT_SESSION_SSL
    return trusted


async def ollama_connections() -> list[tuple[str, str]]:
    """Address and key (empty: none) of each Ollama connection that is switched on."""
    ways = [(url, _way_in(url, own)) for url, own in await _connections_on()]
    return [(url, "" if way.auth == "none" or way.needs_user else way.key) for url, way in ways]


async def ways_in() -> dict[str, WayIn]:
    """How each connection that is switched on is entered, by its address without a slash at the end."""
    return {url.rstrip("/"): _way_in(url, own) for url, own in reversed(await _connections_on())}


def _way_in(url: str, own: Mapping[str, Any]) -> WayIn:
    try:
        address, login = split_login(url.rstrip("/"))
    except ValueError:  # it is none, which the router says when it asks there
        address, login = url, ""
    given = own.get("headers")
    headers = given.items() if isinstance(given, Mapping) else ()
    return WayIn(
        address,
        str(own.get("key") or ""),
        login,
        tuple((str(name), str(value)) for name, value in headers),
        str(own.get("auth_type") or "") if _knows_auth() else "",
        bool(own.get("forward_cookies")),
    )


def _knows_auth() -> bool:
    """Whether connections to Ollama have a kind of authentication, as since Open WebUI 0.12."""
    from open_webui.utils import headers  # noqa: PLC0415 - see the top of this module

    return hasattr(headers, "get_headers_and_cookies")


async def node_headers(
    way: WayIn, request: Any, user: Mapping[str, Any], metadata: dict[str, Any]
) -> Mapping[str, str]:
    """What Open WebUI itself would send to a node with a chat: who asks, and what signs in there.

    Args:
        way: how the node lets the router in.
        request: the browser's; None: there is none, as in the background.
        user: as a function gets it.
        metadata: of the chat.
    """
    asker = SimpleNamespace(**user) if user.get("id") else None
    if not _knows_auth():
        return await _older_headers(way, request, asker, metadata)
    from open_webui.utils import headers as theirs  # noqa: PLC0415 - see the top of this module

    key, auth = way.key, way.auth
    if auth in _ENTRA:  # theirs would hold up the event loop
        key, auth = await asyncio.to_thread(theirs.get_microsoft_entra_id_access_token) or "", "bearer"
    elif auth == "session" and getattr(getattr(request, "state", None), "token", None) is None:
        auth = "none"
    config = {"auth_type": auth or None, "headers": dict(way.headers), "forward_cookies": way.cookies}
    made, cookies = await theirs.get_headers_and_cookies(request, way.url, key, config, metadata, user=asker)
    sent = {name: str(value) for name, value in made.items()}
    if cookies:
        sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    return sent


async def _older_headers(
    way: WayIn, request: Any, asker: SimpleNamespace | None, metadata: dict[str, Any]
) -> Mapping[str, str]:
    """As Open WebUI 0.11 makes them for a connection to Ollama."""
    from open_webui import env  # noqa: PLC0415 - see the top of this module
    from open_webui.utils.headers import get_custom_headers, include_user_info_headers  # noqa: PLC0415

    sent = {"Authorization": f"Bearer {way.key}"} if way.key else {}
    if env.ENABLE_FORWARD_USER_INFO_HEADERS and asker:
        sent = include_user_info_headers(sent, asker)
        if chat := metadata.get("chat_id"):
            sent[env.FORWARD_SESSION_INFO_HEADER_CHAT_ID] = chat
    if way.headers:
        sent |= await get_custom_headers(dict(way.headers), asker, metadata, request=request)
    return sent


async def _connections_on() -> list[tuple[str, Mapping[str, Any]]]:
    """Address and settings of each Ollama connection that is switched on."""
    from open_webui.models.config import Config  # noqa: PLC0415 - see the top of this module

    found = await Config.get_many("ollama.enable", "ollama.base_urls", "ollama.api_configs")
    if not found.get("ollama.enable", True):
        return []
    settings: Mapping[str, Any] = found.get("ollama.api_configs") or {}
    connections = []
    for number, url in enumerate(found.get("ollama.base_urls") or []):
        own = settings.get(str(number)) or settings.get(url) or {}  # by address in older Open WebUIs
        if url and own.get("enable", True):
            connections.append((str(url), own))
    return connections


async def model_lists() -> list[ConnectionModels]:
    """What each connection offers, of both kinds, those that are switched off included."""
    from open_webui.models.config import Config  # noqa: PLC0415 - see the top of this module

    found = await Config.get_many(*OLLAMA_KEYS, *OPENAI_KEYS)
    return [
        _model_list(str(url), number, found.get(configs) or {}, is_on=bool(found.get(enable, True)))
        for enable, urls, configs in (OLLAMA_KEYS, OPENAI_KEYS)
        for number, url in enumerate(found.get(urls) or [])
        if url
    ]


def _model_list(url: str, number: int, settings: Mapping[str, Any], *, is_on: bool) -> ConnectionModels:
    own = settings.get(str(number)) or settings.get(url) or {}
    tags = (tag.get("name") if isinstance(tag, Mapping) else tag for tag in own.get("tags") or ())
    return ConnectionModels(
        url,
        str(own.get("prefix_id") or ""),
        frozenset(map(str, own.get("model_ids") or ())),
        tuple(str(tag) for tag in tags if tag),
        is_on and bool(own.get("enable", True)),
    )


# --- ollama_pack.services.connected ---
# Open WebUI's connections as the router's nodes, and the ids that its models have in Open WebUI.

_PORTS = {"http": 80, "https": 443}


def same_server(url: str) -> str:
    """What two addresses of one server have in common: an OpenAI address ends in /v1, a node's does not."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port or _PORTS.get(parts.scheme.lower())
    except ValueError:
        return url
    return f"{(parts.hostname or '').lower()}:{port}{parts.path.rstrip('/').removesuffix('/v1')}"


def connected_nodes(
    connections: Iterable[tuple[str, str]], lists: Sequence[ConnectionModels]
) -> tuple[NodeRow, ...]:
    """A node for each server; what several connections to it offer, it offers.

    Args:
        connections: address and key of each Ollama connection that is on.
        lists: what the connections offer.
    """
    servers = {same_server(url): (url, key) for url, key in reversed(list(connections))}
    return tuple(
        NodeRow(f"ollama{number}", url.rstrip("/"), key=key, listings=_listings(server, lists))
        for number, (server, (url, key)) in enumerate(reversed(servers.items()))
    )


def _listings(server: str, lists: Iterable[ConnectionModels]) -> tuple[Listing, ...]:
    there = [found for found in lists if found.is_on and same_server(found.url) == server]
    listings = tuple(dict.fromkeys(Listing(found.prefix, found.only) for found in there))
    return () if Listing() in listings and len(listings) == 1 else listings


class OfferedIds:
    """The ids and tags that Open WebUI's connections give to the models of nodes."""

    def __init__(
        self, rows: Iterable[NodeRow], lists: Sequence[ConnectionModels], *, are_connections: bool
    ) -> None:
        """Compare the addresses.

        Args:
            rows: the nodes.
            lists: what the connections offer.
            are_connections: the nodes are the connections, so that their models have Open WebUI's own ids.
        """
        self._are_connections = are_connections
        self._lists = {
            row.name: [found for found in lists if same_server(found.url) == same_server(row.url)]
            for row in rows
        }

    def named(self, name: str, model: FleetModel | None) -> CheckedModel:
        """A model with its ids. Where a node is no connection, its name is its id."""
        if model is None or self._are_connections:
            return CheckedModel(model.name if model else name, (model.name if model else name,))
        ids = dict.fromkeys(
            offered
            for node in model.nodes
            for offered in (
                [found.id_of(model.name) for found in self._lists[node]]
                if self._lists[node]
                else [model.name]
            )
        )
        return CheckedModel(model.name, tuple(offered for offered in ids if offered))

    def tags(self, model: FleetModel) -> list[str]:
        """The tags that the connections give to a model."""
        found = (
            tag
            for node in model.nodes
            for listed in self._lists[node]
            if listed.is_on and (not self._are_connections or _has(listed, model.name))
            for tag in listed.tags
        )
        return list(dict.fromkeys(found))


def _has(listed: ConnectionModels, offered: str) -> bool:
    """Whether a connection offers a model under this id."""
    own = offered.removeprefix(f"{listed.prefix}.") if listed.prefix else offered
    return listed.id_of(own) == offered


# --- ollama_pack.services.discovery ---
# Nodes that DNS or Kubernetes knows: one row of the table stands for each server that is found.
#
# `pool dns+srv://_ollama._tcp.example.org` is each server of that record, `pods k8s://default/app=ollama:11434`
# each ready pod with that label.

discovery_log = logging.getLogger(__name__)

FIRST_ANSWER_SECONDS = 3.0  # that a chat waits where nothing is known of a name yet
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where Kubernetes puts a pod's own account
_NOT_IN_A_NAME = re.compile(r"[^\w.-]")
_LONGEST_NAME = 64
_LIST_SECONDS = 5.0
_LIST_OCTETS = 32 * 1024 * 1024  # a pod's entry has a few kB


class Server(NamedTuple):
    """One of the servers that a row stands for.

    Attributes:
        host: a name or an IP address.
        port: its port.
        label: what the node is called after; empty: after the host.
    """

    host: str
    port: int
    label: str = ""


Servers = tuple[Server, ...]  # in order


async def resolve(address: str) -> Servers:
    """The servers of a row now: `resolve_srv` or `resolve_pods`."""
    return await (resolve_pods(address) if address.startswith(PODS) else resolve_srv(address))


async def resolve_srv(address: str) -> Servers:
    """The servers of a name, asked of this machine's DNS servers or of the one in the address.

    Args:
        address: as it stands in a row: `dns+srv://name`, or `dns+srv://10.0.0.2:8600/name`.

    Raises:
        Exception: aiodns is not installed, or the name is not known now.
    """
    from aiodns import DNSResolver  # noqa: PLC0415 - Open WebUI installs it, the Pipelines server does not

    server, _, name = address.removeprefix(SRV).rpartition("/")
    options: dict[str, Any] = {"timeout": 1.0, "tries": 2}
    if server:
        host, _, port = server.rpartition(":") if server.count(":") == 1 else (server, "", "53")
        options |= {"nameservers": [host], "udp_port": int(port), "tcp_port": int(port)}
    resolver = DNSResolver(**options)
    try:
        found = await resolver.query(name, "SRV")
    finally:
        await resolver.close()
    hosts = {Server(str(one.host).rstrip("."), int(one.port)) for one in found}
    return tuple(sorted(server for server in hosts if server.host))  # `.` is "there is none" (RFC 2782)


async def resolve_pods(address: str, account: Path = ACCOUNT) -> Servers:
    """The ready pods with certain labels, asked of the cluster that this process runs in.

    Args:
        address: `k8s://NAMESPACE/SELECTOR:PORT`, the selector as `kubectl get pods -l` takes it.
        account: the folder with the token, and with the certificate that the API's is signed with.

    Raises:
        OSError: this is no pod, the API does not answer, or the account may not list pods there.
        ValueError: the API's answer is no list of pods.
    """
    from aiohttp import ClientSession, ClientTimeout  # noqa: PLC0415 - upload.py loads this and asks nobody

    selected, _, port = address.removeprefix(PODS).rpartition(":")
    namespace, _, selector = selected.partition("/")
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    if not host:
        raise OSError(message("this process does not run in Kubernetes: KUBERNETES_SERVICE_HOST is not set"))
    api = f"https://{_in_url(host)}:{os.environ.get('KUBERNETES_SERVICE_PORT', '443')}"
    token = (account / "token").read_text().strip()  # Kubernetes replaces it within the hour
    async with (
        ClientSession(timeout=ClientTimeout(total=_LIST_SECONDS)) as session,
        session.get(
            f"{api}/api/v1/namespaces/{namespace}/pods",
            params={"labelSelector": selector, "limit": str(MAX_NODES)},
            headers={"Authorization": f"Bearer {token}"},
            ssl=ssl.create_default_context(cafile=str(account / "ca.crt")),
            allow_redirects=False,
        ) as answer,
    ):
        if answer.status in {401, 403}:
            raise PermissionError(
                message(
                    "the pod's service account may not list pods in {namespace} (HTTP {status}): give it "
                    "a Role with the verb list on pods",
                    namespace=namespace,
                    status=answer.status,
                )
            )
        if answer.status != 200:  # noqa: PLR2004 - OK
            raise OSError(message("the Kubernetes API answered with HTTP {status}", status=answer.status))
        octets = bytearray()
        async for piece in answer.content.iter_any():
            octets += piece
            if len(octets) > _LIST_OCTETS:
                raise ValueError(message("the Kubernetes API's list of pods has no end"))
    return ready_pods(orjson.loads(octets), int(port))


def ready_pods(listed: Any, port: int) -> Servers:
    """The pods of a PodList that take requests: those that are not ready, or end, are left out.

    Raises:
        ValueError: it is no list of pods.
    """
    pods = listed.get("items") if isinstance(listed, dict) else None
    if not isinstance(pods, list):
        raise ValueError(message("the Kubernetes API did not answer with a list of pods"))  # noqa: TRY004 - not our caller's type
    found = [
        Server(str(pod["status"]["podIP"]), port, str(pod["metadata"]["name"]))
        for pod in pods
        if isinstance(pod, dict) and _is_ready(pod)
    ]
    return tuple(sorted(found))


def _is_ready(pod: Mapping[str, Any]) -> bool:
    metadata, status = pod.get("metadata"), pod.get("status")
    if not isinstance(metadata, dict) or not isinstance(status, dict):
        return False
    if not metadata.get("name") or metadata.get("deletionTimestamp") or not status.get("podIP"):
        return False
    conditions = status.get("conditions")
    return isinstance(conditions, list) and any(
        isinstance(one, dict) and (one.get("type"), one.get("status")) == ("Ready", "True")
        for one in conditions
    )


class NodeDiscovery:
    """Keeps the servers of rows up. Those found last stay while nobody answers. Lives on one event loop."""

    def __init__(
        self,
        resolve: Callable[[str], Awaitable[Servers]] = resolve,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask nothing yet.

        Args:
            resolve: as the function of this name.
            clock: monotonic seconds.
        """
        self._resolve = resolve
        self._servers: dict[str, Servers] = {}
        self._faults: dict[str, str] = {}
        self._names: Sequence[str] = ()
        self._look = SingleFlight(self._ask_all, 0, clock)
        self._made: tuple[tuple[NodeRow, ...], dict[str, Servers], tuple[NodeRow, ...]] = ((), {}, ())

    async def rows(self, rows: tuple[NodeRow, ...], seconds: float) -> tuple[NodeRow, ...]:
        """The rows, with one for each server in place of one with a name.

        Args:
            rows: as the admin wrote them.
            seconds: between two looks.
        """
        names = [row.url for row in rows if row.url.startswith(DISCOVERED)]
        if not names:
            return rows
        is_news = not self._servers.keys() >= set(names)
        self._names = names
        if is_news or self._look.age >= seconds:
            looking = self._look.renew()
            if is_news or self._look.age >= 2 * seconds:
                await asyncio.wait({looking}, timeout=FIRST_ANSWER_SECONDS)
        if self._made[:2] != (rows, self._servers):
            self._made = rows, dict(self._servers), expanded(rows, self._servers)
        return self._made[2]

    async def _ask_all(self) -> None:
        await asyncio.gather(*map(self._ask_one, self._names))

    async def _ask_one(self, name: str) -> None:
        try:
            self._servers[name] = await self._resolve(name)
            self._faults.pop(name, None)
        except Exception as error:  # noqa: BLE001 - whatever it is, what is known holds
            self._servers.setdefault(name, ())
            fault = f"{type(error).__name__}: {error}"
            if self._faults.get(name) != fault:
                discovery_log.warning("The nodes at %s could not be looked up: %s", name, fault)
            self._faults[name] = fault


def expanded(rows: Sequence[NodeRow], servers: dict[str, Servers]) -> tuple[NodeRow, ...]:
    """The rows, with one for each server in place of one with a name; none whose name or address is taken."""
    found: list[NodeRow] = []
    names = {row.name for row in rows}
    addresses = {row.url for row in rows}
    for row in rows:
        if not row.url.startswith(DISCOVERED):
            found.append(row)
            continue
        for server in servers.get(row.url, ()):
            url = f"http://{_in_url(server.host)}:{server.port}"
            label = server.label or _label(server.host)
            labels = label, f"{label}-{server.port}", f"{server.host}-{server.port}"
            usable = (_node_name(row.name, one) for one in labels)
            name = next((one for one in usable if one not in names), "")
            if name and url not in addresses and len(found) < MAX_NODES:
                names.add(name)
                addresses.add(url)
                found.append(replace(row, name=name, url=url))
    return tuple(found)


def _node_name(row: str, label: str) -> str:
    """Of a long label the end is kept: only there do the names of a Deployment's pods differ."""
    row = row[: max(_LONGEST_NAME // 2, _LONGEST_NAME - 1 - len(label))]
    return _NOT_IN_A_NAME.sub("-", f"{row}-{label[-(_LONGEST_NAME - 1 - len(row)) :]}")


def _label(host: str) -> str:
    """`ollama-0` for the host ollama-0.ollama.svc; an IP address is kept whole."""
    return host if _is_ip(host) else host.partition(".")[0]


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


# --- ollama_pack.services.routed ---
# Aliases over a fleet: which names a router offers, and which models may answer for one.

Answered = Callable[[ReplyHead], AsyncGenerator[dict[str, Any], None]]

LATE_LOOK_SECONDS = 10.0  # that a chat waits for nodes which nobody has looked at yet


@dataclass(frozen=True, slots=True)
class DirectChat:
    """A chat that the router will answer.

    Attributes:
        model: that would answer now.
        weights: see `weights_behind`.
        body: as the nodes get it.
        chunks: asks it.
    """

    model: str
    weights: str
    body: Mapping[str, Any]
    chunks: Answered


async def catalogue_for(router: Router, table: AliasTable, name: str) -> Catalogue:
    """What the nodes have. Waits for those that nobody has looked at yet where the others cannot answer.

    A router that has just begun, since its code or its valves have changed, may know nothing yet.
    """
    catalogue = router.catalogue()
    if not catalogue.find(name) and not models_behind(table, name, catalogue.levels):
        await router.ready(LATE_LOOK_SECONDS)
        catalogue = router.catalogue()
    return catalogue


def offered_meanwhile(router: Router | None, models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What to offer: these models, and until all nodes have been looked at also those from before.

    Each update of the code and each change of valves begins with a router that knows nothing. Without models
    from before Open WebUI would answer chats with "Model not found".

    Args:
        router: whose models they are; None: it cannot say.
        models: plain values, as the code that reads them may be newer. Each has an `id`.
    """
    kept = process_wide("routed models", dict[str, Any])
    if router is not None and router.has_seen_all:
        kept["models"] = [dict(model) for model in models]
        return models
    known = {model["id"] for model in models}
    return models + [dict(model) for model in kept.get("models", ()) if model["id"] not in known]


def models_for(
    table: AliasTable, facts: RequestFacts, catalogue: Catalogue, denied: AbstractSet[str] = frozenset()
) -> tuple[str, ...]:
    """Names of the models that may answer for a name, the preferred first; of no alias: the name itself.

    One of them may be an automatic name, whose variants `auto_parts` gives.

    Args:
        table: the aliases.
        facts: what is known of the request.
        catalogue: the models that nodes have.
        denied: names of those that this user may not use.

    Raises:
        AliasUnavailableError: rows apply, but no node has any of their models, or the user may use none.
    """
    levels = {name: level for name, level in catalogue.levels.items() if name not in denied}
    there = tuple(dict.fromkeys(_answering(table, facts, levels)))
    named = [] if there else [name for name, _ in candidates(table, facts)]
    if named:
        without = dict.fromkeys(answering_models(table, facts, catalogue.levels))
        refused = [(name, NOT_PERMITTED) for name in without]
        raise AliasUnavailableError(facts.model, tuple(refused or [(name, NOT_INSTALLED) for name in named]))
    return there or (facts.model,)


def passed_over(
    table: AliasTable, facts: RequestFacts, catalogue: Catalogue, denied: AbstractSet[str], chosen: str
) -> tuple[Message, ...]:
    """Why none of the models answers that the table prefers to the chosen one.

    Args:
        table: the aliases.
        facts: what is known of the request.
        catalogue: the models that nodes have.
        denied: names of those that this user may not use.
        chosen: the one that answers.
    """
    found = []
    families = Families(catalogue.levels)
    for name, row in candidates(table, facts):
        model = _answering_for(name, row, catalogue.levels, families)
        if model and fold_name(chosen) in map(fold_name, auto_parts(model)[0]):
            break
        reason = NOT_PERMITTED if model in denied else NOT_ANSWERING
        found.append(why_not(name, reason if model else NOT_INSTALLED))
    return tuple(found)


def _answering(table: AliasTable, facts: RequestFacts, levels: Mapping[str, str]) -> Iterator[str]:
    """As `answering_models`, with an automatic name for the variants of which each node takes one."""
    families = Families(levels)
    for name, row in candidates(table, facts):
        if model := _answering_for(name, row, levels, families):
            yield model


def _answering_for(name: str, row: AliasRow, levels: Mapping[str, str], families: Families) -> str:
    if row.is_automatic:
        variants = automatic_variants(name, levels, families=families)
        return auto_name(variants) if variants else ""
    return find_candidate(name, row, levels, families=families) or ""


def why_absent(error: AliasUnavailableError, router: Router) -> PackError:
    """The error for an alias without a model: where some nodes do not answer, they may have it."""
    missing = [model for model, reason in error.passed_over if reason == NOT_INSTALLED]
    absent = router.no_node(missing)
    return absent if missing and (absent.silent or not absent.nodes) else error


def routed_aliases(table: AliasTable, catalogue: Catalogue) -> list[str]:
    """The aliases that can be offered as models: no wildcards, and a node has one of their models."""
    return [alias for alias in concrete_names(table) if models_behind(table, alias, catalogue.levels)]


def wanted_models(table: AliasTable) -> WantedModels:
    """The models that the table names, for a plan."""
    rows = [(row, name) for row in table.rows for name in row.candidates if "*" not in name]
    named = [(row, name) for row, name in rows if not table.exact(name)]  # else it is an alias itself
    automatic = frozenset(name for row, name in named if row.is_automatic)
    return WantedModels(tuple(dict.fromkeys(name for _, name in named)), automatic)


def weights_behind(model: str, catalogue: Catalogue) -> str:
    """A model's weights, as against others of its name, for the response cache; empty: no node has it."""
    found = [one for name in auto_parts(model)[0] if (one := catalogue.find(name))]
    return "+".join(part for one in found for part in (one.name, *one.digests))


# --- ollama_pack.services.activity ---
# What chats did in this process, until somebody writes it into the history.
#
# Every plugin of a process puts its records into one line, whatever code they are of; `chat_record` says what
# is in one. Minutes are figures by name, which can be added up over processes:
#
# | name | what |
# |---|---|
# | `answered`, `cached`, `shared`, `stopped`, `failed` | chats by outcome; `cached` and `shared` by the cache |
# | `waited`, `saved` | seconds that chats waited for a node; seconds of generation that the cache saved |
# | `prompt`, `held`, `written` | tokens |
# | `first/<class>` | chats by the time to the first token, see `first_class` |

_activity__MAX_NOTES = 10_000
MAX_ASKED = 256  # characters of a name: a wildcard takes names of any length


def note_chat(record: Mapping[str, Any]) -> None:
    """Keep the record of a chat that has ended. The oldest goes where too many were kept."""
    _notes().append({**record, "asked": str(record.get("asked") or "")[:MAX_ASKED]})


def _notes() -> "deque[dict[str, Any]]":
    return process_wide("chats", lambda: deque[dict[str, Any]](maxlen=_activity__MAX_NOTES))


# --- ollama_pack.services.router_host ---
# The one router of a plugin, which changes with its valves and loses no chat for it.


class RouterHost:
    """Keeps the router that nodes and settings ask for. Lives on one event loop."""

    def __init__(
        self,
        connect: Callable[[str], Connect | None] = lambda _: None,
        secret: Callable[[], str] = lambda: "",
        trusted: Callable[[], SSLContext | bool] = lambda: True,
    ) -> None:
        """Make no router yet. What is given is asked whenever one is made.

        Args:
            connect: what connects it with other workers over an address; None: it is alone.
            secret: what only these workers know; see `Router`.
            trusted: the certificates of nodes, as `aiohttp.TCPConnector` takes them.
        """
        preload_nvml()
        self.current: Router | None = None
        self.is_left = False
        self._connect, self._secret, self._trusted = connect, secret, trusted
        self._made_of: tuple[tuple[NodeRow, ...], RouterSettings, str] | None = None
        self.closing: set[asyncio.Task[None]] = set()

    async def router(
        self, rows: tuple[NodeRow, ...], settings: RouterSettings, shared_over: str = ""
    ) -> Router:
        """The router for these nodes and settings, ready.

        It goes on, and keeps what it has learned, where nodes have come or gone. Another one is made when
        the row of a node, or a setting, has changed: hold the router before you wait for anything else
        (`holding`), or it may close meanwhile.

        Args:
            rows: the nodes.
            settings: what an admin may set.
            shared_over: for `connect`.
        """
        wanted = rows, settings, shared_over
        if self.current is not None and self._made_of != wanted and self._is_followed_by(wanted):
            self.current.follow(rows)
        elif self.current is None or self._made_of != wanted:
            self.retire()
            connector = aiohttp.TCPConnector(limit=0, ssl=self._trusted())
            session = node_session(connector, trust_env=_environment_counts())
            self.current = Router(
                rows,
                session,
                settings,
                connect=self._connect(shared_over),
                secret=self._secret(),
                note=note_chat,
            )
        self._made_of = wanted
        router = self.current
        with router.held():
            await router.ready()
        while _pulls_left() and router is self.current:
            router.upkeep.go_on(*_pulls_left().pop(0))
        return router

    @contextmanager
    def holding(self, router: Router) -> Iterator[None]:
        """A router that stays open meanwhile. Code that was replaced leaves none behind afterwards."""
        try:
            with router.held():
                yield
        finally:
            if self.is_left:
                self.retire()

    def _is_followed_by(self, wanted: tuple[tuple[NodeRow, ...], RouterSettings, str]) -> bool:
        """Whether only nodes have come or gone."""
        if self.current is None or self._made_of is None or self._made_of[1:] != wanted[1:]:
            return False
        known = {name: watch.row for name, watch in self.current.nodes.items()}
        return all(known.get(row.name, row) == row for row in wanted[0])

    def leave(self) -> None:
        """Other code has taken over: what is still asked here comes late, and gets a router of its own."""
        self.is_left = True
        self.retire()

    async def close(self) -> None:
        """Wait for what is under way, then leave all nodes alone. `router` may be asked again afterwards."""
        self.retire()
        await asyncio.gather(*self.closing)

    def retire(self) -> None:
        """Let the router finish what it has begun, and give its connections back.

        The next router of this process goes on with the models that it pulls.
        """
        if self.current is not None:
            pulls = self.current.upkeep.hand_over()
            task = asyncio.get_running_loop().create_task(self.current.close())
            if pulls:
                _pulls_left().append((pulls, task))
            self.closing.add(task)
            task.add_done_callback(self.closing.discard)
            self.current = None


def _pulls_left() -> list[tuple[list[dict[str, Any]], asyncio.Task[None]]]:
    """The pulls of routers of this process that were replaced, by whatever code, and when each has ended."""
    return process_wide("pulls left", list[tuple[list[dict[str, Any]], asyncio.Task[None]]])


def _environment_counts() -> bool:
    """Whether the environment says how to reach nodes, as for Open WebUI's own connections.

    That is a proxy (HTTP_PROXY, HTTPS_PROXY, NO_PROXY) or a file of logins (.netrc). Without them aiohttp
    need not look for both before every request, which takes two threads and half a millisecond.
    """
    if getproxies().keys() & {"http", "https"}:
        return True
    try:
        return Path(os.environ.get("NETRC") or "~/.netrc").expanduser().is_file()
    except RuntimeError:  # there is no home folder
        return False


# --- ollama_pack.services.metrics_text ---
# What the pack counts, as Prometheus reads it: text format 0.0.4, base units, nothing for what is not known.
#
# Each process counts for itself, since it was started. Labels are nodes, models and a few words: never users.


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of series.

    Attributes:
        name: without the beginning that all have, `ollama_pack_`.
        kind: as Prometheus calls it.
        labels: their names.
        text: what it is.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Buckets:
    """What a histogram shows.

    Attributes:
        bounds: upper bounds, the smallest first; there is one class more, of what is above the last.
        counts: how many there were in each class.
        total: the sum of all.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float


MetricSamples = Iterable[tuple[tuple[str, ...], float | Buckets]]  # values of the labels, and the value

NODE, MODEL = ("node",), ("node", "model")

NODE_UP = Metric(
    "node_up", "gauge", NODE, "Whether the node answers, and has not just failed (1). A drained node is up."
)
IN_FLIGHT = Metric("node_requests", "gauge", NODE, "Requests of this process at the node.")
NODE_QUEUE = Metric("node_queue_length", "gauge", NODE, "Waiting requests that the node could answer.")
RESIDENT = Metric("model_resident", "gauge", MODEL, "1 for each model in a node's memory.")
GPU_USE = Metric("node_gpu_utilization_ratio", "gauge", ("node", "gpu"), "How busy the GPU is, 0 to 1.")
GPU_USED = Metric("node_gpu_memory_used_bytes", "gauge", ("node", "gpu"), "GPU memory in use.")
GPU_TOTAL = Metric("node_gpu_memory_total_bytes", "gauge", ("node", "gpu"), "GPU memory.")
QUEUE = Metric("queue_length", "gauge", (), "Requests that wait for a node.")
FIRST_TOKEN = Metric(
    "time_to_first_token_seconds",
    "histogram",
    MODEL,
    "From sending a request to its node to the first token.",
)
PREDICTED = Metric(
    "predicted_time_to_first_token_seconds", "histogram", MODEL, "What was predicted for the same requests."
)
QUEUE_WAIT = Metric(
    "queue_wait_seconds", "histogram", MODEL, "How long requests waited before they went to the node."
)
SENT = Metric(
    "requests_total", "counter", MODEL, "Requests sent to the node, those that failed there included."
)
LOADS = Metric("loads_total", "counter", MODEL, "Requests for which the node had to load the model.")
FAILURES = Metric("node_failures_total", "counter", MODEL, "Requests that failed at the node.")
FAILOVERS = Metric("failovers_total", "counter", MODEL, "Of these, requests that another node was asked for.")
PROMPT_TOKENS = Metric("prompt_tokens_total", "counter", MODEL, "Tokens of the prompts of finished answers.")
REUSED_TOKENS = Metric(
    "reused_prompt_tokens_total", "counter", MODEL, "Of these, tokens that the node held already (prefix)."
)
REFUSED = Metric("chat_errors_total", "counter", ("reason",), "Chats that ended with an error, by its kind.")


def family(metric: Metric, samples: MetricSamples) -> str:
    """A family in the text format; empty where it has no samples."""
    full = f"ollama_pack_{metric.name}"
    lines = [line for values, value in samples for line in _lines(full, metric, values, value)]
    head = (f"# HELP {full} {metric.text}", f"# TYPE {full} {metric.kind}")
    return "\n".join([*head, *lines, ""]) if lines else ""


def _lines(full: str, metric: Metric, values: tuple[str, ...], value: float | Buckets) -> Iterator[str]:
    labels = dict(zip(metric.labels, values, strict=True)) | _worker()
    if not isinstance(value, Buckets):
        yield f"{full}{_labels(labels)} {value}"
        return
    for bound, count in zip((*value.bounds, "+Inf"), accumulate(value.counts), strict=True):
        yield f"{full}_bucket{_labels(labels | {'le': str(bound)})} {count}"
    yield f"{full}_sum{_labels(labels)} {value.total}"
    yield f"{full}_count{_labels(labels)} {sum(value.counts)}"


def _worker() -> dict[str, str]:
    """A label where several processes answer at one address: each counts for itself."""
    return {} if os.environ.get("UVICORN_WORKERS", "1") in {"", "1"} else {"worker": str(os.getpid())}


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# --- ollama_pack.services.router_metrics ---
# What a router and its nodes did, as Prometheus reads it.

_COUNTED: tuple[tuple[Metric, Callable[[ModelCounts], float | Buckets]], ...] = (
    (FIRST_TOKEN, lambda counts: _buckets(counts.actual)),
    (PREDICTED, lambda counts: _buckets(counts.predicted)),
    (QUEUE_WAIT, lambda counts: _buckets(counts.waited)),
    (SENT, lambda counts: counts.sent),
    (LOADS, lambda counts: counts.loads),
    (FAILURES, lambda counts: counts.failures),
    (FAILOVERS, lambda counts: counts.failovers),
    (PROMPT_TOKENS, lambda counts: counts.prompt_tokens),
    (REUSED_TOKENS, lambda counts: counts.reused_tokens),
)


def router_metrics(router: Router) -> str:
    """The text format, addresses of nodes left out."""
    nodes = load_report(router)["nodes"]
    by_node = [
        family(NODE_UP, [((node["name"],), int(node["healthy"])) for node in nodes]),
        family(IN_FLIGHT, [((node["name"],), router.own_in_flight(node["name"])) for node in nodes]),
        family(NODE_QUEUE, [((node["name"],), node["queued"]) for node in nodes]),
        family(RESIDENT, [((node["name"], model), 1) for node in nodes for model in set(node["models"])]),
    ]
    gpus = [((node["name"], str(gpu["index"])), gpu) for node in nodes for gpu in node["gpus"]]
    by_gpu = [
        family(metric, [(gpu, values[key] / unit) for gpu, values in gpus if values[key] is not None])
        for metric, key, unit in (
            (GPU_USE, "utilization", 100),
            (GPU_USED, "memory_used", 1),
            (GPU_TOTAL, "memory_total", 1),
        )
    ]
    counted = [
        family(metric, [(pair, value(counts)) for pair, counts in router.counts.models.items()])
        for metric, value in _COUNTED
    ]
    refused = [((reason,), count) for reason, count in router.counts.refused.items()]
    waiting = family(QUEUE, [((), router.scheduler.waiting)])
    return "".join((*by_node, *by_gpu, waiting, *counted, family(REFUSED, refused)))


def _buckets(times: SecondsHistogram) -> Buckets:
    return Buckets(SECONDS_BOUNDS, tuple(times.counts), times.total)


# --- ollama_pack.services.valves ---
# What all valves of the pack have in common: what is refused is told to admins, without what was written.
#
# Open WebUI's page only shows that there was an error. What a process has refused is kept in it for an hour, as
# plain values: each plugin has a copy of this code.

_valves__KEEP_SECONDS = 3600.0
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
            (_valves__said(one) for one in error.errors(include_url=False, include_input=False)), message("; ")
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
        if now - note["at"] < _valves__KEEP_SECONDS
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


def _valves__said(problem: Any) -> Message:
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


# --- ollama_pack.services.router_valves ---
# The valves of the router, wherever it runs.

NODES_NOTE = (
    "One node per line: name, address, settings. Example: `gpu0 http://gpu0:11434 slots=2`. "
    'Settings: `kind=openai` (vLLM and similar engines), `key=…`, `header="Name: value"`, '
    "`slots=…`, `memory=24GB`, `weight=…`, `tier=…`, `models=a,b`, `placement=own` (a gateway that chooses "
    "the engine itself), `agent=http://gpu0:9400`. With `dns+srv://_ollama._tcp.example.org` as the "
    "address, every server that DNS names is a node; with `k8s://NAMESPACE/app=ollama:11434`, every ready "
    "pod with that label. `#` starts a comment."
)


class RouterValves(PackValves):
    """What an admin sets, and what it comes to."""

    knows_groups: ClassVar[bool] = True  # whether conditions on the user's groups can be looked at

    nodes: str = Field(
        default="",
        title="Nodes",
        description=f"{NODES_NOTE} Default: empty, which means Open WebUI's own Ollama connections.",
    )
    aliases: str = Field(
        default="",
        title="Aliases",
        description=(
            "One alias per line: `alias = model, model [condition, …]`, as in the alias filter. Each "
            "alias appears as a model. The first of its models that a node has answers; the next ones "
            "are the fallback. Default: empty."
        ),
    )
    strategy: Literal["predicted_ttft", "least_busy", "random"] = Field(
        default="predicted_ttft",
        title="Strategy",
        description=(
            "How a node is chosen. `predicted_ttft` chooses the node that will answer first; "
            "`least_busy` and `random` are there for comparison. Default: `predicted_ttft`."
        ),
    )
    probe_seconds: float = Field(
        default=5.0,
        ge=0.5,
        le=300,
        title="Probe interval, seconds",
        description="How often each node is checked, in seconds. Default: 5.",
    )
    first_token_timeout_seconds: float = Field(
        default=120.0,
        ge=1,
        le=3600,
        title="First token timeout, seconds",
        description=(
            "How long a chat waits for a free node, and then again for the first token once the model is "
            "loaded, in seconds. A node that hangs is given up earlier if another one can answer. "
            "Default: 120."
        ),
    )
    load_timeout_seconds: float = Field(
        default=7200.0,
        ge=10,
        le=86_400,
        title="Load timeout, seconds",
        description=(
            "The longest time that a model may take to load, in seconds. Small models get less: ten "
            "minutes, or the time it takes to read them at 5 MB/s. Default: 7200."
        ),
    )
    max_queue: int = Field(
        default=64,
        ge=1,
        le=10_000,
        title="Queue limit",
        description="How many chats may wait at the same time. Further chats get an error. Default: 64.",
    )
    keep_alive: str = Field(
        default="",
        title="Keep models in memory",
        description=(
            "How long a model stays in memory after its last answer, such as `30m`; `-1` means forever. "
            "Default: empty, which means the node's own setting."
        ),
    )

    warm: str = Field(
        default="",
        title="Keep warm",
        description=(
            "Models that are kept in memory, one per line. Example: `llama3:8b = Mon-Fri 07:30-17:00`. "
            "Separate several spans with commas. `copies=2` keeps it on two nodes. `zone=Europe/Berlin` sets "
            "the time zone, which is the server's otherwise. `#` starts a comment. Default: empty."
        ),
    )
    drained: str = Field(
        default="",
        title="Drained nodes",
        description=(
            "Names of nodes that finish their requests and get no new ones, separated by spaces. The "
            "dashboard sets this. Default: empty."
        ),
    )

    @field_validator("warm")
    @classmethod
    def _warm_readable(cls, text: str) -> str:
        parse_warm(cls.lines(text))
        return text

    @field_validator("nodes")
    @classmethod
    def _nodes_readable(cls, text: str) -> str:
        parse_nodes(cls.lines(text))  # its error reaches the admin as the valve's, with row and reason
        return text

    @field_validator("aliases")
    @classmethod
    def _aliases_readable(cls, text: str) -> str:
        if parse_table(cls.lines(text)).uses_groups and not cls.knows_groups:
            reason = message(
                "group= is not known on the Pipelines server: use the gpu_router function for it"
            )
            raise ValueError(reason)
        return text

    @classmethod
    def lines(cls, text: str) -> str:
        """The rows of a valve, each on a line of its own."""
        return text

    @property
    def rows(self) -> tuple[NodeRow, ...]:
        return parse_nodes(self.lines(self.nodes))

    def look_after(self, router: Router) -> None:
        """Let a router do what an admin wants beside chats."""
        router.upkeep.drain(self.drained.replace(",", " ").split())
        router.upkeep.keep(parse_warm(self.lines(self.warm)))

    @property
    def table(self) -> AliasTable:
        return parse_table(self.lines(self.aliases))

    @property
    def settings(self) -> RouterSettings:
        return RouterSettings(
            self.strategy,
            self.probe_seconds,
            self.first_token_timeout_seconds,
            self.max_queue,
            self.keep_alive,
            load_seconds=self.load_timeout_seconds,
        )


# --- ollama_pack.routing.peers.scripts ---
# What happens in one step inside of Redis, for workers that share a fleet.
#
# All keys have one hash tag, so a cluster keeps them on one node and one script may use them. Commands of Redis
# 7 and Valkey 8 alone, no modules. Times are milliseconds of the server's clock.
#
# | key | type | holds |
# |---|---|---|
# | `events` | stream | what workers tell each other, field `m`; the last few hundred messages |
# | `slots:<node>:<weights>` | sorted set | the requests that hold a slot, by when they are forgotten |
# | `load:<node>` | hash | who may load there: `id`, `blob`, `victims`, separated by spaces |
#
# Nodes and weights are named by hashes, prompts and users appear as hashes alone, and chats not at all.

SHARE_PREFIX = "ollama_pack:{fleet}:1:"
EVENTS_KEPT = 512
EVENTS_MS = 3_600_000
CLAIM_MS = 8_000

_SHARE_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function holders(key)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  return redis.call('ZRANGE', key, 0, -1)
end
local function tell(key, payload, kept, milliseconds)
  if payload ~= '' then
    redis.call('XADD', key, 'MAXLEN', '~', kept, '*', 'm', payload)
    redis.call('PEXPIRE', key, milliseconds)
  end
end
local function take(slots, id, milliseconds)
  redis.call('ZADD', slots, now + milliseconds, id)
  redis.call('PEXPIRE', slots, milliseconds)
end
"""

# KEYS: slots, load, events, slots of each victim.
# ARGV: id, payload, kept, event time, slots, claim time, 1 when it loads, hash of the weights, of victims.
# Answers {} when granted, else {hash of the weights whose slots are taken, or '', holder, …}.
CLAIM_SLOT = (
    _SHARE_NOW
    + """
local id, loads, blob = ARGV[1], ARGV[7] == '1', ARGV[8]
local loading = redis.call('HMGET', KEYS[2], 'id', 'blob', 'victims')
if loading[1] and loading[1] ~= id then
  if loads or string.find(loading[3], blob, 1, true) then return {'', loading[1]} end
end
if loads then
  for number = 4, #KEYS do
    local there = holders(KEYS[number])
    if #there > 0 then return {ARGV[number + 5], unpack(there)} end
  end
end
local here = holders(KEYS[1])
if #here >= tonumber(ARGV[5]) and not redis.call('ZSCORE', KEYS[1], id) then
  return {blob, unpack(here)}
end
take(KEYS[1], id, tonumber(ARGV[6]))
if loads then
  redis.call('HSET', KEYS[2], 'id', id, 'blob', blob, 'victims', table.concat(ARGV, ' ', 9))
  redis.call('PEXPIRE', KEYS[2], ARGV[6])
end
tell(KEYS[3], ARGV[2], ARGV[3], ARGV[4])
return {}
"""
)

# KEYS: slots, load, events. ARGV: id, payload, kept, event time, slots (unused), claim time
RENEW_SLOT = (
    _SHARE_NOW
    + """
take(KEYS[1], ARGV[1], tonumber(ARGV[6]))
if redis.call('HGET', KEYS[2], 'id') == ARGV[1] then redis.call('PEXPIRE', KEYS[2], ARGV[6]) end
"""
)

# KEYS: slots, load, events. ARGV: id, payload, kept, event time
RELEASE_SLOT = (
    _SHARE_NOW
    + """
redis.call('ZREM', KEYS[1], ARGV[1])
if redis.call('HGET', KEYS[2], 'id') == ARGV[1] then redis.call('DEL', KEYS[2]) end
tell(KEYS[3], ARGV[2], ARGV[3], ARGV[4])
"""
)

# KEYS: slots, load, events. ARGV: id, payload, kept, event time
LOADED_SLOT = (
    _SHARE_NOW
    + """
if redis.call('HGET', KEYS[2], 'id') == ARGV[1] then redis.call('DEL', KEYS[2]) end
tell(KEYS[3], ARGV[2], ARGV[3], ARGV[4])
"""
)

# KEYS: events. ARGV: nothing, payload, kept, event time
TELL_ALL = (
    _SHARE_NOW
    + """
tell(KEYS[1], ARGV[2], ARGV[3], ARGV[4])
"""
)

SHARE_SCRIPTS = {
    "claim": lua_script(CLAIM_SLOT),
    "renew": lua_script(RENEW_SLOT),
    "release": lua_script(RELEASE_SLOT),
    "loaded": lua_script(LOADED_SLOT),
    "tell": lua_script(TELL_ALL),
}


# --- ollama_pack.routing.peers.redis ---
# Carries what workers share over Redis or Valkey. Without it each goes on alone, and joins again later.

share_log = logging.getLogger(__name__)

CLAIM_SECONDS = 0.1  # that a chat waits for an answer before it goes on without
STEP_SECONDS = 1.0  # after which the connection is given up
READ_MS = 2000
READ_AT_ONCE = 256
FIRST_RETRY, LAST_RETRY = 0.5, 10.0  # seconds between two tries to join
UNUSED_SECONDS = 600.0  # after which it leaves, until it is started again


class _UnusedError(Exception):
    """Nobody has used this worker's router for long, perhaps because there is a newer one."""


class RedisShare:
    """Connects a `FleetShare` with the others. Lives on one event loop."""

    def __init__(
        self,
        share: FleetShare,
        client: RedisClient,
        waiting: RedisClient,
        decide: Callable[[], None],
        prefix: str = SHARE_PREFIX,
    ) -> None:
        """Take what is needed; nothing is connected before `start`.

        Args:
            share: this worker's.
            client: for what is answered at once. This closes both clients.
            waiting: another one to the same place, for reads that wait.
            decide: called when something was heard that may let a waiting request begin.
            prefix: of all keys, with a hash tag in it.
        """
        self._share = share
        self._client = client
        self._waiting = waiting
        self._decide = decide
        self._prefix = prefix
        self._answers: dict[str, asyncio.Future[ClaimRefusal | None]] = {}
        self._wanted = asyncio.Event()
        self._stalled = False
        self._told = False  # that nobody answers
        self.fault = ""
        self._task: asyncio.Task[None] | None = None
        self._used_at = 0.0
        share.wake = self._wanted.set

    def start(self) -> None:
        """Join the others, now or as soon as it is possible. To be called whenever the router is used."""
        loop = asyncio.get_running_loop()
        self._used_at = loop.time()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run(), name="fleet share")

    async def close(self) -> None:
        """Tell the others that this worker goes, but do not wait long for it."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._share.connected:
            self._share.say_bye()
            with suppress(*redis_faults()):
                async with asyncio.timeout(STEP_SECONDS):
                    await self._empty_outbox()
            self._share.leave()
        await self._close_clients()

    async def _close_clients(self) -> None:
        for client in (self._client, self._waiting):
            with suppress(*redis_faults()):
                await client.aclose()

    async def claim(self, binding: Assignment) -> bool:
        """Take the slot that a binding wants, before the request is sent.

        Takes at most `CLAIM_SECONDS`: when nobody answers the request is sent without asking.

        Returns:
            False: another worker was faster. The request waits in the scheduler again; decide anew.
        """
        if not self._share.connected:
            return True
        if self._stalled:
            self._share.assume(binding)
            return True
        answer = asyncio.get_running_loop().create_future()
        self._answers[binding.request.id] = answer
        self._share.claim(binding)
        try:
            async with asyncio.timeout(CLAIM_SECONDS):
                refusal = await answer
        except TimeoutError:
            self._stalled = True
            return True
        finally:
            self._answers.pop(binding.request.id, None)
        if refusal is None:
            return True
        self._share.refused(binding, refusal)
        return False

    # --- the connection ---

    async def _run(self) -> None:
        """Join, and join again, until it is cancelled or nobody uses it."""
        retry = FIRST_RETRY
        while self._is_used():
            try:
                last = await self._last_event()
                self._stalled = False
                self._share.join()
                self.fault = ""
                retry = FIRST_RETRY
                async with asyncio.TaskGroup() as tasks:
                    for work in (self._read(last), self._write(), self._beat()):
                        tasks.create_task(work)
            except* _UnusedError:
                pass  # unless somebody has come meanwhile this was the last time
            except* redis_faults() as group:
                self._tell_once(group.exceptions[0])
            except* Exception:  # noqa: BLE001 - chats must not suffer from what other workers say
                share_log.exception("Something went wrong between workers that share the nodes")
            self._share.leave()
            self._answer_all()
            self._decide()
            await asyncio.sleep(retry)
            retry = min(2 * retry, LAST_RETRY)
        self._share.leave()
        await self._close_clients()

    def _is_used(self) -> bool:
        unused = asyncio.get_running_loop().time() - self._used_at
        return unused < UNUSED_SECONDS or self._share.is_busy

    def _tell_once(self, fault: Exception) -> None:
        """One line a time that it is down, not one a try."""
        self.fault = redis_fault(fault)
        if not self._told:
            self._told = True
            share_log.warning(
                "The Redis by which workers share the nodes (redis_url) does not answer (%s): this one "
                "goes on alone, and joins the others once it does",
                self.fault,
            )

    def _answer_all(self) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result(None)

    async def _last_event(self) -> str:
        key = f"{self._prefix}events"
        async with asyncio.timeout(STEP_SECONDS):
            found = await self._client.execute_command("XREVRANGE", key, "+", "-", "COUNT", 1)
        return found[0][0].decode() if found else "0-0"

    async def _read(self, last: str) -> None:
        key = f"{self._prefix}events"
        while True:
            async with asyncio.timeout(READ_MS / 1000 + STEP_SECONDS):
                found = await self._waiting.execute_command(
                    "XREAD", "COUNT", READ_AT_ONCE, "BLOCK", READ_MS, "STREAMS", key, last
                )
            _heed_cancelling()
            news = False
            for name, fields in _share_records(found):
                last = name
                news |= self._hear(fields.get(b"m", b""))
            if news:
                self._decide()

    def _hear(self, payload: bytes) -> bool:
        """One odd message is passed over: it does not part this worker from the others."""
        try:
            return self._share.hear(payload)
        except Exception:  # noqa: BLE001 - chats must not suffer from what other workers say
            share_log.exception("A message of another worker could not be used")
            return False

    async def _write(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._empty_outbox()

    async def _empty_outbox(self) -> None:
        """One step after another, so that a slot is free before it is claimed anew."""
        while self._share.outbox:
            step = self._share.outbox.popleft()
            async with asyncio.timeout(STEP_SECONDS):
                answer = await self._do(step)
            _heed_cancelling()
            self._stalled = False
            if step.kind == "claim" and step.claim:
                self._claimed(step.claim, answer)

    def _claimed(self, claim: SlotClaim, answer: list[bytes]) -> None:
        waiting = self._answers.get(claim.request_id)
        if not answer:
            self._share.granted(claim)
        if waiting and not waiting.done():
            waiting.set_result(_refusal(claim, answer))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            if not self._is_used():
                self._share.say_bye()
                await self._empty_outbox()
                raise _UnusedError
            self._told = False  # it has answered for a while
            self._share.beat()
            self._decide()  # somebody may have been forgotten

    # --- one step ---

    async def _do(self, step: ShareStep) -> Any:
        keys, arguments = [f"{self._prefix}events"], ["", step.payload, EVENTS_KEPT, EVENTS_MS]
        if claim := step.claim:
            keys = [self._slots(claim, claim.blob), f"{self._prefix}load:{claim.node}", *keys]
            keys += [self._slots(claim, victim) for victim in claim.victims] if step.kind == "claim" else []
            arguments[0] = claim.request_id
            arguments += [claim.slots, CLAIM_MS, int(claim.loads), _blob_key(claim.blob)]
            arguments += [_blob_key(victim) for victim in claim.victims]
        return await run_script(self._client.execute_command, SHARE_SCRIPTS[step.kind], keys, *arguments)

    def _slots(self, claim: SlotClaim, blob: str) -> str:
        return f"{self._prefix}slots:{claim.node}:{_blob_key(blob)}"


def _heed_cancelling() -> None:
    """End where this task is to end: Python 3.11 loses a cancel that comes just as a command is answered."""
    task = asyncio.current_task()
    if task and task.cancelling():
        raise asyncio.CancelledError


def _blob_key(blob: str) -> str:
    return hashlib.blake2b(blob.encode(), digest_size=8).hexdigest()


def _refusal(claim: SlotClaim, answer: list[bytes]) -> ClaimRefusal | None:
    """What a claim was answered, with the weights by their own names again."""
    if not answer:
        return None
    hashed, *holders = (part.decode() for part in answer)
    names = {_blob_key(blob): blob for blob in (claim.blob, *claim.victims)}
    return ClaimRefusal(names.get(hashed, ""), tuple(holders))


def _share_records(found: Any) -> list[tuple[str, dict[bytes, bytes]]]:
    """The entries of the one stream that was read: id and fields."""
    streams = found.items() if isinstance(found, dict) else found or ()
    return [(name.decode(), dict(fields)) for _, entries in streams for name, fields in entries]


# --- ollama_pack.services.sharing ---
# Workers that share what they know of the nodes over a Redis or Valkey.


def redis_sharing(url: str) -> Connect | None:
    """What connects a router with the others. Nothing is connected yet.

    Args:
        url: as `redis_client` takes it.

    Returns:
        None where there is no URL, and where redis-py is missing, which is logged.
    """
    if not url:
        return None
    if not _has_redis_py():
        log.warning(
            "redis_url has no effect: the package redis is not installed here, so the router shares nothing "
            "with others. Install it on the server (pip install redis), or take its full image"
        )
        return None
    return lambda share, decide: RedisShare(share, redis_client(url), redis_client(url), decide)


def _has_redis_py() -> bool:
    try:
        import_module("redis")
    except ImportError:
        return False
    return True


# --- ollama_pack.services.webui_tasks ---
# Which of Open WebUI's own calls nobody waits for: titles and the like come behind people.
#
# It has others that somebody waits for, and these count as a person's: search and retrieval queries, image
# prompts, autocompletion, *Merge responses*, the choice of tools, the summary of a long conversation.

# Values of `metadata.task`; what is not among them is waited for.
_NOBODY_WAITS = frozenset(
    {"title_generation", "tags_generation", "follow_up_generation", "emoji_generation", "memory_review"}
)


def is_asked_for(task: object) -> bool:
    """Whether a call with this `metadata.task` is a chat of its own: *Merge responses* is."""
    return task == "moa_response_generation"


def is_background_task(task: object) -> bool:
    """Whether nobody waits for a call with this `metadata.task`."""
    return isinstance(task, str) and task in _NOBODY_WAITS


# --- ollama_pack.webui.calling ---
# Asking a model through Open WebUI itself, with its access check. Imports `open_webui` when called.

UNCOUNTED = "ollama_pack_uncounted"  # in a request's metadata, which no client writes: it is the site's own


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
_leaving__END_SECONDS = 60.0  # for filters after an answer. One that takes longer is cancelled, as it was before
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
            await self._while_at(Stage.LAST_WORD, left_at + _leaving__END_SECONDS)
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


# --- ollama_pack.webui.presets ---
# What answers under a model's id, and what its row adds to a chat. Imports `open_webui` when called.


async def default_params() -> dict[str, Any]:
    """The parameters that an admin has set for all models."""
    from open_webui.models.config import Config  # noqa: PLC0415 - see the top of this module

    return dict(await Config.get("models.default_params", {}) or {})


# --- ollama_pack.webui.server ---
# What a plugin takes from its Open WebUI: a secret, a folder, streamed answers, its place.
#
# Imports Open WebUI and its web framework when called.

EVENTS_TYPE, LINES_TYPE = "text/event-stream", "application/x-ndjson"


def server_secret(purpose: str) -> str:
    """A secret of this Open WebUI for one purpose, from its WEBUI_SECRET_KEY; empty where it has none.

    It is the same in all workers and replicas of a site.
    """
    from open_webui.env import WEBUI_SECRET_KEY  # noqa: PLC0415 - see the top of this module

    named = f"open-webui-ollama-pack {purpose}\0{WEBUI_SECRET_KEY}"
    return sha256(named.encode()).hexdigest() if WEBUI_SECRET_KEY else ""


def event_stream(
    events: AsyncIterator[str], media_type: str = EVENTS_TYPE, headers: Mapping[str, str] | None = None
) -> Any:
    """A streamed answer made of server-sent events, which Open WebUI hands on unchanged.

    Of a plain iterator it would put a finish reason of its own, "stop", behind ours.
    """
    from starlette.responses import StreamingResponse  # noqa: PLC0415 - see the top of this module

    return StreamingResponse(events, media_type=media_type, headers=headers)


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


# --- ollama_pack.webui.tracing ---
# Spans for Open WebUI's own OpenTelemetry provider. None where tracing is off or not installed.
#
# They show names, times and counts: never what was asked or answered.

TRACER = "ollama_pack"


class ChatSpan:
    """The span of one routed chat, from the question to the last chunk.

    Its attributes are those of OpenTelemetry's conventions for generative AI, and `ollama_pack.node`.
    Its events are the status lines, such as the place in the queue, and the first token.
    """

    def __init__(self, asked: str, *, background: bool) -> None:
        """Start it.

        Args:
            asked: the model or alias that was asked for.
            background: nobody looks at the answer as it is written.
        """
        self._span: Any = None
        try:
            from opentelemetry import trace  # noqa: PLC0415 - see `current_span`
        except ImportError:
            return
        self._use_span, self._error = trace.use_span, trace.StatusCode.ERROR
        self._span = trace.get_tracer(TRACER).start_span(f"chat {asked}", kind=trace.SpanKind.CLIENT)
        self._span.set_attribute("gen_ai.operation.name", "chat")
        self._span.set_attribute("gen_ai.request.model", asked)
        self._span.set_attribute("ollama_pack.background", background)

    def add_event(self, name: str) -> None:
        """Note that something happened now."""
        if self._span is not None:
            self._span.add_event(name)

    async def around(
        self, chunks: AsyncGenerator[dict[str, Any], None]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of the answer. Ends the span with them, whoever ends first."""
        first = True
        try:
            async with aclosing(chunks):
                while True:
                    with self._current():
                        chunk = await anext(chunks, None)
                    if chunk is None:
                        return
                    if first:
                        self.add_event("first token")
                        first = False
                    self._note(chunk)
                    yield chunk
        except GeneratorExit:
            self.add_event("the client left")
            raise
        except Exception as error:
            if self._span is not None:
                self._span.set_status(self._error, type(error).__name__)
            raise
        finally:
            if self._span is not None:
                self._span.end()

    def _current(self) -> Any:
        # Not for the whole answer: between two chunks the same task does other things.
        if self._span is None:
            return nullcontext()
        return self._use_span(self._span, record_exception=False, set_status_on_exception=False)

    def _note(self, chunk: Mapping[str, Any]) -> None:
        answered, usage = chunk.get("ollama_pack"), chunk.get("usage")
        if self._span is None or not answered:
            return
        self._span.set_attribute("gen_ai.response.model", answered["model"])
        self._span.set_attribute("ollama_pack.node", answered["node"])
        for key, name in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
            if isinstance(usage, Mapping) and isinstance(usage.get(key), int):
                self._span.set_attribute(f"gen_ai.usage.{name}", usage[key])


# --- ollama_pack.plugins.functions.gpu_router ---

ACCESS_SECONDS = 5.0  # that the gateway remembers what a user may use, unless an event says otherwise
PLAN_SECONDS = 20.0  # of simulation, for a plan on the dashboard
CONNECTION_SECONDS = 15.0  # between two looks at Open WebUI's own connections
MOST_KEY = 128  # characters of what a client names its conversation

Body = dict[str, Any]
Emitter = Callable[[dict[str, Any]], Awaitable[None]]


class Pipe:
    """A model for each model of the nodes, and for each routed alias."""

    class Valves(RouterValves):
        redis_url: str = Field(
            default="",
            title="Redis address",
            description=(
                "Address of a Redis or Valkey server, such as `redis://:password@host:6379/0`. With it, all "
                "workers and replicas of Open WebUI share what they know about the nodes, and no slot is "
                "used twice. If it does not answer, chats go on without it. Default: empty, so each worker "
                "works alone."
            ),
            json_schema_extra={"input": {"type": "password"}},
        )
        several_workers: bool = Field(
            default=False,
            title="Several workers without Redis",
            description=(
                "Switch this on when several workers or replicas use the same nodes without Redis. They then "
                "agree by hashing on the node for each chat. Default: off."
            ),
        )
        show_status: bool = Field(
            default=True,
            title="Show status line",
            description=(
                "Show above each answer which model and node gave it, and the place in the queue while the "
                "chat waits. Default: on."
            ),
        )
        show_figures: bool = Field(
            default=True,
            title="Show figures to admins",
            description=(
                "Show admins, in the details of the status line, how much of the prompt the node had cached "
                "and the expected time. Default: on."
            ),
        )

        @field_validator("redis_url")
        @classmethod
        def _redis_usable(cls, url: str) -> str:
            return check_redis_url(url)

        @property
        def settings(self) -> RouterSettings:
            alone = super().settings
            return replace(alone, several_workers=self.several_workers and not self.redis_url)

    def __init__(self) -> None:
        self.valves = self.Valves()
        self._host = RouterHost(redis_sharing, lambda: server_secret("routing"), trusted_certificates)
        self._discovery = NodeDiscovery()
        self._budgets = BudgetContact()
        self._connections: tuple[NodeRow, ...] = ()
        self._lists: tuple[ConnectionModels, ...] = ()
        self._ids = OfferedIds((), (), are_connections=False)
        self._ids_for: tuple[tuple[NodeRow, ...], tuple[ConnectionModels, ...]] | None = None
        self._look_up_at = 0.0
        self._embedding = Embedding()
        self._usable: Remembered[Any, frozenset[str]] = Remembered(ACCESS_SECONDS)
        self._groups: Remembered[str, frozenset[str]] = Remembered(ACCESS_SECONDS)
        self._defaults = SingleFlight(default_params, ACCESS_SECONDS)
        show_early_errors()

    async def pipes(self) -> list[dict[str, str]]:
        """The models that Open WebUI offers. At most two seconds, and only until the nodes are known."""
        try:
            models = await self.routed_models()
        except Exception:
            log.exception("The models could not be listed: those from before are offered")
            models = offered_meanwhile(None, [])
        return [{"id": model["id"], "name": model["name"]} for model in models]

    async def pipe(
        self,
        body: Body,
        __user__: dict[str, Any],
        __metadata__: dict[str, Any],
        __request__: Any,
        __chat_id__: str | None = None,
        __task__: str | None = None,
        __event_emitter__: Emitter | None = None,
    ) -> Any:
        """Answer a chat. An error here becomes the answer's error, in one sentence."""
        self._take_over(__request__.app)
        headers = partial(node_headers, request=__request__, user=__user__, metadata=__metadata__)
        language = reader_language(__metadata__, __request__)
        chat, emitter = str(__chat_id__ or ""), __event_emitter__
        chunks = self._counted(
            __request__.app,
            *(body, __user__, __metadata__, chat, __task__, emitter, headers, language),
        )

        def refused(error: Exception) -> Refusal:
            if isinstance(error, ModelRefusedError):
                refusal = error.refusal
            else:
                refusal = refusal_of(error, for_admin=__user__.get("role") == "admin")
            refusal = refusal.translated(language)
            note_refusal(__request__, refusal, __metadata__)
            if self._host.current is not None:
                self._host.current.counts.refuse(error_code(error))
            return refusal

        if body.get("stream"):
            return event_stream(answer_events(chunks, refused))
        try:
            async with aclosing(chunks):
                return whole_answer([chunk async for chunk in chunks])
        except Exception as error:  # noqa: BLE001 - the boundary to the server, which would show its words
            return refused_answer(refused(error))

    async def _counted(
        self, app: Any, body: Body, user: dict[str, Any], metadata: dict[str, Any], *about: Any
    ) -> AsyncGenerator[Body, None]:
        """The answer, as far as the budgets of its user allow it: see `usage_budgets`."""
        name, task = str(body["model"]).removeprefix(ROUTER), metadata.get("task")
        belongs = bool(task) and not is_asked_for(task)  # to a chat that has begun
        counting = self._budgets.counting(app, user, metadata, name, always=belongs)
        async with counting as (served, last):
            chunks = self._chunks(body, user, metadata, *about, last=last, served=served)
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk

    async def _chunks(
        self,
        body: Body,
        user: dict[str, Any],
        metadata: dict[str, Any],
        chat: str,
        task: str | None,
        emitter: Emitter | None,
        headers: NodeHeaders,
        language: str,
        *,
        last: bool,
        served: Served | None,
    ) -> AsyncGenerator[Body, None]:
        """The answer, which begins when it is gone through."""
        name = str(body["model"]).removeprefix(ROUTER)
        router = await self._ready()
        with self._host.holding(router):
            await tell_refused(emitter if task is None else None, user, language)
            models, why_model = await self._models_and_why(router, body, name, user)
            background = is_background_task(task)
            span = ChatSpan(name, background=background)
            chunks = router.answer(
                await _gpu_router__asked(body, models[0], router, metadata, user),
                models,
                ReplyHead(f"chatcmpl-{uuid4().hex}", int(time.time()), _asked_name(body, metadata)),
                user=str(user.get("id") or ""),
                chat=chat,
                background=background,
                figures=self.valves.show_figures and user.get("role") == "admin",
                tell=_teller(emitter if self.valves.show_status and task is None else None, language, span),
                language=language,
                headers=headers,
                last=last,
                served=served,
                why_model=why_model,
            )
            async with aclosing(span.around(chunks)) as traced:
                async for chunk in traced:
                    yield chunk

    async def direct_chat(self, body: Body, user: Body, request: Any, metadata: Body) -> DirectChat:
        """A chat for the gateway, without Open WebUI's filters: what answers, and the answer.

        Args:
            body: OpenAI's.
            user: who asks.
            request: FastAPI's.
            metadata: of the chat, with the parameters that an admin has given the name.

        Raises:
            ModelRefusedError: nothing answers; the same goes for the answer's chunks.
        """
        self._take_over(request.app)
        admin = user.get("role") == "admin"
        name = str(body["model"]).removeprefix(ROUTER)
        with self._refusing(for_admin=admin):
            router = await self._ready()
            models, why_model = await self._models_and_why(router, body, name, user, remembers=True)
            asked = await _gpu_router__asked(body, models[0], router, metadata, user, self._defaults.get)
        last, served = False, None
        if BUDGET_STATE in metadata:  # else no budget holds
            budgets, begun = await self._budgets.begin(request.app, user, metadata, name, always=False)
            served = partial(budgets.budget_note, begun["ticket"]) if begun["ticket"] else None
            last = begun["last"]
        model = router.answering(models)
        chunks = partial(
            Router.answer,
            body=asked,
            models=models,
            user=str(user.get("id") or ""),
            chat=str(body.get(CACHE_KEY) or "")[:MOST_KEY],
            figures=admin,
            language=accepted_language(request),
            headers=partial(node_headers, request=request, user=user, metadata=metadata),
            last=last,
            served=served,
            why_model=why_model,
        )

        async def answered(head: ReplyHead) -> AsyncGenerator[Body, None]:
            with self._refusing(for_admin=admin):
                now = router if router is self._host.current else await self._ready()
                span = ChatSpan(name, background=False)
                with self._host.holding(now):
                    async with aclosing(span.around(chunks(now, head=head))) as traced:
                        async for chunk in traced:
                            yield chunk

        return DirectChat(model, weights_behind(model, router.catalogue()), asked, answered)

    async def embed(self, body: Body, user: Body) -> Body:
        """Vectors for the gateway: `model`, `node`, `tokens`, `seconds` of GPU time and `vectors`.

        Args:
            body: `model`, `dimensions` and the texts in `input`.
            user: who asks.

        Raises:
            ModelRefusedError: there are none.
        """
        name = str(body["model"]).removeprefix(ROUTER)
        with self._refusing(for_admin=user.get("role") == "admin"):
            router = await self._ready()
            with self._host.holding(router):
                there = self._embedding.catalogue(router)
                model = auto_parts((await self._models(router, body, name, user, there=there))[0])[0][0]
                made, node = await self._embedding.embed(
                    router, model, body["input"], int(body.get("dimensions") or 0)
                )
        about = {"model": model, "node": node, "tokens": made.tokens, "seconds": made.seconds}
        return {**about, "vectors": made.vectors}

    async def shown(self, name: str, user: Body) -> Body:
        """What a node knows of the model that answers for a name, as `/api/show` has it.

        Raises:
            ModelRefusedError: no node does, or the user may not know.
        """
        with self._refusing(for_admin=user.get("role") == "admin"):
            router = await self._ready()
            with self._host.holding(router):
                there = self._embedding.catalogue(router)
                model = auto_parts((await self._models(router, {}, name, user, there=there))[0])[0][0]
                found = there.find(model)
                if found is None:
                    raise router.no_node([model])
                told = await router.nodes[found.nodes[0]].client.show(found.name)
        return told.model_dump(mode="json", exclude={"modelfile", "projector_info", "tensors"})

    def forget_access(self) -> None:
        """Somebody may use more or less than before."""
        self._usable.forget()
        self._groups.forget()
        self._defaults.forget()

    @contextmanager
    def _refusing(self, *, for_admin: bool) -> Iterator[None]:
        """Turn an error into what another plugin can tell its client."""
        try:
            yield
        except Exception as error:
            if self._host.current is not None:
                self._host.current.counts.refuse(error_code(error))
            raise ModelRefusedError(refusal_of(error, for_admin=for_admin)) from error

    def retire(self) -> None:
        """Other code takes over: leave the nodes alone once the chats that are under way have ended."""
        self._host.leave()

    def _take_over(self, app: Any) -> None:
        take_over(app, ROUTER.rstrip("."), self)
        self._host.is_left = False

    async def system_load(self) -> dict[str, Any]:
        """The load of all nodes, addresses included: whoever shows it hides them from plain users."""
        return load_report(await self._ready())

    async def dashboard(self) -> dict[str, Any]:
        """All that an admin may want to see."""
        return dashboard_report(await self._ready())

    async def pull(self, model: str, nodes: list[str]) -> dict[str, Any]:
        """Begin to pull a model at nodes (none: all Ollamas), one after another.

        Returns:
            What upkeep does, or a `fault`.
        """
        return await self._looked_after(lambda upkeep: upkeep.pull(model, nodes))

    async def stop_pull(self) -> dict[str, Any]:
        """Stop the pull that is under way; the same as `pull` returns."""
        return await self._looked_after(lambda upkeep: upkeep.stop())

    async def _looked_after(self, do: Callable[[Upkeep], None]) -> dict[str, Any]:
        router = await self._ready()
        try:
            do(router.upkeep)
        except ValueError as error:
            return {"fault": said_by(error)}
        return {"fault": "", **router.upkeep.report}

    async def plan(self, context: int, users: int, chats: list[dict[str, Any]]) -> dict[str, Any]:
        """What fits where, what to pull, and what one more GPU would bring: see `PlanReport.as_json`.

        Args:
            context: tokens of each chat.
            users: people who use chats; 0: as many as the record has.
            chats: the record. It is simulated in a thread.
        """
        router = await self._ready()
        table, nodes = self.valves.table, nodes_to_plan(router)

        def made() -> dict[str, Any]:
            asked = asked_in(chats)
            source = (
                message("{count} chats of the router's record", count=len(asked))
                if asked
                else message("the same for each model, as there is no record of chats yet")
            )
            report = plan_report(
                nodes,
                wanted_models(table),
                Demand(asked, source),
                context=context,
                users=users or None,
                seconds=PLAN_SECONDS,
            )
            return report.as_json

        return await asyncio.to_thread(made)

    async def metrics(self) -> str:
        """What it did, as Prometheus reads it: its part of `GET /ollama-pack/metrics`."""
        return router_metrics(await self._ready())

    async def answering_weights(self, body: Body, user: dict[str, Any]) -> dict[str, str]:
        """The `model` that would answer a chat now, and its `weights`, for the response cache."""
        name = str(body["model"]).removeprefix(ROUTER)
        router = await self._ready()
        model = router.answering(await self._models(router, body, name, user))
        return {"model": model, "weights": weights_behind(model, router.catalogue())}

    async def routed_models(self) -> list[dict[str, Any]]:
        """What is offered now: each alias and each model, once, as `Offer.routed` describes it."""
        router = await self._ready()
        catalogue = router.catalogue()
        table = self.valves.table
        aliases = routed_aliases(table, catalogue)
        named = [
            {"id": name, "name": name, "alias": True, "models": models_behind(table, name, catalogue.levels)}
            for name in aliases
        ]
        models = [
            {"id": name, "name": name, "alias": False, "tags": self._ids.tags(model)}
            | {"ids": self._ids.named(name, model).ids}
            for name, model in catalogue.models.items()
            if name not in aliases
        ]
        return offered_meanwhile(router, named + models)

    async def _models(
        self, router: Router, body: Body, name: str, user: dict[str, Any], **choice: Any
    ) -> tuple[str, ...]:
        """The models that may answer this user, the preferred first: as `_models_and_why`."""
        return (await self._models_and_why(router, body, name, user, **choice))[0]

    async def _models_and_why(
        self,
        router: Router,
        body: Body,
        name: str,
        user: dict[str, Any],
        *,
        remembers: bool = False,
        there: Catalogue | None = None,
    ) -> tuple[tuple[str, ...], WhyModel]:
        """The models that may answer this user, the preferred first; and why others do not.

        Args:
            router: whose nodes answer.
            body: what is asked.
            name: what it is asked of.
            user: who asks.
            remembers: what the user may use is looked up once in a few seconds.
            there: the models to choose among; None: those that chat.

        Raises:
            AliasUnavailableError: none of an alias's is there, or the user may use none of them.
            NoNodeError: none of an alias's is there, but nodes that do not answer may have one.
            ModelClosedError: the user may not use the model.
        """
        table = self.valves.table
        catalogue = there or await catalogue_for(router, table, name)
        facts = request_facts(body, name, await self._groups_of(user, remembers) if table.uses_groups else ())
        denied: set[str] = set()
        while True:
            try:
                models = models_for(table, facts, catalogue, denied)
            except AliasUnavailableError as error:
                raise why_absent(error, router) from error
            variants = [name for model in models for name in auto_parts(model)[0]]
            named = {model: self._ids.named(model, catalogue.find(model)) for model in variants}
            checked = list(named.values())
            ask = partial(usable_models, ROUTER + name, checked, user)
            key = user.get("id"), user.get("role"), name, tuple((one.name, one.ids) for one in checked)
            usable = await (self._usable.get(key, ask) if remembers else ask())
            closed = {model for model, one in named.items() if one.name not in usable}
            if not closed:
                return models, partial(passed_over, table, facts, catalogue, frozenset(denied))
            if models == (name,):  # no alias: nothing else may answer
                raise ModelClosedError(name)
            denied |= closed

    async def _groups_of(self, user: dict[str, Any], remembers: bool) -> frozenset[str]:  # noqa: FBT001
        ask = partial(group_names, user)
        return await (self._groups.get(str(user.get("id")), ask) if remembers else ask())

    async def _ready(self) -> Router:
        """The router for the valves as they are; another one once nodes or settings change."""
        valves = self.valves
        await self._look_at_connections()
        written = await self._discovery.rows(valves.rows, valves.probe_seconds)
        rows = written if valves.rows else self._connections
        if self._ids_for != (rows, self._lists):
            self._ids_for = rows, self._lists
            self._ids = OfferedIds(rows, self._lists, are_connections=not valves.rows)
        router = await self._host.router(rows, valves.settings, valves.redis_url)
        valves.look_after(router)
        return router

    async def _look_at_connections(self) -> None:
        """Look Open WebUI's own connections up, once in a while."""
        now = time.monotonic()
        if now >= self._look_up_at:
            self._look_up_at = now + CONNECTION_SECONDS
            self._lists = tuple(await model_lists())
            ways = await ways_in()
            rows = connected_nodes(await ollama_connections(), self._lists)
            self._connections = tuple(row.entered_by(ways.get(row.url, row.way_in)) for row in rows)


async def _gpu_router__asked(
    body: Body,
    model: str,
    router: Router,
    metadata: dict[str, Any],
    user: dict[str, Any],
    defaults: Callable[[], Awaitable[dict[str, Any]]] = default_params,
) -> Body:
    """The body for the nodes: with the row's settings, and without tools that the model cannot use."""
    # Open WebUI passes only OpenAI's parameters of a row to pipes.
    row = ((metadata.get("model") or {}).get("info") or {}).get("params") or {}
    if metadata.get("direct"):  # a client has sent the row, as if a connection of its browser's own answered
        row = {}
    if user.get("role") != "admin":
        body = with_machine_options(body, await defaults(), await _admins_params(body, metadata))
    asked = {**body, "params": {**row, **object_in(body.get("params") or {}, "params")}}
    known = router.catalogue().find(model)
    if known is not None and not known.can("tools"):
        remove_builtin_tools(asked, metadata)
    return asked


async def _admins_params(body: Body, metadata: dict[str, Any]) -> Mapping[str, Any]:
    """The parameters that an admin has set for the name that was asked for.

    Open WebUI puts them into the body, among the user's own, and takes them out of the row that plugins see.
    """
    asked = object_at(metadata, "model")
    if metadata.get("direct"):
        return {}
    if "id" not in asked:  # no chat of Open WebUI's: the gateway and Ollama's routes have looked them up
        return object_at(asked, "info", "params")
    row = await model_row(str(asked["id"])) or {}
    # Titles and the like come with the row of their chat, and may be for another model.
    is_other = metadata.get("task") and body["model"] not in (row.get("id"), row.get("base_model_id"))
    return {} if is_other else object_at(row, "params")


def _asked_name(body: Body, metadata: dict[str, Any]) -> str:
    """The name that the client has asked for: of a published alias, not the router's own id for it."""
    row = metadata.get("model") or {}
    base = (row.get("info") or {}).get("base_model_id")
    asked = str(row["id"]) if base == body["model"] and row.get("id") else str(body["model"])
    return asked.removeprefix(ROUTER)


def _teller(emitter: Emitter | None, language: str, span: ChatSpan) -> Tell:
    async def tell(line: Message, *, done: bool) -> None:
        span.add_event(str(line))
        if emitter:
            try:
                text = in_language(line, language)
                await emitter({"type": "status", "data": {"description": text, "done": done}})
            except Exception:
                log.exception("A status line could not be shown")

    return tell
