"""What stays open between searches: the newest index version of a gallery, with its partitions.

A version is opened when it is first searched after it was published, and again after something was forgotten or compacted: then
no file that was deleted stays mapped. Searches that run meanwhile end with the version that they began with.
"""

import threading

from pipeline.gallery.forgotten import Forgotten
from pipeline.gallery.gallery import Gallery, Position
from pipeline.index.versions import Index, index_versions, open_index
from pipeline.search.partitions import LocalPartitions


class WarmIndex:
    """The newest index version of a gallery in this process, open from its first search on; for several threads."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self._lock = threading.Lock()
        self._open: tuple[Index, LocalPartitions] | None = None
        self._known: Position = 0

    def newest(self) -> tuple[Index, LocalPartitions]:
        """The newest version, opened if need be. Raises UsageError where there is none, PipelineError for a damaged one."""
        with self._lock:
            position = self.gallery.position()
            versions = index_versions(self.gallery)
            if self._open is None or versions[-1:] != [self._open[0].version] or self._takes_away(position):
                self._open = None
                index = open_index(self.gallery)
                self._open = index, LocalPartitions(index, range(len(index.manifest["partitions"])))
            self._known = position
            return self._open

    def _takes_away(self, position: Position) -> bool:
        """Whether commits up to this position forget or compact what the known ones brought."""
        if self._known == position:
            return False
        forgotten, retired = self.gallery.news(self._known)
        return forgotten != Forgotten() or bool(retired)
