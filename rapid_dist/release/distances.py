"""A histogram of distances as PNG."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

_BINS = 60


def histogram_png(values: Sequence[float], *, title: str, axis: str) -> bytes:
    """Returns a histogram of the values; none give an empty frame that says so."""
    figure = Figure(figsize=(7.2, 3.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    if values:
        axes.hist(values, bins=_BINS, color="#33669a")
    else:
        axes.text(0.5, 0.5, "no values", ha="center", va="center", transform=axes.transAxes)
    axes.set(title=title, xlabel=axis, ylabel="entries")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
