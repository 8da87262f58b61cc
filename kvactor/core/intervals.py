"""An interval tree: it finds the intervals that contain a key.

The rule: a tree never changes. An operation returns a new tree, which shares all unchanged nodes with
the old one.

It is an AVL tree in the order of (start, owner), and each node knows how far the intervals at and
below it reach. All operations rest on `_join`, after Blelloch, Ferizovic and Sun, "Just Join for
Parallel Ordered Sets" (2016). The balance does not depend on random numbers: a client that could
predict them could choose intervals that make the tree a list.

Costs are numbers of key comparisons and of nodes made, in the worst case. `n` is the number of
intervals in the tree; its height is at most 1.44 log2(n + 2).
"""

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

#: An interval's start and owner; they identify it in a tree.
Place = tuple[bytes, int]


class Interval(msgspec.Struct, frozen=True, gc=False):
    """A half-open range of keys, [start, end), that is not empty; no `end`: it is unbounded."""

    start: bytes
    owner: int
    end: bytes | None


class Node(Interval, frozen=True, gc=False):
    """An interval at the root of a tree; `reach` is the latest end in the tree."""

    left: "Tree"
    right: "Tree"
    height: int
    reach: bytes | None


Tree = Node | None


def later_end(one: bytes | None, other: bytes | None) -> bytes | None:
    """Return the later one of two ends."""
    return None if one is None or other is None else max(one, other)


def stab(tree: Tree, key: bytes) -> list[int]:
    """Return the owners of the intervals that contain `key`, each as often as it has such intervals.

    Costs O((1 + h) log n) for h hits: a branch is entered only if it contains a hit, or lies on the
    path from the root to `key`.
    """
    owners: list[int] = []
    branches = [tree]
    while branches:
        node = branches.pop()
        while node is not None and (node.reach is None or key < node.reach):
            if node.start <= key:
                if node.end is None or key < node.end:
                    owners.append(node.owner)
                branches.append(node.left)
                node = node.right
            else:
                node = node.left
    return owners


def insert(tree: Tree, one: Interval) -> Node:
    """Return the tree with one more interval; it replaces the one at the same place.

    Costs O(log n).
    """
    if tree is None:
        return _node(None, one, None)
    place, root = (one.start, one.owner), (tree.start, tree.owner)
    if place < root:
        return _join(insert(tree.left, one), tree, tree.right)
    if place > root:
        return _join(tree.left, tree, insert(tree.right, one))
    return _node(tree.left, one, tree.right)


def remove(tree: Tree, places: Sequence[Place]) -> Tree:
    """Return the tree without the intervals at `places`, which are in order.

    Costs O(m log(n/m + 1)) for m places: O(log n) for one, O(n) for all.
    """
    return _remove(tree, places, 0, len(places))


def _remove(tree: Tree, places: Sequence[Place], low: int, high: int) -> Tree:
    if tree is None or low == high:
        return tree
    root = (tree.start, tree.owner)
    cut = bisect_left(places, root, low, high)
    found = cut < high and places[cut] == root
    left = _remove(tree.left, places, low, cut)
    right = _remove(tree.right, places, cut + found, high)
    if not found:
        return _join(left, tree, right)
    if right is None:
        return left
    first, right = _pop_first(right)
    return _join(left, first, right)


def _pop_first(tree: Node) -> tuple[Interval, Tree]:
    if tree.left is None:
        return tree, tree.right
    first, left = _pop_first(tree.left)
    return first, _join(left, tree, tree.right)


def _join(left: Tree, root: Interval, right: Tree) -> Node:
    """Make one tree of a tree, an interval that comes after it, and a tree that comes after both.

    Costs O(d) for heights that differ by d.
    """
    if left is not None and left.height > _height(right) + 1:
        return _balanced(left.left, left, _join(left.right, root, right))
    if right is not None and right.height > _height(left) + 1:
        return _balanced(_join(left, root, right.left), right, right.right)
    return _node(left, root, right)


def _balanced(left: Tree, root: Interval, right: Tree) -> Node:
    """Join trees whose heights differ by 2 at most: rotate once, or twice."""
    if left is not None and left.height > _height(right) + 1:
        inner = left.right
        if inner is None or inner.height <= _height(left.left):
            return _node(left.left, left, _node(inner, root, right))
        return _node(_node(left.left, left, inner.left), inner, _node(inner.right, root, right))
    if right is not None and right.height > _height(left) + 1:
        inner = right.left
        if inner is None or inner.height <= _height(right.right):
            return _node(_node(left, root, inner), right, right.right)
        return _node(_node(left, root, inner.left), inner, _node(inner.right, right, right.right))
    return _node(left, root, right)


def _node(left: Tree, root: Interval, right: Tree) -> Node:
    height, reach = 0, root.end
    for below in (left, right):
        if below is not None:
            height, reach = max(height, below.height), later_end(reach, below.reach)
    return Node(root.start, root.owner, root.end, left, right, height + 1, reach)


def _height(tree: Tree) -> int:
    return 0 if tree is None else tree.height
