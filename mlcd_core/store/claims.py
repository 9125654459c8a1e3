"""The claims on one input of a stage; the one with the highest epoch counts.

    {root}/{stage}/{spec12}/leases/{input12}-{epoch:07d}.json

Epochs never come down, so the last one stays when it is released. Were it deleted, a claim that was asleep could still
be made under a number that was used before, and a holder that was asleep would write over the claim of the next.
"""

import json
from dataclasses import asdict, dataclass

from mlcd_core.errors import CorruptRecordError
from mlcd_core.identity import short
from mlcd_core.store.files import Files
from mlcd_core.store.holder import Holder


@dataclass(frozen=True)
class Claim:
    """What the object of an epoch says. held_s: at the last heartbeat, by the holder's own clock."""

    epoch: int
    holder: Holder
    beats: int = 0
    held_s: int = 0
    released: bool = False


class Claims:
    """Reads and writes them. prefix: the stage's folder. Raises StoreError as Files does."""

    def __init__(self, files: Files, prefix: str, input_digest: str) -> None:
        self.stage = prefix.partition("/")[0]
        self._files = files
        self._folder = f"{prefix}/leases"
        self._start = f"{self._folder}/{short(input_digest)}-"

    def newest(self) -> Claim | None:
        """The claim that counts; None where there is none."""
        for epoch in reversed(self._epochs()):
            data = self._files.read(self._path(epoch))
            if data is not None:  # else it gave way to a higher one since it was listed
                return _decode(data, self.uri(epoch))
        return None

    def create(self, claim: Claim) -> bool:
        """Make a claim of an epoch that is free, and say whether it is the one that counts."""
        path = self._path(claim.epoch)
        if not self._files.create(path, _encode(claim)):
            return False
        epochs = self._epochs()
        if max(epochs, default=0) != claim.epoch:  # it was asleep while others came and went
            self._files.delete(path)
            return False
        for older in epochs[:-1]:
            self._files.delete(self._path(older))
        return True

    def put(self, claim: Claim) -> None:
        """Write a claim of one's own anew."""
        self._files.put(self._path(claim.epoch), _encode(claim))

    def uri(self, epoch: int) -> str:
        """Where a person finds the claim of an epoch."""
        return self._files.uri(self._path(epoch))

    def _path(self, epoch: int) -> str:
        return f"{self._start}{epoch:07d}.json"

    def _epochs(self) -> list[int]:
        paths = [info.path for info in self._files.list(self._folder)]
        return sorted(int(path[len(self._start) : -len(".json")]) for path in paths if path.startswith(self._start))


def _encode(claim: Claim) -> bytes:
    return json.dumps(asdict(claim), sort_keys=True, indent=1).encode() + b"\n"


def _decode(data: bytes, where: str) -> Claim:
    try:
        record = json.loads(data)
        return Claim(**{**record, "holder": Holder(**record["holder"])})
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptRecordError(f"{where} is no lease ({error}); delete it and run again, nothing is lost") from error
