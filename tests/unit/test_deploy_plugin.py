"""What the uploader loads and shows: a plugin file's own errors before a server has them, and its diffs."""

import ast
import os
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from deploy.errors import DeployError
from deploy.pipelines_folder import write_whole
from deploy.plan import text_diff, value_diff
from deploy.plugin import load_plugin

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(file for kind in ("functions", "tools", "pipelines") for file in (ROOT / kind).glob("*.py"))
FRONTMATTER = '"""\ntitle: Sample\nauthor: Somebody\nversion: 1.0\ndescription: A sample.\n"""\n'
VALVES = """
from pydantic import BaseModel, field_validator


class Filter:
    class Valves(BaseModel):
        rate: int = 0
        name: str = ""

        @field_validator("name")
        @classmethod
        def known(cls, name):
            if name == "x":
                raise ValueError("nobody is called so")
            return name
"""

# Code below six lines of frontmatter, the line that is named, and the reason.
LOAD_ERRORS = {
    "syntax": ("class Filter\n    pass\n", 7, "SyntaxError: expected ':' "),
    "import of something missing": (
        "import os\nimport nowhere_to_be_found\nclass Filter: ...\n",
        8,
        "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
    ),
    "constructor": (
        "class Filter:\n    def __init__(self):\n        self.limit = int('many')\n",
        9,
        "ValueError: invalid literal for int() with base 10: 'many'",
    ),
    "error inside a library": (
        "import json\n\nLIMITS = json.loads('{')\nclass Filter: ...\n",
        9,
        "JSONDecodeError: ",
    ),
    "constructor that wants something": ("class Filter:\n    def __init__(self, x): ...\n", 1, "TypeError: "),
    "iterator that ends": ("next(iter(()))\nclass Filter: ...\n", 7, "StopIteration: "),
}


def write(folder: Path, code: str, frontmatter: str = FRONTMATTER) -> Path:
    file = folder / "sample.py"
    file.write_text(frontmatter + code, encoding="utf-8")
    return file


@pytest.mark.parametrize("case", LOAD_ERRORS)
def test_plugin_that_does_not_load(tmp_path: Path, case: str) -> None:
    """Would catch a line of a library, or of the uploader, being shown instead of the plugin's own."""
    code, line, reason = LOAD_ERRORS[case]
    file = write(tmp_path, code)
    with pytest.raises(DeployError) as refused:
        load_plugin(file)
    assert str(refused.value).startswith(f"{file}:{line}: the plugin does not load: {reason}")


def test_file_without_a_plugin(tmp_path: Path) -> None:
    """Would catch a helper file that is sent to a server, which takes it for broken."""
    file = write(tmp_path, "class Filters: ...\n")
    with pytest.raises(DeployError, match=r"none of the classes Pipe, Filter, .*, Tools, Pipeline: is it a"):
        load_plugin(file)


@pytest.mark.parametrize("frontmatter", ["", '"""\ntitle: Sample\ndescription: -\n"""\n'])
def test_frontmatter_that_lacks_something(tmp_path: Path, frontmatter: str) -> None:
    """Would catch a file without a title or version that ends in a KeyError."""
    with pytest.raises(DeployError, match=r"sample.py:1: the frontmatter lacks .*version"):
        load_plugin(write(tmp_path, "class Filter: ...\n", frontmatter))


def test_file_that_is_not_there(tmp_path: Path) -> None:
    """Would catch a plugin that was not built yet being reported without the command that builds it."""
    with pytest.raises(DeployError, match=r"cannot be read .*: run `make package`"):
        load_plugin(tmp_path / "missing.py")


def test_plugin_that_loads(tmp_path: Path) -> None:
    """Would catch a plugin taken for something else than the server will take it for."""
    plugin = load_plugin(write(tmp_path, f"class Event: ...\n{VALVES}"))
    assert (plugin.id, plugin.kind, plugin.name) == ("sample", "filter", "Sample")
    assert plugin.manifest["author"] == "Somebody"
    assert plugin.summary == "Sample 1.0, 22 lines"


def test_valves_that_the_plugin_refuses(tmp_path: Path) -> None:
    """Would catch a refused valve without its name, value or reason."""
    plugin = load_plugin(write(tmp_path, VALVES))
    assert plugin.accepts({"rate": 5, "name": "y"})
    with pytest.raises(DeployError) as refused:
        plugin.check_valves({"rate": "x" * 1000, "name": "x"})
    rate, name = str(refused.value).removeprefix("sample: valves that the plugin refuses: ").split("; ")
    assert rate.startswith("rate = 'xxx")
    assert "…: must be a whole number" in rate
    assert len(rate) < 300
    assert name.startswith("name = 'x': nobody is called so. Correct them in pack.yaml, or where")


def test_any_valves_fit_a_plugin_without_valves(tmp_path: Path) -> None:
    """Would catch a plugin without settings that cannot be uploaded."""
    assert load_plugin(write(tmp_path, "class Filter: ...\n")).accepts({"rate": "x"})


def test_text_diff() -> None:
    """Would catch a diff of a whole file where a line has changed, or one with a header of no use."""
    old = "".join(f"{number}\n" for number in range(20))
    assert text_diff(old, old) == []
    assert text_diff(old, old.replace("9\n", "x\n", 1)) == [
        "@@ -8,5 +8,5 @@",
        " 7",
        " 8",
        "-9",
        "+x",
        " 10",
        " 11",
    ]
    assert text_diff("", "a\n") == ["@@ -0,0 +1 @@", "+a"]


def test_value_diff() -> None:
    """Would catch a change that is not shown, or one shown of what stays."""
    old = {"same": 1, "gone": None, "number": 1, "text": "a\nb", "type": "1"}
    new = {"same": 1, "come": ["ä"], "number": 2, "text": "a\nc", "type": 1}
    assert value_diff(old, new) == [
        '+ come: ["ä"]',
        "- gone: null",
        "- number: 1",
        "+ number: 2",
        "  text:",
        "@@ -1,2 +1,2 @@",
        " a",
        "-b",
        "+c",
        '- type: "1"',
        "+ type: 1",
    ]
    assert value_diff(old, old) == []


@pytest.mark.parametrize("file", PLUGINS, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_uploader_has_what_plugins_import(file: Path) -> None:
    """Would catch a plugin that loads in the tests and not on an admin's machine, where Open WebUI is not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    has = {re.split(r"[<>=~]", requirement)[0] for requirement in project["dependencies"]}
    of_module = packages_distributions()
    for module in imported_at_once(ast.parse(file.read_text())):
        assert module in sys.stdlib_module_names or has & set(of_module[module]), module


def imported_at_once(tree: ast.Module) -> set[str]:
    """The first parts of what a module imports when it is loaded."""
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


def test_a_file_is_written_as_it_is_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch other ends of lines, by which the code in the folder would never be the plugin's."""
    opened = os.fdopen

    def on_windows(handle: int, mode: str, **options: str) -> object:
        return opened(handle, mode, **options if "b" in mode else {"newline": "\r\n"} | options)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "fdopen", on_windows)
    write_whole(tmp_path / "x.py", "é = 1\nb = 2\n")
    assert (tmp_path / "x.py").read_bytes() == "é = 1\nb = 2\n".encode()
