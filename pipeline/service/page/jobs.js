// Long work: how far it is, as the service tells of it (server-sent events), and a button that cancels it.
import { button, make } from "/page/document.js";
import { ask, Refused } from "/page/interface.js";

const STAGES = {
  search: { targets: "reading the target", shortlist: "looking through all videos", score: "scoring", evidence: "looking for what speaks for the leads", whole: "comparing videos as wholes", resemblance: "comparing the leads", hashes: "comparing the files of the leads" },
  ingest: { ingest: "inputs taken in", index: "videos indexed" },
};
const KINDS = { search: "Search", export: "Export", ingest: "Ingest" };
const watching = new Set(); // what ends each

const isOpen = (job) => job.state === "queued" || job.state === "running";
const path = (job) => `/jobs/${encodeURIComponent(job.job_id)}`;

// Somebody looks at something else now.
export function leaveJobs() {
  for (const each of [...watching]) each(null);
}

// The job once it has ended, or null where somebody left before. told: called with each state until then.
export function watched(job, told) {
  return new Promise((resolve, reject) => {
    const source = new EventSource(`/api/v1${path(job)}/events`);
    const end = (last) => { source.close(); watching.delete(end); resolve(last); };
    watching.add(end);
    source.addEventListener("message", (event) => {
      const now = JSON.parse(event.data);
      told(now);
      if (!isOpen(now)) end(now);
    });
    source.addEventListener("error", () => ask("GET", path(job)).catch((error) => {
      if (source.readyState !== EventSource.CLOSED && !(error instanceof Refused)) return; // the browser asks again by itself
      source.close();
      watching.delete(end);
      reject(error);
    }));
  });
}

export function words(job) {
  const stage = STAGES[job.kind]?.[job.stage] ?? job.stage;
  const doing = job.state === "running" && stage ? stage : job.state;
  return `${doing}${job.state === "running" && job.total ? `: ${job.done.toLocaleString("en")} of ${job.total.toLocaleString("en")}` : ""}`;
}

// A bar for a job that is open. attempt: what runs a change and says what is refused. Returns { root, ended }, see `watched`.
export function followed(job, attempt) {
  const bar = make("progress", { "aria-label": `${KINDS[job.kind]} of ${job.about}` });
  const said = make("span", { role: "status" });
  const cancel = button("Cancel", () => attempt(async () => draw(await ask("DELETE", path(job)))));
  const draw = (now) => {
    said.textContent = words(now);
    cancel.hidden = bar.hidden = !isOpen(now);
    if (now.state === "running" && now.total) { bar.max = now.total; bar.value = now.done; } else bar.removeAttribute("value");
  };
  draw(job);
  return { root: make("div", { className: "job" }, said, bar, cancel), ended: watched(job, draw) };
}
