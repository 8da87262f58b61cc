"""How keys, values and revisions are laid out in bytes, on disk and in memory alike.

A record is one `bytes` object, so that a million keys are not a million objects for the garbage
collector to walk:

    head checksum (4) | mod revision (8) | create revision (8) | expires at (8) |
    length of content type (1) | value checksum (4) | content type | value

Integers are big-endian; times are milliseconds since the Unix epoch, and `NEVER` stands for no
expiry. Checksums are crc32. That of the head covers the key and all up to the value, so a record that
turns up under another key is noticed, and a head can be read without its value. The top bit of the mod
revision is set. It is not set in records of format 1 (version 0.1), which have no value checksum: the
first checksum covers all of them. A record with mod revision 0 is a draft: written in a transaction
that has not committed. Its create revision is its number among the drafts of an isolated transaction.

A revision is one committed write, batch or transaction: what one row of the journal holds.
"""

from enum import Enum
from struct import Struct
from typing import Final
from zlib import crc32

import msgspec

from kvactor.errors import DataDamaged, RecordDamaged


class Missing(Enum):
    """Nothing here: look further down; at the bottom, there is no such key."""

    MISSING = "missing"


class Tombstone(Enum):
    """Deleted here: do not look further down."""

    TOMBSTONE = "tombstone"


MISSING: Final = Missing.MISSING
TOMBSTONE: Final = Tombstone.TOMBSTONE

#: A layer's entry for a key: a record or TOMBSTONE.
Entry = bytes | Tombstone
#: What a key in an overlay takes beyond its own bytes, about, in bytes: a bytes object (34), a slot in
#: the dictionary (40; 30 to 60), and one among the sorted keys (9, once they are sorted).
ENTRY_OVERHEAD = 80
#: What a record takes beyond its own bytes: a bytes object.
RECORD_OVERHEAD = 36

NEVER = (1 << 64) - 1
#: The first byte of hidden keys: those of the results that are kept for idempotency keys. A client's
#: key is UTF-8, which never has this byte.
HIDDEN = b"\xff"
MAX_CONTENT_TYPE_SIZE = 255

#: Set in the mod revision of a record whose value has a checksum of its own.
_SPLIT = 1 << 63
_SPLIT_BYTE = 0x80

#: The fields behind the checksum: two revisions, the expiry, the length of the content type.
_HEADER = Struct(">QQQB")
_STAMP = Struct(">QQ")
_DRAFT = Struct(">4xQQQBI")
#: Bytes up to the content type, in format 1 and now.
OLD_HEADER_SIZE = 4 + _HEADER.size
HEADER_SIZE = OLD_HEADER_SIZE + 4
_read_expiry = Struct(">20xQ").unpack_from
_read_life = Struct(">12xQQ").unpack_from


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record taken apart."""

    revision: int
    created: int
    expires_at: int
    content_type: str
    value: bytes


def _checksum(rest: bytes, key: bytes = b"") -> bytes:
    return crc32(rest, crc32(key)).to_bytes(4, "big")


def encode(
    key: bytes,
    value: bytes,
    content_type: str,
    expires_at: int = NEVER,
    revision: int = 0,
    created: int = 0,
) -> bytes:
    """Return the record of `key`. `content_type` is ASCII of at most `MAX_CONTENT_TYPE_SIZE` bytes."""
    return stamp(key, draft(value, content_type, expires_at), revision, created)


def draft(value: bytes, content_type: str, expires_at: int = NEVER, number: int = 0) -> bytes:
    """Return a record without its revisions, and without the checksum of its head; `number` names it in
    its isolated transaction.
    """
    if not number and expires_at == NEVER and content_type == "application/json":
        return _USUAL + crc32(value).to_bytes(4, "big") + _JSON + value
    kind = content_type.encode("ascii")
    return _DRAFT.pack(_SPLIT, number, expires_at, len(kind), crc32(value)) + kind + value


def stamp(key: bytes, draft: bytes, revision: int, created: int) -> bytes:
    """Return `draft` with its checksum and revisions: a commit does this to a transaction's writes."""
    end = HEADER_SIZE + draft[28]
    head = _STAMP.pack(revision | _SPLIT, created) + draft[20:end]
    return _checksum(head, key) + head + draft[end:]


def head_size(record: bytes | memoryview) -> int:
    """Return how many bytes of a record, which may be damaged, can be verified without the others."""
    if len(record) < OLD_HEADER_SIZE or not record[4] & _SPLIT_BYTE:
        return len(record)
    return min(HEADER_SIZE + record[28], len(record))


def verify_head(key: bytes, head: bytes) -> None:
    """Raise `RecordDamaged` unless a head, as long as `head_size` says, was stored under `key`."""
    # Slices, though they copy: for all but huge values they cost less than a memoryview.
    if len(head) < OLD_HEADER_SIZE or head[:4] != _checksum(head[4:], key):
        raise _damaged(key)


def verify(key: bytes, record: bytes) -> None:
    """Raise `RecordDamaged` unless the checksums of `record`, as stored under `key`, are right."""
    size = head_size(record)
    verify_head(key, record[:size])
    if size < HEADER_SIZE or not record[4] & _SPLIT_BYTE:
        return
    if crc32(record[size:]).to_bytes(4, "big") != record[OLD_HEADER_SIZE:HEADER_SIZE]:
        raise _damaged(key)


def _damaged(key: bytes) -> RecordDamaged:
    return RecordDamaged(
        f"The stored record of key {key.decode(errors='replace')!r} fails its checksum."
    )


def _value_at(record: bytes) -> int:
    """Return where a record's value begins."""
    return (HEADER_SIZE if record[4] & _SPLIT_BYTE else OLD_HEADER_SIZE) + record[28]


def decode(record: bytes) -> Record:
    """Take a record apart."""
    revision, created, expires_at, length = _HEADER.unpack_from(record, 4)
    end = _value_at(record)
    kind = record[end - length : end].decode("ascii")
    return Record(revision & ~_SPLIT, created, expires_at, kind, record[end:])


def value_of(record: bytes) -> bytes:
    """Return a record's value alone."""
    # As `_value_at`, without another call for each request.
    return record[(HEADER_SIZE if record[4] & _SPLIT_BYTE else OLD_HEADER_SIZE) + record[28] :]


def without_value(record: bytes) -> bytes:
    """Return a record up to its value."""
    return record[: _value_at(record)]


_JSON = b"application/json"
_USUAL = _DRAFT.pack(_SPLIT, 0, NEVER, 16, 0)[:-4]


def is_json(record: bytes) -> bool:
    """Is a record's content type plain JSON, without parameters?"""
    if record[28] != len(_JSON):
        return False
    end = _value_at(record)
    return record[end - len(_JSON) : end] == _JSON


def is_text(record: bytes) -> bool:
    """Is a record's content type one of text? JSON may show such a value in six times its bytes."""
    end = _value_at(record)
    return record[end - record[28] : end].lower().startswith(b"text/")


def revision_of(record: bytes) -> int:
    """Return a record's mod revision alone; 0: it is a draft."""
    return int.from_bytes(record[4:12], "big") & ~_SPLIT


def created_of(record: bytes) -> int:
    """Return a record's create revision alone."""
    return int.from_bytes(record[12:20], "big")


def created_and_expiry_of(record: bytes) -> tuple[int, int]:
    """Return a record's create revision and its expiry."""
    created, expires_at = _read_life(record)
    return created, expires_at


def expiry_of(record: bytes) -> int:
    """Return when a record expires, in milliseconds since the epoch, or `NEVER`."""
    expires_at: int = _read_expiry(record)[0]
    return expires_at


class Revision(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One atomic change of the store: each key that it touches once, with its new record or,
    deleted, None.
    """

    number: int
    time: int
    changes: tuple[tuple[bytes, bytes | None], ...]


#: Bytes of a row's key.
_NUMBER_SIZE = 8

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Revision)


def encode_revision_number(number: int) -> bytes:
    """Return the key of a revision's row: its number in 8 bytes, so that rows are in order."""
    return number.to_bytes(_NUMBER_SIZE, "big")


def decode_revision_number(key: bytes) -> int:
    """Return the number that a row's key stands for. Raises `DataDamaged` if it stands for none."""
    if len(key) != _NUMBER_SIZE:
        raise DataDamaged(f"The journal has a row under {key!r}, which is no revision's number.")
    return int.from_bytes(key, "big")


def encode_revision(revision: Revision) -> bytes:
    """Return a row of the journal: crc32 (4), then MessagePack of (number, time, changes)."""
    rest = _encoder.encode(revision)
    return _checksum(rest) + rest


def decode_revision(number: int, row: bytes) -> Revision:
    """Take a row of the journal apart.

    Raises `DataDamaged` if it is not what was written as `number`.
    """
    rest = row[4:]
    if rest and row[:4] == _checksum(rest):
        revision = _decoder.decode(rest)
        if revision.number == number:
            return revision
    raise DataDamaged(f"Revision {number} in the journal fails its checksum.")
