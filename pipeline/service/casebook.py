"""Cases: what several people decide about leads, as records of a chain each, in the gallery's cases/<name>/.

    case           begins it: title, reason
    decision       what a person says of a lead, with the search that found it and the frames that speak for it; null: taken back
    confirmation   what a second person said of the same pictures without having seen what the first one said
    export         what was handed over, by hash
    close, reopen  whether it goes on

Each stands in the gallery's audit log first, so that a chain that was cut or removed as a whole contradicts that. Records are
never changed: what holds now is what the newest ones say. They name ids, hashes and frame numbers, never features or pictures.
"""

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.errors import UsageError
from pipeline.gallery import audit
from pipeline.gallery.gallery import Gallery
from pipeline.search.results import Lead, SegmentView
from pipeline.search.targets import GALLERY_PREFIX
from pipeline.service.access import Token
from pipeline.service.searches import Search

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
# of a search's result
OF_RESULT = (
    *("index_version", "model", "untrained", "gallery_videos", "eligible", "scored", "calibration", "none_probability"),
    *("expected_matches", "target_segments"),
)
OF_RECORD = ("reason", "searched_by", "audit_head")  # of the search's own record
NEVER = 0  # the tag of a lead that nobody has decided


class ConflictError(Exception):
    """Somebody else was first; the sentence says what there is now."""


class NotNowError(Exception):
    """The state of the case rules it out; the sentence says why."""


@dataclass(frozen=True)
class Confirmation:
    """What a second person said, when; agrees: whether it is what the first one said."""

    who: str
    at: str
    decision: str
    agrees: bool
    note: str | None


@dataclass(frozen=True)
class Judged:
    """A lead on which somebody has decided. tag: number of the decision's record, from 1; deciders: all who ever decided on it.

    record: the decision's record. confirmation: the newest of this decision, None as long as it waits for a second person.
    """

    video_id: str
    tag: int
    record: dict[str, Any]
    deciders: frozenset[str]
    confirmation: Confirmation | None = None

    @property
    def decision(self) -> str:
        return self.record["decision"]

    @property
    def target(self) -> str | None:
        """The gallery's video that was the target; None for an upload."""
        return _of_gallery(self.record["target"])

    @property
    def targets(self) -> list[str]:
        """All of the gallery's videos that were targets of the search."""
        names = [self.record["target"], *self.record.get("further_targets", ())]
        return [video_id for name in names if (video_id := _of_gallery(name)) is not None]

    @property
    def confirmed(self) -> bool:
        """Whether a second person said the same."""
        return self.confirmation is not None and self.confirmation.agrees

    def hidden_from(self, asking: Token) -> bool:
        """Whether this person may still confirm it, and so must not see what was said."""
        return asking.may("confirm") and self.confirmation is None and asking.person not in self.deciders


@dataclass(frozen=True)
class Case:
    """A case as its records say. gallery_name: as people see it."""

    gallery: Gallery
    gallery_name: str
    name: str
    records: tuple[dict[str, Any], ...]

    @property
    def chain(self) -> str:
        return f"{audit.CASES}/{self.name}"

    @property
    def is_open(self) -> bool:
        states = [one["action"] for one in self.records if one["action"] in ("close", "reopen")]
        return states[-1:] != ["close"]

    @cached_property
    def judged(self) -> dict[str, Judged]:
        """What holds now, by video id; without what was taken back and without videos that were forgotten."""
        gone = self.gallery.snapshot().forgotten
        return {video_id: one for video_id, one in judged_of(self.records).items() if video_id not in gone}

    @property
    def same(self) -> list[Judged]:
        """Leads that were called the same person, and not something else by a second one."""
        return same_of(self.judged.values())

    @cached_property
    def shown(self) -> frozenset[str]:
        """Videos that an export shows: leads that were called the same person, and their targets."""
        return frozenset(name for one in self.same for name in (one.video_id, *one.targets))

    def tag(self, video_id: str) -> int:
        """Number of the newest record of a decision on a video, from 1, also where that took one back; NEVER without one."""
        of_video = (one for one in self.records if one["action"] == "decision" and one["video_id"] == video_id)
        return max((one["number"] + 1 for one in of_video), default=NEVER)

    def unconfirmed(self) -> list[str]:
        """Videos that were called the same person and wait for a second person."""
        return [one.video_id for one in self.same if not one.confirmed]


class Casebook:
    """The cases of a service's galleries. Records are read once, since they never change."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._read: dict[tuple[Gallery, str], list[dict[str, Any]]] = {}

    def names(self, gallery: Gallery) -> list[str]:
        """Of all cases of a gallery."""
        return audit.cases(gallery)

    def open(self, gallery: Gallery, gallery_name: str, name: str) -> Case | None:
        """The case as it is now, None where there is none."""
        if not re.fullmatch(NAME, name):
            return None
        with self._lock:
            known = self._read.setdefault((gallery, name), [])
            if not gallery.location.is_local:  # where two writers may take one number, a new record may stand between known ones
                known.clear()
            known += audit.read_records(gallery, f"{audit.CASES}/{name}", first=len(known))
            return Case(gallery, gallery_name, name, tuple(known)) if known else None

    def begin(self, gallery: Gallery, gallery_name: str, name: str, asking: Token, title: str, reason: str | None) -> Case:
        """A new case. Raises ConflictError where one has the name."""
        if not re.fullmatch(NAME, name):
            raise UsageError(
                "a case's name is 1 to 64 letters, figures, dots, dashes and underscores, the first a letter or figure"
            )
        audit.check_policy(gallery, reason, name)
        new = Case(gallery, gallery_name, name, ())

        def unused(now: Case) -> None:
            if now.records:
                raise ConflictError(f"there is a case {name} already")

        return self._append(new, "case", asking, {"title": title, "reason": reason}, unused)

    def close(self, case: Case, asking: Token, closed: bool) -> Case:
        """Close a case or go on with it; nothing where it is so already."""
        return (
            case if case.is_open != closed else self._append(case, "close" if closed else "reopen", asking, {}, lambda _now: None)
        )

    def decide(
        self, case: Case, asking: Token, video_id: str, tag: int | None, decision: str | None, said: dict[str, Any]
    ) -> Case:
        """Record a decision. tag: of the decision that it replaces, as the person saw it, None for whatever there is.

        said: further fields. Raises ConflictError where the tag is another one by now and NotNowError in a closed case.
        """

        def still(now: Case) -> None:
            if not now.is_open:
                raise NotNowError(f"the case {now.name} is closed")
            if tag is not None and now.tag(video_id) != tag:
                raise ConflictError(f"somebody has decided on {video_id} meanwhile; look again")

        before = case.judged[video_id].decision if video_id in case.judged else None
        fields = {"video_id": video_id, "decision": decision, "before": before, **said}
        return self._append(case, "decision", asking, fields, still)

    def confirm(self, case: Case, asking: Token, video_id: str, tag: int, decision: str, note: str | None) -> Case:
        """Record what a second person says of a lead that somebody has decided. tag: of that decision.

        Raises ConflictError where the decision is another one by now, and NotNowError for whoever decided it, for one that is
        confirmed and in a closed case.
        """

        def due(now: Case) -> None:
            if not now.is_open:
                raise NotNowError(f"the case {now.name} is closed")
            one = now.judged.get(video_id)
            if one is None or one.tag != tag:
                raise ConflictError(f"the decision on {video_id} is another one by now; look again")
            if asking.person in one.deciders:
                raise NotNowError("who has decided on a lead cannot confirm it; another person does")
            if one.confirmation is not None:
                raise NotNowError(f"{one.confirmation.who} has confirmed this decision already")

        fields = {"video_id": video_id, "decision": decision, "of": tag, "note": note}
        return self._append(case, "confirmation", asking, fields, due)

    def exported(self, case: Case, asking: Token, said: dict[str, Any]) -> Case:
        """Record that a case is handed over. Raises UsageError where the gallery's policy rules it out."""
        unconfirmed = case.unconfirmed()
        confirmation = None if unconfirmed else "all by a second person"

        def as_seen(now: Case) -> None:
            if now.records != case.records:
                raise ConflictError("somebody has worked on the case meanwhile; export it again")

        return self._append(case, "export", asking, {**said, "confirmation": confirmation, "unconfirmed": unconfirmed}, as_seen)

    def _append(self, case: Case, action: str, asking: Token, fields: dict[str, Any], check: Callable[[Case], object]) -> Case:
        """Write a record into the audit log, then into the case, unless the case as it is then does not pass the check."""

        def now() -> Case:
            return self.open(case.gallery, case.gallery_name, case.name) or case

        fields = {**audit.on_behalf_of(asking.person), "case": case.name, **fields}
        with self._lock:
            check(now())  # most often that is all that is needed, and leaves nothing in the log
            with audit.failures_recorded(case.gallery, action, {**fields, "in_case": False}):
                audit.append_record(case.gallery, action, fields)
                linked = {**fields, "audit_head": audit.head(case.gallery)}
                audit.append_record(case.gallery, action, linked, chain=case.chain, check=lambda: check(now()))
            return now()


def judged_of(records: Iterable[Mapping[str, Any]]) -> dict[str, Judged]:
    """What holds after a case's records, by video id; without what was taken back."""
    found: dict[str, Judged] = {}
    deciders: dict[str, frozenset[str]] = {}
    for record in records:
        video_id = record.get("video_id", "")
        if record["action"] == "decision":
            deciders[video_id] = deciders.get(video_id, frozenset()) | {record["who"]}
            found.pop(video_id, None)
            if record["decision"] is not None:
                found[video_id] = Judged(video_id, record["number"] + 1, dict(record), deciders[video_id])
        elif record["action"] == "confirmation" and (one := found.get(video_id)) is not None and one.tag == record["of"]:
            agrees = record["decision"] == one.decision
            said = Confirmation(record["who"], record["at"], record["decision"], agrees, record["note"])
            found[video_id] = Judged(video_id, one.tag, one.record, one.deciders, said)
    return found


def same_of(judged: Iterable[Judged]) -> list[Judged]:
    """Leads that were called the same person, and not something else by a second one."""
    return [one for one in judged if one.decision == "same" and (one.confirmation is None or one.confirmed)]


def _of_gallery(target: str) -> str | None:
    """The id of a target that is a gallery's video; None for an upload."""
    return target.removeprefix(GALLERY_PREFIX) if target.startswith(GALLERY_PREFIX) else None


def of_lead(lead: Lead) -> dict[str, Any]:
    """What a record says of a lead: how good it was, and the frames of the two segments that resemble each other most."""
    pair = lead.best_pairs[0] if lead.best_pairs else None
    evidence = None
    if pair is not None:
        evidence = {"target": _segment(pair.target), "candidate": _segment(pair.candidate), "score": pair.score}
    same = ("rank", "score", "probability", "strength", "prefilter_rank", "source_hash")
    return {**{name: getattr(lead, name) for name in same}, "evidence": evidence}


def of_search(search: Search) -> dict[str, Any]:
    """What a record says of the search that found a lead: enough to say later what the lead's place among others rests on."""
    result = search.result
    if result is None:
        return {}
    found = {name: getattr(result, name) for name in OF_RESULT} | {name: getattr(result.record, name) for name in OF_RECORD}
    at = None if result.searched_at is None else result.searched_at.isoformat()
    target = {"video_id": result.target.video_id, "ingested_hash": result.target.ingested_hash}
    further = {"further": [video.video_id for video in result.further]} if result.further else {}
    return {"found": {**found, "normalise": result.score.normalise, "searched_at": at, "target": target, **further}}


def _segment(segment: SegmentView) -> dict[str, Any]:
    times, attention = ([round(one, 4) for one in of_frames] for of_frames in (segment.time_s, segment.attention))
    return {"frames": list(segment.frame_index), "times": times, "attention": attention}
