"""People who search a service again and again, one per token: python -m tests.service_load URL GALLERY VIDEO_ID TOKEN [TOKEN ...]

Each prints a line per search, as JSON: {"leads": [[video id, score], ...], "version": of the index, "seconds"}, or {"status": of
an answer that is no leads, 0 where none came, "said": its sentence}. Ends with its stdin.
"""

import json
import sys
import threading
import time

import requests

PAUSE = 1.0  # seconds between two searches of a person, who may make 60 a minute


def main(url: str, gallery: str, video_id: str, *tokens: str) -> None:
    ended = threading.Event()

    def searches(token: str) -> None:
        with requests.Session() as session:
            session.headers["authorization"] = f"Bearer {token}"
            while not ended.wait(PAUSE):
                answer = json.dumps(one_search(session, f"{url}/api/v1", gallery, video_id))
                sys.stdout.write(f"{answer}\n")  # at once, beside the others
                sys.stdout.flush()

    people = [threading.Thread(target=searches, args=(token,)) for token in tokens]
    for person in people:
        person.start()
    sys.stdin.read()
    ended.set()
    for person in people:
        person.join()


def one_search(session: requests.Session, url: str, gallery: str, video_id: str) -> dict[str, object]:
    began = time.monotonic()
    try:
        answer = session.post(f"{url}/searches", json={"gallery": gallery, "target": f"id:{video_id}", "top": 500, "exact": True})
        if answer.status_code != 202:
            return {"status": answer.status_code, "said": answer.text[:300]}
        place, state = f"{url}/searches/{answer.json()['search_id']}", {"state": "queued"}
        while state["state"] in ("queued", "running"):
            answer = session.get(place, params={"wait": 10})
            if answer.status_code != 200:
                return {"status": answer.status_code, "said": answer.text[:300]}
            state = answer.json()
        if state["state"] != "done":
            return {"status": 200, "said": f"{state['state']}: {state['error']}"}
        answer = session.get(f"{place}/leads", params={"limit": 1000})
        if answer.status_code != 200:
            return {"status": answer.status_code, "said": answer.text[:300]}
        found = [[lead["video_id"], lead["score"]] for lead in answer.json()["leads"]]
        return {"leads": found, "version": state["found"]["index_version"], "seconds": time.monotonic() - began}
    except requests.RequestException as error:
        return {"status": 0, "said": type(error).__name__}


if __name__ == "__main__":
    main(*sys.argv[1:])
