"""One shard to one table: every row accounted for, unit float16 vectors, the same bytes again."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch

from mlcd_core.errors import CorruptRecordError, DataError
from mlcd_core.images.digit_scenes import scene_table
from mlcd_core.images.embed_shard import ImageBatch, embed_batches, embedding_table, ipc_bytes, read_ipc
from mlcd_core.images.embedder import build_embedder, find_weights
from mlcd_core.images.one_at_a_time import OneAtATime
from mlcd_core.specs import EmbedSpec
from mlcd_core.stopwatch import Stopwatch
from mlcd_core.tables import RowStatus, embedding_schema

SPEC = EmbedSpec(batch_rows=8)


class MeanColour:
    """An embedder small enough to check by hand; ``odd`` replaces chosen rows of the first batch."""

    fingerprint = "mean-colour"
    dim = 3
    image_size = 32

    def __init__(self, odd=None):
        self.odd = odd or {}
        self.batches = []

    def encode(self, images_BCHW):
        self.batches.append(len(images_BCHW))
        features = images_BCHW.float().mean(dim=(2, 3)) + 1
        for row, value in self.odd.items():
            features[row] = value
        return features


def embed(images, *, embedder, pool=None, captions=None, watch=None):
    """In batches of eight."""
    firsts = range(0, len(images), SPEC.batch_rows)
    batches = [ImageBatch(images[i : i + 8], captions and captions[i : i + 8]) for i in firsts]
    return embed_batches(batches, embedder=embedder, spec=SPEC, pool=pool, watch=watch)


@pytest.fixture(scope="module")
def images():
    return scene_table("train", 0, 20, seed=0)["png"].to_pylist()


def test_rows_are_read_in_fixed_batches(images):
    embedder = MeanColour()
    done = embed(images, embedder=embedder, pool=None)
    assert embedder.batches == [8, 8, 4]
    assert done.embeddings_ND.shape == (20, 3)
    assert not done.status_N.any()


def test_vectors_are_normalised_before_they_are_rounded(images):
    done = embed(images, embedder=MeanColour(), pool=None)
    assert done.embeddings_ND.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(done.embeddings_ND.astype(float), axis=1), 1, atol=1e-3)


def test_bad_images_keep_their_row_with_a_zero_vector(images):
    mixed = [None, images[0], b"<html>", images[1][:-100], images[1]]
    done = embed(mixed, embedder=MeanColour(), pool=None)
    assert done.status_N.tolist() == [1, 0, 3, 4, 0]
    assert not done.embeddings_ND[[0, 2, 3]].any()
    assert done.embeddings_ND[[1, 4]].any(axis=1).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, 1e30])
def test_vectors_that_cannot_be_normalised_are_not_finite(images, value):
    done = embed(images[:4], embedder=MeanColour({2: value}), pool=None)
    assert done.status_N.tolist() == [0, 0, RowStatus.NOT_FINITE, 0]
    assert not done.embeddings_ND[2].any()


def test_a_bad_image_keeps_its_first_status():
    done = embed([None], embedder=MeanColour({0: float("nan")}), pool=None)
    assert done.status_N.tolist() == [RowStatus.NULL_BYTES]


def test_an_empty_shard_gives_an_empty_table():
    done = embed([], embedder=MeanColour(), pool=None)
    table = embedding_table([], [], done.status_N, done.embeddings_ND)
    assert read_ipc(ipc_bytes(table)).num_rows == 0


def test_threads_give_the_same_bytes(images):
    embedder = build_embedder(SPEC, weights=find_weights(SPEC, ""), device="cpu")
    alone = embed(images, embedder=embedder, pool=None)
    with ThreadPoolExecutor(3) as pool:
        together = embed(images, embedder=embedder, pool=pool)
    assert alone.embeddings_ND.tobytes() == together.embeddings_ND.tobytes()


class Clock:
    """A second passes with each look."""

    def __init__(self):
        self.time = 0

    def __call__(self):
        self.time += 1
        return self.time


def test_the_seconds_that_were_waited_for_each_phase_are_kept(images):
    watch = Stopwatch(Clock())
    embed(images, embedder=MeanColour(), watch=watch)
    assert set(watch.seconds) == {"read", "decode", "model"}
    assert watch.seconds["model"] >= 3  # a look before and one after, three batches; others look too
    assert min(watch.seconds.values()) > 0


def test_what_cannot_be_read_is_raised_after_the_batches_before_it(images):
    def broken():
        yield ImageBatch(images[:8])
        raise DataError("row group 1 cannot be read")

    embedder = MeanColour()
    with pytest.raises(DataError, match="row group 1"):
        embed_batches(broken(), embedder=embedder, spec=SPEC)
    assert embedder.batches == [8]


def test_batches_are_read_no_further_ahead_than_one(images):
    begun = []

    def counted():
        for number in range(4):
            begun.append(number)
            yield ImageBatch(images[:2])

    class Watching(MeanColour):
        def encode(self, images_BCHW):
            assert len(begun) <= len(self.batches) + 2
            return super().encode(images_BCHW)

    embed_batches(counted(), embedder=Watching(), spec=SPEC)
    assert begun == [0, 1, 2, 3]


def test_threads_that_share_an_embedder_use_it_in_turns(images):
    """And always from the same thread, that also built it."""
    used = []

    class Noting(MeanColour):
        def encode(self, images_BCHW):
            used.append(threading.get_ident())
            return super().encode(images_BCHW)

    def build():
        used.append(threading.get_ident())
        return Noting()

    shared = OneAtATime(build)
    with ThreadPoolExecutor(2) as units:
        halves = [units.submit(embed, part, embedder=shared) for part in (images[:10], images[10:])]
        together = [half.result().embeddings_ND for half in halves]
    assert len(set(used)) == 1
    assert len(used) == 5
    alone = embed(images, embedder=MeanColour()).embeddings_ND
    np.testing.assert_array_equal(np.concatenate(together), alone)


def test_an_error_of_a_shared_embedder_reaches_its_caller(images):
    class Broken(MeanColour):
        def encode(self, images_BCHW):
            raise torch.cuda.OutOfMemoryError("no room")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        embed(images, embedder=OneAtATime(Broken))


def test_an_error_of_the_encoder_is_not_swallowed(images):
    class Broken(MeanColour):
        def encode(self, images_BCHW):
            raise torch.cuda.OutOfMemoryError(f"no room for {len(images_BCHW)} images")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        embed(images, embedder=Broken(), pool=None)


def made_table(rows=20_000, dim=4):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((rows, dim)).astype(np.float16)
    return embedding_table(np.arange(rows), [f"k{i}" for i in range(rows)], np.zeros(rows, np.int8), vectors), vectors


def test_table_round_trips_through_ipc():
    table, vectors = made_table()
    back = read_ipc(ipc_bytes(table))
    assert back.schema == embedding_schema(4)
    assert back.equals(table)
    flat = back["embedding"].combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(flat.reshape(-1, 4), vectors)


def test_ipc_bytes_do_not_depend_on_chunks():
    table, _ = made_table()
    pieces = pa.concat_tables([table.slice(0, 777), table.slice(777, 9_000), table.slice(9_777)])
    assert ipc_bytes(pieces) == ipc_bytes(table)


def test_record_batches_have_8192_rows():
    table, _ = made_table()
    reader = pa.ipc.open_file(pa.BufferReader(ipc_bytes(table)))
    assert [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)] == [8_192, 8_192, 3_616]


@pytest.mark.parametrize("cut", [0, 5, 1_000])
def test_a_short_file_is_corrupt(cut):
    with pytest.raises(CorruptRecordError, match="make its unit again"):
        read_ipc(ipc_bytes(made_table()[0])[:cut])
