"""Publishing: an output folder becomes a page, complete and nothing else.

The numbers in README are the published ones.
"""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

import reproduce
from analysis.paper import benchmarks
from analysis.results import manifest, manifest_records
from figures.publish import PUBLISHED, publish, without_paths
from figures.report.gather import gather
from figures.report.render import markdown
from tests.helpers.runs import FIRST_SEED

README = Path(__file__).parents[1] / "README.md"


def test_a_finished_run_is_published_whole(finished_ablation: Path, tmp_path: Path) -> None:
    out, to = tmp_path / "run", tmp_path / "published"
    shutil.copytree(finished_ablation, out)
    assert reproduce.main(["publish", str(out), "--name", "x", "--to", str(to)]) == 0
    files = {
        path.relative_to(to / "x").as_posix() for path in (to / "x").rglob("*") if path.is_file()
    }
    assert {
        "README.md",
        "claims.json",
        "manifest.json",
        "tables/ablation.csv",
        "tables/SHA256SUMS",
    } <= files
    assert not any(name.startswith("runs/") for name in files)
    assert (to / "x" / "tables" / "ablation.csv").read_bytes() == (
        out / "tables" / "ablation.csv"
    ).read_bytes()
    assert (
        str(tmp_path)
        not in (to / "x" / "manifest.json").read_text() + (to / "x" / "README.md").read_text()
    )
    (to / "x" / "stale").touch()
    assert reproduce.main(["publish", str(out), "--name", "x", "--to", str(to)]) == 0
    assert not (to / "x" / "stale").exists()
    judged = (to / "x" / "claims.json").read_text()
    altered = (out / "claims.json").read_text().replace('"undecided"', '"supported"')
    (out / "claims.json").write_text(altered)
    publish(out, to / "x")
    assert '"undecided"' in judged and (to / "x" / "claims.json").read_text() == judged
    page = (to / "x" / "README.md").read_text()
    record = json.loads((to / "x" / "manifest.json").read_text())
    assert (
        record["sources"] in page
        and record["machine"]["kind"] in page
        and "reproduce.py ablation" in page
    )
    assert "- runs: 10 on cpu (" in page and f"seeds {FIRST_SEED}; " in page
    assert "](tables/ablation_runs.csv)" in page and "- looks: `[1, 2]`" in page


def test_what_was_published_stays_where_the_new_one_cannot_be(
    finished_ablation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = publish(finished_ablation, tmp_path / "published" / "x")
    files = sorted(published.rglob("*"))
    incomplete = tmp_path / "x"
    shutil.copytree(finished_ablation, incomplete, ignore=shutil.ignore_patterns("claims.json"))
    for folder, message in (
        (incomplete, "expected the ledger of a run, found none"),
        (published, "expected an output folder, found the published one itself"),
    ):
        assert reproduce.main(["publish", str(folder), "--to", str(published.parent)]) == 1
        assert message in capsys.readouterr().err
        assert sorted(published.rglob("*")) == files
        assert list(published.parent.iterdir()) == [published]


def test_a_page_names_every_command_that_filled_the_folder(
    finished_ablation: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished_ablation, out, ignore=shutil.ignore_patterns("runs"))
    record = json.loads((out / "manifest.json").read_text())
    last = record | {
        "experiments": {"sgd": {"steps": 7}},
        "tables": {},
        "tables_of": {},
        "wall_seconds": {"sgd": 5.0},
    }
    earlier = manifest_records.by_experiment(manifest.read(out / "manifest.json"))
    last |= {"command": ["/home/x/reproduce.py", "sgd", "--out", "/home/x/out"], "earlier": earlier}
    manifest.write(last, out / "manifest.json")
    page = (publish(out, tmp_path / "to") / "README.md").read_text()
    assert page.index("Command: reproduce.py sgd") < page.rindex("Command: ")
    assert "Seconds: sgd 5" in page and "Seconds: ablation " in page and "- steps: `7`" in page
    assert str(tmp_path) not in page + (tmp_path / "to" / "manifest.json").read_text()


def test_paths_are_left_out_of_a_command() -> None:
    command = ["/home/x/reproduce.py", "theory", "--out", "/tmp/x", "--data=/data", "--seeds", "3"]
    assert without_paths(command) == ["reproduce.py", "theory", "--seeds", "3"]


def test_what_is_not_finished_is_not_published(
    finished_ablation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce.main(["publish", str(tmp_path), "--to", str(tmp_path / "to")]) == 1
    assert "expected a manifest, found none that can be read" in capsys.readouterr().err
    out = tmp_path / "run"
    shutil.copytree(finished_ablation, out)
    record = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(record | {"status": "interrupted"}))
    assert reproduce.main(["publish", str(out), "--to", str(tmp_path / "to")]) == 1
    assert "expected a finished run, found one that is interrupted" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


# (`claim-id`: numbers and words), or (`claim-id`, case: numbers and words)
CITED = re.compile(r"`([a-z0-9-]+)`(?:,\s(?:k = \d|g_\d))?:\s([^)]*)\)")
HOUR = (
    # The numbers from here to the end of the paragraph come from that run.
    "[An hour](figures/published/hour/README.md)"
)


def _numbers(claim: dict) -> set[str]:
    """Return the numbers that a text may quote for a claim.

    These are the number of seeds, and means and ends of intervals of its cases.
    They are plain or in points, with 0 to 3 decimals.
    """
    found = {str(len(case["seeds"])) for case in claim["cases"]}
    for case in (*claim["cases"], *claim["control"]["cases"], *claim["shown"]):
        for value in (case["mean"], case["low"], case["high"]):
            if value is not None:
                found |= {f"{scale * value:.{d}f}" for scale in (1, 100) for d in range(4)}
    return found


def _verdicts(run: str) -> list[dict]:
    return json.loads((PUBLISHED / run / "claims.json").read_text())


def _section(begins: str, ends: str) -> str:
    page = (PUBLISHED / "README.md").read_text()
    return page[page.index(begins) : page.index(ends)]


@pytest.mark.parametrize(("run", "least"), [("quick", 6), ("hour", 4)])
def test_every_number_that_the_readme_cites_is_the_published_one(run: str, least: int) -> None:
    claims = {claim["id"]: claim for claim in _verdicts(run)}
    before, after = README.read_text().split(HOUR)
    of_hour, _, rest = after.partition("\n\n")
    cited = CITED.findall(of_hour if run == "hour" else before + rest)
    assert len(cited) >= least
    for id, words in cited:
        allowed = _numbers(claims[id])
        for number in re.findall(r"(?<![\w=])-?\d+(?:\.\d+)?", words.replace("k = 4", "")):
            assert number in allowed, f"{id}: {number}"


@pytest.mark.parametrize(
    ("run", "begins", "ends", "count"),
    [
        ("paper", "[At the paper's own scale]", "\n## Figure 3", 17),
        ("figure_3_to_5000", "\n## Figure 3", "\n## Omniglot", 6),
    ],
)
def test_every_number_that_the_page_cites_is_the_published_one(
    run: str, begins: str, ends: str, count: int
) -> None:
    claims = {claim["id"]: claim for claim in _verdicts(run)}
    cited = CITED.findall(_section(begins, ends))
    assert len(cited) == count
    for id, words in cited:
        assert set(re.findall(r"-?\d+\.\d+", words)) <= _numbers(claims[id]), id
        assert ("undecided" in words) == (claims[id]["verdict"] == "undecided"), id


def test_raw_inner_products_in_the_text_are_the_published_ones() -> None:
    section = _section("- **Inner products along", "![Gradients of one task")
    folder = PUBLISHED / "paper" / "tables"
    table = pd.read_csv(folder / "inner_products_intervals.csv")
    raw = table[(table.quantity == "inner product") & (table.pairs == "within")]
    mean = raw[(raw.characters == "train") & (raw.when == "before")].set_index(
        ["variant", "iteration"]
    )["mean"]
    four, two = "g1+g2+g3+g4", "g1+g2"
    points = [(four, 0), (four, 40_000), (two, 1_000), (two, 40_000)]
    assert re.findall(r"\d+,000(?! iterations)", section) == [
        f"{round(mean[point], -3):,.0f}" for point in points
    ]
    hours = pd.read_csv(folder / "inner_products_runs.csv").seconds.sum() / 3600
    assert f"took {hours:.1f} hours of one core" in section


def test_figure_3s_table_is_the_published_one() -> None:
    section, folder = _section("\n## Figure 3", "\n## Omniglot"), PUBLISHED / "figure_3_to_5000"
    measured = {claim["id"] for claim in _verdicts("figure_3_to_5000") if claim["cases"]}
    assert {id for id, _ in CITED.findall(section)} == measured
    for variant, curve in pd.read_csv(folder / "tables" / "ablation_intervals.csv").groupby(
        "variant"
    ):
        looks = curve.set_index("iteration").loc[[1_000, 5_000], ["mean", "low", "high"]] * 100
        cells = [f"{mean:.1f} ({low:.1f} to {high:.1f})" for mean, low, high in looks.to_numpy()]
        assert f"| {variant} | {' | '.join(cells)} |" in section
    seconds = json.loads((folder / "manifest.json").read_text())["wall_seconds"]["ablation"]
    assert f"took {seconds / 60:.0f} minutes" in section


@pytest.mark.parametrize(
    ("tables", "begins", "ends", "least"),
    [
        (["few_shot_omniglot_5way"], "\n## Omniglot", "\n## CIFAR-FS", 12),
        (["few_shot_cifar_fs", "few_shot_cifar_fs_2500"], "\n## CIFAR-FS", "\n## What is not", 26),
    ],
)
def test_every_cell_of_a_single_run_is_that_of_its_table(
    tables: list[str], begins: str, ends: str, least: int
) -> None:
    cells = pd.concat([pd.read_csv(PUBLISHED / f"{name}.csv") for name in tables])
    cells = cells[cells.status == "measured"]
    half = (cells.high - cells.low) / 2
    pairs = {*zip(cells["mean"], half, strict=True)}
    pairs |= {*zip(cells.published, cells.published_half, strict=True)}
    allowed = {f"{mean:.{d}f} ± {width:.{d}f}" for mean, width in pairs for d in (1, 2)}
    allowed |= {f"{mean:.1f} ± {width:.1f}" for mean, width, _ in benchmarks.PUBLISHED.values()}
    found = re.findall(r"\d+\.\d+ ± \d+\.\d+", _section(begins, ends))
    assert len(found) >= least and set(found) <= allowed


def test_an_hours_verdicts_are_those_of_the_default_run_or_decide_more() -> None:
    decided = {
        claim["id"]: claim["verdict"]
        for claim in _verdicts("quick")
        if claim["verdict"] != "undecided"
    }
    hour = {claim["id"]: claim["verdict"] for claim in _verdicts("hour")}
    assert {id: hour[id] for id in decided} == decided
    of_experiments = [
        c for c in _verdicts("hour") if c["kind"] == "experiment" and c["verdict"] != "undecided"
    ]
    assert f"decides {len(of_experiments)}." in README.read_text()


def test_the_readmes_tally_is_the_published_one() -> None:
    text = " ".join(README.read_text().split())
    report = gather(PUBLISHED / "quick")
    assert f"{report.left_out} more were not run" in text
    for kind in ("theorem", "experiment"):
        verdicts = [judged.decision for judged in report.judged if judged.claim.kind == kind]
        words = ", ".join(
            f"{verdicts.count(v)} {v}"
            for v in ("supported", "refuted", "undecided")
            if v in verdicts
        )
        assert words in text


@pytest.mark.parametrize("run", ["quick", "hour", "paper", "figure_3_to_5000"])
def test_a_published_page_is_the_report_of_its_folder(run: str) -> None:
    assert (PUBLISHED / run / "README.md").read_text() == markdown(gather(PUBLISHED / run))
