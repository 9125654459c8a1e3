"""A clustering's states as links of its chain.

An iteration's end is the link ``iterations done * blocks``; what a long iteration has summed so far is a link between
two of those, ``+ blocks summed``, that names the centroids it began from and the sums. Before them stand, for the
recipe hierarchical, links of its parts, numbered by the iterations of all slices together: the end of each slice and
the state of the one under way. So the newest link alone says where to go on, and numbers only grow. A link's state
holds what was seen of the iterations so far: it depends on stops and on the clock, so it is no part of the files.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlcd_core.events import Value
from mlcd_core.specs import ClusterSpec
from mlcd_core.store import Chain, Part, Receipt

if TYPE_CHECKING:
    from mlcd_core.kmeans import CentroidState, PartialSums
    from mlcd_core.kmeans.saving import Parts

SEEN = ("iteration", "changed_share", "exhaustive_rows", "recall", "rows", "used_rows", "seconds")


def read_state(chain: Chain, link: Receipt | None) -> "CentroidState | None":
    """The state that a link's work goes on from; None: from the beginning."""
    from mlcd_core.kmeans import CentroidState

    if link is None or _is_of_parts(link):
        return None
    return CentroidState.from_arrow_bytes(chain.read(link.parts[0]))


def read_sums(chain: Chain, link: Receipt | None) -> "PartialSums | None":
    """What the iteration after that state has summed, if anything was saved of it."""
    from mlcd_core.kmeans import PartialSums

    has_sums = link is not None and not _is_of_parts(link) and len(link.parts) > 1
    return PartialSums.from_arrow_bytes(chain.read(link.parts[1])) if link and has_sums else None


def read_parts(chain: Chain, link: Receipt | None) -> "Parts":
    """The slices of a hierarchical clustering that is not over yet."""
    from mlcd_core.kmeans import CentroidState

    if link is None or not _is_of_parts(link):
        return ()
    return tuple(CentroidState.from_arrow_bytes(chain.read(part)) for part in link.parts)


def links_before(spec: ClusterSpec) -> int:
    """Links before those of iterations over all rows: one for each iteration of a slice, and of their merge."""
    return (spec.slices + 1) * spec.iterations if spec.recipe == "hierarchical" else 0


def seen_iterations(link: Receipt) -> dict[int, dict[str, Any]]:
    """Iteration -> what was seen of it."""
    return {seen["iteration"]: seen for seen in link.state.get("seen", ())}


class LinkWriter:
    """Commits the links that follow ``newest``, on the first rank."""

    def __init__(
        self, chain: Chain, newest: Receipt | None, *, num_blocks: int, save_every: int, num_before: int = 0
    ) -> None:
        self._chain = chain
        self._num_before = num_before
        self._save_every = save_every
        self._num_blocks = num_blocks
        self._number = newest.number if newest else 0
        self._seen = list(seen_iterations(newest).values()) if newest else []
        self._centroids: dict[int, Part] = {}  # of the last state that was written, by iteration
        self._ended_slices: list[Part] = []

    def see(self, event: str, values: Mapping[str, Value]) -> None:
        """Note an iteration; the next link carries it."""
        if event == "cluster.iteration":
            self._seen.append({key: values[key] for key in SEEN})

    def end_iteration(self, state: "CentroidState") -> None:
        """Commit the end of every ``save_every``-th iteration, and of one so long that it was saved in part."""
        if state.iteration % self._save_every == 0 or max(0, self._number - self._num_before) % self._num_blocks > 0:
            self.save_iteration(state)

    def save_iteration(self, state: "CentroidState") -> None:
        """Commit the end of an iteration, unless its link stands already."""
        number = self._num_before + state.iteration * self._num_blocks
        if number > self._number:
            self._append(number, [self._written(state)])

    def save_partial(self, state: "CentroidState", partial: "PartialSums") -> None:
        """Commit what the iteration after ``state`` has summed."""
        number = self._num_before + state.iteration * self._num_blocks + partial.num_blocks
        sums = self._chain.put("sums", ".arrow", partial.to_arrow_bytes(), rows=len(partial.counts_K))
        self._append(number, [self._written(state), sums])

    def save_parts(self, parts: "Parts") -> None:
        """Commit an iteration of a slice, or of the merge, beside the ends of the slices before."""
        for state in parts[len(self._ended_slices) : -1]:
            self._ended_slices.append(self._put(state))
        written = [*self._ended_slices, self._put(parts[-1])]
        self._append(sum(state.iteration for state in parts), written, is_of_parts=True)

    def _append(self, number: int, parts: list[Part], *, is_of_parts: bool = False) -> None:
        self._chain.append(number, parts, {"seen": self._seen, **({"of_parts": True} if is_of_parts else {})})
        self._number = number

    def _written(self, state: "CentroidState") -> Part:
        if state.iteration not in self._centroids:
            self._centroids = {state.iteration: self._put(state)}
        return self._centroids[state.iteration]

    def _put(self, state: "CentroidState") -> Part:
        return self._chain.put("centroids", ".arrow", state.to_arrow_bytes(), rows=len(state.centroids_KD))


def _is_of_parts(link: Receipt) -> bool:
    return bool(link.state.get("of_parts"))
