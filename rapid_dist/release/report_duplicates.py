"""The section of the report on private images among the public ones."""

from collections.abc import Mapping
from typing import Any

from rapid_dist.release.markup import Cell, Section, paragraph, table

MEASURES = ("equal", "by_hash", "by_features", "near")  # As in internal/contamination.json.


def duplicates_section(told: Mapping[str, Any], found: Mapping[str, Any] | None) -> Section:
    """Says what was done about near-duplicates; with ``found``, which is internal, how many.

    Args:
      told: the policy and, where one was made, the decision, as in the summary.
      found: as internal/contamination.json.
    """
    said = (
        "Before private training the public images were searched for near-duplicates of private "
        f"ones, with policy {told['policy']}. "
    )
    if "noised" not in told:
        said += "What was found is internal, and nothing was decided by it."
    else:
        counts = ", ".join(
            f"{name} {count:.1f}"
            for name, count in zip(told["sources"], told["noised"], strict=True)
        )
        left_out = ", ".join(told["sources"][number] for number in told["condemned"])
        said += (
            f"One noised count a public source was released and charged: {counts}. Above "
            f"{told['most_units']:g}, and left out: {left_out or 'none'}."
        )
    body = paragraph(said)
    if found:
        body += _counts(found)
    return Section(key="duplicates", title="Private images in public data", body=body)


def _counts(found: Mapping[str, Any]) -> str:
    rows: list[list[Cell]] = [
        [
            f"{one['source']}, {one['images']:,} images",
            f"{found[part]['images']:,} {part.replace('_', ' ')}",
            *("off" if one[name] is None else f"{one[name]:,}" for name in MEASURES),
        ]
        for part in ("train", "held_out")
        for one in found[part]["sources"]
    ]
    return table(
        "Internal: private images with a near-duplicate in a public source, by measure. Changing "
        "the recipe because of these counts would be a release that nobody pays for.",
        ["public source", "private images", "equal", "by hash", "by features", "near"],
        rows,
        numbers_from=2,
    )
