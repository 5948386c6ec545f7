"""What is sent with a job, what is refused before it is, and how its end is told."""

import stat
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from ray.job_submission import JobStatus

from rapid_dist.cli.submit import follow_job
from rapid_dist.config import load_recipe, recipe_hash
from rapid_dist.errors import ConfigError, RapidError
from rapid_dist.runtime import submit
from rapid_dist.runtime.submit_command import COMMANDS, Command
from rapid_dist.runtime.submit_metadata import note_in_job, submission_id
from rapid_dist.runtime.submit_package import package_of

ROOT = Path(__file__).resolve().parents[2]
OUT = ["--out", "s3://bucket/runs/digits"]


def _folder(place: Path, *names: str) -> Path:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("x")
    return place


def test_code_and_settings_are_sent_and_nothing_that_could_hold_private_images(tmp_path):
    sent = ("rapid_dist/a.py", "jobs/train.py", "mine.yaml", "rapid_dist/passport.schema.json")
    kept = (
        "scans/1.png", "scans.npz", "patients.csv", "data.zip", "key.pem", "mlflow.db", "x.json",
        "runs/digits/config.yaml", "internal/quality.yaml", ".venv/a.py", ".aws/config.toml",
        "tests/test_a.py", "rapid_dist.egg-info/a.py", "rapid_dist/__pycache__/a.py",
    )  # fmt: skip
    folder = _folder(tmp_path, *sent, *kept)
    assert set(package_of(folder).names) == set(sent)


def _sent_by_ray(folder: Path, place: Path) -> set[str]:
    """Returns the files that `ray job submit --working-dir` would send; Ray's own packing."""
    from ray._private.runtime_env.packaging import create_package

    create_package(str(folder), place, include_gitignore=True)
    with zipfile.ZipFile(place) as packed:
        return {name for name in packed.namelist() if not name.endswith("/")}


def test_rays_own_command_sends_no_data_of_this_folder_either(tmp_path):
    sent = ("rapid_dist/a.py", "rapid_dist/release/passport.schema.json", "jobs/train.py",
            "cluster/smoke.py", "mine.yaml", "rapid_dist/recipes/digits.yaml")  # fmt: skip
    kept = ("scans/1.png", "scans.npz", "rapid_dist/left.npz", "data/x.csv", "jobs/key.pem",
            "runs/digits/config.yaml", "tests/test_a.py", "docs/a.md")  # fmt: skip
    folder = _folder(tmp_path / "here", *sent, *kept)
    (folder / ".rayignore").write_text((ROOT / ".rayignore").read_text())
    assert _sent_by_ray(folder, tmp_path / "with.zip") == set(sent)
    (folder / ".rayignore").unlink()
    assert "scans/1.png" in _sent_by_ray(folder, tmp_path / "without.zip")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    _folder(tmp_path, "outside/secret.py", "inside/a.py")
    (tmp_path / "inside" / "link.py").symlink_to(tmp_path / "outside" / "secret.py")
    (tmp_path / "inside" / "far").symlink_to(tmp_path / "outside")
    assert package_of(tmp_path / "inside").names == ("a.py",)


def test_what_is_excluded_by_name_or_by_path_is_left_out(tmp_path):
    folder = _folder(tmp_path, "a.py", "a.local.yaml", "recipes/old/b.yaml", "recipes/c.yaml")
    found = package_of(folder, ["*.local.yaml", "recipes/old/"])
    assert found.names == ("a.py", "recipes/c.yaml")


def test_a_folder_that_is_larger_than_code_is_refused_by_its_largest_file(tmp_path):
    (tmp_path / "weights.py").write_bytes(bytes(17 * 2**20))
    with pytest.raises(ConfigError, match=r"17 MB .* largest is weights.py"):
        package_of(tmp_path)


def test_the_whole_package_is_sent_so_that_its_hash_is_the_same_there(tmp_path):
    from rapid_dist.installed import hash_of

    package_of(ROOT).copy_to(tmp_path)
    assert hash_of(tmp_path / "rapid_dist") == hash_of(ROOT / "rapid_dist")


def test_every_script_of_jobs_is_a_command_that_can_be_submitted():
    names = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert {"run" if name == "pipeline" else name for name in names} <= set(COMMANDS)


def test_options_are_read_in_both_spellings_and_the_last_one_counts():
    words = ("train", "-r", "mnist", "--recipe=digits", "-s", "seed=1", "--set=seed=2", "-o", "/a")
    command = Command(words=words)
    assert (command.recipe, command.out) == ("digits", "/a")
    assert command.overrides == ["seed=1", "seed=2"]
    assert command.with_recipe("x.yaml")[1:4] == ("-r", "x.yaml", "--recipe=x.yaml")


@pytest.mark.parametrize("out", [[], ["--out", "runs/digits"]])
def test_a_run_directory_that_only_one_node_could_see_is_refused(out, tmp_path):
    with pytest.raises(ConfigError, match="folder that Ray removes"):
        submit.prepare(["train", "--recipe", "digits", *out], working_dir=tmp_path)


@pytest.mark.parametrize("words", [[], ["ledger", "show"], ["submit", "train"]])
def test_a_command_that_no_driver_does_is_refused(words, tmp_path):
    with pytest.raises(ConfigError, match="Cannot submit"):
        submit.prepare([*words, *OUT], working_dir=tmp_path)


def test_a_wrong_recipe_is_refused_before_anything_is_sent(tmp_path):
    words = ["train", "--recipe", "digits", "--set", "privacy.epsilno=1", *OUT]
    with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
        submit.prepare(words, working_dir=tmp_path)


def test_a_job_says_of_which_recipe_and_code_it_is(tmp_path):
    words = ["train", "--recipe", "digits", "--set", "privacy.epsilon=3", *OUT]
    job = submit.prepare(words, working_dir=ROOT, environment={"A": "b"})
    recipe = load_recipe("digits", ["privacy.epsilon=3"])
    assert job.metadata["rapid_dist.recipe_hash"] == recipe_hash(recipe)
    assert job.metadata["rapid_dist.out"] == OUT[1]
    assert job.environment["A"] == "b"
    assert job.environment["RAY_JOB_STOP_WAIT_TIME_S"] == str(submit.STOP_SEC)
    assert submit.prepare(words, working_dir=tmp_path).metadata["rapid_dist.code"] == "installed"


@dataclass
class FakeClient:
    """A cluster that takes one job, and whose connections break as told."""

    status: JobStatus = JobStatus.SUCCEEDED
    exit_code: int | None = 0
    parts: list[list[str]] = field(default_factory=lambda: [["a\n", "b\n"]])
    living: list[Any] = field(default_factory=list)
    sent: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def submit_job(self, **options: Any) -> str:
        self.sent = options
        place = Path(options["runtime_env"]["working_dir"])
        self.files = sorted(p.relative_to(place).as_posix() for p in place.rglob("*.*"))
        return "id"

    def list_jobs(self) -> list[Any]:
        return self.living

    def get_job_info(self, job_id: str) -> Any:
        status = JobStatus.RUNNING if self.parts else self.status
        return SimpleNamespace(status=status, driver_exit_code=self.exit_code, message="x\nlost")

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        *texts, last = self.parts.pop(0)
        for text in texts:
            yield text
        if last == "broken":
            raise RuntimeError("closed")
        yield last


def _follow(client: FakeClient) -> tuple[int, str]:
    written: list[str] = []
    follower = submit.Follower(
        client=client, job_id="id", write=written.append, sleep=lambda seconds: None
    )
    return follower.follow(), "".join(written)


def test_a_recipe_file_is_sent_under_its_own_name_wherever_it_lies(tmp_path):
    (tmp_path / "code").mkdir()
    text = (ROOT / "rapid_dist" / "recipes" / "digits.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text)
    words = ["train", "--recipe", str(tmp_path / "mine.yaml"), *OUT]
    client = FakeClient()
    job = submit.prepare(words, working_dir=tmp_path / "code")
    assert submit.send(client, job, "name") == "id"
    assert client.files == ["mine.yaml"]
    assert client.sent["entrypoint"].startswith("python -m rapid_dist.cli train --recipe mine.yaml")
    assert client.sent["metadata"]["rapid_dist.recipe"] == "mine"


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
def test_the_exit_code_of_the_job_is_returned(code):
    status = JobStatus.SUCCEEDED if code == 0 else JobStatus.FAILED
    assert _follow(FakeClient(status=status, exit_code=code))[0] == code


def test_a_job_that_was_stopped_or_never_ran_is_no_success(capsys):
    assert _follow(FakeClient(status=JobStatus.STOPPED, exit_code=None))[0] == 1
    assert "Submit it again to go on" in capsys.readouterr().err
    assert _follow(FakeClient(status=JobStatus.FAILED, exit_code=None))[0] == 1
    assert "failed: lost" in capsys.readouterr().err


def test_a_lost_connection_repeats_nothing_of_the_log_and_leaves_nothing_out():
    client = FakeClient(
        parts=[["a\n", "b\n", "broken"], ["a\nb", "\nc\n", "broken"], ["a\nb\nc\nd\n"]]
    )
    assert _follow(client) == (0, "a\nb\nc\nd\n")


def test_a_head_that_is_away_for_a_moment_is_waited_for_and_one_that_is_gone_is_told_of():
    class Away(FakeClient):
        calls = 0
        back_after = 3

        def get_job_info(self, job_id: str) -> Any:
            self.calls += 1
            if self.calls <= self.back_after:
                raise OSError("no route")
            return super().get_job_info(job_id)

    assert _follow(Away())[0] == 0
    gone = Away()
    gone.back_after = 10_000
    with pytest.raises(RapidError, match="--follow id"):
        _follow(gone)


def test_ctrl_c_leaves_the_job_and_says_how_to_stop_it(capsys):
    class Interrupted(FakeClient):
        async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            yield "a\n"
            raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as end:
        follow_job(Interrupted(), "id", "http://127.0.0.1:1")
    assert end.value.exit_code == 1
    said = capsys.readouterr().err
    assert "The job goes on" in said
    assert "ray job stop --address http://127.0.0.1:1 id" in said


def test_a_second_job_for_a_run_directory_is_refused_while_the_first_one_lives():
    metadata = {"rapid_dist.out": OUT[1]}
    job = SimpleNamespace(metadata=metadata, status=JobStatus.RUNNING, submission_id="first")
    with pytest.raises(ConfigError, match="--follow first"):
        submit.refuse_second(FakeClient(living=[job]), OUT[1])
    submit.refuse_second(FakeClient(living=[job]), "s3://bucket/runs/other")
    job.status = JobStatus.STOPPED
    submit.refuse_second(FakeClient(living=[job]), OUT[1])


def test_a_cluster_that_takes_no_job_is_an_error_in_one_line(tmp_path):
    class Refusing(FakeClient):
        def submit_job(self, **options: Any) -> str:
            raise RuntimeError("no\nroom")

    job = submit.prepare(["audit", *OUT], working_dir=tmp_path)
    with pytest.raises(RapidError, match="took no job: no room"):
        submit.send(Refusing(), job)


def test_a_token_that_others_can_read_is_refused(tmp_path):
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(stat.S_IRUSR | stat.S_IRGRP)
    with pytest.raises(ConfigError, match="chmod 600"):
        submit.connect("http://127.0.0.1:1", token)


def test_an_address_where_no_jobs_api_can_be_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="tunnel"):
        submit.connect("10.0.0.1:6379", None)


def test_only_the_driver_of_a_job_notes_anything_in_its_metadata(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert submission_id() is None
    assert not note_in_job({"run": "digits-1"})
    told = '{"metadata": {"job_submission_id": "raysubmit_1"}}'
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", told)
    assert submission_id() == "raysubmit_1"


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["--set", "tracking.uri=https://reader:correct-horse@mlflow"], {}),
        ([], {"MLFLOW_TRACKING_URI": "postgresql://mlflow:correct-horse@db/mlflow"}),
    ],
)
def test_a_job_that_would_show_credentials_is_refused_without_repeating_them(
    words: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    command = ["run", "--recipe", "digits", *OUT, *words]
    with pytest.raises(ConfigError, match="holds credentials") as refused:
        submit.prepare(command, working_dir=tmp_path, environment=environment)
    assert "correct-horse" not in str(refused.value)


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "ANOTHER_NAME"])
def test_a_job_that_would_show_a_secret_of_this_environment_is_refused_without_repeating_it(
    name: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "correct-horse")
    command = ["run", "--recipe", "digits", *OUT]
    with pytest.raises(ConfigError, match=f"--env {name} is a secret") as refused:
        submit.prepare(command, working_dir=tmp_path, environment={name: "correct-horse"})
    assert "correct-horse" not in str(refused.value)


def test_a_jobs_api_beyond_this_machine_is_not_asked_without_a_token(monkeypatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="reached over a network, and no token is named"):
        submit.connect("http://10.0.0.5:8265", None)


def test_a_command_that_holds_a_secret_of_this_environment_is_refused_without_repeating_it(
    tmp_path: Path, monkeypatch
) -> None:
    command = ["run", "--recipe", "digits", *OUT, "--set", "seed=1"]
    submit.prepare(command, working_dir=tmp_path)
    monkeypatch.setenv("RAPID_DIST_KEY_PASSPHRASE", "correct-horse")
    with pytest.raises(ConfigError, match="holds a secret of this environment") as refused:
        submit.prepare([*command, "--key=correct-horse"], working_dir=tmp_path)
    assert "correct-horse" not in str(refused.value)
