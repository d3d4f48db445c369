// What a load balancer does to a connection on which only the server's pings move.

import WebSocket from 'ws';
import { DEADLINE, check, run, settings, that, within } from './checks.mjs';
import { Client, WITHOUT_NEGOTIATION } from './client.mjs';

const { url, pings } = settings;

/// A client that says nothing: its own pings would come after 15 s. The wait ends with the server's ping number `count`, or
/// with the connection.
async function silent(count) {
    let heard = 0;
    let enough;
    const arrived = new Promise((resolve) => {
        enough = resolve;
    });
    class Counting extends WebSocket {
        constructor(...values) {
            super(...values);
            this.on('message', (text) => {
                heard += String(text).includes('{"type":6}') ? 1 : 0;
                if (heard >= count) {
                    enough('pings');
                }
            });
        }
    }
    const client = new Client(url, { ...WITHOUT_NEGOTIATION, WebSocket: Counting });
    await within(client.connection.start(), 'a connection');
    const closed = client.event('closed');
    const first = await within(Promise.race([arrived, closed]), `${count} pings or the end`, 3 * DEADLINE);
    return { first, heard, client };
}

if (pings > 0) {
    check(`the connection lives through ${pings} pings`, async () => {
        const { first, client } = await silent(pings);
        that(first === 'pings', `it ended: ${first}`);
        await client.stop();
    });
} else {
    check('the connection is cut before the first ping', async () => {
        const { first, heard } = await silent(1);
        that(first?.includes('WebSocket closed with status code: 1006'), `it ended otherwise: ${first}`);
        that(heard === 0, `${heard} pings came first`);
    });
}

await run();
