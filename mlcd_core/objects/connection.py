"""One client of S3 and one try of a request: an answer, or what its lack means.

The client is the one that s3fs makes and keeps open on its own thread, so any thread may call. Its own retries are off,
because nested retries multiply. One remains below it: aiohttp sends a request again, once, when a kept-alive connection
closes before the answer, so a create may be told "taken" by its own first try. Endpoint, region and credentials come
from the environment and are written nowhere.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlcd_core.objects.address import split_address
from mlcd_core.objects.answers import Unclear, judged

VERBS = {
    "get_object": "read",
    "head_object": "look at",
    "head_bucket": "look at",
    "list_objects_v2": "list",
    "put_object": "write",
    "delete_object": "delete",
}
OF_BUCKETS = {"head_bucket", "list_objects_v2"}


def cannot(operation: str, uri: str) -> str:
    """The beginning of an error's text: ``cannot read s3://...``."""
    return f"cannot {VERBS[operation]} {uri}"


@dataclass(frozen=True)
class Limits:
    """When one try is given up, in seconds. ``slowest_upload`` is in bytes per second."""

    connect_s: float = 5.0
    answer_s: float = 15.0
    slowest_upload: float = 100_000.0
    connections: int = 64


class Connection:
    """Sends single requests from any thread. region: the one that signatures name; None asks the AWS configuration."""

    def __init__(self, limits: Limits, region: str | None = None) -> None:
        from s3fs import S3FileSystem

        self.limits = limits
        self._s3fs = S3FileSystem(
            skip_instance_cache=True,
            use_listings_cache=False,
            version_aware=False,
            client_kwargs={"region_name": region} if region else {},
            config_kwargs={
                "connect_timeout": limits.connect_s,
                "read_timeout": limits.answer_s,
                "max_pool_connections": limits.connections,
                "retries": {"total_max_attempts": 1},
                "tcp_keepalive": True,
                # stores other than Amazon's refuse the newer checksum headers; content is checked by its sha256
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
        )

    def ask(self, operation: str, uri: str, **arguments: Any) -> Mapping[str, Any]:
        """Send one request once, and read the whole answer; ``Body`` is bytes.

        operation: a key of ``VERBS``. Raises Absent, Taken, BeyondEnd, Unclear, and StoreError for what trying again
        cannot mend.
        """
        from fsspec.asyn import sync

        bucket, key = split_address(uri)
        if operation not in OF_BUCKETS:
            arguments["Key"] = key
        try:
            answer: Mapping[str, Any] = sync(self._s3fs.loop, self._answer, operation, Bucket=bucket, **arguments)
        except Exception as error:
            raise judged(error, what=cannot(operation, uri), bucket=bucket) from error
        return answer

    async def _answer(self, operation: str, **arguments: Any) -> Mapping[str, Any]:
        client = await self._s3fs.set_session()
        # silence while an answer is awaited ends by the read timeout; while a body is sent nothing else would end it
        patience_s = self.limits.answer_s + len(arguments.get("Body", b"")) / self.limits.slowest_upload
        answer: dict[str, Any] = await asyncio.wait_for(
            getattr(client, operation)(**arguments), self.limits.connect_s + patience_s
        )
        if "Body" in answer:
            async with answer["Body"] as body:
                answer["Body"] = await body.read()
            if len(answer["Body"]) != answer["ContentLength"]:
                raise Unclear(f"the body was cut: {len(answer['Body'])} of {answer['ContentLength']} bytes")
        return answer
