"""Make the report of a handed-over case anew from its package alone: python -m jobs.report PACKAGE --out R"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.command_line import local_folder, printable, run
from pipeline.service.extract import remake_report


def report(
    package: Annotated[Path, typer.Argument(help="Folder of an unpacked package of an export, with its SHA256SUMS.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and the clips that it plays; another one than the package.")],
) -> None:
    """Check a package against its SHA256SUMS, make its report from the extract, the pictures and the clips in it, and say whether
    it is the one that was handed over. No gallery is needed.
    """
    written, is_same = remake_report(local_folder(package), local_folder(out))
    print(printable(f"report: {written}"))
    if is_same:
        print("the report is the one that was handed over, byte for byte")
    else:
        note = "note: the package holds another report; an older or newer version of this program may have made it"
        print(note, file=sys.stderr)


if __name__ == "__main__":
    run(report)
