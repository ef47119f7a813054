"""What a training learns from: galleries as they are, and other labelled videos, ingested into galleries of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.cluster import Cluster
from pipeline.datasets.read import read_labelled
from pipeline.errors import UsageError
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.ingest.gallery_sampling import gallery_sampling
from pipeline.storage.location import Location, resolve
from pipeline.training.features import Source


@dataclass(frozen=True)
class LabelledGalleries:
    """names: of the data, as they were given. settings: of the last gallery; all have the same backbone where a head learns.

    endpoints: of object stores that the videos may be read from (`pipeline.storage.reach.Reach`).
    """

    names: tuple[str, ...]
    sources: tuple[Source, ...]
    settings: GallerySettings
    endpoints: tuple[str, ...]


def labelled_galleries(
    data: Sequence[str],
    hidden: Sequence[str],
    folder: Location,
    backbone: str | None = None,
    sample_rate: float = 10.0,
    cluster: Cluster | None = None,
    endpoints: Sequence[str] = (),
    report: Callable[[str], None] = lambda line: None,
) -> LabelledGalleries:
    """The galleries of labelled data; what is no gallery yet is ingested into folder/0, folder/1, ...

    data: galleries, manifests or data sets (`pipeline.datasets.read.read_labelled`, whose training part is taken). hidden: the
    same clips with people hidden, none or one for each of the data. backbone: by name or path; None: each gallery's own, and
    DEFAULT for what is ingested. sample_rate: frames a second of what is ingested. endpoints: more that the data may name.
    report: called with a line about what was ingested. Raises UsageError for galleries of another backbone and for data that
    cannot be read.
    """
    if hidden and len(hidden) != len(data):
        raise UsageError(
            f"--hidden is given {len(hidden)} times and --data {len(data)} times; give one for each, in the same order"
        )
    sources, reached = [], {*endpoints}
    for number, name in enumerate([*data, *hidden]):
        if (found := _opened(name, backbone)) is not None:
            opened = found
            reached |= {*opened.reach(endpoints=endpoints).endpoints}
        else:
            from pipeline.ingest.run import ingest  # loads Ray, which galleries do without

            spec = find_backbone(backbone or DEFAULT)
            labelled = read_labelled(name, part="train", endpoints=endpoints)
            for note in labelled.notes:
                report(f"{labelled.name}: {note}")
            opened = Gallery.open_or_create(folder.join(str(number)).uri, GallerySettings(spec, sample_rate, None))
            summary = ingest(labelled.catalog, opened, gallery_sampling(opened), address=cluster)
            report(f"{labelled.name}: {summary.usable} videos in {opened.location.uri}, {summary.refused} rejected")
            reached |= {*labelled.catalog.reach.endpoints}
        sources.append(Source(opened.location.uri, str(number % len(data)), number >= len(data)))
    return LabelledGalleries((*data, *hidden), tuple(sources), opened.settings, tuple(sorted(reached)))


def _opened(name: str, backbone: str | None) -> Gallery | None:
    """The gallery that a name says, or None where it says something else."""
    is_data_set = ":" in name.split("/")[0] and "://" not in name
    if is_data_set or not resolve(name).join("gallery.json").exists():
        return None
    gallery = Gallery.open(name)
    if backbone is not None and (spec := find_backbone(backbone)).identity != gallery.settings.backbone.identity:
        raise UsageError(f"{name} was made with the backbone {gallery.settings.backbone.identity}, not {spec.identity}")
    return gallery
