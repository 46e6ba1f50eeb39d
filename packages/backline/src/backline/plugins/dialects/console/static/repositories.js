// The repositories: when each was last scanned, and which of its models cannot be loaded.

import { fill, h, number, when } from "./dom.js";
import { json, mayChange } from "./api.js";
import * as live from "./live.js";

const MOST_NAMES = 60;
const INTERVAL = 5000;

export function repositories(main) {
  const list = h("div", {}), told = h("div", { role: "status" });
  const scan = h("button", { type: "button", onclick: async () => {
    scan.disabled = true;
    try { await json("/v2/repository/refresh", { method: "POST" }); fill(told); } catch (error) { fill(told, h("p", { class: "error" }, error.message)); }
    scan.disabled = false; read();
  } }, "Scan now");
  fill(main, h("div", { class: "head" }, h("h1", {}, "Repositories")), h("p", { class: "lede" }, "Where the models come from."),
    mayChange() ? h("div", { class: "row", style: { marginBottom: "14px" } }, scan) : null, told, list);
  let drawn = "";

  const rhythm = (one) => (one.mode === "poll" ? `when files change, and at least every ${number(one.poll_seconds)} s where changes cannot be noticed`
    : one.mode === "explicit" ? "at the start, and before each load that is requested" : "at the start only (--model-control-mode none)");

  function card(one) {
    const failed = live.versions().filter(({ now }) => one.models.includes(now.name) && now.state === "UNAVAILABLE" && now.reason && now.reason !== "unloaded");
    const problems = [...Object.entries(one.failures), ...failed.filter(({ now }) => !(now.name in one.failures)).map(({ now }) => [`${now.name} ${now.version}`, now.reason])];
    return h("section", { class: "panel" }, h("h2", { class: "mono" }, one.location),
      one.problem ? h("p", { class: "error" }, `The last scan failed, so its models stay as they were: ${one.problem}`) : null,
      h("dl", {}, h("dt", {}, "Scanned"), h("dd", {}, rhythm(one)),
        h("dt", {}, "Last scan"), h("dd", { class: "num" }, one.scanned ? `${when(one.scanned)}, took ${number(one.scan_seconds * 1000)} ms` : "not yet"),
        h("dt", {}, "Holds"), h("dd", {}, `${one.models.length} ${one.models.length === 1 ? "model" : "models"} in ${one.versions} ${one.versions === 1 ? "version" : "versions"}: `,
          one.models.slice(0, MOST_NAMES).map((name, index) => [index ? ", " : "", h("a", { href: `#/models/${encodeURIComponent(name)}` }, name)]), one.models.length > MOST_NAMES ? ` and ${one.models.length - MOST_NAMES} more` : "")),
      problems.length ? [h("h3", { style: { marginTop: "16px" } }, "What cannot be served"), problems.map(([name, reason]) => [h("p", { class: "small", style: { margin: "0 0 4px" } }, name), h("p", { class: "error" }, reason)])] : null);
  }

  const read = () => json("/v2/repository/locations").then(({ repositories: found }) => {
    const seen = JSON.stringify([found, live.versions().map(({ now }) => [now.name, now.state, now.reason])]);
    if (seen === drawn) return;
    drawn = seen;
    fill(list, found.map(card));
  }, (error) => fill(list, h("p", { class: "error" }, error.message)));
  read();
  const timer = setInterval(() => { if (!document.hidden) read(); }, INTERVAL);
  return { close: () => clearInterval(timer) };
}
