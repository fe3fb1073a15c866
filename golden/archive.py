"""Read ``.npz`` and ``.npy`` of untrusted sources: no pickle, sizes checked before memory is taken."""

from __future__ import annotations

import io
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from spec.errors import InputError, require
from spec.files import check_regular

MAX_ARRAY_BYTES = 1 << 32
MAX_ARCHIVE_BYTES = 1 << 33
MAX_ARRAYS = 1 << 14
HEADER_ERRORS = (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)
"""What NumPy raises at headers that are none: they are read as Python literals."""


def read_archive(path: Path, *, max_bytes: int = MAX_ARCHIVE_BYTES) -> dict[str, NDArray[Any]]:
    """Return an archive's arrays by name; :class:`InputError` if it is not a sound ``.npz`` file.

    ``max_bytes`` is how much the arrays may take together.
    """
    arrays = {}
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            require(len(members) <= MAX_ARRAYS, f"must hold at most {MAX_ARRAYS} arrays, not {len(members)}")
            stated = sum(member.file_size for member in members)
            require(stated <= max_bytes, f"must hold at most {max_bytes} bytes, not {stated}")
            for member in members:
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as stream:
                    arrays[name] = _read_array(name, stream, member.file_size)
    except InputError as error:
        raise error.at(file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=path) from None
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError) as error:
        raise InputError(f"is not a sound .npz archive: {_first_line(error)}", file=path) from None
    except (NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"is a kind of zip archive that is not read: {_first_line(error)}", file=path
        ) from None
    return arrays


def read_array(path: Path) -> NDArray[Any]:
    """Return a ``.npy`` file's array; :class:`InputError` if it is not a sound one."""
    try:
        size = check_regular(path)
        with path.open("rb") as stream:
            return _read_array(None, stream, size)
    except InputError as error:
        raise error.at(file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=path) from None


def array_of_bytes(data: bytes) -> NDArray[Any]:
    """Return the array of a ``.npy`` file's bytes; :class:`InputError` if they are not sound ones."""
    return _read_array(None, io.BytesIO(data), len(data))


def _read_array(name: str | None, stream: IO[bytes], file_size: int) -> NDArray[Any]:
    try:
        version = npy_format.read_magic(stream)
        require(version in ((1, 0), (2, 0)), f"has .npy version {version}, which is not read", key=name)
        read_header = (
            npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        )
        with warnings.catch_warnings():
            # A header that only Python 2's rules can read is read by them, with a warning.
            warnings.simplefilter("ignore")
            shape, fortran_order, dtype = read_header(stream)
    except InputError:
        raise
    except HEADER_ERRORS as error:
        raise InputError(f"is not a .npy array: {_first_line(error)}", key=name) from None
    require(dtype.itemsize > 0, f"holds elements of no size: {dtype}", key=name)
    require(not dtype.hasobject, "holds pickled objects, which are refused", key=name)
    num_bytes = math.prod(shape) * dtype.itemsize
    require(
        num_bytes <= MAX_ARRAY_BYTES, f"must be at most {MAX_ARRAY_BYTES} bytes, not {num_bytes}", key=name
    )
    require(
        num_bytes <= file_size and min(shape, default=0) >= 0,
        f"states {num_bytes} bytes of shape {shape}, but {file_size} bytes are there",
        key=name,
    )
    data = stream.read(num_bytes)
    require(len(data) == num_bytes, f"states {num_bytes} bytes, but {len(data)} are there", key=name)
    # Reading on to the end of the member makes zipfile compare its checksum.
    require(not stream.read(1), f"has more data than shape {shape} needs", key=name)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
