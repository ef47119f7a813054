"""Makes the checkout's .venv from pyproject.toml and constraints.txt, and rebuilds it when it is missing, stale or damaged.

Standard library only: it runs under the machine's own python3 before anything is installed. A sound environment is recognised
in about a second; what is checked is that the stamp (written last) names today's requirements and that every file that pip
recorded is there with its recorded size.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STAMP = VENV / "complete"

DAMAGED_FILES = """
import importlib.metadata, sys
from pathlib import Path
for distribution in importlib.metadata.distributions():
    if distribution.files is None:
        sys.exit(f"{distribution.metadata['Name']}: no record of its files")
    for file in distribution.files:
        path = Path(distribution.locate_file(file))
        if file.size is not None and (not path.is_file() or path.stat().st_size != file.size):
            sys.exit(f"{path} is missing or damaged")
"""


def fingerprint() -> str:
    """What the environment was made from; another checkout path counts, because scripts in a venv hold absolute paths."""
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(b"\0".join([*parts, sys.version.encode(), str(VENV).encode()])).hexdigest()


def damage() -> str | None:
    """The reason why .venv cannot be used as it is, or None."""
    if not VENV.exists():
        return "there is none yet"
    if not STAMP.is_file() or STAMP.read_text() != fingerprint():
        return "it is half-made, or its requirements have changed"
    try:
        check = subprocess.run([VENV / "bin/python", "-c", DAMAGED_FILES], capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return None if check.returncode == 0 else (check.stderr.strip() or "its python does not run").splitlines()[-1]


def build() -> None:
    """Make .venv afresh; the stamp comes last, so that an interrupted build is seen as one."""
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    install = [VENV / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--constraint", "constraints.txt", "--editable", ".[cpu,dev]"], cwd=ROOT, check=True)
    STAMP.write_text(fingerprint())


def main() -> None:
    if sys.version_info < (3, 11):
        sys.exit(f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}")
    with (ROOT / "pyproject.toml").open() as requirements:
        fcntl.flock(requirements, fcntl.LOCK_EX)  # two makes at once: the second waits and finds the work done
        reason = damage()
        if reason is None:
            return
        print(f"Making the environment in .venv ({reason}); about 2 minutes, 2 GB.", file=sys.stderr, flush=True)
        try:
            build()
        except subprocess.CalledProcessError as error:
            sys.exit(f"The environment could not be made: {' '.join(map(str, error.cmd[:4]))} ... failed. Run make again.")


if __name__ == "__main__":
    main()
