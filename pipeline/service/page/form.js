// A new search: a video of the gallery, or a file that is dropped here, in which a box says who is meant.
import { button, make, one, show, tell } from "/page/document.js";
import { ask } from "/page/interface.js";
import { beginCase, isCaseName, NO_CASE_NAME } from "/page/parts.js";
import { Player } from "/page/player.js";

const WINDOW_S = 60; // of an upload that is played at once
const form = one("#search-form");
let galleries = [];
let cases = []; // of all galleries, as they are when the form opens
let taken = null; // the upload, as the service knows it
let box = null; // { box, time_s }
let further = []; // targets of the same person that were put by: { words, asked, whole }
let player = null;
let start = 0;
let does = null; // { attempt, found(search) }

export async function openForm(known, target, gallery, actions) {
  [galleries, does] = [known, actions];
  show("new");
  one("#where").textContent = "";
  form.gallery.replaceChildren(...galleries.map((each) => make("option", { value: each.name }, each.name)));
  if (gallery) form.gallery.value = gallery;
  if (target) form.video.value = target;
  further = [];
  drawFurther();
  cases = await ask("GET", "/cases");
  await chosenGallery();
  const earlier = await ask("GET", "/searches");
  one("#earlier").hidden = earlier.length === 0;
  one("#earlier-list").replaceChildren(...earlier.map((each) => {
    const words = `${each.target} in ${each.gallery}`;
    const when = new Date(each.made_at).toLocaleString();
    return make("li", {}, make("a", { href: `#search=${each.search_id}` }, words), make("span", { className: "quiet" }, ` ${each.state}, ${when}`));
  }));
}

export const focusForm = () => form.video.focus();

export function nameCase(name) {
  form.case.value = name;
  sayCase();
}

// What comes of decisions under the name of a case that was typed.
function sayCase() {
  const name = form.case.value.trim();
  const found = cases.find((each) => each.gallery === form.gallery.value && each.name === name);
  const isNew = name !== "" && !found && isCaseName(name);
  one("#case-facts").hidden = name === "";
  one("#case-new").hidden = !isNew;
  one("#case-words").className = found?.state === "open" ? "quiet" : isNew ? "unsure" : "warn";
  if (found) one("#case-words").textContent = found.state === "open" ? `Decisions go into this case: ${found.title}` : `The case ${found.title} is closed and takes no decisions. Open it again on its page.`;
  else if (isNew) one("#case-words").textContent = `There is no case ${name} in ${form.gallery.value} yet. Without one the name stands in the record only, and decisions are in no case.`;
  else one("#case-words").textContent = `${name} stands in the record only, and decisions are in no case: ${NO_CASE_NAME}.`;
}

async function begin() {
  const begun = await beginCase(form.gallery.value, form.case.value.trim(), form.case_title.value.trim(), form.reason.value);
  cases.push(begun);
  form.case_title.value = "";
  offerCases();
}

function offerCases() {
  const offered = cases.filter((each) => each.gallery === form.gallery.value && each.state === "open");
  one("#cases").replaceChildren(...offered.map((each) => make("option", { value: each.name }, each.title)));
  sayCase();
}

async function chosenGallery() {
  const chosen = galleries.find((each) => each.name === form.gallery.value);
  if (!chosen) return;
  const index = chosen.index_version ? `index ${chosen.index_version}` : "no index yet: run jobs.index";
  one("#gallery-facts").textContent = `${chosen.videos.toLocaleString("en")} videos, ${index}`;
  form.reason.required = chosen.requires.includes("reason");
  form.case.required = chosen.requires.includes("case");
  offerCases();
  const cameras = await ask("GET", `/galleries/${encodeURIComponent(chosen.name)}/cameras`);
  one("#cameras").replaceChildren(...cameras.filter((each) => each.camera_id !== null).map((each) =>
    make("label", {}, make("input", { type: "checkbox", name: "camera", value: each.camera_id }), `${each.name ?? each.camera_id} (${each.videos})`)));
  await suggest();
}

async function suggest() {
  const query = new URLSearchParams({ starts_with: form.video.value, limit: 50 });
  const { videos } = await ask("GET", `/galleries/${encodeURIComponent(form.gallery.value)}/videos?${query}`);
  one("#videos").replaceChildren(...videos.map((each) => make("option", { value: each.video_id }, each.camera_id ?? "")));
}

// ---- a file

async function bring(file) {
  forget();
  tell(`bringing ${file.name} …`);
  const { target_id: id } = await ask("POST", `/targets?${new URLSearchParams({ name: file.name })}`, file);
  taken = await ask("GET", `/targets/${encodeURIComponent(id)}`);
  tell("");
  form.video.value = "";
  one("#upload").hidden = false;
  one("#upload-facts").textContent = `${file.name}, ${taken.width} x ${taken.height} pixels, SHA-256 ${taken.sha256.slice(0, 12)}…`;
  one("#upload-hint").textContent = taken.is_scene
    ? "This looks like a scene: draw a box around who is meant. Pause where they are seen well."
    : "This looks like one person. If it is not, draw a box around who is meant.";
  if (!player) {
    player = new Player("target", "What you brought");
    player.root.classList.add("drawing");
    player.onDrawn = (drawn, time) => { box = { box: drawn, time_s: taken.is_photo ? null : Number(time.toFixed(3)) }; said(); };
    player.tools.append(
      button("Earlier", () => turn(-WINDOW_S), { className: "plain small", id: "earlier-minute" }),
      button("Later", () => turn(WINDOW_S), { className: "plain small", id: "later-minute" }),
      button("No box", () => { box = null; said(); play(); }, { className: "plain small" }));
    one("#upload-player").append(player.root);
  }
  start = 0;
  play();
  said();
}

function play() {
  const address = `/api/v1/targets/${encodeURIComponent(taken.target_id)}/clip.mp4?${new URLSearchParams({ start, end: start + WINDOW_S })}`;
  player.show({ ...taken, clip: { address, start, end: start + WINDOW_S }, boxes: box ? [{ time_s: box.time_s ?? 0, x: box.box[0], y: box.box[1], w: box.box[2], h: box.box[3] }] : [] });
  for (const each of ["earlier-minute", "later-minute"]) one(`#${each}`).hidden = taken.is_photo;
}

function turn(by) {
  start = Math.max(0, start + by);
  play();
}

function said() {
  one("#upload-box").textContent = box
    ? `Box: ${box.box.join(", ")} (x, y, width, height)${box.time_s === null ? "" : ` at ${box.time_s.toFixed(2)} s`}`
    : "No box: all of the picture is the person.";
  for (const [at, name] of ["x", "y", "w", "h"].entries()) form[name].value = box ? box.box[at] : "";
  form.at.value = box?.time_s ?? "";
}

function forget() {
  [taken, box] = [null, null];
  one("#upload").hidden = true;
  player?.show({ note: "" });
}

// ---- asking

// The target that the form names now; null where it names none.
function named() {
  const video = form.video.value.trim();
  if (!taken && !video) return null;
  const edges = ["x", "y", "w", "h"].map((name) => form[name].value);
  if (edges.some((edge) => edge !== "") && edges.some((edge) => edge === "")) throw new Error("a box has four numbers: x, y, width, height");
  const hasBox = edges[0] !== "";
  return {
    words: `${video || one("#upload-facts").textContent.split(",")[0]}${hasBox ? `, box ${edges.join(", ")}` : ""}`,
    whole: form.whole.checked || (!video && !hasBox),
    asked: {
      target: video ? `id:${video}` : `upload:${taken.target_id}`,
      box: hasBox ? edges.map(Number) : null,
      time_s: form.at.value === "" ? null : Number(form.at.value),
    },
  };
}

async function putBy() {
  const target = named();
  if (!target) throw new Error("say who is looked for first: the id of a video, or a file; then one more of the same person");
  further.push(target);
  drawFurther();
  form.video.value = form.file.value = "";
  forget();
  said();
  form.video.focus();
}

function drawFurther() {
  one("#further").replaceChildren(...further.map((each) => make("li", {}, `${each.words} `,
    button("Leave out", () => { further = further.filter((other) => other !== each); drawFurther(); form.video.focus(); }, { className: "plain small", "aria-label": `Leave out ${each.words}` }))));
}

async function submit() {
  const targets = [...further, named()].filter(Boolean);
  if (!targets.length) throw new Error("say who is looked for: the id of a video, or a file");
  const [first, ...others] = targets.map((each) => each.asked);
  const moment = (name) => (form[name].value ? `${form[name].value}:00Z` : null);
  await does.found(await ask("POST", "/searches", {
    gallery: form.gallery.value,
    ...first,
    further_targets: others,
    reason: form.reason.value || null,
    case: form.case.value.trim() || null,
    whole_picture: targets.some((each) => each.whole),
    cameras: [...form.querySelectorAll("[name=camera]:checked")].map((each) => each.value),
    other_cameras: form.other.checked,
    after: moment("after"),
    before: moment("before"),
    top: Number(form.top.value),
  }));
}

let typed = null;
form.addEventListener("submit", (event) => { event.preventDefault(); does.attempt(submit); });
form.case.addEventListener("input", sayCase);
one("#one-more").addEventListener("click", () => does.attempt(putBy));
one("#begin-case").addEventListener("click", () => does.attempt(begin));
form.case_title.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); does.attempt(begin); } }); // no search yet
form.gallery.addEventListener("change", () => does.attempt(chosenGallery));
form.video.addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(() => suggest().catch(() => {}), 250); }); // never in the way of a search
form.file.addEventListener("change", () => { if (form.file.files[0]) does.attempt(() => bring(form.file.files[0])); });
const drop = one("#drop");
for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => { event.preventDefault(); if (event.dataTransfer.files[0]) does.attempt(() => bring(event.dataTransfer.files[0])); });
