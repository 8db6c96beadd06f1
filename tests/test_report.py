"""The report from a made-up folder: it says what the folder holds.

It comes in three languages, and nothing in the folder can break them.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reproduce
from analysis.command_line import parse
from analysis.experiments.registry import EXPERIMENTS
from analysis.results import ledger, wording
from analysis.results.claims import Claim, Control
from analysis.results.verdict import REFUTED, SUPPORTED, UNDECIDED, Verdict
from figures.report import main, provenance
from figures.report.gather import gather
from figures.report.render import (
    ATTRIBUTES,
    TAGS,
    band,
    interval,
    latex_text,
    markdown_text,
    math,
    number,
    plain,
    source,
)
from tests.helpers.folder import (
    AMENDED,
    CIFAR_FS,
    CLAIMS,
    CLAIMS_RUN,
    EXPERIMENTAL,
    FINDING,
    GLYPHS,
    PILOT,
    REFUTES,
    SHOWN_ONLY,
    THEOREM,
    VERDICTS,
    WIDE,
    case,
    draw,
    exact,
    verdicts,
    write,
)

matplotlib.use("Agg")

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)> "
    r'"quoted" \input{/etc/passwd} } % & _ # | ` $x'
)
PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co")))


class Page(HTMLParser):
    """A parsed page: start tags with their attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    out = write(tmp_path_factory.mktemp("results"))
    draw(out)
    return out


@pytest.fixture
def folder(original, tmp_path):
    """Return a copy of the folder that a test may change."""
    shutil.copytree(original, tmp_path / "out")
    return tmp_path / "out"


def _written(folder):
    assert main(["--out", str(folder)]) == 0
    return [(folder / name).read_text() for name in ("report.html", "report.md", "tables.tex")]


@pytest.fixture(scope="module")
def texts(original):
    return _written(original)


@pytest.fixture(scope="module")
def page(texts):
    return Page(texts[0])


def test_every_claim_is_there_with_its_verdict(texts, page):
    articles = {a["id"]: a["class"] for a in page.all("article")}
    assert list(articles) == [claim.id for claim in CLAIMS_RUN]
    assert Counter(words.removeprefix("claim is-") for words in articles.values()) == VERDICTS
    text = " ".join(" ".join(page.words).split())
    for verdict, count in VERDICTS.items():
        assert re.search(rf"\b{count} +{verdict}", text)
    for claim in CLAIMS_RUN:
        assert f"### {claim.id}\n" in texts[1]
        assert latex_text(claim.id) + " &" in texts[2]


def test_claims_of_experiments_that_were_not_run_are_named_in_a_line_each(texts, page):
    rest = [claim.id for claim in CLAIMS if claim not in CLAIMS_RUN]
    said = f"{len(rest)} more are of experiments that were not run here"
    assert said in " ".join(" ".join(page.words).split())
    assert said in re.sub(r"[\[\]]|\(#[a-z-]+\)", "", texts[1])
    html = texts[0][texts[0].index('<section id="not-run"') :]
    markdown = texts[1][texts[1].index("\n## Not run here\n") :]
    for claim in rest:
        assert f"<code>{claim}</code>" in html and f"`{claim}`" in markdown
        assert f"### {claim}\n" not in texts[1]
    assert "\n| sgd | " in markdown


def _article(texts, claim):
    """Return the words of a claim's card, and its part of the Markdown."""
    html = texts[0][texts[0].index(f'<article id="{claim}"') :]
    words = " ".join(" ".join(Page(html[: html.index("</article>")]).words).split()).replace(
        " ,", ","
    )
    markdown = texts[1][texts[1].index(f"\n### {claim}\n") + 1 :]
    return words, markdown.partition("\n### ")[0].replace("\\", "")


def test_every_case_has_its_own_interval_and_place(texts):
    card, markdown = _article(texts, REFUTES)
    assert (
        "5-way: 0.9876 [0.9866, 0.9886], inside" in card
        and "20-way: −0.1 [−0.12, −0.08], outside" in card
    )
    assert "- 5-way: **0.9876 [0.9866, 0.9886]**, inside\n" in markdown
    row = (
        "20-way check −0.1 [−0.12, −0.08] outside 5 seeds of epoch 1 600 × 1 0.016 0.004 CIFAR-FS "
        "· profile: quick"
    )
    assert row in card
    assert row.split(" check ")[1].split(" outside ")[0] in markdown[markdown.index("Every case") :]
    assert re.search(
        r"\[0\.9866, 0\.9886\].* \|\n\|  \|  \| 20-way \| −0\.1 ", texts[1].replace("\\", "")
    )
    assert " & 20-way & $-$0.1 {[}$-$0.12, $-$0.08{]}, outside & " in texts[2]
    for text in texts:
        # Intervals are not joined over cases.
        assert "mean over seeds with its 95" in text and "−0.12 … 0.9886" not in text


def test_of_many_cases_the_worst_are_named_and_all_in_the_table(texts):
    card, markdown = _article(texts, THEOREM)
    assert (
        "i = 2: 0.001, inside" in card
        and "and 4 more inside" in card
        and "and 4 more inside" in markdown
    )
    assert card.count("k = 7") == 1 and markdown.count("k = 7") == 1  # in the table
    assert "| i = 2, and 7 more inside | 0.001 | inside |" in texts[1]
    assert "i = 2, and 7 more inside & 0.001, inside &" in texts[2]
    assert "and 2 more undecided" in _article(texts, WIDE)[0]


def test_undecided_says_why_and_what_would_decide(texts, page):
    assert (
        "undecided: the intervals are too wide; 4 more seeds, about 3 minutes"
        in _article(texts, WIDE)[0]
    )
    assert "undecided: not measured" in " ".join(page.words)
    for text in _article(texts, SHOWN_ONLY):
        assert (
            f"judged from the {EXPERIMENTAL[3].least} profile on" in text and "Only shown" in text
        )
        assert "2 [1, 3]" in text
    assert "verdict unmeasured" in texts[0] and "4 more seeds, about 3 minutes" in texts[2]


def test_the_criterion_says_its_seeds_its_control_and_what_was_changed(texts):
    for text in _article(texts, REFUTES):
        assert re.search(f"Changed after a look:? {re.escape(AMENDED)}", text)
        assert re.search(r"Judged by:? 5 seeds of epoch 1 \(1000–1004\), at look 1", text)
        assert wording.control(EXPERIMENTAL[0])[2:] in text and "as it must" in text
    for text in _article(texts, THEOREM):
        assert "Changed after a look" not in text and "Judged by" not in text
        assert "wrong formula, which must lie outside the band" in text
        assert "i = 2: −2, outside" in text.replace("*", "")
        assert "and 1 more" in text and "i = 6: " not in text  # named: the furthest from passing
    assert "passed, so this check can support nothing" in _article(texts, PILOT)[0]
    assert "neither failed nor passed" in _article(texts, WIDE)[1]


def test_data_are_named_by_case_where_cases_differ(texts):
    card, markdown = _article(texts, REFUTES)
    assert "Data CIFAR-FS · profile: quick (20-way)" in card and "quick (5-way)" in card
    assert "- Data: CIFAR-FS · profile: quick (20-way)\n" in markdown
    for text in _article(texts, WIDE):
        assert text.count("Omniglot, 1,623 characters") == 1 and "quick (k = 1" not in text
    assert "Data none yet" in _article(texts, CLAIMS_RUN[-1].id)[0]


def test_a_command_measures_a_claim_again(texts):
    name = next(
        name for name, experiment in EXPERIMENTS.items() if EXPERIMENTAL[0] in experiment.claims
    )
    assert f"Run again: `python reproduce.py {name} --profile quick`" in _article(texts, REFUTES)[1]


def test_nothing_is_asked_of_a_network(texts, page):
    resources = [
        a.get("src") or a.get("href")
        for a in page.all("img", "link", "script", "iframe", "use", "source")
    ]
    assert resources and all(address.startswith(("data:", "#")) for address in resources)
    assert not re.search(r"@import|url\(", texts[0])
    assert not page.all("script")
    links = {a["href"] for a in page.all("a") if not a["href"].startswith("#")}
    assert links == {"https://arxiv.org/abs/1803.02999"}


def test_the_page_is_sound(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a", "use") if a["href"].startswith("#")} <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    assert {a["alt"] for a in page.all("img")} == {"It rises from 1 to 2 with g_bar_1"}
    assert len(page.all("caption")) == len(page.all("table")) > 0
    assert all("scope" in a for a in page.all("th"))


def test_figure_and_table_stand_with_their_experiment(original):
    section = next(section for section in gather(original).sections if section.name == "ablation")
    (picture,) = section.pictures
    assert (picture.finding, picture.caption.split(" Data:")[0]) == (
        FINDING,
        "A caption with $\\alpha$ = 0.1.",
    )
    rows = ("g1", "60.0", "50.0", "70.0", 3), ("g1+g2", "90.0", "80.0", "100.0", 3)
    assert section.tables[0].rows == rows  # in %


def test_a_table_names_its_own_data_and_no_other(folder):
    """A table names its own data and no other.

    The table is on CIFAR-FS, in a section whose claims were measured on Omniglot first.
    """
    few_shot = EXPERIMENTS["few_shot"].claims[0].id
    found = [
        replace(verdict, cases=(case("a", 1, 0, 2), case("b", 1, 0, 2, data=CIFAR_FS)), why="pilot")
        if verdict.claim.id == few_shot
        else verdict
        for verdict in verdicts()
    ]
    ledger.write(found, folder)
    section = next(section for section in gather(folder).sections if section.name == "few_shot")
    # The other data are not named.
    assert [table.data for table in section.tables] == [("CIFAR-FS · profile: quick",)]
    caption = next(
        line for line in _written(folder)[2].splitlines() if r"\caption{Accuracy in \% on" in line
    )
    assert "CIFAR-FS" in caption and "Omniglot" not in caption


def test_every_claim_says_what_the_paper_says_in_formulas_that_render():
    marks = {"B": "The authors' post: “", "P": "Section ", "N": "Beyond the paper: "}
    for claim in CLAIMS:
        assert "$" not in math(claim.quotation), claim.id
        assert any(marks[code[0]] in claim.quotation for code in claim.sources), claim.id


def test_made_up_data_are_named_above_all(tmp_path):
    html, markdown, _ = _written(write(tmp_path, data=GLYPHS))
    for text in (html[: html.index("<main")], markdown[: markdown.index("##")]):
        assert "says nothing about the paper" in text and "NOT OMNIGLOT" in text
    assert re.search(r"`python reproduce.py \w+ --profile quick --dataset glyphs`", markdown)


def test_a_folder_with_the_ledger_alone(folder):
    for path in (folder / "tables", folder / "figures"):
        shutil.rmtree(path)
    (folder / "manifest.json").unlink()
    ledger.write([Verdict(claim, UNDECIDED) for claim in CLAIMS], folder)
    html, markdown, _ = _written(folder)
    assert "Nothing has been measured yet" in html and "Nothing has been measured yet" in markdown
    assert all(f"`{claim.id}`" in markdown for claim in CLAIMS)


def test_run_again_takes_the_options_that_the_experiment_was_run_with(folder):
    path = folder / "manifest.json"
    options = {
        "split": "authors",
        "iterations": 400,
        "epoch": 8,
        "seeds": {"ablation": 16, "sgd": 24},
        "cells": ["cifar-fs"],
        "tail_shots": None,
        "variants": ["a b=0,1"],
    }
    last = {"options": options, "experiments": {"ablation": {}}}
    earlier = {"few_shot": {"options": options, "experiments": {"few_shot": {}}}}
    found = provenance.options(last | {"earlier": earlier}, EXPERIMENTS["few_shot"])
    shared = ["--epoch", "8", "--split", "authors"]
    assert found == [*shared, "--iterations", "400", "--cells", "cifar-fs"]
    assert provenance.options(last | {"earlier": earlier}, EXPERIMENTS["outer"]) == []
    of_sgd = {"options": options, "experiments": {"sgd": {}}}
    assert provenance.options(of_sgd, EXPERIMENTS["sgd"]) == ["--seeds", "24", "--epoch", "8"]
    path.write_text(json.dumps(json.loads(path.read_text()) | last))
    claim = EXPERIMENTS["ablation"].claims[0].id
    (command,) = re.findall(
        r"Run again: `python reproduce.py (.*)`", _article(_written(folder), claim)[1]
    )
    asked = parse(shlex.split(command))
    assert (asked.seeds, asked.epoch, asked.split, asked.iterations) == (16, 8, "authors", 400)
    assert asked.experiments == ["ablation"] and [v.name for v in asked.variants] == ["a b"]


def test_an_undecided_claim_names_the_command_that_would_decide_it(folder):
    """The command adds seeds for that claim alone where it can, or else for the experiment."""
    sections = gather(folder).sections
    judged = {one.claim.id: one for section in sections for one in section.judged}
    html, markdown, _ = _written(folder)
    assert [id for id, one in judged.items() if one.to_decide is not None] == [WIDE]
    assert markdown.count("To decide it: ") == html.count("To decide it") == 1
    assert f"- To decide it: `{judged[WIDE].to_decide}`" in _article([html, markdown], WIDE)[1]
    asked = parse(shlex.split(judged[WIDE].to_decide)[2:])
    verdict = judged[WIDE].verdict
    seeds = min(len(case.seeds) for case in verdict.cases) + verdict.plan.seeds
    assert WIDE in EXPERIMENTS[asked.experiments[0]].compares
    assert asked.seeds_for == [(WIDE, seeds)] and asked.seeds is None


def test_a_commands_own_seeds_give_way_to_those_that_would_decide():
    seeds = {"seeds": {"outer": 11}, "seeds_for": {"meta-adam": 12, "faster-than-maml": 13}}
    of_outer = {"options": seeds, "experiments": {"outer": {}}}
    outer = EXPERIMENTS["outer"]
    words = ["--seeds", "11", "--seeds-for", "meta-adam=12", "--seeds-for", "faster-than-maml="]
    assert provenance.options(of_outer, outer) == [*words[:-1], f"{words[-1]}13"]
    found = provenance.options(of_outer, outer, {"faster-than-maml": 31})
    assert found == [*words[:-1], f"{words[-1]}31"]
    assert provenance.options(None, EXPERIMENTS["sine"], {"sine": 9}) == ["--seeds", "9"]


def test_an_interrupted_run_is_partial(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["finished"], manifest["wall_seconds"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    html, markdown, _ = _written(folder)
    assert "Partial results: the last run is interrupted" in html and "Partial results" in markdown


def _cut(path, share=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _edit(path, change):
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def _first_case(rows):
    return next(row["cases"][0] for row in rows if row["cases"])


def _replace(path, old, new):
    path.write_text(path.read_text().replace(old, new))


BROKEN = {
    "manifest cut": ("manifest.json", _cut),
    "manifest empty": ("manifest.json", lambda path: path.write_bytes(b"")),
    "manifest binary": ("manifest.json", lambda path: path.write_bytes(b"\xff\x00")),
    "manifest a list": ("manifest.json", lambda path: path.write_text("[]")),
    "manifest without status": ("manifest.json", lambda path: path.write_text("{}")),
    "manifest without machine": (
        "manifest.json",
        lambda path: _edit(path, lambda rows: rows.pop("machine")),
    ),
    "manifest with odd commit": (
        "manifest.json",
        lambda path: _edit(path, lambda rows: rows.update(commit="x")),
    ),
    "ledger gone": ("claims.json", lambda path: path.unlink()),
    "ledger cut": ("claims.json", _cut),
    "ledger a number": ("claims.json", lambda path: path.write_text("3")),
    "ledger of other things": ("claims.json", lambda path: path.write_text("[1, {}]")),
    "a claim missing": ("claims.json", lambda path: _edit(path, lambda rows: rows.pop())),
    "a claim unknown": (
        "claims.json",
        lambda path: _edit(path, lambda rows: rows[0].update(id="x")),
    ),
    "no verdict": ("claims.json", lambda path: _edit(path, lambda rows: rows[0].pop("verdict"))),
    "odd verdict": (
        "claims.json",
        lambda path: _edit(path, lambda rows: rows[0].update(verdict="true")),
    ),
    "verdict a number": (
        "claims.json",
        lambda path: _edit(path, lambda rows: rows[0].update(verdict=3)),
    ),
    "statement a number": (
        "claims.json",
        lambda path: _edit(path, lambda rows: rows[0].update(statement=3)),
    ),
    "odd reason": ("claims.json", lambda path: _edit(path, lambda rows: rows[0].update(why="so"))),
    "odd kind": (
        "claims.json",
        lambda path: _edit(path, lambda rows: rows[0].update(kind="guess")),
    ),
    "odd control": (
        "claims.json",
        lambda path: _edit(path, lambda rows: rows[0]["control"].update(kind="x")),
    ),
    "odd outcome": (
        "claims.json",
        lambda path: _edit(path, lambda rows: rows[0]["control"].update(outcome="x")),
    ),
    "odd seeds": (
        "claims.json",
        lambda path: _edit(path, lambda rows: _first_case(rows).update(seeds=["x"])),
    ),
    "a case without a mean": (
        "claims.json",
        lambda path: _edit(path, lambda rows: _first_case(rows).pop("mean")),
    ),
    "no band": ("claims.json", lambda path: _edit(path, lambda rows: rows[0].update(band=None))),
    "shown table binary": (
        "tables/few_shot_summary.csv",
        lambda path: path.write_bytes(b"\xff\x00\n"),
    ),
    "shown table cut": ("tables/ablation_summary.csv", _cut),
    "shown table of other columns": (
        "tables/ablation_summary.csv",
        lambda path: path.write_text("a,b\n1,2\n"),
    ),
    "shown table of words": (
        "tables/few_shot_summary.csv",
        lambda path: _replace(path, "60.1", "sixty"),
    ),
    "shown table twice": (
        "tables/few_shot_summary.csv",
        lambda path: path.write_text(path.read_text() * 2),
    ),
    "figure cut": ("figures/ablation.png", _cut),
    "figure no figure": ("figures/ablation.png", lambda path: path.write_text("nonsense")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named_in_a_line(case, folder, capsys):
    name, damage = BROKEN[case]
    (folder / "report.html").write_text("as it was")
    damage(folder / name)
    assert main(["--out", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("reproduce.py: error: ") and error.count("\n") == 1
    assert str(folder / name) in error and "expected" in error and "found" in error
    assert (folder / "report.html").read_text() == "as it was"


def test_debug_is_an_option_of_every_command(tmp_path, capsys):
    for command in ("report", "publish"):
        where = [str(tmp_path)] if command == "publish" else ["--out", str(tmp_path)]
        assert reproduce.main([command, *where, "--debug"]) == 1
        assert "unrecognized" not in capsys.readouterr().err


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "nowhere")]) == 1
    assert "expected the ledger of a run, found none" in capsys.readouterr().err


def _hostile(folder):
    for file in ("claims.json", "manifest.json"):
        text = (folder / file).read_text()
        for words in ("AvgGrad", "FOMAML", "quite ineffective", "A & B", "accuracy after training"):
            text = text.replace(words, json.dumps(HOSTILE, ensure_ascii=False)[1:-1])
        (folder / file).write_text(text)
    return _written(folder)


def test_hostile_text_stays_text(folder):
    html, markdown, _ = _hostile(folder)
    page = Page(html)
    assert not page.all("script") and all(
        set(a) <= {"src", "alt", "width", "height"} for a in page.all("img")
    )
    assert "<script>alert(1)</script>" in " ".join(page.words)
    outside_code = re.sub("`[^`]*`", "", markdown.replace("\\`", ""))
    assert not re.search(r"(?<!\\)<(script|img)", outside_code)


TEX = shutil.which("pdflatex")
DOCUMENT = (
    r"\documentclass{article}\usepackage{array,booktabs,longtable}"
    r"\begin{document}\input{tables}\end{document}"
)


@pytest.mark.skipif(TEX is None, reason="needs pdflatex with booktabs")
def test_latex_compiles_even_hostile_text(folder):
    _hostile(folder)
    (folder / "document.tex").write_text(DOCUMENT)
    command = [TEX, "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=60
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_latex_rows_have_as_many_cells_as_columns(texts):
    rows = [line for line in texts[2].splitlines() if line.endswith(r" \\")]
    cases = 1 + 2 + 6 + 1 + 1  # five claims have cases; a theorem shows its worst
    columns = Counter(len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows)
    # The ledger, the summary and the table on CIFAR-FS.
    assert columns == {6: 1 + cases + len(CLAIMS_RUN) - 5, 5: 1 + 2, 3: 1 + 1}


@given(PRINTABLE)
def test_latex_text_has_no_command_of_its_own(text):
    escaped = latex_text(text)
    known = (
        r"\\(textbackslash|textasciicircum|dots)\{\}|\$(\\[a-z]+|[<>|-]|\^\{[0-9-]+\})\$"
        r"|\{[\[\]]\}|\\[{}$&%#_]"
    )
    assert not re.search(r"[\\{}$&%#_^~]", re.sub(known, "", escaped))


@given(PRINTABLE)
def test_markdown_text_has_no_markup_of_its_own(text):
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]<>|$]", markdown_text(text).replace("\\\\", ""))


@given(PRINTABLE, PRINTABLE)
def test_formulas_become_harmless_mathml_or_stay_as_written(before, formula):
    tree = ElementTree.fromstring(f"<p>{math(f'{before}${formula}$')}</p>")
    for node in tree.iter():
        name = node.tag.removeprefix("{http://www.w3.org/1998/Math/MathML}")
        assert name == "p" or (name in TAGS and set(node.attrib) <= ATTRIBUTES)


@pytest.mark.parametrize(
    "formula",
    [
        r"\text{<script>alert(1)</script>}",
        r"\href{javascript:alert(1)}{x}",
        r"\style{color:red}{x}",
        r"\frac",
    ],
)
def test_formulas_bring_no_markup(formula):
    html = math(f"a ${formula}$")
    assert not re.search(r"<(?!/?m)|href|style", html)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0"), (1000.0, "1,000"), (-0.00123456, "−0.00123"), (1e-12, "10⁻¹²"), (-2.5e-9, (
        "−2.5 × 10⁻⁹")),
     (-1e-9, "−10⁻⁹"), (3, "3"), (float("nan"), "none"), (float("-inf"), "−∞"), ("g1", "g1")],
)  # fmt: skip
def test_numbers_as_one_writes_them(value, words):
    assert number(value) == words


def test_intervals_bands_sources_and_plain_words():
    none = float("nan")
    assert interval(case("a", 0.5, none, none)) == "0.5"
    assert interval(case("a", none, none, none)) == "none"
    assert interval(case("a", 0.98765, 0.98755, 0.98775)) == "0.98765 [0.98755, 0.98775]"
    assert interval(case("a", 0.123456, -0.5, 0.75)) == "0.123 [−0.5, 0.75]"
    assert interval(case("a", 0.0, 0.0, 0.0)) == "0"
    inf = float("inf")
    assert [band(ends) for ends in ((0.0, 1.0), (-inf, 0.05), (0.05, inf), (-inf, inf))] == [
        "[0, 1]", "≤ 0.05", "≥ 0.05", "any value",
    ]  # fmt: skip
    assert source(("B", "P6.2")) == "the authors' post, the paper, section 6.2"
    assert plain("of $g_i - \\bar g_i$ …") == "of g_i - g_bar_i …"


# ---- the ledger's words


def _claim(**changed):
    control = changed.pop("control", Control(kind="wrong formula", words="w"))
    rest = {
        "id": "a",
        "sources": ("N",),
        "statement": "s",
        "quantity": "q",
        "band": (0.0, 1.0),
        "reason": "r",
    }
    return Claim(**rest | {"kind": "theorem", "control": control} | changed)


def test_the_worst_case_is_nearest_to_an_end_that_can_be_missed():
    values = {"best": 0.0, "middle": 0.5, "near": 0.9, "out": 1.2}
    cases = tuple(
        exact(name, value, REFUTED if value > 1 else SUPPORTED) for name, value in values.items()
    )
    norm = _claim(limits=(0.0, float("inf")))
    assert [case.name for case in wording.foremost(Verdict(norm, REFUTED, cases=cases))[0]] == [
        "out"
    ]
    assert wording.foremost(Verdict(norm, REFUTED, cases=cases))[1] == "and 3 more inside"
    inside = Verdict(norm, SUPPORTED, cases=cases[:3])
    assert [case.name for case in wording.foremost(inside)[0]] == ["near"]
    assert [
        case.name for case in wording.foremost(Verdict(_claim(), SUPPORTED, cases=cases[:2]))[0]
    ] == ["best"]
    lost = exact("lost", float("nan"), UNDECIDED)
    assert wording.foremost(Verdict(norm, UNDECIDED, cases=(*cases, lost))) == (
        (lost,),
        "and 4 more: 3 inside, 1 outside",
    )
    assert [case.name for case in wording.foremost(inside, 2)[0]] == ["middle", "near"]


def test_controls_say_what_they_must_do():
    foil, sham = Control(kind="foil", words="f"), Control(kind="sham", words="s", band=(-0.1, 0.1))
    assert wording.control(_claim()) == "a wrong formula, which must lie outside the band"
    open_ended = _claim(kind="experiment", control=foil, band=(0.1, float("inf")))
    assert wording.control(open_ended) == "a foil, which must fall short of the check, seed by seed"
    assert (
        wording.control(_claim(kind="experiment", control=foil))
        == "a foil, which must lie outside the band"
    )
    assert wording.control(_claim(kind="experiment", control=sham)).endswith(
        "must lie within [-0.1, 0.1]"
    )
    assert wording.outcome(Verdict(_claim(), UNDECIDED)) == "not measured"


def test_seeds_in_words():
    one = [case("a", 0, 0, 0, seeds=(1000, 1001, 1003)), case("b", 0, 0, 0, seeds=(1001, 2000))]
    assert wording.seeds(one) == "4 seeds of epochs 1, 2 (1000–1001, 1003, 2000)"
    assert wording.seeds(one[:1], which=False) == "3 seeds of epoch 1"
    assert wording.seeds([case("a", 0, 0, 0, seeds=(-1,))]) == ""
