// The dialog in which a note is written.

import { el } from "./dom.js";

/** Ask for a note. Resolves to its text, or null if it was not to be changed. */
export function askNote(name, text) {
  const box = el("textarea", { id: "note-text", rows: "4", maxlength: "2000" });
  box.value = text;
  const form = el("form", { method: "dialog" },
    el("div", { class: "detail-head" }, el("h2", { id: "note-title", text: `Note on ${name}` })),
    el("div", { class: "note-body" }, el("label", { for: "note-text", text: "What should be remembered? It is written into the list of changes." }), box,
      el("div", { class: "row" }, el("button", { class: "primary", value: "save" }, "Save"), el("button", { type: "button", id: "note-cancel" }, "Cancel"))));
  const dialog = el("dialog", { class: "note-dialog", "aria-labelledby": "note-title" }, form);
  document.body.append(dialog);
  dialog.showModal();
  box.focus();
  return new Promise((resolve) => {
    form.querySelector("#note-cancel").addEventListener("click", () => dialog.close(""));
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        dialog.close("save");
      }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "save" ? box.value.trim() : null);
    });
  });
}
