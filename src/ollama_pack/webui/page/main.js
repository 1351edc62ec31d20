// What is drawn when, what clicks do, and the stream of changes.

const PATIENCE = 8000;  // milliseconds without a word, after which the server does not answer
const DRAWS = {now: drawTop, charts: drawCharts, nodes: drawNodes, plan: drawPlan, chats: drawChats, published: drawPublished,
  cache: drawCache, budgets: drawBudgets, voice: drawVoice, processes: drawProcesses};
// Which sections show a part, by the beginning of its path.
const SHOWN_BY = {nodes: ["now", "nodes"], router: ["now", "nodes", "chats"], recent: ["now"], last_hour: ["now"],
  last_day: ["now"], hour: ["charts"], day: ["charts"], publishing: ["now", "published"], cache: ["now", "cache"],
  budgets: ["now", "budgets"], voice: ["voice"], processes: ["now", "processes"], history: ["now", "processes"], refused: ["now"]};

let fault = "", needsSignIn = false, source = null, seen = 0, serverAhead = 0, lastKey = "";
const wanted = new Set();
const clockNow = () => Date.now() / 1000 + serverAhead;

// Draws sections before the next frame, however often they are wanted until then.
function want(...names) {
  if (!wanted.size) requestAnimationFrame(() => {
    const names = [...wanted];
    wanted.clear();
    const began = performance.now();
    names.forEach(name => DRAWS[name]());
    performance.measure("draw", {start: began, detail: names});
  });
  names.forEach(name => wanted.add(name));
}

function take(told) {
  seen = Date.now();
  serverAhead = told.now - seen / 1000;
  const changes = Object.entries(told.parts || {});
  if (told.whole) {
    const sent = new Set(changes.map(([path]) => path));
    [...parts.keys()].filter(path => !sent.has(path)).forEach(path => changes.push([path, null]));
  }
  for (const [path, value] of changes) {
    if (value === null) parts.delete(path);
    else parts.set(path, value);
    want(...(SHOWN_BY[path.split("/")[0]] || []));
  }
  if (told.whole) want("now", "charts", "nodes", "plan", "chats");
  if (list(told.chats).length) {
    takeChats(told.chats, told.whole);
    want("chats");
  }
  say("");
}

function say(sentence, signIn = false) {
  document.getElementById("state").textContent = seen ? t("as of {time}", {time: clock(clockNow())}) : "";
  if (fault === sentence && needsSignIn === signIn) return;
  [fault, needsSignIn] = [sentence, signIn];
  want("now");
}

function listen() {
  source?.close();
  source = new EventSource("/ollama-pack/stream?" + new URLSearchParams({after: lastKey, language}));
  source.onmessage = event => {
    lastKey = event.lastEventId;
    take(JSON.parse(event.data));
  };
  source.onerror = () => source.readyState === EventSource.CLOSED && explain();
}

// The stream was refused: why, and again after a while.
async function explain() {
  try {
    const answer = await fetch("/ollama-pack/chats?outcome=none", {cache: "no-store", signal: AbortSignal.timeout(PATIENCE)});
    if (answer.status === 401 || answer.status === 403) say(t("Sign in to Open WebUI as an admin again."), true);
    else if (!answer.ok || !(answer.headers.get("content-type") || "").includes("json"))
      say(t("The function ollama_pack_events is switched off, or being updated."));
  } catch {
    sayGone();
  }
  setTimeout(() => document.hidden || listen(), 2000);
}

const sayGone = () => say(seen ? t("Open WebUI does not answer. What is shown is from {time}.", {time: clock(seen / 1000)})
  : t("Open WebUI does not answer."));

setInterval(() => {
  if (!document.hidden && source?.readyState === EventSource.CONNECTING && Date.now() - seen > PATIENCE) sayGone();
  if (!document.hidden) want("charts");
}, 5000);
document.addEventListener("visibilitychange", () => document.hidden ? source?.close() : listen());

const ACTS = {
  open: key => {
    if (!opened.delete(key)) opened.add(key);
    want(key.startsWith("node ") ? "nodes" : "chats");
  },
  sort: by => {
    nodeSort = {by, down: nodeSort.by === by && !nodeSort.down};
    want("nodes");
  },
  span: name => {
    span = name;
    want("charts");
  },
  pause: () => {
    paused = !paused;
    if (!paused) [chats, held] = [held.concat(chats).slice(0, MAX_SHOWN), []];
    want("chats");
  },
  older: () => findChats(olderKey),
  flush: flushCache,
  drain: drainNode,
  pull: askPull,
  pullHere,
  stopPull,
  plan: makePlan,
  planPull: value => pullModel(...JSON.parse(value).map((one, at) => at ? [one] : one)),
};
document.addEventListener("click", event => {
  const pressed = event.target.closest("[data-act]");
  if (pressed) return void ACTS[pressed.dataset.act](pressed.dataset.value);
  const more = event.target.closest("tr[data-key]")?.querySelector(":scope > td > button.more");
  if (more && !event.target.closest("a, button, input, select") && !String(getSelection())) ACTS.open(more.dataset.value);
});

let typing = 0;
function searchSoon(change) {
  search = {...search, ...change};
  clearTimeout(typing);
  typing = setTimeout(() => findChats(""), 250);
}
document.addEventListener("input", ({target}) => {
  if (target.id === "node-filter") [nodeFilter] = [target.value, want("nodes")];
  if (target.id === "chat-filter") searchSoon({text: target.value});
  if (target.id === "chat-outcome") searchSoon({outcome: target.value});
});

// Open WebUI keeps a user's language and colours in the browser.
try {
  const wished = localStorage.locale, asked = new URLSearchParams(location.search);
  if (wished && !asked.has("language") && wished.split("-")[0] !== language.split("-")[0])
    location.replace("?language=" + encodeURIComponent(wished));
  document.documentElement.dataset.theme = {dark: "dark", "oled-dark": "dark", light: "light"}[localStorage.theme] || "";
} catch { /* no storage: the system's colours */ }
document.getElementById("top").append(make("h1", {}, "Ollama Pack"), make("a", {href: "/"}, "Open WebUI"),
  make("span", {class: "soft small state", id: "state"}));
document.getElementById("page").replaceChildren(...Object.keys(DRAWS).map(name => make("section", {id: name})));
want("now");
listen();
