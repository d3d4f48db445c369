// Every kind of send between the clients of two servers, in both directions.

import { check, run, same, settings, that } from './checks.mjs';
import { Client, received } from './client.mjs';

const [north, south] = settings.servers;
const everybody = {
    ann: await Client.connect(north, { user: 'ann' }),
    bob: await Client.connect(north, { user: 'bob' }),
    cleo: await Client.connect(south, { user: 'cleo' }),
    // The same user on the other server.
    ann2: await Client.connect(south, { user: 'ann' }),
};

/// A call by `sender`, and who receives its last argument by it: exactly these, each once.
async function reaches(sender, method, values, names) {
    const text = values.at(-1);
    const arrival = method === 'SendMessage' ? ['ReceiveMessage', ...values] : ['m', text];
    await everybody[sender].invoke(method, ...values);
    await received(everybody[sender], everybody, Object.fromEntries(names.map((name) => [name, [arrival]])));
}

/// `me` sends; `near` is on the same server, `far` and `farther` on the other one.
function bothWays(direction, me, near, far, farther) {
    const id = (name) => everybody[name].id;
    const sends = (kind, ...rest) => check(`${direction}: ${kind}`, () => reaches(me, ...rest));
    const [red, blue] = [`red ${direction}`, `blue/${direction}: ü*?[a]`];
    const invoke = (...call) => everybody[me].invoke(...call);

    sends('all', 'SendMessage', [me, 'to all'], [me, near, far, farther]);
    sends('caller', 'ToCaller', ['to me'], [me]);
    sends('others', 'ToOthers', ['to others'], [near, far, farther]);
    sends('all except two, one on each server', 'ToAllExcept', [[id(near), id(far)], 'except'], [me, farther]);
    sends('connection of the other server', 'ToConnection', [id(far), 'to one'], [far]);
    sends('connection of the same server', 'ToConnection', [id(near), 'to a neighbour'], [near]);
    sends('connections of both servers', 'ToConnections', [[id(near), id(farther), id(farther), 'nobody'], 'to some'], [near, farther]);
    sends('connection that nobody has', 'ToConnection', ['nobody', 'into the void'], []);

    check(`${direction}: a group joined on both servers`, async () => {
        await invoke('Join', red);
        await invoke('JoinOther', id(far), red);
        await reaches(me, 'ToGroup', [red, 'to red'], [me, far]);
    });
    check(`${direction}: the same group, from a client that is no member`, () => reaches(farther, 'ToGroup', [red, 'from outside'], [me, far]));
    sends('group except a member of the other server', 'ToGroupExcept', [red, [id(far)], 'except'], [me]);
    sends('others in group', 'ToOthersInGroup', [red, 'to the others in red'], [far]);
    check(`${direction}: groups`, async () => {
        await invoke('JoinOther', id(farther), blue);
        await reaches(me, 'ToGroups', [[red, blue], 'to red and blue'], [me, far, farther]);
    });
    sends('group of another case', 'ToGroup', [red.toUpperCase(), 'to nobody'], []);
    check(`${direction}: a member of the other server is taken out`, async () => {
        await invoke('LeaveOther', id(far), red);
        await reaches(me, 'ToGroup', [red, 'to who is left'], [me]);
    });
    check(`${direction}: the last member leaves`, async () => {
        await invoke('Leave', red);
        await reaches(me, 'ToGroup', [red, 'to nobody'], []);
    });

    sends('user on both servers', 'ToUser', ['ann', 'to ann'], ['ann', 'ann2']);
    sends('users', 'ToUsers', [['bob', 'cleo'], 'to two'], ['bob', 'cleo']);
    sends('user of another case', 'ToUser', ['ANN', 'to nobody'], []);

    sends('text of every kind', 'ToOthers', [EVERY_KIND], [near, far, farther]);
    sends('a message near the limit', 'ToConnection', [id(far), NEAR_LIMIT], [far]);
    check(`${direction}: 500 messages without waiting, in order`, async () => {
        const texts = Array.from({ length: 500 }, (_, number) => `message ${number}`);
        await Promise.all(texts.map((text) => everybody[me].connection.send('ToConnection', id(far), text)));
        await received(everybody[me], everybody, { [far]: texts.map((text) => ['m', text]) });
    });
}

/// What a JSON string can hold: the record separator and other control characters, quotes, separators of lines, right to
/// left, joined emoji, characters outside the basic plane, the empty end of a string.
const EVERY_KIND = '\u001e\u0000\n\r\t"\\/ \u2028\u2029 \ufeff äöü שלום 漢字 👩‍👩‍👧‍👦 𝄞 \u{10ffff} <script>&amp;\u0007';

/// The limit is 32,768 bytes for the record; what stands around this argument takes less than 150.
const NEAR_LIMIT = 'ü𝄞'.repeat((32_768 - 150) / 6 | 0);

bothWays('north to south', 'ann', 'bob', 'cleo', 'ann2');
bothWays('south to north', 'cleo', 'ann2', 'bob', 'ann');

check('results come back as they are', async () => {
    const { bob } = everybody;
    same(await bob.invoke('Echo', EVERY_KIND), EVERY_KIND, 'text');
    same(await bob.invoke('Sum', 2, 3), 5, 'number');
    const anything = { a: [1, 2.5, null, true, { b: 'ü' }] };
    same(await bob.invoke('EchoAny', anything), anything, 'object');
    same(await bob.invoke('User'), 'bob', 'user');
});

check('a message above the limit ends that connection only', async () => {
    const greedy = await Client.connect(south, { user: 'greedy' });
    greedy.connection.send('Echo', 'x'.repeat(32_768)).catch(() => {});
    const why = await greedy.event('closed');
    that(why?.includes('Server returned an error on close'), `closed with: ${why}`);
    await reaches('ann', 'SendMessage', ['ann', 'still here'], Object.keys(everybody));
});

check('everybody leaves', async () => {
    for (const client of Object.values(everybody)) {
        await client.stop();
        same(await client.event('closed'), undefined, 'error of an orderly end');
    }
});

await run();
