"""Objects of S3: whole reads, single puts, puts that win or lose, and listings, through a store that may stumble."""

from mlcd_core.objects.address import is_s3, object_address
from mlcd_core.objects.client import ObjectInfo, Objects, open_objects
from mlcd_core.objects.connection import Connection, Limits
from mlcd_core.objects.retries import Retries

__all__ = [
    "Connection",
    "Limits",
    "ObjectInfo",
    "Objects",
    "Retries",
    "is_s3",
    "object_address",
    "open_objects",
]
