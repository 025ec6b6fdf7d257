// Drives a page in headless Chromium: reads a job {npm, chromium, url, steps} from the file in argv, prints
// {outputs, requests, errors} as JSON. See web_driver.py.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const job = JSON.parse(readFileSync(process.argv[2], "utf8"));
const require = createRequire(`${job.npm}/`);
const { chromium } = require("playwright-core");
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath: job.chromium, args });
const context = await browser.newContext({ viewport: { width: job.width ?? 1280, height: 900 }, bypassCSP: false });
const page = await context.newPage();
page.setDefaultTimeout(60_000);
const requests = [], errors = [];
page.on("request", (request) => requests.push(request.url()));
page.on("pageerror", (error) => errors.push(String(error)));
page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
page.on("dialog", (dialog) => (errors.push(`dialog: ${dialog.message()}`), dialog.dismiss()));

const finished = () => page.waitForFunction(() =>
  !document.getElementById("work").hidden && document.getElementById("cancel").hidden);

async function csv() {
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#csv")]);
  return readFileSync(await download.path(), "utf8");
}

const doings = {
  files: async ({ names, wait = true }) => {
    await page.setInputFiles("#files", names);
    if (wait) await finished();
  },
  drop: async ({ names }) => {
    const files = names.map((name) => [name.split("/").at(-1), readFileSync(name).toString("base64")]);
    await page.evaluate((given) => {
      const data = new DataTransfer();
      for (const [name, text] of given) {
        data.items.add(new File([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], name));
      }
      document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    }, files);
    await finished();
  },
  open: async ({ name }) => {
    await page.setInputFiles("#model-file", name);
    await page.waitForFunction((stem) => document.getElementById("title").textContent === stem ||
      document.getElementById("notice").classList.contains("bad"), name.split("/").at(-1).replace(".onnx", ""));
  },
  delay: ({ path, milliseconds }) => page.route(`**${path}`, async (route) => {
    await new Promise((resolve) => setTimeout(resolve, milliseconds));
    await route.continue().catch(() => {}); // canceled meanwhile
  }),
  finished,
  csv,
  click: ({ selector }) => page.click(selector),
  press: ({ key }) => page.keyboard.press(key),
  select: ({ selector, value }) => page.selectOption(selector, value).then(finished),
  check: ({ selector }) => page.check(selector).then(finished),
  choose: ({ selector, value }) => page.selectOption(selector, value),
  fill: ({ selector, value }) => page.fill(selector, value),
  visible: ({ selector }) => page.waitForSelector(selector),
  text: ({ selector }) => page.textContent(selector),
  texts: ({ selector }) => page.locator(selector).allTextContents(),
  evaluate: ({ code }) => page.evaluate(code),
  html: ({ selector }) => page.innerHTML(selector),
  attribute: ({ selector, name }) => page.getAttribute(selector, name),
  address: () => page.url(),
  axe: async () => {
    await page.evaluate(readFileSync(require.resolve("axe-core/axe.min.js"), "utf8"));
    const { violations } = await page.evaluate(() => axe.run(document));
    return violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`);
  },
};

const outputs = [];
try {
  await page.goto(job.url);
  await page.waitForSelector(job.ready ?? "#choose:not([disabled])");
  for (const step of job.steps) outputs.push((await doings[step.do](step)) ?? null);
} catch (error) {
  errors.push(`${error} (notice: ${await page.textContent("#notice").catch(() => "")})`);
}
// A file of JavaScript and not of the page is what axe is, which adds a style of its own that the page's policy refuses.
console.log(JSON.stringify({ outputs: outputs.map((one) => (typeof one === "object" && !Array.isArray(one) ? null : one)), requests, errors }));
await browser.close();
