"""Search videos for the person that a target video shows: the library that jobs and notebooks call.

The data's way is the reading order: catalog, video, backbone, gallery, coattention, scoring, prefilter, index, search, report.
"""

import os

# Threads of torch and FAISS spin for milliseconds after each call, on cores that the scoring kernel, decoders and Ray's workers
# need. Read when torch is first loaded, so it has to stand here.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
