"""Adopted embeddings: joined by key from both layouts, verified, and never a row more or less than the data has."""

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlcd_core.errors import ConfigError, DataError, StageFailedError
from mlcd_core.images.adopted import adopted_digest, check_adopted, open_adopted
from mlcd_core.specs import EmbedSpec
from mlcd_core.tables import RowStatus

SPEC = EmbedSpec(embedder="adopted")
DIM = 6
OK, NO_VECTOR, NOT_FINITE = RowStatus.OK, RowStatus.NO_VECTOR, RowStatus.NOT_FINITE


def vectors_of(keys, dtype=np.float32, seed=0):
    """A vector per key that depends on the key alone, of lengths far from 1."""
    rows = [np.random.default_rng([seed, *key.encode()]).standard_normal(DIM) * 7 for key in keys]
    return np.array(rows, dtype).reshape(-1, DIM)


def write_npy(folder, number, keys, vectors=None, column="image_path", row_group_size=3):
    """One number of the layout of clip-retrieval."""
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    vectors_ND = vectors_of(keys) if vectors is None else vectors
    np.save(folder / "img_emb" / f"img_emb_{number}.npy", vectors_ND)
    table = pa.table({column: keys, "caption": ["" for _ in keys]})
    pq.write_table(table, folder / "metadata" / f"metadata_{number}.parquet", row_group_size=row_group_size)
    return folder


def write_parquet(path, keys, lists, row_group_size=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"key": keys, "clip": lists}), path, row_group_size=row_group_size)
    return path.parent


def lists_of(vectors_ND, kind):
    values = pa.array(vectors_ND.reshape(-1))
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(values, DIM)
    offsets = pa.array(range(0, len(values) + 1, DIM), pa.int32() if kind == "list" else pa.int64())
    return (pa.ListArray if kind == "list" else pa.LargeListArray).from_arrays(offsets, values)


def expected_rows(keys, there, dtype=np.float32):
    """The oracle: a dictionary, Python's own arithmetic, and one rounding."""
    by_key = {key: vectors_of([key], dtype)[0].tolist() for key in there}
    rows = []
    for key in keys:
        vector = by_key.get(key, [0.0] * DIM)
        length = sum(x * x for x in vector) ** 0.5 or 1.0
        rows.append([np.float16(x / length) for x in vector])
    return np.array(rows)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", ["npy", "fixed", "list", "large_list"])
def test_vectors_are_joined_by_key_whatever_their_order_and_file(tmp_path: Path, kind: str, dtype: type) -> None:
    keys = [f"{i:09d}" if i % 3 else f"é/{i}.jpg" for i in range(40)]
    dealt = [keys[part::3][::-1] for part in range(3)]  # as clip-retrieval deals rows out, and reversed
    for number, part in enumerate(dealt):
        if kind == "npy":
            write_npy(tmp_path, number, part, vectors_of(part, dtype))
        else:
            write_parquet(tmp_path / f"{number}.parquet", part, lists_of(vectors_of(part, dtype), kind))
    adopted = open_adopted(SPEC, str(tmp_path))
    assert adopted.dim == DIM
    asked = [*keys[5:20], "nobody", *keys[:3], keys[0], ""]
    found = adopted.lookup(asked)
    assert found.embeddings_ND.dtype == np.float16
    assert found.status_N.tolist() == [OK if key in keys else NO_VECTOR for key in asked]
    np.testing.assert_array_equal(found.embeddings_ND, expected_rows(asked, keys, dtype))


def test_rows_that_are_no_vector_keep_their_place_with_a_status(tmp_path: Path) -> None:
    vectors_ND = vectors_of(list("abcdef"))
    vectors_ND[1, 2], vectors_ND[2, 0], vectors_ND[4] = np.nan, np.inf, 0
    write_npy(tmp_path, 0, list("abcdef"), vectors_ND)
    found = open_adopted(SPEC, str(tmp_path)).lookup(list("fedcba"))
    assert found.status_N.tolist() == [OK, NOT_FINITE, OK, NOT_FINITE, NOT_FINITE, OK]
    assert not found.embeddings_ND[found.status_N != OK].any()


def test_null_vectors_and_null_keys_of_parquet_are_no_vectors(tmp_path: Path) -> None:
    lists = pa.array([[1.0, 0.0], None, [2.0, None], [3.0, 4.0]], pa.list_(pa.float32(), 2))
    write_parquet(tmp_path / "a.parquet", ["a", "b", "c", None], lists, row_group_size=2)
    found = open_adopted(SPEC, str(tmp_path)).lookup(["a", "b", "c", "d"])
    assert found.status_N.tolist() == [OK, NO_VECTOR, NOT_FINITE, NO_VECTOR]
    assert found.embeddings_ND.tolist() == [[1, 0], [0, 0], [0, 0], [0, 0]]


def test_nothing_asked_and_empty_files_are_fine(tmp_path: Path) -> None:
    write_npy(tmp_path, 0, pa.array([], pa.string()), np.zeros((0, DIM), np.float32))
    write_npy(tmp_path, 1, ["a"])
    adopted = open_adopted(SPEC, str(tmp_path))
    assert adopted.lookup([]).embeddings_ND.shape == (0, DIM)
    assert adopted.lookup(["a"]).status_N.tolist() == [OK]


def test_the_key_column_of_the_data_is_preferred(tmp_path: Path) -> None:
    write_npy(tmp_path, 0, ["right"], column="uid")
    path = tmp_path / "metadata" / "metadata_0.parquet"
    pq.write_table(pq.read_table(path).append_column("key", pa.array(["wrong"])), path)
    by_uid = open_adopted(EmbedSpec(embedder="adopted", key_column="uid"), str(tmp_path))
    assert by_uid.lookup(["right", "wrong"]).status_N.tolist() == [OK, NO_VECTOR]


def test_numbers_as_keys_read_as_their_digits(tmp_path: Path) -> None:
    write_npy(tmp_path, 0, [17, 4], vectors_of(["17", "4"]), column="key")
    found = open_adopted(SPEC, str(tmp_path)).lookup(["4", "17"])
    np.testing.assert_array_equal(found.embeddings_ND, expected_rows(["4", "17"], ["4", "17"]))


def test_a_key_twice_is_fine_with_one_vector_and_refused_with_two(tmp_path: Path) -> None:
    write_npy(tmp_path, 0, ["a", "b"])
    write_npy(tmp_path, 1, ["c", "a"])
    assert open_adopted(SPEC, str(tmp_path)).lookup(["a"]).status_N.tolist() == [OK]
    write_npy(tmp_path, 1, ["c", "a"], vectors_of(["c", "a"], seed=1))
    with pytest.raises(DataError, match=r"key 'a' has two different vectors: row 0 of .*_0.npy and row 1 of .*_1.npy"):
        open_adopted(SPEC, str(tmp_path))


def test_digest_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    first = write_npy(tmp_path / "first", 0, ["a", "b"])
    write_npy(first, 1, ["c"])
    memo = tmp_path / "memo.sqlite"
    before = adopted_digest(str(first), memo=memo)
    moved = first.rename(tmp_path / "moved")
    assert adopted_digest(str(moved), memo=memo) == before
    assert adopted_digest(str(moved / "img_emb" / "*.npy"), memo=memo) == before
    assert adopted_digest(str(moved / "img_emb"), memo=memo) == before
    for path in (moved / "img_emb" / "img_emb_1.npy", moved / "metadata" / "metadata_0.parquet"):
        data = bytearray(path.read_bytes())
        data[-9] ^= 1
        path.write_bytes(data)
        assert adopted_digest(str(moved), memo=memo) != before
        before = adopted_digest(str(moved), memo=memo)


def test_vectors_that_changed_since_they_were_planned_are_refused(tmp_path: Path) -> None:
    write_npy(tmp_path, 0, ["a"])
    planned = SPEC.model_copy(update={"weights_sha256": adopted_digest(str(tmp_path))})
    assert open_adopted(planned, str(tmp_path)).lookup(["a"]).status_N.tolist() == [OK]
    write_npy(tmp_path, 0, ["a", "b"])
    with pytest.raises(ConfigError, match="they changed"):
        open_adopted(planned, str(tmp_path))


def test_what_there_is_to_adopt_is_told_from_headers_and_a_sample(tmp_path: Path) -> None:
    write_npy(tmp_path, 0, ["a", "b"], np.array([[3, 4], [6, 8]], np.float16))
    write_npy(tmp_path, 1, ["c"], np.array([[0, 1]], np.float16))
    source = check_adopted(str(tmp_path), keys=["x", "c"])
    assert (source.files, source.rows, source.dim, source.norms) == (2, 3, 2, (5.0, 10.0))


def broken(folder: Path, how: str) -> str:
    """Vectors that must be refused; returns embed.vectors."""
    write_npy(folder, 0, ["a", "b", "c"])
    npy, keys = folder / "img_emb" / "img_emb_1.npy", folder / "metadata" / "metadata_1.parquet"
    if how == "counts":
        write_npy(folder, 1, ["d", "e"], vectors_of(["d"]))
    elif how == "dims":
        write_npy(folder, 1, ["d"], np.ones((1, DIM + 1), np.float32))
    elif how == "no keys":
        np.save(npy, vectors_of(["d"]))
    elif how == "no vectors":
        pq.write_table(pa.table({"key": ["d"]}), keys)
    elif how == "objects":
        write_npy(folder, 1, ["d"])
        with npy.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1, 1)})
            file.write(b"what a reader would have to trust")
    elif how == "whole numbers":
        write_npy(folder, 1, ["d"], np.ones((1, DIM), np.int64))
    elif how == "cut":
        write_npy(folder, 1, ["d"])
        npy.write_bytes(npy.read_bytes()[:-1])
    elif how == "no key column":
        write_npy(folder, 1, ["d"], column="name")
    elif how == "not parquet":
        write_npy(folder, 1, ["d"])
        keys.write_bytes(b"no Parquet")
    elif how == "mixed":
        (folder / "img_emb" / "readme.txt").write_text("x")
        return str(folder / "img_emb" / "*")
    return str(folder)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("counts", r"_1.npy has 1 vectors, .*_1.parquet 2 keys"),
        ("dims", r"_1.npy has vectors of 7 dims, .*_0.npy of 6"),
        ("no keys", r"metadata_1.parquet is missing"),
        ("no vectors", r"has 1 .npy files, .*metadata 2 .parquet files"),
        ("objects", r"is not a whole .npy file of numbers"),
        ("whole numbers", r"holds int64 of shape \(1, 6\); expected floats"),
        ("cut", r"is not a whole .npy file"),
        ("no key column", r"no key column key or image_path; its columns are name \(string\)"),
        ("not parquet", r"cannot be read as Parquet"),
        ("mixed", r"names files of .npy, .txt; expected"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, how: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        check_adopted(broken(tmp_path, how))


@pytest.mark.parametrize(("vectors", "said"), [("", "set embed.vectors"), ("s3://bucket/x", "copy them to a disk")])
def test_an_address_that_cannot_be_meant_is_a_config_error(vectors: str, said: str) -> None:
    for ask in (adopted_digest, check_adopted):
        with pytest.raises(ConfigError, match=said):
            ask(vectors)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"key": ["a"], "x": [1.5]}, r"no vector column \(a list of floats\); its columns are key \(string\), x"),
        ({"key": ["a"], "x": [[1.5]], "y": [[2.5]]}, r"x, y are all lists of floats: name one of them embedding"),
        ({"name": ["a"], "x": [[1.5]]}, r"no key column"),
        ({"key": ["a"], "x": pa.array([None], pa.list_(pa.float32()))}, r"hold no vector at all"),
    ],
)
def test_parquet_without_its_two_columns_is_refused(tmp_path: Path, columns: dict, said: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=said):
        check_adopted(str(tmp_path))


def test_of_several_vector_columns_embedding_is_taken(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"], "other": [[9.0]], "embedding": [[3.0, 4.0]]}), tmp_path / "a.parquet")
    found = open_adopted(SPEC, str(tmp_path)).lookup(["a"])
    np.testing.assert_array_equal(found.embeddings_ND, np.array([[0.6, 0.8]], np.float16))


def test_a_vector_of_other_dims_deep_in_a_file_is_refused_when_it_is_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", list("abcd"), [[1.0, 2.0], [1.0, 2.0], None, [1.0, 2.0, 3.0]])
    adopted = open_adopted(SPEC, str(tmp_path))
    assert adopted.lookup(["a", "b", "c"]).status_N.tolist() == [OK, OK, NO_VECTOR]
    with pytest.raises(StageFailedError, match=r"vector at row 0 of row group 1 of .* has 3 dims, others have 2"):
        adopted.lookup(["d"])


def test_data_and_vectors_without_a_common_key_show_some_of_both(tmp_path: Path) -> None:
    write_npy(tmp_path, 0, ["a", "b"])
    with pytest.raises(DataError, match=r"the data has 1.jpg, 2.jpg; the vectors have a, b; set embed.key_column"):
        check_adopted(str(tmp_path), keys=["1.jpg", "2.jpg"])


def test_the_index_needs_few_bytes_a_key(tmp_path: Path) -> None:
    keys = [f"{i:024d}" for i in range(100_000)]
    write_npy(tmp_path, 0, keys, np.ones((len(keys), 2), np.float16), row_group_size=30_000)
    tracemalloc.start()
    adopted = open_adopted(SPEC, str(tmp_path))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert adopted.lookup(keys[:5]).status_N.tolist() == [OK] * 5
    assert held < 30 * len(keys)
