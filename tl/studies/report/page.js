"use strict";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// Images in folded places are loaded when they are needed; an image that the page holds elsewhere is taken from there.
function load(within) {
  for (const image of all("img[data-src], img[data-from]", within)) {
    const from = image.dataset.from && document.querySelector(`img[data-uri="${image.dataset.from}"]`);
    image.src = image.dataset.src || (from && (from.dataset.src || from.getAttribute("src"))) || "";
    image.removeAttribute("data-from");
  }
}
for (const more of all("details.more")) more.addEventListener("toggle", () => load(more));
addEventListener("beforeprint", () => load(document));

// Tables: a click on a column header sorts by it, a second click reverses the order. Long tables show their first rows.
const SHOWN_ROWS = 15;
for (const table of all("table.sortable")) {
  const body = table.tBodies[0];
  const fold = () => [...body.rows].forEach((row, place) => { row.hidden = !table.dataset.all && place >= SHOWN_ROWS; });
  if (body.rows.length > SHOWN_ROWS + 3) {
    const rest = document.createElement("button");
    rest.type = "button"; rest.className = "rest"; rest.textContent = `Show all ${body.rows.length} rows`;
    rest.addEventListener("click", () => { table.dataset.all = "yes"; fold(); rest.remove(); });
    table.after(rest);
    fold();
  } else table.dataset.all = "yes";
  const heads = all("th", table.tHead);
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const falls = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falls ? "descending" : "ascending");
    const value = (row) => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
    };
    const compare = (a, b) => (typeof a === "number" && typeof b === "number")
      ? a - b
      : String(a).localeCompare(String(b), undefined, { numeric: true });
    const rows = [...body.rows];
    const known = rows.filter((row) => value(row) !== "-");
    known.sort((a, b) => compare(value(a), value(b)) * (falls ? -1 : 1));
    body.append(...known, ...rows.filter((row) => value(row) === "-"));  // missing values stay last
    fold();
  }));
}

// What is chosen, a cell of the confusion matrix, a class of the map or a range of confidence, is shown everywhere: other
// images are dimmed.
const filtered = document.querySelector(".filtered");
function choose(button, name, fits) {
  const opens = button !== null && button.getAttribute("aria-pressed") !== "true";
  for (const other of all("button[aria-pressed]")) other.setAttribute("aria-pressed", "false");
  if (opens) button.setAttribute("aria-pressed", "true");
  for (const each of all(".dot, main .gallery .card[data-cell], .strip .card[data-cell]")) {
    each.classList.toggle("dim", opens && !fits(each));
  }
  for (const cell of all(".cell")) {
    cell.hidden = !(opens && cell.dataset.cell === button.dataset.cell);
    if (!cell.hidden) load(cell);
  }
  for (const card of all(".cell .card")) card.classList.remove("dim");
  filtered.hidden = !opens;
  filtered.querySelector("span").textContent = opens ? `Shown: ${name}` : "";
}
filtered.querySelector("button").addEventListener("click", () => choose(null));
for (const button of all(".matrix button[data-cell]")) {
  button.addEventListener("click", () => choose(button, button.dataset.name, (each) => each.dataset.cell === button.dataset.cell));
}
for (const button of all(".bins button")) {
  const [from, to] = [Number(button.dataset.from), Number(button.dataset.to)];
  const fits = (each) => each.dataset.sure !== undefined && each.dataset.sure >= from && each.dataset.sure < to;
  button.addEventListener("click", () => choose(button, button.dataset.name, fits));
}
for (const button of all(".legend button")) {
  const fits = (each) => (each.dataset.class ?? each.dataset.cell.split("-")[0]) === button.dataset.class;
  button.addEventListener("click", () => choose(button, button.textContent.trim(), fits));
}

// Maps: the image under the pointer, or reached with the arrow keys, is shown with the images most similar to it.
function showMap(map) {
  const { names, dots } = JSON.parse(map.querySelector("script").textContent);
  const marks = all(".dot", map);
  const places = marks.map((mark) => mark.getAttribute("transform").match(/-?\d+/g).map(Number));
  const [plane, panel, cursor] = [".plane", ".seen", ".cursor"].map((name) => map.querySelector(name));
  const svg = plane.querySelector("svg");
  const sheet = map.querySelector(".sheet");
  const [side, columns] = [Number(map.dataset.side), Number(map.dataset.columns)];
  const made = (name, text = "", kind = "") => {
    const element = document.createElement(name);
    element.textContent = text; element.className = kind;
    return element;
  };
  const tile = (number, size) => {
    const element = made("span", "", "tile");
    const scale = size / side;
    element.style.cssText = `width: ${size}px; height: ${size}px; background-image: url(${sheet.src}); `
      + `background-size: ${columns * size}px auto; background-position: ${-(number % columns) * side * scale}px ${-Math.floor(number / columns) * side * scale}px`;
    element.setAttribute("role", "img");
    element.setAttribute("aria-label", dots[number].name);
    return element;
  };
  let current = -1;
  const show = (number) => {
    if (number === current) return;
    current = number;
    const dot = dots[number];
    cursor.setAttribute("visibility", "visible");
    cursor.setAttribute("transform", marks[number].getAttribute("transform"));
    const lines = [dot.name, [names[dot.true], dot.split].filter(Boolean).join(", ")];
    if (dot.label !== null) {
      const sure = `${Math.round(100 * dot.sure)}%`;
      lines.push(dot.label === dot.true ? `right, ${sure}` : `wrong: ${names[dot.label]} ${sure}`);
    }
    lines.push(...dot.marks);
    const near = made("div", "", "tiles");
    dot.near.forEach((other, place) => {
      const figure = made("div");
      figure.append(tile(other, 64), made("span", `${names[dots[other].true]} ${dot.likeness[place].toFixed(2)}`));
      near.append(figure);
    });
    panel.replaceChildren(tile(number, 112), ...lines.map((line) => made("div", line)), made("div", "Most similar:", "hint"), near);
    for (const card of all(".card")) card.classList.toggle("near", card.dataset.image === dot.name);
  };
  const nearest = (x, y, fits = () => true) => {
    let [best, least] = [-1, Infinity];
    places.forEach(([px, py], number) => {
      const far = (px - x) ** 2 + (py - y) ** 2;
      if (far < least && !marks[number].classList.contains("dim") && fits(px - x, py - y, number)) [best, least] = [number, far];
    });
    return [best, least];
  };
  const point = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const [number, far] = nearest(at.x, at.y);
    if (number >= 0 && far < 900) show(number);
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  plane.addEventListener("keydown", (event) => {
    const way = ways[event.key];
    if (!way) return;
    event.preventDefault();
    const [x, y] = current < 0 ? [500, 300] : places[current];
    // Within 45 degrees of the direction of the key.
    const ahead = (dx, dy) => { const along = dx * way[0] + dy * way[1]; return along > 0 && along >= Math.abs(dx * way[1] + dy * way[0]); };
    const [number] = nearest(x, y, current < 0 ? undefined : ahead);
    if (number >= 0) show(number);
  });
  const byName = new Map(dots.map((dot, number) => [dot.name, number]));
  for (const card of all(".card[data-image]")) {
    card.addEventListener("pointerenter", () => { if (byName.has(card.dataset.image)) show(byName.get(card.dataset.image)); });
  }
}
all(".map").forEach(showMap);

// The list of sections marks the one in view.
const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
if ("IntersectionObserver" in window) {
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) links.get(entry.target.id)?.classList.toggle("here", entry.isIntersecting);
  }, { rootMargin: "-10% 0px -70% 0px" });
  for (const section of all("main > section")) seen.observe(section);
}
