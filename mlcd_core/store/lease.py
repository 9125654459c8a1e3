"""One run at a time for one input of a stage: who comes second waits, and then finds the work done.

A lease only saves work. What makes two runs at once safe is that receipts and manifests are created once; a store that
breaks its promises can spoil a lease and nothing else.

No clock is compared with another's: a holder counts its heartbeats, and who waits measures on its own clock how long
the count has stood still.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from mlcd_core.errors import LeaseHeldError, LeaseLostError
from mlcd_core.store.claims import Claim, Claims
from mlcd_core.store.holder import Holder, is_gone


@dataclass(frozen=True)
class Pace:
    """Seconds from heartbeat to heartbeat, without one until a holder is taken over, and between looks while waiting.

    A wait is told every ``tell_s``; a long one more rarely, at last once a minute.
    """

    beat_s: float = 30.0
    stale_s: float = 120.0
    look_s: float = 2.0
    tell_s: float = 5.0


PACE = Pace()


class Lease:
    """A claim of this process that counted when it was made. Any thread may call."""

    def __init__(self, claims: Claims, claim: Claim, clock: Callable[[], float]) -> None:
        self._claims = claims
        self._claim = claim
        self._clock = clock
        self._taken_at = clock()

    def confirm(self) -> None:
        """Raise LeaseLostError when the claim counts no longer: another run took over, or its object was deleted."""
        newest = self._claims.newest()
        if newest is None or newest.holder.id != self._claim.holder.id:
            raise LeaseLostError(
                f"{self._claims.stage}: this run was stopped, or cut off from the storage, for so long that its lease "
                f"was given to {_who(newest.holder) if newest else 'nobody: its object was deleted'}. It stops before "
                "it seals, and what is finished is kept; run again to use what the other run makes"
            )

    def beat(self) -> None:
        """Show that this process lives. Raises LeaseLostError as ``confirm``."""
        self.confirm()
        held_s = round(self._clock() - self._taken_at)
        self._claim = replace(self._claim, beats=self._claim.beats + 1, held_s=held_s)
        self._claims.put(self._claim)

    def release(self) -> None:
        """Let the next one have it. Raises LeaseLostError as ``confirm``."""
        self.confirm()
        self._claims.put(replace(self._claim, released=True))


def take_lease(
    claims: Claims,
    holder: Holder,
    *,
    tell: Callable[[str], None],
    wait_s: float = -1.0,
    pace: Pace = PACE,
    is_gone: Callable[[Holder], bool] = is_gone,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Lease:
    """Wait until the lease is free, take it, and return it.

    It is free when it was released, when its holder is gone, and when no heartbeat was seen for ``pace.stale_s``.
    wait_s: negative for as long as it takes, 0 for not at all; then LeaseHeldError is raised. tell: gets lines for
    people about who is waited for, and whose lease was taken over.
    """
    started = last_look = seen_at = clock()
    next_told_s = 0.0
    seen: Claim | None = None
    while True:
        looked_at = clock()
        newest = claims.newest()
        # after a gap too: this process was stopped or the storage was silent, and so it may have been for the holder
        if newest != seen or clock() - last_look > pace.stale_s / 2:
            seen, seen_at = newest, clock()
        last_look = clock()
        silent_s, waited_s = max(0.0, looked_at - seen_at), looked_at - started
        if newest is None or newest.released or is_gone(newest.holder) or silent_s >= pace.stale_s:
            claim = Claim(newest.epoch + 1 if newest else 1, holder)
            if claims.create(claim):
                if newest is not None and not newest.released:
                    tell(f"taken over from {_who_and_since(newest, silent_s)}: it lives no more")
                return Lease(claims, claim, clock)
        elif 0 <= wait_s <= waited_s:
            raise _held(claims, newest, silent_s, waited_s, pace)
        elif waited_s >= next_told_s:
            next_told_s = waited_s + min(60.0, max(pace.tell_s, waited_s / 10))
            tell(f"waiting for {_who_and_since(newest, silent_s)}, which makes the same")
        sleep(pace.look_s if wait_s < 0 else min(pace.look_s, max(0.0, wait_s - waited_s)))


def _held(claims: Claims, claim: Claim, silent_s: float, waited_s: float, pace: Pace) -> LeaseHeldError:
    return LeaseHeldError(
        f"{claims.stage} is being made by {_who_and_since(claim, silent_s)}; waited {waited_s:.0f} s. Run again when "
        "it is done, then its result is used; or stop that process, then the next run goes on from what it finished. "
        f"If its machine is gone, a run that waits takes over {pace.stale_s:.0f} s after its last heartbeat, and any "
        f"run at once when {claims.uri(claim.epoch)} is deleted"
    )


def _who_and_since(claim: Claim, silent_s: float) -> str:
    minutes, seconds = divmod(round(claim.held_s + silent_s), 60)
    return f"{_who(claim.holder)}, at it for {minutes} min {seconds:02d} s, since {claim.holder.since} by its clock"


def _who(holder: Holder) -> str:
    return f"the run {holder.run} (process {holder.pid} on {holder.host})"
