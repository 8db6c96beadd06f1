"""The demo as its visitors meet it.

A browser without a network draws three shapes with the mouse, and one of them once more.
"""

import os
from collections import deque

import numpy as np
import pytest

from figures.demo import weights
from figures.demo.adaptation import initialization
from reptile_core import datasets
from reptile_core.datasets.split import split_characters
from reptile_core.meta_gradients import sum_of
from reptile_core.tasks import ImagePool
from reptile_core.training import start, train
from tests.helpers.browser import axe, chromium
from tests.helpers.server import serving

pytest.importorskip("uvicorn", reason="needs the extra demo: pip install -e '.[demo]'")
pytest.importorskip("starlette", reason="needs the extra demo: pip install -e '.[demo]'")

ITERATIONS = 400  # a twelfth of the demo's, in a few seconds: enough for simple shapes
TRIALS, RIGHT = 10, 8
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


def arc(start, end, *, radius=(0.3, 0.3), turns=1.0, points=24):
    """Return an arc around the middle, from one angle to another, in turns."""
    angles = 2 * np.pi * np.linspace(start, end, points) * turns
    return np.stack([0.5 + radius[0] * np.cos(angles), 0.5 + radius[1] * np.sin(angles)], -1)


SHAPES = {
    "circle": [arc(0, 1)],
    "cross": [np.array([(0.2, 0.5), (0.8, 0.5)]), np.array([(0.5, 0.2), (0.5, 0.8)])],
    "line": [np.array([(0.5, 0.2), (0.5, 0.8)])],
    "triangle": [np.array([(0.5, 0.2), (0.8, 0.75), (0.2, 0.75), (0.5, 0.2)])],
    "zigzag": [np.array([(0.2, 0.65), (0.35, 0.35), (0.5, 0.65), (0.65, 0.35), (0.8, 0.65)])],
    "square": [np.array([(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75), (0.25, 0.25)])],
    "corner": [np.array([(0.25, 0.2), (0.25, 0.75), (0.75, 0.75)])],
    "arrow": [np.array([(0.2, 0.5), (0.8, 0.5)]), np.array([(0.6, 0.3), (0.8, 0.5), (0.6, 0.7)])],
    "bow": [arc(0.5, 1.0)],
    "equals": [np.array([(0.25, 0.4), (0.75, 0.4)]), np.array([(0.25, 0.6), (0.75, 0.6)])],
}


def drawn(rng, shape):
    """Return a shape drawn by an unsteady hand.

    It is turned by up to some 10 degrees, stretched and shifted, and each point is off its place.
    """
    turn, stretch, shift = (
        rng.normal(0, 0.1),
        np.exp(rng.normal(0, 0.12, 2)),
        rng.normal(0, 0.04, 2),
    )
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    strokes = [((stroke - 0.5) * stretch) @ rotation + 0.5 + shift for stroke in SHAPES[shape]]
    return [np.clip(stroke + rng.normal(0, 0.012, stroke.shape), 0.02, 0.98) for stroke in strokes]


def trial(rng):
    """Return drawings of three different shapes and of one of them again, and that one's index."""
    chosen = rng.choice(list(SHAPES), 3, replace=False)
    answer = int(rng.integers(3))
    return [*(drawn(rng, shape) for shape in chosen), drawn(rng, chosen[answer])], answer


@pytest.fixture(scope="module")
def address():
    """Yield the address of a page with a briefly trained Reptile.

    Its own start takes the place of joint training.
    """
    characters = datasets.load(
        "omniglot" if os.environ.get("REPTILE_DATA") else "glyphs", quiet=True
    )
    split = split_characters(characters.images, seed=0)
    run = weights.configure(sum_of(weights.STEPS), ITERATIONS)
    trained = deque(train(run, ImagePool(split.train), start(run)), maxlen=1).pop()
    initializations = [
        initialization(run, state, weights.EVALUATION) for state in (trained, start(run))
    ]
    remarks = dict.fromkeys(weights.NAMES, "a test")
    named = dict(zip(weights.NAMES, initializations, strict=True))
    with serving(weights.Weights(named, remarks, "A test.", "", ImagePool(split.test))) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium(OFFLINE) as browser:
        yield browser


@pytest.fixture
def page(browser, address):
    """Yield the page just opened; it may log no error and ask no other server."""
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    asked, page.wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda message: message.type == "error" and page.wrong.append(message.text))
    page.goto(address)
    page.wait_for_selector("#samples button")
    yield page
    page.close()
    assert asked and all(url.startswith(address) for url in asked)
    assert not page.wrong


def draw(page, paper, strokes):
    """Draw with the mouse as a hand does: down, along, up."""
    box = paper.bounding_box()
    for stroke in strokes:
        (x, y), *rest = [
            (box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in stroke.tolist()
        ]
        page.mouse.move(x, y)
        page.mouse.down()
        for x, y in rest:
            page.mouse.move(x, y)
        page.mouse.up()


def verdict(page, name):
    """Wait for all answers, and return the letter that a network holds most likely, or None."""
    page.wait_for_selector("#results[aria-busy=false]")
    letter = page.locator(f"article[aria-label='{name}'] tr.first th")
    return letter.inner_text() if letter.count() else None


def test_simple_shapes_drawn_by_mouse_get_the_right_label(page):
    rng = np.random.default_rng(0)
    right = 0
    for _ in range(TRIALS):
        drawings, answer = trial(rng)
        for button in page.get_by_role("button", name="Clear").all():
            button.click()
        assert verdict(page, "Reptile") is None
        for paper, strokes in zip(page.locator("canvas.paper").all(), drawings, strict=True):
            draw(page, paper, strokes)
        right += verdict(page, "Reptile") == "ABC"[answer]
    print(f"{right} of {TRIALS} right")
    assert right >= RIGHT


def test_samples_and_slider_answer_and_curves_have_their_steps(page):
    page.get_by_text("Still to draw: A, B, C, the one to classify.").wait_for()
    page.get_by_role("button", name="Sample 2:").click()
    assert verdict(page, "Reptile") in ("A", "B", "C")
    page.get_by_role("button", name="B by another hand").click()
    for steps in (3, 0):
        page.get_by_role("slider").fill(str(steps))
        assert verdict(page, "Joint training") in ("A", "B", "C")
        assert page.locator("output").inner_text() == str(steps)
        curves = page.locator("#curves polyline").all()
        assert [len(curve.get_attribute("points").split()) for curve in curves] == [steps + 1] * 2
    for name in weights.NAMES:
        cells = page.locator(f"article[aria-label='{name}'] td:last-child").all_inner_texts()
        # The shown percentages are rounded.
        assert sum(float(cell.removesuffix(" %")) for cell in cells) == pytest.approx(100, abs=0.3)
    page.locator("#spoken", has_text="Reptile says").wait_for(state="attached")
    page.get_by_role("button", name="Others").click()
    page.get_by_role("button", name="Sample 7:").wait_for()


def test_keyboard_alone_draws(page):
    for paper, key in zip(
        page.locator("canvas.paper").all(), ["Right", "Down", "Left", "Up"], strict=True
    ):
        paper.focus()
        paper.press("Space")
        for _ in range(3):
            paper.press(f"Shift+Arrow{key}")
        paper.press("Space")
    assert verdict(page, "Reptile") in ("A", "B", "C")
    page.locator("canvas.paper").last.press("Delete")
    assert verdict(page, "Reptile") is None


def test_an_error_is_shown_until_the_next_answer(page):
    page.get_by_role("button", name="Sample 1:").click()
    verdict(page, "Reptile")
    page.route(
        "**/classify", lambda route: route.fulfill(status=400, body="steps: expected another")
    )
    page.get_by_role("slider").fill("9")
    assert page.get_by_role("alert").inner_text() == "steps: expected another"
    page.unroute("**/classify")
    page.get_by_role("slider").fill("10")
    assert verdict(page, "Reptile") in ("A", "B", "C")
    assert page.get_by_role("alert").count() == 0
    assert len(page.wrong) == 1 and "400" in page.wrong.pop()  # the console logs the failed request


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_outside_the_window_and_nothing_serious_for_axe(browser, address, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(address)
    page.get_by_role("button", name="Sample 1:").click()
    verdict(page, "Reptile")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page).response["violations"]
    assert [
        (rule["id"], rule["impact"]) for rule in found if rule["impact"] in ("serious", "critical")
    ] == []
    page.close()
