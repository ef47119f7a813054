"""Where uris may lead that stand in data: below which folders, and to whose servers."""

import functools
import os
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.storage.uris import canonical_uri, endpoint_of, split_options


@dataclass(frozen=True)
class Reach:
    """Where uris may lead that stand in data: in a manifest, or in a gallery's rows.

    roots: canonical uris that they must lie in or below, links followed; (): anywhere. endpoints: those of `endpoint_of`, which
    the operator named; credentials are sent to no other, but for the cloud's own.
    """

    roots: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()

    @classmethod
    def of(cls, *named: str, roots: Sequence[str | Path] = (), endpoints: Sequence[str] = ()) -> "Reach":
        """The reach of a command. named: the canonical uris in its own arguments, whose endpoints count. endpoints: URLs.

        Raises UsageError for a root or an endpoint that cannot be meant.
        """
        canonical = tuple(map(canonical_uri, roots))
        found = [*map(endpoint_of, (*named, *canonical)), *map(_named_endpoint, endpoints)]
        return cls(canonical, tuple(sorted({one for one in found if one is not None})))

    def refusal(self, uri: str) -> tuple[str, str] | None:
        """(reject reason, sentence) for a canonical uri that leads out of reach by now, else None. Opens nothing."""
        return self.refusals()(uri)

    def refusals(self) -> Callable[[str], tuple[str, str] | None]:
        """`refusal` for many uris: where a folder's links lead is looked up once."""
        is_inside = inside_checker(self.roots) if self.roots else None

        def refusal(uri: str) -> tuple[str, str] | None:
            if (endpoint := endpoint_of(uri)) is not None and endpoint not in self.endpoints:
                sentence = f"{uri} names the endpoint {endpoint}, which the command does not; if you trust it, add --endpoint URL"
                return "unnamed_endpoint", sentence
            if is_inside is not None and not is_inside(uri):
                return "outside_roots", f"{uri} lies outside the allowed roots"
            return None

        return refusal


def _named_endpoint(url: str) -> str:
    """An --endpoint as `endpoint_of` gives it."""
    if re.fullmatch(r"https?://[^/?#\s]+/?", url) is None:
        raise UsageError(f"--endpoint is a URL such as https://store.example:9000, not {url!r}")
    return url.rstrip("/").lower()


def inside_checker(roots: Sequence[str | Path]) -> Callable[[str], bool]:
    """A function that says whether a canonical uri lies in or below one of the roots, local symlinks followed.

    Another endpoint is another place: `s3://b/x?endpoint_override=elsewhere` is not inside `s3://b`.
    """
    real_folder = functools.lru_cache(maxsize=65536)(os.path.realpath)  # many files, few folders

    def real(uri: str) -> str:
        if not uri.startswith("/"):
            return uri
        if os.path.islink(uri):  # noqa: PTH114 - a Path object a row would double the time
            return os.path.realpath(uri)
        folder, name = posixpath.split(uri)
        return posixpath.join(real_folder(folder), name)

    resolved = [split_options(real(canonical_uri(root))) for root in roots]

    def is_inside(uri: str) -> bool:
        path, options = split_options(real(uri))
        return any(
            options == root_options and (path == root or path.startswith(root.rstrip("/") + "/"))
            for root, root_options in resolved
        )

    return is_inside
