"""Jobs of a cluster: one for each name at a time, followed by whoever asks, stopped by who is stopped."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from mlcd_core.errors import ConfigError
from tasks import ray_jobs
from tasks.ray_jobs import CONNECT_S, KILL_S, SILENT_S, STOP_S, DashboardSilentError, JobEnd, dashboard_client
from tasks.ray_session import check_ray_address, is_dashboard
from tasks.train_stop import SAVE_S
from tests.unit.tasks.fake_dashboard import Dashboard

LOG = logging.getLogger("mlcd")
PREFECT_KILLS_AFTER_S = 30


class SignalError(BaseException):
    """Stands for what Prefect raises at SIGTERM."""


def stop_me() -> None:
    raise SignalError


def run(dashboard: Dashboard, name: str = "embed") -> tuple[JobEnd, list[str]]:
    lines: list[str] = []
    return dashboard.jobs().run(name, "true", log=LOG, hear=lines.append), lines


def test_a_command_is_the_first_job_of_its_name_and_its_lines_come_whole() -> None:
    dashboard = Dashboard()
    heard: list[str] = []

    def half_a_line() -> None:
        dashboard.logs["embed-1"] = "one\ntw"

    def more() -> None:
        assert heard == ["one"]
        dashboard.ends("embed-1", "SUCCEEDED", "o\nthree")()

    dashboard.events = [half_a_line, lambda: None, more]
    end = dashboard.jobs().run("embed", "true", log=LOG, hear=heard.append)
    assert end == JobEnd("embed-1", "SUCCEEDED", "embed-1 is SUCCEEDED")
    assert heard == ["one", "two", "three"]
    assert dashboard.commands == {"embed-1": "true"}
    assert dashboard.stops == []


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_job_that_has_not_ended_is_followed_from_its_first_line(status: str) -> None:
    dashboard = Dashboard({"embed-1": "FAILED", "embed-2": status}, {"embed-2": "one\n"})
    dashboard.events = [dashboard.ends("embed-2", "SUCCEEDED", "two\n")]
    end, lines = run(dashboard)
    assert (end.id, lines) == ("embed-2", ["one", "two"])
    assert dashboard.commands == {}


@pytest.mark.parametrize("status", ["FAILED", "STOPPED", "SUCCEEDED"])
def test_after_a_job_that_has_ended_comes_the_next_number(status: str) -> None:
    dashboard = Dashboard(dict.fromkeys(["embed-1", "embed-2", "embed-10"], status))
    dashboard.events = [dashboard.ends("embed-11", "FAILED")]
    assert run(dashboard)[0].id == "embed-11"


def test_jobs_of_other_names_do_not_count() -> None:
    dashboard = Dashboard({"embed-r-7": "RUNNING", "embedding-3": "RUNNING"})
    dashboard.events = [dashboard.ends("embed-1", "SUCCEEDED")]
    assert run(dashboard)[0].id == "embed-1"


def test_a_job_that_another_run_submits_first_is_followed() -> None:
    dashboard = Dashboard()
    look = dashboard.list_jobs

    def look_and_be_late() -> Any:
        seen = look()
        dashboard.statuses.setdefault("embed-1", "RUNNING")
        return seen

    dashboard.list_jobs = look_and_be_late  # type: ignore[method-assign]
    dashboard.events = [dashboard.ends("embed-1", "SUCCEEDED")]
    assert run(dashboard)[0].id == "embed-1"
    assert dashboard.commands == {}


def test_a_job_whose_answer_is_lost_is_not_submitted_again() -> None:
    dashboard = Dashboard()
    submit = dashboard.submit_job

    def submit_and_lose_the_answer(**words: Any) -> str:
        dashboard.submit_job = submit  # type: ignore[method-assign]
        submit(**words)
        raise ConnectionError("reset")

    dashboard.submit_job = submit_and_lose_the_answer  # type: ignore[method-assign]
    dashboard.events = [lambda: None, dashboard.ends("embed-1", "SUCCEEDED")]
    assert run(dashboard)[0].id == "embed-1"
    assert list(dashboard.statuses) == ["embed-1"]


def test_a_dashboard_that_is_silent_for_a_while_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    dashboard = Dashboard()

    def down() -> None:
        dashboard.is_down = True

    def up_and_done() -> None:
        dashboard.is_down = False
        dashboard.ends("embed-1", "SUCCEEDED", "done\n")()

    dashboard.events = [down, *[lambda: None] * 20, up_and_done]
    assert run(dashboard)[1] == ["done"]
    assert caplog.text.count("gives no answer (refused), and is asked again") == 1


def test_an_address_where_nothing_answers_is_said_after_a_minute_and_nothing_was_begun() -> None:
    dashboard = Dashboard(is_down=True)
    with pytest.raises(ConfigError, match=r"nothing answers at http://head:8265 \(refused\); .*check the address"):
        run(dashboard)
    assert CONNECT_S < dashboard.now < CONNECT_S + 10
    assert dashboard.statuses == {}


def test_a_dashboard_that_stays_silent_is_an_error_and_the_job_is_left_alone() -> None:
    dashboard = Dashboard()

    def down() -> None:
        dashboard.is_down = True

    dashboard.events = [down]
    with pytest.raises(DashboardSilentError, match=r"gave no answer for 300 s \(refused\).*run the same again"):
        run(dashboard)
    assert SILENT_S < dashboard.now < SILENT_S + 10
    assert dashboard.stops == []


def test_who_is_stopped_stops_the_job_and_waits_for_its_end() -> None:
    dashboard = Dashboard()
    nothing = lambda: None  # noqa: E731
    dashboard.events = [nothing, stop_me, nothing, nothing, dashboard.ends("embed-1", "STOPPED")]
    with pytest.raises(SignalError):
        run(dashboard)
    assert set(dashboard.stops) == {"embed-1"}
    assert dashboard.events == []


def test_a_job_that_does_not_end_is_waited_for_no_longer_than_prefect_lets_live(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dashboard = Dashboard(events=[stop_me])
    with pytest.raises(SignalError):
        run(dashboard)
    assert "the job embed-1 may still run on http://head:8265: it has not ended yet" in caplog.text
    assert SAVE_S < KILL_S < STOP_S < dashboard.now < PREFECT_KILLS_AFTER_S


def test_a_wrong_token_is_said_at_once() -> None:
    from ray.exceptions import AuthenticationError

    dashboard = Dashboard()

    def refuse() -> None:
        raise AuthenticationError("Forbidden")

    dashboard.answer = refuse  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN"):
        run(dashboard)
    assert dashboard.now == 0


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What any HTTP server answers, and how it was asked."""
    import requests

    found: list[Any] = [{"ray_version": "2.60.0"}]

    def request(method: str, url: str, **options: Any) -> Any:
        found.append((url, options["timeout"]))
        return SimpleNamespace(status_code=200, text="", raise_for_status=lambda: None, json=lambda: found[0])

    monkeypatch.setattr(requests, "request", request)
    for name in ray_jobs.OTHER_ADDRESSES:
        monkeypatch.delenv(name, raising=False)
    return found


def test_the_client_does_not_wait_for_ever(answers: list[Any]) -> None:
    dashboard_client("http://head:8265")
    assert set(answers[1:]) == {("http://head:8265/api/version", ray_jobs.ANSWER_S)}


def test_the_client_goes_to_no_other_address_than_the_one_given(
    answers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ConfigError, match="RAY_ADDRESS is 'auto'"):
        dashboard_client("http://head:8265")
    assert answers[1:] == []


@pytest.mark.parametrize("answer", ["3.8.8", {"version": "1"}])
def test_an_address_of_another_server_is_said(answer: object, answers: list[Any]) -> None:
    answers[0] = answer
    with pytest.raises(ConfigError, match="is not the dashboard of a Ray cluster"):
        dashboard_client("http://head:4200")


@pytest.mark.parametrize(
    ("address", "takes_jobs"),
    [("", False), ("auto", False), ("head:6379", False), ("http://head:8265", True), ("https://10.0.0.1:443", True)],
)
def test_addresses_of_three_kinds_are_taken(address: str, takes_jobs: bool) -> None:
    check_ray_address(address)
    assert is_dashboard(address) is takes_jobs


@pytest.mark.parametrize("address", ["head", "ray://head:10001", "http://head", "http://head:8265/#/jobs", "ftp://a:1"])
def test_any_other_address_is_refused_with_all_that_are_taken(address: str) -> None:
    with pytest.raises(ConfigError, match=r"expected auto, or host:port .* or http://host:port of the dashboard"):
        check_ray_address(address)
