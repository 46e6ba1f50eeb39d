// The server's log, line by line as it is written. Only the last lines are kept, here and in the server.

import { fill, h } from "./dom.js";
import { follow } from "./api.js";

const KEPT = 500;
const LEVELS = ["debug", "info", "warning", "error", "critical"];

export function log(main) {
  const list = h("ol", { class: "log", tabindex: "0", "aria-label": "Lines of the log" }), told = h("p", { class: "muted small", role: "status" });
  const level = h("select", { "aria-label": "Lowest severity", onchange: () => draw() }, LEVELS.slice(0, 4).map((one) => h("option", { value: one }, one === "debug" ? "every severity" : one === "error" ? "errors" : `${one} and above`)));
  const only = h("input", { type: "search", placeholder: "Only lines with", "aria-label": "Only lines with this text", oninput: () => draw() });
  const pause = h("button", { type: "button", "aria-pressed": "false", onclick: () => { paused = !paused; pause.setAttribute("aria-pressed", paused); pause.textContent = paused ? "Continue" : "Pause"; if (!paused) draw(); } }, "Pause");
  let kept = [], lost = 0, paused = false;
  fill(main, h("div", { class: "head" }, h("h1", {}, "Log")),
    h("p", { class: "lede" }, "What the server, its models and its libraries log, as it comes. Which severities are logged at all is a setting of the server (", h("code", {}, "--log-level"), ")."),
    h("div", { class: "row", style: { marginBottom: "14px" } }, pause, level, only), told, h("div", { class: "panel" }, list));
  const draw = () => {
    const least = LEVELS.indexOf(level.value), text = only.value.toLowerCase();
    const shown = kept.filter((line) => (LEVELS.indexOf(line.level) < 0 || LEVELS.indexOf(line.level) >= least) && line.text.toLowerCase().includes(text));
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    fill(list, shown.length ? shown.map((line) => h("li", { class: line.level }, line.text)) : h("li", {}, kept.length ? "No line matches." : "Nothing has been logged yet."));
    if (atEnd) list.scrollTop = list.scrollHeight;
    told.textContent = lost ? `${lost} lines were written too fast to be shown.` : "";
  };
  draw();
  const stop = follow("/v2/logging/lines", (part) => {
    kept = [...kept, ...part.lines].slice(-KEPT);
    lost += part.lost;
    if (!paused) draw();
  }, (state, error) => {
    if (state === "on") kept = [];   // a new stream begins with the lines that the server keeps
    if (state === "off" && error) fill(told, h("span", { class: "error" }, error.message));
  });
  return { close: stop };
}
