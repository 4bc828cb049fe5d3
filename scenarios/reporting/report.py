"""Reports: the numbers of a record as text, and one self-contained HTML page of one or more run folders."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from distill.errors import InputError, clipped
from distill.records import write_whole
from scenarios.engine.public_part import handing_on, is_private
from scenarios.engine.record import Config, Record
from scenarios.engine.study import AnyKind, Kinds, View
from scenarios.reporting import page
from scenarios.reporting.runs import Run, by_seed, differing, read_run, short, summary

_CONFIGURATION = 200_000  # characters of it that are shown


def view_of(record: Record, kinds: Kinds) -> View:
    """How this record is shown; `InputError` for a kind that is not among ``kinds``: a record may come from anywhere."""
    return kind_of(record, kinds).view


def kind_of(record: Record, kinds: Kinds) -> AnyKind:
    """The record's kind; `InputError` where it is not among ``kinds``."""
    name = record.get("kind", "condense")
    if not isinstance(name, str) or name not in kinds:
        raise InputError(f"the record's kind is {str(name)[:40]!r}; this version can show: {', '.join(kinds)}.")
    return kinds[name]


def missing(record: Record, config: Config, view: View) -> list[str]:
    """Sentences about what a reader could miss: a run that did not end, and what its kind says was not run."""
    sentences = []
    if record.get("status") != "done":
        sentences.append(f"The run is not finished (status {record.get('status')}); the figures are those of what was.")
    try:
        return sentences + view.missing(record, config)
    except (KeyError, TypeError, AttributeError, IndexError):
        return [*sentences, "What else was left out cannot be read from this configuration."]


def question(config: Config, view: View) -> str:
    """The study's question in a sentence; the title where the configuration does not hold more."""
    try:
        return view.question(config)
    except (KeyError, TypeError, IndexError):  # a part of a configuration
        return str(config.get("title") or config.get("scenario") or "")


def write_report(folders: Sequence[Path], out: Path, kinds: Kinds) -> None:
    """One HTML file of at most 5 MB with everything inside; several runs side by side, then one after the other."""
    runs = [read_run(folder, kinds) for folder in {folder.resolve(): folder for folder in folders}.values()]
    figures = {run.folder: sorted((run.folder / "figures").glob("*.png")) for run in runs}
    paths = [path for files in figures.values() for path in files]
    bare = _page(runs, figures, {}, kinds)
    if len(bare.encode()) > page.MAX_BYTES:
        raise InputError(f"the report would have {len(bare.encode())} bytes without a figure; allowed: {page.MAX_BYTES}. Give fewer runs.")
    pictures = page.fitted(paths, page.MAX_BYTES - len(bare.encode()))
    write_whole(out, _page(runs, figures, pictures, kinds))


def _page(runs: Sequence[Run], figures: dict[Path, list[Path]], pictures: dict[Path, page.Picture], kinds: Kinds) -> str:
    if len(runs) == 1:
        return page.whole(_title(runs[0]), _section(runs[0], "h1", figures[runs[0].folder], pictures, kinds))
    private = [run.folder.name for run in runs if is_private(run.folder, run.config)]
    parts = [
        page.text(f"Private: do not hand on this page, which shows figures of {clipped(', '.join(private))}.", name="reason")
        if private
        else "",
        page.text(f"{len(runs)} runs side by side", "h1"),
        page.table(_side_by_side(runs)),
        page.text("Figures of the records with their own intervals, in the order in which the runs were given.", name="small"),
        *_over_seeds(runs),
        *_pictures_side_by_side(runs, figures, pictures),
        *(f"<section>{_section(run, 'h2', [], pictures, kinds)}</section>" for run in runs),
    ]
    return page.whole(f"{len(runs)} runs", "".join(parts))


def _section(run: Run, heading: str, figures: Sequence[Path], pictures: dict[Path, page.Picture], kinds: Kinds) -> str:
    try:
        return _described(run, heading, figures, pictures, view_of(run.record, kinds))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{run.folder / 'record.json'}: is not a complete record ({type(error).__name__}: {error}).") from None


def _described(run: Run, heading: str, figures: Sequence[Path], pictures: dict[Path, page.Picture], view: View) -> str:
    """Question, answer, table, figures, what was not run, the machine, the configuration."""
    record, config = run.record, run.config
    left = missing(record, config, view)
    remarks = [clipped(text, 400) for text in view.remarks(record)]
    notes = [clipped(text, 400) for text in record.get("notes", [])]
    environment = record["environment"]
    facts = (
        f"{record['scenario']}, seed {record['seed']}, status {record['status']}: {record['seconds']:.0f} s,"
        f" peak memory {record['peak_memory_bytes'] / 1e9:.2f} GB, {environment.get('gpu') or environment['processor']}."
        f" Folder: {run.folder.name}."
    )
    left_out = [path.name for path in figures if path not in pictures] if pictures else []
    rows = view.table(record)
    parts = [
        page.text(handing_on(record, "this page"), name="reason") if is_private(run.folder, config) else "",
        page.text(_title(run), heading),
        _reason(record),
        page.text(question(config, view), name="question"),
        _answer(view.answer(record).splitlines()),
        page.table(rows),
        page.text(view.note, name="small") if rows else "",
        "<div class=pictures>",
        *(page.picture(pictures[path], path.stem) for path in figures if path in pictures),
        "</div>",
        page.text(f"Figures that are no pictures or do not fit into the page: {', '.join(left_out)}.", name="small") if left_out else "",
        page.text("Left out", "h3") + page.listed(remarks) if remarks else "",
        page.text("Notes", "h3") + page.listed(notes) if notes else "",
        page.text("Not run", "h3") + page.listed(left) if left else "",
        page.text(facts, name="small"),
        page.folded("Configuration", clipped_lines(json.dumps(config, indent=1))),
    ]
    return "".join(parts)


def _reason(record: Record) -> str:
    """Why a run has no results or not all: what a reader must see first."""
    if record["status"] == "done" or not record.get("reason"):
        return ""
    state = f"This run {'was ' if record['status'] == 'interrupted' else ''}{record['status']}"
    return page.text(f"{state}: {clipped(record['reason'], 1000)}", name="reason")


def _answer(lines: list[str]) -> str:
    """A sentence as a paragraph, several (of a pipeline, one a stage) as a list."""
    return page.text(lines[0] if lines else "", name="answer") if len(lines) < 2 else f"<div class=answer>{page.listed(lines)}</div>"


def clipped_lines(text: str) -> str:
    """The text, cut after `_CONFIGURATION` characters."""
    return text if len(text) <= _CONFIGURATION else f"{text[:_CONFIGURATION]}\n... ({len(text)} characters; all of it is in config.json)"


def _title(run: Run) -> str:
    return clipped(run.record.get("title") or run.record.get("scenario"), 200)


# Several runs


def _labels(runs: Sequence[Run]) -> list[str]:
    """Short names: the scenario and its seed, with the folder where that is not enough."""
    names = [f"{clipped(run.record.get('scenario'), 60)}, seed {clipped(run.record.get('seed'), 12)}" for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({run.folder.name})" for name, run in zip(names, runs, strict=True)]


def _side_by_side(runs: Sequence[Run]) -> list[list[str]]:
    """One column a run: where the configurations differ, and the main figures of the records."""
    settings, found = [run.settings for run in runs], [run.main_figures for run in runs]
    rows = [["", *_labels(runs)], ["status", *(clipped(run.record.get("status"), 20) for run in runs)]]
    common = [name for name in differing(runs) if all(name in one for one in settings)]  # studies of other kinds have other settings
    rows += [[name, *(clipped(one[name], 60) for one in settings)] for name in common]
    for name in dict.fromkeys(name for one in found for name in one):
        rows.append([name, *(_figure(one[name]) if name in one else "-" for one in found)])
    return [*rows, ["seconds", *(_seconds(run.record.get("seconds")) for run in runs)]]


def _figure(found: tuple[float, float | None, float | None]) -> str:
    middle, low, high = found
    return f"{middle:.4g}" + (f" ({low:.4g} to {high:.4g})" if low is not None and high is not None else "")


def _seconds(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, int | float) and math.isfinite(value) else "-"


def _over_seeds(runs: Sequence[Run]) -> list[str]:
    """The mean over seeds, where there are several of a study."""
    done = [run for run in runs if run.record.get("status") == "done"]
    try:
        several = [run for group in by_seed(done) if len(group) > 1 for run in group]
    except InputError:  # the same study and seed twice, from two places: the columns show them, a mean would count one twice
        return []
    return [page.text("Mean and 95 % interval over seeds", "h2"), page.table(short(summary(several)))] if several else []


def _pictures_side_by_side(runs: Sequence[Run], figures: dict[Path, list[Path]], pictures: dict[Path, page.Picture]) -> list[str]:
    parts = []
    labels = _labels(runs)
    for name in dict.fromkeys(path.name for run in runs for path in figures[run.folder]):
        those = [(label, run.folder / "figures" / name) for label, run in zip(labels, runs, strict=True)]
        shown = [page.picture(pictures[path], f"{Path(name).stem}, {label}", label) for label, path in those if path in pictures]
        parts += [page.text(Path(name).stem, "h2"), f"<div class=pictures>{''.join(shown)}</div>"] if shown else []
    return parts
