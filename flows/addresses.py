"""Addresses as a person types them: relative paths are made absolute, ``s3://`` ones stay."""

from pathlib import Path

from mlcd_core.store.opening import S3


def absolute(address: str) -> str:
    """The address from anywhere; empty stays empty."""
    return address if not address or address.startswith(S3) else str(Path(address).absolute())
