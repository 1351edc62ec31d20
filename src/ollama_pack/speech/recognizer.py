"""The recognizers of the `SpeechRecognition` package: offline ones, and clouds where the admin allows it."""

import asyncio
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.base.single_flight import process_wide
from ollama_pack.speech.errors import (
    CloudNotAllowedError,
    SpeechDependencyError,
    SpeechEngineError,
    SpeechEngineFaultError,
    SpeechLanguageError,
)
from ollama_pack.speech.language import LanguageTag
from ollama_pack.speech.languages import language_code
from ollama_pack.speech.pcm import int16_bytes
from ollama_pack.speech.values import (
    SAMPLE_RATE,
    WINDOW_SECONDS,
    EngineRequest,
    Heard,
    SpeechSegment,
    SpeechWindow,
)

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
