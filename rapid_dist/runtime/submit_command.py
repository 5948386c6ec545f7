"""The command line of a job, read as far as its sender has to know it."""

from dataclasses import dataclass

from rapid_dist.errors import ConfigError

_RECIPE, _SET, _OUT = ("--recipe", "-r"), ("--set", "-s"), ("--out", "-o")
COMMANDS = (  # Those that a driver on a cluster can do: the scripts in jobs/.
    "audit", "compare", "evaluate", "generate", "index", "pretrain", "release", "run", "sweep",
    "train",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of `rapid-dist` and its options."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.words or self.words[0] not in COMMANDS:
            given = self.words[0] if self.words else "nothing"
            raise ConfigError(
                f"Cannot submit {given!r}. Give one of {', '.join(COMMANDS)}, and its options."
            )

    @property
    def name(self) -> str:
        return self.words[0]

    @property
    def recipe(self) -> str | None:
        return (self._values(_RECIPE) or [None])[-1]

    @property
    def out(self) -> str | None:
        return (self._values(_OUT) or [None])[-1]

    @property
    def overrides(self) -> list[str]:
        return [value for value in self._values(_SET) if value is not None]

    def with_recipe(self, recipe: str) -> tuple[str, ...]:
        """Returns the words with another recipe in the place of this one."""
        words = list(self.words)
        for place, _ in self._found(_RECIPE):
            head, equals, _value = words[place].partition("=")
            if equals:
                words[place] = f"{head}={recipe}"
            else:
                words[place + 1] = recipe
        return tuple(words)

    def _values(self, names: tuple[str, ...]) -> list[str | None]:
        return [value for _, value in self._found(names)]

    def _found(self, names: tuple[str, ...]) -> list[tuple[int, str]]:
        """Returns where an option stands, and its value, each time it is given."""
        found = []
        for place, word in enumerate(self.words):
            head, equals, value = word.partition("=")
            if word in names and place + 1 < len(self.words):
                found.append((place, self.words[place + 1]))
            elif equals and head in names:
                found.append((place, value))
        return found
