"""Objects that are written only where none is there: the one thing that pyarrow's file systems cannot ask of a store.

S3 and what speaks its protocol take `If-None-Match: *` (botocore, with the credentials of the same places as pyarrow's client),
Google Cloud Storage takes `ifGenerationMatch=0` (google-auth, with the application default credentials). A store that does not
know the condition writes over what is there: `pipeline.gallery.log` asks before it relies on it.
"""

import functools
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.025, 20.0  # between tries, doubled each time, as pyarrow's client pauses
TIMEOUT_S = 60.0
CONFLICT, THERE = 409, 412  # another one is being written at this moment; there is one
GOOGLE = "https://storage.googleapis.com"
GOOGLE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


def put_if_absent(scheme: str, path: str, options: Mapping[str, str], content: bytes, tries: int) -> bool:
    """Write an object unless one is there; False where the store says that there is.

    scheme: "s3" or "gs". path: bucket/key. options: connection options of a canonical uri. tries: how often in all where the
    store throttles, fails or does not answer. A lost answer is asked for again, so False may be said of an object that this
    call wrote: compare what is there. Raises OSError in the words of pyarrow's client ("HTTP status 403 ...").
    """
    bucket, key = path.split("/", 1)
    put = _s3_put if scheme == "s3" else _google_put
    pause = FIRST_PAUSE_S
    for attempt in range(1, tries + 1):
        status, words = put(bucket, key, options, content)
        if status in (200, THERE):
            return status == 200
        if attempt == tries or not (status in (0, CONFLICT, 429) or status >= 500):
            break
        time.sleep(pause * (0.5 + random.random() / 2))  # writers that met are to part
        pause = min(2 * pause, LONGEST_PAUSE_S)
    raise OSError(f"HTTP status {status or 503} {words}")


def _s3_put(bucket: str, key: str, options: Mapping[str, str], content: bytes) -> tuple[int, str]:
    """(status, cause); status 0 where there is no answer."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError

    try:
        _s3_client(bucket, tuple(sorted(options.items()))).put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
        return 200, ""
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"].get("Code", "")
    except HTTPClientError as error:
        return 0, str(error)
    except NoCredentialsError as error:
        return 401, str(error)
    except BotoCoreError as error:
        return 400, str(error)


@functools.lru_cache(maxsize=64)
def _s3_client(bucket: str, options: tuple[tuple[str, str], ...]) -> Any:
    import botocore.session
    from botocore.config import Config

    given = dict(options)
    endpoint = given.get("endpoint_override")
    if endpoint and "://" not in endpoint:
        endpoint = f"{given.get('scheme', 'https')}://{endpoint}"
    virtual = endpoint is None or given.get("force_virtual_addressing") == "true"
    config = Config(
        retries={"total_max_attempts": 1},  # `put_if_absent` counts them
        s3={"addressing_style": "virtual" if virtual and "." not in bucket else "path"},
        connect_timeout=TIMEOUT_S,
        read_timeout=TIMEOUT_S,
        request_checksum_calculation="when_required",  # stores that speak S3's protocol do not all know the newer ones
    )
    ca = given.get("tls_ca_file_path")
    session = botocore.session.get_session()
    region = given.get("region") or session.get_config_variable("region") or "us-east-1"  # of another, it follows the redirect
    return session.create_client("s3", region_name=region, endpoint_url=endpoint, verify=ca, config=config)


def _google_put(bucket: str, key: str, options: Mapping[str, str], content: bytes) -> tuple[int, str]:
    """(status, cause); status 0 where there is no answer."""
    anonymous, _, bucket = bucket.rpartition("@")
    endpoint = options.get("endpoint_override", GOOGLE)
    if "://" not in endpoint:
        endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
    query = f"uploadType=media&ifGenerationMatch=0&name={quote(key, '')}"
    url = f"{endpoint.rstrip('/')}/upload/storage/v1/b/{quote(bucket, '')}/o?{query}"
    headers = {"Content-Type": "application/octet-stream"} | ({} if anonymous else _google_authorization())
    try:
        request = urllib.request.Request(url, content, headers, method="POST")  # noqa: S310 - https, or what the operator named
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            response.read()
        return 200, ""
    except urllib.error.HTTPError as error:
        return error.code, _google_cause(error)
    except OSError as error:  # URLError is one
        return 0, str(error)


def _google_authorization() -> dict[str, str]:
    """The header that says who is asking. Raises PermissionError without credentials."""
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import Request

    try:
        credentials = _google_credentials()
        if not credentials.valid:
            credentials.refresh(Request())
    except GoogleAuthError as error:
        raise PermissionError(f"HTTP status 401 {error}") from error
    return {"Authorization": f"Bearer {credentials.token}"}


@functools.cache
def _google_credentials() -> Any:
    import google.auth

    return google.auth.default(scopes=[GOOGLE_SCOPE])[0]


def _google_cause(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(error.reason)
