"""A gallery whose tables stay in memory between requests."""

import threading

from pipeline.gallery.gallery import Gallery, Snapshot


class KeptGallery(Gallery):
    """A gallery whose snapshot is read anew only after commits: it is made of these alone, and none of them ever changes."""

    def __init__(self, gallery: Gallery) -> None:
        super().__init__(gallery.location, gallery.settings)
        self._lock = threading.Lock()
        self._kept: tuple[list[str], Snapshot] | None = None

    def snapshot(self) -> Snapshot:
        """As `Gallery.snapshot`."""
        with self._lock:
            names = self.commit_names()
            if self._kept is None or self._kept[0] != names:
                self._kept = None  # not two of them in memory
                self._kept = names, super().snapshot()
            return self._kept[1]
