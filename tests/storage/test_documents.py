"""Documents become what they stand for, strictly, and what is wrong with one is said in words with its place."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.documents import parsed, typed


@dataclass(frozen=True)
class Part:
    name: str
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError("a share lies in 0..1")


@dataclass(frozen=True)
class Whole:
    number: int
    parts: tuple[Part, ...]
    settings: Mapping[str, str | int | float | bool | None]
    remark: str | None = None


WHOLE = Whole(3, (Part("a", 1), Part("b", 0.5)), {"ratio": 0.2, "top": 4, "exact": True, "zone": "UTC", "none": None})


def document(change: Any = None) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(WHOLE))) | (change or {})


def test_a_document_becomes_what_it_was_made_of() -> None:
    found = typed(Whole, document())
    assert found == WHOLE
    assert [type(value) for value in found.settings.values()] == [float, int, bool, str, type(None)]
    assert isinstance(found.parts[0].share, float)


@given(
    st.dictionaries(
        st.text(), st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.floats(-1e300, 1e300)
    )
)
def test_no_value_becomes_one_of_another_kind(settings: dict[str, Any]) -> None:
    found = typed(Whole, document({"settings": settings})).settings
    assert found == settings
    assert [type(found[name]) for name in settings] == [type(value) for value in settings.values()]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"number": "3"}, "number is '3'"),
        ({"number": 3.0}, "number is 3.0"),
        ({"number": True}, "number is True"),
        ({"remark": 1}, "remark is 1"),
        ({"parts": {}}, "parts is {}"),
        ({"parts": [{"name": "a"}]}, "parts[0] has share missing or unknown"),
        ({"parts": [{"name": "a", "share": 1}, {"name": None, "share": 1}]}, "parts[1].name is None"),
        ({"parts": [{"name": "a", "share": 2}]}, "a share lies in 0..1"),
        ({"settings": {"ratio": [0.2]}}, "settings.ratio is [0.2]"),
        ({"settings": {"ratio": math.nan}}, "settings.ratio is nan"),
        ({"new": 1, "also": 2}, "it has also, new missing or unknown"),
        ({"number": "3", "new": 1}, "it has new missing or unknown"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        typed(Whole, document(change))
    assert str(caught.value) == words


@pytest.mark.parametrize("value", [None, 3, "text", [1]])
def test_what_is_no_document_at_all_is_said(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^it is "):
        typed(Whole, value)


def test_entries_of_a_newer_version_may_be_left_out_but_none_may_be_missing() -> None:
    newer = document({"new": 1, "parts": [{"name": "a", "share": 1, "colour": "red"}]})
    assert typed(Whole, newer, complete=False).parts == (Part("a", 1),)
    del newer["number"]
    with pytest.raises(ValueError, match=r"^it has number missing or unknown$"):
        typed(Whole, newer, complete=False)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", "nought"])
def test_what_is_no_json_is_a_value_error(content: bytes | str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parsed(content)
