"""Voice transcription on the real Open WebUI: both routes and the tool, with a scripted engine behind."""

import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import requests

from deploy.errors import ServerError
from harness.odd_recordings import BOMBS, LAYOUTS, Layout, written
from harness.ollama_node import OllamaNode
from harness.speech_recordings import ENCODINGS, encoded, librivox, silent_video
from harness.voice_target import (
    EVENTS,
    MICROPHONE,
    OPENAI,
    PACK,
    TRANSCRIBE,
    VOICE,
    VoiceTarget,
    installed_voice,
    said,
    scripted_engine,
    silence,
)
from local.webui import Account, RunningWebUI
from ollama_pack.speech.formats import TRANSCRIPT_FORMATS, WARNING_HEADER

DOCTOR = Path(__file__).resolve().parents[2] / "scripts" / "doctor.py"
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def voice(
    target_webui: RunningWebUI, target_node: OllamaNode, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VoiceTarget]:
    """The session's server for uploads, with voice for as long as this file takes."""
    folder = tmp_path_factory.mktemp("voice")
    with (
        scripted_engine() as engine,
        installed_voice(target_webui, target_node, engine, folder) as target,
    ):
        yield target


@pytest.fixture(autouse=True)
def fresh(voice: VoiceTarget) -> None:
    """The engine says what it says at first, and has been asked nothing."""
    voice.says(said("Good morning."))


@pytest.fixture(scope="module")
def speech() -> bytes:
    """Three seconds of somebody who reads."""
    return librivox()[1].path.read_bytes()


def unique(speech: bytes, number: int) -> bytes:
    """The same with other bytes, so that it is not known from an earlier test."""
    return speech + number.to_bytes(8, "big")


@pytest.mark.parametrize("path", [TRANSCRIBE, OPENAI])
def test_strangers_are_not_let_in(voice: VoiceTarget, path: str, speech: bytes) -> None:
    """Would catch a server that transcribes for the whole internet."""
    for token in ("", "not-a-token", "sk-1234567890abcdef"):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = voice.post(path, None, headers=headers, files={"file": speech})
        assert answer.status_code == 401
    assert voice.engine.calls == []


@pytest.mark.parametrize("name", ["audio", "file"])
def test_a_form(voice: VoiceTarget, pupil: Account, speech: bytes, name: str) -> None:
    """Would catch a plain user turned away, a field's name not taken, or an answer not as promised."""
    answer = voice.post(TRANSCRIBE, pupil, files={name: ("a.wav", unique(speech, 1), "audio/wav")})
    assert answer.status_code == 200
    found = answer.json()
    assert (found["text"], found["language"]) == ("Good morning.", "en")
    assert found["duration"] == pytest.approx(2.99, abs=0.01)
    assert found["segments"][0]["words"][1]["word"] == "morning."


def test_the_recording_as_the_body(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch the page of the article: it sends the recording itself; here also chunk by chunk."""
    headers = {"Content-Type": "audio/webm;codecs=opus"}
    webm = encoded(librivox()[1].samples, ENCODINGS["webm"])
    answer = voice.post(f"{TRANSCRIBE}?language=de", pupil, headers=headers, data=webm)
    assert answer.json().get("language") == "de", answer.text
    assert voice.engine.calls[-1].field("language") == ["de"]
    chunks = (unique(speech, 2)[at : at + 10_000] for at in range(0, len(speech) + 8, 10_000))
    answer = voice.post(OPENAI, pupil, headers={"Content-Type": "audio/wav"}, data=chunks)
    assert answer.json() == {"text": "Good morning."}


def test_samples_without_a_header(voice: VoiceTarget, pupil: Account) -> None:
    """Would catch `audio/L16` read at another rate, or one that nobody can mean."""
    samples = (librivox()[1].samples * 32767).astype("<i2").tobytes()
    answer = voice.post(TRANSCRIBE, pupil, headers={"Content-Type": "audio/L16; rate=16000"}, data=samples)
    assert answer.json()["duration"] == pytest.approx(2.99, abs=0.01)
    for wrong in ("rate=fast", "rate=0", "endianness=big-endian"):
        answer = voice.post(TRANSCRIBE, pupil, headers={"Content-Type": f"audio/L16; {wrong}"}, data=samples)
        assert answer.status_code == 400


@pytest.mark.parametrize(
    ("path", "field"), [(TRANSCRIBE, "format"), (OPENAI, "response_format")], ids=["own", "openai"]
)
def test_formats(voice: VoiceTarget, pupil: Account, speech: bytes, path: str, field: str) -> None:
    """Would catch a format that is not what it says, or an unknown one taken for another."""

    def ask(form: str) -> Any:
        return voice.post(path, pupil, files={"file": unique(speech, 3)}, data={field: form})

    assert ask("text").text == "Good morning.\n"
    assert ask("srt").text == "1\n00:00:00,000 --> 00:00:02,000\nGood morning.\n"
    assert ask("vtt").text.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:02.000\nGood morning.")
    assert ask("vtt").headers["Content-Type"].startswith("text/vtt")
    verbose = ask("verbose_json").json()
    assert (verbose["language"], verbose["segments"][0]["end"]) == ("english", 2.0)
    refused = ask("docx")
    assert refused.status_code == 400
    assert "json, text, srt, vtt, verbose_json" in refused.json()["detail"]


def test_openais_own_client(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch a form or an error that the OpenAI client does not read."""
    base = f"{voice.webui.url}{OPENAI.removesuffix('/audio/transcriptions')}"
    with openai.OpenAI(base_url=base, api_key=pupil.token, max_retries=0) as client:
        found = client.audio.transcriptions.create(
            model="whisper-1",
            file=("a.wav", unique(speech, 4)),
            language="en",
            prompt="Elinor",
            response_format="verbose_json",
            timestamp_granularities=["word"],
        )
        assert [word.word for word in found.words] == ["Good", "morning."]
        assert found.segments is None
        assert voice.engine.calls[-1].field("prompt") == ["Elinor"]
        with pytest.raises(openai.UnprocessableEntityError, match="klingon"):
            client.audio.transcriptions.create(model="whisper-1", file=("a.wav", speech), language="klingon")


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (lambda: b"", 400, "empty_audio"),
        (lambda: b"Good morning. " * 300, 400, "not_audio"),
        (lambda: silence(0), 400, "zero_length"),
        (silent_video, 400, "no_audio_track"),
        (lambda: silence(2), 400, "no_speech"),
        (lambda: silence(70), 413, "audio_too_large"),
        (lambda: encoded(librivox()[1].samples.repeat(25), ENCODINGS["mp3"]), 413, "audio_too_long"),
    ],
    ids=["empty", "text", "zero length", "no track", "silence", "too large", "too long"],
)
def test_bad_recordings(
    voice: VoiceTarget, pupil: Account, content: Callable[[], bytes], status: int, code: str
) -> None:
    """Would catch a 500, or an error that says neither limit nor actual value."""
    answer = voice.post(TRANSCRIBE, pupil, files={"audio": content()})
    told = answer.json()
    assert (answer.status_code, told["error"]["code"]) == (status, code)
    assert told["detail"] == told["error"]["message"]
    if status == 413:
        assert re.search(
            r"2\.\d MB, the limit is 2 MB|1\.\d minutes or more \(the limit is 1\)", told["detail"]
        )
    assert voice.engine.calls == []


def test_too_large_however_it_comes(voice: VoiceTarget, pupil: Account) -> None:
    """Would catch a limit that is only looked at when all has been read, or only where a length is told."""
    content, headers = bytes(3 * MEGABYTE), {"Content-Type": "audio/wav"}
    for body in (content, (content[at : at + MEGABYTE] for at in range(0, len(content), MEGABYTE))):
        answer = voice.post(TRANSCRIBE, pupil, headers=headers, data=body)
        assert answer.status_code == 413
    answer = voice.post(OPENAI, pupil, files={"file": bytes(4 * MEGABYTE)})
    assert answer.json()["error"]["code"] == "audio_too_large"


def test_what_is_no_upload(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch a 500 for a request that has no recording in it, or one that cannot be read."""
    answers = [
        voice.post(TRANSCRIBE, pupil),
        voice.post(TRANSCRIBE, pupil, json={"audio": "…"}),
        voice.post(TRANSCRIBE, pupil, files={"sound": speech}),
        voice.post(TRANSCRIBE, pupil, data={"audio": "a"}, files={"other": b"b"}),
        voice.post(TRANSCRIBE, pupil, headers={"Content-Type": "multipart/form-data"}, data=b"--a"),
        voice.post(TRANSCRIBE, pupil, headers={"Content-Type": "multipart/form-data; boundary=a"}, data=b"x"),
    ]
    assert [answer.status_code for answer in answers] == [400] * 6
    assert all("multipart/form-data" in answer.json()["detail"] for answer in answers)


def test_headers_and_fields_are_bounded_before_they_are_parsed(
    voice: VoiceTarget, pupil: Account, speech: bytes
) -> None:
    """Would catch one request that stops the whole server for a minute."""
    since = time.monotonic()
    for kind in ("audio/wav; ", "multipart/form-data; boundary=x; "):
        answer = voice.post(OPENAI, pupil, headers={"Content-Type": kind + 'a="\\";' * 10_000}, data=speech)
        assert answer.status_code == 400
    answer = voice.post(f"{OPENAI}?{'a=1&' * 10_000}", pupil, files={"file": speech})
    assert answer.status_code == 400
    answer = voice.post(OPENAI, pupil, files={"file": speech}, data={"language": "x" * 15_000})
    assert answer.status_code == 422
    assert time.monotonic() - since < 20


@pytest.mark.parametrize("name", [name for name in BOMBS if not name.startswith(("mp4", "mkv 20 MB", "mp3"))])
def test_what_a_file_claims_is_no_500(voice: VoiceTarget, pupil: Account, name: str) -> None:
    """Would catch a stack trace, or a server without memory, for some bytes."""
    answer = voice.post(TRANSCRIBE, pupil, files={"audio": BOMBS[name]()})
    assert answer.status_code in {400, 413}
    assert answer.json()["error"]["code"] in {
        "sample_rate",
        "no_speech",
        "zero_length",
        "not_audio",
        "audio_too_long",
        "audio_too_large",
    }


def test_odd_recordings(voice: VoiceTarget, pupil: Account) -> None:
    """Would catch silence for cancelling channels or an unused track, and times that a hole takes away."""
    sound = librivox()[1].samples
    both: Any = np.stack((sound, -sound), axis=1)
    silent: Any = np.zeros_like(sound)
    stereo = written([[(0.0, both)]], Layout("matroska", "flac", 16_000, channels="stereo"))
    assert voice.post(TRANSCRIBE, pupil, files={"audio": stereo}).json()["text"] == "Good morning."
    hole = written([[(0.0, sound), (43.0, sound)]], LAYOUTS["webm"])
    found = voice.post(TRANSCRIBE, pupil, files={"audio": hole}).json()
    assert [segment["start"] for segment in found["segments"]] == pytest.approx([0.0, 43.0], abs=0.3)
    assert found["warnings"] == []
    tracks = voice.post(
        TRANSCRIBE, pupil, files={"audio": written([[(0.0, silent)], [(0.0, sound)]], LAYOUTS["mp4"])}
    )
    assert tracks.json()["text"] == "Good morning."
    assert (
        'tracks="The recording has 2 audio tracks: this is track 2, not track 1'
        in tracks.headers[WARNING_HEADER]
    )


@pytest.mark.parametrize("channels", [8, 9, 16])
def test_samples_of_many_channels(voice: VoiceTarget, pupil: Account, channels: int) -> None:
    """Would catch a 500 for nine channels, which have no layout."""
    numbers: Any = np.repeat((librivox()[1].samples * 32767).astype("<i2"), channels)
    headers = {"Content-Type": f"audio/L16; rate=16000; channels={channels}"}
    answer = voice.post(TRANSCRIBE, pupil, headers=headers, data=numbers.tobytes())
    assert (answer.status_code, answer.json()["text"]) == (200, "Good morning.")


def test_a_damaged_transport_stream(voice: VoiceTarget, pupil: Account) -> None:
    """Would catch a 500 where a track is found only behind the damage."""
    whole = written([[(3.0, librivox()[1].samples)]], LAYOUTS["mpegts"])
    dice = random.Random(8)  # noqa: S311 - the same files each time
    for _ in range(12):
        damaged = bytearray(whole)
        start = dice.randrange(len(damaged))
        damaged[start : start + dice.randrange(len(damaged) // 2)] = b""
        for _ in range(100):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        assert voice.post(TRANSCRIBE, pupil, files={"audio": bytes(damaged)}).status_code in {200, 400, 413}


def test_one_odd_word_of_a_server_loses_nothing(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch a transcript refused for one word, or subtitles all at the end."""
    answer = said("One two three.", 3.0)
    answer["words"][1]["start"] = None
    voice.says(answer)
    found = voice.post(TRANSCRIBE, pupil, files={"audio": unique(speech, 20)}).json()
    assert [word["start"] for word in found["segments"][0]["words"]] == pytest.approx(
        [0.0, 1.0, 2.0], abs=0.05
    )
    assert [warning["kind"] for warning in found["warnings"]] == ["answer"]
    nano = said("One two three.", 3.0)
    for entry in [*nano["segments"], *nano["words"]]:
        entry |= {"start": entry["start"] * 10**9, "end": entry["end"] * 10**9}
    voice.says(nano)
    sent = {"files": {"audio": unique(speech, 21)}, "data": {"format": "srt"}}
    shown = voice.post(TRANSCRIBE, pupil, **sent).text
    assert shown.startswith("1\n00:00:00,000 --> 00:00:0")


def test_a_language_as_answers_have_it(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch a client refused that sends back what it got."""
    sent = {"files": {"file": unique(speech, 22)}, "data": {"response_format": "verbose_json"}}
    language = voice.post(OPENAI, pupil, **sent).json()["language"]
    again = {"files": {"file": unique(speech, 22)}, "data": {"language": language}}
    assert voice.post(OPENAI, pupil, **again).status_code == 200
    assert voice.engine.calls[-1].field("language") == ["en"]


def test_the_models_are_listed(voice: VoiceTarget, pupil: Account) -> None:
    """Would catch a page of HTML for a client that asks which models there are."""
    client = openai.OpenAI(base_url=f"{voice.webui.url}/api/voice/v1", api_key=pupil.token)
    assert [model.id for model in client.models.list()] == ["whisper-1"]
    assert client.models.retrieve("whisper-1").owned_by == "openai_http"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("telepathy")
    assert voice.post("/api/voice/v1/models", None).status_code in {401, 405}


def test_nobody_finds_out_what_others_have_sent(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch an answer that comes at once because somebody else had the same recording."""
    sent = {"files": {"audio": unique(speech, 23)}}
    for who in (pupil, voice.webui.admin, pupil):
        voice.post(TRANSCRIBE, who, **sent)
    assert len(voice.engine.calls) == 2
    key = {"Authorization": f"Bearer {voice.key}"}
    for _ in range(2):  # whoever uses the microphone
        voice.post(OPENAI, None, headers=key, files={"file": unique(speech, 23)})
    assert len(voice.engine.calls) == 4


def test_one_user_does_not_fill_the_line(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch 17 uploads of one user that leave no place for others, on the disk or in the line."""
    long = encoded(np.tile(librivox()[1].samples, 15), ENCODINGS["mp3"])
    with ThreadPoolExecutor(20) as pool:
        flood = [
            pool.submit(voice.post, TRANSCRIBE, pupil, files={"audio": long + bytes([number])})
            for number in range(17)
        ]
        other = pool.submit(voice.post, TRANSCRIBE, voice.webui.admin, files={"audio": unique(speech, 24)})
        assert other.result().status_code == 200
        answers = [found.result() for found in flood]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} <= {429}
    assert all(answer.headers["Retry-After"] for answer in refused)


def test_a_truncated_recording_gives_what_there_is(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch half a recording refused, or taken for a whole one."""
    found = voice.post(TRANSCRIBE, pupil, files={"audio": speech[: len(speech) * 2 // 3]}).json()
    assert found["text"] == "Good morning."
    assert [warning["kind"] for warning in found["warnings"]] == ["truncated"]


@pytest.mark.parametrize(
    ("path", "field"), [(TRANSCRIBE, "format"), (OPENAI, "response_format")], ids=["own", "openai"]
)
def test_every_format_tells_that_something_is_wrong(
    voice: VoiceTarget, pupil: Account, speech: bytes, path: str, field: str
) -> None:
    """Would catch half a recording, or one in another language, that looks right to who reads the text."""
    voice.says(said("Good morning.", language="french"))
    for form in TRANSCRIPT_FORMATS:
        half = speech[: len(speech) * 3 // 5]
        answer = voice.post(path, pupil, files={"file": half}, data={field: form, "language": "en"})
        header = answer.headers[WARNING_HEADER]
        assert header.startswith('truncated="The recording is not whole: ')
        assert 'language="The recording seems to be in French (100% sure), but en was asked for."' in header
        assert ("NOTE Warning: The recording is not whole" in answer.text) == (form == "vtt")
        right = {"files": {"file": unique(speech, 13)}, "data": {field: form, "language": "fr"}}
        whole = voice.post(path, pupil, **right)
        assert (whole.status_code, WARNING_HEADER in whole.headers) == (200, False)


def test_an_unknown_language_lists_the_known(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch a language that is silently another one."""
    answer = voice.post(TRANSCRIBE, pupil, files={"audio": speech}, data={"language": "tlh"})
    assert answer.status_code == 422
    assert "valid: auto, zh-CN, zh-TW" in answer.json()["detail"]


def test_the_same_recording_is_not_listened_to_twice(
    voice: VoiceTarget, pupil: Account, speech: bytes
) -> None:
    """Would catch work done again for the same bytes and options, and none done for other options."""
    for _ in range(2):
        voice.post(TRANSCRIBE, pupil, files={"audio": unique(speech, 5)})
    assert len(voice.engine.calls) == 1
    voice.post(TRANSCRIBE, pupil, files={"audio": unique(speech, 5)}, data={"language": "fr"})
    assert len(voice.engine.calls) == 2


def test_an_engine_that_is_down(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch an error without a remedy for the admin, or addresses of the server told to users."""
    before = voice.set_valves(base_url="http://127.0.0.1:9/v1")
    try:
        told = voice.post(TRANSCRIBE, pupil, files={"audio": unique(speech, 6)})
        assert told.status_code == 503
        assert "127.0.0.1" not in told.text
        told = voice.post(TRANSCRIBE, voice.webui.admin, files={"audio": unique(speech, 6)})
        assert "http://127.0.0.1:9" in told.json()["detail"]
        assert told.json()["error"]["code"] == "speech_server_unreachable"
    finally:
        voice.set_valves(**before)


def test_the_microphone(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch Open WebUI's microphone not reaching the pack, or an error for who says nothing."""
    sent = {"file": ("recording.wav", unique(speech, 7), "audio/wav")}
    answer = voice.post(MICROPHONE, pupil, files=sent, data={"language": "en"})
    assert (answer.status_code, answer.json()["text"]) == (200, "Good morning.")
    answer = voice.post(MICROPHONE, pupil, files={"file": ("recording.wav", silence(1), "audio/wav")})
    assert (answer.status_code, answer.json()["text"]) == (200, "")


def test_the_microphones_key_opens_one_door(voice: VoiceTarget, speech: bytes) -> None:
    """Would catch a key that lets its holder do more than transcribe, or one that is easily guessed."""
    headers = {"Authorization": f"Bearer {voice.key}"}
    files = {"file": speech}
    assert len(voice.key) >= 40
    assert voice.post(OPENAI, None, headers=headers, files=files).status_code == 200
    assert voice.post(TRANSCRIBE, None, headers=headers, files=files).status_code == 401
    assert voice.post("/api/chat/completions", None, headers=headers, json={}).status_code == 401
    wrong = {"Authorization": f"Bearer {voice.key[:-1]}"}
    assert voice.post(OPENAI, None, headers=wrong, files=files).status_code == 401


def test_without_a_key_nobody_is_let_in_by_one(voice: VoiceTarget, speech: bytes) -> None:
    """Would catch an empty key that equals an empty header, or one that can be guessed."""
    valves = voice.api.valves("functions", EVENTS)
    path = f"/api/v1/functions/id/{EVENTS}/valves/update"
    with pytest.raises(ServerError, match="400"):
        voice.api.post(path, valves | {"microphone_key": "short"})
    voice.api.post(path, valves | {"microphone_key": ""})
    try:
        for shown in ("Bearer ", "Bearer", ""):
            answer = voice.post(OPENAI, None, headers={"Authorization": shown}, files={"file": speech})
            assert answer.status_code == 401
    finally:
        voice.api.post(path, valves)


def test_the_tool_transcribes_what_is_attached(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch a file left out, a transcript that the model or the chat does not get, or no progress."""
    voice.says(said("The first one."), said("The second one."))
    files = [
        voice.attach(pupil, "one.wav", unique(speech, 8)),
        voice.attach(pupil, "notes.txt", b"not a recording", "text/plain"),
        voice.attach(pupil, "two.mp3", encoded(librivox()[1].samples, ENCODINGS["mp3"]), "audio/mpeg"),
    ]
    message = voice.call(pupil, files)
    assert voice.told == (
        "Transcript of one.wav (en, 0:03), attached as one.txt:\nThe first one.\n\n"
        "Transcript of two.mp3 (en, 0:03), attached as two.txt:\nThe second one."
    )
    stored = {file["name"]: voice.content(pupil, file["id"]) for file in message["files"]}
    assert stored == {"one.txt": "The first one.\n", "two.txt": "The second one.\n"}
    lines = [status["description"] for status in message["statusHistory"] if "description" in status]
    assert lines[0] == "Transcribing one.wav"
    assert "one.wav: 0:03 of 0:03 “The first one.”" in lines
    assert lines[-1] == "Transcribed"


def test_subtitles_of_one_of_several(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch a name that does not choose, or subtitles without times."""
    files = [voice.attach(pupil, f"{name}.wav", unique(speech, 9)) for name in ("a", "b")]
    message = voice.call(pupil, files, recordings="B.wav", format="srt", language="zh-CN")
    assert "00:00:00,000 --> 00:00:02,000" in voice.told
    assert [file["name"] for file in message["files"]] == ["b.srt"]
    assert voice.engine.calls[-1].field("language") == ["zh"]


def test_another_users_file_is_not_found(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch a recording read by whoever knows its id, or an answer that tells whether there is one."""
    foreign = voice.attach(voice.webui.admin, "secret.wav", unique(speech, 10))
    voice.call(pupil, [], recordings=foreign["id"])
    told = voice.told
    voice.call(pupil, [], recordings="no-such-id")
    assert told.replace(foreign["id"], "ID") == voice.told.replace("no-such-id", "ID")
    assert "was not found" in told
    voice.call(pupil, [foreign])  # as if it were attached
    assert "was not found" in voice.told
    assert voice.engine.calls == []


def test_nothing_attached(voice: VoiceTarget, pupil: Account) -> None:
    """Would catch a model that is not told what is missing."""
    message = voice.call(pupil, [voice.attach(pupil, "notes.txt", b"text", "text/plain")])
    assert voice.told.startswith("Error: there is no recording to transcribe (attached: notes.txt)")
    assert message["statusHistory"][-1]["done"]


def test_one_of_several_is_bad(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch one bad file that takes the others' transcripts with it."""
    files = [
        voice.attach(pupil, "bad.mp3", b"no audio at all" * 100, "audio/mpeg"),
        voice.attach(pupil, "good.wav", unique(speech, 11)),
    ]
    message = voice.call(pupil, files)
    bad, good = voice.told.split("\n\n")
    assert bad.startswith("bad.mp3: the file is no audio or video")
    assert good.endswith("Good morning.")
    assert message["statusHistory"][-1]["description"] == "Transcribed 1 of 2 recordings"


def test_a_long_transcript_is_cut_for_the_model_alone(
    voice: VoiceTarget, pupil: Account, speech: bytes
) -> None:
    """Would catch a transcript that fills the model's context, or a file that is cut as well."""
    voice.says(said("word " * 5000))
    message = voice.call(pupil, [voice.attach(pupil, "long.wav", unique(speech, 12))])
    assert 16_000 < len(voice.told) < 16_300
    assert "The first 16000 of 24999 characters" in voice.told
    assert len(voice.content(pupil, message["files"][0]["id"])) == 25_000


def test_users_choose_for_themselves(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch a user's language and format without effect, or a bad one that is stored."""
    path = f"/api/v1/tools/id/{VOICE}/valves/user/update"
    assert voice.post(path, pupil, json={"language": "tlh"}).status_code >= 400
    voice.post(path, pupil, json={"language": "zh-TW", "format": "vtt"}).raise_for_status()
    try:
        message = voice.call(pupil, [voice.attach(pupil, "a.wav", unique(speech, 13))])
        assert [file["name"] for file in message["files"]] == ["a.vtt"]
        assert "(zh-TW, 0:03)" in voice.told
    finally:
        voice.post(path, pupil, json={}).raise_for_status()


def test_valves_that_cannot_work_are_refused(voice: VoiceTarget) -> None:
    """Would catch settings that an admin can save and that then fail for everybody."""
    for wrong in (
        {"language": "tlh"},
        {"base_url": "speaches:8000"},
        {"engine": "speech_recognition", "model": "google"},
        {"engine": "speech_recognition", "model": "telepathy"},
    ):
        with pytest.raises(ServerError, match="400"):
            voice.set_valves(**wrong)


def test_uploading_again_changes_nothing_and_shows_no_secret(voice: VoiceTarget) -> None:
    """Would catch a new key with each upload, or one on the screen."""
    assert voice.upload() == "nothing to change\n"
    pack = PACK.format(url=voice.engine.url, microphone="true").replace("voice:", "voice:\n  api_key: hush")
    shown = voice.upload(pack, "--dry-run")
    assert '+ api_key: "…"' in shown
    assert "hush" not in shown
    assert voice.key not in shown


def test_who_may_use_it(voice: VoiceTarget, pupil: Account, speech: bytes) -> None:
    """Would catch an audience without effect, or an admin's own choice undone by the next upload."""
    private = PACK.format(url=voice.engine.url, microphone="true") + "  audience: admin\n"
    assert "set who may use tool" in voice.upload(private)
    assert voice.upload() == "nothing to change\n"
    voice.node.requests.clear()
    voice.post(OPENAI, pupil, files={"file": speech}).raise_for_status()  # the routes are for all who sign in
    assert voice.api.plugin("tools", VOICE)["access_grants"] == []
    public = private.replace("audience: admin", "audience: public")
    assert "set who may use tool" in voice.upload(public)


def test_the_microphone_can_be_given_back(voice: VoiceTarget) -> None:
    """Would catch settings that only a hand can undo, or a failure where Open WebUI has no Whisper itself."""
    shown = voice.upload("", "--dry-run", microphone="false")
    assert '- ENGINE: "openai"\n    + ENGINE: ""' in shown
    assert voice.key not in shown
    voice.upload(microphone="false")
    stt = voice.api.get("/api/v1/audio/config")["stt"]
    assert (stt["ENGINE"], stt["OPENAI_API_KEY"]) == ("", "")
    assert voice.upload(microphone="false") == "nothing to change\n"
    voice.upload()


def test_an_address_of_its_own(voice: VoiceTarget) -> None:
    """Would catch a container that cannot reach itself under the address that the admin's browser uses."""
    other = PACK.format(url=voice.engine.url, microphone="http://localhost:8080")
    assert '+ OPENAI_API_BASE_URL: "http://localhost:8080/api/voice/v1"' in voice.upload(other, "--dry-run")


def test_the_doctor_looks_at_voice(voice: VoiceTarget) -> None:
    """Would catch a doctor that says all is well where nobody is transcribed."""
    done = examine(voice)
    assert "✓ voice: openai_http is there" in done.stdout
    assert "✓ microphone: Open WebUI's microphone is transcribed by the pack" in done.stdout
    assert "✓ speech server: answers" in done.stdout
    audio = voice.api.get("/api/v1/audio/config")
    wrong = audio["stt"] | {"OPENAI_API_KEY": "an older one"}
    voice.api.post("/api/v1/audio/config/update", {"tts": audio["tts"], "stt": wrong})
    before = voice.set_valves(base_url="http://127.0.0.1:9/v1")
    try:
        done = examine(voice)
        assert "✗ microphone: Open WebUI shows another key" in done.stdout
        assert "✗ speech server: no answer at http://127.0.0.1:9/v1/models" in done.stdout
        assert done.returncode == 1
    finally:
        voice.set_valves(**before)
        voice.api.post("/api/v1/audio/config/update", {"tts": audio["tts"], "stt": audio["stt"]})


def examine(voice: VoiceTarget) -> subprocess.CompletedProcess[str]:
    """Run the doctor as an admin does."""
    config = voice.folder / "pack.yaml"
    config.write_text(PACK.format(url=voice.engine.url, microphone="true"))
    servers = {"OPEN_WEBUI_URL": voice.webui.url, "OPEN_WEBUI_TOKEN": voice.webui.admin.token}
    return subprocess.run(
        [sys.executable, DOCTOR, str(config)], env=servers, capture_output=True, text=True, check=False
    )


def test_voice_alone_has_its_routes(voice: VoiceTarget, speech: bytes) -> None:
    """Would catch voice that needs the publisher of models, or a route of two functions."""

    def transcribes(key: str) -> bool:
        answer = voice.post(OPENAI, None, headers={"Authorization": f"Bearer {key}"}, files={"file": speech})
        assert answer.status_code in {200, 401}
        return answer.status_code == 200

    before = voice.key
    voice.upload(PACK.format(url=voice.engine.url, microphone="true").replace(EVENTS, "voice_routes"))
    try:
        own = str(voice.api.valves("functions", "voice_routes")["microphone_key"])
        assert own == before  # Open WebUI's microphone goes on
        other = "another key of 16 characters"
        valves = voice.api.valves("functions", "voice_routes") | {"microphone_key": other}
        voice.api.post("/api/v1/functions/id/voice_routes/valves/update", valves)
        until = time.monotonic() + 60
        while not transcribes(other) or transcribes(before):  # the events function has stepped back
            assert time.monotonic() < until
        toggle = f"/api/v1/functions/id/{EVENTS}/toggle"
        voice.api.post(toggle)
        assert transcribes(other)
        voice.api.post(toggle)
    finally:
        url = f"{voice.webui.url}/api/v1/functions/id/voice_routes/delete"
        requests.delete(url, headers={"Authorization": f"Bearer {voice.api.key}"}, timeout=60)
    until = time.monotonic() + 60
    while not transcribes(before):
        assert time.monotonic() < until
