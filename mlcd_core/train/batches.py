"""Batches of one rank: the rows that ``lanes`` names, read by row group, decoded on threads, one batch ahead.

A row group stays in memory while a current window of this rank's lanes needs it. A resumed run reads the row groups of
its window again and decodes nothing that it does not train on.

B rows of this rank's batch, L positives per row, G row groups, U usable rows of a row group.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mlcd_core.dataset import ShardReader
from mlcd_core.errors import DataError
from mlcd_core.images.decode import decode_images
from mlcd_core.specs import TrainSpec
from mlcd_core.tables import RowStatus
from mlcd_core.train.augment import augmented
from mlcd_core.train.labels import ShardLabels, TrainData, shard_labels
from mlcd_core.train.lanes import EpochOrder, Lanes, check_lanes
from mlcd_core.train.ranks import Ranks

OPEN_SHARDS = 64
NO_ROW = -1


@dataclass(frozen=True)
class Batch:
    """Augmented uint8 pixels, class ids, global row numbers and keys.

    Padding has labels -1, row -1, no key, and pixels of other rows.
    """

    pixels_BCHW: Tensor
    positives_BL: Tensor
    rows_B: Tensor
    keys: tuple[str, ...]


@dataclass(frozen=True)
class _Group:
    """One row group of the data: where it is, before its rows are read."""

    shard: int
    index: int
    first_row: int
    num_usable: int


@dataclass(frozen=True)
class _LoadedGroup:
    """The usable rows of a row group."""

    rows_U: np.ndarray  # global
    positives_UL: np.ndarray
    keys: list[str]
    images: list[bytes | None]


class BatchReader:
    """Serves one rank's part of every global batch; use it as a context manager, it owns threads.

    ``rows_per_class``: how many usable rows have each class among their positives [C].
    Reads all label files once to count usable rows. Raises DataError for fewer usable rows than lanes, and for a
    labelled image that does not decode; LabelDataError for labels that do not fit; ConfigError or TrainingError for
    lanes that do not.
    """

    def __init__(self, data: TrainData, spec: TrainSpec, ranks: Ranks, *, num_classes: int, threads: int = 1) -> None:
        check_lanes(batch_size=spec.batch_size, num_lanes=spec.lanes, world_size=ranks.size)
        self._data = data
        self._spec = spec
        self._num_classes = num_classes
        self._own_lanes = range(ranks.rank, spec.lanes, ranks.size)
        self._first_row_of_shard = [0, *accumulate(shard.rows for shard in data.shards)]
        self._reader = lru_cache(OPEN_SHARDS)(self._open_shard)
        self._labels = lru_cache(OPEN_SHARDS)(self._read_labels)
        self.rows_per_class = np.zeros(num_classes, np.int64)
        self._groups = [group for shard in range(len(data.shards)) for group in self._survey(shard)]
        usable_G = np.array([group.num_usable for group in self._groups], dtype=np.int64)
        self.lanes = Lanes(usable_G, spec.lanes, spec.batch_size, spec.seed)
        if self.lanes.num_rows == 0:
            raise DataError(
                f"no row of {len(data.shards)} shards has a label: expected usable images; look at the embed stage's "
                "statuses, most often the image column or max_pixels is wrong"
            )
        if self.lanes.num_rows < spec.lanes:
            raise DataError(
                f"{self.lanes.num_rows} usable rows for {spec.lanes} lanes; expected at least one row for each: "
                f"set train.lanes <= {self.lanes.num_rows} and train.batch_size to a multiple of it, or add images"
            )
        self._order = lru_cache(2)(self.lanes.epoch)
        self._loaded: dict[int, _LoadedGroup] = {}
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="batch")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ahead.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """The batches of global steps ``first_step`` to ``num_steps`` - 1; the next is made while one is used."""
        if first_step >= num_steps:
            return
        coming = self._ahead.submit(self.batch, first_step)
        for step in range(first_step + 1, num_steps):
            batch = coming.result()
            coming = self._ahead.submit(self.batch, step)
            yield batch
        yield coming.result()

    def batch(self, step: int) -> Batch:
        """This rank's rows of the global batch of one global step."""
        spec, (epoch, epoch_step) = self._spec, divmod(step, self.lanes.steps_per_epoch)
        order = self._order(epoch)
        self._load_windows(order, epoch_step)
        batch_rows = len(self._own_lanes) * self.lanes.rows_per_step
        pixels_BCHW = np.zeros((batch_rows, 3, spec.image_size, spec.image_size), np.uint8)
        positives_BL = np.full((batch_rows, spec.num_positive), -1, np.int64)
        rows_B = np.full(batch_rows, NO_ROW, np.int64)
        keys, images = [""] * batch_rows, [b""] * batch_rows
        for number, lane in enumerate(self._own_lanes):
            wanted = order.rows(lane, epoch_step)
            slots = range(number * self.lanes.rows_per_step, batch_rows)
            for slot, group, position in zip(slots, wanted.group_n, wanted.position_n, strict=False):
                loaded = self._loaded[group]
                rows_B[slot], positives_BL[slot] = loaded.rows_U[position], loaded.positives_UL[position]
                keys[slot], images[slot] = loaded.keys[position], loaded.images[position] or b""
        filled = np.flatnonzero(rows_B != NO_ROW)
        pixels_BCHW[filled] = self._decode([images[slot] for slot in filled], [keys[slot] for slot in filled])
        if len(filled):
            # padding counts for nothing but the statistics of BatchNorm: these are of images too
            pixels_BCHW[rows_B == NO_ROW] = pixels_BCHW[np.resize(filled, batch_rows - len(filled))]
        rows = torch.from_numpy(rows_B)
        pixels = augmented(torch.from_numpy(pixels_BCHW), rows, kind=spec.augment, seed=spec.seed, epoch=epoch)
        return Batch(pixels, torch.from_numpy(positives_BL), rows, tuple(keys))

    def _survey(self, shard: int) -> list[_Group]:
        labels = self._labels(shard)
        np.add.at(self.rows_per_class, labels.positives_NL[labels.positives_NL >= 0], 1)
        usable_N = labels.usable_N
        if not usable_N.any():
            return []  # an unreadable shard is not opened
        groups, first_row = [], 0
        for index, num_rows in enumerate(self._data.shards[shard].row_groups):
            num_usable = int(usable_N[first_row : first_row + num_rows].sum())
            groups.append(_Group(shard, index, first_row, num_usable))
            first_row += num_rows
        return groups

    def _load_windows(self, order: EpochOrder, epoch_step: int) -> None:
        """Keep the row groups that this step's windows need, and read those that are missing."""
        windows = [order.window(lane, number) for lane in self._own_lanes for number in order.windows_of(epoch_step)]
        needed = np.unique(np.concatenate([window.group_n for window in windows])).tolist()
        self._loaded = {group: self._loaded.get(group) or self._load(self._groups[group]) for group in needed}

    def _load(self, group: _Group) -> _LoadedGroup:
        shard = self._data.shards[group.shard]
        labels = self._labels(group.shard)
        read = self._reader(group.shard).read(group.index)
        labels.check_keys(read.first_row, read.keys, shard.uri)
        inside_U = np.flatnonzero(labels.usable_N[read.first_row : read.first_row + len(read.keys)])
        return _LoadedGroup(
            rows_U=inside_U + read.first_row + self._first_row_of_shard[group.shard],
            positives_UL=labels.positives_NL[inside_U + read.first_row],
            keys=[read.keys[i] for i in inside_U],
            images=[read.images[i] for i in inside_U],
        )

    def _decode(self, images: list[bytes], keys: list[str]) -> np.ndarray:
        spec = self._spec
        decoded = decode_images(images, image_size=spec.image_size, max_pixels=spec.max_pixels, pool=self._decoders)
        bad = np.flatnonzero(decoded.status_B != RowStatus.OK)
        if len(bad):
            status = RowStatus(decoded.status_B[bad[0]]).name
            raise DataError(
                f"the image {keys[bad[0]]!r} has labels but does not decode ({status})"
                f", one of {len(bad)} in a batch; expected what the embed stage could read: "
                "set train.max_pixels and train.image_column as embed's, or bring the shard back"
            )
        return decoded.pixels_BCHW

    def _open_shard(self, shard: int) -> ShardReader:
        return ShardReader(
            self._data.shards[shard], image_column=self._spec.image_column, key_column=self._data.key_column
        )

    def _read_labels(self, shard: int) -> ShardLabels:
        return shard_labels(self._data, shard, num_positive=self._spec.num_positive, num_classes=self._num_classes)
