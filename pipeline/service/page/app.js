// The page: who is signed in, which screen the address names, and the keys.
import { focusForm, nameCase, openForm } from "/page/form.js";
import { one, place, remember, show, tell } from "/page/document.js";
import { ask, Refused } from "/page/interface.js";
import { followed, leaveJobs } from "/page/jobs.js";
import { leaveTriage, onTriageKey, openTriage } from "/page/triage.js";
import { drawPages, isScreen, leaveScreens, openScreen } from "/page/work.js";

const state = { galleries: [], busy: false };
const SIGNED_IN = ["sign-out", "show-form", "show-keys"];

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
    state.me = await ask("GET", "/me");
    one("#person").textContent = `${state.me.person}, ${state.me.role}`;
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 401) throw error;
    signedOut();
    return;
  }
  for (const name of SIGNED_IN) one(`#${name}`).hidden = name === "show-form" && !state.me.rights.includes("investigate");
  state.galleries = await ask("GET", "/galleries");
  drawPages(state.me, state.galleries);
  await open();
}

function signedOut() {
  for (const name of SIGNED_IN) one(`#${name}`).hidden = true;
  one("#person").textContent = one("#where").textContent = "";
  leaveTriage();
  drawPages(null, []);
  show("sign-in");
}

async function open() {
  leaveJobs();
  let asked = place();
  if (!isScreen(asked) && !state.me.rights.includes("investigate")) {
    remember({ page: "cases" }, true); // who only looks does not search
    asked = place();
  }
  if (isScreen(asked)) {
    leaveTriage();
    await openScreen(asked);
    return;
  }
  leaveScreens();
  if (!asked.get("search")) {
    leaveTriage();
    await openForm(state.galleries, asked.get("target"), asked.get("gallery"), { attempt: guarded, found });
    if (asked.get("case")) nameCase(asked.get("case"));
    return;
  }
  await openSearch(asked.get("search"));
}

// A search that was begun; or, in its place, an error.
async function found(search, error = null) {
  if (error) {
    failed(error);
    return;
  }
  remember({ search: search.search_id });
  await open();
}

async function openSearch(id) {
  const path = `/searches/${encodeURIComponent(id)}`;
  let search = await ask("GET", `${path}?wait=1`);
  if (["queued", "running"].includes(search.state)) {
    leaveTriage();
    show("waiting");
    one("#waiting-words").textContent = `${search.target} in ${search.gallery}`;
    const { root, ended } = followed(await ask("GET", `/jobs/${encodeURIComponent(id)}`), attempt);
    one("#waiting-job").replaceChildren(root);
    if (await ended === null) return; // somebody went elsewhere meanwhile
    search = await ask("GET", path);
  }
  if (search.state !== "done") {
    await openForm(state.galleries, null, search.gallery, { attempt: guarded, found });
    tell(search.error ?? `the search is ${search.state}`);
    return;
  }
  await openTriage(search, found);
}

// ---- events

function failed(error) {
  if (error instanceof Refused && error.status === 401) signedOut();
  tell(error.message);
}

async function attempt(does) {
  try {
    await does();
  } catch (error) {
    failed(error);
  }
}

async function guarded(does) {
  if (state.busy) return;
  state.busy = true;
  tell("");
  await attempt(does);
  state.busy = false;
}

const keysAreOn = () => localStorage.getItem("keys") !== "off";

function onKey(event) {
  const dialog = event.target.closest("dialog"); // one that was closed has the focus until it hears of it
  const typing = dialog ? dialog.open : event.target.closest("input, select, textarea");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || one("#person").textContent === "") return;
  if (event.key === "?") { event.preventDefault(); openKeys(); return; }
  if (!keysAreOn() || one("#triage").hidden) return;
  if (event.repeat && !event.key.startsWith("Arrow") && !"jk".includes(event.key.toLowerCase())) return; // held down decides once
  if (event.key === " " && event.target.closest("button, summary, a")) return; // presses it
  const does = onTriageKey(event);
  if (does) { event.preventDefault(); does(); }
}

function openKeys() {
  one("#keys-on").checked = keysAreOn();
  one("#keys").showModal();
}

function newSearch() {
  remember({});
  tell("");
  attempt(async () => { await open(); focusForm(); });
}

one("#sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  guarded(async () => { await ask("POST", "/session", { token: event.target.token.value.trim() }); event.target.reset(); await begin(); });
});
one("#sign-out").addEventListener("click", () => guarded(async () => { await ask("DELETE", "/session"); signedOut(); }));
one("#show-form").addEventListener("click", newSearch);
one("#show-keys").addEventListener("click", openKeys);
one("#keys-on").addEventListener("change", (event) => localStorage.setItem("keys", event.target.checked ? "on" : "off"));
for (const dialog of document.querySelectorAll("dialog")) { // keys are the page's again at once
  dialog.addEventListener("close", () => { if (dialog.contains(document.activeElement)) document.activeElement.blur(); });
}
addEventListener("keydown", onKey);
addEventListener("popstate", () => { tell(""); attempt(open); });
attempt(begin);
