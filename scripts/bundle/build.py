"""Reading the pack and writing each plugin's text."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from bundle.reach import Part, reached, scope_names
from bundle.rules import (
    KINDS,
    filled_in,
    frontmatter_keys,
    frontmatter_text,
    module_problems,
    plugin_problems,
    type_name,
)
from bundle.source import (
    PACK,
    SOURCE,
    Import,
    Module,
    PackagingError,
    Problem,
    parse_module,
    with_files,
)
from bundle.words import with_own_translations

GENERATED, BY = "# GENERATED from ", " by scripts/package.py"

_LINE_LENGTH = 110


@dataclass(frozen=True)
class Plugin:
    """One built plugin.

    Attributes:
        kind: its folder: functions, tools or pipelines.
        id: its file's name without the suffix, and its id on a server.
        type: the class in it that the loader looks for, in lower case: filter, pipe, event, tools, pipeline.
        frontmatter: the keys at its top, as Open WebUI reads them.
        text: the whole file.
        thin: a file that does the same where the package is installed: it takes the class from there.
    """

    kind: str
    id: str
    type: str
    frontmatter: Mapping[str, str]
    text: str
    thin: str

    @property
    def path(self) -> str:
        return f"{self.kind}/{self.id}.py"


class Builder:
    """Builds the plugins of a package. Reads each module once, and gathers what is wrong in `problems`."""

    def __init__(
        self, root: Path, version: str, source: str = SOURCE, package: str = PACK, repository: str = ""
    ) -> None:
        """Read nothing yet.

        Args:
            root: what the paths in messages and generated files are relative to.
            version: of the package.
            source: the folder that the package is in, below `root`.
            package: its name.
            repository: the address where it is published.
        """
        self.root = root
        self.version = version
        self.repository = repository
        self.source = source
        self.package = package
        self.entries = Path(source, package, "plugins").as_posix()
        self.problems: list[Problem] = []
        self._modules: dict[str, Module | None] = {}

    def plugins(self) -> tuple[Plugin, ...]:
        """Build every plugin.

        Raises:
            PackagingError: the source breaks a rule.
        """
        built = [
            self._plugin(kind, path.stem)
            for kind in KINDS
            for path in sorted((self.root / self.entries / kind).glob("*.py"))
            if path.stem != "__init__"
        ]
        if not built:
            self.problems.append(
                Problem(self.entries, 1, "no plugin is there: is this the top folder of the pack?")
            )
        if self.problems:
            raise PackagingError(self.problems)
        return tuple(plugin for plugin in built if plugin)

    def _plugin(self, kind: str, plugin_id: str) -> Plugin | None:
        entry = self._module(f"{self.package}.plugins.{kind}.{plugin_id}")
        if entry is None:
            return None
        name = type_name(kind, entry)
        parts, imported = reached(self._with_dependencies(entry), name)
        parts = with_own_translations(parts, with_valves=kind == "pipelines")
        self.problems += plugin_problems(kind, [part.module for part in parts] or [entry])
        self.problems += scope_names(parts, imported, name)
        head = filled_in(frontmatter_text(entry), self.version, self.repository)
        keys = {key: value for _, key, value in frontmatter_keys(head)}
        text, thin = _assemble(head, name, parts), _thin(head, name, entry)
        return Plugin(kind, plugin_id, name.lower(), keys, text, thin)

    def _module(self, name: str) -> Module | None:
        """A module by its dotted name; None when there is none, or none that can be read."""
        if name not in self._modules:
            self._modules[name] = None
            path = Path(self.source, f"{name.replace('.', '/')}.py")
            try:
                text = with_files((self.root / path).read_text(encoding="utf-8"), self.root / path)
                module = parse_module(name, path.as_posix(), text)
            except FileNotFoundError:
                return None
            except UnicodeDecodeError:
                self.problems.append(Problem(path.as_posix(), 1, "not in UTF-8: save it as that"))
            except PackagingError as error:
                self.problems += error.problems
            else:
                self.problems += module_problems(module)
                self._modules[name] = module
        return self._modules[name]

    def _with_dependencies(self, entry: Module) -> tuple[Module, ...]:
        """All that a module needs, each after what it imports itself, and so the module last."""
        order: dict[str, Module] = {}

        def visit(module: Module, trail: tuple[str, ...]) -> None:
            for wanted in module.pack_imports:
                if wanted.module in trail:
                    way = " → ".join((*trail[trail.index(wanted.module) :], wanted.module))
                    message = f"import cycle {way}: move what both need into a module of its own"
                    self.problems.append(Problem(module.path, wanted.line, message))
                elif (found := self._imported(module, wanted)) and found.name not in order:
                    visit(found, (*trail, found.name))
            order[module.name] = module

        visit(entry, (entry.name,))
        return tuple(order.values())

    def _imported(self, importer: Module, wanted: Import) -> Module | None:
        found = self._module(wanted.module)
        place = self.root / self.source / wanted.module.replace(".", "/")
        message = ""
        if found is None and place.is_dir():
            message = f"`{wanted.module}` is a package: import from the module in it that defines the name"
        elif found is None and not place.with_suffix(".py").exists():
            message = f"there is no module `{wanted.module}`"
        elif found and wanted.name not in {"", "*", *found.defined}:
            message = (
                f"`{wanted.module}` does not define `{wanted.name}`: import it from the module that does"
            )
        if message:
            self.problems.append(Problem(importer.path, wanted.line, message))
        return found


def _assemble(head: str, entry: str, parts: Sequence[Part]) -> str:
    """The whole file: the frontmatter, the table of contents, the imports, and a section for each module."""
    parts = [part for part in parts if any(piece.nodes for piece in part.pieces)]
    if not parts:
        return head  # something is wrong with the source, and has been reported
    imports = format_imports(found for part in parts for found in part.imports)
    sections = [_section(part, is_entry=part is parts[-1]) for part in parts]
    text = "\n\n\n".join(sections) + "\n"
    # How long the table is does not depend on the numbers in it.
    above = "\n\n".join(filter(None, (head, _contents(entry, parts, [0] * len(parts), 0), imports))) + "\n\n"
    line = above.count("\n") + 1
    starts = []
    for section in sections:
        starts.append(line)
        line += section.count("\n") + 3
    begin = (above + text)[: (above + text).index(f"\nclass {entry}", len(above))].count("\n") + 2
    top = "\n\n".join(filter(None, (head, _contents(entry, parts, starts, begin), imports)))
    return f"{top}\n\n{text}"


def _thin(head: str, name: str, entry: Module) -> str:
    """The frontmatter without `requirements`, which are the image's affair, and the import of the class."""
    kept = re.sub(r"(?m)^[ \t]*requirements:.*\n", "", head)
    note = f"{GENERATED}{entry.path}{BY}: {entry.package} must be installed."
    return f"{kept}\n\n{note}\n\nfrom {entry.name} import {name}\n"


def _contents(entry: str, parts: Sequence[Part], starts: Sequence[int], begin: int) -> str:
    """Where the file comes from, where to begin reading, and on which line each module begins."""
    own = parts[-1].module
    root = f"{own.package}."
    names = [part.module.name.removeprefix(root) for part in parts[:-1]]
    width = max(map(len, names), default=0)
    rows = [
        f"# {start:>6}  {name:<{width}}  {(ast.get_docstring(part.module.tree) or '').partition(chr(10))[0]}"
        for start, name, part in zip(starts, names, parts, strict=False)
    ]
    note = [f"{GENERATED}{own.path}{BY}: change that, not this.", "#"]
    note += [f"# Begin here: `class {entry}`, line {begin}, which the server calls."]
    note += ["# The modules that it uses come first:"] if rows else []
    return "\n".join(row.rstrip() for row in note + rows)


def _section(part: Part, *, is_entry: bool) -> str:
    """A module's text below its name. Its docstring becomes comments; the entry's is the frontmatter."""
    module, body = part.module, part.text
    docstring = "" if is_entry else ast.get_docstring(module.tree) or ""
    head = "\n".join(
        (f"# --- {module.name} ---", *(f"# {line}".rstrip() for line in docstring.split("\n") if docstring))
    )
    gap = "\n\n\n" if re.match(r"@|(async )?def |class ", body) else "\n\n"
    return f"{head}{gap}{body}".rstrip("\n")


def format_imports(imports: Iterable[Import]) -> str:
    """The imports, merged and in isort's order: the standard library's, then the others'."""
    statements = sorted(set(_statements(imports)))
    blocks = groupby(statements, key=lambda statement: statement[0])
    return "\n\n".join("\n".join(text for *_, text in block) for _, block in blocks)


def _statements(imports: Iterable[Import]) -> Iterator[tuple[bool, bool, str, tuple[int, str, str], str]]:
    """Import statements, each after the keys that it is sorted by."""
    members: dict[tuple[str, str], set[str]] = {}
    for found in imports:
        # One statement for all names of a module, but one each for those that are renamed.
        members.setdefault(
            (found.module, f"{found.name} as {found.alias}" if found.alias else ""), set()
        ).add(found.name)
    for (module, renamed), names in members.items():
        third_party = module.partition(".")[0] not in sys.stdlib_module_names
        if "" in names:
            text = f"import {module}{renamed}"
            yield third_party, False, module.lower(), (0, renamed, ""), text
        if ordered := sorted(names - {""}, key=_member_order):
            text = f"from {module} import {renamed}" if renamed else _from_import(module, ordered)
            yield third_party, True, module.lower(), _member_order(ordered[0]), text


def _member_order(name: str) -> tuple[int, str, str]:
    """Constants, then classes, then the rest: isort's order by type."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    return kind, name.lower(), name


def _from_import(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= _LINE_LENGTH:
        return line
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")"
