// A clip that loops, with the person's box over it and attention as its scrubber. Clips are fetched once and fed to the video as
// they come (Media Source Extensions), so that playing begins before the last frame is encoded, and any moment can be jumped to.
import { button, draw, make } from "/page/document.js";
import { refusal } from "/page/interface.js";

const KEPT = 30; // clips that stay in memory, some 30 kB to 3 MB each
const bodies = new Map();

class Body {
  constructor(address) {
    this.parts = [];
    this.type = this.error = null;
    this.ended = false;
    this.waiting = [];
    this.fetch(address);
  }

  async fetch(address) {
    try {
      const answer = await fetch(address);
      if (!answer.ok) throw await refusal(answer);
      this.type = answer.headers.get("content-type");
      const reader = answer.body.getReader();
      for (let read = await reader.read(); !read.done; read = await reader.read()) {
        this.parts.push(read.value);
        this.wake();
      }
    } catch (error) {
      this.error = error;
      bodies.delete(address);
    }
    this.ended = true;
    this.wake();
  }

  wake() {
    for (const each of this.waiting.splice(0)) each();
  }

  async *[Symbol.asyncIterator]() {
    for (let at = 0; ; ) {
      while (at < this.parts.length) yield this.parts[at++];
      if (this.error) throw this.error;
      if (this.ended) return;
      await new Promise((resolve) => this.waiting.push(resolve));
    }
  }
}

export function prefetched(address) {
  const body = bodies.get(address) ?? new Body(address);
  bodies.delete(address);
  bodies.set(address, body); // the newest last
  while (bodies.size > KEPT) bodies.delete(bodies.keys().next().value);
  return body;
}

const once = (target, name) => new Promise((resolve) => target.addEventListener(name, resolve, { once: true }));

async function feed(video, address, isCurrent) {
  if (!window.MediaSource) { // as on some phones: what is made already plays from its own address
    video.src = address;
    return;
  }
  const body = prefetched(address);
  let buffer = null;
  const source = new MediaSource();
  const own = URL.createObjectURL(source);
  video.src = own;
  await once(source, "sourceopen");
  URL.revokeObjectURL(own);
  for await (const part of body) {
    if (!isCurrent() || source.readyState !== "open") return;
    if (buffer === null) {
      if (!MediaSource.isTypeSupported(body.type)) throw new Error(`this browser does not play ${body.type}`);
      buffer = source.addSourceBuffer(body.type);
    }
    buffer.appendBuffer(part);
    await once(buffer, "updateend");
  }
  if (isCurrent() && source.readyState === "open") source.endOfStream();
}

const at = (boxes, time) => {
  const next = boxes.findIndex((each) => each.time_s >= time);
  if (next === 0 || boxes.length === 1) return boxes[0];
  if (next < 0) return boxes.at(-1);
  const [one, two] = [boxes[next - 1], boxes[next]];
  const share = (time - one.time_s) / (two.time_s - one.time_s || 1);
  const between = (name) => one[name] + share * (two[name] - one[name]);
  return { x: between("x"), y: between("y"), w: between("w"), h: between("h") };
};

const GRACE_S = 0.3; // that a box is shown before it is first known and after it is last known

export class Player {
  // className: "target" or "candidate", whose colour it has. words: what it is called.
  constructor(className, words) {
    this.words = words;
    this.video = make("video", { muted: true, loop: true, playsInline: true, preload: "auto" });
    this.video.setAttribute("aria-label", words);
    this.frame = make("div", { className: "box", hidden: true });
    this.nothing = make("p", { className: "nothing", hidden: true });
    this.screen = make("div", { className: "screen" }, this.video, this.frame, this.nothing);
    this.bars = draw("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", "aria-hidden": "true" });
    this.head = make("span", { className: "head" });
    this.scrub = make("div", { className: "scrub", role: "slider", tabIndex: 0, "aria-label": `${words}: time`, "aria-valuemin": 0 }, this.bars, this.head);
    this.time = make("span", { className: "time" });
    this.play = button("Pause", () => this.toggle(), { className: "plain small" });
    this.tools = make("span", { className: "tools" });
    this.root = make("figure", { className: `player ${className}` }, this.screen, this.scrub, make("figcaption", {}, this.play, this.time, this.tools));
    this.shown = null;
    this.onDrawn = null; // (box in pixels of the source, seconds) => ...
    for (const name of ["timeupdate", "seeked", "play", "pause", "loadeddata", "resize"]) this.video.addEventListener(name, () => this.tick());
    for (const name of ["play", "pause"]) this.video.addEventListener(name, () => { this.play.textContent = this.video.paused ? "Play" : "Pause"; });
    new ResizeObserver(() => this.tick()).observe(this.screen);
    this.watchPointer();
  }

  // clip: { address, start, end }; boxes, width, height: as the service answers them; shares: [{ time_s, share }]; segment: [from,
  // to] of the clip that counts most; note: where there is no clip. Times are seconds of the video.
  show({ clip = null, boxes = [], width = 0, height = 0, fps = null, shares = [], segment = null, from = null, note = "" }) {
    const same = this.shown?.clip?.address === clip?.address && clip !== null;
    this.shown = { clip, boxes, width, height, fps: fps || 12, shares, segment, range: null };
    this.nothing.hidden = clip !== null;
    this.nothing.textContent = note;
    this.scrub.hidden = clip === null;
    this.drawBars();
    if (clip === null) {
      this.video.removeAttribute("src");
      delete this.video.dataset.clip;
      this.video.load();
      this.frame.hidden = true;
      return;
    }
    if (same) {
      if (from !== null) this.seek(from);
      return;
    }
    const shown = this.shown;
    this.video.dataset.clip = clip.address;
    const isCurrent = () => this.shown?.clip?.address === clip.address;
    feed(this.video, clip.address, isCurrent).catch((error) => {
      if (!isCurrent()) return;
      this.nothing.hidden = false;
      this.nothing.textContent = error.message;
    });
    this.video.addEventListener("loadedmetadata", () => { if (from !== null && this.shown === shown) this.seek(from); }, { once: true });
    this.video.play().catch(() => {}); // a browser that lets nothing play by itself shows the first frame
  }

  // Until it is known what comes: nothing of what was shown before.
  wait() {
    this.show({ note: "…" });
  }

  get now() {
    return (this.shown?.clip?.start ?? 0) + this.video.currentTime;
  }

  get length() {
    const { start, end } = this.shown.clip;
    return Number.isFinite(this.video.duration) && this.video.duration > 0 ? this.video.duration : end - start;
  }

  seek(time) {
    this.video.currentTime = Math.min(Math.max(0, time - this.shown.clip.start), Math.max(0, this.length - 0.01));
  }

  // Only this stretch, again and again; null: all of it.
  repeat(range) {
    if (!this.shown?.clip) return;
    this.shown.range = range;
    if (range) this.seek(range[0]);
  }

  toggle(playing = this.video.paused) {
    if (!this.shown?.clip) return;
    if (playing) this.video.play().catch(() => {});
    else this.video.pause();
  }

  step(frames) {
    if (!this.shown?.clip) return;
    this.toggle(false);
    const length = this.length;
    const time = this.video.currentTime + frames / this.shown.fps;
    this.video.currentTime = time < 0 ? Math.max(0, length - 1 / this.shown.fps) : time >= length ? 0 : time;
  }

  drawBars() {
    const { clip, shares, segment } = this.shown;
    if (!clip) return;
    const x = (time) => (1000 * (time - clip.start)) / (clip.end - clip.start);
    const parts = segment ? [draw("rect", { class: "segment", x: x(segment[0]), y: 0, width: Math.max(4, x(segment[1]) - x(segment[0])), height: 100 })] : [];
    const wide = Math.max(3, shares.length > 1 ? (x(shares.at(-1).time_s) - x(shares[0].time_s)) / (shares.length - 1) - 1 : 8);
    for (const each of shares) parts.push(draw("rect", { class: "share", x: x(each.time_s), y: 100 - 96 * each.share, width: Math.min(wide, 14), height: 96 * each.share }));
    this.bars.replaceChildren(...parts);
  }

  tick() {
    const shown = this.shown;
    if (!shown?.clip) return;
    const now = this.now;
    if (shown.range && (now > shown.range[1] || now < shown.range[0] - 0.1) && !this.video.paused) this.seek(shown.range[0]);
    const length = this.length;
    this.head.style.left = `${Math.min(100, (100 * this.video.currentTime) / (length || 1))}%`;
    this.time.textContent = `${now.toFixed(2)} s of ${(shown.clip.start + length).toFixed(1)}`;
    this.scrub.setAttribute("aria-valuemax", length.toFixed(1));
    this.scrub.setAttribute("aria-valuenow", this.video.currentTime.toFixed(2));
    this.scrub.setAttribute("aria-valuetext", `${now.toFixed(2)} seconds`);
    this.placeBox(now);
    if (!this.video.paused && !this.frameAsked) {
      this.frameAsked = true;
      requestAnimationFrame(() => { this.frameAsked = false; this.tick(); });
    }
  }

  // Where the picture is on the screen, in pixels: it keeps its shape within what room there is.
  get area() {
    const { clientWidth, clientHeight } = this.screen;
    const [width, height] = [this.video.videoWidth || 1, this.video.videoHeight || 1];
    const scale = Math.min(clientWidth / width, clientHeight / height);
    return { left: (clientWidth - width * scale) / 2, top: (clientHeight - height * scale) / 2, width: width * scale, height: height * scale };
  }

  placeBox(now) {
    const { boxes, width, height } = this.shown;
    const known = boxes.length > 0 && width > 0 && now >= boxes[0].time_s - GRACE_S && now <= boxes.at(-1).time_s + GRACE_S;
    this.frame.hidden = !known;
    if (known) this.outline(at(boxes, now), width, height);
  }

  outline(box, width, height) {
    const area = this.area;
    const [x, y] = [area.width / width, area.height / height];
    Object.assign(this.frame.style, { left: `${area.left + box.x * x}px`, top: `${area.top + box.y * y}px`, width: `${box.w * x}px`, height: `${box.h * y}px` });
  }

  watchPointer() {
    const dragged = (element, moved, ended) => {
      element.addEventListener("pointerdown", (event) => {
        if (event.button !== 0 || !this.shown?.clip) return;
        if (moved(event, true) === false) return;
        element.setPointerCapture(event.pointerId);
        const move = (later) => moved(later, false);
        element.addEventListener("pointermove", move);
        element.addEventListener("pointerup", (later) => { element.removeEventListener("pointermove", move); ended?.(later); }, { once: true });
      });
    };
    dragged(this.scrub, (event) => {
      const { left, width } = this.scrub.getBoundingClientRect();
      this.toggle(false);
      this.shown.range = null;
      this.video.currentTime = Math.min(Math.max(0, ((event.clientX - left) / width) * this.length), this.length - 0.01);
    });
    this.scrub.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1, ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
      if (by) { event.preventDefault(); event.stopPropagation(); this.step(by); }
    });
    let begun = null;
    let box = null;
    dragged(this.screen, (event, first) => {
      if (!this.onDrawn) return false;
      const { left, top } = this.screen.getBoundingClientRect();
      const area = this.area;
      const inside = (value, most) => Math.min(Math.max(0, value), most);
      const point = [inside(event.clientX - left - area.left, area.width), inside(event.clientY - top - area.top, area.height)];
      if (first) { event.preventDefault(); this.toggle(false); begun = point; }
      const [x, y] = [this.shown.width / area.width, this.shown.height / area.height];
      box = { x: Math.min(begun[0], point[0]) * x, y: Math.min(begun[1], point[1]) * y, w: Math.abs(point[0] - begun[0]) * x, h: Math.abs(point[1] - begun[1]) * y };
      this.frame.hidden = false;
      this.outline(box, this.shown.width, this.shown.height);
      return true;
    }, () => { if (box && box.w >= 8 && box.h >= 8) this.onDrawn([box.x, box.y, box.w, box.h].map(Math.round), this.now); });
  }
}
