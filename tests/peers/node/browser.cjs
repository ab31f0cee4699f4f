// Two tabs of the demo's page in a headless browser: browser.cjs URL SCREENSHOT.
//
// Each line on stdin is said in the first tab. When the second tab shows it, a line of JSON
// tells what both tabs say about their sockets. The end of stdin takes the screenshot.
'use strict';

const readline = require('node:readline');
const { pathToFileURL } = require('node:url');

const [url, screenshot] = process.argv.slice(2);

async function tab(browser) {
  const page = await browser.newPage();
  await page.goto(url);
  await page.waitForSelector('#status[data-state=open]');
  await page.waitForFunction(() => document.querySelector('#server').textContent.length > 1);
  return page;
}

const shown = page => page.evaluate(() => ({
  state: document.querySelector('#status').dataset.state,
  since: document.querySelector('#since').dataset.since,
  reconnects: document.querySelector('#reconnects').textContent,
  socket: document.querySelector('#socket-number').textContent,
}));

async function main() {
  const { default: puppeteer } = await import(pathToFileURL(require.resolve('puppeteer-core')));
  const browser = await puppeteer.launch({
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    headless: true,
    defaultViewport: { width: 1200, height: 800 },
    args: [
      '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
      '--disable-background-networking', '--disable-component-update', '--disable-sync',
    ],
  });
  const problems = [];
  try {
    const [first, second] = [await tab(browser), await tab(browser)];
    for (const page of [first, second]) {
      page.on('pageerror', error => problems.push(String(error)));
      page.on('console', message => message.type() === 'error' && problems.push(message.text()));
    }
    console.log(JSON.stringify({ tabs: [await shown(first), await shown(second)] }));
    for await (const line of readline.createInterface({ input: process.stdin })) {
      await first.bringToFront();
      await first.type('#text', line);
      await first.click('#send');
      await second.bringToFront();
      await second.waitForFunction(
        text => [...document.querySelectorAll('#log .message .text')].some(item => item.textContent === text),
        {}, line,
      );
      console.log(JSON.stringify({ heard: line, tabs: [await shown(first), await shown(second)], problems }));
    }
    await second.screenshot({ path: screenshot });
  } finally {
    await browser.close();
  }
}

main().then(() => process.exit(0), error => {
  console.error(error);
  process.exit(1);
});
