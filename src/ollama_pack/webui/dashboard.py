"""The dashboard's page. It takes nothing from elsewhere, and puts in what the server tells as text."""

from ollama_pack.webui.dashboard_cache import CACHE_PART

NONCE = "%NONCE%"

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --line: #e3e6ea; --text: #1b1f24; --soft: #5f6975; --faint: #eef0f3;
  --good: #14804a; --good-soft: #ddf3e6; --bad: #b42318; --bad-soft: #fde4e1; --warn: #94590a;
  --warn-soft: #fdf0d5; --bar: #3b6fd4; --chosen: #eaf1fd;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101215; --card: #191c20; --line: #2b3037; --text: #e8eaed; --soft: #9aa4b0; --faint: #23272d;
    --good: #5fd295; --good-soft: #12341f; --bad: #ff8f85; --bad-soft: #431a17; --warn: #f0bd68;
    --warn-soft: #3a2a0d; --bar: #6c9bf5; --chosen: #1d2a40;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 14px/1.45 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 20px 20px 48px; }
header { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: baseline; }
h1 { font-size: 20px; margin: 0; }
h2 { font-size: 15px; margin: 28px 0 10px; }
h3 { font-size: 15px; margin: 0; overflow-wrap: anywhere; }
header .state { margin-left: auto; }
.soft { color: var(--soft); }
.small { font-size: 12.5px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 14px; }
.cards .card { display: flex; flex-direction: column; gap: 10px; }
.cards p { margin: 0; }
.row { display: flex; flex-wrap: wrap; gap: 6px 8px; align-items: center; }
.badge { border-radius: 99px; padding: 1px 9px; font-size: 12px; background: var(--faint); }
.good { background: var(--good-soft); color: var(--good); }
.bad { background: var(--bad-soft); color: var(--bad); }
.warn { background: var(--warn-soft); color: var(--warn); }
.notice { border-radius: 8px; padding: 9px 12px; margin: 12px 0 0; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; }
.figures b { display: block; font-size: 20px; font-weight: 600; line-height: 1.2; }
.gpu { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 2px 10px; font-size: 12.5px; }
.gpu .value { text-align: right; }
.gpu > :first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bar { grid-column: 1 / -1; height: 7px; width: 100%; border-radius: 4px; background: var(--faint); }
.bar rect { fill: var(--bar); }
.scroll { overflow-x: auto; }
.wide table { min-width: 640px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 10px 5px 0; vertical-align: top; }
th, td { border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--soft); font-size: 12.5px; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
tbody tr:last-child > td { border-bottom: 0; }
tr.chosen > td { background: var(--chosen); }
tr.opens { cursor: pointer; }
tr.opens:hover > td { background: var(--faint); }
button.more {
  all: unset; cursor: pointer; width: 18px; text-align: center; color: var(--soft); border-radius: 4px;
}
button.more:focus-visible { outline: 2px solid var(--bar); }
td.inner { padding: 4px 0 12px 28px; }
code { font: 12.5px ui-monospace, monospace; overflow-wrap: anywhere; }
ul { margin: 0; padding-left: 18px; }
a { color: inherit; }
"""

_SCRIPT = """
"use strict";
const POLL = 2000, PATIENCE = 10000;
const main = document.querySelector("main");
const opened = new Set();

// Everything that the server tells goes through here, as text.
function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "on") node.addEventListener("click", value);
    else node.setAttribute(key, value);
  }
  node.append(...children.flat().filter(child => child !== null && child !== undefined && child !== ""));
  return node;
}
const text = value => value === null || value === undefined ? "—" : String(value);
const list = value => Array.isArray(value) ? value : [];
const isNumber = value => typeof value === "number" && Number.isFinite(value);
function seconds(value) {
  if (!isNumber(value)) return "—";
  if (value === 0) return "0";
  if (Math.abs(value) < 0.0005) return "<1 ms";
  if (Math.abs(value) < 1) return Math.round(value * 1000) + " ms";
  return value.toFixed(value < 10 ? 2 : 1) + " s";
}
const gigabytes = value => isNumber(value) ? (value / 2 ** 30).toFixed(1) : "—";
const short = value => Math.abs(value) >= 1e9 ? (value / 1e9).toFixed(2) + " G"
  : Math.abs(value) >= 1e6 ? (value / 1e6).toFixed(2) + " M" : String(Number(value.toPrecision(4)));
const clock = at => isNumber(at) ? new Date(at * 1000).toLocaleTimeString() : "—";
const badge = (words, kind) => make("span", {class: "badge " + (kind || "")}, words);
const notice = (words, kind) => make("p", {class: "notice " + kind, role: "status"}, words);
const cell = (value, number) => make("td", number ? {class: "number"} : {}, value);

function table(heads, rows) {
  const head = heads.map(([name, number]) => make("th", number ? {class: "number"} : {}, name));
  return make("div", {class: "scroll"},
    make("table", {}, make("thead", {}, make("tr", {}, head)), make("tbody", {}, rows)));
}

function bar(percent, label) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg"), rect = document.createElementNS(space, "rect");
  const width = Math.max(0, Math.min(100, isNumber(percent) ? percent : 0));
  for (const [key, value] of Object.entries(
    {class: "bar", viewBox: "0 0 100 7", preserveAspectRatio: "none", role: "img", "aria-label": label}))
    svg.setAttribute(key, value);
  rect.setAttribute("width", width);
  rect.setAttribute("height", 7);
  svg.append(rect);
  return svg;
}

function gpu(one) {
  const share = one.memory_total > 0 ? 100 * one.memory_used / one.memory_total : null;
  const busy = isNumber(one.utilization) ? Math.round(one.utilization) + " %" : "—";
  const memory = gigabytes(one.memory_used) + " of " + gigabytes(one.memory_total) + " GiB";
  return make("div", {class: "gpu"},
    make("span", {title: text(one.name)}, "GPU " + text(one.index) + (one.name ? " · " + one.name : "")),
    make("span", {class: "value"}, busy), bar(one.utilization, "GPU busy " + busy),
    make("span", {class: "soft"}, "memory"), make("span", {class: "soft value"}, memory),
    bar(share, "GPU memory " + memory));
}

function figure(value, name) {
  return make("div", {}, make("b", {}, text(value)), make("span", {class: "soft small"}, name));
}

function runners(node) {
  if (!Array.isArray(node.runners))
    return make("div", {class: "row"}, list(node.models).map(model => badge(text(model))));
  if (!node.runners.length) return make("p", {class: "soft small"}, "No model in memory.");
  return table([["In memory"], ["context", 1], ["running", 1], ["prefixes", 1]], node.runners.map(one =>
    make("tr", {}, cell(make("code", {}, text(one.model))), cell(text(one.context), 1),
      cell(text(one.running) + " / " + text(one.slots), 1), cell(text(one.prefixes), 1))));
}

function rates(node) {
  const known = Object.entries(node.rates && typeof node.rates === "object" ? node.rates : {})
    .filter(([, rate]) => rate && typeof rate === "object");
  if (!known.length) return null;
  const key = "rates " + node.name;
  const rows = known.map(([name, rate]) => {
    const shown = Object.entries(rate).filter(([, value]) => isNumber(value)).map(([what, value]) =>
      what + " " + short(value));
    return make("li", {}, make("code", {}, text(rate.model || name)), " ", shown.join(" · "),
      rate.learned === false ? " (assumed)" : "");
  });
  const details = make("details", {class: "small"},
    make("summary", {class: "soft"}, "Learned rates"), make("ul", {}, rows));
  details.open = opened.has(key);
  details.addEventListener("toggle", () => details.open ? opened.add(key) : opened.delete(key));
  return details;
}

function node(one) {
  const gpus = list(one.gpus), breaker = text(one.breaker);
  return make("section", {class: "card"},
    make("div", {class: "row"}, make("h3", {}, text(one.name)),
      one.healthy ? badge("healthy", "good") : badge("down", "bad"),
      one.breaker && breaker !== "closed" ? badge("breaker " + breaker.replace("_", " "), "warn") : null,
      Object.entries(one.breakers && typeof one.breakers === "object" ? one.breakers : {})
        .map(([model, state]) => badge(model + " failed: breaker " + text(state), "warn"))),
    one.url ? make("code", {class: "soft"}, one.url) : null,
    one.fault ? make("p", {class: "notice bad small"}, one.fault) : null,
    make("div", {class: "figures"}, figure(one.in_flight, "in flight"), figure(one.queued, "queued"),
      figure(Array.isArray(one.runners) ? one.runners.length : list(one.models).length, "in memory")),
    gpus.length ? gpus.map(gpu) : make("p", {class: "soft small"},
      one.gpu_reason ? "No GPU figures: " + one.gpu_reason
        : "No GPU figures: run gpu_agent.py on the host and name it in agent=…"),
    runners(one), rates(one));
}

function considered(decision) {
  const all = list(decision.considered).filter(one => one && typeof one === "object");
  if (!all.length) return make("p", {class: "soft small"}, "Nothing else was considered.");
  const terms = [...new Set(all.flatMap(one => Object.keys(one.terms || {})))];
  return table([["Node"], ["Model"], ...terms.map(term => [term, 1])], all.map(one =>
    make("tr", one.node === decision.node && one.model === decision.model ? {class: "chosen"} : {},
      cell(text(one.node)), cell(make("code", {}, text(one.model))),
      terms.map(term => cell(seconds((one.terms || {})[term]), 1)))));
}

function decisions(told) {
  const rows = told.flatMap((one, at) => {
    const key = "decision " + text(one.at) + " " + text(one.request ?? at);
    const isOpen = opened.has(key);
    const flip = () => { isOpen ? opened.delete(key) : opened.add(key); draw(); };
    const hit = isNumber(one.hit) ? one.hit + (isNumber(one.tokens) ? " of " + one.tokens : "") : "—";
    const off = isNumber(one.actual) && isNumber(one.predicted) && one.actual > 2 * one.predicted + 0.5;
    const line = make("tr", {class: "opens", on: flip},
      cell(make("button", {class: "more", "aria-expanded": String(isOpen), "aria-label": "Details"},
        isOpen ? "▾" : "▸")),
      cell(clock(one.at)), cell(text(one.node)),
      cell([make("code", {}, text(one.model)), one.loads ? " " : "", one.loads ? badge("loads", "warn") : "",
        one.background ? " " : "", one.background ? badge("background") : ""]),
      cell(hit, 1), cell(seconds(one.waited), 1), cell(seconds(one.predicted), 1),
      make("td", {class: "number"}, off ? badge(seconds(one.actual), "warn") : seconds(one.actual)));
    return isOpen
      ? [line, make("tr", {}, make("td", {colspan: 8, class: "inner"}, considered(one)))] : [line];
  });
  return table([[""], ["Time"], ["Node"], ["Model"], ["prefix tokens", 1], ["waited", 1],
    ["predicted", 1], ["first token", 1]], rows);
}

function published(told) {
  if (!told.publish_aliases)
    return notice("Nothing is published: publish_aliases is off in this function's valves.", "warn");
  if (!told.looked_at)
    return notice("The models have not been looked at yet; this takes a few seconds.", "warn");
  const rows = list(told.rows).map(row => make("tr", {},
    cell(make("code", {}, text(row.id))),
    cell(row.base ? make("code", {class: "soft"}, row.base)
      : make("span", {class: "soft"}, row.alias ? "itself, for " + row.alias : "itself")),
    cell([list(row.audience).join(", ") || "admins", list(row.opens).length
      ? make("div", {class: "soft small"}, "opens to them: " + list(row.opens).join(", ")) : ""]),
    cell([row.active ? "" : badge("switched off", "warn"), isNumber(row.missing_seconds)
      ? badge("away for " + Math.round(row.missing_seconds / 60) + " min", "warn") : ""])));
  return rows.length ? table([["Model"], ["answered by"], ["for"], [""]], rows)
    : make("span", {class: "soft"}, "Nothing to publish: no node has a model, and no alias an answer.");
}

function leftAlone(told) {
  const rows = list(told.left).map(row =>
    make("li", {}, make("code", {}, text(row.id)), ": " + text(row.reason)));
  if (!rows.length) return [];
  return [make("h2", {}, "Left alone"), make("div", {class: "card"}, make("ul", {}, rows))];
}

%CACHE%
let last = null, fault = "";

function draw() {
  const focus = document.activeElement && document.activeElement.closest("tr.opens");
  const index = focus ? [...document.querySelectorAll("tr.opens")].indexOf(focus) : -1;
  const parts = [make("header", {}, make("h1", {}, "Ollama Pack"),
    make("a", {href: "/", class: "soft"}, "Open WebUI"),
    make("span", {class: "soft small state"}, last ? "as of " + clock(last.seen) : "asking …"))];
  if (fault) parts.push(notice(fault, "bad"));
  if (last) {
    const router = last.data.router || {}, publishing = last.data.publishing || {};
    const nodes = list(router.nodes), told = list(router.decisions);
    if (last.data.fault) parts.push(notice(last.data.fault, "warn"));
    list(publishing.problems).filter(one => !last.data.fault || !String(one).startsWith(last.data.fault))
      .forEach(problem => parts.push(notice(text(problem), "warn")));
    const waiting = isNumber(router.waiting) ? " · " + router.waiting + " waiting" : "";
    const peers = router.peers > 0 ? " · shared with " + router.peers + " more of Open WebUI's workers" : "";
    parts.push(make("h2", {}, "Nodes" + waiting + peers));
    if (router.sharing_fault)
      parts.push(notice("The router's redis_url does not answer: " + text(router.sharing_fault)
        + ". This worker goes on alone.", "bad"));
    parts.push(nodes.length ? make("div", {class: "cards"}, nodes.map(node))
      : make("div", {class: "card soft"}, last.data.fault ? "Nothing is known of any node."
        : "The router has no nodes: write them into its valve “nodes” under Admin Panel → Functions."));
    parts.push(make("h2", {}, "Last decisions"));
    parts.push(make("div", {class: "card wide"}, told.length ? decisions(told)
      : make("span", {class: "soft"}, "None yet. A chat with a model of the router shows here.")));
    parts.push(make("h2", {}, "Published models"), make("div", {class: "card wide"}, published(publishing)));
    parts.push(...leftAlone(publishing), ...cacheParts(last.data.cache));
  }
  main.replaceChildren(...parts);
  if (index >= 0) document.querySelectorAll("tr.opens button")[index]?.focus();
}

async function poll() {
  if (!document.hidden) {
    try {
      const signal = AbortSignal.timeout(PATIENCE);
      const answer = await fetch("/ollama-pack/data", {signal, cache: "no-store"});
      if (answer.status === 401 || answer.status === 403)
        throw new Error("Sign in to Open WebUI as an admin again.");
      if (!answer.ok || !(answer.headers.get("content-type") || "").includes("json"))
        throw new Error("The function ollama_pack_events is switched off, or being updated.");
      last = {data: await answer.json(), seen: Date.now() / 1000};
      fault = "";
    } catch (error) {
      fault = error instanceof TypeError || error.name === "TimeoutError"
        ? "Open WebUI does not answer. What is shown is from " + (last ? clock(last.seen) : "nowhere") + "."
        : error.message;
    }
    draw();
  }
  setTimeout(poll, POLL);
}
document.addEventListener("visibilitychange", () => document.hidden || draw());
draw();
poll();
"""

_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Ollama Pack</title>
<style nonce="{NONCE}">{_STYLE}</style>
</head>
<body>
<main><noscript>The dashboard needs JavaScript.</noscript></main>
<script nonce="{NONCE}">{_SCRIPT.replace("%CACHE%", CACHE_PART)}</script>
</body>
</html>
"""


def dashboard_html(nonce: str) -> str:
    """The page; its one script and its one style sheet carry the nonce of the page's policy."""
    return _PAGE.replace(NONCE, nonce)
