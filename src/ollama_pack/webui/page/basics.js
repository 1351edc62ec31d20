"use strict";
// What all parts of the page use: words, elements, figures, and changing only what has changed.

// The function t stands before this script: it gives a sentence in the language of the page.
const language = document.documentElement.lang || "en";

// Everything that comes from outside goes through here, as text or as an attribute's value.
const SVG = new Set(["svg", "rect", "path", "title", "g"]);
function make(tag, attributes = {}, ...children) {
  const element = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (value !== null && value !== undefined && value !== false)
      element.setAttribute(name, value === true ? "" : value);
  element.append(...children.flat(3).filter(child => child !== null && child !== undefined && child !== ""));
  return element;
}

// Makes an element like another one, and leaves alone what is equal: focus, selection and scrolling stay.
// What has a data-key is found again by it. What a user sets by hand (a field's value, `open`) stays.
const keyOf = node => node.nodeType === 1 ? node.getAttribute("data-key") : null;
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== 1) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const {name} of [...old.attributes])
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  for (const {name, value} of fresh.attributes)
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const keyed = new Map([...old.children].filter(keyOf).map(child => [keyOf(child), child]));
  const staying = new Set([...fresh.children].map(keyOf));
  let at = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const key = keyOf(child);
    while (at && keyOf(at) && !staying.has(keyOf(at))) at = removed(at);
    const same = key ? keyed.get(key) : at && !keyOf(at) && alike(at, child) ? at : null;
    if (!same) old.insertBefore(child, at);
    else {
      if (same === at) at = at.nextSibling;
      else old.insertBefore(same, at);
      morph(same, child);
    }
  }
  while (at) at = removed(at);
}
const alike = (one, other) => one.nodeType === other.nodeType && one.nodeName === other.nodeName;
function removed(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

// Puts children into an element, and keeps the focus where a row has moved.
function put(element, ...children) {
  const focused = document.activeElement;
  const fresh = element.cloneNode(false);
  fresh.append(...children.flat(3).filter(child => child !== null && child !== undefined && child !== ""));
  morph(element, fresh);
  if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({preventScroll: true});
}

// What the server has sent, by path.
const parts = new Map();
const part = path => parts.get(path) || {};
function below(prefix) {
  const found = [];
  for (const [path, value] of parts) if (path.startsWith(prefix)) found.push([path.slice(prefix.length), value]);
  return found;
}

const text = value => value === null || value === undefined || value === "" ? "—" : String(value);
const list = value => Array.isArray(value) ? value : [];
const object = value => value && typeof value === "object" && !Array.isArray(value) ? value : {};
const isNumber = value => typeof value === "number" && Number.isFinite(value);
// Made once: to make one takes longer than to draw a line of a table.
const NUMBER = new Intl.NumberFormat(language, {maximumFractionDigits: 1});
const COLLATOR = new Intl.Collator(language, {numeric: true});
const number = value => isNumber(value) ? NUMBER.format(value) : "—";
const percent = share => isNumber(share) ? Math.round(100 * share) + " %" : "—";
const gigabytes = value => isNumber(value) ? (value / 2 ** 30).toFixed(1) : "—";
const CLOCK = {hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23"};
const TIME = new Intl.DateTimeFormat(language, CLOCK);
const clock = at => isNumber(at) ? TIME.format(new Date(at * 1000)) : "—";
const DAY = new Intl.DateTimeFormat(language, {month: "short", day: "numeric"});
// The time, and the day where that is not today; neither is broken into two lines.
function moment(at) {
  const whole = part => make("span", {class: "nowrap"}, part), day = isNumber(at) ? DAY.format(new Date(at * 1000)) : "";
  return day && day !== DAY.format(new Date(clockNow() * 1000)) ? [whole(day), " ", whole(clock(at))] : whole(clock(at));
}
function seconds(value) {
  if (!isNumber(value)) return "—";
  if (value === 0) return "0";
  if (Math.abs(value) < 0.0005) return "<1 ms";
  if (Math.abs(value) < 1) return Math.round(value * 1000) + " ms";
  if (value < 120) return value.toFixed(value < 10 ? 2 : 1) + " s";
  return value < 7200 ? t("{count} min", {count: Math.round(value / 60)}) : t("{count} h", {count: (value / 3600).toFixed(1)});
}

const badge = (label, kind) => make("span", {class: "badge " + (kind || "")}, label);
const code = value => make("code", {}, text(value));
const cell = (value, kind) => make("td", kind ? {class: kind} : {}, value);
const figure = (value, label) => make("div", {}, make("b", {}, value), make("span", {class: "soft small"}, label));

// A table whose heads are [label, class]; a narrow screen scrolls it, by keyboard too.
function table(label, heads, rows) {
  const head = heads.map(one => one instanceof Element ? one
    : make("th", {scope: "col", class: one[1]}, one[0] || make("span", {class: "hidden"}, t("Details"))));
  return make("div", {class: "scroll", tabindex: 0, role: "group", "aria-label": label},
    make("table", {}, make("thead", {}, make("tr", {}, head)), make("tbody", {}, rows)));
}

// Copied, as each node of the table has two.
const BAR = make("svg", {class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "img"}, make("rect", {height: 6}));
function bar(share, label) {
  const width = Math.max(0, Math.min(100, isNumber(share) ? 100 * share : 0)), drawn = BAR.cloneNode(true);
  drawn.setAttribute("aria-label", label);
  drawn.firstChild.setAttribute("width", width.toFixed(1));
  return drawn;
}

// Rows that are open: their keys. The button that opens one says so to screen readers.
const opened = new Set();
const opener = (key, label) => make("button", {class: "more", type: "button", "data-act": "open", "data-value": key,
  "aria-expanded": String(opened.has(key)), "aria-label": label});

// The head of a section: its title, and what can be done there.
const head = (title, ...tools) => make("div", {class: "head"}, make("h2", {}, title),
  tools.length ? make("div", {class: "group"}, tools) : null);
