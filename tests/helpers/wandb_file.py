"""Read back what wandb has written offline: a ``.wandb`` file is a header of 7 bytes and blocks of 32 KiB of records."""

import json
import struct
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

HEADER, BLOCK, PREFIX = 7, 32 * 1024, struct.Struct("<IHB")  # checksum, length, kind: whole, first, middle or last part
WHOLE, FIRST, LAST = 1, 2, 4


def read_records(path: str | Path) -> list[Record]:
    """The records of one offline run, in the order in which they were written.

    Read it after ``wandb.teardown()``: ``run.finish()`` does not wait until the file is complete.
    """
    data, position, record, records = Path(path).read_bytes(), HEADER, b"", []
    while position + PREFIX.size <= len(data):
        if BLOCK - position % BLOCK < PREFIX.size:  # too short for a prefix: the rest of the block is padding
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = PREFIX.unpack_from(data, position)
        position += PREFIX.size
        record = (b"" if kind in (WHOLE, FIRST) else record) + data[position : position + length]
        position += length
        if kind in (WHOLE, LAST):
            records.append(Record.FromString(record))
    return records


def history(records: list[Record]) -> list[dict[str, Any]]:
    """Every row that was logged."""
    return [_values(record.history.item) for record in records if record.WhichOneof("record_type") == "history"]


def summary(records: list[Record]) -> dict[str, Any]:
    """The summary as the last update left it."""
    result: dict[str, Any] = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            result |= _values(record.summary.update)
    return result


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
