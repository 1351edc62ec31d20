// The nodes: a line each, the worst first, with details where a line is opened.

let nodeFilter = "", nodeSort = {by: "state", down: false};

const gpusOf = node => list(node.gpus).map(object);
const busiest = node => Math.max(-1, ...gpusOf(node).map(gpu => isNumber(gpu.utilization) ? gpu.utilization : -1));
const memoryOf = node => gpusOf(node).reduce(([used, total], gpu) =>
  [used + (gpu.memory_used || 0), total + (gpu.memory_total || 0)], [0, 0]);
const modelsOf = node => list(node.runners).map(runner => object(runner).model).concat(node.runners ? [] : list(node.models));

// 0: down, 1: some models are left alone after failures, 2: healthy.
function rank(node) {
  if (!node.healthy) return 0;
  return Object.keys(object(node.breakers)).length ? 1 : 2;
}

const NODE_COLUMNS = [
  ["state", () => t("State"), "", rank],
  ["name", () => t("Node"), "", node => node.name],
  ["models", () => t("In memory"), "medium", node => modelsOf(node).join(" ")],
  ["running", () => t("Running"), "number", node => -(node.in_flight || 0)],
  ["waiting", () => t("Waiting"), "number medium", node => -(node.queued || 0)],
  ["busy", () => t("GPU busy"), "number", node => -busiest(node)],
  ["memory", () => t("GPU memory"), "wide", node => -memoryOf(node)[0]],
];

function sortedNodes() {
  const wanted = nodeFilter.toLowerCase();
  const value = NODE_COLUMNS.find(([name]) => name === nodeSort.by)[3];
  const order = (one, other) => {
    const [a, b] = [value(one), value(other)];
    const by = typeof a === "string" || typeof b === "string" ? COLLATOR.compare(text(a), text(b)) : a - b;
    return (nodeSort.down ? -by : by) || COLLATOR.compare(text(one.name), text(other.name));
  };
  return below("nodes/").map(([, node]) => object(node)).filter(node =>
    [node.name, node.url, node.fault, stateWord(node), ...modelsOf(node)].join("\n").toLowerCase().includes(wanted))
    .sort(order);
}

const stateWord = node => [t("down"), t("in part"), t("healthy")][rank(node)];

function drawNodes() {
  const all = below("nodes/"), shown = sortedNodes(), router = part("router");
  const heads = [["", ""], ...NODE_COLUMNS.map(([name, label, kind]) => make("th", {scope: "col", class: kind,
    "aria-sort": nodeSort.by === name ? (nodeSort.down ? "descending" : "ascending") : null},
    make("button", {type: "button", "data-act": "sort", "data-value": name}, label())))];
  const search = make("input", {type: "search", id: "node-filter", placeholder: t("Filter nodes"),
    "aria-label": t("Filter nodes by name, address, state or model")});
  const count = shown.length === all.length ? "" : t("{shown} of {all}", {shown: shown.length, all: all.length});
  put(document.getElementById("nodes"),
    head(t("Nodes"), make("span", {class: "soft small"}, count), all.length > 1 ? search : null),
    make("div", {class: "card"}, all.length ? table(t("Nodes"), heads, shown.flatMap(nodeRows))
      : make("span", {class: "soft"}, router.fault ? t("Nothing is known of any node.")
        : t("The router has no nodes: write them into its valve “nodes” under Admin Panel → Functions."))),
    all.length ? pullCard(all.map(([, node]) => text(object(node).name))) : null);
}

function nodeRows(node) {
  const key = "node " + node.name, [used, total] = memoryOf(node), busy = busiest(node);
  const models = modelsOf(node), memory = t("{used} of {total} GiB", {used: gigabytes(used), total: gigabytes(total)});
  const row = make("tr", {"data-key": key},
    cell(opener(key, t("Details of {name}", {name: text(node.name)}))),
    cell(badge(stateWord(node), ["bad", "warn", "good"][rank(node)])),
    make("th", {scope: "row", class: "text"}, text(node.name), isDrained(node.name) ? [" ", badge(t("drained"), "warn")] : ""),
    cell(models.length > 3 ? t("{first} and {count} more", {first: models.slice(0, 2).join(", "), count: models.length - 2})
      : models.join(", "), "text medium"),
    cell(number(node.in_flight), "number"), cell(number(node.queued), "number medium"),
    cell(busy < 0 ? "—" : [Math.round(busy) + " %", bar(busy / 100, t("GPU busy {percent} %", {percent: Math.round(busy)}))], "number"),
    cell(total ? [memory, bar(used / total, t("GPU memory {memory}", {memory}))] : "—", "wide"));
  return opened.has(key)
    ? [row, make("tr", {"data-key": key + " details"}, make("td", {colspan: 8, class: "inner"}, nodeDetails(node)))] : [row];
}

function nodeDetails(node) {
  const gpus = gpusOf(node), runners = list(node.runners).map(object);
  const left = Object.entries(object(node.breakers));
  return [
    node.url ? make("p", {}, code(node.url)) : null,
    node.fault ? make("p", {class: "notice bad"}, node.fault) : null,
    node.breaker && node.breaker !== "closed"
      ? make("p", {class: "notice warn"}, breakerSentence(node.breaker)) : null,
    left.map(([model, state]) => make("p", {class: "notice warn"}, state === "open"
      ? t("{model} failed here: it is asked elsewhere for a while.", {model})
      : t("{model} failed here: one chat tries it again.", {model}))),
    gpus.length ? make("div", {class: "gpus"}, gpus.map(gpuDetails))
      : make("p", {class: "soft small"}, node.gpu_reason ? t("No GPU figures: {reason}", {reason: node.gpu_reason})
        : t("No GPU figures: run gpu_agent.py on the host and name it in agent=…")),
    runners.length ? table(t("Models in memory"), [[t("In memory")], [t("context"), "number"], [t("running"), "number"],
      [t("conversations kept"), "number"]], runners.map(one => make("tr", {}, cell(code(one.model)),
      cell(number(one.context), "number"), cell(text(one.running) + " / " + text(one.slots), "number"),
      cell(number(one.prefixes), "number"))))
      : make("p", {class: "soft small"}, t("No model in memory.")),
    speeds(node),
    drainTools(text(node.name)),
  ];
}

// A drained node finishes what it has. The router's valve `drained` keeps it so, for every worker.
const isDrained = name => list(part("router").drained).includes(name);
const drainFaults = new Map();
function drainTools(name) {
  const drained = isDrained(name), why = drainFaults.get(name);
  return make("div", {class: "head"}, make("div", {class: "group"},
    make("button", {type: "button", "data-act": "drain", "data-value": name},
      drained ? t("Take it back") : t("Give it nothing new")),
    make("button", {type: "button", "data-act": "pullHere", "data-value": name}, t("Pull a model here")),
    make("span", {class: "soft small"}, drained ? t("It finishes what it has and gets nothing new.") : ""),
    make("span", {class: "small", role: "status"}, why ? t("Not done: {why}", {why}) : "")));
}

// Asks for something to be done; gives what upkeep does then, and why it was not done.
async function changed(path, asked) {
  try {
    const answer = await fetch("/ollama-pack/nodes/" + path + "?" + new URLSearchParams({language}),
      {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(asked)});
    const said = object(await answer.json());
    const why = answer.ok ? said.fault : said.detail || answer.status;
    if (!why) parts.set("router", {...part("router"), drained: list(said.drained), pulls: list(said.pulls)});
    return why;
  } catch (error) {
    return error.message;
  }
}

async function drainNode(name) {
  drainFaults.set(name, await changed("drain", {node: name, drain: !isDrained(name)}));
  want("nodes");
}

// Models are pulled at one node after another, in whichever worker: all of them show how far it is.
const PULLS = {waiting: [() => t("waits for its turn"), ""], draining: [() => t("finishes its chats"), "warn"],
  pulling: [() => t("pulls"), ""], done: [() => t("done"), "good"], failed: [() => t("failed"), "bad"],
  stopped: [() => t("stopped"), "warn"]};
const MAX_PULLS_SHOWN = 20, ENDED_PULLS_SHOWN = 5;
let pullFault = "";

function pullCard(nodes) {
  const all = list(part("router").pulls).map(object);
  const now = all.findIndex(one => ["waiting", "draining", "pulling"].includes(one.state)), goesOn = now >= 0;
  // The last ones; where nodes wait, those around the one that pulls now.
  const begin = Math.max(0, Math.min(goesOn ? now - ENDED_PULLS_SHOWN : Infinity, all.length - MAX_PULLS_SHOWN));
  const pulls = all.slice(begin, begin + MAX_PULLS_SHOWN);
  return make("div", {class: "card", "data-key": "pulls"},
    make("h3", {}, t("Pull a model")),
    make("div", {class: "head"}, make("div", {class: "group"},
      make("input", {type: "text", id: "pull-model", placeholder: "llama3:8b", "aria-label": t("Model to pull")}),
      make("select", {id: "pull-node", "aria-label": t("Node to pull at")},
        make("option", {value: ""}, t("all nodes, one after another")),
        nodes.map(name => make("option", {value: name, "data-key": "option " + name}, name))),
      make("button", {type: "button", "data-act": "pull"}, t("Pull")),
      goesOn ? make("button", {type: "button", "data-act": "stopPull", "data-key": "stop"}, t("Stop the pull")) : null,
      make("span", {class: "small", role: "status"}, pullFault ? t("Not done: {why}", {why: pullFault}) : ""))),
    pulls.length ? table(t("Pulls"), [[t("Model")], [t("Node")], [t("State")], ["%", "number"]], pulls.map(pullRow)) : null);
}

function pullRow(one) {
  const [word, kind] = PULLS[one.state] || [() => text(one.state), ""];
  return make("tr", {}, cell(code(one.model), "text"), cell(text(one.node), "text"),
    cell([badge(word(), kind), one.fault ? make("div", {class: "small"}, one.fault) : ""], "text"),
    cell(one.state === "pulling" ? [number(one.percent), bar(one.percent / 100, t("{percent} % pulled", {percent: number(one.percent)}))]
      : "", "number"));
}

async function pullModel(model, nodes) {
  pullFault = await changed("pull", {model, nodes});
  want("nodes", "plan");
}

const askPull = () => {
  const node = document.getElementById("pull-node").value;
  return pullModel(document.getElementById("pull-model").value, node ? [node] : []);
};

async function stopPull() {
  pullFault = await changed("pull/stop", {});
  want("nodes");
}

function pullHere(name) {
  document.getElementById("pull-node").value = name;
  document.getElementById("pull-model").focus();
}

const breakerSentence = state => state === "open"
  ? t("It failed several chats: it is given none for a while.") : t("It failed several chats: one chat tries it again.");

function gpuDetails(gpu) {
  const busy = isNumber(gpu.utilization) ? Math.round(gpu.utilization) : "—";
  const memory = t("{used} of {total} GiB", {used: gigabytes(gpu.memory_used), total: gigabytes(gpu.memory_total)});
  return make("div", {class: "small"},
    make("span", {}, "GPU " + text(gpu.index) + (gpu.name ? " · " + gpu.name : "")),
    make("div", {}, t("busy"), " ", make("span", {}, busy + " %"), bar(busy / 100, t("GPU busy {percent} %", {percent: busy}))),
    make("div", {}, t("memory"), " ", make("span", {}, memory),
      bar(gpu.memory_total > 0 ? gpu.memory_used / gpu.memory_total : 0, t("GPU memory {memory}", {memory}))));
}

// How fast a model is here: tokens a second, as learned from answers.
function speeds(node) {
  const known = Object.values(object(node.rates)).map(object).filter(rate => rate.model);
  if (!known.length) return null;
  return table(t("Speed"), [[t("Speed")], [t("reads, tokens/s"), "number"], [t("writes, tokens/s"), "number"],
    [t("loads in"), "number"], [""]], known.map(rate => make("tr", {}, cell(code(rate.model)),
    cell(isNumber(rate.prompt) ? number(Math.round(rate.prompt)) : "—", "number"),
    cell(rate.token > 0 ? number(1 / rate.token) : "—", "number"), cell(seconds(rate.load), "number"),
    cell(rate.learned === false ? t("assumed") : ""))));
}
