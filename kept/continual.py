"""What of a "continual" run is kept (see pages.py): every cell."""

from pathlib import Path

from distill.methods import METHODS
from distill.records import read_json
from scenarios.reporting.text import as_markdown


def kept_rows(folder: Path) -> list[dict[str, str]]:
    """A finished run's cells as rows of a table."""
    record, config = read_json(folder / "record.json"), read_json(folder / "config.json")
    environment = record["environment"]
    rows = []
    for cell in record["results"]["cells"]:
        row = {key: str(cell.get(key, "")) for key in ("strategy", "budget", "method", "storage", "items", "bytes")}
        for figure in ("accuracy", "forgetting"):
            for field in ("mean", "low", "high"):
                value = cell.get(figure, {}).get(field)
                row[f"{figure}_{field}"] = "" if value is None else f"{value:.2f}"
        row["condense_seconds"] = f"{cell['condense_seconds']:.1f}" if "condense_seconds" in cell else ""
        rows.append(
            {
                "scenario": record["scenario"],
                "dataset": config["data"]["name"],
                "network": cell.get("network", config["learner"]["network"]),
                "orders": str(len(cell["accuracy"]["values"])),
                **row,
                "device": environment["gpu"] or f"{environment['cores']} cores, {environment['processor']}",
                "run_seconds": str(round(record["seconds"])),
            }
        )
    return rows


def equal_bytes(name: str, cells: list[dict[str, str]]) -> list[list[str]]:
    """A row for each network of a study in which real images may be compressed: the best memory of each kind; no rows for another study."""
    if not any(row["storage"] == "compressed" for row in cells):
        return []
    table = []
    for strategy in dict.fromkeys(row["strategy"] for row in cells):
        kinds: dict[str, list[dict[str, str]]] = {"condensed": [], "compressed": [], "plain": [], "small": []}
        for row in cells:
            method = row["method"].removesuffix("-decoded")
            small = "small" if method != row["method"] else "plain"
            kind = "condensed" if method in METHODS else "compressed" if row["storage"] == "compressed" else small
            if row["strategy"] == strategy:
                kinds[kind].append(row)
        best = [max(kind, key=lambda row: float(row["accuracy_mean"]), default=None) for kind in kinds.values()]
        table.append([f"`{name}`", strategy, *("-" if row is None else f"{_spread(row, 'accuracy')} {row['method']}" for row in best)])
    return table


def page_text(rows: dict[str, list[dict[str, str]]], place: Path) -> str:
    """The best memories at equal bytes, then the kept runs' cells, a table for each run."""
    head = ["study", "learner", "best condensed", "best compressed real", "best plain real", "best small real"]
    compared = [row for name, cells in rows.items() for row in equal_bytes(name, cells)]
    parts = [f"At equal bytes, percent:\n\n{as_markdown([head, *compared])}"] if compared else []
    for name, cells in rows.items():
        first = cells[0]
        table = [["strategy", "budget", "memory", "stored as", "bytes", "average accuracy, % (95 %)", "forgetting (95 %)"]]
        for row in cells:
            names = [row[key] or "-" for key in ("strategy", "budget", "method", "storage", "bytes")]
            table.append([*names, _spread(row, "accuracy"), _spread(row, "forgetting")])
        orders = f"{first['orders']} class order{'s' if first['orders'] != '1' else ''}"
        parts.append(f"`{name}` ({first['dataset']}, {first['network']}, {orders}):\n\n{as_markdown(table)}")
    return "\n\n".join(parts)


def _spread(row: dict[str, str], figure: str) -> str:
    middle, low, high = (row[f"{figure}_{field}"] for field in ("mean", "low", "high"))
    return f"{float(middle):.1f}" + (f" ({float(low):.1f} to {float(high):.1f})" if low else "") if middle else "-"
