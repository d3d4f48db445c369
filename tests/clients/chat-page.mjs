// The page of the demonstration, one tab on each of two servers, as people use it. Its head documents the ids.

import { tab } from './browser.mjs';
import { check, deed, run, same, settings, that } from './checks.mjs';

const [northUrl, southUrl] = settings.servers;
const north = await tab('north', `${northUrl}/?name=Nora`);
const south = await tab('south', `${southUrl}/?name=Sam`);
const both = { Nora: north, Sam: south };

/// A line of the log of that kind with exactly that text, and nothing but one of it.
async function reads(page, kind, text, from) {
    const line = page.locator(`#log li[data-kind=${kind}]`).filter({ has: page.locator('.text', { hasText: exactly(text) }) });
    await line.first().waitFor();
    same(await line.count(), 1, `lines that say ${text}`);
    if (from !== undefined) {
        same(await line.locator('.from').textContent(), from, 'from');
    }
}

const exactly = (text) => new RegExp(`^${text.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&')}$`);
const lamp = (page, id, state) => page.locator(`#${id}[data-state=${state}]`).waitFor();
const person = (page, name) => page.locator(`#people li[data-name=${name}]`);

/// Types a text and sends it as people do, to `to`, an option of the list.
async function write(page, text, to = 'all') {
    await page.selectOption('#to', to);
    await page.fill('#message', text);
    await page.press('#message', 'Enter');
}

check('each tab is connected, to a server of its own, and the link is up', async () => {
    for (const [page, url] of [[north, northUrl], [south, southUrl]]) {
        await lamp(page, 'state', 'connected');
        await lamp(page, 'link', 'up');
        that((await page.textContent('#server')).includes(new URL(url).port), `on server ${await page.textContent('#server')}`);
    }
});

check('each sees who is on the other server', async () => {
    await person(north, 'Sam').waitFor();
    await person(south, 'Nora').waitFor();
    const servers = [await person(north, 'Sam').getAttribute('data-server'), await person(south, 'Nora').getAttribute('data-server')];
    that(servers[0] !== servers[1], `both on ${servers[0]}`);
});

for (const [name, other] of [['Nora', 'Sam'], ['Sam', 'Nora']]) {
    check(`a message typed by ${name} appears in both tabs`, async () => {
        const text = `${name} says <b>hello</b> & 漢字 𝄞`;
        await write(both[name], text);
        await reads(both[other], 'all', text, name);
        await reads(both[name], 'all', text, name);
    });
}

check('a room reaches who has joined it on the other server', async () => {
    for (const page of [north, south]) {
        await page.fill('#room', 'red');
        await page.click('#join button');
        await page.locator('#rooms li[data-room=red]').waitFor();
    }
    await write(north, 'to the red room', 'room:red');
    await reads(south, 'room', 'to the red room', 'Nora');
});

check('a direct message goes to one person', async () => {
    await person(south, 'Nora').locator('.write').click();
    await south.fill('#message', 'between us');
    await south.click('#send');
    await reads(north, 'direct', 'between us', 'Sam');
});

/// Nora asks by the button beside a person; what that person's tab shows of it.
async function ask(name, page, question) {
    await person(north, name).locator('.ask').click();
    await north.fill('#ask-text', question);
    await north.click('#ask-send');
    const asked = page.locator('#questions li', { hasText: question });
    await asked.waitFor();
    return asked;
}

/// The next error in Nora's log that names somebody.
async function complaint(name, after) {
    const line = north.locator('#log li[data-kind=error]', { hasText: name }).nth(after);
    await line.waitFor();
    return line.locator('.text').textContent();
}

check('a question to a person on the other server is answered', async () => {
    const asked = await ask('Sam', south, 'How is the south?');
    await asked.locator('.answer').fill('Warm and windy.');
    await asked.locator('.reply').click();
    await reads(north, 'direct', 'Warm and windy.', 'Sam');
});

check('a refusal, and one who leaves without an answer, are told apart', async () => {
    const asked = await ask('Sam', south, 'How old are you?');
    await asked.locator('.refuse').click();
    const refused = await complaint('Sam', 0);
    that(/refuse/.test(refused), `told: ${refused}`);

    const third = await tab('third', `${southUrl}/?name=Tess`);
    await person(north, 'Tess').waitFor();
    await ask('Tess', third, 'Will you stay?');
    await third.close();
    const left = await complaint('Tess', 0);
    that(!/refuse/.test(left), `told: ${left}`);
    await person(north, 'Tess').waitFor({ state: 'detached' });
});

check('Redis goes down: both indicators say so, and nobody is disconnected', async () => {
    await deed('kill redis');
    for (const page of [north, south]) {
        await lamp(page, 'link', 'down');
        await lamp(page, 'state', 'connected');
    }
});

check('what cannot be sent is not lost in silence', async () => {
    const errors = north.locator('#log li[data-kind=error]');
    const before = await errors.count();
    await write(north, 'into the void');
    await errors.nth(before).waitFor();
    same(await north.inputValue('#message'), 'into the void', 'text that can be sent again');
});

check('Redis comes back: both indicators say so, and messages cross again', async () => {
    await deed('start redis');
    for (const page of [north, south]) {
        await lamp(page, 'link', 'up');
    }
    await write(north, 'are you there?');
    await reads(south, 'all', 'are you there?', 'Nora');
    await write(south, 'yes, still here', 'room:red');
    await reads(north, 'room', 'yes, still here', 'Sam');
});

check('a server is killed: its tab tries again and is back when the server is', async () => {
    await deed('kill south');
    await south.locator('#state:not([data-state=connected])').waitFor();
    await person(north, 'Sam').waitFor({ state: 'detached' });
    await deed('start south');
    // "Connect now", which does nothing where it happened already.
    await south.evaluate(() => document.getElementById('retry').click());
    await lamp(south, 'state', 'connected');
    await person(north, 'Sam').waitFor();
    await write(south, 'back again');
    await reads(north, 'all', 'back again', 'Sam');
});

await run();
