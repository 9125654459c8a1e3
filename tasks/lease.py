"""Holds the lease of a stage while its work is done: a thread writes heartbeats, and says when the lease is lost."""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mlcd_core.errors import LeaseLostError, StoreError
from mlcd_core.identity import fingerprint
from mlcd_core.store import StageFolder
from mlcd_core.store.claims import Claims
from mlcd_core.store.holder import this_process
from mlcd_core.store.lease import PACE, Lease, Pace, take_lease

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


@contextmanager
def stage_lease(
    folder: StageFolder,
    inputs: Mapping[str, str],
    *,
    run: str,
    log: Log,
    wait_s: float = -1.0,
    pace: Pace = PACE,
) -> Iterator[Lease]:
    """Within: no other run makes the same, as far as leases can tell.

    Plan again first, another run may have sealed meanwhile, and ``confirm`` the lease before sealing. run: what people
    call this run. wait_s: negative for as long as it takes, 0 for not at all. Raises LeaseHeldError when the wait ends
    in vain.
    """
    stage = folder.spec.STAGE
    claims = Claims(folder.files, folder.prefix, fingerprint(dict(inputs)))
    lease = take_lease(
        claims, this_process(run), wait_s=wait_s, pace=pace, tell=lambda line: log.info("%s: %s", stage, line)
    )
    ended = threading.Event()
    thread = threading.Thread(target=_beat_until, args=(ended, lease, pace, log), name=f"lease of {stage}", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        ended.set()
        thread.join()
        _release(lease, log)


def _beat_until(ended: threading.Event, lease: Lease, pace: Pace, log: Log) -> None:
    while not ended.wait(pace.beat_s):
        try:
            lease.beat()
        except LeaseLostError as lost:
            log.error("%s", lost)
            return
        except StoreError as error:
            log.warning("no heartbeat was written: %s", error)


def _release(lease: Lease, log: Log) -> None:
    """Leave the lease. What was sealed stands, and an error of the work counts more: so a failure is only told."""
    try:
        lease.release()
    except LeaseLostError:
        pass  # the work has said so, or it is sealed and nothing was lost by it
    except StoreError as error:
        log.warning("the lease was not released, so others wait until its heartbeat is missed: %s", error)
