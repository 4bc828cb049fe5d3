"""What a "continual" run shows: pictures, its main table, one sentence, what was not run."""

from collections.abc import Iterator
from pathlib import Path

from distill.drawing import Drawing
from distill.spec import DataSpec
from scenarios.engine.record import Config, Record, Results, Rows
from scenarios.reporting.text import few, other_split, series, shown

NOTE = (
    "Average accuracy over the experiences seen so far, and forgetting, in percent after the last experience: mean and 95 % interval"
    " (Student's t) over class orders. Rows named last@NETWORK: one network, from scratch, on the last memory of the first class order."
)
AT_CHANCE = 1.2  # times the accuracy of one answer for all images


ARRIVE = {  # what a study's stream is, by its setting
    "class": "The classes of {data} arrive in {count} experiences",
    "online": "The classes of {data} arrive in {count} experiences",
    "permuted": "All classes of {data} arrive {count} times, each time with the pixels in another order",
    "rotated": "All classes of {data} arrive {count} times, each time turned by another angle",
    "repetition": "Some classes of {data} arrive in each of {count} experiences, and come back later",
    "blurry": "The classes of {data} arrive in {count} experiences, some images of each in other ones",
}


def draw(folder: Path, record: Record) -> Iterator[tuple[str, Drawing]]:
    """Accuracy by experience of all memories, an accuracy matrix for each, and the memories' images growing (first class order)."""
    from apps.continual.figures import accuracy_lines, growing_picture, matrix_picture
    from apps.continual.memory_file import load

    groups: dict[str, Results] = {}
    for cell in record["results"]["cells"]:
        if "by_experience" in cell:
            group = f"{cell['strategy']} {cell['budget']}".strip()
            groups.setdefault(group, {})[f"{cell['method']} {cell['storage']}".strip() or cell["strategy"]] = cell
    for group, cells in groups.items():
        curves = {name: cell["by_experience"] for name, cell in cells.items()}
        title = f"{record['title']}, {_words(next(iter(cells.values())))}"
        yield f"accuracy-{group.replace(' ', '-')}", accuracy_lines(curves, title)
        best = max(cells, key=lambda name: cells[name]["accuracy"]["mean"])
        yield f"matrix-{group.replace(' ', '-')}", matrix_picture(cells[best]["matrix"], f"{group}: {best}, first class order")
    spec = _spec(folder)
    for place in sorted((folder / "memories").glob("*-order0")):
        paths = sorted(place.glob("memory-*.safetensors"), key=lambda path: int(path.stem.partition("-")[2]))
        if spec is not None:
            sets = [load(path).condensed(spec) for path in paths]
            yield f"memory-{place.name}", growing_picture(sets, f"Memory after each experience: {place.name}")


def _spec(folder: Path) -> DataSpec | None:
    """The stream's spec, from a memory's own settings (a picture needs no data)."""
    from apps.continual.memory_file import load

    for path in sorted((folder / "memories").glob("*-order0/memory-*.safetensors")):
        memory = load(path)
        assert memory.config.mean is not None
        assert memory.config.std is not None
        names = tuple(str(label) for label in range(1000))
        channels, height, width = memory.groups[0].form.shape
        return DataSpec(memory.config.name, channels, height, width, names, memory.config.mean, memory.config.std)
    return None


def _words(cell: Results) -> str:
    if not cell["budget"]:
        return str(cell["strategy"])
    count = cell["budget"][5:]
    what = f"{count} a class" if cell["budget"].startswith("items") else f"bytes of {count} float32 a class"
    return f"{cell['strategy']}, {what}"


def accuracy_table(record: Record) -> Rows:
    """Header and rows: one row a memory under its budget; the interval is over class orders."""
    rows = [["strategy, budget", "memory", "stored as", "items", "bytes", "average accuracy", "forgetting", "condensing, s"]]
    for cell in record["results"].get("cells", []):
        rows.append(
            [
                _words(cell),
                cell["method"] or "-",
                cell["storage"] or "-",
                str(cell.get("items", "-")),
                str(cell.get("bytes", "-")),
                shown(cell["accuracy"]),
                shown(cell["forgetting"]) if "forgetting" in cell else "-",
                f"{cell['condense_seconds']:.1f}" if "condense_seconds" in cell else "-",
            ]
        )
    return rows if len(rows) > 1 else []


def answer(record: Record) -> str:
    """The record in one sentence: the best and the worst memory under each budget, and whether the intervals part."""
    cells = [cell for cell in record["results"].get("cells", []) if cell["method"]]
    parts = []
    for words in dict.fromkeys(_words(cell) for cell in cells):
        ranked = sorted((c for c in cells if _words(c) == words), key=lambda c: -c["accuracy"]["mean"])
        best, plain = ranked[0], next((c for c in ranked if c["method"] == "random" and c is not ranked[0]), None)
        text = f"{words}: {best['method']} {best['storage']} leads with {shown(best['accuracy'])} %"
        if plain is not None:
            text += f", random {shown(plain['accuracy'])}"
            if best["accuracy"]["low"] is not None:
                text += f" ({'intervals apart' if best['accuracy']['low'] > plain['accuracy']['high'] else 'intervals overlap'})"
        if ranked[-1] is not best and ranked[-1] is not plain:
            text += f", last is {ranked[-1]['method']} {shown(ranked[-1]['accuracy'])}"
        parts.append(text)
    return ("; ".join(parts) + ".") if parts else f"No memory was compared. Status: {record['status']}."


def question(config: Config) -> str:
    """The study's question in a sentence."""
    stream, memory = config["stream"], config["memory"]
    if stream["setting"] == "domain":
        what = f"The data sets {series([config['data']['name'], *stream['domains']])} arrive one after the other"
    else:
        what = ARRIVE[stream["setting"]].format(data=config["data"]["name"], count=stream["experiences"])
    others = config["learner"].get("others")
    again = f", again with {series(others)} as @network" if others else ""
    again += f", and {series(last)} from scratch on the last memory" if (last := config["learner"].get("last")) else ""
    form = f"; those named -decoded store {memory['decode']}" if memory.get("decode") else ""
    return (
        f"{what}: which memory keeps most ({series(memory['methods'])}{form}; learners: {series(config['learner']['strategies'])}{again})?"
    )


def missing(record: Record, config: Config) -> list[str]:
    """What a reader could miss: rivals and bounds that were not asked for, single runs."""
    results = record["results"]
    strategies, methods = config["learner"]["strategies"], config["memory"]["methods"]
    sentences = [] if results.get("cells") else ["No memory has been evaluated yet."]
    sentences += [] if "random" in methods else ["No comparison with a memory of random real images."]
    sentences += [] if "none" in strategies else ["No learner without a memory (the lower bound)."]
    sentences += [] if "joint" in strategies else ["No training on all classes at once (the upper bound)."]
    sentences += _learned_nothing(results)
    return [*sentences, *few(config["stream"]["orders"], "class order"), *other_split(config["learner"]["split"])]


def _learned_nothing(results: Results) -> list[str]:
    """A sentence for each row with orders at the accuracy of chance: a diverged learner is a mean with a long interval otherwise."""
    chance = 100 / max(1, len({label for experience in results.get("experiences", []) for label in experience["classes"]}))
    sentences = []
    for cell in results.get("cells", []):
        values = cell["accuracy"]["values"]
        if at := sum(value <= AT_CHANCE * chance for value in values):
            row = " ".join(part for part in (_words(cell), cell["method"], cell["storage"]) if part)
            sentences.append(
                f"{row}: at chance ({chance:.3g} %) in {at} of {len(values)} class orders; if its training diverged, lower lr."
            )
    return sentences
