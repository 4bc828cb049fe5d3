"""A message's records as one object on the wire.

Flower's link moves every record, array and chunk of a message in a separate request, with one to two kilobytes of headers each: a small
upload has less. A server that is reached over HTTP packs what it asks; a client answers in the form in which it was asked.
Needs Flower only.
"""

import zlib
from collections.abc import Sequence

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Packed

from distill.errors import InputError

PART_BYTES = 4 << 20  # of an object; more bytes are several ones, as Flower does it with arrays
RECORD = "packed-{}"
STORED, DEFLATED = 0, 6  # zlib's levels: float weights would shrink by a few percent only
# What a client unpacks at most: weights are stored, so a server that sends more than that is no server of ours.
CLIENT_BYTES, CLIENT_FACTOR = 64 << 20, 8


def pack(content: RecordDict, level: int = STORED) -> RecordDict:
    """The same content as DEFLATE data of that level, in one record for every `PART_BYTES`."""
    data = zlib.compress(recorddict_to_proto(content).SerializeToString(deterministic=True), level)
    parts = [data[start : start + PART_BYTES] for start in range(0, len(data), PART_BYTES)]
    return RecordDict({RECORD.format(place): ConfigRecord({"data": part}) for place, part in enumerate(parts)})


def is_packed(content: RecordDict) -> bool:
    """Whether this is the form of `pack`; other content is nobody's but the reader's to check."""
    return RECORD.format(0) in content


def unpack(content: RecordDict, most: int) -> RecordDict:
    """What was packed, and content that was not as it is.

    Raises:
        InputError: the data are damaged, or are more than ``most`` bytes (never is more than that unpacked).
    """
    if not is_packed(content):
        return content
    parts = []
    for place in range(len(content)):
        record = content.get(RECORD.format(place))
        part = record.get("data") if isinstance(record, ConfigRecord) and len(record) == 1 else None
        if not isinstance(part, bytes):
            raise InputError(f"the packed message has no part {place}; allowed: its parts and nothing else.")
        parts.append(part)
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(b"".join(parts), most + 1)
    except zlib.error as error:
        raise InputError(f"the packed message cannot be read ({error}).") from None
    if len(data) > most:
        raise InputError(f"the packed message has more than {most} bytes; allowed: at most {most}.")
    if not stream.eof or stream.unused_data:
        raise InputError("the packed message does not end with its data; allowed: all of it and nothing else.")
    return recorddict_from_proto(Packed.FromString(data))


def pack_all(messages: Sequence[Message]) -> Sequence[Message]:
    """The same messages, their content packed; records that several have are packed once."""
    known: dict[tuple[int, ...], RecordDict] = {}
    for message in messages:
        key = tuple(map(id, message.content.values()))
        if key not in known:
            known[key] = pack(message.content)
        message.content = known[key]
    return messages


def in_the_form_asked(message: Message, context: Context, answer: ClientAppCallable) -> Message:
    """A client's mod: unpack a packed request and pack its answer. What cannot be unpacked is passed on, and refused by its reader."""
    if not message.has_content() or not is_packed(message.content):
        return answer(message, context)
    sizes = [len(data) for record in message.content.config_records.values() for data in record.values() if isinstance(data, bytes)]
    try:
        message.content = unpack(message.content, max(CLIENT_BYTES, CLIENT_FACTOR * sum(sizes)))
    except Exception:  # another party's bytes, in Flower's parsers
        return answer(message, context)
    reply = answer(message, context)
    if reply.has_content():
        # Images shrink; weights would, by a few percent.
        reply.content = pack(reply.content, DEFLATED if "upload" in reply.content else STORED)
    return reply
