// Opens a report.html in headless Chromium and checks it as a reader would use it.
//   node report.cjs report.html FOLDER-FOR-PICTURES
// Needs playwright-core (NODE_PATH) and a Chromium (CHROMIUM). Prints what it saw; ends 1 on the
// first thing that is wrong, 77 where something it needs is missing.
"use strict";
const { existsSync } = require("node:fs");
const { resolve, join } = require("node:path");
const { pathToFileURL } = require("node:url");
const assert = require("node:assert/strict");

let chromium;
try {
  ({ chromium } = require("playwright-core"));
} catch {
  console.log("playwright-core is missing");
  process.exit(77);
}
const candidates = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const executablePath = candidates.find((path) => path && existsSync(path));
if (!executablePath) {
  console.log("Chromium is missing");
  process.exit(77);
}

const [page_path, pictures] = process.argv.slice(2);
const url = pathToFileURL(resolve(page_path)).href;

async function open(browser, options) {
  const context = await browser.newContext({ offline: true, ...options });
  const page = await context.newPage();
  const faults = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) faults.push(message.text());
  });
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("request", (request) => {
    const from = request.url();
    if (from !== url && !from.startsWith("data:")) faults.push(`asked for ${from}`);
  });
  await page.goto(url);
  return { page, faults, context };
}

const number = (text) => Number(text.replaceAll(",", ""));
const counted = async (page) => {
  const [shown, all] = (await page.textContent("#count")).match(/[\d,]+/g).map(number);
  return { shown, all };
};

/* Every option of every filter shows as many answers as it says, and only such. */
async function filters(page) {
  const data = JSON.parse(await page.textContent("#data")).questions;
  assert.equal((await counted(page)).all, data.length);
  for (const key of ["format", "outcome", "group", "source"]) {
    const values = await page.$$eval(`#${key} option`, (all) => all.map((o) => o.value));
    for (const value of values.filter(Boolean)) {
      if (await page.isHidden(`#${key}`)) continue;
      await page.selectOption(`#${key}`, value);
      const want = data.filter((q) => q[key] === value);
      assert.equal((await counted(page)).shown, want.length, `${key} = ${value}`);
      const ids = await page.$$eval(".card", (cards) => cards.map((card) => card.dataset.id));
      assert.ok(ids.length > 0 && ids.every((id) => want.some((q) => q.id === id)), `${key} = ${value}`);
    }
    await page.selectOption(`#${key}`, "");
  }
  const one = data[data.length - 1];
  await page.fill("#text", one.id);
  const matching = data.filter((q) =>
    [q.id, q.question, q.gold, q.before.response, q.after.response].join("\n").toLowerCase()
      .includes(one.id.toLowerCase()));
  await page.waitForFunction((n) =>
    document.getElementById("count").textContent.startsWith(`${n} of`), matching.length);
  await page.fill("#text", "no such words anywhere");
  await page.waitForFunction(() => document.querySelectorAll(".card").length === 0);
  await page.fill("#text", "");
  await page.waitForFunction(() => document.querySelectorAll(".card").length > 0);
  return data.length;
}

/* The slowest filter, from the change to the next frame that is drawn. */
async function slowest(page) {
  return page.evaluate(async () => {
    const drawn = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    let most = 0;
    for (const select of document.querySelectorAll(".filters select")) {
      for (const option of [...select.options].reverse()) {
        const start = performance.now();
        select.value = option.value;
        select.dispatchEvent(new Event("change"));
        await drawn();
        most = Math.max(most, performance.now() - start);
      }
    }
    return most;
  });
}

async function main() {
  const browser = await chromium.launch({
    executablePath,
    args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync"],
  });
  for (const [name, width] of [["narrow", 400], ["wide", 1400]]) {
    for (const colorScheme of ["light", "dark"]) {
      const start = Date.now();
      const { page, faults, context } = await open(browser, { viewport: { width, height: 900 }, colorScheme });
      await page.waitForSelector(".card");
      const ready = Date.now() - start;
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(overflow <= 0, `${name}: the page is ${overflow} px wider than the window`);
      await page.screenshot({ path: join(pictures, `${name}-${colorScheme}-top.png`) });
      await page.screenshot({ path: join(pictures, `${name}-${colorScheme}-all.png`), fullPage: true });
      const small = await page.$$eval(".chart text", (all) =>
        Math.min(...all.map((text) => text.getBoundingClientRect().height)));
      console.log(`${name} ${colorScheme}: ready in ${ready} ms, smallest text of a chart ${small.toFixed(1)} px high`);
      if (name === "wide" && colorScheme === "light") {
        const n = await filters(page);
        console.log(`${n} answers, slowest filter ${(await slowest(page)).toFixed(0)} ms`);
        const before = await page.$$eval(".card", (cards) => cards.length);
        await page.$eval("#end", (end) => end.scrollIntoView());
        if (n > before) await page.waitForFunction((m) => document.querySelectorAll(".card").length > m, before);
        const play = page.locator(".card button", { hasText: "play frames" }).first();
        if (await play.count()) {
          await play.click();
          await page.waitForSelector(".card .frame");
        }
        const background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
        console.log(`background ${background}`);
      }
      assert.deepEqual(faults, [], `${name}, ${colorScheme}`);
      await context.close();
    }
  }
  await browser.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
