"""The demo without a browser.

Drawings become images like Omniglot's, and adaptation is the core's own.
Bad requests get a one-line error, and nothing listens beyond this machine.
"""

import importlib.util
import json
import socket
import urllib.error
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import reproduce
from analysis.experiments.shared.curves import Scale
from analysis.experiments.shared.experiment import EPOCH, Context
from analysis.paper import figure_3
from analysis.runs.advance import execute
from analysis.runs.evaluation_chunks import chunks, evaluate_chunk, joined
from analysis.runs.job import Source
from analysis.runs.store import state_at
from analysis.runs.workers import Workers, silent
from figures import demo
from figures.demo import weights
from figures.demo.adaptation import N_WAY, adapt, initialization
from figures.demo.drawing import LARGEST, place, rasterize
from figures.demo.questions import MAX_POINTS, MAX_STEPS, read, text
from reptile_core import datasets
from reptile_core.evaluation import classify, evaluation_tasks
from reptile_core.inner_loop import inner_loop
from reptile_core.losses import Minibatch
from reptile_core.meta_gradients import sum_of
from reptile_core.tasks import ImagePool, Sampling
from reptile_core.training import Inner, build_network, start
from tests.helpers.server import serving

needs_extra = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in demo.PACKAGES),
    reason="needs the extra demo: pip install -e '.[demo]'",
)
CROSS = [[[0.1, 0.5], [0.9, 0.5]], [[0.5, 0.1], [0.5, 0.9]]]
LINE = [[[0.2, 0.8], [0.4, 0.2]]]
QUESTION = {"drawings": [CROSS, LINE, [[[0.3, 0.3]]], LINE], "steps": 3}
BRIEF = weights.OwnScale(iterations=1, tasks=1)


@pytest.fixture(scope="module")
def glyphs():
    return datasets.load("glyphs")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Train and evaluate in this process, as starting workers would take seconds."""
    monkeypatch.setattr(
        Context, "train", lambda self, name, jobs: {job: execute(job) for job in jobs}
    )
    monkeypatch.setattr(
        Context,
        "evaluate",
        lambda self, name, wanted: {
            item: joined([evaluate_chunk(c, silent) for c in chunks(*item)]) for item in wanted
        },
    )


@pytest.fixture
def context(glyphs, tmp_path):
    source = Source("glyphs", None, glyphs.content, glyphs.real)
    return Context("paper", source, Workers(1, quiet=True), tmp_path / "runs")


@pytest.fixture(scope="module")
def untrained(glyphs):
    run = weights.configure(sum_of(2), 1)
    pool = ImagePool(torch.from_numpy(glyphs.images[:20].copy()))
    return weights.Weights(
        {name: initialization(run, start(run), weights.EVALUATION) for name in weights.NAMES},
        {},
        "",
        "",
        pool,
    )


# ---- drawings


def test_a_cross_is_drawn_in_the_middle_as_wide_as_omniglots_pen():
    image = rasterize(CROSS)
    assert image.shape == (28, 28) and image.dtype == np.uint8 and set(np.unique(image)) == {0, 1}
    ink = image == 0
    assert ink[13:15].any(1).all() and ink[:, 13:15].any(0).all()
    assert not ink[:8, :8].any() and not ink[-8:, -8:].any()
    widths = ink[:, 6].sum(), ink[6].sum()  # a pen of 5 of 105 pixels is 1.3 of 28 wide
    assert set(widths) <= {1, 2}


def test_where_on_the_paper_it_was_drawn_does_not_matter():
    small = [[[0.3 * x, 0.3 * y] for x, y in stroke] for stroke in CROSS]
    moved = [[[x + 0.6, y + 0.5] for x, y in stroke] for stroke in small]
    assert np.array_equal(rasterize(small), rasterize(moved))


def test_what_is_larger_than_omniglots_is_made_smaller_and_nothing_larger():
    points = np.array(
        [point for stroke in place([[[0.0, 0.3], [1.0, 0.3]], [[0.2, 0.6]]]) for point in stroke]
    )
    assert np.ptp(points[:, 0]) == pytest.approx(LARGEST)
    assert np.ptp(points[:, 1]) == pytest.approx(0.3 * LARGEST)
    assert (points.min(0) + points.max(0)) / 2 == pytest.approx(0.5)
    assert np.ptp(np.array(place(LINE)[0]), axis=0) == pytest.approx([0.2, 0.6])


def test_strokes_stay_apart_and_a_tap_is_a_dot():
    assert [
        len(stroke) for stroke in place([[[0, 0]], [[0, 1], [1, 1], [1, 0]], [[0.5, 0.5]]])
    ] == [1, 3, 1]
    dot = rasterize([[[0.9, 0.1]]]) == 0
    assert 1 <= dot.sum() <= 4 and dot[13:15, 13:15].any()


def test_no_point_no_image():
    with pytest.raises(ValueError, match="strokes: expected at least one point, found none"):
        rasterize([])


# ---- questions


def test_strokes_and_images_are_read():
    pixels = text(rasterize(LINE))
    assert (
        len(pixels) == 784
        and set(pixels) == {"0", "1"}
        and pixels.count("1") == (rasterize(LINE) == 0).sum()
    )
    question = read(json.dumps({"drawings": [CROSS, LINE, pixels, pixels], "steps": 0}).encode())
    assert question.steps == 0
    assert np.array_equal(question.images[2], rasterize(LINE)) and np.array_equal(
        question.images[0], rasterize(CROSS)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"steps": float("nan")},
            f"steps: expected a whole number from 0 to {MAX_STEPS}, found nan",
        ),
        ({"steps": MAX_STEPS + 1}, "steps: expected"),
        ({"steps": True}, "steps: expected"),
        ({"steps": 2.0}, "steps: expected"),
        ({"steps": None}, "steps: expected"),
        ({"drawings": [CROSS] * 3}, "drawings: expected a list of 3 examples and a query"),
        (
            {"drawings": [CROSS, LINE, LINE, "01" * 391]},
            r"drawings\[3\]: expected 28×28 characters 0 and 1",
        ),
        ({"drawings": [CROSS, LINE, LINE, "2" * 784]}, r"drawings\[3\]: expected 28×28"),
        (
            {"drawings": [[], LINE, LINE, LINE]},
            r"drawings\[0\]: expected a list of strokes, none empty, found \[\]",
        ),
        ({"drawings": [[[]], LINE, LINE, LINE]}, r"drawings\[0\]: expected a list of strokes"),
        (
            {"drawings": [7, LINE, LINE, LINE]},
            r"drawings\[0\]: expected a list of strokes, none empty, found 7",
        ),
        (
            {"drawings": [[[[float("nan"), 0]]], LINE, LINE, LINE]},
            r"expected points \[x, y\] in \[0, 1\], found \[nan",
        ),
        ({"drawings": [[[[0.5, 1e9]]], LINE, LINE, LINE]}, "expected points"),
        ({"drawings": [[[[0.5, 10**400]]], LINE, LINE, LINE]}, "expected points"),
        ({"drawings": [[[["0.5", 0]]], LINE, LINE, LINE]}, "expected points"),
        ({"drawings": [[[[0.5]]], LINE, LINE, LINE]}, "expected points"),
        (
            {"drawings": [[[[0, 0]] * (MAX_POINTS + 1)], LINE, LINE, LINE]},
            "expected at most 5000 points, found 5001",
        ),
        ({"more": 1}, "body: expected an object of drawings and steps"),
    ],
)
def test_bad_questions_are_reported_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(json.dumps(QUESTION | change).encode())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"9" * 10_000])
def test_what_is_no_json_is_reported_in_one_line(body):
    with pytest.raises(ValueError, match="body: expected") as caught:
        read(body)
    assert "\n" not in str(caught.value)


# ---- adaptation


@pytest.mark.parametrize(
    ("inner", "repeats"), [(Inner("sgd", 0.003), 8), (Inner("adam", 0.001), 1)]
)
@pytest.mark.parametrize("n_way", [3, 5])
def test_adaptation_is_the_cores_inner_loop_and_evaluation(glyphs, inner, repeats, n_way):
    """The demo adapts as the core's inner loop and evaluation do.

    A 3-way run is used as it is; of a 5-way run the first three outputs count.
    Batches may hold many copies of the examples, as in the run's own evaluation.
    """
    sampling = Sampling(n_way=n_way, shots=1, batch=N_WAY * repeats, steps=4)
    run = weights.configure(sum_of(2), 1)
    run = replace(run, sampling=replace(run.sampling, n_way=n_way), inner=inner)
    state = start(run)
    pool = ImagePool(torch.from_numpy(glyphs.images.copy()))
    task = evaluation_tasks(Sampling(N_WAY, 1, N_WAY, 1), pool, seed=0, tasks=range(1))[0]
    support, test = pool.minibatch(task.support), pool.minibatch(task.test)

    wide = build_network(run)

    def logits(phi, x):
        return wide(phi, x)[..., :N_WAY]

    def loss(phi, batch):
        return F.cross_entropy(logits(phi, batch.x), batch.y, reduction="sum")

    copies = Minibatch(support.x.repeat(repeats, 1, 1), support.y.repeat(repeats))
    phi, losses = state.phi, [loss(state.phi, support).item() / N_WAY]
    for step in inner_loop(loss, phi, [copies] * 4, run.inner.build()):
        phi = step.after
        losses.append(loss(phi, support).item() / N_WAY)

    found = [adapt(initialization(run, state, sampling), support.x, x, steps=4) for x in test.x]
    # In float32, summing copies rounds differently from a larger learning rate, and batch norm over
    # four examples amplifies the difference.
    assert found[0].losses == pytest.approx(losses, rel=2e-3, abs=1e-4)
    assert all(sum(each.probabilities) == pytest.approx(1) for each in found)
    expected = classify(logits, phi, test, support, transductive=False)
    assert [int(np.argmax(each.probabilities)) for each in found] == expected.tolist()


def test_no_step_leaves_the_initialization(untrained):
    start = untrained.initializations["Reptile"]
    before = start.phi.clone()
    x = untrained.pool.images[:4, 0].float()
    found = adapt(start, x[:3], x[3], steps=0)
    assert len(found.losses) == 1
    logits = start.network(start.phi, x[[3, 0, 1, 2]])[0]
    assert found.probabilities == pytest.approx(logits.softmax(-1).tolist())
    adapt(start, x[:3], x[3], steps=2)
    assert torch.equal(start.phi, before)


# ---- weights


def test_own_runs_are_trained_once_and_kept(context, capsys):
    measured = weights.own(context, BRIEF)
    weights.train(context, measured)
    assert "Training two initializations" in capsys.readouterr().out
    loaded = weights.load(context, measured)
    assert list(loaded.initializations) == ["Reptile", "Joint training"]
    jobs = {name: job for name, (job, *_) in measured.items()}
    assert torch.equal(loaded.initializations["Reptile"].phi, state_at(jobs["Reptile"], 1).phi)
    assert "NOT OMNIGLOT" in loaded.warning and str(context.runs) in loaded.origin
    steps = {name: job.run.iterations * job.run.sampling.steps for name, job in jobs.items()}
    assert len(set(steps.values())) == 1  # both see as many minibatches

    before = {path: path.stat().st_mtime_ns for path in context.runs.rglob("*.safetensors")}
    assert len(before) == 4
    weights.train(context, measured)
    assert weights.load(context, measured).remarks == loaded.remarks
    assert capsys.readouterr().out == ""
    assert {path: path.stat().st_mtime_ns for path in context.runs.rglob("*.safetensors")} == before


@pytest.mark.parametrize("epoch", [0, EPOCH])
def test_a_finished_pair_of_figure_3_is_taken_and_half_a_pair_is_not(context, epoch):
    scale = Scale(looks=(1,), tasks=1, seeds=2, iterations=3)
    pairs = [
        [
            context.job(figure_3.configure(v, seed, iterations=3), v.name, until=1)
            for v in (sum_of(4), weights.last(1))
        ]
        for seed in context.seeds_of(2, epoch)
    ]
    context.train("test", [pairs[0][0], *pairs[1]])
    found = weights.of_figure_3(context, context.runs, scale)
    assert found is not None
    assert [job.key for job, *_ in found.values()] == [job.key for job in pairs[1]]
    assert "1 meta-iterations of 4 steps" in weights.load(context, found).remarks["Reptile"]
    assert weights.of_figure_3(context, context.runs / "nowhere", scale) is None


def test_remark_tells_how_long_and_how_accurate(context):
    job = context.job(weights.configure(sum_of(6), 2500), "demo")
    said = weights.remark(job, weights.EVALUATION, 0.8)
    assert said == (
        "2,500 meta-iterations of 6 steps; 80\N{NO-BREAK SPACE}% right on 3-way 1-shot test tasks"
    )


# ---- the page


def _get(address, body=None):
    """Return status and content; where a body is given, it is posted."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, data=body), timeout=20
        ) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@needs_extra
def test_page_answers(untrained):
    with serving(untrained) as address:
        status, page = _get(address)
        assert status == 200 and "default-src 'self'" in page
        tasks = json.loads(_get(f"{address}samples?first=6")[1])
        assert len(tasks) == 6 and all(
            len(image) == 784 for task in tasks for image in task["examples"] + task["again"]
        )
        assert tasks != json.loads(_get(f"{address}samples")[1])
        asked = QUESTION | {"drawings": [CROSS, LINE, tasks[0]["again"][0], LINE]}
        status, answer = _get(f"{address}classify", json.dumps(asked).encode())
        assert status == 200
        found = json.loads(answer)
        assert found["seen"] == [
            text(rasterize(CROSS)),
            text(rasterize(LINE)),
            tasks[0]["again"][0],
            text(rasterize(LINE)),
        ]
        for network in found["networks"].values():
            assert len(network["losses"]) == 4 and sum(network["probabilities"]) == pytest.approx(1)


@needs_extra
@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (
            "classify",
            b'{"drawings": [], "steps": NaN}',
            400,
            "drawings: expected a list of 3 examples",
        ),
        ("classify", b"nonsense", 400, "body: expected JSON"),
        ("classify", b" " * 1_000_001, 413, "body: expected at most 1000000 bytes, found more"),
        ("samples?first=-1", None, 400, "first: expected a whole number"),
        ("samples?first=nan", None, 400, "first: expected a whole number"),
        ("../../reproduce.py", None, 404, "Not Found"),
        ("%2e%2e/page.py", None, 404, "Not Found"),
    ],
)
def test_bad_requests_are_reported_in_one_line(untrained, path, body, status, message, capfd):
    with serving(untrained) as address:
        found = _get(address + path, body)
    assert found[0] == status and message in found[1] and "\n" not in found[1]
    assert "Traceback" not in capfd.readouterr().err


# ---- the command


@needs_extra
def test_nothing_listens_beyond_this_machine():
    with demo.listen(demo.parse([]).host, 0) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        socket.create_connection((host, port), timeout=5).close()
        # Connecting a datagram socket sends nothing, but finds this machine's other address.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))
            except OSError:
                pytest.skip("this machine has no other address")
            other = probe.getsockname()[0]
        with pytest.raises(OSError):
            socket.create_connection((other, port), timeout=5)


@needs_extra
def test_command_trains_serves_and_ends_with_an_interrupt(monkeypatch, tmp_path, capsys):
    served, opened = [], []

    def interrupted(self, sockets):
        served.append(sockets[0].getsockname())
        raise KeyboardInterrupt

    monkeypatch.setattr("uvicorn.Server.run", interrupted)
    monkeypatch.setattr("webbrowser.open", opened.append)
    threads = torch.get_num_threads()
    try:
        code = demo.main(
            ["--dataset", "glyphs", "--port", "0", "--out", str(tmp_path / "demo"), "--quiet"],
            scale=BRIEF,
        )
    finally:
        torch.set_num_threads(threads)
    assert code == 0
    assert served[0][0] == "127.0.0.1"
    assert opened == [f"http://127.0.0.1:{served[0][1]}/"] and opened[0] in capsys.readouterr().out
    assert list((tmp_path / "demo" / "runs").glob("*.safetensors"))


@needs_extra
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "--port: expected a number from 0 to 65535, found 70000"),
        (
            ["--host", "no such host"],
            "--host, --port: expected where to listen, found no such host",
        ),
        (["--dataset", "glyphs", "--data", "/"], "data: expected none with the glyphs"),
        (
            ["--dataset", "glyphs", "--runs", "/no/such/runs"],
            "--runs: expected the ablation's finished runs",
        ),
    ],
)
def test_bad_arguments_are_reported_in_one_line(arguments, message, tmp_path, capsys):
    assert (
        reproduce.main(
            ["demo", "--port", "0", "--no-browser", "--out", str(tmp_path / "demo"), *arguments]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.startswith("reproduce.py: error: ") and message in error and error.count("\n") == 1


def test_without_the_extra_the_error_names_the_command(monkeypatch, capsys):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert reproduce.main(["demo"]) == 2
    assert "pip install -e '.[demo]'" in capsys.readouterr().err
