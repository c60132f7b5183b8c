"""Check that `_core.pyi` shows the documentation that `help()` shows: an editor reads the stub, and Rust has the text.

With ``--write`` the stub gets the text of the built module.
"""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from typing import TypeAlias

from llm_callback import _core

_Documented: TypeAlias = ast.FunctionDef | ast.ClassDef

STUB = Path(__file__).parents[3] / "python" / "llm_callback" / "_core.pyi"


def documented(tree: ast.Module) -> list[tuple[_Documented, str]]:
    """Return each class, function and method of the stub that is documented in Rust, with that text."""
    found: list[tuple[_Documented, str]] = []
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            continue
        thing = getattr(_core, node.name, None)
        add(found, node, thing)
        if isinstance(node, ast.ClassDef) and thing is not None:
            seen = set()
            for member in node.body:
                # The first of several overloads has the text.
                if isinstance(member, ast.FunctionDef) and member.name not in seen:
                    seen.add(member.name)
                    add(found, member, vars(thing).get(member.name))
    return found


def add(found: list[tuple[_Documented, str]], node: _Documented, thing: object) -> None:
    """Add a node, if it has documentation of its own. That of special methods is CPython's."""
    text = getattr(thing, "__doc__", None)
    if text and not node.name.startswith("__"):
        found.append((node, inspect.cleandoc(text)))


def write(source: str, found: list[tuple[_Documented, str]]) -> str:
    """Return the stub with the text in it."""
    lines = source.split("\n")
    for node, text in sorted(found, key=lambda each: -each[0].lineno):
        indent = " " * (node.col_offset + 4)
        raw = "r" if "\\" in text else ""
        body = [f"{indent}{line}".rstrip() for line in text.split("\n")]
        end = '"""' if "\n" not in text else f'\n{indent}"""'
        doc = f'{indent}{raw}"""' + "\n".join(body).lstrip() + end
        first = node.body[0]
        if ast.get_docstring(node) is not None:
            lines[first.lineno - 1 : first.end_lineno] = [doc]
        elif isinstance(node, ast.ClassDef):
            lines.insert(first_line(first) - 1, doc)
        else:
            # A body of `...` stands behind the colon.
            place = (first.end_lineno or first.lineno) - 1
            lines[place] = lines[place].removesuffix("...").rstrip()
            lines.insert(place + 1, doc)
    return "\n".join(lines)


def first_line(node: ast.stmt) -> int:
    """Return the line where a statement begins, with its decorators."""
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def main() -> int:
    """Compare, or write. Return 1 if something differs."""
    source = STUB.read_text()
    found = documented(ast.parse(source))
    if "--write" in sys.argv:
        STUB.write_text(write(source, found))
        return 0
    differs = [node for node, text in found if ast.get_docstring(node) != text]
    for node in differs:
        print(
            f"{STUB.name}:{node.lineno}: the text of {node.name} differs from help(): run {sys.argv[0]} --write"
        )
    print(f"_core.pyi: {len(found) - len(differs)} of {len(found)} texts are those of help()")
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main())
