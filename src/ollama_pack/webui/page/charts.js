// Charts of the last hour and the last day, drawn by hand.

let span = "hour";
const SPANS = {hour: {step: 1, count: 60}, day: {step: 10, count: 144}};
const WIDTH = 600, HEIGHT = 110;

function points() {
  const {step, count} = SPANS[span];
  const now = Math.floor(clockNow() / 60 / step) * step, found = new Map(below(span + "/"));
  return Array.from({length: count}, (_, at) => {
    const minute = now - (count - 1 - at) * step;
    return {minute, ...object(found.get(String(minute)))};
  });
}

const CHARTS = [
  {
    title: () => t("Requests a minute"), kind: "bars", format: number,
    series: [
      ["first", () => t("answered by a model"), one => one.answered],
      ["second", () => t("from the cache"), one => (one.cached || 0) + (one.shared || 0)],
      ["third", () => t("failed or stopped"), one => (one.failed || 0) + (one.stopped || 0)],
    ].map(([name, label, value]) => [name, label, one => (value(one) || 0) / SPANS[span].step]),
  },
  {
    title: () => t("Time to the first token"), kind: "lines", format: seconds,
    series: [
      ["first", () => t("half of all chats"), one => one.p50],
      ["third", () => t("95 of 100 chats (p95)"), one => one.p95],
    ],
  },
  {
    title: () => t("Chats that wait for a node"), kind: "bars", format: number,
    series: [["first", () => t("on average"), one => one.waiting]],
  },
  {
    title: () => t("Generation that the cache saved"), kind: "bars", format: seconds,
    series: [["second", () => t("each minute"), one => (one.saved || 0) / SPANS[span].step]],
  },
];

function drawCharts() {
  const all = points();
  const button = (name, label) => make("button", {type: "button", "data-act": "span", "data-value": name,
    "aria-pressed": String(span === name)}, label);
  put(document.getElementById("charts"), head(t("How it went"), button("hour", t("Last hour")), button("day", t("Last day"))),
    make("div", {class: "charts"}, CHARTS.map(one => chart(one, all))));
}

function chart({title, kind, format, series}, all) {
  const values = series.map(([, , value]) => all.map(one => value(one)));
  const sums = all.map((_, at) => values.reduce((sum, row) => sum + (row[at] || 0), 0));
  const top = Math.max(0, ...(kind === "bars" ? sums : values.flat().filter(isNumber)));
  const last = values[values.length - 1].findLast(isNumber);
  const label = t("{title}: at most {top}, lately {last}", {title: title(), top: format(top), last: format(last)});
  const times = [all[0], all[Math.floor(all.length / 2)], all[all.length - 1]].map(({minute}) =>
    make("span", {}, new Date(minute * 60000).toLocaleTimeString(language, {...CLOCK, second: undefined})));
  return make("div", {class: "card chart", "data-key": title()},
    make("h3", {}, title()),
    make("div", {class: "legend small"}, series.map(([name, legend]) =>
      make("span", {class: "key " + name}, make("span", {}, legend())))),
    make("div", {class: "plot"}, make("span", {class: "top soft small"}, top ? format(top) : ""),
      make("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label},
        top ? (kind === "bars" ? bars(series, values, top) : lines(series, values, top)) : [])),
    make("div", {class: "times soft small"}, times));
}

function bars(series, values, top) {
  const width = WIDTH / values[0].length, floor = values[0].map(() => HEIGHT);
  return series.map(([name], row) => make("g", {class: name}, values[row].map((value, at) => {
    const height = (value || 0) / top * (HEIGHT - 16);
    floor[at] -= height;
    return height > 0 ? make("rect", {x: (at * width + 0.5).toFixed(1), y: floor[at].toFixed(1),
      width: (width - 1).toFixed(1), height: height.toFixed(1)}) : null;
  })));
}

// A minute without a value is a gap; one that stands alone is a short line.
function lines(series, values, top) {
  const width = WIDTH / values[0].length;
  return series.map(([name], row) => {
    let pen = "M", path = "";
    values[row].forEach((value, at) => {
      if (!isNumber(value)) return void (pen = "M");
      const y = (HEIGHT - value / top * (HEIGHT - 16)).toFixed(1);
      path += pen === "M" ? `M${(at * width).toFixed(1)} ${y}h${width.toFixed(1)}` : `L${((at + 0.5) * width).toFixed(1)} ${y}`;
      pen = "L";
    });
    return make("path", {class: name, d: path || "M0 0"});
  });
}
