"""Which function reads which source."""

from collections.abc import Callable

from rapid_dist.data.raw import Raw, Request


def read(request: Request) -> Raw:
    """Reads a source by its name, importing its vendors only now: a plain process may lack them."""
    return _READERS[request.source](request)


def _digits(request: Request) -> Raw:
    from rapid_dist.data.digits import read_digits

    return read_digits(request)


def _letters(request: Request) -> Raw:
    from rapid_dist.data.letters import read_letters

    return read_letters(request)


def _glyphs(request: Request) -> Raw:
    from rapid_dist.data import glyphs

    readers = {
        "kannada": glyphs.read_kannada,
        "kmnist": glyphs.read_kmnist,
        "notmnist": glyphs.read_notmnist,
    }
    return readers.get(request.source, glyphs.read_family)(request)


def _omniglot(request: Request) -> Raw:
    from rapid_dist.data.omniglot import read_omniglot

    return read_omniglot(request)


def _tiles(request: Request) -> Raw:
    from rapid_dist.data.tiles import read_tiles

    return read_tiles(request)


def _medical(request: Request) -> Raw:
    from rapid_dist.data import medical

    if request.source == "pneumonia":
        return medical.read_pneumonia(request)
    return medical.read_mednist(request)


def _faces(request: Request) -> Raw:
    from rapid_dist.data.faces import read_celeba

    return read_celeba(request)


def _folder(request: Request) -> Raw:
    from rapid_dist.data.folder import read_folder

    return read_folder(request)


def _npz(request: Request) -> Raw:
    from rapid_dist.data.npz import read_npz

    return read_npz(request)


_READERS: dict[str, Callable[[Request], Raw]] = {
    "celeba": _faces,
    "cifar10": _tiles,
    "cifar100": _tiles,
    "digits": _digits,
    "emnist_letters": _glyphs,
    "fashion_mnist": _glyphs,
    "folder": _folder,
    "kannada": _glyphs,
    "kmnist": _glyphs,
    "letters": _letters,
    "mednist": _medical,
    "mnist": _glyphs,
    "notmnist": _glyphs,
    "npz": _npz,
    "omniglot": _omniglot,
    "pneumonia": _medical,
}
