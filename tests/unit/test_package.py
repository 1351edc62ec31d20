"""The packager, on little packs: what it refuses, what it writes, and that it writes the same everywhere."""

import ast
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import package
from bundle.build import format_imports
from bundle.rules import REQUIRED_KEYS, WEBUI_VERSION_KEY
from bundle.source import Import, PackagingError, parse_module

SCRIPT = Path(package.__file__)

# Eight lines: what follows begins on line 9.
FRONTMATTER = '''"""
title: Sample
author: Somebody
version: {version}
license: MIT
description: A sample.
required_open_webui_version: 0.11.2
"""
'''
FILTER = "class Filter:\n    pass\n"
ENTRY = "plugins/functions/sample.py"
PIPELINE_FRONTMATTER = FRONTMATTER.replace("required_open_webui_version: 0.11.2\n", "")


def make_pack(root: Path, files: Mapping[str, str]) -> Path:
    """Write a pack of version 1.2.3 whose files stand below src/ollama_pack."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    for name, text in files.items():
        path = root / "src/ollama_pack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def built_text(root: Path, files: Mapping[str, str]) -> str:
    """The text of the only plugin of a pack."""
    (plugin,) = package.build(make_pack(root, files))
    return plugin.text


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file below a folder that is not source, with its content."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    named = {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in named.items() if not name.startswith(("src/", "pyproject"))}


def run_module(text: str) -> dict[str, Any]:
    """Execute a generated file as a loader does, and give its names."""
    names: dict[str, Any] = {"__name__": "generated"}
    exec(compile(text, "generated", "exec", dont_inherit=True), names)  # noqa: S102 - it is what loaders do
    return names


# --- refusals


@dataclass(frozen=True)
class Refusal:
    """Source that must be refused, and where and how."""

    case: str
    line: int
    says: str
    files: Mapping[str, str]
    path: str = ENTRY


USES_A = f"{FRONTMATTER}from ollama_pack.a import A\nclass Filter:\n    a = A\n"
USES_A_AND_B = (
    f"{FRONTMATTER}from ollama_pack.a import A\nfrom ollama_pack.b import B\nclass Filter:\n    a, b = A, B\n"
)
PIPE = "plugins/pipelines/sample.py"
TOOL = "plugins/tools/sample.py"


def entry(case: str, line: int, says: str, body: str, **modules: str) -> Refusal:
    """A fault in a function's entry module, whose body begins on line 9; other modules by their name."""
    files = {f"{name}.py": text for name, text in ({"a": "A = 1"} | modules).items()}
    return Refusal(case, line, says, files | {ENTRY: FRONTMATTER + body})


def in_a(case: str, line: int, says: str, text: str) -> Refusal:
    """A fault in a module that an entry module takes `A` from."""
    return Refusal(case, line, says, {ENTRY: USES_A, "a.py": text}, "a.py")


def in_b(case: str, line: int, says: str, b: str, a: str = "A = x = 1") -> Refusal:
    """A fault in the second of two modules that do not go together."""
    return Refusal(case, line, says, {ENTRY: USES_A_AND_B, "a.py": a, "b.py": b}, "b.py")


def head(case: str, line: int, says: str, number: int, text: str) -> Refusal:
    """A fault in the frontmatter, one line of which is replaced."""
    return Refusal(case, line, says, with_line(number, text))


def plugin(case: str, says: str, path: str, text: str) -> Refusal:
    """A fault of a whole plugin, reported on its first line."""
    return Refusal(case, 1, says, {path: text}, path)


def with_line(number: int, text: str) -> dict[str, str]:
    """The entry module with one line of its frontmatter replaced; with an empty text, removed."""
    lines = FRONTMATTER.splitlines(keepends=True)
    lines[number - 1] = f"{text}\n" if text else ""
    return {ENTRY: "".join(lines) + FILTER}


METHOD = "class Filter:\n    def f(self):\n        "
NO_HEAD = "must begin with its frontmatter"
A_TYPE = "is a name by which the loader"
NOT_ONE = "is not a requirement by itself"

REFUSALS = [
    # imports of the pack
    entry("plain import", 9, "write `from ollama_pack.… import", f"import ollama_pack.a\n{FILTER}"),
    entry("plain import in a function", 11, "write `from ollama_pack.…", f"{METHOD}import ollama_pack\n"),
    entry("renamed import", 9, "use the name as it is", f"from ollama_pack.a import A as B\n{FILTER}"),
    entry("star import of the pack", 9, "star import", f"from ollama_pack.a import *\n{FILTER}"),
    entry("relative import", 9, "relative import", f"from .a import A\n{FILTER}"),
    entry("relative import of a module", 9, "relative import", f"from . import a\n{FILTER}"),
    entry("import in a function", 11, "move it to the top", f"{METHOD}from ollama_pack.a import A\n"),
    entry("import under if", 10, "move it to the top", f"if 1:\n    from ollama_pack.a import A\n{FILTER}"),
    entry(
        "import under try",
        10,
        "move it to the top",
        f"try:\n    from ollama_pack.a import A\nfinally:\n    pass\n{FILTER}",
    ),
    entry("no such module", 9, "no module `ollama_pack.c`", f"from ollama_pack.c import C\n{FILTER}"),
    entry("import from the top package", 9, "is a package", f"from ollama_pack import a\n{FILTER}"),
    Refusal("import from a package", 9, "is a package", {ENTRY: USES_A, "a/__init__.py": "A = 1"}),
    Refusal("name not defined", 9, "does not define `A`", {ENTRY: USES_A, "a.py": "B = 1"}),
    Refusal("name of a local", 9, "does not define `A`", {ENTRY: USES_A, "a.py": "def f():\n    A = 1\n"}),
    Refusal(
        "re-export of the pack",
        9,
        "does not define `A`",
        {ENTRY: USES_A, "a.py": "from ollama_pack.b import A", "b.py": "A = 1"},
    ),
    Refusal("re-export", 9, "does not define `A`", {ENTRY: USES_A, "a.py": "from decimal import A"}),
    in_b(
        "cycle",
        1,
        "import cycle ollama_pack.a → ollama_pack.b → ollama_pack.a: ",
        "from ollama_pack.a import A\nB = 1",
        "from ollama_pack.b import B\nA = 1",
    ),
    in_a("cycle of one", 1, "ollama_pack.a → ollama_pack.a: ", "from ollama_pack.a import A\nA = 1"),
    # names
    in_b("same name", 1, "`_x` is something else in src/ollama_pack/a.py:1", "_x = B = 2", "A = _x = 1"),
    Refusal(
        "same name that others import",
        1,
        "`x` is something else in src/ollama_pack/c.py:1",
        {ENTRY: USES_A_AND_B, "c.py": "x = 1", "d.py": "x = 2"}
        | {
            f"{name}.py": f"from ollama_pack.{other} import x\n{name.upper()} = x"
            for name, other in ("ac", "bd")
        },
        "d.py",
    ),
    in_b("same name as a parameter", 1, "`x` is", "x = 1\ndef B(): return x\ndef C(x=B): B()\nB = C()"),
    in_b("same name in a quoted type", 1, "`x` is", "class x: pass\ndef B(y: 'x'): x()"),
    in_b("same name in a branch", 3, "`x` is something else", "B = 1\nif B:\n    x = 2"),
    in_b("same name by except", 3, "`x` is", "try:\n    B = 1\nexcept OSError as x:\n    pass"),
    in_b("same name by match", 3, "`x` is", "B = 1\nmatch B:\n    case [*x] | x:\n        pass"),
    in_b("same name by global", 3, "`x` is", "# 1\ndef B():\n    global x\n    x = 2"),
    in_b("same name by import", 3, "`x` is", "B = 1\ntry:\n    import json as x\nfinally:\n    pass"),
    in_b("import of two things", 1, "`x` is", "import csv as x\nB = x", "import json as x\nA = x"),
    in_b("one name of two modules", 1, "`x` is", "from b import x\nB = x", "from a import x\nA = x"),
    in_b("import, definition", 2, "`x` is", "B = 1\nx = B = 2", "from a import x\nA = x"),
    in_a("import, definition in one module", 2, "`x` is something else", "import x\nx = A = 1"),
    in_a("hidden builtin", 2, "`open` hides the builtin", "A = 1\ndef open(): pass"),
    in_a("import over a builtin", 1, "`TimeoutError` hides", "from asyncio import TimeoutError\nA = 1"),
    in_a("__all__", 1, "`__all__` means nothing", "__all__ = ['A']\nA = 1"),
    in_a("module-level __getattr__", 2, "`__getattr__` means nothing", "A = 1\ndef __getattr__(name): ..."),
    # statements
    in_a("future import", 1, "`from __future__` is refused", "from __future__ import annotations\nA = 1"),
    in_a("star import", 1, "star import", "from json import *\nA = 1"),
    in_a("script block", 2, "remove the `__name__` block", "A = 1\nif __name__ == '__main__':\n    A = 2"),
    in_a("quoted field", 3, "unquote it", "A = 1\nclass Node:\n    next: 'Node | None' = None"),
    in_a("two statements on a line", 1, "give it a line of its own", "import json; A = 1"),
    entry("entry not Python", 9, "not valid Python", "class Filter"),
    in_a("not Python", 2, "not valid Python", "A = 1\nB = ="),
    # what the loaders do to a file
    in_a("rewritten import", 1, "rewrites the text `from utils`", "from utils import A2\nA = 1"),
    in_a("rewritten comment", 2, "rewrites the text `from main`", "A = 1\n# taken from mainstream"),
    in_a("rewritten string", 1, "rewrites the text `from config`", "A = 'read from configured nodes'"),
    in_a("rewritten after merging", 1, "rewrites the text `from  apps`", "from  apps import A2\nA = 1"),
    entry("second type by class", 9, f"`Filter` {A_TYPE}", "class Filter: pass\nclass Pipe: pass"),
    entry("second type by import", 9, f"`Event` {A_TYPE}", f"from asyncio import Event\n{FILTER}"),
    entry("second type by assignment", 11, f"`Action` {A_TYPE}", f"{FILTER}Action = None"),
    in_a("second type in another module", 1, f"`Filter` {A_TYPE}", "from logging import Filter\nA = 1"),
    entry("type only imported", 9, f"`Filter` {A_TYPE}", "from logging import Filter"),
    entry("no type", 1, "defines no class Pipe or Filter or Action or Event", "x = 1"),
    plugin("no tools", "defines no class Tools", TOOL, FRONTMATTER + FILTER),
    plugin("no pipeline", "defines no class Pipeline", PIPE, PIPELINE_FRONTMATTER + FILTER),
    plugin("capital in id", "'Ab' cannot be", "plugins/functions/Ab.py", FRONTMATTER + FILTER),
    plugin("dash in id", "'a-b' cannot be a plugin's id", "plugins/functions/a-b.py", FRONTMATTER + FILTER),
    # frontmatter
    plugin("no frontmatter", NO_HEAD, ENTRY, FILTER),
    head("text on the first line", 1, NO_HEAD, 1, '"""Sample'),
    head("text on the last line", 1, NO_HEAD, 8, 'license: MIT"""'),
    head("comment above", 1, NO_HEAD, 1, '# Sample\n"""'),
    head("raw docstring", 1, NO_HEAD, 1, 'r"""'),
    head("quotes inside", 1, NO_HEAD, 5, 'license: MIT\n""" """'),
    *(
        head(f"lacks {key}", 1, f"lacks a value for `{key}:`", number, "")
        for number, key in enumerate((*REQUIRED_KEYS, WEBUI_VERSION_KEY), start=2)
    ),
    head("empty value", 1, "lacks a value for `license:`", 5, "license:"),
    head("prose that is a key", 6, "`Note:` becomes a key", 5, "license: MIT\nNote: this is prose."),
    head("key twice", 6, "`license:` stands there twice", 5, "license: MIT\nlicense: BSD"),
    head("version written out", 4, "write `version: {version}`", 4, "version: 0.1.0"),
    head("two bounds", 3, f"'<2' {NOT_ONE}", 2, "title: Sample\nrequirements: foo>=1,<2"),
    head("two extras", 3, f"'foo[a' {NOT_ONE}", 2, "title: Sample\nrequirements: foo[a,b]"),
    head("marker", 3, NOT_ONE, 2, "title: Sample\nrequirements: foo; sys_platform == 'linux'"),
    head("trailing comma", 3, f"'' {NOT_ONE}", 2, "title: Sample\nrequirements: foo,"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.case)
def test_refuses(refusal: Refusal, tmp_path: Path) -> None:
    """A rule that no longer holds, or that points the reader at the wrong line."""
    root = make_pack(tmp_path, refusal.files)
    with pytest.raises(PackagingError) as caught:
        package.build(root)
    said = [str(problem) for problem in caught.value.problems]
    place = f"src/ollama_pack/{refusal.path}:{refusal.line}: "
    assert any(line.startswith(place) and refusal.says in line for line in said), "\n".join(said)


def test_refuses_text_that_is_not_utf8(tmp_path: Path) -> None:
    """A traceback instead of a sentence for a file in another encoding."""
    root = make_pack(tmp_path, {ENTRY: USES_A})
    (root / "src/ollama_pack/a.py").write_bytes(b"A = '\xff'\n")
    with pytest.raises(PackagingError, match=r"^src/ollama_pack/a\.py:1: not in UTF-8"):
        package.build(root)


@pytest.mark.parametrize("text", ["", "[project]\n", "not toml"])
def test_refuses_a_pack_without_version(text: str, tmp_path: Path) -> None:
    """A plugin that goes out with a made-up version."""
    root = make_pack(tmp_path, {ENTRY: FRONTMATTER + FILTER})
    (root / "pyproject.toml").write_text(text)
    with pytest.raises(PackagingError, match=r"pyproject\.toml:1: gives no project\.version"):
        package.build(root)


def test_refuses_a_pack_without_plugins(tmp_path: Path) -> None:
    """A check that passes because it looked in the wrong place."""
    with pytest.raises(PackagingError, match="no plugin is there"):
        package.build(make_pack(tmp_path, {"a.py": "A = 1"}))


def test_reports_everything_at_once(tmp_path: Path) -> None:
    """Ten mistakes that take ten runs to find, or one mistake told once for each plugin that shares it."""
    files = {"a.py": "A = 1\nopen = 2\n", ENTRY: USES_A, PIPE: USES_A}
    with pytest.raises(PackagingError) as caught:
        package.build(make_pack(tmp_path, files))
    assert [(problem.path, problem.line) for problem in caught.value.problems] == [
        ("src/ollama_pack/a.py", 2),
        (f"src/ollama_pack/{PIPE}", 1),
    ]


# --- the good path

PACK = {
    "errors.py": '''"""Errors.

PackError
"""


class PackError(Exception):
    """The base."""
''',
    "core/__init__.py": "",
    "core/clock.py": '''"""Time."""

import calendar
import time
from os import path as os_path  # on the way out

# Half a second.
TICK = 0.5  # seconds

# --- what nobody uses ---

YEAR = 365.25


class Calendar(calendar.Calendar):
    """Of TICKs."""


# --- what somebody uses ---

# A place.
HERE = os_path.curdir


def now() -> float:
    # monotonic: it never goes back
    return time.monotonic() if HERE else later()


# Used by one above.
def later() -> float:
    return now() + TICK
''',
    "core/work.py": '''"""Work."""

import logging
from collections.abc import Mapping, Callable

import pydantic

from ollama_pack.core.clock import TICK
from ollama_pack.errors import PackError

log = logging.getLogger(__name__)


def work(job: Callable[[], int], options: Mapping[str, int]) -> float:
    from open_webui.env import VERSION

    if not options:
        raise PackError
    log.info("At work: %s", pydantic.VERSION)
    return job() * TICK
''',
    "core/unused.py": '"""Nobody needs this."""\n\nUNUSED = 1\n',
    ENTRY: f'''{FRONTMATTER}
import time
from collections.abc import Iterable

from ollama_pack.core.clock import now
from ollama_pack.core.unused import UNUSED
from ollama_pack.core.work import work
from ollama_pack.errors import PackError

# What it answers.
ANSWER = 42


def unused() -> int:
    return UNUSED


class Filter:
    text = """
import this
"""

    def inlet(self, body: "Body | None") -> float:
        return now() or work(dict, {{}}) or ANSWER


Body = dict[str, Iterable[str]]
''',
}

EXPECTED = '''"""
title: Sample
author: Somebody
version: 1.2.3
license: MIT
description: A sample.
required_open_webui_version: 0.11.2
"""

# GENERATED from src/ollama_pack/plugins/functions/sample.py by scripts/package.py: change that, not this.
#
# Begin here: `class Filter`, line 79, which the server calls.
# The modules that it uses come first:
#     25  core.clock  Time.
#     48  errors      Errors.
#     58  core.work   Work.

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from os import path as os_path

import pydantic

# --- ollama_pack.core.clock ---
# Time.

# Half a second.
TICK = 0.5  # seconds


# --- what somebody uses ---

# A place.
HERE = os_path.curdir


def now() -> float:
    # monotonic: it never goes back
    return time.monotonic() if HERE else later()


# Used by one above.
def later() -> float:
    return now() + TICK


# --- ollama_pack.errors ---
# Errors.
#
# PackError


class PackError(Exception):
    """The base."""


# --- ollama_pack.core.work ---
# Work.

log = logging.getLogger(__name__)


def work(job: Callable[[], int], options: Mapping[str, int]) -> float:
    from open_webui.env import VERSION

    if not options:
        raise PackError
    log.info("At work: %s", pydantic.VERSION)
    return job() * TICK


# --- ollama_pack.plugins.functions.sample ---

# What it answers.
ANSWER = 42


class Filter:
    text = """
import this
"""

    def inlet(self, body: "Body | None") -> float:
        return now() or work(dict, {}) or ANSWER


Body = dict[str, Iterable[str]]
'''


def test_writes_one_readable_file(tmp_path: Path) -> None:
    """A lost comment, a module before what it needs, an import twice, a changed line anywhere."""
    assert built_text(tmp_path, PACK) == EXPECTED


def test_each_kind_has_its_type(tmp_path: Path) -> None:
    """A plugin filed under another type than the loader will give it, in the list that an admin imports."""
    types = {name: f"class {name}: pass" for name in ("Pipe", "Filter", "Action", "Event")}
    files = {f"plugins/functions/{name.lower()}.py": FRONTMATTER + body for name, body in types.items()}
    files[TOOL] = f"{FRONTMATTER}from logging import Filter\nclass Tools: pass"
    files[PIPE] = f"{PIPELINE_FRONTMATTER}from logging import Filter\nclass Pipeline: pass"
    built = {plugin.path: plugin.type for plugin in package.build(make_pack(tmp_path, files))}
    assert built == {f"functions/{name.lower()}.py": name.lower() for name in types} | {
        "tools/sample.py": "tools",
        "pipelines/sample.py": "pipeline",
    }


def test_accepts_one_bound_per_requirement(tmp_path: Path) -> None:
    """A rule so strict that no plugin could name a package."""
    value = "redis>=5, numpy, foo[bar]==1.*, a.b-c ~= 2.0"
    root = make_pack(tmp_path, with_line(2, f"title: Sample\nrequirements: {value}"))
    assert package.build(root)[0].frontmatter["requirements"] == value


def test_same_import_in_two_modules_is_no_clash(tmp_path: Path) -> None:
    """Two modules that both use `json` or the same class, refused."""
    same = "import json\nimport os.path\nfrom decimal import Decimal\n"
    uses = "[json, os.path, Decimal]"
    text = built_text(
        tmp_path,
        {"a.py": f"{same}A = {uses}", "b.py": f"import os\n{same}B = {uses}", ENTRY: USES_A_AND_B},
    )
    assert text.count("import json") == text.count("import Decimal") == 1


def test_inlines_only_what_is_imported(tmp_path: Path) -> None:
    """Dead modules in every plugin, or an unrelated plugin that spoils this one."""
    text = built_text(tmp_path, {"a.py": "A = 1", "b.py": "B = 1", ENTRY: USES_A})
    assert "ollama_pack.a ---" in text
    assert "ollama_pack.b" not in text


def test_long_import_is_wrapped() -> None:
    """A merged line that nobody can read."""
    names = [f"name_{number:02}" for number in range(20)]
    text = format_imports([Import("some.module", name) for name in names])
    assert text.splitlines() == ["from some.module import (", *(f"    {name}," for name in names), ")"]


def test_imports_are_in_isorts_order() -> None:
    """Imports in an order that ruff, and so every reader of the source, would not expect."""
    taken = [
        Import("yaml"),
        Import("typing", "TYPE_CHECKING"),
        Import("typing", "cast"),
        Import("typing", "Any"),
        Import("numpy", alias="np"),
        Import("asyncio"),
        Import("typing", "Set", "AbstractSet"),
        Import("aiohttp", "web"),
    ]
    assert format_imports(taken).splitlines() == [
        "import asyncio",
        "from typing import TYPE_CHECKING, Any, cast",
        "from typing import Set as AbstractSet",
        "",
        "import numpy as np",
        "import yaml",
        "from aiohttp import web",
    ]


# --- properties


@st.composite
def graphs(draw: st.DrawFn) -> list[list[int]]:
    """Import graphs without cycles: for each module the earlier ones that it imports, in some order."""
    size = draw(st.integers(1, 8))
    return [
        draw(st.lists(st.integers(0, number - 1), unique=True)) if number else [] for number in range(size)
    ]


# In each module: names that others have too, for a constant, for what must not be shared, and for functions.
PRIVATE = """import logging

log = logging.getLogger(__name__)
_seen = []
_total = {total}


def _told(more: int) -> str:
    _seen.append(more)
    log.debug("é %s", _seen)
    return f"é {{_total + more}}"


class _Kept:
    total = _total


{own} = int(_told(0).removeprefix("é ")) * len(_seen) + _Kept.total - _total
"""


@settings(deadline=None)
@given(graph=graphs(), shuffle=st.permutations(range(8)))
def test_any_graph_runs_and_gives_the_right_values(graph: list[list[int]], shuffle: Sequence[int]) -> None:
    """A module that is placed before one that it needs, left out, inlined twice, or given another's names."""
    values: list[int] = []
    files: dict[str, str] = {}
    label = [shuffle[number] for number in range(len(graph))]
    for number, needs in enumerate(graph):
        lines = [f"from ollama_pack.m{label[need]} import V{label[need]}" for need in needs]
        total = " + ".join(["1", *(f"V{label[need]}" for need in needs)])
        files[f"m{label[number]}.py"] = "\n".join(
            [*lines, PRIVATE.format(total=total, own=f"V{label[number]}")]
        )
        values.append(1 + sum(values[need] for need in needs))
    last = label[-1]
    files[ENTRY] = (
        f"{FRONTMATTER}from ollama_pack.m{last} import V{last}\nclass Filter:\n    value = V{last}\n"
    )
    with TemporaryDirectory() as folder:
        text = built_text(Path(folder), files)
    names = run_module(text)
    assert names["Filter"].value == values[-1]
    for number, value in enumerate(values):
        if f"V{label[number]}" in names:
            assert names[f"V{label[number]}"] == value
            assert text.count(f"# --- ollama_pack.m{label[number]} ---") == 1
    assert text.count("getLogger") == 1


SNIPPETS = [
    "import json",
    "from os import (\n    path,\n    sep,\n)",
    "# a comment",
    "",
    "",
    'x = """\nimport json\n\n\n# no comment\n"""',
    "def f() -> None:\n    # inside\n    import csv\n",
    "@f\nclass C:\n    y: int = 1",
    "if f:\n    import csv\nelse:\n    z = 2",
]


@given(pieces=st.lists(st.sampled_from(SNIPPETS), max_size=12), docstring=st.booleans())
def test_taking_imports_out_changes_nothing_else(pieces: list[str], docstring: bool) -> None:  # noqa: FBT001
    """A line lost beside an import, an import taken out of a string, a comment gone."""
    text = "\n".join((['"""Title.\n\nimport json\n"""'] if docstring else []) + pieces)
    module = parse_module("m", "m.py", text)
    moved = [node for node in module.tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    rest = [node for node in module.tree.body[docstring:] if node not in moved]
    assert ast.dump(ast.parse(module.body)) == ast.dump(ast.Module(rest, []))
    assert module.body.count("# a comment") == pieces.count("# a comment")
    assert {taken.bound for taken in module.imports} <= {"json", "path", "sep"}


MODULES = st.sampled_from(["json", "os.path", "abc", "Zebra", "yaml.nodes"])
NAMES = st.sampled_from(["", "a", "B", "MAX", "_z"])


@given(
    taken=st.lists(st.builds(Import, MODULES, NAMES, st.sampled_from(["", "x"])), max_size=12), data=st.data()
)
def test_merged_imports_bind_the_same_in_any_order(taken: list[Import], data: st.DataObject) -> None:
    """An import lost or renamed by merging, or a result that depends on which module came first."""
    text = format_imports(taken)
    assert set(parse_module("m", "m.py", text).imports) == set(taken)
    assert format_imports(data.draw(st.permutations(taken))) == text


# --- what is written

KINDS = PACK | {
    TOOL: f"{FRONTMATTER}class Tools: pass\n",
    PIPE: f"{PIPELINE_FRONTMATTER}from ollama_pack.errors import PackError\nclass Pipeline: pass\n",
    "plugins/pipelines/another.py": f"{PIPELINE_FRONTMATTER}class Pipeline:\n    sign = 'é → ü'\n",
}


def test_lists_hold_what_the_admin_page_imports(tmp_path: Path) -> None:
    """An import that fails, switches a function on, or claims another type."""
    root = make_pack(tmp_path, KINDS)
    assert package.main(["--root", str(root)]) == 0
    (function,) = json.loads((root / "dist/functions.json").read_text(encoding="utf-8"))
    manifest = {
        "title": "Sample",
        "author": "Somebody",
        "version": "1.2.3",
        "license": "MIT",
        "description": "A sample.",
        "required_open_webui_version": "0.11.2",
    }
    assert function == {
        "id": "sample",
        "name": "Sample",
        "type": "filter",
        "content": EXPECTED,
        "meta": {"description": "A sample.", "manifest": manifest},
        "is_active": False,
        "is_global": False,
    }
    (tool,) = json.loads((root / "dist/tools.json").read_text(encoding="utf-8"))
    assert tool == {
        "id": "sample",
        "name": "Sample",
        "content": (root / "tools/sample.py").read_text(encoding="utf-8"),
        "meta": {"description": "A sample.", "manifest": manifest},
    }


def test_thin_lists_import_from_the_package(tmp_path: Path) -> None:
    """A thin plugin that carries code, or that makes a server without network ask pip for a package."""
    files = KINDS | with_line(2, "title: Sample\nrequirements: redis")
    root = make_pack(tmp_path, files)
    assert package.main(["--root", str(root)]) == 0
    (function,) = json.loads((root / "dist/thin-functions.json").read_text(encoding="utf-8"))
    head, _, body = function["content"].rpartition('"""\n')
    assert "version: 1.2.3" in head
    assert "requirements" not in str(function)
    assert body.splitlines()[-1] == "from ollama_pack.plugins.functions.sample import Filter"
    assert (function["type"], function["is_active"]) == ("filter", False)
    (tool,) = json.loads((root / "dist/thin-tools.json").read_text(encoding="utf-8"))
    assert tool["content"].endswith("from ollama_pack.plugins.tools.sample import Tools\n")


def test_zip_holds_the_pipelines(tmp_path: Path) -> None:
    """A zip that unpacks into files nobody may read, or with today's date in it."""
    root = make_pack(tmp_path, KINDS)
    assert package.main(["--root", str(root)]) == 0
    with zipfile.ZipFile(root / "dist/pipelines.zip") as archive:
        entries = archive.infolist()
        assert [entry.filename for entry in entries] == ["another.py", "sample.py"]
        assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.external_attr >> 16 for entry in entries} == {0o100644}
        for entry in entries:
            assert archive.read(entry) == (root / "pipelines" / entry.filename).read_bytes()


def test_checksums_cover_every_other_file(tmp_path: Path) -> None:
    """A file whose checksum is wrong or missing."""
    root = make_pack(tmp_path, KINDS)
    assert package.main(["--root", str(root)]) == 0
    files = snapshot(root)
    sums = files.pop("dist/SHA256SUMS").decode().splitlines()
    assert sums == [
        f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in sorted(files.items())
    ]


def test_same_bytes_everywhere(tmp_path: Path) -> None:
    """A build that depends on the hash seed, the time zone, the locale, the umask or the order of files."""
    results = []
    for number, order in enumerate((KINDS.items(), reversed(KINDS.items()))):
        root = make_pack(tmp_path / str(number), dict(order))
        seed, zone, locale = (("1", "UTC", "C"), ("2", "Asia/Kolkata", "C.UTF-8"))[number]
        environment = os.environ | {"PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": locale, "PYTHONUTF8": "0"}
        command = [sys.executable, str(SCRIPT), "--root", str(root)]
        subprocess.run(
            command, env=environment, umask=(0o077, 0o002)[number], check=True, capture_output=True
        )
        results.append(snapshot(root))
    assert results[0] == results[1]
    assert len(results[0]) == 10


# --- the command


@pytest.fixture
def fresh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A pack whose files are all built."""
    root = make_pack(tmp_path, KINDS)
    assert package.main(["--root", str(root)]) == 0
    assert "wrote functions/sample.py\n" in capsys.readouterr().out
    return root


def test_second_run_writes_nothing(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files touched without need, which makes everything that depends on them run again."""
    before = {path: path.stat().st_mtime_ns for path in fresh.rglob("*.*")}
    assert package.main(["--root", str(fresh)]) == 0
    assert {path: path.stat().st_mtime_ns for path in fresh.rglob("*.*")} == before
    assert capsys.readouterr().out == "4 plugin files are up to date.\n"


def test_check_passes_when_up_to_date(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A check that fails on what the packager just wrote, or that needs dist/, which is not committed."""
    for path in (fresh / "dist").iterdir():
        path.unlink()
    assert package.main(["--root", str(fresh), "--check"]) == 0
    assert capsys.readouterr().out == "4 plugin files are up to date.\n"


def edit(root: Path) -> None:
    path = root / "functions/sample.py"
    path.write_text(path.read_text(encoding="utf-8").replace("ANSWER = 42", "ANSWER = 43"), encoding="utf-8")


def change_line_ends(root: Path) -> None:
    path = root / "functions/sample.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def change_version(root: Path) -> None:
    (root / "pyproject.toml").write_text('[project]\nversion = "2.0.0"\n')


def delete(root: Path) -> None:
    (root / "functions/sample.py").unlink()


def delete_source(root: Path) -> None:
    (root / "src/ollama_pack" / TOOL).unlink()


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (edit, "--- functions/sample.py\n+++ functions/sample.py (built)\n"),
        (edit, "\n-ANSWER = 43\n+ANSWER = 42\n"),
        (change_line_ends, "+ANSWER = 42\n"),
        (change_version, "\n-version: 1.2.3\n+version: 2.0.0\n"),
        (delete, "--- /dev/null\n+++ functions/sample.py (built)\n"),
        (delete_source, "tools/sample.py: generated, but its source is gone\n"),
    ],
)
def test_check_shows_what_is_stale_and_writes_nothing(
    change: Any, shown: str, fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stale, missing or orphaned file that gets past CI; a check that mends instead of telling."""
    change(fresh)
    before = snapshot(fresh)
    assert package.main(["--root", str(fresh), "--check"]) == 1
    assert shown in capsys.readouterr().out.replace("\r", "")
    assert snapshot(fresh) == before


def test_orphan_is_removed_and_nothing_else(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plugin that stays installed after its source is gone; or somebody's own file deleted."""
    delete_source(fresh)
    (fresh / "tools/own.py").write_text("# written by hand\n")
    (fresh / "dist/notes.txt").write_text("mine\n")
    assert package.main(["--root", str(fresh)]) == 0
    assert "removed tools/sample.py\n" in capsys.readouterr().out
    assert not (fresh / "tools/sample.py").exists()
    assert (fresh / "tools/own.py").exists()
    assert (fresh / "dist/notes.txt").exists()
    assert json.loads((fresh / "dist/tools.json").read_text()) == []


def test_own_file_in_the_way_is_not_overwritten(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Work lost because a hand-written file has a plugin's name."""
    (fresh / "functions/sample.py").write_text("# written by hand\n")
    before = snapshot(fresh)
    assert package.main(["--root", str(fresh)]) == 1
    assert "functions/sample.py:1: not a generated file" in capsys.readouterr().err
    assert snapshot(fresh) == before


def test_refused_source_writes_nothing(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the files rebuilt from a source that is refused."""
    change_version(fresh)
    (fresh / "src/ollama_pack" / TOOL).write_text(FRONTMATTER)
    before = snapshot(fresh)
    assert package.main(["--root", str(fresh)]) == 1
    assert capsys.readouterr().err.startswith(f"src/ollama_pack/{TOOL}:1: defines no class Tools")
    assert snapshot(fresh) == before


@pytest.mark.parametrize("arguments", [["--nonsense"], ["extra"], ["--root", "/nonexistent"]])
def test_bad_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A typing mistake that CI takes for a stale file."""
    with pytest.raises(SystemExit) as caught:
        package.main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err
