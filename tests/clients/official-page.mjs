// The official client in Chromium, on a page of another origin than the hub, with a client in Node on the other server.

import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { check, deed, failure, run, same, settings, that } from './checks.mjs';
import { tab } from './browser.mjs';
import { Client } from './client.mjs';

const { north, south, origin, port } = settings;

/// All that the origin serves. The browser takes it for a server of that name.
const FILES = {
    '/': ['text/html', new URL('pages/official.html', import.meta.url)],
    '/signalr.js': ['text/javascript', new URL('node_modules/@microsoft/signalr/dist/browser/signalr.js', import.meta.url)],
};
const site = createServer(async (request, response) => {
    const [type, file] = FILES[request.url] ?? [];
    if (file === undefined) {
        response.writeHead(404).end();
        return;
    }
    response.writeHead(200, { 'Content-Type': `${type}; charset=utf-8` }).end(await readFile(file));
});
await new Promise((resolve, reject) => site.once('error', reject).listen(port, '127.0.0.1', resolve));

const page = await tab('page', `${origin}/`);
const node = await Client.connect(south, { user: 'node' });
let id;

const connect = (url, options = {}) => page.evaluate(([to, how]) => window.connectTo(to, how), [url, options]);
const invoke = (...call) => page.evaluate((values) => window.hub.invoke(...values), call);
const shows = (selector, text) => page.locator(selector, { hasText: text }).first().waitFor();

check('the page is of another origin', async () => {
    same(await page.evaluate(() => location.origin), origin, 'origin');
    await shows('#state', 'ready');
});

check('it connects with negotiation where the CORS policy allows it', async () => {
    id = await connect(`${north}/chatHub?user=page`);
    await shows('#state', 'connected');
    same(await invoke('User'), 'page', 'user');
});

check('it does not where there is no such policy', async () => {
    const other = await tab('other', `${origin}/`);
    const call = other.evaluate((to) => window.connectTo(to, {}), `${south}/chatHub`);
    const error = await failure(call, 'a connection without CORS');
    that(error.message.includes('Failed to complete negotiation'), `the error says: ${error.message}`);
});

check('it hears the other server', async () => {
    await node.invoke('ToConnection', id, 'from Node, ü 𝄞');
    await shows('#received li', 'from Node, ü 𝄞');
});

check('the other server hears it', async () => {
    await invoke('ToConnection', node.id, 'from the page, ü 𝄞');
    same(await node.received.next('the message'), ['m', 'from the page, ü 𝄞'], 'received');
});

check('it joins a group and gets what is sent there', async () => {
    await invoke('Join', 'browsers');
    await node.invoke('ToGroup', 'browsers', 'to all browsers');
    await shows('#received li', 'to all browsers');
});

check('it answers a question of the other server', async () => {
    same(await node.invoke('Ask', id, 'are you'), 'are you in Chromium', 'answer');
});

check('its refusal arrives', async () => {
    const error = await failure(node.invoke('Ask', id, 'refuse'), 'the question');
    that(error.message.includes('not in this browser'), `the error says: ${error.message}`);
});

check('it asks a client of the other server', async () => {
    node.connection.on('Answer', (question) => `${question}, says Node`);
    same(await invoke('Ask', node.id, 'well'), 'well, says Node', 'answer');
});

check('without negotiation no policy is needed', async () => {
    const other = await tab('other', `${origin}/`);
    // 1: WebSockets.
    const call = [`${south}/chatHub?user=skips`, { skipNegotiation: true, transport: 1 }];
    const own = await other.evaluate(([to, how]) => window.connectTo(to, how), call);
    await node.invoke('ToConnection', own, 'without negotiation');
    await other.locator('#received li', { hasText: 'without negotiation' }).waitFor();
});

check('it reconnects when its server was killed and is back', async () => {
    await deed('kill north');
    await shows('#state', 'reconnecting');
    await deed('start north');
    await shows('#state', 'connected again');
    const again = await invoke('Id');
    that(again !== id, 'the id is the old one');
    await node.invoke('ToConnection', again, 'welcome back');
    await shows('#received li', 'welcome back');
});

await run();
