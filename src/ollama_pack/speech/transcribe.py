"""From a recording to a transcript: decoding, voice activity, windows, the engine, and how far it is."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

from ollama_pack.base.messages import message
from ollama_pack.speech.decode import DecodedAudio, open_audio
from ollama_pack.speech.errors import NoSpeechError
from ollama_pack.speech.joining import joined_text
from ollama_pack.speech.language import LanguageTag, disagree, parse_language
from ollama_pack.speech.languages import LANGUAGES, UNKNOWN_LANGUAGE, bcp47_code
from ollama_pack.speech.script import converted, missing_converter, script_converter, script_prompt
from ollama_pack.speech.source import AudioSource
from ollama_pack.speech.turns import SLICE_SECONDS, Turn, local_line
from ollama_pack.speech.vad import speech_probabilities
from ollama_pack.speech.values import (
    EngineRequest,
    Heard,
    ProgressCallback,
    SpeechEngine,
    SpeechNote,
    SpeechOptions,
    SpeechProgress,
    SpeechSegment,
    SpeechWindow,
    Transcript,
)
from ollama_pack.speech.windows import windows_and_pauses

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
