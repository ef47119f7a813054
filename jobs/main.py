"""All commands under one name: resight COMMAND ..., which is python -m jobs.COMMAND ..."""

import ast
import runpy
import sys
from pathlib import Path

NOT_COMMANDS = ("__init__", "command_line", "footage_words", "main", "progress")


def main() -> None:
    """Run the command that the first argument names; it alone is loaded."""
    names = commands()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: resight COMMAND ...; resight COMMAND --help says more\n")
        width = max(map(len, names))
        print("\n".join(f"  {name:<{width}}  {what}" for name, what in names.items()))
        return
    if name not in names:
        print(f"error: there is no command {name[:80]!r}; there are {', '.join(names)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"resight {name}", *sys.argv[2:]]
    runpy.run_module(f"jobs.{name}", run_name="__main__", alter_sys=False)


def commands() -> dict[str, str]:
    """Each command and what it does: the first line of its file, without the part that says how it is called."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    lines = {path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0] for path in files}
    return {name: line.rpartition(": ")[0] or line for name, line in lines.items() if name not in NOT_COMMANDS}
