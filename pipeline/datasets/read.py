"""Labelled data sets of the field, and manifests with labels, read for training and evaluation."""

import re
from collections.abc import Sequence

from pipeline.catalog.inputs import read_catalog
from pipeline.datasets.ilids_vid import read_ilids_vid
from pipeline.datasets.labelled import LabelledData, describe
from pipeline.datasets.ls_vid import read_ls_vid
from pipeline.datasets.mars import read_mars
from pipeline.datasets.prid2011 import read_prid2011
from pipeline.errors import UsageError
from pipeline.storage.location import resolve

DATA_SETS = ("mars", "ilids-vid", "prid2011", "ls-vid")
PARTS = ("train", "val", "test", "all")
_PREFIX = re.compile(r"([A-Za-z][A-Za-z0-9_-]*):(?!//)(.*)", re.DOTALL)


def read_labelled(
    data: str,
    *,
    part: str = "test",
    protocol: str = "official",
    split: int = 0,
    first_half: str = "test",
    endpoints: Sequence[str] = (),
) -> LabelledData:
    """Labelled videos and who is asked for among whom.

    data: "mars:PATH", "ilids-vid:PATH", "prid2011:PATH", "ls-vid:PATH" (a folder or bucket prefix in the data set's own layout,
    which the modules of this package describe), or anything that jobs.ingest takes: then every video takes part, whatever the
    part, and every labelled one is a query.
    part: "train", "test", "all", and "val" for LS-VID. protocol, for MARS: "official" or "torchreid", see `mars.read_mars`.
    split, for iLIDS-VID and PRID2011: 0 to 9. first_half, for iLIDS-VID: "test" (Torchreid, jiyanggao, AP3D, SINet) or "train"
    (Chen et al. 2018, TF-CLIP), see `ilids_vid.read_ilids_vid`. endpoints: URLs that a manifest's uris may name, see
    `pipeline.catalog.inputs.read_catalog`.

    Raises UsageError, one sentence with the path, for a file or folder that is missing or damaged or an argument that cannot be
    meant, and StorageError when the storage refuses.
    """
    if part not in PARTS:
        raise UsageError(f"{part!r} is no part of a data set; choose one of {', '.join(PARTS)}")
    match = _PREFIX.fullmatch(data)
    if match is None or (match[1].lower() not in DATA_SETS and resolve(data).exists()):
        return _read_manifest(data, part, endpoints)
    name, path = match[1].lower(), match[2]
    if name not in DATA_SETS or not path:
        raise UsageError(f"{data!r} is no data set; write NAME:PATH with one of {', '.join(DATA_SETS)}, or a manifest's path")
    if part == "val" and name != "ls-vid":
        raise UsageError(f"{name} has no part val, only LS-VID has; split identities off its part train instead")
    root = resolve(path)
    if not root.exists():
        raise UsageError(f"there is no folder {root.uri}")
    if name == "mars":
        return read_mars(root, part, protocol)
    if name == "ilids-vid":
        return read_ilids_vid(root, part, split, first_half)
    if name == "prid2011":
        return read_prid2011(root, part, split)
    return read_ls_vid(root, part)


def _read_manifest(data: str, part: str, endpoints: Sequence[str]) -> LabelledData:
    catalog = read_catalog(data, endpoints=endpoints)
    labelled = LabelledData(data, catalog, None, None, ())
    notes = [describe(labelled)]
    if unlabelled := catalog.table["person_id"].null_count:
        notes.append(f"{unlabelled} videos have no person_id: they take no part")
    if without_camera := catalog.table["camera_id"].null_count:
        notes.append(f"{without_camera} videos have no camera_id, so that the same camera cannot be left out for them")
    if part != "test":
        notes.append(f"the data has no parts; all of it is taken for {part}")
    return LabelledData(data, catalog, None, None, tuple(notes))
