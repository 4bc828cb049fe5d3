"""What of a "federated" run is kept (see pages.py): every round of every strategy."""

from pathlib import Path

from distill.records import read_json
from scenarios.federated.tuning import in_words
from scenarios.reporting.text import as_markdown


def kept_rows(folder: Path) -> list[dict[str, str]]:
    """One row a round and strategy; accuracy in percent over seeds, megabytes the mean over seeds up to and with this round.

    ``failures`` counts, over all seeds, the uploads of this round that were refused or did not come; ``client_seconds`` is up to and with
    this round; ``tuned`` are the settings that the study chose for the strategy.
    """
    record, config = read_json(folder / "record.json"), read_json(folder / "config.json")
    environment, partition = record["environment"], config["partition"]
    shape = f"{partition['partitioner']} {partition['alpha']:g}" if partition["partitioner"] == "dirichlet" else partition["partitioner"]
    chosen = record["results"].get("tuning", {}).get("chosen", {})
    rows = []
    for strategy, part in record["results"]["strategies"].items():
        up = down = seconds = 0.0
        timed = any("client_seconds" in line for line in part["rounds"])
        for line in part["rounds"]:
            up, down, seconds = up + line["up"], down + line["down"], seconds + line.get("client_seconds", 0.0)
            failures = sum(refused["round"] == line["round"] for refused in part["dropped"])
            rows.append(
                {
                    "scenario": record["scenario"],
                    "dataset": config["data"]["name"],
                    "network": config["network"],
                    "partition": f"{shape}, {partition['num_partitions']} clients",
                    "engine": config["federation"]["engine"],
                    "seeds": str(len(part["accuracy"]["values"])),
                    "rounds": str(config["rounds"]),
                    "strategy": strategy,
                    "round": str(line["round"]),
                    **{f"accuracy_{field}": _number(line["accuracy"][field]) for field in ("mean", "low", "high")},
                    "megabytes_up": f"{up / 1e6:.4f}",
                    "megabytes_down": f"{down / 1e6:.4f}",
                    "failures": str(failures),
                    "client_seconds": f"{seconds:.1f}" if timed else "",
                    "tuned": in_words(chosen.get(strategy, {})),
                    "device": environment["gpu"] or f"{environment['cores']} cores, {environment['processor']}",
                    "run_seconds": str(round(record["seconds"])),
                }
            )
    return rows


def page_text(rows: dict[str, list[dict[str, str]]], place: Path) -> str:
    """The first and the last round of every strategy, a table for each run."""
    parts = []
    for name, lines in rows.items():
        first = lines[0]
        wanted = {"client s": "client_seconds", "tuned": "tuned"}
        extra = {name: column for name, column in wanted.items() if any(row.get(column) for row in lines)}  # not in older files
        table = [["strategy", "round", "accuracy, % (95 %)", "MB up", "MB down", "failures", *extra]]
        for strategy in dict.fromkeys(line["strategy"] for line in lines):
            own = [line for line in lines if line["strategy"] == strategy]
            for line in own[:1] + own[1:][-1:]:
                middle, low, high = (line[f"accuracy_{field}"] for field in ("mean", "low", "high"))
                spread = f"{float(middle):.1f}" + (f" ({float(low):.1f} to {float(high):.1f})" if low else "")
                sent = [f"{float(line[f'megabytes_{way}']):.3f}" for way in ("up", "down")]
                failures = sum(int(row["failures"]) for row in own if int(row["round"]) <= int(line["round"]))
                table.append([strategy, line["round"], spread, *sent, str(failures), *(line[column] for column in extra.values())])
        seeds = f"{first['seeds']} seed{'s' if first['seeds'] != '1' else ''}"
        about = ", ".join([first["dataset"], first["network"], first["partition"], f"engine {first['engine']}", seeds])
        parts.append(f"`{name}` ({about}):\n\n{as_markdown(table)}")
    return "\n\n".join(parts)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
