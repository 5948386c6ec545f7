"""When Ray's own process on the driver's node dies, the command says so, and leaves no folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own, for it loses its cluster.
SCRIPT = """
import os
import signal
import sys
import time
import typer
from rapid_dist.cli.main import main

app = typer.Typer(pretty_exceptions_enable=False)

class LosesTheRaylet:
    def __init__(self, by):
        self.by = by

    def __call__(self, collective, report):
        if self.by == "worker":
            os.kill(os.getppid(), signal.SIGKILL)  # Which has started this worker.
        while True:
            report({"step": 1, "steps": 2})
            time.sleep(0.2)

@app.command()
def command():
    import ray
    from rapid_dist.runtime.cluster import session
    from rapid_dist.runtime.needs import Needs
    from rapid_dist.runtime.train_workers import RayWorkers

    with session(Needs(cpus=1)):
        print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
        raylet = ray._private.worker._global_node.all_processes["raylet"][0].process
        workers = RayWorkers(threads=1, max_failures=0, on_report=lambda *said: raylet.kill())
        workers.run(LosesTheRaylet(sys.argv[1]), name="train", num_workers=1)

sys.exit(main([], app=app))
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "by", ["worker", "driver"]
)  # In the latter's case workers live on a while.
def test_the_end_of_the_raylet_beside_the_driver_is_one_line_and_leaves_no_folder(
    tmp_path: Path, by: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "RAY_raylet_start_wait_time_s": "240"}
    done = subprocess.run(
        [sys.executable, str(script), by], env=environment, capture_output=True, text=True
    )
    own = [line for line in done.stderr.splitlines() if line.startswith("rapid-dist: ")]
    assert done.returncode == 1, done.stderr
    assert len(own) == 1, done.stderr
    # Of the two who may notice first, the group of workers or whoever looks at the raylet.
    assert re.search("Ray's (raylet|processes) on .* ha(s|ve) ended.* same command again", own[0])
    assert "Traceback" not in done.stderr
    assert not Path(done.stdout.splitlines()[0]).parent.exists()
