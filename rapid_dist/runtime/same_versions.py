"""Whether all nodes of a cluster run what the driver runs.

Ray compares its own version and Python's when a driver joins. torch and NumPy it does not know, and
two versions of them round differently or read each other's files differently, in the middle of a
run. So each node is asked once, before anything starts, by a task that imports neither.
"""

import contextlib
import platform
from collections.abc import Mapping
from importlib import metadata

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PACKAGES = ("ray", "torch", "numpy", "safetensors")
_ANSWER_SEC = 120.0  # A node's first process has to start; one that is slower is not waited for.


def versions_here() -> dict[str, str]:
    """Returns what this process runs, by name; a package that is not installed is "none"."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def mismatch(own: Mapping[str, str], nodes: Mapping[str, Mapping[str, str]]) -> str | None:
    """Returns, in one line, how nodes differ from the driver, or nothing.

    Args:
      nodes: what each node runs, by its address.
    """
    told = [
        f"{address} has {name} {theirs.get(name, 'none')}"
        for address, theirs in sorted(nodes.items())
        for name, version in own.items()
        # A local build (torch 2.11+cu130) is the same version for another device.
        if theirs.get(name, "none").partition("+")[0] != version.partition("+")[0]
    ]
    if not told:
        return None
    driver = ", ".join(f"{name} {version}" for name, version in own.items())
    return (
        f"The nodes do not run what the driver runs ({driver}): {'; '.join(told)}. Install the "
        "same constraints.txt, or one image, on all of them."
    )


def versions_of_nodes(addresses: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Asks living nodes what they run; those that do not answer in time are left out.

    Args:
      addresses: of each node, by its Ray id.
    """
    asked = {
        address: ray.remote(num_cpus=0)(versions_here)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote()
        for node, address in addresses.items()
    }
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=_ANSWER_SEC)
    found = {}
    for address, one in asked.items():
        if one in ready:
            with contextlib.suppress(RayError):  # A node that has just gone.
                found[address] = ray.get(one)
    return found
