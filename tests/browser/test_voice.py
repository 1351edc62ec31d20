"""Open WebUI's own microphone button, with the pack behind it."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from browser.conftest import ARGUMENTS, PROGRAMS, pages_of
from harness.ollama_node import OllamaNode
from harness.speech_recordings import librivox
from harness.voice_target import VoiceTarget, installed_voice, said, scripted_engine
from local.webui import Account, RunningWebUI

SLOW = 20_000  # milliseconds; the page itself may take long on a busy machine


@pytest.fixture(scope="module")
def voice(
    webui: RunningWebUI, node: OllamaNode, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VoiceTarget]:
    with (
        scripted_engine() as engine,
        installed_voice(webui, node, engine, tmp_path_factory.mktemp("voice")) as target,
    ):
        yield target


@pytest.fixture(scope="module")
def listening() -> Iterator[Browser]:
    """A browser that takes a recording for its microphone, and asks nobody whether it may listen."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("no browser: install chromium (Debian: apt install chromium)")
    microphone = (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={librivox()[0].path}",
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*ARGUMENTS, *microphone])
        yield browser
        browser.close()


def test_the_microphone_button(voice: VoiceTarget, listening: Browser, student_account: Account) -> None:
    """Would catch a microphone that records, and text that never comes: the page's own form of recording."""
    voice.says(said("A word from the microphone."))
    with pages_of(listening, voice.webui.url) as open_as:
        page = open_as(student_account, "/")
        page.get_by_role("button", name="Voice Input").click(timeout=SLOW)
        expect(page.get_by_text("0:03", exact=True)).to_be_visible(timeout=SLOW)  # so long it has listened
        page.get_by_role("button", name="Confirm recording").click()
        expect(page.locator("#chat-input")).to_contain_text("A word from the microphone.", timeout=SLOW)
    assert voice.engine.calls  # there was speech in it


def test_the_transcript_in_the_chat(voice: VoiceTarget, listening: Browser, student_account: Account) -> None:
    """Would catch a transcript attached in a form that the page does not show, or cannot open."""
    voice.says(said("All that was said."))
    recording = voice.attach(student_account, "talk.wav", librivox()[1].path.read_bytes())
    voice.call(student_account, [recording])
    with pages_of(listening, voice.webui.url) as open_as:
        page = open_as(student_account, f"/c/{voice.chat}")
        page.get_by_text("talk.txt").first.click(timeout=SLOW)
        expect(page.get_by_text("All that was said.").last).to_be_visible(timeout=SLOW)
