"""A record of kind "federated": its pictures, table and sentences."""

from collections.abc import Iterator
from pathlib import Path

from apps.federated.settings import ALONE, WEIGHTS
from distill.condensed import CondensedSet
from distill.drawing import Drawing
from distill.records import read_lines
from scenarios.engine.record import Config, Line, Record, Results, Rows
from scenarios.federated.left_out import CLAIMS
from scenarios.federated.tuning import in_words
from scenarios.reporting.text import few, other_split, series, shown

NOTE = (
    "Test accuracy in percent of each strategy's network: mean and 95 % interval over seeds. Megabytes and client seconds: all rounds, mean"
    " over seeds; client seconds are measured, all clients together. to N %: round in which all seeds had reached it, on average."
    " backdoor: percent of other classes' images that the attack's trigger makes the network call its target; +KIND-SHARE: share of the"
    " clients that attack."
)


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
        if "+" in name:  # a row with an attack or admission; the uploads of honest clients are the strategy's own
            continue
        first = sorted((folder / "runs").glob(f"{name}-s*"))[0]
        if (first / "union.safetensors").exists():
            last = list(read_lines(first / "rounds.jsonl"))[-1]
            entries = [*last["clients"], *(late for late in last.get("late", ()) if late.get("status") in ("accepted", "kept"))]
            sent = sorted((each["client"], each["images"]) for each in entries if each["images"])
            if sent:
                union = CondensedSet.load(first / "union.safetensors")
                yield f"4-union-{name}", union_by_client(union, sent, f"{name}: what each client sent last")


def _runs(folder: Path, name: str) -> list[list[Line]]:
    return [list(read_lines(path / "rounds.jsonl")) for path in sorted((folder / "runs").glob(f"{name}-s*"))]


def accuracy_table(record: Record) -> Rows:
    """Header and rows, one row a strategy.

    Accuracy after the first round, the last that all strategies have, and the last of those that have more; bytes, client seconds, rounds
    to the study's targets, uploads that were dropped, tuned settings.
    """
    strategies: Results = record["results"].get("strategies", {})
    if not strategies:
        return []
    numbers = sorted({1, *(part["rounds"][-1]["round"] for part in strategies.values())})
    targets = list(dict.fromkeys(target for part in strategies.values() for target in part.get("targets", {})))
    timed = any("client_seconds" in line for part in strategies.values() for line in part["rounds"])
    tuned = record["results"].get("tuning", {}).get("chosen", {})
    opened = any("backdoor" in part for part in strategies.values())
    header = ["strategy", *(f"round {number}" for number in numbers), "MB up", "MB down", *(["client s"] if timed else [])]
    header += ["backdoor"] if opened else []
    rows = [[*header, *(f"to {target} %" for target in targets), "dropped", *(["tuned"] if tuned else [])]]
    for name, part in strategies.items():
        lines = part["rounds"]
        row = [name, *(shown(lines[number]["accuracy"]) if number < len(lines) else "" for number in numbers)]
        row += [f"{sum(line[way] for line in lines) / 1e6:.3f}" for way in ("up", "down")]
        if timed:
            seconds = [line["client_seconds"] for line in lines[1:] if "client_seconds" in line]
            row.append(f"{sum(seconds):.0f}" if len(seconds) == len(lines) - 1 else "")
        if opened:
            row.append(shown(part["backdoor"]) if "backdoor" in part else "")
        row += [_reached(part.get("targets", {}).get(target), len(part["accuracy"]["values"])) for target in targets]
        rows.append([*row, str(len(part["dropped"])), *([in_words(tuned.get(name, {}))] if tuned else [])])
    return rows


def _reached(target: Results | None, seeds: int) -> str:
    """The mean round, or how many of the seeds never had the target."""
    if target is None:
        return ""
    return f"{target['rounds']:.1f}" if target["rounds"] is not None else f"{target['reached']} of {seeds}"


def answer(record: Record) -> str:
    """The record in one sentence."""
    strategies: Results = record["results"].get("strategies", {})
    if not strategies:
        return f"No strategy has finished. Status: {record['status']}."
    last = {name: part["rounds"][-1]["round"] for name, part in strategies.items()}
    rounds = min(last.values())
    parts = [
        f"{name} {shown(part['accuracy'])} % with {part['bytes'] / 1e6:.2f} MB{f' in {last[name]} rounds' if last[name] > rounds else ''}"
        for name, part in strategies.items()
    ]
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
    if "tuning" not in config and any(name in WEIGHTS for name in asked):
        sentences.append("The settings of the strategies that send weights were not tuned in this study.")
    edges = results.get("tuning", {}).get("edges", {})
    sentences += [f"{name} may not be at its best: {series(said)}." for name, said in edges.items()]
    return [*sentences, *few(config["federation"]["seeds"], "seed"), *other_split(config["split"])]
