// Admin: index and policy of a gallery, its cameras, the tokens, and the audit log.
import { make, tell } from "/page/document.js";
import { ask } from "/page/interface.js";
import { facts, galleryLinks, moment, pickedGallery, press, query, table, title, where } from "/page/parts.js";

const PLACE = [["name", "Name"], ["zone", "Time zone"], ["latitude", "Latitude"], ["longitude", "Longitude"], ["x_m", "x, m"], ["y_m", "y, m"]];
const NUMBERS = ["latitude", "longitude", "x_m", "y_m"];

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
      make("p", { className: "quiet" }, "jobs.index builds the next index, which is taken up by itself; jobs.policy sets what is required; jobs.forget deletes people.")),
    part("Audit log and cases", facts(
      ["Records", checked.records.toLocaleString("en")], ["Head, to be kept elsewhere", make("span", { className: "code" }, checked.head ?? "none")],
      ["State", checked.faults.length ? make("span", { className: "warn" }, checked.faults.join("; ")) : make("span", { className: "same" }, "whole: nothing was changed, moved or removed")])),
    part("Cameras", cameraTable(name, cameras, all))];
  if (all) {
    parts.push(part("Tokens", await tokens()), part("What was recorded", await log(name)));
  }
  main.replaceChildren(...parts);
}

const part = (words, ...children) => make("section", {}, make("h3", {}, words), make("div", { className: "card" }, ...children));

function cameraTable(gallery, cameras, all) {
  const known = cameras.filter((each) => each.camera_id !== null);
  if (!known.length) return make("p", { className: "quiet" }, "No video of this gallery says which camera it is of.");
  const cell = (camera, field, words) => {
    if (!all) return String(camera[field] ?? "");
    const input = make("input", { name: field, value: camera[field] ?? "", type: NUMBERS.includes(field) ? "number" : "text", step: "any", autocomplete: "off" });
    input.setAttribute("aria-label", `${words} of ${camera.camera_id}`);
    return input;
  };
  const rows = known.map((camera) => [camera.camera_id, String(camera.videos), ...PLACE.map(([field, words]) => cell(camera, field, words))]);
  const drawn = table("Names and places", ["Camera", "Videos", ...PLACE.map(([, words]) => words)], rows);
  if (!all) return drawn;
  const save = press("Save the cameras", async () => {
    const read = [...drawn.querySelectorAll("tbody tr")].map((row, at) => {
      const fields = [...row.querySelectorAll("input")].filter((input) => input.value !== "").map((input) => [input.name, NUMBERS.includes(input.name) ? Number(input.value) : input.value]);
      return { camera_id: known[at].camera_id, ...Object.fromEntries(fields) };
    });
    await ask("PUT", `/galleries/${encodeURIComponent(gallery)}/cameras`, { cameras: read.filter((each) => Object.keys(each).length > 1) });
    tell("the cameras are saved");
  });
  return make("div", { className: "stack" }, drawn, make("p", { className: "quiet" }, "Latitude and longitude in degrees, or x and y in metres on a plan: the path of a case then says how far it is from camera to camera."), save);
}

async function tokens() {
  const known = await ask("GET", "/tokens");
  if (!known.length) return make("p", { className: "quiet" }, "None. jobs.token issues them: python -m jobs.token --tokens FILE --person NAME --role ROLE; jobs.serve --tokens FILE takes them.");
  const rows = known.map((each) => [each.person, each.role, moment(1000 * each.expires)]);
  return make("div", {}, table("Tokens that were issued", ["Person", "Role", "Expires"], rows), make("p", { className: "quiet" }, "jobs.token issues and revokes them."));
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
  const words = [fields.target, fields.video_id, fields.decision, fields.results && `${fields.results.length} leads`, fields.failed && `failed: ${fields.failed}`, fields.videos?.length && `${fields.videos.length} videos`];
  return words.filter((each) => each).join(", ");
}
