"""What those who run the service see: the audit log page by page, whether it is whole, readiness, and figures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from pipeline import telemetry
from pipeline.coattention.calibration import Calibration, CalibrationQuality, CalibrationSet
from pipeline.coattention.gallery_calibration import fit_gallery_calibration
from pipeline.gallery.audit import append_record, head, read_records
from pipeline.gallery.gallery import Gallery
from pipeline.index.versions import open_index
from pipeline.search.worth import default_settings
from pipeline.service.access import Role, issue
from pipeline.service.app import create_app
from pipeline.service.asking import Service
from pipeline.service.operation import _bins, _calibrated
from tests.service.test_cases import decided
from tests.service.test_service import HOST, ORIGIN, done, role

OF_TOWN = {"gallery": "town"}


def test_the_audit_log_is_read_page_by_page_and_by_admins_only(anna: TestClient, service: Service, gallery: Gallery) -> None:
    for video_id in ("v000", "v002"):
        decided(anna, video_id, "same", done(anna)["search_id"])
    admin, found, cursor = role(service, "admin", "Dora"), [], {}
    while cursor is not None:
        page = admin.get("/api/v1/audit", params=OF_TOWN | {"limit": 2} | cursor).json()
        assert len(page["records"]) in (1, 2)
        found += page["records"]
        cursor = None if page["following"] is None else {"cursor": page["following"]}
    records = read_records(gallery)
    assert [one["number"] for one in found] == [one["number"] for one in reversed(records)] == [4, 3, 2, 1, 0]
    assert {**found[0]["fields"], **{name: found[0][name] for name in ("action", "who")}}.items() <= records[-1].items()
    refused: tuple[Role, ...] = ("viewer", "investigator", "reviewer")
    for name in refused:
        assert role(service, name).get("/api/v1/audit", params=OF_TOWN).status_code == 403


def test_a_log_or_case_that_was_changed_is_said(anna: TestClient, service: Service, gallery: Gallery) -> None:
    decided(anna, "v000", "same", done(anna)["search_id"])
    reviewer, kept = role(service, "reviewer", "Bert"), head(gallery)
    well = reviewer.get("/api/v1/audit/verify", params=OF_TOWN | {"head": kept}).json()
    assert well == {"head": kept, "records": len(read_records(gallery)), "faults": []}
    assert reviewer.get("/api/v1/audit/verify", params=OF_TOWN | {"head": "nonsense"}).status_code == 422
    for chain in ("audit", "cases/7-26"):
        file = Path(gallery.location.path, *chain.split("/"), "0000000001.json")
        file.write_text(file.read_text().replace("v000", "v005"))
    faults = reviewer.get("/api/v1/audit/verify", params=OF_TOWN).json()["faults"]
    assert "case 7-26: 0000000001.json was changed" in faults and any(one.startswith("audit log:") for one in faults)


def test_probes_ask_for_no_token_and_say_nothing_of_people(service: Service, gallery: Gallery) -> None:
    client = TestClient(create_app(service, [HOST]), base_url=ORIGIN)
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    assert service.access.tokens_file is not None
    service.access.tokens_file.write_text("{")
    broken = client.get("/readyz")
    assert broken.status_code == 503 and str(gallery.location.path) not in broken.text


def test_figures_are_as_prometheus_reads_them(anna: TestClient, service: Service) -> None:
    reviewer = role(service, "reviewer", "Bert")
    telemetry.registry()

    def figures() -> dict[tuple[str, str], float]:
        answer = reviewer.get("/api/v1/metrics")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=")
        families = text_string_to_metric_families(answer.text)
        return {(one.name, "".join(one.labels.values())): one.value for family in families for one in family.samples}

    before = figures()
    done(anna)
    after = figures()
    searched = ("coattention_searches_total", "done")
    assert after[searched] == before.get(searched, 0) + 1
    assert after["coattention_service_searches", "done"] == before.get(("coattention_service_searches", "done"), 0) + 1
    assert after["coattention_audit_records_total", "search"] >= 1 and after["process_open_fds", ""] > 0
    assert "Anna" not in reviewer.get("/api/v1/metrics").text


def test_tokens_are_listed_without_what_opens_doors(service: Service) -> None:
    assert service.access.tokens_file is not None
    token = issue(service.access.tokens_file, "Bert", 1, "reviewer")
    answer = role(service, "admin").get("/api/v1/tokens")
    assert [(one["person"], one["role"]) for one in answer.json()] == [("Bert", "reviewer")]
    assert token not in answer.text and "sha256" not in answer.text


def test_quality_says_what_is_known_and_what_people_decided(anna: TestClient, bert: TestClient, gallery: Gallery) -> None:
    search_id = done(anna)["search_id"]
    decided(anna, "v000", "same", search_id)
    decided(anna, "v004", "different", search_id)
    decided(bert, "v002", "unsure", done(bert)["search_id"])
    found = anna.get("/api/v1/galleries/town/quality").json()
    assert (found["videos"], found["not_indexed"], found["untrained"], found["judged"]) == (24, 0, True, 2)
    assert not found["calibrated"] and "not measured" in found["calibration"] and found["evaluation"] is None
    assert bert.get("/api/v1/galleries/town/quality").json()["judged"] == 0  # he may still confirm them
    figures = {"mean_ap": 0.5, "rank_1": 0.75}
    named = {"data": "ilids", "index_version": "1", "queries": 20}
    append_record(gallery, "evaluate", named | {"figures": figures})
    found = anna.get("/api/v1/galleries/town/quality").json()["evaluation"]
    assert found.items() >= (figures | named).items()


def test_probabilities_rest_on_the_head_where_the_gallery_was_not_measured(gallery: Gallery) -> None:
    index = open_index(gallery)
    nothing = _calibrated(index)
    assert (nothing["calibrated"], nothing.get("head_calibration")) == (False, None) and "not measured" in nothing["calibration"]
    quality = CalibrationQuality(ece=0.03, ece_own_prior=0.01, cllr=0.13, min_cllr=0.1, reliability=())
    fitted_on = CalibrationSet("60 people", 60, 1770, 314, 25446, "2026-11-30")
    of_head = Calibration(index.manifest["head"], default_settings(index), True, -5.0, 2.4, -3.8, 6.7, fitted_on, quality)
    shipped = _calibrated(replace(index, calibration=of_head))
    assert shipped["calibrated"] and shipped["calibration"] == "60 people" and "sample" not in shipped
    said = shipped["head_calibration"].model_dump()
    assert said == {
        **{"in_use": True, "fitted_on": "60 people", "date": "2026-11-30", "people": 60, "same_pairs": 314},
        **{"different_pairs": 25446, "error": 0.03, "cost": 0.13, "least_cost": 0.1},
    }
    of_other = _calibrated(replace(index, calibration=replace(of_head, head="0" * 64)))
    assert not of_other["calibrated"] and "belongs to the head" in of_other["calibration"]
    own = fit_gallery_calibration(
        np.zeros((3, 3)), np.zeros((3, 3), bool), head=index.manifest["head"], settings=default_settings(index), bounded=True
    )
    measured = _calibrated(replace(index, calibration=of_head, gallery_calibration=own))  # too few videos to say anything
    assert not measured["calibrated"] and measured["sample"] == 3 and not measured["head_calibration"].in_use


def test_decisions_are_counted_by_what_the_probabilities_said() -> None:
    judged = [
        {"probability": p, "decision": d} for p, d in ((0.1, "different"), (0.9, "same"), (1.0, "different"), (None, "same"))
    ]
    bins = _bins(judged)
    assert [(one.low, one.judged, one.same) for one in bins if one.judged] == [(0.0, 1, 0), (0.8, 2, 1)]
    assert bins[-1].mean_probability == 0.95 and _bins(judged[-1:]) == []
