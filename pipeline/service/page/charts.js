// The charts below the leads: cameras by time, with a brush over times, and how all scores are distributed.
import { draw } from "/page/document.js";
import { ahead, clock, moment, offset } from "/page/times.js";

const LANE = 18; // height of a lane of leads in a camera's row, in pixels
const LANES = 8; // of a camera; more leads than that at a moment share the last one
const OTHERS = 10; // height of the strip of all other videos below the lanes
const MARK = 16; // width of a lead's mark, at least
const LEFT = 92; // room for names of cameras
const BOTTOM = 22; // room for times
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10080, 43200].map((minutes) => minutes * 60000);

const title = (words) => draw("title", {}, words);

// At round times of a zone.
function ticks(from, to, most, zone) {
  const step = STEPS.find((each) => (to - from) / each <= most) ?? (to - from) / most;
  const found = [];
  const by = ahead(from, zone);
  for (let time = Math.ceil((from + by) / step) * step - by; time <= to; time += step) found.push(time);
  return found;
}

// The rows of the chart, top to bottom: leads of one moment stand below each other, the better ones on top. marks: [{ camera, rank,
// left, right }] in pixels, rank null for what is no lead. Gives leads their lanes, and returns [{ camera, y, height }].
export function laidOut(cameras, marks) {
  let y = 0;
  return cameras.map((camera) => {
    const lanes = [];
    const leads = marks.filter((each) => each.camera === camera && each.rank !== null).sort((one, other) => one.rank - other.rank);
    for (const mark of leads) {
      const free = lanes.findIndex((lane) => lane.every((each) => each.right < mark.left || mark.right < each.left));
      mark.lane = free >= 0 ? free : Math.min(lanes.length, LANES - 1);
      (lanes[mark.lane] ??= []).push(mark);
    }
    const row = { camera, y, height: Math.max(1, lanes.length) * LANE + OTHERS };
    y += row.height;
    return row;
  });
}

// [svg, axis]: of the rows, which may scroll, and of the times below them. points: of the service's timeline. decisionOf, isShown: of a video id. chosen: the video that is looked at. range: [from, to] in
// ms, or null. zone: of the times below; zones: of cameras, by id. does: { choose(video id), brush([from, to] or null) }.
export function timeline([svg, axis], { cameras, points }, { decisionOf, isShown, chosen, range, zone, zones, does }) {
  const timed = points.filter((each) => each.seen_from !== null);
  const width = Math.max(300, svg.parentElement.clientWidth);
  const sized = (each, height) => { for (const [name, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, width, height })) each.setAttribute(name, value); };
  sized(axis, BOTTOM);
  axis.replaceChildren();
  if (timed.length === 0) {
    sized(svg, BOTTOM + 8);
    svg.replaceChildren(draw("text", { x: 8, y: 18, class: "axis" }, "no video has a time"));
    return;
  }
  const times = timed.flatMap((each) => [Date.parse(each.seen_from), Date.parse(each.seen_to)]);
  let [from, to] = [Math.min(...times), Math.max(...times)];
  const room = Math.max((to - from) * 0.02, 30000);
  [from, to] = [from - room, to + room];
  const x = (time) => LEFT + ((width - LEFT - 8) * (time - from)) / (to - from);
  const time = (place) => from + ((place - LEFT) * (to - from)) / (width - LEFT - 8);
  const marks = [...timed].reverse().map((each) => { // the best last, on top
    const [first, last] = [x(Date.parse(each.seen_from)), x(Date.parse(each.seen_to))];
    const wide = Math.max(each.rank === null ? 3 : MARK, last - first);
    const middle = (first + last) / 2;
    return { each, rank: each.rank, camera: each.camera_id, left: middle - wide / 2, right: middle + wide / 2 };
  });
  const rows = laidOut(cameras, marks);
  const bottom = rows.at(-1).y + rows.at(-1).height;
  sized(svg, bottom);
  const parts = rows.flatMap((row, at) => {
    const name = row.camera ?? "no camera";
    return [draw("rect", { class: at % 2 ? "row odd" : "row", x: LEFT, y: row.y, width: width - LEFT - 8, height: row.height }),
      draw("text", { class: "axis", x: LEFT - 6, y: row.y + LANE / 2 + 5, "text-anchor": "end" }, name.length > 12 ? `…${name.slice(-11)}` : name, title(name))];
  });
  for (const each of ticks(from, to, Math.max(2, Math.floor((width - LEFT) / 90)), zone)) {
    const words = clock(each, zone, false);
    const midnight = words.endsWith("00:00");
    parts.push(draw("line", { class: "tick", x1: x(each), x2: x(each), y1: 0, y2: bottom }));
    axis.append(draw("text", { class: "axis", x: x(each), y: BOTTOM - 7, "text-anchor": "middle" }, midnight ? words.slice(5, 10) : words.slice(11)));
  }
  if (range) parts.push(draw("rect", { class: "brush", x: x(range[0]), y: 0, width: Math.max(1, x(range[1]) - x(range[0])), height: bottom }));
  const row = new Map(rows.map((each) => [each.camera, each]));
  svg.replaceChildren(...parts, ...marks.map((mark) => drawMark(mark, row.get(mark.camera), { decisionOf, isShown, chosen, zones, does })));
  keepInView(svg, marks.find((mark) => mark.each.video_id === chosen), row);
  svg.setAttribute("aria-label", `${points.length} videos of ${cameras.length} cameras from ${clock(from, zone)} to ${clock(to, zone)} ${offset(to, zone)}; ${points.filter((each) => each.rank !== null).length} are leads`);
  brushable(svg, { time, height: bottom, does });
}

// Many leads of one moment make a chart that scrolls: the one that is looked at is never out of sight.
function keepInView(svg, mark, rows) {
  if (!mark || mark.rank === null) return;
  const room = svg.parentElement;
  const top = rows.get(mark.camera).y + mark.lane * LANE;
  if (top < room.scrollTop) room.scrollTop = top;
  else if (top + LANE > room.scrollTop + room.clientHeight) room.scrollTop = top + LANE - room.clientHeight;
}

function drawMark({ each, rank, lane, left, right }, row, { decisionOf, isShown, chosen, zones, does }) {
  const isLead = rank !== null;
  const [y, tall] = isLead ? [row.y + lane * LANE + 2, LANE - 3] : [row.y + row.height - OTHERS + 3, OTHERS - 5];
  const kinds = ["mark", isLead ? "lead" : "other", decisionOf(each.video_id) ?? "", each.video_id === chosen ? "chosen" : "", isLead && !isShown(each.video_id) ? "away" : ""];
  const mark = draw("rect", {
    class: kinds.filter(Boolean).join(" "), x: left, y, width: right - left, height: tall, rx: isLead ? 3 : 1,
    "fill-opacity": isLead ? 1 : Math.max(0.12, Math.min(1, each.score)).toFixed(2),
  }, title(`${isLead ? `lead ${each.rank}: ` : ""}${each.video_id}, ${each.camera_id ?? "no camera"}, ${moment(each.seen_from, zones.get(each.camera_id))}, score ${each.score.toFixed(3)}`));
  const words = isLead ? draw("text", { class: "rank", x: (left + right) / 2, y: y + tall / 2 + 4, "text-anchor": "middle" }, each.rank) : null;
  const group = draw("g", {}, mark, words);
  if (isLead) group.addEventListener("click", () => does.choose(each.video_id));
  return group;
}

function brushable(svg, { time, height, does }) {
  svg.onpointerdown = (event) => {
    const left = svg.getBoundingClientRect().left;
    const begun = event.clientX - left;
    if (begun < LEFT || event.button !== 0) return;
    const drawn = draw("rect", { class: "brush", x: begun, y: 0, width: 0, height });
    const move = (later) => {
      if (!drawn.isConnected) svg.append(drawn);
      const now = Math.max(LEFT, later.clientX - left);
      drawn.setAttribute("x", Math.min(begun, now));
      drawn.setAttribute("width", Math.abs(now - begun));
    };
    const end = (later) => {
      removeEventListener("pointermove", move);
      drawn.remove();
      const now = Math.max(LEFT, later.clientX - left);
      if (Math.abs(now - begun) > 6) does.brush([time(Math.min(begun, now)), time(Math.max(begun, now))].map(Math.round));
      else if (!later.target.closest("g")) does.brush(null);
    };
    addEventListener("pointermove", move);
    addEventListener("pointerup", end, { once: true });
  };
}

// Counts on a logarithmic scale, since nearly all scores are low. chosen: the score of the lead that is looked at. cut: below which
// no lead is shown, or null.
export function histogram(svg, { edges, counts, scored, lowest_lead: lowest }, chosen, cut) {
  const [width, height, left] = [360, 120, 8];
  const [low, high] = [edges[0], edges.at(-1)];
  const x = (score) => left + ((width - 2 * left) * (score - low)) / (high - low || 1);
  const most = Math.log1p(Math.max(1, ...counts));
  const base = height - 20;
  const bars = counts.map((count, bin) => {
    const tall = (Math.log1p(count) / most) * (base - 14);
    const wide = x(edges[bin + 1]) - x(edges[bin]);
    const isOfLeads = lowest !== null && edges[bin + 1] > lowest;
    return draw("rect", { class: isOfLeads ? "bar of-leads" : "bar", x: x(edges[bin]), y: base - tall, width: Math.max(1, wide - 1), height: tall }, title(`${count} videos of ${edges[bin].toFixed(2)} to ${edges[bin + 1].toFixed(2)}`));
  });
  const parts = [...bars, draw("line", { class: "base", x1: left, x2: width - left, y1: base, y2: base })];
  if (cut !== null) parts.push(draw("rect", { class: "cut", x: left, y: 4, width: Math.max(0, x(cut) - left), height: base - 4 }));
  if (chosen !== null) parts.push(draw("line", { class: "now", x1: x(chosen), x2: x(chosen), y1: 4, y2: base }));
  for (const [score, anchor] of [[low, "start"], [(low + high) / 2, "middle"], [high, "end"]]) {
    parts.push(draw("text", { class: "axis", x: x(score), y: height - 5, "text-anchor": anchor }, score.toFixed(high - low > 5 ? 0 : 1)));
  }
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", `Scores of ${scored} videos; the leads begin at ${lowest === null ? "none" : lowest.toFixed(3)}`);
  svg.replaceChildren(...parts);
}
