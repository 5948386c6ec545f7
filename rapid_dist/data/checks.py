"""What is refused before anything is trained, each in one line that quotes no private content."""

import filecmp
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rapid_dist.data.images import Int64Array
from rapid_dist.data.raw import digit_names
from rapid_dist.errors import DataError

# Where a named source keeps its files under data.root.
FOLDERS = {
    "celeba": ("celeba",),
    "cifar10": ("CIFAR10", "cifar-10-batches-bin"),
    "cifar100": ("CIFAR100-20k",),
    "emnist_letters": ("EMNIST",),
    "fashion_mnist": ("FashionMNIST",),
    "kannada": ("Kannada-MNIST",),
    "kmnist": ("KMNIST", "KMNIST-test"),
    "mednist": ("MedNIST64",),
    "mnist": ("MNIST",),
    "notmnist": ("notMNIST-10k",),
    "omniglot": ("Omniglot", "omniglot-py"),
    "pneumonia": ("PneumoniaMNIST",),
}


def check_count(name: str, setting: str, declared: int, found: int) -> None:
    """N is a declared public constant; a data set of another size is another data set."""
    if declared != found:
        raise DataError(
            f"{name}: {setting}={declared} is declared, the source holds {found}. "
            f"Declare {setting}={found}, or find out why the data changed."
        )


def check_labels(name: str, labels: Int64Array, num_classes: int, *, empty_allowed: bool) -> None:
    """Every label [N] names a class and, unless allowed, every class has an image."""
    if ((labels < 0) | (labels >= num_classes)).any():
        raise DataError(
            f"{name}: a label lies outside 0..{num_classes - 1}. "
            f"Correct the labels, or num_classes={num_classes}."
        )
    counts = np.bincount(labels, minlength=num_classes)
    if not empty_allowed and (counts == 0).any():
        raise DataError(
            f"{name}: class {int(np.argmin(counts))} of {num_classes} has no image. "
            "Leave the class out, or add images of it."
        )


def check_class_names(name: str, declared: Sequence[str], found: Sequence[str]) -> None:
    """Declared names are the source's own, in its order; numbered classes may be called anything.

    The source's names are not quoted: a folder may have been laid out by something private.
    """
    if not declared or tuple(found) == digit_names(len(found)):
        return
    for label, (given, own) in enumerate(zip(declared, found, strict=True)):
        if given != own:
            raise DataError(
                f"{name}: class_names calls class {label} {given!r}, the source calls it "
                "otherwise. Give the source's names, a folder's in alphabetical order, or none."
            )


def check_groups(name: str, groups: Int64Array | None, declared: int) -> None:
    """The number of groups [N] is what it was declared to be."""
    if groups is None:
        raise DataError(
            f"{name}: num_groups={declared} is declared, the source has no groups. "
            "Leave num_groups and group_column out."
        )
    check_count(name, "num_groups", declared, len(np.unique(groups)))


def check_apart(
    private: tuple[str, str | None], public: tuple[str, str | None], root: str | Path | None
) -> None:
    """Refuses a (source, path) on the public side that shares files with the private one."""
    same = private[0] == public[0] and private[1] is None and public[1] is None
    pairs = [(a, b) for a in _places(*private, root) for b in _places(*public, root)]
    if same or any(_overlap(a, b) for a, b in pairs):
        place = public[1] or public[0]
        raise DataError(
            f"The public source {place} shares files with the private source. "
            "Name a public source that holds no private image."
        )


def _places(source: str, path: str | None, root: str | Path | None) -> list[str]:
    if path is not None:
        return [_place(path)]
    if root is None:
        return []
    return [_place(f"{str(root).rstrip('/')}/{folder}") for folder in FOLDERS.get(source, ())]


def _place(path: str) -> str:
    remote = path.startswith("s3://")
    return path.rstrip("/") if remote else str(Path(path).expanduser().resolve())


def _overlap(first: str, second: str) -> bool:
    if first == second or first.startswith(f"{second}/") or second.startswith(f"{first}/"):
        return True
    one, other = Path(first), Path(second)
    if not (one.is_file() and other.is_file()):
        return False
    # A copy of the private file under another name is the private file.
    return one.stat().st_size == other.stat().st_size and filecmp.cmp(one, other, shallow=False)
