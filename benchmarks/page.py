"""The table of docs/speed.md, from what `benchmarks.core` measured."""

from collections.abc import Mapping
from typing import Any

BEGIN, END = "<!-- table: begin (python -m benchmarks.core --page) -->", "<!-- table: end -->"


def with_table(page: str, record: Mapping[str, Any]) -> str:
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
