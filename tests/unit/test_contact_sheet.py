"""Contact sheets: which rows are shown, and that each picture stands where it belongs."""

import io

import numpy as np
from PIL import Image

from mlcd_core.contact_sheet import CAPTION, GAP, THUMB, SheetRow, contact_sheet_png, pick_rows

RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 220)


def encoded(color: tuple[int, int, int]) -> bytes:
    packed = io.BytesIO()
    Image.new("RGB", (20, 10), color).save(packed, "PNG")
    return packed.getvalue()


def center(sheet: Image.Image, row: int, column: int) -> np.ndarray:
    x = column * (THUMB + GAP) + THUMB // 2
    y = row * (CAPTION + THUMB + GAP) + CAPTION + THUMB // 2
    return np.array(sheet.convert("RGB").getpixel((x, y)))


def test_each_image_stands_in_its_row_and_column_and_a_bad_one_is_black() -> None:
    rows = [SheetRow("cluster 1", [encoded(RED), b"no image"]), SheetRow("cluster 22", [encoded(GREEN), encoded(BLUE)])]
    sheet = Image.open(io.BytesIO(contact_sheet_png(rows, max_pixels=1_000)))
    expected = [[RED, (0, 0, 0)], [GREEN, BLUE]]
    for row, colors in enumerate(expected):
        for column, color in enumerate(colors):
            assert np.abs(center(sheet, row, column) - color).max() < 16


def labels(*own: int) -> np.ndarray:
    """The first label as given, others that must not count."""
    return np.stack([np.array(own, np.int32), np.full(len(own), 7, np.int32)], axis=1)


def scores(*best: float) -> np.ndarray:
    return np.stack([np.array(best, np.float16), np.full(len(best), 0.99, np.float16)], axis=1)


def test_the_nearest_rows_of_a_cluster_come_first_and_unusable_rows_never() -> None:
    picked = pick_rows(labels(3, -1, 3, 5, 3), scores(0.2, 0.9, 0.8, 0.4, 0.5), clusters=9, columns=2, seed=0)
    assert picked == {3: [2, 4], 5: [3]}


def test_full_rows_are_drawn_before_others_and_by_chance_among_them() -> None:
    own = [cluster for cluster in range(10) for _ in range(3 if cluster < 6 else 1)]
    given = labels(*own), scores(*[0.5] * len(own))
    drawn = [tuple(pick_rows(*given, clusters=3, columns=3, seed=seed)) for seed in range(20)]
    assert all(set(clusters) <= set(range(6)) for clusters in drawn)
    assert len(set(drawn)) > 1
    assert pick_rows(*given, clusters=3, columns=3, seed=4) == pick_rows(*given, clusters=3, columns=3, seed=4)


def test_no_usable_row_gives_nothing() -> None:
    assert pick_rows(labels(-1, -1), scores(0, 0), clusters=3, columns=3, seed=0) == {}
