"""The audit log of a gallery: who searched, deleted or added what, when and why.

    audit/<number>.json          one record a file, with its own hash and that of the record before
    audit/<number>-<hash>.json   the same on object stores, where two writers may take one number: both records are kept, and the
                                 next one names both
    audit/head.json              how many records there are and the hash of the newest, written after each
    audit/policy.json            what a search or deletion must say (pipeline.gallery.audit.set_policy)

A record that was changed, moved or removed from between others breaks the chain; one removed from the end contradicts head.json.
Who may write to the folder can still rewrite records and head together: to rule that out, keep `head` elsewhere (each append logs
it, jobs.status prints it, results carry it) and give it to `verify`.
Each case that people work on is a chain of the same kind, in cases/<name>/ (`pipeline.service.casebook`); `chain` says which one.
Records are written before an answer is given out. They name ids and hashes, never features or pictures.
"""

import contextlib
import json
import logging
import os
import pwd
import re
import socket
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from pipeline import telemetry
from pipeline.errors import PipelineError, UsageError, first_line
from pipeline.gallery.gallery import Gallery
from pipeline.stopping import CANCELLED
from pipeline.storage.documents import parsed
from pipeline.storage.faults import StorageError
from pipeline.storage.formats import check_format
from pipeline.storage.hashing import json_sha256, sha256
from pipeline.storage.location import Location
from pipeline.storage.uris import is_utf8

OLDEST_FORMAT, FORMAT = 1, 1  # of records
TRIES = 100  # writers that may come in between
AMONG = 1000  # records that are looked through for the newest of a kind
WINDOW = 32  # newest records among which a fork is looked for
AUDIT, CASES = "audit", "cases"
SAID = ("reason", "case")
CONFIRMATION = "confirmation"  # by a second person, of all that an export calls the same person
REQUIRABLE = (*SAID, CONFIRMATION)
NEED_POLICY = ("search", "follow", "evaluate", "forget", "export")  # actions that must say what the policy requires
UNCONFIRMED = "this gallery requires that a second person has confirmed all that is called the same person; nothing was exported"
_RECORD = re.compile(r"(\d{10})(?:-[0-9a-f]{16})?\.json")
_logger = logging.getLogger("coattention.audit")


def append_record(
    gallery: Gallery, action: str, fields: dict[str, Any], *, chain: str = AUDIT, check: Callable[[], object] | None = None
) -> str:
    """Append one record and return its name; action is "search", "follow", "evaluate", "forget", "compact", "ingest" or the like.

    who (unless the fields say it, as those of `on_behalf_of` do), host, time and number are added. On local disks writers take
    turns; on object stores two in the same instant both keep their record. Raises UsageError for text that is not Unicode or a
    reason or case that the gallery requires and is missing,
    and PipelineError when the log cannot be written: then there must be no answer either.

    check: called once the record's place is known; what it raises leaves no record, and on local disks no other record comes
    between the two.
    """
    folder = _folder(gallery, chain)
    if not is_utf8(json.dumps(fields, ensure_ascii=False)):
        raise UsageError("the reason, case or ids hold characters that are not Unicode; they go into the audit log")
    for _ in range(TRIES):
        number, previous = _place(folder)
        if check is not None:
            check()
        if chain == AUDIT and action in NEED_POLICY:  # after the place is known: no record follows a policy's and has not seen it
            check_policy(gallery, fields.get("reason"), fields.get("case"))
            if _left_out({"action": action, **fields}, required(gallery)):
                raise UsageError(UNCONFIRMED)
        record = {
            "action": action,
            "at": datetime.now(UTC).isoformat(),
            "who": user(),
            "host": socket.gethostname(),
            **fields,
            "number": number,
            "previous": previous,
        }
        record["sha256"] = _hash_of(record)  # the last record has no other that vouches for it
        data = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        digest = sha256(data)
        name = f"{number:010d}.json" if folder.is_local else f"{number:010d}-{digest[:16]}.json"
        if folder.join(name).write_atomically(data, exclusive=folder.is_local):
            _write_head(folder, number, digest)
            telemetry.count("coattention_audit_records", action=action)
            _logger.info("audit record %s", name, extra={"action": action, "audit_head": f"{number + 1}:{digest}"})
            return name
    raise PipelineError(f"the audit log {folder.uri} is being written by too many at once; try again")


@contextlib.contextmanager
def failures_recorded(gallery: Gallery, action: str, *fields: dict[str, Any]) -> Iterator[None]:
    """Append a record for each of `fields` when the block raises, with the sentence that it failed with, an interruption as
    "cancelled".
    """
    try:
        yield
    except BaseException as error:
        words = CANCELLED if isinstance(error, KeyboardInterrupt) else first_line(error)
        failed = {"failed": unicode_only(words), "ended_at": datetime.now(UTC).isoformat()}
        for each in fields:
            append_record(gallery, action, each | failed)
        raise


def unicode_only(text: str) -> str:
    """The text as a record can hold it: a path that is not UTF-8 with its bytes in figures.

    >>> unicode_only("a\\udce9.mp4")
    'a\\\\udce9.mp4'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def read_records(gallery: Gallery, chain: str = AUDIT, first: int = 0, count: int | None = None) -> list[dict[str, Any]]:
    """All records, oldest first; or `count` files of records from a place on."""
    files = _records(_folder(gallery, chain))[first:]
    return [json.loads(data) for _, data in _contents(files[:count])]


def count_records(gallery: Gallery, chain: str = AUDIT) -> int:
    """How many files of records there are."""
    return len(_records(_folder(gallery, chain)))


def cases(gallery: Gallery) -> list[str]:
    """Names of all cases of a gallery."""
    files = gallery.location.join(CASES).list(recursive=True)
    return sorted({file.path.split("/")[-2] for file in files if _RECORD.fullmatch(file.name)})


def newest(gallery: Gallery, action: str) -> dict[str, Any] | None:
    """The newest record of an action among the newest AMONG records, None where there is none."""
    for file in reversed(_records(gallery.location.join("audit"))[-AMONG:]):
        try:
            record = parsed(file.read_bytes())
        except ValueError:  # `verify` names it
            continue
        if isinstance(record, dict) and record.get("action") == action:
            return record
    return None


def head(gallery: Gallery, chain: str = AUDIT) -> str | None:
    """The newest record as COUNT:SHA256, to be kept elsewhere and given to `verify` later; None without records."""
    folder = _folder(gallery, chain)
    number, digests = _newest(folder, [] if folder.is_local else _records(folder))
    return None if number < 0 else f"{number + 1}:{digests[-1]}"


def verify(gallery: Gallery, kept_head: str | None = None, chain: str = AUDIT) -> list[str]:
    """What is wrong with the log, in words; an empty list when the chain is whole and every record says what was required then.

    kept_head: what `head` gave earlier; finds a log that was rewritten or cut back since, head.json included. Raises UsageError
    for one that is not COUNT:SHA256.
    """
    folder = _folder(gallery, chain)
    anchors = [("the head that was kept", _parsed_head(kept_head))] if kept_head else []
    faults: list[str] = []
    digests: dict[int, set[str]] = {}
    before: set[str] = set()  # hashes of all records with smaller numbers
    due = 0  # the number that comes next
    numbered = 0
    policies: dict[int, list[tuple[str, ...]]] = {-1: [()]}  # number -> what records of a policy require from the next one on
    # Read before the records, since others may come meanwhile.
    anchor, required_before = _read_head(folder), required(gallery)
    for file, data in _contents(_records(folder)):
        number = _number(file)
        if number > due:
            faults.append(f"the record before {file.name} is missing")
            break
        before |= digests.get(number - 1, set())
        due = number + 1
        try:
            record = parsed(data)
            check_format(
                f"the record {file.name}", record.get("format", 1), OLDEST_FORMAT, FORMAT, "verify it with an older version"
            )
            previous, own = record["previous"], record.pop("sha256")
            claimed = set(previous) if isinstance(previous, list) else {previous} - {None}
            changed = own != _hash_of(record)
        except PipelineError as error:  # of another format, in which hashes may be made otherwise
            faults.append(str(error))
            break
        except (ValueError, KeyError, TypeError, AttributeError):
            faults.append(f"{file.name} is damaged")
            break
        if changed:
            faults.append(f"{file.name} was changed")
        elif record.get("number", number) != number:
            faults.append(f"{file.name} was moved: it is record {record['number']}")
        if not ((claimed <= before and claimed & digests.get(number - 1, set())) or (number == 0 and not claimed)):
            faults.append(f"the record before {file.name} was changed, or {file.name} was")
        digests.setdefault(number, set()).add(sha256(data))
        numbered += "number" in record
        if record.get("action") == "policy":
            policies.setdefault(number, []).append(_known_names(record.get("required")))
        in_force = policies[max(earlier for earlier in policies if earlier < number)]
        if missing := min((_left_out(record, names) for names in in_force), key=len):
            faults.append(f"{file.name} says no {' and no '.join(missing)}, which the policy of that moment required")
    else:
        if anchor is not None:
            anchors.append(("head.json", anchor))
        elif numbered > 1:
            faults.append("head.json, which says how many records there are, is missing")
        for source, (count, digest) in anchors:
            if count > due:
                faults.append(f"the newest records are missing: {source} counts {count}, there are {due}")
            elif digest not in digests.get(count - 1, set()):
                faults.append(f"record {count - 1} is not the one that {source} names")
        if chain == AUDIT and not {required_before, required(gallery)} & {*policies[max(policies)]}:
            faults.append("policy.json was changed without a record")
    return faults


def required(gallery: Gallery) -> tuple[str, ...]:
    """What searches and deletions of this gallery must say, and exports must have: of REQUIRABLE.

    Raises PipelineError when the setting is damaged.
    """
    file = gallery.location.join("audit", "policy.json")
    try:
        names = parsed(file.read_bytes())["required"]
        if not set(names) <= set(REQUIRABLE):
            raise ValueError(f"it requires {names}")
    except StorageError as error:
        if error.kind == "missing" or gallery.location.join("audit").info().is_file:
            return ()
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{file.uri} is damaged: {error}; set it again with jobs.policy") from error
    return _known_names([*names])


def set_policy(gallery: Gallery, names: Collection[str], reason: str | None = None) -> None:
    """Make a reason, a case, the confirmation of exports mandatory from now on, or none. The change is a record of its own.

    Raises UsageError for other names.
    """
    if unknown := set(names) - set(REQUIRABLE):
        raise UsageError(f"{sorted(unknown)[0]!r} cannot be required; choose of {', '.join(REQUIRABLE)}")
    chosen = list(_known_names([*names]))
    before: Collection[str] = ()
    with contextlib.suppress(PipelineError):  # a damaged one is mended by this
        before = required(gallery)
    _write_policy(gallery, {*before, *chosen})  # at least as much as the records say, at every moment
    try:
        append_record(gallery, "policy", {"required": chosen, "reason": reason})
    except BaseException:
        _write_policy(gallery, before)
        raise
    _write_policy(gallery, chosen)


def _write_policy(gallery: Gallery, names: Collection[str]) -> None:
    document = {"required": _known_names([*names])}
    gallery.location.join("audit", "policy.json").write_atomically(json.dumps(document).encode())


def _known_names(listed: Any) -> tuple[str, ...]:
    """Which of REQUIRABLE are listed, whatever somebody wrote there."""
    return tuple(name for name in REQUIRABLE if isinstance(listed, list | tuple) and name in listed)


def _left_out(record: dict[str, Any], names: Collection[str]) -> list[str]:
    """What a record should say by a policy and does not."""
    if record.get("action") not in NEED_POLICY:
        return []
    due = names if record["action"] == "export" else [name for name in names if name in SAID]
    return [name for name in due if not str(record.get(name) or "").strip()]


def check_policy(gallery: Gallery, reason: str | None, case: str | None) -> None:
    """Raise UsageError when the gallery requires a reason or case that is missing or blank, and for one that is not Unicode; call
    it before any work.
    """
    given = {"reason": reason, "case": case}
    if not is_utf8(f"{reason}{case}"):
        raise UsageError("the reason or case holds characters that are not Unicode; they go into the audit log")
    if missing := [name for name in required(gallery) if name in SAID and not str(given[name] or "").strip()]:
        flags = " and ".join(f"--{name}" for name in missing)
        raise UsageError(f"{gallery.location.uri} requires {flags} for its audit log; nothing was done")


def user() -> str:
    """The account that this process runs under, whatever its environment says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # no passwd entry, as in some containers
        return f"uid {os.getuid()}"


def on_behalf_of(person: str) -> dict[str, str]:
    """Fields of a record about what a service does for a person: who it is, and the account that the service runs under."""
    return {"who": person, "account": user()}


def _folder(gallery: Gallery, chain: str) -> Location:
    return gallery.location.join(*chain.split("/"))


def _place(folder: Location) -> tuple[int, str | list[str] | None]:
    """The next number, and the hash or hashes of what comes before: all records that no other has named yet."""
    files = [] if folder.is_local else _records(folder)
    number, digests = _newest(folder, files)
    recent = [file for file in files if _number(file) > number - WINDOW]
    if len({_number(file) for file in recent}) == len(recent):
        return number + 1, digests[-1] if digests else None
    contents = {sha256(data): json.loads(data) for _, data in _contents(recent)}
    named = {one for record in contents.values() for one in _listed(record["previous"])}
    tips = [digest for digest in dict.fromkeys([*contents, *digests]) if digest not in named]  # a listing may lag behind the head
    return number + 1, tips[0] if len(tips) == 1 else tips


def _newest(folder: Location, files: list[Location]) -> tuple[int, list[str]]:
    """The newest record's number and hashes (several where it has forked), -1 and none without records.

    files: the records, for object stores; on a local disk head.json says where to look, so that a long log need not be listed.
    Where the record that head.json names is gone its hash still counts, so that the gap stays visible.
    """
    anchor = _read_head(folder)
    if anchor is not None and folder.is_local:
        number, digests = anchor[0] - 1, [anchor[1]]
        while (file := folder.join(f"{number + 1:010d}.json")).exists():
            number, digests = number + 1, [sha256(file.read_bytes())]
        return number, digests
    files = _records(folder) if folder.is_local else files
    number = _number(files[-1]) if files else -1
    if anchor is not None and anchor[0] - 1 > number:
        return anchor[0] - 1, [anchor[1]]
    newest = [file for file in files if _number(file) == number]
    return number, [sha256(file.read_bytes()) for file in newest]


def _write_head(folder: Location, number: int, digest: str) -> None:
    """Say that this is the newest record, or which one is that others have written meanwhile."""
    for _ in range(TRIES):
        folder.join("head.json").write_atomically(json.dumps({"records": number + 1, "sha256": digest}).encode())
        if not folder.is_local or not (following := folder.join(f"{number + 1:010d}.json")).exists():
            return
        number, digest = number + 1, sha256(following.read_bytes())


def _read_head(folder: Location) -> tuple[int, str] | None:
    """(records, hash of the newest) of head.json; None where it is absent or damaged."""
    try:
        fields = parsed(folder.join("head.json").read_bytes())
        return int(fields["records"]), str(fields["sha256"])
    except (StorageError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _parsed_head(text: str) -> tuple[int, str]:
    if not (found := re.fullmatch(r"(\d{1,10}):([0-9a-f]{64})", text)) or int(found[1]) < 1:
        raise UsageError(f"{text!r} is not the head of an audit log: COUNT:SHA256, as jobs.status prints it")
    return int(found[1]), found[2]


def _hash_of(record: dict[str, Any]) -> str:
    return json_sha256(record, ensure_ascii=False)


def _listed(previous: str | list[str] | None) -> list[str]:
    return previous if isinstance(previous, list) else [previous] if previous else []


def _number(file: Location) -> int:
    return int(file.name[:10])


def _records(folder: Location) -> list[Location]:
    return [file for file in folder.list() if _RECORD.fullmatch(file.name)]


def _contents(files: list[Location]) -> Iterator[tuple[Location, bytes]]:
    """Files with their bytes, in order; from object stores several at a time."""
    if not files or files[0].is_local:
        yield from ((file, file.read_bytes()) for file in files)
        return
    with ThreadPoolExecutor(16) as pool:
        yield from zip(files, pool.map(Location.read_bytes, files), strict=True)
