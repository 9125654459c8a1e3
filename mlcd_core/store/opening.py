"""Opens the storage that an address names."""

from functools import partial
from pathlib import Path

from mlcd_core.objects.address import is_s3
from mlcd_core.store.files import Files, LocalFiles


def open_files(address: str | Path, *, patience_s: float = 300.0) -> Files:
    """Files under a local folder, or under ``s3://bucket/prefix``.

    patience_s: how long a request to a store that does not answer is tried again. Raises ConfigError for an address
    of S3 without a bucket.
    """
    if isinstance(address, str) and is_s3(address):
        from mlcd_core.objects import open_objects
        from mlcd_core.store.s3 import S3Files

        return S3Files(address, partial(open_objects, patience_s))
    return LocalFiles(address)
