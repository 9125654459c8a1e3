"""A clustering's states as links of its chain.

An iteration's end is the link ``iterations done * blocks``; what a long iteration has summed so far is a link between
two of those, ``+ blocks summed``, that names the centroids it began from and the sums. So the newest link alone says
where to go on, and numbers only grow. A link's state holds what was seen of the iterations so far: it depends on stops
and on the clock, so it is no part of the files.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlcd_core.events import Value
from mlcd_core.store import Chain, Part, Receipt

if TYPE_CHECKING:
    from mlcd_core.kmeans import CentroidState, PartialSums

SEEN = ("iteration", "changed_share", "exhaustive_rows", "rows", "seconds")


def read_state(chain: Chain, link: Receipt | None) -> "CentroidState | None":
    """The state that a link's work goes on from; None: from the beginning."""
    from mlcd_core.kmeans import CentroidState

    return CentroidState.from_arrow_bytes(chain.read(link.parts[0])) if link else None


def read_sums(chain: Chain, link: Receipt | None) -> "PartialSums | None":
    """What the iteration after that state has summed, if anything was saved of it."""
    from mlcd_core.kmeans import PartialSums

    return PartialSums.from_arrow_bytes(chain.read(link.parts[1])) if link and len(link.parts) > 1 else None


def seen_iterations(link: Receipt) -> dict[int, dict[str, Any]]:
    """Iteration -> what was seen of it."""
    return {seen["iteration"]: seen for seen in link.state.get("seen", ())}


class LinkWriter:
    """Commits the links that follow ``newest``, on the first rank."""

    def __init__(self, chain: Chain, newest: Receipt | None, *, num_blocks: int, save_every: int) -> None:
        self._chain = chain
        self._save_every = save_every
        self._num_blocks = num_blocks
        self._number = newest.number if newest else 0
        self._seen = list(seen_iterations(newest).values()) if newest else []
        self._centroids: dict[int, Part] = {}  # of the last state that was written, by iteration

    def see(self, event: str, values: Mapping[str, Value]) -> None:
        """Note an iteration; the next link carries it."""
        if event == "cluster.iteration":
            self._seen.append({key: values[key] for key in SEEN})

    def end_iteration(self, state: "CentroidState") -> None:
        """Commit the end of every ``save_every``-th iteration, and of one so long that it was saved in part."""
        if state.iteration % self._save_every == 0 or self._number % self._num_blocks > 0:
            self.save_iteration(state)

    def save_iteration(self, state: "CentroidState") -> None:
        """Commit the end of an iteration, unless its link stands already."""
        number = state.iteration * self._num_blocks
        if number > self._number:
            self._append(number, [self._written(state)])

    def save_partial(self, state: "CentroidState", partial: "PartialSums") -> None:
        """Commit what the iteration after ``state`` has summed."""
        number = state.iteration * self._num_blocks + partial.num_blocks
        sums = self._chain.put("sums", ".arrow", partial.to_arrow_bytes(), rows=len(partial.counts_K))
        self._append(number, [self._written(state), sums])

    def _append(self, number: int, parts: list[Part]) -> None:
        self._chain.append(number, parts, {"seen": self._seen})
        self._number = number

    def _written(self, state: "CentroidState") -> Part:
        if state.iteration not in self._centroids:
            part = self._chain.put("centroids", ".arrow", state.to_arrow_bytes(), rows=len(state.centroids_KD))
            self._centroids = {state.iteration: part}
        return self._centroids[state.iteration]
