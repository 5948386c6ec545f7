"""Secrets: settings that are never shown, and texts without the credentials in them.

A recipe is printed, stored and published, so no secret is ever in one. A setting that needs a
secret names where it is, ``env:NAME`` or ``file:PATH``, and is read in the moment of its use.
Addresses may still bring credentials with them, and vendors quote addresses in their errors: all
that this package prints, logs or stores of an address goes through ``masked``.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rapid_dist.errors import ConfigError

MASK = "***"
# What a shell holds of secrets that this package, Ray, MLflow, S3 or a hub read from it.
SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAPID_DIST_KEY_PASSPHRASE",
    "RAY_AUTH_TOKEN",
)
LEAST = 8  # Characters of a secret that is looked for; a shorter one stands in many places.
# user:password@, where a password may hold a slash and a port is none; or a name or key alone.
_USER_INFO = re.compile(r"(?<=://)(?:[^/\s'\"@:]*:(?!\d{1,5}(?:[/?#]|$))[^\s'\"@]*|[^/\s'\"?#]*)@")
_PARAMETER = re.compile(
    r"(?i)([?&](?:password|passwd|pwd|secret|token|access_token|sig|signature|api_key"
    r"|x-amz-signature|x-amz-credential|x-amz-security-token)=)[^&\s'\"]+"
)
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_NAME = re.compile(r"(?i)pass(?:word|wd|phrase|wort)?$|secret|token|credential|(?:^|[._])key$")


class Secret:
    """Where a secret is; shows neither that nor the secret, wherever it is printed."""

    def __init__(self, place: str) -> None:
        """Names the place: ``env:NAME`` or ``file:PATH``.

        Raises:
          ConfigError: it is none of these, and so perhaps the secret itself, which is not repeated.
        """
        kind, _, name = place.partition(":")
        if not (kind == "env" and _VARIABLE.fullmatch(name)) and not (kind == "file" and name):
            raise ConfigError(
                "A secret is not written into a recipe or a command line. Put it into the "
                "environment, or a file of mode 0600, and name that: env:NAME or file:PATH."
            )
        self._kind, self._name = kind, name

    @classmethod
    def of(cls, value: Any) -> "Secret":
        """Returns a secret from a setting's value."""
        return value if isinstance(value, Secret) else cls(str(value))

    def reveal(self, environment: Mapping[str, str] | None = None) -> str:
        """Returns the secret.

        Raises:
          ConfigError: it is not there, or others can read its file.
        """
        if self._kind == "env":
            value = (os.environ if environment is None else environment).get(self._name, "")
            if not value:
                raise ConfigError(f"{self._name} is not set. Set it to the secret that is named.")
            return value
        path = Path(self._name).expanduser()
        try:
            mode, text = path.stat().st_mode, path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"The secret's file {path} cannot be read ({type(error).__name__}). Correct it."
            ) from None
        if mode & 0o077:
            raise ConfigError(f"The secret's file {path} can be read by others. chmod 600 it.")
        return text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self._kind, self._name))

    def __repr__(self) -> str:
        return MASK

    __str__ = __repr__


def masked(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Returns a text without credentials in addresses, and without this environment's secrets."""
    text = _without_credentials(text)
    for value in secrets_of(environment):
        text = text.replace(value, MASK)
    return text


def has_credentials(text: str) -> bool:
    """Whether an address in the text brings credentials with it; masked ones are none."""
    return _without_credentials(text) != text


def _without_credentials(text: str) -> str:
    return _PARAMETER.sub(rf"\1{MASK}", _USER_INFO.sub(f"{MASK}@", text))


def names_secret(setting: str) -> bool:
    """Whether a setting of that dotted name is likely to be given a secret."""
    return bool(_NAME.search(setting))


def secrets_of(environment: Mapping[str, str] | None = None) -> list[str]:
    """Returns the values of this environment's secrets, the longest first."""
    found = os.environ if environment is None else environment
    values = {found.get(name, "") for name in SECRET_VARIABLES}
    return sorted((value for value in values if len(value) >= LEAST), key=len, reverse=True)


def credentials_in(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted name, text) of every text of a plain tree that holds credentials."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from credentials_in(value, f"{prefix}.{name}".lstrip("."))
    elif isinstance(tree, list | tuple):
        for place, value in enumerate(tree):
            yield from credentials_in(value, f"{prefix}.{place}")
    elif isinstance(tree, str) and has_credentials(tree):
        yield prefix, tree


def require_plain(address: str, setting: str) -> str:
    """Returns an address without credentials, or refuses it without repeating them."""
    if has_credentials(address):
        raise ConfigError(
            f"{setting}={masked(address)} holds credentials, and is printed, stored and "
            "published. Give them by the environment (AWS_..., MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI as a whole)."
        )
    return address
