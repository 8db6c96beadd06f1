"""The report from a made-up folder: it says what the folder holds, in three languages that nothing in it can break."""

import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.claims import Interval
from analysis.experiments import EXPERIMENTS
from figures.report import main
from figures.report.gather import gather
from figures.report.render import ATTRIBUTES, TAGS, latex_text, markdown_text, math, number, plain, source, span
from tests.made_up_folder import FINDING, GLYPHS, MEASURED, VERDICTS, draw, write

matplotlib.use("Agg")

CLAIMS = [claim for experiment in EXPERIMENTS.values() for claim in experiment.claims]
HOSTILE = (
    r"""</script><script>alert(1)</script><img src=x onerror=alert(1)> "quoted" \input{/etc/passwd} } % & _ # | ` $x"""
)
PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co")))


class Page(HTMLParser):
    """Start tags with their attributes, and all text."""

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
    """A copy to break."""
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
    assert list(articles) == [claim.id for claim in CLAIMS]
    verdicts = Counter(words.removeprefix("claim is-") for words in articles.values())
    assert verdicts == VERDICTS | {"not-judged": len(CLAIMS) - sum(VERDICTS.values())}
    text = " ".join(" ".join(page.words).split())
    for verdict, count in verdicts.items():
        assert re.search(rf"\b{count} +{verdict.replace('-', ' ')}", text)
    for claim in CLAIMS:
        assert f"### {claim.id}\n" in texts[1]
        assert latex_text(claim.id) + " &" in texts[2]


def test_what_was_measured_is_the_tables(texts):
    for text in texts[:2]:
        assert "−2 × 10⁻⁵ … 0.001" in text  # taylor-gradient
        assert "[−0.05, 0.05]" in text
        assert "0.08 … 0.12" in text  # ablation-g1
        assert "no interval" in text  # zero-shot-loss
    assert "`python reproduce.py zero_shot --profile quick`" in texts[1]
    assert "$-$2 $\\times$ 10$^{-5}$ \\dots{} 0.001" in texts[2]


def test_a_control_that_does_not_fail_is_told(texts):
    article = texts[0][texts[0].index('<article id="zero-shot-loss"') :]
    assert "outside in 0 of 1: so this check cannot fail" in article
    assert "the check cannot fail" in article[: article.index("</h3>")]


def test_nothing_is_asked_of_a_network(texts, page):
    resources = [a.get("src") or a.get("href") for a in page.all("img", "link", "script", "iframe", "use", "source")]
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
    assert (picture.finding, picture.caption.split(" Data:")[0]) == (FINDING, "A caption with $\\alpha$ = 0.1.")
    assert section.tables[0].rows == (("g1", 0.6, 0.5, 0.7, 3), ("g1+g2", 0.9, 0.8, 1.0, 3))


def test_every_claim_says_what_the_paper_says_in_formulas_that_render():
    marks = {"B": "The authors' post: “", "P": "Section ", "N": "Beyond the paper: "}
    for claim in CLAIMS:
        assert "$" not in math(claim.paper), claim.id
        assert any(marks[code[0]] in claim.paper for code in claim.source.split(", ")), claim.id


def test_made_up_data_are_told_above_all(tmp_path):
    html, markdown, _ = _written(write(tmp_path, data=GLYPHS))
    for text in (html[: html.index("<main")], markdown[: markdown.index("##")]):
        assert "says nothing about the paper" in text and "NOT OMNIGLOT" in text
    assert "`python reproduce.py ablation --profile quick --dataset glyphs`" in markdown


def test_a_folder_with_the_ledger_alone(folder):
    for path in (folder / "tables", folder / "figures"):
        shutil.rmtree(path)
    (folder / "manifest.json").unlink()
    ledger = json.loads((folder / "claims.json").read_text())
    for row in ledger:
        row |= {"verdict": "not judged", "cases": 0, "controls": 0}
    (folder / "claims.json").write_text(json.dumps(ledger))
    html, markdown, _ = _written(folder)
    assert "Nothing has been measured yet" in html and "Nothing has been measured yet" in markdown


def test_an_interrupted_run_is_partial(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["finished"], manifest["wall_seconds"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    html, markdown, _ = _written(folder)
    assert "Partial results: the last run is interrupted" in html and "Partial results" in markdown


def _cut(path, share=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _lines(path, count):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))


def _edit(path, change):
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


BROKEN = {
    "manifest cut": ("manifest.json", _cut),
    "manifest empty": ("manifest.json", lambda path: path.write_bytes(b"")),
    "manifest binary": ("manifest.json", lambda path: path.write_bytes(b"\xff\x00")),
    "manifest a list": ("manifest.json", lambda path: path.write_text("[]")),
    "manifest without status": ("manifest.json", lambda path: path.write_text("{}")),
    "manifest without machine": ("manifest.json", lambda path: _edit(path, lambda rows: rows.pop("machine"))),
    "manifest with odd commit": ("manifest.json", lambda path: _edit(path, lambda rows: rows.update(commit="x"))),
    "ledger gone": ("claims.json", lambda path: path.unlink()),
    "ledger cut": ("claims.json", _cut),
    "ledger a number": ("claims.json", lambda path: path.write_text("3")),
    "ledger of other things": ("claims.json", lambda path: path.write_text("[1, {}]")),
    "a claim missing": ("claims.json", lambda path: _edit(path, lambda rows: rows.pop())),
    "a claim unknown": ("claims.json", lambda path: _edit(path, lambda rows: rows[0].update(id="x"))),
    "no verdict": ("claims.json", lambda path: _edit(path, lambda rows: rows[0].pop("verdict"))),
    "odd verdict": ("claims.json", lambda path: _edit(path, lambda rows: rows[0].update(verdict="true"))),
    "verdict a number": ("claims.json", lambda path: _edit(path, lambda rows: rows[0].update(verdict=3))),
    "statement a number": ("claims.json", lambda path: _edit(path, lambda rows: rows[0].update(statement=3))),
    "no band": ("claims.json", lambda path: _edit(path, lambda rows: rows[0].update(low=None))),
    "table cut": ("tables/theory_measurements.csv", _cut),
    "table cut between rows": ("tables/theory_measurements.csv", lambda path: _lines(path, 2)),
    "table empty": ("tables/ablation_measurements.csv", lambda path: path.write_bytes(b"")),
    "table binary": ("tables/ablation_measurements.csv", lambda path: path.write_bytes(b"\xff\x00\n")),
    "table gone": ("tables/ablation_measurements.csv", lambda path: path.unlink()),
    "shown table cut": ("tables/ablation_summary.csv", _cut),
    "shown table of other columns": ("tables/ablation_summary.csv", lambda path: path.write_text("a,b\n1,2\n")),
    "figure cut": ("figures/ablation.png", _cut),
    "figure no figure": ("figures/ablation.png", lambda path: path.write_text("nonsense")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_told_in_a_line(case, folder, capsys):
    name, damage = BROKEN[case]
    (folder / "report.html").write_text("as it was")
    damage(folder / name)
    assert main(["--out", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("reproduce.py: error: ") and error.count("\n") == 1
    assert str(folder / name) in error and "expected" in error and "found" in error
    assert (folder / "report.html").read_text() == "as it was"


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
    assert not page.all("script") and all(set(a) <= {"src", "alt", "width", "height"} for a in page.all("img"))
    assert "<script>alert(1)</script>" in " ".join(page.words)
    outside_code = re.sub("`[^`]*`", "", markdown.replace("\\`", ""))
    assert not re.search(r"(?<!\\)<(script|img)", outside_code)


TEX = shutil.which("pdflatex")
DOCUMENT = r"\documentclass{article}\usepackage{array,booktabs,longtable}\begin{document}\input{tables}\end{document}"


@pytest.mark.skipif(TEX is None, reason="needs pdflatex with booktabs")
def test_latex_compiles_even_hostile_text(folder):
    _hostile(folder)
    (folder / "document.tex").write_text(DOCUMENT)
    command = [TEX, "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]


def test_latex_rows_have_as_many_cells_as_columns(texts):
    rows = [line for line in texts[2].splitlines() if line.endswith(r" \\")]
    assert len(rows) == 1 + len(CLAIMS) + 3  # both heads, claims and the summary's two rows
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {4}


@given(PRINTABLE)
def test_latex_text_has_no_command_of_its_own(text):
    escaped = latex_text(text)
    known = r"\\(textbackslash|textasciicircum|dots)\{\}|\$(\\[a-z]+|[<>|-]|\^\{[0-9-]+\})\$|\{[\[\]]\}|\\[{}$&%#_]"
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
    [r"\text{<script>alert(1)</script>}", r"\href{javascript:alert(1)}{x}", r"\style{color:red}{x}", r"\frac"],
)
def test_formulas_bring_no_markup(formula):
    html = math(f"a ${formula}$")
    assert not re.search(r"<(?!/?m)|href|style", html)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0"), (1000.0, "1,000"), (-0.00123456, "−0.00123"), (1e-12, "10⁻¹²"), (-2.5e-9, "−2.5 × 10⁻⁹"),
     (-1e-9, "−10⁻⁹"), (3, "3"), (float("nan"), "none"), (float("-inf"), "−∞"), ("g1", "g1")],
)  # fmt: skip
def test_numbers_as_one_writes_them(value, words):
    assert number(value) == words


def test_spans_sources_and_plain_words():
    assert span(None) == "not measured"
    assert span(Interval(float("-inf"), 1)) == "no interval"
    assert span(Interval(0.12341, 0.12342)) == "0.123"
    assert span(Interval(-1, 2)) == "−1 … 2"
    assert source("B, P6.2") == "the authors' post, the paper, section 6.2"
    assert plain("of $g_i - \\bar g_i$ …") == "of g_i - g_bar_i …"


def test_the_made_up_folder_is_of_claims_that_there_are():
    assert set(MEASURED) <= {claim.id for claim in CLAIMS}
