// Small charts. Each has an equivalent text for people who cannot see it.

import { duration, h, number, svg } from "./dom.js";

export function lines(series, { label, tall = false, most = 0 } = {}) {
  const length = Math.min(120, Math.max(30, ...series.map((points) => points.length)));
  const values = series.flat().filter(Number.isFinite);
  const top = Math.max(most, ...values, 1e-9) * 1.08;
  const width = 240, height = 60;
  const x = (index, count) => width - (count - 1 - index) * (width / (length - 1));
  const y = (value) => height - (value / top) * height;
  const chart = svg("svg", { class: `chart${tall ? " tall" : ""}`, viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none",
    role: "img", "aria-label": label });
  chart.append(svg("line", { class: "base", x1: 0, x2: width, y1: height, y2: height }));
  series.forEach((points, number_) => {
    const shown = points.slice(-length);
    let path = "", open = false;
    shown.forEach((value, index) => {
      if (!Number.isFinite(value)) { open = false; return; }
      path += `${open ? "L" : "M"}${x(index, shown.length).toFixed(1)} ${y(value).toFixed(1)}`;
      open = true;
    });
    if (!path) return;
    if (series.length === 1 && !shown.some((value) => !Number.isFinite(value))) {
      chart.append(svg("path", { class: "area", d: `${path}L${width} ${height}L${x(0, shown.length).toFixed(1)} ${height}Z` }));
    }
    chart.append(svg("path", { class: `line l${series.length - number_}`, d: path }));
  });
  return chart;
}

export function tile(label, value, unit, note, chart) {
  return h("div", { class: "panel tile" }, h("span", { class: "label" }, label),
    h("span", { class: "value" }, value, unit ? h("small", {}, ` ${unit}`) : null), h("span", { class: "note" }, note ?? ""), chart);
}

export function histogram(counts, names, label) {
  const most = Math.max(1, ...counts);
  return h("div", {},
    h("div", { class: "bars", role: "img", "aria-label": label },
      counts.map((count) => h("i", { style: { height: `${(100 * count) / most}%` }, title: `${count}` }))),
    h("div", { class: "ticks", "aria-hidden": "true" }, names.map((name) => h("span", {}, name))));
}

export function latencies(latency) {
  const first = latency.findIndex((count) => count > 0);
  if (first < 0) return h("p", { class: "empty" }, "No requests in the last two minutes.");
  let last = latency.length - 1;
  while (!latency[last]) last -= 1;
  const from = Math.max(0, first - 1), to = Math.min(47, Math.max(last + 1, from + 7));
  const counts = [], names = [];
  for (let index = from; index <= to; index += 1) {
    counts.push(latency[index] ?? 0);
    names.push(duration(2 ** index).replace(/\.\d/, ""));
  }
  const total = counts.reduce((sum, count) => sum + count, 0);
  return histogram(counts, names, `Durations of ${number(total)} requests, from ${duration(2 ** (first - 1))} to ${duration(2 ** last)}`);
}

export const STAGES = [["queue", "waiting in the queue"], ["input", "gathering inputs"], ["infer", "running the model"], ["output", "splitting outputs"]];

export function stages(ns, requests) {
  const total = STAGES.reduce((sum, [stage]) => sum + (ns[stage] ?? 0), 0);
  if (!total || !requests) return h("p", { class: "empty" }, "No requests in the last two minutes.");
  const each = (stage) => (ns[stage] ?? 0) / requests / 1000;
  return h("div", {},
    h("div", { class: "stack", role: "img", "aria-label": STAGES.map(([stage, text]) => `${text} ${duration(each(stage))}`).join(", ") },
      STAGES.map(([stage], index) => h("i", { class: `k${index}`, style: { width: `${(100 * (ns[stage] ?? 0)) / total}%` } }))),
    h("div", { class: "keys num" }, STAGES.map(([stage, text], index) => h("span", {}, h("i", { class: `k${index}` }), `${text} ${duration(each(stage))}`))));
}
