"""Nothing that is read from storage is unpickled or run: a rule over the whole package (P16).

The rule is a function from (path, source) to faults, with a planted source for every fault that it
must find. What it finds and is right to be there stands in ``ALLOWED``, each with its reason; an
entry that nothing needs any more is a fault as well.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = ("rapid_dist", "jobs", "cluster", "benchmarks")

# (file, call): why it may be there.
ALLOWED = {
    ("rapid_dist/retrieval/inverted.py", "faiss.deserialize_index"): (
        "FAISS has no pickle, and the bytes are compared with the manifest's hash before"
    ),
    ("rapid_dist/evaluation/inception.py", "NoTrainInceptionV3"): (
        "torch-fidelity takes a .pth alone; it is written a moment before, from safetensors"
    ),
    ("rapid_dist/data/download.py", "download_and_extract_archive"): (
        "one archive, from one address, of one MD5; its files are read as bytes"
    ),
}

UNPICKLING = {
    "pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal",
    "jsonpickle", "pickletools", "ray.cloudpickle",
}  # fmt: skip
BUILT_IN = {"eval", "exec", "compile", "__import__"}
# By the last names of a call, whatever the module was imported as.
RUNS = {
    "import_module", "run_path", "run_module", "spec_from_file_location", "os.system", "os.popen",
    "torch.load", "jit.load", "hub.load", "read_pickle", "to_pickle", "torch.save",
    "pyfunc.load_model", "pytorch.load_model", "sklearn.load_model",
    "deserialize_index", "read_index", "NoTrainInceptionV3", "download_and_extract_archive",
    "extractall", "unpack_archive",
}  # fmt: skip
SAFE_YAML = {"yaml.safe_load", "yaml.safe_load_all", "yaml.safe_dump"}
NPY_READERS = {"np.load", "numpy.load", "read_array", "open_memmap", "fromregex"}


def _names(tree: ast.AST) -> dict[str, str]:
    """Returns what every name that was imported stands for."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(a.asname or a.name.partition(".")[0]): (a.name if a.asname else
                      a.name.partition(".")[0]) for a in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names}
    return found


def _modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is(call: str, names: set[str]) -> bool:
    return any(call == name or call.endswith(f".{name}") for name in names)


def _given(node: ast.Call, name: str) -> str | None:
    return next((ast.unparse(k.value) for k in node.keywords if k.arg == name), None)


def _fault(node: ast.Call, call: str) -> bool:
    """Whether a call runs or unpickles what it is given, or may."""
    if call.startswith("safetensors."):
        return False
    if call in BUILT_IN or _is(call, RUNS):
        return True
    if call.startswith("yaml.") and call not in SAFE_YAML:
        return True
    if _is(call, NPY_READERS):
        return _given(node, "allow_pickle") != "False"
    if call.endswith(".from_pretrained"):  # Diffusers would take a pickle where it finds no other.
        return _given(node, "use_safetensors") != "True" or _given(node, "local_files_only") is None
    if call.startswith("subprocess."):
        return _given(node, "shell") not in (None, "False")
    return _given(node, "allow_pickle") not in (None, "False")


def faults(path: str, source: str) -> list[tuple[str, str]]:
    """Returns (path, call or module) of everything that is not to be there."""
    tree = ast.parse(source)
    found = [(path, name) for name in _modules(tree) if name in UNPICKLING
             or name.partition(".")[0] in UNPICKLING]  # fmt: skip
    known = _names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            call = f"{known.get(first, first)}{dot}{rest}"
            call = call.replace("numpy.", "np.", 1) if call.startswith("numpy.") else call
            if _fault(node, call):
                found.append((path, ".".join(call.split(".")[-2:])))
        elif isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base) for base in node.bases}
            if bases & {"yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader"}:
                found.append((path, f"class {node.name}"))
    return found


def _allowed(fault: tuple[str, str]) -> bool:
    return any(
        path == fault[0] and fault[1].endswith(call.split(".")[-1]) for path, call in ALLOWED
    )


def _all_faults() -> list[tuple[str, str]]:
    return [
        fault
        for folder in CODE
        for path in sorted((ROOT / folder).rglob("*.py"))
        for fault in faults(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]


def test_nothing_from_storage_is_unpickled_or_run() -> None:
    found = _all_faults()
    # torch.save alone writes; it is there for the vendor that is allowed in the same file.
    writes = ("rapid_dist/evaluation/inception.py", "torch.save")
    assert [fault for fault in found if not _allowed(fault) and fault != writes] == []
    needed = {(path, call) for path, call in ALLOWED for f in found if f[0] == path and _allowed(f)}
    assert needed == set(ALLOWED)


PLANTED = [
    "import pickle\npickle.loads(data)",
    "from pickle import loads as read\nread(data)",
    "import joblib",
    "from ray import cloudpickle",
    "import ray.cloudpickle as cp",
    "import torch\ntorch.load(path)",
    "import torch\ntorch.load(path, weights_only=True)",
    "import torch as t\nt.load(path)",
    "from torch import load\nload(path)",
    "import torch\ntorch.jit.load(path)",
    "import torch\ntorch.hub.load('a', 'b')",
    "import numpy as np\nnp.load(path)",
    "import numpy as np\nnp.load(path, allow_pickle=True)",
    "import numpy as np\nnp.load(path, allow_pickle=trusted)",
    "import numpy\nnumpy.load(path)",
    "import numpy as np\nnp.lib.format.read_array(file)",
    "import pandas as pd\npd.read_pickle(path)",
    "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
    "import yaml\nyaml.unsafe_load(text)",
    "import yaml\nyaml.full_load(text)",
    "import yaml as y\ny.load(text)",
    "import yaml\nclass L(yaml.Loader): pass",
    "eval(text)",
    "exec(text)",
    "compile(text, 'a', 'exec')",
    "__import__(name)",
    "import importlib\nimportlib.import_module(name)",
    "import runpy\nrunpy.run_path(path)",
    "import os\nos.system(text)",
    "import subprocess\nsubprocess.run(text, shell=True)",
    "from diffusers import UNet2DModel\nUNet2DModel.from_pretrained(path)",
    "from diffusers import UNet2DModel\nUNet2DModel.from_pretrained(path, use_safetensors=True)",
    "import mlflow\nmlflow.pyfunc.load_model(uri)",
    "import faiss\nfaiss.read_index(path)",
    "import tarfile\ntarfile.open(path).extractall()",
]


@pytest.mark.parametrize("source", PLANTED)
def test_a_planted_reader_is_found(source: str) -> None:
    assert faults("rapid_dist/planted.py", source) != []


HONEST = [
    "import json\njson.loads(data)",
    "import re\nre.compile(text)",
    "import numpy as np\nnp.load(path, allow_pickle=False)",
    "import yaml\nyaml.safe_dump(tree)",
    "import yaml\nclass L(yaml.SafeLoader): pass",
    "import subprocess\nsubprocess.run([a, b], check=True)",
    "from safetensors.torch import load\nload(data)",
    "model.eval()",
    "self.storage.load(name)",
    "from diffusers import UNet2DModel\n"
    "UNet2DModel.from_pretrained(path, use_safetensors=True, local_files_only=True)",
]


@pytest.mark.parametrize("source", HONEST)
def test_an_honest_reader_is_let_through(source: str) -> None:
    assert faults("rapid_dist/planted.py", source) == []
