"""Entity tags (RFC 9110, 8.8.3), and the preconditions that name them (13.1).

The rule: a tag never comes back for another value. That of a stored value is its revision. That of a
draft is its number in its transaction, and a hash of the transaction's id. Preconditions are read
strictly: what is no list of entity tags is refused, not ignored.
"""

import re
from hashlib import blake2b

import msgspec

from kvactor.core.messages import Precondition, Presence
from kvactor.core.records import Record
from kvactor.errors import InvalidRequest, PreconditionFailed
from kvactor.web.http import IF_MATCH, IF_NONE_MATCH, TRANSACTION, Request, as_bytes, header_list

#: An entity tag: whether it is weak, and what its quotes hold.
_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\U0010ffff]*)"')
_LIST = re.compile(rf"[ \t,]*+{_TAG.pattern}([ \t]*+,[ \t,]*+{_TAG.pattern})*+[ \t,]*+")
#: As revisions are written, and the numbers of drafts: one form for each, with no more digits than any
#: has.
_NUMBER = re.compile("[1-9][0-9]{0,19}", re.ASCII)

_WEAK = "W/"


class Tags(msgspec.Struct, frozen=True):
    """What a precondition names: any tag (`*`), or these. A weak one has `W/` before its quotes."""

    names: tuple[tuple[str, str], ...]
    any: bool = False

    def strong(self, tag: str) -> bool:
        """Do they name `tag` in a strong comparison? No weak tag is equal to any."""
        return self.any or ("", tag.strip('"')) in self.names

    def weak(self, tag: str) -> bool:
        """Do they name `tag` in a weak comparison?"""
        return self.any or tag.strip('"') in (opaque for _, opaque in self.names)


def parse(header: str, text: str) -> Tags:
    """Return what the value of a header names.

    Raises `InvalidRequest` unless it is `*` alone, or a list of entity tags.
    """
    if text.strip(" \t") == "*":
        return Tags((), any=True)
    if _LIST.fullmatch(text) is None:
        raise InvalidRequest(
            f'{header} is * alone, or entity tags in double quotes with commas between them: "7", "8".'
        )
    return Tags(tuple((weak, opaque) for weak, opaque in _TAG.findall(text)))


# -- tags of records --


def tag(revision: int) -> str:
    """Return the entity tag of a record that `revision` wrote."""
    return f'"{revision}"'


def tag_of(request: Request, record: Record) -> str:
    """Return the entity tag of a record that a request has read: it may be a draft."""
    if record.revision:
        return f'"{record.revision}"'
    return f'"{record.created}-{_hash(request.headers.get(TRANSACTION, ""))}"'


def _hash(transaction: str) -> str:
    """Return what stands for a transaction in tags, which caches and logs may show."""
    return blake2b(as_bytes(transaction), digest_size=9).hexdigest()


def _version(request: Request, opaque: str) -> int | None:
    """Return the revision that a tag names, or the number of a draft with a minus; None: it names
    nothing that the request can see.
    """
    number, _, transaction = opaque.partition("-")
    if not _NUMBER.fullmatch(number):
        return None
    if number == opaque:
        return int(number)
    where = request.headers.get(TRANSACTION)
    return -int(number) if where is not None and transaction == _hash(where) else None


# -- preconditions --


def precondition(request: Request) -> Precondition | None:
    """Return the precondition of a write. Raises `InvalidRequest`."""
    if IF_MATCH not in request.headers and IF_NONE_MATCH not in request.headers:
        return None
    match, none_match = header_list(request, IF_MATCH), header_list(request, IF_NONE_MATCH)
    if none_match is not None:
        if none_match.strip(" \t") != "*" or match is not None:
            raise InvalidRequest("A write takes If-Match, or If-None-Match: *.")
        return Presence.ABSENT
    if match is None:
        return None
    tags = parse("If-Match", match)
    if tags.any:
        return Presence.PRESENT
    versions = (_version(request, opaque) for weak, opaque in tags.names if weak != _WEAK)
    return tuple(one for one in versions if one is not None)


def not_modified(request: Request, tag: str) -> bool:
    """Does a client that reads the value with this tag have it?

    In the order of RFC 9110, 13.2.2. Raises `PreconditionFailed` if `If-Match` does not hold, and
    `InvalidRequest`.
    """
    if IF_MATCH not in request.headers and IF_NONE_MATCH not in request.headers:
        return False
    match, none_match = header_list(request, IF_MATCH), header_list(request, IF_NONE_MATCH)
    if match is not None and not parse("If-Match", match).strong(tag):
        raise PreconditionFailed("The key has none of the entity tags that If-Match names.")
    return none_match is not None and parse("If-None-Match", none_match).weak(tag)
