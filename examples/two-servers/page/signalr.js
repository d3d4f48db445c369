// A small SignalR client: negotiation, WebSocket, JSON protocol, reconnection. Everything that the page needs and the hub
// offers, and nothing else; a product takes the official client, @microsoft/signalr.
//
//   const hub = new HubConnection("/chatHub", { query: { user: "Ann" } });
//   hub.on("ReceiveMessage", (user, message) => ...);        what a handler returns answers a question of the server
//   hub.onstate = ({ state, ... }) => ...;                   see #enter
//   hub.start();
//   await hub.invoke("SendMessage", "Ann", "hello");

const SEPARATOR = "\x1e";
const PING_EVERY = 15_000;          // ms between two pings to the server
const SERVER_TIMEOUT = 30_000;      // ms without anything from the server, after which it counts as gone
const HANDSHAKE_TIMEOUT = 15_000;   // ms for negotiation, WebSocket and handshake together
const STEADY = 5_000;               // ms that a connection must have lasted, for the back-off to begin anew
const BACK_OFF = [0, 500, 1_000, 2_000, 4_000, 8_000];   // ms before each attempt; the last one repeats

const INVOCATION = 1, COMPLETION = 3, PING = 6, CLOSE = 7;

/** A refusal by the server: `message` is its text for people, without what SignalR puts before it. */
export class HubError extends Error {
  constructor(text) {
    super(text.replace(/^.*?HubException: /s, ""));
    this.name = "HubError";
  }
}

export class HubConnection {
  /** options: query (object, sent with each request), skipNegotiation (boolean). */
  constructor(path, { query = {}, skipNegotiation = false } = {}) {
    this.path = path;
    this.query = query;
    this.skipNegotiation = skipNegotiation;
    this.state = "stopped";
    this.onstate = () => {};
    this.onlog = () => {};
    this.handlers = new Map();
    this.calls = new Map();          // invocation id -> { resolve, reject }
    this.lastId = 0;
    this.attempt = 0;
    this.session = null;             // the connection of now; what belongs to an older one is ignored
    this.timer = 0;
  }

  /** Names are compared in any case, as other SignalR clients do. */
  on(target, handler) {
    this.handlers.set(target.toLowerCase(), handler);
  }

  /** Connects, and goes on doing so until `stop`. */
  start() {
    if (this.state !== "stopped") return;
    this.attempt = 0;
    this.#connect();
  }

  /** Ends the connection in order; nothing is tried again. */
  stop() {
    const session = this.session;
    if (session?.open) this.#write(session, { type: CLOSE });
    this.#end(new Error("The connection was closed by this page."), false);
  }

  /** An attempt that waits for its time is made now. */
  retryNow() {
    if (this.state === "waiting") this.#connect();
  }

  /** Calls a method of the hub; resolves with what it returns, rejects with HubError or when the connection ends. */
  invoke(target, ...args) {
    return new Promise((resolve, reject) => {
      if (!this.session?.open) return reject(new Error("There is no connection now."));
      const invocationId = String(++this.lastId);
      this.calls.set(invocationId, { resolve, reject });
      this.#write(this.session, { type: INVOCATION, invocationId, target, arguments: args });
    });
  }

  /** Calls a method of the hub; how it ends is not told. */
  send(target, ...args) {
    if (!this.session?.open) throw new Error("There is no connection now.");
    this.#write(this.session, { type: INVOCATION, target, arguments: args });
  }

  // States: connecting, connected, waiting (reason, until: ms since 1970, attempt), stopped (reason).
  #enter(state, more = {}) {
    this.state = state;
    this.onstate({ state, attempt: this.attempt, reason: null, ...more });
  }

  async #connect() {
    clearTimeout(this.timer);
    const session = { open: false, socket: null, rest: "", heard: 0, timers: [], aborted: new AbortController() };
    this.session = session;
    this.attempt += 1;
    this.#enter("connecting");
    const late = setTimeout(() => {
      if (this.session === session) this.#end(new Error("The server did not answer in time."), true);
    }, HANDSHAKE_TIMEOUT);
    session.timers.push(() => clearTimeout(late));
    try {
      const token = this.skipNegotiation ? null : await this.#negotiate(session);
      if (this.session === session) this.#open(session, token, late);
    } catch (error) {
      if (this.session === session) this.#end(error, true);
    }
  }

  #url(suffix, query) {
    const url = new URL(this.path + suffix, location.href);
    for (const [key, value] of Object.entries({ ...this.query, ...query })) url.searchParams.set(key, value);
    return url;
  }

  async #negotiate(session) {
    const url = this.#url("/negotiate", { negotiateVersion: 1 });
    const response = await fetch(url, { method: "POST", signal: session.aborted.signal });
    if (!response.ok) throw new Error(`The server answered the negotiation with status ${response.status}.`);
    const offer = await response.json();
    if (offer.error) throw new Error(`The server refused: ${offer.error}`);
    const offers = offer.availableTransports ?? [];
    if (!offers.some((one) => one.transport === "WebSockets" && one.transferFormats.includes("Text"))) {
      throw new Error("The server offers no WebSockets with text.");
    }
    return offer.connectionToken ?? offer.connectionId;
  }

  #open(session, token, late) {
    const url = this.#url("", token === null ? {} : { id: token });
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    session.socket = socket;
    let opened = false;
    socket.onopen = () => {
      opened = true;
      session.heard = Date.now();
      socket.send(JSON.stringify({ protocol: "json", version: 1 }) + SEPARATOR);
    };
    socket.onmessage = (event) => {
      if (this.session !== session) return;
      session.heard = Date.now();
      const records = (session.rest + event.data).split(SEPARATOR);
      session.rest = records.pop();
      try {
        for (const record of records) {
          if (this.session !== session) return;
          const message = JSON.parse(record);
          if (session.open) this.#receive(session, message);
          else this.#shakeHands(session, message, late);
        }
      } catch (error) {
        this.#end(error, true);
      }
    };
    socket.onclose = async (event) => {
      if (this.session !== session) return;
      if (opened || token === null) {
        this.#end(new Error(`The connection was lost (code ${event.code}).`), true);
        return;
      }
      // A browser does not tell why a WebSocket could not be opened. Another request may be told.
      const why = await this.#diagnose(session, token);
      if (this.session === session) this.#end(new Error(why ?? "The WebSocket could not be opened."), true);
    };
  }

  // Where a server does not know the token that another one gave, its response says what to do about it. Through a load
  // balancer the question may land at the server that does know it: so it is put up to three times.
  async #diagnose(session, token) {
    for (let attempt = 0; attempt < 3; attempt += 1) {
      try {
        const url = this.#url("", { id: token });
        const response = await fetch(url, { signal: session.aborted.signal, cache: "no-store" });
        const hint = response.headers.get("x-signalr-hint");
        if (hint) return `${(await response.text()).trim()} (status ${response.status}): ${hint}.`;
        await response.body?.cancel();
      } catch {
        return null;
      }
    }
    return null;
  }

  #shakeHands(session, response, late) {
    if (response.error) throw new Error(`The server refused: ${response.error}`);
    clearTimeout(late);
    session.open = true;
    const beat = setInterval(() => {
      if (Date.now() - session.heard > SERVER_TIMEOUT) this.#end(new Error("The server has gone quiet."), true);
      else if (Date.now() - session.pinged >= PING_EVERY) this.#ping(session);
    }, 1_000);
    session.timers.push(() => clearInterval(beat));
    this.#ping(session);
    session.since = Date.now();
    this.#enter("connected");
  }

  #ping(session) {
    session.pinged = Date.now();
    this.#write(session, { type: PING });
  }

  #receive(session, message) {
    switch (message.type) {
      case INVOCATION:
        this.#called(session, message);
        break;
      case COMPLETION: {
        const call = this.calls.get(message.invocationId);
        if (!call) break;
        this.calls.delete(message.invocationId);
        if (message.error === undefined) call.resolve(message.result);
        else call.reject(new HubError(message.error));
        break;
      }
      case CLOSE: {
        const text = message.error ? `The server closed the connection: ${message.error}` : "The server closed the connection.";
        this.#end(new Error(text), message.allowReconnect === true);
        break;
      }
      // Pings, and whatever newer servers have to say.
    }
  }

  // A handler may be async; what it returns or throws is the answer, if one is wanted.
  async #called(session, { target, arguments: args, invocationId }) {
    const handler = this.handlers.get(target.toLowerCase());
    let answer;
    try {
      if (!handler) throw new Error("Client didn't provide a result.");
      const result = await handler(...args);
      answer = { type: COMPLETION, invocationId, result: result ?? null };
    } catch (error) {
      answer = { type: COMPLETION, invocationId, error: error.message };
      if (!invocationId && handler) this.onlog(`The handler of ${target} failed: ${error.message}`);
    }
    if (invocationId && this.session === session && session.open) this.#write(session, answer);
  }

  #write(session, message) {
    if (session.socket?.readyState === WebSocket.OPEN) session.socket.send(JSON.stringify(message) + SEPARATOR);
  }

  // The one place where a connection ends, whoever ended it.
  #end(error, again) {
    const session = this.session;
    this.session = null;
    clearTimeout(this.timer);
    if (session) {
      // A server that can serve nobody accepts, and closes at once: that counts as one more attempt that failed.
      if (session.open && Date.now() - session.since >= STEADY) this.attempt = 0;
      session.open = false;
      for (const clear of session.timers) clear();
      session.aborted.abort();
      session.socket?.close(1000);
    }
    const calls = [...this.calls.values()];
    this.calls.clear();
    if (again) {
      const base = BACK_OFF[Math.min(this.attempt, BACK_OFF.length - 1)];
      const wait = Math.round(base * (0.75 + Math.random() / 2));   // so that not all come back at the same moment
      this.timer = setTimeout(() => this.#connect(), wait);
      this.#enter("waiting", { reason: error.message, until: Date.now() + wait });
    } else {
      this.#enter("stopped", { reason: error.message });
    }
    for (const call of calls) call.reject(error);
  }
}
