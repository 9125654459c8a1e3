"""Opens the storage that an address names."""

from pathlib import Path

from mlcd_core.store.files import Files, LocalFiles

S3 = "s3://"


def open_files(address: str | Path) -> Files:
    """Files under a local folder, or under ``s3://bucket/prefix``. Raises ConfigError for another kind of address."""
    if isinstance(address, str) and address.startswith(S3):
        from mlcd_core.store.s3 import S3Files

        return S3Files(address)
    return LocalFiles(address)
