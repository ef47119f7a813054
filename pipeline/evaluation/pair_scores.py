"""The pair scores that jobs.evaluate saves, and reads back as the tables that `pipeline.evaluation.metrics` takes."""

import math
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import PipelineError
from pipeline.evaluation.as_searched import Floats
from pipeline.evaluation.judged_pairs import NO_CAMERA, JudgedPairs
from pipeline.index.versions import Index
from pipeline.storage.location import Location

PARQUET_ROWS = 1_000_000  # about, a row group of the saved scores
_KEYS = ("split", "query_id", "video_id", "same")


def write_pair_scores(scores: dict[str, Floats], index: Index, pairs: JudgedPairs, sink: IO[bytes]) -> None:
    """Every pair that counts as a row of a Parquet file: split, query_id, video_id, same, and a float32 column a method."""
    ids = index.videos["video_id"]
    queries, gallery = (ids.take(pa.array(rows)) for rows in (pairs.query_rows, pairs.gallery_rows))
    schema = pa.schema(
        [("split", pa.int32()), ("query_id", pa.string()), ("video_id", pa.string()), ("same", pa.bool_())]
        + [(name, pa.float32()) for name in scores]
    )
    block = max(1, math.ceil(PARQUET_ROWS / len(pairs.gallery_rows)))
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, len(pairs.query_rows), block):
            part = slice(start, start + block)
            rows, columns = np.nonzero(pairs.valid[part])
            arrays = [
                pa.array(pairs.splits[part][rows], pa.int32()),
                queries.take(pa.array(rows + start)).combine_chunks(),
                gallery.take(pa.array(columns)).combine_chunks(),
                pa.array(pairs.same[part][rows, columns]),
                *(pa.array(table[part][rows, columns].astype(np.float32)) for table in scores.values()),
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def read_pair_scores(file: Location, videos: pa.Table) -> tuple[dict[str, Floats], JudgedPairs]:
    """What `write_pair_scores` wrote: (scores float64 [Q, G] by method, the pairs that they are of).

    videos: table with video_id, person_id and camera_id, such as Index.videos or a gallery's; rows of the pairs are its rows. A
    pair that does not count has the score NaN, and `same` is False for it, since the file says nothing of it; a query none of
    whose pairs counts is not there. Raises PipelineError for a file of something else and for videos that are not in `videos`.
    """
    try:
        with file.open_input() as source:
            table = pq.read_table(source)
        if missing := [name for name in _KEYS if name not in table.column_names]:
            raise ValueError(f"it has no {', '.join(missing)}")
    except (ValueError, pa.ArrowException) as error:
        raise PipelineError(f"{file.uri} holds no pair scores of jobs.evaluate: {error}") from error
    ids = videos["video_id"].combine_chunks()
    of_query, of_video = (pc.index_in(table[name], value_set=ids) for name in ("query_id", "video_id"))
    if unknown := of_query.null_count + of_video.null_count:
        raise PipelineError(f"{file.uri} has {unknown} pairs with videos that are no longer there; run jobs.evaluate again")
    query, video, split = (np.asarray(column).astype(np.int64) for column in (of_query, of_video, table["split"]))
    new = np.ones(len(query), np.bool_)  # the pairs of a query lie one after another
    new[1:] = (query[1:] != query[:-1]) | (split[1:] != split[:-1])
    row = np.cumsum(new) - 1
    names = ids.to_pylist()
    gallery_rows = np.array(sorted(set(video.tolist()), key=names.__getitem__), np.int64)
    column_of = np.empty(len(names), np.int64)
    column_of[gallery_rows] = np.arange(len(gallery_rows))
    cells, shape = (row, column_of[video]), (int(new.sum()), len(gallery_rows))
    valid, same = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    valid[cells], same[cells] = True, np.asarray(table["same"])
    scores = {}
    for method in (name for name in table.column_names if name not in _KEYS):
        scores[method] = np.full(shape, np.nan)
        scores[method][cells] = np.asarray(table[method])
    query_rows = query[new]
    persons, cameras = (
        np.array([empty if name is None else name for name in videos[column].to_pylist()], np.str_)
        for column, empty in (("person_id", ""), ("camera_id", NO_CAMERA))
    )
    labels = persons[query_rows], cameras[query_rows], cameras[gallery_rows]
    return scores, JudgedPairs(query_rows, gallery_rows, valid, same, split[new], *labels, missing=0)
