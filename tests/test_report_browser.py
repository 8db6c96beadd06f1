"""The report as a browser shows it, on a phone and on a desk, in light and dark.

It must suit eyes, keyboards and checkers.
"""

import matplotlib
import pytest

from figures.report import write as report
from tests.helpers.browser import axe, chromium
from tests.helpers.folder import REFUTES, VERDICTS, draw, write

matplotlib.use("Agg")

PHONE, DESK = 360, 1400
# Elements that end to the right of the window, or that hold more than they show.
TOO_WIDE = """() => {
  const all = [...document.querySelectorAll('main *, header *, nav *, footer *')];
  return all.filter(element => {
    const box = element.getBoundingClientRect();
    if (!box.width || element.closest('.unseen, thead, svg')) return false;
    const spills = element.scrollWidth > element.clientWidth + 1
      && getComputedStyle(element).display != 'inline';
    return box.right > innerWidth + 1 || (spills && !element.closest('math'));
  }).map(element => element.outerHTML.slice(0, 200));
}"""
# Formulas that run over the box that quotes the paper.
RUN_OVER = """() => {
  const right = element => element.getBoundingClientRect().right;
  const formulas = [...document.querySelectorAll('blockquote math')];
  const wide = formulas.filter(math => right(math) > right(math.closest('blockquote')));
  return wide.map(math => math.closest('article').id);
}"""
# Consecutive texts whose boxes overlap, neither inside the other.
OVERLAPS = """() => {
  const texts = 'h1, h2, h3, p, dt, dd, figure, label, caption, td, th, summary';
  const blocks = [...document.querySelectorAll(texts)];
  const shown = blocks.filter(
    block => block.getClientRects().length && !block.closest('.unseen, thead'));
  const boxes = shown.map(block => block.getBoundingClientRect());
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  return shown.slice(1).filter((block, i) => meet(boxes[i], boxes[i + 1])
    && !shown[i].contains(block) && !block.contains(shown[i])
    && !block.closest('figcaption')).map(block => block.outerHTML.slice(0, 200));
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    out = write(tmp_path_factory.mktemp("results"))
    draw(out)
    report(out)
    return (out / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(
    params=[(width, scheme) for width in (PHONE, DESK) for scheme in ("light", "dark")], ids=str
)
def page(request, browser, address):
    """Yield the page just opened; `page.asked` lists its requests."""
    width, scheme = request.param
    page = browser.new_page(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    yield page
    page.close()


@pytest.fixture
def desk(browser, address):
    page = browser.new_page(viewport={"width": DESK, "height": 900}, reduced_motion="reduce")
    page.goto(address)
    yield page
    page.close()


def test_whole_page(page, address):
    """The whole page requests nothing else and fits the window.

    Nothing overlaps, and axe finds nothing serious.
    """
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert [url for url in page.asked if not url.startswith("data:")] == [address]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate(RUN_OVER) == []
    assert page.evaluate(OVERLAPS) == []
    found = axe.Axe().run(page).response["violations"]
    assert [
        (v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")
    ] == []


def test_schemes_differ_and_figures_stay_on_white(browser, address):
    colours = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(address)
        colours[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (
            page.evaluate("getComputedStyle(document.querySelector('.frame')).backgroundColor")
            == "rgb(255, 255, 255)"
        )
        assert page.evaluate("document.querySelector('.frame img').naturalWidth") > 500
        page.close()
    assert colours["light"] != colours["dark"]


def test_verdicts_filter_without_a_script(desk):
    articles = desk.locator("article:visible")
    every = articles.count()
    for verdict, count in VERDICTS.items():
        desk.get_by_role("radio", name=verdict).check()
        assert articles.count() == count
        assert desk.locator("nav li.claim:visible").count() == count
    desk.get_by_role("radio", name="all").check()
    assert articles.count() == every


def test_keyboard_reaches_the_claims(desk):
    desk.keyboard.press("Tab")
    assert desk.evaluate("document.activeElement.textContent") == "Skip to the claims"
    desk.keyboard.press("Enter")
    assert desk.evaluate("document.activeElement.id") == "claims"


def test_printed_page_has_all_and_no_more(desk):
    assert not desk.locator(f"#{REFUTES} table").is_visible()
    desk.emulate_media(media="print")
    assert (
        desk.evaluate(f"document.querySelector('#{REFUTES} table').getBoundingClientRect().height")
        > 20
    )
    assert not desk.locator("nav").is_visible()


def test_formulas_are_mathml(desk):
    assert desk.locator("blockquote math").count() > 20
    assert (
        desk.evaluate("document.querySelector('blockquote msub').getBoundingClientRect().height")
        > 5
    )
