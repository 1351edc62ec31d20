// A plan for the fleet, when somebody asks for one: what fits where, what to pull, what one more GPU brings.

const PLAN_CONTEXT = 8192;
let plan = null, planFault = "", planning = false;

async function makePlan() {
  if (planning) return;
  const value = id => document.getElementById(id).value.trim();
  const asked = new URLSearchParams({context: value("plan-context"), users: value("plan-users"), language});
  [planning, planFault] = [true, ""];
  want("plan");
  try {
    const answer = await fetch("/ollama-pack/plan?" + asked, {cache: "no-store"});
    const said = object(await answer.json());
    planFault = answer.ok ? said.fault : said.detail || answer.status;
    if (!planFault) plan = said;
  } catch (error) {
    planFault = error.message;
  }
  planning = false;
  want("plan");
}

function drawPlan() {
  const field = (id, label, value) => make("label", {}, label, " ",
    make("input", {type: "text", inputmode: "numeric", class: "short", id, value}));
  put(document.getElementById("plan"), head(t("Plan"),
    field("plan-context", t("tokens for each chat"), String(PLAN_CONTEXT)),
    field("plan-users", t("people (empty: as many as now)"), ""),
    make("button", {type: "button", "data-act": "plan", disabled: planning}, planning ? t("Planning …") : t("Make a plan"))),
    make("div", {class: "card"},
      make("p", {class: "soft small"},
        t("What fits where, what to pull so that the busiest hour needs the fewest loads, and what one more GPU would bring.")),
      planFault ? make("p", {class: "notice bad", role: "status"}, t("Not done: {why}", {why: planFault})) : null,
      plan ? planDetails() : null));
}

function planDetails() {
  const nodes = list(plan.nodes).map(object);
  return [
    make("ul", {}, nodes.map(node => make("li", {}, make("b", {}, text(node.name)), ": ", node.fault
      || (node.room_bytes ? t("{room} GB for models, {source}", {room: planGB(node.room_bytes), source: node.room_from})
        : t("its memory is not known"))))),
    list(plan.notes).map(note => make("p", {class: "notice warn"}, note)),
    list(plan.unplaced).map(model => make("p", {class: "notice warn"},
      t("{model} fits nowhere next to the others: it is loaded when asked for", {model}))),
    make("p", {class: "small"}, t("Demand: {source}.", {source: text(plan.demand)})),
    make("h3", {}, t("What to pull")), planPulls(),
    make("h3", {}, t("What fits")), planTable(), planReplays(),
  ];
}

const planGB = bytes => number(bytes / 1e9);

function planPulls() {
  const missing = list(plan.plan).map(object).filter(one => one.pull);
  if (!missing.length) return make("p", {class: "soft"}, t("Nothing has to be pulled."));
  return table(t("What to pull"), [[t("Model")], [t("Node")], ["GB", "number"], [""]], missing.map(one => make("tr", {},
    cell(code(one.variant), "text"), cell(text(one.node), "text"), cell(planGB(one.bytes), "number"),
    cell(make("button", {type: "button", "data-act": "planPull", "data-value": JSON.stringify([one.variant, one.node]),
      "aria-label": t("Pull {model} at {node}", {model: one.variant, node: one.node})}, t("Pull"))))));
}

// A row for each model and quantization, a column for each node.
function planTable() {
  const words = {"fits beside": [t("fits next to the others"), "good"], fits: [t("fits alone"), "good"],
    spills: [t("partly on the CPU"), "warn"], cannot: [t("does not fit"), "bad"]};
  const fits = list(plan.fits).map(object), columns = [...new Set(fits.map(row => row.node))], rows = new Map();
  for (const row of fits) {
    const key = [row.model, row.variant, row.level].join(" ");
    if (!rows.has(key)) rows.set(key, [row, new Map()]);
    rows.get(key)[1].set(row.node, row);
  }
  if (!fits.length) return make("p", {class: "soft"}, t("No model to plan with, or no node whose memory is known."));
  return table(t("What fits"), [[t("Model")], [t("bits")], ...columns.map(name => [text(name)])],
    [...rows].map(([key, [row, cells]]) => make("tr", {"data-key": "plan " + key},
      cell(code(row.variant || row.model), "text"), cell(text(row.level), "nowrap"),
      columns.map(name => {
        const one = object(cells.get(name)), [word, kind] = words[one.state] || ["—", ""];
        return cell([badge(word, kind), " ", planGB(one.bytes) + " GB", one.planned ? [" ", badge(t("planned"))] : ""], "nowrap");
      }))));
}

function planReplays() {
  const rows = list(plan.replays).map(object);
  if (!rows.length) return null;
  return [make("h3", {}, t("The last {count} chats again, simulated", {count: number(plan.replayed)})),
    table(t("Simulation"), [[t("Nodes")], [t("first token, mean"), "number"], ["p95", "number"], [t("models loaded"), "number"],
      [t("refused"), "number"]], rows.map(one => make("tr", {}, cell(text(one.fleet), "text"),
      cell(seconds(one.mean_seconds), "number"), cell(seconds(one.p95_seconds), "number"), cell(number(one.loads), "number"),
      cell(number(one.refused), "number"))))];
}
