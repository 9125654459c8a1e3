"""A dashboard of a Ray cluster that is told what happens, and the time that its clients wait in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

from tasks.ray_jobs import RayJobs


@dataclass
class Dashboard:
    """Holds jobs as Ray does. Each ``sleep`` of a client passes time, then does the next of ``events``."""

    statuses: dict[str, str] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    events: list[Callable[[], None]] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    is_down: bool = False
    connections: int = 0
    now: float = 0.0

    def jobs(self) -> RayJobs:
        return RayJobs("http://head:8265", connect=self.connect, clock=lambda: self.now, sleep=self.sleep)

    def connect(self, address: str) -> "Dashboard":
        self.connections += 1
        self.answer()
        return self

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.events:
            self.events.pop(0)()

    def ends(self, job: str, status: str, log: str = "") -> Callable[[], None]:
        """The event that a job ends."""

        def end() -> None:
            self.statuses[job] = status
            self.logs[job] = self.logs.get(job, "") + log

        return end

    def answer(self) -> None:
        if self.is_down:
            raise ConnectionError("refused")

    def list_jobs(self) -> list[SimpleNamespace]:
        self.answer()
        driver = SimpleNamespace(submission_id=None, status="RUNNING")
        return [driver, *(SimpleNamespace(submission_id=job, status=self.statuses[job]) for job in self.statuses)]

    def submit_job(self, *, submission_id: str, entrypoint: str, runtime_env: object) -> str:
        self.answer()
        if submission_id in self.statuses:
            raise RuntimeError(f"Request failed with status code 400: {submission_id} already exists.")
        self.statuses[submission_id], self.commands[submission_id] = "PENDING", entrypoint
        return submission_id

    def get_job_info(self, job: str) -> SimpleNamespace:
        self.answer()
        return SimpleNamespace(status=self.statuses[job], message=f"{job} is {self.statuses[job]}")

    def get_job_logs(self, job: str) -> str:
        self.answer()
        return self.logs.get(job, "")

    def stop_job(self, job: str) -> bool:
        self.answer()
        self.stops.append(job)
        return True
