"""Make the report of a handed-over case anew from its package alone: python -m jobs.report PACKAGE --out R"""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.command_line import local_folder, printable, run
from pipeline.errors import UsageError
from pipeline.service.extract import REPORT, check_sums, write_report_of


def report(
    package: Annotated[Path, typer.Argument(help="Folder of an unpacked package of an export, with its SHA256SUMS.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and the clips that it plays; another one than the package.")],
) -> None:
    """Check a package against its SHA256SUMS, make its report from the extract, the pictures and the clips in it, and say whether
    it is the one that was handed over. No gallery is needed.
    """
    if local_folder(out).resolve() == package.resolve():
        raise UsageError("name another folder: the package stays as it was handed over")
    sums = check_sums(package)
    written = write_report_of(package, out)
    for clip in sorted(name for name in sums if Path(name).parent == Path("clips")):
        (out / "clips").mkdir(exist_ok=True)
        shutil.copyfile(package / clip, out / clip)
    print(printable(f"report: {written}"))
    if REPORT in sums and written.read_bytes() == (package / REPORT).read_bytes():
        print("the report is the one that was handed over, byte for byte")
        return
    print("note: the package holds another report; an older or newer version of this program may have made it", file=sys.stderr)


if __name__ == "__main__":
    run(report)
