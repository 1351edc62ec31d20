"""Voice transcription: a recording as the body of a request, and through OpenAI's client.

The recording is a sentence of "Sense and Sensibility" from LibriVox, in the public domain.
"""

import time
from pathlib import Path

import openai
import requests

from deploy.shown import message
from local.webui import Account, RunningWebUI
from walk.steps import DemoError, Walk

RECORDING = Path(__file__).with_name("sense_and_sensibility.ogg")
SPOKEN = "young man"  # "He was not an ill-disposed young man"
SECONDS = 120  # the first one waits for Whisper to be loaded


def show_voice(walk: Walk, webui: RunningWebUI, student: Account) -> None:
    """The same recording both ways, as a plain user."""
    walk.step("POST /api/voice/transcribe", lambda: _as_body(webui, student))
    walk.step(message("OpenAI's client, /api/voice/v1"), lambda: _by_client(webui, student))
    walk.step(message("The page's microphone"), lambda: _by_microphone(webui, student))


def _as_body(webui: RunningWebUI, account: Account) -> str:
    headers = {"Authorization": f"Bearer {account.token}", "Content-Type": "audio/ogg"}
    started = time.monotonic()
    address = f"{webui.url}/api/voice/transcribe"
    answer = requests.post(address, data=RECORDING.read_bytes(), headers=headers, timeout=SECONDS)
    if not answer.ok:
        raise DemoError(message("answers {status}: {text}", status=answer.status_code, text=answer.text))
    told = answer.json()
    return message(
        "{text!r} ({language}, {duration:.1f} s of speech in {seconds:.1f} s, Whisper's loading included)",
        text=_heard(told["text"]),
        language=told["language"],
        duration=told["duration"],
        seconds=time.monotonic() - started,
    )


def _by_client(webui: RunningWebUI, account: Account) -> str:
    base = f"{webui.url}/api/voice/v1"
    with openai.OpenAI(base_url=base, api_key=account.token, max_retries=0, timeout=SECONDS) as client:
        return repr(_heard(client.audio.transcriptions.create(model="base", file=RECORDING).text))


def _by_microphone(webui: RunningWebUI, account: Account) -> str:
    """As Open WebUI's page sends what its microphone has recorded."""
    headers = {"Authorization": f"Bearer {account.token}"}
    file = {"file": (RECORDING.name, RECORDING.read_bytes(), "audio/ogg")}
    address = f"{webui.url}/api/v1/audio/transcriptions"
    answer = requests.post(address, files=file, headers=headers, timeout=SECONDS)
    if not answer.ok:
        raise DemoError(message("answers {status}: {text}", status=answer.status_code, text=answer.text))
    return repr(_heard(answer.json()["text"]))


def _heard(text: str) -> str:
    if SPOKEN not in text:
        raise DemoError(message("{spoken!r} was said, and heard was {text!r}", spoken=SPOKEN, text=text))
    return text.strip()
