"""The sections of the report that show images, quality, time and cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from rapid_dist.data.images import Int64Array, UInt8Array
from rapid_dist.release.markup import Cell, Raw, Section, escape, image, paragraph, table
from rapid_dist.release.plots import ImageSet, strip

OWN_IMAGES = 8  # Of a class, by the generator,
CONTROL_IMAGES = 3  # and by each control.
MOST_CLASSES = 20
GENERATOR = "generator"
NO_CONTROLS = (
    "No controls were drawn in this run, so nothing on this page says what comes without, or with "
    "less, private training: good samples alone are no sign that the budget was well spent. "
    "Controls belong to method rapid, and are left out by evaluation.controls=false."
)
SUSPICIOUS = 0.01  # A p-value below it is shown as a warning.

# What a stage touches, which is what a reader wants to know of it.
STAGES = {
    "initial": "no data",
    "autoencode": "public images only",
    "pretrain": "public images only",
    "contrast": "public images only",
    "index": "public images only",
    "contamination": "private: near-duplicates, internal unless noised and charged",
    "prior": "private: one noised histogram, charged",
    "adapt": "public images and that histogram: post-processing, free",
    "candidates": "private: votes among candidates, noised and charged",
    "condition": "public images only",
    "answers": "private: an index, every round of answers charged",
    "train": "private: DP-SGD, every step charged",
    "generate": "no data: post-processing, free",
    "evaluate": "private: internal figures, not released",
}


def samples_section(
    class_names: Sequence[str], samples: ImageSet, controls: Mapping[str, ImageSet]
) -> Section:
    """Returns samples by class with the controls beside them."""
    names = class_names[:MOST_CLASSES] or ("all",)
    grids = [_grid(GENERATOR, samples, names, OWN_IMAGES)]
    grids += [_grid(kind, images, names, CONTROL_IMAGES) for kind, images in controls.items()]
    said = "The first images of each class, in order of their ids; none was selected."
    if len(class_names) > MOST_CLASSES:
        said += f" {len(class_names) - MOST_CLASSES} further classes are not shown."
    body = paragraph(said, "note") + f'<div class="sets">{"".join(grids)}</div>'
    if controls:
        body += paragraph(
            "Controls show what comes without, or with less, private training. A generator that "
            "is not better than they are has learned nothing worth its budget.",
            "note",
        )
    else:
        body += paragraph(NO_CONTROLS, "verdict bad")
    return Section(key="samples", title="Samples and controls", body=body)


def strips_section(
    class_names: Sequence[str],
    queries: UInt8Array,
    surrogates: UInt8Array,
    samples: UInt8Array,
    labels: Int64Array,
    neighbours: Mapping[str, Any] | None = None,
) -> Section:
    """Returns some ways from a public query over the retrieved surrogate to the sample."""
    items = []
    for query, surrogate, sample, label in zip(queries, surrogates, samples, labels, strict=True):
        name = f"class {class_names[label]}" if class_names else "without class"
        steps = '<span aria-hidden="true">&rarr;</span>'.join(
            _picture(shown[None], f"{what}, {name}")
            for what, shown in (
                ("Public query", query),
                ("Retrieved surrogate", surrogate),
                ("Sample", sample),
            )
        )
        items.append(
            f'<li><figure><div class="steps">{steps}</div>'
            f"<figcaption>{escape(name)}</figcaption></figure></li>"
        )
    body = (
        paragraph(
            "Each strip is a public query, the public image that was retrieved for it, and what "
            "the private network made of that image's noised state. No private record is shown "
            "here or was used as a query."
        )
        + f'<ul class="strips">{"".join(items)}</ul>'
    )
    if neighbours:
        body += paragraph(
            f"{neighbours['queries']:,} public queries found {neighbours['unique_rate']:.0%} as "
            "many different trajectories; the one most often found answered "
            f"{neighbours['most_used_share']:.1%} of them. What private records find is not "
            "measured.",
            "note",
        )
    return Section(key="strips", title="From query to sample", body=body)


def quality_section(quality: Mapping[str, Any]) -> Section:
    """Returns quality against held-out private records; internal."""
    sets = {GENERATOR: quality["samples"], **quality["controls"]}
    styles = ["own", *[""] * len(quality["controls"])]
    body = paragraph(str(quality["notice"]), "note") + _lead(quality)
    if quality["samples"]["classifiers"] is not None:
        names = ("logistic", "mlp", "cnn", "mean")
        body += "<h3>Usefulness</h3>" + table(
            "Accuracy on held-out real images of classifiers trained on synthetic ones alone",
            ["trained on", "images", "logistic regression", "MLP", "CNN", "mean", "best, by this"],
            [
                [
                    name,
                    f"{s['num_images']:,}",
                    *(f"{s['classifiers'][n]:.1%}" for n in names),
                    f"{max(s['classifiers'][n] for n in names):.1%}",  # Chosen on private records.
                ]
                for name, s in sets.items()
            ],
            styles=styles,
        )
    names = ("precision", "recall", "density", "coverage")
    label = quality.get("fidelity_label", "FID-like, not FID")
    body += "<h3>Fidelity and diversity</h3>" + table(
        f"Features: {quality['extractor']}; {quality['fidelity_images']:,} images of each set. The "
        f"distance is {label}: it compares the rows of this table"
        f"{'.' if label == 'FID' else ' and nothing else.'}",
        ["set", f"{label.partition(',')[0]} distance", *names],
        [
            [
                name,
                f"{s['fidelity']['frechet_distance']:.2f}",
                *(f"{s['fidelity'][n]:.2f}" for n in names),
            ]
            for name, s in sets.items()
        ],
        styles=styles,
    )
    body += "<h3>Nearness to training records</h3>" + _nearness(quality["samples"]["memorisation"])
    body += table(
        "Distance in pixels to the nearest training record, against that of held-out records",
        ["set", "ratio of medians", "closer than 99% of held-out", "chance to be closer", "copies"],
        [
            [
                name,
                f"{s['memorisation']['median_ratio']:.2f}",
                f"{s['memorisation']['close_share']:.1%}",
                f"{s['memorisation']['closer_chance']:.2f}",
                str(s["memorisation"]["exact_copies"]),
            ]
            for name, s in sets.items()
        ],
        styles=styles,
    )
    return Section(key="quality", title="Quality (internal)", body=body)


def stages_section(summary: Mapping[str, Any], price_per_hour: float | None) -> Section:
    """Returns time per stage, its share, what it touched and, with a price, its cost."""
    seconds = {name: float(value) for name, value in summary["seconds"].items() if name != "total"}
    longest, total = max(seconds.values(), default=0.0) or 1.0, sum(seconds.values())

    def row(name: str, took: float) -> list[Cell]:
        width = f"width:{100 * took / longest:.1f}%"
        bar = Raw(markup=f'<span style="{width}"></span>' if name else "", style="bar")
        cells: list[Cell] = [name or "total", STAGES.get(name, ""), bar, duration(took)]
        if price_per_hour is not None:
            cells.append(f"{took / 3600 * price_per_hour:.2f}")
        return cells

    header: list[Cell] = ["stage", "what it touches", Raw(markup="", style="bar"), "time"]
    if price_per_hour is not None:
        header.append("cost")
    rows = [row(name, took) for name, took in seconds.items()]
    body = table("Time per stage", header, [*rows, row("", total)], numbers_from=3)
    sampling = summary.get("sampling") or {}
    if "nfe" in sampling:
        said = f"One sample takes {sampling['nfe']:g} evaluations of the network"
        if sampling.get("images_per_second") is not None:  # None where no time was taken.
            said += f"; {sampling['images_per_second']:,.3g} images a second were drawn here"
        body += paragraph(f"{said}.", "note")
    return Section(key="stages", title="Time and cost", body=body)


def duration(seconds: float) -> str:
    """Returns a time as a reader would say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _lead(quality: Mapping[str, Any]) -> str:
    lead = quality["lead_over_best_control"]
    if not quality["controls"]:
        return paragraph(NO_CONTROLS, "verdict bad")
    if lead is None:
        return ""
    means = {name: one["classifiers"]["mean"] for name, one in quality["controls"].items()}
    best = max(means, key=lambda name: means[name])
    if lead > 0:
        return paragraph(
            f'The generator beats every control in mean accuracy, the best of them, "{best}", by '
            f"{100 * lead:.1f} points.",
            "verdict",
        )
    return paragraph(
        f'The generator does not beat its controls: "{best}" has a mean accuracy that is '
        f"{100 * abs(lead):.1f} points higher, and spends no more.",
        "verdict bad",
    )


def _nearness(figures: Mapping[str, Any]) -> str:
    found = f"(p = {figures['closer_p_value']:.2g}, {figures['exact_copies']} copies)"
    if figures["exact_copies"] or figures["closer_p_value"] < SUSPICIOUS:
        return paragraph(
            f"Samples lie closer to training records than held-out records do {found}. Smooth "
            "samples do so honestly, copies do not: find out which these are before any release.",
            "verdict bad",
        )
    return paragraph(
        f"There is no sign that samples lie closer to training records than held-out records do "
        f"{found}.",
        "verdict",
    )


def _grid(kind: str, images: ImageSet, names: Sequence[str], count: int) -> str:
    """A row a class with its first images; every set is a table, and they flow with the page."""

    def cell(label: int, name: str) -> Cell:
        shown = images.first(label, count)
        if len(shown) == 0:
            return "none"
        return Raw(markup=_picture(shown, f"{len(shown)} images of class {name}, {kind}"))

    rows = [[name, cell(label, name)] for label, name in enumerate(names)]
    return table(kind, ["class", "images"], rows, numbers_from=2, kind="grid-table")


def _picture(images: UInt8Array, alt: str) -> str:
    picture = strip(images)
    return image(picture.address, alt, picture.width, picture.height)
