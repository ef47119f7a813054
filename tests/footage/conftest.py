"""A gallery, and workers that find red squares for it."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.footage.detect import DetectPeople
from pipeline.gallery.gallery import Gallery
from tests.footage.made_up import footage_gallery
from tests.footage.red_squares import worker


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    return footage_gallery(tmp_path / "gallery")


@pytest.fixture
def people(gallery: Gallery) -> Callable[..., DetectPeople]:
    """Makes a worker of the gallery."""
    return functools.partial(worker, gallery)
