"""Candidates from a fused GPU kernel: products on tensor cores, the best M kept beside the accumulators.

Scoring N rows against K centroids costs one matrix product; storing and selecting the N x K scores costs more. Here a
program holds a block of rows, streams over the centroids tile by tile and keeps each row's M best in registers: a tile
adds to them only while its maximum beats a row's lowest, so about M ln(K/M) times per row in any order that is not
sorted. Nothing of size N x K exists, and neither N nor K is compiled in.

Scores are those of centroids rounded to float16, added up in float32. ``Shortlist.ceiling_B`` counts both errors.

Shapes: B rows of a tile, K centroids, D dims, M candidates per row, S splits of the centroids, T centroids of a tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from mlcd_core.errors import ConfigError
from mlcd_core.kmeans.shortlist import Shortlist, float32_dot_error

# rows and centroids are padded to whole chunks: odd dims would be loaded two bytes at a time, and need masks
DIM_CHUNK = 64
# a split of the centroids is not worth its merge below this
SPLIT_CENTROIDS = 512
# rows of the most common block of the kernel, to tell how many programs there will be
USUAL_BLOCK_ROWS = 128
# Tensor cores do not round to nearest. They align the k products of a step and the accumulator to the largest of them,
# cut each to 2^-23 of it, add, and cut the sum (Fasi, Higham, Mikaitis, Pranesh: Numerical behavior of NVIDIA tensor
# cores, 2021; k = 4 on V100 and T4, 8 or more since). None exceeds |x| |c|, so a step errs by (k + 2) 2^-23 |x| |c|,
# and D / k steps by 1.5 D 2^-23 = 3 D 2^-24 of it for k = 4, less for larger k. Four times gamma_D is above that, and
# above any order of rounded sums. float16 products are exact in float32, never subnormal: multiples of 2^-48.
TENSOR_CORE_FACTOR = 4
MAX_ROW_LENGTH = 1 + 2.0**-10

_PREPARED_ROWS = 65_536
# triton decides it when a kernel is defined, so later changes of the environment must not count
_INTERPRETED = bool(triton.knobs.runtime.interpret)


class TritonSearch:
    """Proposes candidates among one set of centroids, on CUDA or, with TRITON_INTERPRET=1 and slowly, on the CPU.

    ``centroids_KD`` float32 unit rows on the grid, on any device; a float16 copy of them stays on ``device``. ``spare``
    is how many candidates a row gets beyond the labels asked for. Raises ConfigError when Triton cannot run there.
    """

    def __init__(self, centroids_KD: Tensor, device: torch.device | str, *, spare: int = 1) -> None:
        assert spare >= 0, f"{spare} spare candidates"
        self.device = torch.device(device)
        _check_device(self.device)
        self.num_centroids, dim = centroids_KD.shape
        self.spare = spare
        assert self.num_centroids < 2**30, f"{self.num_centroids} centroids: the kernel counts them in int32"
        padded_dim = triton.cdiv(dim, DIM_CHUNK) * DIM_CHUNK
        self._centroids_KD = torch.zeros((self.num_centroids, padded_dim), dtype=torch.float16, device=self.device)
        residual = 0.0
        for start in range(0, self.num_centroids, _PREPARED_ROWS):
            exact_PD = centroids_KD[start : start + _PREPARED_ROWS].to(self.device)
            rounded_PD = exact_PD.half()
            self._centroids_KD[start : start + len(rounded_PD), :dim] = rounded_PD
            squares_P = (exact_PD.double() - rounded_PD.double()).square().sum(dim=1)
            residual = max(residual, float(squares_P.max()) ** 0.5)
        # a float64 sum of at most 2^20 squares is off by less than 2^-32 of it
        rounding_error = MAX_ROW_LENGTH * residual * (1 + 2.0**-32)
        self._score_error = rounding_error + TENSOR_CORE_FACTOR * float32_dot_error(padded_dim)

    def propose(self, points_BD: Tensor, num_labels: int) -> Shortlist:
        """The ``num_labels + spare`` centroids with the highest coarse scores, on the device of the float16 rows.

        When that is K or more, these are all centroids, and no other is left: ceiling -inf.
        """
        num_rows, device = len(points_BD), points_BD.device
        num_candidates = min(num_labels + self.spare, self.num_centroids)
        if num_rows == 0 or num_candidates == self.num_centroids:
            all_ids_BM = torch.arange(num_candidates, device=device).repeat(num_rows, 1)
            nothing_left_B = torch.full((num_rows,), -torch.inf, dtype=torch.float64, device=device)
            return Shortlist.of_columns(all_ids_BM, nothing_left_B)
        scores_BM, ids_BM = self._search(points_BD, num_candidates)
        # what was left out scored no more than the lowest candidate, and no score is further off than the error
        ceiling_B = scores_BM.amin(dim=1).double() + self._score_error
        return Shortlist.of_columns(ids_BM.to(device).long(), ceiling_B.to(device))

    def _search(self, points_BD: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
        num_rows, dim = points_BD.shape
        padded_dim = self._centroids_KD.shape[1]
        rows_BD = pad(points_BD.to(self.device), (0, padded_dim - dim)).contiguous()
        num_splits = self._num_splits(num_rows)
        scores_SBM = torch.empty((num_splits, num_rows, num_candidates), device=self.device)
        ids_SBM = torch.empty((num_splits, num_rows, num_candidates), dtype=torch.int32, device=self.device)
        with torch.cuda.device(rows_BD.get_device()):
            _search_kernel[lambda blocks: (triton.cdiv(num_rows, blocks["BLOCK_ROWS"]) * num_splits,)](
                rows_BD,
                self._centroids_KD,
                scores_SBM,
                ids_SBM,
                num_rows,
                self.num_centroids,
                num_splits,
                num_candidates,
                DIM=padded_dim,
                KEPT=triton.next_power_of_2(num_candidates),
                CHUNK=DIM_CHUNK,
                enable_fp_fusion=True,  # the default, which triton 3.9 warns about
            )
        if num_splits == 1:
            return scores_SBM[0], ids_SBM[0]
        scores_BM, best_BM = scores_SBM.transpose(0, 1).flatten(1).topk(num_candidates, sorted=False)
        return scores_BM, ids_SBM.transpose(0, 1).flatten(1).gather(1, best_BM)

    def _num_splits(self, num_rows: int) -> int:
        # few rows make too few programs to fill the device: then several share a block of rows, each with other tiles
        processors = 2 if _INTERPRETED else torch.cuda.get_device_properties(self.device).multi_processor_count
        wanted = 2 * processors // triton.cdiv(num_rows, USUAL_BLOCK_ROWS)
        return int(max(1, min(wanted, self.num_centroids // SPLIT_CENTROIDS)))


def _check_device(device: torch.device) -> None:
    expected = "cpu" if _INTERPRETED else "cuda"
    if device.type != expected or (expected == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(
            f"the Triton search cannot run on {device} here; expected {expected}: take the torch search, or set "
            "TRITON_INTERPRET=1 before the start to try the kernel on the CPU"
        )


def _configs() -> list[triton.Config]:
    """Block sizes to try at the first call of each (DIM, KEPT); the interpreter gets one, since it cannot time any."""
    if _INTERPRETED:
        return [triton.Config({"BLOCK_ROWS": 32, "BLOCK_CENTROIDS": 32})]
    shapes = [(128, 128, 8, 3), (128, 256, 8, 3), (128, 64, 4, 4), (64, 128, 4, 4), (64, 64, 4, 4)]
    return [
        triton.Config({"BLOCK_ROWS": rows, "BLOCK_CENTROIDS": centroids}, num_warps=warps, num_stages=stages)
        for rows, centroids, warps, stages in shapes
    ]


@triton.autotune(configs=_configs(), key=["DIM", "KEPT"])  # type: ignore[untyped-decorator]  # triton is not typed
@triton.jit(do_not_specialize=["num_rows", "num_centroids", "num_splits", "num_candidates"])  # type: ignore[untyped-decorator]
def _search_kernel(
    rows_ptr: tl.tensor,
    centroids_ptr: tl.tensor,
    scores_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    num_rows: tl.tensor,
    num_centroids: tl.tensor,
    num_splits: tl.tensor,
    num_candidates: tl.tensor,
    DIM: tl.constexpr,
    KEPT: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CENTROIDS: tl.constexpr,
) -> None:
    """Rows [B, DIM] and centroids [K, DIM] float16 -> scores float32 and ids int32 [S, B, num_candidates]."""
    num_row_blocks = tl.cdiv(num_rows, BLOCK_ROWS)
    # programs that run at the same time read the same centroids, so that these stay in the L2 cache
    row_block = tl.program_id(0) % num_row_blocks
    split = tl.program_id(0) // num_row_blocks
    rows_B = row_block.to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns_T = tl.arange(0, BLOCK_CENTROIDS)
    slots_M = tl.arange(0, KEPT)
    dims_D = tl.arange(0, CHUNK)
    # beyond the end the last row and centroid are read again, and thrown away later: no masks in the inner loop
    row_BD = rows_ptr + tl.minimum(rows_B, num_rows - 1)[:, None] * DIM + dims_D[None, :]

    # a slot beyond num_candidates holds +inf: never the lowest, so never replaced
    empty_M = tl.where(slots_M < num_candidates, -float("inf"), float("inf"))
    kept_BM = tl.broadcast_to(empty_M[None, :], (BLOCK_ROWS, KEPT))
    ids_BM = tl.zeros((BLOCK_ROWS, KEPT), tl.int32)
    lowest_B = tl.min(kept_BM, axis=1)

    num_tiles = tl.cdiv(num_centroids, BLOCK_CENTROIDS)
    split_tiles = tl.cdiv(num_tiles, num_splits)
    for tile in range(split * split_tiles, tl.minimum((split + 1) * split_tiles, num_tiles)):
        centroids_T = tile * BLOCK_CENTROIDS + columns_T
        read_T = tl.minimum(centroids_T, num_centroids - 1).to(tl.int64)
        centroid_DT = centroids_ptr + read_T[None, :] * DIM + dims_D[:, None]
        scores_BT = tl.zeros((BLOCK_ROWS, BLOCK_CENTROIDS), tl.float32)
        for start in range(0, DIM, CHUNK):
            scores_BT = tl.dot(tl.load(row_BD + start), tl.load(centroid_DT + start), scores_BT)
        scores_BT = tl.where(centroids_T[None, :] < num_centroids, scores_BT, -float("inf"))

        # each turn puts every row's best of the tile in the place of its lowest kept one, until no row gains
        highest_B = tl.max(scores_BT, axis=1)
        while tl.max((highest_B > lowest_B).to(tl.int32), axis=0) > 0:
            column_B = tl.argmax(scores_BT, axis=1, tie_break_left=False)
            slot_B = tl.argmin(kept_BM, axis=1, tie_break_left=False)
            replaced_BM = (highest_B > lowest_B)[:, None] & (slots_M[None, :] == slot_B[:, None])
            kept_BM = tl.where(replaced_BM, highest_B[:, None], kept_BM)
            ids_BM = tl.where(replaced_BM, (tile * BLOCK_CENTROIDS + column_B)[:, None], ids_BM)
            scores_BT = tl.where(columns_T[None, :] == column_B[:, None], -float("inf"), scores_BT)
            highest_B = tl.max(scores_BT, axis=1)
            lowest_B = tl.min(kept_BM, axis=1)

    out_BM = (split.to(tl.int64) * num_rows + rows_B)[:, None] * num_candidates + slots_M[None, :]
    is_real_BM = (rows_B[:, None] < num_rows) & (slots_M[None, :] < num_candidates)
    tl.store(scores_ptr + out_BM, kept_BM, mask=is_real_BM)
    tl.store(ids_ptr + out_BM, ids_BM, mask=is_real_BM)
