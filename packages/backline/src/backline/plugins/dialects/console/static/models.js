import { bytes, duration, fill, h, number, refill, table } from "./dom.js";
import { may } from "./api.js";
import * as live from "./live.js";

const WORDS = {
  READY: ["good", "ready"], LOADING: ["warn", "loading"], UNLOADING: ["warn", "unloading"], ON_DEMAND: ["", "on demand"],
  UNAVAILABLE: ["bad", "not available"], UNKNOWN: ["", "not loaded"],
};

export function state(entry) {
  let [kind, text] = WORDS[entry.state] ?? ["", entry.state.toLowerCase()];
  if (entry.state === "UNAVAILABLE" && ["", "unloaded"].includes(entry.reason)) [kind, text] = ["", "unloaded"];
  if (entry.state === "READY" && !entry.ready) [kind, text] = ["warn", "not ready"];
  if (entry.progress) text = `${entry.progress.phase}, ${Math.round(entry.progress.seconds)} s`;
  return h("span", { class: `dot ${kind}${entry.progress ? " spin" : ""}` }, text);
}

export function labels(entry) {
  return [entry.default ? h("span", { class: "tag strong", title: "Requests that name no version go here" }, "default") : null,
    entry.labels.map((label) => h("span", { class: "tag" }, label))];
}

// The link to the form, for models that are ready.
export function tryLink(entry) {
  return entry.ready && may("infer", entry.name) ? h("a", { class: "try", href: `#/models/${encodeURIComponent(entry.name)}/try` }, "Try it") : null;
}

export function progress(entry) {
  const { bytes_done: done, bytes_total: total } = entry.progress ?? {};
  return total ? h("progress", { max: total, value: done, "aria-label": "fetched" }) : null;
}

export function models(main) {
  const body = h("div", { class: "panel" });
  const filter = h("input", { type: "search", placeholder: "Filter", "aria-label": "Filter models", oninput: () => update() });
  fill(main, h("div", { class: "head" }, h("h1", {}, "Models")), h("p", { class: "lede" }, "Every version with its state, and the reason if it does not serve."),
    h("div", { class: "row", style: { marginBottom: "14px" } }, filter), body);

  function update() {
    const wanted = filter.value.toLowerCase();
    const list = live.versions().filter((model) => model.now.name.toLowerCase().includes(wanted));
    const rows = list.flatMap((model) => {
      const entry = model.now, one = live.current([model]);
      const row = h("tr", {},
        h("td", {}, h("a", { href: `#/models/${encodeURIComponent(entry.name)}` }, entry.name)), h("td", {}, entry.version, " ", labels(entry)),
        h("td", {}, state(entry), progress(entry)), h("td", {}, entry.backend, entry.lane ? h("span", { class: "muted small" }, ` ${entry.lane}`) : null),
        h("td", { class: "n" }, number(one.rate)), h("td", { class: "n" }, duration(one.p99)), h("td", { class: "n" }, bytes(entry.memory)));
      const failed = entry.reason && !entry.ready && entry.reason !== "unloaded"
        ? [h("tr", { class: "fail" }, h("td", { colspan: "7" }, h("p", { class: "error" }, entry.reason)))] : [];
      return [row, ...failed];
    });
    refill(body, rows.length ? table(["Model", "Version", "State", "Backend", "#Requests/s", "#p99", "#Memory"], rows, "Models")
      : h("p", { class: "empty" }, wanted ? "No model has such a name." : "The server has no models."));
  }
  return { update };
}

// For visitors who may use only some models, and therefore cannot list any.
export function named(main) {
  const name = h("input", { id: "name", required: true, autocomplete: "off" });
  fill(main, h("h1", {}, "Open a model"), h("p", { class: "lede" }, may("read") ? "" : "You may use only some models, or have not entered a key."),
    h("form", { class: "panel row", onsubmit: (event) => { event.preventDefault(); location.hash = `#/models/${encodeURIComponent(name.value)}`; } },
      h("label", { for: "name" }, "Name"), name, h("button", { class: "primary" }, "Open")));
  return {};
}
