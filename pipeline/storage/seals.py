"""JSON documents that tell when they are damaged: each carries the SHA-256 of all else that it holds."""

import json
from typing import Any

from pipeline.storage.documents import parsed
from pipeline.storage.hashing import json_sha256

SEAL = "seal"


def sealed(document: dict[str, Any], indent: int | None = None) -> bytes:
    """The document as JSON, with its seal."""
    return json.dumps({**document, SEAL: json_sha256(document, sort_keys=True)}, indent=indent).encode()


def unsealed(content: bytes) -> dict[str, Any]:
    """The document of `sealed`, without its seal; of one that never had a seal, what it holds.

    Raises ValueError for what is no JSON object or has been changed since it was sealed.
    """
    document = parsed(content)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    seal = document.pop(SEAL, None)
    if seal is not None and seal != json_sha256(document, sort_keys=True):
        raise ValueError("its checksum differs")
    return document
