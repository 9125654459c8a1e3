"""Addresses as a person types them: relative paths are made absolute, those with a scheme (``s3://``) stay."""

import os
from pathlib import Path


def absolute(address: str) -> str:
    """The address from anywhere, ``~`` expanded; empty stays empty."""
    if not address or "://" in address:
        return address
    # the shell leaves ~ as it is in quotes and after a =; Path.expanduser would raise for a user that does not exist
    return str(Path(os.path.expanduser(address)).absolute())  # noqa: PTH111
