"""A driver that searches over Ray actors again and again: python -m tests.search_loop GALLERY VIDEO_ID ACTORS; a line a search.

Each line is JSON: {"leads": [[video id, score], ...]} or {"error": the sentence}, with "seconds". Ends with its stdin.
"""

import json
import sys
import threading
import time

from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery
from pipeline.index.versions import open_index
from pipeline.search.partitions import opened_partitions
from pipeline.search.search import search
from pipeline.search.targets import gallery_target
from pipeline.settings import SearchSettings

PAUSE = 0.05  # seconds between two searches, a part of what one takes: so that what was killed is started again meanwhile


def main(uri: str, video_id: str, actors: int) -> None:
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    gallery = Gallery.open(uri)
    index = open_index(gallery)
    target = gallery_target(gallery, video_id)
    while not ended.is_set():
        try:
            with opened_partitions(gallery, index, actors) as partitions:
                while not ended.is_set():
                    began = time.monotonic()
                    result = search(gallery, index, partitions, target, SearchSettings(top=1000, shortlist=None))
                    leads = [[lead.video.video_id, lead.score] for lead in result.leads]
                    print(json.dumps({"leads": leads, "seconds": time.monotonic() - began}), flush=True)
                    ended.wait(PAUSE)
        except PipelineError as error:
            print(json.dumps({"error": str(error), "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
