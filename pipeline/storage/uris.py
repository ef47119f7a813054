"""Canonical uris: the one spelling of a path, of an object in S3 or in Google Cloud Storage, and of whom it asks.

A canonical uri is an absolute local path (`/data/cam1/a.mp4`) or `s3://bucket/key`, `gs://bucket/key`. The key is
literal, as the AWS command line writes it: a blank is a blank and `%20` is three characters. Connection options that
pyarrow knows (`?endpoint_override=...&region=...`) stay at the end of the uri, since another process needs them to open
it; credentials never stand in a uri, since uris are written into the gallery.
"""

import posixpath
import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode

from pipeline.errors import UsageError

# What pyarrow.fs.FileSystem.from_uri accepts after "?". Anything else after a question mark belongs to the key.
_OPTIONS = {
    *("endpoint_override", "region", "scheme", "allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open"),
    *("check_directory_existence_before_creation", "force_virtual_addressing", "tls_ca_file_path"),
    *("retry_limit_seconds", "project_id"),
}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")


def canonical_uri(uri_or_path: str | Path, base: str | None = None) -> str:
    """The one spelling of a path or uri, as the head of this file says, found without opening anything.

    `.`, `..` and doubled slashes are resolved by spelling. base: folder (path or uri) that a relative path starts from;
    the working directory without it. Raises UsageError.

    >>> canonical_uri("clips/../a b.mp4", base="s3://footage/cam1")
    's3://footage/cam1/a b.mp4'
    """
    text = str(uri_or_path)
    if not text or "\0" in text or not is_utf8(text):
        raise UsageError(f"{text!r} cannot be a path: it is empty, holds a NUL character or is not UTF-8")
    scheme = _SCHEME.match(text) if "://" in text else None
    if scheme is None:
        if text.startswith("/"):
            return _normal(text)
        if base is None:
            return canonical_uri(str(Path(text).absolute()))
        if base.startswith("/"):
            return _normal(f"{base}/{text}")
        base = canonical_uri(base)
        head, options = split_options(base)
        text = f"{head}/{text}{options}"
        if head.startswith("/"):
            return _normal(text)
        scheme = _SCHEME.match(text)
        assert scheme is not None  # noqa: S101 - base is canonical: a path or a uri with a scheme
    return _canonical_with_scheme(scheme.group(1).lower(), text[scheme.end() :], text)


def _canonical_with_scheme(scheme: str, rest: str, text: str) -> str:
    if scheme == "file":
        host, slash, path = unquote(rest).partition("/")
        if host not in ("", "localhost") or not slash:
            raise UsageError(f"{text!r} is not a local file: write file:///absolute/path")
        return canonical_uri("/" + path)
    if scheme not in ("s3", "gs", "gcs"):
        raise UsageError(f"{text!r}: unknown scheme {scheme}://; use a path, file://, s3:// or gs://")
    head, options = split_options(rest)
    bucket, _, key = head.partition("/")
    user, at, _ = bucket.rpartition("@")
    if at and not (user == "anonymous" and scheme != "s3"):
        raise UsageError(
            f"{scheme}://...@{bucket.rpartition('@')[2]} carries credentials, which would be stored with every row; "
            "give them in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or a credentials file"
        )
    if not bucket.rpartition("@")[2]:
        raise UsageError(f"{text!r} names no bucket")
    return f"{scheme.replace('gcs', 'gs')}://{bucket}{_normal('/' + key)}".rstrip("/") + options


def endpoint_of(uri: str) -> str | None:
    """Which server a canonical uri sends requests to, as "https://HOST"; None for local paths and for the cloud's own.

    What else decides where signed requests go, or who may read them, is part of it.

    >>> endpoint_of("s3://bucket/a.mp4?endpoint_override=store.example:9000&region=eu")
    'https://store.example:9000'
    >>> endpoint_of("s3://bucket/a.mp4?region=eu") is None
    True
    """
    options = dict(parse_qsl(split_options(uri)[1].removeprefix("?"), keep_blank_values=True))
    if not options:
        return None
    scheme, mark, host = options.get("endpoint_override", "").rstrip("/").rpartition("://")
    parts = [f"{scheme if mark else options.get('scheme', 'https')}://{host}".lower()]
    if "tls_ca_file_path" in options:
        parts.append(f"with the certificates of {options['tls_ca_file_path']}")
    if re.fullmatch(r"[A-Za-z0-9-]*", region := options.get("region", "")) is None:  # it becomes part of the host's name
        parts.append(f"with the region {region}")
    return None if parts == ["https://"] else " ".join(parts)


def split_options(uri: str) -> tuple[str, str]:
    """(uri without its connection options, the options from "?" on in one spelling or ""). Local paths have none."""
    head, mark, query = uri.rpartition("?")
    if not mark or uri.startswith("/"):
        return uri, ""
    pairs = parse_qsl(query, keep_blank_values=True)
    if not pairs or not {name for name, _ in pairs} <= _OPTIONS:
        return uri, ""
    return head, "?" + urlencode(sorted(pairs), safe=":/")


def _normal(path: str) -> str:
    if "//" not in path and "/." not in path and not path.endswith("/"):
        return path  # a million rows are mostly like this
    # normpath keeps two leading slashes, as POSIX allows
    return "/" + posixpath.normpath(path).lstrip("/")


def is_utf8(text: str) -> bool:
    """Whether a name is text: the bytes of others come from the file system as lone surrogates, which no table can hold."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
