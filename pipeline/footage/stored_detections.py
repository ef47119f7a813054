"""The detections of recordings while they are followed, read from their files as far as they are needed.

Where people are takes some 40 bytes a detection and is held of a few recordings; the features, a hundred times that with their
copies, are read row group by row group, so that a recording of a day takes no more memory than one of an hour.
"""

from collections import OrderedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.footage.recordings import Run
from pipeline.gallery.detections import BOX
from pipeline.gallery.gallery import Gallery, feature_matrix

RECORDINGS_HELD = 8  # whose places are in memory
HELD_BYTES = 48 << 20  # of features
PLACES = ("frame_index", "time_s", *BOX, "score")


class RunDetections:
    """The detections of a run's recordings, by the recording's place in the run. What cannot be read is a PipelineError."""

    def __init__(self, gallery: Gallery, run: Run) -> None:
        self.gallery, self.run = gallery, run
        self._places: OrderedDict[int, tuple[pa.Table, np.ndarray]] = OrderedDict()
        self._features: OrderedDict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def places(self, part: int) -> pa.Table:
        """PLACES of a recording's detections."""
        return self._opened(part)[0]

    def features(self, part: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(float16 [n, D], bool [n]): the features of some rows, ascending, and which are still there; others are zeros."""
        ends = self._opened(part)[1]
        groups = np.searchsorted(ends, rows, side="right")
        found, there = np.zeros((len(rows), self.gallery.feature_width), np.float16), np.zeros(len(rows), bool)
        for group in np.unique(groups).tolist():
            mine = groups == group
            place = rows[mine] - (ends[group - 1] if group else 0)
            found[mine], there[mine] = (array[place] for array in self._of_group(part, group))
        return found, there

    def _opened(self, part: int) -> tuple[pa.Table, np.ndarray]:
        if part not in self._places:
            shard = str(self.run.parts[part].row["shard"])
            self._places[part] = self.gallery.read_detections(shard, PLACES), self.gallery.detection_groups(shard)
            if len(self._places) > RECORDINGS_HELD:
                self._places.popitem(last=False)
        self._places.move_to_end(part)
        return self._places[part]

    def _of_group(self, part: int, group: int) -> tuple[np.ndarray, np.ndarray]:
        """`features` of a row group."""
        key = part, group
        if key not in self._features:
            table = self.gallery.read_detections(str(self.run.parts[part].row["shard"]), ["feature"], group)
            there = np.asarray(pc.is_valid(table["feature"]))
            found = np.zeros((len(table), self.gallery.feature_width), np.float16)
            found[there] = feature_matrix(table.filter(pa.array(there)))
            self._features[key] = found, there
            while sum(one.nbytes for one, _ in self._features.values()) > HELD_BYTES and len(self._features) > 1:
                self._features.popitem(last=False)
        self._features.move_to_end(key)
        return self._features[key]
