"""Search videos for the person that a target video shows: the library that jobs and notebooks call.

The data's way is the reading order: catalog, video, backbone, gallery, coattention, scoring, prefilter, index, search, report.
"""
