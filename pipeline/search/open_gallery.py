"""A gallery that is searched by one call: what `pipeline.open_gallery` gives."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.decoding.video import Box
from pipeline.errors import UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.search.targets import Whom
from pipeline.settings import FollowSettings, SearchSettings
from pipeline.time_windows import hours_of_day

Moment = datetime | str


class OpenGallery(Gallery):
    """A `Gallery` with `search`, which asks and answers as `pipeline.service.client.Client.search` does over HTTP."""

    def search(
        self,
        target: str | Path | Sequence[str | Path],
        reason: str | None = None,
        case: str | None = None,
        *,
        box: Box | None = None,
        time_s: float | None = None,
        whole_picture: bool = False,
        target_camera: str | None = None,
        **asked: Any,
    ) -> pa.Table:
        """Search the gallery for the person that a target shows; returns the leads, best first, one row each.

        target: a video, a photo or a folder of images, or id:VIDEO_ID of the gallery; several of them show one person, who is
        searched for by all of them together. reason, case: why, for the record. box, time_s: who in its picture is meant, (x, y,
        width, height) in pixels, and when the box shows them, seconds of the video. whole_picture: take a scene as it is.
        target_camera: that filmed it. asked: top, exact, cameras, other_cameras, after, before, between, zone, confirmed,
        rejected, see `asked_settings`.

        The table has the columns of results.parquet (`pipeline.search.results.RESULTS_SCHEMA`), with the hashes of local sources
        as they are now; its metadata says what was searched. The search is written to the gallery's audit log before it answers.
        `pipeline.search_gallery` gives what writes reports and pictures, too, and takes all other settings. Raises UsageError
        where the gallery's policy wants more and for what cannot be meant, PipelineError for what is damaged or missing.

        >>> import pipeline
        >>> gallery = pipeline.open_gallery("galleries/town")
        >>> leads = gallery.search("id:v001", reason="missing person", case="2026-17", top=3)
        >>> leads.select(["rank", "video_id", "camera_id"]).to_pylist()[0]
        {'rank': 1, 'video_id': 'v002', 'camera_id': 'cam0'}
        >>> both = gallery.search(["id:v001", "id:v003"], reason="missing person", top=3)
        >>> sorted(both["video_id"].to_pylist())[:2]  # the other two videos of this person
        ['v000', 'v002']
        """
        from pipeline.search.run import run  # loads what decodes and encodes, which an open gallery does not need

        targets = [str(one) for one in ([target] if isinstance(target, str | Path) else target)]
        settings, following = asked_settings(len(targets), **asked)
        whom = Whom(box, time_s, whole_picture=whole_picture, camera=target_camera)
        return run(self, targets, settings, reason, case, whom=whom, following=following).with_hashes().table()


def asked_settings(
    targets: int,
    *,
    top: int = SearchSettings.top,
    exact: bool = False,
    cameras: Sequence[str] = (),
    other_cameras: bool = False,
    after: Moment | None = None,
    before: Moment | None = None,
    between: str | None = None,
    zone: str = SearchSettings.zone,
    confirmed: Sequence[str] = (),
    rejected: Sequence[str] = (),
) -> tuple[SearchSettings, FollowSettings | None]:
    """What programs ask for in plain words, over HTTP or here, as the settings of a search; see `SearchSettings`.

    targets: how many of them show the person. after, before: aware datetimes, or ISO 8601. between: hours of any day by the
    clocks of zone. confirmed, rejected: ids of videos that a person has looked at; with these, or several targets, scores are
    means over all that show the person, and nothing joins by itself. Raises UsageError for what cannot be meant.

    >>> settings, following = asked_settings(1, between="22:00-02:00", zone="Europe/London", after="2026-03-01T00:00:00Z")
    >>> settings.filters(), following
    (('seen at or after 2026-03-01 00:00:00 GMT', 'seen between 22:00 and 02:00 Europe/London'), None)
    """
    settings = SearchSettings(
        top=top,
        exact=exact,
        cameras=tuple(cameras),
        other_cameras=other_cameras,
        after=_moment(after),
        before=_moment(before),
        between=None if between is None else hours_of_day(between),
        zone=zone,
    )
    if targets > 1 or confirmed or rejected:
        return settings, FollowSettings(tuple(confirmed), tuple(rejected), join_by="nobody")
    return settings, None


def _moment(given: Moment | None) -> datetime | None:
    if given is None:
        return None
    try:
        moment = datetime.fromisoformat(given) if isinstance(given, str) else given
    except ValueError as error:
        raise UsageError(f"a time is ISO 8601, such as 2026-03-01T12:00:00Z, not {given!r}") from error
    if moment.tzinfo is None:
        raise UsageError(f"a time says its zone, such as 2026-03-01T12:00:00Z, and not {given}")
    return moment
