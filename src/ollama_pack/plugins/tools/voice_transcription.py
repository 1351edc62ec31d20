"""
title: Voice transcription
author: Open WebUI Ollama Pack
author_url: {repository}
description: Transcribes attached recordings and videos on this machine: text and subtitles, Chinese too.
license: MIT
required_open_webui_version: 0.11.2
requirements: opencc
version: {version}
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from pydantic import Field, field_validator

from ollama_pack.errors import PackError
from ollama_pack.services.valves import PackValves
from ollama_pack.services.voice_job import VoiceJob
from ollama_pack.services.voice_settings import VoiceSettings
from ollama_pack.speech.language import parse_language
from ollama_pack.webui.users import reader_language

log = logging.getLogger(__name__)


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
