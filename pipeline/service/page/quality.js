// Quality: how well a gallery's index finds people, as far as that is known.
import { make } from "/page/document.js";
import { ask } from "/page/interface.js";
import { facts, galleryLinks, moment, pickedGallery, table, title, where } from "/page/parts.js";

const percent = (share) => `${(100 * share).toFixed(1)} %`;

export async function openQuality(main, asked, { galleries }) {
  const name = pickedGallery(asked, galleries);
  const found = await ask("GET", `/galleries/${encodeURIComponent(name)}/quality`);
  where(name);
  main.className = "narrow";
  main.replaceChildren(title("Quality"), ...galleryLinks("quality", name, galleries),
    part("Index", facts(
      ["Version", found.index_version ?? "none yet: run jobs.index"], ["Model", make("span", { className: "code" }, found.model ?? "none")],
      ["Videos", `${found.videos.toLocaleString("en")}, ${found.not_indexed ? `${found.not_indexed.toLocaleString("en")} not in the index yet` : "all in the index"}`],
      ["Cameras that it knows", String(found.cameras_known)], ["Ranking", found.untrained ? "untrained: leads are a guess" : "trained"], ["Advice", found.advice])),
    part("Probabilities", facts(
      ["Shown", found.calibrated ? "yes" : "no"], ["Rest on", found.calibration],
      ["Likely matches in the sample", found.links === null ? null : `${found.links.toLocaleString("en")} pairs of ${found.sample.toLocaleString("en")} videos`],
      ["Of these right, estimated", found.right === null || !found.links ? null : percent(found.right)])),
    part("Calibration that came with the head", shipped(found)),
    part("What people decided", ...own(found)),
    part("Evaluation on labelled data", evaluation(found.evaluation)));
}

const part = (words, ...children) => make("section", {}, make("h3", {}, words), make("div", { className: "card" }, ...children));

function shipped({ head_calibration: known, calibrated }) {
  if (!known) return make("p", { className: "quiet" }, "None: this index was built without a trained head, or with one that knows nothing of what its scores are worth.");
  const used = known.in_use ? "yes: this gallery's own was not measured" : calibrated ? "no: this gallery's own counts" : "no: see above, no probabilities are shown";
  const count = (number) => number.toLocaleString("en");
  return make("div", { className: "stack" },
    facts(["Used in this gallery", used], ["Fitted on", `${known.fitted_on}, ${known.date}`],
      ["People and pairs of videos", `${count(known.people)} people; ${count(known.same_pairs)} pairs of one person, ${count(known.different_pairs)} of two`],
      ["Probabilities off, in the mean", `${(100 * known.error).toFixed(1)} percentage points`],
      ["Cost (Cllr)", `${known.cost.toFixed(2)} bits; ${known.least_cost.toFixed(2)} at best with these scores`]),
    make("p", { className: "quiet" }, "Measured on people that the fit had not seen. A cost of 0 is perfect, of 1 as good as not looking. Your cameras and people are others: what people decided, below, says more of this gallery."));
}

function own(found) {
  if (!found.judged) return [make("p", { className: "quiet" }, "Nobody has decided on leads in cases of this gallery yet. Decisions are compared here with what the probabilities said.")];
  const words = make("p", {}, `${found.judged} leads of cases were called the same or a different person.`);
  const bins = found.own.filter((each) => each.judged);
  if (!bins.length) return [words, make("p", { className: "quiet" }, "None of them had a probability.")];
  const rows = bins.map((each) => [`${each.low.toFixed(1)} to ${each.high.toFixed(1)}`, String(each.judged), each.mean_probability.toFixed(2), (each.same / each.judged).toFixed(2)]);
  return [words, table("Leads by the probability that the search gave", ["Probability", "Judged", "Said, in the mean", "Called the same"], rows),
    make("p", { className: "quiet" }, "Only leads that somebody looked at count, the best ones of each search; a few dozen in a row say something, single ones do not.")];
}

function evaluation(found) {
  if (!found) return make("p", { className: "quiet" }, "None on record. jobs.evaluate measures a model on labelled videos, in a gallery of its own.");
  return facts(["Data", found.data], ["When", `${moment(found.at)} by ${found.who}`], ["Queries", found.queries.toLocaleString("en")], ["Index", found.index_version],
    ["Mean average precision", found.mean_ap === null ? null : percent(found.mean_ap)], ["Found at rank 1", found.rank_1 === null ? null : percent(found.rank_1)]);
}
