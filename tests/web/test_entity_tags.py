"""Entity tags and preconditions (RFC 9110, 8.8.3 and 13.1), without a server."""

import time

import pytest
from multidict import CIMultiDict

from kvactor.core import records
from kvactor.core.messages import Precondition, Presence
from kvactor.errors import InvalidRequest, PreconditionFailed
from kvactor.web.entity_tags import not_modified, parse, precondition, tag_of
from kvactor.web.http import Request


def request(*headers: tuple[str, str]) -> Request:
    return Request("GET", "/v1/kv/a", CIMultiDict(headers))


def draft_tag(transaction: str, number: int) -> str:
    record = records.decode(records.draft(b"v", "text/plain", number=number))
    return tag_of(request(("Kvactor-Transaction", transaction)), record)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('"7"', (("", "7"),)),
        ('"7","8" ,\t"9"', (("", "7"), ("", "8"), ("", "9"))),
        ('W/"7", "7"', (("W/", "7"), ("", "7"))),
        ('"x,1,y"', (("", "x,1,y"),)),
        ('"W/", ""', (("", "W/"), ("", ""))),
        ('"*"', (("", "*"),)),
        (', ,"7",, "8",', (("", "7"), ("", "8"))),
        ('"é\udcff!#~"', (("", "é\udcff!#~"),)),
    ],
)
def test_a_list_of_entity_tags_is_taken_apart(text: str, names: tuple[tuple[str, str], ...]) -> None:
    tags = parse("If-Match", text)
    assert (tags.names, tags.any) == (names, False)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            ",",
            "7",
            '"',
            '"7',
            '7"',
            "W/",
            "W/7",
            'w/"7"',
            'W/ "7"',
            '"7" "8"',
            '"7"8',
            '"7";',
        ),
        *('"7 8"', '"7\t8"', '"7\x7f"', '"7\0"', '*, "7"', '"7", *', "**", "*,", "'7'"),
    ],
)
def test_what_is_no_list_of_entity_tags_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="If-Match is \\* alone"):
        parse("If-Match", text)


@pytest.mark.parametrize("piece", [" ", ",", '"', '"a"', '"a",', ", ", '"a" ', "W/", 'W/"a", '])
def test_a_long_list_takes_time_in_proportion(piece: str) -> None:
    def took(count: int) -> float:
        text, began = piece * count + "x", time.process_time()
        for _ in range(10):
            with pytest.raises(InvalidRequest):
                parse("If-Match", text)
        return time.process_time() - began

    # Far from 64 times as long, which the square would take.
    assert min(took(8000) for _ in range(3)) < 32 * min(took(1000) for _ in range(3)) + 0.01


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ((), None),
        ((("If-Match", " * "),), Presence.PRESENT),
        ((("If-Match", '"7", "8", W/"9", "x", "07", "+1", "1_0", "²"'),), (7, 8)),
        ((("If-Match", '"7"'), ("If-Match", '"8"')), (7, 8)),
        ((("If-Match", '"x,1,y"'),), ()),
        ((("If-Match", 'W/"7"'),), ()),
        ((("If-Match", f'"{"1" * 5000}"'),), ()),
        ((("If-None-Match", " * "),), Presence.ABSENT),
    ],
)
def test_the_precondition_of_a_write_is_a_strong_comparison(
    headers: tuple[tuple[str, str], ...], expected: Precondition | None
) -> None:
    assert precondition(request(*headers)) == expected


@pytest.mark.parametrize(
    "headers",
    [
        (("If-None-Match", '"7"'),),
        (("If-None-Match", "*"), ("If-None-Match", "*")),
        (("If-None-Match", "*"), ("If-Match", "*")),
        (("If-Match", "*"), ("If-Match", "*")),
    ],
)
def test_a_write_with_another_precondition_is_refused(headers: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(InvalidRequest):
        precondition(request(*headers))


@pytest.mark.parametrize(
    ("tags", "known"), [(None, False), ("*", True), ('W/"4"', True), ('"3", "4"', True), ('"3"', False)]
)
def test_if_none_match_is_a_weak_comparison(tags: str | None, known: bool) -> None:
    headers = () if tags is None else (("If-None-Match", tags),)
    assert not_modified(request(*headers), '"4"') is known


def test_if_match_of_a_read_is_a_strong_comparison() -> None:
    assert not_modified(request(("If-Match", '"4"')), '"4"') is False
    with pytest.raises(PreconditionFailed):
        not_modified(request(("If-Match", 'W/"4"')), '"4"')


def test_the_tag_of_a_draft_names_its_number_within_its_transaction_alone() -> None:
    tags = [draft_tag(transaction, number) for transaction in ("t", "u") for number in (1, 2, 11)]
    assert len(set(tags)) == len(tags)
    listed = ("If-Match", ", ".join(tags))
    assert precondition(request(listed, ("Kvactor-Transaction", "u"))) == (-1, -2, -11)
    assert precondition(request(listed, ("Kvactor-Transaction", "v"))) == ()
    assert precondition(request(listed)) == ()
