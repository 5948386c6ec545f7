"""The registered model as MLflow serves it: a table of labels in, images out.

    model = mlflow.pyfunc.load_model("models:/digits@candidate")
    images = model.predict(pd.DataFrame({"label": [3, 3, 7]}), params={"seed": 1})

MLflow runs this from the model's own copy of the package; the weights come from the bundle
among its artifacts, after every checksum has been compared. ``params["first_id"]`` continues a
series: rows 0..99 and then 100..199 are the same images as one call for 200.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from rapid_dist.release.generator import Generator

BUNDLE = "bundle"  # The name of the one artifact, also in registry.py.


class GeneratorModel(PythonModel):
    """A ``Generator`` behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Opens the bundle; refuses one that was changed after its release."""
        device = (context.model_config or {}).get("device", "cpu")
        self._generator = Generator.open(Path(context.artifacts[BUNDLE]), device)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> np.ndarray:
        """Returns one image for every row of the column ``label``, uint8 [n, C, S, S]."""
        params = params or {}
        labels = model_input["label"].to_numpy(dtype=np.int64)
        return self._generator.generate(
            labels, seed=int(params.get("seed", 0)), first_id=int(params.get("first_id", 0))
        )
