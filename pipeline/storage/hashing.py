"""SHA-256, by which all content is known here: of bytes, of text, of JSON and of files; and what is drawn by hashes of names."""

import hashlib
import heapq
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import IO, Any

from pipeline.storage.location import Location


def sha256(*parts: Any) -> str:
    """64 hex digits of these parts, one after another: text (as UTF-8), bytes or anything with a buffer of bytes.

    >>> sha256("ab", b"c") == sha256("abc")
    True
    """
    return sha256_of(parts)


def sha256_of(parts: Iterable[Any]) -> str:
    """`sha256` of parts that need not be in memory at once."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def json_sha256(value: Any, **how: Any) -> str:
    """`sha256` of the value as JSON; how: as `json.dumps` takes it."""
    return sha256(json.dumps(value, **how))


def file_sha256(file: IO[bytes]) -> str:
    """`sha256` of an open file from where it stands to its end."""
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type] # pyarrow's files serve as well


def content_hash(location: Location, names: Collection[str] | None = None) -> str:
    """`sha256` of a file's bytes; with names, of a folder's files: of the lines "<sha256>  <name>", as sha256sum prints them."""
    if names is not None:
        return listed_hash({name: content_hash(location.join(name)) for name in names})
    with location.open_input() as source:
        return file_sha256(source)


def listed_hash(hashes: Mapping[str, str]) -> str:
    """`sha256` of several files: of the lines "<sha256>  <name>", by name. hashes: name -> sha256."""
    return sha256_of(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))


def hash_order(names: Sequence[str], count: int | None = None) -> list[int]:
    """Places of the names in the order of their hashes: a sample, the first `count`, that no other name has a say in.

    >>> hash_order(["a", "b", "c"], 2)  # their hashes begin with ca, 3e and 2e
    [2, 1]
    """
    return heapq.nsmallest(len(names) if count is None else count, range(len(names)), key=lambda place: sha256(names[place]))


def hash_number(name: str) -> int:
    """A number of 64 bits that follows from the name alone, as if drawn evenly.

    >>> hash_number("person 7") == hash_number("person 7") != hash_number("person 8")
    True
    """
    return int(sha256(name)[:16], 16)
