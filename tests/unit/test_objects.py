"""What an answer of S3 means, and how long an unclear one is tried again; no server is asked."""

import random

import pytest
from botocore import exceptions as boto

from mlcd_core.errors import StoreError
from mlcd_core.objects import Retries
from mlcd_core.objects.answers import Absent, BeyondEnd, Taken, Unclear, judged

WHAT = "cannot read s3://bucket/key"


def answer(status: int, code: str = "", message: str = "") -> boto.ClientError:
    response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code, "Message": message}}
    return boto.ClientError(response, "GetObject")


def judge(error: Exception) -> Exception:
    return judged(error, what=WHAT, bucket="bucket")


@pytest.mark.parametrize(
    ("status", "code", "meaning"),
    [
        (404, "NoSuchKey", Absent),
        (404, "404", Absent),  # HEAD has no body
        (404, "NoSuchBucket", StoreError),
        (412, "PreconditionFailed", Taken),
        (416, "InvalidRange", BeyondEnd),
        (409, "ConditionalRequestConflict", Unclear),
        (500, "InternalError", Unclear),
        (502, "502", Unclear),
        (503, "SlowDown", Unclear),
        (429, "TooManyRequests", Unclear),
        (400, "RequestTimeout", Unclear),
        (400, "InvalidArgument", StoreError),
        (301, "PermanentRedirect", StoreError),
        (403, "AccessDenied", StoreError),
        (501, "NotImplemented", StoreError),
    ],
)
def test_only_absent_is_absence_and_what_may_pass_is_unclear(status: int, code: str, meaning: type[Exception]) -> None:
    assert type(judge(answer(status, code))) is meaning


@pytest.mark.parametrize(
    "error",
    [
        boto.ReadTimeoutError(endpoint_url="http://store"),
        boto.ConnectTimeoutError(endpoint_url="http://store"),
        boto.EndpointConnectionError(endpoint_url="http://store"),
        boto.ConnectionClosedError(endpoint_url="http://store"),
        boto.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        boto.ResponseStreamingError(error="cut"),
        ConnectionResetError(),
        TimeoutError(),
    ],
)
def test_a_lost_answer_is_unclear(error: Exception) -> None:
    assert isinstance(judge(error), Unclear)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (answer(403, "AccessDenied", "no"), r"403 AccessDenied: no; .* in 'bucket' .*AWS_SECRET_ACCESS_KEY"),
        (answer(400, "ExpiredToken", "old"), r"have expired: get new ones, set .*AWS_SESSION_TOKEN"),
        (answer(403, "InvalidAccessKeyId"), r"not of this store: check AWS_ACCESS_KEY_ID.*AWS_ENDPOINT_URL"),
        (answer(404, "NoSuchBucket"), r"no bucket 'bucket'; create it"),
        (answer(501, "NotImplemented"), r"501 NotImplemented.*mlcd doctor"),
        (boto.NoCredentialsError(), r"no credentials .*AWS_ACCESS_KEY_ID.*AWS_PROFILE"),
        (boto.ProfileNotFound(profile="p"), r"\(p\).*AWS_"),
    ],
)
def test_a_refusal_says_what_to_do(error: Exception, text: str) -> None:
    with pytest.raises(StoreError, match=rf"^{WHAT}: .*{text}"):
        raise judge(error)


def test_a_mistake_of_ours_stays_what_it_is() -> None:
    mistake = KeyError("key")
    assert judge(mistake) is mistake


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def retries(clock: Clock, **fields: object) -> Retries:
    return Retries(**{"clock": lambda: clock.now, "sleep": clock.sleep, "draw": lambda: 1.0, **fields})


def test_waits_double_up_to_a_bound_and_end_with_the_patience() -> None:
    clock = Clock()

    def attempt() -> None:
        raise Unclear("busy")

    with pytest.raises(StoreError, match=r"cannot read x: busy; tried 23 times in 306 s; .*run again"):
        retries(clock).persist(attempt, "cannot read x")
    assert clock.waits[:9] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20.0])
    assert set(clock.waits[8:]) == {20.0}


def test_waits_are_drawn_evenly_below_their_bound() -> None:
    clock = Clock()
    fails = iter([True] * 2000)

    def attempt() -> str:
        if next(fails, False):
            raise Unclear("busy")
        return "done"

    patient = retries(clock, draw=random.Random(0).random, first_wait_s=1.0, longest_wait_s=1.0, total_s=1e9)
    assert patient.persist(attempt, "cannot read x") == "done"
    assert len(clock.waits) == 2000
    assert all(sum(low <= wait < low + 0.25 for wait in clock.waits) > 400 for low in (0, 0.25, 0.5, 0.75))


def test_one_long_try_does_not_use_the_patience_up() -> None:
    clock = Clock()

    def attempt() -> str:
        if not clock.waits:
            clock.now += 10_000
            raise Unclear("cut after hours")
        return "done"

    assert retries(clock).persist(attempt, "cannot write x") == "done"


def test_a_refusal_is_not_tried_again() -> None:
    clock = Clock()

    def attempt() -> None:
        raise StoreError("denied")

    with pytest.raises(StoreError, match="denied"):
        retries(clock).persist(attempt, "cannot read x")
    assert clock.waits == []
