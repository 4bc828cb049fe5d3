"""What a record of kind "nas" says, in a table and in a sentence, and what of it is kept (see tables.py)."""

import json
import math
from pathlib import Path
from typing import Any

from distill.records import read_json
from scenarios.reporting.runs import as_markdown

TRUTH = Path(__file__).parent / "truth"
_BASELINES = ("random", "early-steps", "early-cost", "parameters", "regression")
note = (
    "Proxies are scored on the validation split; the truth is the test accuracy of fully trained networks. Intervals: 95 %, bootstrap over"
    " networks. Noise ceiling: the correlation that an equally noisy second truth would reach. Regret@k: accuracy points lost by taking the"
    " best of the proxy's top k. Overlap@k: the share of the true top k in it, beside chance. Rho, true top 10: Spearman's rho among the"
    " truly best ten. Cost: core seconds on a CPU, wall seconds on a GPU, in brackets what is paid once. Break-even: the number of"
    " candidates from which the proxy saves time."
)


def accuracy_table(record: dict[str, Any]) -> list[list[str]]:
    """Header and rows: one row a proxy."""
    results = record["results"]
    if "proxies" not in results:
        return []
    ks = [key for key in next(iter(results["proxies"].values())) if key.startswith(("regret@", "overlap@"))]
    # What decides comes first: a terminal shows as many columns as it is wide, then the rest below.
    header = ["proxy", "Spearman [95 %]", *(k for k in ks if k.startswith("regret")), "seconds (once)", "bytes", "Kendall"]
    header += [f"{k} (chance)" for k in ks if k.startswith("overlap")]
    header += ["break-even, networks", *(f"rho, true top {top}" for top in ("10", "5 %"))]
    rows = []
    for name, row in results["proxies"].items():
        seconds = row["seconds"]
        cells = [_interval(row["spearman"]), *(_number(row[k]["value"]) for k in ks if k.startswith("regret"))]
        cells += [f"{seconds['total']:.3g}" + (f" ({seconds['one_off']:.3g})" if seconds["one_off"] else ""), str(row["bytes"])]
        cells += [_number(row["kendall"]["value"])]
        cells += [f"{_number(row[k]['value'])} ({row[k]['chance']:.2f})" for k in ks if k.startswith("overlap")]
        cells += [_number(row["break_even"], 0), *(_number(row[f"spearman_{top}"]["value"]) for top in ("top10", "top5pct"))]
        rows.append([name, *cells])
    return [header, *rows]


def answer(record: dict[str, Any]) -> str:
    """The record in one sentence."""
    results = record["results"]
    if "proxies" not in results:
        return f"The networks are not ranked yet. Status: {record['status']}."
    return _sentence(results["known"], results["ceiling"]["reliability"], results["proxies"], results["differences"])


def _sentence(known: int, ceiling: Any, proxies: dict[str, Any], differences: dict[str, Any]) -> str:
    """The best condensed set beside each baseline; a difference is significant if its interval leaves out zero."""
    first = f"{known} networks; noise ceiling {_number(ceiling)}."
    condensed = [name for name, row in proxies.items() if row["kind"] == "condensed" and row["spearman"]["value"] is not None]
    if not condensed:
        return first
    best = max(condensed, key=lambda name: proxies[name]["spearman"]["value"])
    key, regret = _regret(proxies[best])
    verdicts: dict[str, list[str]] = {}
    for baseline, found in differences.get(best, {}).items():
        verdict = "better" if _above(found["low"]) else "worse" if _above(_minus(found["high"])) else "no significant difference"
        figures = f"{baseline} ({_number(proxies[baseline]['spearman']['value'])}, {key} {_regret(proxies[baseline])[1]})"
        verdicts.setdefault(verdict, []).append(figures)
    parts = [f"{verdict} {'from' if verdict.endswith('difference') else 'than'} {', '.join(which)}" for verdict, which in verdicts.items()]
    figures = f"{best}: Spearman {_interval(proxies[best]['spearman'])}, {key} {regret} points"
    return f"{first} {'; '.join([figures, *parts])}."


def _regret(row: dict[str, Any]) -> tuple[str, str]:
    """The regret of the first k: (its name, points)."""
    key = next(key for key in row if key.startswith("regret@"))
    return key, _number(row[key]["value"])


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
        for baseline in _BASELINES:
            found = results["differences"].get(proxy, {}).get(f"early-cost-{proxy}" if baseline == "early-cost" else baseline, {})
            flat |= {f"spearman_minus_{baseline}.{part}": found.get(part) for part in ("value", "low", "high")}
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
    differences: dict[str, Any] = {row["proxy"]: {} for row in rows}
    for row in rows:
        for baseline in _BASELINES:
            found = numbers(row, f"spearman_minus_{baseline}")
            if found["value"] is not None:
                differences[row["proxy"]][f"early-cost-{row['proxy']}" if baseline == "early-cost" else baseline] = found
    return _sentence(int(rows[0]["networks"]), ceiling, proxies, differences)


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
