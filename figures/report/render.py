"""The report as HTML, Markdown and LaTeX: templates, and what text and numbers become in each.

Whatever a template prints is escaped for its language. Formulas between dollars become MathML in
HTML and stay formulas in Markdown. LaTeX gets tables only, which hold no formulas.
"""

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import unescape
from math import ceil, isfinite, isnan, log10
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, PackageLoader, StrictUndefined
from latex2mathml.converter import Converter
from markupsafe import Markup, escape

from analysis.results import wording
from analysis.results.evidence import CHECK, CONTROL
from analysis.results.verdict import DECISIONS, Case, Verdict
from figures.report.gather import Judged, Report

FORMULA = re.compile(r"\$([^$]+)\$")
# MathML that latex2mathml may give and that can neither load nor run anything.
TAGS = {
    "math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "mstyle",
    "mpadded", "menclose", "msub", "msup", "msubsup", "munder", "mover", "munderover", "mtable",
    "mtr", "mtd",
}  # fmt: skip
ATTRIBUTES = {
    "xmlns",
    "display",
    "displaystyle",
    "scriptlevel",
    "mathvariant",
    "stretchy",
    "accent",
    "width",
}
LEVEL, RAISED = "-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"  # of an exponent
TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%",
    "#": r"\#", "_": r"\_", "^": r"\textasciicircum{}", "~": r"$\sim$", "<": "$<$", ">": "$>$",
    "|": "$|$", "−": "$-$", "×": r"$\times$", "±": r"$\pm$", "…": r"\dots{}", "∞": r"$\infty$",
    "·": r"$\cdot$", "ρ": r"$\rho$", "≤": r"$\le$", "≥": r"$\ge$", "π": r"$\pi$", "“": "``",
    "”": "''", "‘": "`", "’": "'", '"': "''", "\n": " ", "[": "{[}", "]": "{]}",
}  # fmt: skip
INLINE = 4  # cases that a card names before its table names all
SOURCES = {"B": "the authors' post", "N": "beyond the paper"}
# What the symbols of the claims mean: formula and words.
NOTATION = (
    (r"$\phi_1$", "the initialization, from which a task's inner loop starts"),
    (
        r"$\phi_{i+1} = \phi_i - \alpha g_i$",
        r"a step of the inner loop, on minibatch $i$, with learning rate $\alpha$",
    ),
    (r"$g_i = L_i^{\prime}(\phi_i)$", "the gradient met at step $i$"),
    (r"$\bar g_i = L_i^{\prime}(\phi_1)$", "the same minibatch's gradient at the initialization"),
    (r"$\bar H_i = L_i^{\prime\prime}(\phi_1)$", "its Hessian there"),
    (r"$\text{AvgGrad} = E[\bar g_1]$", "the direction of joint training"),
    (
        r"$\text{AvgGradInner} = E[\bar H_2 \bar g_1]$",
        "minus it raises inner products of gradients",
    ),
    (r"$g_1 + \dots + g_k$", "the update of Reptile"),
    (r"$g_k$", "that of first-order MAML (FOMAML)"),
    (r"$\frac{\partial}{\partial \phi_1} L_k(\phi_k)$", "that of MAML"),
)


def html(report: Report) -> str:
    environment = _environment(math, autoescape=True)
    environment.filters["data_uri"] = lambda png: (
        f"data:image/png;base64,{base64.b64encode(png).decode()}"
    )
    return environment.get_template("report.html.jinja").render(_words(report))


def markdown(report: Report) -> str:
    environment = _environment(markdown_math, finalize=markdown_text)
    environment.filters["code"] = markdown_code
    return environment.get_template("report.md.jinja").render(_words(report))


def latex(report: Report) -> str:
    environment = _environment(
        str, finalize=latex_text, variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>",
    )  # fmt: skip
    return environment.get_template("tables.tex.jinja").render(_words(report))


def math(text: str) -> Markup:
    """Return text as HTML, with its formulas as MathML.

    What is between dollars and is no formula stays as it is written.
    """
    found = []
    for formula, part in _parts(text):
        if formula or part:
            found.append(_mathml(part) if formula else escape(part))
    return Markup("").join(found)


def markdown_math(text: str) -> Markup:
    """Return text as Markdown, with its formulas as GitHub has them: dollar and backtick."""
    found = []
    for formula, part in _parts(text):
        found.append(Markup(f"$`{part.replace('`', '')}`$") if formula else markdown_text(part))
    return Markup("").join(found)


def markdown_text(value: object) -> str:
    """Return text as Markdown in which nothing is markup, for a line or a table's cell."""
    if isinstance(value, Markup):
        return value
    return Markup(re.sub(r"([\\`*_{}\[\]<>|#~$&])", r"\\\1", re.sub(r"\s+", " ", str(value))))


def markdown_code(text: str) -> Markup:
    """Return text as code in Markdown, otherwise unchanged."""
    return Markup(f"`{text.replace('`', '')}`")


def latex_text(value: object) -> str:
    """Return text as LaTeX in which nothing is a command, for pdfLaTeX and the like."""
    parts = re.split(f"([{RAISED}]+)", str(value))
    to_tex = str.maketrans(TEX)
    parts[::2] = [part.translate(to_tex) for part in parts[::2]]
    parts[1::2] = [f"$^{{{part.translate(str.maketrans(RAISED, LEVEL))}}}$" for part in parts[1::2]]
    return "".join(parts)


def plain(text: str) -> str:
    """Return text with formulas in letters, for where there is no markup: alternative texts."""
    words = re.sub(r"\\bar\s*\{?(\w)\}?", r"\1_bar", text).replace(r"\ldots", "…")
    return re.sub(r"[$\\{}]", "", words)


def sentence(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def number(value: Any, digits: int = 3) -> str:
    """Return a number as text with few digits, such as −1.2 × 10⁻¹⁶.

    Whole numbers are written whole, and anything else as it is. digits: how many significant ones.
    """
    if not isinstance(value, int | float):
        return str(value)
    if not isfinite(value):
        return "none" if value != value else str(value).replace("-", "−").replace("inf", "∞")
    whole = float(value).is_integer() and abs(value) < 1e6
    mantissa, _, exponent = (f"{value:,.0f}" if whole else f"{value:.{digits}g}").partition("e")
    sign, significand = ("−", mantissa[1:]) if mantissa.startswith("-") else ("", mantissa)
    if not exponent:
        return sign + significand
    power = f"10{str(int(exponent)).translate(str.maketrans(LEVEL, RAISED))}"
    return sign + ("" if significand == "1" else f"{significand} × ") + power


def interval(case: Case) -> str:
    """Return a mean with its interval, in as many digits as tell its ends apart.

    A mean without an interval is a number alone.
    """
    if isnan(case.low) or isnan(case.high) or case.low == case.high:
        return number(case.mean)
    width, largest = case.high - case.low, max(abs(case.low), abs(case.high))
    digits = min(max(ceil(log10(largest / width)) + 1, 3), 6)
    mean, low, high = (number(value, digits) for value in (case.mean, case.low, case.high))
    return f"{mean} [{low}, {high}]"


def band(ends: tuple[float, float]) -> str:
    """Return a band as text, such as "≥ 0.1" or "[0, 1]"."""
    low, high = ends
    if not (isfinite(low) or isfinite(high)):
        return "any value"
    if isfinite(low) and isfinite(high):
        return f"[{number(low)}, {number(high)}]"
    return f"≥ {number(low)}" if isfinite(low) else f"≤ {number(high)}"


def place(case: Case, verdict: Verdict) -> str:
    """Return where a case stands by itself: inside the band, outside, or undecided.

    Empty for a case that is not judged by itself: an experiment's control, and what is only shown.
    """
    judged = case.role == CHECK or (case.role == CONTROL and verdict.claim.kind == "theorem")
    return wording.PLACES[case.decision] if judged else ""


def controls(verdict: Verdict) -> tuple[Sequence[Case], str]:
    """Return the controls that a card names, and words on the others.

    Of a theorem the card names those nearest to passing.
    """
    found = list(verdict.controls)
    if verdict.claim.kind == "theorem":
        found.sort(key=lambda case: -wording.margin(case, verdict.claim))
    return found[:INLINE], f"and {len(found) - INLINE} more" if len(found) > INLINE else ""


def details(judged: Judged) -> tuple[list[str], list[list[str]]]:
    """Return every case of a claim, as columns and rows.

    Columns that say nothing of any case are left out.
    """
    verdict = judged.verdict
    roles = {CHECK: "check", CONTROL: verdict.claim.control.kind}
    mixed = len(judged.data) > 1
    rows = []
    for case in (*verdict.cases, *verdict.controls, *verdict.shown):
        row = {
            "case": case.name,
            "role": roles.get(case.role, "only shown"),
            "measured": interval(case),
            "against the band": place(case, verdict),
            "seeds": wording.seeds([case], which=False),
            "tasks × queries": " × ".join(
                number(n) for n in (case.tasks, case.queries) if not isnan(n)
            ),
            "sd over seeds": "" if isnan(case.sd) else number(case.sd),
            "error over tasks": "" if isnan(case.task_error) else number(case.task_error),
            "data": case.data.removeprefix("Data: ") if mixed else "",
        }
        rows.append(row)
    columns = [name for name in (rows[0] if rows else ()) if _is_in_any(rows, name)]
    cells = []
    for row in rows:
        cells.append([row[name] or "–" for name in columns])
    return columns, cells


def _is_in_any(rows: Iterable[Mapping[str, str]], name: str) -> bool:
    return any(row[name] for row in rows)


def source(codes: Sequence[str]) -> str:
    """Return where a claim is from: P5.1 is the paper's section 5.1, B the authors' post."""
    return ", ".join(SOURCES.get(code, f"the paper, section {code[1:]}") for code in codes)


def _environment(math: Callable[[str], str], **options: Any) -> Environment:
    environment = Environment(
        loader=PackageLoader("figures.report", "."), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, **options,
    )  # fmt: skip
    environment.filters |= {
        "math": math,
        "plain": plain,
        "number": number,
        "interval": interval,
        "band": band,
        "source": source,
        "sentence": sentence,
    }
    return environment


def _words(report: Report) -> dict[str, Any]:
    return {
        "report": report,
        "decisions": DECISIONS,
        "notation": NOTATION,
        "wording": wording,
        "controls": controls,
        "details": details,
        "place": place,
        "inline": INLINE,
    }


def _parts(text: str) -> list[tuple[bool, str]]:
    """Return text and formulas in turn: whether a part is a formula, and it without dollars."""
    return [(bool(place % 2), part) for place, part in enumerate(FORMULA.split(text))]


def _mathml(formula: str) -> Markup:
    try:
        element = Converter().convert_to_element(formula)
    # The library may raise anything where the text is not LaTeX. The reader is then shown the text.
    except Exception:
        return escape(f"${formula}$")
    for node in element.iter():
        if node.tag not in TAGS:
            return escape(f"${formula}$")
        node.attrib = {name: value for name, value in node.attrib.items() if name in ATTRIBUTES}
        if node.text:  # the library writes characters as references
            node.text = unescape(node.text)
    return Markup(ElementTree.tostring(element, encoding="unicode"))
