"""A gallery with a service, and two people who work on a case in it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.service.access import Access
from pipeline.service.asking import Service, named
from tests.conftest import add_videos, people_features, toy_spec
from tests.service.test_service import role


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 made-up videos of 6 people, v000 and on, four of each, indexed."""
    made = Gallery.open_or_create(tmp_path_factory.mktemp("town") / "town", GallerySettings(toy_spec(), 10.0, None))
    add_videos(made, people_features(6, 4, 24, seed=1))
    build_index(made)
    return Path(made.location.path)


@pytest.fixture
def gallery(town: Path, tmp_path: Path) -> Gallery:
    """A copy of the town of one's own."""
    return Gallery.open(shutil.copytree(town, tmp_path / "town"))


@pytest.fixture
def service(gallery: Gallery, tmp_path: Path) -> Iterator[Service]:
    made = Service(named([gallery]), Access(tmp_path / "tokens.json"))
    yield made
    made.close()


@pytest.fixture
def anna(service: Service) -> TestClient:
    """An investigator with a case 7-26 and a search for v001 in it."""
    client = role(service, "investigator", "Anna")
    body = {"gallery": "town", "name": "7-26", "title": "Missing child", "reason": "search of the town"}
    assert client.post("/api/v1/cases", json=body).status_code == 201
    return client


@pytest.fixture
def bert(service: Service) -> TestClient:
    return role(service, "reviewer", "Bert")
