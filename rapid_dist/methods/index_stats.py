"""What `rapid-dist index --stats` says: measured on public data, written beside the run."""

import json
from dataclasses import asdict

from rapid_dist.methods import artifacts
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.release.distances import histogram_png
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.retrieval.stats import KnowledgeBaseStats, measure
from rapid_dist.storage import Storage

STATS, HISTOGRAM = "knowledge-base.json", "knowledge-base.png"


def write_stats(settings: MethodSettings, public: Storage, out: Storage) -> KnowledgeBaseStats:
    """Measures the recipe's finished knowledge base; writes the figures and a histogram."""
    storage = public.child(artifacts.knowledge_base_name(settings))
    stats = measure(KnowledgeBase.open(storage), storage)
    out.write(STATS, json.dumps(asdict(stats), indent=1).encode())
    picture = histogram_png(
        stats.nearest,
        title=f"{stats.sampled:,} of {stats.entries:,} entries",
        axis="squared distance to the nearest entry of another image",
    )
    out.write(HISTOGRAM, picture)
    return stats
