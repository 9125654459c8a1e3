"""The shards that an address names, in name order, each with its identity and its rows.

A local shard is known by the sha256 of its bytes, an S3 object by its size and ETag, which a listing gives: so moved or
renamed data is the same data. What was read is remembered by path, size and time, or ETag (``digest_memo``).
"""

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Literal

from mlcd_core.dataset.local_shards import local_shards
from mlcd_core.dataset.shard import Shard, not_parquet
from mlcd_core.digest_memo import DigestMemo
from mlcd_core.objects import is_s3


def find_shards(data: str, *, memo: Path, unreadable: Literal["raise", "keep"] = "raise") -> tuple[Shard, ...]:
    """The shards that ``data`` names: a file, a folder or a pattern, on a disk or below ``s3://``.

    memo: the database that remembers digests. unreadable: ``keep`` makes a file that is not whole Parquet a shard
    without rows that says why. Raises DataError when nothing matches, and for such a file unless it is kept; StoreError
    when storage does not answer.
    """
    shards = []
    with DigestMemo(memo) as known, closing(_shards(data, known)) as found:
        for shard in found:
            if shard.error and unreadable == "raise":
                raise not_parquet(shard.uri, shard.error)
            shards.append(shard)
    return tuple(shards)


def _shards(data: str, memo: DigestMemo) -> Generator[Shard]:
    if is_s3(data):
        from mlcd_core.dataset.s3_shards import s3_shards

        return s3_shards(data, memo)
    return local_shards(data, memo)
