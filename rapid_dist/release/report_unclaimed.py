"""The page of a run that makes no claim: a control that reads nothing private, or no privacy.

It is always internal: what such a run is made for is how it measures against private records.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rapid_dist.data.images import UInt8Array
from rapid_dist.release.markup import Cell, Raw, Section, escape, image, page, paragraph, table
from rapid_dist.release.plots import ImageSet, strip
from rapid_dist.release.report_figures import duration, quality_section
from rapid_dist.release.report_style import STYLE

IMAGES = 8  # Of a class.


def render_unclaimed(
    summary: Mapping[str, Any],
    *,
    sentence: str,
    created: str,
    class_names: Sequence[str],
    samples: ImageSet,
    quality: Mapping[str, Any],
) -> str:
    """Returns the whole page as HTML.

    Args:
      summary: as summary.json.
      sentence: what may be said of privacy, or that there is none.
      class_names: empty for images without classes.
      quality: as internal/quality.json.
    """
    sections = [
        Section(key="claim", title="No claim", body=paragraph(sentence, "sentence"), style="claim"),
        _samples(class_names or ("all",), samples),
        quality_section(quality),
        _seconds(summary["seconds"]),
    ]
    warning = (
        "This page shows figures that were measured against private records without a privacy "
        f"mechanism. Keep it where the private records may be kept. {sentence}"
    )
    return page(
        title=f"Internal report: {summary['dataset']}",
        lead=f"Method {summary['method']}, recipe {summary['recipe']}, {created}",
        banner='<aside class="banner" aria-label="Confidentiality"><p><strong>Internal document.'
        f"</strong> {escape(warning)}</p></aside>",
        sections=sections,
        style=STYLE,
    )


def _samples(names: Sequence[str], samples: ImageSet) -> Section:
    rows: list[list[Cell]] = [
        [name, _images(samples.first(label, IMAGES), name)] for label, name in enumerate(names)
    ]
    body = table("First images of each class", ["class", "images"], rows, numbers_from=2)
    return Section(key="samples", title="Samples", body=body)


def _images(images: UInt8Array, name: str) -> Raw:
    if len(images) == 0:
        return Raw(markup="none")
    picture = strip(images)
    alt = f"{len(images)} images of class {name}"
    return Raw(markup=image(picture.address, alt, picture.width, picture.height))


def _seconds(seconds: Mapping[str, float]) -> Section:
    rows = [[name, duration(float(took))] for name, took in seconds.items()]
    return Section(key="stages", title="Time", body=table("", ["stage", "time"], rows))
