"""Ray's node has 30 s to start: what a busy machine does to that is tried again, anything else is not."""

import pytest
import ray

from mlcd_core.errors import ConfigError, StageFailedError
from tasks.ray_session import STARTS, RaySession

SLOW = Exception("The current node timed out during startup. This could happen because ...")


def start(monkeypatch: pytest.MonkeyPatch, outcomes: list[Exception | None]) -> int:
    """How often Ray was started by a session, with these outcomes."""
    left = list(outcomes)

    def init(**_: object) -> None:
        outcome = left.pop(0)
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    RaySession(most_workers=1)._init()
    return len(outcomes) - len(left)


def test_a_node_that_is_too_slow_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(monkeypatch, [None]) == 1
    assert start(monkeypatch, [SLOW, None]) == 2


def test_a_node_that_never_starts_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageFailedError, match=r"Ray did not start .*run the same command again"):
        start(monkeypatch, [SLOW] * STARTS)


def test_other_failures_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="no port"):
        start(monkeypatch, [RuntimeError("no port is free"), None])


@pytest.mark.parametrize("address", ["127.0.0.1:9", "no.such.host.invalid:6379"])
def test_an_address_where_no_cluster_is_is_said_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray would try for minutes"))
    with pytest.raises(ConfigError, match=f"no Ray cluster can be joined at '{address}'.*start a node here"):
        RaySession(most_workers=1, address=address)._join()
