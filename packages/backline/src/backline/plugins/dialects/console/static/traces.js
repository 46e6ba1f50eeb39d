// Recent requests and their phases, as bars over time.

import { clock, duration, fill, h } from "./dom.js";
import { follow } from "./api.js";

const KEPT = 60;

export function waterfall(trace) {
  const total = Math.max(1, trace.took), at = (us) => `${(100 * us) / total}%`;
  const bar = (kind, from, to, title) => h("i", { class: kind, title: `${title}: ${duration(to - from)}`, style: { left: at(from), width: `${(100 * Math.max(0, to - from)) / total}%` } });
  const depth = (request) => (request.parent < 0 ? 0 : 1 + depth(trace.requests[request.parent]));
  return h("div", { class: "fall num" }, trace.requests.map((request) => {
    const run = request.runs[0];
    const parts = request.runs.length ? [bar("k0", request.began, run.started, "waiting in the queue"), request.runs.map((one) => [bar("k1", one.started, one.gathered, "gathering inputs"), bar("k2", one.gathered, one.ran, "running the model"), bar("k3", one.ran, one.ended, "splitting outputs")])]
      : [bar("k0", request.began, request.ended, "in other models")];
    return [h("span", { style: { paddingLeft: `${12 * depth(request)}px` }, title: request.error || request.model }, request.model), h("div", { class: "lane", role: "img", "aria-label": words(request) }, parts), h("span", {}, duration(request.ended - request.began))];
  }), trace.error ? h("p", { class: "error", style: { gridColumn: "1 / -1" } }, trace.error) : null);
}

function words(request) {
  const run = request.runs[0];
  return run ? `${request.model}: ${duration(run.started - request.began)} in the queue, ${duration(run.ran - run.gathered)} in the model, batch of ${run.batch_size}` : `${request.model}: ${duration(request.ended - request.began)}`;
}

export function traces(main) {
  const list = h("div", { class: "panel" }), kept = [];
  let paused = false;
  const pause = h("button", { type: "button", "aria-pressed": "false", onclick: () => { paused = !paused; pause.setAttribute("aria-pressed", paused); pause.textContent = paused ? "Continue" : "Pause"; } }, "Pause");
  const only = h("input", { type: "search", placeholder: "Only model", "aria-label": "Only this model", oninput: () => draw() });
  fill(main, h("div", { class: "head" }, h("h1", {}, "Traces")), h("p", { class: "lede" }, "Requests as they end, and where their time goes. They are traced only while this page is open; on a busy server, twenty a second."),
    h("div", { class: "row", style: { marginBottom: "14px" } }, pause, only), list,
    h("div", { class: "keys" }, [["k0", "waiting, or in other models"], ["k1", "gathering inputs"], ["k2", "running the model"], ["k3", "splitting outputs"]].map(([kind, text]) => h("span", {}, h("i", { class: kind }), text))));
  let due = false;
  const draw = () => {
    due = false;
    const open = new Set([...list.querySelectorAll("details[open]")].map((one) => one.dataset.key));
    const shown = kept.filter((trace) => trace.requests.some((one) => one.model.includes(only.value)) || trace.model.includes(only.value));
    fill(list, shown.length ? shown.map((trace) => h("details", { class: "trace", "data-key": trace.key, open: open.has(trace.key) },
      h("summary", {}, h("span", { class: "muted num" }, clock(trace.time)), h("span", {}, trace.error ? h("span", { class: "dot bad" }, trace.model || trace.protocol) : trace.model, h("span", { class: "muted small" }, ` ${trace.protocol}${trace.requests.length > 1 ? `, ${trace.requests.length} requests` : ""}`)), h("span", { class: "num", style: { textAlign: "right" } }, duration(trace.took))), waterfall(trace)))
      : h("p", { class: "empty" }, "Waiting for requests…"));
  };
  let number_ = 0;
  const stop = follow("/v2/traces", (trace) => {
    if (paused) return;
    number_ += 1;
    kept.unshift({ ...trace, key: String(number_) });
    kept.length = Math.min(kept.length, KEPT);
    if (!due) { due = true; setTimeout(draw, 300); }
  });
  draw();
  return { close: stop };
}
