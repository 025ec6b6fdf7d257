// Evaluated in the page of `tl review` by test_review_page_walks.py: what it shows, beside what the server says now.
(async () => {
  const read = async (path, options) => (await fetch(`api/${path}`, options)).json();
  const texts = (selector) => [...document.querySelectorAll(selector)].map((one) => one.textContent.trim());
  const state = await read("state?window=none");
  const count = [texts("#count")[0], `${state.decided} of ${state.total} decided`];
  if (document.body.dataset.view === "changes") {
    const { changes } = await read("changes");
    const made = changes.map(({ path }) => path);
    return { count, changes: [texts(".diff .path").sort(), made.sort()] };
  }
  if (document.body.dataset.view !== "problems") return { count };
  const kind = document.querySelector("#kinds [aria-current=true]").dataset.kind.split(" ")[1];
  const status = document.querySelector("#show-open").ariaPressed === "true" ? "open" : "decided";
  const ids = [...document.querySelectorAll("#list .card")].map((one) => Number(one.dataset.id));
  const { ids: listed } = await read(`list?kind=${kind}&status=${status}`);
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ids }) };
  const { records } = ids.length > 0 ? await read("records", options) : { records: [] };
  const said = ({ now, label }) => (now === null || now === label ? label : `${label} → ${now}`);
  const twins = records.map(({ twin }) => twin).filter(Boolean);
  return {
    count,
    ids: [ids, listed.slice(0, ids.length)],
    whole: [document.querySelector("#more").hidden, ids.length === listed.length],
    labels: [texts("#list .card .pair > figure:first-child .labels"), records.map(said)],
    twins: [texts("#list .card .pair > figure:nth-child(2) .label"), twins.map(({ now, label }) => now ?? `${label} (removed)`)],
    decided: [texts("#list .card .decision").length, records.filter(({ decision }) => decision).length],
    open: [texts("#kinds .number").slice(1).map((text) => (text === "✓" ? 0 : Number(text))), state.kinds.map(({ open }) => open)],
    fault: [document.querySelector("#fault").hidden, true],
  };
})()
