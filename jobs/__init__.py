"""The commands, one file each: parse flags, call `pipeline`, print what happened. No algorithm lives here."""

import importlib.util
import sys
from pathlib import Path

# Both names are common: with a folder `pipeline` in the current directory, commands would load that one and fail in odd ways.
_found = importlib.util.find_spec("pipeline")
_place = Path(_found.origin or "").resolve().parent if _found is not None and _found.origin else None
if _place is None or _place.parent != Path(__file__).resolve().parents[1]:
    _what = f"{_place or 'a folder without code'} hides the package" if _found is not None else "there is no package"
    sys.exit(f"error: {_what} `pipeline` that belongs to {Path(__file__).parent}; start the command elsewhere or mend PYTHONPATH")
