"""What a pipeline's record says: its headline figures, one picture of them, a table, a sentence."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from distill.drawing import Drawing, escaped, title_text
from scenarios.engine.record import Config, Record, Results, Rows

FIGURES = {
    "epsilon": ("epsilon", ""),
    "accuracy": ("accuracy", "%"),
    "forgetting": ("forgetting", "points"),
    "rank_correlation": ("rank correlation", "Spearman"),
    "attack_rate": ("attack's advantage", "%"),
}
NOTE = (
    "Epsilon: the guarantee of a stage's complete set. Accuracy: on test images. Forgetting: accuracy lost since an experience was"
    " learnt. Rank correlation: with the test accuracy of fully trained networks. Attack's advantage: true minus false positive rate; 0 is"
    " guessing, and no proof of privacy. Brackets: 95 % intervals, each as its stage makes them."
)
SHOWN = 3  # figures of one kind in a stage's sentence


def headline(stages: Results) -> Results:
    """``{figure: {stage: {what: {"value", "low", "high"}}}}`` of finished stages; numbers or None, names as docs/pipelines.md says."""
    figures: Results = {figure: {} for figure in FIGURES}
    for name, entry in stages.items():
        if entry.get("status") != "done":
            continue
        for figure, of, row in _figures(entry):
            figures[figure].setdefault(name, {})[of] = row
        if "audit" in entry["results"]:
            audit = entry["results"]["audit"]
            bounds = [value for key, value in audit.items() if key.endswith("_bound")]
            part = {"claimed_epsilon": audit["claimed_epsilon"], "found_epsilon": max(bounds), "holds": audit["holds"]}
            figures.setdefault("audit", {})[name] = part
        if "ceiling" in entry["results"]:
            figures.setdefault("rank_ceiling", {})[name] = entry["results"]["ceiling"]["reliability"]
    return figures


def _figures(entry: Results) -> Iterator[tuple[str, str, Results]]:
    """(figure, what it is of, its row) of one finished stage."""
    results = entry["results"]
    for name, described in entry.get("sets", {}).items():
        stated = described["privacy"] or {}
        extra = {"delta": stated.get("delta"), "insecure": stated.get("insecure"), "clients": stated.get("clients")}
        yield "epsilon", name, {"value": stated.get("epsilon"), "low": None, "high": None, **extra}
    for name, part in results.get("strategies", {}).items():
        yield "accuracy", name, _row(part["accuracy"])
    for key, part in results.items():
        if key.startswith(("ipc", "epsilon")) and isinstance(part, dict):
            yield from (("accuracy", f"{name}, {key}", _row(row)) for name, row in part.get("accuracy", {}).items())
    for cell in results.get("cells", []):
        of = " ".join(cell[key] for key in ("strategy", "method", "storage", "budget") if cell[key])
        yield "accuracy", of, _row(cell["accuracy"])
        if "forgetting" in cell:
            yield "forgetting", of, _row(cell["forgetting"])
    for name, part in results.get("proxies", {}).items():
        yield "rank_correlation", name, _row(part["spearman"])
    for name, part in results.get("attack", {}).items():
        if part.get("accuracy"):
            yield "accuracy", name, _row(part["accuracy"])
        yield "attack_rate", name, {**_row(part["advantage_percent"]), "auc": part["auc"]["value"]}


def _row(part: Results) -> Results:
    return {"value": part.get("value", part.get("mean")), "low": part.get("low"), "high": part.get("high")}


def rows_of(results: Results) -> Iterator[tuple[str, str, str, Results]]:
    """(figure, stage, what it is of, row) in the order of `FIGURES`."""
    for figure in FIGURES:
        for stage, parts in results.get(figure, {}).items():
            yield from ((figure, stage, of, row) for of, row in parts.items())


def number(figure: str, row: Results) -> str:
    """``0.71 [0.40, 0.90]``, with as many digits as the figure carries."""
    digits = 2 if figure in ("epsilon", "rank_correlation") else 1
    if row["value"] is None:
        return "none" if figure == "epsilon" else "n/a"
    ends = "" if row["low"] is None or row["high"] is None else f" [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
    return f"{row['value']:.{digits}f}{ends}"


def accuracy_table(record: Record) -> Rows:
    """Header and rows: one row a headline figure."""
    results = record["results"]
    rows = [[stage, FIGURES[figure][0], of, number(figure, row), FIGURES[figure][1]] for figure, stage, of, row in rows_of(results)]
    return [["stage", "figure", "of", "value", "unit"], *rows] if rows else []


def answer(record: Record) -> str:
    """The record in short sentences, a line for each stage; a pipeline that stopped says where."""
    results = record["results"]
    stopped = [f"{name} is {entry['status']}" for name, entry in results.get("stages", {}).items() if entry["status"] != "done"]
    known = any(results.get(figure) for figure in FIGURES)
    if stopped or not (known or record["status"] == "done"):
        return f"The pipeline is not done: {', '.join(stopped) or record['status']}."
    if not known:
        return f"All {len(results['stages'])} stages are done; none of them has one of this page's figures."
    lines = []
    for stage in results["stages"]:
        parts = [_handed_on(name, row) for name, row in results["epsilon"].get(stage, {}).items()]
        for figure, (words, unit) in list(FIGURES.items())[1:]:
            # Without intervals, which are in the table.
            rows = [f"{of} {number(figure, {**row, 'low': None})}" for of, row in results[figure].get(stage, {}).items()]
            more = f" and {len(rows) - SHOWN} more in the table" if len(rows) > SHOWN else ""
            parts += [f"{words}{f' ({unit})' if unit else ''} {', '.join(rows[:SHOWN])}{more}"] if rows else []
        if audit := results.get("audit", {}).get(stage):
            verdict = "no contradiction, which proves nothing more" if audit["holds"] else "a contradiction"
            parts.append(
                f"canaries find at least epsilon {audit['found_epsilon']:.2f} of a claimed {audit['claimed_epsilon']:.2f} in the installed "
                f"code, {verdict}"
            )
        lines += [f"{stage}: {'; '.join(parts)}."] if parts else []
    stated = (results.get("public") or {}).get("statement")
    makers = [stage for stage in results["epsilon"] if any(row["value"] is not None for row in results["epsilon"][stage].values())]
    if stated and (len(makers) > 1 or sum(len(results["epsilon"][stage]) for stage in makers) > 1):
        lines.append(f"All sets with a guarantee together: epsilon {stated['epsilon']:.2f} (delta {stated['delta']:.0e}).")
    return "\n".join(lines)


def _handed_on(name: str, row: Results) -> str:
    if row["value"] is None or row["insecure"]:
        return f"hands on {name} without a guarantee"
    clients = f", the worst of {len(row['clients'])} clients" if row["clients"] else ""
    return f"hands on {name} at epsilon {row['value']:.2f} (delta {row['delta']:.0e}{clients})"


def question(config: Config) -> str:
    """What the pipeline asks, from its configuration."""
    takes = {name: f", takes {' and '.join(part['from'])}" if part["from"] else "" for name, part in config["stages"].items()}
    steps = [f"{name} ({part['kind']}{takes[name]})" for name, part in config["stages"].items()]
    return f"On {config['data']['name']}, what do these stages find, one after the other: {', '.join(steps)}?"


def missing(record: Record, config: Config) -> list[str]:
    """Stages that did not end, and what no stage of this pipeline looks at."""
    results = record["results"]
    left = [f"Stage {name}: not finished." for name in config["stages"] if results.get("stages", {}).get(name, {}).get("status") != "done"]
    if left or record.get("status") != "done":
        return left
    absent = {
        "forgetting": "No learner that meets new classes takes a set.",
        "rank_correlation": "No architectures are ranked on a set.",
        "attack_rate": "No released set is attacked.",
    }
    return [
        *(text for figure, text in absent.items() if not results.get(figure)),
        "One seed: intervals are those of the stages, not of the pipeline.",
    ]


def overview(results: Results, title: str) -> Drawing | None:
    """One panel a figure, one bar a row with its interval; None when there is nothing to show."""
    panels = {
        figure: [(f"{s}: {of}", row) for panel, s, of, row in rows_of(results) if panel == figure and row["value"] is not None]
        for figure in FIGURES
    }
    panels = {figure: rows for figure, rows in panels.items() if rows and figure != "epsilon"}
    if not panels:
        return None
    heights = [len(rows) + 1.6 for rows in panels.values()]
    figure = Figure(figsize=(6.6, 0.3 * sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axis, (name, rows) in zip(axes, panels.items(), strict=True):
        words, unit = FIGURES[name]
        for place, (_, row) in enumerate(rows):
            known = row["low"] is not None and row["high"] is not None
            error = [[max(0.0, row["value"] - row["low"])], [max(0.0, row["high"] - row["value"])]] if known else None
            axis.barh(place, row["value"], xerr=error, color="#4878a8", capsize=2, height=0.7)
        axis.set_yticks(range(len(rows)), [escaped(label[:44]) for label, _ in rows], fontsize=8)
        axis.invert_yaxis()
        axis.axvline(0, color="#444444", linewidth=0.8)
        axis.set_title(f"{words}{f', {unit}' if unit else ''}", fontsize=9, loc="left")
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    epsilons = [f"epsilon {row['value']:.2f}" for panel, _, _, row in rows_of(results) if panel == "epsilon" and row["value"] is not None]
    figure.suptitle(title_text(f"{title[:70]}{': ' + ', '.join(epsilons[:2]) if epsilons else ''}"), fontsize=10)
    words = "One panel a figure, one bar a stage and set, with its 95 % interval where there is one."
    return Drawing(figure, "The figures of all stages", words)
