"""The bare loop that embed is measured against embeds every image, and its rate leaves the start out."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional
from torchvision.transforms.functional import InterpolationMode

from benchmarks.embed_bare import Loop, Piece, Split, bare_loop, plain_pixels
from mlcd_core.images.digit_scenes import scene_table
from mlcd_core.images.embedder import build_embedder, find_weights
from mlcd_core.specs import EmbedSpec

SPEC = EmbedSpec(batch_rows=24)


def embedded_alone(embedder, image):
    """One image by itself, divided by its norm in float64."""
    pixels_HWC = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    features_D = embedder.encode(torch.from_numpy(pixels_HWC.transpose(2, 0, 1).copy())[None])[0].double().numpy()
    return features_D / np.sqrt((features_D**2).sum())


def loop_of(*pieces):
    return Loop(np.zeros((0, 1)), list(pieces))


def test_between_ends_counts_whole_pieces_after_the_first():
    loop = loop_of(Piece(10, 14, 100), Piece(0, 10, 100), Piece(9, 12, 100))
    assert loop.between_ends() == 200 / 4


def test_a_steady_rate_leaves_out_what_was_done_before_every_process_had_ended_a_piece():
    first = [Piece(0, 10, 100, process=1), Piece(8, 12, 100, process=2)]
    # of these, all, a half and a quarter are after 12
    after = [Piece(12, 20, 100, process=1), Piece(8, 16, 100, process=2), Piece(0, 16, 100, process=2)]
    assert loop_of(*first, *after).steady() == (100 + 50 + 25) / (20 - 12)


def test_the_rate_of_a_loop_without_overlap_is_the_same_both_ways():
    loop = loop_of(*[Piece(second, second + 1, 7) for second in range(5)])
    assert loop.steady() == loop.between_ends() == 7


@pytest.mark.parametrize("split", [Split(1, 1, "ahead"), Split(2, 2, "in turns"), Split(2, 1, "side by side")], ids=str)
def test_every_split_of_the_threads_embeds_all_images_in_order(tmp_path, split):
    shards = [scene_table("train", shard, 30, 0).rename_columns(["key", "jpg", "labels"]) for shard in range(2)]
    paths = [str(tmp_path / f"{number}.parquet") for number in range(len(shards))]
    for path, shard in zip(paths, shards, strict=True):
        pq.write_table(shard, path, row_group_size=13)
    threads = torch.get_num_threads()
    try:
        loop = bare_loop(paths, SPEC, "", split)
    finally:
        torch.set_num_threads(threads)
    embedder = build_embedder(SPEC, weights=find_weights(SPEC, ""), device="cpu")
    expected_ND = [embedded_alone(embedder, image) for image in pa.concat_tables(shards)["jpg"].to_pylist()]
    # of unit rows: 2^-11 is half a unit in the last place of float16 near 1
    np.testing.assert_allclose(loop.embeddings_ND, np.stack(expected_ND), rtol=0, atol=2**-11)
    assert sum(piece.images for piece in loop.pieces) == len(expected_ND)


@pytest.mark.parametrize("size", [(90, 120), (301, 77), (32, 32), (33, 500)])
def test_its_pixels_are_those_of_torchvision(size):
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels_HWC).save(sink, "PNG")
    resized = functional.resize(Image.fromarray(pixels_HWC), 32, InterpolationMode.BICUBIC)
    np.testing.assert_array_equal(plain_pixels(sink.getvalue(), 32), functional.center_crop(resized, [32, 32]))
