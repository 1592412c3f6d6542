"""Prints the size and docstring figures of a source tree, and fails where one is out of bounds.

Usage: ``python tools/figures.py [SOURCE [TESTS]]``, by default ``src/tether tests``. Only the
standard library's ``ast`` is used, and nothing is imported from the tree.
"""

from __future__ import annotations

import ast
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Figures", "Function", "main", "measure", "problems", "report"]

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
SHORT_FUNCTION_LINES = 45

_FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_NOT_CODE = frozenset(
    {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
)


@dataclass(frozen=True)
class Function:
    """One function or method.

    Attributes
    ----------
    where : str
        ``path:line name``.
    n_lines : int
        From ``def`` to the last line, docstring included.
    annotated : bool
        Every parameter but ``self`` or ``cls`` and the return value have a type.
    """

    where: str
    n_lines: int
    annotated: bool


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes
    ----------
    files : dict of str to int
        Lines of each source file, blank lines, comments and docstrings included.
    n_code, n_test_code : int
        Lines of code of the sources and of the tests: those without the blank lines, comments
        and docstrings.
    functions : list of Function
        All of them, nested and private ones too.
    n_public : int
        Public modules, classes, functions and methods.
    undocumented : list of str
        Those of them that have no docstring, as ``path:line name``.
    """

    files: dict[str, int]
    n_code: int
    n_test_code: int
    functions: list[Function]
    n_public: int
    undocumented: list[str]


def measure(source: Path, tests: Path) -> Figures:
    """Measure every Python file under two folders.

    Parameters
    ----------
    source : Path
        Folder of the package.
    tests : Path
        Folder of its tests; only their lines of code are counted.

    Returns
    -------
    Figures
    """
    files: dict[str, int] = {}
    functions: list[Function] = []
    public: list[tuple[str, bool]] = []
    n_code = 0
    for path in sorted(source.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text, filename=str(path))
        files[str(path)] = len(text.splitlines())
        n_code += _lines_of_code(path, tree)
        functions += _functions(path, tree)
        # An empty file (py.typed aside, an empty `__init__.py`) has nothing to document.
        if not _is_private(path.stem) and tree.body:
            public.append((f"{path}:1 module", ast.get_docstring(tree) is not None))
            public += _public(path, tree)
    n_test_code = sum(
        _lines_of_code(path, ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted(tests.rglob("*.py"))
    )
    undocumented = [where for where, documented in public if not documented]
    return Figures(files, n_code, n_test_code, functions, len(public), undocumented)


def problems(figures: Figures) -> list[str]:
    """Say what is out of bounds, one line for each; an empty list is a pass.

    Parameters
    ----------
    figures : Figures

    Returns
    -------
    list of str
    """
    found = [
        f"{path} has {n_lines} lines, at most {MAX_FILE_LINES} are allowed"
        for path, n_lines in figures.files.items()
        if n_lines > MAX_FILE_LINES
    ]
    found += [
        f"{each.where} has {each.n_lines} lines, at most {MAX_FUNCTION_LINES} are allowed"
        for each in figures.functions
        if each.n_lines > MAX_FUNCTION_LINES
    ]
    found += [
        f"{each.where} lacks a type annotation" for each in figures.functions if not each.annotated
    ]
    found += [f"{where} lacks a docstring" for where in figures.undocumented]
    if not figures.files:
        found.append("no Python file was found")
    return found


def report(figures: Figures) -> str:
    """Lay the figures out as a table.

    Parameters
    ----------
    figures : Figures

    Returns
    -------
    str
        One line for each figure.
    """
    longest = max(figures.files, key=lambda path: figures.files[path], default="none")
    n_functions = len(figures.functions)
    n_short = sum(each.n_lines <= SHORT_FUNCTION_LINES for each in figures.functions)
    n_long = sum(each.n_lines > MAX_FUNCTION_LINES for each in figures.functions)
    n_annotated = sum(each.annotated for each in figures.functions)
    n_documented = figures.n_public - len(figures.undocumented)
    rows = {
        "files": f"{len(figures.files)}",
        "lines": f"{sum(figures.files.values()):,}",
        "lines of code": f"{figures.n_code:,} (without blank lines, comments, docstrings)",
        "longest file": f"{figures.files.get(longest, 0)} lines, {longest}",
        "functions": f"{n_functions:,}",
        f"functions > {MAX_FUNCTION_LINES} lines": f"{n_long}",
        f"functions <= {SHORT_FUNCTION_LINES} lines": _percent(n_short, n_functions),
        "annotated": _percent(n_annotated, n_functions),
        "public docstrings": _percent(n_documented, figures.n_public),
        "test/source ratio": f"{figures.n_test_code / max(figures.n_code, 1):.2f} (lines of code)",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def main(arguments: list[str]) -> int:
    """Print the figures and what is out of bounds.

    Parameters
    ----------
    arguments : list of str
        Folder of the sources and folder of the tests, both optional.

    Returns
    -------
    int
        Exit code: 1 when something is out of bounds.
    """
    source, tests = [*arguments, *["src/tether", "tests"][len(arguments) :]]
    figures = measure(Path(source), Path(tests))
    found = problems(figures)
    print(report(figures))
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    return int(bool(found))


def _percent(part: int, whole: int) -> str:
    # Rounded down, so that 100.0 % means all of them.
    return f"{(1000 * part // whole) / 10 if whole else 100.0:.1f} % ({part:,} of {whole:,})"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def _is_magic(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _lines_of_code(path: Path, tree: ast.Module) -> int:
    lines: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in _NOT_CODE:
                lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | _FunctionNode) and ast.get_docstring(node):
            text = node.body[0]
            lines -= set(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return len(lines)


def _functions(path: Path, tree: ast.Module) -> list[Function]:
    methods = {
        child: not _is_decorated(child, "staticmethod")
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for child in node.body
        if isinstance(child, _FunctionNode)
    }
    return [
        Function(
            where=f"{path}:{node.lineno} {node.name}",
            n_lines=(node.end_lineno or node.lineno) - node.lineno + 1,
            annotated=_is_annotated(node, bound=methods.get(node, False)),
        )
        for node in ast.walk(tree)
        if isinstance(node, _FunctionNode)
    ]


def _is_annotated(node: _FunctionNode, *, bound: bool) -> bool:
    given = node.args
    parameters = [*given.posonlyargs, *given.args][int(bound) :] + given.kwonlyargs
    parameters += [each for each in (given.vararg, given.kwarg) if each is not None]
    return node.returns is not None and all(each.annotation is not None for each in parameters)


def _public(path: Path, parent: ast.Module | ast.ClassDef) -> list[tuple[str, bool]]:
    """Public classes, functions and methods, and whether each has a docstring.

    Magic methods are left out, since the language says what they do (``__init__`` is described
    by its class), and so are the variants of an overload.
    """
    found: list[tuple[str, bool]] = []
    for node in parent.body:
        if not isinstance(node, ast.ClassDef | _FunctionNode):
            continue
        if _is_private(node.name) or _is_magic(node.name) or _is_decorated(node, "overload"):
            continue
        documented = ast.get_docstring(node) is not None
        found.append((f"{path}:{node.lineno} {node.name}", documented))
        if isinstance(node, ast.ClassDef):
            found += _public(path, node)
    return found


def _is_decorated(node: ast.ClassDef | _FunctionNode, name: str) -> bool:
    return any(
        (isinstance(each, ast.Name) and each.id == name)
        or (isinstance(each, ast.Attribute) and each.attr == name)
        for each in node.decorator_list
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
