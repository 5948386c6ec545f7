"""How a run says which images it uses: the settings of private and public sources."""

import re
from dataclasses import dataclass
from typing import ClassVar

from rapid_dist.data.groups import SYNTHETIC
from rapid_dist.data.images import check_name, check_shape
from rapid_dist.errors import ConfigError

SOURCES = (
    "celeba",
    "cifar10",
    "cifar100",
    "digits",
    "emnist_letters",
    "fashion_mnist",
    "folder",
    "kannada",
    "kmnist",
    "letters",
    "mednist",
    "mnist",
    "notmnist",
    "npz",
    "omniglot",
    "pneumonia",
)
SOURCES_WITH_PATH = ("folder", "npz")
_GROUP_NAME = re.compile(r"[a-z][a-z -]{0,39}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivateSource:
    """The private data set and everything that is declared of it; all of this is public."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    source: str  # One of SOURCES.
    name: str  # Identity of the data set: one ledger a name.
    num_records: int  # Images in the train part, after ``limit``.
    num_classes: int  # 0 = train without labels.
    size: int
    channels: int = 1
    path: str | None = None  # Of folder and npz: local, or s3://.
    limit: int | None = None  # Use this many records of the train part.
    held_out_share: float = 0.2  # Of a source without a test part.
    label_column: str | None = None  # Of npz (default "labels") and celeba (default "Male").
    group_column: str | None = (
        None  # Makes a group (a patient) the unit; "synthetic" makes them up.
    )
    num_groups: int | None = None  # Groups in the train part; declared with group_column.
    group_name: str | None = None  # What one group is, in claims: "patient", "clinic".
    value_range: tuple[float, float] = (0.0, 255.0)  # Of an npz's numbers.
    resize: bool = False  # Of folder and npz: images of another size are cropped and resized.
    invert: bool = False
    margin: float = 0.0
    licence: str = ""  # Of folder and npz; the named sources know theirs.
    class_names: tuple[str, ...] = ()  # For bundle and report, in order of the labels.

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_class_names(self.class_names, self.num_classes)
        _check_common(self)
        if self.num_records < 1:
            raise ConfigError(f"num_records must be positive, got {self.num_records}. Declare N.")
        if self.num_classes < 0:
            raise ConfigError(
                f"num_classes must not be negative, got {self.num_classes}. Use 0 for no labels."
            )
        if self.limit is not None and self.limit != self.num_records:
            raise ConfigError(
                f"limit={self.limit} and num_records={self.num_records} differ. "
                "With a limit, N is the limit: declare both alike."
            )
        if not 0 < self.held_out_share < 1:
            raise ConfigError(
                f"held_out_share must lie in (0, 1), got {self.held_out_share}. 0.2 is usual."
            )
        if (self.group_column is None) != (self.num_groups is None):
            raise ConfigError(
                f"group_column={self.group_column} and num_groups={self.num_groups}: "
                "declare both or neither."
            )
        if self.num_groups is not None and not 1 <= self.num_groups <= self.num_records:
            raise ConfigError(
                f"num_groups must be in 1..num_records={self.num_records}, got {self.num_groups}. "
                "Declare how many groups the train part has."
            )
        self._check_group_name()
        check_shape(self.size, self.channels)

    @property
    def unit_name(self) -> str:
        """What a claim calls one privacy unit."""
        if self.group_column is None:
            return "record"
        made_up = self.group_column == SYNTHETIC
        return self.group_name or ("synthetic group" if made_up else "group")

    @property
    def unit_id(self) -> str:
        """What tells this unit from others on the ledger: epsilons of two units do not add up."""
        if self.group_column is None:
            return "record"
        made_up = f"-{self.num_groups}" if self.group_column == SYNTHETIC else ""
        return "group:" + re.sub(r"\s", "_", self.group_column) + made_up  # One word in a note.

    @property
    def unit_note(self) -> str:
        """What has to be said of the unit beside every claim, or nothing."""
        if self.group_column != SYNTHETIC:
            return ""
        return (
            f"The groups are made up: source {self.source!r} does not say which images belong "
            f"together, so images were assigned to each {self.unit_name} by their position, to "
            "show the unit. The claim is for these made-up groups and not for real people."
        )

    def _check_group_name(self) -> None:
        if self.group_name is None:
            return
        if self.group_column is None or not _GROUP_NAME.fullmatch(self.group_name):
            raise ConfigError(
                f"group_name must be a few lower-case words beside a group_column, got "
                f"{self.group_name!r} beside {self.group_column!r}. Say 'patient', or leave it out."
            )
        if self.group_column == SYNTHETIC and not self.group_name.startswith(SYNTHETIC):
            raise ConfigError(
                f"group_name={self.group_name!r} would pass made-up groups off as real ones. "
                f"Call them {f'{SYNTHETIC} {self.group_name}'!r}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicSource:
    """One of the public data sets."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    source: str  # One of SOURCES.
    count: int | None = None  # Images to take (or to render); None takes all, renders 20,000.
    path: str | None = None  # Of folder and npz: local, or s3://.
    labels: str = "fine"  # fine, coarse (omniglot: alphabets; letters: cases merged) or none.
    exclude: tuple[str, ...] = ()  # Names of classes left out.
    label_column: str | None = None
    value_range: tuple[float, float] = (0.0, 255.0)
    invert: bool = False  # For dark strokes on white.
    margin: float = 0.0  # Share of the frame left black on each side (a letter may slant into it).
    licence: str = ""

    def __post_init__(self) -> None:
        _check_common(self)
        if self.count is not None and self.count < 1:
            raise ConfigError(f"count must be positive, got {self.count}. Leave it out for all.")
        if self.labels not in ("fine", "coarse", "none"):
            raise ConfigError(f"labels must be fine, coarse or none, got {self.labels!r}.")


def _check_class_names(names: tuple[str, ...], num_classes: int) -> None:
    if names and len(names) != num_classes:
        raise ConfigError(
            f"class_names has {len(names)} names for num_classes={num_classes}. "
            "Name every class once, or leave class_names out."
        )
    for name in names:
        if names.count(name) > 1 or not name.isprintable() or not 0 < len(name.strip()) <= 40:
            raise ConfigError(
                f"class_names has {name!r}. Give every class a name of its own, of 1 to 40 "
                "printable characters."
            )


def _check_common(source: PrivateSource | PublicSource) -> None:
    if source.source not in SOURCES:
        raise ConfigError(
            f"Source {source.source!r} is not known. Use one of {', '.join(SOURCES)}."
        )
    if (source.source in SOURCES_WITH_PATH) != (source.path is not None):
        raise ConfigError(
            f"Source {source.source} has path={source.path}. A path belongs to "
            f"{' and '.join(SOURCES_WITH_PATH)}, and to them alone."
        )
    low, high = source.value_range
    if not low < high:
        raise ConfigError(f"value_range must ascend, got ({low:g}, {high:g}).")
    if not 0 <= source.margin <= 0.4:
        raise ConfigError(f"margin must lie in 0..0.4, got {source.margin}.")
