"""Messages as one object: they come out as they went in, nothing hostile is unpacked, and it is less on the wire."""

import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.federated import engines
from apps.federated.client_app import client_app
from apps.federated.inline import LocalGrid, task_identity
from apps.federated.messages import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict, parts_of, record_of
from apps.federated.packing import DEFLATED, PART_BYTES, in_the_form_asked, is_packed, pack, pack_all, unpack
from apps.federated.server_app import serve
from apps.federated.settings import from_mapping, to_json
from distill.errors import InputError
from scenarios.federated.cells import FLOWER_APP
from tests.conftest import toy

from .secured import Proxy


def content(size: int = 300) -> RecordDict:
    arrays = {"images": np.arange(size, dtype=np.uint8 if size < 256 else np.int32), "counter": np.array(3, np.int64)}
    return RecordDict(
        {
            "upload": record_of(arrays),
            "facts": MetricRecord({"partition-id": 1, "seconds": 0.25, "list": [1, 2]}),
            "ask": ConfigRecord({"round": 1, "spec": '{"name": "ü"}', "raw": b"\x00\xff"}),
        }
    )


def same(left: RecordDict, right: RecordDict) -> bool:
    arrays = all(parts_of(left, key) == parts_of(right, key) for key in left if isinstance(left[key], ArrayRecord))
    rest = all(dict(left[key]) == dict(right[key]) for key in left if not isinstance(left[key], ArrayRecord))
    return list(left) == list(right) and arrays and rest


@pytest.mark.parametrize("level", [0, DEFLATED])
@pytest.mark.parametrize("size", [0, 300, 3 * PART_BYTES // 4])
def test_a_message_comes_out_as_it_went_in(level: int, size: int) -> None:
    packed = pack(content(size), level)
    assert (len(packed) > 1) == (size > 1000)
    assert same(unpack(packed, 1 << 26), content(size))


def test_content_that_was_not_packed_stays() -> None:
    plain = content()
    assert unpack(plain, 1) is plain


def data_of(packed: RecordDict) -> bytes:
    data = packed["packed-0"]["data"]
    assert isinstance(data, bytes)
    return data


def with_data(data: Any, **more: Any) -> RecordDict:
    return RecordDict({"packed-0": ConfigRecord({"data": data}), **more})


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda data: with_data(zlib.compress(b"\0" * (1 << 26))), "more than 1048576 bytes"),
        (lambda data: with_data(data[:-1]), "does not end with its data"),
        (lambda data: with_data(data + b"x"), "does not end with its data"),
        (lambda data: with_data(b"PK\x03\x04" + data), "cannot be read"),
        (lambda data: with_data(data, facts=MetricRecord({"round": 1})), "has no part 1"),
        (lambda data: with_data("text"), "has no part 0"),
        (lambda data: RecordDict({"packed-0": MetricRecord({"data": 1})}), "has no part 0"),
    ],
)
def test_what_is_no_packed_message_is_refused(made: Callable[[bytes], RecordDict], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        unpack(made(data_of(pack(content()))), 1 << 20)


def test_random_damage_is_an_error_or_other_content_and_never_a_crash() -> None:
    rng = np.random.default_rng(0)
    raw, raised = zlib.decompress(data_of(pack(content()))), set()
    for _ in range(300):
        place = int(rng.integers(len(raw)))
        damaged = raw[:place] + bytes([raw[place] ^ (1 << int(rng.integers(8)))]) + raw[place + 1 :]
        try:
            unpack(with_data(zlib.compress(damaged)), 1 << 20)
        except Exception as error:  # whoever reads another party's message catches all of them
            raised.add(type(error))
    assert raised
    assert not raised & {MemoryError, RecursionError}


def test_a_bomb_is_never_in_memory() -> None:
    """2 GB of zeros in 2 MB, in a process that may grow by 100 MB."""
    program = """
import resource, zlib
from flwr.app import ConfigRecord, RecordDict
from apps.federated.packing import unpack

bomb, zeros = zlib.compressobj(9), bytes(1 << 20)
first, again = (bomb.compress(zeros) + bomb.flush(zlib.Z_FULL_FLUSH) for _ in range(2))  # after a full flush the same bytes again
check = 1
for _ in range(2048):
    check = zlib.adler32(zeros, check)
data = first + again * 2047 + b"\\x03\\x00" + check.to_bytes(4, "big")  # an empty last block and the check sum
assert len(data) < 1 << 22
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    unpack(RecordDict({"packed-0": ConfigRecord({"data": data})}), 1 << 22)
except Exception as error:
    print(type(error).__name__, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=engines.ROOT)
    assert done.stdout.split() == ["InputError", "True"]


def test_records_that_messages_share_are_packed_once() -> None:
    shared, other = content(), content(5)
    parts = ((1, shared), (2, shared), (3, other))
    with task_identity():
        messages = [Message(RecordDict(part), dst_node_id=node, message_type="train") for node, part in parts]
    pack_all(messages)
    assert messages[0].content is messages[1].content
    assert same(unpack(messages[2].content, 1 << 20), other)


def test_a_client_answers_in_the_form_in_which_it_was_asked() -> None:
    def answer(message: Message, context: Context) -> Message:
        assert not is_packed(message.content)
        return Message(content(), reply_to=message)

    context = Context(1, 1, {}, RecordDict(), {})
    with task_identity():
        plain, packed = (Message(made, dst_node_id=1, message_type="train") for made in (content(), pack(content())))
        for message in (plain, packed):
            message.metadata.__dict__["_message_id"] = "1"
        assert same(in_the_form_asked(plain, context, answer).content, content())
        reply = in_the_form_asked(packed, context, answer)
    assert is_packed(reply.content)
    assert same(unpack(reply.content, 1 << 20), content())


@pytest.mark.parametrize("name", ["feddm", "scaffold"])
def test_a_whole_run_is_the_same_packed(name: str) -> None:
    made = from_mapping(
        {
            "strategy": name,
            "network": "ConvNetD1W32",
            "rounds": 2,
            "partition": {"partitioner": "iid", "num_partitions": 2},
            "upload": {"ipc": 2, "settings": {"iterations": 3, "batch_real": 8}},
            "server": {"recipe": {"max_steps": 5, "batch_size": 8, "lr": 0.05, "schedule": "constant", "augmentation": "none"}},
        }
    )
    data = toy(classes=4)
    app = client_app(data)

    def packed(message: Message, context: Context) -> Message:
        pack_all([message])
        reply = app(message, context)
        assert is_packed(reply.content)
        reply.content = unpack(reply.content, 1 << 24)
        return reply

    lines = []
    for client in (app, packed):
        with task_identity():
            lines.append(serve(LocalGrid(client, {"settings": to_json(made)}, 2), made, data))
    for figure in ("accuracy", "up", "down", "images", "dropped"):
        assert [line[figure] for line in lines[0]] == [line[figure] for line in lines[1]]


@pytest.mark.slow
@pytest.mark.network_engine
def test_real_traffic_is_little_more_than_the_payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte between two SuperNodes and their SuperLink is counted, heartbeats and the app that is sent to them among them."""
    made = from_mapping(
        {
            "network": "ConvNetW32",
            "rounds": 3,
            "timeout": 300.0,
            "partition": {"num_partitions": 2},
            "upload": {"ipc": 10, "settings": {"iterations": 5, "batch_real": 16}},
            "server": {"recipe": {"max_steps": 20, "batch_size": 16, "lr": 0.02, "schedule": "constant", "augmentation": "none"}},
        }
    )
    start, proxies = engines._start, []

    def through_a_proxy(name: str, arguments: list[str], log: Path, environment: dict[str, str]) -> Any:
        if name == "flower-supernode":
            place = arguments.index("--superlink") + 1
            proxies.append(Proxy(int(arguments[place].rpartition(":")[2])))
            arguments = [*arguments[:place], f"127.0.0.1:{proxies[-1].port}", *arguments[place + 1 :]]
        return start(name, arguments, log, environment)

    monkeypatch.setattr(engines, "_start", through_a_proxy)
    try:
        engines.run_deployment(made, tmp_path / "run", FLOWER_APP)
    finally:
        for proxy in proxies:
            proxy.close()
    lines = engines.lines_of(tmp_path / "run")
    payload = {way: sum(line[way] for line in lines) for way in ("up", "down")}
    traffic = {"up": sum(proxy.up for proxy in proxies), "down": sum(proxy.down for proxy in proxies)}
    print(payload, traffic)
    assert all(line["dropped"] == 0 for line in lines)
    assert traffic["up"] < 2.5 * payload["up"]
    assert traffic["down"] < 1.2 * payload["down"]
