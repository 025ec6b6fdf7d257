// Drives a page of many images in headless Chromium, by keys first of all: reads a job {npm, chromium, url, steps} from
// the file in argv, prints {outputs, requests, errors} as JSON. See web_driver.py.
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const job = JSON.parse(readFileSync(process.argv[2], "utf8"));
const require = createRequire(`${job.npm}/`);
const { chromium } = require("playwright-core");
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath: job.chromium, args });
const context = await browser.newContext({
  viewport: { width: job.width ?? 1280, height: job.height ?? 900 }, colorScheme: job.scheme ?? "light", reducedMotion: job.motion ?? "no-preference",
});
// A slow server: each request and each answer is late by a random time of up to `lag` ms.
const late = () => new Promise((resolve) => setTimeout(resolve, Math.random() * job.lag));
if (job.lag) await context.route(/\/api\/(?!events)/, async (route) => {
  try {
    await late();
    const response = await route.fetch();
    await late();
    await route.fulfill({ response });
  } catch {
    await route.abort("connectionrefused").catch(() => {}); // the server or the window is gone
  }
});
const requests = [], errors = [], windows = [], started = [];
const waiting = new Set(); // requests of the API without an answer yet
let page;

async function open(url) {
  page = await context.newPage();
  page.setDefaultTimeout(30_000);
  page.on("request", (request) => {
    requests.push(request.url());
    if (/\/api\/(?!events)/.test(request.url())) waiting.add(request);
  });
  for (const end of ["requestfinished", "requestfailed"]) page.on(end, (request) => waiting.delete(request));
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && errors.push(`${message.text()} ${message.location().url}`));
  page.on("dialog", (dialog) => (errors.push(`dialog: ${dialog.message()}`), dialog.dismiss()));
  await page.goto(url);
  windows.push(page);
}

/** Wait until all that was done is saved, and all that follows at once is shown. */
async function settle() {
  const ends = Date.now() + 60_000;
  for (let calm = 0; calm < 4; calm = waiting.size === 0 ? calm + 1 : 0) {
    if (Date.now() > ends) throw new Error(`no answer: ${[...waiting].map((one) => one.url())}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const doings = {
  press: async ({ keys }) => {
    for (const key of keys) await page.keyboard.press(key);
  },
  // Labels `count` images one after the other, as a person who reads their names: `keys` are by a part of the name.
  decide: async ({ count, keys }) => {
    for (let n = 0; n < count; n++) {
      const tile = await page.waitForSelector("#grid .tile.active:not([title=''])"), name = await tile.getAttribute("title");
      await page.keyboard.press(Object.entries(keys).find(([part]) => name.includes(part))[1]);
      await page.waitForFunction((before) => document.querySelector("#grid .tile.active")?.title !== before, name);
    }
  },
  // A key that is held down: `times` presses without a release.
  hold: async ({ key, times }) => {
    for (let n = 0; n < times; n++) await page.keyboard.down(key);
    await page.keyboard.up(key);
  },
  type: ({ text }) => page.keyboard.type(text),
  fill: ({ selector, value }) => page.fill(selector, value),
  click: ({ selector }) => page.click(selector),
  visible: ({ selector }) => page.waitForSelector(selector).then(() => null),
  // Waits until the text of an element contains another, and gives the whole.
  until: async ({ selector, text }) => {
    const read = () => page.textContent(selector).catch(() => "");
    const found = ([place, wanted]) => document.querySelector(place)?.textContent.includes(wanted);
    await page.waitForFunction(found, [selector, text]).catch(async () => {
      throw new Error(`${selector} has no ${JSON.stringify(text)}: ${await read()}`);
    });
    return read();
  },
  text: ({ selector }) => page.textContent(selector),
  texts: ({ selector }) => page.locator(selector).allTextContents(),
  attribute: ({ selector, name }) => page.getAttribute(selector, name),
  attributes: ({ selector, name }) => page.$$eval(selector, (found, name) => found.map((one) => one.getAttribute(name)), name),
  html: ({ selector }) => page.innerHTML(selector),
  evaluate: ({ code }) => page.evaluate(code),
  // Waits until `code` gives something, and gives it.
  when: async ({ code }) => {
    for (const ends = Date.now() + 30_000; ; await page.waitForTimeout(50)) {
      const found = await page.evaluate(code);
      if (found) return found;
      if (Date.now() > ends) throw new Error("never so");
    }
  },
  settle,
  // Waits until `code` gives equal pairs {name: [one, other]}, and gives the last ones.
  agree: async ({ code }) => {
    for (const ends = Date.now() + 30_000; ; await page.waitForTimeout(300)) {
      const pairs = await page.evaluate(code);
      if (Date.now() > ends || Object.values(pairs).every(([one, other]) => JSON.stringify(one) === JSON.stringify(other))) return pairs;
    }
  },
  pause: ({ milliseconds }) => page.waitForTimeout(milliseconds),
  // Lets no requests of a window through that match a pattern, or lets them again.
  block: ({ pattern }) => page.route(pattern, (route) => route.abort()),
  unblock: ({ pattern }) => page.unroute(pattern),
  // Lets requests that match a pattern wait for ever.
  stall: ({ pattern }) => page.route(pattern, () => {}),
  delay: ({ pattern, milliseconds }) => page.route(pattern, async (route) => {
    await new Promise((resolve) => setTimeout(resolve, milliseconds));
    await route.continue();
  }),
  window: ({ url }) => open(url),
  // A copy of the window, as of "Duplicate tab".
  copy: async () => {
    const [copied] = await Promise.all([context.waitForEvent("page"), page.evaluate(() => void window.open(location.href))]);
    windows.push((page = copied));
  },
  reload: () => page.reload().then(() => null),
  // Closes a window as a person does, so that the page may ask first.
  leave: () => page.close({ runBeforeUnload: true }).then(() => new Promise((resolve) => setTimeout(resolve, 500))),
  size: ({ width, height }) => page.setViewportSize({ width, height }),
  switch: ({ number }) => {
    page = windows[number];
    return page.bringToFront();
  },
  signal: ({ pid, name }) => void process.kill(pid, name),
  // Starts a command, and opens the link that its first line tells as {"link": ...} in a new window.
  spawn: async ({ command, cwd, env }) => {
    const child = spawn(command[0], command.slice(1), { cwd, env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "inherit"] });
    started.push(child);
    let said = "";
    for await (const chunk of child.stdout) {
      said += chunk;
      if (said.includes("\n")) break;
    }
    await open(JSON.parse(said.split("\n")[0]).link);
  },
  axe: async () => {
    await page.evaluate(readFileSync(require.resolve("axe-core/axe.min.js"), "utf8"));
    const { violations } = await page.evaluate(() => axe.run(document));
    return violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`);
  },
};

const outputs = [];
let now = null;
try {
  await open(job.url);
  await page.waitForSelector(job.ready ?? "#views button");
  for (const step of job.steps) outputs.push((await doings[(now = step).do](step)) ?? null);
  if (now?.do !== "leave") await doings[(now = { do: "settle" }).do](); // or the end of the browser would cut it off
} catch (error) {
  errors.push(`${error} at ${JSON.stringify(now)} (message: ${await page?.textContent(".toast").catch(() => "")})`);
}
console.log(JSON.stringify({ outputs, requests, errors }));
await browser.close();
for (const child of started) child.kill();
