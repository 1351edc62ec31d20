"""A real Ollama for the test session: the built one, else one on the PATH, else one that answers already."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import pytest
import requests

from local import ollama

MODEL = "smollm2:135m"
OTHER = "small-2"


@dataclass(frozen=True)
class RealServer:
    """A running Ollama.

    Attributes:
        url: its address.
        model: a model that can chat, as it is listed.
        other: a second one, or the same when there is only one, without the default tag.
        ours: it runs for the tests alone, on the built models, so tests may create and unload models.
    """

    url: str
    model: str
    other: str
    ours: bool


@pytest.fixture(scope="session")
def real_server() -> Iterator[RealServer]:
    """Run or find a real Ollama; skip when there is none or it has no model that can chat."""
    folder, program, found = ollama.built(), ollama.on_path(), None
    where: AbstractContextManager[str]
    if started := folder or program:
        where = ollama.serving(started)
    elif found := ollama.found_url():
        where = nullcontext(found)
    else:
        pytest.skip(f"no real Ollama: run `scripts/local/real-ollama {ollama.cache_dir()}`, or start one")
    with where as url:
        model, other = _models(url)
        yield RealServer(url, model, other, ours=folder is not None)


@pytest.fixture(scope="session")
def real_ollama(real_server: RealServer) -> str:
    """Return the address of a real Ollama."""
    return real_server.url


def _models(url: str) -> tuple[str, str]:
    with requests.Session() as session:
        session.trust_env = False
        listed = session.get(f"{url}/api/tags", timeout=10).json()["models"]
        names = [entry["name"] for entry in listed]
        able = [name for name in names if "/" not in name and _is_plain(session, url, name)]
    if not able:
        pytest.skip(f"the Ollama at {url} has no model that the tests can use (only {names}): pull {MODEL}")
    model = MODEL if MODEL in able else able[0]
    other = OTHER if f"{OTHER}:latest" in able else able[-1]
    return model, other.removesuffix(":latest")


def _is_plain(session: requests.Session, url: str, name: str) -> bool:
    shown = session.post(f"{url}/api/show", json={"model": name}, timeout=10).json()
    capabilities = shown.get("capabilities", ())
    return "completion" in capabilities and "thinking" not in capabilities
