"""What the decoder's child can do, and what reaches it: open files, and little else."""

import contextlib
import errno
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.decoding import decoder as decoder_module
from pipeline.decoding import images, sandbox
from pipeline.decoding.decoder import PACKAGE_ROOT, Decoder
from pipeline.decoding.video import Chunk, Rejected
from pipeline.errors import PipelineError
from pipeline.storage.location import resolve
from tests.conftest import reaching
from tests.decoding.test_video import SMALL, FakeDecoder, chunks, write_image, write_video

HEADERS = {"x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), "aarch64": Path("/usr/include/asm-generic/unistd.h")}


def open_files(process: int) -> set[str]:
    """Paths of the files that a process holds open."""
    found = set()
    for entry in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the folder itself
            found.add(str(entry.readlink()))
    return found


def confined(code: str) -> list[str]:
    """Lines that Python code prints in a confined process, through a pipe: files take nothing from it. It has `refused(call)`."""
    start = """
import errno, os, socket, subprocess, sys, threading
from pipeline.decoding.sandbox import confine
def refused(call):
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
thread = threading.Thread(target=lambda: began.wait() and inside.append(refused(socket.socket)))
began, inside = threading.Event(), []
thread.start()
assert confine() == []
"""
    command = [sys.executable, "-c", f"{start}{code}\nbegan.set()"]
    ended = subprocess.run(command, cwd=PACKAGE_ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


class TestConfinement:
    def test_network_programs_and_other_processes_are_refused(self) -> None:
        code = f"""
print(refused(socket.socket), refused(lambda: subprocess.run(['/bin/true'])), refused(lambda: os.kill({os.getpid()}, 0)))
print(refused(lambda: os.execv('/bin/true', ['true'])))
"""
        assert confined(code) == ["EPERM"] * 4

    def test_threads_that_were_there_before_are_confined_too(self) -> None:
        assert confined("began.set(); thread.join(); print(*inside)") == ["EPERM"]

    def test_files_are_read_and_never_changed(self, tmp_path: Path) -> None:
        file = tmp_path / "a.txt"
        file.write_text("kept")
        code = f"""
path = {str(file)!r}
print(open(path).read())
print(*(refused(call) for call in (
    lambda: open(path, 'w'), lambda: open(path, 'r+'), lambda: open(path + 'b', 'x'), lambda: os.truncate(path, 0),
    lambda: os.unlink(path), lambda: os.rename(path, path + 'b'), lambda: os.mkdir(path + 'd'), lambda: os.chmod(path, 0),
    lambda: os.open(path, os.O_RDONLY | os.O_TRUNC), lambda: open('/proc/self/mem', 'r+b'))))
"""
        assert confined(code) == ["kept", *["EPERM"] * 10]
        assert file.read_text() == "kept" and [found.name for found in tmp_path.iterdir()] == ["a.txt"]

    def test_open_files_and_what_is_written_are_limited(self) -> None:
        code = """
read, write = os.pipe()
print(refused(lambda: [os.dup(read) for _ in range(300)]))
"""
        assert confined(code) == ["EMFILE"]
        with tempfile.TemporaryFile() as output:
            ended = subprocess.run(
                [sys.executable, "-c", "import os; from pipeline.decoding.sandbox import confine; confine(); os.write(1, b'x')"],
                stdout=output,
                stderr=subprocess.PIPE,
                cwd=PACKAGE_ROOT,
            )
            assert f"Errno {errno.EFBIG}".encode() in ended.stderr and os.fstat(output.fileno()).st_size == 0

    def test_it_goes_on_computing_and_starting_threads(self) -> None:
        code = """
import numpy, cv2
worked = []
more = threading.Thread(target=lambda: worked.append(int((numpy.ones((300, 300)) @ numpy.ones((300, 300)))[0, 0])))
more.start(); more.join()
print(*worked)
"""
        assert confined(code) == ["300"]

    @pytest.mark.parametrize("machine", list(sandbox._CALLS))
    def test_calls_have_the_numbers_of_the_kernel_s_headers(self, machine: str) -> None:
        if not HEADERS[machine].exists():
            pytest.skip(f"the kernel's header {HEADERS[machine]} is not here")
        found = re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", HEADERS[machine].read_text())
        known = {name: int(number) for name, number in found}
        _, seccomp, opening, refused = sandbox._CALLS[machine]
        ours = {**refused, **{name: number for name, (number, _) in opening.items()}, "seccomp": seccomp}
        assert len(known) > 200 and [name for name in ours if known.get(name, ours[name]) != ours[name]] == []
        assert len(ours.keys() - known.keys()) <= 1  # a header older than the newest call

    def test_an_unknown_processor_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        code = "import platform; platform.machine = lambda: 'sparc'\n"
        code += "from pipeline.decoding.sandbox import confine; print(confine()[0])"
        said = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE_ROOT, stdout=subprocess.PIPE, text=True).stdout
        assert "not closed on sparc" in said and platform.machine() != "sparc"


class TestChild:
    def test_the_child_itself_is_confined(self, tmp_path: Path) -> None:
        with Decoder(SMALL) as decoder:
            assert chunks(list(decoder.events(str(write_video(tmp_path / "a.mp4")))))
            assert decoder._process is not None
            process = Path(f"/proc/{decoder._process.pid}")
            status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
            assert (process / "cwd").readlink() == Path("/")

    def test_secrets_of_the_environment_do_not_reach_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "DATABASE_PASSWORD", "PYTHONPATH"):
            monkeypatch.setenv(name, "secret")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        with Decoder(SMALL) as decoder:
            assert chunks(list(decoder.events(str(write_video(tmp_path / "a.mp4")))))
            assert decoder._process is not None
            environment = Path(f"/proc/{decoder._process.pid}/environ").read_bytes()
        assert b"secret" not in environment
        assert {b"OMP_NUM_THREADS=1", b"MALLOC_ARENA_MAX=1"} <= set(environment.split(b"\0"))

    @pytest.mark.parametrize("python_path", [False, True])
    def test_modules_of_the_working_directory_are_not_loaded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python_path: bool
    ) -> None:
        video = write_video(tmp_path / "a.mp4")
        for name in ("av", "cv2", "decord", "jobs", "json", "numpy", "pipeline", "sitecustomize", "usercustomize"):
            (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'loaded')!r}, 'a').write('{name} ')")
        monkeypatch.chdir(tmp_path)
        if python_path:
            monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with Decoder(SMALL) as decoder:
            assert len(chunks(list(decoder.events(str(video))))) == 1
        assert not (tmp_path / "loaded").exists()
        # The trap works: without isolation it is loaded.
        subprocess.run([sys.executable, "-c", "import cv2"], cwd=tmp_path, check=True)
        assert "cv2" in (tmp_path / "loaded").read_text()

    def test_it_holds_a_source_open_only_while_it_reads_it(self, tmp_path: Path) -> None:
        path = str(write_video(tmp_path / "a.mp4", frames=30))
        with Decoder(replace(SMALL, chunk=5)) as decoder:
            events = decoder.events(path)
            next(event for event in events if isinstance(event, Chunk))
            assert decoder._process is not None
            assert path in open_files(decoder._process.pid) and path in open_files(os.getpid())
            list(events)
            assert path not in open_files(os.getpid())
            list(decoder.events(str(write_video(tmp_path / "b.mp4"))))
            assert path not in open_files(decoder._process.pid)

    def test_what_computes_for_too_long_costs_its_video(self, tmp_path: Path) -> None:
        with FakeDecoder(replace(SMALL, cpu_limit=2)) as decoder:
            (rejected,) = decoder.events(str(write_video(tmp_path / "compute.mp4")))
            assert isinstance(rejected, Rejected) and rejected.reason == "time_limit"
            assert "more processor time than 2 s (--cpu-limit)" in rejected.message
            assert len(chunks(list(decoder.events(str(write_video(tmp_path / "a.mp4")))))) == 1

    def test_the_processor_time_of_one_source_does_not_count_for_the_next(self, tmp_path: Path) -> None:
        children = set()
        with FakeDecoder(replace(SMALL, cpu_limit=3)) as decoder:
            for number in range(3):
                path = tmp_path / str(number) / "compute a little.mp4"
                path.parent.mkdir()
                assert len(chunks(list(decoder.events(str(write_video(path)))))) == 1
                children.add(decoder._process)
        assert len(children) == 1


class TestFaults:
    @pytest.mark.parametrize("name", ["a bug", "a module is missing"])
    def test_a_fault_of_the_decoder_s_own_is_no_fault_of_a_video(self, tmp_path: Path, name: str) -> None:
        path = write_video(tmp_path / f"{name}.mp4")
        with FakeDecoder(SMALL) as decoder:
            with pytest.raises(PipelineError, match=r"itself is at fault on .*(Type|ModuleNotFound)Error") as raised:
                list(decoder.events(str(path)))
            assert "\n" not in str(raised.value) and ", line " in str(raised.value)
            assert len(chunks(list(decoder.events(str(write_video(tmp_path / "a.mp4")))))) == 1

    def test_a_child_that_cannot_be_loaded_stops_the_work(self, tmp_path: Path) -> None:
        class Broken(Decoder):
            module = "tests.no_such_decoder"

        with Broken(SMALL) as decoder, pytest.raises(PipelineError, match=r"No module named 'tests\.no_such_decoder'"):
            list(decoder.events(str(write_video(tmp_path / "a.mp4"))))

    def test_damage_that_raises_stays_a_row(self, tmp_path: Path) -> None:
        with FakeDecoder(SMALL) as decoder:
            (rejected,) = decoder.events(str(write_video(tmp_path / "damage.mp4")))
            assert isinstance(rejected, Rejected) and rejected.reason == "undecodable" and "ValueError" in rejected.message

    @pytest.mark.parametrize("name", ["a pickle", "nonsense", "too many frames", "frames of another size", "half a message"])
    def test_what_a_child_that_was_taken_over_says_costs_its_video_and_runs_nothing(self, tmp_path: Path, name: str) -> None:
        with FakeDecoder(replace(SMALL, time_limit=5)) as decoder:
            (rejected,) = decoder.events(str(write_video(tmp_path / f"{name}.mp4")))
            assert isinstance(rejected, Rejected) and rejected.reason == "decoder_crash"
            assert len(chunks(list(decoder.events(str(write_video(tmp_path / "a.mp4")))))) == 1

    def test_less_confinement_is_said_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[str] = []
        monkeypatch.setattr(decoder_module.LOGGER, "warning", lambda text, *values: said.append(text % values))
        decoder_module._tell_unconfined.cache_clear()
        for _ in range(2):
            decoder_module._tell_unconfined("network is not closed")
        assert said == ["decoders are less confined than they could be: network is not closed"]


class TestOpening:
    def test_a_pipe_or_a_disk_that_does_not_answer_does_not_hang_the_parent(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dead, good = write_video(tmp_path / "dead.mp4"), write_video(tmp_path / "good.mp4")
        answers = threading.Event()
        opened = images.os.open

        def open_or_wait(path: str, *flags: int) -> int:
            if path == str(dead):
                answers.wait(60)
            return opened(path, *flags)

        monkeypatch.setattr(images.os, "open", open_or_wait)
        with Decoder(replace(SMALL, time_limit=2)) as decoder:
            began = time.monotonic()
            (rejected,) = decoder.events(str(dead))
            assert isinstance(rejected, Rejected) and rejected.reason == "time_limit" and "2 s (--time-limit)" in rejected.message
            assert 2 <= time.monotonic() - began < 20
            assert len(chunks(list(decoder.events(str(good))))) == 1
        answers.set()
        while any(thread.name == "opening" for thread in threading.enumerate()):
            time.sleep(0.05)
        assert str(dead) not in open_files(os.getpid())

    def test_a_file_that_becomes_a_pipe_or_a_link_outwards_when_it_is_opened(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inside = tmp_path / "in"
        inside.mkdir()
        outside = write_video(tmp_path / "secret.mp4")
        os.mkfifo(tmp_path / "pipe")
        opened = images.os.open
        for become, reason in ((outside, "outside_roots"), (tmp_path / "pipe", "not_a_video")):
            path = write_video(inside / "a.mp4")

            def swapped(name: str, *flags: int, become: Path = become, path: Path = path) -> int:
                if name == str(path):
                    path.unlink()
                    path.symlink_to(become)
                return opened(name, *flags)

            with monkeypatch.context() as patched, Decoder(replace(SMALL, roots=(str(inside),), time_limit=20)) as decoder:
                patched.setattr(images.os, "open", swapped)
                (rejected,) = decoder.events(str(path))
            assert isinstance(rejected, Rejected) and rejected.reason == reason
            path.unlink()

    def test_objects_leave_nothing_behind_however_their_child_ends(
        self, s3_options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        prefix = "s3://bucket/doors"
        for name in ("a.mp4", "crash.mp4"):
            resolve(f"{prefix}/{name}{s3_options}").write_atomically(write_video(tmp_path / name).read_bytes())
        for number in range(12):
            write_image(tmp_path / "i.png", 10 * number)
            resolve(f"{prefix}/images/{number}.png{s3_options}").write_atomically((tmp_path / "i.png").read_bytes())
        boxes = f"{prefix}/boxes.txt{s3_options}"
        resolve(boxes).write_atomically(b"\n".join(b"%d,7,4,4,20,40" % i for i in range(1, 31)))
        with FakeDecoder(reaching(SMALL, boxes)) as decoder:
            (whole,) = chunks(list(decoder.events(f"{prefix}/a.mp4{s3_options}")))
            assert len(whole.frames) == 30
            (track,) = chunks(list(decoder.events(f"{prefix}/a.mp4{s3_options}", boxes)))
            assert (track.track, len(track.frames)) == (7, 30)
            (rejected,) = decoder.events(f"{prefix}/crash.mp4{s3_options}")
            assert isinstance(rejected, Rejected) and rejected.reason == "decoder_crash"
            (shown,) = chunks(list(decoder.events(f"{prefix}/images{s3_options}")))
            assert shown.frames.mean(axis=(1, 2, 3)).tolist() == [10 * number for number in range(12)]
            (photo,) = chunks(list(decoder.events(f"{prefix}/images/4.png{s3_options}")))
            assert photo.frames.mean() == 40
            assert list(scratch.iterdir()) == []

    def test_of_a_bucket_only_images_that_are_looked_at_are_fetched(
        self, s3_options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_image(tmp_path / "i.png", 50)
        folder = f"s3://bucket/fetched{s3_options}"
        for number in range(20):
            resolve(folder).join(f"{number}.png").write_atomically((tmp_path / "i.png").read_bytes())
        fetched: list[str] = []
        blocks = type(resolve(folder)).blocks
        monkeypatch.setattr(type(resolve(folder)), "blocks", lambda self, size: fetched.append(self.name) or blocks(self, size))
        with Decoder(reaching(replace(SMALL, rate=5, image_rate=20), folder)) as decoder:
            (chunk,) = chunks(list(decoder.events(folder)))
            assert fetched == [f"{number}.png" for number in chunk.frame_index] == ["0.png", "4.png", "8.png", "12.png", "16.png"]
            fetched.clear()
            assert sorted(decoder.frames(folder, None, None, [3, 17, 99])) == [3, 17]
            assert fetched == ["0.png", "3.png", "17.png"]
            fetched.clear()
            (moment,) = chunks(list(decoder.moment(folder, (0, 0, 20, 40), 0.42)))
            assert moment.frame_index.tolist() == [8] and len(fetched) <= 5

    def test_a_child_killed_over_an_object_goes_on_without_fetching_it_again(
        self, s3_options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uri = f"s3://bucket/killed.mp4{s3_options}"
        resolve(uri).write_atomically(write_video(tmp_path / "a.mp4", frames=60).read_bytes())
        fetched: list[str] = []
        blocks = type(resolve(uri)).blocks
        monkeypatch.setattr(type(resolve(uri)), "blocks", lambda self, size: fetched.append(self.uri) or blocks(self, size))
        found: list[int] = []
        with Decoder(reaching(replace(SMALL, chunk=5), uri)) as decoder:
            for event in decoder.events(uri):
                assert not isinstance(event, Rejected)
                if isinstance(event, Chunk):
                    found += event.frame_index.tolist()
                    if len(found) == 20 and decoder._process is not None:
                        os.kill(decoder._process.pid, signal.SIGKILL)
        assert found == list(range(60)) and fetched == [uri]
