"""Secrets are named and never written; addresses are shown without their credentials."""

import json
import pickle
from pathlib import Path

import pytest

from rapid_dist.config import load_recipe, recipe_hash, to_tree, to_yaml
from rapid_dist.errors import ConfigError
from rapid_dist.secret import Secret, has_credentials, masked
from rapid_dist.storage import open_storage

HIDDEN = "correct-horse-battery"


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://mlflow:{HIDDEN}@db/mlflow",
        f"postgresql+psycopg2://mlflow:{HIDDEN}@db:5432/mlflow?sslmode=require",
        f"https://reader:{HIDDEN}@mlflow:5000/",
        f"https://{HIDDEN}@mlflow:5000",
        f"s3://AKIA123:{HIDDEN}@bucket/prefix",
        f"s3://AKIA123:a/{HIDDEN}@bucket/prefix",
        f"https://bucket.s3/x?X-Amz-Signature={HIDDEN}&a=1",
        f"postgresql://db/mlflow?user=a&password={HIDDEN}",
    ],
)
def test_credentials_of_an_address_are_masked_and_noticed(address: str) -> None:
    told = masked(f"cannot reach {address!r}: refused")
    assert HIDDEN not in told
    assert "cannot reach" in told
    assert "refused" in told
    assert has_credentials(address)
    assert not has_credentials(masked(address))


@pytest.mark.parametrize(
    "address",
    [
        "sqlite:////runs/mlflow.db",
        "http://mlflow:5000",
        "http://mlflow:5000/a@b",
        "s3://bucket/runs/a@b",
        "models:/rapid-dist-digits@released",
        "a.officer@example.org",
        "mailto:a@b and http://x",
    ],
)
def test_an_address_without_credentials_is_left_as_it_is(address: str) -> None:
    assert masked(address, {}) == address
    assert not has_credentials(address)


def test_secrets_of_the_environment_are_masked_wherever_they_stand() -> None:
    environment = {"AWS_SECRET_ACCESS_KEY": HIDDEN, "RAY_AUTH_TOKEN": "short", "PATH": "/usr/bin"}
    assert masked(f"key={HIDDEN}; short; /usr/bin", environment) == "key=***; short; /usr/bin"


@pytest.mark.parametrize("value", [HIDDEN, "env:", "env:lower", "file:", "env", ""])
def test_a_secret_in_clear_is_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(ConfigError, match="env:NAME") as refused:
        load_recipe("digits", [f"tracking.password={value}"] if value else ["tracking.password=''"])
    assert HIDDEN not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_mistyped_setting_that_is_given_a_secret_does_not_repeat_it() -> None:
    with pytest.raises(ConfigError, match=r"tracking\.passwort \(given: \*\*\*\)") as refused:
        load_recipe("digits", [f"tracking.passwort={HIDDEN}"])
    assert HIDDEN not in str(refused.value)


def test_a_secret_setting_is_shown_nowhere_and_changes_no_hash(monkeypatch) -> None:
    monkeypatch.setenv("TEAM_PASSWORD", HIDDEN)
    recipe = load_recipe("digits", ["tracking.username=a", "tracking.password=env:TEAM_PASSWORD"])
    assert recipe.tracking.password is not None
    assert recipe.tracking.password.reveal() == HIDDEN
    shown = [repr(recipe), str(recipe.tracking.password), f"{recipe.tracking}", to_yaml(recipe)]
    shown += [json.dumps(to_tree(recipe)), recipe.model_dump_json()]
    assert not [text for text in shown if HIDDEN in text or "TEAM_PASSWORD" in text]
    assert "password" not in to_tree(recipe)["tracking"]
    assert recipe_hash(recipe) == recipe_hash(load_recipe("digits"))
    assert HIDDEN.encode() not in pickle.dumps(recipe.tracking.password)


def test_a_secret_of_a_file_is_read_when_it_is_asked_for_and_only_from_ones_own(tmp_path) -> None:
    path = tmp_path / "password"
    path.write_text(f"{HIDDEN}\n")
    path.chmod(0o600)
    secret = Secret(f"file:{path}")
    assert secret.reveal() == HIDDEN
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        secret.reveal()
    with pytest.raises(ConfigError, match="TEAM_PASSWORD is not set"):
        Secret("env:TEAM_PASSWORD").reveal({})


@pytest.mark.parametrize(
    "override",
    [
        f"tracking.uri=postgresql://mlflow:{HIDDEN}@db/mlflow",
        f"data.root=s3://AKIA:{HIDDEN}@bucket/data",
        f"runtime.ledger_dir=s3://AKIA:{HIDDEN}@bucket/ledger",
    ],
)
def test_a_recipe_with_credentials_is_refused_without_repeating_them(override: str) -> None:
    with pytest.raises(ConfigError, match="holds credentials") as refused:
        load_recipe("digits", [override])
    assert HIDDEN not in str(refused.value)
    assert override.partition("=")[0] in str(refused.value)


def test_a_storage_address_with_keys_is_refused_without_repeating_them() -> None:
    for address in (f"s3://AKIA:{HIDDEN}@bucket/runs", f"ftp://a:{HIDDEN}@host/runs"):
        with pytest.raises(ConfigError) as refused:
            open_storage(address)
        assert HIDDEN not in str(refused.value)


def test_the_command_line_masks_what_a_vendor_quotes(monkeypatch, capfd, tmp_path: Path) -> None:
    import typer

    from rapid_dist.cli.main import main
    from rapid_dist.errors import RapidError

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", HIDDEN)
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail(debug: bool = False) -> None:
        raise RapidError(f"http://a:{HIDDEN}x@mlflow does not answer, nor to {HIDDEN}")

    for words in ([], ["--debug"]):
        assert main(words, app=app) == 1
        said = "".join(capfd.readouterr())
        assert "http://***@mlflow does not answer, nor to ***" in said
        assert HIDDEN not in said
    assert "Traceback" in said
