// Small helpers to build elements. Texts become text nodes, so that no file name or label is ever read as HTML.

/** An element: `props` are attributes, except `on` (listeners), `text` and `class`. */
export function el(tag, props = {}, ...children) {
  const isSvg = ["svg", "circle", "line", "text", "title", "g"].includes(tag);
  const made = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "on") for (const [event, heard] of Object.entries(value)) made.addEventListener(event, heard);
    else if (name === "text") made.textContent = value;
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null && child !== ""));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** A share for people: never 0% or 100% for what is neither. */
export function percent(share) {
  if (share > 0 && share < 0.0005) return "<0.1%";
  if (share < 1 && share >= 0.9995) return ">99.9%";
  return `${(100 * share).toFixed(1)}%`;
}

/** A number with up to four significant digits. */
export const short = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(4))) : "–");

export const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
