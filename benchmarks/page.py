"""The tables of docs/speed.md, from what `benchmarks.core`, `steps`, `launches` and `gpu` measured."""

from collections.abc import Mapping
from typing import Any

from distill.errors import InputError
from scenarios.reporting.text import replaced

BEGIN, END = "<!-- table: begin (python -m benchmarks.core --page) -->", "<!-- table: end -->"
STEPS = "<!-- table: begin (python -m benchmarks.steps --page) -->"
LAYERS = "<!-- table: begin (python -m benchmarks.layers --page) -->"
LAUNCHES = "<!-- table: begin (python -m benchmarks.launches --page) -->"
GPU = "<!-- table: begin (python -m benchmarks.gpu --page) -->"
Record = Mapping[str, Any]


def with_table(page: str, record: Record) -> str:
    """The page with its table made anew from a record."""
    machine, limits = record["environment"], record["limits_gflops"]
    where = machine["gpu"] or f"{machine['cores']} cores, {machine['processor']}"
    lines = [
        f"{where}, torch {machine['packages']['torch']}, {record['rounds']} rounds. "
        f"Limits in GFLOP/s: {', '.join(f'{name} {value:.0f}' for name, value in limits.items())}.",
        "",
        "| part | form | seconds | times plain | GFLOP/s | image gradient off by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for part, rows in record["results"].items():
        for form, row in rows.items() if part != "memory" else ():
            error = f"{row['gradient_error']:.0e}" if "gradient_error" in row else ""
            lines.append(f"| {part} | {form} | {row['seconds']:.3f} | {row['ratio']:.2f} | {row['gflops']:.0f} | {error} |")
    if "memory" in record["results"]:
        peaks = ", ".join(f"{form} {peak / 1e9:.2f} GB" for form, peak in record["results"]["memory"].items())
        lines += ["", f"Peak memory of a fresh process that computes one MTT gradient (form and student steps): {peaks}."]
    return replaced(page, BEGIN, "\n".join(lines), END)


def with_steps(page: str, record: Record) -> str:
    """The page with its table of steps made anew from a record of `benchmarks.steps`."""
    machine, results = record["environment"], record["results"]
    rounds = dict.fromkeys(str(max(len(row["times"]) for row in rows.values())) for rows in results.values())
    lines = [
        f"{machine['processor']}, torch {machine['packages']['torch']}, one thread, processor seconds, {' and '.join(rounds)} rounds.",
        "",
        "| a step of | compared with |" + "".join(f" width {width}: seconds | ratio |" for width in results),
        "| --- | --- |" + " --- | --- |" * len(results),
    ]
    for form, first in next(iter(results.values())).items():
        cells = "".join(
            f" {rows[form]['seconds']:.2f} | {rows[form].get('ratio', 1):.2f} |" if form in rows else "  |  |" for rows in results.values()
        )
        lines.append(f"| {form} | {first.get('base', '')} |{cells}")
    return replaced(page, STEPS, "\n".join(lines), END)


def with_layers(page: str, record: Record) -> str:
    """The page with its table of a pass's parts made anew from a record of `benchmarks.layers`."""
    machine = record["environment"]
    lines = [
        f"{machine['processor']}, torch {machine['packages']['torch']}, one thread, processor microseconds an image, "
        f"{record['rounds']} rounds.",
        "",
        "| a pass in | plain | compiled | its convolutions alone | at most left to save |",
        "| --- | --- | --- | --- | --- |",
    ]
    for form, row in record["microseconds"].items():
        parts = [value for name, value in row.items() if name.startswith("convolution")]
        shown = f"{sum(parts):.0f} ({' + '.join(f'{value:.0f}' for value in parts)})"
        lines.append(
            f"| {form} | {row['plain']:.0f} | {row['compiled']:.0f} | {shown} | {100 * (1 - sum(parts) / row['compiled']):.0f} % |"
        )
    return replaced(page, LAYERS, "\n".join(lines), END)


def with_launches(page: str, record: Record) -> str:
    """The page with its table of counted operations made anew from a record of `benchmarks.launches`."""
    lines = [
        "| method | classes | operations | for each 2,048 images | waits | copies to the device | peak, GiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method, rows in record["results"].items():
        for classes, row in rows.items():
            each, waits = row["operations"] / row["groups"], sum(row["waits"].values())
            peak = row["peak_bytes"] / 2**30
            lines.append(f"| {method} | {classes} | {row['operations']} | {each:.0f} | {waits} | {row['transfers']} | {peak:.1f} |")
    return replaced(page, LAUNCHES, "\n".join(lines), END)


def with_gpu(page: str, record: Record | None) -> str:
    """The page with its table of steps on a GPU made anew from a record of `benchmarks.gpu`; without one it is not yet run."""
    lines = ["Not yet run."]
    if record is not None:
        machine, limits = record["environment"], record["matmul_gflops"]
        if not machine["gpu"]:
            raise InputError("the record is not of a GPU; run python -m benchmarks.gpu where there is one.")
        lines = [
            f"{machine['gpu']}, torch {machine['packages']['torch']}, CUDA {machine['cuda']}. "
            f"Limits in TFLOP/s: {', '.join(f'{name} matmul {value / 1e3:.0f}' for name, value in limits.items())}.",
            "",
            "| step | ms | times plain | images a second | TFLOP/s | of the limit | peak, GiB | plain, GiB |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, row in record["results"].items():
            if "reason" in row:
                lines.append(f"| {name} | {row['reason']} |  |  |  |  |  |  |")
                continue
            ratio = f"{row['ratio']:.2f}" if "ratio" in row else row["plain_reason"].removeprefix("benchmarks/plain.py has ")
            memory = [f"{row[key] / 2**30:.1f}" if row.get(key) else "" for key in ("peak_bytes", "plain_peak_bytes")]
            lines.append(
                f"| {name} | {1e3 * row['seconds']:.2f} | {ratio} | {row['images_per_second']:.0f} | {row['gflops'] / 1e3:.1f} | "
                f"{100 * row['of_matmul']:.0f} % | {' | '.join(memory)} |"
            )
    return replaced(page, GPU, "\n".join(lines), END)
