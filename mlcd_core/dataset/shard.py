"""What is known of one shard before its images are read, and the errors for one that cannot be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from mlcd_core.digest_memo import Remembered
from mlcd_core.errors import DataError, ShardChangedError, StoreError
from mlcd_core.identity import fingerprint


@dataclass(frozen=True)
class Shard:
    """One Parquet file: where it is now, what it is, and how much it holds.

    digest: of a local file the sha256 of its bytes, of an S3 object the fingerprint of its size and ETag.
    row_groups: rows of each row group. error: why its footer cannot be read, and then it has no rows; else empty.
    etag: of an S3 object, so that no other one is read in its place.
    """

    uri: str
    digest: str
    bytes: int
    rows: int
    row_groups: tuple[int, ...] = ()
    error: str = ""
    etag: str = ""

    @property
    def group_starts(self) -> tuple[int, ...]:
        """The first row of each row group, and at the end the number of rows."""
        return (0, *accumulate(self.row_groups))


def shard_of(uri: str, num_bytes: int, known: Remembered, *, etag: str = "") -> Shard:
    """The shard at ``uri``, by what is known of it."""
    rows = sum(known.row_groups)
    return Shard(uri, known.digest, num_bytes, rows, row_groups=known.row_groups, error=known.error, etag=etag)


def data_digest(shards: Sequence[Shard]) -> str:
    """Identity of an ordered list of shards."""
    return fingerprint([shard.digest for shard in shards])


def not_parquet(uri: str, reason: str) -> DataError:
    """The error for a shard whose footer cannot be read."""
    return DataError(f"{uri} is not a whole Parquet file: {reason}; write it again or take it out of the data")


def gone(uri: str) -> ShardChangedError:
    """The error for a shard that is not there any more."""
    return ShardChangedError(f"the shard {uri} is gone; bring it back or run again without it")


def replaced(uri: str) -> ShardChangedError:
    """The error for a shard that became another one since it was found."""
    return ShardChangedError(
        f"the shard {uri} was replaced or removed since this run found it; expected data that stays as it is: run "
        "again, the new shard is then another one"
    )


def disk_failed(uri: str, error: OSError) -> StoreError:
    """The error for a file that its disk does not give, which says nothing of the shard."""
    return StoreError(f"{uri} cannot be read: {error.strerror}; expected a readable file: look at the disk, run again")
