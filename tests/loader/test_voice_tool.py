"""What Open WebUI tells a model of the generated voice tool."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from loader.conftest import Loaded

TOOL = Path(__file__).resolve().parents[2] / "tools" / "voice_transcription.py"


@pytest.fixture
def tool(load: Callable[[str, str, str], Loaded]) -> Loaded:
    return load("tools", TOOL.stem, TOOL.read_text(encoding="utf-8"))


def test_the_model_sees_one_function(tool: Loaded, webui: Callable[[str], ModuleType]) -> None:
    """Would catch a helper offered to the model, and a parameter without a word on what it is for."""
    (spec,) = webui("open_webui.utils.tools").get_tool_specs(tool.instance)
    assert spec["name"] == "transcribe_recordings"
    assert "attached to this chat" in spec["description"]
    shown = {
        name: parameter
        for name, parameter in spec["parameters"]["properties"].items()
        if not name.startswith("__")
    }
    assert set(shown) == {"recordings", "language", "format"}
    assert all(parameter["type"] == "string" for parameter in shown.values())
    assert all(parameter["description"] for parameter in shown.values())
    assert not set(spec["parameters"].get("required", ())) & set(shown)


def test_what_is_not_installed_is_named(tool: Loaded) -> None:
    """Would catch a package that Open WebUI does not bring and that the frontmatter does not ask for."""
    assert tool.frontmatter["requirements"] == "opencc"


def test_valves_are_the_contracts(tool: Loaded) -> None:
    """Would catch a valve that a configuration relies on and that is called something else."""
    assert set(tool.instance.Valves.model_fields) == {
        "engine",
        "model",
        "model_dir",
        "base_url",
        "api_key",
        "language",
        "max_megabytes",
        "max_minutes",
        "allow_download",
        "allow_cloud",
    }
    assert set(tool.instance.UserValves.model_fields) == {"language", "format"}
