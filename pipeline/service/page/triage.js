// Triage: the target loops on the left, the leads are in the middle, the lead that is looked at plays on the right; below, cameras
// by time and all scores. Everything goes by keys, and what is looked at stands in the address.
import { histogram, timeline } from "/page/charts.js";
import { Decisions, MARKS, WORDS } from "/page/decisions.js";
import { button, make, one, picture, place, remember, show, tell } from "/page/document.js";
import { ask, videoPath } from "/page/interface.js";
import { beginCase, isCaseName } from "/page/parts.js";
import { Player, prefetched } from "/page/player.js";
import { clock, moment, offset, sharedZone, zonesOf } from "/page/times.js";

const LONGEST_S = 60;
const AROUND_S = 30; // before and after, in the details of a lead

const state = {
  search: null, leads: [], shown: [], decisions: null, undo: [], at: 0, pair: 0, busy: false,
  sending: Promise.resolve(), pending: 0, view: "crop", filter: "", range: null, cut: null, compare: false, distribution: null, timeline: null, zones: new Map(), boxes: new Map(), open: null,
};
let players = null;

const base = () => `/searches/${encodeURIComponent(state.search.search_id)}`;
const leadPicture = (lead, frame) => `/api/v1${base()}/leads/${lead.rank}/frames/${frame}.jpg`;
const best = (segment) => segment.frames[segment.attention.indexOf(Math.max(...segment.attention))];
const current = () => state.shown[state.at];
const targetVideo = () => (state.search.target.startsWith("id:") ? state.search.target.slice(3) : null);

// ---- opening

export async function openTriage(search, does) {
  state.open = does;
  players ??= build();
  const asked = place();
  if (state.search?.search_id !== search.search_id) {
    Object.assign(state, { search, undo: [], at: 0, pair: 0, boxes: new Map(), decisions: new Decisions(search) });
    const cameras = `/galleries/${encodeURIComponent(search.gallery)}/cameras`;
    const [{ leads }, distribution, chart, known] = await Promise.all([...["leads?limit=1000", "distribution", "timeline"].map((what) => `${base()}/${what}`), cameras].map((path) => ask("GET", path)));
    Object.assign(state, { leads, distribution, timeline: chart, zones: zonesOf(known) });
  }
  await state.decisions.load(state.leads);
  state.view = asked.get("view") === "scene" ? "scene" : "crop";
  state.filter = asked.get("filter") ?? "";
  state.range = asked.get("from") && asked.get("to") ? [Number(asked.get("from")), Number(asked.get("to"))] : null;
  state.cut = asked.get("cut") === null ? null : Number(asked.get("cut"));
  state.pair = Math.max(0, Number(asked.get("pair") ?? 1) - 1);
  state.compare = asked.get("compare") === "1";
  one("#filter").value = state.filter;
  show("triage");
  sift(Number(asked.get("lead") ?? 0));
  drawSummary();
  drawGrid();
  drawTarget();
  drawLead();
  if (asked.get("details") === "1") look();
}

export function leaveTriage() {
  for (const player of players ? Object.values(players) : []) player.show({ note: "" });
  one("#details").close();
}

function build() {
  const made = { target: new Player("target", "Target"), lead: new Player("candidate", "Lead") };
  one("#target-player").append(made.target.root);
  one("#lead-player").append(made.lead.root);
  made.lead.tools.append(
    button("Scene (S)", () => setView(), { className: "plain small", id: "view" }),
    button("Draw a box", () => drawing(), { className: "plain small", id: "draw" }),
  );
  one("#filter").addEventListener("input", (event) => { state.filter = event.target.value; resift(); });
  one("#filter").addEventListener("keydown", (event) => { if (event.key === "Escape" || event.key === "Enter") event.target.blur(); });
  one("#cut").addEventListener("input", (event) => cutOff(Number(event.target.value)));
  one("#cut").addEventListener("pointerup", (event) => event.target.blur()); // keys are the page's again
  one("#refine").addEventListener("click", () => act(refine));
  one("#clear").addEventListener("click", () => brush(null));
  one("#details-close").addEventListener("click", () => one("#details").close());
  one("#details").addEventListener("close", () => { for (const each of details) each.show({ note: "" }); details = []; keepPlace(); });
  new ResizeObserver(() => { if (state.search && !one("#triage").hidden) drawCharts(); }).observe(one("#timeline-room"));
  return made;
}

function keepPlace() {
  if (one("#triage").hidden) return;
  remember({
    search: state.search.search_id,
    lead: current()?.rank,
    pair: state.pair ? state.pair + 1 : null,
    view: state.view === "scene" ? "scene" : null,
    compare: state.compare ? 1 : null,
    filter: state.filter,
    cut: state.cut,
    from: state.range?.[0], to: state.range?.[1],
    details: one("#details").open ? 1 : null,
  }, true);
}

// ---- which leads are shown

function sift(rank) {
  const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = (lead) => words.every((word) => {
    const said = state.decisions.get(lead) ?? "undecided";
    return [lead.video_id, lead.camera_id ?? "no camera", said, lead.within ?? ""].some((text) => text.toLowerCase().includes(word) && (text !== "undecided" || word.length > 2));
  });
  const inside = (lead) => {
    if (!state.range) return true;
    return lead.seen_from !== null && Date.parse(lead.seen_to) >= state.range[0] && Date.parse(lead.seen_from) <= state.range[1];
  };
  const enough = (lead) => state.cut === null || lead.score >= state.cut;
  state.shown = state.leads.filter((lead) => enough(lead) && matches(lead) && inside(lead));
  state.at = Math.max(0, state.shown.findIndex((lead) => lead.rank === rank));
}

function resift() {
  const before = current()?.rank;
  sift(before ?? 0);
  drawGrid();
  if (current()?.rank !== before) { state.pair = 0; drawLead(); } else drawCharts();
  keepPlace();
}

// Only leads of this score or a better one; at the left end, all.
function cutOff(score) {
  state.cut = score <= Number(one("#cut").min) ? null : score;
  resift();
}

function brush(range) {
  state.range = range;
  resift();
}

// ---- what was searched

function drawSummary() {
  const { search } = state;
  const { found } = search;
  one("#where").textContent = search.gallery;
  const quiet = (words) => make("span", { className: "quiet" }, words);
  const warn = (words) => make("span", { className: "warn" }, words);
  const parts = [quiet(`${found.scored.toLocaleString("en")} of ${found.gallery_videos.toLocaleString("en")} videos scored in ${found.seconds.toFixed(2)} s`)];
  if (found.none_probability !== null) parts.push(make("span", {}, `None of these: ${percent(found.none_probability)}`));
  if (search.asked.further_targets.length) parts.push(quiet(`searched for together with ${search.asked.further_targets.map((each) => each.target.replace(/^id:|^upload:.*/, "") || "another file").join(", ")}`));
  if (search.asked.confirmed.length) parts.push(quiet(`refined by ${search.asked.confirmed.length} confirmed${search.asked.rejected.length ? `, ${search.asked.rejected.length} hidden` : ""}`));
  for (const words of found.filters) parts.push(quiet(words));
  if (search.reason) parts.push(quiet(`reason: ${search.reason}`));
  if (search.case) parts.push(...ofCase(search, quiet));
  if (found.none_probability === null && found.calibration) parts.push(quiet(`no probabilities: ${found.calibration}`));
  if (found.untimed) parts.push(warn(`${found.untimed} videos have no time and were left out`));
  if (found.not_indexed) parts.push(warn(`${found.not_indexed} videos are not in this index yet`));
  if (found.untrained) parts.push(warn("untrained ranking"));
  for (const words of found.remarks) parts.push(warn(words));
  one("#summary").replaceChildren(...parts);
}

function ofCase(search, quiet) {
  if (state.decisions.path) return [quiet(`case: ${search.case}`)];
  const parts = [quiet(`case: ${search.case} (in the record only)`)];
  if (isCaseName(search.case)) parts.push(button("Begin this case", () => act(takeIntoCase), { className: "plain small", id: "take-into-case" }));
  return parts;
}

// From now on decisions go into a case of the name that the search gave, and those of before go with them.
async function takeIntoCase() {
  await state.sending;
  const before = new Map(state.decisions.of);
  await beginCase(state.search.gallery, state.search.case, "", state.search.reason);
  await state.decisions.load([]);
  for (const lead of state.leads) if (before.has(lead.video_id)) keep(lead, before.get(lead.video_id));
  await state.sending;
  drawSummary();
}

const percent = (share) => `${(100 * share).toFixed(0)} %`;

function worth(lead) {
  if (lead.probability !== null) return percent(lead.probability);
  return lead.strength ?? lead.score.toFixed(3);
}

// ---- the grid

function mark(lead) {
  const said = state.decisions.get(lead);
  if (said) return make("span", { className: `mark ${said}` }, MARKS[said]);
  return lead.within ? make("span", { className: "mark same" }, lead.within) : null;
}

function drawGrid() {
  one("#grid").replaceChildren(
    ...state.shown.map((lead, at) => {
      const face = lead.pairs.length ? picture(leadPicture(lead, best(lead.pairs[0].candidate)), "", true) : make("span", { className: "none" }, "no picture");
      const made = make("button", { className: "thumb", type: "button" },
        make("span", { className: "face" }, face),
        make("span", { className: "line" }, make("strong", {}, lead.rank), make("span", {}, worth(lead))),
        make("span", { className: "camera quiet" }, lead.camera_id ?? "no camera"),
        mark(lead));
      made.setAttribute("aria-label", `Lead ${lead.rank}, ${lead.camera_id ?? "no camera"}, ${worth(lead)}${state.decisions.get(lead) ? `, ${WORDS[state.decisions.get(lead)]}` : ""}`);
      made.addEventListener("click", () => go(at));
      return made;
    }),
  );
  if (!state.shown.length) one("#grid").replaceChildren(make("p", { className: "quiet" }, state.leads.length ? "No lead passes the filter." : "No leads: no video that passes the filters resembles the target enough."));
  markGrid();
}

function markGrid() {
  const judged = state.leads.filter((lead) => state.decisions.get(lead)).length;
  one("#judged").textContent = `${judged} of ${state.leads.length} judged${state.pending ? ", saving" : ""}`;
  one("#refine").disabled = state.decisions.said("same").length === 0;
  [...one("#grid").querySelectorAll(".thumb")].forEach((thumb, at) => {
    thumb.setAttribute("aria-current", String(at === state.at));
    thumb.classList.toggle("out", state.decisions.get(state.shown[at]) === "different");
    if (at === state.at) thumb.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
}

function drawCharts() {
  const lead = current();
  const shown = new Set(state.shown.map((each) => each.video_id));
  const zone = sharedZone(state.zones, state.timeline.cameras);
  one("#timeline-title").textContent = `Cameras and times (${zone ?? "UTC"})`;
  timeline([one("#timeline"), one("#timeline-axis")], state.timeline, {
    decisionOf: (id) => state.decisions.of.get(id),
    isShown: (id) => shown.has(id),
    chosen: lead?.video_id,
    range: state.range,
    zone,
    zones: state.zones,
    does: { brush, choose },
  });
  histogram(one("#histogram"), state.distribution, lead?.score ?? null, state.cut);
  drawCut();
  one("#clear").hidden = state.range === null;
  one("#range-words").textContent = state.range ? `${clock(state.range[0], zone)} to ${clock(state.range[1], zone)} ${offset(state.range[1], zone)}` : "drag over the chart to keep a time";
  const left = state.timeline.left_out ? `; ${state.timeline.left_out.toLocaleString("en")} worse ones are not drawn` : "";
  one("#timeline-words").textContent = `${state.timeline.points.length.toLocaleString("en")} videos${left}`;
  one("#scores-words").textContent = `${state.distribution.scored.toLocaleString("en")} videos, counts on a logarithmic scale`;
}

function drawCut() {
  const [low, high] = [state.distribution.edges[0], state.distribution.edges.at(-1)];
  Object.assign(one("#cut"), { min: low, max: high, step: (high - low) / 200, value: state.cut ?? low });
  one("#cut-words").textContent = state.cut === null ? "Leads of any score" : `${state.shown.length} leads with a score of ${state.cut.toFixed(high - low > 5 ? 1 : 3)} or more`;
}

function choose(video) {
  const at = state.shown.findIndex((lead) => lead.video_id === video);
  if (at >= 0) go(at);
}

// ---- clips

async function boxesOf(video) {
  const key = video;
  if (!state.boxes.has(key)) {
    const query = new URLSearchParams({ search: state.search.search_id });
    state.boxes.set(key, ask("GET", `${videoPath(state.search.gallery, video, "boxes")}?${query}`).catch((error) => { state.boxes.delete(key); throw error; }));
  }
  return state.boxes.get(key);
}

function clipOf(video, facts, view, around = null) {
  const wide = around ?? [facts.first_s, facts.last_s];
  const start = Math.max(0, wide[0]);
  const end = Math.min(Math.max(wide[1], start) + 0.25, start + LONGEST_S);
  const query = new URLSearchParams({ start: start.toFixed(3), end: end.toFixed(3), view, search: state.search.search_id });
  return { address: `/api/v1${videoPath(state.search.gallery, video, "clip.mp4")}?${query}`, start, end };
}

// The stretch of a lead that a clip shows: all of it, or what fits around the pair that is looked at.
function stretch(facts, segment) {
  if (facts.last_s - facts.first_s <= LONGEST_S - 0.5 || !segment) return null;
  const start = Math.max(facts.first_s, Math.min(segment[0] - 10, facts.last_s - LONGEST_S + 0.5));
  return [start, Math.min(facts.last_s, start + LONGEST_S - 0.5)];
}

const span = (segment) => [segment.times[0], segment.times.at(-1) + 0.1];

function sharesOf(pairs, side) {
  const of = new Map();
  for (const pair of pairs) {
    const segment = pair[side];
    segment.times.forEach((time, at) => of.set(time, Math.max(of.get(time) ?? 0, segment.attention[at])));
  }
  const most = Math.max(...of.values(), 1e-9);
  return [...of].sort((a, b) => a[0] - b[0]).map(([time, share]) => ({ time_s: time, share: share / most }));
}

async function drawTarget() {
  const { search } = state;
  const pair = current()?.pairs[state.pair];
  const segment = pair ? span(pair.target) : null;
  const shares = pair ? sharesOf([pair], "target") : [];
  const { box, time_s: time } = search.asked;
  const video = targetVideo();
  one("#target-name").textContent = search.target.replace(/^upload:.*/, "an upload of yours").replace(/^id:/, "");
  try {
    if (video !== null) {
      const facts = await boxesOf(video);
      if (state.search !== search) return;
      const fixed = box ? [{ time_s: time ?? 0, x: box[0], y: box[1], w: box[2], h: box[3] }] : null;
      const clip = clipOf(video, facts, box ? "scene" : state.view, box ? [Math.max(0, (time ?? 0) - 2), (time ?? 0) + 3] : stretch(facts, segment));
      const boxes = fixed ?? (state.view === "scene" ? facts.boxes : []);
      players.target.show({ ...facts, clip, boxes, shares, segment, from: box ? time : segment?.[0] });
      one("#target-seen").textContent = facts.seen_from ? `${facts.camera_id ?? "no camera"}, ${moment(facts.seen_from, state.zones.get(facts.camera_id))}` : facts.camera_id ?? "";
    } else {
      const path = `/targets/${encodeURIComponent(search.target.slice(7))}`;
      const facts = await ask("GET", path);
      if (state.search !== search) return;
      const [start, end] = facts.is_photo || !box ? [0, LONGEST_S] : [Math.max(0, (time ?? 0) - 2), (time ?? 0) + 3];
      const boxes = box ? [{ time_s: facts.is_photo ? 0 : time ?? 0, x: box[0], y: box[1], w: box[2], h: box[3] }] : [];
      const clip = { address: `/api/v1${path}/clip.mp4?${new URLSearchParams({ start, end })}`, start, end };
      players.target.show({ ...facts, clip, boxes, shares, segment, from: segment?.[0] });
      one("#target-seen").textContent = facts.name;
    }
  } catch (error) {
    players.target.show({ note: error.message });
  }
}

async function drawLead() {
  const lead = current();
  drawFacts(lead);
  markGrid();
  drawCharts();
  keepPlace();
  one("#triage").classList.toggle("compare", state.compare);
  if (!lead) {
    players.lead.show({ note: "no lead" });
    return;
  }
  const pair = lead.pairs[state.pair] ?? lead.pairs[0];
  const segment = pair ? span(pair.candidate) : null;
  if (!players.lead.video.dataset.clip?.includes(videoPath(state.search.gallery, lead.video_id, "clip.mp4"))) players.lead.wait();
  one("#view").textContent = state.view === "crop" ? "Scene (S)" : "Person (S)";
  try {
    const facts = await boxesOf(lead.video_id);
    if (current() !== lead) return;
    const clip = clipOf(lead.video_id, facts, state.view, stretch(facts, segment));
    const boxes = state.view === "scene" ? facts.boxes : [];
    players.lead.show({ ...facts, clip, boxes, shares: sharesOf(lead.pairs, "candidate"), segment, from: segment?.[0] ?? null });
    synchronise(pair);
    ahead();
  } catch (error) {
    if (current() === lead) players.lead.show({ note: error.message });
  }
}

// In comparison, both repeat the two segments that resemble each other.
function synchronise(pair) {
  players.target.repeat(state.compare && pair ? span(pair.target) : null);
  players.lead.repeat(state.compare && pair ? span(pair.candidate) : null);
  if (state.compare) for (const each of Object.values(players)) each.toggle(true);
}

// The next two leads are fetched while this one is looked at.
async function ahead() {
  for (const lead of state.shown.slice(state.at + 1, state.at + 3)) {
    const facts = await boxesOf(lead.video_id).catch(() => null);
    if (facts) prefetched(clipOf(lead.video_id, facts, state.view, stretch(facts, lead.pairs[0] ? span(lead.pairs[0].candidate) : null)).address);
  }
}

function drawFacts(lead) {
  if (!lead) {
    one("#lead-facts").replaceChildren();
    one("#pairs").replaceChildren();
    for (const each of one("#decide").children) each.disabled = true;
    one("#lead-name").textContent = "";
    return;
  }
  one("#lead-name").textContent = `${lead.rank}. ${lead.video_id}`;
  const facts = [make("strong", {}, worth(lead))];
  if (lead.probability !== null || lead.strength) facts.push(make("span", { className: "quiet" }, `score ${lead.score.toFixed(3)}`));
  facts.push(make("span", {}, lead.camera_id ?? "no camera"), make("span", {}, moment(lead.seen_from, state.zones.get(lead.camera_id))));
  if (lead.within) facts.push(make("span", { className: "same" }, lead.within));
  if (lead.copy_of) facts.push(make("span", { className: "warn" }, `same bytes as lead ${lead.copy_of}`));
  if (lead.source_changed) facts.push(make("span", { className: "warn" }, "the file is no longer the one that was scored: this may show something else"));
  one("#lead-facts").replaceChildren(...facts);
  const said = state.decisions.get(lead);
  for (const each of one("#decide").querySelectorAll("[data-decision]")) {
    each.disabled = false;
    each.setAttribute("aria-pressed", String(each.dataset.decision === said));
  }
  for (const each of one("#decide").children) each.disabled = false;
  one("#undo").disabled = state.undo.length === 0;
  one("#pairs").replaceChildren(...lead.pairs.map((pair, at) => {
    const made = button(`${at + 1}: ${pair.score.toFixed(2)}`, () => choosePair(at), { className: "plain small" });
    made.setAttribute("aria-pressed", String(at === state.pair));
    made.setAttribute("aria-label", `Pair of segments ${at + 1}, score ${pair.score.toFixed(2)}`);
    return made;
  }));
}

// ---- moving

function go(at) {
  if (at < 0 || at >= state.shown.length) return;
  Object.assign(state, { at, pair: 0 });
  drawing(false);
  drawLead();
  drawTarget();
}

function choosePair(at) {
  if (!current()?.pairs[at]) return;
  state.pair = at;
  drawTarget();
  drawLead();
}

function setView() {
  state.view = state.view === "crop" ? "scene" : "crop";
  drawing(false);
  drawTarget();
  drawLead();
}

function compare() {
  state.compare = !state.compare;
  one("#triage").classList.toggle("compare", state.compare);
  synchronise(current()?.pairs[state.pair]);
  keepPlace();
}

// ---- decisions

// What is decided is shown at once and sent in order, so that nobody waits; what is refused is shown and taken back.
function keep(lead, decision) {
  const { decisions } = state;
  const before = decisions.get(lead);
  decisions.note(lead, decision);
  redecided(lead);
  state.pending += 1;
  state.sending = state.sending.then(() => decisions.set(lead, decision)).catch((error) => {
    if (error.status !== 412) decisions.note(lead, before);
    if (state.decisions === decisions) redecided(lead);
    state.open(null, error);
  }).finally(() => { state.pending -= 1; markGrid(); });
  return before;
}

addEventListener("beforeunload", (event) => { if (state.pending) event.preventDefault(); });

function decide(decision) {
  const lead = current();
  if (!lead) return;
  state.undo.push([lead.rank, keep(lead, decision)]);
  if (state.at + 1 < state.shown.length) go(state.at + 1);
  else drawLead();
}

function undo() {
  const last = state.undo.pop();
  if (!last) return;
  const lead = state.leads.find((each) => each.rank === last[0]);
  keep(lead, last[1]);
  const at = state.shown.indexOf(lead);
  if (at >= 0) go(at);
  else drawLead();
}

function redecided(lead) {
  const thumb = one("#grid").children[state.shown.indexOf(lead)];
  if (!thumb) return; // it no longer passes the filter
  one(".mark", thumb)?.remove();
  const made = mark(lead);
  if (made) thumb.append(made);
  thumb.setAttribute("aria-label", `Lead ${lead.rank}, ${lead.camera_id ?? "no camera"}, ${worth(lead)}${made ? `, ${made.textContent}` : ""}`);
}

async function refine() {
  await state.sending;
  const confirmed = state.decisions.said("same");
  if (!confirmed.length) throw new Error("confirm a lead first (Y): a search is refined by what shows the person");
  const own = targetVideo();
  const made = await ask("POST", `${base()}/refine`, { confirmed: confirmed.filter((id) => id !== own), hidden: state.decisions.said("different").filter((id) => id !== own) });
  await state.open(made);
}

async function similar(more = {}) {
  const { gallery, reason, case: number } = state.search;
  await state.open(await ask("POST", "/searches", { gallery, target: `id:${current().video_id}`, reason, case: number, ...more }));
}

function drawing(on = one("#draw").getAttribute("aria-pressed") !== "true") {
  if (on && state.view !== "scene") setView();
  one("#draw").setAttribute("aria-pressed", String(on));
  players.lead.root.classList.toggle("drawing", on);
  if (on) { players.lead.toggle(false); tell("Draw a box around somebody in the lead's picture: they become the target of a new search."); }
  else tell("");
  players.lead.onDrawn = on ? (box, time) => act(async () => { drawing(false); await similar({ box, time_s: time }); }) : null;
}

// ---- the details of a lead

let details = [];

async function openDetails() {
  const lead = current();
  if (!lead) return;
  const dialog = one("#details");
  one("#details-title").textContent = `${lead.rank}. ${lead.video_id}`;
  if (!dialog.open) dialog.showModal();
  for (const each of Object.values(players)) each.toggle(false);
  const [person, scene] = details = [new Player("candidate", "The person"), new Player("candidate", "Before and after")];
  one("#details-players").replaceChildren(...details.map((each) => make("section", {}, make("h3", {}, each.words), each.root)));
  keepPlace();
  one("#details-pairs").replaceChildren(...lead.pairs.map((pair, at) => make("li", {},
    `Pair ${at + 1}, score ${pair.score.toFixed(3)}: target ${pair.target.times[0].toFixed(1)} to ${pair.target.times.at(-1).toFixed(1)} s, lead ${pair.candidate.times[0].toFixed(1)} to ${pair.candidate.times.at(-1).toFixed(1)} s`)));
  one("#details-hashes").replaceChildren();
  one("#details-nearby").replaceChildren();
  const [facts, evidence] = await Promise.all([boxesOf(lead.video_id), ask("GET", `${base()}/leads/${lead.rank}/evidence`), drawNearby(lead)]);
  if (details[0] !== person) return; // closed meanwhile
  const middle = lead.pairs[0] ? lead.pairs[0].candidate.times[0] : facts.first_s;
  const around = [Math.max(0, Math.min(facts.first_s, middle) - AROUND_S), 0];
  around[1] = Math.min(facts.last_s + AROUND_S, around[0] + LONGEST_S - 0.5);
  person.show({ ...facts, clip: clipOf(lead.video_id, facts, "crop", stretch(facts, lead.pairs[0] ? span(lead.pairs[0].candidate) : null)), boxes: [], shares: evidence.shares });
  scene.show({ ...facts, clip: clipOf(lead.video_id, facts, "scene", around), shares: evidence.shares, from: facts.first_s });
  const hash = (words, value) => [make("dt", {}, words), make("dd", { className: "code" }, value ?? "not known")];
  one("#details-hashes").replaceChildren(...hash("as ingested", evidence.ingested_hash), ...hash("when searched", evidence.source_hash), ...hash("audit head", state.search.found.audit_head));
}

const look = () => openDetails().catch((error) => state.open(null, error));

async function drawNearby(lead) {
  const list = one("#details-nearby");
  if (!lead.seen_from || !lead.camera_id) {
    list.replaceChildren(make("li", { className: "quiet" }, "Neither camera nor time is known of this lead."));
    return;
  }
  const shifted = (time, by) => new Date(Date.parse(time) + by * 1000).toISOString();
  const query = new URLSearchParams({ camera: lead.camera_id, seen_after: shifted(lead.seen_from, -AROUND_S), seen_before: shifted(lead.seen_to, AROUND_S), limit: 50 });
  const { videos } = await ask("GET", `/galleries/${encodeURIComponent(state.search.gallery)}/videos?${query}`);
  const others = videos.filter((each) => each.video_id !== lead.video_id).sort((a, b) => a.seen_from.localeCompare(b.seen_from));
  list.replaceChildren(...others.map((each) => make("li", {},
    make("a", { href: `#${new URLSearchParams({ target: each.video_id, gallery: state.search.gallery })}` }, each.video_id),
    make("span", { className: "quiet" }, ` ${moment(each.seen_from, state.zones.get(each.camera_id))}`))));
  if (!others.length) list.replaceChildren(make("li", { className: "quiet" }, `Nobody else is seen by ${lead.camera_id} from ${AROUND_S} s before to ${AROUND_S} s after.`));
}

// ---- keys

async function act(does) {
  if (state.busy) return; // one change after another, so that a key held down decides once
  state.busy = true;
  tell("");
  try {
    await does();
  } catch (error) {
    state.open(null, error);
  }
  state.busy = false;
}

for (const each of document.querySelectorAll("#decide [data-decision]")) each.addEventListener("click", () => decide(each.dataset.decision));
one("#undo").addEventListener("click", undo);
one("#similar").addEventListener("click", () => act(similar));
one("#compare").addEventListener("click", compare);
one("#more").addEventListener("click", look);

// What a key does here; undefined for one that does nothing.
export function onTriageKey(event) {
  const key = event.key.toLowerCase();
  const step = (by) => () => { if (event.shiftKey) choosePair(state.pair + by); else players.lead.step(by); };
  return {
    j: () => go(state.at + 1),
    k: () => go(state.at - 1),
    y: () => decide("same"),
    n: () => decide("different"),
    u: () => decide("unsure"),
    " ": () => { const playing = players.lead.video.paused; for (const each of Object.values(players)) each.toggle(playing); },
    arrowright: step(1),
    arrowleft: step(-1),
    s: setView,
    c: compare,
    f: () => act(similar),
    r: () => act(refine),
    z: undo,
    d: look,
    "/": () => one("#filter").focus(),
  }[key];
}

