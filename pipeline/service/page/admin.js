// Admin: index and policy of a gallery, its cameras, who is forgotten, the tokens, and the audit log.
import { make, one, tell } from "/page/document.js";
import { ask } from "/page/interface.js";
import { followed } from "/page/jobs.js";
import { drawn, spots } from "/page/plan.js";
import { attempt, choice, facts, field, form, galleryLinks, moment, pickedGallery, press, query, table, title, where } from "/page/parts.js";
import { zonesOf } from "/page/times.js";

const PLACE = [["name", "Name"], ["zone", "Time zone"], ["latitude", "Latitude"], ["longitude", "Longitude"], ["x_m", "x, m"], ["y_m", "y, m"], ["clock_offset_s", "Clock ahead, s"]];
const NUMBERS = ["latitude", "longitude", "x_m", "y_m", "clock_offset_s"];

export async function openAdmin(main, asked, { me, galleries }) {
  const name = pickedGallery(asked, galleries);
  const all = me.rights.includes("administer");
  const path = `/galleries/${encodeURIComponent(name)}`;
  const [gallery, cameras, checked] = await Promise.all([ask("GET", path), ask("GET", `${path}/cameras`), ask("GET", `/audit/verify${query({ gallery: name })}`)]);
  where(name);
  main.className = "wide";
  const parts = [title("Admin"), ...galleryLinks("admin", name, galleries),
    part("Gallery", facts(
      ["Videos", gallery.videos.toLocaleString("en")], ["Seen", gallery.seen_from ? `${moment(gallery.seen_from)} to ${moment(gallery.seen_to)}` : null],
      ["Index", gallery.index_version ?? "none yet"], ["Required", gallery.requires.join(", ") || "nothing"]),
      make("p", { className: "quiet" }, "jobs.index builds the next index, which is taken up by itself; jobs.policy sets what is required.")),
    part("Audit log and cases", facts(
      ["Records", checked.records.toLocaleString("en")], ["Head, to be kept elsewhere", make("span", { className: "code" }, checked.head ?? "none")],
      ["State", checked.faults.length ? make("span", { className: "warn" }, checked.faults.join("; ")) : make("span", { className: "same" }, "whole: nothing was changed, moved or removed")])),
    part("Cameras and plan", cameraTable(name, cameras, gallery.plan, all))];
  if (all) {
    parts.splice(2, 0, part("Take videos in", await intake(name, path)));
    parts.push(part("Forget", forgetting(path, gallery.requires, zonesOf(cameras))), part("Tokens", await tokens()), part("What was recorded", await log(name)));
  }
  main.replaceChildren(...parts);
}

const part = (words, ...children) => make("section", {}, make("h3", {}, words), make("div", { className: "card" }, ...children));

function cameraTable(gallery, cameras, plan, all) {
  const known = cameras.filter((each) => each.camera_id !== null);
  if (!known.length) return make("p", { className: "quiet" }, "No video of this gallery says which camera it is of.");
  const cell = (camera, field, words) => {
    if (!all) return String(camera[field] ?? "");
    const input = make("input", { name: field, value: camera[field] ?? "", type: NUMBERS.includes(field) ? "number" : "text", step: "any", autocomplete: "off" });
    input.setAttribute("aria-label", `${words} of ${camera.camera_id}`);
    return input;
  };
  const rows = known.map((camera) => [camera.camera_id, String(camera.videos), ...PLACE.map(([field, words]) => cell(camera, field, words))]);
  const listed = table("Names and places", ["Camera", "Videos", ...PLACE.map(([, words]) => words)], rows);
  if (!all) return make("div", { className: "stack" }, listed, planOf(gallery, known, plan));
  const save = press("Save the cameras", async () => {
    const read = [...listed.querySelectorAll("tbody tr")].map((row, at) => {
      const fields = [...row.querySelectorAll("input")].filter((input) => input.value !== "").map((input) => [input.name, NUMBERS.includes(input.name) ? Number(input.value) : input.value]);
      return { camera_id: known[at].camera_id, ...Object.fromEntries(fields) };
    });
    await ask("PUT", `/galleries/${encodeURIComponent(gallery)}/cameras`, { cameras: read.filter((each) => Object.keys(each).length > 1) });
    tell("the cameras are saved");
  });
  return make("div", { className: "stack" }, listed, make("p", { className: "quiet" }, "Latitude and longitude in degrees, or x and y in metres on a plan, from its lower left corner: the path of a case then says how far it is from camera to camera. Where a clock is ahead, times are shown as a right one would give them."), save, ...planning(gallery, known, plan, listed));
}

function planOf(gallery, cameras, plan) {
  if (!plan) return make("p", { className: "quiet" }, "No plan was set.");
  const { svg, place } = drawn(gallery, plan, `Plan, ${Math.round(plan.width_m)} m wide`);
  svg.append(...spots(place, cameras));
  return svg;
}

// The plan, on which a click places the camera that is chosen, and a form that sets another one.
function planning(gallery, cameras, plan, table) {
  const path = `/galleries/${encodeURIComponent(gallery)}/plan`;
  const parts = [];
  if (plan) {
    const on = drawn(gallery, plan, `Plan, ${Math.round(plan.width_m)} m wide`);
    const chosen = choice("Click where this camera is", "placed", cameras.map((each) => [each.camera_id, each.name ?? each.camera_id]));
    const input = (camera, field) => table.querySelectorAll("tbody tr")[cameras.findIndex((each) => each.camera_id === camera)].querySelector(`[name=${field}]`);
    const again = () => {
      const now = cameras.map((each) => ({ ...each, ...Object.fromEntries(["x_m", "y_m"].map((field) => [field, input(each.camera_id, field).value === "" ? null : Number(input(each.camera_id, field).value)])) }));
      on.svg.replaceChildren(on.svg.firstChild, ...spots(on.place, now));
    };
    on.svg.addEventListener("click", (event) => {
      const [x, y] = on.metres(event);
      const camera = one("select", chosen).value;
      input(camera, "x_m").value = x.toFixed(1);
      input(camera, "y_m").value = y.toFixed(1);
      again();
    });
    table.addEventListener("input", again);
    on.svg.classList.add("placing");
    again();
    parts.push(chosen, on.svg, press("Remove the plan", async () => { await ask("DELETE", path); dispatchEvent(new PopStateEvent("popstate")); }));
  }
  parts.push(form([
    make("div", { className: "row two" },
      field(plan ? "Another plan, PNG or JPEG" : "A plan of the place, PNG or JPEG", "picture", { type: "file", accept: "image/png,image/jpeg", required: true }),
      field("Metres from its left to its right edge", "width_m", { type: "number", step: "any", min: 0, required: true, value: plan?.width_m ?? "" })),
  ], "Set the plan", async (made) => {
    await ask("PUT", `${path}${query({ width_m: made.width_m.value })}`, made.picture.files[0]);
    dispatchEvent(new PopStateEvent("popstate"));
  }));
  return parts;
}

async function intake(name, path) {
  const { roots, detectors, jobs } = await ask("GET", `${path}/ingests`);
  if (!roots.length) return make("p", { className: "quiet" }, "This gallery names no folders that may be taken in from here, so only jobs.ingest brings videos. A first jobs.ingest --root FOLDER says which folders these are.");
  const list = make("ul", { className: "plain-list jobs" }, ...jobs.map(brought));
  const ofRecordings = make("div", { className: "row two", hidden: true },
    field("How recordings are named", "pattern", { placeholder: "{camera}/%Y%m%d_%H%M%S.mp4" }),
    field("Time zone of these names", "zone", { placeholder: "UTC" }));
  const kind = choice("What it holds", "detector", [["", "videos of one person each"], ...detectors.map((each) => [each, `recordings of cameras: find people with ${each}`])]);
  kind.addEventListener("change", (event) => { ofRecordings.hidden = event.target.value === ""; });
  return make("div", { className: "stack" },
    form([
      field("Folder, manifest or video", "source", { value: roots[0], required: true, spellcheck: false }),
      make("p", { className: "quiet" }, `Below ${roots.join(" or ")}.`),
      kind,
      ofRecordings,
      make("label", { className: "check" }, make("input", { type: "checkbox", name: "update" }), "take in again what has changed"),
      make("label", { className: "check" }, make("input", { type: "checkbox", name: "retry" }), "try again what was rejected"),
      field("Reason", "reason", { maxLength: 2000 }),
    ], "Take in, and build the index", async (made) => {
      const asked = { source: made.source.value.trim(), detector: made.detector.value || null, update: made.update.checked, retry_rejected: made.retry.checked, reason: made.reason.value || null };
      if (asked.detector) Object.assign(asked, { pattern: made.pattern.value.trim() || null, zone: made.zone.value.trim() || "UTC" });
      list.prepend(brought(await ask("POST", `${path}/ingests`, asked)));
    }),
    list);
}

// An ingest as a line: a bar while it goes on, then what came of it.
function brought(job) {
  const line = make("li", {});
  const said = (now) => line.replaceChildren(make("span", {}, now.about, " "), make("span", { className: "quiet" }, `${now.made_by}, ${moment(now.made_at)}: `), make("span", { className: now.state === "failed" ? "warn" : "" }, now.error ?? now.outcome ?? now.state));
  if (job.state !== "queued" && job.state !== "running") {
    said(job);
    return line;
  }
  const { root, ended } = followed(job, attempt);
  line.append(make("span", {}, job.about), root);
  ended.then((now) => now && said(now)).catch((error) => tell(error.message));
  return line;
}

// Two steps: what would go, copies too, and only then the button that forgets it.
function forgetting(path, requires, zones) {
  const place = make("div", { className: "confirm", role: "status" });
  const leave = (...words) => place.replaceChildren(...words.map((each) => make("p", {}, each)));
  const made = form([
    make("p", { className: "quiet" }, "A forgotten video is in no result, case, clip or export from that moment on, and no ingest brings it back. Copies of the same bytes go along. Nothing undoes it; the log keeps the id, who and why."),
    make("div", { className: "row two" },
      field("Videos by id, one a line", "videos", { required: true, spellcheck: false, rows: 2 }, "textarea"),
      field("Reason for forgetting", "reason", { required: true, maxLength: 2000 }),
      field("Case or ticket number", "case", { required: requires.includes("case"), maxLength: 200 })),
  ], "Show what would go", async () => {
    const videos = made.videos.value.split("\n").map((each) => each.trim()).filter(Boolean);
    const asked = { videos, reason: made.reason.value, case: made.case.value || null };
    const going = await ask("GET", `${path}/forgotten/preview?${new URLSearchParams(videos.map((each) => ["video_id", each]))}`);
    const forget = press(`Forget ${going.length === 1 ? "this video" : `these ${going.length} videos`} for good`, async () => {
      const { videos: gone } = await ask("POST", `${path}/forgotten`, asked);
      made.reset();
      leave(`Forgotten: ${gone.join(", ")}. Their features leave the disk with the next jobs.compact.`);
    }, { className: "danger" });
    place.replaceChildren(
      make("ul", { className: "plain-list" }, ...going.map((each) => make("li", {}, make("strong", {}, each.video_id), ` ${each.camera_id ?? "no camera"}, ${moment(each.seen_from, zones.get(each.camera_id))}`, videos.includes(each.video_id) ? "" : make("span", { className: "warn" }, " a copy")))),
      make("div", { className: "actions" }, forget, press("Keep", () => leave())));
    forget.focus();
  });
  made.addEventListener("input", () => leave()); // what is confirmed is what was shown
  return make("div", { className: "stack" }, made, place);
}

// A button that asks once more before it does something that nothing undoes.
function twice(words, sure, does) {
  const place = make("span", { className: "twice" });
  const calm = () => place.replaceChildren(press(words, () => {
    const go = press(sure, does, { className: "danger" });
    place.replaceChildren(go, " ", press("Keep", calm));
    go.focus();
  }, { className: "plain small" }));
  calm();
  return place;
}

async function tokens() {
  const place = make("div", {});
  const again = async () => place.replaceChildren(...await drawTokens(again));
  await again();
  return place;
}

async function drawTokens(again) {
  const known = (await ask("GET", "/tokens")).sort((one, other) => one.person.localeCompare(other.person));
  if (!known.length) return [make("p", { className: "quiet" }, "None. jobs.token issues them: python -m jobs.token --tokens FILE --person NAME --role ROLE; jobs.serve --tokens FILE takes them.")];
  const revoking = (person) => twice("Revoke", `Revoke all tokens of ${person}`, async () => {
    const { tokens: count } = await ask("DELETE", `/tokens/${encodeURIComponent(person)}`);
    await again();
    tell(`${count} ${count === 1 ? "token" : "tokens"} of ${person} revoked`);
  });
  const rows = known.map(({ person, role, expires }, at) => [person, role, moment(1000 * expires), known[at - 1]?.person === person ? "" : revoking(person)]);
  return [table("Tokens that were issued", ["Person", "Role", "Expires", "Revoke"], rows), make("p", { className: "quiet" }, "jobs.token issues them. Revoking takes all tokens of a person, ends the sessions that these opened, and is on record.")];
}

async function log(gallery) {
  const place = make("div", {});
  const rows = [];
  let cursor = null;
  const more = async () => {
    const page = await ask("GET", `/audit${query({ gallery, limit: 25, ...(cursor === null ? {} : { cursor }) })}`);
    cursor = page.following;
    rows.push(...page.records.map((each) => [String(each.number ?? ""), moment(each.at), each.who, each.action, each.case, each.reason, about(each.fields)]));
    place.replaceChildren(table("Records, the newest first", ["No.", "When", "Who", "What", "Case", "Reason", "About"], rows), ...(cursor === null ? [] : [press("Older records", more)]));
  };
  await more();
  return place;
}

function about(fields) {
  const words = [fields.kind, fields.source, fields.target, fields.video_id, fields.decision, fields.results && `${fields.results.length} leads`, fields.failed && `failed: ${fields.failed}`, fields.videos?.length && (fields.videos.length < 4 ? fields.videos.join(" ") : `${fields.videos.length} videos`), fields.person];
  return words.filter((each) => each).join(", ");
}
