"""What a record of kind "nas" says, in a table and in a sentence, and what of it is kept (see tables.py)."""

import json
import math
from pathlib import Path
from typing import Any

from distill.records import read_json
from scenarios.table import as_markdown

EXPECTED = Path(__file__).parent / "expected" / "nas"
note = (
    "Proxies are scored on the validation split; the truth is the test accuracy of fully trained networks. Intervals: 95 %, bootstrap over"
    " networks. Regret: accuracy points lost by taking the best of the proxy's top k. Cost: core seconds on a CPU, wall seconds on a GPU."
)


def accuracy_table(record: dict[str, Any]) -> list[list[str]]:
    """Header and rows: one row a proxy."""
    results = record["results"]
    if "proxies" not in results:
        return []
    ks = [key for key in next(iter(results["proxies"].values())) if key.startswith(("regret@", "overlap@"))]
    header = ["proxy", "Spearman", "Kendall", "top 10", "top 5 %", *ks, "seconds", "bytes", "break-even"]
    rows = []
    for name, row in results["proxies"].items():
        cells = [_interval(row["spearman"]), *(_number(row[key]["value"]) for key in ("kendall", "spearman_top10", "spearman_top5pct"))]
        cells += [_number(row[k]["value"]) + (f" ({row[k]['chance']:.2f})" if "chance" in row[k] else "") for k in ks]
        seconds = row["seconds"]
        shown = f"{seconds['total']:.3g}" + (f" (once {seconds['one_off']:.3g})" if seconds["one_off"] else "")
        rows.append([name, *cells, shown, str(row["bytes"]), _number(row["break_even"], 0)])
    return [header, *rows]


def answer(record: dict[str, Any]) -> str:
    """The record in one sentence."""
    results = record["results"]
    if "proxies" not in results:
        return f"The networks are not ranked yet. Status: {record['status']}."
    proxies = results["proxies"]
    condensed = [name for name, row in proxies.items() if row["kind"] == "condensed" and row["spearman"]["value"] is not None]
    first = f"{results['known']} networks; the truth agrees with itself at {_number(results['ceiling']['reliability'])}. "
    parts = []
    for name in sorted(condensed, key=lambda name: -proxies[name]["spearman"]["value"])[:1]:
        parts.append(f"{name} ranks them at {_interval(proxies[name]['spearman'])} and its choice costs {_regret(proxies[name])} points")
        for rival, found in results["differences"].get(name, {}).items():
            verdict = "better than" if _above(found["low"]) else "worse than" if _above(_minus(found["high"])) else "not told apart from"
            parts.append(f"{verdict} {rival} ({_number(proxies[rival]['spearman']['value'])}, its choice {_regret(proxies[rival])})")
    return first + "; ".join(parts) + "." if parts else first.strip()


def _regret(row: dict[str, Any]) -> str:
    return _number(next(value["value"] for key, value in row.items() if key.startswith("regret@")))


def _above(value: float | None) -> bool:
    return value is not None and value > 0


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _number(value: Any, digits: int = 2) -> str:
    """A number of a record, where NaN and infinity are null."""
    return f"{value:.{digits}f}" if isinstance(value, int | float) and math.isfinite(value) else "-"


def _interval(found: dict[str, Any]) -> str:
    spread = "" if found["low"] is None or not math.isfinite(found["low"]) else f" [{_number(found['low'])}, {_number(found['high'])}]"
    return _number(found["value"]) + spread


def kept_rows(folder: Path) -> list[dict[str, str]]:
    """One row a proxy, every figure of it in columns."""
    record = read_json(folder / "record.json")
    results, name = record["results"], record["scenario"]
    rows = []
    for proxy, row in results["proxies"].items():
        flat: dict[str, Any] = {"scenario": name, "proxy": proxy, "kind": row["kind"], "networks": results["known"]}
        for key, value in row.items():
            if isinstance(value, dict):
                flat |= {f"{key}.{part}": number for part, number in value.items()}
            elif key != "kind":
                flat[key] = value
        for rival in ("random", "early-steps", "early-cost", "parameters", "regression"):
            found = results["differences"].get(proxy, {}).get(f"early-cost-{proxy}" if rival == "early-cost" else rival, {})
            flat |= {f"spearman_minus_{rival}.{part}": found.get(part) for part in ("value", "low", "high")}
        rows.append(
            {key: f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value) for key, value in flat.items()}
        )
    return rows


def kept_files(folder: Path) -> dict[str, str]:
    """The truth table, which spares others the training (unless it was another's), every proxy's scores, and the facts of the run."""
    record, config = read_json(folder / "record.json"), read_json(folder / "config.json")
    results, name = record["results"], record["scenario"]
    facts = {"config": config, **{key: record[key] for key in ("seconds", "peak_memory_bytes", "environment")}}
    facts |= {"data": results["data"], "ceiling": results["ceiling"], "truth_seconds": results["truth_seconds"], "answer": answer(record)}
    names = ("scores",) if config["run"]["table"] else ("truth", "scores")
    tables = {f"{name}-{table}.csv": (folder / f"{table}.csv").read_text() for table in names}
    return tables | {f"{name}.json": json.dumps(facts, indent=2) + "\n"}


def page_text(rows: dict[str, list[dict[str, str]]], place: Path) -> str:
    """The kept runs' answers and tables, the smallest study last."""
    names = sorted(rows, key=lambda name: (name == "nas-smoke", name))
    return "\n\n".join(f"**`{name}`**: {read_json(place / f'{name}.json')['answer']}\n\n{_markdown(rows[name])}" for name in names)


def _markdown(rows: list[dict[str, str]]) -> str:
    table = [["proxy", "Spearman (95 %)", "Kendall", "regret@1", "core seconds", "bytes", "minus random (95 %)"]]
    for row in rows:
        spread = f"{_kept(row, 'spearman.value')} ({_kept(row, 'spearman.low')} to {_kept(row, 'spearman.high')})"
        value, low, high = (_kept(row, f"spearman_minus_random.{part}") for part in ("value", "low", "high"))
        against = "" if value == "-" else f"{value} ({low} to {high})"
        table.append(
            [row["proxy"], spread, _kept(row, "kendall.value"), _kept(row, "regret@1.value"), row["seconds.total"], row["bytes"], against]
        )
    return as_markdown(table)


def _kept(row: dict[str, str], key: str) -> str:
    return f"{float(row[key]):.2f}" if row.get(key) else "-"
