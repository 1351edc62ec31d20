"""An Open WebUI with voice transcription, and a scripted engine behind it."""

import asyncio
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests

from deploy.client import OpenWebUI
from deploy.errors import ServerError
from harness.fixtures_webui import upload
from harness.ollama_node import Answer, OllamaNode, ToolCall
from harness.speech_server import ScriptedSpeechServer, speech_server
from local.webui import Account, RunningWebUI

Json = dict[str, Any]

EVENTS, VOICE = "ollama_pack_events", "voice_transcription"
TRANSCRIBE = "/api/voice/transcribe"
OPENAI = "/api/voice/v1/audio/transcriptions"
MICROPHONE = "/api/v1/audio/transcriptions"
MODEL = "qwen2.5:32b"  # of the scripted node's, the one that can use tools
PATIENCE = 30.0
RATE = 16_000
PUBLIC = [{"principal_type": "user", "principal_id": "*", "permission": "read"}]

PACK = f"""\
plugins: [{EVENTS}, {VOICE}]
voice:
  engine: openai_http
  base_url: {{url}}
  language: en
  max_megabytes: 2
  max_minutes: 1
  microphone: {{microphone}}
"""


def silence(seconds: float) -> bytes:
    """A WAV file in which nobody speaks."""
    data = bytes(2 * round(seconds * RATE))
    head = struct.pack(
        "<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16
    )
    return head + struct.pack("<4sI", b"data", len(data)) + data


def said(text: str, seconds: float = 2.0, language: str = "english") -> Json:
    """What an engine answers to a window: one segment, one word for each word."""
    words = text.split()
    step = seconds / len(words)
    return {
        "text": text,
        "language": language,
        "segments": [{"start": 0.0, "end": seconds, "text": text, "avg_logprob": -0.1}],
        "words": [{"start": n * step, "end": (n + 1) * step, "word": word} for n, word in enumerate(words)],
    }


@contextmanager
def scripted_engine() -> Iterator[ScriptedSpeechServer]:
    """A transcription server in a thread with a loop of its own."""
    ready, done = threading.Event(), threading.Event()
    found: list[ScriptedSpeechServer] = []

    async def serve() -> None:
        async with speech_server() as server:
            found.append(server)
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="speech-server", daemon=True)
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield found[0]
    finally:
        done.set()
        thread.join()


class VoiceTarget:
    """A deployment with the tool and the events function.

    Attributes:
        webui: the server.
        api: its API as the admin.
        node: the scripted Ollama behind it.
        engine: what transcribes.
        folder: where pack.yaml is written.
        chat: id of the last chat.
    """

    chat = ""

    def __init__(
        self, webui: RunningWebUI, node: OllamaNode, engine: ScriptedSpeechServer, folder: Path
    ) -> None:
        self.webui = webui
        self.api = webui.as_admin()
        self.node = node
        self.engine = engine
        self.folder = folder

    def says(self, *answers: Json) -> None:
        """What the engine answers from now on; the last one holds."""
        self.engine.answers.clear()
        self.engine.calls.clear()
        for answer in answers:
            self.engine.say(answer)

    def upload(self, pack: str = "", *arguments: str, microphone: str = "true") -> str:
        """Run upload.py, which must succeed, and return what it printed."""
        file = self.folder / "pack.yaml"
        file.write_text(pack or PACK.format(url=self.engine.url, microphone=microphone))
        done = upload(self.webui, str(file), *arguments)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    def post(self, path: str, who: Account | None, **request: Any) -> requests.Response:
        """Send something as somebody."""
        headers = dict(request.pop("headers", {}))
        if who:
            headers["Authorization"] = f"Bearer {who.token}"
        return requests.post(self.webui.url + path, headers=headers, timeout=120, **request)

    def set_valves(self, **valves: Any) -> Json:
        """Change valves of the tool, and return them as they were."""
        before = self.api.valves("tools", VOICE)
        self.api.post(f"/api/v1/tools/id/{VOICE}/valves/update", before | valves)
        return before

    @property
    def key(self) -> str:
        """The microphone's."""
        return str(self.api.valves("functions", EVENTS)["microphone_key"])

    def attach(self, who: Account, name: str, content: bytes, media_type: str = "audio/wav") -> Json:
        """Upload a file as Open WebUI's page does, and give it as messages have it."""
        path = "/api/v1/files/?process=false"
        made = self.post(path, who, files={"file": (name, content, media_type)}).json()
        return {
            "type": "file",
            "file": made,
            "id": made["id"],
            "url": made["id"],
            "name": name,
            "content_type": media_type,
            "status": "uploaded",
        }

    def call(self, who: Account, files: list[Json], **arguments: str) -> Json:
        """A chat in which the model calls the tool once; the assistant's message as it is stored."""
        self.node.enqueue(Answer(tool_calls=[ToolCall("transcribe_recordings", arguments)]), Answer(["done"]))
        asked, answer = str(uuid.uuid4()), str(uuid.uuid4())
        message = {"role": "user", "content": "please"}
        history = {
            asked: message
            | {"id": asked, "parentId": None, "childrenIds": [answer], "files": files, "models": [MODEL]},
            answer: {"id": answer, "parentId": asked, "childrenIds": [], "role": "assistant", "content": ""},
        }
        chat = {"models": [MODEL], "history": {"messages": history, "currentId": answer}, "files": files}
        chat_id = self.chat = self.post("/api/v1/chats/new", who, json={"chat": chat}).json()["id"]
        body = {
            "model": MODEL,
            "stream": True,
            "messages": [message],
            "files": files,
            "tool_ids": [VOICE],
            "chat_id": chat_id,
            "id": answer,
            "session_id": "a-session",
            "params": {"function_calling": "native"},
            "background_tasks": {},
        }
        self.post("/api/chat/completions", who, json=body).raise_for_status()
        return self._finished(who, chat_id, answer)

    def _finished(self, who: Account, chat_id: str, message_id: str) -> Json:
        until = time.monotonic() + PATIENCE
        headers = {"Authorization": f"Bearer {who.token}"}
        while True:
            url = f"{self.webui.url}/api/v1/chats/{chat_id}"
            chat = requests.get(url, headers=headers, timeout=60).json()["chat"]
            message: Json = chat["history"]["messages"][message_id]
            if message.get("done"):
                return message
            assert time.monotonic() < until, message
            time.sleep(0.1)

    @property
    def told(self) -> str:
        """What the model was last told by a tool."""
        messages = (self.node.requests[-1].body or {})["messages"]
        return str(next(found["content"] for found in reversed(messages) if found["role"] == "tool"))

    def content(self, who: Account, file_id: str) -> str:
        """A stored file's text."""
        url = f"{self.webui.url}/api/v1/files/{file_id}/content"
        answer = requests.get(url, headers={"Authorization": f"Bearer {who.token}"}, timeout=60)
        answer.raise_for_status()
        return answer.content.decode()


@contextmanager
def installed_voice(
    webui: RunningWebUI, node: OllamaNode, engine: ScriptedSpeechServer, folder: Path
) -> Iterator[VoiceTarget]:
    """Upload it; at the end the server is as it was."""
    target = VoiceTarget(webui, node, engine, folder)
    api: OpenWebUI = target.api
    audio, tasks = api.get("/api/v1/audio/config"), api.get("/api/v1/tasks/config")
    api.post("/api/v1/tasks/config/update", tasks | {"ENABLE_RETRIEVAL_QUERY_GENERATION": False})
    row: Json = {"id": MODEL, "name": MODEL, "base_model_id": None, "meta": {}, "params": {}}
    if is_new := MODEL not in api.model_rows():
        api.post("/api/v1/models/create", row | {"access_grants": PUBLIC})
    target.says(said("Good morning."))
    target.upload()
    try:
        yield target
    finally:
        with suppress(ServerError):  # it stores them, and then cannot load a Whisper of its own
            api.post("/api/v1/audio/config/update", {"tts": audio["tts"], "stt": audio["stt"]})
        api.post("/api/v1/tasks/config/update", tasks)
        if is_new:
            api.post("/api/v1/models/model/delete", {"id": MODEL})
        for kind, plugin in (("tools", VOICE), ("functions", EVENTS)):
            headers = {"Authorization": f"Bearer {api.key}"}
            url = f"{webui.url}/api/v1/{kind}/id/{plugin}/delete"
            requests.delete(url, headers=headers, timeout=60).raise_for_status()
        api.close()
