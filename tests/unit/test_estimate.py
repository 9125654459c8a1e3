"""The cost of clustering, against numbers worked out by hand."""

import pytest

from mlcd_core.errors import ConfigError
from mlcd_core.estimate import estimate_clustering
from mlcd_core.images.embedder import embedding_dim
from mlcd_core.specs import EmbedSpec

# 400 million rows of 768 dims to a million centroids: 2 * 4e8 * 1e6 * 768 = 6.144e17
BIG = estimate_clustering(
    num_rows=400_000_000, dim=768, num_centroids=1_000_000, iterations=20, num_labels=10, workers=80
)
DEVICES = {(device.kind, device.count): device for device in BIG.devices}


def test_operations_are_two_per_row_centroid_and_dim() -> None:
    assert BIG.iteration_flop == BIG.labels_flop == 614_400_000_000_000_000
    assert BIG.total_flop == 21 * BIG.iteration_flop


def test_bytes_of_rows_centroids_and_sums() -> None:
    assert BIG.rows_bytes == 614_400_000_000
    assert BIG.centroids_bytes == 3_072_000_000
    assert BIG.sums_bytes == 6_144_000_000


def test_disk_holds_the_rows_with_their_keys_and_six_bytes_per_label() -> None:
    # beside 1,536 bytes of vector: row 8, key 23, status 1; beside 60 bytes of labels: row 8, key 23
    assert BIG.embeddings_disk_bytes == 400_000_000 * 1568
    assert BIG.labels_disk_bytes == 400_000_000 * 91
    assert BIG.links_disk_bytes == 2 * (3_072_000_000 + 6_144_000_000)


@pytest.mark.parametrize(
    ("kind", "count", "seconds"),
    [
        # 6.144e17 / (0.6 * peak * count)
        ("V100", 1, 8192.0),
        ("V100", 8, 1024.0),
        ("A100", 1, 3282.05),
        ("A100", 80, 41.0256),
        ("H100/H200", 8, 129.424),
        ("H100/H200", 80, 12.9424),
        ("CPU core", 2, 6_144_000.0),  # 71 days
    ],
)
def test_time_is_operations_over_a_share_of_the_peak(kind: str, count: int, seconds: float) -> None:
    device = DEVICES[kind, count]
    assert device.iteration_s == pytest.approx(seconds, rel=1e-5)
    assert device.total_h == pytest.approx(21 * seconds / 3600, rel=1e-5)


def test_memory_of_a_worker_counts_its_own_rows_and_all_centroids() -> None:
    on_cpu, on_gpu = BIG.worker_memory
    for memory in (on_cpu, on_gpu):
        assert memory.total_bytes == sum(memory.items.values())
        assert memory.items["centroids"] == 3_072_000_000
        assert memory.items["labels"] == 5_000_000 * 4  # 400 million rows on 80 workers
    assert on_gpu.items["rows"] == 5_000_000 * 768 * 2
    assert "rows" not in on_cpu.items  # mapped files


def test_pinned_centroids_cost_one_assignment() -> None:
    pinned = estimate_clustering(num_rows=1000, dim=8, num_centroids=10, iterations=0, num_labels=2, workers=1)
    assert pinned.total_flop == pinned.labels_flop == 160_000
    assert pinned.links_disk_bytes == 0


def test_dims_are_known_without_reading_weights() -> None:
    assert embedding_dim(EmbedSpec(), "") == 128
    assert embedding_dim(EmbedSpec(embedder="open_clip", architecture="ViT-L-14-quickgelu"), "openai") == 768
    with pytest.raises(ConfigError, match="did you mean ViT-L-14"):
        embedding_dim(EmbedSpec(embedder="open_clip", architecture="VIT-L-14"), "openai")
