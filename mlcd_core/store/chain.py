"""A stage that advances in links: cluster (one per iteration) and train (one per checkpoint).

Each link is a unit with a number; the newest valid one of the same input and attempt is where work resumes. The end
state is always a link, and the manifest names only that. Data of links older than the newest two is dropped; their
receipts stay as the record of what happened.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from mlcd_core.identity import fingerprint
from mlcd_core.store.folder import StageFolder, UnitTask
from mlcd_core.store.records import Part, Receipt, read_part

KEPT_LINKS = 2


class Chain:
    """The links of one input of a stage. ``last_number`` bounds the numbers a link may have."""

    def __init__(self, folder: StageFolder, inputs: Mapping[str, str], attempt: int, last_number: int) -> None:
        self.folder = folder
        self.input = fingerprint(dict(inputs))
        self.attempt = attempt
        self.last_number = last_number

    def newest(self) -> Receipt | None:
        """The link with the highest number whose parts are all there, or None: start from the beginning."""
        sizes = {info.path: info.bytes for info in self.folder.files.list(self.folder.prefix)}
        for number in reversed(self._present(sizes)):
            link = self._link(number)
            if all(sizes.get(part.path) == part.bytes for part in link.parts):
                return link
        return None

    def put(
        self, name: str, suffix: str, data: bytes, *, rows: int = 0, counts: Mapping[str, int] | None = None
    ) -> Part:
        """Write one data file of a link that is being made; it counts for nothing until ``append``."""
        return self.folder.put(name, suffix, data, rows=rows, usable=rows, counts=counts or {})

    def append(self, number: int, parts: Sequence[Part], state: Mapping[str, Any]) -> Receipt:
        """Commit link ``number`` and drop the data of links older than the newest two.

        Returns the link that stands: another writer's, if it was first; the caller goes on from that one.
        """
        assert 0 <= number <= self.last_number, f"link {number} of a chain that ends at {self.last_number}"
        link = self.folder.commit(UnitTask(number, self._unit(number), self.attempt), parts, number=number, state=state)
        self._drop_old_data()
        return link

    def read(self, part: Part) -> bytes:
        """The bytes of one part of a link, checked."""
        return read_part(self.folder.files, part)

    def _unit(self, number: int) -> str:
        return fingerprint([self.input, number])

    def _link(self, number: int) -> Receipt:
        link = self.folder.read_receipt(self._unit(number), self.attempt)
        assert link is not None, f"link {number} was listed and is gone"
        return link

    @cached_property
    def _number_of(self) -> dict[str, int]:
        """Receipt path -> number of every link there can be; a name is a hash, so it is found by making it."""
        numbers = range(self.last_number + 1)
        return {self.folder.receipt_path(self._unit(number), self.attempt): number for number in numbers}

    def _present(self, paths: Iterable[str]) -> list[int]:
        """The numbers of the links among these paths, ascending."""
        return sorted(self._number_of[path] for path in paths if path in self._number_of)

    def _drop_old_data(self) -> None:
        links = self._present(info.path for info in self.folder.files.list(f"{self.folder.prefix}/units"))
        kept = {part.path for number in links[-KEPT_LINKS:] for part in self._link(number).parts}
        for number in links[-KEPT_LINKS - 1 : -KEPT_LINKS]:
            for part in self._link(number).parts:
                if part.path not in kept:
                    self.folder.files.delete(part.path)
