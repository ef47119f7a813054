"""Files that the data sets come with (name lists, .mat, .npy, .json), read strictly: a fault is one sentence with the path."""

import io
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import scipy.io
from pyarrow import fs as pafs

from pipeline.errors import UsageError
from pipeline.storage.documents import parsed
from pipeline.storage.faults import StorageError
from pipeline.storage.location import Location

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"  # MATLAB 7.3 writes it behind 512 bytes of its own


def read_file(file: Location, layout: str) -> bytes:
    """The file's bytes. layout: what the data set must look like, for the UsageError when there is no such file."""
    try:
        return file.read_bytes()
    except StorageError as error:
        if error.kind != "missing":
            raise
        raise UsageError(f"{file.uri} is missing; {layout}") from error


def read_lines(file: Location, layout: str) -> list[str]:
    """The lines of a text file without line ends (CRLF or LF), blanks around and empty lines at the end. Raises UsageError."""
    try:
        text = read_file(file, layout).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{file.uri} is not a text file in UTF-8") from error
    return [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []


def read_json(file: Location, layout: str) -> Any:
    """The document. Raises UsageError."""
    try:
        return parsed(read_file(file, layout))
    except ValueError as error:
        raise UsageError(f"{file.uri} is damaged or not JSON: {_one_line(error)}") from error


def read_mat(file: Location, key: str, layout: str) -> np.ndarray:
    """One variable of a .mat file, int64 [rows, columns] as MATLAB has it; MATLAB 5 through SciPy, 7.3 through h5py.

    Raises UsageError when the file is missing or damaged, has no such variable or the variable is not a table of whole numbers.
    """
    data = read_file(file, layout)
    try:
        if any(data[at : at + 8] == HDF5_SIGNATURE for at in (0, 512)):
            values = _hdf5_variable(data, key)
        else:
            values = scipy.io.loadmat(io.BytesIO(data), variable_names=[key]).get(key)
    except Exception as error:  # the two libraries raise whatever the damage leads them to
        raise UsageError(f"{file.uri} is damaged or no .mat file: {_one_line(error)}") from error
    if values is None:
        raise UsageError(f"{file.uri} has no variable {key}; {layout}")
    return _whole_numbers(values, f"{key} in {file.uri}")


def _hdf5_variable(data: bytes, key: str) -> np.ndarray | None:
    with h5py.File(io.BytesIO(data), "r") as file:
        variable = file.get(key)
        return variable[()].T if isinstance(variable, h5py.Dataset) else None  # HDF5 has MATLAB's columns as rows


def read_npy(file: Location, layout: str) -> np.ndarray:
    """An array of whole numbers from a .npy file, int64; nothing is ever unpickled. Raises UsageError."""
    data = read_file(file, layout)
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # as in read_mat
        raise UsageError(
            f"{file.uri} is damaged or no plain array of numbers (pickles are not read): {_one_line(error)}"
        ) from error
    return _whole_numbers(values, file.uri)


def _whole_numbers(values: object, what: str) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        numbers = values.astype(np.float64)
        if np.all(np.abs(numbers) < 2**53) and np.all(numbers == np.floor(numbers)):  # False for NaN too
            return values.astype(np.int64)
    raise UsageError(f"{what} must be a table of whole numbers")


def subfolders(folder: Location, layout: str) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones. Raises UsageError when the folder is missing."""
    try:
        infos = folder.filesystem.get_file_info(pafs.FileSelector(folder.path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{folder.uri} is missing; {layout}") from error
    except (OSError, pa.ArrowException) as error:
        if not folder.exists():
            raise UsageError(f"{folder.uri} is missing; {layout}") from error
        raise StorageError(f"cannot list {folder.uri}: {_one_line(error)}", "other") from error
    names = [info.base_name for info in infos if info.type == pafs.FileType.Directory]
    return sorted(name for name in names if not name.startswith("."))


def first_existing(places: list[Location], layout: str) -> Location:
    """The first of several places that exists. Raises UsageError."""
    for place in places:
        if place.exists():
            return place
    raise UsageError(f"none of {', '.join(place.uri for place in places)} exists; {layout}")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
