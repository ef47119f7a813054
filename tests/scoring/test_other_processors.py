"""The C sources on processors that this machine does not have: ARM's by qemu, and the first 64-bit ones of Intel and AMD.

Each test is a small C program around a source, which reads arrays and writes arrays.
"""

import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.scoring import compiled
from pipeline.scoring.scores import frame_band
from pipeline.segments import segment_starts

LENGTH = 8
READ = """
#include <stdio.h>
#include <stdlib.h>
static void *take(int64_t bytes) {
  void *memory;
  if (posix_memalign(&memory, 64, bytes + 64) || fread(memory, 1, bytes, stdin) != (size_t)bytes) exit(2);
  return memory;
}
"""
WIDEN = """
int main(void) {
  uint16_t *halves = take(2 * 65536);
  float *out = malloc(4 * 65536);
  int64_t at = 0; /* in turn so many that vectors are filled, and not */
  for (int64_t count = 1; at < 65536; at += count, count = count % 37 + 1)
    widen_half(halves + at, out + at, count < 65536 - at ? count : 65536 - at);
  return fwrite(out, 4, 65536, stdout) != 65536;
}
"""
LOGITS = """
int main(void) {
  const int64_t *n = take(8 * 6), frames = n[0], d_k = n[1], d_v = n[2], length = n[3], segments = n[4], targets = n[5];
  if (targets % lanes_for(targets)) return 3;
  void *keys = take(SIZE * frames * d_k), *values = take(SIZE * frames * d_v), *band = take(SIZE * frames * (length - 1));
  int64_t *start = take(8 * segments), *last = take(8 * segments);
  float *queries = take(4 * d_k * targets), *weighted = take(4 * d_v * targets), *constant = take(4 * targets);
  float *weight = take(4 * d_v), *centre = take(4 * d_v), *out;
  if (posix_memalign((void **)&out, 64, 4 * segments * targets)) return 4;
  if (JOIN(FUNCTION, LANES_MOST)(keys, values, band, d_k, d_v, length, segments, start, last, targets, queries, weighted,
                                 constant, weight, centre, AGREEMENT, UNIT, SLACK, 1.0f, out)) return 5;
  return fwrite(out, 4, segments * targets, stdout) != (size_t)(segments * targets);
}
"""
SCAN = """
#include <string.h>
int main(void) {
  const int64_t *n = take(8 * 4), lists = n[0], of_each = n[1], width = n[2], videos = n[3], segments = lists * of_each;
  const uint8_t *codes = take(segments * width), *begin[64];
  const int64_t *ids = take(8 * segments), *named[64];
  const uint16_t *table = take(2 * width * 256 * COUNT);
  const int32_t *owner = take(4 * segments);
  int64_t size[64];
  for (int64_t i = 0; i < lists; i++) begin[i] = codes + i * of_each * width, named[i] = ids + i * of_each, size[i] = of_each;
  uint16_t *best = malloc(2 * videos);
  memset(best, 255, 2 * videos);
  if (JOIN(scan_lists_, COUNT)(lists, begin, named, size, width, table, segments, owner, 65535, best)) return 3;
  return fwrite(best, 2, videos, stdout) != (size_t)videos;
}
"""
ENCODE = """
int main(void) {
  const int64_t *n = take(8 * 3), count = n[0], parts = n[1], width = n[2];
  const float *vectors = take(4 * count * parts * width), *centres = take(4 * parts * width * CENTRES);
  uint8_t *codes = malloc(count * parts);
  encode(count, parts, width, vectors, centres, codes);
  return fwrite(codes, 1, count * parts, stdout) != (size_t)(count * parts);
}
"""


@pytest.fixture(params=["x86-64", "aarch64"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., bytes]:
    """What a program around a source writes for the arrays that it reads, compiled for a processor."""
    machine = request.param
    own = platform.machine() == {"x86-64": "x86_64"}.get(machine, machine)
    compiler = shutil.which("cc" if own else f"{machine.replace('-', '_')}-linux-gnu-gcc")
    emulator = [] if own else [shutil.which(f"qemu-{machine.replace('-', '_')}")]
    if compiler is None or None in emulator:
        pytest.skip(f"no cross compiler for {machine}, or no emulator: install gcc-{machine}-linux-gnu and qemu-user")

    def run(source: str, main: str, arrays: list[np.ndarray], **macros: object) -> bytes:
        (tmp_path / "main.c").write_text(f'#include "{compiled.source(source)}"\n{READ}{main}')
        defined = [f"-D{name}={value}" for name, value in macros.items()]
        baseline = [f"-march={machine}"] if machine == "x86-64" else []
        flags = [*(flag for flag in compiled.FLAGS if flag != "-shared"), *baseline, *defined]
        subprocess.run([compiler, *flags, "-static", "-o", tmp_path / "main", tmp_path / "main.c"], check=True)
        given = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        return subprocess.run([*emulator, tmp_path / "main"], input=given, stdout=subprocess.PIPE, check=True, timeout=200).stdout

    return run


def test_every_float16_is_read_exactly(run: Callable[..., bytes]) -> None:
    halves = np.random.default_rng(0).permutation(65536).astype(np.uint16)
    found = np.frombuffer(run("pair_kernel", WIDEN, [halves]), np.float32)
    expected = halves.view(np.float16).astype(np.float32)
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    there = ~np.isnan(expected)
    assert np.array_equal(found[there].view(np.uint32), expected[there].view(np.uint32))  # -0 is not 0


@pytest.mark.parametrize("kind", ["half", "single"])
@pytest.mark.parametrize(("targets", "key_width", "value_width"), [(4, 5, 19), (28, 128, 128)])
@pytest.mark.parametrize(("agreement", "unit", "slack"), [(0.0, 0.0, 0.0), (0.5, 4.0, 1.0)])
def test_scores_are_as_defined(
    run: Callable[..., bytes],
    kind: str,
    targets: int,
    key_width: int,
    value_width: int,
    agreement: float,
    unit: float,
    slack: float,
) -> None:
    rng = np.random.default_rng(targets)
    storage = np.float16 if kind == "half" else np.float32
    frames = rng.integers(1, 71, size=12)
    ends = np.cumsum(frames)
    starts = [segment_starts(int(count), LENGTH, 4) + end - count for count, end in zip(frames, ends, strict=True)]
    start = np.concatenate(starts).astype(np.int64)
    last = np.repeat(ends - 1, [len(of_video) for of_video in starts]).astype(np.int64)
    keys = (rng.normal(size=(ends[-1], key_width)) / key_width**0.25).astype(storage)
    values = (rng.normal(size=(ends[-1], value_width)) / value_width**0.5).astype(storage)
    queries, encodings = rng.normal(size=(targets, key_width)) / key_width**0.25, rng.normal(size=(targets, value_width))
    encodings /= value_width**0.5
    weight, bias = -2 * rng.random(value_width), 1.0
    if unit:
        values = (values / np.linalg.norm(values.astype(float), axis=1, keepdims=True)).astype(storage)
        encodings /= np.linalg.norm(encodings, axis=1, keepdims=True)
        weight = np.full(value_width, -unit)
    centre = encodings.mean(axis=0)
    after = torch.from_numpy(np.concatenate([np.arange(count)[::-1] for count in frames]).copy())
    band = frame_band(torch.from_numpy(weight), torch.from_numpy(values), after, LENGTH).numpy().astype(storage)
    centred = encodings - centre
    tables = [queries.T / np.log(2), (-2 * weight * centred).T, bias + centred**2 @ weight, weight, centre]
    sizes = np.array([ends[-1], key_width, value_width, LENGTH, len(start), targets], np.int64)
    arrays = [sizes, keys, values, band, start, last, *(table.astype(np.float32) for table in tables)]
    function = f"pair_logits_{kind}_"
    numbers = {"AGREEMENT": f"{agreement / np.log(2)}f", "UNIT": f"{unit}f", "SLACK": f"{slack / np.log(2)}f"}
    written = run("pair_kernel", LOGITS, arrays, SIZE=storage().itemsize, FUNCTION=function, **numbers)
    logits = np.frombuffer(written, np.float32).reshape(len(start), targets)

    rows = np.minimum(start[:, None] + np.arange(LENGTH), last[:, None])
    heat = keys.astype(float)[rows] @ queries.T  # [K, T, N]
    heat = np.minimum(heat, heat.max(axis=1, keepdims=True) - slack)
    heat += agreement * ((encodings - values.astype(float)[rows][:, :, None]) ** 2 @ weight)
    heat[:, 1:][rows[:, 1:] == rows[:, :-1]] = -np.inf  # padding
    attention = np.exp(heat) / np.exp(heat).sum(axis=1, keepdims=True)
    found = np.einsum("ktn,ktd->knd", attention, values.astype(float)[rows])
    if unit:
        found /= np.linalg.norm(found, axis=2, keepdims=True)
    expected = bias + (encodings - found) ** 2 @ weight  # [K, N]
    assert np.ptp(expected) > 1
    tolerance = 1e-5 if kind == "single" else 4e-4 if unit else 1e-4  # of few dimensions, float16 makes no unit vectors
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-expected)), rtol=0, atol=tolerance)


@pytest.mark.parametrize("lanes", [8, 16])
def test_lists_are_scanned_for_the_smallest_sums(run: Callable[..., bytes], lanes: int) -> None:
    rng = np.random.default_rng(lanes)
    lists, of_each, width, videos = 5, 201, 9, 60
    codes = rng.integers(0, 256, size=(lists * of_each, width), dtype=np.uint8)
    ids = rng.permutation(len(codes)).astype(np.int64)
    table = rng.integers(0, 65_000 // width, size=(width, 256, lanes)).astype(np.uint16)
    owner = np.sort(rng.integers(0, videos, size=len(codes))).astype(np.int32)
    sizes = np.array([lists, of_each, width, videos], np.int64)
    best = np.frombuffer(run("list_scan", SCAN, [sizes, codes, ids, table, owner], COUNT=lanes), np.uint16)
    sums = table.astype(int)[np.arange(width), codes].sum(axis=1)  # [segments, lanes]
    expected = np.full(videos, 65_535)
    np.minimum.at(expected, owner[ids], sums.min(axis=1))
    assert np.array_equal(best, expected)


@pytest.mark.parametrize("width", [1, 3, 8])
def test_codes_are_of_the_nearest_centres(run: Callable[..., bytes], width: int) -> None:
    rng = np.random.default_rng(width)
    count, parts = 101, 5
    vectors = rng.integers(-40, 40, size=(count, parts, width)).astype(np.float32)  # of whole numbers: many are as near as others
    centres = rng.integers(-40, 40, size=(parts, width, 256)).astype(np.float32)
    found = np.frombuffer(run("list_codes", ENCODE, [np.array([count, parts, width]), vectors, centres]), np.uint8)
    distances = ((vectors[..., None] - centres) ** 2).sum(axis=2)  # [count, parts, 256], exact
    assert np.array_equal(found.reshape(count, parts), distances.argmin(axis=2))
