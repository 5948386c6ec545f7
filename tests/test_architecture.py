"""The rules of docs/design.md section 5 that a reader of one file cannot see being broken.

Every rule is a function from (path, source) to the faults it finds, so that each has a twin: a
planted source that breaks the rule and must be caught.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "rapid_dist"
MAX_LINES = 400

LAYER = {
    **dict.fromkeys(["__init__", "errors"], 0),
    **dict.fromkeys(["confined", "environment", "leftovers", "secret"], 1),
    **dict.fromkeys(["ahead", "collective", "installed", "recipe_files", "storage"], 2),
    **dict.fromkeys(["diffusion", "retrieval", "privacy", "data"], 3),
    **dict.fromkeys(["public", "private"], 4),
    **dict.fromkeys(["release", "audit", "evaluation"], 5),
    "methods": 6,
    "config": 7,
    "runtime": 8,
    "cli": 9,
    "jobs": 10,
}

# A vendor's name and the places (a room's folder or one file) that may import it.
ONLY_IN = {
    "ray": ["runtime/"],
    "optuna": ["runtime/"],
    "mlflow": [
        "release/registry.py",
        "release/pyfunc_model.py",
        "release/pull.py",
        "release/server.py",
        "runtime/tracking.py",
    ],
    "faiss": ["retrieval/vectors.py", "retrieval/inverted.py"],
    "opacus": ["privacy/accounting.py", "private/", "audit/"],
    "dp_accounting": ["privacy/", "audit/"],
    "boto3": ["storage.py"],
    "botocore": ["storage.py"],
    "pydantic": ["config.py"],
    "yaml": ["recipe_files.py"],
    "cryptography": ["privacy/", "release/"],
    "jsonschema": ["release/passport.py"],
    "typer": ["cli/"],
    "rich": ["cli/", "runtime/progress.py"],
    "matplotlib": ["release/", "data/letters.py"],
    "sklearn": ["data/", "evaluation/"],
    "diffusers": ["diffusion/"],
    "torchmetrics": ["evaluation/"],
    **{name: [] for name in ["pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"]},
}

# Calls that only name something. Any other call at module level is work done on import.
NAMING_CALLS = {
    "NewType",
    "ParamSpec",
    "Path",
    "TypeVar",
    "frozenset",
    "logging.getLogger",
    "re.compile",
    "typer.Argument",
    "typer.Option",
    "typer.Typer",
}

Rule = Callable[[str, str], list[str]]


def _room(path: str) -> str:
    parts = Path(path).parts
    return (parts[1] if parts[0] == PACKAGE else parts[0]).removesuffix(".py")


def _module(path: str) -> list[str]:
    return list(Path(path).with_suffix("").parts)


def _imports(path: str, source: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (absolute module, names taken from it) for every import, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []
        elif isinstance(node, ast.ImportFrom):
            base = _module(path)[: -node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [alias.name for alias in node.names]
            if module == PACKAGE:  # `from rapid_dist import storage` names the module itself.
                for name in names:
                    yield f"{module}.{name}", []
            else:
                yield module, names


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def upward_imports(path: str, source: str) -> list[str]:
    here = _room(path)
    faults = []
    for module, _ in _imports(path, source):
        head, _, rest = module.partition(".")
        there = rest.partition(".")[0]
        if head == "jobs":
            there = "jobs"
        elif head != PACKAGE or not there or there.startswith("__"):
            continue
        if there not in LAYER:
            faults.append(f"{path}: {module} is no room of the house")
        elif there != here and LAYER[there] >= LAYER[here]:
            faults.append(f"{path}: {here} may not import {there}")
    return faults


def misplaced_vendors(path: str, source: str) -> list[str]:
    inside = path.removeprefix(f"{PACKAGE}/")
    faults = []
    for module, _ in _imports(path, source):
        rooms = ONLY_IN.get(module.partition(".")[0])
        if rooms is not None and not any(inside == r or inside.startswith(r) for r in rooms):
            faults.append(f"{path}: only {', '.join(rooms) or 'nobody'} may import {module}")
    return faults


def private_names_in_public_rooms(path: str, source: str) -> list[str]:
    """P10: what trains on public data cannot even spell the private types."""
    if _room(path) != "public":
        return []
    return [
        f"{path}: public/ may not take {name} from {module}"
        for module, names in _imports(path, source)
        for name in names
        if "private" in name.lower()
    ]


def work_on_import(path: str, source: str) -> list[str]:
    def is_inert(node: ast.stmt) -> bool:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.ClassDef():
                return True
            case ast.AsyncFunctionDef():
                return True
            case ast.Expr(value=ast.Constant(value=str())):
                return True
            case ast.Assign(value=value) | ast.AnnAssign(value=value):
                calls = [n for n in ast.walk(value) if isinstance(n, ast.Call)] if value else []
                return all(_called(call) in NAMING_CALLS for call in calls)
            case ast.If(test=test):
                return ast.unparse(test) in {"TYPE_CHECKING", "__name__ == '__main__'"}
            case _:
                return False

    faults = [
        f"{path}:{node.lineno}: runs on import: {ast.unparse(node)[:80]}"
        for node in ast.parse(source).body
        if not is_inert(node)
    ]
    if path.endswith("__init__.py"):  # A package's door imports nothing, so rooms stay apart.
        faults += [f"{path}: imports {module}" for module, _ in _imports(path, source)]
    return faults


def overlong(path: str, source: str) -> list[str]:
    lines = source.count("\n")
    return [f"{path}: {lines} lines, at most {MAX_LINES}: split it"] if lines > MAX_LINES else []


def _sources(*folders: str) -> Iterator[tuple[str, str]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def _faults(rule: Rule, *folders: str) -> list[str]:
    return [fault for path, source in _sources(*folders) for fault in rule(path, source)]


CODE = (PACKAGE, "jobs")


def test_imports_point_down_and_siblings_do_not_see_each_other() -> None:
    assert _faults(upward_imports, *CODE) == []


def test_each_vendor_is_imported_in_its_own_room_only() -> None:
    assert _faults(misplaced_vendors, *CODE) == []


def test_public_rooms_take_no_private_type() -> None:
    assert _faults(private_names_in_public_rooms, *CODE) == []


def test_importing_a_module_does_no_work() -> None:
    assert _faults(work_on_import, *CODE) == []


def test_no_file_is_longer_than_one_sitting() -> None:
    assert _faults(overlong, *CODE, "tests", "benchmarks") == []


def test_the_rules_have_something_to_read() -> None:
    rooms = {_room(path) for path, _ in _sources(*CODE)}
    assert set(LAYER) - rooms == set()


PLANTED: list[tuple[Rule, str, str]] = [
    (upward_imports, "rapid_dist/public/pretrain.py", "from rapid_dist.private import loop"),
    (upward_imports, "rapid_dist/public/pretrain.py", "from ..private.loop import train"),
    (upward_imports, "rapid_dist/public/pretrain.py", "from rapid_dist import private"),
    (upward_imports, "rapid_dist/retrieval/shard.py", "import rapid_dist.privacy.ledger"),
    (upward_imports, "rapid_dist/storage.py", "from rapid_dist.data.images import ImageSpec"),
    (upward_imports, "rapid_dist/methods/rapid.py", "from rapid_dist.config import Recipe"),
    (upward_imports, "rapid_dist/runtime/pipeline.py", "from rapid_dist.cli import run"),
    (upward_imports, "rapid_dist/cli/main.py", "from jobs.train import x"),
    (upward_imports, "rapid_dist/cli/main.py", "from rapid_dist.cellar import x"),
    (misplaced_vendors, "rapid_dist/methods/rapid.py", "def f():\n    import ray.train"),
    (misplaced_vendors, "rapid_dist/runtime/pipeline.py", "from mlflow import MlflowClient"),
    (misplaced_vendors, "rapid_dist/retrieval/shard.py", "import faiss"),
    (misplaced_vendors, "rapid_dist/privacy/poisson.py", "from opacus import PrivacyEngine"),
    (misplaced_vendors, "rapid_dist/storage.py", "import pickle"),
    (misplaced_vendors, "rapid_dist/config.py", "import yaml"),
    (private_names_in_public_rooms, "rapid_dist/public/adapt.py",
     "from rapid_dist.data.images import PrivateImages"),
    (private_names_in_public_rooms, "rapid_dist/public/adapt.py",
     "from rapid_dist.data.sources import load_private"),
    (work_on_import, "rapid_dist/storage.py", "import os\nos.makedirs('x')"),
    (work_on_import, "rapid_dist/storage.py", "CLIENT = boto3.client('s3')"),
    (work_on_import, "rapid_dist/storage.py", "for i in range(3):\n    pass"),
    (work_on_import, "rapid_dist/storage.py", "if torch.cuda.is_available():\n    x = 1"),
    (work_on_import, "rapid_dist/data/__init__.py", "from rapid_dist.data import images"),
    (overlong, "rapid_dist/storage.py", "x = 1\n" * (MAX_LINES + 1)),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "path", "source"), PLANTED)
def test_a_planted_fault_is_caught(rule: Rule, path: str, source: str) -> None:
    assert rule(path, source) != []


ALLOWED: list[tuple[Rule, str, str]] = [
    (upward_imports, "rapid_dist/methods/rapid.py", "from rapid_dist.private import loop"),
    (upward_imports, "rapid_dist/data/sources.py", "from rapid_dist.data.images import ImageSpec"),
    (misplaced_vendors, "rapid_dist/runtime/cluster.py", "import ray"),
    (misplaced_vendors, "rapid_dist/storage.py", "import boto3"),
    (private_names_in_public_rooms, "rapid_dist/methods/rapid.py",
     "from rapid_dist.data.images import PrivateImages"),
    (work_on_import, "rapid_dist/storage.py", "NAME = re.compile('x')\nRATE: float = 1 / 3"),
    (work_on_import, "jobs/train.py", "if __name__ == '__main__':\n    main()"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "path", "source"), ALLOWED)
def test_an_honest_source_is_let_through(rule: Rule, path: str, source: str) -> None:
    assert rule(path, source) == []
