"""An edit of a Python file, located by a function and a piece of its code, not by a line.

The rule: an edit is made in exactly one place, or it is refused. What it finds may be written in other
quotes or on other lines than in the file: the syntax trees are compared. The rest of the file keeps its
text. Afterwards the edited text has to have the syntax tree that replacing the nodes gives.
"""

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, TypeAlias


class Refused(Exception):
    """An edit that cannot be made: its place is gone or not unique, or it changes nothing."""


class Edit(NamedTuple):
    """Replace what `find` says by what `replace` says, in the definition `within` of a file.

    `within` is a qualified name, such as `Store.apply` or `outer.inner`; empty, it is the whole module.
    `find` is one expression, or one or more consecutive statements, or `except` clauses. `replace` is
    of the same kind; it may be empty, and an expression that is a statement may become others.
    """

    file: str
    within: str
    find: str
    replace: str


_Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_Part: TypeAlias = ast.expr | ast.stmt | ast.excepthandler

_EXCEPT: Final = re.compile(r"except\b")

#: So often a tree is made again. CPython 3.11 counts how deep it is for all threads together, and
#: raises SystemError when another one is made meanwhile (python/cpython#106905): in another thread, or
#: by a finalizer that shows a traceback.
_AGAIN: Final = 20


class _Place(NamedTuple):
    """Nodes of the tree that may be replaced: those of a list, or the one child in `field`."""

    parent: ast.AST
    field: str
    start: int | None
    nodes: Sequence[_Part]

    def swap(self, new: Sequence[_Part]) -> None:
        if self.start is None:
            setattr(self.parent, self.field, new[0])
        else:
            getattr(self.parent, self.field)[self.start : self.start + len(self.nodes)] = new


def edited(source: str, edit: Edit) -> str:
    """Return `source` with an edit made in it. Raises `Refused` unless it has exactly one place."""
    tree = _parsed(source, edit, "the file")
    find, replace = _parts(edit.find, edit), _parts(edit.replace, edit)
    if not find:
        raise _refused(edit, "it finds nothing")
    if _same(find, replace):
        raise _refused(edit, "it changes nothing")
    match find, replace:
        case [ast.Expr(value=old)], [ast.Expr(value=new)]:
            find, replace = [old], [new]
    places = [place for place in _places(_scope(tree, edit), find) if _same(place.nodes, find)]
    if len(places) != 1:
        raise _refused(edit, f"it has {len(places)} places, not one")
    text = _spliced(source, places[0].nodes, edit.replace)
    places[0].swap(replace)
    try:
        fits = _same([_tree(text)], [tree])
    except SyntaxError:
        fits = False
    if not fits:
        raise _refused(edit, f"what replaces it does not fit: {edit.replace!r}")
    return text


def _scope(tree: ast.Module, edit: Edit) -> ast.AST:
    """Return the definition that an edit is made in."""
    scopes: list[ast.AST] = [tree]
    for name in filter(None, edit.within.split(".")):
        scopes = [one for scope in scopes for one in _definitions(scope) if one.name == name]
    if len(scopes) != 1:
        raise _refused(edit, f"there are {len(scopes)} definitions of that name, not one")
    return scopes[0]


def _definitions(scope: ast.AST) -> Iterator[_Definition]:
    """Yield the functions and classes that a definition has, but not those within them."""
    for child in ast.iter_child_nodes(scope):
        if isinstance(child, _Definition):
            yield child
        else:
            yield from _definitions(child)


def _places(scope: ast.AST, like: Sequence[_Part]) -> Iterator[_Place]:
    """Yield every expression, or every run of as many statements as there are in `like`."""
    for parent in ast.walk(scope):
        for field, value in ast.iter_fields(parent):
            if isinstance(value, ast.expr):
                yield _Place(parent, field, None, [value])
            elif isinstance(value, list) and all(isinstance(one, _Part) for one in value):
                for start in range(len(value) - len(like) + 1):
                    yield _Place(parent, field, start, value[start : start + len(like)])


def _parts(fragment: str, edit: Edit) -> Sequence[_Part]:
    """Parse what an edit finds, or what replaces it."""
    text = _dedented(fragment)
    if _EXCEPT.match(text):
        (statement,) = _parsed(f"try:\n    pass\n{text}", edit, repr(fragment)).body
        assert isinstance(statement, ast.Try | ast.TryStar)
        return statement.handlers
    return _parsed(text, edit, repr(fragment)).body


def _tree(text: str) -> ast.Module:
    """Return the tree of a source. Raises `SyntaxError`."""
    for _ in range(_AGAIN):
        with suppress(SystemError):
            return ast.parse(text)
    return ast.parse(text)


def _parsed(text: str, edit: Edit, what: str) -> ast.Module:
    try:
        return _tree(text)
    except SyntaxError as error:
        raise _refused(edit, f"{what} is no Python: {error}") from error


def _same(some: Sequence[ast.AST], others: Sequence[ast.AST]) -> bool:
    return [ast.dump(one) for one in some] == [ast.dump(one) for one in others]


def _spliced(source: str, nodes: Sequence[_Part], replace: str) -> str:
    """Put the text `replace` where some consecutive nodes stand in a source."""
    data = source.encode()
    lines = data.splitlines(keepends=True)
    # A decorated definition begins at its first decorator, whose "@" is no part of any node.
    decorators = getattr(nodes[0], "decorator_list", [])
    first = min([nodes[0].lineno, *(one.lineno for one in decorators)])
    column = nodes[0].col_offset
    start = sum(map(len, lines[: first - 1])) + column
    assert nodes[-1].end_lineno is not None
    assert nodes[-1].end_col_offset is not None
    end = sum(map(len, lines[: nodes[-1].end_lineno - 1])) + nodes[-1].end_col_offset
    text = _dedented(replace)
    if isinstance(nodes[0], ast.expr):
        return (data[:start] + text.encode() + data[end:]).decode()
    if not text:
        # With nothing else on them, the lines go, too.
        begin, after = start - column, data.find(b"\n", end) + 1
        if not data[begin:start].strip() and after and not data[end:after].strip():
            start, end = begin, after
    return (data[:start] + _indented(text, column).encode() + data[end:]).decode()


def _dedented(fragment: str) -> str:
    return textwrap.dedent(fragment).strip("\n")


def _indented(text: str, column: int) -> str:
    """Indent all lines but the first, and but those that go on with a string."""
    code = f"try:\n    pass\n{text}" if _EXCEPT.match(text) else text
    shift = code.count("\n") - text.count("\n")
    inside = {
        number - shift
        for node in ast.walk(_tree(code))
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno is not None
        for number in range(node.lineno + 1, node.end_lineno + 1)
    }
    lines = text.split("\n")
    margin = " " * column
    return "\n".join(
        line if number == 1 or number in inside or not line else margin + line
        for number, line in enumerate(lines, 1)
    )


def _refused(edit: Edit, problem: str) -> Refused:
    within = edit.within or "the module"
    return Refused(f"{edit.file}, in {within}, the edit of {edit.find!r}: {problem}")
