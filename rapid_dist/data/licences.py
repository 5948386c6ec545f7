"""Under which licence each named source is given; what a release prints beside the model.

A folder or an npz has the licence that its owner declares, and none that could be known here.
"""

from collections.abc import Mapping

from rapid_dist.data.declaration import PrivateSource, PublicSource

LICENCES = {
    "celeba": "non-commercial research only (CelebA)",
    "cifar10": "none stated (Krizhevsky 2009)",
    "cifar100": "none stated (Krizhevsky 2009)",
    "digits": "CC BY 4.0 (UCI, optical recognition of handwritten digits)",
    "emnist_letters": "public domain (NIST)",
    "fashion_mnist": "MIT",
    "folder": "as its owner states",
    "kannada": "CC BY-SA 4.0",
    "kmnist": "CC BY-SA 4.0",
    "letters": "DejaVu, STIX (OFL), BaKoMa and Aileron font licences; renderings are ours",
    "mednist": "CC BY-SA 4.0",
    "mnist": "CC BY-SA 3.0",
    "notmnist": "with the author's permission",
    "npz": "as its owner states",
    "omniglot": "MIT",
    "pneumonia": "CC BY 4.0",
}
UNRECORDED = ("folder", "npz", "cifar10", "cifar100")  # The text above is no licence.


def recorded_licence(source: PublicSource | PrivateSource, given: Mapping[str, str]) -> str:
    """Returns the licence of a source, empty if none is recorded.

    Args:
      given: licences by source, which come before all others.
    """
    known = "" if source.source in UNRECORDED else LICENCES[source.source]
    return given.get(source.source, "").strip() or source.licence.strip() or known
