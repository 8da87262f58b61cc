"""The interval tree: it agrees with a plain list of intervals, and stays balanced."""

from collections.abc import Iterator
from math import log2

from hypothesis import given
from hypothesis import strategies as st

from kvactor.core.intervals import Interval, Node, Place, Tree, insert, later_end, remove, stab

#: So few keys that bounds meet.
KEYS = st.sampled_from([b"", b"a", b"a\0", b"b", b"c", b"d", b"e", b"f"])
PLACES = st.tuples(KEYS, st.integers(0, 3))


@st.composite
def interval(draw: st.DrawFn) -> Interval:
    start, owner = draw(PLACES)
    return Interval(start, owner, draw(st.none() | KEYS.filter(lambda end: end > start)))


def nodes(tree: Tree) -> Iterator[Node]:
    """All nodes, in order."""
    if tree is not None:
        yield from nodes(tree.left)
        yield tree
        yield from nodes(tree.right)


def height(tree: Tree) -> int:
    return 0 if tree is None else 1 + max(height(tree.left), height(tree.right))


def check(tree: Tree) -> None:
    """Is it in order and balanced, and does each node say the truth of what is below it?"""
    places = [(node.start, node.owner) for node in nodes(tree)]
    assert places == sorted(set(places))
    for node in nodes(tree):
        assert node.height == height(node)
        assert abs(height(node.left) - height(node.right)) <= 1
        reach: bytes | None = b""
        for below in nodes(node):
            reach = later_end(reach, below.end)
        assert node.reach == reach


def tree_of(intervals: list[Interval]) -> Tree:
    tree: Tree = None
    for one in intervals:
        tree = insert(tree, one)
    return tree


@given(st.lists(interval(), max_size=40))
def test_a_tree_holds_the_last_interval_that_was_inserted_at_each_place(some: list[Interval]) -> None:
    tree = tree_of(some)
    check(tree)
    expected = {(one.start, one.owner): one.end for one in some}
    assert {(node.start, node.owner): node.end for node in nodes(tree)} == expected


@given(st.lists(interval(), max_size=40), st.lists(PLACES, max_size=20))
def test_remove_takes_out_the_intervals_at_the_places_and_no_others(
    some: list[Interval], places: list[Place]
) -> None:
    before = tree_of(some)
    kept = list(nodes(before))
    after = remove(before, sorted(places))
    check(after)
    remaining = [
        (one.start, one.owner, one.end) for one in kept if (one.start, one.owner) not in places
    ]
    assert [(node.start, node.owner, node.end) for node in nodes(after)] == remaining
    assert list(nodes(before)) == kept


@given(st.lists(interval(), max_size=40), KEYS)
def test_a_stab_finds_the_owners_of_all_intervals_that_contain_the_key(
    some: list[Interval], key: bytes
) -> None:
    tree = tree_of(some)
    hits = [node for node in nodes(tree) if node.start <= key and (node.end is None or key < node.end)]
    assert sorted(stab(tree, key)) == sorted(node.owner for node in hits)


@given(st.permutations(range(8)))
def test_a_tree_is_balanced_in_whatever_order_its_intervals_come(order: list[int]) -> None:
    check(tree_of([Interval(bytes([one]), 0, None) for one in order]))


def test_a_tree_is_balanced_when_starts_rise_or_fall_or_every_second_one_goes() -> None:
    rising = [Interval(b"%05d" % number, 0, None) for number in range(5000)]
    for some in (rising, rising[::-1]):
        tree = tree_of(some)
        check_height(tree, 5000)
        tree = remove(tree, [(one.start, 0) for one in rising[::2]])
        check_height(tree, 2500)


def check_height(tree: Tree, count: int) -> None:
    assert tree is not None
    assert tree.height == height(tree) <= 1.45 * log2(count + 2)
