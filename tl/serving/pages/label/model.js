// The dialog that makes a model from the labels, and says where it is.

import { byId } from "./dom.js";

export class ModelDialog {
  constructor(api, live) {
    Object.assign(this, { api, live });
    this.dialog = byId("model-dialog");
    this.#listen();
  }

  open() {
    if (!this.dialog.open) this.dialog.showModal();
  }

  /** Take up a new state; says when a model is made or was not. */
  follow(before, { model, folder }) {
    if (byId("model-name").value === "") byId("model-name").value = folder.split(/[\\/]/).findLast(Boolean)?.replace(/[^\w.-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "") || "model";
    if (before?.state !== "running" || this.dialog.open) return;
    if (model.state === "done") this.live.say(`The model is made: ${model.file}.`, { action: ["Show", () => this.open()] });
    if (model.state === "failed") this.live.fail(`No model was made: ${model.text}`);
  }

  async #ask(path, send) {
    try {
      await send(path);
    } catch (error) {
      this.live.fail(error.message);
    }
  }

  #listen() {
    byId("model-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const method = new FormData(event.target).get("method"), name = byId("model-name").value.trim();
      this.#ask("api/model", (path) => this.api.send(path, { method, name }));
    });
    byId("model-cancel").addEventListener("click", () => this.#ask("api/model/cancel", (path) => this.api.send(path, {})));
    byId("model-again").addEventListener("click", () => {
      byId("model-form").dataset.again = byId("model-file").textContent;
      byId("model-form").hidden = false;
      byId("model-done").hidden = true;
      byId("model-name").focus();
    });
    byId("model-copy").addEventListener("click", () => {
      const copied = navigator.clipboard.writeText(byId("model-command").textContent);
      copied.then(() => this.live.say("Command copied."), () => this.live.fail("The browser does not allow to copy. Select the command, and copy it."));
    });
    this.dialog.querySelector(".close").addEventListener("click", () => this.dialog.close());
  }
}
