"use strict";
// Tables: a click on a column header sorts by it, a second click reverses the order.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("th")];
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
    const rows = [...table.tBodies[0].rows];
    const known = rows.filter((row) => value(row) !== "-");
    known.sort((a, b) => compare(value(a), value(b)) * (falls ? -1 : 1));
    table.tBodies[0].append(...known, ...rows.filter((row) => value(row) === "-"));  // missing values stay last
  }));
}
// Confusion matrices: a click on a cell shows its images, a second click hides them.
for (const matrix of document.querySelectorAll(".matrix")) {
  matrix.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-cell]");
    if (!button) return;
    const opens = button.getAttribute("aria-pressed") !== "true";
    for (const other of matrix.querySelectorAll("button[data-cell]")) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", String(opens));
    for (const cell of matrix.querySelectorAll(".cell")) {
      cell.hidden = !(opens && cell.dataset.cell === button.dataset.cell);
    }
  });
}
