"""Whisper in this process, with faster-whisper: the model is loaded once, whoever asks."""

import asyncio
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.base.single_flight import process_wide
from ollama_pack.speech.errors import (
    SpeechDependencyError,
    SpeechEngineFaultError,
    SpeechLanguageError,
    SpeechModelUnusableError,
)
from ollama_pack.speech.language import LanguageTag
from ollama_pack.speech.sentences import sentences
from ollama_pack.speech.values import (
    SAMPLE_RATE,
    WINDOW_SECONDS,
    EngineRequest,
    Heard,
    Samples,
    SpeechSegment,
    SpeechWindow,
    SpokenWord,
)
from ollama_pack.speech.whisper_model import ModelPlaces, find_whisper_model

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
