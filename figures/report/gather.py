"""What an output folder holds, as data for the report.

The data are claims with their verdicts and every case that was measured, the figures with the words
in them, and where all this comes from.

Claims and verdicts are the ledger's alone (claims.json). What is not there yet is left out. What is
broken is a ResultsError of one line.
"""

import io
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from analysis import program
from analysis.experiments.registry import EXPERIMENTS
from analysis.experiments.shared.experiment import Experiment, claims_of
from analysis.results import ledger
from analysis.results.claims import Claim
from analysis.results.tables import ResultsError
from analysis.results.verdict import Decision, Verdict
from figures.report import provenance
from figures.report.tables import Shown
from figures.report.tables import shown as tables_of

MADE_UP = "NOT OMNIGLOT"  # begins the line on data that only stand in for it
# Colours of an embedded figure: flat areas need no more, and a third of the bytes will do.
COLOURS = 256


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict, and commands.

    command: measures just this.
    to_decide: adds as many seeds as would decide it; None where no number would, or it is decided.
    """

    verdict: Verdict
    command: str
    to_decide: str | None = None

    @property
    def claim(self) -> Claim:
        return self.verdict.claim

    @property
    def decision(self) -> Decision:
        return self.verdict.decision

    @property
    def data(self) -> dict[str, list[str]]:
        """The lines that name data and scale, each with the cases that were measured on them."""
        found: dict[str, list[str]] = {_data(line): [] for line in self.verdict.data}
        for case in (*self.verdict.cases, *self.verdict.controls, *self.verdict.shown):
            names = found.setdefault(_data(case.data), []) if case.data else []
            if case.name and case.name not in names:
                names.append(case.name)
        return found


@dataclass(frozen=True)
class Picture:
    """A figure as a PNG of few bytes, with the words that it was saved with."""

    name: str
    finding: str
    caption: str
    png: bytes
    size: tuple[int, int]


@dataclass(frozen=True)
class Section:
    """An experiment: what it shows, its claims, its figures and its tables.

    settings: by name, as JSON. runs: lines on what was trained where. files: names of its tables.
    """

    name: str
    shows: str
    judged: tuple[Judged, ...]
    pictures: tuple[Picture, ...]
    tables: tuple[Shown, ...]
    settings: Mapping[str, str]
    runs: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def was_run(self) -> bool:
        """Whether the folder holds anything of it."""
        measured = any(judged.verdict.why != "not measured" for judged in self.judged)
        return measured or bool(self.pictures or self.settings or self.runs or self.files)


@dataclass(frozen=True)
class Report:
    """Everything that the templates print.

    sections: the experiments that were run; not_run: the others that have claims.
    data: the lines that name data and scale, those of most claims first.
    made_up: those lines of data that only stand in for real data.
    provenance: of each command, by name, the last first.
    """

    sections: tuple[Section, ...]
    not_run: tuple[Section, ...]
    data: tuple[str, ...]
    status: str
    provenance: tuple[Mapping[str, str], ...]

    @property
    def judged(self) -> list[Judged]:
        """The claims of the experiments that were run."""
        return list(chain.from_iterable(section.judged for section in self.sections))

    @property
    def left_out(self) -> int:
        """The number of claims of the experiments that were not run."""
        return sum(len(section.judged) for section in self.not_run)

    @property
    def counts(self) -> dict[str, int]:
        """The number of claims with each verdict, of the experiments that were run."""
        return ledger.count(judged.verdict for judged in self.judged)

    @property
    def made_up(self) -> tuple[str, ...]:
        return tuple(line for line in self.data if MADE_UP in line)


def gather(out: Path) -> Report:
    """Read the output folder.

    Raises ResultsError where it holds no ledger, or a file that is not as it was written.
    """
    verdicts = _ledger(out)
    manifest = _manifest(out / "manifest.json")
    pictures = list(_pictures(out / "figures"))
    sections = []
    lines: Counter[str] = Counter()
    for experiment in EXPERIMENTS.values():
        section = _section(experiment, verdicts, pictures, out / "tables", manifest)
        sections.append(section)
        for judged in section.judged:
            lines.update(judged.data.keys())
    data = tuple(line for line, _ in lines.most_common())
    status = manifest["status"] if manifest else "unknown"
    run = tuple(section for section in sections if section.was_run)
    not_run = tuple(section for section in sections if section.judged and not section.was_run)
    return Report(run, not_run, data, status, provenance.commands(manifest, out))


def _ledger(out: Path) -> dict[str, Verdict]:
    """Return the verdicts by claim: those of this version's claims, no more and no fewer."""
    by_id = {verdict.claim.id: verdict for verdict in ledger.read(out)}
    known = {claim.id for claim in claims_of(EXPERIMENTS.values())}
    if odd := sorted(known ^ set(by_id)):
        found = f"found {odd[0]!r}" if odd[0] in by_id else f"found no {odd[0]!r}"
        raise ResultsError(
            f"{out / ledger.NAME}: expected this version's claims, {found}; python reproduce.py "
            "theory writes all of it, and --plugin FILE names a claim of your own"
        )
    return by_id


def _section(
    experiment: Experiment,
    verdicts: Mapping[str, Verdict],
    pictures: list[tuple[str, Picture]],
    tables: Path,
    manifest: Mapping[str, Any] | None,
) -> Section:
    """Return an experiment with what the folder holds of it."""
    name = experiment.name
    judged = tuple(_judged(verdicts[claim.id], experiment, manifest) for claim in experiment.claims)
    own = tuple(picture for source, picture in pictures if source == name)
    data = tuple(dict.fromkeys(chain.from_iterable(one.data for one in judged)))
    shown = tuple(tables_of(tables, name, data))
    runs, files = provenance.runs(tables, name), provenance.files(tables, name)
    return Section(
        name, experiment.shows, judged, own, shown, provenance.settings(manifest, name), runs, files
    )


def _judged(verdict: Verdict, experiment: Experiment, manifest: Mapping[str, Any] | None) -> Judged:
    """Return a claim with its verdict and commands, with the options of its experiment's last run.

    The profile is that of the manifest where nothing says at which one the claim was measured.
    """
    profile = verdict.profile or (manifest["profile"] if manifest else "quick")

    def command(seeds: Mapping[str, int]) -> str:
        words = provenance.options(manifest, experiment, seeds)
        words = [experiment.name, "--profile", profile, *words]
        if any(MADE_UP in line for line in verdict.data):
            words += ["--dataset", "glyphs"]
        return f"{program.command()} {shlex.join(words)}"

    if verdict.plan is None or verdict.planned is None:
        return Judged(verdict, command({}))
    to_decide = {experiment.named_for_seeds(verdict): verdict.planned}
    return Judged(verdict, command({}), command(to_decide))


def _data(line: str) -> str:
    return line.removeprefix("Data: ")


def _pictures(folder: Path) -> Iterator[tuple[str, Picture]]:
    """Yield each figure after the name of its experiment, in the order of the file names."""
    for path in sorted(folder.glob("*.png")):
        try:
            with Image.open(path) as image:
                title, description = _words(image, "Title"), _words(image, "Description")
                source = str(image.info.get("Source", ""))
                buffer = io.BytesIO()
                flat = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
                flat.save(buffer, "png", optimize=True)
        except (OSError, SyntaxError, ValueError) as error:
            raise ResultsError(f"{path}: expected a figure, found {error}") from error
        yield source, Picture(path.stem, title, description, buffer.getvalue(), flat.size)


def _words(image: Image.Image, name: str) -> str:
    """Return what a figure's file says under this name, in one line."""
    return " ".join(str(image.info.get(name, "")).split())


def _manifest(path: Path) -> dict[str, Any] | None:
    """Return the last run's manifest; None where there is none."""
    if not path.exists():
        return None
    manifest = _json(path)
    if not isinstance(manifest, dict):
        raise ResultsError(f"{path}: expected an object, found {type(manifest).__name__}")
    for name in ("status", "profile"):
        if not isinstance(manifest.get(name), str):
            raise ResultsError(f"{path}: expected the run's {name}, found {manifest.get(name)!r}")
    earlier = manifest.get("earlier", {})
    for record in (manifest, *(earlier.values() if isinstance(earlier, dict) else [earlier])):
        if not isinstance(record, dict) or not isinstance(record.get("experiments", {}), dict):
            raise ResultsError(
                f"{path}: expected the records of commands with experiments, found {record!r:.60}"
            )
    return manifest


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path}: expected JSON, found {error}") from error
