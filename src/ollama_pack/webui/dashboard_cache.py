"""The dashboard's part on the response cache: a function of the page's script."""

CACHE_PART = """
const number = value => isNumber(value) ? value.toLocaleString() : "0";
const total = (counts, begin) => Object.entries(counts)
  .filter(([name]) => name.startsWith(begin)).reduce((sum, [, value]) => sum + value, 0);

function cacheReasons(counts) {
  const rows = Object.entries(counts).filter(([name]) => /^(misses|bypasses|not_stored)[/]/.test(name))
    .sort((one, other) => other[1] - one[1])
    .map(([name, value]) => make("tr", {},
      cell(name.replace("/", ": ").replace("_", " ")), cell(number(value), 1)));
  return rows.length ? table([["Why not from the cache"], ["requests", 1]], rows) : null;
}

function lookupTimes(counts) {
  const bounds = Object.keys(counts).filter(name => name.startsWith("lookups_ms/"))
    .map(name => [name.split("/")[1], counts[name]])
    .sort((one, other) => (parseFloat(one[0]) || Infinity) - (parseFloat(other[0]) || Infinity));
  const rows = bounds.map(([bound, value]) =>
    make("tr", {}, cell(bound === "more" ? "more" : "up to " + bound + " ms"), cell(number(value), 1)));
  return rows.length ? table([["Lookup took"], ["requests", 1]], rows) : null;
}

let flushed = "";
async function flushCache() {
  if (!confirm("Make all cached answers unusable, for everybody?")) return;
  try {
    const answer = await fetch("/ollama-pack/cache/flush", {method: "POST"});
    const told = await answer.json();
    flushed = answer.ok && !told.fault ? "Flushed at " + clock(Date.now() / 1000) + "."
      : "Not flushed: " + (told.fault || told.detail || answer.status);
  } catch (error) {
    flushed = "Not flushed: " + error.message;
  }
  draw();
}

function cacheParts(told) {
  if (!told || !told.all)
    return [make("h2", {}, "Response cache"), make("div", {class: "card soft"}, text(told && told.fault))];
  const counts = told.fault ? told.worker : told.all;
  const given = (counts.hits || 0) + (counts.follows || 0), asked = given + total(counts, "misses/");
  const minutes = " · kept " + Math.round(told.ttl_seconds / 60) + " min";
  const about = told.store + " · scope " + told.scope + minutes + (told.enabled ? "" : " · switched off");
  return [make("h2", {}, "Response cache"), make("div", {class: "card", id: "cache"},
    told.fault ? notice(told.fault + ": chats go to their models. Figures of one worker:", "bad") : null,
    make("div", {class: "figures"},
      figure(asked ? Math.round(100 * given / asked) + " %" : "—", "given from the cache"),
      figure(number(counts.hits), "kept answers"), figure(number(counts.follows), "shared while generated"),
      figure(seconds(counts.seconds_saved || 0), "generation saved"),
      figure(number(counts.tokens_saved), "tokens saved"),
      figure(number(total(counts, "bypasses/")), "not for the cache")),
    make("p", {class: "row"}, make("span", {class: "soft small"}, about),
      make("button", {on: flushCache}, "Flush"), make("span", {class: "small"}, flushed)),
    cacheReasons(counts), lookupTimes(counts))];
}
"""
