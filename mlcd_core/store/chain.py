"""A stage that advances in links: cluster (iterations, and what one has summed so far) and train (checkpoints).

Each link is a unit with a number; the newest whole one of the same input and attempt is where work resumes. The end
state is always a link, and the manifest names only that. Data of links older than the newest two is dropped; their
receipts stay as the record of what happened. A link whose data was lost is made again as a unit is: its next attempt.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlcd_core.identity import fingerprint
from mlcd_core.store.folder import StageFolder, UnitTask, are_whole
from mlcd_core.store.records import Part, Receipt, decode_receipt, read_part

KEPT_LINKS = 2


class Chain:
    """The links of one input of a stage. ``last_number`` bounds the numbers a link may have."""

    def __init__(self, folder: StageFolder, inputs: Mapping[str, str], attempt: int, last_number: int) -> None:
        self.folder = folder
        self.input = fingerprint(dict(inputs))
        self.attempt = attempt
        self.last_number = last_number
        self._read: dict[str, Receipt] = {}  # path of a receipt of the folder -> the receipt

    def newest(self) -> Receipt | None:
        """The link with the highest number whose parts are all there, or None: start from the beginning."""
        whole = self._whole_links(self._sizes())
        return whole[-1] if whole else None

    def links(self) -> list[Receipt]:
        """All links, by number; the data of old ones is gone, and one that was made again is there twice."""
        return self._links(self._sizes())

    def put(
        self, name: str, suffix: str, data: bytes, *, rows: int = 0, counts: Mapping[str, int] | None = None
    ) -> Part:
        """Write one data file of a link that is being made; it counts for nothing until ``append``."""
        return self.folder.put(name, suffix, data, rows=rows, usable=rows, counts=counts or {})

    def append(self, number: int, parts: Sequence[Part], state: Mapping[str, Any]) -> Receipt:
        """Commit link ``number`` and drop the data of links older than the newest two.

        A part may be one that an older link names too. Returns the link that stands: another writer's, if it was first
        and its data is there; the caller goes on from that one.
        """
        assert 0 <= number <= self.last_number, f"link {number} of a chain that ends at {self.last_number}"
        unit = self._unit(number)
        link, attempt = self.folder.standing(unit, 1, self._sizes())
        if link is None:
            link = self.folder.commit(UnitTask(number, unit, attempt), parts, number=number, state=state)
        self._drop_old_data()
        return link

    def read(self, part: Part) -> bytes:
        """The bytes of one part of a link, checked."""
        return read_part(self.folder.files, part)

    def _unit(self, number: int) -> str:
        return fingerprint([self.input, self.attempt, number])

    def _sizes(self) -> dict[str, int]:
        return {info.path: info.bytes for info in self.folder.files.list(self.folder.prefix)}

    def _links(self, paths: Iterable[str]) -> list[Receipt]:
        """The links of this chain whose receipts are among these paths, by number."""
        own = (link for link in self._receipts(paths) if self._is_own(link))
        return sorted(own, key=lambda link: (link.number, link.attempt))

    def _whole_links(self, sizes: Mapping[str, int]) -> list[Receipt]:
        return [link for link in self._links(sizes) if are_whole(link.parts, sizes)]

    def _receipts(self, paths: Iterable[str]) -> list[Receipt]:
        """All links of the folder, of this chain and others.

        A name is a hash of the number, and there can be more numbers than anyone would try: the receipts are read.
        """
        return [self._receipt(path) for path in paths if path.startswith(f"{self.folder.prefix}/units/")]

    def _receipt(self, path: str) -> Receipt:
        if path not in self._read:
            data = self.folder.files.read(path)
            assert data is not None, f"{path} was listed and is gone"
            self._read[path] = decode_receipt(data, self.folder.files.uri(path))
        return self._read[path]

    def _is_own(self, link: Receipt) -> bool:
        return link.unit == self._unit(link.number)

    def _drop_old_data(self) -> None:
        sizes = self._sizes()
        newest = {link.number for link in self._whole_links(sizes)[-KEPT_LINKS:]}
        old: set[str] = set()
        kept: set[str] = set()
        for link in self._receipts(sizes):
            is_old = self._is_own(link) and link.number not in newest
            (old if is_old else kept).update(part.path for part in link.parts)
        # equal content is one file, which a link of other input may name too
        for path in (old - kept) & sizes.keys():
            self.folder.files.delete(path)
