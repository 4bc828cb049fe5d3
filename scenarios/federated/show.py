"""A record of kind "federated": its pictures, table and sentences."""

from collections.abc import Iterator
from pathlib import Path

from apps.federated.settings import ALONE
from distill.condensed import CondensedSet
from distill.drawing import Drawing
from distill.records import read_lines
from scenarios.engine.record import Config, Line, Record, Results, Rows
from scenarios.federated.left_out import CLAIMS
from scenarios.reporting.text import few, other_split, series, shown

NOTE = "Test accuracy in percent of each strategy's network: mean and 95 % interval over seeds. Megabytes: all rounds, mean over seeds."


def draw(folder: Path, record: Record) -> Iterator[tuple[str, Drawing]]:
    """Who holds what, accuracy against rounds and bytes, and the last union by client."""
    import numpy as np

    from apps.federated.pictures import curves, holdings, union_by_client

    results = record["results"]
    yield "1-split", holdings(np.array(results["split"]["counts"]), results["split"]["classes"], "Who holds what (first seed)")
    runs = {name: _runs(folder, name) for name in results["strategies"]}
    yield "2-rounds", curves(runs, "round", record["title"])
    sending = {name: lines for name, lines in runs.items() if name not in ALONE}
    if sending:
        yield "3-bytes", curves(sending, "bytes", record["title"])
    for name in sending:
        first = sorted((folder / "runs").glob(f"{name}-s*"))[0]
        if (first / "union.safetensors").exists():
            last = list(read_lines(first / "rounds.jsonl"))[-1]
            sent = [(client["client"], client["images"]) for client in last["clients"] if client["images"]]
            if sent:
                union = CondensedSet.load(first / "union.safetensors")
                yield f"4-union-{name}", union_by_client(union, sent, f"{name}: what each client sent last")


def _runs(folder: Path, name: str) -> list[list[Line]]:
    return [list(read_lines(path / "rounds.jsonl")) for path in sorted((folder / "runs").glob(f"{name}-s*"))]


def accuracy_table(record: Record) -> Rows:
    """Header and rows: one row a strategy; accuracy after the first and the last round, bytes, uploads that were dropped."""
    strategies: Results = record["results"].get("strategies", {})
    if not strategies:
        return []
    last = max(part["rounds"][-1]["round"] for part in strategies.values())
    columns = ["round 1", *([f"round {last}"] if last > 1 else [])]
    rows = [["strategy", *columns, "MB up", "MB down", "dropped"]]
    for name, part in strategies.items():
        values = [shown(part["rounds"][number]["accuracy"]) for number in ((1, last) if last > 1 else (1,))]
        up, down = (sum(line[way] for line in part["rounds"]) / 1e6 for way in ("up", "down"))
        rows.append([name, *values, f"{up:.3f}", f"{down:.3f}", str(len(part["dropped"]))])
    return rows


def answer(record: Record) -> str:
    """The record in one sentence."""
    strategies: Results = record["results"].get("strategies", {})
    if not strategies:
        return f"No strategy has finished. Status: {record['status']}."
    parts = [f"{name} {shown(part['accuracy'])} % with {part['bytes'] / 1e6:.2f} MB" for name, part in strategies.items()]
    rounds = next(iter(strategies.values()))["rounds"][-1]["round"]
    public = record["results"].get("public")
    total = f" All rounds and seeds together: {public['guarantee']}" if public else ""
    return f"After {rounds} round{'s' if rounds > 1 else ''}: {'; '.join(parts)}.{total}"


def remarks(record: Record) -> list[str]:
    """For the report: everyone who was left out of a round, and why; and what the clients' numbers rest on."""
    strategies: Results = record["results"].get("strategies", {})
    said = [
        f"{name}{f', run {place + 1}' if len(part.get('left_out', ())) > 1 else ''}, {text}"
        for name, part in strategies.items()
        for place, lines in enumerate(part.get("left_out", ()))
        for text in lines
    ]
    return [*said, *([CLAIMS] if record["results"].get("engine") == "deployment" else [])]


def question(config: Config) -> str:
    """The study's question in a sentence."""
    clients, table = config["partition"]["num_partitions"], config["federation"]
    rounds = f"{config['rounds']} round{'s' if config['rounds'] > 1 else ''}"
    return (
        f"{clients} clients each hold a part of {config['data']['name']} ({config['partition']['partitioner']}): which accuracy is"
        f" reached in {rounds} by {series(table['strategies'])}, and with how many bytes?"
    )


def missing(record: Record, config: Config) -> list[str]:
    """What a reader could miss: rivals and bounds that were not asked for, single runs."""
    results = record["results"]
    asked, done = config["federation"]["strategies"], results.get("strategies", {})
    sentences = [f"Not finished: {series([name for name in asked if name not in done])}."] if set(asked) - set(done) else []
    bounds = {
        "fedavg": "federated averaging of weights",
        "local": "clients that learn alone",
        "central": "training on all data in one place",
    }
    sentences += [f"No comparison with {words} ({name})." for name, words in bounds.items() if name not in asked]
    return [*sentences, *few(config["federation"]["seeds"], "seed"), *other_split(config["split"])]
