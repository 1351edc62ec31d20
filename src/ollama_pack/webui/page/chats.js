// The chats: those at work now, then those that have ended, the newest first.

const MAX_SHOWN = 1000;
let chats = [], held = [], come = [], paused = false, olderKey = "", search = {text: "", outcome: ""}, searching = 0;

const OUTCOMES = {
  answered: [() => t("answered"), "good"], cached: [() => t("from the cache"), "good"],
  shared: [() => t("shared"), "good"], stopped: [() => t("stopped"), "warn"], failed: [() => t("failed"), "bad"],
  waiting: [() => t("waits"), "warn"], loading: [() => t("loads"), "warn"], answering: [() => t("is answered"), ""],
};
const outcomeWord = outcome => OUTCOMES[outcome] ? OUTCOMES[outcome][0]() : text(outcome);

// The same rule as the server's `matches`.
function isWanted(chat) {
  if (search.outcome && chat.outcome !== search.outcome) return false;
  return [chat.asked, chat.model, chat.node, chat.name, chat.error, chat.error_text, ...Object.values(object(chat.error_texts))]
    .join("\n").toLowerCase().includes(search.text.toLowerCase());
}

// Chats that have just ended, the oldest first; at the beginning the last ones that there are.
function takeChats(ended, isWhole) {
  const known = new Set(chats.concat(held).map(chat => chat.id));
  const fresh = ended.filter(chat => !known.has(chat.id) && isWanted(chat)).reverse();
  if (isWhole && !chats.length && !search.text && !search.outcome) olderKey = fresh.length ? fresh[fresh.length - 1].key : "";
  come = fresh.concat(come).slice(0, MAX_SHOWN);
  if (paused) held = fresh.concat(held).slice(0, MAX_SHOWN);
  else chats = fresh.concat(chats).slice(0, MAX_SHOWN);
}

async function findChats(before) {
  if (!before) come = [];
  const number = ++searching, asked = new URLSearchParams({...search, before});
  const answer = await fetch("/ollama-pack/chats?" + asked, {cache: "no-store"});
  if (!answer.ok || number !== searching) return;
  const found = await answer.json();
  if (before) chats = chats.concat(list(found.chats));
  else {
    // Those that have come since the question: the server may have looked before they had ended.
    const ids = new Set(list(found.chats).map(chat => chat.id)), since = come.filter(chat => !ids.has(chat.id));
    [held, chats] = [paused ? since : [], (paused ? [] : since).concat(list(found.chats))];
  }
  olderKey = found.next;
  want("chats");
}

function drawChats() {
  const running = list(part("router").running).map(object).filter(isWanted);
  const heads = [["", ""], [t("Ended")], [t("Model")], [t("Node"), "medium"], [t("User"), "medium"],
    [t("waited"), "number wide"], [t("first token"), "number medium"], [t("in all"), "number wide"], [t("Outcome")]];
  const filter = make("input", {type: "search", id: "chat-filter", placeholder: t("Filter chats"),
    "aria-label": t("Filter chats by model, node, user or error")});
  const outcomes = make("select", {id: "chat-outcome", "aria-label": t("Outcome")},
    make("option", {value: ""}, t("all outcomes")),
    ["answered", "cached", "shared", "stopped", "failed"].map(name => make("option", {value: name}, outcomeWord(name))));
  const pause = make("button", {type: "button", "data-act": "pause", "aria-pressed": String(paused)},
    paused ? t("Go on ({count} new)", {count: held.length}) : t("Pause"));
  const rows = [...running.map(chat => [chat, "running " + chat.id]), ...chats.map(chat => [chat, "chat " + chat.key])];
  put(document.getElementById("chats"), head(t("Chats"), filter, outcomes, pause),
    make("div", {class: "card"},
      rows.length ? table(t("Chats"), heads, rows.flatMap(([chat, key]) => chatRows(chat, key)))
        : make("span", {class: "soft"}, search.text || search.outcome ? t("No chat is like that.")
          : t("None yet. A chat with a model of the router, or an answer from the cache, shows here.")),
      olderKey && chats.length < MAX_SHOWN
        ? make("p", {class: "head"}, make("button", {type: "button", "data-act": "older"}, t("Show older"))) : null));
}

function chatRows(chat, key) {
  const [, kind] = OUTCOMES[chat.outcome] || [];
  const off = isNumber(chat.first) && isNumber(chat.predicted) && chat.first - (chat.waited || 0) > 2 * chat.predicted + 0.5;
  const row = make("tr", {"data-key": key},
    cell(opener(key, t("Details of this chat"))),
    cell(chat.outcome in {waiting: 1, loading: 1, answering: 1} ? t("now") : moment(chat.at)),
    cell([code(chat.asked), chat.model && chat.model !== chat.asked ? [" → ", code(chat.model)] : "",
      chat.background ? [" ", badge(t("background"))] : ""], "text"),
    cell(text(chat.node), "text medium"), cell(text(chat.name), "text medium"),
    cell(seconds(chat.waited), "number wide"),
    cell(off ? badge(seconds(chat.first), "warn") : seconds(chat.first), "number medium"),
    cell(seconds(chat.took), "number wide"), cell(badge(outcomeWord(chat.outcome), kind)));
  return opened.has(key)
    ? [row, make("tr", {"data-key": key + " details"}, make("td", {colspan: 9, class: "inner"}, chatDetails(chat)))] : [row];
}

function chatDetails(chat) {
  const considered = list(chat.considered).map(object);
  const terms = [...new Set(considered.flatMap(one => Object.keys(object(one.terms))))]
    .filter(term => considered.some(one => object(one.terms)[term] > 0));
  return [
    make("ul", {}, sentences(chat).map(sentence => make("li", {}, sentence))),
    considered.length > 1 ? [make("h3", {}, t("What each node would have cost")),
      table(t("What each node would have cost"), [[t("Node")], [t("Model")], ...terms.map(term => [termWord(term), "number"])],
        considered.map((one, at) => make("tr", at ? {} : {class: "chosen"}, cell(text(one.node)), cell(code(one.model)),
          terms.map(term => cell(seconds(object(one.terms)[term]), "number")))))] : null,
  ];
}

function termWord(term) {
  const known = {wait: t("wait"), load: t("load the model"), prompt: t("read the prompt"), decode: t("share the GPU"),
    evict: t("what others lose"), tier: t("distance")};
  return known[term] || term;
}

// Why it went as it did, in sentences.
function sentences(chat) {
  const {asked, model, node, name} = chat, said = [];
  if (name) said.push(t("{name} asked for {asked}.", {name, asked}));
  if (chat.outcome === "cached")
    return said.concat(t("The answer was in the cache, {age} old: {saved} of generation saved.",
      {age: seconds(chat.age || 0), saved: seconds(chat.saved || 0)}));
  if (chat.outcome === "shared")
    return said.concat(t("The same question was being answered: both chats got that answer."));
  for (const [failing, why] of Object.entries(object(chat.tried)))
    said.push(t("{node} failed it: {why}", {node: failing, why: object(object(chat.tried_texts)[language])[failing] || why}));
  if (node && chat.loads) said.push(t("{node} had to load {model}: no node could begin sooner.", {node, model}));
  else if (node && chat.held > 0)
    said.push(t("{node} had {model} in memory, and {held} of the {prompt} tokens of the prompt.",
      {node, model, held: number(chat.held), prompt: number(chat.prompt)}));
  else if (node) said.push(t("{node} had {model} in memory, and could begin soonest.", {node, model}));
  if (chat.waited >= 0.05) said.push(t("It waited {time} for a node.", {time: seconds(chat.waited)}));
  if (isNumber(chat.first) && isNumber(chat.predicted))
    said.push(t("The first token came after {first}; {predicted} at the node were predicted.",
      {first: seconds(chat.first), predicted: seconds(chat.predicted)}));
  else if (isNumber(chat.predicted))
    said.push(t("The first token is predicted after {predicted} at the node.", {predicted: seconds(chat.predicted)}));
  if (chat.written > 0) said.push(t("The answer has {tokens} tokens and took {took}.",
    {tokens: number(chat.written), took: seconds(chat.took)}));
  if (chat.outcome === "stopped") said.push(t("The user stopped it, or left."));
  if (chat.error_text) said.push(t("It failed: {why}", {why: object(chat.error_texts)[language] || chat.error_text}));
  return said;
}
