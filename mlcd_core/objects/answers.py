"""What the answer of a store, or the lack of one, means: absent, taken, unclear, or refused for good.

Only an answer that says so means absent. Whatever may go away by itself (a busy store, a connection that was cut, no
answer in time) is unclear: nobody knows whether it was done. Everything else is refused, and a person must act.
"""

from typing import Any

from mlcd_core.errors import StoreError

CREDENTIALS = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE"

_UNCLEAR_STATUS = {408, 409, 425, 429}
_UNCLEAR_CODES = {
    "BadDigest",
    "IncompleteBody",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
_EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_KEY_CODES = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId"}


class Absent(Exception):  # noqa: N818 - an answer, not a failure
    """There is no such object."""


class Taken(Exception):  # noqa: N818 - an answer, not a failure
    """The object exists, and was to be created."""


class BeyondEnd(Exception):  # noqa: N818 - an answer, not a failure
    """The object exists, and no byte of the range that was asked for."""


class Unclear(Exception):  # noqa: N818 - neither yes nor no
    """It may have been done or not; the text says what happened."""


def judged(error: Exception, *, what: str, bucket: str) -> Exception:
    """What an error of the S3 client means: Absent, Taken, BeyondEnd, Unclear, or the StoreError a person sees.

    what: the beginning of the text, ``cannot read s3://...``. An error that is none of the client's comes back itself.
    """
    import aiohttp
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        return _judged_answer(error.response, what, bucket)
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError)):
        return StoreError(f"{what}: no credentials ({error}); set {CREDENTIALS} in the environment")
    unclear = (
        boto.HTTPClientError,
        boto.ResponseStreamingError,
        boto.IncompleteReadError,
        boto.EndpointConnectionError,
    )
    if isinstance(error, (*unclear, aiohttp.ClientError, OSError)):
        return Unclear(str(error) or "no answer in time")
    if "ResponseParserError" in {kind.__name__ for kind in type(error).__mro__}:
        return Unclear(f"an answer that cannot be read ({error})")
    if isinstance(error, boto.BotoCoreError):
        return StoreError(f"{what}: {error}; check the address and the AWS_ variables of the environment")
    return error


def _judged_answer(response: dict[str, Any], what: str, bucket: str) -> Exception:
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code, message = (str(response.get("Error", {}).get(key, "")) for key in ("Code", "Message"))
    got = f"{status} {code}: {message}" if message else f"{status} {code}"
    answers = {404: Absent, 412: Taken, 416: BeyondEnd}
    if code == "NoSuchBucket":
        return no_bucket(what, bucket)
    if status in answers:
        return answers[status](got)
    if status == 501:
        return StoreError(f"{what}: the store answered {got}; it lacks what is asked of it (see `mlcd doctor --root`)")
    if status >= 500 or status in _UNCLEAR_STATUS or code in _UNCLEAR_CODES:
        return Unclear(f"the store answered {got}")
    return StoreError(f"{what}: the store answered {got}; {_fix(status, code, bucket)}")


def no_bucket(what: str, bucket: str) -> StoreError:
    """The error of a bucket that does not exist."""
    return StoreError(
        f"{what}: there is no bucket {bucket!r}; create it, or check the address, AWS_ENDPOINT_URL and AWS_REGION"
    )


def _fix(status: int, code: str, bucket: str) -> str:
    if code in _EXPIRED_CODES:
        return f"the credentials have expired: get new ones, set {CREDENTIALS}, and run again"
    if code in _KEY_CODES:
        return f"the credentials are not of this store: check {CREDENTIALS}, and AWS_ENDPOINT_URL"
    if status in {401, 403}:
        return f"credentials that may read, write, list and delete in {bucket!r} are needed: check {CREDENTIALS}"
    # an answer to a HEAD names no reason
    return "check the address, AWS_ENDPOINT_URL, AWS_REGION, and that the credentials have not expired"
