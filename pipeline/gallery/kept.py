"""A gallery whose tables stay in memory between requests."""

import threading

from pipeline.gallery.gallery import Gallery, Position, Snapshot


class KeptGallery(Gallery):
    """A gallery whose snapshot is read anew only after commits: it is made of these alone, and none of them ever changes."""

    def __init__(self, gallery: Gallery) -> None:
        super().__init__(gallery.location, gallery.settings)
        self._lock = threading.Lock()
        self._kept: tuple[Position, Snapshot] | None = None

    def snapshot(self) -> Snapshot:
        """As `Gallery.snapshot`."""
        with self._lock:
            position = self.position()
            if self._kept is None or self._kept[0] != position:
                self._kept = None  # not two of them in memory
                self._kept = position, super().snapshot()
            return self._kept[1]
