"""A revision is encoded once, and each follower's part is cut out of it."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kvactor.api.changes import BYTES_PER_STEP, CHANGES_PER_STEP, SORTED_PER_STEP, EncodedRevision
from kvactor.core import records
from kvactor.core.records import HIDDEN, NEVER, Revision

KEY = st.text("ab\u00e9", min_size=1, max_size=4).map(str.encode)
VALUE = st.sampled_from([(b"[1,\r\n2]", "application/json"), (b"x", "text/plain"), (b"\xff", "a/b")])
CHANGES = st.dictionaries(KEY, st.none() | VALUE, max_size=8)


def encoded(revision: Revision) -> EncodedRevision:
    steps = EncodedRevision.steps(revision)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: EncodedRevision = end.value
            return result


def revision_of(changes: dict[bytes, tuple[bytes, str] | None]) -> Revision:
    made = tuple(
        (key, None if one is None else records.encode(key, one[0], one[1], NEVER, 7, 7))
        for key, one in changes.items()
    )
    return Revision(7, 0, made)


def shown(pieces: list[bytes | memoryview]) -> Any:
    return json.loads(b"".join(pieces)) if pieces else None


@given(CHANGES, st.text("ab\u00e9", max_size=3))
def test_a_part_has_just_the_changes_of_its_prefix_in_key_order(
    changes: dict[bytes, tuple[bytes, str] | None], prefix: str
) -> None:
    one = encoded(revision_of(changes))
    whole, part = shown(one.cut(b"")), shown(one.cut(prefix.encode()))
    assert [change["key"] for change in whole["changes"]] == sorted(
        (key.decode() for key in changes), key=str.encode
    )
    expected = [change for change in whole["changes"] if change["key"].startswith(prefix)]
    assert part == ({**whole, "changes": expected} if expected or not prefix else None)
    assert b"\n" not in b"".join(one.cut(b""))


def test_a_part_shares_the_text_of_the_whole() -> None:
    one = encoded(revision_of({b"a": (b"x", "text/plain"), b"b": (b"y", "text/plain")}))
    whole, part = one.cut(b"")[1], one.cut(b"a")[1]
    assert isinstance(whole, memoryview)
    assert isinstance(part, memoryview)
    assert part.obj is whole.obj


def test_hidden_keys_are_in_no_part() -> None:
    hidden = (HIDDEN + b"a", records.encode(HIDDEN + b"a", b"x", "", NEVER, 7, 7))
    one = encoded(Revision(7, 0, (hidden,)))
    assert shown(one.cut(b""))["changes"] == []
    assert one.cut(b"a") == []


def test_a_revision_of_many_changes_is_encoded_in_steps() -> None:
    many = tuple((b"k%05d" % number, None) for number in range(10 * CHANGES_PER_STEP))
    assert SORTED_PER_STEP < len(many) < 2 * SORTED_PER_STEP
    assert len(list(EncodedRevision.steps(Revision(7, 0, many)))) == 1 + 9


def test_a_revision_of_few_large_values_is_encoded_in_steps() -> None:
    value = (b"x" * BYTES_PER_STEP, "text/plain")
    few = revision_of({b"k%d" % number: value for number in range(10)})
    assert len(list(EncodedRevision.steps(few))) == 9


def test_changes_that_are_sorted_in_steps_are_in_order() -> None:
    keys = [b"k%05d" % number for number in range(3 * SORTED_PER_STEP)]
    one = encoded(Revision(7, 0, tuple((key, None) for key in reversed(keys))))
    whole = shown(one.cut(b""))
    assert [change["key"] for change in whole["changes"]] == [key.decode() for key in keys]
