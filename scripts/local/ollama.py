"""Find a real Ollama on this machine, build one, and run it: for the tests and for ``make demo``."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import requests

from deploy.shown import message
from local.processes import free_port, log_tail, running, wait_until_http

RECIPE = Path(__file__).with_name("real-ollama")
VERSION = "0.17.4"  # what the recipe builds; a test compares the two
DEFAULT_PORT = 11434
START_SECONDS = 60.0


class OllamaBuildError(RuntimeError):
    """The recipe failed. ``status`` 3: something that it needs is missing; ``log``: its output."""

    def __init__(self, status: int, log: Path) -> None:
        super().__init__(
            message(
                "building Ollama failed with status {status}. The end of {log}:\n{tail}",
                status=status,
                log=log,
                tail=log_tail(log),
            )
        )
        self.status = status
        self.log = log


def cache_dir() -> Path:
    """Return the folder for the built Ollama, which need not exist; $OLLAMA_PACK_CACHE moves its parent."""
    if parent := os.environ.get("OLLAMA_PACK_CACHE"):
        return Path(parent).absolute() / "ollama"
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return user / "open-webui-ollama-pack" / "ollama"


def built() -> Path | None:
    """Return the folder of a finished build, or None. One that is under way is waited for."""
    folder = cache_dir()
    done = folder / f"done-{VERSION}"
    with suppress(FileNotFoundError), (folder / ".lock").open("rb") as lock:
        if not done.exists():
            fcntl.flock(lock, fcntl.LOCK_SH)  # the recipe holds it while it builds
    return folder if done.exists() else None


def build() -> Path:
    """Build Ollama and its two models into ``cache_dir()`` (minutes; nothing to do the second time).

    Raises:
        OllamaBuildError: the recipe failed; the message has the end of its output.
    """
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "build.log"
    with log.open("wb") as sink:
        status = subprocess.run(
            [RECIPE, folder], stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, check=False
        ).returncode
    if status:
        raise OllamaBuildError(status, log)
    return folder


def host_url(value: str) -> str:
    """Return the address that a client uses for a value of OLLAMA_HOST, by Ollama's own rules.

    The port is 11434, but 80 or 443 after an explicit scheme; "every interface" becomes loopback.

    Raises:
        ValueError: the port is not a number.
    """
    given_scheme, given, rest = value.strip().rpartition("://")
    scheme = given_scheme or "http"
    parts = urlsplit(f"{scheme}://{rest}")
    port = parts.port or ({"http": 80, "https": 443}.get(scheme, DEFAULT_PORT) if given else DEFAULT_PORT)
    host = parts.hostname or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound
    address = f"[{host}]" if ":" in host else host
    return f"{scheme}://{address}:{port}{parts.path.rstrip('/')}"


def found_url() -> str | None:
    """Return the address of an Ollama that answers now: $OLLAMA_HOST, else this machine's port 11434.

    Raises:
        ValueError: $OLLAMA_HOST is not an address.
    """
    configured = os.environ.get("OLLAMA_HOST", "")
    candidates = [host_url(configured)] if configured.strip() else []
    candidates.append(f"http://127.0.0.1:{DEFAULT_PORT}")
    return next((url for url in candidates if answers(url)), None)


def answers(url: str) -> bool:
    """Tell whether an Ollama answers at this address within two seconds."""
    with requests.Session() as session:
        session.trust_env = False
        try:
            return "version" in session.get(f"{url}/api/version", timeout=2).json()
        except (requests.RequestException, TypeError):  # not JSON counts as the first
            return False


def on_path() -> Path | None:
    """Return the ``ollama`` program on the PATH, or None."""
    program = shutil.which("ollama")
    return Path(program) if program else None


@contextmanager
def serving(
    where: Path, *, settings: Mapping[str, str] | None = None, log: Path | None = None
) -> Iterator[str]:
    """Run ``ollama serve`` on a free port of 127.0.0.1 and yield its address; all of it ends at exit.

    Args:
        where: the folder of a build (its own models), or an ``ollama`` program (its user's models).
        settings: environment variables for it, such as OLLAMA_NUM_PARALLEL.
        log: what it prints; a file that is deleted at the end when left out.

    Raises:
        ServerStartError: it ended or did not answer within a minute; the message has the end of the log.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    argv: list[str | Path] = [RECIPE, where, "serve", str(port)] if where.is_dir() else [where, "serve"]
    env = {**os.environ, **(settings or {}), "OLLAMA_HOST": f"127.0.0.1:{port}"}
    with tempfile.TemporaryDirectory(prefix="ollama-") as scratch:
        output = log or Path(scratch) / "serve.log"
        with running(argv, env=env, cwd=Path(scratch), log=output) as process:
            wait_until_http(f"{url}/api/version", process, START_SECONDS, output)
            yield url
