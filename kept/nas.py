"""What of a "nas" run is kept (see pages.py): a row a proxy, the scores, the true accuracies, the facts of the run."""

import json
from pathlib import Path

from distill.records import read_json
from scenarios.engine.record import Results
from scenarios.nas.show import sentence
from scenarios.reporting.text import as_markdown

_BASELINES = ("random", "early-steps", "early-cost", "parameters", "regression")


def kept_rows(folder: Path) -> list[dict[str, str]]:
    """One row a proxy, every figure of it in columns."""
    record = read_json(folder / "record.json")
    results, name = record["results"], record["scenario"]
    rows = []
    for proxy, row in results["proxies"].items():
        flat: Results = {"scenario": name, "proxy": proxy, "kind": row["kind"], "networks": results["known"]}
        for key, value in row.items():
            if isinstance(value, dict):
                flat |= {f"{key}.{part}": number for part, number in value.items()}
            elif key != "kind":
                flat[key] = value
        for baseline in _BASELINES:
            difference = results["differences"].get(proxy, {}).get(f"early-cost-{proxy}" if baseline == "early-cost" else baseline, {})
            flat |= {f"spearman_minus_{baseline}.{part}": difference.get(part) for part in ("value", "low", "high")}
        rows.append(
            {key: f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value) for key, value in flat.items()}
        )
    return rows


def kept_files(folder: Path) -> dict[str, str]:
    """The truth table, which spares others the training (unless it was another's), every proxy's scores, and the facts of the run."""
    record, config = read_json(folder / "record.json"), read_json(folder / "config.json")
    results, name = record["results"], record["scenario"]
    facts = {"config": config, **{key: record[key] for key in ("seconds", "peak_memory_bytes", "environment")}}
    facts |= {"data": results["data"], "ceiling": results["ceiling"], "truth_seconds": results["truth_seconds"]}
    names = ("scores",) if config["run"]["table"] else ("truth", "scores")
    tables = {f"{name}-{table}.csv": (folder / f"{table}.csv").read_text() for table in names}
    return tables | {f"{name}.json": json.dumps(facts, indent=2) + "\n"}


def page_text(rows: dict[str, list[dict[str, str]]], place: Path) -> str:
    """The kept runs' answers and tables, the smallest study last."""
    names = sorted(rows, key=lambda name: (name == "nas-smoke", name))
    ceilings = {name: read_json(place / f"{name}.json")["ceiling"]["reliability"] for name in names}
    return "\n\n".join(f"**`{name}`**: {_kept_sentence(rows[name], ceilings[name])}\n\n{_markdown(rows[name])}" for name in names)


def _kept_sentence(rows: list[dict[str, str]], ceiling: float | None) -> str:
    """`answer` from the kept rows."""

    def numbers(row: dict[str, str], name: str, parts: tuple[str, ...] = ("value", "low", "high")) -> dict[str, float | None]:
        return {part: float(row[f"{name}.{part}"]) if row[f"{name}.{part}"] else None for part in parts}

    first = next(column.removesuffix(".value") for column in rows[0] if column.startswith("regret@"))
    proxies = {row["proxy"]: {"kind": row["kind"], "spearman": numbers(row, "spearman"), first: numbers(row, first)} for row in rows}
    differences: Results = {row["proxy"]: {} for row in rows}
    for row in rows:
        for baseline in _BASELINES:
            difference = numbers(row, f"spearman_minus_{baseline}")
            if difference["value"] is not None:
                differences[row["proxy"]][f"early-cost-{row['proxy']}" if baseline == "early-cost" else baseline] = difference
    return sentence(int(rows[0]["networks"]), ceiling, proxies, differences)


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
