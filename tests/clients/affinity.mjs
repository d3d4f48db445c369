// Clients that negotiate, behind a load balancer with affinity, in front of two servers.

import { check, deed, run, same, settings, that } from './checks.mjs';
import { Client, nodeOf, received } from './client.mjs';

const { url, servers, spread } = settings;

const names = Object.keys(servers);
/// Which server a connection is on, by the part of its id that is the server's.
const nodes = {};
for (const name of names) {
    const direct = await Client.connect(servers[name]);
    nodes[nodeOf(direct.id)] = name;
    await direct.stop();
}
const serverOf = (client) => nodes[nodeOf(client.id)];

const clients = [];

check('every client that negotiates connects', async () => {
    same(Object.keys(nodes).length, 2, 'servers');
    for (let number = 0; number < 16; number += 1) {
        clients.push(await Client.connect(url, { user: `user ${number}`, reconnect: true }));
    }
});

check(spread ? 'both servers have clients' : 'one address has one server', async () => {
    const used = new Set(clients.map(serverOf));
    same(used.size, spread ? 2 : 1, `servers used (${[...used]})`);
});

check('they all hear each other', async () => {
    const [speaker] = clients;
    await speaker.invoke('SendMessage', 'me', 'hello');
    const everybody = Object.fromEntries(clients.map((client, number) => [number, client]));
    const hello = [['ReceiveMessage', 'me', 'hello']];
    await received(speaker, everybody, Object.fromEntries(Object.keys(everybody).map((name) => [name, hello])));
});

check('their server dies: they come back on the other one', async () => {
    const dies = serverOf(clients[0]);
    const lives = names.find((name) => name !== dies);
    await deed(`kill ${dies}`);
    for (const client of clients) {
        if (serverOf(client) === dies) {
            await client.event('reconnecting');
            client.id = await client.event('reconnected');
        }
        same(serverOf(client), lives, 'server');
        same(await client.invoke('Sum', 1, 2), 3, 'sum');
    }
});

check('a new client connects meanwhile', async () => {
    const late = await Client.connect(url, { user: 'late' });
    same(await late.invoke('User'), 'late', 'user');
    await late.stop();
});

await run();
