// Small helpers around the document. All text goes into it as text, never as markup.
export const one = (selector, within = document) => within.querySelector(selector);

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role" || element instanceof SVGElement) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

export const make = (tag, properties, ...children) => filled(document.createElement(tag), properties, children);

export const draw = (tag, properties, ...children) => filled(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);

export function button(words, does, properties = {}) {
  const made = make("button", { type: "button", className: "plain", ...properties }, words);
  made.addEventListener("click", does);
  return made;
}

export function picture(address, words, lazy) {
  const image = make("img", { alt: words, loading: lazy ? "lazy" : "eager", decoding: "async" });
  image.addEventListener("error", () => image.replaceWith(make("span", { className: "none", title: words }, "no picture")));
  image.src = address;
  return image;
}

export function show(name) {
  for (const each of document.querySelectorAll("main")) each.hidden = each.id !== name;
}

export function tell(sentence) {
  one("#message").textContent = sentence;
  one("#message").hidden = sentence === "";
}

// ---- the address: what a link opens

export const place = () => new URLSearchParams(location.hash.slice(1));

export function remember(fields, replace = false) {
  const text = new URLSearchParams(Object.entries(fields).filter(([, value]) => value !== null && value !== undefined && value !== ""));
  const address = `${location.pathname}${text.size ? "#" + text : ""}`;
  if (replace) history.replaceState(null, "", address);
  else if (location.hash.slice(1) !== String(text)) history.pushState(null, "", address);
}
