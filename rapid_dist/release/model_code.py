"""The sampler as MLflow takes a model from code: no object, no pickle, three lines."""

MODEL_CODE = """\
import mlflow
from rapid_dist.release.pyfunc_model import GeneratorModel
mlflow.models.set_model(GeneratorModel())
"""
