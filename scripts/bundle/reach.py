"""What a plugin ships of its modules, and under which names.

A definition is shipped when the plugin's class reaches it: something that is shipped has its name in it.
All other statements go with their module. So nothing in the pack may rely on being defined alone, such as a
class that a decorator enters into a table.

A name that no other module imports belongs to its module. Where two modules of a plugin have such a name,
the second one's is scoped: `_told` of `durations` becomes `_durations__told`. Constants that are the same in
both, such as `log = logging.getLogger(__name__)`, are shipped once.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bundle.pieces import Piece, pieces_of
from bundle.source import Import, Module, PackagingError, Problem


@dataclass
class Part:
    """What one plugin ships of one module.

    Attributes:
        module: the module.
        pieces: what is shipped, in the module's order.
        new_names: names that are others in the plugin's file.
    """

    module: Module
    pieces: list[Piece]
    new_names: dict[str, str] = field(default_factory=dict)

    @property
    def imports(self) -> Iterator[Import]:
        """What the pieces use from outside the pack."""
        used = {name for piece in self.pieces for name in piece.uses}
        return (taken for taken in self.module.imports if taken.bound in used)

    @property
    def text(self) -> str:
        """The pieces as they stand in the plugin's file."""
        lines: list[str] = []
        gap = 0
        for piece in pieces_of(self.module.body):
            gap = max(gap, piece.gap)
            if piece in self.pieces:
                lines += [""] * gap if lines else []
                lines.append(_renamed(self, piece))
                gap = 0
        return "\n".join(lines)


def reached(modules: Sequence[Module], entry: str) -> tuple[list[Part], set[str]]:
    """What the class `entry` of the last module reaches.

    Returns:
        The parts of the modules that have any, in the order of the modules; and the dotted names that are
        used by other modules than their own.
    """
    known = {module.name: module for module in modules}
    live: dict[str, set[Piece]] = {name: set() for name in known}
    imported: set[str] = set()
    todo = [(modules[-1], entry)]
    while todo:
        module, name = todo.pop()
        for piece in _wanted(module, name, live[module.name]):
            live[module.name].add(piece)
            names = piece.uses | piece.binds
            todo += [(module, name) for name in names & set(module.defined)]
            taken = [found for found in module.pack_imports if found.bound in names and found.module in known]
            imported |= {found.target for found in taken}
            todo += [(known[found.module], found.name) for found in taken]
    parts = (Part(module, _with_headings(module, live[module.name])) for module in modules)
    return [part for part in parts if live[part.module.name]], imported


def _wanted(module: Module, name: str, live: set[Piece]) -> list[Piece]:
    """The pieces that define a name; before the first one of a module, all that is no definition as well."""
    return [
        piece
        for piece in pieces_of(module.body)
        if piece not in live
        and (name in piece.binds or (not live and piece.nodes and not piece.is_definition))
    ]


def _with_headings(module: Module, live: set[Piece]) -> list[Piece]:
    """The pieces, and each comment that stands by itself above some of them, up to the next such comment."""
    kept: list[Piece] = []
    heads = False
    was_comment = False
    for piece in reversed(pieces_of(module.body)):
        is_comment = not piece.nodes
        heads = heads and not (was_comment and not is_comment)
        if piece in live or (is_comment and heads):
            kept.append(piece)
            heads = True
        was_comment = is_comment
    return kept[::-1]


@dataclass
class _Owner:
    """What a name stands for in one module: a definition, or an import from outside the pack.

    Attributes:
        target: the same as a dotted name.
        part: of the module.
        line: in the module.
        pieces: that define it.
        can_move: it can have another name.
    """

    target: str
    part: Part
    line: int
    pieces: list[Piece]
    can_move: bool


def scope_names(parts: Sequence[Part], imported: set[str], entry: str) -> Iterator[Problem]:
    """Leave a name that several modules define to one of them, and scope it in the others.

    Args:
        parts: of one plugin; they are changed.
        imported: dotted names that are used by other modules than their own.
        entry: the plugin's class.

    Returns:
        A problem for each name that two modules cannot do without.
    """
    owners: dict[str, list[_Owner]] = {}
    for part in parts:
        used = set(part.imports)
        for name, target, line in part.module.bound:
            pieces = [piece for piece in part.pieces if name in piece.binds]
            if pieces or any(name == found.bound and target == found.target for found in used):
                can_move = len(pieces) == 1 and pieces[0].is_renamable and target not in imported
                can_move = (
                    can_move and name != entry and all(name not in piece.fixed for piece in part.pieces)
                )
                owners.setdefault(name, []).append(_Owner(target, part, line, pieces, can_move))
    for name, found in owners.items():
        yield from _scope(name, _without_copies(found), set(owners))


def _without_copies(owners: list[_Owner]) -> list[_Owner]:
    """The owners of a name, less those that are a constant like the first one; they are no longer shipped."""
    first, *others = owners
    kept = [first]
    for owner in others:
        if owner.target == first.target:
            continue
        if _is_copy(owner, first):
            owner.part.pieces.remove(owner.pieces[0])
            first.can_move = False
        else:
            kept.append(owner)
    return kept


def _is_copy(owner: _Owner, first: _Owner) -> bool:
    """Whether two constants are written alike, and their names stand for the same."""
    if len(owner.pieces) != 1 or len(first.pieces) != 1 or not owner.pieces[0].is_constant:
        return False
    (new,), (old,) = owner.pieces, first.pieces
    texts = {ast.dump(ast.Module([*piece.nodes], [])) for piece in (new, old)}
    names = new.uses - new.binds
    return len(texts) == 1 and _targets(owner.part.module, names) == _targets(first.part.module, names)


def _targets(module: Module, names: frozenset[str]) -> set[tuple[str, str]]:
    """What names stand for in a module; builtins are left out."""
    bound = {(name, target) for name, target, _ in module.bound if name in names}
    return bound | {(found.bound, found.target) for found in module.pack_imports if found.bound in names}


def _scope(name: str, owners: list[_Owner], taken: set[str]) -> Iterator[Problem]:
    keeper, *others = sorted(
        owners, key=lambda owner: owner.can_move
    )  # stable: the first of those that cannot
    for owner in others:
        new = next((new for new in _scoped(name, owner) if new not in taken), "")
        if not owner.can_move or not new:
            place = f"{keeper.part.module.path}:{keeper.line}"
            message = (
                f"`{name}` is something else in {place}, and both end up in one file: rename one of them"
            )
            yield Problem(owner.part.module.path, owner.line, message)
        else:
            owner.part.new_names[name] = new
            taken.add(new)


def _scoped(name: str, owner: _Owner) -> Iterator[str]:
    """The name with as much of its module's in front as it takes to be the only one."""
    folders = owner.part.module.name.split(".")
    for depth in range(1, len(folders) + 1):
        yield f"_{'_'.join(folders[-depth:])}__{name.lstrip('_')}"


def _renamed(part: Part, piece: Piece) -> str:
    """The piece's text, with the names that it has in the plugin's file.

    Raises:
        PackagingError: a name is not where Python's parser reports it, as in some f-strings before 3.12.
    """
    if part.new_names.keys().isdisjoint(piece.uses | piece.binds):
        return piece.text
    lines = [line.encode() for line in piece.text.split("\n")]
    for number, column, name in sorted(_places(lines), reverse=True):
        if name in part.new_names:
            before, after = lines[number - 1][:column], lines[number - 1][column:]
            if not after.startswith(name.encode()):
                message = (
                    f"cannot rename `{name}` in this file's `{piece.text.strip()[:40]}`: rename it there"
                )
                raise PackagingError([Problem(part.module.path, 1, message)])
            new = part.new_names[name].encode()
            lines[number - 1] = before + new + after.removeprefix(name.encode())
    return b"\n".join(lines).decode()


def _places(lines: list[bytes]) -> Iterator[tuple[int, int, str]]:
    """Line, byte in it and name of each name in the text of a piece, and of what the piece defines."""
    tree = ast.parse(b"\n".join(lines))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.lineno, node.col_offset, node.id
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            head = re.match(rb"(?:async\s+def|def|class)\s+", lines[node.lineno - 1])
            yield node.lineno, head.end() if head else 0, node.name
