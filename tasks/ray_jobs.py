"""Commands as jobs of a Ray cluster that this machine is no node of, by the Jobs API of the cluster's dashboard.

The id of a job follows from what it makes, so whoever wants the same finds a job that runs already and follows it, also
a run that was killed and started again. A number at its end counts the jobs that ended without making it. A dashboard
that does not answer is asked again; its job goes on meanwhile.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from mlcd_core.errors import ConfigError, StageFailedError
from tasks.lease import Log

T = TypeVar("T")

POLL_S = 2.0
LOG_PER_S = 1e6  # characters: an answer holds the whole log, so a long one is asked for less often
ANSWER_S = 30.0  # Ray's client itself would wait for ever
SILENT_S = 300.0
CONNECT_S = 60.0
STOP_S = 25.0  # Prefect kills a cancelled run 30 s after SIGTERM
KILL_S = 22  # of a job after SIGTERM: training saves for 20 s, and Ray's own 3 s would cut that short
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
# either takes the place of the address that the client is given
OTHER_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class DashboardSilentError(StageFailedError):
    """A dashboard that did not answer for long; the job, if it was begun, may go on."""


@dataclass(frozen=True)
class JobEnd:
    """How a job ended: ``SUCCEEDED``, ``FAILED`` or ``STOPPED``, and what Ray says about it."""

    id: str
    status: str
    message: str


def dashboard_client(address: str) -> Any:
    """A client of the dashboard's Jobs API, with the token of this environment.

    Raises OSError when nothing answers, and ConfigError when what answers is no dashboard, or another is meant.
    """
    for name in OTHER_ADDRESSES:
        if os.environ.get(name, address) != address:
            raise ConfigError(
                f"{name} is {os.environ[name]!r}, which Ray would use in place of {address}; expected one address: "
                f"unset {name}, or give that address to the run"
            )
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc]  # Ray has no types
        def _do_request(self, *words: Any, **options: Any) -> Any:
            return super()._do_request(*words, timeout=ANSWER_S, **options)

    try:
        return Client(address)
    except (RuntimeError, KeyError, TypeError) as error:  # 404, or an answer that is no version of Ray
        raise ConfigError(
            f"{address} is not the dashboard of a Ray cluster ({error}); expected its address, mostly "
            "http://HEAD:8265: see the last lines of ray start, or the service of the head"
        ) from error


class RayJobs:
    """The cluster whose dashboard has this address."""

    def __init__(
        self,
        address: str,
        *,
        connect: Callable[[str], Any] = dashboard_client,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.address = address
        self._connect = connect
        self._clock = clock
        self._sleep = sleep

    def run(self, name: str, command: str, *, log: Log, hear: Callable[[str], None]) -> JobEnd:
        """Run a command as the job ``{name}-{number}``, or follow the one that runs; ``hear`` gets each of its lines.

        An exception or signal that ends this call stops the job, and waits for its end, up to ``STOP_S``.
        Raises ConfigError when nothing answers at first, and DashboardSilentError after ``SILENT_S`` without an answer,
        which leaves the job alone.
        """
        client = self._client(log)
        job, is_running = self._ask(lambda: _newest(client, name), log)
        try:
            if is_running:
                log.info("the job %s runs on %s already, and is followed", job, self.address)
            else:
                self._ask(lambda: _submit(client, job, command), log)
                log.info("the job %s was given to %s", job, self.address)
            return self._follow(client, job, log, hear)
        except DashboardSilentError:
            raise
        except BaseException:
            self._stop(client, job, log)
            raise

    def _client(self, log: Log) -> Any:
        """The client. Raises ConfigError where nothing answers: the address may be wrong, and nothing was begun yet."""
        try:
            return self._ask(lambda: self._connect(self.address), log, patience_s=CONNECT_S)
        except DashboardSilentError as error:
            raise ConfigError(
                f"nothing answers at {self.address} ({error.__cause__}); expected the dashboard of a Ray cluster, "
                "mostly http://HEAD:8265: check the address, and that the head runs with a dashboard. A job that an "
                "earlier run has begun goes on, and is found again"
            ) from error

    def _follow(self, client: Any, job: str, log: Log, hear: Callable[[str], None]) -> JobEnd:
        heard = 0
        while True:
            info, text = self._ask(lambda: (client.get_job_info(job), client.get_job_logs(job)), log)
            has_ended = info.status in ENDED
            whole = len(text) if has_ended else text.rfind("\n") + 1
            for line in text[heard:whole].splitlines():
                hear(line)
            heard = max(heard, whole)
            if has_ended:
                return JobEnd(job, str(info.status), info.message or "")
            self._sleep(POLL_S + len(text) / LOG_PER_S)

    def _stop(self, client: Any, job: str, log: Log) -> None:
        log.info("the job %s is stopped", job)
        deadline = self._clock() + STOP_S
        trouble = "it has not ended yet"
        while self._clock() < deadline:
            try:
                client.stop_job(job)
                if client.get_job_info(job).status in ENDED:
                    return
            except (OSError, RuntimeError) as error:
                trouble = str(error)
            self._sleep(POLL_S / 4)
        log.warning("the job %s may still run on %s: %s", job, self.address, trouble)

    def _ask(self, question: Callable[[], T], log: Log, *, patience_s: float = SILENT_S) -> T:
        """The answer to a question that may be asked again."""
        from ray.exceptions import AuthenticationError

        asked = self._clock()
        is_told = False
        while True:
            try:
                return question()
            except AuthenticationError as error:
                raise ConfigError(
                    f"{self.address} does not let this run in ({error}); expected the token of that cluster: set "
                    "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to its token"
                ) from error
            except (OSError, RuntimeError) as error:
                if self._clock() - asked > patience_s:
                    raise DashboardSilentError(
                        f"the Ray dashboard {self.address} gave no answer for {patience_s:.0f} s ({error}); a job that "
                        "was begun there may go on: run the same again when the dashboard is back, it is then followed"
                    ) from error
                if not is_told:
                    log.warning("the Ray dashboard %s gives no answer (%s), and is asked again", self.address, error)
                    is_told = True
            self._sleep(POLL_S)


def _newest(client: Any, name: str) -> tuple[str, bool]:
    """The job of that name that runs, and True, or the one that may be submitted, and False."""
    statuses = {job.submission_id: job.status for job in client.list_jobs() if job.submission_id}
    numbers = [int(job.rpartition("-")[2]) for job in statuses if re.fullmatch(rf"{re.escape(name)}-\d+", job)]
    last = max(numbers, default=0)
    if last and statuses[f"{name}-{last}"] not in ENDED:
        return f"{name}-{last}", True
    return f"{name}-{last + 1}", False


def _submit(client: Any, job: str, command: str) -> None:
    # Ray reads it where it waits for the end of what it stops, in a process that gets the job's variables
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(KILL_S)}
    try:
        client.submit_job(submission_id=job, entrypoint=command, runtime_env={"env_vars": variables})
    except RuntimeError:
        # another run came first, or it is this job, and the answer to an earlier question was lost
        if all(other.submission_id != job for other in client.list_jobs()):
            raise
