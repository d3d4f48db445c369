// Questions to clients of another server (client results): answers, refusals, and those who cannot answer any more.

import { check, deed, failure, run, same, settings, that } from './checks.mjs';
import { Client } from './client.mjs';

const [north, south] = settings.servers;

/// How a client answers: by what it is asked.
const ANSWERS = {
    'plain': (question) => `${question}!`,
    'later': async (question) => {
        await new Promise((resolve) => setImmediate(resolve));
        return `${question} and late`;
    },
    'refuse': () => {
        throw new Error('not today');
    },
    'wrong type': () => ({ a: 1 }),
    'nothing': () => undefined,
    'never': () => new Promise(() => {}),
};

async function answering(server, user) {
    const client = await Client.connect(server, { user });
    client.asked = new Promise((resolve) => {
        client.connection.on('Answer', (question) => {
            resolve(question);
            return (ANSWERS[question] ?? ANSWERS.plain)(question);
        });
    });
    return client;
}

const ann = await answering(north, 'ann');
const bob = await answering(north, 'bob');
const cleo = await answering(south, 'cleo');

async function refused(call, says) {
    const error = await failure(call, 'the question');
    that(error.message.includes(says), `the error says: ${error.message}`);
}

for (const [direction, me, other] of [['north to south', ann, cleo], ['south to north', cleo, ann], ['on one server', ann, bob]]) {
    check(`${direction}: an answer`, async () => same(await me.invoke('Ask', other.id, 'how are you'), 'how are you!', 'answer'));
    check(`${direction}: an answer that takes time`, async () => same(await me.invoke('Ask', other.id, 'later'), 'later and late', 'answer'));
    check(`${direction}: a refusal`, () => refused(me.invoke('Ask', other.id, 'refuse'), 'not today'));
    check(`${direction}: an answer of the wrong type`, () => refused(me.invoke('AskInt', other.id, 'wrong type'), 'Error trying to deserialize result'));
    check(`${direction}: an end without an answer`, () => refused(me.invoke('Ask', other.id, 'nothing'), "Client didn't provide a result."));
    check(`${direction}: an answer that does not come in time`, () => refused(me.invoke('AskFor', other.id, 'never', 100), 'Invocation canceled by the server.'));
    check(`${direction}: both still work`, async () => {
        same(await me.invoke('Ask', other.id, 'well'), 'well!', 'answer');
        same(await other.invoke('Sum', 1, 1), 2, 'sum');
    });
}

check('a question to oneself', async () => same(await ann.invoke('Ask', ann.id, 'me'), 'me!', 'answer'));

check('a question to a connection that nobody has', () => refused(ann.invoke('Ask', 'nobody', 'hello'), "Connection 'nobody' does not exist."));

check('a client that has no method of that name', async () => {
    const mute = await Client.connect(south);
    await refused(ann.invoke('Ask', mute.id, 'hello'), "Client didn't provide a result.");
    await mute.stop();
});

check('twenty questions across servers, each with its own answer', async () => {
    const questions = Array.from({ length: 20 }, (_, number) => `question ${number}`);
    const asking = await Promise.all(questions.map(() => Client.connect(north)));
    const answers = await Promise.all(questions.map((question, index) => asking[index].invoke('Ask', cleo.id, question)));
    same(answers, questions.map((question) => `${question}!`), 'answers');
    await Promise.all(asking.map((client) => client.stop()));
});

check('the asked client leaves', async () => {
    const dora = await answering(south, 'dora');
    const asked = ann.invoke('Ask', dora.id, 'never');
    // It is handled now, for it may fail before the wait below is over.
    const refusal = refused(asked, `Connection '${dora.id}' disconnected.`);
    same(await dora.asked, 'never', 'question');
    await dora.stop();
    await refusal;
});

check('the server of the asked client is killed', async () => {
    const eve = await answering(south, 'eve');
    const refusal = failure(ann.connection.invoke('Ask', eve.id, 'never'), 'the question');
    same(await eve.asked, 'never', 'question');
    await deed('kill south');
    const error = await refusal;
    that(error.message.includes("invoking 'Ask' on the server"), `the error says: ${error.message}`);
    same(await ann.invoke('Ask', bob.id, 'there'), 'there!', 'answer on the server that lives');
});

await run();
