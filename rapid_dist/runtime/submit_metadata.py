"""What a driver adds to the metadata of its own Ray job, once it knows it.

The sender of a job cannot know the run's name in the ledger: the run directory draws it when it is
begun. ``ray job list`` and the dashboard then lead from a job to its run, and back.
"""

import asyncio
import json
import os
from collections.abc import Mapping
from typing import Any

import ray

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's own, in a job's driver and in no other process.


def submission_id() -> str | None:
    """Returns the id of the Ray job whose driver this is, if it is one."""
    try:
        metadata = json.loads(os.environ.get(_JOB, "{}")).get("metadata", {})
    except ValueError:
        return None
    found = metadata.get("job_submission_id")
    return None if found is None else str(found)


def note_in_job(facts: Mapping[str, str]) -> bool:
    """Adds facts to the metadata of this driver's job; says whether there was one to add to.

    Needs a connection to the cluster. Ray has no public call for it. Between the start and the end
    of a driver nobody else writes there, and what goes wrong must not stop a run.
    """
    job_id = submission_id()
    if job_id is None:
        return False
    try:
        asyncio.run(_note(job_id, {f"rapid_dist.{name}": fact for name, fact in facts.items()}))
    except Exception:
        return False
    return True


async def _note(job_id: str, facts: Mapping[str, str]) -> None:
    # Here, for it brings the dashboard's own libraries, which no other process of a run needs.
    from ray.dashboard.modules.job.common import JobInfoStorageClient

    worker: Any = ray._private.worker.global_worker
    store = JobInfoStorageClient(worker.gcs_client)
    info = await store.get_info(job_id)
    if info is not None:
        info.metadata = {**(info.metadata or {}), **facts}
        await store.put_info(job_id, info)
