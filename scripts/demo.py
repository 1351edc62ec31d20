"""Show the pack at work: a real Open WebUI, the pack uploaded into it, and real answers under others' names.

`make demo` runs it. It walks through what the pack does, then leaves the page open until Ctrl-C;
with ONCE=1 it ends after the walk, with status 1 when a step failed.
"""

import errno
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import openai
import requests
from rich.console import Console
from rich.markup import escape

from deploy.errors import DeployError
from local import ollama
from local.engine import MODEL, EngineMissingError, engine
from local.processes import ServerStartError
from local.simulation import LARGE, SMALL, SimulatedNodes, simulation
from local.webui import Account, RunningWebUI, connections, open_webui

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
ADMIN = "admin@example.org"
MISSING = "mixtral:8x7b"  # what the demo's alias prefers, and a small machine has not
CHATS = 6
QUESTION = "In one short sentence: what is the sky?"


@dataclass
class Walk:
    """The steps of the demo, printed as they are done.

    Attributes:
        failed: how many did not show what they should.
    """

    console: Console
    failed: int = 0
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        self.console.print(escape(text))

    def step(self, title: str, show: Callable[[], str]) -> None:
        """Do a step and print what it showed, or why it failed; the walk goes on either way."""
        try:
            result = show()
        except (openai.OpenAIError, DeployError, DemoError) as error:
            self.failed += 1
            self.console.print(f"[red]✗[/] {escape(title)}: {escape(str(error))}")
        else:
            self.console.print(f"[green]✓[/] {escape(title)}: {escape(result)}")


class DemoError(Exception):
    """Something that the demo shows did not happen, or it cannot start: one sentence with what to do."""


@dataclass(frozen=True)
class Models:
    """Where the answers come from.

    Attributes:
        source: the sentence that says so.
        environment: Open WebUI's connections.
        names: models that can chat, by their ids in Open WebUI.
        node: the entry of pack.yaml's `endpoints` for it.
    """

    source: str
    environment: dict[str, str]
    names: tuple[str, ...]
    node: str


def main() -> int:
    """Return 0 when everything was shown, 1 when a step failed or the demo could not start."""
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started it with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    console = Console(highlight=False, soft_wrap=True)
    try:
        with ExitStack() as stack:
            return _run(console, stack)
    except KeyboardInterrupt:
        console.print("\nstopped; everything that was started is ended")
        return 0
    except (DemoError, DeployError, EngineMissingError, ServerStartError) as error:
        console.print(f"[red]{escape(str(error))}[/]")
    except OSError as error:
        console.print(f"[red]{escape(_disk_sentence(error))}[/]")
    return 1


def _run(console: Console, stack: ExitStack) -> int:
    walk = Walk(console)
    port = _port()
    folder = stack.enter_context(_scratch_folder())
    models = stack.enter_context(_models(walk, folder))
    walk.say(models.source)
    nodes = stack.enter_context(simulation())
    walk.say(
        f"Beside it stand two simulated nodes, {' and '.join(nodes.urls)}, with {SMALL} and {LARGE}: "
        "they keep time as GPUs do, and their answers are made-up words."
    )
    password = secrets.token_urlsafe(9)
    walk.say("Open WebUI is starting; this takes half a minute …")
    webui = stack.enter_context(
        open_webui(folder / "webui", environment=models.environment, port=port, admin=(ADMIN, password))
    )
    student = webui.add_user("student", password)
    walk.step("Open WebUI", lambda: f"{webui.as_admin().version} answers at {webui.url}")
    _show_aliases(walk, webui, student, _write_config(folder, models, nodes))
    _show_routing(walk, webui, student, nodes)
    walk.say(f"ready after {time.monotonic() - walk.started:.0f} s")
    if os.environ.get("ONCE"):
        return 1 if walk.failed else 0
    console.print(
        f"\nOpen [bold]{webui.url}[/] and choose gpt-4 among the models.\n"
        f"  admin:      {ADMIN}   {password}\n"
        f"  plain user: {student.email}   {password}\n"
        f"The plugins: {webui.url}/admin/functions\nCtrl-C ends it."
    )
    threading.Event().wait()
    return 0


def _write_config(folder: Path, models: Models, nodes: SimulatedNodes) -> Path:
    """A pack.yaml of the article's kind, over the models that are there."""
    small, large = models.names[0], models.names[-1]
    config = folder / "pack.yaml"
    endpoints = "".join(
        f'    - {{name: {name}, url: "{url}", slots: 2}}\n' for name, url in nodes.urls.items()
    )
    config.write_text(
        f"model_provider:\n  endpoints:\n    - {models.node}\n{endpoints}"
        "models:\n"
        f'  - {{name: gpt-3.5-turbo, local_name: "{small}"}}\n'
        f'  - {{name: gpt-4, local_name: ["{MISSING}", "{large}"]}}\n'
        f'  - {{name: gpt-4-staff, local_name: "{large}", audience: admin}}\n'
        f'  - {{name: gpt-4o-mini, local_name: "{SMALL}"}}\n'
        f'  - {{name: gpt-4o, local_name: "{LARGE}"}}\n'
        "router: {probe_seconds: 1}\n",
        encoding="utf-8",
    )
    return config


def _show_aliases(walk: Walk, webui: RunningWebUI, student: Account, config: Path) -> None:
    """Upload the pack, then ask under other models' names, as those would who are not to notice."""
    walk.say(f"pack.yaml:\n{config.read_text(encoding='utf-8').rstrip()}")
    walk.step("upload.py", lambda: _upload(webui, config))
    walk.step("upload.py again", lambda: _upload(webui, config, expected="nothing to change"))
    walk.step("gpt-4, asked by the admin", lambda: _ask(webui, webui.admin, "gpt-4"))
    walk.step("gpt-3.5-turbo, asked by a plain user", lambda: _ask(webui, student, "gpt-3.5-turbo"))
    walk.step("gpt-4, streamed to a plain user", lambda: _stream(webui, student, "gpt-4"))
    walk.step("gpt-4-staff, asked by a plain user", lambda: _refused(webui, student, "gpt-4-staff"))
    walk.step("gpt-5, which nobody published", lambda: _refused(webui, webui.admin, "gpt-5"))


def _show_routing(walk: Walk, webui: RunningWebUI, student: Account, nodes: SimulatedNodes) -> None:
    """Chats over the simulated nodes, one of which is switched off before it has begun to answer."""
    walk.step("gpt-4o-mini, over two nodes", lambda: _routed(webui, student))
    walk.step(
        f"{CHATS} chats at once, and a node is killed under them",
        lambda: _outlive(webui, student, nodes),
    )
    walk.step("GET /api/system/load, as a plain user", lambda: _load(webui, student))


def _routed(webui: RunningWebUI, account: Account) -> str:
    """Who answered, and why that one."""
    with _client(webui, account) as client:
        answer = client.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": QUESTION}], max_tokens=20
        )
    told = (answer.model_extra or {}).get("ollama_pack")
    if not told:
        raise DemoError("the answer does not say which node gave it")
    return f"{told['node']} answers: {told['reason']}"


def _outlive(webui: RunningWebUI, account: Account, nodes: SimulatedNodes) -> str:
    """Kill a node while it loads the model that chats wait for, and see every one of them answered."""
    with ThreadPoolExecutor(CHATS) as pool:
        chats = [
            pool.submit(_answered_by, webui, account, f"Tell me story {number}.") for number in range(CHATS)
        ]
        victim = _loading(nodes)
        nodes.kill(victim)
        answered = Counter(chat.result() for chat in chats)
    nodes.start(victim)
    told = ", ".join(f"{count} by {node}" for node, count in sorted(answered.items()))
    if victim in answered or answered.total() != CHATS:
        raise DemoError(f"{victim} was killed, and the answers came {told}")
    return f"{victim} was killed, and nobody noticed: {told}"


def _loading(nodes: SimulatedNodes) -> str:
    """A node where chats wait for their first token, once there is one."""
    for _ in range(200):
        for name in nodes.urls:
            if any(request["ended"] is None for request in nodes.stats(name, last=CHATS)["requests"]):
                return name
        time.sleep(0.05)
    raise DemoError("no chat reached a node within ten seconds")


def _answered_by(webui: RunningWebUI, account: Account, question: str) -> str:
    """The node that gave a whole streamed answer."""
    node = ""
    with _client(webui, account) as client:
        for chunk in client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": question}], max_tokens=20, stream=True
        ):
            node = ((chunk.model_extra or {}).get("ollama_pack") or {}).get("node", node)
    if not node:
        raise DemoError(f"{question!r} was not answered to the end")
    return str(node)


def _load(webui: RunningWebUI, account: Account) -> str:
    """The load endpoint's answer, in which a plain user sees no addresses."""
    headers = {"Authorization": f"Bearer {account.token}"}
    answer = requests.get(f"{webui.url}/api/system/load", headers=headers, timeout=10)
    if not answer.ok or "url" in answer.text:
        raise DemoError(f"answers {answer.status_code}: {answer.text}")
    return answer.text


def _upload(webui: RunningWebUI, config: Path, expected: str = "done") -> str:
    """Run the uploader as an admin does."""
    env = os.environ | {"OPEN_WEBUI_URL": webui.url, "OPEN_WEBUI_TOKEN": webui.admin.token}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "upload.py", config],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or expected not in done.stdout:
        raise DemoError(done.stdout + done.stderr)
    return lines[0] if len(lines) == 1 else f"{len(lines)} changes"


@contextmanager
def _client(webui: RunningWebUI, account: Account) -> Iterator[openai.OpenAI]:
    """The client that OpenAI publishes, pointed at Open WebUI."""
    with openai.OpenAI(base_url=f"{webui.url}/api", api_key=account.token, max_retries=0) as client:
        yield client


def _ask(webui: RunningWebUI, account: Account, model: str) -> str:
    with _client(webui, account) as client:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=40
        )
    text = answer.choices[0].message.content
    if not text:
        raise DemoError(f"{answer.model} gave an empty answer")
    return f"{answer.model} answers {_short(text)!r}"


def _stream(webui: RunningWebUI, account: Account, model: str) -> str:
    started = time.monotonic()
    first, pieces = 0.0, []
    with _client(webui, account) as client:
        stream = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=40, stream=True
        )
        for chunk in stream:
            if chunk.choices and (piece := chunk.choices[0].delta.content):
                first = first or time.monotonic() - started
                pieces.append(piece)
    if not pieces:
        raise DemoError("the stream was empty")
    return f"{len(pieces)} pieces, the first after {first:.1f} s: {_short(''.join(pieces))!r}"


def _refused(webui: RunningWebUI, account: Account, model: str) -> str:
    """The refusal that is expected, in Open WebUI's own words."""
    try:
        _ask(webui, account, model)
    except openai.BadRequestError as error:
        return f"refused as it should be ({error.status_code}, {error.response.json()['detail']!r})"
    raise DemoError("was answered, and should have been refused")


def _short(text: str, limit: int = 70) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


@contextmanager
def _models(walk: Walk, folder: Path) -> Iterator[Models]:
    """A running Ollama with a model that can chat, else the embedded engine."""
    url = ollama.found_url()
    names = _chat_models(url) if url else ()
    if url and names:
        listed = ", ".join(names[:3])
        source = f"Answers come from the Ollama at {url} ({listed})."
        node = f'{{name: ollama, url: "{url}"}}'
        yield Models(source, connections(ollama=(url,)), names, node)
        return
    if url:
        walk.say(f"The Ollama at {url} has no model that can chat (`ollama pull llama3.2` gets one).")
    with engine(folder) as address:
        source = (
            f"No Ollama with a model was found, so answers come from llama.cpp with {MODEL}, which runs "
            "inside this demo. It is a real model, and so small that it is often wrong."
        )
        node = f'{{name: engine, url: "{address}", kind: openai}}'
        yield Models(source, connections(openai=((address, "unused"),)), (MODEL,), node)


def _chat_models(url: str) -> tuple[str, ...]:
    """Models that can chat, the smallest first."""
    listed = requests.get(f"{url}/api/tags", timeout=10).json()["models"]

    def can_chat(name: str) -> bool:
        shown = requests.post(f"{url}/api/show", json={"model": name}, timeout=10).json()
        return "completion" in shown.get("capabilities", ["completion"])

    by_size = sorted(listed, key=lambda model: int(model["size"]))
    return tuple(model["name"] for model in by_size if can_chat(model["name"]))


def _port() -> int:
    """The port for the page: PORT, or 8080."""
    text = os.environ.get("PORT") or "8080"
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise DemoError(f"PORT={text} is no port: it is a number from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(text)))
        except OSError as error:
            raise DemoError(
                f"Port {text} cannot be used ({os.strerror(error.errno or 0)}): take another one with "
                "`make demo PORT=8090`."
            ) from error
    return int(text)


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """An empty folder in the checkout, gone at the end; another one for a second demo beside this one."""
    CACHE.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=CACHE, prefix="demo-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _disk_sentence(error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"The disk is full: the demo needs about 200 MB below {CACHE}; make room and run it again."
    return f"The demo cannot go on: {error.strerror} ({error.filename})."


if __name__ == "__main__":
    sys.exit(main())
