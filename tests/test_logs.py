"""Structured logs: one JSON object a line, job and video as fields, errors and progress among them, and no secret."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import logs
from pipeline.gallery.gallery import Gallery
from pipeline.index.build import build_index
from tests.jobs.commands import command


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    handler = logs.start(tmp_path / "log.jsonl")
    yield tmp_path / "log.jsonl"
    logs.stop(handler)


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_record_is_a_line_with_the_job_and_its_own_fields(log: Path) -> None:
    logging.getLogger("coattention.ingest").warning("rejected %s", "a\nb", extra={"video_id": "v 1", "reason": "truncated"})
    (record,) = lines(log.read_text())
    assert record["message"] == "rejected a\nb" and record["level"] == "warning" and record["logger"] == "coattention.ingest"
    assert (record["video_id"], record["reason"], record["job"]) == ("v 1", "truncated", logs.job_id())


def test_a_submitted_job_is_named_by_its_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"metadata": {"job_submission_id": "raysubmit_7"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    assert logs.job_id() == "raysubmit_7"


@pytest.mark.parametrize(
    "text",
    [
        "cannot read s3://user:hidden@bucket/x",
        "https://store/x?X-Amz-Signature=hidden&y=1",
        "AWS_SECRET_ACCESS_KEY=hidden",
        "token=hidden",
        "Authorization: Bearer hidden00hidden",
        "key AKIAHIDDENHIDDEN0000",
    ],
)
def test_secrets_do_not_reach_the_log(log: Path, text: str) -> None:
    logging.getLogger("coattention").info("%s", text, extra={"uri": text, "flags": {"inner": [text]}})
    assert "hidden" not in log.read_text().lower() and "***" in log.read_text()


def test_ordinary_text_is_left_alone() -> None:
    text = "s3://bucket/a@b/token ring.mp4?region=eu-1 50 % basic test"
    assert logs.without_secrets(text) == text


def test_a_command_logs_its_start_its_end_and_what_it_says_on_stderr(toy_gallery: Gallery) -> None:
    build_index(toy_gallery)
    ended = command("search", "id:v000", "--gallery", toy_gallery.location.uri, "--log-format", "json", "--case", "7")
    assert ended.code == 0 and "probability" in ended.out
    records = lines(ended.err)
    assert [records[0]["message"], records[-1]["message"]] == ["started", "ended"]
    assert records[0]["flags"]["case"] == "7" and records[-1]["exit_code"] == 0  # type: ignore[index]
    (audited,) = [record for record in records if record["logger"] == "coattention.audit"]
    assert str(audited["audit_head"]).startswith("1:")
    refused = command("search", "id:none", "--gallery", toy_gallery.location.uri, "--log-format", "json")
    records = lines(refused.err)
    assert refused.code == 2 and records[-1]["exit_code"] == 2
    assert any(record["level"] == "error" and "no video 'none'" in str(record["message"]) for record in records)


def test_with_a_file_stderr_stays_for_people(toy_gallery: Gallery, tmp_path: Path) -> None:
    asked = ("status", "--gallery", toy_gallery.location.uri + "x", "--log-format", "json", "--log-file", str(tmp_path / "log"))
    ended = command(*asked)
    assert ended.code == 2 and ended.err.startswith("error: ")
    assert [record["message"] for record in lines((tmp_path / "log").read_text())] == ["started", "ended"]


def test_text_stays_as_it_is_and_other_formats_are_refused(toy_gallery: Gallery) -> None:
    assert command("status", "--gallery", toy_gallery.location.uri).err == ""
    assert "text or json" in command("status", "--gallery", toy_gallery.location.uri, "--log-format", "xml").sentence
    wrong = command("status", "--gallery", "x", "--log-format", "json", "--log-file", "/proc/nothing/log")
    assert wrong.code == 2 and "/proc/nothing/log cannot be written" in wrong.sentence
