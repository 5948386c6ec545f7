"""Whether a run has to find room for searchers beside its training workers.

Most methods look nothing up while they train, and searchers then have the cluster to themselves.
Where private queries are asked in training, they are answered in each worker or by actors beside
them, by the size of the knowledge base; until that is made, room is looked for.
"""

from rapid_dist.config import RuntimeConfig
from rapid_dist.methods import artifacts, catalog
from rapid_dist.methods.private_stages import asks_in_training
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.retrieval.manifest import Manifest
from rapid_dist.runtime.placement import stands_beside
from rapid_dist.storage import open_storage


def searchers_beside(
    settings: MethodSettings, runtime: RuntimeConfig, public_uri: str | None = None
) -> bool:
    """Whether room for searchers is looked for beside training.

    Args:
      public_uri: where the knowledge base is, if it is made already; None looks nowhere.
    """
    if not (catalog.has_stage(settings, "train") and asks_in_training(settings)):
        return False
    manifest = None
    if public_uri is not None:
        place = open_storage(public_uri).child(artifacts.knowledge_base_name(settings))
        manifest = Manifest.read(place) if artifacts.is_done(place) else None
    return stands_beside(runtime.search, manifest, runtime.memory_gb)
