"""Issue or revoke tokens for jobs.serve: python -m jobs.token --tokens FILE --person NAME [--role ROLE | --revoke]"""

from pathlib import Path
from typing import Annotated

import typer

from jobs.command_line import run
from pipeline.errors import UsageError
from pipeline.service.access import Role, issue
from pipeline.service.access import revoke as revoke_tokens


def token(
    tokens: Annotated[Path, typer.Option(help="File that holds them, hashed; jobs.serve --tokens takes it.")],
    person: Annotated[str, typer.Option(help="Whose token it is: audit logs name this person.")],
    role: Annotated[
        Role, typer.Option(help="What it lets do: viewer looks, investigator searches and judges, reviewer confirms too, admin.")
    ] = "investigator",
    days: Annotated[float, typer.Option(help="How long it is valid.")] = 30,
    revoke: Annotated[bool, typer.Option("--revoke", help="Remove all tokens of this person instead.")] = False,
) -> None:
    """Print a new token of a person, for the page or as a bearer token of the interface. It is shown once."""
    if not revoke:
        print(issue(tokens, person, days, role))
        return
    count = revoke_tokens(tokens, person)
    if not count:
        raise UsageError(f"{tokens} holds no token of {person!r}")
    print(f"{count} {'token' if count == 1 else 'tokens'} removed; sessions that are open end within 12 hours")


if __name__ == "__main__":
    run(token)
