import struct
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvactor.core import records
from kvactor.core.records import NEVER, Record, Revision
from kvactor.errors import DataDamaged, RecordDamaged

NUMBER = st.integers(0, NEVER)
REVISION = st.integers(0, (1 << 63) - 1)
KIND = st.text(
    st.characters(min_codepoint=32, max_codepoint=126), max_size=records.MAX_CONTENT_TYPE_SIZE
)


def of_format_1(key: bytes, value: bytes, kind: str, expires_at: int, revision: int) -> bytes:
    """A record as version 0.1 has written it."""
    head = struct.pack(">QQQB", revision, 1, expires_at, len(kind))
    rest = head + kind.encode() + value
    return crc32(key + rest).to_bytes(4, "big") + rest


@given(st.binary(), st.binary(), KIND, NUMBER, REVISION)
def test_a_record_of_format_1_is_read_and_its_damage_is_noticed(
    key: bytes, value: bytes, kind: str, expires_at: int, revision: int
) -> None:
    record = of_format_1(key, value, kind, expires_at, revision)
    records.verify(key, record)
    assert records.decode(record) == Record(revision, 1, expires_at, kind, value)
    assert records.value_of(record) == value
    assert records.is_json(record) == (kind == "application/json")
    assert records.without_value(record) + value == record
    assert records.head_size(record) == len(record)
    for place in (0, 4, 28, len(record) - 1):
        damaged = bytearray(record)
        damaged[place] ^= 0x80
        with pytest.raises(RecordDamaged):
            records.verify(key, bytes(damaged))


@given(st.binary(min_size=1), st.binary(min_size=1), KIND)
def test_a_head_is_read_without_its_value(key: bytes, value: bytes, kind: str) -> None:
    record = records.encode(key, value, kind, NEVER, 7, 3)
    head = record[: records.head_size(record)]
    records.verify_head(key, head)
    assert head == records.without_value(record)
    assert (records.revision_of(head), records.created_of(head)) == (7, 3)
    damaged = record[:-1] + bytes([record[-1] ^ 1])
    records.verify_head(key, damaged[: records.head_size(damaged)])
    with pytest.raises(RecordDamaged):
        records.verify(key, damaged)
    with pytest.raises(RecordDamaged):
        records.verify_head(key + b"!", head)


@given(st.binary(), st.binary(), KIND, NUMBER, REVISION, NUMBER)
def test_a_record_comes_back_as_it_was(
    key: bytes, value: bytes, kind: str, expires_at: int, revision: int, created: int
) -> None:
    draft = records.encode(key, value, kind, expires_at)
    record = records.stamp(key, draft, revision, created)
    records.verify(key, record)
    assert record == records.encode(key, value, kind, expires_at, revision, created)
    assert records.decode(record) == Record(revision, created, expires_at, kind, value)
    assert records.value_of(record) == value
    assert records.created_of(record) == created
    assert records.expiry_of(record) == expires_at


@given(st.binary(min_size=1), st.binary(), st.data())
def test_any_flipped_bit_and_any_cut_is_noticed(key: bytes, value: bytes, data: st.DataObject) -> None:
    record = bytearray(records.encode(key, value, "text/plain"))
    bit = data.draw(st.integers(0, len(record) * 8 - 1))
    record[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RecordDamaged):
        records.verify(key, bytes(record))
    record[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RecordDamaged):
        records.verify(key, bytes(record[: data.draw(st.integers(0, len(record) - 1))]))
    with pytest.raises(RecordDamaged):
        records.verify(key + b"!", bytes(record))


CHANGES = st.lists(st.tuples(st.binary(), st.none() | st.binary())).map(tuple)


@given(NUMBER, NUMBER, CHANGES, st.data())
def test_a_row_comes_back_as_it_was_and_damage_is_noticed(
    number: int, time: int, changes: tuple[tuple[bytes, bytes | None], ...], data: st.DataObject
) -> None:
    revision = Revision(number, time, changes)
    row = bytearray(records.encode_revision(revision))
    assert records.decode_revision(number, bytes(row)) == revision
    assert records.decode_revision_number(records.encode_revision_number(number)) == number
    with pytest.raises(DataDamaged):
        records.decode_revision(number ^ 1, bytes(row))
    bit = data.draw(st.integers(0, len(row) * 8 - 1))
    row[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DataDamaged):
        records.decode_revision(number, bytes(row))
    with pytest.raises(DataDamaged):
        records.decode_revision(number, bytes(row[:3]))
