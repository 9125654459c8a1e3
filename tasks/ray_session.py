"""One Ray session per run, begun when the first stage misses and ended with the run: of this machine, or a cluster's.

A run that finds every stage committed never starts Ray. ``address="local"`` is explicit because a bare ``ray.init()``
joins whatever cluster it finds; a cluster is joined only when it is named.
"""

import logging
import os
import re
import signal
import socket
import sys
import threading
from types import TracebackType
from typing import Self

from mlcd_core.errors import ConfigError, StageFailedError
from tasks.sigterm import Handler, replace_sigterm_handler

TERMINATED = 143
STARTS = 3
KNOCK_S = 10.0
TIMED_OUT = "timed out during startup"

OBJECT_STORE_BYTES = 250_000_000  # nothing big travels through it: units carry names, not rows
# logical: actors of one stage, Ray Data's own operators and Train's controller must all find a slot
FEWEST_CPUS, SPARE_CPUS = 8, 2

# Ray takes a loopback address for the machine's own unless it is told that there will be no cluster; read at its import
_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
}
# of worker processes, wherever they are
_WORKERS = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",  # two torch workers need 20 to 35 s to start on two cores
    "OMP_NUM_THREADS": "1",  # a worker's threads are set by its runtime, not by the machine's core count
    "MKL_NUM_THREADS": "1",
}
# of this process, and through it of the node it starts
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # the core worker warns of every actor pool (ray#53727) on the user's terminal
}


class RaySession:
    """Starts Ray at the first ``start`` and stops it on exit, unless it was running before.

    address: "" for a node of this machine alone, ``auto`` for the cluster that this machine is a node of, or the
    ``host:port`` of such a cluster's head. A cluster that is joined is left on exit, and what ran there for us ends.
    """

    def __init__(self, *, most_workers: int, address: str = "") -> None:
        self.address = address
        self._num_cpus = max(FEWEST_CPUS, most_workers + SPARE_CPUS)
        self._owned = False
        self._usual: Handler = None  # of SIGTERM
        self._terminated = False

    def start(self) -> None:
        """Start a local session if this process has none."""
        for name, value in {**_QUIET, **_WORKERS, **({} if self.address else _LOOPBACK)}.items():
            os.environ.setdefault(name, value)
        import ray.data

        if ray.is_initialized():
            return
        usual = signal.getsignal(signal.SIGTERM)
        if self.address:
            self._join()
        else:
            self._init()
        if threading.current_thread() is threading.main_thread():
            # Ray's handler prints a stack and aborts at exit, and Prefect's exception is swallowed inside ray.get
            signal.signal(signal.SIGTERM, usual)
            self._usual = replace_sigterm_handler(self._terminate)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        self._owned = True

    def _init(self) -> None:
        """Start the node. Ray gives it 30 s, which a busy machine may not keep: then it is tried again."""
        import ray

        for tries_left in reversed(range(STARTS)):
            try:
                ray.init(
                    address="local",
                    num_cpus=self._num_cpus,
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address="127.0.0.1",
                )
                return
            except Exception as error:  # Ray raises nothing narrower
                if TIMED_OUT not in str(error):
                    raise
                ray.shutdown()
                if not tries_left:
                    raise StageFailedError(
                        f"Ray did not start on this machine, {STARTS} times ({error}); expected a node within 30 s: "
                        "free the processors and memory of other work, then run the same command again"
                    ) from error

    def _join(self) -> None:
        import ray

        try:
            if self.address != "auto":
                _knock(self.address)
            ray.init(
                address=self.address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": _WORKERS},  # the nodes were started by others
            )
        except (ConnectionError, TimeoutError, socket.gaierror) as error:
            raise ConfigError(
                f"no Ray cluster can be joined at {self.address!r} ({error}); expected one that this machine is a node "
                "of: start a node here (ray start), or leave the address out for a session of this machine"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owned:
            import ray

            ray.shutdown()
            if threading.current_thread() is threading.main_thread():
                replace_sigterm_handler(self._usual)
            self._owned = False
        if self._terminated:
            # a flow that is cancelled ends by the exception of Prefect's own handler, else it counts as crashed
            if callable(self._usual):
                self._usual(signal.SIGTERM, None)
            raise SystemExit(TERMINATED)  # on its way through ray.get an exit loses its code

    def _terminate(self, *_: object) -> None:
        self._terminated = True
        sys.exit(TERMINATED)


def _knock(address: str) -> None:
    """Raise OSError where nothing listens at host:port: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


def check_ray_address(address: str) -> None:
    """Raise ConfigError unless it is "", ``auto``, ``host:port`` or the address of a dashboard."""
    if address not in ("", "auto") and not re.fullmatch(r"(https?://)?[^\s:/]+:\d+", address):
        raise ConfigError(
            f"the Ray address is {address!r}; expected auto, or host:port of the head of a cluster that this machine "
            "is a node of, or http://host:port of the dashboard of any cluster, where each stage then runs as a job. "
            "ray:// is not taken, since Ray drops all work of such a client when its connection is cut"
        )


def is_dashboard(address: str) -> bool:
    """Whether a Ray address is that of a dashboard, which takes jobs."""
    return address.startswith(("http://", "https://"))
