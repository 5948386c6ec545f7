"""A head and a worker on hosts of their own, a token, and a job that is sent from a third one.

The light part of tests/cluster/hosts that has Ray: cluster/smoke.py, sent as docs/operations.md
says. S3, MLflow and whole runs are in test_jobs.py.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts.machines import JOBS, Machines, await_started
from tests.cluster.hosts.network import network

# Seconds, where cores are idle; what fails here fails by a status, and not by a clock.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

# Asks for the list of jobs without a token, with another one and with the cluster's, and has a job
# run without one and with another; prints the status of each answer.
ASK = f"""
import json, os, urllib.error, urllib.request
own = open(os.environ["RAY_AUTH_TOKEN_PATH"]).read()
job = json.dumps({{"entrypoint": "touch it-ran"}}).encode()
for data, token in ((None, ""), (None, "0" * 64), (None, own), (job, ""), (job, "0" * 64)):
    headers = {{"Content-Type": "application/json"}}
    if token:
        headers["Authorization"] = f"Bearer {{token}}"
    request = urllib.request.Request("{JOBS}/api/jobs/", data, headers)
    try:
        status = urllib.request.urlopen(request).status
    except urllib.error.HTTPError as error:
        status = error.code
    print(status, end=" ")
"""


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """A head and a worker with a CPU each, so that of two training workers each has one."""
    with network() as net:
        found = Machines(net, {})
        found.start_head(cpus=1)
        await_started(found.head)
        await_started(found.start_worker("one"))
        yield found


def test_a_job_that_is_sent_from_another_host_has_both_nodes_take_part_and_ends_well(
    machines: Machines, tmp_path: Path
) -> None:
    words = ("--storage", str(tmp_path), "--workers", "2", "--seconds", "1500")
    job = machines.ray_submit("smoke.log", "--", "python", "cluster/smoke.py", *words)
    code, said = job.wait(), machines.desk.said("smoke.log")
    assert code == 0, said
    for told in (
        "2 nodes alike",
        "token        asked for on every node",
        "read and written by 2 nodes",
        "1 of 3 created one name",  # The driver and both nodes.
        "1,000,000 numbers over 2 workers",
        "all 9 checks are well",
    ):
        assert told in said, said
    assert list((tmp_path / "smoke").iterdir()) == []


def test_the_jobs_api_answers_nobody_who_does_not_have_the_token(machines: Machines) -> None:
    assert machines.run([sys.executable, "-c", ASK], "ask.log") == 0, machines.desk.said("ask.log")
    assert machines.desk.said("ask.log").split() == ["401", "403", "200", "401", "403"]
