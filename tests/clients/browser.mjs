// A running Chromium, as the programs drive it.

import { chromium } from 'playwright-core';
import { DEADLINE, settings } from './checks.mjs';

const browser = await chromium.connectOverCDP(settings.browser, { timeout: DEADLINE });

/// A tab with a profile of its own, on `url`. Whatever its page says or throws goes to the standard error.
export async function tab(name, url) {
    const context = await browser.newContext();
    context.setDefaultTimeout(DEADLINE);
    const page = await context.newPage();
    page.on('console', (message) => process.stderr.write(`${name}: ${message.text()}\n`));
    page.on('pageerror', (error) => process.stderr.write(`${name}: ${error.stack}\n`));
    await page.goto(url);
    return page;
}
