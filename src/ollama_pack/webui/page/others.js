// What is wrong and what goes on, on top; names, the cache, voice and processes, below.

// Sentences of what is wrong, the worst first: [kind, sentence].
function problems() {
  const router = part("router"), cache = part("cache"), found = [];
  const nodes = below("nodes/").map(([, node]) => object(node)), down = nodes.filter(node => !node.healthy);
  if (fault) found.push(["bad", fault]);
  if (router.sharing_fault)
    found.push(["bad", t("The router's redis_url does not answer: {fault}. This worker goes on alone.", {fault: router.sharing_fault})]);
  if (nodes.length && down.length === nodes.length) found.push(["bad", t("All {count} nodes are down.", {count: down.length})]);
  down.slice(0, 5).forEach(node => found.push(["bad", t("{node} is down: {why}",
    {node: text(node.name), why: node.fault || breakerSentence(node.breaker)})]));
  if (down.length > 5) found.push(["bad", t("{count} more nodes are down.", {count: down.length - 5})]);
  if (cache.fault && cache.worker)
    found.push(["bad", t("The response cache does not work: {fault}. Chats go to their models.", {fault: cache.fault})]);
  if (part("budgets").fault)
    found.push(["bad", t("Budgets are not counted: {fault}. Chats go on without.", {fault: part("budgets").fault})]);
  const {failed = 0, answered = 0} = part("recent");
  if (failed > 0)
    found.push([failed > answered ? "bad" : "warn", t("{failed} of {all} chats failed in the last 5 minutes.",
      {failed, all: failed + answered})]);
  nodes.filter(node => rank(node) === 1).forEach(node => Object.keys(object(node.breakers)).forEach(model =>
    found.push(["warn", t("{node} failed chats with {model}: they go elsewhere for a while.", {node: node.name, model})])));
  if (router.fault) found.push(["warn", router.fault]);
  list(part("publishing").problems).concat(list(part("budgets").problems))
    .filter(one => !router.fault || !String(one).startsWith(router.fault)).forEach(one => found.push(["warn", text(one)]));
  list(part("refused").valves).map(object).forEach(one => found.push(["warn",
    t("Settings of {plugin} were refused: {reason}", {plugin: text(one.plugin), reason: text(object(one.said)[language] || object(one.said).en)})]));
  if (part("history").fault)
    found.push(["warn", t("The history cannot be read or written: {fault}.", {fault: part("history").fault})]);
  below("processes/").filter(([, one]) => object(one).fault).forEach(([name, one]) =>
    found.push(["warn", t("{name} goes on alone: {fault}", {name, fault: one.fault})]));
  return found;
}

function drawTop() {
  const nodes = below("nodes/").map(([, node]) => object(node)), up = nodes.filter(node => node.healthy).length;
  const router = part("router"), recent = part("recent"), hour = part("last_hour"), day = part("last_day");
  const all = one => ["answered", "cached", "shared", "stopped", "failed"].reduce((sum, name) => sum + (one[name] || 0), 0);
  const asked = below("processes/").length ? below("processes/").reduce((sum, [, one]) => sum + (object(one).waiting || 0), 0)
    : router.waiting;
  const given = (hour.cached || 0) + (hour.shared || 0);
  const wrong = problems();
  const tile = (value, label, kind) => make("div", {class: "card tile " + (kind || "")}, make("b", {}, value),
    make("span", {class: "soft small"}, label));
  put(document.getElementById("now"),
    parts.size ? make("ul", {class: "notices"}, wrong.length
      ? wrong.map(([kind, sentence]) => make("li", {class: "notice " + kind}, sentence))
      : make("li", {class: "notice good"}, t("Everything works.")),
    needsSignIn ? make("li", {class: "notice"}, make("a", {class: "button", href: "/auth?redirect=%2Follama-pack"}, t("Sign in"))) : null)
      : make("p", {class: "soft"}, t("Asking …")),
    parts.size ? make("div", {class: "tiles"},
      tile(nodes.length ? t("{up} of {all}", {up, all: nodes.length}) : "—", t("nodes up"), nodes.length && up < nodes.length ? "bad" : ""),
      tile(number(all(recent) / 5), t("requests a minute")),
      tile(number(asked), t("waiting"), asked > 0 ? "warn" : ""),
      tile(seconds(hour.p95), t("first token, p95, last hour")),
      tile(all(hour) ? percent(given / all(hour)) : "—", t("from the cache, last hour")),
      tile(seconds(day.saved || 0), t("generation saved, last day"))) : null);
}

function audience(who) {
  const [kind, name] = [text(who).split(" ", 1)[0], text(who).split(" ").slice(1).join(" ")];
  if (kind === "group") return t("group {name}", {name});
  return kind === "user" ? t("user {name}", {name}) : who === "everybody" ? t("everybody") : text(who);
}

function drawPublished() {
  const told = part("publishing"), rows = list(told.rows).map(object), uploaded = new Set(rows.filter(row => row.made_by === "upload").map(row => row.id));
  const left = list(told.left).map(object).filter(row => !uploaded.has(row.id));
  const content = () => {
    if (told.publish_aliases === false && !rows.length)
      return make("p", {class: "notice warn"}, t("Nothing is published: publish_aliases is off in this function's valves."));
    if (!told.looked_at) return make("p", {class: "soft"}, t("The models have not been looked at yet; this takes a few seconds."));
    if (!rows.length) return make("p", {class: "soft"}, t("Nothing to publish: no node has a model, and no alias an answer."));
    return table(t("Published models"), [[t("Model")], [t("answered by")], [t("for")], [t("made by"), "medium"], [""]],
      rows.map(row => make("tr", {"data-key": text(row.id)}, cell(code(row.id), "text"), cell(answerers(row), "text"),
        cell([list(row.audience).map(audience).join(", ") || t("admins"), list(row.opens).length
          ? make("div", {class: "soft small"}, t("opens to them: {models}", {models: row.opens.join(", ")})) : ""]),
        cell(row.made_by === "upload" ? "upload.py" : t("this function"), "medium"),
        cell([row.active === false ? badge(t("switched off"), "warn") : "", isNumber(row.missing_seconds)
          ? badge(t("away for {minutes} min", {minutes: Math.round(row.missing_seconds / 60)}), "warn") : ""]))));
  };
  put(document.getElementById("published"), head(t("Published models")), make("div", {class: "card"}, content()),
    left.length ? [make("h3", {}, t("Left alone")), make("div", {class: "card"}, make("ul", {}, left.map(row =>
      make("li", {}, code(row.id), ": " + text(row.reason)))))] : null);
}

function answerers(row) {
  const models = list(row.answers);
  if (models.length) return models.map((model, at) => [at ? ", " : "", code(model)]);
  if (row.base) return make("code", {class: "soft"}, row.base);
  return make("span", {class: "soft"}, row.alias ? t("itself, for {alias}", {alias: row.alias}) : t("itself"));
}

const total = (counts, begin) => Object.entries(counts)
  .filter(([name]) => name.startsWith(begin)).reduce((sum, [, value]) => sum + value, 0);

let flushed = "";
async function flushCache() {
  if (!confirm(t("Make all cached answers unusable, for everybody?"))) return;
  try {
    const answer = await fetch("/ollama-pack/cache/flush", {method: "POST"});
    const told = await answer.json();
    flushed = answer.ok && !told.fault ? t("Flushed at {time}.", {time: clock(Date.now() / 1000)})
      : t("Not flushed: {why}", {why: told.fault || told.detail || answer.status});
  } catch (error) {
    flushed = t("Not flushed: {why}", {why: error.message});
  }
  want("cache");
}

function drawCache() {
  const told = part("cache"), counts = object(told.fault ? told.worker : told.all);
  const given = (counts.hits || 0) + (counts.follows || 0), asked = given + total(counts, "misses/");
  const title = t("Response cache");
  if (!told.all) return put(document.getElementById("cache"), head(title), make("div", {class: "card soft"}, text(told.fault)));
  put(document.getElementById("cache"),
    head(title, make("span", {class: "small", role: "status"}, flushed),
      make("button", {type: "button", "data-act": "flush"}, t("Flush"))),
    make("div", {class: "card"},
      told.fault ? make("p", {class: "notice bad"}, t("{fault}: chats go to their models. Figures of one worker:", {fault: told.fault})) : null,
      make("div", {class: "figures"},
        figure(asked ? percent(given / asked) : "—", t("given from the cache")),
        figure(number(counts.hits || 0), t("kept answers")), figure(number(counts.follows || 0), t("shared while generated")),
        figure(seconds(counts.seconds_saved || 0), t("generation saved")),
        figure(number(counts.tokens_saved || 0), t("tokens saved")),
        figure(number(total(counts, "bypasses/")), t("not for the cache"))),
      make("p", {class: "soft small"}, t("{store}, scope {scope}, answers are kept for {minutes} min.",
        {store: told.store, scope: told.scope, minutes: Math.round(told.ttl_seconds / 60)}),
        told.enabled === false ? [" ", badge(t("switched off"), "warn")] : ""),
      make("div", {class: "columns"}, cacheReasons(counts), lookupTimes(counts))));
}

// Why the cache did not answer or keep an answer, by the name that it counts under.
function reasonWord(name) {
  const words = {
    "misses/absent": t("not asked before, or too long ago"), "misses/refresh": t("a new answer was wanted"),
    "misses/unreadable": t("the kept answer could not be read"), "misses/store slow": t("the store was slow"),
    "misses/store down": t("the store was down"), "misses/store full": t("the store was full"),
    "misses/store open": t("the store is left alone for a while"), "misses/leader lost": t("the request that generated it broke off"),
    "bypasses/background task": t("titles, tags and the like"),
    "bypasses/temporary chat": t("a temporary chat"), "bypasses/continued answer": t("an answer that goes on"),
    "bypasses/scheduled run": t("a scheduled run"), "bypasses/direct connection": t("a direct connection"),
    "bypasses/not deterministic": t("the same question may have different answers"),
    "bypasses/client's wish": t("the client wanted no cache"), "bypasses/no scope": t("with files, knowledge, memory or tools"),
    "bypasses/model digest unknown": t("which weights answer is not known"),
    "bypasses/no replay": t("response_cache_replay is missing"), "bypasses/no access": t("the user may not use the model"),
    "bypasses/not seen by the filter": t("response_cache_filter has not seen it"),
    "bypasses/an image that cannot be read": t("a picture that cannot be read"),
    "bypasses/an image or file that is only referred to": t("a picture or file that is only referred to"),
    "bypasses/a search of the engine": t("the engine searches the web or runs tools itself"),
    "bypasses/a conversation kept by the engine": t("the engine keeps the conversation"),
    "bypasses/several choices": t("several answers were wanted"),
    "not_stored/tool calls": t("not kept: it calls tools"), "not_stored/finish reason length": t("not kept: it reached the longest length"),
    "not_stored/error": t("not kept: it ended with an error"), "not_stored/no finish reason": t("not kept: it broke off"),
    "not_stored/not finished": t("not kept: stopped before its end"), "not_stored/too large": t("not kept: too large"),
    "not_stored/empty": t("not kept: empty"), "not_stored/another model": t("not kept: another model answered"),
    "not_stored/no usage": t("not kept: it has no figures"), "not_stored/flushed": t("not kept: the cache was flushed"),
  };
  if (words[name]) return words[name];
  const code = name.slice(name.indexOf("/") + 1);
  return name.startsWith("not_stored") ? t("not kept, code “{code}”", {code}) : t("another reason, code “{code}”", {code});
}

function cacheReasons(counts) {
  const rows = Object.entries(counts).filter(([name]) => /^(misses|bypasses|not_stored)[/]/.test(name))
    .sort((one, other) => other[1] - one[1]).slice(0, 12)
    .map(([name, value]) => make("tr", {}, cell(reasonWord(name)), cell(number(value), "number")));
  return rows.length ? table(t("Why not from the cache"), [[t("Why not from the cache")], [t("requests"), "number"]], rows) : null;
}

function lookupTimes(counts) {
  const bounds = Object.keys(counts).filter(name => name.startsWith("lookups_ms/"))
    .map(name => [name.split("/")[1], counts[name]])
    .sort((one, other) => (parseFloat(one[0]) || Infinity) - (parseFloat(other[0]) || Infinity));
  const rows = bounds.map(([bound, value]) => make("tr", {},
    cell(bound === "more" ? t("more") : t("up to {bound} ms", {bound})), cell(number(value), "number")));
  return rows.length ? table(t("How long lookups took"), [[t("Lookup took")], [t("requests"), "number"]], rows) : null;
}

function drawBudgets() {
  const told = part("budgets"), rows = list(told.most).map(object);
  if (!told.most) return put(document.getElementById("budgets"));
  const periods = {day: t("today"), week: t("this week"), month: t("this month")};
  const units = {"gpu-seconds": t("GPU-seconds"), tokens: t("tokens"), requests: t("requests")};
  put(document.getElementById("budgets"),
    head(t("Budgets"), make("a", {class: "button", href: "/ollama-pack/usage.csv"}, t("Download all as CSV"))),
    make("div", {class: "card"}, rows.length
      ? table(t("Budgets"), [[t("Whose")], [t("used"), "number"], [t("of"), ""], [t("when"), "medium"]],
        rows.map(row => make("tr", {"data-key": [row.whose, row.unit, row.period].join(" ")}, cell(text(row.whose), "text"),
          cell(number(row.used), "number"), cell(units[row.unit] || text(row.unit)), cell(periods[row.period] || text(row.period), "medium"))))
      : make("p", {class: "soft"}, t("Nothing has been used yet."))));
}

function drawVoice() {
  const told = part("voice"), counts = object(told.counts), queue = object(told.queue);
  const failed = Object.entries(counts).filter(([name]) => /^outcome[/](?!ok$|kept$)/.test(name)), why = {};
  for (const [name, value] of failed) why[voiceWord(name.slice(8))] = (why[voiceWord(name.slice(8))] || 0) + value;
  put(document.getElementById("voice"), head(t("Voice")), make("div", {class: "card"},
    make("div", {class: "figures"}, figure(number(queue.waits || 0), t("recordings wait")),
      figure(number((queue.works || 0) + (queue.away || 0)), t("are transcribed now")),
      figure(number((counts["outcome/ok"] || 0) + (counts["outcome/kept"] || 0)), t("transcribed")),
      figure(seconds(counts.audio_seconds || 0), t("of speech")), figure(seconds(counts.work_seconds || 0), t("of work")),
      figure(number(total(Object.fromEntries(failed), "")), t("failed"))),
    failed.length ? make("p", {class: "soft small"}, Object.entries(why).map(([word, value]) =>
      word + ": " + number(value)).join(" · ")) : null));
}

// Why a recording was not transcribed, by the error's code.
function voiceWord(code) {
  const words = {
    no_speech: t("no speech in it"), empty_audio: t("empty"), not_audio: t("not a recording"), no_audio_track: t("no sound in it"),
    zero_length: t("not a recording"), sample_rate: t("not a recording"), upload: t("no recording was sent"),
    audio_too_large: t("too large"), audio_too_long: t("too long"), upload_too_large: t("too large"),
    language_tag: t("unknown language"), speech_language: t("unknown language"),
    speech_queue_full: t("too many recordings waited"), speech_share_full: t("too many recordings waited"),
    speech_model_missing: t("the speech model is missing"),
  };
  return words[code] || (code.startsWith("speech_server") ? t("the speech server failed")
    : code.startsWith("speech") ? t("the speech engine failed") : t("another reason, code “{code}”", {code}));
}

function drawProcesses() {
  const rows = below("processes/").map(([name, one]) => [name, object(one)]);
  put(document.getElementById("processes"), rows.length > 0 ? [head(t("Servers that share the history")),
    make("div", {class: "card"}, table(t("Servers that share the history"), [[t("Process")], [t("Kind")],
      [t("Running"), "number"], [t("Waiting"), "number"], [t("Nodes up"), "number medium"], [""]],
    rows.map(([name, one]) => make("tr", {"data-key": name},
      make("th", {scope: "row", class: "text"}, name, name === part("history").process ? [" ", badge(t("this one"))] : ""),
      cell(text(one.kind)), cell(number(one.in_flight), "number"), cell(number(one.waiting), "number"),
      cell(t("{up} of {all}", {up: one.nodes_up, all: one.nodes}), "number medium"),
      cell(one.fault ? badge(one.fault, "bad") : "")))))] : null);
}
