"""The mutants that break P8 in the feed: encoding takes steps, and what followers hold counts."""

from typing import Final

from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

_CACHE: Final = "kvactor/web/revision_cache.py"
_CACHE_TESTS: Final = ("tests/web/test_revision_cache.py",)
_CHANGES: Final = "kvactor/web/v1/changes.py"
_FEED: Final = "kvactor/core/feed.py"
_PREFIX_TESTS: Final = ("tests/core/test_feed_prefix.py",)
_CHANGES_TESTS: Final = ("tests/web/v1/test_changes.py",)

MUTANTS: Final = (
    Mutant(
        "p8-large-values-are-encoded-in-one-step",
        "The steps of an encoding count changes, not bytes. Few large values hold the loop.",
        edits=(
            Edit(
                "kvactor/api/changes.py",
                "EncodedRevision.encode",
                find="number >= changes_end or len(text) >= bytes_end",
                replace="number >= changes_end",
            ),
        ),
        killed_by=("tests/api/test_changes.py",),
    ),
    Mutant(
        "p8-a-large-revision-is-sorted-in-one-step",
        "The changes of a revision are sorted without a pause, however many they are.",
        edits=(
            Edit(
                "kvactor/api/changes.py",
                "EncodedRevision.encode",
                find="(yield from _in_order(changes))",
                replace="sorted(changes)",
            ),
        ),
        killed_by=("tests/api/test_changes.py",),
    ),
    Mutant(
        "p5-sorted-runs-are-not-merged",
        "The changes of a large revision are in key order only within each run that was sorted. A "
        "part of it lacks changes.",
        edits=(
            Edit(
                "kvactor/api/changes.py",
                "_in_order",
                find="merge(*runs)",
                replace="(change for run in runs for change in run)",
            ),
        ),
        killed_by=("tests/api/test_changes.py",),
    ),
    Mutant(
        "p8-revisions-are-encoded-though-no-key-has-the-prefix",
        "A revision is encoded before its keys are compared with the prefix. An empty page costs as "
        "much as a full one.",
        edits=(Edit(_CACHE, "RevisionCache.cut", find="_lacks(revision, prefix)", replace="False"),),
        killed_by=_CACHE_TESTS,
    ),
    Mutant(
        "p8-small-revisions-in-a-row-are-one-step",
        "There is a pause within a large revision, but none between small ones.",
        edits=(Edit(_CACHE, "RevisionCache.cut", find="room <= 0", replace="False"),),
        killed_by=_CACHE_TESTS,
    ),
    Mutant(
        "p8-encodings-step-side-by-side",
        "In one turn of the loop, each revision that is being encoded takes a step.",
        edits=(
            Edit(
                _CACHE,
                "RevisionCache._take_steps",
                find="await self._turnstile.take(EncodedRevision.steps(revision))",
                replace="await Turnstile().take(EncodedRevision.steps(revision))",
            ),
        ),
        killed_by=_CACHE_TESTS,
    ),
    Mutant(
        "p8-evicted-text-counts-until-the-cache-forgets-it",
        "Text that has left the cache counts as long as its revision is used. Followers hold views "
        "of the text alone.",
        edits=(
            Edit(
                _CACHE,
                "RevisionCache._drop",
                find="weakref.finalize(one.text, lease.close)",
                replace="weakref.finalize(one, lease.close)",
            ),
        ),
        killed_by=_CACHE_TESTS,
    ),
    Mutant(
        "p8-pieces-are-joined-in-one-step",
        "A page is put together without a pause, however long it is.",
        edits=(Edit("kvactor/web/steps.py", "join", find="yield None", replace="pass"),),
        killed_by=_CACHE_TESTS,
    ),
    Mutant(
        "p8-readings-of-history-count-for-ever",
        "What has been read of the history counts until the request ends. A follower of few keys uses "
        "the account up.",
        edits=(Edit(_CHANGES, "ChangeRoutes._read", find="exchange.lease.release()", replace="pass"),),
        killed_by=_CHANGES_TESTS,
    ),
    Mutant(
        "p8-a-stream-without-events-makes-no-progress",
        "A stream that passes over history does not say how far it is. A client that resumes begins "
        "again.",
        edits=(
            Edit(
                _CHANGES,
                "_events",
                find="not part.cuts and part.since < part.newest",
                replace="False",
            ),
        ),
        killed_by=_CHANGES_TESTS,
    ),
    Mutant(
        "p8-a-stream-that-waits-holds-its-last-text",
        "A stream keeps what it has written until it writes again.",
        edits=(Edit(_CHANGES, "ChangeRoutes._follow", find="text.clear()", replace="text = [*text]"),),
        killed_by=_CHANGES_TESTS,
    ),
    Mutant(
        "p8-writes-of-other-keys-silence-a-heartbeat",
        "The time until a heartbeat begins again with each revision, also with one that the follower "
        "does not get. A dead connection keeps its place while others write.",
        edits=(
            Edit(
                _CHANGES,
                "ChangeRoutes._follow",
                find="heartbeat_at - loop.time()",
                replace="self._settings.heartbeat",
            ),
        ),
        killed_by=_CHANGES_TESTS,
    ),
    Mutant(
        "p4-a-long-poll-drops-what-it-has-read",
        "The time of a long poll ends the encoding, too. A revision that has been read is not shown.",
        edits=(
            Edit(
                _CHANGES,
                "ChangeRoutes._read",
                find="""
                    async with self._deadlines.limit(wait):
                        answer = await exchange.ask(Changes(since, limit, True, awaited))
                """,
                replace="""
                    async with self._deadlines.limit(wait):
                        answer = await exchange.ask(Changes(since, limit, True, awaited))
                        async for _ in self._cache.cut(answer.result, prefix):
                            pass
                """,
            ),
        ),
        killed_by=_CHANGES_TESTS,
    ),
    Mutant(
        "p8-a-flush-answers-each-reader-that-waits",
        "A write wakes all who wait, also for other keys: 400 of them, 25 milliseconds.",
        edits=(
            Edit(
                _FEED,
                "Feed.publish",
                find="self.release(keys, revisions[-1].number)",
                replace="self.release()",
            ),
        ),
        killed_by=_PREFIX_TESTS,
    ),
    Mutant(
        "p8-what-was-passed-over-is-read-again",
        "A reader that waits on is where it was, and reads all that was passed over in the end.",
        edits=(
            Edit(
                _FEED,
                "Feed.release",
                find="awaited.since = newest",
                replace="pass",
            ),
        ),
        killed_by=_PREFIX_TESTS,
    ),
    Mutant(
        "p4-a-key-with-the-prefix-is-overlooked",
        "Only the key that is the prefix itself answers a reader that waits.",
        edits=(
            Edit(
                _FEED,
                "_lacks",
                find="keys[at].startswith(prefix)",
                replace="keys[at] == prefix",
            ),
        ),
        killed_by=_PREFIX_TESTS,
    ),
)
