// The audit log, kept up to date: who changed what, and who was refused.

import { fill, h, table, when } from "./dom.js";
import { json } from "./api.js";

const PAGE = 200;
const KEPT = 500;
const INTERVAL = 3000;

export function audit(main) {
  const list = h("div", { class: "panel" }), only = h("select", { "aria-label": "Outcome", onchange: () => draw() },
    [["", "Everything"], ["done", "Changes"], ["failed", "Failed"], ["refused", "Refused"]].map(([value, text]) => h("option", { value }, text)));
  const more = h("button", { type: "button", hidden: true, onclick: () => older() }, "Older entries");
  let entries = [], cursor = "", kept = KEPT;
  fill(main, h("div", { class: "head" }, h("h1", {}, "Audit")), h("p", { class: "lede" }, "Every request that changed something or read what clients sent, and every one that was refused."),
    h("div", { class: "row", style: { marginBottom: "14px" } }, only), list, more);
  const draw = () => {
    const shown = entries.filter((one) => !only.value || one.outcome === only.value || (only.value === "done" && one.action));
    fill(list, shown.length ? table(["When", "Outcome", "Who", "What", "Model", "Detail"], shown.map((one) => [
      h("span", { class: "num" }, when(one.time)),
      h("span", { class: `dot ${one.outcome === "done" || one.action ? "good" : "bad"}` }, one.outcome ?? "changed"),
      one.identity || one.who || one.address || "–", one.route ?? `${one.action}${one.label ? ` ${one.label}` : ""}`,
      `${one.model ?? ""}${one.version ? ` ${one.version}` : ""}`, one.detail + (one.suppressed > 1 ? ` (and ${one.suppressed - 1} more)` : "")]), "Audit log")
      : h("p", { class: "empty" }, "Nothing yet."));
  };
  const failed = (error) => fill(list, h("p", { class: "error" }, error.message));
  const page = (query) => json(`/v2/audit?limit=${PAGE}&${query}`);
  const unknown = (found) => {
    const known = new Set(entries.map((one) => JSON.stringify(one)));
    return found.filter((one) => !known.has(JSON.stringify(one)));
  };
  // Entries may have the same time, so this requests some known ones again, and skips them.
  const read = () => page(`after=${entries.length ? entries[0].time - 0.001 : 0}`).then((told) => {
    const first = !entries.length, found = unknown(told.entries);
    if (!first && !found.length) return;
    // Begins again if entries did not fit on the page, so that no others are missing before the known ones.
    if (!first && ((told.cursor && found.length === told.entries.length) || entries.length + found.length > kept)) {
      entries = []; kept = KEPT;
      return read();
    }
    entries = [...found, ...entries];
    if (first) cursor = told.cursor;
    more.hidden = !cursor;
    draw();
  }).catch(failed);
  const older = () => page(`cursor=${encodeURIComponent(cursor)}`).then((told) => {
    entries = [...entries, ...unknown(told.entries)];
    kept += PAGE;
    cursor = told.cursor;
    more.hidden = !cursor;
    draw();
  }, failed);
  read();
  const timer = setInterval(() => { if (!document.hidden) read(); }, INTERVAL);
  return { close: () => clearInterval(timer) };
}
