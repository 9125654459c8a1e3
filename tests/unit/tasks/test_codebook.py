"""A codebook fitted to shards: the same bytes twice, one that hog_words takes, and a draw that can be told why."""

import json
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flows.command import command_parser, main
from mlcd_core.errors import ConfigError, DataError, TooFewRowsError
from mlcd_core.events import silent
from mlcd_core.identity import sha256_hex
from mlcd_core.images.digit_scenes import scene_parquet_bytes, scene_table
from mlcd_core.images.embedder import build_embedder, embedding_dim, find_weights
from mlcd_core.specs import EmbedSpec
from tasks.codebook import CodebookRequest, FittedCodebook, fit_codebook_file

ROWS = 250


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of scenes in row groups of 100 rows."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        (folder / f"{shard}.parquet").write_bytes(scene_parquet_bytes("train", shard, ROWS, 0))
    return folder


def request(data: Path, out: Path, **changes: object) -> CodebookRequest:
    sizes: dict[str, object] = {"num_images": 200, "num_words": 40, "dim": 16, "seed": 0, "image_size": 32}
    return CodebookRequest(data=str(data), out=str(out), **{**sizes, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> FittedCodebook:
    return fit_codebook_file(request(shards, tmp_path_factory.mktemp("fit") / "new" / "book.safetensors"), silent)


def test_the_file_is_described_and_is_a_codebook_of_hog_words(fitted: FittedCodebook) -> None:
    data = Path(fitted.path).read_bytes()
    assert (fitted.sha256, fitted.bytes) == (sha256_hex(data), len(data))
    assert (fitted.images, fitted.skipped) == (200, 0)
    spec = EmbedSpec()
    embedder = build_embedder(spec, weights=find_weights(spec, fitted.path), device="cpu")
    images_BCHW = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert embedder.encode(images_BCHW).shape == (3, 16)
    assert embedding_dim(spec, fitted.path) == 16
    assert list(Path(fitted.path).parent.iterdir()) == [Path(fitted.path)]


def test_the_same_request_gives_the_same_bytes_on_any_number_of_threads(
    shards: Path, fitted: FittedCodebook, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        again = fit_codebook_file(request(shards, tmp_path / "book.safetensors"), silent)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert again.sha256 == fitted.sha256


def test_another_seed_draws_other_images(shards: Path, fitted: FittedCodebook, tmp_path: Path) -> None:
    other = fit_codebook_file(request(shards, tmp_path / "book.safetensors", seed=1), silent)
    assert other.sha256 != fitted.sha256


def test_words_separate_digits_where_random_projections_do_not(shards: Path, fitted: FittedCodebook) -> None:
    """Rows that hold one digit alone: the nearest other row has the same digit far more often than by chance (.1)."""
    from mlcd_core.images.decode import decode_images

    table = scene_table("train", 5, 1_500, seed=3)
    single = [row for row, digits in enumerate(table["labels"].to_pylist()) if len(digits) == 1]
    images = [table["png"][row].as_py() for row in single]
    digits_N = np.array([table["labels"][row].as_py()[0] for row in single])
    pixels_BCHW = torch.from_numpy(decode_images(images, image_size=32, max_pixels=1024).pixels_BCHW)
    spec = EmbedSpec()
    features_ND = build_embedder(spec, weights=find_weights(spec, fitted.path), device="cpu").encode(pixels_BCHW)

    def hits(points_ND: torch.Tensor) -> float:
        unit_ND = torch.nn.functional.normalize(points_ND, dim=1)
        nearest_N = (unit_ND @ unit_ND.T).fill_diagonal_(-1).argmax(dim=1).numpy()
        return float((digits_N[nearest_N] == digits_N).mean())

    assert hits(torch.randn(features_ND.shape, generator=torch.Generator().manual_seed(0))) < 0.2
    assert hits(features_ND) > 0.5


def test_bad_images_are_skipped_and_counted(tmp_path: Path) -> None:
    good = scene_table("train", 0, 60, seed=0)["png"].to_pylist()
    images = [image for pair in zip(good, [None, b"<html>"] * 30, strict=True) for image in pair]
    pq.write_table(pa.table({"png": pa.array(images, pa.binary())}), tmp_path / "shard.parquet", row_group_size=20)
    made = fit_codebook_file(request(tmp_path / "shard.parquet", tmp_path / "book", num_images=500), silent)
    assert (made.images, made.skipped) == (60, 60)


def test_images_come_from_all_row_groups_and_few_of_each(tmp_path: Path) -> None:
    """Five groups of 40 rows, one of them bad: 80 images are 16 of each group, so 64 are left."""
    images = scene_table("train", 0, 160, seed=0)["png"].to_pylist()
    images[40:40] = [b"bad"] * 40
    pq.write_table(pa.table({"png": pa.array(images, pa.binary())}), tmp_path / "shard.parquet", row_group_size=40)
    seen: list[tuple[str, object]] = []
    asked = request(tmp_path / "shard.parquet", tmp_path / "book", num_images=80)
    made = fit_codebook_file(asked, lambda event, values: seen.append((event, values)))
    assert (made.images, made.skipped) == (64, 16)
    assert seen == [("codebook_images", {"images": 64, "skipped": 16})]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"num_words": 2_001}, TooFewRowsError, "2,001 words from 200 images.*at most 2,000 words"),
        ({"dim": 41}, ConfigError, "41 dims of 40 words"),
        ({"num_images": 0}, ConfigError, "expected 1 or more"),
        ({"seed": -1}, ConfigError, "--seed -1; expected 0 to 9223372036854775807"),
        ({"seed": 1 << 63}, ConfigError, "expected 0 to 9223372036854775807"),
    ],
)
def test_sizes_that_cannot_be_fitted_say_what_can(
    shards: Path, tmp_path: Path, changes: dict[str, object], error: type[Exception], said: str
) -> None:
    out = tmp_path / "book.safetensors"
    with pytest.raises(error, match=said):
        fit_codebook_file(request(shards, out, **changes), silent)
    assert not out.exists()


def test_data_without_a_usable_image_or_without_shapes_are_refused(tmp_path: Path) -> None:
    from mlcd_core.images.fit_hog_words import fit_codebook

    pq.write_table(pa.table({"png": pa.array([None, b"no"], pa.binary())}), tmp_path / "shard.parquet")
    with pytest.raises(DataError, match=r"no usable image in .*2 are bad"):
        fit_codebook_file(request(tmp_path / "shard.parquet", tmp_path / "book"), silent)
    with pytest.raises(DataError, match="of one colour"):
        fit_codebook(torch.full((20, 3, 32, 32), 9, dtype=torch.uint8), num_words=20, dim=4, seed=0)


@pytest.mark.parametrize("out", ["new/", "there", "there/", ".", "s3://bucket", "s3://bucket/", "s3://bucket/books/"])
def test_a_folder_is_refused_before_any_image_is_read(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["fit-codebook", "--data", "nothing-here.parquet", "--out", out])
    said = capsys.readouterr().err
    assert (ended.value.code, list(tmp_path.iterdir())) == (2, [tmp_path / "there"])
    assert "is a folder; expected the name of a file, such as" in said
    assert f"{out.rstrip('/.')}/book.safetensors" in said


def test_the_command_says_what_it_made_and_what_to_do_with_it(
    shards: Path, fitted: FittedCodebook, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = command_parser()
    out = tmp_path / "my book.safetensors"
    given = [
        "fit-codebook",
        "--data",
        str(shards),
        "--out",
        str(out),
        "--images",
        "200",
        "--words",
        "40",
        "--dim",
        "16",
    ]
    options = parser.parse_args([*given, "--json"])
    assert options.command(options) == 0
    printed = json.loads(capsys.readouterr().out)
    told = printed.pop("next")
    assert told.endswith(f"--set embed.image_size=32 --set embed.pretrained='{out}'")
    assert "image_column" not in told
    assert printed == {**vars(fitted), "path": str(out)}
    options = parser.parse_args(given)
    assert options.command(options) == 0
    text, progress = capsys.readouterr()
    assert fitted.sha256 in text
    assert "fitted to 200 images\n" in text
    assert progress == "fit-codebook: 200 images drawn; fitting\n"


def test_the_next_command_reads_the_same_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [*scene_table("train", 0, 60, seed=0)["png"].to_pylist(), b"bad"]
    pq.write_table(pa.table({"my $image": pa.array(images, pa.binary())}), tmp_path / "shard.parquet")
    sizes = ["--images", "100", "--words", "40", "--dim", "16", "--image-column", "my $image"]
    given = ["fit-codebook", "--data", str(tmp_path / "shard.parquet"), "--out", str(tmp_path / "book"), *sizes]
    options = command_parser().parse_args(given)
    assert options.command(options) == 0
    text, progress = capsys.readouterr()
    told = shlex.split(text.rpartition("next: ")[2])
    assert told[told.index("embed.image_column=my $image") - 1] == "--set"
    assert progress == "fit-codebook: 60 images drawn, 1 that cannot be decoded skipped; fitting\n"
