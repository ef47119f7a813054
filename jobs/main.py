"""All commands under one name: resight COMMAND ..., which is python -m jobs.COMMAND ..."""

import ast
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

A_PROGRAM = '\nif __name__ == "__main__":\n'  # what a command has and a file of parts for commands has not
CHOSEN = ("faiss", "onnxruntime")  # the packages that come with [cpu] and with [gpu]


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
    if missing := [package for package in CHOSEN if find_spec(package) is None]:
        extras = "pip install 'co-attention-search[cpu]', or [gpu] on machines with CUDA"
        print(f"error: {' and '.join(missing)}, which this needs, is not installed: {extras}", file=sys.stderr)
        sys.exit(1)
    runpy.run_module(f"jobs.{name}", run_name="__main__", alter_sys=False)


def commands() -> dict[str, str]:
    """Each command and what it does: the first line of its file, without the part that says how it is called."""
    files = {path.stem: path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))}
    programs = {name: ast.parse(text) for name, text in files.items() if A_PROGRAM in text}
    lines = {name: (ast.get_docstring(tree) or "").partition("\n")[0] for name, tree in programs.items()}
    return {name: line.rpartition(": ")[0] or line for name, line in lines.items()}
