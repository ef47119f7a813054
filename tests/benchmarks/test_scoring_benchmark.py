"""benchmarks.scoring, with few videos: every processor that it names is measured with its own vectors, and scores right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.scoring import TARGETS, processors
from pipeline.scoring import pair_kernel

WIDEST = {"DEFAULT": 4, "AVX2": 8, "AVX512": 16}


@pytest.mark.skipif(not pair_kernel.available(), reason=f"no kernel: {pair_kernel.why_not()}")
def test_it_compares_the_kernel_of_this_processor_with_those_of_lesser_ones() -> None:
    command = [sys.executable, "-m", "benchmarks.scoring", "--videos", "60", "--frames", "20", "--repeats", "1", "--threads", "1"]
    root = Path(__file__).parents[2]
    printed = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    figures = json.loads(printed[-1])
    assert ["native", *figures["lesser"]] == processors()
    for found in (figures, *figures["lesser"].values()):
        assert found["max_abs_error_float16"] < 1e-4 and found["max_abs_error_float32"] < 1e-5
        assert found["first_100_as_defined_float16"] and found["first_100_as_defined_float32"]
        assert all(found[f"speedup_vs_loop_{segments}"] > 1 for segments in TARGETS)
    expected = {"x86-64-v3": 8, "x86-64-v2": 4}
    assert {name: found["lanes"]["64"] for name, found in figures["lesser"].items()} == {
        name: expected[name] for name in processors()[1:]
    }
    if processors()[1:]:
        assert figures["lanes"]["64"] == WIDEST[torch.backends.cpu.get_cpu_capability()]
