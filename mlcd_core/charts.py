"""Small PNG pictures for artifacts and reports: a histogram, or curves, of 640 x 300 pixels.

Drawn with matplotlib's object interface (no pyplot, so no global state) and stored with a palette of 64 colours, which
keeps a picture of seven noisy curves at 20 KB. The file holds no date and no version: equal values give equal bytes on
one installation.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT, DPI = 640, 300, 100
# Okabe and Ito (2008): told apart with any common colour blindness; dashes tell them apart in grey too
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
_PALETTE_COLORS = 64
_MARKED_POINTS = 40
_LEGEND_CHARACTERS = 24
_TITLE_CHARACTERS = 80


def histogram_png(values: ArrayLike, *, title: str, x_label: str, bins: int = 40) -> bytes:
    """PNG of how often values occur; values that are not finite are left out, and the title says how many."""
    from matplotlib.ticker import MaxNLocator

    all_N = np.asarray(values, dtype=np.float64).ravel()
    finite_N = all_N[np.isfinite(all_N)]
    left_out = len(all_N) - len(finite_N)
    figure, axes = _axes(f"{title} ({left_out:,} not finite)" if left_out else title, x_label, "count")
    if len(finite_N):
        counts, edges = np.histogram(finite_N, bins=_edges(finite_N, bins))
        axes.stairs(counts, edges, fill=True, color=COLORS[0])
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        _say_empty(axes)
    axes.set_ylim(bottom=0)
    return _png(figure)


def curves_png(series: Mapping[str, Sequence[tuple[float, float]]], *, title: str, x_label: str, y_label: str) -> bytes:
    """PNG of one line per name through its (x, y) points in the given order; a y that is not finite leaves a gap."""
    figure, axes = _axes(title, x_label, y_label)
    drawn = {name: points for name, points in series.items() if any(math.isfinite(y) for _, y in points)}
    for i, (name, points) in enumerate(drawn.items()):
        xy = np.asarray(points, dtype=np.float64)
        axes.plot(
            xy[:, 0],
            xy[:, 1],
            color=COLORS[i % len(COLORS)],
            linestyle=DASHES[i % len(DASHES)],
            linewidth=1.8,
            marker="o" if len(xy) <= _MARKED_POINTS else "",
            markersize=3.5,
            label=_shortened(name, _LEGEND_CHARACTERS),
        )
    if not drawn:
        _say_empty(axes)
    if len(drawn) > 1:
        legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return _png(figure)


def data_uri(png: bytes) -> str:
    """The picture as text that stands in markdown or HTML in place of an address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _edges(finite_N: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    low, high = float(finite_N.min()), float(finite_N.max())
    if (finite_N == np.round(finite_N)).all() and high - low < 2**53:
        # whole bins for counts: a bin of 1.9 holds one integer or two, and draws spikes that are not there
        width = max(1, math.ceil((high - low + 1) / bins))
        return low - 0.5 + width * np.arange(math.ceil((high - low + 1) / width) + 1, dtype=np.float64)
    edges = np.linspace(low, high, bins + 1)
    if (np.diff(edges) > 0).all():
        return edges
    # closer together than floats can be divided, which numpy refuses: draw one bar
    margin = max(1.0, abs(low)) * 1e-6
    return np.array([low - margin, high + margin])


def _axes(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # names and titles come from data: a dollar sign is not mathematics
    axes.set_title(_shortened(title, _TITLE_CHARACTERS), fontsize=11, loc="left", parse_math=False)
    axes.set_xlabel(x_label, fontsize=10, parse_math=False)
    axes.set_ylabel(y_label, fontsize=10, parse_math=False)
    axes.tick_params(labelsize=9)
    axes.grid(visible=True, axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _say_empty(axes: Any) -> None:
    axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", va="center", fontsize=11, color="#666666")
    axes.set(xticks=[], yticks=[])


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _png(figure: Any) -> bytes:
    from PIL import Image

    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[:, :, :3]
    picture = Image.fromarray(np.ascontiguousarray(pixels)).quantize(_PALETTE_COLORS, dither=Image.Dither.NONE)
    out = io.BytesIO()
    picture.save(out, format="png", optimize=True)
    return out.getvalue()
