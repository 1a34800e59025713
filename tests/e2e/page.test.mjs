// The operators' page in a headless Chromium, against a running group.
import assert from "node:assert/strict";
import test from "node:test";
import {chromium} from "playwright-core";

const url = process.env.MOEBIUS_ADMIN_URL;
const key = process.env.MOEBIUS_ADMIN_KEY;
const pictures = process.env.MOEBIUS_PICTURES;  // a folder to put them into

const headers = {"Content-Type": "application/json",
                 ...(key ? {Authorization: `Bearer ${key}`} : {})};

async function switchTo(layout) {
  const answer = await fetch(`${url}/admin/layout`, {
    method: "POST", headers, body: JSON.stringify({layout})});
  assert.equal(answer.status, 200, await answer.text());
}

async function open(options) {
  const browser = await chromium.launch({
    executablePath: process.env.MOEBIUS_CHROMIUM, args: ["--no-sandbox"]});
  const page = await browser.newPage(options);
  const trouble = [];
  page.on("console", (message) => {
    if (message.type() !== "log") trouble.push(message.text());
  });
  page.on("pageerror", (error) => trouble.push(error.message));
  page.on("requestfailed", (request) => trouble.push(request.url()));
  await page.goto(url, {waitUntil: "load"});
  if (key) {
    await page.fill("#key", key);
    await page.press("#key", "Enter");
  }
  await page.waitForSelector("#main:not([hidden])");
  return {browser, page, trouble};
}

const layoutShown = (page, layout) => page.waitForFunction(
    (name) => document.getElementById("tile-layout").textContent === name,
    layout, {polling: 20});

async function finish({browser, page, trouble}) {
  // What is under way when a page closes fails.
  page.removeAllListeners("requestfailed");
  await browser.close();
  assert.deepEqual(trouble, []);
}

test("a switch is shown within a second, in the ribbon too", async () => {
  const opened = await open({viewport: {width: 1440, height: 1000}});
  const {page} = opened;
  for (const layout of ["tp", "ep", "tp"]) {
    await switchTo(layout);
    const ended = performance.now();
    await layoutShown(page, layout.toUpperCase());
    const shown = performance.now() - ended;
    console.log(`shown ${Math.round(shown)} ms after the answer`);
    assert.ok(shown < 1000, `shown after ${shown} ms`);
  }
  const rows = await page.locator("#switches tr").allTextContents();
  assert.match(rows[0], /ep to tp/);
  assert.equal(await page.locator("#ranks .good").count(), 2);
  await finish(opened);
});

test("buttons switch and drain", async () => {
  const opened = await open({viewport: {width: 1440, height: 1000}});
  const {page} = opened;
  page.on("dialog", (dialog) => dialog.accept());
  await page.click("#layouts button:has-text('To EP')");
  await layoutShown(page, "EP");
  await page.waitForFunction(
      () => /EP: stalled/.test(document.getElementById("outcome").textContent));
  await page.click("#drain");
  await page.waitForSelector("#state:has-text('draining')");
  assert.equal((await fetch(`${url}/ready`)).status, 503);
  await page.click("#undrain");
  await page.waitForSelector("#state:has-text('ready')");
  assert.equal((await fetch(`${url}/ready`)).status, 200);
  await finish(opened);
});

for (const [width, height] of [[1440, 1180], [390, 844]]) {
  for (const colorScheme of ["light", "dark"]) {
    test(`it fits ${width} pixels, ${colorScheme}`, async () => {
      const opened = await open({viewport: {width, height}, colorScheme});
      const {page} = opened;
      const {wide, ground} = await page.evaluate(() => ({
        wide: document.documentElement.scrollWidth,
        ground: getComputedStyle(document.body).backgroundColor}));
      assert.ok(wide <= width, `it is ${wide} pixels wide`);
      assert.equal(ground, colorScheme === "dark" ? "rgb(15, 19, 25)"
                                                  : "rgb(246, 247, 249)");
      if (pictures) {
        // Long enough for lines to have a shape.
        await page.waitForTimeout(Number(process.env.MOEBIUS_PICTURE_MS));
        await page.screenshot({path: `${pictures}/page-${width}-${colorScheme}.png`,
                               fullPage: true});
      }
      await finish(opened);
    });
  }
}
