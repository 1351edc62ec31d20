"""Show the pack at work: a real Open WebUI, the pack uploaded into it, and real answers under others' names.

`make demo` runs it. It walks through what the pack does, then leaves the page open until Ctrl-C;
with ONCE=1 it ends after the walk, with status 1 when a step failed.
"""

import errno
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.markup import escape

from deploy.errors import DeployError
from deploy.shown import message, translated
from local.engine import EngineMissingError
from local.processes import ServerStartError
from local.simulation import LARGE, SMALL, SimulatedNodes, simulation
from local.webui import RunningWebUI, open_webui
from package import command_line
from walk.aliases import show_aliases
from walk.caching import show_cache
from walk.models import Models, find_models
from walk.routing import show_routing
from walk.steps import DemoError, Walk
from walk.voice import show_voice

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
ADMIN = "admin@example.org"
DEFAULT, DASHBOARD = "gpt-4", "/ollama-pack"
MISSING = "mixtral:8x7b"  # what the demo's alias prefers, and a small machine has not


def main() -> int:
    """Return 0 when everything was shown, 1 when a step failed or the demo could not start."""
    parser = command_line(translated(__doc__))
    parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started it with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    console = Console(highlight=False, soft_wrap=True)
    try:
        with ExitStack() as stack:
            return _run(console, stack)
    except KeyboardInterrupt:
        console.print(f"\n{message('stopped; everything that was started is ended')}")
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
    models = stack.enter_context(find_models(walk, folder))
    walk.say(models.source)
    nodes = stack.enter_context(simulation())
    walk.say(
        message(
            "There are two simulated nodes as well, {nodes}, with {small} and {large}: they keep "
            "time as GPUs do, and their answers are made-up words.",
            nodes=message(" and ").join(nodes.urls),
            small=SMALL,
            large=LARGE,
        )
    )
    password = secrets.token_urlsafe(9)
    walk.say(message("Open WebUI is starting; this takes half a minute …"))
    webui = stack.enter_context(
        open_webui(
            folder / "webui",
            environment=models.environment | {"DEFAULT_MODELS": DEFAULT},
            port=port,
            admin=(ADMIN, password),
        )
    )
    student = webui.add_user("student", password)
    walk.step(
        "Open WebUI",
        lambda: message("{version} answers at {url}", version=webui.as_admin().version, url=webui.url),
    )
    show_aliases(walk, webui, student, _write_config(folder, models, nodes))
    show_routing(walk, webui, student, nodes)
    show_cache(walk, webui, student, nodes)
    show_voice(walk, webui, student)
    walk.step(message("The dashboard"), lambda: see_dashboard(webui))
    walk.say(message("ready after {seconds:.0f} s", seconds=time.monotonic() - walk.started))
    if os.environ.get("ONCE"):
        return 1 if walk.failed else 0
    console.print(tour(webui.url, password, student.email))
    threading.Event().wait()
    return 0


def see_dashboard(webui: RunningWebUI) -> str:
    """Open the dashboard's page and its figures, as the admin's browser does."""
    api = webui.as_admin()
    chats = api.get("/ollama-pack/chats")["chats"]
    if not chats:
        raise DemoError(message("shows no chat, and there have been some"))
    answered = sum(chat["outcome"] == "answered" for chat in chats)
    return message(
        "{address} shows {chats} chats, {answered} of them answered by a model",
        address=f"{webui.url}{DASHBOARD}",
        chats=len(chats),
        answered=answered,
    )


def tour(url: str, password: str, student: str) -> str:
    """What to do now, with rich's marks."""
    page, dashboard = f"[bold]{url}[/]", f"[bold]{url}{DASHBOARD}[/]"
    accounts = [(message("admin:"), ADMIN), (message("plain user:"), student)]
    to_try = [
        message(
            "Ask {model} something, and open the line above the answer: it says which model answered, "
            "where and why.",
            model=DEFAULT,
        ),
        message(
            "Ask the same again in a new chat: the answer comes from the cache at once. “Regenerate” "
            "gets a new one."
        ),
        message(
            "Choose gpt-4o and send a few chats side by side: the dashboard shows how they are shared out "
            "and wait."
        ),
        message(
            "Press the microphone next to the message field and speak: the pack writes down what you say."
        ),
        message("Sign in as the plain user: gpt-4-staff is not in the list, as pack.yaml says."),
    ]
    lines = [
        "",
        message("Open {page} in a browser. {model} is chosen already.", page=page, model=DEFAULT),
        *(f"  {who:<12}{address}   {password}" for who, address in accounts),
        message("The dashboard, for the admin: {address}", address=dashboard),
        "",
        message("Five things to try:"),
        *(f"  {number}. {text}" for number, text in enumerate(to_try, 1)),
        message("The plugins and their settings: {address}", address=f"{url}/admin/functions"),
        message("Ctrl-C ends it."),
    ]
    return "\n".join(lines)


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
        "router: {probe_seconds: 1}\n"
        "voice: {microphone: true}\n",
        encoding="utf-8",
    )
    return config


def _port() -> int:
    """The port for the page: PORT, or 8080."""
    text = os.environ.get("PORT") or "8080"
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise DemoError(message("PORT={text} is no port: it is a number from 1 to 65535", text=text))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(text)))
        except OSError as error:
            raise DemoError(
                message(
                    "Port {text} cannot be used ({reason}): take another one with `make demo PORT=8090`.",
                    text=text,
                    reason=os.strerror(error.errno or 0),
                )
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
        return message(
            "The disk is full: the demo needs about 200 MB below {folder}; make room and run it again.",
            folder=CACHE,
        )
    return message("The demo cannot go on: {reason} ({file}).", reason=error.strerror, file=error.filename)


if __name__ == "__main__":
    sys.exit(main())
