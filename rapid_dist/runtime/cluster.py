"""Joining a Ray cluster, or starting one on this machine for the length of a run.

Ray reads most of what matters here from the environment, in every process it starts, so the
environment is set before ``ray.init`` and never left to a default: the authentication mode above
all, whose default differs between Ray's own commands.
"""

import contextlib
import logging
import os
import secrets
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.autoscaler.sdk import request_resources

from rapid_dist.environment import SETTLED
from rapid_dist.errors import ConfigError
from rapid_dist.runtime.needs import Needs
from rapid_dist.runtime.placement_roles import Phase, bundles, misfit, unsafe_driver
from rapid_dist.runtime.ray_address import check_answers, require_closed
from rapid_dist.runtime.raylet import disconnect, raylet_watched, remove, started
from rapid_dist.runtime.same_versions import mismatch, versions_here, versions_of_nodes

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # Train would move its workers to a folder it throws away.
    "RAY_USAGE_STATS_ENABLED": "0",
}
NOWHERE = "http://127.0.0.1:9"  # Nobody listens there.
# Of the process that starts a head. A host that is cut off answers nothing, so each of Ray's looks
# takes its whole timeout: with its own settings 5 of 10 s, 3 s apart, and with these half a minute.
# And where usage statistics are off, a head would report to Ray's makers that they are.
HEAD_ENVIRONMENT = {
    "RAY_USAGE_STATS_REPORT_URL": NOWHERE,
    "RAY_health_check_failure_threshold": "5",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "4000",
}
# A head also asks the metadata services of clouds in which of them it is. It asks by `requests`,
# which takes a variable of such a name for the proxy of that one address.
ASKS_NO_CLOUD = {
    f"http://{host}_proxy": NOWHERE for host in ("169.254.169.254", "metadata.google.internal")
}
# On a cluster that is joined, a node that is lost may be replaced by a machine that has to start
# first. Train waits a minute for it, three times, and then fails the stage.
PATIENT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600"}
_SCALE_LOOK_SEC = 5.0
_TOKEN_SETTINGS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_TOKEN_FILE = "~/.ray/auth_token"  # Where Ray itself looks for one.


def shortage(needs: Needs, resources: Mapping[str, float]) -> str | None:
    """Returns what a cluster with these resources lacks, in one line, or nothing.

    Asked before the start, because Ray would wait for ever for a worker that fits nowhere.
    """
    cpus = resources.get("CPU", 0.0)
    if cpus < needs.cpus:
        return (
            f"runtime needs {needs.cpus} CPUs, the cluster has {cpus:g}. Lower runtime.workers, "
            "runtime.threads_per_worker, runtime.trajectory_actors or runtime.search_actors, or "
            "add a node."
        )
    gpus = resources.get("GPU", 0.0)
    if gpus < needs.gpus:
        return (
            f"runtime needs {needs.gpus} GPUs, the cluster has {gpus:g}. Lower runtime.workers, "
            "set runtime.device to auto or cpu, or add a node."
        )
    memory_gb = resources.get("memory", 0.0) / 2**30
    if memory_gb < needs.memory_gb:
        return (
            f"runtime needs {needs.memory_gb:g} GB of memory, the cluster has {memory_gb:.1f}. "
            "Lower runtime.workers or runtime.memory_gb, or add a node."
        )
    return None


@contextlib.contextmanager
def session(
    needs: Needs,
    *,
    debug: bool = False,
    roles: Sequence[Phase] = (),
    scale_minutes: float = 0.0,
) -> Iterator[None]:
    """Holds a connection to a cluster that satisfies ``needs``, and has room for ``roles``.

    With RAY_ADDRESS set (as it is inside a Ray job) that cluster is joined. Otherwise one is
    started here and stopped at the end; its CPUs are logical, so two workers run on one core as
    well, only slower. A caller that is connected already keeps its connection.

    Args:
      roles: processes that have to find a place on single nodes, phase after phase.
      scale_minutes: how long an autoscaler may take to bring nodes that are lacking.
    """
    if ray.is_initialized():
        _refuse_shortage(needs)
        yield
        return
    with contextlib.ExitStack() as undo:
        address = os.environ.get("RAY_ADDRESS", "")
        if address not in ("", "local"):
            check_answers(address)
            _prepare_environment(local=False)
            try:
                ray.init(logging_level=logging.WARNING, log_to_driver=debug)
            except ConnectionError:
                raise ConfigError(
                    f"RAY_ADDRESS={address} names no Ray cluster that answers. "
                    "Correct it, or unset it to start one here."
                ) from None
            except RuntimeError as error:
                refused = refusal(address, error)
                if refused is None:
                    raise
                raise ConfigError(refused) from None
        else:
            _prepare_environment(local=True)
            # Short, for Ray's sockets live there (107 bytes), and ours alone: Ray opens the folder
            # that it is given to everybody (0777), so that is one below.
            folder = tempfile.mkdtemp(prefix="rd", dir="/tmp")
            undo.callback(remove, folder)
            with started():
                ray.init(
                    address="local",
                    num_cpus=max(needs.cpus, os.cpu_count() or 1),
                    include_dashboard=False,
                    log_to_driver=debug,
                    logging_level=logging.WARNING,
                    _temp_dir=f"{folder}/r",
                )
        undo.callback(disconnect)
        undo.enter_context(raylet_watched())
        joined = address not in ("", "local")
        if joined:
            alive = [str(node["NodeManagerAddress"]) for node in nodes() if node["Alive"]]
            require_closed(ray.get_runtime_context().gcs_address, alive)
        if joined and scale_minutes:
            undo.enter_context(scaled(roles, minutes=scale_minutes))
        _refuse_shortage(needs)
        if joined:  # Of our own there is one node, and its resources have been counted.
            _refuse_other_versions()
            lacking = misfit(roles, nodes()) or unsafe_driver(roles, _own_labels())
            if lacking:
                raise ConfigError(lacking)
        yield


def nodes() -> list[dict[str, Any]]:
    """Returns the nodes of the cluster, dead ones among them."""
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return found


def cluster_resources(labels: Mapping[str, str] | None = None) -> dict[str, float]:
    """Returns what all living nodes with these labels have together, by Ray's names."""
    total: dict[str, float] = defaultdict(float)
    for node in nodes():
        own = node.get("Labels") or {}
        if node["Alive"] and all(own.get(name) == one for name, one in (labels or {}).items()):
            for name, amount in node["Resources"].items():
                total[name] += amount
    return dict(total)


@contextlib.contextmanager
def scaled(
    roles: Sequence[Phase],
    *,
    minutes: float,
    request: Callable[..., None] = request_resources,
    look: Callable[[], list[dict[str, Any]]] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Asks the cluster's autoscaler for nodes that ``roles`` lack, and keeps them meanwhile.

    Returns when there is room, or when the time is over: what is lacking then, the caller says.
    """
    wanted, labels = bundles(roles)
    request(bundles=wanted, bundle_label_selectors=labels)
    try:
        give_up = clock() + 60 * minutes
        while misfit(roles, (look or nodes)()) and clock() < give_up:
            sleep(_SCALE_LOOK_SEC)
        yield
    finally:
        request(bundles=[])  # Or the nodes would stay after the run, and be paid for.


def refusal(address: str, error: Exception) -> str | None:
    """Returns, in one line, why Ray would not join a cluster; None if that is nothing of these."""
    said = " ".join(str(error).split())
    if "Version mismatch" in said:
        return (
            f"The cluster at RAY_ADDRESS={address} runs other versions than this process. {said} "
            "Install the same constraints.txt, or one image, on driver and nodes."
        )
    if "token" in said.lower() or "authentication" in said.lower():
        return (
            f"The cluster at RAY_ADDRESS={address} asks for a token that this process does not "
            "have. Put the cluster's into ~/.ray/auth_token (0600), or name its file in "
            "RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token."
        )
    return None


def _refuse_other_versions() -> None:
    living = {n["NodeID"]: n["NodeManagerAddress"] for n in nodes() if n["Alive"]}
    other = mismatch(versions_here(), versions_of_nodes(living))
    if other:
        raise ConfigError(other)


def _own_labels() -> dict[str, str]:
    here = ray.get_runtime_context().get_node_id()
    return next((node.get("Labels") or {} for node in nodes() if node["NodeID"] == here), {})


def _refuse_shortage(needs: Needs) -> None:
    lacking = shortage(needs, cluster_resources())
    if lacking:
        raise ConfigError(lacking)


def authentication(environment: Mapping[str, str], *, local: bool) -> dict[str, str]:
    """Returns what has to be set for Ray to ask for a token, or to show one.

    Ray listens to every network of a machine, so a cluster that is started here is never without a
    token, whatever the shell says; in the environment it reaches our own processes and no file. A
    cluster that is joined may do without one if nobody else reaches it, which is asked later.
    """
    has_token = any(environment.get(name) for name in _TOKEN_SETTINGS)
    if local:
        new = {} if has_token else {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
        return {"RAY_AUTH_MODE": "token", **new}
    if environment.get("RAY_AUTH_MODE"):
        return {}
    has_token = has_token or Path(_TOKEN_FILE).expanduser().is_file()
    return {"RAY_AUTH_MODE": "token" if has_token else "disabled"}


def _prepare_environment(*, local: bool) -> None:
    for name, value in (SETTLED | ENVIRONMENT | ({} if local else PATIENT)).items():
        os.environ.setdefault(name, value)
    if local and os.environ["RAY_USAGE_STATS_ENABLED"] == "0":
        os.environ.update(ASKS_NO_CLOUD)
    os.environ.update(authentication(os.environ, local=local))
    # `import ray` has read the environment already; Ray's own commands refresh it the same way.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
