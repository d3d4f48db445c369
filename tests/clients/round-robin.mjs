// Clients behind a load balancer without affinity, in front of two servers.

import { check, failure, run, same, settings, that } from './checks.mjs';
import { Client, WITHOUT_NEGOTIATION, nodeOf, received } from './client.mjs';

const { url } = settings;
const clients = [];

check('a client that negotiates is refused, and told why', async () => {
    const error = await failure(Client.connect(url), 'a connection with negotiation');
    that(error.message.includes('check that sticky sessions are enabled'), `the error says: ${error.message}`);
});

check('every client without negotiation connects', async () => {
    for (let number = 0; number < 8; number += 1) {
        clients.push(await Client.connect(url, { user: `user ${number}`, ...WITHOUT_NEGOTIATION }));
    }
});

check('both servers have as many', async () => {
    const counts = {};
    for (const { id } of clients) {
        counts[nodeOf(id)] = (counts[nodeOf(id)] ?? 0) + 1;
    }
    same(Object.values(counts), [4, 4], 'clients on each server');
});

check('they all hear each other', async () => {
    const [speaker] = clients;
    await speaker.invoke('SendMessage', 'me', 'hello');
    const everybody = Object.fromEntries(clients.map((client, number) => [number, client]));
    const hello = [['ReceiveMessage', 'me', 'hello']];
    await received(speaker, everybody, Object.fromEntries(Object.keys(everybody).map((name) => [name, hello])));
});

await run();
