"""What the voice tool and its routes decide by themselves: which files, what the model gets, who waits."""

import asyncio
import errno
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.datastructures import Headers, QueryParams
from starlette.requests import ClientDisconnect

from ollama_pack.errors import error_code
from ollama_pack.services.transcribing import told_to
from ollama_pack.services.voice_job import chosen_recordings, for_model, progress_line
from ollama_pack.services.voice_routes import unless_gone
from ollama_pack.services.voice_settings import VoiceSettings
from ollama_pack.speech.errors import (
    AudioTooLongError,
    NoAttachmentError,
    SpeechLanguageError,
    SpeechModelMissingError,
)
from ollama_pack.speech.values import SpeechNote, SpeechProgress, SpeechSegment, Transcript
from ollama_pack.webui.errors import NoRoomError, UploadError, UploadTooLargeError
from ollama_pack.webui.uploads import received_recording

FOUND = Transcript("good morning", "en", 3725.0, (SpeechSegment(0, 2, "good morning"),), "e", "m")


def attached(file_id: str, name: str, media_type: str = "", **more: Any) -> dict[str, Any]:
    return {"type": "file", "id": file_id, "name": name, "content_type": media_type} | more


FILES = [
    attached("1", "Talk, part one.mp3", "audio/mpeg"),
    attached("2", "film.mkv"),
    attached("3", "notes.pdf", "application/pdf"),
    {"type": "collection", "id": "4", "name": "songs.mp3"},
    {"type": "file", "id": "5", "file": {"filename": "memo", "meta": {"content_type": "audio/webm"}}},
    attached("1", "Talk, part one.mp3", "audio/mpeg"),
]


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ("", ["1", "2", "5"]),
        ("talk, part one.MP3", ["1"]),
        ("film.mkv, memo", ["2", "5"]),
        ("notes.pdf", ["3"]),
        ("film.mkv,film.mkv, 2", ["2"]),
        ("unknown", ["unknown"]),
    ],
)
def test_which_files_are_meant(wanted: str, ids: list[str]) -> None:
    """Would catch a recording left out, one transcribed twice, or a name with a comma taken apart."""
    assert chosen_recordings(wanted, FILES) == ids


@pytest.mark.parametrize("ending", ["caf", "m4b", "mka", "m4a", "ogg", "AMR", "flac", "opus", "mp3", "mov"])
def test_recordings_are_known_by_their_names(ending: str) -> None:
    """Would catch a name whose kind only some systems know, where the file came without one."""
    assert chosen_recordings("", [attached("1", f"memo.{ending}"), attached("2", "notes.txt")]) == ["1"]


def test_no_recording_is_attached() -> None:
    """Would catch an error that does not say what there is instead."""
    with pytest.raises(NoAttachmentError) as caught:
        chosen_recordings(" ", FILES[2:3])
    assert caught.value.attached == ("notes.pdf",)


def test_what_the_model_gets() -> None:
    """Would catch a warning, a cut or a length that is not told."""
    note = SpeechNote("truncated", "The recording is not whole.")
    noted = Transcript("good morning", "en", 3725.0, FOUND.segments, "e", "m", None, (note,))
    assert for_model("a.mp3", noted, "json", "a.json", 100) == (
        "Transcript of a.mp3 (en, 1:02:05), attached as a.json:\ngood morning\n"
        "Warning: The recording is not whole."
    )
    assert for_model("a.mp3", FOUND, "text", "a.txt", 4).splitlines()[1:] == [
        "good",
        "[The first 4 of 12 characters; all of it is in the attached a.txt.]",
    ]


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (SpeechProgress("waiting", ahead=1), "waiting, 1 recording before it"),
        (SpeechProgress("waiting", ahead=3), "waiting, 3 recordings before it"),
        (SpeechProgress("transcribing", seconds=59.6, total=3600.0), "1:00 of 1:00:00"),
        (SpeechProgress("transcribing", seconds=5.0, text="a" * 100), f"0:05 “{'a' * 80}”"),
    ],
)
def test_how_far_it_is(progress: SpeechProgress, line: str) -> None:
    """Would catch a place in the queue that is not told, or a status line as long as the transcript."""
    assert progress_line(progress) == line


def test_places_are_for_admins() -> None:
    """Would catch folders of the server told to everybody, or users who are not told their own mistake."""
    missing = SpeechModelMissingError("base", ["/secret/models"], "put it there")
    assert "/secret" in told_to(missing, is_admin=True)
    assert "/secret" not in told_to(missing, is_admin=False)
    assert "zh" in told_to(SpeechLanguageError("faster_whisper", "yue", ["zh"]), is_admin=False)
    assert error_code(missing) == "speech_model_missing"
    assert error_code(AudioTooLongError(1, 2)) == "audio_too_long"


def test_models_have_a_default_for_each_engine() -> None:
    """Would catch `base` asked of a server, or of Sphinx."""
    assert VoiceSettings().model_name == "base"
    assert VoiceSettings(engine="openai_http", base_url="http://a").model_name == "whisper-1"
    assert VoiceSettings(engine="speech_recognition").model_name == "sphinx"
    assert VoiceSettings(engine="speech_recognition", model="google", allow_cloud=True)
    with pytest.raises(ValidationError, match="allow_cloud"):
        VoiceSettings(engine="speech_recognition", model="google")


class Request:
    """As much of Starlette's request as is looked at."""

    def __init__(self, chunks: list[bytes], **headers: str) -> None:
        self.headers = Headers({name.replace("_", "-"): value for name, value in headers.items()})
        self.query_params = QueryParams()
        self.chunks = chunks
        self.gone = asyncio.Event()

    async def stream(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk
        if self.gone.is_set():
            raise ClientDisconnect

    async def is_disconnected(self) -> bool:
        return self.gone.is_set()


async def received(request: Request, max_bytes: int) -> bytes:
    async with received_recording(request, max_bytes) as recording:
        return recording.file.read()


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_uploads_leave_no_file(size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Would catch recordings that stay in the temporary folder, whole or half, when all goes well or not."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    raw = Request([bytes(size // 2)] * 2, content_type="audio/wav")
    assert len(asyncio.run(received(raw, size))) == size
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    form = Request([head, bytes(size), b"\r\n--x--\r\n"], content_type="multipart/form-data; boundary=x")
    assert len(asyncio.run(received(form, size))) == size
    broken = Request([head, bytes(size), b"\r\n--xbroken"], content_type=form.headers["content-type"])
    with pytest.raises(UploadError):
        asyncio.run(received(broken, size))
    assert list(tmp_path.iterdir()) == []


def test_who_hangs_up_while_sending() -> None:
    """Would catch half a recording taken for a whole one, or a stack trace in the log for each of them."""
    for kind in ("audio/wav", "multipart/form-data; boundary=x"):
        request = Request([b"--x\r\n"], content_type=kind)
        request.gone.set()
        with pytest.raises(UploadError, match="hung up"):
            asyncio.run(received(request, 5000))


def test_no_more_is_kept_than_is_allowed() -> None:
    """Would catch an upload without end that fills the disk: what comes counts, whatever is told."""
    endless = Request([bytes(1000)] * 10_000, content_type="audio/wav")
    with pytest.raises(UploadTooLargeError) as caught:
        asyncio.run(received(endless, 5000))
    assert caught.value.limit == 5000
    assert 5000 < caught.value.actual <= 11_000
    told = Request([], content_type="audio/wav", content_length="9999")
    with pytest.raises(UploadTooLargeError):
        asyncio.run(received(told, 5000))


@pytest.mark.parametrize("kind", ["audio/wav; ", "multipart/form-data; boundary=x; "])
def test_a_long_content_type_is_not_parsed(kind: str) -> None:
    """Would catch a header that holds up the event loop for a minute: 240 KB of quotes."""
    request = Request([b"--x"], content_type=kind + 'a="\\";' * 40_000)
    since = time.process_time()
    with pytest.raises(UploadError, match="characters, the limit is 256"):
        asyncio.run(received(request, 5000))
    assert time.process_time() - since < 1.0


@pytest.mark.parametrize("address", ["a=1&" * 20_000, "language=" + "e" * 100_000])
def test_fields_of_the_address_are_bounded(address: str) -> None:
    """Would catch thousands of fields of which each is looked for among all others."""
    request = Request([b"1"], content_type="audio/wav")
    request.query_params = QueryParams(address)
    with pytest.raises(UploadError, match="32 fields of 16 KB"):
        asyncio.run(received(request, 5000))


def test_a_full_disk_is_an_error_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a stack trace where an upload finds no room."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", full)
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    for kind in ("audio/wav", "multipart/form-data; boundary=x"):
        with pytest.raises(NoRoomError, match="no room"):
            asyncio.run(received(Request([head, bytes(100), b"\r\n--x--"], content_type=kind), 5000))


def test_who_leaves_does_not_hold_up_others() -> None:
    """Would catch a transcription that goes on for nobody, and its place in the queue with it."""

    async def run() -> bool:
        ended, request = asyncio.Event(), Request([])

        async def work() -> Transcript:
            request.gone.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return FOUND

        with pytest.raises(UploadError, match="has left"):
            await unless_gone(request, work())
        return ended.is_set()

    assert asyncio.run(run())


def test_who_stays_gets_the_result() -> None:
    """Would catch a result that is lost, or an error that is."""

    async def good() -> Transcript:
        return FOUND

    async def bad() -> Transcript:
        raise AudioTooLongError(1, 2)

    async def run() -> None:
        assert await unless_gone(Request([]), good()) == FOUND
        with pytest.raises(AudioTooLongError):
            await unless_gone(Request([]), bad())

    asyncio.run(run())
