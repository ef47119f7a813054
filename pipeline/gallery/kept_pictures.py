"""Pictures of uploaded targets that a case keeps (`pipeline.service.case_pictures`), and which of them are to go for good.

cases/<name>/pictures/<SHA-256 of the bytes>.jpg; a decision's record names them as target_pictures, and their target's bytes as
target_hash.
"""

from pipeline.gallery import audit
from pipeline.gallery.forgotten import covers
from pipeline.gallery.gallery import Gallery
from pipeline.storage.location import Location


def picture_file(gallery: Gallery, case: str, digest: str) -> Location:
    """Where a case keeps the picture of a hash."""
    return gallery.location.join(audit.CASES, case, "pictures", f"{digest}.jpg")


def delete_forgotten_pictures(gallery: Gallery) -> int:
    """Delete what cases keep of targets whose bytes were forgotten; how many files went. Raises StorageError."""
    content, deleted = gallery.snapshot().tombstones.content, 0
    for case in audit.cases(gallery) if content else ():
        kept, gone = set[str](), set[str]()
        for record in audit.read_records(gallery, f"{audit.CASES}/{case}"):
            of_forgotten = covers(content, record.get("target_hash"), None)
            (gone if of_forgotten else kept).update(record.get("target_pictures", {}).values())
        for file in (picture_file(gallery, case, digest) for digest in sorted(gone - kept)):
            if file.exists():
                file.delete()
                deleted += 1
    return deleted
