// Evaluated in the page of `tl label` by test_label_page_walks.py.
({
  /** What the page shows, beside what the server says now: name -> [shown, said]. */
  async compare() {
    const find = (selector) => [...document.querySelectorAll(selector)], read = async (path, options) => (await fetch(`api/${path}`, options)).json();
    const number = (place) => Number(place.querySelector(".number").textContent.replace(",", ""));
    const { counts, classes } = await read("state?window=none");
    const view = document.querySelector("#views [aria-current=true]").id.slice(5), tiles = find("#grid .tile");
    const ids = tiles.map((tile) => tile.imageId);
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ids }) };
    const { records } = ids.length > 0 ? await read("records", options) : { records: [] };
    const told = ({ label, status, suggestion }) => label !== null ? `labeled ${label}` :
      ({ unsure: "not sure", skipped: "skipped" })[status] ?? (suggestion !== null ? `not labeled, suggestion ${suggestion}` : "not labeled");
    const belongs = { all: () => true, labeled: ({ label }) => label !== null }[view] ?? (({ status }) => status === ({ unsure: "unsure", skipped: "skipped" }[view] ?? "open"));
    const all = { all: 120, labeled: counts.labeled, unsure: counts.unsure, skipped: counts.skipped }[view];
    return {
      tiles: [tiles.map((tile) => tile.getAttribute("aria-label").replace(/ >?\d+%$/, "")), records.map((record) => `${record.name}, ${told(record)}`)],
      strays: [records.filter((record) => !belongs(record)).map(({ id, label, status, suggestion }) => `${id} ${label} ${status} ${suggestion}`), []],
      pending: [find(".tile.pending").length, 0],
      size: all === undefined ? [0, 0] : [Number(tiles[0]?.getAttribute("aria-setsize") ?? 0), all],
      views: [["labeled", "unsure", "skipped"].map((name) => number(document.getElementById(`view-${name}`))), [counts.labeled, counts.unsure, counts.skipped]],
      classes: [find("#class-list li").map((one) => [one.querySelector(".name").textContent, number(one)]), classes.map(({ name, count }) => [name, count])],
      view: [view, view],
      banner: [document.querySelector(".banner").textContent, ""],
    };
  },
  /** In a third window, rename a class, merge it into another one, add one or undo that. `one`, `other`: places of classes. */
  async change(what, one, other) {
    const { classes } = await (await fetch("api/state?window=third")).json();
    const [name, into] = [one, other].map((place) => classes[place % classes.length].name);
    if (what === "merge" && (classes.length < 3 || name === into)) return;
    const body = { rename: { name, new_name: `${name}a` }, merge: { name, new_name: into }, add: { name: `${name}b` } }[what];
    const path = what === "undo" ? "api/undo" : "api/classes", headers = { "Content-Type": "application/json" };
    const told = { window: "third", ...(body && { do: what, ...body }) };
    await (await fetch(path, { method: "POST", headers, body: JSON.stringify(told) })).text();
  },
})
