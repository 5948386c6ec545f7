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
import typer
from rapid_dist.cli.main import main

app = typer.Typer(pretty_exceptions_enable=False)

class LosesTheRaylet:
    def __call__(self, collective, report):
        os.kill(os.getppid(), signal.SIGKILL)  # Which has started this worker.
        collective.barrier()
        while True:
            signal.pause()

@app.command()
def command():
    import ray
    from rapid_dist.runtime.cluster import session
    from rapid_dist.runtime.needs import Needs
    from rapid_dist.runtime.train_workers import RayWorkers

    with session(Needs(cpus=1)):
        print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
        workers = RayWorkers(threads=1, max_failures=0, on_report=print)
        workers.run(LosesTheRaylet(), name="train", num_workers=1)

sys.exit(main([], app=app))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_the_end_of_the_raylet_beside_the_driver_is_one_line_and_leaves_no_folder(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "RAY_raylet_start_wait_time_s": "240"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True
    )
    own = [line for line in done.stderr.splitlines() if line.startswith("rapid-dist: ")]
    assert done.returncode == 1, done.stderr
    assert len(own) == 1, done.stderr
    # Of the two who may notice first, the group of workers or whoever looks at the raylet.
    assert re.search("Ray's (raylet|processes) on .* ha(s|ve) ended.* same command again", own[0])
    assert "Traceback" not in done.stderr
    assert not Path(done.stdout.splitlines()[0]).parent.exists()
