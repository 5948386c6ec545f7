"""A run directory belongs to one recipe, and knows what has been done in it."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rapid_dist.config import Recipe, parse_recipe
from rapid_dist.errors import ConfigError
from rapid_dist.runtime.run_directory import (
    Places,
    RunDirectory,
    places,
    require_folder,
    require_writable,
)


def _recipe(**changes: object) -> Recipe:
    tree: dict[str, object] = {
        "name": "small",
        "data": {
            "private": {
                "source": "digits",
                "name": "digits",
                "num_records": 1432,
                "num_classes": 10,
                "size": 8,
            },
            "public": [{"source": "letters", "count": 100}],
        },
        "privacy": {"epsilon": 10, "delta": 1e-4},
    }
    return parse_recipe(tree | changes)


def test_public_stages_and_ledgers_stand_beside_the_run(tmp_path: Path) -> None:
    found = places(_recipe(), str(tmp_path / "runs" / "a"))
    assert found.public == str(tmp_path / "runs" / "public")
    assert found.ledger == str(tmp_path / "runs" / "ledger")
    in_bucket = places(_recipe(), "s3://bucket/runs/a/")
    assert (in_bucket.out, in_bucket.ledger) == ("s3://bucket/runs/a", "s3://bucket/runs/ledger")
    named = places(_recipe(runtime={"ledger_dir": "s3://safe/ledger"}), "s3://bucket/runs/a")
    assert named.ledger == "s3://safe/ledger"


def test_places_mean_the_same_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert places(_recipe(), "runs/a").out == str(tmp_path / "runs" / "a")


@pytest.mark.parametrize(
    ("name", "setting"),
    [("out", "--out"), ("public", "runtime.public_dir"), ("ledger", "runtime.ledger_dir")],
)
def test_a_place_that_cannot_be_written_is_refused_by_its_setting(
    name: str, setting: str, tmp_path: Path
) -> None:
    good = {other: str(tmp_path / other) for other in ("out", "public", "ledger")}
    require_writable(Places(**good))
    require_writable(Places(**{**good, name: "s3://bucket/is-asked-later"}))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(good)  # And nothing in them.
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"file\S* cannot be written .* another {setting}\."):
        require_writable(Places(**{**good, name: str(tmp_path / "file" / "in")}))


def test_a_run_keeps_its_name_in_the_ledger_and_two_runs_have_two(tmp_path: Path) -> None:
    first = RunDirectory(_recipe(), str(tmp_path / "a"))
    assert RunDirectory(_recipe(), str(tmp_path / "a")).run == first.run
    assert RunDirectory(_recipe(), str(tmp_path / "b")).run != first.run


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"privacy": {"epsilon": 5, "delta": 1e-4}}, "privacy.epsilon=10.0, now it is 5.0"),
        ({"train": {"mode": "full"}}, "train.mode='late', now it is 'full'"),
        ({"seed": 1}, "seed=0, now it is 1"),
        ({"runtime": {"ledger_dir": "/b"}}, "runtime.ledger_dir=None, now it is '/b'"),
    ],
)
def test_a_directory_that_another_recipe_has_begun_is_refused(
    changes: dict[str, object], setting: str, tmp_path: Path
) -> None:
    RunDirectory(_recipe(), str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        RunDirectory(_recipe(**changes), str(tmp_path))
    assert setting in str(caught.value)
    assert "--out" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{"runtime": {"workers": 5}}, {"tracking": {"experiment": "other"}}],
)
def test_where_a_run_happens_may_change(changes: dict[str, object], tmp_path: Path) -> None:
    with RunDirectory(_recipe(), str(tmp_path)).stage("train"):
        pass
    assert RunDirectory(_recipe(**changes), str(tmp_path)).is_done("train")


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites config.yaml as a version with other settings would have left it."""
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    change(tree)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))


def _made_older(tree: dict[str, Any]) -> None:
    """Takes settings out, as if they had come later: of three sections, and a section whole."""
    del tree["train"]["precision"], tree["data"]["public"][0]["margin"], tree["adapt"]
    del tree["runtime"]["search"]
    tree["runtime"]["of_old"] = 3  # One that is gone since, and changed no result.


def test_a_run_goes_on_under_a_version_that_has_got_new_settings(tmp_path: Path) -> None:
    with RunDirectory(_recipe(), str(tmp_path)).stage("train"):
        pass
    whole = (tmp_path / "config.yaml").read_bytes()
    _edit(tmp_path, _made_older)
    again = RunDirectory(_recipe(), str(tmp_path))
    assert again.is_done("train")
    assert (tmp_path / "config.yaml").read_bytes() == whole


def test_a_new_setting_that_is_not_what_was_done_before_is_refused(tmp_path: Path) -> None:
    RunDirectory(_recipe(), str(tmp_path))
    _edit(tmp_path, _made_older)
    with pytest.raises(ConfigError, match=r"begun with train\.precision='auto', now it is 'bf16'"):
        RunDirectory(_recipe(train={"precision": "bf16"}), str(tmp_path))


def test_a_setting_that_shaped_a_run_and_is_gone_since_is_refused(tmp_path: Path) -> None:
    RunDirectory(_recipe(), str(tmp_path))
    _edit(tmp_path, lambda tree: tree["train"].update(of_old=3))
    with pytest.raises(ConfigError, match=r"config\.yaml .*no setting train\.of_old .*--out"):
        RunDirectory(_recipe(), str(tmp_path))


def test_a_debug_run_never_becomes_one_that_may_be_released(tmp_path: Path) -> None:
    RunDirectory(_recipe(), str(tmp_path))
    RunDirectory(_recipe(runtime={"debug": True}), str(tmp_path))  # It may become a debug run.
    with pytest.raises(ConfigError, match=r"begun with runtime\.debug=True, now it is False"):
        RunDirectory(_recipe(), str(tmp_path))
    RunDirectory(_recipe(runtime={"debug": True, "workers": 5}), str(tmp_path))


def test_other_samples_are_drawn_anew_and_training_stays(tmp_path: Path) -> None:
    directory = RunDirectory(_recipe(), str(tmp_path))
    for stage in ("train", "generate", "evaluate"):
        with directory.stage(stage):
            pass
    for name in ("samples/done.json", "bundle/unet/x", "private/w", "summary.json"):
        directory.storage.write(name, b"{}")
    directory.internal.write("quality.json", b"{}")
    again = RunDirectory(_recipe(sampling={"count": 7}), str(tmp_path))
    assert again.is_done("train")
    assert not again.is_done("generate")
    assert not again.is_done("evaluate")
    assert not again.is_complete()
    left = again.storage.list()
    assert "private/w" in left
    gone = ("samples/", "bundle/", "internal/quality")
    assert [name for name in left if name.startswith(gone)] == []


def test_another_evaluation_leaves_the_samples(tmp_path: Path) -> None:
    directory = RunDirectory(_recipe(), str(tmp_path))
    directory.storage.write("samples/done.json", b"{}")
    directory.internal.write("quality.json", b"{}")
    again = RunDirectory(_recipe(evaluation={"neighbors": 3}), str(tmp_path))
    assert again.storage.exists("samples/done.json")
    assert not again.internal.exists("quality.json")


def test_a_stage_that_fails_is_timed_and_not_done(tmp_path: Path) -> None:
    directory = RunDirectory(_recipe(), str(tmp_path))
    with pytest.raises(RuntimeError), directory.stage("train"):
        raise RuntimeError
    assert not directory.is_done("train")
    before = directory.seconds(["train"])["train"]
    with directory.stage("train"):
        pass
    assert directory.is_done("train")
    assert directory.seconds(["train", "generate"]).keys() == {"train"}
    assert directory.seconds(["train"])["train"] >= before


def test_internal_results_are_for_their_owner_alone(tmp_path: Path) -> None:
    RunDirectory(_recipe(), str(tmp_path)).storage.write("internal/controls/a.npz", b"")
    assert stat.S_IMODE((tmp_path / "internal").stat().st_mode) == 0o700


def test_the_folders_of_a_ledger_are_durable_before_anything_is_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def fsync(opened: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{opened}"))

    monkeypatch.setattr(os, "fsync", fsync)
    require_folder(str(tmp_path / "a" / "ledger"), "runtime.ledger_dir")
    assert sorted(synced) == [str(tmp_path), str(tmp_path / "a")]
