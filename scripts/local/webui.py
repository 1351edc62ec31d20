"""A real Open WebUI on this machine, in a folder of its own, for the demo and the tests."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests

from deploy.client import OpenWebUI
from deploy.shown import message
from local.processes import ServerStartError, free_port, running, wait_until_http

START_SECONDS = 180.0
EMPTY_DATABASES = Path(__file__).parents[2] / ".cache"  # one for each version of Open WebUI

# What a scratch server needs to start without a network, without downloads and without asking anybody.
_ENVIRONMENT = {
    "BYPASS_EMBEDDING_AND_RETRIEVAL": "true",
    "CORS_ALLOW_ORIGIN": "*",
    "ENABLE_VERSION_UPDATE_CHECK": "false",
    "HF_HUB_OFFLINE": "1",
    "OFFLINE_MODE": "true",
    "RAG_EMBEDDING_ENGINE": "ollama",
    "WEBUI_AUTH": "true",
}


@dataclass(frozen=True)
class Account:
    """A user of the scratch server."""

    email: str
    password: str = field(repr=False)
    token: str = field(repr=False)
    id: str


@dataclass(frozen=True)
class RunningWebUI:
    """A started server, with its admin signed up.

    Attributes:
        url: its address.
        admin: the first account.
        log: what the server prints.
    """

    url: str
    admin: Account
    log: Path

    def as_admin(self) -> OpenWebUI:
        return OpenWebUI(self.url, self.admin.token)

    def add_user(self, name: str, password: str) -> Account:
        """Make a plain user `NAME@example.org`."""
        email = f"{name}@example.org"
        form = {"name": name, "email": email, "password": password, "role": "user"}
        made = self.as_admin().post("/api/v1/auths/add", form)
        return Account(email, password, made["token"], made["id"])


@contextmanager
def open_webui(
    folder: Path,
    *,
    environment: dict[str, str] | None = None,
    port: int | None = None,
    admin: tuple[str, str] = ("admin@example.org", "admin-password"),
    python: Path = Path(sys.executable),
) -> Iterator[RunningWebUI]:
    """Start Open WebUI on 127.0.0.1 and stop it at the end.

    Args:
        folder: holds its data; made if missing. A folder that was used before keeps its accounts.
        environment: added to the server's: its connections, for example.
        port: where it listens; a free one when not given.
        admin: e-mail address and password of the admin.
        python: an interpreter in whose environment Open WebUI is installed.

    Raises:
        ServerStartError: it did not start; the message has the end of its log.
    """
    for name in ("data", "static"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    env = (
        os.environ
        | _ENVIRONMENT
        | {
            "DATA_DIR": str(folder / "data"),
            "DATABASE_URL": _database_url(
                folder / "data"
            ),  # not the one that this machine may have for another
            "STATIC_DIR": str(folder / "static"),  # the server empties this one at every start
            "WEBUI_SECRET_KEY": "a scratch server keeps no secrets, but the key must be long",
            "WEBUI_URL": url,
        }
        | (environment or {})
    )
    if not (database := folder / "data/webui.db").exists():
        shutil.copyfile(_empty_database(python, url, log), database)
    argv: list[str | Path] = [
        python.parent / "open-webui",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with running(argv, env=env, cwd=folder, log=log) as process:
        wait_until_http(f"{url}/health", process, START_SECONDS, log)
        yield RunningWebUI(url, _sign_up_or_in(url, *admin), log)


def _version(python: Path) -> str:
    """The Open WebUI that an interpreter has."""
    ask = "from importlib.metadata import version; print(version('open-webui'))"
    return subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


def _database_url(data: Path) -> str:
    return f"sqlite:///{data}/webui.db"


def _empty_database(python: Path, url: str, log: Path) -> Path:
    """The database of a new Open WebUI, made once for each version: its migrations take seconds.

    0.11.2 cannot make it in an empty folder at all: see migrate_webui.py.
    """
    database = EMPTY_DATABASES / f"open-webui-{_version(python)}.db"
    if not database.exists():
        EMPTY_DATABASES.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=EMPTY_DATABASES) as data, log.open("ab") as sink:
            own = {
                "DATA_DIR": data,
                "DATABASE_URL": _database_url(Path(data)),
                "STATIC_DIR": f"{data}/static",
                "WEBUI_SECRET_KEY": "none is kept in it",
                "FROM_INIT_PY": "true",  # so does its command: its files are in the package
            }
            made = subprocess.run(
                [python, Path(__file__).with_name("migrate_webui.py")],
                env=os.environ | _ENVIRONMENT | own,
                cwd=data,
                stdout=sink,
                stderr=sink,
                check=False,
            )
            if made.returncode:
                raise ServerStartError(message("Open WebUI could not make its database"), url, log)
            (Path(data) / "webui.db").replace(database)
    return database


def connections(*, ollama: tuple[str, ...] = (), openai: tuple[tuple[str, str], ...] = ()) -> dict[str, str]:
    """Open WebUI's environment for its own connections: Ollama addresses, `(address, key)` of others."""
    return {
        "ENABLE_OLLAMA_API": str(bool(ollama)).lower(),
        "OLLAMA_BASE_URLS": ";".join(ollama),
        "ENABLE_OPENAI_API": str(bool(openai)).lower(),
        "OPENAI_API_BASE_URLS": ";".join(url for url, _ in openai),
        "OPENAI_API_KEYS": ";".join(key for _, key in openai),
    }


def _sign_up_or_in(url: str, email: str, password: str) -> Account:
    """The first account to sign up becomes the admin; on a folder used before it exists already."""
    form = {"name": "Admin", "email": email, "password": password}
    with requests.Session() as session:
        answer = session.post(f"{url}/api/v1/auths/signup", json=form, timeout=60)
        if not answer.ok:
            answer = session.post(f"{url}/api/v1/auths/signin", json=form, timeout=60)
        answer.raise_for_status()
        account = answer.json()
    return Account(email, password, account["token"], account["id"])
