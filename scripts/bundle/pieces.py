"""A module's text in pieces, each with the names that it defines and uses."""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby

from bundle.source import own_scope, stored_name

# Statements that do nothing but define names: they are needed only where one of the names is.
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.AugAssign)
# Expressions that give the same value, which nobody can change, however often they are evaluated.
_CONSTANT_CALL = re.compile(r"logging\.getLogger\(__name__\)|TypeVar\(.*\)")
_CONSTANT_PARTS = (
    *(ast.Name, ast.Attribute, ast.Constant, ast.Subscript, ast.Tuple, ast.BinOp, ast.UnaryOp),
    *(ast.expr_context, ast.operator, ast.unaryop),
)


@dataclass(frozen=True, eq=False)
class Piece:
    """Lines that stay together: a top-level statement with the comments above it, or a comment by itself.

    Attributes:
        text: the lines.
        line: number of the first line, counted from 0 in the module's body.
        gap: number of empty lines before it.
        nodes: the statement; several that share a line; none in a comment by itself.
    """

    text: str
    line: int
    gap: int
    nodes: tuple[ast.stmt, ...] = ()

    @cached_property
    def binds(self) -> frozenset[str]:
        """The names of the module that it gives a value, or that a function in it does."""
        inner = (node for statement in self.nodes for node in ast.walk(statement))
        set_inside = {name for node in inner if isinstance(node, ast.Global) for name in node.names}
        return frozenset(name for node in own_scope(self.nodes) if (name := stored_name(node))) | set_inside

    @cached_property
    def uses(self) -> frozenset[str]:
        """All names in it, also those that functions may bind again."""
        return frozenset(name for node in self.nodes for name in _names(node))

    @cached_property
    def fixed(self) -> frozenset[str]:
        """Names that cannot be renamed in it: an inner scope binds them again, or they are in a string."""
        everything = {node for statement in self.nodes for node in ast.walk(statement)}
        found: set[str] = {name for node in self.nodes for name in _quoted(node)}
        for node in everything - set(own_scope(self.nodes)):
            if isinstance(node, ast.Global | ast.Nonlocal):
                found.update(node.names)
            elif name := node.arg if isinstance(node, ast.arg) else stored_name(node):
                found.add(name)
        return frozenset(found)

    @property
    def is_definition(self) -> bool:
        """Whether it does nothing but define names."""
        return bool(self.binds) and all(isinstance(node, _DEFINITIONS) for node in self.nodes)

    @property
    def is_renamable(self) -> bool:
        """Whether it defines one name, and is a `def`, a `class` or a plain assignment."""
        match self.nodes:
            case (
                ast.FunctionDef()
                | ast.AsyncFunctionDef()
                | ast.ClassDef()
                | ast.Assign(targets=[ast.Name()])
                | ast.AnnAssign(target=ast.Name()),
            ):
                return len(self.binds) == 1
        return False

    @property
    def is_constant(self) -> bool:
        """Whether two statements with this text define the same, such as `log = logging.getLogger(…)`."""
        match self.nodes:
            case (ast.Assign(targets=[ast.Name()], value=value),):
                parts = ast.walk(value)
                return bool(_CONSTANT_CALL.fullmatch(ast.unparse(value))) or all(
                    isinstance(part, _CONSTANT_PARTS) for part in parts
                )
        return False


def _names(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        match inner:
            case ast.Name(id=name):
                yield name
            case ast.Global(names=names):
                yield from names
    yield from _quoted(node)


def _quoted(node: ast.AST) -> Iterator[str]:
    """The names in types that are written as strings."""
    for inner in ast.walk(node):
        match inner:
            case ast.arg(annotation=typed) | ast.AnnAssign(annotation=typed) if typed:
                yield from _words(typed)
            case ast.FunctionDef(returns=typed) | ast.AsyncFunctionDef(returns=typed) if typed:
                yield from _words(typed)
            case ast.Call(func=ast.Name(id="cast" | "TypeVar")):
                yield from _words(inner)


def _words(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield from re.findall(r"[^\W\d]\w*", inner.value)


@cache
def pieces_of(body: str) -> tuple[Piece, ...]:
    """A module's body in pieces: with the empty lines between them they give back the body."""
    lines = body.split("\n")
    spans = list(_spans(lines, ast.parse(body).body))
    ends = [0, *(end for _, end, _ in spans)]
    return tuple(
        Piece("\n".join(lines[first:end]), first, first - before, nodes)
        for before, (first, end, nodes) in zip(ends, spans, strict=False)
    )


_Span = tuple[int, int, tuple[ast.stmt, ...]]  # the first line, the line after the last, the statements


def _spans(lines: list[str], statements: list[ast.stmt]) -> Iterator[_Span]:
    done = 0
    for nodes in _by_lines(statements):
        decorators = [item.lineno for item in getattr(nodes[0], "decorator_list", ())]
        first, end = min(nodes[0].lineno, *decorators, nodes[0].lineno) - 1, nodes[-1].end_lineno or 0
        while end < len(lines) and re.match(r"\s+#", lines[end]):
            end += 1  # a comment at the end of an indented block
        comments = list(_blocks(lines, done, first))
        if comments and comments[-1][1] == first:
            first = comments.pop()[0]
        yield from ((*block, ()) for block in comments)
        yield first, end, nodes
        done = end
    yield from ((*block, ()) for block in _blocks(lines, done, len(lines)))


def _blocks(lines: list[str], first: int, end: int) -> Iterator[tuple[int, int]]:
    """Where lines that are not empty stand together."""
    for is_text, numbers in groupby(range(first, end), key=lambda number: bool(lines[number])):
        block = list(numbers)
        if is_text:
            yield block[0], block[-1] + 1


def _by_lines(statements: Iterable[ast.stmt]) -> Iterator[tuple[ast.stmt, ...]]:
    """Statements, those together that share a line."""
    together: list[ast.stmt] = []
    for node in statements:
        if together and node.lineno > (together[-1].end_lineno or 0):
            yield tuple(together)
            together = []
        together.append(node)
    if together:
        yield tuple(together)
