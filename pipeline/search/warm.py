"""What stays open between searches: the newest index version of a gallery, with its partitions.

A version is opened when it is first searched after it was published, and again after something was forgotten or compacted: then
no file that was deleted stays mapped. Searches that run meanwhile end with the version that they began with.
"""

import threading

from pipeline.gallery.forgotten import Forgotten
from pipeline.gallery.gallery import Gallery
from pipeline.index.versions import Index, index_versions, open_index
from pipeline.search.partitions import LocalPartitions


class WarmIndex:
    """The newest index version of a gallery in this process, open from its first search on; for several threads."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self._lock = threading.Lock()
        self._open: tuple[Index, LocalPartitions] | None = None
        self._known: frozenset[str] = frozenset()

    def newest(self) -> tuple[Index, LocalPartitions]:
        """The newest version, opened if need be. Raises UsageError where there is none, PipelineError for a damaged one."""
        with self._lock:
            names = frozenset(self.gallery.commit_names())
            versions = index_versions(self.gallery)
            if self._open is None or versions[-1:] != [self._open[0].version] or self._takes_away(names):
                self._open = None
                index = open_index(self.gallery)
                self._open = index, LocalPartitions(index, range(len(index.manifest["partitions"])))
            self._known = names
            return self._open

    def _takes_away(self, names: frozenset[str]) -> bool:
        """Whether the commits of these names forget or compact what the known ones brought."""
        return not self._known <= names or (self._known != names and self.gallery.tombstones(self._known) != Forgotten())
