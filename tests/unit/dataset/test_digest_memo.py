"""What is remembered of files: exactly what was put, while size and time are the same, in a database of any age."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcd_core.digest_memo import DigestMemo, Remembered, row_groups_of, text_of
from mlcd_core.errors import StoreError


def test_what_was_put_is_found_while_the_stamp_is_the_same(memo: Path) -> None:
    shard = Remembered("d" * 64, (100,) * 100 + (57,))
    bad = Remembered("e" * 64, (), "no footer")
    with DigestMemo(memo) as known:
        known.put("/a", 10, "1", shard)
        known.put("s3://b/a", 2**40, "etag-3", bad)
    with DigestMemo(memo) as known:
        assert known.get("/a", 10, "1") == shard
        assert known.get("s3://b/a", 2**40, "etag-3") == bad
        assert known.get("/a", 10, "2") is known.get("/a", 11, "1") is known.get("/b", 10, "1") is None
        known.put("/a", 11, "2", bad)
    with DigestMemo(memo) as known:
        assert (known.get("/a", 10, "1"), known.get("/a", 11, "2")) == (None, bad)


def test_a_database_of_the_version_before_is_no_hindrance(memo: Path) -> None:
    memo.parent.mkdir()
    with closing(sqlite3.connect(memo)) as old, old:
        old.execute("create table shards (path text primary key, bytes int, mtime_ns int, sha256 text, num_rows int)")
        old.execute("insert into shards values ('/a', 10, 1, 'd', 3)")
    with DigestMemo(memo) as known:
        assert known.get("/a", 10, "1") is None
        known.put("/a", 10, "1", Remembered("d", (3,)))
    with DigestMemo(memo) as known:
        assert known.get("/a", 10, "1") == Remembered("d", (3,))


def test_memo_that_cannot_be_used_is_named(memo: Path) -> None:
    memo.parent.mkdir()
    memo.write_bytes(b"this is not a database, it is a text of some length " * 40)
    with pytest.raises(StoreError, match=r"digests\.sqlite cannot be used.*XDG_CACHE_HOME"), DigestMemo(memo):
        pass


def test_equal_row_groups_are_counted() -> None:
    assert text_of((100,) * 99 + (57,)) == "100x99,57"


@settings(deadline=None)
@given(st.lists(st.integers(0, 3) | st.integers(0, 2**40)).map(tuple))
def test_row_groups_come_back_from_their_text(row_groups: tuple[int, ...]) -> None:
    assert row_groups_of(text_of(row_groups)) == row_groups
