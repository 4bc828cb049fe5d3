"""A record of kind "nas" in a table and in sentences."""

import math

from scenarios.engine.record import Config, Record, Results, Rows
from scenarios.reporting.text import few, series

NOTE = (
    "Proxies are scored on the validation split; the truth is the test accuracy of fully trained networks. Intervals: 95 %, bootstrap over"
    " networks; those of regret and overlap are about these networks' training seeds. Noise ceiling: the correlation that an equally noisy"
    " second truth would reach. Regret@k: accuracy points lost by taking the best of the proxy's top k. Overlap@k: the share of the true"
    " top k in it, with its chance level. Rho, true top 10: Spearman's rho among the true best ten. Cost: core seconds on a CPU, wall"
    " seconds on a GPU, in brackets what is paid once. Break-even: the number of candidates from which the proxy saves time."
)


def accuracy_table(record: Record) -> Rows:
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


def answer(record: Record) -> str:
    """The record in one sentence."""
    results = record["results"]
    if "proxies" not in results:
        return f"The networks are not ranked yet. Status: {record['status']}."
    return sentence(results["known"], results["ceiling"]["reliability"], results["proxies"], results["differences"])


def sentence(known: int, ceiling: float | None, proxies: Results, differences: Results) -> str:
    """The best condensed set compared with each baseline; a difference is significant if its interval leaves out zero."""
    first = f"{known} networks; noise ceiling {_number(ceiling)}."
    condensed = [name for name, row in proxies.items() if row["kind"] == "condensed" and row["spearman"]["value"] is not None]
    if not condensed:
        return first
    best = max(condensed, key=lambda name: proxies[name]["spearman"]["value"])
    key, regret = _regret(proxies[best])
    verdicts: dict[str, list[str]] = {}
    for baseline, difference in differences.get(best, {}).items():
        verdict = "better" if _above(difference["low"]) else "worse" if _above(_minus(difference["high"])) else "no significant difference"
        figures = f"{baseline} ({_number(proxies[baseline]['spearman']['value'])}, {key} {_regret(proxies[baseline])[1]})"
        verdicts.setdefault(verdict, []).append(figures)
    parts = [f"{verdict} {'from' if verdict.endswith('difference') else 'than'} {', '.join(which)}" for verdict, which in verdicts.items()]
    figures = f"{best}: Spearman {_interval(proxies[best]['spearman'])}, {key} {regret} points"
    return f"{first} {'; '.join([figures, *parts])}."


def _regret(row: Results) -> tuple[str, str]:
    """The regret of the first k: (its name, points)."""
    key = next(key for key in row if key.startswith("regret@"))
    return key, _number(row[key]["value"])


def _above(value: float | None) -> bool:
    return value is not None and value > 0


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _number(value: object, digits: int = 2) -> str:
    """A number of a record, where NaN and infinity are null."""
    return f"{value:.{digits}f}" if isinstance(value, int | float) and math.isfinite(value) else "-"


def _interval(row: Results) -> str:
    spread = "" if row["low"] is None or not math.isfinite(row["low"]) else f" [{_number(row['low'])}, {_number(row['high'])}]"
    return _number(row["value"]) + spread


def question(config: Config) -> str:
    """The study's question in a sentence."""
    sets = [*config["methods"], *config["sets"]["coresets"]]
    return (
        f"Do networks trained on {config['sets']['ipc']} images a class of {config['data']['name']} ({series(sets)}) rank architectures"
        " as full training does, and with what regret?"
    )


def missing(record: Record, config: Config) -> list[str]:
    """What a reader could miss: rivals and bounds that were not asked for, single runs."""
    results = record["results"]
    if "proxies" not in results:
        return ["The networks are not ranked yet."]
    sentences = [] if "random" in config["sets"]["coresets"] else ["No comparison with random real images."]
    sentences += [] if config["proxy"]["early"] else ["No comparison with early stopping on the full training set."]
    if results["known"] < results["networks"]:
        sentences.append(f"{results['networks'] - results['known']} of {results['networks']} networks have no true accuracy.")
    return [*sentences, *few(config["truth"]["seeds"], "fully trained network for each architecture")]
