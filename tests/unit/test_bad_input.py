"""Bad input: one line that names setting, value and remedy, an exit code, nothing begun or lost.

Every entry is a command line as a user would give it, run in this process. Beside it lies a run
that was begun, with a ledger: after the refusal every file is there as it was, and no other.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from rapid_dist.cli.main import main
from rapid_dist.config import load_recipe
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.runtime.run_directory import RunDirectory
from rapid_dist.storage import s3_client
from tests.bad_inputs import QUICK, SECRET, TABLE, Bad, World


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = s3_client(
        endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a",
        aws_secret_access_key="b",
    )  # fmt: skip
    client.create_bucket(Bucket="somebodys")
    client.close()
    yield endpoint
    server.stop()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a begun run of the digits recipe, with its ledger beside it."""
    folder = tmp_path_factory.mktemp("begun") / "runs"
    directory = RunDirectory(load_recipe("digits"), str(folder / "digits"))
    directory.write_json("stages/pretrain.json", {"done": False, "seconds": 1.0})
    ledger = Ledger.open(folder / "ledger", "digits")
    attempt = ledger.begin_attempt(directory.run, "unit=record ")
    event = GaussianEvent(noise_multiplier=9.0)
    ledger.append("query", directory.run, attempt=attempt, event=event)
    return folder


@pytest.fixture
def world(tmp_path: Path, begun: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A copy of that run; the current folder is beside it."""
    shutil.copytree(begun, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return World(folder=tmp_path)


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=entry.name, marks=() if entry in QUICK else pytest.mark.slow)
        for entry in TABLE
    ],
)
def test_bad_input_is_one_line_with_a_remedy_and_nothing_is_begun_or_lost(
    entry: Bad,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, str], None],
    request: pytest.FixtureRequest,
) -> None:
    places = {"folder": str(world.folder), "run": str(world.run)}
    if "AWS_ENDPOINT_URL" in entry.environment:  # Only who asks a bucket waits for the server.
        places["s3"] = request.getfixturevalue("s3")
    for name, value in entry.environment.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value.format(**places))
    entry.setup(world)
    before = _snapshot(world.folder)
    words = [_filled(word, places) for word in entry.words]
    code = main(words)
    said = capsys.readouterr().err
    assert code == entry.code, said
    assert said.startswith("rapid-dist: ")
    assert said.count("\n") == 1, said
    assert [needle for needle in entry.needles if needle not in said] == [], said
    assert re.search("Traceback|pydantic", said, re.IGNORECASE) is None
    assert SECRET not in said
    record_property("stopped", said.strip())
    after = _snapshot(world.folder)
    changed = [name for name in before | after if before.get(name) != after.get(name)]
    assert [name for name in changed if not re.search(r"(run\.lock|README\.txt)$", name)] == []


def _filled(word: str, places: Mapping[str, str]) -> str:
    for name, value in places.items():
        word = word.replace("{" + name + "}", value)
    return word


def test_the_table_is_of_at_least_60_different_inputs() -> None:
    assert len({entry.name for entry in TABLE}) == len(TABLE) >= 60
