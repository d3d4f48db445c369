// Runs checks one after another and tells the test that started this program how each one went.
//
// On the standard output: `plan 3`, then for each check `ok NAME` or `not ok NAME: WHY`. `do DEED` asks the test for what
// only it can do, such as killing a server; its answer is one line on the standard input, `done` or `failed WHY`. When
// that input ends, whoever waited for this program is gone, and so is this program.

import { createInterface } from 'node:readline';

/// What the test wants the program to know.
export const settings = JSON.parse(process.argv[2] ?? '{}');

/// How long one wait may take, in ms. The factor is for slow machines, as everywhere in the tests.
export const DEADLINE = 10_000 * Number(process.env.BACKPLANE_DEADLINE_FACTOR ?? 1);

const checks = [];

/// Adds a check; it passes when `body` returns, and fails when it throws.
export function check(name, body) {
    checks.push({ name, body });
}

/// Runs all checks, also after one failed, and ends the program.
export async function run() {
    say(`plan ${checks.length}`);
    let failed = 0;
    for (const { name, body } of checks) {
        const start = performance.now();
        try {
            await body();
            say(`ok ${name} (${Math.round(performance.now() - start)} ms)`);
        } catch (error) {
            failed += 1;
            say(`not ok ${name}: ${error?.message ?? error}`);
        }
    }
    process.exit(failed === 0 ? 0 : 1);
}

/// What `promise` resolves to; throws naming `what` when that takes longer than `time` ms.
export async function within(promise, what, time = DEADLINE) {
    let timer;
    const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(`waited ${time} ms in vain for ${what}`)), time);
    });
    try {
        return await Promise.race([promise, late]);
    } finally {
        clearTimeout(timer);
    }
}

/// Throws, showing both, unless `actual` is `expected` (compared as JSON).
export function same(actual, expected, what) {
    const [found, wanted] = [JSON.stringify(actual), JSON.stringify(expected)];
    if (found !== wanted) {
        throw new Error(`${what}: ${shortened(found)} instead of ${shortened(wanted)}`);
    }
}

/// Throws `why` unless `fact`.
export function that(fact, why) {
    if (!fact) {
        throw new Error(why);
    }
}

/// The error that `promise` ends in; throws when it ends in anything else.
export async function failure(promise, what) {
    let result;
    try {
        result = await within(promise, what);
    } catch (error) {
        if (error.message.startsWith('waited ')) {
            throw error;
        }
        return error;
    }
    throw new Error(`${what} did not fail but returned ${JSON.stringify(result)}`);
}

/// Has the test do something, and waits until it is done.
export async function deed(text) {
    const answered = new Promise((resolve) => orders.push(resolve));
    say(`do ${text}`);
    const answer = await within(answered, `the test to ${text}`, 3 * DEADLINE);
    that(answer === 'done', `${text}: ${answer}`);
}

const orders = [];
const answers = createInterface({ input: process.stdin });
answers.on('line', (line) => orders.shift()?.(line));
answers.on('close', () => process.exit(3));

function say(line) {
    process.stdout.write(`${line.replace(/\s*\n\s*/g, ' | ')}\n`);
}

function shortened(text) {
    return text === undefined || text.length <= 300 ? text : `${text.slice(0, 300)}... (${text.length} characters)`;
}
