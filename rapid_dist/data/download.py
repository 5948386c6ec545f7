"""Fetches sets by torchvision, for machines with a network; the only user of its downloads."""

from pathlib import Path

from torchvision import datasets
from torchvision.datasets.utils import download_and_extract_archive

from rapid_dist.errors import DataError

# The binary version: the same images as the pickled one, without pickle.
_CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"


def download_torchvision(name: str, folder: Path) -> None:
    """Fetches the set of torchvision's class ``name`` into ``folder``, in torchvision's layout."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if name == "MNIST":
            datasets.MNIST(str(folder), download=True)
        elif name == "FashionMNIST":
            datasets.FashionMNIST(str(folder), download=True)
        elif name == "KMNIST":
            datasets.KMNIST(str(folder), download=True)
        elif name == "EMNIST":
            datasets.EMNIST(str(folder), split="letters", download=True)
        elif name == "CelebA":
            datasets.CelebA(str(folder), download=True)
        elif name == "Omniglot":
            for background in (True, False):
                datasets.Omniglot(str(folder), background=background, download=True)
        elif name == "CIFAR10":
            download_and_extract_archive(_CIFAR10_URL, str(folder), md5=_CIFAR10_MD5)
        else:
            raise AssertionError(f"no download is known for {name}")
    except (OSError, RuntimeError, ImportError) as error:  # URLError is an OSError.
        raise DataError(
            f"{name} could not be downloaded ({type(error).__name__}). Put its files into a folder "
            f"{name} of data.root."
        ) from None
