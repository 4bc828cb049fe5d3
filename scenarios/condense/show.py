"""A record of kind "condense": its pictures, table and sentences."""

import math
from collections.abc import Iterator
from pathlib import Path

from distill.comparison import row_label
from distill.condensed import CondensedSet
from distill.drawing import Drawing
from distill.evaluation import Accuracy
from distill.figures import accuracy_bars, accuracy_curve, image_grid, loss_curve
from distill.records import read_lines
from scenarios.condense.several import sentence
from scenarios.engine.record import Config, Record, Rows
from scenarios.reporting.text import few, other_split, series, shown

RIVALS = {
    "whole": "the full training set",
    "random": "random images",
    "class_mean": "class means",
    "kmeans": "k-means",
    "kcenter": "k-center",
}


def draw(folder: Path, record: Record) -> Iterator[tuple[str, Drawing]]:
    """The loss by step, the images, and the accuracies."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for line in read_lines(folder / "metrics.jsonl"):
        if line.get("stage") == "distil" and isinstance(line.get("loss"), float) and math.isfinite(line["loss"]):
            steps, losses = curves.setdefault(f"ipc {line['ipc']}", ([], []))
            steps.append(line["step"])
            losses.append(line["loss"])
    yield "loss", loss_curve(curves)
    parts = {key: part for key, part in record["results"].items() if key.startswith("ipc")}
    if along := {f"ipc {key[3:]}": part["curve"] for key, part in parts.items() if "curve" in part}:
        yield "curve", accuracy_curve(along)
    for key, part in parts.items():
        several = folder / f"condensed-{key}.safetensors"  # a study of one ipc has condensed.safetensors
        tiny = CondensedSet.load(several if several.exists() else folder / "condensed.safetensors")
        yield f"images-{key}", image_grid(tiny, f"Images of the set by {tiny.provenance.method} at ipc {key[3:]}")
        if "accuracy" in part:
            rows = {row_label(name, row): Accuracy.read(row) for name, row in part["accuracy"].items()}
            yield f"accuracy-{key}", accuracy_bars(rows, f"{record['title']}, ipc {key[3:]}")


def accuracy_table(record: Record) -> Rows:
    """Header and rows: one row a set, one column an IPC (and network, where there are several)."""
    columns: dict[str, dict[str, str]] = {}
    for key, part in record["results"].items():
        if not key.startswith("ipc"):
            continue
        tables = part.get("cross_architecture") or ({"": part["accuracy"]} if "accuracy" in part else {})
        for network, rows in tables.items():
            column = columns[f"ipc {key[3:]} {network}".strip()] = {}
            usual = next(iter(rows.values())).get("images")
            for name, row in rows.items():
                other = "" if name == "whole" or row.get("images") == usual else f" ({row['images']} images, not {usual})"
                column[row_label(name, row)] = shown(row) + other
            several = part.get("sets", {}).get(network or next(iter(part.get("sets", {})), ""))
            if several:
                column[f"{next(iter(rows))}, {len(several['values'])} sets"] = sentence(several).partition(" over")[0]
    names = list(dict.fromkeys(name for rows in columns.values() for name in rows))
    return [["set", *columns], *([name, *(rows.get(name, "") for rows in columns.values())] for name in names)] if columns else []


def answer(record: Record) -> str:
    """The record in one sentence."""
    parts = []
    for key, part in record["results"].items():
        rows = part.get("accuracy") if key.startswith("ipc") else None
        if rows:
            method = next(iter(rows))
            others = ", ".join(f"{row_label(name, row)} {shown(row)}" for name, row in rows.items() if name != method)
            images = f"{key[3:]} image{'s' if key != 'ipc1' else ''} a class by {method}"
            images = f"{part['images']} images in all, at most {images}" if "counts" in part else images
            single = key == "ipc1" and "counts" not in part
            reached = f"{'trains' if single else 'train'} a network to {shown(rows[method])} %"
            if rows[method].get("failed"):
                reached = f"have no accuracy, because networks that were trained on them {shown(rows[method])}: {rows[method]['reason']}"
            parts.append(f"{images} {reached}" + (f" ({others})" if others else ""))
            parts += [f"{len(row['values'])} such sets train {network} to {sentence(row)}" for network, row in part.get("sets", {}).items()]
            parts += part.get("notes", [])
    return ("; ".join(parts) + ".") if parts else f"Condensed sets were made; nothing was evaluated. Status: {record['status']}."


def question(config: Config) -> str:
    """The study's question in a sentence."""
    method, judged = config["method"], config["evaluation"]
    ipc = method["ipc"]
    size = f"{series(ipc)} image{'s' if ipc != [1] else ''} a class" if isinstance(ipc, list) else "unequal numbers of images a class"
    size = f"images in proportion to the classes ({ipc.partition(':')[2]} in the mean)" if isinstance(ipc, str) else size
    images = f"{size} that {method['name']} makes of {config['data']['name']}"
    if judged is None:
        return f"What do {images} look like?"
    rivals = [RIVALS.get(name, f"{name} images") for name in judged["baselines"]]
    return f"How well do networks ({series(judged['networks'])}) learn from {images}{', compared with ' if rivals else ''}{series(rivals)}?"


def missing(record: Record, config: Config) -> list[str]:
    """What a reader could miss: rivals and bounds that were not asked for, single runs."""
    results = record["results"]
    judged = config["evaluation"]
    asked = config["method"]["ipc"] if isinstance(config["method"]["ipc"], list) else []
    sentences = [f"No set at IPC {ipc}." for ipc in asked if f"ipc{ipc}" not in results]
    if judged is None:
        return [*sentences, "No network was trained on the sets: the study has no [evaluation] table."]
    names = {config["method"]["name"], *judged["baselines"]}
    for key, part in results.items():
        if key.startswith("ipc"):
            absent = sorted(names - set(part.get("accuracy", {})))
            sentences += [f"Not evaluated at IPC {key[3:]}: {series(absent)}."] if absent else []
    sentences += [f"No comparison with {RIVALS[name]}." for name in ("random", "whole") if name not in judged["baselines"]]
    if len(judged["networks"]) == 1:
        sentences.append(f"No other architecture than {judged['networks'][0]} was trained.")
    return [*sentences, *few(judged["seeds"], "network"), *other_split(judged["split"])]
