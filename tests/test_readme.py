"""READMEs: the code and commands that they print run, and what they name exists.

Names are those of links, functions and claims.
"""

import re
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path

import pytest

from analysis.command_line import parse
from analysis.experiments.registry import EXPERIMENTS, takers
from analysis.experiments.shared.experiment import OPTIONS
from reproduce import COMMANDS

ROOT = Path(__file__).parents[1]
FOLDERS = ("analysis", "figures", "reptile_core", "tests", ".github")
READMES = [
    ROOT / "README.md",
    *(path for name in FOLDERS for path in sorted((ROOT / name).rglob("README.md"))),
]
LINES, WORDS = 160, 1_500  # limits for the first page
TOUR = ROOT / "analysis" / "theory" / "README.md"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def prose_words(text: str) -> list[str]:
    """Return the words outside code blocks, tables, HTML comments and the targets of links."""
    text = re.sub(r"<!--.*?-->", "", without_code(text), flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    lines = [line for line in text.splitlines() if not line.startswith("|")]
    return [word for word in " ".join(lines).split() if re.search(r"\w", word)]


def snippets() -> list[object]:
    found = [
        (path, number, code)
        for path in READMES
        for number, code in enumerate(blocks(path.read_text(), "python"))
    ]
    return [pytest.param(code, id=f"{name_of(path)}-{number}") for path, number, code in found]


def commands() -> list[object]:
    """Return the command lines of this script, without their comments."""
    found = []
    for path in READMES:
        text = path.read_text()
        shell = "\n".join(
            [*blocks(text, "bash"), *re.findall(r"`(python reproduce\.py[^`\n]*)`", text)]
        )
        for line in re.findall(r"(?:^|&& )python reproduce\.py([^#\n|>&]*)", shell, re.MULTILINE):
            found.append(
                pytest.param(line.split(), id=f"{name_of(path)}: {' '.join(line.split())}")
            )
    return found


def slugs(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("code", snippets())
def test_code_runs_as_printed(code):
    exec(compile(code, "README.md", "exec"), {})


def test_the_first_page_shows_a_model_a_claim_and_a_variant():
    found = blocks(READMES[0].read_text(), "python")
    assert [
        len(re.findall(word, "".join(found))) > 0 for word in ("analyse", "judge", "evaluate")
    ] == [True] * 3
    (claim,) = (code for code in found if "judge" in code)
    assert len(claim.strip().splitlines()) <= 15


def test_the_claim_on_the_first_page_is_decided(capsys):
    (code,) = (code for code in blocks(READMES[0].read_text(), "python") if "judge" in code)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("ours supported")


class Parsed(Exception):
    """The end of a command once its arguments are parsed."""


@pytest.mark.parametrize("arguments", commands())
def test_commands_are_understood(arguments, monkeypatch):
    if arguments and arguments[0] in COMMANDS:
        parse_args = ArgumentParser.parse_args

        def parse_alone(parser, words):
            parse_args(parser, words)
            raise Parsed

        monkeypatch.setattr(ArgumentParser, "parse_args", parse_alone)
        with pytest.raises(Parsed):
            import_module(COMMANDS[arguments[0]]).main(arguments[1:])
        return
    asked = parse(arguments)
    assert set(asked.experiments) <= set(EXPERIMENTS)
    given = [option for option in OPTIONS if getattr(asked, option) is not None]
    assert all(set(takers(option)) & set(asked.experiments) for option in given)


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_every_picture_and_every_linked_file_exists(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text())):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        assert not anchor or anchor in slugs(linked), target


def test_the_first_page_stays_one_page():
    text = READMES[0].read_text()
    assert len(text.splitlines()) <= LINES
    assert len(prose_words(text)) <= WORDS


def test_words_are_counted_outside_code_tables_and_comments():
    text = (
        "Two words.\n"
        "<!-- no\n"
        "word -->\n"
        "| not | here |\n"
        "```python\n"
        "nor = here\n"
        "```\n"
        "[one](https://x.org/a) …\n"
    )
    assert prose_words(text) == ["Two", "words.", "[one]"]


def test_the_tour_of_the_theory_names_every_theorem_and_functions_that_exist():
    text = TOUR.read_text()
    theorems = {
        c.id
        for experiment in EXPERIMENTS.values()
        for c in experiment.claims
        if c.kind == "theorem"
    }
    assert sorted(name for name in theorems if f"`{name}`" not in text) == []
    modules = {path.stem for path in TOUR.parent.glob("*.py")}
    named = [
        pair
        for pair in re.findall(r"`(\w+)\.(\w+)`", text)
        if pair[0] in modules and pair[1] != "py"
    ]
    assert len(named) > 20
    assert [
        pair for pair in named if not hasattr(import_module(f"analysis.theory.{pair[0]}"), pair[1])
    ] == []
