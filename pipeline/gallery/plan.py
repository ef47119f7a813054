"""A gallery's plan: a picture of the place that its cameras are in, in plan.json and plan-<hash>.jpg of the gallery."""

from dataclasses import asdict, dataclass

from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.storage.documents import typed
from pipeline.storage.faults import StorageError
from pipeline.storage.hashing import sha256
from pipeline.storage.location import Location
from pipeline.storage.seals import sealed, unsealed

FORMAT = 1
WIDEST = 1e6  # metres


@dataclass(frozen=True)
class Plan:
    """What is known of the picture. width, height: pixels; width_m: metres that it shows from left to right; sha256: of its file.

    Raises UsageError for a width that no plan has.
    """

    width: int
    height: int
    width_m: float
    sha256: str

    def __post_init__(self) -> None:
        if not 0 < self.width_m <= WIDEST:
            raise UsageError(f"a plan shows more than 0 and at most {WIDEST:,.0f} m from left to right, not {self.width_m:g}")

    @property
    def height_m(self) -> float:
        """Metres that it shows from its lower edge to its upper one."""
        return self.width_m * self.height / self.width


def read_plan(gallery: Gallery) -> Plan | None:
    """The plan, None where there is none. Raises PipelineError for a damaged file."""
    file = gallery.location.join("plan.json")
    try:
        return typed(Plan, unsealed(file.read_bytes())["plan"])
    except StorageError as error:
        if error.kind == "missing":
            return None
        raise
    except (ValueError, KeyError, TypeError, UsageError) as error:
        raise PipelineError(f"{file.uri} is damaged: {error}; set the plan again") from error


def read_picture(gallery: Gallery, plan: Plan) -> bytes:
    """Its picture, JPEG. Raises PipelineError where it is not the one that was set."""
    file = _picture(gallery, plan)
    picture = file.read_bytes()
    if sha256(picture) != plan.sha256:
        raise PipelineError(f"{file.uri} was changed; set the plan again")
    return picture


def write_plan(gallery: Gallery, plan: Plan, picture: bytes) -> None:
    """Set the plan, in place of the one before. picture: JPEG, of the plan's hash."""
    before = read_plan(gallery)
    _picture(gallery, plan).write_atomically(picture)
    gallery.location.join("plan.json").write_atomically(sealed({"format": FORMAT, "plan": asdict(plan)}, indent=1))
    if before is not None and before.sha256 != plan.sha256:
        _picture(gallery, before).delete()


def delete_plan(gallery: Gallery) -> None:
    """Remove the plan; without one nothing happens."""
    plan = read_plan(gallery)
    if plan is not None:
        gallery.location.join("plan.json").delete()
        _picture(gallery, plan).delete()


def _picture(gallery: Gallery, plan: Plan) -> Location:
    return gallery.location.join(f"plan-{plan.sha256[:16]}.jpg")
