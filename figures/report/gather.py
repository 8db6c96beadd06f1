"""What an output folder holds, as data for the report: claims with their verdicts and every case that was measured, the
figures with the words in them, and where all this comes from.

Verdicts and criteria are the ledger's (claims.json), numbers the tables'. What is not there yet is left out; what is
broken is a ResultsError of one line.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from analysis import claims, comparison
from analysis.claims import Claim, Interval
from analysis.experiment import Experiment
from analysis.experiments import EXPERIMENTS
from analysis.tables import ResultsError, read_csv

VERDICTS = (claims.SUPPORTED, claims.REFUTED, claims.INCONCLUSIVE, claims.NOT_JUDGED)
COLOURS = 256  # of the palette that figures are embedded with: flat colours need no more, and a third of the bytes do
INTERVAL = {"mean": "mean", "low": "from", "high": "to", "seeds": "seeds"}
BENCHMARKS = {"omniglot-5way": "Omniglot", "omniglot-20way": "Omniglot", "mini-imagenet": "Mini-ImageNet",
              "cifar-fs": "CIFAR-FS"}  # fmt: skip
# Tables that the report shows whole: whose and which, caption, and what it calls the columns that it shows.
SHOWN: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    (
        "ablation",
        "ablation_summary",
        "Accuracy after training by meta-gradient: mean over seeds with its 95 % Student-t interval",
        {"variant": "meta-gradient", **INTERVAL},
    ),
    *(
        (
            "few_shot",
            "few_shot_layout",
            f"Accuracy in % on {name}: measured here ± half a 95 % interval, in brackets as published; - where not",
            {"row": "method", **{f"{benchmark} {shots}-shot": f"{benchmark} {shots}-shot" for shots in (1, 5)}},
        )
        for benchmark, name in BENCHMARKS.items()
    ),
    (
        "rho",
        "rho_gains",
        "Gain in accuracy early in training by meta-gradient: mean over seeds with its 95 % Student-t interval",
        {"variant": "meta-gradient", "rho": "rho", **INTERVAL},
    ),
)


@dataclass(frozen=True)
class Case:
    """A row of the measurements. place: where its interval lies, "inside" the claim's band, "outside" it, or "across"
    an end of it."""

    role: str
    name: str
    value: float
    interval: Interval
    place: str


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict, one of VERDICTS, why that is so where the ledger says it, and what was measured.

    data: the lines that name data and scale; diverged: those on runs that ended early; command: what runs just this.
    """

    claim: Claim
    verdict: str
    why: str
    cases: tuple[Case, ...]
    data: tuple[str, ...]
    diverged: tuple[str, ...]
    command: str

    def of(self, role: str) -> list[Case]:
        return [case for case in self.cases if case.role == role]

    @property
    def places(self) -> dict[str, int]:
        """How many of the checks' cases lie inside the band, across an end of it, and outside."""
        places = [case.place for case in self.of("check")]
        return {place: places.count(place) for place in ("inside", "across", "outside") if place in places}

    def span(self, role: str) -> Interval | None:
        """From the lowest to the highest end of all intervals; None where nothing was measured."""
        ends = [case.interval for case in self.of(role)]
        return Interval(min(end.low for end in ends), max(end.high for end in ends)) if ends else None


@dataclass(frozen=True)
class Picture:
    """A figure as a PNG of few bytes, with the words that it was saved with."""

    name: str
    finding: str
    caption: str
    png: bytes
    size: tuple[int, int]


@dataclass(frozen=True)
class Shown:
    """A table of the report. rows: text or numbers, as many as there are columns."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Section:
    """An experiment: what it shows, its claims, its figures and its tables."""

    name: str
    shows: str
    judged: tuple[Judged, ...]
    pictures: tuple[Picture, ...]
    tables: tuple[Shown, ...]


@dataclass(frozen=True)
class Report:
    """Everything that the templates print. data: the lines that name data and scale, those of most claims first;
    made_up: those of them that only stand in for real data. provenance: of the last run, by name."""

    sections: tuple[Section, ...]
    data: tuple[str, ...]
    status: str
    provenance: Mapping[str, str]

    @property
    def judged(self) -> list[Judged]:
        return [judged for section in self.sections for judged in section.judged]

    @property
    def counts(self) -> dict[str, int]:
        """How many claims got each of VERDICTS."""
        return {verdict: sum(judged.verdict == verdict for judged in self.judged) for verdict in VERDICTS}

    @property
    def made_up(self) -> tuple[str, ...]:
        return tuple(line for line in self.data if claims.MADE_UP in line)


def gather(out: Path) -> Report:
    """Read the output folder. ResultsError where it holds no ledger, or a file that is not as it was written."""
    ledger = _ledger(out)
    manifest = _manifest(out / "manifest.json")
    pictures = list(_pictures(out / "figures"))
    sections = tuple(
        Section(
            name,
            experiment.shows,
            _judge(out, experiment, ledger, manifest["profile"] if manifest else "quick"),
            tuple(picture for source, picture in pictures if source == name),
            tuple(_shown(out / "tables", name)),
        )
        for name, experiment in EXPERIMENTS.items()
    )
    lines = Counter(line for section in sections for judged in section.judged for line in judged.data)
    data = tuple(line for line, _ in lines.most_common())
    return Report(sections, data, manifest["status"] if manifest else "unknown", _provenance(manifest, out))


def _ledger(out: Path) -> dict[str, dict[str, Any]]:
    """The ledger's rows by claim: those of this version's claims, no more and no fewer."""
    path = out / "claims.json"
    if not path.exists():
        raise ResultsError(f"{path}: expected the ledger of a run, found none; python reproduce.py writes it")
    rows = _json(path)
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise ResultsError(f"{path}: expected a list of claims, found {type(rows).__name__}")
    by_id = {str(row.get("id")): row for row in rows}
    known = {claim.id for experiment in EXPERIMENTS.values() for claim in experiment.claims}
    if odd := sorted(known ^ set(by_id)):
        found = f"found {odd[0]!r}" if odd[0] in by_id else f"found no {odd[0]!r}"
        raise ResultsError(
            f"{path}: expected this version's claims, {found}; python reproduce.py theory writes it anew"
        )
    return by_id


def _judge(
    out: Path, experiment: Experiment, ledger: Mapping[str, Mapping[str, Any]], profile: str
) -> tuple[Judged, ...]:
    """The experiment's claims as the ledger has them, with the rows of its measurements."""
    path = out / "tables" / f"{experiment.name}_measurements.csv"
    judged = any(ledger[claim.id].get("cases") for claim in experiment.claims)
    table = comparison.written(path) if judged and path.exists() else claims.NO_MEASUREMENTS
    table = table.reindex(columns=claims.NO_MEASUREMENTS.columns)
    for name in ("value", "low", "high"):
        try:
            table[name] = table[name].astype(float)
        except (TypeError, ValueError) as error:
            raise ResultsError(f"{path}: expected numbers in the column {name!r}, found {error}") from error
    return tuple(
        _judged(out, path, experiment.name, ledger[claim.id], table[table.claim == claim.id], profile)
        for claim in experiment.claims
    )


def _judged(
    out: Path, path: Path, experiment: str, row: Mapping[str, Any], table: pd.DataFrame, profile: str
) -> Judged:
    source = out / "claims.json"
    try:
        claim = Claim(**{field.name: row[field.name] for field in fields(Claim)})
        if odd := [
            name for name, value in vars(claim).items() if name not in ("low", "high") and type(value) is not str
        ]:
            raise TypeError(f"no text as its {odd[0]}")
        verdict, _, why = row["verdict"].partition(": ")
        expected = {"check": row["cases"], "control": row["controls"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultsError(f"{source}: expected a claim with its verdict, found {row.get('id')!r}: {error}") from error
    if verdict not in VERDICTS:
        raise ResultsError(f"{source}: expected one of {', '.join(VERDICTS)} of {claim.id}, found {verdict!r}")
    for role, count in expected.items():
        if count != (found := int((table.role == role).sum())):
            raise ResultsError(
                f"{path}: expected {count} rows ({role}) of {claim.id} as in {source.name}, found {found}; "
                f"python reproduce.py {experiment} writes both anew"
            )
    cases = tuple(
        Case(str(role), str(name), float(value), interval, _place(claim, interval))
        for role, name, value, interval in zip(
            table["role"], table["case"], table["value"], claims.intervals(table), strict=True
        )
    )
    data = tuple(line.removeprefix("Data: ") for line in _different(table["data"]))
    profiles = _different(table["profile"]) or [profile]
    command = f"python reproduce.py {experiment} --profile {profiles[0]}"
    command += " --dataset glyphs" if any(claims.MADE_UP in line for line in data) else ""
    return Judged(claim, verdict, why, cases, data, tuple(_different(table["diverged"])), command)


def _different(column: pd.Series) -> list[str]:
    """What a column says, each once, in order."""
    return list(dict.fromkeys(map(str, column.dropna())))


def _place(claim: Claim, interval: Interval) -> str:
    if claims.inside(claim, interval):
        return "inside"
    return "outside" if claims.outside(claim, interval) else "across"


def _pictures(folder: Path) -> Iterator[tuple[str, Picture]]:
    """The figures that say which experiment they are of, with that; in the order of their names."""
    for path in sorted(folder.glob("*.png")):
        try:
            with Image.open(path) as image:
                words = {name: " ".join(str(image.info.get(name, "")).split()) for name in ("Title", "Description")}
                source = str(image.info.get("Source", ""))
                buffer = io.BytesIO()
                flat = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
                flat.save(buffer, "png", optimize=True)
        except (OSError, SyntaxError, ValueError) as error:
            raise ResultsError(f"{path}: expected a figure, found {error}") from error
        yield source, Picture(path.stem, words["Title"], words["Description"], buffer.getvalue(), flat.size)


def _shown(folder: Path, experiment: str) -> Iterator[Shown]:
    """Those of SHOWN that the experiment has written, but for rows of which nothing was measured."""
    for owner, name, caption, columns in SHOWN:
        path = folder / f"{name}.csv"
        if owner == experiment and path.exists():
            table = read_csv(path)
            if missing := [column for column in columns if column not in table.columns]:
                raise ResultsError(f"{path}: expected the column {missing[0]!r}, found {', '.join(table.columns)}")
            rows = tuple(table[list(columns)].itertuples(index=False, name=None))
            rows = tuple(row for row in rows if not all(str(cell).startswith("- ") for cell in row[1:]))
            if rows:
                yield Shown(caption, tuple(columns.values()), rows)


def _manifest(path: Path) -> dict[str, Any] | None:
    """The last run's manifest; None where there is none."""
    if not path.exists():
        return None
    manifest = _json(path)
    if not isinstance(manifest, dict):
        raise ResultsError(f"{path}: expected an object, found {type(manifest).__name__}")
    for name in ("status", "profile"):
        if not isinstance(manifest.get(name), str):
            raise ResultsError(f"{path}: expected the run's {name}, found {manifest.get(name)!r}")
    return manifest


def _provenance(manifest: Mapping[str, Any] | None, out: Path) -> dict[str, str]:
    """What the manifest says of the last run, in words."""
    if manifest is None:
        return {}
    try:
        commit, machine, took = manifest["commit"], manifest["machine"], manifest.get("wall_seconds", {})
        changed = ", with changes that are not committed" if commit and commit["modified"] else ""
        return {
            "Command": " ".join(map(str, manifest["command"])),
            "Begun and ended (UTC)": f"{manifest['started']}, {manifest.get('finished', 'not yet')}",
            "Commit": f"{commit['sha']}{changed}" if commit else "not known",
            "Machine": f"{machine['processor']}, {machine['cores']} cores, {machine['workers']} workers on "
            f"{machine['device']}; {machine['platform']}",
            "Versions": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
            "Seconds": ", ".join(f"{name} {seconds:,.0f}" for name, seconds in took.items()) or "not known",
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultsError(f"{out / 'manifest.json'}: expected what a run writes, found none of {error}") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path}: expected JSON, found {error}") from error
