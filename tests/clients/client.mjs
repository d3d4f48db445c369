// The official client in Node, with a memory of what it received.

import { HttpTransportType, HubConnectionBuilder } from '@microsoft/signalr';
import { same, within } from './checks.mjs';

/// What arrived and was not taken yet, in order.
class Inbox {
    #arrived = [];
    #waiting = [];

    push(item) {
        const next = this.#waiting.shift();
        if (next) {
            next(item);
        } else {
            this.#arrived.push(item);
        }
    }

    next(what) {
        if (this.#arrived.length > 0) {
            return Promise.resolve(this.#arrived.shift());
        }
        return within(new Promise((resolve) => this.#waiting.push(resolve)), what);
    }
}

/// How the clients of the tests reconnect: again and again, soon. The deadlines of the checks bound it.
const SOON = { nextRetryDelayInMilliseconds: () => 100 };

/// For those whose server, or load balancer, cannot be asked first.
export const WITHOUT_NEGOTIATION = { skipNegotiation: true, transport: HttpTransportType.WebSockets };

/// One connection to the hub of the reference server.
export class Client {
    /// `m` and `ReceiveMessage`, as `[name, ...arguments]`.
    received = new Inbox();
    /// `reconnecting`, `reconnected` and `closed`, as `[name, argument]`.
    events = new Inbox();

    /// Not started yet. `options` are those of `withUrl`; `user` is the user that the server shall see.
    constructor(server, { user, reconnect = false, ...options } = {}) {
        const query = user === undefined ? '' : `?user=${encodeURIComponent(user)}`;
        const builder = new HubConnectionBuilder().withUrl(`${server}/chatHub${query}`, options).configureLogging({
            // The standard output belongs to the checks.
            log: (level, message) => level >= 2 && process.stderr.write(`${user ?? 'client'}: ${message}\n`),
        });
        this.connection = (reconnect ? builder.withAutomaticReconnect(SOON) : builder).build();
        this.connection.on('m', (...values) => this.received.push(['m', ...values]));
        this.connection.on('ReceiveMessage', (...values) => this.received.push(['ReceiveMessage', ...values]));
        this.connection.onreconnecting((error) => this.events.push(['reconnecting', error?.message]));
        this.connection.onreconnected((id) => this.events.push(['reconnected', id]));
        this.connection.onclose((error) => this.events.push(['closed', error?.message]));
    }

    /// A started one; `id` is what the server calls it.
    static async connect(server, options) {
        const client = new Client(server, options);
        await within(client.connection.start(), 'a connection');
        client.id = await client.invoke('Id');
        return client;
    }

    /// The result of a hub method.
    invoke(method, ...values) {
        return within(this.connection.invoke(method, ...values), `the result of ${method}`);
    }

    /// The argument of the next event, which has to be called `name`.
    async event(name) {
        const [found, argument] = await this.events.next(`the event ${name}`);
        same(found, name, 'event');
        return argument;
    }

    stop() {
        return within(this.connection.stop(), 'the end of a connection');
    }
}

/// The part of a native connection id that is its server's own.
export function nodeOf(id) {
    return id.slice(0, 8);
}

let marks = 0;

/// Throws unless each of `clients` received exactly what `expected` says, and nothing else. `sender` sends a mark to
/// all: what was sent before, by whomever a reply has reached since, arrived before it or not at all.
export async function received(sender, clients, expected) {
    marks += 1;
    const mark = String(marks);
    await sender.invoke('SendMessage', 'mark', mark);
    const arrived = await Promise.all(Object.entries(clients).map(async ([name, client]) => [name, await until(mark, name, client)]));
    // Compared when all were read, so that a check that fails leaves nothing behind for the next one.
    for (const [name, items] of arrived) {
        same(items, expected[name] ?? [], `received by ${name}`);
    }
}

async function until(mark, name, client) {
    const items = [];
    for (;;) {
        const item = await client.received.next(`mark ${mark} at ${name}`);
        const [method, sender, text] = item;
        if (method !== 'ReceiveMessage' || sender !== 'mark') {
            items.push(item);
        } else if (text === mark) {
            return items;
        }
        // An older mark was for others.
    }
}
