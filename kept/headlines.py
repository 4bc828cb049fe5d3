"""Which stored results are in the application table of docs/results.md: rows are selected by a study's question, never by its outcome."""

from dataclasses import dataclass

from distill.errors import InputError
from scenarios.reporting.text import as_markdown

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Headline:
    """One line: a kept study, what its figures are, and which rows are shown under which name, the condensed one first."""

    kind: str
    scenario: str
    asked: str
    shown: tuple[tuple[str, dict[str, str]], ...]
    column: str = "accuracy"  # of a mean (or value), a low and a high
    digits: int = 1
    unless: str = ""  # a column of the kept rows; where all of its cells are empty, ``asked`` says so with ``lacking``
    lacking: str = ""


def _rounds(name: str) -> Headline:
    shown = (("FedDM", "feddm"), ("real images sent instead", "random"), ("FedAvg", "fedavg"), ("SCAFFOLD", "scaffold"))
    rows = tuple((label, {"strategy": strategy, "round": "5"}) for label, strategy in shown)
    asked = "accuracy after 5 rounds{}, %"
    return Headline("federated", f"federated-mnist-{name}", asked, rows, unless="tuned", lacking=", averaging not tuned")


def _memory(scenario: str, budget: str, asked: str) -> Headline:
    shown, cell = (("DM", "dm"), ("random", "random"), ("herding", "herding")), {"strategy": "scratch", "storage": "float32"}
    rows = tuple((label, {"method": name, "budget": budget, **cell}) for label, name in shown)
    return Headline("continual", scenario, asked, rows)


def _bytes(name: str, images: str) -> Headline:
    shown = ("dm-decoded", "random", "random-decoded", "random-zlib", "random-webp50")
    rows = tuple((label, {"strategy": "scratch", "method": label}) for label in shown)
    return Headline("continual", f"continual-bytes-{name}", f"accuracy trained anew, all in the bytes of {images} a class, %", rows)


def _one_shot(scenario: str, images: str, *, averaged: bool) -> Headline:
    shown = (("FedDM", "feddm"), ("real images sent instead", "random"), ("herding", "herding"), ("one round of FedAvg", "fedavg"))
    rows = tuple((label, {"strategy": strategy, "round": "1"}) for label, strategy in shown[: 4 if averaged else 3])
    return Headline("federated", scenario, f"accuracy after one upload of {images}, %", rows)


def _private(name: str, *, twin: bool) -> Headline:
    without_noise = (("without noise", "dm without noise"),) if twin else ()
    shown = (("private DM", "private dm"), *without_noise, ("random real images", "random"))
    rows = tuple((label, {"set": row, "budget": "1"}) for label, row in shown)
    return Headline("privacy", f"privacy-dm-{name}", "accuracy of ten images a class at epsilon 1, %", rows)


def _proxies(scenario: str, *names: str) -> Headline:
    rows = tuple((name, {"proxy": name}) for name in names)
    return Headline("nas", scenario, "Spearman with the truth", rows, "spearman", 2)


HEADLINES = (
    _rounds("pathological"),
    _rounds("dirichlet"),
    _one_shot("federated-oneshot-cifar10", "ten images a class", averaged=False),
    _one_shot("federated-oneshot-cifar10-pathological", "forty small images a class in the place of ten", averaged=True),
    _memory("continual-mnist", "items1", "accuracy trained anew on 1 image a class, %"),
    _memory("continual-cifar100-cut", "items20", "accuracy trained anew on 20 images a class, %"),
    _bytes("mnist", "one float32 image"),
    _bytes("fashion-mnist", "one float32 image"),
    _bytes("cifar10", "ten uint8 images"),
    _private("mnist", twin=True),
    _private("fashion-mnist", twin=False),
    _proxies("nas-small", "gm", "dsa", "dm", "random", "parameters"),
    _proxies("nas-small-space", "dm", "random"),
)


def headlines(kept: dict[str, dict[str, Rows]]) -> str:
    """Markdown from the kept rows by kind and scenario; no line for a study that has none; `InputError` where a row is missing."""
    table = [["application", "study", "figure", "mean (95 % interval)"]]
    for line in HEADLINES:
        rows = kept.get(line.kind, {}).get(line.scenario)
        if rows:
            asked = line.asked.format("" if any(row.get(line.unless) for row in rows) else line.lacking)
            cells = "; ".join(f"{label} {_cell(rows, row, line)}" for label, row in line.shown)
            table.append([f"[{line.kind}](../apps/{line.kind}/README.md)", f"`{line.scenario}`", asked, cells])
    return as_markdown(table)


def _cell(rows: Rows, key: dict[str, str], line: Headline) -> str:
    row = next((row for row in rows if key.items() <= row.items()), None)
    if row is None:
        raise InputError(f"the kept figures of {line.scenario} have no row {key}.")
    mean, low, high = (
        next(row[name] for name in (f"{line.column}_{part}", f"{line.column}.{part}", f"{line.column}.value") if name in row)
        for part in ("mean", "low", "high")
    )
    middle = f"{float(mean):.{line.digits}f}"
    return f"{middle} ({float(low):.{line.digits}f} to {float(high):.{line.digits}f})" if low else f"{middle} (one run)"
