"""Addresses of objects: ``s3://bucket/key``."""

from mlcd_core.errors import ConfigError

S3 = "s3://"


def is_s3(address: str) -> bool:
    """Whether the address names something on S3."""
    return address.startswith(S3)


def object_address(bucket: str, key: str) -> str:
    """``s3://bucket/key``."""
    return f"{S3}{bucket}/{key}"


def split_address(uri: str) -> tuple[str, str]:
    """Bucket and key of an address; the key is empty when it names the bucket alone. Raises ConfigError."""
    bucket, _, key = uri.removeprefix(S3).partition("/")
    if not is_s3(uri) or not bucket:
        raise ConfigError(f"{uri!r} is no address of an object; expected s3://bucket/prefix")
    return bucket, key
