"""Every command explains itself, and those that need no network wait for none."""

import runpy
import subprocess
import sys

import pytest
import typer.main

from tests.jobs.commands import ROOT, command

COMMANDS = (
    "ingest",
    "index",
    "search",
    "follow",
    "evaluate",
    "forget",
    "compact",
    "status",
    "policy",
    "render",
    "demo",
    "serve",
    "token",
)


@pytest.mark.parametrize("name", ["ingest", "search", "policy", "render"])
def test_a_command_that_needs_no_pytorch_does_not_wait_for_it(name: str) -> None:
    code = f"import sys, jobs.{name}; print(*{{'torch', 'faiss'}} & sys.modules.keys())"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # of a module that another test imported
@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_flag(name: str) -> None:
    shown = command(name, "--help")
    assert shown.code == 0 and shown.err == ""
    text = " ".join(shown.out.split())
    app = typer.Typer(add_completion=False)
    app.command()(runpy.run_module(f"jobs.{name}")[name])
    for parameter in typer.main.get_command(app).params:
        assert parameter.param_type_name == "argument" or parameter.opts[0] in text
        explanation = getattr(parameter, "help", None)
        assert explanation and " ".join(explanation.split()) in text, f"{parameter.name} is not explained"
