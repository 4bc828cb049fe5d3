"""What of a "federated" run is kept (see pages.py): every round of every strategy."""

from pathlib import Path

from distill.records import read_json
from scenarios.reporting.text import as_markdown


def kept_rows(folder: Path) -> list[dict[str, str]]:
    """One row a round and strategy; accuracy in percent over seeds, megabytes the mean over seeds up to and with this round.

    ``failures`` counts, over all seeds, the uploads of this round that were refused or did not come.
    """
    record, config = read_json(folder / "record.json"), read_json(folder / "config.json")
    environment, partition = record["environment"], config["partition"]
    shape = f"{partition['partitioner']} {partition['alpha']:g}" if partition["partitioner"] == "dirichlet" else partition["partitioner"]
    rows = []
    for strategy, part in record["results"]["strategies"].items():
        up = down = 0.0
        for line in part["rounds"]:
            up, down = up + line["up"], down + line["down"]
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
        table = [["strategy", "round", "accuracy, % (95 %)", "MB up", "MB down", "failures"]]
        for strategy in dict.fromkeys(line["strategy"] for line in lines):
            own = [line for line in lines if line["strategy"] == strategy]
            for line in own[:1] + own[1:][-1:]:
                middle, low, high = (line[f"accuracy_{field}"] for field in ("mean", "low", "high"))
                spread = f"{float(middle):.1f}" + (f" ({float(low):.1f} to {float(high):.1f})" if low else "")
                sent = [f"{float(line[f'megabytes_{way}']):.3f}" for way in ("up", "down")]
                failures = sum(int(row["failures"]) for row in own if int(row["round"]) <= int(line["round"]))
                table.append([strategy, line["round"], spread, *sent, str(failures)])
        seeds = f"{first['seeds']} seed{'s' if first['seeds'] != '1' else ''}"
        about = ", ".join([first["dataset"], first["network"], first["partition"], f"engine {first['engine']}", seeds])
        parts.append(f"`{name}` ({about}):\n\n{as_markdown(table)}")
    return "\n\n".join(parts)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
