"""Twenty ways to change a client's reply, each with random variants. Needs Flower and numpy only: hostile ClientApps import it too."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

Change = Callable[[RecordDict, np.random.Generator], None]


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def without(name: str) -> Change:
    def change(content: RecordDict, rng: np.random.Generator) -> None:
        record = content["facts"]
        content["facts"] = MetricRecord({key: value for key, value in dict(record).items() if key != name})

    return change


def record(name: str, made: Callable[[np.random.Generator], Any]) -> Change:
    def change(content: RecordDict, rng: np.random.Generator) -> None:
        content[name] = made(rng)

    return change


def dropped(name: str) -> Change:
    def change(content: RecordDict, rng: np.random.Generator) -> None:
        for key in [key for key in content if key == name or (name == "arrays" and key == "upload")]:
            del content[key]

    return change


def first_array(made: Callable[[bytes, np.random.Generator], bytes]) -> Change:
    """Another body for the first array of every record of arrays."""

    def change(content: RecordDict, rng: np.random.Generator) -> None:
        for key in [key for key in content if isinstance(content[key], ArrayRecord)]:
            changed = ArrayRecord()
            for place, (name, array) in enumerate(content[key].items()):
                body = made(array.data, rng) if place == 0 else array.data
                changed[name] = Array(array.dtype, array.shape, array.stype, body)
            content[key] = changed

    return change


def other_names(content: RecordDict, rng: np.random.Generator) -> None:
    for key in [key for key in content if isinstance(content[key], ArrayRecord)]:
        changed = ArrayRecord()
        for name, array in content[key].items():
            changed[name + str(rng.integers(9))] = array
        content[key] = changed


def arrays_of(*shape: int) -> Callable[[np.random.Generator], ArrayRecord]:
    return lambda rng: ArrayRecord({"x": Array(rng.normal(size=shape).astype(np.float32))})


def flipped(body: bytes, rng: np.random.Generator) -> bytes:
    """Bits of the header: later ones would be other pixels, which is another honest upload."""
    place = int(rng.integers(0, min(100, len(body))))
    return body[:place] + bytes([body[place] ^ (1 << int(rng.integers(8)))]) + body[place + 1 :]


def statement(*texts: str) -> Change:
    def change(content: RecordDict, rng: np.random.Generator) -> None:
        content["privacy"] = ConfigRecord({"statement": texts[int(rng.integers(len(texts)))]})

    return change


def fact(**values: Any) -> Change:
    def change(content: RecordDict, rng: np.random.Generator) -> None:
        content["facts"] = MetricRecord({**dict(content["facts"]), **values})

    return change


def one_of(name: str, *values: Any) -> Change:
    """A fact with one of these values."""
    return lambda content, rng: fact(**{name: values[int(rng.integers(len(values)))]})(content, rng)


def more_facts(content: RecordDict, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 30))):
        fact(**{word(rng): float(rng.normal())})(content, rng)


def word(rng: np.random.Generator) -> str:
    """A name as nobody would choose it."""
    signs = ["a", "loss", "\x1b[2J", "<script>", "\u202e", "../", "\n", "\0", "x" * 300]
    return "".join(str(rng.choice(signs)) for _ in range(int(rng.integers(1, 5))))


KINDS: dict[str, Change] = {
    "infinite statement": statement('{"a": 1e999}', '{"a": [-1e400]}', '{"epsilon": NaN}', '{"a": {"b": Infinity}}'),
    "nested statement": lambda content, rng: statement('{"a": ' + nested(int(rng.choice([9, 300, 600, 900, 3000]))) + "}")(content, rng),
    "unasked statement": lambda content, rng: statement(json.dumps({"epsilon": float(rng.random()), word(rng): 1}))(content, rng),
    "statement of text": lambda content, rng: statement("x" * int(rng.integers(1, 40_000)))(content, rng),
    "more facts": more_facts,
    "facts as lists": lambda content, rng: fact(seconds=rng.random(int(rng.integers(0, 50))).tolist())(content, rng),
    "infinite fact": one_of("seconds", float("inf"), float("-inf"), 1e300, -1e18),
    "not a number": lambda content, rng: fact(**{str(rng.choice(["seconds", "round"])): float("nan")})(content, rng),
    "another client": one_of("partition-id", 0, -1, 10**9, 1.5, [9]),
    "another round": one_of("round", 0, -7, 10_000, 2**62, 0.5),
    "no round": without("round"),
    "round as text": lambda content, rng: content.__setitem__("facts", ConfigRecord({"round": word(rng)})),
    "more arrays": lambda content, rng: content.__setitem__(word(rng), arrays_of(*rng.integers(0, 9, int(rng.integers(0, 5))))(rng)),
    "20 MB of text": record("provenance", lambda rng: ConfigRecord({"text": "x" * int(rng.integers(10**6, 2 * 10**7))})),
    "arrays for facts": lambda content, rng: content.__setitem__("facts", arrays_of(*rng.integers(0, 9, int(rng.integers(0, 3))))(rng)),
    "no arrays": dropped("arrays"),
    "no facts": dropped("facts"),
    "other names": other_names,
    "flipped header": first_array(flipped),
    "cut array": first_array(lambda body, rng: body[: int(rng.integers(0, len(body)))]),
}


def changed(content: RecordDict, kind: str, seed: int) -> RecordDict:
    """Another dict with the same records, and one change: another record in a record's place."""
    made = RecordDict(dict(content.items()))
    KINDS[kind](made, np.random.default_rng([seed, list(KINDS).index(kind)]))
    return made
