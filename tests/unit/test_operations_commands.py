"""Every command of docs/operations.md is run by a test, or it is said why it cannot be run here."""

import ast
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from botocore import xform_name
from botocore.session import get_session

from tests.unit.test_cluster_files import MANIFESTS, ROOT, accepted
from tests.unit.test_operations import SCRIPTS, TEXT, blocks, lines

OPERATIONS = "tests/unit/test_operations.py"
HERE = "tests/unit/test_operations_commands.py"
HOSTS = "tests/cluster/hosts/test_jobs.py"
RELEASED = f"{OPERATIONS}::test_the_release_of_the_document_is_made_by_its_commands"
SERVED = (
    "tests/e2e/test_services.py"
    "::test_a_stack_is_stopped_from_another_shell_also_when_its_owner_was_killed"
)
# How a command begins, and the test that runs it: as it stands, smaller, or as far as a schema of
# its vendor goes. Or why none can.
RUN = {
    r"rapid-dist (run|sweep|compare) ":
        f"{OPERATIONS}::test_every_run_of_the_document_can_be_planned",
    r"rapid-dist submit (run|audit) ":
        f"{OPERATIONS}::test_every_job_of_the_document_would_be_sent",
    r"rapid-dist submit --follow ":
        "tests/unit/test_submit.py::test_the_exit_code_of_the_job_is_returned",
    r"rapid-dist (release|generate|ledger) ": RELEASED,
    r"rapid-dist audit ":
        "tests/e2e/test_audit.py::test_the_installed_code_passes_the_audit_of_digits",
    r"rapid-dist status ":
        "tests/unit/test_status.py::test_the_command_prints_lines_and_ends_with_json",
    r"ray job submit .* python cluster/smoke.py":
        f"{HERE}::test_the_smoke_check_reads_the_options_that_it_is_given",
    r"ray job submit .* python jobs/":
        f"{HOSTS}::test_every_stage_by_its_own_script_makes_the_run_that_one_job_makes",
    r"ray get-auth-token|chmod 600 ~/.ray|export RAY_AUTH_MODE":
        f"{HERE}::test_a_token_is_made_for_its_owner_alone_and_not_shown",
    r"cluster/up.sh ": "tests/unit/test_bare_metal.py"
        "::test_bare_metal_hosts_are_left_by_the_process_that_was_started_there",
    r"sed -i |AMI=": f"{HERE}::test_the_files_are_filled_in_by_the_commands_of_the_document",
    r"\. \./services.sh|export RAPID_ENV=":
        f"{HERE}::test_nodes_are_told_of_the_services_by_the_commands_of_the_document",
    r"aws (ecr create-|iam |ssm |sts )|export REGISTRY=":
        f"{HERE}::test_the_calls_of_amazons_command_are_calls_that_it_has",
    r"make services|\. services/environment.sh|ssh -t .* rapid_dist.runtime.services": SERVED,
    r"make demo": "minutes of both cores",
    r"docker |for image |aws (s3|ecr get-login)|export AWS_REGION": "needs docker and an account",
    r"ray (up|down|dashboard) ": "needs an account",
    r"kubectl ": "needs Kubernetes",
    r"ssh -N|scp ": "needs another machine",
    r"mkdir |done$|for role ": "the shell's own",
    r"createuser |pip install |export (AWS_A|MLFLOW)|mlflow (ui|server) ": "another's program",
}  # fmt: skip


def _commands() -> list[str]:
    return [line.removeprefix(".venv/bin/") for line in lines(TEXT)]


def _missing(where: str) -> bool:
    place, _, name = where.partition("::")
    if not place.startswith("tests/"):
        return False
    tree = ast.parse((ROOT / place).read_text(encoding="utf-8"))
    return name not in {getattr(node, "name", "") for node in ast.walk(tree)}


def test_of_every_command_it_is_said_which_test_runs_it_or_why_none_can() -> None:
    commands = _commands()
    assert len(commands) > 80
    found = {line: [kind for kind in RUN if re.match(kind, line)] for line in commands}
    assert {line: kinds for line, kinds in found.items() if len(kinds) != 1} == {}
    assert set(RUN) == {kind for kinds in found.values() for kind in kinds}
    assert [where for where in RUN.values() if _missing(where)] == []
    assert _missing(f"{HERE}::test_that_is_not_there")


@pytest.mark.parametrize("block", blocks(TEXT), ids=lambda block: block.split("\n")[0].strip()[:40])
def test_every_block_is_what_a_shell_can_read(block: str) -> None:
    done = subprocess.run(["sh", "-n"], input=block, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "words", [words for words in SCRIPTS if "cluster/smoke.py" in words], ids=" ".join
)
def test_the_smoke_check_reads_the_options_that_it_is_given(words: list[str]) -> None:
    options = runpy.run_path(str(ROOT / "cluster" / "smoke.py"))["options"]()
    asked = options.parse_args(words[words.index("cluster/smoke.py") + 1 :])
    assert asked.storage.startswith("s3://")
    assert asked.workers >= 1


def _sh(commands: list[str], folder: Path, **environment: str) -> str:
    tools = (
        f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # As after `. .venv/bin/activate`.
    )
    told = {"PATH": tools, "HOME": str(folder), **environment}
    done = subprocess.run(
        ["sh", "-euc", "\n".join(commands)],
        cwd=folder, env=told, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_token_is_made_for_its_owner_alone_and_not_shown(tmp_path: Path) -> None:
    (block,) = [block for block in blocks(TEXT) if "get-auth-token" in block]
    said = _sh([*lines(f"```\n{block}```"), 'echo "mode $RAY_AUTH_MODE"'], tmp_path)
    token = tmp_path / ".ray" / "auth_token"
    assert said == "mode token\n"
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text().strip()) >= 32


def test_the_files_are_filled_in_by_the_commands_of_the_document(tmp_path: Path) -> None:
    for name in ("ray-cluster.yaml", *MANIFESTS):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    filling = [line for line in _commands() if line.startswith("sed -i ")]
    assert len(filling) == 2
    own = {"REGISTRY": "1.dkr.here", "AMI": "ami-1", "BUCKET": "scans", "AWS_REGION": "eu-north-1"}
    _sh(filling, tmp_path, **own)
    text = (tmp_path / "ray-cluster.yaml").read_text()
    filled = accepted(yaml.safe_load(text))
    assert filled["provider"]["region"] == "eu-north-1"
    assert filled["docker"]["image"] == "1.dkr.here/rapid-dist:0.1.0"
    assert "--region eu-north-1" in filled["initialization_commands"][1]
    assert filled["initialization_commands"][1].endswith("--password-stdin 1.dkr.here")
    for kind in filled["available_node_types"].values():
        assert kind["node_config"]["ImageId"] == "ami-1"
    for name in ("ray-cluster.yaml", *MANIFESTS):
        settings = re.sub(r"#.*", "", (tmp_path / name).read_text())
        assert not re.search(r"REGISTRY|\bAMI\b|s3://bucket|eu-central-1", settings)
    assert "--out s3://scans/runs/mnist" in (tmp_path / "cluster" / "rayjob.yaml").read_text()


def test_nodes_are_told_of_the_services_by_the_commands_of_the_document(tmp_path: Path) -> None:
    told = "export MLFLOW_TRACKING_URI=http://10.0.0.1:1\nexport AWS_REGION=here\n"
    (tmp_path / "services.sh").write_text(told)  # As rapid_dist/runtime/services.py writes it.
    telling = [line for line in _commands() if "services.sh" in line and "scp" not in line]
    said = _sh([*telling, 'echo "$RAPID_ENV/$AWS_REGION"'], tmp_path)
    assert said.split() == ["MLFLOW_TRACKING_URI=http://10.0.0.1:1", "AWS_REGION=here", "/here"]


def test_the_calls_of_amazons_command_are_calls_that_it_has() -> None:
    """By botocore's models, which the command is made of; its own additions are not in them."""
    calls = re.findall(r"\baws (iam|ssm|sts|ecr) ([a-z-]+)([^|)\n]*)", "\n".join(_commands()))
    asked = [call for call in calls if call[1] != "get-login-password"]
    assert len(asked) >= 9
    for service, call, options in asked:
        model = get_session().get_service_model(service)
        (name,) = [one for one in model.operation_names if xform_name(one, "-") == call]
        shape = model.operation_model(name).input_shape
        known = {f"--{xform_name(member, '-')}" for member in (shape.members if shape else ())}
        given = {word for word in shlex.split(options) if word.startswith("--")}
        assert given <= known | {"--query", "--output"}
        needed = shape.required_members if shape else ()
        required = {f"--{xform_name(member, '-')}" for member in needed}
        assert required <= given


def test_what_the_roles_may_do_is_said_as_amazon_reads_it() -> None:
    policies = [
        json.loads(word)
        for line in _commands()
        if line.startswith("aws iam")
        for word in shlex.split(line)
        if word.startswith("{")
    ]
    assert [one["Statement"][0]["Action"] for one in policies] == ["sts:AssumeRole", "iam:PassRole"]
    types = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())["available_node_types"]
    roles = {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in types.values()}
    (loop,) = [line for line in _commands() if line.startswith("for role ")]
    assert roles == set(re.findall(r"rapid-dist-\w+", loop))
    assert policies[1]["Statement"][0]["Resource"].endswith("role/rapid-dist-worker")
