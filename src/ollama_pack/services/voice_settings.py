"""The valves of voice transcription, for the tool and the routes, and the engine they ask for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, Self

import aiohttp
from pydantic import Field, field_validator, model_validator

from ollama_pack.base.messages import message
from ollama_pack.services.valves import PackValves
from ollama_pack.speech.errors import CloudNotAllowedError, SpeechEngineError
from ollama_pack.speech.language import parse_language
from ollama_pack.speech.openai_http import OPENAI_HTTP, OpenAIHTTPEngine, SpeechServer
from ollama_pack.speech.recognizer import RECOGNIZER, RecognizerSettings, SpeechRecognitionEngine
from ollama_pack.speech.values import SpeechEngine
from ollama_pack.speech.whisper import WHISPER, FasterWhisperEngine, WhisperSettings
from ollama_pack.speech.whisper_model import ModelPlaces

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
