"""What stays open between searches: the newest index version of a gallery, with its partitions.

In one process a version is opened when it is first searched after it was published. On actors it is opened beside the one that is
searched, which it then replaces. Either is opened anew after something was forgotten or compacted: then no file that was deleted
stays mapped. Searches that run meanwhile end with the version that they began with.
"""

import logging
import threading

from pipeline.gallery.forgotten import Forgotten
from pipeline.gallery.gallery import Gallery, Position
from pipeline.index.version_files import index_versions
from pipeline.index.versions import Index, open_index
from pipeline.search.local_partitions import LocalPartitions
from pipeline.search.partitions import Partitions
from pipeline.search.search_actors import SearchActors

LOOK_SECONDS = 5.0  # between two looks for a new version, where one is opened beside the other
_logger = logging.getLogger("coattention.search")


class WarmIndex:
    """The newest index version of a gallery in this process, open from its first search on; for several threads."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self._lock = threading.Lock()
        self._open: tuple[Index, Partitions] | None = None
        self._known: Position = 0

    def newest(self) -> tuple[Index, Partitions]:
        """The newest version, opened if need be. Raises UsageError where there is none, PipelineError for a damaged one."""
        with self._lock:
            position = self.gallery.position()
            if self._open is None or self._is_superseded() or self._takes_away(position):
                self._open = None
                self._open = self._opened()
            self._known = position
            return self._open

    def close(self) -> None:
        """Hold nothing open any more."""
        self._open = None

    def _opened(self) -> tuple[Index, Partitions]:
        index = open_index(self.gallery)
        return index, LocalPartitions(index, range(len(index.manifest["partitions"])))

    def _is_superseded(self) -> bool:
        return self._open is not None and index_versions(self.gallery)[-1:] != [self._open[0].version]

    def _takes_away(self, position: Position) -> bool:
        """Whether commits up to this position forget or compact what the known ones brought."""
        if self._known == position:
            return False
        forgotten, retired = self.gallery.news(self._known)
        return forgotten != Forgotten() or bool(retired)


class WarmActors(WarmIndex):
    """The same on Ray actors that stay. A new version is searched once it is open on all of them; where nodes came or went, the
    newest is opened again on as many as there are now.
    """

    def __init__(self, gallery: Gallery, actors: int | None = None) -> None:
        super().__init__(gallery)
        self._actors = SearchActors(gallery.location.uri, actors)
        self._spread = 0  # actors that hold what is open
        self._opening = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._look, name="index versions", daemon=True).start()

    def close(self) -> None:
        """As `WarmIndex.close`; ends the actors."""
        self._closed.set()
        with self._opening:
            super().close()
            self._actors.close()

    def _opened(self) -> tuple[Index, Partitions]:
        with self._opening:
            index = open_index(self.gallery)
            partitions = self._actors.open(index)
            self._spread = len(partitions.actors)
            return index, partitions

    def _is_superseded(self) -> bool:
        return False  # it is replaced by `_look`

    def _look(self) -> None:
        """Open what supersedes what is open, again and again."""
        said = ""
        while not self._closed.wait(LOOK_SECONDS):
            try:
                self._replace()
            except Exception as error:  # whatever it is: what is open is searched on, and the next look may do better
                if said != (said := str(error)):
                    _logger.warning("the newest index version is not opened: %s", said)

    def _replace(self) -> None:
        """Open the newest version beside what is open, and search that from then on, where there is a newer one or another
        number of actors.
        """
        position, now = self.gallery.position(), self._open
        if now is not None and (super()._is_superseded() or self._actors.count(now[0]) != self._spread):
            opened = self._opened()
            with self._lock:
                self._open, self._known = opened, position
            _logger.info("index version opened", extra={"index_version": opened[0].version})
