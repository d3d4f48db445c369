// The page: what is shown, and what the hub is told. All text of others is set as text, never as HTML.

import { HubConnection, HubError } from "/signalr.js";

const REFRESH_EVERY = 2_000;     // ms between two looks at the counters
const ANSWER_WITHIN = 60_000;    // ms that the server waits for an answer
const SETTLE = 3_000;            // ms in which everybody has answered a hello
const MOST_LINES = 500;          // of the log
const SHOWN = ["published", "received", "delivered", "publish_failures", "reconnects", "gaps", "overflows", "pending"];

const $ = (id) => document.getElementById(id);
const page = new URLSearchParams(location.search);
const people = new Map();        // connection id -> { id, name, server, node, seen }
const rooms = new Set(page.getAll("room"));
let me = { id: null, name: chosenName(), server: null };
let linkSince = 0;
let hub = null;

function chosenName() {
  const stored = sessionStorage.getItem("name");     // of this tab: two tabs are two people
  const name = page.get("name") ?? stored ?? `Guest ${Math.floor(1000 + Math.random() * 9000)}`;
  return name.trim().slice(0, 40) || "somebody";
}

/** A new element; `text` is text. */
function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const two = (number) => String(number).padStart(2, "0");
const minute = (time) => `${two(time.getHours())}:${two(time.getMinutes())}`;
const second = (time) => `${minute(time)}:${two(time.getSeconds())}`;

// ---- the log ----

function say(kind, text, { from, tag, mine = false } = {}) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const line = make("li");
  line.dataset.kind = kind;
  const time = make("time", "", minute(new Date()));
  const body = make("div", "body");
  if (from !== undefined) body.append(make("span", mine ? "from mine" : "from", from));
  if (tag !== undefined) body.append(make("span", "tag", tag));
  body.append(make("span", "text", text));
  line.append(time, body);
  log.append(line);
  while (log.childElementCount > MOST_LINES) log.firstElementChild.remove();
  if (atEnd || mine) log.scrollTop = log.scrollHeight;
}

const note = (text) => say("note", text);

/** Shows why a call failed. */
async function told(promise) {
  try {
    return await promise;
  } catch (error) {
    say("error", error.message);
    return undefined;
  }
}

// ---- the connection ----

function connect() {
  hub = new HubConnection("/chatHub", { query: { user: me.name }, skipNegotiation: page.has("skip-negotiation") });
  hub.onstate = stateChanged;
  hub.onlog = (text) => say("error", text);
  hub.on("ReceiveMessage", (user, message) => say("all", message, { from: user, mine: user === me.name }));
  hub.on("RoomMessage", (room, person, message) => {
    say("room", message, { from: person.name, tag: `room ${room}`, mine: person.id === me.id });
  });
  hub.on("RoomJoined", (room, person) => note(`${subject(person)} joined the room ${room}.`));
  hub.on("RoomLeft", (room, person) => note(`${person.name} left the room ${room}.`));
  hub.on("DirectMessage", (person, message) => {
    say("direct", message, { from: person.name, tag: "to you alone", mine: person.id === me.id });
  });
  hub.on("Hello", (person) => {
    met(person, true);
    hub.send("Here", person.id);
  });
  hub.on("Here", (person) => met(person, false));
  hub.on("Bye", (id) => left(people.get(id), "left"));
  hub.on("ServerGone", (node) => {
    for (const person of [...people.values()]) if (person.node === node) left(person, "is gone with its server");
  });
  hub.on("LinkChanged", linkChanged);
  hub.on("MayHaveLost", () => note("Messages from other servers may have been lost meanwhile."));
  hub.on("Question", asked);
  hub.start();
}

const subject = (person) => (person.id === me.id ? "You" : person.name);

async function stateChanged({ state, reason, until }) {
  if (state === "connected") {
    try {
      await arrived();
    } catch (error) {
      // An end of the connection is shown by the state that follows.
      if (error instanceof HubError) say("error", error.message);
    }
    return;
  }
  const lamp = $("state");
  lamp.dataset.state = state;
  lamp.textContent = { connecting: "connecting", waiting: "none, trying again", stopped: "closed" }[state];
  $("send").disabled = true;
  for (const question of [...$("questions").children]) question.withdraw("The connection was lost.");
  if (state === "connecting") return;
  // The first loss is worth a line, those of the attempts that follow are not.
  if (me.id !== null) say("error", reason);
  me.id = null;
  linkSince = 0;
  const wait = state === "waiting" ? Math.ceil((until - Date.now()) / 1000) : 0;
  const again = state === "stopped" ? "" : wait > 0 ? ` Trying again in ${wait} s.` : " Trying again.";
  $("notice").querySelector(".text").textContent = reason + again;
  $("notice").hidden = false;
  await showHealth();
}

/** Without a connection, the server's health is all that can be known of its link. */
async function showHealth() {
  let state = "unknown";
  try {
    const response = await fetch("/health", { cache: "no-store" });
    const { status } = await response.json();
    if (status === "up" || status === "down") state = status;
  } catch {
    // Nobody there.
  }
  if (hub.state === "connected") return;
  $("link").dataset.state = state;
  $("link").textContent = state;
  if (state === "down" && hub.state === "waiting") {
    $("notice").querySelector(".text").append(" A server whose link is down takes no new clients.");
  }
}

/** Everything that belongs to a connection begins anew with each. */
async function arrived() {
  const here = await hub.invoke("Server");
  $("notice").hidden = true;
  $("state").dataset.state = "connected";
  $("state").textContent = "connected";
  $("send").disabled = false;
  people.clear();
  me = { ...me, id: here.connection, server: here.server };
  meet({ id: me.id, name: me.name, server: here.server, node: here.node });
  $("server").textContent = here.server;
  $("bus").textContent = here.bus;
  $("node").textContent = here.node;
  $("connection").textContent = here.connection;
  $("break").hidden = !here.breakable;
  document.title = `${here.server} · Two servers`;
  note(`Connected to server ${here.server} as ${me.name}.`);
  $("link").dataset.state = "unknown";
  show(here);
  for (const room of rooms) await told(hub.invoke("JoinRoom", room));
  await hub.invoke("Hello");
}

// ---- the link and the counters ----

/** A look that was on its way when the link changed says nothing new. */
function linkChanged(link) {
  if (link.since < linkSince) return;
  const before = $("link").dataset.state;
  linkSince = link.since;
  const state = link.up ? "up" : "down";
  $("link").dataset.state = state;
  $("link").textContent = `${state} since ${second(new Date(link.since))}`;
  $("break").textContent = link.up ? "Break the link" : "Mend the link";
  if (before === "unknown" || before === state) return;
  note(link.up ? "The link is up again." : `The link to the other servers is down${link.why ? ` (${link.why})` : ""}.`);
  if (link.up) resync();
}

/** Who came and went meanwhile? Whoever does not answer a hello is gone. */
async function resync() {
  const asked = performance.now();
  await told(hub.invoke("Hello"));
  setTimeout(() => {
    for (const person of [...people.values()]) if (person.id !== me.id && person.seen < asked) left(person, "left");
  }, SETTLE);
}

function show({ stats, link, connections }) {
  linkChanged(link);
  const list = $("counters");
  const rows = [["clients here", connections], ...SHOWN.map((name) => [name.replaceAll("_", " "), stats[name]])];
  list.replaceChildren(...rows.flatMap(([name, value]) => {
    const bad = value > 0 && ["publish failures", "overflows"].includes(name);
    return [make("dt", "", name), make("dd", bad ? "bad" : "", value.toLocaleString())];
  }));
}

async function refresh() {
  if (hub.state === "connected" && me.id) {
    try {
      show(await hub.invoke("Server"));
    } catch {
      // The connection ended, which is shown already.
    }
  }
  setTimeout(refresh, REFRESH_EVERY);
}

$("break").onclick = () => told(hub.invoke("SetLink", $("link").dataset.state === "down"));
$("retry").onclick = () => (hub.state === "stopped" ? hub.start() : hub.retryNow());
addEventListener("online", () => hub.retryNow());

// ---- who is here ----

function met(person, isNew) {
  if (isNew && !people.has(person.id)) note(`${person.name} is here, on server ${person.server}.`);
  meet(person);
}

function meet(person) {
  people.set(person.id, { ...person, seen: performance.now() });
  showPeople();
}

function left(person, how) {
  if (!person) return;
  people.delete(person.id);
  note(`${person.name} ${how}.`);
  showPeople();
}

/** The colour of a server: the same on every page. */
const tone = (servers, server) => `var(--tone-${servers.indexOf(server) % 4})`;

function showPeople() {
  const all = [...people.values()].sort((a, b) => a.name.localeCompare(b.name) || (a.id < b.id ? -1 : 1));
  const servers = [...new Set(all.map((person) => person.server))].sort();
  document.documentElement.style.setProperty("--tone", tone(servers, me.server));
  const groups = servers.flatMap((server) => {
    const title = make("h3", "", `Server ${server}`);
    title.style.setProperty("--tone", tone(servers, server));
    const list = make("ul");
    for (const person of all) if (person.server === server) list.append(personLine(person));
    return [title, list];
  });
  $("people").replaceChildren(...groups);
  showTargets(all);
}

function personLine(person) {
  const line = make("li");
  line.dataset.id = person.id;
  line.dataset.name = person.name;
  line.dataset.server = person.server;
  const who = make("span", "who", person.name);
  who.title = `connection ${person.id}`;
  line.append(who);
  if (person.id === me.id) {
    who.append(make("span", "you", " (you)"));
    return line;
  }
  const write = make("button", "write small", "Write");
  write.setAttribute("aria-label", `Write to ${person.name}`);
  write.onclick = () => {
    $("to").value = `id:${person.id}`;
    $("message").focus();
  };
  const ask = make("button", "ask small", "Ask");
  ask.setAttribute("aria-label", `Ask ${person.name} a question`);
  ask.onclick = () => openAsk(person);
  line.append(write, ask);
  return line;
}

// ---- whom to write to ----

function showTargets(all = [...people.values()]) {
  const to = $("to");
  const chosen = to.value;
  const options = [new Option("everybody", "all")];
  const group = (label, entries) => {
    if (entries.length === 0) return;
    const element = make("optgroup");
    element.label = label;
    element.append(...entries.map(([text, value]) => new Option(text, value)));
    options.push(element);
  };
  const others = all.filter((person) => person.id !== me.id);
  group("A room", [...rooms].map((room) => [`room ${room}`, `room:${room}`]));
  group("One connection", others.map((person) => [`${person.name} on ${person.server}`, `id:${person.id}`]));
  const users = [...new Set(all.map((person) => person.name))];
  group("A user, wherever connected", users.map((name) => [`user ${name}`, `user:${name}`]));
  to.replaceChildren(...options);
  to.value = chosen;
  if (to.selectedIndex < 0) to.value = "all";
}

$("compose").onsubmit = async (event) => {
  event.preventDefault();
  const text = $("message").value.trim();
  if (text === "" || hub.state !== "connected") return;
  const to = $("to").value;
  const at = to.indexOf(":");
  const [kind, target] = at < 0 ? [to, ""] : [to.slice(0, at), to.slice(at + 1)];
  const calls = {
    all: () => hub.invoke("SendMessage", me.name, text),
    room: () => hub.invoke("SendToRoom", target, text),
    user: () => hub.invoke("SendToUser", target, text),
    id: () => hub.invoke("SendToConnection", target, text),
  };
  $("message").value = "";
  try {
    await calls[kind]();
    // One's own words to everybody, to a room or to oneself come back by themselves.
    const name = kind === "id" ? people.get(target)?.name : target;
    if (kind === "id" || (kind === "user" && name !== me.name)) {
      say("direct", text, { from: me.name, tag: `to ${name ?? "somebody"} alone`, mine: true });
    }
  } catch (error) {
    say("error", error.message);
    if ($("message").value === "") $("message").value = text;
  }
};

// ---- rooms ----

function showRooms() {
  $("rooms").replaceChildren(...[...rooms].map((room) => {
    const line = make("li");
    line.dataset.room = room;
    const leave = make("button", "leave", "×");
    leave.setAttribute("aria-label", `Leave the room ${room}`);
    leave.onclick = async () => {
      if ((await told(hub.invoke("LeaveRoom", room).then(() => true))) !== true) return;
      rooms.delete(room);
      note(`You left the room ${room}.`);
      showRooms();
    };
    line.append(make("span", "who", room), leave);
    return line;
  }));
  showTargets();
}

$("join").onsubmit = async (event) => {
  event.preventDefault();
  const room = $("room").value.trim();
  if (room === "") return;
  if ((await told(hub.invoke("JoinRoom", room).then(() => true))) !== true) return;
  rooms.add(room);
  $("room").value = "";
  showRooms();
  $("to").value = `room:${room}`;
};

// ---- questions ----

function openAsk(person) {
  const dialog = $("ask");
  $("ask-who").textContent = `${person.name} on ${person.server}`;
  $("ask-text").value = "";
  dialog.returnValue = "";
  dialog.onclose = async () => {
    const question = $("ask-text").value.trim();
    if (dialog.returnValue !== "ask" || question === "") return;
    note(`You asked ${person.name}: ${question}`);
    try {
      say("direct", await hub.invoke("Ask", person.id, question), { from: person.name, tag: "answers you" });
    } catch (error) {
      const gone = error instanceof HubError && error.message.startsWith("There is no such client");
      say("error", `${person.name}: ${error.message}`);
      if (gone) left(people.get(person.id), "left");
    }
  };
  dialog.showModal();
  $("ask-text").focus();
}
$("ask-cancel").onclick = () => $("ask").close("");

/** The server asks; what the promise ends with is the answer. */
function asked(person, question) {
  return new Promise((resolve, reject) => {
    const line = make("li");
    const text = make("p", "text");
    text.append(make("strong", "", `${person.name} on ${person.server} asks: `), question);
    const form = make("form");
    const label = make("label", "hidden", "Your answer");
    const answer = make("input", "answer");
    answer.maxLength = 1000;
    answer.id = `answer-${Math.random().toString(36).slice(2)}`;
    label.htmlFor = answer.id;
    const reply = make("button", "reply strong", "Answer");
    const refuse = make("button", "refuse", "Refuse");
    refuse.type = "button";
    const close = (outcome) => {
      clearTimeout(late);
      line.remove();
      outcome();
    };
    line.withdraw = (why) => close(() => {
      note(`The question of ${person.name} is withdrawn. ${why}`);
      reject(new Error(why));
    });
    const late = setTimeout(() => line.withdraw("It was not answered in time."), ANSWER_WITHIN);
    form.onsubmit = (event) => {
      event.preventDefault();
      close(() => {
        note(`You answered ${person.name}: ${answer.value}`);
        resolve(answer.value);
      });
    };
    refuse.onclick = () => close(() => {
      note(`You refused to answer ${person.name}.`);
      reject(new Error(`no answer to that.`));
    });
    form.append(label, answer, reply, refuse);
    line.append(text, form);
    $("questions").append(line);
  });
}

// ---- one's name ----

$("rename").onsubmit = (event) => {
  event.preventDefault();
  const name = $("name").value.trim();
  if (name === "" || name === me.name) return;
  me = { id: null, name, server: me.server };
  sessionStorage.setItem("name", name);
  // The server knows one's name from the request that opens the connection.
  hub.onstate = () => {};
  hub.stop();
  connect();
};

$("name").value = me.name;
sessionStorage.setItem("name", me.name);
showRooms();
connect();
setTimeout(refresh, REFRESH_EVERY);
