"""Kills on a real two-node cluster: whatever dies, the gallery is that of an undisturbed run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster_drills import TwoNodes, ingest_under_kills, two_nodes, undisturbed, write_clips
from tests.conftest import save_toy_backbone

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    with two_nodes(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def test_an_ingest_loses_and_doubles_nothing_whatever_is_killed(cluster: TwoNodes, tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "clips", 24, 60)
    backbone = save_toy_backbone(tmp_path / "mean.onnx")
    expected = undisturbed(clips, backbone)
    kinds = ("embed actor", "decoder child", "node", "driver")
    drill = ingest_under_kills(cluster, kinds, clips, backbone, tmp_path / "gallery", expected, seed=1)
    print(drill)
    assert drill.kills and drill.polls > 10
    assert drill.clean(), f"{drill.account} {drill.reader_faults}\n{drill.output}"
