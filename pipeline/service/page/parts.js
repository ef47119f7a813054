// Parts of the screens beside triage.
import { make, one, picture, tell } from "/page/document.js";
import { ask, Refused } from "/page/interface.js";

export { MARKS, WORDS } from "/page/decisions.js";
export { moment } from "/page/times.js";

export const casePath = (found) => `/cases/${encodeURIComponent(found.name)}`;
export const isCaseName = (name) => /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name);
export const NO_CASE_NAME = "a case has a name of at most 64 letters, figures, dots, dashes and underscores, the first a letter or figure";
export const beginCase = (gallery, name, title, reason) => ask("POST", "/cases", { gallery, name, title: title || name, reason: reason || null });
export const query = (fields) => `?${new URLSearchParams(Object.entries(fields).filter(([, value]) => value !== null && value !== ""))}`;
export const caseAddress = (page, found, more = {}) => `#${new URLSearchParams({ page, gallery: found.gallery, case: found.name, ...more })}`;

export function press(words, does, properties = {}) {
  const made = make("button", { type: "button", className: "plain", ...properties }, words);
  made.addEventListener("click", () => attempt(does));
  return made;
}

let busy = false;

// One change after another; what is refused is said.
export async function attempt(does) {
  if (busy) return;
  busy = true;
  tell("");
  try {
    await does();
  } catch (error) {
    if (error instanceof Refused && error.status === 401) location.assign("/");
    tell(error.message);
  } finally {
    busy = false;
  }
}

export function form(fields, words, does) {
  const made = make("form", { className: "card" }, ...fields, make("button", { type: "submit" }, words));
  made.addEventListener("submit", (event) => { event.preventDefault(); attempt(() => does(made)); });
  return made;
}

export function field(words, name, properties = {}, tag = "input") {
  return make("label", {}, words, make(tag, { name, autocomplete: "off", ...properties }));
}

export function choice(words, name, options, chosen) {
  const select = make("select", { name }, ...options.map(([value, label]) => make("option", { value, selected: value === chosen }, label)));
  return make("label", {}, words, select);
}

export function table(caption, heads, rows) {
  const cells = (row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell ?? "")));
  const made = make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...heads.map(head))), make("tbody", {}, ...rows.map(cells)));
  const scrolls = make("div", { className: "scrolls", tabIndex: 0 }, made);
  scrolls.setAttribute("role", "region");
  scrolls.setAttribute("aria-label", caption);
  return scrolls;
}

function head(words) {
  const made = make("th", {}, words);
  made.setAttribute("scope", "col");
  return made;
}

export function facts(...pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return make("dl", { className: "facts" }, ...shown.map(([words, value]) => make("div", {}, make("dt", {}, words), make("dd", {}, value))));
}

// The picture of a lead of a case, or of its target, at the frame in the middle of the evidence.
export function evidence(found, lead, side, at, lazy = false) {
  const frames = lead.evidence?.[side].frames ?? [];
  const words = side === "target" ? "Target" : "Lead";
  if (!frames.length) return make("span", { className: "none" }, "no evidence");
  const frame = frames[Math.min(at ?? Math.floor(frames.length / 2), frames.length - 1)];
  const address = `/api/v1${casePath(found)}/pictures/${side}/${frame}.jpg${query({ video_id: lead.video_id, gallery: found.gallery })}`;
  return picture(address, `${words}, frame ${frame}`, lazy);
}

export async function openedCase(asked) {
  return ask("GET", `/cases/${encodeURIComponent(asked.get("case"))}${query({ gallery: asked.get("gallery") ?? "" })}`);
}

export function pickedGallery(asked, galleries) {
  return asked.get("gallery") ?? galleries[0]?.name ?? "";
}

// Links to the same page of other galleries, where there are any.
export function galleryLinks(page, chosen, galleries) {
  if (galleries.length < 2) return [];
  const links = galleries.map((each) => {
    const link = make("a", { href: `#${new URLSearchParams({ page, gallery: each.name })}` }, each.name);
    if (each.name === chosen) link.setAttribute("aria-current", "page");
    return link;
  });
  const list = make("nav", { className: "tabs" }, ...links);
  list.setAttribute("aria-label", "Galleries");
  return [list];
}

export const title = (words, ...more) => make("header", { className: "title" }, make("h2", {}, words), ...more);
export const where = (words) => { one("#where").textContent = words; };
