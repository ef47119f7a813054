"""Sealed documents: what was changed is told, what never had a seal is read."""

import json
import random

import pytest

from pipeline.storage.seals import sealed, unsealed

DOCUMENT = {"kind": "ingest", "videos": ["videos/a.parquet"], "n": 3, "rate": 10.0, "é": None}


@pytest.mark.parametrize("indent", [None, 1])
def test_a_document_comes_back_as_it_was(indent):
    assert unsealed(sealed(DOCUMENT, indent)) == DOCUMENT
    assert json.loads(sealed(DOCUMENT, indent)).keys() == {*DOCUMENT, "seal"}


def test_a_document_without_a_seal_is_read():
    assert unsealed(json.dumps(DOCUMENT).encode()) == DOCUMENT


def test_no_flipped_bit_gives_another_document():
    content = sealed(DOCUMENT)
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            try:
                found = unsealed(bytes(changed))
            except ValueError:
                continue
            # A flip in the word "seal" itself leaves a document without one, and a field too many.
            assert {name: found.get(name) for name in DOCUMENT} == DOCUMENT


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"{", b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_object_is_a_value_error(content):
    with pytest.raises(ValueError, match=r"."):
        unsealed(content)


def test_a_changed_value_is_named():
    content = json.loads(sealed(DOCUMENT))
    for name in DOCUMENT:
        with pytest.raises(ValueError, match="its checksum differs"):
            unsealed(json.dumps({**content, name: random.Random(name).random()}).encode())
