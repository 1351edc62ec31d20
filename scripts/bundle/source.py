"""A module of the pack, taken apart; and what is said when it breaks a rule."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SOURCE, PACK = "src", "ollama_pack"  # where this repository has its package, and what it is called

_FILE_TEXT = re.compile(r'(?m)^(?P<name>\w+) = file_text\("(?P<file>[^"]+)"\)$')

_SCOPES = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong with the source: where, and a sentence that says what to do instead."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


class PackagingError(Exception):
    """The source breaks the packager's rules; `problems` holds everything that was found, sorted."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True)
class Import:
    """One name that an import binds: `import module [as alias]` or `from module import name [as alias]`."""

    module: str
    name: str = ""
    alias: str = ""
    line: int = field(default=1, compare=False)

    @property
    def bound(self) -> str:
        return self.alias or self.name or self.module.partition(".")[0]

    @property
    def target(self) -> str:
        """What the bound name stands for, as a dotted path."""
        if self.name:
            return f"{self.module}.{self.name}"
        return self.module if self.alias else self.bound


@dataclass(frozen=True)
class Module:
    """A module of the pack, taken apart.

    Attributes:
        name: its dotted name.
        path: its file, relative to the repository.
        text: the file's text.
        tree: the same, parsed.
        body: the text without the module's docstring and its top-level imports.
        imports: what its top-level imports take from elsewhere.
        pack_imports: what they take from other modules of the pack.
        defined: every other name that its top level binds → the line where it first does.
    """

    name: str
    path: str
    text: str
    tree: ast.Module
    body: str
    imports: tuple[Import, ...]
    pack_imports: tuple[Import, ...]
    defined: Mapping[str, int]

    @property
    def package(self) -> str:
        """The package that it belongs to."""
        return self.name.partition(".")[0]

    @property
    def bound(self) -> Iterator[tuple[str, str, int]]:
        """Each name that this module brings into a generated file, what it stands for, and its line."""
        for found in self.imports:
            yield found.bound, found.target, found.line
        for name, line in self.defined.items():
            yield name, f"{self.name}.{name}", line


def with_files(text: str, path: Path) -> str:
    """The text with the files that it takes in, such as a page's style sheet, as strings.

    `_STYLE = file_text("page/style.css")` at the left margin takes in a file next to the module.

    Args:
        text: the module's.
        path: its file.

    Raises:
        PackagingError: there is no such file, or its text cannot stand in a raw string.
    """

    def string(found: re.Match[str]) -> str:
        file = path.parent / found["file"]
        line = text.count("\n", 0, found.start()) + 1
        try:
            content = file.read_text(encoding="utf-8")
        except OSError as error:
            raise PackagingError(
                [Problem(path.as_posix(), line, f"no file {found['file']}: {error}")]
            ) from error
        if '"""' in content or not content.endswith("\n"):
            message = (
                f"{found['file']} has three quotes in a row, or does not end with a line break: change that"
            )
            raise PackagingError([Problem(path.as_posix(), line, message)])
        return f'{found["name"]} = r"""\n{content}"""'

    return _FILE_TEXT.sub(string, text)


def parse_module(name: str, path: str, text: str) -> Module:
    """Take a module apart.

    Raises:
        PackagingError: it is not valid Python, or something shares a line with an import or the docstring.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise PackagingError([Problem(path, error.lineno or 1, f"not valid Python: {error.msg}")]) from error
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    docstring = docstring_node(tree)
    moved: list[ast.stmt] = [*imports, docstring] if docstring else [*imports]
    rest = [node for node in tree.body if node not in moved]
    gone = {line for node in moved for line in _lines(node)}
    if shared := [node for node in rest if not gone.isdisjoint(_lines(node))]:
        message = "shares its line with an import or the docstring, which moves: give it a line of its own"
        raise PackagingError(Problem(path, node.lineno, message) for node in shared)
    found = [taken for node in imports for taken in _imported(node)]
    package = name.partition(".")[0]
    return Module(
        name=name,
        path=path,
        text=text,
        tree=tree,
        body=_without(text.split("\n"), gone),
        imports=tuple(taken for taken in found if not is_in(package, taken.module)),
        pack_imports=tuple(taken for taken in found if is_in(package, taken.module)),
        defined=_definitions(rest),
    )


def is_in(package: str, module: str) -> bool:
    """Whether a dotted name is the package's or that of a module in it."""
    return module.partition(".")[0] == package


def docstring_node(tree: ast.Module) -> ast.Expr | None:
    """The statement that is the module's docstring."""
    match tree.body:
        case [ast.Expr(value=ast.Constant(value=str())) as first, *_]:
            return first
    return None


def _lines(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[Import]:
    for item in node.names:
        if isinstance(node, ast.Import):
            yield Import(item.name, "", item.asname or "", node.lineno)
        elif node.module and not node.level:  # a relative import is refused by the rules
            yield Import(node.module, item.name, item.asname or "", node.lineno)


def _without(lines: list[str], gone: set[int]) -> str:
    """The lines whose numbers are not in `gone`, and one empty line at most where a gap was."""
    kept: list[str] = []
    in_gap = True
    for number, line in enumerate(lines, start=1):
        if number in gone:
            in_gap = True
        elif line or not in_gap or (kept and kept[-1]):
            in_gap = in_gap and not line
            kept.append(line)
    return "\n".join(kept).strip("\n")


def _definitions(statements: Sequence[ast.AST]) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in own_scope(statements):
        if name := stored_name(node):
            found.setdefault(name, getattr(node, "lineno", 1))
    for node in (inner for statement in statements for inner in ast.walk(statement)):
        if isinstance(node, ast.Global):
            found = dict.fromkeys(node.names, node.lineno) | found
    return found


def own_scope(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes whose names are the module's own, also those inside `if`, `try`, `for` and the like."""
    for node in nodes:
        yield node
        if not isinstance(node, _SCOPES):
            yield from own_scope(ast.iter_child_nodes(node))


def stored_name(node: ast.AST) -> str | None:
    """The name that a node of `own_scope` gives a value."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.MatchAs(name=name) | ast.MatchStar(name=name):
            return name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.ExceptHandler(name=name):
            return name
        case ast.alias(name=name, asname=alias):
            return alias or name.partition(".")[0]
    return None
