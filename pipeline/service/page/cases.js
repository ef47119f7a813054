// Cases: the list, and one case with its leads, its path, its exports and its history.
import { make, tell } from "/page/document.js";
import { ask, asked as changed } from "/page/interface.js";
import { followed } from "/page/jobs.js";
import { zonesOf } from "/page/times.js";
import { drawWay } from "/page/plan.js";
import { attempt, caseAddress, casePath, choice, evidence, facts, field, form, MARKS, moment, openedCase, press, query, table, title, where } from "/page/parts.js";

export async function openCases(main, asked, { me, galleries }) {
  const cases = await ask("GET", "/cases");
  const parts = [title("Cases")];
  if (cases.length) parts.push(make("ul", { className: "cases" }, ...cases.map(summary)));
  else parts.push(make("p", { className: "quiet" }, "No cases yet. A case collects what is decided on leads, by several people."));
  if (me.rights.includes("investigate")) parts.push(make("h3", {}, "Begin a case"), beginning(galleries));
  main.className = "narrow";
  main.replaceChildren(...parts);
}

function summary(found) {
  const waits = found.waiting ? make("span", { className: "tag warn" }, `${found.waiting} wait for a second person`) : "";
  return make("li", { className: "card" },
    make("a", { href: caseAddress("case", found) }, make("strong", {}, found.name), ` ${found.title}`),
    make("span", { className: `tag ${found.state}` }, found.state), waits,
    make("p", { className: "quiet" }, `${found.gallery} · ${found.judged} ${found.judged === 1 ? "lead" : "leads"} judged · by ${found.begun_by} · changed ${moment(found.changed_at)}`));
}

function beginning(galleries) {
  return form([
    choice("Gallery", "gallery", galleries.map((each) => [each.name, each.name])),
    make("div", { className: "row two" },
      field("Name, for example a file number", "name", { required: true, maxLength: 64, pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*", title: "letters, figures, dots, dashes and underscores" }),
      field("Title", "title", { required: true, maxLength: 200 })),
    field("Reason", "reason", { maxLength: 2000 }),
  ], "Begin", async (made) => {
    const body = { gallery: made.gallery.value, name: made.elements.name.value.trim(), title: made.elements.title.value.trim(), reason: made.reason.value || null };
    const begun = await ask("POST", "/cases", body);
    location.hash = caseAddress("case", begun);
  });
}

export async function openCase(main, asked, { me }) {
  const found = await openedCase(asked);
  const gallery = `/galleries/${encodeURIComponent(found.gallery)}`;
  const mayChange = me.rights.includes("investigate");
  const [path, { plan }, cameras, jobs] = await Promise.all([
    ask("GET", `${casePath(found)}/path${query({ gallery: found.gallery })}`), ask("GET", gallery), ask("GET", `${gallery}/cameras`), mayChange ? ask("GET", "/jobs") : []]);
  const again = async () => openCase(main, asked, { me });
  const zones = zonesOf(cameras);
  const mayTake = mayChange && !found.leads.some((each) => each.hidden); // who may still confirm is told of no export
  const packages = mayTake ? await ask("GET", `${casePath(found)}/exports${query({ gallery: found.gallery })}`) : [];
  const mine = jobs.filter((each) => each.kind === "export" && each.gallery === found.gallery && each.about === found.name);
  where(found.gallery);
  main.className = "wide";
  main.replaceChildren(
    title(`${found.name} ${found.title}`, make("span", { className: `tag ${found.state}` }, found.state)),
    make("section", { className: "card" },
      facts(["Gallery", found.gallery], ["Reason", found.reason], ["Begun", `${moment(found.begun_at)} by ${found.begun_by}`],
        ["Waiting for a second person", String(found.waiting)], ["Required here", found.requires.join(", ")], ["Head of its records", make("span", { className: "code" }, found.head ?? "")]),
      make("div", { className: "actions" }, ...actions(found, me, mayChange, again))),
    make("div", { className: "halves" },
      make("section", {}, make("h3", {}, `Leads (${found.leads.length})`), leads(found, zones, mayChange, again)),
      make("section", {}, make("h3", {}, "Path"), drawPath(path, zones, () => drawWay(found.gallery, plan, cameras, path)), ...exporting(found, mayChange, mine, packages), history(found))),
  );
}

function actions(found, me, mayChange, again) {
  const parts = [];
  if (mayChange && found.state === "open") parts.push(make("a", { className: "button", href: `#${new URLSearchParams({ gallery: found.gallery, case: found.name })}` }, "New search in this case"));
  if (me.rights.includes("confirm") && found.leads.some((each) => each.hidden)) parts.push(make("a", { className: "button", href: caseAddress("review", found) }, "Review blindly"));
  if (mayChange) {
    const to = found.state === "open" ? "closed" : "open";
    parts.push(press(to === "closed" ? "Close the case" : "Open it again", async () => {
      await ask("PUT", `${casePath(found)}/state${query({ gallery: found.gallery })}`, { state: to });
      await again();
    }));
  }
  return parts;
}

function leads(found, zones, mayChange, again) {
  if (!found.leads.length) return make("p", { className: "quiet" }, "Nobody has decided on a lead yet: search in this case, and judge its leads.");
  const order = { same: 0, unsure: 1, different: 2 };
  const sorted = [...found.leads].sort((one, other) => (order[one.decision] ?? 3) - (order[other.decision] ?? 3));
  return make("ol", { className: "judged" }, ...sorted.map((lead) => row(found, lead, zones, mayChange, again)));
}

function row(found, lead, zones, mayChange, again) {
  const said = lead.hidden
    ? make("span", { className: "mark" }, "waits for you: decide without seeing what was said")
    : make("span", { className: `mark ${lead.decision}` }, MARKS[lead.decision]);
  const second = lead.confirmation
    ? make("span", { className: lead.confirmation.agrees ? "same" : "different" }, `${lead.confirmation.agrees ? "confirmed" : `not confirmed (${lead.confirmation.decision})`} by ${lead.confirmation.who}`)
    : make("span", { className: "quiet" }, "no second person yet");
  const lines = [
    make("strong", {}, lead.video_id), said, ...(lead.hidden ? [] : [second]),
    make("span", { className: "quiet" }, [lead.camera_id ?? "no camera", moment(lead.seen_from, zones.get(lead.camera_id))].join(" · ")),
  ];
  if (!lead.hidden) lines.push(make("span", { className: "quiet" }, `${lead.who}, ${moment(lead.at)}${lead.rank ? `, rank ${lead.rank}` : ""}${lead.probability === null ? "" : `, probability ${lead.probability.toFixed(2)}`}`));
  if (lead.note) lines.push(make("span", {}, `“${lead.note}”`));
  if (mayChange && found.state === "open" && !lead.hidden) {
    lines.push(press("Take back", async () => {
      await take(found, lead);
      await again();
    }));
  }
  return make("li", { className: "card" }, make("div", { className: "pair" }, evidence(found, lead, "target", null, true), evidence(found, lead, "candidate", null, true)), make("div", { className: "lines" }, ...lines));
}

async function take(found, lead) {
  await changed("PUT", `${casePath(found)}/decisions/${encodeURIComponent(lead.video_id)}${query({ gallery: found.gallery })}`, { decision: null }, { "if-match": `"${lead.tag}"` });
}

function drawPath(path, zones, plan) {
  const hidden = path.hidden ? `${path.hidden} more wait for a second person. ` : "";
  if (!path.appearances.length) return make("p", { className: "quiet" }, `${hidden}What is called the same person appears here, in the order of time.`);
  const legs = new Map(path.legs.map((leg) => [`${leg.start}\n${leg.end}`, leg]));
  const items = path.appearances.flatMap((each, at) => {
    const next = path.appearances[at + 1];
    const leg = next && legs.get(`${each.video_id}\n${next.video_id}`);
    const words = each.why === "target" ? "target" : each.confirmed ? "same person, confirmed" : "same person";
    const item = make("li", {}, make("strong", {}, each.camera ?? each.camera_id ?? "no camera"), ` ${moment(each.seen_from, zones.get(each.camera_id))} `, make("span", { className: "quiet" }, `${each.video_id}, ${words}`));
    return leg ? [item, make("li", { className: leg.impossible ? "leg warn" : "leg quiet" }, legWords(leg))] : [item];
  });
  const apart = path.legs.filter((leg) => leg.impossible && !adjacent(path, leg));
  const parts = [make("ol", { className: "path" }, ...items), ...apart.map((leg) => make("p", { className: "warn" }, `${leg.start} and ${leg.end}: ${leg.impossible}`))];
  if (hidden) parts.push(make("p", { className: "quiet" }, hidden));
  return make("div", { className: "card" }, plan(), ...parts);
}

const adjacent = (path, leg) => path.appearances.some((each, at) => each.video_id === leg.start && path.appearances[at + 1]?.video_id === leg.end);

function legWords(leg) {
  const far = leg.metres === null ? "" : `, ${Math.round(leg.metres).toLocaleString("en")} m`;
  const long = leg.seconds < 0 ? "before the one above ends" : `${duration(leg.seconds)} later`;
  return leg.impossible ? `⚠ ${leg.impossible}` : long + far;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function exporting(found, mayChange, jobs, known) {
  const parts = [make("h3", {}, "Hand over")];
  if (found.exports.length) parts.push(make("p", { className: "quiet" }, `Handed over ${found.exports.length} ${found.exports.length === 1 ? "time" : "times"}, each on record.`));
  if (!mayChange) return found.exports.length ? parts : [];
  const own = jobs.filter((each) => ["queued", "running", "done"].includes(each.state));
  const ofOthers = known.filter((each) => each.state === "done" && !own.some((one) => one.job_id === each.export_id));
  const packages = make("ul", { className: "plain-list packages" }, ...own.map((each) => packaged(found, each)), ...ofOthers.map((each) => make("li", {}, ...saving(found, each))));
  parts.push(form([
    make("p", { className: "quiet" }, "A zip with the report, the extract, pictures and records of all that is called the same person; sha256sum -c checks it."),
    field("Reason", "reason", { maxLength: 2000, required: found.requires.includes("reason") }),
  ], "Export", async (made) => {
    const begun = await ask("POST", `${casePath(found)}/exports${query({ gallery: found.gallery })}`, { reason: made.reason.value || null });
    packages.prepend(packaged(found, await ask("GET", `/jobs/${begun.export_id}`)));
  }), packages);
  return parts;
}

// A package of one's own that the service still has, as a line: how far it is, then where it is saved from.
function packaged(found, job) {
  const line = make("li", {});
  if (job.state === "done") {
    exported(found, job, line).catch((error) => line.replaceChildren(make("span", { className: "quiet" }, error.message)));
    return line;
  }
  const { root, ended } = followed(job, attempt);
  line.append(root);
  ended.then((now) => now && exported(found, now, line)).catch((error) => tell(error.message));
  return line;
}

async function exported(found, job, line) {
  if (job.state !== "done") {
    line.replaceChildren(job.state === "failed" ? make("span", { className: "warn" }, job.error) : "cancelled: nothing was handed over");
    return;
  }
  line.replaceChildren(...saving(found, await ask("GET", `${job.address}${query({ gallery: found.gallery })}`)));
}

// Where a package is saved from, whoever made it.
function saving(found, made) {
  const file = `/api/v1${casePath(found)}/exports/${encodeURIComponent(made.export_id)}/package.zip${query({ gallery: found.gallery })}`;
  return [
    make("a", { className: "button", href: file, download: `${found.name}.zip` }, `Save ${found.name}.zip (${Math.ceil(made.bytes / 1024).toLocaleString("en")} kB)`),
    make("span", { className: "quiet" }, `made ${moment(made.made_at)} by ${made.made_by}`),
    make("span", { className: "quiet code" }, `sha256 ${made.sha256}`),
  ];
}

function history(found) {
  const rows = [...found.events].reverse().map((each) => [moment(each.at), each.who ?? "hidden", each.action, each.video_id, each.decision ?? (each.action === "decision" ? (each.who ? "taken back" : "hidden") : "")]);
  return make("details", {}, make("summary", {}, `History (${found.events.length} records)`), table("Records of the case, the newest first", ["When", "Who", "What", "Video", "Decision"], rows));
}
