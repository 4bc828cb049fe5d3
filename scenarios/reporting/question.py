"""What a study asks, and what of it (or beside it) was not run: two paragraphs of a report, from the configuration and the record.

A room may say it better: `question(config)` and `not_run(record, config)` in scenarios/<kind>/run.py are taken where they are there.
"""

from collections.abc import Iterable
from typing import Any

Config = dict[str, Any]


def question(config: Config) -> str:
    """The study's question in a sentence; the title where the configuration does not tell more."""
    asked = {"condense": _condense, "federated": _federated, "continual": _continual, "privacy": _privacy, "nas": _nas}
    try:
        return asked[config["kind"]](config)
    except (KeyError, TypeError, IndexError):  # a kind of another version, or a part of a configuration
        return str(config.get("title") or config.get("scenario") or "")


def not_run(record: dict[str, Any], config: Config) -> list[str]:
    """Sentences about what a reader could miss: stages that did not end, rivals and bounds that were not asked for, single runs."""
    results = record["results"]
    missing = {"condense": _no_condense, "federated": _no_federated, "continual": _no_continual, "privacy": _no_privacy, "nas": _no_nas}
    found = []
    if record.get("status") != "done":
        found.append(f"The run is not finished (status {record.get('status')}); the figures are those of what was.")
    try:
        found += missing[config["kind"]](results, config) if config["kind"] in missing else []
    except (KeyError, TypeError, AttributeError, IndexError):
        found.append("What else was left out cannot be read from this configuration.")
    return found


def _condense(config: Config) -> str:
    method, judged = config["method"], config["evaluation"]
    ipc = method["ipc"]
    size = f"{_list(ipc)} image{'s' if ipc != [1] else ''} a class" if isinstance(ipc, list) else "unequal numbers of images a class"
    size = f"images in proportion to the classes ({ipc.partition(':')[2]} in the mean)" if isinstance(ipc, str) else size
    made = f"{size} that {method['name']} makes of {config['data']['name']}"
    if judged is None:
        return f"What do {made} look like?"
    rivals = [_RIVALS.get(name, f"{name} images") for name in judged["baselines"]]
    return f"How well do networks ({_list(judged['networks'])}) learn from {made}{', compared with ' if rivals else ''}{_list(rivals)}?"


_RIVALS = {
    "whole": "the full training set",
    "random": "random images",
    "class_mean": "class means",
    "kmeans": "k-means",
    "kcenter": "k-center",
}


def _federated(config: Config) -> str:
    clients, table = config["partition"]["num_partitions"], config["federation"]
    rounds = f"{config['rounds']} round{'s' if config['rounds'] > 1 else ''}"
    return (
        f"{clients} clients each hold a part of {config['data']['name']} ({config['partition']['partitioner']}): which accuracy is"
        f" reached in {rounds} by {_list(table['strategies'])}, and with how many bytes?"
    )


def _continual(config: Config) -> str:
    stream, memory = config["stream"], config["memory"]
    if stream["setting"] == "domain":
        what = f"The data sets {_list([config['data']['name'], *stream['domains']])} arrive one after the other"
    else:
        what = f"The classes of {config['data']['name']} arrive in {stream['experiences']} experiences"
    return f"{what}: which memory keeps most ({_list(memory['methods'])}; learners: {_list(config['learner']['strategies'])})?"


def _privacy(config: Config) -> str:
    parts = []
    if config.get("privacy"):
        method, epsilon = config["method"], config["privacy"]["epsilon"]
        parts.append(
            f"What does it cost in accuracy to condense {config['data']['name']} with {method['name']} at epsilon {_list(epsilon)},"
            f" {method['ipc']} image{'s' if method['ipc'] != 1 else ''} a class?"
        )
    if config.get("audit"):
        parts.append("Does the mechanism keep its promise?")
    if config.get("attack"):
        parts.append(f"Whom does membership inference find in networks trained on: {_list(config['attack']['arms'])}?")
    if config.get("poisoning"):
        parts.append(f"Does a trigger that is planted in images of {config['data']['name']} survive their condensation?")
    return " ".join(parts) or str(config["title"])


def _nas(config: Config) -> str:
    sets = [*config["methods"], *config["sets"]["coresets"]]
    return (
        f"Do networks trained on {config['sets']['ipc']} images a class of {config['data']['name']} ({_list(sets)}) rank architectures"
        " as full training does, and with what regret?"
    )


def _no_condense(results: dict[str, Any], config: Config) -> list[str]:
    judged = config["evaluation"]
    asked = config["method"]["ipc"] if isinstance(config["method"]["ipc"], list) else []
    found = [f"No set at IPC {ipc}." for ipc in asked if f"ipc{ipc}" not in results]
    if judged is None:
        return [*found, "No network was trained on the sets: the study has no [evaluation] table."]
    wanted = {config["method"]["name"], *judged["baselines"]}
    for key, part in results.items():
        if key.startswith("ipc"):
            absent = sorted(wanted - set(part.get("accuracy", {})))
            found += [f"Not evaluated at IPC {key[3:]}: {_list(absent)}."] if absent else []
    found += [f"No comparison with {_RIVALS[name]}." for name in ("random", "whole") if name not in judged["baselines"]]
    if len(judged["networks"]) == 1:
        found.append(f"No other architecture than {judged['networks'][0]} was trained.")
    return [*found, *_few(judged["seeds"], "network"), *_split(judged["split"])]


def _no_federated(results: dict[str, Any], config: Config) -> list[str]:
    wanted, done = config["federation"]["strategies"], results.get("strategies", {})
    found = [f"Not finished: {_list([name for name in wanted if name not in done])}."] if set(wanted) - set(done) else []
    bounds = {
        "fedavg": "federated averaging of weights",
        "local": "clients that learn alone",
        "central": "training on all data in one place",
    }
    found += [f"No comparison with {words} ({name})." for name, words in bounds.items() if name not in wanted]
    return [*found, *_few(config["federation"]["seeds"], "seed"), *_split(config["split"])]


def _no_continual(results: dict[str, Any], config: Config) -> list[str]:
    strategies, methods = config["learner"]["strategies"], config["memory"]["methods"]
    found = [] if results.get("cells") else ["No memory has been evaluated yet."]
    found += [] if "random" in methods else ["No comparison with a memory of random real images."]
    found += [] if "none" in strategies else ["No learner without a memory (the lower bound)."]
    found += [] if "joint" in strategies else ["No training on all classes at once (the upper bound)."]
    return [*found, *_few(config["stream"]["orders"], "class order"), *_split(config["learner"]["split"])]


def _no_privacy(results: dict[str, Any], config: Config) -> list[str]:
    found = []
    if config.get("privacy") is None:
        found.append("No private set was made: the study has no [privacy] table.")
    else:
        budgets = [f"{epsilon:g}" for epsilon in config["privacy"]["epsilon"]]
        found += [f"Not evaluated: epsilon {one}." for one in budgets if "accuracy" not in results.get(f"epsilon{one}", {})]
        found += [] if config["privacy"]["twin"] else ["No twin without noise, so the cost of privacy is not measured."]
        found += _few(config["evaluation"]["seeds"], "network")
    for part, words in (("audit", "The mechanism was not audited"), ("attack", "Nobody was attacked")):
        if config.get(part) is None:
            found.append(f"{words}: the study has no [{part}] table.")
        elif part not in results:
            found.append(f"{words} yet.")
    return [*found, *_split(config["evaluation"]["split"])]


def _no_nas(results: dict[str, Any], config: Config) -> list[str]:
    if "proxies" not in results:
        return ["The networks are not ranked yet."]
    found = [] if "random" in config["sets"]["coresets"] else ["No comparison with random real images."]
    found += [] if config["proxy"]["early"] else ["No comparison with early stopping on the full training set."]
    if results["known"] < results["networks"]:
        found.append(f"{results['networks'] - results['known']} of {results['networks']} networks have no true accuracy.")
    return [*found, *_few(config["truth"]["seeds"], "fully trained network for each architecture")]


def _few(count: int, what: str) -> list[str]:
    return [f"One {what} only, so there is no interval."] if count < 2 else []


def _split(name: str) -> list[str]:
    return [] if name == "test" else [f"The test images were not used: the figures are those of the {name} split."]


def _list(values: Iterable[Any]) -> str:
    """``a, b and c``."""
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
