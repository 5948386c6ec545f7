"""Named arrays as one byte string: npz without pickle, the same bytes for the same arrays.

``np.savez`` leaves the clock of the machine in the archive on some Python versions, and a
content-addressed file may not hold a clock. Members are stored in the order given, without
compression, so that a reader may map them.
"""

import io
import zipfile
from collections.abc import Mapping

import numpy as np

from rapid_dist.errors import ShardError

_NO_CLOCK = (1980, 1, 1, 0, 0, 0)  # The earliest date that a zip archive can state.


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns an npz archive, a pure function of the names, the arrays and their order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _NO_CLOCK), member.getbuffer())
    return buffer.getvalue()


def unpack_arrays(data: bytes, name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of an npz archive; ``name`` is for the message if it is not one."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        # NumPy hands out as bytes what does not begin as an array does.
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a member is no array")
        return arrays
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ShardError(
            f"{name} is not an npz archive without pickled objects ({error}). "
            "Delete it and run the same command again to rebuild it."
        ) from error
