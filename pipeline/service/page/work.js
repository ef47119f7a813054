// The screens beside triage: which one an address opens, and what they share.
import { make, one, show } from "/page/document.js";
import { openCase, openCases } from "/page/cases.js";
import { openReview } from "/page/review.js";
import { openQuality } from "/page/quality.js";
import { openAdmin } from "/page/admin.js";

const SCREENS = {
  cases: { words: "Cases", right: "look", opens: openCases },
  case: { words: null, right: "look", opens: openCase },
  review: { words: "Review", right: "confirm", opens: openReview },
  quality: { words: "Quality", right: "look", opens: openQuality },
  admin: { words: "Admin", right: "oversee", opens: openAdmin },
};
let me = { person: "", role: "", rights: [] };
let galleries = [];

// Who has signed in and what there is; null: nobody.
export function drawPages(person, named) {
  me = person ?? { person: "", role: "", rights: [] };
  galleries = named;
  const links = Object.entries(SCREENS).filter(([, screen]) => screen.words && me.rights.includes(screen.right));
  one("#pages").replaceChildren(...links.map(([page, screen]) => make("a", { href: `#page=${page}` }, screen.words)));
  one("#pages").hidden = person === null;
}

export const isScreen = (asked) => asked.get("page") in SCREENS;

export async function openScreen(asked) {
  const screen = SCREENS[asked.get("page")];
  const main = one("#work");
  for (const link of one("#pages").children) {
    if (link.hash === `#page=${asked.get("page") === "case" ? "cases" : asked.get("page")}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  one("#where").textContent = "";
  if (!me.rights.includes(screen.right)) throw new Error(`this page is not for the role ${me.role}`);
  await screen.opens(main, asked, { me, galleries });
  show("work");
}

export function leaveScreens() {
  for (const link of one("#pages").children) link.removeAttribute("aria-current");
}
