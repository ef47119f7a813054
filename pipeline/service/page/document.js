// Small helpers around the document.
export const one = (selector) => document.querySelector(selector);

export function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
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
