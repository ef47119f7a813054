"use strict";
// Clips of the report play while the pointer rests on them, and go on when they are clicked or Enter or Space is pressed; arrows step,
// and the bar of attention below is where they are. Without this script the browser's own controls do.
const STEP_S = 0.1;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

for (const figure of document.querySelectorAll(".plays")) {
  const video = figure.querySelector("video");
  const bar = figure.querySelector(".scrub");
  const now = bar.appendChild(document.createElement("span"));
  const button = document.createElement("button");
  const seconds = Number(bar.dataset.seconds);
  now.className = "now";
  button.type = "button";
  button.className = "play";
  button.setAttribute("aria-label", `${video.getAttribute("aria-label")}: play; arrows step`);
  button.setAttribute("aria-pressed", "false");
  video.controls = false;
  video.after(button);
  let kept = false; // goes on without the pointer

  const place = () => now.style.setProperty("left", `${Math.min(100, (100 * video.currentTime) / seconds)}%`);
  const follow = () => {
    place();
    if (!video.paused) requestAnimationFrame(follow);
  };
  const play = (on) => (on ? video.play().catch(() => undefined) : video.pause());
  const keep = (on) => {
    kept = on;
    button.setAttribute("aria-pressed", String(on));
    play(on);
  };
  const go = (time) => {
    keep(false);
    video.currentTime = Math.max(0, Math.min(time, video.duration || seconds));
  };
  video.addEventListener("play", follow);
  video.addEventListener("timeupdate", place);
  button.addEventListener("click", () => keep(!kept));
  button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && !calm.matches && play(true));
  button.addEventListener("pointerleave", () => kept || play(false));
  button.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -STEP_S, ArrowRight: STEP_S, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    go(video.currentTime + step);
  });
  const scrub = (event) => {
    const { left, width } = bar.getBoundingClientRect();
    go((seconds * (event.clientX - left)) / width);
  };
  bar.addEventListener("pointerdown", (event) => {
    bar.setPointerCapture(event.pointerId);
    scrub(event);
  });
  bar.addEventListener("pointermove", (event) => event.buttons && scrub(event));
  place();
}
