// A labeler at the page of `tl label`, in headless Chromium: reads a job {npm, chromium, url, answers, budget, pace,
// shots} from the file in argv, presses the key of each focused image's class, lets the head catch up every `pace`
// labels, and then makes a model. Prints {labels, seconds, estimate, press_ms, model} as JSON. See label_page.py.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const job = JSON.parse(readFileSync(process.argv[2], "utf8"));
const { chromium } = createRequire(`${job.npm}/`)("playwright-core");
const browser = await chromium.launch({
  executablePath: job.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
const page = await browser.newPage({ viewport: { width: 1440, height: 900 } });
page.setDefaultTimeout(600_000);
const errors = [];
page.on("pageerror", (error) => errors.push(String(error)));
const state = () => page.evaluate(async () => (await fetch("/api/state")).json());
const until = async (isDone) => {
  for (let now; ; await page.waitForTimeout(100)) if (isDone((now = await state()))) return now;
};
// The image that a key would label: its number and file name, once the page shows it.
const focused = (last) => page.waitForFunction((before) => {
  const grid = document.querySelector("[role=listbox][aria-activedescendant]");
  const tile = grid && document.getElementById(grid.getAttribute("aria-activedescendant"));
  return tile && tile.title && tile.id !== before ? { id: tile.id, name: tile.title } : null;
}, last).then((handle) => handle.jsonValue());

await page.goto(job.url);
await page.waitForSelector("[role=listbox]");
await until((now) => now.features.done >= now.features.total); // features first, as for a session that is opened again
await page.focus("[role=listbox]");
const started = Date.now(), pressed = [];
let last = "", labels = 0;
while (labels < job.budget) {
  const { id, name } = await focused(last);
  const before = performance.now();
  await page.keyboard.press(String(job.answers[name.split("/").at(-1)]));
  last = id;
  labels++;
  await focused(last);
  pressed.push(performance.now() - before);
  if (job.shots && [12, 60, job.budget - 1].includes(labels)) await page.screenshot({ path: `${job.shots}-${labels}.png` });
  if (labels % job.pace === 0) {
    // The head knows all labels but the latest few, as when a person takes a second for each.
    await until((now) => now.counts.labeled >= labels && (labels < 2 * job.pace || now.head?.fitted_to >= labels - 1));
  }
}
const seconds = (Date.now() - started) / 1000, { estimate, counts } = await until((now) => now.counts.labeled >= labels);
const refused = await page.evaluate(async () => {
  const body = JSON.stringify({ method: "features", name: "model" });
  const answer = await fetch("/api/model", { method: "POST", headers: { "content-type": "application/json" }, body });
  return answer.ok ? null : answer.text();
});
if (refused) errors.push(refused);
const { model } = await until((now) => refused || ["done", "failed"].includes(now.model.state));
pressed.sort((one, other) => one - other);
const press_ms = [0.5, 0.95].map((share) => Math.round(pressed[Math.floor(share * (pressed.length - 1))]));
console.log(JSON.stringify({ labels: counts.labeled, seconds, estimate, press_ms, model, errors }));
await browser.close();
