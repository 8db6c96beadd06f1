"""The language of the code, as CONTRIBUTING asks for it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "reproduce.py"]
for name in ("reptile_core", "analysis", "figures", "tests"):
    FILES += sorted((ROOT / name).rglob("*.py"))
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
DIALECT = re.compile(r"\b(anew|beside|whoever|(?:is|are) told(?! apart)|of then|lies)\b", re.I)


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield every docstring with the place where it stands."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
                yield f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'module')}", text


def test_a_docstring_begins_with_a_line_that_is_a_sentence() -> None:
    found = dict(docstrings())
    assert len(found) > 1_000
    for place, text in found.items():
        first, *rest = text.splitlines()
        assert first[-1] in ".?…", f"{place}: {first}"
        assert not rest or not rest[0], f"{place}: expected a blank line after {first!r}"


def test_docstrings_use_the_words_of_the_field() -> None:
    assert DIALECT.search("The name lies beside it.") and not DIALECT.search("They are told apart.")
    for place, text in docstrings():
        assert not (word := DIALECT.search(text)), f"{place}: {word[0]!r}"


def test_names_of_tests_use_the_words_of_the_field() -> None:
    names = [
        (path.name, node.name)
        for path in FILES
        if path.is_relative_to(ROOT / "tests")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(names) > 1_000
    for file, name in names:
        assert not (word := DIALECT.search(name.replace("_", " "))), f"{file}: {name}: {word[0]!r}"
