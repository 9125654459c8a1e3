"""Addresses as a person types them: relative paths are made absolute, those with a scheme (``s3://``) stay."""

from pathlib import Path


def absolute(address: str) -> str:
    """The address from anywhere; empty stays empty."""
    return address if not address or "://" in address else str(Path(address).absolute())
