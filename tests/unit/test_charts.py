"""Pictures are small, repeatable and show what they were given."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from mlcd_core.charts import COLORS, HEIGHT, WIDTH, _edges, curves_png, data_uri, histogram_png


def pixels(png):
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def has_color(png, color):
    """Whether some pixels are close to the colour; the palette moves it a little."""
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(pixels(png).astype(int) - wanted).max(axis=2) < 12).sum() > 20


def noisy_curves(num_series=7, num_points=2000):
    rng = np.random.default_rng(0)
    return {
        f"arm {i}": [(x, float(3 * np.exp(-x / 400) + i + rng.normal())) for x in range(num_points)]
        for i in range(num_series)
    }


def histogram(values, **kwargs):
    return histogram_png(values, title="Rows per cluster", x_label="rows", **kwargs)


def curves(series):
    return curves_png(series, title="Loss", x_label="step", y_label="loss")


@pytest.mark.parametrize(
    "draw",
    [lambda: histogram(np.random.default_rng(0).normal(size=100_000), bins=200), lambda: curves(noisy_curves())],
    ids=["histogram", "curves"],
)
def test_pictures_are_small_pngs_of_the_stated_size(draw):
    png = draw()
    assert len(png) <= 30_000
    with Image.open(io.BytesIO(png)) as picture:
        assert (picture.format, picture.size) == ("PNG", (WIDTH, HEIGHT))
        assert not set(picture.info) & {"Software", "date", "Creation Time"}


def test_equal_values_give_equal_bytes():
    series = noisy_curves(3, 200)
    assert curves(series) == curves(series)
    assert histogram([1, 2, 2, 5]) == histogram(np.array([1, 2, 2, 5]))
    assert histogram([1, 2, 2, 5]) != histogram([1, 2, 5, 5])


def test_every_curve_has_its_own_color():
    png = curves({name: [(0, i), (1, i)] for i, name in enumerate("abcdef")})
    assert all(has_color(png, color) for color in COLORS[:6])
    assert not has_color(curves({"a": [(0, 0), (1, 1)]}), COLORS[1])


@pytest.mark.parametrize("values", [[], [np.nan]])
def test_a_histogram_of_nothing_is_an_empty_picture(values):
    assert not has_color(histogram(values), COLORS[0])


@pytest.mark.parametrize("series", [{}, {"a": [], "b": [(0, np.nan)]}])
def test_curves_without_points_are_an_empty_picture(series):
    assert not has_color(curves(series), COLORS[0])


def test_values_that_are_not_finite_leave_the_rest_visible():
    assert has_color(histogram([1.0, np.nan, np.inf, 2.0]), COLORS[0])
    assert has_color(curves({"a": [(0, 1.0), (1, np.nan), (2, 3.0), (3, 4.0)]}), COLORS[0])


def test_text_from_data_is_taken_as_it_is():
    png = curves_png({"$r=1$ \\frac": [(0, 1)], "$_$": [(1, 1)]}, title="$\\bad{", x_label="$x", y_label="y_$")
    assert pixels(png).shape == (HEIGHT, WIDTH, 3)
    long = histogram_png([1, 2], title="a long title " * 40, x_label="rows")
    assert pixels(long).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    "values", [[3.0, 3.0], [1.0, 1.0 + 2e-16], [0.5], [0.1, 0.1 + 1e-17, 0.1 + 2e-17], [1e9, 1e9 + 1e-7], [0, 10**12]]
)
def test_values_that_are_close_or_far_are_all_counted(values):
    values = np.array(values, dtype=np.float64)
    counts, _ = np.histogram(values, bins=_edges(values, 40))
    assert counts.sum() == len(values)
    assert has_color(histogram(values), COLORS[0])


def test_counts_are_binned_by_whole_numbers():
    counts, edges = np.histogram(np.arange(100), bins=_edges(np.arange(100, dtype=np.float64), 40))
    assert set(np.diff(edges)) == {3.0}
    assert set(counts[:-1]) == {3}


def test_data_uri_holds_the_picture():
    png = histogram([1, 2, 3])
    head, _, body = data_uri(png).partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body) == png
