from dataclasses import replace

import numpy as np
import pytest
import torch

from mlcd_core.kmeans import ArrayPoints, nearest_centroids
from mlcd_core.kmeans.assign import Assigner
from mlcd_core.kmeans.look import HashShare, Probe, chosen, exact_find
from mlcd_core.kmeans.points import Block, Piece, Points, RowIds
from mlcd_core.kmeans.ranks import Ranks
from tests.unit.kmeans import oracle

ROWS_ND = oracle.normalised_rows(oracle.blobs(90, 6, 5, seed=0))


def block_with_bad_rows(device=None):
    """Rows 0 to 89 in three pieces, every third of the middle one not usable."""
    status_N = torch.zeros(30, dtype=torch.int8)
    status_N[::3] = 4
    pieces = [
        Piece(torch.from_numpy(ROWS_ND[start : start + 30]), RowIds(start), status_N if start == 30 else None)
        for start in (0, 30, 60)
    ]
    block = Block.of(3, pieces)
    return block if device is None else block.to(device)


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
@pytest.mark.parametrize("tile_rows", [1, 13, 100])
def test_chosen_rows_are_those_of_the_mask_among_the_usable(device, tile_rows):
    block = block_with_bad_rows(device)
    usable = [n for n in range(90) if not (30 <= n < 60 and n % 3 == 0)]
    kept = [n for n in usable if n % 4 == 1]
    part = chosen(block, torch.tensor([n in kept for n in usable]))
    assert (part.number, part.num_rows) == (3, len(kept))
    assert part.row_ids().tolist() == kept
    tiles = list(part.tiles(tile_rows))
    assert torch.equal(torch.cat([tile_BD for _, tile_BD in tiles]), torch.from_numpy(ROWS_ND[kept]))
    assert [rows.start for rows, _ in tiles] == [0, *[rows.stop for rows, _ in tiles[:-1]]]
    assert block.num_rows == len(usable)


def test_no_row_chosen_is_a_block_without_rows():
    part = chosen(block_with_bad_rows(), torch.zeros(80, dtype=torch.bool))
    assert part.num_rows == 0
    assert list(part.tiles(10)) == []


def test_share_holds_the_rows_with_a_low_hash():
    points = ArrayPoints(ROWS_ND, first_row=1000, block_rows=20)
    share = HashShare.of_about(30, 90, seed=5)
    expected = [n for n in range(1000, 1090) if oracle.splitmix64(5, n) < 2**63 * 30 // 90]
    found = torch.cat([block.row_ids()[share.mask(block)] for block in points.blocks])
    assert found.tolist() == expected
    assert share.count(points, Ranks(None)) == len(expected)
    assert 15 < len(expected) < 45
    doubled = [n for n in range(1000, 1090) if oracle.splitmix64(5, n) < 2 * (2**63 * 30 // 90)]
    assert share.doubled().count(points, Ranks(None)) == len(doubled)


@pytest.mark.parametrize("share", [HashShare.of_about(90, 90, 0), HashShare.of_about(500, 90, 0), HashShare(0, 2**64)])
def test_share_of_as_many_rows_as_there_are_is_all_rows(share):
    assert share.count(ArrayPoints(ROWS_ND), Ranks(None)) == 90


def test_probe_counts_labels_that_are_the_exact_ones():
    points, centroids_KD = ArrayPoints(ROWS_ND), oracle.on_grid(ROWS_ND[:12].astype(np.float64))
    exact_N = nearest_centroids(points, centroids_KD, num_labels=1).ids_NL[:, 0]
    share = HashShare.of_about(40, 90, seed=1)
    wrong_N = exact_N.clone()
    wrong_N[::5] = 12
    probe = Probe(share, exact_find(Assigner(torch.from_numpy(centroids_KD))))
    mask_N = share.mask(points.blocks[0])
    num_wrong = int((mask_N & (wrong_N == 12)).sum())
    assert num_wrong > 0
    assert probe.count(points.blocks[0], wrong_N) == (int(mask_N.sum()), int(mask_N.sum()) - num_wrong)
    assert probe.count(points.blocks[0], exact_N) == (int(mask_N.sum()), int(mask_N.sum()))


def test_weights_say_how_many_rows_a_block_stands_for():
    block = ArrayPoints(ROWS_ND).blocks[0]
    weighted = replace(block, weights_N=torch.arange(90))
    assert (block.weight, weighted.weight) == (90, 89 * 90 // 2)
    assert Points([block, weighted], 6).weight == 90 + 89 * 90 // 2
