// Review: the second person decides on the same pictures, one lead after the other, without seeing what the first one said.
import { make, one } from "/page/document.js";
import { ask, videoPath } from "/page/interface.js";
import { attempt, caseAddress, casePath, evidence, moment, openedCase, press, query, title, where, WORDS } from "/page/parts.js";
import { zonesOf } from "/page/times.js";

const KEYS = { y: "same", n: "different", u: "unsure" };
const FRAME_MS = 260;
let shown = null; // { found, lead, at, again }
let playing = null;

export async function openReview(main, asked) {
  stop();
  shown = null;
  if (!asked.get("case")) {
    await chooseCase(main);
    return;
  }
  const found = await openedCase(asked);
  where(found.gallery);
  const zones = zonesOf(await ask("GET", `/galleries/${encodeURIComponent(found.gallery)}/cameras`));
  const due = found.leads.filter((each) => each.hidden);
  main.className = "wide";
  const done = found.leads.length - due.length;
  if (!due.length) {
    main.replaceChildren(title(`Review ${found.name}`), make("p", {}, "Nothing in this case waits for you."), make("p", {}, make("a", { href: caseAddress("case", found) }, "To the case")));
    return;
  }
  shown = { found, lead: due[0], at: 0, clips: false, again: () => openReview(main, asked) };
  main.replaceChildren(
    title(`Review ${found.name}`, make("span", { className: "quiet" }, `${due.length} ${due.length === 1 ? "lead waits" : "leads wait"}, ${done} done`)),
    make("p", { className: "quiet" }, "Does the lead show the person of the target? What the first person said is shown after you have decided, and not before."),
    make("section", { className: "card review" },
      make("div", { className: "compare" }, make("figure", { className: "large target", id: "review-target" }), make("figure", { className: "large candidate", id: "review-candidate" })),
      make("div", { className: "lines" },
        make("strong", {}, shown.lead.video_id),
        make("span", { className: "quiet" }, [shown.lead.camera_id ?? "no camera", moment(shown.lead.seen_from, zones.get(shown.lead.camera_id))].join(" · ")),
        make("label", {}, "Note", make("input", { name: "note", id: "review-note", maxLength: 2000, autocomplete: "off" })),
        make("div", { className: "decide" }, ...Object.entries(KEYS).map(([key, decision]) => press(`${WORDS[decision]} (${key.toUpperCase()})`, () => decide(decision), { className: decision }))),
        make("div", { className: "actions" }, press("Play (Space)", toggle, { id: "review-play" }), press("Clips (C)", clips, { id: "review-clips" })),
        make("p", { id: "review-said", role: "status" }))),
  );
  drawFrame();
}

async function chooseCase(main) {
  const waiting = (await ask("GET", "/cases")).filter((each) => each.waiting && each.state === "open");
  main.className = "narrow";
  main.replaceChildren(title("Review"),
    make("p", { className: "quiet" }, waiting.length ? "Cases with leads that wait for a second person:" : "No lead of an open case waits for a second person."),
    make("ul", { className: "cases" }, ...waiting.map((each) => make("li", { className: "card" }, make("a", { href: caseAddress("review", each) }, make("strong", {}, each.name), ` ${each.title}`), make("span", { className: "tag warn" }, `${each.waiting} wait`)))));
}

// The stretches of video instead of the frames that were scored, and back.
function clips() {
  stop();
  shown.clips = !shown.clips;
  one("#review-clips").textContent = shown.clips ? "Frames (C)" : "Clips (C)";
  if (!shown.clips) {
    drawFrame();
    return;
  }
  const { found, lead } = shown;
  const target = lead.target.startsWith("id:") ? lead.target.slice(3) : null;
  for (const [side, video, words] of [["target", target, "Target"], ["candidate", lead.video_id, "Lead"]]) {
    const shows = video === null ? make("span", { className: "none" }, "an upload: its frames only") : make("video", { src: `/api/v1${videoPath(found.gallery, video, "clip.mp4")}?view=crop`, muted: true, loop: true, controls: true, autoplay: true, playsInline: true, ariaLabel: `${words}, clip` });
    one(`#review-${side}`).replaceChildren(shows, make("figcaption", {}, words));
  }
}

function drawFrame() {
  const { found, lead, at } = shown;
  for (const [side, words] of [["target", "Target"], ["candidate", "Lead"]]) {
    const times = lead.evidence?.[side].times ?? [];
    const time = times[Math.min(at, times.length - 1)];
    one(`#review-${side}`).replaceChildren(evidence(found, lead, side, at), make("figcaption", {}, time === undefined ? words : `${words}, ${time.toFixed(2)} s`));
  }
}

async function decide(decision) {
  const { found, lead, again } = shown;
  stop();
  const body = { video_id: lead.video_id, tag: lead.tag, decision, note: one("#review-note").value || null };
  const said = await ask("POST", `${casePath(found)}/confirmations${query({ gallery: found.gallery })}`, body);
  shown = null;
  const words = said.confirmation.agrees ? `You agree with ${said.who}.` : `${said.who} said: ${WORDS[said.decision].toLowerCase()}. The case shows that you two differ.`;
  document.querySelectorAll(".review .decide button").forEach((each) => { each.disabled = true; });
  const next = press("Next (J)", again);
  one("#review-said").replaceChildren(make("strong", { className: said.confirmation.agrees ? "same" : "different" }, words), " ", next);
  next.focus();
}

function step(by) {
  if (!shown?.lead.evidence || shown.clips) return;
  const count = shown.lead.evidence.candidate.frames.length;
  shown.at = (shown.at + by + count) % count;
  drawFrame();
}

function toggle() {
  if (playing) stop();
  else if (!shown.clips) {
    playing = setInterval(() => step(1), FRAME_MS);
    one("#review-play").textContent = "Pause (Space)";
  }
}

function stop() {
  clearInterval(playing);
  playing = null;
  const button = one("#review-play");
  if (button) button.textContent = "Play (Space)";
}

addEventListener("keydown", (event) => {
  if (one("#work").hidden || !one(".review") || event.target.closest("input, select, textarea, dialog") || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (key === " " && event.target.closest("button, a, summary")) return; // presses it
  const next = one("#review-said button");
  const does = shown
    ? { " ": toggle, c: clips, arrowright: () => step(1), arrowleft: () => step(-1), ...Object.fromEntries(Object.entries(KEYS).map(([letter, decision]) => [letter, () => attempt(() => decide(decision))])) }[key]
    : { j: () => next?.click() }[key];
  if (does) { event.preventDefault(); does(); }
});
