"""What vendors read from the environment, settled before they are imported.

Silent towards the outside: no usage statistics, no telemetry, no look-up at a hub. And no pickle
out of a model registry. Each is a default: a user who has set a variable has decided otherwise.
"""

import os

SILENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}
SETTLED = {**SILENT, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}


def settle_environment() -> None:
    """Sets every default that is not set. What reads them at import has to come later."""
    for name, value in SETTLED.items():
        os.environ.setdefault(name, value)
