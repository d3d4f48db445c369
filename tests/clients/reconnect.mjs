// Clients that lose their server and come back.

import { check, deed, failure, run, same, settings, that } from './checks.mjs';
import { Client, WITHOUT_NEGOTIATION, received } from './client.mjs';

const [north, south] = settings.servers;
const ann = await Client.connect(north, { user: 'ann' });
const kinds = {
    'with negotiation': await Client.connect(south, { user: 'cleo', reconnect: true }),
    'without negotiation': await Client.connect(south, { user: 'dora', reconnect: true, ...WITHOUT_NEGOTIATION }),
};
const fickle = await Client.connect(south, { user: 'fickle' });
let everybody = { ann, ...kinds, fickle };

check('all are there', async () => {
    await ann.invoke('SendMessage', 'ann', 'hello');
    const hello = [['ReceiveMessage', 'ann', 'hello']];
    await received(ann, everybody, Object.fromEntries(Object.keys(everybody).map((name) => [name, hello])));
});

for (const [name, client] of Object.entries(kinds)) {
    check(`${name}: in a group`, async () => {
        await client.invoke('Join', 'room');
        await ann.invoke('ToGroup', 'room', name);
        same(await client.received.next('the group message'), ['m', name], 'received');
        await client.invoke('Leave', 'room');
        await client.invoke('Join', `room ${name}`);
    });
}

/// Clients with `withAutomaticReconnect` come back under new ids, without their groups, and work as before.
function comeBack(what) {
    for (const [name, client] of Object.entries(kinds)) {
        check(`${what}, ${name}: reconnected under a new id`, async () => {
            const announced = await client.event('reconnected');
            const id = await client.invoke('Id');
            that(id !== client.id, `the id is still ${id}`);
            if (name === 'with negotiation') {
                same(announced, id, 'the id that the event names');
            }
            client.id = id;
        });
        check(`${what}, ${name}: works again, in both directions`, async () => {
            await ann.invoke('ToGroup', `room ${name}`, 'groups end with their connection');
            await ann.invoke('ToConnection', client.id, 'welcome back');
            await received(ann, { [name]: client }, { [name]: [['m', 'welcome back']] });
            await client.invoke('ToConnection', ann.id, `from ${name}`);
            await received(client, everybody, { ann: [['m', `from ${name}`]] });
            await client.invoke('Join', `room ${name}`);
            await ann.invoke('ToGroup', `room ${name}`, 'joined again');
            await received(ann, everybody, { [name]: [['m', 'joined again']] });
        });
    }
}

check('the server is killed: those with automatic reconnect try again, the other is closed', async () => {
    await deed('kill south');
    for (const client of Object.values(kinds)) {
        that((await client.event('reconnecting'))?.includes('1006'), 'the connection was not just cut');
    }
    that((await fickle.event('closed'))?.includes('1006'), 'the connection was not just cut');
    everybody = { ann, ...kinds };
});
check('meanwhile the other server works', async () => {
    await ann.invoke('SendMessage', 'ann', 'alone');
    await received(ann, { ann }, { ann: [['ReceiveMessage', 'ann', 'alone']] });
});
check('the killed server is started again', () => deed('start south'));
comeBack('killed');

check('the server shuts down: Close with permission to reconnect, not a cut', async () => {
    await deed('stop south');
    for (const [name, client] of Object.entries(kinds)) {
        const why = await client.event('reconnecting');
        that(why === undefined || !why.includes('1006'), `${name}: ${why}`);
    }
});
check('nobody can connect meanwhile', () => failure(Client.connect(south), 'a connection to nowhere'));
check('the stopped server is started again', () => deed('start south'));
comeBack('stopped');

await run();
