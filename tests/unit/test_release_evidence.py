"""What a passport says of a recipe, and what of the owner's machines it does not."""

import json

from rapid_dist.config import load_recipe
from rapid_dist.runtime.release_evidence import told_settings


def test_a_passport_names_files_and_not_where_they_lie() -> None:
    recipe = load_recipe(
        "digits",
        [
            "data.root=/home/secret-owner",
            "data.private.source=npz",
            "data.private.path=/home/secret-owner/scans.npz",
            "data.public=[{source: npz, path: 's3://secret-owner/a.npz', licence: MIT}]",
            "autoencoder.source=/home/secret-owner/vae",
            "autoencoder.licence=MIT",
            "runtime.ledger_dir=/home/secret-owner/ledger",
        ],
    )
    told = told_settings(recipe)
    assert told["data"]["private"]["path"] == "scans.npz"
    assert told["data"]["public"][0]["path"] == "a.npz"
    assert told["autoencoder"]["source"] == "vae"
    assert "secret-owner" not in json.dumps(told)
    assert told["data"]["private"]["num_records"] == recipe.data.private.num_records
