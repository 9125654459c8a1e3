"""The fused kernel, in Triton's interpreter (tests/conftest.py); tests/gpu runs the same checks on CUDA."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcd_core.errors import ConfigError
from mlcd_core.kmeans.triton_search import SPLIT_CENTROIDS, TritonSearch
from tests.unit.kmeans import oracle
from tests.unit.kmeans.search_checks import assert_sound, problem

REPO = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled here: tests/gpu has these checks"
)


@pytest.mark.parametrize("dim", [1, 7, 64, 96, 256, 768, 1024])
@pytest.mark.parametrize("kind", ["random", "duplicate", "tied", "constant"])
def test_any_dims_and_data_are_sound(kind, dim):
    points_ND, centroids_KD = problem(kind, 19, 70, dim)
    assert_sound(TritonSearch(torch.from_numpy(centroids_KD), "cpu"), points_ND, centroids_KD, 1)
    assert_sound(TritonSearch(torch.from_numpy(centroids_KD), "cpu", spare=13), points_ND, centroids_KD, 4)


@pytest.mark.parametrize("num_centroids", [1, 2, 16, 17, 31, 32, 33, 300])
@pytest.mark.parametrize("num_candidates", [1, 2, 16, 17])
def test_ragged_tiles_and_any_number_of_candidates_are_sound(num_centroids, num_candidates):
    points_ND, centroids_KD = problem("random", 33, num_centroids, 24)
    search = TritonSearch(torch.from_numpy(centroids_KD), "cpu", spare=num_candidates - 1)
    assert_sound(search, points_ND, centroids_KD, 1)


def test_splits_of_the_centroids_are_joined():
    points_ND, centroids_KD = problem("random", 9, 2 * SPLIT_CENTROIDS + 33, 16)
    search = TritonSearch(torch.from_numpy(centroids_KD), "cpu", spare=2)
    assert search._num_splits(len(points_ND)) == 2
    assert_sound(search, points_ND, centroids_KD, 3)


def test_ascending_scores_replace_every_candidate():
    angles_K = np.linspace(1.5, 0.1, 200)
    centroids_KD = oracle.on_grid(np.stack([np.cos(angles_K), np.sin(angles_K)], axis=1))
    points_ND = np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float16)
    search = TritonSearch(torch.from_numpy(centroids_KD), "cpu", spare=4)
    assert assert_sound(search, points_ND, centroids_KD, 3) == 1


def test_spread_rows_are_settled_by_one_spare_candidate():
    points_ND, centroids_KD = problem("random", 40, 200, 64)
    assert assert_sound(TritonSearch(torch.from_numpy(centroids_KD), "cpu"), points_ND, centroids_KD, 1) > 0.9


@st.composite
def crowded_problems(draw):
    """Few directions on a coarse lattice: duplicates, exact ties and near ties everywhere."""
    dim = draw(st.integers(1, 6))
    vector = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim).filter(any)
    points = draw(st.lists(vector, min_size=1, max_size=20))
    centroids = draw(st.lists(vector, min_size=1, max_size=70))
    return oracle.normalised_rows(points), oracle.on_grid(np.array(centroids, dtype=np.float64))


@settings(max_examples=40, deadline=None)
@given(crowded_problems(), st.data())
def test_no_centroid_left_out_exceeds_the_ceiling(crowded, data):
    points_ND, centroids_KD = crowded
    num_labels = data.draw(st.integers(1, len(centroids_KD)))
    search = TritonSearch(torch.from_numpy(centroids_KD), "cpu", spare=data.draw(st.integers(0, 20)))
    assert_sound(search, points_ND, centroids_KD, num_labels)


def test_no_rows_get_empty_lists():
    points_ND, centroids_KD = problem("random", 1, 40, 8)
    assert_sound(TritonSearch(torch.from_numpy(centroids_KD), "cpu"), points_ND[:0], centroids_KD, 2)


def test_a_device_triton_cannot_use_is_an_error_with_the_fix():
    with pytest.raises(ConfigError, match=r"cannot run on cuda.*expected cpu: take the torch search"):
        TritonSearch(torch.eye(4), "cuda")


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mlcd_core.kmeans.triton_search import DIM_CHUNK, _search_kernel

kernel = _search_kernel.fn
pointers = dict(rows_ptr="*fp16", centroids_ptr="*fp16", scores_ptr="*fp32", ids_ptr="*i32")
counts = dict.fromkeys(("num_rows", "num_centroids", "num_splits", "num_candidates"), "i32")
config = _search_kernel.configs[0]
for processor, kept, instruction, shared_bytes in ((80, 2, "mma.sync", 163 * 2**10), (90, 32, "wgmma", 227 * 2**10)):
    constants = dict(DIM=768, KEPT=kept, CHUNK=DIM_CHUNK, **config.kwargs)
    signature = {**pointers, **counts, **dict.fromkeys(constants, "constexpr")}
    aligned = {(number,): [["tt.divisibility", 16]] for number in range(len(pointers))}
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", processor, 32),
        options=dict(num_warps=config.num_warps, num_stages=config.num_stages, enable_fp_fusion=True),
    )
    assert instruction in compiled.asm["ptx"], "no tensor cores"
    assert compiled.metadata.shared <= shared_bytes, compiled.metadata.shared
"""


def test_the_kernel_compiles_for_gpus_that_are_not_here(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
