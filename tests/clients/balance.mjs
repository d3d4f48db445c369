// `two-servers --balance`: a front that takes turns, to show why affinity is needed.

import { check, failure, run, same, settings, that, within } from './checks.mjs';
import { Client, WITHOUT_NEGOTIATION } from './client.mjs';

const { url } = settings;

check('a client that negotiates is refused, and told why', async () => {
    const error = await failure(new Client(url).connection.start(), 'a connection with negotiation');
    that(error.message.includes('check that sticky sessions are enabled'), `the error says: ${error.message}`);
});

check('two clients without negotiation are on different servers, and hear each other', async () => {
    const clients = [];
    for (const user of ['ann', 'bob']) {
        const client = new Client(url, { user, ...WITHOUT_NEGOTIATION });
        await within(client.connection.start(), 'a connection');
        clients.push(client);
    }
    await clients[0].invoke('SendMessage', 'ann', 'hello');
    for (const client of clients) {
        same(await client.received.next('the message'), ['ReceiveMessage', 'ann', 'hello'], 'received');
    }
    await Promise.all(clients.map((client) => client.stop()));
});

await run();
