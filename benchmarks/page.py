"""The tables of docs/speed.md, from what `benchmarks.core`, `benchmarks.steps` and `benchmarks.launches` measured."""

from collections.abc import Mapping
from typing import Any

BEGIN, END = "<!-- table: begin (python -m benchmarks.core --page) -->", "<!-- table: end -->"
STEPS = "<!-- table: begin (python -m benchmarks.steps --page) -->"
LAUNCHES = "<!-- table: begin (python -m benchmarks.launches --page) -->"
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
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.partition(END)[2]


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
    head, _, rest = page.partition(STEPS)
    return head + STEPS + "\n" + "\n".join(lines) + "\n" + END + rest.partition(END)[2]


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
    head, _, rest = page.partition(LAUNCHES)
    return head + LAUNCHES + "\n" + "\n".join(lines) + "\n" + END + rest.partition(END)[2]
