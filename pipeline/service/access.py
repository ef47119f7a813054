"""Who is asking and what their role lets them do: tokens, one that opens the page once, sessions of those who signed in.

Of a token only its SHA-256 is kept, in memory or in the file of tokens; what is 256 random bits needs no slower hash. Nothing
here logs.
"""

import fcntl
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.errors import UsageError
from pipeline.storage.documents import typed
from pipeline.storage.hashing import sha256
from pipeline.storage.local_writes import write_local
from pipeline.storage.seals import sealed, unsealed
from pipeline.storage.uris import is_utf8

SESSION_SECONDS = 12 * 3600.0
ONE_TIME_SECONDS = 3600.0
DAY = 24 * 3600.0
LONGEST_NAME = 100  # characters
Role = Literal["viewer", "investigator", "reviewer", "admin"]
Right = Literal["look", "investigate", "confirm", "oversee", "administer"]
ROLES: tuple[Role, ...] = get_args(Role)
# Who reads the decisions in the audit log cannot confirm blindly: an admin confirms nothing.
RIGHTS: dict[Right, tuple[Role, ...]] = {
    "look": ROLES,
    "investigate": ("investigator", "reviewer", "admin"),
    "confirm": ("reviewer",),
    "oversee": ("reviewer", "admin"),
    "administer": ("admin",),
}


@dataclass(frozen=True)
class Token:
    """A token of a person. sha256: of the token itself, hexadecimal; expires: seconds since 1970; role: what they may do; those
    of before there were roles are an investigator's.
    """

    sha256: str
    person: str
    expires: float
    role: Role = "investigator"

    def may(self, right: Right) -> bool:
        """Whether the role has the right."""
        return self.role in RIGHTS[right]


class Access:
    """Tokens and sessions of one service. tokens_file: where `issue` wrote the tokens of programs and people, or None."""

    def __init__(self, tokens_file: Path | None = None) -> None:
        self.tokens_file = tokens_file
        self._once: dict[str, Token] = {}
        self._sessions: dict[str, Token] = {}
        self._opened_by: dict[str, str] = {}  # session -> the file's token, both as SHA-256

    def one_time(self, person: str, role: Role = "admin") -> str:
        """A new token that opens one session within ONE_TIME_SECONDS. Raises UsageError for a name that is none."""
        return _new(self._once, check_person(person), ONE_TIME_SECONDS, role)

    def sign_in(self, token: str) -> tuple[str, Token] | None:
        """(session, whose it is) for a one-time token, which ends with it, or for one of the file; None for any other."""
        once = _valid(self._once.pop(_hash(token), None))
        found = once or self.of_token(token)
        if found is None:
            return None
        self._sessions = {key: one for key, one in self._sessions.items() if one.expires > time.time()}
        self._opened_by = {key: one for key, one in self._opened_by.items() if key in self._sessions}
        session = _new(self._sessions, found.person, SESSION_SECONDS, found.role)
        if once is None:
            self._opened_by[_hash(session)] = found.sha256
        return session, found

    @property
    def sessions(self) -> int:
        """How many are open."""
        return sum(self._of(key) is not None for key in list(self._sessions))

    def sign_out(self, session: str) -> None:
        """End a session; one that is not there has ended."""
        self._sessions.pop(_hash(session), None)

    def of_session(self, session: str) -> Token | None:
        """Whose session it is and what they may; None when it has ended, or the token that opened it. Raises UsageError for a
        damaged file of tokens.
        """
        return self._of(_hash(session))

    def _of(self, key: str) -> Token | None:
        opened_by = self._opened_by.get(key)
        if opened_by is not None and self._of_file(opened_by) is None:
            return None
        return _valid(self._sessions.get(key))

    def of_token(self, token: str) -> Token | None:
        """A token of the file; None when it is not there or has expired. Raises UsageError for a damaged file."""
        return self._of_file(_hash(token))

    def _of_file(self, digest: str) -> Token | None:
        if self.tokens_file is None:
            return None
        return _valid({one.sha256: one for one in read_tokens(self.tokens_file)}.get(digest))  # anew: it may be revoked


def check_person(person: str) -> str:
    """The name. Raises UsageError for one that is empty, too long or would not be seen as it is in a record."""
    if not (person.strip() and len(person) <= LONGEST_NAME and person.isprintable() and is_utf8(person)):
        raise UsageError(f"a person's name is 1 to {LONGEST_NAME} printable characters, not {person!r}")
    return person


def issue(file: Path, person: str, days: float, role: Role = "investigator") -> str:
    """Add a token of a person to the file, made where there is none, and return it: it is shown nowhere again.

    Raises UsageError for a name, a role or a time that cannot be meant and for a damaged file.
    """
    check_person(person)
    if role not in ROLES:
        raise UsageError(f"a role is one of {', '.join(ROLES)}, not {role!r}")
    if not 0 < days <= 366:
        raise UsageError(f"a token expires after more than 0 and at most 366 days, not {days:g}")
    with _alone(file):
        tokens = {one.sha256: one for one in read_tokens(file) if one.expires > time.time()}
        token = _new(tokens, person, days * DAY, role)
        _write(file, list(tokens.values()))
    return token


def revoke(file: Path, person: str) -> int:
    """Remove all tokens of a person; how many there were. Sessions that they opened end with them."""
    with _alone(file):
        tokens = read_tokens(file)
        kept = [one for one in tokens if one.person != person]
        _write(file, kept)
    return len(tokens) - len(kept)


def read_tokens(file: Path) -> list[Token]:
    """The tokens of a file, expired ones too; none where there is no file. Raises UsageError for a damaged one."""
    try:
        document = unsealed(file.read_bytes())
        return typed(list[Token], document["tokens"])
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"the file of tokens {file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"the file of tokens {file} is damaged: {error}; remove it and issue its tokens anew") from error


def _write(file: Path, tokens: list[Token]) -> None:
    write_local(file, sealed({"tokens": [asdict(one) for one in tokens]}, indent=1))
    file.chmod(0o600)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """While nobody else changes the file."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_name(f"{file.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise UsageError(f"the file of tokens {file} cannot be written: {error.strerror}") from error


def _new(tokens: dict[str, Token], person: str, seconds: float, role: Role) -> str:
    token = secrets.token_urlsafe(32)
    tokens[_hash(token)] = Token(_hash(token), person, time.time() + seconds, role)
    return token


def _valid(token: Token | None) -> Token | None:
    """The token unless it has expired."""
    return None if token is None or token.expires <= time.time() else token


def _hash(token: str) -> str:
    return sha256(token.encode("utf-8", "surrogateescape"))
