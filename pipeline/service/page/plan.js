// A gallery's plan: its picture, cameras and a way over them. Without a picture, the places of cameras alone.
import { draw } from "/page/document.js";

const WIDTH = 1000; // of the drawing, in its own units
const ROOM = 40; // around cameras where there is no picture

const isPlaced = (camera) => camera.x_m !== null && camera.y_m !== null;
export const pictureOf = (gallery, plan) => `/api/v1/galleries/${encodeURIComponent(gallery)}/plan.jpg?${plan.sha256.slice(0, 8)}`;

// { place(camera) -> [x, y] in units, metres([x, y]) -> [x_m, y_m], svg } of a plan with a picture.
export function drawn(gallery, plan, words) {
  const scale = WIDTH / plan.width_m;
  const height = plan.height_m * scale;
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${height}`, class: "plan", role: "img", "aria-label": words },
    draw("image", { href: pictureOf(gallery, plan), x: 0, y: 0, width: WIDTH, height }));
  return {
    svg,
    place: (camera) => (isPlaced(camera) ? [camera.x_m * scale, height - camera.y_m * scale] : null),
    metres: (event) => {
      const box = svg.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width * plan.width_m, (box.bottom - event.clientY) / box.height * plan.height_m];
    },
  };
}

// The same without a picture, around what is placed: in metres on a plan, or on the globe.
function around(cameras, words) {
  const onPlan = cameras.filter(isPlaced);
  const known = onPlan.length > 1 ? onPlan : cameras.filter((each) => each.longitude !== null && each.latitude !== null);
  const spot = (each) => (onPlan.length > 1 ? [each.x_m, each.y_m] : [each.longitude, each.latitude]);
  if (new Set(known.map((each) => String(spot(each)))).size < 2) return null;
  const [xs, ys] = [known.map((each) => spot(each)[0]), known.map((each) => spot(each)[1])];
  const shrink = onPlan.length > 1 ? 1 : Math.cos((ys[0] * Math.PI) / 180);
  const [left, top] = [Math.min(...xs), Math.max(...ys)];
  const [wide, tall] = [(Math.max(...xs) - left) * shrink, top - Math.min(...ys)];
  const scale = (WIDTH - 5 * ROOM) / Math.max(wide, tall, 1e-9);
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${tall * scale + 3 * ROOM}`, class: "plan", role: "img", "aria-label": words });
  return { svg, place: (camera) => (known.includes(camera) ? [2 * ROOM + (spot(camera)[0] - left) * shrink * scale, 2 * ROOM + (top - spot(camera)[1]) * scale] : null) };
}

// Cameras as spots with their names, those that are not `used` pale.
export function spots(place, cameras, used) {
  return cameras.filter(place).flatMap((camera) => {
    const [cx, cy] = place(camera);
    const pale = used && !used.has(camera.camera_id) ? " pale" : "";
    const right = cx > WIDTH * 0.8;
    return [draw("circle", { cx, cy, r: 12, class: `spot${pale}` }), draw("text", { x: right ? cx - 18 : cx + 18, y: cy - 12, class: `spot-name${pale}`, "text-anchor": right ? "end" : "start" }, camera.name ?? camera.camera_id)];
  });
}

// The way of a case over the cameras of its gallery; null where too few of them have a place.
export function drawWay(gallery, plan, cameras, path) {
  const known = new Map(cameras.map((each) => [each.camera_id, each]));
  const used = path.appearances.map((each) => known.get(each.camera_id)).filter(Boolean);
  const words = `Plan with the path over ${new Set(used).size} cameras`;
  const on = plan && used.some(isPlaced) ? drawn(gallery, plan, words) : around(used, words);
  if (on === null) return null;
  const bad = new Set(path.legs.filter((leg) => leg.impossible).flatMap((leg) => [`${leg.start}\n${leg.end}`]));
  const placed = path.appearances.map((each) => [each, known.get(each.camera_id)]).filter(([, camera]) => camera && on.place(camera));
  const lines = placed.slice(1).map(([each, camera], before) => {
    const [[x1, y1], [x2, y2]] = [on.place(placed[before][1]), on.place(camera)];
    return draw("line", { x1, y1, x2, y2, class: bad.has(`${placed[before][0].video_id}\n${each.video_id}`) ? "way bad" : "way" });
  });
  on.svg.append(...lines, ...spots(on.place, cameras, new Set(placed.map(([each]) => each.camera_id))));
  return on.svg;
}
