"""Python runs this in every process that has this folder on its path: those of a watched run."""

import os
import sys
import types
from pathlib import Path

if "RAPID_CHAOS" in os.environ:
    # Not by the path alone: somebody else's `tests` may lie in site-packages, and would be found.
    own = types.ModuleType("tests")
    own.__path__ = [str(Path(__file__).resolve().parents[3])]
    sys.modules.setdefault("tests", own)
    from tests.cluster.chaos.points import from_environment

    from_environment()
