"""Errors a caller may want to catch.

RapidError
├── ConfigError(ValueError)   the run was described wrongly; nothing has started (exit 2)
│   └── DataError             the data are not what their declaration says (exit 2)
├── BudgetError               the run would spend more than its (epsilon, delta) (exit 3)
├── LedgerError               the ledger is torn, forked or from another data set (exit 1)
├── ShardError                a stored shard is missing, torn or from another run (exit 1)
├── CheckpointError           a checkpoint or a stored result is torn or from another run (exit 1)
├── StorageError              a disk or a bucket failed, whatever was tried (exit 1)
│   └── StorageMissing        nothing is stored under this name (exit 1)
└── ReleaseError              the model may not leave the trust boundary (exit 4)

A broken internal invariant is a bug, not one of these: use ``assert``.
"""

from typing import ClassVar


class RapidError(Exception):
    """Anything this package refuses to do, said in one line."""

    exit_code: ClassVar[int] = 1


class ConfigError(RapidError, ValueError):
    """The run was described wrongly; nothing has started."""

    exit_code = 2


class DataError(ConfigError):
    """The data are not what their declaration says; nothing has started."""


class BudgetError(RapidError):
    """The run would spend more than its (epsilon, delta)."""

    exit_code = 3


class LedgerError(RapidError):
    """The ledger is torn, forked or belongs to another data set."""


class ShardError(RapidError):
    """A stored shard is missing, torn or from another run."""


class CheckpointError(RapidError):
    """A checkpoint or a stored result is torn or from another run."""


class StorageError(RapidError):
    """A disk or a bucket failed, whatever was tried; the same command goes on once it answers."""


class StorageMissing(StorageError, FileNotFoundError):
    """Nothing is stored under this name."""


class ReleaseError(RapidError):
    """The model may not leave the trust boundary."""

    exit_code = 4
