// The page: sign in, one form, one list of leads to judge. All text goes into the document as text, never as markup.
import { ask, Refused } from "/page/interface.js";
import { make, one, picture, show, tell } from "/page/document.js";

const DECISIONS = { y: "same", n: "different", u: "unsure" };
const WORDS = { same: "Same person", different: "Different", unsure: "Unsure" };
const MARKS = { same: "✓ same", different: "✗ different", unsure: "? unsure" };
const FRAME_MS = 220;

const state = { galleries: [], search: null, leads: [], at: 0, pair: 0, frame: 0, undo: [], playing: null, busy: false };

// ---- the address: what a link opens

function place() {
  return new URLSearchParams(location.hash.slice(1));
}

function remember(fields, replace = false) {
  const text = new URLSearchParams(Object.entries(fields).filter(([, value]) => value !== null && value !== ""));
  const address = `${location.pathname}${text.size ? "#" + text : ""}`;
  if (replace) history.replaceState(null, "", address);
  else if (location.hash.slice(1) !== String(text)) history.pushState(null, "", address);
}

// ---- beginning

async function begin() {
  const token = place().get("token");
  if (token !== null) {
    remember({}, true); // the token is used up; it shall stay in no history
    try {
      await ask("POST", "/session", { token });
    } catch (error) {
      tell(error.message);
    }
  }
  try {
    const { person } = await ask("GET", "/me");
    one("#person").textContent = person;
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 401) throw error;
    signedOut();
    return;
  }
  for (const name of ["sign-out", "show-form", "show-keys"]) one(`#${name}`).hidden = false;
  state.galleries = await ask("GET", "/galleries");
  fillGalleries();
  await open();
}

function signedOut() {
  for (const name of ["sign-out", "show-form", "show-keys"]) one(`#${name}`).hidden = true;
  one("#person").textContent = one("#where").textContent = "";
  show("sign-in");
}

async function open() {
  const asked = place();
  stop();
  if (!asked.get("search")) {
    await openForm(asked.get("target"), asked.get("gallery"));
    return;
  }
  await openSearch(asked.get("search"), Number(asked.get("lead") ?? 0));
}

// ---- the form

function fillGalleries() {
  const select = one("[name=gallery]");
  select.replaceChildren(...state.galleries.map((each) => make("option", { value: each.name }, each.name)));
}

async function openForm(target, gallery) {
  show("new");
  one("#where").textContent = "";
  const form = one("#search-form");
  if (gallery) form.gallery.value = gallery;
  if (target) form.video.value = target;
  await chosenGallery();
  const earlier = await ask("GET", "/searches");
  one("#earlier").hidden = earlier.length === 0;
  one("#earlier-list").replaceChildren(
    ...earlier.map((each) => {
      const words = `${each.target} in ${each.gallery}`;
      const when = new Date(each.made_at).toLocaleString();
      return make("li", {}, make("a", { href: `#search=${each.search_id}` }, words), make("span", { className: "quiet" }, ` ${each.state}, ${when}`));
    }),
  );
}

async function chosenGallery() {
  const form = one("#search-form");
  const chosen = state.galleries.find((each) => each.name === form.gallery.value);
  if (!chosen) return;
  const index = chosen.index_version ? `index ${chosen.index_version}` : "no index yet: run jobs.index";
  one("#gallery-facts").textContent = `${chosen.videos.toLocaleString()} videos, ${index}`;
  form.reason.required = chosen.requires.includes("reason");
  form.case.required = chosen.requires.includes("case");
  const cameras = await ask("GET", `/galleries/${encodeURIComponent(chosen.name)}/cameras`);
  one("#cameras").replaceChildren(
    ...cameras
      .filter((each) => each.camera_id !== null)
      .map((each) =>
        make("label", {}, make("input", { type: "checkbox", name: "camera", value: each.camera_id }), `${each.camera_id} (${each.videos})`),
      ),
  );
  await suggest();
}

async function suggest() {
  const form = one("#search-form");
  const query = new URLSearchParams({ starts_with: form.video.value, limit: 50 });
  const { videos } = await ask("GET", `/galleries/${encodeURIComponent(form.gallery.value)}/videos?${query}`);
  one("#videos").replaceChildren(...videos.map((each) => make("option", { value: each.video_id }, each.camera_id ?? "")));
}

async function submit(form) {
  const file = form.file.files[0];
  if (!file && !form.video.value.trim()) throw new Error("say who is looked for: the id of a video, or a file");
  let target = `id:${form.video.value.trim()}`;
  if (file) {
    tell(`bringing ${file.name} …`);
    const taken = await ask("POST", `/targets?${new URLSearchParams({ name: file.name })}`, file);
    target = `upload:${taken.target_id}`;
  }
  const box = ["x", "y", "w", "h"].map((name) => form[name].value);
  if (box.some((edge) => edge !== "") && box.some((edge) => edge === "")) throw new Error("a box has four numbers: x, y, width, height");
  const moment = (name) => (form[name].value ? `${form[name].value}:00Z` : null);
  const cameras = [...form.querySelectorAll("[name=camera]:checked")].map((each) => each.value);
  await search({
    gallery: form.gallery.value,
    target,
    reason: form.reason.value || null,
    case: form.case.value || null,
    box: box[0] === "" ? null : box.map(Number),
    time_s: form.at.value === "" ? null : Number(form.at.value),
    whole_picture: form.whole.checked,
    cameras,
    other_cameras: form.other.checked,
    after: moment("after"),
    before: moment("before"),
    top: Number(form.top.value),
  });
}

async function search(asked) {
  const made = await ask("POST", "/searches", asked);
  tell("");
  remember({ search: made.search_id });
  await open();
}

// ---- waiting

async function openSearch(id, rank) {
  const path = `/searches/${encodeURIComponent(id)}`;
  let found = await ask("GET", path);
  while (["queued", "running"].includes(found.state)) {
    show("waiting");
    one("#waiting-words").textContent = `${found.target} in ${found.gallery}: ${found.state}`;
    one("#cancel").onclick = () => attempt(() => ask("DELETE", path));
    found = await ask("GET", `${path}?wait=10`);
    if (place().get("search") !== id) return; // somebody went elsewhere meanwhile
  }
  if (found.state !== "done") {
    await openForm(null, found.gallery);
    tell(found.error ?? `the search is ${found.state}`);
    return;
  }
  if (state.search?.search_id !== id) state.undo = [];
  state.search = found;
  state.leads = await ask("GET", `${path}/leads`);
  state.at = Math.max(0, state.leads.findIndex((each) => each.rank === rank));
  state.pair = state.frame = 0;
  show("triage");
  drawSummary();
  drawRail();
  drawLead();
}

// ---- triage

const current = () => state.leads[state.at];
const base = () => `/searches/${encodeURIComponent(state.search.search_id)}`;
const leadPicture = (lead, frame) => `/api/v1${base()}/leads/${lead.rank}/frames/${frame}.jpg`;
const targetPicture = (frame) => `/api/v1${base()}/target/frames/${frame}.jpg`;
const best = (segment) => segment.frames[segment.attention.indexOf(Math.max(...segment.attention))];
const percent = (share) => `${(100 * share).toFixed(0)} %`;

function worth(lead) {
  if (lead.probability !== null) return `probability ${lead.probability.toFixed(2)}`;
  if (lead.strength) return `strength: ${lead.strength}`;
  return `score ${lead.score.toFixed(3)}`;
}

function drawSummary() {
  const { search, leads } = state;
  const { found } = search;
  one("#where").textContent = search.gallery;
  const judged = leads.filter((each) => each.decision).length;
  const parts = [
    make("span", {}, "Target ", make("strong", {}, search.target)),
    make("span", {}, `${found.scored.toLocaleString()} of ${found.gallery_videos.toLocaleString()} videos scored in full, ${found.seconds.toFixed(2)} s`),
    make("span", { id: "judged" }, `${judged} of ${leads.length} leads judged`),
  ];
  if (found.none_probability !== null) parts.push(make("span", {}, `none of these: probability ${found.none_probability.toFixed(2)}`));
  for (const words of found.filters) parts.push(make("span", { className: "quiet" }, words));
  if (search.reason) parts.push(make("span", { className: "quiet" }, `reason: ${search.reason}`));
  if (search.case) parts.push(make("span", { className: "quiet" }, `case: ${search.case}`));
  if (found.none_probability === null && found.calibration) parts.push(make("span", { className: "quiet" }, `no probabilities: ${found.calibration}`));
  if (found.untimed) parts.push(make("span", { className: "warn" }, `${found.untimed} videos have no time and were left out`));
  if (found.not_indexed) parts.push(make("span", { className: "warn" }, `${found.not_indexed} videos are not in this index yet`));
  if (found.untrained) parts.push(make("span", { className: "warn" }, "untrained ranking"));
  for (const words of found.remarks) parts.push(make("span", { className: "warn" }, words));
  parts.push(make("span", { className: "quiet" }, "Leads to be checked by a person: a high rank says that two stretches of video look alike to the model."));
  one("#summary").replaceChildren(...parts);
}

function marks(lead) {
  if (lead.decision) return [make("span", { className: `mark ${lead.decision}` }, MARKS[lead.decision])];
  return lead.within ? [make("span", { className: "mark same" }, lead.within)] : [];
}

function drawRail() {
  one("#rail").replaceChildren(
    ...state.leads.map((lead, at) => {
      const face = lead.pairs.length ? picture(leadPicture(lead, best(lead.pairs[0].candidate)), `Lead ${lead.rank}`, true) : make("span", { className: "none" }, "no evidence");
      const lines = [
        face,
        make("span", { className: "line" }, make("strong", {}, lead.rank), make("span", {}, lead.probability === null ? lead.score.toFixed(3) : lead.probability.toFixed(2))),
        make("span", { className: "camera quiet" }, lead.camera_id ?? "no camera"),
      ];
      lines.push(...marks(lead));
      const button = make("button", { className: "thumb", type: "button" }, ...lines);
      button.setAttribute("aria-current", String(at === state.at));
      button.addEventListener("click", () => go(at));
      return button;
    }),
  );
}

function mark() {
  const { leads } = state;
  one("#judged").textContent = `${leads.filter((each) => each.decision).length} of ${leads.length} leads judged`;
  [...one("#rail").children].forEach((thumb, at) => {
    thumb.setAttribute("aria-current", String(at === state.at));
    thumb.querySelector(".mark")?.remove();
    thumb.append(...marks(leads[at]));
    if (at === state.at) thumb.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
}

function drawLead() {
  const lead = current();
  const section = one("#lead");
  if (!lead) {
    section.replaceChildren(make("p", {}, "No leads: no video that passes the filters resembles the target enough."));
    return;
  }
  remember({ search: state.search.search_id, lead: lead.rank }, true);
  const facts = [make("span", {}, worth(lead))];
  if (lead.probability !== null || lead.strength) facts.push(make("span", { className: "quiet" }, `score ${lead.score.toFixed(3)}`));
  facts.push(make("span", {}, lead.camera_id ?? "no camera"), make("span", {}, lead.seen ?? "time not known"));
  if (lead.within) facts.push(make("span", { className: "same" }, lead.within));
  if (lead.copy_of) facts.push(make("span", { className: "warn" }, `same bytes as lead ${lead.copy_of}`));
  if (lead.source_changed) facts.push(make("span", { className: "warn" }, "the file is no longer the one that was scored: these pictures may show something else"));
  const buttons = Object.entries(DECISIONS).map(([key, decision]) => {
    const button = make("button", { className: decision, type: "button" }, `${WORDS[decision]} (${key.toUpperCase()})`);
    button.setAttribute("aria-pressed", String(lead.decision === decision));
    button.addEventListener("click", () => guarded(() => decide(decision)));
    return button;
  });
  const more = (words, does) => {
    const button = make("button", { className: "plain", type: "button" }, words);
    button.addEventListener("click", () => guarded(does));
    return button;
  };
  buttons.push(more("Undo (Z)", undo), more("Search for this one", similar), more("Search with confirmed (R)", refine));
  const parts = [
    make("header", {}, make("h2", {}, `${lead.rank}. ${lead.video_id}`), ...facts),
    make("div", { className: "decide" }, ...buttons),
  ];
  const pair = lead.pairs[state.pair];
  if (pair) parts.push(pairButtons(lead), make("div", { className: "stage" }, large(lead, pair), strips(lead, pair)));
  section.replaceChildren(...parts);
  if (pair) drawFrame();
}

function pairButtons(lead) {
  const buttons = lead.pairs.map((pair, at) => {
    const button = make("button", { className: "plain", type: "button" }, `Pair ${at + 1}: ${pair.score.toFixed(3)}`);
    button.setAttribute("aria-pressed", String(at === state.pair));
    button.addEventListener("click", () => choosePair(at));
    return button;
  });
  const play = make("button", { className: "plain", type: "button", id: "play" }, state.playing ? "Pause (Space)" : "Play (Space)");
  play.addEventListener("click", toggle);
  return make("div", { className: "pairs" }, ...buttons, play);
}

function large() {
  return make("div", { className: "compare" },
    make("figure", { className: "large target", id: "large-target" }),
    make("figure", { className: "large candidate", id: "large-candidate" }));
}

function strips(lead, pair) {
  const scale = Math.max(...pair.target.attention, ...pair.candidate.attention);
  const strip = (side, segment, address, words) =>
    make("div", { className: `strip ${side}` },
      make("h3", {}, `${words}, ${segment.times[0].toFixed(1)} to ${segment.times.at(-1).toFixed(1)} s`),
      make("ol", {}, ...segment.frames.map((frame, at) => {
        const share = make("span", {});
        share.style.height = `${(100 * segment.attention[at]) / scale}%`;
        const item = make("li", { title: `frame ${frame}, ${segment.times[at].toFixed(2)} s` },
          picture(address(frame), `${words}, frame ${frame}`, false),
          make("div", { className: "attention" }, share),
          make("span", { className: "share" }, percent(segment.attention[at])));
        item.addEventListener("click", () => { stop(); state.frame = at; drawFrame(); });
        return item;
      })));
  return make("div", { className: "strips" },
    strip("target", pair.target, targetPicture, "Target"),
    strip("candidate", pair.candidate, (frame) => leadPicture(lead, frame), "Lead"));
}

function drawFrame() {
  const lead = current();
  const pair = lead?.pairs[state.pair];
  if (!pair) return;
  for (const [side, segment, address] of [["target", pair.target, targetPicture], ["candidate", pair.candidate, (n) => leadPicture(lead, n)]]) {
    const at = Math.min(state.frame, segment.frames.length - 1);
    const words = side === "target" ? "Target" : "Lead";
    one(`#large-${side}`).replaceChildren(
      picture(address(segment.frames[at]), `${words} at ${segment.times[at].toFixed(2)} s`, false),
      make("figcaption", {}, `${words}, ${segment.times[at].toFixed(2)} s`));
    document.querySelectorAll(`.strip.${side} li`).forEach((item, place) => item.setAttribute("aria-current", String(place === at)));
  }
}

function go(at) {
  if (at < 0 || at >= state.leads.length) return;
  stop();
  state.at = at;
  state.pair = state.frame = 0;
  drawLead();
  mark();
}

function choosePair(at) {
  if (!current()?.pairs[at]) return;
  stop();
  state.pair = at;
  state.frame = 0;
  drawLead();
}

function step(by) {
  const frames = current()?.pairs[state.pair]?.target.frames.length;
  if (!frames) return;
  state.frame = (state.frame + by + frames) % frames;
  drawFrame();
}

function toggle() {
  if (state.playing) stop();
  else if (current()?.pairs[state.pair]) {
    state.playing = setInterval(() => step(1), FRAME_MS);
    one("#play").textContent = "Pause (Space)";
  }
}

function stop() {
  clearInterval(state.playing);
  state.playing = null;
  const play = document.querySelector("#play");
  if (play) play.textContent = "Play (Space)";
}

// ---- decisions

async function say(at, decision) {
  const lead = state.leads[at];
  await ask("PUT", `${base()}/leads/${lead.rank}/decision`, { decision });
  lead.decision = decision;
}

async function decide(decision) {
  const at = state.at;
  if (!state.leads[at]) return;
  const before = state.leads[at].decision;
  await say(at, decision);
  state.undo.push([at, before]);
  if (at + 1 < state.leads.length) go(at + 1);
  else { drawLead(); mark(); }
}

async function undo() {
  const last = state.undo.at(-1);
  if (!last) return;
  await say(...last);
  state.undo.pop();
  go(last[0]);
}

async function refine() {
  const { asked } = state.search; // what was confirmed and rejected before goes on to count, unless it was judged anew
  const said = new Map([...asked.confirmed.map((id) => [id, "same"]), ...asked.rejected.map((id) => [id, "different"])]);
  for (const lead of state.leads) if (lead.decision) said.set(lead.video_id, lead.decision);
  const of = (decision) => [...said].filter(([, each]) => each === decision).map(([id]) => id);
  if (!of("same").length) throw new Error("confirm a lead first (Y)");
  await search({ ...asked, confirmed: of("same"), rejected: of("different") });
}

async function similar() {
  const { gallery, reason, case: number } = state.search;
  await search({ gallery, target: `id:${current().video_id}`, reason, case: number });
}

// ---- events

async function attempt(does) {
  try {
    await does();
  } catch (error) {
    if (error instanceof Refused && error.status === 401) signedOut();
    tell(error.message);
  }
}

async function guarded(does) {
  if (state.busy) return; // one change after another, so that a key held down decides once
  state.busy = true;
  tell("");
  await attempt(does);
  state.busy = false;
}

function onKey(event) {
  const typing = event.target.closest("input, select, textarea, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || one("#person").textContent === "") return;
  const key = event.key.toLowerCase();
  const done = () => event.preventDefault();
  if (event.key === "?") { done(); one("#keys").showModal(); return; }
  if (key === "/") { done(); newSearch(); return; }
  if (one("#triage").hidden || !state.search) return;
  if (key === " " && event.target.closest("button, summary")) return; // presses it
  const does = {
    j: () => go(state.at + 1),
    k: () => go(state.at - 1),
    y: () => guarded(() => decide("same")),
    n: () => guarded(() => decide("different")),
    u: () => guarded(() => decide("unsure")),
    z: () => guarded(undo),
    r: () => guarded(refine),
    " ": toggle,
    arrowright: () => (event.shiftKey ? choosePair(state.pair + 1) : (stop(), step(1))),
    arrowleft: () => (event.shiftKey ? choosePair(state.pair - 1) : (stop(), step(-1))),
  }[key];
  if (does) { done(); does(); }
}

function newSearch() {
  remember({});
  tell("");
  attempt(async () => { await open(); one("[name=video]").focus(); });
}

let typed = null;
one("#search-form").addEventListener("submit", (event) => { event.preventDefault(); guarded(() => submit(event.target)); });
one("[name=gallery]").addEventListener("change", () => attempt(chosenGallery));
one("[name=video]").addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(() => attempt(suggest), 250); });
one("#sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  guarded(async () => { await ask("POST", "/session", { token: event.target.token.value.trim() }); event.target.reset(); await begin(); });
});
one("#sign-out").addEventListener("click", () => guarded(async () => { await ask("DELETE", "/session"); state.search = null; signedOut(); }));
one("#show-form").addEventListener("click", newSearch);
one("#show-keys").addEventListener("click", () => one("#keys").showModal());
addEventListener("keydown", onKey);
addEventListener("popstate", () => { tell(""); attempt(open); });
attempt(begin);
