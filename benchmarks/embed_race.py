"""The embed stage and the bare loop in turns on the same images: images per second, start-up apart."""

import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from embed_bare import Loop, Split, bare_loop
from embed_pipeline import Setting, run_pipeline

from mlcd_core.specs import EmbedSpec

GOAL = 0.95
SPLITS = (Split(1, 1, "ahead"), Split(2, 2, "in turns"), Split(2, 2, "ahead"), Split(2, 1, "side by side"))
PILOT_SHARE = 4  # the bare loop's splits are tried on a quarter of the shards


@dataclass(frozen=True)
class Race:
    """A model and the images that both embed.

    settings: of ``embed``, for the command. group_rows: of a row group. pretrained: a weights file, or empty.
    """

    title: str
    settings: Mapping[str, Any]
    contenders: Sequence[Setting]
    images: int
    shard_rows: int
    group_rows: int
    pretrained: str = ""


@dataclass(frozen=True)
class Timing:
    """Images per second as ``Loop.steady`` and ``Loop.between_ends`` count; seconds from nothing to the first unit."""

    rate: float
    between_ends: float
    startup_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Timings of each repeat. ``pilot``: images per second of each split of the bare loop's threads, once.

    least_cosine: the least between a row of the bare loop and the same row of the pipeline.
    """

    pilot: dict[Split, float]
    split: Split
    bare: list[Timing]
    pipeline: dict[Setting, list[Timing]]
    least_cosine: float

    def ratio(self, setting: Setting) -> float:
        """Median rate of the pipeline over the bare loop's."""
        return median_rate(self.pipeline[setting]) / median_rate(self.bare)

    def ratio_between_ends(self, setting: Setting) -> float:
        """The same from the first receipt to the last."""
        ends = [[timing.between_ends for timing in timings] for timings in (self.pipeline[setting], self.bare)]
        return statistics.median(ends[0]) / statistics.median(ends[1])


def race(entry: Race, images: str, repeats: int, folder: Path) -> Outcome:
    """Find the bare loop's best split, then let it and all settings take turns, each second time backwards."""
    paths = write_shards(images, entry, Path(tempfile.mkdtemp(prefix="data-", dir=folder)))
    part = paths[: max(2, len(paths) // PILOT_SHARE)]
    pilot = {split: loop.steady() for split, loop in bare_loops(entry, part, SPLITS).items()}
    split = max(pilot, key=lambda split: pilot[split])
    turns: dict[Setting | None, Callable[[], tuple[np.ndarray, Timing]]] = {None: lambda: bare(entry, paths, split)}
    for setting in entry.contenders:
        turns[setting] = lambda setting=setting: pipeline(entry, paths, setting, folder)
    timings: dict[Setting | None, list[Timing]] = {name: [] for name in turns}
    embeddings: dict[Setting | None, np.ndarray] = {}
    for repeat in range(repeats):
        for name in list(turns)[:: -1 if repeat % 2 else 1]:
            embeddings[name], timing = turns[name]()
            timings[name].append(timing)
            print(f"{entry.title}: {name or 'bare loop'}: {timing}", flush=True)
    expected_ND = embeddings.pop(None)
    least = min(least_cosine(expected_ND, found_ND) for found_ND in embeddings.values())
    return Outcome(pilot, split, timings.pop(None), {name: t for name, t in timings.items() if name}, least)


def bare(entry: Race, paths: Sequence[str], split: Split) -> tuple[np.ndarray, Timing]:
    """The bare loop."""
    loop = bare_loops(entry, paths, [split])[split]
    return loop.embeddings_ND, Timing(loop.steady(), loop.between_ends())


def bare_loops(entry: Race, paths: Sequence[str], splits: Sequence[Split]) -> dict[Split, Loop]:
    """The bare loop with each split, one after the other in one fresh process."""
    spec = EmbedSpec(**entry.settings)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return {split: pool.submit(bare_loop, paths, spec, entry.pretrained, split).result() for split in splits}


def pipeline(entry: Race, paths: Sequence[str], setting: Setting, folder: Path) -> tuple[np.ndarray, Timing]:
    """The stage, by the command."""
    chosen = {**entry.settings, "pretrained": entry.pretrained} if entry.pretrained else entry.settings
    run = run_pipeline(str(Path(paths[0]).parent), chosen, setting, folder)
    return run.loop.embeddings_ND, Timing(run.loop.steady(), run.loop.between_ends(), run.startup_s)


def write_shards(images: str, entry: Race, folder: Path) -> list[str]:
    """The first images of a pattern's files, as shards of the race's shape; their paths."""
    rows, paths = first_rows(images, entry.images), []
    for first in range(0, entry.images, entry.shard_rows):
        paths.append(str(folder / f"train-{first // entry.shard_rows:05d}.parquet"))
        pq.write_table(rows.slice(first, entry.shard_rows), paths[-1], row_group_size=entry.group_rows)
    return paths


def first_rows(images: str, num_rows: int) -> pa.Table:
    """Key and image of the first rows of the files of a pattern, in name order."""
    pattern = Path(images)
    found = sorted(pattern.parent.glob(pattern.name))
    tables = [pq.read_table(path, columns=["key", "jpg"]) for path in found]
    rows = sum(table.num_rows for table in tables)
    if rows < num_rows:
        sys.exit(f"{images} has {rows:,} images in {len(found)} files, {num_rows:,} are to be embedded: ask for fewer")
    return pa.concat_tables(tables).slice(0, num_rows).combine_chunks()


def least_cosine(one_ND: np.ndarray, other_ND: np.ndarray) -> float:
    """The least cosine between rows of the same number."""
    one_ND, other_ND = (rows_ND.astype(np.float32) for rows_ND in (one_ND, other_ND))
    lengths_N = np.linalg.norm(one_ND, axis=1) * np.linalg.norm(other_ND, axis=1)
    return float(((one_ND * other_ND).sum(axis=1) / lengths_N).min())


def median_rate(timings: Sequence[Timing]) -> float:
    """The middle of the images per second."""
    return statistics.median(timing.rate for timing in timings)


def race_section(entry: Race, outcome: Outcome) -> list[str]:
    """What the page says of one race."""
    best = max(entry.contenders, key=outcome.ratio)
    verdict = "met" if outcome.ratio(best) >= GOAL else "missed"
    size = entry.settings["image_size"]
    return [
        f"### {entry.title}: {entry.images:,} images at {size} px",
        "",
        f"Shards of {entry.shard_rows:,} rows in row groups of {entry.group_rows}; batches of "
        f"{entry.settings['batch_rows']}. The bare loop's threads, tried once on a part:",
        "; ".join(f"{split}: {rate:,.1f}" for split, rate in outcome.pilot.items()) + " images/s.",
        "",
        "| | images/s | all repeats | ratio | ratio between receipts | to the first unit |",
        "|---|---|---|---|---|---|",
        f"| bare loop: {outcome.split} | {median_rate(outcome.bare):,.1f} | {spelled(outcome.bare)} | 1 | | |",
        *pipeline_rows(outcome),
        "",
        f"- Best: {best}: {outcome.ratio(best):.3f} of the bare loop; goal {GOAL}: {verdict}.",
        f"- The least cosine between a row of the loop and of the pipeline: {outcome.least_cosine:.5f}.",
        "",
    ]


def pipeline_rows(outcome: Outcome) -> Iterator[str]:
    """A row of the table for each setting."""
    for setting, timings in outcome.pipeline.items():
        cells = [f"mlcd: {setting}", f"{median_rate(timings):,.1f}", spelled(timings)]
        cells += [f"{outcome.ratio(setting):.3f}", f"{outcome.ratio_between_ends(setting):.3f}"]
        cells += [f"{statistics.median(timing.startup_s for timing in timings):.0f} s"]
        yield f"| {' | '.join(cells)} |"


def spelled(timings: Sequence[Timing]) -> str:
    """All rates, in the order of measuring."""
    return ", ".join(f"{timing.rate:,.1f}" for timing in timings)
