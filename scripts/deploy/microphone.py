"""Open WebUI's speech-to-text settings: its microphone, and what is uploaded, go to the pack's route."""

import io
import json
import wave
from secrets import token_urlsafe
from typing import Any

from deploy.client import OpenWebUI
from deploy.errors import DeployError, ServerError
from deploy.plan import Plan, valves_diff
from deploy.shown import message, plain

Json = dict[str, Any]

BASE_PATH = "/api/voice/v1"
KEY_VALVE = "microphone_key"
BEFORE_VALVE = "microphone_before"
OWN_MODEL = "ollama-pack"
# The settings that the pack changes.
_OURS = ("ENGINE", "OPENAI_API_BASE_URL", "OPENAI_API_KEY", "OPENAI_API_REQUEST_FORMAT", "MODEL")
SECRET_SETTINGS = frozenset({"OPENAI_API_KEY"})
CONFIG_PATH = "/api/v1/audio/config"
MICROPHONE_PATH = "/api/v1/audio/transcriptions"  # what Open WebUI's page sends to
ROUTE_PATH = f"{BASE_PATH}/audio/transcriptions"


def microphone_key(stored: Json) -> str:
    """The key that is set already, or a new one.

    Args:
        stored: the valves of the function that has the route.
    """
    return str(stored.get(KEY_VALVE) or "") or token_urlsafe(32)


def plan_microphone(plan: Plan, server: OpenWebUI, address: str, key: str) -> None:
    """Add the step that makes Open WebUI's speech-to-text the pack's.

    Args:
        plan: where the step goes.
        server: the Open WebUI.
        address: under which Open WebUI reaches itself.
        key: that it shows there.
    """
    audio = server.audio()
    wanted = {
        "ENGINE": "openai",
        "OPENAI_API_BASE_URL": address.rstrip("/") + BASE_PATH,
        "OPENAI_API_KEY": key,
    }
    if "OPENAI_API_REQUEST_FORMAT" in audio["stt"]:
        wanted["OPENAI_API_REQUEST_FORMAT"] = "multipart"
    if not audio["stt"].get("MODEL"):
        wanted["MODEL"] = OWN_MODEL
    _plan_settings(plan, server, audio, wanted, message("point Open WebUI's microphone at the pack"))


def plan_no_microphone(plan: Plan, server: OpenWebUI, stored: Json) -> None:
    """Add the step that gives Open WebUI back the speech-to-text that it had before the pack took its place.

    What an admin has changed since stays. Where nothing was kept, its own Whisper is what it had.

    Args:
        plan: where the step goes.
        server: the Open WebUI.
        stored: the valves of the function that has the route.
    """
    audio = server.audio()
    if is_ours(audio["stt"]):
        before = _kept(stored)
        wanted = {name: value for name, value in before.items() if _is_as_set(name, audio["stt"], stored)}
        what = (
            message("own Whisper")
            if not wanted.get("ENGINE")
            else message("{engine!r} engine", engine=plain(wanted["ENGINE"], 40))
        )
        _plan_settings(
            plan, server, audio, wanted, message("give Open WebUI's microphone its {what} back", what=what)
        )


def kept_before(server: OpenWebUI, stored: Json) -> str:
    """What the valve `microphone_before` is to hold: the settings as they were before they were ours.

    Args:
        server: the Open WebUI.
        stored: the valves of the function that has the route.
    """
    stt = server.audio()["stt"]
    if is_ours(stt):
        return str(stored.get(BEFORE_VALVE) or "")
    return json.dumps({name: stt[name] for name in _OURS if isinstance(stt.get(name), str)})


def _kept(stored: Json) -> dict[str, str]:
    try:
        before = json.loads(str(stored.get(BEFORE_VALVE) or "{}"))
    except (ValueError, RecursionError):
        before = {}
    found = before.items() if isinstance(before, dict) else ()
    kept = {name: value for name, value in found if name in _OURS and isinstance(value, str)}
    return {"ENGINE": "", "OPENAI_API_KEY": ""} | kept


def _is_as_set(name: str, stt: Json, stored: Json) -> bool:
    """Whether a setting still is as the pack set it."""
    set_to = {"MODEL": OWN_MODEL, "OPENAI_API_REQUEST_FORMAT": "multipart"}
    if name == "OPENAI_API_KEY":
        return bool(stt[name] == stored.get(KEY_VALVE))
    return name not in set_to or bool(stt.get(name) == set_to[name])


def is_ours(stt: Json) -> bool:
    """Whether settings of speech-to-text point at the pack."""
    return stt["ENGINE"] == "openai" and str(stt["OPENAI_API_BASE_URL"]).endswith(BASE_PATH)


def transcription_fault(server: OpenWebUI, path: str) -> str:
    """Send a second of silence, which needs engine and model and gives no text; what went wrong, if anything.

    Args:
        server: the Open WebUI.
        path: the pack's route, or that of Open WebUI's microphone.
    """
    try:
        server.send_file(path, "silence.wav", _silence(), "audio/wav")
    except DeployError as error:
        return str(error)
    return ""


def _silence() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(bytes(2 * 16_000))
    return file.getvalue()


def _plan_settings(plan: Plan, server: OpenWebUI, audio: Json, wanted: Json, what: str) -> None:
    old = {name: audio["stt"].get(name) for name in wanted}
    if old == wanted:
        return

    def write() -> None:
        now = server.audio()  # as it is by now, so that no admin's change is undone
        try:
            server.post(f"{CONFIG_PATH}/update", {"tts": now["tts"], "stt": now["stt"] | wanted})
        except ServerError:  # also where Open WebUI has stored them and cannot load its own Whisper
            stored = server.audio()["stt"]
            if any(stored.get(name) != value for name, value in wanted.items()):
                raise

    plan.add(what, valves_diff(old, wanted, SECRET_SETTINGS), write)
